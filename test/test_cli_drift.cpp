// eval --against, as a user runs it: what a model drifts from itself and from its full precision, what it leaves, and what
// is refused.
#include "cli.h"

static Args drift(const std::string& model, const std::string& against, const std::string& out, const Args& more = {}) {
    return Args{"eval", "--model", model, "--against", against, "--output_dir", out} + more;
}

static Args of_problems() { return {"--eval_data", problems, "--eval_n", "20", "--max_completion_length", "12"}; }

TEST(CliDrift, AgainstItselfNothing) {
    const std::string out = fresh("drift");
    Outcome r =
        good(drift(trained, trained, out, Args{"--eval_text", sums, "--eval_text_length", "64"} + of_problems()));
    for (const char* line :
         {"reference ", "the reference", "text ", "completions ", "greedy ", "layers ", "drift.json"})
        EXPECT_NE(r.out.find(line), std::string::npos) << line << "\n" << r.out;
    const json j = read_json(out + "/drift.json");
    for (const char* name : {"text", "completions"}) {
        EXPECT_GT(number(j[name], "tokens"), 20.0) << name;
        EXPECT_EQ(number(j[name], "kl"), 0.0) << name;
        EXPECT_EQ(number(j[name], "kl_max"), 0.0) << name;
        EXPECT_EQ(number(j[name], "agreement"), 1.0) << name;
        EXPECT_EQ(number(j[name], "lost"), 0.0) << name;
        EXPECT_EQ(number(j[name], "log_loss"), number(j[name], "reference_log_loss")) << name;
    }
    // its completions are greedy: each token is its first choice, through the very forward that sampled
    EXPECT_EQ(number(j["completions"], "reference_right"), 1.0);
    EXPECT_EQ(number(j["greedy"], "identical"), 1.0);
    EXPECT_EQ(number(j["greedy"]["right"], "only_model") + number(j["greedy"]["right"], "only_reference"), 0.0);
    ASSERT_EQ(j["layers"]["layers"].size(), 3u);
    EXPECT_EQ(j["layers"]["layers"][0]["layer"], "embeddings");
    for (const json& layer : j["layers"]["layers"]) {
        EXPECT_EQ(number(layer, "error"), 0.0);
        EXPECT_EQ(number(layer, "own_error"), 0.0);
    }
    // the text's log-loss is that of an evaluation without --against
    const std::string alone = fresh("eval");
    good({"eval", "--model", trained, "--eval_text", sums, "--eval_text_length", "64", "--output_dir", alone});
    EXPECT_NEAR(number(read_json(alone + "/summary.json")["log_loss"], "mean"), number(j["text"], "log_loss"), 1e-5);
}

TEST(CliDrift, FewerBitsDriftMoreAndAFolderKeepsItsQuantizer) {
    double last = 0.0;
    for (const char* weights : {"int8:channel", "int4:g16", "int2:g16"}) {
        const std::string out = fresh("drift");
        good(drift(trained, trained, out, Args{"--weights", weights} + of_problems()));
        const json j = read_json(out + "/drift.json");
        EXPECT_EQ(j["weights"].get<std::string>().rfind(weights, 0), 0u) << j["weights"];
        EXPECT_EQ(j["against"]["weights"], "none");
        const double kl = number(j["completions"], "kl");
        EXPECT_GT(kl, last) << weights;
        last = kl;
        EXPECT_LT(number(j["greedy"], "tokens_in_common_mean"), 12.5);
        EXPECT_EQ(j["greedy"]["tokens_in_common"].size(), 20u);
        EXPECT_EQ(read_lines(out + "/completions.jsonl").size(), 40u) << "of both";
        EXPECT_EQ(read_json(out + "/summary.json")["completions"]["kl"], j["completions"]["kl"]);
    }
    // a quantized folder and the same quantizer by a flag are one model; as the reference, too
    const std::string folder = fresh("quantized"), out = fresh("drift"), back = fresh("drift");
    good({"quantize", "--model", trained, "--weights", "int2:g16", "--ptq", "rtn", "--output_dir", folder});
    good(drift(folder + "/checkpoint-0", trained, out, of_problems()));
    EXPECT_NEAR(number(read_json(out + "/drift.json")["completions"], "kl"), last, 0.01 * last);
    good(drift(folder + "/checkpoint-0", folder + "/checkpoint-0", back, of_problems()));
    const json same = read_json(back + "/drift.json");
    EXPECT_EQ(number(same["completions"], "kl"), 0.0);
    EXPECT_EQ(same["against"]["weights"].get<std::string>().rfind("int2:g16", 0), 0u) << same["against"];
}

TEST(CliDrift, TracesOfAFile) {
    const std::string out = fresh("drift");
    const std::string rows = jsonl("traces",
                                   "{\"prompt\": \"1+2=?\\n\", \"completion\": \"#### 3\", \"by\": \"x\"}\n"
                                   "{\"prompt\": \"3+3=?\\n\", \"completion\": \"\"}\n"
                                   "{\"prompt\": \"\", \"completion\": \"7+7=?\"}\n");
    good(drift(trained, trained, out, {"--weights", "int3:g16", "--traces", rows}));
    const json j = read_json(out + "/drift.json");
    EXPECT_EQ(number(j["traces"], "texts"), 2.0) << "a row without a completion is left out";
    EXPECT_EQ(number(j["traces"], "tokens"), 6.0 + 4.0) << "the first token of all is given";
    EXPECT_GT(number(j["traces"], "kl"), 0.0);
    EXPECT_FALSE(j.contains("greedy"));
    EXPECT_FALSE(fs::exists(out + "/completions.jsonl"));
}

TEST(CliDrift, ThePlanHasBothModels) {
    const std::string out = fresh("never");
    Outcome r = good(drift(trained, base, out, Args{"--plan"} + of_problems()));
    EXPECT_NE(r.out.find("the reference"), std::string::npos) << r.out;
    EXPECT_NE(r.out.find("the reference's activations"), std::string::npos) << r.out;
    EXPECT_FALSE(fs::exists(out));
}

TEST(CliDrift, Refusals) {
    const std::string out = fresh("never");
    refused(2, {"eval", "--model", trained, "--traces", sums, "--output_dir", out}, {"--traces", "--against"});
    refused(2, {"eval", "--against", trained, "--eval_text", sums, "--output_dir", out}, {"--model"});
    refused(2, drift(trained, trained, out), {"--eval_data", "--task"});
    refused(1, drift(trained, root + "/none", out, {"--eval_text", sums}), {"none"});
    refused(2, {"sft", "--against", trained, "--output_dir", out}, {"--against"});
    refused(1, drift(trained, trained, out, {"--traces", problems}), {"problems.jsonl:1", "`completion`"});
    const std::string bare = jsonl("bare", "{\"prompt\": \"1+2=?\\n\", \"completion\": \"\"}\n");
    refused(1, drift(trained, trained, out, {"--traces", bare}), {"no row has a completion"});
    const std::string endless =
        jsonl("endless", json{{"prompt", "a"}, {"completion", std::string(200, 'b')}}.dump() + "\n");
    refused(1, drift(trained, trained, out, {"--traces", endless}), {"201 tokens", "128"});
    // another vocabulary
    std::string other = model_copy();
    std::string tokenizer = read_text(other + "/tokenizer.json");
    const size_t at = tokenizer.find("\"!\""), next = tokenizer.find("\"\\\"\"", at);
    ASSERT_NE(next, std::string::npos);
    tokenizer.replace(next, 4, "\"!\""), tokenizer.replace(at, 3, "\"\\\"\"");
    write_text(other + "/tokenizer.json", tokenizer);
    refused(1, drift(trained, other, out, {"--eval_text", sums}), {"--against", "another vocabulary", "token"});
    EXPECT_FALSE(fs::exists(out));
}

TEST(CliDrift, WhatItReadsIsNotReplaced) {
    const std::string out = fresh("drift");
    good(drift(trained, trained, out, Args{"--weights", "int4:g16"} + of_problems()));
    refused(1, drift(trained, trained, out, {"--eval_text", sums}), {"already holds a run"});
    refused(2, drift(trained, trained, out, {"--traces", out + "/completions.jsonl", "--overwrite_output_dir"}),
            {"--traces", "would be replaced"});
    good(drift(trained, trained, out, {"--eval_text", sums, "--eval_text_length", "64", "--overwrite_output_dir"}));
    EXPECT_FALSE(read_json(out + "/drift.json").contains("greedy")) << "the earlier one is gone";
    // its completions are traces
    const std::string again = fresh("drift"), text = fresh("drift");
    good(drift(trained, trained, again, Args{"--weights", "int4:g16"} + of_problems()));
    good(drift(trained, trained, text, {"--weights", "int4:g16", "--traces", again + "/completions.jsonl"}));
    EXPECT_EQ(number(read_json(text + "/drift.json")["traces"], "texts"), 40.0);
}
