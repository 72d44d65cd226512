// Codes of a packed weight into panels, compiled for each instruction set (each_isa.h). gemm_quantized.h says what for.
//
// AVX-512 makes 16 numbers of a word vector with a shift, a lookup in 16 entries (permutexvar), a multiplication and a
// store; below 4 bits the table repeats, so that what is left of the neighbours' codes above does not matter. The plain
// loop does the same, and is what other instruction sets run.
//
// The trap: a run of codes is a word's, 32 / b of them (16 at 3 bits); groups that do not divide into runs, and the
// ends of rows, take the plain loop.

// scales and zero points of group g in the 16 rows of a block; formats without zero point get 0
inline void quantized_block_scales(float* scale, float* zero, const QuantizedWeight& w, int64_t block, int64_t g) {
    constexpr int R = QW_PANEL_ROWS;
    const int64_t first = (block * quantized_groups(w) + g) * R, n = block * R;
    const uint8_t* bytes = static_cast<const uint8_t*>(w.scales) + first;
    const float bias = (float)quantized_bias(w.spec);
    for (int j = 0; j < R; j++) zero[j] = w.zeros ? (float)w.zeros[first + j] : bias;
    const int part = w.tensor ? quantized_part(w, n) : 0;
    const bool one_part = w.tensor && n + R <= w.part_row[part] + quantized_part_rows(w, part);
    if (w.storage == ScaleStorage::fp32) {
        for (int j = 0; j < R; j++) scale[j] = static_cast<const float*>(w.scales)[first + j];
    } else if (w.storage == ScaleStorage::bf16) {
        for (int j = 0; j < R; j++) scale[j] = (float)static_cast<const bf16*>(w.scales)[first + j];
#if ISA >= ISA_AVX512
    } else if (w.storage == ScaleStorage::fp16) {
        __m256i half;
        memcpy(&half, static_cast<const uint16_t*>(w.scales) + first, sizeof(half));
        _mm512_storeu_ps(scale, _mm512_maskz_cvtph_ps(0xFFFF, half));
#endif
    } else if (w.storage == ScaleStorage::e8m0) {  // 2^-127 is subnormal
        for (int j = 0; j < R; j++) scale[j] = bits_float(bytes[j] ? (uint32_t)bytes[j] << 23 : 1u << 22);
    } else if (w.storage == ScaleStorage::e4m3 && one_part) {
        for (int j = 0; j < R; j++) scale[j] = e4m3_bits_to_float(bytes[j]) / w.tensor[part];
    } else {
        for (int j = 0; j < R; j++) scale[j] = quantized_scale(w, n + j, g);
    }
}

// The number of code u before the scale, zero point taken off. KIND: here and below, of a number, but that integers of
// up to 4 bits go by a table too
template <NumberKind KIND>
inline float quantized_number(const float* table, uint32_t u, float zero) {
    switch (KIND) {
        case NumberKind::table:
            return table[u] - zero;
        case NumberKind::integer:
            return (float)(int)u - zero;
        case NumberKind::e4m3:
            return e4m3_bits_to_float((uint8_t)u);
        case NumberKind::e5m2:
            return e5m2_bits_to_float((uint8_t)u);
    }
    __builtin_unreachable();
}

// the run -> dst[s][width]
template <int BITS, NumberKind KIND>
void quantized_expand_run(uint32_t* dst, int width, const QuantizedRun& r, const QuantizedGroup& g) {
    constexpr int RUN = BITS == 3 ? 16 : 32 / BITS;
    for (int c = r.c0; c < r.c1; c++) {
        floatX x[QW_PANEL_ROWS];
        for (int j = 0; j < r.rows; j++) {
            uint32_t u = quantized_panel_code(r.block, BITS, r.j0 + j, r.run * RUN + c);
            x[j] = (floatX)(quantized_number<KIND>(g.table, u, g.zero[r.j0 + j]) * g.scale[r.j0 + j]);
        }
        if (sizeof(floatX) == 4) {
            memcpy(dst + (r.k + c) * width, x, (size_t)r.rows * 4);
        } else {
            uint16_t* half = reinterpret_cast<uint16_t*>(dst + (r.k + c) / 2 * width) + (r.k + c) % 2;
            for (int j = 0; j < r.rows; j++) memcpy(half + 2 * j, &x[j], 2);
        }
    }
}

#if ISA >= ISA_AVX512
// the pair of numbers (even, odd) of 16 rows as words. Where vdpbf16ps is what multiplies, it takes subnormal numbers
// for zero, and so may the conversion; elsewhere the rounding is that of bf16.
inline __m512i quantized_pairs(__m512 even, __m512 odd) {
#if ISA == ISA_AVX512_BF16
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                                6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(interleave, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
#else
    return _mm512_or_si512(vec_bf16_words(even), _mm512_maskz_slli_epi32(0xFFFF, vec_bf16_words(odd), 16));
#endif
}

// 16 numbers of column C of a run, from its word; third: at 3 bits the word of third bits, shifted to the run
template <int BITS, NumberKind KIND, bool ZEROS, int C>
inline __m512 quantized_vector(__m512i word, __m512i third, __m512 table, __m512 zero, __m512 scale) {
    __m512i u = _mm512_maskz_srli_epi32(0xFFFF, word, C * (BITS == 3 ? 2 : BITS));
    __m512 x;
    if constexpr (KIND == NumberKind::table) {
        if constexpr (BITS == 3) {  // bit 2 is the third bit; what is above does not matter
            __m512i bit = C < 2 ? _mm512_maskz_slli_epi32(0xFFFF, third, C < 2 ? 2 - C : 0)
                                : _mm512_maskz_srli_epi32(0xFFFF, third, C < 2 ? 0 : C - 2);
            u = _mm512_ternarylogic_epi32(_mm512_set1_epi32(4), bit, u, 0xCA);
        }
        x = _mm512_maskz_permutexvar_ps(0xFFFF, u, table);
        if (ZEROS) x = _mm512_sub_ps(x, zero);
    } else if constexpr (KIND == NumberKind::integer) {  // 2^23 + u - (2^23 + zero), exact
        u = _mm512_ternarylogic_epi32(u, _mm512_set1_epi32(0xFF), _mm512_set1_epi32(0x4B000000), 0xEA);
        x = _mm512_sub_ps(_mm512_castsi512_ps(u), zero);
    } else {  // sign, exponent and mantissa to the places that float has for them, then the difference of the biases
        constexpr int EXPONENT = KIND == NumberKind::e4m3 ? 4 : 3, UP = 24 - 8 * C > 0 ? 24 - 8 * C : 0;
        u = _mm512_maskz_srai_epi32(0xFFFF, _mm512_maskz_slli_epi32(0xFFFF, word, UP), EXPONENT);
        u = _mm512_and_si512(u, _mm512_set1_epi32((int)(KIND == NumberKind::e4m3 ? 0x87F00000u : 0x8FE00000u)));
        x = _mm512_mul_ps(_mm512_castsi512_ps(u), _mm512_set1_ps(KIND == NumberKind::e4m3 ? 0x1p120f : 0x1p112f));
    }
    return _mm512_mul_ps(x, scale);
}

// words without an infinity or NaN of an 8-bit float, which the vectors do not know
template <NumberKind KIND>
inline bool quantized_finite(__m512i word) {
    if (KIND != NumberKind::e4m3 && KIND != NumberKind::e5m2) return true;
    __m512i size = _mm512_and_si512(word, _mm512_set1_epi32(0x7F7F7F7F));
    size = _mm512_add_epi32(size, _mm512_set1_epi32(KIND == NumberKind::e4m3 ? 0x01010101 : 0x04040404));
    return _mm512_test_epi32_mask(size, _mm512_set1_epi32((int)0x80808080u)) == 0;
}

template <int BITS, NumberKind KIND, bool ZEROS, int C = 0>
inline void quantized_expand_vectors(uint32_t* dst, int width, __m512i word, __m512i third, __m512 table, __m512 zero,
                                     __m512 scale) {
    if constexpr (C < (BITS == 3 ? 16 : 32 / BITS)) {
        __m512 x = quantized_vector<BITS, KIND, ZEROS, C>(word, third, table, zero, scale);
        __m512 y = quantized_vector<BITS, KIND, ZEROS, C + 1>(word, third, table, zero, scale);
        if (sizeof(floatX) == 4) {
            _mm512_storeu_ps(dst + C * width, x);
            _mm512_storeu_ps(dst + (C + 1) * width, y);
        } else {
            _mm512_storeu_si512(dst + C / 2 * width, quantized_pairs(x, y));
        }
        quantized_expand_vectors<BITS, KIND, ZEROS, C + 2>(dst, width, word, third, table, zero, scale);
    }
}
#endif

// Columns [n0, n0 + width) of Q(W)^T, k in [k0, k0 + kc) -> dst[steps][width] as gemm_pack_b has them from the working
// weight, but for columns beyond N, whose words may be anything finite. k0 even; n0 a multiple of 16.
template <int BITS, NumberKind KIND>
void quantized_expand(uint32_t* dst, const void* weight, int64_t n0, int width, int64_t k0, int64_t kc) {
    constexpr int R = QW_PANEL_ROWS, RUN = BITS == 3 ? 16 : 32 / BITS, RUNS = QW_PANEL_SPAN / RUN;
    const QuantizedWeight& w = *static_cast<const QuantizedWeight*>(weight);
    const int64_t spans = quantized_spans(w), blocks = quantized_row_blocks(w);
    QuantizedGroup group;
    const bool integer = quant_is_integer(w.spec);
    for (uint32_t u = 0; u < 16; u++) {  // repeated below 4 bits: the vectors look up 4, the upper ones a neighbour's
        const uint32_t code = u & ((1 << BITS) - 1);
        group.table[u] = integer ? (float)code : quantized_value(w.spec.format, code, 0.0f, 1.0f);
    }
    if (sizeof(floatX) == 2 && kc % 2) memset(dst + kc / 2 * width, 0, (size_t)width * 4);
#if ISA >= ISA_AVX512
    __m512 numbers = _mm512_load_ps(group.table);
    if (integer && !w.zeros) numbers = _mm512_sub_ps(numbers, _mm512_set1_ps((float)quantized_bias(w.spec)));
#endif
    for (int64_t k = k0, end; k < k0 + kc; k = end) {
        const int64_t g = k / w.group;
        end = gemm_min(k0 + kc, (g + 1) * w.group);
        for (int64_t n = n0, n_end; n < n0 + width; n = n_end) {
            n_end = gemm_min(n0 + width, n / R * R + R);
            if (n / R >= blocks) break;
            quantized_block_scales(group.scale, group.zero, w, n / R, g);
            uint32_t* to = dst + (n - n0);
            const uint32_t* row = w.codes + n / R * spans * BITS * R;
#if ISA >= ISA_AVX512
            const __m512 scales = _mm512_load_ps(group.scale);
            __m512 zeros = _mm512_load_ps(group.zero);
            if (KIND == NumberKind::integer) zeros = _mm512_add_ps(zeros, _mm512_set1_ps(8388608.0f));
#endif
            for (int64_t r = k / RUN * RUN; r < end; r += RUN) {  // first column of a run
                const uint32_t* block = row + r / QW_PANEL_SPAN * BITS * R;
                const int run = (int)(r / RUN % RUNS);
#if ISA >= ISA_AVX512
                __m512i word = _mm512_loadu_si512(block + run * R), third = _mm512_setzero_si512();
                if (r >= k && r + RUN <= end && n_end - n == R && quantized_finite<KIND>(word)) {
                    if (BITS == 3)
                        third = _mm512_maskz_srl_epi32(0xFFFF, _mm512_loadu_si512(block + 2 * R),
                                                       _mm_cvtsi32_si128(16 * run));
                    uint32_t* at = to + (sizeof(floatX) == 2 ? (r - k0) / 2 : r - k0) * width;
                    if (w.zeros)
                        quantized_expand_vectors<BITS, KIND, true>(at, width, word, third, numbers, zeros, scales);
                    else quantized_expand_vectors<BITS, KIND, false>(at, width, word, third, numbers, zeros, scales);
                    continue;
                }
#endif
                quantized_expand_run<BITS, KIND>(to, width,
                                                 {block, run, (int)gemm_max(0, k - r), (int)gemm_min(RUN, end - r),
                                                  r - k0, (int)(n % R), (int)(n_end - n)},
                                                 group);
            }
        }
    }
}

inline GemmExpand quantized_expander(const QuantizedWeight& w) {
    switch (quant_kind(w.spec)) {
        case NumberKind::e4m3:
            return quantized_expand<8, NumberKind::e4m3>;
        case NumberKind::e5m2:
            return quantized_expand<8, NumberKind::e5m2>;
        case NumberKind::integer:
        case NumberKind::table:
            break;
    }
    switch (quantized_bits(w)) {  // integers and tables
        case 2:
            return quantized_expand<2, NumberKind::table>;
        case 3:
            return quantized_expand<3, NumberKind::table>;
        case 4:
            return quantized_expand<4, NumberKind::table>;
        default:
            return quantized_expand<8, NumberKind::integer>;
    }
}
