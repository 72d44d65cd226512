// PPO's clipped ratio (Schulman et al. 2017, eq. 7), GRPO's loss: -min(rho A, clip(rho, 1 - epsilon_low, 1 + epsilon_high) A).
// A clipped token has no gradient.
#pragma once
#include "../policy_ratio.h"

struct ClipLoss {
    HOST_DEVICE static RatioLoss at(const PolicyRatio& r, double epsilon_low, double epsilon_high) {
        const double ratio = r.ratio, A = r.advantage;
        double bounded =
            ratio < 1.0 - epsilon_low ? 1.0 - epsilon_low : (ratio > 1.0 + epsilon_high ? 1.0 + epsilon_high : ratio);
        RatioLoss l;
        l.clipped_low = ratio < 1.0 - epsilon_low && A < 0.0;
        l.clipped_high = ratio > 1.0 + epsilon_high && A > 0.0;
        l.loss = bounded * A < ratio * A ? -(bounded * A) : -(ratio * A);
        l.slope = l.clipped_low || l.clipped_high ? 0.0 : -ratio * A;  // d ratio / d logp = ratio
        return l;
    }
};
