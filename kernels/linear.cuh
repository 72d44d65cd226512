// Linear layer, weights as Hugging Face stores them: one row an output channel.
//   forward   out = inp W^T + bias
//   backward  dinp = dout W;   dW += dout^T inp;   dbias += sum_t dout_t
// W is what the quantizer left (quant.cuh): the forward multiplies with Q(W), and so does dinp; dW is the gradient of
// Q(W), which the straight-through rule turns into that of W. The matrix products are in cpu/gemm.h and matmul.cuh,
// those with packed codes in matmul_quantized.cuh and cpu/gemm_quantized.h.
//
// A frozen base (QLoRA, arXiv 2305.14314) is packed codes alone: linear_forward with `quantized` and no weight, for any
// T, and linear_backward_input_quantized; there is no gradient of the weight.
#pragma once
#include <cstdint>
#include "../runtime/device.h"
#include "bias.cuh"
#include "cpu/gemm.h"
#include "matmul.cuh"
#include "matmul_quantized.cuh"

struct LinearShape {
    int64_t T, C, OC;
};

inline void linear_forward_cpu(Rows<floatX> out,                    // [T,OC]
                               const floatX* inp,                   // [T,C]
                               const floatX* weight,                // [OC,C]
                               const floatX* bias,                  // [OC] or null
                               const PackedWeight<floatX>* packed,  // weight in the GEMM's own layout, or null
                               LinearShape s) {
    if (packed) gemm_nt_packed(out.p, inp, *packed, bias, s.T, false, {out.stride});
    else gemm_nt(out.p, inp, weight, bias, s.T, s.OC, s.C, false, {out.stride});
}

inline void linear_backward_cpu(floatX* dinp,          // [T,C]
                                float* dweight,        // [OC,C] +=
                                float* dbias,          // [OC] += or null
                                const floatX* dout,    // [T,OC]
                                const floatX* inp,     // [T,C]
                                const floatX* weight,  // [OC,C]
                                LinearShape s) {
    gemm_nn(dinp, dout, weight, s.T, s.OC, s.C);
    gemm_tn(dweight, dout, inp, s.T, s.OC, s.C);
    if (dbias) bias_backward_cpu(dbias, dout, s.T, s.OC);
}

// ---------------------------------------------------------------------------------------------------------------------
// launchers

// out: (T,OC), rows apart; inp: (T,C); weight: (OC,C), not read (may be null) when packed or quantized stands for it; bias: (OC) or
// null; packed: the weight in the CPU product's own layout, or null, CPU only; quantized: the weight as packed codes,
// or null. All three give the same bits.
inline void linear_forward(Rows<floatX> out, const floatX* inp, const floatX* weight, const floatX* bias,
                           const PackedWeight<floatX>* packed, const QuantizedWeight* quantized, LinearShape s,
                           Device dev) {
    NVTX_RANGE("linear_forward");
    const int64_t T = s.T, C = s.C, OC = s.OC;
    if (quantized && (quantized->N != OC || quantized->K != C))
        fail("linear_forward: a quantized weight [%lld,%lld] for a layer [%lld,%lld]", (long long)quantized->N,
             (long long)quantized->K, (long long)OC, (long long)C);
    if (quantized) {
        matmul_nt_quantized(out.p, out.stride, inp, C, *quantized, bias, T, dev);
        return;
    }
    if (!dev.cuda) linear_forward_cpu(out, inp, weight, bias, packed, s);
    else if (dev.batch_invariant) matmul_nt(out, {inp, C}, {weight, C}, bias, T, OC, C, dev);
    else matmul_nt_any_order(out, {inp, C}, {weight, C}, bias, T, OC, C, dev);
}

// dinp: (T,C), =; dweight: (OC,C), +=; dbias: (OC), +=, or null; dout: (T,OC); inp: (T,C); weight: (OC,C)
inline void linear_backward(floatX* dinp, float* dweight, float* dbias, const floatX* dout, const floatX* inp,
                            const floatX* weight, LinearShape s, Device dev) {
    NVTX_RANGE("linear_backward");
    const int64_t T = s.T, C = s.C, OC = s.OC;
    if (!dev.cuda) {
        linear_backward_cpu(dinp, dweight, dbias, dout, inp, weight, s);
        return;
    }
    matmul_nn(Rows{dinp, C}, {dout, OC}, {weight, C}, T, OC, C, false, dev);
    matmul_tn({dweight, C}, {dout, OC}, {inp, C}, T, OC, C, dev);
    if (dbias) bias_backward(dbias, dout, T, OC, dev);
}

// dinp: (T,C) = dout Q(W), C = quantized.K; dout: (T,OC), OC = quantized.N. The bits of linear_backward's dinp with the
// unpacked weight; no other gradient. On a device scratch holds the unpacked weight of this one layer, on the CPU a
// panel of it.
inline void linear_backward_input_quantized(floatX* dinp, const floatX* dout, const QuantizedWeight& quantized,
                                            int64_t T, Device dev) {
    NVTX_RANGE("linear_backward_input_quantized");
    matmul_nn_quantized(dinp, dout, quantized, T, dev);
}
