// AdamW (adamw.cuh) whose moments are stored in 8 bits (Dettmers et al. 2022, "8-bit optimizers via block-wise
// quantization", arXiv 2110.02861): blocks of 256 weights, each divided by its largest |m| and |v| and coded by a
// dynamic map, signed for m and unsigned for v. 2 bytes of state a weight and 8 a block.
//   m = map_m[code] absmax_m;  one step of AdamW in fp32;  absmax = max |m| of the block;  code = nearest(m / absmax)
// The weight moves by the moments before they are coded again. This is bitsandbytes' AdamW8bit; what differs:
//   - each number gets the nearest code, a tie the lower one. bitsandbytes' CPU kernel looks codes up in a table of
//     2^16 steps, and its GPU kernel keeps a negative m from becoming 0 but not a positive one.
//   - its GPU kernel decays a weight after the step instead of before: lr^2 decay apart.
// After 20 steps every code is that of its formula with the nearest codes; of its CPU kernel's codes 3 % of m and 7 %
// of v differ, and where the weights went by 0.7 %; 8-bit moments are 3 % away from fp32's (test/test_optimizers.cpp).
// A block of zeros has absmax 0, whatever its codes.
//
// Traffic in bytes, least and moved: 16n. Launch: a block of threads 4 blocks of weights, one after another.
// The trap: a block's largest moment decides what becomes of its smallest. Below 3e-7 of it m vanishes, below 2e-7 v;
// but v is a square, so it is gone where gradients are 2500 times smaller than the block's largest: m is still there
// then, and the weight's next step is 30 times too long and more. bitsandbytes' are too.
#pragma once
#include "adamw.cuh"
#include "dynamic_map.cuh"

static constexpr int ADAMW_8BIT_BLOCK = 256;  // weights, and threads

struct AdamW8bitMaps {
    DynamicMap m, v;
};
inline const AdamW8bitMaps& adamw_8bit_maps() {
    static const AdamW8bitMaps maps = {dynamic_map(true), dynamic_map(false)};
    return maps;
}

// The state of n weights
struct AdamW8bitState {
    uint8_t *m, *v;              // [n]
    float *m_absmax, *v_absmax;  // [CEIL_DIV(n, ADAMW_8BIT_BLOCK)]
};

// what is coded
HOST_DEVICE float adamw_8bit_share(float x, float absmax) { return absmax > 0.0f ? x / absmax : 0.0f; }

inline void adamw_8bit_update_cpu(float* w,  // [n]
                                  const AdamW8bitState& s,
                                  const float* grad,  // [n]
                                  int64_t n, float grad_scale, const AdamWConfig& c, int64_t step) {
    const AdamWCorrection correct = adamw_correction(c, step);
    const AdamW8bitMaps& maps = adamw_8bit_maps();
    float m_borders[255], v_borders[255];
    for (int u = 0; u < 255; u++) {
        m_borders[u] = dynamic_map_border(maps.m.value, u);
        v_borders[u] = dynamic_map_border(maps.v.value, u);
    }
#pragma omp parallel for schedule(static) if (n > 16 * ADAMW_8BIT_BLOCK)
    for (int64_t b = 0; b < CEIL_DIV(n, ADAMW_8BIT_BLOCK); b++) {
        const int64_t first = b * ADAMW_8BIT_BLOCK;
        const int count = n - first < ADAMW_8BIT_BLOCK ? (int)(n - first) : ADAMW_8BIT_BLOCK;
        float m[ADAMW_8BIT_BLOCK], v[ADAMW_8BIT_BLOCK], m_largest = 0.0f, v_largest = 0.0f;
        const float m_absmax = s.m_absmax[b], v_absmax = s.v_absmax[b];
        for (int i = 0; i < count; i++) m[i] = maps.m.value[s.m[first + i]] * m_absmax;
        for (int i = 0; i < count; i++) v[i] = maps.v.value[s.v[first + i]] * v_absmax;
#pragma omp simd
        for (int i = 0; i < count; i++)
            adamw_step(w + first + i, m + i, v + i, grad[first + i], grad_scale, c, correct);
#pragma omp simd reduction(max : m_largest, v_largest)
        for (int i = 0; i < count; i++) {
            const float size = fabsf(m[i]);
            m_largest = size > m_largest ? size : m_largest;
            v_largest = v[i] > v_largest ? v[i] : v_largest;
        }
        for (int i = 0; i < count; i++) {
            m[i] = adamw_8bit_share(m[i], m_largest);
            v[i] = adamw_8bit_share(v[i], v_largest);
        }
        dynamic_map_codes_cpu(s.m + first, m, count, m_borders);
        dynamic_map_codes_cpu(s.v + first, v, count, v_borders);
        s.m_absmax[b] = m_largest, s.v_absmax[b] = v_largest;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernel

#if HAS_KERNELS
static constexpr int ADAMW_8BIT_CHUNK = 4;  // blocks of weights

// Largest of the block of threads; every thread gets it. part: [ADAMW_8BIT_BLOCK / 32], shared
__device__ inline float adamw_8bit_block_max(float x, float* part) {
    x = warp_reduce_max(x);
    __syncthreads();  // the last call's reads are over
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    x = part[0];
    for (int i = 1; i < ADAMW_8BIT_BLOCK / 32; i++) x = fmaxf(x, part[i]);
    return x;
}

// grid: CEIL_DIV(n, ADAMW_8BIT_BLOCK * ADAMW_8BIT_CHUNK)
__global__ void adamw_8bit_update_kernel(float* w, AdamW8bitState s, const float* grad, int64_t n, float grad_scale,
                                         AdamWConfig c, AdamWCorrection correct, AdamW8bitMaps maps) {
    __shared__ float m_map[256], v_map[256], part[ADAMW_8BIT_BLOCK / 32];
    m_map[threadIdx.x] = maps.m.value[threadIdx.x];
    v_map[threadIdx.x] = maps.v.value[threadIdx.x];
    __syncthreads();
    for (int chunk = 0; chunk < ADAMW_8BIT_CHUNK; chunk++) {
        const int64_t b = (int64_t)blockIdx.x * ADAMW_8BIT_CHUNK + chunk, i = b * ADAMW_8BIT_BLOCK + threadIdx.x;
        if (b * ADAMW_8BIT_BLOCK >= n) return;
        const bool inside = i < n;
        float m = 0.0f, v = 0.0f;
        if (inside) {
            m = m_map[s.m[i]] * s.m_absmax[b];
            v = v_map[s.v[i]] * s.v_absmax[b];
            adamw_step(w + i, &m, &v, grad[i], grad_scale, c, correct);
        }
        const float m_largest = adamw_8bit_block_max(fabsf(m), part), v_largest = adamw_8bit_block_max(v, part);
        if (inside) {
            s.m[i] = (uint8_t)dynamic_map_code(m_map, adamw_8bit_share(m, m_largest));
            s.v[i] = (uint8_t)dynamic_map_code(v_map, adamw_8bit_share(v, v_largest));
        }
        if (threadIdx.x == 0) s.m_absmax[b] = m_largest, s.v_absmax[b] = v_largest;
    }
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launcher

// w, grad: [n]; step counts from 1
inline void adamw_8bit_update(float* w, const AdamW8bitState& s, const float* grad, int64_t n, float grad_scale,
                              const AdamWConfig& c, int64_t step, Device dev) {
    NVTX_RANGE("adamw_8bit_update");
    if (n <= 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(adamw_8bit_update_kernel, (unsigned)CEIL_DIV(n, ADAMW_8BIT_BLOCK * ADAMW_8BIT_CHUNK), ADAMW_8BIT_BLOCK,
               0, dev.stream, w, s, grad, n, grad_scale, c, adamw_correction(c, step), adamw_8bit_maps());
        return;
    }
#endif
    (void)dev;
    adamw_8bit_update_cpu(w, s, grad, n, grad_scale, c, step);
}
