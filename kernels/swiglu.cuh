// SwiGLU (Shazeer 2020), gate and up side by side in one row as the fused projection leaves them.
//   forward   out[t,f] = silu(g) u,  silu(g) = g sigmoid(g),  g = gate_up[t,f], u = gate_up[t,F+f]
//   backward  du = dout silu(g);  dg = dout u sigmoid(g) (1 + g (1 - sigmoid(g)))
// Like transformers, silu(g) is rounded to floatX before the product. The arithmetic is one function for both devices.
// The trap: nvcc fuses 1 + g (1 - sigmoid) into one rounding and g++ does not; on the device the product is therefore
// one that is not fused, and the bits of both are the same wherever the CPU has FMA (exp_f asks for it).
//
// dgate_up may be gate_up. Traffic in bytes for bf16, least and moved: forward 6TF, backward 10TF.
// Launch: a thread a pack of columns of one row, 128 threads a block (the F of published models are multiples of 1024).
#pragma once
#include <cstdint>
#include "../runtime/device.h"
#include "../runtime/math.h"
#include "../runtime/parallel.h"

static constexpr int SWIGLU_BLOCK = 128, SWIGLU_COLUMNS = SWIGLU_BLOCK * 16 / (int)sizeof(floatX);  // of one block

ALWAYS_INLINE float swiglu(float g, float u) { return (float)floatX(g * sigmoid_f(g)) * u; }

struct SwigluGradient {
    float gate, up;
};
ALWAYS_INLINE SwigluGradient swiglu_gradient(float dout, float g, float u) {
    float s = sigmoid_f(g);
#if defined(__CUDA_ARCH__)
    float product = __fmul_rn(g, 1.0f - s);
#else
    float product = g * (1.0f - s);
#endif
    return SwigluGradient{dout * u * s * (1.0f + product), dout * g * s};
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

inline void swiglu_forward_cpu(floatX* out,            // [T,F]
                               const floatX* gate_up,  // [T,2F]
                               int64_t T, int64_t F) {
#pragma omp parallel for schedule(static) if (worth_threads(T * F / 2))
    for (int64_t t = 0; t < T; t++) {
        const floatX *g = gate_up + t * 2 * F, *u = g + F;
        floatX* o = out + t * F;
        INDEPENDENT
        for (int64_t f = 0; f < F; f++) o[f] = swiglu((float)g[f], (float)u[f]);
    }
}

inline void swiglu_backward_cpu(floatX* dgate_up,       // [T,2F]
                                const floatX* dout,     // [T,F]
                                const floatX* gate_up,  // [T,2F]
                                int64_t T, int64_t F) {
#pragma omp parallel for schedule(static) if (worth_threads(T * F))
    for (int64_t t = 0; t < T; t++) {
        const floatX *g = gate_up + t * 2 * F, *u = g + F, *d = dout + t * F;
        floatX *dg = dgate_up + t * 2 * F, *du = dg + F;
        INDEPENDENT
        for (int64_t f = 0; f < F; f++) {
            SwigluGradient q = swiglu_gradient((float)d[f], (float)g[f], (float)u[f]);
            dg[f] = q.gate;
            du[f] = q.up;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
// grid: T * blocks_per_row
__global__ void swiglu_forward_kernel(floatX* out, const floatX* gate_up, int F, int blocks_per_row, bool aligned) {
    constexpr int W = Pack128<floatX>::size;
    int64_t t = blockIdx.x / blocks_per_row;
    int i = (blockIdx.x % blocks_per_row * SWIGLU_BLOCK + threadIdx.x) * W;
    if (i >= F) return;
    const floatX* row = gate_up + t * 2 * F;
    Pack128<floatX> g = load_pack(row, i, F, aligned), u = load_pack(row + F, i, F, aligned);
    for (int k = 0; k < W; k++) g[k] = (floatX)swiglu((float)g[k], (float)u[k]);
    store_pack(out + t * F, i, F, aligned, g);
}

// grid: T * blocks_per_row
__global__ void swiglu_backward_kernel(floatX* dgate_up, const floatX* dout, const floatX* gate_up, int F,
                                       int blocks_per_row, bool aligned) {
    constexpr int W = Pack128<floatX>::size;
    int64_t t = blockIdx.x / blocks_per_row;
    int i = (blockIdx.x % blocks_per_row * SWIGLU_BLOCK + threadIdx.x) * W;
    if (i >= F) return;
    const floatX* row = gate_up + t * 2 * F;
    Pack128<floatX> g = load_pack(row, i, F, aligned), u = load_pack(row + F, i, F, aligned);
    Pack128<floatX> d = load_pack(dout + t * F, i, F, aligned);
    for (int k = 0; k < W; k++) {
        SwigluGradient q = swiglu_gradient((float)d[k], (float)g[k], (float)u[k]);
        g[k] = (floatX)q.gate;
        u[k] = (floatX)q.up;
    }
    store_pack(dgate_up + t * 2 * F, i, F, aligned, g);
    store_pack(dgate_up + t * 2 * F + F, i, F, aligned, u);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

// blocks of a row
inline int64_t swiglu_check(const char* name, int64_t T, int64_t F) {
    int64_t blocks = CEIL_DIV(F, SWIGLU_COLUMNS);
    if (T < 0 || F < 1 || F > INT32_MAX / 2 || T * blocks > INT32_MAX)
        fail("%s: bad shape: T %lld, F %lld (T * F / %d must be below 2^31)", name, (long long)T, (long long)F,
             SWIGLU_COLUMNS);
    return blocks;
}

// out: [T,F]; gate_up: [T,2F]
inline void swiglu_forward(floatX* out, const floatX* gate_up, int64_t T, int64_t F, Device dev) {
    NVTX_RANGE("swiglu_forward");
    int64_t blocks = swiglu_check("swiglu_forward", T, F);
    if (T == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(swiglu_forward_kernel, (unsigned)(T * blocks), SWIGLU_BLOCK, 0, dev.stream, out, gate_up, (int)F,
               (int)blocks, is_aligned16(out, F) && is_aligned16(gate_up, F));
        return;
    }
#endif
    (void)dev, (void)blocks;
    swiglu_forward_cpu(out, gate_up, T, F);
}

// dgate_up: [T,2F], may be gate_up; dout: [T,F]; gate_up: [T,2F]
inline void swiglu_backward(floatX* dgate_up, const floatX* dout, const floatX* gate_up, int64_t T, int64_t F,
                            Device dev) {
    NVTX_RANGE("swiglu_backward");
    int64_t blocks = swiglu_check("swiglu_backward", T, F);
    if (T == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(swiglu_backward_kernel, (unsigned)(T * blocks), SWIGLU_BLOCK, 0, dev.stream, dgate_up, dout, gate_up,
               (int)F, (int)blocks, is_aligned16(dgate_up, F) && is_aligned16(dout, F) && is_aligned16(gate_up, F));
        return;
    }
#endif
    (void)dev, (void)blocks;
    swiglu_backward_cpu(dgate_up, dout, gate_up, T, F);
}
