// Advantages: how much better a completion was than what it is compared with.
//
//   A = (r - baseline) / divisor
//             baseline                                     divisor unless --scale_rewards says another
//   group     mean of its group                            the group's deviation         GRPO (Shao et al. 2024, eq. 3)
//   rloo      mean of the others of its group              none                          RLOO (Ahmadian et al. 2024, eq. 8)
//   batch     mean of the batch                            the batch's deviation
//   reinforce_plus_plus           0                        the batch's, after its mean   REINFORCE++ (Hu 2025, eq. 5)
//   reinforce_plus_plus_baseline  mean of its group        the batch's, after its mean
// Deviations are those of a sample (n - 1), plus 1e-4 as in TRL. The last two take mean and deviation over tokens: a
// completion counts by its length, and its tokens have advantages of their own where the reward is paid by tokens, as
// a KL term in the reward is (rewards to go, without discount). The others take the sum of such payments.
//
// A completion to which no reward applies (NaN) has advantage 0, and the others are compared without it, as in TRL. An
// infinite reward makes its group's advantages NaN, so that the step is skipped.
//
// The trap: the mean of equal floats may differ from them by rounding, which a division by 1e-4 makes large: completions
// that are compared with nothing but equals get exactly 0.
#pragma once
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>
#include "../runtime/error.h"

// sample standard deviation (n-1); 0 for a single value
inline double sample_std(const float* x, int n, double mean) {
    double sum = 0.0;
    for (int i = 0; i < n; i++) sum += (x[i] - mean) * (x[i] - mean);
    return n > 1 ? sqrt(sum / (n - 1)) : 0.0;
}

enum class Baseline { none, group, others, batch };
enum class RewardScale { group, batch, none };

struct AdvantageEstimator {
    const char* name;
    Baseline baseline;
    RewardScale scale;
    bool of_tokens;  // mean and deviation of the batch are over tokens
};

inline constexpr AdvantageEstimator advantage_estimators[] = {
    {"group", Baseline::group, RewardScale::group, false},
    {"rloo", Baseline::others, RewardScale::none, false},
    {"batch", Baseline::batch, RewardScale::batch, false},
    {"reinforce_plus_plus", Baseline::none, RewardScale::batch, true},
    {"reinforce_plus_plus_baseline", Baseline::group, RewardScale::batch, true},
};

inline AdvantageEstimator advantage_estimator(const std::string& name) {
    for (const AdvantageEstimator& e : advantage_estimators)
        if (name == e.name) return e;
    fail("no advantage is called %s", name.c_str());
}

struct Advantages {
    std::vector<float> a;                    // [N]
    std::vector<std::vector<float>> tokens;  // [N][n] where tokens have their own; else empty
    double reward_mean = 0.0;
    double reward_std = 0.0;        // over all rewards, as TRL has it
    double reward_group_std = 0.0;  // mean of the groups'
    double zero_std_share = 0.0;    // of groups whose rewards are equal
};

// those of x [n] that are numbers
inline std::vector<float> paid_rewards(const float* x, int n) {
    std::vector<float> paid;
    for (int i = 0; i < n; i++)
        if (!std::isnan(x[i])) paid.push_back(x[i]);
    return paid;
}

// statistics of the rewards; equal [N / G]: groups whose rewards are equal
inline void reward_statistics(Advantages& out, std::vector<bool>& equal, const std::vector<float>& rewards, int G) {
    const int groups = (int)rewards.size() / G;
    const std::vector<float> all = paid_rewards(rewards.data(), (int)rewards.size());
    const int n = (int)all.size();
    for (float r : all) out.reward_mean += r;
    out.reward_mean /= std::max(n, 1);
    out.reward_std = sample_std(all.data(), n, out.reward_mean);
    for (int g = 0; g < groups; g++) {
        const std::vector<float> r = paid_rewards(rewards.data() + (size_t)g * G, G);
        double mean = 0.0;
        for (float x : r) mean += x / (double)r.size();
        out.reward_group_std += sample_std(r.data(), (int)r.size(), mean) / groups;
        bool same = true;
        for (float x : r) same = same && x == r[0];
        equal.push_back(same);
        out.zero_std_share += same ? 1.0 / groups : 0.0;
    }
}

// Mean and deviation over all tokens of completions that were paid, each of which has the advantage of its completion or its own
inline void whiten_over_tokens(Advantages& out, const std::vector<float>& rewards, const std::vector<int>& lengths,
                               bool divide) {
    double sum = 0.0, squares = 0.0, tokens = 0.0;
    auto each = [&](auto&& use) {
        for (size_t i = 0; i < out.a.size(); i++)
            for (int t = 0; t < (out.tokens.empty() ? 1 : lengths[i]); t++)
                if (!std::isnan(rewards[i]))
                    use(out.tokens.empty() ? out.a[i] : out.tokens[i][t],
                        out.tokens.empty() ? (double)lengths[i] : 1.0);
    };
    each([&](float& a, double times) { sum += times * a, tokens += times; });
    const double mean = tokens > 0.0 ? sum / tokens : 0.0;
    each([&](float& a, double times) { squares += times * (a - mean) * (a - mean); });
    const double divisor = divide ? (tokens > 1.0 ? sqrt(squares / (tokens - 1.0)) : 0.0) + 1e-4 : 1.0;
    each([&](float& a, double) { a = squares == 0.0 ? 0.0f : (float)((a - mean) / divisor); });
    if (out.tokens.empty()) return;
    for (size_t i = 0; i < out.a.size(); i++) {  // what is logged of a completion
        double total = 0.0;
        for (float a : out.tokens[i]) total += a;
        out.a[i] = out.tokens[i].empty() ? 0.0f : (float)(total / (double)out.tokens[i].size());
    }
}

inline void unpaid_as_zero(Advantages& out, const std::vector<float>& rewards) {
    for (size_t i = 0; i < out.a.size(); i++) {
        if (!std::isnan(rewards[i])) continue;
        out.a[i] = 0.0f;
        if (!out.tokens.empty()) std::fill(out.tokens[i].begin(), out.tokens[i].end(), 0.0f);
    }
}

// rewards [P*G], NaN where no reward applies; lengths [P*G]: tokens, for the estimators over tokens; payments [P*G][n]: what is paid at each token besides
// the reward at the end, or empty
inline Advantages compute_advantages(const std::vector<float>& rewards, int G, AdvantageEstimator e, RewardScale scale,
                                     const std::vector<int>& lengths = {},
                                     const std::vector<std::vector<float>>& payments = {}) {
    Advantages out;
    const int n = (int)rewards.size();
    std::vector<bool> equal;
    std::vector<float> r = rewards;
    if (!payments.empty() && !e.of_tokens)
        for (int i = 0; i < n; i++)
            for (float p : payments[i]) r[i] += p;
    reward_statistics(out, equal, rewards, G);
    Advantages paid;
    std::vector<bool> same;
    reward_statistics(paid, same, r, G);
    bool all_equal = true;
    const std::vector<float> all = paid_rewards(r.data(), n);
    for (float x : all) all_equal = all_equal && x == all[0];
    for (int g = 0; g < n / G; g++) {
        const float* x = r.data() + (size_t)g * G;
        const std::vector<float> mates = paid_rewards(x, G);
        const int m = (int)mates.size();
        double sum = 0.0;
        for (float y : mates) sum += y;
        const double std = sample_std(mates.data(), m, sum / m);
        for (int i = 0; i < G; i++) {
            const double baseline = e.baseline == Baseline::group    ? sum / m
                                    : e.baseline == Baseline::others ? (m > 1 ? (sum - x[i]) / (m - 1) : (double)x[i])
                                    : e.baseline == Baseline::batch  ? paid.reward_mean
                                                                     : 0.0;
            const double divisor = e.of_tokens                   ? 1.0
                                   : scale == RewardScale::group ? std + 1e-4
                                   : scale == RewardScale::batch ? paid.reward_std + 1e-4
                                                                 : 1.0;
            const bool nothing = std::isnan(x[i])                ? false  // stays NaN until the end
                                 : e.baseline == Baseline::none  ? false
                                 : e.baseline == Baseline::batch ? all_equal
                                                                 : same[g];
            out.a.push_back(nothing ? 0.0f : (float)((x[i] - baseline) / divisor));
        }
    }
    if (!e.of_tokens) return unpaid_as_zero(out, rewards), out;
    if (!payments.empty()) {  // rewards to go
        out.tokens.resize(n);
        for (int i = 0; i < n; i++) {
            double to_go = out.a[i];
            out.tokens[i].resize(payments[i].size());
            for (int t = (int)payments[i].size() - 1; t >= 0; t--) out.tokens[i][t] = (float)(to_go += payments[i][t]);
        }
    }
    whiten_over_tokens(out, rewards, lengths, scale == RewardScale::batch);
    unpaid_as_zero(out, rewards);
    return out;
}

inline Advantages group_advantages(const std::vector<float>& rewards, int G, RewardScale scale) {
    return compute_advantages(rewards, G, advantage_estimators[0], scale);
}
