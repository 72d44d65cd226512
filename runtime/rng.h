// Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
// There is no state. A draw is a pure function of (seed, stream, a, b, c), so a sample does not depend on the batch it
// was drawn in, on the number of threads, or on whether the run was resumed.
#pragma once
#include "dtypes.h"

struct Philox4 {
    uint32_t x[4];
};

// word i (0 ... 3), by comparisons: an index that is not known when a kernel is compiled puts the array into memory
HOST_DEVICE uint32_t philox_word(const Philox4& p, int i) {
    return i < 2 ? (i == 0 ? p.x[0] : p.x[1]) : (i == 2 ? p.x[2] : p.x[3]);
}

HOST_DEVICE Philox4 philox4x32_10(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return Philox4{{c0, c1, c2, c3}};
}

// What a draw is for. Two streams never share a counter.
enum RngStream : uint32_t {
    RNG_INIT = 1,        // (tensor, index, 0)
    RNG_SAMPLE = 2,      // (step, prompt * G + sample, token)
    RNG_SHUFFLE = 3,     // (epoch, index, 0)
    RNG_TASK = 4,        // (problem, draw, 0)
    RNG_EVAL = 5,        // (evaluation, prompt * G + sample, token)
    RNG_ROUND = 6,       // (step, tensor, index / 4)
    RNG_LORA = 7,        // (tensor, index, 0)
    RNG_DROPOUT = 8,     // (forward pass, product and column, row)
    RNG_ROTATION = 9,    // (rotation, index, 0)
    RNG_MOMENTS = 10,    // (step, tensor, index / 4)
    RNG_DISTILL = 11,    // (step, 0, 0)
    RNG_NORMS = 12,      // (step, norm, index)
    RNG_REDRAW = 16,     // (step, index, try)
    RNG_OPTIONS = 17,    // (hash of the question, index, try)
    RNG_BOOTSTRAP = 20,  // (resample, draw / 4, what is drawn)
    RNG_SIGN_FLIP = 21,  // (resample, problem / 128, 0)
};

HOST_DEVICE Philox4 rng_bits(uint64_t seed, uint32_t stream, uint32_t a, uint32_t b, uint32_t c) {
    return philox4x32_10(a, b, c, stream, (uint32_t)seed, (uint32_t)(seed >> 32));
}

// uniform in [0, 1) with 24 bits: exactly representable, never 1
HOST_DEVICE float uniform01(uint32_t bits) { return (float)(bits >> 8) * 5.9604644775390625e-8f; }
