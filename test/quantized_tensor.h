// A quantized tensor for tests, on any backend, and weights to round.
#pragma once
#include "../quant.cuh"
#include "operator_test.h"

// in (0, 1), the i-th of a stream
inline float uniform(uint32_t tensor, uint32_t i) { return uniform01(rng_bits(3, RNG_INIT, tensor, i, 0).x[0]); }

// a quantized tensor and all that it points to
struct TestTensor {
    QuantizedTensor t;
    Quantizer q;
    TestBuffer<float> master;
    TestBuffer<floatX> work;
    TestBuffer<int8_t> codes, initial;
    TestBuffer<Grid> grid;
    TestBuffer<float> floats;
    TestBuffer<uint8_t> scale_codes;
    TestBuffer<int64_t> counts;
    static QuantizedTensor shaped(const std::string& text, int64_t rows, int64_t cols) {
        QuantizedTensor t;
        t.name = "w", t.rows = rows, t.cols = cols;
        quantized_tensor_init(t, quantizer_parse(text, "weights"));
        return t;
    }
    TestTensor(const std::string& text, int64_t rows, int64_t cols, const std::vector<float>& w, Device dev)
        : t(shaped(text, rows, cols)),
          q(quantizer_parse(text, "weights")),
          master(w, dev),
          work(w.size(), dev),
          codes(w.size(), dev),
          initial(w.size(), dev),
          grid(t.groups, dev),
          floats(scale_state_floats(t), dev),
          scale_codes(q.double_quant ? t.groups : 0, dev),
          counts(2, dev) {
        t.master = master.data, t.work = work.data, t.codes = codes.data, t.initial = initial.data, t.grid = grid.data;
        t.counts = counts.data;
        if (floats.n) t.state.tensor = floats.data;
        if (scale_codes.n) t.state.codes = scale_codes.data, t.state.absmax = floats.data + 1;
    }
    void refresh(ScaleMode mode, const QuantNoise& noise = QuantNoise()) {
        t.quantizer.scale_mode = mode, t.quantizer.stochastic = noise.on;
        quantized_tensor_refresh(t, t.master, noise, master.dev);
    }
};

// numbers over some decades, a group of zeros, and the largest at the end
inline std::vector<float> test_weights(int64_t rows, int64_t cols, uint32_t tensor) {
    std::vector<float> w = random_values<float>(rows * cols, tensor, 0.3f);
    for (int64_t i = 0; i < rows * cols; i++) w[i] *= std::exp2((float)(i / cols % 7) - 3.0f) * w[i] * w[i];
    for (int64_t j = 0; rows > 2 && j < cols; j++) w[cols + j] = 0.0f;
    w[rows * cols - 1] = -2.5f;
    return w;
}
