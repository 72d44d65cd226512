// The KV cache as codes: each token's key and value quantized by themselves, one scale a head, or one for each `group`
// numbers of a head (kernels/quant_format.cuh has the formats).
//
//   kv_quantize   out = floatX(Q(x)), and the codes of Q(x) go to the cache row that writes[t] names
//   with a bias   out = floatX(Q(x) + b): a column of Qwen2's large bias of k would take the range of its head, so that
//                 keys may be quantized before it is added, and before RoPE (KVQuant, arXiv 2401.18079, section 3.2).
//                 A read adds b and rotates, at the position that the row has in its sequence.
//
// A scale is that of one token alone, so neither the batch nor the other tokens change a number. Trainer and prefill
// attend to `out`, decode to what it reads from the codes: the same bits (kv_value), and the ratio of step 0 is 1. The
// straight-through backward is the identity and needs no code.
//
// A row of the cache, for keys or values, kv_row_words() words:
//   word of head h and group i at h (HD / group) + i: integers bf16(scale) << 16 | zero point, others the fp32 scale
//   from kv_codes_word() on: the code of head h, number d at bit (h HD + d) bits, from the lowest bit of each byte.
//   Integers are stored as code + 2^(b-1). 8 bits hold int8, int6, int5, fp8 and mxfp8; 4 bits int4, int3, nf4, mxfp4,
//   mid4 and mid3; 2 bits int2 and mid2.
// Bytes a token and layer for keys and values, NKV 3 and HD 64: bf16 768, 8 bits 416, 4 bits 224, 2 bits 128.
//
// A group with a number that is not finite becomes NaN as a whole, so that a loss shows it; integers could not hold it.
//
// The trap: level * scale + bias is written as one fused multiply-add, so that no compiler decides on it.
//
// Traffic in bytes for bf16, least and moved: kv_quantize 4 + b/8 a number. Launch: a warp a head of a token.
#pragma once
#include <cstdint>
#include "quant_format.cuh"
#include "rope.cuh"
#include "rows.cuh"
#include "../runtime/parallel.h"

struct KvQuant {
    QuantSpec spec;
    int NKV = 0, HD = 0;
    int group = 0;  // numbers that share a scale; divides HD, and a group's codes fill whole bytes
    int bits = 0;   // of a stored code: 8, 4 or 2; 0: no quantizer
};

// What a read does to keys that were quantized before their bias; without a bias: nothing
struct KeyRotation {
    const floatX* bias = nullptr;                // [NKV*HD]
    const float *cos = nullptr, *sin = nullptr;  // [positions, HD/2]
};

// One place of the cache, for one layer: rows of codes
struct KeyValueCodes {
    const uint32_t *k = nullptr, *v = nullptr;  // [rows, kv_row_words]
    KvQuant quant;
    KeyRotation rotation;
};

HOST_DEVICE int kv_stored_bits(QuantSpec spec) { return spec.bits > 4 ? 8 : spec.bits > 2 ? 4 : 2; }

HOST_DEVICE int kv_codes_word(const KvQuant& q) { return CEIL_DIV(q.NKV * (q.HD / q.group), 2) * 2; }

HOST_DEVICE int64_t kv_row_words(const KvQuant& q) {
    return CEIL_DIV(kv_codes_word(q) + CEIL_DIV(q.NKV * q.HD * q.bits, 32), 4) * 4;
}

// the codes of a head
HOST_DEVICE uint8_t* kv_codes(const KvQuant& q, uint32_t* row, int head) {
    return reinterpret_cast<uint8_t*>(row + kv_codes_word(q)) + head * q.HD * q.bits / 8;
}
HOST_DEVICE const uint8_t* kv_codes(const KvQuant& q, const uint32_t* row, int head) {
    return kv_codes(q, const_cast<uint32_t*>(row), head);
}

HOST_DEVICE uint32_t kv_grid_word(const KvQuant& q, Grid g) {
    if (!quant_is_integer(q.spec)) return float_bits(g.scale);
    return (uint32_t)float_to_bf16_bits(g.scale) << 16 | (uint32_t)(int)g.zero;
}
HOST_DEVICE Grid kv_grid(const KvQuant& q, uint32_t word) {
    if (!quant_is_integer(q.spec)) return Grid{bits_float(word), 0.0f};
    return Grid{bf16_bits_to_float((uint16_t)(word >> 16)), (float)(word & 0xFFFFu)};
}

// finite: every number of the group is
HOST_DEVICE Grid kv_measured_grid(const KvQuant& q, float min, float max, bool finite) {
    return finite ? quant_grid(q.spec, min, max, 1.0f, 1.0f) : Grid{bits_float(0x7FC00000u), 0.0f};
}

HOST_DEVICE uint32_t kv_encode(const KvQuant& q, float x, Grid g) {
    if (g.scale != g.scale) return 0;
    int code = quant_code(q.spec, x, g);
    if (quant_is_integer(q.spec)) return (uint32_t)(code + (1 << (q.spec.bits - 1)));
    return (uint32_t)code & ((1u << q.bits) - 1);
}

// what a stored code stands for: level * scale
HOST_DEVICE float kv_level(const KvQuant& q, uint32_t stored, Grid g) {
    int code = quant_is_integer(q.spec) ? (int)stored - (1 << (q.spec.bits - 1)) : (int)stored;
    return quant_value(q.spec, code, Grid{1.0f, g.zero});
}

HOST_DEVICE floatX kv_value(const KvQuant& q, uint32_t stored, Grid g, const floatX* bias) {
    float level = kv_level(q, stored, g);
    return bias ? (floatX)mul_add(level, g.scale, (float)*bias) : (floatX)(level * g.scale);
}

// The numbers of one byte, from number j of a head on: their values to y, which may be x; returns their codes
HOST_DEVICE uint8_t kv_quantize_byte(const KvQuant& q, floatX* y, const floatX* x, const floatX* bias, Grid g, int j) {
    uint32_t byte = 0;
    for (int e = 0; e < 8 / q.bits; e++) {
        uint32_t stored = kv_encode(q, (float)x[j + e], g);
        byte |= stored << (e * q.bits);
        y[j + e] = kv_value(q, stored, g, bias ? bias + j + e : nullptr);
    }
    return (uint8_t)byte;
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

inline void kv_quantize_cpu(KvQuant q, floatX* out, int64_t out_stride,        // [T, NKV*HD] at out_stride; may be inp
                            const floatX* inp, int64_t inp_stride,             // the same at inp_stride
                            const floatX* bias,                                // [NKV*HD] or null
                            uint32_t* const cache[2], const CacheRow* writes,  // [T]; null: no cache
                            int64_t T) {
    const int groups = q.HD / q.group, per_byte = 8 / q.bits;
#pragma omp parallel for schedule(static) if (worth_threads(T * q.NKV * q.HD))
    for (int64_t i = 0; i < T * q.NKV; i++) {
        int64_t t = i / q.NKV, head = i % q.NKV;
        const floatX* x = inp + t * inp_stride + head * q.HD;
        const floatX* b = bias ? bias + head * q.HD : nullptr;
        floatX* y = out + t * out_stride + head * q.HD;
        uint32_t* row =
            writes && writes[t].row >= 0 ? cache[writes[t].place] + writes[t].row * kv_row_words(q) : nullptr;
        for (int g = 0; g < groups; g++) {
            int start = g * q.group, end = start + q.group;
            float min = 0.0f, max = 0.0f;
            bool finite = true;
            for (int j = start; j < end; j++) {
                min = (float)x[j] < min ? (float)x[j] : min;
                max = (float)x[j] > max ? (float)x[j] : max;
                finite &= (float)x[j] - (float)x[j] == 0.0f;
            }
            Grid grid = kv_measured_grid(q, min, max, finite);
            if (row) row[head * groups + g] = kv_grid_word(q, grid);
            for (int j = start; j < end; j += per_byte) {
                uint8_t byte = kv_quantize_byte(q, y, x, b, grid, j);
                if (row) kv_codes(q, row, (int)head)[j / per_byte] = byte;
            }
        }
    }
}

// the levels of stored codes, for formats that are not integers
struct KvLevels {
    float level[256];
};
inline KvLevels kv_levels(const KvQuant& q) {
    KvLevels t;
    for (uint32_t u = 0; u < 256; u++) t.level[u] = kv_level(q, u & ((1u << q.bits) - 1), Grid{1.0f, 0.0f});
    return t;
}

// out [n] from the codes at p, of one group
template <int BITS, class Level>
inline void kv_read_group_cpu(floatX* out, const uint8_t* p, int n, float scale, Level level) {
    constexpr int PER_BYTE = 8 / BITS;
    const int bytes = n / PER_BYTE;
    INDEPENDENT
    for (int i = 0; i < bytes; i++)
        for (int e = 0; e < PER_BYTE; e++)
            out[PER_BYTE * i + e] = level((uint32_t)p[i] >> (e * BITS) & ((1u << BITS) - 1)) * scale;
}

// out [HD]: head `head` of a row as decode attends to it, before any bias
inline void kv_read_head_cpu(floatX* out, const KvQuant& q, const KvLevels& levels, const uint32_t* row, int head) {
    const int groups = q.HD / q.group;
    for (int g = 0; g < groups; g++) {
        Grid grid = kv_grid(q, row[head * groups + g]);
        const uint8_t* p = kv_codes(q, row, head) + g * q.group * q.bits / 8;
        auto read = [&](auto level) {
            floatX* to = out + g * q.group;
            if (q.bits == 8) kv_read_group_cpu<8>(to, p, q.group, grid.scale, level);
            else if (q.bits == 4) kv_read_group_cpu<4>(to, p, q.group, grid.scale, level);
            else kv_read_group_cpu<2>(to, p, q.group, grid.scale, level);
        };
        float zero = q.spec.symmetric ? (float)(1 << (q.spec.bits - 1)) : grid.zero;
        if (quant_is_integer(q.spec)) read([=](uint32_t u) { return (float)(int)u - zero; });
        else read([&](uint32_t u) { return levels.level[u]; });
    }
}

// the key of a row whose bias is still to be added, at its position; out [HD]
inline void kv_read_key_cpu(floatX* out, const KvQuant& q, const KeyRotation& r, const uint32_t* row, int head,
                            int64_t position) {
    const int half = q.HD / 2, per_byte = 8 / q.bits, groups = q.HD / q.group;
    const uint8_t* codes = kv_codes(q, row, head);
    for (int d = 0; d < q.HD; d++) {
        uint32_t stored = (uint32_t)codes[d / per_byte] >> (d % per_byte * q.bits) & ((1u << q.bits) - 1);
        out[d] = kv_value(q, stored, kv_grid(q, row[head * groups + d / q.group]), r.bias + head * q.HD + d);
    }
    const float *c = r.cos + position * half, *s = r.sin + position * half;
    for (int d = 0; d < half; d++) {
        RopePair pair = rope_rotate((float)out[d], (float)out[d + half], c[d], s[d]);
        out[d] = pair.x1, out[d + half] = pair.x2;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
static constexpr int KV_QUANT_WARPS = 4;

// where codes go: one layer's base of each place of the cache; rows null: nowhere
struct KvWrites {
    uint32_t* place[2];
    const CacheRow* rows;  // [T]
};

// a warp a head of a token. grid: CEIL_DIV(T * NKV, KV_QUANT_WARPS)
__global__ void kv_quantize_kernel(KvQuant q, floatX* out, int64_t out_stride, const floatX* inp, int64_t inp_stride,
                                   const floatX* bias, KvWrites writes, int64_t T) {
    int64_t i = (int64_t)blockIdx.x * KV_QUANT_WARPS + threadIdx.x / 32;
    if (i >= T * q.NKV) return;
    int64_t t = i / q.NKV;
    int head = (int)(i % q.NKV), lane = threadIdx.x % 32, groups = q.HD / q.group, per_byte = 8 / q.bits;
    const floatX* x = inp + t * inp_stride + (int64_t)head * q.HD;
    const floatX* b = bias ? bias + head * q.HD : nullptr;
    floatX* y = out + t * out_stride + (int64_t)head * q.HD;
    uint32_t* row = nullptr;
    const CacheRow to = writes.rows ? writes.rows[t] : CacheRow{0, -1};
    if (to.row >= 0) row = (to.place ? writes.place[1] : writes.place[0]) + to.row * kv_row_words(q);
    for (int g = 0; g < groups; g++) {
        int start = g * q.group, end = start + q.group;
        float min = 0.0f, max = 0.0f, odd = 0.0f;  // odd: 1 if a number is not finite
        for (int j = start + lane; j < end; j += 32) {
            min = (float)x[j] < min ? (float)x[j] : min;
            max = (float)x[j] > max ? (float)x[j] : max;
            odd = (float)x[j] - (float)x[j] == 0.0f ? odd : 1.0f;
        }
        min = -group_reduce_max<32>(-min), max = group_reduce_max<32>(max), odd = group_reduce_max<32>(odd);
        Grid grid = kv_measured_grid(q, min, max, odd == 0.0f);
        if (row && lane == 0) row[head * groups + g] = kv_grid_word(q, grid);
        for (int j = start + lane * per_byte; j < end; j += 32 * per_byte) {
            uint8_t byte = kv_quantize_byte(q, y, x, b, grid, j);
            if (row) kv_codes(q, row, head)[j / per_byte] = byte;
        }
    }
}

// the stored codes of W numbers from number c of a head on, the first in the lowest bits. c is a multiple of W, HD of
// 8, so that their bytes are aligned as one number
template <int W>
__device__ inline uint64_t kv_load_codes(const KvQuant& q, const uint8_t* codes, int c) {
    const uint8_t* p = codes + c * q.bits / 8;
    switch (W * q.bits / 8) {
        case 8:
            return *reinterpret_cast<const uint64_t*>(p);
        case 4:
            return *reinterpret_cast<const uint32_t*>(p);
        case 2:
            return *reinterpret_cast<const uint16_t*>(p);
        default:
            return *p;
    }
}

__device__ inline uint32_t kv_stored(const KvQuant& q, const uint8_t* codes, int d) {
    int bit = d * q.bits;
    return (uint32_t)codes[bit / 8] >> (bit % 8) & ((1u << q.bits) - 1);
}

__device__ inline Grid kv_grid_of(const KvQuant& q, const uint32_t* row, int head, int d) {
    return kv_grid(q, q.group == q.HD ? row[head] : row[head * (q.HD / q.group) + d / q.group]);
}

// numbers c, c + 1, ... of a head of a row, zeros beyond HD
__device__ inline Pack128<floatX> kv_read_pack(const KvQuant& q, const uint32_t* row, int head, int c) {
    constexpr int W = Pack128<floatX>::size;
    const uint8_t* codes = kv_codes(q, row, head);
    Pack128<floatX> pack;
    if (q.HD % 8 == 0 && q.group % W == 0) {
        uint64_t stored = kv_load_codes<W>(q, codes, c);
        Grid g = kv_grid_of(q, row, head, c);
        UNROLL
        for (int e = 0; e < W; e++)
            pack[e] = kv_value(q, (uint32_t)(stored >> (e * q.bits)) & ((1u << q.bits) - 1), g, nullptr);
        return pack;
    }
    for (int e = 0; e < W; e++)
        pack[e] = c + e < q.HD ? kv_value(q, kv_stored(q, codes, c + e), kv_grid_of(q, row, head, c + e), nullptr)
                               : floatX(0.0f);
    return pack;
}

// numbers d and d + HD/2 of a key whose bias is still to be added
__device__ inline RopePair kv_read_key(const KvQuant& q, const KeyRotation& r, const uint32_t* row, int head, int d,
                                       int64_t position) {
    int half = q.HD / 2;
    const uint8_t* codes = kv_codes(q, row, head);
    const floatX* bias = r.bias + head * q.HD;
    floatX x1 = kv_value(q, kv_stored(q, codes, d), kv_grid_of(q, row, head, d), bias + d);
    floatX x2 = kv_value(q, kv_stored(q, codes, d + half), kv_grid_of(q, row, head, d + half), bias + d + half);
    return rope_rotate((float)x1, (float)x2, r.cos[position * half + d], r.sin[position * half + d]);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

// out, inp: [T, NKV*HD] at their strides, out may be inp; bias: [NKV*HD] or null; cache: one layer's base of each
// place, and writes: [T], distinct, where the codes go (row -1: nowhere); writes null: no cache
inline void kv_quantize(const KvQuant& q, floatX* out, int64_t out_stride, const floatX* inp, int64_t inp_stride,
                        const floatX* bias, uint32_t* const cache[2], const CacheRow* writes, int64_t T, Device dev) {
    NVTX_RANGE("kv_quantize");
    if (q.bits != kv_stored_bits(q.spec) || q.NKV < 1 || q.group < 1 || q.HD % q.group || q.group * q.bits % 8 || T < 0)
        fail("kv_quantize: bad shape: T %lld, NKV %d, HD %d, groups of %d at %d bits", (long long)T, q.NKV, q.HD,
             q.group, q.bits);
    if (T == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        int64_t blocks = CEIL_DIV(T * q.NKV, KV_QUANT_WARPS);
        if (blocks > INT32_MAX) fail("kv_quantize: %lld tokens are too many", (long long)T);
        KvWrites to = {{writes ? cache[0] : nullptr, writes ? cache[1] : nullptr}, writes};
        LAUNCH(kv_quantize_kernel, (unsigned)blocks, KV_QUANT_WARPS * 32, 0, dev.stream, q, out, out_stride, inp,
               inp_stride, bias, to, T);
        return;
    }
#endif
    (void)dev;
    kv_quantize_cpu(q, out, out_stride, inp, inp_stride, bias, cache, writes, T);
}
