// Block-wise reconstruction: modules of N consecutive layers are trained, behind their rounding, to give what they gave
// in full precision (MREM: Bai et al. 2021, arXiv 2109.15082; Block-AP of EfficientQAT: Chen et al. 2024, arXiv
// 2407.11062, which is modules of one layer, sequential, forcing=0).
//
//   loss       sum over the layers l of the module of ||f_l - f^_l||^2, f in full precision, f^ quantized; all tokens
//   trained    the quantized weights, straight-through, and their grids: scales (LSQ), of asymmetric ones an offset, too,
//              z = rint(-b/s) (LSQ+, kernels/quant_backward.cuh). A grid that cannot be trained (formats of fixed
//              tables, signedmax) stays as the rounder left it. What is not quantized stays as it is; EfficientQAT
//              trains norms, too
//   input      f~ = lambda f + (1 - lambda) f^ of the module before,  lambda_t = max(1 - t/T0, 0),  T0 = forcing steps:
//              annealed teacher forcing, MREM's; forcing=0 is f^ at every step
//   step       AdamW without decay, rates fall by a cosine to 1/20, windows in an order drawn anew for each epoch
//   sequential a module is trained to its end before the next is rounded: f^ comes from trained modules, and GPTQ's
//              Hessians do, too (MREM-S)
//   parallel   all layers are rounded; then all modules take a step on the same batch in turn, f^ being what the module
//              before gave at this step (MREM-P on one machine; with one module the same as sequential)
// The sum is not divided by its terms: AdamW's step is the same, and its epsilon far away.
//
// f is kept for the input and each layer of what is trained at a time, a span: a module, or all of them (parallel).
// Beside it are f^ at the span's input, and gradients and two moments of its parameters. The forward is the model's own,
// with Q_x and the quantizer of the KV cache; f has neither. Within a module of several layers a layer is run again for
// its backward, as with --gradient_checkpointing.
//
// What is left is what every rounder leaves: masters, codes and a kept grid, scales rounded to bf16, integer zero points.
// End to end, scales alone (the second phase of EfficientQAT): methods/end_to_end.cuh.
//
// The traps: a scale that moves rounds all weights of its group anew, which takes apart what GPTQ's errors make up for
// each other; behind gptq scale_learning_rate=0 leaves the scales (a layer of random weights in int2:g32:asym, error
// 0.0051 by GPTQ: 0.0043 in 50 steps of the weights alone, 0.021 in 50 of the grids alone). And LSQ's b has the unit of a
// weight and scale_learning_rate as its rate, EfficientQAT's z is in steps of the grid.
#pragma once
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>
#include "../data/dataset.h"
#include "../kernels/adamw.cuh"
#include "../runtime/run_dir.h"
#include "../runtime/settings.h"
#include "blockwise_modules.cuh"

struct BlockwiseConfig {
    int layers = 1;  // of a module
    bool parallel = false;
    int64_t steps = 200, batch = 2;  // batch: windows of a step
    double learning_rate = 1e-5, scale_learning_rate = 1e-4;
    double forcing = 0.5;  // T0 / steps
    uint64_t seed = 0;
};

inline std::vector<SettingRow> blockwise_settings() {
    return {{"layers", "1", "whole [1, 1000]", "layers of a module; the last module may have fewer"},
            {"schedule", "sequential", "sequential|parallel", "a module to its end before the next, or all in turn"},
            {"steps", "200", "whole [1, 1000000]", "steps of each module"},
            {"batch", "2", "whole [1, 65536]", "calibration windows of a step"},
            {"learning_rate", "1e-5", "[0, 1]", "of the weights, at the beginning; 0: they stay"},
            {"scale_learning_rate", "1e-4", "[0, 1]", "of scales and offsets, at the beginning; 0: they stay"},
            {"forcing", "0.5", "[0, 1]", "share of the steps in which full precision is mixed into a module's input"}};
}

inline BlockwiseConfig blockwise_config(const Settings& s, uint64_t seed) {
    BlockwiseConfig c;
    c.layers = (int)s.whole("layers"), c.parallel = s.is("schedule", "parallel");
    c.steps = s.whole("steps"), c.batch = s.whole("batch");
    c.learning_rate = s.number("learning_rate"), c.scale_learning_rate = s.number("scale_learning_rate");
    c.forcing = s.number("forcing"), c.seed = seed;
    if (c.learning_rate == 0.0 && c.scale_learning_rate == 0.0)
        fail_usage("--ptq blockwise: learning_rate=0 and scale_learning_rate=0 train nothing; leave blockwise out");
    return c;
}

inline void blockwise_check(const BlockwiseConfig& c, const Model& m) {
    if (m.L() == 1)
        fail_usage(
            "--ptq blockwise: the model has one layer, so that no module is smaller than the model; train it as a whole "
            "instead: distill with --qat_scale learned");
    if (c.layers > m.L())
        fail_usage("--ptq blockwise: layers=%d is more than the %d of the model; lower it", c.layers, m.L());
}

// lambda_t, and what the rates are multiplied with; step: from 0
inline double blockwise_forcing(const BlockwiseConfig& c, int64_t step) {
    const double t0 = c.forcing * (double)c.steps;
    return t0 > 0.0 ? std::max(1.0 - (double)step / t0, 0.0) : 0.0;
}
inline double blockwise_decay(const BlockwiseConfig& c, int64_t step) {
    return 0.05 + 0.95 * 0.5 * (1.0 + cos(3.14159265358979323846 * (double)step / (double)c.steps));
}

// the layers that are trained at a time
inline int blockwise_span(const BlockwiseConfig& c, const Model& m) { return c.parallel ? m.L() : c.layers; }

// ---------------------------------------------------------------------------------------------------------------------
// memory

inline void blockwise_allocate(BlockwiseMemory& s, const BlockwiseConfig& c, Model& m, int64_t tokens) {
    const int span = blockwise_span(c, m);
    size_t parameters = 0, groups = 0;
    for (int l = 0; l < m.L(); l += span) {
        const int end = std::min(l + span, m.L());
        size_t of_span = 0;
        for (const LinearPart* p : blockwise_parts(m, l, end)) of_span += (size_t)p->groups;
        parameters = std::max(parameters, layer_parameters(m, l, end).count()), groups = std::max(groups, of_span);
    }
    s.tokens = tokens, s.layers = c.layers;
    const char* hint = "lower --calibration_samples or --calibration_length";
    s.targets.allocate(array_count(span + 1, tokens, m.C()), "full-precision hidden states of the layers in training",
                       hint, m.dev);
    s.input.allocate((size_t)(tokens * m.C()), "hidden states of the calibration tokens", hint, m.dev);
    const char* fewer = c.parallel ? "blockwise:schedule=sequential" : "fewer blockwise:layers";
    s.grads.allocate(parameters, "gradients of the layers in training", fewer, m.dev);
    for (Buffer<float>* b : {&s.m, &s.v}) b->allocate(parameters, "moments of the layers in training", fewer, m.dev);
    for (Buffer<float>* b : {&s.grid, &s.dgrid, &s.gm, &s.gv})
        b->allocate(2 * groups, "grids of the layers in training", fewer, m.dev);
}

// ---------------------------------------------------------------------------------------------------------------------
// training

inline void blockwise_refresh(Model& m, const BlockwiseMemory& s) {
    for (LinearPart* p : blockwise_parts(m, s.first, s.end))
        quantized_tensor_refresh(*p, part_source(*p, m.dev), QuantNoise(), m.dev);
}

// The span's weights get gradients, and its grids, as they were left, parameters
inline void blockwise_begin(Model& m, BlockwiseMemory& s) {
    for (Buffer<float>* b : {&s.grads, &s.m, &s.v, &s.grid, &s.dgrid, &s.gm, &s.gv})
        set_zero(b->data, b->bytes(), m.dev);
    model_bind_layer_gradients(m, s.grads.data, s.first, s.end);
    int64_t at = 0;
    for (LinearPart* p : blockwise_parts(m, s.first, s.end)) {
        const LearnedScale kind = p->quantizer.spec.symmetric ? LearnedScale::lsq : LearnedScale::lsq_offset;
        const char* can = quant_traits(p->quantizer.spec).learned;
        if (!trait_lists(can, learned_scale_name(kind)) || p->quantizer.spec.rule == ScaleRule::signedmax) continue;
        p->quantizer.scale_mode = ScaleMode::learned, p->quantizer.learned_scale = kind;
        p->learned = {s.grid.data + at, s.grid.data + at + p->groups, s.dgrid.data + at, s.dgrid.data + at + p->groups,
                      nullptr};
        p->given = true, p->restored = false;
        at += 2 * p->groups;
    }
    blockwise_refresh(m, s);
}

inline void blockwise_end(Model& m, const BlockwiseMemory& s) {
    for (LinearPart* p : blockwise_parts(m, s.first, s.end)) {
        p->quantizer.scale_mode = ScaleMode::kept;
        p->learned = LearnedGrid();
    }
    model_bind_gradients(m, nullptr);
}

// step: from 0. Consumes the gradients of Q(W)
inline void blockwise_update(Model& m, BlockwiseMemory& s, const BlockwiseConfig& c, int64_t step) {
    const double decay = blockwise_decay(c, step);
    const size_t start = layer_parameters(m, s.first, s.end).first;
    AdamWConfig weights, scales;
    weights.learning_rate = (float)(c.learning_rate * decay);
    scales.learning_rate = (float)(c.scale_learning_rate * decay);
    for (LinearPart* p : blockwise_parts(m, s.first, s.end)) {
        const size_t at = p->offset - start;
        part_gradient(*p, p->grad, part_source(*p, m.dev), true, m.dev);
        adamw_update(p->master, s.m.data + at, s.v.data + at, p->grad, p->count(), 1.0f, weights, step + 1, m.dev);
    }
    adamw_update(s.grid.data, s.gm.data, s.gv.data, s.dgrid.data, (int64_t)s.grid.size, 1.0f, scales, step + 1, m.dev);
    for (Buffer<float>* b : {&s.grads, &s.dgrid}) set_zero(b->data, b->bytes(), m.dev);
    blockwise_refresh(m, s);
}

// The windows of each step, in turn; the same for every module
struct BlockwiseOrder {
    int n;
    uint64_t seed;
    int64_t at = 0;
    std::vector<int> order = {};
    std::vector<int> next(int64_t count) {
        std::vector<int> ids;
        for (; count > 0; count--, at++) {
            if (at % n == 0) order = epoch_order(n, seed, (uint32_t)(at / n));
            ids.push_back(order[(size_t)(at % n)]);
        }
        return ids;
    }
};

// Trains the span, whose layers are rounded. hidden [tokens,C]: what it then gives
inline std::vector<ModuleReport> blockwise_train(Model& m, Activations& a, BlockwiseMemory& s, const BlockwiseConfig& c,
                                                 floatX* hidden) {
    const double start = wall_seconds();
    const std::vector<double> before = blockwise_errors(m, a, s, nullptr);
    blockwise_begin(m, s);
    const int n = (int)s.windows->size();
    BlockwiseOrder order = {n, c.seed};
    Progress line("training", "step", c.steps, ProgressKind::part);
    for (int64_t step = 0; step < c.steps; step++, line.add()) {
        const std::vector<int> windows = order.next(std::min<int64_t>(c.batch, n));
        for (const std::vector<int>& ids : blockwise_split(windows, a, s.length))
            blockwise_modules(m, a, s, ids, blockwise_forcing(c, step),
                              [&](int first, int end) { module_backward(m, a, s, first, end, ids); });
        blockwise_update(m, s, c, step);
    }
    blockwise_end(m, s);
    const std::vector<double> after = blockwise_errors(m, a, s, hidden);
    std::vector<ModuleReport> reports;
    for (size_t i = 0; i < after.size(); i++) {
        ModuleReport r;
        r.first = s.first + (int)i * c.layers, r.end = std::min(r.first + c.layers, s.end);
        r.number = r.first / c.layers, r.modules = CEIL_DIV(m.L(), c.layers);
        r.before = before[i], r.after = after[i];
        if (!std::isfinite(r.after))
            fail("--ptq blockwise: layers %d-%d give numbers that are not finite after training; lower learning_rate",
                 r.first + 1, r.end);
        reports.push_back(r);
    }
    for (ModuleReport& r : reports) r.seconds = (wall_seconds() - start) / (double)reports.size();
    return reports;
}

// the row of --ptq's table
inline LayerTraining blockwise_training(const BlockwiseConfig& c) {
    auto s = std::make_shared<BlockwiseMemory>();
    LayerTraining t;
    t.check = [c](const Model& m) { blockwise_check(c, m); };
    t.allocate = [s, c](Model& m, int64_t tokens) { blockwise_allocate(*s, c, m, tokens); };
    t.before = [s, c](Model& m, Activations& a, int l, const floatX* hidden,
                      const std::vector<std::vector<int>>& windows) {
        if (l % blockwise_span(c, m)) return;
        const size_t bytes = (size_t)s->plane(m) * sizeof(floatX);
        // f of the span before ends where this one's begins
        copy_on_device(s->targets.data, l ? s->targets.data + (l - s->first) * s->plane(m) : hidden, bytes, m.dev);
        copy_on_device(s->input.data, hidden, bytes, m.dev);
        s->windows = &windows, s->length = (int64_t)windows[0].size();
        s->first = l, s->end = std::min(l + blockwise_span(c, m), m.L());
        blockwise_targets(m, a, *s);
    };
    t.after = [s, c](Model& m, Activations& a, int l, floatX* hidden) {
        return l + 1 < s->end ? std::vector<ModuleReport>() : blockwise_train(m, a, *s, c, hidden);
    };
    return t;
}
