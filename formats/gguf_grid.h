// A trained grid in GGUF's blocks, and back: codes and scales move as they are, nothing is quantized a second time.
// With s the scale of a group and v = q - zero the level of a code, so that the weight is v s:
//
//   block    holds                                              weight in the file
//   Q4_0     -8 <= v <= 7     (int4, int3, int2, ternary)       d (q - 8), d = s
//   Q5_0     -16 <= v <= 15   (those, int5, and int4:asym)      d (q - 16), d = s
//   Q8_0     -128 <= v <= 127 (those, int8 and int6)            d q, d = s
//   Q4_1     16 codes, with a zero point or without             d q + m, d = s, m = -s zero
//   Q5_1     32 codes                                           the same
//   Q2_0     -2 <= v <= 1 as d = -s, q = 1 - v; -1 <= v <= 2 as d = s, q = 1 + v (int2, ternary)
//   TQ1_0    -1 <= v <= 1     (ternary), as TQ2_0               d (q - 1), d = s
//   MXFP4    mxfp4: s = 2^(e - 127); the nibbles change places
//   NVFP4    nvfp4: s = e4m3 * (the F32 tensor NAME.scale)
//
// d and m are fp16. The scales that kernels/quant_format.cuh measures are bf16 numbers of at least 2^-14 in size, which
// fp16 holds exactly. The trap is m: s zero has up to 8 + 4 significant bits where fp16 has 11, so that Q4_1 takes only
// the grids for which it is exact; Q5_0 and Q8_0, which need no m, take every int4:asym. A group must be whole blocks:
// a scale is repeated where a group has several.
#pragma once
#include <cmath>
#include <cstring>
#include <string>
#include <vector>
#include "gguf.h"
#include "../model.cuh"

// A quantized weight matrix on the host
struct GridTensor {
    std::string name;
    int64_t rows = 0, cols = 0, group = 0;  // group: consecutive numbers of [rows, cols] that share a scale
    QuantSpec spec;
    const int8_t* codes = nullptr;  // [rows, cols], as quant_code keeps them
    const Grid* grid = nullptr;     // [rows * cols / group]
};

inline bool gguf_fp16_exact(float x) {
    float y = fp16_bits_to_float(float_to_fp16_bits(x));
    return y == x && std::fabs(x) <= 65504.0f;
}

// values that one scale serves: a block, but for NVFP4's four scales
inline int64_t gguf_scale_block(const GgufType& type) { return type.id == GGUF_TYPE_NVFP4 ? 16 : type.block; }

// NVFP4's tensor scale: the largest group scale is 448 of them (kernels/quant_format.cuh)
inline float gguf_nvfp4_tensor_scale(const Grid* grid, int64_t groups) {
    float largest = 0.0f;
    for (int64_t g = 0; g < groups; g++) largest = grid[g].scale > largest ? grid[g].scale : largest;
    return largest > 0.0f ? largest / 448.0f : 1.0f;
}

// the range of v
inline void gguf_levels(QuantSpec spec, Grid g, float* low, float* high) {
    *low = quant_low(spec) - g.zero;
    *high = quant_high(spec) - g.zero;
}

// The quantizer format that a type's blocks are; false: none (floats, and the K formats, whose scales are products of
// two numbers and whose minima are no multiples of them: those can only be dequantized). symmetric is false for Q4_1
// and Q5_1, which are a grid only where m is a multiple of d.
inline bool gguf_grid_spec(const GgufType& type, QuantSpec* spec) {
    for (const FormatTraits& f : quant_formats)
        for (const FormatGguf& g : f.gguf) {
            if (strcmp(g.type, type.name) != 0) continue;
            const ScaleRule rule = g.bits == 4 && g.symmetric ? ScaleRule::signedmax : ScaleRule::amax;
            *spec = QuantSpec{f.format, g.bits, g.symmetric, rule};
            return true;
        }
    return false;
}

// Why this type cannot hold the tensor exactly, a clause for a message; "" if it can. Reads the grids, not the codes.
inline std::string gguf_cannot_hold(const GgufType& type, const GridTensor& t) {
    const uint32_t id = type.id;
    const int64_t groups = t.rows * t.cols / t.group, block = gguf_scale_block(type);
    if (t.cols % type.block != 0)
        return format("its rows of %lld are not whole blocks of %d", (long long)t.cols, type.block);
    if (t.group % block != 0)
        return format("its groups of %lld are not whole blocks of %lld", (long long)t.group, (long long)block);
    if (id == GGUF_TYPE_MXFP4 || id == GGUF_TYPE_NVFP4) {
        QuantSpec own;
        if (!gguf_grid_spec(type, &own) || own.format != t.spec.format) return "it has another number format";
        float scale = id == GGUF_TYPE_NVFP4 ? gguf_nvfp4_tensor_scale(t.grid, groups) : 1.0f;
        for (int64_t g = 0; g < groups; g++) {
            float s = t.grid[g].scale / scale;
            bool fits = id == GGUF_TYPE_MXFP4 ? s == quant_power_of_two(std::ilogb(s))
                                              : std::fabs(e4m3_bits_to_float(float_to_e4m3_bits(s)) - s) <= 1e-6f * s;
            if (!(s > 0.0f) || !fits)
                return format("the scale %g of its group %lld is not %s", t.grid[g].scale, (long long)g,
                              id == GGUF_TYPE_MXFP4 ? "a power of two" : "e4m3 times the tensor's");
        }
        return "";
    }
    if (!quant_is_integer(t.spec)) return "its codes are not integers";
    struct {
        uint32_t id;
        float low, high;
    } ranges[] = {{GGUF_TYPE_Q4_0, -8, 7},  {GGUF_TYPE_Q5_0, -16, 15}, {GGUF_TYPE_Q8_0, -128, 127},
                  {GGUF_TYPE_TQ1_0, -1, 1}, {GGUF_TYPE_TQ2_0, -1, 1},  {GGUF_TYPE_Q2_0, -1, 2},
                  {GGUF_TYPE_Q2_0, -2, 1},  {GGUF_TYPE_Q4_1, 0, 15},   {GGUF_TYPE_Q5_1, 0, 31}};
    for (int64_t g = 0; g < groups; g++) {
        float s = t.grid[g].scale, low, high;
        gguf_levels(t.spec, t.grid[g], &low, &high);
        if (!gguf_fp16_exact(s)) return format("the scale %.9g of its group %lld is no fp16", s, (long long)g);
        if (id == GGUF_TYPE_Q4_1 || id == GGUF_TYPE_Q5_1) {
            if (!gguf_fp16_exact(s * low))
                return format("the minimum %.9g of its group %lld is no fp16 (Q5_0 and Q8_0 need none)", s * low,
                              (long long)g);
            high -= low, low = 0.0f;
        } else if (low != rintf(low)) {
            return format("its group %lld has the zero point %g, which is no integer", (long long)g, t.grid[g].zero);
        }
        bool fits = false;
        for (auto& r : ranges) fits |= id == r.id && low >= r.low && high <= r.high;
        if (!fits) return format("its levels %g to %g are outside the type's range", low, high);
    }
    return "";
}

// One block from its codes [type.block] and the grids of its groups: one, or NVFP4's four. For tensors that
// gguf_cannot_hold has nothing against. scale: NVFP4's tensor scale.
inline void gguf_pack_block(const GgufType& type, QuantSpec spec, const int8_t* codes, const Grid* grid, float scale,
                            uint8_t* b) {
    const uint32_t id = type.id;
    uint8_t q[256] = {};
    if (id == GGUF_TYPE_MXFP4) {
        for (int j = 0; j < 32; j++) q[j] = (uint8_t)(codes[j] & 15);
        b[0] = (uint8_t)(std::ilogb(grid->scale) + 127);
        gguf_pack_nibbles(q, 32, b + 1);
        return;
    }
    if (id == GGUF_TYPE_NVFP4) {
        for (int j = 0; j < 64; j++) q[j] = (uint8_t)(codes[j] & 15);
        for (int s = 0; s < 4; s++) {
            b[s] = float_to_e4m3_bits(grid[s].scale / scale);
            gguf_pack_nibbles(q + 16 * s, 16, b + 4 + 8 * s);
        }
        return;
    }
    float low, high, d = grid->scale;
    gguf_levels(spec, *grid, &low, &high);
    const int first = (int)quant_low(spec);                        // the lowest code
    const int offset = spec.symmetric ? 0 : 1 << (spec.bits - 1);  // of the codes as they are kept
    const bool negative = id == GGUF_TYPE_Q2_0 && low < -1.0f;     // counted downwards
    const int zero = id == GGUF_TYPE_Q4_0   ? 8
                     : id == GGUF_TYPE_Q5_0 ? 16
                     : id == GGUF_TYPE_Q8_0 ? 0
                                            : 1;  // what level 0 is stored as
    const bool minimum = id == GGUF_TYPE_Q4_1 || id == GGUF_TYPE_Q5_1;
    for (int j = 0; j < type.block; j++) {
        int code = codes[j] + offset, level = code - (int)grid->zero;
        q[j] = (uint8_t)(minimum ? code - first : negative ? zero - level : zero + level);
    }
    if (negative) d = -d;
    if (id == GGUF_TYPE_TQ1_0) {
        gguf_pack_tq1_0(q, b);
        gguf_put_fp16(b + 52, d);
    } else if (id == GGUF_TYPE_TQ2_0) {
        gguf_pack_tq2_0(q, b);
        gguf_put_fp16(b + 64, d);
    } else {
        gguf_put_fp16(b, d);
        b += 2;
        if (minimum) {
            gguf_put_fp16(b, d * low);
            b += 2;
        }
        if (id == GGUF_TYPE_Q2_0) gguf_pack_q2_0(q, b);
        else if (id == GGUF_TYPE_Q8_0) memcpy(b, q, 32);
        else if (id == GGUF_TYPE_Q4_0 || id == GGUF_TYPE_Q4_1) gguf_pack_nibbles(q, 32, b);
        else gguf_pack_fifths(q, b);
    }
}

// ----------------------------------------------------------------------------------------------------------------
// reading a grid

struct GgufGrid {
    QuantSpec spec;
    int64_t rows = 0, cols = 0, group = 0;
    std::vector<int8_t> codes;  // [rows, cols]
    std::vector<Grid> grid;     // [rows * cols / group]
};

// One block -> codes and grids, so that quant_value gives the number that the block stands for. A scale of 0 becomes
// the smallest one with codes of 0, because codes are found by dividing by it. Returns why the block is no grid, or
// nullptr.
inline const char* gguf_unpack_block(const GgufType& type, QuantSpec spec, const uint8_t* b, float scale, int8_t* codes,
                                     Grid* grid) {
    const uint32_t id = type.id;
    if (id == GGUF_TYPE_MXFP4 || id == GGUF_TYPE_NVFP4) {
        int n = id == GGUF_TYPE_MXFP4 ? 32 : 16, scales = type.block / n;
        for (int s = 0; s < scales; s++) {
            const uint8_t* q = b + scales + n / 2 * s;
            for (int j = 0; j < n / 2; j++) {
                codes[n * s + j] = (int8_t)(q[j] & 15);
                codes[n * s + j + n / 2] = (int8_t)(q[j] >> 4);
            }
            if (id == GGUF_TYPE_MXFP4 ? b[0] == 255 : (b[s] & 0x7F) == 0x7F) return "a scale is NaN";
            grid[s] = Grid{
                id == GGUF_TYPE_MXFP4 ? quant_power_of_two(b[0] - 127) : e4m3_bits_to_float(b[s] & 0x7F) * scale, 0.0f};
            if (grid[s].scale > 0.0f) continue;
            grid[s].scale = QUANT_LEAST_SCALE;
            memset(codes + n * s, 0, (size_t)n);
        }
        return nullptr;
    }
    const bool minimum = id == GGUF_TYPE_Q4_1 || id == GGUF_TYPE_Q5_1;
    const bool last = id == GGUF_TYPE_TQ1_0 || id == GGUF_TYPE_TQ2_0;  // the scale stands behind the codes
    float d = gguf_fp16_at(last ? b + type.bytes - 2 : b), m = minimum ? gguf_fp16_at(b + 2) : 0.0f;
    if (!std::isfinite(d) || !std::isfinite(m)) return "a scale is not finite";
    // levels by reading the block with a scale of 1: for Q4_1 and Q5_1 the codes, for the others q - zero
    uint8_t unit[256];
    float level[256];
    memcpy(unit, b, (size_t)type.bytes);
    gguf_put_fp16(last ? unit + type.bytes - 2 : unit, 1.0f);
    if (minimum) gguf_put_fp16(unit + 2, 0.0f);
    type.read(unit, level);
    float zero = 0.0f;
    if (minimum && d != 0.0f) zero = -m / d;
    if (minimum && (zero != rintf(zero) || zero < 0.0f || zero > quant_high(spec) || d * zero != -m))
        return "a minimum is no multiple of its scale";
    const bool negative = id == GGUF_TYPE_Q2_0;  // levels -1 to 2 are -1 times those of int2
    for (int j = 0; j < type.block; j++) {
        int v = d == 0.0f ? (int)zero : (int)level[j];
        codes[j] = (int8_t)((negative ? -v : v) - (spec.symmetric ? 0 : 1 << (spec.bits - 1)));
    }
    *grid = Grid{d == 0.0f ? QUANT_LEAST_SCALE : negative ? -d : d, zero};
    return nullptr;
}

// The grid of a linear layer as the file has it, in Hugging Face's row order. Returns why there is none, or "".
inline std::string gguf_read_grid(const GgufFile& f, const ModelConfig& c, const std::string& hf_name, int64_t rows,
                                  int64_t cols, GgufGrid* out) {
    const GgufTensor& t = gguf_parameter(f, hf_name, {rows, cols});
    const GgufType& type = *t.type;
    if (!gguf_grid_spec(type, &out->spec)) return format("tensor %s has type %s", t.name.c_str(), type.name);
    const int64_t per = gguf_scale_block(type), blocks = cols / type.block, grids = cols / per;
    out->rows = rows;
    out->cols = cols;
    out->group = per;
    out->codes.resize((size_t)(rows * cols));
    out->grid.resize((size_t)(rows * grids));
    const float scale = gguf_tensor_scale(f, t);
    if (!(scale > 0.0f && std::isfinite(scale))) return format("tensor %s: its scale is %g", t.name.c_str(), scale);
    const int heads = gguf_permuted_heads(c, hf_name);
    const int64_t head_rows = heads > 0 ? rows / heads : 0;
    const char* reason = nullptr;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        int64_t to = heads > 0 ? gguf_hf_row(r, head_rows) : r;
        for (int64_t i = 0; i < blocks; i++) {
            const char* why = gguf_unpack_block(type, out->spec, t.data + (r * blocks + i) * type.bytes, scale,
                                                out->codes.data() + to * cols + i * type.block,
                                                out->grid.data() + to * grids + i * (type.block / per));
            if (why) {
#pragma omp critical
                reason = why;
            }
        }
    }
    return reason ? format("tensor %s: %s", t.name.c_str(), reason) : "";
}

// The quantizer that a file's linears share; returns why they share none, or "". K formats, and files whose linears
// have several types, can only be dequantized.
inline std::string gguf_quantizer(const GgufFile& f, const ModelConfig& c, Quantizer* q) {
    const GgufType* type = nullptr;
    size_t n;
    for (const ParamTensor& p : model_tensors(c, &n)) {
        if (p.kind != ParamKind::linear) continue;
        const GgufTensor& t = gguf_parameter(f, p.name, {p.rows, p.cols});
        if (type && t.type != type)
            return format("%s: tensor %s has type %s and others have %s", f.path.c_str(), t.name.c_str(), t.type->name,
                          type->name);
        type = t.type;
    }
    q->enabled = gguf_grid_spec(*type, &q->spec);
    q->scope = QuantScope::group;
    q->group = (int)gguf_scale_block(*type);
    return q->enabled ? "" : format("%s: its linears have type %s, which is no grid", f.path.c_str(), type->name);
}
