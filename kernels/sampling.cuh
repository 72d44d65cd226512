// Sampling one token from a row of logits: temperature, then top-k, then top-p (Holtzman et al. 2020), in the order of
// transformers and vLLM; temperature 0 is greedy (the lowest index among equals).
// One uniform number a token, from a counter (runtime/rng.h), picks by the inverse of the cumulative distribution, so a
// token does not depend on the batch it was drawn in.
// Only the first n_allowed rows of the vocabulary can be drawn: an embedding table is padded (151,936 rows for 151,669
// tokens in Qwen3) and the padding means nothing.
// The log-probability kept for the policy ratio is that of the whole softmax at this temperature, before top-k and
// top-p, which is what the trainer computes.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>
#include "../runtime/math.h"

struct SamplingParams {
    float temperature = 1.0f;  // 0: greedy
    int top_k = 0;             // 0: off
    float top_p = 1.0f;        // 1: off
};

inline int argmax_row(const float* logits, int64_t n) {
    int best = 0;
    for (int64_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = (int)i;
    return best;
}

// u: uniform in [0,1) in steps of 2^-24, taken as the middle of its step: at u = 0 itself the first word of the
// vocabulary would be drawn however improbable it is. scratch is grown as needed.
inline int sample_row(const float* logits,  // [n_allowed]
                      int64_t n_allowed, const SamplingParams& p, float u, std::vector<float>& weights) {
    if (p.temperature == 0.0f) return argmax_row(logits, n_allowed);
    float inverse = 1.0f / p.temperature;
    const double quantile = (double)u + 2.98023223876953125e-8;  // + 2^-25
    float max = logits[0];
    for (int64_t i = 0; i < n_allowed; i++) max = logits[i] > max ? logits[i] : max;

    if ((p.top_k > 0 && p.top_k < n_allowed) || p.top_p < 1.0f) {
        std::vector<int> order(n_allowed);
        for (int64_t i = 0; i < n_allowed; i++) order[i] = (int)i;
        auto before = [&](int a, int b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
        int64_t kept = p.top_k > 0 && p.top_k < n_allowed ? p.top_k : n_allowed;
        std::partial_sort(order.begin(), order.begin() + kept, order.end(), before);
        weights.resize(kept);
        double total = 0.0;
        for (int64_t i = 0; i < kept; i++) total += weights[i] = exp_f((logits[order[i]] - max) * inverse);
        if (p.top_p < 1.0f) {  // the smallest prefix whose probability reaches top_p
            double sum = 0.0;
            int64_t i = 0;
            while (i < kept && sum < (double)p.top_p * total) sum += weights[i++];
            kept = i < 1 ? 1 : i;
            total = sum;
        }
        double target = quantile * total, sum = 0.0;
        for (int64_t i = 0; i < kept; i++)
            if ((sum += weights[i]) > target) return order[i];
        return order[kept - 1];
    }

    const int64_t block = 256;
    int64_t blocks = (n_allowed + block - 1) / block;
    weights.resize(n_allowed);
    std::vector<double> sums(blocks);
    double total = 0.0;
    for (int64_t b = 0; b < blocks; b++) {
        int64_t end = std::min((b + 1) * block, n_allowed);
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = b * block; i < end; i++) {
            weights[i] = exp_f((logits[i] - max) * inverse);
            sum += weights[i];
        }
        total += sums[b] = (double)sum;
    }
    double target = quantile * total, sum = 0.0;
    int64_t b = 0;
    while (b + 1 < blocks && sum + sums[b] <= target) sum += sums[b++];
    int64_t i = b * block, end = std::min(i + block, n_allowed), heaviest = i;
    for (; i < end; i++) {
        if (weights[i] > weights[heaviest]) heaviest = i;
        if ((sum += weights[i]) > target) return (int)i;
    }
    return (int)heaviest;  // rounding left the target just above the block's sum
}
