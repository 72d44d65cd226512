// The training loop and its objectives with a tiny random model: which examples a step takes; that a loss is the same
// with its gradient and without, however it is cut; that the gradient is the loss's; that a student that is its teacher
// has nothing to learn; where distillation gets its completions from; how the loop stops; parameter groups.
#include <gtest/gtest.h>
#include <set>
#include "../model/loading.cuh"
#include "../train/cold_start.cuh"
#include "../train/distill.cuh"
#include "test_device.h"
#include "tiny_model.h"

// of gradients that are sums in another order
static constexpr double ROUNDING = sizeof(floatX) == 4 ? 1e-4 : 1e-2;

static void make_model(Model& m, const std::string& weights, uint64_t seed) {
    m.dev = model_device();
    model_allocate(m, tiny_config());
    model_quantize(m, rules_of(weights), true);
    model_init_random(m, seed);
    model_refresh(m);
}

static Example example(std::vector<int> prompt, std::vector<int> completion) {
    Example e;
    e.prompt.tokens = std::move(prompt);
    e.completion = std::move(completion);
    return e;
}

static std::vector<Example> some_examples() {
    std::vector<Example> all;
    for (int i = 0; i < 9; i++) {
        Example e;
        for (int j = 0; j < 2 + i % 3; j++) e.prompt.tokens.push_back((7 * i + 3 * j + 1) % 100);
        for (int j = 0; j < 1 + i % 5; j++) e.completion.push_back((11 * i + 5 * j + 2) % 100);
        all.push_back(e);
    }
    all.push_back(example({}, {4, 5, 6}));  // a text without a prompt: its first token is not scored
    return all;
}

static std::vector<float> gradients(const Trainer& t) {
    std::vector<float> g(t.grads.size);
    copy_to_host(g.data(), t.grads.data, t.grads.bytes(), t.model->dev);
    return g;
}

static double squares(const std::vector<float>& x) {
    double sum = 0.0;
    for (float v : x) sum += (double)v * v;
    return sum;
}

static double distance(const std::vector<float>& x, const std::vector<float>& y) {
    double sum = 0.0;
    for (size_t i = 0; i < x.size(); i++) sum += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
    return sqrt(sum / squares(y));
}

// A student and a teacher of other weights
struct Pair {
    Model m;
    Trainer t;
    Teacher teacher;
    DistillObjective d;
    StepContext c;

    Pair(const std::string& weights, uint64_t teacher_seed, int64_t budget = 4096) {
        make_model(m, weights, 1);
        trainer_init(t, m, std::max<int64_t>(budget, 64), false);
        make_model(teacher.model, "none", teacher_seed);
        teacher_allocate(teacher, std::max<int64_t>(budget, 64));
        distill_allocate(d.memory, m, std::max<int64_t>(budget, 64), m.V());
        d.teacher = &teacher;
        d.micro_batch_tokens = budget;
        c.batch = some_examples();
    }
    // prepared, too
    double loss(bool gradient) {
        LoopState state;
        EXPECT_TRUE(d.prepare(t, c, state));
        return d.loss(t, c, gradient).loss;
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// which examples

// Few bins, none too full, everything in one of them, in order
TEST(MicroBatches, AreFilledFirstFitDecreasing) {
    EXPECT_EQ(pack({}, 10), (std::vector<std::vector<int>>{}));
    EXPECT_EQ(pack({3, 4, 2}, 10), (std::vector<std::vector<int>>{{0, 1, 2}}));
    EXPECT_EQ(pack({3, 7, 3, 7, 10, 1}, 10), (std::vector<std::vector<int>>{{0, 1}, {2, 3}, {4}, {5}}));
    std::vector<int64_t> sizes;
    int64_t total = 0;
    for (uint32_t i = 0; i < 200; i++) {
        sizes.push_back(1 + (int64_t)(rng_bits(5, RNG_INIT, i, 0, 0).x[0] % 60));
        total += sizes.back();
    }
    std::vector<int> seen(sizes.size());
    const std::vector<std::vector<int>> bins = pack(sizes, 100);
    for (const std::vector<int>& bin : bins) {
        int64_t used = 0;
        for (int i : bin) used += sizes[i], seen[i]++;
        EXPECT_LE(used, 100);
        EXPECT_TRUE(std::is_sorted(bin.begin(), bin.end()));
    }
    EXPECT_TRUE(std::is_sorted(bins.begin(), bins.end()));
    EXPECT_EQ(seen, std::vector<int>(sizes.size(), 1));
    EXPECT_LE((int64_t)bins.size(), (total + 99) / 100 + 1);
}

TEST(TrainingBatch, AnEpochIsAPermutationCutIntoSteps) {
    std::vector<Example> all;
    for (int i = 0; i < 10; i++) all.push_back(example({i}, {1}));
    TrainingData d = training_data(all, 4, 5);
    ASSERT_EQ(d.steps_per_epoch(), 3);
    std::vector<int> first, second;
    for (int step = 0; step < 6; step++)
        for (const Example& e : training_batch(d, step)) (step < 3 ? first : second).push_back(e.prompt.tokens[0]);
    EXPECT_EQ(training_batch(d, 2).size(), 2u) << "what is left";
    EXPECT_EQ(std::set<int>(first.begin(), first.end()).size(), 10u);
    EXPECT_EQ(std::set<int>(second.begin(), second.end()).size(), 10u);
    EXPECT_NE(first, second);
    d.whole_steps = true;
    EXPECT_EQ(d.steps_per_epoch(), 2);
    EXPECT_EQ(training_batch(d, 5).size(), 4u);
    const std::vector<Example> own = training_batch(d, 5), further = further_examples(d, 5, 0, 9);
    ASSERT_EQ(further.size(), 6u) << "what there is beside the step's own";
    std::set<int> both;
    for (const std::vector<Example>* part : {&own, &further})
        for (const Example& e : *part) both.insert(e.prompt.tokens[0]);
    EXPECT_EQ(both.size(), 10u);
    EXPECT_EQ(further_examples(d, 5, 2, 3)[0].prompt.tokens, further[2].prompt.tokens);
    EXPECT_EQ(further_examples(d, 5, 2, 3).size(), 3u);
    EXPECT_TRUE(further_examples(d, 5, 6, 3).empty());
    d.shuffled = false;
    EXPECT_EQ(training_batch(d, 3)[0].prompt.tokens[0], 4) << "the second step of an epoch";
}

// ---------------------------------------------------------------------------------------------------------------------
// generation from codes of a file's grid

// scales of a file in the place of those that were measured, and the codes of them
static void give_scales(Model& m, LinearPart& p, float scale) {
    std::vector<Grid> grid((size_t)p.groups);
    copy_to_host(grid.data(), p.grid, grid.size() * sizeof(Grid), m.dev);
    for (Grid& g : grid) g.scale = scale;
    quantized_tensor_set_grid(p, grid.data(), m.dev);
    model_refresh(m);
}

TEST(Packing, AFileSGridIsLookedAtOnce) {
    Model m;
    m.dev = model_device();
    m.codes_beyond = 0;
    model_allocate(m, tiny_config());
    model_quantize(m, rules_of("int4:g16", "all", ScaleMode::kept), true);
    model_init_random(m, 1);
    model_refresh(m);
    Linear& l = m.layers.back().down;
    auto copies_of_packing = [&] {
        const int64_t before = transfers.to_host;
        model_pack(m);
        const int64_t copies = transfers.to_host - before;
        model_unpack(m);
        model_pack(m);
        EXPECT_EQ(transfers.to_host - before, copies) << "looked at twice";
        return copies;
    };
    auto expect_packed = [&](bool packed, ScaleStorage storage) {
        EXPECT_EQ(l.packed[0].codes.N > 0, packed);
        if (packed) { EXPECT_EQ((int)l.packed[0].codes.storage, (int)storage); }
        model_unpack(m);
    };
    EXPECT_EQ(copies_of_packing(), 0) << "its own grids are not looked at";
    if (!m.packed_codes.size) GTEST_SKIP() << "this build generates from the working weights";
    expect_packed(true, ScaleStorage::bf16);
    const int64_t one = m.dev.cuda;
    give_scales(m, l.parts[0], 1.0f / 8 + 1.0f / 4096);  // fp16, not bf16
    EXPECT_EQ(copies_of_packing(), one);
    expect_packed(true, ScaleStorage::fp16);
    give_scales(m, l.parts[0], 1.0f / 8 + 1.0f / (1 << 20));  // neither
    EXPECT_EQ(copies_of_packing(), one);
    expect_packed(false, ScaleStorage::bf16);
    give_scales(m, l.parts[0], 1.0f / 8);
    EXPECT_EQ(copies_of_packing(), one);
    expect_packed(true, ScaleStorage::bf16);
}

// ---------------------------------------------------------------------------------------------------------------------
// losses

TEST(SftObjective, LossIsTheSameHoweverItIsCutAndWithoutItsGradient) {
    Model m;
    make_model(m, "int4:g16", 1);
    StepContext c;
    c.batch = some_examples();
    std::vector<float> whole;
    double loss = 0.0;
    for (int64_t budget : {4096, 20, 9}) {
        Trainer t;
        trainer_init(t, m, 64, false);
        SftObjective o;
        o.micro_batch_tokens = budget;
        const StepLoss without = o.loss(t, c, false);
        EXPECT_EQ(squares(gradients(t)), 0.0);
        const StepLoss with = o.loss(t, c, true);
        EXPECT_EQ(with.loss, without.loss);
        EXPECT_EQ(with.forward_tokens, without.forward_tokens);
        if (budget == 4096) whole = gradients(t), loss = with.loss;
        EXPECT_NEAR(with.loss, loss, 1e-6);
        EXPECT_LT(distance(gradients(t), whole), ROUNDING) << budget;
    }
    EXPECT_GT(squares(whole), 0.0);
    Trainer t;
    trainer_init(t, m, 64, false);
    SftObjective small;
    small.micro_batch_tokens = 4;
    EXPECT_THROW(small.loss(t, c, true), Error);
}

// Two answers in one conversation are learnt as if each were an example of its own, after what is before it
TEST(SftObjective, EveryAnswerOfAConversation) {
    Model m;
    make_model(m, "int4:g16", 1);
    Example both = example({1, 2}, {3, 4, 5, 6, 7, 8});
    both.learnt = {{0, 2}, {5, 6}};
    StepContext whole, apart;
    whole.batch = {both, example({9}, {10, 11})};
    apart.batch = {example({1, 2}, {3, 4}), example({1, 2, 3, 4, 5, 6, 7}, {8}), example({9}, {10, 11})};
    Trainer t, u;
    trainer_init(t, m, 64, false), trainer_init(u, m, 64, false);
    SftObjective o;
    EXPECT_NEAR(o.loss(t, whole, true).loss, o.loss(u, apart, true).loss, 1e-6);
    EXPECT_GT(squares(gradients(t)), 0.0);
    EXPECT_LT(distance(gradients(t), gradients(u)), ROUNDING);
    Example all = both;
    all.learnt.clear();
    whole.batch[0] = all;
    EXPECT_GT(fabs(o.loss(t, whole, false).loss - o.loss(u, apart, false).loss), 1e-3);
}

// A loss of log-probabilities and entropies, along its gradient; and none without room for it
TEST(ScoreBackward, TheEntropySGradientReachesTheWeights) {
    Model m;
    make_model(m, "none", 1);
    Trainer t;
    trainer_init(t, m, 64, false);
    EXPECT_THROW(score_backward(t, 1, 1.0f, true), Error);
    if (sizeof(floatX) != 4) return;  // rounding would drown the difference below
    trainer_init(t, m, 64, false, OptimizerConfig(), {}, true);
    Batch b;
    ScoredTokens scored;
    for (const std::vector<int>& tokens : {std::vector<int>{3, 50, 9, 2}, {77, 1, 1, 40, 8}}) {
        batch_add_sequence(b, tokens.data(), (int)tokens.size());
        score_last_sequence(scored, b, 1);
    }
    const int64_t R = scored.size();
    const float inverse_temperature = 1.0f / 0.7f;
    std::vector<float> dlogp, dentropy;
    for (int64_t i = 0; i < R; i++) dlogp.push_back(0.3f - 0.1f * i), dentropy.push_back(i % 2 ? 2.0f : 0.5f);
    auto loss = [&] {
        score_forward_training(t, b, scored, inverse_temperature);
        score_fetch(scored, t.score, m.dev);
        double sum = 0.0;
        for (int64_t i = 0; i < R; i++) sum += dlogp[i] * scored.logp[i] + dentropy[i] * scored.entropy[i];
        return sum;
    };
    loss();
    copy_to_device(t.score.dlogp.data, dlogp.data(), R * sizeof(float), m.dev);
    copy_to_device(t.score.dentropy.data, dentropy.data(), R * sizeof(float), m.dev);
    score_backward(t, R, inverse_temperature, true);
    const std::vector<float> g = gradients(t);
    std::vector<float> kept(m.num_params);
    copy_to_host(kept.data(), m.master.data, m.master.bytes(), m.dev);
    const double norm = sqrt(squares(g)), h = 5e-3 / norm;
    auto moved = [&](double by) {
        std::vector<float> w = kept;
        for (size_t i = 0; i < w.size(); i++) w[i] += (float)(by * g[i]);
        copy_to_device(m.master.data, w.data(), m.master.bytes(), m.dev);
        model_refresh(m);
        return loss();
    };
    EXPECT_NEAR((moved(h) - moved(-h)) / (2 * h) / (norm * norm), 1.0, 2e-3);
}

TEST(Distill, LossIsTheSameHoweverItIsCutAndWithoutItsGradient) {
    std::vector<float> whole;
    double loss = 0.0;
    for (int64_t budget : {4096, 20, 9}) {
        Pair p("int3:g16", 2, budget);
        p.d.config.alpha = 0.7;
        p.d.config.temperature = 2.0;
        p.d.config.top_k = 20;
        const double without = p.loss(false);
        EXPECT_EQ(squares(gradients(p.t)), 0.0);
        EXPECT_EQ(p.loss(true), without);
        if (budget == 4096) whole = gradients(p.t), loss = without;
        EXPECT_NEAR(without, loss, 1e-6);
        EXPECT_LT(distance(gradients(p.t), whole), ROUNDING) << budget;
    }
    EXPECT_GT(squares(whole), 0.0);
}

// The loss along the gradient g: (L(w + h g) - L(w - h g)) / 2h = |g|^2. Of fp32 weights, or rounding would drown it.
TEST(Distill, GradientIsTheLossS) {
    if (sizeof(floatX) != 4) GTEST_SKIP() << "needs fp32 working weights";
    for (Divergence divergence : {Divergence::forward_kl, Divergence::reverse_kl, Divergence::jsd}) {
        Pair p("none", 2);
        p.d.config.divergence = divergence;
        p.d.config.alpha = 0.8;
        p.d.config.top_p = 0.9;
        p.loss(true);
        const std::vector<float> g = gradients(p.t);
        const double norm = sqrt(squares(g)), h = 5e-3 / norm;
        auto moved = [&](double by) {
            std::vector<float> w(p.m.num_params);
            copy_to_host(w.data(), p.m.master.data, p.m.master.bytes(), p.m.dev);
            std::vector<float> kept = w;
            for (size_t i = 0; i < w.size(); i++) w[i] += (float)(by * g[i]);
            copy_to_device(p.m.master.data, w.data(), p.m.master.bytes(), p.m.dev);
            model_refresh(p.m);
            const double loss = p.loss(false);
            copy_to_device(p.m.master.data, kept.data(), p.m.master.bytes(), p.m.dev);
            return loss;
        };
        EXPECT_NEAR((moved(h) - moved(-h)) / (2 * h) / (norm * norm), 1.0, 2e-3) << divergence_names[(int)divergence];
    }
}

TEST(Distill, AStudentThatIsItsTeacherHasNothingToLearn) {
    Pair p("none", 1);
    EXPECT_NEAR(p.loss(true), 0.0, 1e-7);
    EXPECT_LT(squares(gradients(p.t)), 1e-10);
    EXPECT_EQ(p.d.pass.sums.agree, p.d.pass.sums.tokens);
    p.d.config.alpha = 0.0;  // cross-entropy is left
    EXPECT_GT(p.loss(true), 1.0);
    EXPECT_GT(squares(gradients(p.t)), 1e-3);
}

TEST(Distill, WithoutTheDivergenceItIsSft) {
    Pair p("int4:g16", 2);
    p.d.config.alpha = 0.0;
    const double loss = p.loss(true);
    Trainer t;
    trainer_init(t, p.m, 4096, false);
    SftObjective sft;
    EXPECT_NEAR(sft.loss(t, p.c, true).loss, loss, 1e-6);
    EXPECT_LT(distance(gradients(p.t), gradients(t)), ROUNDING);
}

// ---------------------------------------------------------------------------------------------------------------------
// whose completions

static void give_sampling(Pair& p, Tokenizer& tok) {
    tok = tokenizer_byte_level();
    p.d.tok = &tok;
    p.d.rollout.max_completion_length = 6;
    p.d.rollout.n_allowed = 100;
    p.d.rollout.stop_tokens = {3};
    p.d.rollout.max_sequences = 4;
    p.c.batch.pop_back();  // nothing can be sampled without a prompt
}

TEST(Distill, OnPolicyCompletionsAreTheStudentS) {
    Pair p("int4:g16", 2);
    Tokenizer tok;
    RolloutState state;
    give_sampling(p, tok);
    p.d.state = &state;
    p.d.lmbda = 1.0;
    LoopState run;
    ASSERT_TRUE(p.d.prepare(p.t, p.c, run));
    ASSERT_EQ(p.d.samples.size(), p.c.batch.size());
    EXPECT_EQ(run.generated.completion_tokens, p.d.generated.completion_tokens);
    // their log-probabilities under the trainer's forward are those at which they were sampled
    p.d.config.alpha = 0.0;
    double sampled = 0.0, tokens = 0.0;
    for (const Completion& c : p.d.samples)
        for (float logp : c.logps) sampled -= logp, tokens += 1.0;
    EXPECT_NEAR(p.d.loss(p.t, p.c, true).loss, sampled / tokens, 1e-6);
    for (size_t i = 0; i < p.d.examples.size(); i++) EXPECT_EQ(p.d.examples[i].completion, p.d.samples[i].tokens);
    // another step, other samples; the same step again, the same
    const std::vector<Completion> first = p.d.samples;
    p.c.step = 1;
    ASSERT_TRUE(p.d.prepare(p.t, p.c, run));
    EXPECT_NE(p.d.samples[0].tokens, first[0].tokens);
    p.c.step = 0;
    ASSERT_TRUE(p.d.prepare(p.t, p.c, run));
    for (size_t i = 0; i < first.size(); i++) EXPECT_EQ(p.d.samples[i].tokens, first[i].tokens);
    p.c.stop = [] { return true; };
    EXPECT_FALSE(p.d.prepare(p.t, p.c, run));
}

TEST(Distill, LmbdaIsTheShareOfOnPolicySteps) {
    DistillObjective d;
    for (double lmbda : {0.0, 0.3, 1.0}) {
        d.lmbda = lmbda;
        int n = 0;
        for (int step = 0; step < 2000; step++) n += d.student_samples(step);
        EXPECT_NEAR(n / 2000.0, lmbda, lmbda == 0.3 ? 0.03 : 0.0);
    }
}

TEST(Distill, TheTeacherSSamplesAreGraded) {
    Pair p("int4:g16", 2);
    Tokenizer tok;
    give_sampling(p, tok);
    p.d.seq_kd = true;
    LoopState run;
    ASSERT_TRUE(p.d.prepare(p.t, p.c, run));
    ASSERT_EQ(p.d.examples.size(), p.c.batch.size());
    EXPECT_EQ(p.d.traces, Traces::teacher);
    p.d.only_correct = true;
    for (Example& e : p.c.batch) e.prompt.gold = "no byte of a random model says this";
    ASSERT_TRUE(p.d.prepare(p.t, p.c, run));
    EXPECT_TRUE(p.d.examples.empty());
    // a step with nothing to learn from moves nothing
    const StepLoss l = p.d.loss(p.t, p.c, true);
    EXPECT_TRUE(l.empty);
    std::vector<float> before(p.m.num_params), after(p.m.num_params);
    copy_to_host(before.data(), p.m.master.data, p.m.master.bytes(), p.m.dev);
    OptimizerResult r = optimizer_step(
        p.t, 0.1, [&](bool gradient) { return p.d.loss(p.t, p.c, gradient); }, Pass());
    copy_to_host(after.data(), p.m.master.data, p.m.master.bytes(), p.m.dev);
    EXPECT_TRUE(r.skipped);
    EXPECT_EQ(before, after);
    // and those that are right stay
    for (size_t i = 0; i < p.d.samples.size(); i++) p.d.samples[i].tokens = {'#', '#', '#', '#', ' ', '7', 3};
    p.d.examples = p.c.batch;
    for (size_t i = 0; i < p.d.examples.size(); i++) p.d.examples[i].prompt.gold = i % 2 ? "7" : "8";
    for (Completion& c : p.d.samples) c.finished = c.stop_token = true;
    p.d.take_samples();
    EXPECT_EQ(p.d.examples.size(), p.c.batch.size() / 2);
}

// ---------------------------------------------------------------------------------------------------------------------
// the loop

struct Counting : Objective {
    int prepared = 0, losses = 0, updates = 1;
    int64_t stop_in_loss = -1, done_after = -1;
    int iterations() const override { return updates; }
    bool prepare(Trainer&, const StepContext& c, LoopState&) override { return prepared++, !step_stop(c); }
    StepLoss loss(Trainer& t, const StepContext& c, bool gradient) override {
        losses++;
        EXPECT_TRUE(gradient);
        EXPECT_EQ((bool)c.stop, (losses - 1) % updates == 0) << "only before the first update can a step be abandoned";
        if (prepared - 1 == stop_in_loss) return {0.0, 0, true};
        set_zero(t.grads.data, t.grads.bytes(), t.model->dev);
        return {1.0, 10};
    }
    std::string line(const StepReport& r) const override { return line_step(r) + " " + line_update(r); }
    bool done() override { return prepared == done_after; }
};

// the first update moves all weights, the second is skipped
struct MovesOnce : Counting {
    StepLoss loss(Trainer& t, const StepContext& c, bool) override {
        for (size_t i = 0; i < t.grads.size; i++) t.grads.data[i] = c.update == 0 ? 1.0f : NAN;
        return {1.0, 10};
    }
};

TEST(TrainLoop, FlipsAreThoseOfAllUpdatesOfAStep) {
    Model m;
    make_model(m, "int4:g16", 1);
    Trainer t;
    trainer_init(t, m, 64, false);
    TrainingData data = training_data(some_examples(), 4, 0);
    LoopConfig c;
    c.steps = 5, c.learning_rate = 0.05;
    for (const int updates : {1, 2}) {
        MovesOnce o;
        o.updates = updates;
        LoopState state;
        StepReport r;
        ASSERT_TRUE(loop_step(t, o, data, c, state, r));
        EXPECT_GT(r.update.flip_rate, 0.01) << updates;
        EXPECT_EQ(r.update.flip_rate, code_flip_rate(m, false));
        EXPECT_EQ(r.update.flip_total, code_flip_rate(m, true));
        EXPECT_EQ(r.update.skipped, updates == 2);
    }
}

TEST(TrainLoop, CountsStepsUpdatesAndEnds) {
    Model m;
    make_model(m, "int4:g16", 1);
    Trainer t;
    trainer_init(t, m, 64, false);
    TrainingData data = training_data(some_examples(), 4, 0);
    LoopConfig c;
    c.steps = 5;
    c.stop = [] { return false; };
    std::vector<int64_t> evaluated, saved;
    c.eval_steps = 2, c.save_steps = 1;
    c.evaluate = [&](int64_t step, nlohmann::ordered_json&) { return evaluated.push_back(step), true; };
    c.save = [&](int64_t step) { saved.push_back(step); };
    testing::internal::CaptureStdout();
    Counting all;
    all.updates = 3;
    LoopState state;
    train_loop(t, all, data, c, state);
    EXPECT_EQ(state.step, 5);
    EXPECT_EQ(all.losses, 15);
    EXPECT_EQ(t.step, 15);
    EXPECT_EQ(state.tokens_trained, 150);
    EXPECT_EQ(evaluated, (std::vector<int64_t>{2, 4}));
    EXPECT_EQ(saved, (std::vector<int64_t>{1, 2, 3, 4})) << "the last one is the command's";

    Counting abandoned;
    abandoned.stop_in_loss = 2;
    LoopState second;
    train_loop(t, abandoned, data, c, second);
    EXPECT_EQ(second.step, 2);
    EXPECT_EQ(t.step, 17) << "an abandoned step moves nothing";

    Counting early;
    early.done_after = 3;
    LoopState third;
    train_loop(t, early, data, c, third);
    EXPECT_EQ(third.step, 3);

    Counting stopped;
    c.stop = [] { return true; };
    LoopState none;
    train_loop(t, stopped, data, c, none);
    EXPECT_EQ(none.step, 0);
    EXPECT_EQ(stopped.prepared, 0);
    testing::internal::GetCapturedStdout();
}

// What a stop leaves is what a run can go on from: nothing of a step that was given up, and an evaluation still to come
TEST(TrainLoop, AStopLeavesNothingHalfDone) {
    Model m;
    make_model(m, "int4:g16", 1);
    Trainer t;
    trainer_init(t, m, 64, false);
    TrainingData data = training_data(some_examples(), 4, 0);
    LoopConfig c;
    c.steps = 4;
    c.stop = [] { return false; };
    c.eval_steps = 2;
    int asked = 0;
    c.evaluate = [&](int64_t step, nlohmann::ordered_json& j) {
        EXPECT_EQ(j["step"], step);
        return asked++ > 0;
    };
    testing::internal::CaptureStdout();
    Counting objective;
    LoopState state;
    train_loop(t, objective, data, c, state);
    EXPECT_EQ(state.step, 2) << "stopped in its evaluation";
    EXPECT_EQ(state.pending["step"], 2);
    EXPECT_TRUE(state.whole);
    objective.prepared = 0, objective.stop_in_loss = 1;
    t.passes = 7;
    train_loop(t, objective, data, c, state);
    EXPECT_EQ(asked, 2) << "it is done first";
    EXPECT_TRUE(state.pending.is_null());
    EXPECT_EQ(state.step, 3);
    EXPECT_EQ(t.passes, 7u);
    EXPECT_EQ(t.step, 3);

    struct Failing : Counting {
        StepLoss loss(Trainer& t, const StepContext& c, bool gradient) override {
            if (losses == 3) fail("the second update of the second step");
            return Counting::loss(t, c, gradient);
        }
    } failing;
    failing.updates = 2;
    LoopState failed;
    EXPECT_THROW(train_loop(t, failing, data, c, failed), Error);
    EXPECT_EQ(failed.step, 1);
    EXPECT_FALSE(failed.whole) << "its weights are between two updates";
    testing::internal::GetCapturedStdout();
}

// the metrics of each step but the last, of a run whose weights are trained at one rate
static std::vector<nlohmann::ordered_json> statistics_of_run(double rate, const std::string& hadamard = "none") {
    Model m;
    m.dev = model_device();
    model_allocate(m, tiny_config());
    model_quantize(m, rules_of("int4:g16"), true);
    model_rotate(m, hadamard);
    model_init_random(m, 1);
    model_refresh(m);
    Trainer t;
    OptimizerConfig optimizer;
    optimizer_rates(optimizer, rate, 0.0);
    trainer_init(t, m, 64, false, optimizer);
    quant_statistics_plan(t.statistics, m, QuantStatisticsKind::history);
    quant_statistics_start(t.statistics, m);
    struct Twice : SftObjective {
        int iterations() const override { return 2; }
    } objective;
    objective.micro_batch_tokens = 64;
    const std::vector<Example> examples = some_examples();
    const TrainingData data = training_data({examples[3], examples[4]}, 2, 0);
    LoopConfig c;
    c.steps = 4, c.learning_rate = rate, c.flips_counted = true, c.eval_steps = 1;
    std::vector<nlohmann::ordered_json> rows;
    c.evaluate = [&](int64_t, nlohmann::ordered_json& j) { return rows.push_back(j), true; };
    LoopState state;
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    train_loop(t, objective, data, c, state);
    testing::internal::GetCapturedStdout(), testing::internal::GetCapturedStderr();
    // what a checkpoint holds of it comes back, and nothing else does
    nlohmann::ordered_json saved;
    saved["quant_statistics"] = quant_statistics_save(t.statistics);
    QuantStatistics again;
    quant_statistics_plan(again, m, QuantStatisticsKind::history);
    quant_statistics_load(again, saved, "here");
    EXPECT_EQ(again.crossed, t.statistics.crossed);
    saved["quant_statistics"]["crossed"].erase(0);
    EXPECT_THROW(quant_statistics_load(again, saved, "here"), Error);
    return rows;
}

// What no step can flip drifts inside its cell; what many can does not stay there
TEST(TrainLoop, GridStatisticsFollowTheRate) {
    const std::vector<nlohmann::ordered_json> still = statistics_of_run(1e-7), moving = statistics_of_run(3e-3);
    ASSERT_EQ(still.size(), 3u);
    EXPECT_GT(still[0]["quant/deadzone_share"], 0.98);
    EXPECT_GT(still[0]["quant/deadzone_share_step"], still[0]["quant/deadzone_share"]);
    EXPECT_EQ(moving[0]["quant/deadzone_share"], 0.0) << "an int4 cell is about 0.01 wide";
    EXPECT_GT(moving[0]["quant/deadzone_share_step"], 0.01);
    EXPECT_LT(moving[0]["quant/deadzone_share_step"], 0.9);
    EXPECT_EQ(still[2]["quant/oscillating_share"], 0.0);
    double total = 0.0;
    for (size_t i = 0; i < still.size(); i++) {
        const double cells = still[i]["quant/learning_rate_in_cells"], drift = still[i]["quant/master_drift"];
        total += cells;
        EXPECT_NEAR(still[i]["quant/learning_rate_in_cells_total"], total, 1e-3 * total);
        EXPECT_GT(drift, i ? (double)still[i - 1]["quant/master_drift"] : 0.0) << i;
        EXPECT_LE(drift, 1.05 * total) << "Adam moves a weight by the rate";
    }
    EXPECT_LT(still[2]["quant/scale_drift"], 1e-3);
    EXPECT_GT(moving[2]["quant/scale_drift"], 0.05);
    EXPECT_GT(moving[2]["quant/master_drift"], still[2]["quant/master_drift"]);
    EXPECT_GT(moving[2]["quant/oscillating_share"], 0.001);
    // weights that lie evenly in their cells have the noise of that
    EXPECT_NEAR(still[0]["quant/grid_noise_in_cells"], 1.0 / std::sqrt(12.0), 0.05);
}

// Weights are compared with the Q of the basis that they are quantized in
TEST(TrainLoop, GridStatisticsAreOfTheQuantizedBasis) {
    const std::vector<nlohmann::ordered_json> rotated = statistics_of_run(1e-7, "all");
    EXPECT_LT(rotated[0]["quant/grid_noise"], 0.2);
    EXPECT_NEAR(rotated[0]["quant/grid_noise_in_cells"], 1.0 / std::sqrt(12.0), 0.05);
    EXPECT_LT(rotated[0]["quant/master_drift"], 1e-4);
}

TEST(TrainLoop, ColdStartEndsBelowItsTargetAndLeavesTheTrainerAsNew) {
    Model m;
    make_model(m, "int4:g16", 1);
    Trainer t;
    trainer_init(t, m, 512, false);
    t.max_grad_norm = 0.25;
    ColdStartConfig c;
    c.max_steps = 400, c.batch = 4, c.window = 3, c.target = 1.5;
    testing::internal::CaptureStdout();
    cold_start(
        t, c, 64,
        [](int64_t) {
            return example({1, 2}, {3, 4, 5});
        },
        [] { return false; });
    testing::internal::GetCapturedStdout();
    EXPECT_EQ(t.step, 0);
    EXPECT_EQ(t.max_grad_norm, 0.25);
    EXPECT_EQ(t.optimizer.config.beta2, 0.999f);
    SftObjective o;
    StepContext s;
    s.batch = {example({1, 2}, {3, 4, 5})};
    s.pass = full_precision();
    model_refresh(m, false);
    EXPECT_LT(o.loss(t, s, false).loss, 1.6);
}

// ---------------------------------------------------------------------------------------------------------------------
// an optimizer without a backward

// Two losses a step, at weights moved by h z and by -h z, z of signs; then along z by what they differ (Spall 1992, SPSA)
static void spsa(Optimizer& o, const OptimizerStep& step, const std::function<double()>& loss) {
    const float h = 1e-3f;
    auto move = [&](float by) {
        for (const OptimizerTensor& t : o.tensors)
            for (int64_t i = 0; i < t.count(); i++)
                t.weight[i] += rng_bits(9, RNG_INIT, (uint32_t)step.step, t.number, (uint32_t)i).x[0] & 1 ? by : -by;
    };
    move(h);
    const double up = loss();
    move(-2 * h);
    const double down = loss();
    move(h - (float)(step.rate * (up - down) / (2 * h)));
}

TEST(Optimizers, OneMayLearnFromLossesAlone) {
    Model m;
    make_model(m, "none", 1);
    Trainer t;
    trainer_init(t, m, 64, false);
    UpdateRule rule = *t.optimizer.rule;
    rule.search = spsa;
    t.optimizer.rule = &rule;
    // gradients that anything would add would stay
    SftObjective o;
    TrainingData data = training_data(some_examples(), 10, 0);
    LoopConfig c;
    c.steps = 30;
    c.learning_rate = 1e-4;
    c.stop = [] { return false; };
    StepContext all;
    all.batch = some_examples();
    const double before = o.loss(t, all, false).loss;
    LoopState state;
    testing::internal::CaptureStdout();
    train_loop(t, o, data, c, state);
    testing::internal::GetCapturedStdout();
    EXPECT_LT(o.loss(t, all, false).loss, before - 0.015);
    EXPECT_EQ(squares(gradients(t)), 0.0);
    EXPECT_EQ(t.step, 30);
}
