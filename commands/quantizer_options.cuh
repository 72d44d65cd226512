// From the options to the quantizers of weights, activations and KV cache; and what a folder says of its own.
#pragma once
#include <string>
#include "../formats/export_model.h"
#include "../runtime/options.h"
#include "../runtime/settings.h"

inline ScaleMode scale_mode(const Options& o) {
    return o.qat_scale == "static"    ? ScaleMode::kept
           : o.qat_scale == "learned" ? ScaleMode::learned
                                      : ScaleMode::dynamic;
}
inline LearnedScale learned_scale(const Options& o) {
    for (LearnedScale kind : {LearnedScale::lsq_offset, LearnedScale::lwc, LearnedScale::pact})
        if (o.learned_scale == learned_scale_name(kind)) return kind;
    return LearnedScale::lsq;
}

// --ste, with the settings that a rule has
inline Ste ste_rule(const Options& o) {
    const SettingRow delta = {"delta", "0.001", "[0, 1000]", "how much the distance to the grid counts"};
    const std::pair<const char*, SteRule> rules[] = {
        {"identity", SteRule::identity}, {"clip", SteRule::clip}, {"trust", SteRule::trust}, {"ewgs", SteRule::ewgs}};
    const std::string name = split_words(o.ste, ":")[0];
    std::vector<std::string> names;
    for (const auto& [rule_name, rule] : rules) {
        names.push_back(rule_name);
        if (name != rule_name) continue;
        const bool ewgs = rule == SteRule::ewgs;
        const Settings s = settings_of(o.ste, ewgs ? std::vector<SettingRow>{delta} : std::vector<SettingRow>(), "ste");
        return {rule, ewgs ? (float)s.number("delta") : 0.0f};
    }
    fail_usage("--ste: '%s' is not one of %s%s", printable(name).c_str(), join_words(names).c_str(),
               did_you_mean(name, names).c_str());
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
// a text that --quantize_layers restricts if it is a single quantizer
inline QuantizerRules rules_of_layers(const Options& o, const std::string& text, const char* flag) {
    QuantizerRules rules = rules_parse(text, flag);
    if (o.quantize_layers == "all" || rules.rules.size() > 1 || !rules.rules[0].where.empty()) return rules;
    return rules_parse(text, flag, o.quantize_layers);
}
inline QuantizerRules activation_rules(const Options& o) { return rules_of_layers(o, o.activations, "activations"); }
// of a sampler's own; off where it has none
inline QuantizerRules rollout_weight_rules(const Options& o) {
    return rules_of_layers(o, o.rollout_weights.empty() ? "none" : o.rollout_weights, "rollout_weights");
}
inline QuantizerRules kv_rules(const Options& o) { return rules_parse(o.kv_cache, "kv_cache"); }

// of the policy: keys may be quantized in the sampler alone
inline bool k_pre_bias(const Options& o) {
    const bool sampler_alone = !o.rollout_kv_cache.empty() && o.rollout_kv_cache != "none" && !kv_rules(o).on();
    return o.k_pre_bias && !sampler_alone;
}

// The folder that says what the policy was quantized to: the adapter's, or where that is silent (PEFT's own) its base's
inline std::string policy_folder(const Options& o) {
    const bool adapted = !o.adapter.empty() && !policy_load(o.adapter).empty();
    return adapted ? o.adapter : o.model;
}

// one of the texts of quantizer.json, as its flag would have it; "none" where it has none. Fails if it does not parse
inline std::string policy_rules(const nlohmann::json& policy, const char* name, const std::string& folder) {
    if (!policy.contains(name)) return "none";
    try {
        if (!policy[name].is_string()) fail("%s is not a text", name);
        return rules_text(rules_parse(policy[name].get<std::string>(), name));
    } catch (const Error& e) { fail("%s/quantizer.json: %s; mend the file, or remove it", folder.c_str(), e.what()); }
}

// --hadamard in its canonical text
inline std::string hadamard_rules(const Options& o, const ModelConfig& config) {
    return rotated_text(rotated_linears(config, o.hadamard));
}

// that of quantizer.json; "none" where it has none
inline std::string policy_hadamard(const nlohmann::json& policy, const ModelConfig& config, const std::string& folder) {
    if (!policy.contains("hadamard")) return "none";
    try {
        if (!policy["hadamard"].is_string()) fail("hadamard is not a text");
        return rotated_text(rotated_linears(config, policy["hadamard"].get<std::string>()));
    } catch (const Error& e) { fail("%s/quantizer.json: %s; mend the file, or remove it", folder.c_str(), e.what()); }
}

// What a checkpoint's or an adapter's policy was quantized to, unless the flags ask for another; one line tells of
// either. The weights of a container are left to session_container; an export asks for its weights alone.
inline void session_stored_policy(Options& o, const ModelConfig& config) {
    const std::string folder = policy_folder(o);
    const nlohmann::json j = policy_load(folder);
    std::string trained, instead;
    bool taken = false;
    auto differs = [&](const std::string& flag) { instead += (instead.empty() ? "" : ", ") + flag; };
    auto take = [&](const char* name, std::string& value, const auto& rules) {
        if (!j.contains(name)) return;
        const std::string stored = policy_rules(j, name, folder);
        trained += std::string(" --") + name + " '" + stored + "'";
        if (!o.given(name)) {
            taken |= value != stored;
            value = stored;
        }
        const std::string used = rules_text(rules(o));
        if (used != stored) differs(std::string("--") + name + " '" + used + "'");
    };
    if (is_gguf_path(folder) || quantized_folder(folder).container == Container::none)
        take("weights", o.weights, weight_rules);
    if (o.command != COMMAND_EXPORT) {
        take("activations", o.activations, activation_rules);
        take("kv_cache", o.kv_cache, kv_rules);
        const bool pre_bias = config_bool(j, "k_pre_bias", false, folder + "/quantizer.json");
        if (pre_bias && !o.given("kv_cache") && !o.given("k_pre_bias")) o.k_pre_bias = true;
        if (pre_bias) trained += " --k_pre_bias true";
        if (pre_bias && !o.k_pre_bias) differs("--k_pre_bias false");
        const std::string rotated = policy_hadamard(j, config, folder);
        if (rotated != "none") {
            trained += " --hadamard '" + rotated + "'";
            if (!o.given("hadamard") && o.command != COMMAND_QUANTIZE) o.hadamard = rotated, taken = true;
            const std::string used = hadamard_rules(o, config);
            if (used != rotated) differs("--hadamard '" + used + "'");
        }
    }
    if (!o.adapter.empty() && config_bool(j, "lora_inside_quantizer", false, folder + "/quantizer.json")) {
        trained += " --lora_inside_quantizer true";
        if (!o.given("lora_inside_quantizer")) o.lora_inside_quantizer = true;
        else if (!o.lora_inside_quantizer) differs("--lora_inside_quantizer false");
    }
    const bool rotated = config.rotate_qk || config.rotate_down;
    if (rotated)
        trained += format(" (%s%s%s rotated online)", config.rotate_qk ? "r3" : "",
                          config.rotate_qk && config.rotate_down ? ", " : "", config.rotate_down ? "r4" : "");
    if (config.transformed) trained += " (inputs transformed online: flatquant)";
    if (!taken && instead.empty() && !rotated && !config.transformed) return;
    fprintf(stderr, "note: %s: trained as%s%s\n", folder.c_str(), trained.c_str(),
            instead.empty() ? "" : ("; " + instead + " is used instead").c_str());
}

// A GGUF file has a quantizer, but training is not to begin on its grid unasked
inline void gguf_note(const Options& o, const ModelConfig& config) {
    Quantizer own, asked = single_quantizer(weight_rules(o));
    if (!gguf_quantizer(gguf_open(o.model), config, &own).empty() || !own.spec.symmetric) return;
    const std::string text = quantizer_text(own);
    if (!o.given("weights"))
        fprintf(stderr, "note: %s: dequantized; --weights %s --qat_scale static keeps its codes and scales\n",
                o.model.c_str(), text.c_str());
    else if (same_codes(own, asked) && o.qat_scale == "static")
        fprintf(stderr, "note: %s: read as --weights %s with the file's own scales\n", o.model.c_str(), text.c_str());
}

// Are these the quantizers of a container's linears, or what it has widened?
inline bool folder_holds(const QuantizedFolder& folder, const ModelConfig& config, const QuantizerRules& rules) {
    const SafetensorsSet set = st_open_folder(folder.path);
    size_t n;
    for (const ParamTensor& t : model_tensors(config, &n)) {
        if (t.kind != ParamKind::linear) continue;
        QuantizedLinear l;
        const Quantizer q = quantizer_of(rules, t);
        const bool stored = quantized_folder_read(folder, set, t, &l, false) && l.quantizer.on();
        if (stored != q.on()) return false;
        if (!stored || same_codes(l.quantizer, q)) continue;
        quantized_folder_read(folder, set, t, &l);
        quantized_linear_narrow(l, q);
        if (!same_codes(l.quantizer, q)) return false;
    }
    return true;
}

// What a container holds: in the words of its quantizer.json, which knows what it has widened and the rule of the
// scales, else as it is read
inline FolderQuantizer container_quantizer(const QuantizedFolder& folder, const ModelConfig& config) {
    const std::string text = policy_rules(policy_load(folder.path), "weights", folder.path);
    FolderQuantizer f = quantized_folder_quantizer(folder, st_open_folder(folder.path), config);
    if (text == "none") return f;
    const QuantizerRules rules = rules_parse(text, "weights");
    if (!folder_holds(folder, config, rules))
        fail("%s/quantizer.json says --weights %s, but its %s weights are %s; mend the file, or remove it",
             folder.path.c_str(), text.c_str(), container_name(folder.container),
             f.text != "none" ? f.text.c_str() : f.why.c_str());
    f.text = text;
    f.quantizer = single_quantizer(rules);
    return f;
}

// A container keeps its quantizer and its scales, unless --weights asks for another
inline void session_container(Options& o, const QuantizedFolder& folder, const ModelConfig& config) {
    const FolderQuantizer f = container_quantizer(folder, config);
    const char* name = container_name(folder.container);
    const QuantizerRules rules = weight_rules(o);
    const Quantizer asked = single_quantizer(rules);
    const bool given = o.given("weights");
    // quantize measures grids anew, whatever the file has
    const bool same = o.command != COMMAND_QUANTIZE && f.text != "none" &&
                      (!given || same_codes(f.quantizer, asked) || rules_text(rules) == f.text);
    if (f.text == "none" && !given) {
        fprintf(stderr, "note: %s: %s weights are dequantized (%s)\n", o.model.c_str(), name,
                f.why.empty() ? "no linear is quantized" : f.why.c_str());
    } else if (same && (!given || !o.given("qat_scale"))) {
        o.weights = o.given("quantize_layers") && f.quantizer.on() ? quantizer_text(f.quantizer) : f.text;
        const bool frozen = (o.lora_r > 0 || !o.adapter.empty()) && !o.lora_inside_quantizer;
        if (!o.given("qat_scale") && !frozen) o.qat_scale = "static";  // a frozen base keeps the file's scales anyway
        fprintf(stderr, "note: %s: %s, read as --weights %s%s\n", o.model.c_str(), name, o.weights.c_str(),
                o.qat_scale == "dynamic" && !frozen ? "" : " with the file's own scales");
    } else if (!same || o.qat_scale == "dynamic") {
        fprintf(stderr, "note: %s: %s weights (%s) are dequantized%s\n", o.model.c_str(), name,
                f.text != "none" ? f.text.c_str() : f.why.c_str(), rules.on() ? " and quantized anew" : "");
    }
}

// What the folders of model and adapter say of their quantizers, where the flags do not
inline void session_stored_quantizer(Options& o, const ModelConfig& config) {
    const std::string policy = policy_folder(o);
    const bool of_adapter = policy != o.model && policy_load(policy).contains("weights");
    const QuantizedFolder folder = is_gguf_path(o.model) ? QuantizedFolder() : quantized_folder(o.model);
    session_stored_policy(o, config);
    if (of_adapter) return;
    if (is_gguf_path(o.model)) return gguf_note(o, config);
    if (folder.container == Container::none) return;
    session_container(o, folder, config);
    if (folder.compressed_tensors.dynamic_activations && o.activations == "none")
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
    const SteRule ste = ste_rule(o).rule;
    const bool clips = learned || o.lora_inside_quantizer;
    if (clips && ste != SteRule::identity && ste != SteRule::clip && !activation_rules(o).on())
        fail_usage(
            "--ste %s: %s clips, as its gradients have it, and nothing else is quantized; leave one of the two out",
            printable(o.ste).c_str(), learned ? "--qat_scale learned" : "--lora_inside_quantizer");
    const Options normal;  // what a run's config.json repeats is no wish
    const char* unused = learned                                               ? nullptr
                         : o.learned_scale != normal.learned_scale             ? "learned_scale"
                         : o.scale_learning_rate != normal.scale_learning_rate ? "scale_learning_rate"
                                                                               : nullptr;
    if (unused) fail_usage("--%s needs --qat_scale learned", unused);
}
