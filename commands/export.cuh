// export: a model as other tools load it. Nothing is computed with it: tensors are read, quantized if --weights asks,
// and written one at a time.
#pragma once
#include "session.cuh"

inline void check_export_format(const Options& o) {
    if (export_format(o.format)) return;
    std::string list;
    std::vector<std::string> names;
    for (const ExportFormat& f : export_formats) {
        names.push_back(f.name);
        list += (list.empty() ? "" : "; ") + std::string(f.name) + ": " + f.help;
    }
    fail_usage("--format %s: not one of the formats%s (%s)", printable(o.format).c_str(),
               did_you_mean(o.format, names).c_str(), list.c_str());
}

inline int export_command(Session& s) {
    Options& o = s.o;
    session_threads(o);
    if (o.model.empty()) fail_usage("export needs --model: a Hugging Face folder or a .gguf file");
    check_export_format(o);
    if (!o.given("output_dir")) fail_usage("export needs --output_dir: the folder to write");
    namespace fs = std::filesystem;
    if (fs::exists(o.output_dir) && !o.overwrite_output_dir &&
        !(fs::is_directory(o.output_dir) && fs::is_empty(o.output_dir)))
        fail("%s exists; choose another --output_dir, or replace it with --overwrite_output_dir", o.output_dir.c_str());
    std::error_code ec;
    if (fs::equivalent(o.output_dir, o.model, ec))
        fail_usage("--output_dir %s: this is the model itself; name another folder", o.output_dir.c_str());
    Quantizer q = quantizer_parse(o.weights, "weights");
    ModelFile file = model_file_open(o.model);
    ModelConfig config = model_config(o.model);
    check_quantizer(config, q, o.quantize_layers);
    std::string tokenizer = o.tokenizer.empty() ? o.model : o.tokenizer;
    bool has_tokenizer = !lacks_tokenizer(tokenizer);
    if (has_tokenizer) s.tok = load_tokenizer(tokenizer);
    const char* dtype = o.format == "hf" ? "float32" : config.torch_dtype == "float16" ? "float16" : "bfloat16";
    if (!o.given("save_dtype")) o.save_dtype = dtype;
    while (o.output_dir.size() > 1 && o.output_dir.back() == '/') o.output_dir.pop_back();
    // --weights none, given: the numbers that a quantized folder stands for
    if (o.given("weights") && !q.on()) {
        if (o.format != "hf") fail_usage("--weights none: %s holds quantized linears; export hf", o.format.c_str());
    }
    ExportSummary r = export_folder(export_source(file, config, q, o.quantize_layers), o.output_dir, o.format,
                                    o.save_dtype, [&](const std::string& folder) {
                                        if (has_tokenizer) tokenizer_save(s.tok, folder);
                                    });
    printf("%s: %s", o.output_dir.c_str(), o.format.c_str());
    if (r.linears) printf(", %d linears %s", r.linears, quantizer_text(r.quantizer).c_str());
    if (r.linear_weights)
        printf(" (%.3f bits a weight, all in)", 8.0 * (double)r.linear_bytes / (double)r.linear_weights);
    printf(", %s bytes, the rest in %s\n", human_count((double)r.bytes).c_str(), o.save_dtype.c_str());
    if (!has_tokenizer) fprintf(stderr, "note: %s has no tokenizer to copy\n", tokenizer.c_str());
    return 0;
}
