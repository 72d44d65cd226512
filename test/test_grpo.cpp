// GRPO's properties: advantages, the loss of a token and its gradient, the weights of completions; and, with a tiny
// random quantized model, that sampler and trainer agree to the bit, that cutting the batch changes rounding alone,
// that a step that is not finite is skipped, and that code flips are counted.
#include <gtest/gtest.h>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>
#include <vector>
#if defined(_OPENMP)
#include <omp.h>
#endif
#include "../eval/scores.h"
#include "../formats/checkpoint.h"
#include "../grpo.cuh"
#include "test_device.h"
#include "tiny_model.h"

// ---------------------------------------------------------------------------------------------------------------------
// learning rate

TEST(Schedule, Rates) {
    const double p = 2e-5;
    for (Schedule s : {Schedule::linear, Schedule::cosine, Schedule::constant}) {
        EXPECT_EQ(schedule_rate(s, p, 0, 10, 100), 0.0);
        EXPECT_DOUBLE_EQ(schedule_rate(s, p, 5, 10, 100), p / 2);
        EXPECT_DOUBLE_EQ(schedule_rate(s, p, 10, 10, 100), p);
        EXPECT_DOUBLE_EQ(schedule_rate(s, p, 0, 0, 100), p);
        EXPECT_DOUBLE_EQ(schedule_rate(s, p, 3, 3, 3), p);  // nothing but warm-up: the peak follows
    }
    EXPECT_DOUBLE_EQ(schedule_rate(Schedule::linear, p, 55, 10, 100), p / 2);
    EXPECT_NEAR(schedule_rate(Schedule::linear, p, 100, 10, 100), 0, 1e-18);
    EXPECT_NEAR(schedule_rate(Schedule::linear, p, 120, 10, 100), 0, 1e-18);
    EXPECT_NEAR(schedule_rate(Schedule::cosine, p, 55, 10, 100), p / 2, 1e-18);
    EXPECT_NEAR(schedule_rate(Schedule::cosine, p, 40, 10, 100), p * 0.75, 1e-18);  // cos(60 degrees)
    EXPECT_NEAR(schedule_rate(Schedule::cosine, p, 100, 10, 100), 0, 1e-18);
    EXPECT_DOUBLE_EQ(schedule_rate(Schedule::constant, p, 99, 10, 100), p);
}

// ---------------------------------------------------------------------------------------------------------------------
// a tiny model

static constexpr int VOCABULARY = 101, ALLOWED = 97;

// simulated kernels are slower: shorter completions, and a part of the cases
#if defined(TRAIN_QRL_SIMT)
static constexpr bool SIMULATED = true;
#else
static constexpr bool SIMULATED = false;
#endif
static constexpr int COMPLETION = SIMULATED ? 9 : 14;

// random weights, large enough for a policy with preferences
static void tiny_model(Model& m, const char* weights, ScaleMode mode = ScaleMode::dynamic,
                       SteRule ste = SteRule::identity, int layers = TINY_LAYERS) {
    const ModelConfig c = tiny_config(layers);
    m.dev = model_device();
    model_allocate(m, c);
    model_init_random(m, 7);
    for (const ParamTensor& t : m.tensors)
        for (int64_t i = 0; i < t.count(); i++) {
            float& w = m.master[t.offset + i];
            float noise = uniform01(rng_bits(8, RNG_INIT, (uint32_t)t.offset, (uint32_t)i, 0).x[0]) - 0.5f;
            if (t.kind == ParamKind::norm) w += noise;
            else w *= t.kind == ParamKind::linear ? 6.0f : 5.0f;
        }
    model_quantize(m, rules_of(weights, "all", mode, ste), true);
    model_refresh(m);
}

template <class T>
static bool same_values(const Buffer<T>& a, const Buffer<T>& b) {
    return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.bytes()) == 0);
}

static std::vector<std::vector<int>> prompts() { return {{5, 9, 3}, {1}, {2, 2, 2, 2, 2, 2, 2}, {60, 11, 12, 90, 4}}; }

static RolloutConfig rollout_config(float temperature) {
    RolloutConfig c;
    c.sampling.temperature = temperature;
    c.max_completion_length = COMPLETION;
    c.stop_tokens = {7, 8, 10};
    c.n_allowed = ALLOWED;
    c.max_sequences = 64;
    c.seed = 11;
    c.step = 3;
    return c;
}

static GrpoConfig grpo_config(float temperature) {
    GrpoConfig c;
    c.num_generations = 6;
    c.temperature = temperature;
    c.max_completion_length = COMPLETION;
    c.micro_batch_tokens = 4096;
    return c;
}

static std::vector<Completion> sample(Model& m, RolloutConfig c, bool pack = true) {
    RolloutState state;
    if (pack) c.pass = model_pack(m);
    std::vector<Completion> done = rollout(m, state, prompts(), 6, c);
    if (pack) model_unpack(m);
    return done;
}

static bool same_completions(const std::vector<Completion>& a, const std::vector<Completion>& b) {
    if (a.size() != b.size()) return false;
    for (size_t i = 0; i < a.size(); i++) {
        if (a[i].prompt != b[i].prompt || a[i].sample != b[i].sample || a[i].finished != b[i].finished ||
            a[i].tokens != b[i].tokens || a[i].logps.size() != b[i].logps.size() ||
            memcmp(a[i].logps.data(), b[i].logps.data(), a[i].logps.size() * sizeof(float)))
            return false;
    }
    return true;
}

// some reward that differs within a group
static std::vector<float> rewards_of(const std::vector<Completion>& done) {
    std::vector<float> r;
    for (const Completion& c : done) {
        int sum = 0;
        for (int t : c.tokens) sum += t;
        r.push_back((float)(sum % 5) / 4.0f + (c.finished ? 0.5f : 0.0f));
    }
    return r;
}

// advantages without a zero, which has no gradient
static std::vector<float> advantages_of(const std::vector<Completion>& done) {
    std::vector<float> a = group_advantages(rewards_of(done), 6, RewardScale::group).a;
    for (float& x : a)
        if (x == 0.0f) x = 0.25f;
    return a;
}

struct Agreement {
    double cosine, relative;
};

static Agreement agree(const std::vector<float>& a, const std::vector<float>& b) {
    double aa = 0, bb = 0, ab = 0, dd = 0;
    for (size_t i = 0; i < a.size(); i++) {
        aa += (double)a[i] * a[i], bb += (double)b[i] * b[i], ab += (double)a[i] * b[i];
        dd += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    }
    return {ab / std::sqrt(aa * bb), std::sqrt(dd / bb)};
}

static std::vector<float> gradients(const Trainer& t) { return {t.grads.data, t.grads.data + t.grads.size}; }

// ---------------------------------------------------------------------------------------------------------------------
// rollout

TEST(Rollout, TokensAreAllowedAndLengthsAreRight) {
    Model m;
    tiny_model(m, "int4:g32:sym");
    // raise the padded rows of the tied embedding: the softmax sees them, the draw must not
    for (int v = ALLOWED; v < VOCABULARY; v++)
        for (int i = 0; i < m.C(); i++)
            m.master[(int64_t)v * m.C() + i] = 3.0f * m.master[(int64_t)(v % 7) * m.C() + i];
    model_refresh(m);
    int finished = 0, truncated = 0;
    std::set<int> seen;
    for (float temperature : {1.0f, 5.0f, 0.0f}) {
        RolloutConfig c = rollout_config(temperature);
        std::vector<Completion> done = sample(m, c);
        ASSERT_EQ(done.size(), 24u);
        for (size_t i = 0; i < done.size(); i++) {
            const Completion& d = done[i];
            EXPECT_EQ(d.prompt, (int)i / 6);
            EXPECT_EQ(d.sample, (int)i % 6);
            ASSERT_TRUE(!d.tokens.empty() && (int)d.tokens.size() <= c.max_completion_length);
            ASSERT_EQ(d.tokens.size(), d.logps.size());
            for (size_t j = 0; j < d.tokens.size(); j++) {
                EXPECT_TRUE(d.tokens[j] >= 0 && d.tokens[j] < ALLOWED) << "a padded row was drawn";
                EXPECT_TRUE(d.logps[j] <= 1e-6f && std::isfinite(d.logps[j]));
                bool stop = d.tokens[j] == 7 || d.tokens[j] == 8 || d.tokens[j] == 10;
                EXPECT_EQ(stop, d.finished && j + 1 == d.tokens.size()) << "a stop token ends a completion";
                seen.insert(d.tokens[j]);
            }
            EXPECT_TRUE(d.finished || (int)d.tokens.size() == c.max_completion_length);
            (d.finished ? finished : truncated)++;
        }
    }
    EXPECT_GT(finished, 0);
    EXPECT_GT(truncated, 0);
    EXPECT_GT(seen.size(), 40u);
}

TEST(Rollout, SlotsPrefillBudgetPackingAndThreadsDoNotChangeABit) {
    Model m;
    tiny_model(m, "int4:g32:sym");
    for (float temperature : SIMULATED ? std::vector<float>{1.0f} : std::vector<float>{1.0f, 0.7f, 0.0f}) {
        RolloutConfig c = rollout_config(temperature);
        std::vector<Completion> reference = sample(m, c);
        for (int slots : SIMULATED ? std::vector<int>{7} : std::vector<int>{1, 2, 5, 7, 24}) {
            RolloutConfig d = c;
            d.max_sequences = slots;
            if (!SIMULATED) { EXPECT_TRUE(same_completions(reference, sample(m, d))) << slots << " slots"; }
            d.prefill_tokens = 1;
            EXPECT_TRUE(same_completions(reference, sample(m, d))) << slots << " slots, short prefill";
        }
        EXPECT_TRUE(same_completions(reference, sample(m, c, false))) << "weights not packed";
#if defined(_OPENMP)
        const int threads = omp_get_max_threads();
        for (int n : {1, 3}) {
            if (SIMULATED && n == 1) continue;
            omp_set_num_threads(n);
            EXPECT_TRUE(same_completions(reference, sample(m, c))) << n << " threads";
        }
        omp_set_num_threads(threads);
#endif
        // memory that an earlier, larger rollout left
        RolloutState state;
        RolloutConfig few = c;
        few.max_sequences = 2;
        rollout(m, state, prompts(), 6, c);
        EXPECT_TRUE(same_completions(reference, rollout(m, state, prompts(), 6, few))) << "used state";
    }
}

TEST(Rollout, SeedStepAndStreamAreTheKey) {
    Model m;
    tiny_model(m, "int4:g32:sym");
    RolloutConfig c = rollout_config(1.0f);
    std::vector<Completion> first = sample(m, c);
    EXPECT_TRUE(same_completions(first, sample(m, c)));
    RolloutConfig seed = c, step = c, stream = c;
    seed.seed++, step.step++, stream.stream = RNG_EVAL;
    EXPECT_FALSE(same_completions(first, sample(m, seed)));
    EXPECT_FALSE(same_completions(first, sample(m, step)));
    EXPECT_FALSE(same_completions(first, sample(m, stream)));
    // the samples of a group differ, and greedy ones do not
    std::set<std::vector<int>> group, greedy;
    for (int i = 0; i < 6; i++) group.insert(first[i].tokens);
    EXPECT_GT(group.size(), 3u);
    std::vector<Completion> zero = sample(m, rollout_config(0.0f));
    for (int i = 0; i < 6; i++) greedy.insert(zero[i].tokens);
    EXPECT_EQ(greedy.size(), 1u);
}

TEST(Rollout, RefusesWhatDoesNotFitAndStopsWhenAsked) {
    Model m;
    tiny_model(m, "none");
    RolloutState state;
    RolloutConfig c = rollout_config(1.0f);
    EXPECT_THROW(rollout(m, state, {{1, 2}, {}}, 2, c), Error);
    EXPECT_THROW(rollout(m, state, {std::vector<int>(60, 5)}, 2, c), Error);  // and 9 or 14 more: over 64
    EXPECT_TRUE(rollout(m, state, {}, 2, c).empty());
    int calls = 0;
    RolloutStats stats;
    rollout(m, state, prompts(), 6, c, &stats, [&](int, int) { return ++calls < 30; });
    EXPECT_GE(calls, 30);
    EXPECT_LE(calls, 30 + 24);
    EXPECT_EQ(stats.completion_tokens, calls);
    EXPECT_EQ(stats.prompt_tokens, 16);
}

static std::vector<Prompt> asked_prompts() {
    std::vector<Prompt> asked;
    for (const std::vector<int>& tokens : prompts()) asked.push_back({"", "1", tokens});
    return asked;
}

static EvalConfig six_samples() {
    EvalConfig c;
    c.rollout = rollout_config(1.0f);
    c.samples = 6;
    return c;
}

// every completion that ends is counted, by a stop token or by its length
TEST(Evaluate, CountsWhatIsDone) {
    Model m;
    tiny_model(m, "none");
    RolloutState state;
    const std::vector<Prompt> asked = asked_prompts();
    EvalConfig c = six_samples();
    EvalProgress last;
    c.progress = [&](const EvalProgress& p) {
        EXPECT_GE(p.tokens, last.tokens);
        EXPECT_GE(p.done, last.done);
        last = p;
    };
    EvalProgress progress = eval_progress(4, c);
    const EvalAnswers r = evaluate(m, state, tokenizer_byte_level(), asked, c, progress);
    const EvalScores s = eval_scores(r, asked);
    EXPECT_GT(s.clipped_ratio, 0.0);
    EXPECT_LT(s.clipped_ratio, 1.0);
    EXPECT_EQ(last.tokens, r.stats.completion_tokens);
    EXPECT_EQ(last.completions, 4 * 7);
    EXPECT_EQ(last.done, 4 * 7);
}

static std::vector<std::string> texts(const std::vector<EvalSample>& samples) {
    std::vector<std::string> out;
    for (const EvalSample& s : samples) out.push_back(format("%d.%d ", s.problem, s.sample) + s.text);
    return out;
}

// what is left of a stopped evaluation, drawn later, is what would have been drawn; and only whole problems count
TEST(Evaluate, GoesOnWhereItStopped) {
    Model m;
    tiny_model(m, "none");
    RolloutState state;
    const std::vector<Prompt> asked = asked_prompts();
    EvalConfig c = six_samples();
    c.rollout.max_sequences = 3;
    EvalProgress progress = eval_progress(4, c);
    const EvalAnswers whole = evaluate(m, state, tokenizer_byte_level(), asked, c, progress);
    int calls = 0;
    c.on_token = [&](int, int) { return ++calls < 140; };
    std::vector<EvalSample> told;
    c.on_problem = [&](const std::vector<EvalSample>& s) { told.insert(told.end(), s.begin(), s.end()); };
    EvalAnswers part = evaluate(m, state, tokenizer_byte_level(), asked, c, progress);
    EXPECT_TRUE(part.stopped);
    EXPECT_EQ(told.size(), part.greedy.size() + part.sampled.size());
    EXPECT_EQ(part.greedy.size(), 4u);
    EXPECT_GT(part.sampled.size(), 0u);
    EXPECT_LT(part.sampled.size(), 24u);
    EXPECT_EQ(part.sampled.size() % 6, 0u);
    EXPECT_EQ(eval_scores(part, asked).problems, (int)part.sampled.size() / 6);
    for (bool greedy : {false, true}) {
        c.have[greedy].assign(4, 0);
        for (const EvalSample& s : greedy ? part.greedy : part.sampled) c.have[greedy][s.problem] = 1;
    }
    c.on_token = nullptr;
    progress = eval_progress(4, c);
    EXPECT_EQ(progress.completions, 24 - (int64_t)part.sampled.size());
    EvalAnswers rest = evaluate(m, state, tokenizer_byte_level(), asked, c, progress);
    EXPECT_EQ(rest.greedy.size(), 0u);
    EXPECT_EQ(progress.done, progress.completions);
    merge_answers(rest, part);
    EXPECT_EQ(texts(rest.greedy), texts(whole.greedy));
    EXPECT_EQ(texts(rest.sampled), texts(whole.sampled));
}

// ---------------------------------------------------------------------------------------------------------------------
// policy pass

TEST(PolicyPass, RatioIsExactlyOneAtTheFirstPass) {
    const char* const quantizers[][2] = {{"int4:g32:sym", "none"},
                                         {"int8:channel:asym", "int8:token:sym"},
                                         {"none", "none"},
                                         {"none", "int4:g8:asym"},
                                         {"nf4:g32:dq", "fp8e4m3:token"}};
    int count = 0;
    for (auto& [weights, activations] : quantizers) {
        const bool odd = count++ % 2;
        for (float temperature : SIMULATED ? std::vector<float>{0.7f} : std::vector<float>{1.0f, 0.7f})
            for (bool checkpointing : {false, true})
                for (int64_t budget : {4096, 22}) {
                    if (SIMULATED && (checkpointing != odd || (budget == 22) != odd)) continue;
                    Model m;
                    tiny_model(m, weights);
                    model_quantize_activations(m, rules_for("activations", activations));
                    Trainer t;
                    trainer_init(t, m, budget, checkpointing);
                    RolloutConfig rc = rollout_config(temperature);
                    rc.max_sequences = 5;
                    std::vector<Completion> done = sample(m, rc);
                    GrpoConfig c = grpo_config(temperature);
                    c.micro_batch_tokens = budget;
                    std::vector<float> a = group_advantages(rewards_of(done), 6, RewardScale::group).a;
                    PolicyPass p = policy_pass(t, prompts(), done, {a}, c);
                    int64_t tokens = 0;
                    for (const Completion& d : done) tokens += (int64_t)d.tokens.size();
                    EXPECT_EQ(p.tokens, tokens);
                    EXPECT_EQ(p.logp_difference_max, 0.0) << weights << " temperature " << temperature;
                    EXPECT_EQ(p.logp_difference_mean, 0.0);
                    EXPECT_EQ(p.ratio_min, 1.0);
                    EXPECT_EQ(p.ratio_max, 1.0);
                    EXPECT_EQ(p.ratio_mean, 1.0);
                    EXPECT_EQ(p.clip_low + p.clip_high + p.clip_high_max + p.clip_low_min, 0.0);
                    EXPECT_EQ(p.kl, 0.0);
                    EXPECT_TRUE(p.entropy > 0.1 && p.entropy < std::log((double)VOCABULARY));
                    double expected = 0;  // dapo: minus the mean advantage over tokens
                    for (size_t i = 0; i < done.size(); i++)
                        expected -= a[i] * (double)done[i].tokens.size() / (double)tokens;
                    EXPECT_NEAR(p.loss, expected, 1e-12);
                    EXPECT_GT(sum_of_squares_cpu(t.grads.data, (int64_t)t.grads.size), 0.0);
                }
    }
}

// What sampler and trainer share must not be a constant: another temperature, or weights moved after the rollout, show
TEST(PolicyPass, ADifferenceBetweenSamplerAndTrainerIsMeasured) {
    Model m;
    tiny_model(m, "int4:g32:sym");
    Trainer t;
    trainer_init(t, m, 4096, false);
    std::vector<Completion> done = sample(m, rollout_config(1.0f));
    std::vector<float> a(done.size(), 1.0f);
    EXPECT_GT(policy_pass(t, prompts(), done, {a}, grpo_config(0.7f)).logp_difference_max, 0.01);
    for (size_t i = 0; i < m.num_params; i += 2) m.master[i] *= 1.2f;
    model_refresh(m);
    PolicyPass p = policy_pass(t, prompts(), done, {a}, grpo_config(1.0f));
    EXPECT_GT(p.logp_difference_max, 0.01);
    EXPECT_LT(p.ratio_min, 1.0);
    EXPECT_GT(p.ratio_max, 1.0);
    EXPECT_GT(p.clip_high, 0.0);
    EXPECT_EQ(p.clip_low, 0.0);  // only a positive advantage here
}

// Micro-batches change the order of sums over tokens in the gradients, and nothing else. In bf16 the gradient of a
// prompt's key and value is rounded after the sum over the completions that share it in a micro-batch, so that cutting a
// group moves a rounding of 2^-9; in fp32 the relative difference is 1e-6 at most. The loss is summed in double.
static constexpr double CUT_TOLERANCE = sizeof(floatX) == 2 ? 5e-3 : 1e-6;

TEST(PolicyPass, MicroBatchesChangeRoundingAlone) {
    double worst = 0, worst_loss = 0;
    for (LossAggregation type : {LossAggregation::seq_mean_token_mean, LossAggregation::micro_batch_token_mean,
                                 LossAggregation::seq_mean_token_sum_norm, LossAggregation::token_mean})
        for (bool masked : {false, true}) {
            Model m;
            tiny_model(m, "int4:g32:sym", ScaleMode::dynamic, SteRule::identity, 2);  // whose samples clip at both ends
            if (SIMULATED && (type == LossAggregation::seq_mean_token_sum_norm || type == LossAggregation::token_mean))
                continue;
            if (SIMULATED && masked != (type == LossAggregation::micro_batch_token_mean)) continue;
            Trainer t, small;
            trainer_init(t, m, 4096, false);
            trainer_init(small, m, 4096, true);
            std::vector<Completion> done = sample(m, rollout_config(1.0f));
            for (Completion& d : done)
                for (size_t j = 0; j < d.logps.size(); j++)
                    d.logps[j] += 0.3f * (float)((int)(j % 5) - 2);  // off policy
            std::vector<float> a = group_advantages(rewards_of(done), 6, RewardScale::group).a;
            GrpoConfig c = grpo_config(1.0f);
            c.aggregation = type;
            c.accumulation_steps = 4;
            c.mask_truncated = masked;
            PolicyPass whole = policy_pass(t, prompts(), done, {a}, c);
            EXPECT_TRUE(whole.clip_low > 0 && whole.clip_high > 0);
            std::vector<float> g = gradients(t);
            for (int64_t budget : {22, 40, 100}) {
                if (SIMULATED && budget == 40) continue;
                memset(small.grads.data, 0, small.grads.bytes());
                GrpoConfig d = c;
                d.micro_batch_tokens = budget;
                PolicyPass cut = policy_pass(small, prompts(), done, {a}, d);
                Agreement same = agree(gradients(small), g);
                worst = std::max(worst, same.relative);
                worst_loss = std::max(worst_loss, std::fabs(cut.loss - whole.loss));
                EXPECT_LE(same.relative, CUT_TOLERANCE) << "budget " << budget;
                EXPECT_NEAR(cut.loss, whole.loss, 1e-14);
                EXPECT_EQ(cut.tokens, whole.tokens);
                EXPECT_EQ(cut.ratio_min, whole.ratio_min);
                EXPECT_EQ(cut.ratio_max, whole.ratio_max);
                EXPECT_NEAR(cut.entropy, whole.entropy, 1e-12);
                EXPECT_NEAR(cut.clip_low, whole.clip_low, 1e-12);
                EXPECT_NEAR(cut.clip_high, whole.clip_high, 1e-12);
                EXPECT_EQ(cut.clip_low_min, whole.clip_low_min);
                EXPECT_EQ(cut.clip_high_max, whole.clip_high_max);
            }
            if (type == LossAggregation::token_mean || type == LossAggregation::seq_mean_token_mean ||
                type == LossAggregation::seq_mean_token_sum_norm) {
                // the number of accumulation steps is another cut; only bnpo's mean is local to it
                memset(small.grads.data, 0, small.grads.bytes());
                GrpoConfig d = c;
                d.accumulation_steps = 7;
                EXPECT_NEAR(policy_pass(small, prompts(), done, {a}, d).loss, whole.loss, 1e-14);
                EXPECT_LE(agree(gradients(small), g).relative, CUT_TOLERANCE);
            }
        }
    printf("micro-batches: gradients differ by at most %.1e, losses by %.1e\n", worst, worst_loss);
    Model m;
    tiny_model(m, "none");
    Trainer t;
    trainer_init(t, m, 4096, false);
    std::vector<Completion> done = sample(m, rollout_config(1.0f));
    GrpoConfig c = grpo_config(1.0f);
    c.micro_batch_tokens = 10;  // less than one prompt and completion
    EXPECT_THROW(policy_pass(t, prompts(), done, {std::vector<float>(done.size(), 1.0f)}, c), Error);
}

// Against whole sequences, which is what completions are that each have a prompt of their own: the same
// log-probabilities to the bit, and the same gradient of every tensor but for rounding, with a prompt's rows once.
TEST(PolicyPass, CompletionsThatShareAPromptHaveTheGradientOfWholeSequences) {
    struct Case {
        const char *weights, *activations, *kv;
        int64_t budget;
        bool checkpointing;
    };
    double worst = 0;
    for (const Case& k :
         {Case{"none", "none", "none", 4096, false}, Case{"int4:g32:sym", "none", "int8:token", 60, true},
          Case{"none", "int8:token:sym", "none", 22, false}}) {
        if (SIMULATED && k.budget == 22) continue;
        Model m;
        tiny_model(m, k.weights);
        model_quantize_activations(m, rules_for("activations", k.activations));
        model_quantize_kv(m, rules_for("kv_cache", k.kv), false);
        Trainer t, u;
        trainer_init(t, m, k.budget, k.checkpointing);
        trainer_init(u, m, k.budget, k.checkpointing);
        const std::vector<Completion> done = sample(m, rollout_config(1.0f));
        std::vector<Completion> alone = done;
        std::vector<std::vector<int>> own;
        int64_t rows = 0, shared_rows = 0;
        for (size_t i = 0; i < alone.size(); i++) {
            own.push_back(prompts()[done[i].prompt]);
            alone[i].prompt = (int)i;
            rows += (int64_t)(own.back().size() + done[i].tokens.size()) - 1;
            shared_rows += (int64_t)done[i].tokens.size() - 1;
        }
        for (const std::vector<int>& p : prompts()) shared_rows += (int64_t)p.size();
        GrpoConfig c = grpo_config(1.0f);
        c.micro_batch_tokens = k.budget;
        EXPECT_EQ(completion_logps(t, m, Pass(), prompts(), done, c), completion_logps(t, m, Pass(), own, alone, c));
        const std::vector<float> a = advantages_of(done);
        const PolicyPass shared = policy_pass(t, prompts(), done, {a}, c), whole = policy_pass(u, own, alone, {a}, c);
        EXPECT_EQ(shared.logp_difference_max, 0.0);
        EXPECT_NEAR(shared.loss, whole.loss, 1e-14);
        EXPECT_EQ(shared.tokens, whole.tokens);
        EXPECT_EQ(whole.forward_tokens, rows);
        if (k.budget == 4096) EXPECT_EQ(shared.forward_tokens, shared_rows);
        else EXPECT_LT(shared.forward_tokens, rows);
        for (const ParamTensor& p : m.tensors) {
            const float *x = t.grads.data + p.offset, *y = u.grads.data + p.offset;
            const Agreement same = agree({x, x + p.count()}, {y, y + p.count()});
            worst = std::max(worst, same.relative);
            EXPECT_LE(same.relative, sizeof(floatX) == 2 ? 1.5e-2 : 2e-6) << p.name << ", budget " << k.budget;
        }
    }
    printf("shared prompts: gradients of a tensor differ by at most %.1e\n", worst);
}

// Two of four groups tied, and a zero among others: a KL term of no weight has everything differentiated
TEST(PolicyPass, AZeroAdvantageIsNotDifferentiatedAndCountsAllTheSame) {
    for (PolicyLoss kind : {PolicyLoss::clip, PolicyLoss::cispo}) {
        if (SIMULATED && kind == PolicyLoss::cispo) continue;
        Model m;
        tiny_model(m, "int4:g32:sym");
        Trainer t, u;
        trainer_init(t, m, 100, false);
        trainer_init(u, m, 100, false);
        std::vector<Completion> done = sample(m, rollout_config(1.0f));
        std::vector<std::vector<float>> ref;
        for (Completion& d : done) {
            for (size_t j = 0; j < d.logps.size(); j++) d.logps[j] += 0.15f * (float)((int)(j % 5) - 2);  // off policy
            ref.push_back(d.logps);
        }
        std::vector<float> a = advantages_of(done);
        for (size_t i = 0; i < 6; i++) a[i] = a[12 + i] = 0.0f;
        a[8] = 0.0f;
        GrpoConfig c = grpo_config(1.0f);
        c.policy.kind = kind;
        c.accumulation_steps = 2;
        c.micro_batch_tokens = 100;
        size_t seen = 0, backward = 0;
        for (const PolicyMicroBatch& batch : policy_micro_batches(policy_targets(done, {a}, c), prompts(), c)) {
            seen += batch.completions.size();
            for (int i : batch.completions) {
                EXPECT_EQ(batch.differentiate, a[i] != 0.0f) << i;
                backward += batch.differentiate;
            }
        }
        EXPECT_EQ(seen, done.size());
        EXPECT_EQ(backward, 11u);
        const PolicyPass p = policy_pass(t, prompts(), done, {a}, c);
        GrpoConfig all = c;
        all.policy.beta = 1e-300;
        const PolicyPass q = policy_pass(u, prompts(), done, {a, ref}, all);
        EXPECT_LE(agree(gradients(t), gradients(u)).relative, CUT_TOLERANCE);
        EXPECT_NEAR(p.loss, q.loss, 1e-14);
        EXPECT_EQ(p.tokens, q.tokens);
        EXPECT_NEAR(p.entropy, q.entropy, 1e-12);
        EXPECT_NEAR(p.logp_difference_mean, q.logp_difference_mean, 1e-12);
        EXPECT_NEAR(p.ratio_mean, q.ratio_mean, 1e-12);
        EXPECT_EQ(p.ratio_min, q.ratio_min);
        EXPECT_EQ(p.ratio_max, q.ratio_max);
        EXPECT_EQ(p.clip_low, q.clip_low);
        EXPECT_EQ(p.clip_high, q.clip_high);
        EXPECT_EQ(p.clip_low_min, q.clip_low_min);
        EXPECT_EQ(p.clip_high_max, q.clip_high_max);
        EXPECT_GT(p.clip_high_max, p.clip_high);
        memset(t.grads.data, 0, t.grads.bytes());
        policy_pass(t, prompts(), done, {std::vector<float>(done.size(), 0.0f)}, c);
        EXPECT_EQ(sum_of_squares_cpu(t.grads.data, (int64_t)t.grads.size), 0.0);
    }
}

TEST(PolicyPass, MaskedCompletionsCountForNothing) {
    Model m;
    tiny_model(m, "int4:g32:sym");
    Trainer t, u;
    trainer_init(t, m, 4096, false);
    trainer_init(u, m, 4096, false);
    std::vector<Completion> done = sample(m, rollout_config(1.0f));
    std::vector<float> a = group_advantages(rewards_of(done), 6, RewardScale::group).a, other = a;
    int64_t tokens = 0;
    int masked = 0;
    for (size_t i = 0; i < done.size(); i++) {
        if (done[i].finished) tokens += (int64_t)done[i].tokens.size();
        else other[i] = 1e6f, masked++;
    }
    ASSERT_TRUE(masked > 0 && tokens > 0);
    GrpoConfig c = grpo_config(1.0f);
    c.mask_truncated = true;
    PolicyPass p = policy_pass(t, prompts(), done, {a}, c), q = policy_pass(u, prompts(), done, {other}, c);
    EXPECT_EQ(p.tokens, tokens);
    EXPECT_EQ(p.loss, q.loss);
    EXPECT_EQ(gradients(t), gradients(u));
    for (Completion& d : done) d.finished = false;  // nothing left
    memset(t.grads.data, 0, t.grads.bytes());
    PolicyPass none = policy_pass(t, prompts(), done, {a}, c);
    EXPECT_EQ(none.tokens, 0);
    EXPECT_EQ(none.loss, 0.0);
    EXPECT_EQ(none.ratio_mean, 1.0);
    EXPECT_EQ(sum_of_squares_cpu(t.grads.data, (int64_t)t.grads.size), 0.0);
}

TEST(PolicyPass, KlToTheReferenceIsExactlyZeroAtTheStartAndGrows) {
    for (float temperature : {1.0f, 0.7f}) {
        if (SIMULATED && temperature == 1.0f) continue;
        Model m;
        tiny_model(m, "int4:g32:sym");
        Trainer t;
        trainer_init(t, m, 64, false);
        Model reference;
        model_allocate_reference(reference, m);
        model_copy_work(reference, m);
        std::vector<Completion> done = sample(m, rollout_config(temperature));
        std::vector<float> a = advantages_of(done);
        GrpoConfig c = grpo_config(temperature), plain = c;
        c.policy.beta = 0.5;
        c.micro_batch_tokens = plain.micro_batch_tokens = 64;
        std::vector<std::vector<float>> ref = completion_logps(t, reference, Pass(), prompts(), done, c);
        ASSERT_EQ(ref.size(), done.size());
        for (size_t i = 0; i < done.size(); i++) EXPECT_EQ(ref[i], done[i].logps);
        PolicyPass p = policy_pass(t, prompts(), done, {a, ref}, c);
        EXPECT_EQ(p.kl, 0.0);
        EXPECT_EQ(p.logp_difference_max, 0.0);
        std::vector<float> g = gradients(t);
        memset(t.grads.data, 0, t.grads.bytes());
        PolicyPass without = policy_pass(t, prompts(), done, {a}, plain);
        EXPECT_EQ(p.loss, without.loss);
        EXPECT_EQ(g, gradients(t)) << "k3 has no slope where the models agree";

        for (size_t i = 0; i < m.num_params; i++) m.master[i] *= 1.1f;
        model_refresh(m);
        EXPECT_EQ(ref, completion_logps(t, reference, Pass(), prompts(), done, c))
            << "the reference moved with the policy";
        memset(t.grads.data, 0, t.grads.bytes());
        PolicyPass moved = policy_pass(t, prompts(), done, {a, ref}, c);
        EXPECT_GT(moved.kl, 1e-5);
        EXPECT_GT(agree(gradients(t), g).relative, 1e-3);
    }
}

#if defined(PRECISION_FP32)
// The derivative of the whole loss (ratio, clipping, KL, temperature, weights) along the gradient it reports
TEST(PolicyPass, GradientIsTheSlopeOfTheLoss) {
    for (LossAggregation type : {LossAggregation::seq_mean_token_mean, LossAggregation::token_mean}) {
        Model m;
        tiny_model(m, "none");
        Trainer t;
        trainer_init(t, m, 4096, false);
        std::vector<Completion> done = sample(m, rollout_config(0.7f));
        std::vector<std::vector<float>> ref;
        for (Completion& d : done) {
            for (size_t j = 0; j < d.logps.size(); j++) d.logps[j] += 0.15f * (float)((int)(j % 5) - 2);
            ref.push_back(d.logps);
            for (float& x : ref.back()) x -= 0.1f;
        }
        std::vector<float> a = group_advantages(rewards_of(done), 6, RewardScale::group).a;
        GrpoConfig c = grpo_config(0.7f);
        c.aggregation = type;
        c.policy.beta = 0.3;
        policy_pass(t, prompts(), done, {a, ref}, c);
        std::vector<float> g = gradients(t), start(m.master.data, m.master.data + m.num_params);
        double norm = std::sqrt(sum_of_squares_cpu(g.data(), (int64_t)g.size()));
        auto loss_at = [&](double h) {
            for (size_t i = 0; i < m.num_params; i++) m.master[i] = (float)(start[i] + h * g[i] / norm);
            model_refresh(m);
            return policy_pass(t, prompts(), done, {a, ref}, c).loss;
        };
        const double h = 1e-3;
        double slope = (loss_at(h) - loss_at(-h)) / (2 * h);
        EXPECT_NEAR(slope / norm, 1.0, 2e-3);
    }
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// optimizer step

// rollout, rewards, pass and update, `steps` times; returns the weights and all tokens
static std::vector<float> train(int steps, uint64_t seed, std::vector<int>* tokens) {
    Model m;
    tiny_model(m, "int4:g32:sym");
    Trainer t;
    trainer_init(t, m, 64, false);
    GrpoConfig c = grpo_config(1.0f);
    c.micro_batch_tokens = 64;
    c.policy.beta = 0.0;
    for (int step = 0; step < steps; step++) {
        RolloutConfig rc = rollout_config(1.0f);
        rc.seed = seed;
        rc.step = (uint32_t)step;
        std::vector<Completion> done = sample(m, rc);
        for (const Completion& d : done) tokens->insert(tokens->end(), d.tokens.begin(), d.tokens.end());
        std::vector<float> a = group_advantages(rewards_of(done), 6, RewardScale::group).a;
        for (int iteration = 0; iteration < 2; iteration++) {
            PolicyPass p = policy_pass(t, prompts(), done, {a}, c);
            EXPECT_EQ(p.logp_difference_max == 0.0, iteration == 0);
            OptimizerResult r = optimizer_apply(t, 5e-3, p.loss);
            EXPECT_FALSE(r.skipped);
        }
    }
    EXPECT_EQ(t.step, 2 * steps);
    return {m.master.data, m.master.data + m.num_params};
}

TEST(Training, SameSeedSameBitsOtherSeedOtherTokens) {
    const int steps = SIMULATED ? 2 : 3;
    std::vector<int> a, b, c, one_thread;
    std::vector<float> first = train(steps, 1, &a);
    if (!SIMULATED) {
        EXPECT_EQ(first, train(steps, 1, &b));
        EXPECT_EQ(a, b);
    }
    train(1, 2, &c);
    EXPECT_FALSE(std::equal(c.begin(), c.begin() + std::min(a.size(), c.size()), a.begin()));
#if defined(_OPENMP)
    const int threads = omp_get_max_threads();
    omp_set_num_threads(threads == 1 ? 2 : 1);
    EXPECT_EQ(first, train(steps, 1, &one_thread));
    EXPECT_EQ(a, one_thread);
    omp_set_num_threads(threads);
#endif
}

TEST(OptimizerStep, CountsCodeFlipsAsBruteForceDoes) {
    for (ScaleMode mode : {ScaleMode::dynamic, ScaleMode::kept})
        for (const char* weights : {"int4:g32:sym", "int3:channel:asym", "int8:tensor:sym"}) {
            Model m;
            tiny_model(m, weights, mode);
            ASSERT_EQ(quantized_parts(m).size(), 7u * TINY_LAYERS);
            Trainer t;
            trainer_init(t, m, 4096, false);
            const Quantizer q = quantized_parts(m)[0]->quantizer;
            // codes from the master weights, by the formulas
            std::vector<std::vector<Grid>> frozen;
            auto codes = [&] {
                std::vector<int> all;
                size_t at = 0;
                for (const ParamTensor& p : m.tensors) {
                    if (p.kind != ParamKind::linear) continue;
                    const float* w = m.master.data + p.offset;
                    int64_t group = q.scope == QuantScope::tensor    ? p.count()
                                    : q.scope == QuantScope::channel ? p.cols
                                                                     : 32;
                    if (frozen.size() <= at) frozen.emplace_back();
                    for (int64_t k = 0; k < p.count() / group; k++) {
                        float low = std::min(0.0f, *std::min_element(w + k * group, w + (k + 1) * group));
                        float high = std::max(0.0f, *std::max_element(w + k * group, w + (k + 1) * group));
                        Grid g = quant_grid(q.spec, low, high, 1.0f, 1.0f);
                        if ((int64_t)frozen[at].size() <= k) frozen[at].push_back(g);
                        if (mode == ScaleMode::kept) g = frozen[at][k];
                        for (int64_t i = k * group; i < (k + 1) * group; i++)
                            all.push_back(quant_code(q.spec, w[i], g));
                    }
                    at++;
                }
                return all;
            };
            std::vector<int> first = codes(), last = first;
            int changed_steps = 0;
            for (int step = 0; step < 4; step++) {
                for (size_t i = 0; i < m.num_params; i++)
                    t.grads[i] = uniform01(rng_bits(3, RNG_TASK, (uint32_t)step, (uint32_t)i, 0).x[0]) - 0.5f;
                OptimizerResult r = optimizer_apply(t, step == 2 ? 0.0 : 2e-3, 0.0);
                std::vector<int> now = codes();
                int64_t flips = 0, total = 0;
                for (size_t i = 0; i < now.size(); i++) flips += now[i] != last[i], total += now[i] != first[i];
                EXPECT_DOUBLE_EQ(r.flip_rate, (double)flips / (double)now.size()) << weights;
                EXPECT_DOUBLE_EQ(r.flip_total, (double)total / (double)now.size()) << weights;
                changed_steps += flips > 0;
                last = now;
            }
            EXPECT_EQ(changed_steps, 3) << weights << ": three steps move codes, that with learning rate 0 does not";
        }
}

TEST(OptimizerStep, SkipsWhatIsNotFiniteAndGivesUpAfterFive) {
    Model m;
    tiny_model(m, "int4:g32:sym");
    Trainer t;
    trainer_init(t, m, 4096, false);
    std::vector<Completion> done = sample(m, rollout_config(1.0f));
    std::vector<float> rewards = rewards_of(done);
    GrpoConfig c = grpo_config(1.0f);
    auto snapshot = [&] {
        std::vector<float> all(m.master.data, m.master.data + m.num_params);
        for (size_t i = 0; i < m.num_params; i++) all.push_back((float)m.work[i]);
        const Buffer<char>& state = t.optimizer.state;
        all.insert(all.end(), (const float*)state.data, (const float*)(state.data + state.size));
        return all;
    };
    auto good = [&] {
        PolicyPass p = policy_pass(t, prompts(), done, {group_advantages(rewards, 6, RewardScale::group).a}, c);
        OptimizerResult r = optimizer_apply(t, 1e-4, p.loss);
        EXPECT_FALSE(r.skipped);
        EXPECT_TRUE(std::isfinite(r.grad_norm) && r.grad_norm > 0);
    };
    auto bad_reward = [&] {
        std::vector<float> nan = rewards;
        nan[7] = INFINITY;  // NaN: none applies
        PolicyPass p = policy_pass(t, prompts(), done, {group_advantages(nan, 6, RewardScale::group).a}, c);
        EXPECT_TRUE(std::isnan(p.loss));
        return optimizer_apply(t, 1e-4, p.loss);
    };
    good();
    std::vector<float> before = snapshot();
    EXPECT_TRUE(bad_reward().skipped);
    t.grads[5] = INFINITY;
    EXPECT_TRUE(optimizer_apply(t, 1e-4, 0.0).skipped);
    t.grads[m.num_params - 1] = NAN;
    EXPECT_TRUE(optimizer_apply(t, 1e-4, 0.0).skipped);
    t.grads[0] = 1.0f;
    EXPECT_TRUE(optimizer_apply(t, 1e-4, NAN).skipped);
    EXPECT_EQ(before, snapshot()) << "a skipped step changed something";
    EXPECT_EQ(sum_of_squares_cpu(t.grads.data, (int64_t)t.grads.size), 0.0) << "gradients of a skipped step remain";
    EXPECT_EQ(t.step, 1);
    EXPECT_EQ(t.skipped, 4);
    good();  // four in a row are forgiven
    EXPECT_EQ(t.skipped_in_a_row, 0);
    EXPECT_EQ(t.step, 2);
    for (int i = 0; i < 4; i++) EXPECT_NO_THROW(bad_reward());
    try {
        bad_reward();
        ADD_FAILURE() << "a fifth step in a row was skipped in silence";
    } catch (const Error& e) {
        EXPECT_EQ(e.exit_code, 1);
        EXPECT_NE(std::string(e.what()).find("5 steps in a row"), std::string::npos) << e.what();
    }
    EXPECT_EQ(t.skipped, 9);
}

TEST(OptimizerStep, ClipsTheGlobalNormAndDecaysMatricesAlone) {
    Model m, n;
    tiny_model(m, "none");
    tiny_model(n, "none");
    Trainer t, u;
    trainer_init(t, m, 64, false);
    trainer_init(u, n, 64, false);
    t.optimizer.config.epsilon = u.optimizer.config.epsilon = 1.0f;  // so that the scale of a gradient matters
    t.max_grad_norm = 0.5, u.max_grad_norm = 0.0;
    for (const ParamTensor& p : m.tensors)
        for (int64_t i = 0; i < p.count(); i++)
            t.grads[p.offset + i] = u.grads[p.offset + i] = 0.01f * (float)(i % 7 - 3);
    double norm = std::sqrt(sum_of_squares_cpu(t.grads.data, (int64_t)t.grads.size));
    ASSERT_GT(norm, 0.5);
    for (size_t i = 0; i < n.num_params; i++) u.grads[i] *= (float)(0.5 / (norm + 1e-6));
    OptimizerResult r = optimizer_apply(t, 0.1, 0.0);
    EXPECT_NEAR(r.grad_norm / norm, 1.0, 1e-12);
    optimizer_apply(u, 0.1, 0.0);
    for (size_t i = 0; i < m.num_params; i++) ASSERT_NEAR(m.master[i], n.master[i], 1e-6f) << i;

    std::vector<float> before(m.master.data, m.master.data + m.num_params);
    Trainer w;
    trainer_init(w, m, 64, false);
    optimizer_rates(w.optimizer.config, 1e-6, 0.5);
    optimizer_apply(w, 0.1, 0.0);  // no gradient
    for (const ParamTensor& p : m.tensors)
        for (int64_t i = 0; i < p.count(); i++) {
            bool decays = p.kind != ParamKind::norm && p.kind != ParamKind::bias;
            ASSERT_FLOAT_EQ(m.master[p.offset + i], before[p.offset + i] * (decays ? 0.95f : 1.0f)) << p.name;
        }
}

// With a frozen scale a weight outside the grid gets no gradient under the clipped rule and its full one under identity
TEST(OptimizerStep, StraightThroughRules) {
    for (SteRule rule : {SteRule::identity, SteRule::clip}) {
        Model m;
        tiny_model(m, "int4:g32:sym", ScaleMode::kept, rule);
        Trainer t;
        trainer_init(t, m, 64, false);
        QuantizedTensor& q = *quantized_parts(m)[3];
        float* w = q.master;
        w[0] = 8.5f * q.grid[0].scale;   // above 7
        w[1] = -8.5f * q.grid[0].scale;  // below -8
        w[2] = 2.0f * q.grid[0].scale;
        const float start[3] = {w[0], w[1], w[2]};
        for (size_t i = 0; i < m.num_params; i++) t.grads[i] = 1.0f;
        t.max_grad_norm = 0.0;
        optimizer_apply(t, 1e-3, 0.0);
        for (int i = 0; i < 3; i++) EXPECT_EQ(w[i] == start[i], rule == SteRule::clip && i < 2) << i;
    }
}

// Learned parameters are moved by the same step, outside of the norm, and a checkpoint brings the grid back
TEST(OptimizerStep, TrainsScalesAndACheckpointKeepsTheGrid) {
    struct {
        const char* weights;
        ScaleMode mode;
        LearnedScale kind;
    } cases[] = {{"int4:g32", ScaleMode::learned, LearnedScale::lsq},
                 {"int4:g32:asym", ScaleMode::learned, LearnedScale::lsq_offset},
                 {"int3:channel:asym", ScaleMode::learned, LearnedScale::lwc},
                 {"int2:g32:mse", ScaleMode::learned, LearnedScale::pact},
                 {"mid3:channel", ScaleMode::learned, LearnedScale::lsq},
                 {"mid4:g32:gauss", ScaleMode::kept, LearnedScale::lsq},
                 {"int8:tensor", ScaleMode::kept, LearnedScale::lsq},
                 {"int4:g32:signedmax", ScaleMode::kept, LearnedScale::lsq},
                 {"nf4:g32:dq", ScaleMode::kept, LearnedScale::lsq},
                 {"nvfp4", ScaleMode::kept, LearnedScale::lsq},
                 {"mxfp4", ScaleMode::kept, LearnedScale::lsq}};
    for (auto& c : cases) {
        auto open = [&](Model& m, ScaleMode mode) {
            tiny_model(m, "none");
            model_quantize(m, rules_of(c.weights, "all", mode, SteRule::identity, c.kind), true);
        };
        Model m;
        open(m, c.mode);
        model_refresh(m);
        Trainer t;
        trainer_init(t, m, 256, false);
        optimizer_rates(t.optimizer.config, 1e-3, 0.0);
        t.optimizer.config.of(ParamGroup::scales).learning_rate = c.kind == LearnedScale::lwc ? 0.1 : 1e-3;
        std::vector<float> first(m.learned.data, m.learned.data + m.learned.size);
        for (int step = 0; step < 3; step++) {
            for (size_t i = 0; i < m.num_params; i++)
                t.grads[i] = uniform01(rng_bits(3, RNG_TASK, (uint32_t)step, (uint32_t)i, 0).x[0]) - 0.5f;
            optimizer_apply(t, 1e-3, 0.0);
        }
        EXPECT_EQ(m.learned.size > 0, c.mode == ScaleMode::learned) << c.weights;
        int64_t moved = 0;
        for (size_t i = 0; i < m.learned.size; i++) moved += m.learned[i] != first[i];
        EXPECT_TRUE(c.mode != ScaleMode::learned || moved > (int64_t)m.learned.size / 3) << c.weights;

        std::string dir = testing::TempDir() + "train_qrl_grid_" + std::to_string(getpid());
        model_save(m, dir, "float32", [](const std::string&) {});
        for (ScaleMode mode : {ScaleMode::dynamic, ScaleMode::kept, c.mode}) {
            Model again;
            open(again, mode);
            model_load_weights(again, dir);
            EXPECT_TRUE(quantizer_load(again, dir));
            EXPECT_EQ(quantized_parts(again)[0]->quantizer.scale_mode,
                      mode == ScaleMode::dynamic ? ScaleMode::kept : mode);
            model_refresh(again);
            EXPECT_EQ(memcmp(again.work.data, m.work.data, m.work.bytes()), 0) << c.weights << ", mode " << (int)mode;
            EXPECT_EQ(memcmp(again.grids.data, m.grids.data, m.grids.bytes()), 0)
                << c.weights << ", mode " << (int)mode;
            EXPECT_TRUE(same_values(again.scale_floats, m.scale_floats)) << c.weights;
            EXPECT_TRUE(same_values(again.scale_codes, m.scale_codes)) << c.weights;
            EXPECT_TRUE(mode != ScaleMode::learned || same_values(again.learned, m.learned)) << c.weights;
            for (const LinearPart* q : quantized_parts(again)) EXPECT_EQ(q->flips_total, 0) << c.weights;
        }
        auto refused = [&](const char* weights, const char* layers, const char* what) {
            Model other;
            tiny_model(other, "none");
            model_quantize(other, rules_of(weights, layers), true);
            try {
                quantizer_load(other, dir);
                ADD_FAILURE() << weights << " took the grid of " << c.weights;
            } catch (const Error& e) { EXPECT_NE(std::string(e.what()).find(what), std::string::npos) << e.what(); }
        };
        refused("int5:g32", "all", rules_text(m.weight_rules).c_str());
        refused(c.weights, "q,k", "--quantize_layers");
        Model plain;
        tiny_model(plain, "none");
        EXPECT_FALSE(quantizer_load(plain, dir));
        std::filesystem::remove_all(dir);
    }
}
