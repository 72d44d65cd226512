// The optimizer of a model: its trained tensors, the state of each, and the one place where they are moved.
//   tensors   with an adapter, all of it as one tensor, and nothing of the base; else every tensor that has a master.
//             The learned scales of quantizers are one more.
//   rates     a group's rate is its peak times what the schedule makes of the run's: rate / config.learning_rate
//   rows      where a method trains some rows of a weight, those are moved as a weight of their own, with their rows of
//             the state: a rule sees no others. The others keep weight and state: no momentum and no decay moves them.
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

// ---------------------------------------------------------------------------------------------------------------------
// weights of which some rows are trained

// c is t as a tensor of `count` rows, its arrays one after another in memory; returns their bytes. memory: or null
inline size_t optimizer_compact(OptimizerTensor& c, const OptimizerTensor& t, int64_t count, char* memory) {
    size_t end = 0;
    auto place = [&](size_t bytes) {
        char* at = memory ? memory + end : nullptr;
        end += (bytes + 63) / 64 * 64;
        return at;
    };
    c = t;
    c.rows = count;
    c.weight = reinterpret_cast<float*>(place((size_t)c.count() * sizeof(float)));
    c.grad = reinterpret_cast<float*>(place((size_t)c.count() * sizeof(float)));
    for (StateArray& a : c.state) a.rows = count, a.data = place(a.bytes());
    return end;
}

// Bytes of scratch for a tensor of which a method trains some rows; fails where a rule cannot do that
inline size_t optimizer_rows_scratch(const OptimizerTensor& t, const PartRows& rows, const UpdateRule& rule) {
    if (rule.search)
        fail_usage("--optim %s with --methods %s: it moves whole weights, and rows are to be trained alone; take adamw",
                   rule.name, rows.method);
    for (const StateArray& a : t.state)
        if (a.rows != t.rows || a.cols != t.cols)
            fail_usage(
                "--optim %s with --methods %s: rows of a weight are trained alone, but the state of %s is not by "
                "rows (%s); take adamw, adamw_bf16 or muon",
                t.rule->name, rows.method, t.name.c_str(), a.name.c_str());
    if (rows.most == 0) return 0;
    OptimizerTensor c;
    const size_t arrays = optimizer_compact(c, t, rows.most, nullptr);
    return arrays + t.rule->scratch_bytes(c);
}

// rows of an array [rows of the tensor, cols] to or from their compact copy
inline void optimizer_move_rows(const StateArray& whole, const StateArray& compact, const RowList& r, bool back,
                                Device dev) {
    auto move = [&](auto* all, auto* some) {
        if (back) put_rows(all, some, r.rows, r.count, whole.cols, dev);
        else gather_rows(some, all, r.rows, r.count, whole.cols, dev);
    };
    switch (whole.type) {
        case StateType::f32:
            return move(static_cast<float*>(whole.data), static_cast<float*>(compact.data));
        case StateType::bf16:
            return move(static_cast<bf16*>(whole.data), static_cast<bf16*>(compact.data));
        case StateType::u8:
            return move(static_cast<uint8_t*>(whole.data), static_cast<uint8_t*>(compact.data));
    }
}

// the rule's update of t's trained rows
inline void optimizer_update_rows(const Optimizer& o, const OptimizerTensor& t, UpdateInfo info) {
    const RowList& r = *t.trained;
    if (r.count == 0) return;
    OptimizerTensor c;
    info.scratch += optimizer_compact(c, t, r.count, info.scratch);
    gather_rows(c.weight, t.weight, r.rows, r.count, t.cols, o.dev);
    gather_rows(c.grad, t.grad, r.rows, r.count, t.cols, o.dev);
    for (size_t i = 0; i < t.state.size(); i++) optimizer_move_rows(t.state[i], c.state[i], r, false, o.dev);
    t.rule->update(c, info, o.config, o.dev);
    put_rows(t.weight, c.weight, r.rows, r.count, t.cols, o.dev);
    for (size_t i = 0; i < t.state.size(); i++) optimizer_move_rows(t.state[i], c.state[i], r, true, o.dev);
}

// ---------------------------------------------------------------------------------------------------------------------

// After the model's adapter and quantizers. The buffers must stay where they are until the arena is committed.
inline void optimizer_init(Optimizer& o, Model& m, const Buffer<float>& grads, const Buffer<float>& scale_grads,
                           const OptimizerConfig& config) {
    const UpdateRule& rule = optimizer_rule(config.name);
    o.config = config;
    o.rule = &rule;
    o.dev = m.dev;
    o.tensors.clear();
    size_t bytes = 0, scratch = 0;
    auto add = [&](const std::string& name, ParamGroup group, int64_t rows, int64_t cols,
                   const PartRows* trained = nullptr) {
        OptimizerTensor t;
        t.name = name, t.group = group, t.rows = rows, t.cols = cols, t.number = (uint32_t)o.tensors.size();
        t.rule = rule.takes(t) ? &rule : &adamw_rule;
        t.state = t.rule->state(t);
        for (const StateArray& a : t.state) bytes += optimizer_stride(a);
        scratch = std::max(scratch, t.rule->scratch_bytes(t));
        if (trained && trained->method) {
            t.trained = trained;
            scratch = std::max(scratch, optimizer_rows_scratch(t, *trained, rule));
        }
        o.tensors.push_back(t);
    };
    if (m.lora.on()) {
        add("adapters", ParamGroup::adapters, 1, (int64_t)m.lora.num_params);
    } else if (m.master.size) {
        for (const ParamTensor& p : m.tensors) {
            const LinearPart* part = part_of(m, p);
            add(p.name, param_group(p.kind), p.rows, p.cols, part ? &part->trained : nullptr);
        }
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
        if (t.trained && !t.trained->all) optimizer_update_rows(o, t, info);
        else t.rule->update(t, info, o.config, o.dev);
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
