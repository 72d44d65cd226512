// A GGUF file: its tensors as numbers and as grids, the model and the tokenizer that its metadata describe. A tensor
// lies within the file; a block's codes and grid stand for the numbers that it is read as; a model's configuration,
// written, is read as the same; a tokenizer encodes general.name, and what it can decode it decodes to that.
#include "../../formats/gguf_write.h"
#include "../../formats/hf_config.h"
#include "fuzz.h"

// Every block of a quantized type, as numbers and by quant_value
static void fuzz_gguf_blocks(const GgufTensor& t, const std::vector<float>& numbers) {
    QuantSpec spec;
    if (!gguf_grid_spec(*t.type, &spec)) return;
    int8_t codes[256];
    Grid grid[4];
    const int64_t values = t.type->block, per = gguf_scale_block(*t.type);
    for (int64_t b = 0; b < t.count / values; b++) {
        if (gguf_unpack_block(*t.type, spec, t.data + b * t.type->bytes, 1.0f, codes, grid)) continue;
        for (int64_t i = 0; i < values; i++)
            fuzz_require(quant_value(spec, codes[i], grid[i / per]) == numbers[(size_t)(b * values + i)],
                         format("a code of %s stands for its number", t.type->name));
    }
}

static void fuzz_gguf_model(const GgufFile& f, const ModelConfig& c) {
    size_t n;
    Quantizer q;
    fuzz_accepts([&] { gguf_quantizer(f, c, &q); });
    for (const ParamTensor& p : model_tensors(c, &n)) {
        std::vector<int64_t> shape = {p.rows, p.cols};
        if (p.kind == ParamKind::norm || p.kind == ParamKind::bias) shape = {p.cols};
        const bool there = fuzz_accepts([&] {
            gguf_parameter(f, p.name, shape);
            std::vector<float> numbers((size_t)p.count());
            gguf_read_parameter(f, c, p.name, shape, numbers.data());
            GgufGrid g;
            if (p.kind != ParamKind::linear || !gguf_read_grid(f, c, p.name, p.rows, p.cols, &g).empty()) return;
            for (size_t i = 0; i < numbers.size(); i++) {
                const float value = quant_value(g.spec, g.codes[i], g.grid[i / (size_t)g.group]);
                fuzz_require(std::fabs(value - numbers[i]) <= 1e-6f * std::fabs(value) || value == numbers[i],
                             "a grid stands for the parameter");
            }
        });
        if (!there) return;
    }
}

// The configuration in a file of its own, with the tensors that it is read from
static void fuzz_gguf_config(const FuzzFolder& folder, const ModelConfig& c) {
    if ((int64_t)c.vocab_size * c.hidden_size > 1 << 14) return;
    const std::string path = folder / "again.gguf";
    GgufWriter w;
    w.text("general.architecture", c.model_type);
    gguf_write_config(w, c);
    std::vector<std::vector<float>> tensors;
    auto add = [&](const std::string& name, const std::vector<int64_t>& shape, std::vector<float> values) {
        w.tensor(name, shape, *gguf_type(0));
        tensors.push_back(std::move(values));
    };
    add("token_embd.weight", {c.vocab_size, c.hidden_size}, std::vector<float>((size_t)c.vocab_size * c.hidden_size));
    if (!c.tie_word_embeddings) add("output.weight", {1}, {0.0f});
    std::vector<float> divisors;
    for (int i = 0; i < c.head_dim / 2; i++) divisors.push_back((float)llama3_rope_divisor(c, i));
    if (c.rope_scaling == RopeScaling::llama3) add("rope_freqs.weight", {c.head_dim / 2}, divisors);
    {
        AtomicFile file(path);
        w.write_header(file);
        for (const std::vector<float>& t : tensors) file.write(t.data(), t.size() * 4), GgufWriter::padding(file);
        file.commit();
    }
    ModelConfig r = config_from_gguf(gguf_open(path)), expected = c;
    expected.eos_token_ids.clear();
    expected.bos_token_id = expected.pad_token_id = -1;
    fuzz_require(config_to_json(r) == config_to_json(expected), "a configuration is read as it was written");
}

static void fuzz_gguf_tokenizer(const GgufFile& f) {
    const GgufTokenizerParts parts = gguf_tokenizer(f);
    const Tokenizer t =
        tokenizer_from_parts(parts.tokens, parts.merges, parts.token_type, parts.pre, parts.eos_token_id,
                             parts.bos_token_id, parts.pad_token_id, parts.add_bos, parts.chat_template);
    const std::string text = gguf_string(f, "general.name", "");
    std::vector<int> ids;
    tokenizer_encode(t, text, ids);
    for (const int id : ids) fuzz_require(id >= 0 && id < tokenizer_vocab_size(t), "an id is a token");
    bool lossless = utf8_is_valid(text) && !t.use_nfc;
    for (const int id : t.byte_id) lossless = lossless && id >= 0;
    for (const AddedToken& a : t.added) lossless = lossless && t.bytes[(size_t)a.id] == a.content;
    if (lossless) fuzz_require(tokenizer_decode(t, ids) == text, "ids decode to the text");
}

static int fuzz_gguf(const uint8_t* data, size_t size) {
    static const FuzzFolder folder;
    folder.put("model.gguf", std::string((const char*)data, size));
    GgufFile f;
    if (!fuzz_accepts([&] { f = gguf_open(folder / "model.gguf"); })) return 0;
    for (const auto& item : f.tensors) {
        const GgufTensor& t = item.second;
        fuzz_require(t.data >= f.file.data && t.data + t.bytes <= f.file.data + f.file.size, "a tensor is in the file");
        std::vector<float> numbers((size_t)t.count);
        if (fuzz_accepts([&] { gguf_read_float(t, numbers.data()); })) fuzz_gguf_blocks(t, numbers);
    }
    ModelConfig c;
    if (fuzz_accepts([&] { c = config_from_gguf(f); })) {
        fuzz_gguf_model(f, c);
        fuzz_gguf_config(folder, c);
    }
    fuzz_accepts([&] { fuzz_gguf_tokenizer(f); });
    return 0;
}
FUZZ_TARGET(gguf)
