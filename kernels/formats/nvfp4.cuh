// e2m1 in blocks of 16 whose scales are e4m3 fractions of the tensor's
#pragma once
#include "mxfp4.cuh"

struct Nvfp4Format : E2m1Codes {
    typedef E2m1Codes Codes;
    static constexpr std::initializer_list<FormatName> names = {{"nvfp4", 4}};
    static constexpr const char *scopes = "", *scope = "g16";
    static constexpr ScaleStorage storage = ScaleStorage::e4m3;
    static constexpr bool affine = false, tensor_scale = true, double_quant = false;
    static constexpr ScaleOf scale_of = ScaleOf::range;
    static constexpr const char *rules = "", *learned = "";
    static constexpr bool zero_scale = false, activations = true, kv_cache = false;
    static constexpr const char *compressed_tensors = "nvfp4-pack-quantized", *bitsandbytes = "";
    static constexpr std::initializer_list<FormatGguf> gguf = {{"NVFP4", 4, true}};

    // t: the tensor's, see quant_tensor_scale
    HOST_DEVICE static Grid grid(QuantSpec, float min, float max, float t, float) {
        float local = e4m3_bits_to_float(float_to_e4m3_bits(t * (quant_amax(min, max) / 6.0f)));
        return Grid{(local > 0.0f ? local : 0.125f) / t, 0.0f};
    }
};
