// The innermost part of the CPU matrix product, compiled for each instruction set (each_isa.h): a tile of at most
// GEMM_MR x GEMM_NR outputs held in registers and summed over k, and the vector operations around it. gemm_micro.h says
// what the loops above know of it.
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

// ---- vectors of GEMM_VF floats ----
// MR * NV accumulators, NV vectors of B and one of A must fit the register file (32 zmm, 16 ymm, 16 xmm), and MR * NV
// must cover latency x units of the multiply-add: 4 x 2 for fma, 6 x 2 for vdpbf16ps on Zen 5. gemm_load_n,
// gemm_store_n: the first n <= GEMM_VF elements of float or bf16, not a byte more; bf16 rounds as float_to_bf16_bits
// does. AVX-512 uses the maskz_ forms: GCC 12 warns about its own unmasked ones (-Wmaybe-uninitialized).
#if ISA >= ISA_AVX512
typedef __m512 GemmVec;
static constexpr int GEMM_VF = 16, GEMM_MR = 8, GEMM_NV = 3;
static constexpr __mmask16 GEMM_ALL = 0xFFFF;
inline GemmVec gemm_zero() { return _mm512_setzero_ps(); }
inline GemmVec gemm_load(const void* p) { return _mm512_loadu_ps(p); }
inline void gemm_store(float* p, GemmVec x) { _mm512_storeu_ps(p, x); }
inline GemmVec gemm_broadcast(float x) { return _mm512_set1_ps(x); }
inline GemmVec gemm_add(GemmVec a, GemmVec b) { return _mm512_add_ps(a, b); }
inline GemmVec gemm_fma(GemmVec a, GemmVec b, GemmVec c) { return _mm512_fmadd_ps(a, b, c); }
inline GemmVec gemm_even(GemmVec pairs) {
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(GEMM_ALL, _mm512_castps_si512(pairs), 16));
}
inline GemmVec gemm_odd(GemmVec pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(pairs), _mm512_set1_epi32((int)0xFFFF0000u)));
}
inline GemmVec gemm_load_n(const float* p, int n) { return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
inline void gemm_store_n(float* p, GemmVec x, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), x); }
inline __m512i gemm_widen_bits(__m256i halves) { return _mm512_maskz_cvtepu16_epi32(GEMM_ALL, halves); }
inline __m256i gemm_bf16_bits(GemmVec x) {
    __m512i u = _mm512_castps_si512(x), high = _mm512_maskz_srli_epi32(GEMM_ALL, u, 16);
    __m512i tie = _mm512_add_epi32(_mm512_and_si512(high, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7FFF));
    __m512i r = _mm512_maskz_srli_epi32(GEMM_ALL, _mm512_add_epi32(u, tie), 16);
    __m512i nan = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    return _mm512_maskz_cvtepi32_epi16(GEMM_ALL, _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), nan));
}
#elif ISA == ISA_AVX2
typedef __m256 GemmVec;
static constexpr int GEMM_VF = 8, GEMM_MR = 6, GEMM_NV = 2;
inline GemmVec gemm_zero() { return _mm256_setzero_ps(); }
inline GemmVec gemm_load(const void* p) { return _mm256_loadu_ps((const float*)p); }
inline void gemm_store(float* p, GemmVec x) { _mm256_storeu_ps(p, x); }
inline GemmVec gemm_broadcast(float x) { return _mm256_set1_ps(x); }
inline GemmVec gemm_add(GemmVec a, GemmVec b) { return _mm256_add_ps(a, b); }
inline GemmVec gemm_fma(GemmVec a, GemmVec b, GemmVec c) { return _mm256_fmadd_ps(a, b, c); }
inline GemmVec gemm_even(GemmVec pairs) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(pairs), 16));
}
inline GemmVec gemm_odd(GemmVec pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(pairs), _mm256_set1_epi32((int)0xFFFF0000u)));
}
inline __m256i gemm_mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline GemmVec gemm_load_n(const float* p, int n) { return _mm256_maskload_ps(p, gemm_mask(n)); }
inline void gemm_store_n(float* p, GemmVec x, int n) { _mm256_maskstore_ps(p, gemm_mask(n), x); }
inline __m256i gemm_widen_bits(__m128i halves) { return _mm256_cvtepu16_epi32(halves); }
inline __m128i gemm_bf16_bits(GemmVec x) {
    __m256i u = _mm256_castps_si256(x), high = _mm256_srli_epi32(u, 16);
    __m256i tie = _mm256_add_epi32(_mm256_and_si256(high, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7FFF));
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, tie), 16);
    __m256i nan = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    r = _mm256_blendv_epi8(r, nan, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
#else
// A compiler that may fuse a * b + c (-ffp-contract=fast is GCC's default) does so in some variants of the tile and not
// in others (GCC 12, -mtune=znver3: not in narrow ones), and the bits then depend on the tile. So the product is hidden
// from it: product and sum round separately here, on every target.
#if defined(__x86_64__) || defined(__i386__)
#define GEMM_OPAQUE "+x"
#elif defined(__aarch64__)
#define GEMM_OPAQUE "+w"
#else
#define GEMM_OPAQUE "+m"
#endif
typedef float GemmVec __attribute__((vector_size(16)));
typedef uint32_t GemmWords __attribute__((vector_size(16)));
static constexpr int GEMM_VF = 4, GEMM_MR = 4, GEMM_NV = 2;
inline GemmVec gemm_broadcast(float x) { return GemmVec{x, x, x, x}; }
inline GemmVec gemm_zero() { return gemm_broadcast(0.0f); }
inline GemmVec gemm_load(const void* p) {
    GemmVec x;
    memcpy(&x, p, sizeof(x));
    return x;
}
inline void gemm_store(float* p, GemmVec x) { memcpy(p, &x, sizeof(x)); }
inline GemmVec gemm_add(GemmVec a, GemmVec b) { return a + b; }
inline GemmVec gemm_fma(GemmVec a, GemmVec b, GemmVec c) {
    GemmVec product = a * b;
    __asm__("" : GEMM_OPAQUE(product));
    return product + c;
}
inline GemmVec gemm_even(GemmVec pairs) { return (GemmVec)((GemmWords)pairs << 16); }
inline GemmVec gemm_odd(GemmVec pairs) { return (GemmVec)((GemmWords)pairs & 0xFFFF0000u); }
template <class T>
GemmVec gemm_load_n(const T* p, int n) {
    GemmVec x = gemm_zero();
    for (int j = 0; j < n; j++) x[j] = (float)p[j];
    return x;
}
template <class T>
void gemm_store_n(T* p, GemmVec x, int n) {
    for (int j = 0; j < n; j++) p[j] = (T)x[j];
}
#endif
static constexpr int GEMM_NR = GEMM_VF * GEMM_NV;

#if ISA != ISA_PORTABLE
inline GemmVec gemm_load_n(const bf16* p, int n) {
    decltype(gemm_bf16_bits(gemm_zero())) halves;  // GEMM_VF 16-bit elements
    if (n == GEMM_VF) {
        memcpy(&halves, p, sizeof(halves));
    } else {
        uint16_t some[GEMM_VF] = {};
        memcpy(some, p, (size_t)n * 2);
        memcpy(&halves, some, sizeof(halves));
    }
    GemmVec words;
    auto wide = gemm_widen_bits(halves);
    memcpy(&words, &wide, sizeof(words));
    return gemm_even(words);
}
inline void gemm_store_n(bf16* p, GemmVec x, int n) {
    auto halves = gemm_bf16_bits(x);
    if (n == GEMM_VF) memcpy((void*)p, &halves, sizeof(halves));
    else memcpy((void*)p, &halves, (size_t)n * 2);
}
#endif

// ---- the tile ----

// tile[MR][NV * GEMM_VF] = sum over s < steps of A(i, s) * B(s, j), for MR rows and NV vectors of columns.
// B's panel is NV vectors wide. PANEL: A is a packed panel [steps][GEMM_MR], else rows a_row_bytes apart. resume: the
// chain goes on from what the tile holds.
template <GemmKind KIND, bool PANEL, int MR, int NV>
void gemm_micro(float* tile, const char* a, int64_t a_row_bytes, const uint32_t* b, int64_t steps, bool resume) {
    constexpr int WIDTH = NV * GEMM_VF;
    const int64_t a_row = PANEL ? 4 : a_row_bytes;
    const int64_t a_step = PANEL ? 4 * GEMM_MR : 4;
    GemmVec acc[MR][NV];
    for (int i = 0; i < MR; i++)
        for (int v = 0; v < NV; v++) acc[i][v] = resume ? gemm_load(tile + i * WIDTH + v * GEMM_VF) : gemm_zero();
    for (int64_t s = 0; s < steps; s++, b += WIDTH) {
        GemmVec bv[NV];
        for (int v = 0; v < NV; v++) bv[v] = gemm_load(b + v * GEMM_VF);
        if (KIND == GEMM_FLOATS) {
            for (int i = 0; i < MR; i++) {
                GemmVec x = gemm_broadcast(gemm_word(a + i * a_row));
                for (int v = 0; v < NV; v++) acc[i][v] = gemm_fma(x, bv[v], acc[i][v]);
            }
            a += a_step;
        } else if (KIND == GEMM_PAIRS_WIDEN) {
            for (int half = 0; half < 2; half++, a += a_step) {
                GemmVec w[NV];
                for (int v = 0; v < NV; v++) w[v] = half ? gemm_odd(bv[v]) : gemm_even(bv[v]);
                for (int i = 0; i < MR; i++) {
                    GemmVec x = gemm_broadcast(gemm_word(a + i * a_row));
                    for (int v = 0; v < NV; v++) acc[i][v] = gemm_fma(x, w[v], acc[i][v]);
                }
            }
        } else {
#if ISA == ISA_AVX512_BF16
            for (int i = 0; i < MR; i++) {
                __m512 x = gemm_broadcast(gemm_word(a + i * a_row));
                for (int v = 0; v < NV; v++) acc[i][v] = _mm512_dpbf16_ps(acc[i][v], (__m512bh)x, (__m512bh)bv[v]);
            }
#endif
            a += a_step;
        }
    }
    for (int i = 0; i < MR; i++)
        for (int v = 0; v < NV; v++) gemm_store(tile + i * WIDTH + v * GEMM_VF, acc[i][v]);
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
        for (int j = 0; j < cols; j += GEMM_VF) {
            const int n = cols - j < GEMM_VF ? cols - j : GEMM_VF;
            GemmVec x = gemm_load(t + j);
            if (o) x = gemm_add(gemm_load_n(o + j, n), x);
            if (bias) x = gemm_add(x, gemm_load_n(bias + j, n));
            gemm_store_n(d + j, x, n);
        }
    }
}

// ---- packing ----

inline void gemm_pair_rows(uint32_t* out, const uint16_t* low, const uint16_t* high, int n) {
    if (high) {
        for (int j = 0; j < n; j++) out[j] = low[j] | (uint32_t)high[j] << 16;
    } else {
        for (int j = 0; j < n; j++) out[j] = low[j];
    }
}

// dst[s * width + j] = word s of row j for j < GEMM_VF, s < steps: the transposition that packs a weight [N,K].
// Row j starts at src + j * row_bytes; rows j >= valid are not read, their words are zero.
inline void gemm_transpose_words(uint32_t* dst, int64_t width, const char* src, int64_t row_bytes, int valid,
                                 int64_t steps) {
    int64_t s = 0;
#if ISA >= ISA_AVX512
    for (; s + 16 <= steps; s += 16) {
        __m512i r[16], t[16];
        for (int j = 0; j < 16; j++)
            r[j] = j < valid ? _mm512_loadu_si512(src + j * row_bytes + s * 4) : _mm512_setzero_si512();
        for (int j = 0; j < 16; j += 4) {  // 4x4 blocks inside each 128-bit lane
            __m512i a = _mm512_maskz_unpacklo_epi32(GEMM_ALL, r[j], r[j + 1]);
            __m512i b = _mm512_maskz_unpackhi_epi32(GEMM_ALL, r[j], r[j + 1]);
            __m512i c = _mm512_maskz_unpacklo_epi32(GEMM_ALL, r[j + 2], r[j + 3]);
            __m512i d = _mm512_maskz_unpackhi_epi32(GEMM_ALL, r[j + 2], r[j + 3]);
            t[j] = _mm512_maskz_unpacklo_epi64(0xFF, a, c);
            t[j + 1] = _mm512_maskz_unpackhi_epi64(0xFF, a, c);
            t[j + 2] = _mm512_maskz_unpacklo_epi64(0xFF, b, d);
            t[j + 3] = _mm512_maskz_unpackhi_epi64(0xFF, b, d);
        }
        for (int q = 0; q < 4; q++) {  // lane l of t[4g + q] holds rows 4g..4g+3 of word 4l + q
            __m512i a = _mm512_maskz_shuffle_i32x4(GEMM_ALL, t[q], t[4 + q], 0x88);
            __m512i b = _mm512_maskz_shuffle_i32x4(GEMM_ALL, t[q], t[4 + q], 0xDD);
            __m512i c = _mm512_maskz_shuffle_i32x4(GEMM_ALL, t[8 + q], t[12 + q], 0x88);
            __m512i d = _mm512_maskz_shuffle_i32x4(GEMM_ALL, t[8 + q], t[12 + q], 0xDD);
            uint32_t* out = dst + (s + q) * width;
            _mm512_storeu_si512(out, _mm512_maskz_shuffle_i32x4(GEMM_ALL, a, c, 0x88));
            _mm512_storeu_si512(out + 4 * width, _mm512_maskz_shuffle_i32x4(GEMM_ALL, b, d, 0x88));
            _mm512_storeu_si512(out + 8 * width, _mm512_maskz_shuffle_i32x4(GEMM_ALL, a, c, 0xDD));
            _mm512_storeu_si512(out + 12 * width, _mm512_maskz_shuffle_i32x4(GEMM_ALL, b, d, 0xDD));
        }
    }
#elif ISA == ISA_AVX2
    for (; s + 8 <= steps; s += 8) {
        __m256 r[8], t[8];
        for (int j = 0; j < 8; j++) r[j] = j < valid ? gemm_load(src + j * row_bytes + s * 4) : gemm_zero();
        for (int j = 0; j < 8; j += 4) {  // 4x4 blocks inside each 128-bit lane
            __m256 a = _mm256_unpacklo_ps(r[j], r[j + 1]), b = _mm256_unpackhi_ps(r[j], r[j + 1]);
            __m256 c = _mm256_unpacklo_ps(r[j + 2], r[j + 3]), d = _mm256_unpackhi_ps(r[j + 2], r[j + 3]);
            t[j] = _mm256_shuffle_ps(a, c, 0x44);
            t[j + 1] = _mm256_shuffle_ps(a, c, 0xEE);
            t[j + 2] = _mm256_shuffle_ps(b, d, 0x44);
            t[j + 3] = _mm256_shuffle_ps(b, d, 0xEE);
        }
        for (int q = 0; q < 4; q++) {
            gemm_store((float*)(dst + (s + q) * width), _mm256_permute2f128_ps(t[q], t[4 + q], 0x20));
            gemm_store((float*)(dst + (s + 4 + q) * width), _mm256_permute2f128_ps(t[q], t[4 + q], 0x31));
        }
    }
#endif
    for (int j = 0; j < GEMM_VF; j++) {
        const char* row = src + j * row_bytes;
        for (int64_t z = s; z < steps; z++) {
            uint32_t word = 0;
            if (j < valid) memcpy(&word, row + z * 4, 4);
            dst[z * width + j] = word;
        }
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
    k.vf = GEMM_VF;
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
