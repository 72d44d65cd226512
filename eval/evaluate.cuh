// A model's answers to problems, greedy and sampled, graded.
//   strict    a declared answer (\boxed or ####) of a completion that ended by itself is right: what `exact` pays
//   lenient   the answer is right wherever it stands: what `accuracy` pays
// Both are measured because much of an RL gain may be format; eval/scores.h makes numbers of them.
//
// The trap: a problem counts once all of its completions have ended, and not before. Completions that end early are the
// short ones, so that what has been drawn of the others when an evaluation is stopped would favour short answers.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>
#include "../train/samples.cuh"
#include "answer_format.h"

// How far an evaluation is, over all of its sets
struct EvalProgress {
    int problems = 0;
    int64_t completions = 0, done = 0, tokens = 0;  // to be drawn, greedy ones too; that have ended; drawn so far
    int max_completion_length = 0;
};

struct EvalSample {
    int problem = 0, sample = 0;
    bool greedy = false;
    std::string text;
    std::string declared, answer;  // what strict and lenient grading read; empty: there is none
    AnswerFormat format = AnswerFormat::none;
    bool strict = false, lenient = false, finished = false, garbled = false, repeating = false;
    int length = 0;              // tokens, with the stop token
    int vote = -1;               // which of the problem's declared answers is its own, -1: none (answer_classes)
    float reward = 0.0f;         // the weighted sum; NaN: none applies
    std::vector<float> rewards;  // of each function; NaN: it does not apply
};

struct EvalConfig {
    RolloutConfig rollout;
    int samples = 1;     // per problem, besides the greedy one
    bool greedy = true;  // is there a greedy one?
    RewardSet rewards;   // what completions are paid; none: nothing
    // the problems that need no answers any more, by decoding (0 sampled, 1 greedy); empty: none
    std::vector<char> have[2];
    std::function<bool(int, int)> on_token;                          // as in rollout(): false ends the evaluation
    std::function<void(const EvalProgress&)> progress;               // told at each token; or none
    std::function<void(const std::vector<EvalSample>&)> on_problem;  // told a problem's samples when it is complete
};

// of one set of problems: the complete ones, sorted by problem and sample
struct EvalAnswers {
    std::vector<EvalSample> greedy, sampled;
    RolloutStats stats;
    bool stopped = false;
};

inline void sort_samples(std::vector<EvalSample>& samples) {
    std::sort(samples.begin(), samples.end(), [](const EvalSample& a, const EvalSample& b) {
        return std::pair(a.problem, a.sample) < std::pair(b.problem, b.sample);
    });
}

// with what an earlier part of the evaluation has
inline void merge_answers(EvalAnswers& a, const EvalAnswers& earlier) {
    a.greedy.insert(a.greedy.end(), earlier.greedy.begin(), earlier.greedy.end());
    a.sampled.insert(a.sampled.end(), earlier.sampled.begin(), earlier.sampled.end());
    sort_samples(a.greedy);
    sort_samples(a.sampled);
}

// Samples by the answer they vote for, as maj_at_k() takes them: the number of the first answer that grade() calls equal,
// -1 for none
inline std::vector<int> answer_classes(const EvalSample* samples, int n, bool lenient) {
    std::vector<std::string> answers;
    std::vector<int> classes;
    std::map<std::string, int> seen;  // most samples of a problem repeat one another to the letter
    for (int i = 0; i < n; i++) {
        const std::string& answer = lenient ? samples[i].answer : samples[i].declared;
        auto known = seen.find(answer);
        int k = -1;
        if (known != seen.end()) {
            k = known->second;
        } else if (!answer.empty()) {
            k = 0;
            while (k < (int)answers.size() && grade(answers[k], answer) != Verdict::correct) k++;
            if (k == (int)answers.size()) answers.push_back(answer);
            seen[answer] = k;
        }
        classes.push_back(k);
    }
    return classes;
}

// the completions of one problem
inline std::vector<EvalSample> grade_completions(const Tokenizer& tok, const Prompt& p,
                                                 const std::vector<Completion>& completions, const EvalConfig& config) {
    std::vector<EvalSample> out;
    std::vector<std::string> texts;
    std::vector<RewardInput> in;
    for (const Completion& c : completions) texts.push_back(completion_text(tok, c));
    for (size_t i = 0; i < texts.size(); i++) {
        const Completion& c = completions[i];
        in.push_back({p.text,
                      texts[i],
                      p.gold,
                      c.finished,
                      c.tokens,
                      config.rollout.max_completion_length,
                      {},
                      p.problem ? p.problem->row.get() : nullptr,
                      p.problem ? &p.problem->reward_funcs : nullptr});
        EvalSample s;
        s.sample = c.sample;
        s.text = texts[i];
        s.strict = reward_exact(in[i]) > 0.5f;
        s.lenient = reward_accuracy(in[i]) > 0.5f;
        if (!declared_answer(in[i], s.declared)) s.declared.clear();
        s.answer = found_answer(in[i]);
        s.format = answer_format(texts[i]);
        s.finished = c.finished;
        s.garbled = is_garbled(texts[i], c.finished);
        s.repeating = is_repeating(c.tokens, c.finished);
        s.length = (int)c.tokens.size();
        out.push_back(std::move(s));
    }
    const std::vector<int> votes = answer_classes(out.data(), (int)out.size(), false);
    for (size_t i = 0; i < out.size(); i++) out[i].vote = votes[i];
    if (config.rewards.entries.empty()) return out;
    std::vector<float> total;
    std::vector<std::vector<float>> each;
    rewards_compute(total, each, config.rewards, in, std::vector<int>(in.size(), 0));
    for (size_t i = 0; i < out.size(); i++) {
        out[i].reward = total[i];
        for (const std::vector<float>& of : each) out[i].rewards.push_back(of[i]);
    }
    return out;
}

// One decoding of the problems that are left. A draw is keyed by the problem's number, so what was answered before or is
// left out changes nothing.
inline void evaluate_decoding(EvalAnswers& r, bool greedy, Model& m, RolloutState& state, const Tokenizer& tok,
                              const std::vector<Prompt>& prompts, const EvalConfig& config, EvalProgress& progress) {
    RolloutConfig c = config.rollout;
    c.pass = model_pack(m, c.pass);
    if (greedy) {
        c.sampling = SamplingParams{0.0f, 0, 1.0f, false};
        c.sampling.repetition_penalty = config.rollout.sampling.repetition_penalty;
    }
    const int G = greedy ? 1 : config.samples;
    std::vector<std::vector<int>> tokens;
    for (int p = 0; p < (int)prompts.size(); p++) {
        if (!config.have[greedy].empty() && config.have[greedy][p]) continue;
        c.prompt_numbers.push_back(p);
        tokens.push_back(prompts[p].tokens);
    }
    std::vector<std::vector<Completion>> ended(tokens.size());
    std::vector<EvalSample>& out = greedy ? r.greedy : r.sampled;
    auto on_token = [&](int completion, int token) {
        progress.tokens++;
        if (config.progress) config.progress(progress);
        if (config.on_token && !config.on_token(completion, token)) r.stopped = true;
        return !r.stopped;
    };
    auto on_end = [&](const Completion& completion) {
        progress.done++;
        if (config.progress) config.progress(progress);
        std::vector<Completion>& group = ended[completion.prompt];
        group.push_back(completion);
        if ((int)group.size() < G) return;
        std::sort(group.begin(), group.end(),
                  [](const Completion& a, const Completion& b) { return a.sample < b.sample; });
        const int number = c.prompt_numbers[completion.prompt];
        std::vector<EvalSample> graded = grade_completions(tok, prompts[number], group, config);
        for (EvalSample& s : graded) s.problem = number, s.greedy = greedy;
        if (config.on_problem) config.on_problem(graded);
        for (EvalSample& s : graded) out.push_back(std::move(s));
        group = {};
    };
    rollout(m, state, tokens, G, c, &r.stats, on_token, on_end);
    model_unpack(m);
    sort_samples(out);
}

// Time is that of the tokens to come. Tokens of a completion: all that were drawn over the number that ended, which counts
// those that are still at work; the most there can be, before one has ended
inline void eval_tell(Progress& line, const EvalProgress& p) {
    double length = p.max_completion_length;
    if (p.done) length = std::min(length, (double)p.tokens / (double)p.done);
    line.to(p.done);
    line.measure((double)p.tokens, std::max((double)p.completions * length, (double)p.tokens), "tok");
}

// completions that evaluate() will draw of `problems` problems
inline int64_t eval_completions(int problems, const EvalConfig& c) {
    int64_t n = 0;
    for (bool greedy : {false, true}) {
        int64_t left = problems;
        for (char have : c.have[greedy]) left -= have;
        n += left * (greedy ? c.greedy : c.samples);
    }
    return n;
}

inline EvalProgress eval_progress(int problems, const EvalConfig& c) {
    EvalProgress p;
    p.problems = problems;
    p.completions = eval_completions(problems, c);
    p.max_completion_length = c.rollout.max_completion_length;
    return p;
}

// progress goes on from what it has, over the sets of one evaluation
inline EvalAnswers evaluate(Model& m, RolloutState& state, const Tokenizer& tok, const std::vector<Prompt>& prompts,
                            const EvalConfig& config, EvalProgress& progress) {
    EvalAnswers r;
    if (config.greedy) evaluate_decoding(r, true, m, state, tok, prompts, config, progress);
    if (config.samples > 0 && !r.stopped) evaluate_decoding(r, false, m, state, tok, prompts, config, progress);
    return r;
}
