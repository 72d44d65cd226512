// Matrix products on the CPU with a weight stored as packed codes (packed_weight.cuh, layout panels).
#pragma once
#include "../packed_weight.cuh"
#include "gemm.h"

// out: (M,w.N) at ldo; a: (M,w.K) at lda; bias: (w.N) or null. The bits of gemm_nt with the working weight.
template <class O>
void gemm_nt_quantized(O* out, const floatX* a, const QuantizedWeight& w, const floatX* bias, int64_t M,
                       int64_t ldo = 0, int64_t lda = 0) {
    std::vector<floatX> unpacked((size_t)(w.N * w.K));
    quantized_weight_unpack_cpu(unpacked.data(), w.K, w, 0, w.N);
    gemm_nt(out, a, unpacked.data(), bias, M, w.N, w.K, false, ldo, lda);
}
