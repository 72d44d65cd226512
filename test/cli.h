// What the tests of the command line share: running the program (TRAIN_QRL, else ./train_qrl), its files, and tiny
// models. Two layers of width 32 over bytes, with random weights, and the same after a few steps of sft on one-digit
// sums, so that rewards differ within a group. The trap: a random model gets one reward everywhere, its gradients are 0,
// and every test of a loss would pass.
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <sstream>
#include <string>
#include <vector>
#include <nlohmann/json.hpp>

namespace fs = std::filesystem;
typedef nlohmann::ordered_json json;
typedef std::vector<std::string> Args;

inline std::string program() {
    const char* path = getenv("TRAIN_QRL");
    return path && *path ? path : "./train_qrl";
}

// ---------------------------------------------------------------------------------------------------------------------
// running it

// in a child: becomes the program
[[noreturn]] inline void exec_program(const Args& args) {
    std::string path = program();
    std::vector<char*> argv = {&path[0]};
    for (const std::string& a : args) argv.push_back(const_cast<char*>(a.c_str()));
    argv.push_back(nullptr);
    execv(path.c_str(), argv.data());
    _exit(127);
}

struct Outcome {
    int status = -1;  // exit status, 128 + signal when killed, -1 when it never started
    std::string out, err;
    bool timed_out = false;
};

struct RunSetting {
    std::string input;                         // standard input
    bool own_threads = false;                  // as many as the program counts; else two
    bool hold_input = false;                   // standard input stays open after `input`
    const char* output = nullptr;              // a file that is standard output
    rlim_t file_size = RLIM_INFINITY;          // RLIMIT_FSIZE, bytes
    const char* instruction_set = nullptr;     // TRAIN_QRL_CPU_ISA
    std::function<bool(const Outcome&)> when;  // asked every few milliseconds; the first true sends SIGINT
    double seconds = 60;                       // then it is killed
};

// TEST_SLOWNESS: how many times slower the program is than it should be, under a sanitizer
inline double slowness() {
    const char* text = getenv("TEST_SLOWNESS");
    return text ? std::max(atof(text), 1.0) : 1.0;
}

// ThreadSanitizer's own maps fail under RunSetting::file_size
#define NEEDS_FILE_SIZE_LIMIT() \
    if (getenv("TSAN_OPTIONS")) GTEST_SKIP() << "a limit on file sizes, which ThreadSanitizer does not bear"

inline Outcome run(const Args& args, const RunSetting& setting = {}) {
    Outcome r;
    int in[2], out[2], err[2];
    if (pipe(in) != 0 || pipe(out) != 0 || pipe(err) != 0) return r;
    pid_t pid = fork();
    if (pid == 0) {
        dup2(in[0], 0), dup2(out[1], 1), dup2(err[1], 2);
        for (int* p : {in, out, err}) close(p[0]), close(p[1]);
        if (setting.output) dup2(open(setting.output, O_WRONLY), 1);
        if (setting.file_size != RLIM_INFINITY) {
            struct rlimit limit = {setting.file_size, setting.file_size};
            setrlimit(RLIMIT_FSIZE, &limit);
        }
        signal(SIGINT, SIG_DFL);
        signal(SIGPIPE, SIG_DFL);
        setenv("OMP_WAIT_POLICY", "passive", 0);
        if (!setting.own_threads) setenv("OMP_NUM_THREADS", "2", 0);
        if (setting.instruction_set) setenv("TRAIN_QRL_CPU_ISA", setting.instruction_set, 1);
        exec_program(args);
    }
    close(in[0]), close(out[1]), close(err[1]);
    fcntl(in[1], F_SETFL, O_NONBLOCK);
    auto start = std::chrono::steady_clock::now();
    size_t written = 0;
    bool signalled = false, in_open = true, out_open = true, err_open = true;
    while (out_open || err_open) {
        if (in_open && written == setting.input.size() && !setting.hold_input) close(in[1]), in_open = false;
        struct pollfd p[3] = {{out_open ? out[0] : -1, POLLIN, 0},
                              {err_open ? err[0] : -1, POLLIN, 0},
                              {in_open && written < setting.input.size() ? in[1] : -1, POLLOUT, 0}};
        poll(p, 3, 5);
        char buffer[65536];
        for (int i = 0; i < 2; i++) {
            if (!(p[i].revents & (POLLIN | POLLHUP))) continue;
            ssize_t n = read(p[i].fd, buffer, sizeof(buffer));
            if (n > 0) (i ? r.err : r.out).append(buffer, (size_t)n);
            else (i ? err_open : out_open) = false;
        }
        if (p[2].revents & POLLOUT) {
            ssize_t n = write(in[1], setting.input.data() + written, setting.input.size() - written);
            if (n > 0) written += (size_t)n;
        } else if (p[2].revents) {  // it reads no more
            written = setting.input.size();
        }
        if (setting.when && !signalled && setting.when(r)) kill(pid, SIGINT), signalled = true;
        double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        if (seconds > setting.seconds * slowness() && !r.timed_out) kill(pid, SIGKILL), r.timed_out = true;
    }
    if (in_open) close(in[1]);
    close(out[0]), close(err[0]);
    int status = 0;
    waitpid(pid, &status, 0);
    r.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return r;
}

inline Args operator+(Args a, const Args& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}

inline std::string shown_run(const Args& args, const Outcome& r) {
    std::string s = "train_qrl";
    for (const std::string& a : args) s += " '" + a + "'";
    return s + "\nexit " + std::to_string(r.status) + (r.timed_out ? " (timed out)" : "") + "\nstderr: " + r.err +
           "stdout: " + r.out.substr(0, 2000);
}

// must work
inline Outcome good(const Args& args, const std::string& input = "") {
    RunSetting setting;
    setting.input = input;
    Outcome r = run(args, setting);
    EXPECT_EQ(r.status, 0) << shown_run(args, r);
    EXPECT_EQ(r.err.find("train_qrl: "), std::string::npos) << shown_run(args, r);
    return r;
}

// must be refused with one line that holds all the parts
inline Outcome refused(int status, const Args& args, const Args& parts, const RunSetting& setting = {}) {
    Outcome r = run(args, setting);
    EXPECT_EQ(r.status, status) << shown_run(args, r);
    EXPECT_EQ(r.err.rfind("train_qrl: ", 0), 0u) << shown_run(args, r);
    EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\n'), 1) << shown_run(args, r);
    EXPECT_LT(r.err.size(), 700u) << shown_run(args, r);
    for (const std::string& part : parts)
        EXPECT_NE(r.err.find(part), std::string::npos) << "expected: " << part << "\n" << shown_run(args, r);
    return r;
}

// ---------------------------------------------------------------------------------------------------------------------
// files

inline std::string read_text(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    std::stringstream s;
    s << in.rdbuf();
    return s.str();
}

inline void write_text(const std::string& path, const std::string& text) {
    std::ofstream out(path, std::ios::binary);
    out << text;
    ASSERT_TRUE(out.good()) << path;
}

inline json read_json(const std::string& path) {
    json j = json::parse(read_text(path), nullptr, false);
    EXPECT_FALSE(j.is_discarded()) << path << ": " << read_text(path).substr(0, 200);
    return j;
}

// every line must be JSON, and the last one whole
inline std::vector<json> read_lines(const std::string& path) {
    std::string text = read_text(path), line;
    EXPECT_TRUE(text.empty() || text.back() == '\n') << path;
    std::vector<json> lines;
    std::stringstream s(text);
    while (std::getline(s, line)) {
        json j = json::parse(line, nullptr, false);
        EXPECT_FALSE(j.is_discarded()) << path << ": " << line;
        lines.push_back(j);
    }
    return lines;
}

// names under a folder that a run must not leave: parts of files, of folders, or (when asked) checkpoints
inline std::string leftovers(const std::string& folder, bool checkpoints) {
    std::string s;
    if (!fs::exists(folder)) return s;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
        std::string name = entry.path().filename();
        if (name.find(".tmp") != std::string::npos || name.find(".train_qrl-") != std::string::npos ||
            (checkpoints && name.rfind("checkpoint-", 0) == 0))
            s += name + " ";
    }
    return s;
}

inline std::string u64_bytes(uint64_t v) {
    std::string s;
    for (int i = 0; i < 8; i++) s += (char)(v >> 8 * i & 255);
    return s;
}

inline std::string safetensors_text(const std::string& header, const std::string& data) {
    return u64_bytes(header.size()) + header + data;
}

typedef std::map<std::string, std::pair<std::vector<int>, std::vector<float>>> Tensors;

inline void write_safetensors(const std::string& path, const Tensors& tensors) {
    json header;
    std::string data;
    for (const auto& [name, t] : tensors) {
        size_t begin = data.size(), bytes = t.second.size() * 4;
        data.append((const char*)t.second.data(), bytes);
        header[name] = {{"dtype", "F32"}, {"shape", t.first}, {"data_offsets", {begin, begin + bytes}}};
    }
    write_text(path, safetensors_text(header.dump(), data));
}

// ---------------------------------------------------------------------------------------------------------------------
// what all the tests use, made once

inline bool bf16_build;       // the program says so
inline std::string root;      // temporary folder
inline std::string base;      // random model with a byte-level tokenizer
inline std::string trained;   // the same after sft
inline std::string sums;      // its data, prompt and completion
inline std::string problems;  // the same sums as problems with a gold answer

inline const json tiny_config = {{"architectures", {"Qwen3ForCausalLM"}},
                                 {"model_type", "qwen3"},
                                 {"vocab_size", 259},
                                 {"hidden_size", 32},
                                 {"intermediate_size", 64},
                                 {"num_hidden_layers", 2},
                                 {"num_attention_heads", 4},
                                 {"num_key_value_heads", 2},
                                 {"head_dim", 16},
                                 {"max_position_embeddings", 128},
                                 {"hidden_act", "silu"},
                                 {"rms_norm_eps", 1e-6},
                                 {"rope_theta", 10000.0},
                                 {"tie_word_embeddings", true},
                                 {"torch_dtype", "float32"}};

inline Tensors tiny_tensors() {
    uint64_t state = 1;
    auto make = [&](std::vector<int> shape, float scale, float offset) {
        size_t n = 1;
        for (int d : shape) n *= (size_t)d;
        std::vector<float> x(n);
        for (float& v : x) {
            state = state * 6364136223846793005ull + 1442695040888963407ull;
            v = offset + scale * ((float)(state >> 40) / 8388608.0f - 1.0f);
        }
        return std::make_pair(shape, x);
    };
    Tensors t;
    t["model.embed_tokens.weight"] = make({259, 32}, 0.15f, 0.0f);
    t["model.norm.weight"] = make({32}, 0.1f, 1.0f);
    for (int l = 0; l < 2; l++) {
        std::string p = "model.layers." + std::to_string(l) + ".";
        t[p + "input_layernorm.weight"] = make({32}, 0.1f, 1.0f);
        t[p + "post_attention_layernorm.weight"] = make({32}, 0.1f, 1.0f);
        t[p + "self_attn.q_proj.weight"] = make({64, 32}, 0.2f, 0.0f);
        t[p + "self_attn.k_proj.weight"] = make({32, 32}, 0.2f, 0.0f);
        t[p + "self_attn.v_proj.weight"] = make({32, 32}, 0.2f, 0.0f);
        t[p + "self_attn.o_proj.weight"] = make({32, 64}, 0.2f, 0.0f);
        t[p + "self_attn.q_norm.weight"] = make({16}, 0.1f, 1.0f);
        t[p + "self_attn.k_norm.weight"] = make({16}, 0.1f, 1.0f);
        t[p + "mlp.gate_proj.weight"] = make({64, 32}, 0.2f, 0.0f);
        t[p + "mlp.up_proj.weight"] = make({64, 32}, 0.2f, 0.0f);
        t[p + "mlp.down_proj.weight"] = make({32, 64}, 0.2f, 0.0f);
    }
    return t;
}

// a folder of its own for each use
inline std::string fresh(const std::string& name) {
    static int count = 0;
    std::string path = root + "/" + std::to_string(++count) + "_" + name;
    return path;
}

inline std::string jsonl(const std::string& name, const std::string& text) {
    std::string path = fresh(name + ".jsonl");
    write_text(path, text);
    return path;
}

// a copy of the random model that a test may break
inline std::string model_copy() {
    std::string path = fresh("model");
    fs::copy(base, path, fs::copy_options::recursive);
    return path;
}

struct Cli : testing::Environment {
    void SetUp() override {
        root = (fs::temp_directory_path() / ("test_cli_" + std::to_string(getpid()))).string();
        fs::remove_all(root);
        fs::create_directories(root);
        ASSERT_TRUE(fs::exists(program())) << program() << " is missing: run make, or set TRAIN_QRL";
        std::string rows, questions;
        for (int a = 0; a < 10; a++)
            for (int b = 0; b < 10; b++) {
                std::string q = std::to_string(a) + "+" + std::to_string(b) + "=?\n", c = std::to_string(a + b);
                rows += json{{"prompt", q}, {"completion", "#### " + c}}.dump() + "\n";
                questions += json{{"prompt", q}, {"answer", c}}.dump() + "\n";
            }
        sums = root + "/sums.jsonl", problems = root + "/problems.jsonl";
        write_text(sums, rows);
        write_text(problems, questions);
        // the embedded model without a step: a folder with a byte-level tokenizer
        Args args = {"sft", "--train_data", sums, "--max_steps", "0", "--output_dir", root + "/embedded"};
        Outcome r = run(args);
        ASSERT_EQ(r.status, 0) << shown_run(args, r);
        bf16_build = r.out.find(", bf16, ") != std::string::npos;  // of the line that tells the device
        base = root + "/base", trained = root + "/sft/checkpoint-60";
        fs::copy(root + "/embedded/checkpoint-0", base, fs::copy_options::recursive);
        json config = tiny_config;
        config["eos_token_id"] = read_json(base + "/config.json")["eos_token_id"];
        write_text(base + "/config.json", config.dump());
        write_safetensors(base + "/model.safetensors", tiny_tensors());
        args = {"sft",        "--model",
                base,         "--train_data",
                sums,         "--max_steps",
                "60",         "--learning_rate",
                "0.01",       "--per_device_train_batch_size",
                "32",         "--output_dir",
                root + "/sft"};
        r = run(args);
        ASSERT_EQ(r.status, 0) << shown_run(args, r);
        ASSERT_TRUE(fs::exists(trained + "/model.safetensors"));
    }
    void TearDown() override { fs::remove_all(root); }
};
inline testing::Environment* const cli_environment = testing::AddGlobalTestEnvironment(new Cli);

// grpo on the sums: two steps of 8 prompts x 8 samples. A flag in `more` takes the place of the one here.
inline Args grpo(const std::string& out, const Args& more = {}) {
    Args all = {"--model",
                trained,
                "--train_data",
                problems,
                "--allow_overlap",  // for tests that evaluate on them, too
                "true",
                "--max_steps",
                "2",
                "--prompts_per_step",
                "8",
                "--max_completion_length",
                "16",
                "--learning_rate",
                "0.001",
                "--output_dir",
                out};
    Args args = {"grpo"};
    for (size_t i = 0; i < all.size(); i += 2)
        if (std::find(more.begin(), more.end(), all[i]) == more.end()) args = args + Args{all[i], all[i + 1]};
    return args + more;
}

inline double number(const json& row, const std::string& key) {
    if (!row.contains(key) || !row[key].is_number()) {
        ADD_FAILURE() << key << " is missing or not a number in " << row.dump();
        return std::numeric_limits<double>::quiet_NaN();
    }
    return row[key].get<double>();
}

// ---------------------------------------------------------------------------------------------------------------------
// what a run of grpo logs

inline void check_metrics(const std::vector<json>& rows, const Args& more = {}) {
    for (const json& row : rows) {
        for (const auto& item : row.items())
            EXPECT_TRUE(item.value().is_number()) << item.key() << " in " << row.dump();
        for (const std::string& key : Args{"step",
                                           "loss",
                                           "grad_norm",
                                           "learning_rate",
                                           "reward",
                                           "reward_std",
                                           "frac_reward_zero_std",
                                           "entropy",
                                           "completions/mean_length",
                                           "completions/min_length",
                                           "completions/max_length",
                                           "completions/mean_terminated_length",
                                           "completions/min_terminated_length",
                                           "completions/max_terminated_length",
                                           "completions/clipped_ratio",
                                           "completions/garbled_ratio",
                                           "completions/repeating_ratio",
                                           "clip_ratio/low_mean",
                                           "clip_ratio/low_min",
                                           "clip_ratio/high_mean",
                                           "clip_ratio/high_max",
                                           "clip_ratio/region_mean",
                                           "sampling/sampling_logp_difference/mean",
                                           "sampling/sampling_logp_difference/max",
                                           "sampling/importance_sampling_ratio/min",
                                           "sampling/importance_sampling_ratio/mean",
                                           "sampling/importance_sampling_ratio/max",
                                           "num_tokens",
                                           "epoch",
                                           "step_time"} +
                                          more)
            number(row, key);
        // sampler and trainer compute the same numbers, bit for bit
        EXPECT_EQ(number(row, "sampling/sampling_logp_difference/max"), 0.0);
        EXPECT_EQ(number(row, "sampling/importance_sampling_ratio/min"), 1.0);
        EXPECT_EQ(number(row, "sampling/importance_sampling_ratio/max"), 1.0);
        EXPECT_LE(number(row, "completions/min_length"), number(row, "completions/mean_length"));
        EXPECT_LE(number(row, "completions/mean_length"), number(row, "completions/max_length"));
    }
}

// the numbers of a run that do not depend on the clock
inline std::vector<std::string> learning_curve(const std::string& out) {
    std::vector<std::string> curve;
    for (const json& row : read_lines(out + "/metrics.jsonl")) {
        json kept;
        for (const auto& item : row.items())
            if (item.key().find("tim") == std::string::npos && item.key().rfind("perf/", 0) != 0 &&
                item.key() != "seconds")
                kept[item.key()] = item.value();
        curve.push_back(kept.dump());
    }
    return curve;
}
