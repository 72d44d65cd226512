// AdamW (adamw.cuh) whose moments are stored in bf16: 4 bytes of state a weight instead of 8.
//
// Rounding to nearest would stop the second moment: with beta2 = 0.999 a step changes v by at most a thousandth of v
// where the gradients have become smaller, and half a step of bf16 is 1/512 to 1/256 of it, so v would never fall
// again; from zero it would stop rising at a quarter of its height. So both moments are rounded at random, up with the
// probability of the part cut off: the mean over the draws is the fp32 moment. The noise does not go away but adds up
// over 1 / (1 - beta2) steps: in v to a standard deviation of 2 % where the gradients keep their size and of 9 % while
// v falls to a fifth (test/test_optimizers.cpp), of which the step of a weight has half. An fp32 v would avoid that for
// 2 bytes more a weight; half the memory is what one comes here for.
// The draw is a function of (seed, step, tensor, index): a resumed run rounds as the uninterrupted one.
//
// Traffic in bytes, least and moved: 20n. Launch: a thread 8 weights, for which it draws 8 words.
#pragma once
#include <algorithm>
#include "../runtime/rng.h"
#include "adamw.cuh"

struct MomentNoise {
    uint64_t seed = 0;
    uint32_t tensor = 0;
    int64_t step = 1;  // from 1
};

// the neighbour above in size if the 16 bits cut off and 16 random ones carry; NaN stays NaN
HOST_DEVICE uint16_t float_to_bf16_random(float x, uint32_t random) {
    const uint32_t u = float_bits(x);
    return (uint16_t)((u & 0x7FFFFFFFu) > 0x7F800000u ? (u >> 16) | 0x40u : (u + (random & 0xFFFFu)) >> 16);
}

HOST_DEVICE void adamw_bf16_step(float* w, bf16* m, bf16* v, float grad, uint32_t random, float grad_scale,
                                 const AdamWConfig& c, AdamWCorrection correct) {
    float m32 = (float)*m, v32 = (float)*v;
    adamw_step(w, &m32, &v32, grad, grad_scale, c, correct);
    m->bits = float_to_bf16_random(m32, random);
    v->bits = float_to_bf16_random(v32, random >> 16);
}

// for weights 4 index ... 4 index + 3
HOST_DEVICE Philox4 adamw_bf16_noise(const MomentNoise& noise, int64_t index) {
    return rng_bits(noise.seed, RNG_MOMENTS, (uint32_t)noise.step, noise.tensor, (uint32_t)index);
}

inline void adamw_bf16_update_cpu(float* w,           // [n]
                                  bf16* m,            // [n]
                                  bf16* v,            // [n]
                                  const float* grad,  // [n]
                                  int64_t n, float grad_scale, const AdamWConfig& c,
                                  const MomentNoise& noise) {
    const AdamWCorrection correct = adamw_correction(c, noise.step);
    constexpr int64_t BLOCK = 512;
#pragma omp parallel for schedule(static) if (n > 16 * BLOCK)
    for (int64_t i0 = 0; i0 < n; i0 += BLOCK) {
        uint32_t random[4][BLOCK / 4];
#pragma omp simd
        for (int64_t j = 0; j < BLOCK / 4; j++) {
            const Philox4 p = adamw_bf16_noise(noise, i0 / 4 + j);
            random[0][j] = p.x[0], random[1][j] = p.x[1], random[2][j] = p.x[2], random[3][j] = p.x[3];
        }
        uint32_t in_order[BLOCK];
        for (int64_t j = 0; j < BLOCK; j++) in_order[j] = random[j % 4][j / 4];
        const int64_t count = std::min(BLOCK, n - i0);
        INDEPENDENT
        for (int64_t j = 0; j < count; j++)
            adamw_bf16_step(w + i0 + j, m + i0 + j, v + i0 + j, grad[i0 + j], in_order[j], grad_scale, c, correct);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernel

#if HAS_KERNELS
static constexpr int ADAMW_BF16_BLOCK = 256;

struct AdamWBf16Step {
    AdamWConfig config;
    AdamWCorrection correct;
    float grad_scale;
    bool aligned;  // all arrays, to 16 bytes
};

// grid: CEIL_DIV(n, ADAMW_BF16_BLOCK * 8)
__global__ void adamw_bf16_update_kernel(float* w, bf16* m, bf16* v, const float* grad, int64_t n, AdamWBf16Step s,
                                         MomentNoise noise) {
    const int64_t first = ((int64_t)blockIdx.x * ADAMW_BF16_BLOCK + threadIdx.x) * 8;
    if (first >= n) return;
    const int left = n - first < 8 ? (int)(n - first) : 8;
    Pack128<bf16> pm = load_pack(m + first, 0, left, s.aligned), pv = load_pack(v + first, 0, left, s.aligned);
    UNROLL
    for (int half = 0; half < 2; half++) {
        Pack128<float> pw = load_pack(w + first, half * 4, left, s.aligned);
        Pack128<float> pg = load_pack(grad + first, half * 4, left, s.aligned);
        const Philox4 random = adamw_bf16_noise(noise, first / 4 + half);
        UNROLL
        for (int k = 0; k < 4; k++)
            adamw_bf16_step(&pw[k], &pm[half * 4 + k], &pv[half * 4 + k], pg[k], random.x[k], s.grad_scale, s.config,
                            s.correct);
        store_pack(w + first, half * 4, left, s.aligned, pw);
    }
    store_pack(m + first, 0, left, s.aligned, pm);
    store_pack(v + first, 0, left, s.aligned, pv);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launcher

// w, m, v, grad: [n]
inline void adamw_bf16_update(float* w, bf16* m, bf16* v, const float* grad, int64_t n, float grad_scale,
                              const AdamWConfig& c, const MomentNoise& noise, Device dev) {
    NVTX_RANGE("adamw_bf16_update");
    if (n <= 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        bool aligned = is_aligned16(w, 0) && is_aligned16(m, 0) && is_aligned16(v, 0) && is_aligned16(grad, 0);
        AdamWBf16Step s = {c, adamw_correction(c, noise.step), grad_scale, aligned};
        LAUNCH(adamw_bf16_update_kernel, (unsigned)CEIL_DIV(n, ADAMW_BF16_BLOCK * 8), ADAMW_BF16_BLOCK, 0, dev.stream,
               w, m, v, grad, n, s, noise);
        return;
    }
#endif
    (void)dev;
    adamw_bf16_update_cpu(w, m, v, grad, n, grad_scale, c, noise);
}
