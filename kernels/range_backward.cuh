// Backward of a quantizer through its measured range: like learned_backward's lwc (quant_backward.cuh), whose clipped
// range [sigmoid(b) min, sigmoid(a) max] of each group makes the grid, but min and max pass the range's gradient on to
// the numbers that they are. Without it a transform that is learned in front of the quantizer (methods/flatquant.cuh)
// would not see that smaller outliers make smaller steps. For weights, with logits a group, and for activations, with one
// ratio c instead of sigmoid(a) and sigmoid(b).
//
//   d upper, d lower: learned_ends, of S and O of quant_backward.cuh
//   dw = dQ inside, 0 outside;  dw[first max] += c d upper,  dw[first min] += c d lower  (c: the ratio of that end)
//   da += d upper max sigmoid'(a), db alike;  or dc += sum over groups of d upper max + d lower min
// An end that is 0 is no number's: 0 belongs to every range.
//
// The trap: w has to be what the grid was measured on, to the bit, or its ends are not found.
//
// Traffic in bytes of weights, least: 12 a number; moved: up to 20, from a cache where a group fits it. Launch: a warp a
// group; then a block for dc. Each device adds in a fixed order of its own.
#pragma once
#include "quant_backward.cuh"

// What a group's ends are multiplied with. Logits [groups], or null: `ratio` for both
struct RangeClip {
    const float *a = nullptr, *b = nullptr;
    float ratio = 1.0f;
    HOST_DEVICE float upper(int64_t g) const { return a ? sigmoid_f(a[g]) : ratio; }
    HOST_DEVICE float lower(int64_t g) const { return b ? sigmoid_f(b[g]) : ratio; }
};

// Gradients, which accumulate: of the logits [groups], or of the ratio [1]
struct RangeGradient {
    float *a = nullptr, *b = nullptr, *ratio = nullptr;
};

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

// dratio: [groups] of each, for the sum
template <class In>
inline void range_backward_cpu(In* dw,             // [groups, group]
                               RangeGradient d,    //
                               float* dratio,      // [groups] or null
                               const In* w,        // [groups, group]
                               const Grid* range,  // [groups] {max, min}
                               const Grid* grid,   // [groups]
                               RangeClip clip, const QuantGroups& shape, QuantSpec q) {
    const int64_t group = shape.group;
    const float low = quant_low(q), high = quant_high(q);
    quant_dispatch(q.format, [&](auto codes) {
#pragma omp parallel for schedule(static) if (worth_threads(2 * shape.groups * group))
        for (int64_t g = 0; g < shape.groups; g++) {
            In* y = dw + g * group;
            const In* x = w + g * group;
            float S = 0.0f, O = 0.0f;
            int64_t first_max = -1, first_min = -1;
            for (int64_t j = 0; j < group; j++) {
                const ScaleTerm t =
                    quant_scale_term<decltype(codes)>(LearnedScale::lwc, (float)x[j], grid[g], low, high, -1.0f);
                S = fmaf((float)y[j], t.s, S), O = fmaf((float)y[j], t.outside, O);
                if (t.outside != 0.0f) y[j] = (In)0.0f;
                if (first_max < 0 && (float)x[j] == range[g].scale) first_max = j;
                if (first_min < 0 && (float)x[j] == range[g].zero) first_min = j;
            }
            const float up = clip.upper(g), down = clip.lower(g);
            const LearnedGradient e = learned_ends(q, S, O, grid[g], up * range[g].scale, down * range[g].zero);
            if (range[g].scale > 0.0f && first_max >= 0) y[first_max] = (In)((float)y[first_max] + up * e.a);
            if (range[g].zero < 0.0f && first_min >= 0) y[first_min] = (In)((float)y[first_min] + down * e.b);
            if (d.a)
                d.a[g] += e.a * range[g].scale * up * (1.0f - up), d.b[g] += e.b * range[g].zero * down * (1.0f - down);
            if (dratio) dratio[g] = e.a * range[g].scale + e.b * range[g].zero;
        }
    });
    for (int64_t g = 0; g < shape.groups && dratio; g++) *d.ratio += dratio[g];
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
// grid: CEIL_DIV(groups, QUANT_BLOCK / 32)
template <class In>
__global__ void range_backward_kernel(In* dw, RangeGradient d, float* dratio, const In* w, const Grid* range,
                                      const Grid* grid, RangeClip clip, int64_t groups, int64_t group, QuantSpec q) {
    const int64_t g = (int64_t)blockIdx.x * (QUANT_BLOCK / 32) + threadIdx.x / 32;
    if (g >= groups) return;
    In* y = dw + g * group;
    const In* x = w + g * group;
    const Grid r = range[g], own = grid[g];
    const float low = quant_low(q), high = quant_high(q), up = clip.upper(g), down = clip.lower(g);
    float S = 0.0f, O = 0.0f;
    int first_max = INT32_MAX, first_min = INT32_MAX;
    for (int64_t j = threadIdx.x % 32; j < group; j += 32) {
        const float v = (float)x[j], dv = (float)y[j];
        const ScaleTerm t = quant_visit(q.format, [=](auto f) {
            return quant_scale_term<decltype(f)>(LearnedScale::lwc, v, own, low, high, -1.0f);
        });
        S = fmaf(dv, t.s, S), O = fmaf(dv, t.outside, O);
        if (t.outside != 0.0f) y[j] = (In)0.0f;
        if (v == r.scale && (int)j < first_max) first_max = (int)j;
        if (v == r.zero && (int)j < first_min) first_min = (int)j;
    }
    S = warp_reduce_sum(S), O = warp_reduce_sum(O);
    for (int offset = 16; offset > 0; offset /= 2) {
        const int a = __shfl_xor_sync(0xFFFFFFFFu, first_max, offset),
                  b = __shfl_xor_sync(0xFFFFFFFFu, first_min, offset);
        first_max = a < first_max ? a : first_max, first_min = b < first_min ? b : first_min;
    }
    __syncwarp();  // what the others have written
    if (threadIdx.x % 32) return;
    const LearnedGradient e = learned_ends(q, S, O, own, up * r.scale, down * r.zero);
    if (r.scale > 0.0f && first_max < INT32_MAX) y[first_max] = (In)((float)y[first_max] + up * e.a);
    if (r.zero < 0.0f && first_min < INT32_MAX) y[first_min] = (In)((float)y[first_min] + down * e.b);
    if (d.a) d.a[g] += e.a * r.scale * up * (1.0f - up), d.b[g] += e.b * r.zero * down * (1.0f - down);
    if (dratio) dratio[g] = e.a * r.scale + e.b * r.zero;
}

// grid: 1
__global__ void range_ratio_kernel(float* sum, const float* dratio, int64_t groups) {
    float part = 0.0f;
    for (int64_t g = threadIdx.x; g < groups; g += QUANT_BLOCK) part += dratio[g];
    part = block_reduce_sum(part);
    if (threadIdx.x == 0) *sum += part;
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launcher

// dw: [groups,group], in place: the gradient of Q(w) becomes that of w. range, grid: [groups] of w, see GridOf::ends
template <class In>
inline void range_backward(In* dw, const RangeGradient& d, const In* w, const Grid* range, const Grid* grid,
                           const RangeClip& clip, const QuantGroups& shape, QuantSpec q, Device dev) {
    NVTX_RANGE("range_backward");
    if (shape.groups == 0) return;
    if (shape.group > INT32_MAX || shape.tiles || !d.a != !clip.a) fail("range_backward: bad shape");
    Scratch dratio(d.ratio ? (size_t)shape.groups : 0, dev);
    float* of_groups = d.ratio ? dratio.data : nullptr;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(range_backward_kernel<In>, (unsigned)CEIL_DIV(shape.groups, QUANT_BLOCK / 32), QUANT_BLOCK, 0,
               dev.stream, dw, d, of_groups, w, range, grid, clip, shape.groups, shape.group, q);
        if (d.ratio) LAUNCH(range_ratio_kernel, 1, QUANT_BLOCK, 0, dev.stream, d.ratio, of_groups, shape.groups);
        return;
    }
#endif
    range_backward_cpu(dw, d, of_groups, w, range, grid, clip, shape, q);
}
