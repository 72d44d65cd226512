// A training run: what belongs to one, its evaluations before, within and after training, and the best of them.
#pragma once
#include "../eval/report.h"
#include "../train/loop.cuh"
#include "checkpoints.cuh"
#include "model_card.cuh"

struct TrainingRun {
    Session& s;
    Comm comm;
    TrainingData data;
    std::vector<Prompt> held_out;
    RewardSet eval_rewards;  // what held-out completions are paid; none: nothing
    Trainer t;
    RolloutState rollouts;        // of evaluations, and of an objective that samples
    RolloutState plain_rollouts;  // of evaluations in full precision, where the cache of the others holds codes
    RunDir dir;
    LoopState state;
    Checkpoints checkpoints{s, dir, t, state};
    double start = wall_seconds(), earlier_seconds = 0.0;  // earlier: of the run before it was resumed
    double eval_seconds = 0.0, report_seconds = 0.0;
    ReportRun report;                  // what report.html has been made of so far
    double planned_evaluations = 0.0;  // of all held-out problems, in the whole run
    int evaluations = 0;               // that eval_seconds are of
    Progress* progress = nullptr;      // while there is one
    bool flips_counted = false, with_full_precision = false;
    bool in_its_folder = false;  // a run that is resumed goes on in the folder that it had
    std::string run_id = new_run_id();
    nlohmann::ordered_json inputs;  // files that it depends on, with their hashes
    // of the held-out problems: before, after, best
    nlohmann::ordered_json evaluated = nlohmann::ordered_json::object();
    // what the objective measures on held-out texts, which it prints (null: it was stopped); none: nothing
    std::function<nlohmann::ordered_json(const char* when)> measure;
    nlohmann::ordered_json measured = nlohmann::ordered_json::object();  // before, after
    nlohmann::ordered_json latest_evaluation;  // the last line of evaluations.jsonl; null: there is none yet
    double best_value = 0.0;                   // that of checkpoints.best
    bool new_best = false;
    WatchContext watch;
    nlohmann::ordered_json changes = nlohmann::ordered_json::array();  // of flags, where it was resumed with others

    explicit TrainingRun(Session& session) : s(session) {}
};

// of the whole run: --max_steps, or as many as --num_train_epochs are
inline int64_t training_steps(const TrainingRun& r) {
    const Options& o = r.s.o;
    return o.max_steps >= 0 ? o.max_steps : (int64_t)ceil((double)r.data.steps_per_epoch() * o.num_train_epochs);
}

// The time of n evaluations of the held-out problems, and what those to come will take
inline void training_count_evaluations(TrainingRun& r, int n, double seconds) {
    const Options& o = r.s.o;
    r.evaluations += n;
    r.eval_seconds += seconds;
    const int64_t steps = training_steps(r), every = o.eval_steps;
    double left = r.evaluated.contains("after") ? 0.0 : 1.0 + r.with_full_precision;
    if (o.load_best_model_at_end && !r.evaluated.contains("best")) left += 1.0 + r.with_full_precision;
    if (every > 0 && r.state.step < steps) left += (double)((steps - 1) / every - r.state.step / every);
    if (r.progress) r.progress->later(left * r.eval_seconds / r.evaluations);
}

inline bool training_stopped(TrainingRun& r) { return comm_any(r.comm, stop_requested()); }

// evaluations.jsonl: what one evaluation found, of problems (scores, null: there are none) and of texts (measured). An
// evaluation that is done again, because the run failed after it was logged, is there already
inline void log_evaluation(TrainingRun& r, int64_t step, const std::string& when, const nlohmann::ordered_json& scores,
                           const nlohmann::ordered_json& measured) {
    nlohmann::ordered_json j;
    j["step"] = step;
    j["when"] = when;
    if (!scores.is_null()) {
        j["problems"] = r.held_out.size();
        j["samples"] = r.s.o.eval_samples;
        j.update(scores);
    }
    if (!measured.is_null()) j["measured"] = measured;
    if (!r.latest_evaluation.is_null() && r.latest_evaluation["when"] == when) return;
    if (r.dir.evaluations.fd >= 0) r.dir.evaluations.line(json_line(j));
    r.latest_evaluation = j;
}

// report.html, with all that is logged. A run does not end for want of it
inline void training_report(TrainingRun& r) {
    if (r.comm.rank != 0 || !reports_to(r.s.o, "html")) return;
    const double begun = wall_seconds();
    try {
        r.report.path = r.dir.path;
        report_read(r.report);
        report_write(r.dir.path + "/report.html", report_page(r.report));
    } catch (const std::exception& e) {
        fprintf(stderr, "warning: no report: %s\n", escape_controls(e.what()).c_str());
    }
    r.report_seconds += wall_seconds() - begun;
}

inline nlohmann::ordered_json found_of(const nlohmann::ordered_json& all, const char* when) {
    return all.contains(when) ? all[when] : nlohmann::ordered_json();
}

// an evaluation as numbers of a step
inline void eval_metrics(nlohmann::ordered_json& metrics, const EvalScores& s, const std::string& prefix = "eval_") {
    if (s.samples) metrics[prefix + "pass@1"] = s.pass1.mean;
    if (s.greedy_problems) metrics[prefix + "greedy"] = s.greedy.mean;
    if (s.rewards.empty()) return;
    metrics[prefix + "reward"] = s.reward.mean;
    for (const auto& [name, mean] : s.rewards) metrics[prefix + "rewards/" + name + "/mean"] = mean.mean;
}

// the same of held-out texts
inline void eval_metrics(nlohmann::ordered_json& metrics, const nlohmann::ordered_json& measured) {
    for (const auto& item : measured.items()) metrics["eval_" + item.key()] = item.value();
}

// what an evaluation of this run's problems is warned of
inline void watch_result(TrainingRun& r, int64_t step, const std::string& when, const EvalResult& e) {
    const bool supervised = r.s.o.command != COMMAND_GRPO;
    if (supervised && when == "before") return;  // to end and to answer is what it is to learn
    const char* of = when == "best" ? "the evaluation of the best " : "the evaluation ";
    const std::string name = when == "best"               ? of + std::string("step")
                             : when.rfind("step", 0) == 0 ? of + ("at " + when)
                                                          : of + when + " training";
    tell_warnings(watch_evaluation(r.state.watch, step, watched_evaluation(e.answers, name), r.watch), &r.dir);
}

// Held-out texts and problems, once before and once after training; what a checkpoint has of it is not done again
inline void training_evaluate(TrainingRun& r, const char* when, uint32_t index) {
    if (training_stopped(r)) return;
    const int64_t step = when == std::string("best") ? r.checkpoints.best : r.state.step;
    if (r.measure && !r.measured.contains(when)) {
        const nlohmann::ordered_json measured = r.measure(when);
        if (measured.is_null()) return;  // stopped
        r.measured[when] = measured;
        if (r.held_out.empty()) log_evaluation(r, step, when, nullptr, measured);
        if (when != std::string("best")) {
            nlohmann::ordered_json metrics;
            eval_metrics(metrics, measured);
            log_event_scalars(r.dir, r.state.step, metrics);
        }
    }
    if (r.held_out.empty() || r.evaluated.contains(when)) return;
    const double begun = wall_seconds();
    const EvalResult result = run_eval(r.s, r.rollouts, r.held_out, r.eval_rewards, index);
    EvalResult full;
    if (r.with_full_precision && result.complete)
        full = run_eval_full_precision(r.s, r.s.m.kv_rules.on() ? r.plain_rollouts : r.rollouts, r.held_out,
                                       r.eval_rewards, index);
    print_eval(when, result, r.with_full_precision ? &full : nullptr, policy_text(r.s.o));
    print_samples(when, r.held_out, result);
    if (!result.complete || (r.with_full_precision && !full.complete)) return;  // stopped
    const double seconds = wall_seconds() - begun;
    if (r.evaluated.empty())
        printf("evaluation  %.1f s, in all about %s of this run\n", seconds,
               duration_text(r.planned_evaluations * seconds / (1 + r.with_full_precision)).c_str());
    r.evaluated[when] = eval_to_json(result.scores);
    if (r.with_full_precision) r.evaluated[when]["full_precision"] = eval_to_json(full.scores);
    log_evaluation(r, step, when, r.evaluated[when], found_of(r.measured, when));
    training_count_evaluations(r, 1 + r.with_full_precision, seconds);
    watch_result(r, step, when, result);
    if (when == std::string("best")) return;  // which its step has logged
    nlohmann::ordered_json metrics;
    eval_metrics(metrics, result.scores);
    if (r.with_full_precision) eval_metrics(metrics, full.scores, "eval_full_precision_");
    log_event_scalars(r.dir, r.state.step, metrics);
    log_event_text(r.dir, r.state.step, "samples", samples_markdown(r.held_out, result));
}

// what a checkpoint's card says of the run as it stands; steps: of the whole run
inline TrainedCard card_of_run(const TrainingRun& r, int64_t steps) {
    TrainedCard c;
    c.step = r.state.step, c.steps = steps;
    c.examples = r.data.count, c.held_out = (int64_t)r.held_out.size();
    for (const nlohmann::ordered_json* found : {&r.evaluated, &r.measured})
        if (found->contains("before")) {
            if (found == &r.evaluated) c.before.update((*found)["before"]);
            else c.before["measured"] = (*found)["before"];
        }
    c.latest = r.latest_evaluation;
    c.changes = r.changes;
    c.told = r.state.watch.told;
    return c;
}

// ---------------------------------------------------------------------------------------------------------------------
// the best model

inline std::string best_metric(const TrainingRun& r) {
    const std::string& asked = r.s.o.metric_for_best_model;
    return asked != "auto" ? asked : r.held_out.empty() ? "log_loss" : "pass@1";
}

// before the long work
inline void check_best(const TrainingRun& r) {
    const Options& o = r.s.o;
    if (!o.load_best_model_at_end) {
        if (o.metric_for_best_model != "auto")
            fail_usage("--metric_for_best_model belongs to --load_best_model_at_end");
        return;
    }
    if (o.eval_steps == 0) fail_usage("--load_best_model_at_end needs evaluations to choose from; give --eval_steps");
    if (o.save_only_model) fail_usage("--load_best_model_at_end loads a whole checkpoint; leave --save_only_model out");
    const std::string metric = best_metric(r);
    const bool of_problems = metric == "pass@1" || metric == "greedy";
    if (of_problems ? r.held_out.empty() : !r.measure)
        fail_usage("--metric_for_best_model %s is not measured by this run; %s", metric.c_str(),
                   of_problems ? "give --eval_data, or take log_loss" : "distill measures it, on held-out texts");
}

// metrics of an evaluation at this step: is it the best so far?
inline void judge_best(TrainingRun& r, const nlohmann::ordered_json& metrics, const std::string& prefix, int64_t step) {
    const std::string metric = best_metric(r), key = prefix + metric;
    r.new_best = false;
    if (!r.s.o.load_best_model_at_end || !metrics.contains(key)) return;
    const double value = metrics[key];
    const bool lower = metric == "log_loss" || metric == "kl";
    r.new_best = r.checkpoints.best < 0 || (lower ? value < r.best_value : value > r.best_value);
    if (r.new_best) r.checkpoints.best = step, r.best_value = value;
}

// After the last step: the weights of the best evaluation, the last one included
inline void training_take_best(TrainingRun& r) {
    if (!r.s.o.load_best_model_at_end || training_stopped(r)) return;
    for (const nlohmann::ordered_json* after : {&r.evaluated, &r.measured})
        if (after->contains("after")) judge_best(r, (*after)["after"], "", r.state.step);
    const int64_t best = r.checkpoints.best;
    printf("best        step %lld, %s %.4g\n", (long long)best, best_metric(r).c_str(), r.best_value);
    if (best < 0 || best == r.state.step) return;
    const std::string folder = r.checkpoints.folder(best);
    const LoopState last = r.state;
    checkpoint_load(r.checkpoints, folder, run_state_read(folder));
    r.state = last;
    training_evaluate(r, "best", 1u << 30);
}
