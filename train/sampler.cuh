// The sampler: the policy that completions are drawn from. By default the trainer's own, through the same forward, so that
// the ratio of the first update is exactly 1. On purpose it may be another:
//
//   --rollout_weights, --rollout_activations, --rollout_kv_cache   quantized otherwise: a quantized sampler under a trainer
//       in full precision (FlashRL; FP8-RL, arXiv 2601.18150; QuRL, arXiv 2602.13953), or the reverse. A second model
//       (model/second_model.cuh); its weights are made of the trainer's masters before each rollout, with scales measured
//       then and rounding to nearest, in the bases of the trainer's linears; where --rollout_weights is not given they are
//       the trainer's working weights, to the bit, whatever they are made of
//   --rollout_staleness n   the sampler takes the trainer's weights before steps 0, n+1, 2(n+1) ..., so that completions
//       are from weights of at most n steps ago. With n > 0 they are a copy, and part of what a run resumes from
//   --noise_sigma_start     noise on its norms (rollout_noise.cuh), without a second model
//
// Whoever samples from this calls sampler_begin, draws from sampler.model() in the pass that it gives, and calls
// sampler_end. The completions' log-probabilities are those of the sampler, with all that it differs in; where differs()
// says so, those of the trainer before its update are another forward. Evaluations are of the trainer's policy, without
// any of this; the sampler's is evaluated by `eval --weights ...` of a checkpoint.
//
// A base of adapters has no masters, so that --rollout_weights is refused there; everything else shares the base, and what
// is stale is a copy of the adapter.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>
#include "../model/second_model.cuh"
#include "../rollout.cuh"
#include "../runtime/json.h"
#include "../runtime/named_array.h"
#include "rollout_noise.cuh"

struct SamplerConfig {
    std::optional<QuantizerRules> weights, activations, kv_cache;  // none: the trainer's
    bool k_pre_bias = false;
    int staleness = 0;
    RolloutNoise noise;
};

struct Sampler {
    enum class Weights { shared, copied, quantized };
    SamplerConfig config;
    Model* policy = nullptr;     // the trainer's, of the last sampler_begin
    std::unique_ptr<Model> own;  // null: the policy itself
    Weights weights = Weights::shared;
    RolloutState rollouts;  // of own, whose caches are laid out otherwise
    Buffer<floatX> norms;   // [L,2,C] with noise
    double sigma = 0.0;     // of the last rollout's noise
    int64_t age = 0;        // of its weights, in steps

    // can a token's log-probability be another than the trainer's before its update? For the whole run
    bool differs() const { return own || config.noise.on(); }
    Model& model() { return own ? *own : *policy; }
    bool stale() const { return config.staleness > 0; }
};

// ---------------------------------------------------------------------------------------------------------------------
// what is asked for, against what the policy has

// do `rules` give the policy's weights again, bit for bit?
inline bool same_weights(const Model& policy, const QuantizerRules& rules) {
    for (const ParamTensor& t : policy.tensors) {
        if (!is_weight(t)) continue;
        const Quantizer& has = part_of(policy, t)->quantizer;
        if (quantizer_text(has) != quantizer_text(quantizer_of(rules, t))) return false;
        if (has.on() && (has.scale_mode != ScaleMode::dynamic || has.stochastic)) return false;
    }
    return true;
}

inline bool same_activations(const Model& policy, const QuantizerRules& rules) {
    for (const ParamTensor& t : policy.tensors)
        if (t.kind == ParamKind::linear &&
            quantizer_text(linear_of(policy, t).input, "token") != quantizer_text(quantizer_of(rules, t), "token"))
            return false;
    return true;
}

inline bool same_kv(const Model& policy, const QuantizerRules& rules, bool k_pre_bias) {
    for (int l = 0; l < policy.L(); l++)
        if (quantizer_text(policy.layers[l].kv) != quantizer_text(quantizer_of(rules, QuantizerPlace{l, "", ""})))
            return false;
    return !rules.on() || k_pre_bias == policy.k_pre_bias;
}

// Fails where a model of this configuration cannot be quantized so: to be asked before the long work
inline void check_sampler(const ModelConfig& config, const SamplerConfig& c) {
    if (c.weights) check_weight_rules(config, *c.weights);
    if (c.activations) rules_check(*c.activations, weight_places(config, true));
    if (c.kv_cache) check_kv_rules(config, *c.kv_cache, c.k_pre_bias && c.kv_cache->on());
}

// what differs, in words; empty: nothing
inline std::string sampler_text(const Sampler& s, const Model& policy) {
    std::string text;
    auto add = [&](const std::string& what) { text += (text.empty() ? "" : ", ") + what; };
    if (s.weights == Sampler::Weights::quantized) add("weights " + rules_text(*s.config.weights));
    if (s.own && rules_text(s.own->activation_rules) != rules_text(policy.activation_rules))
        add("activations " + rules_text(s.own->activation_rules));
    if (s.own && rules_text(s.own->kv_rules) != rules_text(policy.kv_rules)) add("KV " + rules_text(s.own->kv_rules));
    if (s.stale()) add(format("weights of up to %d steps ago", s.config.staleness));
    const RolloutNoise& n = s.config.noise;
    if (n.on())
        add(format("noise on norms from %g to %g in %d stages%s", n.start, n.end, n.stages,
                   policy.frozen ? ", which the trainer keeps as they are" : ""));
    return text;
}

// ---------------------------------------------------------------------------------------------------------------------
// memory

// Room for all that s.config asks for; policy has its quantizers and its adapter. shape: what rollouts need; positions: of
// the longest sequence
inline void sampler_allocate(Sampler& s, Model& policy, const RolloutShape& shape, int positions) {
    const SamplerConfig& c = s.config;
    const bool weights = c.weights && !same_weights(policy, *c.weights);
    const bool activations = c.activations && !same_activations(policy, *c.activations);
    const bool kv = c.kv_cache && !same_kv(policy, *c.kv_cache, c.k_pre_bias);
    if (weights && policy.frozen)
        fail_usage(
            "--rollout_weights %s: the base of an adapter has no masters to quantize anew; leave it out, or take the "
            "adapter inside the quantizer (--lora_inside_quantizer)",
            rules_text(*c.weights).c_str());
    if (c.noise.on()) s.norms.allocate((size_t)2 * policy.L() * policy.C(), "norms with noise", "", policy.dev);
    if (!weights && !activations && !kv && !s.stale()) return;
    s.weights = weights                       ? Sampler::Weights::quantized
                : s.stale() && !policy.frozen ? Sampler::Weights::copied
                                              : Sampler::Weights::shared;
    s.own = std::make_unique<Model>();
    const QuantizerRules& keys = kv ? *c.kv_cache : policy.kv_rules;
    model_second(*s.own, policy, activations ? *c.activations : policy.activation_rules, keys,
                 keys.on() && (kv ? c.k_pre_bias : policy.k_pre_bias));
    if (s.weights == Sampler::Weights::shared) model_share_weights(*s.own, policy, s.stale());
    else
        model_own_weights(*s.own, weights ? *c.weights : policy.weight_rules, "weights of the sampler",
                          weights ? "leave --rollout_weights out" : "--rollout_staleness 0 needs none");
    rope_reserve(s.own->rope, positions, s.own->dev);
    rollout_allocate(s.rollouts, *s.own, shape);
}

// ---------------------------------------------------------------------------------------------------------------------
// a rollout

inline void sampler_take_weights(Sampler& s) {
    Model &own = *s.own, &policy = *s.policy;
    model_follow_linears(own, policy);
    if (s.weights == Sampler::Weights::quantized) model_work_of(own, policy, true);
    else if (s.weights == Sampler::Weights::copied) model_copy_weights(own, policy);
    else if (s.stale()) model_copy_adapter(own, policy);
}

// The pass of the rollout of a step, from 0, through s.model(), whose weights are those of this step and laid out
inline Pass sampler_begin(Sampler& s, Model& policy, int64_t step) {
    s.policy = &policy;
    s.age = step % (s.config.staleness + 1);
    if (s.own && s.age == 0) sampler_take_weights(s);
    Pass pass = model_pack(s.model());
    s.sigma = noise_sigma(s.config.noise, step);
    if (s.sigma == 0.0) return pass;
    noise_norms(s.norms.data, s.model(), s.sigma, s.config.noise.seed, step);
    pass.norms = s.norms.data;
    return pass;
}
inline void sampler_end(Sampler& s) { model_unpack(s.model()); }

inline void sampler_metrics(const Sampler& s, nlohmann::ordered_json& j) {
    if (s.stale()) j["sampler/staleness"] = s.age;
    if (s.config.noise.on()) j["noise/sigma"] = s.sigma;
}

// ---------------------------------------------------------------------------------------------------------------------
// what a run resumes from: weights that are not the trainer's present ones

inline std::vector<NamedArray> sampler_arrays(Sampler& s) {
    std::vector<NamedArray> list;
    if (!s.stale()) return list;
    Model& m = *s.own;
    if (m.lora.on()) add_array(list, "sampler_adapter", m.lora.work);
    if (s.weights == Sampler::Weights::shared) return list;
    add_array(list, "sampler_weights", m.work);
    if (m.grids.size) list.push_back({"sampler_grids", "F32", (int64_t)m.grids.size, 2, m.grids.data, sizeof(float)});
    add_array(list, "sampler_scale_floats", m.scale_floats);
    add_array(list, "sampler_scale_codes", m.scale_codes);
    add_array(list, "sampler_codes", m.codes);
    return list;
}

inline void sampler_save(const Sampler& s, nlohmann::ordered_json& j) {
    const std::string rotated = s.stale() ? rotated_text(rotated_linears(*s.own)) : "none";
    if (rotated != "none") j["sampler_hadamard"] = rotated;
}

inline void sampler_load(Sampler& s, const nlohmann::ordered_json& j) {
    if (!s.stale()) return;
    Model& m = *s.own;
    model_set_basis(m, rotated_linears(m.config, j.value("sampler_hadamard", "none")));
    for (LinearPart* p : quantized_parts(m)) p->foreign = true, p->fit_known = false;  // packing looks what they are
}
