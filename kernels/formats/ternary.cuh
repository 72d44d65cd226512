// -1, 0 and 1 times the mean size (BitNet b1.58, arXiv 2402.17764)
#pragma once
#include "integer.cuh"

struct TernaryFormat : IntegerCodes {
    typedef IntegerCodes Codes;
    static constexpr std::initializer_list<FormatName> names = {{"ternary", 2}};
    static constexpr const char *scopes = "tensor, channel, gN", *scope = "tensor";
    static constexpr ScaleStorage storage = ScaleStorage::bf16;
    static constexpr bool affine = false, tensor_scale = false, double_quant = false;
    static constexpr ScaleOf scale_of = ScaleOf::mean;
    static constexpr const char *rules = "", *learned = "";
    static constexpr bool zero_scale = false, activations = false, kv_cache = false;
    static constexpr const char *compressed_tensors = "pack-quantized", *bitsandbytes = "";
    static constexpr std::initializer_list<FormatGguf> gguf = {{"TQ1_0", 2, true}, {"TQ2_0", 2, true}};

    HOST_DEVICE static float low(QuantSpec) { return -1.0f; }
    HOST_DEVICE static float high(QuantSpec) { return 1.0f; }
    // max: the mean of |w|
    HOST_DEVICE static Grid grid(QuantSpec, float, float max, float, float) {
        return Grid{quant_round_scale(max), 0.0f};
    }
};
