// A second model over the weights of another, without masters: the sampler of a run whose sampler and trainer differ on
// purpose (train/sampler.cuh). Its inputs, keys and values have quantizers of their own. Its weights are
//   shared     the other's arrays themselves: working weights, codes, the packed codes of a frozen base, the adapter
//   copied     what they were at some moment: the same bits, codes and grids with them, so that it generates from codes
//   quantized  made of the other's masters by quantizers of its own (model_work_of), or in full precision without one
// All three are in the bases that the other's linears have (linear_set_basis), which may change in the run: what a hook
// makes of a master (an adapter inside the quantizer) is in the working weights, of all three.
#pragma once
#include "kv_cache.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// shared

// m reads what `of` does; once the arrays are there. quantizers of inputs, keys and values stay m's
inline void model_view_weights(Model& m, Model& of) {
    m.tensors = of.tensors, m.num_params = of.num_params;
    m.frozen = of.frozen, m.work_quantized = of.work_quantized;
    m.weight_rules = of.weight_rules;
    m.embed = of.embed, m.head = of.head, m.norm = of.norm;
    m.packed_codes.view(of.packed_codes);
    for (int l = 0; l < m.L(); l++) {
        Layer &to = m.layers[l], &from = of.layers[l];
        to.ln1 = from.ln1, to.ln2 = from.ln2, to.q_norm = from.q_norm, to.k_norm = from.k_norm;
        for (int p = 0; p < 4; p++) {
            Linear &a = *layer_linears(to)[p], &b = *layer_linears(from)[p];
            a.parts = b.parts, a.weight = b.weight, a.bias = b.bias, a.frozen = b.frozen;
            a.adapter = b.adapter, a.lora = m.lora.on() ? &m.lora : b.lora;
            linear_plan_packing(a);
            for (size_t i = 0; i < a.packed.size() && a.frozen; i++) a.packed[i].codes = b.packed[i].codes;
        }
    }
}

// What changes of the other's linears besides numbers; before each use of weights that are shared, with each copy of them
inline void model_follow_linears(Model& m, const Model& of) {
    for (int l = 0; l < m.L(); l++)
        for (int p = 0; p < 4; p++) {
            Linear& a = *layer_linears(m.layers[l])[p];
            const Linear& b = *layer_linears(of.layers[l])[p];
            linear_set_basis(a, b.rotated);
            for (size_t i = 0; i < a.parts.size(); i++) {
                a.parts[i].fit_known = a.parts[i].fit_known && a.parts[i].foreign && b.parts[i].foreign;
                a.parts[i].foreign = b.parts[i].foreign;
            }
        }
}

// ---------------------------------------------------------------------------------------------------------------------
// memory

// quantizers of inputs, keys and values; before what follows
inline void model_second(Model& m, const Model& of, const QuantizerRules& activations, const QuantizerRules& kv,
                         bool k_pre_bias) {
    m.dev = of.dev;
    m.codes_beyond = of.codes_beyond;
    model_describe(m, of.config);
    model_quantize_activations(m, activations);
    model_quantize_kv(m, kv, k_pre_bias);
}

// Weights that are shared, but for the adapter over a frozen base if own_adapter: model_copy_adapter fills that
inline void model_share_weights(Model& m, Model& of, bool own_adapter) {
    if (own_adapter) model_adapt(m, of.lora.config, 0, false);
    when_allocated(m.dev, [&m, &of] { model_view_weights(m, of); });
}
inline void model_copy_adapter(Model& m, const Model& of) {
    copy_on_device(m.lora.work.data, of.lora.work.data, m.lora.work.bytes(), m.dev);
}

// Weights of its own: by `rules`, of the masters of another (model_work_of), or copied (model_copy_weights), when rules
// are the other's
inline void model_own_weights(Model& m, const QuantizerRules& rules, const char* what, const char* hint) {
    m.work.allocate(m.num_params, what, hint, m.dev);
    when_allocated(m.dev, [&m] { model_bind_work(m, m.work.data); });
    QuantizerRules plain = rules;  // nothing is trained
    for (QuantizerRule& r : plain.rules) r.quantizer.scale_mode = ScaleMode::dynamic, r.quantizer.stochastic = false;
    model_quantize(m, plain, false);
}
inline void model_copy_weights(Model& m, const Model& of) {
    auto copy = [&](auto& to, const auto& from) {
        if (to.size) copy_on_device(to.data, from.data, to.bytes(), m.dev);
    };
    copy(m.work, of.work);
    copy(m.grids, of.grids);
    copy(m.scale_floats, of.scale_floats);
    copy(m.scale_codes, of.scale_codes);
    copy(m.codes, of.codes);
}
