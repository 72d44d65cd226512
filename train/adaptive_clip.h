// The adaptive clipping range (ACR) of QuRL (Li et al. 2026, arXiv 2602.13953): a wider clip for tokens whose
// importance ratio was truncated.
//
//   J = E[ min(q, C) min(rho A, clip(rho, 1 - eps_low, (1 + eps_high) / r) A) ]
//   q = pi_old / pi_sampler,  rho = pi / pi_old,  r = min(q, C) / q <= 1
//
// Truncation takes q to r q, which by r clip(rho, l, h) = clip(r rho, r l, r h) is as if the clip were r times as
// high: of a token of positive advantage that the sampler found too unlikely (q > C), r rho would stop being raised at
// r (1 + eps_high). Its upper bound is therefore divided by r; every other token keeps PPO's, as does the lower bound.
//
// From two readers' accounts of the paper's equations 7 to 9, not from its text. Inferred: eps_high apart from eps_low
// (the paper has one epsilon), and q clamped to e^+-20 as in the weights, so that the bound stays finite.
//
// The trap: rho is 1 in the first update from a batch of samples. There this is token_truncate, bit for bit.
#pragma once
#include "importance_sampling.h"

struct ClipRange {
    double low, high;  // of rho
};

// ratio: q; C: importance_sampling_clip_max
inline ClipRange clip_range(double ratio, double epsilon_low, double epsilon_high, double C) {
    return {1.0 - epsilon_low, (1.0 + epsilon_high) * std::max(1.0, ratio / C)};
}

// [N][n_i]
inline std::vector<std::vector<ClipRange>> clip_ranges(const TokenRows& sampler, const TokenRows& trainer,
                                                       double epsilon_low, double epsilon_high, double C) {
    importance_check_rows(sampler, trainer);
    std::vector<std::vector<ClipRange>> out(sampler.size());
    for (size_t i = 0; i < sampler.size(); i++)
        for (size_t t = 0; t < sampler[i].size(); t++)
            out[i].push_back(
                clip_range(importance_ratio(log_ratio_at(sampler, trainer, i, t)), epsilon_low, epsilon_high, C));
    return out;
}
