// SwiGLU (Shazeer 2020), gate and up side by side in one row as the fused projection leaves them.
//   forward   out[t,f] = silu(g) u,  silu(g) = g sigmoid(g),  g = gate_up[t,f], u = gate_up[t,F+f]
//   backward  du = dout silu(g);  dg = dout u sigmoid(g) (1 + g (1 - sigmoid(g)))
// Like transformers, silu(g) is rounded to floatX before the product.
#pragma once
#include <cstdint>
#include "../runtime/dtypes.h"
#include "../runtime/math.h"

inline void swiglu_forward_cpu(floatX* out,            // [T,F]
                               const floatX* gate_up,  // [T,2F]
                               int64_t T, int64_t F) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++) {
        const floatX *g = gate_up + t * 2 * F, *u = g + F;
        floatX* o = out + t * F;
        INDEPENDENT
        for (int64_t f = 0; f < F; f++) {
            float x = (float)g[f];
            o[f] = (float)floatX(x * sigmoid_f(x)) * (float)u[f];
        }
    }
}

inline void swiglu_backward_cpu(floatX* dgate_up,       // [T,2F]
                                const floatX* dout,     // [T,F]
                                const floatX* gate_up,  // [T,2F]
                                int64_t T, int64_t F) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++) {
        const floatX *g = gate_up + t * 2 * F, *u = g + F, *d = dout + t * F;
        floatX *dg = dgate_up + t * 2 * F, *du = dg + F;
        INDEPENDENT
        for (int64_t f = 0; f < F; f++) {
            float x = (float)g[f], s = sigmoid_f(x), e = (float)d[f];
            dg[f] = e * (float)u[f] * s * (1.0f + x * (1.0f - s));
            du[f] = e * x * s;
        }
    }
}
