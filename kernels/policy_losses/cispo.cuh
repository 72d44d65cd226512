// CISPO (MiniMax-M1 2025, arXiv 2506.13585, eq. 4): -min(rho, 1 + epsilon_high) A logp, the capped ratio taken as a number. No
// token loses its gradient; epsilon_low is not used, as in the paper's runs.
#pragma once
#include "../policy_ratio.h"

struct CispoLoss {
    HOST_DEVICE static RatioLoss at(const PolicyRatio& r, double, double epsilon_high) {
        RatioLoss l;
        l.clipped_low = false;
        l.clipped_high = r.ratio > 1.0 + epsilon_high;
        l.slope = -(l.clipped_high ? 1.0 + epsilon_high : r.ratio) * r.advantage;
        l.loss = l.slope * r.logp;
        return l;
    }
};
