// A sampler that differs from the trainer, through the program: what a run logs and prints of it, that its evaluations are
// the trainer's, that a run goes on with its bits in the middle of a window of stale weights, and what is refused.
#include "cli.h"

static Args run_args(const std::string& out, const Args& more, const std::string& steps = "5") {
    return grpo(
        out,
        Args{"--max_steps", steps, "--save_steps", "1", "--prompts_per_step", "4", "--learning_rate", "0.01"} + more);
}

static double most(const std::string& out, const std::string& key) {
    double x = 0;
    for (const json& row : read_lines(out + "/metrics.jsonl")) x = std::max(x, number(row, key));
    return x;
}

static const std::string DIFFERENCE = "sampling/sampling_logp_difference/max";

TEST(CliSampler, GoesOnInTheMiddleOfAWindow) {
    const std::vector<Args> runs = {
        {"--weights", "int4:g16", "--rollout_staleness", "2"},
        {"--weights", "none", "--rollout_staleness", "2", "--rollout_weights", "nf4:g16:dq", "--rollout_kv_cache",
         "int8:token", "--noise_sigma_start", "0.1", "--noise_num_stages", "3"},
        {"--weights", "nf4:g16", "--lora_r", "2", "--rollout_staleness", "2", "--rollout_activations", "int8:token"},
        {"--weights", "int4:g16", "--methods", "roste:every=1", "--rollout_staleness", "2"},
        {"--weights", "none", "--rollout_weights", "int8:channel", "--methods", "uaq"},
    };
    for (const Args& more : runs) {
        const std::string whole = fresh("whole"), rest = fresh("rest");
        const Outcome r = good(run_args(whole, more));
        EXPECT_NE(r.out.find("note        the sampler differs from the trainer: "), std::string::npos) << r.out;
        EXPECT_GT(most(whole, DIFFERENCE), 1e-4) << shown_run(more, r);
        fs::copy(whole, rest, fs::copy_options::recursive);
        for (const char* step : {"3", "4", "5"}) fs::remove_all(rest + "/checkpoint-" + step);
        fs::remove(rest + "/summary.json");
        good({"grpo", "--output_dir", rest, "--resume_from_checkpoint", "last"});
        EXPECT_EQ(learning_curve(whole), learning_curve(rest)) << shown_run(more, r);
        for (const char* file : {"model.safetensors", "adapter_model.safetensors", "trainer.safetensors"}) {
            const bool same = read_text(whole + "/checkpoint-5/" + file) == read_text(rest + "/checkpoint-5/" + file);
            EXPECT_TRUE(same) << file << shown_run(more, r);
        }
        EXPECT_EQ(read_text(whole + "/completions.jsonl"), read_text(rest + "/completions.jsonl"));
    }
}

// stale weights differ in the steps between, and where they are taken anew they do not
TEST(CliSampler, TakesWeightsOnTime) {
    const std::string out = fresh("stale");
    good(run_args(out, {"--weights", "int4:g16", "--rollout_staleness", "1"}, "4"));
    const std::vector<json> rows = read_lines(out + "/metrics.jsonl");
    ASSERT_EQ(rows.size(), 4u);
    for (int i = 0; i < 4; i++) {
        EXPECT_EQ(number(rows[i], "sampler/staleness"), i % 2);
        EXPECT_EQ(number(rows[i], DIFFERENCE) > 0.0, i % 2 == 1) << i;
    }
}

TEST(CliSampler, EvaluationsAreTheTrainers) {
    const Args eval = {"--eval_data", problems, "--eval_n", "8"};
    const std::string plain = fresh("plain"), differs = fresh("differs"), same = fresh("same");
    good(run_args(plain, eval + Args{"--weights", "none"}, "2"));
    good(run_args(differs,
                  eval + Args{"--weights", "none", "--rollout_weights", "int4:g16", "--noise_sigma_start", "0.3",
                              "--noise_num_stages", "2"},
                  "2"));
    EXPECT_EQ(most(plain, DIFFERENCE), 0.0);
    EXPECT_EQ(read_json(plain + "/summary.json")["eval"]["before"],
              read_json(differs + "/summary.json")["eval"]["before"]);
    EXPECT_NEAR(most(differs, "noise/sigma"), 0.3, 1e-12);
    // the sampler's policy, from the trainer's checkpoint
    const std::string deployed = fresh("deployed");
    const Outcome r = good(Args{"eval", "--model", differs + "/checkpoint-2", "--weights", "int4:g16", "--output_dir",
                                deployed, "--max_completion_length", "16"} +
                           eval);
    EXPECT_NE(r.out.find("\nweights int4:g16; "), std::string::npos) << r.out;
    EXPECT_EQ(read_json(deployed + "/summary.json")["weights"], "int4:g16:sym");
    // what the trainer has anyway is no second model
    const Outcome note = good(run_args(
        same, {"--weights", "int4:g16:sym", "--rollout_weights", "int4:g16", "--rollout_activations", "none"}, "2"));
    EXPECT_NE(note.out.find("there is no second model"), std::string::npos) << note.out;
    EXPECT_EQ(note.out.find("the sampler differs"), std::string::npos) << note.out;
    EXPECT_EQ(most(same, DIFFERENCE), 0.0);
    check_metrics(read_lines(same + "/metrics.jsonl"));
}

TEST(CliSampler, IsInThePlan) {
    auto plan = [](const Args& more) {  // small enough that the weights have a line of their own
        return good(run_args(fresh("plan"),
                             more + Args{"--plan", "true", "--micro_batch_tokens", "1", "--rollout_batch", "1"}))
            .out;
    };
    EXPECT_NE(plan({"--rollout_weights", "int4:g16"}).find("weights of the sampler (leave --rollout_weights out)"),
              std::string::npos);
    EXPECT_EQ(plan({}).find("weights of the sampler"), std::string::npos);
}

TEST(CliSampler, RefusesWhatCannotBe) {
    const std::string out = fresh("never");
    refused(2, run_args(out, {"--rollout_staleness", "5"}), {"--rollout_staleness 5", "no step of 5 is so late"});
    refused(2, run_args(out, {"--rollout_weights", "int4:g33"}), {"--rollout_weights int4:g33", "does not divide"});
    refused(2, run_args(out, {"--rollout_weights", "int4:token"}), {"--rollout_weights int4:token"});
    refused(2, run_args(out, {"--rollout_activations", "int8:g33"}), {"--rollout_activations int8:g33"});
    refused(2, run_args(out, {"--rollout_kv_cache", "int4:g24"}), {"--rollout_kv_cache int4:g24"});
    refused(2, run_args(out, {"--rollout_kv_cache", "int4:token", "--k_pre_bias", "true"}),
            {"--k_pre_bias", "no bias"});
    refused(2, run_args(out, {"--lora_r", "2", "--weights", "nf4:g16", "--rollout_weights", "int4:g16"}),
            {"--rollout_weights int4:g16:sym", "--lora_inside_quantizer"});
    refused(2, run_args(out, {"--noise_sigma_end", "0.001"}), {"--noise_sigma_end", "--noise_sigma_start"});
    refused(2, run_args(out, {"--noise_num_stages", "3"}), {"--noise_num_stages", "--noise_sigma_start"});
    refused(2, run_args(out, {"--noise_sigma_start", "0.1"}, "1"), {"--noise_sigma_start", "--max_steps"});
    refused(2, run_args(out, {"--methods", "uaq", "--weights", "none", "--rollout_weights", "none"}),
            {"--methods uaq"});
    refused(2, {"sft", "--model", trained, "--train_data", sums, "--rollout_weights", "int4:g16"},
            {"--rollout_weights"});
    EXPECT_FALSE(fs::exists(out));
}
