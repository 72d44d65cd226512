// The inner loops of attention on the CPU, compiled for each instruction set (each_isa.h). What they are for, and the
// order of every sum, is told in attention.h; vectors are those of vectors.h.

// Rows and vectors of a tile of sums in registers: MR * NV accumulators, NV vectors of b and one number of a must fit
// (32 zmm, 16 ymm, 16 xmm)
#if ISA >= ISA_AVX512
static constexpr int ATTENTION_MR = 6, ATTENTION_NV = 4;
#elif ISA == ISA_AVX2
static constexpr int ATTENTION_MR = 6, ATTENTION_NV = 2;
#else
static constexpr int ATTENTION_MR = 4, ATTENTION_NV = 2;
#endif
// q.k and dout.v from pairs of bf16, by vdpbf16ps
static constexpr bool ATTENTION_PAIRS = ISA == ISA_AVX512_BF16 && sizeof(floatX) == 2;

// c += a b for MR rows and NV vectors of columns. until: null, or the steps [MR] that each row takes, in place of p.steps
template <bool PAIRS, int MR, int NV>
void attention_micro(const AttentionProduct& p, const int* until) {
    Vec acc[MR][NV];
    const float *a[MR], *b = p.b;
    for (int i = 0; i < MR; i++) {
        a[i] = p.a + i * p.a_row;
        for (int v = 0; v < NV; v++) acc[i][v] = p.resume ? vec_load(p.c + i * p.ldc + v * VF) : vec_set(0.0f);
    }
    int common = p.steps, most = p.steps;
    if (until) {
        common = most = until[0];
        for (int i = 1; i < MR; i++) {
            common = until[i] < common ? until[i] : common;
            most = until[i] > most ? until[i] : most;
        }
    }
    int64_t at = 0;
    for (int s = 0; s < common; s++, at += p.a_step, b += p.b_step) {
        Vec bv[NV];
        for (int v = 0; v < NV; v++) bv[v] = vec_load(b + v * VF);
        for (int i = 0; i < MR; i++) {
            Vec x = vec_set(a[i][at]);
            for (int v = 0; v < NV; v++) {
#if ISA == ISA_AVX512_BF16
                if (PAIRS) acc[i][v] = _mm512_dpbf16_ps(acc[i][v], (__m512bh)x, (__m512bh)bv[v]);
                else
#endif
                    acc[i][v] = vec_fma(x, bv[v], acc[i][v]);
            }
        }
    }
    // Rows that are through take nothing of what is left: 0 times infinity would not be nothing
    for (int s = common; s < most; s++, at += p.a_step, b += p.b_step)
        for (int i = 0; i < MR; i++)
            if (s < until[i])
                for (int v = 0; v < NV; v++) acc[i][v] = vec_fma(vec_set(a[i][at]), vec_load(b + v * VF), acc[i][v]);
    for (int i = 0; i < MR; i++)
        for (int v = 0; v < NV; v++) vec_store(p.c + i * p.ldc + v * VF, acc[i][v]);
}

typedef void (*AttentionMicro)(const AttentionProduct& p, const int* until);

// the variant for rows in 1..ATTENTION_MR and vectors in 1..ATTENTION_NV
template <bool PAIRS, int MR = ATTENTION_MR, int NV = ATTENTION_NV>
AttentionMicro attention_pick_micro(int rows, int vectors) {
    if constexpr (MR > 1) {
        if (rows < MR) return attention_pick_micro<PAIRS, MR - 1, NV>(rows, vectors);
    }
    if constexpr (NV > 1) {
        if (vectors < NV) return attention_pick_micro<PAIRS, MR, NV - 1>(rows, vectors);
    }
    return attention_micro<PAIRS, MR, NV>;
}

// Rows are shared out evenly, 7 = 4 + 3 and not 6 + 1: a tile of one row waits on latency
inline int attention_tile_row(int tile, int tiles, int rows) { return rows * tile / tiles; }

// Scores, or dout.v: c [rows, keys] = a b; row i needs its first columns[i], the others are not read by anyone
inline void attention_scores_tiled(const AttentionProduct& all, int rows, const int* columns) {
    constexpr int WIDTH = ATTENTION_NV * VF;
    const int tiles = (rows + ATTENTION_MR - 1) / ATTENTION_MR;
    for (int j = 0; j < ATTENTION_CPU_BLOCK; j += WIDTH)
        for (int tile = 0; tile < tiles; tile++) {
            const int i0 = attention_tile_row(tile, tiles, rows), i1 = attention_tile_row(tile + 1, tiles, rows);
            int most = 0;
            for (int i = i0; i < i1; i++) most = columns[i] > most ? columns[i] : most;
            if (most <= j) continue;
            AttentionProduct p = all;
            p.c += i0 * p.ldc + j, p.a += i0 * p.a_row, p.b += j;
            const int vectors = (most - j + VF - 1) / VF;
            attention_pick_micro<ATTENTION_PAIRS>(i1 - i0, vectors < ATTENTION_NV ? vectors : ATTENTION_NV)(p, nullptr);
        }
}

// c [rows, columns] += a b; row i takes its first until[i] steps. columns: a multiple of VF
inline void attention_values_tiled(const AttentionProduct& all, int rows, int columns, const int* until) {
    constexpr int WIDTH = ATTENTION_NV * VF;
    const int tiles = (rows + ATTENTION_MR - 1) / ATTENTION_MR;
    for (int j = 0; j < columns; j += WIDTH)
        for (int tile = 0; tile < tiles; tile++) {
            const int i0 = attention_tile_row(tile, tiles, rows), i1 = attention_tile_row(tile + 1, tiles, rows);
            AttentionProduct p = all;
            p.c += i0 * p.ldc + j, p.a += i0 * p.a_row, p.b += j;
            const int vectors = (columns - j) / VF;
            attention_pick_micro<false>(i1 - i0, vectors < ATTENTION_NV ? vectors : ATTENTION_NV)(p, until + i0);
        }
}

// The same for rows of c that begin late: step s is of use to the rows below limits[s], which do not fall with s; the a
// of other rows is zero
inline void attention_gradient_tiled(const AttentionProduct& all, int rows, int columns, const int* limits) {
    constexpr int WIDTH = ATTENTION_NV * VF;
    const int tiles = (rows + ATTENTION_MR - 1) / ATTENTION_MR;
    for (int j = 0; j < columns; j += WIDTH) {
        int first = 0;
        for (int tile = 0; tile < tiles; tile++) {
            const int i0 = attention_tile_row(tile, tiles, rows), i1 = attention_tile_row(tile + 1, tiles, rows);
            while (first < all.steps && limits[first] <= i0) first++;
            AttentionProduct p = all;
            p.c += i0 * p.ldc + j, p.a += i0 * p.a_row + first * p.a_step, p.b += first * p.b_step + j;
            p.steps -= first;
            const int vectors = (columns - j) / VF;
            attention_pick_micro<false>(i1 - i0, vectors < ATTENTION_NV ? vectors : ATTENTION_NV)(p, nullptr);
        }
    }
}

// Rows [count,HD] -> columns: dst[step][ATTENTION_CPU_BLOCK], zero beyond count up to a whole vector. A step is a number, or
// where the products are of pairs two bf16, an odd last one with a zero.
inline void attention_transpose(float* dst, const floatX* src, int64_t stride, int count, int HD) {
    constexpr bool HALF = sizeof(floatX) == 2, SPLIT = HALF && !ATTENTION_PAIRS;
    const int words = HALF ? HD / 2 : HD;
    for (int j = 0; j < count; j += VF) {
        const char* rows = (const char*)(src + j * stride);
        for (int s0 = 0; s0 < words; s0 += VF) {
            const int n = words - s0 < VF ? words - s0 : VF;
            Vec out[VF];
            vec_transpose(out, rows + s0 * 4, stride * (int64_t)sizeof(floatX), count - j, n);
            for (int s = 0; s < n; s++) {
                if (SPLIT) {
                    float* to = dst + (int64_t)(s0 + s) * 2 * ATTENTION_CPU_BLOCK + j;
                    vec_store(to, vec_even(out[s]));
                    vec_store(to + ATTENTION_CPU_BLOCK, vec_odd(out[s]));
                } else {
                    vec_store(dst + (int64_t)(s0 + s) * ATTENTION_CPU_BLOCK + j, out[s]);
                }
            }
        }
        if (!HALF || HD % 2 == 0) continue;
        float* to = dst + (int64_t)(SPLIT ? HD - 1 : HD / 2) * ATTENTION_CPU_BLOCK + j;
        for (int i = 0; i < VF; i++) {
            uint16_t bits = 0;
            if (j + i < count) memcpy(&bits, src + (j + i) * stride + HD - 1, sizeof(bits));
            const uint32_t word = SPLIT ? (uint32_t)bits << 16 : bits;
            memcpy(to + i, &word, 4);
        }
    }
}

// Rows [count,HD] as floats: dst[count][columns], zero beyond HD
inline void attention_widen(float* dst, const floatX* src, int64_t stride, int count, int HD, int columns) {
    for (int j = 0; j < count; j++)
        for (int d = 0; d < columns; d += VF)
            vec_store(dst + (int64_t)j * columns + d, vec_load_n(src + j * stride + d, HD - d < VF ? HD - d : VF));
}

// Rows [count,HD] as the left operand of attention_scores_tiled: dst[count][columns]
inline void attention_left(float* dst, const floatX* src, int64_t stride, int count, int HD, int columns) {
    if (!ATTENTION_PAIRS) return attention_widen(dst, src, stride, count, HD, columns);
    for (int j = 0; j < count; j++) {
        if (HD % 2) dst[(int64_t)j * columns + HD / 2] = 0.0f;
        memcpy(dst + (int64_t)j * columns, src + j * stride, (size_t)HD * sizeof(floatX));
    }
}

// scores [n] -> p = exp(scale * score - max) in place; returns log sum exp of the scaled scores
inline float attention_softmax_row(float* scores, int n, float scale, float* inverse_sum) {
    const int whole = n / VF * VF, rest = n - whole;
    const Vec low = vec_set(-__builtin_inff());
    Vec largest = low;
    for (int j = 0; j < whole; j += VF) largest = vec_max(vec_load(scores + j), largest);
    if (rest) largest = vec_max(vec_first(vec_load_n(scores + whole, rest), rest, low), largest);
    const float max = vec_largest(largest) * scale;
    const Vec factor = vec_set(scale), offset = vec_set(-max);
    Vec sum = vec_set(0.0f);
    for (int j = 0; j < whole; j += VF) {
        Vec p = vec_exp(vec_fma(vec_load(scores + j), factor, offset));
        vec_store(scores + j, p);
        sum = vec_add(sum, p);
    }
    if (rest) {
        Vec p = vec_exp(vec_fma(vec_load_n(scores + whole, rest), factor, offset));
        vec_store_n(scores + whole, p, rest);
        sum = vec_add(sum, vec_first(p, rest, vec_set(0.0f)));
    }
    const float total = vec_sum(sum);
    *inverse_sum = 1.0f / total;
    return max + logf(total);
}

// Scores of `rows` queries, row r with its first limits[r] <= ATTENTION_CPU_BLOCK keys, and dp = dout.v -> p and ds in their
// places, zero beyond the limits
inline void attention_softmax_gradient(float* scores, float* dp, int rows, const int* limits, const float* lse,
                                       const float* D, float scale) {
    const Vec factor = vec_set(scale), zero = vec_set(0.0f);
    for (int r = 0; r < rows; r++, scores += ATTENTION_CPU_BLOCK, dp += ATTENTION_CPU_BLOCK) {
        const Vec offset = vec_set(-lse[r]), mean = vec_set(D[r]);
        for (int j = 0; j < ATTENTION_CPU_BLOCK; j += VF) {
            const int n = limits[r] - j;
            Vec p = zero, ds = zero;
            if (n > 0) {
                p = vec_exp(vec_fma(vec_load(scores + j), factor, offset));
                ds = vec_mul(vec_mul(p, vec_sub(vec_load(dp + j), mean)), factor);
                if (n < VF) p = vec_first(p, n, zero), ds = vec_first(ds, n, zero);
            }
            vec_store(scores + j, p);
            vec_store(dp + j, ds);
        }
    }
}

inline float attention_dot(const floatX* a, const floatX* b, int HD) {
    Vec sum = vec_set(0.0f);
    for (int d = 0; d < HD; d += VF) {
        const int n = HD - d < VF ? HD - d : VF;
        sum = vec_fma(vec_load_n(a + d, n), vec_load_n(b + d, n), sum);
    }
    return vec_sum(sum);
}

// out [HD] = acc * factor
inline void attention_store(floatX* out, const float* acc, int HD, float factor) {
    for (int d = 0; d < HD; d += VF)
        vec_store_n(out + d, vec_mul(vec_load(acc + d), vec_set(factor)), HD - d < VF ? HD - d : VF);
}

inline AttentionLoops attention_loops() {
    return {VF,
            ATTENTION_PAIRS,
            attention_scores_tiled,
            attention_values_tiled,
            attention_gradient_tiled,
            attention_transpose,
            attention_widen,
            attention_left,
            attention_softmax_row,
            attention_softmax_gradient,
            attention_dot,
            attention_store};
}
