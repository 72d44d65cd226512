// int8 ... int2: symmetric, or with a zero point. The formulas are in the table of ../quant_format.cuh.
#pragma once
#include "format.cuh"

// the codes of integers, in the range [low, high] that the format has
struct IntegerCodes {
    static constexpr NumberKind kind = NumberKind::integer;
    static constexpr int flip_mask = 0xFF;
};

// q, of which the code is q less 2^(b-1) where asymmetric
HOST_DEVICE float quant_clamp(float q, float low, float high) {
    q = q < low ? low : q;
    return q > high ? high : q;
}
HOST_DEVICE float quant_level(float w, Grid g, float low, float high) {
    return quant_clamp(rintf(w / g.scale) + g.zero, low, high);
}
// stochastic rounding: u uniform in [0, 1)
HOST_DEVICE float quant_level(float w, Grid g, float low, float high, float u) {
    return quant_clamp(floorf(w / g.scale + u) + g.zero, low, high);
}

struct IntegerFormat : IntegerCodes {
    typedef IntegerCodes Codes;
    static constexpr std::initializer_list<FormatName> names = {{"int8", 8}, {"int6", 6}, {"int5", 5},
                                                                {"int4", 4}, {"int3", 3}, {"int2", 2}};
    static constexpr const char *scopes = "tensor, channel, token, gN", *scope = "";
    static constexpr ScaleStorage storage = ScaleStorage::bf16;
    static constexpr bool affine = true, tensor_scale = false, double_quant = false;
    static constexpr ScaleOf scale_of = ScaleOf::range;
    static constexpr const char* rules = "amax, amax7, signedmax, mse";
    static constexpr const char* learned = "lsq, lsq_offset, lwc, pact";
    static constexpr bool zero_scale = false, activations = true, kv_cache = true;
    static constexpr const char *compressed_tensors = "pack-quantized", *bitsandbytes = "";
    static constexpr std::initializer_list<FormatGguf> gguf = {{"Q4_0", 4, true},  {"Q5_0", 5, true},
                                                               {"Q8_0", 8, true},  {"Q2_0", 2, true},
                                                               {"Q4_1", 4, false}, {"Q5_1", 5, false}};

    HOST_DEVICE static float low(QuantSpec q) { return q.symmetric ? -(float)(1 << (q.bits - 1)) : 0.0f; }
    HOST_DEVICE static float high(QuantSpec q) { return (float)((1 << (q.symmetric ? q.bits - 1 : q.bits)) - 1); }

    // shrink: of rule mse
    HOST_DEVICE static Grid grid(QuantSpec q, float min, float max, float, float shrink) {
        float amax = quant_amax(min, max), levels = (float)((1 << q.bits) - 1);
        float s = !q.symmetric                     ? (max - min) * shrink / levels
                  : q.rule == ScaleRule::amax7     ? amax / high(q)
                  : q.rule == ScaleRule::signedmax ? (-min >= max ? min : max) / low(q)
                                                   : amax * shrink / (0.5f * levels);
        s = quant_round_scale(s);
        return Grid{s, q.symmetric ? 0.0f : quant_clamp(rintf(-min * shrink / s), 0.0f, levels)};
    }
};
