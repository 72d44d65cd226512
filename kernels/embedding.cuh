// Token embedding.
//   forward   out[t,c] = wte[tokens[t], c]
//   backward  dwte[tokens[t], c] += dout[t, c]
// The trap: two tokens of a batch may be the same row, so the backward must not add in an order that depends on
// threads. Here each thread owns a range of columns and walks the tokens in order.
#pragma once
#include <cstdint>
#include "../runtime/dtypes.h"

inline void embedding_forward_cpu(floatX* out,        // [T,C]
                                  const int* tokens,  // [T], each in [0,V)
                                  const floatX* wte,  // [V,C]
                                  int64_t T, int64_t C) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++) memcpy(out + t * C, wte + (int64_t)tokens[t] * C, C * sizeof(floatX));
}

inline void embedding_backward_cpu(float* dwte,         // [V,C] +=
                                   const floatX* dout,  // [T,C]
                                   const int* tokens,   // [T]
                                   int64_t T, int64_t C) {
    const int64_t columns = 64, blocks = (C + columns - 1) / columns;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t c0 = b * columns, c1 = c0 + columns < C ? c0 + columns : C;
        for (int64_t t = 0; t < T; t++) {
            float* row = dwte + (int64_t)tokens[t] * C;
            const floatX* d = dout + t * C;
            for (int64_t c = c0; c < c1; c++) row[c] += (float)d[c];
        }
    }
}
