// Post-training quantization, layer by layer.
//
//   --ptq A+B+...   transforms that leave the model's function as it is (rotate: the whole model before anything else;
//                   awq, smoothquant: a layer at a time, in the order they are named), and how a matrix is rounded:
//                   rtn, to nearest, or gptq (gptq.cuh); blockwise (blockwise.cuh) then trains what was rounded, and
//                   flatquant (flatquant.cuh) has trained what a layer multiplies before it is rounded. A method's
//                   settings stand behind its name: blockwise:steps=200:layers=2
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
// weights are rounded in place: the master becomes what was rounded (transformed, by GPTQ compensated), with codes and
// a kept grid beside it, and the working weight is Q(master), so that model_refresh gives the same numbers again.
//
// What a product loses is reported as ||(W - Q) X||^2 / ||W X||^2 over the calibration text, which the Hessian gives as
// tr(D H D^T) / tr(W H W^T), D = W - Q.
#pragma once
#include <functional>
#include <string>
#include <vector>
#include "../runtime/run_dir.h"
#include "../runtime/settings.h"
#include "awq.cuh"
#include "blockwise.cuh"
#include "calibration.cuh"
#include "flatquant.cuh"
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
    uint64_t seed = 0;
};

struct PtqPlan {
    std::vector<ModelTransform> models;  // transforms of the whole model, before anything else
    std::vector<LayerTransform> layers;  // of each layer, before it is rounded
    Rounder rounder = rtn_rounder();
    LayerTraining training;  // of layers that have been rounded
    bool needs_calibration() const { return rounder.prepare || !layers.empty() || training.on(); }
};

inline void one_training(const PtqPlan& plan) {
    if (plan.training.on()) fail_usage("--ptq: blockwise and flatquant both train the layers; leave one of them out");
}

// One line a method, in --ptq's words. settings: what its text may set; many have flags of their own
struct PtqMethod {
    const char *name, *help;
    std::vector<SettingRow> settings;
    void (*add)(PtqPlan&, const PtqConfig&, const Settings&);
};

inline const std::vector<PtqMethod>& ptq_methods() {
    static const std::vector<PtqMethod> methods = {
        {"rtn", "round to nearest",
         {}, [](PtqPlan& p, const PtqConfig&, const Settings&) { p.rounder = rtn_rounder(); }},
        {"gptq", "round column by column, the rest makes up for it (--damp_percent, --act_order, --static_groups)",
         {}, [](PtqPlan& p, const PtqConfig& c, const Settings&) { p.rounder = gptq_rounder(c.gptq); }},
        {"awq", "before it, scale the inputs that matter up (arXiv 2306.00978)",
         {}, [](PtqPlan& p, const PtqConfig& c, const Settings&) { p.layers.push_back(awq_transform(c.awq)); }},
        {"smoothquant", "before it, move the inputs' range into the weights (--smoothquant_alpha)",
         {}, [](PtqPlan& p, const PtqConfig& c, const Settings&) {
             p.layers.push_back(smoothquant_transform(c.smoothquant_alpha));
         }},
        {"rotate", "before anything, rotate the hidden states (--rotations)",
         {}, [](PtqPlan& p, const PtqConfig& c, const Settings&) {
             p.models.push_back(rotation_transform(c.rotation));
         }},
        {"blockwise", "behind it, train modules of layers to give what full precision gave (MREM, EfficientQAT)",
         blockwise_settings(), [](PtqPlan& p, const PtqConfig& c, const Settings& s) {
             one_training(p);
             p.training = blockwise_training(blockwise_config(s, c.seed));
         }},
        {"flatquant", "before it, learn transforms and clips of weights and inputs, layer by layer (arXiv 2410.09426)",
         flatquant_settings(), [](PtqPlan& p, const PtqConfig& c, const Settings& s) {
             one_training(p);
             p.training = flatquant_training(flatquant_config(s, c.seed));
         }},
    };
    return methods;
}

inline PtqPlan ptq_parse(const std::string& text, const PtqConfig& config) {
    PtqPlan plan;
    std::vector<std::string> names, given;
    for (const PtqMethod& m : ptq_methods()) names.push_back(m.name);
    for (const std::string& part : split_words(text, "+")) {
        const std::string name = split_words(part, ":")[0];
        const PtqMethod* found = nullptr;
        for (const PtqMethod& m : ptq_methods())
            if (name == m.name) found = &m;
        if (!found)
            fail_usage("--ptq %s: '%s' is not one of %s; join several by + (train_qrl help ptq)",
                       printable(text).c_str(), printable(name).c_str(), join_words(names).c_str());
        if (std::find(given.begin(), given.end(), name) != given.end())
            fail_usage("--ptq %s: %s is given twice", printable(text).c_str(), name.c_str());
        given.push_back(name);
        found->add(plan, config, settings_of(part, found->settings, "ptq"));
    }
    if (plan.training.transforms && !plan.layers.empty())
        fail_usage(
            "--ptq %s: flatquant learns the scales of a product's inputs, as awq and smoothquant choose them; leave those "
            "out",
            printable(text).c_str());
    return plan;
}

// help ptq
inline std::string ptq_help() {
    std::string text = "--ptq NAME[:SETTING=VALUE ...], joined by +, as in rotate+gptq+blockwise:steps=200\n\n";
    for (const PtqMethod& m : ptq_methods()) text += format("  %-12s %s\n", m.name, m.help) + settings_help(m.settings);
    return text;
}

// ---------------------------------------------------------------------------------------------------------------------
// memory

struct PtqMemory {
    Activations acts;
    Buffer<floatX> hidden, attention;  // [tokens,C], [tokens,NH*HD]
    Buffer<float> hessian;             // [n,n] of the largest linear, where the model is
    LayerInputsMemory inputs;
    Buffer<float> difference;    // [rows,n] of the largest weight, on the host: what rounding loses
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
    for (const Linear* l : layer_linears(m.layers[0])) n = std::max(n, l->cols);
    for (const LinearPart* t : quantized_parts(m)) {
        weights = std::max(weights, t->count());
        rows = std::max(rows, t->rows);
    }
    const Device host = m.dev.cuda ? Device() : m.dev;
    if (tokens) {
        activations_allocate(s.acts, m, std::min(tokens, std::max(micro_batch_tokens / length, (int64_t)1) * length),
                             plan.training.on() ? ActivationMode::recompute : ActivationMode::inference);
        const char* hint = "lower --calibration_samples or --calibration_length";
        s.hidden.allocate((size_t)(tokens * m.C()), "hidden states of the calibration tokens", hint, m.dev);
        s.attention.allocate((size_t)(tokens * q), "hidden states of the calibration tokens", hint, m.dev);
        s.hessian.allocate((size_t)(n * n), "a product's Hessian", "", m.dev);
        if (!plan.layers.empty()) layer_inputs_allocate(s.inputs, m, tokens, length);
        if (plan.training.on()) plan.training.allocate(m, tokens);
    }
    s.difference.allocate((size_t)weights, "a matrix being rounded", "", host);
    if (plan.rounder.allocate) plan.rounder.allocate(n, weights, rows, host);
    if (m.dev.cuda) s.host_hessian.allocate((size_t)(n * n), "", "");
}

// ---------------------------------------------------------------------------------------------------------------------
// the pipeline

// what rounding did to one linear of one layer
struct PtqLinear {
    bool quantized = false;
    double error = 0.0;         // ||(W - Q) X||^2 / ||W X||^2; without calibration ||W - Q||^2 / ||W||^2
    double damp_percent = 0.0;  // GPTQ's, what it took
};

struct PtqLayer {
    PtqLinear linear[4];  // in the order of Product
    double seconds = 0.0;
    std::vector<ModuleReport> modules;  // that were trained behind it
};

// Rounds one weight, wherever the model is, and makes its working weight of the master that this leaves and the grid;
// energy(d, rows): what [rows,cols] d is worth
template <class Energy>
void round_part(Model& m, PtqMemory& s, const PtqPlan& plan, LinearPart& t, const Energy& energy, double* lost,
                double* all) {
    const size_t count = (size_t)t.count();
    float* master = m.master.data + t.offset;
    RoundedLinear r = rounded_linear(t, master);
    if (m.dev.cuda) {
        r = rounded_scratch(s.host, t);
        copy_to_host(r.w, master, count * sizeof(float), m.dev);
        if (t.trained_grid) copy_to_host(r.grid, t.grid, (size_t)t.groups * sizeof(Grid), m.dev);
    }
    *all += energy(r.w, t.rows);
    plan.rounder.round(r, s.difference.data);
    *lost += energy(s.difference.data, t.rows);
    if (m.dev.cuda) {
        copy_to_device(master, r.w, count * sizeof(float), m.dev);
        copy_to_device(t.grid, r.grid, (size_t)t.groups * sizeof(Grid), m.dev);
        copy_to_device(t.state.tensor, r.state.tensor, s.host.state.size() * sizeof(float), m.dev);
        copy_to_device(t.state.codes, r.state.codes, s.host.scale_codes.size(), m.dev);
        device_synchronize(m.dev);  // the host's copies are used again
    }
    t.quantizer.scale_mode = ScaleMode::kept;
    t.measured = t.given = true;  // the codes of this refresh are the first
    t.trained_grid = false;
    quantized_tensor_refresh(t, master, QuantNoise(), m.dev);
}

// Rounds the weights of a linear. hessian [n,n]: sum of x x^T of its inputs over s.tokens, where the model is; null
// without calibration
inline PtqLinear round_linear(Model& m, PtqMemory& s, const PtqPlan& plan, Linear& l, float* hessian) {
    PtqLinear result;
    const int64_t n = l.cols;
    for (const LinearPart& t : l.parts) result.quantized |= t.quantizer.on();
    if (!result.quantized) return result;
    float* h = hessian;
    if (hessian) {
        if (m.dev.cuda) {
            h = s.host_hessian.data;
            copy_to_host(h, hessian, (size_t)(n * n) * sizeof(float), m.dev);
        }
        const float scale = 2.0f / (float)s.tokens;
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < n * n; i++) h[i] *= scale;
        if (plan.rounder.prepare)
            result.damp_percent = plan.rounder.prepare(h, n, format("layer %d, %s", l.layer, l.name));
    }
    double lost = 0.0, all = 0.0;
    auto energy = [&](const float* d, int64_t rows) {
        if (h) return output_energy(d, h, rows, n);
        double sum = 0.0;
        for (int64_t i = 0; i < rows * n; i++) sum += (double)d[i] * (double)d[i];
        return sum;
    };
    for (LinearPart& t : l.parts)
        if (t.quantizer.on()) round_part(m, s, plan, t, energy, &lost, &all);
    result.error = all > 0.0 ? lost / all : 0.0;
    return result;
}

// The plan's transforms of layer l, whose input is s.hidden: each sees what the one before has made of the layer
inline void transform_layer(Model& m, PtqMemory& s, const PtqPlan& plan, int l, const std::vector<Batch>& sample) {
    Progress line("transforming its inputs", "", 0, ProgressKind::part);
    for (const LayerTransform& transform : plan.layers) {
        const LayerInputs in = layer_inputs(m, s.acts, s.inputs, l, s.hidden.data, sample);
        host_masters(m, l, s.host_layer, [&](const HostMasters& w) { transform(m, w.layers[l], l, in); });
        for (const ParamTensor& t : m.tensors)
            if (t.layer == l) convert_forward(m.work.data + t.offset, m.master.data + t.offset, t.count(), m.dev);
    }
}

// The input of product p of layer l for a micro-batch, from hidden [T,C] and attention [T,NH*HD] as the products before p
// have left them
inline const floatX* product_input(Model& m, Activations& a, int l, Product p, const BatchView& b, floatX* hidden,
                                   floatX* attention) {
    const Pass pass = full_precision();
    const Layer& w = m.layers[l];
    const int C = m.C();
    const float eps = m.config.rms_norm_eps;
    LayerActivations& y = a.layers[l];
    switch (p) {
        case Product::qkv:
            rmsnorm_forward(y.ln1, y.ln1_rstd, hidden, w.ln1.work, {b.T, C}, eps, m.dev);
            linear_transform(w.qkv, y.ln1, b.T, m.dev);
            return y.ln1;
        case Product::o:
            rmsnorm_forward(y.ln1, y.ln1_rstd, hidden, w.ln1.work, {b.T, C}, eps, m.dev);
            layer_attention_forward(m, a, l, b, pass, nullptr);
            copy_on_device(attention, y.att, (size_t)(b.T * w.o.cols) * sizeof(floatX), m.dev);
            return y.att;
        case Product::gate_up:
            linear_forward(w.o, a.branch, attention, nullptr, a.quantized, b.T, pass, m.dev);
            fused_residual_rmsnorm_forward(hidden, y.ln2, y.ln2_rstd, hidden, a.branch, w.ln2.work, {b.T, C}, eps,
                                           m.dev);
            linear_transform(w.gate_up, y.ln2, b.T, m.dev);
            return y.ln2;
        case Product::down:
            break;
    }
    rmsnorm_forward(y.ln2, y.ln2_rstd, hidden, w.ln2.work, {b.T, C}, eps, m.dev);
    layer_mlp_forward(m, a, l, b.T, pass);
    return y.act;
}

// Embedding and head, which no calibration looks at, to nearest
inline void round_tables(Model& m, PtqMemory& s) {
    PtqPlan nearest;
    double lost = 0.0, all = 0.0;
    for (LinearPart* t : {&m.embed, &m.head})
        if (t->quantizer.on() && !t->measured)
            round_part(
                m, s, nearest, *t, [](const float*, int64_t) { return 0.0; }, &lost, &all);
}

// Quantizes the model as its quantizers and the plan say. windows: of equal length; none if nothing needs them.
// on_layer(l, report) after each layer.
inline void ptq_run(Model& m, PtqMemory& s, const PtqPlan& plan, const std::vector<std::vector<int>>& windows,
                    const std::function<void(int, const PtqLayer&)>& on_layer) {
    {
        Progress line("rotating", "", 0, ProgressKind::part);
        for (const auto& transform : plan.models) transform(m);
    }
    model_refresh(m, false);
    const int C = m.C();
    const int64_t Q = (int64_t)m.NH() * m.HD();
    Activations& a = s.acts;
    const std::vector<Batch> batches = micro_batches(windows, windows.size(), a.capacity);
    std::vector<Batch> sample;
    if (!windows.empty()) {
        const int64_t length = (int64_t)windows[0].size(), tokens = std::max(LayerInputs::batch_tokens, length);
        sample = micro_batches(windows, sample_windows(length), std::min(a.capacity, tokens));
        rope_extend(m.rope, (int)length, m.dev);
    }
    // use(view, its hidden states, its attention) for each micro-batch
    auto each = [&](const auto& use) {
        int64_t first = 0;
        for (const Batch& b : batches) {
            BatchView view = batch_view(a.batch, b, m.dev);
            use(view, s.hidden.data + first * C, s.attention.data + first * Q);
            first += b.T();
        }
    };
    each([&](const BatchView& b, floatX* hidden, floatX*) {
        embedding_forward(hidden, b.tokens, m.embed.work, b.T, C, m.dev);
    });
    for (int l = 0; l < m.L(); l++) {
        const double start = wall_seconds();
        PtqLayer report;
        if (plan.training.on()) plan.training.before(m, a, l, s.hidden.data, windows);
        if (!plan.layers.empty()) transform_layer(m, s, plan, l, sample);
        for (int p = 0; p < 4; p++) {
            Linear& linear = *layer_linears(m.layers[l])[p];
            const int64_t n = linear.cols;
            if (!batches.empty()) set_zero(s.hessian.data, (size_t)(n * n) * sizeof(float), m.dev);
            {
                Progress line(format("inputs of %s", linear.name), "token", s.tokens, ProgressKind::part);
                each([&](const BatchView& b, floatX* hidden, floatX* attention) {
                    const floatX* x = product_input(m, a, l, (Product)p, b, hidden, attention);
                    matmul_tn({s.hessian.data, n}, {x, n}, {x, n}, b.T, n, n, m.dev);
                    line.add(b.T);
                });
            }
            Progress line(format("rounding %s", linear.name), "", 0, ProgressKind::part);
            report.linear[p] = round_linear(m, s, plan, linear, batches.empty() ? nullptr : s.hessian.data);
        }
        if (l + 1 < m.L())
            each([&](const BatchView& b, floatX* hidden, floatX* attention) {
                const floatX* act = product_input(m, a, l, Product::down, b, hidden, attention);
                const Layer& w = m.layers[l];
                linear_forward(w.down, a.branch, act, nullptr, a.quantized, b.T, full_precision(), m.dev);
                fused_residual_rmsnorm_forward(hidden, a.layers[l].ln2, a.layers[l].ln2_rstd, hidden, a.branch,
                                               w.ln2.work, {b.T, C}, m.config.rms_norm_eps,
                                               m.dev);  // for its sum; the norm is not used
            });
        report.seconds = wall_seconds() - start;
        if (plan.training.on()) report.modules = plan.training.after(m, a, l, s.hidden.data);
        on_layer(l, report);
    }
    round_tables(m, s);
    m.work_quantized = true;
}
