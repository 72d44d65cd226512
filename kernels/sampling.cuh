// Sampling one token from a row of logits: temperature, then top-k, then top-p (Holtzman et al. 2020), in the order of
// transformers and vLLM; temperature 0 is greedy (the lowest index among equals).
// One uniform number a token, from a counter (runtime/rng.h), picks by the inverse of the cumulative distribution, so a
// token does not depend on the batch it was drawn in. With `gumbel` the token is instead the largest logit / T + g_v
// among those kept (Gumbel 1954; Maddison et al. 2014), g_v = -log(-log(u_v)), one number for each word.
// Only the first n_allowed rows of the vocabulary can be drawn: an embedding table is padded (151,936 rows for 151,669
// tokens in Qwen3) and the padding means nothing.
// The log-probability kept for the policy ratio is that of the whole softmax at this temperature, before top-k and
// top-p, which is what the trainer computes.
//
// Keys. A draw is (seed, stream) of the rollout and (step, sample, token) of the row, sample = prompt * G + sample. The
// uniform number is word 0 of Philox at counter (step, sample, token, stream). Gumbel noise of words 4q ... 4q + 3 are
// the four words at counter (step, sample, token, stream + 256 (q + 1)): streams are below 256, so none is used twice.
//
// On a device, logits (rows,V). sample_chunk_kernel has a block for each chunk of LM_HEAD_COLUMNS of each row: the
// trainer's own softmax_chunk_device, and the chunk's part of the draw. sample_row_kernel has a block a row: it merges
// the chunks in order (lse), then picks. Everything that changes from step to step is read from device memory, so that
// the launches can be captured in a CUDA graph. How often a row of logits is read (4V bytes each time, the least is 1):
//   greedy, gumbel 1;  plain 1 and one chunk;  top-k or top-p 6 (7 with gumbel), both 8 (9 with gumbel).
//
// Top-k and top-p need no sort. Words are ordered by falling logit, then index, and three questions are asked of that
// order: where does the count reach k, where does the mass reach top_p, where does the mass of the kept ones reach the
// draw. Each is a radix selection on the bits of the logit (11 + 11 + 10 bits, the first digit's histogram is shared);
// words with equal logits have equal mass, so their rank follows by division. Masses are integers (fixed point, the
// largest is 2^45 at V <= 2^17), so sums are exact and do not depend on the order of the threads.
//
// The trap: the CPU adds masses in floating point, the device in fixed point. Both draw the same token unless the
// uniform number lies within about 1e-6 of a boundary between two words. Greedy and gumbel agree bit for bit (where the
// host has FMA; where it has not, mul_add rounds twice).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>
#include "../runtime/rng.h"
#include "lm_head.cuh"

struct SamplingParams {
    float temperature = 1.0f;  // 0: greedy
    int top_k = 0;             // 0: off
    float top_p = 1.0f;        // 1: off
    bool gumbel = false;       // draw by Gumbel noise instead of the inverse of the cumulative distribution
};

inline bool same_sampling(const SamplingParams& a, const SamplingParams& b) {
    return a.temperature == b.temperature && a.top_k == b.top_k && a.top_p == b.top_p && a.gumbel == b.gumbel;
}

// What tells the draws of a rollout from those of another, and a row's draw from the other rows'
struct DrawStream {
    uint64_t seed = 0;
    uint32_t stream = RNG_SAMPLE;
};
struct DrawKey {
    uint32_t step = 0, sample = 0, token = 0;
};

HOST_DEVICE float draw_uniform(DrawStream s, DrawKey k) {
    return uniform01(rng_bits(s.seed, s.stream, k.step, k.sample, k.token).x[0]);
}

// the middle of its step: see sample_row
HOST_DEVICE double draw_quantile(float u) { return (double)u + 2.98023223876953125e-8; }

// ---------------------------------------------------------------------------------------------------------------------
// Gumbel noise: the same bits on host and device, so no library functions and no product that a compiler may fuse

// -log(1 - x) for x in [0, 0.5]: 2 atanh(s), s = x / (2 - x) <= 1/3
HOST_DEVICE float gumbel_minus_log1m(float x) {
    float s = x / (2.0f - x), s2 = s * s, p = 1.0f / 15.0f;
    p = mul_add(p, s2, 1.0f / 13.0f);
    p = mul_add(p, s2, 1.0f / 11.0f);
    p = mul_add(p, s2, 1.0f / 9.0f);
    p = mul_add(p, s2, 1.0f / 7.0f);
    p = mul_add(p, s2, 1.0f / 5.0f);
    p = mul_add(p, s2, 1.0f / 3.0f);
    return 2.0f * mul_add(p * s2, s, s);
}

// log x for normal x > 0: x = 2^k m with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m - 1) / (m + 1))
HOST_DEVICE float gumbel_log(float x) {
    uint32_t u = float_bits(x) - 0x3F3504F3u;  // of sqrt(1/2)
    float k = (float)((int32_t)u >> 23), m = bits_float((u & 0x007FFFFFu) + 0x3F3504F3u);
    float s = (m - 1.0f) / (m + 1.0f), s2 = s * s, p = 1.0f / 9.0f;
    p = mul_add(p, s2, 1.0f / 7.0f);
    p = mul_add(p, s2, 1.0f / 5.0f);
    p = mul_add(p, s2, 1.0f / 3.0f);
    return mul_add(k, 0.693147181f, 2.0f * mul_add(p * s2, s, s));
}

// u = 1 - (bits + 1/2) 2^-32: largest where bits are small, which a float holds to 24 places, so that the upper tail
// (up to 22.9) is as fine as the middle
HOST_DEVICE float gumbel_noise(uint32_t bits) {
    bool low = bits < 0x80000000u;
    float x = mul_add((float)(low ? bits : ~bits), 2.3283064365386963e-10f, 1.1641532182693481e-10f);
    return -gumbel_log(low ? gumbel_minus_log1m(x) : -gumbel_log(x));
}

// of words 4q ... 4q + 3
HOST_DEVICE Philox4 gumbel_bits(DrawStream s, DrawKey k, uint32_t q) {
    return rng_bits(s.seed, s.stream + ((q + 1) << 8), k.step, k.sample, k.token);
}

HOST_DEVICE float gumbel_score(float logit, float inverse_temperature, uint32_t bits) {
    return mul_add(logit, inverse_temperature, gumbel_noise(bits));
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
    return (p.top_k > 0 && p.top_k < n_allowed) || p.top_p < 1.0f;
}

// The words that top-k and top-p leave, by falling logit, and how many; their weights, and the sum of those
inline int64_t kept_words(std::vector<int>& order, std::vector<float>& weights, double* total_weight,
                          const float* logits,  // [n_allowed]
                          int64_t n_allowed, const SamplingParams& p, float max) {
    float inverse = 1.0f / p.temperature;
    order.resize(n_allowed);
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

// tokens, logps, keys: [rows]; logits: [rows,V]
inline void sample_rows_cpu(int* tokens, float* logps, const float* logits, int64_t rows, int64_t V, int64_t n_allowed,
                            const SamplingParams& p, DrawStream stream, const DrawKey* keys) {
    const float inverse = sampling_inverse_temperature(p);
#pragma omp parallel
    {
        std::vector<float> weights;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < rows; i++) {
            const float* row = logits + i * V;
            tokens[i] = p.gumbel ? sample_row_gumbel(row, n_allowed, p, stream, keys[i], weights)
                                 : sample_row(row, n_allowed, p, draw_uniform(stream, keys[i]), weights);
            logps[i] = logit_logp(row[tokens[i]], inverse, softmax_lse(softmax_row(row, V, inverse)));
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

// a chunk's mass, 8 bytes, must fit the shared memory of a block; Gumbel noise has 2^24 - 1 counters for 4 words each
static constexpr int64_t SAMPLE_MAX_V = 2048 * LM_HEAD_COLUMNS;

enum class SampleMethod { argmax, gumbel, inverse, masked, masked_gumbel };

inline SampleMethod sample_method(const SamplingParams& p, int64_t n_allowed) {
    if (p.temperature == 0.0f) return SampleMethod::argmax;
    if (sampling_is_masked(p, n_allowed)) return p.gumbel ? SampleMethod::masked_gumbel : SampleMethod::masked;
    return p.gumbel ? SampleMethod::gumbel : SampleMethod::inverse;
}

#if HAS_KERNELS
// What a draw needs besides the logits; the same in every step of a rollout
struct SampleConfig {
    SampleMethod method;
    int n_allowed;
    int64_t V;
    float inverse_temperature;
    int top_k;         // 0: off
    double top_p;      // 1: off
    float mass_scale;  // the mass of the likeliest word
    DrawStream stream;
    bool aligned;
};

struct SampleChunk {
    SoftmaxState softmax;  // of the whole chunk, padding included
    float max;             // logit, of the allowed words; -inf if there is none
    uint64_t best;         // sample_candidate of the largest logit or score
    uint64_t mass;         // of the allowed words, relative to max
};

// Ascending order of the keys is falling order of x; -0 and 0 are equals
HOST_DEVICE uint32_t sample_key(float x) {
    uint32_t u = float_bits(x == 0.0f ? 0.0f : x);
    return u >> 31 ? u : ~u & 0x7FFFFFFFu;
}
HOST_DEVICE float sample_key_logit(uint32_t key) { return bits_float(key >> 31 ? key : ~key & 0x7FFFFFFFu); }

// the least of these is the largest score, of the lowest index
HOST_DEVICE uint64_t sample_candidate(float score, int index) {
    return (uint64_t)sample_key(score) << 32 | (uint32_t)index;
}

// NaN and what is below the last place count as nothing
__device__ inline uint64_t sample_mass(float logit, float max, const SampleConfig& c) {
    float m = exp_f((logit - max) * c.inverse_temperature) * c.mass_scale;
    return m >= 1.0f ? (uint64_t)m : 0;
}

__device__ inline uint64_t sample_block_min(uint64_t x) {
    __shared__ uint64_t partial[LM_HEAD_WARPS];
    for (int offset = 16; offset > 0; offset /= 2) {
        uint64_t y = __shfl_xor_sync(0xFFFFFFFFu, x, offset);
        x = y < x ? y : x;
    }
    __syncthreads();  // the previous call's reads of partial are over
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    for (int w = 0; w < LM_HEAD_WARPS; w++) x = partial[w] < x ? partial[w] : x;
    return x;
}

// the sum of x over the threads before this one, and over all
__device__ inline uint64_t sample_block_scan(uint64_t x, uint64_t* total) {
    __shared__ uint64_t partial[LM_HEAD_WARPS];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint64_t sum = x;
    for (int offset = 1; offset < 32; offset *= 2) {
        uint64_t y = __shfl_up_sync(0xFFFFFFFFu, sum, offset);
        if (lane >= offset) sum += y;
    }
    __syncthreads();
    if (lane == 31) partial[warp] = sum;
    __syncthreads();
    uint64_t before = 0, all = 0;
    for (int w = 0; w < LM_HEAD_WARPS; w++) {
        if (w < warp) before += partial[w];
        all += partial[w];
    }
    *total = all;
    return before + sum - x;
}

// f(i, pack) for packs of the row's allowed words, i the index of the first; four loads are on their way at a time
template <class F>
__device__ inline void sample_for_each(const float* row, int n, bool aligned, F f) {
    constexpr int W = Pack128<float>::size, LOADS = 4;
    for (int64_t base = (int64_t)threadIdx.x * W; base < n; base += LM_HEAD_BLOCK * W * LOADS) {
        Pack128<float> x[LOADS] = {};
        for (int j = 0; j < LOADS; j++) {
            int64_t i = base + j * LM_HEAD_BLOCK * W;
            if (i < n) x[j] = load_pack(row, (int)i, n, aligned);
        }
        for (int j = 0; j < LOADS; j++) {
            int64_t i = base + j * LM_HEAD_BLOCK * W;
            if (i < n) f((int)i, x[j]);
        }
    }
}

// chunks: (rows, chunks of a row); logits: (rows,V); keys: (rows). grid: rows * chunks of a row
__global__ void sample_chunk_kernel(SampleChunk* chunks, const float* logits, const DrawKey* keys, int row_chunks,
                                    SampleConfig c) {
    constexpr int W = Pack128<float>::size;
    int64_t row = blockIdx.x / row_chunks;
    int v0 = blockIdx.x % row_chunks * (int)LM_HEAD_COLUMNS;
    const float* x = logits + row * c.V + v0;
    int n = c.V - v0 < LM_HEAD_COLUMNS ? (int)(c.V - v0) : (int)LM_HEAD_COLUMNS;
    int allowed = c.n_allowed - v0 < n ? (c.n_allowed - v0 > 0 ? c.n_allowed - v0 : 0) : n;
    SampleChunk chunk;
    chunk.softmax = softmax_chunk_device(x, n, c.inverse_temperature, c.aligned);
    chunk.max = -INFINITY;
    chunk.best = ~(uint64_t)0;
    chunk.mass = 0;
    if (c.method == SampleMethod::argmax || c.method == SampleMethod::gumbel) {
        bool noise = c.method == SampleMethod::gumbel;
        sample_for_each(x, allowed, c.aligned, [&](int i, const Pack128<float>& z) {
            Philox4 bits = {};
            if (noise) bits = gumbel_bits(c.stream, keys[row], (uint32_t)(v0 + i) / W);
            for (int k = 0; k < W && i + k < allowed; k++) {
                float score = noise ? gumbel_score(z[k], c.inverse_temperature, bits.x[k]) : z[k];
                uint64_t candidate = sample_candidate(score, v0 + i + k);
                chunk.best = candidate < chunk.best ? candidate : chunk.best;
            }
        });
        chunk.best = sample_block_min(chunk.best);
    } else {
        sample_for_each(x, allowed, c.aligned, [&](int i, const Pack128<float>& z) {
            for (int k = 0; k < W && i + k < allowed; k++) chunk.max = fmaxf(chunk.max, z[k]);
        });
        chunk.max = softmax_block_max(chunk.max);
    }
    if (c.method == SampleMethod::inverse) {
        sample_for_each(x, allowed, c.aligned, [&](int i, const Pack128<float>& z) {
            for (int k = 0; k < W && i + k < allowed; k++) chunk.mass += sample_mass(z[k], chunk.max, c);
        });
        sample_block_scan(chunk.mass, &chunk.mass);
    }
    if (threadIdx.x == 0) chunks[blockIdx.x] = chunk;
}

static constexpr int SAMPLE_BINS = 2048;  // of the first two digits; the third has half of them

// A histogram over one digit of the keys: how many words, and their mass in two words of 32 bits, because shared memory
// adds 32 bits natively
struct SampleHistogram {
    uint32_t count[SAMPLE_BINS], low[SAMPLE_BINS], high[SAMPLE_BINS];
};

__device__ inline void sample_histogram_clear(SampleHistogram& h) {
    for (int b = threadIdx.x; b < SAMPLE_BINS; b += LM_HEAD_BLOCK) h.count[b] = h.low[b] = h.high[b] = 0;
    __syncthreads();
}

__device__ inline void sample_histogram_add(SampleHistogram& h, uint32_t bin, uint64_t mass) {
    atomicAdd(&h.count[bin], 1u);
    uint32_t low = (uint32_t)mass, high = (uint32_t)(mass >> 32);
    if (low && atomicAdd(&h.low[bin], low) + low < low) high++;  // the sum passed 2^32: exactly one adder sees it
    if (high) atomicAdd(&h.high[bin], high);
}

// Words in the order of their keys, up to one
struct SamplePlace {
    uint32_t key;           // of that word
    uint32_t count_before;  // words with lower keys
    uint64_t mass_before;   // their mass
    uint64_t mass;          // of each word with this key
};

struct SampleBin {
    uint32_t bin, count_before;
    uint64_t mass_before;
};

// The first bin with which the count, or the mass, exceeds target; bin 0 if none does
__device__ inline SampleBin sample_find_bin(const SampleHistogram& h, bool by_mass, uint64_t target) {
    constexpr int PER = SAMPLE_BINS / LM_HEAD_BLOCK;
    __shared__ SampleBin found;
    __syncthreads();  // the additions are over, and the previous call's reads of found
    uint64_t mass[PER], count = 0, all_mass = 0, total;
    for (int j = 0; j < PER; j++) {
        int b = threadIdx.x * PER + j;
        mass[j] = (uint64_t)h.high[b] << 32 | h.low[b];
        all_mass += mass[j];
        count += h.count[b];
    }
    uint64_t count_before = sample_block_scan(count, &total), mass_before = sample_block_scan(all_mass, &total);
    if (threadIdx.x == 0) found = {0, 0, 0};
    __syncthreads();
    for (int j = 0; j < PER; j++) {
        int b = threadIdx.x * PER + j;
        uint64_t before = by_mass ? mass_before : count_before, here = by_mass ? mass[j] : h.count[b];
        if (before <= target && target - before < here) found = {(uint32_t)b, (uint32_t)count_before, mass_before};
        count_before += h.count[b];
        mass_before += mass[j];
    }
    __syncthreads();
    return found;
}

// The word with which the count, or the mass, of the words before it and itself first exceeds target. first: the
// histogram of the first digit over the row; h is overwritten
__device__ inline SamplePlace sample_select(const SampleHistogram& first, SampleHistogram& h, const float* row,
                                            float max, bool by_mass, uint64_t target, const SampleConfig& c) {
    SampleBin b = sample_find_bin(first, by_mass, target);
    SamplePlace p = {b.bin, b.count_before, b.mass_before, 0};
    for (int digit = 1; digit < 3; digit++) {
        int shift = digit == 1 ? 10 : 0, bits = digit == 1 ? 11 : 10;
        sample_histogram_clear(h);
        sample_for_each(row, c.n_allowed, c.aligned, [&](int i, const Pack128<float>& x) {
            for (int k = 0; k < Pack128<float>::size && i + k < c.n_allowed; k++) {
                uint32_t key = sample_key(x[k]);
                if (key >> (shift + bits) == p.key)
                    sample_histogram_add(h, key >> shift & ((1u << bits) - 1), sample_mass(x[k], max, c));
            }
        });
        b = sample_find_bin(h, by_mass, target - (by_mass ? p.mass_before : p.count_before));
        p.key = p.key << bits | b.bin;
        p.count_before += b.count_before;
        p.mass_before += b.mass_before;
    }
    p.mass = sample_mass(sample_key_logit(p.key), max, c);
    return p;
}

// The index of the word number j among those with this key, by index; 0 if there is none. A warp has a part of the row.
__device__ inline int sample_tie_index(const float* row, uint32_t key, uint64_t j, const SampleConfig& c) {
    constexpr int W = Pack128<float>::size, TILE = 32 * W, LOADS = 4;
    __shared__ uint32_t warp_count[LM_HEAD_WARPS];
    __shared__ int index;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int part = (int)(CEIL_DIV(CEIL_DIV((int64_t)c.n_allowed, LM_HEAD_WARPS), TILE) * TILE);
    int64_t first = (int64_t)warp * part, end = first + part < c.n_allowed ? first + part : c.n_allowed;
    uint32_t count = 0;
    for (int64_t base = first + lane * W; base < end; base += TILE * LOADS) {
        Pack128<float> x[LOADS] = {};
        for (int l = 0; l < LOADS; l++)
            if (base + l * TILE < end) x[l] = load_pack(row, (int)base + l * TILE, c.n_allowed, c.aligned);
        for (int l = 0; l < LOADS; l++)
            for (int k = 0; k < W; k++)
                count += base + l * TILE < end && base + l * TILE + k < c.n_allowed && sample_key(x[l][k]) == key;
    }
    for (int offset = 16; offset > 0; offset /= 2) count += __shfl_xor_sync(0xFFFFFFFFu, count, offset);
    __syncthreads();  // the previous call's reads are over
    if (lane == 0) warp_count[warp] = count;
    if (threadIdx.x == 0) index = 0;
    __syncthreads();
    uint64_t before = 0;
    for (int w = 0; w < warp; w++) before += warp_count[w];
    if (before <= j && j < before + count) {  // one warp
        for (int64_t tile = first; tile < end; tile += TILE) {
            int64_t i = tile + lane * W;
            Pack128<float> x = {};
            if (i < end) x = load_pack(row, (int)i, c.n_allowed, c.aligned);
            uint32_t rank = 0, all = 0;
            bool match[W];
            for (int k = 0; k < W; k++) {
                match[k] = i + k < end && sample_key(x[k]) == key;
                uint32_t votes = __ballot_sync(0xFFFFFFFFu, match[k]);
                rank += __popc(votes & ((1u << lane) - 1));
                all += __popc(votes);
            }
            for (int k = 0; k < W; k++) {
                if (match[k] && before + rank == j) index = (int)i + k;
                rank += match[k];
            }
            before += all;
            if (before > j) break;
        }
    }
    __syncthreads();
    return index;
}

// The word at a quantile of the words that top-k and top-p leave, or the one with the largest noisy logit among them.
// max: the largest allowed logit; shared: first, h
__device__ inline int sample_masked(const float* row, float max, double quantile, DrawKey key, SampleHistogram& first,
                                    SampleHistogram& h, const SampleConfig& c) {
    constexpr int W = Pack128<float>::size;
    sample_histogram_clear(first);
    uint64_t total = 0;
    sample_for_each(row, c.n_allowed, c.aligned, [&](int i, const Pack128<float>& x) {
        for (int k = 0; k < W && i + k < c.n_allowed; k++) {
            uint64_t mass = sample_mass(x[k], max, c);
            sample_histogram_add(first, sample_key(x[k]) >> 21, mass);
            total += mass;
        }
    });
    sample_block_scan(total, &total);
    SamplePlace last = {};
    uint64_t ties = 0;  // words with the key `last` that are kept
    if (c.top_k > 0) {
        last = sample_select(first, h, row, max, false, (uint64_t)c.top_k - 1, c);
        ties = (uint64_t)c.top_k - last.count_before;
        total = last.mass_before + ties * last.mass;
    }
    if (c.top_p < 1.0) {
        double wanted = ceil(c.top_p * (double)total);
        uint64_t least = wanted > 1.0 ? (uint64_t)wanted : 1;
        least = least < total ? least : total;
        last = sample_select(first, h, row, max, true, least - 1, c);
        uint64_t mass = last.mass > 0 ? last.mass : 1;
        ties = (least - last.mass_before + mass - 1) / mass;
        total = last.mass_before + ties * last.mass;
    }
    if (c.method == SampleMethod::masked) {
        uint64_t target = (uint64_t)(quantile * (double)total);
        target = target < total ? target : total - 1;
        SamplePlace drawn = sample_select(first, h, row, max, true, target, c);
        return sample_tie_index(row, drawn.key, (target - drawn.mass_before) / (drawn.mass > 0 ? drawn.mass : 1), c);
    }
    int last_index = sample_tie_index(row, last.key, ties - 1, c);
    uint64_t best = ~(uint64_t)0;
    sample_for_each(row, c.n_allowed, c.aligned, [&](int i, const Pack128<float>& x) {
        bool any = false;
        for (int k = 0; k < W && i + k < c.n_allowed; k++) any = any || sample_key(x[k]) <= last.key;
        if (!any) return;
        Philox4 bits = gumbel_bits(c.stream, key, (uint32_t)i / W);
        for (int k = 0; k < W && i + k < c.n_allowed; k++) {
            uint32_t x_key = sample_key(x[k]);
            if (x_key > last.key || (x_key == last.key && i + k > last_index)) continue;
            uint64_t candidate = sample_candidate(gumbel_score(x[k], c.inverse_temperature, bits.x[k]), i + k);
            best = candidate < best ? candidate : best;
        }
    });
    best = sample_block_min(best);
    return best == ~(uint64_t)0 ? 0 : (int)(uint32_t)best;
}

// The word of a chunk at target in mass, relative to the chunk's max; a thread has 8 words in a row. 0 if there is none
__device__ inline int sample_in_chunk(const float* x, int allowed, float max, uint64_t target, const SampleConfig& c) {
    constexpr int PER = (int)LM_HEAD_COLUMNS / LM_HEAD_BLOCK, W = Pack128<float>::size;
    __shared__ int index;
    uint64_t mass[PER], sum = 0, total;
    for (int j = 0; j < PER; j += W) {
        int i = threadIdx.x * PER + j;
        Pack128<float> z = load_pack(x, i, allowed, c.aligned);
        for (int k = 0; k < W; k++) {
            mass[j + k] = i + k < allowed ? sample_mass(z[k], max, c) : 0;
            sum += mass[j + k];
        }
    }
    uint64_t before = sample_block_scan(sum, &total);
    if (threadIdx.x == 0) index = 0;
    __syncthreads();
    for (int j = 0; j < PER; j++) {
        if (before <= target && target - before < mass[j]) index = threadIdx.x * PER + j;
        before += mass[j];
    }
    __syncthreads();
    return index;
}

// tokens, logps, keys: (rows); chunks: (rows,row_chunks) of sample_chunk_kernel; logits: (rows,V). grid: rows
// dynamic shared memory: two SampleHistogram (masked), or double chunk_mass[row_chunks]
__global__ void sample_row_kernel(int* tokens, float* logps, const SampleChunk* chunks, const float* logits,
                                  const DrawKey* keys, int row_chunks, SampleConfig c) {
    DYNAMIC_SHARED(unsigned char, memory);
    __shared__ float row_lse;
    __shared__ int token, chunk;
    __shared__ uint64_t target;
    int64_t r = blockIdx.x;
    const float* row = logits + r * c.V;
    chunks += r * row_chunks;
    DrawKey key = keys[r];
    double quantile = draw_quantile(draw_uniform(c.stream, key));
    float max = -INFINITY;
    for (int i = threadIdx.x; i < row_chunks; i += LM_HEAD_BLOCK) max = fmaxf(max, chunks[i].max);
    max = softmax_block_max(max);
    double* chunk_mass = reinterpret_cast<double*>(memory);  // relative to the row's max
    if (c.method == SampleMethod::inverse)
        for (int i = threadIdx.x; i < row_chunks; i += LM_HEAD_BLOCK)
            chunk_mass[i] = chunks[i].mass > 0 ? (double)chunks[i].mass * exp(((double)chunks[i].max - (double)max) *
                                                                              (double)c.inverse_temperature)
                                               : 0.0;
    __syncthreads();
    if (threadIdx.x == 0) {
        SoftmaxState s;
        uint64_t best = ~(uint64_t)0;
        for (int i = 0; i < row_chunks; i++) {
            s = softmax_merge(s, chunks[i].softmax);
            best = chunks[i].best < best ? chunks[i].best : best;
        }
        row_lse = softmax_lse(s);
        token = best == ~(uint64_t)0 ? 0 : (int)(uint32_t)best;
        chunk = 0;
        target = 0;
        if (c.method == SampleMethod::inverse) {
            double total = 0.0, before = 0.0, sum = 0.0;
            for (int i = 0; i < row_chunks; i++) total += chunk_mass[i];
            for (int i = 0; i < row_chunks && sum <= quantile * total; i++) {
                if (chunk_mass[i] == 0.0) continue;
                chunk = i;
                before = sum;
                sum += chunk_mass[i];
            }
            double share = (quantile * total - before) / chunk_mass[chunk];
            target = share > 0.0 ? (uint64_t)(share * (double)chunks[chunk].mass) : 0;
            if (target >= chunks[chunk].mass && target > 0) target = chunks[chunk].mass - 1;
        }
    }
    __syncthreads();
    if (c.method == SampleMethod::inverse) {
        int v0 = chunk * (int)LM_HEAD_COLUMNS;
        int allowed = c.n_allowed - v0 < LM_HEAD_COLUMNS ? c.n_allowed - v0 : (int)LM_HEAD_COLUMNS;
        int v = v0 + sample_in_chunk(row + v0, allowed, chunks[chunk].max, target, c);
        if (threadIdx.x == 0) token = v;
    }
    if (c.method == SampleMethod::masked || c.method == SampleMethod::masked_gumbel) {
        SampleHistogram* h = reinterpret_cast<SampleHistogram*>(memory);
        int v = sample_masked(row, max, quantile, key, h[0], h[1], c);
        if (threadIdx.x == 0) token = v;
    }
    if (threadIdx.x != 0) return;
    tokens[r] = token;
    logps[r] = logit_logp(row[token], c.inverse_temperature, row_lse);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

// tokens, logps: (rows); logits: (rows,V); keys: (rows). The log-probability is that of the whole softmax (greedy: at
// temperature 1), to the bit what lm_head_forward gives for the same logits on the same device.
inline void sample_rows(int* tokens, float* logps, const float* logits, int64_t rows, int64_t V, int64_t n_allowed,
                        const SamplingParams& p, DrawStream stream, const DrawKey* keys, Device dev) {
    NVTX_RANGE("sample_rows");
    if (rows < 0 || n_allowed < 1 || n_allowed > V || V > SAMPLE_MAX_V)
        fail("sample_rows: bad shape: rows %lld, V %lld, n_allowed %lld (in 1 ... V, V at most %lld)", (long long)rows,
             (long long)V, (long long)n_allowed, (long long)SAMPLE_MAX_V);
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
        int bits = 17;  // the sum of n_allowed masses stays below 2^62
        while ((1ll << bits) < n_allowed) bits++;
        c.mass_scale = ldexpf(1.0f, 62 - bits);
        c.stream = stream;
        c.aligned = is_aligned16(logits, V);
        int row_chunks = (int)CEIL_DIV(V, LM_HEAD_COLUMNS);
        Scratch scratch(rows * row_chunks * sizeof(SampleChunk) / sizeof(float), dev);
        SampleChunk* chunks = reinterpret_cast<SampleChunk*>(scratch.data);
        LAUNCH(sample_chunk_kernel, (unsigned)(rows * row_chunks), LM_HEAD_BLOCK, 0, dev.stream, chunks, logits, keys,
               row_chunks, c);
        bool masked = c.method == SampleMethod::masked || c.method == SampleMethod::masked_gumbel;
        // beyond 48 KB even without the kernel's static shared memory, so that LAUNCH asks for it
        size_t shared = masked ? 2 * sizeof(SampleHistogram) + 16 : row_chunks * sizeof(double);
        LAUNCH(sample_row_kernel, (unsigned)rows, LM_HEAD_BLOCK, shared, dev.stream, tokens, logps, chunks, logits,
               keys, row_chunks, c);
        return;
    }
#endif
    (void)dev;
    sample_rows_cpu(tokens, logps, logits, rows, V, n_allowed, p, stream, keys);
}
