// Adapters over a quantized base, as a user runs them: train, evaluate, go on, merge, and what is refused.
#include "cli.h"

TEST(Adapters, TrainOverPackedCodesAndAreFoundAgain) {
    std::string out = fresh("adapters"), eval = fresh("eval"), more = fresh("more");
    const Args quantizers = {"--weights", "nf4:g16:dq", "--kv_cache", "int8:token:asym"};
    const Args held_out = {"--eval_data", problems, "--eval_n", "40"};
    Args args = {"--lora_r", "4", "--max_steps", "3", "--learning_rate", "0.01", "--beta", "0.05"};
    Outcome r = good(grpo(out, args + quantizers + held_out));
    EXPECT_NE(r.out.find("base packed: nf4:g16:dq"), std::string::npos) << r.out;
    std::vector<json> rows = read_lines(out + "/metrics.jsonl");
    ASSERT_EQ(rows.size(), 3u);
    EXPECT_EQ(number(rows[0], "kl"), 0.0) << "the reference is the base, which the adapter begins as";
    EXPECT_GT(number(rows[2], "kl"), 0.0);
    for (const json& row : rows) {
        EXPECT_EQ(number(row, "sampling/sampling_logp_difference/max"), 0.0) << "quantized keys and values in both";
        EXPECT_GT(number(row, "grad_norm"), 0.0);
    }
    std::string adapter = out + "/checkpoint-3";
    EXPECT_TRUE(fs::exists(adapter + "/adapter_model.safetensors"));
    EXPECT_FALSE(fs::exists(adapter + "/model.safetensors")) << "the base is not copied";
    json peft = read_json(adapter + "/adapter_config.json");
    EXPECT_EQ(peft["peft_type"], "LORA");
    EXPECT_EQ(peft["r"], 4);

    good(Args{"eval", "--adapter", adapter, "--max_completion_length", "16", "--output_dir", eval} + quantizers +
         held_out);
    EXPECT_EQ(read_json(eval + "/summary.json")["eval"]["greedy"],
              read_json(out + "/summary.json")["eval"]["after"]["greedy"]);
    r = good(grpo(more, Args{"--adapter", adapter, "--max_steps", "1"} + quantizers));
    EXPECT_NE(r.out.find("from " + adapter), std::string::npos) << r.out;
}

TEST(Adapters, MergedModelIsTheModelWithItsAdapter) {
    std::string out = fresh("adapters"), prompt = "3+4=?\n#### 7";
    Outcome r =
        good(grpo(out, {"--weights", "none", "--lora_r", "4", "--learning_rate", "0.01", "--merge_adapter", "true"}));
    EXPECT_NE(r.out.find("merged"), std::string::npos) << r.out;
    auto logps = [&](const Args& model) {
        return json::parse(good(Args{"logprobs"} + model + Args{"--prompt", prompt}).out)["logprobs"];
    };
    json beside = logps({"--adapter", out + "/checkpoint-2", "--weights", "none"});
    json merged = logps({"--model", out + "/checkpoint-2-merged"}), base = logps({"--model", trained});
    ASSERT_EQ(beside.size(), merged.size());
    double difference = 0, moved = 0;
    for (size_t i = 0; i < beside.size(); i++) {
        difference = std::max(difference, std::fabs((double)beside[i] - (double)merged[i]));
        moved = std::max(moved, std::fabs((double)beside[i] - (double)base[i]));
    }
    EXPECT_LT(difference, bf16_build ? 0.1 : 1e-4);
    EXPECT_GT(moved, 0.01) << "the adapter does something";
}

// L4Q: what is packed is Q(W + s B A), and the quantizer counts flips
TEST(Adapters, InsideTheQuantizer) {
    std::string out = fresh("adapters");
    good(grpo(
        out, {"--weights", "int4:g16", "--lora_r", "4", "--lora_inside_quantizer", "true", "--learning_rate", "0.02"}));
    std::vector<json> rows = read_lines(out + "/metrics.jsonl");
    ASSERT_EQ(rows.size(), 2u);
    EXPECT_GT(number(rows[1], "quant/code_flip_total"), 0.0);
    EXPECT_EQ(number(rows[0], "sampling/sampling_logp_difference/max"), 0.0);
}

TEST(Adapters, BadInput) {
    std::string out = fresh("never");
    refused(1, {"eval", "--adapter", trained, "--eval_data", problems, "--output_dir", out},
            {trained, "adapter_config.json"});
    refused(2, grpo(out, {"--lora_r", "4", "--lora_target", "q,x"}), {"--lora_target q,x", "'x'", "gate"});
    refused(2, grpo(out, {"--lora_alpha", "4"}), {"--lora_alpha", "--lora_r"});
    refused(2, grpo(out, {"--lora_inside_quantizer", "true"}), {"--lora_inside_quantizer", "--lora_r"});
    refused(2, grpo(out, {"--kv_cache", "int4:tensor"}), {"--kv_cache int4:tensor", "token"});
    refused(2, grpo(out, {"--kv_cache", "int4:token:asym", "--k_pre_bias", "true"}), {"--k_pre_bias", "no bias"});
    EXPECT_FALSE(fs::exists(out));
}
