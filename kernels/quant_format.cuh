// What a quantizer's code means, and how the scale of a group and the code of a number are found: one function for both
// devices, for weights, activations and the KV cache alike. The loops and kernels are in fake_quant.cuh.
//
//   integer    symmetric    Q(w) = q s,        q = clamp(rint(w/s), -2^(b-1), 2^(b-1)-1)
//              asymmetric   Q(w) = (q - z) s,  q = clamp(rint(w/s) + z, 0, 2^b-1),
//                           s = (max-min)/(2^b-1),  z = rint(-min/s)
//              the symmetric scale, by rule
//                amax       amax / ((2^b-1)/2)   compressed-tensors, torchao: all codes in use, the largest is clipped
//                amax7      amax / (2^(b-1)-1)   AWQ, QuaRot: nothing is clipped, code -2^(b-1) stays unused
//                signedmax  m / -2^(b-1)         m the number of largest size with its sign (ggml's Q4_0); s may be < 0
//                mse        the amax scale (or range) shrunk by p = 1, 0.99 ... 0.21, whichever has the least squared
//                           error over the group (GPTQ's search, with exponent 2)
//   nf4        Q(w) = nf4[code] s    s = amax                                (QLoRA, arXiv 2305.14314)
//   fp8e4m3    Q(w) = e4m3(w/s) s    s = amax/448                            (arXiv 2209.05433)
//   fp8e5m2    Q(w) = e5m2(w/s) s    s = amax/57344
//   mxfp8      Q(w) = e4m3(w/s) s    s = 2^(floor(log2 amax') - 8), of 32    (OCP Microscaling 1.0, arXiv 2310.10537)
//   mxfp4      Q(w) = e2m1(w/s) s    s = 2^(floor(log2 amax') - 2), of 32
//              amax' = amax, or the next power of two if its significand is at least 1.75 (compressed-tensors;
//              torchao's EVEN at 4 bits): nothing lies above 448 s
//   nvfp4      Q(w) = e2m1(w/s) s    s = e4m3(amax_block t / 6) / t, of 16;  t = 448 * 6 / amax_tensor
//   ternary    Q(w) = q s            q = clamp(rint(w/s), -1, 1), s = mean |w|   (BitNet b1.58, arXiv 2402.17764)
//   mid-rise   Q(w) = (k + 1/2) s    k = clamp(floor(w/s), -2^(b-1), 2^(b-1)-1): no number is 0, by rule
//                amax       s = amax / 2^(b-1)                                (SEQ of ParetoQ, arXiv 2502.02631)
//                gauss      s = 2 c_b rms / (2^b-1), the best for a normal distribution  (QuEST, arXiv 2502.05003)
//
// Integer, ternary and mid-rise scales are rounded to bf16 and are at least 2^-14 in size, so that fp16 and bf16
// containers hold them exactly; rounding is half to even. min and max include 0. A group of zeros gets the smallest
// scale (or 1) and codes of zero (mid-rise: +s/2).
//
// nvfp4 where no tensor is known beforehand (activations): t = 1, so that a row does not depend on its batch.
//
// A code is kept as int8_t: an integer q minus 2^(b-1) where asymmetric (so that 8 bits fit), the bits of a float
// format, the index of a level.
//
// A new format is one file and its place in the table:
//   1. formats/NAME.cuh: a struct with the traits and the formulas that formats/nf4.cuh has; what they mean is said in
//      formats/format.cuh. grid() gives the scale s of a group, code() the code of w/s, 0 ... 2^bits - 1 at up to 4
//      bits, and number() what a code stands for at scale 1. More than 4 bits that are neither an integer nor one of
//      the floats of NumberKind need a kind of their own, which the packed products must know to compile.
//   2. below, its #include and its row in QUANT_FORMATS. Its number in the enum is nobody's business; the first is the
//      default.
//   3. its name in eval/studies/quantizers.json: ./train_qrl study quantizers compares it with others over three seeds.
// Outside the table and formats/ no enumerator is named: ask quant_traits, or quant_is_integer on a device. A trait or
// a formula that is missing does not compile. test/format_recipe follows this recipe with a format of its own.
//
// The trap: no product here may be added to anything. nvcc would fuse the two, a CPU might not, and the devices would
// disagree; where a sum of products is meant it is written fmaf.
#pragma once
#include <cmath>
#include <cstdint>
#include "../runtime/rng.h"
#include "dynamic_map.cuh"
#include "formats/integer.cuh"
#include "formats/nf4.cuh"
#include "formats/fp8e4m3.cuh"
#include "formats/fp8e5m2.cuh"
#include "formats/mxfp8.cuh"
#include "formats/mxfp4.cuh"
#include "formats/nvfp4.cuh"
#include "formats/ternary.cuh"
#include "formats/midrise.cuh"

// clang-format off
#define QUANT_FORMATS(FORMAT)          \
    FORMAT(integer, IntegerFormat)     \
    FORMAT(nf4,     Nf4Format)         \
    FORMAT(fp8e4m3, Fp8E4m3Format)     \
    FORMAT(fp8e5m2, Fp8E5m2Format)     \
    FORMAT(mxfp8,   Mxfp8Format)       \
    FORMAT(mxfp4,   Mxfp4Format)       \
    FORMAT(nvfp4,   Nvfp4Format)       \
    FORMAT(ternary, TernaryFormat)     \
    FORMAT(mid4,    MidriseFormat<4>)  \
    FORMAT(mid3,    MidriseFormat<3>)  \
    FORMAT(mid2,    MidriseFormat<2>)
// clang-format on

#define FORMAT_ENUMERATOR(name, Format) name,
enum class QuantFormat : uint8_t { QUANT_FORMATS(FORMAT_ENUMERATOR) };
#undef FORMAT_ENUMERATOR

// ---------------------------------------------------------------------------------------------------------------------
// questions to the table

// The traits of a row; what a format lacks, or has at a width that nothing packs, does not compile
template <class F>
constexpr FormatTraits format_traits(QuantFormat format) {
    for (const FormatName& n : F::names)
        if (n.bits < 2 || n.bits > 8 || (n.bits > 4 && F::kind == NumberKind::table))
            throw "a table has codes of 2 to 4 bits, other kinds up to 8";
    return {format,          F::names,       F::scopes,       F::scope,
            F::kind,         F::storage,     F::affine,       F::rules,
            F::learned,      F::scale_of,    F::tensor_scale, F::double_quant,
            F::zero_scale,   F::activations, F::kv_cache,     F::compressed_tensors,
            F::bitsandbytes, F::gguf};
}

#define FORMAT_ROW(name, Format) format_traits<Format>(QuantFormat::name),
static constexpr FormatTraits quant_formats[] = {QUANT_FORMATS(FORMAT_ROW)};
#undef FORMAT_ROW

inline const FormatTraits& quant_traits(const QuantSpec& q) { return quant_formats[(int)q.format]; }

// the first format of which ask(traits) is true; nullptr: none
template <class Ask>
inline const FormatTraits* quant_find(const Ask& ask) {
    for (const FormatTraits& t : quant_formats)
        if (ask(t)) return &t;
    return nullptr;
}

// the name of a width that a format has; nullptr: it has no such
inline const char* quant_format_name(const QuantSpec& q) {
    for (const FormatName& n : quant_traits(q).names)
        if (n.bits == q.bits) return n.text;
    return nullptr;
}

// call(format) with the struct of a format, on either device
template <class Call>
HOST_DEVICE auto quant_visit(QuantFormat format, const Call& call) {
#define FORMAT_CASE(name, Format) \
    case QuantFormat::name:       \
        return call(Format());
    switch (format) { QUANT_FORMATS(FORMAT_CASE) }
#undef FORMAT_CASE
    __builtin_unreachable();
}

// call(codes) with the struct of a format's codes, which several may have, so that loops over them vectorize
template <class Call>
inline auto quant_dispatch(QuantFormat format, const Call& call) {
#define FORMAT_CASE(name, Format) \
    case QuantFormat::name:       \
        return call(Format::Codes());
    switch (format) { QUANT_FORMATS(FORMAT_CASE) }
#undef FORMAT_CASE
    __builtin_unreachable();
}

template <class F>
constexpr bool format_is_integer = F::kind == NumberKind::integer;

HOST_DEVICE NumberKind quant_kind(QuantSpec q) {
    return quant_visit(q.format, [](auto f) { return decltype(f)::kind; });
}
// an integer code, as a number on the grid's own range
HOST_DEVICE bool quant_is_integer(QuantSpec q) { return quant_kind(q) == NumberKind::integer; }

// the range of integers; 0 for others
HOST_DEVICE float quant_low(QuantSpec q) {
    return quant_visit(q.format, [=](auto f) {
        if constexpr (format_is_integer<decltype(f)>) return f.low(q);
        else return 0.0f;
    });
}
HOST_DEVICE float quant_high(QuantSpec q) {
    return quant_visit(q.format, [=](auto f) {
        if constexpr (format_is_integer<decltype(f)>) return f.high(q);
        else return 0.0f;
    });
}

// what is added to an asymmetric code as it is kept
HOST_DEVICE int quant_shift(QuantSpec q) { return q.symmetric ? 0 : 1 << (q.bits - 1); }

// ---------------------------------------------------------------------------------------------------------------------
// scale, code, value

static constexpr int QUANT_SHRINKS = 80;  // candidates of rule mse
HOST_DEVICE float quant_shrink(int i) { return (float)(100 - i) / 100.0f; }

// nvfp4's t: the largest number becomes the largest scale times the largest code. A product with the reciprocal, as
// torch divides a number by a tensor
HOST_DEVICE float quant_tensor_scale(float amax) { return amax >= 1e-30f ? 1.0f / amax * 2688.0f : 1.0f; }

// The grid of a group whose numbers, and 0, lie in [min, max]; tensor_scale: t, where the format has one. For rule mse
// this is where the search begins (shrink 1); where a mean makes the scale, max is that mean.
HOST_DEVICE Grid quant_grid(QuantSpec q, float min, float max, float tensor_scale, float shrink) {
    if (q.clip != 1.0f)  // the sums with 0 keep the products from being fused with what follows
        min = fmaf(q.clip, min, 0.0f), max = fmaf(q.clip, max, 0.0f);
    return quant_visit(q.format, [=](auto f) { return f.grid(q, min, max, tensor_scale, shrink); });
}

// Stochastic rounding of integers: floor(w/s + u) instead of rint(w/s), u uniform in [0, 1) and drawn once for a step
struct QuantNoise {
    bool on = false;
    uint32_t step = 0, tensor = 0;
    uint64_t seed = 0;
};
// of element `index` of the tensor; -1: rounding is to nearest
HOST_DEVICE float quant_noise(const QuantNoise& n, int64_t index) {
    if (!n.on) return -1.0f;
    const Philox4 r = rng_bits(n.seed, RNG_ROUND, n.step, n.tensor, (uint32_t)(index >> 2));
    return uniform01(philox_word(r, (int)(index & 3)));
}

// w/s as a float format or a table codes it, by divisor() of the group: s, or before double quantization; or 1/s
template <class Codes>
HOST_DEVICE float quant_divisor(Grid g) {
    float s = g.zero > 0.0f ? g.zero : g.scale;
    return Codes::reciprocal ? quant_inverse(s) : s;
}
template <class Codes>
HOST_DEVICE float quant_ratio(float w, float divisor) {
    return Codes::reciprocal ? w * divisor : w / divisor;
}

// the code of a number, as it is kept
HOST_DEVICE int quant_code(QuantSpec q, float w, Grid g) {
    return quant_visit(q.format, [=](auto f) {
        if constexpr (format_is_integer<decltype(f)>)
            return (int)quant_level(w, g, f.low(q), f.high(q)) - quant_shift(q);
        else return f.code(quant_ratio<decltype(f)>(w, quant_divisor<decltype(f)>(g)));
    });
}

// what a code stands for
HOST_DEVICE float quant_value(QuantSpec q, int code, Grid g) {
    return quant_visit(q.format, [=](auto f) {
        if constexpr (format_is_integer<decltype(f)>) return ((float)(code + quant_shift(q)) - g.zero) * g.scale;
        else return f.number((uint32_t)code) * g.scale;
    });
}

// Two codes differ in what they stand for if they differ and share one of these bits: +0 and -0 of a float format do
// not
HOST_DEVICE int quant_code_mask(QuantSpec q) {
    return quant_visit(q.format, [](auto f) { return decltype(f)::flip_mask + 0; });
}
HOST_DEVICE bool quant_flipped(int mask, int a, int b) { return (a != b) & (((a | b) & mask) != 0); }

// Straight-through rules: does the gradient of Q(w) reach w? identity: always (Bengio et al. 2013); clip, and ewgs:
// where w lies between the least and the largest number of the grid (PACT); trust: where Q(w) is within half a step of
// w (QuEST, arXiv 2502.05003, with its default of half a step). A float format saturates half a step beyond its largest
// number, under clip too: its scale is a quotient, by which the largest weight may come out an ulp above. So does a
// mid-rise one, whose numbers are the middles of cells: the cells are its range, in which SEQ passes, and trust says
// the same. low, high: the range of integers
template <class Codes>
HOST_DEVICE bool quant_passes(SteRule rule, float w, Grid g, float low, float high) {
    float x = w / g.scale;
    if constexpr (format_is_integer<Codes>) {
        float beyond = rule == SteRule::trust ? 0.5f : 0.0f;
        x = x + g.zero;
        return (rule == SteRule::identity) |
               ((x >= low - beyond) & (x <= high + beyond));  // no branch: loops vectorize
    } else if constexpr (Codes::saturates == INFINITY) {
        return true;
    } else {
        return rule == SteRule::identity || (x < 0.0f ? -x : x) <= Codes::saturates;
    }
}
HOST_DEVICE bool quant_passes(QuantSpec q, SteRule rule, float w, Grid g) {
    const float low = quant_low(q), high = quant_high(q);
    return quant_visit(q.format, [=](auto f) { return quant_passes<decltype(f)>(rule, w, g, low, high); });
}

// EWGS (Lee et al. 2021, arXiv 2104.00903; SQAKD, arXiv 2403.11106): a number that lies above its Q(w) and is to fall
// has farther to go until its code changes than one that lies below, and its gradient counts more, dw = g (1 + delta
// sign(g) (w - Q(w)) / R), R from the least to the largest number of the grid (2^b - 1 steps); 0 where clip has it. A
// gradient in bf16 is changed where delta |w - Q(w)| / R is above 2^-9.
// delta / R; 0 where the grid is one number
template <class Codes>
HOST_DEVICE float quant_ewgs_weight(float delta, Grid g, float low, float high) {
    float range = g.scale < 0.0f ? -g.scale : g.scale;
    if constexpr (format_is_integer<Codes>) range *= high - low;
    else range *= 2.0f * Codes::largest;
    return range > 0.0f ? delta / range : 0.0f;
}
// d: the gradient of Q(w); weight: the above; divisor: that of the group
template <class Codes>
HOST_DEVICE float quant_ewgs(float d, float w, Grid g, float weight, float divisor, float low, float high) {
    float number;  // less than 0 where Q(w) is more: w - Q(w) is rounded once
    if constexpr (format_is_integer<Codes>) number = g.zero - quant_level(w, g, low, high);
    else number = -Codes::number((uint32_t)Codes::code(quant_ratio<Codes>(w, divisor)));
    float off = fmaf(number, g.scale, w);
    d = quant_passes<Codes>(SteRule::ewgs, w, g, low, high) ? d : 0.0f;  // before the sum: loops vectorize
    return fmaf(d < 0.0f ? -d : d, off * weight, d);
}

// ---------------------------------------------------------------------------------------------------------------------
// Sums that do not depend on the order: integers. |w| counts in units of 2^-30 of the power of two below amax; w^2,
// which is rounded to float first, in units of 2^-2b of that power's square, b as large as `count` squares below
// 2^(2b+2) allow

struct FixedSum {
    bool squares;
    float unit;  // w times it is in units
};
HOST_DEVICE FixedSum quant_fixed_sum(float amax, int64_t count, bool squares) {
    int bits = 30, e = (int)(float_bits(amax) >> 23) - 127;
    if (squares) {
        int n = 0;
        while (n < 45 && (count - 1) >> n) n++;
        bits = (61 - n) / 2;
    }
    e = e < -90 ? -90 : e;
    return FixedSum{squares, bits_float((uint32_t)(bits - e + 127) << 23)};
}
HOST_DEVICE int64_t quant_fixed(float w, FixedSum f) {
    float y = (w < 0.0f ? -w : w) * f.unit;
    return (int64_t)rintf(f.squares ? y * y : y);
}
// of squares: its root
HOST_DEVICE float quant_fixed_mean(int64_t sum, int64_t count, FixedSum f) {
    double mean = (double)sum / (double)count;
    return (float)((f.squares ? sqrt(mean) : mean) / (double)f.unit);
}

// ---------------------------------------------------------------------------------------------------------------------
// Double quantization (QLoRA, section 3): the scales of NF4, minus their mean, in blocks of 256 to the signed dynamic
// map of 8 bits.

static constexpr int QUANT_NESTED = 256;  // scales of a block

// a product that no compiler fuses with the sum: adding +0 to it is not nothing, for it turns -0 into +0
HOST_DEVICE float dynamic_map_scale(float value, float absmax, float offset) {
    return fmaf(value, absmax, 0.0f) + offset;
}
HOST_DEVICE float dynamic_map_scale(const DynamicMap& m, int code, float absmax, float offset) {
    return dynamic_map_scale(m.value[code], absmax, offset);
}
