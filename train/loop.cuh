// The training loop: batches, an objective's loss, optimizer steps, log, evaluation, checkpoints, the end. The only one:
// what is trained on is data/examples.h's, what for is an objective's, and how a number gets into the weights an
// optimizer's.
#pragma once
#include "objective.cuh"
#include "schedule.h"

struct LoopConfig {
    int64_t steps = 0;
    Schedule schedule = Schedule::constant;
    double learning_rate = 0.0;  // peak
    int64_t warmup_steps = 0, logging_steps = 1, eval_steps = 0, save_steps = 0;
    int64_t warmup_from = 0;  // 1: the first step has a rate, too
    Pass pass;
    Comm* comm = nullptr;
    std::function<bool()> stop;  // asked before each step and within: an end in order
    RunDir* run = nullptr;       // null: nothing is logged
    bool flips_counted = false;  // changes of quantization codes are logged
    bool log_completions = false;
    std::function<void(int64_t step, nlohmann::ordered_json& metrics)> evaluate;  // adds its results; may be null
    std::function<void(int64_t step)> save;
};

// The updates of one step. False: abandoned, and nothing of the model has changed
inline bool loop_updates(Trainer& t, Objective& objective, StepContext& context, const LoopConfig& c,
                         StepReport& report) {
    for (int i = 0; i < objective.iterations(); i++) {
        // Before the first update a step can be abandoned without a trace; after it, it is finished. Several ranks would
        // have to agree on each micro-batch, so they finish it; and a search has moved weights in between.
        const bool can_stop = i == 0 && context.world() == 1 && !t.optimizer.rule->search;
        context.stop = can_stop ? c.stop : nullptr;
        report.update = optimizer_step(
            t, report.learning_rate, [&](bool gradient) { return objective.loss(t, context, gradient); }, c.pass);
        if (report.update.loss.abandoned) return false;
        report.forward_tokens += report.update.loss.forward_tokens;
    }
    report.loss = report.update.loss.loss;
    return true;
}

inline nlohmann::ordered_json loop_metrics(const Trainer& t, const Objective& objective, const LoopState& state,
                                           const StepReport& r, double epoch, const Transfers& before) {
    nlohmann::ordered_json j;
    j["step"] = r.step;
    j["loss"] = r.loss;
    j["grad_norm"] = r.update.grad_norm;
    j["learning_rate"] = r.learning_rate;
    objective.metrics(j);
    if (r.flips_counted) {
        j["quant/code_flip_rate"] = r.update.flip_rate;
        j["quant/code_flip_total"] = r.update.flip_total;
    }
    j["skipped_steps"] = t.skipped;
    j["epoch"] = epoch;
    j["num_tokens"] = state.num_tokens();
    objective.timings(j, r);
    if (t.model->dev.cuda) {
        j["perf/copies_to_device"] = transfers.to_device - before.to_device;
        j["perf/copies_to_host"] = transfers.to_host - before.to_host;
        j["perf/bytes_to_device"] = transfers.to_device_bytes - before.to_device_bytes;
        j["perf/bytes_to_host"] = transfers.to_host_bytes - before.to_host_bytes;
    }
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

inline void loop_log(const Trainer& t, const Objective& objective, const LoopConfig& c, const StepReport& r,
                     const nlohmann::ordered_json& metrics) {
    if (c.run) {
        log_metrics(*c.run, metrics);
        if (c.log_completions) objective.completions(*c.run, r.step);
        if (c.flips_counted) log_code_flips(*c.run, *t.model, r.step);
    }
    printf("%s\n", objective.line(r).c_str());
    fflush(stdout);
}

// state: where the run stands; on return, where it ended
inline void train_loop(Trainer& t, Objective& objective, const TrainingData& data, const LoopConfig& c,
                       LoopState& state) {
    for (bool done = false; !done && state.step < c.steps;) {
        const double start = wall_seconds();
        const Transfers transfers_before = transfers;
        StepContext context{state.step, {}, c.pass, c.comm, c.stop};
        if (step_stop(context)) break;
        context.batch = training_batch(data, state.step);
        if (!objective.prepare(t, context, state)) break;
        StepReport r;
        r.step = state.step + 1, r.steps = c.steps, r.flips_counted = c.flips_counted;
        r.learning_rate =
            schedule_rate(c.schedule, c.learning_rate, state.step + c.warmup_from, c.warmup_steps, c.steps);
        const double train_start = wall_seconds();
        if (!loop_updates(t, objective, context, c, r)) break;
        r.train_seconds = wall_seconds() - train_start;
        state.step++;
        state.tokens_trained += r.forward_tokens;
        state.train_seconds += r.train_seconds;
        done = objective.done();
        const bool last = done || state.step == c.steps;

        nlohmann::ordered_json j =
            loop_metrics(t, objective, state, r, (double)state.step / (double)data.steps_per_epoch(), transfers_before);
        auto due = [&](int64_t every) { return every > 0 && state.step % every == 0; };
        if (c.evaluate && due(c.eval_steps) && !last) c.evaluate(state.step, j);
        j["step_time"] = r.seconds = wall_seconds() - start;
        if (due(c.logging_steps) || last) loop_log(t, objective, c, r, j);
        if (c.save && due(c.save_steps) && !last) c.save(state.step);
    }
}
