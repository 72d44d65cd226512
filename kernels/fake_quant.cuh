// Fake quantization: w -> Q(w), a value of the integer grid written back as a number, and its straight-through
// backward. In a bf16 build the product code x scale (up to 16 bits of mantissa) is rounded once more.
//   symmetric   s = amax / ((2^b - 1)/2)           q = clamp(rint(w/s), -2^(b-1), 2^(b-1)-1)      Q(w) = q s
//   asymmetric  s = (max - min)/(2^b - 1), z = rint(-min/s)   q = clamp(rint(w/s) + z, 0, 2^b-1)  Q(w) = (q - z) s
// min and max include 0. s is rounded to bf16 and is at least 2^-14, so that fp16 and bf16 containers hold it exactly;
// rounding is half to even. This is the grid of compressed-tensors and torchao (amax/7.5 at 4 bits: -8 is used).
//   backward    identity: dw = dQ;   clipped: dw = dQ where w/s (+ z) lies inside the code range, else 0
//               (Bengio et al. 2013; the clipped form is PACT's and torchao's)
// A group is `group` consecutive numbers of the row-major matrix: a slice of a row, a row (channel), or all of it
// (tensor). Everything below therefore sees [groups, group] and needs no other shape.
// Traffic: 4 bytes read, 2 (bf16) + 1 (code) written a weight; min and max need a second pass, which the cache serves.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>
#include "../runtime/dtypes.h"
#include "../runtime/math.h"

struct Grid {
    float scale;
    float zero;  // an integer; 0 when symmetric
};

HOST_DEVICE float quant_low(int bits, bool symmetric) { return symmetric ? -(float)(1 << (bits - 1)) : 0.0f; }
HOST_DEVICE float quant_high(int bits, bool symmetric) {
    return symmetric ? (float)((1 << (bits - 1)) - 1) : (float)((1 << bits) - 1);
}

HOST_DEVICE Grid quant_grid(float min, float max, int bits, bool symmetric) {
    float levels = (float)((1 << bits) - 1);
    float amax = -min > max ? -min : max;
    float s = symmetric ? amax / (0.5f * levels) : (max - min) / levels;
    s = bf16_bits_to_float(float_to_bf16_bits(s));
    s = s < 6.103515625e-5f ? 6.103515625e-5f : s;
    float z = 0.0f;
    if (!symmetric) {
        z = rintf(-min / s);
        z = z < 0.0f ? 0.0f : (z > levels ? levels : z);
    }
    return Grid{s, z};
}

HOST_DEVICE float quant_code(float w, Grid g, float low, float high) {
    float q = rintf(w / g.scale) + g.zero;
    q = q < low ? low : q;
    return q > high ? high : q;
}

// Quantize groups [groups, group] of w into out. compute_grid: measure the scale here (dynamic) or use grid as given
// (static). codes (may be null) holds the previous codes and receives the new ones; returns how many changed.
inline int64_t fake_quant_forward_cpu(floatX* out,     // [groups, group]
                                      int8_t* codes,   // [groups, group]; asymmetric codes are stored minus 2^(b-1)
                                      Grid* grid,      // [groups]
                                      const float* w,  // [groups, group]
                                      int64_t groups, int64_t group, int bits, bool symmetric, bool compute_grid) {
    float low = quant_low(bits, symmetric), high = quant_high(bits, symmetric);
    float shift = symmetric ? 0.0f : (float)(1 << (bits - 1));
    if (compute_grid) {
        // one group may be the whole tensor: reduce in blocks, since min and max do not depend on the order
        const int64_t block = 4096, per_group = (group + block - 1) / block;
        std::vector<float> lo(groups * per_group), hi(groups * per_group);
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < groups * per_group; i++) {
            int64_t start = i % per_group * block, n = group - start < block ? group - start : block;
            const float* x = w + i / per_group * group + start;
            float min = 0.0f, max = 0.0f;
#pragma omp simd reduction(min : min) reduction(max : max)
            for (int64_t j = 0; j < n; j++) {
                min = x[j] < min ? x[j] : min;
                max = x[j] > max ? x[j] : max;
            }
            lo[i] = min;
            hi[i] = max;
        }
#pragma omp parallel for schedule(static)
        for (int64_t g = 0; g < groups; g++) {
            float min = 0.0f, max = 0.0f;
            for (int64_t i = g * per_group; i < (g + 1) * per_group; i++) {
                min = lo[i] < min ? lo[i] : min;
                max = hi[i] > max ? hi[i] : max;
            }
            grid[g] = quant_grid(min, max, bits, symmetric);
        }
    }
    int64_t changed = 0;
    int64_t pieces = group > 4096 ? (group + 4095) / 4096 : 1, piece = pieces > 1 ? 4096 : group;
#pragma omp parallel for schedule(static) reduction(+ : changed)
    for (int64_t i = 0; i < groups * pieces; i++) {
        Grid g = grid[i / pieces];
        int64_t start = i / pieces * group + i % pieces * piece, end = i / pieces * group + group;
        if (start + piece < end) end = start + piece;
        int flips = 0;
        if (codes) {
            INDEPENDENT
            for (int64_t j = start; j < end; j++) {
                float q = quant_code(w[j], g, low, high);
                int8_t code = (int8_t)(q - shift);
                flips += code != codes[j];
                codes[j] = code;
                out[j] = (q - g.zero) * g.scale;
            }
        } else {
            INDEPENDENT
            for (int64_t j = start; j < end; j++) out[j] = (quant_code(w[j], g, low, high) - g.zero) * g.scale;
        }
        changed += flips;
    }
    return changed;
}

// The clipped straight-through mask, in place on the gradient of Q(w); the identity rule needs no kernel.
inline void fake_quant_backward_cpu(float* dw,         // [groups, group]
                                    const float* w,    // [groups, group]
                                    const Grid* grid,  // [groups]
                                    int64_t groups, int64_t group, int bits, bool symmetric) {
    float low = quant_low(bits, symmetric), high = quant_high(bits, symmetric);
#pragma omp parallel for schedule(static)
    for (int64_t g = 0; g < groups; g++) {
        float s = grid[g].scale, z = grid[g].zero;
        INDEPENDENT
        for (int64_t j = g * group; j < (g + 1) * group; j++) {
            float x = w[j] / s + z;
            dw[j] = x >= low && x <= high ? dw[j] : 0.0f;
        }
    }
}
