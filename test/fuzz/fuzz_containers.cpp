// A folder whose linears are stored quantized: quantization_config of config.json (or quantize_config.json), the
// tensors of a model of one layer, as compressed-tensors, fp8, gptq, awq and bitsandbytes have them, and
// quantizer.json. What is read without codes is what is read with them; the quantizers' text is one that --weights
// takes; a linear that its own container holds, written, is read as the same numbers.
#include "../../commands/quantizer_options.cuh"
#include "fuzz.h"

static ModelConfig fuzz_one_layer() {
    ModelConfig c;
    c.model_type = "qwen3";
    c.vocab_size = 4, c.hidden_size = 64, c.intermediate_size = 32, c.num_hidden_layers = 1;
    c.num_attention_heads = c.num_key_value_heads = 1, c.head_dim = 32, c.max_position_embeddings = 8;
    c.tie_word_embeddings = c.qk_norm = true;
    return c;
}

static std::vector<float> fuzz_values(const QuantizedLinear& l) {
    std::vector<float> values((size_t)(l.rows * l.cols));
    const bool on = l.quantizer.on();
    fuzz_require(l.codes.size() == (on ? values.size() : 0) && l.values.size() == (on ? 0 : values.size()) &&
                     l.grid.size() == (on ? (size_t)quantized_linear_grids(l) : 0),
                 "a linear has codes and their grid, or numbers");
    quantized_linear_values(l, values.data());
    return values;
}

static std::string fuzz_format(const QuantizedFolder& f) {
    switch (f.container) {
        case Container::gptq:
            return f.gptq.v2 ? "gptq_v2" : "gptq";
        case Container::awq:
            return "awq";
        case Container::compressed_tensors:
            return "compressed-tensors";
        case Container::bitsandbytes:
            return "bnb-nf4";
        case Container::none:
            break;
    }
    return "hf";
}

// l, whose numbers are values, through the writer of its container
static void fuzz_write_again(const QuantizedFolder& f, const ModelConfig& config, const ParamTensor& t,
                             const QuantizedLinear& l, const std::vector<float>& values) {
    static const FuzzFolder again;
    ExportSource source;
    source.config = config;
    source.tensors = {t};
    source.quantized = [&](const ParamTensor&, QuantizedLinear* to) {
        *to = l;
        return true;
    };
    if (!fuzz_accepts([&] { export_into(source, again.path, fuzz_format(f), "float32"); })) return;
    const QuantizedFolder folder = quantized_folder(again.path);
    QuantizedLinear r;
    fuzz_require(quantized_folder_read(folder, st_open_folder(again.path), t, &r), "what is written is quantized");
    const std::vector<float> read = fuzz_values(r);
    fuzz_require(memcmp(read.data(), values.data(), values.size() * sizeof(float)) == 0, "its numbers are the same");
}

static int fuzz_containers(const uint8_t* data, size_t size) {
    static const FuzzFolder folder;
    static const ModelConfig config = fuzz_one_layer();
    folder.put(fuzz_files(data, size, "config.json"),
               {"config.json", "quantize_config.json", "model.safetensors", "quantizer.json"});
    QuantizedFolder f;
    SafetensorsSet set;
    if (!fuzz_accepts([&] { f = quantized_folder(folder.path); })) return 0;
    if (f.container == Container::none || !fuzz_accepts([&] { set = st_open_folder(folder.path); })) return 0;
    size_t n;
    for (const ParamTensor& t : model_tensors(config, &n)) {
        QuantizedLinear brief, l;
        bool found = false;
        if (!fuzz_accepts([&] { found = quantized_folder_read(f, set, t, &l); }) || !found) continue;
        fuzz_require(quantized_folder_read(f, set, t, &brief, false) && brief.quantizer.on() == l.quantizer.on() &&
                         brief.no_grid == l.no_grid &&
                         same_codes(brief.quantizer, brief.quantizer) == same_codes(brief.quantizer, l.quantizer),
                     "a quantizer is known without the codes");
        const std::vector<float> values = fuzz_values(l);
        if (l.quantizer.on()) fuzz_write_again(f, config, t, l, values);
    }
    fuzz_accepts([&] {
        const FolderQuantizer q = container_quantizer(f, config);
        if (file_exists(folder / "quantizer.json")) return;  // whose names may be of another model
        try {
            rules_check(rules_parse(q.text, "weights"), weight_places(config));
        } catch (const Error& e) { fuzz_require(false, std::string("--weights takes the folder's text: ") + e.what()); }
    });
    return 0;
}
FUZZ_TARGET(containers)
