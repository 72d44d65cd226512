// What --loss_type names: a policy loss, what its ratio is of, and how the losses of tokens are averaged. Each of the three
// can be given by itself (--policy_loss, --importance_sampling_level, --loss_aggregation). Names of loss types are TRL's,
// those of averages verl's.
//
//   aggregation             weight of a token of completion i (n_i tokens that count, N completions in the batch)
//   seq-mean-token-mean     1 / (N n_i)                         each completion counts the same
//   token-mean              1 / (tokens of the whole batch)     each token does
//   micro-batch-token-mean  1 / (parts * tokens of its part)    TRL's local mean, parts = gradient_accumulation_steps
//   seq-mean-token-sum-norm 1 / (N max_completion_length)       no completion counts for more because it is short
//   seq-mean-token-sum      1 / N
// The weights are known before the first micro-batch runs, so how the batch is split changes nothing but rounding.
#pragma once
#include <algorithm>
#include <string>
#include <vector>
#include "../kernels/policy_loss.cuh"

enum class LossAggregation {
    seq_mean_token_mean,
    token_mean,
    micro_batch_token_mean,
    seq_mean_token_sum_norm,
    seq_mean_token_sum
};

inline constexpr const char* loss_aggregation_names[] = {"seq-mean-token-mean", "token-mean", "micro-batch-token-mean",
                                                         "seq-mean-token-sum-norm", "seq-mean-token-sum"};

struct LossType {
    const char* name;
    PolicyLoss loss;
    bool sequence;  // the ratio is the sequence's
    LossAggregation aggregation;
};

inline constexpr LossType loss_types[] = {
    // GRPO (Shao et al. 2024), Dr. GRPO (Liu et al. 2025, arXiv 2503.20783), DAPO (Yu et al. 2025, eq. 8)
    {"grpo", PolicyLoss::clip, false, LossAggregation::seq_mean_token_mean},
    {"dr_grpo", PolicyLoss::clip, false, LossAggregation::seq_mean_token_sum_norm},
    {"bnpo", PolicyLoss::clip, false, LossAggregation::micro_batch_token_mean},
    {"dapo", PolicyLoss::clip, false, LossAggregation::token_mean},
    {"cispo", PolicyLoss::cispo, false, LossAggregation::token_mean},
    {"sapo", PolicyLoss::sapo, false, LossAggregation::seq_mean_token_mean},
    // GSPO (Zheng et al. 2025), LUSPO (arXiv 2602.05261), VESPO (arXiv 2602.10693), TBPO (arXiv 2604.07853)
    {"gspo", PolicyLoss::clip, true, LossAggregation::seq_mean_token_mean},
    {"luspo", PolicyLoss::clip, true, LossAggregation::seq_mean_token_sum},
    {"vespo", PolicyLoss::vespo, false, LossAggregation::token_mean},
    {"tbpo", PolicyLoss::trust_band, true, LossAggregation::seq_mean_token_mean},
};

inline LossType loss_type_named(const std::string& name) {
    std::vector<std::string> names;
    for (const LossType& t : loss_types) {
        if (name == t.name) return t;
        names.push_back(t.name);
    }
    fail_usage("--loss_type %s: not one of %s%s", name.c_str(), join_words(names).c_str(),
               did_you_mean(name, names).c_str());
}

inline LossAggregation loss_aggregation_named(const std::string& name) {
    std::vector<std::string> names(std::begin(loss_aggregation_names), std::end(loss_aggregation_names));
    for (size_t i = 0; i < names.size(); i++)
        if (name == names[i]) return (LossAggregation)i;
    fail_usage("--loss_aggregation %s: not one of %s%s", name.c_str(), join_words(names).c_str(),
               did_you_mean(name, names).c_str());
}

// [N] the weight of each completion's token sum; lengths [N] are the tokens that count (0 when masked)
inline std::vector<double> completion_weights(const std::vector<int>& lengths, LossAggregation aggregation,
                                              int accumulation_steps, int max_completion_length) {
    int N = (int)lengths.size(), part = (N + accumulation_steps - 1) / accumulation_steps;
    int parts = (N + part - 1) / part;
    std::vector<double> part_tokens(parts, 0.0), w(N);
    double tokens = 0.0;
    for (int i = 0; i < N; i++) {
        tokens += lengths[i];
        part_tokens[i / part] += lengths[i];
    }
    auto weight = [&](int i) {
        switch (aggregation) {
            case LossAggregation::seq_mean_token_mean:
                return 1.0 / ((double)N * std::max(lengths[i], 1));
            case LossAggregation::micro_batch_token_mean:
                return 1.0 / ((double)parts * std::max(part_tokens[i / part], 1.0));
            case LossAggregation::seq_mean_token_sum_norm:
                return 1.0 / ((double)N * max_completion_length);
            case LossAggregation::seq_mean_token_sum:
                return 1.0 / (double)N;
            case LossAggregation::token_mean:
                break;
        }
        return 1.0 / std::max(tokens, 1.0);
    };
    for (int i = 0; i < N; i++) w[i] = weight(i);
    return w;
}
