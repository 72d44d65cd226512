// Muon (Jordan 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv 2502.16982): momentum whose update is
// made orthogonal, so that every direction of a weight matrix moves by the same amount.
//   B = mu B + (1-mu) g;  U = (1-mu) g + mu B (nesterov) or B;  O = newton_schulz(U)
//   W = W - lr (0.2 sqrt(max(rows, cols)) O + decay W)
// The factor gives the update the root mean square of AdamW's, about 0.2 to 0.4, so that AdamW's rate and decay fit
// (torch.optim.Muon's adjust_lr_fn "match_rms_adamw"). The gradient is scaled by grad_scale first, as in adamw.cuh.
// The original keeps B = mu B + g, as torch does not: O does not feel the difference.
// The step of one weight is one function for both devices. The trap: this is for the matrices between hidden states;
// embedding, head, norms and biases stay with AdamW.
//
// Traffic in bytes besides the iteration's: 28n, least and moved. Launch: a thread a weight.
#pragma once
#include "../runtime/math.h"
#include "newton_schulz.cuh"

struct MuonConfig {
    float learning_rate = 1e-6f, momentum = 0.95f, weight_decay = 0.0f;
    bool nesterov = true;
    int ns_steps = 5;
};

// floats of scratch: U, and what the iteration needs
inline size_t muon_floats(int64_t rows, int64_t cols) {
    return (size_t)(rows * cols) + newton_schulz_floats(rows, cols);
}

inline float muon_update_scale(int64_t rows, int64_t cols) {
    return (float)(0.2 * std::sqrt((double)std::max(rows, cols)));
}

// returns U
HOST_DEVICE float muon_momentum(float* b, float grad, float grad_scale, const MuonConfig& c) {
    const float g = (1.0f - c.momentum) * (grad * grad_scale);
    *b = mul_add(c.momentum, *b, g);
    return c.nesterov ? mul_add(c.momentum, *b, g) : *b;
}

HOST_DEVICE void muon_step(float* w, float o, float scale, const MuonConfig& c) {
    *w = mul_add(-c.learning_rate, mul_add(c.weight_decay, *w, scale * o), *w);
}

inline void muon_momentum_cpu(float* u,           // [n]
                              float* b,           // [n]
                              const float* grad,  // [n]
                              int64_t n, float grad_scale, const MuonConfig& c) {
#pragma omp parallel for simd schedule(static) if (parallel : n > NEWTON_SCHULZ_SERIAL)
    for (int64_t i = 0; i < n; i++) u[i] = muon_momentum(b + i, grad[i], grad_scale, c);
}

inline void muon_step_cpu(float* w,        // [n]
                          const float* o,  // [n]
                          int64_t n, float scale, const MuonConfig& c) {
#pragma omp parallel for simd schedule(static) if (parallel : n > NEWTON_SCHULZ_SERIAL)
    for (int64_t i = 0; i < n; i++) muon_step(w + i, o[i], scale, c);
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
static constexpr int MUON_BLOCK = 256;

// grid: CEIL_DIV(n, MUON_BLOCK)
__global__ void muon_momentum_kernel(float* u, float* b, const float* grad, int64_t n, float grad_scale, MuonConfig c) {
    const int64_t i = (int64_t)blockIdx.x * MUON_BLOCK + threadIdx.x;
    if (i < n) u[i] = muon_momentum(b + i, grad[i], grad_scale, c);
}

// grid: CEIL_DIV(n, MUON_BLOCK)
__global__ void muon_step_kernel(float* w, const float* o, int64_t n, float scale, MuonConfig c) {
    const int64_t i = (int64_t)blockIdx.x * MUON_BLOCK + threadIdx.x;
    if (i < n) muon_step(w + i, o[i], scale, c);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launcher

// w, b, grad: [rows,cols]; work: [muon_floats(rows, cols)]
inline void muon_update(float* w, float* b, const float* grad, float* work, int64_t rows, int64_t cols,
                        float grad_scale, const MuonConfig& c, Device dev) {
    NVTX_RANGE("muon_update");
    const int64_t n = rows * cols;
    if (n <= 0) return;
    const float scale = muon_update_scale(rows, cols);
    float* u = work;
#if HAS_KERNELS
    if (dev.cuda) {
        const unsigned blocks = (unsigned)CEIL_DIV(n, MUON_BLOCK);
        LAUNCH(muon_momentum_kernel, blocks, MUON_BLOCK, 0, dev.stream, u, b, grad, n, grad_scale, c);
        newton_schulz(u, work + n, rows, cols, c.ns_steps, dev);
        LAUNCH(muon_step_kernel, blocks, MUON_BLOCK, 0, dev.stream, w, u, n, scale, c);
        return;
    }
#endif
    muon_momentum_cpu(u, b, grad, n, grad_scale, c);
    newton_schulz(u, work + n, rows, cols, c.ns_steps, dev);
    muon_step_cpu(w, u, n, scale, c);
}
