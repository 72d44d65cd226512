// The warnings of a run: each is told when it should be, once, again only after it was away, in the same way by a run that is
// resumed, and never in a healthy run.
#include <gtest/gtest.h>
#include <filesystem>
#include <set>
#include "../train/watch.h"

namespace fs = std::filesystem;

// a step of a healthy run of grpo: the embedded task's numbers (README.md)
static WatchedStep healthy(int64_t step) {
    WatchedStep s;
    const double done = std::min((double)step / 80.0, 1.0), noise = 0.03 * std::sin(7.0 * (double)step);
    s.step = step;
    s.learning_rate = 3e-4 * (1.0 - done) + 1e-6;
    s.flip_rate = 0.04 * (1.0 - done) + 1e-4;
    s.completions = 512;
    s.clipped = 0.0, s.ended_length = 30.6;
    s.right = s.reward = 0.455 + 0.3 * done + noise;
    s.reward_error = 0.03;
    s.reward_low = 0.0, s.reward_high = 1.0;
    s.signal = 0.5 - 0.3 * done;
    s.answered = s.declared = 0.98;
    s.entropy = 0.077 - 0.047 * done;
    s.kl = 0.02 * done;
    return s;
}

static WatchedStep supervised(int64_t step) {
    WatchedStep s;
    s.step = step;
    s.learning_rate = 1e-5;
    s.loss = 0.3 + 2.0 / (double)step + 0.05 * std::sin(5.0 * (double)step);
    return s;
}

static WatchContext context() {
    WatchContext c;
    c.max_completion_length = 200;
    c.most_completion_length = 4000;
    c.reads_declared = c.rewarded = true;
    return c;
}

struct Seen {
    Watch watch;
    std::vector<ToldWarning> told;
    void steps(int64_t first, int64_t last, const std::function<void(WatchedStep&)>& change = nullptr,
               WatchedStep (*of)(int64_t) = healthy) {
        for (int64_t i = first; i <= last; i++) {
            WatchedStep s = of(i);
            if (change) change(s);
            for (const ToldWarning& t : watch_step(watch, s, context())) told.push_back(t);
        }
    }
    // "truncated 5, too_hard 7"
    std::string names() const {
        std::string text;
        for (const ToldWarning& t : told)
            text += format("%s%s %lld", text.empty() ? "" : ", ", warning_row(t.warning).name, (long long)t.step);
        return text;
    }
};

TEST(Watch, AHealthyRunIsNotWarned) {
    Seen grpo, sft, long_run;
    grpo.steps(1, 80);
    EXPECT_EQ(grpo.names(), "");
    sft.steps(1, 400, nullptr, supervised);
    EXPECT_EQ(sft.names(), "");
    long_run.steps(1, 2000, [](WatchedStep& s) {  // one that has learnt all there is is as sure as it likes
        if (s.step > 1000) s.right = s.reward = 0.97, s.entropy = 0.002;
    });
    EXPECT_EQ(long_run.names(), "");
    Seen sparse;  // few problems a step, most of them too hard: rewards of 0 and of some steps alone
    sparse.steps(1, 300, [](WatchedStep& s) {
        s.right = s.reward = s.step % 3 ? 0.0 : 0.02;
        s.signal = s.step % 3 ? 0.0 : 0.1;
        s.reward_high = s.step % 3 ? 0.0 : 1.0;
    });
    EXPECT_EQ(sparse.names(), "");
}

struct Case {
    Warning warning;
    std::function<void(WatchedStep&)> change;
    int64_t first;  // the step at which it is told, where the change begins at step 11, or where that is earlier at 1
    std::vector<const char*> says;
    bool sft = false;
    int64_t from() const { return first < 11 ? 1 : 11; }
};

static const std::vector<Case>& cases() {
    static const std::vector<Case> list = {
        {Warning::truncated,
         [](WatchedStep& s) { s.clipped = 0.92, s.ended_length = 180; },
         11,
         {"92%", "--max_completion_length 200", "180 tokens on average", "--max_completion_length 400"}},
        {Warning::unreadable,
         [](WatchedStep& s) { s.answered = 0.01, s.right = s.reward = s.signal = 0, s.reward_high = 0; },
         3,
         {"1% of the completions", "completions.jsonl", "--prompt_style"}},
        {Warning::undeclared,
         [](WatchedStep& s) { s.declared = 0, s.lenient = 0.31, s.right = s.reward = s.signal = 0, s.reward_high = 0; },
         3,
         {"0% of the completions declare", "31% are right", "--prompt_style boxed", "--reward_funcs accuracy"}},
        {Warning::too_hard,
         [](WatchedStep& s) { s.right = s.reward = s.signal = 0, s.reward_high = 0; },
         3,
         {"are wrong", "easier", "since step 1"}},
        {Warning::too_easy,
         [](WatchedStep& s) { s.right = s.reward = 1, s.signal = 0, s.reward_low = 1; },
         13,
         {"are right", "harder", "--dynamic_sampling"}},
        {Warning::constant_reward,
         [](WatchedStep& s) { s.right = NAN, s.reward = s.reward_low = s.reward_high = 0.5, s.signal = 0; },
         13,
         {"the same reward", "mean reward 0.5", "--reward_funcs"}},
        {Warning::equal_groups,
         [](WatchedStep& s) { s.signal = 0; },
         13,
         {"all samples of every prompt got the same reward", "--num_generations"}},
        {Warning::no_flips,
         [](WatchedStep& s) { s.flip_rate = 0; },
         20,
         {"for 10 steps no code has flipped", "--learning_rate", "--rounding stochastic", "--qat_scale learned"}},
        {Warning::entropy_collapse,
         [](WatchedStep& s) { s.entropy = 0.003; },
         13,
         {"0.0030 nats", "(0.076", "--entropy_coef"}},
        {Warning::entropy_growth, [](WatchedStep& s) { s.entropy = 3.0; }, 13, {"3.00 nats", "--learning_rate"}},
        {Warning::kl_growth, [](WatchedStep& s) { s.kl = 0.3; }, 13, {"0.30 nats", "--beta"}},
        {Warning::reward_collapse,
         [](WatchedStep& s) { s.right = s.reward = 0.1; },
         20,
         {"fallen to 0.1", "--learning_rate", "earlier checkpoint"}},
        {Warning::not_finite, [](WatchedStep& s) { s.skipped = true; }, 12, {"not finite", "5 in a row end"}},
        {Warning::nothing_to_learn, [](WatchedStep& s) { s.skipped = s.empty = true; }, 13, {"no token to learn"}},
        {Warning::loss_rising, [](WatchedStep& s) { s.loss = 3.0; }, 20, {"risen to 3", "--learning_rate"}, true},
    };
    return list;
}

TEST(Watch, EachConditionIsToldOnceAndWithAdvice) {
    std::set<Warning> tested = {Warning::template_missing, Warning::template_of_base, Warning::bos_doubled};
    for (const Case& c : cases()) {
        const std::string name = warning_row(c.warning).name;
        Seen seen;
        auto of = c.sft ? supervised : healthy;
        seen.steps(1, c.from() - 1, nullptr, of);
        ASSERT_EQ(seen.names(), "") << name;
        seen.steps(c.from(), 30, c.change, of);
        EXPECT_EQ(seen.names(), format("%s %lld", name.c_str(), (long long)c.first));
        ASSERT_FALSE(seen.told.empty()) << name;
        for (const char* part : c.says) EXPECT_NE(seen.told[0].text.find(part), std::string::npos) << seen.told[0].text;
        tested.insert(c.warning);
    }
    EXPECT_EQ(tested.size(), (size_t)WARNINGS) << "each has a case here, or in test_cli";
}

TEST(Watch, AConditionIsToldAgainOnlyAfterItWasAway) {
    auto cut = [](WatchedStep& s) { s.clipped = 0.9; };
    Seen seen;
    seen.steps(1, 3, cut);
    seen.steps(4, 12);
    seen.steps(13, 14, cut);  // nine steps without
    EXPECT_EQ(seen.names(), "truncated 1");
    seen.steps(15, 24);
    seen.steps(25, 26, cut);
    EXPECT_EQ(seen.names(), "truncated 1, truncated 25");
}

TEST(Watch, ACauseIsToldAndNotItsEffect) {
    Seen seen;
    seen.steps(1, 20, [](WatchedStep& s) {
        s.clipped = 1.0, s.answered = s.declared = 0;
        s.right = s.reward = s.signal = 0, s.reward_high = 0;
    });
    EXPECT_EQ(seen.names(), "truncated 1");
}

TEST(Watch, FewCompletionsAreNoEvidence) {
    Seen seen;
    seen.steps(1, 1, [](WatchedStep& s) { s.clipped = 1.0, s.completions = 8; });
    EXPECT_EQ(seen.names(), "");
    WatchedEvaluation e;
    e.when = "the evaluation before training";
    e.completions = 8, e.clipped = 1.0;
    EXPECT_TRUE(watch_evaluation(seen.watch, 0, e, context()).empty());
}

TEST(Watch, AnEvaluationTellsBeforeTheFirstStep) {
    WatchedEvaluation e;
    e.when = "the evaluation before training";
    e.completions = 100;
    e.clipped = 0.9, e.ended_length = 170, e.answered = e.declared = 0.1, e.lenient = 0.05;
    Seen seen;
    const std::vector<ToldWarning> now = watch_evaluation(seen.watch, 0, e, context());
    ASSERT_EQ(now.size(), 1u);
    EXPECT_EQ(now[0].text.rfind("in the evaluation before training 90% of the completions were cut off at "
                                "--max_completion_length 200",
                                0),
              0u)
        << now[0].text;
    seen.steps(1, 30, [](WatchedStep& s) { s.clipped = 0.95; });
    EXPECT_EQ(seen.names(), "") << "it is told once";
    Seen other;
    e.clipped = 0.0, e.answered = 0.9, e.declared = 0.0, e.lenient = 0.4;
    EXPECT_EQ(watch_evaluation(other.watch, 0, e, context()).at(0).warning, Warning::undeclared);
    WatchContext any = context();
    any.reads_declared = false;
    EXPECT_TRUE(watch_evaluation(other.watch, 0, e, any).empty()) << "where accuracy is paid, any answer will do";
}

TEST(Watch, AdviceFitsTheModelsContext) {
    WatchContext c = context();
    c.most_completion_length = 300;
    EXPECT_NE(truncated_text(0.9, 100, c).find("such as --max_completion_length 300"), std::string::npos);
    c.most_completion_length = 200;
    EXPECT_NE(truncated_text(0.9, 100, c).find("no more, so ask for shorter answers"), std::string::npos);
    EXPECT_EQ(truncated_text(1.0, 0.0, c).find("those that ended"), std::string::npos);
}

// stopped after any step and gone on with what the state holds: the same is told
TEST(Watch, GoesOnAfterAResume) {
    for (const Case& c : cases())
        for (int64_t stop : {5, 11, 12, 16, 19}) {
            auto of = c.sft ? supervised : healthy;
            Seen whole, half;
            whole.steps(1, c.from() - 1, nullptr, of), whole.steps(c.from(), 30, c.change, of);
            auto go = [&](int64_t first, int64_t last) {
                for (int64_t i = first; i <= last; i++) half.steps(i, i, i >= c.from() ? c.change : nullptr, of);
            };
            go(1, stop);
            const nlohmann::ordered_json saved = watch_to_json(half.watch);
            half.watch = watch_from_json(nlohmann::ordered_json::parse(saved.dump()), "state");
            EXPECT_EQ(watch_to_json(half.watch).dump(), saved.dump());
            go(stop + 1, 30);
            EXPECT_EQ(half.names(), whole.names()) << stop;
            EXPECT_EQ(watch_to_json(half.watch).dump(), watch_to_json(whole.watch).dump()) << stop;
            EXPECT_EQ(half.watch.told.size(), whole.watch.told.size());
        }
}

TEST(Watch, RefusesADamagedState) {
    for (const char* text :
         {"[]", "1", "{\"entropy\":[1,2]}", "{\"entropy\":[1,2,3,\"x\"]}", "{\"marks\":{\"truncated\":[1]}}",
          "{\"told\":[{\"step\":1}]}", "{\"told\":[1]}", "{\"least_reward\":\"x\"}"}) {
        try {
            watch_from_json(nlohmann::ordered_json::parse(text), "trainer_state.json");
            ADD_FAILURE() << text;
        } catch (const Error& e) {
            EXPECT_EQ(std::string(e.what()).rfind("trainer_state.json: `watch`", 0), 0u) << e.what();
        }
    }
    const Watch other =
        watch_from_json(nlohmann::ordered_json::parse(
                            "{\"marks\":{\"of_later\":[1,2,3,1]},\"told\":[{\"step\":1,\"warning\":\"of_later\","
                            "\"text\":\"x\"}]}"),
                        "state");
    EXPECT_TRUE(other.told.empty()) << "what this version does not know is left out";
}

TEST(Watch, LinesOfTheFile) {
    const std::string folder = (fs::temp_directory_path() / format("test_watch_%ld", (long)getpid())).string();
    fs::remove_all(folder);
    RunDirSetting setting;
    setting.warnings = true;
    RunDir run = open_run_dir(folder, setting, nlohmann::ordered_json::object());
    testing::internal::CaptureStderr();
    tell_warnings({{3, Warning::too_easy, "a \"text\""}}, &run);
    EXPECT_EQ(testing::internal::GetCapturedStderr(), "warning: a \"text\"\n");
    EXPECT_EQ(read_file(folder + "/warnings.jsonl", 1 << 20),
              "{\"step\":3,\"warning\":\"too_easy\",\"text\":\"a \\\"text\\\"\"}\n");
    fs::remove_all(folder);
}

// docs/training.md has the table: names, and conditions with their limits
TEST(Watch, ThePageHasTheTable) {
    const std::string page = read_file("docs/training.md", 1 << 20);
    int rows = 0;
    for (const WarningRow& row : warning_rows) {
        const std::string line = format("\n| `%s` | %s | ", row.name, warning_condition(row).c_str());
        EXPECT_NE(page.find(line), std::string::npos) << line;
    }
    const size_t begin = page.find("## When a run learns nothing"), end = page.find("\n## ", begin + 1);
    ASSERT_NE(begin, std::string::npos);
    for (size_t at = begin; (at = page.find("\n| `", at + 1)) < end;) rows++;
    EXPECT_EQ(rows, WARNINGS);
}
