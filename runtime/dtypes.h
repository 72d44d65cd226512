// Number formats and their conversions, one function for host and device (a test compares the two bit for bit).
// floatX is the type of the working weights and of the activations: bf16, or float when built with PRECISION=FP32.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline
#endif

HOST_DEVICE uint32_t float_bits(float x) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(x);
#else
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
#endif
}

HOST_DEVICE float bits_float(uint32_t u) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(u);
#else
    float x;
    memcpy(&x, &u, 4);
    return x;
#endif
}

// float -> bf16 bits, round to nearest even; NaN stays NaN (quiet).
// No branch, so that loops over it vectorize.
HOST_DEVICE uint16_t float_to_bf16_bits(float x) {
    uint32_t u = float_bits(x);
    uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
    uint32_t nan = (u >> 16) | 0x40u;
    return (uint16_t)((u & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded);
}

HOST_DEVICE float bf16_bits_to_float(uint16_t b) { return bits_float((uint32_t)b << 16); }

// bfloat16 storage: same layout as __nv_bfloat16; arithmetic happens in float
struct bf16 {
    uint16_t bits;
    bf16() = default;
    HOST_DEVICE bf16(float x) : bits(float_to_bf16_bits(x)) {}
    HOST_DEVICE operator float() const { return bf16_bits_to_float(bits); }
};
static_assert(sizeof(bf16) == 2, "bf16 is two bytes");

// IEEE half bits -> float, subnormals, infinities and NaN included
HOST_DEVICE float fp16_bits_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = (h >> 10) & 31u, man = h & 1023u;
    if (exp == 0) {  // zero or subnormal: man * 2^-24
        float x = (float)man * 5.9604644775390625e-8f;
        return bits_float(float_bits(x) | sign);
    }
    if (exp == 31) return bits_float(sign | 0x7F800000u | (man << 13));
    return bits_float(sign | ((exp + 112u) << 23) | (man << 13));
}

// float -> IEEE half bits, round to nearest even, overflow to infinity
HOST_DEVICE uint16_t float_to_fp16_bits(float x) {
    uint32_t u = float_bits(x), sign = (u >> 16) & 0x8000u;
    u &= 0x7FFFFFFFu;
    if (u > 0x7F800000u) return (uint16_t)(sign | 0x7E00u);
    if (u >= 0x47800000u) return (uint16_t)(sign | 0x7C00u);  // >= 65536
    if (u < 0x38800000u) {                                    // below 2^-14: subnormal, let the adder round
        float shifted = bits_float(u) + 0.5f;                 // ulp of [0.5, 1) is 2^-24
        return (uint16_t)(sign | (float_bits(shifted) - 0x3F000000u));
    }
    uint32_t rounded = u + 0xFFFu + ((u >> 13) & 1u);
    return (uint16_t)(sign | ((rounded - 0x38000000u) >> 13));
}

// ---------------------------------------------------------------------------------------------------------------------
// 8 and 4 bits. Encoding rounds to nearest even and saturates: infinity and whatever is too large become the largest
// number (OCP's saturation mode, __NV_SATFINITE). Codes are in the low bits, the sign on top.

// |x| as a float of MAN mantissa bits, subnormals included; not for NaN
template <int BIAS, int MAN, uint32_t LARGEST>
HOST_DEVICE uint32_t float_to_small_bits(float x) {
    const uint32_t u = float_bits(x) & 0x7FFFFFFFu;
    const uint32_t unit = (uint32_t)(127 + 24 - BIAS - MAN) << 23;             // a float whose ulp is the format's
    uint32_t subnormal = float_bits(bits_float(u) + bits_float(unit)) - unit;  // the adder rounds
    uint32_t rounded = u + ((1u << (22 - MAN)) - 1) + ((u >> (23 - MAN)) & 1u);
    uint32_t normal = (rounded >> (23 - MAN)) - ((uint32_t)(127 - BIAS) << MAN);
    uint32_t code = u < (uint32_t)(128 - BIAS) << 23 ? subnormal : normal;  // below 2^(1 - BIAS)
    return code < LARGEST ? code : LARGEST;
}

// e4m3: bias 7, largest 448, no infinity, NaN is 0x7F and 0xFF
HOST_DEVICE uint8_t float_to_e4m3_bits(float x) {
    uint32_t sign = float_bits(x) >> 24 & 0x80u;
    return (uint8_t)(sign | (x == x ? float_to_small_bits<7, 3, 0x7E>(x) : 0x7Fu));
}

HOST_DEVICE float e4m3_bits_to_float(uint8_t b) {
    uint32_t sign = (uint32_t)(b & 0x80u) << 24, size = b & 0x7Fu;
    float x = bits_float(size << 20) * 1.329227995784915872903807060280344576e36f;  // 2^(127 - 7)
    return bits_float(sign | (size == 0x7Fu ? 0x7FC00000u : float_bits(x)));
}

// e5m2: bias 15, largest 57344, infinity (never an encoder's result) and NaN as in fp16, whose upper byte it is
HOST_DEVICE uint8_t float_to_e5m2_bits(float x) {
    uint32_t u = float_bits(x), sign = u >> 24 & 0x80u;
    return (uint8_t)(sign | (x == x ? float_to_small_bits<15, 2, 0x7B>(x) : 0x7Eu | (u >> 21 & 3u)));
}

HOST_DEVICE float e5m2_bits_to_float(uint8_t b) {
    uint32_t sign = (uint32_t)(b & 0x80u) << 24, size = b & 0x7Fu;
    float x = bits_float(size << 21) * 5.192296858534827628530496329220096e33f;  // 2^(127 - 15)
    return bits_float(sign | (size >= 0x7Cu ? 0x7F800000u | size << 21 : float_bits(x)));
}

// e2m1: 0 0.5 1 1.5 2 3 4 6, neither infinity nor NaN; NaN becomes 6
HOST_DEVICE uint8_t float_to_e2m1_bits(float x) {
    uint32_t sign = float_bits(x) >> 28 & 8u;
    return (uint8_t)(x == x ? sign | float_to_small_bits<1, 1, 7>(x) : 7u);
}

HOST_DEVICE float e2m1_bits_to_float(uint8_t b) {
    uint32_t sign = (uint32_t)(b & 8u) << 28;
    float x = bits_float((b & 7u) << 22) * 8.507059173023461586584365185794205287e37f;  // 2^(127 - 1)
    return bits_float(sign | float_bits(x));
}

// NF4: the quantiles of a normal distribution, scaled to [-1, 1] (Dettmers et al. 2023, arXiv 2305.14314, appendix E).
// No array: device code could not index one that the host has too.
HOST_DEVICE float nf4_to_float(uint32_t code) {
    switch (code & 15u) {
        case 0: return -1.0f;
        case 1: return -0.6961928009986877f;
        case 2: return -0.5250730514526367f;
        case 3: return -0.39491748809814453f;
        case 4: return -0.28444138169288635f;
        case 5: return -0.18477343022823334f;
        case 6: return -0.09105003625154495f;
        case 7: return 0.0f;
        case 8: return 0.07958029955625534f;
        case 9: return 0.16093020141124725f;
        case 10: return 0.24611230194568634f;
        case 11: return 0.33791524171829224f;
        case 12: return 0.44070982933044434f;
        case 13: return 0.5626170039176941f;
        case 14: return 0.7229568362236023f;
        default: return 1.0f;
    }
}

// x in [-1, 1] -> the nearest code; a tie goes down. NaN becomes code 0.
HOST_DEVICE uint8_t float_to_nf4(float x) {
    return (uint8_t)((x > -0.8480964004993439f) + (x > -0.6106329262256622f) + (x > -0.4599952697753906f) +
                     (x > -0.33967943489551544f) + (x > -0.23460740596055984f) + (x > -0.13791173323988914f) +
                     (x > -0.045525018125772476f) + (x > 0.03979014977812767f) + (x > 0.1202552504837513f) +
                     (x > 0.2035212516784668f) + (x > 0.2920137718319893f) + (x > 0.3893125355243683f) +
                     (x > 0.5016634166240692f) + (x > 0.6427869200706482f) + (x > 0.8614784181118011f));
}

#if defined(PRECISION_FP32)
typedef float floatX;
#define PRECISION_NAME "fp32"
#else
typedef bf16 floatX;
#define PRECISION_NAME "bf16"
#endif
