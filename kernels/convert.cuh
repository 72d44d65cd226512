// convert_forward   out[i] = floatX(x[i])   the working weights from the fp32 masters, rounded to nearest even
//                                           (runtime/dtypes.h)
// convert_widen     out[i] = float(x[i])    the way back, exact
// In an fp32 build both are copies.
// Traffic in bytes for bf16, least and moved: 6n. Launch: a thread 8 numbers (4 in fp32), 16 bytes of floatX.
#pragma once
#include <cstdint>
#include "../runtime/device.h"
#include "../runtime/math.h"
#include "../runtime/parallel.h"

inline void convert_forward_cpu(floatX* out,     // [n]
                                const float* x,  // [n]
                                int64_t n) {
#pragma omp parallel for schedule(static) if (worth_threads(n / 8))
    for (int64_t block = 0; block < CEIL_DIV(n, 4096); block++) {
        int64_t end = (block + 1) * 4096 < n ? (block + 1) * 4096 : n;
        INDEPENDENT
        for (int64_t i = block * 4096; i < end; i++) out[i] = x[i];
    }
}

inline void convert_widen_cpu(float* out,       // [n]
                              const floatX* x,  // [n]
                              int64_t n) {
#pragma omp parallel for simd schedule(static) if (worth_threads(n / 8))
    for (int64_t i = 0; i < n; i++) out[i] = (float)x[i];
}

#if HAS_KERNELS
static constexpr int CONVERT_BLOCK = 256;

// grid: CEIL_DIV(n, CONVERT_BLOCK * pack)
__global__ void convert_forward_kernel(floatX* out, const float* x, int64_t n, bool aligned) {
    constexpr int W = Pack128<floatX>::size;
    int64_t first = ((int64_t)blockIdx.x * CONVERT_BLOCK + threadIdx.x) * W;
    if (first >= n) return;
    int left = n - first < W ? (int)(n - first) : W;
    Pack128<floatX> to;
    for (int p = 0; p < W; p += 4) {
        Pack128<float> from = load_pack(x + first, p, left, aligned);
        for (int k = 0; k < 4; k++) to[p + k] = (floatX)from[k];
    }
    store_pack(out + first, 0, left, aligned, to);
}

// grid: CEIL_DIV(n, CONVERT_BLOCK * pack)
__global__ void convert_widen_kernel(float* out, const floatX* x, int64_t n, bool aligned) {
    constexpr int W = Pack128<floatX>::size;
    int64_t first = ((int64_t)blockIdx.x * CONVERT_BLOCK + threadIdx.x) * W;
    if (first >= n) return;
    int left = n - first < W ? (int)(n - first) : W;
    Pack128<floatX> from = load_pack(x + first, 0, left, aligned);
    for (int p = 0; p < W; p += 4) {
        Pack128<float> to;
        for (int k = 0; k < 4; k++) to[k] = (float)from[p + k];
        store_pack(out + first, p, left, aligned, to);
    }
}
#endif

// out, x: [n]
inline void convert_forward(floatX* out, const float* x, int64_t n, Device dev) {
    NVTX_RANGE("convert_forward");
    if (n <= 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(convert_forward_kernel, (unsigned)CEIL_DIV(n, CONVERT_BLOCK * Pack128<floatX>::size), CONVERT_BLOCK, 0,
               dev.stream, out, x, n, is_aligned16(out, 0) && is_aligned16(x, 0));
        return;
    }
#endif
    (void)dev;
    convert_forward_cpu(out, x, n);
}

// out, x: [n]
inline void convert_widen(float* out, const floatX* x, int64_t n, Device dev) {
    NVTX_RANGE("convert_widen");
    if (n <= 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(convert_widen_kernel, (unsigned)CEIL_DIV(n, CONVERT_BLOCK * Pack128<floatX>::size), CONVERT_BLOCK, 0,
               dev.stream, out, x, n, is_aligned16(out, 0) && is_aligned16(x, 0));
        return;
    }
#endif
    (void)dev;
    convert_widen_cpu(out, x, n);
}
