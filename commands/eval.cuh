// eval: accuracy of a model on sets of problems, greedy and sampled, and its log-loss on a text.
#pragma once
#include "../eval/rows.h"
#include "drift.cuh"
#include "eval_text.cuh"
#include "first_prompt.cuh"
#include "resume.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// what is evaluated

// the sets of --eval_data, or the task's problems
inline std::vector<EvalSet> eval_sets(const Session& s, bool keep_rows) {
    std::vector<EvalSet> sets;
    const bool made_up = s.o.eval_data.empty();
    for (const std::string& name : split_words(made_up ? s.o.task : s.o.eval_data, ",")) {
        EvalSet set;
        set.source = made_up ? "task " + name : name;
        set.shots = s.prompt.num_shots;
        set.name = made_up ? name : data_set_name(name);
        set.prompts = eval_set_prompts(s, made_up ? "" : name, name, s.o.eval_n, keep_rows, &set.available);
        for (const EvalSet& other : sets)
            if (other.name == set.name)
                fail_usage("--%s: %s and %s are both called %s in the results; %s", made_up ? "task" : "eval_data",
                           other.source.c_str(), set.source.c_str(), set.name.c_str(),
                           made_up ? "leave one out" : "rename one");
        sets.push_back(std::move(set));
    }
    return sets;
}

// The rewards that a checkpoint's run was paid by, as its mean reward is what papers report. What of them is a program or
// a library is not run because a checkpoint says so.
inline void rewards_of_checkpoint(Options& o) {
    const std::string path = o.model + "/trainer_state.json";
    if (o.given("reward_funcs") || o.given("reward_weights") || !file_exists(path)) return;
    const nlohmann::json options =
        json_parse(read_file(path, 1 << 26), path).value("options", nlohmann::json::object());
    auto text = [&](const char* key) {
        return options.contains(key) && options[key].is_string() ? options[key].get<std::string>() : std::string();
    };
    const std::string funcs = text("reward_funcs");
    if (funcs.empty()) return;
    if (funcs.find('/') != std::string::npos)
        return note_once(format("note: the run was paid by --reward_funcs %s; give it to run what is not built in",
                                printable(funcs).c_str()));
    o.reward_funcs = funcs;
    o.reward_weights = text("reward_weights");
}

inline RewardSet eval_reward_set(Session& s) {
    Options& o = s.o;
    rewards_of_checkpoint(o);
    const RewardSet all = rewards_parse(o.reward_funcs, o.reward_weights);
    const RewardSet set = evaluated_rewards(all);
    if (set.entries.size() < all.entries.size()) {
        if (o.given("reward_funcs"))
            fail_usage("--reward_funcs %s: entropy and self_certainty are of the policy that trains; leave them out",
                       o.reward_funcs.c_str());
        note_once("note: the run's rewards entropy and self_certainty are not measured by eval; the others are");
    }
    if (!o.plan) set.start();
    return set;
}

// ---------------------------------------------------------------------------------------------------------------------
// going on

// the rows of completions.jsonl, by set
inline std::map<std::string, std::vector<std::pair<std::string, nlohmann::ordered_json>>> earlier_rows(
    const std::string& folder) {
    std::map<std::string, std::vector<std::pair<std::string, nlohmann::ordered_json>>> rows;
    const std::string path = folder + "/completions.jsonl";
    if (!file_exists(path) || AppendFile(path).size == 0) return rows;  // which cuts a line that was being written
    for_each_row(path, [&](const DatasetRow& row, int) {
        if (!row.object.contains("set") || !row.object["set"].is_string())
            fail("%s: not a row of an evaluation; give another --output_dir", row.where.c_str());
        rows[row.object["set"]].push_back({row.where, row.object});
    });
    return rows;
}

// Of each set what an earlier part has; completions.jsonl is left with no more than that
inline std::vector<EvalEarlier> eval_resume(const Session& s, const std::vector<EvalSet>& sets,
                                            const std::vector<std::string>& names) {
    std::vector<EvalEarlier> earlier(sets.size());
    if (!s.o.resume) return earlier;
    const std::string& folder = s.o.output_dir;
    if (run_id_of(folder).empty())
        fail_usage("--resume: %s holds no evaluation; name its folder with --output_dir", folder.c_str());
    check_same_config(s.o,
                      {"output_dir", "overwrite_output_dir", "resume", "threads", "rollout_batch", "micro_batch_tokens",
                       "log_completions", "plan"},
                      "holds an evaluation that was begun");
    auto rows = earlier_rows(folder);
    std::string kept;
    for (size_t i = 0; i < sets.size(); i++) {
        const std::vector<std::string> keys = problem_keys(sets[i].prompts);
        earlier[i] = earlier_answers(rows[sets[i].name], sets[i].prompts, keys, s.o.eval_samples, names);
        for (const auto* samples : {&earlier[i].answers.greedy, &earlier[i].answers.sampled})
            for (const EvalSample& x : *samples)
                kept += json_line(eval_row(sets[i].name, keys[x.problem], sets[i].prompts[x.problem], x, names)) + "\n";
    }
    write_file_atomic(folder + "/completions.jsonl", kept);
    return earlier;
}

// ---------------------------------------------------------------------------------------------------------------------
// the work

struct EvalWork {
    std::vector<EvalSet> sets;
    RewardSet rewards;
    std::vector<std::string> reward_names;
    RolloutState state;
    RolloutStats stats;
    std::string rows;                        // of completions.jsonl
    std::vector<WatchedEvaluation> watched;  // of each set
    std::vector<ScoredText> text;            // of --eval_text
    LogLossMemory loss_memory;
    LogLoss loss;
    double start = wall_seconds();
};

// every set in turn, until the evaluation is stopped; rows go to completions.jsonl problem by problem
inline void evaluate_sets(Session& s, EvalWork& w, RunDir& run, std::vector<EvalEarlier>& earlier) {
    EvalProgress progress;
    std::vector<EvalConfig> configs;
    for (size_t i = 0; i < w.sets.size(); i++) {
        EvalConfig c = eval_config(s, w.state, 0);
        c.rewards = w.rewards;
        for (bool greedy : {false, true}) c.have[greedy] = earlier[i].have[greedy];
        const EvalProgress of = eval_progress((int)w.sets[i].prompts.size(), c);
        progress.problems += of.problems, progress.completions += of.completions;
        progress.max_completion_length = of.max_completion_length;
        configs.push_back(std::move(c));
    }
    Progress line("evaluating", "completion", progress.completions);
    for (size_t i = 0; i < w.sets.size(); i++) {
        EvalSet& set = w.sets[i];
        const std::vector<std::string> keys = problem_keys(set.prompts);
        configs[i].progress = [&line](const EvalProgress& p) { eval_tell(line, p); };
        configs[i].on_problem = [&](const std::vector<EvalSample>& samples) {
            for (const EvalSample& x : samples)
                log_completion(run, eval_row(set.name, keys[x.problem], set.prompts[x.problem], x, w.reward_names));
        };
        EvalAnswers a;
        if (!stop_requested()) a = evaluate(s.m, w.state, s.tok, set.prompts, configs[i], progress);
        else a.stopped = true;
        set.stopped = a.stopped;
        w.stats.completion_tokens += a.stats.completion_tokens;
        w.stats.seconds += a.stats.seconds;
        merge_answers(a, earlier[i].answers);
        for (const auto* samples : {&a.greedy, &a.sampled})
            for (const EvalSample& x : *samples)
                w.rows +=
                    json_line(eval_row(set.name, keys[x.problem], set.prompts[x.problem], x, w.reward_names)) + "\n";
        set.scores = eval_scores(a, set.prompts, w.rewards);
        w.watched.push_back(watched_evaluation(a, "the evaluation on " + printable(set.name)));
    }
    if (run.completions.fd < 0) return;
    run.completions.close();  // in the order of the problems now, whatever ended first and whether it was stopped
    write_file_atomic(run.path + "/completions.jsonl", w.rows);
}

// What is given to the model, and whether that is likely to be a mistake, of each set
inline void eval_print_prompts(const Session& s, const EvalWork& w, Watch& watch, std::vector<ToldWarning>& told) {
    for (const EvalSet& set : w.sets) {
        if (w.sets.size() > 1) printf("set         %s\n", printable(set.name).c_str());
        if (set.prompts.empty()) continue;
        fputs(tokens_text(s.tok, "first prompt", set.prompts[0].tokens).c_str(), stdout);
        for (const auto& [warning, text] : prompt_warnings(s, set.prompts[0].tokens))
            watch_once(watch, told, 0, warning, text);
    }
    fflush(stdout);
    tell_warnings(told, nullptr);
}

// Warnings of the sets, each by itself, and warnings.jsonl with all that was told
inline void eval_warn(const Session& s, const EvalWork& w, RunDir& run, std::vector<ToldWarning> told) {
    for (size_t i = 0; i < w.watched.size(); i++) {
        int64_t longest = 0;
        for (const Prompt& p : w.sets[i].prompts) longest = std::max(longest, (int64_t)p.tokens.size());
        Watch of_set;
        const std::vector<ToldWarning> now =
            watch_evaluation(of_set, 0, w.watched[i], watch_context(s, longest, reads_declared(w.rewards)));
        tell_warnings(now, nullptr);
        told.insert(told.end(), now.begin(), now.end());
    }
    std::string lines;
    for (const ToldWarning& t : told) lines += warning_line(t) + "\n";
    write_file_atomic(run.path + "/warnings.jsonl", lines);
}

inline nlohmann::ordered_json eval_summary(const Session& s, const EvalWork& w) {
    nlohmann::ordered_json j;
    j["command"] = "eval";
    j["seed"] = s.o.seed;
    summary_quantizers(j, s);
    j["model"] = s.o.model;
    if (!w.text.empty())
        j["log_loss"] = {{"tokens", w.loss.tokens}, {"mean", w.loss.mean}, {"perplexity", exp(w.loss.mean)}};
    for (const EvalSet& set : w.sets) {
        nlohmann::ordered_json e = eval_to_json(set.scores);
        e["n"] = std::max(set.scores.problems, set.scores.greedy_problems);
        e["samples"] = s.o.eval_samples;
        if (w.sets.size() == 1) j["eval"] = e;
        else j["eval"][set.name] = e;
        if (set.stopped) j["partial"] = true;
    }
    if (!w.sets.empty()) {
        j["tokens_generated"] = w.stats.completion_tokens;
        j["generation_tokens_per_second"] = (double)w.stats.completion_tokens / std::max(w.stats.seconds, 1e-9);
    }
    j["wall_seconds"] = wall_seconds() - w.start;
    j["peak_rss_bytes"] = peak_rss_bytes();
    return j;
}

inline void print_results(const EvalWork& w, const std::string& folder, const Options& o) {
    printf("\n%s", eval_table(w.sets).c_str());
    printf("percent, in brackets the 95 %% interval over problems; strict, and lenient beside it\n");
    for (const EvalSet& set : w.sets) printf("%s", eval_details(set).c_str());
    double garbled = 0.0, repeating = 0.0, disagreement = 0.0;
    for (const EvalSet& set : w.sets) {
        garbled = std::max(garbled, set.scores.garbled_ratio);
        repeating = std::max(repeating, set.scores.repeating_ratio);
        disagreement = std::max(disagreement, set.scores.disagreement);
    }
    printf("%.1f%% repeating, %.1f%% garbled, %.1f%% judged otherwise by strict and lenient grading%s\n",
           100 * repeating, 100 * garbled, 100 * disagreement, w.sets.size() > 1 ? " (most of any set)" : "");
    for (const EvalSet& set : w.sets) fputs(cut_off_note(set, o.max_completion_length).c_str(), stdout);
    printf("weights %s; %s tok/s, %.1f s; results in %s, compare two of them with train_qrl compare\n",
           policy_text(o).c_str(),
           human_count((double)w.stats.completion_tokens / std::max(w.stats.seconds, 1e-9)).c_str(),
           wall_seconds() - w.start, escape_controls(folder).c_str());
    const bool stopped = std::any_of(w.sets.begin(), w.sets.end(), [](const EvalSet& set) { return set.stopped; });
    if (stopped)
        printf("stopped before it was complete: what is above is of the problems that were%s\n",
               o.log_completions ? "; --resume true goes on" : "");
}

// before anything is loaded
inline void eval_check(Session& s) {
    Options& o = s.o;
    if (o.model.empty()) fail_usage("eval needs --model: a Hugging Face folder (a run's checkpoint-N) or a .gguf file");
    if (!o.eval_greedy && o.eval_samples == 0)
        fail_usage("--eval_samples 0 with --eval_greedy false leaves nothing to evaluate");
    sampling_of_model(s);
    if (o.temperature == 0.0 && o.eval_samples > 0) {
        if (!o.eval_greedy)
            fail_usage("--temperature 0 with --eval_greedy false: greedy completions are all there are");
        s.notes.push_back("at --temperature 0 all samples are the greedy completion, so none are drawn");
        o.eval_samples = 0;
    }
    if (o.eval_data.empty() && !o.given("max_completion_length"))
        o.max_completion_length = longest_of(find_tasks(o.task)).completion;
    if (o.resume && !o.log_completions)
        fail_usage("--resume goes on from completions.jsonl, which --log_completions false leaves out; give one");
}

// Everything that the evaluation needs. True: --plan, and nothing more is to be done
inline bool eval_plan(Session& s, EvalWork& w) {
    const Options& o = s.o;
    micro_batch_grow(s, longest_text(w.text));
    session_plan(s, false, [&] {
        RolloutShape shape;
        for (const EvalSet& set : w.sets) shape = rollout_larger(shape, eval_shape(s, set.prompts, o.rollout_batch));
        if (!w.sets.empty()) rollout_allocate(w.state, s.m, shape);
        if (!w.text.empty()) log_loss_allocate(w.loss_memory, s.m, o.micro_batch_tokens, longest_text(w.text));
    });
    return session_allocate(s);
}

inline int eval_command(Session& s) {
    EvalWork w;
    Options& o = s.o;
    if (!o.against.empty()) return drift_command(s);
    eval_check(s);
    w.rewards = eval_reward_set(s);
    w.reward_names = reward_names(w.rewards);
    const bool problems = o.eval_text.empty() || !o.eval_data.empty() || o.given("task");
    if (problems) session_task(o);
    session_open(s);
    if (problems) w.sets = eval_sets(s, w.rewards.traits() & REWARD_ROW);
    fit_eval_text(s);
    w.text = eval_text_windows(s);
    if (eval_plan(s, w)) return 0;
    session_load_weights(s);
    std::vector<EvalEarlier> earlier = eval_resume(s, w.sets, w.reward_names);
    RunDirSetting setting;
    setting.completions = problems;
    setting.goes_on = o.resume;
    RunDir run = session_run_dir(s, setting, new_run_id());
    fputs(options_print(o).c_str(), stdout);
    print_start(s);
    Watch watch;
    std::vector<ToldWarning> told;
    eval_print_prompts(s, w, watch, told);
    buffer_forget(s.m.master);  // nothing is trained
    if (!w.text.empty()) w.loss = log_loss(s.m, w.loss_memory, w.text);
    if (problems) {
        evaluate_sets(s, w, run, earlier);
        const nlohmann::ordered_json results = lm_eval_results(w.sets, options_to_json(o), wall_seconds() - w.start);
        write_file_atomic(run.path + "/results.json", json_line(results, 2) + "\n");
    }
    close_run_dir(run, eval_summary(s, w));
    if (!w.text.empty())
        printf("log-loss %.4f a token (perplexity %.4g) over %lld tokens of %s, weights %s\n", w.loss.mean,
               exp(w.loss.mean), (long long)w.loss.tokens, escape_controls(o.eval_text).c_str(),
               policy_text(o).c_str());
    if (problems) print_results(w, run.path, o), eval_warn(s, w, run, told);
    return stop_requested() ? stop_exit_code() : 0;
}
