// LM head, log-softmax, log-probability, entropy and their backward, fused and chunked over the vocabulary.
//   z_v = (hidden . W_v) / temperature          lse = log sum_v exp(z_v)
//   logp = z_y - lse                            entropy = lse - sum_v p_v z_v,  p_v = exp(z_v - lse)
//   backward, given g = dL/dlogp of each token: dz_v = g (1[v = y] - p_v)
//   dhidden = sum_v dz_v W_v / temperature      dW_v += sum_t dz_v hidden_t / temperature
// [T,V] is never stored: at V = 151,936 and T = 4,096 it would be 2.5 GB in fp32. A chunk is LM_HEAD_ROWS x
// LM_HEAD_COLUMNS; the forward keeps a running maximum and sums (Milakov & Gimelshein 2018, online softmax), the
// backward computes each chunk of logits again (one GEMM more, as in Wijmans et al. 2024, Cut Your Losses).
//
// The trap: the sampler needs the same lse to the bit. It holds whole rows of logits, and walks them through the same
// softmax_chunk() in chunks of the same width.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>
#include "../runtime/buffer.h"
#include "../runtime/dtypes.h"
#include "../runtime/math.h"
#include "cpu/gemm.h"

constexpr int64_t LM_HEAD_COLUMNS = 4096, LM_HEAD_ROWS = 1024;

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

inline float softmax_lse(const SoftmaxState& s) { return (float)((double)s.max + log(s.sum)); }
inline float softmax_entropy(const SoftmaxState& s) { return softmax_lse(s) - (float)(s.sum_z / s.sum); }

// whole row at once, in the same chunks as the fused forward
inline SoftmaxState softmax_row(const float* logits, int64_t V, float inverse_temperature) {
    SoftmaxState s;
    for (int64_t v = 0; v < V; v += LM_HEAD_COLUMNS)
        softmax_chunk(s, logits + v, V - v < LM_HEAD_COLUMNS ? V - v : LM_HEAD_COLUMNS, inverse_temperature);
    return s;
}

inline float logit_logp(float logit, float inverse_temperature, float lse) { return logit * inverse_temperature - lse; }

struct LmHeadScratch {
    Buffer<float> logits;    // [LM_HEAD_ROWS, LM_HEAD_COLUMNS] or less
    Buffer<floatX> dlogits;  // the same
    Buffer<float> dhidden;   // [LM_HEAD_ROWS, C]
};

inline void lm_head_forward_cpu(float* logp,           // [T]
                                float* lse,            // [T]
                                float* entropy,        // [T]; may be null
                                const floatX* hidden,  // [T,C]
                                const floatX* weight,  // [V,C]
                                const int* targets,    // [T]
                                int64_t T, int64_t C, int64_t V, float inverse_temperature, LmHeadScratch& scratch) {
    int64_t columns = V < LM_HEAD_COLUMNS ? V : LM_HEAD_COLUMNS;
    int64_t max_rows = T < LM_HEAD_ROWS ? T : LM_HEAD_ROWS;
    scratch.logits.reserve(max_rows * columns, "a chunk of logits");
    float* logits = scratch.logits.data;
    std::vector<SoftmaxState> state(max_rows);
    std::vector<float> target(max_rows);
    for (int64_t t0 = 0; t0 < T; t0 += LM_HEAD_ROWS) {
        int64_t rows = T - t0 < LM_HEAD_ROWS ? T - t0 : LM_HEAD_ROWS;
        for (int64_t i = 0; i < rows; i++) state[i] = SoftmaxState();
        for (int64_t v0 = 0; v0 < V; v0 += columns) {
            int64_t n = V - v0 < columns ? V - v0 : columns;
            gemm_nt(logits, hidden + t0 * C, weight + v0 * C, nullptr, rows, n, C, false, columns);
#pragma omp parallel for schedule(static)
            for (int64_t i = 0; i < rows; i++) {
                softmax_chunk(state[i], logits + i * columns, n, inverse_temperature);
                int64_t y = targets[t0 + i] - v0;
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

inline void lm_head_backward_cpu(floatX* dhidden,       // [T,C]
                                 float* dweight,        // [V,C] +=
                                 const float* dlogp,    // [T] dL/dlogp
                                 const floatX* hidden,  // [T,C]
                                 const floatX* weight,  // [V,C]
                                 const int* targets,    // [T]
                                 const float* lse,      // [T] from the forward
                                 int64_t T, int64_t C, int64_t V, float inverse_temperature, LmHeadScratch& scratch) {
    int64_t columns = V < LM_HEAD_COLUMNS ? V : LM_HEAD_COLUMNS;
    int64_t max_rows = T < LM_HEAD_ROWS ? T : LM_HEAD_ROWS;
    scratch.logits.reserve(max_rows * columns, "a chunk of logits");
    scratch.dlogits.reserve(max_rows * columns, "a chunk of logit gradients");
    scratch.dhidden.reserve(max_rows * C, "the gradient of the last hidden state");
    float *logits = scratch.logits.data, *dh = scratch.dhidden.data;
    floatX* dlogits = scratch.dlogits.data;
    for (int64_t t0 = 0; t0 < T; t0 += LM_HEAD_ROWS) {
        int64_t rows = T - t0 < LM_HEAD_ROWS ? T - t0 : LM_HEAD_ROWS;
        memset(dh, 0, rows * C * sizeof(float));
        for (int64_t v0 = 0; v0 < V; v0 += columns) {
            int64_t n = V - v0 < columns ? V - v0 : columns;
            gemm_nt(logits, hidden + t0 * C, weight + v0 * C, nullptr, rows, n, C, false, columns);
#pragma omp parallel for schedule(static)
            for (int64_t i = 0; i < rows; i++) {
                const float* z = logits + i * columns;
                floatX* dz = dlogits + i * columns;
                float g = dlogp[t0 + i] * inverse_temperature, row_lse = lse[t0 + i];
                INDEPENDENT
                for (int64_t v = 0; v < n; v++) dz[v] = -g * exp_f(z[v] * inverse_temperature - row_lse);
                int64_t y = targets[t0 + i] - v0;
                if (y >= 0 && y < n) dz[y] = g * (1.0f - exp_f(z[y] * inverse_temperature - row_lse));
            }
            gemm_nn(dh, dlogits, weight + v0 * C, rows, n, C, true, C, columns);
            gemm_tn(dweight + v0 * C, dlogits, hidden + t0 * C, rows, n, C, C, columns);
        }
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < rows * C; i++) dhidden[t0 * C + i] = dh[i];
    }
}
