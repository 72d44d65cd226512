// The program as a user meets it: runs the built binary and looks at stdout, stderr, the exit status and what is left
// on disk. Bad use must give 2 and a failed run 1, each with one line on stderr that opens with "train_qrl: " and says
// what, where and what to do, and nothing half-written.
#include <sched.h>
#include "../runtime/printable.h"
#include "cli.h"
#include "tfevents_reader.h"

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

// ---------------------------------------------------------------------------------------------------------------------
// data that cannot be used: exit 1

TEST(BadData, Problems) {
    std::string row = "{\"prompt\": \"1+1\", \"answer\": \"it is 2 #### 2\"}\n";
    auto refuse = [](const std::string& path, const Args& parts, const Args& more = {}) {
        std::string out = fresh("never");
        refused(1,
                Args{"grpo", "--model", trained, "--train_data", path, "--max_steps", "1", "--output_dir", out} +
                    (more.empty() ? Args{"--max_completion_length", "16"} : more),
                parts);
        EXPECT_FALSE(fs::exists(out));
    };
    std::string missing = fresh("none.jsonl");
    refuse(missing, {missing, "No such file"});
    refuse(root, {root, "folder"});
    refuse(jsonl("empty", ""), {"empty.jsonl", "no rows"});
    refuse(jsonl("blank", "\n \n"), {"blank.jsonl", "no rows"});
    refuse(jsonl("broken", row + "{\"question\": \"2+2\", \"answer\n" + row), {"broken.jsonl:2", "not valid JSON"});
    refuse(jsonl("array", row + row + "[1]\n"), {"array.jsonl:3", "not an object"});
    refuse(jsonl("utf8", row + "{\"question\": \"\xC3\x28\", \"answer\": \"#### 1\"}\n"), {"utf8.jsonl:2", "UTF-8"});
    refuse(jsonl("fields", "{\"input\": \"a\", \"output\": \"b\"}\n"), {"fields.jsonl:1", "`question`", "input"});
    refuse(jsonl("nogold", row + "{\"question\": \"a\"}\n"), {"nogold.jsonl:2", "`answer`"});
    refuse(jsonl("nohash", row + "{\"question\": \"a\", \"answer\": \"1+1=2\"}\n"), {"nohash.jsonl:2", "####"});
    refuse(jsonl("words", row + "{\"question\": \"a\", \"answer\": \"so #### abc\"}\n"), {"words.jsonl:2", "abc"});
    refuse(jsonl("none", row + "{\"question\": \"a\", \"answer\": \"so ####\"}\n"), {"none.jsonl:2"});
    refuse(jsonl("few", row), {"1 problems", "--prompts_per_step"});
    std::string chat = "{\"prompt\": [{\"role\": \"user\", \"content\": \"1+1?\"}], \"answer\": \"2\"}\n";
    refuse(jsonl("chat", chat), {"chat.jsonl:1", "no chat template"});
    refuse(jsonl("roles", "{\"prompt\": [{\"role\": \"user\"}], \"answer\": \"2\"}\n"), {"roles.jsonl:1", "content"});
    std::string length = std::string(40, '1');
    refuse(
        jsonl("long", "{\"prompt\": \"1\", \"answer\": \"2\"}\n{\"prompt\": \"" + length + "\", \"answer\": \"2\"}\n"),
        {"long.jsonl:2", "40 tokens", "--max_prompt_length is 16"},
        {"--max_prompt_length", "16", "--max_completion_length", "16", "--overlong_rows", "error"});
    const std::string context = jsonl("context", "{\"prompt\": \"" + length + "\", \"answer\": \"2\"}\n");
    refuse(context, {"context.jsonl:1", "40", "--max_completion_length 100", "128"},
           {"--max_completion_length", "100", "--overlong_rows", "error"});
    refuse(context, {"context.jsonl: all 1 rows are longer than the model's context of 128 less", "--overlong_rows"},
           {"--max_completion_length", "100"});
    std::string out = fresh("never");
    refused(1, grpo(out, {"--eval_data", missing}), {missing});
    EXPECT_FALSE(fs::exists(out));
}

TEST(BadData, Examples) {
    auto refuse = [](const std::string& path, const Args& parts, const Args& more = {}) {
        std::string out = fresh("never");
        refused(1, Args{"sft", "--model", base, "--train_data", path, "--max_steps", "1", "--output_dir", out} + more,
                parts);
        EXPECT_FALSE(fs::exists(out));
    };
    std::string row = "{\"prompt\": \"1+1\", \"completion\": \"2\"}\n";
    refuse(jsonl("empty", ""), {"empty.jsonl", "no rows"});
    refuse(jsonl("broken", row + "nonsense\n"), {"broken.jsonl:2", "not valid JSON"});
    refuse(jsonl("half", row + "{\"prompt\": \"1\"}\n"), {"half.jsonl:2", "`completion`"});
    refuse(jsonl("void", row + "{\"prompt\": \"1\", \"completion\": \"\"}\n"),
           {"void.jsonl:2", "`completion`", "empty"});
    refuse(jsonl("long", row + "{\"text\": \"" + std::string(50, 'a') + "\"}\n"),
           {"long.jsonl:2", "51 tokens", "--max_length is 20"}, {"--max_length", "20", "--overlong_rows", "error"});
    refuse(jsonl("chat", row + "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", "
                               "\"content\": \"b\"}]}\n"),
           {"chat.jsonl:2", "no chat template"});
    refuse(jsonl("context", row + "{\"text\": \"" + std::string(200, 'a') + "\"}\n"), {"context.jsonl:2", "201", "128"},
           {"--overlong_rows", "error"});
    refused(2, grpo(fresh("never"), {"--overlong_rows", "wrap"}), {"--overlong_rows wrap", "rows of text"});
}

// rows that are too long are left out of training, or cut, and counted; held-out ones are refused
TEST(OverlongRows, AreLeftOutOrCutAndSaid) {
    std::string rows, text, longest(60, '7');
    for (int i = 0; i < 8; i++) rows += "{\"prompt\": \"" + std::to_string(i) + "\", \"answer\": \"2\"}\n";
    const std::string held_out = jsonl("held", "{\"prompt\": \"" + longest + "=\", \"answer\": \"2\"}\n");
    const std::string asked = jsonl("long", rows + "{\"prompt\": \"" + longest + "\", \"answer\": \"2\"}\n");
    const Args few = {"--train_data", asked, "--max_prompt_length", "16", "--max_completion_length", "4"};
    Outcome r = good(grpo(fresh("drop"), few));
    EXPECT_NE(r.err.find("1 of 9 rows are longer than --max_prompt_length 16 allows and are left out"),
              std::string::npos)
        << r.err;
    EXPECT_NE(r.out.find("8 training prompts"), std::string::npos) << r.out;
    r = good(grpo(fresh("cut"), few + Args{"--overlong_rows", "truncate"}));
    EXPECT_NE(r.err.find("1 of 9 rows are longer than --max_prompt_length 16 allows and are cut"), std::string::npos)
        << r.err;
    EXPECT_NE(r.out.find("9 training prompts"), std::string::npos) << r.out;
    refused(1, grpo(fresh("never"), {"--max_prompt_length", "16", "--eval_data", held_out}),
            {"held.jsonl:1", "61 tokens"});
    text = jsonl("text", "{\"text\": \"ab\"}\n{\"text\": \"" + longest + "\"}\n");
    for (const auto& [how, examples] : {std::pair("drop", 1), {"truncate", 2}, {"wrap", 5}}) {
        r = good({"sft", "--model", base, "--train_data", text, "--max_length", "16", "--overlong_rows", how,
                  "--max_steps", "1", "--output_dir", fresh("sft")});
        EXPECT_NE(r.out.find("data        " + std::to_string(examples) + " examples"), std::string::npos)
            << how << r.out;
        EXPECT_NE(r.err.find(std::string("(--overlong_rows ") + how + "); the first: "), std::string::npos) << r.err;
    }
}

// problems in the order of their pass rates, from an evaluation of them or from a field
TEST(Curriculum, OfAnEvaluationAndOfAField) {
    const std::string rated = fresh("evaluation"), out = fresh("easy");
    good({"eval", "--model", trained, "--eval_data", problems, "--eval_samples", "4", "--eval_greedy", "false",
          "--max_completion_length", "16", "--output_dir", rated});
    std::map<std::string, double> rate;  // by prompt
    for (const json& row : read_lines(rated + "/completions.jsonl"))
        rate[row["prompt"]] += row["strict"].get<bool>() ? 0.25 : 0.0;
    good(grpo(out, {"--curriculum", rated + ":by=easy_first"}));
    std::vector<double> asked;
    for (const json& row : read_lines(out + "/completions.jsonl")) asked.push_back(rate.at(row["prompt"]));
    EXPECT_TRUE(std::is_sorted(asked.rbegin(), asked.rend()));
    EXPECT_GT(asked.front(), 0.0);
    // those between the bounds alone
    const int between =
        (int)std::count_if(rate.begin(), rate.end(), [](const auto& r) { return r.second > 0.1 && r.second < 0.9; });
    ASSERT_GE(between, 8);
    const Outcome bounded = good(grpo(fresh("bounded"), {"--curriculum", rated + "/:min=0.1:max=0.9"}));
    EXPECT_NE(bounded.out.find("data        " + std::to_string(between) + " training prompts"), std::string::npos)
        << bounded.out;
    EXPECT_NE(bounded.err.find(std::to_string(100 - between) + " of 100 problems have a pass rate outside"),
              std::string::npos);
    // an evaluation of other problems, without samples, and what no row has
    const std::string other = jsonl("other", "{\"prompt\": \"9+9+9=?\\n\", \"answer\": \"27\"}\n");
    refused(1, grpo(out, {"--train_data", other, "--curriculum", rated}), {"none of the 1 problems is in", rated});
    const std::string greedy = fresh("evaluation");
    good({"eval", "--model", trained, "--eval_data", problems, "--eval_samples", "0", "--eval_n", "2",
          "--max_completion_length", "4", "--output_dir", greedy});
    refused(1, grpo(out, {"--curriculum", greedy}), {"no sampled completions", "--eval_samples"});
    refused(1, grpo(out, {"--curriculum", "pass_rate"}), {":1: --curriculum pass_rate", "no such field"});
    refused(2, grpo(out, {"--curriculum", rated, "--shuffle_dataset", "false"}), {"--curriculum", "--shuffle_dataset"});
    // a run that goes on takes the same, and refuses an evaluation that has changed
    const Args four = {"--curriculum", rated, "--max_steps", "4", "--save_steps", "2"};
    const std::string whole = fresh("whole"), branch = fresh("branch");
    good(grpo(whole, four));
    good({"grpo", "--resume_from_checkpoint", whole + "/checkpoint-2", "--output_dir", branch});
    const std::vector<std::string> all = learning_curve(whole), rest = learning_curve(branch);
    EXPECT_EQ(rest, std::vector<std::string>(all.begin() + 2, all.end()));
    write_text(rated + "/completions.jsonl", read_text(greedy + "/completions.jsonl"));
    refused(1, {"grpo", "--resume_from_checkpoint", whole + "/checkpoint-2", "--output_dir", fresh("never")},
            {"curriculum", "has changed"});
}

TEST(ShuffleDataset, FalseTakesTheRowsAsTheyStand) {
    const std::string out = fresh("run");
    good(grpo(out, {"--shuffle_dataset", "false", "--max_steps", "1"}));
    std::string prompts, rows;
    for (const json& row : read_lines(out + "/completions.jsonl")) prompts += row.value("prompt", "");
    for (int b = 0; b < 8; b++)
        for (int sample = 0; sample < 8; sample++) rows += "0+" + std::to_string(b) + "=?\n";
    EXPECT_EQ(prompts, rows);
}

// A micro-batch grows to the longest sequence that can come, before the memory is planned, and the start says so
TEST(MicroBatch, HoldsTheLongestSequence) {
    auto said = [](const Outcome& r, int from, int to) {
        const std::string line = "note        --micro_batch_tokens " + std::to_string(from) + " is raised to " +
                                 std::to_string(to) + ", the tokens of the longest sequence\n";
        EXPECT_NE(r.out.find(line), std::string::npos) << line << r.out;
    };
    const Args small = {"--micro_batch_tokens", "16"};
    // 6 tokens of a prompt and 32 sampled ones
    const std::string out = fresh("grpo");
    const Args sampled = grpo(out, {"--max_completion_length", "32"});
    said(good(sampled + small), 16, 38);
    EXPECT_EQ(read_json(out + "/config.json")["micro_batch_tokens"], 38);
    said(good(sampled + Args{"--micro_batch_tokens", "37", "--plan", "--overwrite_output_dir"}), 37, 38);
    EXPECT_EQ(good(sampled + Args{"--micro_batch_tokens", "38", "--plan", "--overwrite_output_dir"}).out.find("raised"),
              std::string::npos);
    // the longest row: 6 tokens, "#### 18" and the end
    said(good(Args{"sft", "--model", base, "--train_data", sums, "--max_steps", "2", "--output_dir", fresh("sft"),
                   "--micro_batch_tokens", "4"}),
         4, 14);
    // held-out texts are measured in the same memory
    const std::string text = fresh("text.txt");
    write_text(text, std::string(300, 'x'));
    said(good(Args{"distill", "--model", base, "--weights", "int4:g32", "--train_data", sums, "--max_steps", "1",
                   "--output_dir", fresh("distill"), "--eval_text", text, "--eval_text_length", "60"} +
              small),
         16, 60);
    const Args measured = {"eval", "--model", base, "--eval_text", text};
    said(good(measured + Args{"--eval_text_length", "60", "--output_dir", fresh("eval")} + small), 16, 60);
    said(good(measured + Args{"--output_dir", fresh("eval")} + small), 16, 128);  // 512, but the context has 128
    refused(2, measured + Args{"--eval_text_length", "129", "--output_dir", fresh("never")},
            {"--eval_text_length 129", "context is 128"});
    const Args rounded = {"quantize", "--model",      base,        "--weights",
                          "int4:g32", "--train_data", sums,        "--calibration_samples",
                          "2",        "--output_dir", fresh("ptq")};
    said(good(rounded + small), 16, 128);
    refused(2, rounded + Args{"--calibration_length", "129", "--overwrite_output_dir"},
            {"--calibration_length 129", "context is 128"});
    said(good(Args{"distill", "--model", base, "--weights", "int4:g32", "--train_data", sums, "--max_steps", "1",
                   "--output_dir", fresh("on_policy"), "--lmbda", "1", "--max_completion_length", "50"} +
              small),
         16, 56);
}

TEST(BadData, StandardInput) {
    auto input = [](const std::string& text) {
        RunSetting s;
        s.input = text;
        return s;
    };
    refused(1, {"tokenize"}, {"standard input:2", "JSON"}, input("{\"text\": \"a\"}\nb\n"));
    refused(1, {"tokenize"}, {"standard input:1", "text"}, input("{\"txt\": \"a\"}\n"));
    refused(1, {"tokenize", "--decode"}, {"standard input:1", "ids"}, input("{\"text\": \"a\"}\n"));
    refused(1, {"tokenize", "--decode"}, {"standard input:1", "259", "token id"}, input("{\"ids\": [1, 259]}\n"));
    refused(1, {"tokenize", "--decode"}, {"standard input:1", "token id"}, input("{\"ids\": [-1]}\n"));
    refused(1, {"tokenize", "--decode"}, {"standard input:1", "token id"}, input("{\"ids\": [1.5]}\n"));
    refused(1, {"tokenize", "--model", base}, {"standard input:1", "chat template"},
            input("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n"));
    refused(1, {"logprobs", "--model", base}, {"standard input:1", "259"}, input("{\"ids\": [1, 259]}\n"));
    refused(1, {"logprobs", "--model", base}, {"standard input:1", "200", "128"},
            input("{\"text\": \"" + std::string(200, 'a') + "\"}\n"));
    refused(1, {"generate", "--model", base, "--max_completion_length", "8"}, {"standard input", "empty"}, input(""));
    refused(1, {"generate", "--model", base}, {"standard input: more than 64 MiB"}, input(std::string(65 << 20, '1')));
    refused(1, {"generate", "--model", base, "--max_completion_length", "8"}, {"200", "128"},
            input(std::string(200, 'a')));
}

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

TEST(Grpo, DataFormats) {
    std::string gsm8k, trl, instruction = "the final answer alone on the last line";
    for (int i = 0; i < 8; i++) {
        std::string sum = std::to_string(i) + "+1";
        gsm8k += json{{"question", sum + "?"}, {"answer", "It is.\n#### " + std::to_string(i + 1)}}.dump() + "\n";
        trl += json{{"prompt", sum + "=?\n"}, {"solution", "\\boxed{" + std::to_string(i + 1) + "}"}}.dump() + "\n";
    }
    Args small = {"--max_steps",        "1", "--max_completion_length", "8",
                  "--prompts_per_step", "8", "--num_generations",       "2"};
    auto args = [&](const std::string& data, const std::string& out) {
        return Args{"grpo", "--model", trained, "--train_data", data, "--output_dir", out} + small;
    };
    std::string out = fresh("gsm8k");
    good(args(jsonl("gsm8k", gsm8k), out));
    std::vector<json> rows = read_lines(out + "/completions.jsonl");
    ASSERT_EQ(rows.size(), 16u);
    std::string prompt = rows[0].value("prompt", ""), gold = rows[0].value("gold", "");
    EXPECT_NE(prompt.find(instruction), std::string::npos) << prompt;
    EXPECT_EQ(std::to_string(prompt[0] - '0' + 1), gold) << prompt;
    EXPECT_FALSE(read_json(out + "/summary.json")["eval"].contains("before"));  // nothing held out was given

    out = fresh("template");
    good(args(jsonl("gsm8k", gsm8k), out) + Args{"--prompt_template", "Q: {question}\nA:"});
    prompt = read_lines(out + "/completions.jsonl").at(0).value("prompt", "");
    EXPECT_EQ(prompt.rfind("Q: ", 0), 0u);
    EXPECT_EQ(prompt.substr(prompt.size() - 3), "\nA:");

    out = fresh("trl");
    good(args(jsonl("trl", trl), out) + Args{"--eval_data", problems, "--eval_n", "3", "--allow_overlap", "true"});
    prompt = read_lines(out + "/completions.jsonl").at(0).value("prompt", "");
    EXPECT_EQ(prompt.size(), 6u) << prompt;
    EXPECT_EQ(prompt.substr(3), "=?\n");
    json summary = read_json(out + "/summary.json");
    EXPECT_EQ(summary["eval"]["n"], 3);
    number(summary["eval"]["before"], "pass@1");
    number(summary["eval"]["after"], "pass@1");
}

// what is trained on and held out at once, by every command that has both
TEST(DataSets, OverlapIsRefusedUnlessAsked) {
    const std::string out = fresh("overlap"), other = jsonl("other", "{\"prompt\": \"20+1=?\", \"answer\": \"21\"}\n"),
                      first = "3 of the 3 held-out problems are trained on, too; the first: " + problems + ":1 is ";
    const Args sets = {"--eval_data", problems, "--eval_n", "3", "--max_completion_length", "8", "--output_dir", out},
               grpo_args = {"grpo", "--model", trained, "--train_data", problems},
               sft_args = {"sft", "--model", trained, "--train_data", sums, "--max_steps", "0"},
               distill_args = {"distill",      "--model", trained,    "--teacher", trained,
                               "--train_data", problems,  "--seq_kd", "true"};
    refused(1, grpo_args + sets, {first + problems + ":1, '0+0=?", "--allow_overlap true"});
    refused(1, sft_args + sets, {first + sums + ":1"});
    refused(1, distill_args + sets, {first + problems + ":1"});
    EXPECT_FALSE(fs::exists(out));
    Outcome r = good(sft_args + sets + Args{"--allow_overlap", "true"});
    EXPECT_NE(r.err.find("note: " + first), std::string::npos) << r.err;
    r = good(sft_args + Args{"--eval_data", other, "--max_completion_length", "8", "--output_dir", fresh("apart")});
    EXPECT_EQ(r.err.find("held-out problems are trained on"), std::string::npos) << r.err;
}

TEST(DataSets, NamesGoldsAndStyles) {
    const std::string out = fresh("styles"),
                      shots = jsonl("shots",
                                    "{\"question\": \"1+1=?\", \"answer\": \"#### 2\"}\n"
                                    "{\"question\": \"2+2=?\", \"answer\": \"#### 4\"}\n"),
                      set = jsonl("set", "{\"question\": \"3+3=?\", \"answer\": \"#### 6\"}\n"),
                      empty = jsonl("empty", "{\"question\": \"3+3=?\", \"answer\": \"()\"}\n"),
                      no_gold = jsonl("no_gold", "{\"question\": \"3+3=?\"}\n");
    const Args eval = {"eval", "--model", trained, "--max_completion_length", "8", "--output_dir", out, "--eval_data"};
    refused(2, eval + Args{"gsm8k"},
            {"--eval_data gsm8k: data/sets/gsm8k/test.jsonl is not there", "data/download gsm8k"});
    refused(2, eval + Args{"gsm9k"}, {"did you mean gsm8k?"});
    refused(1, eval + Args{empty},
            {empty + ":1: the gold answer '()' cannot be read as an answer; so it is with 1 of the 1"});
    refused(1, eval + Args{no_gold}, {no_gold + ":1: no `answer`", "what is graded needs its answer"});
    const Args few = eval + Args{set, "--prompt_style", "lm_eval_gsm8k", "--fewshot_data", shots};
    refused(1, few, {shots + " has 2 examples, and --num_fewshot asks for 5"});
    const Outcome r = good(few + Args{"--num_fewshot", "2"});
    EXPECT_EQ(read_lines(out + "/completions.jsonl").at(0).value("prompt", ""),
              "Question: 1+1=?\nAnswer: #### 2\n\nQuestion: 2+2=?\nAnswer: #### 4\n\nQuestion: 3+3=?\nAnswer:");
    EXPECT_EQ(read_json(out + "/config.json").value("stop_strings", ""), "Question:,</s>,<|im_end|>");
    refused(2, eval + Args{set, "--num_fewshot", "2"}, {"--num_fewshot belongs to --prompt_style lm_eval_gsm8k"});
    refused(2, eval + Args{set, "--prompt_style", "boxed", "--prompt_template", "{prompt}"}, {"brings its own"});
    refused(2, eval + Args{set, "--prompt_style", "boxed", "--system_prompt", "x"}, {"brings its own"});
    refused(2, eval + Args{set, "--prompt_style", "lm_eval_gsm8k_cot", "--num_fewshot", "9"}, {"has 8 examples"});
    refused(1, eval + Args{set, "--prompt_given", "plan"}, {set + ":1: --prompt_given plan: the row has no `plan`"});
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

// ---------------------------------------------------------------------------------------------------------------------
// the other commands

TEST(Sft, LossFalls) {
    std::string qa, text;
    for (int i = 0; i < 32; i++) {
        qa += json{{"question", std::to_string(i) + "+1?"}, {"answer", "#### " + std::to_string(i + 1)}}.dump() + "\n";
        text += json{{"text", "the number " + std::to_string(i) + " stands here"}}.dump() + "\n";
    }
    for (const std::string& data : {sums, jsonl("qa", qa), jsonl("text", text)}) {
        std::string out = fresh("sft");
        good({"sft", "--model", base, "--train_data", data, "--max_steps", "20", "--learning_rate", "0.005",
              "--weights", "int8:channel", "--output_dir", out});
        std::vector<json> rows = read_lines(out + "/metrics.jsonl");
        ASSERT_EQ(rows.size(), 20u);
        for (const json& row : rows) {
            for (const auto& item : row.items()) EXPECT_TRUE(item.value().is_number()) << row.dump();
            for (const char* key :
                 {"loss", "grad_norm", "learning_rate", "epoch", "num_tokens", "quant/code_flip_rate"})
                number(row, key);
        }
        EXPECT_LT(number(rows[19], "loss"), 0.7 * number(rows[0], "loss")) << data;
        json summary = read_json(out + "/summary.json");
        EXPECT_EQ(summary["command"], "sft");
        EXPECT_EQ(summary["steps"], 20);
        EXPECT_GT(number(summary, "tokens_trained"), 0);
        EXPECT_TRUE(fs::exists(out + "/checkpoint-20/tokenizer.json"));
        EXPECT_EQ(leftovers(out, false), "");
    }
}

TEST(Sft, LearnsWhatItWasTaught) {
    double before = number(read_lines(root + "/sft/metrics.jsonl").at(0), "loss");
    double after = number(read_lines(root + "/sft/metrics.jsonl").back(), "loss");
    EXPECT_LT(after, 0.25 * before);
    Outcome r = good(
        {"generate", "--model", trained, "--prompt", "1+1=?\n", "--temperature", "0", "--max_completion_length", "16"});
    EXPECT_EQ(r.out.rfind("#### ", 0), 0u) << r.out;
}

TEST(Generate, Streams) {
    Args greedy = {"generate", "--model", trained, "--temperature", "0", "--max_completion_length", "16"};
    Outcome a = good(greedy + Args{"--prompt", "2+3=?\n"}), b = good(greedy, "2+3=?\n");
    EXPECT_EQ(a.out, b.out) << "--prompt and standard input";
    EXPECT_EQ(a.out, good(greedy + Args{"--prompt", "2+3=?\n", "--seed", "9"}).out);
    EXPECT_NE(a.err.find("6 prompt tokens"), std::string::npos) << a.err;
    Args sampled = {"generate", "--model", base, "--prompt", "2+3=?\n", "--max_completion_length", "40", "--seed"};
    EXPECT_EQ(good(sampled + Args{"1"}).out, good(sampled + Args{"1"}).out);
    EXPECT_NE(good(sampled + Args{"1"}).out, good(sampled + Args{"2"}).out);
}

// what `args` print to a terminal
static std::string run_on_terminal(const Args& args) {
    const int terminal = posix_openpt(O_RDWR | O_NOCTTY);
    if (terminal < 0 || grantpt(terminal) != 0 || unlockpt(terminal) != 0) return "";
    const pid_t pid = fork();
    if (pid == 0) {
        dup2(open(ptsname(terminal), O_WRONLY | O_NOCTTY), 1);
        dup2(open("/dev/null", O_WRONLY), 2);
        exec_program(args);
    }
    std::string out;
    int status = -1;
    while (waitpid(pid, &status, WNOHANG) == 0) usleep(5000);  // it prints less than the terminal's buffer holds
    fcntl(terminal, F_SETFL, O_NONBLOCK);
    char buffer[65536];
    for (ssize_t n; (n = read(terminal, buffer, sizeof(buffer))) > 0;) out.append(buffer, (size_t)n);
    close(terminal);
    EXPECT_EQ(status, 0);
    for (size_t at; (at = out.find("\r\n")) != std::string::npos;) out.erase(at, 1);
    return out;
}

TEST(Terminal, ControlCharactersAreEscaped) {
    Args sampled = {"generate", "--model", base, "--prompt", "2+3=?\n", "--max_completion_length",
                    "100",      "--seed",  "1"};
    const std::string raw = good(sampled).out, escaped = escape_controls(raw, "\n\t");
    ASSERT_NE(raw, escaped) << "the test needs a completion with control characters";
    EXPECT_EQ(run_on_terminal(sampled), escaped);

    refused(2, {"--config", root + "/\x1b]0;title\x07\u202e"}, {"/\\x1B]0;title\\x07\\u202E"});
    refused(1, {"generate", "--model", root + "/no\x1b[2J", "--prompt", "x"}, {"/no\\x1B[2J"});

    const std::string data = root + "/escapes.jsonl";
    write_text(data, "{\"prompt\": \"1+1\\u001b[2J\\u009b\\u202e=?\", \"answer\": \"2\"}\n");
    Outcome r = good({"grpo",
                      "--model",
                      trained,
                      "--train_data",
                      data,
                      "--eval_data",
                      data,
                      "--eval_samples",
                      "1",
                      "--allow_overlap",
                      "true",
                      "--max_steps",
                      "1",
                      "--prompts_per_step",
                      "1",
                      "--num_generations",
                      "2",
                      "--max_completion_length",
                      "16",
                      "--output_dir",
                      fresh("escapes")});
    EXPECT_NE(r.out.find("first prompt \"1+1\\x1B[2J\\x9B\\u202E=?\""), std::string::npos) << r.out;
    EXPECT_NE(r.out.find("  1+1\\x1B[2J\\x9B\\u202E=? -> "), std::string::npos) << r.out;
    EXPECT_EQ(escape_controls(r.out, "\n"), r.out);
}

TEST(Tokenize, RefusesBadLines) {
    auto refuse = [](const std::string& text, const Args& parts) {
        RunSetting s;
        s.input = "{\"text\": \"a\"}\n" + text + "\n";
        refused(1, {"tokenize"}, parts, s);
    };
    const std::string deep(1000000, '['), closed = deep + std::string(1000000, ']');
    refuse(deep, {"standard input:2: the JSON is nested deeper"});
    refuse("{\"messages\": [], \"tools\": " + closed + "}", {"standard input:2: the JSON is nested deeper"});
    refuse("{\"text\": \"a\", \"text\": \"b\"}", {"standard input:2: the key 'text' appears twice"});
    refuse("{\"text\": \"\xff\"}", {"standard input:2: not valid JSON at byte 11", "UTF-8"});
    refuse("[1]", {"standard input:2", "not an object"});
    refuse("{\"messages\": [{\"role\": \"user\", \"content\": null}]}", {"standard input:2: messages[0]: \"content\""});
}

TEST(Tokenize, BytesThereAndBack) {
    std::string text = "a\xC3\xA9\n<|im_start|> 12\t\xF0\x9F\x98\x80";
    Outcome r = good({"tokenize"}, json{{"text", text}}.dump() + "\n\n" + json{{"text", ""}}.dump() + "\n");
    std::stringstream lines(r.out);
    std::string first, second;
    std::getline(lines, first), std::getline(lines, second);
    json j = json::parse(first);
    EXPECT_EQ(j["ids"].size(), text.size() - strlen("<|im_start|>") + 1) << first;
    EXPECT_EQ(second, "{\"ids\":[]}");
    EXPECT_EQ(json::parse(good({"tokenize", "--decode"}, first + "\n").out)["text"], text);
    EXPECT_EQ(good({"tokenize", "--prompt", text}).out, first + "\n");
    EXPECT_EQ(good({"tokenize", "--tokenizer", base, "--prompt", text}).out, first + "\n") << "the saved tokenizer";
    EXPECT_EQ(good({"tokenize", "--model", base, "--prompt", text}).out, first + "\n");
}

TEST(Tokenize, Qwen3) {
    const std::string folder = "../shared/tokenizer/qwen3";
    if (!fs::exists(folder + "/vocab.json"))
        GTEST_SKIP() << folder << " is missing (Qwen3's vocab.json and merges.txt)";
    json message = {{"messages", {{{"role", "user"}, {"content", "Hi"}}}}, {"add_generation_prompt", true}};
    Outcome r =
        good({"tokenize", "--tokenizer", folder}, json{{"text", "Hello world"}}.dump() + "\n" + message.dump() + "\n");
    std::stringstream lines(r.out);
    std::string first, second;
    std::getline(lines, first), std::getline(lines, second);
    EXPECT_EQ(first, "{\"ids\":[9707,1879]}");
    json chat = json::parse(second, nullptr, false);
    ASSERT_TRUE(chat.is_object()) << second;
    EXPECT_EQ(chat["text"], "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    EXPECT_EQ(json::parse(good({"tokenize", "--tokenizer", folder, "--decode"}, second + "\n").out)["text"],
              chat["text"]);
    message["enable_thinking"] = false;
    std::string text = json::parse(good({"tokenize", "--tokenizer", folder}, message.dump() + "\n").out)["text"];
    EXPECT_NE(text.find("<think>\n\n</think>"), std::string::npos) << text;
    refused(1, {"logprobs", "--model", trained, "--tokenizer", folder, "--prompt", "x"}, {"tokenizer", "259"});
}

TEST(Logprobs, TextAndIdsAgree) {
    Outcome ids = good({"tokenize", "--prompt", "1+1=?\n#### 2"});
    Outcome a = good({"logprobs", "--model", trained, "--prompt", "1+1=?\n#### 2"});
    Outcome b = good({"logprobs", "--model", trained}, ids.out + "{\"ids\": [5]}\n{\"text\": \"\"}\n");
    json j = json::parse(a.out);
    EXPECT_EQ(b.out.rfind(a.out, 0), 0u) << b.out;
    EXPECT_EQ(j["logprobs"].size() + 1, j["ids"].size());
    double sum = 0;
    for (double v : j["logprobs"]) {
        EXPECT_LE(v, 0.0);
        sum += v;
    }
    EXPECT_NEAR(number(j, "mean"), sum / (double)j["logprobs"].size(), 1e-6);
    std::string rest = b.out.substr(a.out.size());
    EXPECT_EQ(rest, "{\"ids\":[5],\"logprobs\":[],\"mean\":null}\n{\"ids\":[],\"logprobs\":[],\"mean\":null}\n");
}

// an exported folder answers as the model does with the same quantizer, and says which one it has; it trains on its own
// scales; another quantizer is made anew
TEST(Export, FoldersAnswerAsTheQuantizedModel) {
    std::string prompt = "1+1=?\n#### 2";
    for (const char* format : {"compressed-tensors", "gptq", "awq", "hf"}) {
        std::string out = fresh(format);
        good({"export", "--model", trained, "--format", format, "--weights", "int4:g32", "--output_dir", out,
              "--save_dtype", "float32"});
        Outcome expected = good({"logprobs", "--model", trained, "--weights", "int4:g32", "--prompt", prompt});
        Outcome got = good({"logprobs", "--model", out, "--prompt", prompt});
        EXPECT_EQ(got.out, expected.out) << format;
        bool plain = std::string(format) == "hf";
        EXPECT_EQ(got.err.find("int4:g32:sym with the file's own scales") == std::string::npos, plain) << got.err;
        EXPECT_TRUE(fs::exists(out + "/tokenizer.json"));
        if (std::string(format) != "gptq") continue;
        Outcome other = good({"logprobs", "--model", out, "--weights", "int8:channel", "--prompt", prompt});
        EXPECT_NE(other.err.find("quantized anew"), std::string::npos) << other.err;
        Outcome none = good({"logprobs", "--model", out, "--weights", "none", "--prompt", prompt});
        EXPECT_EQ(none.out, expected.out);
        std::string run = fresh("run");
        good({"sft", "--model", out, "--train_data", sums, "--output_dir", run, "--max_steps", "1", "--learning_rate",
              "0"});
        json config = read_json(run + "/config.json");
        EXPECT_EQ(config["weights"], "int4:g32:sym");
        EXPECT_EQ(config["qat_scale"], "static");
    }
}

// test/golden holds what transformers computes; the models have no tokenizer
TEST(Logprobs, AsTransformers) {
    for (const char* name : {"qwen2", "qwen3", "llama"}) {
        std::string folder = std::string("test/golden/") + name, text = read_text(folder + "/golden.safetensors");
        uint64_t n = 0;
        ASSERT_GT(text.size(), 8u) << folder;
        memcpy(&n, text.data(), 8);
        json header = json::parse(text.substr(8, n));
        auto bytes = [&](const char* tensor, void* to) {
            size_t begin = header[tensor]["data_offsets"][0], end = header[tensor]["data_offsets"][1];
            memcpy(to, text.data() + 8 + n + begin, end - begin);
        };
        std::vector<int> starts(4);
        bytes("cu_seqlens", starts.data());
        std::vector<int> tokens((size_t)starts[3]);
        bytes("tokens", tokens.data());
        std::vector<float> expected((size_t)starts[3] - 3);
        bytes("logp", expected.data());
        std::string input;
        for (int i = 0; i < 3; i++)
            input +=
                json{{"ids", std::vector<int>(tokens.begin() + starts[i], tokens.begin() + starts[i + 1])}}.dump() +
                "\n";
        Args args = {"logprobs", "--model", folder};
        Outcome r = good(args, input);
        std::stringstream lines(r.out);
        std::string line;
        std::vector<float> got;
        while (std::getline(lines, line)) {
            json j = json::parse(line);
            for (float v : j["logprobs"]) got.push_back(v);
        }
        ASSERT_EQ(got.size(), expected.size()) << r.out;
        double difference = 0, size = 0;
        for (size_t i = 0; i < got.size(); i++) {
            difference += std::pow(got[i] - expected[i], 2);
            size += std::pow(expected[i], 2);
        }
        EXPECT_LT(std::sqrt(difference / size), bf16_build ? 2e-2 : 1e-5) << name;
        RunSetting s;
        s.input = "{\"text\": \"a\"}\n";
        refused(1, args, {"standard input:1", "tokenizer.json", "--tokenizer"}, s);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// bench: each of its lines runs once, in the sizes of the embedded model; what it measures is no test's business

static const Args bench_sizes = {"--bench_model",
                                 "embedded",
                                 "--seconds",
                                 "0",
                                 "--per_device_train_batch_size",
                                 "2",
                                 "--max_length",
                                 "16",
                                 "--prompts_per_step",
                                 "2",
                                 "--num_generations",
                                 "3",
                                 "--max_prompt_length",
                                 "4",
                                 "--max_completion_length",
                                 "5"};

static void check_bench_numbers(const json& row, const std::string& where) {
    for (const auto& item : row.items()) {
        const std::string name = item.key() + " of " + where;
        EXPECT_FALSE(item.value().is_null()) << name;
        if (!item.value().is_number() || item.key() == "least_flops" || item.key() == "least_bytes") continue;
        EXPECT_GT(item.value().get<double>(), 0.0) << name;
    }
}

TEST(Bench, EveryOperatorAndStepHasItsNumbers) {
    const std::string out = fresh("bench");
    const Outcome r =
        good(Args{"bench", "--output_dir", out, "--part", "operators,sft,decode,grpo,growth"} + bench_sizes);
    const json j = read_json(out + "/bench.json");
    EXPECT_EQ(j["version"], "0.1.0");
    EXPECT_NE(j["machine"]["precision"].get<std::string>(), "");
    ASSERT_TRUE(j["ceilings"]["peaks"].contains("fp32_fma"));
    for (const auto& peak : j["ceilings"]["peaks"].items()) check_bench_numbers(peak.value(), peak.key());
    for (const json& level : j["ceilings"]["memory"]) check_bench_numbers(level, "memory");
    std::map<std::string, int> lines;
    for (const json& row : j["rows"]) {
        const std::string name = row["name"];
        lines[name]++;
        check_bench_numbers(row, name);
        EXPECT_TRUE(row["least_flops"] > 0 || row["least_bytes"] > 0) << name;
        EXPECT_NE(r.out.find(name), std::string::npos) << name;
    }
    for (const char* type : {"fp32", "bf16"})
        for (const char* kind : {"nt", "nt packed", "nn", "tn"})
            EXPECT_EQ(lines[std::string("product ") + kind + " " + type], 3 * 5) << kind << type;
    for (const char* format :
         {"int8:g64:sym", "int4:g64:sym", "int3:g64:sym", "nf4:g64", "mxfp4", "nvfp4", "fp8e4m3:g64"})
        EXPECT_EQ(lines[std::string("product quantized ") + format], 2 * 3) << format;
    for (const char* name : {"attention forward", "attention backward", "attention decode"})
        EXPECT_EQ(lines[name], 2) << name;
    for (const char* name : {"fused_residual_rmsnorm forward",
                             "rmsnorm backward",
                             "swiglu forward",
                             "swiglu backward",
                             "rope forward",
                             "embedding forward",
                             "embedding backward",
                             "lm_head forward",
                             "lm_head backward",
                             "sample",
                             "sample greedy",
                             "sample gumbel",
                             "sample top-p 0.95",
                             "sample top-k 50",
                             "adamw",
                             "global norm",
                             "convert fp32 to working weights",
                             "fake_quant int4:g64",
                             "sft step",
                             "grpo step",
                             "model"})
        EXPECT_EQ(lines[name], 1) << name;
    EXPECT_EQ(lines["decode step"], 3);
    for (const char* name : {"batch", "context", "group", "model"}) {
        EXPECT_GE(lines[name], 1) << name;
        const std::string svg = read_text(out + "/growth_" + name + ".svg");
        EXPECT_EQ(svg.compare(0, 5, "<svg "), 0) << name;
        EXPECT_NE(svg.find("ceilings"), std::string::npos) << name;
    }
    EXPECT_EQ(leftovers(out, true), "");
}

TEST(Bench, ReplacesItsOwnFileOnly) {
    const std::string out = fresh("bench");
    const Args sft = Args{"bench", "--part", "sft", "--weights", "int4:g32:sym", "--output_dir", out} + bench_sizes;
    fs::create_directories(out);
    write_text(out + "/bench.json", "somebody's");
    refused(1, sft, {"bench.json exists", "--overwrite_output_dir"});
    refused(1, sft + Args{"--overwrite_output_dir"}, {"was not written by this program"});
    EXPECT_EQ(read_text(out + "/bench.json"), "somebody's");
    fs::remove(out + "/bench.json");
    good(sft);
    good(sft + Args{"--overwrite_output_dir"});
    EXPECT_EQ(read_json(out + "/bench.json")["rows"].size(), 1u);
}

TEST(Bench, BadUse) {
    refused(2, {"bench", "--bench_model", "7b"}, {"'7b' is not one of"});
    refused(2, {"bench", "--part", "attention"}, {"'attention' is not one of"});
    refused(2, {"bench", "--seconds", "-1"}, {"out of range"});
    refused(2, {"bench", "--model", base}, {"flag --model is not used by bench"});
    refused(2, Args{"bench", "--weights", "int4:g64:nonsense"} + bench_sizes, {"nonsense"});
    refused(1, {"bench", "--bench_model", "1.5b", "--part", "sft", "--micro_batch_tokens", "16777216"},
            {"--bench_model 1.5b: a step takes", "--micro_batch_tokens"});
}
