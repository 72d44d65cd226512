// The kernels of sampling.cuh.
//
// Logits (rows,V). sample_chunk_kernel has a block for each chunk of LM_HEAD_COLUMNS of each row: the trainer's own
// softmax_chunk_device, and the chunk's part of the draw. sample_row_kernel has a block a row: it merges the chunks in
// order (lse), then picks. Everything that changes from step to step is read from device memory, so that the launches
// can be captured in a CUDA graph. How often a row of logits is read (4V bytes each time, the least is 1):
//   greedy, gumbel 1;  plain 1 and one chunk;  top-k or top-p 6 (7 with gumbel), both 8 (9 with gumbel);
//   min-p alone 5 (4 with gumbel), beside them 1 more.
//
// Top-k and top-p need no sort. Words are ordered by falling logit, then index, and three questions are asked of that
// order: where does the count reach k, where does the mass reach top_p, where does the mass of the kept ones reach the
// draw. Each is a radix selection on the bits of the logit (11 + 11 + 10 bits, the first digit's histogram is shared);
// words with equal logits have equal mass, so their rank follows by division. What min-p keeps is a part of the same order
// from its beginning, equal logits together; it compares logits, so that no exponential decides. Masses are integers (fixed point, the
// largest is 2^45 at V <= 2^17), so sums are exact and do not depend on the order of the threads.
#pragma once
#include "../runtime/device.h"
#include "../runtime/math.h"
#include "draw.cuh"
#include "lm_head.cuh"
#include "seen_tokens.cuh"

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
    float log_min_p = -INFINITY;  // off
    float penalty = 1.0f;         // of tokens that were seen
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
HOST_DEVICE uint64_t sample_mass(float logit, float max, const SampleConfig& c) {
    float m = exp_f((logit - max) * c.inverse_temperature) * c.mass_scale;
    return m >= 1.0f ? (uint64_t)m : 0;
}

// Is the word's probability at least min_p times the largest one's?
HOST_DEVICE bool sample_min_p_keeps(float logit, float max, float inverse_temperature, float log_min_p) {
    return (logit - max) * inverse_temperature >= log_min_p;
}

// the sum of n masses stays below 2^62, and one below 2^45
inline float sample_mass_scale(int64_t n) {
    int bits = 17;
    while ((1ll << bits) < n) bits++;
    return ldexpf(1.0f, 62 - bits);
}

#if HAS_KERNELS
// Logits under the repetition penalty: a pointer to logits that are penalized as they are read. The functions below take
// either, as Row.
struct PenalizedRow {
    const float* logits;
    const uint32_t* seen;  // null: none
    float penalty;
    __device__ PenalizedRow operator+(int v) const { return {logits + v, seen ? seen + v / 32 : nullptr, penalty}; }
};

__device__ inline Pack128<float> sample_load(const float* row, int i, int n, bool aligned) {
    return load_pack(row, i, n, aligned);
}
__device__ inline Pack128<float> sample_load(const PenalizedRow& row, int i, int n, bool aligned) {
    Pack128<float> x = load_pack(row.logits, i, n, aligned);
    if (!row.seen || i >= n) return x;  // behind the row there are no bits
    const uint32_t bits = row.seen[i / 32] >> i % 32;  // i is a multiple of the pack
    UNROLL
    for (int k = 0; k < Pack128<float>::size; k++)
        if (bits >> k & 1) x[k] = penalized_logit(x[k], row.penalty);
    return x;
}

template <bool PENALTY>
__device__ inline auto sample_row_of(const float* logits, const SeenTokens& seen, int64_t row, const SampleConfig& c) {
    if constexpr (PENALTY) return PenalizedRow{logits + row * c.V, seen.row(row), c.penalty};
    else return logits + row * c.V;
}

struct SampleChunk {
    SoftmaxState softmax;  // of the whole chunk, padding included
    float max;             // logit, of the allowed words; -inf if there is none
    uint64_t best;         // sample_candidate of the largest logit or score
    uint64_t mass;         // of the allowed words, relative to max
};

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
template <class Row, class F>
__device__ inline void sample_for_each(const Row& row, int n, bool aligned, F f) {
    constexpr int W = Pack128<float>::size, LOADS = 4;
    for (int64_t base = (int64_t)threadIdx.x * W; base < n; base += LM_HEAD_BLOCK * W * LOADS) {
        Pack128<float> x[LOADS] = {};
        UNROLL
        for (int j = 0; j < LOADS; j++) {
            int64_t i = base + j * LM_HEAD_BLOCK * W;
            if (i < n) x[j] = sample_load(row, (int)i, n, aligned);
        }
        UNROLL
        for (int j = 0; j < LOADS; j++) {
            int64_t i = base + j * LM_HEAD_BLOCK * W;
            if (i < n) f((int)i, x[j]);
        }
    }
}

// chunks: (rows, chunks of a row); logits: (rows,V); keys: (rows). grid: rows * chunks of a row
template <bool PENALTY>
__global__ void __launch_bounds__(LM_HEAD_BLOCK)
    sample_chunk_kernel(SampleChunk* chunks, const float* logits, const DrawKey* keys, int row_chunks, SeenTokens seen,
                        SampleConfig c) {
    constexpr int W = Pack128<float>::size;
    int64_t row = blockIdx.x / row_chunks;
    int v0 = blockIdx.x % row_chunks * (int)LM_HEAD_COLUMNS;
    const auto x = sample_row_of<PENALTY>(logits, seen, row, c) + v0;
    int n = c.V - v0 < LM_HEAD_COLUMNS ? (int)(c.V - v0) : (int)LM_HEAD_COLUMNS;
    int allowed = c.n_allowed - v0 < n ? (c.n_allowed - v0 > 0 ? c.n_allowed - v0 : 0) : n;
    SampleChunk chunk;
    chunk.softmax = softmax_chunk_device(logits + row * c.V + v0, n, c.inverse_temperature, c.aligned);
    chunk.max = -INFINITY;
    chunk.best = ~(uint64_t)0;
    chunk.mass = 0;
    if (c.method == SampleMethod::argmax || c.method == SampleMethod::gumbel) {
        bool noise = c.method == SampleMethod::gumbel;
        sample_for_each(x, allowed, c.aligned, [&](int i, const Pack128<float>& z) {
            Philox4 bits = {};
            if (noise) bits = gumbel_bits(c.stream, keys[row], (uint32_t)(v0 + i) / W);
            UNROLL
            for (int k = 0; k < W && i + k < allowed; k++) {
                float score = noise ? gumbel_score(z[k], c.inverse_temperature, bits.x[k]) : z[k];
                uint64_t candidate = sample_candidate(score, v0 + i + k);
                chunk.best = candidate < chunk.best ? candidate : chunk.best;
            }
        });
        chunk.best = sample_block_min(chunk.best);
    } else {
        sample_for_each(x, allowed, c.aligned, [&](int i, const Pack128<float>& z) {
            UNROLL
            for (int k = 0; k < W && i + k < allowed; k++) chunk.max = fmaxf(chunk.max, z[k]);
        });
        chunk.max = softmax_block_max(chunk.max);
    }
    if (c.method == SampleMethod::inverse) {
        sample_for_each(x, allowed, c.aligned, [&](int i, const Pack128<float>& z) {
            UNROLL
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
    UNROLL
    for (int j = 0; j < PER; j++) {
        int b = threadIdx.x * PER + j;
        mass[j] = (uint64_t)h.high[b] << 32 | h.low[b];
        all_mass += mass[j];
        count += h.count[b];
    }
    uint64_t count_before = sample_block_scan(count, &total), mass_before = sample_block_scan(all_mass, &total);
    if (threadIdx.x == 0) found = {0, 0, 0};
    __syncthreads();
    UNROLL
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
template <class Row>
__device__ inline SamplePlace sample_select(const SampleHistogram& first, SampleHistogram& h, const Row& row, float max,
                                            bool by_mass, uint64_t target, const SampleConfig& c) {
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
template <class Row>
__device__ inline int sample_tie_index(const Row& row, uint32_t key, uint64_t j, const SampleConfig& c) {
    constexpr int W = Pack128<float>::size, TILE = 32 * W, LOADS = 4;
    __shared__ uint32_t warp_count[LM_HEAD_WARPS];
    __shared__ int index;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int part = (int)(CEIL_DIV(CEIL_DIV((int64_t)c.n_allowed, LM_HEAD_WARPS), TILE) * TILE);
    int64_t first = (int64_t)warp * part, end = first + part < c.n_allowed ? first + part : c.n_allowed;
    uint32_t count = 0;
    for (int64_t base = first + lane * W; base < end; base += TILE * LOADS) {
        Pack128<float> x[LOADS] = {};
        UNROLL
        for (int l = 0; l < LOADS; l++)
            if (base + l * TILE < end) x[l] = sample_load(row, (int)base + l * TILE, c.n_allowed, c.aligned);
        UNROLL
        for (int l = 0; l < LOADS; l++) {
            UNROLL
            for (int k = 0; k < W; k++)
                count += base + l * TILE < end && base + l * TILE + k < c.n_allowed && sample_key(x[l][k]) == key;
        }
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
            if (i < end) x = sample_load(row, (int)i, c.n_allowed, c.aligned);
            uint32_t rank = 0, all = 0;
            bool match[W];
            UNROLL
            for (int k = 0; k < W; k++) {
                match[k] = i + k < end && sample_key(x[k]) == key;
                uint32_t votes = __ballot_sync(0xFFFFFFFFu, match[k]);
                rank += __popc(votes & ((1u << lane) - 1));
                all += __popc(votes);
            }
            UNROLL
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

// The words of falling logit up to `last`, `ties` of those with its key, that top-k, top-p and min-p leave; their mass
struct SampleKept {
    SamplePlace last;
    uint64_t ties, total;  // ties ~0: all of them
};

// Fewer, if min-p keeps fewer. cut: top-k or top-p have left some out
template <class Row>
__device__ inline void sample_min_p(SampleKept& kept, const Row& row, float max, bool cut, const SampleConfig& c) {
    uint64_t mass = 0, best = ~(uint64_t)0;  // of the complement of the keys that are kept
    sample_for_each(row, c.n_allowed, c.aligned, [&](int i, const Pack128<float>& x) {
        UNROLL
        for (int k = 0; k < Pack128<float>::size && i + k < c.n_allowed; k++) {
            if (!sample_min_p_keeps(x[k], max, c.inverse_temperature, c.log_min_p)) continue;
            uint64_t key = ~sample_key(x[k]);
            best = key < best ? key : best;
            mass += sample_mass(x[k], max, c);
        }
    });
    best = sample_block_min(best);
    sample_block_scan(mass, &mass);
    if (best == ~(uint64_t)0 || (cut && ~(uint32_t)best >= kept.last.key)) return;
    kept.last.key = ~(uint32_t)best;
    kept.ties = ~(uint64_t)0;
    kept.total = mass;
}

// The word at a quantile of the words that top-k, top-p and min-p leave, or the one with the largest noisy logit among them.
// max: the largest allowed logit; shared: first, h
template <class Row>
__device__ inline int sample_masked(const Row& row, float max, double quantile, DrawKey key, SampleHistogram& first,
                                    SampleHistogram& h, const SampleConfig& c) {
    constexpr int W = Pack128<float>::size;
    sample_histogram_clear(first);
    uint64_t total = 0;
    sample_for_each(row, c.n_allowed, c.aligned, [&](int i, const Pack128<float>& x) {
        UNROLL
        for (int k = 0; k < W && i + k < c.n_allowed; k++) {
            uint64_t mass = sample_mass(x[k], max, c);
            sample_histogram_add(first, sample_key(x[k]) >> 21, mass);
            total += mass;
        }
    });
    sample_block_scan(total, &total);
    SampleKept kept = {{}, 0, total};
    SamplePlace& last = kept.last;
    if (c.top_k > 0) {
        last = sample_select(first, h, row, max, false, (uint64_t)c.top_k - 1, c);
        kept.ties = (uint64_t)c.top_k - last.count_before;
        kept.total = last.mass_before + kept.ties * last.mass;
    }
    if (c.top_p < 1.0) {
        double wanted = ceil(c.top_p * (double)kept.total);
        uint64_t least = wanted > 1.0 ? (uint64_t)wanted : 1;
        least = least < kept.total ? least : kept.total;
        last = sample_select(first, h, row, max, true, least - 1, c);
        uint64_t mass = last.mass > 0 ? last.mass : 1;
        kept.ties = (least - last.mass_before + mass - 1) / mass;
        kept.total = last.mass_before + kept.ties * last.mass;
    }
    if (c.log_min_p > -INFINITY) sample_min_p(kept, row, max, c.top_k > 0 || c.top_p < 1.0, c);
    if (c.method == SampleMethod::masked) {
        uint64_t target = (uint64_t)(quantile * (double)kept.total);
        target = target < kept.total ? target : kept.total - 1;
        SamplePlace drawn = sample_select(first, h, row, max, true, target, c);
        return sample_tie_index(row, drawn.key, (target - drawn.mass_before) / (drawn.mass > 0 ? drawn.mass : 1), c);
    }
    const bool all_ties = kept.ties == ~(uint64_t)0;
    int last_index = all_ties ? c.n_allowed : sample_tie_index(row, last.key, kept.ties - 1, c);
    uint64_t best = ~(uint64_t)0;
    sample_for_each(row, c.n_allowed, c.aligned, [&](int i, const Pack128<float>& x) {
        bool any = false;
        UNROLL
        for (int k = 0; k < W && i + k < c.n_allowed; k++) any = any || sample_key(x[k]) <= last.key;
        if (!any) return;
        Philox4 bits = gumbel_bits(c.stream, key, (uint32_t)i / W);
        UNROLL
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
template <class Row>
__device__ inline int sample_in_chunk(const Row& x, int allowed, float max, uint64_t target, const SampleConfig& c) {
    constexpr int PER = (int)LM_HEAD_COLUMNS / LM_HEAD_BLOCK, W = Pack128<float>::size;
    __shared__ int index;
    uint64_t mass[PER], sum = 0, total;
    UNROLL
    for (int j = 0; j < PER; j += W) {
        int i = threadIdx.x * PER + j;
        Pack128<float> z = sample_load(x, i, allowed, c.aligned);
        UNROLL
        for (int k = 0; k < W; k++) {
            mass[j + k] = i + k < allowed ? sample_mass(z[k], max, c) : 0;
            sum += mass[j + k];
        }
    }
    uint64_t before = sample_block_scan(sum, &total);
    if (threadIdx.x == 0) index = 0;
    __syncthreads();
    UNROLL
    for (int j = 0; j < PER; j++) {
        if (before <= target && target - before < mass[j]) index = threadIdx.x * PER + j;
        before += mass[j];
    }
    __syncthreads();
    return index;
}

// a chunk and a mass in it, relative to its max
struct SampleChunkPlace {
    int chunk;
    uint64_t target;
};

// The place at a quantile of a row. chunk_mass: [row_chunks], relative to the row's max
__device__ inline SampleChunkPlace sample_chunk_at(const SampleChunk* chunks, const double* chunk_mass, int row_chunks,
                                                   double quantile) {
    SampleChunkPlace at = {0, 0};
    double total = 0.0, before = 0.0, sum = 0.0;
    for (int i = 0; i < row_chunks; i++) total += chunk_mass[i];
    for (int i = 0; i < row_chunks && sum <= quantile * total; i++) {
        if (chunk_mass[i] == 0.0) continue;
        at.chunk = i;
        before = sum;
        sum += chunk_mass[i];
    }
    double share = (quantile * total - before) / chunk_mass[at.chunk];
    uint64_t mass = chunks[at.chunk].mass;
    at.target = share > 0.0 ? (uint64_t)(share * (double)mass) : 0;
    if (at.target >= mass && at.target > 0) at.target = mass - 1;
    return at;
}

// tokens, logps, keys: (rows); chunks: (rows,row_chunks) of sample_chunk_kernel; logits: (rows,V). grid: rows
// dynamic shared memory: two SampleHistogram (masked), or double chunk_mass[row_chunks]
template <bool PENALTY>
__global__ void __launch_bounds__(LM_HEAD_BLOCK)
    sample_row_kernel(int* tokens, float* logps, const SampleChunk* chunks, const float* logits, const DrawKey* keys,
                      int row_chunks, SeenTokens seen, SampleConfig c) {
    DYNAMIC_SHARED(unsigned char, memory);
    __shared__ float row_lse;
    __shared__ int token;
    __shared__ SampleChunkPlace place;
    int64_t r = blockIdx.x;
    const auto row = sample_row_of<PENALTY>(logits, seen, r, c);
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
        if (c.method == SampleMethod::inverse) place = sample_chunk_at(chunks, chunk_mass, row_chunks, quantile);
    }
    __syncthreads();
    if (c.method == SampleMethod::inverse) {
        int v0 = place.chunk * (int)LM_HEAD_COLUMNS;
        int allowed = c.n_allowed - v0 < LM_HEAD_COLUMNS ? c.n_allowed - v0 : (int)LM_HEAD_COLUMNS;
        int v = v0 + sample_in_chunk(row + v0, allowed, chunks[place.chunk].max, place.target, c);
        if (threadIdx.x == 0) token = v;
    }
    if (c.method == SampleMethod::masked || c.method == SampleMethod::masked_gumbel) {
        SampleHistogram* h = reinterpret_cast<SampleHistogram*>(memory);
        int v = sample_masked(row, max, quantile, key, h[0], h[1], c);
        if (threadIdx.x == 0) token = v;
    }
    if (threadIdx.x != 0) return;
    tokens[r] = token;
    logps[r] = logit_logp(logits[r * c.V + token], c.inverse_temperature, row_lse);
}
#endif
