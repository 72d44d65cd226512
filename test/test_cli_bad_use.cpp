// Bad use and models that cannot be read, as a user meets them: 2 for bad use and 1 for a failed run, each with one line on
// stderr that opens with "train_qrl: " and says what, where and what to do, and nothing half-written.
#include <sched.h>
#include "cli.h"

// ---------------------------------------------------------------------------------------------------------------------
// bad use: exit 2

TEST(BadUse, Flags) {
    std::string out = fresh("never");
    refused(2, {"--learning_rat", "1"}, {"--learning_rat", "--learning_rate", "--help"});
    refused(2, {"sft", "--max_lenght=3"}, {"--max_lenght", "--max_length"});
    refused(2, {"--num_generations", "1", "--output_dir", out}, {"--num_generations 1", "out of range", "[2, 1024]"});
    refused(2, {"--max_steps", "3.5", "--output_dir", out}, {"--max_steps 3.5", "not an integer"});
    refused(2, {"--max_steps", "99999999999999999999", "--output_dir", out}, {"--max_steps", "out of range"});
    refused(2, {"--temperature", "hot", "--output_dir", out}, {"--temperature hot", "not a number"});
    refused(2, {"--temperature", "nan", "--output_dir", out}, {"--temperature nan"});
    refused(2, {"--temperature", "0", "--output_dir", out}, {"--temperature 0", "greedy"});
    refused(2, {"--policy_loss", "clipp", "--output_dir", out}, {"--policy_loss clipp", "clip, cispo"});
    refused(2, {"--loss_type", "drgrpo", "--output_dir", out}, {"--loss_type drgrpo", "dr_grpo"});
    refused(2, {"--gradient_checkpointing", "yes", "--output_dir", out},
            {"--gradient_checkpointing yes", "true or false"});
    refused(2, {"eval", "--learning_rate", "1", "--output_dir", out}, {"--learning_rate", "eval", "grpo, sft"});
    refused(2, {"tokenize", "--temperature", "1"}, {"--temperature", "tokenize"});
    refused(2, {"--model"}, {"--model", "needs a value"});
    refused(2, {"--max_steps", "--seed", "1"}, {"--max_steps", "needs a value"});
    refused(2, {"--seed", "1", "--seed", "2"}, {"--seed", "twice"});
    refused(2, {"gpro"}, {"gpro", "unknown command", "grpo"});
    refused(2, {"sft", "grpo"}, {"grpo", "unexpected argument"});
    refused(2, {"-x"}, {"-x"});
    refused(2, {std::string("--a\nb\x1b[31m"), "1"}, {"\\n"});  // stays one line
    EXPECT_FALSE(fs::exists(out));
}

TEST(BadUse, Values) {
    std::string out = fresh("never");
    refused(2, {"--reward_funcs", "exakt", "--output_dir", out}, {"--reward_funcs", "exakt", "exact"});
    refused(2, {"--reward_funcs", "exact,format", "--reward_weights", "1", "--output_dir", out},
            {"--reward_weights", "2 rewards"});
    refused(2, {"--reward_funcs", "exact,cosine:max=3", "--output_dir", out},
            {"--reward_funcs cosine: max", "max_len"});
    refused(2, {"--reward_funcs", "overlong", "--dynamic_sampling", "--output_dir", out},
            {"--dynamic_sampling needs a reward that says right or wrong"});
    refused(2, {"--reward_weights", "0", "--dynamic_sampling", "--output_dir", out}, {"and has a weight"});
    refused(2, {"--dynamic_sampling_max_batches", "3", "--output_dir", out}, {"belongs to --dynamic_sampling"});
    refused(2, {"--reward_weights", "x", "--output_dir", out}, {"--reward_weights", "not a number"});
    refused(2, {"--reward_weights", "inf", "--output_dir", out}, {"--reward_weights", "'inf' is not a number in"});
    refused(2, {"--reward_weights", "1e30", "--output_dir", out}, {"--reward_weights", "'1e30' is not a number in"});
    refused(2, {"--micro_batch_tokens", "4611686018427387904", "--output_dir", out}, {"out of range"});
    refused(2, {"--num_generations", "1000000000", "--output_dir", out}, {"out of range; allowed: [2, 1024]"});
    refused(2, {"--weights", "int7:g32", "--output_dir", out}, {"--weights int7:g32", "int4"});
    refused(2, {"--weights", "int4", "--output_dir", out}, {"--weights int4", "g32"});
    refused(2, {"--weights", "int4:g33", "--output_dir", out}, {"--weights int4:g33", "g32"});
    refused(2, {"--weights", "int4:g32:sim", "--output_dir", out}, {"int4:g32:sim", "asym"});
    refused(2, {"--weights", "", "--output_dir", out}, {"--weights", "none"});
    refused(2, {"--quantize_layers", "q,gates", "--output_dir", out}, {"--quantize_layers", "gates", "gate"});
    refused(2, {"--task", "chess", "--output_dir", out}, {"--task chess", "arithmetic"});
    refused(2, {"--embedded_size", "4x100", "--output_dir", out}, {"--embedded_size 4x100", "multiple of 64"});
    refused(2, {"--embedded_size", "2x64", "--model", trained, "--task", "arithmetic", "--output_dir", out},
            {"--embedded_size 2x64", "--model"});
    refused(2, {"--task", "chains:7", "--output_dir", out}, {"chains has levels 1 to 5", "chains:hard"});
    refused(2, {"--task", "chains:hard", "--output_dir", out}, {"--task chains:hard", "never trained on"});
    refused(2, {"--task", "chains,words", "--output_dir", out}, {"--task chains,words"});
    refused(2, {"--train_data", problems, "--output_dir", out}, {"--train_data", "--model"});
    refused(2, {"--model", trained, "--output_dir", out}, {"--train_data", "--task arithmetic"});
    refused(2, {"--model", trained, "--eval_data", problems, "--output_dir", out},
            {"--train_data", "--task arithmetic"});
    refused(2, {"eval", "--model", trained, "--output_dir", out}, {"--eval_data", "--task arithmetic"});
    refused(2, {"eval", "--output_dir", out}, {"eval needs --model"});
    refused(2, {"generate", "--prompt", "x"}, {"generate needs --model"});
    refused(2, {"logprobs", "--prompt", "x"}, {"logprobs needs --model"});
    refused(2, {"sft", "--model", trained, "--output_dir", out}, {"--train_data", "--task arithmetic"});
    refused(2, grpo(out, {"--weights", "int4:g33"}), {"--weights int4:g33"});
    refused(2, grpo(out, {"--cold_start_loss", "1"}), {"--cold_start_loss"});
    refused(2, grpo(out, {"--chat_template", "on"}), {"--chat_template on", "no chat template"});
    refused(2, grpo(out, {"--prompt_template", "no place"}), {"--prompt_template", "{question}"});
    EXPECT_FALSE(fs::exists(out));
}

TEST(BadUse, GroupSizeDoesNotDivide) {
    std::string out = fresh("never");
    Args parts = {"int4:g128", "does not divide", "model.layers.0.", "proj.weight"};
    refused(2, grpo(out, {"--weights", "int4:g128"}), parts);
    EXPECT_FALSE(fs::exists(out)) << "a folder of a run that never began";
    refused(2, {"eval", "--model", trained, "--task", "arithmetic", "--weights", "int4:g128", "--output_dir", out},
            parts);
    EXPECT_FALSE(fs::exists(out));
    refused(2, {"generate", "--model", trained, "--weights", "int4:g128", "--prompt", "1"}, parts);
}

// sizes that wrap around in 64 bits
TEST(BadUse, SizesBeyondAnyMachine) {
    json config = tiny_config;
    for (const char* key : {"num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"})
        config[key] = 1024;
    config["max_position_embeddings"] = 1 << 27;
    const std::string m = model_copy();
    write_text(m + "/config.json", config.dump());
    refused(1,
            {"eval", "--model", m, "--eval_data", problems, "--eval_samples", "1024", "--rollout_batch", "65536",
             "--max_completion_length", "1048576", "--plan"},
            {"out of memory: KV cache of the samples would take more than 2^56 bytes", "lower --rollout_batch"});
}

TEST(BadUse, MoreThreadsThanAreOfUse) {
    const Outcome r = good({"logprobs", "--model", base, "--prompt", "1+1", "--threads", "4096"});
    EXPECT_EQ(r.err.rfind("warning: --threads 4096 is more than the cores: ", 0), 0u) << r.err;
    EXPECT_NE(r.err.find(" are started"), std::string::npos) << r.err;
    const int cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
    const Outcome some = good({"logprobs", "--model", base, "--prompt", "1+1", "--threads", std::to_string(cores + 1)});
    EXPECT_NE(some.err.find("threads then wait for each other"), std::string::npos) << some.err;
    EXPECT_EQ(good({"logprobs", "--model", base, "--prompt", "1+1", "--threads", "1"}).err, "");
}

// as under taskset: threads are counted by the CPUs that are allowed, and the same bits come of one
TEST(Threads, AffinityIsRespected) {
    cpu_set_t before, one;
    ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++)
        if (CPU_ISSET(i, &before)) CPU_SET(i, &one);
    Args args = {"eval", "--model", base, "--eval_data", problems, "--max_completion_length", "4", "--output_dir"};
    args.push_back(fresh("affinity"));
    Args two = args;
    two.insert(two.end(), {"--threads", "2", "--overwrite_output_dir"});
    args.push_back("--overwrite_output_dir");
    const Outcome all = good(two);
    ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
    RunSetting counted;
    counted.own_threads = true;
    const Outcome alone = run(args, counted), warned = good(two);
    ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
    EXPECT_NE(alone.out.find("cpu, 1 thread"), std::string::npos) << alone.out;
    EXPECT_NE(warned.err.find("--threads 2 is more than the cores: 1 thread"), std::string::npos) << warned.err;
    auto results = [](const std::string& out) {  // without their speed
        const size_t first = out.find("\nset  "), last = out.find("percent, in brackets");
        return first < last && last != out.npos ? out.substr(first, last - first) : out;
    };
    EXPECT_EQ(results(all.out), results(alone.out));
}

// One binary, each instruction set that this CPU has: the sampler agrees with the trainer to the bit in each, and they with
// each other to rounding.
TEST(InstructionSets, EachTrainsAndAgrees) {
    std::vector<double> first;
    for (const char* set : {"portable", "avx2", "avx512", "avx512_bf16", "amx_stand_in"}) {
        RunSetting setting;
        setting.instruction_set = set;
        const Outcome scored = run({"logprobs", "--model", trained, "--prompt", "3+4=?\n#### 7"}, setting);
        if (scored.status == 2) {  // a lesser CPU
            EXPECT_NE(scored.err.find(std::string("TRAIN_QRL_CPU_ISA=") + set + ": this CPU has"), std::string::npos)
                << scored.err;
            continue;
        }
        ASSERT_EQ(scored.status, 0) << scored.err;
        const std::vector<double> logps = json::parse(scored.out)["logprobs"];
        if (first.empty()) first = logps;
        for (size_t i = 0; i < logps.size(); i++) EXPECT_NEAR(logps[i], first[i], bf16_build ? 0.1 : 1e-4) << set;
        const std::string out = fresh("isa");
        const Outcome r = run(grpo(out, {"--weights", "int4:g16"}), setting);
        ASSERT_EQ(r.status, 0) << r.err;
        const bool capped = !bf16_build && std::string(set) != "portable" && std::string(set) != "avx2";
        const char* name = capped                        ? ", AVX-512\n"
                           : !strcmp(set, "portable")    ? ", portable loops\n"
                           : !strcmp(set, "avx2")        ? ", AVX2\n"
                           : !strcmp(set, "avx512")      ? ", AVX-512\n"
                           : !strcmp(set, "avx512_bf16") ? ", AVX-512 BF16\n"
                                                         : ", AMX, computed in plain loops\n";
        EXPECT_NE(r.out.find(name), std::string::npos) << set << ": " << r.out.substr(0, 2000);
        EXPECT_EQ(number(read_lines(out + "/metrics.jsonl")[0], "sampling/sampling_logp_difference/max"), 0.0) << set;
    }
}

TEST(InstructionSets, BadNameIsBadUse) {
    RunSetting setting;
    setting.instruction_set = "avx1024";
    const Outcome r = run({"logprobs", "--model", trained, "--prompt", "1"}, setting);
    EXPECT_EQ(r.status, 2);
    EXPECT_NE(r.err.find("TRAIN_QRL_CPU_ISA=avx1024: portable, avx2"), std::string::npos) << r.err;
}

TEST(BadUse, Export) {
    std::string out = fresh("never");
    auto args = [&](const Args& more) {
        Args a = {"export", "--model", trained, "--output_dir", out};
        a.insert(a.end(), more.begin(), more.end());
        return a;
    };
    refused(2, {"export", "--format", "gptq"}, {"export needs --model"});
    refused(2, {"export", "--model", trained, "--format", "hf"}, {"export needs --output_dir"});
    refused(2, args({}), {"--format", "compressed-tensors", "gptq_v2"});
    refused(2, args({"--format", "gptqv2"}), {"gptqv2", "did you mean", "gptq_v2"});
    refused(2, args({"--format", "gptq"}), {"no linear is quantized", "--weights"});
    refused(2, args({"--format", "gptq", "--weights", "none"}), {"--weights none", "hf"});
    refused(2, args({"--format", "gptq", "--weights", "int4:g128"}), {"int4:g128", "does not divide"});
    refused(1, args({"--format", "awq", "--weights", "int8:g32"}), {"AWQ", "layers.0", "q_proj", "4 bits"});
    refused(1, args({"--format", "gptq", "--weights", "int6:g32"}), {"GPTQ", "layers.0", "2, 3, 4 and 8 bits"});
    EXPECT_FALSE(fs::exists(out));
    EXPECT_FALSE(fs::exists(out + ".train_qrl-new"));
    fs::create_directory(out);
    write_text(out + "/mine", "x");
    refused(1, args({"--format", "hf"}), {out, "exists", "--overwrite_output_dir"});
    EXPECT_EQ(read_text(out + "/mine"), "x");
    refused(1, args({"--format", "hf", "--overwrite_output_dir"}), {out + " holds 'mine'", "did not write", "move it"});
    EXPECT_EQ(read_text(out + "/mine"), "x");
}

// an export replaces an export, and neither its source nor what somebody else has put there
TEST(BadUse, ExportOverItsSource) {
    const std::string out = fresh("out"), model = out + "/m";
    fs::create_directories(out);
    fs::copy(trained, model, fs::copy_options::recursive);
    auto to = [](const std::string& from, const std::string& to, const char* format = "hf") {
        return Args{"export", "--model", from, "--format", format, "--output_dir", to, "--overwrite_output_dir"};
    };
    refused(2, to(model, out), {"--model " + model + " would be replaced with " + out, "another --output_dir"});
    refused(2, to(model, model + "/"), {"--model " + model + " would be replaced"});
    fs::create_directory_symlink(out, out + "-link");
    refused(2, to(model, out + "-link"), {"--model " + model + " would be replaced"});
    EXPECT_TRUE(fs::exists(model + "/model.safetensors"));
    const std::string exported = fresh("exported");
    for (int i = 0; i < 2; i++) good(to(model, exported));
    // GGUF is one file
    const std::string file = fresh("m") + ".gguf";
    for (int i = 0; i < 2; i++) good(to(model, file, "gguf"));
    refused(2, to(file, file, "gguf"), {"--model " + file + " would be replaced"});
    write_text(file, "mine");
    refused(1, to(model, file, "gguf"), {file + " was not written by this program"});
    EXPECT_EQ(read_text(file), "mine");
}

TEST(BadUse, ARunOverItsSource) {
    const std::string model = fresh("model"), out = fresh("out");
    fs::copy(trained, model, fs::copy_options::recursive);
    const std::string config = read_text(model + "/config.json");
    const Args overwrite = {"--overwrite_output_dir", "--model", model};
    refused(1, grpo(model, overwrite), {model + "/config.json was not written by a run of this program"});
    EXPECT_EQ(read_text(model + "/config.json"), config);
    good(grpo(out));
    refused(2, grpo(out, {"--overwrite_output_dir", "--model", out + "/checkpoint-2"}),
            {"--model " + out + "/checkpoint-2 would be replaced"});
    const std::string mine = out + "/checkpoint-2/notes.txt";
    write_text(mine, "mine");
    refused(1, grpo(out, {"--overwrite_output_dir"}), {out + "/checkpoint-2 holds 'notes.txt'", "did not write"});
    EXPECT_EQ(read_text(mine), "mine");
}

// a command whose result is what it prints
TEST(BadUse, AResultThatCannotBePrinted) {
    RunSetting full;
    full.output = "/dev/full";
    full.input = "{\"text\": \"1\"}\n";
    const Args parts = {"standard output cannot be written", "not complete"};
    refused(1, {"tokenize"}, parts, full);
    refused(1, {"logprobs", "--model", trained}, parts, full);
    Outcome r = run({"generate", "--model", trained, "--prompt", "1", "--max_completion_length", "9"}, full);
    EXPECT_EQ(r.status, 1) << shown_run({}, r);
    EXPECT_NE(r.err.find("1 new tokens"), std::string::npos) << "it went on" << shown_run({}, r);
    EXPECT_NE(r.err.find("\ntrain_qrl: standard output cannot be written"), std::string::npos) << shown_run({}, r);
    refused(1, {"--help"}, {"standard output cannot be written", "not complete"}, full);
    refused(1, grpo(fresh("out"), {"--plan"}), parts, full);
}

TEST(BadUse, ConfigFile) {
    std::string path = fresh("config.json");
    refused(2, {"--config", path}, {path, "cannot open"});
    write_text(path, "{\n\"seed\": 1,\n}");
    refused(2, {"--config", path}, {path + ":3:"});
    write_text(path, "{\"seeds\": 1}");
    refused(2, {"--config", path}, {path, "seeds", "seed"});
    write_text(path, "{\"command\": \"sft\", \"num_generations\": 4}");
    refused(2, {"--config", path}, {path, "num_generations", "sft"});
    write_text(path, "{\"seed\": \"one\"}");
    refused(2, {"--config", path}, {path, "seed", "number"});
}

TEST(Help, NamesCommandsAndFlags) {
    EXPECT_NE(good({"--help"}).out.find("--num_generations"), std::string::npos);
    Outcome r = good({"sft", "--help"});
    EXPECT_NE(r.out.find("--max_length"), std::string::npos);
    EXPECT_EQ(r.out.find("--num_generations"), std::string::npos);
    EXPECT_EQ(good({"help", "sft"}).out, r.out);
    const std::string rewards = good({"help", "rewards"}).out;
    for (const char* part :
         {"exact", "(outcome)", "min_wrong=-1  [-100, 100]; ", "TRL's soft_overlong_punishment_reward"})
        EXPECT_NE(rewards.find(part), std::string::npos) << part << rewards;
    EXPECT_EQ(good({"--version"}).out.rfind("train_qrl ", 0), 0u);
}

// ---------------------------------------------------------------------------------------------------------------------
// models that cannot be read: exit 1

// every command that loads a model refuses it alike, and makes no folder
static void refuse_model(const std::string& model, const Args& parts) {
    std::string out = fresh("never");
    refused(1, {"logprobs", "--model", model, "--prompt", "x"}, parts);
    refused(1, {"grpo", "--model", model, "--task", "arithmetic", "--output_dir", out}, parts);
    EXPECT_FALSE(fs::exists(out));
}

TEST(BadModel, Folder) {
    std::string path = fresh("model");
    refuse_model(path, {path, "no such file or folder"});
    fs::create_directory(path);
    refuse_model(path, {path});
    std::string file = fresh("model.bin");
    write_text(file, "x");
    refuse_model(file, {file});
    std::string m = model_copy();
    fs::remove(m + "/config.json");
    refuse_model(m, {m, "config.json"});
    m = model_copy();
    fs::remove(m + "/model.safetensors");
    refuse_model(m, {m, "model.safetensors"});
    m = model_copy();
    fs::remove(m + "/tokenizer.json");
    refuse_model(m, {m, "tokenizer.json"});
}

TEST(BadModel, Config) {
    auto with = [](const std::string& text) {
        std::string m = model_copy();
        write_text(m + "/config.json", text);
        return m;
    };
    auto changed = [&](const std::string& key, const json& value) {
        json config = tiny_config;
        config[key] = value;
        return with(config.dump());
    };
    refuse_model(with("{\"model_type\": \"qwen3\", "), {"config.json", "not valid JSON"});
    refuse_model(with(""), {"config.json", "not valid JSON"});
    refuse_model(with("[]"), {"config.json"});
    refuse_model(changed("model_type", "mamba"), {"config.json", "mamba", "qwen3"});
    refuse_model(changed("num_key_value_heads", 3), {"config.json", "num_attention_heads 4", "num_key_value_heads 3"});
    json qwen2 = tiny_config;
    qwen2["model_type"] = "qwen2";
    qwen2["num_attention_heads"] = 5;
    qwen2.erase("head_dim");
    refuse_model(with(qwen2.dump()), {"config.json", "hidden_size 32", "num_attention_heads 5"});
    refuse_model(changed("num_hidden_layers", 3), {"model.layers.2.", "missing"});
    refuse_model(changed("intermediate_size", 96), {"shape", "mlp.", "[96, 32]"});
    refuse_model(changed("vocab_size", 300), {"shape", "model.embed_tokens.weight", "[300, 32]"});
    std::string few = changed("vocab_size", 100);  // a tokenizer of another model
    Tensors t = tiny_tensors();
    t["model.embed_tokens.weight"].first = {100, 32};
    t["model.embed_tokens.weight"].second.resize(100 * 32);
    write_safetensors(few + "/model.safetensors", t);
    refuse_model(few, {"tokenizer", "259", "100"});
    refuse_model(changed("hidden_size", 1000000000), {"config.json", "hidden_size"});
    json huge = tiny_config;  // each size allowed, their product not: no memory may be taken for it
    huge["hidden_size"] = 65536, huge["intermediate_size"] = 262144, huge["num_hidden_layers"] = 1024;
    refuse_model(with(huge.dump()), {});
}

TEST(BadModel, Safetensors) {
    auto with = [](const std::string& text) {
        std::string m = model_copy();
        write_text(m + "/model.safetensors", text);
        return m;
    };
    std::string whole = read_text(base + "/model.safetensors");
    uint64_t n = 0;
    memcpy(&n, whole.data(), 8);
    json header = json::parse(whole.substr(8, n));
    std::string data = whole.substr(8 + n);
    auto offsets = [&](const char* name, uint64_t begin, uint64_t end) {
        json h = header;
        h[name]["data_offsets"] = {begin, end};
        return with(safetensors_text(h.dump(), data));
    };
    const char* first = "model.embed_tokens.weight";
    const char* second = "model.layers.0.input_layernorm.weight";
    uint64_t size =
        header[second]["data_offsets"][1].get<uint64_t>() - header[second]["data_offsets"][0].get<uint64_t>();
    refuse_model(with(""), {"model.safetensors", "too few"});
    refuse_model(with(whole.substr(0, 5)), {"model.safetensors", "too few"});
    refuse_model(with(whole.substr(0, 100)), {"model.safetensors", "truncated"});
    refuse_model(with(whole.substr(0, whole.size() - 1)), {"model.safetensors", "truncated"});
    refuse_model(with(whole + "x"), {"model.safetensors", "behind the last tensor"});
    refuse_model(with(u64_bytes(1ull << 60) + whole.substr(8)),
                 {"model.safetensors", "header of 1152921504606846976 bytes"});
    refuse_model(with(u64_bytes(~0ull) + whole.substr(8)), {"model.safetensors", "header"});
    refuse_model(offsets(second, 0, size), {"model.safetensors", "overlap"});
    refuse_model(offsets(first, data.size(), data.size() + 259 * 32 * 4), {first, "truncated"});
    refuse_model(offsets(first, 1ull << 62, (1ull << 62) + 259 * 32 * 4), {first});
    refuse_model(offsets(first, ~0ull - 259 * 32 * 4, ~0ull), {first});
    refuse_model(offsets(first, 259 * 32 * 4, 0), {first});
    json h = header;
    h[first]["shape"] = {1ull << 40, 1ull << 40};
    refuse_model(with(safetensors_text(h.dump(), data)), {first});
    h = header;
    h[first]["dtype"] = "F33";
    refuse_model(with(safetensors_text(h.dump(), data)), {first, "F33"});
    h = header;
    h.erase(first);
    refuse_model(with(safetensors_text(h.dump(), data)), {"model.safetensors"});
    refuse_model(with(safetensors_text(std::string(100000, '['), data)), {"model.safetensors"});
}

static std::string model_with(Tensors tensors, const json& config = json::object()) {
    std::string m = model_copy();
    write_safetensors(m + "/model.safetensors", tensors);
    json all = read_json(m + "/config.json");
    all.update(config);
    write_text(m + "/config.json", all.dump());
    return m;
}

TEST(BadModel, MoreThanTheConfigurationSays) {
    auto with = [](const std::string& name, const std::vector<int>& shape, float value) {
        Tensors t = tiny_tensors();
        size_t n = 1;
        for (int d : shape) n *= (size_t)d;
        t[name] = {shape, std::vector<float>(n, value)};
        return model_with(t);
    };
    const std::string l0 = "model.layers.0.";
    const Args of_it = {"change what the model computes", "qwen3 of 2 layers"};
    refuse_model(with(l0 + "self_attn.o_proj.bias", {32}, 0.5f), of_it + Args{l0 + "self_attn.o_proj.bias"});
    refuse_model(with(l0 + "self_attn.q_proj.bias", {64}, 0.5f), of_it + Args{l0 + "self_attn.q_proj.bias"});
    refuse_model(with(l0 + "pre_feedforward_layernorm.weight", {32}, 1.0f), of_it);
    refuse_model(with(l0 + "mlp.up_proj.weight_scale", {64, 1}, 1.0f), of_it);  // nothing says how it is quantized
    refuse_model(with("lm_head.bias", {259}, 1.0f), of_it + Args{"lm_head.bias"});
    refuse_model(model_with(tiny_tensors(), {{"num_hidden_layers", 1}}),
                 {"qwen3 of 1 layers", "model.layers.1.input_layernorm.weight", "and 8 more"});
    const Args ask = {"--prompt", "12+34=", "--model"};
    const std::string plain = good(Args{"logprobs"} + ask + Args{base}).out;
    for (const auto& [name, value] : {std::pair<std::string, float>{l0 + "self_attn.o_proj.bias", 0.0f},
                                      {l0 + "self_attn.rotary_emb.inv_freq", 1.0f}}) {
        const Outcome r = good(Args{"logprobs"} + ask + Args{with(name, {8}, value)});
        EXPECT_EQ(r.out, plain);
        EXPECT_EQ(r.err, "") << name;
    }
    const Outcome r = good(Args{"logprobs"} + ask + Args{with("score.weight", {2, 32}, 1.0f)});
    EXPECT_EQ(r.out, plain);
    EXPECT_NE(r.err.find("no part of this model and are left out: 'score.weight'\n"), std::string::npos) << r.err;
    EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\n'), 1) << r.err;
}

// tie_word_embeddings beside a head of its own: equal to the embedding it is tied, another one counts
TEST(Head, OfATiedConfigurationMayBeAnother) {
    Tensors t = tiny_tensors();
    auto& [shape, head] = t["lm_head.weight"] = t["model.embed_tokens.weight"];
    const Args ask = {"logprobs", "--prompt", "12+34=", "--model"};
    const Outcome tied = good(ask + Args{model_with(t)});
    EXPECT_EQ(tied.out, good(ask + Args{base}).out);
    EXPECT_EQ(tied.err, "");
    for (float& x : head) x = 2.0f * x + 0.25f;
    const std::string model = model_with(t);
    const Outcome other = good(ask + Args{model});
    EXPECT_EQ(other.out, good(ask + Args{model_with(t, {{"tie_word_embeddings", false}})}).out);
    EXPECT_NE(other.out, tied.out);
    EXPECT_NE(other.err.find("tie_word_embeddings is true, but lm_head.weight"), std::string::npos) << other.err;
    EXPECT_EQ(std::count(other.err.begin(), other.err.end(), '\n'), 1) << other.err;

    const std::string out = fresh("untied"), exported = fresh("exported");
    good({"sft", "--model", model, "--train_data", sums, "--max_steps", "0", "--output_dir", out});
    good({"export", "--model", model, "--format", "hf", "--output_dir", exported});
    for (const std::string& folder : {out + "/checkpoint-0", exported}) {
        EXPECT_EQ(read_json(folder + "/config.json")["tie_word_embeddings"], false);
        EXPECT_EQ(good(ask + Args{folder}).out, other.out);
    }
}

TEST(BadModel, WeightsThatAreNotNumbers) {
    for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        Tensors t = tiny_tensors();
        t["model.layers.1.mlp.up_proj.weight"].second[77] = bad;
        std::string m = model_copy();
        write_safetensors(m + "/model.safetensors", t);
        refuse_model(m, {m, "model.layers.1.mlp.up_proj.weight", "not finite"});
    }
}

TEST(BadModel, Gguf) {
    auto with = [](const std::string& text) {
        std::string path = fresh("model.gguf");
        write_text(path, text);
        return path;
    };
    std::string open = std::string("GGUF\x03\0\0\0", 8), missing = fresh("none.gguf");
    refuse_model(missing, {missing});
    refuse_model(with(""), {".gguf"});
    refuse_model(with("GGUF"), {".gguf", "truncated"});
    refuse_model(with("GGML" + open), {".gguf", "does not begin with GGUF"});
    refuse_model(with(open + u64_bytes(1ull << 60) + u64_bytes(0)), {".gguf", "1152921504606846976 tensors"});
    refuse_model(with(open + u64_bytes(0) + u64_bytes(1ull << 60)), {".gguf", "1152921504606846976 keys"});
    refuse_model(with(open + u64_bytes(0) + u64_bytes(1) + u64_bytes(1ull << 62) + std::string(64, 'x')), {".gguf"});
    refuse_model(with(open + u64_bytes(0) + u64_bytes(0)), {".gguf"});
    std::string key = u64_bytes(1) + "k" + std::string("\x09\0\0\0\x08\0\0\0", 8);  // an array of 2^60 strings
    refuse_model(with(open + u64_bytes(0) + u64_bytes(1) + key + u64_bytes(1ull << 60) + std::string(64, '\0')),
                 {".gguf"});
}
