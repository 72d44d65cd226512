#pragma once
#include "../model.cuh"

// inputs of a layer's four products on a sample of calibration tokens (order of enum class Projection)
struct LayerInputs {
    int64_t tokens;
    const floatX* x[4];  // [tokens, cols]
    int64_t cols[4];
};
