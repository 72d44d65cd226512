// A format for test/format_recipe, unlike those of the tree: a sign and the logarithm of the size. 0 and +-2^-6 ... 1
#pragma once
#include "format.cuh"

struct Log4Format {
    typedef Log4Format Codes;
    static constexpr std::initializer_list<FormatName> names = {{"log4", 4}};
    static constexpr const char *scopes = "gN", *scope = "g32";
    static constexpr NumberKind kind = NumberKind::table;
    static constexpr bool reciprocal = false;
    static constexpr int flip_mask = 7;  // all but the sign
    static constexpr float largest = 1.0f, saturates = 1.25f;
    static constexpr ScaleStorage storage = ScaleStorage::fp32;
    static constexpr bool affine = false, tensor_scale = false, double_quant = false;
    static constexpr ScaleOf scale_of = ScaleOf::range;
    static constexpr const char *rules = "", *learned = "";
    static constexpr bool zero_scale = false, activations = true, kv_cache = true;
    static constexpr const char *compressed_tensors = "", *bitsandbytes = "";
    static constexpr std::initializer_list<FormatGguf> gguf = {};

    HOST_DEVICE static Grid grid(QuantSpec, float min, float max, float, float) {
        float s = quant_amax(min, max);
        return Grid{s >= QUANT_LEAST_NORMAL ? s : 1.0f, 0.0f};
    }
    HOST_DEVICE static int code(float x) {
        float size = x < 0.0f ? -x : x;
        int level = (size > 0x1p-7f) + (size > 0x1.8p-6f) + (size > 0x1.8p-5f) + (size > 0x1.8p-4f) +
                    (size > 0x1.8p-3f) + (size > 0x1.8p-2f) + (size > 0x1.8p-1f);
        return level | (x < 0.0f ? 8 : 0);
    }
    HOST_DEVICE static float number(uint32_t code) {
        uint32_t level = code & 7u;
        float size = level ? bits_float((level + 120u) << 23) : 0.0f;
        return code & 8u ? -size : size;
    }
};
