// What a policy loss is made of: its row in POLICY_LOSSES (policy_loss.cuh) is a struct with one formula over these.
#pragma once
#include "../runtime/dtypes.h"

// Of one token: rho = exp(logp - old), in double
struct PolicyRatio {
    double logp, ratio, advantage;
};

struct RatioLoss {
    double loss, slope;  // slope: d loss / d logp
    bool clipped_low, clipped_high;
};
