// Oscillating codes (Nagel, Fournarakis, Bondarenko, Blankevoort 2022, arXiv 2203.11086): a weight near the edge of a cell
// crosses it to and fro, step after step, because the gradient that drives it back is that of the other code. q^t is a
// weight's integer code after step t, d its last change's direction:
//   o^t = 1 if q^t != q^t-1 and its direction is opposite to that of the change before, else 0
//   f^t = m o^t + (1 - m) f^t-1                    the frequency of oscillation (their eq. 6)
//   frozen once f^t > threshold, at rint(ema^t-1), ema^t = m q^t + (1 - m) ema^t-1     (their section 4.3)
// A frozen weight keeps its code and follows its scale: w = Q(w) = value(code) at every step.
//
//   oscillation_start    codes of [groups,group] w; nothing has changed yet
//   oscillation_track    after a step, with the grid as it is now: f, ema, freezing; frozen w and q are set
//   oscillation_hold     frozen w back to their codes, before they are quantized again
//   dampening            dw += weight (w - Q(w)) where w is inside its range: half the gradient of
//                        weight ||Q(w) - clip(w)||^2 with Q(w) held (their eq. 7)
// Both devices give the same bits: each number by itself; counts are integers.
//
// Traffic in bytes, least and moved, for bf16: track 16 read and 10 written a weight, hold 1, dampening 10 and 4.
// Launch: a thread a number.
#pragma once
#include "fake_quant.cuh"

// Views [groups,group]
struct Oscillation {
    int8_t* code = nullptr;       // q, as the codes of the tree are kept
    int8_t* direction = nullptr;  // of the last change: -1, 1; 0: none yet; OSCILLATION_FROZEN
    float* frequency = nullptr;   // f
    float* ema = nullptr;
};
static constexpr int8_t OSCILLATION_FROZEN = 2;
static constexpr float OSCILLATING = 0.005f;  // f beyond which the paper counts a weight as oscillating (their table 2)

struct OscillationRule {
    float momentum;   // m
    float threshold;  // f beyond it freezes; INFINITY: never
};

// ---------------------------------------------------------------------------------------------------------------------
// one number

HOST_DEVICE void oscillation_start_at(const Oscillation& o, int64_t i, float w, Grid g, QuantSpec spec) {
    const int code = quant_code(spec, w, g);
    o.code[i] = (int8_t)code, o.direction[i] = 0, o.frequency[i] = 0.0f, o.ema[i] = (float)code;
}

HOST_DEVICE void oscillation_track_at(const Oscillation& o, int64_t i, float* w, floatX* q, int8_t* codes, Grid g,
                                      QuantSpec spec, OscillationRule r) {
    if (o.direction[i] != OSCILLATION_FROZEN) {
        const int now = quant_code(spec, w[i], g), before = o.code[i], last = o.direction[i];
        const int direction = now > before ? 1 : now < before ? -1 : 0;
        const float ema = o.ema[i], oscillated = direction != 0 && direction == -last ? r.momentum : 0.0f;
        const float f = fmaf(1.0f - r.momentum, o.frequency[i], oscillated);
        const bool freeze = f > r.threshold;
        o.frequency[i] = f;
        o.direction[i] = (int8_t)(freeze ? OSCILLATION_FROZEN : direction ? direction : last);
        o.code[i] = (int8_t)(freeze ? (int)rintf(ema) : now);
        o.ema[i] = fmaf(r.momentum, (float)now - ema, ema);
    }
    if (o.direction[i] != OSCILLATION_FROZEN) return;
    w[i] = quant_value(spec, o.code[i], g);
    q[i] = (floatX)w[i];
    if (codes) codes[i] = o.code[i];
}

HOST_DEVICE float dampening_of(float w, float q, Grid g, float low, float high) {
    const float x = w / g.scale + g.zero;
    return ((x >= low) & (x <= high)) ? w - q : 0.0f;
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

// use(i, grid of i) for all n numbers
template <class Use>
inline void oscillation_each_cpu(const Grid* grid, const QuantGroups& shape, const Use& use) {
    const int64_t n = shape.groups * shape.group;
#pragma omp parallel for schedule(static) if (worth_threads(n))
    for (int64_t i = 0; i < n; i++) use(i, grid[i / shape.group]);
}

inline void oscillation_start_cpu(const Oscillation& o, const float* w, const Grid* grid, const QuantGroups& shape,
                                  QuantSpec spec) {
    oscillation_each_cpu(grid, shape, [&](int64_t i, Grid g) { oscillation_start_at(o, i, w[i], g, spec); });
}

inline void oscillation_track_cpu(const Oscillation& o, float* w, floatX* q, int8_t* codes, const Grid* grid,
                                  const QuantGroups& shape, QuantSpec spec, OscillationRule r) {
    oscillation_each_cpu(grid, shape, [&](int64_t i, Grid g) { oscillation_track_at(o, i, w, q, codes, g, spec, r); });
}

inline void oscillation_hold_cpu(const Oscillation& o, float* w, const Grid* grid, const QuantGroups& shape,
                                 QuantSpec spec) {
    oscillation_each_cpu(grid, shape, [&](int64_t i, Grid g) {
        if (o.direction[i] == OSCILLATION_FROZEN) w[i] = quant_value(spec, o.code[i], g);
    });
}

// += {oscillating and not frozen, frozen}
inline void oscillation_count_cpu(int64_t* counts, const Oscillation& o, int64_t n) {
    int64_t oscillating = 0, frozen = 0;
#pragma omp parallel for schedule(static) reduction(+ : oscillating, frozen) if (worth_threads(n / 8))
    for (int64_t i = 0; i < n; i++) {
        const bool held = o.direction[i] == OSCILLATION_FROZEN;
        frozen += held, oscillating += !held && o.frequency[i] > OSCILLATING;
    }
    counts[0] += oscillating, counts[1] += frozen;
}

inline void dampening_cpu(float* dw, const float* w, const floatX* q, const Grid* grid, const QuantGroups& shape,
                          QuantSpec spec, float weight) {
    const float low = quant_low(spec), high = quant_high(spec);
    oscillation_each_cpu(grid, shape, [&](int64_t i, Grid g) {
        dw[i] = fmaf(weight, dampening_of(w[i], (float)q[i], g, low, high), dw[i]);
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels: a thread a number, grid: CEIL_DIV(n, QUANT_BLOCK)

#if HAS_KERNELS
__global__ void oscillation_start_kernel(Oscillation o, const float* w, const Grid* grid, QuantGroups shape,
                                         QuantSpec spec) {
    const int64_t i = (int64_t)blockIdx.x * QUANT_BLOCK + threadIdx.x;
    if (i < shape.groups * shape.group) oscillation_start_at(o, i, w[i], grid[i / shape.group], spec);
}

__global__ void oscillation_track_kernel(Oscillation o, float* w, floatX* q, int8_t* codes, const Grid* grid,
                                         QuantGroups shape, QuantSpec spec, OscillationRule r) {
    const int64_t i = (int64_t)blockIdx.x * QUANT_BLOCK + threadIdx.x;
    if (i < shape.groups * shape.group) oscillation_track_at(o, i, w, q, codes, grid[i / shape.group], spec, r);
}

__global__ void oscillation_hold_kernel(Oscillation o, float* w, const Grid* grid, QuantGroups shape, QuantSpec spec) {
    const int64_t i = (int64_t)blockIdx.x * QUANT_BLOCK + threadIdx.x;
    if (i < shape.groups * shape.group && o.direction[i] == OSCILLATION_FROZEN)
        w[i] = quant_value(spec, o.code[i], grid[i / shape.group]);
}

__global__ void oscillation_count_kernel(int64_t* counts, Oscillation o, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * QUANT_BLOCK + threadIdx.x;
    const bool held = i < n && o.direction[i] == OSCILLATION_FROZEN;
    quant_count(counts, i < n && !held && o.frequency[i] > OSCILLATING);
    __syncthreads();  // both counts use the same shared memory
    quant_count(counts + 1, held);
}

__global__ void dampening_kernel(float* dw, const float* w, const floatX* q, const Grid* grid, QuantGroups shape,
                                 float low, float high, float weight) {
    const int64_t i = (int64_t)blockIdx.x * QUANT_BLOCK + threadIdx.x;
    if (i < shape.groups * shape.group)
        dw[i] = fmaf(weight, dampening_of(w[i], (float)q[i], grid[i / shape.group], low, high), dw[i]);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers. w [groups,group] fp32, q the same as the forward reads it, grid [groups]; integer formats

inline void oscillation_check(const char* name, const QuantGroups& shape, QuantSpec spec) {
    quant_check(name, shape, spec);
    if (!quant_is_integer(spec)) fail("%s: a format without integer codes", name);
}

inline void oscillation_start(const Oscillation& o, const float* w, const Grid* grid, const QuantGroups& shape,
                              QuantSpec spec, Device dev) {
    NVTX_RANGE("oscillation_start");
    oscillation_check("oscillation_start", shape, spec);
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(oscillation_start_kernel, (unsigned)CEIL_DIV(shape.groups * shape.group, QUANT_BLOCK), QUANT_BLOCK, 0,
               dev.stream, o, w, grid, shape, spec);
        return;
    }
#endif
    (void)dev;
    oscillation_start_cpu(o, w, grid, shape, spec);
}

inline void oscillation_track(const Oscillation& o, float* w, floatX* q, int8_t* codes, const Grid* grid,
                              const QuantGroups& shape, QuantSpec spec, OscillationRule r, Device dev) {
    NVTX_RANGE("oscillation_track");
    oscillation_check("oscillation_track", shape, spec);
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(oscillation_track_kernel, (unsigned)CEIL_DIV(shape.groups * shape.group, QUANT_BLOCK), QUANT_BLOCK, 0,
               dev.stream, o, w, q, codes, grid, shape, spec, r);
        return;
    }
#endif
    (void)dev;
    oscillation_track_cpu(o, w, q, codes, grid, shape, spec, r);
}

inline void oscillation_hold(const Oscillation& o, float* w, const Grid* grid, const QuantGroups& shape, QuantSpec spec,
                             Device dev) {
    NVTX_RANGE("oscillation_hold");
    oscillation_check("oscillation_hold", shape, spec);
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(oscillation_hold_kernel, (unsigned)CEIL_DIV(shape.groups * shape.group, QUANT_BLOCK), QUANT_BLOCK, 0,
               dev.stream, o, w, grid, shape, spec);
        return;
    }
#endif
    (void)dev;
    oscillation_hold_cpu(o, w, grid, shape, spec);
}

// counts [2], where the arrays are: += how many of n oscillate, and are frozen
inline void oscillation_count(int64_t* counts, const Oscillation& o, int64_t n, Device dev) {
    NVTX_RANGE("oscillation_count");
    if (n <= 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(oscillation_count_kernel, (unsigned)CEIL_DIV(n, QUANT_BLOCK), QUANT_BLOCK, 0, dev.stream, counts, o, n);
        return;
    }
#endif
    (void)dev;
    oscillation_count_cpu(counts, o, n);
}

inline void dampening(float* dw, const float* w, const floatX* q, const Grid* grid, const QuantGroups& shape,
                      QuantSpec spec, float weight, Device dev) {
    NVTX_RANGE("dampening");
    oscillation_check("dampening", shape, spec);
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(dampening_kernel, (unsigned)CEIL_DIV(shape.groups * shape.group, QUANT_BLOCK), QUANT_BLOCK, 0,
               dev.stream, dw, w, q, grid, shape, quant_low(spec), quant_high(spec), weight);
        return;
    }
#endif
    (void)dev;
    dampening_cpu(dw, w, q, grid, shape, spec, weight);
}
