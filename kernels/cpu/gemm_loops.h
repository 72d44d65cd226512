// The innermost part of the CPU matrix product, compiled for each instruction set (each_isa.h): a tile of at most
// GEMM_MR x GEMM_NR outputs held in registers and summed over k, and the vector operations around it. gemm_kernels.h
// says what the loops above know of it.
//
// Both operands are streams of 32-bit words, one word a step. For float a word is one element; for bf16 it is a pair,
// element 2s in the low half and 2s+1 in the high half: what vdpbf16ps takes, and what four bytes of a row are.
//   A: word (i, s) lies at a + i * a_row + s * a_step bytes: rows as they stand in memory, or a panel [steps][GEMM_MR].
//   B: always a packed panel [steps][width], width = 1..GEMM_NV vectors.
//
// The one trap: the bits of an output must not depend on the tile it was computed in (gemm.h says why). Every variant
// does, for each (i, j): acc = 0, then acc = fma(a(i, s), b(s, j), acc) for s = 0, 1, 2, ...; one chain an output,
// whatever the number of rows and vectors. Nothing is split over k and added later, and edges are padded with zeros,
// not special-cased.
//
// vdpbf16ps (AMD and Intel manuals, AVX512_BF16): products of bf16 are exact, the two products of a pair and the
// accumulator are added with round to nearest even, subnormal inputs and results count as zero whatever MXCSR says. So
// this instruction set agrees with the others to rounding, not bit for bit.

// MR * NV accumulators, NV vectors of B and one of A must fit the register file (32 zmm, 16 ymm, 16 xmm), and MR * NV
// must cover latency x units of the multiply-add: 4 x 2 for fma, 6 x 2 for vdpbf16ps on Zen 5.
#if ISA >= ISA_AVX512
static constexpr int GEMM_MR = 8, GEMM_NV = 3;
#elif ISA == ISA_AVX2
static constexpr int GEMM_MR = 6, GEMM_NV = 2;
#else
static constexpr int GEMM_MR = 4, GEMM_NV = 2;
#endif

// ---- the tile ----

// tile[MR][NV * VF] = sum over s < steps of A(i, s) * B(s, j), for MR rows and NV vectors of columns.
// B's panel is NV vectors wide. PANEL: A is a packed panel [steps][GEMM_MR], else rows a_row_bytes apart. resume: the
// chain goes on from what the tile holds.
template <GemmKind KIND, bool PANEL, int MR, int NV>
void gemm_micro(float* tile, const char* a, int64_t a_row_bytes, const uint32_t* b, int64_t steps, bool resume) {
    constexpr int WIDTH = NV * VF;
    const int64_t a_row = PANEL ? 4 : a_row_bytes;
    const int64_t a_step = PANEL ? 4 * GEMM_MR : 4;
    Vec acc[MR][NV];
    for (int i = 0; i < MR; i++)
        for (int v = 0; v < NV; v++) acc[i][v] = resume ? vec_load(tile + i * WIDTH + v * VF) : vec_set(0.0f);
    for (int64_t s = 0; s < steps; s++, b += WIDTH) {
        Vec bv[NV];
        for (int v = 0; v < NV; v++) bv[v] = vec_load((const float*)(const void*)(b + v * VF));
        if (KIND == GEMM_FLOATS) {
            for (int i = 0; i < MR; i++) {
                Vec x = vec_set(gemm_word(a + i * a_row));
                for (int v = 0; v < NV; v++) acc[i][v] = vec_fma(x, bv[v], acc[i][v]);
            }
            a += a_step;
        } else if (KIND == GEMM_PAIRS_WIDEN) {
            for (int half = 0; half < 2; half++, a += a_step) {
                Vec w[NV];
                for (int v = 0; v < NV; v++) w[v] = half ? vec_odd(bv[v]) : vec_even(bv[v]);
                for (int i = 0; i < MR; i++) {
                    Vec x = vec_set(gemm_word(a + i * a_row));
                    for (int v = 0; v < NV; v++) acc[i][v] = vec_fma(x, w[v], acc[i][v]);
                }
            }
        } else {
#if ISA == ISA_AVX512_BF16
            for (int i = 0; i < MR; i++) {
                Vec x = vec_set(gemm_word(a + i * a_row));
                for (int v = 0; v < NV; v++) acc[i][v] = _mm512_dpbf16_ps(acc[i][v], (__m512bh)x, (__m512bh)bv[v]);
            }
#endif
            a += a_step;
        }
    }
    for (int i = 0; i < MR; i++)
        for (int v = 0; v < NV; v++) vec_store(tile + i * WIDTH + v * VF, acc[i][v]);
}

// the variant for rows in 1..GEMM_MR and vectors in 1..GEMM_NV
template <GemmKind KIND, bool PANEL, int MR = GEMM_MR, int NV = GEMM_NV>
void gemm_tile(float* tile, const char* a, int64_t a_row_bytes, const uint32_t* b, int64_t steps, bool resume, int rows,
               int vectors) {
    if constexpr (MR > 1) {
        if (rows < MR) return gemm_tile<KIND, PANEL, MR - 1, NV>(tile, a, a_row_bytes, b, steps, resume, rows, vectors);
    }
    if constexpr (NV > 1) {
        if (vectors < NV)
            return gemm_tile<KIND, PANEL, MR, NV - 1>(tile, a, a_row_bytes, b, steps, resume, rows, vectors);
    }
    gemm_micro<KIND, PANEL, MR, NV>(tile, a, a_row_bytes, b, steps, resume);
}

// The end of a tile: dst[i][j] = (prev ? prev[i][j] + tile[i][j] : tile[i][j]) + (bias ? bias[j] : 0), rounded once to
// TD. dst and prev may be the same memory; nothing beyond `cols` columns is read or written. width: of the tile
template <class TD, class TP, class TBias>
void gemm_finish(void* dst, int64_t ldd, const void* prev, int64_t ldp, const float* tile, int width,
                 const void* bias_row, int rows, int cols) {
    const TBias* bias = static_cast<const TBias*>(bias_row);
    for (int i = 0; i < rows; i++) {
        TD* d = static_cast<TD*>(dst) + i * ldd;
        const TP* o = prev ? static_cast<const TP*>(prev) + i * ldp : nullptr;
        const float* t = tile + i * width;
        for (int j = 0; j < cols; j += VF) {
            const int n = cols - j < VF ? cols - j : VF;
            Vec x = vec_load(t + j);
            if (o) x = vec_add(vec_load_n(o + j, n), x);
            if (bias) x = vec_add(x, vec_load_n(bias + j, n));
            vec_store_n(d + j, x, n);
        }
    }
}

// ---- packing ----

inline void gemm_pair_rows(uint32_t* out, const uint16_t* low, const uint16_t* high, int n) {
    int j = 0;
#if ISA >= ISA_AVX512
    for (; j < n; j += VF) {
        const __mmask16 mask = vec_mask(n - j < VF ? n - j : VF);
        __m512i pairs = _mm512_maskz_cvtepu16_epi32(0xFFFF, _mm256_maskz_loadu_epi16(mask, low + j));
        if (high) {
            const __m512i up = _mm512_maskz_cvtepu16_epi32(0xFFFF, _mm256_maskz_loadu_epi16(mask, high + j));
            pairs = _mm512_or_si512(pairs, _mm512_maskz_slli_epi32(0xFFFF, up, 16));
        }
        _mm512_mask_storeu_epi32(out + j, mask, pairs);
    }
#endif
    for (; j < n; j++) out[j] = low[j] | (high ? (uint32_t)high[j] << 16 : 0);
}

// dst[s * width + j] = word s of row j for j < VF, s < steps: the transposition that packs a weight [N,K].
// Row j starts at src + j * row_bytes; rows j >= valid are not read, their words are zero.
inline void gemm_transpose_words(uint32_t* dst, int64_t width, const char* src, int64_t row_bytes, int valid,
                                 int64_t steps) {
    for (int64_t s = 0; s < steps; s += VF) {
        const int words = steps - s < VF ? (int)(steps - s) : VF;
        Vec column[VF];
        vec_transpose(column, src + s * 4, row_bytes, valid, words);
        for (int w = 0; w < words; w++) vec_store((float*)(void*)(dst + (s + w) * width), column[w]);
    }
}

// ---- the table ----

// what differs from the row below is the product of pairs
inline GemmKernels gemm_kernels_of(CpuIsa isa) {
#if ISA == ISA_AVX512_BF16
    GemmKernels k = isa_avx512::gemm_kernels_of(isa);
    k.dot = true;
    k.tile[GEMM_PAIRS_DOT][0] = gemm_tile<GEMM_PAIRS_DOT, false>;
    k.tile[GEMM_PAIRS_DOT][1] = gemm_tile<GEMM_PAIRS_DOT, true>;
#else
    GemmKernels k;
    k.isa = isa;
    k.vf = VF;
    k.panel_vectors[0] = k.panel_vectors[1] = GEMM_NV;
    for (int& mr : k.mr) mr = GEMM_MR;
    k.tile[GEMM_FLOATS][0] = gemm_tile<GEMM_FLOATS, false>;
    k.tile[GEMM_FLOATS][1] = gemm_tile<GEMM_FLOATS, true>;
    k.tile[GEMM_PAIRS_WIDEN][0] = gemm_tile<GEMM_PAIRS_WIDEN, false>;
    k.tile[GEMM_PAIRS_WIDEN][1] = gemm_tile<GEMM_PAIRS_WIDEN, true>;
    k.finish[0][0][0] = gemm_finish<bf16, bf16, bf16>;
    k.finish[0][0][1] = gemm_finish<bf16, bf16, float>;
    k.finish[0][1][0] = gemm_finish<bf16, float, bf16>;
    k.finish[0][1][1] = gemm_finish<bf16, float, float>;
    k.finish[1][0][0] = gemm_finish<float, bf16, bf16>;
    k.finish[1][0][1] = gemm_finish<float, bf16, float>;
    k.finish[1][1][0] = gemm_finish<float, float, bf16>;
    k.finish[1][1][1] = gemm_finish<float, float, float>;
    k.transpose_words = gemm_transpose_words;
    k.pair_rows = gemm_pair_rows;
#endif
    return k;
}
