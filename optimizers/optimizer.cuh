// The optimizer of a model: its trained tensors, the state of each, and the one place where they are moved.
//   tensors   with an adapter, all of it as one tensor, and nothing of the base; else every tensor that has a master.
//             The learned scales of quantizers are one more.
//   rates     a group's rate is its peak times what the schedule makes of the run's: rate / config.learning_rate
// The trap: the working weights are stale until they are made of the masters again (model_refresh).
#pragma once
#include <algorithm>
#include <string>
#include <vector>
#include "../model/parameters.cuh"
#include "../runtime/nearest.h"
#include "adamw.cuh"
#include "adamw_8bit.cuh"
#include "adamw_bf16.cuh"
#include "muon.cuh"

// the table; the first is the default
inline const std::vector<const UpdateRule*>& optimizer_rules() {
    static const std::vector<const UpdateRule*> rules = {&adamw_rule, &adamw_bf16_rule, &adamw_8bit_rule, &muon_rule};
    return rules;
}

inline const UpdateRule& optimizer_rule(const std::string& name) {
    std::vector<std::string> names;
    std::string list;
    for (const UpdateRule* r : optimizer_rules()) {
        if (name == r->name) return *r;
        names.push_back(r->name);
        list += (list.empty() ? "" : ", ") + names.back();
    }
    fail_usage("--optim %s: not one of %s%s", name.c_str(), list.c_str(), did_you_mean(name, names).c_str());
}

struct Optimizer {
    OptimizerConfig config;
    const UpdateRule* rule = nullptr;  // that of config.name
    Device dev;
    std::vector<OptimizerTensor> tensors;
    Buffer<char> state;    // the arrays of all tensors, one after another
    Buffer<char> scratch;  // of the largest
};

inline ParamGroup param_group(ParamKind kind) {
    switch (kind) {
        case ParamKind::embedding:
        case ParamKind::head:
            return ParamGroup::embeddings;
        case ParamKind::norm:
        case ParamKind::bias:
            return ParamGroup::norms;
        case ParamKind::linear:
            break;
    }
    return ParamGroup::matrices;
}

// bytes of state up to the next array: 64, the alignment of a Buffer
inline size_t optimizer_stride(const StateArray& a) { return (a.bytes() + 63) / 64 * 64; }

// Views of the arrays: grads [num_params] of the model or, if it has an adapter, of that; scale_grads of m.learned
inline void optimizer_bind(Optimizer& o, Model& m, float* grads, float* scale_grads) {
    size_t i = 0, at = 0;
    if (m.lora.on()) {
        o.tensors[i].weight = m.lora.master.data, o.tensors[i++].grad = grads;
    } else if (m.master.size) {
        for (const ParamTensor& p : m.tensors)
            o.tensors[i].weight = m.master.data + p.offset, o.tensors[i++].grad = grads + p.offset;
    }
    if (m.learned.size) o.tensors[i].weight = m.learned.data, o.tensors[i].grad = scale_grads;
    for (OptimizerTensor& t : o.tensors)
        for (StateArray& a : t.state) a.data = o.state.data + at, at += optimizer_stride(a);
}

// After the model's adapter and quantizers. The buffers must stay where they are until the arena is committed.
inline void optimizer_init(Optimizer& o, Model& m, const Buffer<float>& grads, const Buffer<float>& scale_grads,
                           const OptimizerConfig& config) {
    const UpdateRule& rule = optimizer_rule(config.name);
    o.config = config;
    o.rule = &rule;
    o.dev = m.dev;
    o.tensors.clear();
    size_t bytes = 0, scratch = 0;
    auto add = [&](const std::string& name, ParamGroup group, int64_t rows, int64_t cols) {
        OptimizerTensor t;
        t.name = name, t.group = group, t.rows = rows, t.cols = cols, t.number = (uint32_t)o.tensors.size();
        t.rule = rule.takes(t) ? &rule : &adamw_rule;
        t.state = t.rule->state(t);
        for (const StateArray& a : t.state) bytes += optimizer_stride(a);
        scratch = std::max(scratch, t.rule->scratch_bytes(t));
        o.tensors.push_back(t);
    };
    if (m.lora.on()) {
        add("adapters", ParamGroup::adapters, 1, (int64_t)m.lora.num_params);
    } else if (m.master.size) {
        for (const ParamTensor& p : m.tensors) add(p.name, param_group(p.kind), p.rows, p.cols);
    }
    if (m.learned.size) add("scales", ParamGroup::scales, 1, (int64_t)m.learned.size);
    o.state.allocate(bytes, format("optimizer state (%s)", rule.name).c_str(), "", m.dev);
    o.scratch.allocate(scratch, format("scratch of %s", rule.name).c_str(), "", m.dev);
    when_allocated(m.dev, [&] { optimizer_bind(o, m, grads.data, scale_grads.data); });
}

// as if nothing had been trained yet
inline void optimizer_reset(Optimizer& o) { set_zero(o.state.data, o.state.bytes(), o.dev); }

// What one step is told. rate: the schedule's, whose peak is config.learning_rate
struct OptimizerStep {
    double rate;
    double grad_scale = 1.0;  // of all gradients but those of scales, whose size AdamW does not feel
    int64_t step = 1;         // from 1
    bool scales = true;       // they have gradients: the passes were quantized
};

// 0: the group is not trained
inline float optimizer_rate(const OptimizerConfig& c, ParamGroup group, double rate) {
    const double peak = c.of(group).learning_rate;
    if (peak == c.learning_rate && group != ParamGroup::scales) return (float)rate;
    // the divisor is a float as it was when only scales had a rate of their own: old runs keep their bits
    return (float)(peak * (c.learning_rate > 0.0 ? rate / (float)c.learning_rate : 1.0));
}

// Moves every tensor by its gradient
inline void optimizer_update(Optimizer& o, const OptimizerStep& step) {
    NVTX_RANGE("optimizer_update");
    for (const OptimizerTensor& t : o.tensors) {
        const GroupRates& rates = o.config.of(t.group);
        const bool scales = t.group == ParamGroup::scales;
        if (rates.learning_rate == 0.0 || (scales && !step.scales)) continue;
        const UpdateInfo info = {optimizer_rate(o.config, t.group, step.rate), (float)rates.weight_decay,
                                 scales ? 1.0f : (float)step.grad_scale, step.step, o.scratch.data};
        t.rule->update(t, info, o.config, o.dev);
    }
}

// "muon for 210 tensors of 106.2M parameters (405.0 MiB of state), adamw for 62 of 28.3M (216.0 MiB)"
inline std::string optimizer_text(const Optimizer& o) {
    std::string text;
    for (const UpdateRule* r : optimizer_rules()) {
        int64_t tensors = 0, count = 0;
        double bytes = 0.0;
        for (const OptimizerTensor& t : o.tensors) {
            if (t.rule != r) continue;
            tensors++, count += t.count();
            for (const StateArray& a : t.state) bytes += (double)a.bytes();
        }
        if (!tensors) continue;
        const std::string size = count < 1000000 ? std::to_string(count) : format("%.1fM", (double)count * 1e-6);
        const bool first = text.empty();
        text += format("%s%s for %lld%s of %s%s (%s%s)", first ? "" : ", ", r->name, (long long)tensors,
                       !first         ? ""
                       : tensors == 1 ? " tensor"
                                      : " tensors",
                       size.c_str(), first ? " parameters" : "", bytes_text(bytes).c_str(), first ? " of state" : "");
    }
    return text.empty() ? "nothing is trained" : text;
}
