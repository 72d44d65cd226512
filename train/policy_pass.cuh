// One pass over a batch of completions: their micro-batches, the policy loss and its gradient, and the numbers that are logged
// of it. The loss of a token: kernels/policy_loss.cuh; what a token weighs: loss_types.h.
//
// On the first pass rho is exactly 1 where sampler and trainer are one forward. The loss is then -mean(A), about zero, while
// its gradient is not. A ratio other than 1 at that point is a bug, and sampling/sampling_logp_difference shows it.
#pragma once
#include <array>
#include <functional>
#include <vector>
#include "loss_types.h"
#include "shared_prompts.cuh"

struct PolicyPassConfig {
    PolicyConfig policy;
    LossAggregation aggregation = LossAggregation::token_mean;
    double entropy_coef = 0.0;
    int accumulation_steps = 1;
    int max_completion_length = 256;
    bool mask_truncated = false;
    float temperature = 1.0f;
    int64_t micro_batch_tokens = 4096;
    Pass pass;                   // of the policy's forwards
    std::function<bool()> stop;  // asked before each micro-batch: true abandons the pass
    Comm* comm = nullptr;        // the ranks that share the work; null: this one alone
};

// ---------------------------------------------------------------------------------------------------------------------
// what a set of weights says of completions

struct CompletionScores {
    std::vector<std::vector<float>> logp, entropy;  // [N][n]
};

// Of this rank's completions (the others' are empty), under a reference model, or the policy's own weights in another pass
inline CompletionScores completion_scores(Trainer& t, Model& weights, const Pass& pass,
                                          const std::vector<std::vector<int>>& prompts,
                                          const std::vector<Completion>& completions, const PolicyPassConfig& c) {
    CompletionScores out;
    out.logp.resize(completions.size()), out.entropy.resize(completions.size());
    std::vector<int> mine;
    const auto [begin, end] = share_of_ranks(c.comm, completions.size());
    for (int i = begin; i < end; i++) {
        if (completions[i].tokens.empty()) continue;
        mine.push_back(i);
        out.logp[i].resize(completions[i].tokens.size()), out.entropy[i].resize(completions[i].tokens.size());
    }
    Progress line("scoring", "completion", (int64_t)mine.size(), ProgressKind::part);
    for (const std::vector<int>& chosen : pack_samples(mine, prompts, completions, c.micro_batch_tokens)) {
        SampleBatch b = sample_batch(chosen, prompts, completions);
        score_forward(weights, t.acts, t.score, b.batch, b.scored, 1.0f / c.temperature, pass);
        score_fetch(b.scored, t.score, weights.dev);
        for (size_t r = 0; r < b.of.size(); r++) {
            out.logp[b.of[r].completion][b.of[r].token] = b.scored.logp[r];
            out.entropy[b.of[r].completion][b.of[r].token] = b.scored.entropy[r];
        }
        line.add((int64_t)chosen.size());
    }
    return out;
}

inline std::vector<std::vector<float>> completion_logps(Trainer& t, Model& weights, const Pass& pass,
                                                        const std::vector<std::vector<int>>& prompts,
                                                        const std::vector<Completion>& completions,
                                                        const PolicyPassConfig& c) {
    return completion_scores(t, weights, pass, prompts, completions, c).logp;
}

// values [N][n]: each rank's share becomes everyone's. The number of completions is a multiple of the ranks.
inline void gather_completions(Comm* comm, std::vector<std::vector<float>>& values,
                               const std::vector<Completion>& completions) {
    if (!comm || comm->world == 1) return;
    size_t most = 0;
    for (const Completion& c : completions) most = std::max(most, c.tokens.size());
    const auto [begin, end] = comm_share(*comm, (int)completions.size());
    std::vector<int> rows((size_t)(end - begin) * most);
    for (int i = begin; i < end && most; i++)
        if (!values[i].empty()) memcpy(&rows[(i - begin) * most], values[i].data(), values[i].size() * sizeof(float));
    rows = comm_gather(*comm, rows);
    for (size_t i = 0; i < completions.size(); i++) {
        values[i].resize(completions[i].tokens.size());
        if (!values[i].empty()) memcpy(values[i].data(), &rows[i * most], values[i].size() * sizeof(float));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// what a pass knows of its completions

// Known before the first update. Of tokens: [N][n], empty where there is nothing to say
struct PolicyData {
    std::vector<float> advantages = {};        // [N]
    std::vector<std::vector<float>> ref = {};  // reference log-probabilities, if beta is not 0
    std::vector<std::vector<float>> old = {};  // the trainer's before its first update; empty: the sampler's
    std::vector<std::vector<float>> token_advantages = {};  // where those of a completion differ
    std::vector<std::vector<float>> factor = {};            // what multiplies the loss
    std::vector<std::vector<float>> low = {}, high = {};    // the token's range of rho
    std::vector<std::vector<char>> in_bonus = {};           // which tokens have the entropy bonus; empty: all
    std::vector<double> log_correction = {}, drift = {};    // [N] see PolicySequence
};

struct PolicyTargets {
    const std::vector<Completion>& completions;
    const PolicyData& data;
    int first, last;              // the completions of this pass
    std::vector<int> lengths;     // [N] tokens that count, 0 when masked
    std::vector<double> weights;  // [N]
    double bonus = 0.0;           // dL/dentropy of a token that has the bonus
};

// [N] tokens of each completion that count
inline std::vector<int> counted_lengths(const std::vector<Completion>& completions, const PolicyPassConfig& c) {
    std::vector<int> lengths;
    for (const Completion& done : completions)
        lengths.push_back(c.mask_truncated && !done.finished ? 0 : (int)done.tokens.size());
    return lengths;
}

// first, last: of the completions; last -1: all
inline PolicyTargets policy_targets(const std::vector<Completion>& completions, const PolicyData& data,
                                    const PolicyPassConfig& c, int first = 0, int last = -1) {
    const int N = (int)completions.size();
    PolicyTargets x{completions, data, first, last < 0 ? N : last, counted_lengths(completions, c), {}, 0.0};
    const std::vector<int> here(x.lengths.begin() + x.first, x.lengths.begin() + x.last);
    const std::vector<double> w =
        completion_weights(here, c.aggregation, c.accumulation_steps, c.max_completion_length);
    x.weights.assign(N, 0.0);
    std::copy(w.begin(), w.end(), x.weights.begin() + x.first);
    if (c.entropy_coef == 0.0) return x;
    int64_t tokens = 0;
    for (int i = x.first; i < x.last; i++)
        for (int t = 0; t < x.lengths[i]; t++) tokens += data.in_bonus.empty() || data.in_bonus[i][t];
    x.bonus = -c.entropy_coef / (double)std::max<int64_t>(tokens, 1);
    return x;
}

// One forward and, unless every gradient in it is zero, backward
struct PolicyMicroBatch {
    std::vector<int> completions;
    bool differentiate;
};

// The completions begin ... end - 1 that count, those with and those without a gradient. Without a KL term or an entropy bonus an
// advantage of zero has none, and a forward is enough for its metrics. In a group with others it is left there unless that
// saves more than another forward of the prompt: a backward costs two forwards.
inline std::array<std::vector<int>, 2> split_by_gradient(const PolicyTargets& x,
                                                         const std::vector<std::vector<int>>& prompts,
                                                         const PolicyPassConfig& c, int begin, int end) {
    std::vector<int> counted;
    for (int i = begin; i < end; i++)
        if (x.lengths[i]) counted.push_back(i);
    if (c.policy.beta != 0.0 || x.bonus != 0.0 || !x.data.token_advantages.empty()) return {counted, {}};
    std::array<std::vector<int>, 2> split;
    auto zero = [&](int i) { return x.data.advantages[i] == 0.0f; };
    for (size_t i = 0, last; i < counted.size(); i = last) {
        last = group_end(counted, x.completions, i);
        size_t zeros = 0, tokens = 0;
        for (size_t k = i; k < last; k++)
            if (zero(counted[k])) zeros++, tokens += x.completions[counted[k]].tokens.size();
        const bool apart = zeros == last - i || 2 * tokens > prompts[x.completions[counted[i]].prompt].size();
        for (size_t k = i; k < last; k++) split[apart && zero(counted[k])].push_back(counted[k]);
    }
    return split;
}

// this rank's completions that count
inline std::vector<PolicyMicroBatch> policy_micro_batches(const PolicyTargets& x,
                                                          const std::vector<std::vector<int>>& prompts,
                                                          const PolicyPassConfig& c) {
    std::vector<PolicyMicroBatch> out;
    const auto [begin, end] = share_of_ranks(c.comm, x.last - x.first);
    const auto split = split_by_gradient(x, prompts, c, x.first + begin, x.first + end);
    for (bool zero : {false, true})
        for (std::vector<int>& batch : pack_samples(split[zero], prompts, x.completions, c.micro_batch_tokens))
            out.push_back({std::move(batch), !zero});
    return out;
}

// ---------------------------------------------------------------------------------------------------------------------
// the pass

struct PolicyPass {
    double loss = 0.0, kl = 0.0, entropy = 0.0;                    // loss as reduced; the others are means over tokens
    double bonus = 0.0;                                            // the part of the loss that is the entropy bonus
    double logp_difference_mean = 0.0, logp_difference_max = 0.0;  // |logp - old|
    double ratio_min = 1.0, ratio_max = 1.0, ratio_mean = 1.0;
    double clip_low = 0.0, clip_high = 0.0;          // shares of tokens, or of sequences where the ratio is theirs
    double clip_low_min = 0.0, clip_high_max = 0.0;  // over the sequences: share of its tokens
    double coefficient = 1.0;                        // mean; of a detached loss
    double dropped = 0.0;                            // share of sequences too far from their sampler
    int64_t tokens = 0, forward_tokens = 0;
    bool abandoned = false;  // the gradients are incomplete: the caller drops them
};

// Sums over the completions of all ranks, of the gradients too, and the means that are logged
inline void policy_pass_finish(PolicyPass& out, PolicySums sums, Trainer& t, const PolicyPassConfig& c, bool gradient) {
    if (c.comm && c.comm->world > 1) {
        if (gradient) sum_gradients(t, *c.comm);
        double tokens = (double)out.tokens, forward = (double)out.forward_tokens;
        comm_reduce(
            *c.comm,
            {&sums.loss, &sums.bonus, &sums.kl, &sums.entropy, &sums.logp_difference, &sums.ratio, &sums.clip_low,
             &sums.clip_high, &sums.coefficient, &sums.clip_units, &sums.dropped, &sums.sequences, &tokens, &forward},
            Reduce::sum);
        comm_reduce(*c.comm, {&sums.ratio_min, &sums.clip_low_min}, Reduce::min);
        comm_reduce(*c.comm, {&sums.logp_difference_max, &sums.ratio_max, &sums.clip_high_max}, Reduce::max);
        out.tokens = (int64_t)tokens;
        out.forward_tokens = (int64_t)forward;
    }
    if (out.tokens == 0) return;
    const double n = (double)out.tokens;
    out.loss = sums.loss;
    out.bonus = sums.bonus;
    out.kl = sums.kl / n;
    out.entropy = sums.entropy / n;
    out.logp_difference_mean = sums.logp_difference / n;
    out.logp_difference_max = sums.logp_difference_max;
    out.ratio_min = sums.ratio_min;
    out.ratio_max = sums.ratio_max;
    out.ratio_mean = sums.ratio / n;
    out.clip_low = sums.clip_low / sums.clip_units;
    out.clip_high = sums.clip_high / sums.clip_units;
    out.clip_low_min = sums.clip_low_min;
    out.clip_high_max = sums.clip_high_max;
    out.coefficient = sums.coefficient / sums.clip_units;
    out.dropped = sums.dropped / sums.sequences;
}

// What the loss of a micro-batch reads, on the host: its sequences in the order of `chosen`
inline void policy_fill(PolicyInputs& in, const PolicyTargets& x, const SampleBatch& b,
                        const std::vector<int>& chosen) {
    const PolicyData& d = x.data;
    std::vector<int> place(x.completions.size());  // where the tokens of a completion begin
    int next = 0;
    for (size_t q = 0; q < chosen.size(); q++) {
        const int i = chosen[q], n = (int)x.completions[i].tokens.size();
        double factors = 0.0;
        for (int t = 0; t < n; t++) factors += d.factor.empty() ? 1.0 : (double)d.factor[i][t];
        in.sequences[q] = {x.weights[i],
                           x.weights[i] * factors / n,
                           d.log_correction.empty() ? 0.0 : d.log_correction[i],
                           d.drift.empty() ? 0.0 : d.drift[i],
                           next,
                           n};
        place[i] = next, next += n;
    }
    for (int64_t r = 0; r < b.scored.size(); r++) {
        const auto [i, j] = b.of[r];
        const int k = place[i] + j;
        in.rows[k] = (int)r;
        in.old_logp[k] = d.old.empty() ? x.completions[i].logps[j] : d.old[i][j];
        in.advantage[k] = d.token_advantages.empty() ? d.advantages[i] : d.token_advantages[i][j];
        if (in.ref_logp) in.ref_logp[k] = d.ref[i][j];
        if (in.factor) in.factor[k] = d.factor[i][j];
        if (in.low) in.low[k] = d.low[i][j], in.high[k] = d.high[i][j];
        if (in.bonus) in.bonus[k] = d.in_bonus.empty() || d.in_bonus[i][j] ? (float)x.bonus : 0.0f;
    }
}

// The loss of the tokens of the last score_forward_training: t.score.dlogp, and the pass's sums
inline void policy_micro_batch_loss(Trainer& t, const SampleBatch& b, const std::vector<int>& chosen,
                                    const PolicyTargets& x, const PolicyPassConfig& c) {
    const Device dev = t.model->dev;
    ScoreMemory& memory = t.score;
    const PolicyData& d = x.data;
    const PolicyUse use = {b.scored.size(),   (int64_t)chosen.size(), !d.ref.empty(),
                           !d.factor.empty(), !d.low.empty(),         x.bonus != 0.0};
    PolicyInputs in = policy_inputs(memory.policy, use, dev);
    policy_fill(in, x, b, chosen);
    in = policy_inputs_send(memory.policy, use, dev);
    const PolicyScores scores = {memory.logp.data, memory.entropy.data, memory.dlogp.data, memory.dentropy.data};
    policy_loss(memory.policy.sums.data, scores, in, use.S, c.policy, dev);
}

// Forward, loss and backward over completions [first, last) (-1: all): gradients accumulate in t.grads, which several ranks must
// enter with zeros, because they add it up at the end; unless gradient is false.
inline PolicyPass policy_pass(Trainer& t, const std::vector<std::vector<int>>& prompts,
                              const std::vector<Completion>& completions, const PolicyData& data,
                              const PolicyPassConfig& c, bool gradient = true, int first = 0, int last = -1) {
    PolicyPass out;
    const PolicyTargets x = policy_targets(completions, data, c, first, last);
    Device dev = t.model->dev;
    Buffer<PolicySums>& memory = t.score.policy.sums;
    policy_sums_reset(memory.data, dev);
    const std::vector<PolicyMicroBatch> batches = policy_micro_batches(x, prompts, c);
    int64_t counted = 0;
    for (const PolicyMicroBatch& micro : batches) counted += (int64_t)micro.completions.size();
    Progress line("update", "completion", counted, ProgressKind::part);
    for (const PolicyMicroBatch& micro : batches) {
        if (c.stop && c.stop()) {
            out.abandoned = true;
            return out;
        }
        const SampleBatch b = sample_batch(micro.completions, prompts, completions);
        score_forward_training(t, b.batch, b.scored, 1.0f / c.temperature, c.pass);
        policy_micro_batch_loss(t, b, micro.completions, x, c);
        if (gradient && micro.differentiate) score_backward(t, b.scored.size(), 1.0f / c.temperature, x.bonus != 0.0);
        out.tokens += b.scored.size();
        out.forward_tokens += b.batch.T();
        line.add((int64_t)micro.completions.size());
    }
    PolicySums sums;
    copy_to_host(&sums, memory.data, sizeof(sums), dev);
    policy_pass_finish(out, sums, t, c, gradient);
    return out;
}

// Of several updates, as TRL logs them: each number's mean, of the entropy over those that have tokens
inline PolicyPass policy_pass_mean(const std::vector<PolicyPass>& passes) {
    PolicyPass mean = passes.back();
    using Number = double PolicyPass::*;
    for (Number x :
         {&PolicyPass::loss, &PolicyPass::bonus, &PolicyPass::kl, &PolicyPass::clip_low, &PolicyPass::clip_high,
          &PolicyPass::clip_low_min, &PolicyPass::clip_high_max, &PolicyPass::coefficient, &PolicyPass::dropped}) {
        mean.*x = 0.0;
        for (const PolicyPass& p : passes) mean.*x += p.*x / (double)passes.size();
    }
    mean.entropy = 0.0, mean.tokens = 0;
    int counted = 0;
    for (const PolicyPass& p : passes) counted += p.tokens > 0, mean.tokens += p.tokens;
    for (const PolicyPass& p : passes)
        if (p.tokens > 0) mean.entropy += p.entropy / counted;
    return mean;
}
