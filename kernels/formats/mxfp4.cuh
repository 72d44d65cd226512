// e2m1 (0 0.5 1 1.5 2 3 4 6) in blocks of 32 that share a power of two (OCP Microscaling 1.0)
#pragma once
#include "format.cuh"

struct E2m1Codes {
    static constexpr NumberKind kind = NumberKind::table;
    static constexpr bool reciprocal = false;
    static constexpr int flip_mask = 7;  // all but the sign
    static constexpr float largest = 6.0f, saturates = 7.0f;
    HOST_DEVICE static int code(float x) { return float_to_e2m1_bits(x); }
    HOST_DEVICE static float number(uint32_t code) { return e2m1_bits_to_float((uint8_t)code); }
};

struct Mxfp4Format : E2m1Codes {
    typedef E2m1Codes Codes;
    static constexpr std::initializer_list<FormatName> names = {{"mxfp4", 4}};
    static constexpr const char *scopes = "", *scope = "g32";
    static constexpr ScaleStorage storage = ScaleStorage::e8m0;
    static constexpr bool affine = false, tensor_scale = false, double_quant = false;
    static constexpr ScaleOf scale_of = ScaleOf::range;
    static constexpr const char *rules = "", *learned = "";
    static constexpr bool zero_scale = false, activations = true, kv_cache = true;
    static constexpr const char *compressed_tensors = "mxfp4-pack-quantized", *bitsandbytes = "";
    static constexpr std::initializer_list<FormatGguf> gguf = {{"MXFP4", 4, true}};

    HOST_DEVICE static Grid grid(QuantSpec, float min, float max, float, float) {
        return Grid{quant_shared_exponent(quant_amax(min, max), 2), 0.0f};
    }
};
