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

// An adapter is used over the base that it was trained on, and inside the quantizer if it was; merged from there it is the
// trained policy, from a frozen base a model in full precision
TEST(Adapters, KeepTheirPolicy) {
    const std::string prompt = "3+4=?\n#### 7";
    auto logps = [&](const Args& model, std::string* told = nullptr) {
        const Outcome r = good(Args{"logprobs"} + model + Args{"--prompt", prompt});
        if (told) *told = r.err;
        return json::parse(r.out)["logprobs"];
    };
    const Args train = {"--lora_r",        "4",    "--learning_rate", "0.01",
                        "--merge_adapter", "true", "--kv_cache",      "int8:token"};
    const Args inside = {"--lora_inside_quantizer", "true"};
    std::string told;
    for (const char* scale : {"dynamic", "static"}) {
        const std::string out = fresh("inside"), adapter = out + "/checkpoint-2";
        good(grpo(out, train + inside + Args{"--weights", "int4:g16", "--qat_scale", scale}));
        const json used = logps({"--adapter", adapter}, &told);
        EXPECT_NE(
            told.find("trained as --weights 'int4:g16:sym' --kv_cache 'int8:token:sym' --lora_inside_quantizer true"),
            std::string::npos)
            << told;
        EXPECT_EQ(used, logps(Args{"--adapter", adapter, "--weights", "int4:g16"} + inside));
        EXPECT_NE(used, logps({"--adapter", adapter, "--lora_inside_quantizer", "false"}, &told));
        EXPECT_NE(told.find("--lora_inside_quantizer false is used instead"), std::string::npos) << told;
        // bf16 rounds what is merged once more than what stands beside
        const json merged = logps({"--model", adapter + "-merged"}, &told);
        if (!bf16_build) {
            EXPECT_EQ(used, merged);
        }
        for (size_t i = 0; i < used.size(); i++) EXPECT_NEAR((double)used[i], (double)merged[i], 0.1);
        EXPECT_NE(told.find("trained as --weights 'int4:g16:sym' --kv_cache"), std::string::npos) << told;
    }
    for (const char* weights : {"nf4:g16", "none"}) {
        const std::string out = fresh("frozen"), adapter = out + "/checkpoint-2";
        good(grpo(out, train + Args{"--weights", weights}));
        const json used = logps({"--adapter", adapter}, &told);
        EXPECT_EQ(used, logps({"--adapter", adapter, "--weights", weights}));
        EXPECT_NE(told.find(std::string("trained as --weights '") + weights + "' --kv_cache"), std::string::npos)
            << told;
        logps({"--model", adapter + "-merged"}, &told);
        EXPECT_NE(told.find("trained as --kv_cache 'int8:token:sym'"), std::string::npos) << told;
    }
    // over a checkpoint whose own grids are of another quantizer
    const std::string grids = fresh("static"), over = fresh("over");
    good(grpo(grids, {"--weights", "int4:g16", "--qat_scale", "static"}));
    Args args = grpo(over, train + Args{"--weights", "nf4:g16"});
    *std::find(args.begin(), args.end(), trained) = grids + "/checkpoint-2";
    good(args);
    logps({"--adapter", over + "/checkpoint-2"}, &told);
    EXPECT_NE(told.find("trained as --weights 'nf4:g16'"), std::string::npos) << told;
    refused(2, {"quantize", "--adapter", trained, "--weights", "int4:g16"}, {"--adapter"});
}

// inside the quantizer what is quantized is the sum of the masters and the adapter: wherever the adapter goes, they do
TEST(Adapters, InsideTheQuantizerOverMasters) {
    const std::string quantized = fresh("quantized"), base_model = quantized + "/checkpoint-0", out = fresh("inside");
    good({"quantize", "--model", trained, "--weights", "int3:g32:asym", "--train_data", sums, "--calibration_samples",
          "8", "--calibration_length", "32", "--output_dir", quantized});
    Args args = grpo(out, {"--lora_r", "4", "--lora_inside_quantizer", "true", "--merge_adapter", "true"});
    *std::find(args.begin(), args.end(), trained) = base_model;
    good(args);
    const Args prompt = {"--prompt", "3+4=?\n#### 7"};
    const Outcome r = good(Args{"logprobs", "--adapter", out + "/checkpoint-2"} + prompt);
    EXPECT_NE(r.err.find("master weights are those of " + base_model), std::string::npos) << r.err;
    const std::string merged = good(Args{"logprobs", "--model", out + "/checkpoint-2-merged"} + prompt).out;
    if (!bf16_build) {
        EXPECT_EQ(r.out, merged);
    }
    EXPECT_NEAR((double)json::parse(r.out)["mean"], (double)json::parse(merged)["mean"], 0.05);
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
