// TBPO, Trust-Band Policy Optimization (QaRL, Gu et al. 2026, arXiv 2604.07853), against the garbled tokens of long quantized
// rollouts. Its abstract alone could be had, which says: at the level of the sequence, dual clipping where the advantage is
// negative, updates kept within the trust region. Inferred from that: the ratio is GSPO's (the geometric mean of the
// sequence's ratios), the band is that of the clip, [1 - epsilon, 1 + epsilon_high], and a sequence with A < 0 is clipped on both
// of its sides: below as in PPO, and above too, where PPO's loss of a bad sequence grows without bound.
//   l = -min(rho A, clip(rho) A) where A >= 0,   -clip(rho) A where A < 0
// --delta moves the upper side for A < 0.
#pragma once
#include "clip.cuh"

struct TrustBandLoss {
    static constexpr bool detached = false, of_sequence = false;
    HOST_DEVICE static RatioLoss at(const PolicyRatio& r, PolicySettings s) {
        if (s.delta > 1e29) s.delta = r.high;
        return ClipLoss::at(r, s);
    }
};
