// Elementary functions that both devices share and that vectorize on the CPU without fast-math.
#pragma once
#include <cmath>
#include "dtypes.h"

// Before a loop whose iterations are independent although the compiler cannot see it. For loops that write bf16 this is
// the pragma to use: under `omp simd` g++ 12 keeps the bf16 temporaries in memory and does not vectorize.
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define INDEPENDENT _Pragma("GCC ivdep")
#else
#define INDEPENDENT
#endif

// a * b + c, fused where the machine has it (software fma would cost 50x)
HOST_DEVICE float mul_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__)
    return fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// Inlined even where g++ finds the caller long enough: a call keeps a loop from vectorizing
#if defined(__CUDACC__)
#define ALWAYS_INLINE HOST_DEVICE
#else
#define ALWAYS_INLINE inline __attribute__((always_inline))
#endif

// 2^-n e^y, n the integer next to y / ln 2
ALWAYS_INLINE float exp_reduced(float y, float n) {
    float r = mul_add(n, -0.693359375f, y);
    r = mul_add(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = mul_add(p, r, 1.3981999507e-3f);
    p = mul_add(p, r, 8.3334519073e-3f);
    p = mul_add(p, r, 4.1665795894e-2f);
    p = mul_add(p, r, 1.6666665459e-1f);
    p = mul_add(p, r, 5.0000001201e-1f);
    return mul_add(p, r * r, r) + 1.0f;
}

// e^x to about 1 ulp (Cephes expf: Cody-Waite reduction by ln 2 in two parts, degree-5 polynomial).
// Inputs below -87 give 1.6e-38, not zero and not a subnormal; inputs above 88 saturate at 1.6e38. NaN stays NaN.
// The power of two is read from the bits of y / ln 2 + 1.5 * 2^23: of a conversion that must not see NaN g++ 12 makes a
// branch, and loops over it do not vectorize without AVX-512.
ALWAYS_INLINE float exp_f(float x) {
    float y = x < -87.0f ? -87.0f : x;
    y = y > 88.0f ? 88.0f : y;
    float shifted = mul_add(y, 1.44269504088896341f, 12582912.0f);  // rounds to an integer
    return exp_reduced(y, shifted - 12582912.0f) * bits_float((float_bits(shifted) - 0x4B400000u + 127u) << 23);
}

// c ? a : b with both computed: of a choice between two products g++ makes a branch, and then does not vectorize the loop
ALWAYS_INLINE float select_f(bool c, float a, float b) {
#if defined(__CUDA_ARCH__)
    return c ? a : b;
#else
    uint32_t mask = 0u - (uint32_t)c;
    return bits_float((float_bits(a) & mask) | (float_bits(b) & ~mask));
#endif
}

// log(1 + x) for x > -1 to about 1 ulp (Cephes logf: polynomial of degree 8 in m - 1, m in [sqrt 1/2, sqrt 2)). What the
// addition 1 + x rounds away is given back to m - 1, so that a small x loses nothing. NaN stays NaN.
ALWAYS_INLINE float log1p_f(float x) {
    float y = 1.0f + x, lost = x - (y - 1.0f);
    uint32_t u = float_bits(y);
    int k = (int)(u - 0x3F3504F3u) >> 23;  // the power of two; 0x3F3504F3: sqrt 1/2
    float f = mul_add(lost, bits_float((uint32_t)(127 - k) << 23), bits_float(u - ((uint32_t)k << 23)) - 1.0f);
    float p = 7.0376836292e-2f;
    p = mul_add(p, f, -1.1514610310e-1f);
    p = mul_add(p, f, 1.1676998740e-1f);
    p = mul_add(p, f, -1.2420140846e-1f);
    p = mul_add(p, f, 1.4249322787e-1f);
    p = mul_add(p, f, -1.6668057665e-1f);
    p = mul_add(p, f, 2.0000714765e-1f);
    p = mul_add(p, f, -2.4999993993e-1f);
    p = mul_add(p, f, 3.3333331174e-1f);
    float n = (float)k, square = f * f;
    float small = mul_add(p * f, square, n * -2.12194440e-4f);
    small = mul_add(square, -0.5f, small);
    return mul_add(n, 0.693359375f, f + small);
}

ALWAYS_INLINE float sigmoid_f(float x) { return 1.0f / (1.0f + exp_f(-x)); }
