// eval as a user runs it: sets, tables, files, rewards, what is left of a stopped evaluation and how it goes on.
#include "cli.h"

static Args eval_args(const std::string& data, const std::string& out, const Args& more = {}) {
    return Args{"eval", "--model", trained, "--eval_data", data, "--max_completion_length", "12", "--output_dir", out} +
           more;
}

TEST(CliEval, CountsAndKeeps) {
    std::string out = fresh("eval"), again = fresh("eval");
    const Args more = {"--eval_n", "10", "--eval_samples", "3"};
    Outcome r = good(eval_args(problems, out, more));
    std::vector<json> rows = read_lines(out + "/completions.jsonl");
    ASSERT_EQ(rows.size(), 10u + 30u);
    int right = 0;
    double reward = 0;
    for (const json& row : rows) {
        right += row["decoding"] == "sampled" && row["strict"] == true;
        if (row["decoding"] == "sampled") reward += number(row, "reward");
        EXPECT_EQ(row["problem"].get<std::string>()[0], '#');
        EXPECT_EQ(row["rewards"]["exact"], row["strict"] == true ? 1 : 0);
    }
    json summary = read_json(out + "/summary.json");
    EXPECT_EQ(summary["command"], "eval");
    EXPECT_EQ(summary["eval"]["n"], 10);
    EXPECT_FALSE(summary.contains("partial"));
    EXPECT_NEAR(number(summary["eval"], "pass@1"), right / 30.0, 1e-9);
    EXPECT_NEAR(number(summary["eval"], "reward"), reward / 30.0, 1e-9);
    for (const char* key : {"pass@2", "pass@3", "maj@2", "maj@3", "greedy", "completions/garbled_ratio"}) {
        const double share = number(summary["eval"], key);
        EXPECT_TRUE(share >= 0 && share <= 1) << key;
    }
    EXPECT_GE(number(summary["eval"], "pass@3"), number(summary["eval"], "pass@1"));
    for (const char* said :
         {"pass@3", "maj@3", "greedy", "by format", "% repeating, ", "in brackets the 95 % interval"})
        EXPECT_NE(r.out.find(said), std::string::npos) << said << "\n" << r.out;
    const size_t head = r.out.find("\nset ") + 1, row = r.out.find('\n', head) + 1;
    EXPECT_EQ(row - 1 - head, r.out.find('\n', row) - row) << "columns end below their names\n" << r.out;
    const double cut = number(summary["eval"], "completions/clipped_ratio");
    EXPECT_EQ(r.out.find("were cut off at --max_completion_length 12") != std::string::npos, cut > 0.1) << r.out;
    Args brief = eval_args(problems, fresh("eval"), {"--eval_n", "10"});
    brief[6] = "1";  // --max_completion_length
    EXPECT_NE(
        good(brief).out.find("100% of the completions were cut off at --max_completion_length 1, and are strictly"),
        std::string::npos);
    good(eval_args(problems, again, more));
    EXPECT_EQ(read_text(out + "/completions.jsonl"), read_text(again + "/completions.jsonl"));
    good(eval_args(problems, fresh("eval"), more + Args{"--weights", "int4:g32"}));
}

// what compare makes of the rows is what eval made of the samples
TEST(CliEval, CompareReadsTheSameNumbers) {
    const std::string a = fresh("eval"), b = fresh("eval"), json_file = fresh("comparison") + ".json";
    const Args more = {"--eval_n", "12", "--eval_samples", "5", "--temperature", "1.3"};
    good(eval_args(problems, a, more));
    good(eval_args(problems, b, more + Args{"--weights", "int3:g32"}));
    const std::pair<const char*, const char*> metrics[] = {
        {"strict", "pass@1"}, {"pass@2", "pass@2"}, {"maj@2", "maj@2"}, {"maj@5", "maj@5"}, {"greedy", "greedy"}};
    for (const auto& [metric, key] : metrics) {
        fs::remove(json_file);
        good({"compare", a, b, "--metric", metric, "--output", json_file});
        const json arms = read_json(json_file)["sets"][0]["arms"];
        for (int i = 0; i < 2; i++)
            EXPECT_NEAR(number(arms[i], "value"), number(read_json((i ? b : a) + "/summary.json")["eval"], key), 1e-9)
                << metric;
    }
    refused(2, {"compare", a, b, "--metric", "maj@0"}, {"--metric maj@0", "maj@K"});
}

// two sets, one with subjects and levels, in lm-eval's shape; and compared with another evaluation of them
TEST(CliEval, SeveralSets) {
    std::string math;
    for (int i = 0; i < 6; i++)
        math += json{{"problem", std::to_string(i) + "+1?"},
                     {"solution", "\\boxed{" + std::to_string(i + 1) + "}"},
                     {"answer", std::to_string(i + 1)},
                     {"subject", i % 2 ? "odd" : "even"},
                     {"level", 1 + i / 3},
                     {"unique_id", "test/" + std::to_string(i)}}
                    .dump() +
                "\n";
    const std::string other = jsonl("sums_by_subject", math), out = fresh("eval"), greedy = fresh("eval");
    const Args more = {"--eval_n", "6"};
    const Outcome r = good(eval_args(problems + "," + other, out, more + Args{"--eval_samples", "2"}));
    const std::string names[] = {fs::path(problems).stem(), fs::path(other).stem()};
    const json results = read_json(out + "/results.json"), summary = read_json(out + "/summary.json");
    for (const std::string& name : names) {
        const json& of = results["results"][name];
        for (const char* metric : {"greedy", "pass@1"})
            for (const char* filter : {"strict", "lenient"}) {
                const double value = number(of, std::string(metric) + "," + filter);
                EXPECT_EQ(of[std::string(metric) + "_interval," + filter].size(), 2u);
                EXPECT_LE(of[std::string(metric) + "_interval," + filter][0].get<double>(), value);
            }
        EXPECT_EQ(results["n-samples"][name]["effective"], 6);
        EXPECT_EQ(summary["eval"][name]["n"], 6);
        EXPECT_NE(r.out.find("\n" + name), std::string::npos) << r.out;
    }
    const json& by = results["breakdown"][names[1]];
    EXPECT_EQ(by["subject"]["odd"]["problems"], 3);
    EXPECT_EQ(by["level"]["2"]["problems"], 3);
    EXPECT_NEAR(number(by["subject"]["odd"], "right") + number(by["subject"]["even"], "right"),
                2 * number(summary["eval"][names[1]], "pass@1"), 1e-9);
    EXPECT_FALSE(results.contains("partial"));
    int named = 0;
    for (const json& row : read_lines(out + "/completions.jsonl")) named += row["problem"] == "test/3";
    EXPECT_EQ(named, 3);
    // greedy alone draws the same greedy completions
    good(eval_args(problems + "," + other, greedy, more + Args{"--eval_samples", "0"}));
    EXPECT_EQ(number(read_json(greedy + "/summary.json")["eval"][names[0]], "greedy"),
              number(summary["eval"][names[0]], "greedy"));
    EXPECT_FALSE(read_json(greedy + "/summary.json")["eval"][names[0]].contains("pass@1"));
    const Outcome cold =
        good(eval_args(problems, fresh("eval"), more + Args{"--temperature", "0", "--eval_samples", "3"}));
    EXPECT_NE(cold.out.find("so none are drawn"), std::string::npos) << cold.out;
    EXPECT_EQ(cold.out.find("pass@"), std::string::npos) << cold.out;
    const Outcome compared = good({"compare", out, greedy});
    EXPECT_NE(compared.out.find(names[1]), std::string::npos) << compared.out;
}

TEST(CliEval, StopsAndGoesOn) {
    const std::string whole = fresh("whole"), part = fresh("part");
    auto args = [&](const std::string& out, const std::string& batch = "64") {
        return Args{"eval",           "--model", trained,           "--task", "arithmetic",   "--eval_n", "60",
                    "--eval_samples", "40",      "--rollout_batch", batch,    "--output_dir", out};
    };
    RunSetting s;
    s.seconds = 60;
    s.when = [&](const Outcome&) {  // as soon as sampled completions are there
        return fs::exists(part + "/completions.jsonl") && fs::file_size(part + "/completions.jsonl") > 60000;
    };
    const Outcome stopped = run(args(part), s);
    ASSERT_EQ(stopped.status, 130) << shown_run(args(part), stopped);
    EXPECT_NE(stopped.out.find("partial: of 60 problems"), std::string::npos) << stopped.out;
    EXPECT_NE(stopped.out.find("--resume true goes on"), std::string::npos) << stopped.out;
    EXPECT_EQ(leftovers(part, true), "");
    EXPECT_EQ(read_json(part + "/results.json")["partial"], true);
    EXPECT_EQ(read_json(part + "/summary.json")["partial"], true);
    const size_t rows = read_lines(part + "/completions.jsonl").size();
    EXPECT_GT(rows, 60u);
    EXPECT_LT(rows, 60u * 41);
    EXPECT_EQ((rows - 60) % 40, 0u);
    refused(1, args(part) + Args{"--resume", "true", "--temperature", "0.5"}, {"--temperature", "1.0", "0.5"});
    {  // a row that was being written, and half of a problem
        std::ofstream(part + "/completions.jsonl", std::ios::app) << "{\"set\":\"arith";
    }
    good(args(part, "16") + Args{"--resume", "true"});
    good(args(whole));
    EXPECT_TRUE(read_text(part + "/completions.jsonl") == read_text(whole + "/completions.jsonl"));
    EXPECT_FALSE(read_json(part + "/results.json").contains("partial"));
    EXPECT_LT(read_json(part + "/summary.json")["tokens_generated"],
              read_json(whole + "/summary.json")["tokens_generated"]);
    // complete: nothing is left to draw
    good(args(part) + Args{"--resume", "true"});
    EXPECT_EQ(read_json(part + "/summary.json")["tokens_generated"], 0);
    EXPECT_TRUE(read_text(part + "/completions.jsonl") == read_text(whole + "/completions.jsonl"));
    // another data set under the same name is no continuation
    refused(2, {"eval", "--model", trained, "--task", "arithmetic", "--resume", "true", "--output_dir", fresh("none")},
            {"--resume", "holds no evaluation"});
}

TEST(CliEval, TasksAtTheirLevels) {
    const std::string out = fresh("eval");
    good({"eval", "--model", trained, "--task", "arithmetic,arithmetic:hard,chains:1", "--eval_n", "4", "--output_dir", out});
    const json sets = read_json(out + "/summary.json")["eval"];
    for (const char* name : {"arithmetic", "arithmetic:hard", "chains:1"}) EXPECT_EQ(sets.at(name)["n"], 4) << name;
    refused(2, {"eval", "--model", trained, "--task", "chains,chains", "--output_dir", fresh("eval")},
            {"--task", "both called chains"});
}

TEST(CliEval, RewardsOfTheRun) {
    const std::string run_dir = fresh("run"), out = fresh("eval");
    good(grpo(run_dir, {"--max_steps", "1", "--reward_funcs", "exact,format,overlong:cache=4", "--reward_weights",
                        "1,0.5,0.1", "--eval_data", problems, "--eval_n", "4", "--eval_samples", "2"}));
    const json after = read_json(run_dir + "/summary.json")["eval"]["after"];
    for (const char* key : {"reward", "rewards/exact/mean", "rewards/format/mean", "rewards/overlong/mean", "best@2"})
        number(after, key);
    Args args = eval_args(problems, out, {"--eval_n", "4"});
    args[2] = run_dir + "/checkpoint-1";
    good(args);
    const json e = read_json(out + "/summary.json")["eval"];
    EXPECT_NEAR(number(e, "reward"),
                number(e, "rewards/exact/mean") + 0.5 * number(e, "rewards/format/mean") +
                    0.1 * number(e, "rewards/overlong/mean"),
                1e-6);
    refused(2, eval_args(problems, fresh("eval"), {"--reward_funcs", "entropy"}), {"--reward_funcs", "entropy"});
    refused(2, eval_args(problems, fresh("eval"), {"--eval_samples", "0", "--eval_greedy", "false"}),
            {"--eval_samples"});
}

TEST(CliEval, SamplesAsTheModelRecommends) {
    const std::string m = model_copy();
    Args args = eval_args(problems, fresh("eval"), {"--eval_n", "2", "--generation_config", "model"});
    args[2] = m;
    fs::remove(m + "/generation_config.json");
    refused(1, args, {"generation_config.json", "--temperature"});
    write_text(m + "/generation_config.json", R"({"temperature": 0.6, "top_k": 20, "top_p": 0.95, "do_sample": true})");
    args = eval_args(problems, fresh("eval"), {"--eval_n", "2", "--generation_config", "model", "--top_k", "5"});
    args[2] = m;
    const Outcome r = good(args);
    EXPECT_NE(r.out.find("recommends: temperature 0.6, top_p 0.95"), std::string::npos) << r.out;
    const json config = read_json(args[8] + "/config.json");
    EXPECT_EQ(config["temperature"], 0.6);
    EXPECT_EQ(config["top_k"], 5);
    write_text(m + "/generation_config.json", R"({"temperature": "hot"})");
    args = eval_args(problems, fresh("eval"), {"--generation_config", "model"});
    args[2] = m;
    refused(1, args, {"temperature", "not a number"});
}

// an eighth of what is trained on, 32 at least, and told at the start
TEST(CliEval, TrainingHoldsOutWhatItCanAfford) {
    const std::string out = fresh("run");
    const Outcome r = good(grpo(out, {"--max_steps", "2", "--eval_data", problems, "--max_completion_length", "4"}));
    EXPECT_EQ(read_json(out + "/summary.json")["eval"]["n"], 32);
    EXPECT_NE(r.out.find("32 held out x 2 completions"), std::string::npos) << r.out;
    EXPECT_NE(r.out.find("evaluated   32 problems"), std::string::npos) << r.out;
    number(read_json(out + "/summary.json"), "eval_seconds");
}
