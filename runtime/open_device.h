// --device: which device a run uses, and why it cannot.
#pragma once
#include <cstdlib>
#include <string>
#include <vector>
#include "arena.h"
#include "words.h"

// The default of this build: the GPU for a program compiled by nvcc, the CPU otherwise
inline std::string default_device() {
#if defined(__CUDACC__)
    return "cuda";
#else
    return "cpu";
#endif
}

// count GPUs as CUDA_VISIBLE_DEVICES names them: by what it says now (`visible`), else by number
inline std::vector<std::string> gpu_names(int count, const char* visible) {
    std::vector<std::string> names = visible ? split_words(visible) : std::vector<std::string>();
    if (!visible)
        for (int i = 0; i < count; i++) names.push_back(std::to_string(i));
    names.resize(std::min(names.size(), (size_t)count));
    return names;
}

// The GPUs of this machine, one of which each process of its own may be given; none: `choice` is the CPU
inline std::vector<std::string> visible_gpus(const std::string& choice) {
    int count = 0;
#if HAS_KERNELS
    if ((choice == "auto" ? default_device() : choice) == "cuda" && cudaGetDeviceCount(&count) != cudaSuccess)
        count = 0;
#else
    (void)choice;
#endif
    return gpu_names(count, getenv("CUDA_VISIBLE_DEVICES"));
}

#if HAS_KERNELS
inline std::string cuda_version_text(int version) { return format("%d.%d", version / 1000, version % 1000 / 10); }

// Makes GPU number local_rank the current one; fails unless this program can run on it. probe: any kernel of the program
inline void check_cuda(int local_rank, const void* probe) {
    int driver = 0, runtime = 0, devices = 0;
    cudaError_t error = cudaDriverGetVersion(&driver);
    if (error != cudaSuccess) driver = 0;
    CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
    if (driver == 0)
        fail(
            "--device cuda: no NVIDIA driver is installed; install one for CUDA %s, or run on the CPU with --device "
            "cpu",
            cuda_version_text(runtime).c_str());
    error = cudaGetDeviceCount(&devices);
    if (error == cudaErrorInsufficientDriver)
        fail(
            "--device cuda: the NVIDIA driver supports CUDA %s, this program was built with %s; update the driver, "
            "build "
            "with an older toolkit, or run on the CPU with --device cpu",
            cuda_version_text(driver).c_str(), cuda_version_text(runtime).c_str());
    if (error == cudaErrorNoDevice || (error == cudaSuccess && devices == 0))
        fail(
            "--device cuda: no NVIDIA GPU is visible (is CUDA_VISIBLE_DEVICES set?); run on the CPU with --device cpu");
    CUDA_CHECK(error);
    if (local_rank >= devices)
        fail("LOCAL_RANK=%d: there are %d GPUs; start as many ranks as there are GPUs", local_rank, devices);
    CUDA_CHECK(cudaSetDevice(local_rank));
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, local_rank));
    cudaFuncAttributes attributes;
    error = cudaFuncGetAttributes(&attributes, probe);
    if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
        error == cudaErrorUnsupportedPtxVersion)
        fail(
            "--device cuda: this program has no code for %s (sm_%d%d); build it with 'make CUDA=1 ARCHS=%d%d', or run "
            "on "
            "the CPU with --device cpu",
            properties.name, properties.major, properties.minor, properties.major, properties.minor);
    CUDA_CHECK(error);
}
#endif

// choice: auto, cpu or cuda, there GPU number local_rank. On a GPU: its own stream, and a memory pool that keeps what it has (the default gives it
// back at each synchronisation)
inline Device open_device(const std::string& choice, int local_rank, const void* probe) {
    Device dev;
    std::string name = choice == "auto" ? default_device() : choice;
    (void)probe, (void)local_rank;
    if (name == "cpu") return dev;
#if HAS_KERNELS
    check_cuda(local_rank, probe);
    dev.cuda = true;
    CUDA_CHECK(cudaStreamCreateWithFlags(&dev.stream, cudaStreamNonBlocking));
    cudaMemPool_t pool;
    uint64_t keep = UINT64_MAX;
    CUDA_CHECK(cudaDeviceGetDefaultMemPool(&pool, local_rank));
    CUDA_CHECK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
    static ScratchStack scratch;
    dev.scratch = &scratch;
#else
    fail(
        "--device cuda: this program was built without CUDA; build it with 'make CUDA=1' where there is a CUDA "
        "toolkit, or "
        "run on the CPU with --device cpu");
#endif
    return dev;
}

// "cpu, 2 threads", or the GPU's name, architecture and memory
inline std::string device_text(Device dev, const std::string& cpu) {
#if HAS_KERNELS
    if (dev.cuda) {
        int device = 0;
        cudaDeviceProp p;
        CUDA_CHECK(cudaGetDevice(&device));
        CUDA_CHECK(cudaGetDeviceProperties(&p, device));
        return format("cuda, %s, sm_%d%d, %s", p.name, p.major, p.minor, bytes_text((double)p.totalGlobalMem).c_str());
    }
#endif
    (void)dev;
    return "cpu, " + cpu;
}
