// From the options to the loss of grpo, and which combinations of them are refused.
#pragma once
#include "../grpo.cuh"
#include "../runtime/options.h"

inline LossType loss_type_of(const Options& o) {
    LossType t = loss_type_named(o.loss_type);
    if (o.policy_loss != "auto") t.loss = policy_loss_named(o.policy_loss);
    if (o.importance_sampling_level != "auto") t.sequence = o.importance_sampling_level == "sequence";
    if (o.loss_aggregation != "auto") t.aggregation = loss_aggregation_named(o.loss_aggregation);
    return t;
}

inline PolicyConfig policy_config(const Options& o) {
    const LossType t = loss_type_of(o);
    PolicyConfig c;
    c.kind = t.loss, c.sequence = t.sequence;
    c.low = 1.0 - o.epsilon;
    c.high = t.loss == PolicyLoss::cispo ? o.epsilon_high : 1.0 + o.epsilon_high;
    if (o.delta > 0.0) c.delta = o.delta;
    c.sapo_temperature_pos = o.sapo_temperature_pos, c.sapo_temperature_neg = o.sapo_temperature_neg;
    c.vespo_k_pos = o.vespo_k_pos, c.vespo_lambda_pos = o.vespo_lambda_pos;
    c.vespo_k_neg = o.vespo_k_neg, c.vespo_lambda_neg = o.vespo_lambda_neg;
    c.beta = o.kl_in_reward ? 0.0 : o.beta;
    c.kl = o.kl_estimator == "k1" ? KlEstimator::k1 : o.kl_estimator == "k2" ? KlEstimator::k2 : KlEstimator::k3;
    c.kl_times_ratio = o.use_bias_correction_kl;
    if (o.off_policy_mask_threshold > 0.0) c.drop_above = o.off_policy_mask_threshold;
    return c;
}

inline ImportanceSampling importance_sampling(const Options& o) {
    return {importance_mode_named(o.importance_sampling_mode), o.importance_sampling_clip_min,
            o.importance_sampling_clip_max};
}

inline GrpoConfig grpo_config(const Options& o) {
    GrpoConfig c;
    c.policy = policy_config(o);
    c.aggregation = loss_type_of(o).aggregation;
    c.num_generations = o.num_generations;
    c.advantage = advantage_estimator(o.advantage_estimator);
    c.scale_rewards = o.scale_rewards == "group"   ? RewardScale::group
                      : o.scale_rewards == "batch" ? RewardScale::batch
                      : o.scale_rewards == "none"  ? RewardScale::none
                                                   : c.advantage.scale;
    c.beta = o.beta, c.kl_in_reward = o.kl_in_reward;
    c.entropy_coef = o.entropy_coef, c.top_entropy_quantile = o.top_entropy_quantile;
    c.correction = importance_sampling(o);
    c.adaptive_clip = o.adaptive_clip;
    c.num_iterations = o.num_iterations;
    c.updates_per_generation = o.steps_per_generation / o.gradient_accumulation_steps;
    if (o.sync_ref_model) c.ref_sync_steps = o.ref_model_sync_steps, c.ref_mixup_alpha = o.ref_model_mixup_alpha;
    c.accumulation_steps = o.gradient_accumulation_steps;
    c.max_completion_length = o.max_completion_length;
    c.mask_truncated = o.mask_truncated_completions;
    if (o.dynamic_sampling) c.dynamic_batches = o.dynamic_sampling_max_batches;
    c.temperature = (float)o.temperature;
    c.micro_batch_tokens = o.micro_batch_tokens;
    return c;
}

// ---------------------------------------------------------------------------------------------------------------------
// what is refused

// Options that the policy loss does not read: what a run's config.json repeats is no wish
inline void check_loss_settings(const Options& o, const LossType& t) {
    const Options normal;
    const PolicyLoss kind = t.loss;
    const bool clips = kind == PolicyLoss::clip || kind == PolicyLoss::trust_band, sapo = kind == PolicyLoss::sapo,
               vespo = kind == PolicyLoss::vespo, soft = sapo || vespo;
    const std::pair<const char*, bool> unused[] = {
        {"epsilon", !clips && o.epsilon != normal.epsilon},
        {"epsilon_high", soft && o.epsilon_high != o.epsilon},
        {"delta", !clips && o.delta > 0.0},
        {"sapo_temperature_pos", !sapo && o.sapo_temperature_pos != normal.sapo_temperature_pos},
        {"sapo_temperature_neg", !sapo && o.sapo_temperature_neg != normal.sapo_temperature_neg},
        {"vespo_k_pos", !vespo && o.vespo_k_pos != normal.vespo_k_pos},
        {"vespo_lambda_pos", !vespo && o.vespo_lambda_pos != normal.vespo_lambda_pos},
        {"vespo_k_neg", !vespo && o.vespo_k_neg != normal.vespo_k_neg},
        {"vespo_lambda_neg", !vespo && o.vespo_lambda_neg != normal.vespo_lambda_neg}};
    for (const auto& [name, given] : unused)
        if (given)
            fail_usage("--%s is not read by policy loss %s (--loss_type %s); leave it out", name,
                       policy_loss_name(kind), o.loss_type.c_str());
    if (vespo && t.sequence)
        fail_usage(
            "--importance_sampling_level sequence: vespo takes the weight of the whole sequence by itself; leave it "
            "out");
    if (kind == PolicyLoss::trust_band && !t.sequence)
        fail_usage("--importance_sampling_level token: trust_band clips the ratio of a sequence; leave it out");
}

inline void check_kl_options(const Options& o, const LossType& t) {
    const Options normal;
    const char* alone = o.kl_in_reward                          ? "kl_in_reward"
                        : o.use_bias_correction_kl              ? "use_bias_correction_kl"
                        : o.kl_estimator != normal.kl_estimator ? "kl_estimator"
                                                                : nullptr;
    if (alone && o.beta == 0.0) fail_usage("--%s: there is no KL term; give --beta above 0", alone);
    if (o.kl_in_reward && o.use_bias_correction_kl)
        fail_usage(
            "--use_bias_correction_kl belongs to a KL term in the loss, and --kl_in_reward pays it in the reward");
    if (o.kl_in_reward && t.sequence && advantage_estimator(o.advantage_estimator).of_tokens)
        fail_usage(
            "--advantage_estimator %s with --kl_in_reward gives each token an advantage of its own, and the ratio is "
            "the "
            "sequence's; take --importance_sampling_level token",
            o.advantage_estimator.c_str());
}

inline void grpo_check_loss(const Options& o) {
    const LossType t = loss_type_of(o);
    check_loss_settings(o, t);
    check_kl_options(o, t);
    if (o.steps_per_generation % o.gradient_accumulation_steps)
        fail_usage(
            "--steps_per_generation %d is not a multiple of --gradient_accumulation_steps %d: an update would have "
            "batches of two generations; change one",
            o.steps_per_generation, o.gradient_accumulation_steps);
    const Options normal;
    const bool bounds = o.importance_sampling_clip_min != normal.importance_sampling_clip_min ||
                        o.importance_sampling_clip_max != normal.importance_sampling_clip_max;
    importance_sampling_check(importance_sampling(o), bounds, policy_loss_name(t.loss), o.adaptive_clip,
                              o.num_iterations * (o.steps_per_generation / o.gradient_accumulation_steps));
    if (o.scale_rewards == "group" && advantage_estimator(o.advantage_estimator).of_tokens)
        fail_usage("--scale_rewards group: advantages of %s are whitened over the batch; take batch or none",
                   o.advantage_estimator.c_str());
}
