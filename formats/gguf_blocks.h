// GGUF's blocks: quantized weights come in 32, 64 or 256 consecutive values of a row, with layouts that are those of
// ggml (ggml-common.h, ggml-quants.c). Both ways: blocks -> fp32, equal to gguf-py's dequantize bit for bit, and fp32
// -> blocks by ggml's own formulas (quantize_row_*_ref), equal to gguf-py's quantize byte for byte.
//
// Reading needs no care about fused multiply-add: code * sub-scale * fp16 scale has at most 5 + 7 + 11 = 23 significant
// bits (the extremes -32 and -128 of Q6_K are powers of two), so every product is exact in fp32 and only a final sum
// rounds. The trap is in writing: x * (1/d) + 8.5 rounds twice in gguf-py, and a compiler that fuses the two gives
// another code where a weight lies on the border of two; see gguf_times.
#pragma once
#include <cctype>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include "../runtime/dtypes.h"

// ----------------------------------------------------------------------------------------------------------------
// blocks -> fp32; b [bytes of a block], y [values of a block]

inline float gguf_fp16_at(const uint8_t* p) { return fp16_bits_to_float((uint16_t)(p[0] | p[1] << 8)); }

// w = d * (q - 8); byte j holds q[j] low and q[j + 16] high, in all of the 32-value formats
inline void gguf_block_q4_0(const uint8_t* b, float* y) {
    float d = gguf_fp16_at(b);
    for (int j = 0; j < 16; j++) {
        y[j] = d * (float)((b[2 + j] & 15) - 8);
        y[j + 16] = d * (float)((b[2 + j] >> 4) - 8);
    }
}

// w = d * q + m
inline void gguf_block_q4_1(const uint8_t* b, float* y) {
    float d = gguf_fp16_at(b), m = gguf_fp16_at(b + 2);
    for (int j = 0; j < 16; j++) {
        y[j] = d * (float)(b[4 + j] & 15) + m;
        y[j + 16] = d * (float)(b[4 + j] >> 4) + m;
    }
}

// w = d * (q - 16); bit i of the 32-bit word is the fifth bit of q[i]
inline void gguf_block_q5_0(const uint8_t* b, float* y) {
    float d = gguf_fp16_at(b);
    uint32_t high;
    memcpy(&high, b + 2, 4);
    for (int j = 0; j < 16; j++) {
        y[j] = d * (float)((int)((b[6 + j] & 15) | (high >> j & 1) << 4) - 16);
        y[j + 16] = d * (float)((int)(b[6 + j] >> 4 | (high >> (j + 16) & 1) << 4) - 16);
    }
}

// w = d * q + m
inline void gguf_block_q5_1(const uint8_t* b, float* y) {
    float d = gguf_fp16_at(b), m = gguf_fp16_at(b + 2);
    uint32_t high;
    memcpy(&high, b + 4, 4);
    for (int j = 0; j < 16; j++) {
        y[j] = d * (float)((b[8 + j] & 15) | (high >> j & 1) << 4) + m;
        y[j + 16] = d * (float)(b[8 + j] >> 4 | (high >> (j + 16) & 1) << 4) + m;
    }
}

// w = d * q
inline void gguf_block_q8_0(const uint8_t* b, float* y) {
    float d = gguf_fp16_at(b);
    for (int j = 0; j < 32; j++) y[j] = d * (float)(int8_t)b[2 + j];
}

// w = d * (q - 1); value j in byte j / 4
inline void gguf_block_q2_0(const uint8_t* b, float* y) {
    float d = gguf_fp16_at(b);
    for (int j = 0; j < 64; j++) y[j] = d * (float)((b[2 + j / 4] >> (2 * (j % 4)) & 3) - 1);
}

// The 4-bit float e2m1 doubled, so that codes are integers: 0 1 2 3 4 6 8 12 and their negatives
inline int gguf_e2m1_doubled(int code) {
    int size = code & 7, value = size < 5 ? size : size == 5 ? 6 : size == 6 ? 8 : 12;
    return code & 8 ? -value : value;
}

// 2^(e - 127) halved, because the codes are doubled; e = 255, which the standard calls NaN, is 2^127 in ggml
inline float gguf_e8m0_half(uint8_t e) { return bits_float(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23); }

// e4m3 without a sign, halved; the two NaN are 0 and 480 in ggml
inline float gguf_ue4m3_half(uint8_t e) {
    return e == 0x7F ? 0.0f : e == 0xFF ? 240.0f : 0.5f * e4m3_bits_to_float(e & 0x7F);
}

// w = e2m1 * 2^(e - 127)
inline void gguf_block_mxfp4(const uint8_t* b, float* y) {
    float d = gguf_e8m0_half(b[0]);
    for (int j = 0; j < 16; j++) {
        y[j] = d * (float)gguf_e2m1_doubled(b[1 + j]);
        y[j + 16] = d * (float)gguf_e2m1_doubled(b[1 + j] >> 4);
    }
}

// w = e2m1 * e4m3, a scale for each 16; an F32 tensor NAME.scale beside it multiplies the whole tensor, which is the
// reader's business
inline void gguf_block_nvfp4(const uint8_t* b, float* y) {
    for (int s = 0; s < 4; s++) {
        float d = gguf_ue4m3_half(b[s]);
        const uint8_t* q = b + 4 + 8 * s;
        for (int j = 0; j < 8; j++) {
            y[16 * s + j] = d * (float)gguf_e2m1_doubled(q[j]);
            y[16 * s + j + 8] = d * (float)gguf_e2m1_doubled(q[j] >> 4);
        }
    }
}

// Ternary, w = d * (q - 1), 256 values and then d. TQ2_0: byte 32 h + m holds value 128 h + 32 n + m at bits 2 n.
inline void gguf_block_tq2_0(const uint8_t* b, float* y) {
    float d = gguf_fp16_at(b + 64);
    for (int i = 0; i < 256; i++) y[i] = d * (float)((b[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3) - 1);
}

// TQ1_0 packs five values into a byte, most significant digit first: byte = ceil(256 / 243 * sum of q[n] 3^(4-n)), and
// digit n is the integer part of 3 frac(byte 3^n / 256). 32 bytes hold values 32 n + m, 16 bytes 160 + 16 n + m, and 4
// bytes, of four digits, 240 + 4 n + m. The byte and digit of value i:
inline void gguf_tq1_0_place(int i, int* byte, int* digit) {
    if (i < 160) *byte = i % 32, *digit = i / 32;
    else if (i < 240) *byte = 32 + (i - 160) % 16, *digit = (i - 160) / 16;
    else *byte = 48 + (i - 240) % 4, *digit = (i - 240) / 4;
}

inline void gguf_block_tq1_0(const uint8_t* b, float* y) {
    static constexpr uint8_t power[5] = {1, 3, 9, 27, 81};
    float d = gguf_fp16_at(b + 52);
    for (int i = 0; i < 256; i++) {
        int byte, digit;
        gguf_tq1_0_place(i, &byte, &digit);
        y[i] = d * (float)(((uint8_t)(b[byte] * power[digit]) * 3 >> 8) - 1);
    }
}

// The K formats: 256 values in 16 sub-blocks of 16 (Q2, Q3, Q6) or 8 of 32 (Q4, Q5), each with its own small scale.

// 16 bytes of scale (low nibble) and minimum (high), 64 of codes, fp16 d, fp16 dmin;  w = d * scale * q - dmin * min.
// Codes: the first 32 bytes hold four planes of 32 values, two bits each, the next 32 bytes the other half.
inline void gguf_block_q2_k(const uint8_t* b, float* y) {
    const uint8_t *scales = b, *codes = b + 16;
    float d = gguf_fp16_at(b + 80), dmin = gguf_fp16_at(b + 82);
    for (int s = 0; s < 16; s++) {
        float scale = d * (float)(scales[s] & 15), min = dmin * (float)(scales[s] >> 4);
        const uint8_t* q = codes + s / 8 * 32 + s % 2 * 16;
        int shift = s % 8 / 2 * 2;
        for (int l = 0; l < 16; l++) y[16 * s + l] = scale * (float)(q[l] >> shift & 3) - min;
    }
}

// 32 bytes of third bits, 64 of codes as in Q2_K, 12 of 6-bit scales, fp16 d;  w = d * (scale - 32) * (q - 4).
inline void gguf_block_q3_k(const uint8_t* b, float* y) {
    const uint8_t *high = b, *codes = b + 32, *scales = b + 96;
    float d = gguf_fp16_at(b + 108);
    for (int s = 0; s < 16; s++) {
        int low4 = s < 8 ? scales[s] & 15 : scales[s - 8] >> 4, high2 = scales[8 + s % 4] >> (s / 4 * 2) & 3;
        float scale = d * (float)((low4 | high2 << 4) - 32);
        const uint8_t *q = codes + s / 8 * 32 + s % 2 * 16, *h = high + s % 2 * 16;
        int shift = s % 8 / 2 * 2, bit = s / 2;
        for (int l = 0; l < 16; l++)
            y[16 * s + l] = scale * (float)(((q[l] >> shift & 3) | (h[l] >> bit & 1) << 2) - 4);
    }
}

// Scale and minimum of sub-block s of Q4_K and Q5_K, 6 bits each, in 12 bytes: four scales, four minima (with the upper
// bits of the last four on top), then the lower nibbles of the last four.
inline void gguf_scale_min(const uint8_t* p, int s, int* scale, int* min) {
    *scale = s < 4 ? p[s] & 63 : (p[s + 4] & 15) | p[s - 4] >> 6 << 4;
    *min = s < 4 ? p[s + 4] & 63 : p[s + 4] >> 4 | p[s] >> 6 << 4;
}

// fp16 d, fp16 dmin, 12 bytes of scales, 128 of codes: 32 bytes hold sub-block 2i low and 2i + 1 high.
inline void gguf_block_q4_k(const uint8_t* b, float* y) {
    float d = gguf_fp16_at(b), dmin = gguf_fp16_at(b + 2);
    for (int s = 0; s < 8; s++) {
        int scale_code, min_code;
        gguf_scale_min(b + 4, s, &scale_code, &min_code);
        float scale = d * (float)scale_code, min = dmin * (float)min_code;
        const uint8_t* q = b + 16 + s / 2 * 32;
        int shift = s % 2 * 4;
        for (int l = 0; l < 32; l++) y[32 * s + l] = scale * (float)(q[l] >> shift & 15) - min;
    }
}

// as Q4_K with 32 bytes of fifth bits, bit s for sub-block s, before the codes
inline void gguf_block_q5_k(const uint8_t* b, float* y) {
    float d = gguf_fp16_at(b), dmin = gguf_fp16_at(b + 2);
    const uint8_t* high = b + 16;
    for (int s = 0; s < 8; s++) {
        int scale_code, min_code;
        gguf_scale_min(b + 4, s, &scale_code, &min_code);
        float scale = d * (float)scale_code, min = dmin * (float)min_code;
        const uint8_t* q = b + 48 + s / 2 * 32;
        int shift = s % 2 * 4;
        for (int l = 0; l < 32; l++)
            y[32 * s + l] = scale * (float)((q[l] >> shift & 15) | (high[l] >> s & 1) << 4) - min;
    }
}

// 128 bytes of lower nibbles, 64 of upper bit pairs, 16 int8 scales, fp16 d;  w = d * scale * (q - 32).
inline void gguf_block_q6_k(const uint8_t* b, float* y) {
    float d = gguf_fp16_at(b + 208);
    for (int s = 0; s < 16; s++) {
        int half = s / 8, in_half = s % 8;  // a half has 64 + 32 bytes of codes for its 128 values
        float scale = d * (float)(int8_t)b[192 + s];
        const uint8_t* low = b + half * 64 + in_half % 4 * 16;
        const uint8_t* high = b + 128 + half * 32 + in_half % 2 * 16;
        int low_shift = in_half / 4 * 4, high_shift = in_half / 2 * 2;
        for (int l = 0; l < 16; l++)
            y[16 * s + l] = scale * (float)(((low[l] >> low_shift & 15) | (high[l] >> high_shift & 3) << 4) - 32);
    }
}

// values of a float type are blocks of one
inline void gguf_block_f32(const uint8_t* b, float* y) { memcpy(y, b, 4); }
inline void gguf_block_f16(const uint8_t* b, float* y) { *y = gguf_fp16_at(b); }
inline void gguf_block_bf16(const uint8_t* b, float* y) { *y = bf16_bits_to_float((uint16_t)(b[0] | b[1] << 8)); }

// ----------------------------------------------------------------------------------------------------------------
// codes -> blocks: what remains of a block once its scale and its codes q, counted from 0, are known

inline void gguf_put_fp16(uint8_t* p, float x) {
    uint16_t h = float_to_fp16_bits(x);
    p[0] = (uint8_t)h;
    p[1] = (uint8_t)(h >> 8);
}

inline void gguf_pack_nibbles(const uint8_t* q, int n, uint8_t* b) {  // n values: the first half low, the second high
    for (int j = 0; j < n / 2; j++) b[j] = (uint8_t)((q[j] & 15) | q[j + n / 2] << 4);
}

inline void gguf_pack_fifths(const uint8_t* q, uint8_t* b) {  // Q5: 4 bytes of fifth bits, then nibbles
    uint32_t high = 0;
    for (int j = 0; j < 32; j++) high |= (uint32_t)(q[j] >> 4) << j;
    memcpy(b, &high, 4);
    gguf_pack_nibbles(q, 32, b + 4);
}

inline void gguf_pack_q2_0(const uint8_t* q, uint8_t* b) {
    for (int j = 0; j < 16; j++) b[j] = (uint8_t)(q[4 * j] | q[4 * j + 1] << 2 | q[4 * j + 2] << 4 | q[4 * j + 3] << 6);
}

inline void gguf_pack_tq2_0(const uint8_t* q, uint8_t* b) {
    memset(b, 0, 64);
    for (int i = 0; i < 256; i++) b[i / 128 * 32 + i % 32] |= (uint8_t)(q[i] << (i % 128 / 32 * 2));
}

inline void gguf_pack_tq1_0(const uint8_t* q, uint8_t* b) {
    static constexpr int power[5] = {81, 27, 9, 3, 1};
    int sum[52] = {};
    for (int i = 0; i < 256; i++) {
        int byte, digit;
        gguf_tq1_0_place(i, &byte, &digit);
        sum[byte] += q[i] * power[digit];
    }
    for (int k = 0; k < 52; k++) b[k] = (uint8_t)((sum[k] * 256 + 242) / 243);
}

// ----------------------------------------------------------------------------------------------------------------
// fp32 -> blocks; x [values of a block], finite, b [bytes of a block]

// a * b, rounded before anything is added to it. volatile, because g++ fuses even (float)((double)a * b) + c.
inline float gguf_times(float a, float b) {
    volatile float product = a * b;
    return product;
}

inline float gguf_inverse(float d) { return d != 0.0f ? 1.0f / d : 0.0f; }

inline float gguf_amax(const float* x, int n) {
    float amax = 0.0f;
    for (int j = 0; j < n; j++) amax = std::fabs(x[j]) > amax ? std::fabs(x[j]) : amax;
    return amax;
}

// codes of d * (q - zero), where the number of largest size gets code 0 and with it the scale its sign
inline float gguf_codes_signed_max(const float* x, int zero, uint8_t* q) {
    float largest = 0.0f;
    for (int j = 0; j < 32; j++)
        if (std::fabs(x[j]) > std::fabs(largest)) largest = x[j];
    float d = largest / (float)-zero, inverse = gguf_inverse(d);
    for (int j = 0; j < 32; j++) {
        float c = gguf_times(x[j], inverse) + ((float)zero + 0.5f);
        q[j] = (uint8_t)(c < 0.0f ? 0 : c < (float)(2 * zero) ? (int)c : 2 * zero - 1);
    }
    return d;
}

// codes of d * q + m between the smallest and the largest number
inline float gguf_codes_range(const float* x, int levels, uint8_t* q, float* m) {
    float min = x[0], max = x[0];
    for (int j = 1; j < 32; j++) min = x[j] < min ? x[j] : min, max = x[j] > max ? x[j] : max;
    float d = (max - min) / (float)levels, inverse = gguf_inverse(d);
    for (int j = 0; j < 32; j++) {
        float c = gguf_times(x[j] - min, inverse) + 0.5f;
        q[j] = (uint8_t)(c < (float)(levels + 1) ? (int)c : levels);
    }
    *m = min;
    return d;
}

inline void gguf_make_q4_0(const float* x, uint8_t* b) {
    uint8_t q[32];
    gguf_put_fp16(b, gguf_codes_signed_max(x, 8, q));
    gguf_pack_nibbles(q, 32, b + 2);
}

inline void gguf_make_q4_1(const float* x, uint8_t* b) {
    uint8_t q[32];
    float m;
    gguf_put_fp16(b, gguf_codes_range(x, 15, q, &m));
    gguf_put_fp16(b + 2, m);
    gguf_pack_nibbles(q, 32, b + 4);
}

inline void gguf_make_q5_0(const float* x, uint8_t* b) {
    uint8_t q[32];
    gguf_put_fp16(b, gguf_codes_signed_max(x, 16, q));
    gguf_pack_fifths(q, b + 2);
}

inline void gguf_make_q5_1(const float* x, uint8_t* b) {
    uint8_t q[32];
    float m;
    gguf_put_fp16(b, gguf_codes_range(x, 31, q, &m));
    gguf_put_fp16(b + 2, m);
    gguf_pack_fifths(q, b + 4);
}

// half away from zero, as roundf
inline void gguf_make_q8_0(const float* x, uint8_t* b) {
    float d = gguf_amax(x, 32) / 127.0f, inverse = gguf_inverse(d);
    gguf_put_fp16(b, d);
    for (int j = 0; j < 32; j++) b[2 + j] = (uint8_t)(int8_t)std::round(x[j] * inverse);
}

// n codes of d * (q - 1), d = amax: only -1, 0 and 1 come out, although Q2_0 could say 2 as well
inline float gguf_codes_ternary(const float* x, int n, uint8_t* q) {
    float d = gguf_amax(x, n), inverse = gguf_inverse(d);
    for (int j = 0; j < n; j++) q[j] = (uint8_t)((int)std::round(x[j] * inverse) + 1);
    return d;
}

inline void gguf_make_q2_0(const float* x, uint8_t* b) {
    uint8_t q[64];
    gguf_put_fp16(b, gguf_codes_ternary(x, 64, q));
    gguf_pack_q2_0(q, b + 2);
}

inline void gguf_make_tq1_0(const float* x, uint8_t* b) {
    uint8_t q[256];
    gguf_put_fp16(b + 52, gguf_codes_ternary(x, 256, q));
    gguf_pack_tq1_0(q, b);
}

inline void gguf_make_tq2_0(const float* x, uint8_t* b) {
    uint8_t q[256];
    gguf_put_fp16(b + 64, gguf_codes_ternary(x, 256, q));
    gguf_pack_tq2_0(q, b);
}

// the scale is 2^(floor(log2 amax) - 2), so numbers above 6 scales are clipped; the nearest code, the first on a tie
inline void gguf_make_mxfp4(const float* x, uint8_t* b) {
    float amax = gguf_amax(x, 32);
    float e = amax > 0.0f ? std::floor(std::log2(amax)) + 125.0f : 0.0f;
    b[0] = (uint8_t)(e > 0.0f ? e : 0.0f);
    float d = gguf_e8m0_half(b[0]);
    uint8_t q[32];
    for (int j = 0; j < 32; j++) {
        float least = std::fabs(x[j]);
        q[j] = 0;
        for (int code = 1; code < 16; code++) {
            float error = std::fabs(d * (float)gguf_e2m1_doubled(code) - x[j]);  // the product is exact
            if (error < least) least = error, q[j] = (uint8_t)code;
        }
    }
    gguf_pack_nibbles(q, 32, b + 1);
}

inline void gguf_make_f32(const float* x, uint8_t* b) { memcpy(b, x, 4); }
inline void gguf_make_f16(const float* x, uint8_t* b) { gguf_put_fp16(b, *x); }
inline void gguf_make_bf16(const float* x, uint8_t* b) {
    uint16_t h = float_to_bf16_bits(*x);
    b[0] = (uint8_t)h;
    b[1] = (uint8_t)(h >> 8);
}

// ----------------------------------------------------------------------------------------------------------------
// the types

enum GgufTypeId : uint32_t {  // those that are named elsewhere
    GGUF_TYPE_F32 = 0,
    GGUF_TYPE_F16 = 1,
    GGUF_TYPE_Q4_0 = 2,
    GGUF_TYPE_Q4_1 = 3,
    GGUF_TYPE_Q5_0 = 6,
    GGUF_TYPE_Q5_1 = 7,
    GGUF_TYPE_Q8_0 = 8,
    GGUF_TYPE_BF16 = 30,
    GGUF_TYPE_TQ1_0 = 34,
    GGUF_TYPE_TQ2_0 = 35,
    GGUF_TYPE_MXFP4 = 39,
    GGUF_TYPE_NVFP4 = 40,
    GGUF_TYPE_Q2_0 = 42,
};

struct GgufType {
    uint32_t id;
    const char* name;
    int block, bytes;                          // values and bytes of a block
    void (*read)(const uint8_t* b, float* y);  // nullptr: can be listed, not read
    void (*make)(const float* x, uint8_t* b);  // nullptr: cannot be made from fp32 (NVFP4: only from its own grid)
    int file_type;                             // general.file_type of a file whose matrices have it; -1: never written
};

static constexpr GgufType gguf_types[] = {
    {0, "F32", 1, 4, gguf_block_f32, gguf_make_f32, 0},
    {1, "F16", 1, 2, gguf_block_f16, gguf_make_f16, 1},
    {2, "Q4_0", 32, 18, gguf_block_q4_0, gguf_make_q4_0, 2},
    {3, "Q4_1", 32, 20, gguf_block_q4_1, gguf_make_q4_1, 3},
    {6, "Q5_0", 32, 22, gguf_block_q5_0, gguf_make_q5_0, 8},
    {7, "Q5_1", 32, 24, gguf_block_q5_1, gguf_make_q5_1, 9},
    {8, "Q8_0", 32, 34, gguf_block_q8_0, gguf_make_q8_0, 7},
    {10, "Q2_K", 256, 84, gguf_block_q2_k, nullptr, -1},
    {11, "Q3_K", 256, 110, gguf_block_q3_k, nullptr, -1},
    {12, "Q4_K", 256, 144, gguf_block_q4_k, nullptr, -1},
    {13, "Q5_K", 256, 176, gguf_block_q5_k, nullptr, -1},
    {14, "Q6_K", 256, 210, gguf_block_q6_k, nullptr, -1},
    {30, "BF16", 1, 2, gguf_block_bf16, gguf_make_bf16, 32},
    {42, "Q2_0", 64, 18, gguf_block_q2_0, gguf_make_q2_0, 41},
    {34, "TQ1_0", 256, 54, gguf_block_tq1_0, gguf_make_tq1_0, 36},
    {35, "TQ2_0", 256, 66, gguf_block_tq2_0, gguf_make_tq2_0, 37},
    {39, "MXFP4", 32, 17, gguf_block_mxfp4, gguf_make_mxfp4, 38},
    {40, "NVFP4", 64, 36, gguf_block_nvfp4, nullptr, 39},
    {9, "Q8_1", 32, 40, nullptr, nullptr, -1},
    {15, "Q8_K", 256, 292, nullptr, nullptr, -1},
    {16, "IQ2_XXS", 256, 66, nullptr, nullptr, -1},
    {17, "IQ2_XS", 256, 74, nullptr, nullptr, -1},
    {18, "IQ3_XXS", 256, 98, nullptr, nullptr, -1},
    {19, "IQ1_S", 256, 50, nullptr, nullptr, -1},
    {20, "IQ4_NL", 32, 18, nullptr, nullptr, -1},
    {21, "IQ3_S", 256, 110, nullptr, nullptr, -1},
    {22, "IQ2_S", 256, 82, nullptr, nullptr, -1},
    {23, "IQ4_XS", 256, 136, nullptr, nullptr, -1},
    {24, "I8", 1, 1, nullptr, nullptr, -1},
    {25, "I16", 1, 2, nullptr, nullptr, -1},
    {26, "I32", 1, 4, nullptr, nullptr, -1},
    {27, "I64", 1, 8, nullptr, nullptr, -1},
    {28, "F64", 1, 8, nullptr, nullptr, -1},
    {29, "IQ1_M", 256, 56, nullptr, nullptr, -1},
    {41, "Q1_0", 128, 18, nullptr, nullptr, -1},
};

inline const GgufType* gguf_type(uint32_t id) {
    for (const GgufType& t : gguf_types)
        if (t.id == id) return &t;
    return nullptr;
}

// by its name, in any case; nullptr: no such type
inline const GgufType* gguf_type(const std::string& name) {
    for (const GgufType& t : gguf_types) {
        size_t i = 0;
        while (i < name.size() && t.name[i] && toupper((unsigned char)name[i]) == t.name[i]) i++;
        if (i == name.size() && !t.name[i]) return &t;
    }
    return nullptr;
}

// the names that can be written, for messages
inline std::string gguf_written_types() {
    std::string s;
    for (const GgufType& t : gguf_types)
        if (t.file_type >= 0) s += (s.empty() ? "" : ", ") + std::string(t.name);
    return s;
}
