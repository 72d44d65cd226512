// The program as a user meets it: runs the built binary and looks at stdout, stderr, the exit status and what is left
// on disk. Bad use must give 2 and a failed run 1, each with one line on stderr that opens with "train_qrl: " and says
// what, where and what to do, and nothing half-written.
#include "../runtime/printable.h"
#include "cli.h"

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
