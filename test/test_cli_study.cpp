// train_qrl study: runs, what is left of a study that was killed, arms that fail, sweeps.
#include "cli.h"

static json small_study() {
    return {
        {"title", "Small"},
        {"seeds", {1, 2}},
        {"all",
         {{"task", "arithmetic"},
          {"max_completion_length", 8},
          {"rollout_batch", 16},
          {"eval_n", 1},
          {"eval_samples", 1},
          {"eval_full_precision", false},
          {"report_to", "none"}}},
        {"evaluation", {{"task", "arithmetic:1,arithmetic:hard"}, {"eval_n", 6}, {"eval_samples", 2}}},
        {"stages",
         {{"rl",
           {{"command", "grpo"}, {"max_steps", 3}, {"prompts_per_step", 2}, {"num_generations", 2}, {"save_steps", 1}}},
          {"rtn", {{"command", "quantize"}, {"ptq", "rtn"}, {"weights", "{bits}"}}}}},
        {"grid", {{"bits", {"int4:g16", "int2:g16"}}}},
        {"arms", {{"fp", {"rl"}}, {"fp>rtn", {"rl", "rtn"}}}},
        {"compare", {"fp>rtn - fp"}}};
}

static Args study_args(const json& j, const std::string& out, const char* jobs = "2") {
    const std::string file = fresh("study") + ".json";
    write_text(file, j.dump());
    return {"study", file, "--model", trained, "--output_dir", out, "--jobs", jobs};
}

TEST(CliStudy, ATableOfCells) {
    const std::string out = fresh("out");
    const Args args = study_args(small_study(), out);
    const Outcome planned = good(args + Args{"--plan"});
    EXPECT_NE(planned.out.find("3 cells x 2 seeds, 12 runs, 12 of them to do"), std::string::npos) << planned.out;
    EXPECT_FALSE(fs::exists(out));
    const Outcome r = good(args);
    EXPECT_NE(r.out.find("| fp>rtn int2:g16 |"), std::string::npos) << r.out;
    EXPECT_NE(r.out.find("fp>rtn int4:g16 - fp"), std::string::npos) << r.out;
    const std::vector<json> rows = read_lines(out + "/results.jsonl");
    ASSERT_EQ(rows.size(), 3u * 2 * 2);  // cells, seeds, sets
    for (const json& row : rows) {
        EXPECT_EQ(row["state"], "done");
        EXPECT_TRUE(row["pass@1"].is_number());
    }
    EXPECT_EQ(rows[0]["bits_per_weight"], bf16_build ? 16 : 32);
    EXPECT_LT(number(rows.back(), "bits_per_weight"), 4);
    EXPECT_LT(number(rows.back(), "deployed_bytes"), number(rows[0], "deployed_bytes"));
    const std::string csv = read_text(out + "/results.csv"), table = read_text(out + "/table.md");
    EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 13);
    const std::string page = read_text(out + "/report.html");
    for (const char* part : {"Small", "fp&gt;rtn int2:g16", "Accuracy against bytes", "Curves of what was trained"})
        EXPECT_NE(page.find(part), std::string::npos) << part;
    // nothing is left to do, and nothing changes
    const std::string lines = read_text(out + "/results.jsonl");
    const Outcome again = good(args);
    EXPECT_NE(again.out.find("12 runs, 0 of them to do"), std::string::npos) << again.out;
    EXPECT_EQ(again.out.find("done    "), std::string::npos) << again.out;
    EXPECT_EQ(read_text(out + "/results.jsonl"), lines);
    EXPECT_EQ(read_text(out + "/table.md"), table);
    // an arm more runs alone
    json more = small_study();
    more["arms"]["rtn"] = {"rtn"};
    const Outcome longer = good(study_args(more, out));
    EXPECT_NE(longer.out.find("20 runs, 8 of them to do"), std::string::npos) << longer.out;
}

TEST(CliStudy, KilledAnywhereItEndsWithTheSameNumbers) {
    const std::string whole = fresh("whole"), killed = fresh("killed");
    json j = small_study();
    j["full"] = "fp", j["drift"] = {{"task", "arithmetic"}, {"eval_n", 4}};
    good(study_args(j, whole));
    const Args args = study_args(j, killed);
    int kills = 0;
    for (double seconds : {0.15, 0.3, 0.5, 0.8, 1.2}) {
        RunSetting s;
        s.seconds = seconds / slowness();
        kills += run(args, s).timed_out;
    }
    EXPECT_GE(kills, 1);
    RunSetting stopped;  // and told to stop
    stopped.when = [](const Outcome& r) { return r.out.find("done    ") != std::string::npos; };
    const Outcome r = run(args, stopped);
    EXPECT_TRUE(r.status == 130 || r.status == 0) << shown_run(args, r);
    good(args);
    for (const char* file : {"/results.jsonl", "/results.csv", "/table.md"})
        EXPECT_EQ(read_text(killed + file), read_text(whole + file)) << file;
}

// killed at any moment of an evaluation or a drift, and the folder spelled otherwise when it goes on
TEST(CliStudy, WhatWasLeftInTheMiddleOfAnEvaluationGoesOn) {
    json j = small_study();
    j["full"] = "fp", j["drift"] = {{"task", "arithmetic"}, {"eval_n", 4}}, j["seeds"] = 1;
    const std::string out = fresh("out");
    good(study_args(j, out));
    const std::string table = read_text(out + "/table.md");
    int left = 0;
    for (const auto& run : fs::directory_iterator(out + "/runs"))
        if (fs::exists(run.path() / "completions.jsonl") && fs::exists(run.path() / "summary.json"))
            left += fs::remove(run.path() / "summary.json");
    EXPECT_GE(left, 6) << "three evaluations, three drifts and a run";
    const std::string spelled = fs::path(out).parent_path().string() + "/./" + fs::path(out).filename().string() + "/";
    good(study_args(j, spelled));
    EXPECT_EQ(read_text(out + "/table.md"), table);
}

TEST(CliStudy, AnArmThatFailsLeavesTheOthersAlone) {
    json j = small_study();
    j["stages"]["broken"] = {{"command", "sft"}, {"max_steps", 1}, {"train_data", "/there/is/none.jsonl"}};
    j["arms"]["no"] = {"rl", "broken", "rtn"};
    const std::string out = fresh("out");
    const Args args = study_args(j, out);
    const Outcome r = run(args);
    EXPECT_EQ(r.status, 1) << shown_run(args, r);
    EXPECT_NE(r.out.find("| no int4:g16 | failed: broken: train_qrl: "), std::string::npos) << r.out;
    EXPECT_NE(r.out.find("/there/is/none.jsonl"), std::string::npos) << r.out;
    int done = 0;
    for (const json& row : read_lines(out + "/results.jsonl")) done += row["state"] == "done";
    EXPECT_EQ(done, 12);
}

TEST(CliStudy, ASweepChooses) {
    json j = small_study();
    j["stages"]["rl"]["sweep"] = {{"learning_rate", {1e-6, 1e-3}}};
    const std::string out = fresh("out");
    const Outcome r = good(study_args(j, out, "1"));
    EXPECT_NE(r.out.find("rl.learning_rate "), std::string::npos) << r.out;
    EXPECT_EQ(read_lines(out + "/results.jsonl").size(), 12u);
    // what it chooses by first, and then seed by seed, so that a study that is stopped has whole seeds
    const size_t sweep = r.out.rfind("-s1001-"), first = r.out.find("-s1-"), last = r.out.rfind("-s1-"),
                 second = r.out.find("-s2-");
    EXPECT_LT(sweep, first) << r.out;
    EXPECT_LT(last, second) << r.out;
}

TEST(CliStudy, ClaimsAreDecidedAndTheQuickFormGoesOn) {
    json j = small_study();
    j["claims"] = {{"one",
                    {{"from", "us"},
                     {"claim", "two bits are fewer"},
                     {"more", "fp - fp>rtn"},
                     {"where", {{"bits", {"int2:g16"}}}}}},
                   {"two",
                    {{"claim", "four bits are enough"},
                     {"equal", "fp>rtn - fp"},
                     {"margin", 90},
                     {"where", {{"bits", {"int4:g16"}}}}}}};
    j["quick"] = {{"seeds", {1}}, {"grid", {{"bits", {"int2:g16"}}}}};
    j["full"] = "fp";
    j["drift"] = {{"task", "arithmetic"}, {"eval_n", 4}};
    j["reported"] = {{"fp>rtn int2:g16", "as much as nothing"}};
    j["pictures"] = {{"routes", {{"title", "Routes & bits"}, {"across", "bits"}, {"arms", {"fp", "fp>rtn"}}}}};
    const std::string out = fresh("out");
    const Outcome quick = good(study_args(j, out) + Args{"--quick"});
    EXPECT_NE(quick.out.find("2 cells x 1 seeds, 6 runs"), std::string::npos) << quick.out;
    EXPECT_EQ(read_lines(out + "/claims.jsonl").size(), 1u) << "the other claim is about other bits";
    EXPECT_NE(
        good(study_args(j, out) + Args{"--quick", "--seeds", "3", "--plan"}).out.find("2 cells x 3 seeds, 18 runs"),
        std::string::npos);
    const Outcome whole = good(study_args(j, out));
    EXPECT_NE(whole.out.find("18 runs, 12 of them to do"), std::string::npos) << whole.out;
    const std::vector<json> claims = read_lines(out + "/claims.jsonl");
    ASSERT_EQ(claims.size(), 2u);
    EXPECT_EQ(claims[1]["claim"], "two");
    EXPECT_EQ(claims[1]["seeds"], 2);
    EXPECT_EQ(claims[1]["cells"], json::array({"fp>rtn int4:g16 - fp"}));
    EXPECT_EQ(claims[1]["verdict"], "undecided") << "two seeds of six problems: " << claims[1];
    EXPECT_TRUE(claims[1]["p"].is_number());
    EXPECT_NE(read_text(out + "/table.md").find("two bits are fewer"), std::string::npos);
    EXPECT_NE(read_text(out + "/table.md").find("Between seeds a difference varies by"), std::string::npos);
    EXPECT_NE(read_text(out + "/table.md").find("as much as nothing"), std::string::npos);
    for (const json& row : read_lines(out + "/results.jsonl"))
        if (row["cell"] == "fp") EXPECT_NEAR(number(row, "kl_from_full"), 0.0, 1e-6);
        else EXPECT_GT(number(row, "kl_from_full"), 1e-4) << row;
    const std::string page = read_text(out + "/report.html"), picture = read_text(out + "/routes.svg");
    for (const char* part : {"four bits are enough", "Routes &amp; bits"})
        EXPECT_NE(page.find(part), std::string::npos) << part;
    for (const char* part : {"Routes &amp; bits", "fp&gt;rtn", "bits a weight"})
        EXPECT_NE(picture.find(part), std::string::npos) << part;
    int models = 0;
    for (const auto& file : fs::recursive_directory_iterator(out + "/runs")) {
        models += file.path().filename() == "model.safetensors";
        EXPECT_NE(file.path().filename(), "optimizer.safetensors") << "of a run that is done, which is not resumed";
    }
    EXPECT_GE(models, 6);
}

TEST(CliStudy, WhatItNeedsIsSaidAndTooMuchIsRefused) {
    json j = small_study();
    const std::string out = fresh("out");
    const Outcome r = good(study_args(j, out) + Args{"--plan"});
    EXPECT_NE(r.out.find("needs   "), std::string::npos) << r.out;
    EXPECT_EQ(r.out.find("needs   0 B"), std::string::npos) << r.out;
    j["stages"]["rl"]["micro_batch_tokens"] = 16000000;  // terabytes of activations
    refused(1, study_args(j, out), {"of memory for 2 runs at a time", "lower --jobs"});
    // left to itself it takes as many as there is memory for, and that is less than one
    refused(1, study_args(j, out, "0"), {"of memory for 1 run at a time", "free some"});
    EXPECT_FALSE(fs::exists(out));
}

TEST(CliStudy, BadInput) {
    const std::string out = fresh("out");
    json j = small_study();
    refused(2, {"study"}, {"study needs one study"});
    refused(2, {"study", "nothing"}, {"study nothing", "there is no such file"});
    refused(1, {"study", "/there/is/none.json"}, {"/there/is/none.json"});
    j["stages"]["rl"]["learning_rate"] = -1;
    refused(2, study_args(j, out), {"stage rl", "--learning_rate"});
    j = small_study();
    j["grid"]["rate"] = {"1e-1", "2e-1", "3e-1", "4e-1", "5e-1", "6e-1", "7e-1", "8e-1"};
    j["stages"]["rl"]["learning_rate"] = "{rate}";
    j["pictures"] = {{"routes", {{"across", "bits"}, {"arms", {"fp>rtn"}}}}};
    refused(2, study_args(j, out), {"pictures.routes: 8 lines, and 7 can be told apart"});
    EXPECT_FALSE(fs::exists(out));
    fs::create_directories(out);
    write_text(out + "/table.md", "mine");
    refused(1, study_args(small_study(), out), {"holds table.md and is no study's folder", "--output_dir"});
    EXPECT_EQ(read_text(out + "/table.md"), "mine");
    fs::remove(out + "/table.md");
    good(study_args(small_study(), out));
    write_text(out + "/study.json", R"({"version": "0.0.9"})");
    refused(1, study_args(small_study(), out), {"version '0.0.9'", "--output_dir"});
}
