// Rewards of users' own: what programs and libraries are told and answer, each way in which they fail, and that none of
// them is left.
#include <sys/wait.h>
#include <thread>
#include "../rewards/rewards.h"
#include "../train/advantages.h"
#include "file_test.h"

typedef std::vector<float> Floats;

// an executable file; body: of sh
static std::string script(const TempDir& folder, const std::string& name, const std::string& body) {
    const std::string path = folder / name;
    put(path, "#!/bin/sh\n" + body + "\n");
    fs::permissions(path, fs::perms::owner_all);
    return path;
}

// answers 1 to each line, but does `bad` where it holds "poison"
static std::string unless_poison(const std::string& bad) {
    return "while IFS= read -r l; do case \"$l\" in *poison*) " + bad + ";; *) echo 1;; esac; done";
}

// Completions of prompts 1, 1, 2, 2, 3 and what they are paid
struct Asked {
    std::vector<std::string> completions;
    std::string prompt = "12+30=?\n", gold = "42", row_rewards;
    std::vector<int> tokens = {1, 2, 3}, group = {0, 0, 1, 1, 2};
    nlohmann::ordered_json row = nullptr;
    std::vector<std::vector<float>> each;
    Floats total;
    bool whole = false;

    explicit Asked(const std::vector<std::string>& texts = {"a", "b", "poison", "d", "e"}) : completions(texts) {
        group.resize(texts.size(), 2);
    }
    Floats of(const RewardSet& set) {
        std::vector<RewardInput> in;
        for (const std::string& c : completions)
            in.push_back({prompt, c, gold, true, tokens, 9, {}, row.is_null() ? nullptr : &row, &row_rewards});
        whole = rewards_compute(total, each, set, in, group);
        return each.back();
    }
    Floats of(const std::string& funcs) { return of(rewards_parse(funcs, "")); }
};

static bool is_running(pid_t pid) { return kill(pid, 0) == 0; }

static pid_t pid_in(const std::string& path) {
    std::ifstream in(path);
    pid_t pid = -1;
    in >> pid;
    return pid;
}

// what is said on standard error meanwhile
template <class F>
static std::string notes_of(F f) {
    testing::internal::CaptureStderr();
    f();
    return testing::internal::GetCapturedStderr();
}

TEST(OwnRewards, ProgramIsToldOfEachCompletion) {
    TempDir folder;
    const std::string log = folder / "log";
    const std::string path =
        script(folder, "half.sh", "while IFS= read -r l; do printf '%s\\n' \"$l\" >>" + log + "; echo 0.5; done");
    Asked asked({"x\n#### 42", "\xFF cut"});
    asked.row = {{"level", 3}, {"tags", {"a", "b"}}};
    EXPECT_EQ(asked.of(path), (Floats{0.5f, 0.5f}));
    EXPECT_TRUE(asked.whole);
    std::ifstream lines(log);
    std::string first, second, third;
    std::getline(lines, first), std::getline(lines, second);
    EXPECT_EQ(nlohmann::json::parse(first), nlohmann::json({{"prompt", "12+30=?\n"},
                                                            {"completion", "x\n#### 42"},
                                                            {"gold", "42"},
                                                            {"finished", true},
                                                            {"tokens", 3},
                                                            {"max_tokens", 9},
                                                            {"row", {{"level", 3}, {"tags", {"a", "b"}}}}}));
    EXPECT_EQ(nlohmann::json::parse(second)["completion"], "\xEF\xBF\xBD cut");
    EXPECT_FALSE(std::getline(lines, third));
}

TEST(OwnRewards, AnswersAndWhatDoesNotApply) {
    TempDir folder;
    const std::string path =
        script(folder, "kinds.sh",
               "while IFS= read -r l; do case \"$l\" in *AAA*) echo null;; *BBB*) echo '{\"reward\": "
               "-2.5, \"why\": \"x\"}';; *CCC*) echo true;; *DDD*) echo ' 1e-3 ';; *) echo "
               "'{\"reward\": null}';; esac; done");
    const RewardSet set = rewards_parse("exact," + path, "1,2");
    EXPECT_EQ(set.entries[1].name, "kinds");
    Asked asked({"AAA #### 42", "BBB", "CCC", "DDD", "E"});
    const Floats paid = asked.of(set);
    EXPECT_TRUE(std::isnan(paid[0]) && std::isnan(paid[4]));
    EXPECT_EQ(Floats(paid.begin() + 1, paid.end() - 1), (Floats{-2.5f, 1.0f, 1e-3f}));
    EXPECT_EQ(asked.total, (Floats{1, -5, 2, 2e-3f, 0})) << "what does not apply is left out of the sum";
    asked.of(path);
    EXPECT_TRUE(std::isnan(asked.total[0]) && asked.total[2] == 1.0f) << "no reward applies: no total";
}

TEST(OwnRewards, Batches) {
    TempDir folder;
    const std::string log = folder / "log";
    const std::string path = script(folder, "b.sh",
                                    "while IFS= read -r l; do printf '%s\\n' \"$l\" >>" + log +
                                        "; case \"$l\" in *'\"e\"'*) echo '[5]';; *) echo '[1, null]';; esac; done");
    Asked asked;
    const Floats paid = asked.of(path + ":batch=2");
    EXPECT_TRUE(paid[0] == 1 && std::isnan(paid[1]) && paid[2] == 1 && std::isnan(paid[3]) && paid[4] == 5);
    std::ifstream lines(log);
    std::string line;
    for (size_t n : {2, 2, 1}) {
        ASSERT_TRUE(std::getline(lines, line));
        EXPECT_EQ(nlohmann::json::parse(line).size(), n);
    }
    const std::string three = script(folder, "three.sh", "while IFS= read -r l; do echo '[1,2,3]'; done");
    expect_has(error_of([&] { asked.of(three + ":batch=4"); }), "it gave 3 answers to 4 completions");
    expect_has(error_of([&] { asked.of(three + ":batch=4"); }), "and 3 more of its batch");
    expect_has(error_of([&] { asked.of(three + ":batch=2"); }), "it gave 3 answers to 2 completions");
    const std::string one = script(folder, "one.sh", "while IFS= read -r l; do echo 1; done");
    expect_has(error_of([&] { asked.of(one + ":batch=2"); }), "it printed '1', which is not an array");
    notes_of([&] { EXPECT_EQ(asked.of(three + ":batch=3:on_error=zero"), (Floats{1, 2, 3, 0, 0})); });
}

// a program that fails on one completion: what the run says, and what on_error=zero pays
TEST(OwnRewards, EachWayToFailIsToldAndPaid) {
    const std::string most = "head -c 10000000 /dev/zero | tr '\\0' 1";
    struct {
        const char* name;
        std::string bad, said;
    } table[] = {
        {"hangs", "sleep 1000", "it gave no answer within 1 s, twice"},
        {"dies", "exit 3", "it ended with exit status 3, twice"},
        {"is killed", "kill -SEGV $$", "it was ended by signal 11 (Segmentation fault)"},
        {"says why it dies", "echo no such thing >&2; exit 1", "exit status 1, after the line 'no such thing'"},
        {"closes its output", "exec 1>&-; sleep 1000", "it closed its standard output"},
        {"rubbish", "echo hello; :", "it printed 'hello', which is not a number in [-1e9, 1e9]"},
        {"escapes", "printf '\\033[2J\\n'", "it printed '\\x1B[2J'"},
        {"nothing on the line", "echo", "it printed '', which is not a number"},
        {"text", "echo '\"1\"'", "which is not a number"},
        {"an array", "echo '[1]'", "which is not a number"},
        {"an object", "echo '{\"rewards\": 1}'", "which is not a number"},
        {"deep", "printf '%0300d1\\n' 0 | tr 0 [", "which is not a number"},
        {"NaN", "echo NaN", "it printed 'NaN'"},
        {"nan", "echo nan", "it printed 'nan'"},
        {"Infinity", "echo Infinity", "it printed 'Infinity'"},
        {"beyond a double", "echo 1e999", "it printed '1e999'"},
        {"beyond what is paid", "echo -2e9", "it printed '-2e9'"},
        {"too many lines", "printf '1\\n2\\n'", "it printed more than one line, '1' and then '2"},
        {"10 MB on one line", most + "; echo", "it printed a line of more than 64 KiB"},
        {"10 MB on many lines", most + " | fold -w 9", "it printed more than one line"},
        {"standard error without an end", "yes oops >&2", "it gave no answer within 1 s, after the line 'oops', twice"},
    };
    for (const auto& c : table) {
        SCOPED_TRACE(c.name);
        TempDir folder;
        const bool waits = c.said.find("gave no answer") != std::string::npos;
        const std::string path = script(folder, "own.sh", unless_poison(c.bad)) + (waits ? ":timeout=1" : "");
        Asked asked;
        std::string what;
        const std::string noted = notes_of([&] { what = error_of([&] { asked.of(path); }); });
        expect_has(what, c.said);
        expect_has(what, "own.sh: prompt 2, sample 1 (of '12+30=?')");
        expect_has(what, "on_error=zero");
        EXPECT_LT(noted.size(), 100u << 10) << "a flood of standard error is not told on";
        const RewardSet set = rewards_parse(path + ":on_error=zero", "");
        const std::string notes = notes_of([&] { EXPECT_EQ(asked.of(set), (Floats{1, 1, 0, 1, 1})); });
        expect_has(notes, "prompt 2, sample 1");
        expect_has(notes, "paid 0");
        EXPECT_EQ(notes.find('\033'), std::string::npos);
        EXPECT_EQ(set.entries[0].own->failed, 1);
        EXPECT_TRUE(asked.whole);
    }
}

TEST(OwnRewards, ProgramsThatNeverWork) {
    TempDir folder;
    Asked asked;
    struct {
        const char* name;
        std::string body, said;
    } table[] = {
        {"dies at start", "echo no module named torch >&2; exit 1",
         "exit status 1, after the line 'no module named torch'"},
        {"prints before it is asked", "echo ready; cat >/dev/null", "printed 'ready"},
        {"prints without an end", "while :; do echo 1; done", ""},
        {"does not read", "sleep 1000", "it gave no answer within 0.3 s"},
    };
    for (const auto& c : table) {
        SCOPED_TRACE(c.name);
        const std::string path = script(folder, "never.sh", c.body) + ":timeout=0.3:restarts=2";
        notes_of([&] { expect_has(error_of([&] { asked.of(path); }), c.said); });
        std::string what;
        notes_of([&] { what = error_of([&] { asked.of(path + ":on_error=zero"); }); });
        expect_has(what, "it has been started anew 2 times, and restarts= allows no more");
    }
    const std::string deaf = script(folder, "deaf.sh", "sleep 1000") + ":timeout=0.3";
    Asked large({std::string(1 << 20, 'x')});  // more than a pipe holds
    notes_of([&] { expect_has(error_of([&] { large.of(deaf); }), "does not read what it is asked"); });
    // the second of two lines comes when the next completion has been sent, or before
    const std::string hasty = script(folder, "hasty.sh", "read -r l; echo 1; sleep 0.1; echo 2; sleep 1000");
    notes_of([&] {
        Asked many({"a", "b"});
        expect_has(error_of([&] { many.of(hasty); }), "printed '2");
        const RewardSet set = rewards_parse(hasty, "");
        Asked one({"a"});
        one.of(set), usleep(300000);
        expect_has(error_of([&] { one.of(set); }), "it had printed '2\\n', which nobody asked for");
    });
    const std::string blind = script(folder, "blind.sh", "sleep 0.2; echo 1; sleep 1000") + ":timeout=5";
    notes_of([&] { expect_has(error_of([&] { large.of(blind); }), "printed '1"); });
}

TEST(OwnRewards, EndsAfterSomeLinesAndIsStartedAnew) {
    TempDir folder;
    const std::string path = script(folder, "two.sh", "for i in 1 2; do read -r l || exit; echo $i; done");
    Asked asked;
    const std::string notes = notes_of([&] { EXPECT_EQ(asked.of(path), (Floats{1, 2, 1, 2, 1})); });
    expect_has(notes, "it ended with exit status 0; started anew, 2 of 10 times");
    notes_of([&] {
        expect_has(error_of([&] { asked.of(path + ":restarts=1"); }), "prompt 3, sample 1");
        expect_has(error_of([&] { asked.of(path + ":restarts=0"); }), "started anew 0 times");
    });
}

TEST(OwnRewards, LargeRequestsAndFloodsDoNotBlock) {
    TempDir folder;
    // copies 1 MiB to standard error before it has read all of it, and answers its length
    const std::string path =
        script(folder, "flood.sh",
               "yes a long line of standard error | head -c 4000000 >&2\nwhile IFS= read -r l; do echo ${#l}; done");
    Asked asked({std::string(1 << 18, 'x'), std::string(1 << 18, 'y')});
    std::string notes = notes_of([&] {
        const Floats paid = asked.of(path);
        EXPECT_GT(paid[0], (float)(1 << 18));
        EXPECT_EQ(paid[0], paid[1]);
    });
    expect_has(notes, "flood: further lines of its standard error are not shown");
    EXPECT_LT(notes.size(), 10000u);
}

TEST(OwnRewards, NoChildIsLeft) {
    TempDir folder;
    const std::string own = folder / "pid", child = folder / "child";
    const std::string with_child = "echo $$ >" + own + "\nsleep 1000 &\necho $! >" + child + "\n";
    const double start = process_clock();
    for (const std::string& body :
         {with_child + "while read -r l; do echo 1; done",
          with_child + "read -r l; sleep 1000",  // hangs, and does not heed that its input ends
          with_child + "trap '' INT TERM HUP PIPE; while read -r l; do echo 1; done; sleep 1000"}) {
        const std::string path = script(folder, "child.sh", body) + ":timeout=0.3:restarts=0";
        notes_of([&] {
            try {
                Asked().of(path);
            } catch (const Error&) {}
        });
        ASSERT_GT(pid_in(own), 1);
        EXPECT_FALSE(is_running(pid_in(own))) << body;
        for (int i = 0; i < 100 && is_running(pid_in(child)); i++) usleep(10000);  // init waits for it
        EXPECT_FALSE(is_running(pid_in(child)) && fs::exists("/proc/" + std::to_string(pid_in(child)) + "/exe") &&
                     !fs::read_symlink("/proc/" + std::to_string(pid_in(child)) + "/exe").empty())
            << body;
    }
    EXPECT_LT(process_clock() - start, 10.0);
    int status;
    EXPECT_EQ(waitpid(-1, &status, WNOHANG), -1) << "a child to be waited for";
    EXPECT_EQ(errno, ECHILD);
}

TEST(OwnRewards, HasAGroupOfItsOwnAndNoFileOfTheRun) {
    TempDir folder;
    const std::string secret = folder / "secret";
    put(secret, "x");
    const int fd = open(secret.c_str(), O_RDONLY);  // not close-on-exec
    const std::string path = script(folder, "me.sh",
                                    "ls -l /proc/$$/fd >" + (folder / "files") + "\nps -o pgid= -p $$ >" +
                                        (folder / "group") + "\nwhile read -r l; do echo $$; done");
    Asked asked;
    const float pid = asked.of(path)[0];
    close(fd);
    std::ifstream in(folder / "files");
    const std::string files((std::istreambuf_iterator<char>(in)), {});
    expect_has(files, "pipe:");
    EXPECT_EQ(files.find("secret"), std::string::npos) << files;
    EXPECT_EQ((float)pid_in(folder / "group"), pid);
    EXPECT_NE(pid_in(folder / "group"), getpgrp());
}

TEST(OwnRewards, MemoryIsLimited) {
    TempDir folder;
    const std::string path = script(folder, "limit.sh", "while read -r l; do ulimit -v; done");
    EXPECT_EQ(Asked().of(path + ":memory=512")[0], 512 * 1024.0f);
}

TEST(OwnRewards, StopsWithTheRun) {
    TempDir folder;
    const std::string path = script(folder, "slow.sh", "echo $$ >" + (folder / "pid") + "; read -r l; sleep 1000");
    Asked asked;
    const double start = process_clock();
    std::thread signal([] { usleep(300000), stop_signal = SIGINT; });
    {
        const RewardSet set = rewards_parse(path, "");
        asked.of(set);
        signal.join();
    }
    stop_signal = 0;
    EXPECT_FALSE(asked.whole);
    EXPECT_LT(process_clock() - start, 3.0);
    EXPECT_FALSE(is_running(pid_in(folder / "pid")));
}

TEST(OwnRewards, WhatIsSaidBeforeTheLongWork) {
    TempDir folder;
    auto parse_error = [](const std::string& funcs) {
        try {
            rewards_parse(funcs, "");
        } catch (const Error& e) {
            EXPECT_EQ(e.exit_code, 2) << e.what();
            return std::string(e.what());
        }
        return std::string();
    };
    const std::string path = script(folder, "good.sh", "echo $$ >" + (folder / "started") + "; read -r l; echo 1");
    EXPECT_EQ(parse_error(path), "");
    EXPECT_FALSE(fs::exists(folder / "started")) << "reading the flags runs nothing";
    expect_has(parse_error("./no_such.py"), "there is no file ./no_such.py; a name with a / is the path of a program");
    expect_has(parse_error("./no_such.so"), "the path of a shared library");
    expect_has(parse_error(folder.path + "/"), "logged under its file's name");
    fs::create_directory(folder / "dir");
    expect_has(parse_error(folder / "dir"), "is a folder");
    put(folder / "plain.py", "print(1)");
    expect_has(parse_error(folder / "plain.py"), "chmod +x");
    expect_has(parse_error(path + ":tmeout=3"), "tmeout: not one of its settings");
    expect_has(parse_error(path + ":timeout=0"), "not a number in (0, 86400]");
    expect_has(parse_error(path + ":batch=1.5"), "not a whole number in [1, 4096]");
    expect_has(parse_error(path + ":on_error=skip"), "not one of stop, zero");
    expect_has(parse_error(path + "," + path), "'good' is named twice");
    expect_has(parse_error(script(folder, "exact.py", "")), "has the name of the reward 'exact'");
    expect_has(parse_error(script(folder, "prompt.py", "")), "taken");
    expect_has(parse_error(script(folder, "a b.py", "")), "A-Z a-z 0-9");
    EXPECT_EQ(rewards_parse(path + ":outcome=true", "").traits(), REWARD_ROW | REWARD_OUTCOME);
    EXPECT_EQ(rewards_parse(path, "").traits(), (unsigned)REWARD_ROW);

    auto start_error = [](const std::string& file) { return error_of([&] { rewards_parse(file, "").start(); }); };
    auto file = [&](const std::string& text) {
        put(folder / "odd", text);
        fs::permissions(folder / "odd", fs::perms::owner_all);
        return folder / "odd";
    };
    expect_has(start_error(file("#!/no/such/python3\n")), "the program that its first line (#!) names is not there");
    expect_has(start_error(file("print(1)\n")), "#!/usr/bin/env python3");
    expect_has(error_of([&] {
                   notes_of([&] {
                       const RewardSet set = rewards_parse(script(folder, "early.sh", "echo no json >&2; exit 7"), "");
                       set.start();
                       usleep(300000);
                       set.check();
                   });
               }),
               "before it was asked anything it ended with exit status 7, after the line 'no json'");
    testing::internal::GetCapturedStderr();
    EXPECT_EQ(own_reward_files("exact, ./a.py:batch=2, /b/c.so"), (std::vector<std::string>{"./a.py", "/b/c.so"}));
}

// ---------------------------------------------------------------------------------------------------------------------
// rows

TEST(OwnRewards, RowsNameTheRewardsThatApply) {
    const RewardSet set = rewards_parse("exact,format,soft_overlong_punishment", "1,0.5,1");
    EXPECT_EQ(rewards_of_row(set, ""), (std::vector<bool>{true, true, true}));
    EXPECT_EQ(rewards_of_row(set, "format"), (std::vector<bool>{false, true, false}));
    EXPECT_EQ(rewards_of_row(set, " overlong , exact"), (std::vector<bool>{true, false, true})) << "by either name";
    std::string unknown;
    rewards_of_row(set, "exact,nosuch,other", &unknown);
    EXPECT_EQ(unknown, "nosuch");
    unknown.clear();
    rewards_of_row(set, "exact,", &unknown);
    EXPECT_EQ(unknown, "an empty name");
    Asked asked({"#### 42"});
    asked.row_rewards = "format";
    asked.of(set);
    EXPECT_TRUE(std::isnan(asked.each[0][0]) && std::isnan(asked.each[2][0]));
    EXPECT_EQ(asked.each[1][0], 1.0f);
    EXPECT_EQ(asked.total[0], 0.5f);
}

TEST(OwnRewards, ProgramIsNotAskedWhereItDoesNotApply) {
    TempDir folder;
    const std::string path = script(folder, "never_asked.sh", "read -r l && exit 1");
    Asked asked({"#### 42", "#### 41"});
    asked.row_rewards = "exact";
    const Floats paid = asked.of("exact," + path);
    EXPECT_TRUE(std::isnan(paid[0]) && std::isnan(paid[1]));
    EXPECT_EQ(asked.total, (Floats{1, 0}));
}

TEST(OwnRewards, AdvantagesWithoutThoseThatWerePaidNothing) {
    const float none = REWARD_NONE;
    const Floats rewards = {1, 0, none, 0, none, none, none, none, 1, 1, 1, none}, lengths = {};
    const std::vector<int> tokens(rewards.size(), 2);
    const Floats group = group_advantages(rewards, 4, RewardScale::group).a;
    const double std = std::sqrt((4.0 / 9 + 1.0 / 9 + 1.0 / 9) / 2) + 1e-4;
    EXPECT_NEAR(group[0], 2.0 / 3 / std, 1e-6);
    EXPECT_NEAR(group[1], -1.0 / 3 / std, 1e-6);
    for (int i : {2, 4, 5, 6, 7, 8, 9, 10, 11}) EXPECT_EQ(group[i], 0.0f) << i;
    const Advantages all = compute_advantages(rewards, 4, advantage_estimator("rloo"), RewardScale::none);
    EXPECT_NEAR(all.a[0], 1.0, 1e-6);
    EXPECT_NEAR(all.a[1], -0.5, 1e-6);
    EXPECT_NEAR(all.reward_mean, 4.0 / 6, 1e-6);
    EXPECT_NEAR(all.reward_std, std::sqrt((4 * 1.0 / 9 + 2 * 4.0 / 9) / 5), 1e-6);
    EXPECT_NEAR(all.zero_std_share, 2.0 / 3, 1e-6);
    // each estimator as if the completions that were paid nothing were not there
    const Floats paid = {1, 0, 0, 1, 1, 1};
    const std::vector<size_t> at = {0, 1, 3, 8, 9, 10};
    for (const char* name : {"batch", "reinforce_plus_plus"}) {
        const AdvantageEstimator e = advantage_estimator(name);
        const Floats a = compute_advantages(rewards, 4, e, e.scale, tokens).a;
        const Floats b = compute_advantages(paid, 3, e, e.scale, std::vector<int>(6, 2)).a;
        for (size_t i = 0; i < at.size(); i++) EXPECT_NEAR(a[at[i]], b[i], 1e-6) << name << i;
        for (size_t i : {2, 4, 5, 6, 7, 11}) EXPECT_EQ(a[i], 0.0f) << name << i;
    }
    const std::vector<std::vector<float>> payments(rewards.size(), {0.1f, 0.2f});
    for (const AdvantageEstimator& e : advantage_estimators) {
        const Advantages a = compute_advantages(rewards, 4, e, e.scale, tokens, payments);
        for (float x : a.a) EXPECT_TRUE(std::isfinite(x)) << e.name;
        for (const auto& row : a.tokens)
            for (float x : row) EXPECT_TRUE(std::isfinite(x)) << e.name;
    }
    for (const AdvantageEstimator& e : advantage_estimators)
        for (float x : compute_advantages(Floats(8, none), 4, e, e.scale, std::vector<int>(8, 2)).a)
            EXPECT_EQ(x, 0.0f) << e.name;
}

// entropy of a model that has diverged: not finite is not the same as not applicable
TEST(OwnRewards, NumbersThatAreNotFiniteAreNotLeftOut) {
    Floats total;
    std::vector<Floats> each;
    const std::string s = "#### 1";
    const std::vector<int> tokens = {1};
    const RewardInput good = {s, s, s, true, tokens, 9, {0.5f, 2.0f}};
    const RewardInput bad = {s, s, s, true, tokens, 9, {std::nanf(""), 2.0f}};
    rewards_compute(total, each, rewards_parse("exact,entropy", ""), {good, bad}, {0, 0});
    EXPECT_FALSE(std::isfinite(total[1]) || std::isnan(total[1]));
    for (const AdvantageEstimator& e : advantage_estimators) {
        const Floats a = compute_advantages(total, 2, e, e.scale, {1, 1}).a;
        EXPECT_FALSE(std::isfinite(a[0]) && std::isfinite(a[1])) << e.name;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// libraries

// compiled; "" where there is no compiler
static std::string library(const TempDir& folder, const std::string& name, const std::string& source) {
    const std::string path = folder / (name + ".so");
    std::string from = source;
    if (source.find('\n') != std::string::npos) put(from = folder / (name + ".c"), source);
    const std::string command = "cc -Wall -Wextra -Wno-misleading-indentation -Werror -O1 -shared -fPIC -I rewards '" +
                                from + "' -o '" + path + "'";
    return std::system(("command -v cc >/dev/null && " + command).c_str()) == 0 ? path : "";
}

static const char* const library_head = "#include <math.h>\n#include \"train_qrl_reward.h\"\n";
static const char* const library_abi = "int train_qrl_reward_abi(void) { return TRAIN_QRL_REWARD_ABI; }\n";
static const char* const library_pay =
    "int train_qrl_reward(const TrainQrlRewardInput *in, size_t n, double *out) {\n  for (size_t i = 0; i < n; i++) ";

TEST(OwnRewards, LibraryIsToldOfEachCompletion) {
    TempDir folder;
    const std::string path = library(
        folder, "told",
        std::string(library_head) + "#include <string.h>\nstatic int opened;\n" + library_abi +
            "int train_qrl_reward_open(void) { opened = 1; return 0; }\n" + library_pay +
            "out[i] = opened + 10 * in[i].finished + 100 * in[i].tokens + 1000 * in[i].max_tokens + 1e5 * "
            "(strcmp(in[i].row.text, \"{\\\"level\\\":3}\") == 0 && in[i].prompt.bytes == 8 && strcmp(in[i].gold.text, "
            "\"42\") == 0) + 1e6 * (double)in[i].completion.bytes;\n  return 0; }\n");
    if (path.empty()) GTEST_SKIP() << "no C compiler";
    Asked asked({std::string("a\0b", 3), ""});
    asked.row = {{"level", 3}};
    EXPECT_EQ(asked.of(path), (Floats{3109311, 109311}));
}

TEST(OwnRewards, LibrariesThatFail) {
    TempDir folder;
    Asked asked;
    const std::string bad =
        library(folder, "bad",
                std::string(library_head) + library_abi + library_pay +
                    "if (in[i].completion.text[0] != 'p') out[i] = in[i].completion.text[0] == 'e' ? "
                    "TRAIN_QRL_REWARD_NONE : 1;\n  return 0; }\n");
    if (bad.empty()) GTEST_SKIP() << "no C compiler";
    expect_has(error_of([&] { asked.of(bad); }), "bad.so: prompt 2, sample 1 (of '12+30=?'): it paid nan");
    notes_of([&] {
        const Floats paid = asked.of(bad + ":on_error=zero");
        EXPECT_EQ(Floats(paid.begin(), paid.end() - 1), (Floats{1, 1, 0, 1}));
        EXPECT_TRUE(std::isnan(paid[4]));
    });
    const std::string infinite =
        library(folder, "infinite",
                std::string(library_head) + library_abi + library_pay + "(void)in, out[i] = INFINITY; return 0; }\n");
    expect_has(error_of([&] { asked.of(infinite); }), "it paid inf");
    const std::string refuses =
        library(folder, "refuses",
                std::string(library_head) + library_abi + library_pay + "(void)in, out[i] = 1; return 5; }\n");
    expect_has(error_of([&] { asked.of(refuses); }), "train_qrl_reward returned 5");
    notes_of([&] { EXPECT_EQ(asked.of(refuses + ":on_error=zero"), Floats(5, 0.0f)); });
    const std::string other = library(folder, "other",
                                      std::string(library_head) + "int train_qrl_reward_abi(void) { return 99; }\n" +
                                          library_pay + "(void)in, out[i] = 1; return 0; }\n");
    expect_has(error_of([&] { rewards_parse(other, "").start(); }), "the library has interface 99, this program 1");
    const std::string none = library(folder, "none", "int nothing(void);\nint nothing(void) { return 0; }\n");
    expect_has(error_of([&] { rewards_parse(none, "").start(); }), "has no function train_qrl_reward_abi");
    const std::string shut =
        library(folder, "shut",
                std::string(library_head) + library_abi + "int train_qrl_reward_open(void) { return 4; }\n" +
                    library_pay + "(void)in, out[i] = 1; return 0; }\n");
    expect_has(error_of([&] { rewards_parse(shut, "").start(); }), "train_qrl_reward_open returned 4");
    put(folder / "text.so", "no library\n");
    expect_has(error_of([&] { rewards_parse(folder / "text.so", "").start(); }), "not a library that can be loaded");
}

// ---------------------------------------------------------------------------------------------------------------------
// the examples

struct Example {
    const char *completion, *gold;
    float paid;  // -1: it does not apply
};

static void expect_paid(const std::string& funcs, const std::vector<Example>& table) {
    const RewardSet set = rewards_parse(funcs, "");
    for (const Example& e : table) {
        Asked asked({e.completion});
        asked.gold = e.gold;
        const float paid = asked.of(set)[0];
        if (e.paid == -1) EXPECT_TRUE(std::isnan(paid)) << e.completion;
        else EXPECT_NEAR(paid, e.paid, 1e-6) << e.completion << " for " << e.gold;
    }
}

TEST(OwnRewards, ExampleInPython) {
    if (std::system("command -v python3 >/dev/null") != 0) GTEST_SKIP() << "no python3";
    const std::string path = "./rewards/examples/steps.py";
    for (const std::string& funcs : {path, path + ":batch=8"})
        expect_paid(funcs, {{"2+9=11\n8+5+1=14\n4+3+1=8\n#### 841", "841", 1.25f},
                            {"2+9=12\n8+5+1=14\n#### 841", "841", 1.125f},
                            {"6*7+5=47\n#### 1,234.0", "1234", 1.25f},
                            {"15-8=7\nso\n#### 8", "7", 0.125f},
                            {"1+1=2", "2", 0.25f},
                            {"#### x", "7", 0},
                            {"", "7", 0},
                            {"1=1\n#### 7", "7", 1}});
}

TEST(OwnRewards, ExampleInC) {
    TempDir folder;
    const std::string path = library(folder, "digits", "rewards/examples/digits.c");
    if (path.empty()) GTEST_SKIP() << "no C compiler";
    expect_paid(path, {{"4+3+1=8\n#### 841", "841", 1},
                       {"#### 831", "841", 2.0f / 3},
                       {"#### 41", "841", 2.0f / 3},
                       {"#### 1841.", "841", 0.75f},
                       {"#### -841", "841", 0},
                       {"#### -841", "-841", 1},
                       {"#### 8x1", "841", 0},
                       {"####", "841", 0},
                       {"841", "841", 0},
                       {"", "841", 0},
                       {"#### 1", "x^2", -1}});
}

TEST(OwnRewards, HelpListsEachRewardAndHowToWriteOne) {
    const std::string help = rewards_help();
    for (const RewardEntry& entry : reward_table()) expect_has(help, "\n  " + entry.name);
    for (const auto* rows : {&program_settings(), &library_settings()})
        for (const SettingRow& row : *rows) expect_has(help, std::string("      ") + row.name + "=");
    for (const char* part : {"rewards/train_qrl_reward.h", "\"row\"", "null", "chmod +x", "reward_funcs"})
        expect_has(help, part);
    for (const char* file : {"rewards/train_qrl_reward.h", "rewards/examples/steps.py", "rewards/examples/digits.c"}) {
        EXPECT_TRUE(fs::exists(file)) << file;
        expect_has(help, file);
    }
}
