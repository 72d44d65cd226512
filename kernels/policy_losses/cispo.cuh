// CISPO (MiniMax-M1 2025, arXiv 2506.13585, eq. 4): -min(rho, cap) A logp, the capped ratio taken as a number. No token
// loses its gradient. The cap is epsilon_high itself, as in TRL and ScaleRL (arXiv 2510.13786: 5), and not 1 + epsilon_high;
// epsilon is not used, as in the paper's runs.
#pragma once
#include "../policy_ratio.h"

struct CispoLoss {
    static constexpr bool detached = true, of_sequence = false;
    HOST_DEVICE static RatioLoss at(const PolicyRatio& r, const PolicySettings&) {
        RatioLoss l;
        l.coefficient = r.ratio > r.high ? r.high : r.ratio;
        l.clipped_high = r.ratio > r.high && r.advantage > 0.0;
        l.slope = -l.coefficient * r.advantage;
        l.loss = l.slope * r.logp;
        return l;
    }
};
