// quantize: round a trained model's weights, with log-loss before and after (methods/ptq.cuh).
#pragma once
#include <string>
#include <vector>
#include "../methods/ptq.cuh"
#include "calibration.cuh"
#include "export.cuh"

inline PtqConfig ptq_config(const Options& o) {
    PtqConfig c;
    c.gptq = {o.damp_percent, o.act_order, o.static_groups};
    c.smoothquant_alpha = o.smoothquant_alpha;
    c.rotation.seed = o.seed;
    c.rotation.hidden = list_has(o.rotations, "r1");
    c.rotation.values = list_has(o.rotations, "r2");
    c.rotation.online_qk = list_has(o.rotations, "r3");
    c.rotation.online_down = list_has(o.rotations, "r4");
    return c;
}

inline void check_quantize(const Options& o, const QuantizerRules& rules, const PtqPlan& plan, bool calibrates) {
    if (!rules.on()) fail_usage("quantize needs --weights: what to quantize to, such as int4:g64:sym");
    bool grouped = false;
    for (const QuantizerRule& r : rules.rules) grouped |= r.quantizer.on() && r.quantizer.scope == QuantScope::group;
    if (plan.rounder.prepare && o.act_order && !o.static_groups && grouped)
        fail_usage(
            "--act_order with --static_groups false would scatter the groups of %s over their rows; leave one of the "
            "two out",
            o.weights.c_str());
    const bool from_problems = o.calibration == "prompts" || o.calibration == "self";
    if (calibrates && from_problems && o.train_data.empty() && !o.model.empty() && !o.given("task"))
        fail_usage(
            "--ptq %s needs calibration text: --calibration FILE, or --train_data with --calibration prompts or self",
            o.ptq.c_str());
}

inline int quantize_command(Session& s) {
    double start = wall_seconds();
    Options& o = s.o;
    const QuantizerRules rules = weight_rules(o);
    PtqConfig config = ptq_config(o);
    PtqPlan plan = ptq_parse(o.ptq, config);
    const bool calibrates = plan.needs_calibration() || o.given("calibration");
    check_quantize(o, rules, plan, calibrates);
    if (!o.format.empty()) check_export_format(o);
    if (o.format.empty()) o.format = natural_format(rules);
    if (!o.given("save_dtype")) o.save_dtype = o.format == "hf" ? "float32" : "bfloat16";
    session_open(s);
    // R1 turns embedding and head in different ways; the loader gives a head of its own what the tied one was
    if (!plan.models.empty() && config.rotation.hidden) s.m.config.tie_word_embeddings = false;
    const int length = o.calibration_length;
    if (calibrates && length > s.m.config.max_position_embeddings)
        fail_usage("--calibration_length %d: the model's context is %d", length, s.m.config.max_position_embeddings);

    // data
    const bool self = calibrates && o.calibration == "self";
    const bool from_file = o.calibration != "prompts" && !self;
    std::string source = from_file || self      ? "--calibration " + o.calibration
                         : o.train_data.empty() ? "the embedded task"
                                                : "--train_data " + o.train_data;
    std::vector<std::vector<int>> windows;
    std::vector<Prompt> prompts;
    auto draw = [&](const std::vector<std::vector<int>>& documents) {
        windows = draw_windows(join_documents(s.tok, documents), o.calibration_samples, length, o.seed, source);
    };
    if (self) prompts = calibration_prompts(s);
    else if (calibrates)
        draw(from_file ? calibration_documents(s.tok, s.prompt, o.calibration) : calibration_of_problems(s));
    std::vector<ScoredText> held_out = held_out_texts(s);

    // memory
    PtqMemory memory;
    LogLossMemory loss_memory;
    RolloutState state;
    session_plan(s, false, [&] {
        int64_t codes = 0;
        for (const LinearPart* t : quantized_parts(s.m)) {
            check_container(o.format, t->name, t->rows, t->cols, t->quantizer);
            codes += t->count();
        }
        if (!s.m.codes.size) s.m.codes.allocate((size_t)codes, "quantization codes", "", s.m.dev);
        ptq_allocate(memory, s.m, plan, calibrates ? (int64_t)o.calibration_samples * length : 0, length,
                     o.micro_batch_tokens);
        if (!held_out.empty()) log_loss_allocate(loss_memory, s.m, o.micro_batch_tokens, longest_text(held_out));
        if (!self) return;
        int64_t longest = 0;
        for (const Prompt& p : prompts) longest = std::max(longest, (int64_t)p.tokens.size());
        rollout_allocate(state, s.m, rollout_shape((int)prompts.size(), 1, longest, rollout_config(s)));
    });
    if (session_allocate(s)) return 0;
    session_load_weights(s, false);
    if (!s.embedded_model && !s.source.known()) s.source = model_source(o.model);
    RunDir run = session_run_dir(o);
    fputs(options_print(o).c_str(), stdout);
    print_start(s);
    if (self) draw(calibration_of_answers(s, state, prompts));
    if (calibrates) printf("calibration %zu windows of %d tokens from %s\n", windows.size(), length, source.c_str());

    nlohmann::ordered_json summary;
    summary["command"] = "quantize";
    summary["seed"] = o.seed;
    summary["model"] = s.embedded_model ? "embedded" : o.model;
    summary_quantizers(summary, s);
    summary["ptq"] = o.ptq;
    summary["calibration"] = calibrates ? source : "none";
    LogLoss before, after;
    if (!held_out.empty()) {
        before = log_loss(s.m, loss_memory, held_out, full_precision());
        printf("held out    log-loss %.4f before, over %lld tokens\n", before.mean, (long long)before.tokens);
    }
    fflush(stdout);

    double quantize_start = wall_seconds();
    ptq_run(s.m, memory, plan, windows, [&](int l, const PtqLayer& report) {
        nlohmann::ordered_json j;
        j["layer"] = l;
        std::string line;
        for (int p = 0; p < 4; p++) {
            const PtqLinear& r = report.linear[p];
            const char* name = layer_linears(s.m.layers[l])[p]->name;
            if (!r.quantized) continue;
            line += format(" | %s %.3g", name, r.error);
            j["error"][name] = r.error;
            if (plan.rounder.prepare) j["damp_percent"][name] = r.damp_percent;
        }
        j["seconds"] = report.seconds;
        log_metrics(run, j);
        printf("layer %d/%d%s | %.1f s\n", l + 1, s.m.L(), line.c_str(), report.seconds);
        fflush(stdout);
    });
    summary["quantize_seconds"] = wall_seconds() - quantize_start;
    if (!held_out.empty()) {
        after = log_loss(s.m, loss_memory, held_out);
        printf("held out    log-loss %.4f before, %.4f after (%+.4f)\n", before.mean, after.mean,
               after.mean - before.mean);
        summary["log_loss"] = {{"tokens", before.tokens}, {"before", before.mean}, {"after", after.mean}};
    }
    std::string checkpoint = run.path + "/checkpoint-0";
    ExportSummary saved = save_quantized(s.m, checkpoint, o.format, o.save_dtype,
                                         [&](const std::string& folder) { save_beside(s, folder); });
    summary["checkpoint"] = checkpoint;
    summary["format"] = saved.format;
    std::string bits;  // plain weights are as large as ever
    if (saved.linear_weights) {
        summary["bits_per_weight"] = 8.0 * (double)saved.linear_bytes / (double)saved.linear_weights;
        bits = format(", %.3f bits a quantized weight", summary["bits_per_weight"].get<double>());
    }
    summary["wall_seconds"] = wall_seconds() - start;
    summary["peak_rss_bytes"] = peak_rss_bytes();
    close_run_dir(run, summary);
    printf("done, %.1f s, peak memory %.0f MiB; results in %s, model in %s (%s%s)\n", wall_seconds() - start,
           (double)peak_rss_bytes() / 1048576.0, run.path.c_str(), checkpoint.c_str(), saved.format.c_str(),
           bits.c_str());
    return 0;
}
