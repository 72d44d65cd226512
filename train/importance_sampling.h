// Importance sampling between a sampler and a trainer that differ on purpose, such as int4 weights that sample for
// full-precision ones: what a sampled token counts in the policy loss.
//
//   d_t = log pi_old(t) - log pi_sampler(t)      pi_old: the trainer before the first update from these samples
//   token level     r_t = exp(d_t)               (Yao et al. 2025, FlashRL: TIS; biased: the prefix was sampled, too)
//   sequence level  r_t = exp(sum of the d)      the same for each token of a completion (unbiased, variance e^length)
//   truncate        w_t = min(max(r_t, clip_min), clip_max)
//   mask            w_t = r_t where clip_min <= r_t <= clip_max, else 0          (MIS; verl's IcePop)
//
// TRL 1.16's modes and order: w multiplies the token's policy loss, not the KL term, and is not differentiated; a
// masked token stays in the denominator. VESPO takes the sum of log w in place of w (clamped as there).
// The bound is 2 and not TRL's 3, which belongs to its default, the mask of whole sequences: 2 is verl's, and FlashRL's
// for small models, where tokens are truncated.
//
// The trap: a sequence's ratio is the product over its tokens. At a mean d of 0.01, 100 tokens make it 2.7, and the
// mask of sequences drops every long completion of an int4 sampler.
//
// A row a completion: [N][n_i]. A completion that does not count (masked, or another rank's) has an empty row.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>
#include "../runtime/error.h"

using TokenRows = std::vector<std::vector<float>>;

struct ImportanceMode {
    const char* name;  // TRL's, without its vllm_importance_sampling_mode prefix
    bool corrects, sequence, masks;
};

static constexpr ImportanceMode importance_modes[] = {
    {"none", false, false, false},       {"token_truncate", true, false, false},
    {"token_mask", true, false, true},   {"sequence_truncate", true, true, false},
    {"sequence_mask", true, true, true},
};

struct ImportanceSampling {
    ImportanceMode mode = importance_modes[0];
    double clip_min = 0.0;  // 0: no ratio lies below
    double clip_max = 2.0;
};

inline ImportanceMode importance_mode_named(const std::string& name) {
    for (const ImportanceMode& m : importance_modes)
        if (name == m.name) return m;
    fail("importance sampling: no mode is called %s", name.c_str());
}

// What a run may not ask for. policy_loss: its name; updates: optimizer steps from one batch of samples.
inline void importance_sampling_check(const ImportanceSampling& c, bool clip_is_given, const std::string& policy_loss,
                                      bool adaptive_clip, int updates) {
    const char* mode = c.mode.name;
    if (!c.mode.corrects && clip_is_given)
        fail_usage(
            "--importance_sampling_mode none: the weights are 1 and have no --importance_sampling_clip_max or _min");
    if (c.mode.corrects && c.clip_min >= c.clip_max)
        fail_usage("--importance_sampling_clip_min %g is to be below --importance_sampling_clip_max %g", c.clip_min,
                   c.clip_max);
    if (c.mode.sequence && policy_loss == "vespo")
        fail_usage(
            "--policy_loss vespo makes the sequence's ratio of the tokens': give --importance_sampling_mode "
            "token_truncate or token_mask, not %s",
            mode);
    if (!adaptive_clip) return;
    if (std::string(mode) != "token_truncate")
        fail_usage(
            "--adaptive_clip widens the clip where a ratio is truncated: it needs --importance_sampling_mode "
            "token_truncate, not %s",
            mode);
    if (policy_loss != "clip") fail_usage("--adaptive_clip belongs to --policy_loss clip, not %s", policy_loss.c_str());
    if (updates < 2)
        fail_usage("--adaptive_clip clips nothing in the first update from a batch: give --num_iterations 2 or more");
}

// The line for a run whose sampler computes what its trainer does; empty: none. mode_is_given: by the user
inline std::string importance_sampling_note(const ImportanceSampling& c, bool mode_is_given, bool adaptive_clip,
                                            bool sampler_differs) {
    std::string what = mode_is_given && c.mode.corrects ? format("--importance_sampling_mode %s", c.mode.name) : "";
    if (adaptive_clip) what += what.empty() ? "--adaptive_clip" : ", --adaptive_clip";
    if (sampler_differs || what.empty()) return "";
    return what + ": nothing to correct; the sampler is the trainer, so that every weight is 1";
}

// ---------------------------------------------------------------------------------------------------------------------
// ratios and weights

inline void importance_check_rows(const TokenRows& sampler, const TokenRows& trainer) {
    if (sampler.size() != trainer.size())
        fail("importance sampling: %zu completions of the sampler, %zu of the trainer", sampler.size(), trainer.size());
    for (size_t i = 0; i < sampler.size(); i++)
        if (sampler[i].size() != trainer[i].size())
            fail("importance sampling: completion %zu has %zu tokens of the sampler, %zu of the trainer", i,
                 sampler[i].size(), trainer[i].size());
}

// Clamped to +-20 as in the policy loss: without a bound a collapsed sampler gives a large number and not inf. With
// clip_max below e^20 = 5e8 the weights are those without it.
inline double importance_ratio(double log_ratio) { return exp(std::min(std::max(log_ratio, -20.0), 20.0)); }

inline double log_ratio_at(const TokenRows& sampler, const TokenRows& trainer, size_t i, size_t t) {
    return (double)trainer[i][t] - (double)sampler[i][t];
}

inline double log_ratio_sum(const TokenRows& sampler, const TokenRows& trainer, size_t i) {
    double sum = 0.0;
    for (size_t t = 0; t < sampler[i].size(); t++) sum += log_ratio_at(sampler, trainer, i, t);
    return sum;
}

inline double importance_weight(const ImportanceSampling& c, double log_ratio) {
    if (!c.mode.corrects) return 1.0;
    const double r = importance_ratio(log_ratio);
    if (c.mode.masks) return r < c.clip_min || r > c.clip_max ? 0.0 : r;
    return std::min(std::max(r, c.clip_min), c.clip_max);
}

struct ImportanceWeights {
    std::vector<std::vector<double>> weight;  // [N][n_i] factor of a token's policy loss
    std::vector<double> log_weight;           // [N] sum over the tokens of log w, for VESPO; 0 for an empty row
};

inline ImportanceWeights importance_weights(const ImportanceSampling& c, const TokenRows& sampler,
                                            const TokenRows& trainer) {
    importance_check_rows(sampler, trainer);
    ImportanceWeights out;
    for (size_t i = 0; i < sampler.size(); i++) {
        const size_t n = sampler[i].size();
        const double sum = log_ratio_sum(sampler, trainer, i);
        std::vector<double> w(n);
        double log_weight = 0.0;
        for (size_t t = 0; t < n; t++) {
            w[t] = importance_weight(c, c.mode.sequence ? sum : log_ratio_at(sampler, trainer, i, t));
            // TRL's bounds; a masked token counts as 1e-8
            const double log_w = std::min(std::max(log(w[t]), log(1e-8)), 20.0);
            log_weight = c.mode.sequence ? log_w : log_weight + log_w;
        }
        out.weight.push_back(std::move(w));
        out.log_weight.push_back(log_weight);
    }
    return out;
}

// [N] D_i = mean over the tokens of log pi_sampler - log pi_old. The off-policy sequence mask of DeepSeek-V3.2 (arXiv
// 2512.02556, eq. 9) drops a completion of negative advantage with D_i - mean(log pi - log pi_old) above its threshold.
inline std::vector<double> sampler_divergence(const TokenRows& sampler, const TokenRows& trainer) {
    importance_check_rows(sampler, trainer);
    std::vector<double> out;
    for (size_t i = 0; i < sampler.size(); i++)
        out.push_back(sampler[i].empty() ? 0.0 : -log_ratio_sum(sampler, trainer, i) / (double)sampler[i].size());
    return out;
}
