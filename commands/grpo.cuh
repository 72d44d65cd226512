// grpo: the main job. Sample, reward, update, measure; what a run leaves is described in runtime/run_dir.h.
#pragma once
#include <string>
#include <vector>
#include "../grpo.cuh"
#include "sft.cuh"

inline GrpoConfig grpo_config(const Options& o) {
    GrpoConfig c;
    c.num_generations = o.num_generations;
    c.loss_type = o.loss_type == "grpo"      ? LossType::grpo
                  : o.loss_type == "bnpo"    ? LossType::bnpo
                  : o.loss_type == "dr_grpo" ? LossType::dr_grpo
                                             : LossType::dapo;
    c.scale_rewards = o.scale_rewards == "batch"  ? RewardScale::batch
                      : o.scale_rewards == "none" ? RewardScale::none
                                                  : RewardScale::group;
    c.epsilon_low = o.epsilon;
    c.epsilon_high = o.epsilon_high;
    c.beta = o.beta;
    c.num_iterations = o.num_iterations;
    c.accumulation_steps = o.gradient_accumulation_steps;
    c.max_completion_length = o.max_completion_length;
    c.mask_truncated = o.mask_truncated_completions;
    c.temperature = (float)o.temperature;
    c.micro_batch_tokens = o.micro_batch_tokens;
    return c;
}

// The defaults of the embedded task. What the user gave stays.
inline void embedded_defaults(Options& o) {
    auto set = [&](const char* name, auto& field, auto value) {
        if (!o.given(name)) field = value;
    };
    set("weights", o.weights, std::string("int4:g32:sym"));
    set("learning_rate", o.learning_rate, 3e-4);
    set("adam_beta2", o.adam_beta2, 0.99);
    set("max_steps", o.max_steps, 80);
    set("prompts_per_step", o.prompts_per_step, 64);
    set("max_completion_length", o.max_completion_length, EMBEDDED_COMPLETION_LENGTH);
    set("rollout_batch", o.rollout_batch, 512);
    set("eval_samples", o.eval_samples, 4);
}

struct RewardedGroup {
    std::vector<float> total;              // [N]
    std::vector<std::vector<float>> each;  // [rewards][N]
    std::vector<std::string> texts;        // [N]
};

inline RewardedGroup reward_completions(const Session& s, const RewardSet& rewards, const std::vector<Prompt>& prompts,
                                        const std::vector<Completion>& completions) {
    RewardedGroup r;
    size_t n = completions.size(), k = rewards.entries.size();
    r.total.resize(n);
    r.texts.resize(n);
    r.each.assign(k, std::vector<float>(n));
#pragma omp parallel for schedule(dynamic, 4)
    for (size_t i = 0; i < n; i++) {
        const Completion& c = completions[i];
        const Prompt& p = prompts[c.prompt];
        r.texts[i] = completion_text(s.tok, c);
        RewardInput in{p.text, r.texts[i], p.gold, c.finished, (int)c.tokens.size(), s.o.max_completion_length};
        std::vector<float> each(k);
        r.total[i] = rewards_compute(rewards, in, each.data());
        for (size_t f = 0; f < k; f++) r.each[f][i] = each[f];
    }
    return r;
}

// mean, minimum and maximum of completion lengths under TRL's names
inline void length_metrics(nlohmann::ordered_json& j, const std::vector<Completion>& completions) {
    auto put = [&](const std::string& suffix, bool only_finished) {
        double sum = 0.0, low = 1e30, high = 0.0;
        int n = 0;
        for (const Completion& c : completions) {
            if (only_finished && !c.finished) continue;
            double length = (double)c.tokens.size();
            sum += length;
            low = std::min(low, length);
            high = std::max(high, length);
            n++;
        }
        j["completions/mean_" + suffix] = n ? sum / n : 0.0;
        j["completions/min_" + suffix] = n ? low : 0.0;
        j["completions/max_" + suffix] = n ? high : 0.0;
    };
    put("length", false);
    put("terminated_length", true);
    double clipped = 0.0;
    for (const Completion& c : completions) clipped += !c.finished;
    j["completions/clipped_ratio"] = clipped / (double)completions.size();
}

inline int grpo_command(Session& s) {
    double run_start = wall_seconds();
    Options& o = s.o;
    check_task(o);
    bool embedded_task = o.train_data.empty();
    if (embedded_task) embedded_defaults(o);
    if (o.model.empty() && !embedded_task)
        fail_usage("--train_data needs --model: the embedded model knows nothing but its own task");
    if (!o.model.empty() && o.cold_start_loss != Options().cold_start_loss)
        fail_usage("--cold_start_loss belongs to the embedded model; use the sft command before grpo");
    weight_rules(o);  // refuse a bad text before the long work
    RewardSet rewards = rewards_parse(o.reward_funcs, o.reward_weights);
    session_open(s);
    Comm comm;
    if (world_size() > 1 && !o.given("output_dir"))
        fail_usage("WORLD_SIZE=%d: give --output_dir, where the ranks meet", world_size());
    if (o.prompts_per_step % world_size())
        fail_usage("--prompts_per_step %d is not a multiple of WORLD_SIZE %d; change one", o.prompts_per_step,
                   world_size());
    while (o.output_dir.size() > 1 && o.output_dir.back() == '/') o.output_dir.pop_back();
    std::string parent = std::filesystem::path(o.output_dir).parent_path().string();
    if (world_size() > 1 && !parent.empty()) make_folders(parent);
    comm_open(comm, o.output_dir + ".nccl_id", s.m.dev);
    // every rank knows the same at the end of a step; the first one tells
    if (comm.rank > 0) {
        o.output_dir += format(".rank-%d", comm.rank);
        if (!freopen("/dev/null", "w", stdout)) fail("cannot open /dev/null");
    }
    auto stop = [&] { return comm_any(comm, stop_requested()); };

    // data
    std::vector<Prompt> train;
    if (embedded_task) train = make_prompts(s, embedded_problems(o.seed + 1, EMBEDDED_TRAIN_PROBLEMS, false));
    else train = make_prompts(s, load_problems(o.train_data));
    std::vector<Prompt> held_out = eval_prompts(s);
    if ((int)train.size() < o.prompts_per_step)
        fail("%zu problems are fewer than --prompts_per_step %d; lower it or bring more data", train.size(),
             o.prompts_per_step);
    int64_t per_epoch = (int64_t)train.size() / o.prompts_per_step;
    int64_t steps = o.max_steps >= 0 ? o.max_steps : (int64_t)((double)per_epoch * o.num_train_epochs);

    // memory
    Trainer t;
    RolloutState state;
    Model reference;  // the weights at the start, for the KL term; with a frozen base it is the policy's own
    GrpoConfig config = grpo_config(o);
    config.comm = &comm;
    session_plan(s, true, [&] {
        trainer_from_options(t, s.m, o);
        if (config.beta > 0.0 && !s.m.frozen) model_allocate_reference(reference, s.m);
        int64_t longest = 0;
        for (const Prompt& p : train) longest = std::max(longest, (int64_t)p.tokens.size());
        RolloutShape shape =
            rollout_shape(o.prompts_per_step / comm.world, o.num_generations, longest, rollout_config(s));
        if (!held_out.empty()) shape = rollout_larger(shape, eval_shape(s, held_out));
        rollout_allocate(state, s.m, shape);
    });
    if (session_allocate(s)) return 0;
    const std::vector<LinearPart*> quantized = s.m.frozen ? std::vector<LinearPart*>() : quantized_parts(s.m);
    const bool flips_counted = !quantized.empty();  // of a frozen base no code ever changes,
    const bool with_full_precision =
        (s.m.weight_rules.on() || s.m.activation_rules.on()) && !s.m.frozen;  // and there is nothing but its codes
    if (!(s.embedded_model && s.m.lora.on())) session_load_weights(s);
    RunDir run = session_run_dir(o);
    AppendFile flips_log;
    if (flips_counted) flips_log = AppendFile(run.path + "/code_flips.jsonl");
    fputs(options_print(o).c_str(), stdout);
    print_start(s);
    printf("data        %zu training prompts, %zu held out; first prompt %s\n", train.size(), held_out.size(),
           nlohmann::json(one_line(train[0].text, 160))
               .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
               .c_str());
    fflush(stdout);

    if (s.embedded_model) {
        ColdStartConfig c;
        c.target = o.cold_start_loss;
        if (s.m.lora.on()) cold_start_of_base(s, c, run.path + "/base");
        else cold_start(s, t, c);
    }

    EvalResult before, before_full, after, after_full;
    if (!held_out.empty() && !stop_requested()) {
        before = run_eval(s, state, held_out, 0);
        if (with_full_precision) before_full = run_eval_full_precision(s, state, held_out, 0);
        print_eval("before", before, with_full_precision ? &before_full : nullptr, policy_text(o));
        print_samples("before", held_out, before);
    }

    if (reference.work.size) model_copy_work(reference, s.m);
    Schedule schedule = parse_schedule(o.lr_scheduler_type);

    RolloutStats generated;
    int64_t tokens_trained = 0, step = 0, silent = 0;
    double train_seconds = 0.0;
    std::vector<int> order;
    int64_t order_epoch = -1;
    auto save = [&](int64_t at) {
        std::string dir = format("%s/checkpoint-%lld", run.path.c_str(), (long long)at);
        if (comm.rank == 0) session_save(s, dir);
        return dir;
    };
    for (; step < steps && !stop(); step++) {
        double step_start = wall_seconds();
        const Transfers transfers_before = transfers;
        // prompts of this step: the next ones of the epoch's order
        std::vector<Prompt> prompts;
        std::vector<std::vector<int>> tokens;
        std::vector<int> ids;
        for (int i = 0; i < o.prompts_per_step; i++) {
            int64_t at = step * o.prompts_per_step + i, epoch = at / (per_epoch * o.prompts_per_step);
            if (epoch != order_epoch) order = epoch_order((int)train.size(), o.seed, (uint32_t)(order_epoch = epoch));
            ids.push_back(order[at % (per_epoch * o.prompts_per_step)]);
            prompts.push_back(train[ids.back()]);
            tokens.push_back(prompts.back().tokens);
        }

        RolloutConfig rc = rollout_config(s);
        rc.step = (uint32_t)step;
        RolloutStats stats;
        rc.pass = model_pack(s.m);
        std::vector<Completion> completions = rollout_of_ranks(comm, s.m, state, tokens, o.num_generations, rc, &stats,
                                                               [](int, int) { return !stop_requested(); });
        model_unpack(s.m);
        if (stop()) break;  // an abandoned step leaves no trace
        generated.completion_tokens += stats.completion_tokens;
        generated.prompt_tokens += stats.prompt_tokens;
        generated.seconds += stats.seconds;

        RewardedGroup reward = reward_completions(s, rewards, prompts, completions);
        Advantages advantages = group_advantages(reward.total, o.num_generations, config.scale_rewards);

        double train_start = wall_seconds();
        std::vector<std::vector<float>> ref;
        Pass base;
        base.adapter = false;
        if (config.beta > 0.0)
            ref = reference.work.size ? completion_logps(t, reference, Pass(), tokens, completions, config)
                                      : completion_logps(t, s.m, base, tokens, completions, config);
        double rate = schedule_rate(schedule, o.learning_rate, step, o.warmup_steps, steps);
        PolicyPass first, pass;
        OptimizerResult update;
        int64_t step_tokens = 0;
        for (int i = 0; i < config.num_iterations; i++) {
            // before the first update a step can be abandoned without a trace; after it, it is finished
            // (several ranks would have to agree on each micro-batch, so they finish it)
            if (i == 0 && comm.world == 1) config.stop = stop_requested;
            else config.stop = nullptr;
            pass = policy_pass(t, tokens, completions, advantages.a, ref, config);
            if (pass.abandoned) break;
            if (i == 0) first = pass;
            step_tokens += pass.forward_tokens;
            update = optimizer_step(t, rate, pass.loss);
        }
        if (pass.abandoned) break;  // what its gradients hold goes with them
        tokens_trained += step_tokens;
        double seconds = wall_seconds() - train_start;
        train_seconds += seconds;

        nlohmann::ordered_json j;
        j["step"] = step + 1;
        j["loss"] = pass.loss;
        j["grad_norm"] = update.grad_norm;
        j["learning_rate"] = rate;
        j["reward"] = advantages.reward_mean;
        j["reward_std"] = advantages.reward_std;
        j["frac_reward_zero_std"] = advantages.zero_std_share;
        for (size_t f = 0; f < rewards.entries.size(); f++) {
            std::string name = std::string("rewards/") + rewards.entries[f].name;
            double mean = 0.0;
            for (float r : reward.each[f]) mean += r / (double)reward.each[f].size();
            j[name + "/mean"] = mean;
            j[name + "/std"] = sample_std(reward.each[f].data(), (int)reward.each[f].size(), mean);
        }
        length_metrics(j, completions);
        j["entropy"] = pass.entropy;
        if (config.beta > 0.0) j["kl"] = pass.kl;
        j["clip_ratio/low_mean"] = pass.clip_low;
        j["clip_ratio/low_min"] = pass.clip_low_min;
        j["clip_ratio/high_mean"] = pass.clip_high;
        j["clip_ratio/high_max"] = pass.clip_high_max;
        j["clip_ratio/region_mean"] = pass.clip_low + pass.clip_high;
        j["sampling/sampling_logp_difference/mean"] = first.logp_difference_mean;
        j["sampling/sampling_logp_difference/max"] = first.logp_difference_max;
        j["sampling/importance_sampling_ratio/min"] = first.ratio_min;
        j["sampling/importance_sampling_ratio/mean"] = first.ratio_mean;
        j["sampling/importance_sampling_ratio/max"] = first.ratio_max;
        if (flips_counted) {
            j["quant/code_flip_rate"] = update.flip_rate;
            j["quant/code_flip_total"] = update.flip_total;
        }
        j["skipped_steps"] = t.skipped;
        j["epoch"] = (double)(step + 1) / (double)per_epoch;
        j["num_tokens"] = generated.prompt_tokens + generated.completion_tokens;
        j["timing_s/gen"] = stats.seconds;
        j["timing_s/update_actor"] = seconds;
        j["perf/gen_tokens_per_second"] = (double)stats.completion_tokens / stats.seconds;
        j["perf/train_tokens_per_second"] = (double)step_tokens / seconds;
        if (s.m.dev.cuda) {
            j["perf/copies_to_device"] = transfers.to_device - transfers_before.to_device;
            j["perf/copies_to_host"] = transfers.to_host - transfers_before.to_host;
            j["perf/bytes_to_device"] = transfers.to_device_bytes - transfers_before.to_device_bytes;
            j["perf/bytes_to_host"] = transfers.to_host_bytes - transfers_before.to_host_bytes;
        }
        bool evaluate_now = o.eval_steps > 0 && (step + 1) % o.eval_steps == 0 && step + 1 < steps && !held_out.empty();
        if (evaluate_now) {
            EvalResult e = run_eval(s, state, held_out, (uint32_t)(step + 1));
            if (e.n) {
                j["eval_pass@1"] = e.pass1;
                j["eval_greedy"] = e.greedy;
                print_eval(format("step %lld", (long long)step + 1).c_str(), e, nullptr, policy_text(o));
            }
        }
        j["step_time"] = wall_seconds() - step_start;
        if ((step + 1) % o.logging_steps == 0 || step + 1 == steps) {
            log_metrics(run, j);
            for (size_t i = 0; i < completions.size() && o.log_completions; i++) {
                nlohmann::ordered_json c;
                c["step"] = step + 1;
                c["prompt"] = prompts[completions[i].prompt].text;
                c["completion"] = reward.texts[i];
                c["gold"] = prompts[completions[i].prompt].gold;
                for (size_t f = 0; f < rewards.entries.size(); f++) c[rewards.entries[f].name] = reward.each[f][i];
                c["advantage"] = advantages.a[i];
                c["finished"] = completions[i].finished;
                log_completion(run, c);
            }
            if (flips_counted) {
                nlohmann::ordered_json flips;
                flips["step"] = step + 1;
                for (const LinearPart* q : quantized)
                    flips[q->name] = {(double)q->flips / (double)q->count(),
                                      (double)q->flips_total / (double)q->count()};
                flips_log.line(json_line(flips));
            }
            printf("step %*lld/%lld | reward %.3f +- %.3f | loss %+.4f | entropy %.3f |", steps > 999 ? 5 : 3,
                   (long long)step + 1, (long long)steps, advantages.reward_mean, advantages.reward_std, pass.loss,
                   pass.entropy);
            if (config.beta > 0.0) printf(" kl %.4f |", pass.kl);
            printf(" len %.1f clipped %.0f%% | grad %.3f%s | lr %.1e |", j["completions/mean_length"].get<double>(),
                   100 * j["completions/clipped_ratio"].get<double>(), update.grad_norm,
                   update.skipped ? " SKIPPED" : "", rate);
            if (flips_counted) printf(" flips %.3f%% (%.2f%%) |", 100 * update.flip_rate, 100 * update.flip_total);
            printf(" gen %s train %s tok/s | %.1f s\n",
                   human_count((double)stats.completion_tokens / stats.seconds).c_str(),
                   human_count((double)step_tokens / seconds).c_str(), wall_seconds() - step_start);
            fflush(stdout);
        }
        // a run that cannot learn should say so at once
        silent = advantages.zero_std_share > 0.999 ? silent + 1 : 0;
        if (silent == 3)
            fprintf(stderr,
                    "warning: for 3 steps all samples of every prompt got the same reward, so nothing is learnt; see "
                    "completions.jsonl (mean reward %.2f, %.0f%% cut off at --max_completion_length)\n",
                    advantages.reward_mean, 100 * j["completions/clipped_ratio"].get<double>());
        if (o.save_steps > 0 && (step + 1) % o.save_steps == 0 && step + 1 < steps) save(step + 1);
    }

    bool stopped = stop();
    if (!held_out.empty() && !stopped) {
        after = run_eval(s, state, held_out, 1u << 30);
        if (with_full_precision) after_full = run_eval_full_precision(s, state, held_out, 1u << 30);
        stopped = stop_requested();
        print_eval("after", after, with_full_precision ? &after_full : nullptr, policy_text(o));
        print_samples("after", held_out, after);
    }
    std::string checkpoint = save(step);

    nlohmann::ordered_json summary;
    summary["command"] = "grpo";
    summary["seed"] = o.seed;
    summary_quantizers(summary, s);
    summary_lora(summary, s.m);
    summary["model"] = s.embedded_model ? "embedded" : o.model;
    summary["steps"] = step;
    summary["stopped"] = stopped;
    summary["eval"]["n"] = (int)held_out.size();
    summary["eval"]["samples"] = o.eval_samples;
    if (before.n) summary["eval"]["before"] = eval_to_json(before);
    if (after.n) summary["eval"]["after"] = eval_to_json(after);
    if (before_full.n) summary["eval"]["before"]["full_precision"] = eval_to_json(before_full);
    if (after_full.n) summary["eval"]["after"]["full_precision"] = eval_to_json(after_full);
    summary["wall_seconds"] = wall_seconds() - run_start;
    summary["tokens_generated"] = generated.completion_tokens;
    summary["tokens_trained"] = tokens_trained;
    summary["generation_tokens_per_second"] =
        generated.seconds > 0 ? (double)generated.completion_tokens / generated.seconds : 0.0;
    summary["training_tokens_per_second"] = train_seconds > 0 ? (double)tokens_trained / train_seconds : 0.0;
    if (flips_counted) summary["code_flip_total"] = code_flip_rate(s.m, true);
    summary["skipped_steps"] = t.skipped;
    summary["checkpoint"] = checkpoint;
    summary["peak_rss_bytes"] = peak_rss_bytes();
    close_run_dir(run, summary);
    if (flips_counted) flips_log.close();
    printf("%s after %lld steps, %.1f s, peak memory %.0f MiB; results in %s, model in %s\n",
           stopped ? "stopped" : "done", (long long)step, wall_seconds() - run_start,
           (double)peak_rss_bytes() / 1048576.0, run.path.c_str(), checkpoint.c_str());
    return stopped ? stop_exit_code() : 0;
}
