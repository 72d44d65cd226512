// Matrix products on the CPU: every linear layer of the transformer, in training and in generation.
//
//   gemm_nt   Y[M,N]  = X[M,K] W[N,K]^T + bias   forward; gemm_nt_packed: the same bits, W packed beforehand
//   gemm_nn   dX[M,K] = dY[M,N] W[N,K]           activation gradient
//   gemm_tn   dW[N,K] += dY[M,N]^T X[M,K]        weight gradient, float
//
// How it is fast (Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication", TOMS 2008; BLIS: Van Zee &
// van de Geijn, TOMS 2015). All three are C[M,N] = A[M,K] B[K,N]. A core that does two 16-wide multiply-adds a cycle
// cannot load new operands at that rate, so each one loaded is used many times, from the nearest memory that holds it:
//   registers  A tile of, with AVX-512, 8 x 48 sums stays there while k runs: 11 loads feed 24 multiply-adds. That loop
//              is gemm_loops.h (gemm_amx.h for AMX), for each instruction set; everything in this file only keeps it fed.
//   L1         The rows of A of a tile over a k block (16 KB of bf16) meet every panel of a group in turn.
//   L2         B is copied into panels of a tile's columns, k after k: the tile reads one stream without gaps, and no
//              TLB or cache-way conflicts whatever ldb is. A group of panels (GEMM_GROUP_BYTES) meets all rows of a
//              task.
//   L3         At most GEMM_SHARED_BYTES of panels exist at a time, packed by all threads together, shared by them.
// A is read where it stands if it already is the words the tile wants (float, or bf16 where pairs are multiplied), else
// copied too.
// A thread takes tasks (row block x run of panels) from a counter; small products run on fewer threads, down to one.
//
// Batch invariance, the property the trainer stands on: the bits of an output depend on its row of A, its column of B
// and on nothing else: not on M, the row's place, N or a cut of N, the number of threads, packed or not. GRPO's ratio
// exp(logp_trainer - logp_sampler) must be exactly 1 at the first step, while the sampler decodes 1..64 rows at a time
// and the trainer sees thousands. Therefore one order of summation, for every shape: inside a k block of kc (1024) one
// chain from k = 0 upwards; block sums added in order; old C (accumulate) before the first block, bias after the last;
// one rounding to C's type at the end. kc is thus part of the arithmetic, and blocks also keep the error at about
// (kc + K / kc) eps instead of K eps. Nothing else here changes bits, so everything else may be tuned.
//
// The one trap: instruction sets differ in rounding (gemm_loops.h, gemm_amx.h), so two machines need not agree; one with
// itself does. bf16 and float may be mixed freely among the operands; products with a float operand are float products.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(_OPENMP)
#include <omp.h>
#endif
#include "../../runtime/dtypes.h"
#include "../../runtime/error.h"
#include "gemm_isa.h"

static constexpr int64_t GEMM_TASK_ROWS = 128;           // most rows of A in a task
static constexpr int64_t GEMM_GROUP_BYTES = 512 * 1024;  // panels a task's rows meet at a time: half of a 1 MB L2
static constexpr int64_t GEMM_PIECE = 128;               // steps of a panel made in a task: 24 KB, half of L1
static constexpr int64_t GEMM_SHARED_BYTES = 4 << 20;    // most bytes of packed B, and of carried sums, at a time
// Multiply-adds a thread must have to be worth waking: about 10 us of work against 2 us for a fork and two barriers,
// and against a whole time slice where other processes keep the cores busy.
static constexpr double GEMM_WORK_PER_THREAD = 2e6;

// 64-byte aligned memory that grows, and is freed with its thread
struct GemmScratch {
    void* data = nullptr;
    size_t bytes = 0;
    GemmScratch() = default;
    GemmScratch(const GemmScratch&) = delete;
    GemmScratch& operator=(const GemmScratch&) = delete;
    ~GemmScratch() { free(data); }
    void* get(size_t need) {
        if (need > bytes) {
            free(data);
            bytes = (need + need / 4 + 4095) / 4096 * 4096;
            data = aligned_alloc(64, bytes);
            if (!data) {
                bytes = 0;
                fail("gemm: cannot allocate %zu bytes of scratch memory: use fewer threads or free some memory", need);
            }
        }
        return data;
    }
};
enum { GEMM_SCRATCH_A, GEMM_SCRATCH_B, GEMM_SCRATCH_SUMS, GEMM_SCRATCH_COUNT };
inline GemmScratch& gemm_scratch(int which) {
    static thread_local GemmScratch scratch[GEMM_SCRATCH_COUNT];
    return scratch[which];
}

inline int64_t gemm_min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t gemm_max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t gemm_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class TA, class TB>
GemmKind gemm_kind() {
    return sizeof(TB) == 4 ? GEMM_FLOATS : sizeof(TA) == 2 && gemm_kernels().dot ? GEMM_PAIRS_DOT : GEMM_PAIRS_WIDEN;
}
// words of B a column takes over kc of k: pairs of bf16, an odd last one padded with zero
template <class TB>
constexpr int64_t gemm_steps(int64_t kc) {
    return sizeof(TB) == 2 ? (kc + 1) / 2 : kc;
}

// How N columns are cut into panels of up to `most` vectors. A tile one vector wide is too narrow to hide the latency of
// the multiply-add, so of 3 vectors most 4 are cut 2 + 2 and not 3 + 1.
struct GemmPanels {
    int64_t vf, most, vectors, count;
    GemmPanels(int64_t N, const GemmKernels& k, size_t element)
        : vf(k.vf),
          most(k.panel_vectors[element == 4]),
          vectors(gemm_ceil_div(N, vf)),
          count(gemm_ceil_div(vectors, most)) {}
    int64_t first_vector(int64_t p) const {
        if (p >= count) return vectors;
        bool even_out = most == 3 && vectors % 3 == 1 && p > 0 && p == count - 1;
        return p * most - (even_out ? 1 : 0);
    }
    int64_t column(int64_t p) const { return first_vector(p) * vf; }
    int width(int64_t p) const { return (int)(column(p + 1) - column(p)); }
    int64_t most_columns() const { return most * vf; }
};
template <class TB>
GemmPanels gemm_panels(int64_t N) {
    return GemmPanels(N, gemm_kernels(), sizeof(TB));
}

// ---- packing ----

// One panel of B: columns [n0, n0 + width), k in [k0, k0 + kc) -> dst[steps][width], zero beyond N and beyond k0 + kc.
// B is [N,K] with B_IS_NK (a weight used forward), else [K,N].
template <bool B_IS_NK, class TB>
void gemm_pack_b(uint32_t* dst, const TB* B, int64_t ldb, int64_t n0, int width, int64_t N, int64_t k0, int64_t kc) {
    const int valid = (int)gemm_min(width, N - n0);
    if (B_IS_NK) {
        const int64_t whole = sizeof(TB) == 2 ? kc / 2 : kc;  // words that lie inside a row
        const GemmKernels& kernels = gemm_kernels();
        for (int j0 = 0; j0 < width; j0 += kernels.vf) {
            const TB* src = B + (n0 + j0) * ldb + k0;
            const int rows = (int)gemm_min(kernels.vf, valid - j0);
            kernels.transpose_words(dst + j0, width, (const char*)src, ldb * (int64_t)sizeof(TB), rows, whole);
            if (sizeof(TB) == 2 && kc % 2 == 1) {
                for (int j = 0; j < kernels.vf; j++) {
                    uint16_t low = 0;
                    if (j < rows) memcpy(&low, src + j * ldb + kc - 1, 2);
                    dst[whole * width + j0 + j] = low;
                }
            }
        }
    }
    for (int64_t s = 0; !B_IS_NK && s < gemm_steps<TB>(kc); s++) {
        uint32_t* out = dst + s * width;
        const TB* src = B + (k0 + s * (sizeof(TB) == 2 ? 2 : 1)) * ldb + n0;
        if (sizeof(TB) == 4) memcpy(out, src, (size_t)valid * 4);
        else
            gemm_kernels().pair_rows(out, (const uint16_t*)src, 2 * s + 1 < kc ? (const uint16_t*)src + ldb : nullptr,
                                     valid);
        for (int j = valid; j < width; j++) out[j] = 0;
    }
}

// Rows of A [rows, kc] -> dst[rows][ld], `words` of a row, padded with zeros. pairs: the words are pairs
template <class TA>
void gemm_pack_a_rows(uint32_t* dst, int64_t ld, int64_t words, bool pairs, const TA* A, int64_t lda, int64_t rows,
                      int64_t kc) {
    for (int64_t i = 0; i < rows; i++, dst += ld, A += lda) {
        if (pairs) {
            dst[words - 1] = 0;
            memcpy(dst, A, (size_t)kc * sizeof(TA));
        } else {
            for (int64_t k = 0; k < words; k++) dst[k] = k < kc ? float_bits((float)A[k]) : 0;
        }
    }
}

// Word s of each of the columns of A [kc, columns] -> row[columns]
template <class TA>
void gemm_words_of_columns(uint32_t* row, int64_t s, bool pairs, const TA* A, int64_t lda, int64_t columns,
                           int64_t kc) {
    const int64_t k = pairs ? 2 * s : s;
    const TA* src = A + k * lda;
    if (pairs)
        gemm_kernels().pair_rows(row, (const uint16_t*)src, k + 1 < kc ? (const uint16_t*)(src + lda) : nullptr,
                                 (int)columns);
    else
        for (int64_t i = 0; i < columns; i++) row[i] = k < kc ? float_bits((float)src[i]) : 0;
}

// words from one packed row of A, or of one packed panel of mr rows, to the next: a cache line more than it holds, or those
// of 2^n bytes would compete for the same cache ways
inline int64_t gemm_a_row(int64_t words) { return words + 16; }
inline int64_t gemm_a_panel(int64_t words, int64_t mr) { return words * mr + 16; }

// Columns of A [kc, columns] -> panels [words][mr], one for every mr columns, zero beyond the last. k is the outer loop: a
// row of A is read once, through its whole length.
template <class TA>
void gemm_pack_a_columns(uint32_t* dst, int64_t mr, int64_t words, bool pairs, const TA* A, int64_t lda,
                         int64_t columns, int64_t kc) {
    uint32_t row[GEMM_TASK_ROWS + GEMM_MAX_MR] = {};
    for (int64_t s = 0; s < words; s++) {
        gemm_words_of_columns(row, s, pairs, A, lda, columns, kc);
        uint32_t* out = dst + s * mr;
        for (int64_t i = 0; i < columns; i += mr, out += gemm_a_panel(words, mr)) {
            if (mr == 8) memcpy(out, row + i, 32);  // AVX-512's: two moves, where a copy of any length is a call
            else memcpy(out, row + i, (size_t)mr * 4);
        }
    }
}

// Columns of A [kc, columns] -> rows of pairs dst[columns][gemm_a_row(words)], for tiles that read no panel
template <class TA>
void gemm_pack_a_columns_as_rows(uint32_t* dst, int64_t words, const TA* A, int64_t lda, int64_t columns, int64_t kc) {
    constexpr int64_t BLOCK = 16, LD = GEMM_TASK_ROWS + GEMM_MAX_MR;
    const GemmKernels& kernels = gemm_kernels();
    uint32_t block[BLOCK * LD];
    for (int64_t s0 = 0; s0 < words; s0 += BLOCK) {
        const int64_t count = gemm_min(BLOCK, words - s0);
        for (int64_t s = 0; s < count; s++) gemm_words_of_columns(block + s * LD, s0 + s, true, A, lda, columns, kc);
        for (int64_t s = 0; s < count; s += kernels.vf)  // beyond the last word lies the row's padding
            kernels.transpose_words(dst + s0 + s, gemm_a_row(words), (const char*)(block + s * LD), LD * 4,
                                    (int)gemm_min(kernels.vf, count - s), columns);
    }
}

// ---- the loops ----

// Makes a panel of B that is stored otherwise (gemm_quantized.h), as gemm_pack_b does: dst[steps][width]
typedef void (*GemmExpand)(uint32_t* dst, const void* stored, int64_t n0, int width, int64_t k0, int64_t kc);

// What is asked: C[M,N] (+)= A B + bias. A is [M,K], or [K,M] with A_IS_KM; B is [N,K] with B_IS_NK, else [K,N].
template <class TC, class TA, class TB>
struct GemmProduct {
    TC* C;
    const TA* A;
    const TB* B;     // null when packed or stored otherwise
    const TB* bias;  // [N] or null
    int64_t M, N, K;
    int64_t ldc, lda, ldb;
    bool accumulate = false;
    const uint32_t* packed = nullptr;  // all panels of B over the whole of K, or null
    GemmExpand expand = nullptr;       // null, or what makes panels of `stored`
    const void* stored = nullptr;
};

// How it is done: one for all threads of a call
template <bool A_IS_KM, bool B_IS_NK, class TC, class TA, class TB>
struct GemmJob : GemmProduct<TC, TA, TB> {
    bool
        own_panels;  // B is expanded in each task, not to shared_b: one task has all rows, so no other needs its panels
    int64_t chunk_rows, chunk_panels;  // what is worked on between two barriers
    uint32_t *shared_a, *shared_b;     // packed A of one task for each thread; packed B of one chunk
    const GemmKernels* kernels;
    GemmKind kind;
    int64_t kc, mr;   // of this kind
    int64_t a_words;  // of packed A for each thread
    float* sums;      // [chunk_rows, chunk columns] when C is bf16 and K needs several blocks
    std::atomic<int64_t> next_task;
};

// a part of C: rows [m0, m1), panels [p0, p1)
struct GemmBlock {
    int64_t m0, m1, p0, p1;
};

// The sums of k block `kb` over the block `at`, one panel wide, to C or to where they wait for the next k block
template <bool A_IS_KM, bool B_IS_NK, class TC, class TA, class TB>
void gemm_finish_tile(const GemmJob<A_IS_KM, B_IS_NK, TC, TA, TB>& job, GemmBlock chunk, const float* tile,
                      GemmBlock at, int64_t kb) {
    const GemmPanels panels = gemm_panels<TB>(job.N);
    const bool first = kb == 0, last = (kb + 1) * job.kc >= job.K;
    const int64_t n0 = panels.column(at.p0);
    const int width = panels.width(at.p0);
    const int rows = (int)(at.m1 - at.m0), cols = (int)gemm_min(width, job.N - n0);
    TC* c = job.C + at.m0 * job.ldc + n0;
    const TC* old = job.accumulate ? c : nullptr;
    const TB* bias = job.bias ? job.bias + n0 : nullptr;
    constexpr int C = sizeof(TC) == 4, BIAS = sizeof(TB) == 4, FLOAT = 1;  // types in the table
    const auto& finish = job.kernels->finish;
    if (first && last) {
        finish[C][C][BIAS](c, job.ldc, old, job.ldc, tile, width, bias, rows, cols);
        return;
    }
    // block sums are carried in float: in C itself if it is float
    float* sum = (float*)(void*)c;
    int64_t ld = job.ldc;
    if (sizeof(TC) == 2) {
        ld = panels.column(chunk.p1) - panels.column(chunk.p0);
        sum = job.sums + (at.m0 - chunk.m0) * ld + n0 - panels.column(chunk.p0);
    }
    if (first) finish[FLOAT][C][BIAS](sum, ld, old, job.ldc, tile, width, nullptr, rows, cols);
    else if (!last) finish[FLOAT][FLOAT][BIAS](sum, ld, sum, ld, tile, width, nullptr, rows, cols);
    else finish[C][FLOAT][BIAS](c, job.ldc, sum, ld, tile, width, bias, rows, cols);
}

// One task: the block `part` of `chunk`, for k block `kb`. B's panels come from the packed weight, from shared_b, or
// are made here.
template <bool A_IS_KM, bool B_IS_NK, class TC, class TA, class TB>
void gemm_task(const GemmJob<A_IS_KM, B_IS_NK, TC, TA, TB>& job, GemmBlock chunk, GemmBlock part, int64_t kb,
               int thread) {
    const GemmKernels& kernels = *job.kernels;
    const GemmPanels panels = gemm_panels<TB>(job.N);
    const int64_t k0 = kb * job.kc, kc = gemm_min(job.kc, job.K - k0), steps = gemm_steps<TB>(kc), mr = job.mr;
    const int64_t words = job.kind == GEMM_PAIRS_WIDEN ? 2 * steps : steps;  // of A in a row
    const int64_t rows = part.m1 - part.m0, tiles = gemm_ceil_div(rows, mr);
    const bool pairs = job.kind == GEMM_PAIRS_DOT, panel = A_IS_KM && !(pairs && kernels.dot_rows);
    const GemmTile multiply = kernels.tile[job.kind][panel];
    // A: the words the tile reads, where they stand if they are just that
    const bool direct = !A_IS_KM && (pairs ? kc % 2 == 0 : sizeof(TA) == 4 && words == kc);
    uint32_t* packed_a = job.shared_a + thread * job.a_words;
    const TA* a = A_IS_KM ? job.A + k0 * job.lda + part.m0 : job.A + part.m0 * job.lda + k0;
    if (panel) gemm_pack_a_columns(packed_a, mr, words, pairs, a, job.lda, rows, kc);
    else if (A_IS_KM) gemm_pack_a_columns_as_rows(packed_a, words, a, job.lda, rows, kc);
    else if (!direct) gemm_pack_a_rows(packed_a, gemm_a_row(words), words, pairs, a, job.lda, rows, kc);
    const int64_t a_row_bytes = direct ? job.lda * (int64_t)sizeof(TA) : gemm_a_row(words) * 4;

    // rows are shared out evenly, 9 = 5 + 4 and not 8 + 1: a tile of one row waits on latency. Packed panels hold mr each.
    auto row = [&](int64_t t) { return t == tiles ? rows : panel ? t * mr : rows * t / tiles; };
    auto a_of = [&](int64_t t) {
        return direct ? (const char*)(a + row(t) * job.lda)
                      : (const char*)(packed_a + (panel ? t * gemm_a_panel(words, mr) : row(t) * gemm_a_row(words)));
    };
    auto finish = [&](const float* tile, int64_t t, int64_t p) {
        gemm_finish_tile(job, chunk, tile, {part.m0 + row(t), part.m0 + row(t + 1), p, p + 1}, kb);
    };

    if (job.own_panels) {  // a piece of a panel at a time, which stays in L1 for all tiles; A is not transposed there
        alignas(64) float tile[(GEMM_TASK_ROWS + GEMM_MAX_MR) * GEMM_MAX_NR];
        alignas(64) uint32_t piece[GEMM_PIECE * GEMM_MAX_NR];
        constexpr int64_t K_STEP = sizeof(TB) == 2 ? 2 : 1;
        for (int64_t p = part.p0; p < part.p1; p++) {
            const int width = panels.width(p);
            for (int64_t s = 0; s < steps; s += GEMM_PIECE) {
                const int64_t count = gemm_min(GEMM_PIECE, steps - s), k = s * K_STEP;
                job.expand(piece, job.stored, panels.column(p), width, k0 + k, gemm_min(kc - k, count * K_STEP));
                for (int64_t t = 0; t < tiles; t++)
                    multiply(tile + t * mr * width, a_of(t) + s * (words / gemm_max(1, steps)) * 4, a_row_bytes, piece,
                             count, s > 0, (int)(row(t + 1) - row(t)), width / kernels.vf);
            }
            for (int64_t t = 0; t < tiles; t++) finish(tile + t * mr * width, t, p);
        }
        return;
    }
    const int64_t group = gemm_max(1, GEMM_GROUP_BYTES / gemm_max(1, steps * panels.most_columns() * 4));
    for (int64_t g = part.p0; g < part.p1; g += group) {
        const int64_t g_end = gemm_min(g + group, part.p1);
        for (int64_t t = 0; t < tiles; t++)
            for (int64_t p = g; p < g_end; p++) {
                const int64_t n0 = panels.column(p);
                const int width = panels.width(p);
                const uint32_t* b = job.packed ? job.packed + n0 * gemm_steps<TB>(job.K) + gemm_steps<TB>(k0) * width
                                               : job.shared_b + (n0 - panels.column(chunk.p0)) * steps;
                alignas(64) float tile[GEMM_MAX_MR * GEMM_MAX_NR];
                multiply(tile, a_of(t), a_row_bytes, b, steps, false, (int)(row(t + 1) - row(t)), width / kernels.vf);
                finish(tile, t, p);
            }
    }
}

inline void gemm_barrier(int threads) {
    (void)threads;
#if defined(_OPENMP)
    if (threads > 1) {
#pragma omp barrier
    }
#endif
}

// what each thread runs: for every chunk of C and every k block, pack B together, then take tasks until none is left
template <bool A_IS_KM, bool B_IS_NK, class TC, class TA, class TB>
void gemm_thread(GemmJob<A_IS_KM, B_IS_NK, TC, TA, TB>& job, int thread, int threads) {
    const GemmPanels panels = gemm_panels<TB>(job.N);
    const int64_t k_blocks = gemm_max(1, gemm_ceil_div(job.K, job.kc)), mr = job.mr;
    const bool whole = job.packed || job.own_panels;  // a task finds panels of all k blocks
    for (int64_t m0 = 0; m0 < job.M; m0 += job.chunk_rows)
        for (int64_t p0 = 0; p0 < panels.count; p0 += job.chunk_panels) {
            const GemmBlock chunk = {m0, gemm_min(m0 + job.chunk_rows, job.M), p0,
                                     gemm_min(p0 + job.chunk_panels, panels.count)};
            const int64_t m_count = chunk.m1 - m0, p_count = chunk.p1 - p0;
            // tasks as large as the caches like, then halved until there are four a thread to share out
            int64_t task_rows = gemm_min(m_count, GEMM_TASK_ROWS);
            int64_t task_panels = p_count;
            while (threads > 1 && (task_rows > mr || task_panels > 1) &&
                   gemm_ceil_div(m_count, task_rows) * gemm_ceil_div(p_count, task_panels) < 4 * threads) {
                if (job.own_panels && task_panels == 1) break;
                if (!job.own_panels && (task_panels == 1 || task_rows > task_panels * panels.most_columns()))
                    task_rows = gemm_max(mr, task_rows / 2);
                else task_panels = (task_panels + 1) / 2;
            }
            task_rows = gemm_ceil_div(task_rows, mr) * mr;
            const int64_t row_blocks = gemm_ceil_div(m_count, task_rows), groups = gemm_ceil_div(p_count, task_panels);

            const int64_t stages = whole ? 1 : k_blocks;
            for (int64_t stage = 0; stage < stages; stage++) {
                if (m0 + p0 + stage > 0) {  // everyone is done with the panels, the sums and the counter
                    gemm_barrier(threads);
                    if (thread == 0) job.next_task.store(0, std::memory_order_relaxed);
                    if (whole) gemm_barrier(threads);
                }
                if (!whole) {
                    const int64_t k0 = stage * job.kc, kc = gemm_min(job.kc, job.K - k0);
                    // [K,N] goes a few rows at a time through all the panels of the thread, so that rows are read at
                    // length
                    const int64_t sweep = B_IS_NK ? job.kc : 16, steps = gemm_steps<TB>(kc);
                    const int64_t begin = p0 + p_count * thread / threads, end = p0 + p_count * (thread + 1) / threads;
                    for (int64_t k = 0; k < kc; k += sweep)
                        for (int64_t p = begin; p < end; p++) {
                            const int64_t n0 = panels.column(p);
                            const int width = panels.width(p);
                            uint32_t* to = job.shared_b + (n0 - panels.column(p0)) * steps + gemm_steps<TB>(k) * width;
                            const int64_t count = gemm_min(sweep, kc - k);
                            if (job.expand) job.expand(to, job.stored, n0, width, k0 + k, count);
                            else gemm_pack_b<B_IS_NK>(to, job.B, job.ldb, n0, width, job.N, k0 + k, count);
                        }
                    gemm_barrier(threads);
                }
                for (;;) {
                    const int64_t task = job.next_task.fetch_add(1, std::memory_order_relaxed);
                    if (task >= row_blocks * groups) break;
                    // neighbours in time share panels
                    const int64_t block = task % row_blocks, group = task / row_blocks;
                    GemmBlock part = {m0 + block * task_rows, gemm_min(m0 + (block + 1) * task_rows, chunk.m1),
                                      p0 + p_count * group / groups, p0 + p_count * (group + 1) / groups};
                    for (int64_t kb = stage; kb < (whole ? k_blocks : stage + 1); kb++)
                        gemm_task(job, chunk, part, kb, thread);
                }
            }
        }
    if (job.kernels->release) job.kernels->release();
}

template <bool A_IS_KM, bool B_IS_NK, class TC, class TA, class TB>
void gemm_run(const GemmProduct<TC, TA, TB>& product) {
    const int64_t M = product.M, N = product.N, K = product.K;
    if (M <= 0 || N <= 0) return;
    GemmJob<A_IS_KM, B_IS_NK, TC, TA, TB> job;
    static_cast<GemmProduct<TC, TA, TB>&>(job) = product;
    job.kernels = &gemm_kernels();
    job.kind = gemm_kind<TA, TB>();
    job.kc = job.kernels->kc, job.mr = job.kernels->mr[job.kind];
    job.own_panels = job.expand && M <= GEMM_TASK_ROWS;
    job.next_task.store(0, std::memory_order_relaxed);
    int threads = 1;
#if defined(_OPENMP)
    const double worth = (double)M * (double)N * (double)K / GEMM_WORK_PER_THREAD;
    const int max_threads = omp_get_max_threads();
    threads = worth >= max_threads ? max_threads : worth < 2 ? 1 : (int)worth;
#endif
    const GemmPanels panels = gemm_panels<TB>(N);
    const int64_t kc = gemm_min(K, job.kc), columns = panels.most_columns();
    const int64_t panel_bytes = gemm_max(1, gemm_steps<TB>(kc)) * columns * 4;
    job.chunk_rows = M;
    job.chunk_panels = panels.count;
    job.shared_b = nullptr, job.sums = nullptr;
    if (!job.packed && !job.own_panels) {
        job.chunk_panels = gemm_min(job.chunk_panels, gemm_max(1, GEMM_SHARED_BYTES / panel_bytes));
        job.shared_b = (uint32_t*)gemm_scratch(GEMM_SCRATCH_B).get((size_t)(job.chunk_panels * panel_bytes));
    }
    if (sizeof(TC) == 2 && K > job.kc) {
        const int64_t most = GEMM_SHARED_BYTES / (columns * 4);  // rows x panels
        job.chunk_panels = gemm_min(job.chunk_panels, most / gemm_min(M, 2 * GEMM_TASK_ROWS));
        job.chunk_rows = gemm_min(M, most / job.chunk_panels);
        job.sums =
            (float*)gemm_scratch(GEMM_SCRATCH_SUMS).get((size_t)(job.chunk_rows * job.chunk_panels * columns * 4));
    }
    const int64_t task_tiles = gemm_ceil_div(gemm_min(M, GEMM_TASK_ROWS), job.mr);
    const int64_t as_panels = task_tiles * gemm_a_panel(kc + 1, job.mr),
                  as_rows = task_tiles * job.mr * gemm_a_row(kc + 1);
    job.a_words = gemm_ceil_div(gemm_max(as_panels, as_rows), 16) * 16;
    job.shared_a = (uint32_t*)gemm_scratch(GEMM_SCRATCH_A).get((size_t)(threads * job.a_words * 4));
    if (threads == 1) {
        gemm_thread(job, 0, 1);
        return;
    }
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads)
    gemm_thread(job, omp_get_thread_num(), omp_get_num_threads());
#endif
}

// ---- the interface ----
// All matrices are row-major. Outputs are bf16 or float, inputs too, in any mix. Not to be called from two threads at
// once with overlapping outputs.

// keeps a parameter out of template deduction, so that nullptr may be passed
template <class T>
struct GemmSame {
    typedef T type;
};

// Elements from one row to the next of a product's matrices, as they stand among its parameters; 0: dense
struct GemmStrides {
    int64_t out = 0, left = 0, right = 0;
};

// Y[M,N] (+)= X[M,K] W[N,K]^T + bias[N]; bias may be null. M = 0 does nothing.
template <class TY, class TX, class TW>
void gemm_nt(TY* Y, const TX* X, const TW* W, const typename GemmSame<TW>::type* bias, int64_t M, int64_t N, int64_t K,
             bool accumulate = false, GemmStrides ld = {}) {
    ld = {ld.out ? ld.out : N, ld.left ? ld.left : K, ld.right ? ld.right : K};
    gemm_run<false, true>(GemmProduct<TY, TX, TW>{Y, X, W, bias, M, N, K, ld.out, ld.left, ld.right, accumulate});
}

// dX[M,K] (+)= dY[M,N] W[N,K]. M = 0 does nothing.
template <class TX, class TY, class TW>
void gemm_nn(TX* dX, const TY* dY, const TW* W, int64_t M, int64_t N, int64_t K, bool accumulate = false,
             GemmStrides ld = {}) {
    ld = {ld.out ? ld.out : K, ld.left ? ld.left : N, ld.right ? ld.right : K};
    gemm_run<false, false>(GemmProduct<TX, TY, TW>{dX, dY, W, nullptr, M, K, N, ld.out, ld.left, ld.right, accumulate});
}

// dW[N,K] += dY[M,N]^T X[M,K], dW float. M = 0 does nothing.
template <class TY, class TX>
void gemm_tn(float* dW, const TY* dY, const TX* X, int64_t M, int64_t N, int64_t K, GemmStrides ld = {}) {
    if (M <= 0) return;
    ld = {ld.out ? ld.out : K, ld.left ? ld.left : N, ld.right ? ld.right : K};
    gemm_run<true, false>(GemmProduct<float, TY, TX>{dW, dY, X, nullptr, N, K, M, ld.out, ld.left, ld.right, true});
}

// A weight [N,K] in the order the tile reads it, for the thousands of products of a generation. N is rounded up to a
// vector and, for bf16, K to a pair: otherwise the size of W. Can be moved, not copied.
template <class TW>
struct PackedWeight {
    uint32_t* words = nullptr;
    int64_t N = 0, K = 0;
    PackedWeight() = default;
    PackedWeight(const PackedWeight&) = delete;
    PackedWeight& operator=(const PackedWeight&) = delete;
    PackedWeight(PackedWeight&& other) noexcept { swap(other); }
    PackedWeight& operator=(PackedWeight&& other) noexcept {
        swap(other);
        return *this;
    }
    ~PackedWeight() { free(words); }
    void swap(PackedWeight& other) noexcept {
        uint32_t* w = words;
        int64_t n = N, k = K;
        words = other.words, N = other.N, K = other.K;
        other.words = w, other.N = n, other.K = k;
    }
    size_t bytes() const {
        const GemmPanels panels = gemm_panels<TW>(N);
        return (size_t)(panels.vectors * panels.vf * gemm_steps<TW>(K) * 4);
    }
};

// Packs W[N,K] into `packed`, in its present memory if the shape has not changed (the weights of the next training
// step).
template <class TW>
void repack_weight_nt(PackedWeight<TW>& packed, const TW* W, int64_t N, int64_t K, int64_t ldw = 0) {
    if (packed.N != N || packed.K != K) {
        PackedWeight<TW> fresh;
        fresh.N = N, fresh.K = K;
        fresh.words = (uint32_t*)aligned_alloc(64, (fresh.bytes() + 63) / 64 * 64);
        if (!fresh.words)
            fail("gemm: cannot allocate %zu bytes to pack a weight [%lld,%lld]: free some memory, or generate unpacked",
                 fresh.bytes(), (long long)N, (long long)K);
        packed = static_cast<PackedWeight<TW>&&>(fresh);
    }
    const GemmPanels panels = gemm_panels<TW>(N);
#if defined(_OPENMP)
#pragma omp parallel for schedule(static) if (N * K > (1 << 18))
#endif
    for (int64_t p = 0; p < panels.count; p++)
        gemm_pack_b<true>(packed.words + panels.column(p) * gemm_steps<TW>(K), W, ldw ? ldw : K, panels.column(p),
                          panels.width(p), N, 0, K);
}

template <class TW>
PackedWeight<TW> pack_weight_nt(const TW* W, int64_t N, int64_t K, int64_t ldw = 0) {
    PackedWeight<TW> packed;
    repack_weight_nt(packed, W, N, K, ldw);
    return packed;
}

// Y[M,N] (+)= X[M,K] W^T + bias[N]: the bits of gemm_nt with the weight that was packed.
template <class TY, class TX, class TW>
void gemm_nt_packed(TY* Y, const TX* X, const PackedWeight<TW>& W, const typename GemmSame<TW>::type* bias, int64_t M,
                    bool accumulate = false, GemmStrides ld = {}) {
    GemmProduct<TY, TX, TW> product = {
        Y, X, nullptr, bias, M, W.N, W.K, ld.out ? ld.out : W.N, ld.left ? ld.left : W.K, 0, accumulate};
    product.packed = W.words;
    gemm_run<false, true>(product);
}
