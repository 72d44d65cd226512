// Attention on the CPU: what attention.cuh's launchers run. The mathematics, and plain loops that say the same, are there.
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
//
// One order of sums for everything. q.k: from d = 0 upwards, one chain a key. The largest score: exact. The sum of p: by
// lanes (key mod VF, counted from the query's first key), then lanes in halves. p v: from key 0 upwards, one chain a d.
// So the bits of a query's output depend on its own q, on its keys in order and on nothing else: not on the tile, the
// block, where the keys lie, other rows, or threads. Keys that a row of a tile does not see are not added at all. dq: from
// key 0 upwards; dk, dv: by head of the group, then by row upwards: the same however tasks are cut.
//
// The trap: instruction sets differ in rounding (vectors.h), and with bf16 and vdpbf16ps q.k and dout.v are sums of
// pairs. On a CPU with AMX that instruction has half the rate of FMA or less (measured 230 against 445 GFLOP/s), so those
// take the loops of AVX-512.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>
#include "../attention_rows.h"
#include "../kv_quant.cuh"
#include "gemm.h"

static constexpr int ATTENTION_KEYS = 64;                  // keys in a block, and queries in a block of the backward
static constexpr int64_t ATTENTION_SCORES = 128 * 1024;    // most scores of a tile, if it has rows to spare: half of the L2
static constexpr int64_t ATTENTION_TILE_ROWS = 192;        // most rows times heads of a tile
static constexpr int64_t ATTENTION_TASKS_PER_THREAD = 4;   // at least, of long and short rows
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
    int VF;
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

#define ISA_FILE "vectors.h"
#include "each_isa.h"
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
        : loops(f), HD(HD_), steps(f.pairs ? (HD_ + 1) / 2 : HD_), columns(CEIL_DIV(HD_, f.VF) * f.VF),
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
inline int64_t attention_scores_stride(int keys) { return CEIL_DIV(keys, 64) * 64 + ATTENTION_KEYS + 16; }

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

// Where the keys and values of a forward are. block(): `count` keys or values of a head, the first of which is key `key`
// of its queries; scratch: count * HD
struct AttentionValues {
    KeyValueRows place[2];
    Rows<const floatX> block(const AttentionSegment& s, bool values, int at, int count, int kv_head, int HD,
                             floatX* scratch) const {
        (void)count, (void)scratch;
        const Rows<const floatX> rows = place[s.place].rows(values);
        const floatX* first = rows.row(s.row + at) + (int64_t)kv_head * HD;
        // The next block: rows lie pages apart, where the hardware does not look ahead
        for (int j = count; j < std::min(2 * count, s.keys - at); j++)
            for (int d = 0; d < HD; d += 64 / (int)sizeof(floatX)) __builtin_prefetch(first + j * rows.stride + d, 0, 2);
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
                                 (int64_t)ATTENTION_KEYS * w.columns,
                                 (int64_t)ATTENTION_KEYS * w.columns,
                                 (int64_t)ATTENTION_KEYS * w.HD,
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
        for (int at = 0; at < s.keys; at += ATTENTION_KEYS) {
            const int count = std::min(ATTENTION_KEYS, s.keys - at);
            const int64_t first = (s.t0 - t0) * group;
            const int rows = (int)(s.t1 - s.t0) * group;
            for (int i = 0; i < rows; i++) {
                const KeyRange& r = x.range[s.t0 + i / group];
                m.limits[i] = std::max(0, std::min(count, (s.place ? r.n1 : r.n0) - at));
            }
            const Rows<const floatX> from = source.block(s, values, at, count, kv_head, w.HD, m.values);
            float* scores = m.scores + first * m.scores_stride + s.first_key + at;
            if (values) {
                const Rows<const float> v = w.widened(m.widened, from, count);
                w.loops.values({m.acc + first * w.columns, w.columns, scores, m.scores_stride, 1, v.p, v.stride, 0, true},
                               rows, w.columns, m.limits);
            } else {
                w.loops.transpose(m.block, from.p, from.stride, count, w.HD);
                w.loops.scores({scores, m.scores_stride, m.q + first * w.left, w.left, 1, m.block, ATTENTION_KEYS,
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
    if (threads > 1)
        most_rows = std::min(most_rows, CEIL_DIV(x.shape.T * NKV, threads * ATTENTION_TASKS_PER_THREAD));
    static thread_local std::vector<AttentionTile> tile_list;
    std::vector<AttentionTile>& tiles = tile_list;
    attention_tiles(tiles, x.range, x.shape.T, group, most_rows);
    const int64_t tasks = (int64_t)tiles.size() * NKV;
    // from the back: the late rows of a long sequence are the most work
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = tasks - 1; i >= 0; i--)
        attention_forward_tile(x, source, widths, tiles[i / NKV], (int)(i % NKV));
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
