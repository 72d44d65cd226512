// mid4, mid3, mid2: mid-rise quantizers, 2^b numbers about 0 without 0 itself. The formulas are in the table of
// ../quant_format.cuh; the rules of the scale:
//   amax   amax / 2^(b-1)           the range is the group's: SEQ of ParetoQ (arXiv 2502.02631), whose alpha is amax
//   gauss  2 c_b rms / (2^b - 1)    c_b rms the outermost number that leaves a normal distribution the least squared
//                                   error: QuEST (arXiv 2502.05003)
// At one bit this is the sign, which no width of the table has.
//
// The trap: 0 becomes +s/2, so that a group of zeros and an input that is never there are not 0 either.
#pragma once
#include "format.cuh"

// k + 2^(b-1), k = floor(w/s) in [-2^(b-1), 2^(b-1) - 1]
template <int BITS>
struct MidriseCodes {
    static constexpr NumberKind kind = NumberKind::table;
    static constexpr bool reciprocal = false;
    static constexpr int flip_mask = 0xFF;
    static constexpr float middle = (float)(1 << (BITS - 1));
    static constexpr float largest = middle - 0.5f, saturates = middle;  // the outermost cells are whole
    HOST_DEVICE static int code(float x) {
        float k = floorf(x) + middle;
        k = k > 0.0f ? k : 0.0f;  // NaN, too: codes are indices
        return (int)(k < 2.0f * middle - 1.0f ? k : 2.0f * middle - 1.0f);
    }
    HOST_DEVICE static float number(uint32_t code) { return (float)(int)code - largest; }
};

template <int BITS>
struct MidriseFormat : MidriseCodes<BITS> {
    typedef MidriseCodes<BITS> Codes;
    static constexpr std::initializer_list<FormatName> names = {{BITS == 4   ? "mid4"
                                                                 : BITS == 3 ? "mid3"
                                                                             : "mid2",
                                                                 BITS}};
    static constexpr const char *scopes = "tensor, channel, token, gN", *scope = "";
    static constexpr ScaleStorage storage = ScaleStorage::bf16;
    static constexpr bool affine = false, tensor_scale = false, double_quant = false;
    static constexpr ScaleOf scale_of = ScaleOf::range;
    static constexpr const char *rules = "amax, gauss", *learned = "lsq, pact";
    static constexpr bool zero_scale = false, activations = true, kv_cache = true;
    static constexpr const char *compressed_tensors = "", *bitsandbytes = "";
    static constexpr std::initializer_list<FormatGguf> gguf = {};

    // c_b, the authors' numbers to float
    static constexpr float gauss = BITS == 4 ? 2.5139306f : BITS == 3 ? 2.0510684f : 1.4935346f;

    // rule gauss: max is the root of the mean square
    HOST_DEVICE static Grid grid(QuantSpec q, float min, float max, float, float) {
        float s = q.rule == ScaleRule::gauss ? max * (gauss / MidriseCodes<BITS>::largest)
                                             : quant_amax(min, max) / MidriseCodes<BITS>::middle;
        return Grid{quant_round_scale(s), 0.0f};
    }
};
