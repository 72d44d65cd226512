// Evaluation on held-out problems, as the commands that train and `eval` do it: room, sampling, rewards, progress, and
// how many problems a training run evaluates on.
#pragma once
#include "../eval/results.h"
#include "memory.cuh"
#include "problems.cuh"

// The model keeps keys and values as they are while this lives: full_precision() is of weights and inputs alone. A cache
// is laid out for the quantizers that it is allocated under, so that a rollout needs one that was made under this, too
struct PlainCache {
    Model& m;
    QuantizerRules rules;
    bool pre_bias;

    explicit PlainCache(Model& model) : m(model), rules(model.kv_rules), pre_bias(model.k_pre_bias) {
        set(QuantizerRules(), false);
    }
    PlainCache(const PlainCache&) = delete;
    ~PlainCache() { set(rules, pre_bias); }
    void set(const QuantizerRules& kv, bool before_bias) {
        m.kv_rules = kv, m.k_pre_bias = before_bias;
        for (int l = 0; l < m.L(); l++) m.layers[l].kv = quantizer_of(kv, QuantizerPlace{l, "", ""});
    }
};

struct EvalResult {
    EvalAnswers answers;
    EvalScores scores;
    bool complete = false;  // else it was stopped, or there was nothing to do
};

// What of a run's rewards an evaluation can pay: those that need no forward of the policy (entropy, self_certainty)
inline RewardSet evaluated_rewards(const RewardSet& all) {
    RewardSet set;
    for (size_t f = 0; f < all.entries.size(); f++) {
        if (all.entries[f].traits & (REWARD_ENTROPY | REWARD_SELF_CERTAINTY)) continue;
        set.entries.push_back(all.entries[f]);
        set.settings.push_back(all.settings[f]);
        set.weights.push_back(all.weights[f]);
    }
    return set;
}

inline std::vector<std::string> reward_names(const RewardSet& set) {
    std::vector<std::string> names;
    for (const RewardEntry& entry : set.entries) names.push_back(entry.name);
    return names;
}

// Room for an evaluation of these prompts. most: sequences decoded at once, where training has room for fewer than
// --rollout_batch; how many there are changes no token
inline RolloutShape eval_shape(const Session& s, const std::vector<Prompt>& prompts, int most) {
    int64_t longest = 0;
    for (const Prompt& p : prompts) longest = std::max(longest, (int64_t)p.tokens.size());
    RolloutConfig c = rollout_config(s);
    c.max_sequences = std::min(c.max_sequences, most);
    return rollout_larger(rollout_shape((int)prompts.size(), 1, longest, c),
                          rollout_shape((int)prompts.size(), std::max(s.o.eval_samples, 1), longest, c));
}

// --generation_config model: the recommended sampling of the model's folder, where no flag says otherwise
inline void sampling_of_model(Session& s) {
    Options& o = s.o;
    if (o.generation_config != "model") return;
    const std::string path = o.model + "/generation_config.json";
    if (!is_folder(o.model) || !file_exists(path))
        fail("--generation_config model: there is no %s; give --temperature, --top_p and --top_k", path.c_str());
    const nlohmann::json j = json_parse(read_file(path, 1 << 20), path);
    std::string taken;
    for (const char* name : {"temperature", "top_p", "top_k", "min_p", "repetition_penalty"}) {
        if (o.given(name) || !j.is_object() || !j.contains(name) || j[name].is_null()) continue;
        if (!j[name].is_number()) fail("%s: `%s` is %s, not a number", path.c_str(), name, j[name].type_name());
        set_option(o, option_index(name), j[name].dump(), path + ": " + name);
        taken += format("%s%s %s", taken.empty() ? "" : ", ", name, j[name].dump().c_str());
    }
    s.notes.push_back(taken.empty() ? path + " recommends nothing" : "as " + path + " recommends: " + taken);
}

inline EvalConfig eval_config(const Session& s, const RolloutState& state, uint32_t index, const Pass& pass = Pass()) {
    EvalConfig c;
    c.rollout = rollout_config(s);
    c.rollout.max_sequences = std::min(c.rollout.max_sequences, state.shape.slots);
    c.rollout.pass = pass;
    c.rollout.stream = RNG_EVAL;
    c.rollout.step = index;
    c.samples = s.o.eval_samples;
    c.greedy = s.o.eval_greedy;
    c.on_token = [](int, int) { return !stop_requested(); };
    return c;
}

// An evaluation within a training run: complete, or nothing
inline EvalResult run_eval(Session& s, RolloutState& state, const std::vector<Prompt>& prompts,
                           const RewardSet& rewards, uint32_t index, const Pass& pass = Pass()) {
    EvalConfig c = eval_config(s, state, index, pass);
    c.rewards = rewards;
    EvalProgress progress = eval_progress((int)prompts.size(), c);
    Progress line(pass.quantized ? "evaluating" : "evaluating in full precision", "completion", progress.completions);
    c.progress = [&line](const EvalProgress& p) { eval_tell(line, p); };
    EvalResult r;
    r.answers = evaluate(s.m, state, s.tok, prompts, c, progress);
    r.complete = !r.answers.stopped;
    if (r.complete) r.scores = eval_scores(r.answers, prompts, rewards);
    return r;
}

// what of an evaluation shows that it measures something else than the model
inline WatchedEvaluation watched_evaluation(const EvalAnswers& a, const std::string& when) {
    WatchedEvaluation e;
    e.when = when;
    double clipped = 0.0, answered = 0.0, declared = 0.0, lenient = 0.0, ended = 0.0, tokens = 0.0;
    for (const auto* samples : {&a.greedy, &a.sampled})
        for (const EvalSample& s : *samples) {
            e.completions++;
            clipped += !s.finished, answered += !s.answer.empty(), declared += !s.declared.empty();
            lenient += s.lenient;
            if (s.finished) ended++, tokens += s.length;
        }
    const double n = std::max(e.completions, 1);
    e.clipped = clipped / n, e.answered = answered / n, e.declared = declared / n, e.lenient = lenient / n;
    if (ended > 0.0) e.ended_length = tokens / ended;
    return e;
}

// do they pay for declared answers, and for no others?
inline bool reads_declared(const RewardSet& rewards) {
    bool declared = false, any = false;
    for (const RewardEntry& entry : rewards.entries) {
        declared = declared || entry.traits & REWARD_DECLARED;
        any = any || ((entry.traits & REWARD_GOLD) && !(entry.traits & REWARD_DECLARED));
    }
    return declared && !any;
}

// longest: tokens of the longest prompt
inline WatchContext watch_context(const Session& s, int64_t longest, bool strict) {
    WatchContext c;
    const Options& o = s.o;
    c.max_completion_length = o.max_completion_length;
    c.most_completion_length = (int)std::max<int64_t>(s.m.config.max_position_embeddings - longest, 0);
    c.reads_declared = strict;
    c.chat_template_off = s.prompt.chat != ChatTemplate::none && !use_chat(s.prompt);
    c.rewarded = o.command == COMMAND_GRPO;
    return c;
}

// the same policy without its quantizers; state: allocated under a PlainCache, where the model's cache holds codes
inline EvalResult run_eval_full_precision(Session& s, RolloutState& state, const std::vector<Prompt>& prompts,
                                          const RewardSet& rewards, uint32_t index) {
    const PlainCache plain(s.m);
    model_refresh(s.m, false);
    EvalResult r = run_eval(s, state, prompts, rewards, index, full_precision());
    model_refresh(s.m);
    return r;
}

// How many held-out problems a training run evaluates on unless --eval_n says: as many as its evaluations then draw an
// eighth of the completions that it trains on (`trained`; for sft and distill rows), 32 at least; 0: all, for a run of no
// steps only measures. evaluations: of all problems, in all.
constexpr double EVAL_SHARE = 0.125;
constexpr int EVAL_LEAST = 32;

inline int held_out_count(const Options& o, double trained, double evaluations) {
    if (trained <= 0.0) return 0;
    const double each = evaluations * (o.eval_samples + o.eval_greedy);
    return (int)std::min(std::max(EVAL_SHARE * trained / std::max(each, 1.0), (double)EVAL_LEAST), 1e9);
}
