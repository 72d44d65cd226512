// Group Relative Policy Optimization (Shao et al. 2024, DeepSeekMath, eq. 3) and its kin: one step is a generation of
// completions, their rewards and advantages, and one or more updates from them.
//
//   advantage x policy loss x average: train/advantages.h, kernels/policy_losses/, train/loss_types.h, where TRL's loss
//   types are combinations of the last two. The pass over the completions: train/policy_pass.cuh.
//
// Batches as in TRL: one batch is prompts_per_step prompts with num_generations completions each. A generation samples
// steps_per_generation batches; an update takes gradient_accumulation_steps of them, so that a generation has
// updates_per_generation slices, each of which is gone over num_iterations times, in turns. A step of the loop is a
// generation with all of its updates.
#pragma once
#include <string>
#include <vector>
#include "kernels/mix.cuh"
#include "train/adaptive_clip.h"
#include "train/advantages.h"
#include "train/dynamic_sampling.cuh"
#include "train/loop.cuh"
#include "train/mismatch.h"
#include "train/policy_pass.cuh"
#include "train/sampler.cuh"
#include "train/self_certainty.cuh"

struct GrpoConfig : PolicyPassConfig {
    int num_generations = 8;
    AdvantageEstimator advantage = advantage_estimators[0];
    RewardScale scale_rewards = RewardScale::group;
    double beta = 0.0;                  // of the KL term, which policy.beta has in the loss
    bool kl_in_reward = false;          // the reward pays it, and not the loss
    double top_entropy_quantile = 1.0;  // share of the tokens, those of the largest entropy, that the loss takes
    int num_iterations = 1, updates_per_generation = 1;
    int dynamic_batches = 1;  // of prompts that a step may sample until the outcomes of each group differ; 1: its own
    ImportanceSampling correction;  // of a sampler that differs
    bool adaptive_clip = false;
    int ref_sync_steps = 0;        // the reference takes its share of the policy every so many steps; 0: never
    double ref_mixup_alpha = 0.6;  // that share
};

// The tokens whose entropy is among the largest `share` of those of completions first ... last - 1 that count (Wang et
// al. 2025, arXiv 2506.01939); the threshold is the quantile as torch and numpy interpolate it. mask [N][n] of those
// completions
inline void high_entropy_tokens(std::vector<std::vector<char>>& mask, const std::vector<std::vector<float>>& entropy,
                                const std::vector<int>& lengths, double share, int first, int last) {
    std::vector<float> all;
    for (int i = first; i < last; i++) all.insert(all.end(), entropy[i].begin(), entropy[i].begin() + lengths[i]);
    mask.resize(entropy.size());
    if (all.empty()) return;
    std::sort(all.begin(), all.end());
    const double at = (1.0 - share) * (double)(all.size() - 1);
    const size_t below = (size_t)at, above = std::min(below + 1, all.size() - 1);
    const double threshold = all[below] + (at - (double)below) * ((double)all[above] - (double)all[below]);
    for (int i = first; i < last; i++)
        for (float e : entropy[i]) mask[i].push_back((double)e >= threshold);
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
    AnswerShares answers;  // of the completions
    Advantages advantages;
    std::vector<TokenMeans> means;  // if a reward needs them
    DynamicSampling dynamic;
    PolicyData data;
    Mismatch mismatch;        // of a sampler that differs
    TokenRows token_entropy;  // of each token, where it is needed before the first update
    double kl_paid = 0.0;     // mean over tokens, where the reward pays it
    double reward_seconds = 0.0;
    RolloutStats generated;
    std::vector<PolicyPass> passes;  // its updates

    int iterations() const override { return config.num_iterations * config.updates_per_generation; }

    void start(Trainer& t) override {
        if (reference) model_copy_work(*reference, *t.model);
    }

    // of this step's samples
    virtual RewardedGroup reward() const {
        return reward_completions(*tok, rewards, batch, samples, config.max_completion_length, means, config.comm);
    }

    // G completions of each of these prompts; number: that of the first one in the step
    std::vector<Completion> sample(const StepContext& c, const std::vector<std::vector<int>>& asked, int number) {
        RolloutStats stats;
        rollout.first_prompt = number;
        std::vector<Completion> done =
            rollout_of_ranks(c.comm, sampler.model(), *state, asked, config.num_generations, rollout, &stats,
                             [&](int, int) { return !(c.stop && c.stop()); });
        generated.prompt_tokens += stats.prompt_tokens;
        generated.completion_tokens += stats.completion_tokens;
        generated.seconds += stats.seconds;
        return done;
    }

    // other prompts in place of those whose completions are all right or all wrong. False: asked to stop
    bool redraw(const StepContext& c) {
        Redraw r{config.num_generations, config.dynamic_batches, nullptr, nullptr};
        r.sample = [&](const std::vector<std::vector<int>>& asked, int number) { return sample(c, asked, number); };
        r.outcome = [&, outcome = outcome_rewards(rewards)](const std::vector<Example>& e,
                                                            const std::vector<Completion>& done) {
            return completion_outcomes(*tok, outcome, e, done, config.max_completion_length, c.comm);
        };
        const bool whole = redraw_groups(batch, samples, r, c, dynamic);
        for (size_t i = 0; i < batch.size(); i++) prompts[i] = batch[i].prompt.tokens;
        return whole;
    }

    bool prepare(Trainer& t, const StepContext& c, LoopState& run) override {
        batch = c.batch;
        prompts.clear();
        for (const Example& e : batch) prompts.push_back(e.prompt.tokens);
        rollout.step = (uint32_t)c.step;
        rollout.pass = sampler_begin(sampler, *t.model, c.step);
        generated = RolloutStats();
        samples = sample(c, prompts, 0);
        bool stopped = step_stop(c);
        if (!stopped && config.dynamic_batches > 1) stopped = !redraw(c);
        sampler_end(sampler);
        if (stopped) return false;
        run.generated.prompt_tokens += generated.prompt_tokens;
        run.generated.completion_tokens += generated.completion_tokens;
        run.generated.seconds += generated.seconds;
        config.comm = c.comm;
        config.pass = c.pass;
        passes.clear();
        if (rewards.traits() & (REWARD_ENTROPY | REWARD_SELF_CERTAINTY))
            means = token_means(t, c.pass, prompts, samples, config.temperature, config.micro_batch_tokens, c.comm);
        const double asked = wall_seconds();
        rewarded = reward();
        answers = answer_shares(rewards, batch, samples, rewarded, config.max_completion_length);
        reward_seconds = wall_seconds() - asked;
        if (rewards.has_own() && step_stop(c)) return false;
        assess(t);
        return true;
    }

    // What the updates need to know of the completions before the first of them
    void assess(Trainer& t) {
        data = PolicyData(), token_entropy.clear();
        if (sampler.differs() || config.top_entropy_quantile < 1.0) {
            CompletionScores own = completion_scores(t, *t.model, config.pass, prompts, samples, config);
            gather_completions(config.comm, own.logp, samples);
            gather_completions(config.comm, own.entropy, samples);
            if (sampler.differs()) correct(own);
            if (config.top_entropy_quantile < 1.0) keep_high_entropy(own.entropy);
            token_entropy = std::move(own.entropy);
        }
        std::vector<std::vector<float>> payments;
        if (config.beta != 0.0) payments = refer(t);
        std::vector<int> lengths;
        for (const Completion& s : samples) lengths.push_back((int)s.tokens.size());
        advantages = compute_advantages(rewarded.total, config.num_generations, config.advantage, config.scale_rewards,
                                        lengths, payments);
        data.advantages = advantages.a;
        data.token_advantages = advantages.tokens;
    }

    // The reference's log-probabilities, for the loss or at once: what the reward pays [N][n], if it does
    std::vector<std::vector<float>> refer(Trainer& t) {
        Pass base;
        base.adapter = false;
        data.ref =
            completion_logps(t, reference ? *reference : *t.model, reference ? Pass() : base, prompts, samples, config);
        gather_completions(config.comm, data.ref, samples);
        if (!config.kl_in_reward) return {};
        std::vector<std::vector<float>> payments(samples.size());
        double tokens = 0.0;
        kl_paid = 0.0;
        for (size_t i = 0; i < samples.size(); i++)
            for (size_t j = 0; j < samples[i].tokens.size(); j++) {
                const double kl = kl_estimate(config.policy.kl, old_logp(i, j), data.ref[i][j]).value;
                payments[i].push_back((float)(-config.beta * kl));
                kl_paid += kl, tokens += 1.0;
            }
        kl_paid /= std::max(tokens, 1.0);
        data.ref.clear();
        return payments;
    }

    float old_logp(size_t i, size_t j) const { return data.old.empty() ? samples[i].logps[j] : data.old[i][j]; }

    // Sampler and trainer differ: measured raw, then corrected. Completions that do not count are left out
    void correct(const CompletionScores& own) {
        TokenRows sampled, trained = own.logp, entropy = own.entropy;
        for (size_t i = 0; i < samples.size(); i++) {
            const bool counts = !config.mask_truncated || samples[i].finished;
            if (!counts) trained[i].clear(), entropy[i].clear();
            sampled.push_back(counts ? samples[i].logps : std::vector<float>());
        }
        data.old = own.logp;
        data.drift = sampler_divergence(sampled, trained);
        const ImportanceWeights w = importance_weights(config.correction, sampled, trained);
        mismatch = measure_mismatch(sampled, trained, entropy, config.correction, w);
        if (!config.correction.mode.corrects) return;
        if (policy_loss_traits(config.policy.kind).of_sequence) {
            data.log_correction = w.log_weight;
            return;
        }
        for (const std::vector<double>& row : w.weight) data.factor.emplace_back(row.begin(), row.end());
        if (!config.adaptive_clip) return;
        for (const auto& row : clip_ranges(sampled, trained, 1.0 - config.policy.low, config.policy.high - 1.0,
                                           config.correction.clip_max)) {
            data.low.emplace_back(), data.high.emplace_back();
            for (const ClipRange& r : row)
                data.low.back().push_back((float)r.low), data.high.back().push_back((float)r.high);
        }
    }

    // completions of update u: [first, last)
    std::pair<int, int> slice(int u) const {
        const int n = (int)samples.size() / config.updates_per_generation, s = u % config.updates_per_generation;
        return {s * n, (s + 1) * n};
    }

    void keep_high_entropy(const std::vector<std::vector<float>>& entropy) {
        const std::vector<int> lengths = counted_lengths(samples, config);
        for (int u = 0; u < config.updates_per_generation; u++) {
            const auto [first, last] = slice(u);
            high_entropy_tokens(data.in_bonus, entropy, lengths, config.top_entropy_quantile, first, last);
        }
        const bool corrected = !data.factor.empty();
        data.factor.resize(samples.size());
        for (size_t i = 0; i < samples.size(); i++) {
            if (!corrected) data.factor[i].assign(data.in_bonus[i].size(), 1.0f);
            for (size_t j = 0; j < data.factor[i].size(); j++) data.factor[i][j] *= data.in_bonus[i][j] ? 1.0f : 0.0f;
        }
    }

    StepLoss loss(Trainer& t, const StepContext& c, bool gradient) override {
        config.stop = c.stop;
        const auto [first, last] = slice(c.update);
        passes.resize(c.update + 1);
        const PolicyPass& pass = passes.back() = policy_pass(t, prompts, samples, data, config, gradient, first, last);
        return {pass.loss, pass.forward_tokens, pass.abandoned};
    }

    void metrics(nlohmann::ordered_json& j) const override {
        j["reward"] = advantages.reward_mean;
        j["reward_std"] = advantages.reward_std;
        j["reward_group_std"] = advantages.reward_group_std;
        j["frac_reward_zero_std"] = advantages.zero_std_share;
        reward_metrics(j, rewards, rewarded);
        length_metrics(j, samples);
        loop_ratios(j, samples, rewarded.texts);
        answer_metrics(j, answers);
        if (config.dynamic_batches > 1) dynamic_sampling_metrics(j, dynamic);
        const PolicyPass pass = policy_pass_mean(passes), &first = passes.front();
        j["entropy"] = pass.entropy;
        if (config.beta > 0.0) j["kl"] = config.kl_in_reward ? kl_paid : pass.kl;
        loss_metrics(j, pass);
        sampler_metrics(sampler, j);
        if (sampler.differs()) return mismatch_metrics(j, mismatch);
        j["sampling/sampling_logp_difference/mean"] = first.logp_difference_mean;
        j["sampling/sampling_logp_difference/max"] = first.logp_difference_max;
        j["sampling/importance_sampling_ratio/min"] = first.ratio_min;
        j["sampling/importance_sampling_ratio/mean"] = first.ratio_mean;
        j["sampling/importance_sampling_ratio/max"] = first.ratio_max;
    }

    // what TRL logs of each policy loss
    void loss_metrics(nlohmann::ordered_json& j, const PolicyPass& pass) const {
        const PolicyLoss kind = config.policy.kind;
        if (kind == PolicyLoss::clip || kind == PolicyLoss::trust_band) {
            j["clip_ratio/low_mean"] = pass.clip_low;
            j["clip_ratio/low_min"] = pass.clip_low_min;
            j["clip_ratio/high_mean"] = pass.clip_high;
            j["clip_ratio/high_max"] = pass.clip_high_max;
            j["clip_ratio/region_mean"] = pass.clip_low + pass.clip_high;
        }
        if (kind == PolicyLoss::cispo) j["cispo_clip_ratio"] = pass.clip_high;
        if (kind == PolicyLoss::vespo) j["vespo/phi_seq_mean"] = pass.coefficient;
        if (config.policy.drop_above < 1e29) j["off_policy_mask_ratio"] = pass.dropped;
        if (config.entropy_coef != 0.0) {
            j["entropy_coef"] = config.entropy_coef;
            j["policy_loss"] = pass.loss - pass.bonus;
        }
    }

    void timings(nlohmann::ordered_json& j, const StepReport& r) const override {
        j["timing_s/gen"] = generated.seconds;
        j["timing_s/reward"] = reward_seconds;
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

    void token_samples(RunDir& run, int64_t step) const override {
        const TokenSamples s{*tok, batch, samples, rewards, rewarded, data, token_entropy, config.num_generations};
        run.samples.line(json_line(token_samples_line(s, step)));
    }

    void watched(WatchedStep& s, const StepReport&) const override {
        watched_samples(s, samples);
        s.answered = answers.found, s.declared = answers.declared, s.lenient = answers.lenient;
        s.right = right_share(rewards, rewarded);
        s.reward = advantages.reward_mean;
        watched_rewards(s, rewarded.total, config.num_generations);
        int signal = 0;
        for (size_t i = 0; i < advantages.a.size(); i++) {
            bool any = advantages.a[i] != 0.0f;
            if (!advantages.tokens.empty())
                for (float a : advantages.tokens[i]) any = any || a != 0.0f;
            signal += any;
        }
        s.signal = (double)signal / (double)std::max<size_t>(advantages.a.size(), 1);
        const PolicyPass pass = policy_pass_mean(passes);
        if (pass.tokens > 0) s.entropy = pass.entropy;  // else all are masked, and of an entropy nothing is known
        if (config.beta > 0.0) s.kl = config.kl_in_reward ? kl_paid : pass.kl;
    }

    std::string line(const StepReport& r) const override {
        const SampleLengths lengths = sample_length_statistics(samples, false);
        const PolicyPass pass = policy_pass_mean(passes);
        std::string s =
            line_step(r) + format(" reward %.3f +- %.3f | loss %+.4f | entropy %.3f |", advantages.reward_mean,
                                  advantages.reward_group_std, pass.loss, pass.entropy);
        if (config.beta > 0.0) s += format(" kl %.4f |", config.kl_in_reward ? kl_paid : pass.kl);
        if (sampler.differs() && mismatch.tokens)
            s += format(" off %.3f ess %.2f |", mismatch.difference.mean(), mismatch.sequence_sample_size);
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
        const std::string rotated = reference ? rotated_text(rotated_linears(*reference)) : "none";
        if (rotated != "none") j["reference_hadamard"] = rotated;
        sampler_save(sampler, j);
    }
    void load(const nlohmann::ordered_json& j) override {
        if (reference)
            model_set_basis(*reference, rotated_linears(reference->config, j.value("reference_hadamard", "none")));
        sampler_load(sampler, j);
    }
    std::vector<NamedArray> arrays() override {
        std::vector<NamedArray> list = sampler_arrays(sampler);
        if (reference) add_array(list, "reference", reference->work);
        return list;
    }
};
