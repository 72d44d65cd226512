// What every number format of a quantizer is made of: the types of its three formulas (scale, code, number) and of its
// traits. The table of the formats, and how one is added, are in ../quant_format.cuh.
#pragma once
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include "../../runtime/dtypes.h"
#include "../../runtime/math.h"

enum class QuantFormat : uint8_t;  // the rows of the table
enum class ScaleRule : uint8_t { amax, amax7, signedmax, mse, gauss };

struct QuantSpec {
    QuantFormat format = QuantFormat();  // the table's first
    int bits = 8;                        // of a code: one of the widths that the format has
    bool symmetric = true;               // false: with a zero point
    ScaleRule rule = ScaleRule::amax;
    float clip = 1.0f;  // the share of a measured range that the grid covers; no part of a quantizer's text
};

struct Grid {
    float scale;
    float zero;  // an integer, 0 when symmetric; with double quantization the scale before it, by which codes are found
};

// How a code becomes a number, which is where packed products differ
enum class NumberKind : uint8_t {
    integer,  // ((code + 2^(bits-1)) - zero) scale where asymmetric, else code scale
    table,    // number(code) scale, code of 2 to 4 bits
    e4m3,     // the bits of that float, times scale
    e5m2,
};

// What a packed weight keeps a scale in. nested: of a format's double quantization
enum class ScaleStorage : uint8_t { fp32, bf16, fp16, e8m0, e4m3, nested };

// What of a group gives its scale: [min, max], the mean of |w|, the root of that of w^2, a search for the least error
enum class ScaleOf : uint8_t { range, mean, rms, search };

struct FormatName {
    const char* text;  // of --weights and the like
    int bits;
};
struct FormatGguf {
    const char* type;  // Q4_0
    int bits;
    bool symmetric;
};

// A row of the table: what is true of a format, for questions on the host
struct FormatTraits {
    QuantFormat format;
    std::initializer_list<FormatName> names;
    const char* scopes;  // what may follow the name, of: tensor, channel, token, gN, 128x128; "" if nothing may
    const char* scope;   // unless said; "" if it must be
    NumberKind kind;
    ScaleStorage storage;            // the smallest that holds its scales exactly
    bool affine;                     // q = rint(w/s) + z: has sym and asym, and stochastic rounding
    const char* rules;               // of the scale, of those of ScaleRule, the first unless said; "": there is one way
    const char* learned;             // what of its grid may be trained, of those of LearnedScale; "": nothing
    ScaleOf scale_of;                // unless its rule says otherwise
    bool tensor_scale;               // scales of groups are fractions of one of the tensor, t
    bool double_quant;               // scales may be quantized too
    bool zero_scale;                 // a group of zeros has the scale 0; else it has the smallest, or 1
    bool activations;                // --activations takes it
    bool kv_cache;                   // --kv_cache takes it: the scale of a token is its own
    const char* compressed_tensors;  // what compressed-tensors calls it; "" if it has no such format
    const char* bitsandbytes;        // its bnb_4bit_quant_type; "" if it has none
    std::initializer_list<FormatGguf> gguf;
};

// How the gradient of Q(w) becomes that of w, see quant_passes and quant_ewgs
enum class SteRule : uint8_t { identity, clip, trust, ewgs };
struct Ste {
    SteRule rule;
    float delta;  // of ewgs
    HOST_DEVICE Ste(SteRule kind = SteRule::identity, float by = 0.0f) : rule(kind), delta(by) {}
};

// ---------------------------------------------------------------------------------------------------------------------
// what formulas share

HOST_DEVICE float quant_amax(float min, float max) { return -min > max ? -min : max; }

static constexpr float QUANT_LEAST_NORMAL = 1.17549435e-38f;  // 2^-126

// 1 / scale. What is below the smallest normal float counts as zero: its reciprocal would overflow
HOST_DEVICE float quant_inverse(float scale) {
    return scale >= QUANT_LEAST_NORMAL || scale <= -QUANT_LEAST_NORMAL ? 1.0f / scale : 0.0f;
}

// 2^e as e8m0 has it: exponents -127 to 127
HOST_DEVICE float quant_power_of_two(int e) {
    e = e < -127 ? -127 : e > 127 ? 127 : e;
    return e == -127 ? 5.877471754111438e-39f : bits_float((uint32_t)(e + 127) << 23);
}

// the scale of the OCP formats whose largest number has the exponent `largest`
HOST_DEVICE float quant_shared_exponent(float amax, int largest) {
    uint32_t u = float_bits(amax);
    int e = (int)(u >> 23) - 127;
    e += (u & 0x7FFFFFu) >= 0x600000u;
    return quant_power_of_two(e - largest);
}

// the smallest scale that fp16 holds as a normal number
static constexpr float QUANT_LEAST_SCALE = 6.103515625e-5f;  // 2^-14

HOST_DEVICE float quant_round_scale(float s) {
    s = bf16_bits_to_float(float_to_bf16_bits(s));
    float size = s < 0.0f ? -s : s;
    return size >= QUANT_LEAST_SCALE ? s : s < 0.0f ? -QUANT_LEAST_SCALE : QUANT_LEAST_SCALE;
}
