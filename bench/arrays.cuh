// Arrays and packed weights for benchmarks, on either device.
#pragma once
#include <vector>
#include "../kernels/packed_weight.cuh"
#include "../runtime/buffer.h"
#include "../runtime/rng.h"

// zeros
template <class T>
Buffer<T> room(int64_t n, Device dev) {
    Buffer<T> b;
    b.allocate((size_t)n, "a benchmark's array", "", dev);
    return b;
}

template <class T>
Buffer<T> on_device(const std::vector<T>& values, Device dev) {
    Buffer<T> b = room<T>((int64_t)values.size(), dev);
    copy_to_device(b.data, values.data(), b.bytes(), dev);
    device_synchronize(dev);
    return b;
}

// uniform in [-1, 1]
template <class T>
std::vector<T> numbers(int64_t n) {
    std::vector<T> x((size_t)n);
    uint32_t state = 1;
    for (T& e : x) {
        state = state * 1664525u + 1013904223u;
        e = T((float)(state >> 8) * (2.0f / 16777216.0f) - 1.0f);
    }
    return x;
}
template <class T>
Buffer<T> noise(int64_t n, Device dev) {
    return on_device(numbers<T>(n), dev);
}

// n indices below `end`
inline std::vector<int> indices(int64_t n, int64_t end) {
    std::vector<int> x((size_t)n);
    for (int64_t i = 0; i < n; i++) x[i] = (int)(rng_bits(1, RNG_INIT, 0, (uint32_t)i, 0).x[0] % (uint64_t)end);
    return x;
}

struct PackedCodes {
    Buffer<char> memory;
    QuantizedWeight w;
};

// w [N,K] as packed codes in groups of `group`
inline PackedCodes pack_codes(const std::vector<float>& w, int64_t N, int64_t K, int64_t group, QuantFormat format,
                              int bits, Device dev) {
    QuantSpec q;
    q.format = format, q.bits = bits;
    std::vector<Grid> grid(N * K / group);
    std::vector<int8_t> codes(N * K);
#pragma omp parallel for schedule(static)
    for (int64_t g = 0; g < (int64_t)grid.size(); g++) {
        float min = 0, max = 0;
        for (int64_t i = g * group; i < (g + 1) * group; i++) min = std::min(min, w[i]), max = std::max(max, w[i]);
        grid[g] = quant_grid(q, min, max, 1.0f, 1.0f);
        for (int64_t i = g * group; i < (g + 1) * group; i++) codes[i] = (int8_t)quant_code(q, w[i], grid[g]);
    }
    Buffer<int8_t> device_codes = room<int8_t>(N * K, dev);
    Buffer<Grid> device_grid = room<Grid>((int64_t)grid.size(), dev);
    const Buffer<float> tensor = on_device(std::vector<float>{1.0f}, dev);  // nvfp4's second scale
    copy_to_device(device_codes.data, codes.data(), codes.size(), dev);
    copy_to_device(device_grid.data, grid.data(), grid.size() * sizeof(Grid), dev);
    PackedCodes p;
    p.w = quantized_weight(q, quantized_storage(q, false), {N}, K, group, quantized_layout(dev));
    p.memory = room<char>((int64_t)quantized_weight_bytes(p.w), dev);
    quantized_weight_place(p.w, p.memory.data);
    QuantizedSources from;
    from.part[0].codes = device_codes.data, from.part[0].grid = device_grid.data, from.part[0].tensor = tensor.data;
    quantized_weight_pack(p.w, from, dev);
    device_synchronize(dev);
    return p;
}
