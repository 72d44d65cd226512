// Quantized weights as generation keeps them: codes packed to 2, 3, 4 or 8 bits, a scale (and a zero point) a group.
//
//   int8 int4 int3 int2   w = floatX((u - zero) * scale), u = code + 2^(b-1) in 0 ... 2^b - 1; symmetric: zero =
//   2^(b-1) nf4                   w = floatX(nf4[code] * scale),  scale = absmax of the group (QLoRA, arXiv 2305.14314)
//   fp8e4m3               w = floatX(e4m3(code) * scale), scale = absmax / 448
// The codes and the grid are those of fake_quant.cuh, and w has the bits that it writes to the working weight: a
// product with the packed weight (matmul_quantized.cuh) is the product with the working weight, bit for bit.
//
// Layout of the weight (N,K), made for the tensor cores: blocks of QW_ROWS = 8 rows by QW_SPAN = 128 columns, a row of
// blocks after the other. In a block lane 4g + t of a warp owns 32 codes of row g, namely of k16 step s (0 ... 7) the
// four with k = 16s + 2t + {0, 1, 8, 9}: its part of the B fragment of mma.m16n8k16. So no code passes through another
// lane, and a warp reads a block as one run of 128 b bytes, 16 bytes a lane at 4 bits:
//   8 bits   step s: word [s / 4][lane][s % 4] of the block, from the lowest byte
//   4 bits   word [lane][s / 2], half s % 2, from the lowest nibble: 16 bytes are a lane's 32 codes
//   2 bits   word [lane][s / 4], byte s % 4
//   3 bits   the two lower bits as 2 bits, then word 64 + lane: the third bits, 4 a step
// Rows and columns beyond N and K are code 0. Scales, fp32 or bf16, and zero points, a byte, are [N / 8][K / group][8].
// Bytes of a weight at int4, group 128, bf16 scales: 4.125 bits a weight symmetric, 4.1875 asymmetric.
//
// The trap: asymmetric codes arrive minus 2^(b-1) (so that 8 bits fit int8_t) but zero does not.
#pragma once
#include <cmath>
#include <cstdint>
#include "../runtime/device.h"
#include "../runtime/math.h"
#include "fake_quant.cuh"

enum class WeightFormat { int8, int4, int3, int2, nf4, fp8e4m3 };

static constexpr int QW_ROWS = 8, QW_SPAN = 128;

HOST_DEVICE int weight_format_bits(WeightFormat format) {
    switch (format) {
        case WeightFormat::int4:
        case WeightFormat::nf4:
            return 4;
        case WeightFormat::int3:
            return 3;
        case WeightFormat::int2:
            return 2;
        default:
            return 8;
    }
}
HOST_DEVICE bool weight_format_integer(WeightFormat format) {
    return format != WeightFormat::nf4 && format != WeightFormat::fp8e4m3;
}

// A view; the memory belongs to the caller, host or device
struct QuantizedWeight {
    WeightFormat format = WeightFormat::int8;
    bool bf16_scales = false;
    int64_t N = 0, K = 0;
    int64_t group = 0;          // consecutive numbers of a row that share a scale; K for channel and tensor
    uint32_t* codes = nullptr;  // [N / 8][K / 128][32 b]
    void* scales = nullptr;     // [N / 8][K / group][8] float or bf16
    uint8_t* zeros = nullptr;   // the same, null when symmetric
};

// ---------------------------------------------------------------------------------------------------------------------
// sizes

HOST_DEVICE int64_t quantized_row_blocks(const QuantizedWeight& w) { return CEIL_DIV(w.N, QW_ROWS); }
HOST_DEVICE int64_t quantized_spans(const QuantizedWeight& w) { return CEIL_DIV(w.K, QW_SPAN); }
HOST_DEVICE int64_t quantized_words(const QuantizedWeight& w) {
    return quantized_row_blocks(w) * quantized_spans(w) * 32 * weight_format_bits(w.format);
}
HOST_DEVICE int64_t quantized_scales(const QuantizedWeight& w) {
    return w.group ? quantized_row_blocks(w) * QW_ROWS * (w.K / w.group) : 0;
}

// The weight (N,K) with `group` numbers a scale, in `memory` of quantized_weight_bytes(), 16-byte aligned. group as in
// fake_quant.cuh: a part of a row, K (channel) or N * K (tensor); the scale of a channel or a tensor is stored for each
// row.
inline QuantizedWeight quantized_weight_view(void* memory, WeightFormat format, int64_t N, int64_t K, int64_t group,
                                             bool asymmetric, bool bf16_scales) {
    if (N < 1 || K < 1 || N > INT32_MAX || K > INT32_MAX || group < 1)
        fail("quantized weight: bad shape [%lld,%lld], group %lld", (long long)N, (long long)K, (long long)group);
    if (group != N * K && K % group)
        fail(
            "quantized weight: groups of %lld do not divide rows of %lld: choose a group that does, or one scale a row",
            (long long)group, (long long)K);
    if (asymmetric && !weight_format_integer(format))
        fail("quantized weight: nf4 and fp8 have no zero point: choose an integer format or no :asym");
    QuantizedWeight w;
    w.format = format, w.bf16_scales = bf16_scales, w.N = N, w.K = K, w.group = group < K ? group : K;
    char* p = static_cast<char*>(memory);
    w.codes = reinterpret_cast<uint32_t*>(p);
    p += quantized_words(w) * 4;  // a multiple of 256
    w.scales = p;
    p += quantized_scales(w) * (bf16_scales ? 2 : 4);  // a multiple of 16
    w.zeros = asymmetric ? reinterpret_cast<uint8_t*>(p) : nullptr;
    return w;
}

inline size_t quantized_weight_bytes(WeightFormat format, int64_t N, int64_t K, int64_t group, bool asymmetric,
                                     bool bf16_scales) {
    QuantizedWeight w = quantized_weight_view(nullptr, format, N, K, group, asymmetric, bf16_scales);
    size_t scales = (size_t)quantized_scales(w);
    size_t bytes = (size_t)quantized_words(w) * 4 + scales * (bf16_scales ? 2 : 4) + (asymmetric ? scales : 0);
    return (bytes + 15) / 16 * 16;
}

// ---------------------------------------------------------------------------------------------------------------------
// quantizers of the formats without an integer grid: the scale of a group from its absmax, a code from a weight

// What is below the smallest normal float counts as zero: its reciprocal would overflow.
HOST_DEVICE float nf4_scale(float absmax) { return absmax; }
HOST_DEVICE uint8_t nf4_code(float w, float scale) {
    return float_to_nf4(scale >= 1.17549435e-38f ? w * (1.0f / scale) : 0.0f);
}

HOST_DEVICE float fp8_scale(float absmax) {
    float s = absmax / 448.0f;
    return s >= 1.17549435e-38f ? s : 1.0f;
}
HOST_DEVICE uint8_t fp8_code(float w, float scale) { return float_to_e4m3_bits(w / scale); }

// ---------------------------------------------------------------------------------------------------------------------
// one code, one value, one packed word

HOST_DEVICE float quantized_value(WeightFormat format, uint32_t u, float zero, float scale) {
    if (format == WeightFormat::nf4) return nf4_to_float(u) * scale;
    if (format == WeightFormat::fp8e4m3) return e4m3_bits_to_float((uint8_t)u) * scale;
    return ((float)(int)u - zero) * scale;
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

HOST_DEVICE float quantized_scale(const QuantizedWeight& w, int64_t index) {
    return w.bf16_scales ? (float)static_cast<const bf16*>(w.scales)[index]
                         : static_cast<const float*>(w.scales)[index];
}
HOST_DEVICE float quantized_zero(const QuantizedWeight& w, int64_t index) {
    return w.zeros ? (float)w.zeros[index] : (float)(1 << (weight_format_bits(w.format) - 1));
}
// of row n, group g of the row
HOST_DEVICE int64_t quantized_scale_index(const QuantizedWeight& w, int64_t n, int64_t g) {
    return (n / QW_ROWS * (w.K / w.group) + g) * QW_ROWS + n % QW_ROWS;
}

// code of row n, column k, as it is packed: u
HOST_DEVICE uint32_t quantized_source_code(const QuantizedWeight& w, const int8_t* codes, int64_t n, int64_t k) {
    if (n >= w.N || k >= w.K) return 0;
    int bits = weight_format_bits(w.format), code = codes[n * w.K + k];
    if (weight_format_integer(w.format)) code += 1 << (bits - 1);
    return (uint32_t)code & ((1u << bits) - 1);
}

// word i of w.codes
HOST_DEVICE uint32_t quantized_pack_word(const QuantizedWeight& w, const int8_t* codes, int64_t i) {
    int bits = weight_format_bits(w.format), word = (int)(i % (32 * bits));
    int64_t block = i / (32 * bits), n0 = block / quantized_spans(w) * QW_ROWS,
            k0 = block % quantized_spans(w) * QW_SPAN;
    bool third = bits == 3 && word >= 64;  // the plane of third bits
    int lane = third ? word - 64 : bits == 8 ? word / 4 % 32 : bits == 4 ? word / 4 : word / 2;
    int steps = third ? 8 : bits == 8 ? 1 : bits == 4 ? 2 : 4;  // in a word
    int step0 = third ? 0 : bits == 8 ? word / 128 * 4 + word % 4 : bits == 4 ? word % 4 * 2 : word % 2 * 4;
    int width = 32 / steps / 4;  // bits of a code in this word
    uint32_t packed = 0;
    for (int j = 0; j < steps * 4; j++) {
        int e = j % 4;
        int64_t k = k0 + (step0 + j / 4) * 16 + lane % 4 * 2 + e % 2 + e / 2 * 8;
        uint32_t u = quantized_source_code(w, codes, n0 + lane / 4, k);
        packed |= (third ? u >> 2 : u & ((1u << width) - 1)) << j * width;
    }
    return packed;
}

// scale i of w.scales and its zero point; grid: one for each grid_group consecutive numbers of the matrix
HOST_DEVICE void quantized_pack_scale(const QuantizedWeight& w, const Grid* grid, int64_t grid_group, int64_t i) {
    int64_t groups = w.K / w.group, n = i / QW_ROWS / groups * QW_ROWS + i % QW_ROWS, g = i / QW_ROWS % groups;
    Grid x = n < w.N ? grid[(n * w.K + g * w.group) / grid_group] : Grid{0.0f, 0.0f};
    if (w.bf16_scales) static_cast<bf16*>(w.scales)[i] = bf16(x.scale);
    else static_cast<float*>(w.scales)[i] = x.scale;
    if (w.zeros) w.zeros[i] = (uint8_t)x.zero;
}

// the 16 numbers of row n that k16 step `step` of the whole row holds -> x
template <class T>
HOST_DEVICE void quantized_unpack_step(const QuantizedWeight& w, T* x, int64_t n, int64_t step) {
    int bits = weight_format_bits(w.format);
    const uint32_t* block = w.codes + (n / QW_ROWS * quantized_spans(w) + step * 16 / QW_SPAN) * (32 * bits);
    int64_t group = -1;
    float scale = 0.0f, zero = 0.0f;
    for (int t = 0; t < 4; t++) {
        uint32_t codes = quantized_step_codes(block, bits, (int)(n % QW_ROWS) * 4 + t, (int)(step % (QW_SPAN / 16)));
        for (int e = 0; e < 4; e++) {
            int i = t * 2 + e % 2 + e / 2 * 8;
            int64_t k = step * 16 + i;
            if (k < w.K && k / w.group != group) {
                group = k / w.group;
                scale = quantized_scale(w, quantized_scale_index(w, n, group));
                zero = quantized_zero(w, quantized_scale_index(w, n, group));
            }
            x[i] = k < w.K ? (T)quantized_value(w.format, quantized_step_code(codes, bits, e), zero, scale) : T(0.0f);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

inline void quantized_weight_pack_cpu(const QuantizedWeight& w, const int8_t* codes, const Grid* grid,
                                      int64_t grid_group) {
    const int64_t words = quantized_words(w), scales = quantized_scales(w);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < words; i++) w.codes[i] = quantized_pack_word(w, codes, i);
    for (int64_t i = 0; i < scales; i++) quantized_pack_scale(w, grid, grid_group, i);
}

inline void quantized_weight_unpack_cpu(floatX* out, int64_t ldo, const QuantizedWeight& w, int64_t row0,
                                        int64_t rows) {
    const int64_t steps = CEIL_DIV(w.K, 16);
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t step = 0; step < steps; step++) {
            floatX x[16];
            quantized_unpack_step(w, x, row0 + r, step);
            int64_t n = w.K - step * 16 < 16 ? w.K - step * 16 : 16;
            for (int64_t i = 0; i < n; i++) out[r * ldo + step * 16 + i] = x[i];
        }
}

inline void quantize_codebook_cpu(int8_t* codes, Grid* grid, const float* w, WeightFormat format, int64_t groups,
                                  int64_t group) {
#pragma omp parallel for schedule(static)
    for (int64_t g = 0; g < groups; g++) {
        const float* x = w + g * group;
        float absmax = 0.0f;
        for (int64_t i = 0; i < group; i++) absmax = fabsf(x[i]) > absmax ? fabsf(x[i]) : absmax;
        float scale = format == WeightFormat::nf4 ? nf4_scale(absmax) : fp8_scale(absmax);
        grid[g] = Grid{scale, 0.0f};
        for (int64_t i = 0; i < group; i++)
            codes[g * group + i] =
                (int8_t)(format == WeightFormat::nf4 ? nf4_code(x[i], scale) : fp8_code(x[i], scale));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
static constexpr int QW_BLOCK = 256;

// a thread a word of codes, which the warp writes side by side; the last threads take the scales
// grid: CEIL_DIV(words + scales, QW_BLOCK)
__global__ void quantized_weight_pack_kernel(QuantizedWeight w, const int8_t* codes, const Grid* grid,
                                             int64_t grid_group) {
    int64_t i = (int64_t)blockIdx.x * QW_BLOCK + threadIdx.x, words = quantized_words(w);
    if (i < words) w.codes[i] = quantized_pack_word(w, codes, i);
    else if (i < words + quantized_scales(w)) quantized_pack_scale(w, grid, grid_group, i - words);
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
    for (int p = 0; p < 16 / W; p++) store_pack(out + r * ldo, (int)(step * 16) + p * W, (int)w.K, aligned, x[p]);
}

// a block a group: its absmax, then its codes. grid: groups
__global__ void quantize_codebook_kernel(int8_t* codes, Grid* grid, const float* w, WeightFormat format,
                                         int64_t group) {
    const float* x = w + blockIdx.x * group;
    float absmax = 0.0f;
    for (int64_t i = threadIdx.x; i < group; i += QW_BLOCK) absmax = fmaxf(absmax, fabsf(x[i]));
    __shared__ float part[QW_BLOCK / 32];
    absmax = warp_reduce_max(absmax);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = absmax;
    __syncthreads();
    absmax = warp_reduce_max(part[threadIdx.x % (QW_BLOCK / 32)]);
    float scale = format == WeightFormat::nf4 ? nf4_scale(absmax) : fp8_scale(absmax);
    if (threadIdx.x == 0) grid[blockIdx.x] = Grid{scale, 0.0f};
    for (int64_t i = threadIdx.x; i < group; i += QW_BLOCK)
        codes[blockIdx.x * group + i] =
            (int8_t)(format == WeightFormat::nf4 ? nf4_code(x[i], scale) : fp8_code(x[i], scale));
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

// w: a view with memory; codes: (N,K) as fake_quant_forward leaves them (nf4, fp8: as quantize_codebook does); grid:
// one for each grid_group consecutive numbers of the matrix, the group the view was made with. With bf16_scales the
// grid's scales must be bf16 numbers, as those of fake_quant.cuh are, or the product is another.
inline void quantized_weight_pack(const QuantizedWeight& w, const int8_t* codes, const Grid* grid, int64_t grid_group,
                                  Device dev) {
    NVTX_RANGE("quantized_weight_pack");
    if (grid_group != w.group && grid_group != w.N * w.K)
        fail("quantized_weight_pack: a grid of groups of %lld for a weight of groups of %lld", (long long)grid_group,
             (long long)w.group);
#if HAS_KERNELS
    if (dev.cuda) {
        int64_t threads = quantized_words(w) + quantized_scales(w);
        LAUNCH(quantized_weight_pack_kernel, (unsigned)CEIL_DIV(threads, QW_BLOCK), QW_BLOCK, 0, dev.stream, w, codes,
               grid, grid_group);
        return;
    }
#endif
    (void)dev;
    quantized_weight_pack_cpu(w, codes, grid, grid_group);
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

// codes and grid of nf4 or fp8e4m3 for w: (groups,group)
inline void quantize_codebook(int8_t* codes, Grid* grid, const float* w, WeightFormat format, int64_t groups,
                              int64_t group, Device dev) {
    NVTX_RANGE("quantize_codebook");
    if (weight_format_integer(format)) fail("quantize_codebook: nf4 or fp8e4m3; fake_quant_forward has the integers");
    if (groups == 0 || group == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(quantize_codebook_kernel, (unsigned)groups, QW_BLOCK, 0, dev.stream, codes, grid, w, format, group);
        return;
    }
#endif
    (void)dev;
    quantize_codebook_cpu(codes, grid, w, format, groups, group);
}
