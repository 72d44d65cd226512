// Linear layer, weights as Hugging Face stores them: one row an output channel.
//   forward   out = inp W^T + bias
//   backward  dinp = dout W;   dW += dout^T inp;   dbias += sum_t dout_t
// W is what the quantizer left (quant.cuh): the forward multiplies with Q(W), and so does dinp; dW is the gradient of
// Q(W), which the straight-through rule turns into that of W. The matrix products are in cpu/gemm.h.
#pragma once
#include <cstdint>
#include "../runtime/dtypes.h"
#include "cpu/gemm.h"

inline void linear_forward_cpu(floatX* out,                         // [T,OC]
                               const floatX* inp,                   // [T,C]
                               const floatX* weight,                // [OC,C]
                               const floatX* bias,                  // [OC] or null
                               const PackedWeight<floatX>* packed,  // weight in the GEMM's own layout, or null
                               int64_t T, int64_t C, int64_t OC) {
    if (packed) gemm_nt_packed(out, inp, *packed, bias, T);
    else gemm_nt(out, inp, weight, bias, T, OC, C);
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
    if (!dbias) return;
    const int64_t columns = 64, blocks = (OC + columns - 1) / columns;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {  // a thread owns its columns and adds the tokens in order
        int64_t c0 = b * columns, c1 = c0 + columns < OC ? c0 + columns : OC;
        for (int64_t t = 0; t < T; t++)
            for (int64_t c = c0; c < c1; c++) dbias[c] += (float)dout[t * OC + c];
    }
}
