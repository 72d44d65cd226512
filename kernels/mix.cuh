// A share of other numbers into numbers that are kept: out = a x + (1 - a) out, in fp32, rounded once to out's type. With
// weights, an exponential moving average: TRL's synced reference model (sync_ref_model; Gorbatovski et al. 2024, arXiv
// 2404.09656, eq. 2, "soft update").
//
// The trap: in bf16 a small a moves nothing once a |x - out| is below half a step of out.
//
// Traffic in bytes for bf16: 6n, which is least. Launch: a thread moves one pack.
#pragma once
#include <cstdint>
#include "../runtime/device.h"
#include "../runtime/math.h"
#include "../runtime/parallel.h"

// the same on both devices: the product of (1 - a) and out is added by one rounding
HOST_DEVICE float mix(float out, float x, float a) { return fmaf(1.0f - a, out, a * x); }

inline void mix_forward_cpu(floatX* out,      // [n]
                            const floatX* x,  // [n]
                            float a, int64_t n) {
#pragma omp parallel for schedule(static) if (worth_threads(n / 4))
    for (int64_t i = 0; i < n; i++) out[i] = (floatX)mix((float)out[i], (float)x[i], a);
}

#if HAS_KERNELS
static constexpr int MIX_BLOCK = 256;

// grid: CEIL_DIV(n, MIX_BLOCK * pack)
__global__ void mix_forward_kernel(floatX* out, const floatX* x, float a, int64_t n, bool aligned) {
    constexpr int W = Pack128<floatX>::size;
    const int64_t first = ((int64_t)blockIdx.x * MIX_BLOCK + threadIdx.x) * W;
    if (first >= n) return;
    const int left = n - first < W ? (int)(n - first) : W;
    Pack128<floatX> to = load_pack(out + first, 0, left, aligned), from = load_pack(x + first, 0, left, aligned);
    for (int k = 0; k < W; k++) to[k] = (floatX)mix((float)to[k], (float)from[k], a);
    store_pack(out + first, 0, left, aligned, to);
}
#endif

// out, x: [n]; 0 <= a <= 1
inline void mix_forward(floatX* out, const floatX* x, float a, int64_t n, Device dev) {
    NVTX_RANGE("mix_forward");
    if (n <= 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(mix_forward_kernel, (unsigned)CEIL_DIV(n, MIX_BLOCK * Pack128<floatX>::size), MIX_BLOCK, 0, dev.stream,
               out, x, a, n, is_aligned16(out, 0) && is_aligned16(x, 0));
        return;
    }
#endif
    (void)dev;
    mix_forward_cpu(out, x, a, n);
}
