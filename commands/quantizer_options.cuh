// From the options to the quantizers of weights, activations and KV cache; and what a folder says of its own.
#pragma once
#include <string>
#include "../formats/export_model.h"
#include "../runtime/options.h"

inline ScaleMode scale_mode(const Options& o) {
    return o.qat_scale == "static"    ? ScaleMode::kept
           : o.qat_scale == "learned" ? ScaleMode::learned
                                      : ScaleMode::dynamic;
}
inline LearnedScale learned_scale(const Options& o) {
    return o.learned_scale == "lwc"          ? LearnedScale::lwc
           : o.learned_scale == "lsq_offset" ? LearnedScale::lsq_offset
                                             : LearnedScale::lsq;
}

inline SteRule ste_rule(const Options& o) {
    return o.ste == "clip" ? SteRule::clip : o.ste == "trust" ? SteRule::trust : SteRule::identity;
}

// --weights with --quantize_layers, and how they are trained
inline QuantizerRules weight_rules(const Options& o) {
    QuantizerRules rules = rules_parse(o.weights, "weights", o.quantize_layers);
    for (QuantizerRule& r : rules.rules) {
        r.quantizer.scale_mode = scale_mode(o);
        r.quantizer.learned_scale = learned_scale(o);
        r.quantizer.ste = ste_rule(o);
        r.quantizer.stochastic = o.rounding == "stochastic";
    }
    return rules;
}
// --activations; --quantize_layers restricts it as it does the weights
inline QuantizerRules activation_rules(const Options& o) {
    QuantizerRules rules = rules_parse(o.activations, "activations");
    if (o.quantize_layers == "all" || rules.rules.size() > 1 || !rules.rules[0].where.empty()) return rules;
    return rules_parse(o.activations, "activations", o.quantize_layers);
}
inline QuantizerRules kv_rules(const Options& o) { return rules_parse(o.kv_cache, "kv_cache"); }

// What a checkpoint's or an adapter's policy was quantized to, unless the flags ask for another; an export asks for its
// weights alone. true: it told of those
inline bool session_stored_policy(Options& o) {
    const std::string& folder = o.adapter.empty() ? o.model : o.adapter;
    const nlohmann::json j = policy_load(folder);
    std::string taken;
    auto take = [&](const char* name, std::string& value) {
        if (!j.contains(name) || !j[name].is_string() || o.given(name)) return false;
        value = j[name].get<std::string>();
        taken += std::string(" --") + name + " '" + value + "'";
        return true;
    };
    const bool weights = take("weights", o.weights);
    if (o.command != COMMAND_EXPORT) take("activations", o.activations);
    if (o.command != COMMAND_EXPORT && take("kv_cache", o.kv_cache) && !o.given("k_pre_bias"))
        o.k_pre_bias = config_bool(j, "k_pre_bias", false, folder + "/quantizer.json");
    if (!taken.empty()) fprintf(stderr, "note: %s: trained as%s\n", folder.c_str(), taken.c_str());
    return weights;
}

// A folder that is quantized already keeps its quantizer and its scales, unless --weights asks for another
inline void session_stored_quantizer(Options& o, const ModelConfig& config) {
    if (is_gguf_path(o.model)) {
        Quantizer own, asked = single_quantizer(weight_rules(o));
        if (!gguf_quantizer(gguf_open(o.model), config, &own).empty() || !own.spec.symmetric) return;
        const std::string text = quantizer_text(own);
        if (!o.given("weights"))
            fprintf(stderr, "note: %s: dequantized; --weights %s --qat_scale static keeps its codes and scales\n",
                    o.model.c_str(), text.c_str());
        else if (same_codes(own, asked) && o.qat_scale == "static")
            fprintf(stderr, "note: %s: read as --weights %s with the file's own scales\n", o.model.c_str(),
                    text.c_str());
        return;
    }
    if (session_stored_policy(o)) return;
    QuantizedFolder folder = quantized_folder(o.model);
    if (folder.container == Container::none) return;
    FolderQuantizer f = quantized_folder_quantizer(folder, st_open_folder(o.model), config);
    const char* name = container_name(folder.container);
    Quantizer asked = single_quantizer(weight_rules(o));
    if (f.text == "none" && !o.given("weights")) {
        fprintf(stderr, "note: %s: %s weights are dequantized (%s)\n", o.model.c_str(), name,
                f.why.empty() ? "no linear is quantized" : f.why.c_str());
    } else if (!o.given("weights") || (same_codes(f.quantizer, asked) && !o.given("qat_scale"))) {
        o.weights = o.given("quantize_layers") ? quantizer_text(f.quantizer) : f.text;
        const bool frozen = (o.lora_r > 0 || !o.adapter.empty()) && !o.lora_inside_quantizer;
        if (!o.given("qat_scale") && !frozen) o.qat_scale = "static";  // a frozen base keeps the file's scales anyway
        fprintf(stderr, "note: %s: %s, read as --weights %s%s\n", o.model.c_str(), name, o.weights.c_str(),
                o.qat_scale == "dynamic" && !frozen ? "" : " with the file's own scales");
    } else if (!same_codes(f.quantizer, asked) || o.qat_scale == "dynamic") {
        fprintf(stderr, "note: %s: %s weights (%s) are dequantized%s\n", o.model.c_str(), name,
                f.text != "none" ? f.text.c_str() : f.why.c_str(), asked.on() ? " and quantized anew" : "");
    }
    if (folder.compressed_tensors.dynamic_activations)
        fprintf(stderr, "note: %s was made for quantized activations; they are not quantized unless asked\n",
                o.model.c_str());
}

// --weights, and whether the options of its training go with it: to be asked before the long work
inline void check_weights(const ModelConfig& config, const Options& o) {
    const QuantizerRules rules = weight_rules(o);
    check_weight_rules(config, rules);
    const bool learned = o.qat_scale == "learned", stochastic = o.rounding == "stochastic";
    if (!rules.on() && (learned || stochastic))
        fail_usage("--%s needs --weights, such as int4:g32", learned ? "qat_scale learned" : "rounding stochastic");
    for (const QuantizerRule& r : rules.rules) check_trained(r.quantizer);
    const Options normal;  // what a run's config.json repeats is no wish
    const char* unused = learned                                               ? nullptr
                         : o.learned_scale != normal.learned_scale             ? "learned_scale"
                         : o.scale_learning_rate != normal.scale_learning_rate ? "scale_learning_rate"
                                                                               : nullptr;
    if (unused) fail_usage("--%s needs --qat_scale learned", unused);
}
