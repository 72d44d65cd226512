// Accuracy on held-out problems, from n samples of each (estimators.h): pass@1 is the mean share of right samples.
// Greedy decoding is measured beside it, and strict grading (a declared final answer in a finished completion) beside
// lenient grading (any answer that can be found), because much of an RL gain may be format.
#pragma once
#include <cmath>
#include <string>
#include <vector>
#include "../data/prompts.h"
#include "../train/samples.cuh"
#include "estimators.h"
#include "progress.h"

struct EvalConfig {
    RolloutConfig rollout;
    int samples = 1;                         // per problem, besides the greedy one
    std::function<bool(int, int)> on_token;  // as in rollout(): false ends the evaluation, whose result has n = 0 then
    // told at each token; or none
    std::function<void(const EvalProgress&)> progress;
};

struct EvalSample {
    int problem;
    std::string text;
    bool strict, lenient, finished, garbled, repeating;
};

struct EvalResult {
    int n = 0, samples = 0;
    double pass1 = 0.0, pass1_standard_error = 0.0, pass1_lenient = 0.0;  // sampled, at the run's temperature
    double pass_k = 0.0;                                                  // at k = samples
    double greedy = 0.0, greedy_lenient = 0.0;
    double mean_length = 0.0, clipped_ratio = 0.0, garbled_ratio = 0.0, repeating_ratio = 0.0;  // of the sampled ones
    std::vector<EvalSample> greedy_samples, sampled;
    RolloutStats stats;
};

inline EvalSample grade_completion(const Tokenizer& tok, const Prompt& p, const Completion& c, int max_length) {
    std::string text = completion_text(tok, c);
    RewardInput in{p.text, text, p.gold, c.finished, c.tokens, max_length};
    return {c.prompt,
            text,
            reward_exact(in) > 0.5f,
            reward_accuracy(in) > 0.5f,
            c.finished,
            is_garbled(text, c.finished),
            is_repeating(c.tokens, c.finished)};
}

// From sums to means. right: of each problem, how many of its sampled completions are
inline void eval_means(EvalResult& r, const std::vector<int>& right) {
    double squares = 0.0;
    for (int c : right) {
        if (r.samples < 1) break;
        double share = (double)c / r.samples;
        r.pass1 += share;
        squares += share * share;
        r.pass_k += pass_at_k(r.samples, c, r.samples);
    }
    double n = std::max(r.n, 1), drawn = std::max((double)r.n * r.samples, 1.0);
    r.greedy /= n;
    r.greedy_lenient /= n;
    r.pass1 /= n;
    r.pass_k /= n;
    r.pass1_lenient /= drawn;
    for (double* sum : {&r.mean_length, &r.clipped_ratio, &r.garbled_ratio, &r.repeating_ratio}) *sum /= drawn;
    if (r.n > 1) r.pass1_standard_error = sqrt(std::max(squares / n - r.pass1 * r.pass1, 0.0) / (n - 1.0));
}

inline EvalResult evaluate(Model& m, RolloutState& state, const Tokenizer& tok, const std::vector<Prompt>& prompts,
                           const EvalConfig& config) {
    EvalResult r;
    r.n = (int)prompts.size();
    r.samples = config.samples;
    std::vector<std::vector<int>> tokens;
    for (const Prompt& p : prompts) tokens.push_back(p.tokens);
    bool stopped = false;
    const std::vector<int>& stops = config.rollout.stop_tokens;
    std::vector<std::string> tails(r.n);  // of the texts, see stop_strings_take
    EvalProgress progress{r.n, r.samples, r.n * (1 + (int64_t)r.samples), 0, 0, config.rollout.max_completion_length};
    std::vector<int> lengths(r.n);  // of the completions of this rollout
    auto on_token = [&](int completion, int token) {
        progress.tokens++;
        if (++lengths[completion] == progress.max_completion_length ||
            std::find(stops.begin(), stops.end(), token) != stops.end() ||
            stop_strings_take(config.rollout.stop_strings, tails[completion], token))
            progress.done++;
        if (config.progress) config.progress(progress);
        if (config.on_token && !config.on_token(completion, token)) stopped = true;
        return !stopped;
    };
    RolloutConfig sampled = config.rollout, greedy;
    sampled.pass = model_pack(m, sampled.pass);
    greedy = sampled;
    greedy.sampling = SamplingParams{0.0f, 0, 1.0f, false};
    greedy.sampling.repetition_penalty = sampled.sampling.repetition_penalty;
    for (const Completion& c : rollout(m, state, tokens, 1, greedy, &r.stats, on_token)) {
        r.greedy_samples.push_back(grade_completion(tok, prompts[c.prompt], c, greedy.max_completion_length));
        r.greedy += r.greedy_samples.back().strict;
        r.greedy_lenient += r.greedy_samples.back().lenient;
    }
    std::vector<int> right(r.n, 0);
    if (config.samples > 0 && !stopped) {
        lengths.assign((size_t)r.n * r.samples, 0);
        tails.assign(lengths.size(), "");
        for (const Completion& c : rollout(m, state, tokens, config.samples, sampled, &r.stats, on_token)) {
            EvalSample s = grade_completion(tok, prompts[c.prompt], c, config.rollout.max_completion_length);
            right[c.prompt] += s.strict;
            r.pass1_lenient += s.lenient;
            r.mean_length += (double)c.tokens.size();
            r.clipped_ratio += !c.finished;
            r.garbled_ratio += s.garbled;
            r.repeating_ratio += s.repeating;
            r.sampled.push_back(s);
        }
    }
    model_unpack(m);
    if (stopped) return EvalResult();
    eval_means(r, right);
    return r;
}

inline nlohmann::ordered_json eval_to_json(const EvalResult& r) {
    nlohmann::ordered_json j;
    if (r.samples > 0) {
        j["pass@1"] = r.pass1;
        j["pass@1_standard_error"] = r.pass1_standard_error;
        j["pass@1_lenient"] = r.pass1_lenient;
        if (r.samples > 1) j["pass@" + std::to_string(r.samples)] = r.pass_k;
        j["completions/mean_length"] = r.mean_length;
        j["completions/clipped_ratio"] = r.clipped_ratio;
        j["completions/garbled_ratio"] = r.garbled_ratio;
        j["completions/repeating_ratio"] = r.repeating_ratio;
    }
    j["greedy"] = r.greedy;
    j["greedy_lenient"] = r.greedy_lenient;
    return j;
}
