// What a quantizer's code means, and how the scale of a group and the code of a number are found: one function for both
// devices, for weights, activations and the KV cache alike. The loops and kernels are in fake_quant.cuh.
//
//   integer    symmetric   Q(w) = q s,        q = clamp(rint(w/s), -2^(b-1), 2^(b-1)-1)
//              asymmetric  Q(w) = (q - z) s,  q = clamp(rint(w/s) + z, 0, 2^b-1),  s = (max-min)/(2^b-1), z =
//              rint(-min/s) the symmetric scale, by rule
//                amax       amax / ((2^b-1)/2)   compressed-tensors, torchao: all codes in use, the largest is clipped
//                amax7      amax / (2^(b-1)-1)   AWQ, QuaRot: nothing is clipped, code -2^(b-1) stays unused
//                signedmax  m / -2^(b-1), m the number of largest size with its sign (ggml's Q4_0); s may be negative
//                mse        the amax scale (or range) shrunk by p = 1, 0.99 ... 0.21, whichever has the least squared
//                           error over the group (GPTQ's search, with exponent 2)
//   ternary    Q(w) = q s, q = clamp(rint(w/s), -1, 1), s = mean |w|       (BitNet b1.58, arXiv 2402.17764, eq. 1-3)
//   nf4        Q(w) = nf4[code] s, s = amax                                (QLoRA, arXiv 2305.14314)
//   fp8        Q(w) = e4m3(w/s) s, s = amax/448; or e5m2, amax/57344      (arXiv 2209.05433)
//   mxfp8      e4m3, s = 2^(floor(log2 amax') - 8), blocks of 32            (OCP Microscaling 1.0; arXiv 2310.10537)
//   mxfp4      e2m1, s = 2^(floor(log2 amax') - 2), blocks of 32; amax' = amax, or the next power of two if its
//              significand is at least 1.75 (compressed-tensors; torchao's EVEN at 4 bits): nothing lies above 448 s
//   nvfp4      e2m1, s = e4m3(amax_block t / 6) / t, t = 448 * 6 / amax_tensor, blocks of 16
//
// Integer and ternary scales are rounded to bf16 and are at least 2^-14 in size, so that fp16 and bf16 containers hold
// them exactly; rounding is half to even. min and max include 0. A group of zeros gets the smallest scale (or 1) and
// codes of zero.
//
// nvfp4 where no tensor is known beforehand (activations): t = 1, so that a row does not depend on its batch.
//
// A code is kept as int8_t: an integer q minus 2^(b-1) where asymmetric (so that 8 bits fit), the bits of a float
// format, the index of an NF4 level.
//
// The trap: no product here may be added to anything. nvcc would fuse the two, a CPU might not, and the devices would
// disagree; where a sum of products is meant it is written fmaf.
#pragma once
#include <cmath>
#include <cstdint>
#include "../runtime/dtypes.h"
#include "../runtime/math.h"
#include "../runtime/rng.h"

enum class QuantFormat : uint8_t { integer, ternary, nf4, fp8e4m3, fp8e5m2, mxfp8, mxfp4, nvfp4, range };
enum class ScaleRule : uint8_t { amax, amax7, signedmax, mse };

struct QuantSpec {
    QuantFormat format = QuantFormat::integer;
    int bits = 8;                      // of a code; what is stored takes this many
    bool symmetric = true;             // false: integers with a zero point
    ScaleRule rule = ScaleRule::amax;  // integers only
};

struct Grid {
    float scale;
    float
        zero;  // an integer; 0 when symmetric. NF4 with double quantization: the scale before, by which codes are found
};

// How the gradient of Q(w) becomes that of w, see quant_passes
enum class SteRule : uint8_t { identity, clip, trust };

static constexpr int QUANT_SHRINKS = 80;  // candidates of rule mse
HOST_DEVICE float quant_shrink(int i) { return (float)(100 - i) / 100.0f; }

// an integer code, as a number on the grid's own range: ternary ones too
HOST_DEVICE bool quant_is_integer(QuantSpec q) {
    return q.format == QuantFormat::integer || q.format == QuantFormat::ternary;
}

// the smallest scale that fp16 holds as a normal number
static constexpr float QUANT_LEAST_SCALE = 6.103515625e-5f;  // 2^-14

HOST_DEVICE float quant_low(QuantSpec q) {
    return q.format == QuantFormat::ternary ? -1.0f : q.symmetric ? -(float)(1 << (q.bits - 1)) : 0.0f;
}
HOST_DEVICE float quant_high(QuantSpec q) {
    return q.format == QuantFormat::ternary ? 1.0f : (float)((1 << (q.symmetric ? q.bits - 1 : q.bits)) - 1);
}

// 2^e as e8m0 has it: exponents -127 to 127
HOST_DEVICE float quant_power_of_two(int e) {
    e = e < -127 ? -127 : e > 127 ? 127 : e;
    return e == -127 ? 5.877471754111438e-39f : bits_float((uint32_t)(e + 127) << 23);
}

HOST_DEVICE float quant_round_scale(float s) {
    s = bf16_bits_to_float(float_to_bf16_bits(s));
    float size = s < 0.0f ? -s : s;
    return size >= QUANT_LEAST_SCALE ? s : s < 0.0f ? -QUANT_LEAST_SCALE : QUANT_LEAST_SCALE;
}

// nvfp4's t: the largest number becomes the largest scale times the largest code. A product with the reciprocal, as
// torch divides a number by a tensor
HOST_DEVICE float quant_tensor_scale(float amax) { return amax >= 1e-30f ? 1.0f / amax * 2688.0f : 1.0f; }

// The grid of a group whose numbers, and 0, lie in [min, max]; tensor_scale: nvfp4's t, else ignored. For rule mse this
// is where the search begins (shrink 1); for ternary, max is the mean of |w|.
HOST_DEVICE Grid quant_grid(QuantSpec q, float min, float max, float tensor_scale, float shrink) {
    float amax = -min > max ? -min : max;
    switch (q.format) {
        case QuantFormat::ternary:
            return Grid{quant_round_scale(max), 0.0f};
        case QuantFormat::nf4:
            return Grid{amax, 0.0f};
        case QuantFormat::fp8e4m3:
        case QuantFormat::fp8e5m2: {
            float s = amax / (q.format == QuantFormat::fp8e4m3 ? 448.0f : 57344.0f);
            return Grid{s >= 1.17549435e-38f ? s : 1.0f, 0.0f};
        }
        case QuantFormat::mxfp8:
        case QuantFormat::mxfp4: {
            uint32_t u = float_bits(amax);
            int e = (int)(u >> 23) - 127;
            e += (u & 0x7FFFFFu) >= 0x600000u;
            return Grid{quant_power_of_two(e - (q.format == QuantFormat::mxfp8 ? 8 : 2)), 0.0f};
        }
        case QuantFormat::nvfp4: {
            float local = e4m3_bits_to_float(float_to_e4m3_bits(tensor_scale * (amax / 6.0f)));
            return Grid{(local > 0.0f ? local : 0.125f) / tensor_scale, 0.0f};
        }
        case QuantFormat::range:  // no format: measures the two ends
            return Grid{max, min};
        default:
            break;
    }
    float levels = (float)((1 << q.bits) - 1);
    float s = !q.symmetric                     ? (max - min) * shrink / levels
              : q.rule == ScaleRule::amax7     ? amax / quant_high(q)
              : q.rule == ScaleRule::signedmax ? (-min >= max ? min : max) / quant_low(q)
                                               : amax * shrink / (0.5f * levels);
    s = quant_round_scale(s);
    float z = 0.0f;
    if (!q.symmetric) {
        z = rintf(-min * shrink / s);
        z = z < 0.0f ? 0.0f : (z > levels ? levels : z);
    }
    return Grid{s, z};
}

// integers and ternary: q, of which the code is q less 2^(b-1) where asymmetric
HOST_DEVICE float quant_level(float w, Grid g, float low, float high) {
    float q = rintf(w / g.scale) + g.zero;
    q = q < low ? low : q;
    return q > high ? high : q;
}

// Stochastic rounding of integers: floor(w/s + u) instead of rint(w/s), u uniform in [0, 1) and drawn once for a step
struct QuantNoise {
    bool on = false;
    uint32_t step = 0, tensor = 0;
    uint64_t seed = 0;
};
// of element `index` of the tensor; -1: rounding is to nearest
HOST_DEVICE float quant_noise(const QuantNoise& n, int64_t index) {
    if (!n.on) return -1.0f;
    return uniform01(rng_bits(n.seed, RNG_ROUND, n.step, n.tensor, (uint32_t)(index >> 2)).x[index & 3]);
}
HOST_DEVICE float quant_level(float w, Grid g, float low, float high, float u) {
    float q = floorf(w / g.scale + u) + g.zero;
    q = q < low ? low : q;
    return q > high ? high : q;
}

// What is below the smallest normal float counts as zero: its reciprocal would overflow
HOST_DEVICE float quant_nf4_inverse(float scale) {
    return scale >= 1.17549435e-38f || scale <= -1.17549435e-38f ? 1.0f / scale : 0.0f;
}
HOST_DEVICE float quant_nf4_inverse(Grid g) { return quant_nf4_inverse(g.zero > 0.0f ? g.zero : g.scale); }

// the code of a number, as it is kept
HOST_DEVICE int quant_code(QuantSpec q, float w, Grid g) {
    switch (q.format) {
        case QuantFormat::nf4:
            return float_to_nf4(w * quant_nf4_inverse(g));
        case QuantFormat::fp8e4m3:
        case QuantFormat::mxfp8:
            return (int8_t)float_to_e4m3_bits(w / g.scale);
        case QuantFormat::fp8e5m2:
            return (int8_t)float_to_e5m2_bits(w / g.scale);
        case QuantFormat::mxfp4:
        case QuantFormat::nvfp4:
            return float_to_e2m1_bits(w / g.scale);
        default:
            return (int)quant_level(w, g, quant_low(q), quant_high(q)) - (q.symmetric ? 0 : 1 << (q.bits - 1));
    }
}

// what a code stands for
HOST_DEVICE float quant_value(QuantSpec q, int code, Grid g) {
    switch (q.format) {
        case QuantFormat::nf4:
            return nf4_to_float((uint32_t)code) * g.scale;
        case QuantFormat::fp8e4m3:
        case QuantFormat::mxfp8:
            return e4m3_bits_to_float((uint8_t)code) * g.scale;
        case QuantFormat::fp8e5m2:
            return e5m2_bits_to_float((uint8_t)code) * g.scale;
        case QuantFormat::mxfp4:
        case QuantFormat::nvfp4:
            return e2m1_bits_to_float((uint8_t)code) * g.scale;
        default:
            return ((float)(code + (q.symmetric ? 0 : 1 << (q.bits - 1))) - g.zero) * g.scale;
    }
}

// Two codes differ in what they stand for if they differ and share one of these bits: +0 and -0 of a float format do
// not
HOST_DEVICE int quant_code_mask(QuantSpec q) {
    switch (q.format) {
        case QuantFormat::fp8e4m3:
        case QuantFormat::fp8e5m2:
        case QuantFormat::mxfp8:
            return 0x7F;
        case QuantFormat::mxfp4:
        case QuantFormat::nvfp4:
            return 7;
        default:
            return 0xFF;
    }
}
HOST_DEVICE bool quant_flipped(int mask, int a, int b) { return (a != b) & (((a | b) & mask) != 0); }

// Straight-through rules: does the gradient of Q(w) reach w? identity: always (Bengio et al. 2013); clip: where w lies
// between the least and the largest number of the grid (PACT); trust: where Q(w) is within half a step of w (QuEST,
// arXiv 2502.05003, with its default of half a step). A float format saturates half a step beyond its largest number,
// under clip too: its scale is a quotient, by which the largest weight may come out an ulp above.
HOST_DEVICE bool quant_passes(QuantSpec q, SteRule rule, float w, Grid g) {
    float x = w / g.scale, size = x < 0.0f ? -x : x;
    switch (q.format) {
        case QuantFormat::nf4:
            return true;  // scaled by the largest, and so inside
        case QuantFormat::fp8e4m3:
        case QuantFormat::mxfp8:
            return rule == SteRule::identity || size <= 464.0f;
        case QuantFormat::fp8e5m2:
            return rule == SteRule::identity || size <= 61440.0f;
        case QuantFormat::mxfp4:
        case QuantFormat::nvfp4:
            return rule == SteRule::identity || size <= 7.0f;
        default:
            break;
    }
    float beyond = rule == SteRule::trust ? 0.5f : 0.0f;
    x = x + g.zero;
    return rule == SteRule::identity || (x >= quant_low(q) - beyond && x <= quant_high(q) + beyond);
}

// ---------------------------------------------------------------------------------------------------------------------
// Sums that do not depend on the order: |w| in units of 2^-30 of the power of two below amax, added as integers

HOST_DEVICE float quant_fixed_unit(float amax) {  // 2^(30 - floor(log2 amax))
    int e = (int)(float_bits(amax) >> 23) - 127;
    e = e < -90 ? -90 : e;
    return bits_float((uint32_t)(30 - e + 127) << 23);
}
HOST_DEVICE int64_t quant_fixed(float w, float unit) { return (int64_t)rintf((w < 0.0f ? -w : w) * unit); }
HOST_DEVICE float quant_fixed_mean(int64_t sum, int64_t count, float unit) {
    return (float)((double)sum / (double)count / (double)unit);
}

// ---------------------------------------------------------------------------------------------------------------------
// Double quantization (QLoRA, section 3): the scales of NF4, minus their mean, in blocks of 256 to the signed dynamic
// map of 8 bits (Dettmers 2016, arXiv 1511.04561): 7 decades, of which decade i has 2^i linear steps.

// Entry u of bitsandbytes' map (create_dynamic_map), ascending: for i = 0 ... 6 the 2^i middles of
// linspace(0.1, 1, 2^i + 1) times 10^(i-6), with both signs, and 0 and 1. linspace is torch's, which counts from the
// nearer end and fuses.
HOST_DEVICE float dynamic_map_value(uint32_t u) {
    if (u == 127) return 0.0f;
    if (u >= 255) return 1.0f;
    int index = u > 127 ? (int)u - 128 : 126 - (int)u, i = 0;
    while (index + 1 >= 2 << i) i++;
    int n = 1 << i, k = index + 1 - n;
    float step = (1.0f - 0.1f) / (float)n, end[2];
    for (int e = 0; e < 2; e++)
        end[e] = k + e < (n + 1) / 2 ? fmaf(step, (float)(k + e), 0.1f) : fmaf(-step, (float)(n - k - e), 1.0f);
    float ten = i == 0   ? 1e-6f
                : i == 1 ? 1e-5f
                : i == 2 ? 1e-4f
                : i == 3 ? 1e-3f
                : i == 4 ? 1e-2f
                : i == 5 ? 0.1f
                         : 1.0f;
    float x = (end[0] + end[1]) / 2.0f * ten;
    return u > 127 ? x : -x;
}

struct DynamicMap {
    float value[256];  // sorted
};
inline DynamicMap dynamic_map() {
    DynamicMap m;
    for (uint32_t u = 0; u < 256; u++) m.value[u] = dynamic_map_value(u);
    return m;
}

// x in [-1, 1] -> the nearest of the map; a tie goes down
HOST_DEVICE int dynamic_map_code(const DynamicMap& m, float x) {
    int low = 0, high = 255;  // the answer lies in low ... high
    while (low < high) {
        int middle = (low + high) / 2;
        if (x > 0.5f * (m.value[middle] + m.value[middle + 1])) low = middle + 1;
        else high = middle;
    }
    return low;
}
// a product that no compiler fuses with the sum: adding +0 to it is not nothing, for it turns -0 into +0
HOST_DEVICE float dynamic_map_scale(float value, float absmax, float offset) {
    return fmaf(value, absmax, 0.0f) + offset;
}
HOST_DEVICE float dynamic_map_scale(const DynamicMap& m, int code, float absmax, float offset) {
    return dynamic_map_scale(m.value[code], absmax, offset);
}
