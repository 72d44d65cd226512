// A pull of numbers towards their quantized values:
//   grid_pull      x -= share (x - q)
//   grid_pull_add  dx += weight (x - q)
// x [n] fp32, q [n] as the forward reads it, or fp32 where it was rotated back (part_value of model/linear.cuh). What CAGE
// (methods/cage.cuh) is made of.
//
// Traffic in bytes, least and moved, for bf16 q: 10 and 14 a number. Launch: a thread a number.
#pragma once
#include <cstdint>
#include "../runtime/device.h"
#include "../runtime/dtypes.h"
#include "../runtime/parallel.h"

static constexpr int GRID_PULL_BLOCK = 256;

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

template <class Q>
inline void grid_pull_cpu(float* x, const Q* q, int64_t n, float share) {
#pragma omp parallel for simd schedule(static) if (worth_threads(n))
    for (int64_t i = 0; i < n; i++) x[i] = fmaf(-share, x[i] - (float)q[i], x[i]);
}

template <class Q>
inline void grid_pull_add_cpu(float* dx, const float* x, const Q* q, int64_t n, float weight) {
#pragma omp parallel for simd schedule(static) if (worth_threads(n))
    for (int64_t i = 0; i < n; i++) dx[i] = fmaf(weight, x[i] - (float)q[i], dx[i]);
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
// grid: CEIL_DIV(n, GRID_PULL_BLOCK)
template <class Q>
__global__ void grid_pull_kernel(float* x, const Q* q, int64_t n, float share) {
    const int64_t i = (int64_t)blockIdx.x * GRID_PULL_BLOCK + threadIdx.x;
    if (i < n) x[i] = fmaf(-share, x[i] - (float)q[i], x[i]);
}

template <class Q>
__global__ void grid_pull_add_kernel(float* dx, const float* x, const Q* q, int64_t n, float weight) {
    const int64_t i = (int64_t)blockIdx.x * GRID_PULL_BLOCK + threadIdx.x;
    if (i < n) dx[i] = fmaf(weight, x[i] - (float)q[i], dx[i]);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

// share in [0, 1]: 1 moves x onto the grid
template <class Q>
inline void grid_pull(float* x, const Q* q, int64_t n, float share, Device dev) {
    NVTX_RANGE("grid_pull");
    if (n == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(grid_pull_kernel<Q>, (unsigned)CEIL_DIV(n, GRID_PULL_BLOCK), GRID_PULL_BLOCK, 0, dev.stream, x, q, n,
               share);
        return;
    }
#endif
    (void)dev;
    grid_pull_cpu(x, q, n, share);
}

template <class Q>
inline void grid_pull_add(float* dx, const float* x, const Q* q, int64_t n, float weight, Device dev) {
    NVTX_RANGE("grid_pull_add");
    if (n == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(grid_pull_add_kernel<Q>, (unsigned)CEIL_DIV(n, GRID_PULL_BLOCK), GRID_PULL_BLOCK, 0, dev.stream, dx, x,
               q, n, weight);
        return;
    }
#endif
    (void)dev;
    grid_pull_add_cpu(dx, x, q, n, weight);
}
