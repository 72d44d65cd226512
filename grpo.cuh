// Group Relative Policy Optimization (Shao et al. 2024, DeepSeekMath, eq. 3) with TRL's reductions.
//
//   G completions of each prompt get rewards r_1..r_G;  A_i = (r_i - mean(r)) / (std(r) + 1e-4)     std with G-1
//   rho_t = exp(logp_t - old_t)                  old: the log-probability at which the token was sampled
//   l_t   = -min(rho_t A, clip(rho_t, 1-eps_low, 1+eps_high) A) + beta k3_t
//   k3_t  = exp(ref_t - logp_t) - (ref_t - logp_t) - 1      (Schulman 2020; >= 0, unbiased for KL(policy || reference))
//   loss  = sum_i w_i sum_t l_t, with the weight w_i of completion i (of n_i tokens, N completions in the batch)
//             grpo     1 / (N n_i)                              each completion counts the same
//             bnpo     1 / (parts * tokens of its part)         TRL's local mean, parts = gradient_accumulation_steps
//             dr_grpo  1 / (N max_completion_length)            (Liu et al. 2025, Dr. GRPO)
//             dapo     1 / (tokens of the whole batch)          (Yu et al. 2025, DAPO, eq. 8); the default
// The weights are known before the first micro-batch runs, so how the batch is split changes nothing but rounding.
//
// On the first pass rho is exactly 1: sampler and trainer are one forward. The loss is then -mean(A), about zero, while
// its gradient is not. A ratio other than 1 at that point is a bug, and sampling/sampling_logp_difference shows it.
#pragma once
#include <array>
#include <cmath>
#include <functional>
#include <string>
#include <vector>
#include "kernels/mix.cuh"
#include "train/loop.cuh"
#include "train/sampler.cuh"
#include "train/shared_prompts.cuh"

enum class LossType { grpo, bnpo, dr_grpo, dapo };
enum class RewardScale { group, batch, none };

struct GrpoConfig {
    int num_generations = 8;
    PolicyLoss policy_loss = PolicyLoss::clip;
    LossType loss_type = LossType::dapo;
    RewardScale scale_rewards = RewardScale::group;
    double epsilon_low = 0.2, epsilon_high = 0.2, beta = 0.0;
    int num_iterations = 1, accumulation_steps = 1;
    int ref_sync_steps = 0;        // the reference takes its share of the policy every so many steps; 0: never
    double ref_mixup_alpha = 0.6;  // that share
    int max_completion_length = 256;
    bool mask_truncated = false;
    float temperature = 1.0f;
    int64_t micro_batch_tokens = 4096;
    Pass pass;                   // of the policy's forwards
    std::function<bool()> stop;  // asked before each micro-batch: true abandons the pass
    Comm* comm = nullptr;        // the ranks that share the work; null: this one alone
};

// ---------------------------------------------------------------------------------------------------------------------
// advantages

struct Advantages {
    std::vector<float> a;  // [P*G]
    double reward_mean = 0.0, reward_std = 0.0, zero_std_share = 0.0;
};

inline Advantages group_advantages(const std::vector<float>& rewards, int G, RewardScale scale) {
    Advantages out;
    int n = (int)rewards.size(), groups = n / G;
    double total = 0.0;
    for (float r : rewards) total += r;
    out.reward_mean = total / n;
    double batch_std = sample_std(rewards.data(), n, out.reward_mean);
    for (int g = 0; g < groups; g++) {
        const float* r = rewards.data() + (size_t)g * G;
        double mean = 0.0;
        for (int i = 0; i < G; i++) mean += r[i];
        mean /= G;
        double std = sample_std(r, G, mean);
        out.reward_std += std / groups;
        // the mean of equal floats may differ from them by rounding: such a group teaches nothing
        bool equal = true;
        for (int i = 1; i < G; i++) equal = equal && r[i] == r[0];
        if (equal) out.zero_std_share += 1.0 / groups;
        double divisor = scale == RewardScale::group   ? std + 1e-4
                         : scale == RewardScale::batch ? batch_std + 1e-4
                                                       : 1.0;
        for (int i = 0; i < G; i++) out.a.push_back(equal ? 0.0f : (float)((r[i] - mean) / divisor));
    }
    return out;
}

// ---------------------------------------------------------------------------------------------------------------------
// weights of the token losses (the loss of a token: kernels/policy_loss.cuh)

// [N] the weight of each completion's token sum; lengths [N] are the tokens that count (0 when masked)
inline std::vector<double> completion_weights(const std::vector<int>& lengths, LossType type, int accumulation_steps,
                                              int max_completion_length) {
    int N = (int)lengths.size(), part = (N + accumulation_steps - 1) / accumulation_steps;
    int parts = (N + part - 1) / part;
    std::vector<double> part_tokens(parts, 0.0), w(N);
    double tokens = 0.0;
    for (int i = 0; i < N; i++) {
        tokens += lengths[i];
        part_tokens[i / part] += lengths[i];
    }
    for (int i = 0; i < N; i++) {
        if (type == LossType::grpo) w[i] = 1.0 / ((double)N * std::max(lengths[i], 1));
        if (type == LossType::bnpo) w[i] = 1.0 / ((double)parts * std::max(part_tokens[i / part], 1.0));
        if (type == LossType::dr_grpo) w[i] = 1.0 / ((double)N * max_completion_length);
        if (type == LossType::dapo) w[i] = 1.0 / std::max(tokens, 1.0);
    }
    return w;
}

// ---------------------------------------------------------------------------------------------------------------------
// one pass over a batch of completions

struct PolicyPass {
    double loss = 0.0, kl = 0.0, entropy = 0.0;                    // loss as reduced; the others are means over tokens
    double logp_difference_mean = 0.0, logp_difference_max = 0.0;  // |logp - sampler's|
    double ratio_min = 1.0, ratio_max = 1.0, ratio_mean = 1.0;
    double clip_low = 0.0, clip_high = 0.0;          // shares of tokens
    double clip_low_min = 0.0, clip_high_max = 0.0;  // over the parts of the batch and the ranks
    int64_t tokens = 0, forward_tokens = 0;
    bool abandoned = false;  // the gradients are incomplete: the caller drops them
};

// log-probabilities of this rank's completions under a set of weights, one vector a completion: those of a reference
// model, or the policy's own in another pass
inline std::vector<std::vector<float>> completion_logps(Trainer& t, Model& weights, const Pass& pass,
                                                        const std::vector<std::vector<int>>& prompts,
                                                        const std::vector<Completion>& completions,
                                                        const GrpoConfig& c) {
    std::vector<std::vector<float>> out(completions.size());
    std::vector<int> mine;
    const auto [begin, end] = share_of_ranks(c.comm, completions.size());
    for (int i = begin; i < end; i++)
        if (!completions[i].tokens.empty()) mine.push_back(i), out[i].resize(completions[i].tokens.size());
    for (const std::vector<int>& chosen : pack_samples(mine, prompts, completions, c.micro_batch_tokens)) {
        SampleBatch b = sample_batch(chosen, prompts, completions);
        score_forward(weights, t.acts, t.score, b.batch, b.scored, 1.0f / c.temperature, pass);
        score_fetch(b.scored, t.score, weights.dev);
        for (size_t r = 0; r < b.of.size(); r++) out[b.of[r].completion][b.of[r].token] = b.scored.logp[r];
    }
    return out;
}

// Sums over the completions of all ranks, of the gradients too, and the means that are logged
inline void policy_pass_finish(PolicyPass& out, PolicySums sums, Trainer& t, const GrpoConfig& c, bool gradient) {
    if (c.comm && c.comm->world > 1) {
        if (gradient) sum_gradients(t, *c.comm);
        double tokens = (double)out.tokens, forward = (double)out.forward_tokens;
        comm_reduce(*c.comm,
                    {&sums.loss, &sums.kl, &sums.entropy, &sums.logp_difference, &sums.ratio, &sums.clip_low,
                     &sums.clip_high, &tokens, &forward},
                    Reduce::sum);
        comm_reduce(*c.comm, {&sums.ratio_min, &sums.clip_low_min}, Reduce::min);
        comm_reduce(*c.comm, {&sums.logp_difference_max, &sums.ratio_max, &sums.clip_high_max}, Reduce::max);
        out.tokens = (int64_t)tokens;
        out.forward_tokens = (int64_t)forward;
    }
    if (out.tokens == 0) return;
    const double n = (double)out.tokens;
    out.loss = sums.loss;
    out.kl = sums.kl / n;
    out.entropy = sums.entropy / n;
    out.logp_difference_mean = sums.logp_difference / n;
    out.logp_difference_max = sums.logp_difference_max;
    out.ratio_min = sums.ratio_min;
    out.ratio_max = sums.ratio_max;
    out.ratio_mean = sums.ratio / n;
    out.clip_low = sums.clip_low / n;
    out.clip_high = sums.clip_high / n;
    out.clip_low_min = sums.clip_low_min;
    out.clip_high_max = sums.clip_high_max;
}

// What a pass knows of its completions
struct PolicyTargets {
    const std::vector<Completion>& completions;
    const std::vector<float>& advantages;        // [N]
    const std::vector<std::vector<float>>& ref;  // [N] reference log-probabilities; empty when beta is 0
    std::vector<int> lengths;                    // [N] tokens that count, 0 when masked
    std::vector<double> weights;                 // [N]
};

inline PolicyTargets policy_targets(const std::vector<Completion>& completions, const std::vector<float>& advantages,
                                    const std::vector<std::vector<float>>& ref, const GrpoConfig& c) {
    PolicyTargets x{completions, advantages, ref, {}, {}};
    for (const Completion& done : completions)
        x.lengths.push_back(c.mask_truncated && !done.finished ? 0 : (int)done.tokens.size());
    x.weights = completion_weights(x.lengths, c.loss_type, c.accumulation_steps, c.max_completion_length);
    return x;
}

// One forward and, unless every gradient in it is zero, backward
struct PolicyMicroBatch {
    std::vector<int> completions;
    bool differentiate;
    bool ends_part = false;
};

// The completions first ... last - 1 that count, those with and those without a gradient. Without a KL term an advantage
// of zero has none, and a forward is enough for its metrics. In a group with others it is left there unless that saves
// more than another forward of the prompt: a backward costs two forwards.
inline std::array<std::vector<int>, 2> split_by_gradient(const PolicyTargets& x,
                                                         const std::vector<std::vector<int>>& prompts,
                                                         const GrpoConfig& c, int first, int last) {
    std::vector<int> counted;
    for (int i = first; i < last; i++)
        if (x.lengths[i]) counted.push_back(i);
    if (c.beta != 0.0) return {counted, {}};
    std::array<std::vector<int>, 2> split;
    auto zero = [&](int i) { return x.advantages[i] == 0.0f; };
    for (size_t i = 0, end; i < counted.size(); i = end) {
        end = group_end(counted, x.completions, i);
        size_t zeros = 0, tokens = 0;
        for (size_t k = i; k < end; k++)
            if (zero(counted[k])) zeros++, tokens += x.completions[counted[k]].tokens.size();
        const bool apart = zeros == end - i || 2 * tokens > prompts[x.completions[counted[i]].prompt].size();
        for (size_t k = i; k < end; k++) split[apart && zero(counted[k])].push_back(counted[k]);
    }
    return split;
}

// this rank's completions that count; no micro-batch has completions of two parts
inline std::vector<PolicyMicroBatch> policy_micro_batches(const PolicyTargets& x,
                                                          const std::vector<std::vector<int>>& prompts,
                                                          const GrpoConfig& c) {
    std::vector<PolicyMicroBatch> out;
    const int N = (int)x.completions.size(), part = (N + c.accumulation_steps - 1) / c.accumulation_steps;
    const auto [begin, end] = share_of_ranks(c.comm, N);
    for (int first = begin, last; first < end; first = last) {
        last = std::min(end, (first / part + 1) * part);
        const auto split = split_by_gradient(x, prompts, c, first, last);
        for (bool zero : {false, true})
            for (std::vector<int>& batch : pack_samples(split[zero], prompts, x.completions, c.micro_batch_tokens))
                out.push_back({std::move(batch), !zero});
        if (!out.empty()) out.back().ends_part = true;
    }
    return out;
}

// The loss of the tokens of the last score_forward_training: t.score.dlogp, and the pass's sums
inline void policy_micro_batch_loss(Trainer& t, const SampleBatch& b, const PolicyTargets& x, const GrpoConfig& c) {
    const Device dev = t.model->dev;
    ScoreMemory& memory = t.score;
    const int64_t R = b.scored.size();
    PolicyInputs in = policy_inputs(memory.policy, R, dev);
    for (int64_t r = 0; r < R; r++) {
        const auto [i, j] = b.of[r];
        in.weight[r] = x.weights[i];
        in.old_logp[r] = x.completions[i].logps[j];
        in.ref_logp[r] = x.ref.empty() ? 0.0f : x.ref[i][j];
        in.advantage[r] = x.advantages[i];
    }
    in = policy_inputs_send(memory.policy, R, dev);
    policy_loss(memory.dlogp.data, memory.policy.sums.data, memory.logp.data, memory.entropy.data, in, R,
                {c.epsilon_low, c.epsilon_high, c.beta, c.policy_loss}, dev);
}

// Forward, loss and backward over all completions: gradients accumulate in t.grads, which several ranks must enter with
// zeros, because they add it up at the end; unless gradient is false. ref: see PolicyTargets.
inline PolicyPass policy_pass(Trainer& t, const std::vector<std::vector<int>>& prompts,
                              const std::vector<Completion>& completions, const std::vector<float>& advantages,
                              const std::vector<std::vector<float>>& ref, const GrpoConfig& c, bool gradient = true) {
    PolicyPass out;
    const PolicyTargets x = policy_targets(completions, advantages, ref, c);
    Device dev = t.model->dev;
    Buffer<PolicySums>& memory = t.score.policy.sums;
    policy_sums_reset(memory.data, dev);
    for (const PolicyMicroBatch& micro : policy_micro_batches(x, prompts, c)) {
        if (c.stop && c.stop()) {
            out.abandoned = true;
            return out;
        }
        const SampleBatch b = sample_batch(micro.completions, prompts, completions);
        score_forward_training(t, b.batch, b.scored, 1.0f / c.temperature, c.pass);
        policy_micro_batch_loss(t, b, x, c);
        if (micro.ends_part) policy_sums_end_part(memory.data, dev);
        if (gradient && micro.differentiate) score_backward(t, b.scored.size(), 1.0f / c.temperature);
        out.tokens += b.scored.size();
        out.forward_tokens += b.batch.T();
    }
    PolicySums sums;
    copy_to_host(&sums, memory.data, sizeof(sums), dev);
    policy_pass_finish(out, sums, t, c, gradient);
    return out;
}

// ---------------------------------------------------------------------------------------------------------------------
// the objective: one GRPO step

struct GrpoObjective : Objective {
    GrpoConfig config;
    RewardSet rewards;
    RolloutConfig rollout;
    RolloutState* state = nullptr;  // of the sampler's model
    Sampler sampler;
    Model* reference = nullptr;  // of the KL term; null: the policy without its adapter
    const Tokenizer* tok = nullptr;

    // of this step
    std::vector<Example> batch;
    std::vector<std::vector<int>> prompts;
    std::vector<Completion> samples;
    RewardedGroup rewarded;
    Advantages advantages;
    std::vector<std::vector<float>> ref;
    RolloutStats generated;
    PolicyPass first, pass;  // of its first update and of its last
    int updates = 0;
    int silent = 0;  // steps in a row whose groups were all equal

    int iterations() const override { return config.num_iterations; }

    void start(Trainer& t) override {
        if (reference) model_copy_work(*reference, *t.model);
    }

    // of this step's samples
    virtual RewardedGroup reward() const {
        return reward_completions(*tok, rewards, batch, samples, config.max_completion_length);
    }

    bool prepare(Trainer& t, const StepContext& c, LoopState& run) override {
        batch = c.batch;
        prompts.clear();
        for (const Example& e : batch) prompts.push_back(e.prompt.tokens);
        rollout.step = (uint32_t)c.step;
        rollout.pass = sampler_begin(sampler, *t.model, c.step);
        generated = RolloutStats();
        samples = rollout_of_ranks(c.comm, sampler.model(), *state, prompts, config.num_generations, rollout,
                                   &generated, [&](int, int) { return !(c.stop && c.stop()); });
        sampler_end(sampler);
        if (step_stop(c)) return false;
        run.generated.prompt_tokens += generated.prompt_tokens;
        run.generated.completion_tokens += generated.completion_tokens;
        run.generated.seconds += generated.seconds;
        rewarded = reward();
        advantages = group_advantages(rewarded.total, config.num_generations, config.scale_rewards);
        config.comm = c.comm;
        config.pass = c.pass;
        updates = 0;
        if (config.beta == 0.0) return true;
        Pass base;
        base.adapter = false;
        ref =
            completion_logps(t, reference ? *reference : *t.model, reference ? Pass() : base, prompts, samples, config);
        return true;
    }

    StepLoss loss(Trainer& t, const StepContext& c, bool gradient) override {
        config.stop = c.stop;
        pass = policy_pass(t, prompts, samples, advantages.a, ref, config, gradient);
        if (updates++ == 0) first = pass;
        return {pass.loss, pass.forward_tokens, pass.abandoned};
    }

    void metrics(nlohmann::ordered_json& j) const override {
        j["reward"] = advantages.reward_mean;
        j["reward_std"] = advantages.reward_std;
        j["frac_reward_zero_std"] = advantages.zero_std_share;
        for (size_t f = 0; f < rewards.entries.size(); f++) {
            const std::string name = std::string("rewards/") + rewards.entries[f].name;
            const std::vector<float>& each = rewarded.each[f];
            double mean = 0.0;
            for (float r : each) mean += r / (double)each.size();
            j[name + "/mean"] = mean;
            j[name + "/std"] = sample_std(each.data(), (int)each.size(), mean);
        }
        length_metrics(j, samples);
        j["entropy"] = pass.entropy;
        if (config.beta > 0.0) j["kl"] = pass.kl;
        j["clip_ratio/low_mean"] = pass.clip_low;
        j["clip_ratio/low_min"] = pass.clip_low_min;
        j["clip_ratio/high_mean"] = pass.clip_high;
        j["clip_ratio/high_max"] = pass.clip_high_max;
        j["clip_ratio/region_mean"] = pass.clip_low + pass.clip_high;
        j["sampling/sampling_logp_difference/mean"] = first.logp_difference_mean;
        j["sampling/sampling_logp_difference/max"] = first.logp_difference_max;
        j["sampling/importance_sampling_ratio/min"] = first.ratio_min;
        j["sampling/importance_sampling_ratio/mean"] = first.ratio_mean;
        j["sampling/importance_sampling_ratio/max"] = first.ratio_max;
        sampler_metrics(sampler, j);
    }

    void timings(nlohmann::ordered_json& j, const StepReport& r) const override {
        j["timing_s/gen"] = generated.seconds;
        j["timing_s/update_actor"] = r.train_seconds;
        j["perf/gen_tokens_per_second"] = (double)generated.completion_tokens / generated.seconds;
        j["perf/train_tokens_per_second"] = (double)r.forward_tokens / r.train_seconds;
    }

    void completions(RunDir& run, int64_t step) const override {
        for (size_t i = 0; i < samples.size(); i++) {
            const Prompt& prompt = batch[samples[i].prompt].prompt;
            nlohmann::ordered_json j;
            j["step"] = step;
            j["prompt"] = prompt.text;
            j["completion"] = rewarded.texts[i];
            j["gold"] = prompt.gold;
            for (size_t f = 0; f < rewards.entries.size(); f++) j[rewards.entries[f].name] = rewarded.each[f][i];
            j["advantage"] = advantages.a[i];
            j["finished"] = samples[i].finished;
            log_completion(run, j);
        }
    }

    std::string line(const StepReport& r) const override {
        const SampleLengths lengths = sample_length_statistics(samples, false);
        std::string s = line_step(r) + format(" reward %.3f +- %.3f | loss %+.4f | entropy %.3f |",
                                              advantages.reward_mean, advantages.reward_std, pass.loss, pass.entropy);
        if (config.beta > 0.0) s += format(" kl %.4f |", pass.kl);
        s += format(" len %.1f clipped %.0f%% | ", lengths.mean, 100 * clipped_ratio(samples)) + line_update(r);
        return s + format(" gen %s train %s tok/s | %.1f s",
                          human_count((double)generated.completion_tokens / generated.seconds).c_str(),
                          human_count((double)r.forward_tokens / r.train_seconds).c_str(), r.seconds);
    }

    // both are the weights that a forward multiplies with, quantized or not, in the same bases
    void after_step(Trainer& t, int64_t step) override {
        if (!reference || config.ref_sync_steps == 0 || step % config.ref_sync_steps) return;
        model_work_follows(*reference, *t.model);
        mix_forward(reference->work.data, t.model->work.data, (float)config.ref_mixup_alpha,
                    (int64_t)reference->work.size, t.model->dev);
    }

    void save(nlohmann::ordered_json& j) const override {
        j["silent_steps"] = silent;
        const std::string rotated = reference ? rotated_text(rotated_linears(*reference)) : "none";
        if (rotated != "none") j["reference_hadamard"] = rotated;
        sampler_save(sampler, j);
    }
    void load(const nlohmann::ordered_json& j) override {
        silent = j.value("silent_steps", 0);
        if (reference)
            model_set_basis(*reference, rotated_linears(reference->config, j.value("reference_hadamard", "none")));
        sampler_load(sampler, j);
    }
    std::vector<NamedArray> arrays() override {
        std::vector<NamedArray> list = sampler_arrays(sampler);
        if (reference) add_array(list, "reference", reference->work);
        return list;
    }

    // a run that cannot learn should say so at once
    bool done() override {
        silent = advantages.zero_std_share > 0.999 ? silent + 1 : 0;
        if (silent == 3)
            fprintf(stderr,
                    "warning: for 3 steps all samples of every prompt got the same reward, so nothing is learnt; see "
                    "completions.jsonl (mean reward %.2f, %.0f%% cut off at --max_completion_length)\n",
                    advantages.reward_mean, 100 * clipped_ratio(samples));
        return false;
    }
};
