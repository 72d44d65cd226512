// Fake quantization: w -> Q(w), a value of the quantizer's grid written back as a number, and its straight-through
// backward. Formats, grids, codes and rules are those of quant_format.cuh; here are the loops over a matrix, the same
// for weights (fp32 masters, whose codes and grids are kept) and for activations (floatX, measured at each call). In a
// bf16 build the product code x scale (up to 16 bits of mantissa) is rounded once more.
//
// A group is `group` consecutive numbers of the row-major matrix that share a scale: a slice of a row, a row (channel,
// token), or all of it (tensor). Everything below therefore sees [groups, group] and needs no other shape, except
// 128x128 blocks: their groups are the 128 numbers of one row, and the scale is joined over 128 rows (fewer at the end)
// and stored for each of them.
//
// Both devices give the same bits. min and max do not depend on the order, and are taken by comparisons that skip NaN;
// means are sums of integers (quant_fixed); the squared errors of rule mse are added along the group by fmaf, a
// candidate at a time; w/s is a division, IEEE under nvcc's defaults as under g++'s. The trap: -use_fast_math would
// break all of it.
//
// Traffic in bytes, least and moved: forward 4 read, 2 (bf16) + 1 (code) written a weight, and 1 read where codes are
// compared; where min and max need a second pass over w, the L1 or L2 cache serves it (a group above 16,384 numbers, a
// whole tensor, 128x128, nvfp4, ternary, mse, gauss: memory if it does not fit, 4 more). Backward 12.
// Launch. Forward and backward: 8, 32 or 256 threads a group, 256 a block, 4 weights a thread at a time; a group above
// 16,384 is cut into pieces of 8,192, and its min and max come from two kernels before: a pair a piece, then a block a
// group. mse: a warp a group, its lanes the candidates. Changed codes are counted by an integer atomic a block, whose
// sum does not depend on the order.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>
#include "../runtime/device.h"
#include "../runtime/math.h"
#include "../runtime/parallel.h"
#include "quant_format.cuh"

// how a matrix is cut
struct QuantGroups {
    int64_t groups = 0, group = 0;
    int64_t tiles = 0;  // 128x128: tiles side by side, cols / 128; group is 128
};
static constexpr int QUANT_TILE = 128;

// What stands behind the scales where a format quantizes them too. Views, where the grid is; null where it is not
// wanted
struct ScaleState {
    float* tensor = nullptr;   // [1]: nvfp4's t; the mean that double quantization subtracts
    uint8_t* codes = nullptr;  // [groups]: of the scales, with double quantization
    float* absmax = nullptr;   // [CEIL_DIV(groups, 256)]: of the scales less their mean
};

// What a forward writes. Views; null where it is not wanted
struct QuantOutput {
    floatX* out = nullptr;       // [groups, group] = Q(w)
    int8_t* codes = nullptr;     // [groups, group], before and after
    Grid* grid = nullptr;        // [groups], measured or read
    ScaleState state = {};       // written with grid
    int64_t* changed = nullptr;  // += how many codes changed; lies where they do
};

struct QuantRange {
    float min = 0.0f, max = 0.0f;
};

HOST_DEVICE QuantRange quant_range_join(QuantRange a, QuantRange b) {
    return QuantRange{b.min < a.min ? b.min : a.min, b.max > a.max ? b.max : a.max};
}
HOST_DEVICE float quant_range_amax(QuantRange r) { return -r.min > r.max ? -r.min : r.max; }

// What is measured of a group: its scale on a grid; or the largest size {amax, 0}; or both ends {max, min}
enum class GridOf : uint8_t { format, amax, ends };
struct QuantMeasure {
    QuantSpec q;
    GridOf of;
    HOST_DEVICE QuantMeasure(QuantSpec spec, GridOf what = GridOf::format) : q(spec), of(what) {}
};
HOST_DEVICE Grid quant_measured(QuantMeasure m, QuantRange r, float tensor_scale) {
    if (m.of == GridOf::amax) return Grid{quant_range_amax(r), 0.0f};
    if (m.of == GridOf::ends) return Grid{r.max, r.min};
    return quant_grid(m.q, r.min, r.max, tensor_scale, 1.0f);
}

inline ScaleOf quant_scale_of(QuantMeasure m) {
    if (m.of != GridOf::format) return ScaleOf::range;
    switch (m.q.rule) {
        case ScaleRule::mse:
            return ScaleOf::search;
        case ScaleRule::gauss:
            return ScaleOf::rms;
        case ScaleRule::amax:
        case ScaleRule::amax7:
        case ScaleRule::signedmax:
            break;
    }
    return quant_traits(m.q).scale_of;
}
inline bool quant_of_mean(ScaleOf of) { return of == ScaleOf::mean || of == ScaleOf::rms; }

// does a group's range alone give its scale? tensor_scale counts as known
inline bool quant_measured_alone(QuantSpec q, const QuantGroups& g, const ScaleState& state) {
    return quant_scale_of({q}) == ScaleOf::range && !g.tiles && !state.codes;
}
// are the scales fractions of one of the tensor that is measured too?
inline bool quant_measures_tensor(QuantSpec q, const ScaleState& state) {
    return quant_traits(q).tensor_scale && state.tensor;
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

static constexpr int64_t QUANT_CPU_PIECE = 4096;  // of a large group: a thread's share

template <class In>
inline QuantRange quant_range_cpu(const In* w, int64_t n) {
    float min = 0.0f, max = 0.0f;
#pragma omp simd reduction(min : min) reduction(max : max)
    for (int64_t j = 0; j < n; j++) {
        float x = w[j];
        min = x < min ? x : min;
        max = x > max ? x : max;
    }
    return QuantRange{min, max};
}

// of each group [groups, group]; one group may be the whole tensor
template <class In>
inline std::vector<QuantRange> quant_ranges_cpu(const In* w, int64_t groups, int64_t group) {
    const int64_t pieces = CEIL_DIV(group, QUANT_CPU_PIECE);
    std::vector<QuantRange> part(groups * pieces);
#pragma omp parallel for schedule(static) if (worth_threads(groups * group / 4))
    for (int64_t i = 0; i < groups * pieces; i++) {
        int64_t start = i % pieces * QUANT_CPU_PIECE, left = group - start;
        part[i] = quant_range_cpu(w + i / pieces * group + start, left < QUANT_CPU_PIECE ? left : QUANT_CPU_PIECE);
    }
    for (int64_t g = 0; g < groups && pieces > 1; g++) {
        QuantRange r;
        for (int64_t i = 0; i < pieces; i++) r = quant_range_join(r, part[g * pieces + i]);
        part[g] = r;
    }
    part.resize(groups);
    return part;
}

// rule mse: the grid among QUANT_SHRINKS with the least squared error, the first where several have it
template <class In>
inline Grid quant_search_cpu(QuantSpec q, const In* w, int64_t n, QuantRange r) {
    float scale[QUANT_SHRINKS], zero[QUANT_SHRINKS], error[QUANT_SHRINKS], low = quant_low(q), high = quant_high(q);
    for (int i = 0; i < QUANT_SHRINKS; i++) {
        Grid g = quant_grid(q, r.min, r.max, 1.0f, quant_shrink(i));
        scale[i] = g.scale, zero[i] = g.zero, error[i] = 0.0f;
    }
    for (int64_t j = 0; j < n; j++) {
        float x = w[j];
#pragma omp simd
        for (int i = 0; i < QUANT_SHRINKS; i++) {
            float u = quant_level(x, Grid{scale[i], zero[i]}, low, high);
            float d = fmaf(zero[i] - u, scale[i], x);
            error[i] = fmaf(d, d, error[i]);
        }
    }
    int best = 0;
    for (int i = 1; i < QUANT_SHRINKS; i++) best = error[i] < error[best] ? i : best;
    return Grid{scale[best], zero[best]};
}

// mean of |w|, or the root of that of w^2, in any order; amax: the largest |w|
template <class In>
inline float quant_mean_cpu(const In* w, int64_t n, int64_t stride, float amax, ScaleOf of) {
    const FixedSum f = quant_fixed_sum(amax, n, of == ScaleOf::rms);
    int64_t sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum) if (worth_threads(n / 2))
    for (int64_t j = 0; j < n; j++) sum += quant_fixed((float)w[j * stride], f);
    return quant_fixed_mean(sum, n, f);
}

// The scales of grid become those of their codes. The codes of the weights stay those of the scales before, as in
// bitsandbytes
inline void quant_nested_cpu(Grid* grid, const ScaleState& state, int64_t groups) {
    static const DynamicMap map = dynamic_map();
    float amax = 0.0f;
    for (int64_t g = 0; g < groups; g++) amax = grid[g].scale > amax ? grid[g].scale : amax;
    const float mean = *state.tensor =
        quant_mean_cpu(&grid[0].scale, groups, sizeof(Grid) / sizeof(float), amax, ScaleOf::mean);
#pragma omp parallel for schedule(static) if (worth_threads(4 * groups))
    for (int64_t b = 0; b < CEIL_DIV(groups, QUANT_NESTED); b++) {
        int64_t first = b * QUANT_NESTED, end = first + QUANT_NESTED < groups ? first + QUANT_NESTED : groups;
        float largest = 0.0f;
        for (int64_t g = first; g < end; g++) largest = fmaxf(largest, fabsf(grid[g].scale - mean));
        state.absmax[b] = largest;
        for (int64_t g = first; g < end; g++) {
            int code = dynamic_map_code(map, (grid[g].scale - mean) * quant_inverse(largest));
            state.codes[g] = (uint8_t)code;
            grid[g] = Grid{dynamic_map_scale(map, code, largest, mean), grid[g].scale};
        }
    }
}

template <class In>
inline void quant_measure_cpu(Grid* grid, const ScaleState& state, const In* w, const QuantGroups& shape,
                              QuantMeasure m) {
    const int64_t groups = shape.groups, group = shape.group;
    std::vector<QuantRange> ranges = quant_ranges_cpu(w, groups, group);
    for (int64_t first = 0; shape.tiles && first < groups; first += QUANT_TILE * shape.tiles) {
        int64_t end = first + QUANT_TILE * shape.tiles < groups ? first + QUANT_TILE * shape.tiles : groups;
        for (int64_t g = first + shape.tiles; g < end; g++)
            ranges[first + g % shape.tiles] = quant_range_join(ranges[first + g % shape.tiles], ranges[g]);
        for (int64_t g = first + shape.tiles; g < end; g++) ranges[g] = ranges[first + g % shape.tiles];
    }
    float tensor = 1.0f;
    if (quant_measures_tensor(m.q, state)) {
        QuantRange all;
        for (const QuantRange& r : ranges) all = quant_range_join(all, r);
        tensor = *state.tensor = quant_tensor_scale(quant_range_amax(all));
    }
    const ScaleOf of = quant_scale_of(m);
    const bool searched = of == ScaleOf::search, of_mean = quant_of_mean(of);
#pragma omp parallel for schedule(static) if (worth_threads(searched || of_mean ? groups * group : groups))
    for (int64_t g = 0; g < groups; g++) {
        QuantRange r = ranges[g];
        if (searched) grid[g] = quant_search_cpu(m.q, w + g * group, group, r);
        else if (of_mean)
            grid[g] =
                quant_grid(m.q, 0.0f, quant_mean_cpu(w + g * group, group, 1, quant_range_amax(r), of), 1.0f, 1.0f);
        else grid[g] = quant_measured(m, r, tensor);
    }
    if (state.codes) quant_nested_cpu(grid, state, groups);
}

// Codes: see quant_dispatch; returns how many codes changed
template <class Codes, class Out, class In>
inline int fake_quant_piece_cpu(Out* out, int8_t* codes, const In* w, int64_t n, QuantSpec q, Grid g,
                                const QuantNoise& noise, int64_t index) {
    constexpr bool INTEGER = format_is_integer<Codes>, TABLE = Codes::kind == NumberKind::table;
    const int mask = quant_code_mask(q), shift = quant_shift(q);
    const float low = quant_low(q), high = quant_high(q);
    float values[16], divisor = 1.0f;
    if constexpr (!INTEGER) divisor = quant_divisor<Codes>(g);
    if constexpr (TABLE)
        for (uint32_t i = 0; i < 16; i++) values[i] = Codes::number(i) * g.scale;
    auto each = [&](float x, int& code) {
        if constexpr (INTEGER) {
            float level = quant_level(x, g, low, high);
            code = (int)level - shift;
            return (level - g.zero) * g.scale;
        } else {
            code = Codes::code(quant_ratio<Codes>(x, divisor));
            if constexpr (TABLE) return values[code];
            else return Codes::number((uint32_t)code) * g.scale;
        }
    };
    int flips = 0;
    if (INTEGER && noise.on) {
        for (int64_t j = 0; j < n; j++) {
            float level = quant_level((float)w[j], g, low, high, quant_noise(noise, index + j));
            out[j] = (level - g.zero) * g.scale;
            if (!codes) continue;
            flips += quant_flipped(mask, (int)level - shift, codes[j]);
            codes[j] = (int8_t)((int)level - shift);
        }
    } else if (codes) {
        INDEPENDENT
        for (int64_t j = 0; j < n; j++) {
            int code;
            out[j] = each(w[j], code);
            flips += quant_flipped(mask, code, codes[j]);
            codes[j] = (int8_t)code;
        }
    } else {
        INDEPENDENT
        for (int64_t j = 0; j < n; j++) {
            int code;
            out[j] = each(w[j], code);
        }
    }
    return flips;
}

template <class Out, class In>
inline int64_t fake_quant_pieces_cpu(Out* out, int8_t* codes, Grid* grid, float tensor, const In* w,
                                     const QuantGroups& shape, QuantSpec q, bool measure, const QuantNoise& noise) {
    const int64_t groups = shape.groups, group = shape.group;
    const int64_t pieces = CEIL_DIV(group, QUANT_CPU_PIECE), piece = pieces > 1 ? QUANT_CPU_PIECE : group;
    return quant_dispatch(q.format, [&](auto kind) {
        int64_t changed = 0;
#pragma omp parallel for schedule(static) reduction(+ : changed) if (worth_threads(groups * group / 2))
        for (int64_t i = 0; i < groups * pieces; i++) {
            int64_t start = i / pieces * group + i % pieces * piece, left = group - i % pieces * piece;
            int64_t n = left < piece ? left : piece;
            Grid g;
            if (measure) {
                QuantRange r = quant_range_cpu(w + start, n);
                g = quant_grid(q, r.min, r.max, tensor, 1.0f);
                if (grid) grid[i] = g;
            } else {
                g = grid[i / pieces];
            }
            changed += fake_quant_piece_cpu<decltype(kind)>(out + start, codes ? codes + start : nullptr, w + start, n,
                                                            q, g, noise, start);
        }
        return changed;
    });
}

// Quantize groups [groups, group] of w into out. measure: find the scales here (dynamic) or use grid as given. codes
// (may be null) holds the previous codes and receives the new ones; returns how many changed.
template <class Out, class In>
inline int64_t fake_quant_forward_cpu(Out* out,                 // [groups, group], floatX, or float and maybe w itself
                                      int8_t* codes,            // [groups, group] or null
                                      Grid* grid,               // [groups]; null: measured and forgotten
                                      const ScaleState& state,  //
                                      const In* w,              // [groups, group]
                                      const QuantGroups& shape, QuantSpec q, bool measure,
                                      const QuantNoise& noise = QuantNoise()) {
    bool fused = measure && quant_measured_alone(q, shape, state) && shape.group <= QUANT_CPU_PIECE &&
                 !quant_measures_tensor(q, state);
    std::vector<Grid> own;
    if (!grid && !fused) {
        own.resize(shape.groups);
        grid = own.data();
    }
    if (measure && !fused) quant_measure_cpu(grid, state, w, shape, {q});
    return fake_quant_pieces_cpu(out, codes, grid, 1.0f, w, shape, q, fused, noise);
}

template <class Codes, class In>
inline void fake_quant_ewgs_cpu(In* dw, const In* w, int64_t n, Grid g, float delta, float low, float high) {
    const float weight = quant_ewgs_weight<Codes>(delta, g, low, high);
    float divisor = 1.0f;
    if constexpr (!format_is_integer<Codes>) divisor = quant_divisor<Codes>(g);
    INDEPENDENT
    for (int64_t j = 0; j < n; j++) dw[j] = quant_ewgs<Codes>((float)dw[j], (float)w[j], g, weight, divisor, low, high);
}

// The straight-through rule, in place on the gradient of Q(w); identity has nothing to do.
template <class In>
inline void fake_quant_backward_cpu(In* dw,            // [groups, group]
                                    const In* w,       // [groups, group]
                                    const Grid* grid,  // [groups]
                                    const QuantGroups& shape, QuantSpec q, Ste ste) {
    const int64_t group = shape.group, pieces = CEIL_DIV(group, QUANT_CPU_PIECE);
    const float low = quant_low(q), high = quant_high(q);
    quant_dispatch(q.format, [&](auto kind) {
#pragma omp parallel for schedule(static) if (worth_threads(shape.groups * group / 4))
        for (int64_t i = 0; i < shape.groups * pieces; i++) {
            int64_t start = i / pieces * group, end = start + group;
            start += i % pieces * QUANT_CPU_PIECE;
            end = start + QUANT_CPU_PIECE < end ? start + QUANT_CPU_PIECE : end;
            Grid g = grid[i / pieces];
            if (ste.rule == SteRule::ewgs) {
                fake_quant_ewgs_cpu<decltype(kind)>(dw + start, w + start, end - start, g, ste.delta, low, high);
                continue;
            }
            INDEPENDENT
            for (int64_t j = start; j < end; j++)
                dw[j] = quant_passes<decltype(kind)>(ste.rule, (float)w[j], g, low, high) ? (float)dw[j] : 0.0f;
        }
    });
}

// how many of n codes stand for something else
inline int64_t codes_changed_cpu(const int8_t* codes, const int8_t* initial, int64_t n, int mask) {
    int64_t total = 0;
// without `simd`: clang 14 at -O1 then loses three quarters of the sum
#pragma omp parallel for schedule(static) reduction(+ : total) if (worth_threads(n / 8))
    for (int64_t i = 0; i < n; i++) total += quant_flipped(mask, codes[i], initial[i]);
    return total;
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
static constexpr int QUANT_BLOCK = 256;
static constexpr int64_t QUANT_WHOLE = 16384, QUANT_PIECE = 8192;  // the largest group in one piece; otherwise

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
        __shared__ float low[QUANT_BLOCK / 32], high[QUANT_BLOCK / 32];
        if (threadIdx.x % 32 == 0) low[threadIdx.x / 32] = r.min, high[threadIdx.x / 32] = r.max;
        __syncthreads();
        for (int w = 0; w < QUANT_BLOCK / 32; w++) r = quant_range_join(r, QuantRange{low[w], high[w]});
    }
    return r;
}

// four numbers i ... i + 3 of n, zeros behind the end; p is a multiple of 4 elements from an aligned start
template <class T>
__device__ inline void quant_load4(float* x, const T* p, int i, int n, bool aligned) {
    if (aligned && i + 4 <= n) {
        if constexpr (sizeof(T) == 4) {
            int4 bits = *reinterpret_cast<const int4*>(p + i);
            memcpy(x, &bits, 16);
        } else {
            int2 bits = *reinterpret_cast<const int2*>(p + i);
            T four[4];
            memcpy(static_cast<void*>(four), &bits, 8);
            for (int k = 0; k < 4; k++) x[k] = (float)four[k];
        }
        return;
    }
    for (int k = 0; k < 4; k++) x[k] = i + k < n ? (float)p[i + k] : 0.0f;
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

// of elements first, first + step, ... below n, 4 at a time
template <class In>
__device__ inline QuantRange quant_range(const In* w, int first, int step, int n, bool aligned) {
    QuantRange r;
    for (int i = first; i < n; i += step) {
        float x[4];  // zeros behind the end: 0 belongs to every range
        quant_load4(x, w, i, n, aligned);
        for (int k = 0; k < 4; k++) r = quant_range_join(r, QuantRange{x[k], x[k]});
    }
    return r;
}

// adds a block's count to a counter. Called by all threads; a block counts at most 16,384, exact in float
__device__ inline void quant_count(int64_t* counter, int count) {
    int total = (int)block_reduce_sum((float)count);
    if (threadIdx.x == 0 && total) atomicAdd(reinterpret_cast<unsigned long long*>(counter), (unsigned long long)total);
}

// Where a thread works: piece number `piece` of the groups (there are `pieces` a group), LANES threads each
struct QuantPlace {
    int64_t index, group, start;  // index: of the piece; start: of the piece, in the matrix
    int n;                        // elements of the piece; 0: nothing to do
};

// how the kernels cut the groups
struct QuantCut {
    int64_t groups, group, pieces, size;
    bool aligned;
};

template <int LANES>
__device__ inline QuantPlace quant_place(const QuantCut& c) {
    int64_t piece = (int64_t)blockIdx.x * (QUANT_BLOCK / LANES) + threadIdx.x / LANES;
    QuantPlace p = {piece, 0, 0, 0};
    if (piece >= c.groups * c.pieces) return p;
    p.group = c.pieces == 1 ? piece : piece / c.pieces;
    int64_t offset = c.pieces == 1 ? 0 : piece % c.pieces * c.size;
    p.start = p.group * c.group + offset;
    p.n = (int)(c.group - offset < c.size ? c.group - offset : c.size);
    return p;
}

// ranges: [groups,pieces], or (grid not null, pieces 1) the grid they give.
// grid: CEIL_DIV(groups * pieces, QUANT_BLOCK / LANES)
template <int LANES, class In>
__global__ void fake_quant_range_kernel(QuantRange* ranges, Grid* grid, const In* w, QuantCut c, QuantMeasure m) {
    QuantPlace p = quant_place<LANES>(c);
    QuantRange r = quant_range(w + p.start, threadIdx.x % LANES * 4, LANES * 4, p.n, c.aligned);
    r = quant_range_reduce<LANES>(r);
    if (threadIdx.x % LANES || p.n == 0) return;
    if (grid) grid[p.index] = quant_measured(m, r, 1.0f);
    else ranges[p.index] = r;
}

// The grid of sets of ranges: of a group's pieces (tiles 0), or of the groups of a tile, which all get it. tensor (may
// be null): receives nvfp4's t instead. grid: groups, or tiles of both directions
__global__ void fake_quant_grid_kernel(Grid* grid, float* tensor, const QuantRange* ranges, int64_t pieces,
                                       int64_t groups, int64_t tiles, QuantMeasure m) {
    int64_t first = blockIdx.x * pieces, step = 1, count = pieces;
    if (tiles) {
        int64_t row = blockIdx.x / tiles * QUANT_TILE;
        first = row * tiles + blockIdx.x % tiles, step = tiles, count = groups / tiles - row;
        count = count < QUANT_TILE ? count : QUANT_TILE;
    }
    QuantRange r;
    for (int64_t i = threadIdx.x; i < count; i += QUANT_BLOCK) r = quant_range_join(r, ranges[first + i * step]);
    r = quant_range_reduce<QUANT_BLOCK>(r);
    if (tensor) {
        if (threadIdx.x == 0) *tensor = quant_tensor_scale(quant_range_amax(r));
        return;
    }
    Grid g = quant_measured(m, r, 1.0f);
    for (int64_t i = threadIdx.x; i < (tiles ? count : 1); i += QUANT_BLOCK)
        grid[tiles ? first + i * step : blockIdx.x] = g;
}

// sums: [groups], zero before: |w|, or w^2, in the fixed point of the group's largest number, amax[group].scale, and of
// `count` numbers. grid: groups * pieces
template <class In>
__global__ void fake_quant_sum_kernel(int64_t* sums, const In* w, const Grid* amax, QuantCut c, int64_t count,
                                      bool squares) {
    QuantPlace p = quant_place<QUANT_BLOCK>(c);
    const FixedSum f = quant_fixed_sum(amax[p.group].scale, count, squares);
    long long sum = 0;
    for (int i = threadIdx.x; i < p.n; i += QUANT_BLOCK) sum += quant_fixed((float)w[p.start + i], f);
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
    if (threadIdx.x % 32 == 0)
        atomicAdd(reinterpret_cast<unsigned long long*>(sums + p.group), (unsigned long long)sum);
}

// grid[g].scale: the largest |w| of `count` numbers whose sum is sums[g]; becomes the grid of their mean, or (mean not
// null) *mean is the mean. grid: CEIL_DIV(groups, QUANT_BLOCK)
__global__ void fake_quant_mean_kernel(Grid* grid, float* mean, const int64_t* sums, int64_t groups, int64_t count,
                                       bool squares, QuantSpec q) {
    int64_t g = (int64_t)blockIdx.x * QUANT_BLOCK + threadIdx.x;
    if (g >= groups) return;
    float m = quant_fixed_mean(sums[g], count, quant_fixed_sum(grid[g].scale, count, squares));
    if (mean) *mean = m;
    else grid[g] = quant_grid(q, 0.0f, m, 1.0f, 1.0f);
}

// rule mse, see quant_search_cpu: a warp a group, a lane every 32nd candidate. ranges: [groups].
// grid: CEIL_DIV(groups, QUANT_BLOCK / 32)
template <class In>
__global__ void fake_quant_search_kernel(Grid* grid, const QuantRange* ranges, const In* w, int64_t groups,
                                         int64_t group, QuantSpec q) {
    int64_t index = (int64_t)blockIdx.x * (QUANT_BLOCK / 32) + threadIdx.x / 32;
    if (index >= groups) return;
    const In* x = w + index * group;
    float low = quant_low(q), high = quant_high(q), least = INFINITY;
    int best = QUANT_SHRINKS;
    Grid chosen = {1.0f, 0.0f};
    for (int i = threadIdx.x % 32; i < QUANT_SHRINKS; i += 32) {
        Grid g = quant_grid(q, ranges[index].min, ranges[index].max, 1.0f, quant_shrink(i));
        float error = 0.0f;
        for (int64_t j = 0; j < group; j++) {
            float u = quant_level((float)x[j], g, low, high);
            float d = fmaf(g.zero - u, g.scale, (float)x[j]);
            error = fmaf(d, d, error);
        }
        error = error == error ? error : INFINITY;
        if (best == QUANT_SHRINKS || error < least) least = error, best = i, chosen = g;
    }
    float smallest = least;
    for (int offset = 16; offset > 0; offset /= 2)
        smallest = fminf(smallest, __shfl_xor_sync(0xFFFFFFFFu, smallest, offset));
    int first = least == smallest ? best : QUANT_SHRINKS;
    for (int offset = 16; offset > 0; offset /= 2) {
        int other = __shfl_xor_sync(0xFFFFFFFFu, first, offset);
        first = other < first ? other : first;
    }
    if (least == smallest && best == first) grid[index] = chosen;
}

// double quantization, see quant_nested_cpu: a block 256 scales. grid: CEIL_DIV(groups, QUANT_NESTED)
__global__ void fake_quant_nested_kernel(Grid* grid, ScaleState state, int64_t groups, DynamicMap map) {
    static_assert(QUANT_NESTED == QUANT_BLOCK, "a thread a scale");
    int64_t g = (int64_t)blockIdx.x * QUANT_NESTED + threadIdx.x;
    float mean = *state.tensor, x = g < groups ? grid[g].scale - mean : 0.0f;
    QuantRange r = quant_range_reduce<QUANT_BLOCK>(quant_range_join(QuantRange(), QuantRange{x, x}));
    float largest = quant_range_amax(r);
    if (threadIdx.x == 0) state.absmax[blockIdx.x] = largest;
    if (g >= groups) return;
    int code = dynamic_map_code(map, x * quant_inverse(largest));
    state.codes[g] = (uint8_t)code;
    grid[g] = Grid{dynamic_map_scale(map, code, largest, mean), grid[g].scale};
}

// measure: only with pieces 1; grid may be null then. tensor: nvfp4's t, or null for 1. INTEGER: also ternary.
// grid: CEIL_DIV(groups * pieces, QUANT_BLOCK / LANES)
template <int LANES, bool INTEGER, class In>
__global__ void fake_quant_forward_kernel(QuantOutput y, const float* tensor, const In* w, QuantCut c, QuantSpec q,
                                          bool measure, QuantNoise noise) {
    floatX* out = y.out;
    int8_t* codes = y.codes;
    QuantPlace p = quant_place<LANES>(c);
    int first = threadIdx.x % LANES * 4;
    Grid g = {1.0f, 0.0f};
    if (measure) {
        QuantRange r = quant_range_reduce<LANES>(quant_range(w + p.start, first, LANES * 4, p.n, c.aligned));
        g = quant_grid(q, r.min, r.max, tensor ? *tensor : 1.0f, 1.0f);
        if (first == 0 && p.n && y.grid) y.grid[p.group] = g;
    } else if (p.n) {
        g = y.grid[p.group];
    }
    const int mask = quant_code_mask(q), shift = quant_shift(q);
    const float low = quant_low(q), high = quant_high(q);
    int flips = 0;
    for (int i = first; i < p.n; i += LANES * 4) {
        float x[4];
        quant_load4(x, w + p.start, i, p.n, c.aligned);
        bool whole = c.aligned && i + 4 <= p.n;
        floatX value[4];
        int8_t code[4], old[4];
        if (codes && whole) {
            int four = *reinterpret_cast<const int*>(codes + p.start + i);
            memcpy(old, &four, 4);
        }
        for (int k = 0; k < 4; k++) {
            if (INTEGER) {
                float level = noise.on ? quant_level(x[k], g, low, high, quant_noise(noise, p.start + i + k))
                                       : quant_level(x[k], g, low, high);
                code[k] = (int8_t)((int)level - shift);
                value[k] = (floatX)((level - g.zero) * g.scale);
            } else {
                code[k] = (int8_t)quant_code(q, x[k], g);
                value[k] = (floatX)quant_value(q, code[k], g);
            }
        }
        if (whole) {
            quant_store4(out + p.start + i, value);
            if (codes) {
                quant_store4(codes + p.start + i, code);
                for (int k = 0; k < 4; k++) flips += quant_flipped(mask, code[k], old[k]);
            }
        } else {
            for (int k = 0; k < 4; k++) {
                if (i + k >= p.n) continue;
                out[p.start + i + k] = value[k];
                if (!codes) continue;
                flips += quant_flipped(mask, code[k], codes[p.start + i + k]);
                codes[p.start + i + k] = code[k];
            }
        }
    }
    if (codes) quant_count(y.changed, flips);
}

// grid: as the forward
template <int LANES, class In>
__global__ void fake_quant_backward_kernel(In* dw, const In* w, const Grid* grid, QuantCut c, QuantSpec q,
                                           SteRule rule) {
    QuantPlace p = quant_place<LANES>(c);
    if (p.n == 0) return;
    Grid g = grid[p.group];
    for (int i = threadIdx.x % LANES * 4; i < p.n; i += LANES * 4) {
        float x[4];
        quant_load4(x, w + p.start, i, p.n, c.aligned);
        for (int k = 0; k < 4; k++)
            if (i + k < p.n && !quant_passes(q, rule, x[k], g)) dw[p.start + i + k] = (In)0.0f;
    }
}

// of rule ewgs, which changes every number: a number a thread at a time. grid: as the forward
template <int LANES, class In>
__global__ void fake_quant_ewgs_kernel(In* dw, const In* w, const Grid* grid, QuantCut c, QuantSpec q, float delta) {
    QuantPlace p = quant_place<LANES>(c);
    if (p.n == 0) return;
    const Grid g = grid[p.group];
    const float low = quant_low(q), high = quant_high(q);
    quant_visit(q.format, [=](auto f) {
        typedef decltype(f) Codes;
        const float weight = quant_ewgs_weight<Codes>(delta, g, low, high);
        float divisor = 1.0f;
        if constexpr (!format_is_integer<Codes>) divisor = quant_divisor<Codes>(g);
        for (int i = threadIdx.x % LANES; i < p.n; i += LANES) {
            const int64_t j = p.start + i;
            dw[j] = (In)quant_ewgs<Codes>((float)dw[j], (float)w[j], g, weight, divisor, low, high);
        }
    });
}

// 16 codes a thread. grid: CEIL_DIV(n, QUANT_BLOCK * 16)
__global__ void codes_changed_kernel(int64_t* changed, const int8_t* codes, const int8_t* initial, int64_t n, int mask,
                                     bool aligned) {
    int64_t first = ((int64_t)blockIdx.x * QUANT_BLOCK + threadIdx.x) * 16;
    int left = first >= n ? 0 : n - first < 16 ? (int)(n - first) : 16, count = 0;
    if (left) {
        Pack128<int8_t> a = load_pack(codes + first, 0, left, aligned);
        Pack128<int8_t> b = load_pack(initial + first, 0, left, aligned);
        for (int k = 0; k < 16; k++) count += quant_flipped(mask, a[k], b[k]);
    }
    quant_count(changed, count);
}

// aligned: 4 numbers of w and of another matrix (null: none) by one load or store each, and of codes (null: none)
template <class In, class Other>
inline QuantCut quant_cut(const In* w, const Other* other, const int8_t* codes, int64_t groups, int64_t group) {
    QuantCut c;
    c.groups = groups, c.group = group;
    c.size = group > QUANT_WHOLE ? QUANT_PIECE : group;
    c.pieces = CEIL_DIV(group, c.size);
    c.aligned = (groups == 1 || group % 4 == 0) && reinterpret_cast<uintptr_t>(w) % (4 * sizeof(In)) == 0 &&
                reinterpret_cast<uintptr_t>(other) % (4 * sizeof(Other)) == 0 &&
                reinterpret_cast<uintptr_t>(codes) % 4 == 0;
    return c;
}

// launch(lanes, blocks)
template <class F>
inline void quant_launch(const QuantCut& c, const F& launch) {
    int64_t all = c.groups * c.pieces;
    if (c.size <= 64) launch(Int<8>(), (unsigned)CEIL_DIV(all, QUANT_BLOCK / 8));
    else if (c.size <= 1024) launch(Int<32>(), (unsigned)CEIL_DIV(all, QUANT_BLOCK / 32));
    else launch(Int<QUANT_BLOCK>(), (unsigned)all);
}

// ranges [groups,pieces] of w, and from them the grid
template <class In>
inline void quant_grid_cuda(Grid* grid, float* tensor, const In* w, int64_t groups, int64_t group, int64_t tiles,
                            QuantMeasure m, Device dev) {
    QuantCut c = quant_cut(w, w, nullptr, groups, group);
    const bool search = quant_scale_of(m) == ScaleOf::search;
    const bool direct = c.pieces == 1 && !search && !tiles && !tensor;
    Scratch scratch(direct ? 0 : 2 * (size_t)(groups * c.pieces), dev);
    QuantRange* ranges = reinterpret_cast<QuantRange*>(scratch.data);
    quant_launch(c, [&](auto lanes, unsigned blocks) {
        LAUNCH((fake_quant_range_kernel<decltype(lanes)::value, In>), blocks, QUANT_BLOCK, 0, dev.stream, ranges,
               direct ? grid : nullptr, w, c, m);
    });
    if (direct) return;
    if (search) {
        LAUNCH(fake_quant_search_kernel<In>, (unsigned)CEIL_DIV(groups, QUANT_BLOCK / 32), QUANT_BLOCK, 0, dev.stream,
               grid, ranges, w, groups, group, m.q);
        return;
    }
    int64_t blocks = tiles ? CEIL_DIV(groups / tiles, QUANT_TILE) * tiles : groups;
    LAUNCH(fake_quant_grid_kernel, (unsigned)blocks, QUANT_BLOCK, 0, dev.stream, grid, tensor, ranges, c.pieces, groups,
           tiles, m);
}

// means over groups whose largest |w| are in grid, as quant_mean_cpu: see fake_quant_mean_kernel
template <class In>
inline void quant_mean_cuda(Grid* grid, float* mean, const In* w, int64_t groups, int64_t group, int64_t count,
                            ScaleOf of, QuantSpec q, Device dev) {
    const bool squares = of == ScaleOf::rms;
    QuantCut c = quant_cut(w, w, nullptr, groups, group);
    Scratch scratch(2 * (size_t)groups, dev);
    int64_t* sums = reinterpret_cast<int64_t*>(scratch.data);
    set_zero(sums, groups * sizeof(int64_t), dev);
    LAUNCH(fake_quant_sum_kernel<In>, (unsigned)(groups * c.pieces), QUANT_BLOCK, 0, dev.stream, sums, w, grid, c,
           count, squares);
    LAUNCH(fake_quant_mean_kernel, (unsigned)CEIL_DIV(groups, QUANT_BLOCK), QUANT_BLOCK, 0, dev.stream, grid, mean,
           sums, groups, count, squares, q);
}

// the grid where a group's range alone does not give it, or the group is too large to be measured where it is quantized
template <class In>
inline void quant_measure_cuda(Grid* grid, const ScaleState& state, const In* w, const QuantGroups& shape,
                               QuantMeasure m, Device dev) {
    const QuantMeasure largest = {m.q, GridOf::amax};
    const ScaleOf of = quant_scale_of(m);
    const bool of_mean = quant_of_mean(of);
    quant_grid_cuda(grid, nullptr, w, shape.groups, shape.group, shape.tiles, of_mean ? largest : m, dev);
    if (of_mean) quant_mean_cuda(grid, nullptr, w, shape.groups, shape.group, shape.group, of, m.q, dev);
    if (!state.codes) return;
    Scratch scratch(sizeof(Grid) / sizeof(float), dev);
    Grid* all = reinterpret_cast<Grid*>(scratch.data);
    const float* scales = reinterpret_cast<const float*>(grid);  // and zeros, which change neither largest nor sum
    quant_grid_cuda(all, nullptr, scales, 1, 2 * shape.groups, 0, largest, dev);
    quant_mean_cuda(all, state.tensor, scales, 1, 2 * shape.groups, shape.groups, ScaleOf::mean, m.q, dev);
    LAUNCH(fake_quant_nested_kernel, (unsigned)CEIL_DIV(shape.groups, QUANT_NESTED), QUANT_BLOCK, 0, dev.stream, grid,
           state, shape.groups, dynamic_map());
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

inline void quant_check(const char* name, const QuantGroups& g, QuantSpec q) {
    if (g.groups < 0 || g.groups > INT32_MAX || g.group < 1 || q.bits < 1 || q.bits > 8 ||
        g.groups * CEIL_DIV(g.group, 8192) > INT32_MAX || (g.tiles && (g.group != QUANT_TILE || g.groups % g.tiles)))
        fail("%s: bad shape: %lld groups of %lld at %d bits (1 to 8 bits, fewer than 2^31 groups)", name,
             (long long)g.groups, (long long)g.group, q.bits);
}

// y.out = Q(w), w: [groups,group]; measure: the grid is found here (y.grid null: and forgotten), else read. noise:
// integers only.
template <class In>
inline void fake_quant_forward(QuantOutput y, const In* w, const QuantGroups& shape, QuantSpec q, bool measure,
                               Device dev, const QuantNoise& noise = QuantNoise()) {
    NVTX_RANGE("fake_quant_forward");
    quant_check("fake_quant_forward", shape, q);
    if (shape.groups == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        QuantCut c = quant_cut(w, y.out, y.codes, shape.groups, shape.group);
        bool before = measure && (c.pieces > 1 || !quant_measured_alone(q, shape, y.state));
        Scratch own(before && !y.grid ? 2 * (size_t)shape.groups : 0, dev);
        if (before && !y.grid) y.grid = reinterpret_cast<Grid*>(own.data);
        const bool tensor = quant_measures_tensor(q, y.state);
        if (measure && tensor) quant_grid_cuda(nullptr, y.state.tensor, w, 1, shape.groups * shape.group, 0, {q}, dev);
        if (before) quant_measure_cuda(y.grid, y.state, w, shape, {q}, dev);
        quant_launch(c, [&](auto lanes, unsigned blocks) {
            auto launch = [&](auto integer) {
                LAUNCH((fake_quant_forward_kernel<decltype(lanes)::value, decltype(integer)::value, In>), blocks,
                       QUANT_BLOCK, 0, dev.stream, y, tensor ? y.state.tensor : nullptr, w, c, q, measure && !before,
                       noise);
            };
            if (quant_is_integer(q)) launch(std::true_type());
            else launch(std::false_type());
        });
        return;
    }
#endif
    (void)dev;
    int64_t count = fake_quant_forward_cpu(y.out, y.codes, y.grid, y.state, w, shape, q, measure, noise);
    if (y.codes) *y.changed += count;
}

// the grid alone: what the forward measures, or what else QuantMeasure says. A scale of the tensor is taken for 1
template <class In>
inline void quant_measure(Grid* grid, const ScaleState& state, const In* w, const QuantGroups& shape, QuantMeasure m,
                          Device dev) {
    quant_check("quant_measure", shape, m.q);
    if (shape.groups == 0) return;
#if HAS_KERNELS
    if (dev.cuda) return quant_measure_cuda(grid, state, w, shape, m, dev);
#endif
    (void)dev;
    quant_measure_cpu(grid, state, w, shape, m);
}

// the straight-through rule, in place. dw, w: [groups,group]; grid: [groups]
template <class In>
inline void fake_quant_backward(In* dw, const In* w, const Grid* grid, const QuantGroups& shape, QuantSpec q, Ste ste,
                                Device dev) {
    NVTX_RANGE("fake_quant_backward");
    quant_check("fake_quant_backward", shape, q);
    if (shape.groups == 0 || ste.rule == SteRule::identity) return;
#if HAS_KERNELS
    if (dev.cuda) {
        QuantCut c = quant_cut(w, dw, nullptr, shape.groups, shape.group);
        quant_launch(c, [&](auto lanes, unsigned blocks) {
            constexpr int LANES = decltype(lanes)::value;
            if (ste.rule == SteRule::ewgs)
                LAUNCH((fake_quant_ewgs_kernel<LANES, In>), blocks, QUANT_BLOCK, 0, dev.stream, dw, w, grid, c, q,
                       ste.delta);
            else
                LAUNCH((fake_quant_backward_kernel<LANES, In>), blocks, QUANT_BLOCK, 0, dev.stream, dw, w, grid, c, q,
                       ste.rule);
        });
        return;
    }
#endif
    (void)dev;
    fake_quant_backward_cpu(dw, w, grid, shape, q, ste);
}

// *changed += how many of n codes differ in what they stand for. codes, initial: [n]; changed lies where they do
inline void codes_changed(int64_t* changed, const int8_t* codes, const int8_t* initial, int64_t n, QuantSpec q,
                          Device dev) {
    NVTX_RANGE("codes_changed");
    if (n <= 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(codes_changed_kernel, (unsigned)CEIL_DIV(n, QUANT_BLOCK * 16), QUANT_BLOCK, 0, dev.stream, changed,
               codes, initial, n, quant_code_mask(q), is_aligned16(codes, 0) && is_aligned16(initial, 0));
        return;
    }
#endif
    (void)dev;
    *changed += codes_changed_cpu(codes, initial, n, quant_code_mask(q));
}
