// Matrix products on the CPU: every linear layer of the transformer, forward and backward, in training and in generation.
// (teaching comment follows in final version)
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
#include "gemm_micro.h"

enum {
    GEMM_KC = 1024,         // k block; even. Part of the arithmetic: changing it changes bits
    GEMM_ROWS = 128,        // rows of A in one task
    GEMM_GROUP = 8,         // panels of B in one task
    GEMM_SHARED = 4 << 20,  // bytes of packed B, and of carried sums, held at once
};
static const double GEMM_FLOP_PER_THREAD = 2e6;  // below this a thread costs more than it brings

// 64-byte aligned memory that grows and is freed with its thread
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
                fail("gemm: cannot allocate %zu bytes of scratch memory", need);
            }
        }
        return data;
    }
};
enum { GEMM_SCRATCH_B, GEMM_SCRATCH_SUMS, GEMM_SCRATCH_A, GEMM_SCRATCH_COUNT };
inline GemmScratch& gemm_scratch(int which) {
    static thread_local GemmScratch scratch[GEMM_SCRATCH_COUNT];
    return scratch[which];
}

inline int64_t gemm_min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t gemm_max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t gemm_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
struct GemmSame {
    typedef T type;
};
template <class TA, class TB>
constexpr GemmKind gemm_kind() {
    if (sizeof(TB) == 4) return GEMM_FLOATS;
    return GEMM_BACKEND == GEMM_AVX512_BF16 && sizeof(TA) == 2 ? GEMM_PAIRS_DOT : GEMM_PAIRS_WIDEN;
}

// How N columns are cut into panels of up to GEMM_NV vectors. A lone last vector would leave the multiply-add units waiting
// on each other, so that 4 vectors are cut 2 + 2 rather than 3 + 1.
struct GemmPanels {
    int64_t vectors, count;
    explicit GemmPanels(int64_t N) : vectors(gemm_ceil_div(N, GEMM_VF)), count(gemm_ceil_div(vectors, GEMM_NV)) {}
    int64_t start(int64_t p) const {  // in vectors
        if (p >= count) return vectors;
        bool even_out = GEMM_NV == 3 && p == count - 1 && p > 0 && vectors % GEMM_NV == 1;
        return p * GEMM_NV - (even_out ? 1 : 0);
    }
};

// ---- packing ----

// B^T given as rows [N,K] (a weight): one panel, k in [k0, k0 + kc), columns [n0, n0 + 16*nv)
// B given as rows [K,N]: the same panel
template <bool ROWS_ARE_N, class TB>
void gemm_pack_panel(uint32_t* dst, const TB* B, int64_t ldb, int64_t n0, int nv, int64_t N, int64_t k0, int64_t kc) {
    const int64_t width = nv * GEMM_VF;
    if (ROWS_ARE_N) {
        const int64_t whole = sizeof(TB) == 2 ? kc / 2 : kc;  // words that lie inside the row
        for (int v = 0; v < nv; v++) {
            int64_t n = n0 + v * GEMM_VF;
            int valid = (int)gemm_max(0, gemm_min(GEMM_VF, N - n));
            const TB* src = B + n * ldb + k0;
            gemm_transpose_words(dst + v * GEMM_VF, width, (const char*)src, ldb * (int64_t)sizeof(TB), valid, whole);
            if (sizeof(TB) == 2 && kc % 2 == 1) {
                uint32_t* last = dst + whole * width + v * GEMM_VF;
                for (int j = 0; j < GEMM_VF; j++) {
                    uint16_t low = 0;
                    if (j < valid) memcpy(&low, src + j * ldb + kc - 1, 2);
                    last[j] = low;
                }
            }
        }
    } else {
        const int64_t valid = gemm_min(width, N - n0);
        if (sizeof(TB) == 4) {
            for (int64_t k = 0; k < kc; k++) {
                memcpy(dst + k * width, B + (k0 + k) * ldb + n0, (size_t)valid * 4);
                for (int64_t j = valid; j < width; j++) dst[k * width + j] = 0;
            }
        } else {
            for (int64_t k = 0; k < kc; k += 2) {
                const uint16_t* low = (const uint16_t*)(B + (k0 + k) * ldb + n0);
                uint32_t* out = dst + k / 2 * width;
                if (k + 1 < kc) {
                    const uint16_t* high = low + ldb;
                    for (int64_t j = 0; j < valid; j++) out[j] = low[j] | (uint32_t)high[j] << 16;
                } else {
                    for (int64_t j = 0; j < valid; j++) out[j] = low[j];
                }
                for (int64_t j = valid; j < width; j++) out[j] = 0;
            }
        }
    }
}

// rows of A [M,K] -> words [rows][words], float or pairs, zero-padded at the end of a row
template <GemmKind KIND, class TA>
void gemm_pack_rows(uint32_t* dst, int64_t words, const TA* A, int64_t lda, int64_t rows, int64_t kc) {
    for (int64_t i = 0; i < rows; i++) {
        const TA* src = A + i * lda;
        if (KIND == GEMM_PAIRS_DOT) {
            dst[i * words + words - 1] = 0;
            memcpy(dst + i * words, src, (size_t)kc * sizeof(TA));
        } else {
            float* out = (float*)(dst + i * words);
            for (int64_t k = 0; k < kc; k++) out[k] = (float)src[k];
            for (int64_t k = kc; k < words; k++) out[k] = 0.0f;
        }
    }
}

// columns of A [K,M] -> one panel of words [words][GEMM_MR]
template <GemmKind KIND, class TA>
void gemm_pack_columns(uint32_t* dst, int64_t words, const TA* A, int64_t lda, int rows, int64_t kc) {
    if (KIND == GEMM_PAIRS_DOT) {
        for (int64_t s = 0; s < words; s++) {
            const uint16_t* low = (const uint16_t*)(A + 2 * s * lda);
            const uint16_t* high = low + lda;
            bool pair = 2 * s + 1 < kc;
            uint32_t* out = dst + s * GEMM_MR;
            if (pair && rows == GEMM_MR) {
                for (int i = 0; i < GEMM_MR; i++) out[i] = low[i] | (uint32_t)high[i] << 16;
            } else {
                for (int i = 0; i < rows; i++) out[i] = low[i] | (pair ? (uint32_t)high[i] << 16 : 0u);
            }
        }
    } else {
        for (int64_t k = 0; k < words; k++) {
            float* out = (float*)(dst + k * GEMM_MR);
            if (k < kc) {
                for (int i = 0; i < rows; i++) out[i] = (float)A[k * lda + i];
            } else {
                for (int i = 0; i < rows; i++) out[i] = 0.0f;
            }
        }
    }
}

// ---- the end of a tile ----

// dst[i][j] = (prev ? prev[i][j] + tile : tile) + (bias ? bias[j] : 0)
template <class TD, class TP, class TBias>
void gemm_finish(TD* dst, int64_t ldd, const TP* prev, int64_t ldp, const float* tile, const TBias* bias, int rows,
                 int64_t cols) {
    for (int i = 0; i < rows; i++) {
        TD* d = dst + i * ldd;
        const float* t = tile + i * GEMM_NR;
        if (prev && bias) {
            for (int64_t j = 0; j < cols; j++) d[j] = (TD)(((float)prev[i * ldp + j] + t[j]) + (float)bias[j]);
        } else if (prev) {
            for (int64_t j = 0; j < cols; j++) d[j] = (TD)((float)prev[i * ldp + j] + t[j]);
        } else if (bias) {
            for (int64_t j = 0; j < cols; j++) d[j] = (TD)(t[j] + (float)bias[j]);
        } else {
            for (int64_t j = 0; j < cols; j++) d[j] = (TD)t[j];
        }
    }
}

// ---- the loops ----

template <class TC, class TA, class TB, class TBias>
struct GemmJob {
    TC* C;            // [M,N]
    const TA* A;      // [M,K], or [K,M] with A_COLUMNS
    const TB* B;      // [N,K] with B_ROWS_ARE_N, else [K,N]; null when packed
    const uint32_t* packed;  // all panels over the whole K, or null
    const TBias* bias;       // [N] or null
    int64_t M, N, K, ldc, lda, ldb;
    bool accumulate;
    // shared by the threads
    uint32_t* shared_b;
    float* sums;
    std::atomic<int64_t> next;
    int threads;
};

inline void gemm_barrier(int threads) {
    (void)threads;
#if defined(_OPENMP)
    if (threads > 1) {
#pragma omp barrier
    }
#endif
}

template <bool A_COLUMNS, bool B_ROWS_ARE_N, class TC, class TA, class TB, class TBias>
void gemm_work(GemmJob<TC, TA, TB, TBias>& job, int thread, int64_t chunk_rows, int64_t chunk_panels) {
    constexpr GemmKind KIND = gemm_kind<TA, TB>();
    constexpr bool B_PAIRS = sizeof(TB) == 2;
    const int64_t M = job.M, N = job.N, K = job.K, ldc = job.ldc;
    const GemmPanels panels(N);
    const int64_t all_steps = B_PAIRS ? (K + 1) / 2 : K;
    const int64_t k_blocks = gemm_max(1, gemm_ceil_div(K, GEMM_KC));
    const bool float_out = sizeof(TC) == 4;

    for (int64_t m_chunk = 0; m_chunk < M; m_chunk += chunk_rows)
        for (int64_t p_chunk = 0; p_chunk < panels.count; p_chunk += chunk_panels) {
            const int64_t m_count = gemm_min(chunk_rows, M - m_chunk);
            const int64_t p_end = gemm_min(p_chunk + chunk_panels, panels.count);
            const int64_t chunk_n0 = panels.start(p_chunk) * GEMM_VF;
            const int64_t ld_sums = panels.start(p_end) * GEMM_VF - chunk_n0;
            // tasks: row blocks x panel groups, four a thread if there is enough to share out
            const int64_t tiles = gemm_ceil_div(m_count, GEMM_MR);
            int64_t task_tiles = gemm_min(tiles, GEMM_ROWS / GEMM_MR), task_panels = gemm_min(p_end - p_chunk, GEMM_GROUP);
            while (gemm_ceil_div(tiles, task_tiles) * gemm_ceil_div(p_end - p_chunk, task_panels) < 4 * job.threads &&
                   job.threads > 1 && (task_tiles > 1 || task_panels > 1)) {
                if (task_tiles >= 4 * task_panels || task_panels == 1)
                    task_tiles = (task_tiles + 1) / 2;
                else
                    task_panels = (task_panels + 1) / 2;
            }
            const int64_t row_blocks = gemm_ceil_div(tiles, task_tiles);
            const int64_t groups = gemm_ceil_div(p_end - p_chunk, task_panels);

            for (int64_t stage = 0; stage < (job.packed ? 1 : k_blocks); stage++) {
                if (thread == 0) job.next.store(0, std::memory_order_relaxed);
                if (!job.packed) {
                    const int64_t k0 = stage * GEMM_KC, kc = gemm_min(GEMM_KC, K - k0);
                    const int64_t steps = B_PAIRS ? (kc + 1) / 2 : kc;
                    const int64_t first = p_chunk + (p_end - p_chunk) * thread / job.threads;
                    const int64_t last = p_chunk + (p_end - p_chunk) * (thread + 1) / job.threads;
                    for (int64_t p = first; p < last; p++) {
                        int64_t v0 = panels.start(p), v1 = panels.start(p + 1);
                        gemm_pack_panel<B_ROWS_ARE_N>(job.shared_b + (v0 * GEMM_VF - chunk_n0) * steps, job.B, job.ldb,
                                                      v0 * GEMM_VF, (int)(v1 - v0), N, k0, kc);
                    }
                }
                gemm_barrier(job.threads);
                for (;;) {
                    const int64_t task = job.next.fetch_add(1, std::memory_order_relaxed);
                    if (task >= row_blocks * groups) break;
                    // consecutive tasks share their panels
                    const int64_t row_block = task % row_blocks, group = task / row_blocks;
                    const int64_t t0 = tiles * row_block / row_blocks, t1 = tiles * (row_block + 1) / row_blocks;
                    const int64_t p0 = p_chunk + (p_end - p_chunk) * group / groups;
                    const int64_t p1 = p_chunk + (p_end - p_chunk) * (group + 1) / groups;
                    const int64_t r0 = m_chunk + m_count * t0 / tiles, r1 = m_chunk + m_count * t1 / tiles;
                    for (int64_t kb = job.packed ? 0 : stage; kb < (job.packed ? k_blocks : stage + 1); kb++) {
                        const int64_t k0 = kb * GEMM_KC, kc = gemm_min(GEMM_KC, K - k0);
                        const int64_t steps = B_PAIRS ? (kc + 1) / 2 : kc;
                        const int64_t a_words = KIND == GEMM_PAIRS_WIDEN ? 2 * steps : steps;
                        // A as it stands in memory where that is what the kernel reads
                        const bool direct = !A_COLUMNS && (KIND == GEMM_PAIRS_DOT ? kc % 2 == 0 : sizeof(TA) == 4 && a_words == kc);
                        uint32_t* pack = nullptr;
                        if (!direct) {
                            const int64_t rows = A_COLUMNS ? (t1 - t0) * GEMM_MR : r1 - r0;
                            pack = (uint32_t*)gemm_scratch(GEMM_SCRATCH_A).get((size_t)(rows * a_words * 4));
                            if (A_COLUMNS) {
                                for (int64_t t = t0; t < t1; t++) {
                                    int64_t r = m_chunk + m_count * t / tiles;
                                    gemm_pack_columns<KIND>(pack + (t - t0) * GEMM_MR * a_words, a_words,
                                                            job.A + k0 * job.lda + r, job.lda,
                                                            (int)(m_chunk + m_count * (t + 1) / tiles - r), kc);
                                }
                            } else {
                                gemm_pack_rows<KIND>(pack, a_words, job.A + r0 * job.lda + k0, job.lda, rows, kc);
                            }
                        }
                        const bool first = kb == 0, last = kb == k_blocks - 1;
                        for (int64_t p = p0; p < p1; p++) {
                            const int64_t v0 = panels.start(p), n0 = v0 * GEMM_VF;
                            const int nv = (int)(panels.start(p + 1) - v0);
                            const int64_t cols = gemm_min(nv * GEMM_VF, N - n0);
                            const uint32_t* b = job.packed
                                                    ? job.packed + n0 * all_steps + (B_PAIRS ? k0 / 2 : k0) * nv * GEMM_VF
                                                    : job.shared_b + (n0 - chunk_n0) * steps;
                            for (int64_t t = t0; t < t1; t++) {
                                const int64_t r = m_chunk + m_count * t / tiles;
                                const int rows = (int)(m_chunk + m_count * (t + 1) / tiles - r);
                                alignas(64) float tile[GEMM_MR * GEMM_NR];
                                const char* a;
                                int64_t a_row_bytes;
                                if (direct) {
                                    a = (const char*)(job.A + r * job.lda + k0);
                                    a_row_bytes = job.lda * (int64_t)sizeof(TA);
                                } else {
                                    a = (const char*)(pack + (A_COLUMNS ? (t - t0) * GEMM_MR : r - r0) * a_words);
                                    a_row_bytes = a_words * 4;
                                }
                                gemm_pick_micro<KIND, A_COLUMNS>(rows, nv)(tile, a, a_row_bytes, b, steps);
                                TC* c = job.C + r * ldc + n0;
                                float* sum = float_out ? (float*)(void*)c : job.sums + (r - m_chunk) * ld_sums + n0 - chunk_n0;
                                const int64_t ld_sum = float_out ? ldc : ld_sums;
                                const TC* old = job.accumulate ? c : nullptr;
                                const TBias* bias = job.bias ? job.bias + n0 : nullptr;
                                const TBias* none = nullptr;
                                const float* no_sum = nullptr;
                                if (first && last)
                                    gemm_finish(c, ldc, old, ldc, tile, bias, rows, cols);
                                else if (first && job.accumulate)
                                    gemm_finish(sum, ld_sum, old, ldc, tile, none, rows, cols);
                                else if (first)
                                    gemm_finish(sum, ld_sum, no_sum, 0, tile, none, rows, cols);
                                else if (!last)
                                    gemm_finish(sum, ld_sum, (const float*)sum, ld_sum, tile, none, rows, cols);
                                else
                                    gemm_finish(c, ldc, (const float*)sum, ld_sum, tile, bias, rows, cols);
                            }
                        }
                    }
                }
                gemm_barrier(job.threads);
            }
        }
}

template <bool A_COLUMNS, bool B_ROWS_ARE_N, class TC, class TA, class TB, class TBias>
void gemm_run(TC* C, const TA* A, const TB* B, const uint32_t* packed, const TBias* bias, int64_t M, int64_t N, int64_t K,
              bool accumulate, int64_t ldc, int64_t lda, int64_t ldb) {
    if (M <= 0 || N <= 0) return;
    GemmJob<TC, TA, TB, TBias> job;
    job.C = C, job.A = A, job.B = B, job.packed = packed, job.bias = bias;
    job.M = M, job.N = N, job.K = K, job.ldc = ldc, job.lda = lda, job.ldb = ldb;
    job.accumulate = accumulate;
    job.shared_b = nullptr, job.sums = nullptr;
    job.threads = 1;
#if defined(_OPENMP)
    job.threads = (int)gemm_max(1, gemm_min(omp_get_max_threads(), (int64_t)(2.0 * M * N * K / GEMM_FLOP_PER_THREAD)));
#endif
    const GemmPanels panels(N);
    const int64_t steps = sizeof(TB) == 2 ? (gemm_min(K, GEMM_KC) + 1) / 2 : gemm_min(K, GEMM_KC);
    int64_t chunk_panels = panels.count, chunk_rows = M;
    if (!packed) {
        const int64_t panel_bytes = gemm_max(1, steps) * GEMM_NR * 4;
        chunk_panels = gemm_min(chunk_panels, gemm_max(1, GEMM_SHARED / panel_bytes));
        job.shared_b = (uint32_t*)gemm_scratch(GEMM_SCRATCH_B).get((size_t)(chunk_panels * panel_bytes));
    }
    if (sizeof(TC) == 2 && K > GEMM_KC) {
        chunk_panels = gemm_min(chunk_panels, gemm_max(1, GEMM_SHARED / (gemm_min(M, 256) * GEMM_NR * 4)));
        chunk_rows = gemm_min(M, gemm_max(GEMM_MR, GEMM_SHARED / (chunk_panels * GEMM_NR * 4)));
        job.sums = (float*)gemm_scratch(GEMM_SCRATCH_SUMS).get((size_t)(chunk_rows * chunk_panels * GEMM_NR * 4));
    }
    if (job.threads == 1) {
        gemm_work<A_COLUMNS, B_ROWS_ARE_N>(job, 0, chunk_rows, chunk_panels);
        return;
    }
#if defined(_OPENMP)
#pragma omp parallel num_threads(job.threads)
    {
#pragma omp single
        job.threads = omp_get_num_threads();
        gemm_work<A_COLUMNS, B_ROWS_ARE_N>(job, omp_get_thread_num(), chunk_rows, chunk_panels);
    }
#endif
}

// ---- the interface ----

// Y[M,N] (+)= X[M,K] W[N,K]^T + bias[N]. bias may be null. ld*: elements from one row to the next, 0 for dense.
template <class TY, class TX, class TW>
void gemm_nt(TY* Y, const TX* X, const TW* W, const typename GemmSame<TW>::type* bias, int64_t M, int64_t N, int64_t K,
             bool accumulate = false, int64_t ldy = 0, int64_t ldx = 0, int64_t ldw = 0) {
    gemm_run<false, true>(Y, X, W, nullptr, bias, M, N, K, accumulate, ldy ? ldy : N, ldx ? ldx : K, ldw ? ldw : K);
}

// dX[M,K] (+)= dY[M,N] W[N,K]
template <class TX, class TY, class TW>
void gemm_nn(TX* dX, const TY* dY, const TW* W, int64_t M, int64_t N, int64_t K, bool accumulate = false, int64_t lddx = 0,
             int64_t lddy = 0, int64_t ldw = 0) {
    const TW* none = nullptr;
    gemm_run<false, false>(dX, dY, W, nullptr, none, M, K, N, accumulate, lddx ? lddx : K, lddy ? lddy : N, ldw ? ldw : K);
}

// dW[N,K] += dY[M,N]^T X[M,K]
template <class TY, class TX>
void gemm_tn(float* dW, const TY* dY, const TX* X, int64_t M, int64_t N, int64_t K, int64_t lddw = 0, int64_t lddy = 0,
             int64_t ldx = 0) {
    if (M <= 0) return;
    const TX* none = nullptr;
    gemm_run<true, false>(dW, dY, X, nullptr, none, N, K, M, true, lddw ? lddw : K, lddy ? lddy : N, ldx ? ldx : K);
}

// A weight [N,K] in the kernel's own order, for the many products of generation. Move-only.
template <class TW>
struct PackedWeight {
    uint32_t* words = nullptr;
    int64_t N = 0, K = 0;
    PackedWeight() = default;
    PackedWeight(const PackedWeight&) = delete;
    PackedWeight& operator=(const PackedWeight&) = delete;
    PackedWeight(PackedWeight&& o) noexcept : words(o.words), N(o.N), K(o.K) { o.words = nullptr, o.N = o.K = 0; }
    PackedWeight& operator=(PackedWeight&& o) noexcept {
        if (this != &o) {
            free(words);
            words = o.words, N = o.N, K = o.K;
            o.words = nullptr, o.N = o.K = 0;
        }
        return *this;
    }
    ~PackedWeight() { free(words); }
    size_t bytes() const {
        return (size_t)(GemmPanels(N).vectors * GEMM_VF * (sizeof(TW) == 2 ? (K + 1) / 2 : K) * 4);
    }
};

// packs W[N,K] into `packed`, reusing its memory when the shape is the same (weights that changed by an optimizer step)
template <class TW>
void repack_weight_nt(PackedWeight<TW>& packed, const TW* W, int64_t N, int64_t K, int64_t ldw = 0) {
    if (packed.N != N || packed.K != K || !packed.words) {
        free(packed.words);
        packed.words = nullptr;
        packed.N = N, packed.K = K;
        if (N <= 0 || K <= 0) return;
        packed.words = (uint32_t*)aligned_alloc(64, (packed.bytes() + 63) / 64 * 64);
        if (!packed.words) fail("gemm: cannot allocate %zu bytes for a packed weight [%lld,%lld]", packed.bytes(), (long long)N, (long long)K);
    }
    const GemmPanels panels(N);
    const int64_t steps = sizeof(TW) == 2 ? (K + 1) / 2 : K;
#if defined(_OPENMP)
#pragma omp parallel for schedule(static) if (N * K > 1 << 18)
#endif
    for (int64_t p = 0; p < panels.count; p++) {
        int64_t v0 = panels.start(p), v1 = panels.start(p + 1);
        gemm_pack_panel<true>(packed.words + v0 * GEMM_VF * steps, W, ldw ? ldw : K, v0 * GEMM_VF, (int)(v1 - v0), N, 0, K);
    }
}

template <class TW>
PackedWeight<TW> pack_weight_nt(const TW* W, int64_t N, int64_t K, int64_t ldw = 0) {
    PackedWeight<TW> packed;
    repack_weight_nt(packed, W, N, K, ldw);
    return packed;
}

// Y[M,N] (+)= X[M,K] W^T + bias[N], the same bits as gemm_nt with the weight that was packed
template <class TY, class TX, class TW>
void gemm_nt_packed(TY* Y, const TX* X, const PackedWeight<TW>& W, const typename GemmSame<TW>::type* bias, int64_t M,
                    bool accumulate = false, int64_t ldy = 0, int64_t ldx = 0) {
    const TW* unpacked = nullptr;
    gemm_run<false, true>(Y, X, unpacked, W.words, bias, M, W.N, W.K, accumulate, ldy ? ldy : W.N, ldx ? ldx : W.K, 0);
}
