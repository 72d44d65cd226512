// sft: supervised fine-tuning on a data set, or on the solutions of a task.
#pragma once
#include "../train/sft.cuh"
#include "training.cuh"

// What the embedded model is taught with, from scratch. What the user gave stays.
inline void embedded_sft_defaults(Options& o) {
    o.set_default("learning_rate", o.learning_rate, 2e-3);
    o.set_default("lr_scheduler_type", o.lr_scheduler_type, std::string("constant"));
    o.set_default("warmup_steps", o.warmup_steps, 20);
    o.set_default("adam_beta2", o.adam_beta2, 0.99);
    o.set_default("per_device_train_batch_size", o.per_device_train_batch_size, 128);
    o.set_default("max_steps", o.max_steps, 300);
}

inline int sft_command(Session& s) {
    TrainingRun r(s);
    Options& o = s.o;
    const TaskSet task = session_task(o);
    if (o.train_data.empty()) o.set_default("max_completion_length", o.max_completion_length, task.longest().completion);
    if (o.train_data.empty() && o.model.empty()) embedded_sft_defaults(o);
    training_open(r);
    r.data = training_examples(s, (int64_t)o.per_device_train_batch_size * o.gradient_accumulation_steps);
    training_order(r);
    training_hold_out(r, (double)r.data.per_step);
    check_overlap(s, r.data, r.held_out);
    micro_batch_grow(s, r.data.longest);
    SftObjective objective;
    objective.micro_batch_tokens = o.micro_batch_tokens;
    check_best(r);
    if (training_plan(r, objective, RolloutShape(), [] {})) return 0;
    session_load_weights(s);
    training_start(
        r, false,
        format("%lld examples, %lld steps of up to %lld; %s", (long long)r.data.count, (long long)training_steps(r),
               (long long)r.data.per_step, held_out_text(r, (double)r.data.per_step).c_str()));
    return training_run(r, objective);
}
