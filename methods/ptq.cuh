// Post-training quantization, layer by layer.
//
//   --ptq A+B+...   transforms that leave the model's function as it is (rotate: the whole model before anything else;
//                   awq, smoothquant: a layer at a time, in the order they are named), and how a matrix is rounded:
//                   rtn, to nearest, or gptq (gptq.cuh)
//
// The calibration windows go through the model once. Of a layer only its input is kept for all tokens, and the output
// of its attention; the rest is computed again in micro-batches. Products are rounded in the order in which they run,
// {q,k,v}, o, {gate,up}, down, each with the inputs that it gets from the rounded ones before it ("true sequential"),
// and the next layer sees what the rounded layer gives:
//   hidden = embed(tokens)
//   per layer   H = sum x x^T of  norm(hidden)           round q,k,v;  attention = ...
//                                 attention              round o;      hidden += W_o attention
//                                 norm(hidden)           round gate,up
//                                 silu(gate) up          round down;   hidden += W_down (silu(gate) up)
// Memory beside the model: hidden and attention of all calibration tokens, one Hessian and its factor, one matrix. The
// weights are rounded in place: the master becomes the grid's values, with codes and grid beside it, frozen, so that
// model_refresh gives the same numbers again.
//
// What a product loses is reported as ||(W - Q) X||^2 / ||W X||^2 over the calibration text, which the Hessian gives as
// tr(D H D^T) / tr(W H W^T), D = W - Q.
#pragma once
#include <functional>
#include <string>
#include <vector>
#include "../runtime/run_dir.h"
#include "awq.cuh"
#include "calibration.cuh"
#include "gptq.cuh"
#include "rotation.cuh"
#include "smoothquant.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// what is asked for

struct PtqConfig {
    GptqConfig gptq;
    AwqConfig awq;
    double smoothquant_alpha = 0.5;
    RotationConfig rotation;
};

struct PtqPlan {
    bool rotate = false;
    // before a layer is rounded: may change its masters (on the host), but not what the layer computes
    typedef std::function<void(Model&, const LayerWeights<float>& masters, int layer, const LayerInputs&)> Transform;
    std::vector<Transform> transforms;
    bool gptq = false;  // else to nearest
    bool needs_calibration() const { return gptq || !transforms.empty(); }
};

struct PtqMethod {
    const char* name;
    void (*add)(PtqPlan&, const PtqConfig&);
};

static const PtqMethod ptq_methods[] = {
    {"rtn", [](PtqPlan&, const PtqConfig&) {}},
    {"gptq", [](PtqPlan& p, const PtqConfig&) { p.gptq = true; }},
    {"awq",
     [](PtqPlan& p, const PtqConfig& c) {
         p.transforms.push_back([c](Model& m, const LayerWeights<float>& w, int l, const LayerInputs& in) {
             awq_layer(m, w, l, in, m.quantizer, c.awq);
         });
     }},
    {"smoothquant",
     [](PtqPlan& p, const PtqConfig& c) {
         p.transforms.push_back([c](Model& m, const LayerWeights<float>& w, int, const LayerInputs& in) {
             smoothquant_layer(m, w, in, c.smoothquant_alpha);
         });
     }},
    {"rotate", [](PtqPlan& p, const PtqConfig&) { p.rotate = true; }},
};

inline PtqPlan ptq_parse(const std::string& text, const PtqConfig& config) {
    PtqPlan plan;
    std::string names;
    for (const PtqMethod& m : ptq_methods) names += (names.empty() ? "" : ", ") + std::string(m.name);
    for (size_t at = 0; at <= text.size();) {
        size_t end = std::min(text.find('+', at), text.size());
        std::string part = text.substr(at, end - at);
        const PtqMethod* found = nullptr;
        for (const PtqMethod& m : ptq_methods)
            if (part == m.name) found = &m;
        if (!found)
            fail_usage("--ptq %s: '%s' is not one of %s; join several by +", text.c_str(), part.c_str(), names.c_str());
        if (("+" + text.substr(0, at)).find("+" + part + "+") != std::string::npos)
            fail_usage("--ptq %s: %s is given twice", text.c_str(), part.c_str());
        found->add(plan, config);
        at = end + 1;
    }
    return plan;
}

// ---------------------------------------------------------------------------------------------------------------------
// memory

struct PtqMemory {
    Activations acts;
    Buffer<floatX> hidden, attention;  // [tokens,C], [tokens,NH*HD]
    Buffer<float> hessian;             // [n,n] of the largest product, where the model is
    LayerInputsMemory inputs;
    GptqMemory gptq;
    Buffer<float> host_hessian;  // copies, if the model is not on the host
    RoundingScratch host;
    std::vector<float> host_layer;
    int64_t tokens = 0;
};

// for `tokens` calibration tokens (0: none is needed) in windows of `length`
inline void ptq_allocate(PtqMemory& s, Model& m, const PtqPlan& plan, int64_t tokens, int64_t length,
                         int64_t micro_batch_tokens) {
    s.tokens = tokens;
    const int64_t q = (int64_t)m.NH() * m.HD();
    int64_t n = 0, weights = 0, rows = 0;
    for (const ParamTensor& t : m.tensors)
        if (t.kind == ParamKind::linear) n = std::max(n, t.cols);
    for (const QuantizedTensor& t : m.quantized) {
        weights = std::max(weights, t.rows * t.cols);
        rows = std::max(rows, t.rows);
    }
    const Device host = m.dev.cuda ? Device() : m.dev;
    if (tokens) {
        activations_allocate(s.acts, m, std::min(tokens, std::max(micro_batch_tokens / length, (int64_t)1) * length),
                             ActivationMode::inference);
        const char* hint = "lower --calibration_samples or --calibration_length";
        s.hidden.allocate((size_t)(tokens * m.C()), "hidden states of the calibration tokens", hint, m.dev);
        s.attention.allocate((size_t)(tokens * q), "hidden states of the calibration tokens", hint, m.dev);
        s.hessian.allocate((size_t)(n * n), "a product's Hessian", "", m.dev);
        if (!plan.transforms.empty()) layer_inputs_allocate(s.inputs, m, tokens, length);
    }
    if (plan.gptq) gptq_allocate(s.gptq, n, weights, rows, host);
    else s.gptq.w.allocate((size_t)weights, "a matrix being rounded", "", host);
    if (!m.dev.cuda) return;
    s.host_hessian.allocate((size_t)(n * n), "", "");
}

// ---------------------------------------------------------------------------------------------------------------------
// the pipeline

// one product of one layer
struct PtqProduct {
    bool quantized = false;
    double error = 0.0;         // ||(W - Q) X||^2 / ||W X||^2; without calibration ||W - Q||^2 / ||W||^2
    double damp_percent = 0.0;  // GPTQ's, what it took
};

struct PtqLayer {
    PtqProduct product[4];  // in the order of Projection
    double seconds = 0.0;
};

inline const char* product_name(int p) {
    const char* names[] = {"q,k,v", "o", "gate,up", "down"};
    return names[p];
}

// Rounds the quantized tensors of product p of layer l. hessian [n,n]: sum of x x^T of its inputs over s.tokens, where
// the model is; null without calibration
inline PtqProduct round_product(Model& m, PtqMemory& s, const PtqPlan& plan, const PtqConfig& config, int l, int p,
                                float* hessian) {
    PtqProduct result;
    const ProductShape shape = product_shapes(m)[p];
    const int64_t n = shape.cols;
    const size_t begin = (size_t)(projection_weight(m.w.layers[l], (Projection)p) - m.work.data),
                 end = begin + (size_t)(shape.rows * n);
    auto inside = [&](const QuantizedTensor& t) { return t.offset >= begin && t.offset < end; };
    if (std::none_of(m.quantized.begin(), m.quantized.end(), inside)) return result;
    result.quantized = true;
    float* h = hessian;
    if (hessian) {
        if (m.dev.cuda) {
            h = s.host_hessian.data;
            copy_to_host(h, hessian, (size_t)(n * n) * sizeof(float), m.dev);
        }
        const float scale = 2.0f / (float)s.tokens;
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < n * n; i++) h[i] *= scale;
        if (plan.gptq) {
            gptq_factor(s.gptq, h, n, config.gptq, format("layer %d, %s", l, product_name(p)));
            result.damp_percent = s.gptq.damp_percent;
        }
    }
    double lost = 0.0, all = 0.0;
    auto energy = [&](const float* d, int64_t rows) {
        if (h) return output_energy(d, h, rows, n);
        double sum = 0.0;
        for (int64_t i = 0; i < rows * n; i++) sum += (double)d[i] * (double)d[i];
        return sum;
    };
    for (QuantizedTensor& t : m.quantized) {
        if (!inside(t)) continue;
        const size_t count = (size_t)(t.rows * n);
        float* master = m.master.data + t.offset;
        RoundedLinear r = rounded_linear(t, master);
        if (m.dev.cuda) {
            r = rounded_scratch(s.host, t, m.quantizer);
            copy_to_host(r.w, master, count * sizeof(float), m.dev);
        }
        all += energy(r.w, t.rows);
        if (plan.gptq) gptq_round(r, s.gptq, m.quantizer, config.gptq);
        else round_to_nearest(r, s.gptq.w.data, m.quantizer);
        lost += energy(s.gptq.w.data, t.rows);
        if (m.dev.cuda) {
            copy_to_device(master, r.w, count * sizeof(float), m.dev);
            copy_to_device(t.codes, r.codes, count, m.dev);
            copy_to_device(t.grid, r.grid, (size_t)t.groups * sizeof(Grid), m.dev);
            copy_to_device(t.state.tensor, r.state.tensor, s.host.state.size() * sizeof(float), m.dev);
            copy_to_device(t.state.codes, r.state.codes, s.host.scale_codes.size(), m.dev);
            device_synchronize(m.dev);  // the host's copies are used again
        }
        convert_forward(t.work, master, t.rows * n, m.dev);
        t.measured = true;
    }
    result.error = all > 0.0 ? lost / all : 0.0;
    return result;
}

// the first n windows, as many in a batch as `capacity` tokens allow
inline std::vector<Batch> micro_batches(const std::vector<std::vector<int>>& windows, size_t n, int64_t capacity) {
    std::vector<Batch> batches;
    for (size_t i = 0; i < std::min(n, windows.size()); i++) {
        const std::vector<int>& w = windows[i];
        if (batches.empty() || batches.back().T() + (int64_t)w.size() > capacity) batches.emplace_back();
        batch_add_sequence(batches.back(), w.data(), (int)w.size());
    }
    return batches;
}

// The plan's transforms of layer l, whose input is s.hidden: each sees what the one before has made of the layer
inline void transform_layer(Model& m, PtqMemory& s, const PtqPlan& plan, int l, const std::vector<Batch>& sample) {
    for (const PtqPlan::Transform& transform : plan.transforms) {
        const LayerInputs in = layer_inputs(m, s.acts, s.inputs, l, s.hidden.data, sample);
        host_masters(m, l, s.host_layer, [&](const Weights<float>& w) { transform(m, w.layers[l], l, in); });
        for (const ParamTensor& t : m.tensors)
            if (t.layer == l) convert_forward(m.work.data + t.offset, m.master.data + t.offset, t.count(), m.dev);
    }
}

// Quantizes the model as its quantizer and the plan say. windows: of equal length; none if nothing needs them.
// on_layer(l, report) after each layer.
inline void ptq_run(Model& m, PtqMemory& s, const PtqPlan& plan, const PtqConfig& config,
                    const std::vector<std::vector<int>>& windows,
                    const std::function<void(int, const PtqLayer&)>& on_layer) {
    m.quantize = false;
    if (plan.rotate) rotation_apply(m, config.rotation);
    model_refresh(m);
    const int C = m.C();
    const int64_t Q = (int64_t)m.NH() * m.HD();
    const float eps = m.config.rms_norm_eps;
    Activations& a = s.acts;
    const std::vector<Batch> batches = micro_batches(windows, windows.size(), a.capacity);
    std::vector<Batch> sample;
    if (!windows.empty()) {
        const int64_t length = (int64_t)windows[0].size(), tokens = std::max(LayerInputs::batch_tokens, length);
        sample = micro_batches(windows, sample_windows(length), std::min(a.capacity, tokens));
    }
    // use(view, tokens before it) for each micro-batch
    auto each = [&](const auto& use) {
        int64_t first = 0;
        for (const Batch& b : batches) {
            BatchView view = batch_view(a.batch, b, m.dev);
            use(view, first);
            first += b.T();
        }
    };
    if (!windows.empty()) rope_extend(m.rope, (int)windows[0].size(), m.dev);
    each([&](const BatchView& b, int64_t first) {
        embedding_forward(s.hidden.data + first * C, b.tokens, m.w.embed, b.T, C, m.dev);
    });
    for (int l = 0; l < m.L(); l++) {
        const double start = wall_seconds();
        PtqLayer report;
        if (!plan.transforms.empty()) transform_layer(m, s, plan, l, sample);
        const LayerWeights<floatX>& w = m.w.layers[l];
        // the input of product p, from hidden as the products before p have left it
        auto product_input = [&](int p, const BatchView& b, int64_t first) -> const floatX* {
            LayerActivations& y = a.layers[l];
            floatX *hidden = s.hidden.data + first * C, *attention = s.attention.data + first * Q;
            switch ((Projection)p) {
                case Projection::qkv:
                    rmsnorm_forward(y.ln1, y.ln1_rstd, hidden, w.ln1, {b.T, C}, eps, m.dev);
                    return y.ln1;
                case Projection::o:
                    rmsnorm_forward(y.ln1, y.ln1_rstd, hidden, w.ln1, {b.T, C}, eps, m.dev);
                    layer_attention_forward(m, a, l, b, nullptr);
                    copy_on_device(attention, y.att, (size_t)(b.T * Q) * sizeof(floatX), m.dev);
                    return y.att;
                case Projection::gate_up:
                    projection_forward(m, a.branch, attention, a.quantized, l, Projection::o, b.T);
                    fused_residual_rmsnorm_forward(hidden, y.ln2, y.ln2_rstd, hidden, a.branch, w.ln2, {b.T, C}, eps,
                                                   m.dev);
                    return y.ln2;
                case Projection::down:
                    break;
            }
            rmsnorm_forward(y.ln2, y.ln2_rstd, hidden, w.ln2, {b.T, C}, eps, m.dev);
            layer_mlp_forward(m, a, l, b.T);
            return y.act;
        };
        for (int p = 0; p < 4; p++) {
            const int64_t n = product_shapes(m)[p].cols;
            if (!batches.empty()) set_zero(s.hessian.data, (size_t)(n * n) * sizeof(float), m.dev);
            each([&](const BatchView& b, int64_t first) {
                const floatX* x = product_input(p, b, first);
                matmul_tn({s.hessian.data, n}, {x, n}, {x, n}, b.T, n, n, m.dev);
            });
            report.product[p] = round_product(m, s, plan, config, l, p, batches.empty() ? nullptr : s.hessian.data);
        }
        if (l + 1 < m.L())
            each([&](const BatchView& b, int64_t first) {
                floatX* hidden = s.hidden.data + first * C;
                const floatX* act = product_input((int)Projection::down, b, first);
                projection_forward(m, a.branch, act, a.quantized, l, Projection::down, b.T);
                fused_residual_rmsnorm_forward(hidden, a.layers[l].ln2, a.layers[l].ln2_rstd, hidden, a.branch, w.ln2,
                                               {b.T, C}, eps, m.dev);  // for its sum; the norm is not used
            });
        report.seconds = wall_seconds() - start;
        on_layer(l, report);
    }
    m.quantize = true;
    m.scale_mode = ScaleMode::frozen;
}
