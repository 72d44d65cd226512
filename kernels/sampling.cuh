// Sampling one token from a row of logits: the repetition penalty (seen_tokens.cuh), temperature, top-k, top-p (Holtzman
// et al. 2020), then min-p (Nguyen et al. 2024: no word below min_p times the likeliest), in the order of transformers;
// temperature 0 is greedy (the lowest index among equals).
// One uniform number a token, from a counter (runtime/rng.h), picks by the inverse of the cumulative distribution, so a
// token does not depend on the batch it was drawn in. With `gumbel` the token is instead the largest logit / T + g_v
// among those kept (Gumbel 1954; Maddison et al. 2014), g_v = -log(-log(u_v)), one number for each word.
// Only the first n_allowed rows of the vocabulary can be drawn: an embedding table is padded (151,936 rows for 151,669
// tokens in Qwen3) and the padding means nothing.
// The log-probability kept for the policy ratio is that of the whole softmax at this temperature, without penalty and
// before top-k, top-p and min-p, which is what the trainer computes.
//
// Keys. A draw is (seed, stream) of the rollout and (step, sample, token) of the row, sample = prompt * G + sample. The
// uniform number is word 0 of Philox at counter (step, sample, token, stream). Gumbel noise of words 4q ... 4q + 3 are
// the four words at counter (step, sample, token, stream + 256 (q + 1)): streams are below 256, so none is used twice.
//
// The kernels are in sampling_kernels.cuh, the numbers drawn in draw.cuh.
//
// The trap: the CPU adds masses in floating point, the device in fixed point. Both draw the same token unless the
// uniform number lies within about 1e-6 of a boundary between two words. Greedy and gumbel agree bit for bit (where the
// host has FMA; where it has not, mul_add rounds twice).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>
#include "draw.cuh"
#include "lm_head.cuh"
#include "sampling_kernels.cuh"
#include "../runtime/parallel.h"

struct SamplingParams {
    float temperature = 1.0f;         // 0: greedy
    int top_k = 0;                    // 0: off
    float top_p = 1.0f;               // 1: off
    bool gumbel = false;              // draw by Gumbel noise instead of the inverse of the cumulative distribution
    float min_p = 0.0f;               // 0: off
    float repetition_penalty = 1.0f;  // 1: off
};

inline bool same_sampling(const SamplingParams& a, const SamplingParams& b) {
    return a.temperature == b.temperature && a.top_k == b.top_k && a.top_p == b.top_p && a.gumbel == b.gumbel &&
           a.min_p == b.min_p && a.repetition_penalty == b.repetition_penalty;
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

inline int argmax_row(const float* logits, int64_t n) {
    int best = 0;
    for (int64_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = (int)i;
    return best;
}

inline bool sampling_is_masked(const SamplingParams& p, int64_t n_allowed) {
    return (p.top_k > 0 && p.top_k < n_allowed) || p.top_p < 1.0f || p.min_p > 0.0f;
}

inline bool sampling_penalizes(const SamplingParams& p) { return p.repetition_penalty != 1.0f; }

inline float sampling_log_min_p(const SamplingParams& p) { return p.min_p > 0.0f ? logf(p.min_p) : -INFINITY; }

// The words that top-k, top-p and min-p leave, by falling logit, and how many; their weights, and the sum of those. Words
// that min-p leaves out are not sorted, unless top-k has to count them.
inline int64_t kept_words(std::vector<int>& order, std::vector<float>& weights, double* total_weight,
                          const float* logits,  // [n_allowed]
                          int64_t n_allowed, const SamplingParams& p, float max) {
    const float inverse = 1.0f / p.temperature, log_min_p = sampling_log_min_p(p);
    const bool top_k = p.top_k > 0 && p.top_k < n_allowed;
    const bool min_p = p.min_p > 0.0f;
    auto weight = [&](int64_t v) { return exp_f((logits[v] - max) * inverse); };
    auto stays = [&](int64_t v) { return sample_min_p_keeps(logits[v], max, inverse, log_min_p); };
    order.clear();
    order.reserve(n_allowed);
    for (int64_t v = 0; v < n_allowed; v++)
        if (top_k || !min_p || stays(v)) order.push_back((int)v);
    auto before = [&](int a, int b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
    int64_t kept = top_k ? p.top_k : (int64_t)order.size();
    std::partial_sort(order.begin(), order.begin() + kept, order.end(), before);
    weights.resize(kept);
    double total = 0.0;
    for (int64_t i = 0; i < kept; i++) total += weights[i] = weight(order[i]);
    if (p.top_p < 1.0f) {  // the smallest prefix whose probability reaches top_p
        double all = total, sum = 0.0;
        if (min_p && !top_k) {
            all = 0.0;
            for (int64_t v = 0; v < n_allowed; v++) all += weight(v);
        }
        int64_t i = 0;
        while (i < kept && sum < (double)p.top_p * all) sum += weights[i++];
        kept = i < 1 ? 1 : i;
        total = sum;
    }
    if (min_p && top_k) {
        int64_t i = 1;
        for (total = weights[0]; i < kept && stays(order[i]); i++) total += weights[i];
        kept = i;
    }
    *total_weight = total;
    return kept;
}

// u: uniform in [0,1) in steps of 2^-24, taken as the middle of its step: at u = 0 itself the first word of the
// vocabulary would be drawn however improbable it is. scratch is grown as needed.
inline int sample_row(const float* logits,  // [n_allowed]
                      int64_t n_allowed, const SamplingParams& p, float u, std::vector<float>& weights) {
    if (p.temperature == 0.0f) return argmax_row(logits, n_allowed);
    float inverse = 1.0f / p.temperature;
    const double quantile = draw_quantile(u);  // u + 2^-25
    float max = logits[0];
    for (int64_t i = 0; i < n_allowed; i++) max = logits[i] > max ? logits[i] : max;

    if (sampling_is_masked(p, n_allowed)) {
        std::vector<int> order;
        double total = 0.0, sum = 0.0;
        int64_t kept = kept_words(order, weights, &total, logits, n_allowed, p, max);
        double target = quantile * total;
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

// The same by Gumbel noise
inline int sample_row_gumbel(const float* logits,  // [n_allowed]
                             int64_t n_allowed, const SamplingParams& p, DrawStream stream, DrawKey key,
                             std::vector<float>& weights) {
    if (p.temperature == 0.0f) return argmax_row(logits, n_allowed);
    float inverse = 1.0f / p.temperature, best = -INFINITY;
    int token = 0;
    if (sampling_is_masked(p, n_allowed)) {
        std::vector<int> order;
        double total = 0.0;
        int64_t kept = kept_words(order, weights, &total, logits, n_allowed, p, logits[argmax_row(logits, n_allowed)]);
        std::sort(order.begin(), order.begin() + kept);
        for (int64_t i = 0; i < kept; i++) {
            int v = order[i];
            float score = gumbel_score(logits[v], inverse, gumbel_bits(stream, key, (uint32_t)v / 4).x[v % 4]);
            if (score > best || i == 0) best = score, token = v;
        }
        return token;
    }
    for (int64_t v = 0; v < n_allowed; v += 4) {
        Philox4 bits = gumbel_bits(stream, key, (uint32_t)(v / 4));
        for (int64_t k = 0; k < 4 && v + k < n_allowed; k++) {
            float score = gumbel_score(logits[v + k], inverse, bits.x[k]);
            if (score > best) best = score, token = (int)(v + k);
        }
    }
    return token;
}

// what a row's log-probability is taken at: greedy draws are scored at temperature 1
inline float sampling_inverse_temperature(const SamplingParams& p) {
    return p.temperature > 0.0f ? 1.0f / p.temperature : 1.0f;
}

// Rows of V logits, of which the first n_allowed may be drawn
struct SampleShape {
    int64_t rows, V, n_allowed;
};

// tokens, logps, keys: [rows]; logits: [rows,V]
inline void sample_rows_cpu(int* tokens, float* logps, const float* logits, SampleShape shape, const SamplingParams& p,
                            DrawStream stream, const DrawKey* keys, SeenTokens seen) {
    const int64_t rows = shape.rows, V = shape.V, n_allowed = shape.n_allowed;
    const float inverse = sampling_inverse_temperature(p);
#pragma omp parallel if (worth_threads(rows * V))
    {
        std::vector<float> weights, penalized(seen.bits ? n_allowed : 0);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < rows; i++) {
            const float *row = logits + i * V, *drawn = row;
            if (seen.bits) {
                penalize_row(penalized.data(), row, n_allowed, seen.row(i), p.repetition_penalty);
                drawn = penalized.data();
            }
            tokens[i] = p.gumbel ? sample_row_gumbel(drawn, n_allowed, p, stream, keys[i], weights)
                                 : sample_row(drawn, n_allowed, p, draw_uniform(stream, keys[i]), weights);
            logps[i] = logit_logp(row[tokens[i]], inverse, softmax_lse(softmax_row(row, V, inverse)));
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// devices

// a chunk's mass, 8 bytes, must fit the shared memory of a block; Gumbel noise has 2^24 - 1 counters for 4 words each
static constexpr int64_t SAMPLE_MAX_V = 2048 * LM_HEAD_COLUMNS;

inline SampleMethod sample_method(const SamplingParams& p, int64_t n_allowed) {
    if (p.temperature == 0.0f) return SampleMethod::argmax;
    if (sampling_is_masked(p, n_allowed)) return p.gumbel ? SampleMethod::masked_gumbel : SampleMethod::masked;
    return p.gumbel ? SampleMethod::gumbel : SampleMethod::inverse;
}

// ---------------------------------------------------------------------------------------------------------------------
// launchers

// tokens, logps: (rows); logits: (rows,V); keys: (rows); seen: what a repetition penalty is of. The log-probability is
// that of the whole softmax (greedy: at temperature 1), to the bit what lm_head_forward gives for the same logits on the
// same device.
inline void sample_rows(int* tokens, float* logps, const float* logits, SampleShape shape, const SamplingParams& p,
                        DrawStream stream, const DrawKey* keys, Device dev, SeenTokens seen = SeenTokens()) {
    NVTX_RANGE("sample_rows");
    const int64_t rows = shape.rows, V = shape.V, n_allowed = shape.n_allowed;
    if (rows < 0 || n_allowed < 1 || n_allowed > V || V > SAMPLE_MAX_V)
        fail("sample_rows: bad shape: rows %lld, V %lld, n_allowed %lld (in 1 ... V, V at most %lld)", (long long)rows,
             (long long)V, (long long)n_allowed, (long long)SAMPLE_MAX_V);
    if (sampling_penalizes(p) != (seen.bits != nullptr))
        fail("sample_rows: a repetition penalty and the tokens it is of belong together");
    if (rows == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        SampleConfig c;
        c.method = sample_method(p, n_allowed);
        c.n_allowed = (int)n_allowed;
        c.V = V;
        c.inverse_temperature = sampling_inverse_temperature(p);
        c.top_k = p.top_k > 0 && p.top_k < n_allowed ? p.top_k : 0;
        c.top_p = (double)p.top_p;
        c.mass_scale = sample_mass_scale(n_allowed);
        c.stream = stream;
        c.aligned = is_aligned16(logits, V);
        c.log_min_p = sampling_log_min_p(p);
        c.penalty = p.repetition_penalty;
        int row_chunks = (int)CEIL_DIV(V, LM_HEAD_COLUMNS);
        Scratch scratch(rows * row_chunks * sizeof(SampleChunk) / sizeof(float), dev);
        SampleChunk* chunks = reinterpret_cast<SampleChunk*>(scratch.data);
        bool masked = c.method == SampleMethod::masked || c.method == SampleMethod::masked_gumbel;
        size_t shared = masked ? 2 * sizeof(SampleHistogram) : row_chunks * sizeof(double);
        auto launch = [&](auto penalty) {
            constexpr bool PENALTY = decltype(penalty)::value;
            LAUNCH((sample_chunk_kernel<PENALTY>), (unsigned)(rows * row_chunks), LM_HEAD_BLOCK, 0, dev.stream, chunks,
                   logits, keys, row_chunks, seen, c);
            LAUNCH((sample_row_kernel<PENALTY>), (unsigned)rows, LM_HEAD_BLOCK, shared, dev.stream, tokens, logps,
                   chunks, logits, keys, row_chunks, seen, c);
        };
        if (seen.bits) launch(std::true_type());
        else launch(std::false_type());
        return;
    }
#endif
    (void)dev;
    sample_rows_cpu(tokens, logps, logits, shape, p, stream, keys, seen);
}
