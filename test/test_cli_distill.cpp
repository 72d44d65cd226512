// distill, sft on a task, optimizers, as a user runs them: what they leave, and what is refused.
#include "cli.h"

static Args distill(const std::string& model, const std::string& out, const Args& more = {}, int steps = 2) {
    return Args{"distill",
                "--model",
                model,
                "--train_data",
                sums,
                "--max_steps",
                std::to_string(steps),
                "--learning_rate",
                "0.001",
                "--output_dir",
                out} +
           more;
}

// int2 codes of the trained model, written by quantize, which remembers what it quantized
static std::string quantized() {
    static std::string path;
    if (path.empty()) {
        path = fresh("quantized") + "/checkpoint-0";
        good({"quantize", "--model", trained, "--weights", "int2:g16:asym", "--ptq", "rtn", "--output_dir",
              fs::path(path).parent_path()});
    }
    return path;
}

TEST(Distill, FromTheModelThatWasQuantized) {
    std::string out = fresh("distill");
    EXPECT_EQ(read_json(quantized() + "/source.json")["path"], fs::absolute(trained).lexically_normal().string());
    Outcome r = good(distill(quantized(), out, {"--eval_text", sums}, 12));
    EXPECT_NE(r.out.find("teacher " + trained), std::string::npos) << r.out;
    EXPECT_NE(r.out.find("the teacher"), std::string::npos) << "a line of the memory plan";
    std::vector<json> rows = read_lines(out + "/metrics.jsonl");
    ASSERT_EQ(rows.size(), 12u);
    for (const json& row : rows)
        for (const char* key :
             {"loss", "grad_norm", "kd/divergence", "kd/cross_entropy", "kd/agreement", "kd/rest_mass"})
            EXPECT_GE(number(row, key), 0.0) << key;
    json held_out = read_json(out + "/summary.json")["held_out_text"];
    for (const char* when : {"before", "after"})
        for (const char* key : {"kl", "log_loss", "agreement", "tokens"})
            EXPECT_GT(number(held_out[when], key), 0.0) << key;
    // the student goes on from where it is, from the same teacher
    std::string more = fresh("more");
    r = good(distill(out + "/checkpoint-12", more, {"--weights", "int2:g16:asym"}, 1));
    EXPECT_NE(r.out.find("teacher " + trained), std::string::npos) << r.out;
}

TEST(Distill, AStudentComesCloserToItsTeacher) {
    std::string out = fresh("distill");
    good(distill(base, out, {"--teacher", trained, "--weights", "int4:g16", "--eval_text", sums}, 30));
    std::vector<json> rows = read_lines(out + "/metrics.jsonl");
    ASSERT_EQ(rows.size(), 30u);
    EXPECT_LT(number(rows[29], "kd/divergence"), 0.7 * number(rows[0], "kd/divergence"));
    json held_out = read_json(out + "/summary.json")["held_out_text"];
    EXPECT_LT(number(held_out["after"], "kl"), number(held_out["before"], "kl"));
}

TEST(Distill, EachWayOfChoosingCompletions) {
    for (const Args& more :
         {Args{"--lmbda", "1"}, Args{"--lmbda", "0.5"}, Args{"--seq_kd"}, Args{"--seq_kd", "--seq_kd_correct"},
          Args{"--kd_loss", "reverse_kl", "--kd_temperature", "2"}, Args{"--kd_loss", "jsd", "--jsd_beta", "0.1"},
          Args{"--kd_top_k", "5", "--kd_alpha", "0.5"},
          Args{"--kd_top_p", "0.9", "--lora_r", "4", "--weights", "int4:g16"}}) {
        std::string out = fresh("distill");
        const bool samples = more[0] == "--lmbda" || more[0] == "--seq_kd";
        // a problem has an answer where an example has a completion; both have prompts
        const bool problems_alone = samples && more.back() != "0.5";
        Args args = {"distill",
                     "--model",
                     trained,
                     "--weights",
                     "int3:g16",
                     "--train_data",
                     problems_alone ? problems : sums,
                     "--max_steps",
                     "4",
                     "--max_completion_length",
                     "16",
                     "--output_dir",
                     out};
        if (std::find(more.begin(), more.end(), "--weights") != more.end())
            args.erase(args.begin() + 3, args.begin() + 5);
        good(args + more);
        std::vector<json> rows = read_lines(out + "/metrics.jsonl");
        ASSERT_EQ(rows.size(), 4u);
        const std::string completions = read_text(out + "/completions.jsonl");
        EXPECT_EQ(completions.empty(), !samples) << more[0];
        if (more[0] == "--lmbda") {
            EXPECT_NE(completions.find("\"by\":\"student\""), std::string::npos) << completions.substr(0, 300);
        }
        if (more[0] == "--seq_kd") {
            EXPECT_NE(completions.find("\"by\":\"teacher\""), std::string::npos) << completions.substr(0, 300);
        }
        if (more[0] == "--kd_top_k") { EXPECT_EQ(number(rows[0], "kd/support"), 5.0); }
        if (more.back() == "--seq_kd_correct") {
            for (const json& row : read_lines(out + "/completions.jsonl"))
                EXPECT_NE(row["completion"].get<std::string>().find(row["gold"].get<std::string>()), std::string::npos);
        }
    }
}

TEST(Distill, ATaskNeedsNoFile) {
    std::string out = fresh("sft"), kd = fresh("distill");
    Outcome r = good({"sft", "--task", "arithmetic", "--max_steps", "2", "--per_device_train_batch_size", "4",
                      "--eval_n", "2", "--output_dir", out});
    EXPECT_NE(r.out.find("held out after"), std::string::npos) << r.out;
    r = good({"distill", "--model", out + "/checkpoint-2", "--weights", "int4:g32", "--task", "arithmetic",
              "--max_steps", "1", "--per_device_train_batch_size", "4", "--eval_n", "2", "--output_dir", kd});
    EXPECT_NE(r.out.find("KL from the teacher"), std::string::npos) << r.out;
}

TEST(Distill, Refusals) {
    std::string out = fresh("never");
    auto refuse = [&](const Args& more, const Args& parts, int status = 2) {
        refused(status, distill(trained, out, Args{"--weights", "int4:g16"} + more), parts);
    };
    refused(2, {"distill", "--train_data", sums, "--output_dir", out}, {"distill needs --model"});
    refused(2, {"distill", "--model", trained, "--output_dir", out}, {"--train_data", "--task arithmetic"});
    refuse({"--kd_alpha", "2"}, {"--kd_alpha 2", "[0, 1]"});
    refuse({"--kd_top_k", "260"}, {"--kd_top_k 260", "259"});
    refuse({"--jsd_beta", "0.2"}, {"--jsd_beta", "--kd_loss jsd"});
    refuse({"--kd_loss", "kl"}, {"--kd_loss kl", "forward_kl"});
    refuse({"--seq_kd_correct"}, {"--seq_kd"});
    refuse({"--lmbda", "0.5", "--max_completion_length", "16", "--per_device_train_batch_size", "200"},
           {"100 problems", "200", "--per_device_train_batch_size"}, 1);
    refuse({"--seq_kd", "--lmbda", "1"}, {"--lmbda 1", "--seq_kd"});
    refuse({"--teacher", root + "/none"}, {"none"}, 1);
    refused(
        1,
        {"distill", "--model", trained, "--train_data", jsonl("bare", "{\"prompt\": \"1+1\"}\n"), "--output_dir", out},
        {"bare.jsonl:1", "completion"});
    // another vocabulary
    std::string other = model_copy();
    std::string tokenizer = read_text(other + "/tokenizer.json");
    const size_t at = tokenizer.find("\"!\"");
    ASSERT_NE(at, std::string::npos);
    const size_t next = tokenizer.find("\"\\\"\"", at);
    ASSERT_NE(next, std::string::npos);
    tokenizer.replace(next, 4, "\"!\""), tokenizer.replace(at, 3, "\"\\\"\"");
    write_text(other + "/tokenizer.json", tokenizer);
    refuse({"--teacher", other}, {"another vocabulary", "token"}, 1);
    // too large for memory: said before a weight is read, with the line of the plan
    std::string large = model_copy();
    json config = read_json(large + "/config.json");
    config["hidden_size"] = config["intermediate_size"] = 65536, config["num_hidden_layers"] = 64;
    write_text(large + "/config.json", config.dump());
    refuse({"--teacher", large}, {"out of memory", "the teacher", "--teacher"}, 1);
    EXPECT_FALSE(fs::exists(out));
}

TEST(Distill, ATeacherThatIsGoneOrHasChangedIsSaid) {
    std::string source = model_copy(), out = fresh("quantized"), never = fresh("never");
    good({"quantize", "--model", source, "--weights", "int4:g16", "--ptq", "rtn", "--output_dir", out});
    Tensors tensors = tiny_tensors();
    tensors["model.norm.weight"].second[3] += 0.25f;
    write_safetensors(source + "/model.safetensors", tensors);
    refused(2, distill(out + "/checkpoint-0", never), {source, "changed", "--teacher"});
    fs::remove_all(source);
    refused(2, distill(out + "/checkpoint-0", never), {source, "gone", "--teacher"});
    fs::remove(out + "/checkpoint-0/source.json");
    refused(2, distill(out + "/checkpoint-0", never), {"does not say", "--teacher"});
    std::string student = fresh("distill");
    good(distill(out + "/checkpoint-0", student, {"--teacher", base}));
    EXPECT_FALSE(fs::exists(student + "/checkpoint-2/source.json")) << "a teacher is not what the student was made of";
}

// GPTQ, then QAT: what stands behind the codes is no model, so that a teacher that is named teaches with its codes
TEST(Distill, ANamedTeacherIsWhatItsFolderSays) {
    const std::string gptq = fresh("quantized"), qat = fresh("sft"), student = fresh("distill");
    good({"quantize", "--model", trained, "--weights", "int2:g16:asym", "--activations", "int8:token",
          "--calibration_samples", "8", "--calibration_length", "32", "--train_data", sums, "--output_dir", gptq});
    good({"sft", "--model", gptq + "/checkpoint-0", "--train_data", sums, "--max_steps", "1", "--learning_rate", "1e-4",
          "--output_dir", qat});
    const std::string teacher = qat + "/checkpoint-1";
    ASSERT_TRUE(fs::exists(teacher + "/quantizer.safetensors"));
    for (const std::string& folder : {teacher, gptq + "/checkpoint-0"}) {
        const std::string out = fresh("distill");
        good(distill(folder, out, {"--teacher", folder, "--eval_text", sums}, 0));
        const json before = read_json(out + "/summary.json")["held_out_text"]["before"];
        EXPECT_LT(number(before, "kl"), 1e-7) << folder;
        EXPECT_EQ(number(before, "agreement"), 1.0) << folder;
    }
    // a student's own self is without its quantizers
    fs::remove(teacher + "/source.json");
    const Outcome r = good(distill(teacher, student, {"--eval_text", sums}, 0));
    EXPECT_NE(r.err.find("the weights behind its codes"), std::string::npos) << r.err;
    EXPECT_GT(number(read_json(student + "/summary.json")["held_out_text"]["before"], "kl"), 1e-3);
}

TEST(Optimizers, EachTrainsAndGroupsHaveTheirRates) {
    for (const std::string name : {"adamw", "adamw_bf16", "adamw_8bit", "muon"}) {
        std::string out = fresh("sft");
        Outcome r = good({"sft", "--model", base, "--train_data", sums, "--max_steps", "20", "--learning_rate", "0.01",
                          "--optim", name, "--weight_decay", "0.01", "--output_dir", out});
        EXPECT_NE(r.out.find(name + " for "), std::string::npos) << r.out;
        std::vector<json> rows = read_lines(out + "/metrics.jsonl");
        EXPECT_LT(number(rows.back(), "loss"), 0.5 * number(rows[0], "loss")) << name;
    }
    // a group of rate 0 stays as it is
    std::string out = fresh("sft");
    good({"sft", "--model", base, "--train_data", sums, "--max_steps", "2", "--learning_rate", "0.01",
          "--group_learning_rates", "embeddings=0, norms=0.001", "--output_dir", out});
    auto tensor = [](const std::string& folder, const std::string& name) {
        const std::string file = read_text(folder + "/model.safetensors");
        uint64_t header = 0;
        memcpy(&header, file.data(), 8);
        json at = json::parse(file.substr(8, header))[name]["data_offsets"];
        return file.substr(8 + header + at[0].get<size_t>(), at[1].get<size_t>() - at[0].get<size_t>());
    };
    const std::string trained_folder = out + "/checkpoint-2";
    EXPECT_EQ(tensor(trained_folder, "model.embed_tokens.weight"), tensor(base, "model.embed_tokens.weight"));
    EXPECT_NE(tensor(trained_folder, "model.norm.weight"), tensor(base, "model.norm.weight"));
}

TEST(Optimizers, Refusals) {
    std::string out = fresh("never");
    auto refuse = [&](const Args& more, const Args& parts) {
        refused(2, Args{"sft", "--model", base, "--train_data", sums, "--output_dir", out} + more, parts);
    };
    refuse({"--optim", "muno"}, {"--optim muno", "muon", "adamw_8bit"});
    refuse({"--optim", "muon", "--lora_r", "4", "--weights", "none"},
           {"--optim muon", "adamw for 1 tensor", "--optim adamw"});
    refuse({"--group_learning_rates", "embedding=0"}, {"embedding", "embeddings"});
    refuse({"--group_learning_rates", "norms"}, {"norms", "GROUP=NUMBER"});
    refuse({"--group_weight_decays", "norms=x"}, {"norms", "x", "[0, 10]"});
    refuse({"--group_weight_decays", "norms=0,norms=1"}, {"norms", "twice"});
    refuse({"--group_learning_rates", "adapters=0"}, {"adapters", "nothing"});
    refuse({"--muon_momentum", "0.9"}, {"--muon_momentum", "--optim muon"});
    EXPECT_FALSE(fs::exists(out));
}
