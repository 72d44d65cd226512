// The order in which rows are taken, drawn by the seed.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>
#include "../runtime/error.h"
#include "../runtime/rng.h"

// Uniform in [0, n), n >= 1, without bias: Lemire 2019 (arXiv 1805.10941), multiply and reject. Draw (epoch, index,
// try).
inline uint32_t shuffle_draw(uint64_t seed, uint32_t epoch, uint32_t index, uint32_t n,
                             RngStream stream = RNG_SHUFFLE) {
    uint32_t reject = (uint32_t)(-n) % n;  // 2^32 mod n
    for (uint32_t attempt = 0;; attempt++) {
        Philox4 r = rng_bits(seed, stream, epoch, index, attempt);
        for (uint32_t bits : r.x) {
            uint64_t product = (uint64_t)bits * n;
            if ((uint32_t)product >= reject) return (uint32_t)(product >> 32);
        }
    }
}

// The order of rows 0..n-1 in an epoch, n ints: a Fisher-Yates permutation that depends on (n, seed, epoch) and the
// stream alone.
inline std::vector<int> epoch_order(int n, uint64_t seed, uint32_t epoch, RngStream stream = RNG_SHUFFLE) {
    if (n < 0) fail("epoch_order: %d rows", n);
    std::vector<int> order((size_t)n);
    std::iota(order.begin(), order.end(), 0);
    for (int i = n - 1; i > 0; i--)
        std::swap(order[(size_t)i], order[shuffle_draw(seed, epoch, (uint32_t)i, (uint32_t)i + 1, stream)]);
    return order;
}

// An order in which each row is drawn from those that are left in proportion to its weight, >= 0: ascending -log(u) / w
// (Efraimidis & Spirakis 2006). Rows of weight 0 come last, as they are numbered.
inline std::vector<int> weighted_order(const std::vector<double>& weights, uint64_t seed, uint32_t epoch,
                                       RngStream stream = RNG_SHUFFLE) {
    std::vector<std::pair<double, int>> keys;
    for (size_t i = 0; i < weights.size(); i++) {
        const Philox4 r = rng_bits(seed, stream, epoch, (uint32_t)i, 0);
        const double u = ((double)(((uint64_t)r.x[0] << 32 | r.x[1]) >> 11) + 0.5) * 0x1p-53;  // in (0, 1)
        keys.push_back({weights[i] > 0.0 ? -std::log(u) / weights[i] : HUGE_VAL, (int)i});
    }
    std::sort(keys.begin(), keys.end());
    std::vector<int> order;
    for (const auto& key : keys) order.push_back(key.second);
    return order;
}
