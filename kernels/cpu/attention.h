// Attention on the CPU: what attention.cuh's launchers run. The mathematics and plain loops for it are there.
//
//   attention_forward_tiled    out, lse   of whole sequences, and of decoded rows over a cache of values or of codes
//   attention_backward_tiled   dq, dk, dv of whole sequences
//
// How it is fast. All five products (q k^T, p v; dout v^T, ds k, ds^T q, p^T dout) are small matrix products of blocks
// of 64 keys, by one loop that keeps a tile of sums in registers (attention_micro). The rows of a tile are queries of
// consecutive tokens times the heads of a group, so each key and value that is loaded is used for all of them:
//   forward  A task is a key/value head and some consecutive rows whose scores fill half of the L2 (all queries of a
//            short sequence; rows of decode that share a prompt). Block after block the keys are transposed, so that a
//            vector of 16 keys meets one number of q; scores of all keys, then softmax, then values block after block.
//   backward A task is a key/value head of a family (a sequence and what goes on from it). A block of keys meets blocks
//            of 64 queries: scores again, p from lse, ds, and the three products. dk and dv of the block are complete
//            then; dq waits in memory. Where such tasks are too few for the threads, the last ones are cut: into
//            blocks of keys for dk and dv, blocks of queries for dq, for 7 products in place of 5.
// Traffic: from memory each input once a task, which is least; scores stay in the L2, blocks of 16 KB in the L1.
// Measured on one core of a Zen 4, HD 64, 1,024 tokens, as a share of its FMA peak (vdpbf16ps has twice that for q.k):
// forward 65 % in fp32 and 82 % in bf16, backward 68 % and 79 %. Decode with few heads a group waits for memory.
//
// One order of sums for everything. q.k: from d = 0 upwards, one chain a key. The largest score: exact. The sum of p:
// by lanes (key mod VF, counted from the query's first key), then lanes in halves. p v: from key 0 upwards, one chain a
// d. So the bits of a query's output depend on its own q, on its keys in order and on nothing else: not on the tile,
// the block, where the keys lie, other rows, or threads. Keys that a row of a tile does not see are not added at all.
// dq: from key 0 upwards; dk, dv: by head of the group, then by row upwards: the same however tasks are cut.
//
// The trap: instruction sets differ in rounding (vectors.h), and with bf16 and vdpbf16ps q.k and dout.v are sums of
// pairs. On a CPU with AMX that instruction is slower than FMA (cpu_fast_dot), so those take the loops of AVX-512.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>
#include "../attention_rows.h"
#include "../kv_quant.cuh"
#include "gemm.h"
#include "isa_vectors.h"

static constexpr int ATTENTION_CPU_BLOCK = 64;            // keys in a block, and queries in one of the backward
static constexpr int64_t ATTENTION_SCORES = 128 * 1024;   // most scores of a tile with rows to spare: half of the L2
static constexpr int64_t ATTENTION_TILE_ROWS = 192;       // most rows times heads of a tile
static constexpr int64_t ATTENTION_TASKS_PER_THREAD = 4;  // at least, of long and short rows

// c [rows,columns] (+)= sum over steps of a(row, step) b(step, column)
struct AttentionProduct {
    float* c;
    int64_t ldc;
    const float* a;
    int64_t a_row, a_step;
    const float* b;
    int64_t b_step;
    int steps;
    bool resume;  // add to c
};

// attention_loops.h
struct AttentionLoops {
    int lanes;   // floats of a vector
    bool pairs;  // q.k and dout.v are products of pairs of bf16
    void (*scores)(const AttentionProduct& p, int rows, const int* columns);
    void (*values)(const AttentionProduct& p, int rows, int columns, const int* until);
    void (*gradient)(const AttentionProduct& p, int rows, int columns, const int* limits);
    void (*transpose)(float* dst, const floatX* src, int64_t stride, int count, int HD);
    void (*widen)(float* dst, const floatX* src, int64_t stride, int count, int HD, int columns);
    void (*left)(float* dst, const floatX* src, int64_t stride, int count, int HD, int columns);
    float (*softmax_row)(float* scores, int n, float scale, float* inverse_sum);
    void (*softmax_gradient)(float* scores, float* dp, int rows, const int* limits, const float* lse, const float* D,
                             float scale);
    float (*dot)(const floatX* a, const floatX* b, int HD);
    void (*store)(floatX* out, const float* acc, int HD, float factor);
};

#define ISA_FILE "attention_loops.h"
#include "each_isa.h"

inline AttentionLoops attention_loops_of_cpu() {
#if defined(__x86_64__)
    if (cpu_isa() == CpuIsa::amx) return isa_avx512::attention_loops();
#endif
    return ISA_CALL(attention_loops)();
}

// The loops, and how wide their operands are for heads of HD numbers
struct AttentionWidths {
    AttentionLoops loops;
    int HD, steps;      // steps of q.k
    int columns, left;  // floats of a row of values, and of a left operand of q.k
    AttentionWidths(const AttentionLoops& f, int HD_)
        : loops(f),
          HD(HD_),
          steps(f.pairs ? (HD_ + 1) / 2 : HD_),
          columns(CEIL_DIV(HD_, f.lanes) * f.lanes),
          left(f.pairs ? (HD_ + 1) / 2 : columns) {}
    // rows as floats: where they stand, if that is what they are, else at dst
    Rows<const float> widened(float* dst, Rows<const floatX> rows, int count) const {
        if (sizeof(floatX) == 4 && HD == columns) return {(const float*)(const void*)rows.p, rows.stride};
        loops.widen(dst, rows.p, rows.stride, count, HD, columns);
        return {dst, columns};
    }
};

enum { ATTENTION_SCRATCH_TASK, ATTENTION_SCRATCH_CALL, ATTENTION_SCRATCH_COUNT };
inline float* attention_scratch(int which, size_t floats) {
    static thread_local GemmScratch scratch[ATTENTION_SCRATCH_COUNT];
    return static_cast<float*>(scratch[which].get(floats * sizeof(float)));
}

// threads for `work` multiply-adds
inline int attention_threads(double work) {
#if defined(_OPENMP)
    return (int)std::max(1.0, std::min((double)omp_get_max_threads(), work / GEMM_WORK_PER_THREAD));
#else
    (void)work;
    return 1;
#endif
}

// ---- forward ----

// rows t0 ... t1 - 1 of the queries, one of which sees `keys` keys and none more
struct AttentionTile {
    int64_t t0, t1;
    int keys;
};

// Rows t0 ... t1 - 1 see rows `row`, row + 1 ... of a place as their keys first_key ..., at most `keys` of them
struct AttentionSegment {
    int place;
    int64_t row, t0, t1;
    int first_key, keys;
};

// floats from one row of scores to the next: room for a block beyond, and no multiple of 4 KB
inline int64_t attention_scores_stride(int keys) { return CEIL_DIV(keys, 64) * 64 + ATTENTION_CPU_BLOCK + 16; }

// do two rows have keys in common?
inline bool attention_same_keys(const KeyRange& a, const KeyRange& b) {
    return (a.n0 && b.n0 && a.row0 == b.row0) || (a.n1 && b.n1 && a.row1 == b.row1);
}

// Consecutive rows with common keys, up to most_rows of them
inline void attention_tiles(std::vector<AttentionTile>& tiles, const KeyRange* range, int64_t T, int group,
                            int64_t most_rows) {
    tiles.clear();
    for (int64_t t = 0; t < T; t++) {
        const int n = range[t].n0 + range[t].n1;
        if (!tiles.empty() && attention_same_keys(range[t - 1], range[t])) {
            AttentionTile& tile = tiles.back();
            const int64_t rows = t + 1 - tile.t0;
            const int keys = std::max(tile.keys, n);
            if (rows <= most_rows && rows * group * attention_scores_stride(keys) <= ATTENTION_SCORES) {
                tile.t1 = t + 1, tile.keys = keys;
                continue;
            }
        }
        tiles.push_back({t, t + 1, n});
    }
}

// The runs of rows of a tile that see the same rows of a place
inline void attention_segments(std::vector<AttentionSegment>& segments, const KeyRange* range, AttentionTile tile) {
    segments.clear();
    for (int place = 0; place < 2; place++)
        for (int64_t t = tile.t0; t < tile.t1; t++) {
            const KeyRange& r = range[t];
            const int n = place ? r.n1 : r.n0, first = place ? r.n0 : 0;
            const int64_t row = place ? r.row1 : r.row0;
            if (n == 0) continue;
            if (!segments.empty()) {
                AttentionSegment& s = segments.back();
                if (s.place == place && s.t1 == t && s.row == row && s.first_key == first) {
                    s.t1 = t + 1, s.keys = std::max(s.keys, n);
                    continue;
                }
            }
            segments.push_back({place, row, t, t + 1, first, n});
        }
}

// Where the keys and values of a forward are. block(): `count` keys or values of a head, the first of which is key
// `key` of its queries; scratch: count * HD
struct AttentionValues {
    KeyValueRows place[2];
    Rows<const floatX> block(const AttentionSegment& s, bool values, int at, int count, int kv_head, int HD,
                             floatX* scratch) const {
        (void)count, (void)scratch;
        const Rows<const floatX> rows = place[s.place].rows(values);
        const floatX* first = rows.row(s.row + at) + (int64_t)kv_head * HD;
        // The next block: rows lie pages apart, where the hardware does not look ahead
        for (int j = count; j < std::min(2 * count, s.keys - at); j++)
            for (int d = 0; d < HD; d += 64 / (int)sizeof(floatX))
                __builtin_prefetch(first + j * rows.stride + d, 0, 2);
        return {first, rows.stride};
    }
};
struct AttentionCodes {
    KeyValueCodes place[2];
    KvLevels levels;
    Rows<const floatX> block(const AttentionSegment& s, bool values, int at, int count, int kv_head, int HD,
                             floatX* scratch) const {
        const KeyValueCodes& from = place[s.place];
        const int64_t words = kv_row_words(from.quant);
        for (int j = 0; j < count; j++) {
            const uint32_t* codes = (values ? from.v : from.k) + (s.row + at + j) * words;
            if (!values && from.rotation.bias)
                kv_read_key_cpu(scratch + j * HD, from.quant, from.rotation, codes, kv_head, s.first_key + at + j);
            else kv_read_head_cpu(scratch + j * HD, from.quant, levels, codes, kv_head);
        }
        return {scratch, HD};
    }
};

struct AttentionForward {
    floatX* out;  // [T, NH*HD]
    float* lse;   // [T, NH]
    Rows<const floatX> q;
    const KeyRange* range;  // [T]
    AttentionShape shape;
    float scale;
};

// What a task of the forward works with; a row is a query and a head of the group
struct AttentionForwardScratch {
    int64_t scores_stride;
    float *q, *scores, *acc;  // [rows, widths.left], [rows, scores_stride], [rows, widths.columns]
    float *block, *widened;   // of keys or values
    floatX* values;
    int* limits;  // [rows] of a block
    AttentionForwardScratch(const AttentionWidths& w, int64_t rows, int keys) {
        scores_stride = attention_scores_stride(keys);
        const int64_t sizes[] = {rows * w.left,
                                 rows * scores_stride,
                                 rows * w.columns,
                                 (int64_t)ATTENTION_CPU_BLOCK * w.columns,
                                 (int64_t)ATTENTION_CPU_BLOCK * w.columns,
                                 (int64_t)ATTENTION_CPU_BLOCK * w.HD,
                                 rows};
        int64_t at[8] = {0};
        for (int i = 0; i < 7; i++) at[i + 1] = at[i] + CEIL_DIV(sizes[i], 16) * 16;
        float* p = attention_scratch(ATTENTION_SCRATCH_TASK, (size_t)at[7]);
        q = p, scores = p + at[1], acc = p + at[2], block = p + at[3], widened = p + at[4];
        values = (floatX*)(void*)(p + at[5]), limits = (int*)(void*)(p + at[6]);
    }
};

// The blocks of all segments in order: scores, or (values) sums of values, of the rows that see them
template <class Source>
void attention_forward_blocks(const AttentionForward& x, const Source& source, const AttentionWidths& w,
                              const AttentionForwardScratch& m, const std::vector<AttentionSegment>& segments,
                              int64_t t0, int kv_head, bool values) {
    const int group = x.shape.group();
    for (const AttentionSegment& s : segments)
        for (int at = 0; at < s.keys; at += ATTENTION_CPU_BLOCK) {
            const int count = std::min(ATTENTION_CPU_BLOCK, s.keys - at);
            const int64_t first = (s.t0 - t0) * group;
            const int rows = (int)(s.t1 - s.t0) * group;
            for (int64_t t = s.t0; t < s.t1; t++) {
                const int n = s.place ? x.range[t].n1 : x.range[t].n0;
                std::fill_n(m.limits + (t - s.t0) * group, group, std::max(0, std::min(count, n - at)));
            }
            const Rows<const floatX> from = source.block(s, values, at, count, kv_head, w.HD, m.values);
            float* scores = m.scores + first * m.scores_stride + s.first_key + at;
            if (values) {
                const Rows<const float> v = w.widened(m.widened, from, count);
                w.loops.values(
                    {m.acc + first * w.columns, w.columns, scores, m.scores_stride, 1, v.p, v.stride, 0, true}, rows,
                    w.columns, m.limits);
            } else {
                w.loops.transpose(m.block, from.p, from.stride, count, w.HD);
                w.loops.scores({scores, m.scores_stride, m.q + first * w.left, w.left, 1, m.block, ATTENTION_CPU_BLOCK,
                                w.steps, false},
                               rows, m.limits);
            }
        }
}

template <class Source>
void attention_forward_tile(const AttentionForward& x, const Source& source, const AttentionWidths& w,
                            AttentionTile tile, int kv_head) {
    const int NH = x.shape.NH, HD = w.HD, group = x.shape.group(), h0 = kv_head * group;
    const int64_t rows = (tile.t1 - tile.t0) * group;
    const AttentionForwardScratch m(w, rows, tile.keys);
    static thread_local std::vector<AttentionSegment> segments;
    attention_segments(segments, x.range, tile);
    for (int64_t t = tile.t0; t < tile.t1; t++)
        w.loops.left(m.q + (t - tile.t0) * group * w.left, x.q.row(t) + (int64_t)h0 * HD, HD, group, HD, w.left);
    memset(m.acc, 0, (size_t)(rows * w.columns) * sizeof(float));
    attention_forward_blocks(x, source, w, m, segments, tile.t0, kv_head, false);
    float* inverse = m.q;  // [rows]: the queries are over
    for (int64_t i = 0; i < rows; i++) {
        const int64_t t = tile.t0 + i / group;
        const int n = x.range[t].n0 + x.range[t].n1;
        float& lse = x.lse[t * NH + h0 + i % group];
        lse = inverse[i] = 0.0f;  // without keys: zeros
        if (n) lse = w.loops.softmax_row(m.scores + i * m.scores_stride, n, x.scale, &inverse[i]);
    }
    attention_forward_blocks(x, source, w, m, segments, tile.t0, kv_head, true);
    for (int64_t i = 0; i < rows; i++)
        w.loops.store(x.out + ((tile.t0 + i / group) * NH + h0 + i % group) * HD, m.acc + i * w.columns, HD,
                      inverse[i]);
}

template <class Source>
void attention_forward_source(const AttentionForward& x, const Source& source) {
    const int NKV = x.shape.NKV, group = x.shape.group();
    const AttentionWidths widths(attention_loops_of_cpu(), x.shape.HD);
    double keys = 0;
    for (int64_t t = 0; t < x.shape.T; t++) keys += x.range[t].n0 + x.range[t].n1;
    const int threads = attention_threads(keys * x.shape.NH * x.shape.HD * 2);
    int64_t most_rows = std::max<int64_t>(1, ATTENTION_TILE_ROWS / group);
    if (threads > 1) most_rows = std::min(most_rows, CEIL_DIV(x.shape.T * NKV, threads * ATTENTION_TASKS_PER_THREAD));
    static thread_local std::vector<AttentionTile> tile_list;
    std::vector<AttentionTile>& tiles = tile_list;
    attention_tiles(tiles, x.range, x.shape.T, group, most_rows);
    const int64_t count = (int64_t)tiles.size() * NKV;
    // from the back: the late rows of a long sequence are the most work
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = count - 1; i >= 0; i--) attention_forward_tile(x, source, widths, tiles[i / NKV], (int)(i % NKV));
}

inline void attention_forward_tiled(floatX* out,           // [T, NH*HD]
                                    float* lse,            // [T, NH]
                                    Rows<const floatX> q,  // [T, NH*HD]
                                    KeyValueRows place0, KeyValueRows place1,
                                    const KeyRange* range,  // [T]
                                    AttentionShape shape) {
    const AttentionForward x = {out, lse, q, range, shape, 1.0f / sqrtf((float)shape.HD)};
    attention_forward_source(x, AttentionValues{{place0, place1}});
}

inline void attention_decode_codes_tiled(floatX* out, float* lse, Rows<const floatX> q, const KeyValueCodes& place0,
                                         const KeyValueCodes& place1, const KeyRange* range, AttentionShape shape) {
    const AttentionForward x = {out, lse, q, range, shape, 1.0f / sqrtf((float)shape.HD)};
    attention_forward_source(x, AttentionCodes{{place0, place1}, kv_levels(place0.quant)});
}

// ---- backward ----

struct AttentionGradient {
    AttentionGradients d;
    const floatX *dout, *out;  // [T, NH*HD]
    const float* lse;          // [T, NH]
    const float* D;            // [T, NH] dout.out
    Rows<const floatX> q;
    KeyValueRows kv;
    PackedSequences sequences;
    AttentionShape shape;
    float scale;
};

// What a task makes for a key/value head of the sequences s0 ... s1 - 1, a family: the gradients of the keys k0 ... k1
// - 1 (of the blocks that start there) and of the queries q0 ... q1 - 1, rows counted from the family's first.
struct AttentionGradientTask {
    int s0, s1, kv_head;
    int64_t k0, k1, q0, q1;
};

struct AttentionGradientScratch {
    float *K_t, *V_t, *K;              // of a block of keys: columns, and rows
    float *Q, *dO, *Q_left, *dO_left;  // of a block of queries: rows, and left operands
    float *P, *dP;                     // [ATTENTION_CPU_BLOCK, ATTENTION_CPU_BLOCK] query, key
    float *dK, *dV;                    // [ATTENTION_CPU_BLOCK, widths.columns]
    float* dQ;                         // [group, q1 - q0, widths.columns]
    float lse[ATTENTION_CPU_BLOCK], D[ATTENTION_CPU_BLOCK];
    int limits[ATTENTION_CPU_BLOCK];
    AttentionGradientScratch(const AttentionWidths& w, int64_t queries) {
        const int64_t block = (int64_t)ATTENTION_CPU_BLOCK * std::max(w.columns, ATTENTION_CPU_BLOCK) + 16;
        float* p = attention_scratch(ATTENTION_SCRATCH_TASK, (size_t)(11 * block + queries * w.columns));
        float** all[] = {&K_t, &V_t, &K, &Q, &dO, &Q_left, &dO_left, &P, &dP, &dK, &dV, &dQ};
        for (int i = 0; i < 12; i++) *all[i] = p + i * block;
    }
};

// A block of keys, which are rows row ... row + count - 1 of the batch, and what of dQ starts at query_row
struct AttentionGradientBlock {
    Rows<const float> K;
    int64_t row, query_row, queries;
    int count;
};

// Queries t ... t + n - 1 of head h and a block of keys; row i sees the first m.limits[i] of it
inline void attention_gradient_queries(const AttentionGradient& x, const AttentionWidths& w,
                                       AttentionGradientScratch& m, const AttentionGradientBlock& keys, int64_t t,
                                       int n, int h, bool want_keys, bool want_queries) {
    const AttentionLoops& f = w.loops;
    const int NH = x.shape.NH, HD = w.HD, group = x.shape.group();
    const Rows<const floatX> q = {x.q.row(t) + (int64_t)h * HD, x.q.stride};
    const Rows<const floatX> dout = {x.dout + (t * NH + h) * HD, (int64_t)NH * HD};
    const Rows<const float> Q = w.widened(m.Q, q, n), dO = w.widened(m.dO, dout, n);
    Rows<const float> Q_left = Q, dO_left = dO;
    if (f.pairs) {
        f.left(m.Q_left, q.p, q.stride, n, HD, w.left), f.left(m.dO_left, dout.p, dout.stride, n, HD, w.left);
        Q_left = {m.Q_left, w.left}, dO_left = {m.dO_left, w.left};
    }
    int seen = 0;  // keys of the block that any of them sees
    for (int i = 0; i < n; i++) {
        m.lse[i] = x.lse[(t + i) * NH + h], m.D[i] = x.D[(t + i) * NH + h];
        seen = std::max(seen, m.limits[i]);
    }
    const int64_t KEYS = ATTENTION_CPU_BLOCK;
    f.scores({m.P, KEYS, Q_left.p, Q_left.stride, 1, m.K_t, KEYS, w.steps, false}, n, m.limits);
    f.scores({m.dP, KEYS, dO_left.p, dO_left.stride, 1, m.V_t, KEYS, w.steps, false}, n, m.limits);
    f.softmax_gradient(m.P, m.dP, n, m.limits, m.lse, m.D, x.scale);
    if (want_keys) {
        f.gradient({m.dV, w.columns, m.P, 1, KEYS, dO.p, dO.stride, n, true}, seen, w.columns, m.limits);
        f.gradient({m.dK, w.columns, m.dP, 1, KEYS, Q.p, Q.stride, n, true}, seen, w.columns, m.limits);
    }
    float* dQ = m.dQ + ((h % group) * keys.queries + t - keys.query_row) * w.columns;
    if (want_queries)
        f.values({dQ, w.columns, m.dP, KEYS, 1, keys.K.p, keys.K.stride, 0, true}, n, w.columns, m.limits);
}

// All queries of the task that see the block of keys: of sequence s from the block's first row on, and of the sequences
// that go on from it
inline void attention_gradient_keys(const AttentionGradient& x, const AttentionWidths& w, AttentionGradientScratch& m,
                                    const AttentionGradientTask& task, const AttentionGradientBlock& keys, int s,
                                    bool want_keys, bool want_queries) {
    const PackedSequences& all = x.sequences;
    const int group = x.shape.group();
    const int64_t base = all.starts[task.s0];
    for (int h = task.kv_head * group; h < (task.kv_head + 1) * group; h++)
        for (int child = s; child < (s == task.s0 ? task.s1 : s + 1); child++) {
            const int64_t start = child == s ? keys.row : all.starts[child], end = all.starts[child + 1];
            const int64_t from = std::max(start, base + task.q0), to = std::min(end, base + task.q1);
            for (int64_t t = from; t < to; t += ATTENTION_CPU_BLOCK) {
                const int n = (int)std::min<int64_t>(ATTENTION_CPU_BLOCK, to - t);
                int64_t limit = keys.count;
                if (child != s) limit = std::min(limit, all.prefix_start[child] + all.prefix[child] - keys.row);
                if (limit <= 0) break;
                for (int i = 0; i < n; i++)
                    m.limits[i] = (int)(child == s ? std::min<int64_t>(limit, t + i - keys.row + 1) : limit);
                attention_gradient_queries(x, w, m, keys, t, n, h, want_keys, want_queries);
            }
        }
}

inline void attention_gradient_task(const AttentionGradient& x, const AttentionWidths& w,
                                    const AttentionGradientTask& task) {
    const PackedSequences& all = x.sequences;
    const int HD = w.HD, group = x.shape.group();
    const int64_t base = all.starts[task.s0], head = (int64_t)task.kv_head * HD, rows = task.q1 - task.q0;
    const bool want_keys = task.k1 > task.k0, want_queries = rows > 0;
    const int64_t queries = want_queries ? rows : all.starts[task.s1] - base;
    AttentionGradientScratch m(w, want_queries ? rows * group : 0);
    memset(m.dQ, 0, (size_t)(rows * group * w.columns) * sizeof(float));
    AttentionGradientTask range = task;
    if (!want_queries) range.q0 = 0, range.q1 = queries;
    for (int s = task.s0; s < task.s1; s++)
        for (int64_t row = all.starts[s]; row < all.starts[s + 1]; row += ATTENTION_CPU_BLOCK) {
            const int64_t last = all.starts[s == task.s0 ? task.s1 : s + 1];  // behind the queries that see the block
            if (want_keys && (row - base < task.k0 || row - base >= task.k1)) continue;
            if (base + range.q1 <= row || base + range.q0 >= last) continue;
            const int count = (int)std::min<int64_t>(ATTENTION_CPU_BLOCK, all.starts[s + 1] - row);
            const Rows<const floatX> k = {x.kv.rows(false).row(row) + head, x.kv.k_stride};
            const Rows<const floatX> v = {x.kv.rows(true).row(row) + head, x.kv.v_stride};
            w.loops.transpose(m.K_t, k.p, k.stride, count, HD);
            w.loops.transpose(m.V_t, v.p, v.stride, count, HD);
            const AttentionGradientBlock keys = {w.widened(m.K, k, count), row, base + range.q0, queries, count};
            for (float* sum : {m.dK, m.dV})
                if (want_keys) memset(sum, 0, (size_t)(count * w.columns) * sizeof(float));
            attention_gradient_keys(x, w, m, range, keys, s, want_keys, want_queries);
            for (int j = 0; want_keys && j < count; j++) {
                w.loops.store(x.d.dk.row(row + j) + head, m.dK + j * w.columns, HD, 1.0f);
                w.loops.store(x.d.dv.row(row + j) + head, m.dV + j * w.columns, HD, 1.0f);
            }
        }
    for (int64_t i = 0; i < rows * group; i++)
        w.loops.store(x.d.dq.row(base + task.q0 + i % rows) + (int64_t)(task.kv_head * group + i / rows) * HD,
                      m.dQ + i * w.columns, HD, 1.0f);
}

// The tasks: each family's key/value heads, most work first; the last ones cut into pieces, so that every thread has
// some
inline void attention_gradient_tasks(std::vector<AttentionGradientTask>& list, const PackedSequences& all, int NKV,
                                     int threads) {
    list.clear();
    for (int s = 0; s < all.count;) {
        const int end = attention_family_end(all.prefix, all.count, s);
        const int64_t n = all.starts[end] - all.starts[s];
        for (int kv_head = 0; kv_head < NKV; kv_head++) list.push_back({s, end, kv_head, 0, n, 0, n});
        s = end;
    }
    std::stable_sort(list.begin(), list.end(),
                     [](const AttentionGradientTask& a, const AttentionGradientTask& b) { return a.k1 > b.k1; });
    const int64_t count = (int64_t)list.size();
    if (threads == 1 || count >= threads * ATTENTION_TASKS_PER_THREAD) return;
    const std::vector<AttentionGradientTask> left_over(list.begin() + count / threads * threads, list.end());
    list.resize((size_t)(count - (int64_t)left_over.size()));
    for (const AttentionGradientTask& t : left_over) {
        const int64_t n = t.k1, piece = CEIL_DIV(n, 4 * threads * ATTENTION_CPU_BLOCK) * ATTENTION_CPU_BLOCK;
        for (int64_t at = 0; at < n; at += piece) {
            const int64_t end = std::min(n, at + piece);
            list.push_back({t.s0, t.s1, t.kv_head, at, end, 0, 0});
            list.push_back({t.s0, t.s1, t.kv_head, 0, 0, at, end});
        }
    }
}

inline void attention_backward_tiled(AttentionGradients d,
                                     const floatX* dout,    // [T, NH*HD]
                                     const floatX* out,     // [T, NH*HD]
                                     const float* lse,      // [T, NH]
                                     Rows<const floatX> q,  // [T, NH*HD]
                                     KeyValueRows kv, PackedSequences sequences, AttentionShape shape) {
    const int NH = shape.NH, HD = shape.HD;
    const int64_t rows = shape.T * NH;
    const AttentionWidths widths(attention_loops_of_cpu(), HD);
    float* D = attention_scratch(ATTENTION_SCRATCH_CALL, (size_t)rows);
    const AttentionGradient x = {d, dout, out, lse, D, q, kv, sequences, shape, 1.0f / sqrtf((float)HD)};
    double pairs = 0;
    for (int s = 0; s < sequences.count; s++) {
        const double n = sequences.starts[s + 1] - sequences.starts[s];
        pairs += n * (n + 1) / 2 + (sequences.prefix ? n * sequences.prefix[s] : 0);
    }
    const int threads = attention_threads(5 * pairs * NH * HD);
    static thread_local std::vector<AttentionGradientTask> task_list;
    std::vector<AttentionGradientTask>& list = task_list;
    attention_gradient_tasks(list, sequences, shape.NKV, threads);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; i++) D[i] = widths.loops.dot(dout + i * HD, out + i * HD, HD);
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < list.size(); i++) attention_gradient_task(x, widths, list[i]);
    }
}
