// The random numbers of sampling.cuh, on either device: one uniform number a row, or Gumbel noise for each word. Their
// keys are told there.
#pragma once
#include <cstdint>
#include "../runtime/math.h"
#include "../runtime/rng.h"

enum class SampleMethod { argmax, gumbel, inverse, masked, masked_gumbel };

// What tells the draws of a rollout from those of another, and a row's draw from the other rows'
struct DrawStream {
    uint64_t seed = 0;
    uint32_t stream = RNG_SAMPLE;
};
struct DrawKey {
    uint32_t step = 0, sample = 0, token = 0;
};

HOST_DEVICE float draw_uniform(DrawStream s, DrawKey k) {
    return uniform01(rng_bits(s.seed, s.stream, k.step, k.sample, k.token).x[0]);
}

// the middle of its step: see sample_row
HOST_DEVICE double draw_quantile(float u) { return (double)u + 2.98023223876953125e-8; }

// ---------------------------------------------------------------------------------------------------------------------
// Gumbel noise: the same bits on host and device, so no library functions and no product that a compiler may fuse

// -log(1 - x) for x in [0, 0.5]: 2 atanh(s), s = x / (2 - x) <= 1/3
HOST_DEVICE float gumbel_minus_log1m(float x) {
    float s = x / (2.0f - x), s2 = s * s, p = 1.0f / 15.0f;
    p = mul_add(p, s2, 1.0f / 13.0f);
    p = mul_add(p, s2, 1.0f / 11.0f);
    p = mul_add(p, s2, 1.0f / 9.0f);
    p = mul_add(p, s2, 1.0f / 7.0f);
    p = mul_add(p, s2, 1.0f / 5.0f);
    p = mul_add(p, s2, 1.0f / 3.0f);
    return 2.0f * mul_add(p * s2, s, s);
}

// log x for normal x > 0: x = 2^k m with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m - 1) / (m + 1))
HOST_DEVICE float gumbel_log(float x) {
    uint32_t u = float_bits(x) - 0x3F3504F3u;  // of sqrt(1/2)
    float k = (float)((int32_t)u >> 23), m = bits_float((u & 0x007FFFFFu) + 0x3F3504F3u);
    float s = (m - 1.0f) / (m + 1.0f), s2 = s * s, p = 1.0f / 9.0f;
    p = mul_add(p, s2, 1.0f / 7.0f);
    p = mul_add(p, s2, 1.0f / 5.0f);
    p = mul_add(p, s2, 1.0f / 3.0f);
    return mul_add(k, 0.693147181f, 2.0f * mul_add(p * s2, s, s));
}

// u = 1 - (bits + 1/2) 2^-32: largest where bits are small, which a float holds to 24 places, so that the upper tail
// (up to 22.9) is as fine as the middle
HOST_DEVICE float gumbel_noise(uint32_t bits) {
    bool low = bits < 0x80000000u;
    float x = mul_add((float)(low ? bits : ~bits), 2.3283064365386963e-10f, 1.1641532182693481e-10f);
    return -gumbel_log(low ? gumbel_minus_log1m(x) : -gumbel_log(x));
}

// of words 4q ... 4q + 3
HOST_DEVICE Philox4 gumbel_bits(DrawStream s, DrawKey k, uint32_t q) {
    return rng_bits(s.seed, s.stream + ((q + 1) << 8), k.step, k.sample, k.token);
}

HOST_DEVICE float gumbel_score(float logit, float inverse_temperature, uint32_t bits) {
    return mul_add(logit, inverse_temperature, gumbel_noise(bits));
}
