// eval --against: how far a model is from a reference, by token of a text and of completions, by greedy completion and by
// layer (eval/drift.cuh). The reference is what its folder says, with its own quantizers where it has any.
#pragma once
#include "../eval/drift.cuh"
#include "../eval/evaluate.cuh"
#include "eval_text.cuh"

struct DriftRun {
    Session& s;
    Session reference;
    std::vector<Prompt> prompts;           // whose greedy completions are compared
    std::vector<ScoredText> text, traces;  // of --eval_text, of --traces
    RolloutState state, reference_state;
    DriftMemory memory;
    nlohmann::ordered_json result;  // drift.json
    explicit DriftRun(Session& session) : s(session) {}
};

// ---------------------------------------------------------------------------------------------------------------------
// the reference

// Before anything is planned, behind session_open of the model
inline void reference_open(DriftRun& r) {
    Session &s = r.s, &reference = r.reference;
    reference.o.command = s.o.command;
    reference.o.model = s.o.against;
    reference.o.tokenizer = s.o.tokenizer;
    reference.m.dev = s.m.dev;
    session_describe(reference);
    check_same_vocabulary(s.tok, "the model", reference.tok, reference.m.V(), "--against " + s.o.against,
                          "a comparison by token");
}

// within the model's plan. An unquantized reference has no masters
inline void reference_plan(DriftRun& r) {
    Session& reference = r.reference;
    Model& m = reference.m;
    m.dev = r.s.m.dev;
    if (weight_rules(reference.o).on() || reference.o.hadamard != "none") {
        session_plan_model(reference, false);
    } else {
        model_allocate_frozen(m, ModelConfig(m.config), QuantizerRules(), "the reference",
                              "--against a smaller one, of the same vocabulary");
        model_quantize_activations(m, activation_rules(reference.o));
        model_quantize_kv(m, kv_rules(reference.o), k_pre_bias(reference.o));
    }
    rope_reserve(m.rope, std::min(session_positions(r.s), m.config.max_position_embeddings), m.dev);
}

// ---------------------------------------------------------------------------------------------------------------------
// texts

// --traces: prompt and completion of each row as tokens, the completion's scored; rows without a completion are left out
inline std::vector<ScoredText> trace_texts(const Session& s) {
    std::vector<ScoredText> out;
    const std::string& path = s.o.traces;
    if (path.empty()) return out;
    for_each_row(path, [&](const DatasetRow& row, int) {
        if (s.o.eval_n > 0 && (int)out.size() >= s.o.eval_n) return;
        for (const char* field : {"prompt", "completion"})
            if (!row.object.contains(field) || !row.object.at(field).is_string())
                fail("%s: `%s` is missing or no text; traces have `prompt` and `completion`", row.where.c_str(), field);
        Example e;
        tokenizer_encode(s.tok, row.object.at("prompt").get<std::string>(), e.prompt.tokens, true, !use_chat(s.prompt));
        append_tokens(s.tok, row.object.at("completion").get<std::string>(), e.completion);
        const ScoredText t = scored_example(e);
        if ((int)t.ids.size() > t.first) out.push_back(t);
    });
    if (out.empty()) fail("--traces %s: no row has a completion to score", path.c_str());
    return out;
}

// What is read, and room for the longest of it
inline void drift_texts(DriftRun& r, bool problems) {
    Session& s = r.s;
    if (problems) r.prompts = eval_prompts(s, s.o.eval_n);
    fit_eval_text(s);
    r.text = eval_text_windows(s);
    r.traces = trace_texts(s);
    int64_t longest = std::max(longest_text(r.text), longest_text(r.traces));
    for (const Prompt& p : r.prompts) longest = std::max(longest, (int64_t)p.tokens.size() + s.o.max_completion_length);
    for (const Session* of : {&s, &r.reference})
        if (longest > of->m.config.max_position_embeddings)
            fail("a text has up to %lld tokens, the context of %s is %d; lower %s", (long long)longest,
                 of->o.model.c_str(), of->m.config.max_position_embeddings,
                 longest == longest_text(r.text) ? "--eval_text_length" : "--max_completion_length, or leave it out");
    micro_batch_grow(s, longest);
}

// ---------------------------------------------------------------------------------------------------------------------
// results as JSON

inline nlohmann::ordered_json drift_parts_to_json(const std::vector<DriftPart>& parts) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const DriftPart& p : parts)
        list.push_back(
            {{"from", p.low}, {"to", p.high}, {"tokens", p.tokens}, {"kl", p.kl}, {"agreement", p.agreement}});
    return list;
}

inline nlohmann::ordered_json drift_to_json(const DriftMeasure& m) {
    nlohmann::ordered_json j;
    j["tokens"] = m.tokens;
    j["texts"] = m.texts;
    j["log_loss"] = m.log_loss;
    j["reference_log_loss"] = m.reference_log_loss;
    j["log_loss_difference"] = m.log_loss - m.reference_log_loss;
    j["log_loss_difference_standard_error"] = m.log_loss_difference_error;
    j["perplexity"] = std::exp(m.log_loss);
    j["reference_perplexity"] = std::exp(m.reference_log_loss);
    j["kl"] = m.kl;
    j["kl_standard_error"] = m.kl_error;
    const char* names[] = {"kl_median", "kl_90", "kl_99", "kl_max"};
    for (size_t i = 0; i < m.quantiles.size(); i++) j[names[i]] = m.quantiles[i];
    j["agreement"] = m.agreement;
    j["agreement_standard_error"] = m.agreement_error;
    j["right"] = m.right;
    j["reference_right"] = m.reference_right;
    j["lost"] = m.lost;
    j["by_position"] = drift_parts_to_json(m.by_position);
    j["by_reference_entropy"] = drift_parts_to_json(m.by_entropy);
    return j;
}

inline nlohmann::ordered_json drift_to_json(const DriftGreedy& g) {
    return {{"problems", g.n},
            {"identical", (double)g.identical / std::max(g.n, 1)},
            {"tokens_in_common_mean", g.mean},
            {"tokens_in_common_median", g.median},
            {"tokens_in_common", g.common},
            {"right",
             {{"both", g.both},
              {"only_reference", g.only_reference},
              {"only_model", g.only_model},
              {"neither", g.neither}}}};
}

inline nlohmann::ordered_json drift_to_json(const DriftLayers& r) {
    nlohmann::ordered_json j;
    j["tokens"] = r.tokens;
    j["same_basis"] = r.same_basis();
    j["layers"] = nlohmann::ordered_json::array();
    for (size_t l = 0; l < r.layers.size(); l++) {
        const LayerDrift& d = r.layers[l];
        nlohmann::ordered_json row;
        row["layer"] = l == 0 ? nlohmann::ordered_json("embeddings") : nlohmann::ordered_json((int)l - 1);
        row["error"] = d.error;
        row["cosine"] = d.cosine;
        row["own_error"] = d.own_error;
        row["own_cosine"] = d.own_cosine;
        j["layers"].push_back(row);
    }
    return j;
}

// ---------------------------------------------------------------------------------------------------------------------
// results as lines

inline std::string error_text(double standard_error, const char* number) {
    return std::isfinite(standard_error) ? " +- " + format(number, standard_error) : "";
}

inline void print_drift_parts(const char* what, const std::vector<DriftPart>& parts, const char* number) {
    std::string line;
    for (const DriftPart& p : parts)
        line += (line.empty() ? "" : ", ") + format(number, p.low) +
                (p.low < p.high ? "-" + format(number, p.high) : "") + format(": %.4f", p.kl);
    printf("            KL by %s %s\n", what, line.c_str());
}

inline void print_drift(const char* of, const DriftMeasure& m) {
    printf(
        "%-11s %lld tokens of %lld texts | log-loss %.4f, reference %.4f (%+.4f%s) | perplexity %.4g, reference %.4g\n",
        of, (long long)m.tokens, (long long)m.texts, m.log_loss, m.reference_log_loss,
        m.log_loss - m.reference_log_loss, error_text(m.log_loss_difference_error, "%.4f").c_str(),
        std::exp(m.log_loss), std::exp(m.reference_log_loss));
    printf("            KL(reference || model) %.4f%s a token; median %.4f, 90%% %.4f, 99%% %.4f, largest %.3f\n", m.kl,
           error_text(m.kl_error, "%.4f").c_str(), m.quantiles[0], m.quantiles[1], m.quantiles[2], m.quantiles[3]);
    printf(
        "            same first choice %.2f%%%s; first choice is the token: reference %.2f%%, model %.2f%%, lost "
        "%.2f%%\n",
        100 * m.agreement, error_text(100 * m.agreement_error, "%.2f").c_str(), 100 * m.reference_right, 100 * m.right,
        100 * m.lost);
    print_drift_parts("position", m.by_position, "%.0f");
    print_drift_parts("entropy", m.by_entropy, "%.2f");
    fflush(stdout);
}

inline void print_drift(const DriftGreedy& g, int most) {
    printf("greedy      %d problems, at most %d tokens: %.1f tokens in common (median %g), %.1f%% of the texts equal\n",
           g.n, most, g.mean, g.median, 100.0 * g.identical / std::max(g.n, 1));
    printf("            strictly right: both %d, reference alone %d, model alone %d, neither %d\n", g.both,
           g.only_reference, g.only_model, g.neither);
    fflush(stdout);
}

// a dozen of the layers, the last among them
inline void print_drift(const DriftLayers& r) {
    if (r.layers.empty()) {
        printf("layers      the models have other shapes; no errors by layer\n");
        return;
    }
    if (!r.same_basis())
        printf(
            "note        the embeddings differ by more than their size: a rotated model; errors by layer say "
            "nothing\n");
    printf("layers      residual stream, %lld tokens: relative error (cosine) behind a layer | of that layer alone\n",
           (long long)r.tokens);
    const size_t n = r.layers.size(), step = CEIL_DIV(n - 1, 12);
    for (size_t l = 0; l < n; l++) {
        if (l > 0 && l + 1 < n && (n - 1 - l) % std::max<size_t>(step, 1)) continue;
        const LayerDrift& d = r.layers[l];
        printf("            %-10s %.4f (%.4f) | %.4f (%.4f)\n", l == 0 ? "embeddings" : std::to_string(l - 1).c_str(),
               d.error, d.cosine, d.own_error, d.own_cosine);
    }
    fflush(stdout);
}

// ---------------------------------------------------------------------------------------------------------------------
// measuring; each leaves early after a signal

inline void drift_of_texts(DriftRun& r, const char* name, const std::vector<ScoredText>& texts) {
    if (texts.empty() || stop_requested()) return;
    const std::vector<DriftToken> tokens = drift_tokens(r.memory, texts);
    if (stop_requested()) return;
    const DriftMeasure m = drift_measure(tokens);
    r.result[name] = drift_to_json(m);
    print_drift(name, m);
}

// of one of the two models, to all prompts
inline std::vector<Completion> greedy_completions(DriftRun& r, Model& m, RolloutState& state) {
    Progress line(&m == &r.s.m ? "the model answers" : "the reference answers", "completion",
                  (int64_t)r.prompts.size());
    RolloutConfig c = rollout_config(r.s);
    const float penalty = c.sampling.repetition_penalty;
    c.max_sequences = std::min(c.max_sequences, state.shape.slots);
    c.sampling = SamplingParams{0.0f, 0, 1.0f, false};
    c.sampling.repetition_penalty = penalty;
    c.stream = RNG_EVAL;
    c.pass = model_pack(m);
    std::vector<std::vector<int>> tokens;
    for (const Prompt& p : r.prompts) tokens.push_back(p.tokens);
    RolloutStats stats;
    std::vector<Completion> done = rollout(
        m, state, tokens, 1, c, &stats, [](int, int) { return !stop_requested(); },
        [&line](const Completion&) { line.add(); });
    model_unpack(m);
    return done;
}

// Completions of both; those of the reference, which are scored, as texts
inline std::vector<ScoredText> drift_of_completions(DriftRun& r, RunDir& run) {
    std::vector<ScoredText> texts;
    if (r.prompts.empty() || stop_requested()) return texts;
    const std::vector<Completion> reference = greedy_completions(r, r.reference.m, r.reference_state);
    const std::vector<Completion> model = greedy_completions(r, r.s.m, r.state);
    if (stop_requested()) return texts;
    std::vector<bool> right, reference_right;
    const EvalConfig grading = eval_config(r.s, r.state, 0);
    for (const Completion& c : reference) {
        Example e;
        e.prompt.tokens = r.prompts[c.prompt].tokens, e.completion = c.tokens;
        texts.push_back(scored_example(e));
    }
    for (size_t i = 0; i < model.size(); i++)
        for (const Completion* c : {&reference[i], &model[i]}) {
            const Prompt& p = r.prompts[c->prompt];
            const EvalSample sample = grade_completions(r.s.tok, p, {*c}, grading)[0];
            (c == &model[i] ? right : reference_right).push_back(sample.strict);
            nlohmann::ordered_json j;
            j["by"] = c == &model[i] ? "model" : "reference";
            j["decoding"] = "greedy";
            j["prompt"] = p.text;
            j["completion"] = sample.text;
            j["gold"] = p.gold;
            j["strict"] = sample.strict;
            j["lenient"] = sample.lenient;
            j["finished"] = sample.finished;
            j["length"] = c->tokens.size();
            j["tokens_in_common"] = tokens_in_common(model[i].tokens, reference[i].tokens);
            log_completion(run, j);
        }
    const DriftGreedy g = drift_greedy(model, reference, right, reference_right);
    r.result["greedy"] = drift_to_json(g);
    print_drift(g, r.s.o.max_completion_length);
    return texts;
}

inline void drift_of_layers(DriftRun& r, const std::vector<ScoredText>& texts) {
    const DriftLayers layers = drift_layers(r.memory, texts);
    if (stop_requested()) return;
    r.result["layers"] = drift_to_json(layers);
    print_drift(layers);
}

inline void drift_begin(DriftRun& r) {
    Session &s = r.s, &reference = r.reference;
    session_load_weights(s);
    buffer_forget(s.m.master);  // nothing is trained
    session_load_weights(reference);
    if (reference.m.master.size) buffer_forget(reference.m.master);
    fputs(options_print(s.o).c_str(), stdout);
    print_start(s);
    printf("reference   %s: %s, weights %s\n", escape_controls(s.o.against).c_str(),
           reference.m.config.model_type.c_str(), policy_text(reference.o).c_str());
    fflush(stdout);
    nlohmann::ordered_json& j = r.result;
    j["model"] = s.o.model;
    summary_quantizers(j, s);
    j["against"]["model"] = s.o.against;
    summary_quantizers(j["against"], reference);
}

inline int drift_command(Session& s) {
    const double start = wall_seconds();
    Options& o = s.o;
    DriftRun r(s);
    if (o.model.empty()) fail_usage("eval --against needs --model: a Hugging Face folder or a .gguf file");
    const bool problems = (o.eval_text.empty() && o.traces.empty()) || !o.eval_data.empty() || o.given("task");
    if (problems) {
        const TaskSet task = session_task(o);
        if (o.eval_data.empty())
            o.set_default("max_completion_length", o.max_completion_length, task.longest().completion);
    }
    session_open(s);
    reference_open(r);
    drift_texts(r, problems);
    session_plan(s, false, [&] {
        reference_plan(r);
        r.memory.model.model = &s.m, r.memory.reference.model = &r.reference.m;
        drift_allocate(r.memory, o.micro_batch_tokens);
        if (!problems) return;
        int64_t longest = 0;
        for (const Prompt& p : r.prompts) longest = std::max(longest, (int64_t)p.tokens.size());
        const RolloutShape shape = rollout_shape((int)r.prompts.size(), 1, longest, rollout_config(s));
        rollout_allocate(r.state, s.m, shape);
        rollout_allocate(r.reference_state, r.reference.m, shape);
    });
    if (session_allocate(s)) return 0;
    RunDirSetting setting;
    setting.completions = problems;
    RunDir run = session_run_dir(s, setting, new_run_id());
    drift_begin(r);
    drift_of_texts(r, "text", r.text);
    drift_of_texts(r, "traces", r.traces);
    const std::vector<ScoredText> completions = drift_of_completions(r, run);
    drift_of_texts(r, "completions", completions);
    drift_of_layers(r, !r.text.empty() ? r.text : !r.traces.empty() ? r.traces : completions);
    if (stop_requested()) return stop_exit_code();
    write_file_atomic(run.path + "/drift.json", json_line(r.result, 2) + "\n");
    nlohmann::ordered_json summary;
    summary["command"] = "eval";
    summary["seed"] = o.seed;
    summary.update(r.result);
    summary.erase("layers");
    summary["wall_seconds"] = wall_seconds() - start;
    summary["peak_rss_bytes"] = peak_rss_bytes();
    close_run_dir(run, summary);
    printf("%.1f s; details in %s/drift.json\n", wall_seconds() - start, escape_controls(run.path).c_str());
    return 0;
}
