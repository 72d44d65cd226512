// train_qrl report, report.html of a run, and the logs that it is made of: evaluations.jsonl and samples.jsonl.
#include "cli.h"

static Args evaluated(const std::string& out, const Args& more = {}) {
    return grpo(out, Args{"--max_steps", "4", "--eval_data", problems, "--eval_n", "4", "--eval_samples", "2",
                          "--eval_steps", "2", "--weights", "int4:g16", "--save_steps", "2"} +
                         more);
}

static void expect_texts(const std::string& page, const Args& texts) {
    for (const std::string& text : texts) EXPECT_NE(page.find(text), std::string::npos) << text;
}

TEST(Report, ARunLeavesItsEvaluationsItsSamplesAndItsPage) {
    const std::string out = fresh("run");
    good(evaluated(out));
    const json summary = read_json(out + "/summary.json");
    const std::vector<json> evaluations = read_lines(out + "/evaluations.jsonl");
    ASSERT_EQ(evaluations.size(), 3u);
    const char* when[] = {"before", "step 2", "after"};
    for (int i = 0; i < 3; i++) {
        const json& e = evaluations[i];
        EXPECT_EQ(e["step"], 2 * i);
        EXPECT_EQ(e["when"], when[i]);
        EXPECT_EQ(e["problems"], 4);
        EXPECT_EQ(e["samples"], 2);
        EXPECT_LE(e["pass@1_interval"][0], e["pass@1"]);
        EXPECT_GE(e["pass@1_interval"][1], e["pass@1"]);
        EXPECT_EQ(e.contains("full_precision"), i != 1);
        if (i == 1) continue;
        for (const auto& item : summary["eval"][when[i]].items()) EXPECT_EQ(e[item.key()], item.value()) << item.key();
    }
    EXPECT_EQ(number(read_lines(out + "/metrics.jsonl")[1], "eval_pass@1"), number(evaluations[1], "pass@1"));
    EXPECT_EQ(read_json(out + "/checkpoint-2/trainer_state.json")["latest_evaluation"]["when"], "step 2");

    const std::vector<json> samples = read_lines(out + "/samples.jsonl"),
                            texts = read_lines(out + "/completions.jsonl");
    ASSERT_EQ(samples.size(), 4u);
    for (const json& s : samples) {
        EXPECT_EQ(s["completions"].size(), 4u);
        for (const json& c : s["completions"]) {
            const size_t n = number(c, "length");
            for (const char* key : {"tokens", "ids", "logp"}) EXPECT_EQ(c[key].size(), n) << key;
            std::string text;
            for (const json& t : c["tokens"]) text += t.get<std::string>();
            bool found = false;  // a completion of the step with this beginning and these numbers
            for (const json& row : texts)
                found |= row["step"] == s["step"] && row["prompt"] == s["prompt"] &&
                         row["advantage"] == c["advantage"] && row["exact"] == c["rewards"]["exact"] &&
                         text.rfind(row["completion"].get<std::string>(), 0) == 0;
            EXPECT_TRUE(found) << c;
            for (const json& v : c["logp"]) EXPECT_LE(v.get<double>(), 0.0);
        }
    }
    const std::string page = read_text(out + "/report.html");
    expect_texts(page, {"What came out", "the run ended", "Sample completions", "Codes that differ from the start",
                        "int4:g16", "Machine and build"});
    // the command makes the same of the same files
    good({"report", out + "/"});
    EXPECT_EQ(read_text(out + "/report.html"), page);
    // config.json can still be read back, with the machine in it
    EXPECT_TRUE(read_json(out + "/config.json")["machine"].contains("precision"));
    good({"grpo", "--config", out + "/config.json", "--output_dir", fresh("again"), "--max_steps", "0"});
}

// killed between an evaluation and the next checkpoint: it is done again, and stands there once
TEST(Report, EvaluationsAndSamplesOfAResumedRun) {
    const std::string whole = fresh("whole"), died = fresh("died");
    good(evaluated(whole));
    fs::copy(whole, died, fs::copy_options::recursive);
    fs::remove_all(died + "/checkpoint-4");
    fs::remove(died + "/summary.json");
    good({"grpo", "--output_dir", died, "--resume_from_checkpoint", "last"});
    for (const char* name : {"/evaluations.jsonl", "/samples.jsonl"}) {
        EXPECT_EQ(read_text(died + name), read_text(whole + name)) << name;
        EXPECT_GT(read_text(whole + name).size(), 100u);
    }
    // a run that ended goes on: what was after it, is not
    good({"grpo", "--output_dir", died, "--resume_from_checkpoint", "last", "--max_steps", "6"});
    std::string when;
    for (const json& e : read_lines(died + "/evaluations.jsonl")) when += e["when"].get<std::string>() + ",";
    EXPECT_EQ(when, "before,step 2,after,") << "step 4 was its last, and was evaluated as that";
}

TEST(Report, OtherKindsOfRuns) {
    const std::string sft = fresh("sft"), distill = fresh("distill"), none = fresh("none");
    good({"sft", "--model", trained, "--train_data", sums, "--max_steps", "2", "--output_dir", sft});
    expect_texts(read_text(sft + "/report.html"), {"sft of", "Loss", "2"});
    EXPECT_FALSE(fs::exists(sft + "/evaluations.jsonl"));
    good({"distill", "--model", trained, "--weights", "int3:g16", "--train_data", sums, "--eval_text", sums,
          "--max_steps", "2", "--output_dir", distill});
    const std::vector<json> evaluations = read_lines(distill + "/evaluations.jsonl");
    ASSERT_EQ(evaluations.size(), 2u);
    EXPECT_EQ(evaluations[0]["measured"], read_json(distill + "/summary.json")["held_out_text"]["before"]);
    expect_texts(read_text(distill + "/report.html"), {"log-loss", "Divergence from the teacher"});
    good(grpo(none, {"--report_to", "none", "--log_completions", "false"}));
    EXPECT_FALSE(fs::exists(none + "/report.html"));
    EXPECT_FALSE(fs::exists(none + "/samples.jsonl"));
    good({"report", none});
    EXPECT_TRUE(fs::exists(none + "/report.html"));
    good(grpo(none, {"--overwrite_output_dir"}));
}

TEST(Report, SeveralRunsAreCompared) {
    std::vector<std::string> runs;
    for (const char* seed : {"1", "2"}) {
        runs.push_back(fresh("seed"));
        good(evaluated(runs.back(), {"--seed", seed}));
    }
    runs.push_back(fresh("full"));
    good(grpo(runs.back(), {"--weights", "none"}));
    const std::string page = fresh("page.html");
    const Outcome r = good({"report", runs[0], runs[1], runs[2], "--output", page});
    EXPECT_NE(r.out.find("2 runs, seeds 1, 2; pass@1"), std::string::npos) << r.out;
    EXPECT_NE(r.out.find("report in " + page), std::string::npos) << r.out;
    expect_texts(read_text(page), {"Comparison of runs", "3 runs in 2 arms", "--weights"});
}

TEST(Report, BadInput) {
    refused(2, {"report"}, {"report needs the folder of a run"});
    refused(1, {"report", root + "/nowhere"}, {"there is no such folder"});
    refused(1, {"report", sums}, {"is a file"});
    refused(1, {"report", trained}, {"a checkpoint"});
    const std::string empty = fresh("empty"), out = fresh("run");
    fs::create_directories(empty);
    refused(1, {"report", empty}, {"holds no run", "it is empty"});
    good(grpo(out));
    refused(2, {"report", out, out + "/."}, {"is given twice"});
    write_text(empty + "/mine.html", "<p>mine</p>");
    refused(1, {"report", out, "--output", empty + "/mine.html"}, {"no report of this program", "--output"});
    refused(1, {"report", out, "--output", empty + "/no/such/folder.html"}, {"no/such/folder.html"});
    EXPECT_EQ(read_text(empty + "/mine.html"), "<p>mine</p>");
    refused(2, {"report", out, "--seed", "1"}, {"--seed"});
}
