// Global gradient norm: sqrt(sum g^2) over every parameter, for clipping (Pascanu et al. 2013) and for the log.
// Blocks of a fixed size are summed in double and added in order, so the result does not depend on the number of
// threads. A NaN or an infinity anywhere makes the result non-finite; the caller skips the step then. (Double holds the
// square of every float, so nothing else does.)
//
// Traffic in bytes, least and moved: 4n, and 8 a block; 8 go to the host. Launch: a block of 256 threads takes 65,536
// numbers, each thread every 256th pack of 4; one block adds the partial sums. One fma in double a number keeps up with
// the memory even where double runs at 1/64 of the speed of float. The trap: the launcher waits for the stream.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>
#include "../runtime/device.h"
#include "../runtime/parallel.h"

inline double sum_of_squares_cpu(const float* x,  // [n]
                                 int64_t n) {
    const int64_t block = 1 << 16;
    int64_t blocks = (n + block - 1) / block;
    std::vector<double> partial(blocks);
#pragma omp parallel for schedule(static) if (worth_threads(n / 8))
    for (int64_t b = 0; b < blocks; b++) {
        int64_t end = (b + 1) * block < n ? (b + 1) * block : n;
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = b * block; i < end; i++) sum += (double)x[i] * (double)x[i];
        partial[b] = sum;
    }
    double total = 0.0;
    for (double p : partial) total += p;
    return total;
}

#if HAS_KERNELS
static constexpr int NORM_BLOCK = 256, NORM_CHUNK = 1 << 16;

// Sum over the block in a fixed order; thread 0 gets it. part: [NORM_BLOCK], shared
__device__ inline double norm_block_sum(double x, double* part) {
    part[threadIdx.x] = x;
    for (int half = NORM_BLOCK / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    return part[0];
}

// grid: CEIL_DIV(n, NORM_CHUNK)
__global__ void sum_of_squares_kernel(double* partial, const float* x, int64_t n, bool aligned) {
    __shared__ double part[NORM_BLOCK];
    int64_t start = (int64_t)blockIdx.x * NORM_CHUNK;
    int count = n - start < NORM_CHUNK ? (int)(n - start) : NORM_CHUNK;
    double sum = 0.0;
    for (int i = threadIdx.x * 4; i < count; i += NORM_BLOCK * 4) {
        Pack128<float> a = load_pack(x + start, i, count, aligned);
        for (int k = 0; k < 4; k++) sum += (double)a[k] * (double)a[k];
    }
    sum = norm_block_sum(sum, part);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// partial[blocks] = sum of partial[0 ... blocks - 1]. One block
__global__ void sum_of_partials_kernel(double* partial, int blocks) {
    __shared__ double part[NORM_BLOCK];
    double sum = 0.0;
    for (int b = threadIdx.x; b < blocks; b += NORM_BLOCK) sum += partial[b];
    sum = norm_block_sum(sum, part);
    if (threadIdx.x == 0) partial[blocks] = sum;
}

// doubles for sum_of_squares_launch
inline int64_t norm_partials(int64_t n) { return CEIL_DIV(n, NORM_CHUNK) + 1; }

// partial: [norm_partials(n)]; returns where the sum will be, on the device
inline const double* sum_of_squares_launch(double* partial, const float* x, int64_t n, Device dev) {
    int64_t blocks = CEIL_DIV(n, NORM_CHUNK);
    LAUNCH(sum_of_squares_kernel, (unsigned)blocks, NORM_BLOCK, 0, dev.stream, partial, x, n, is_aligned16(x, 0));
    LAUNCH(sum_of_partials_kernel, 1, NORM_BLOCK, 0, dev.stream, partial, (int)blocks);
    return partial + blocks;
}
#endif

// x: [n]
inline double sum_of_squares(const float* x, int64_t n, Device dev) {
    NVTX_RANGE("sum_of_squares");
    if (n <= 0) return 0.0;
#if HAS_KERNELS
    if (dev.cuda) {
        Scratch scratch(2 * (size_t)norm_partials(n), dev);
        double total = 0.0;
        copy_to_host(&total, sum_of_squares_launch(reinterpret_cast<double*>(scratch.data), x, n, dev), sizeof(double),
                     dev);
        return total;
    }
#endif
    (void)dev;
    return sum_of_squares_cpu(x, n);
}
