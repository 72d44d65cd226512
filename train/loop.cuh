// The training loop: batches, an objective's loss, optimizer steps, log, evaluation, checkpoints, the end. The only one:
// what is trained on is data/examples.h's, what for is an objective's, and how a number gets into the weights an
// optimizer's.
#pragma once
#include <map>
#include "../formats/tfevents.h"
#include "objective.cuh"
#include "rank_check.cuh"
#include "schedule.h"
#include "token_samples.cuh"

struct LoopConfig {
    int64_t steps = 0;
    Schedule schedule = Schedule::constant;
    double learning_rate = 0.0;  // peak
    int64_t warmup_steps = 0, logging_steps = 1, eval_steps = 0, save_steps = 0;
    int64_t warmup_from = 0;  // 1: the first step has a rate, too
    Pass pass;
    Comm* comm = nullptr;
    std::function<bool()> stop;    // asked before each step and within: an end in order
    Progress* progress = nullptr;  // of the run; null: nothing is told
    RunDir* run = nullptr;         // null: nothing is logged
    bool flips_counted = false;    // changes of quantization codes are logged
    bool log_completions = false;
    const WatchContext* watch = nullptr;  // null: the run is not warned
    // Adds its results to the metrics. False: it was stopped, and is to be done again. May be null
    std::function<bool(int64_t step, nlohmann::ordered_json& metrics)> evaluate;
    std::function<void(int64_t step)> save;
    std::function<void()> report;  // after what is logged of a step that was evaluated or saved. May be null
    // asked after each step: is it to be saved though save_steps does not say so? May be null
    std::function<bool()> worth_saving;
};

// Ranks differ in how many micro-batches they have, and a checkpoint has one count: all go on with the largest, or a run
// that is resumed draws another dropout on all ranks but the first
inline void agree_on_passes(Trainer& t, Comm& comm) {
    double passes = t.passes;
    comm_reduce(comm, {&passes}, Reduce::max);
    t.passes = (uint32_t)passes;
}

// The updates of one step; flips are those of all of them. False: abandoned, and nothing of the model has changed
inline bool loop_updates(Trainer& t, Objective& objective, StepContext& context, const LoopConfig& c,
                         StepReport& report, bool& whole) {
    const std::vector<LinearPart*> parts = quantized_parts(*t.model);
    std::vector<int64_t> flips(parts.size(), 0);
    bool skipped = false;
    for (int i = 0; i < objective.iterations(); i++) {
        for (LinearPart* p : parts) p->flips = 0;  // an update that is skipped changes none
        // Before the first update a step can be abandoned without a trace; after it, it is finished. Several ranks would
        // have to agree on each micro-batch, so they finish it; and a search has moved weights in between.
        const bool can_stop = i == 0 && context.world() == 1 && !t.optimizer.rule->search;
        context.stop = can_stop ? c.stop : nullptr;
        context.update = i;
        whole = i == 0 && !t.optimizer.rule->search;
        report.update = optimizer_step(
            t, report.learning_rate, [&](bool gradient) { return objective.loss(t, context, gradient); }, c.pass);
        if (report.update.loss.abandoned) return false;
        if (context.comm) check_ranks_agree(t.optimizer, *context.comm, t.step);
        report.forward_tokens += report.update.loss.forward_tokens;
        report.loss += report.update.loss.loss / objective.iterations();
        skipped |= report.update.skipped;
        for (size_t k = 0; k < parts.size(); k++) flips[k] += parts[k]->flips;
    }
    for (size_t k = 0; k < parts.size(); k++) parts[k]->flips = flips[k];
    report.update.skipped = skipped;
    report.update.flip_rate = code_flip_rate(*t.model, false);
    report.update.flip_total = code_flip_rate(*t.model, true);
    if (context.comm) agree_on_passes(t, *context.comm);
    whole = true;
    return true;
}

// One step. False: abandoned. state: changes when it is complete, but for `whole`
inline bool loop_step(Trainer& t, Objective& objective, const TrainingData& data, const LoopConfig& c, LoopState& state,
                      StepReport& r) {
    const double start = wall_seconds();
    LoopState next = state;
    StepContext context{state.step, {}, c.pass, c.comm, c.stop};
    if (step_stop(context)) return false;
    context.batch = training_batch(data, state.step);
    context.more = [&](int64_t first, int64_t n) { return further_examples(data, context.step, first, n); };
    if (!objective.prepare(t, context, next)) return false;
    r.step = state.step + 1, r.steps = c.steps, r.flips_counted = c.flips_counted;
    r.learning_rate = schedule_rate(c.schedule, c.learning_rate, state.step + c.warmup_from, c.warmup_steps, c.steps);
    t.progress = (double)(state.step + 1) / (double)c.steps;
    const double train_start = wall_seconds();
    if (!loop_updates(t, objective, context, c, r, state.whole)) return false;
    r.train_seconds = wall_seconds() - train_start;
    next.step++;
    objective.after_step(t, next.step);
    next.tokens_trained += r.forward_tokens;
    const int64_t sampled = next.generated.tokens() - state.generated.tokens();
    next.num_tokens += sampled ? sampled : r.forward_tokens;
    next.train_seconds += r.train_seconds;
    next.trainer = t;
    r.seconds = wall_seconds() - start;
    state = next;
    return true;
}

inline nlohmann::ordered_json loop_metrics(const Trainer& t, const Objective& objective, const LoopState& state,
                                           const StepReport& r, double epoch, const Transfers& before,
                                           const std::vector<GridReport>& grids) {
    nlohmann::ordered_json j;
    j["step"] = r.step;
    j["loss"] = r.loss;
    j["grad_norm"] = r.update.grad_norm;
    j["learning_rate"] = r.learning_rate;
    objective.metrics(j);
    for (const auto& method : t.methods.list) method->metrics(j);
    if (r.flips_counted) {
        j["quant/code_flip_rate"] = r.update.flip_rate;
        j["quant/code_flip_total"] = r.update.flip_total;
    }
    if (!grids.empty())
        for (const auto& [name, value] : grid_report_numbers(grid_reports_total(grids), t.statistics))
            j[std::string("quant/") + name] = value;
    j["skipped_steps"] = t.skipped;
    j["epoch"] = epoch;
    j["num_tokens"] = state.num_tokens;
    objective.timings(j, r);
    if (t.model->dev.cuda) {
        j["perf/copies_to_device"] = transfers.to_device - before.to_device;
        j["perf/copies_to_host"] = transfers.to_host - before.to_host;
        j["perf/bytes_to_device"] = transfers.to_device_bytes - before.to_device_bytes;
        j["perf/bytes_to_host"] = transfers.to_host_bytes - before.to_host_bytes;
    }
    j["step_time"] = r.seconds;
    return j;
}

// of each quantized tensor: the share of its codes that changed now, and that differ from those at load
inline void log_code_flips(RunDir& run, const Model& m, int64_t step) {
    nlohmann::ordered_json flips;
    flips["step"] = step;
    for (const LinearPart* q : quantized_parts(m))
        flips[q->name] = {(double)q->flips / (double)q->count(), (double)q->flips_total / (double)q->count()};
    run.code_flips.line(json_line(flips));
}

// the same by layer, for TensorBoard
inline nlohmann::ordered_json layer_flips(const Model& m) {
    std::map<std::string, std::pair<double, double>> layers;  // codes that changed, and codes
    for (const LinearPart* q : quantized_parts(m)) {
        const std::string layer = q->layer < 0 ? q->label : format("layer_%02d", q->layer);
        layers[layer].first += (double)q->flips, layers[layer].second += (double)q->count();
    }
    nlohmann::ordered_json rates;
    for (const auto& [layer, n] : layers) rates["code_flip_rate/" + layer] = n.first / n.second;
    return rates;
}

// what the step that is done shows of it, in the run's state then: what is to be told
inline std::vector<ToldWarning> loop_watch(const Objective& objective, const LoopConfig& c, LoopState& state,
                                           const StepReport& r) {
    if (!c.watch) return {};
    WatchedStep s;
    s.step = r.step;
    s.learning_rate = r.learning_rate;
    s.skipped = r.update.skipped, s.empty = r.update.loss.empty;
    if (r.flips_counted) s.flip_rate = r.update.flip_rate;
    objective.watched(s, r);
    return watch_step(state.watch, s, *c.watch);
}

// The metrics of the step that is done, which wait in `pending`, are logged, with those of its evaluation if that is due.
// False: the evaluation was stopped
inline bool loop_log_pending(const LoopConfig& c, LoopState& state, bool evaluates) {
    nlohmann::ordered_json j = state.pending;
    if (evaluates) {
        bool stopped = !c.evaluate(state.step, j);
        if (c.comm) stopped = comm_any(*c.comm, stopped);
        if (stopped) return false;
    }
    if (c.run) log_metrics(*c.run, j);
    state.pending = nullptr;
    if (c.run) log_event_scalars(*c.run, state.step, j);
    return true;
}

// state: where the run stands; on return, where it ended. An exception leaves it at the last step that is complete.
inline void train_loop(Trainer& t, Objective& objective, const TrainingData& data, const LoopConfig& c,
                       LoopState& state) {
    auto due = [&](int64_t every) { return every > 0 && state.step % every == 0; };
    auto evaluates = [&](bool last) { return c.evaluate && due(c.eval_steps) && !last; };
    auto save = [&] { return due(c.save_steps) || (c.worth_saving && c.worth_saving()); };
    const bool statistics = c.flips_counted && t.statistics.on();
    state.trainer = t;
    if (c.progress) c.progress->from(state.step);
    if (c.comm) check_ranks_agree(t.optimizer, *c.comm, t.step);
    if (!state.pending.is_null()) {  // it was stopped there, or its log could not be written
        if (!loop_log_pending(c, state, evaluates(state.step == c.steps))) return;
        if (c.save && save() && state.step < c.steps) c.save(state.step);
    }
    for (bool done = false; !done && state.step < c.steps;) {
        const Transfers transfers_before = transfers;
        StepReport r;
        if (!loop_step(t, objective, data, c, state, r)) break;
        done = objective.done();
        if (c.progress) c.progress->to(state.step);
        const std::vector<ToldWarning> warnings = loop_watch(objective, c, state, r);
        const bool last = done || state.step == c.steps, logs = due(c.logging_steps) || last;
        const double epoch = (double)state.step / (double)data.steps_per_epoch();
        if (logs || evaluates(last)) {
            std::vector<GridReport> grids;
            if (statistics)
                grids = quant_statistics_measure(t.statistics, *t.model, t.optimizer.config, r.learning_rate,
                                                 objective.iterations());
            state.pending = loop_metrics(t, objective, state, r, epoch, transfers_before, grids);
            if (logs && c.run && statistics)
                c.run->quant_statistics.line(json_line(quant_statistics_line(t.statistics, grids, r.step)));
        }
        if (c.run && c.run->samples.fd >= 0 && token_samples_due(state.step, c.steps, c.eval_steps, last))
            objective.token_samples(*c.run, r.step);
        if (logs) {
            if (c.run && c.log_completions) objective.completions(*c.run, r.step);
            if (c.run && c.flips_counted) log_code_flips(*c.run, *t.model, r.step);
            if (c.run && c.flips_counted) log_event_scalars(*c.run, r.step, layer_flips(*t.model));
            printf("%s%s\n", objective.line(r).c_str(), c.progress && !last ? c.progress->left().c_str() : "");
            if (c.progress) c.progress->spoke();
            flush_report(c.run ? c.run->path : "");
        }
        tell_warnings(warnings, c.run);
        if (!state.pending.is_null() && !loop_log_pending(c, state, evaluates(last))) break;
        const bool saves = c.save && !last && save();
        if (saves) c.save(state.step);
        if (c.report && (saves || evaluates(last))) c.report();
    }
    static_cast<TrainerCounters&>(t) = state.trainer;  // a step that was given up has counted
    set_zero(t.grads.data, t.grads.bytes(), t.model->dev);
}
