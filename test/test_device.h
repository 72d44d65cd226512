// The device that tests of the whole model run on: the CPU, or in a simt build the simulated GPU, whose memory the host
// can read as its own.
#pragma once
#include <gtest/gtest.h>
#include "../kernels/cublaslt.cuh"

#if HAS_KERNELS
// cuBLASLt's plans are kept for the next product; without this LeakSanitizer takes them for lost
struct ReleaseCublaslt : testing::Environment {
    void TearDown() override { cublaslt_release(); }
};
inline testing::Environment* const release_cublaslt = testing::AddGlobalTestEnvironment(new ReleaseCublaslt);
#endif

inline Device model_device() {
    Device dev;
#if defined(TRAIN_QRL_SIMT)
    static cudaStream_t stream = nullptr;
    static ScratchStack scratch;
    if (!stream) {
        CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        scratch.size = 8 << 20;
        CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&scratch.base), scratch.size));
    }
    dev.cuda = true;
    dev.stream = stream;
    dev.scratch = &scratch;
#endif
    return dev;
}
