// min_p, the repetition penalty and stop strings: the first two against numbers of transformers on single rows, all three
// in rollouts of a tiny random model, where each token is drawn once more from a forward of its whole context.
#include <gtest/gtest.h>
#include <cstring>
#include <numeric>
#include <set>
#include "../eval/scores.h"
#include "../grpo.cuh"
#include "../runtime/options.h"
#include "test_device.h"
#include "tiny_model.h"

// ---------------------------------------------------------------------------------------------------------------------
// one row

struct ProcessorCase {
    std::vector<float> logits;
    std::vector<int> seen;
    SamplingParams p;
    std::vector<float> probabilities;
};

// transformers 5.24: RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper and
// MinPLogitsWarper one after another, as GenerationMixin orders them; then the softmax
static std::vector<ProcessorCase> processor_cases() {
    return {{{-0.11f, 0.54f, -1.17f, 0.11f, 1, -0.43f, 2.43f, -2.4f, -0.08f, -0.46f, 0.37f, -0.33f},
             {3, 3, 0, 7},
             {1, 0, 1, false, 0.1f, 1},
             {0, 0.0995311f, 0, 0, 0.157665f, 0, 0.658833f, 0, 0, 0, 0.0839709f, 0}},
            {{1.37f, 0.31f, 0.86f, 0.62f, 0.39f, 1.4f, -0.77f, -2.48f, 1.57f, 0.78f, -0.25f, 0.08f},
             {1, 2, 11, 5},
             {0.7f, 0, 1, false, 0.05f, 1.3f},
             {0.207325f, 0.0411738f, 0.075354f, 0.0710126f, 0.0511256f, 0.136402f, 0, 0, 0.275889f, 0.0892488f,
              0.0204913f, 0.0319782f}},
            {{0.85f, 3.38f, 2.8f, -1.79f, 1.5f, 0.69f, 3.65f, -0.22f, -0.71f, -0.44f, -0.52f, 0.52f},
             {4, 4, 4, 4},
             {1.2f, 6, 0.9f, false, 0.15f, 0.8f},
             {0, 0.317022f, 0.195515f, 0, 0.0904505f, 0, 0.397013f, 0, 0, 0, 0, 0}},
            {{0.06f, -0.1f, 0.64f, -1.3f, -0.41f, 0.21f, 0.19f, 1.02f, -1.44f, 0.1f, 0.99f, 1.23f},
             {0, 1, 2, 3},
             {1, 0, 0.9f, false, 0.3f, 2},
             {0.0694314f, 0, 0.09279f, 0, 0, 0.0831244f, 0.0814785f, 0.186856f, 0, 0.0744657f, 0.181334f, 0.23052f}},
            {{-0.68f, 3.32f, -0.57f, -0.22f, 0.97f, -3.49f, 1.9f, -0.37f, 1.09f, 1.62f, 2.6f, -2.21f},
             {6, 8, 6, 9},
             {1.5f, 5, 1, false, 0.35f, 1.1f},
             {0, 0.617748f, 0, 0, 0, 0, 0, 0, 0, 0, 0.382252f, 0}},
            {{1.71f, 3.09f, -0.65f, 2.66f, 0.5f, 0.75f, 0.82f, -0.4f, -0.88f, 1.31f, -1.96f, 1.03f},
             {10, 10, 2, 0},
             {1.5f, 9, 0.7f, false, 0.1f, 1.5f},
             {0.11704f, 0.429455f, 0, 0.322419f, 0, 0, 0, 0, 0, 0.131086f, 0, 0}}};
}

// equal steps of the uniform number give each token its share of them to within a step
TEST(SamplingOptions, DrawAsTheProcessorsOfTransformers) {
    const int steps = 4000;
    for (const ProcessorCase& c : processor_cases()) {
        const int64_t V = (int64_t)c.logits.size();
        std::vector<float> penalized(V), scratch;
        const std::vector<uint32_t> bits = seen_bits(c.seen, V);
        penalize_row(penalized.data(), c.logits.data(), V, bits.data(), c.p.repetition_penalty);
        std::vector<int> count(V);
        for (int i = 0; i < steps; i++)
            count[sample_row(penalized.data(), V, c.p, ((float)i + 0.5f) / steps, scratch)]++;
        for (int64_t v = 0; v < V; v++) {
            EXPECT_NEAR(count[v], c.probabilities[v] * steps, 1.1) << "token " << v << " min_p " << c.p.min_p;
            EXPECT_EQ(count[v] == 0, c.probabilities[v] == 0.0f) << "token " << v << " min_p " << c.p.min_p;
        }
    }
}

TEST(SamplingOptions, PenaltyBySignAndOnce) {
    const std::vector<float> logits = {3, -3, 3, -3, 0};
    std::vector<float> got(5);
    const std::vector<uint32_t> bits = seen_bits({2, 3, 2, 2, 4}, 5);
    penalize_row(got.data(), logits.data(), 5, bits.data(), 1.5f);
    EXPECT_EQ(got, (std::vector<float>{3, -3, 2, -4.5f, 0}));
    penalize_row(got.data(), logits.data(), 5, nullptr, 1.5f);
    EXPECT_EQ(got, logits);
    const std::vector<uint32_t> all(2, ~0u);  // bits behind the last logit, and the last of a word
    std::vector<float> wide(34, 2.0f), out(33);
    penalize_row(out.data(), wide.data(), 33, all.data(), 2.0f);
    EXPECT_EQ(out, std::vector<float>(33, 1.0f));
}

// ---------------------------------------------------------------------------------------------------------------------
// rollouts

// simulated kernels are slower: shorter completions, and a part of the cases
#if defined(TRAIN_QRL_SIMT)
static constexpr bool SIMULATED = true;
#else
static constexpr bool SIMULATED = false;
#endif
static constexpr int ALLOWED = 97, COMPLETION = SIMULATED ? 6 : 9, SAMPLES = 3;

static void tiny_model(Model& m) {
    m.dev = model_device();
    model_allocate(m, tiny_config(1));
    model_init_random(m, 7);
    for (const ParamTensor& t : m.tensors)
        for (int64_t i = 0; i < t.count() && t.kind != ParamKind::norm; i++) m.master[t.offset + i] *= 5.0f;
    model_refresh(m);
}

static std::vector<std::vector<int>> prompts() { return {{5, 9, 3}, {1}, {2, 2, 2, 60, 2}, {60, 11, 12, 90, 4}}; }

static RolloutConfig config_of(const SamplingParams& p, int slots = 64) {
    RolloutConfig c;
    c.sampling = p;
    c.max_completion_length = COMPLETION;
    c.stop_tokens = {7, 8, 10};
    c.n_allowed = ALLOWED;
    c.max_sequences = slots;
    c.seed = 11;
    c.step = 3;
    return c;
}

static std::vector<Completion> sample(Model& m, const RolloutConfig& c) {
    RolloutState state;
    return rollout(m, state, prompts(), SAMPLES, c);
}

static void expect_same(const std::vector<Completion>& a, const std::vector<Completion>& b, const char* what) {
    ASSERT_EQ(a.size(), b.size()) << what;
    for (size_t i = 0; i < a.size(); i++) {
        EXPECT_EQ(a[i].tokens, b[i].tokens) << what << ", completion " << i;
        EXPECT_EQ(a[i].logps, b[i].logps) << what << ", completion " << i;
        EXPECT_EQ(a[i].finished, b[i].finished) << what << ", completion " << i;
        EXPECT_EQ(a[i].stop_token, b[i].stop_token) << what << ", completion " << i;
    }
}

// the logits [T,V] that follow each of these tokens
static std::vector<float> context_logits(Model& m, const std::vector<int>& tokens) {
    Activations a;
    activations_allocate(a, m, (int64_t)tokens.size(), ActivationMode::inference);
    Batch b;
    batch_add_sequence(b, tokens.data(), (int)tokens.size());
    model_forward(m, a, b);
    std::vector<float> logits(b.T() * m.V());
    Buffer<float> rows;
    rows.allocate(logits.size(), "logits", "", m.dev);
    matmul_nt(Rows<float>{rows.data, m.V()}, {a.hidden, m.C()}, {m.head.work, m.C()}, nullptr, b.T(), m.V(), m.C(),
              m.dev);
    copy_to_host(logits.data(), rows.data, rows.bytes(), m.dev);
    return logits;
}

static std::vector<SamplingParams> penalties() {
    return {{0, 0, 1, false, 0, 1.5f},       {1, 0, 1, false, 0, 3.0f},        {1, 0, 1, true, 0, 0.6f},
            {0.8f, 0, 1, true, 0.05f, 2.0f}, {1.3f, 30, 1, false, 0.1f, 1.4f}, {1, 0, 1, false, 0.1f, 1}};
}

// Which slots there are and who had them before changes no token: each is the draw from its own context's logits, of which
// those of the prompt and of the tokens before are penalized; its log-probability is of the logits without
TEST(SamplingOptions, EachTokenIsDrawnFromItsContextsLogits) {
    Model m;
    tiny_model(m);
    int differs = 0;
    for (const SamplingParams& p : penalties()) {
        if (SIMULATED && p.repetition_penalty < 1.5f) continue;
        const RolloutConfig c = config_of(p);
        const std::vector<Completion> done = sample(m, c);
        for (int slots : SIMULATED ? std::vector<int>{5} : std::vector<int>{1, 5})
            expect_same(done, sample(m, config_of(p, slots)), "few slots");
        const float inverse = sampling_inverse_temperature(p);
        std::vector<float> scratch, drawn(ALLOWED);
        for (const Completion& d : done) {
            std::vector<int> context = prompts()[d.prompt], whole = context;
            whole.insert(whole.end(), d.tokens.begin(), d.tokens.end());
            const std::vector<float> all = context_logits(m, whole);
            for (size_t j = 0; j < d.tokens.size(); j++) {
                const float* logits = &all[(context.size() - 1) * m.V()];
                for (int v = 0; v < ALLOWED; v++) {
                    const bool seen = std::find(context.begin(), context.end(), v) != context.end();
                    const float x = logits[v], r = p.repetition_penalty;
                    drawn[v] = !seen ? x : x > 0 ? x / r : x * r;
                }
                auto draw = [&](const float* row) {
                    const DrawKey key = {c.step, (uint32_t)(d.prompt * SAMPLES + d.sample), (uint32_t)j};
                    const DrawStream stream = {c.seed, c.stream};
                    return p.gumbel ? sample_row_gumbel(row, ALLOWED, p, stream, key, scratch)
                                    : sample_row(row, ALLOWED, p, draw_uniform(stream, key), scratch);
                };
                ASSERT_EQ(d.tokens[j], draw(drawn.data())) << "penalty " << p.repetition_penalty << " token " << j;
                differs += draw(logits) != d.tokens[j];
                const float logp =
                    logit_logp(logits[d.tokens[j]], inverse, softmax_lse(softmax_row(logits, m.V(), inverse)));
                EXPECT_NEAR(d.logps[j], logp, 1e-5);
                context.push_back(d.tokens[j]);
            }
        }
    }
    EXPECT_GT(differs, 5) << "the penalty mattered nowhere";
}

TEST(SamplingOptions, WhatCannotBiteChangesNoBit) {
    Model m;
    tiny_model(m);
    const SamplingParams plain = {1, 0, 1, true};
    SamplingParams least = plain;
    least.min_p = 1e-30f;
    const std::vector<Completion> reference = sample(m, config_of(plain));
    expect_same(reference, sample(m, config_of(least)), "min_p of nearly 0");
    RolloutConfig c = config_of(plain);
    c.stop_strings = {{"no such text"}, [](int) { return std::string_view("ab"); }};
    expect_same(reference, sample(m, c), "a stop string that does not occur");
}

TEST(SamplingOptions, MinPOfNearlyOneIsGreedy) {
    Model m;
    tiny_model(m);
    const std::vector<Completion> greedy = sample(m, config_of({0, 0, 1, false}));
    for (bool gumbel : {false, true}) {
        if (SIMULATED && gumbel) continue;
        const std::vector<Completion> done = sample(m, config_of({1, 0, 1, gumbel, 0.9999f, 1}));
        for (size_t i = 0; i < done.size(); i++) EXPECT_EQ(done[i].tokens, greedy[i].tokens) << i;
    }
}

// what the trainer computes is the log-probability that was kept, whatever the draw was restricted to
TEST(SamplingOptions, TheRatioIsExactlyOneAtTheFirstPass) {
    Model m;
    tiny_model(m);
    Trainer t;
    trainer_init(t, m, 4096, false);
    for (const SamplingParams& p : penalties()) {
        if (p.temperature == 0.0f || (SIMULATED && !(p.gumbel && p.min_p > 0.0f))) continue;
        const std::vector<Completion> done = sample(m, config_of(p, 5));
        GrpoConfig c;
        c.num_generations = SAMPLES;
        c.temperature = p.temperature;
        c.max_completion_length = COMPLETION;
        const PolicyPass pass = policy_pass(t, prompts(), done, {std::vector<float>(done.size(), 1.0f)}, c);
        EXPECT_EQ(pass.logp_difference_max, 0.0) << p.repetition_penalty;
        EXPECT_EQ(pass.ratio_min, 1.0) << p.repetition_penalty;
        EXPECT_EQ(pass.ratio_max, 1.0) << p.repetition_penalty;
    }
}

// memory that was made without room for a penalty is made anew, and serves both
TEST(SamplingOptions, APenaltyAfterNone) {
    Model m;
    tiny_model(m);
    const RolloutConfig with = config_of(penalties()[1]), without = config_of(SamplingParams());
    RolloutState state;
    const std::vector<Completion> first = rollout(m, state, prompts(), SAMPLES, without);
    EXPECT_EQ(state.seen.size, 0u) << "without a penalty there is nothing to remember";
    expect_same(sample(m, with), rollout(m, state, prompts(), SAMPLES, with), "with");
    EXPECT_EQ(state.seen.size, (size_t)state.shape.slots * seen_words(m.V()));
    expect_same(first, rollout(m, state, prompts(), SAMPLES, without), "without");
    expect_same(sample(m, with), rollout(m, state, prompts(), SAMPLES, with), "with, again");
}

// a token's text: one to three letters of few, so that strings span tokens and lie within them
static std::string_view text_of(int token) {
    static const std::vector<std::string> texts = [] {
        std::vector<std::string> t;
        for (int i = 0; i < 101; i++) t.push_back(std::string("abcdabc").substr(i % 4, 1 + i % 3));
        return t;
    }();
    return texts[token];
}

TEST(SamplingOptions, AStopStringEndsTheCompletionAndStays) {
    Model m;
    tiny_model(m);
    RolloutConfig c = config_of(SamplingParams());
    const std::vector<Completion> whole = sample(m, c);
    std::vector<std::vector<std::string>> sets = {{"dab"}, {"bcdab", "cc"}, {"a", "abcdabcdabc"}, {"abcabcdabcabcd"}};
    if (SIMULATED) sets.resize(1);  // the host finds them
    for (const std::vector<std::string>& strings : sets) {
        c.stop_strings = {strings, text_of};
        std::vector<Completion> expected = whole;
        int ended = 0;
        for (Completion& d : expected) {
            std::string text;
            for (size_t j = 0; j < d.tokens.size() && !(d.stop_token && j + 1 == d.tokens.size()); j++) {
                text += text_of(d.tokens[j]);
                if (std::none_of(strings.begin(), strings.end(),
                                 [&](const std::string& s) { return text.find(s) != std::string::npos; }))
                    continue;
                d.tokens.resize(j + 1), d.logps.resize(j + 1);
                d.finished = true, d.stop_token = false;
                ended++;
                break;
            }
        }
        for (int slots : {2, 64}) {
            c.max_sequences = slots;
            expect_same(expected, sample(m, c), strings[0].c_str());
        }
        EXPECT_EQ(ended > 0, strings[0].size() < 14) << strings[0];
    }
}

TEST(SamplingOptions, TheTextIsWithoutAStopTokenAndWithAStopString) {
    const Tokenizer tok = tokenizer_byte_level();
    Completion c;
    tokenizer_encode(tok, "7\n\n", c.tokens);
    c.finished = true;
    EXPECT_EQ(completion_text(tok, c), "7\n\n");
    c.tokens.push_back(tok.eos[0]);
    c.stop_token = true;
    EXPECT_EQ(completion_text(tok, c), "7\n\n");
}

// progress counts completions that a string ended, and the greedy answers are penalized too
TEST(SamplingOptions, EvaluateTakesThemAll) {
    Model m;
    tiny_model(m);
    const Tokenizer tok = tokenizer_byte_level();
    std::vector<Prompt> asked;
    for (const std::vector<int>& tokens : prompts()) asked.push_back({"", "1", tokens});
    EvalConfig c;
    c.samples = SAMPLES;
    for (float penalty : {1.0f, 30.0f}) {
        c.rollout = config_of({1, 0, 1, false, 0.01f, penalty});
        c.rollout.stop_strings = {{"A", "a", "0", "+", " "}, [&](int id) { return tokenizer_token_bytes(tok, id); }};
        EvalProgress last;
        c.progress = [&](const EvalProgress& p) { last = p; };
        RolloutState state;
        EvalProgress progress = eval_progress(4, c);
        const EvalAnswers r = evaluate(m, state, tok, asked, c, progress);
        EXPECT_EQ(last.done, 4 * (1 + SAMPLES));
        EXPECT_LT(eval_scores(r, asked).clipped_ratio, 1.0);
        RolloutConfig greedy = c.rollout;
        greedy.sampling = {0, 0, 1, false, 0, penalty};
        const std::vector<Completion> expected = rollout(m, state, prompts(), 1, greedy);
        for (size_t i = 0; i < expected.size(); i++)
            EXPECT_EQ(r.greedy[i].text, completion_text(tok, expected[i])) << penalty;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// what the user writes

TEST(StopStrings, Parse) {
    typedef std::vector<std::string> Strings;
    EXPECT_EQ(stop_strings_parse(""), Strings());
    EXPECT_EQ(stop_strings_parse("Question:"), Strings{"Question:"});
    EXPECT_EQ(stop_strings_parse("\\n\\n,</answer>, x"), (Strings{"\n\n", "</answer>", " x"}));
    EXPECT_EQ(stop_strings_parse("a\\,b,\\\\n,\\t\\r"), (Strings{"a,b", "\\n", "\t\r"}));
    EXPECT_EQ(stop_strings_parse("\xC3\xA9"), Strings{"\xC3\xA9"});
    for (const char* bad : {",", "a,", ",a", "a,,b", "\\", "a\\x", "\\,,"})
        EXPECT_THROW(stop_strings_parse(bad), Error) << bad;
}

static std::string refusal(const std::vector<std::string>& args) {
    try {
        parse_options(args);
    } catch (const Error& e) {
        EXPECT_EQ(e.exit_code, 2);
        return e.what();
    }
    return "";
}

TEST(SamplingOptions, BadUseIsRefusedInOneLine) {
    struct {
        std::vector<std::string> args;
        const char* says;
    } cases[] = {{{"generate", "--min_p", "1"}, "out of range"},
                 {{"generate", "--min_p", "-0.1"}, "out of range"},
                 {{"generate", "--repetition_penalty", "0"}, "out of range"},
                 {{"generate", "--temperature", "0", "--min_p", "0.1"}, "--min_p 0.1 does nothing"},
                 {{"eval", "--stop_strings", "a,,b"}, "a string is empty"},
                 {{"grpo", "--stop_strings", "\\d"}, "a backslash stands before"},
                 {{"tokenize", "--min_p", "0.1"}, "not used by tokenize"}};
    for (auto& c : cases) {
        const std::string said = refusal(c.args);
        EXPECT_NE(said.find(c.says), std::string::npos) << said;
        EXPECT_EQ(said.find('\n'), std::string::npos) << said;
    }
    EXPECT_EQ(refusal({"generate", "--temperature", "0", "--repetition_penalty", "1.2"}), "");
    EXPECT_EQ(refusal({"eval", "--stop_strings", "\\n\\n,Q:", "--min_p", "0.1"}), "");
}
