// Fake quantization: w -> Q(w), a value of the integer grid written back as a number, and its straight-through
// backward. In a bf16 build the product code x scale (up to 16 bits of mantissa) is rounded once more.
//   symmetric   s = amax / ((2^b - 1)/2)           q = clamp(rint(w/s), -2^(b-1), 2^(b-1)-1)      Q(w) = q s
//   asymmetric  s = (max - min)/(2^b - 1), z = rint(-min/s)   q = clamp(rint(w/s) + z, 0, 2^b-1)  Q(w) = (q - z) s
// min and max include 0. s is rounded to bf16 and is at least 2^-14, so that fp16 and bf16 containers hold it exactly;
// rounding is half to even. This is the grid of compressed-tensors and torchao (amax/7.5 at 4 bits: -8 is used).
//   backward    identity: dw = dQ;   clipped: dw = dQ where w/s (+ z) lies inside the code range, else 0
//               (Bengio et al. 2013; the clipped form is PACT's and torchao's)
// A group is `group` consecutive numbers of the row-major matrix: a slice of a row, a row (channel), or all of it
// (tensor). Everything below therefore sees [groups, group] and needs no other shape.
//
// Both devices give the same bits. The functions below are shared; min and max do not depend on the order, and are
// taken by comparisons that skip NaN; and no product is added to anything (nvcc would fuse the two, a CPU might not):
// w/s is a division, IEEE under nvcc's defaults as under g++'s, rint(w/s) + z adds integers, (q - z) s multiplies a
// difference. The trap: -use_fast_math would break all of it.
//
// Traffic in bytes, least and moved: forward 4 read, 2 (bf16) + 1 (code) written a weight, and 1 read where codes are
// compared; min and max need a second pass over w, which the L1 or L2 cache serves (a group above 16,384 numbers, a
// whole tensor: memory if it does not fit, 4 more). Backward 12.
// Launch. Forward and backward: 8, 32 or 256 threads a group, 256 a block, 4 weights a thread at a time; a group above
// 16,384 is cut into pieces of 8,192, and its min and max come from two kernels before: a pair a piece, then a block a
// group. Changed codes are counted by an integer atomic a block, whose sum does not depend on the order.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>
#include "../runtime/device.h"
#include "../runtime/math.h"
#include "quant_format.cuh"

HOST_DEVICE float quant_low(int bits, bool symmetric) { return symmetric ? -(float)(1 << (bits - 1)) : 0.0f; }
HOST_DEVICE float quant_high(int bits, bool symmetric) {
    return symmetric ? (float)((1 << (bits - 1)) - 1) : (float)((1 << bits) - 1);
}

HOST_DEVICE Grid quant_grid(float min, float max, int bits, bool symmetric) {
    float levels = (float)((1 << bits) - 1);
    float amax = -min > max ? -min : max;
    float s = symmetric ? amax / (0.5f * levels) : (max - min) / levels;
    s = bf16_bits_to_float(float_to_bf16_bits(s));
    s = s < 6.103515625e-5f ? 6.103515625e-5f : s;
    float z = 0.0f;
    if (!symmetric) {
        z = rintf(-min / s);
        z = z < 0.0f ? 0.0f : (z > levels ? levels : z);
    }
    return Grid{s, z};
}

HOST_DEVICE float quant_code(float w, Grid g, float low, float high) {
    float q = rintf(w / g.scale) + g.zero;
    q = q < low ? low : q;
    return q > high ? high : q;
}

// Quantize groups [groups, group] of w into out. compute_grid: measure the scale here (dynamic) or use grid as given
// (static). codes (may be null) holds the previous codes and receives the new ones; returns how many changed.
inline int64_t fake_quant_forward_cpu(floatX* out,     // [groups, group]
                                      int8_t* codes,   // [groups, group]; asymmetric codes are stored minus 2^(b-1)
                                      Grid* grid,      // [groups]
                                      const float* w,  // [groups, group]
                                      int64_t groups, int64_t group, int bits, bool symmetric, bool compute_grid) {
    float low = quant_low(bits, symmetric), high = quant_high(bits, symmetric);
    float shift = symmetric ? 0.0f : (float)(1 << (bits - 1));
    if (compute_grid) {
        // one group may be the whole tensor: reduce in blocks, since min and max do not depend on the order
        const int64_t block = 4096, per_group = (group + block - 1) / block;
        std::vector<float> lo(groups * per_group), hi(groups * per_group);
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < groups * per_group; i++) {
            int64_t start = i % per_group * block, n = group - start < block ? group - start : block;
            const float* x = w + i / per_group * group + start;
            float min = 0.0f, max = 0.0f;
#pragma omp simd reduction(min : min) reduction(max : max)
            for (int64_t j = 0; j < n; j++) {
                min = x[j] < min ? x[j] : min;
                max = x[j] > max ? x[j] : max;
            }
            lo[i] = min;
            hi[i] = max;
        }
#pragma omp parallel for schedule(static)
        for (int64_t g = 0; g < groups; g++) {
            float min = 0.0f, max = 0.0f;
            for (int64_t i = g * per_group; i < (g + 1) * per_group; i++) {
                min = lo[i] < min ? lo[i] : min;
                max = hi[i] > max ? hi[i] : max;
            }
            grid[g] = quant_grid(min, max, bits, symmetric);
        }
    }
    int64_t changed = 0;
    int64_t pieces = group > 4096 ? (group + 4095) / 4096 : 1, piece = pieces > 1 ? 4096 : group;
#pragma omp parallel for schedule(static) reduction(+ : changed)
    for (int64_t i = 0; i < groups * pieces; i++) {
        Grid g = grid[i / pieces];
        int64_t start = i / pieces * group + i % pieces * piece, end = i / pieces * group + group;
        if (start + piece < end) end = start + piece;
        int flips = 0;
        if (codes) {
            INDEPENDENT
            for (int64_t j = start; j < end; j++) {
                float q = quant_code(w[j], g, low, high);
                int8_t code = (int8_t)(q - shift);
                flips += code != codes[j];
                codes[j] = code;
                out[j] = (q - g.zero) * g.scale;
            }
        } else {
            INDEPENDENT
            for (int64_t j = start; j < end; j++) out[j] = (quant_code(w[j], g, low, high) - g.zero) * g.scale;
        }
        changed += flips;
    }
    return changed;
}

// The clipped straight-through mask, in place on the gradient of Q(w); the identity rule needs no kernel.
inline void fake_quant_backward_cpu(float* dw,         // [groups, group]
                                    const float* w,    // [groups, group]
                                    const Grid* grid,  // [groups]
                                    int64_t groups, int64_t group, int bits, bool symmetric) {
    float low = quant_low(bits, symmetric), high = quant_high(bits, symmetric);
#pragma omp parallel for schedule(static)
    for (int64_t g = 0; g < groups; g++) {
        float s = grid[g].scale, z = grid[g].zero;
        INDEPENDENT
        for (int64_t j = g * group; j < (g + 1) * group; j++) {
            float x = w[j] / s + z;
            dw[j] = x >= low && x <= high ? dw[j] : 0.0f;
        }
    }
}

// how many of n codes differ
inline int64_t codes_changed_cpu(const int8_t* codes, const int8_t* initial, int64_t n) {
    int64_t total = 0;
#pragma omp parallel for simd schedule(static) reduction(+ : total)
    for (int64_t i = 0; i < n; i++) total += codes[i] != initial[i];
    return total;
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
static constexpr int QUANT_BLOCK = 256;
static constexpr int64_t QUANT_WHOLE = 16384, QUANT_PIECE = 8192;  // the largest group in one piece; otherwise

struct QuantRange {
    float min, max;
};

__device__ inline QuantRange quant_range_join(QuantRange a, QuantRange b) {
    return QuantRange{b.min < a.min ? b.min : a.min, b.max > a.max ? b.max : a.max};
}

// over LANES neighbouring threads; every one of them gets it. All threads of the block must call it.
template <int LANES>
__device__ inline QuantRange quant_range_reduce(QuantRange r) {
    constexpr int WARP_LANES = LANES < 32 ? LANES : 32;
    for (int offset = WARP_LANES / 2; offset > 0; offset /= 2) {
        QuantRange other;
        other.min = __shfl_xor_sync(0xFFFFFFFFu, r.min, offset);
        other.max = __shfl_xor_sync(0xFFFFFFFFu, r.max, offset);
        r = quant_range_join(r, other);
    }
    if constexpr (LANES > 32) {
        static_assert(LANES == QUANT_BLOCK, "a group has up to a warp, or the block");
        __shared__ QuantRange part[QUANT_BLOCK / 32];
        if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = r;
        __syncthreads();
        for (int w = 0; w < QUANT_BLOCK / 32; w++) r = quant_range_join(r, part[w]);
    }
    return r;
}

// of elements first, first + step, ... below n, 4 at a time
__device__ inline QuantRange quant_range(const float* w, int first, int step, int n, bool aligned) {
    QuantRange r = {0.0f, 0.0f};
    for (int i = first; i < n; i += step) {
        Pack128<float> x = load_pack(w, i, n, aligned);  // zeros behind the end: 0 belongs to every range
        for (int k = 0; k < 4; k++) r = quant_range_join(r, QuantRange{x[k], x[k]});
    }
    return r;
}

// 4 values or codes, one store; p is a multiple of 4 elements from an aligned start
template <class T>
__device__ inline void quant_store4(T* p, const T* x) {
    if constexpr (sizeof(T) == 4) {
        int4 bits;
        memcpy(&bits, x, 16);
        *reinterpret_cast<int4*>(p) = bits;
    } else if constexpr (sizeof(T) == 2) {
        int2 bits;
        memcpy(&bits, x, 8);
        *reinterpret_cast<int2*>(p) = bits;
    } else {
        int bits;
        memcpy(&bits, x, 4);
        *reinterpret_cast<int*>(p) = bits;
    }
}

// adds a block's count to a counter. Called by all threads; a block counts at most 16,384, exact in float
__device__ inline void quant_count(int64_t* counter, int count) {
    int total = (int)block_reduce_sum((float)count);
    if (threadIdx.x == 0 && total) atomicAdd(reinterpret_cast<unsigned long long*>(counter), (unsigned long long)total);
}

// Where a thread works: piece number `piece` of the groups (there are `pieces` a group), LANES threads each
struct QuantPlace {
    int64_t group, start;  // start: of the piece, in the matrix
    int n;                 // elements of the piece; 0: nothing to do
};

template <int LANES>
__device__ inline QuantPlace quant_place(int64_t groups, int64_t group, int64_t pieces, int64_t size) {
    int64_t piece = (int64_t)blockIdx.x * (QUANT_BLOCK / LANES) + threadIdx.x / LANES;
    QuantPlace p = {0, 0, 0};
    if (piece >= groups * pieces) return p;
    p.group = pieces == 1 ? piece : piece / pieces;
    int64_t offset = pieces == 1 ? 0 : piece % pieces * size;
    p.start = p.group * group + offset;
    p.n = (int)(group - offset < size ? group - offset : size);
    return p;
}

// ranges: [groups,pieces]. grid: groups * pieces
__global__ void fake_quant_range_kernel(QuantRange* ranges, const float* w, int64_t groups, int64_t group,
                                        int64_t pieces, int64_t size, bool aligned) {
    QuantPlace p = quant_place<QUANT_BLOCK>(groups, group, pieces, size);
    QuantRange r = quant_range(w + p.start, threadIdx.x * 4, QUANT_BLOCK * 4, p.n, aligned);
    r = quant_range_reduce<QUANT_BLOCK>(r);
    if (threadIdx.x == 0) ranges[blockIdx.x] = r;
}

// ranges: [groups,pieces]. grid: groups
__global__ void fake_quant_grid_kernel(Grid* grid, const QuantRange* ranges, int pieces, int bits, bool symmetric) {
    QuantRange r = {0.0f, 0.0f};
    for (int i = threadIdx.x; i < pieces; i += QUANT_BLOCK)
        r = quant_range_join(r, ranges[(int64_t)blockIdx.x * pieces + i]);
    r = quant_range_reduce<QUANT_BLOCK>(r);
    if (threadIdx.x == 0) grid[blockIdx.x] = quant_grid(r.min, r.max, bits, symmetric);
}

// compute_grid: only with pieces 1. grid: CEIL_DIV(groups * pieces, QUANT_BLOCK / LANES)
template <int LANES>
__global__ void fake_quant_forward_kernel(floatX* out, int8_t* codes, Grid* grid, const float* w, int64_t* changed,
                                          int64_t groups, int64_t group, int64_t pieces, int64_t size, int bits,
                                          bool symmetric, bool compute_grid, bool aligned) {
    QuantPlace p = quant_place<LANES>(groups, group, pieces, size);
    int first = threadIdx.x % LANES * 4;
    Grid g = {1.0f, 0.0f};
    if (compute_grid) {
        QuantRange r = quant_range_reduce<LANES>(quant_range(w + p.start, first, LANES * 4, p.n, aligned));
        g = quant_grid(r.min, r.max, bits, symmetric);
        if (first == 0 && p.n) grid[p.group] = g;
    } else if (p.n) {
        g = grid[p.group];
    }
    float low = quant_low(bits, symmetric), high = quant_high(bits, symmetric);
    float shift = symmetric ? 0.0f : (float)(1 << (bits - 1));
    int flips = 0;
    for (int i = first; i < p.n; i += LANES * 4) {
        Pack128<float> x = load_pack(w + p.start, i, p.n, aligned);
        bool whole = aligned && i + 4 <= p.n;
        floatX value[4];
        int8_t code[4], old[4];
        if (codes && whole) {
            int four = *reinterpret_cast<const int*>(codes + p.start + i);
            memcpy(old, &four, 4);
        }
        for (int k = 0; k < 4; k++) {
            float q = quant_code(x[k], g, low, high);
            code[k] = (int8_t)(q - shift);
            value[k] = (floatX)((q - g.zero) * g.scale);
        }
        if (whole) {
            quant_store4(out + p.start + i, value);
            if (codes) {
                quant_store4(codes + p.start + i, code);
                for (int k = 0; k < 4; k++) flips += code[k] != old[k];
            }
        } else {
            for (int k = 0; k < 4; k++) {
                if (i + k >= p.n) continue;
                out[p.start + i + k] = value[k];
                if (!codes) continue;
                flips += code[k] != codes[p.start + i + k];
                codes[p.start + i + k] = code[k];
            }
        }
    }
    if (codes) quant_count(changed, flips);
}

// grid: as the forward
template <int LANES>
__global__ void fake_quant_backward_kernel(float* dw, const float* w, const Grid* grid, int64_t groups, int64_t group,
                                           int64_t pieces, int64_t size, int bits, bool symmetric, bool aligned) {
    QuantPlace p = quant_place<LANES>(groups, group, pieces, size);
    if (p.n == 0) return;
    float s = grid[p.group].scale, z = grid[p.group].zero;
    float low = quant_low(bits, symmetric), high = quant_high(bits, symmetric);
    for (int i = threadIdx.x % LANES * 4; i < p.n; i += LANES * 4) {
        Pack128<float> x = load_pack(w + p.start, i, p.n, aligned), d = load_pack(dw + p.start, i, p.n, aligned);
        for (int k = 0; k < 4; k++) {
            float q = x[k] / s + z;
            d[k] = q >= low && q <= high ? d[k] : 0.0f;
        }
        store_pack(dw + p.start, i, p.n, aligned, d);
    }
}

// 16 codes a thread. grid: CEIL_DIV(n, QUANT_BLOCK * 16)
__global__ void codes_changed_kernel(int64_t* changed, const int8_t* codes, const int8_t* initial, int64_t n,
                                     bool aligned) {
    int64_t first = ((int64_t)blockIdx.x * QUANT_BLOCK + threadIdx.x) * 16;
    int left = first >= n ? 0 : n - first < 16 ? (int)(n - first) : 16, count = 0;
    if (left) {
        Pack128<int8_t> a = load_pack(codes + first, 0, left, aligned);
        Pack128<int8_t> b = load_pack(initial + first, 0, left, aligned);
        for (int k = 0; k < 16; k++) count += a[k] != b[k];
    }
    quant_count(changed, count);
}

// how the kernels cut the groups
struct QuantCut {
    int64_t pieces, size;
    bool aligned;
};

inline QuantCut quant_cut(const float* w, const void* other, int64_t groups, int64_t group) {
    QuantCut c;
    c.size = group > QUANT_WHOLE ? QUANT_PIECE : group;
    c.pieces = CEIL_DIV(group, c.size);
    c.aligned = (groups == 1 || group % 4 == 0) && is_aligned16(w, 0) && reinterpret_cast<uintptr_t>(other) % 16 == 0;
    return c;
}

// launch(lanes, blocks)
template <class F>
inline void quant_launch(const QuantCut& c, int64_t groups, const F& launch) {
    int64_t all = groups * c.pieces;
    if (c.size <= 64) launch(Int<8>(), (unsigned)CEIL_DIV(all, QUANT_BLOCK / 8));
    else if (c.size <= 1024) launch(Int<32>(), (unsigned)CEIL_DIV(all, QUANT_BLOCK / 32));
    else launch(Int<QUANT_BLOCK>(), (unsigned)all);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

inline void quant_check(const char* name, int64_t groups, int64_t group, int bits) {
    if (groups < 0 || groups > INT32_MAX || group < 1 || bits < 1 || bits > 8 ||
        groups * CEIL_DIV(group, 8192) > INT32_MAX)
        fail("%s: bad shape: %lld groups of %lld at %d bits (1 to 8 bits, fewer than 2^31 groups)", name,
             (long long)groups, (long long)group, bits);
}

// out: [groups,group] = Q(w); codes: [groups,group] or null, the codes before and after; grid: [groups], measured here
// (compute_grid) or read; w: [groups,group]. The number of codes that changed is added to *changed, which lies where
// the codes do (null without codes).
inline void fake_quant_forward(floatX* out, int8_t* codes, Grid* grid, const float* w, int64_t groups, int64_t group,
                               int bits, bool symmetric, bool compute_grid, int64_t* changed, Device dev) {
    NVTX_RANGE("fake_quant_forward");
    quant_check("fake_quant_forward", groups, group, bits);
    if (groups == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        QuantCut c = quant_cut(w, out, groups, group);
        c.aligned = c.aligned && reinterpret_cast<uintptr_t>(codes) % 4 == 0;
        if (compute_grid && c.pieces > 1) {
            Scratch scratch(2 * (size_t)(groups * c.pieces), dev);
            QuantRange* ranges = reinterpret_cast<QuantRange*>(scratch.data);
            LAUNCH(fake_quant_range_kernel, (unsigned)(groups * c.pieces), QUANT_BLOCK, 0, dev.stream, ranges, w,
                   groups, group, c.pieces, c.size, c.aligned);
            LAUNCH(fake_quant_grid_kernel, (unsigned)groups, QUANT_BLOCK, 0, dev.stream, grid, ranges, (int)c.pieces,
                   bits, symmetric);
            compute_grid = false;
        }
        quant_launch(c, groups, [&](auto lanes, unsigned blocks) {
            LAUNCH(fake_quant_forward_kernel<decltype(lanes)::value>, blocks, QUANT_BLOCK, 0, dev.stream, out, codes,
                   grid, w, changed, groups, group, c.pieces, c.size, bits, symmetric, compute_grid, c.aligned);
        });
        return;
    }
#endif
    (void)dev;
    int64_t count = fake_quant_forward_cpu(out, codes, grid, w, groups, group, bits, symmetric, compute_grid);
    if (codes) *changed += count;
}

// the clipped straight-through mask, in place. dw, w: [groups,group]; grid: [groups]
inline void fake_quant_backward(float* dw, const float* w, const Grid* grid, int64_t groups, int64_t group, int bits,
                                bool symmetric, Device dev) {
    NVTX_RANGE("fake_quant_backward");
    quant_check("fake_quant_backward", groups, group, bits);
    if (groups == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        QuantCut c = quant_cut(w, dw, groups, group);
        quant_launch(c, groups, [&](auto lanes, unsigned blocks) {
            LAUNCH(fake_quant_backward_kernel<decltype(lanes)::value>, blocks, QUANT_BLOCK, 0, dev.stream, dw, w, grid,
                   groups, group, c.pieces, c.size, bits, symmetric, c.aligned);
        });
        return;
    }
#endif
    (void)dev;
    fake_quant_backward_cpu(dw, w, grid, groups, group, bits, symmetric);
}

// *changed += how many of n codes differ. codes, initial: [n]; changed lies where they do
inline void codes_changed(int64_t* changed, const int8_t* codes, const int8_t* initial, int64_t n, Device dev) {
    NVTX_RANGE("codes_changed");
    if (n <= 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(codes_changed_kernel, (unsigned)CEIL_DIV(n, QUANT_BLOCK * 16), QUANT_BLOCK, 0, dev.stream, changed,
               codes, initial, n, is_aligned16(codes, 0) && is_aligned16(initial, 0));
        return;
    }
#endif
    (void)dev;
    *changed += codes_changed_cpu(codes, initial, n);
}
