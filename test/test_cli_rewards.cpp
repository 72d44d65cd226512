// Rewards of one's own in the program: runs that are paid by a program and by a library, what they log, what ends them.
#include "cli.h"

static std::string reward_script(const std::string& name, const std::string& body) {
    const std::string folder = fresh("reward");
    fs::create_directories(folder);
    const std::string path = folder + "/" + name;
    write_text(path, "#!/bin/sh\n" + body + "\n");
    fs::permissions(path, fs::perms::owner_all);
    return path;
}

// 1 where the completion holds a 1
static const std::string ones =
    "while IFS= read -r l; do case \"$l\" in *'\"completion\":\"'*1*'\"gold\"'*) echo 1;; *) echo 0;; esac; done";

// processes whose command line names this file
static int processes_of(const std::string& path) {
    int n = 0;
    for (const auto& entry : fs::directory_iterator("/proc")) {
        std::string line = read_text(entry.path().string() + "/cmdline");
        n += line.find(path) != std::string::npos && line.find("train_qrl") == std::string::npos;
    }
    return n;
}

TEST(CliRewards, ExamplesPayARunAndAreLogged) {
    if (std::system("command -v cc >/dev/null && command -v python3 >/dev/null") != 0)
        GTEST_SKIP() << "no C compiler, or no python3";
    const std::string library = root + "/digits.so", program = root + "/steps.py", out = fresh("examples");
    fs::copy_file("rewards/examples/steps.py", program);
    ASSERT_EQ(std::system(("cc -O2 -shared -fPIC -I rewards rewards/examples/digits.c -o " + library).c_str()), 0);
    const Outcome r =
        good(grpo(out, {"--reward_funcs", "exact," + program + ":batch=16," + library, "--reward_weights", "0,1,0.5"}));
    EXPECT_NE(r.out.find("step   2/2"), std::string::npos);
    const std::vector<json> rows = read_lines(out + "/metrics.jsonl"), texts = read_lines(out + "/completions.jsonl");
    check_metrics(rows, {"rewards/steps/mean", "rewards/steps/std", "rewards/digits/mean", "rewards/digits/std",
                         "timing_s/reward"});
    ASSERT_EQ(texts.size(), 128u);
    double steps = 0, digits = 0, paid = 0;
    for (size_t i = 64; i < 128; i++) {
        const double s = number(texts[i], "steps"), d = number(texts[i], "digits"), e = number(texts[i], "exact");
        EXPECT_TRUE(e == 0 || (s >= 1 && d == 1)) << texts[i].dump();
        steps += s / 64, digits += d / 64, paid += (s + 0.5 * d) / 64;
    }
    EXPECT_NEAR(number(rows[1], "rewards/steps/mean"), steps, 1e-6);
    EXPECT_NEAR(number(rows[1], "rewards/digits/mean"), digits, 1e-6);
    EXPECT_NEAR(number(rows[1], "reward"), paid, 1e-6);
    EXPECT_GT(digits, 0.0);
    EXPECT_EQ(processes_of(program), 0);
}

TEST(CliRewards, FieldsOfRowsAndRewardsOfRows) {
    // a program that pays what its row says, and null where it says nothing
    const std::string pays = reward_script("pays.sh",
                                           "while IFS= read -r l; do case \"$l\" in *'\"pay\":3'*) echo 3;; "
                                           "*'\"pay\":5'*) echo 5;; *) echo null;; esac; done");
    std::string rows;
    for (int i = 0; i < 4; i++) {
        json row = {{"prompt", std::to_string(i) + "+1=?\n"}};
        if (i < 2) row["answer"] = std::to_string(i + 1);
        if (i < 3) row["pay"] = 3 + 2 * (i == 1);
        if (i > 1) row["reward_funcs"] = i == 2 ? "pays" : "pays,format";
        rows += row.dump() + "\n";
    }
    const std::string data = jsonl("mixed", rows), out = fresh("mixed");
    good(grpo(out, {"--train_data", data, "--reward_funcs", "exact,format," + pays, "--prompts_per_step", "4",
                    "--max_steps", "1"}));
    double sum = 0;
    int n = 0;
    for (const json& t : read_lines(out + "/completions.jsonl")) {
        const int i = std::stoi(t["prompt"].get<std::string>());
        EXPECT_EQ(t["exact"].is_null(), i > 1) << t.dump();
        EXPECT_EQ(t["format"].is_null(), i == 2) << t.dump();
        EXPECT_EQ(t["pays"], i == 3 ? json() : json(i == 1 ? 5.0 : 3.0)) << t.dump();
        if (i < 3) sum += t["pays"].get<double>(), n++;
    }
    ASSERT_EQ(n, 24);
    const json metrics = read_lines(out + "/metrics.jsonl")[0];
    EXPECT_NEAR(number(metrics, "rewards/pays/mean"), sum / n, 1e-6);
    EXPECT_NEAR(number(metrics, "rewards/pays/std"), std::sqrt(8.0 * 2 * 4 / 9 / 23 + 8.0 * 16 / 9 / 23), 1e-6);
    // none is asked: no mean, and no NaN in the log
    const std::string formats = jsonl("formats", "{\"prompt\": \"1+1=?\", \"reward_funcs\": \"format\"}\n");
    const std::string unasked = fresh("unasked");
    good(grpo(unasked, {"--train_data", formats, "--reward_funcs", "exact,format", "--prompts_per_step", "1",
                        "--max_steps", "1"}));
    const json alone = read_lines(unasked + "/metrics.jsonl")[0];
    EXPECT_TRUE(alone["rewards/exact/mean"].is_null() && alone["rewards/exact/std"].is_null()) << alone.dump();
    EXPECT_EQ(number(alone, "reward"), number(alone, "rewards/format/mean"));
    refused(1, grpo(fresh("x"), {"--train_data", data, "--reward_funcs", "exact," + pays}),
            {data + ":4: ", "`reward_funcs` names 'format'", "--reward_funcs exact,"});
    const std::string bare = jsonl("bare", "{\"prompt\": \"1+1=?\", \"reward_funcs\": \"exact\"}\n");
    refused(1, grpo(fresh("x"), {"--train_data", bare, "--reward_funcs", "exact,format"}),
            {bare + ":1: ", "no gold answer, which its reward exact reads"});
    const std::string odd = jsonl("odd", "{\"prompt\": \"1+1=?\", \"reward_funcs\": 3}\n");
    refused(1, grpo(fresh("x"), {"--train_data", odd, "--reward_funcs", "format"}), {odd + ":1: ", "`reward_funcs`"});
}

TEST(CliRewards, WhatIsRefusedBeforeTheLongWork) {
    const std::string out = fresh("x");
    refused(2, grpo(out, {"--reward_funcs", "exact,./no_such_reward.py"}), {"there is no file ./no_such_reward.py"});
    const std::string plain = fresh("plain.py");
    write_text(plain, "print(1)\n");
    refused(2, grpo(out, {"--reward_funcs", plain}), {plain, "chmod +x"});
    refused(2, grpo(out, {"--reward_funcs", plain.substr(plain.rfind('/') + 1)}),
            {"is not one of exact", "help rewards"});
    const std::string own = reward_script("own.sh", ones);
    refused(2, grpo(out, {"--reward_funcs", own, "--dynamic_sampling"}),
            {"--dynamic_sampling needs a reward that says"});
    const std::string text = fresh("text.so");
    write_text(text, "no library\n");
    refused(1, grpo(out, {"--reward_funcs", text}), {text, "not a library that can be loaded"});
    EXPECT_FALSE(fs::exists(out));
}

TEST(CliRewards, FailuresEndTheRunOrPayNothing) {
    const std::string bad = reward_script(
        "bad.sh", "n=0; while IFS= read -r l; do n=$((n+1)); if [ $n = 70 ]; then echo oops; else echo 1; fi; done");
    Outcome r = run(grpo(fresh("bad"), {"--reward_funcs", bad}));
    EXPECT_EQ(r.status, 1);
    EXPECT_NE(r.err.find("train_qrl: --reward_funcs " + bad + ": prompt 1, sample 6 (of '"), std::string::npos)
        << r.err;
    EXPECT_NE(r.err.find("it printed 'oops', which is not a number"), std::string::npos) << r.err;
    EXPECT_NE(r.out.find("step   1/2"), std::string::npos) << "the first step was paid";
    const std::string out = fresh("zero");
    r = run(grpo(out, {"--reward_funcs", bad + ":on_error=zero"}));
    EXPECT_EQ(r.status, 0) << r.err;
    const std::vector<json> rows = read_lines(out + "/metrics.jsonl");
    EXPECT_EQ(number(rows[0], "rewards/bad/failed"), 0);
    EXPECT_EQ(number(rows[1], "rewards/bad/failed"), 1);
    EXPECT_NEAR(number(rows[1], "rewards/bad/mean"), 63.0 / 64, 1e-6);
    const std::string early = reward_script("early.sh", "echo no module >&2; exit 9");
    r = run(grpo(fresh("early"), {"--reward_funcs", early}));
    EXPECT_EQ(r.status, 1);
    EXPECT_NE(r.err.find("exit status 9, after the line 'no module'"), std::string::npos) << r.err;
    for (const std::string& path : {bad, early}) EXPECT_EQ(processes_of(path), 0);
}

TEST(CliRewards, DynamicSamplingGoesByAnOutcomeOfOnesOwn) {
    // all right: each of the 8 groups is replaced once
    const std::string own = reward_script("own.sh", "while read -r l; do echo 1; done"), out = fresh("dynamic");
    const Args flags = {"--dynamic_sampling", "--dynamic_sampling_max_batches", "2", "--max_steps", "1"};
    good(grpo(out, Args{"--reward_funcs", "format," + own + ":outcome=true"} + flags));
    EXPECT_EQ(number(read_lines(out + "/metrics.jsonl")[0], "dynamic_sampling/generated_groups"), 16.0);
    // where it does not apply nothing is known of the outcome, and the group stays
    const std::string none = reward_script("none.sh", "while read -r l; do echo null; done"), other = fresh("dynamic");
    good(grpo(other, Args{"--reward_funcs", "format," + none + ":outcome=true"} + flags));
    EXPECT_EQ(number(read_lines(other + "/metrics.jsonl")[0], "dynamic_sampling/generated_groups"), 8.0);
}

TEST(CliRewards, StopLeavesNoChild) {
    const std::string hangs = reward_script("hangs.sh", "sleep 300 & read -r l; echo asked >&2; sleep 300");
    RunSetting setting;
    setting.when = [](const Outcome& r) { return r.err.find("hangs: asked") != std::string::npos; };
    const auto start = std::chrono::steady_clock::now();
    const Outcome r = run(grpo(fresh("stop"), {"--reward_funcs", hangs + ":timeout=200"}), setting);
    EXPECT_EQ(r.status, 130) << r.err << r.out;
    EXPECT_NE(r.out.find("stopped after 0 steps"), std::string::npos) << r.out;
    EXPECT_EQ(processes_of(hangs), 0);
    EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), 50 * slowness());
}

TEST(CliRewards, ResumeTellsOfAChangedProgram) {
    const std::string own = reward_script("own.sh", ones), out = fresh("resume"), whole = fresh("whole");
    good(grpo(out, {"--reward_funcs", own, "--save_steps", "1", "--lr_scheduler_type", "constant"}));
    good(grpo(whole, {"--reward_funcs", own, "--max_steps", "3", "--lr_scheduler_type", "constant"}));
    const Args resume = {"grpo", "--resume_from_checkpoint", out + "/checkpoint-2", "--max_steps", "3"};
    good(resume);
    EXPECT_EQ(learning_curve(out), learning_curve(whole));
    write_text(own, "#!/bin/sh\nwhile read -r l; do echo 0; done\n");
    refused(1, {"grpo", "--resume_from_checkpoint", out + "/checkpoint-1", "--output_dir", fresh("x")},
            {"--reward_funcs own ", "has changed since the checkpoint was written"});
}
