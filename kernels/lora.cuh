// The pointwise parts of a low-rank adapter (methods/lora.cuh); its products are those of matmul.cuh.
//
//   lora_scale     out[i] = floatX(scale x[i])                              x A^T and dout B before their next product
//   lora_add       out[t,c] += scale keep(t,c) delta[t,c]                   into a slice of a joined output
//   lora_dropout   out[t,c] = keep(t,c) x[t,c]
// keep is 0 with probability p and else 1 / (1 - p); with p = 0 it is 1. It is no array but a draw, Philox of (seed,
// pass, product, row, column), so that the backward, and a forward that is computed again, see what the first one saw.
//
// The trap: scale * delta + out is one rounding on a GPU and two on a CPU unless it is written as fmaf.
//
// Traffic in bytes for bf16, least and moved: scale 6n, add 8TC (12TC into float), dropout 4TC.
// Launch: a thread a pack of columns of one row, 256 threads a block.
#pragma once
#include <cmath>
#include <cstdint>
#include "../runtime/device.h"
#include "../runtime/math.h"
#include "../runtime/parallel.h"
#include "../runtime/rng.h"

// p 0: nothing is dropped. row0: number of the first row
struct LoraDropout {
    float p = 0.0f;
    uint64_t seed = 0;
    uint32_t pass = 0, product = 0;
    int64_t row0 = 0;
};

HOST_DEVICE float lora_keep(const LoraDropout& d, int64_t t, int64_t c) {
    if (d.p == 0.0f) return 1.0f;
    Philox4 r = rng_bits(d.seed, RNG_DROPOUT, d.pass, d.product << 17 | (uint32_t)(c / 4), (uint32_t)(d.row0 + t));
    return uniform01(philox_word(r, (int)(c % 4))) < d.p ? 0.0f : 1.0f / (1.0f - d.p);
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

inline void lora_scale_cpu(floatX* out,     // [n]
                           const float* x,  // [n]
                           float scale, int64_t n) {
#pragma omp parallel for schedule(static) if (worth_threads(n / 4))
    for (int64_t i = 0; i < n; i++) out[i] = (floatX)(scale * x[i]);
}

template <class O>
void lora_add_cpu(O* out,              // [T,C] at ldo
                  const float* delta,  // [T,C]
                  float scale, const LoraDropout& d, int64_t ldo, int64_t T, int64_t C) {
#pragma omp parallel for schedule(static) if (worth_threads(T * C / (d.p == 0.0f ? 4 : 1)))
    for (int64_t t = 0; t < T; t++)
        for (int64_t c = 0; c < C; c++)
            out[t * ldo + c] = (O)std::fmaf(scale * lora_keep(d, t, c), delta[t * C + c], (float)out[t * ldo + c]);
}

inline void lora_dropout_cpu(floatX* out,      // [T,C]
                             const floatX* x,  // [T,C]
                             const LoraDropout& d, int64_t T, int64_t C) {
#pragma omp parallel for schedule(static) if (worth_threads(T * C))
    for (int64_t t = 0; t < T; t++)
        for (int64_t c = 0; c < C; c++) out[t * C + c] = (floatX)(lora_keep(d, t, c) * (float)x[t * C + c]);
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
static constexpr int LORA_BLOCK = 256;

// grid: CEIL_DIV(CEIL_DIV(n, pack), LORA_BLOCK)
__global__ void lora_scale_kernel(floatX* out, const float* x, float scale, int64_t n, bool aligned) {
    constexpr int W = Pack128<floatX>::size;
    int64_t first = ((int64_t)blockIdx.x * LORA_BLOCK + threadIdx.x) * W;
    if (first >= n) return;
    int left = n - first < W ? (int)(n - first) : W;
    Pack128<floatX> to;
    for (int p = 0; p < W; p += 4) {
        Pack128<float> from = load_pack(x + first, p, left, aligned);
        for (int k = 0; k < 4; k++) to[p + k] = (floatX)(scale * from[k]);
    }
    store_pack(out + first, 0, left, aligned, to);
}

// grid: CEIL_DIV(T * packs of C, LORA_BLOCK)
template <class O>
__global__ void lora_add_kernel(O* out, const float* delta, float scale, LoraDropout d, int64_t ldo, int64_t T, int C,
                                int packs, bool aligned) {
    constexpr int W = Pack128<O>::size;
    int64_t i = (int64_t)blockIdx.x * LORA_BLOCK + threadIdx.x, t = i / packs;
    int c = (int)(i % packs) * W;
    if (t >= T) return;
    Pack128<O> x = load_pack(out + t * ldo, c, C, aligned);
    for (int p = 0; p < W; p += 4) {
        Pack128<float> from = load_pack(delta + t * C, c + p, C, aligned);
        for (int k = 0; k < 4; k++) x[p + k] = (O)fmaf(scale * lora_keep(d, t, c + p + k), from[k], (float)x[p + k]);
    }
    store_pack(out + t * ldo, c, C, aligned, x);
}

// grid: CEIL_DIV(T * packs of C, LORA_BLOCK)
__global__ void lora_dropout_kernel(floatX* out, const floatX* x, LoraDropout d, int64_t T, int C, int packs,
                                    bool aligned) {
    constexpr int W = Pack128<floatX>::size;
    int64_t i = (int64_t)blockIdx.x * LORA_BLOCK + threadIdx.x, t = i / packs;
    int c = (int)(i % packs) * W;
    if (t >= T) return;
    Pack128<floatX> y = load_pack(x + t * C, c, C, aligned);
    for (int k = 0; k < W; k++) y[k] = (floatX)(lora_keep(d, t, c + k) * (float)y[k]);
    store_pack(out + t * C, c, C, aligned, y);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

inline void lora_check(const char* name, int64_t T, int64_t C) {
    if (T < 0 || C < 1 || C > 4 << 17 || T > INT32_MAX || T * CEIL_DIV(C, 4) / 256 >= INT32_MAX)
        fail("%s: bad shape: %lld rows of %lld (at most 524288 columns)", name, (long long)T, (long long)C);
}

// out, x: [n]
inline void lora_scale(floatX* out, const float* x, float scale, int64_t n, Device dev) {
    NVTX_RANGE("lora_scale");
    if (n <= 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(lora_scale_kernel, (unsigned)CEIL_DIV(n, LORA_BLOCK * Pack128<floatX>::size), LORA_BLOCK, 0, dev.stream,
               out, x, scale, n, is_aligned16(out, 0) && is_aligned16(x, 0));
        return;
    }
#endif
    (void)dev;
    lora_scale_cpu(out, x, scale, n);
}

// out: [T,C] at ldo, floatX or float, +=; delta: [T,C]
template <class O>
void lora_add(O* out, const float* delta, float scale, const LoraDropout& d, int64_t ldo, int64_t T, int64_t C,
              Device dev) {
    NVTX_RANGE("lora_add");
    lora_check("lora_add", T, C);
    if (T == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        int packs = (int)CEIL_DIV(C, Pack128<O>::size);
        LAUNCH(lora_add_kernel<O>, (unsigned)CEIL_DIV(T * packs, LORA_BLOCK), LORA_BLOCK, 0, dev.stream, out, delta,
               scale, d, ldo, T, (int)C, packs, is_aligned16(out, ldo) && is_aligned16(delta, C));
        return;
    }
#endif
    (void)dev;
    lora_add_cpu(out, delta, scale, d, ldo, T, C);
}

// out, x: [T,C]
inline void lora_dropout(floatX* out, const floatX* x, const LoraDropout& d, int64_t T, int64_t C, Device dev) {
    NVTX_RANGE("lora_dropout");
    lora_check("lora_dropout", T, C);
    if (T == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        int packs = (int)CEIL_DIV(C, Pack128<floatX>::size);
        LAUNCH(lora_dropout_kernel, (unsigned)CEIL_DIV(T * packs, LORA_BLOCK), LORA_BLOCK, 0, dev.stream, out, x, d, T,
               (int)C, packs, is_aligned16(out, C) && is_aligned16(x, C));
        return;
    }
#endif
    (void)dev;
    lora_dropout_cpu(out, x, d, T, C);
}
