// What a quantizer's code means, and how the scale of a group and the code of a number are found: one function for both
// devices, for weights, activations and the KV cache alike. The loops and kernels are in fake_quant.cuh.
//
//   integer    symmetric   Q(w) = q s,        q = clamp(rint(w/s), -2^(b-1), 2^(b-1)-1)
//              asymmetric  Q(w) = (q - z) s,  q = clamp(rint(w/s) + z, 0, 2^b-1),  s = (max-min)/(2^b-1), z = rint(-min/s)
//              the symmetric scale, by rule
//                amax       amax / ((2^b-1)/2)   compressed-tensors, torchao: all codes in use, the largest is clipped
//                amax7      amax / (2^(b-1)-1)   AWQ, QuaRot: nothing is clipped, code -2^(b-1) stays unused
//                signedmax  m / -2^(b-1), m the number of largest size with its sign (ggml's Q4_0); s may be negative
//                mse        the amax scale (or range) shrunk by p = 1, 0.99 ... 0.21, whichever has the least squared
//                           error over the group (GPTQ's search, with exponent 2)
//   ternary    Q(w) = q s, q = clamp(rint(w/s), -1, 1), s = mean |w|       (BitNet b1.58, arXiv 2402.17764, eq. 1-3)
//   nf4        Q(w) = nf4[code] s, s = amax                                (QLoRA, arXiv 2305.14314)
//   fp8        Q(w) = e4m3(w/s) s, s = amax/448; or e5m2, amax/57344      (arXiv 2209.05433)
//   mxfp8      e4m3, s = 2^(floor(log2 amax) - 8), blocks of 32            (OCP Microscaling 1.0; arXiv 2310.10537)
//   mxfp4      e2m1, s = 2^(floor(log2 amax') - 2), amax' = amax, or the next power of two if its significand is at
//              least 1.75 (compressed-tensors; torchao's EVEN), blocks of 32
//   nvfp4      e2m1, s = e4m3(amax_block t / 6) / t, t = 448 * 6 / amax_tensor, blocks of 16
//
// Integer and ternary scales are rounded to bf16 and are at least 2^-14 in size, so that fp16 and bf16 containers hold
// them exactly; rounding is half to even. min and max include 0. A group of zeros gets the smallest scale (or 1) and
// codes of zero.
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

enum class QuantFormat : uint8_t { integer, ternary, nf4, fp8e4m3, fp8e5m2, mxfp8, mxfp4, nvfp4 };
enum class ScaleRule : uint8_t { amax, amax7, signedmax, mse };

struct QuantSpec {
    QuantFormat format = QuantFormat::integer;
    int bits = 8;            // of a code; what is stored takes this many
    bool symmetric = true;   // false: integers with a zero point
    ScaleRule rule = ScaleRule::amax;  // integers only
};

struct Grid {
    float scale;
    float zero;  // an integer; 0 when symmetric
};

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
            if (q.format == QuantFormat::mxfp4) e += (u & 0x7FFFFFu) >= 0x600000u;
            return Grid{quant_power_of_two(e - (q.format == QuantFormat::mxfp8 ? 8 : 2)), 0.0f};
        }
        case QuantFormat::nvfp4: {
            float local = e4m3_bits_to_float(float_to_e4m3_bits(tensor_scale * amax / 6.0f));
            return Grid{(local > 0.0f ? local : 0.125f) / tensor_scale, 0.0f};
        }
        default:
            break;
    }
    float levels = (float)((1 << q.bits) - 1);
    min = min * shrink, max = max * shrink, amax = amax * shrink;
    float s = !q.symmetric                         ? (max - min) / levels
              : q.rule == ScaleRule::amax7         ? amax / quant_high(q)
              : q.rule == ScaleRule::signedmax     ? (-min >= max ? min : max) / quant_low(q)
                                                   : amax / (0.5f * levels);
    s = quant_round_scale(s);
    float z = 0.0f;
    if (!q.symmetric) {
        z = rintf(-min / s);
        z = z < 0.0f ? 0.0f : (z > levels ? levels : z);
    }
    return Grid{s, z};
}

// the code of a number, as it is kept
HOST_DEVICE int quant_code(QuantSpec q, float w, Grid g) {
    switch (q.format) {
        case QuantFormat::nf4:
            return float_to_nf4(g.scale >= 1.17549435e-38f ? w * (1.0f / g.scale) : 0.0f);
        case QuantFormat::fp8e4m3:
        case QuantFormat::mxfp8:
            return (int8_t)float_to_e4m3_bits(w / g.scale);
        case QuantFormat::fp8e5m2:
            return (int8_t)float_to_e5m2_bits(w / g.scale);
        case QuantFormat::mxfp4:
        case QuantFormat::nvfp4:
            return float_to_e2m1_bits(w / g.scale);
        default:
            break;
    }
    float low = quant_low(q), high = quant_high(q), x = rintf(w / g.scale) + g.zero;
    x = x < low ? low : x;
    x = x > high ? high : x;
    return (int)x - (q.symmetric ? 0 : 1 << (q.bits - 1));
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
