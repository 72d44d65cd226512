// Runs that are stopped, killed or fail, and go on: --resume_from_checkpoint gives the bits of the run that nothing happened
// to. TRAIN_QRL_LONG=1 (make test-long) kills at every system call of a save, and at 40 random moments; without, at some.
#include <dirent.h>
#include <sys/file.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <set>
#include "cli.h"
#include "tfevents_reader.h"

static bool is_long() {
    const char* text = getenv("TRAIN_QRL_LONG");
    return text && *text == '1';
}

// a flag of `more` takes the place of one in `args`
static Args with(const Args& args, const Args& more) {
    Args all;
    for (size_t i = 0; i < args.size(); i++) {
        const bool flag = args[i].rfind("--", 0) == 0;
        if (flag && std::find(more.begin(), more.end(), args[i]) != more.end()) i++;
        else all.push_back(args[i]);
    }
    return all + more;
}

// what a run left that does not depend on the clock: its logs, and every file of its last checkpoint
static std::map<std::string, std::string> left_by(const std::string& out) {
    std::map<std::string, std::string> left;
    for (const std::string& line : learning_curve(out)) left["metrics.jsonl"] += line + "\n";
    for (const char* name : {"evaluations.jsonl", "completions.jsonl", "samples.jsonl", "code_flips.jsonl",
                             "quant_statistics.jsonl", "warnings.jsonl"})
        if (fs::exists(out + "/" + name)) left[name] = read_text(out + "/" + name);
    int last = -1;
    for (const auto& entry : fs::directory_iterator(out)) {
        const std::string name = entry.path().filename();
        if (name.rfind("checkpoint-", 0) == 0 && name.find_first_not_of("0123456789", 11) == name.npos)
            last = std::max(last, std::stoi(name.substr(11)));
    }
    const std::string folder = out + "/checkpoint-" + std::to_string(last);
    for (const auto& entry : fs::directory_iterator(folder)) {
        const std::string name = entry.path().filename();
        left[name] = read_text(entry.path());
        for (size_t at; (at = left[name].find(out + "/")) != std::string::npos;) left[name].erase(at, out.size());
        if (name != "trainer_state.json") continue;
        json state = json::parse(left[name]);
        for (const char* key : {"train_seconds", "generate_seconds"}) state["loop"].erase(key);
        // the run's id, and what a flag that changes nothing may change
        for (const char* key : {"run_id", "wall_seconds", "given", "options", "checkpoints"}) state.erase(key);
        left[name] = state.dump();
    }
    left["last checkpoint"] = std::to_string(last);
    return left;
}

static void expect_same(const std::string& a, const std::string& b, const std::string& what) {
    std::map<std::string, std::string> x = left_by(a), y = left_by(b);
    for (const auto& item : x) EXPECT_EQ(y.count(item.first), 1u) << what << ": no " << item.first << " in " << b;
    for (const auto& [name, text] : y) {
        ASSERT_EQ(x.count(name), 1u) << what << ": no " << name << " in " << a;
        const bool prints = name.find(".json") != std::string::npos;
        EXPECT_TRUE(text == x[name]) << what << ": " << name << " differs"
                                     << (prints ? "\n" + x[name].substr(0, 3000) + "\n" + text.substr(0, 3000) : "");
    }
}

// The program in the background, its output in a file
struct Background {
    pid_t pid = -1;
    std::string log;

    explicit Background(const Args& args, const std::function<void()>& before = nullptr) : log(fresh("log")) {
        pid = fork();
        if (pid != 0) return;
        const int file = open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
        dup2(file, 1), dup2(file, 2);
        for (int s : {SIGINT, SIGHUP, SIGPIPE}) signal(s, SIG_DFL);
        setenv("OMP_WAIT_POLICY", "passive", 0);
        setenv("OMP_NUM_THREADS", "2", 0);
        std::string path = fs::absolute(program());
        if (before) before();
        std::vector<char*> argv = {&path[0]};
        for (const std::string& a : args) argv.push_back(const_cast<char*>(a.c_str()));
        argv.push_back(nullptr);
        execv(path.c_str(), argv.data());
        _exit(127);
    }
    // exit status, or 128 + signal
    int wait() {
        int status = 0;
        waitpid(pid, &status, 0);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    bool said(const std::string& text) const { return read_text(log).find(text) != std::string::npos; }
    bool wait_for(const std::string& text) const {
        for (int i = 0; i < 6000 && !said(text); i++) usleep(2000);
        return said(text);
    }
};

// as a death after step 2 leaves it: its logs may have more than its last checkpoint has
static std::string died_after_two(const std::string& whole) {
    const std::string out = fresh("died");
    fs::copy(whole, out, fs::copy_options::recursive);
    fs::remove_all(out + "/checkpoint-4");
    fs::remove(out + "/summary.json");
    return out;
}

static Args resume(const std::string& command, const std::string& out, const Args& more = {}) {
    return Args{command, "--output_dir", out, "--resume_from_checkpoint", "last"} + more;
}

static Args four_steps(const std::string& out, const Args& more = {}) {
    return with(grpo(out, {"--max_steps", "4", "--save_steps", "2", "--eval_n", "4"}), more);
}
static Args four_of(const std::string& command, const std::string& out, const Args& more = {}) {
    return with(Args{command, "--model", trained, "--train_data", sums, "--max_steps", "4", "--save_steps", "2",
                     "--per_device_train_batch_size", "6", "--learning_rate", "0.001", "--output_dir", out},
                more);
}

// ---------------------------------------------------------------------------------------------------------------------
// every kind of run

struct Kind {
    const char* name;
    const char* command;
    Args more;
};

static const std::vector<Kind> kinds = {
    {"none", "grpo", {"--weights", "none"}},
    {"int4", "grpo", {"--weights", "int4:g32"}},
    {"static", "grpo", {"--weights", "int4:g32:asym", "--qat_scale", "static"}},
    {"learned", "grpo", {"--weights", "int3:g32", "--qat_scale", "learned"}},
    {"lwc", "grpo", {"--weights", "int4:g32:asym", "--qat_scale", "learned", "--learned_scale", "lwc"}},
    {"mid-rise",
     "sft",
     {"--weights", "mid2:channel", "--activations", "mid4:token:gauss", "--ste", "ewgs:delta=0.5", "--qat_scale",
      "learned", "--learned_scale", "pact"}},
    {"stochastic", "grpo", {"--weights", "int4:g32", "--rounding", "stochastic"}},
    {"nvfp4 static", "grpo", {"--weights", "nvfp4", "--qat_scale", "static"}},
    {"qlora", "grpo", {"--lora_r", "4", "--lora_dropout", "0.1", "--weights", "nf4:g32:dq", "--beta", "0.04"}},
    {"l4q", "grpo", {"--weights", "int4:g32", "--lora_r", "4", "--lora_inside_quantizer", "--qat_scale", "learned"}},
    {"muon", "grpo", {"--weights", "int4:g32", "--optim", "muon"}},
    {"8-bit moments", "grpo", {"--weights", "int4:g32", "--optim", "adamw_8bit"}},
    {"bf16 moments", "grpo", {"--weights", "int4:g32", "--optim", "adamw_bf16"}},
    {"synced reference",
     "grpo",
     {"--beta", "0.04", "--sync_ref_model", "--ref_model_sync_steps", "1", "--ref_model_mixup_alpha", "0.3"}},
    {"two updates a step", "grpo", {"--weights", "int4:g32", "--num_iterations", "2"}},
    {"dynamic sampling",
     "grpo",
     {"--dynamic_sampling", "true", "--dynamic_sampling_max_batches", "3", "--reward_funcs",
      "exact,self_certainty,repetition", "--reward_weights", "1,0.1,0.1"}},
    {"recomputed", "grpo", {"--weights", "int4:g32", "--gradient_checkpointing", "true"}},
    {"activations and cache",
     "grpo",
     {"--weights", "int4:g32", "--activations", "int8:token", "--kv_cache", "int8:token"}},
    {"bases chosen anew, a synced reference",
     "grpo",
     {"--weights", "int4:channel", "--activations", "int4:token:asym", "--methods", "roste:every=1", "--beta", "0.04",
      "--sync_ref_model", "--ref_model_sync_steps", "1"}},
    {"bases chosen once, a kept grid",
     "grpo",
     {"--weights", "int4:channel", "--methods", "roste", "--qat_scale", "static", "--beta", "0.04"}},
    {"l4q in a rotated basis",
     "grpo",
     {"--weights", "int4:g32", "--lora_r", "4", "--lora_inside_quantizer", "--qat_scale", "learned", "--hadamard",
      "all"}},
    {"saved in bf16", "grpo", {"--weights", "int4:g32", "--save_dtype", "bfloat16"}},
    {"evaluated", "grpo", {"--eval_data", "PROBLEMS", "--eval_steps", "1"}},
    {"logged now and then", "grpo", {"--weights", "mxfp4", "--quant_statistics", "history", "--logging_steps", "3"}},
    {"sft", "sft", {"--weights", "int4:g32", "--quant_statistics", "history"}},
    {"sft in chosen bases, pulled to their grids",
     "sft",
     {"--weights", "int4:channel", "--activations", "int4:token:asym", "--methods",
      "roste:every=1+cage:lambda=10:silence=0"}},
    {"some rows", "sft", {"--weights", "int4:g32", "--methods", "efqat:share=0.3:every=1", "--weight_decay", "0.1"}},
    {"some rows of all",
     "grpo",
     {"--weights", "int4:g32", "--methods", "efqat:select=cwpn:share=0.3", "--optim", "muon"}},
    {"sft of adapters", "sft", {"--weights", "nf4:g32", "--lora_r", "4", "--lora_dropout", "0.1"}},
    {"full precision with a grid's noise", "sft", {"--weights", "none", "--methods", "rounding_noise:bits=3:scope=channel"}},
    {"distill", "distill", {"--weights", "int3:g32"}},
    {"distill on-policy", "distill", {"--weights", "int3:g32", "--lmbda", "0.5", "--max_completion_length", "8"}},
};

TEST(Resume, EveryKindOfRunGoesOnWithTheSameBits) {
    for (const Kind& kind : kinds) {
        const std::string whole = fresh("whole");
        Args more = kind.more;
        for (std::string& word : more)
            if (word == "PROBLEMS") word = problems;
        const bool samples = kind.command == std::string("grpo");
        good(samples ? four_steps(whole, more) : four_of(kind.command, whole, more));
        const std::string died = died_after_two(whole);
        Outcome r = good(resume(kind.command, died));  // its flags are those of the checkpoint
        EXPECT_NE(r.out.find("resumed     from " + died + "/checkpoint-2, 2 of 4 steps done"), std::string::npos)
            << kind.name << shown_run({}, r);
        expect_same(whole, died, kind.name);
        EXPECT_EQ(read_json(died + "/summary.json")["steps"], 4) << kind.name;
    }
}

TEST(Resume, TheEmbeddedModelIsNotTaughtAgain) {
    for (const Args& more : {Args{}, Args{"--weights", "nf4:g32", "--lora_r", "4"}}) {
        const std::string whole = fresh("whole");
        good(Args{"grpo", "--cold_start_loss", "8", "--max_steps", "4", "--save_steps", "2", "--prompts_per_step", "2",
                  "--num_generations", "2", "--eval_n", "2", "--output_dir", whole} +
             more);
        EXPECT_TRUE(fs::exists(whole + "/checkpoint-0/trainer_state.json"));
        for (const char* from : {"checkpoint-2", "checkpoint-0"}) {
            const std::string died = died_after_two(whole);
            if (from == std::string("checkpoint-0")) fs::remove_all(died + "/checkpoint-2");
            Outcome r = good(resume("grpo", died));
            EXPECT_EQ(r.out.find("cold start"), std::string::npos) << shown_run({}, r);
            expect_same(whole, died, from);
        }
    }
}

TEST(Resume, OtherThreadsAndOtherCheckpointingChangeNothing) {
    const std::string whole = fresh("whole");
    good(four_steps(whole, {"--weights", "int4:g32", "--threads", "2"}));
    const std::string died = died_after_two(whole);
    Outcome r = good(resume("grpo", died, {"--threads", "1", "--gradient_checkpointing", "true"}));
    for (const char* flag : {"--threads 1 was 2", "--gradient_checkpointing true was false"})
        EXPECT_NE(r.out.find(std::string("note        ") + flag + ": changes nothing in the weights"),
                  std::string::npos)
            << shown_run({}, r);
    expect_same(whole, died, "1 thread, recomputed");
}

TEST(Resume, SaysWhatOtherFlagsDo) {
    const std::string whole = fresh("whole");
    good(four_steps(whole));
    Outcome r =
        good(resume("grpo", died_after_two(whole), {"--learning_rate", "0.002", "--max_steps", "5", "--eval_n", "3"}));
    for (const char* line :
         {"--learning_rate 0.002 was 0.001: changes the result",
          "--max_steps 5 was 4: the learning rate of the steps to come", "--eval_n 3 was 4: changes what is measured"})
        EXPECT_NE(r.out.find(std::string("note        ") + line), std::string::npos) << line << shown_run({}, r);
}

TEST(Resume, AFinishedRunIsExtended) {
    const Args constant = {"--lr_scheduler_type", "constant", "--weights", "int4:g32"};
    const std::string whole = fresh("whole"), half = fresh("half");
    good(four_steps(whole, constant));
    good(four_steps(half, constant + Args{"--max_steps", "2"}));
    Outcome r = good(resume("grpo", half, {"--max_steps", "4"}));
    EXPECT_NE(r.out.find("--max_steps 4 was 2: more or fewer steps at the same learning rate"), std::string::npos)
        << shown_run({}, r);
    expect_same(whole, half, "extended");
}

// in another folder the logs begin at the checkpoint, and the run that was there stays as it is
TEST(Resume, InAnotherFolderTheRunBranches) {
    const std::string whole = fresh("whole"), branch = fresh("branch");
    good(four_steps(whole));
    const std::map<std::string, std::string> before = left_by(whole);
    good({"grpo", "--resume_from_checkpoint", whole + "/checkpoint-2", "--output_dir", branch});
    EXPECT_EQ(left_by(whole), before);
    const std::vector<std::string> all = learning_curve(whole), rest = learning_curve(branch);
    ASSERT_EQ(rest.size(), 2u);
    EXPECT_EQ(rest[0], all[2]);
    EXPECT_EQ(rest[1], all[3]);
    EXPECT_EQ(read_text(branch + "/checkpoint-4/model.safetensors"),
              read_text(whole + "/checkpoint-4/model.safetensors"));
    // there, a later checkpoint of the same run is in the way
    refused(1, {"grpo", "--resume_from_checkpoint", whole + "/checkpoint-2"},
            {whole + "/checkpoint-4 is later than " + whole + "/checkpoint-2", "--output_dir"});
}

TEST(Resume, LastIsThatOfOut) {
    const std::string here = fresh("here");
    fs::create_directories(here);
    auto in_here = [&](const Args& args) {
        Background run(args, [&] { EXPECT_EQ(chdir(here.c_str()), 0); });
        EXPECT_EQ(run.wait(), 0) << read_text(run.log);
    };
    const Args args = four_steps("out");
    in_here(args);
    fs::remove_all(here + "/out/checkpoint-4");
    in_here({"--resume_from_checkpoint", "last"});
    EXPECT_TRUE(fs::exists(here + "/out/checkpoint-4"));
    EXPECT_FALSE(fs::exists(here + "/out-2"));
}

// ---------------------------------------------------------------------------------------------------------------------
// what is kept

TEST(Checkpoints, NoMoreThanTheLimitAndTheBest) {
    const std::string out = fresh("out");
    const Args args = four_steps(out, {"--max_steps", "6", "--save_steps", "1", "--save_total_limit", "2"});
    good(args);
    std::set<std::string> found;
    for (const auto& entry : fs::directory_iterator(out))
        if (entry.is_directory()) found.insert(entry.path().filename());
    EXPECT_EQ(found, (std::set<std::string>{"checkpoint-5", "checkpoint-6"}));

    const std::string best = fresh("best");
    good(with(args, {"--eval_data", problems, "--eval_n", "20", "--eval_steps", "1", "--load_best_model_at_end",
                     "--metric_for_best_model", "greedy", "--learning_rate", "0.01", "--output_dir", best}));
    const json summary = read_json(best + "/summary.json");
    const int step = summary["best"]["step"];
    double highest = -1.0;
    int at = 0;
    std::vector<json> rows = read_lines(best + "/metrics.jsonl");
    for (const json& row : rows)
        if (row.contains("eval_greedy") && number(row, "eval_greedy") > highest)
            highest = number(row, "eval_greedy"), at = row["step"];
    if (summary["eval"]["after"]["greedy"] > highest) highest = summary["eval"]["after"]["greedy"], at = 6;
    EXPECT_EQ(step, at);
    EXPECT_EQ(summary["best"]["greedy"], highest);
    EXPECT_TRUE(fs::exists(best + "/checkpoint-" + std::to_string(step))) << step;
    EXPECT_EQ(summary["checkpoint"], best + "/checkpoint-" + std::to_string(step));
    if (step < 6) { EXPECT_EQ(summary["eval"]["best"]["greedy"], highest); }
}

TEST(Checkpoints, TheModelAloneIsNoRun) {
    const std::string out = fresh("out");
    good(four_steps(out, {"--save_only_model"}));
    EXPECT_FALSE(fs::exists(out + "/checkpoint-2/trainer_state.json"));
    EXPECT_FALSE(fs::exists(out + "/checkpoint-2/optimizer.safetensors"));
    refused(1, {"grpo", "--resume_from_checkpoint", out + "/checkpoint-2"},
            {out + "/checkpoint-2 has no trainer_state.json", "--model " + out + "/checkpoint-2"});
    good(grpo(fresh("new"), {"--model", out + "/checkpoint-2"}));
}

TEST(Checkpoints, ThePlanKnowsTheDisk) {
    Outcome r = good(four_steps(fresh("out"), {"--plan"}));
    EXPECT_NE(r.out.find("disk        2 checkpoints of "), std::string::npos) << shown_run({}, r);
    EXPECT_NE(r.out.find(" are free at "), std::string::npos) << shown_run({}, r);
    const std::string out = fresh("out");
    r = good(four_steps(out, {"--weights", "int4:g32"}));
    double unit = 0.0;
    ASSERT_EQ(
        sscanf(r.out.c_str() + r.out.find("disk        2 checkpoints of "), "disk 2 checkpoints of %lf KiB", &unit), 1)
        << shown_run({}, r);
    double bytes = 0.0;
    for (const char* name : {"model", "optimizer", "trainer"})
        bytes += (double)fs::file_size(out + "/checkpoint-4/" + name + ".safetensors");
    EXPECT_NEAR(unit * 1024.0 / bytes, 1.0, 0.1);
}

TEST(Checkpoints, BadUse) {
    refused(2, four_steps(fresh("out"), {"--load_best_model_at_end"}), {"--load_best_model_at_end", "--eval_steps"});
    refused(2, four_steps(fresh("out"), {"--metric_for_best_model", "kl"}), {"--metric_for_best_model", "--load_best"});
    refused(
        2, four_steps(fresh("out"), {"--load_best_model_at_end", "--eval_steps", "1", "--metric_for_best_model", "kl"}),
        {"--metric_for_best_model kl is not measured"});
    refused(2, four_steps(fresh("out"), {"--sync_ref_model"}), {"--sync_ref_model", "--beta"});
    refused(2, four_steps(fresh("out"), {"--ref_model_sync_steps", "3"}),
            {"--ref_model_sync_steps", "--sync_ref_model"});
}

// ---------------------------------------------------------------------------------------------------------------------
// stopped by a signal

TEST(Signals, SaveAndLeaveAndTheRunGoesOn) {
    const Args eval = {"--eval_data", problems, "--eval_n", "100", "--eval_steps", "2", "--max_steps", "8"};
    const std::string whole = fresh("whole");
    good(four_steps(whole, eval));
    for (const auto& [signal_number, moment] : std::vector<std::pair<int, std::string>>{{SIGTERM, "step   1/8"},
                                                                                        {SIGINT, "step   2/8"},
                                                                                        {SIGHUP, "held out step 2"},
                                                                                        {SIGTERM, "step   6/8"},
                                                                                        {SIGINT, "held out before"}}) {
        const std::string out = fresh("out");
        Background run(four_steps(out, eval));
        ASSERT_TRUE(run.wait_for(moment)) << read_text(run.log);
        kill(run.pid, signal_number);
        const int status = run.wait();
        if (status != 0) {
            EXPECT_EQ(status, 128 + signal_number) << read_text(run.log);
            EXPECT_TRUE(run.said("stopped after")) << read_text(run.log);
        }
        good(resume("grpo", out));
        expect_same(whole, out, moment);
    }
}

TEST(Signals, NobodyReadsWhatItPrintsAndTheRunGoesOn) {
    const std::string out = fresh("out"), whole = fresh("whole"), full = fresh("full");
    good(four_steps(whole));
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    Background head(four_steps(out), [&] { dup2(ends[1], 1), close(ends[0]), close(ends[1]); });
    close(ends[0]), close(ends[1]);
    EXPECT_EQ(head.wait(), 0) << read_text(head.log);
    EXPECT_TRUE(head.said("note: standard output cannot be written: Broken pipe; the run goes on, its results are in " +
                          out + "\n"))
        << read_text(head.log);
    expect_same(whole, out, "| head");
    Background disk(four_steps(full), [&] { dup2(open("/dev/full", O_WRONLY), 1); });
    EXPECT_EQ(disk.wait(), 0) << read_text(disk.log);
    const std::string said = read_text(disk.log);
    EXPECT_EQ(said.find("standard output"), said.rfind("standard output")) << said;  // once
    expect_same(whole, full, "> /dev/full");
}

// a file that the program opens must not get the number of a standard one
TEST(Signals, ClosedStandardFilesDoNotEndInALog) {
    const std::string whole = fresh("whole"), out = fresh("out");
    good(four_steps(whole));
    Background run(four_steps(out), [] { close(0), close(1), close(2); });
    EXPECT_EQ(run.wait(), 0);
    expect_same(whole, out, "0, 1 and 2 closed");
}

TEST(Signals, UnderNohupAHangUpIsIgnored) {
    Background run(four_steps(fresh("out")), [] { signal(SIGHUP, SIG_IGN); });
    ASSERT_TRUE(run.wait_for("step   1/4")) << read_text(run.log);
    kill(run.pid, SIGHUP);
    EXPECT_EQ(run.wait(), 0) << read_text(run.log);
}

// ---------------------------------------------------------------------------------------------------------------------
// killed

// Goes on until it ends in order
static void finish(const std::string& command, const std::string& out, const Args& args, const std::string& what) {
    for (const auto& entry : fs::directory_iterator(out)) {  // whatever has the name of a checkpoint is one
        const std::string name = entry.path().filename();
        if (name.rfind("checkpoint-", 0) != 0 || name.find_first_not_of("0123456789", 11) != name.npos ||
            read_text(entry.path().string() + "/model.safetensors") == "of a run before")
            continue;
        EXPECT_NO_THROW(read_json(entry.path().string() + "/trainer_state.json")) << what;
    }
    // before its first checkpoint it begins again, for which its flags are needed; before its folder there is no run
    Outcome r = fs::exists(out + "/config.json") ? run(args + Args{"--resume_from_checkpoint", "last"}) : run(args);
    ASSERT_EQ(r.status, 0) << what << ": " << command << "\n" << shown_run(args, r);
}

TEST(Kills, AtRandomMomentsOfEveryObjective) {
    const std::map<std::string, Args> objectives = {
        {"grpo", {"--weights", "int4:g32", "--beta", "0.04"}},
        {"sft", {"--weights", "int4:g32"}},
        {"distill", {"--weights", "int3:g32", "--lmbda", "0.5", "--max_completion_length", "8"}},
    };
    const int kills = is_long() ? 14 : 3;
    uint64_t random = 12345;
    int killed = 0;
    for (const auto& [command, more] : objectives) {
        auto args = [&, command = command, more = more](const std::string& out) {
            const Args eight = more + Args{"--max_steps", "8", "--save_total_limit", "2"};
            return command == "grpo" ? four_steps(out, eight) : four_of(command, out, eight);
        };
        const std::string whole = fresh("whole");
        const auto start = std::chrono::steady_clock::now();
        good(args(whole));
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        for (int i = 0; i < kills; i++) {
            const std::string out = fresh("out");
            fs::create_directories(out + "/checkpoint-2.old");
            write_text(out + "/checkpoint-2.old/mine", "mine");
            for (int deaths = 0; deaths < 2; deaths++) {  // the second one in a run that was resumed
                random = random * 6364136223846793005ull + 1442695040888963407ull;
                const double moment = seconds * (double)(random >> 40) / 16777216.0;
                const bool again = deaths > 0 && fs::exists(out + "/config.json");
                Background run(again ? args(out) + Args{"--resume_from_checkpoint", "last"} : args(out));
                usleep((useconds_t)(1e6 * moment));
                kill(run.pid, SIGKILL);
                const int status = run.wait();
                EXPECT_TRUE(status == 128 + SIGKILL || status == 0) << read_text(run.log);
                killed += status != 0;
                if (status == 0) break;
            }
            const std::string what = command + ", kill " + std::to_string(i);
            finish(command, out, args(out), what);
            expect_same(whole, out, what);
            EXPECT_EQ(read_text(out + "/checkpoint-2.old/mine"), "mine");
            fs::remove_all(out);
        }
    }
    printf("killed %d times\n", killed);
    if (is_long()) { EXPECT_GE(killed, 40); }
}

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <sys/user.h>

// What is done to a system call before it is made: nothing, the process is killed, or the call fails with an errno
static constexpr int PASS = 0, KILL = -1;
typedef std::function<int(int number, const struct user_regs_struct&)> AtCall;

static std::string text_of(pid_t thread, uint64_t address) {
    char path[4096] = {};
    struct iovec local = {path, sizeof(path) - 1}, remote = {(void*)address, sizeof(path) - 1};
    process_vm_readv(thread, &local, 1, &remote, 1, 0);
    return path;
}

static bool ends_in(const std::string& text, const std::string& end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Runs the program under ptrace; at_call is asked at each system call, numbered from 1, after the program has begun to
// make the folder that ends in `begin`. Returns its exit status, or 128 + signal.
static int traced(Background& child, const std::string& begin, const AtCall& at_call) {
    int status = 0, number = 0;
    bool counting = false;
    std::map<pid_t, int> inside;  // 0: out of a call; 1: in one; 1 + errno: in one that is to fail
    waitpid(child.pid, &status, 0);
    ptrace(PTRACE_SETOPTIONS, child.pid, nullptr,
           (void*)(PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL));
    ptrace(PTRACE_SYSCALL, child.pid, nullptr, nullptr);
    for (;;) {
        const pid_t thread = waitpid(-1, &status, __WALL);
        if (thread < 0) return -1;
        if (WIFEXITED(status) || WIFSIGNALED(status)) {
            if (thread != child.pid) continue;
            return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
        long pass_on = 0;
        if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
            int& in = inside[thread];
            struct user_regs_struct regs;
            ptrace(PTRACE_GETREGS, thread, nullptr, &regs);
            if (in > 1) {
                regs.rax = (unsigned long long)-(in - 1);
                ptrace(PTRACE_SETREGS, thread, nullptr, &regs);
            }
            in = in ? 0 : 1;
            counting |= in && regs.orig_rax == SYS_mkdir && ends_in(text_of(thread, regs.rdi), begin);
            const int what = in && counting ? at_call(++number, regs) : PASS;
            if (what == KILL) kill(child.pid, SIGKILL);
            if (what > 0) {
                in = 1 + what;
                regs.orig_rax = (unsigned long long)-1;  // a call that there is not
                ptrace(PTRACE_SETREGS, thread, nullptr, &regs);
            }
        } else if (WSTOPSIG(status) != SIGTRAP && WSTOPSIG(status) != SIGSTOP) {
            pass_on = WSTOPSIG(status);
        }
        ptrace(PTRACE_SYSCALL, thread, nullptr, (void*)pass_on);
    }
}

static void begin_traced() {
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1);  // LeakSanitizer traces the process itself
    ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    raise(SIGSTOP);
}

// Kills the program before system call number `at`; 0: never. Returns how many there were, or -1 if it ended otherwise
static int killed_at_call(const Args& args, const std::string& begin, int at) {
    Background child(args, begin_traced);
    int count = 0;
    const int status = traced(child, begin, [&](int number, const struct user_regs_struct&) {
        count = number;
        return number == at ? KILL : PASS;
    });
    return status == 0 || count == at ? count : -1;
}

// From the first call of the save at step 2 to the end of the run, which saves again, deletes the checkpoint that is one
// too many, and replaces one of a run before
TEST(Kills, AtEverySystemCallOfASave) {
    auto args = [&](const std::string& out) {
        return four_of("sft", out,
                       {"--max_steps", "3", "--weights", "int4:g32", "--save_total_limit", "1", "--threads", "1",
                        "--save_steps", "2"});
    };
    auto prepare = [&](const std::string& out) {
        fs::create_directories(out + "/checkpoint-3");
        write_text(out + "/checkpoint-3/model.safetensors", "of a run before");
        write_text(out + "/checkpoint-3/.train_qrl", R"({"kind": "model", "files": ["model.safetensors"]})");
        fs::create_directories(out + "/checkpoint-2.tmp");
        write_text(out + "/checkpoint-2.tmp/mine", "mine");
    };
    const Args overwrite = {"--overwrite_output_dir"};
    const std::string whole = fresh("whole"), begin = "/checkpoint-2.train_qrl-new";
    prepare(whole);
    const int calls = killed_at_call(args(whole) + overwrite, begin, 0);
    ASSERT_GT(calls, 50);
    const int stride = is_long() ? 1 : 17;
    int kills = 0;
    for (int at = 1; at <= calls; at += stride, kills++) {
        const std::string out = fresh("out"), what = "system call " + std::to_string(at);
        prepare(out);
        const int reached = killed_at_call(args(out) + overwrite, begin, at);
        if (reached < at) break;  // a thread or the clock made a call fewer this time
        finish("sft", out, args(out), what);
        expect_same(whole, out, what);
        EXPECT_EQ(read_text(out + "/checkpoint-2.tmp/mine"), "mine") << what;
        for (const auto& entry : fs::directory_iterator(out))
            EXPECT_EQ(entry.path().filename().string().find(".train_qrl-"), std::string::npos) << what << entry.path();
        if (HasFailure()) return;
        fs::remove_all(out);
    }
    printf("killed at %d of %d system calls\n", kills, calls);
}

// whether a system call changes a file
static bool changes_files(const struct user_regs_struct& r) {
    switch (r.orig_rax) {
        case SYS_openat:
            return r.rdx & O_CREAT;
        case SYS_write:
            return r.rdi > 2;
        case SYS_mkdir:
        case SYS_rename:
        case SYS_unlink:
        case SYS_unlinkat:
        case SYS_fsync:
        case SYS_ftruncate:
            return true;
    }
    return false;
}

struct Failure {
    const char* name;
    int error;
    bool lasts;  // every later call fails, too
};

// A disk that is full for a moment, or for good; one that has become read-only; a quota. From the first save on, at each call that changes
// a file: one line, the weights in a place that is said, or said to be lost, and the run can go on from what there is.
TEST(Failures, AtEveryCallOfASaveThatChangesAFile) {
    auto args = [&](const std::string& out) {
        return four_of("sft", out, {"--max_steps", "3", "--weights", "int4:g32", "--threads", "1"});
    };
    const std::string whole = fresh("whole"), begin = "/checkpoint-2.train_qrl-new";
    good(args(whole));
    int failed = 0, lost = 0;
    for (const Failure& f : std::vector<Failure>{{"full", ENOSPC, false},
                                                 {"full for good", ENOSPC, true},
                                                 {"read-only", EROFS, true},
                                                 {"quota", EDQUOT, true}}) {
        const int stride = is_long() ? 1 : f.lasts ? 37 : 23;
        for (int at = 1, last = 1; at <= last; at += stride) {
            const std::string out = fresh("out"), temporary = fresh("tmp"),
                              what = std::string(f.name) + " at call " + std::to_string(at);
            fs::create_directories(temporary);
            Background child(args(out), [&] {
                setenv("TMPDIR", temporary.c_str(), 1);
                begin_traced();
            });
            int changes = 0;
            const int status = traced(child, begin, [&](int, const struct user_regs_struct& r) {
                if (!changes_files(r)) return PASS;
                changes++;
                return changes == at || (f.lasts && changes > at) ? f.error : PASS;
            });
            last = std::max(last, changes);
            const std::string said = read_text(child.log);
            if (status != 0) {  // 0: what failed was not needed, such as deleting what is left
                EXPECT_EQ(status, 1) << what << said;
                EXPECT_NE(said.find(" cannot "), said.npos) << what << said;
                EXPECT_NE(said.find(strerror(f.error)), said.npos) << what << said;
                EXPECT_NE(said.find("\ntrain_qrl: the weights of step "), said.npos) << what << said;
                failed++, lost += said.find(" are lost") != said.npos;
            }
            finish("sft", out, args(out), what);
            if (said.find("cannot append") != said.npos)  // a step's code flips may be lost, its metrics are not
                for (const char* log : {"/code_flips.jsonl", "/quant_statistics.jsonl"})
                    fs::copy_file(whole + log, out + log, fs::copy_options::overwrite_existing);
            expect_same(whole, out, what);
            if (HasFailure()) return;
            fs::remove_all(out), fs::remove_all(temporary);
        }
    }
    printf("%d runs failed, %d of them without a place for the weights\n", failed, lost);
}
#endif

// the points of a run but times: those of one that went on are those of one that was not stopped, each once
static std::multimap<std::pair<int64_t, std::string>, std::string> points_of(const std::string& out) {
    std::multimap<std::pair<int64_t, std::string>, std::string> points;
    for (const EventPoint& p : event_points_in(out)) {
        const bool time = p.tag.find("tim") != p.tag.npos || p.tag.rfind("perf/", 0) == 0;
        if (!time && p.tag != "configuration") points.insert({{p.step, p.tag}, std::to_string(p.value) + p.text});
    }
    return points;
}

TEST(Resume, TensorBoardHasEachStepOnce) {
    const std::string whole = fresh("whole");
    good(four_steps(whole, {"--weights", "int4:g32", "--eval_data", problems, "--eval_steps", "1"}));
    const auto points = points_of(whole);
    EXPECT_EQ(points.count({4, "loss"}), 1u);
    EXPECT_EQ(points.count({4, "eval_pass@1"}), 1u);
    const std::string died = died_after_two(whole);
    {  // torn, as after a power loss
        std::ofstream file(died + "/" + event_file_names(died)[0], std::ios::app);
        file << "torn";
    }
    good(resume("grpo", died));
    EXPECT_EQ(event_file_names(died).size(), 2u);
    EXPECT_EQ(points_of(died), points);
    // of a run that was done, what came after its last checkpoint is done again
    good(resume("grpo", died));
    EXPECT_EQ(points_of(died), points);
    // in a folder of its own it has what it did
    const std::string branch = fresh("branch");
    good({"grpo", "--resume_from_checkpoint", whole + "/checkpoint-2", "--output_dir", branch});
    EXPECT_EQ(points_of(branch).count({2, "loss"}), 0u);
    for (const auto& item : points_of(branch)) {
        if (item.first.second.rfind("_hparams_/", 0) == 0) continue;
        EXPECT_EQ(points.count(item.first), 1u) << item.first.second;
        EXPECT_EQ(points.find(item.first)->second, item.second) << item.first.second;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// failures in mid-run

TEST(Failures, AFullDiskLeavesTheLastCheckpointAndSaysWhereTheWeightsAre) {
    NEEDS_FILE_SIZE_LIMIT();
    const std::string whole = fresh("whole");
    // logs of less than 8192 bytes
    good(four_steps(whole, {"--weights", "int4:g32", "--log_completions", "false", "--quant_statistics", "none",
                            "--report_to", "none"}));
    const std::string died = died_after_two(whole);
    const std::string model = read_text(died + "/checkpoint-2/model.safetensors");
    RunSetting limit;  // there is room for the weights, and not for the optimizer's state
    limit.file_size = fs::file_size(died + "/checkpoint-2/model.safetensors") + 4096;
    Outcome r = run(resume("grpo", died), limit);
    EXPECT_EQ(r.status, 1) << shown_run({}, r);
    EXPECT_NE(r.err.find("cannot write"), std::string::npos) << shown_run({}, r);
    EXPECT_NE(r.err.find("the weights of step 4 are in " + died + "/checkpoint-4"), std::string::npos)
        << shown_run({}, r);
    EXPECT_EQ(read_text(died + "/checkpoint-2/model.safetensors"), model);
    EXPECT_EQ(read_text(died + "/checkpoint-4/model.safetensors"),
              read_text(whole + "/checkpoint-4/model.safetensors"));
    EXPECT_FALSE(fs::exists(died + "/checkpoint-4/trainer_state.json"));
    good(resume("grpo", died));  // from the last one that is whole
    expect_same(whole, died, "after a full disk");

    const std::string none = died_after_two(whole);
    limit.file_size = 8192;
    r = run(resume("grpo", none), limit);
    EXPECT_EQ(r.status, 1) << shown_run({}, r);
    EXPECT_NE(r.err.find("the weights of step 4 are lost: they could be written neither to "), std::string::npos)
        << shown_run({}, r);
    good(resume("grpo", none));
    expect_same(whole, none, "after a disk without room for anything");
}

// a tensor of a file, every number of it
static void fill_tensor(const std::string& path, const std::string& name, float value) {
    std::string text = read_text(path);
    uint64_t length = 0;
    memcpy(&length, text.data(), 8);
    const json header = json::parse(text.substr(8, length));
    const size_t begin = header[name]["data_offsets"][0], end = header[name]["data_offsets"][1];
    for (size_t at = begin; at < end; at += 4) memcpy(&text[8 + length + at], &value, 4);
    write_text(path, text);
}

TEST(Failures, AfterFiveStepsThatAreNotFiniteTheWeightsAreKept) {
    const std::string whole = fresh("whole");
    good(four_of("sft", whole));
    const std::string died = died_after_two(whole);
    fill_tensor(died + "/checkpoint-2/model.safetensors", "model.norm.weight", 1e38f);
    fill_tensor(died + "/checkpoint-2/model.safetensors", "model.layers.0.mlp.up_proj.weight", 1e38f);
    Outcome r = run(resume("sft", died, {"--max_steps", "20"}));
    EXPECT_EQ(r.status, 1) << shown_run({}, r);
    EXPECT_NE(r.err.find("not finite in 5 steps in a row"), std::string::npos) << shown_run({}, r);
    EXPECT_NE(r.err.find("the weights of step 6 are in " + died + "/checkpoint-6"), std::string::npos)
        << shown_run({}, r);
    EXPECT_TRUE(fs::exists(died + "/checkpoint-6/optimizer.safetensors"));
}

// ---------------------------------------------------------------------------------------------------------------------
// one run a folder

TEST(Lock, KeepsASecondRunOut) {
    const std::string out = fresh("out");
    good(four_steps(out));
    const int fd = open((out + "/.lock").c_str(), O_RDWR);
    ASSERT_GE(fd, 0);
    ASSERT_EQ(flock(fd, LOCK_EX | LOCK_NB), 0);  // the run before is gone, and with it its lock
    refused(1, four_steps(out, {"--overwrite_output_dir"}), {"another run is writing into " + out, "--output_dir"});
    refused(1, resume("grpo", out, {"--max_steps", "5"}), {"another run is writing into " + out});
    close(fd);
    good(resume("grpo", out, {"--max_steps", "5"}));
}

// ---------------------------------------------------------------------------------------------------------------------
// bad input

static void edit_state(const std::string& folder, const std::function<void(json&)>& edit) {
    json j = read_json(folder + "/trainer_state.json");
    edit(j);
    write_text(folder + "/trainer_state.json", j.dump());
}

TEST(BadResume, SaysWhatIsWrong) {
    const std::string whole = fresh("whole"), empty = fresh("empty");
    good(four_steps(whole, {"--weights", "int4:g32"}));
    fs::create_directories(empty);
    refused(1, resume("grpo", empty), {"there is no checkpoint in " + empty, "--output_dir"});
    refused(1, resume("grpo", empty + "/none"), {"there is no folder " + empty + "/none"});
    refused(1, {"grpo", "--resume_from_checkpoint", trained + "/none"}, {"there is no folder"});
    refused(2, resume("sft", died_after_two(whole)), {"is of a run of grpo", "the command is sft"});

    auto died = [&](const std::function<void(const std::string& checkpoint)>& harm) {
        const std::string out = died_after_two(whole);
        harm(out + "/checkpoint-2");
        return out;
    };
    for (const char* file : {"model.safetensors", "optimizer.safetensors", "trainer.safetensors"}) {
        const std::string out =
            died([&](const std::string& c) { fs::resize_file(c + "/" + file, fs::file_size(c + "/" + file) - 5); });
        refused(1, resume("grpo", out), {file});
        fs::remove(out + "/checkpoint-2/" + file);
        refused(1, resume("grpo", out), {file == std::string("model.safetensors") ? "checkpoint-2" : file});
    }
    refused(1, resume("grpo", died([](const std::string& c) { fs::resize_file(c + "/trainer_state.json", 100); })),
            {"trainer_state.json", "not valid JSON"});
    refused(1, resume("grpo", died([](const std::string& c) { edit_state(c, [](json& j) { j["version"] = 2; }); })),
            {"trainer_state.json is of version 2, this program reads 1", "later program"});
    for (const char* key : {"loop", "objective", "command", "run_id", "wall_seconds", "evaluated", "measured",
                            "checkpoints", "best", "build", "inputs", "given", "options"})
        for (bool gone : {false, true}) {
            const std::string out = died([&](const std::string& c) {
                edit_state(c, [&](json& j) {
                    if (gone) j.erase(key);
                    else j[key] = json::array({json::array()});
                });
            });
            refused(1, resume("grpo", out), {"trainer_state.json", key, "damaged"});
        }
    for (const char* key : {"step", "forward_passes", "pending_metrics"})
        refused(
            1,
            resume("grpo", died([&](const std::string& c) { edit_state(c, [&](json& j) { j["loop"][key] = -1; }); })),
            {"trainer_state.json", key, "damaged"});
    refused(
        1,
        resume("grpo", died([](const std::string& c) { edit_state(c, [](json& j) { j["loop"]["step"] = 1e300; }); })),
        {"trainer_state.json", "`step` is not a whole number"});
    refused(1, resume("grpo", died([](const std::string& c) {
                          edit_state(c, [](json& j) { j["build"]["precision"] = "FP64"; });
                      })),
            {"was written by the FP64 build", "--model"});
    Outcome r = good(
        resume("grpo", died([](const std::string& c) { edit_state(c, [](json& j) { j["build"]["ranks"] = "4"; }); })));
    EXPECT_NE(r.err.find("note: ranks 1 now, 4 before: sums run in another order"), std::string::npos) << r.err;
}

TEST(BadResume, AnotherConfiguration) {
    const std::string whole = fresh("whole");
    good(four_steps(whole, {"--weights", "int4:g32"}));
    refused(1, resume("grpo", died_after_two(whole), {"--weights", "int4:g16"}),
            {"trainer.safetensors", "grids", "other flags"});
    refused(1, resume("grpo", died_after_two(whole), {"--weights", "none"}), {"checkpoint-2"});
    refused(1, resume("grpo", died_after_two(whole), {"--optim", "muon"}), {"the state of 'adamw'", "muon"});
    refused(1, resume("grpo", died_after_two(whole), {"--model", base, "--lora_r", "4"}), {"adapter"});
}

TEST(BadResume, ADataFileThatHasChanged) {
    const std::string data = jsonl("data", read_text(problems)), whole = fresh("whole");
    good(four_steps(whole, {"--train_data", data}));
    const std::string died = died_after_two(whole);
    write_text(data, read_text(problems) + read_text(problems));
    refused(1, resume("grpo", died), {"--train_data " + data + " has changed since the checkpoint", "hash"});
    good(resume("grpo", died, {"--train_data", problems}));  // another file is another flag, and said
}
