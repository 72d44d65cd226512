// The text that a quantization is calibrated on, and the text that it is measured on.
#pragma once
#include "eval_text.cuh"
#include "evaluation.cuh"

// --eval_text in windows, or the answers of --eval_data given their prompts; empty if neither is there
inline std::vector<ScoredText> held_out_texts(const Session& s) {
    std::vector<ScoredText> texts = eval_text_windows(s);
    if (!texts.empty() || s.o.eval_data.empty()) return texts;
    for (const SftExample& e : load_sft(s.o.eval_data, given_option(s.o))) {
        if (s.o.eval_n > 0 && (int)texts.size() == s.o.eval_n) break;
        texts.push_back(scored_example(checked_example(s, e)));
    }
    return texts;
}

// what the calibration is drawn from: problems of --train_data or the task, answered by the data or the model
inline std::vector<std::vector<int>> calibration_of_problems(const Session& s) {
    if (!s.o.train_data.empty()) return calibration_documents(s.tok, s.prompt, s.o.train_data);
    std::vector<std::vector<int>> documents;
    const TaskSet task = find_task(s.o.task);
    const int64_t enough = (int64_t)s.o.calibration_samples * s.o.calibration_length;
    for (int64_t i = 0, tokens = 0; tokens < enough; i++) {
        const Example e = checked_example(s, task_example(task, task_seed(s.o.seed, false), (uint32_t)i, false));
        documents.push_back(e.prompt.tokens);
        documents.back().insert(documents.back().end(), e.completion.begin(), e.completion.end());
        tokens += (int64_t)documents.back().size();
    }
    return documents;
}

inline std::vector<Prompt> calibration_prompts(const Session& s) {
    std::vector<Problem> all, some;
    if (!s.o.train_data.empty()) all = load_problems(s.o.train_data, problem_reading(s));
    else all = task_problems(find_task(s.o.task), task_seed(s.o.seed, false), s.o.calibration_samples, false);
    std::vector<int> order = epoch_order((int)all.size(), s.o.seed, 0);
    for (int i = 0; i < std::min((int)all.size(), s.o.calibration_samples); i++) some.push_back(all[order[i]]);
    return make_prompts(s, some);
}

// one sampled answer to each, of the model without its quantizers. state: of a PlainCache
inline std::vector<std::vector<int>> calibration_of_answers(Session& s, RolloutState& state,
                                                            const std::vector<Prompt>& prompts) {
    std::vector<std::vector<int>> documents, tokens;
    for (const Prompt& p : prompts) tokens.push_back(p.tokens);
    RolloutStats stats;
    RolloutConfig config = rollout_config(s);
    const PlainCache plain(s.m);
    config.pass = model_pack(s.m, full_precision());
    Progress line("answers for the calibration", "completion", (int64_t)tokens.size());
    std::vector<Completion> answers =
        rollout(s.m, state, tokens, 1, config, &stats, nullptr, [&line](const Completion&) { line.add(); });
    model_unpack(s.m);
    for (const Completion& c : answers) {
        documents.push_back(tokens[c.prompt]);
        documents.back().insert(documents.back().end(), c.tokens.begin(), c.tokens.end());
    }
    printf("calibration %zu answers of the model's own, %lld tokens, %.1f s\n", answers.size(),
           (long long)stats.completion_tokens, stats.seconds);
    fflush(stdout);
    return documents;
}

// What a quantization is calibrated on: windows of a text, of problems and their answers, or of the model's own answers
struct Calibration {
    bool on = false, self = false;
    std::string source = "none";
    std::vector<Prompt> prompts;  // of --calibration self
    std::vector<std::vector<int>> windows;
};

inline void calibration_draw(Calibration& c, const Session& s, const std::vector<std::vector<int>>& documents) {
    const Options& o = s.o;
    c.windows =
        draw_windows(join_documents(s.tok, documents), o.calibration_samples, o.calibration_length, o.seed, c.source);
}

// The windows, unless the model is yet to answer
inline Calibration calibration_read(const Session& s, bool on) {
    Calibration c;
    const Options& o = s.o;
    c.on = on;
    if (!on) return c;
    c.self = o.calibration == "self";
    const bool from_file = o.calibration != "prompts" && !c.self;
    c.source = from_file || c.self    ? "--calibration " + o.calibration
               : o.train_data.empty() ? "the task " + o.task
                                      : "--train_data " + o.train_data;
    if (c.self) c.prompts = calibration_prompts(s);
    else
        calibration_draw(
            c, s, from_file ? calibration_documents(s.tok, s.prompt, o.calibration) : calibration_of_problems(s));
    return c;
}

inline RolloutShape calibration_shape(const Session& s, const Calibration& c) {
    int64_t longest = 0;
    for (const Prompt& p : c.prompts) longest = std::max(longest, (int64_t)p.tokens.size());
    return rollout_shape((int)c.prompts.size(), 1, longest, rollout_config(s));
}
