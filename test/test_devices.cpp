// Devices, the memory plan and ranks, as a user meets them: ./train_qrl, and ./train_qrl_simt, whose --device cuda runs
// the CUDA kernels on the CPU.
#include "cli.h"
#include <thread>

// the same program with its CUDA kernels run on the CPU (make train_qrl_simt)
struct Simulated : testing::Test {
    void SetUp() override {
        if (!fs::exists("./train_qrl_simt")) GTEST_SKIP() << "needs ./train_qrl_simt (make train_qrl_simt)";
        setenv("TRAIN_QRL", "./train_qrl_simt", 1);
    }
    void TearDown() override {
        unsetenv("TRAIN_QRL");
        unsetenv("TRAIN_QRL_SIMT_DEVICES");
        unsetenv("TRAIN_QRL_SIMT_MEMORY");
    }
};

TEST(Device, CudaNeedsABuildWithIt) {
#if defined(PROGRAM_HAS_CUDA)
    GTEST_SKIP() << "needs a program built without CUDA (make CUDA=0)";
#endif
    std::string out = fresh("out");
    refused(1, grpo(out, {"--device", "cuda"}), {"--device cuda", "built without CUDA", "make CUDA=1", "--device cpu"});
    EXPECT_FALSE(fs::exists(out));
    refused(2, grpo(out, {"--device", "gpu"}), {"--device", "auto", "cpu", "cuda"});
}

TEST_F(Simulated, NoGpuIsOneLineThatOffersTheCpu) {
    setenv("TRAIN_QRL_SIMT_DEVICES", "0", 1);
    std::string out = fresh("out");
    refused(1, grpo(out, {"--device", "cuda"}), {"--device cuda", "no NVIDIA GPU is visible", "--device cpu"});
    EXPECT_FALSE(fs::exists(out));
    good(grpo(out, {"--device", "cpu", "--max_steps", "1"}));
}

TEST_F(Simulated, OutOfMemoryNamesTheLineAndTheFlag) {
    setenv("TRAIN_QRL_SIMT_MEMORY", "60000000", 1);
    std::string out = fresh("out");
    refused(1, grpo(out, {"--device", "cuda", "--micro_batch_tokens", "16384"}),
            {"out of memory", "the plan asks for", "and a reserve of 512.0 MiB, the GPU has", "MiB free of",
             "largest line is activations and their gradients", "lower --micro_batch_tokens"});
    EXPECT_FALSE(fs::exists(out)) << "nothing is written before the memory is there";
}

TEST_F(Simulated, HeadsTooWideForTheKernelsAreRefusedByName) {
    std::string m = model_copy(), out = fresh("out");
    json config = read_json(m + "/config.json");
    config["head_dim"] = 136;
    write_text(m + "/config.json", config.dump());
    refused(1, grpo(out, {"--device", "cuda", "--model", m}), {"head_dim 136", "128", "--device cpu"});
    EXPECT_FALSE(fs::exists(out));
}

TEST(Device, PlanIsPrintedAndNothingElseHappens) {
    std::string out = fresh("out");
    for (const Args& args : {grpo(out, {"--plan", "true"}),
                             Args{"sft", "--model", base, "--train_data", sums, "--plan", "true", "--output_dir", out},
                             Args{"eval", "--model", base, "--eval_data", problems, "--plan", "true",
                                  "--max_completion_length", "16", "--output_dir", out}}) {
        Outcome r = good(args);
        EXPECT_EQ(r.out.rfind("memory ", 0), 0u) << shown_run(args, r);
        const char* line = args[0] == "sft" ? "activations and their gradients (lower --micro_batch_tokens"
                                            : " (lower --rollout_batch)";
        EXPECT_NE(r.out.find(line), std::string::npos) << shown_run(args, r);
        EXPECT_FALSE(fs::exists(out));
    }
}

// so many bytes free as the plan says, and its reserve
TEST_F(Simulated, ThePlanFitsWithItsReserve) {
    const std::string out = fresh("out");
    const Args args = grpo(out, {"--device", "cuda", "--max_steps", "0", "--eval_n", "1"});
    const Outcome plan = good(args + Args{"--plan", "true"});
    EXPECT_NE(plan.out.find("\nreserve     512.0 MiB more stay free for modules"), std::string::npos) << plan.out;
    double mebibytes = 0;
    ASSERT_EQ(sscanf(plan.out.c_str(), "memory %lf MiB on the GPU", &mebibytes), 1) << plan.out;
    for (const bool enough : {false, true}) {
        setenv("TRAIN_QRL_SIMT_MEMORY", std::to_string((int64_t)((mebibytes + (enough ? 513 : 511)) * 1048576)).c_str(),
               1);
        if (enough) good(args);
        else refused(1, args, {"out of memory", "and a reserve of 512.0 MiB"});
    }
}

// The kernels in bf16 against the CPU loops in bf16, whole runs. Both begin with the same weights and draw with the same
// numbers; sums of products in another order differ in the last bits before each rounding to bf16, so that now and then
// a draw near a boundary gives another token, and from there that completion is another one.
TEST_F(Simulated, GrpoOnTheDeviceFollowsTheCpu) {
    const std::vector<Args> cases = {
        {"--weights", "int4:g32:sym"},
        {"--weights", "none", "--sampling_method", "gumbel"},
        // groups that divide the inputs of the layers they are for, and not those of the others
        {"--weights", "int3:g64:asym", "--quantize_layers", "o,down"},
        {"--weights", "int8:tensor:sym"},
    };
    for (const Args& weights : cases) {
        std::string cpu = fresh("cpu"), cuda = fresh("cuda");
        Args more = weights + Args{"--prompts_per_step", "4", "--num_generations", "4", "--max_steps", "3",
                                   "--eval_n",           "1", "--rollout_batch",   "16"};
        RunSetting setting;
        setting.seconds = 300;
        for (const std::string& device : {std::string("cpu"), std::string("cuda")}) {
            Args args = grpo(device == "cpu" ? cpu : cuda, more + Args{"--device", device});
            Outcome r = run(args, setting);
            ASSERT_EQ(r.status, 0) << shown_run(args, r);
        }
        std::vector<json> a = read_lines(cpu + "/metrics.jsonl"), b = read_lines(cuda + "/metrics.jsonl");
        ASSERT_EQ(a.size(), 3u);
        ASSERT_EQ(b.size(), 3u);
        check_metrics(b);  // on the device too the ratio is exactly 1
        for (size_t i = 0; i < 3; i++) {
            std::string rows = a[i].dump() + "\n" + b[i].dump();
            EXPECT_NEAR(number(b[i], "entropy"), number(a[i], "entropy"), 0.05 * number(a[i], "entropy") + 0.01)
                << rows;
            EXPECT_NEAR(number(b[i], "reward"), number(a[i], "reward"), 0.13) << rows;
            EXPECT_NEAR(number(b[i], "completions/mean_length"), number(a[i], "completions/mean_length"), 0.6) << rows;
            EXPECT_EQ(number(b[i], "learning_rate"), number(a[i], "learning_rate"));
        }
        double norm = number(a[0], "grad_norm");
        EXPECT_GT(norm, 0.0);
        EXPECT_NEAR(number(b[0], "grad_norm") / norm, 1.0, 0.25);
    }
}

TEST_F(Simulated, WithoutBatchInvarianceTheRatioIsOneToRounding) {
    std::string out = fresh("out");
    good(grpo(out, {"--device", "cuda", "--batch_invariant", "false", "--prompts_per_step", "4", "--num_generations",
                    "4", "--eval_n", "1"}));
    for (const json& row : read_lines(out + "/metrics.jsonl")) {
        EXPECT_NEAR(number(row, "sampling/importance_sampling_ratio/mean"), 1.0, 0.01) << row.dump();
        EXPECT_LT(number(row, "sampling/sampling_logp_difference/max"), 0.5) << row.dump();
    }
}

// Two processes over the simulated NCCL. shell: commands before the second starts
struct TwoRanks {
    Outcome first, second;
};
static TwoRanks two_ranks(const Args& args, const Args& args_of_second, const std::string& shell = "",
                          const RunSetting& setting = {}) {
    TwoRanks r;
    const std::string err = fresh("rank-1.err");
    std::string command = shell + " RANK=1 WORLD_SIZE=2 LOCAL_RANK=0 exec ./train_qrl_simt";
    for (const std::string& arg : args_of_second) command += " '" + arg + "'";
    command += " 2>" + err;
    std::thread other([&] {
        const int status = system(command.c_str());
        r.second.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    });
    for (const char* name : {"RANK", "LOCAL_RANK"}) setenv(name, "0", 1);
    setenv("WORLD_SIZE", "2", 1);
    r.first = run(args, setting);
    for (const char* name : {"RANK", "LOCAL_RANK", "WORLD_SIZE"}) unsetenv(name);
    other.join();
    r.second.err = read_text(err);
    return r;
}
static void run_on_two_ranks(const Args& args) {
    const TwoRanks r = two_ranks(args, args);
    ASSERT_EQ(r.first.status, 0) << shown_run(args, r.first);
    ASSERT_EQ(r.second.status, 0) << shown_run(args, r.second);
}

// The ranks' gradients are summed in another order than one rank adds them, so the first update agrees to rounding, and
// what is sampled after it may differ by a draw near a boundary.
TEST_F(Simulated, TwoRanksShareTheWorkOfOne) {
    std::string one = fresh("one"), two = fresh("new") + "/two";  // the folder above is made too
    Args more = {"--device",          "cuda", "--weights", "int4:g32:sym", "--prompts_per_step", "4",
                 "--num_generations", "4",    "--beta",    "0.02",         "--eval_n",           "1"};
    good(grpo(one, more));
    run_on_two_ranks(grpo(two, more));
    EXPECT_FALSE(fs::exists(two + ".nccl_id"));
    EXPECT_EQ(learning_curve(two), learning_curve(two + ".rank-1")) << "the ranks disagree";
    std::vector<json> a = read_lines(one + "/metrics.jsonl"), b = read_lines(two + "/metrics.jsonl");
    ASSERT_EQ(b.size(), a.size());
    check_metrics(b);
    for (const char* key : {"reward", "entropy", "completions/mean_length", "num_tokens", "clip_ratio/high_mean"})
        EXPECT_NEAR(number(b[0], key), number(a[0], key), 1e-9) << key;
    EXPECT_NEAR(number(b[0], "grad_norm") / number(a[0], "grad_norm"), 1.0, 1e-3);
    EXPECT_NEAR(number(b[1], "entropy") / number(a[1], "entropy"), 1.0, 0.05);
    std::vector<json> x = read_lines(one + "/completions.jsonl"), y = read_lines(two + "/completions.jsonl");
    ASSERT_EQ(x.size(), y.size());
    for (size_t i = 0; i < x.size() / 2; i++) EXPECT_EQ(x[i]["completion"], y[i]["completion"]) << "step 1, " << i;
}

// A sampler of its own, with stale weights and noise, is the same on all ranks, and a rank that did not save it goes on
// with it
TEST_F(Simulated, TwoRanksHaveOneSampler) {
    const Args more = {"--device",
                       "cuda",
                       "--weights",
                       "none",
                       "--rollout_weights",
                       "int4:g32",
                       "--rollout_staleness",
                       "1",
                       "--noise_sigma_start",
                       "0.2",
                       "--noise_num_stages",
                       "2",
                       "--prompts_per_step",
                       "4",
                       "--num_generations",
                       "4",
                       "--eval_n",
                       "1",
                       "--max_steps",
                       "3",
                       "--save_steps",
                       "1"};
    const std::string one = fresh("one"), two = fresh("two"), rest = fresh("rest");
    good(grpo(one, more));
    run_on_two_ranks(grpo(two, more));
    EXPECT_EQ(learning_curve(two), learning_curve(two + ".rank-1")) << "the ranks disagree";
    const std::vector<json> x = read_lines(one + "/completions.jsonl"), y = read_lines(two + "/completions.jsonl");
    ASSERT_EQ(x.size(), y.size());
    for (size_t i = 0; i < x.size() / 3; i++) EXPECT_EQ(x[i]["completion"], y[i]["completion"]) << "step 1, " << i;
    EXPECT_GT(number(read_lines(two + "/metrics.jsonl")[0], "sampling/sampling_logp_difference/max"), 1e-4);
    for (const char* rank : {"", ".rank-1"}) fs::copy(two + rank, rest + rank, fs::copy_options::recursive);
    for (const char* step : {"2", "3"}) fs::remove_all(rest + "/checkpoint-" + step);
    run_on_two_ranks({"grpo", "--output_dir", rest, "--resume_from_checkpoint", "last"});
    EXPECT_EQ(learning_curve(two), learning_curve(rest));
    EXPECT_TRUE(read_text(two + "/checkpoint-3/model.safetensors") ==
                read_text(rest + "/checkpoint-3/model.safetensors"));
}

// the same ranks go on with the same bits; another number of them is a note
TEST_F(Simulated, TwoRanksGoOnFromACheckpoint) {
    const std::string whole = fresh("whole"), died = fresh("died");
    run_on_two_ranks(grpo(whole, {"--device",
                                  "cuda",
                                  "--weights",
                                  "int4:g32:sym",
                                  "--prompts_per_step",
                                  "4",
                                  "--num_generations",
                                  "4",
                                  "--beta",
                                  "0.02",
                                  "--eval_n",
                                  "1",
                                  "--max_steps",
                                  "4",
                                  "--save_steps",
                                  "2",
                                  "--eval_data",
                                  problems,
                                  "--eval_steps",
                                  "1",
                                  "--load_best_model_at_end"}));
    for (const char* rank : {"", ".rank-1"}) fs::copy(whole + rank, died + rank, fs::copy_options::recursive);
    fs::remove_all(died + "/checkpoint-4");
    EXPECT_FALSE(fs::exists(whole + ".rank-1/checkpoint-4"));  // one of them writes
    const std::string alone = fresh("alone");
    fs::copy(died, alone, fs::copy_options::recursive);
    auto resumed = [](const std::string& out) {
        return Args{"grpo", "--output_dir", out, "--resume_from_checkpoint", "last"};
    };
    run_on_two_ranks(resumed(died));
    EXPECT_EQ(learning_curve(died), learning_curve(whole));
    EXPECT_EQ(learning_curve(died + ".rank-1"), learning_curve(whole + ".rank-1"));
    EXPECT_EQ(read_text(died + "/completions.jsonl"), read_text(whole + "/completions.jsonl"));
    for (const char* file : {"model", "optimizer", "trainer"})
        EXPECT_TRUE(read_text(died + "/checkpoint-4/" + file + ".safetensors") ==
                    read_text(whole + "/checkpoint-4/" + file + ".safetensors"))
            << file;
    Outcome r = good(resumed(alone));
    EXPECT_NE(r.err.find("note: ranks 1 now, 2 before: sums run in another order"), std::string::npos) << r.err;
    EXPECT_NEAR(number(read_lines(alone + "/metrics.jsonl")[2], "entropy"),
                number(read_lines(whole + "/metrics.jsonl")[2], "entropy"), 0.05);
}

// of three examples one rank has two and the other one, a micro-batch each; the dropout after the resumption is that of the
// whole run on both
TEST_F(Simulated, TwoRanksGoOnWithTheSameDropout) {
    const std::string whole = fresh("whole"), died = fresh("died");
    run_on_two_ranks({"sft", "--model", trained, "--train_data", sums, "--lora_r", "4", "--lora_dropout", "0.5", "--weights", "none",
                      "--per_device_train_batch_size", "3", "--micro_batch_tokens", "16", "--learning_rate", "0.01",
                      "--max_steps", "4", "--save_steps", "2", "--device", "cuda", "--output_dir", whole});
    for (const char* rank : {"", ".rank-1"}) fs::copy(whole + rank, died + rank, fs::copy_options::recursive);
    fs::remove_all(died + "/checkpoint-4");
    run_on_two_ranks({"sft", "--output_dir", died, "--resume_from_checkpoint", "last"});
    EXPECT_EQ(learning_curve(died), learning_curve(whole));
    EXPECT_TRUE(read_text(died + "/checkpoint-4/adapter_model.safetensors") ==
                read_text(whole + "/checkpoint-4/adapter_model.safetensors"));
}

TEST_F(Simulated, TwoRanksShareTheBatchOfEveryObjective) {
    for (const Args& objective :
         {Args{"sft"}, Args{"distill", "--weights", "int4:g16"}, Args{"distill", "--lmbda", "1"}}) {
        std::string one = fresh("one"), two = fresh("two");
        auto args = [&](const std::string& out) {
            return objective + Args{"--model",
                                    trained,
                                    "--train_data",
                                    sums,
                                    "--max_steps",
                                    "2",
                                    "--per_device_train_batch_size",
                                    "6",
                                    "--learning_rate",
                                    "0.001",
                                    "--device",
                                    "cuda",
                                    "--output_dir",
                                    out} +
                   (objective.back() == "1" ? Args{"--max_completion_length", "8"} : Args{});
        };
        good(args(one));
        run_on_two_ranks(args(two));
        EXPECT_EQ(learning_curve(two), learning_curve(two + ".rank-1")) << "the ranks disagree";
        json a = read_lines(one + "/metrics.jsonl").at(0), b = read_lines(two + "/metrics.jsonl").at(0);
        EXPECT_NEAR(number(b, "loss"), number(a, "loss"), 1e-3 * std::fabs(number(a, "loss")) + 1e-6) << objective[0];
        if (number(a, "grad_norm") > 0) {
            EXPECT_NEAR(number(b, "grad_norm") / number(a, "grad_norm"), 1.0, 1e-2) << objective[0];
        }
        EXPECT_EQ(number(b, "num_tokens"), number(a, "num_tokens")) << objective[0];
    }
}

// one step; flags in `more` take the place of those here
static Args sft_of_ranks(const std::string& out, const Args& more = {}) {
    const Args all = {"--model",
                      trained,
                      "--train_data",
                      sums,
                      "--per_device_train_batch_size",
                      "4",
                      "--device",
                      "cuda",
                      "--learning_rate",
                      "0.001",
                      "--max_steps",
                      "1",
                      "--output_dir",
                      out,
                      "--ddp_timeout",
                      "20"};
    Args args = {"sft"};
    for (size_t i = 0; i < all.size(); i += 2)
        if (std::find(more.begin(), more.end(), all[i]) == more.end()) args = args + Args{all[i], all[i + 1]};
    return args + more;
}

// whatever is trained: the ranks' weights are compared after each step (train/rank_check.cuh), and a run ends if they differ
TEST_F(Simulated, TwoRanksTrainOneModel) {
    const Args int4 = {"--weights", "int4:g16:asym"}, adapter = {"--lora_r", "4"};
    const Args inside = int4 + adapter + Args{"--lora_inside_quantizer", "true"};
    const Args learned = {"--qat_scale", "learned", "--learned_scale"};
    for (const Args& what : {int4 + Args{"--optim", "muon", "--rounding", "stochastic"} + learned + Args{"lwc"},
                             Args{"--weights", "nf4:g16"} + adapter, inside, inside + learned + Args{"lsq"},
                             inside + learned + Args{"lsq_offset"}, inside + learned + Args{"lwc"}}) {
        const std::string out = fresh("two");
        run_on_two_ranks(sft_of_ranks(out, what));
        EXPECT_EQ(learning_curve(out), learning_curve(out + ".rank-1")) << what.back();
    }
}

// ranks that take steps of another size are what a gradient that was not summed comes to
TEST_F(Simulated, RanksThatTrainDifferentModelsEnd) {
    struct Case {
        Args what, of_the_second;
        const char* group;
    };
    for (const Case& c :
         {Case{{}, {"--group_learning_rates", "embeddings=0.002"}, "embeddings"},
          Case{{"--lora_r", "4", "--weights", "nf4:g16"}, {"--learning_rate", "0.002"}, "adapters"},
          Case{{"--weights", "int4:g16", "--qat_scale", "learned"}, {"--scale_learning_rate", "0.003"}, "scales"}}) {
        const std::string out = fresh("two");
        const TwoRanks r = two_ranks(sft_of_ranks(out, c.what), sft_of_ranks(out, c.what + c.of_the_second));
        for (const Outcome& rank : {r.first, r.second}) {
            EXPECT_EQ(rank.status, 1) << rank.err;
            EXPECT_NE(
                rank.err.find(std::string("train_qrl: step 1: the 2 ranks hold different weights (") + c.group + ": "),
                std::string::npos)
                << rank.err;
        }
    }
}

// a rank that dies in mid-step, and one that fails (its log may have no more than so many bytes)
TEST_F(Simulated, TheOthersOfALostRankEndWithAMessage) {
    const std::string pid = fresh("pid");
    for (const bool killed : {true, false}) {
        const std::string out = fresh("two");
        RunSetting setting;
        bool done = false;
        setting.when = [&](const Outcome& r) {
            if (!killed || done || r.out.find("step   2/") == std::string::npos) return false;
            kill((pid_t)std::stoi(read_text(pid)), SIGKILL);
            done = true;
            return false;
        };
        const Args args = sft_of_ranks(out, {"--max_steps", "400", "--ddp_timeout", "2"});
        const TwoRanks r = two_ranks(args, args, killed ? "echo $$ >" + pid + ";" : "ulimit -f 16;", setting);
        EXPECT_EQ(r.first.status, 1) << shown_run(args, r.first);
        EXPECT_NE(r.first.err.find("train_qrl: rank 0 of 2: "), std::string::npos) << r.first.err;
        EXPECT_NE(r.first.err.find("waited 2 s for the others (--ddp_timeout)"), std::string::npos) << r.first.err;
        EXPECT_NE(r.first.err.find("the weights of step"), std::string::npos) << r.first.err;
        EXPECT_EQ(r.second.status, killed ? 128 + SIGKILL : 1);
        if (!killed) { EXPECT_NE(r.second.err.find("File too large"), std::string::npos) << r.second.err; }
    }
}

TEST_F(Simulated, RanksThatCannotMeetAreRefused) {
    std::string out = fresh("out");
    setenv("WORLD_SIZE", "0", 1);
    refused(2, grpo(out, {"--device", "cuda"}), {"WORLD_SIZE=0"});
    setenv("WORLD_SIZE", "3", 1);
    refused(2, grpo(out, {"--device", "cuda"}), {"--prompts_per_step 8", "WORLD_SIZE 3"});
    setenv("WORLD_SIZE", "2", 1);
    setenv("RANK", "2", 1), setenv("LOCAL_RANK", "0", 1);
    refused(2, grpo(out, {"--device", "cuda"}), {"RANK=2", "WORLD_SIZE=2"});
    setenv("RANK", "0", 1);
    refused(1, grpo(out, {"--device", "cpu"}), {"WORLD_SIZE=2", "--device cuda"});
    refused(2, {"--device", "cuda"}, {"WORLD_SIZE=2", "--output_dir"});
    refused(2, {"eval", "--model", base, "--eval_data", problems}, {"WORLD_SIZE=2", "grpo"});
    EXPECT_FALSE(fs::exists(out));
    for (const char* name : {"RANK", "LOCAL_RANK", "WORLD_SIZE"}) unsetenv(name);
}
