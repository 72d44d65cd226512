// Adapters and checkpoints: what --adapter and --lora_r ask for, and the model as it is saved.
#pragma once
#include "session.cuh"

// Reads what --adapter names; a model that is not named is the adapter's base
inline void session_adapter(Session& s) {
    if (s.o.adapter.empty()) return;
    s.adapter = peft_open(s.o.adapter);
    if (!s.o.model.empty()) return;
    if (s.adapter.base.empty()) fail_usage("--adapter %s names no base model; give --model", s.o.adapter.c_str());
    s.o.model = s.adapter.base;
}

// the adapter of this run: that of --adapter, a new one of --lora_r, or none
inline LoraConfig lora_from_options(const Session& s) {
    const Options& o = s.o;
    const Options normal;
    LoraConfig c;
    const bool loaded = !o.adapter.empty();
    if (!loaded && o.lora_r == 0) {
        const char* flag = o.lora_inside_quantizer                 ? "lora_inside_quantizer"
                           : o.merge_adapter                       ? "merge_adapter"
                           : o.lora_alpha != normal.lora_alpha     ? "lora_alpha"
                           : o.lora_dropout != normal.lora_dropout ? "lora_dropout"
                           : o.lora_target != normal.lora_target   ? "lora_target"
                                                                   : nullptr;
        if (flag) fail_usage("--%s: there is no adapter; give --lora_r (16, say) or --adapter", flag);
        return c;
    }
    if (loaded) {
        c = s.adapter.config;
        const char* flag = o.lora_r && o.lora_r != c.r                           ? "lora_r"
                           : o.given("lora_alpha") && o.lora_alpha != c.alpha    ? "lora_alpha"
                           : o.given("lora_target") && o.lora_target != c.target ? "lora_target"
                                                                                 : nullptr;
        if (flag)
            fail_usage("--%s contradicts --adapter %s, which has r %d, alpha %g and targets %s; leave it out", flag,
                       o.adapter.c_str(), c.r, c.alpha, c.target.c_str());
    } else {
        c.r = o.lora_r, c.alpha = o.lora_alpha, c.target = o.lora_target;
    }
    c.dropout = o.lora_dropout;
    c.inside_quantizer = o.lora_inside_quantizer;
    if (c.inside_quantizer && o.weights == "none")
        fail_usage("--lora_inside_quantizer needs a quantizer: give --weights, such as int4:g32:sym");
    // a frozen base is quantized once, and nothing is trained through its quantizer
    const char* flag = c.inside_quantizer                ? nullptr
                       : o.qat_scale != normal.qat_scale ? "qat_scale"
                       : o.ste != normal.ste             ? "ste"
                       : o.rounding != normal.rounding   ? "rounding"
                                                         : nullptr;
    if (flag)
        fail_usage(
            "--%s: the base is frozen and quantized once (--lora_inside_quantizer would train through its "
            "quantizer); leave it out",
            flag);
    return c;
}

inline void session_load_adapter(Session& s) {
    if (!s.m.lora.on()) return;
    if (s.o.adapter.empty()) lora_init(s.m.lora, s.m.dev);
    else peft_load(s.adapter, s.m.lora, s.m.dev);
}

// what lies beside the weights in a checkpoint
inline void save_beside(const Session& s, const std::string& folder) {
    tokenizer_save(s.tok, folder);
    source_save(s.source, folder);
}

// The model; of a model with an adapter the adapter alone, and on request the model that merging makes of both.
// more(folder): what else goes into a checkpoint; with_merged(folder): and into the merged model
inline void session_save(const Session& s, const std::string& dir,
                         const std::function<void(const std::string&)>& more = nullptr,
                         const std::function<void(const std::string&)>& with_merged = nullptr) {
    auto also = [&](const std::string& folder) { save_beside(s, folder); };
    auto all = [&](const std::string& folder) {
        also(folder);
        if (more) more(folder);
    };
    if (!s.m.lora.on()) {
        model_save(s.m, dir, s.o.save_dtype, all);
        return;
    }
    replace_folder(dir, [&](const std::string& folder) {
        peft_save(s.m.lora, folder, s.base, s.m.dev);
        if (s.m.lora.inside()) quantizer_save(s.m, folder);  // the grid of weights and adapters together
        policy_save(s.m, folder, Saved::adapter);
        all(folder);
    });
    if (!s.o.merge_adapter) return;
    MergeReport r = merged_save(s.m, dir + "-merged", s.o.save_dtype, [&](const std::string& folder) {
        also(folder);
        if (with_merged) with_merged(folder);
    });
    printf("merged      into %s-merged, %s: the adapters add %.3g%% to their weights", dir.c_str(),
           s.o.save_dtype.c_str(), 100 * r.added / r.base);
    if (s.m.weight_rules.on())
        printf("; quantizing the sum to %s would change it by %.3g%%%s", rules_text(s.m.weight_rules).c_str(),
               100 * r.lost / r.base,
               s.m.lora.inside() ? ", which is what was trained" : ", so it is not the policy that was trained");
    printf("\n");
}

inline void summary_lora(nlohmann::ordered_json& summary, const Model& m) {
    if (!m.lora.on()) return;
    summary["lora"]["r"] = m.lora.config.r;
    summary["lora"]["alpha"] = m.lora.config.alpha;
    summary["lora"]["target"] = m.lora.config.target;
    summary["lora"]["inside_quantizer"] = m.lora.inside();
    summary["lora"]["parameters"] = m.lora.num_params;
}
