// The likeliest tokens of a row of logits, as a threshold: the k largest logits (the lowest index first among equals), or
// the fewest of them whose probability reaches p, or whichever of both are fewer. p is of the whole row, at a temperature.
// Used for the support of a distilled teacher (distill_loss.cuh).
//
// No sort: the radix selection of sampling_kernels.cuh, by digits of 11, 11 and 10 bits of the logit, with its integer
// masses, so that host and device take the same tokens of the same logits (where the host has FMA).
// The CPU reads the row once for each of k, p and their histogram, then only the tokens that share the first digit.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>
#include "../runtime/device.h"
#include "../runtime/parallel.h"
#include "sampling_kernels.cuh"

// The last token that belongs to the likeliest
struct LikeliestEdge {
    float logit;
    int index;
};

// all of them; no constructor, for edges in shared memory
HOST_DEVICE LikeliestEdge likeliest_all() { return {-INFINITY, INT32_MAX}; }

HOST_DEVICE bool likeliest_has(const LikeliestEdge& e, float logit, int index) {
    return (logit > e.logit) | ((logit == e.logit) & (index <= e.index));
}

HOST_DEVICE LikeliestEdge likeliest_fewer(const LikeliestEdge& a, const LikeliestEdge& b) {
    return likeliest_has(a, b.logit, b.index) ? b : a;
}

// top_k: 0 is off; top_p: 1 is off. logits: [rows,V], where `aligned` says how their rows begin
inline SampleConfig likeliest_config(int64_t V, float inverse_temperature, int64_t top_k, double top_p, bool aligned) {
    SampleConfig c = {};
    c.n_allowed = (int)V;
    c.V = V;
    c.inverse_temperature = inverse_temperature;
    c.top_k = (int)top_k;
    c.top_p = top_p;
    c.mass_scale = sample_mass_scale(V);
    c.aligned = aligned;
    return c;
}

// the least mass that reaches p, minus 1: the token with which the sum exceeds that is the last one
HOST_DEVICE uint64_t likeliest_target(double top_p, uint64_t total) {
    double need = ceil(top_p * (double)total);
    uint64_t least = need >= 1.0 ? (uint64_t)need : 1;
    return (least < total ? least : total) - 1;
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

struct LikeliestScratch {
    std::vector<uint32_t> count, first_count;  // of a digit
    std::vector<uint64_t> mass, first_mass;
    std::vector<int> words;  // that share the digits found so far, by index
};

struct LikeliestDigit {
    uint32_t bin;
    uint64_t left;  // of the target, behind the bins before
};

// the first bin with which the sum exceeds target
template <class N>
inline LikeliestDigit likeliest_digit(const std::vector<N>& sums, uint64_t target) {
    for (size_t b = 0; b < sums.size(); b++) {
        if (target < sums[b]) return {(uint32_t)b, target};
        target -= sums[b];
    }
    return {0, 0};  // a row of NaN
}

// The token with which the count, or the mass, first exceeds target
inline LikeliestEdge likeliest_select(LikeliestScratch& s, const float* row, float max, bool by_mass, uint64_t target,
                                      const SampleConfig& c) {
    LikeliestDigit d = by_mass ? likeliest_digit(s.first_mass, target) : likeliest_digit(s.first_count, target);
    uint32_t key = d.bin;
    s.words.clear();
    for (int i = 0; i < c.n_allowed; i++)
        if (sample_key(row[i]) >> 21 == key) s.words.push_back(i);
    for (int shift : {10, 0}) {
        const uint32_t bins = shift ? 2048 : 1024;
        s.count.assign(bins, 0), s.mass.assign(bins, 0);
        for (int i : s.words) {
            uint32_t bin = sample_key(row[i]) >> shift & (bins - 1);
            s.count[bin]++;
            if (by_mass) s.mass[bin] += sample_mass(row[i], max, c);
        }
        d = by_mass ? likeliest_digit(s.mass, d.left) : likeliest_digit(s.count, d.left);
        key = key * bins + d.bin;
        size_t kept = 0;
        for (int i : s.words)
            if (sample_key(row[i]) >> shift == key) s.words[kept++] = i;
        s.words.resize(kept);
    }
    if (s.words.empty()) return likeliest_all();
    const uint64_t mass = by_mass ? sample_mass(row[s.words[0]], max, c) : 1;  // of each of them
    const uint64_t rank = mass ? d.left / mass : 0;
    return {sample_key_logit(key), s.words[rank < s.words.size() ? rank : s.words.size() - 1]};
}

// row: [V]
inline LikeliestEdge likeliest_edge_cpu(const float* row, const SampleConfig& c, LikeliestScratch& s) {
    const bool by_mass = c.top_p < 1.0;
    s.first_count.assign(2048, 0), s.first_mass.assign(2048, 0);
    float max = -INFINITY;
    if (by_mass)
        for (int i = 0; i < c.n_allowed; i++) max = row[i] > max ? row[i] : max;
    uint64_t total = 0;
    for (int i = 0; i < c.n_allowed; i++) {
        const uint32_t bin = sample_key(row[i]) >> 21;
        s.first_count[bin]++;
        if (!by_mass) continue;
        uint64_t mass = sample_mass(row[i], max, c);
        s.first_mass[bin] += mass;
        total += mass;
    }
    LikeliestEdge edge = likeliest_all();
    if (c.top_k > 0) edge = likeliest_select(s, row, max, false, c.top_k - 1, c);
    if (by_mass && total > 0)
        edge = likeliest_fewer(edge, likeliest_select(s, row, max, true, likeliest_target(c.top_p, total), c));
    return edge;
}

// edges: [rows]; logits: [rows,V]
inline void likeliest_edges_cpu(LikeliestEdge* edges, Rows<const float> logits, int64_t rows, const SampleConfig& c) {
#pragma omp parallel if (worth_threads(rows * c.n_allowed))
    {
        LikeliestScratch scratch;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < rows; i++) edges[i] = likeliest_edge_cpu(logits.row(i), c, scratch);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
// All LM_HEAD_BLOCK threads of the block must call it, and get the result. shared: first, h
__device__ inline LikeliestEdge likeliest_edge(const float* row, SampleHistogram& first, SampleHistogram& h,
                                               const SampleConfig& c) {
    constexpr int W = Pack128<float>::size;
    const bool by_mass = c.top_p < 1.0;
    float max = -INFINITY;
    if (by_mass)
        sample_for_each(row, c.n_allowed, c.aligned, [&](int i, const Pack128<float>& x) {
            UNROLL
            for (int k = 0; k < W && i + k < c.n_allowed; k++) max = fmaxf(max, x[k]);
        });
    max = softmax_block_max(max);
    sample_histogram_clear(first);
    uint64_t total = 0;
    sample_for_each(row, c.n_allowed, c.aligned, [&](int i, const Pack128<float>& x) {
        UNROLL
        for (int k = 0; k < W && i + k < c.n_allowed; k++) {
            uint64_t mass = by_mass ? sample_mass(x[k], max, c) : 0;
            sample_histogram_add(first, sample_key(x[k]) >> 21, mass);
            total += mass;
        }
    });
    sample_block_scan(total, &total);
    LikeliestEdge edge = likeliest_all();
    if (c.top_k > 0) {
        SamplePlace last = sample_select(first, h, row, max, false, c.top_k - 1, c);
        int index = sample_tie_index(row, last.key, c.top_k - 1 - last.count_before, c);
        edge = {sample_key_logit(last.key), index};
    }
    if (by_mass && total > 0) {
        uint64_t target = likeliest_target(c.top_p, total);
        SamplePlace last = sample_select(first, h, row, max, true, target, c);
        uint64_t rank = last.mass > 0 ? (target - last.mass_before) / last.mass : 0;
        int index = sample_tie_index(row, last.key, rank, c);
        edge = likeliest_fewer(edge, {sample_key_logit(last.key), index});
    }
    return edge;
}

// edges: (rows). grid: rows. dynamic shared memory: two SampleHistogram
__global__ void __launch_bounds__(LM_HEAD_BLOCK)
    likeliest_kernel(LikeliestEdge* edges, Rows<const float> logits, SampleConfig c) {
    DYNAMIC_SHARED(SampleHistogram, histogram);
    LikeliestEdge edge = likeliest_edge(logits.row(blockIdx.x), histogram[0], histogram[1], c);
    if (threadIdx.x == 0) edges[blockIdx.x] = edge;
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

// edges: [rows]; logits: [rows,V], on the device
inline void likeliest_edges(LikeliestEdge* edges, Rows<const float> logits, int64_t rows, const SampleConfig& c,
                            Device dev) {
    if (rows < 0 || rows > INT32_MAX) fail("likeliest_edges: bad shape: %lld rows", (long long)rows);
    if (rows == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(likeliest_kernel, (unsigned)rows, LM_HEAD_BLOCK, 2 * sizeof(SampleHistogram), dev.stream, edges, logits,
               c);
        return;
    }
#endif
    (void)dev;
    likeliest_edges_cpu(edges, logits, rows, c);
}
