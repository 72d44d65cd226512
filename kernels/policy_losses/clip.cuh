// PPO's clipped ratio (Schulman et al. 2017, eq. 7), GRPO's loss: -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A). A
// clipped token has no gradient.
//   delta: dual clip (Ye et al. 2020, arXiv 1912.09729, eq. 5; two-sided clipping of INTELLECT-2, arXiv 2505.07291): the first
// rho is min(rho, delta), so that a token with A < 0 whose probability has grown has a bounded loss, and no gradient beyond.
#pragma once
#include "../policy_ratio.h"

struct ClipLoss {
    static constexpr bool detached = false, of_sequence = false;
    HOST_DEVICE static RatioLoss at(const PolicyRatio& r, const PolicySettings& s) {
        const double ratio = r.ratio, A = r.advantage;
        const double bounded = ratio < r.low ? r.low : (ratio > r.high ? r.high : ratio);
        const double capped = ratio > s.delta ? s.delta : ratio;
        RatioLoss l;
        l.clipped_low = ratio < r.low && A < 0.0;
        l.clipped_high = ratio > r.high && A > 0.0;
        const bool second = bounded * A < capped * A;
        l.loss = second ? -(bounded * A) : -(capped * A);
        const bool flat = second ? bounded != ratio : capped != ratio;
        l.slope = flat || l.clipped_low || l.clipped_high ? 0.0 : -ratio * A;  // d ratio / d log ratio = ratio
        return l;
    }
};
