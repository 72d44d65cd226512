// grpo: the main job. Sample, reward, update, measure; what a run leaves is described in runtime/run_dir.h.
#pragma once
#include "../grpo.cuh"
#include "../train/cold_start.cuh"
#include "loss_options.cuh"
#include "sampler_options.cuh"
#include "training.cuh"

// The defaults of the embedded model. What the user gave stays.
inline void embedded_defaults(Options& o) {
    o.set_default("weights", o.weights, std::string("int4:g32:sym"));
    o.set_default("learning_rate", o.learning_rate, 3e-4);
    o.set_default("adam_beta2", o.adam_beta2, 0.99);
    o.set_default("max_steps", o.max_steps, 80);
    o.set_default("prompts_per_step", o.prompts_per_step, 64);
    o.set_default("rollout_batch", o.rollout_batch, 512);
    o.set_default("eval_samples", o.eval_samples, 4);
}

// the solutions that the embedded model first learns from
inline std::function<Example(int64_t)> cold_start_examples(const Session& s) {
    const TaskSet task = find_task(s.o.task);
    return [&s, task](int64_t i) {
        return make_example(s.tok, task_example(task, s.o.seed, (uint32_t)i, false), s.prompt,
                            s.m.config.eos_token_ids[0]);
    };
}

// tokens of the longest one that a cold start may meet, as the task says
inline int64_t longest_cold_start(const Session& s, int64_t longest_prompt) {
    return longest_prompt + find_task(s.o.task).longest().completion;
}

// A base of adapters is not trained with them: a model of its own learns, and is saved as `folder`
inline void cold_start_of_base(const Session& s, const ColdStartConfig& c, const std::string& folder) {
    Session cold;
    cold.o = s.o;
    cold.tok = s.tok;
    cold.m.dev = s.m.dev;
    cold.m.dev.arena = nullptr;
    model_allocate(cold.m, s.m.config);
    model_init_random(cold.m, s.o.seed);
    Trainer t;
    trainer_from_options(t, cold.m, s.o);
    cold_start(t, c, s.o.micro_batch_tokens, cold_start_examples(s), stop_requested);
    session_save(cold, folder);
}

// the base that the embedded model's adapters of a run that is resumed were trained over
inline std::string resumed_base(const ResumePoint& resume) {
    const std::string beside = parent_folder(resume.folder) + "/base";
    return is_folder(beside) ? beside : peft_open(resume.folder).base;
}

inline void grpo_cold_start(TrainingRun& r) {
    Session& s = r.s;
    const bool resumed = s.resume.on();
    ColdStartConfig c;
    c.target = s.o.cold_start_loss;
    if (s.m.lora.on()) {
        s.base = resumed ? resumed_base(s.resume) : r.dir.path + "/base";
        if (!resumed) cold_start_of_base(s, c, s.base);
        model_load_weights(s.m, s.base);
        session_load_adapter(s);
        model_refresh(s.m);
    } else if (!resumed) {
        cold_start(r.t, c, s.o.micro_batch_tokens, cold_start_examples(s), stop_requested);
    }
    r.checkpoints.model_alone = !resumed && stop_requested();  // half of a cold start is nothing to go on from
}

inline void grpo_check(const Options& o) {
    if (o.model.empty() && !o.train_data.empty())
        fail_usage("--train_data needs --model: the embedded model knows nothing but its own task");
    if (!o.model.empty() && o.cold_start_loss != Options().cold_start_loss)
        fail_usage("--cold_start_loss belongs to the embedded model; use the sft command before grpo");
}

inline void grpo_check_curriculum(const Options& o) {
    if (o.curriculum.empty()) return;
    curriculum_parse(o.curriculum);
    if (o.train_data.empty()) fail_usage("--curriculum orders the rows of --train_data; give one");
    if (!o.shuffle_dataset) fail_usage("--curriculum makes an order of its own; leave --shuffle_dataset false out");
}

inline void grpo_check_reference(const Session& s) {
    const Options &o = s.o, normal;
    if (!o.sync_ref_model) {
        const char* flag = o.ref_model_mixup_alpha != normal.ref_model_mixup_alpha ? "ref_model_mixup_alpha"
                           : o.ref_model_sync_steps != normal.ref_model_sync_steps ? "ref_model_sync_steps"
                                                                                   : nullptr;
        if (flag) fail_usage("--%s belongs to --sync_ref_model", flag);
        return;
    }
    if (o.beta == 0.0) fail_usage("--sync_ref_model needs a reference model: give --beta above 0");
    if ((o.lora_r > 0 || !o.adapter.empty()) && !o.lora_inside_quantizer)
        fail_usage(
            "--sync_ref_model: the reference of an adapter is its frozen base, which follows nothing; leave it out");
}

inline void grpo_check_dynamic_sampling(const Options& o, const RewardSet& rewards) {
    if (!o.dynamic_sampling && o.dynamic_sampling_max_batches != Options().dynamic_sampling_max_batches)
        fail_usage("--dynamic_sampling_max_batches belongs to --dynamic_sampling");
    if (o.dynamic_sampling && outcome_rewards(rewards).entries.empty())
        fail_usage(
            "--dynamic_sampling needs a reward that says right or wrong and has a weight, such as exact, in "
            "--reward_funcs (train_qrl help rewards)");
}

// Each row names rewards of this run, if it names any, and has the gold answer that they read
inline void grpo_check_rows(const std::vector<Example>& examples, const RewardSet& rewards, const Options& o) {
    for (const Example& e : examples) {
        const Problem& p = *e.prompt.problem;
        std::string unknown, reader;
        const std::vector<bool> applies = rewards_of_row(rewards, p.reward_funcs, &unknown);
        if (!unknown.empty())
            fail("%s:%d: `reward_funcs` names %s, which is not one of --reward_funcs %s", p.source.c_str(), p.line,
                 shown(unknown).c_str(), printable(o.reward_funcs, 200).c_str());
        if (!p.gold.empty()) continue;
        for (size_t f = 0; f < applies.size(); f++)
            if (applies[f] && rewards.entries[f].traits & REWARD_GOLD) reader = rewards.entries[f].name;
        if (!reader.empty())
            fail(
                "%s:%d: the row has no gold answer, which its reward %s reads; give it one, or name other rewards in "
                "its `reward_funcs`",
                p.source.c_str(), p.line, reader.c_str());
    }
}

inline void grpo_data(TrainingRun& r, const RewardSet& rewards) {
    const Options& o = r.s.o;
    const int per_step = o.prompts_per_step * o.steps_per_generation;
    if (r.s.embedded_model) {
        r.data = embedded_training_prompts(r.s, per_step);
    } else {
        std::vector<Example> examples =
            training_prompts(r.s, rewards.traits() & REWARD_GOLD, rewards.traits() & REWARD_ROW);
        grpo_check_rows(examples, rewards, o);
        r.data = training_data(std::move(examples), per_step, o.seed);
    }
    training_order(r);
    training_whole_steps(r, "prompts_per_step");
    if (o.dynamic_sampling && r.data.count == r.data.per_step)
        fail_usage("--dynamic_sampling has no other prompts to draw: each step has all %lld; lower --prompts_per_step",
                   (long long)r.data.count);
    r.eval_rewards = evaluated_rewards(rewards);
    training_hold_out(r, (double)per_step * o.num_generations);
    check_overlap(r.s, r.data, r.held_out);
}

inline int grpo_command(Session& s) {
    TrainingRun r(s);
    Options& o = s.o;
    const TaskSet task = session_task(o);
    if (o.train_data.empty())
        o.set_default("max_completion_length", o.max_completion_length, task.longest().completion);
    if (o.model.empty() && o.train_data.empty()) embedded_defaults(o);
    grpo_check(o);
    grpo_check_loss(o);
    grpo_check_curriculum(o);
    grpo_check_reference(s);
    GrpoObjective objective;
    objective.rewards = rewards_parse(o.reward_funcs, o.reward_weights);
    grpo_check_dynamic_sampling(o, objective.rewards);
    objective.config = grpo_config(o);
    objective.sampler.config = sampler_config(o);  // refuses a bad text before the long work
    if (!o.plan) objective.rewards.start();
    training_open(r, "prompts_per_step", o.prompts_per_step);
    grpo_data(r, objective.rewards);
    micro_batch_grow(s, r.data.longest_prompt + o.max_completion_length);
    if (s.embedded_model) micro_batch_grow(s, longest_cold_start(s, r.data.longest_prompt));
    objective.config.micro_batch_tokens = o.micro_batch_tokens;
    objective.rollout = rollout_config(s);
    objective.state = &r.rollouts;
    objective.tok = &s.tok;
    Model reference;  // the weights at the start, for the KL term; with a frozen base it is the policy's own
    RolloutShape shape =
        rollout_shape((int)r.data.per_step / r.comm.world, o.num_generations, r.data.longest_prompt, objective.rollout);
    check_best(r);
    sampler_check(objective.sampler.config, s, training_steps(r));
    if (training_plan(r, objective, shape, [&] {
            if (o.beta > 0.0 && !s.m.frozen) model_allocate_reference(reference, s.m), objective.reference = &reference;
            sampler_allocate(objective.sampler, s.m, shape, session_positions(s));
            sampler_note(objective.sampler, s);
            correction_note(o, s, objective.sampler.differs());
            if (!objective.sampler.own) return;
            objective.state = &objective.sampler.rollouts;
            shape = RolloutShape();  // what evaluations need is all that is left
        }))
        return 0;
    if (!(s.embedded_model && s.m.lora.on())) session_load_weights(s);
    training_start(r, true,
                   format("%lld training prompts, %s", (long long)r.data.count,
                          held_out_text(r, (double)r.data.per_step * o.num_generations).c_str()));
    if (s.embedded_model) grpo_cold_start(r);
    objective.rewards.check();
    return training_run(r, objective);
}
