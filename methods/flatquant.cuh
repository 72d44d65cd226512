// FlatQuant (Sun et al. 2024, arXiv 2410.09426): for the inputs x of each linear a transform is learned that makes them,
// and the weights behind its inverse, flat, that is easy to quantize; layer by layer, before a layer is rounded.
//
//   x' = (x r) (P1 (x) P2),  W' = W (1/r) P^-T,  out = Q_x(x') Q(W')^T        kernels/kronecker.cuh; q,k,v share theirs
//   clips      of each group of weights [sigmoid(b) min, sigmoid(a) max], of a token's range the share sigmoid(c), one c a
//              linear; all logits begin at 4 (LWC, LAC)
//   loss       ||f - f^||^2, f the layer in full precision, f^ quantized, both of the same input, which full precision
//              gives; weights themselves are not trained
//   start      P1, P2 Hadamard matrices of random signs (kernels/hadamard.cuh); 1/r_k = max|x_k|^alpha / max|w_k|^(1-alpha),
//              as SmoothQuant has it, of a geometric mean of 1
//   step       AdamW without decay on P1, P2, log r and the logits; rates fall by a cosine to 1/20 (theirs to 1/1000)
//
// The weights' gradient is taken through W', that of Q_x and Q through the ends of their ranges (range_backward.cuh):
//   M, N: the moments of x' and of W' with their gradients;  dP1 = P1^-T (M1 - N1^T),  dP2 alike
//   d log r = sum x dx - sum W dW, by columns
// Without quantizers M1 = N1^T, and nothing moves. P^-1 is found in double, of matrices as small as 32 x 48 for 1,536
// inputs. Afterwards the master is W', on the grid of its clips, which rounds it to nearest or by GPTQ; x' is computed
// online, as R4 of methods/rotation.cuh is, and lies beside the checkpoint (formats/transforms_file.h).
//
// Their transforms of keys and values for a quantized cache are not here: --rotations r3 has a fixed one. Their scales r
// go into the norm before, here they are part of x'.
//
// The trap: f^ is trained with the quantizers of this run, so that --activations belongs to it; a model that was trained
// for weights alone has no clips for its inputs.
#pragma once
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>
#include "../runtime/settings.h"
#include "blockwise.cuh"
#include "smoothquant.cuh"

struct FlatquantConfig {
    int64_t epochs = 15, batch = 4;  // batch: windows of a step
    double learning_rate = 5e-3, clip_learning_rate = 5e-2;
    double alpha = 0.3;
    uint64_t seed = 0;
};

inline std::vector<SettingRow> flatquant_settings() {
    return {{"epochs", "15", "whole [0, 10000]", "passes over the calibration windows; 0: as it starts"},
            {"batch", "4", "whole [1, 65536]", "calibration windows of a step"},
            {"learning_rate", "5e-3", "[0, 1]", "of the transforms, at the beginning"},
            {"clip_learning_rate", "5e-2", "[0, 1]", "of the clips' logits, at the beginning"},
            {"alpha", "0.3", "[0, 1]", "how much of the inputs' range moves into the weights at the start"}};
}

inline FlatquantConfig flatquant_config(const Settings& s, uint64_t seed) {
    FlatquantConfig c;
    c.epochs = s.whole("epochs"), c.batch = s.whole("batch");
    c.learning_rate = s.number("learning_rate"), c.clip_learning_rate = s.number("clip_learning_rate");
    c.alpha = s.number("alpha"), c.seed = seed;
    return c;
}

inline void flatquant_check(const Model& m) {
    if (m.config.transformed)
        fail_usage("--ptq flatquant: the model has learned transforms already; quantize the model that it was made of");
    if (m.config.rotate_down)
        fail_usage("--ptq flatquant: the inputs of down are rotated already (r4); take a model without, or gptq");
    for (const LinearPart* p : quantized_parts(m)) {
        const QuantSpec& q = p->quantizer.spec;
        if (p->layer >= 0 && (!trait_lists(quant_traits(q).learned, "lwc") || q.rule == ScaleRule::signedmax))
            fail_usage("--ptq flatquant: --weights %s has no range that a clip could be learned of; use an int format",
                       quantizer_text(p->quantizer).c_str());
    }
    for (const Layer& layer : m.layers)
        for (const Linear* l : layer_linears(layer)) {
            Kronecker k;
            if (!kronecker_split(k, l->cols))
                fail_usage("--ptq flatquant: %lld inputs (%s) are no product of two numbers up to %d; use gptq",
                           (long long)l->cols, l->name, KRONECKER_MOST);
            if (l->input.on() && !trait_lists(quant_traits(l->input.spec).learned, "lwc"))
                fail_usage("--ptq flatquant: --activations %s has no range that a clip could be learned of; use int",
                           quantizer_text(l->input, "token").c_str());
        }
}

// ---------------------------------------------------------------------------------------------------------------------
// parameters

// Of a linear, on the host: P1, P2, log |r|, the logit of its inputs' clip, one after another
struct FlatquantLinear {
    InputTransform now;
    std::vector<float> numbers;  // transform_numbers(now), where the linear has them
    std::vector<float> parameters, gradient, m, v;
    size_t first() const { return now.p1.size(); }
    size_t second() const { return now.p2.size(); }
};

struct FlatquantMemory {
    BlockwiseMemory block;      // its span: the layer
    Buffer<float> transformed;  // [the layer's parameters] W'
    Buffer<Grid> ranges;        // [groups of the layer] of W'
    Buffer<float> gradients;    // of the linears' parameters: of the inputs, and of the weights
    FlatquantLinear linears[4];
    std::shared_ptr<std::vector<InputTransform>> found = std::make_shared<std::vector<InputTransform>>();
    std::vector<ModuleReport> reports;
};

inline int64_t flatquant_parameters(const Linear& l) {
    Kronecker k;
    kronecker_split(k, l.cols);
    return (int64_t)k.n1 * k.n1 + (int64_t)k.n2 * k.n2 + l.cols + 1;
}

inline void flatquant_allocate(FlatquantMemory& f, Model& m, int64_t tokens) {
    BlockwiseMemory& s = f.block;
    size_t parameters = 0, groups = 0, gradients = 0;
    for (int l = 0; l < m.L(); l++) {
        size_t of_layer = 0;
        for (const LinearPart* p : blockwise_parts(m, l, l + 1)) of_layer += (size_t)p->groups;
        parameters = std::max(parameters, layer_parameters(m, l, l + 1).count()), groups = std::max(groups, of_layer);
    }
    for (const Linear* l : layer_linears(m.layers[0])) gradients += 2 * (size_t)flatquant_parameters(*l);
    s.tokens = tokens, s.layers = 1;
    const char* hint = "lower --calibration_samples or --calibration_length";
    s.targets.allocate(array_count(2, tokens, m.C()), "full-precision hidden states of the layer in training", hint,
                       m.dev);
    s.input.allocate((size_t)(tokens * m.C()), "hidden states of the calibration tokens", hint, m.dev);
    s.grads.allocate(parameters, "gradients of the layer in training", "", m.dev);
    f.transformed.allocate(parameters, "transformed weights of the layer in training", "", m.dev);
    f.ranges.allocate(groups, "grids of the layer in training", "", m.dev);
    for (Buffer<float>* b : {&s.grid, &s.dgrid, &s.gm, &s.gv})
        b->allocate(2 * groups, "grids of the layer in training", "", m.dev);
    f.gradients.allocate(gradients, "gradients of the transforms in training", "", m.dev);
    model_plan_transforms(m);
}

// use(linear, its place): of layer l
template <class F>
void flatquant_each(Model& m, FlatquantMemory& f, const F& use) {
    for (int i = 0; i < 4; i++) use(*layer_linears(m.layers[f.block.first])[i], f.linears[i]);
}
inline float* flatquant_transformed(const Model& m, const FlatquantMemory& f, const QuantizedTensor& t) {
    return f.transformed.data + (t.offset - layer_parameters(m, f.block.first, f.block.end).first);
}

// a Hadamard matrix (of blocks, where none has that order) whose rows have random signs
inline std::vector<float> flatquant_matrix(int n, uint64_t seed, uint32_t which) {
    const Hadamard h = hadamard_for(n);
    std::vector<float> p((size_t)n * n);
    std::vector<double> row(n), buffer((size_t)h.N());
    for (int i = 0; i < n; i++) {
        std::fill(row.begin(), row.end(), 0.0);
        row[i] = rng_bits(seed, RNG_ROTATION, which, (uint32_t)i, 1).x[0] >> 31 ? -1.0 : 1.0;
        for (int at = 0; at < n; at += (int)h.N()) hadamard_double(&row[at], buffer.data(), h, false);
        for (int j = 0; j < n; j++) p[(size_t)i * n + j] = (float)row[j];
    }
    return p;
}

// 1/s of smoothquant_scales over x [tokens,cols], with a geometric mean of 1
inline std::vector<float> flatquant_scales(const Linear& l, const floatX* x, int64_t tokens, double alpha, Device dev) {
    std::vector<floatX> inputs((size_t)(tokens * l.cols));
    std::vector<float> w((size_t)(l.rows * l.cols));
    copy_to_host(inputs.data(), x, inputs.size() * sizeof(floatX), dev);
    copy_to_host(w.data(), l.weight.master, w.size() * sizeof(float), dev);
    std::vector<float> r = smoothquant_scales(inputs.data(), tokens, w.data(), l.rows, l.cols, alpha);
    double mean = 0.0;
    for (float s : r) mean += std::log((double)s) / (double)l.cols;
    for (float& s : r) s = (float)(std::exp(mean) / (double)s);
    return r;
}

// the layer's linears begin; its first windows have gone through it in full precision
inline void flatquant_start(Model& m, const Activations& a, FlatquantMemory& f, const FlatquantConfig& c) {
    const LayerActivations& y = a.layers[f.block.first];
    const floatX* const inputs[] = {y.ln1, y.att, y.ln2, y.act};
    int i = 0;
    flatquant_each(m, f, [&](Linear& l, FlatquantLinear& t) {
        Kronecker k;
        kronecker_split(k, l.cols);
        const uint32_t which = 8 * (uint32_t)l.layer + 2 * (uint32_t)i;
        t.now.n1 = k.n1, t.now.n2 = k.n2;
        t.now.p1 = flatquant_matrix(k.n1, c.seed, which), t.now.p2 = flatquant_matrix(k.n2, c.seed, which + 1);
        t.now.scale = flatquant_scales(l, inputs[i++], a.view.T, c.alpha, m.dev);
        t.parameters = t.now.p1;
        t.parameters.insert(t.parameters.end(), t.now.p2.begin(), t.now.p2.end());
        for (float r : t.now.scale) t.parameters.push_back(std::log(r));
        t.parameters.push_back(LWC_START);
        for (std::vector<float>* v : {&t.gradient, &t.m, &t.v}) v->assign(t.parameters.size(), 0.0f);
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// training

// The linears have the transforms of the parameters as they are, and Q(W')
inline void flatquant_refresh(Model& m, FlatquantMemory& f) {
    flatquant_each(m, f, [&](Linear& l, FlatquantLinear& t) {
        const float* p = t.parameters.data();
        std::copy(p, p + t.first(), t.now.p1.begin());
        std::copy(p + t.first(), p + t.first() + t.second(), t.now.p2.begin());
        p += t.first() + t.second();
        for (int64_t k = 0; k < l.cols; k++) t.now.scale[(size_t)k] = std::exp(p[k]);
        t.now.clip = l.input.on() ? sigmoid_f(p[l.cols]) : 1.0f;
        t.numbers = transform_numbers(t.now);
        if (t.numbers.empty())
            fail("--ptq flatquant: a transform of %s of layer %d has become singular; lower learning_rate", l.name,
                 l.layer + 1);
        linear_load_transform(l, t.now, t.numbers, m.dev);
        float* w = flatquant_transformed(m, f, l.parts[0]);
        copy_on_device(w, l.weight.master, (size_t)(l.rows * l.cols) * sizeof(float), m.dev);
        kronecker_forward(w, l.dual, l.rows, m.dev);
        for (LinearPart& part : l.parts) {
            const float* from = w + part.row0 * l.cols;
            if (part.quantizer.on()) quantized_tensor_refresh(part, from, QuantNoise(), m.dev);
            else convert_forward(part.work, from, part.count(), m.dev);
        }
    });
}

// Gradients have memory, the weights' grids logits
inline void flatquant_bind(Model& m, FlatquantMemory& f) {
    BlockwiseMemory& s = f.block;
    for (Buffer<float>* b : {&s.grads, &s.grid, &s.dgrid, &s.gm, &s.gv, &f.gradients})
        set_zero(b->data, b->bytes(), m.dev);
    model_bind_layer_gradients(m, s.grads.data, s.first, s.end);
    int64_t at = 0;
    Grid* range = f.ranges.data;
    for (LinearPart* p : blockwise_parts(m, s.first, s.end)) {
        p->quantizer.scale_mode = ScaleMode::learned, p->quantizer.learned_scale = LearnedScale::lwc;
        p->learned = {s.grid.data + at, s.grid.data + at + p->groups, s.dgrid.data + at, s.dgrid.data + at + p->groups,
                      range};
        p->given = true, p->restored = false;
        at += 2 * p->groups, range += p->groups;
    }
    float* to = f.gradients.data;
    flatquant_each(m, f, [&](Linear& l, FlatquantLinear& t) {
        l.learned_gradient = {to, to + t.first(), to + t.first() + t.second(), to + t.first() + t.second() + l.cols};
        to += 2 * t.parameters.size();
    });
}

// From the gradients of Q(W') and the inputs' moments to those of the parameters, which take a step. step: from 0
inline void flatquant_update(Model& m, FlatquantMemory& f, const FlatquantConfig& c, int64_t step, double decay) {
    BlockwiseMemory& s = f.block;
    AdamWConfig transforms, clips;
    transforms.learning_rate = (float)(c.learning_rate * decay);
    clips.learning_rate = (float)(c.clip_learning_rate * decay);
    flatquant_each(m, f, [&](Linear& l, FlatquantLinear& t) {
        const float* w = flatquant_transformed(m, f, l.parts[0]);
        for (LinearPart& p : l.parts) {
            if (!p.quantizer.on()) continue;
            RangeGradient d;
            RangeClip clip;
            d.a = p.learned.da, d.b = p.learned.db, clip.a = p.learned.a, clip.b = p.learned.b;
            range_backward(p.grad, d, w + p.row0 * l.cols, p.learned.range, p.grid, clip, quantized_tensor_groups(p),
                           p.quantizer.spec, m.dev);
        }
        const size_t n = t.parameters.size(), n1 = (size_t)t.now.n1, n2 = (size_t)t.now.n2;
        float *of_inputs = l.learned_gradient.m1, *of_weights = of_inputs + n;
        kronecker_moments(of_weights, of_weights + t.first(), w, (const float*)l.weight.grad, l.learned, l.rows, m.dev);
        kronecker_backward(l.weight.grad, l.dual, l.rows, m.dev);
        kronecker_columns(l.learned_gradient.scale, (const float*)l.weight.master, (const float*)l.weight.grad, l.cols,
                          l.rows, -1.0f, m.dev);
        std::vector<float> moments(2 * n);
        copy_to_host(moments.data(), of_inputs, moments.size() * sizeof(float), m.dev);
        // P^-T (M - N^T) of both factors; dual: P^-T
        auto factor = [&](size_t at, size_t size, const float* dual) {
            for (size_t i = 0; i < size; i++)
                for (size_t j = 0; j < size; j++) {
                    double sum = 0.0;
                    for (size_t k = 0; k < size; k++)
                        sum += (double)dual[i * size + k] *
                               ((double)moments[at + k * size + j] - (double)moments[n + at + j * size + k]);
                    t.gradient[at + i * size + j] = (float)sum;
                }
        };
        const size_t dual = t.first() + t.second() + (size_t)l.cols;
        factor(0, n1, &t.numbers[dual]), factor(t.first(), n2, &t.numbers[dual + t.first()]);
        for (size_t i = t.first() + t.second(); i + 1 < n; i++) t.gradient[i] = moments[i];
        t.gradient[n - 1] = moments[n - 1] * t.now.clip * (1.0f - t.now.clip);
        const int64_t clip = (int64_t)n - 1;
        adamw_update(t.parameters.data(), t.m.data(), t.v.data(), t.gradient.data(), clip, 1.0f, transforms, step + 1,
                     Device());
        adamw_update(&t.parameters[n - 1], &t.m[n - 1], &t.v[n - 1], &t.gradient[n - 1], 1, 1.0f, clips, step + 1,
                     Device());
    });
    adamw_update(s.grid.data, s.gm.data, s.gv.data, s.dgrid.data, (int64_t)s.grid.size, 1.0f, clips, step + 1, m.dev);
    for (Buffer<float>* b : {&s.grads, &s.dgrid, &f.gradients}) set_zero(b->data, b->bytes(), m.dev);
    flatquant_refresh(m, f);
}

// The layer's masters become W', on the grids of their clips; its work is in full precision again
inline void flatquant_end(Model& m, FlatquantMemory& f) {
    flatquant_each(m, f, [&](Linear& l, FlatquantLinear& t) {
        const int64_t n = l.rows * l.cols;
        copy_on_device(l.weight.master, flatquant_transformed(m, f, l.parts[0]), (size_t)n * sizeof(float), m.dev);
        convert_forward(l.weight.work, l.weight.master, n, m.dev);
        l.learned_gradient = TransformGradient();
        f.found->push_back(t.now);
    });
    for (LinearPart* p : blockwise_parts(m, f.block.first, f.block.end)) {
        p->quantizer.scale_mode = ScaleMode::kept;
        p->learned = LearnedGrid();
        p->trained_grid = true;
    }
    model_bind_gradients(m, nullptr);
}

// the error of the layer as plain rounding to nearest would have it
inline double flatquant_rounded(Model& m, Activations& a, FlatquantMemory& f) {
    for (LinearPart* p : blockwise_parts(m, f.block.first, f.block.end)) {
        p->quantizer.scale_mode = ScaleMode::dynamic;
        quantized_tensor_refresh(*p, p->master, QuantNoise(), m.dev);
    }
    return blockwise_errors(m, a, f.block, nullptr)[0];
}

// the layer, whose input in full precision is block.input
inline void flatquant_train(Model& m, Activations& a, FlatquantMemory& f, const FlatquantConfig& c) {
    const double start = wall_seconds();
    BlockwiseMemory& s = f.block;
    const int l = s.first, n = (int)s.windows->size();
    Batch b;
    blockwise_batch(m, a, s, b, blockwise_split(blockwise_all(s), a, s.length)[0], full_precision());
    layer_from(m, a, l, s.input.data);
    flatquant_start(m, a, f, c);
    ModuleReport r;
    r.number = r.first = l, r.end = l + 1, r.modules = m.L();
    r.before = flatquant_rounded(m, a, f);
    flatquant_bind(m, f);
    flatquant_refresh(m, f);
    BlockwiseOrder order = {n, c.seed};
    BlockwiseConfig rates;
    const int64_t batch = std::min<int64_t>(c.batch, n);
    rates.steps = CEIL_DIV(c.epochs * n, batch);
    Progress line("training", "step", rates.steps, ProgressKind::part);
    for (int64_t step = 0; step < rates.steps; step++, line.add()) {
        const std::vector<int> windows = order.next(batch);
        for (const std::vector<int>& ids : blockwise_split(windows, a, s.length))
            blockwise_modules(m, a, s, ids, 0.0,
                              [&](int first, int end) { module_backward(m, a, s, first, end, ids); });
        flatquant_update(m, f, c, step, blockwise_decay(rates, step));
    }
    r.after = blockwise_errors(m, a, s, nullptr)[0];
    if (!std::isfinite(r.after))
        fail("--ptq flatquant: layer %d gives numbers that are not finite after training; lower learning_rate", l + 1);
    flatquant_end(m, f);
    r.seconds = wall_seconds() - start;
    f.reports = {r};
}

// the row of --ptq's table
inline LayerTraining flatquant_training(const FlatquantConfig& c) {
    auto f = std::make_shared<FlatquantMemory>();
    LayerTraining t;
    t.transforms = true;
    t.check = [](const Model& m) { flatquant_check(m); };
    t.allocate = [f](Model& m, int64_t tokens) { flatquant_allocate(*f, m, tokens); };
    t.before = [f, c](Model& m, Activations& a, int l, const floatX* hidden,
                      const std::vector<std::vector<int>>& windows) {
        BlockwiseMemory& s = f->block;
        if (m.layers[l].down.transform.on())
            fail_usage("--ptq flatquant: its transforms stand where r4 would; leave r4 out of --rotations");
        const size_t bytes = (size_t)s.plane(m) * sizeof(floatX);
        copy_on_device(s.targets.data, l ? s.targets.data + s.plane(m) : hidden, bytes, m.dev);
        copy_on_device(s.input.data, s.targets.data, bytes, m.dev);
        s.windows = &windows, s.length = (int64_t)windows[0].size();
        s.first = l, s.end = l + 1;
        blockwise_targets(m, a, s);
        flatquant_train(m, a, *f, c);
        if (l + 1 < m.L()) return;
        m.config.transforms = f->found, m.config.transformed = true;
    };
    t.after = [f](Model&, Activations&, int, floatX*) { return f->reports; };
    return t;
}
