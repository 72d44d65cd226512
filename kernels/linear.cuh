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

// batch_invariant: on a GPU, the forward sums each output in one order whatever the batch, so that sampler and trainer
// agree to the bit. Without it cuBLASLt computes large batches faster and the policy ratio at step 0 is 1 to rounding.
struct MatmulSettings {
    bool batch_invariant = true;
};
inline MatmulSettings matmul_settings;

inline void linear_forward_cpu(floatX* out, int64_t ldo,            // [T,OC] at ldo
                               const floatX* inp,                   // [T,C]
                               const floatX* weight,                // [OC,C]
                               const floatX* bias,                  // [OC] or null
                               const PackedWeight<floatX>* packed,  // weight in the GEMM's own layout, or null
                               int64_t T, int64_t C, int64_t OC) {
    if (packed) gemm_nt_packed(out, inp, *packed, bias, T, false, ldo);
    else gemm_nt(out, inp, weight, bias, T, OC, C, false, ldo);
}

inline void linear_backward_cpu(floatX* dinp,          // [T,C]
                                float* dweight,        // [OC,C] +=
                                float* dbias,          // [OC] += or null
                                const floatX* dout,    // [T,OC]
                                const floatX* inp,     // [T,C]
                                const floatX* weight,  // [OC,C]
                                int64_t T, int64_t C, int64_t OC) {
    gemm_nn(dinp, dout, weight, T, OC, C);
    gemm_tn(dweight, dout, inp, T, OC, C);
    if (dbias) bias_backward_cpu(dbias, dout, T, OC);
}

// ---------------------------------------------------------------------------------------------------------------------
// launchers

// out: (T,OC) at ldo; inp: (T,C); weight: (OC,C), not read (may be null) when packed or quantized stands for it; bias: (OC) or
// null; packed: the weight in the CPU product's own layout, or null, CPU only; quantized: the weight as packed codes,
// or null. All three give the same bits.
inline void linear_forward(floatX* out, int64_t ldo, const floatX* inp, const floatX* weight, const floatX* bias,
                           const PackedWeight<floatX>* packed, const QuantizedWeight* quantized, int64_t T, int64_t C,
                           int64_t OC, Device dev) {
    NVTX_RANGE("linear_forward");
    if (quantized && (quantized->N != OC || quantized->K != C))
        fail("linear_forward: a quantized weight [%lld,%lld] for a layer [%lld,%lld]", (long long)quantized->N,
             (long long)quantized->K, (long long)OC, (long long)C);
    if (quantized) {
        matmul_nt_quantized(out, ldo, inp, C, *quantized, bias, T, dev);
        return;
    }
    if (!dev.cuda) linear_forward_cpu(out, ldo, inp, weight, bias, packed, T, C, OC);
    else if (matmul_settings.batch_invariant) matmul_nt(out, ldo, inp, C, weight, C, bias, T, OC, C, dev);
    else matmul_nt_any_order(out, ldo, inp, C, weight, C, bias, T, OC, C, dev);
}

// dinp: (T,C), =; dweight: (OC,C), +=; dbias: (OC), +=, or null; dout: (T,OC); inp: (T,C); weight: (OC,C)
inline void linear_backward(floatX* dinp, float* dweight, float* dbias, const floatX* dout, const floatX* inp,
                            const floatX* weight, int64_t T, int64_t C, int64_t OC, Device dev) {
    NVTX_RANGE("linear_backward");
    if (!dev.cuda) {
        linear_backward_cpu(dinp, dweight, dbias, dout, inp, weight, T, C, OC);
        return;
    }
    matmul_nn(dinp, C, dout, OC, weight, C, T, OC, C, false, dev);
    matmul_tn(dweight, C, dout, OC, inp, C, T, OC, C, dev);
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
