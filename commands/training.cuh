// What the training commands share: ranks, data, memory plan, checkpoints, the loop, summary. A command brings its
// objective.
#pragma once
#include "first_prompt.cuh"
#include "optimizer_options.cuh"
#include "training_run.cuh"

// methods: --methods, which the cold start of an adapter's base does without
inline void trainer_from_options(Trainer& t, Model& m, const Options& o, const std::string& methods = "none") {
    TrainingMethods list = training_methods_parse(methods);
    for (const auto& method : list.list) {
        method->run.basis_given = o.given("hadamard") && o.hadamard != "none";
        method->run.quantized_sampler = rollout_weight_rules(o).on();
    }
    trainer_init(t, m, o.micro_batch_tokens, o.gradient_checkpointing, optimizer_config(o), std::move(list),
                 o.entropy_coef != 0.0);
    t.max_grad_norm = o.max_grad_norm;
}

// Device, tokenizer, and the other ranks. Every rank knows the same at the end of a step; the first one tells.
// flag, per_step: how many prompts the ranks share, if the objective samples
inline void training_open(TrainingRun& r, const char* flag = "", int per_step = 0) {
    Options& o = r.s.o;
    weight_rules(o), optimizer_config(o), training_methods_parse(o.methods);  // refuse a bad text before the long work
    session_open(r.s);
    const int world = world_size();
    if (world > 1 && !o.given("output_dir"))
        fail_usage("WORLD_SIZE=%d: give --output_dir, where the ranks meet", world);
    if (per_step % world) fail_usage("--%s %d is not a multiple of WORLD_SIZE %d; change one", flag, per_step, world);
    while (o.output_dir.size() > 1 && o.output_dir.back() == '/') o.output_dir.pop_back();
    r.in_its_folder = resumes_in(r.s, o.output_dir);
    r.inputs = input_files(r.s);
    if (r.s.resume.on()) {
        check_build(r.s.resume.state["build"], build_json(r.s), r.s.resume.folder);
        check_input_files(r.s.resume.state["inputs"], r.inputs);
    }
    std::string parent = std::filesystem::path(o.output_dir).parent_path().string();
    if (world > 1 && !parent.empty()) make_folders(parent);
    comm_open(r.comm, o.output_dir + ".nccl_id", r.s.m.dev, o.ddp_timeout);
    if (world > 1) r.checkpoints.shared = o.output_dir;
    if (r.comm.rank == 0) return;
    o.output_dir += format(".rank-%d", r.comm.rank);
    progress_silence();
    if (!freopen("/dev/null", "w", stdout)) fail("cannot open /dev/null");
}

// --shuffle_dataset and --curriculum
inline void training_order(TrainingRun& r) {
    r.data.shuffled = r.s.o.shuffle_dataset;
    curriculum_order(curriculum_parse(r.s.o.curriculum), r.data);
}

// The ranks share the prompts that completions are sampled for, and a step has as many of them as another
inline void training_whole_steps(TrainingRun& r, const char* flag) {
    if (r.data.count < r.data.per_step)
        fail("%lld problems are fewer than the %lld of a step; lower --%s or bring more data", (long long)r.data.count,
             (long long)r.data.per_step, flag);
    r.data.whole_steps = true;
}

// Evaluations of all held-out problems in the whole run: before, after, after the best, every eval_steps; quantized and,
// before and after, in full precision
inline double planned_evaluations(const TrainingRun& r) {
    const Options& o = r.s.o;
    const bool frozen = o.lora_r > 0 || !o.adapter.empty();  // there is nothing but the base's codes
    const bool in_full_precision = o.eval_full_precision && !frozen && (o.weights != "none" || o.activations != "none");
    double n = 2.0 * (1 + in_full_precision);
    if (o.load_best_model_at_end) n += 1 + in_full_precision;
    return o.eval_steps > 0 ? n + (double)(training_steps(r) / o.eval_steps) : n;
}

// The held-out problems; with --eval_n unset as many as held_out_count() gives, which a run that is resumed keeps.
// rows: completions or examples that a step trains on
inline void training_hold_out(TrainingRun& r, double rows) {
    const Options& o = r.s.o;
    const ResumePoint& resume = r.s.resume;
    r.planned_evaluations = planned_evaluations(r);
    int n = o.eval_n;
    if (n < 0 && resume.on() && resume.state.contains("held_out")) n = resume.state["held_out"];
    else if (n < 0) n = held_out_count(o, (double)training_steps(r) * rows, r.planned_evaluations);
    r.held_out = eval_prompts(r.s, n, r.eval_rewards.traits() & REWARD_ROW);
}

// what is held out, and what that costs
inline std::string held_out_text(const TrainingRun& r, double rows) {
    if (r.held_out.empty()) return "0 held out";
    const Options& o = r.s.o;
    const double drawn = r.planned_evaluations * (double)r.held_out.size() * (o.eval_samples + o.eval_greedy);
    const double trained = std::max((double)training_steps(r) * rows, 1.0);
    return format("%zu held out x %d completions, %.0f%% of what is trained on", r.held_out.size(),
                  o.eval_samples + o.eval_greedy, 100.0 * drawn / trained);
}

// what a checkpoint knows of the command's own
inline nlohmann::ordered_json training_state(const TrainingRun& r) {
    nlohmann::ordered_json j;
    j["command"] = command_rows[r.s.o.command].name;
    j["run_id"] = r.run_id;
    j["wall_seconds"] = r.earlier_seconds + wall_seconds() - r.start;
    j["evaluated"] = r.evaluated;
    j["measured"] = r.measured;
    j["latest_evaluation"] = r.latest_evaluation;
    j["changes"] = r.changes;
    j["checkpoints"] = r.checkpoints.kept;
    j["best"] = {{"step", r.checkpoints.best}, {"value", r.best_value}};
    j["build"] = build_json(r.s);
    j["inputs"] = r.inputs;
    j["held_out"] = r.held_out.size();
    j["given"] = flags_json(r.s.o, true);
    j["options"] = flags_json(r.s.o, false);
    return j;
}

// --quant_statistics, as far as there is something to measure
inline QuantStatisticsKind statistics_kind(const TrainingRun& r) {
    const Model& m = r.s.m;
    const std::string& text = r.s.o.quant_statistics;
    if (m.frozen || quantized_parts(m).empty()) {
        if (text == "history")
            fail_usage("--quant_statistics history: %s; leave it out",
                       m.frozen ? "the codes of a frozen base never change" : "no weight is quantized");
        return QuantStatisticsKind::none;
    }
    // a run of an earlier version has no state of it
    const ResumePoint& resume = r.s.resume;
    if (resume.on() && !resume.state.contains("quant_statistics") && text == "grid") return QuantStatisticsKind::none;
    return text == "history" ? QuantStatisticsKind::history
           : text == "grid"  ? QuantStatisticsKind::grid
                             : QuantStatisticsKind::none;
}

// Everything that the run will need. samples: room for the rollouts of the objective; more: what else it needs. True:
// --plan, and nothing more is to be done
inline bool training_plan(TrainingRun& r, Objective& objective, const RolloutShape& samples,
                          const std::function<void()>& more) {
    Session& s = r.s;
    session_plan(s, true, [&] {
        trainer_from_options(r.t, s.m, s.o, s.o.methods);
        quant_statistics_plan(r.t.statistics, s.m, statistics_kind(r));
        more();
        RolloutShape shape = samples;
        // an evaluation on the way is no reason to plan for more than training takes
        const int most = samples.slots ? samples.slots : s.o.given("rollout_batch") ? s.o.rollout_batch : 64;
        if (!r.held_out.empty()) shape = rollout_larger(shape, eval_shape(s, r.held_out, most));
        if (shape.slots) rollout_allocate(r.rollouts, s.m, shape);
        // of a frozen base there is nothing but its codes
        r.with_full_precision =
            s.o.eval_full_precision && !s.m.frozen && (s.m.weight_rules.on() || s.m.activation_rules.on());
        if (!r.with_full_precision || !s.m.kv_rules.on() || r.held_out.empty()) return;
        const PlainCache plain(s.m);
        rollout_allocate(r.plain_rollouts, s.m, eval_shape(s, r.held_out, most));
    });
    check_optimizer(s.o, r.t.optimizer);  // which knows by now what is trained
    r.checkpoints.objective = &objective;
    r.checkpoints.command = [&r] { return training_state(r); };
    r.checkpoints.card = [&r](bool merged) { return trained_card(r.s, card_of_run(r, training_steps(r)), merged); };
    if (session_allocate(s)) {
        fputs(checkpoints_plan(r.checkpoints, training_steps(r)).c_str(), stdout);
        return true;
    }
    r.flips_counted = !s.m.frozen && !quantized_parts(s.m).empty();  // of a frozen base no code ever changes
    return false;
}

// Checkpoints behind the one that the run goes on from would be taken for its own
inline void check_later_checkpoints(const TrainingRun& r) {
    const int64_t step = r.s.resume.step();
    if (!r.in_its_folder || r.comm.rank != 0) return;
    for (int64_t later : checkpoint_steps(r.s.o.output_dir))
        if (later > step && r.s.resume.state["run_id"] == checkpoint_run(r.s.o.output_dir, later))
            fail(
                "%s is later than %s: a run that goes on there would mix with it; remove it, or give another "
                "--output_dir",
                checkpoint_folder(r.s.o.output_dir, later).c_str(), r.s.resume.folder.c_str());
}

// the last evaluation that a checkpoint knows of; null: none
inline nlohmann::ordered_json saved_evaluation(const nlohmann::ordered_json& state) {
    if (!state.contains("latest_evaluation")) return nullptr;
    const nlohmann::ordered_json& j = state["latest_evaluation"];
    const bool whole = j.is_object() && j.contains("step") && j["step"].is_number_integer() && j.contains("when") &&
                       j["when"].is_string();
    return whole ? j : nlohmann::ordered_json();
}

// The run's folder, and what is printed before the first step. data: what is trained on
inline void training_start(TrainingRun& r, bool samples, const std::string& data) {
    const ResumePoint& resume = r.s.resume;
    const Options& o = r.s.o;
    RunDirSetting setting;
    setting.warnings = true;
    setting.completions = samples;
    setting.code_flips = r.flips_counted;
    setting.quant_statistics = r.t.statistics.on();
    setting.evaluations = !r.held_out.empty() || r.measure;
    setting.samples = samples && o.command == COMMAND_GRPO;
    if (resume.on()) {
        check_later_checkpoints(r);
        if (r.in_its_folder) {
            r.run_id = resume.state["run_id"];
            setting.resume_step = resume.step();
            const nlohmann::ordered_json latest = saved_evaluation(resume.state);
            if (!latest.is_null()) setting.last_evaluation = evaluation_start(latest["step"], latest["when"]);
        }
    }
    setting.events = r.comm.rank == 0 && reports_to(o, "tensorboard");
    if (resume.from_start && !o.overwrite_output_dir && file_exists(o.output_dir + "/config.json")) {
        check_same_config(o, {"output_dir", "overwrite_output_dir"},
                          "holds a run that has no checkpoint yet and was begun");
        setting.overwrite = true;
    }
    r.dir = session_run_dir(r.s, setting, r.run_id);
    begin_events(r.dir, setting.resume_step, resume.on() && !resume.state["loop"]["pending_metrics"].is_null());
    log_event_config(r.dir, o, resume.on() ? resume.step() : 0, setting.resume_step < 0);
    fputs(options_print(o).c_str(), stdout);
    print_start(r.s);
    printf("optimizer   %s\n", optimizer_text(r.t.optimizer).c_str());
    printf("data        %s\n", escape_controls(data).c_str());
    if (r.data.count > 0) fputs(first_example_text(r.s.tok, r.data.example(0)).c_str(), stdout);
    fputs(checkpoints_plan(r.checkpoints, training_steps(r)).c_str(), stdout);
    if (setting.events) printf("watch       tensorboard --logdir %s\n", escape_controls(o.output_dir).c_str());
    if (resume.on()) {
        printf("resumed     from %s, %lld of %lld steps done\n", resume.folder.c_str(), (long long)resume.step(),
               (long long)training_steps(r));
        fputs(flag_differences(resume.state["options"], o).c_str(), stdout);
    }
    fflush(stdout);
}

// ---------------------------------------------------------------------------------------------------------------------
// the run

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
    c.progress = r.progress;
    c.run = &r.dir;
    c.flips_counted = r.flips_counted;
    c.log_completions = o.log_completions;
    c.watch = &r.watch;
    c.save = [&r](int64_t) { checkpoint_save(r.checkpoints); };
    c.report = [&r] { training_report(r); };
    c.worth_saving = [&r] { return std::exchange(r.new_best, false); };
    if (r.held_out.empty() && !r.measure) return c;
    c.evaluate = [&r](int64_t step, nlohmann::ordered_json& metrics) {
        const std::string when = format("step %lld", (long long)step);
        nlohmann::ordered_json measured, scores;
        if (r.measure) {
            measured = r.measure(when.c_str());
            if (measured.is_null()) return false;
            eval_metrics(metrics, measured);
        }
        if (!r.held_out.empty()) {
            const double begun = wall_seconds();
            const EvalResult e = run_eval(r.s, r.rollouts, r.held_out, r.eval_rewards, (uint32_t)step);
            if (!e.complete) return false;
            training_count_evaluations(r, 1, wall_seconds() - begun);
            eval_metrics(metrics, e.scores);
            scores = eval_to_json(e.scores);
            print_eval(when.c_str(), e, nullptr, policy_text(r.s.o));
            log_event_text(r.dir, step, "samples", samples_markdown(r.held_out, e));
            watch_result(r, step, when, e);
        }
        log_evaluation(r, step, when, scores, measured);
        judge_best(r, metrics, "eval_", step);
        return true;
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
    for (const auto& item : r.evaluated.items()) j["eval"][item.key()] = item.value();
    if (!r.measured.empty()) j["held_out_text"] = r.measured;
    j["wall_seconds"] = r.earlier_seconds + wall_seconds() - r.start;
    j["eval_seconds"] = r.eval_seconds;
    j["report_seconds"] = r.report_seconds;
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
    j["saved"] = {
        {"checkpoints", r.checkpoints.count}, {"seconds", r.checkpoints.seconds}, {"bytes", r.checkpoints.bytes}};
    if (r.checkpoints.best >= 0) j["best"] = {{"step", r.checkpoints.best}, {best_metric(r), r.best_value}};
    j["peak_rss_bytes"] = peak_rss_bytes();
    return j;
}

// warnings.jsonl as it was when the checkpoint was written: evaluations before and after training tell theirs under the
// step of a checkpoint, too, and are done again
inline void restore_warnings(TrainingRun& r) {
    if (r.dir.warnings.fd < 0) return;
    std::string lines;
    for (const ToldWarning& t : r.state.watch.told) lines += warning_line(t) + "\n";
    const std::string path = r.dir.warnings.path;
    r.dir.warnings.close();
    write_file_atomic(path, lines);
    r.dir.warnings = AppendFile(path);
}

// Everything as the checkpoint has it
inline void training_resume(TrainingRun& r) {
    const ResumePoint& resume = r.s.resume;
    const nlohmann::ordered_json& j = resume.state;
    Checkpoints& c = r.checkpoints;
    checkpoint_load(c, resume.folder, j);
    r.earlier_seconds = j["wall_seconds"];
    if (j["evaluated"].contains("before")) r.evaluated["before"] = j["evaluated"]["before"];
    if (j["measured"].contains("before")) r.measured["before"] = j["measured"]["before"];
    if (!r.in_its_folder && (r.evaluated.contains("before") || r.measured.contains("before")))
        log_evaluation(r, 0, "before", found_of(r.evaluated, "before"), found_of(r.measured, "before"));
    r.latest_evaluation = saved_evaluation(j);
    r.changes = flag_changes(resume, r.s.o);
    if (!r.in_its_folder) return;
    restore_warnings(r);
    for (const auto& item : j["checkpoints"]) {
        const int64_t step = item;
        if (is_folder(c.folder(step))) c.kept.push_back(step);
    }
    if (is_folder(c.folder(j["best"]["step"]))) c.best = j["best"]["step"], r.best_value = j["best"]["value"];
}

// What methods may look at: the texts of the first step, as far as they are given
inline void training_methods_context(TrainingRun& r) {
    if (r.t.methods.list.empty()) return;
    std::vector<Example> examples = training_batch(r.data, 0);
    std::vector<int64_t> lengths;
    for (const Example& e : examples) lengths.push_back(example_tokens(e));
    std::vector<Batch> sample;
    for (const std::vector<int>& bin : pack(lengths, r.t.acts.capacity)) {
        sample.emplace_back();
        for (int i : bin) batch_add(sample.back(), examples[i].prompt.tokens, examples[i].completion);
    }
    for (const auto& method : r.t.methods.list) method->run.acts = &r.t.acts, method->run.sample = sample;
}

// what can be said before the first step
inline void training_watch_start(TrainingRun& r) {
    const Options& o = r.s.o;
    r.watch = watch_context(r.s, r.data.longest_prompt, reads_declared(r.eval_rewards));
    if (o.command == COMMAND_DISTILL) r.watch.cut_off = "are learnt from without an end";
    else if (o.mask_truncated_completions) r.watch.cut_off = "do not count";
    std::vector<ToldWarning> now;
    for (const auto& [warning, text] : prompt_warnings(r.s, r.data.example(0).prompt.tokens))
        watch_once(r.state.watch, now, r.state.step, warning, text);
    tell_warnings(now, &r.dir);
}

// Evaluation, the loop, evaluation, checkpoints
inline void training_work(TrainingRun& r, Objective& objective) {
    Progress progress(command_rows[r.s.o.command].name, "step", training_steps(r), ProgressKind::steps);
    r.progress = &progress;
    r.state.trainer = r.t;  // a cold start has counted
    training_methods_context(r);
    if (r.s.resume.on()) training_resume(r);
    progress.from(r.state.step);
    if (!r.s.resume.on()) methods_start(r.t), objective.start(r.t), quant_statistics_start(r.t.statistics, r.s.m);
    if (!r.s.resume.on() && r.s.embedded_model && r.s.o.save_steps > 0)
        checkpoint_save(r.checkpoints);  // after its cold start
    training_watch_start(r);
    training_evaluate(r, "before", 0);
    training_report(r);
    train_loop(r.t, objective, r.data, loop_config(r), r.state);
    checkpoint_save(r.checkpoints);
    training_evaluate(r, "after", 1u << 30);
    checkpoint_card(r.checkpoints);
    training_take_best(r);
    r.progress = nullptr;
}

// Summary, and the last lines that are printed. The result is the program's exit code.
inline int training_finish(TrainingRun& r) {
    const bool stopped = training_stopped(r);
    const Checkpoints& c = r.checkpoints;
    const int64_t model = c.best >= 0 && !stopped ? c.best : r.state.step;
    const std::string checkpoint = c.folder(model);
    const double seconds = wall_seconds() - r.start;
    if (!stopped) log_event(r.dir, event_hparams_end(unix_seconds(), r.state.step));
    close_run_dir(r.dir, training_summary(r, stopped, checkpoint));
    training_report(r);
    if (!r.held_out.empty())
        printf("evaluated   %zu problems, %.1f s in all (%.1f%% of the run)\n", r.held_out.size(), r.eval_seconds,
               100.0 * r.eval_seconds / seconds);
    printf("saved       %lld checkpoint%s, %s in %.1f s (%.1f%% of the run)\n", (long long)c.count,
           c.count == 1 ? "" : "s", bytes_text((double)c.bytes).c_str(), c.seconds, 100.0 * c.seconds / seconds);
    printf("%s after %lld steps, %.1f s, peak memory %.0f MiB; results in %s, model in %s\n",
           stopped ? "stopped" : "done", (long long)r.state.step, seconds, (double)peak_rss_bytes() / 1048576.0,
           r.dir.path.c_str(), checkpoint.c_str());
    return stopped ? stop_exit_code() : 0;
}

inline int training_run(TrainingRun& r, Objective& objective) {
    try {
        training_work(r, objective);
        return training_finish(r);
    } catch (...) {
        checkpoint_emergency(r.checkpoints);
        throw;
    }
}
