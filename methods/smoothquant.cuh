// SmoothQuant (Xiao et al. 2022, arXiv 2211.10438): the outlier channels of activations move into the weights, so that
// both can be quantized. For the input X of the products that read a norm (q,k,v; gate,up), eq. 4:
//   s_j = max|X_j|^alpha / max|W_j|^(1-alpha),   norm_j /= s_j,   W_j *= s_j         (W_j: a column of all of them)
// The full-precision function stays. Everything happens on the fp32 master weights, on the host.
#pragma once
#include <cmath>
#include <vector>
#include "calibration.cuh"

// w: [rows, cols], column j times s[j]
inline void scale_columns(float* w, int64_t rows, int64_t cols, const float* s) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) w[i * cols + j] *= s[j];
}

inline void divide_columns(float* w, int64_t rows, int64_t cols, const float* s) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) w[i * cols + j] /= s[j];
}

// numbers of a vector, or rows of a matrix of `cols`, divided by s
inline void divide_rows(float* w, int64_t rows, int64_t cols, const float* s) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) w[i * cols + j] /= s[i];
}

// s for the columns of w [rows, cols] and of x [tokens, cols]; the maxima and s are at least 1e-5
inline std::vector<float> smoothquant_scales(const floatX* x, int64_t tokens, const float* w, int64_t rows,
                                             int64_t cols, double alpha) {
    std::vector<float> xmax(cols, 1e-5f), wmax(cols, 1e-5f), s(cols);
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t j = 0; j < cols; j++) xmax[j] = std::fmax(xmax[j], std::fabs((float)x[t * cols + j]));
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) wmax[j] = std::fmax(wmax[j], std::fabs(w[i * cols + j]));
    for (int64_t j = 0; j < cols; j++) {
        double v = std::pow((double)xmax[j], alpha) / std::pow((double)wmax[j], 1.0 - alpha);
        s[j] = (float)(v > 1e-5 ? v : 1e-5);
    }
    return s;
}

// w: the masters of layer l on the host. alpha in [0,1]: how much of the difficulty goes to the weights (0.5; 0.8 to
// 0.85 where outliers are strong)
inline void smoothquant_layer(const Layer& l, const LayerMasters& w, const LayerInputs& in, double alpha) {
    if (!(alpha >= 0.0 && alpha <= 1.0)) fail_usage("smoothquant: alpha %g is not in [0, 1]", alpha);
    for (Product p : {Product::qkv, Product::gate_up}) {
        const Linear& linear = *layer_linears(l)[(int)p];
        if (is_transformed(linear)) continue;  // a rotation lies between norm and product
        float *weight = w.weight[(int)p], *norm = p == Product::qkv ? w.ln1 : w.ln2;
        std::vector<float> s = smoothquant_scales(in.x[(int)p], in.tokens, weight, linear.rows, linear.cols, alpha);
        divide_rows(norm, linear.cols, 1, s.data());
        scale_columns(weight, linear.rows, linear.cols, s.data());
    }
}

inline LayerTransform smoothquant_transform(double alpha) {
    return [alpha](Model& m, const LayerMasters& w, int l, const LayerInputs& in) {
        smoothquant_layer(m.layers[l], w, in, alpha);
    };
}
