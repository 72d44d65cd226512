// Causal grouped-query attention over packed sequences and over a KV cache, one arithmetic for both.
//   forward   s_j = scale q.k_j,  p = softmax(s),  out = sum_j p_j v_j,  lse = log sum_j exp(s_j),  scale = 1/sqrt(HD)
//   backward  p_j = exp(s_j - lse),  D = dout.out,  ds_j = p_j (dout.v_j - D) scale
//             dq = sum_j ds_j k_j,   dk_j += ds_j q,   dv_j += p_j dout            (Dao 2022, FlashAttention, eq. 3-4)
// Query head h reads key/value head h / (NH/NKV). No [T,T] is stored: the backward recomputes p from lse.
//
// The trap: the sampler decodes one token at a time over a cache and the trainer runs whole sequences, yet a token's
// output must have the same bits in both, or the GRPO ratio at step 0 is not 1. So every query, wherever it comes from,
// goes through attention_row(), which takes each key in turn; where the keys lie (packed batch, shared prompt, own
// cache) is told by a KeyRange and cannot change the order of the sums.
#pragma once
#include <cstdint>
#include <vector>
#include "../runtime/dtypes.h"
#include "../runtime/math.h"

// Keys and values as rows of two places: [rows, NKV*HD] each
struct KeyValueRows {
    const floatX* k = nullptr;
    const floatX* v = nullptr;
    int64_t k_stride = 0, v_stride = 0;  // elements from one row to the next
};

// What one query sees: n0 rows from row0 of place 0 (packed batch or shared prompt), then n1 rows of place 1 (own
// cache)
struct KeyRange {
    int64_t row0 = 0, row1 = 0;
    int n0 = 0, n1 = 0;
};

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

// one query of one head; scratch holds n0 + n1 scores and 2 HD floats
inline float attention_row(floatX* out, const floatX* q, KeyValueRows a, KeyValueRows b, KeyRange r, int kv_head,
                           int HD, float scale, std::vector<float>& scratch) {
    int n = r.n0 + r.n1;
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

inline void attention_forward_cpu(floatX* out,      // [T, NH*HD]
                                  float* lse,       // [T, NH]
                                  const floatX* q,  // [T, NH*HD] at q_stride elements a token
                                  int64_t q_stride, KeyValueRows place0, KeyValueRows place1,
                                  const KeyRange* range,  // [T]
                                  int64_t T, int NH, int NKV, int HD) {
    float scale = 1.0f / sqrtf((float)HD);
    int group = NH / NKV;
#pragma omp parallel
    {
        std::vector<float> scratch;
        // long and short rows alternate, so hand them out in small pieces; the order of the pieces changes nothing
#pragma omp for schedule(dynamic, 8)
        for (int64_t i = 0; i < T * NKV; i++) {
            int64_t t = i / NKV;
            int kv_head = (int)(i % NKV);
            for (int h = kv_head * group; h < (kv_head + 1) * group; h++)
                lse[t * NH + h] = attention_row(out + t * NH * HD + (int64_t)h * HD, q + t * q_stride + (int64_t)h * HD,
                                                place0, place1, range[t], kv_head, HD, scale, scratch);
        }
    }
}

// Backward over packed sequences; sequence s is rows [starts[s], starts[s+1]). One task owns one key/value head of one
// sequence, so dk and dv need no atomics and the result does not depend on the number of threads.
inline void attention_backward_cpu(floatX* dq, int64_t dq_stride,       // [T, NH*HD]
                                   floatX* dk, int64_t dk_stride,       // [T, NKV*HD]
                                   floatX* dv, int64_t dv_stride,       // [T, NKV*HD]
                                   const floatX* dout,                  // [T, NH*HD]
                                   const floatX* out,                   // [T, NH*HD]
                                   const float* lse,                    // [T, NH]
                                   const floatX* q, int64_t q_stride,   // [T, NH*HD]
                                   KeyValueRows kv, const int* starts,  // [sequences+1]
                                   int sequences, int NH, int NKV, int HD) {
    float scale = 1.0f / sqrtf((float)HD);
    int group = NH / NKV;
#pragma omp parallel
    {
        std::vector<float> scratch;
#pragma omp for schedule(dynamic, 1)
        for (int task = 0; task < sequences * NKV; task++) {
            int s = task / NKV, kv_head = task % NKV;
            int64_t start = starts[s], n = starts[s + 1] - start, head = (int64_t)kv_head * HD;
            scratch.assign((size_t)(6 * n * HD + 3 * HD + 2 * n), 0.0f);
            // keys and values also transposed: the sums over d then run over all keys at once, without a horizontal add
            float *K = scratch.data(), *dK = K + n * HD, *dV = dK + n * HD;  // [n,HD] each
            float *K_t = dV + n * HD, *V_t = K_t + n * HD;                   // [HD,n] each
            float *Q = V_t + n * HD, *dO = Q + HD, *dQ = dO + HD, *P = dQ + HD, *dP = P + n;
            for (int64_t j = 0; j < n; j++)
                for (int d = 0; d < HD; d++) {
                    K[j * HD + d] = K_t[d * n + j] = (float)kv.k[(start + j) * kv.k_stride + head + d];
                    V_t[d * n + j] = (float)kv.v[(start + j) * kv.v_stride + head + d];
                }
            for (int64_t i = 0; i < n; i++)
                for (int h = kv_head * group; h < (kv_head + 1) * group; h++) {
                    int64_t t = start + i, keys = i + 1;
                    const floatX* o = out + t * NH * HD + (int64_t)h * HD;
                    const floatX* go = dout + t * NH * HD + (int64_t)h * HD;
                    const floatX* qrow = q + t * q_stride + (int64_t)h * HD;
                    float D = 0.0f, row_lse = lse[t * NH + h];
                    for (int d = 0; d < HD; d++) {
                        Q[d] = (float)qrow[d];
                        dO[d] = (float)go[d];
                        dQ[d] = 0.0f;
                        D += dO[d] * (float)o[d];
                    }
                    for (int64_t j = 0; j < keys; j++) P[j] = dP[j] = 0.0f;
                    for (int d = 0; d < HD; d++) {
                        float x = Q[d], y = dO[d];
                        const float *k = K_t + d * n, *v = V_t + d * n;
#pragma omp simd
                        for (int64_t j = 0; j < keys; j++) {
                            P[j] += x * k[j];
                            dP[j] += y * v[j];
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
                    for (int d = 0; d < HD; d++) dq[t * dq_stride + (int64_t)h * HD + d] = dQ[d];
                }
            for (int64_t j = 0; j < n; j++)
                for (int d = 0; d < HD; d++) {
                    dk[(start + j) * dk_stride + head + d] = dK[j * HD + d];
                    dv[(start + j) * dv_stride + head + d] = dV[j * HD + d];
                }
        }
    }
}
