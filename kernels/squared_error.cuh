// Squared error of numbers x against a target y, and its gradient:
//   loss = sum (x - y)^2,  size = sum y^2      in double, whatever the type
//   dx = 2 (x - y), added to dx or assigned    where a layer's output is compared (methods/blockwise_modules.cuh)
// x, y, dx: [n]. The difference is rounded to fp32 first.
//
// Sums have one order on both devices, and so the same bits: chunks of 65,536 numbers, in each 256 lanes that take every
// 256th number, the lanes by halves, the chunks in order on the host. The trap: squared_error_forward waits for the
// stream.
//
// Traffic in bytes for bf16, least and moved: 4n, and 16 a chunk; of the gradient 6n, and 2n more where it adds. Launch: a
// block a chunk; of the gradient a thread a pack.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>
#include "../runtime/device.h"
#include "../runtime/math.h"
#include "../runtime/parallel.h"

struct SquaredError {
    double loss = 0.0, size = 0.0;
};

static constexpr int ERROR_BLOCK = 256;
static constexpr int64_t ERROR_CHUNK = 1 << 16;

HOST_DEVICE void squared_error_add(double* loss, double* size, float x, float y) {
    const double d = x - y, t = y;
    *loss = fma(d, d, *loss), *size = fma(t, t, *size);
}
HOST_DEVICE float squared_error_gradient(float x, float y) { return 2.0f * (x - y); }

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

inline void squared_error_forward_cpu(SquaredError* partial,  // [CEIL_DIV(n, ERROR_CHUNK)]
                                      const floatX* x,        // [n]
                                      const floatX* y,        // [n]
                                      int64_t n) {
#pragma omp parallel for schedule(static) if (worth_threads(n))
    for (int64_t c = 0; c < CEIL_DIV(n, ERROR_CHUNK); c++) {
        double loss[ERROR_BLOCK] = {}, size[ERROR_BLOCK] = {};
        const int64_t first = c * ERROR_CHUNK, count = n - first < ERROR_CHUNK ? n - first : ERROR_CHUNK;
        for (int64_t i = 0; i < count; i++)
            squared_error_add(&loss[i % ERROR_BLOCK], &size[i % ERROR_BLOCK], (float)x[first + i], (float)y[first + i]);
        for (int half = ERROR_BLOCK / 2; half > 0; half /= 2)
            for (int t = 0; t < half; t++) loss[t] += loss[t + half], size[t] += size[t + half];
        partial[c] = {loss[0], size[0]};
    }
}

inline void squared_error_backward_cpu(floatX* dx,       // [n]
                                       const floatX* x,  // [n]
                                       const floatX* y,  // [n]
                                       int64_t n, bool add) {
#pragma omp parallel for schedule(static) if (worth_threads(n / 4))
    for (int64_t i = 0; i < n; i++)
        dx[i] = (floatX)(squared_error_gradient((float)x[i], (float)y[i]) + (add ? (float)dx[i] : 0.0f));
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
// grid: CEIL_DIV(n, ERROR_CHUNK)
__global__ void squared_error_forward_kernel(SquaredError* partial, const floatX* x, const floatX* y, int64_t n) {
    __shared__ double loss[ERROR_BLOCK], size[ERROR_BLOCK];
    const int64_t first = (int64_t)blockIdx.x * ERROR_CHUNK, count = n - first < ERROR_CHUNK ? n - first : ERROR_CHUNK;
    const int t = threadIdx.x;
    double l = 0.0, s = 0.0;
    for (int64_t i = t; i < count; i += ERROR_BLOCK)
        squared_error_add(&l, &s, (float)x[first + i], (float)y[first + i]);
    loss[t] = l, size[t] = s;
    for (int half = ERROR_BLOCK / 2; half > 0; half /= 2) {
        __syncthreads();
        if (t < half) loss[t] += loss[t + half], size[t] += size[t + half];
    }
    if (t == 0) partial[blockIdx.x].loss = loss[0], partial[blockIdx.x].size = size[0];
}

// grid: CEIL_DIV(n, ERROR_BLOCK * pack)
__global__ void squared_error_backward_kernel(floatX* dx, const floatX* x, const floatX* y, int64_t n, bool add,
                                              bool aligned) {
    constexpr int W = Pack128<floatX>::size;
    const int64_t first = ((int64_t)blockIdx.x * ERROR_BLOCK + threadIdx.x) * W;
    if (first >= n) return;
    const int left = n - first < W ? (int)(n - first) : W;
    Pack128<floatX> from = load_pack(x + first, 0, left, aligned), target = load_pack(y + first, 0, left, aligned), d;
    if (add) d = load_pack(dx + first, 0, left, aligned);
    for (int k = 0; k < W; k++)
        d[k] = (floatX)(squared_error_gradient((float)from[k], (float)target[k]) + (add ? (float)d[k] : 0.0f));
    store_pack(dx + first, 0, left, aligned, d);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

// x, y: [n]
inline SquaredError squared_error_forward(const floatX* x, const floatX* y, int64_t n, Device dev) {
    NVTX_RANGE("squared_error_forward");
    SquaredError sum;
    if (n <= 0) return sum;
    std::vector<SquaredError> partial((size_t)CEIL_DIV(n, ERROR_CHUNK));
#if HAS_KERNELS
    if (dev.cuda) {
        Scratch scratch(partial.size() * (sizeof(SquaredError) / sizeof(float)), dev);
        SquaredError* there = reinterpret_cast<SquaredError*>(scratch.data);
        LAUNCH(squared_error_forward_kernel, (unsigned)partial.size(), ERROR_BLOCK, 0, dev.stream, there, x, y, n);
        copy_to_host(partial.data(), there, partial.size() * sizeof(SquaredError), dev);
    } else
#endif
        squared_error_forward_cpu(partial.data(), x, y, n);
    (void)dev;
    for (const SquaredError& p : partial) sum.loss += p.loss, sum.size += p.size;
    return sum;
}

// dx, x, y: [n]; add: to what dx holds
inline void squared_error_backward(floatX* dx, const floatX* x, const floatX* y, int64_t n, bool add, Device dev) {
    NVTX_RANGE("squared_error_backward");
    if (n <= 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(squared_error_backward_kernel, (unsigned)CEIL_DIV(n, ERROR_BLOCK * Pack128<floatX>::size), ERROR_BLOCK,
               0, dev.stream, dx, x, y, n, add, is_aligned16(dx, 0) && is_aligned16(x, 0) && is_aligned16(y, 0));
        return;
    }
#endif
    (void)dev;
    squared_error_backward_cpu(dx, x, y, n, add);
}
