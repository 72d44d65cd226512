// What is made of a step's completions: loops and garbled text, the policy's means over their tokens, and dynamic
// sampling, with a sampler of made-up completions and with a tiny random model.
#include <gtest/gtest.h>
#include <algorithm>
#include <cmath>
#include <set>
#include <vector>
#include "../grpo.cuh"
#include "test_device.h"
#include "tiny_model.h"

typedef std::vector<int> Ints;

static const Tokenizer& byte_level() {
    static const Tokenizer tok = tokenizer_byte_level();
    return tok;
}

// ---------------------------------------------------------------------------------------------------------------------
// loops.h

TEST(Loops, TextThatIsNone) {
    EXPECT_FALSE(is_garbled("", true));
    EXPECT_FALSE(is_garbled("14-7=7\n\t#### 7\r\n", true));
    EXPECT_FALSE(is_garbled("na\xc3\xafve \xe6\x95\xb0 \xf0\x9f\x98\x80", true));
    const std::string twenty = "abcdefghijklmnopqrst", bad = "\xEF\xBF\xBD";
    EXPECT_FALSE(is_garbled(twenty.substr(1) + bad, true)) << "1 in 20";
    EXPECT_TRUE(is_garbled(twenty.substr(2) + bad, true)) << "1 in 19";
    EXPECT_TRUE(is_garbled("abc\xff", true));
    EXPECT_TRUE(is_garbled(std::string("ab\0c", 4), true));
    EXPECT_TRUE(is_garbled("ab\x7f", true));
    EXPECT_TRUE(is_garbled("ab\xc2\x85", true)) << "a control character of two bytes";
    for (const std::string& half : {bad, std::string("\xe6\x95")}) {
        EXPECT_FALSE(is_garbled("abc" + half, false)) << "cut off within a character";
        EXPECT_TRUE(is_garbled("abc" + half, true));
        EXPECT_TRUE(is_garbled("abc" + bad + half, false));
    }
}

// `times` times the piece, behind a text that repeats nothing
static Ints loop(int before, const Ints& piece, int times) {
    Ints t;
    for (int i = 0; i < before; i++) t.push_back(1000 + i);
    for (int i = 0; i < times; i++) t.insert(t.end(), piece.begin(), piece.end());
    return t;
}

TEST(Loops, TokensThatGoRoundInCircles) {
    EXPECT_FALSE(is_repeating({}, false));
    EXPECT_FALSE(is_repeating(loop(200, {}, 0), false));
    EXPECT_FALSE(is_repeating(loop(100, {5}, 15), false)) << "15 tokens";
    EXPECT_TRUE(is_repeating(loop(100, {5}, 16), false));
    EXPECT_FALSE(is_repeating(loop(0, {5}, 15), false)) << "too short to be called a loop";
    Ints ten, many, own = loop(100, {5}, 15);
    for (int i = 0; i < 10; i++) ten.push_back(i);
    for (int i = 0; i < LOOP_PERIOD + 1; i++) many.push_back(i);
    EXPECT_FALSE(is_repeating(loop(100, ten, 3), false));
    EXPECT_TRUE(is_repeating(loop(100, ten, 4), false));
    Ints unfinished = loop(100, ten, 4);
    unfinished.insert(unfinished.end(), ten.begin(), ten.begin() + 3);
    EXPECT_TRUE(is_repeating(unfinished, false)) << "a loop may end anywhere in its piece";
    own.push_back(5);
    EXPECT_TRUE(is_repeating(own, false));
    EXPECT_FALSE(is_repeating(own, true)) << "the last one is the stop token";
    own.push_back(9);
    EXPECT_FALSE(is_repeating(own, false)) << "it got out of it";
    EXPECT_TRUE(is_repeating(own, true));
    // a counter in a loop has no period; 3-grams: 59 of 98 came before
    Ints counting;
    for (int i = 0; i < 20; i++)
        for (int t : {1, 2, 3, 4, 100 + i}) counting.push_back(t);
    EXPECT_NEAR(repeated_ngram_share(counting, 3), 1.0 - (2 + 20 * 3 - 2) / 98.0, 1e-12);
    EXPECT_FALSE(is_repeating(counting, false));
    counting.clear();
    for (int i = 0; i < 20; i++)
        for (int t : {1, 2, 3, 4, 5, 6, 100 + i}) counting.push_back(t);
    EXPECT_TRUE(is_repeating(counting, false));
    EXPECT_TRUE(is_repeating(loop(0, many, 4), false)) << "longer than LOOP_PERIOD: its 3-grams";
}

// ---------------------------------------------------------------------------------------------------------------------
// rewards over ranks

TEST(RewardsOverRanks, PartsJoinToTheWholeInTheSameBits) {
    const RewardSet set = rewards_parse("exact,format,overlong:cache=3,majority", "1,0.5,0.25,2");
    const std::string prompt = "1+1=?", gold = "2", rows[] = {"", "exact,overlong"};
    const std::vector<std::string> texts = {"#### 2", "#### 3", "2", "#### 2", "#### 2", "", "#### 3", "#### 3"};
    const std::vector<Ints> tokens = {{1}, {1, 2}, {1, 2, 3}, {1, 2, 3, 4}, {1}, {1, 2}, {1, 2, 3}, {1, 2, 3, 4}};
    std::vector<RewardInput> in;
    std::vector<int> group;
    for (int i = 0; i < 8; i++) {
        in.push_back({prompt, texts[i], gold, true, tokens[i], 5, {}, nullptr, &rows[i / 2 == 2]});
        group.push_back(i / 2);
    }
    RewardedGroup whole, joined;
    EXPECT_EQ(reward_part(whole, set, in, group, 0, 8), 0);
    for (size_t world : {1, 2, 4}) {
        std::vector<int> gathered;
        for (size_t k = 0; k < world; k++) {
            RewardedGroup part;
            const int state = reward_part(part, set, in, group, 8 / world * k, 8 / world * (k + 1));
            part.failed[1] = (int)k;
            const std::vector<int> share = reward_share(part, state);
            gathered.insert(gathered.end(), share.begin(), share.end());
        }
        EXPECT_TRUE(reward_join(joined, gathered, world, 8, 4));
        EXPECT_EQ(joined.failed, (Ints{0, (int)(world * (world - 1) / 2), 0, 0}));
        for (size_t f = 0; f < 4; f++)
            EXPECT_EQ(memcmp(joined.each[f].data(), whole.each[f].data(), 8 * sizeof(float)), 0) << f;
        EXPECT_EQ(memcmp(reward_totals(set, joined.each, 8).data(), whole.total.data(), 8 * sizeof(float)), 0);
        for (const int state : {1, 2}) {
            gathered[gathered.size() / world * (world - 1)] = state;
            EXPECT_EQ(reward_join(joined, gathered, world, 8, 4), state != 1);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// dynamic sampling, with a sampler of made-up completions

// Prompts whose gold answer is 1, by number; those in `mixed` are answered right by some samples, the others by none
struct MadeUp {
    static constexpr int G = 4, count = 40, per_step = 6;
    std::set<int> mixed;
    TrainingData data;
    StepContext context;
    Comm comm;
    Redraw redraw;
    std::vector<Example> batch;
    std::vector<Completion> samples;
    std::vector<std::vector<int>> asked;  // [batches] further prompts
    std::vector<int> firsts;              // [batches]
    DynamicSampling counts;

    explicit MadeUp(const std::set<int>& mixed, int64_t step = 3, int max_batches = 10, int world = 1) : mixed(mixed) {
        std::vector<Example> all;
        for (int i = 0; i < count; i++) all.push_back({{std::to_string(i), "1", {i}}, {}});
        data = training_data(all, per_step, 9);
        data.whole_steps = true;
        context.step = step;
        context.batch = batch = training_batch(data, step);
        context.more = [this](int64_t first, int64_t n) { return further_examples(data, context.step, first, n); };
        comm.world = world;
        if (world > 1) context.comm = &comm;
        redraw.G = G, redraw.max_batches = max_batches;
        redraw.sample = [this](const std::vector<std::vector<int>>& prompts, int first) {
            asked.emplace_back(), firsts.push_back(first);
            for (const std::vector<int>& p : prompts) asked.back().push_back(p[0]);
            return sample(prompts);
        };
        redraw.outcome = [](const std::vector<Example>& e, const std::vector<Completion>& done) {
            return completion_outcomes(byte_level(), rewards_parse("exact", ""), e, done, 10);
        };
        std::vector<std::vector<int>> prompts;
        for (const Example& e : batch) prompts.push_back(e.prompt.tokens);
        samples = sample(prompts);
    }
    std::vector<Completion> sample(const std::vector<std::vector<int>>& prompts) const {
        std::vector<Completion> done;
        for (size_t p = 0; p < prompts.size(); p++)
            for (int s = 0; s < G; s++) {
                const bool right = mixed.count(prompts[p][0]) && s % 2;
                const std::string text = right ? "#### 1" : "#### 2";
                Completion c;
                c.prompt = (int)p, c.sample = s, c.finished = c.stop_token = true;
                for (char letter : text) c.tokens.push_back((unsigned char)letter);
                c.tokens.push_back(256);  // the stop token
                c.logps.assign(c.tokens.size(), -(float)prompts[p][0]);
                done.push_back(c);
            }
        return done;
    }
    bool run() { return redraw_groups(batch, samples, redraw, context, counts); }
    std::vector<int> numbers() const {  // of the batch; its samples go with it
        std::vector<int> n;
        for (size_t p = 0; p < batch.size(); p++) {
            n.push_back(batch[p].prompt.tokens[0]);
            for (int s = 0; s < G; s++) {
                const Completion& c = samples[p * G + s];
                EXPECT_EQ(c.prompt, (int)p);
                EXPECT_EQ(c.sample, s);
                EXPECT_EQ(c.logps[0], -(float)n.back());
            }
        }
        return n;
    }
    static std::set<int> all_but(const std::set<int>& left_out) {
        std::set<int> all;
        for (int i = 0; i < count; i++)
            if (!left_out.count(i)) all.insert(i);
        return all;
    }
};

TEST(DynamicSampling, ReplacesTheGroupsWithoutAnAdvantageAndNoOthers) {
    const MadeUp before({});
    const std::vector<int> own = before.numbers();
    // all of the step's own but the second and the fourth are mixed, and every other of the further ones is
    std::set<int> mixed = {own[0], own[2], own[4], own[5]};
    const std::vector<Example> further = further_examples(before.data, 3, 0, 100);
    ASSERT_EQ(further.size(), (size_t)(MadeUp::count - MadeUp::per_step));
    for (size_t i = 1; i < further.size(); i += 2) mixed.insert(further[i].prompt.tokens[0]);
    auto number = [&](int i) { return further[i].prompt.tokens[0]; };
    MadeUp m(mixed);
    ASSERT_TRUE(m.run());
    // two are drawn, of which the second is taken; then one, which is not; then one that is
    EXPECT_EQ(m.asked, (std::vector<std::vector<int>>{{number(0), number(1)}, {number(2)}, {number(3)}}));
    EXPECT_EQ(m.firsts, (std::vector<int>{6, 8, 9}));
    EXPECT_EQ(m.numbers(), (std::vector<int>{own[0], number(1), own[2], number(3), own[4], own[5]}));
    EXPECT_EQ(m.counts.generated_groups, 6 + 4);
    EXPECT_EQ(m.counts.redrawn_groups, 2);
    EXPECT_EQ(m.counts.left_zero_std, 0);
    EXPECT_EQ(m.counts.batches, 4);
}

TEST(DynamicSampling, NothingToReplaceAndNothingToReplaceWith) {
    MadeUp good(MadeUp::all_but({}));
    const std::vector<int> own = good.numbers();
    ASSERT_TRUE(good.run());
    EXPECT_TRUE(good.asked.empty());
    EXPECT_EQ(good.numbers(), own);
    EXPECT_EQ(good.counts.batches, 1);
    EXPECT_EQ(good.counts.generated_groups, 6);

    MadeUp capped({}, 3, 4);
    ASSERT_TRUE(capped.run());
    EXPECT_EQ(capped.asked.size(), 3u) << "its own batch counts";
    EXPECT_EQ(capped.counts.batches, 4);
    EXPECT_EQ(capped.counts.left_zero_std, 6);
    EXPECT_EQ(capped.numbers(), own) << "what is missing keeps its first prompt";

    MadeUp all({}, 3, 60);
    ASSERT_TRUE(all.run());
    std::set<int> seen(own.begin(), own.end());
    for (const std::vector<int>& batch : all.asked)
        for (int i : batch) EXPECT_TRUE(seen.insert(i).second) << "asked twice";
    EXPECT_EQ(seen.size(), (size_t)MadeUp::count);
    EXPECT_EQ(all.counts.generated_groups, MadeUp::count);
    EXPECT_EQ(all.counts.batches, 1 + 6);  // 34 by sixes
}

TEST(DynamicSampling, DependsOnSeedAndStepAlone) {
    MadeUp a({}), b({}), c({}, 4), d({});
    d.data.seed++;
    for (MadeUp* m : {&a, &b, &c, &d}) ASSERT_TRUE(m->run());
    EXPECT_EQ(a.asked, b.asked);
    EXPECT_NE(a.asked, c.asked);
    EXPECT_NE(a.asked, d.asked);
    // and the order of the run is what it was
    EXPECT_EQ(training_indices(a.data, 4), training_indices(MadeUp({}).data, 4));
}

#if !HAS_NCCL
// what fills a batch up to a multiple of the ranks is not used, also where it would be of use
TEST(DynamicSampling, TheNumberOfRanksChangesNothing) {
    for (int world : {2, 3}) {
        const std::vector<int> own = MadeUp({}).numbers();
        const std::vector<Example> further = further_examples(MadeUp({}).data, 3, 0, 100);
        std::set<int> mixed = {own[0], own[2], own[3], own[4], own[5]};
        for (int i : {3, 4, 5}) mixed.insert(further[i].prompt.tokens[0]);
        MadeUp one(mixed), many(mixed, 3, 10, world);
        ASSERT_TRUE(one.run() && many.run());
        EXPECT_EQ(one.numbers(), many.numbers());
        EXPECT_EQ(one.firsts, many.firsts);
        for (const std::vector<int>& batch : many.asked) EXPECT_EQ(batch.size() % world, 0u);
        EXPECT_EQ(one.counts.generated_groups, many.counts.generated_groups);
    }
}

#endif

TEST(DynamicSampling, StopsWhenAsked) {
    MadeUp m({});
    m.context.stop = [&] { return m.asked.size() == 2; };
    EXPECT_FALSE(m.run());
    EXPECT_EQ(m.asked.size(), 2u);
}

// a group that is all wrong is replaced though a shaped reward tells its completions apart
TEST(DynamicSampling, GoesByOutcomes) {
    MadeUp m({});
    m.redraw.outcome = [](const std::vector<Example>& e, const std::vector<Completion>& done) {
        const RewardSet set = outcome_rewards(rewards_parse("boxed,overlong,exact", "2,1,0.5"));
        return completion_outcomes(byte_level(), set, e, done, 10);
    };
    auto text = [&](int s, const char* t) {
        Completion& c = m.samples[s];
        c.tokens.assign(t, t + strlen(t));
        c.tokens.push_back(256);
    };
    text(0, "\\boxed{2}");  // 0.1 of `boxed`, 0 of the outcome
    text(4, "\\boxed{1}");
    text(8, "#### 1");
    const std::vector<float> o = m.redraw.outcome(m.batch, m.samples);
    EXPECT_EQ(o[0], 0.0f);
    EXPECT_EQ(o[4], 2.5f);
    EXPECT_EQ(o[8], 0.5f);
    EXPECT_EQ(silent_groups(o, 4), (std::vector<int>{0, 3, 4, 5}));
}

// ---------------------------------------------------------------------------------------------------------------------
// with a model

static void random_model(Model& m) {
    m.dev = model_device();
    model_allocate(m, tiny_config(2));
    model_init_random(m, 7);
    for (size_t i = 0; i < m.num_params; i++) m.master[i] *= 5.0f;
    model_quantize(m, rules_of("int4:g32:sym", "all", ScaleMode::dynamic, SteRule::identity), true);
    model_refresh(m);
}

static RolloutConfig sampling(float temperature) {
    RolloutConfig c;
    c.sampling.temperature = temperature;
    c.max_completion_length = 9;
    c.stop_tokens = {7, 8, 10};
    c.n_allowed = 97;
    c.seed = 11;
    return c;
}

// against the logits in float64: entropy and KL(uniform || p) of each token, for every way of cutting the batch
TEST(TokenMeans, AreThoseOfAllTheLogits) {
    Model m;
    random_model(m);
    Trainer t;
    trainer_init(t, m, 64, false);
    const float temperature = 0.7f;
    const std::vector<Ints> prompts = {{5, 9, 3}, {1}, {60, 11, 12, 90, 4}};
    RolloutState state;
    const std::vector<Completion> done = rollout(m, state, prompts, 3, sampling(temperature));
    const std::vector<TokenMeans> got = token_means(t, Pass(), prompts, done, temperature, 64, nullptr);
    const std::vector<TokenMeans> cut = token_means(t, Pass(), prompts, done, temperature, 16, nullptr);
    ASSERT_EQ(got.size(), done.size());
    for (size_t i = 0; i < done.size(); i++) {
        SampleBatch b = sample_batch({(int)i}, prompts, done);
        score_hidden(m, t.acts, t.score, b.batch, b.scored, Pass());
        double entropy = 0.0, certainty = 0.0;
        for (int64_t r = 0; r < b.scored.size(); r++) {
            std::vector<double> z(m.V());
            double total = 0.0;
            for (int v = 0; v < m.V(); v++) {
                for (int c = 0; c < m.C(); c++)
                    z[v] += (double)(float)t.score.hidden[r * m.C() + c] *
                            (double)(float)m.head.work[(int64_t)v * m.C() + c] / temperature;
                total += std::exp(z[v]);
            }
            for (int v = 0; v < m.V(); v++) {
                const double p = std::exp(z[v]) / total;
                entropy -= p * std::log(p) / (double)b.scored.size();
                certainty -= std::log(m.V() * p) / m.V() / (double)b.scored.size();
            }
        }
        EXPECT_NEAR(got[i].entropy, entropy, 1e-4);
        EXPECT_NEAR(got[i].self_certainty, certainty, 1e-4);
        EXPECT_GT(certainty, 0.01);
        EXPECT_EQ(got[i].entropy, cut[i].entropy);
        EXPECT_EQ(got[i].self_certainty, cut[i].self_certainty);
    }
}

#if !defined(TRAIN_QRL_SIMT)  // half a minute there, for no kernel of its own
// Rewards a token: a further prompt's completions are drawn with keys of their own, those of prompts that stay are what
// they were, and one step repeated is the same step
struct TokenObjective : GrpoObjective {
    RewardedGroup reward() const override {
        RewardedGroup r;
        for (const Completion& c : samples) r.total.push_back((float)c.tokens[0]);
        r.each = {r.total};
        r.texts.resize(samples.size());
        return r;
    }
};

static void prepare(TokenObjective& o, Trainer& t, RolloutState& state, const TrainingData& data, int dynamic_batches) {
    o.tok = &byte_level();
    o.state = &state;
    o.rollout = sampling(1.0f);
    o.config.num_generations = 3;
    o.config.max_completion_length = 9;
    o.config.dynamic_batches = dynamic_batches;
    o.rewards = rewards_parse("majority", "");
    StepContext c;
    c.step = 2;
    c.batch = training_batch(data, 2);
    c.more = [&](int64_t first, int64_t n) { return further_examples(data, 2, first, n); };
    LoopState run;
    ASSERT_TRUE(o.prepare(t, c, run));
    EXPECT_EQ(run.generated.completion_tokens, o.generated.completion_tokens);
}

TEST(DynamicSampling, OfAModel) {
    Model m;
    random_model(m);
    Trainer t;
    trainer_init(t, m, 64, false);
    RolloutState state;
    std::vector<Example> all;
    for (int i = 0; i < 8; i++) all.push_back({{"", "1", {20 + i}}, {}});
    TrainingData data = training_data(all, 2, 9);
    data.whole_steps = true;
    TokenObjective off, on, again;
    prepare(off, t, state, data, 1);
    prepare(on, t, state, data, 3);  // a random model agrees on nothing: two further batches of two
    prepare(again, t, state, data, 3);
    EXPECT_EQ(on.dynamic.batches, 3);
    EXPECT_EQ(on.dynamic.generated_groups, 2 + 4);
    EXPECT_EQ(on.dynamic.left_zero_std, 2);
    EXPECT_GT(on.generated.completion_tokens, off.generated.completion_tokens);
    EXPECT_EQ(on.generated.prompt_tokens, 3 * off.generated.prompt_tokens);
    for (size_t i = 0; i < off.samples.size(); i++) {
        EXPECT_EQ(off.samples[i].tokens, on.samples[i].tokens);
        EXPECT_EQ(on.samples[i].tokens, again.samples[i].tokens);
    }
    // the same prompt under another number is drawn anew
    RolloutConfig c = sampling(1.0f);
    const std::vector<Completion> first = rollout(m, state, {{20}}, 3, c);
    c.first_prompt = 2;
    const std::vector<Completion> later = rollout(m, state, {{20}}, 3, c);
    EXPECT_TRUE(first[0].tokens != later[0].tokens || first[1].tokens != later[1].tokens);
}
#endif
