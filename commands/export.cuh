// export: a model as other tools load it. Nothing is computed with it: tensors are read, quantized if --weights asks,
// and written one at a time. Scales that lie beside a checkpoint (quantizer.safetensors), and GGUF, take the model
// through memory.
#pragma once
#include "../formats/gguf_write.h"
#include "memory.cuh"
#include "model_card.cuh"
#include "output.cuh"

inline bool is_gguf_format(const std::string& format) { return format == "gguf" || format.compare(0, 5, "gguf:") == 0; }

inline void check_export_format(const Options& o) {
    if (export_format(o.format) || (o.command == COMMAND_EXPORT && is_gguf_format(o.format))) return;
    std::string list;
    std::vector<std::string> names;
    for (const ExportFormat& f : export_formats) {
        names.push_back(f.name);
        list += (list.empty() ? "" : "; ") + std::string(f.name) + ": " + f.help;
    }
    if (o.command == COMMAND_EXPORT) list += "; gguf, gguf:TYPE: a file for llama.cpp, of the type named";
    fail_usage("--format %s: not one of the formats%s (%s)", printable(o.format).c_str(),
               did_you_mean(o.format, names).c_str(), list.c_str());
}

// the file of a GGUF export; "": the export is a folder
inline std::string export_file(const Options& o) {
    if (!is_gguf_format(o.format)) return "";
    return is_gguf_path(o.output_dir) ? o.output_dir : o.output_dir + "/model.gguf";
}

// Before the long work: what stands in the way, and may not be replaced
inline void check_export_place(const Options& o) {
    namespace fs = std::filesystem;
    const std::string file = export_file(o), place = file.empty() ? o.output_dir : file;
    if (!fs::exists(place) || (fs::is_directory(place) && fs::is_empty(place))) return;
    if (!o.overwrite_output_dir)
        fail("%s exists; choose another --output_dir, or replace it with --overwrite_output_dir", place.c_str());
    check_inputs_outside(o, place);
    if (file.empty()) check_replaceable(place);
    else if (!gguf_written_here(place))
        fail("%s was not written by this program, so it is not replaced; move it, or choose another --output_dir",
             place.c_str());
}

inline void print_export(const Options& o, const ExportSummary& r) {
    printf("%s: %s", o.output_dir.c_str(), o.format.c_str());
    if (r.linears) printf(", %d linears ", r.linears);
    for (size_t i = 0; i < r.groups.size(); i++)
        printf("%s%s", i ? ", " : "", quantizer_text(r.groups[i].quantizer).c_str());
    if (r.linear_weights)
        printf(" (%.3f bits a weight, all in)", 8.0 * (double)r.linear_bytes / (double)r.linear_weights);
    printf(", %s bytes, the rest in %s\n", human_count((double)r.bytes).c_str(), o.save_dtype.c_str());
}

// --weights; none where it asks for what a quantized file has: codes and scales are then the file's, for to measure them
// anew on the rounded numbers moves them (a group that has the code -8 gets s' = 8 s / 7.5 by the rule amax)
inline QuantizerRules export_rules(const Options& o, const ModelFile& f, const ModelConfig& config) {
    const QuantizerRules rules = weight_rules(o);
    const bool stored = f.folder.container != Container::none;
    if (!rules.on() || (!stored && !f.gguf_quantizer.on())) return rules;
    FolderQuantizer own;
    if (stored) own = container_quantizer(f.folder, config);
    else own.quantizer = f.gguf_quantizer, own.text = quantizer_text(f.gguf_quantizer);
    auto all_linears = [](const QuantizerRules& r) { return r.rules.size() == 1 && r.rules[0].where.empty(); };
    const bool same = own.text != "none" && (rules_text(rules) == own.text ||
                                             (all_linears(rules) && all_linears(rules_parse(own.text, "weights")) &&
                                              same_codes(own.quantizer, rules.rules[0].quantizer)));
    const char* name = stored ? container_name(f.folder.container) : "GGUF";
    if (same)
        fprintf(stderr, "note: %s: %s, read as --weights %s with the file's own scales\n", o.model.c_str(), name,
                own.text.c_str());
    else
        fprintf(stderr, "note: %s: %s weights (%s) are dequantized and quantized anew\n", o.model.c_str(), name,
                own.text != "none" ? own.text.c_str() : own.why.c_str());
    return same ? QuantizerRules() : rules;
}

// A container tells other tools of int8 activations a token (int-quantized), or of none
inline void export_activations_note(const Options& o, const nlohmann::json& policy) {
    if (export_format(o.format)->container == Container::none) return;
    const std::string own = policy_rules(policy, "activations", o.model),
                      told = o.format == "int-quantized" ? "int8:token:sym" : "none";
    if (own == told) return;
    fprintf(stderr, "note: %s: %s tells other tools of --activations %s, the model was made with %s%s\n",
            o.model.c_str(), o.format.c_str(), told.c_str(), own.c_str(),
            own == "int8:token:sym" ? "; --format int-quantized tells of those, where the weights are int8" : "");
}

// What lies beside an export: the tokenizer, and what the policy is quantized to, which a container does not tell of
// activations and KV cache and tells of weights up to what it has widened. weights: of a container; plain ones are Q(W)
inline void export_beside(const Session& s, bool has_tokenizer, const QuantizerRules& weights,
                          const std::string& folder) {
    if (has_tokenizer) tokenizer_save(s.tok, folder);
    const nlohmann::json stored = is_gguf_path(s.o.model) ? nlohmann::json::object() : policy_load(s.o.model);
    nlohmann::ordered_json policy;
    if (export_format(s.o.format)->container != Container::none) {
        if (weights.on()) policy["weights"] = rules_text(weights);
        else if (stored.contains("weights")) policy["weights"] = stored["weights"];
    }
    for (const char* name : {"activations", "kv_cache", "k_pre_bias", "hadamard"})
        if (stored.contains(name)) policy[name] = stored[name];
    if (!policy.empty()) write_file_atomic(folder + "/quantizer.json", policy.dump(2) + "\n");
    export_activations_note(s.o, stored);
    const std::string text = policy.contains("weights") ? policy["weights"].get<std::string>()
                             : weights.on()             ? rules_text(weights)
                                                        : "none";
    const std::string is = export_format(s.o.format)->container != Container::none || !weights.on()
                               ? "Weights: " + md_code(text) + ".\n"
                               : "Weights: plain numbers, rounded to " + md_code(text) + ".\n";
    write_file_atomic(folder + "/README.md", converted_card(s, s.o.format, is, ""));
}

// the model in memory, on the grid that it was trained with or found by a calibration
inline int export_from_memory(Session& s) {
    Options& o = s.o;
    if (is_gguf_path(o.model)) o.qat_scale = "static";  // the file's grid stays where --weights asks for its quantizer
    session_open(s);
    session_plan(s, true, [] {});
    session_allocate(s);
    session_load_weights(s);
    if (!is_gguf_format(o.format)) {
        print_export(
            o, export_folder(export_source(s.m), o.output_dir, o.format, o.save_dtype,
                             [&](const std::string& folder) { export_beside(s, true, s.m.weight_rules, folder); }));
        return 0;
    }
    const std::string path = export_file(o);
    if (path != o.output_dir) make_folders(o.output_dir);
    gguf_export(s.m, s.tok, path, o.format == "gguf" ? "" : o.format.substr(5));
    printf("%s: GGUF%s%s, %s bytes\n", path.c_str(), s.m.weight_rules.on() ? ", linears " : "",
           s.m.weight_rules.on() ? rules_text(s.m.weight_rules).c_str() : "",
           human_count((double)std::filesystem::file_size(path)).c_str());
    return 0;
}

inline int export_command(Session& s) {
    Options& o = s.o;
    session_threads(o);
    if (o.model.empty()) fail_usage("export needs --model: a Hugging Face folder or a .gguf file");
    check_export_format(o);
    if (!o.given("output_dir")) fail_usage("export needs --output_dir: the folder to write");
    while (o.output_dir.size() > 1 && o.output_dir.back() == '/') o.output_dir.pop_back();
    check_export_place(o);
    ModelFile file = model_file_open(o.model);
    ModelConfig config = model_config(o.model);
    if (!is_gguf_path(o.model)) session_stored_policy(o, config);
    const QuantizerRules rules = weight_rules(o);
    if (config.rotate_qk || config.rotate_down)
        fail(
            "%s rotates activations while it runs (quantize --rotations r3 or r4), which other tools would leave out; "
            "quantize with --rotations r1,r2 for export",
            o.model.c_str());
    if (config.transformed)
        fail(
            "%s transforms activations while it runs (quantize --ptq flatquant), which other tools would leave out; "
            "quantize with gptq or awq for export",
            o.model.c_str());
    const nlohmann::json policy = is_gguf_path(o.model) ? nlohmann::json::object() : policy_load(o.model);
    if (rules.on() && policy.contains("hadamard"))
        fail(
            "%s: --weights %s quantizes in a rotated basis there (--hadamard %s), which no format holds; the folder is "
            "an ordinary one in full precision, which --weights none exports",
            o.model.c_str(), rules_text(rules).c_str(), policy_hadamard(policy, config, o.model).c_str());
    check_weight_rules(config, rules);
    std::string tokenizer = o.tokenizer.empty() ? o.model : o.tokenizer;
    bool has_tokenizer = !lacks_tokenizer(tokenizer);
    if (has_tokenizer) s.tok = load_tokenizer(tokenizer);
    const char* dtype = o.format == "hf" ? "float32" : config.torch_dtype == "float16" ? "float16" : "bfloat16";
    if (!o.given("save_dtype")) o.save_dtype = dtype;
    if (is_gguf_format(o.format) || file_exists(o.model + "/quantizer.safetensors")) return export_from_memory(s);
    // --weights none, given: the numbers that a quantized folder stands for
    if (o.given("weights") && !rules.on()) {
        if (o.format != "hf") fail_usage("--weights none: %s holds quantized linears; export hf", o.format.c_str());
    }
    const QuantizerRules measured = export_rules(o, file, config);
    const bool plain = export_format(o.format)->container == Container::none;
    ExportSummary r = export_folder(
        export_source(file, config, measured), o.output_dir, o.format, o.save_dtype,
        [&](const std::string& folder) { export_beside(s, has_tokenizer, plain ? rules : measured, folder); });
    print_export(o, r);
    if (!has_tokenizer) fprintf(stderr, "note: %s has no tokenizer to copy\n", tokenizer.c_str());
    return 0;
}
