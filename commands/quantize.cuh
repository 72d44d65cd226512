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
    c.seed = c.rotation.seed = o.seed;
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

struct QuantizeRun {
    Session& s;
    PtqPlan plan;
    Calibration calibration;
    std::vector<ScoredText> held_out;
    PtqMemory memory;
    LogLossMemory loss_memory;
    RolloutState rollouts;  // of --calibration self
    RunDir dir;
    LogLoss before, after;
    double start = wall_seconds();

    explicit QuantizeRun(Session& session) : s(session) {}
};

// True: --plan, and nothing more is to be done
inline bool quantize_plan(QuantizeRun& q) {
    Session& s = q.s;
    const Options& o = s.o;
    session_plan(s, false, [&] {
        int64_t codes = 0;
        ExportSummary exported;
        for (const LinearPart* t : quantized_parts(s.m)) {
            check_container(exported, o.format, t->name, t->layer < 0, t->rows, t->cols, t->quantizer);
            const QuantSpec spec = t->quantizer.spec;
            if (o.format == "hf" && o.save_dtype == "bfloat16" && quant_is_integer(spec) && spec.bits == 8 &&
                !spec.symmetric)
                fail_usage(
                    "--save_dtype bfloat16: its 8 bits do not hold the levels of int8:asym above 128, and %s would be "
                    "read back as other codes; take float32",
                    t->name.c_str());
            codes += t->count();
        }
        if (!s.m.codes.size) s.m.codes.allocate((size_t)codes, "quantization codes", "", s.m.dev);
        const int64_t tokens = q.calibration.on ? (int64_t)o.calibration_samples * o.calibration_length : 0;
        ptq_allocate(q.memory, s.m, q.plan, tokens, o.calibration_length, o.micro_batch_tokens);
        if (!q.held_out.empty()) log_loss_allocate(q.loss_memory, s.m, o.micro_batch_tokens, longest_text(q.held_out));
        if (!q.calibration.self) return;
        const PlainCache plain(s.m);  // as it answers in calibration_of_answers
        rollout_allocate(q.rollouts, s.m, calibration_shape(s, q.calibration));
    });
    return session_allocate(s);
}

inline void quantize_layer_report(QuantizeRun& q, int l, const PtqLayer& report, Progress& progress) {
    nlohmann::ordered_json j;
    j["layer"] = l;
    std::string line;
    for (int p = 0; p < 4; p++) {
        const PtqLinear& r = report.linear[p];
        const char* name = layer_linears(q.s.m.layers[l])[p]->name;
        if (!r.quantized) continue;
        line += format(" | %s %.3g", name, r.error);
        j["error"][name] = r.error;
        if (q.plan.rounder.prepare) j["damp_percent"][name] = r.damp_percent;
    }
    j["seconds"] = report.seconds;
    log_metrics(q.dir, j);
    printf("layer %d/%d%s | %.1f s%s\n", l + 1, q.s.m.L(), line.c_str(), report.seconds, progress.left().c_str());
    for (const ModuleReport& r : report.modules) {
        nlohmann::ordered_json of_module;
        of_module["module"] = r.number;
        of_module["layers"] = {r.first, r.end - 1};
        of_module["error"] = {{"before", r.before}, {"after", r.after}};
        of_module["seconds"] = r.seconds;
        log_metrics(q.dir, of_module);
        printf("module %d/%d, layers %d-%d | error %.3g -> %.3g | %.1f s\n", r.number + 1, r.modules, r.first + 1,
               r.end, r.before, r.after, r.seconds);
    }
    progress.spoke();
    fflush(stdout);
}

// What is not quantized becomes what save_dtype holds of it, so that what is measured is what is saved
inline void round_as_saved(Model& m, const std::string& save_dtype) {
    std::vector<float> w;
    std::vector<uint8_t> stored;
    for (const ParamTensor& t : m.tensors) {
        const LinearPart* part = part_of(m, t);
        if (save_dtype == "float32" || (part && part->quantizer.on())) continue;
        float* master = m.master.data + t.offset;
        w.resize(t.count()), stored.resize(2 * t.count());
        copy_to_host(w.data(), master, w.size() * sizeof(float), m.dev);
        st_encode_float(st_dtype_of(save_dtype), w.data(), t.count(), stored.data());
        StTensor saved;
        saved.dtype = st_dtype_of(save_dtype), saved.data = stored.data(), saved.count = t.count();
        st_read_float(saved, w.data());
        copy_to_device(master, w.data(), w.size() * sizeof(float), m.dev);
        convert_forward(m.work.data + t.offset, master, t.count(), m.dev);
        device_synchronize(m.dev);  // w is used again
    }
}

inline std::string quantized_card(const QuantizeRun& q) {
    const Options& o = q.s.o;
    std::string more = "- rounded by " + md_code(o.ptq);
    if (!q.calibration.source.empty()) more += ", calibrated on " + md_code(q.calibration.source);
    more += "\n";
    if (q.before.tokens)
        more += format(
            "- log-loss a token over %lld tokens of %s: %.4f before, %.4f after\n", (long long)q.before.tokens,
            o.eval_text.empty() ? "held-out answers" : md_code(o.eval_text).c_str(), q.before.mean, q.after.mean);
    return converted_card(q.s, o.format, card_quantizer(q.s.m, o), more);
}

// Checkpoint and summary
inline void quantize_save(QuantizeRun& q, double seconds) {
    const Session& s = q.s;
    const Options& o = s.o;
    nlohmann::ordered_json summary;
    summary["command"] = "quantize";
    summary["seed"] = o.seed;
    summary["model"] = s.embedded_model ? "embedded" : o.model;
    summary_quantizers(summary, s);
    summary["ptq"] = o.ptq;
    summary["calibration"] = q.calibration.source;
    summary["quantize_seconds"] = seconds;
    if (q.before.tokens)
        summary["log_loss"] = {{"tokens", q.before.tokens}, {"before", q.before.mean}, {"after", q.after.mean}};
    const std::string checkpoint = q.dir.path + "/checkpoint-0";
    MastersReport masters;
    ExportSummary saved = save_quantized(
        s.m, checkpoint, o.format, o.save_dtype,
        [&](const std::string& folder) {
            save_beside(s, folder);
            write_file_atomic(folder + "/README.md", quantized_card(q));
        },
        o.save_masters ? &masters : nullptr);
    summary["checkpoint"] = checkpoint;
    summary["format"] = saved.format;
    if (o.save_masters) {
        summary["masters_bytes"] = masters.bytes;
        printf(
            "masters     %.1f MiB fp32 in masters.safetensors, for training to go on from (--save_masters false)%s\n",
            (double)masters.bytes / 1048576.0,
            masters.settled ? format("; %lld at their code's value", (long long)masters.settled).c_str() : "");
    }
    std::string bits;  // plain weights are as large as ever
    if (saved.linear_weights) {
        summary["bits_per_weight"] = 8.0 * (double)saved.linear_bytes / (double)saved.linear_weights;
        bits = format(", %.3f bits a quantized weight", summary["bits_per_weight"].get<double>());
    }
    summary["wall_seconds"] = wall_seconds() - q.start;
    summary["peak_rss_bytes"] = peak_rss_bytes();
    close_run_dir(q.dir, summary);
    printf("done, %.1f s, peak memory %.0f MiB; results in %s, model in %s (%s%s)\n", wall_seconds() - q.start,
           (double)peak_rss_bytes() / 1048576.0, q.dir.path.c_str(), checkpoint.c_str(), saved.format.c_str(),
           bits.c_str());
}

inline int quantize_command(Session& s) {
    QuantizeRun q(s);
    Options& o = s.o;
    const QuantizerRules rules = weight_rules(o);
    const PtqConfig config = ptq_config(o);
    q.plan = ptq_parse(o.ptq, config);
    const bool calibrates = q.plan.needs_calibration() || o.given("calibration");
    check_quantize(o, rules, q.plan, calibrates);
    if (!o.format.empty()) check_export_format(o);
    if (o.format.empty()) o.format = natural_format(rules);
    o.set_default("save_dtype", o.save_dtype, std::string(o.format == "hf" ? "float32" : "bfloat16"));
    session_open(s);
    // R1 turns embedding and head in different ways; the loader gives a head of its own what the tied one was
    if (!q.plan.models.empty() && config.rotation.hidden) s.m.config.tie_word_embeddings = false;
    if (calibrates) fit_to_context(s, "calibration_length", o.calibration_length);
    fit_eval_text(s);
    q.calibration = calibration_read(s, calibrates);
    q.held_out = held_out_texts(s);
    micro_batch_grow(s, std::max<int64_t>(longest_text(q.held_out), calibrates ? o.calibration_length : 0));
    if (q.plan.training.check) q.plan.training.check(s.m);
    if (quantize_plan(q)) return 0;
    session_load_weights(s, false);
    if (!s.embedded_model && !s.source.known()) s.source = model_source(o.model);
    q.dir = session_run_dir(s, {}, new_run_id());
    fputs(options_print(o).c_str(), stdout);
    print_start(s);
    if (q.calibration.self)
        calibration_draw(q.calibration, s, calibration_of_answers(s, q.rollouts, q.calibration.prompts));
    if (calibrates)
        printf("calibration %zu windows of %d tokens from %s\n", q.calibration.windows.size(), o.calibration_length,
               q.calibration.source.c_str());
    if (!q.held_out.empty()) {
        const PlainCache plain(s.m);
        q.before = log_loss(s.m, q.loss_memory, q.held_out, full_precision());
        printf("held out    log-loss %.4f before, over %lld tokens\n", q.before.mean, (long long)q.before.tokens);
    }
    fflush(stdout);
    const double quantize_start = wall_seconds();
    {
        Progress progress("quantizing", "layer", s.m.L(), ProgressKind::steps);
        ptq_run(s.m, q.memory, q.plan, q.calibration.windows, [&](int l, const PtqLayer& report) {
            progress.to(l + 1);
            quantize_layer_report(q, l, report, progress);
        });
    }
    const double seconds = wall_seconds() - quantize_start;
    round_as_saved(s.m, o.save_dtype);
    if (!q.held_out.empty()) {
        q.after = log_loss(s.m, q.loss_memory, q.held_out);
        printf("held out    log-loss %.4f before, %.4f after (%+.4f)\n", q.before.mean, q.after.mean,
               q.after.mean - q.before.mean);
    }
    quantize_save(q, seconds);
    return 0;
}
