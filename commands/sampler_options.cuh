// From the options to the sampler of grpo, what cannot be, and what the start says of it.
#pragma once
#include <optional>
#include "../train/sampler.cuh"
#include "loss_options.cuh"
#include "session.cuh"

inline SamplerConfig sampler_config(const Options& o) {
    SamplerConfig c;
    if (!o.rollout_weights.empty()) c.weights = rollout_weight_rules(o);
    if (!o.rollout_activations.empty())
        c.activations = rules_of_layers(o, o.rollout_activations, "rollout_activations");
    if (!o.rollout_kv_cache.empty()) c.kv_cache = rules_parse(o.rollout_kv_cache, "rollout_kv_cache");
    c.k_pre_bias = o.k_pre_bias;
    c.staleness = o.rollout_staleness;
    c.noise.start = o.noise_sigma_start, c.noise.end = o.noise_sigma_end, c.noise.stages = o.noise_num_stages;
    c.noise.seed = o.seed;
    const Options normal;  // what a run's config.json repeats is no wish
    const char* unused = c.noise.on()                                    ? nullptr
                         : o.noise_sigma_end != normal.noise_sigma_end   ? "noise_sigma_end"
                         : o.noise_num_stages != normal.noise_num_stages ? "noise_num_stages"
                                                                         : nullptr;
    if (unused) fail_usage("--%s belongs to --noise_sigma_start, which is 0: give that above 0, such as 0.01", unused);
    return c;
}

// before the long work; steps: of the run
inline void sampler_check(SamplerConfig& c, const Session& s, int64_t steps) {
    check_sampler(s.m.config, c);
    if (c.staleness > 0 && c.staleness >= steps)
        fail_usage("--rollout_staleness %d: no step of %lld is so late; take less", c.staleness, (long long)steps);
    if (c.noise.on() && steps < 2)
        fail_usage("--noise_sigma_start: the first stage has no noise, and %lld steps have no other; raise --max_steps",
                   (long long)steps);
    c.noise.steps = steps;
}

inline void sampler_note(const Sampler& s, Session& session) {
    const SamplerConfig& c = s.config;
    const std::string text = sampler_text(s, session.m);
    if (!text.empty()) session.notes.push_back("the sampler differs from the trainer: " + text);
    else if (c.weights || c.activations || c.kv_cache)
        session.notes.push_back("what --rollout_... ask for is what the trainer has: there is no second model");
}

// how a sampler that differs is corrected for; or that a correction was asked for where there is nothing to correct
inline void correction_note(const Options& o, Session& s, bool sampler_differs) {
    const ImportanceSampling c = importance_sampling(o);
    std::string note =
        importance_sampling_note(c, o.given("importance_sampling_mode"), o.adaptive_clip, sampler_differs);
    if (sampler_differs)
        note = c.mode.corrects ? format("its samples are weighed by --importance_sampling_mode %s, at most %g%s",
                                        c.mode.name, c.clip_max, o.adaptive_clip ? ", with an adaptive clip" : "")
                               : "its samples are taken for the trainer's (--importance_sampling_mode none)";
    if (!note.empty()) s.notes.push_back(note);
}
