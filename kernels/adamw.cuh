// AdamW (Loshchilov & Hutter 2019, algorithm 2), fp32 master weights and moments.
//   m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//   w = w - lr (m / (1-b1^t) / (sqrt(v / (1-b2^t)) + eps) + decay w)
// The gradient is scaled by grad_scale first, which is where clipping happens. grad_scale is a number of the host: the
// gradient norm is brought there once a step for the log and for the decision to skip.
// The step of one weight is one function for both devices, with its fused multiplications written out, so that their
// bits are the same wherever the CPU has FMA. The trap: the working weights are stale until they are converted again.
//
// Traffic in bytes, least and moved: 28n (w, m, v read and written, the gradient read). Launch: a thread 4 weights.
#pragma once
#include <cmath>
#include <cstdint>
#include "../runtime/device.h"
#include "../runtime/math.h"
#include "../runtime/parallel.h"

struct AdamWConfig {
    float learning_rate = 1e-6f, beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f, weight_decay = 0.0f;
};

// 1 - beta^step, of the first and of the second moment
struct AdamWCorrection {
    float m, v;
};

HOST_DEVICE void adamw_step(float* w, float* m, float* v, float grad, float grad_scale, const AdamWConfig& c,
                            AdamWCorrection correct) {
    float g = grad * grad_scale;
    *m = mul_add(c.beta1, *m, (1.0f - c.beta1) * g);
    *v = mul_add(c.beta2, *v, (1.0f - c.beta2) * g * g);
    float update = (*m / correct.m) / (sqrtf(*v / correct.v) + c.epsilon);
    *w = mul_add(-c.learning_rate, mul_add(c.weight_decay, *w, update), *w);
}

// step counts from 1
inline AdamWCorrection adamw_correction(const AdamWConfig& c, int64_t step) {
    return {(float)(1.0 - pow((double)c.beta1, (double)step)), (float)(1.0 - pow((double)c.beta2, (double)step))};
}

inline void adamw_update_cpu(float* w,           // [n]
                             float* m,           // [n]
                             float* v,           // [n]
                             const float* grad,  // [n]
                             int64_t n, float grad_scale, const AdamWConfig& c, int64_t step) {
    const AdamWCorrection correct = adamw_correction(c, step);
#pragma omp parallel for simd schedule(static) if (parallel : worth_threads(n))
    for (int64_t i = 0; i < n; i++) adamw_step(w + i, m + i, v + i, grad[i], grad_scale, c, correct);
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernel

#if HAS_KERNELS
static constexpr int ADAMW_BLOCK = 256;

// grid: CEIL_DIV(n, ADAMW_BLOCK * 4)
__global__ void adamw_update_kernel(float* w, float* m, float* v, const float* grad, int64_t n, float grad_scale,
                                    AdamWConfig c, AdamWCorrection correct, bool aligned) {
    int64_t first = ((int64_t)blockIdx.x * ADAMW_BLOCK + threadIdx.x) * 4;
    if (first >= n) return;
    int left = n - first < 4 ? (int)(n - first) : 4;
    Pack128<float> pw = load_pack(w + first, 0, left, aligned), pm = load_pack(m + first, 0, left, aligned);
    Pack128<float> pv = load_pack(v + first, 0, left, aligned), pg = load_pack(grad + first, 0, left, aligned);
    for (int k = 0; k < 4; k++) adamw_step(&pw[k], &pm[k], &pv[k], pg[k], grad_scale, c, correct);
    store_pack(w + first, 0, left, aligned, pw);
    store_pack(m + first, 0, left, aligned, pm);
    store_pack(v + first, 0, left, aligned, pv);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launcher

// w, m, v, grad: [n]; step counts from 1
inline void adamw_update(float* w, float* m, float* v, const float* grad, int64_t n, float grad_scale,
                         const AdamWConfig& c, int64_t step, Device dev) {
    NVTX_RANGE("adamw_update");
    if (n <= 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        bool aligned = is_aligned16(w, 0) && is_aligned16(m, 0) && is_aligned16(v, 0) && is_aligned16(grad, 0);
        LAUNCH(adamw_update_kernel, (unsigned)CEIL_DIV(n, ADAMW_BLOCK * 4), ADAMW_BLOCK, 0, dev.stream, w, m, v, grad,
               n, grad_scale, c, adamw_correction(c, step), aligned);
        return;
    }
#endif
    (void)dev;
    adamw_update_cpu(w, m, v, grad, n, grad_scale, c, step);
}
