// What the training commands share: ranks, data, memory plan, evaluation before, within and after, checkpoints, summary.
// A command brings its objective.
#pragma once
#include "../train/loop.cuh"
#include "optimizer_options.cuh"
#include "output.cuh"

struct TrainingRun {
    Session& s;
    Comm comm;
    TrainingData data;
    std::vector<Prompt> held_out;
    Trainer t;
    RolloutState rollouts;  // of evaluations, and of an objective that samples
    RunDir dir;
    LoopState state;
    double start = wall_seconds();
    bool flips_counted = false, with_full_precision = false;
    EvalResult before, before_full, after, after_full;
    // what the objective measures on held-out texts, which it prints (null: it was stopped); none: nothing
    std::function<nlohmann::ordered_json(const char* when)> measure;
    nlohmann::ordered_json measured;  // before, after

    explicit TrainingRun(Session& session) : s(session) {}
};

inline void trainer_from_options(Trainer& t, Model& m, const Options& o) {
    trainer_init(t, m, o.micro_batch_tokens, o.gradient_checkpointing, optimizer_config(o));
    t.max_grad_norm = o.max_grad_norm;
}

// Device, tokenizer, and the other ranks. Every rank knows the same at the end of a step; the first one tells.
// flag, per_step: how many prompts the ranks share, if the objective samples
inline void training_open(TrainingRun& r, const char* flag = "", int per_step = 0) {
    Options& o = r.s.o;
    weight_rules(o), optimizer_config(o);  // refuse a bad text before the long work
    session_open(r.s);
    const int world = world_size();
    if (world > 1 && !o.given("output_dir"))
        fail_usage("WORLD_SIZE=%d: give --output_dir, where the ranks meet", world);
    if (per_step % world) fail_usage("--%s %d is not a multiple of WORLD_SIZE %d; change one", flag, per_step, world);
    while (o.output_dir.size() > 1 && o.output_dir.back() == '/') o.output_dir.pop_back();
    std::string parent = std::filesystem::path(o.output_dir).parent_path().string();
    if (world > 1 && !parent.empty()) make_folders(parent);
    comm_open(r.comm, o.output_dir + ".nccl_id", r.s.m.dev);
    if (r.comm.rank == 0) return;
    o.output_dir += format(".rank-%d", r.comm.rank);
    if (!freopen("/dev/null", "w", stdout)) fail("cannot open /dev/null");
}

// The ranks share the prompts that completions are sampled for, and a step has as many of them as another
inline void training_whole_steps(TrainingRun& r, const char* flag) {
    if (r.data.count < r.data.per_step)
        fail("%lld problems are fewer than the %lld of a step; lower --%s or bring more data", (long long)r.data.count,
             (long long)r.data.per_step, flag);
    r.data.whole_steps = true;
}

inline int64_t training_steps(const TrainingRun& r) {
    const Options& o = r.s.o;
    return o.max_steps >= 0 ? o.max_steps : (int64_t)ceil((double)r.data.steps_per_epoch() * o.num_train_epochs);
}

// Everything that the run will need. samples: room for the rollouts of the objective; more: what else it needs. True:
// --plan, and nothing more is to be done
inline bool training_plan(TrainingRun& r, const RolloutShape& samples, const std::function<void()>& more) {
    Session& s = r.s;
    session_plan(s, true, [&] {
        trainer_from_options(r.t, s.m, s.o);
        more();
        RolloutShape shape = samples;
        // an evaluation on the way is no reason to plan for more than training takes
        const int most = samples.slots ? samples.slots : s.o.given("rollout_batch") ? s.o.rollout_batch : 64;
        if (!r.held_out.empty()) shape = rollout_larger(shape, eval_shape(s, r.held_out, most));
        if (shape.slots) rollout_allocate(r.rollouts, s.m, shape);
    });
    check_optimizer(s.o, r.t.optimizer);  // which knows by now what is trained
    if (session_allocate(s)) return true;
    r.flips_counted = !s.m.frozen && !quantized_parts(s.m).empty();  // of a frozen base no code ever changes,
    r.with_full_precision =
        !s.m.frozen && (s.m.weight_rules.on() || s.m.activation_rules.on());  // and there is nothing but its codes
    return false;
}

// The run's folder, and what is printed before the first step. data: what is trained on
inline void training_start(TrainingRun& r, bool samples, const std::string& data) {
    r.dir = session_run_dir(r.s.o, samples, r.flips_counted);
    fputs(options_print(r.s.o).c_str(), stdout);
    print_start(r.s);
    printf("optimizer   %s\n", optimizer_text(r.t.optimizer).c_str());
    printf("data        %s\n", data.c_str());
    fflush(stdout);
}

inline bool training_stopped(TrainingRun& r) { return comm_any(r.comm, stop_requested()); }

inline void training_evaluate(TrainingRun& r, const char* when, uint32_t index, EvalResult& result, EvalResult& full) {
    if (training_stopped(r)) return;
    nlohmann::ordered_json measured = r.measure ? r.measure(when) : nullptr;
    if (!measured.is_null()) r.measured[when] = measured;
    if (r.held_out.empty()) return;
    result = run_eval(r.s, r.rollouts, r.held_out, index);
    if (r.with_full_precision) full = run_eval_full_precision(r.s, r.rollouts, r.held_out, index);
    print_eval(when, result, r.with_full_precision ? &full : nullptr, policy_text(r.s.o));
    print_samples(when, r.held_out, result);
}

inline LoopConfig loop_config(TrainingRun& r) {
    const Options& o = r.s.o;
    LoopConfig c;
    c.steps = training_steps(r);
    c.schedule = parse_schedule(o.lr_scheduler_type);
    c.learning_rate = o.learning_rate;
    c.warmup_steps = o.warmup_steps;
    c.logging_steps = o.logging_steps, c.eval_steps = o.eval_steps, c.save_steps = o.save_steps;
    c.comm = &r.comm;
    c.stop = stop_requested;
    c.run = &r.dir;
    c.flips_counted = r.flips_counted;
    c.log_completions = o.log_completions;
    c.save = [&r](int64_t step) {
        if (r.comm.rank == 0) session_save(r.s, format("%s/checkpoint-%lld", r.dir.path.c_str(), (long long)step));
    };
    if (r.held_out.empty() && !r.measure) return c;
    c.evaluate = [&r](int64_t step, nlohmann::ordered_json& metrics) {
        const std::string when = format("step %lld", (long long)step);
        if (r.measure)
            for (const auto& item : r.measure(when.c_str()).items()) metrics["eval_" + item.key()] = item.value();
        if (r.held_out.empty()) return;
        EvalResult e = run_eval(r.s, r.rollouts, r.held_out, (uint32_t)step);
        if (e.n == 0) return;
        metrics["eval_pass@1"] = e.pass1;
        metrics["eval_greedy"] = e.greedy;
        print_eval(when.c_str(), e, nullptr, policy_text(r.s.o));
    };
    return c;
}

inline nlohmann::ordered_json training_summary(const TrainingRun& r, bool stopped, const std::string& checkpoint) {
    const Session& s = r.s;
    const LoopState& state = r.state;
    nlohmann::ordered_json j;
    j["command"] = command_rows[s.o.command].name;
    j["seed"] = s.o.seed;
    summary_quantizers(j, s);
    summary_lora(j, s.m);
    j["model"] = s.embedded_model ? "embedded" : s.o.model;
    j["steps"] = state.step;
    j["stopped"] = stopped;
    j["eval"]["n"] = (int)r.held_out.size();
    j["eval"]["samples"] = s.o.eval_samples;
    if (r.before.n) j["eval"]["before"] = eval_to_json(r.before);
    if (r.after.n) j["eval"]["after"] = eval_to_json(r.after);
    if (r.before_full.n) j["eval"]["before"]["full_precision"] = eval_to_json(r.before_full);
    if (r.after_full.n) j["eval"]["after"]["full_precision"] = eval_to_json(r.after_full);
    if (!r.measured.is_null()) j["held_out_text"] = r.measured;
    j["wall_seconds"] = wall_seconds() - r.start;
    auto rate = [](double tokens, double seconds) { return seconds > 0 ? tokens / seconds : 0.0; };
    if (state.generated.seconds > 0) {
        j["tokens_generated"] = state.generated.completion_tokens;
        j["generation_tokens_per_second"] = rate((double)state.generated.completion_tokens, state.generated.seconds);
    }
    j["tokens_trained"] = state.tokens_trained;
    j["training_tokens_per_second"] = rate((double)state.tokens_trained, state.train_seconds);
    if (r.flips_counted) j["code_flip_total"] = code_flip_rate(s.m, true);
    j["skipped_steps"] = r.t.skipped;
    j["checkpoint"] = checkpoint;
    j["peak_rss_bytes"] = peak_rss_bytes();
    return j;
}

// Evaluation, the loop, evaluation, checkpoint, summary. The result is the program's exit code.
inline int training_run(TrainingRun& r, Objective& objective) {
    training_evaluate(r, "before", 0, r.before, r.before_full);
    const LoopConfig config = loop_config(r);
    train_loop(r.t, objective, r.data, config, r.state);
    training_evaluate(r, "after", 1u << 30, r.after, r.after_full);
    const bool stopped = training_stopped(r);
    config.save(r.state.step);
    const std::string checkpoint = format("%s/checkpoint-%lld", r.dir.path.c_str(), (long long)r.state.step);
    close_run_dir(r.dir, training_summary(r, stopped, checkpoint));
    printf("%s after %lld steps, %.1f s, peak memory %.0f MiB; results in %s, model in %s\n",
           stopped ? "stopped" : "done", (long long)r.state.step, wall_seconds() - r.start,
           (double)peak_rss_bytes() / 1048576.0, r.dir.path.c_str(), checkpoint.c_str());
    return stopped ? stop_exit_code() : 0;
}
