// VESPO (Shen et al. 2026, arXiv 2602.10693; formulas as in TRL 1.16): l = -phi(w) A logp, phi taken as a number,
//   phi(w) = e^lambda w^k e^(-lambda w)        phi(1) = 1; falls on both sides of k / lambda
//   log w  = sum over the sequence's tokens of log(pi / pi_old) + log of the sampler's correction, in [log 1e-8, 20]
// with k, lambda of its own where A >= 0 (2, 3) and where A < 0 (3, 2). The weight is the whole sequence's, a product and
// no geometric mean, so that it is about that a completion as a whole has become unlikely.
#pragma once
#include <cmath>
#include "../policy_ratio.h"

struct VespoLoss {
    static constexpr bool detached = true, of_sequence = true;
    static constexpr double log_least = -18.420680743952367, log_most = 20.0;  // log 1e-8
    HOST_DEVICE static RatioLoss at(const PolicyRatio& r, const PolicySettings& s) {
        const bool good = r.advantage >= 0.0;
        const double k = good ? s.vespo_k_pos : s.vespo_k_neg, asked = good ? s.vespo_lambda_pos : s.vespo_lambda_neg;
        const double lambda = asked < 1e-4 ? 1e-4 : asked;
        const double log_w = r.log_weight < log_least ? log_least : (r.log_weight > log_most ? log_most : r.log_weight);
        RatioLoss l;
        l.coefficient = exp(lambda + k * log_w - lambda * exp(log_w));
        l.slope = -l.coefficient * r.advantage;
        l.loss = l.slope * r.logp;
        return l;
    }
};
