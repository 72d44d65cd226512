// e4m3 in blocks of 32 that share a power of two (OCP Microscaling 1.0)
#pragma once
#include "fp8e4m3.cuh"

struct Mxfp8Format : E4m3Codes {
    typedef E4m3Codes Codes;
    static constexpr std::initializer_list<FormatName> names = {{"mxfp8", 8}};
    static constexpr const char *scopes = "", *scope = "g32";
    static constexpr ScaleStorage storage = ScaleStorage::e8m0;
    static constexpr bool affine = false, tensor_scale = false, double_quant = false;
    static constexpr ScaleOf scale_of = ScaleOf::range;
    static constexpr const char *rules = "", *learned = "";
    static constexpr bool zero_scale = false, activations = true, kv_cache = true;
    static constexpr const char *compressed_tensors = "mxfp8-quantized", *bitsandbytes = "";
    static constexpr std::initializer_list<FormatGguf> gguf = {};

    HOST_DEVICE static Grid grid(QuantSpec, float min, float max, float, float) {
        return Grid{quant_shared_exponent(quant_amax(min, max), 8), 0.0f};
    }
};
