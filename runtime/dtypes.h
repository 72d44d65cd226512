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

#if defined(PRECISION_FP32)
typedef float floatX;
#define PRECISION_NAME "fp32"
#else
typedef bf16 floatX;
#define PRECISION_NAME "bf16"
#endif
