// The mean size of each row's numbers: what a row of a weight, an output channel, is worth to methods/efqat.cuh.
//   out[r] = 1/C sum_c |x[r,c]|
// 32 sums of every 32nd number, then the halves of these added until one is left: the order of a warp, which the CPU
// loop has too, so that both choose the same rows.
//
// Traffic in bytes, least and moved: 4RC + 4R. Launch: a warp a row, 8 a block.
#pragma once
#include <cstdint>
#include "../runtime/device.h"
#include "../runtime/parallel.h"

static constexpr int ROW_MEAN_BLOCK = 256;

// ---------------------------------------------------------------------------------------------------------------------
// CPU loop

inline void row_mean_size_cpu(float* out,      // [R]
                              const float* x,  // [R,C]
                              int64_t R, int64_t C) {
#pragma omp parallel for schedule(static) if (worth_threads(R * C))
    for (int64_t r = 0; r < R; r++) {
        const float* row = x + r * C;
        float sum[32] = {};
        for (int64_t i = 0; i < C; i += 32)
            for (int64_t k = 0; k < 32 && i + k < C; k++) sum[k] += fabsf(row[i + k]);
        for (int half = 16; half > 0; half /= 2)
            for (int k = 0; k < half; k++) sum[k] += sum[k + half];
        out[r] = sum[0] / (float)C;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernel

#if HAS_KERNELS
// grid: CEIL_DIV(R, ROW_MEAN_BLOCK / 32)
__global__ void row_mean_size_kernel(float* out, const float* x, int64_t R, int64_t C) {
    const int64_t r = (int64_t)blockIdx.x * (ROW_MEAN_BLOCK / 32) + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    float sum = 0.0f;
    for (int64_t i = lane; r < R && i < C; i += 32) sum += fabsf(x[r * C + i]);
    sum = group_reduce_sum<32>(sum);
    if (r < R && lane == 0) out[r] = sum / (float)C;
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launcher

// out: [R]; x: [R,C]
inline void row_mean_size(float* out, const float* x, int64_t R, int64_t C, Device dev) {
    NVTX_RANGE("row_mean_size");
    if (R == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(row_mean_size_kernel, (unsigned)CEIL_DIV(R, ROW_MEAN_BLOCK / 32), ROW_MEAN_BLOCK, 0, dev.stream, out, x,
               R, C);
        return;
    }
#endif
    (void)dev;
    row_mean_size_cpu(out, x, R, C);
}
