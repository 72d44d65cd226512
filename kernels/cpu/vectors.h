// Vectors of VF floats, for loops that are compiled for each instruction set (isa_vectors.h).
//
// The trap: GCC contracts a product and a sum into one rounding where it likes (-ffp-contract=fast), of intrinsics too,
// in one variant of a loop and not in another. So a product that meets a sum is written vec_fma, which rounds once
// where there is FMA; the portable one hides the product from the compiler and rounds twice on every target.
// vec_max(x, y), vec_min(x, y): y where one of them is NaN. _n: the first n <= VF elements, not a byte more. AVX-512
// uses the maskz_ forms: GCC 12 warns about its own unmasked ones (-Wmaybe-uninitialized).
#if ISA >= ISA_AVX512
typedef __m512 Vec;
static constexpr int VF = 16;
inline __mmask16 vec_mask(int n) { return (__mmask16)((1u << n) - 1); }
inline Vec vec_set(float x) { return _mm512_set1_ps(x); }
inline Vec vec_load(const float* p) { return _mm512_loadu_ps(p); }
inline void vec_store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
inline Vec vec_add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec vec_sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec vec_mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec vec_fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec vec_max(Vec a, Vec b) { return _mm512_maskz_max_ps(0xFFFF, a, b); }
inline Vec vec_min(Vec a, Vec b) { return _mm512_maskz_min_ps(0xFFFF, a, b); }
inline Vec vec_first(Vec x, int n, Vec other) { return _mm512_mask_blend_ps(vec_mask(n), other, x); }
inline Vec vec_load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(vec_mask(n), p); }
inline void vec_store_n(float* p, Vec x, int n) { _mm512_mask_storeu_ps(p, vec_mask(n), x); }
inline Vec vec_load_n(const bf16* p, int n) {
    __m512i bits = _mm512_maskz_cvtepu16_epi32(0xFFFF, _mm256_maskz_loadu_epi16(vec_mask(n), p));
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xFFFF, bits, 16));
}
// rounded as float_to_bf16_bits, in the low half of each word
inline __m512i vec_bf16_words(Vec x) {
    __m512i u = _mm512_castps_si512(x), high = _mm512_maskz_srli_epi32(0xFFFF, u, 16);
    __m512i tie = _mm512_add_epi32(_mm512_and_si512(high, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7FFF));
    __m512i r = _mm512_maskz_srli_epi32(0xFFFF, _mm512_add_epi32(u, tie), 16);
    __m512i nan = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    return _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), nan);
}
inline void vec_store_n(bf16* p, Vec x, int n) {
    _mm256_mask_storeu_epi16(p, vec_mask(n), _mm512_maskz_cvtepi32_epi16(0xFFFF, vec_bf16_words(x)));
}
// 2^n from n + 1.5 * 2^23 (exp_f)
inline Vec vec_power(Vec shifted) {
    __m512i n = _mm512_add_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32((int)(127u - 0x4B400000u)));
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xFFFF, n, 23));
}
// the bf16 in the low and in the high halves of words
inline Vec vec_even(Vec pairs) {
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xFFFF, _mm512_castps_si512(pairs), 16));
}
inline Vec vec_odd(Vec pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(pairs), _mm512_set1_epi32((int)0xFFFF0000u)));
}
// out[s] = word s of each of VF rows, of which the first `valid` exist; words: of a row, at most VF
inline void vec_transpose(Vec out[VF], const char* src, int64_t row_bytes, int valid, int words) {
    __m512i r[16], t[16];
    for (int j = 0; j < 16; j++)
        r[j] = j < valid ? _mm512_maskz_loadu_epi32(vec_mask(words), src + j * row_bytes) : _mm512_setzero_si512();
    for (int j = 0; j < 16; j += 4) {  // 4x4 blocks inside each 128-bit lane
        __m512i a = _mm512_maskz_unpacklo_epi32(0xFFFF, r[j], r[j + 1]);
        __m512i b = _mm512_maskz_unpackhi_epi32(0xFFFF, r[j], r[j + 1]);
        __m512i c = _mm512_maskz_unpacklo_epi32(0xFFFF, r[j + 2], r[j + 3]);
        __m512i d = _mm512_maskz_unpackhi_epi32(0xFFFF, r[j + 2], r[j + 3]);
        t[j] = _mm512_maskz_unpacklo_epi64(0xFF, a, c);
        t[j + 1] = _mm512_maskz_unpackhi_epi64(0xFF, a, c);
        t[j + 2] = _mm512_maskz_unpacklo_epi64(0xFF, b, d);
        t[j + 3] = _mm512_maskz_unpackhi_epi64(0xFF, b, d);
    }
    for (int q = 0; q < 4; q++) {  // lane l of t[4g + q] holds rows 4g..4g+3 of word 4l + q
        __m512i a = _mm512_maskz_shuffle_i32x4(0xFFFF, t[q], t[4 + q], 0x88);
        __m512i b = _mm512_maskz_shuffle_i32x4(0xFFFF, t[q], t[4 + q], 0xDD);
        __m512i c = _mm512_maskz_shuffle_i32x4(0xFFFF, t[8 + q], t[12 + q], 0x88);
        __m512i d = _mm512_maskz_shuffle_i32x4(0xFFFF, t[8 + q], t[12 + q], 0xDD);
        out[q] = _mm512_castsi512_ps(_mm512_maskz_shuffle_i32x4(0xFFFF, a, c, 0x88));
        out[4 + q] = _mm512_castsi512_ps(_mm512_maskz_shuffle_i32x4(0xFFFF, b, d, 0x88));
        out[8 + q] = _mm512_castsi512_ps(_mm512_maskz_shuffle_i32x4(0xFFFF, a, c, 0xDD));
        out[12 + q] = _mm512_castsi512_ps(_mm512_maskz_shuffle_i32x4(0xFFFF, b, d, 0xDD));
    }
}

#elif ISA == ISA_AVX2
typedef __m256 Vec;
static constexpr int VF = 8;
inline __m256i vec_mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec vec_set(float x) { return _mm256_set1_ps(x); }
inline Vec vec_load(const float* p) { return _mm256_loadu_ps(p); }
inline void vec_store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
inline Vec vec_add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec vec_sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec vec_mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec vec_fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec vec_max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec vec_min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec vec_first(Vec x, int n, Vec other) { return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(vec_mask(n))); }
inline Vec vec_load_n(const float* p, int n) { return _mm256_maskload_ps(p, vec_mask(n)); }
inline void vec_store_n(float* p, Vec x, int n) { _mm256_maskstore_ps(p, vec_mask(n), x); }
inline Vec vec_load_n(const bf16* p, int n) {
    __m128i halves = _mm_setzero_si128();
    if (n == VF) halves = _mm_loadu_si128((const __m128i*)(const void*)p);
    else memcpy(&halves, p, (size_t)n * 2);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
inline void vec_store_n(bf16* p, Vec x, int n) {  // rounds as float_to_bf16_bits
    __m256i u = _mm256_castps_si256(x), high = _mm256_srli_epi32(u, 16);
    __m256i tie = _mm256_add_epi32(_mm256_and_si256(high, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7FFF));
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, tie), 16);
    __m256i nan = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    r = _mm256_blendv_epi8(r, nan, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
    memcpy((void*)p, &halves, (size_t)n * 2);
}
inline Vec vec_power(Vec shifted) {
    __m256i n = _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32((int)(127u - 0x4B400000u)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(n, 23));
}
inline Vec vec_even(Vec pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(pairs), 16)); }
inline Vec vec_odd(Vec pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(pairs), _mm256_set1_epi32((int)0xFFFF0000u)));
}
inline void vec_transpose(Vec out[VF], const char* src, int64_t row_bytes, int valid, int words) {
    __m256 r[8], t[8];
    for (int j = 0; j < 8; j++)
        r[j] = j < valid ? vec_load_n((const float*)(const void*)(src + j * row_bytes), words) : _mm256_setzero_ps();
    for (int j = 0; j < 8; j += 4) {  // 4x4 blocks inside each 128-bit lane
        __m256 a = _mm256_unpacklo_ps(r[j], r[j + 1]), b = _mm256_unpackhi_ps(r[j], r[j + 1]);
        __m256 c = _mm256_unpacklo_ps(r[j + 2], r[j + 3]), d = _mm256_unpackhi_ps(r[j + 2], r[j + 3]);
        t[j] = _mm256_shuffle_ps(a, c, 0x44);
        t[j + 1] = _mm256_shuffle_ps(a, c, 0xEE);
        t[j + 2] = _mm256_shuffle_ps(b, d, 0x44);
        t[j + 3] = _mm256_shuffle_ps(b, d, 0xEE);
    }
    for (int q = 0; q < 4; q++) {
        out[q] = _mm256_permute2f128_ps(t[q], t[4 + q], 0x20);
        out[4 + q] = _mm256_permute2f128_ps(t[q], t[4 + q], 0x31);
    }
}

#else
#if defined(__x86_64__) || defined(__i386__)
#define ISA_OPAQUE "+x"
#elif defined(__aarch64__)
#define ISA_OPAQUE "+w"
#else
#define ISA_OPAQUE "+m"
#endif
typedef float Vec __attribute__((vector_size(16)));
typedef uint32_t VecWords __attribute__((vector_size(16)));
static constexpr int VF = 4;
inline Vec vec_set(float x) { return Vec{x, x, x, x}; }
inline Vec vec_load(const float* p) {
    Vec x;
    memcpy(&x, p, sizeof(x));
    return x;
}
inline void vec_store(float* p, Vec x) { memcpy(p, &x, sizeof(x)); }
inline Vec vec_add(Vec a, Vec b) { return a + b; }
inline Vec vec_sub(Vec a, Vec b) { return a - b; }
inline Vec vec_mul(Vec a, Vec b) { return a * b; }
inline Vec vec_fma(Vec a, Vec b, Vec c) {
    Vec product = a * b;
    __asm__("" : ISA_OPAQUE(product));
    return product + c;
}
inline Vec vec_choose(VecWords mask, Vec a, Vec b) { return (Vec)((mask & (VecWords)a) | (~mask & (VecWords)b)); }
inline Vec vec_max(Vec a, Vec b) { return vec_choose((VecWords)(a > b), a, b); }
inline Vec vec_min(Vec a, Vec b) { return vec_choose((VecWords)(a < b), a, b); }
inline Vec vec_first(Vec x, int n, Vec other) {
    const uint32_t m = (uint32_t)n;
    return vec_choose((VecWords)(VecWords{0, 1, 2, 3} < VecWords{m, m, m, m}), x, other);
}
template <class T>
Vec vec_load_n(const T* p, int n) {
    Vec x = vec_set(0.0f);
    for (int j = 0; j < n; j++) x[j] = (float)p[j];
    return x;
}
template <class T>
void vec_store_n(T* p, Vec x, int n) {
    for (int j = 0; j < n; j++) p[j] = (T)x[j];
}
inline Vec vec_power(Vec shifted) { return (Vec)(((VecWords)shifted + (127u - 0x4B400000u)) << 23); }
inline Vec vec_even(Vec pairs) { return (Vec)((VecWords)pairs << 16); }
inline Vec vec_odd(Vec pairs) { return (Vec)((VecWords)pairs & 0xFFFF0000u); }
inline void vec_transpose(Vec out[VF], const char* src, int64_t row_bytes, int valid, int words) {
    float x[VF][VF] = {};
    for (int j = 0; j < valid && j < VF; j++) memcpy(x[j], src + j * row_bytes, (size_t)words * 4);
    for (int s = 0; s < VF; s++) out[s] = Vec{x[0][s], x[1][s], x[2][s], x[3][s]};
}
#endif

// the sum and the largest of all lanes, in halves; not NaN
#if ISA >= ISA_AVX2
#define VEC_FOLD(name, op)                                                                         \
    inline float name(__m256 x) {                                                                  \
        const __m128 four = _mm_##op##_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)); \
        const __m128 two = _mm_##op##_ps(four, _mm_movehl_ps(four, four));                         \
        return _mm_cvtss_f32(_mm_##op##_ps(two, _mm_shuffle_ps(two, two, 1)));                     \
    }
VEC_FOLD(vec_sum, add)
VEC_FOLD(vec_largest, max)
#undef VEC_FOLD
#if ISA >= ISA_AVX512
template <int HALF>
__m256 vec_half(Vec x) {
    return _mm512_maskz_extractf32x8_ps(0xFF, x, HALF);
}
inline float vec_sum(Vec x) { return vec_sum(_mm256_add_ps(vec_half<0>(x), vec_half<1>(x))); }
inline float vec_largest(Vec x) { return vec_largest(_mm256_max_ps(vec_half<0>(x), vec_half<1>(x))); }
#endif
#else
inline float vec_sum(Vec x) { return (x[0] + x[2]) + (x[1] + x[3]); }
inline float vec_largest(Vec x) {
    const float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
    return a > b ? a : b;
}
#endif

// exp_f (runtime/math.h) of each lane
inline Vec vec_exp(Vec x) {
    const Vec shift = vec_set(12582912.0f);  // 1.5 * 2^23: rounds to an integer
    const Vec y = vec_min(vec_set(88.0f), vec_max(vec_set(-87.0f), x));
    const Vec shifted = vec_fma(y, vec_set(1.44269504088896341f), shift), n = vec_sub(shifted, shift);
    const Vec r = vec_fma(n, vec_set(2.12194440e-4f), vec_fma(n, vec_set(-0.693359375f), y));
    Vec p = vec_fma(vec_set(1.9875691500e-4f), r, vec_set(1.3981999507e-3f));
    p = vec_fma(p, r, vec_set(8.3334519073e-3f));
    p = vec_fma(p, r, vec_set(4.1665795894e-2f));
    p = vec_fma(p, r, vec_set(1.6666665459e-1f));
    p = vec_fma(p, r, vec_set(5.0000001201e-1f));
    p = vec_fma(p, vec_mul(r, r), r);
    return vec_mul(vec_add(p, vec_set(1.0f)), vec_power(shifted));
}
