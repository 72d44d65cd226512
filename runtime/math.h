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

// e^x to about 1 ulp (Cephes expf: Cody-Waite reduction by ln 2 in two parts, degree-5 polynomial).
// Inputs below -87 give 1.6e-38, not zero and not a subnormal; inputs above 88 saturate at 1.6e38. NaN stays NaN.
HOST_DEVICE float exp_f(float x) {
    float y = x < -87.0f ? -87.0f : x;
    y = y > 88.0f ? 88.0f : y;
    float n = mul_add(y, 1.44269504088896341f, 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: rounds to an integer
    float r = mul_add(n, -0.693359375f, y);
    r = mul_add(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = mul_add(p, r, 1.3981999507e-3f);
    p = mul_add(p, r, 8.3334519073e-3f);
    p = mul_add(p, r, 4.1665795894e-2f);
    p = mul_add(p, r, 1.6666665459e-1f);
    p = mul_add(p, r, 5.0000001201e-1f);
    p = mul_add(p, r * r, r) + 1.0f;
    int k = n == n ? (int)n : 0;
    return p * bits_float((uint32_t)(k + 127) << 23);
}

HOST_DEVICE float sigmoid_f(float x) { return 1.0f / (1.0f + exp_f(-x)); }
