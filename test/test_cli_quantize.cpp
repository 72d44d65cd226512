// The quantize command, and eval --eval_text: what a user sees.
#include "../formats/safetensors.h"
#include "cli.h"

static Args quantize(const std::string& out, const Args& more = {}) {
    return Args{"quantize",
                "--model",
                trained,
                "--weights",
                "int4:g16:sym",
                "--calibration_samples",
                "8",
                "--calibration_length",
                "32",
                "--output_dir",
                out} +
           more;
}

TEST(Quantize, CalibratesMeasuresAndSaves) {
    std::string out = fresh("quantized");
    Outcome r =
        good(quantize(out, {"--train_data", sums, "--eval_data", sums, "--eval_n", "40", "--save_dtype", "float32"}));
    EXPECT_NE(r.out.find("calibration 8 windows of 32 tokens from --train_data " + sums), std::string::npos) << r.out;
    EXPECT_NE(r.out.find("layer 1/2 | q,k,v "), std::string::npos) << r.out;
    EXPECT_NE(r.out.find("layer 2/2 | q,k,v "), std::string::npos) << r.out;
    json s = read_json(out + "/summary.json");
    EXPECT_EQ(s["weights"], "int4:g16:sym");
    EXPECT_EQ(s["ptq"], "gptq");
    double before = s["log_loss"]["before"], after = s["log_loss"]["after"];
    EXPECT_GT(s["log_loss"]["tokens"], 100);
    EXPECT_NE(before, after);
    EXPECT_LT(std::fabs(before - after), 1.0);
    std::vector<json> layers = read_lines(out + "/metrics.jsonl");
    ASSERT_EQ(layers.size(), 2u);
    for (const json& l : layers)
        for (const char* p : {"q,k,v", "o", "gate,up", "down"}) {
            EXPECT_GT(l["error"][p], 0.0);
            EXPECT_LT(l["error"][p], 0.05);
            EXPECT_EQ(l["damp_percent"][p], 0.01);
        }
    // the saved model is the quantized one, with its tokenizer
    EXPECT_TRUE(fs::exists(out + "/checkpoint-0/tokenizer.json"));
    std::string again = fresh("again");
    Args eval = {"quantize", "--model", out + "/checkpoint-0", "--weights", "int8:channel", "--ptq", "rtn"};
    good(eval + Args{"--eval_data", sums, "--eval_n", "40", "--output_dir", again});
    EXPECT_NEAR(read_json(again + "/summary.json")["log_loss"]["before"], after, 1e-6);
    EXPECT_EQ(leftovers(out, false), "");
    // the same bits again, and from the config
    std::string same = fresh("same");
    good({"--config", out + "/config.json", "--output_dir", same});
    EXPECT_EQ(read_text(same + "/checkpoint-0/model.safetensors"), read_text(out + "/checkpoint-0/model.safetensors"));
}

TEST(Quantize, EveryKindOfFormatIsSavedAndReadAgain) {
    for (const char* weights : {"nvfp4", "fp8e4m3:channel", "fp8e5m2:tensor", "int3:g16:asym", "int6:channel",
                                "ternary", "nf4:g16:dq", "mid4:g16:gauss"}) {
        std::string out = fresh("quantized"), again = fresh("again");
        const Args measured = {"--ptq", "rtn", "--eval_data", sums, "--eval_n", "40", "--output_dir"};
        good(Args{"quantize", "--model", trained, "--weights", weights, "--save_dtype", "float32"} + measured +
             Args{out});
        good(Args{"quantize", "--model", out + "/checkpoint-0", "--weights", "int8:channel"} + measured + Args{again});
        EXPECT_NEAR(read_json(again + "/summary.json")["log_loss"]["before"],
                    read_json(out + "/summary.json")["log_loss"]["after"], 1e-6)
            << weights;
    }
}

// what a format may hold is not refused before the work: zero points are not known then
TEST(Quantize, FormatsForOtherTools) {
    for (const char* format : {"gptq", "gptq_v2", "awq"})
        for (const char* weights : {"int4:g32:sym", "int4:g32:asym"})
            good({"quantize", "--model", trained, "--weights", weights, "--ptq", "rtn", "--format", format,
                  "--output_dir", fresh(format)});
}

TEST(Quantize, Calibrations) {
    std::string text = fresh("notes.txt"), rows = jsonl("rows", "{\"text\": \"" + std::string(90, 'x') + "\"}\n");
    write_text(text, std::string(200, 'a'));
    for (const Args& more : {Args{"--calibration", text}, Args{"--calibration", rows}, Args{"--task", "arithmetic"},
                             Args{"--calibration", "self", "--train_data", problems, "--max_completion_length", "12"},
                             Args{"--calibration", text, "--act_order", "false", "--static_groups", "false"},
                             Args{"--ptq", "rtn", "--calibration", text}}) {
        std::string out = fresh("quantized");
        Outcome r = good(quantize(out, more));
        EXPECT_NE(r.out.find("calibration 8 windows"), std::string::npos) << r.out;
        bool self = std::find(more.begin(), more.end(), "self") != more.end();
        EXPECT_EQ(r.out.find("8 answers of the model's own") != std::string::npos, self) << r.out;
    }
    std::string out = fresh("quantized");
    Outcome r = good(quantize(out, {"--ptq", "rtn"}));
    EXPECT_EQ(r.out.find("windows"), std::string::npos) << r.out;
    good({"quantize", "--weights", "int4:g32", "--calibration_samples", "4", "--output_dir", fresh("embedded")});
    r = good(quantize(fresh("never"), {"--calibration", text, "--plan"}));
    EXPECT_NE(r.out.find("GPTQ: a Hessian's factor"), std::string::npos) << r.out;
}

// a line and a row for each module; then E2E-QP, end to end: scales move, and nothing else does
TEST(Quantize, BlockwiseAndThenScalesAlone) {
    const std::string out = fresh("blockwise"), same = fresh("same");
    Outcome r = good({"quantize", "--model", trained, "--weights", "int2:g16:asym", "--ptq",
                      "rtn+blockwise:steps=30:learning_rate=1e-3", "--calibration_samples", "8", "--calibration_length",
                      "32", "--train_data", sums, "--eval_data", sums, "--eval_n", "40", "--output_dir", out});
    EXPECT_NE(r.out.find("layer 1/2 | q,k,v "), std::string::npos) << r.out;
    EXPECT_NE(r.out.find("module 2/2, layers 2-2 | error "), std::string::npos) << r.out;
    int modules = 0;
    for (const json& row : read_lines(out + "/metrics.jsonl"))
        if (row.contains("module")) {
            EXPECT_EQ(row["module"], modules++);
            EXPECT_LT(row["error"]["after"], 0.8 * (double)row["error"]["before"]);
        }
    EXPECT_EQ(modules, 2);
    good({"--config", out + "/config.json", "--output_dir", same});
    EXPECT_EQ(read_text(same + "/checkpoint-0/model.safetensors"), read_text(out + "/checkpoint-0/model.safetensors"));

    const Args alone = {"--qat_scale",
                        "learned",
                        "--group_learning_rates",
                        "matrices=0, norms=0, embeddings=0",
                        "--learning_rate",
                        "0.001",
                        "--save_dtype",
                        "float32",
                        "--train_data",
                        sums,
                        "--model",
                        out + "/checkpoint-0"};
    const std::string first = fresh("first"), scales = fresh("scales");
    for (const auto& [to, steps] : {std::pair(first, "0"), {scales, "4"}})
        good(Args{"sft", "--methods", "e2e_qp", "--max_steps", steps, "--output_dir", to} + alone);
    const std::string was = first + "/checkpoint-0", is = scales + "/checkpoint-4";
    for (const json& row : read_lines(scales + "/metrics.jsonl"))
        if (row.contains("quant/code_flip_rate")) { EXPECT_EQ(row["quant/code_flip_rate"], 0.0); }
    EXPECT_EQ(read_json(scales + "/summary.json")["code_flip_total"], 0.0);
    const SafetensorsFile grids[] = {st_open(was + "/quantizer.safetensors"), st_open(is + "/quantizer.safetensors")};
    int moved = 0;
    for (const auto& [name, tensor] : grids[0].tensors) {
        const StTensor& now = grids[1].tensors.at(name);
        const bool equal = memcmp(tensor.data, now.data, (size_t)tensor.count * 4) == 0;
        const bool is_scale = name.size() > 6 && name.compare(name.size() - 6, 6, ".scale") == 0;
        EXPECT_EQ(equal, !is_scale) << name;
        moved += !equal;
    }
    EXPECT_EQ(moved, 14);  // 7 linears in 2 layers
    const SafetensorsFile weights[] = {st_open(was + "/model.safetensors"), st_open(is + "/model.safetensors")};
    for (const auto& [name, tensor] : weights[0].tensors) {
        const bool linear = name.find("_proj.weight") != std::string::npos;
        const bool equal = memcmp(tensor.data, weights[1].tensors.at(name).data, (size_t)tensor.count * 4) == 0;
        EXPECT_EQ(equal, !linear) << name;  // a linear's masters are its codes times its scales
    }
    // without the method LSQ moves the grid under the masters that stay, and codes with it
    const std::string lsq = fresh("lsq");
    good(Args{"sft", "--max_steps", "4", "--output_dir", lsq} + alone);
    EXPECT_GT(read_json(lsq + "/summary.json")["code_flip_total"], 0.0);
    refused(2,
            {"sft", "--methods", "e2e_qp", "--output_dir", fresh("never"), "--train_data", sums, "--model", trained,
             "--weights", "int4:g16"},
            {"--methods e2e_qp", "--qat_scale learned"});
    refused(2, quantize(fresh("never"), {"--ptq", "blockwise:layers=3", "--train_data", sums}), {"layers=3", "2"});
    json one = read_json(base + "/config.json");
    one["num_hidden_layers"] = 1;
    const std::string small = fresh("one");
    fs::copy(base, small, fs::copy_options::recursive);
    write_text(small + "/config.json", one.dump());
    Tensors of_one = tiny_tensors();
    for (auto t = of_one.begin(); t != of_one.end();)
        t = t->first.find("layers.1.") == std::string::npos ? std::next(t) : of_one.erase(t);
    write_safetensors(small + "/model.safetensors", of_one);
    refused(2,
            Args{"quantize", "--model", small, "--weights", "int4:g16", "--ptq", "blockwise", "--train_data", sums,
                 "--output_dir", fresh("never")},
            {"one layer", "distill"});
}

TEST(Quantize, BadInput) {
    std::string out = fresh("never"), empty = fresh("empty.txt"), shorter = fresh("short.txt");
    write_text(empty, "");
    write_text(shorter, "only a few words");
    refused(2, {"quantize", "--model", trained, "--train_data", sums, "--output_dir", out},
            {"quantize needs --weights"});
    refused(2, quantize(out), {"--ptq gptq needs calibration text", "--calibration", "--train_data"});
    refused(2, quantize(out, {"--ptq", "rtn+gpt"}), {"--ptq rtn+gpt", "'gpt'", "rtn, gptq"});
    refused(2, quantize(out, {"--ptq", "gptq+gptq"}), {"gptq is given twice"});
    refused(2, quantize(out, {"--train_data", sums, "--static_groups", "false"}), {"--act_order", "--static_groups"});
    refused(2, quantize(out, {"--train_data", sums, "--damp_percent", "2"}), {"--damp_percent 2", "[0, 1]"});
    refused(1, quantize(out, {"--calibration", empty}), {empty, "0 tokens", "--calibration_length 32"});
    refused(1, quantize(out, {"--calibration", shorter}), {shorter, "16 tokens", "--calibration_length 32"});
    refused(1, quantize(out, {"--calibration", out}), {out});
    Args args = quantize(out, {"--train_data", sums});
    args[4] = "int4:g24";
    refused(2, args, {"--weights int4:g24", "does not divide", "model.layers.0."});
    refused(1, quantize(out, {"--train_data", sums, "--format", "bnb-nf4"}), {"bitsandbytes cannot hold", "q_proj"});
    refused(1, quantize(out, {"--train_data", sums, "--format", "int-quantized"}), {"cannot hold", "q_proj"});
    args = quantize(out, {"--train_data", sums});
    args[8] = "129";
    refused(2, args, {"--calibration_length 129", "128"});
    std::string model = model_copy();
    Tensors t = tiny_tensors();
    t["model.layers.1.mlp.up_proj.weight"].second[77] = NAN;
    write_safetensors(model + "/model.safetensors", t);
    args = quantize(out, {"--train_data", sums});
    args[2] = model;
    refused(1, args, {"model.layers.1.mlp.up_proj.weight", "not finite"});
    EXPECT_FALSE(fs::exists(out)) << "a folder of a run that never began";
}

// what a format cannot hold is said before the work, and what it picks by itself it holds
TEST(Quantize, WhatAFormatCannotHoldIsSaidBeforeTheWork) {
    const std::string never = fresh("never"), out = fresh("quantized");
    auto of = [](const char* weights, const std::string& to, const Args& more) {
        Args args = quantize(to, Args{"--train_data", sums} + more);
        args[4] = weights;
        return args;
    };
    const char *tables = "int8:channel; embed=int8:channel", *mixture = "int4:g16; down=int8:g16";
    refused(1, of(tables, never, {"--format", "compressed-tensors"}),
            {"compressed-tensors cannot hold", "embed_tokens", "take hf"});
    for (const char* format : {"gptq", "gptq_v2"})
        refused(1, of(mixture, never, {"--format", format}),
                {std::string(format) + " cannot hold", "it has int", "others have int"});
    refused(2, of("int8:channel:asym", never, {"--format", "hf", "--save_dtype", "bfloat16"}), {"take float32"});
    EXPECT_FALSE(fs::exists(never));
    good(of(tables, out, {"--ptq", "rtn"}));
    EXPECT_EQ(read_json(out + "/summary.json")["format"], "hf");
    good(of(mixture, fresh("mixture"), {"--ptq", "rtn", "--format", "compressed-tensors"}));
}

// the model before has no quantizers, and neither has the one that answers for --calibration self
TEST(Quantize, BeforeIsWithoutAQuantizedCache) {
    json before[2], after[2];
    std::string answers[2];
    for (int kv : {0, 1}) {
        const std::string out = fresh("quantized");
        Args args = quantize(out, {"--calibration", "self", "--train_data", problems, "--max_completion_length", "24",
                                   "--eval_data", sums, "--eval_n", "20", "--kv_cache", kv ? "int2:token" : "none"});
        const Outcome r = good(args);
        const size_t at = r.out.find("answers of the model's own, ");
        ASSERT_NE(at, std::string::npos) << r.out;
        answers[kv] = r.out.substr(at, r.out.find(" tokens", at) - at);
        before[kv] = read_json(out + "/summary.json")["log_loss"]["before"];
        after[kv] = read_json(out + "/summary.json")["log_loss"]["after"];
    }
    EXPECT_EQ(before[0], before[1]);
    EXPECT_NE(after[0], after[1]);
    EXPECT_EQ(answers[0], answers[1]);
}

// GPTQ's codes would not survive to be measured again: amax finds other scales for what was rounded
TEST(Quantize, ExportKeepsTheCodesOfTheQuantizerThatIsAskedFor) {
    const std::string out = fresh("quantized"), checkpoint = out + "/checkpoint-0";
    good(quantize(out, {"--train_data", sums}));
    auto exported = [&](const std::string& from, const char* format, const Args& more, std::string* said = nullptr) {
        const std::string to = fresh("exported");
        const Outcome r = good(Args{"export", "--model", from, "--format", format, "--output_dir", to} + more);
        if (said) *said = r.err;
        return to;
    };
    std::string said;
    for (const char* format : {"compressed-tensors", "gptq", "hf"}) {
        const std::string own = exported(checkpoint, format, {}),
                          asked = exported(checkpoint, format, {"--weights", "int4:g16"}, &said);
        EXPECT_TRUE(read_text(own + "/model.safetensors") == read_text(asked + "/model.safetensors")) << format;
        EXPECT_NE(said.find("read as --weights int4:g16:sym with the file's own scales"), std::string::npos) << said;
    }
    for (const char* other : {"int4:g32", "none; q=int4:g16"}) {
        exported(checkpoint, "gptq", {"--weights", other}, &said);
        EXPECT_NE(said.find("(int4:g16:sym) are dequantized and quantized anew"), std::string::npos) << said;
    }
    // a GGUF file, to a folder and to another file
    const std::string q4_0 = exported(trained, "gguf:Q4_0", {"--weights", "int4:g32"}) + "/model.gguf";
    const std::string own = exported(q4_0, "gptq", {}),
                      asked = exported(q4_0, "gptq", {"--weights", "int4:g32"}, &said);
    EXPECT_TRUE(read_text(own + "/model.safetensors") == read_text(asked + "/model.safetensors"));
    EXPECT_NE(said.find("GGUF, read as --weights int4:g32"), std::string::npos) << said;
    const std::string again = exported(q4_0, "gguf:Q4_0", {"--weights", "int4:g32"}) + "/model.gguf";
    auto answer = [](const std::string& model) {
        return good({"logprobs", "--model", model, "--prompt", "1+1=?\n#### 2"}).out;
    };
    EXPECT_EQ(answer(q4_0), answer(again));
}

TEST(Eval, LogLossOfAText) {
    std::string text = fresh("text.txt"), out = fresh("eval"), quantized = fresh("eval");
    write_text(text, "1+1=?\n#### 2\n\n3+4=?\n#### 7\n\n2+5=?\n#### 7");
    Outcome r =
        good({"eval", "--model", trained, "--eval_text", text, "--eval_text_length", "20", "--output_dir", out});
    EXPECT_NE(r.out.find("log-loss "), std::string::npos) << r.out;
    json s = read_json(out + "/summary.json");
    EXPECT_EQ(s["log_loss"]["tokens"], 41 - 3) << "windows of 20, 20 and 1: the first token of each is not scored";
    EXPECT_FALSE(s.contains("eval"));
    good({"eval", "--model", trained, "--eval_text", text, "--eval_text_length", "20", "--weights", "int2:g32",
          "--eval_data", problems, "--eval_n", "4", "--max_completion_length", "8", "--output_dir", quantized});
    json q = read_json(quantized + "/summary.json");
    EXPECT_NE(q["log_loss"]["mean"], s["log_loss"]["mean"]);
    EXPECT_EQ(q["log_loss"]["tokens"], s["log_loss"]["tokens"]);
    EXPECT_EQ(q["eval"]["n"], 4);
    // as the logprobs command has it
    std::string first = "1+1=?\n#### 2\n\n3+4=?";
    std::string short_text = fresh("text.txt"), third = fresh("eval");
    write_text(short_text, first);
    good({"eval", "--model", trained, "--eval_text", short_text, "--output_dir", third});
    json line = json::parse(good({"logprobs", "--model", trained, "--prompt", first}).out);
    EXPECT_NEAR(read_json(third + "/summary.json")["log_loss"]["mean"], -line["mean"].get<double>(), 1e-5);
    write_text(short_text, "x");
    refused(1, {"eval", "--model", trained, "--eval_text", short_text, "--output_dir", fresh("never")},
            {short_text, "fewer than two tokens"});
}

// QLoRA over what quantize wrote: the base keeps the file's codes and scales, with no flag to say so
TEST(Quantize, AnAdapterIsTrainedOverTheResult) {
    std::string out = fresh("quantized"), more = fresh("more");
    good(quantize(out, {"--train_data", sums}));
    Args args = grpo(more, {"--lora_r", "2"});
    *std::find(args.begin(), args.end(), trained) = out + "/checkpoint-0";
    Outcome r = good(args);
    EXPECT_NE(r.err.find("with the file's own scales"), std::string::npos) << r.err;
    EXPECT_NE(r.out.find("base packed: int4:g16:sym"), std::string::npos) << r.out;
}

// Seven steps at 1e-4 from a GPTQ checkpoint: codes flip, as they do not from the middle of their cells. At learning rate
// 0 nothing has moved, so that what is trained begins as what was saved.
TEST(Quantize, TrainingGoesOnFromTheMasters) {
    const std::string out = fresh("quantized"), checkpoint = out + "/checkpoint-0";
    Args args = quantize(out, {"--train_data", sums});
    args[4] = "int3:g32:asym";
    Outcome r = good(args);
    EXPECT_NE(r.out.find("fp32 in masters.safetensors"), std::string::npos) << r.out;
    auto flips = [&](const std::string& model, const char* rate, const Args& more = {}) {
        const std::string run = fresh("run");
        Args all =
            grpo(run, Args{"--max_steps", "7", "--learning_rate", rate, "--lr_scheduler_type", "constant"} + more);
        *std::find(all.begin(), all.end(), trained) = model;
        r = good(all);
        return number(read_lines(run + "/metrics.jsonl").back(), "quant/code_flip_total");
    };
    const double moved = flips(checkpoint, "1e-4");
    EXPECT_NE(r.err.find("master weights are those of " + checkpoint), std::string::npos) << r.err;
    EXPECT_GT(moved, 0.0002);  // without masters none moves
    EXPECT_GT(flips(checkpoint, "1e-3"), moved);
    EXPECT_EQ(flips(checkpoint, "0"), 0.0);
    EXPECT_GT(flips(checkpoint, "1e-4", {"--qat_scale", "dynamic"}), 0.0002);
    fs::remove(checkpoint + "/masters.safetensors");
    EXPECT_EQ(flips(checkpoint, "1e-4"), 0.0);
    EXPECT_EQ(r.err.find("master weights"), std::string::npos) << r.err;
    const std::string without = fresh("quantized");
    r = good(quantize(without, {"--train_data", sums, "--save_masters", "false"}));
    EXPECT_FALSE(fs::exists(without + "/checkpoint-0/masters.safetensors"));
    EXPECT_EQ(r.out.find("masters.safetensors"), std::string::npos) << r.out;
}

TEST(Quantize, MastersOfOthersAreRefused) {
    const std::string out = fresh("quantized"), other = fresh("quantized"), file = "/checkpoint-0/masters.safetensors";
    good(quantize(out, {"--train_data", sums}));
    good(quantize(other, {"--ptq", "rtn"}));
    const std::string whole = read_text(out + file);
    auto says = [&](const std::string& part) {
        for (const char* lora : {"", "2"}) {  // a frozen base has no use for them
            Args args = grpo(fresh("never"), *lora ? Args{"--lora_r", lora, "--max_steps", "1"} : Args{});
            *std::find(args.begin(), args.end(), trained) = out + "/checkpoint-0";
            const Outcome r = run(args);
            EXPECT_EQ(r.status, *lora ? 0 : 1) << shown_run(args, r);
            EXPECT_EQ(r.err.find("train_qrl: ") == std::string::npos, *lora != 0) << r.err;
            EXPECT_EQ(r.err.find(part) == std::string::npos, *lora != 0) << r.err;
            EXPECT_EQ(r.err.find("remove masters.safetensors") == std::string::npos, *lora != 0) << r.err;
        }
    };
    write_text(out + file, whole.substr(0, whole.size() / 2));
    says("masters.safetensors: ");
    fs::copy_file(other + file, out + file, fs::copy_options::overwrite_existing);
    says("do not round to the folder's codes");
    Tensors shapes;
    shapes["model.layers.0.self_attn.q_proj.weight"] = {{32, 64}, std::vector<float>(2048)};
    write_safetensors(out + file, shapes);
    says("has shape [32, 64]");
}

// What a policy was quantized to goes with it: a folder's own words, told in one line, and what a flag makes of them
static Args eval_of(const std::string& checkpoint, const Args& more = {}) {
    return Args{"eval",   "--model",      checkpoint,   "--eval_data",
                problems, "--eval_n",     "8",          "--max_completion_length",
                "16",     "--output_dir", fresh("eval")} +
           more;
}

static std::string used(const Args& args) {  // by an evaluation
    const json s =
        read_json(args[std::find(args.begin(), args.end(), "--output_dir") - args.begin() + 1] + "/summary.json");
    return s["weights"].get<std::string>() + " | " + s["activations"].get<std::string>() + " | " +
           s["kv_cache"].get<std::string>();
}

TEST(Policies, OfContainersKeepWhatTheContainerWidens) {
    const std::string text = fresh("text.txt");
    write_text(text, read_text(sums).substr(0, 1000));
    struct {
        const char *weights, *format;
    } cases[] = {
        {"int3:tensor:sym", "compressed-tensors"}, {"int3:g32:asym", "awq"},
        {"ternary:tensor", "compressed-tensors"},  {"int8:tensor:sym", "int-quantized"},
        {"int4:g32:asym:mse", "gptq_v2"},          {"int3:g32:asym; down=int4:g32:asym", "compressed-tensors"}};
    for (auto& c : cases) {
        SCOPED_TRACE(std::string(c.weights) + " as " + c.format);
        const std::string out = fresh("quantized"), checkpoint = out + "/checkpoint-0";
        Args args = quantize(
            out, {"--train_data", sums, "--format", c.format, "--activations", "int8:token", "--eval_text", text});
        args[4] = c.weights;
        good(args);
        const Args eval = eval_of(checkpoint, {"--eval_text", text});
        Outcome r = good(eval);
        EXPECT_EQ(used(eval), std::string(c.weights) + " | int8:token:sym | none");
        EXPECT_NE(r.err.find(std::string("read as --weights ") + c.weights + " with the file's own scales"),
                  std::string::npos)
            << r.err;
        EXPECT_NE(r.err.find("trained as --activations 'int8:token:sym'"), std::string::npos) << r.err;
        const Args none = eval_of(checkpoint, {"--activations", "none"});
        r = good(none);
        EXPECT_NE(r.err.find("trained as --activations 'int8:token:sym'; --activations 'none' is used instead"),
                  std::string::npos)
            << r.err;
        // what is not quantized is bf16 in the folder, and was when it was measured
        EXPECT_EQ(read_json(out + "/summary.json")["log_loss"]["after"],
                  read_json(eval[10] + "/summary.json")["log_loss"]["mean"]);
        // and another container of it
        const std::string exported = fresh("exported");
        if (std::string(c.weights).find(';') != std::string::npos) continue;
        r = good({"export", "--model", checkpoint, "--format", c.format, "--output_dir", exported});
        const bool told = r.err.find("tells other tools of --activations none, the model was made with int8:token") ==
                          std::string::npos;
        EXPECT_EQ(told, std::string(c.format) == "int-quantized") << r.err;
        EXPECT_EQ(read_text(exported + "/model.safetensors"), read_text(checkpoint + "/model.safetensors"));
        EXPECT_EQ(read_json(exported + "/quantizer.json"), read_json(checkpoint + "/quantizer.json"));
    }
}

// the evaluation in full precision has no quantizer of keys and values either
TEST(Policies, FullPrecisionIsWithoutAQuantizedCache) {
    json full[2], quantized[2];
    for (int kv : {0, 1}) {
        const std::string out = fresh("run");
        good(grpo(out, {"--weights", "int4:g16", "--kv_cache", kv ? "int2:token" : "none", "--max_steps", "1",
                        "--eval_data", problems, "--eval_n", "30", "--eval_samples", "2"}));
        quantized[kv] = read_lines(out + "/evaluations.jsonl")[0];
        full[kv] = quantized[kv]["full_precision"];
        quantized[kv].erase("full_precision");
    }
    EXPECT_TRUE(full[0].is_object());
    EXPECT_EQ(full[0], full[1]);
    EXPECT_NE(quantized[0], quantized[1]);
}

TEST(Policies, FlagsAgainstTheFolderAreTold) {
    const std::string out = fresh("run"), checkpoint = out + "/checkpoint-2";
    good(grpo(out, {"--weights", "int4:g16", "--kv_cache", "int8:token", "--qat_scale", "static"}));
    Args eval = eval_of(checkpoint);
    Outcome r = good(eval);
    EXPECT_EQ(used(eval), "int4:g16:sym | none | int8:token:sym");
    EXPECT_NE(r.err.find("trained as --weights 'int4:g16:sym' --kv_cache 'int8:token:sym'\n"), std::string::npos)
        << r.err;
    eval = eval_of(checkpoint, {"--weights", "int8:channel"});
    r = good(eval);
    EXPECT_EQ(used(eval), "int8:channel:sym | none | int8:token:sym");
    EXPECT_NE(r.err.find("; --weights 'int8:channel:sym' is used instead"), std::string::npos) << r.err;
    eval = eval_of(checkpoint, {"--weights", "int4:g16", "--kv_cache", "int8:token"});
    r = good(eval);
    EXPECT_EQ(r.err.find("note: "), std::string::npos) << "as it was trained: " << r.err;
    auto policy = [&](const std::string& text, const Args& parts) {
        write_text(checkpoint + "/quantizer.json", text);
        refused(1, eval_of(checkpoint), Args{checkpoint + "/quantizer.json"} + parts);
    };
    policy("{\"weights\": \"int9:g16\"}", {"'int9'", "mend the file"});
    policy("{\"weights\": 4}", {"weights is not a text"});
    policy("{\"weights\": ", {"not valid JSON"});
    policy("[]", {"not a JSON object"});
}

// The weights of the folder are those of no basis; its policy says which linears are quantized in one
TEST(Policies, ARotatedBasisGoesWithThem) {
    const std::string text = fresh("text.txt"), out = fresh("run"), checkpoint = out + "/checkpoint-2";
    write_text(text, read_text(sums).substr(0, 1000));
    const Args quantizers = {"--weights", "int4:channel", "--activations", "int4:token:asym"};
    Outcome r = good(Args{"distill", "--model", trained, "--teacher", trained, "--train_data", sums, "--max_steps", "2",
                          "--learning_rate", "0.001", "--eval_text", text, "--hadamard",
                          "layers.0.down,o,layers.1.down", "--output_dir", out} +
                     quantizers);
    EXPECT_NE(r.out.find("rotated     o of layers 0-1; down of layers 0-1\n"), std::string::npos) << r.out;
    EXPECT_EQ(read_json(checkpoint + "/quantizer.json")["hadamard"], "o,down");
    EXPECT_EQ(read_json(out + "/summary.json")["hadamard"], "o,down");
    auto loss_of = [&](const Args& more, std::string* said = nullptr) {
        const Args eval = eval_of(checkpoint, Args{"--eval_text", text} + more);
        const Outcome e = good(eval);
        if (said) *said = e.err;
        return read_json(eval[10] + "/summary.json")["log_loss"]["mean"].get<double>();
    };
    std::string said;
    const double trained_loss = read_json(out + "/summary.json")["held_out_text"]["after"]["log_loss"];
    const double found = loss_of({}, &said), plain = loss_of({"--weights", "none", "--activations", "none"});
    EXPECT_NEAR(found, trained_loss, 1e-6 * trained_loss);
    EXPECT_NE(
        said.find("trained as --weights 'int4:channel:sym' --activations 'int4:token:asym' --hadamard 'o,down'\n"),
        std::string::npos)
        << said;
    EXPECT_GT(std::fabs(loss_of({"--hadamard", "none"}, &said) - found), 1e-5);
    EXPECT_NE(said.find("; --hadamard 'none' is used instead"), std::string::npos) << said;
    const double none = loss_of({"--weights", "none", "--activations", "none", "--hadamard", "none"});
    EXPECT_NEAR(plain, none, (bf16_build ? 1e-2 : 1e-5) * none);

    const std::string exported = fresh("exported");
    refused(1,
            {"export", "--model", checkpoint, "--format", "compressed-tensors", "--weights", "int4:channel",
             "--output_dir", exported},
            {"in a rotated basis", "--hadamard o,down", "--weights none exports"});
    good({"export", "--model", checkpoint, "--format", "hf", "--weights", "none", "--output_dir", exported});
    EXPECT_EQ(read_json(exported + "/quantizer.json"),
              (json{{"activations", "int4:token:asym"}, {"hadamard", "o,down"}}));
    Args again = quantize(fresh("again"), {"--ptq", "rtn", "--train_data", sums});
    again[2] = checkpoint;
    EXPECT_NE(good(again).err.find("--hadamard 'none' is used instead"), std::string::npos);
    const Args sft = {"sft",         "--model", checkpoint,     "--train_data", sums,
                      "--max_steps", "1",       "--output_dir", fresh("sft")};
    refused(2, sft + quantizers + Args{"--lora_r", "2", "--hadamard", "o,down"},
            {"--hadamard o,down", "--lora_inside_quantizer"});
    refused(2, sft + Args{"--hadamard", "gate"}, {"--hadamard gate", "gate,up of layer 0"});
    write_text(checkpoint + "/quantizer.json", "{\"hadamard\": \"layers.7\"}");
    refused(1, eval_of(checkpoint), {checkpoint + "/quantizer.json", "layers.7", "mend the file"});
}

// What RoSTE chose before the first step is what the reference of the KL term, the sampler and the checkpoint have
TEST(Policies, ChosenBasesAreThoseOfTheReference) {
    const std::string out = fresh("roste");
    Outcome r = good(grpo(out, {"--weights", "int4:channel", "--activations", "int4:token:asym", "--methods",
                                "roste:rotate=all", "--beta", "0.01"}));
    EXPECT_NE(r.out.find("rotated     q,k,v of layers 0-1; o of layers 0-1"), std::string::npos) << r.out;
    const std::vector<json> rows = read_lines(out + "/metrics.jsonl");
    ASSERT_EQ(rows.size(), 2u);
    check_metrics(rows, {"kl", "roste/rotated"});
    EXPECT_EQ(number(rows[0], "kl"), 0.0);
    EXPECT_GT(number(rows[1], "kl"), 0.0);
    EXPECT_EQ(number(rows[0], "roste/rotated"), 1.0);
    EXPECT_EQ(read_json(out + "/checkpoint-2/quantizer.json")["hadamard"], "all");
    refused(2, grpo(fresh("roste"), {"--methods", "roste"}), {"--methods roste: no linear is quantized"});
}

TEST(Policies, AContainerOfOtherCodesIsRefused) {
    const std::string out = fresh("quantized"), checkpoint = out + "/checkpoint-0";
    good(quantize(out, {"--train_data", sums}));
    for (const char* weights : {"int8:g16:sym", "int3:g16:sym", "int4:g32:sym", "nf4:g16", "int4:g16; down=none"}) {
        write_text(checkpoint + "/quantizer.json", json{{"weights", weights}}.dump());
        refused(1, eval_of(checkpoint),
                {"quantizer.json says --weights", "compressed-tensors weights are int4:g16:sym"});
    }
}

// A part, a layer, a pattern, each with a quantizer of its own: shown, trained alike by sampler and trainer, saved and
// found again, exported where the container holds it
TEST(MixedPrecision, IsShownTrainedSavedAndFoundAgain) {
    const std::string rules = "int4:g16; k,down=int8:channel; layers.1.up=none; *.v=nf4:g16; layers.0.v=int3:g16:asym";
    const std::string text =
        "int4:g16:sym; k,down=int8:channel:sym; layers.1.up=none; *.v=nf4:g16; layers.0.v=int3:g16:asym";
    const Args kv = {"--kv_cache", "int8:token; layers.1=none", "--activations", "none; down=int8:token"};
    for (const char* scale : {"dynamic", "learned"}) {
        const bool learned = std::string(scale) == "learned";  // trains integers alone
        const std::string used = learned ? "int4:g16; k,down=int8:channel; layers.1.up=none" : rules,
                          said = learned ? "int4:g16:sym; k,down=int8:channel:sym; layers.1.up=none" : text;
        std::string out = fresh("mixed"), eval = fresh("eval"), again = fresh("again");
        Outcome r = good(grpo(out, Args{"--weights", used, "--qat_scale", scale, "--learning_rate", "0.01"} + kv));
        EXPECT_NE(r.out.find("int8:channel:sym"), std::string::npos) << r.out;
        EXPECT_NE(r.out.find("k,down of layers 0-1"), std::string::npos) << r.out;
        EXPECT_NE(r.out.find("bits a weight  up of layers 1"), std::string::npos) << r.out;
        if (!learned) {
            EXPECT_NE(r.out.find("rules 4 and 5 both name layers.0.v; the later one wins"), std::string::npos) << r.out;
        }
        EXPECT_EQ(read_json(out + "/summary.json")["weights"], said);
        EXPECT_EQ(read_json(out + "/summary.json")["kv_cache"], "int8:token:sym; layers.1=none");
        EXPECT_EQ(read_json(out + "/summary.json")["activations"], "none; down=int8:token:sym");
        for (const json& row : read_lines(out + "/metrics.jsonl"))
            EXPECT_EQ(number(row, "sampling/sampling_logp_difference/max"), 0.0);
        const std::string checkpoint = out + "/checkpoint-2";
        r = good({"eval", "--model", checkpoint, "--eval_data", problems, "--eval_n", "8", "--max_completion_length",
                  "16", "--output_dir", eval});
        EXPECT_NE(r.err.find("trained as --weights '" + said), std::string::npos) << r.err;
        EXPECT_EQ(read_json(eval + "/summary.json")["weights"], said);
        EXPECT_EQ(read_json(eval + "/summary.json")["kv_cache"], "int8:token:sym; layers.1=none");
        // exported as plain weights it is the same function
        good({"export", "--model", checkpoint, "--format", "hf", "--output_dir", again});
        const Args prompt = {"--prompt", "3+4=?\n#### 7", "--kv_cache", "none", "--activations", "none"};
        json mixed = json::parse(good(Args{"logprobs", "--model", checkpoint} + prompt).out)["logprobs"];
        json plain =
            json::parse(good(Args{"logprobs", "--model", again, "--weights", "none"} + prompt).out)["logprobs"];
        json full =
            json::parse(good(Args{"logprobs", "--model", checkpoint, "--weights", "none"} + prompt).out)["logprobs"];
        if (!bf16_build) { EXPECT_EQ(mixed, plain); }
        EXPECT_NE(mixed, full);
        // a container of one format cannot hold it and says which linear; compressed-tensors holds what it knows at all
        auto exported = [&](const char* format, const std::string& folder) {
            return Args{"export", "--model",      checkpoint, "--weights",    said,  "--format",
                        format,   "--save_dtype", "float32",  "--output_dir", folder};
        };
        if (!learned) {
            refused(1, exported("gptq", fresh("never")), {"gptq cannot hold", "layers.0", "others have int4:g16:sym"});
            refused(1, exported("compressed-tensors", fresh("never")), {"compressed-tensors", "v_proj", "nf4"});
            continue;
        }
        std::string groups = fresh("groups");
        good(exported("compressed-tensors", groups));
        EXPECT_EQ(read_json(groups + "/config.json")["quantization_config"]["config_groups"].size(), 2u);
        r = good(Args{"logprobs", "--model", groups} + prompt);
        EXPECT_NE(r.err.find("read as --weights " + said), std::string::npos) << r.err;
        if (!bf16_build) { EXPECT_EQ(json::parse(r.out)["logprobs"], mixed); }
        fs::remove(groups + "/quantizer.json");  // the container alone
        r = good(Args{"logprobs", "--model", groups} + prompt);
        EXPECT_NE(r.err.find("none; q,v,o,gate,layers.0.up=int4:g16:sym; k,down=int8:channel:sym"), std::string::npos)
            << r.err;
        if (!bf16_build) { EXPECT_EQ(json::parse(r.out)["logprobs"], mixed); }
    }
}

TEST(MixedPrecision, BadInput) {
    std::string out = fresh("never");
    refused(2, grpo(out, {"--weights", "int4:g16; layers.7=none"}), {"--weights", "'layers.7'", "names nothing"});
    std::string many = "int4:g16";
    for (int i = 0; i < 256; i++) many += "; q=none";
    refused(2, grpo(out, {"--weights", many}), {"--weights", "more than 256 rules"});
    refused(2, grpo(out, {"--weights", "int4:g16; downn=none"}), {"'downn'", "names nothing"});
    refused(2, grpo(out, {"--weights", "int4:g16; *.x_proj.*=none"}), {"'*.x_proj.*'", "names nothing"});
    std::string stars;  // a pattern that must not be tried in every way
    for (int i = 0; i < 40; i++) stars += "*l";
    refused(2, grpo(out, {"--weights", "int4:g16; " + stars + "=none"}), {stars, "names nothing"});
    refused(2, grpo(out, {"--weights", "int4:g16; int8:channel"}), {"int8:channel", "NAMES="});
    refused(2, grpo(out, {"--weights", "int4:g16; =int8:channel"}), {"empty name"});
    refused(2, grpo(out, {"--weights", "int4:g16; down=int9"}), {"int9"});
    refused(2, grpo(out, {"--weights", "int4:g16; down=int4:g128"}), {"g128", "down_proj"});
    refused(2, grpo(out, {"--weights", "int4:g16; q=none", "--quantize_layers", "q"}),
            {"--quantize_layers", "--weights"});
    refused(2, grpo(out, {"--activations", "int8:token; k=none"}), {"q", "same input"});
    refused(2, grpo(out, {"--activations", "none; head=int8:token"}), {"'head'", "names nothing"});
    refused(2, grpo(out, {"--kv_cache", "int8:token; q=none"}), {"'q'", "layers.0"});
    EXPECT_FALSE(fs::exists(out));
}

TEST(Flips, ARunThatDoesNotMoveTheQuantizedModelSaysSo) {
    for (const char* rate : {"1e-9", "1e-2"}) {
        const Args args = grpo(fresh("out"), {"--weights", "int4:g32", "--learning_rate", rate, "--lr_scheduler_type",
                                              "constant", "--max_steps", "12"});
        Outcome r = run(args);
        EXPECT_EQ(r.status, 0) << shown_run(args, r);
        const std::string warning = "warning: for 10 steps no code has flipped";
        const size_t at = r.err.find(warning);
        EXPECT_EQ(at != std::string::npos, rate == std::string("1e-9")) << shown_run(args, r);
        if (at == std::string::npos) continue;
        EXPECT_EQ(r.err.find(warning, at + 1), std::string::npos) << "said twice";
        for (const char* part : {"--learning_rate 1.0e-09", "--rounding stochastic", "--qat_scale learned"})
            EXPECT_NE(r.err.find(part), std::string::npos) << part;
    }
}
