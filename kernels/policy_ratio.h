// What a policy loss is made of: its row in POLICY_LOSSES (policy_loss.cuh) is a struct with one formula over these.
#pragma once
#include "../runtime/dtypes.h"

// Numbers that a row may want besides the ratio; names and defaults are TRL's
struct PolicySettings {
    double low = 0.8, high = 1.2;  // the ratio's range: 1 - epsilon, 1 + epsilon_high; for cispo the cap alone, in high
    double delta = 1e30;           // dual clip: the unclipped ratio counts as this at most
    double sapo_temperature_pos = 1.0, sapo_temperature_neg = 1.05;
    double vespo_k_pos = 2.0, vespo_lambda_pos = 3.0, vespo_k_neg = 3.0, vespo_lambda_neg = 2.0;
};

// Of one token
struct PolicyRatio {
    double logp, ratio, advantage;  // ratio: exp(logp - old), or the sequence's
    double low, high;               // its range
    // of its sequence: sum of log(pi / pi_old) and of the logarithms of the sampler's correction; for rows that ask for it
    double log_weight = 0.0;
};

struct RatioLoss {
    double loss, slope;  // slope: d loss / d log ratio; for a row that is detached d loss / d logp
    bool clipped_low = false, clipped_high = false;
    double coefficient = 1.0;  // of a detached row: what its logp is multiplied with, besides the advantage
};
