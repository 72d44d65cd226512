// One linear as quantized containers hold it: codes and the grid that gives them meaning (kernels/quant_format.cuh).
// compressed_tensors.h, gptq_file.h, awq_file.h and bitsandbytes.h turn it into the tensors of their container and
// back. Nothing is quantized again on the way: value(code, grid) is the same number before and after, to the bit.
//
// A container that cannot hold a linear exactly refuses it and says which and why: a zero point, a number of bits, a
// block shape that it has no place for, a scale that its type would round.
//
// The words of every integer container are one stream of bits, lowest first: value i has bits [b i, b i + b) of the
// words written one behind the other. At 3 bits 32 values fill 3 words and two of them lie across a border.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>
#include "../quant.cuh"
#include "safetensors.h"

// nf4 with double quantization: scale = map[codes[i]] * scales[i / 256] + offset, by dynamic_map()
struct NestedScales {
    std::vector<uint8_t> codes;  // [groups]; empty: the scales are kept as they are
    std::vector<float> scales;   // [groups / 256, rounded up]
    float offset = 0.0f;
};

struct QuantizedLinear {
    std::string name;            // of the module: model.layers.0.self_attn.q_proj
    int64_t rows = 0, cols = 0;  // out and in
    Quantizer quantizer;         // off: the container's grid is none of ours, and `values` has the numbers
    std::vector<int8_t> codes;   // [rows, cols]
    std::vector<Grid> grid;      // tensor [1], channel [rows], else [rows, cols / group]: a tile's in each of its rows
    float tensor_scale = 0.0f;   // nvfp4's t; 0: not known
    NestedScales nested;         // nf4
    std::vector<float> values;   // [rows, cols]; only where there is no grid
    std::string no_grid;         // why
};

// columns that share a scale, and where a row's scales begin
inline int64_t quantized_linear_span(const QuantizedLinear& l) {
    bool split = l.quantizer.scope == QuantScope::group || l.quantizer.scope == QuantScope::block;
    return split ? l.quantizer.group : l.cols;
}
inline int64_t quantized_linear_first(const QuantizedLinear& l, int64_t row) {
    return l.quantizer.scope == QuantScope::tensor ? 0 : row * CEIL_DIV(l.cols, quantized_linear_span(l));
}
inline int64_t quantized_linear_grids(const QuantizedLinear& l) {
    return l.quantizer.scope == QuantScope::tensor ? 1 : l.rows * CEIL_DIV(l.cols, quantized_linear_span(l));
}

// f(index into codes, grid) for every number
template <class F>
inline void quantized_linear_each(const QuantizedLinear& l, F f) {
    int64_t span = quantized_linear_span(l);
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < l.rows; r++) {
        const Grid* g = l.grid.data() + quantized_linear_first(l, r);
        for (int64_t c = 0; c < l.cols; c++) f(r * l.cols + c, g[c / span]);
    }
}

// what the codes stand for -> to [rows, cols]
inline void quantized_linear_values(const QuantizedLinear& l, float* to) {
    if (!l.quantizer.on()) {
        std::copy(l.values.begin(), l.values.end(), to);
        return;
    }
    quantized_linear_each(l, [&](int64_t i, Grid g) { to[i] = quant_value(l.quantizer.spec, l.codes[i], g); });
}

// codes of w [rows, cols] on the grid that l has
inline void quantized_linear_encode(QuantizedLinear& l, const float* w) {
    l.codes.resize(l.rows * l.cols);
    quantized_linear_each(l, [&](int64_t i, Grid g) { l.codes[i] = (int8_t)quant_code(l.quantizer.spec, w[i], g); });
}

// the scales as a row-major matrix [rows, cols / span], one a row where a tensor has one
inline Grid quantized_linear_grid(const QuantizedLinear& l, int64_t row, int64_t span) {
    return l.grid[quantized_linear_first(l, row) + span];
}

// A scale of 0 stands for zeros, but no number can be divided by it: such a group gets another scale and codes of zero
inline void quantized_linear_settle(QuantizedLinear& l) {
    const QuantSpec& q = l.quantizer.spec;
    if (!l.quantizer.on() || quant_traits(q).zero_scale) return;
    bool some = false;
    for (const Grid& g : l.grid) some = some || g.scale == 0.0f;
    if (!some) return;
    quantized_linear_each(l, [&](int64_t i, Grid g) {
        if (g.scale == 0.0f) l.codes[i] = (int8_t)(q.symmetric ? 0 : (int)g.zero - (1 << (q.bits - 1)));
    });
    for (Grid& g : l.grid) g.scale = g.scale == 0.0f ? QUANT_LEAST_SCALE : g.scale;
}

// the same grid with room for a zero point; the codes, which are kept minus 2^(b-1), do not change
inline void quantized_linear_to_asym(QuantizedLinear& l) {
    if (!l.quantizer.spec.symmetric || !quant_traits(l.quantizer.spec).affine) return;
    l.quantizer.spec.symmetric = false;
    for (Grid& g : l.grid) g.zero = (float)(1 << (l.quantizer.spec.bits - 1));
}

// A container widens the integers that it has no place for: one scale a tensor becomes one a row, 3 bits or ternary
// become 4 or 2. Back to what q has, if all codes and scales are q's; else l stays as it is
inline void quantized_linear_narrow(QuantizedLinear& l, const Quantizer& q) {
    const QuantSpec &wide = l.quantizer.spec, &spec = q.spec;
    const bool tensor = q.scope == QuantScope::tensor && l.quantizer.scope == QuantScope::channel;
    if (!l.quantizer.on() || !q.on() || !quant_is_integer(wide) || !quant_is_integer(spec) ||
        wide.symmetric != spec.symmetric || spec.bits > wide.bits || (q.scope != l.quantizer.scope && !tensor) ||
        q.group != l.quantizer.group)
        return;
    const int shift = quant_shift(wide) - quant_shift(spec);  // of a code, which stands for the same number
    const float low = quant_low(spec), high = quant_high(spec);
    for (int8_t code : l.codes)
        if ((float)(code + quant_shift(wide)) < low || (float)(code + quant_shift(wide)) > high) return;
    for (const Grid& g : l.grid)
        if ((!spec.symmetric && g.zero > high) || (tensor && (g.scale != l.grid[0].scale || g.zero != l.grid[0].zero)))
            return;
    for (int8_t& code : l.codes) code = (int8_t)(code + shift);
    if (tensor && !l.grid.empty()) l.grid.resize(1);
    l.quantizer.spec.format = spec.format, l.quantizer.spec.bits = spec.bits;
    l.quantizer.scope = q.scope;
}

// the unsigned code u and zero point z that integer containers of `bits` bits hold: value = (u - z) scale
struct StoredCode {
    int shift;           // u = code + shift
    int symmetric_zero;  // z of a symmetric grid
};
inline StoredCode stored_code(const QuantizedLinear& l, int bits) {
    if (l.quantizer.spec.symmetric) return {1 << (bits - 1), 1 << (bits - 1)};
    return {1 << (l.quantizer.spec.bits - 1), 0};
}
inline int stored_zero(const QuantizedLinear& l, StoredCode s, Grid g) {
    return l.quantizer.spec.symmetric ? s.symmetric_zero : (int)g.zero;
}

inline bool fp16_holds(float x) { return fp16_bits_to_float(float_to_fp16_bits(x)) == x; }
inline bool bf16_holds(float x) { return bf16_bits_to_float(float_to_bf16_bits(x)) == x; }

[[noreturn]] inline void cannot_hold(const QuantizedLinear& l, const char* container, const std::string& why) {
    fail("%s cannot hold %s (%s): %s", container, shown(l.name).c_str(), quantizer_text(l.quantizer).c_str(),
         why.c_str());
}

// the integer and ternary grids, which have 2^bits codes
inline void require_integers(const QuantizedLinear& l, const char* container) {
    if (!quant_is_integer(l.quantizer.spec))
        cannot_hold(l, container, "it stores integers, and no codes of this format");
    if (l.quantizer.scope == QuantScope::block) cannot_hold(l, container, "it has scales for parts of a row, no tiles");
}

inline void require_fp16_scales(const QuantizedLinear& l, const char* container) {
    for (const Grid& g : l.grid)
        if (!fp16_holds(g.scale))
            cannot_hold(l, container, format("a scale is %g, which its fp16 would round", (double)g.scale));
}

// ---------------------------------------------------------------------------------------------------------------------
// streams of bits

// words[k * stride] from n values of `bits` bits; value(i) < 2^bits
template <class F>
inline void pack_bits(uint32_t* words, int64_t stride, int64_t n, int bits, F value) {
    uint64_t pending = 0;
    int filled = 0;
    for (int64_t i = 0; i < n; i++) {
        pending |= (uint64_t)(uint32_t)value(i) << filled;
        filled += bits;
        if (filled < 32) continue;
        *words = (uint32_t)pending;
        words += stride, pending >>= 32, filled -= 32;
    }
    if (filled) *words = (uint32_t)pending;
}

inline uint32_t load_word(const uint8_t* words, int64_t i) {
    uint32_t w;
    memcpy(&w, words + 4 * i, 4);
    return w;
}

// put(i, value) for n values; words: little-endian, no alignment
template <class F>
inline void unpack_bits(const uint8_t* words, int64_t stride, int64_t n, int bits, F put) {
    uint64_t pending = 0;
    int filled = 0;
    int64_t next = 0;
    for (int64_t i = 0; i < n; i++) {
        if (filled < bits) {
            pending |= (uint64_t)load_word(words, next) << filled;
            next += stride, filled += 32;
        }
        put(i, (int)(pending & ((1u << bits) - 1)));
        pending >>= bits, filled -= bits;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// tensors of a container

// a tensor of a linear; build makes its bytes of the linear, when their turn to be written comes
struct ContainerTensor {
    std::string suffix;  // behind the module's name: ".qweight"
    std::string dtype;
    std::vector<int64_t> shape;
    std::function<void(const QuantizedLinear&, uint8_t* bytes)> build;
};

inline ContainerTensor container_words(const std::string& suffix, const std::vector<int64_t>& shape,
                                       std::function<void(const QuantizedLinear&, uint32_t*)> build) {
    return {suffix, "I32", shape, [build, shape](const QuantizedLinear& l, uint8_t* bytes) {
                std::vector<uint32_t> words((size_t)(shape[0] * (shape.size() > 1 ? shape[1] : 1)));
                build(l, words.data());
                memcpy(bytes, words.data(), 4 * words.size());
            }};
}

// n numbers that fill writes -> dtype F32, F16 or BF16
inline ContainerTensor container_floats(const std::string& suffix, const std::string& dtype,
                                        const std::vector<int64_t>& shape,
                                        std::function<void(const QuantizedLinear&, float*)> fill) {
    return {suffix, dtype, shape, [=](const QuantizedLinear& l, uint8_t* bytes) {
                std::vector<float> x((size_t)(shape[0] * (shape.size() > 1 ? shape[1] : 1)));
                fill(l, x.data());
                st_encode_float(dtype, x.data(), (int64_t)x.size(), bytes);
            }};
}

// Reading: the tensors of one module, with their types and shapes checked
struct ModuleTensors {
    const std::map<std::string, StTensor>& tensors;
    std::string name, where;  // of the module; the folder, for messages
    const StTensor* find(const std::string& suffix) const { return st_find(tensors, name + suffix); }
    const StTensor& require(const std::string& suffix, const std::vector<int64_t>& shape, const char* dtype) const {
        const StTensor* t = find(suffix);
        if (!t)
            fail("%s: tensor %s%s is missing; download the folder again", where.c_str(), shown(name).c_str(),
                 suffix.c_str());
        if (t->shape != shape)
            fail("%s: tensor %s has shape %s, but the model and its quantization_config ask for %s", t->path.c_str(),
                 shown(t->name).c_str(), shape_text(t->shape).c_str(), shape_text(shape).c_str());
        if (*dtype && t->dtype != dtype)
            fail("%s: tensor %s is %s, but must be %s", t->path.c_str(), shown(t->name).c_str(), t->dtype.c_str(),
                 dtype);
        return *t;
    }
    [[noreturn]] void damaged(const std::string& suffix, const std::string& what) const {
        fail("%s: tensor %s%s: %s; the file is damaged", where.c_str(), shown(name).c_str(), suffix.c_str(),
             what.c_str());
    }
};

inline std::vector<float> read_floats(const StTensor& t) {
    std::vector<float> x((size_t)t.count);
    st_read_float(t, x.data());
    for (float v : x)
        if (!(std::fabs(v) <= 3.4028234e38f))
            fail("%s: tensor %s holds a number that is not finite; the file is damaged", t.path.c_str(),
                 shown(t.name).c_str());
    return x;
}

// The quantizer of `bits` bits with a scale for `group` neighbours of a row, 0: a row; off where there is none
inline Quantizer integer_quantizer(int bits, bool symmetric, int64_t group) {
    Quantizer q;
    q.spec.format = quant_find([](const FormatTraits& t) { return t.affine; })->format;
    q.spec.bits = bits;
    q.enabled = quant_format_name(q.spec) && (group == 0 || group >= 8);
    q.spec.symmetric = symmetric;
    q.scope = group == 0 ? QuantScope::channel : QuantScope::group;
    q.group = (int)group;
    return q;
}

// no quantizer of ours has this grid: the numbers are kept instead of codes
inline void quantized_linear_drop_grid(QuantizedLinear& l, const std::string& why) {
    l.values.resize(l.rows * l.cols);
    l.quantizer.enabled = true;
    quantized_linear_values(l, l.values.data());
    l.quantizer = Quantizer();
    l.no_grid = why;
    l.codes.clear(), l.grid.clear();
}
