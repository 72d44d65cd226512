// A scale that is trained under codes that stay: Q(w) = (q - z) s with q and z fixed.
//   code_scale_backward   ds = sum over the group of dQ (q - z);  dQ is set to 0, since no weight is trained
//   code_scale_forward    w = (q - z) round(a), the numbers that have these codes once the scale is round(a), as the
//                         grid will have it (bf16, at least 2^-14)
// w, dw, codes: [groups,group]; a, ds, grid: [groups]; integer formats. A scale of 8 bits times a difference of at most 9
// is exact in fp32, so that w / round(a) + z gives q again whatever s was.
//
// Sums are taken by 32 lanes, each every 32nd number, and these by halves, on both devices. Traffic in bytes a weight,
// least and moved: 9 and 5, and 12 and 12 a group. Launch: a warp a group; a thread a number.
#pragma once
#include "../runtime/parallel.h"
#include "fake_quant.cuh"

static constexpr int CODE_SCALE_BLOCK = 256, CODE_SCALE_LANES = 32;

// q - z
HOST_DEVICE float code_steps(QuantSpec q, int code, float zero) { return quant_value(q, code, Grid{1.0f, zero}); }
HOST_DEVICE float code_scale(float a) { return quant_round_scale(a < QUANT_LEAST_SCALE ? QUANT_LEAST_SCALE : a); }

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

inline void code_scale_backward_cpu(float* ds, float* dw, const int8_t* codes, const Grid* grid,
                                    const QuantGroups& shape, QuantSpec q) {
#pragma omp parallel for schedule(static) if (worth_threads(shape.groups * shape.group))
    for (int64_t g = 0; g < shape.groups; g++) {
        float lane[CODE_SCALE_LANES] = {};
        for (int64_t i = 0; i < shape.group; i++) {
            float& sum = lane[i % CODE_SCALE_LANES];
            const int64_t at = g * shape.group + i;
            sum = fmaf(dw[at], code_steps(q, codes[at], grid[g].zero), sum);
            dw[at] = 0.0f;
        }
        for (int half = CODE_SCALE_LANES / 2; half > 0; half /= 2)
            for (int t = 0; t < half; t++) lane[t] += lane[t + half];
        ds[g] = lane[0];
    }
}

inline void code_scale_forward_cpu(float* w, const float* a, const int8_t* codes, const Grid* grid,
                                   const QuantGroups& shape, QuantSpec q) {
#pragma omp parallel for schedule(static) if (worth_threads(shape.groups * shape.group))
    for (int64_t i = 0; i < shape.groups * shape.group; i++) {
        const int64_t g = i / shape.group;
        w[i] = quant_value(q, codes[i], Grid{code_scale(a[g]), grid[g].zero});
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
// grid: CEIL_DIV(groups, CODE_SCALE_BLOCK / CODE_SCALE_LANES)
__global__ void code_scale_backward_kernel(float* ds, float* dw, const int8_t* codes, const Grid* grid,
                                           QuantGroups shape, QuantSpec q) {
    const int64_t g = ((int64_t)blockIdx.x * CODE_SCALE_BLOCK + threadIdx.x) / CODE_SCALE_LANES;
    const int lane = threadIdx.x % CODE_SCALE_LANES;
    if (g >= shape.groups) return;  // a whole warp
    float sum = 0.0f;
    for (int64_t i = lane; i < shape.group; i += CODE_SCALE_LANES) {
        const int64_t at = g * shape.group + i;
        sum = fmaf(dw[at], code_steps(q, codes[at], grid[g].zero), sum);
        dw[at] = 0.0f;
    }
    sum = group_reduce_sum<CODE_SCALE_LANES>(sum);
    if (lane == 0) ds[g] = sum;
}

// grid: CEIL_DIV(groups * group, CODE_SCALE_BLOCK)
__global__ void code_scale_forward_kernel(float* w, const float* a, const int8_t* codes, const Grid* grid,
                                          QuantGroups shape, QuantSpec q) {
    const int64_t i = (int64_t)blockIdx.x * CODE_SCALE_BLOCK + threadIdx.x;
    if (i >= shape.groups * shape.group) return;
    const int64_t g = i / shape.group;
    w[i] = quant_value(q, codes[i], Grid{code_scale(a[g]), grid[g].zero});
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

inline void code_scale_backward(float* ds, float* dw, const int8_t* codes, const Grid* grid, const QuantGroups& shape,
                                QuantSpec q, Device dev) {
    NVTX_RANGE("code_scale_backward");
    if (shape.groups == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(code_scale_backward_kernel, (unsigned)CEIL_DIV(shape.groups, CODE_SCALE_BLOCK / CODE_SCALE_LANES),
               CODE_SCALE_BLOCK, 0, dev.stream, ds, dw, codes, grid, shape, q);
        return;
    }
#endif
    (void)dev;
    code_scale_backward_cpu(ds, dw, codes, grid, shape, q);
}

inline void code_scale_forward(float* w, const float* a, const int8_t* codes, const Grid* grid,
                               const QuantGroups& shape, QuantSpec q, Device dev) {
    NVTX_RANGE("code_scale_forward");
    if (shape.groups == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(code_scale_forward_kernel, (unsigned)CEIL_DIV(shape.groups * shape.group, CODE_SCALE_BLOCK),
               CODE_SCALE_BLOCK, 0, dev.stream, w, a, codes, grid, shape, q);
        return;
    }
#endif
    (void)dev;
    code_scale_forward_cpu(w, a, codes, grid, shape, q);
}
