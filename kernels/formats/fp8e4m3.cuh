// e4m3, the largest number 448 (arXiv 2209.05433)
#pragma once
#include "format.cuh"

struct E4m3Codes {
    static constexpr NumberKind kind = NumberKind::e4m3;
    static constexpr bool reciprocal = false;
    static constexpr int flip_mask = 0x7F;  // all but the sign
    static constexpr float largest = 448.0f, saturates = 464.0f;
    HOST_DEVICE static int code(float x) { return (int8_t)float_to_e4m3_bits(x); }
    HOST_DEVICE static float number(uint32_t code) { return e4m3_bits_to_float((uint8_t)code); }
};

struct Fp8E4m3Format : E4m3Codes {
    typedef E4m3Codes Codes;
    static constexpr std::initializer_list<FormatName> names = {{"fp8e4m3", 8}};
    static constexpr const char *scopes = "tensor, channel, token, gN, 128x128", *scope = "";
    static constexpr ScaleStorage storage = ScaleStorage::fp32;
    static constexpr bool affine = false, tensor_scale = false, double_quant = false;
    static constexpr ScaleOf scale_of = ScaleOf::range;
    static constexpr const char *rules = "", *learned = "";
    static constexpr bool zero_scale = false, activations = true, kv_cache = true;
    static constexpr const char *compressed_tensors = "float-quantized", *bitsandbytes = "";
    static constexpr std::initializer_list<FormatGguf> gguf = {};

    HOST_DEVICE static Grid grid(QuantSpec, float min, float max, float, float) {
        float s = quant_amax(min, max) / 448.0f;
        return Grid{s >= QUANT_LEAST_NORMAL ? s : 1.0f, 0.0f};
    }
};
