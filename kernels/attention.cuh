// Causal grouped-query attention over packed sequences and over a KV cache, one arithmetic for both.
//   forward   s_j = scale q.k_j,  p = softmax(s),  out = sum_j p_j v_j,  lse = log sum_j exp(s_j),  scale = 1/sqrt(HD)
//   backward  p_j = exp(s_j - lse),  D = dout.out,  ds_j = p_j (dout.v_j - D) scale
//             dq = sum_j ds_j k_j,   dk_j += ds_j q,   dv_j += p_j dout            (Dao 2022, FlashAttention, eq. 3-4)
// Query head h reads key/value head h / (NH/NKV). No [T,T] is stored: the backward recomputes p from lse. All gradients
// are of activations: they assign.
//
// The trap: the sampler decodes one token at a time over a cache and the trainer runs whole sequences, yet a token's
// output must have the same bits in both, or the GRPO ratio at step 0 is not 1. So every query, wherever it comes from,
// goes through the same sums over its keys in order; where the keys lie (packed batch, shared prompt, own cache) is
// told by a KeyRange and cannot change that order.
//   CPU: attention_row() takes each key in turn.
//   CUDA: blocks of 64 keys (32 in fp32) and chunks of 256, both counted from the sequence's first key. Online softmax
//   over the blocks of a chunk, then the chunks are merged in order, by the same functions in both kernels: decode
//   gives each chunk to a warp of its own and merges from memory, the other goes on to the next chunk and merges in
//   registers. The row of a tensor-core product depends on that row of the left operand alone, so it does not matter
//   which row of a tile a query is. Another size of block or chunk, a multiplication and an addition that the compiler
//   may contract in one place and not in the other, or a row skipping a block that another needs would break this.
// Devices differ from each other: the CPU keeps p in fp32, CUDA rounds it to bf16 for the product with v.
//
// Traffic in bytes for bf16, HD wide; a row is a token. Least, each input once: forward 4 HD (NH + NKV) a row, backward
// 8 HD (NH + NKV), decode 4 HD NKV a key (once for the whole group of heads). Moved: decode the same and, a chunk of
// 256 keys, 8 NH (HD + 2) for the partial results (1.6 % at 2 heads a group, 6 % at 8). Forward reads keys and values
// again for each head and each 128 queries, from the L2 for sequences of some thousands: 64 multiply-adds a byte. The
// backward does so for each 64 of its own rows, twice.
// Launch. Forward: 8 warps of 16 queries of one head, longest work first; keys and values come alternately through a
// ring of 3 tiles, two of them on the way. Decode: one warp a row, key/value head and chunk, whose 16 rows are the
// heads of the group, so that a few rows with long caches fill a GPU, and many rows too. Backward: 4 warps of 16 rows.
// Shared memory in KB, HD 64 and 128: forward 45 and 85, decode 29 and 55, backward 55 and 69.
#pragma once
#include <cstdint>
#include <vector>
#include "../runtime/device.h"
#include "../runtime/math.h"
#include "attention_rows.h"
#include "cpu/attention.h"
#include "kv_quant.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

// scores [n] = scale * q.k_j
__attribute__((noinline)) inline void attention_scores(float* scores, const float* q, const floatX* k, int64_t stride,
                                                       int n, int HD, float scale) {
    for (int j = 0; j < n; j++) {
        const floatX* row = k + (int64_t)j * stride;
        float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
        for (int d = 0; d < HD; d++) dot += q[d] * (float)row[d];
        scores[j] = dot * scale;
    }
}

// acc [HD] += sum_j p_j v_j
__attribute__((noinline)) inline void attention_values(float* acc, const float* p, const floatX* v, int64_t stride,
                                                       int n, int HD) {
    for (int j = 0; j < n; j++) {
        const floatX* row = v + (int64_t)j * stride;
        float w = p[j];
#pragma omp simd
        for (int d = 0; d < HD; d++) acc[d] += w * (float)row[d];
    }
}

// scores -> exp(scores - max) in place; returns the log of the sum and its inverse
__attribute__((noinline)) inline float attention_softmax(float* scores, int n, float* inverse_sum) {
    float max = scores[0];
#pragma omp simd reduction(max : max)
    for (int j = 0; j < n; j++) max = scores[j] > max ? scores[j] : max;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < n; j++) {
        scores[j] = exp_f(scores[j] - max);
        sum += scores[j];
    }
    *inverse_sum = 1.0f / sum;
    return max + logf(sum);
}

// one query of one head; scratch holds n0 + n1 scores and 2 HD floats. Without keys: zeros.
inline float attention_row(floatX* out, const floatX* q, KeyValueRows a, KeyValueRows b, KeyRange r, int kv_head,
                           int HD, float scale, std::vector<float>& scratch) {
    int n = r.n0 + r.n1;
    if (n == 0) {
        for (int d = 0; d < HD; d++) out[d] = 0.0f;
        return 0.0f;
    }
    if ((int)scratch.size() < n + 2 * HD) scratch.resize(n + n / 2 + 2 * HD);
    float *query = scratch.data(), *acc = query + HD, *scores = acc + HD;
    for (int d = 0; d < HD; d++) query[d] = (float)q[d], acc[d] = 0.0f;
    int64_t head = (int64_t)kv_head * HD;
    const floatX *k0 = a.k + r.row0 * a.k_stride + head, *v0 = a.v + r.row0 * a.v_stride + head;
    attention_scores(scores, query, k0, a.k_stride, r.n0, HD, scale);
    if (r.n1) attention_scores(scores + r.n0, query, b.k + r.row1 * b.k_stride + head, b.k_stride, r.n1, HD, scale);
    float inverse_sum, lse = attention_softmax(scores, n, &inverse_sum);
    attention_values(acc, scores, v0, a.v_stride, r.n0, HD);
    if (r.n1) attention_values(acc, scores + r.n0, b.v + r.row1 * b.v_stride + head, b.v_stride, r.n1, HD);
    for (int d = 0; d < HD; d++) out[d] = acc[d] * inverse_sum;
    return lse;
}

inline void attention_forward_cpu(floatX* out,           // [T, NH*HD]
                                  float* lse,            // [T, NH]
                                  Rows<const floatX> q,  // [T, NH*HD]
                                  KeyValueRows place0, KeyValueRows place1,
                                  const KeyRange* range,  // [T]
                                  AttentionShape shape) {
    const int NH = shape.NH, NKV = shape.NKV, HD = shape.HD, group = shape.group();
    const int64_t T = shape.T;
    float scale = 1.0f / sqrtf((float)HD);
#pragma omp parallel
    {
        std::vector<float> scratch;
        // long and short rows alternate, so hand them out in small pieces; the order of the pieces changes nothing
#pragma omp for schedule(dynamic, 8)
        for (int64_t i = 0; i < T * NKV; i++) {
            int64_t t = i / NKV;
            int kv_head = (int)(i % NKV);
            for (int h = kv_head * group; h < (kv_head + 1) * group; h++)
                lse[t * NH + h] = attention_row(out + t * NH * HD + (int64_t)h * HD, q.row(t) + (int64_t)h * HD, place0,
                                                place1, range[t], kv_head, HD, scale, scratch);
        }
    }
}

// What one task of the backward works on: one key/value head of one family of n tokens, and one query at a time
struct AttentionBackwardTask {
    int64_t n;
    int HD;
    float *K, *dK, *dV;  // [n,HD]
    // keys and values also transposed: the sums over d then run over all keys at once, without a horizontal add
    float *K_t, *V_t;    // [HD,n]
    float *Q, *dO, *dQ;  // [HD] of the query
    float *P, *dP;       // [n]
};

inline AttentionBackwardTask attention_backward_task(std::vector<float>& scratch, int64_t n, int HD) {
    scratch.assign((size_t)(6 * n * HD + 3 * HD + 2 * n), 0.0f);
    float *K = scratch.data(), *K_t = K + 3 * n * HD, *Q = K_t + 2 * n * HD, *P = Q + 3 * HD;
    return {n, HD, K, K + n * HD, K + 2 * n * HD, K_t, K_t + n * HD, Q, Q + HD, Q + 2 * HD, P, P + n};
}

// dQ, dK and dV += of the query in Q and the keys `first` ... first + keys - 1, all of which it sees; dO: the gradient
// of its output; D = dout.out
inline void attention_backward_row(const AttentionBackwardTask& x, int64_t first, int64_t keys, float D, float row_lse,
                                   float scale) {
    const int HD = x.HD;
    const float *K = x.K + first * HD, *Q = x.Q, *dO = x.dO;
    float *dK = x.dK + first * HD, *dV = x.dV + first * HD, *dQ = x.dQ, *P = x.P, *dP = x.dP;
    for (int64_t j = 0; j < keys; j++) P[j] = dP[j] = 0.0f;
    for (int d = 0; d < HD; d++) {
        float q = Q[d], go = dO[d];
        const float *k = x.K_t + d * x.n + first, *v = x.V_t + d * x.n + first;
#pragma omp simd
        for (int64_t j = 0; j < keys; j++) {
            P[j] += q * k[j];
            dP[j] += go * v[j];
        }
    }
#pragma omp simd
    for (int64_t j = 0; j < keys; j++) {
        P[j] = exp_f(P[j] * scale - row_lse);
        dP[j] = P[j] * (dP[j] - D) * scale;
    }
    for (int64_t j = 0; j < keys; j++) {
        float p = P[j], ds = dP[j];
#pragma omp simd
        for (int d = 0; d < HD; d++) {
            dQ[d] += ds * K[j * HD + d];
            dK[j * HD + d] += ds * Q[d];
            dV[j * HD + d] += p * dO[d];
        }
    }
}

// Backward over packed sequences. One task owns one key/value head of one family, query after query, so dk and dv need
// no atomics and the result does not depend on the number of threads.
inline void attention_backward_cpu(AttentionGradients d,
                                   const floatX* dout,    // [T, NH*HD]
                                   const floatX* out,     // [T, NH*HD]
                                   const float* lse,      // [T, NH]
                                   Rows<const floatX> q,  // [T, NH*HD]
                                   KeyValueRows kv, PackedSequences sequences, AttentionShape shape) {
    const int NH = shape.NH, NKV = shape.NKV, HD = shape.HD, group = shape.group();
    float scale = 1.0f / sqrtf((float)HD);
#pragma omp parallel
    {
        std::vector<float> scratch;
#pragma omp for schedule(dynamic, 1)
        for (int task = 0; task < sequences.count * NKV; task++) {
            int parent = task / NKV, kv_head = task % NKV;
            if (sequences.prefix && sequences.prefix[parent] > 0) continue;
            const int end = attention_family_end(sequences.prefix, sequences.count, parent);
            const int64_t start = sequences.starts[parent], n = sequences.starts[end] - start;
            const int64_t head = (int64_t)kv_head * HD;
            AttentionBackwardTask x = attention_backward_task(scratch, n, HD);
            for (int64_t j = 0; j < n; j++)
                for (int i = 0; i < HD; i++) {
                    x.K[j * HD + i] = x.K_t[i * n + j] = (float)kv.k[(start + j) * kv.k_stride + head + i];
                    x.V_t[i * n + j] = (float)kv.v[(start + j) * kv.v_stride + head + i];
                }
            for (int s = parent; s < end; s++)
                for (int64_t t = sequences.starts[s]; t < sequences.starts[s + 1]; t++)
                    for (int h = kv_head * group; h < (kv_head + 1) * group; h++) {
                        const floatX* o = out + (t * NH + h) * HD;
                        const floatX* go = dout + (t * NH + h) * HD;
                        const floatX* qrow = q.row(t) + (int64_t)h * HD;
                        float D = 0.0f, row_lse = lse[t * NH + h];
                        for (int i = 0; i < HD; i++) {
                            x.Q[i] = (float)qrow[i];
                            x.dO[i] = (float)go[i];
                            x.dQ[i] = 0.0f;
                            D += x.dO[i] * (float)o[i];
                        }
                        const int64_t own = sequences.starts[s];
                        if (s > parent) attention_backward_row(x, 0, sequences.prefix[s], D, row_lse, scale);
                        attention_backward_row(x, own - start, t - own + 1, D, row_lse, scale);
                        for (int i = 0; i < HD; i++) d.dq.row(t)[(int64_t)h * HD + i] = x.dQ[i];
                    }
            for (int64_t j = 0; j < n; j++)
                for (int i = 0; i < HD; i++) {
                    d.dk.row(start + j)[head + i] = x.dK[j * HD + i];
                    d.dv.row(start + j)[head + i] = x.dV[j * HD + i];
                }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
// A sequence by positions: 0 ... prefix - 1 are its parent's rows, prefix ... n - 1 its own
struct AttentionSequence {
    int64_t prefix_start;
    int64_t own;  // row of position p >= prefix: own + p
    int prefix, n;
    __device__ int64_t row(int p) const { return p < prefix ? prefix_start + p : own + p; }
};

__device__ inline AttentionSequence attention_sequence(const PackedSequences& x, int s) {
    const int prefix = x.prefix ? x.prefix[s] : 0;
    const int64_t own = (int64_t)x.starts[s] - prefix;  // not below 0: the parent stands before
    return {prefix ? x.prefix_start[s] : 0, own, prefix, x.starts[s + 1] - (int)own};
}

#include "attention_backward.cuh"
#include "attention_forward.cuh"
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

inline void attention_check(const char* name, AttentionShape s, Device dev) {
    if (s.T < 0 || s.NH < 1 || s.NKV < 1 || s.NH % s.NKV != 0 || s.HD < 1)
        fail("%s: bad shape: T %lld, NH %d, NKV %d (a divisor of NH), HD %d", name, (long long)s.T, s.NH, s.NKV, s.HD);
    if (dev.cuda && (s.HD > 128 || s.HD % 2 != 0))
        fail("%s: head_dim %d: the CUDA kernels take even numbers up to 128; use --device cpu", name, s.HD);
}

#if HAS_KERNELS
inline unsigned attention_grid(const char* name, int64_t blocks, const char* hint) {
    if (blocks > INT32_MAX) fail("%s: %lld blocks of threads are too many; %s", name, (long long)blocks, hint);
    return (unsigned)blocks;
}

// launch(Int<HDP>()) with the width that heads of HD elements are padded to
template <class Launch>
inline void attention_launch(int HD, Launch launch) {
    if (HD <= 16) launch(Int<16>());
    else if (HD <= 32) launch(Int<32>());
    else if (HD <= 64) launch(Int<64>());
    else launch(Int<128>());
}

inline bool attention_aligned(KeyValueRows kv) {
    return is_aligned16(kv.k, kv.k_stride) && is_aligned16(kv.v, kv.v_stride);
}
#endif

// Whole sequences. out: [T,NH*HD]; lse: [T,NH]; q: [T,NH*HD]; kv: [T,NKV*HD]. All pointers are the device's.
inline void attention_forward(floatX* out, float* lse, Rows<const floatX> q, KeyValueRows kv, PackedSequences sequences,
                              AttentionShape shape, Device dev) {
    NVTX_RANGE("attention_forward");
    attention_check("attention_forward", shape, dev);
    if (shape.T == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        const int before = sequences.prefix ? 15 : 0;  // rows of a tile, at most, before the first after a prefix
        int tiles = CEIL_DIV(sequences.max_length + before, ATTENTION_FORWARD_WARPS * 16);
        unsigned grid = attention_grid("attention_forward", (int64_t)sequences.count * shape.NH * tiles,
                                       "lower --micro_batch_tokens or --rollout_batch");
        bool aligned =
            shape.HD % Pack128<floatX>::size == 0 && is_aligned16(out, 0) && is_aligned16(q) && attention_aligned(kv);
        if (grid == 0) return;
        attention_launch(shape.HD, [&](auto width) {
            constexpr int HDP = decltype(width)::value;
            LAUNCH((attention_forward_kernel<HDP>), grid, ATTENTION_FORWARD_WARPS * 32,
                   attention_forward_shared_bytes<HDP>(ATTENTION_FORWARD_WARPS), dev.stream, out, lse, q, kv, sequences,
                   tiles, shape, 1.0f / sqrtf((float)shape.HD), aligned);
        });
        return;
    }
#endif
    (void)dev;
    attention_forward_tiled(out, lse, q, kv, kv, sequences.ranges, shape);
}

#if HAS_KERNELS
inline int attention_chunks(int max_keys) {
    return max_keys > ATTENTION_CHUNK ? CEIL_DIV(max_keys, ATTENTION_CHUNK) : 1;
}

// floats that attention_decode takes of the scratch: what each chunk of each head leaves to be merged
inline size_t attention_decode_scratch(int64_t T, int max_keys, int NH, int HD) {
    return (size_t)T * NH * attention_chunks(max_keys) * (HD + 2);
}
#endif

#if HAS_KERNELS
// place0, place1: KeyValueRows, or KeyValueCodes
template <class Place>
inline void attention_decode_launch(floatX* out, float* lse, Rows<const floatX> q, const Place& place0,
                                    const Place& place1, bool aligned, KeyRanges ranges, AttentionShape shape,
                                    Device dev) {
    const int NH = shape.NH, HD = shape.HD, chunks = attention_chunks(ranges.max_keys);
    const int64_t T = shape.T;
    const char* hint = "lower --rollout_batch";
    unsigned grid = attention_grid("attention_decode", T * shape.NKV * CEIL_DIV(shape.group(), 16) * chunks, hint);
    unsigned merge_grid = attention_grid("attention_decode", CEIL_DIV(T * NH, ATTENTION_MERGE_WARPS), hint);
    aligned = aligned && HD % Pack128<floatX>::size == 0 && is_aligned16(q);
    float scale = 1.0f / sqrtf((float)HD);
    Scratch partial(attention_decode_scratch(T, ranges.max_keys, NH, HD), dev);
    attention_launch(HD, [&](auto width) {
        constexpr int HDP = decltype(width)::value;
        LAUNCH((attention_decode_kernel<HDP, Place>), grid, 32, attention_forward_shared_bytes<HDP>(1), dev.stream,
               partial.data, q, place0, place1, ranges.p, chunks, shape, scale, aligned);
    });
    LAUNCH(attention_decode_merge_kernel, merge_grid, ATTENTION_MERGE_WARPS * 32, 0, dev.stream, out, lse, partial.data,
           ranges.p, chunks, T * NH, NH, HD, scale);
}
#endif

// One query a row over the cache. A row whose range is empty (an unused slot of a captured graph) gets zeros. out:
// [T,NH*HD]; lse: [T,NH]; q: [T,NH*HD]; place0, place1: [rows,NKV*HD]. ranges.max_keys fixes the grid, so that a
// captured launch may be replayed with other ranges; a row with more keys (beyond the last chunk of 256 begun) gets
// NaN.
inline void attention_decode(floatX* out, float* lse, Rows<const floatX> q, KeyValueRows place0, KeyValueRows place1,
                             KeyRanges ranges, AttentionShape shape, Device dev) {
    NVTX_RANGE("attention_decode");
    attention_check("attention_decode", shape, dev);
    if (shape.T == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        bool aligned = attention_aligned(place0) && attention_aligned(place1);
        attention_decode_launch(out, lse, q, place0, place1, aligned, ranges, shape, dev);
        return;
    }
#endif
    (void)dev;
    attention_forward_tiled(out, lse, q, place0, place1, ranges.p, shape);
}

// The same over a cache of codes (kv_quant.cuh); both places have one quantizer, which tells NKV and HD, and one
// rotation. The result has the bits of attention_decode over the values that the codes stand for.
inline void attention_decode_codes(floatX* out, float* lse, Rows<const floatX> q, const KeyValueCodes& place0,
                                   const KeyValueCodes& place1, KeyRanges ranges, int64_t T, int NH, Device dev) {
    NVTX_RANGE("attention_decode");
    AttentionShape shape = {T, NH, place0.quant.NKV, place0.quant.HD};
    attention_check("attention_decode", shape, dev);
    if (T == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        attention_decode_launch(out, lse, q, place0, place1, true, ranges, shape, dev);
        return;
    }
#endif
    (void)dev;
    attention_decode_codes_tiled(out, lse, q, place0, place1, ranges.p, shape);
}

// Whole sequences. d: assigned; dout, out: [T,NH*HD]; lse: [T,NH]; the others as in attention_forward.
inline void attention_backward(AttentionGradients d, const floatX* dout, const floatX* out, const float* lse,
                               Rows<const floatX> q, KeyValueRows kv, PackedSequences sequences, AttentionShape shape,
                               Device dev) {
    NVTX_RANGE("attention_backward");
    attention_check("attention_backward", shape, dev);
    if (shape.T == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        const int NH = shape.NH, HD = shape.HD, tiles = CEIL_DIV(sequences.max_length, ATTENTION_OWN);
        const int64_t rows = shape.T * NH;
        const char* hint = "lower --micro_batch_tokens";
        unsigned grid = attention_grid("attention_backward", (int64_t)sequences.count * NH * tiles, hint);
        bool aligned = HD % Pack128<floatX>::size == 0 && is_aligned16(d.dq) && is_aligned16(d.dk) &&
                       is_aligned16(d.dv) && is_aligned16(dout, 0) && is_aligned16(out, 0) && is_aligned16(q) &&
                       attention_aligned(kv);
        if (grid == 0) return;
        Scratch D((size_t)rows, dev);
        LAUNCH(attention_dot_kernel, attention_grid("attention_backward", CEIL_DIV(rows, 32), hint), 256, 0, dev.stream,
               D.data, dout, out, rows, HD, aligned);
        AttentionBackwardInputs in = {{dout, (int64_t)NH * HD}, lse,    D.data, q, kv, sequences, tiles, shape,
                                      1.0f / sqrtf((float)HD),  aligned};
        attention_launch(HD, [&](auto width) {
            constexpr int HDP = decltype(width)::value, threads = ATTENTION_BACKWARD_WARPS * 32;
            constexpr int shared = attention_backward_shared_bytes<HDP>();
            LAUNCH((attention_dkv_kernel<HDP>), grid / NH * shape.NKV, threads, shared, dev.stream, d.dk, d.dv, in);
            LAUNCH((attention_dq_kernel<HDP>), grid, threads, shared, dev.stream, d.dq, in);
        });
        return;
    }
#endif
    (void)dev;
    attention_backward_tiled(d, dout, out, lse, q, kv, sequences, shape);
}
