// Gradient of a linear layer's bias: dbias[o] += sum over t of dout[t,o].
//
// fp32, without atomics. On the CPU a thread owns its columns and adds the tokens in order; on the device the tokens
// are cut into blocks (their number depends on T alone), 8 warps of a block add every 8th of its rows, and the partial
// sums are added in a fixed order. The trap: the two orders differ, so the last bits of CPU and device do; each is the
// same bits every time.
//
// Traffic in bytes for bf16: least 2T OC + 8 OC, moved in addition 8 OC a block of rows (at most 256).
// Launch: a block of 256 threads takes a block of rows and 32 packs of columns, a warp reads 512 neighbouring bytes of
// a row.
#pragma once
#include <cstdint>
#include "../runtime/device.h"
#include "../runtime/parallel.h"

inline void bias_backward_cpu(float* dbias,        // [OC] +=
                              const floatX* dout,  // [T,OC]
                              int64_t T, int64_t OC) {
    const int64_t columns = 64, blocks = (OC + columns - 1) / columns;
#pragma omp parallel for schedule(static) if (worth_threads(T * OC / 4))
    for (int64_t b = 0; b < blocks; b++) {
        int64_t c0 = b * columns, c1 = c0 + columns < OC ? c0 + columns : OC;
        for (int64_t t = 0; t < T; t++)
            for (int64_t c = c0; c < c1; c++) dbias[c] += (float)dout[t * OC + c];
    }
}

#if HAS_KERNELS
static constexpr int BIAS_BLOCK = 256, BIAS_WARPS = BIAS_BLOCK / 32;

// partial: [gridDim.y,OC]. grid: (CEIL_DIV(OC, 32 packs), blocks of rows)
__global__ void bias_backward_kernel(float* partial, const floatX* dout, int T, int OC, int rows_per_block,
                                     bool aligned) {
    constexpr int W = Pack128<floatX>::size;
    __shared__ float part[BIAS_WARPS * 32 * W];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int first_column = blockIdx.x * 32 * W, column = first_column + lane * W;
    int first = blockIdx.y * rows_per_block, end = T - first < rows_per_block ? T : first + rows_per_block;
    float sum[W];
    for (int k = 0; k < W; k++) sum[k] = 0.0f;
    if (column < OC)
        for (int t = first + warp; t < end; t += BIAS_WARPS) {
            Pack128<floatX> d = load_pack(dout + (int64_t)t * OC, column, OC, aligned);
            for (int k = 0; k < W; k++) sum[k] += (float)d[k];
        }
    for (int k = 0; k < W; k++) part[(warp * W + k) * 32 + lane] = sum[k];  // lanes beside each other: no bank conflict
    __syncthreads();
    for (int i = threadIdx.x; i < 32 * W; i += BIAS_BLOCK) {
        if (first_column + i >= OC) continue;
        float total = 0.0f;
        for (int w = 0; w < BIAS_WARPS; w++) total += part[(w * W + i % W) * 32 + i / W];
        partial[(int64_t)blockIdx.y * OC + first_column + i] = total;
    }
}

// dbias += sum over blocks of partial; a warp's lanes are columns, its 8 warps share the blocks. grid: CEIL_DIV(OC, 32)
__global__ void bias_sum_kernel(float* dbias, const float* partial, int blocks, int OC) {
    __shared__ float part[BIAS_BLOCK];
    int c = blockIdx.x * 32 + threadIdx.x % 32;
    float sum = 0.0f;
    if (c < OC)
        for (int b = threadIdx.x / 32; b < blocks; b += BIAS_WARPS) sum += partial[(int64_t)b * OC + c];
    part[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x >= 32 || c >= OC) return;
    sum = 0.0f;
    for (int i = threadIdx.x; i < BIAS_BLOCK; i += 32) sum += part[i];
    dbias[c] += sum;
}
#endif

// dbias: [OC], +=; dout: [T,OC]
inline void bias_backward(float* dbias, const floatX* dout, int64_t T, int64_t OC, Device dev) {
    NVTX_RANGE("bias_backward");
    if (T < 0 || T > INT32_MAX || OC < 1 || OC > INT32_MAX / 2)
        fail("bias_backward: bad shape: T %lld, OC %lld", (long long)T, (long long)OC);
    if (T == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        int rows_per_block = (int)CEIL_DIV(T, 256) > 32 ? (int)CEIL_DIV(T, 256) : 32;
        int blocks = (int)CEIL_DIV(T, rows_per_block), columns = 32 * Pack128<floatX>::size;
        Scratch partial((size_t)blocks * OC, dev);
        LAUNCH(bias_backward_kernel, dim3((unsigned)CEIL_DIV(OC, columns), blocks), BIAS_BLOCK, 0, dev.stream,
               partial.data, dout, (int)T, (int)OC, rows_per_block, is_aligned16(dout, OC));
        LAUNCH(bias_sum_kernel, (unsigned)CEIL_DIV(OC, 32), BIAS_BLOCK, 0, dev.stream, dbias, partial.data, blocks,
               (int)OC);
        return;
    }
#endif
    (void)dev;
    bias_backward_cpu(dbias, dout, T, OC);
}
