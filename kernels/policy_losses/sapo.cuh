// SAPO (Gao et al. 2025, arXiv 2511.20347): a soft gate in the place of clipping,
//   l = -4/tau sigmoid(tau (rho - 1)) A,   tau = sapo_temperature_pos where A > 0, else sapo_temperature_neg
// whose slope 4 sigmoid (1 - sigmoid) rho falls from 1 at rho = 1 to 0 on both sides and never becomes 0.
#pragma once
#include <cmath>
#include "../policy_ratio.h"

struct SapoLoss {
    static constexpr bool detached = false, of_sequence = false;
    HOST_DEVICE static RatioLoss at(const PolicyRatio& r, const PolicySettings& s) {
        const double tau = r.advantage > 0.0 ? s.sapo_temperature_pos : s.sapo_temperature_neg;
        const double gate = 1.0 / (1.0 + exp(-tau * (r.ratio - 1.0)));
        RatioLoss l;
        l.loss = -4.0 / tau * gate * r.advantage;
        l.slope = -4.0 * gate * (1.0 - gate) * r.ratio * r.advantage;
        return l;
    }
};
