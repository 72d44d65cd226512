// Training as a user meets it: the folder of a run, interrupts, losses and options of grpo, what is watched, chat models.
#include "../runtime/error.h"
#include "cli.h"
#include "tfevents_reader.h"

// ---------------------------------------------------------------------------------------------------------------------
// the folder of a run

TEST(OutputDir, RefusedWhenItCannotBeUsed) {
    std::string file = fresh("file");
    write_text(file, "mine");
    refused(1, grpo(file), {file, "is a file"});
    refused(1, grpo(file + "/below"), {file, "is a file"});
    EXPECT_EQ(read_text(file), "mine");
    refused(1, grpo(""), {"--output_dir is empty"});
    refused(1, grpo("/proc/self/nothing"), {"/proc/self/nothing"});
}

TEST(Grpo, StatisticsOfGridsNeedGridsThatChange) {
    for (const Args& flags : {Args{"--weights", "none"}, Args{"--weights", "nf4:g32", "--lora_r", "4"}}) {
        std::string out = fresh("run");
        refused(2, grpo(out, flags + Args{"--quant_statistics", "history"}),
                {"--quant_statistics history", "leave it"});
        good(grpo(out, flags));
        EXPECT_FALSE(fs::exists(out + "/quant_statistics.jsonl"));
        EXPECT_FALSE(read_lines(out + "/metrics.jsonl")[0].contains("quant/grid_noise"));
    }
    std::string out = fresh("run");
    good(grpo(out, {"--weights", "int4:g32", "--quant_statistics", "none"}));
    EXPECT_FALSE(fs::exists(out + "/quant_statistics.jsonl"));
    // an adapter inside the quantizer moves weights, by other amounts than its rate
    out = fresh("run");
    good(grpo(out, {"--weights", "int4:g32", "--lora_r", "4", "--lora_inside_quantizer"}));
    const json row = read_lines(out + "/metrics.jsonl")[1];
    EXPECT_FALSE(row.contains("quant/deadzone_share"));
    EXPECT_GT(number(row, "quant/grid_noise"), 0.0);
}

TEST(OutputDir, HoldsOneRun) {
    std::string out = fresh("run");
    good(grpo(out, {"--weights", "int8:channel"}));
    std::string metrics = read_text(out + "/metrics.jsonl"), flips = read_text(out + "/code_flips.jsonl");
    refused(1, grpo(out), {out, "already holds a run", "--overwrite_output_dir"});
    refused(1, {"eval", "--model", trained, "--task", "arithmetic", "--output_dir", out}, {out, "already holds a run"});
    EXPECT_EQ(read_text(out + "/metrics.jsonl"), metrics);
    good(grpo(out, {"--weights", "int8:channel", "--overwrite_output_dir", "--seed", "3"}));
    EXPECT_EQ(read_lines(out + "/metrics.jsonl").size(), 2u);
    EXPECT_EQ(read_lines(out + "/code_flips.jsonl").size(), 2u) << "two runs in one file";
    EXPECT_EQ(read_json(out + "/config.json")["seed"], 3);
    EXPECT_EQ(leftovers(out, false), "");
}

// RLIMIT_FSIZE stands in for a full disk: at the first file, at a log, at the checkpoint
// One line of what was full, and before it, once a step has been done, one of what became of its weights
static void full_disk(const Args& args, const Args& parts, const RunSetting& setting, bool trained) {
    Outcome r = run(args, setting);
    EXPECT_EQ(r.status, 1) << shown_run(args, r);
    EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\n'), trained ? 2 : 1) << shown_run(args, r);
    EXPECT_EQ(r.err.find("train_qrl: the weights of step ") == 0, trained) << shown_run(args, r);
    for (const std::string& part : parts) EXPECT_NE(r.err.find(part), std::string::npos) << part << shown_run(args, r);
}

TEST(OutputDir, FullDisk) {
    NEEDS_FILE_SIZE_LIMIT();
    for (rlim_t limit : {100, 6000, 40000}) {
        std::string out = fresh("full");
        RunSetting s;
        s.file_size = limit;
        // at 6000 the limit is to hit a log of a step, and not the options among the first events
        full_disk(grpo(out, {"--weights", "int8:channel", "--report_to", limit == 6000 ? "none" : "tensorboard"}),
                  {"cannot", out, "ulimit -f"}, s, limit > 100);
        EXPECT_EQ(leftovers(out, true), "") << limit;
        EXPECT_FALSE(fs::exists(out + "/summary.json")) << limit;
        for (const char* name : {"/metrics.jsonl", "/completions.jsonl", "/code_flips.jsonl"})
            if (fs::exists(out + name)) read_lines(out + name);  // whole lines
        if (limit == 60000) {
            EXPECT_EQ(read_lines(out + "/metrics.jsonl").size(), 2u) << "the limit is to hit the checkpoint";
        }
    }
    std::string out = fresh("full");
    RunSetting s;
    s.file_size = 40000;
    full_disk({"sft", "--model", base, "--train_data", sums, "--max_steps", "1", "--output_dir", out},
              {"model.safetensors", "ulimit -f"}, s, true);
    EXPECT_EQ(leftovers(out, true), "");
}

// ---------------------------------------------------------------------------------------------------------------------
// Ctrl-C

static size_t count_lines(const std::string& path) {
    std::string text = read_text(path);
    return (size_t)std::count(text.begin(), text.end(), '\n');
}

TEST(Interrupt, GrpoKeepsWhatItHas) {
    std::string out = fresh("stopped");
    RunSetting s;
    s.when = [&](const Outcome&) { return count_lines(out + "/metrics.jsonl") >= 2; };
    Args args = {"grpo",       "--model",           trained,  "--task",
                 "arithmetic", "--max_steps",       "100000", "--prompts_per_step",
                 "4",          "--num_generations", "4",      "--max_completion_length",
                 "16",         "--eval_n",          "4",      "--output_dir",
                 out};
    Outcome r = run(args, s);
    EXPECT_EQ(r.status, 130) << shown_run(args, r);
    EXPECT_NE(r.err.find("stopping"), std::string::npos) << shown_run(args, r);
    EXPECT_EQ(r.err.find("train_qrl: "), std::string::npos) << shown_run(args, r);
    json summary = read_json(out + "/summary.json");
    EXPECT_EQ(summary["stopped"], true);
    std::string checkpoint = summary.value("checkpoint", "");
    EXPECT_NE(r.out.find("results in " + out), std::string::npos) << r.out;
    EXPECT_NE(r.out.find(checkpoint), std::string::npos) << r.out;
    std::vector<json> rows = read_lines(out + "/metrics.jsonl");
    EXPECT_GE(rows.size(), 2u);
    EXPECT_EQ((size_t)summary["steps"], rows.size());
    EXPECT_EQ(read_lines(out + "/completions.jsonl").size(), rows.size() * 16);
    EXPECT_EQ(leftovers(out, false), "");
    good({"eval", "--model", checkpoint, "--task", "arithmetic", "--eval_n", "2", "--max_completion_length", "8",
          "--output_dir", fresh("eval")});
}

TEST(Interrupt, Sft) {
    std::string out = fresh("stopped");
    RunSetting s;
    s.when = [&](const Outcome&) { return count_lines(out + "/metrics.jsonl") >= 2; };
    Args args = {"sft", "--model", base, "--train_data", sums, "--max_steps", "1000000", "--output_dir", out};
    Outcome r = run(args, s);
    EXPECT_EQ(r.status, 130) << shown_run(args, r);
    json summary = read_json(out + "/summary.json");
    EXPECT_EQ(summary["stopped"], true);
    EXPECT_EQ((size_t)summary["steps"], read_lines(out + "/metrics.jsonl").size());
    EXPECT_TRUE(fs::exists(summary.value("checkpoint", "") + "/model.safetensors"));
}

// a command that waits for input leaves at once
TEST(Interrupt, WhileWaitingForInput) {
    for (const Args& args : {Args{"tokenize"}, Args{"logprobs", "--model", base}, Args{"generate", "--model", base}}) {
        auto start = std::chrono::steady_clock::now();
        RunSetting s;
        s.hold_input = true;
        s.seconds = 5;
        s.when = [&](const Outcome&) {
            return std::chrono::steady_clock::now() - start > std::chrono::milliseconds(700);
        };
        Outcome r = run(args, s);
        EXPECT_FALSE(r.timed_out) << shown_run(args, r);
        EXPECT_EQ(r.status, 130) << shown_run(args, r);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// numbers that are not finite while training

// finite weights whose logits overflow
TEST(Diverged, StopsAfterSkippedSteps) {
    std::string m = model_copy();
    Tensors t = tiny_tensors();
    for (float& v : t["model.norm.weight"].second) v = 1e38f;
    for (float& v : t["model.embed_tokens.weight"].second) v *= 1e3f;
    write_safetensors(m + "/model.safetensors", t);
    std::string out = fresh("diverged");
    const Outcome first = run({"sft", "--model", m, "--train_data", sums, "--max_steps", "50", "--output_dir", out});
    EXPECT_EQ(first.status, 1);
    EXPECT_EQ(first.err.rfind("warning: for 2 steps the loss or the gradient was not finite", 0), 0u) << first.err;
    for (const char* part : {"\ntrain_qrl: loss or gradient not finite", "5 steps in a row", "--learning_rate"})
        EXPECT_NE(first.err.find(part), std::string::npos) << first.err;
    EXPECT_EQ(std::count(first.err.begin(), first.err.end(), '\n'), 2) << first.err;
    EXPECT_EQ(read_lines(out + "/metrics.jsonl").size(), 4u);
    EXPECT_EQ(leftovers(out, true), "");
    EXPECT_FALSE(fs::exists(out + "/summary.json"));
    out = fresh("diverged");
    Args args = {
        "grpo", "--model",     m,    "--train_data", problems, "--reward_funcs", "overlong", "--max_completion_length",
        "8",    "--max_steps", "50", "--output_dir", out};
    Outcome r = run(args);  // one line of error; a warning about equal rewards may stand before it
    EXPECT_EQ(r.status, 1) << shown_run(args, r);
    size_t at = r.err.find("train_qrl: loss or gradient not finite");
    ASSERT_NE(at, std::string::npos) << shown_run(args, r);
    EXPECT_EQ(r.err.find('\n', at), r.err.size() - 1) << shown_run(args, r);
    EXPECT_EQ(leftovers(out, true), "");
}

// ---------------------------------------------------------------------------------------------------------------------
// grpo

TEST(Grpo, ATaskWithAModel) {
    std::string out = fresh("run"), again = fresh("run"), other = fresh("run");
    auto args = [&](const std::string& folder, const std::string& seed) {
        return Args{"grpo",
                    "--model",
                    trained,
                    "--task",
                    "arithmetic",
                    "--weights",
                    "int4:g32:sym",
                    "--learning_rate",
                    "3e-4",
                    "--max_steps",
                    "2",
                    "--prompts_per_step",
                    "4",
                    "--num_generations",
                    "4",
                    "--max_completion_length",
                    "16",
                    "--eval_n",
                    "4",
                    "--reward_funcs",
                    "format,overlong",
                    "--seed",
                    seed,
                    "--output_dir",
                    folder};
    };
    Outcome r = good(args(out, "5"));
    for (const char* part :
         {"held out before", "held out after", "step   1/2", "step   2/2", "flips", "done after 2 steps"})
        EXPECT_NE(r.out.find(part), std::string::npos) << part << "\n" << r.out;
    EXPECT_NE(r.out.find("results in " + out), std::string::npos) << r.out;

    json config = read_json(out + "/config.json");
    EXPECT_EQ(config["command"], "grpo");
    EXPECT_EQ(config["model"], trained);
    EXPECT_EQ(config["weights"], "int4:g32:sym");
    EXPECT_EQ(config["num_generations"], 4);

    std::vector<json> rows = read_lines(out + "/metrics.jsonl");
    ASSERT_EQ(rows.size(), 2u);
    check_metrics(rows,
                  {"rewards/format/mean", "rewards/format/std", "rewards/overlong/mean", "rewards/overlong/std",
                   "quant/code_flip_rate", "quant/code_flip_total", "quant/deadzone_share", "quant/deadzone_share_step",
                   "quant/learning_rate_in_cells", "quant/learning_rate_in_cells_total", "quant/scale_bias",
                   "quant/deadzone_truncation", "quant/grid_noise", "quant/grid_noise_in_cells", "quant/scale_drift"});
    EXPECT_FALSE(rows[0].contains("quant/master_drift")) << "it takes memory";
    EXPECT_EQ(number(rows[0], "step"), 1);
    EXPECT_FALSE(rows[0].contains("kl"));
    EXPECT_GT(number(rows[0], "reward_std"), 0) << "the test needs rewards that differ";
    EXPECT_GT(number(rows[0], "grad_norm"), 0);

    std::vector<json> completions = read_lines(out + "/completions.jsonl");
    ASSERT_EQ(completions.size(), 2u * 16u);
    for (const json& c : completions) {
        for (const char* key : {"step", "format", "overlong", "advantage"}) number(c, key);
        for (const char* key : {"prompt", "completion", "gold"}) EXPECT_TRUE(c[key].is_string()) << c.dump();
        EXPECT_TRUE(c["finished"].is_boolean());
    }
    EXPECT_EQ(read_lines(out + "/code_flips.jsonl").size(), 2u);
    std::vector<json> statistics = read_lines(out + "/quant_statistics.jsonl");
    ASSERT_EQ(statistics.size(), 2u);
    EXPECT_EQ(number(statistics[1], "step"), 2);
    const json flips = read_lines(out + "/code_flips.jsonl").at(1);
    for (const auto& item : flips.items()) {
        if (item.key() == "step") continue;
        EXPECT_EQ(statistics[1].at(item.key()).size(), statistics[1]["columns"].size());
    }

    json summary = read_json(out + "/summary.json");
    EXPECT_EQ(summary["command"], "grpo");
    EXPECT_EQ(summary["seed"], 5);
    EXPECT_EQ(summary["weights"], "int4:g32:sym");
    EXPECT_EQ(summary["stopped"], false);
    EXPECT_EQ(summary["eval"]["n"], 4);
    for (const char* when : {"before", "after"}) {
        double share = number(summary["eval"][when], "pass@1");
        EXPECT_TRUE(share >= 0 && share <= 1) << summary.dump();
    }
    double generated = 0;
    for (const json& row : rows) generated += 16 * number(row, "completions/mean_length");
    EXPECT_NEAR(number(summary, "tokens_generated"), generated, 1e-6);
    EXPECT_GE(number(summary, "tokens_trained"), generated);
    EXPECT_GT(number(summary, "wall_seconds"), 0);
    EXPECT_GT(number(summary, "peak_rss_bytes"), 1e6);
    EXPECT_EQ(leftovers(out, false), "");

    good(args(again, "5"));
    EXPECT_EQ(read_text(again + "/completions.jsonl"), read_text(out + "/completions.jsonl"));
    EXPECT_EQ(learning_curve(again), learning_curve(out));
    EXPECT_EQ(read_text(again + "/checkpoint-2/model.safetensors"), read_text(out + "/checkpoint-2/model.safetensors"));
    good(args(other, "6"));
    EXPECT_NE(read_text(other + "/completions.jsonl"), read_text(out + "/completions.jsonl"));
}

// The embedded run, cut short: a weaker cold start and 25 steps. The whole run gains over 20 points; what 25 steps gain
// is far above the noise of 128 problems x 4 samples (standard error about 3 points).
// Single-digit sums, half learned: what the int4 policy samples gets better
TEST(Grpo, CurveRises) {
    std::string half = fresh("half"), out = fresh("curve");
    good({"sft", "--model", base, "--train_data", sums, "--max_steps", "200", "--learning_rate", "0.003",
          "--per_device_train_batch_size", "32", "--output_dir", half});
    good(grpo(out, {"--model",
                    half + "/checkpoint-200",
                    "--eval_data",
                    problems,
                    "--eval_n",
                    "100",
                    "--eval_samples",
                    "4",
                    "--weights",
                    "int4:g32:sym",
                    "--max_steps",
                    "80",
                    "--prompts_per_step",
                    "25",
                    "--max_completion_length",
                    "12",
                    "--learning_rate",
                    "0.0002",
                    "--lr_scheduler_type",
                    "constant"}));
    json eval = read_json(out + "/summary.json")["eval"];
    double before = eval["before"]["pass@1"], after = eval["after"]["pass@1"];
    printf("pass@1 of the int4 policy: %.1f%% -> %.1f%%\n", 100 * before, 100 * after);
    EXPECT_GT(after, before + 0.03);
    std::vector<json> rows = read_lines(out + "/metrics.jsonl");
    double first = 0, last = 0;
    for (int i = 0; i < 10; i++) {
        first += number(rows.at(i), "reward") / 10;
        last += number(rows.at(rows.size() - 1 - i), "reward") / 10;
    }
    EXPECT_GT(last, first + 0.03);
}

TEST(Grpo, ConfigRepeatsARun) {
    std::string out = fresh("run"), again = fresh("run");
    good(grpo(out, {"--seed", "7", "--beta", "0.02", "--epsilon_high", "0.3"}));
    refused(1, {"--config", out + "/config.json"}, {out, "already holds a run"});
    good({"--config", out + "/config.json", "--output_dir", again});
    EXPECT_EQ(read_text(again + "/completions.jsonl"), read_text(out + "/completions.jsonl"));
    EXPECT_EQ(learning_curve(again), learning_curve(out));
    json a = read_json(out + "/config.json"), b = read_json(again + "/config.json");
    for (const char* own : {"output_dir", "run_id"}) a.erase(own), b.erase(own);
    EXPECT_EQ(a, b);
    refused(2, {"sft", "--config", out + "/config.json"}, {"grpo", "sft"});
}

// the same of the other commands, whose defaults follow from other flags and from the model's folder
TEST(Config, RepeatsEveryCommand) {
    const std::string learnt = fresh("learnt"), text = fresh("text.txt");
    write_text(text, std::string(400, 'a') + " " + std::string(400, 'b'));
    good(grpo(learnt, {"--reward_funcs", "exact,entropy", "--weights", "int4:g16"}));
    const std::string checkpoint = learnt + "/checkpoint-2";
    for (const Args& args :
         {Args{"sft", "--model", base, "--train_data", sums, "--max_steps", "2"},
          Args{"sft", "--model", checkpoint, "--train_data", sums, "--max_steps", "2"},  // with its grid
          Args{"distill", "--model", checkpoint, "--train_data", sums, "--max_steps", "2", "--overwrite_output_dir"},
          Args{"quantize", "--model", trained, "--weights", "int4:g16", "--ptq", "rtn", "--eval_data", sums},
          Args{"eval", "--model", checkpoint, "--eval_data", problems, "--eval_n", "4", "--max_completion_length", "4"},
          Args{"eval", "--model", trained, "--eval_text", text, "--eval_text_length", "64"}}) {
        const std::string out = fresh("run"), again = fresh("run");
        good(args + Args{"--output_dir", out});
        good({"--config", out + "/config.json", "--output_dir", again});
        json a = read_json(out + "/config.json"), b = read_json(again + "/config.json");
        EXPECT_EQ(learning_curve(again), learning_curve(out)) << args[0];
        EXPECT_EQ(read_text(again + "/completions.jsonl"), read_text(out + "/completions.jsonl"));  // or none
        for (const char* own : {"output_dir", "run_id", "given"}) a.erase(own), b.erase(own);
        EXPECT_EQ(a, b) << args[0];
        a = read_json(out + "/summary.json"), b = read_json(again + "/summary.json");
        for (const char* same : {"log_loss", "eval", "held_out_text", "code_flip_total", "steps"})
            EXPECT_EQ(a.value(same, json()), b.value(same, json())) << args[0] << " " << same;
    }
}

TEST(Grpo, LossTypes) {
    std::map<std::string, std::string> curves;
    for (const char* loss : {"grpo", "dr_grpo", "bnpo", "dapo"}) {
        std::string out = fresh(loss);
        good(grpo(out, {"--loss_type", loss}));
        std::vector<json> rows = read_lines(out + "/metrics.jsonl");
        ASSERT_EQ(rows.size(), 2u);
        check_metrics(rows, {"rewards/exact/mean"});
        EXPECT_GT(number(rows[0], "reward_std"), 0) << "the test needs rewards that differ";
        EXPECT_GT(number(rows[0], "grad_norm"), 0);
        curves[loss] = rows[0]["grad_norm"].dump();
    }
    EXPECT_NE(curves["grpo"], curves["dapo"]);
    EXPECT_NE(curves["dr_grpo"], curves["dapo"]);
}

TEST(Grpo, RewardsWithoutAGoldAnswer) {
    std::string out = fresh("rlif"), questions;
    for (const json& row : read_lines(problems)) questions += json{{"prompt", row["prompt"]}}.dump() + "\n";
    const std::string no_gold = jsonl("questions", questions);
    Args more = {"--train_data", no_gold, "--eval_data",    problems,
                 "--eval_n",     "2",     "--reward_funcs", "self_certainty,entropy,majority,repetition:n=2"};
    good(grpo(out, more));
    std::vector<json> rows = read_lines(out + "/metrics.jsonl");
    check_metrics(rows, {"rewards/majority/mean", "rewards/repetition/mean"});
    for (const json& row : rows) {
        EXPECT_GT(number(row, "rewards/self_certainty/mean"), 0.0);
        EXPECT_GT(number(row, "rewards/self_certainty/std"), 0.0);
        EXPECT_LT(number(row, "rewards/entropy/mean"), 0.0);
    }
    std::string again = fresh("rlif");  // how the batch is cut changes no bit of what the policy thinks
    good(grpo(again, more + Args{"--micro_batch_tokens", "40", "--max_steps", "1"}));
    std::vector<json> a = read_lines(out + "/completions.jsonl"), b = read_lines(again + "/completions.jsonl");
    for (size_t i = 0; i < b.size(); i++) EXPECT_EQ(a[i], b[i]);
    more[7] = "majority,exact";
    refused(1, grpo(fresh("gold"), more), {no_gold, "answer"});
}

TEST(Grpo, DynamicSampling) {
    std::string off = fresh("off"), on = fresh("on"), few = fresh("few");
    good(grpo(off, {"--prompts_per_step", "12"}));
    good(grpo(on, {"--prompts_per_step", "12", "--dynamic_sampling"}));
    good(grpo(few, {"--prompts_per_step", "12", "--dynamic_sampling", "--dynamic_sampling_max_batches", "2"}));
    std::vector<json> before = read_lines(off + "/metrics.jsonl"), rows = read_lines(on + "/metrics.jsonl");
    check_metrics(rows, {"dynamic_sampling/redrawn_groups"});
    EXPECT_FALSE(before[0].contains("dynamic_sampling/batches"));
    const double missing = 12 * number(before[0], "frac_reward_zero_std");
    EXPECT_GT(missing, 0) << "the test needs groups that are all wrong";
    for (const json& row : rows) {
        const double left = number(row, "dynamic_sampling/left_zero_std"),
                     batches = number(row, "dynamic_sampling/batches");
        EXPECT_NEAR(12 * number(row, "frac_reward_zero_std"), left, 1e-9);
        EXPECT_TRUE(left == 0 || batches == 10 || number(row, "dynamic_sampling/generated_groups") == 100)
            << row.dump();
        EXPECT_GT(number(row, "dynamic_sampling/generated_groups"), 12);
    }
    EXPECT_NEAR(number(rows[0], "dynamic_sampling/redrawn_groups"),
                missing - number(rows[0], "dynamic_sampling/left_zero_std"), 1e-9);
    EXPECT_GT(number(rows[0], "num_tokens"), number(before[0], "num_tokens"));
    EXPECT_LE(number(read_lines(few + "/metrics.jsonl")[0], "dynamic_sampling/batches"), 2);
    // the groups that stay are the same
    std::vector<json> a = read_lines(off + "/completions.jsonl"), b = read_lines(on + "/completions.jsonl");
    ASSERT_EQ(a.size(), b.size());
    int same = 0;
    for (size_t i = 0; i < 12 * 8; i++) {
        if (number(a[i], "advantage") == 0) continue;
        EXPECT_EQ(a[i], b[i]);
        same++;
    }
    EXPECT_GT(same, 0);
    refused(2, grpo(fresh("all"), {"--prompts_per_step", "100", "--dynamic_sampling"}), {"no other prompts to draw"});
}

TEST(Grpo, KlTerm) {
    std::string out = fresh("kl");
    good(grpo(out, {"--beta", "0.01"}));
    std::vector<json> rows = read_lines(out + "/metrics.jsonl");
    ASSERT_EQ(rows.size(), 2u);
    check_metrics(rows, {"kl"});
    EXPECT_EQ(number(rows[0], "kl"), 0.0);
    EXPECT_GT(number(rows[1], "kl"), 0.0);
}

TEST(Grpo, TheReferenceFollowsThePolicy) {
    std::vector<double> kl;  // of the second step
    for (const char* share : {"", "0.5", "1"}) {
        std::string out = fresh("kl");
        Args sync = {"--sync_ref_model", "--ref_model_sync_steps", "1", "--ref_model_mixup_alpha", share};
        good(grpo(out, Args{"--beta", "0.01"} + (*share ? sync : Args{})));
        kl.push_back(number(read_lines(out + "/metrics.jsonl").at(1), "kl"));
    }
    EXPECT_GT(kl[0], 0.0);
    EXPECT_LT(kl[1], 0.6 * kl[0]);  // half of the way in the weights is about a quarter of the divergence
    EXPECT_GT(kl[1], 0.0);
    EXPECT_EQ(kl[2], 0.0);  // it is the policy of before the step
}

TEST(Grpo, SeveralIterationsClip) {
    std::string out = fresh("iterations");
    good(grpo(out, {"--num_iterations", "3", "--learning_rate", "0.02", "--epsilon", "0.05"}));
    std::vector<json> rows = read_lines(out + "/metrics.jsonl");
    ASSERT_EQ(rows.size(), 2u);
    check_metrics(rows);  // the sampling differences are those of the first iteration
    double clipped = 0;
    for (const json& row : rows) clipped += number(row, "clip_ratio/region_mean");
    EXPECT_GT(clipped, 0.0);
    EXPECT_LE(clipped, 2.0);
}

TEST(Grpo, CheckpointingAndMicroBatchesChangeNothing) {
    std::string plain = fresh("plain"), recompute = fresh("recompute"), small = fresh("small");
    good(grpo(plain, {"--weights", "int4:g32"}));
    good(grpo(recompute, {"--weights", "int4:g32", "--gradient_checkpointing"}));
    EXPECT_EQ(learning_curve(plain), learning_curve(recompute));
    EXPECT_EQ(read_text(plain + "/completions.jsonl"), read_text(recompute + "/completions.jsonl"));
    good(grpo(small, {"--weights", "int4:g32", "--micro_batch_tokens", "64", "--rollout_batch", "3"}));
    std::vector<json> a = read_lines(plain + "/metrics.jsonl"), b = read_lines(small + "/metrics.jsonl");
    ASSERT_EQ(a.size(), b.size());
    check_metrics(b);
    // the same completions of the first step; sums in another order
    EXPECT_EQ(number(a[0], "reward"), number(b[0], "reward"));
    EXPECT_NEAR(number(b[0], "grad_norm") / number(a[0], "grad_norm"), 1.0, 1e-3);
    EXPECT_NEAR(number(b[0], "entropy"), number(a[0], "entropy"), 1e-3);
}

TEST(Grpo, MaskTruncated) {
    // "#### 12" and the end take 8 tokens: most completions end by themselves, and the mask drops those that do not
    std::string all = fresh("all"), some = fresh("some");
    Args more = {"--max_completion_length", "8", "--temperature", "1.5", "--reward_funcs", "exact,overlong"};
    good(grpo(all, more));
    good(grpo(some, more + Args{"--mask_truncated_completions"}));
    json a = read_lines(all + "/metrics.jsonl").at(0), b = read_lines(some + "/metrics.jsonl").at(0);
    EXPECT_GT(number(a, "completions/clipped_ratio"), 0.0);
    EXPECT_LT(number(a, "completions/clipped_ratio"), 1.0);
    EXPECT_EQ(number(a, "reward"), number(b, "reward"));
    EXPECT_GT(number(a, "grad_norm"), 0.0);
    EXPECT_NE(number(a, "grad_norm"), number(b, "grad_norm"));
}

TEST(Grpo, SavesAndLogsWhenAsked) {
    std::string out = fresh("run");
    good(grpo(out, {"--max_steps", "4", "--save_steps", "2", "--logging_steps", "2", "--log_completions", "false",
                    "--save_dtype", "bfloat16", "--eval_data", problems, "--eval_n", "2", "--eval_steps", "2"}));
    EXPECT_TRUE(fs::exists(out + "/checkpoint-2/model.safetensors"));
    EXPECT_TRUE(fs::exists(out + "/checkpoint-4/model.safetensors"));
    EXPECT_FALSE(fs::exists(out + "/completions.jsonl"));
    std::vector<json> rows = read_lines(out + "/metrics.jsonl");
    ASSERT_EQ(rows.size(), 2u);
    EXPECT_EQ(number(rows[0], "step"), 2);
    number(rows[0], "eval_pass@1");
    EXPECT_EQ(read_json(out + "/checkpoint-4/config.json")["torch_dtype"], "bfloat16");
    EXPECT_LT(fs::file_size(out + "/checkpoint-4/model.safetensors"),
              fs::file_size(trained + "/model.safetensors") * 6 / 10);
    good({"generate", "--model", out + "/checkpoint-4", "--prompt", "1+1=?\n", "--max_completion_length", "4"});
}

// every number of metrics.jsonl is a point of TensorBoard's, once
static std::map<std::pair<int64_t, std::string>, float> points_once(const std::string& out) {
    std::map<std::pair<int64_t, std::string>, float> points;
    for (const EventPoint& p : event_points_in(out)) {
        const bool first = points.insert({{p.step, p.tag}, p.value}).second;
        EXPECT_TRUE(first) << p.tag << " twice at step " << p.step;
    }
    for (const json& row : read_lines(out + "/metrics.jsonl"))
        for (const auto& item : row.items()) {
            const std::pair<int64_t, std::string> key = {row["step"], item.key()};
            if (item.key() == "step" || !item.value().is_number()) continue;
            EXPECT_EQ(points.count(key), 1u) << item.key();
            EXPECT_EQ(points[key], item.value().get<float>()) << item.key();
        }
    return points;
}

TEST(Grpo, CanBeWatchedInTensorBoard) {
    const std::string out = fresh("run");
    const Args args =
        grpo(out, {"--weights", "int4:g32", "--eval_data", problems, "--eval_n", "2", "--eval_steps", "1"});
    good(args);
    ASSERT_EQ(event_file_names(out).size(), 1u);
    const std::string file = event_file_names(out)[0];
    auto points = points_once(out);
    for (int64_t step : {0, 1, 2}) EXPECT_EQ(points.count({step, "eval_pass@1"}), 1u) << step;
    for (int64_t step : {0, 2}) EXPECT_EQ(points.count({step, "eval_full_precision_pass@1"}), 1u) << step;
    EXPECT_EQ((points[{2, "eval_pass@1"}]), read_json(out + "/summary.json")["eval"]["after"]["pass@1"].get<float>());
    EXPECT_EQ(points.count({2, "code_flip_rate/layer_01"}), 1u);
    std::map<std::string, std::string> texts;
    for (const EventPoint& p : event_points_in(out))
        if (p.plugin == "text") texts[p.tag] += format("%lld ", (long long)p.step) + p.text;
    EXPECT_NE(texts["configuration"].find("| weights | `int4:g32` | `none` |\n"), std::string::npos)
        << texts["configuration"];
    for (const char* step : {"0 **", "1 **", "2 **"}) EXPECT_NE(texts["samples"].find(step), std::string::npos) << step;

    // another run in its place replaces the file, and one that reports nothing has none
    const std::string other = out + "/events.out.tfevents.1700000000.host";
    write_text(other, "mine");
    good(args + Args{"--overwrite_output_dir"});
    fs::remove(other);
    ASSERT_EQ(event_file_names(out).size(), 1u);
    EXPECT_NE(event_file_names(out)[0], file);
    points_once(out);
    good(args + Args{"--overwrite_output_dir", "--report_to", "none"});
    EXPECT_EQ(event_file_names(out), Args{});
}

// what the embedded model learns is plain text: its checkpoint must not make other commands wrap prompts as a chat
// rows of messages: the system prompt reaches them, and what does not is said once
static std::string chat_model() {
    const std::string m = model_copy();
    write_text(m + "/tokenizer_config.json",
               json{{"chat_template",
                     "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
                     "'<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' "
                     "}}{% endif %}"}}
                   .dump());
    return m;
}

TEST(Eval, RowsOfMessages) {
    const std::string m = chat_model(), out = fresh("eval");
    auto user = [](const char* text) { return format("{\"role\": \"user\", \"content\": \"%s\"}", text); };
    const std::string own = "{\"role\": \"system\", \"content\": \"own\"}", tail = "], \"answer\": \"2\"}\n";
    const std::string rows = jsonl("chat", "{\"prompt\": [" + user("u") + tail + "{\"prompt\": [" + own + ", " +
                                               user("v") + tail + "{\"prompt\": [" + own + ", " + user("w") + tail);
    const Outcome r = good({"eval", "--model", m, "--eval_data", rows, "--max_completion_length", "4",
                            "--system_prompt", "given", "--prompt_template", "Q {question}", "--output_dir", out});
    const std::vector<json> samples = read_lines(out + "/completions.jsonl");
    auto asked = [](const std::string& text) {
        return "<|im_start|>user\n" + text + "<|im_end|>\n<|im_start|>assistant\n";
    };
    EXPECT_EQ(samples.at(0).value("prompt", ""), "<|im_start|>system\ngiven<|im_end|>\n" + asked("Q u"));
    EXPECT_EQ(samples.at(1).value("prompt", ""), "<|im_start|>system\nown<|im_end|>\n" + asked("Q v"));
    EXPECT_EQ(r.err, "note: rows with a system message of their own keep it; --system_prompt is for the others\n");
    for (const std::string& of : {m, base})
        refused(2, {"eval", "--model", of, "--eval_data", problems, "--enable_thinking", "false", "--output_dir", out},
                {"--enable_thinking false is a switch of Qwen3's chat template", of == m ? "another" : "no chat"});
    const Outcome plain =
        good({"eval", "--model", base, "--eval_data", problems, "--eval_n", "2", "--max_completion_length", "4",
              "--system_prompt", "given", "--output_dir", fresh("eval")});
    EXPECT_EQ(plain.err,
              "note: --system_prompt is a message of the chat template, and none is in use; prompts go without "
              "it\n");
}

// every answer of a conversation is learnt as in rows of their own
TEST(Sft, AssistantOnlyLoss) {
    const std::string m = chat_model();
    auto turn = [](const char* role, const char* text) { return json{{"role", role}, {"content", text}}; };
    const json talk = {turn("user", "1+1"), turn("assistant", "2"), turn("user", "2+2"), turn("assistant", "is 4")};
    const std::string whole = jsonl("whole", json{{"messages", talk}}.dump() + "\n");
    const std::string apart =
        jsonl("apart", json{{"messages", {talk[0], talk[1]}}}.dump() + "\n" + json{{"messages", talk}}.dump() + "\n");
    auto loss = [&](const std::string& rows, const Args& more) {
        const std::string out = fresh("sft");
        good(Args{"sft", "--model", m, "--train_data", rows, "--max_steps", "1", "--output_dir", out} + more);
        return number(read_lines(out + "/metrics.jsonl").at(0), "loss");
    };
    const double every = loss(whole, {"--assistant_only_loss", "true"});
    EXPECT_NEAR(every, loss(apart, {}), 1e-3);
    EXPECT_GT(fabs(every - loss(whole, {})), 0.01);
    refused(2, {"distill", "--model", m, "--train_data", whole, "--assistant_only_loss", "true", "--lmbda", "0.5"},
            {"--assistant_only_loss", "--lmbda"});
}

TEST(Grpo, EmbeddedCheckpointTakesPlainPrompts) {
    std::string out = fresh("eval");
    good({"eval", "--model", root + "/embedded/checkpoint-0", "--task", "arithmetic", "--eval_n", "1",
          "--max_completion_length", "4", "--output_dir", out});
    std::string prompt = read_lines(out + "/completions.jsonl").at(0).value("prompt", "");
    EXPECT_EQ(prompt.find("<|im_start|>"), std::string::npos) << prompt;
    EXPECT_EQ(prompt.substr(prompt.size() - 3), "=?\n");
}
