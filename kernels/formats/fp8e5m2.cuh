// e5m2, the largest number 57344 (arXiv 2209.05433)
#pragma once
#include "format.cuh"

struct Fp8E5m2Format {
    typedef Fp8E5m2Format Codes;
    static constexpr std::initializer_list<FormatName> names = {{"fp8e5m2", 8}};
    static constexpr const char *scopes = "tensor, channel, token, gN, 128x128", *scope = "";
    static constexpr NumberKind kind = NumberKind::e5m2;
    static constexpr bool reciprocal = false;
    static constexpr int flip_mask = 0x7F;  // all but the sign
    static constexpr float largest = 57344.0f, saturates = 61440.0f;
    static constexpr ScaleStorage storage = ScaleStorage::fp32;
    static constexpr bool affine = false, tensor_scale = false, double_quant = false;
    static constexpr ScaleOf scale_of = ScaleOf::range;
    static constexpr const char *rules = "", *learned = "";
    static constexpr bool zero_scale = false, activations = true, kv_cache = true;
    static constexpr const char *compressed_tensors = "", *bitsandbytes = "";
    static constexpr std::initializer_list<FormatGguf> gguf = {};

    HOST_DEVICE static Grid grid(QuantSpec, float min, float max, float, float) {
        float s = quant_amax(min, max) / 57344.0f;
        return Grid{s >= QUANT_LEAST_NORMAL ? s : 1.0f, 0.0f};
    }
    HOST_DEVICE static int code(float x) { return (int8_t)float_to_e5m2_bits(x); }
    HOST_DEVICE static float number(uint32_t code) { return e5m2_bits_to_float((uint8_t)code); }
};
