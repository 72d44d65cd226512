// Rounding to nearest: what every other method is measured against. The grid of a group is what the training forward
// would measure (kernels/fake_quant.cuh), so that a model rounded here and one whose training starts are the same.
#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>
#include "../quant.cuh"

// A linear on the host: w [rows,cols] is rounded to codes on a grid
struct RoundedLinear {
    float* w;
    int8_t* codes;  // [rows,cols]
    Grid* grid;     // [shape.groups]
    ScaleState state;
    QuantGroups shape;
    int64_t rows, cols;
    QuantSpec spec;
    bool keep_grid = false;  // it is there, and stays
    Grid& grid_of(int64_t i) const { return grid[i / shape.group]; }  // i: into w
};

// The linear of a quantized tensor whose arrays are on the host; w: its master, or another matrix of its shape
inline RoundedLinear rounded_linear(const QuantizedTensor& t, float* w) {
    return {w, t.codes, t.grid, t.state, quantized_tensor_groups(t), t.rows, t.cols, t.quantizer.spec, t.trained_grid};
}

// Memory for rounding a matrix that shall not touch the tensor's own codes and grid
struct RoundingScratch {
    std::vector<float> w, state;
    std::vector<int8_t> codes;
    std::vector<Grid> grid;
    std::vector<uint8_t> scale_codes;
};

inline RoundedLinear rounded_scratch(RoundingScratch& s, const QuantizedTensor& t) {
    s.w.resize(t.rows * t.cols), s.codes.resize(t.rows * t.cols), s.grid.resize(t.groups);
    s.state.resize(scale_state_floats(t)), s.scale_codes.resize(t.quantizer.double_quant ? t.groups : 0);
    RoundedLinear r = {s.w.data(), s.codes.data(), s.grid.data(),   {}, quantized_tensor_groups(t),
                       t.rows,     t.cols,         t.quantizer.spec,  t.trained_grid};
    if (!s.state.empty()) r.state.tensor = s.state.data();
    if (t.quantizer.double_quant) r.state.codes = s.scale_codes.data(), r.state.absmax = s.state.data() + 1;
    return r;
}

// t.w = Q(t.w) to nearest
inline void round_to_nearest(const RoundedLinear& t) {
    fake_quant_forward_cpu(t.w, t.codes, t.grid, t.state, t.w, t.shape, t.spec, true);
}

// Codes and grid of t.w to nearest, t.w as it is; lost [rows,cols] = t.w - Q(t.w)
inline void round_codes_to_nearest(const RoundedLinear& t, float* lost) {
    fake_quant_forward_cpu(lost, t.codes, t.grid, t.state, t.w, t.shape, t.spec, !t.keep_grid);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < t.rows * t.cols; i++) lost[i] = t.w[i] - lost[i];
}

// ---------------------------------------------------------------------------------------------------------------------
// A way of rounding, as the calibration walk (ptq.cuh) uses it: a row of its table

struct Rounder {
    // memory for linears of up to `inputs` columns and weights of up to `count` numbers and `rows` rows; may be empty
    std::function<void(int64_t inputs, int64_t count, int64_t rows, Device host)> allocate;
    // what the weights of a linear share: h [n,n] = 2/T sum x x^T of its inputs, on the host; `where` names the linear in
    // messages. Returns the damping it took. Empty: the rounder needs no calibration.
    std::function<double(const float* h, int64_t n, const std::string& where)> prepare;
    // codes and grid of t.w, which becomes what was rounded: numbers that have these codes on this grid, and that
    // training can go on from. lost [rows,cols] = t.w as it was - what the codes stand for
    std::function<void(const RoundedLinear& t, float* lost)> round;
};

inline Rounder rtn_rounder() {
    Rounder r;
    r.round = round_codes_to_nearest;
    return r;
}
