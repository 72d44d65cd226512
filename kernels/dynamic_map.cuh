// The dynamic maps of 8 bits (Dettmers 2016, arXiv 1511.04561; Dettmers et al. 2022, arXiv 2110.02861): 256 numbers,
// dense near zero, for values whose block is scaled to [-1, 1]. 7 decades up to 1; decade i has 2^i linear steps on
// each side of zero where the map is signed, else 2^(i+1) steps. Scales of double quantization and moments of AdamW use
// them.
#pragma once
#include <cmath>
#include <cstdint>
#include "../runtime/dtypes.h"

// Step k of n of decade i of bitsandbytes' maps (create_dynamic_map): the middles of linspace(0.1, 1, n + 1) times
// 10^(i-6). linspace is torch's, which counts from the nearer end and fuses.
HOST_DEVICE float dynamic_map_middle(int i, int n, int k) {
    float step = (1.0f - 0.1f) / (float)n, end[2];
    for (int e = 0; e < 2; e++)
        end[e] = k + e < (n + 1) / 2 ? fmaf(step, (float)(k + e), 0.1f) : fmaf(-step, (float)(n - k - e), 1.0f);
    float ten = i == 0   ? 1e-6f
                : i == 1 ? 1e-5f
                : i == 2 ? 1e-4f
                : i == 3 ? 1e-3f
                : i == 4 ? 1e-2f
                : i == 5 ? 0.1f
                         : 1.0f;
    return (end[0] + end[1]) / 2.0f * ten;
}

// entry u of a map, ascending; 0 and 1 are entries too
HOST_DEVICE float dynamic_map_value(uint32_t u, bool with_sign = true) {
    const uint32_t zero = with_sign ? 127 : 0, steps0 = with_sign ? 1 : 2;  // steps0: of decade 0
    if (u == zero) return 0.0f;
    if (u >= 255) return 1.0f;
    uint32_t index = u > zero ? u - zero - 1 : zero - 1 - u;
    int i = 0;
    uint32_t n = steps0;
    while (index >= n) index -= n, n *= 2, i++;
    float x = dynamic_map_middle(i, (int)n, (int)index);
    return u > zero ? x : -x;
}

struct DynamicMap {
    float value[256];  // sorted
};
inline DynamicMap dynamic_map(bool with_sign = true) {
    DynamicMap m;
    for (uint32_t u = 0; u < 256; u++) m.value[u] = dynamic_map_value(u, with_sign);
    return m;
}

// between entry u < 255 and the next
HOST_DEVICE float dynamic_map_border(const float* value, int u) { return 0.5f * (value[u] + value[u + 1]); }

// x -> the nearest of the map; a tie goes down: the count of the borders below x. NaN becomes 0.
HOST_DEVICE int dynamic_map_code(const float* value, float x) {
    int low = 0;
    for (int half = 128; half > 0; half /= 2) low += x > dynamic_map_border(value, low + half - 1) ? half : 0;
    return low;
}
HOST_DEVICE int dynamic_map_code(const DynamicMap& m, float x) { return dynamic_map_code(m.value, x); }

// The same for n <= 256 numbers, all of them one step at a time, which vectorizes. borders: of the map
inline void dynamic_map_codes_cpu(uint8_t* code,   // [n]
                                  const float* x,  // [n]
                                  int n, const float* borders) {
    int low[256] = {};
    for (int half = 128; half > 0; half /= 2)
#pragma omp simd
        for (int i = 0; i < n; i++) low[i] += x[i] > borders[low[i] + half - 1] ? half : 0;
    for (int i = 0; i < n; i++) code[i] = (uint8_t)low[i];
}
