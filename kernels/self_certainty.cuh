// Self-certainty of a policy at a token (Zhao et al. 2025, Intuitor, arXiv 2505.19590): how far it is from knowing nothing.
//   KL(uniform || p) = -1/V sum_v log(V p_v) = lse - mean_v z_v - log V,   z_v = (hidden . W_v) / temperature
// The mean of the logits is linear in W, so that no logit is needed:  mean_v z_v = (hidden . sum_v W_v) / (V temperature)
// sums (C): of the head's rows, as bias_backward adds up rows. hidden (R,C); lse (R) as lm_head_forward has it; out (R).
// 32 sums of every 32nd product, then the halves of these added until one is left: the order of a warp, which the CPU
// loop has too, with the same bits.
//
// The trap: V is all rows of the head, also those that no token has (a vocabulary padded for speed), because lse is over
// all of them, too.
//
// Traffic in bytes, least and moved, for bf16: 2RC + 8R, and 4C. Launch: a warp a row, 8 a block.
#pragma once
#include <cmath>
#include <cstdint>
#include "../runtime/device.h"
#include "../runtime/parallel.h"

static constexpr int SELF_CERTAINTY_BLOCK = 256;

// dot: hidden . sums; scale: 1 / (V temperature)
HOST_DEVICE float self_certainty_of(float lse, float dot, float scale, float log_v) {
    return fmaf(-dot, scale, lse) - log_v;
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loop

inline void self_certainty_cpu(float* out,            // [R]
                               const floatX* hidden,  // [R,C]
                               const float* sums,     // [C]
                               const float* lse,      // [R]
                               int64_t R, int64_t C, float scale, float log_v) {
#pragma omp parallel for schedule(static) if (worth_threads(R * C))
    for (int64_t r = 0; r < R; r++) {
        const floatX* row = hidden + r * C;
        float sum[32] = {};
        for (int64_t i = 0; i < C; i += 32)
            for (int64_t k = 0; k < 32 && i + k < C; k++) sum[k] = fmaf((float)row[i + k], sums[i + k], sum[k]);
        for (int half = 16; half > 0; half /= 2)
            for (int k = 0; k < half; k++) sum[k] += sum[k + half];
        out[r] = self_certainty_of(lse[r], sum[0], scale, log_v);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernel

#if HAS_KERNELS
// grid: CEIL_DIV(R, SELF_CERTAINTY_BLOCK / 32)
__global__ void self_certainty_kernel(float* out, const floatX* hidden, const float* sums, const float* lse, int64_t R,
                                      int64_t C, float scale, float log_v) {
    const int64_t r = (int64_t)blockIdx.x * (SELF_CERTAINTY_BLOCK / 32) + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    float sum = 0.0f;
    for (int64_t i = lane; r < R && i < C; i += 32) sum = fmaf((float)hidden[r * C + i], sums[i], sum);
    sum = group_reduce_sum<32>(sum);
    if (r < R && lane == 0) out[r] = self_certainty_of(lse[r], sum, scale, log_v);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launcher

// out, lse: [R]; hidden: [R,C]; sums: [C]
inline void self_certainty(float* out, const floatX* hidden, const float* sums, const float* lse, int64_t R, int64_t C,
                           int64_t V, float inverse_temperature, Device dev) {
    NVTX_RANGE("self_certainty");
    if (R < 0 || R > INT32_MAX || C < 1 || V < 1)
        fail("self_certainty: bad shape: R %lld, C %lld, V %lld", (long long)R, (long long)C, (long long)V);
    if (R == 0) return;
    const float scale = inverse_temperature / (float)V, log_v = (float)log((double)V);
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(self_certainty_kernel, (unsigned)CEIL_DIV(R, SELF_CERTAINTY_BLOCK / 32), SELF_CERTAINTY_BLOCK, 0,
               dev.stream, out, hidden, sums, lse, R, C, scale, log_v);
        return;
    }
#endif
    (void)dev;
    self_certainty_cpu(out, hidden, sums, lse, R, C, scale, log_v);
}
