// Learned grids of integer and mid-rise formats: a scale (and an offset) a group that the optimizer moves like a
// weight, and the gradients of the parameters they are made of. Q(w) = (q - z) s, q = clamp(rint(w/s) + z, low, high);
// the rounding is passed through, x = w/s + z is "inside" where low <= x <= high. Mid-rise: Q(w) = v s, v = k + 1/2,
// inside where |w/s| <= 2^(b-1), the cells of its numbers.
//   lsq         a = s;  z = 0, or stays as it was measured    (Esser et al. 2020, arXiv 1902.08153, eq. 2-3); of a
//               mid-rise format SEQ (ParetoQ, arXiv 2502.02631), whose alpha is 2^(b-1) s
//   pact        a = s;  z = 0; numbers outside alone move it  (PACT, arXiv 1805.06085, for both ends)
//   lsq_offset  a = s,  b an offset of the weights, z = rint(-b/s)  (LSQ+, arXiv 2004.09576; z rounded, so that
//               containers with integer zero points hold the grid)
//   lwc         a, b logits: the range is [sigmoid(b) min, sigmoid(a) max] of the group's present weights
//               (OmniQuant, arXiv 2308.13137, eq. 2); min and max pass no gradient to the weights
// With S = sum dQ (rint(w/s) - w/s inside; low - z below; high - z above) and O = sum dQ outside; mid-rise: v - w/s
// inside, v outside; pact: 0 inside:
//   lsq         da = h S
//   pact        da = S
//   lsq_offset  da = h (S - O b/s), db = h O;  O counts for nothing where z itself is clamped
//   lwc         asymmetric, with lower = sigmoid(b) min, levels = 2^b - 1 and t = S - O lower/s:
//               d upper = t/levels, d lower = O - t/levels; symmetric: S/k to the end that is larger in size, k the
//               divisor of the scale's rule; da = d upper max sigmoid'(a), db alike
// h = 1/sqrt(numel high), numel of the whole matrix (LSQ's gradient scale); high of a mid-rise format: the integer
// format's of so many bits, as ParetoQ has it (1 at 2 bits). The grid is rounded and bounded in the
// forward (bf16, at least 2^-14); the parameters are fp32 and pass through that rounding. dW is dQ inside and 0
// outside.
//
// Traffic in bytes of the backward, least and moved: 12 a weight. Launch: as fake_quant_backward, a pair of sums a
// piece; then a thread a group. Each device adds in a fixed order of its own.
#pragma once
#include "fake_quant.cuh"
#include "../runtime/parallel.h"

enum class LearnedScale : uint8_t { lsq, lsq_offset, lwc, pact };

static constexpr float LWC_START = 4.0f;  // of both logits: the range begins at 98 % of itself

// Views, [groups] each
struct LearnedGrid {
    float *a = nullptr, *b = nullptr;    // the parameters
    float *da = nullptr, *db = nullptr;  // their gradients, which accumulate
    Grid* range = nullptr;               // lwc: {max, min} of the weights
};

// ---------------------------------------------------------------------------------------------------------------------
// one group

// now: lsq, pact: the grid as it is; lwc: {max, min}
HOST_DEVICE Grid learned_grid(QuantSpec q, LearnedScale kind, float a, float b, Grid now) {
    if (kind ==
        LearnedScale::lwc)  // the sums with 0 keep the products from being fused with the difference of the ends
        return quant_grid(q, fmaf(sigmoid_f(b), now.zero, 0.0f), fmaf(sigmoid_f(a), now.scale, 0.0f), 1.0f, 1.0f);
    float s = quant_round_scale(a);
    if (kind != LearnedScale::lsq_offset) return Grid{s, now.zero};
    float z = rintf(-b / s), most = quant_high(q);
    return Grid{s, z < 0.0f ? 0.0f : z > most ? most : z};
}

// dQ/ds with z held, and whether Q(w) is outside. low, high: the range of integers
struct ScaleTerm {
    float s, outside;
};
template <class Codes>
HOST_DEVICE ScaleTerm quant_scale_term(LearnedScale kind, float w, Grid g, float low, float high, float u) {
    ScaleTerm t;
    float x = w / g.scale, at = x + g.zero, inside;
    if constexpr (format_is_integer<Codes>) {
        inside = (u < 0.0f ? rintf(x) : floorf(x + u)) - x;
        bool below = at<low, above = at> high;
        t = ScaleTerm{below ? low - g.zero : above ? high - g.zero : inside, below || above ? 1.0f : 0.0f};
    } else {
        float v = Codes::number((uint32_t)Codes::code(x));
        t.outside = (x < 0.0f ? -x : x) > Codes::saturates ? 1.0f : 0.0f;
        t.s = t.outside != 0.0f ? v : v - x;
    }
    if (kind == LearnedScale::pact && t.outside == 0.0f) t.s = 0.0f;
    return t;
}

struct LearnedGradient {
    float a, b;
};
// lwc: of the ends of the clipped range, of which the grid is made
HOST_DEVICE LearnedGradient learned_ends(QuantSpec q, float S, float O, Grid g, float upper, float lower) {
    float levels = (float)((1 << q.bits) - 1);
    if (!q.symmetric) {
        float t = fmaf(O, -lower / g.scale, S);
        return LearnedGradient{t / levels, O - t / levels};
    }
    float k = q.rule == ScaleRule::amax7 ? quant_high(q) : 0.5f * levels;
    return -lower > upper ? LearnedGradient{0.0f, -S / k} : LearnedGradient{S / k, 0.0f};
}
HOST_DEVICE LearnedGradient learned_gradient(QuantSpec q, LearnedScale kind, float S, float O, Grid g, float a, float b,
                                             Grid range, float h) {
    if (kind == LearnedScale::lsq) return LearnedGradient{h * S, 0.0f};
    if (kind == LearnedScale::pact) return LearnedGradient{S, 0.0f};
    if (kind == LearnedScale::lsq_offset) {
        float z = -b / g.scale;
        if (z < -0.5f || z > quant_high(q) + 0.5f) O = 0.0f;
        return LearnedGradient{h * fmaf(O, z, S), h * O};
    }
    float sa = sigmoid_f(a), sb = sigmoid_f(b);
    const LearnedGradient ends = learned_ends(q, S, O, g, sa * range.scale, sb * range.zero);
    return LearnedGradient{ends.a * range.scale * sa * (1.0f - sa), ends.b * range.zero * sb * (1.0f - sb)};
}

// the parameters of a grid that was measured
HOST_DEVICE void learned_start(LearnedScale kind, float* a, float* b, Grid g) {
    *a = kind == LearnedScale::lwc ? LWC_START : g.scale;
    *b = kind == LearnedScale::lwc ? LWC_START : kind == LearnedScale::lsq_offset ? -g.zero * g.scale : 0.0f;
}

inline float learned_gradient_scale(const QuantGroups& shape, QuantSpec q) {
    const float high = (float)((1 << (q.symmetric ? q.bits - 1 : q.bits)) - 1);
    return 1.0f / sqrtf((float)(shape.groups * shape.group) * high);
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

inline void learned_grid_cpu(Grid* grid, const LearnedGrid& p, int64_t groups, QuantSpec q, LearnedScale kind,
                             bool start) {
    for (int64_t g = 0; g < groups; g++) {
        if (start) learned_start(kind, &p.a[g], &p.b[g], grid[g]);
        if (kind != LearnedScale::lwc && p.a[g] < QUANT_LEAST_SCALE) p.a[g] = QUANT_LEAST_SCALE;
        grid[g] = learned_grid(q, kind, p.a[g], p.b[g], kind == LearnedScale::lwc ? p.range[g] : grid[g]);
    }
}

inline void learned_backward_cpu(float* dw,             // [groups, group]
                                 const LearnedGrid& p,  //
                                 const float* w,        // [groups, group]
                                 const Grid* grid,      // [groups]
                                 const QuantGroups& shape, QuantSpec q, LearnedScale kind, QuantNoise noise) {
    const int64_t group = shape.group, pieces = CEIL_DIV(group, QUANT_CPU_PIECE);
    const float h = learned_gradient_scale(shape, q);
    const float low = quant_low(q), high = quant_high(q);
    std::vector<float> sums(2 * shape.groups * pieces);
    quant_dispatch(q.format, [&](auto codes) {
#pragma omp parallel for schedule(static) if (worth_threads(shape.groups * group))
        for (int64_t i = 0; i < shape.groups * pieces; i++) {
            int64_t first = i / pieces * group + i % pieces * QUANT_CPU_PIECE, end = (i / pieces + 1) * group;
            end = first + QUANT_CPU_PIECE < end ? first + QUANT_CPU_PIECE : end;
            float S = 0.0f, O = 0.0f;
            for (int64_t j = first; j < end; j++) {
                ScaleTerm t =
                    quant_scale_term<decltype(codes)>(kind, w[j], grid[i / pieces], low, high, quant_noise(noise, j));
                S = fmaf(dw[j], t.s, S), O = fmaf(dw[j], t.outside, O);
                dw[j] = t.outside == 0.0f ? dw[j] : 0.0f;
            }
            sums[2 * i] = S, sums[2 * i + 1] = O;
        }
    });
    for (int64_t g = 0; g < shape.groups; g++) {
        float S = 0.0f, O = 0.0f;
        for (int64_t i = g * pieces; i < (g + 1) * pieces; i++) S += sums[2 * i], O += sums[2 * i + 1];
        LearnedGradient d = learned_gradient(q, kind, S, O, grid[g], p.a[g], p.b[g], p.range ? p.range[g] : Grid(), h);
        p.da[g] += d.a, p.db[g] += d.b;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
// a thread a group. grid: CEIL_DIV(groups, QUANT_BLOCK)
__global__ void learned_grid_kernel(Grid* grid, LearnedGrid p, int64_t groups, QuantSpec q, LearnedScale kind,
                                    bool start) {
    int64_t g = (int64_t)blockIdx.x * QUANT_BLOCK + threadIdx.x;
    if (g >= groups) return;
    if (start) learned_start(kind, &p.a[g], &p.b[g], grid[g]);
    if (kind != LearnedScale::lwc && p.a[g] < QUANT_LEAST_SCALE) p.a[g] = QUANT_LEAST_SCALE;
    grid[g] = learned_grid(q, kind, p.a[g], p.b[g], kind == LearnedScale::lwc ? p.range[g] : grid[g]);
}

// sums: [groups,pieces,2]: S and O. grid: as fake_quant_backward_kernel
template <int LANES>
__global__ void learned_backward_kernel(float* dw, float* sums, const float* w, const Grid* grid, QuantCut c,
                                        QuantSpec q, LearnedScale kind, QuantNoise noise) {
    QuantPlace p = quant_place<LANES>(c);
    Grid g = p.n ? grid[p.group] : Grid{1.0f, 0.0f};
    const float low = quant_low(q), high = quant_high(q);
    float S = 0.0f, O = 0.0f;
    for (int i = threadIdx.x % LANES; i < p.n; i += LANES) {
        float d = dw[p.start + i];
        const float x = w[p.start + i], u = quant_noise(noise, p.start + i);
        ScaleTerm t =
            quant_visit(q.format, [=](auto f) { return quant_scale_term<decltype(f)>(kind, x, g, low, high, u); });
        S = fmaf(d, t.s, S), O = fmaf(d, t.outside, O);
        if (t.outside != 0.0f) dw[p.start + i] = 0.0f;
    }
    if constexpr (LANES > 32) S = block_reduce_sum(S), O = block_reduce_sum(O);
    else S = group_reduce_sum<LANES>(S), O = group_reduce_sum<LANES>(O);
    if (threadIdx.x % LANES == 0 && p.n) sums[2 * p.index] = S, sums[2 * p.index + 1] = O;
}

// a thread a group. grid: CEIL_DIV(groups, QUANT_BLOCK)
__global__ void learned_gradient_kernel(LearnedGrid p, const float* sums, const Grid* grid, int64_t groups,
                                        int64_t pieces, QuantSpec q, LearnedScale kind, float h) {
    int64_t g = (int64_t)blockIdx.x * QUANT_BLOCK + threadIdx.x;
    if (g >= groups) return;
    float S = 0.0f, O = 0.0f;
    for (int64_t i = g * pieces; i < (g + 1) * pieces; i++) S += sums[2 * i], O += sums[2 * i + 1];
    LearnedGradient d =
        learned_gradient(q, kind, S, O, grid[g], p.a[g], p.b[g], p.range ? p.range[g] : Grid{0.0f, 0.0f}, h);
    p.da[g] += d.a, p.db[g] += d.b;
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

// grid: [groups], from the parameters; start: the parameters from the grid first. lwc measures the range of w:
// [groups,group] before.
inline void learned_grid_forward(Grid* grid, const LearnedGrid& p, const float* w, const QuantGroups& shape,
                                 QuantSpec q, LearnedScale kind, bool start, Device dev) {
    NVTX_RANGE("learned_grid_forward");
    if (kind == LearnedScale::lwc) quant_measure(p.range, ScaleState(), w, shape, {q, GridOf::ends}, dev);
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(learned_grid_kernel, (unsigned)CEIL_DIV(shape.groups, QUANT_BLOCK), QUANT_BLOCK, 0, dev.stream, grid, p,
               shape.groups, q, kind, start);
        return;
    }
#endif
    learned_grid_cpu(grid, p, shape.groups, q, kind, start);
}

// dw: [groups,group], in place: the gradient of Q(w) becomes that of w; p.da, p.db: [groups] accumulate. noise: the
// forward's
inline void learned_backward(float* dw, const LearnedGrid& p, const float* w, const Grid* grid,
                             const QuantGroups& shape, QuantSpec q, LearnedScale kind, QuantNoise noise, Device dev) {
    NVTX_RANGE("learned_backward");
    quant_check("learned_backward", shape, q);
#if HAS_KERNELS
    if (dev.cuda) {
        QuantCut c = quant_cut(w, dw, nullptr, shape.groups, shape.group);
        Scratch sums(2 * (size_t)(c.groups * c.pieces), dev);
        quant_launch(c, [&](auto lanes, unsigned blocks) {
            LAUNCH(learned_backward_kernel<decltype(lanes)::value>, blocks, QUANT_BLOCK, 0, dev.stream, dw, sums.data,
                   w, grid, c, q, kind, noise);
        });
        LAUNCH(learned_gradient_kernel, (unsigned)CEIL_DIV(shape.groups, QUANT_BLOCK), QUANT_BLOCK, 0, dev.stream, p,
               sums.data, grid, shape.groups, c.pieces, q, kind, learned_gradient_scale(shape, q));
        return;
    }
#endif
    (void)dev;
    learned_backward_cpu(dw, p, w, grid, shape, q, kind, noise);
}
