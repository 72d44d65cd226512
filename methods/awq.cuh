// AWQ (Lin et al. 2023, arXiv 2306.00978): before weights are rounded, columns that meet large activations are scaled
// up and what writes those activations is scaled down; then each group's range is clipped. Both by grid search on a
// sample of calibration tokens.
//
//   scale   s = mean|X|^r / (mean_rows(|W| / (amax of its group + 1e-6))^(1-r) + 1e-4),  r = 0, 1/20 ... 19/20,
//           s at least 1e-4, s /= sqrt(max s min s); or no scaling.  Chosen: the least  || X (Q(W s)/s - W)^T ||^2
//   apply   W_j *= s_j; a norm's weight, or a row of the linear before, /= s_j:
//             input norm -> q,k,v    post-attention norm -> gate,up    up -> down    v -> o (only if NH = NKV)
//   clip    w to [-c a, c a] within a group of largest size a, c = 1, 0.975 ... 0.525, whichever has the least
//           || X_g (Q(clip(w)) - w)^T ||^2 over at most 512 tokens; not q and k, whose products meet in the softmax.
//           AutoAWQ's steps are twice as wide. Of an asymmetric grid over [-c a, c a] the zero point is a tie, which a
//           scale rounded to bf16 breaks to either side; the finer steps more than make up for what that costs
//
// The error is that of the products themselves. AutoAWQ takes it after attention for q,k,v and after the MLP for gate
// and up; here each output of q, k and v counts alike. With G = X^T X an error is the sum of d G d over the rows d of a
// difference, at a cost that does not grow with the tokens; where G would be larger than X, it is that of X itself.
//
// Scaling leaves the full-precision function as it was, clipping does not. Everything on the fp32 master, on the CPU.
// The trap: W s is quantized, so its ranges, and for nvfp4 the tensor's scale, are measured anew for each s.
#pragma once
#include <array>
#include <cmath>
#include <cstring>
#include <vector>
#include "../kernels/cpu/gemm.h"
#include "calibration.cuh"
#include "smoothquant.cuh"

struct AwqConfig {
    bool scale = true, clip = true;
    int ratios = 20;
    int clip_steps = 20;           // from 1 down to 1/2
    int64_t search_tokens = 1024;  // for scales, where a product has more inputs than this or than there are tokens
    int64_t clip_tokens = 512;
};

// What was found for a product: mean squared error of its outputs, quantized without and with scaling
struct AwqResult {
    double error_plain = 0, error = 0;  // 0: not scaled by anything
    double ratio = -1;                  // r; -1: no scaling
    std::vector<float> scales;          // s [cols]; empty: no scaling
};

// ---------------------------------------------------------------------------------------------------------------------
// Q(W) of a matrix, for any format

// one group: out = Q(w), each [n]; out may be w
inline void awq_quantize_group(float* out, const float* w, int64_t n, QuantSpec spec, float tensor_scale) {
    float min = 0.0f, max = 0.0f;
    for (int64_t j = 0; j < n; j++) min = w[j] < min ? w[j] : min, max = w[j] > max ? w[j] : max;
    if (spec.format == QuantFormat::ternary) {
        double sum = 0;
        for (int64_t j = 0; j < n; j++) sum += std::fabs(w[j]);
        max = (float)(sum / (double)n);
    }
    Grid best = quant_grid(spec, min, max, tensor_scale, 1.0f);
    bool search = spec.format == QuantFormat::integer && spec.rule == ScaleRule::mse;
    double least = INFINITY;
    for (int percent = 100; percent > 20 && search; percent--) {
        Grid g = quant_grid(spec, min, max, tensor_scale, quant_shrink(100 - percent));
        float error = 0.0f;
#pragma omp simd reduction(+ : error)
        for (int64_t j = 0; j < n; j++) {
            float d = quant_value(spec, quant_code(spec, w[j], g), g) - w[j];
            error += d * d;
        }
        if (error < least) least = error, best = g;
    }
    INDEPENDENT
    for (int64_t j = 0; j < n; j++) out[j] = quant_value(spec, quant_code(spec, w[j], best), best);
}

// the numbers of a row that share a scale
inline int64_t awq_group(const Quantizer& q, int64_t cols) {
    int64_t group = q.scope == QuantScope::group || q.scope == QuantScope::block ? q.group : cols;
    if (cols % group)
        fail_usage("--weights %s: group size %lld does not divide %lld inputs; choose a divisor (such as g32 or g64)",
                   quantizer_text(q).c_str(), (long long)group, (long long)cols);
    return group;
}

inline float awq_tensor_scale(const Quantizer& q, const float* w, int64_t n) {
    if (q.spec.format != QuantFormat::nvfp4) return 1.0f;
    float amax = 0.0f;
    for (int64_t i = 0; i < n; i++) amax = std::fmax(amax, std::fabs(w[i]));
    return quant_tensor_scale(amax);
}

// out = Q(w), one tensor [rows, cols]; out may be w
inline void awq_quantize(float* out, const float* w, int64_t rows, int64_t cols, const Quantizer& q) {
    float tensor_scale = awq_tensor_scale(q, w, rows * cols);
    if (q.scope == QuantScope::tensor) {
        awq_quantize_group(out, w, rows * cols, q.spec, tensor_scale);
        return;
    }
    int64_t group = awq_group(q, cols), tall = q.scope == QuantScope::block ? 128 : 1;
#pragma omp parallel for schedule(static)
    for (int64_t r0 = 0; r0 < rows; r0 += tall) {
        int64_t n = rows - r0 < tall ? rows - r0 : tall;
        std::vector<float> tile(tall > 1 ? n * group : 0);
        for (int64_t c0 = 0; c0 < cols; c0 += group) {
            if (tall == 1) {
                awq_quantize_group(out + r0 * cols + c0, w + r0 * cols + c0, group, q.spec, tensor_scale);
                continue;
            }
            for (int64_t r = 0; r < n; r++)
                memcpy(tile.data() + r * group, w + (r0 + r) * cols + c0, group * sizeof(float));
            awq_quantize_group(tile.data(), tile.data(), n * group, q.spec, tensor_scale);
            for (int64_t r = 0; r < n; r++)
                memcpy(out + (r0 + r) * cols + c0, tile.data() + r * group, group * sizeof(float));
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// scales

// the linears of one product, each a tensor with its own quantizer, and what they read
struct AwqProduct {
    const float* w;             // [sum of rows, cols]
    std::vector<int64_t> rows;  // of each tensor
    int64_t cols, tokens;
    std::vector<double> xmean;  // [cols] mean size of an input, over all tokens
    std::vector<float> x;       // [tokens, cols], some of them; or else
    std::vector<float> gram;    // [cols, cols] X^T X / tokens, of all
};

inline AwqProduct awq_product(const float* w, std::vector<int64_t> rows, const floatX* x, int64_t tokens, int64_t cols,
                              int64_t search_tokens) {
    AwqProduct p{w, rows, cols, tokens, std::vector<double>(cols), {}, {}};
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t j = 0; j < cols; j++) p.xmean[j] += std::fabs((float)x[t * cols + j]) / (double)tokens;
    bool gram = cols <= tokens && cols <= search_tokens;
    int64_t step = gram || tokens <= search_tokens ? 1 : CEIL_DIV(tokens, search_tokens);
    p.tokens = CEIL_DIV(tokens, step);
    for (int64_t t = 0; t < tokens; t += step) p.x.insert(p.x.end(), x + t * cols, x + (t + 1) * cols);
    if (!gram) return p;
    p.gram.resize(cols * cols);
    gemm_tn(p.gram.data(), p.x.data(), p.x.data(), tokens, cols, cols);
    for (float& g : p.gram) g /= (float)tokens;
    p.x.clear();
    return p;
}

// sum over the rows d of D [rows, n] of d G d; each: [rows], or null
inline double awq_quadratic(const float* D, const float* G, int64_t rows, int64_t n, double* each = nullptr) {
    std::vector<float> E(rows * n);
    gemm_nn(E.data(), D, G, rows, n, n);
    std::vector<double> sums(rows);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        double sum = 0;
        for (int64_t j = 0; j < n; j++) sum += (double)E[i * n + j] * D[i * n + j];
        sums[i] = sum;
        if (each) each[i] = sum;
    }
    double total = 0;
    for (double s : sums) total += s;
    return total;
}

// sum over the rows d of D [rows, cols] of the mean of (x d)^2
inline double awq_squares(const float* D, const AwqProduct& p, int64_t rows) {
    std::vector<float> y(p.tokens * rows);
    gemm_nt(y.data(), p.x.data(), D, nullptr, p.tokens, rows, p.cols);
    double total = 0;
    for (float v : y) total += (double)v * v;
    return total / (double)p.tokens;
}

// mean squared error of the product's outputs with Q(W s)/s for W; s null: Q(W)
inline double awq_error(const AwqProduct& p, const float* s, const Quantizer& q) {
    double total = 0;
    int64_t first = 0;
    for (int64_t rows : p.rows) {
        const float* w = p.w + first * p.cols;
        std::vector<float> d(w, w + rows * p.cols);
        if (s) scale_columns(d.data(), rows, p.cols, s);
        awq_quantize(d.data(), d.data(), rows, p.cols, q);
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < p.cols; j++)
                d[i * p.cols + j] = (s ? d[i * p.cols + j] / s[j] : d[i * p.cols + j]) - w[i * p.cols + j];
        total += p.x.empty() ? awq_quadratic(d.data(), p.gram.data(), rows, p.cols) : awq_squares(d.data(), p, rows);
        first += rows;
    }
    return total / (double)first;
}

inline AwqResult awq_search_scale(const AwqProduct& p, const Quantizer& q, int ratios) {
    AwqResult best;
    int64_t cols = p.cols, group = awq_group(q, cols), rows = 0;
    std::vector<double> wmean(cols);
    for (int64_t n : p.rows) rows += n;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c0 = 0; c0 < cols; c0 += group) {
            const float* w = p.w + i * cols + c0;
            float amax = 0.0f;
            for (int64_t j = 0; j < group; j++) amax = std::fmax(amax, std::fabs(w[j]));
            for (int64_t j = 0; j < group; j++) wmean[c0 + j] += std::fabs(w[j]) / (amax + 1e-6f) / (double)rows;
        }
    std::vector<float> s(cols);
    best.error_plain = best.error = awq_error(p, nullptr, q);
    for (int i = 0; i < ratios; i++) {
        double r = (double)i / ratios, least = INFINITY, most = 0;
        for (int64_t j = 0; j < cols; j++) {
            double v = std::pow(p.xmean[j], r) / (std::pow(wmean[j], 1.0 - r) + 1e-4);
            s[j] = (float)(v > 1e-4 ? v : 1e-4);
            least = s[j] < least ? s[j] : least, most = s[j] > most ? s[j] : most;
        }
        for (int64_t j = 0; j < cols; j++) s[j] = (float)(s[j] / std::sqrt(most * least));
        double error = awq_error(p, s.data(), q);
        if (error < best.error) best.error = error, best.ratio = r, best.scales = s;
    }
    return best;
}

// ---------------------------------------------------------------------------------------------------------------------
// clipping

// clips one tensor w [rows, cols] in place. x: [tokens, cols]
inline void awq_clip(float* w, int64_t rows, int64_t cols, const float* x, int64_t tokens, const Quantizer& q,
                     const AwqConfig& config) {
    if (q.scope == QuantScope::tensor || q.scope == QuantScope::block) return;  // a group is not of one row
    int64_t group = awq_group(q, cols), step = tokens > config.clip_tokens ? tokens / config.clip_tokens : 1;
    float tensor_scale = awq_tensor_scale(q, w, rows * cols);
    int64_t used = (tokens + step - 1) / step;
    std::vector<float> xg(used * group), gram(group * group), d(rows * group), amax(rows), limit(rows);
    std::vector<double> error(rows), least(rows);
    for (int64_t c0 = 0; c0 < cols; c0 += group) {
        for (int64_t t = 0; t < used; t++)
            memcpy(xg.data() + t * group, x + t * step * cols + c0, group * sizeof(float));
        std::fill(gram.begin(), gram.end(), 0.0f);
        gemm_tn(gram.data(), xg.data(), xg.data(), used, group, group);
        for (int i = 0; i < config.clip_steps; i++) {
            float c = (float)(1.0 - 0.5 * i / config.clip_steps);
#pragma omp parallel
            {
                std::vector<float> clipped(group);
#pragma omp for schedule(static)
                for (int64_t r = 0; r < rows; r++) {
                    const float* from = w + r * cols + c0;
                    float* to = d.data() + r * group;
                    if (i == 0) {
                        amax[r] = 0.0f;
                        for (int64_t j = 0; j < group; j++) amax[r] = std::fmax(amax[r], std::fabs(from[j]));
                    }
                    float most = amax[r] * c;
                    for (int64_t j = 0; j < group; j++)
                        clipped[j] = from[j] > most ? most : from[j] < -most ? -most : from[j];
                    awq_quantize_group(to, clipped.data(), group, q.spec, tensor_scale);
                    for (int64_t j = 0; j < group; j++) to[j] -= from[j];
                }
            }
            awq_quadratic(d.data(), gram.data(), rows, group, error.data());
            for (int64_t r = 0; r < rows; r++)
                if (i == 0 || error[r] < least[r]) least[r] = error[r], limit[r] = amax[r] * c;
        }
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = c0; j < c0 + group; j++) {
                float& v = w[r * cols + j];
                v = v > limit[r] ? limit[r] : v < -limit[r] ? -limit[r] : v;
            }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// a layer

// Scales and clips the master weights of a layer, in place, for a weight quantizer; in: what the four products read
// with the weights as they are. -> what was found for each product, in the order of Projection.
inline std::array<AwqResult, 4> awq_layer(Model& m, int layer, const LayerInputs& in, const Quantizer& q,
                                          const AwqConfig& config) {
    if (m.dev.cuda) fail("awq works on the CPU: use --device cpu");
    if (!q.on()) fail_usage("awq needs --weights, a quantizer to scale for");
    if (in.tokens < 1) fail("awq: no calibration tokens");
    LayerWeights<float> w = model_views(m, m.master.data).layers[layer];
    int64_t C = m.C(), F = m.F(), q_rows = (int64_t)m.NH() * m.HD(), kv_rows = (int64_t)m.NKV() * m.HD();
    std::vector<int64_t> rows[4] = {{q_rows, kv_rows, kv_rows}, {C}, {F, F}, {C}};
    std::array<AwqResult, 4> results;
    for (int i = 0; i < 4; i++) {
        Projection which = (Projection)i;
        float* weight = projection_weight(w, which);
        int64_t cols = in.cols[i], total = product_shapes(m)[i].rows, v_row = q_rows + kv_rows;
        // v -> o: one kv head would need the scales of several query heads; up -> down: a rotation lies between
        if (!config.scale || (which == Projection::o && m.NH() != m.NKV()) ||
            (which == Projection::down && m.rotate_down.on()))
            continue;
        AwqProduct p = awq_product(weight, rows[i], in.x[i], in.tokens, cols, config.search_tokens);
        results[i] = awq_search_scale(p, q, config.ratios);
        const std::vector<float>& s = results[i].scales;
        if (s.empty()) continue;
        scale_columns(weight, total, cols, s.data());
        if (which == Projection::qkv) divide_rows(w.ln1, cols, 1, s.data());
        if (which == Projection::gate_up) divide_rows(w.ln2, cols, 1, s.data());
        if (which == Projection::down) divide_rows(w.gate_up + F * C, F, C, s.data());
        if (which == Projection::o) {
            divide_rows(w.qkv + v_row * C, cols, C, s.data());
            if (w.qkv_bias) divide_rows(w.qkv_bias + v_row, cols, 1, s.data());
        }
    }
    for (int i = 0; i < 4 && config.clip; i++) {
        int64_t cols = in.cols[i];
        std::vector<float> x(in.x[i], in.x[i] + in.tokens * cols);
        const std::vector<float>& s = results[i].scales;
        for (int64_t k = 0; k < in.tokens * cols && !s.empty(); k++) x[k] /= s[k % cols];
        float* tensor = projection_weight(w, (Projection)i);
        for (size_t k = 0; k < rows[i].size(); tensor += rows[i][k] * cols, k++)
            if (i != (int)Projection::qkv || k == 2) awq_clip(tensor, rows[i][k], cols, x.data(), in.tokens, q, config);
    }
    return results;
}
