// eval: greedy and sampled accuracy of a model on held-out problems, and its log-loss on a text.
#pragma once
#include "drift.cuh"
#include "eval_text.cuh"

inline void log_samples(RunDir& run, const std::vector<Prompt>& prompts, const EvalResult& e) {
    for (const std::vector<EvalSample>* samples : {&e.greedy_samples, &e.sampled})
        for (const EvalSample& c : *samples) {
            nlohmann::ordered_json j;
            j["decoding"] = samples == &e.sampled ? "sampled" : "greedy";
            j["prompt"] = prompts[c.problem].text;
            j["completion"] = c.text;
            j["gold"] = prompts[c.problem].gold;
            j["strict"] = c.strict;
            j["lenient"] = c.lenient;
            j["finished"] = c.finished;
            log_completion(run, j);
        }
}

inline void print_accuracy(const Session& s, const EvalResult& e, double seconds, const std::string& folder) {
    printf("%d problems, weights %s\n", e.n, policy_text(s.o).c_str());
    printf("  greedy   strict %5.1f%%  lenient %5.1f%%\n", 100 * e.greedy, 100 * e.greedy_lenient);
    printf("  sampled  strict %5.1f%% +- %.1f  lenient %5.1f%%  (pass@1 over %d samples at temperature %g)\n",
           100 * e.pass1, 100 * e.pass1_standard_error, 100 * e.pass1_lenient, e.samples, s.o.temperature);
    printf("  length %.1f tokens, %.1f%% cut off, %.1f%% repeating, %.1f%% garbled; %s tok/s, %.1f s; details in %s\n",
           e.mean_length, 100 * e.clipped_ratio, 100 * e.repeating_ratio, 100 * e.garbled_ratio,
           human_count((double)e.stats.completion_tokens / e.stats.seconds).c_str(), seconds,
           escape_controls(folder).c_str());
}

inline int eval_command(Session& s) {
    double start = wall_seconds();
    Options& o = s.o;
    if (!o.against.empty()) return drift_command(s);
    if (o.model.empty()) fail_usage("eval needs --model: a Hugging Face folder (a run's checkpoint-N) or a .gguf file");
    const bool problems = o.eval_text.empty() || !o.eval_data.empty() || o.given("task");
    const Task& task = find_task(o.task);
    if (problems) session_task(o);
    if (o.eval_data.empty() && !o.given("max_completion_length")) o.max_completion_length = task.completion_length;
    session_open(s);
    std::vector<Prompt> prompts;
    if (problems) prompts = eval_prompts(s);
    fit_eval_text(s);
    std::vector<ScoredText> text = eval_text_windows(s);
    micro_batch_grow(s, longest_text(text));
    RolloutState state;
    LogLossMemory loss_memory;
    session_plan(s, false, [&] {
        if (problems) rollout_allocate(state, s.m, eval_shape(s, prompts, o.rollout_batch));
        if (!text.empty()) log_loss_allocate(loss_memory, s.m, o.micro_batch_tokens, longest_text(text));
    });
    if (session_allocate(s)) return 0;
    session_load_weights(s);
    RunDir run = session_run_dir(o, {false, problems}, new_run_id());
    fputs(options_print(o).c_str(), stdout);
    print_start(s);
    buffer_forget(s.m.master);  // nothing is trained
    LogLoss loss;
    if (!text.empty()) loss = log_loss(s.m, loss_memory, text);
    EvalResult e;
    if (problems) e = run_eval(s, state, prompts, 0);
    log_samples(run, prompts, e);
    nlohmann::ordered_json summary;
    summary["command"] = "eval";
    summary["seed"] = o.seed;
    summary_quantizers(summary, s);
    summary["model"] = o.model;
    if (!text.empty()) summary["log_loss"] = {{"tokens", loss.tokens}, {"mean", loss.mean}};
    if (problems) {
        summary["eval"] = eval_to_json(e);
        summary["eval"]["n"] = e.n;
        summary["eval"]["samples"] = e.samples;
        summary["tokens_generated"] = e.stats.completion_tokens;
        summary["generation_tokens_per_second"] = (double)e.stats.completion_tokens / e.stats.seconds;
    }
    summary["wall_seconds"] = wall_seconds() - start;
    summary["peak_rss_bytes"] = peak_rss_bytes();
    close_run_dir(run, summary);
    if (!text.empty())
        printf("log-loss %.4f a token over %lld tokens of %s, weights %s\n", loss.mean, (long long)loss.tokens,
               escape_controls(o.eval_text).c_str(), policy_text(o).c_str());
    if (problems) print_accuracy(s, e, wall_seconds() - start, run.path);
    return 0;
}
