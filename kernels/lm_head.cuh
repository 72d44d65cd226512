// LM head, log-softmax, log-probability, entropy and their backward, fused and chunked over the vocabulary.
//   z_v = (hidden . W_v) / temperature          lse = log sum_v exp(z_v)
//   logp = z_y - lse                            entropy = lse - sum_v p_v z_v,  p_v = exp(z_v - lse)
//   backward, given g = dL/dlogp of each token: dz_v = g (1[v = y] - p_v)
//   and, given e = dL/dentropy of each token:   dz_v -= e p_v (log p_v + entropy),  log p_v = z_v - lse
//   dhidden = sum_v dz_v W_v / temperature      dW_v += sum_t dz_v hidden_t / temperature
// [T,V] is not stored whole: at V = 151,936 and T = 4,096 it would be 2.5 GB in fp32. A chunk is LM_HEAD_ROWS x
// LM_HEAD_COLUMNS; the forward keeps a running maximum and sums (Milakov & Gimelshein 2018, online softmax), the
// backward computes each chunk of logits again (one GEMM more, as in Wijmans et al. 2024, Cut Your Losses). On the CPU, where
// a GEMM of C = 576 takes 10 times as long as writing and reading its result, the first LM_HEAD_KEPT bytes of chunks are kept
// from the forward; the bits are the same. At V = 49,152 these are all chunks of 2,730 tokens.
//
// The trap: the sampler needs the same lse to the bit. It holds whole rows of logits, and walks them through the same
// softmax_chunk() in chunks of the same width; on a device through softmax_chunk_device() and softmax_merge(). Neither
// is inlined where the compiler could fuse a product in one caller and not in the other.
//
// On a device. A block of LM_HEAD_BLOCK threads takes the row of one chunk: maximum and sums relative to it, 8 logits a
// thread in registers, then the row's running statistics are merged with the chunk's. Chunks are independent until the
// merge, so that the sampler can have a block for each of a row's 38 chunks. The bits of a row depend on that row
// alone. Traffic of a chunk of R x N logits besides the GEMMs: forward 4RN written by the GEMM and read once (the least
// for logits that leave the GEMM), backward 4RN read, sizeof(floatX) RN written. Least with the softmax inside the
// GEMM: 0.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>
#include "../runtime/buffer.h"
#include "../runtime/dtypes.h"
#include "../runtime/math.h"
#include "../runtime/parallel.h"
#include "convert.cuh"
#include "matmul.cuh"

constexpr int64_t LM_HEAD_COLUMNS = 4096, LM_HEAD_ROWS = 1024;
constexpr size_t LM_HEAD_KEPT = (size_t)512 << 20;

// Running statistics of one row of scaled logits z
struct SoftmaxState {
    float max = -INFINITY;
    double sum = 0.0;    // sum exp(z - max)
    double sum_z = 0.0;  // sum exp(z - max) z
};

// Take in the next n <= LM_HEAD_COLUMNS logits of the row; noinline, so that every caller runs the same instructions
__attribute__((noinline)) inline void softmax_chunk(SoftmaxState& s, const float* logits, int64_t n,
                                                    float inverse_temperature) {
    float max = s.max;
#pragma omp simd reduction(max : max)
    for (int64_t i = 0; i < n; i++) {
        float z = logits[i] * inverse_temperature;
        max = z > max ? z : max;
    }
    float sum = 0.0f, sum_z = 0.0f;
#pragma omp simd reduction(+ : sum, sum_z)
    for (int64_t i = 0; i < n; i++) {
        float z = logits[i] * inverse_temperature;
        float e = exp_f(z - max);
        sum += e;
        sum_z += e * z;
    }
    double rescale = s.max == -INFINITY ? 0.0 : exp((double)s.max - (double)max);
    s.sum = s.sum * rescale + (double)sum;
    s.sum_z = s.sum_z * rescale + (double)sum_z;
    s.max = max;
}

HOST_DEVICE float softmax_lse(const SoftmaxState& s) { return (float)((double)s.max + log(s.sum)); }
HOST_DEVICE float softmax_entropy(const SoftmaxState& s) { return softmax_lse(s) - (float)(s.sum_z / s.sum); }

// whole row at once, in the same chunks as the fused forward
inline SoftmaxState softmax_row(const float* logits, int64_t V, float inverse_temperature) {
    SoftmaxState s;
    for (int64_t v = 0; v < V; v += LM_HEAD_COLUMNS)
        softmax_chunk(s, logits + v, V - v < LM_HEAD_COLUMNS ? V - v : LM_HEAD_COLUMNS, inverse_temperature);
    return s;
}

HOST_DEVICE float logit_logp(float logit, float inverse_temperature, float lse) {
#if defined(__CUDA_ARCH__)
    return fmaf(logit, inverse_temperature, -lse);  // nvcc would fuse it in one caller and perhaps not in another
#else
    return logit * inverse_temperature - lse;
#endif
}

// What both passes read
struct LmHeadInputs {
    const floatX* hidden;  // [T,C]
    const floatX* weight;  // [V,C]
    const int* targets;    // [T], in [0, V)
    int64_t T, C, V;
    float inverse_temperature;
};

// The entropies of the forward, for a loss that has them: both [T], or null
struct LmHeadEntropy {
    const float* entropy = nullptr;
    const float* dentropy = nullptr;  // dL/dentropy
};

// -dz_v / temperature apart from the target's own term. g, e: dL/dlogp and dL/dentropy, over the temperature
HOST_DEVICE float logit_pull(float p, float logp, float g, float e, float entropy) {
    return mul_add(e, logp + entropy, g) * p;
}

struct LmHeadScratch {
    Buffer<float> logits;        // [LM_HEAD_ROWS, LM_HEAD_COLUMNS] or less
    Buffer<floatX> dlogits;      // the same
    Buffer<float> dhidden;       // [LM_HEAD_ROWS, C]
    Buffer<SoftmaxState> state;  // [LM_HEAD_ROWS], on a device
    Buffer<float> target;        // [LM_HEAD_ROWS] the logit of the target, on a device
    Buffer<float> kept;          // chunks of the size of `logits`, on the CPU, of the last forward, which was of
    const floatX *kept_hidden = nullptr, *kept_weight = nullptr;
    int64_t kept_T = 0;
};

// Room for a forward of T tokens, and for a backward if training: lines of the memory plan. Without it, or for more
// tokens, forward and backward allocate what they lack.
inline void lm_head_scratch_allocate(LmHeadScratch& s, int64_t T, int64_t C, int64_t V, bool training, Device dev) {
    int64_t rows = T < LM_HEAD_ROWS ? T : LM_HEAD_ROWS, columns = V < LM_HEAD_COLUMNS ? V : LM_HEAD_COLUMNS;
    s.logits.allocate(rows * columns, "a chunk of logits", "", dev);
    if (dev.cuda) {
        s.state.allocate(rows, "a chunk of logits", "", dev);
        s.target.allocate(rows, "a chunk of logits", "", dev);
    }
    if (!training) return;
    s.dlogits.allocate(rows * columns, "a chunk of logit gradients", "", dev);
    s.dhidden.allocate(rows * C, "the gradient of the last hidden state", "", dev);
    if (dev.cuda) return;
    const int64_t chunk = rows * columns, chunks = CEIL_DIV(T, LM_HEAD_ROWS) * CEIL_DIV(V, columns);
    s.kept.allocate(std::min(chunks, (int64_t)(LM_HEAD_KEPT / sizeof(float)) / chunk) * chunk,
                    "logits kept for the backward", "lower --micro_batch_tokens", dev);
}

// Where the logits of chunk i, of `chunk` elements, are computed: where they are kept, or in memory for one chunk
inline float* lm_head_chunk(LmHeadScratch& s, int64_t i, int64_t chunk) {
    return (size_t)((i + 1) * chunk) <= s.kept.size ? s.kept.data + i * chunk : s.logits.data;
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

inline void lm_head_forward_cpu(float* logp,     // [T]
                                float* lse,      // [T]
                                float* entropy,  // [T]; may be null
                                const LmHeadInputs& in, LmHeadScratch& scratch) {
    const int64_t T = in.T, C = in.C, V = in.V;
    const float inverse_temperature = in.inverse_temperature;
    int64_t columns = V < LM_HEAD_COLUMNS ? V : LM_HEAD_COLUMNS;
    int64_t max_rows = T < LM_HEAD_ROWS ? T : LM_HEAD_ROWS;
    scratch.logits.reserve(max_rows * columns, "a chunk of logits");
    scratch.kept_hidden = in.hidden, scratch.kept_weight = in.weight, scratch.kept_T = T;
    int64_t chunk = 0;
    std::vector<SoftmaxState> state(max_rows);
    std::vector<float> target(max_rows);
    for (int64_t t0 = 0; t0 < T; t0 += LM_HEAD_ROWS) {
        int64_t rows = T - t0 < LM_HEAD_ROWS ? T - t0 : LM_HEAD_ROWS;
        for (int64_t i = 0; i < rows; i++) state[i] = SoftmaxState();
        for (int64_t v0 = 0; v0 < V; v0 += columns) {
            int64_t n = V - v0 < columns ? V - v0 : columns;
            float* logits = lm_head_chunk(scratch, chunk++, max_rows * columns);
            gemm_nt(logits, in.hidden + t0 * C, in.weight + v0 * C, nullptr, rows, n, C, false, {columns});
#pragma omp parallel for schedule(static) if (worth_threads(rows * n / 2))
            for (int64_t i = 0; i < rows; i++) {
                softmax_chunk(state[i], logits + i * columns, n, inverse_temperature);
                int64_t y = in.targets[t0 + i] - v0;
                if (y >= 0 && y < n) target[i] = logits[i * columns + y];
            }
        }
        for (int64_t i = 0; i < rows; i++) {
            lse[t0 + i] = softmax_lse(state[i]);
            logp[t0 + i] = logit_logp(target[i], inverse_temperature, lse[t0 + i]);
            if (entropy) entropy[t0 + i] = softmax_entropy(state[i]);
        }
    }
}

// A row of a chunk with the entropy's gradient; y: the target's column, which may lie outside
inline void lm_head_dlogits_entropy(floatX* dz, const float* z, int64_t n, int64_t y, float g, float e, float entropy,
                                    float lse, float inverse_temperature) {
    auto pull = [&](int64_t v) {
        float logp = z[v] * inverse_temperature - lse;
        return logit_pull(exp_f(logp), logp, g, e, entropy);
    };
    INDEPENDENT
    for (int64_t v = 0; v < n; v++) dz[v] = -pull(v);
    if (y >= 0 && y < n) dz[y] = g - pull(y);
}

inline void lm_head_backward_cpu(floatX* dhidden,         // [T,C]
                                 float* dweight,          // [V,C] +=
                                 const float* dlogp,      // [T] dL/dlogp
                                 const float* lse,        // [T] from the forward
                                 const LmHeadInputs& in,  // of the last forward, or none is kept
                                 LmHeadScratch& scratch, const LmHeadEntropy& h = LmHeadEntropy()) {
    const int64_t T = in.T, C = in.C, V = in.V;
    const float inverse_temperature = in.inverse_temperature;
    int64_t columns = V < LM_HEAD_COLUMNS ? V : LM_HEAD_COLUMNS;
    int64_t max_rows = T < LM_HEAD_ROWS ? T : LM_HEAD_ROWS;
    scratch.logits.reserve(max_rows * columns, "a chunk of logits");
    scratch.dlogits.reserve(max_rows * columns, "a chunk of logit gradients");
    scratch.dhidden.reserve(max_rows * C, "the gradient of the last hidden state");
    const bool kept = scratch.kept_hidden == in.hidden && scratch.kept_weight == in.weight && scratch.kept_T == T;
    int64_t chunk = 0;
    float* dh = scratch.dhidden.data;
    floatX* dlogits = scratch.dlogits.data;
    for (int64_t t0 = 0; t0 < T; t0 += LM_HEAD_ROWS) {
        int64_t rows = T - t0 < LM_HEAD_ROWS ? T - t0 : LM_HEAD_ROWS;
        memset(dh, 0, rows * C * sizeof(float));
        for (int64_t v0 = 0; v0 < V; v0 += columns) {
            int64_t n = V - v0 < columns ? V - v0 : columns;
            float* logits = kept ? lm_head_chunk(scratch, chunk++, max_rows * columns) : scratch.logits.data;
            if (logits == scratch.logits.data)
                gemm_nt(logits, in.hidden + t0 * C, in.weight + v0 * C, nullptr, rows, n, C, false, {columns});
#pragma omp parallel for schedule(static) if (worth_threads(rows * n / 2))
            for (int64_t i = 0; i < rows; i++) {
                const float* z = logits + i * columns;
                floatX* dz = dlogits + i * columns;
                float g = dlogp[t0 + i] * inverse_temperature, row_lse = lse[t0 + i];
                int64_t y = in.targets[t0 + i] - v0;
                if (h.dentropy) {
                    lm_head_dlogits_entropy(dz, z, n, y, g, h.dentropy[t0 + i] * inverse_temperature, h.entropy[t0 + i],
                                            row_lse, inverse_temperature);
                    continue;
                }
                INDEPENDENT
                for (int64_t v = 0; v < n; v++) dz[v] = -g * exp_f(z[v] * inverse_temperature - row_lse);
                if (y >= 0 && y < n) dz[y] = g * (1.0f - exp_f(z[y] * inverse_temperature - row_lse));
            }
            gemm_nn(dh, dlogits, in.weight + v0 * C, rows, n, C, true, {C, columns});
            if (dweight) gemm_tn(dweight + v0 * C, dlogits, in.hidden + t0 * C, rows, n, C, {C, columns});
        }
#pragma omp parallel for schedule(static) if (worth_threads(rows * C / 8))
        for (int64_t i = 0; i < rows * C; i++) dhidden[t0 * C + i] = dh[i];
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
static constexpr int LM_HEAD_BLOCK = 512, LM_HEAD_WARPS = LM_HEAD_BLOCK / 32;
static constexpr int LM_HEAD_PACKS = (int)LM_HEAD_COLUMNS / (LM_HEAD_BLOCK * Pack128<float>::size);  // a thread

// Every thread gets the result. All threads of the block, of LM_HEAD_BLOCK threads, must call it.
__device__ inline float softmax_block_max(float x) {
    __shared__ float partial[LM_HEAD_WARPS];
    x = warp_reduce_max(x);
    __syncthreads();  // the previous call's reads of partial are over
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    for (int w = 0; w < LM_HEAD_WARPS; w++) x = fmaxf(x, partial[w]);
    return x;
}

__device__ inline void softmax_block_sums(float& a, float& b) {
    __shared__ float partial[2][LM_HEAD_WARPS];
    a = warp_reduce_sum(a);
    b = warp_reduce_sum(b);
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        partial[0][threadIdx.x / 32] = a;
        partial[1][threadIdx.x / 32] = b;
    }
    __syncthreads();
    a = b = 0.0f;
    for (int w = 0; w < LM_HEAD_WARPS; w++) {
        a += partial[0][w];
        b += partial[1][w];
    }
}

// Statistics of n <= LM_HEAD_COLUMNS logits by themselves; every thread of the block gets them
__device__ __attribute__((noinline)) inline SoftmaxState softmax_chunk_device(const float* logits, int n,
                                                                              float inverse_temperature, bool aligned) {
    constexpr int W = Pack128<float>::size;
    Pack128<float> z[LM_HEAD_PACKS];
    float max = -INFINITY, sum = 0.0f, sum_z = 0.0f;
    UNROLL
    for (int j = 0; j < LM_HEAD_PACKS; j++) {
        int i = (j * LM_HEAD_BLOCK + threadIdx.x) * W;
        z[j] = load_pack(logits, i, n, aligned);
        UNROLL
        for (int k = 0; k < W; k++) {
            z[j][k] *= inverse_temperature;
            max = i + k < n ? fmaxf(max, z[j][k]) : max;
        }
    }
    max = softmax_block_max(max);
    UNROLL
    for (int j = 0; j < LM_HEAD_PACKS; j++) {
        UNROLL
        for (int k = 0; k < W; k++) {
            if ((j * LM_HEAD_BLOCK + (int)threadIdx.x) * W + k >= n) continue;
            float e = exp_f(z[j][k] - max);
            sum += e;
            sum_z = mul_add(e, z[j][k], sum_z);
        }
    }
    softmax_block_sums(sum, sum_z);
    SoftmaxState s;
    s.max = max;
    s.sum = (double)sum;
    s.sum_z = (double)sum_z;
    return s;
}

// of what s covers, then what c covers
__device__ __attribute__((noinline)) inline SoftmaxState softmax_merge(const SoftmaxState& s, const SoftmaxState& c) {
    SoftmaxState m;
    m.max = fmaxf(s.max, c.max);
    double scale_s = exp((double)s.max - (double)m.max), scale_c = exp((double)c.max - (double)m.max);
    m.sum = fma(s.sum, scale_s, c.sum * scale_c);
    m.sum_z = fma(s.sum_z, scale_s, c.sum_z * scale_c);
    return m;
}

// whole row at once, as softmax_row; for thread 0, all threads of the block must call it
__device__ inline SoftmaxState softmax_row_device(const float* logits, int64_t V, float inverse_temperature,
                                                  bool aligned) {
    SoftmaxState s;
    for (int64_t v = 0; v < V; v += LM_HEAD_COLUMNS) {
        int n = (int)(V - v < LM_HEAD_COLUMNS ? V - v : LM_HEAD_COLUMNS);
        SoftmaxState chunk = softmax_chunk_device(logits + v, n, inverse_temperature, aligned);
        if (threadIdx.x == 0) s = softmax_merge(s, chunk);
    }
    return s;
}

// Columns v0 ... v0 + n - 1 of the logits of some rows
struct LmHeadChunk {
    Rows<const float> logits;  // [rows,n]
    int n;
    int64_t v0;
    float inverse_temperature;
    bool aligned;
};

// state, target, targets: (rows). grid: rows
__global__ void __launch_bounds__(LM_HEAD_BLOCK)
    lm_head_softmax_chunk_kernel(SoftmaxState* state, float* target, LmHeadChunk c, const int* targets) {
    int64_t row = blockIdx.x;
    SoftmaxState chunk = softmax_chunk_device(c.logits.row(row), c.n, c.inverse_temperature, c.aligned);
    if (threadIdx.x != 0) return;
    state[row] = softmax_merge(c.v0 == 0 ? SoftmaxState() : state[row], chunk);
    int64_t y = targets[row] - c.v0;
    if (y >= 0 && y < c.n) target[row] = c.logits.row(row)[y];
    else if (c.v0 == 0) target[row] = NAN;  // stays if no chunk has it
}

// logp, lse, entropy (or null), state, target: (rows). grid: CEIL_DIV(rows, LM_HEAD_BLOCK)
__global__ void __launch_bounds__(LM_HEAD_BLOCK)
    lm_head_finish_kernel(float* logp, float* lse, float* entropy, const SoftmaxState* state, const float* target,
                          int rows, float inverse_temperature) {
    int row = blockIdx.x * LM_HEAD_BLOCK + threadIdx.x;
    if (row >= rows) return;
    lse[row] = softmax_lse(state[row]);
    logp[row] = logit_logp(target[row], inverse_temperature, lse[row]);
    if (entropy) entropy[row] = softmax_entropy(state[row]);
}

// A pack of dlogits a thread. dlogits: (rows,n) at the logits' stride; dlogp, lse, targets: (rows). grid: CEIL_DIV(n,
// LM_HEAD_BLOCK * W), rows
template <bool ENTROPY>
__global__ void __launch_bounds__(LM_HEAD_BLOCK)
    lm_head_dlogits_kernel(floatX* dlogits, LmHeadChunk c, const float* dlogp, const float* lse, const int* targets,
                           LmHeadEntropy h) {
    constexpr int W = Pack128<floatX>::size, F = Pack128<float>::size;
    int64_t row = blockIdx.y;
    int i = (blockIdx.x * LM_HEAD_BLOCK + threadIdx.x) * W;
    if (i >= c.n) return;
    float g = dlogp[row] * c.inverse_temperature, row_lse = lse[row];
    float e = ENTROPY ? h.dentropy[row] * c.inverse_temperature : 0.0f, entropy = ENTROPY ? h.entropy[row] : 0.0f;
    int64_t y = targets[row] - c.v0;
    Pack128<floatX> dz;
    for (int j = 0; j < W / F; j++) {
        Pack128<float> z = load_pack(c.logits.row(row), i + j * F, c.n, c.aligned);
        UNROLL
        for (int k = 0; k < F; k++) {
            float logp = logit_logp(z[k], c.inverse_temperature, row_lse), p = exp_f(logp);
            bool target = i + j * F + k == y;
            if (ENTROPY) dz[j * F + k] = (target ? g : 0.0f) - logit_pull(p, logp, g, e, entropy);
            else dz[j * F + k] = target ? g * (1.0f - p) : -g * p;
        }
    }
    store_pack(dlogits + row * c.logits.stride, i, c.n, c.aligned, dz);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

inline void lm_head_check(const char* name, const LmHeadInputs& in) {
    const int64_t T = in.T, C = in.C, V = in.V;
    if (T < 0 || C < 1 || V < 1 || T > INT32_MAX || C > INT32_MAX || V > INT32_MAX)
        fail("%s: bad shape: T %lld, C %lld, V %lld (each must be below 2^31)", name, (long long)T, (long long)C,
             (long long)V);
}

// logp, lse: (T); entropy: (T) or null
inline void lm_head_forward(float* logp, float* lse, float* entropy, const LmHeadInputs& in, LmHeadScratch& scratch,
                            Device dev) {
    NVTX_RANGE("lm_head_forward");
    lm_head_check("lm_head_forward", in);
    if (in.T == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        const int64_t T = in.T, C = in.C, V = in.V;
        int64_t columns = V < LM_HEAD_COLUMNS ? V : LM_HEAD_COLUMNS, max_rows = T < LM_HEAD_ROWS ? T : LM_HEAD_ROWS;
        scratch.logits.reserve(max_rows * columns, "a chunk of logits", "", dev);
        scratch.state.reserve(max_rows, "a chunk of logits", "", dev);
        scratch.target.reserve(max_rows, "a chunk of logits", "", dev);
        const Rows<float> logits = {scratch.logits.data, columns};
        for (int64_t t0 = 0; t0 < T; t0 += LM_HEAD_ROWS) {
            int rows = (int)(T - t0 < LM_HEAD_ROWS ? T - t0 : LM_HEAD_ROWS);
            for (int64_t v0 = 0; v0 < V; v0 += columns) {
                int n = (int)(V - v0 < columns ? V - v0 : columns);
                matmul_nt(logits, {in.hidden + t0 * C, C}, {in.weight + v0 * C, C}, nullptr, rows, n, C, dev);
                LmHeadChunk c = {{logits.p, columns}, n, v0, in.inverse_temperature, is_aligned16(logits)};
                LAUNCH(lm_head_softmax_chunk_kernel, rows, LM_HEAD_BLOCK, 0, dev.stream, scratch.state.data,
                       scratch.target.data, c, in.targets + t0);
            }
            LAUNCH(lm_head_finish_kernel, CEIL_DIV(rows, LM_HEAD_BLOCK), LM_HEAD_BLOCK, 0, dev.stream, logp + t0,
                   lse + t0, entropy ? entropy + t0 : nullptr, scratch.state.data, scratch.target.data, rows,
                   in.inverse_temperature);
        }
        return;
    }
#endif
    (void)dev;
    lm_head_forward_cpu(logp, lse, entropy, in, scratch);
}

// dhidden: (T,C); dweight: (V,C), +=, or null; dlogp: (T); lse and h.entropy: (T) from the forward
inline void lm_head_backward(floatX* dhidden, float* dweight, const float* dlogp, const float* lse,
                             const LmHeadInputs& in, LmHeadScratch& scratch, Device dev,
                             LmHeadEntropy h = LmHeadEntropy()) {
    NVTX_RANGE("lm_head_backward");
    lm_head_check("lm_head_backward", in);
    if (h.dentropy && !h.entropy) fail("lm_head_backward: a gradient of the entropy needs the forward's entropy");
    if (in.T == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        const int64_t T = in.T, C = in.C, V = in.V;
        constexpr int W = Pack128<floatX>::size;
        int64_t columns = V < LM_HEAD_COLUMNS ? V : LM_HEAD_COLUMNS, max_rows = T < LM_HEAD_ROWS ? T : LM_HEAD_ROWS;
        scratch.logits.reserve(max_rows * columns, "a chunk of logits", "", dev);
        scratch.dlogits.reserve(max_rows * columns, "a chunk of logit gradients", "", dev);
        scratch.dhidden.reserve(max_rows * C, "the gradient of the last hidden state", "", dev);
        const Rows<float> logits = {scratch.logits.data, columns}, dh = {scratch.dhidden.data, C};
        floatX* dlogits = scratch.dlogits.data;
        bool aligned = is_aligned16(logits) && is_aligned16(dlogits, columns);
        for (int64_t t0 = 0; t0 < T; t0 += LM_HEAD_ROWS) {
            const floatX* hidden = in.hidden + t0 * C;
            int rows = (int)(T - t0 < LM_HEAD_ROWS ? T - t0 : LM_HEAD_ROWS);
            for (int64_t v0 = 0; v0 < V; v0 += columns) {
                const floatX* weight = in.weight + v0 * C;
                int n = (int)(V - v0 < columns ? V - v0 : columns);
                matmul_nt(logits, {hidden, C}, {weight, C}, nullptr, rows, n, C, dev);
                LmHeadChunk c = {{logits.p, columns}, n, v0, in.inverse_temperature, aligned};
                const dim3 grid(CEIL_DIV(n, LM_HEAD_BLOCK * W), rows);
                if (h.dentropy)
                    LAUNCH((lm_head_dlogits_kernel<true>), grid, LM_HEAD_BLOCK, 0, dev.stream, dlogits, c, dlogp + t0,
                           lse + t0, in.targets + t0, LmHeadEntropy{h.entropy + t0, h.dentropy + t0});
                else
                    LAUNCH((lm_head_dlogits_kernel<false>), grid, LM_HEAD_BLOCK, 0, dev.stream, dlogits, c, dlogp + t0,
                           lse + t0, in.targets + t0, LmHeadEntropy());
                matmul_nn(dh, {dlogits, columns}, {weight, C}, rows, n, C, v0 > 0, dev);
                if (dweight) matmul_tn({dweight + v0 * C, C}, {dlogits, columns}, {hidden, C}, rows, n, C, dev);
            }
            convert_forward(dhidden + t0 * C, dh.p, rows * C, dev);
        }
        return;
    }
#endif
    (void)dev;
    lm_head_backward_cpu(dhidden, dweight, dlogp, lse, in, scratch, h);
}
