// Each option of the loss, of advantages and of the sampler's correction, with a tiny model and one start: a step whose result
// differs from the default's in the way that the option says. What the losses are in numbers: test_policy_loss.cpp.
#include <gtest/gtest.h>
#include <cmath>
#include <set>
#include "../commands/sampler_options.cuh"
#include "test_device.h"
#include "tiny_model.h"

static constexpr int G = 6, COMPLETION = 12;

// rewards that differ within a group, from the tokens; right or wrong
struct TinyGrpo : GrpoObjective {
    RewardedGroup reward() const override {
        RewardedGroup r;
        for (const Completion& c : samples) {
            int sum = 0;
            for (int t : c.tokens) sum += t;
            r.total.push_back(sum % 3 == 0 ? 1.0f : 0.0f);
            r.texts.push_back("");
        }
        return r;
    }
};

struct Outcome {
    std::vector<float> masters;
    std::vector<PolicyPass> passes;
    Advantages advantages;
    PolicyData data;
    Mismatch mismatch;
    nlohmann::ordered_json metrics;
    std::vector<Completion> samples;
    double grad_norm = 0.0;  // of the first update
};

// `steps` steps with these flags
static Outcome run(std::vector<std::string> flags, int steps = 1, double rate = 2e-3) {
    flags.insert(flags.begin(), {"grpo", "--max_completion_length", std::to_string(COMPLETION), "--num_generations",
                                 std::to_string(G), "--micro_batch_tokens", "512", "--prompts_per_step", "4"});
    const Options o = parse_options(flags);
    grpo_check_loss(o);
    Model m, reference;
    m.dev = model_device();
    model_allocate(m, tiny_config(1));
    model_init_random(m, 7);
    for (const ParamTensor& t : m.tensors)
        for (int64_t i = 0; i < t.count() && is_weight(t); i++) m.master[t.offset + i] *= 6.0f;
    model_quantize(m, weight_rules(o), false);
    model_refresh(m);
    Trainer t;
    trainer_init(t, m, 512, false, OptimizerConfig(), {}, o.entropy_coef != 0.0);
    TinyGrpo objective;
    RolloutState rollouts;
    objective.config = grpo_config(o);
    objective.sampler.config = sampler_config(o);
    objective.state = &rollouts;
    RolloutConfig& r = objective.rollout;
    r.max_completion_length = COMPLETION, r.stop_tokens = {7, 8}, r.n_allowed = 101, r.seed = 11;
    StepContext context;
    for (int p = 0; p < 4 * o.steps_per_generation; p++) {
        Example e;
        e.prompt.tokens = {5 + p, 9, 3 + 2 * p, 40};
        context.batch.push_back(e);
    }
    sampler_allocate(objective.sampler, m, rollout_shape((int)context.batch.size(), G, 4, r), 64);
    if (objective.sampler.own) objective.state = &objective.sampler.rollouts;
    if (o.beta > 0.0) {
        model_allocate_reference(reference, m), model_copy_work(reference, m), objective.reference = &reference;
        for (size_t i = 0; i < reference.work.size; i += 3)
            reference.work[i] = (floatX)(1.05f * (float)reference.work[i]);
    }
    Outcome out;
    LoopState state;
    for (context.step = 0; context.step < steps; context.step++) {
        EXPECT_TRUE(objective.prepare(t, context, state));
        for (context.update = 0; context.update < objective.iterations(); context.update++) {
            const OptimizerResult step = optimizer_step(
                t, rate, [&](bool gradient) { return objective.loss(t, context, gradient); }, Pass());
            if (context.step == 0 && context.update == 0) out.grad_norm = step.grad_norm;
        }
    }
    objective.metrics(out.metrics);
    out.masters.assign(m.master.data, m.master.data + m.num_params);
    out.passes = objective.passes, out.advantages = objective.advantages, out.data = objective.data;
    out.mismatch = objective.mismatch, out.samples = objective.samples;
    return out;
}

static const Outcome& normal() {
    static const Outcome o = run({});
    return o;
}

static double distance(const Outcome& a, const Outcome& b) {
    double sum = 0.0, size = 0.0;
    for (size_t i = 0; i < a.masters.size(); i++) {
        sum += (a.masters[i] - b.masters[i]) * (double)(a.masters[i] - b.masters[i]);
        size += a.masters[i] * (double)a.masters[i];
    }
    return std::sqrt(sum / size);
}

TEST(GrpoOptions, TheDefaultIsOneFunction) {
    EXPECT_EQ(normal().passes.size(), 1u);
    EXPECT_EQ(normal().passes[0].logp_difference_max, 0.0);
    EXPECT_EQ(normal().metrics["sampling/importance_sampling_ratio/min"], 1.0);
    EXPECT_EQ(normal().metrics["sampling/importance_sampling_ratio/max"], 1.0);
    EXPECT_EQ(distance(run({}), normal()), 0.0);
    // asked for where nothing differs: exactly nothing
    for (const char* mode : {"none", "token_mask", "sequence_truncate"})
        EXPECT_EQ(distance(run({"--importance_sampling_mode", mode}), normal()), 0.0) << mode;
    EXPECT_NE(importance_sampling_note({importance_mode_named("token_mask"), 0, 2}, true, false, false)
                  .find("every weight is 1"),
              std::string::npos);
}

// At the first update the ratio is 1, where clip, cispo and sapo have one gradient; later each has its own
TEST(GrpoOptions, LossTypes) {
    const std::vector<std::vector<std::string>> types = {{"--loss_type", "dapo"},
                                                         {"--loss_type", "grpo"},
                                                         {"--loss_type", "dr_grpo"},
                                                         {"--loss_type", "cispo"},
                                                         {"--loss_type", "sapo"},
                                                         {"--loss_type", "gspo"},
                                                         {"--loss_type", "luspo"},
                                                         {"--loss_type", "vespo"},
                                                         {"--loss_type", "tbpo"},
                                                         {"--loss_type", "dapo", "--epsilon", "0.01"},
                                                         {"--loss_type", "dapo", "--delta", "1.02"},
                                                         {"--loss_type", "dapo", "--epsilon_high", "0.01"}};
    std::vector<Outcome> once, thrice;
    for (std::vector<std::string> flags : types) {
        once.push_back(run(flags));
        flags.insert(flags.end(), {"--num_iterations", "3"});
        thrice.push_back(run(flags, 1, 1e-2));  // far enough to be clipped on either side
        EXPECT_EQ(thrice.back().passes.size(), 3u);
        EXPECT_GT(thrice.back().passes[2].logp_difference_max, 0.0);
    }
    const double dapo = once[0].grad_norm, grpo = once[1].grad_norm;
    EXPECT_NEAR(once[3].grad_norm, dapo, 1e-5 * dapo) << "cispo";
    EXPECT_NEAR(once[4].grad_norm, grpo, 1e-5 * grpo) << "sapo averages as grpo";
    EXPECT_NEAR(once[5].grad_norm, grpo, 1e-2 * grpo) << "gspo: a sequence's tokens share its ratio";
    EXPECT_NEAR(once[7].grad_norm, dapo, 1e-5 * dapo) << "vespo: phi(1) = 1";
    EXPECT_GT(std::fabs(grpo - dapo), 1e-3 * dapo);
    for (size_t a = 0; a < types.size(); a++)
        for (size_t b = 0; b < a; b++)
            EXPECT_GT(distance(thrice[a], thrice[b]), a == 8 && b == 5 ? -1.0 : 1e-7)
                << join_words(types[a], " ") << " and " << join_words(types[b], " ");
}

TEST(GrpoOptions, Advantages) {
    const Outcome &group = normal(), rloo = run({"--advantage_estimator", "rloo"}),
                  plain = run({"--scale_rewards", "none"});
    for (size_t i = 0; i < plain.advantages.a.size(); i++)
        EXPECT_NEAR(rloo.advantages.a[i], plain.advantages.a[i] * G / (G - 1), 1e-6);
    EXPECT_NE(group.advantages.a, plain.advantages.a);
    for (const char* name : {"batch", "reinforce_plus_plus", "reinforce_plus_plus_baseline"}) {
        const Outcome o = run({"--advantage_estimator", name});
        double mean = 0.0, tokens = 0.0;
        for (size_t i = 0; i < o.samples.size(); i++) {
            const double times = std::string(name) == "batch" ? 1.0 : (double)o.samples[i].tokens.size();
            mean += times * o.advantages.a[i], tokens += times;
        }
        EXPECT_NEAR(mean / tokens, 0.0, 1e-6) << name;
        EXPECT_GT(distance(o, group), 1e-7) << name;
    }
}

TEST(GrpoOptions, Batches) {
    // a generation of two batches: two updates, each from its half, the second no longer on policy
    const Outcome two = run({"--steps_per_generation", "2"});
    ASSERT_EQ(two.passes.size(), 2u);
    EXPECT_EQ(two.samples.size(), 2u * 4 * G);
    int64_t tokens = 0;
    for (const Completion& c : two.samples) tokens += (int64_t)c.tokens.size();
    EXPECT_EQ(two.passes[0].tokens + two.passes[1].tokens, tokens);
    EXPECT_EQ(two.passes[0].logp_difference_max, 0.0);
    EXPECT_GT(two.passes[1].logp_difference_max, 0.0);
    EXPECT_NEAR(two.metrics["entropy"], (two.passes[0].entropy + two.passes[1].entropy) / 2, 1e-12);
    // both in one update
    const Outcome one = run({"--gradient_accumulation_steps", "2"});
    ASSERT_EQ(one.passes.size(), 1u);
    EXPECT_EQ(one.passes[0].tokens, tokens);
    EXPECT_EQ(one.passes[0].logp_difference_max, 0.0);
    // twice over the generation, in turns
    const Outcome four = run({"--steps_per_generation", "2", "--num_iterations", "2"});
    ASSERT_EQ(four.passes.size(), 4u);
    EXPECT_EQ(four.passes[2].tokens, four.passes[0].tokens);
    EXPECT_GT(four.passes[2].logp_difference_max, 0.0);
}

TEST(GrpoOptions, Kl) {
    const Outcome k3 = run({"--beta", "0.5"}), k2 = run({"--beta", "0.5", "--kl_estimator", "k2"}),
                  k1 = run({"--beta", "0.5", "--kl_estimator", "k1"});
    EXPECT_GT((double)k3.metrics["kl"], 1e-4);
    EXPECT_GT(distance(k3, normal()), 1e-7);
    EXPECT_NE(k3.metrics["kl"], k2.metrics["kl"]);
    EXPECT_GT(distance(k1, k2), 1e-7);
    // paid in the reward: no term in the loss, and completions that left the reference have less advantage
    const Outcome paid = run({"--beta", "0.5", "--kl_in_reward", "--scale_rewards", "none", "--kl_estimator", "k2"}),
                  free = run({"--scale_rewards", "none"});
    EXPECT_GT((double)paid.metrics["kl"], 1e-4);
    EXPECT_EQ(paid.passes[0].kl, 0.0);
    EXPECT_EQ(paid.metrics["reward"], free.metrics["reward"]);
    EXPECT_NE(paid.advantages.a, free.advantages.a);
    const Outcome by_token = run({"--beta", "0.5", "--kl_in_reward", "--advantage_estimator", "reinforce_plus_plus"});
    EXPECT_EQ(by_token.data.token_advantages.size(), by_token.samples.size());
    EXPECT_NE(by_token.data.token_advantages[0].front(), by_token.data.token_advantages[0].back());
    // times the ratio: the same while that is 1
    const Outcome corrected = run({"--beta", "0.5", "--use_bias_correction_kl"});
    EXPECT_GT(distance(corrected, k3), 1e-7) << "its gradient has one term more";
    EXPECT_NEAR((double)corrected.metrics["kl"], (double)k3.metrics["kl"], 1e-9);
}

TEST(GrpoOptions, EntropyBonusAndHighEntropyTokens) {
    const Outcome more = run({"--entropy_coef", "5"}, 4), less = run({"--entropy_coef", "-5"}, 4), none = run({}, 4);
    EXPECT_GT(more.passes[0].entropy, none.passes[0].entropy);
    EXPECT_LT(less.passes[0].entropy, none.passes[0].entropy);
    const Outcome first = run({"--entropy_coef", "0.1"});
    EXPECT_NEAR(first.passes[0].loss, normal().passes[0].loss - 0.1 * normal().passes[0].entropy, 1e-6);
    EXPECT_NEAR((double)first.metrics["policy_loss"], normal().passes[0].loss, 1e-6);
    const Outcome top = run({"--top_entropy_quantile", "0.25"});
    double kept = 0.0, tokens = 0.0;
    for (const auto& row : top.data.factor)
        for (float f : row) kept += f, tokens += 1.0;
    EXPECT_NEAR(kept / tokens, 0.25, 0.02);
    EXPECT_GT(distance(top, normal()), 1e-7);
    EXPECT_EQ(top.passes[0].tokens, normal().passes[0].tokens) << "the others stay in the denominator";
    const Outcome both =
        run({"--top_entropy_quantile", "0.25", "--entropy_coef", "0.1", "--steps_per_generation", "2"});
    ASSERT_EQ(both.passes.size(), 2u);
    EXPECT_NE(both.passes[1].bonus, 0.0) << "of the second update's own tokens";
}

TEST(GrpoOptions, OffPolicyMask) {
    const std::vector<std::string> four = {"--num_iterations", "4"};
    const Outcome all = run(four, 1, 2e-2),
                  masked = run({"--num_iterations", "4", "--off_policy_mask_threshold", "0.01"}, 1, 2e-2);
    EXPECT_EQ(masked.passes[0].dropped, 0.0);
    EXPECT_GT((double)masked.metrics["off_policy_mask_ratio"], 0.0);
    EXPECT_FALSE(all.metrics.contains("off_policy_mask_ratio"));
    EXPECT_GT(distance(all, masked), 1e-7);
}

TEST(GrpoOptions, CorrectionsOfASamplerThatDiffers) {
    const std::vector<std::string> differs = {"--rollout_weights", "int2:g32:asym", "--importance_sampling_clip_max",
                                              "1.05"};
    auto with = [&](std::vector<std::string> more) {
        std::vector<std::string> flags = differs;
        if (more[1] == "none") flags.resize(2);
        flags.insert(flags.end(), more.begin(), more.end());
        return run(flags);
    };
    std::set<std::vector<float>> results;
    for (const char* mode : {"none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"}) {
        const Outcome o = with({"--importance_sampling_mode", mode});
        EXPECT_GT(o.mismatch.difference.most, 0.01) << mode;
        EXPECT_LT(o.mismatch.token_sample_size, 1.0) << mode;
        EXPECT_EQ(o.passes[0].ratio_min, 1.0) << mode << ": old is the trainer's";
        EXPECT_EQ(o.passes[0].ratio_max, 1.0);
        EXPECT_TRUE(results.insert(o.masters).second) << mode;
        EXPECT_EQ(o.data.factor.empty(), std::string(mode) == "none");
        bool zeros = false, capped = false;
        for (const auto& row : o.data.factor)
            for (float f : row) zeros |= f == 0.0f, capped |= f == 1.05f;
        const std::string name = mode;
        EXPECT_EQ(zeros, name.find("mask") != std::string::npos) << mode;
        EXPECT_TRUE(capped || name.find("truncate") == std::string::npos) << mode;
        EXPECT_EQ(o.metrics.contains("rollout_corr/rollout_is_mean"), name != "none");
        EXPECT_TRUE(o.metrics.contains("rollout_corr/k3_kl"));
    }
    // the loss of the whole sequence takes the correction into its weight
    const Outcome vespo = with({"--loss_type", "vespo"});
    EXPECT_TRUE(vespo.data.factor.empty());
    EXPECT_EQ(vespo.data.log_correction.size(), vespo.samples.size());
    // a wider clip for what was truncated
    const Outcome adaptive = with({"--adaptive_clip", "true", "--num_iterations", "2"});
    int wider = 0;
    for (size_t i = 0; i < adaptive.data.high.size(); i++)
        for (size_t t = 0; t < adaptive.data.high[i].size(); t++) {
            wider += adaptive.data.high[i][t] > 1.21f;
            if (adaptive.data.high[i][t] > 1.21f) { EXPECT_EQ(adaptive.data.factor[i][t], 1.05f); }
        }
    EXPECT_GT(wider, 0);
}
