// Quantized weights stored small: codes of 2, 3, 4 or 8 bits, and beside them a scale (and a zero point) a group in the
// storage that the format has. One object serves generation (matmul_quantized.cuh) and a frozen base, whose linears
// have no other copy: linear_forward and linear_backward_input_quantized (linear.cuh) take it for any number of rows.
//
//   integer, ternary  w = floatX((u - zero) * scale), u = code + 2^(b-1); symmetric: zero = 2^(b-1)
//   nf4, floats       w = floatX(number(code) * scale)
// codes and grid are those of quant_format.cuh, and w has the bits of floatX(quant_value(code, grid)): a product with
// the packed weight is the product with the working weight, bit for bit. Integers of 5 and 6 bits lie in 8.
//
// What a scale is stored as, and bits a weight at the usual group, all in:
//   fp32    any format           nf4:g64 4.5, fp8 by channel 8.04 (896 columns)
//   bf16    integer, ternary     int4:g64 4.25 symmetric, 4.375 asymmetric: a zero point is a byte
//   fp16    the same, where a file of another tool brings such scales
//   e8m0    mxfp8, mxfp4         2^(byte - 127): 8.25 and 4.25
//   e4m3    nvfp4                e4m3(byte) / t, t fp32 of the tensor: 4.5. The quotient has the bits of quant_grid's
//   nested  nf4 with dq          map[byte] * nested + offset, nested of 256 groups, offset of the tensor (QLoRA's
//                                double quantization as bitsandbytes stores it): 4.127
//
// A weight (N,K) may be several tensors one above the other (q, k and v), each with a t, an offset and blocks of 256
// groups of its own. Rows and columns beyond N and K are code 0, scales beyond N are 0.
//
// Layout `fragments`, for the tensor cores: blocks of 8 rows by QW_SPAN = 128 columns, a row of blocks after the other.
// In a block lane 4g + t of a warp owns 32 codes of row g, namely of k16 step s (0 ... 7) the four with
// k = 16s + 2t + {0, 1, 8, 9}: its part of the B fragment of mma.m16n8k16. So no code passes through another lane, and
// a warp reads a block as one run of 128 b bytes, 16 bytes a lane at 4 bits:
//   8 bits   step s: word [s / 4][lane][s % 4] of the block, from the lowest byte
//   4 bits   word [lane][s / 2], half s % 2, from the lowest nibble: 16 bytes are a lane's 32 codes
//   2 bits   word [lane][s / 4], byte s % 4
//   3 bits   the two lower bits as 2 bits, then word 64 + lane: the third bits, 4 a step
// Layout `panels`, for the CPU's vectors: blocks of 16 rows by 32 columns, b words a row, word w of the 16 rows side by
// side: [N / 16][K / 32][b][16]. A word holds 32 / b neighbours of a row from the lowest bit; at 3 bits words 0 and 1
// hold the two lower bits and word 2 the third.
// Scales and zero points are [N / R][K / group][R], R = 8 or 16 rows of a block.
//
// The trap: asymmetric codes arrive minus 2^(b-1) (so that 8 bits fit int8_t) but zero does not.
#pragma once
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>
#include "../runtime/device.h"
#include "../runtime/math.h"
#include "quant_format.cuh"

enum class WeightLayout : uint8_t { fragments, panels };

static constexpr int QW_ROWS = 8, QW_SPAN = 128;              // a block of fragments
static constexpr int QW_PANEL_ROWS = 16, QW_PANEL_SPAN = 32;  // a block of panels
static constexpr int QW_PARTS = 3;                            // tensors in a weight

// A view; the memory belongs to the caller, host or device
struct QuantizedWeight {
    QuantSpec spec;
    ScaleStorage storage = ScaleStorage::fp32;
    WeightLayout layout = WeightLayout::panels;
    int parts = 1;
    int64_t N = 0, K = 0;             // N 0: no weight
    int64_t group = 0;                // consecutive numbers of a row that share a scale; K for channel and tensor
    int64_t part_row[QW_PARTS] = {};  // first row of each tensor
    uint32_t* codes = nullptr;        // see the layouts
    void* scales = nullptr;           // [N / R][K / group][R] of the storage
    uint8_t* zeros = nullptr;         // the same, null when symmetric
    float* nested = nullptr;          // [sum over tensors of its groups / 256, rounded up]
    float* tensor = nullptr;          // [parts] t of nvfp4, offset of nested
};

// ---------------------------------------------------------------------------------------------------------------------
// sizes

// bits of a stored code
HOST_DEVICE int quantized_bits(const QuantSpec& q) { return q.bits > 4 ? 8 : q.bits; }
HOST_DEVICE int quantized_bits(const QuantizedWeight& w) { return quantized_bits(w.spec); }
// what is added to a code so that it is not negative
HOST_DEVICE int quantized_bias(const QuantSpec& q) { return quant_is_integer(q) ? 1 << (q.bits - 1) : 0; }
HOST_DEVICE int quantized_block_rows(const QuantizedWeight& w) {
    return w.layout == WeightLayout::panels ? QW_PANEL_ROWS : QW_ROWS;
}
HOST_DEVICE int64_t quantized_row_blocks(const QuantizedWeight& w) { return CEIL_DIV(w.N, quantized_block_rows(w)); }
HOST_DEVICE int64_t quantized_spans(const QuantizedWeight& w) {
    return CEIL_DIV(w.K, w.layout == WeightLayout::panels ? QW_PANEL_SPAN : QW_SPAN);
}
// words of a block
HOST_DEVICE int quantized_block_words(const QuantizedWeight& w) {
    return quantized_bits(w) * (w.layout == WeightLayout::panels ? QW_PANEL_ROWS : 32);
}
HOST_DEVICE int64_t quantized_words(const QuantizedWeight& w) {
    return quantized_row_blocks(w) * quantized_spans(w) * quantized_block_words(w);
}
HOST_DEVICE int64_t quantized_groups(const QuantizedWeight& w) { return CEIL_DIV(w.K, w.group); }  // of a row
HOST_DEVICE int64_t quantized_scales(const QuantizedWeight& w) {
    return w.N ? quantized_row_blocks(w) * quantized_block_rows(w) * quantized_groups(w) : 0;
}
// by comparisons, as philox_word
HOST_DEVICE int64_t quantized_part_row(const QuantizedWeight& w, int part) {
    static_assert(QW_PARTS == 3, "a case a part");
    return part == 0 ? w.part_row[0] : part == 1 ? w.part_row[1] : w.part_row[2];
}
HOST_DEVICE int64_t quantized_part_rows(const QuantizedWeight& w, int part) {
    return (part + 1 < w.parts ? quantized_part_row(w, part + 1) : w.N) - quantized_part_row(w, part);
}
// nested scales of the first `parts` tensors
HOST_DEVICE int64_t quantized_nested(const QuantizedWeight& w, int parts) {
    int64_t n = 0;
    for (int p = 0; p < parts; p++) n += CEIL_DIV(quantized_part_rows(w, p) * quantized_groups(w), QUANT_NESTED);
    return n;
}
HOST_DEVICE int quantized_scale_bytes(ScaleStorage s) {
    switch (s) {
        case ScaleStorage::fp32:
            return 4;
        case ScaleStorage::bf16:
        case ScaleStorage::fp16:
            return 2;
        case ScaleStorage::e8m0:
        case ScaleStorage::e4m3:
        case ScaleStorage::nested:
            return 1;
    }
    __builtin_unreachable();
}

inline WeightLayout quantized_layout(Device dev) { return dev.cuda ? WeightLayout::fragments : WeightLayout::panels; }

// the smallest storage that holds the scales of a format exactly
inline ScaleStorage quantized_storage(const QuantSpec& q, bool double_quant) {
    return double_quant ? ScaleStorage::nested : quant_traits(q).storage;
}

typedef std::array<int64_t, QW_PARTS> QuantizedRows;  // of each tensor, then 0

// A weight without memory. group: consecutive numbers of a row that share a scale, or the
// whole row (channel, tensor), or 128 (128 x 128): where several rows share one, it is stored for each.
inline QuantizedWeight quantized_weight(const QuantSpec& spec, ScaleStorage storage, QuantizedRows rows, int64_t K,
                                        int64_t group, WeightLayout layout) {
    QuantizedWeight w;
    w.spec = spec, w.storage = storage, w.layout = layout, w.K = K, w.group = group < K ? group : K;
    w.parts = 0;
    for (int64_t n : rows) {
        if (n > 0) w.part_row[w.parts++] = w.N;
        w.N += n;
    }
    if (w.N < 1 || K < 1 || w.N > INT32_MAX || K > INT32_MAX || group < 1)
        fail("quantized weight: bad shape [%lld,%lld], group %lld", (long long)w.N, (long long)K, (long long)group);
    if (!quant_format_name(spec)) fail("quantized weight: its format has no codes of %d bits", spec.bits);
    if (!spec.symmetric && !quant_traits(spec).affine)
        fail("quantized weight: only integers have a zero point: choose an integer format or no :asym");
    if (storage == ScaleStorage::nested && K % w.group)
        fail("quantized weight: double quantization counts groups of a tensor, and %lld do not divide rows of %lld",
             (long long)group, (long long)K);
    return w;
}

struct QuantizedBytes {
    size_t codes, scales, zeros, nested, tensor, all;  // each a multiple of 16
};
inline QuantizedBytes quantized_weight_parts(const QuantizedWeight& w) {
    auto pad = [](int64_t n) { return (size_t)(n + 15) / 16 * 16; };
    QuantizedBytes b;
    b.codes = pad(quantized_words(w) * 4);
    b.scales = pad(quantized_scales(w) * quantized_scale_bytes(w.storage));
    b.zeros = w.spec.symmetric ? 0 : pad(quantized_scales(w));
    b.nested = w.storage == ScaleStorage::nested ? pad(4 * quantized_nested(w, w.parts)) : 0;
    b.tensor = w.storage == ScaleStorage::nested || w.storage == ScaleStorage::e4m3 ? 16 : 0;
    b.all = b.codes + b.scales + b.zeros + b.nested + b.tensor;
    return b;
}
inline size_t quantized_weight_bytes(const QuantizedWeight& w) { return quantized_weight_parts(w).all; }
// of storage, a weight: codes, scales and all
inline double quantized_weight_bits_per_weight(const QuantizedWeight& w) {
    return 8.0 * (double)quantized_weight_bytes(w) / ((double)w.N * (double)w.K);
}

// w in `memory` of quantized_weight_bytes(w), 64-byte aligned
inline void quantized_weight_place(QuantizedWeight& w, void* memory) {
    QuantizedBytes b = quantized_weight_parts(w);
    char* p = static_cast<char*>(memory);
    w.codes = reinterpret_cast<uint32_t*>(p);
    w.scales = p += b.codes;
    p += b.scales;
    w.zeros = b.zeros ? reinterpret_cast<uint8_t*>(p) : nullptr;
    p += b.zeros;
    w.nested = b.nested ? reinterpret_cast<float*>(p) : nullptr;
    p += b.nested;
    w.tensor = b.tensor ? reinterpret_cast<float*>(p) : nullptr;
}

// ---------------------------------------------------------------------------------------------------------------------
// scales

HOST_DEVICE int quantized_part(const QuantizedWeight& w, int64_t n) {
    int part = 0;
    UNROLL
    for (int p = 1; p < QW_PARTS; p++)
        if (p < w.parts && n >= w.part_row[p]) part = p;
    return part;
}
// of row n, group g of the row
HOST_DEVICE int64_t quantized_scale_index(const QuantizedWeight& w, int64_t n, int64_t g) {
    int R = quantized_block_rows(w);
    return (n / R * quantized_groups(w) + g) * R + n % R;
}
// double quantization's; n < N
HOST_DEVICE float quantized_nested_scale(const QuantizedWeight& w, int64_t n, int64_t g, uint8_t byte) {
    const int part = quantized_part(w, n);
    const int64_t block = (n - quantized_part_row(w, part)) * quantized_groups(w) + g;
    return dynamic_map_scale(dynamic_map_value(byte), w.nested[quantized_nested(w, part) + block / QUANT_NESTED],
                             w.tensor[part]);
}
HOST_DEVICE float quantized_scale(const QuantizedWeight& w, int64_t n, int64_t g) {
    const int64_t i = quantized_scale_index(w, n, g);
    const uint8_t* bytes = static_cast<const uint8_t*>(w.scales);
    switch (w.storage) {
        case ScaleStorage::fp32:
            return static_cast<const float*>(w.scales)[i];
        case ScaleStorage::bf16:
            return (float)static_cast<const bf16*>(w.scales)[i];
        case ScaleStorage::fp16:
            return fp16_bits_to_float(static_cast<const uint16_t*>(w.scales)[i]);
        case ScaleStorage::e8m0:
            return quant_power_of_two((int)bytes[i] - 127);
        case ScaleStorage::e4m3:
            return e4m3_bits_to_float(bytes[i]) / w.tensor[quantized_part(w, n)];
        case ScaleStorage::nested:
            return n < w.N ? quantized_nested_scale(w, n, g, bytes[i]) : 0.0f;
    }
    __builtin_unreachable();
}
HOST_DEVICE float quantized_zero(const QuantizedWeight& w, int64_t n, int64_t g) {
    return w.zeros ? (float)w.zeros[quantized_scale_index(w, n, g)] : (float)quantized_bias(w.spec);
}

// ---------------------------------------------------------------------------------------------------------------------
// one code, one value, one packed word

// u: the code as it is packed
HOST_DEVICE float quantized_value(QuantFormat format, uint32_t u, float zero, float scale) {
    return quant_visit(format, [=](auto f) {
        if constexpr (format_is_integer<decltype(f)>) return ((float)(int)u - zero) * scale;
        else return f.number(u) * scale;
    });
}

// The four codes of k16 step `step` that lane 4g + t owns; block: the words of its block, element e (0 ... 3) is
// k = 16 step + 2t + e % 2 + 8 (e / 2)
HOST_DEVICE uint32_t quantized_step_codes(const uint32_t* block, int bits, int lane, int step) {
    switch (bits) {  // 4 codes of 8, 4 or 2 bits; of 3: the low 2 bits of each, then from bit 8 the third
        case 8:
            return block[step / 4 * 128 + lane * 4 + step % 4];
        case 4:
            return block[lane * 4 + step / 2] >> step % 2 * 16 & 0xFFFFu;
        case 2:
            return block[lane * 2 + step / 4] >> step % 4 * 8 & 0xFFu;
        default:
            return (block[lane * 2 + step / 4] >> step % 4 * 8 & 0xFFu) | (block[64 + lane] >> step * 4 & 15u) << 8;
    }
}

HOST_DEVICE uint32_t quantized_step_code(uint32_t codes, int bits, int e) {
    if (bits == 3) return (codes >> 2 * e & 3u) | (codes >> (8 + e) & 1u) << 2;
    return codes >> bits * e & ((1u << bits) - 1);
}

// code c (0 ... 31) of row j in a block of panels
HOST_DEVICE uint32_t quantized_panel_code(const uint32_t* block, int bits, int j, int c) {
    if (bits == 3)
        return (block[c / 16 * QW_PANEL_ROWS + j] >> 2 * (c % 16) & 3u) | (block[2 * QW_PANEL_ROWS + j] >> c & 1u) << 2;
    int per_word = 32 / bits;
    return block[c / per_word * QW_PANEL_ROWS + j] >> bits * (c % per_word) & ((1u << bits) - 1);
}

// What one tensor of the weight is packed from
struct QuantizedSource {
    const int8_t* codes = nullptr;         // (rows,K), as quant_code gives them
    const Grid* grid = nullptr;            // [rows / grid_rows, K / group], each rounded up
    int64_t grid_rows = 1;                 // rows that share a scale: 128 for 128 x 128, all for a tensor
    const float* tensor = nullptr;         // e4m3: t; nested: the offset
    const uint8_t* scale_codes = nullptr;  // nested: [rows, K / group] entries of the map; grid is not read
    const float* nested = nullptr;         // nested: [rows * K / group / 256]
};
struct QuantizedSources {
    QuantizedSource part[QW_PARTS];
    HOST_DEVICE QuantizedSource of(int p) const { return p == 0 ? part[0] : p == 1 ? part[1] : part[2]; }
};

// code of row n, column k, as it is packed: u
HOST_DEVICE uint32_t quantized_source_code(const QuantizedWeight& w, const QuantizedSources& from, int64_t n,
                                           int64_t k) {
    if (n >= w.N || k >= w.K) return 0;
    int part = quantized_part(w, n);
    int code = from.of(part).codes[(n - quantized_part_row(w, part)) * w.K + k];
    return (uint32_t)(code + quantized_bias(w.spec)) & ((1u << quantized_bits(w)) - 1);
}

// word i of w.codes
HOST_DEVICE uint32_t quantized_pack_word(const QuantizedWeight& w, const QuantizedSources& from, int64_t i) {
    int bits = quantized_bits(w), words = quantized_block_words(w), word = (int)(i % words);
    int64_t block = i / words, row = block / quantized_spans(w), span = block % quantized_spans(w);
    uint32_t packed = 0;
    if (w.layout == WeightLayout::panels) {
        int j = word % QW_PANEL_ROWS, part = word / QW_PANEL_ROWS;
        bool third = bits == 3 && part == 2;
        int width = third ? 1 : bits == 3 ? 2 : bits, count = 32 / width, first = third ? 0 : part * count;
        for (int c = 0; c < count; c++) {
            uint32_t u = quantized_source_code(w, from, row * QW_PANEL_ROWS + j, span * QW_PANEL_SPAN + first + c);
            packed |= (third ? u >> 2 : u & ((1u << width) - 1)) << c * width;
        }
        return packed;
    }
    bool third = bits == 3 && word >= 64;  // the plane of third bits
    int lane = third ? word - 64 : bits == 8 ? word / 4 % 32 : bits == 4 ? word / 4 : word / 2;
    int steps = third ? 8 : bits == 8 ? 1 : bits == 4 ? 2 : 4;  // in a word
    int step0 = third ? 0 : bits == 8 ? word / 128 * 4 + word % 4 : bits == 4 ? word % 4 * 2 : word % 2 * 4;
    int width = 32 / steps / 4;  // bits of a code in this word
    for (int j = 0; j < steps * 4; j++) {
        int e = j % 4;
        int64_t k = span * QW_SPAN + (step0 + j / 4) * 16 + lane % 4 * 2 + e % 2 + e / 2 * 8;
        uint32_t u = quantized_source_code(w, from, row * QW_ROWS + lane / 4, k);
        packed |= (third ? u >> 2 : u & ((1u << width) - 1)) << j * width;
    }
    return packed;
}

// scale i of w.scales and its zero point
HOST_DEVICE void quantized_pack_scale(const QuantizedWeight& w, const QuantizedSources& from, int64_t i) {
    int64_t R = quantized_block_rows(w), groups = quantized_groups(w), n = i / R / groups * R + i % R,
            g = i / R % groups;
    Grid x = {0.0f, 0.0f};
    uint8_t nested = 0;
    float tensor = 1.0f;
    if (n < w.N) {
        int part = quantized_part(w, n);
        const QuantizedSource s = from.of(part);
        int64_t row = n - quantized_part_row(w, part);
        if (w.storage == ScaleStorage::nested) nested = s.scale_codes[row * groups + g];
        else x = s.grid[row / s.grid_rows * groups + g];
        if (w.storage == ScaleStorage::e4m3) tensor = *s.tensor;
    }
    uint8_t* bytes = static_cast<uint8_t*>(w.scales);
    switch (w.storage) {
        case ScaleStorage::fp32:
            static_cast<float*>(w.scales)[i] = x.scale;
            break;
        case ScaleStorage::bf16:
            static_cast<bf16*>(w.scales)[i] = bf16(x.scale);
            break;
        case ScaleStorage::fp16:
            static_cast<uint16_t*>(w.scales)[i] = float_to_fp16_bits(x.scale);
            break;
        case ScaleStorage::e8m0:
            bytes[i] = (uint8_t)(float_bits(x.scale) >> 23);
            break;
        case ScaleStorage::e4m3:
            bytes[i] = float_to_e4m3_bits(x.scale * tensor);
            break;
        case ScaleStorage::nested:
            bytes[i] = nested;
            break;
    }
    if (w.zeros) w.zeros[i] = (uint8_t)x.zero;
}

// number i of what a tensor has beside its scales: the nested scales of all tensors, then t or offset of each
HOST_DEVICE int64_t quantized_extras(const QuantizedWeight& w) {
    return w.tensor ? (w.nested ? quantized_nested(w, w.parts) : 0) + w.parts : 0;
}
HOST_DEVICE void quantized_pack_extra(const QuantizedWeight& w, const QuantizedSources& from, int64_t i) {
    int64_t nested = quantized_extras(w) - w.parts;
    if (i >= nested) {
        w.tensor[i - nested] = *from.of((int)(i - nested)).tensor;
        return;
    }
    int part = 0;
    while (i >= quantized_nested(w, part + 1)) part++;
    w.nested[i] = from.of(part).nested[i - quantized_nested(w, part)];
}

// the 16 numbers of row n that k16 step `step` of the whole row holds -> x
template <class T>
HOST_DEVICE void quantized_unpack_step(const QuantizedWeight& w, T* x, int64_t n, int64_t step) {
    const int bits = quantized_bits(w), R = quantized_block_rows(w);
    const int span = w.layout == WeightLayout::panels ? QW_PANEL_SPAN : QW_SPAN;
    const uint32_t* block =
        w.codes + (n / R * quantized_spans(w) + step * 16 / span) * (int64_t)quantized_block_words(w);
    int64_t group = -1;
    float scale = 0.0f, zero = 0.0f;
    UNROLL
    for (int t = 0; t < 4; t++) {
        uint32_t codes = 0;
        if (w.layout == WeightLayout::fragments)
            codes = quantized_step_codes(block, bits, (int)(n % R) * 4 + t, (int)(step % (QW_SPAN / 16)));
        UNROLL
        for (int e = 0; e < 4; e++) {
            int i = t * 2 + e % 2 + e / 2 * 8;
            int64_t k = step * 16 + i;
            if (k < w.K && k / w.group != group) {
                group = k / w.group;
                scale = quantized_scale(w, n, group);
                zero = quantized_zero(w, n, group);
            }
            uint32_t u = w.layout == WeightLayout::fragments
                             ? quantized_step_code(codes, bits, e)
                             : quantized_panel_code(block, bits, (int)(n % R), (int)(k % QW_PANEL_SPAN));
            x[i] = k < w.K ? (T)quantized_value(w.spec.format, u, zero, scale) : T(0.0f);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

inline void quantized_weight_pack_cpu(const QuantizedWeight& w, const QuantizedSources& from) {
    const int64_t words = quantized_words(w), scales = quantized_scales(w), extras = quantized_extras(w);
#pragma omp parallel for schedule(static) if (words > 4096)
    for (int64_t i = 0; i < words; i++) w.codes[i] = quantized_pack_word(w, from, i);
    for (int64_t i = 0; i < scales; i++) quantized_pack_scale(w, from, i);
    for (int64_t i = 0; i < extras; i++) quantized_pack_extra(w, from, i);
}

inline void quantized_weight_unpack_cpu(floatX* out, int64_t ldo, const QuantizedWeight& w, int64_t row0,
                                        int64_t rows) {
    const int64_t steps = CEIL_DIV(w.K, 16);
#pragma omp parallel for schedule(static) if (rows * steps > 4096)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t step = 0; step < steps; step++) {
            floatX x[16];
            quantized_unpack_step(w, x, row0 + r, step);
            int64_t n = w.K - step * 16 < 16 ? w.K - step * 16 : 16;
            for (int64_t i = 0; i < n; i++) out[r * ldo + step * 16 + i] = x[i];
        }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
static constexpr int QW_BLOCK = 256;

// a thread a word of codes, which the warp writes side by side; the last threads take the scales and what is beside
// them. grid: CEIL_DIV(words + scales + extras, QW_BLOCK)
__global__ void quantized_weight_pack_kernel(QuantizedWeight w, QuantizedSources from) {
    int64_t i = (int64_t)blockIdx.x * QW_BLOCK + threadIdx.x, words = quantized_words(w), scales = quantized_scales(w);
    if (i < words) w.codes[i] = quantized_pack_word(w, from, i);
    else if (i < words + scales) quantized_pack_scale(w, from, i - words);
    else if (i < words + scales + quantized_extras(w)) quantized_pack_extra(w, from, i - words - scales);
}

// a thread 16 numbers of a row, which it stores as packs. grid: CEIL_DIV(rows * CEIL_DIV(K, 16), QW_BLOCK)
__global__ void quantized_weight_unpack_kernel(floatX* out, int64_t ldo, QuantizedWeight w, int64_t row0, int64_t rows,
                                               bool aligned) {
    constexpr int W = Pack128<floatX>::size;
    int64_t i = (int64_t)blockIdx.x * QW_BLOCK + threadIdx.x, steps = CEIL_DIV(w.K, 16);
    if (i >= rows * steps) return;
    int64_t r = i / steps, step = i % steps;
    Pack128<floatX> x[16 / W];
    quantized_unpack_step(w, &x[0][0], row0 + r, step);
    UNROLL
    for (int p = 0; p < 16 / W; p++) store_pack(out + r * ldo, (int)(step * 16) + p * W, (int)w.K, aligned, x[p]);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

// Chooses bf16 or fp16 for 16-bit scales by what holds those of `from` exactly, w being without or with memory, and
// says whether the storage does. For grids from outside: those of quant_format.cuh always fit.
inline bool quantized_fit_scales(QuantizedWeight& w, const QuantizedSources& from, Device dev) {
    const bool half = w.storage == ScaleStorage::bf16 || w.storage == ScaleStorage::fp16;
    bool fits = true, fits_fp16 = half;
    for (int part = 0; part < w.parts; part++) {
        const QuantizedSource& s = from.part[part];
        const int64_t n = CEIL_DIV(quantized_part_rows(w, part), s.grid_rows) * quantized_groups(w);
        std::vector<Grid> grid((size_t)n);
        std::vector<uint8_t> bytes(w.storage == ScaleStorage::nested ? (size_t)n : 0);
        std::vector<float> nested(bytes.empty() ? 0 : (size_t)CEIL_DIV(n, QUANT_NESTED));
        float tensor = 1.0f;
        copy_to_host(grid.data(), s.grid, grid.size() * sizeof(Grid), dev);
        if (w.storage == ScaleStorage::nested || w.storage == ScaleStorage::e4m3)
            copy_to_host(&tensor, s.tensor, sizeof(float), dev);
        if (!bytes.empty()) {
            copy_to_host(bytes.data(), s.scale_codes, bytes.size(), dev);
            copy_to_host(nested.data(), s.nested, nested.size() * sizeof(float), dev);
        }
        for (int64_t i = 0; i < n; i++) {
            const float x = grid[(size_t)i].scale;
            float stored = x;
            if (half) stored = (float)bf16(x);
            if (half && fp16_bits_to_float(float_to_fp16_bits(x)) != x) fits_fp16 = false;
            if (w.storage == ScaleStorage::e8m0) stored = quant_power_of_two((int)(float_bits(x) >> 23) - 127);
            if (w.storage == ScaleStorage::e4m3) stored = e4m3_bits_to_float(float_to_e4m3_bits(x * tensor)) / tensor;
            if (!bytes.empty())
                stored =
                    dynamic_map_scale(dynamic_map_value(bytes[(size_t)i]), nested[(size_t)(i / QUANT_NESTED)], tensor);
            if (stored != x) fits = false;
        }
    }
    if (half) w.storage = fits || !fits_fp16 ? ScaleStorage::bf16 : ScaleStorage::fp16;
    return fits || fits_fp16;
}

// w: a weight with memory; from: one source for each of its tensors. Scales that the storage cannot hold exactly (bf16
// and e8m0 for a grid that is not of quant_format.cuh) make another product.
inline void quantized_weight_pack(const QuantizedWeight& w, const QuantizedSources& from, Device dev) {
    NVTX_RANGE("quantized_weight_pack");
    for (int part = 0; part < w.parts; part++) {
        const QuantizedSource& s = from.part[part];
        bool nested = w.storage == ScaleStorage::nested;
        if (!s.codes || s.grid_rows < 1 || (nested ? !s.scale_codes || !s.nested : !s.grid) || (w.tensor && !s.tensor))
            fail("quantized_weight_pack: tensor %d of %d lacks codes or scales", part, w.parts);
    }
#if HAS_KERNELS
    if (dev.cuda) {
        int64_t threads = quantized_words(w) + quantized_scales(w) + quantized_extras(w);
        LAUNCH(quantized_weight_pack_kernel, (unsigned)CEIL_DIV(threads, QW_BLOCK), QW_BLOCK, 0, dev.stream, w, from);
        return;
    }
#endif
    (void)dev;
    quantized_weight_pack_cpu(w, from);
}

// out: (rows,K) at ldo = the working weight's rows row0 ... row0 + rows - 1
inline void quantized_weight_unpack(floatX* out, int64_t ldo, const QuantizedWeight& w, int64_t row0, int64_t rows,
                                    Device dev) {
    NVTX_RANGE("quantized_weight_unpack");
    if (row0 < 0 || rows < 0 || row0 + rows > w.N)
        fail("quantized_weight_unpack: rows %lld ... %lld of %lld", (long long)row0, (long long)(row0 + rows),
             (long long)w.N);
    if (rows == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(quantized_weight_unpack_kernel, (unsigned)CEIL_DIV(rows * CEIL_DIV(w.K, 16), QW_BLOCK), QW_BLOCK, 0,
               dev.stream, out, ldo, w, row0, rows, is_aligned16(out, ldo));
        return;
    }
#endif
    (void)dev;
    quantized_weight_unpack_cpu(out, ldo, w, row0, rows);
}
