// NF4, quantiles of a normal distribution (QLoRA, arXiv 2305.14314)
#pragma once
#include "format.cuh"

struct Nf4Format {
    typedef Nf4Format Codes;
    static constexpr std::initializer_list<FormatName> names = {{"nf4", 4}};
    static constexpr const char *scopes = "gN", *scope = "g64";
    static constexpr NumberKind kind = NumberKind::table;
    static constexpr bool reciprocal = true;  // as bitsandbytes
    static constexpr int flip_mask = 0xFF;
    static constexpr float largest = 1.0f, saturates = INFINITY;  // scaled by the largest, and so inside
    static constexpr ScaleStorage storage = ScaleStorage::fp32;
    static constexpr bool affine = false, tensor_scale = false, double_quant = true;
    static constexpr ScaleOf scale_of = ScaleOf::range;
    static constexpr const char *rules = "", *learned = "";
    static constexpr bool zero_scale = true, activations = false, kv_cache = true;
    static constexpr const char *compressed_tensors = "", *bitsandbytes = "nf4";
    static constexpr std::initializer_list<FormatGguf> gguf = {};

    HOST_DEVICE static Grid grid(QuantSpec, float min, float max, float, float) {
        return Grid{quant_amax(min, max), 0.0f};
    }
    HOST_DEVICE static int code(float x) { return float_to_nf4(x); }
    HOST_DEVICE static float number(uint32_t code) { return nf4_to_float(code); }
};
