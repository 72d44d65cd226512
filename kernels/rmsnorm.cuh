// RMSNorm, alone and fused with the residual addition before it.
//
//   n = floatX(x * rstd),  rstd = 1 / sqrt(mean(x^2) + eps),  y = n * w
//   dn = dy * w,  dx = rstd * (dn - x * rstd * mean(dn * x * rstd)),  dw += sum over rows of dy * n
//
// Zhang and Sennrich 2019 (arXiv 1910.07467), rounded as transformers does in Qwen and Llama: x * rstd goes to floatX
// before the multiplication by w. Statistics and gradients are fp32.
//
// Rows. A matrix (T,C) has one row of C a token. The `_heads` functions norm each head by itself (Qwen3's q_norm,
// k_norm): row (t,h) begins at t * stride + h * C of a matrix (T,H*C), w (C) is shared by the heads and rstd is (T,H).
// The bits of a row's output depend on that row alone, never on T, on the batch or on the threads. dw is summed over a
// partition of the rows that depends on their number alone, in a fixed order, without atomics.
//
// Gradients. dweight accumulates. dinp assigns, or adds to what is there if accumulate_dinp: a residual stream's
// gradient collects the norm's part and the skip's part. The addition is fp32, rounded once.
//
// Traffic in bytes for bf16, R = T * H rows, least and moved from memory (the second pass over a row hits L1 or L2):
//   forward 4RC, fused forward 8RC, backward 6RC (8RC accumulating) + two times 4C a block of rows for dw.
// Launch. Forward: C decides how many threads share a row (8, 32 or 256), so that a head of 64 does not leave a warp
// idle and a row of 8192 does not wait for one; 256 threads a block. Backward: a block of 256 threads takes a block of
// rows, a batch at a time: first 8 or 32 threads a row for the dot product, then a thread a pack of columns for dx and
// dw.
//
// The trap: the rounding of n. In bf16 n * w and x * rstd * w round to different values for one element in four (26 %
// for normal x and w in [0.5, 1.5]), which is enough to move a sampled token away from the reference.
#pragma once
#include <cmath>
#include "../runtime/device.h"
#include "../runtime/parallel.h"

// T * H rows of C: one a token, or one a head
struct RmsnormShape {
    int64_t T;
    int C;
    int H = 1;
    HOST_DEVICE int64_t rows() const { return T * H; }
};

// The rows are cut into blocks of this many for dw: at least 32, at most 256 blocks.
HOST_DEVICE int64_t rmsnorm_rows_per_block(int64_t rows) {
    int64_t n = CEIL_DIV(rows, 256);
    return n > 32 ? n : 32;
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops. No `omp simd`: g++ 12 does not vectorize a loop with bf16 values under it, and does without (10 times
// faster).

// Sums are kept in 16 lanes, element i in lane i % 16, whatever the vector width and the alignment of x.
static constexpr int RMSNORM_LANES = 16;

inline float rmsnorm_sum_lanes(const float* lane) {
    float s[RMSNORM_LANES];
    for (int l = 0; l < RMSNORM_LANES; l++) s[l] = lane[l];
    for (int half = RMSNORM_LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) s[l] += s[l + half];
    return s[0];
}

// x: (C)
inline float rmsnorm_rstd_cpu(const floatX* x, int C, float eps) {
    float lane[RMSNORM_LANES] = {0};
    int i = 0;
    for (; i + RMSNORM_LANES <= C; i += RMSNORM_LANES)
        for (int l = 0; l < RMSNORM_LANES; l++) {
            float v = (float)x[i + l];
            lane[l] += v * v;
        }
    for (int l = 0; i + l < C; l++) {
        float v = (float)x[i + l];
        lane[l] += v * v;
    }
    return 1.0f / sqrtf(rmsnorm_sum_lanes(lane) / (float)C + eps);
}

// out, x, weight: (C); out does not overlap x
inline void rmsnorm_row_cpu(floatX* __restrict__ out, const floatX* __restrict__ x, const floatX* __restrict__ weight,
                            float rstd, int C) {
    for (int i = 0; i < C; i++) {
        floatX n = (floatX)((float)x[i] * rstd);
        out[i] = (floatX)((float)n * (float)weight[i]);
    }
}

// out, inp: (T,H*C); rstd: (T,H); weight: (C)
inline void rmsnorm_forward_cpu(Rows<floatX> out, float* rstd, Rows<const floatX> inp, const floatX* weight,
                                RmsnormShape s, float eps) {
    const int C = s.C, H = s.H;
#pragma omp parallel for schedule(static) if (worth_threads(s.rows() * C / 3))
    for (int64_t r = 0; r < s.rows(); r++) {
        int64_t t = r / H, h = r % H;
        const floatX* x = inp.row(t) + h * C;
        rstd[r] = rmsnorm_rstd_cpu(x, C, eps);
        rmsnorm_row_cpu(out.row(t) + h * C, x, weight, rstd[r], C);
    }
}

// residual_out, out, residual_in, x: (T,C); rstd: (T); weight: (C)
inline void fused_residual_rmsnorm_forward_cpu(floatX* residual_out, floatX* out, float* rstd,
                                               const floatX* residual_in, const floatX* x, const floatX* weight,
                                               RmsnormShape s, float eps) {
    const int C = s.C;
#pragma omp parallel for schedule(static) if (worth_threads(s.T * C / 2))
    for (int64_t t = 0; t < s.T; t++) {
        floatX* sum = residual_out + t * C;
        const floatX *a = residual_in + t * C, *b = x + t * C;
        for (int i = 0; i < C; i++) sum[i] = (floatX)((float)a[i] + (float)b[i]);
        rstd[t] = rmsnorm_rstd_cpu(sum, C, eps);
        rmsnorm_row_cpu(out + t * C, sum, weight, rstd[t], C);
    }
}

// mean over the row of dn * x * rstd, the one number dx needs from the whole row; dout, x, weight: (C)
inline float rmsnorm_backward_mean_cpu(const floatX* dout, const floatX* x, const floatX* weight, float rstd, int C) {
    float lane[RMSNORM_LANES] = {0};
    int i = 0;
    for (; i + RMSNORM_LANES <= C; i += RMSNORM_LANES)
        for (int l = 0; l < RMSNORM_LANES; l++) lane[l] += (float)dout[i + l] * (float)weight[i + l] * (float)x[i + l];
    for (int l = 0; i + l < C; l++) lane[l] += (float)dout[i + l] * (float)weight[i + l] * (float)x[i + l];
    return rmsnorm_sum_lanes(lane) * rstd / (float)C;
}

// dinp, dout, inp: (T,H*C); dweight, weight: (C); rstd: (T,H)
inline void rmsnorm_backward_cpu(Rows<floatX> dinp, float* dweight, Rows<const floatX> dout, Rows<const floatX> inp,
                                 const floatX* weight, const float* rstd, RmsnormShape shape, bool accumulate_dinp) {
    const int C = shape.C, H = shape.H;
    int64_t rows = shape.rows(), rows_per_block = rmsnorm_rows_per_block(rows), blocks = CEIL_DIV(rows, rows_per_block);
    Scratch scratch((size_t)blocks * C, Device());
    float* partial = scratch.data;  // (blocks,C)
#pragma omp parallel for schedule(static) if (worth_threads(rows * C))
    for (int64_t block = 0; block < blocks; block++) {
        float* __restrict__ dw = partial + block * C;
        memset(dw, 0, sizeof(float) * C);
        int64_t end = (block + 1) * rows_per_block < rows ? (block + 1) * rows_per_block : rows;
        for (int64_t r = block * rows_per_block; r < end; r++) {
            int64_t t = r / H, h = r % H;
            const floatX* __restrict__ dy = dout.row(t) + h * C;
            const floatX* __restrict__ x = inp.row(t) + h * C;
            floatX* __restrict__ dx = dinp.row(t) + h * C;
            float s = rstd[r], mean = rmsnorm_backward_mean_cpu(dy, x, weight, s, C);
            for (int i = 0; i < C; i++) {
                float xhat = (float)x[i] * s, g = (float)dy[i];
                dw[i] += g * (float)(floatX)xhat;
                float d = s * (g * (float)weight[i] - xhat * mean);
                dx[i] = (floatX)(accumulate_dinp ? (float)dx[i] + d : d);
            }
        }
    }
#pragma omp parallel for schedule(static) if (worth_threads(blocks * C / 2))
    for (int c = 0; c < C; c++) {
        float sum = 0;
        for (int64_t block = 0; block < blocks; block++) sum += partial[block * C + c];
        dweight[c] += sum;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
static constexpr int RMSNORM_BLOCK = 256;

// offset of row r = t * H + h
__device__ inline int64_t rmsnorm_offset(int r, RmsnormShape s, int64_t stride) {
    return r / s.H * stride + (int64_t)(r % s.H) * s.C;
}
template <class T>
__device__ inline T* rmsnorm_row(Rows<T> x, int r, RmsnormShape s) {
    return x.p + rmsnorm_offset(r, s, x.stride);
}

template <int LANES>
__device__ inline float rmsnorm_group_sum(float x) {
    if constexpr (LANES == RMSNORM_BLOCK) return block_reduce_sum(x);
    else return group_reduce_sum<LANES>(x);
}

// LANES threads a row. With RESIDUAL (H is 1) the row is the rounded sum inp + x, which goes to residual_out; both are
// as inp. grid: CEIL_DIV(rows, RMSNORM_BLOCK / LANES)
template <int LANES, bool RESIDUAL>
__global__ void rmsnorm_forward_kernel(floatX* residual_out, Rows<floatX> out, float* rstd, Rows<const floatX> inp,
                                       const floatX* x, const floatX* weight, RmsnormShape shape, float eps,
                                       bool aligned) {
    constexpr int W = Pack128<floatX>::size;
    const int C = shape.C;
    int64_t r = (int64_t)blockIdx.x * (RMSNORM_BLOCK / LANES) + threadIdx.x / LANES;
    bool live = r < shape.rows();  // the others still take part in the warp's sums
    int first = threadIdx.x % LANES * W, end = live ? C : 0;
    int64_t inp_row = live ? rmsnorm_offset((int)r, shape, inp.stride) : 0;
    const floatX* row = RESIDUAL ? residual_out + inp_row : inp.p + inp_row;

    float sum = 0.0f;
    for (int i = first; i < end; i += LANES * W) {
        Pack128<floatX> a = load_pack(inp.p + inp_row, i, C, aligned);
        if constexpr (RESIDUAL) {
            Pack128<floatX> b = load_pack(x + inp_row, i, C, aligned);
            for (int k = 0; k < W; k++) a[k] = (floatX)((float)a[k] + (float)b[k]);
            store_pack(residual_out + inp_row, i, C, aligned, a);
        }
        for (int k = 0; k < W; k++) sum += (float)a[k] * (float)a[k];
    }
    float s = 1.0f / sqrtf(rmsnorm_group_sum<LANES>(sum) / (float)C + eps);
    if (live && first == 0) rstd[r] = s;

    floatX* out_row = out.p + (live ? rmsnorm_offset((int)r, shape, out.stride) : 0);
    for (int i = first; i < end; i += LANES * W) {
        Pack128<floatX> a = load_pack(row, i, C, aligned), w = load_pack(weight, i, C, aligned);
        for (int k = 0; k < W; k++) a[k] = (floatX)((float)(floatX)((float)a[k] * s) * (float)w[k]);
        store_pack(out_row, i, C, aligned, a);
    }
}

// The number of threads a pack of columns gets in the backward, each with its own sum for dw: 1 if C fills the block.
HOST_DEVICE int rmsnorm_backward_groups(int packs) { return packs < RMSNORM_BLOCK ? RMSNORM_BLOCK / packs : 1; }

// This lane's part of the row's sum of dout * weight * inp; LANES lanes share a row of C
template <int LANES>
__device__ inline float rmsnorm_dot(const floatX* dout, const floatX* inp, const floatX* weight, int C, bool aligned) {
    constexpr int W = Pack128<floatX>::size;
    float sum = 0.0f;
    for (int i = threadIdx.x % LANES * W; i < C; i += LANES * W) {
        Pack128<floatX> g = load_pack(dout, i, C, aligned), a = load_pack(inp, i, C, aligned);
        Pack128<floatX> w = load_pack(weight, i, C, aligned);
        for (int k = 0; k < W; k++) sum += (float)g[k] * (float)w[k] * (float)a[k];
    }
    return sum;
}

// One block takes rmsnorm_rows_per_block rows, RMSNORM_BLOCK / LANES of them at a time, and leaves its part of dw in
// partial (gridDim.x,C). dynamic shared memory: float acc[groups][packs * W]
template <int LANES>
__global__ void rmsnorm_backward_kernel(Rows<floatX> dinp, float* partial, Rows<const floatX> dout,
                                        Rows<const floatX> inp, const floatX* weight, const float* rstd,
                                        RmsnormShape shape, bool accumulate_dinp, bool aligned) {
    constexpr int W = Pack128<floatX>::size, BATCH = RMSNORM_BLOCK / LANES;
    const int C = shape.C, rows = (int)shape.rows(), rows_per_block = (int)rmsnorm_rows_per_block(rows);
    __shared__ float batch_rstd[BATCH], batch_mean[BATCH];
    DYNAMIC_SHARED(float, acc);
    int packs = CEIL_DIV(C, W), columns = packs < RMSNORM_BLOCK ? packs : RMSNORM_BLOCK;
    int groups = rmsnorm_backward_groups(packs), group = threadIdx.x / columns, column = threadIdx.x % columns;
    int first = blockIdx.x * rows_per_block;
    int end = rows - first < rows_per_block ? rows : first + rows_per_block;
    if (group < groups)
        for (int p = column; p < packs; p += columns)
            for (int k = 0; k < W; k++) acc[(group * packs + p) * W + k] = 0.0f;

    for (int batch = first; batch < end; batch += BATCH) {
        int own = threadIdx.x / LANES, lane = threadIdx.x % LANES, r = batch + own;
        float sum = 0.0f, s = 0.0f;
        if (r < end) {
            s = rstd[r];
            sum = rmsnorm_dot<LANES>(rmsnorm_row(dout, r, shape), rmsnorm_row(inp, r, shape), weight, C, aligned);
        }
        sum = group_reduce_sum<LANES>(sum);
        __syncthreads();  // the last batch's reads of batch_rstd and batch_mean are over
        if (lane == 0) {
            batch_rstd[own] = s;
            batch_mean[own] = sum * s / (float)C;
        }
        __syncthreads();

        if (group < groups)
            for (int p = column; p < packs; p += columns) {
                float* a_dw = acc + (group * packs + p) * W;
                float dw[W];
                for (int k = 0; k < W; k++) dw[k] = a_dw[k];
                Pack128<floatX> w = load_pack(weight, p * W, C, aligned);
                for (int j = group; j < BATCH && batch + j < end; j += groups) {
                    floatX* dx_row = rmsnorm_row(dinp, batch + j, shape);
                    Pack128<floatX> g = load_pack(rmsnorm_row(dout, batch + j, shape), p * W, C, aligned);
                    Pack128<floatX> a = load_pack(rmsnorm_row(inp, batch + j, shape), p * W, C, aligned), dx;
                    if (accumulate_dinp) dx = load_pack(dx_row, p * W, C, aligned);
                    for (int k = 0; k < W; k++) {
                        float xhat = (float)a[k] * batch_rstd[j];
                        float d = batch_rstd[j] * ((float)g[k] * (float)w[k] - xhat * batch_mean[j]);
                        dw[k] += (float)g[k] * (float)(floatX)xhat;
                        dx[k] = (floatX)(accumulate_dinp ? (float)dx[k] + d : d);
                    }
                    store_pack(dx_row, p * W, C, aligned, dx);
                }
                for (int k = 0; k < W; k++) a_dw[k] = dw[k];
            }
    }
    __syncthreads();
    for (int c = threadIdx.x; c < C; c += RMSNORM_BLOCK) {
        float sum = 0.0f;
        for (int g = 0; g < groups; g++) sum += acc[g * packs * W + c];
        partial[(int64_t)blockIdx.x * C + c] = sum;
    }
}

// dweight += sum over blocks of partial; a warp's lanes are columns, its 8 warps share the blocks. grid: CEIL_DIV(C,
// 32)
__global__ void rmsnorm_dweight_kernel(float* dweight, const float* partial, int blocks, int C) {
    __shared__ float part[RMSNORM_BLOCK];
    int c = blockIdx.x * 32 + threadIdx.x % 32;
    float sum = 0.0f;
    if (c < C)
        for (int b = threadIdx.x / 32; b < blocks; b += RMSNORM_BLOCK / 32) sum += partial[(int64_t)b * C + c];
    part[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x >= 32 || c >= C) return;
    sum = 0.0f;
    for (int i = threadIdx.x; i < RMSNORM_BLOCK; i += 32) sum += part[i];
    dweight[c] += sum;
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

inline void rmsnorm_check(const char* name, RmsnormShape s) {
    if (s.T < 0 || s.H < 1 || s.C < 1 || s.rows() > INT32_MAX)
        fail("%s: bad shape: T %lld, H %d, C %d (T * H must be below 2^31)", name, (long long)s.T, s.H, s.C);
}

#if HAS_KERNELS
template <bool RESIDUAL>
inline void rmsnorm_forward_launch(floatX* residual_out, Rows<floatX> out, float* rstd, Rows<const floatX> inp,
                                   const floatX* x, const floatX* weight, RmsnormShape s, float eps, Device dev) {
    int rows = (int)s.rows();
    if (rows == 0) return;
    bool aligned = s.C % Pack128<floatX>::size == 0 && is_aligned16(inp) && is_aligned16(out) &&
                   is_aligned16(weight, 0) && is_aligned16(x, 0) && is_aligned16(residual_out, 0);
    auto launch = [&](auto lanes) {
        constexpr int LANES = decltype(lanes)::value;
        LAUNCH((rmsnorm_forward_kernel<LANES, RESIDUAL>), CEIL_DIV(rows, RMSNORM_BLOCK / LANES), RMSNORM_BLOCK, 0,
               dev.stream, residual_out, out, rstd, inp, x, weight, s, eps, aligned);
    };
    if (s.C <= 128) launch(Int<8>());
    else if (s.C <= 1024) launch(Int<32>());
    else launch(Int<RMSNORM_BLOCK>());
}

inline void rmsnorm_backward_launch(Rows<floatX> dinp, float* dweight, Rows<const floatX> dout, Rows<const floatX> inp,
                                    const floatX* weight, const float* rstd, RmsnormShape s, bool accumulate_dinp,
                                    Device dev) {
    const int C = s.C, rows = (int)s.rows(), blocks = (int)CEIL_DIV(rows, rmsnorm_rows_per_block(rows));
    if (rows == 0) return;
    bool aligned = C % Pack128<floatX>::size == 0 && is_aligned16(dinp) && is_aligned16(dout) && is_aligned16(inp) &&
                   is_aligned16(weight, 0);
    int packs = CEIL_DIV(C, Pack128<floatX>::size);
    size_t shared = sizeof(float) * rmsnorm_backward_groups(packs) * packs * Pack128<floatX>::size;
    Scratch partial((size_t)blocks * C, dev);
    auto launch = [&](auto lanes) {
        LAUNCH(rmsnorm_backward_kernel<decltype(lanes)::value>, blocks, RMSNORM_BLOCK, shared, dev.stream, dinp,
               partial.data, dout, inp, weight, rstd, s, accumulate_dinp, aligned);
    };
    if (C <= 128) launch(Int<8>());
    else launch(Int<32>());
    LAUNCH(rmsnorm_dweight_kernel, CEIL_DIV(C, 32), RMSNORM_BLOCK, 0, dev.stream, dweight, partial.data, blocks, C);
}
#endif

// y of each head by itself. out, inp: (T,H*C); rstd: (T,H); weight: (C). out must not overlap inp.
inline void rmsnorm_heads_forward(Rows<floatX> out, float* rstd, Rows<const floatX> inp, const floatX* weight,
                                  RmsnormShape s, float eps, Device dev) {
    NVTX_RANGE("rmsnorm_forward");
    rmsnorm_check("rmsnorm_forward", s);
#if HAS_KERNELS
    if (dev.cuda) {
        rmsnorm_forward_launch<false>(nullptr, out, rstd, inp, nullptr, weight, s, eps, dev);
        return;
    }
#endif
    (void)dev;
    rmsnorm_forward_cpu(out, rstd, inp, weight, s, eps);
}

// out: (T,C); rstd: (T); inp: (T,C); weight: (C). out must not overlap inp.
inline void rmsnorm_forward(floatX* out, float* rstd, const floatX* inp, const floatX* weight, RmsnormShape s,
                            float eps, Device dev) {
    rmsnorm_heads_forward({out, s.C}, rstd, {inp, s.C}, weight, s, eps, dev);
}

// residual_out = residual_in + x, out = norm of the rounded residual_out. residual_out, out, residual_in, x: (T,C);
// rstd: (T); weight: (C). residual_out may be residual_in; out overlaps nothing.
inline void fused_residual_rmsnorm_forward(floatX* residual_out, floatX* out, float* rstd, const floatX* residual_in,
                                           const floatX* x, const floatX* weight, RmsnormShape s, float eps,
                                           Device dev) {
    NVTX_RANGE("fused_residual_rmsnorm_forward");
    rmsnorm_check("fused_residual_rmsnorm_forward", s);
#if HAS_KERNELS
    if (dev.cuda) {
        rmsnorm_forward_launch<true>(residual_out, {out, s.C}, rstd, {residual_in, s.C}, x, weight, s, eps, dev);
        return;
    }
#endif
    (void)dev;
    fused_residual_rmsnorm_forward_cpu(residual_out, out, rstd, residual_in, x, weight, s, eps);
}

// dinp: (T,H*C); dweight: (C), +=; dout, inp: (T,H*C); weight: (C); rstd: (T,H) from the forward. accumulate_dinp: dinp
// += instead of =. dinp must not overlap dout or inp.
inline void rmsnorm_heads_backward(Rows<floatX> dinp, float* dweight, Rows<const floatX> dout, Rows<const floatX> inp,
                                   const floatX* weight, const float* rstd, RmsnormShape s, bool accumulate_dinp,
                                   Device dev) {
    NVTX_RANGE("rmsnorm_backward");
    rmsnorm_check("rmsnorm_backward", s);
#if HAS_KERNELS
    if (dev.cuda) {
        rmsnorm_backward_launch(dinp, dweight, dout, inp, weight, rstd, s, accumulate_dinp, dev);
        return;
    }
#endif
    (void)dev;
    rmsnorm_backward_cpu(dinp, dweight, dout, inp, weight, rstd, s, accumulate_dinp);
}

// dinp: (T,C); dweight: (C), +=; dout, inp: (T,C); weight: (C); rstd: (T)
inline void rmsnorm_backward(floatX* dinp, float* dweight, const floatX* dout, const floatX* inp, const floatX* weight,
                             const float* rstd, RmsnormShape s, bool accumulate_dinp, Device dev) {
    rmsnorm_heads_backward({dinp, s.C}, dweight, {dout, s.C}, {inp, s.C}, weight, rstd, s, accumulate_dinp, dev);
}
