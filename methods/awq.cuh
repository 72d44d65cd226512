// AWQ (Lin et al. 2023, arXiv 2306.00978): before weights are rounded, columns that meet large activations are scaled
// up and what writes those activations is scaled down; then each group's range is clipped. Both by grid search on a
// sample of calibration tokens.
//
//   scale   s = mean|X|^r / (mean_rows(|W| / (amax of its group + 1e-6))^(1-r) + 1e-4),  r = 0, 1/20 ... 19/20,
//           s at least 1e-4, s /= sqrt(max s min s); or no scaling.  Chosen: the least  || f(Q(W s)/s) - f(W) ||^2
//           f: for q,k,v attention with o behind it; for gate,up the MLP; for o and down the product itself
//   apply   W_j *= s_j; a norm's weight, or a row of the linear before, /= s_j:
//             input norm -> q,k,v    post-attention norm -> gate,up    up -> down    v -> o (only if NH = NKV)
//   clip    w to [-c a, c a] within a group of largest size a, c = 1, 0.975 ... 0.525, whichever has the least
//           || X_g (Q(clip(w)) - w)^T ||^2 over at most 512 tokens; not q and k, whose products meet in the softmax.
//           AutoAWQ's steps are twice as wide. Of an asymmetric grid over [-c a, c a] the zero point is a tie, which a
//           scale rounded to bf16 breaks to either side; the finer steps more than make up for what that costs
//
// f is run as the model runs, with a candidate in the working weights: causal attention within each window, and nothing
// is approximated but the sample. In a bf16 build f is rounded as there, candidates too, a noise that only at 8 bits is
// of the size of what is compared. Clipping looks at one group of one row at a time; with G = X_g^T X_g its error is
// d G d for the difference d, at a cost that does not grow with the tokens.
//
// Scaling leaves the full-precision function as it was, clipping does not. Masters are scaled on the host, candidates
// run where the model is. The trap: W s is quantized, so its ranges, and for nvfp4 the tensor's scale, are measured
// anew for each s.
#pragma once
#include <array>
#include <cmath>
#include <cstring>
#include <vector>
#include "../kernels/cpu/gemm.h"
#include "calibration.cuh"
#include "rtn.cuh"
#include "smoothquant.cuh"

struct AwqConfig {
    bool scale = true, clip = true;
    int ratios = 20;
    int clip_steps = 20;           // from 1 down to 1/2
    int64_t search_tokens = 1024;  // of the sample, for scales, in whole micro-batches
    int64_t clip_tokens = 512;
};

// What was found for a product: mean squared error of its module's outputs, quantized without and with scaling
struct AwqResult {
    double error_plain = 0, error = 0;  // 0: not scaled by anything
    double ratio = -1;                  // r; -1: no scaling
    std::vector<float> scales;          // s [cols]; empty: no scaling
};

// One of the four linears of a layer, with its masters on the host
struct AwqLinear {
    Product which;
    int layer;
    float* w;  // [rows, cols] masters
    int64_t rows, cols;
    std::vector<const LinearPart*> parts;  // those of it that are quantized
    float* master(const LinearPart& p) const { return w + p.row0 * cols; }
};

inline AwqLinear awq_linear(const Model& m, const LayerMasters& w, int layer, Product which) {
    const Linear& l = *layer_linears(m.layers[layer])[(int)which];
    AwqLinear p{which, layer, w.weight[(int)which], l.rows, l.cols, {}};
    for (const LinearPart& part : l.parts)
        if (part.quantizer.on()) p.parts.push_back(&part);
    return p;
}

// ---------------------------------------------------------------------------------------------------------------------
// scales

// What the module that begins with product p gives, with the weights in m.work: use(out [T,C] where the model is, first
// token, T) for micro-batches of the sample until there are as many `tokens`. -> how many there were
template <class F>
inline int64_t awq_module(Model& m, const AwqLinear& p, const LayerInputs& in, int64_t tokens, const F& use) {
    Activations& a = *in.acts;
    LayerActivations& y = a.layers[p.layer];
    int64_t first = 0;
    for (const Batch& b : *in.batches) {
        if (first >= tokens) break;
        const BatchView view = batch_view(a.batch, b, m.dev);
        const floatX* x = in.resident[(int)p.which] + first * p.cols;
        Product last = p.which;
        if (p.which == Product::qkv) {
            copy_on_device(y.ln1, x, (size_t)(b.T() * p.cols) * sizeof(floatX), m.dev);
            layer_attention_forward(m, a, p.layer, view, full_precision(), nullptr);
            x = y.att, last = Product::o;
        }
        if (p.which == Product::gate_up) {
            copy_on_device(y.ln2, x, (size_t)(b.T() * p.cols) * sizeof(floatX), m.dev);
            layer_mlp_forward(m, a, p.layer, b.T(), full_precision());
            x = y.act, last = Product::down;
        }
        const Linear& l = *layer_linears(m.layers[p.layer])[(int)last];
        linear_forward(l, a.branch, x, l.bias.work, a.quantized, b.T(), full_precision(), m.dev);
        use(a.branch, first, b.T());
        first += b.T();
    }
    return first;
}

// Scales for linear p, whose masters stay as they are; m.work is as before on return
inline AwqResult awq_search_scale(Model& m, const AwqLinear& p, const LayerInputs& in, const AwqConfig& config) {
    const int64_t cols = p.cols, C = m.C(), group = std::min(p.parts[0]->group, cols);
    const floatX* x = in.x[(int)p.which];
    std::vector<double> xmean(cols), wmean(cols);
    for (int64_t t = 0; t < in.tokens; t++)
        for (int64_t j = 0; j < cols; j++) xmean[j] += std::fabs((float)x[t * cols + j]) / (double)in.tokens;
    for (int64_t i = 0; i < p.rows; i++)
        for (int64_t c0 = 0; c0 < cols; c0 += group) {
            const float* w = p.w + i * cols + c0;
            float amax = 0.0f;
            for (int64_t j = 0; j < group; j++) amax = std::fmax(amax, std::fabs(w[j]));
            for (int64_t j = 0; j < group; j++) wmean[c0 + j] += std::fabs(w[j]) / (amax + 1e-6f) / (double)p.rows;
        }

    std::vector<floatX> exact(in.tokens * C), candidate, outputs(m.dev.cuda ? in.tokens * C : 0);
    auto host = [&](const floatX* out, int64_t n) {
        if (!m.dev.cuda) return out;
        copy_to_host(outputs.data(), out, (size_t)n * sizeof(floatX), m.dev);
        return (const floatX*)outputs.data();
    };
    const int64_t most = config.search_tokens;
    const int64_t used = awq_module(m, p, in, most, [&](const floatX* out, int64_t first, int64_t T) {
        std::copy_n(host(out, T * C), T * C, exact.data() + first * C);
    });
    RoundingScratch scratch;
    auto put = [&](const QuantizedTensor& t, const float* w) {  // w -> m.work
        candidate.assign(w, w + t.rows * t.cols);
        copy_to_device(t.work, candidate.data(), candidate.size() * sizeof(floatX), m.dev);
        device_synchronize(m.dev);  // the host's copy is used again
    };
    auto error = [&](const float* s) {
        for (const LinearPart* t : p.parts) {
            RoundedLinear r = rounded_scratch(scratch, *t);
            std::copy_n(p.master(*t), t->rows * cols, r.w);
            if (s) scale_columns(r.w, t->rows, cols, s);
            round_to_nearest(r);
            if (s) divide_columns(r.w, t->rows, cols, s);
            put(*t, r.w);
        }
        double total = 0;
        awq_module(m, p, in, most, [&](const floatX* out, int64_t first, int64_t T) {
            const floatX *now = host(out, T * C), *then = exact.data() + first * C;
            double sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum)
            for (int64_t i = 0; i < T * C; i++) {
                double d = (double)(float)now[i] - (double)(float)then[i];
                sum += d * d;
            }
            total += sum;
        });
        return total / (double)(used * C);
    };

    AwqResult best;
    std::vector<float> s(cols);
    best.error_plain = best.error = error(nullptr);
    for (int i = 0; i < config.ratios; i++) {
        double r = (double)i / config.ratios, least = INFINITY, greatest = 0;
        for (int64_t j = 0; j < cols; j++) {
            double v = std::pow(xmean[j], r) / (std::pow(wmean[j], 1.0 - r) + 1e-4);
            s[j] = (float)(v > 1e-4 ? v : 1e-4);
            least = s[j] < least ? s[j] : least, greatest = s[j] > greatest ? s[j] : greatest;
        }
        for (int64_t j = 0; j < cols; j++) s[j] = (float)(s[j] / std::sqrt(greatest * least));
        double e = error(s.data());
        if (e < best.error) best.error = e, best.ratio = r, best.scales = s;
    }
    for (const LinearPart* t : p.parts) put(*t, p.master(*t));
    return best;
}

// ---------------------------------------------------------------------------------------------------------------------
// clipping

// each [rows] = d G d for the rows d of D [rows, n]
inline void awq_quadratic(double* each, const float* D, const float* G, int64_t rows, int64_t n) {
    std::vector<float> E(rows * n);
    gemm_nn(E.data(), D, G, rows, n, n);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        double sum = 0;
        for (int64_t j = 0; j < n; j++) sum += (double)E[i * n + j] * D[i * n + j];
        each[i] = sum;
    }
}

// clips one tensor w [rows, cols] in place. x: [tokens, cols]; group: of a row
inline void awq_clip(float* w, int64_t rows, int64_t cols, int64_t group, const float* x, int64_t tokens,
                     const Quantizer& q, const AwqConfig& config) {
    int64_t step = tokens > config.clip_tokens ? tokens / config.clip_tokens : 1, used = CEIL_DIV(tokens, step);
    std::vector<float> xg(used * group), gram(group * group), amax(rows), limit(rows);
    std::vector<double> error(rows), least(rows);
    // a column of groups, as a tensor of its own (nvfp4: with a scale of its own, too)
    QuantizedTensor column;
    column.rows = rows, column.cols = group, column.group = group, column.groups = rows, column.quantizer = q;
    RoundingScratch scratch;
    RoundedLinear d = rounded_scratch(scratch, column);
    for (int64_t c0 = 0; c0 < cols; c0 += group) {
        for (int64_t t = 0; t < used; t++)
            memcpy(xg.data() + t * group, x + t * step * cols + c0, group * sizeof(float));
        std::fill(gram.begin(), gram.end(), 0.0f);
        gemm_tn(gram.data(), xg.data(), xg.data(), used, group, group);
        for (int64_t r = 0; r < rows; r++) {
            amax[r] = 0.0f;
            for (int64_t j = 0; j < group; j++) amax[r] = std::fmax(amax[r], std::fabs(w[r * cols + c0 + j]));
        }
        auto clipped = [&](int64_t r, int64_t j, float most) {
            float v = w[r * cols + c0 + j];
            return v > most ? most : v < -most ? -most : v;
        };
        for (int i = 0; i < config.clip_steps; i++) {
            float c = (float)(1.0 - 0.5 * i / config.clip_steps);
#pragma omp parallel for schedule(static)
            for (int64_t r = 0; r < rows; r++)
                for (int64_t j = 0; j < group; j++) d.w[r * group + j] = clipped(r, j, amax[r] * c);
            round_to_nearest(d);
#pragma omp parallel for schedule(static)
            for (int64_t r = 0; r < rows; r++)
                for (int64_t j = 0; j < group; j++) d.w[r * group + j] -= w[r * cols + c0 + j];
            awq_quadratic(error.data(), d.w, gram.data(), rows, group);
            for (int64_t r = 0; r < rows; r++)
                if (i == 0 || error[r] < least[r]) least[r] = error[r], limit[r] = amax[r] * c;
        }
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < group; j++) w[r * cols + c0 + j] = clipped(r, j, limit[r]);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// a layer

// Scales and clips the quantized linears of a layer, in place; w: its masters on the host, m.work: the same where the
// model is, scratch from here on (convert them anew); in: what the four linears read with the weights as they are.
// -> what was found for each linear, in the order of Product.
inline std::array<AwqResult, 4> awq_layer(Model& m, const LayerMasters& w, int layer, const LayerInputs& in,
                                          const AwqConfig& config) {
    if (in.tokens < 1) fail("awq: no calibration tokens");
    const int64_t C = m.C(), F = m.F(), v_row = ((int64_t)m.NH() + m.NKV()) * m.HD();
    std::array<AwqResult, 4> results;
    for (int i = 0; i < 4 && config.scale; i++) {
        const AwqLinear p = awq_linear(m, w, layer, (Product)i);
        // v -> o: one kv head would need the scales of several query heads; an online rotation may lie between
        if (p.parts.empty() || (p.which == Product::o && m.NH() != m.NKV()) ||
            is_transformed(*layer_linears(m.layers[layer])[i]))
            continue;
        results[i] = awq_search_scale(m, p, in, config);
        const std::vector<float>& s = results[i].scales;
        if (s.empty()) continue;
        scale_columns(p.w, p.rows, p.cols, s.data());
        if (p.which == Product::qkv) divide_rows(w.ln1, C, 1, s.data());
        if (p.which == Product::gate_up) divide_rows(w.ln2, C, 1, s.data());
        if (p.which == Product::down) divide_rows(w.weight[(int)Product::gate_up] + F * C, F, C, s.data());
        if (p.which == Product::o) {
            divide_rows(w.weight[(int)Product::qkv] + v_row * C, p.cols, C, s.data());
            if (w.qkv_bias) divide_rows(w.qkv_bias + v_row, p.cols, 1, s.data());
        }
    }
    for (int i = 0; i < 4 && config.clip; i++) {
        const AwqLinear p = awq_linear(m, w, layer, (Product)i);
        std::vector<float> x(in.x[i], in.x[i] + in.tokens * p.cols);
        if (!results[i].scales.empty()) divide_columns(x.data(), in.tokens, p.cols, results[i].scales.data());
        for (const LinearPart* t : p.parts) {
            if (t->tiles || t->group > t->cols) continue;  // a group is not of one row
            if (p.which == Product::qkv && t->row0 != v_row) continue;
            awq_clip(p.master(*t), t->rows, t->cols, t->group, x.data(), in.tokens, t->quantizer, config);
        }
    }
    return results;
}

inline LayerTransform awq_transform(const AwqConfig& c) {
    return [c](Model& m, const LayerMasters& w, int l, const LayerInputs& in) { awq_layer(m, w, l, in, c); };
}
