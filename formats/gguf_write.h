// Writes a model as one GGUF file (version 3) that llama.cpp loads: architectures qwen2, qwen3 and llama.
//
//   header, metadata, tensor infos, zeros up to a multiple of 32, then each tensor, padded to a multiple of 32
//
// Norms and biases are F32. The matrices of a quantized model keep their trained codes and scales (gguf_grid.h), or are
// refused with the reason; those of an unquantized one are made by ggml's own formulas (gguf_blocks.h). What is not
// quantized in the model (embedding, LM head, linears that --quantize_layers leaves out) has a type of its own.
// One slice of rows at a time is held; the file appears when it is complete (AtomicFile).
//
// A tokenizer's tokens, types, merges and template go along. llama.cpp knows the splitting rule by its name, so NFC and
// an added token's lstrip, rstrip and normalized are what that name implies. The trap: tokens and embedding rows must
// be equally many, so the rows that are no tokens are called [PADi].
#pragma once
#include <functional>
#include <string>
#include <vector>
#include "gguf_grid.h"
#include "../model.cuh"
#include "../runtime/progress.h"
#include "../tokenizer.h"

// ----------------------------------------------------------------------------------------------------------------
// the file

struct GgufWriter {
    std::string kv, infos;
    uint64_t n_kv = 0, n_tensors = 0, data_bytes = 0;

    static std::string little(uint64_t v, int bytes) { return std::string((const char*)&v, (size_t)bytes); }
    static std::string text_of(const std::string& s) { return little(s.size(), 8) + s; }
    void pair(const std::string& key, uint32_t type, const std::string& value) {
        kv += text_of(key) + little(type, 4) + value;
        n_kv++;
    }
    void u32(const std::string& key, int64_t v) { pair(key, GGUF_U32, little((uint64_t)v, 4)); }
    void f32(const std::string& key, float v) { pair(key, GGUF_F32, little(float_bits(v), 4)); }
    void boolean(const std::string& key, bool v) { pair(key, GGUF_BOOL, little(v, 1)); }
    void text(const std::string& key, const std::string& v) { pair(key, GGUF_STRING, text_of(v)); }
    void texts(const std::string& key, const std::vector<std::string>& v) {
        std::string s = little(GGUF_STRING, 4) + little(v.size(), 8);
        for (const std::string& x : v) s += text_of(x);
        pair(key, GGUF_ARRAY, s);
    }
    void ints(const std::string& key, const std::vector<int>& v) {
        std::string s = little(GGUF_I32, 4) + little(v.size(), 8);
        for (int x : v) s += little((uint32_t)x, 4);
        pair(key, GGUF_ARRAY, s);
    }
    // shape as in Hugging Face; tensors are written in the order in which they are announced
    void tensor(const std::string& name, const std::vector<int64_t>& shape, const GgufType& type) {
        infos += text_of(name) + little(shape.size(), 4);
        uint64_t count = 1;
        for (size_t i = shape.size(); i-- > 0;) {
            infos += little((uint64_t)shape[i], 8);
            count *= (uint64_t)shape[i];
        }
        infos += little(type.id, 4) + little(data_bytes, 8);
        data_bytes += (count / (uint64_t)type.block * (uint64_t)type.bytes + 31) / 32 * 32;
        n_tensors++;
    }
    void write_header(AtomicFile& file) const {
        file.write("GGUF" + little(3, 4) + little(n_tensors, 8) + little(n_kv, 8));
        file.write(kv);
        file.write(infos);
        padding(file);
    }
    static void padding(AtomicFile& file) { file.write(std::string((32 - file.written % 32) % 32, '\0')); }
};

// ----------------------------------------------------------------------------------------------------------------
// metadata

inline void gguf_write_config(GgufWriter& w, const ModelConfig& c) {
    const std::string a = c.model_type + ".";
    w.u32(a + "vocab_size", c.vocab_size);
    w.u32(a + "block_count", c.num_hidden_layers);
    w.u32(a + "context_length", c.max_position_embeddings);
    w.u32(a + "embedding_length", c.hidden_size);
    w.u32(a + "feed_forward_length", c.intermediate_size);
    w.u32(a + "attention.head_count", c.num_attention_heads);
    w.u32(a + "attention.head_count_kv", c.num_key_value_heads);
    w.u32(a + "attention.key_length", c.head_dim);
    w.u32(a + "attention.value_length", c.head_dim);
    w.f32(a + "attention.layer_norm_rms_epsilon", c.rms_norm_eps);
    w.u32(a + "rope.dimension_count", c.head_dim);
    w.f32(a + "rope.freq_base", c.rope_theta);
    if (c.rope_scaling != RopeScaling::llama3) return;
    w.f32("llama.rope.llama3.factor", c.factor);  // these four are read by gguf_read_rope_freqs alone
    w.f32("llama.rope.llama3.low_freq_factor", c.low_freq_factor);
    w.f32("llama.rope.llama3.high_freq_factor", c.high_freq_factor);
    w.u32("llama.rope.llama3.original_context_length", c.original_max_position_embeddings);
}

// llama.cpp's name of a splitting rule
inline const char* gguf_pre_tokenizer(const Tokenizer& t) {
    switch (t.pre) {
        case PreTokenizer::qwen2:
            return t.use_nfc ? "qwen2" : "deepseek-r1-qwen";
        case PreTokenizer::llama3:
            return "llama-bpe";
        case PreTokenizer::smollm:
            return "smollm";
        default:
            return "gpt-2";
    }
}

// an empty tokenizer is written as none: such a file takes ids
inline void gguf_write_tokenizer(GgufWriter& w, const Tokenizer& t, const ModelConfig& c) {
    const std::string g = "tokenizer.ggml.";
    const int n = tokenizer_vocab_size(t);
    if (n == 0) {
        w.text(g + "model", "no_vocab");
        return;
    }
    if (n > c.vocab_size)
        fail("the tokenizer has %d tokens and the model %d rows; they do not belong together", n, c.vocab_size);
    std::vector<std::string> tokens((size_t)c.vocab_size);
    std::vector<int> types((size_t)c.vocab_size, 5);  // unused
    for (int i = 0; i < c.vocab_size; i++) {
        uint8_t flags = i < n ? t.flags[(size_t)i] : 0;
        tokens[(size_t)i] = flags ? t.text[(size_t)i] : format("[PAD%d]", i);
        if (flags) types[(size_t)i] = flags & kTokenSpecial ? 3 : flags & kTokenAdded ? 4 : 1;
    }
    w.text(g + "model", "gpt2");
    w.text(g + "pre", gguf_pre_tokenizer(t));
    w.texts(g + "tokens", tokens);
    w.ints(g + "token_type", types);
    w.texts(g + "merges", t.merges);
    std::vector<int> stops = t.eos;  // the tokenizer's own first
    for (int id : c.eos_token_ids)
        if (std::find(stops.begin(), stops.end(), id) == stops.end()) stops.push_back(id);
    const char* const stop_keys[] = {"eos_token_id", "eot_token_id", "eom_token_id"};
    for (size_t i = 0; i < 3 && i < stops.size(); i++) w.u32(g + stop_keys[i], stops[i]);
    int bos = t.bos >= 0 ? t.bos : c.bos_token_id, pad = t.pad >= 0 ? t.pad : c.pad_token_id;
    if (bos >= 0) w.u32(g + "bos_token_id", bos);
    if (pad >= 0) w.u32(g + "padding_token_id", pad);
    if (t.unk >= 0) w.u32(g + "unknown_token_id", t.unk);
    w.boolean(g + "add_bos_token", t.add_bos);
    if (!t.chat_text.empty()) w.text("tokenizer.chat_template", t.chat_text);
}

// ----------------------------------------------------------------------------------------------------------------
// tensors

// Rows of fp32 [rows, cols] as blocks of a type, appended to out. Numbers beyond fp16 are refused where the type's
// scales (or values) are fp16.
inline void gguf_make_rows(const GgufType& type, const std::string& name, const float* x, int64_t rows, int64_t cols,
                           std::vector<uint8_t>* out) {
    const int64_t blocks = rows * cols / type.block;
    const float limit = type.id == GGUF_TYPE_F32 || type.id == GGUF_TYPE_BF16 ? INFINITY : 65504.0f;
    bool fits = true;
#pragma omp parallel for schedule(static) reduction(&& : fits)
    for (int64_t i = 0; i < rows * cols; i++) fits = fits && std::fabs(x[i]) <= limit;
    if (!fits)
        fail("tensor %s holds a number that is not finite or beyond the 65504 of %s's fp16", name.c_str(), type.name);
    out->resize((size_t)(blocks * type.bytes));
    uint8_t* b = out->data();
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < blocks; i++) type.make(x + i * type.block, b + i * type.bytes);
}

inline void gguf_pack_rows(const GgufType& type, const GridTensor& t, float scale, std::vector<uint8_t>* out) {
    const int64_t blocks = t.rows * t.cols / type.block;
    out->resize((size_t)(blocks * type.bytes));
    uint8_t* b = out->data();
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < blocks; i++) {
        Grid grids[4];
        const int64_t per = gguf_scale_block(type);
        for (int s = 0; s < type.block / per; s++) grids[s] = t.grid[(i * type.block + s * per) / t.group];
        gguf_pack_block(type, t.spec, t.codes + i * type.block, grids, scale, b + i * type.bytes);
    }
}

// rows [rows, cols] of T, each head's in the file's order
template <class T>
void gguf_permute_rows(std::vector<T>& x, int64_t head_dim, int64_t cols) {
    std::vector<T> from = x;
    for (int64_t r = 0; r < (int64_t)x.size() / cols; r++)
        memcpy(x.data() + r * cols, from.data() + gguf_hf_row(r, head_dim) * cols, (size_t)cols * sizeof(T));
}

// The types of a file. text: "" or "auto" for the smallest type that holds every quantized linear exactly (BF16 if the
// model is not quantized), or TYPE, or TYPE:TYPE with the type of what is not quantized (F16 unless TYPE is a float).
struct GgufTypes {
    const GgufType* linear = nullptr;  // nullptr: to be chosen
    const GgufType* rest = nullptr;
};

inline GgufTypes gguf_parse_types(const std::string& text, bool quantized) {
    size_t colon = text.find(':');
    std::string first = text.substr(0, colon), second = colon == std::string::npos ? "" : text.substr(colon + 1);
    auto find = [&](const std::string& name) {
        const GgufType* t = gguf_type(name);
        if (!t || t->file_type < 0)
            fail_usage(
                "GGUF type %s: '%s' is not one of auto, %s (example: Q4_0, or Q4_0:Q8_0 with the type of "
                "embedding and head)",
                shown(text).c_str(), name.c_str(), gguf_written_types().c_str());
        return t;
    };
    GgufTypes t;
    if (first != "" && first != "auto") t.linear = find(first);
    else if (!quantized) t.linear = gguf_type(GGUF_TYPE_BF16);
    if (second != "") t.rest = find(second);
    else t.rest = t.linear && t.linear->block == 1 ? t.linear : gguf_type(GGUF_TYPE_F16);
    if (!t.rest->make)
        fail_usage("GGUF type %s: %s is only for linear layers of a model quantized to it", shown(text).c_str(),
                   t.rest->name);
    return t;
}

// A quantized tensor with its grids on the host, without its codes
inline GridTensor gguf_grid_of(const Model& m, const QuantizedTensor& q, std::vector<Grid>* grid) {
    if (!q.measured) fail("tensor %s has no scales yet; call model_refresh first", q.name.c_str());
    grid->resize((size_t)q.groups);
    copy_to_host(grid->data(), q.grid, (size_t)q.groups * sizeof(Grid), m.dev);
    GridTensor t;
    t.name = q.name;
    t.rows = q.rows;
    t.cols = q.cols;
    t.group = q.group;
    t.spec = q.quantizer.spec;
    t.grid = grid->data();
    return t;
}

// The first type, by size, that holds all of a model's tensors with a quantizer
inline const GgufType* gguf_smallest_type(const Model& m, const std::string& quantizer) {
    std::string reasons;
    for (uint32_t id : {GGUF_TYPE_TQ2_0, GGUF_TYPE_Q2_0, GGUF_TYPE_MXFP4, GGUF_TYPE_NVFP4, GGUF_TYPE_Q4_0,
                        GGUF_TYPE_Q4_1, GGUF_TYPE_Q5_0, GGUF_TYPE_Q5_1, GGUF_TYPE_Q8_0}) {
        const GgufType* type = gguf_type(id);
        std::string why;
        std::vector<Grid> grid;
        for (const LinearPart* q : quantized_parts(m)) {
            if (quantizer_text(q->quantizer) != quantizer) continue;
            why = gguf_cannot_hold(*type, gguf_grid_of(m, *q, &grid));
            if (why.empty()) continue;
            reasons = format("%s, for instance, cannot hold %s: %s", type->name, q->name.c_str(), why.c_str());
            break;
        }
        if (why.empty()) return type;
    }
    fail("no GGUF type holds %s exactly (%s); give type BF16 or F32 for its dequantized weights", quantizer.c_str(),
         reasons.c_str());
}

// One tensor's data. type: of its blocks; q: its quantizer state, or nullptr for plain numbers.
inline void gguf_write_tensor(AtomicFile& file, const Model& m, const ParamTensor& p, const QuantizedTensor* q,
                              const GgufType& type) {
    const int heads = gguf_permuted_heads(m.config, p.name);
    const int64_t head_dim = heads > 0 ? p.rows / heads : 1;
    // about a million numbers, in whole heads
    int64_t step = std::max<int64_t>(1, (1 << 20) / p.cols / head_dim) * head_dim;
    std::vector<Grid> grid;
    std::vector<uint8_t> blocks;
    GridTensor t;
    if (q) t = gguf_grid_of(m, *q, &grid);
    const bool exact = q && type.block > 1;
    float scale = type.id == GGUF_TYPE_NVFP4 ? gguf_nvfp4_tensor_scale(grid.data(), q->groups) : 1.0f;
    for (int64_t row = 0; row < p.rows; row += step) {
        const int64_t rows = std::min(step, p.rows - row), n = rows * p.cols, at = row * p.cols;
        std::vector<float> x;
        std::vector<int8_t> codes;
        if (!(exact && q->codes)) {
            x.resize((size_t)n);
            copy_to_host(x.data(), m.master.data + p.offset + at, (size_t)n * sizeof(float), m.dev);
        }
        std::vector<Grid> own;  // of each number's run of `run`, so that rows can change places
        int64_t run = 0;
        if (q) {
            codes.resize((size_t)n);
            if (q->codes) copy_to_host(codes.data(), q->codes + at, (size_t)n, m.dev);
            else
#pragma omp parallel for schedule(static)
                for (int64_t i = 0; i < n; i++)
                    codes[(size_t)i] = (int8_t)quant_code(t.spec, x[(size_t)i], grid[(size_t)((at + i) / t.group)]);
            run = std::min(t.group, p.cols);
            own.resize((size_t)(n / run));
            for (int64_t i = 0; i < n / run; i++) own[(size_t)i] = grid[(size_t)((at + i * run) / t.group)];
            if (!exact)
                for (int64_t i = 0; i < n; i++)
                    x[(size_t)i] = quant_value(t.spec, codes[(size_t)i], own[(size_t)(i / run)]);
        }
        if (exact) {
            if (heads > 0) {
                gguf_permute_rows(codes, head_dim, p.cols);
                gguf_permute_rows(own, head_dim, p.cols / run);
            }
            GridTensor slice = t;
            slice.rows = rows;
            slice.group = run;
            slice.codes = codes.data();
            slice.grid = own.data();
            gguf_pack_rows(type, slice, scale, &blocks);
        } else {
            if (heads > 0) gguf_permute_rows(x, head_dim, p.cols);
            gguf_make_rows(type, p.name, x.data(), rows, p.cols, &blocks);
        }
        file.write(blocks.data(), blocks.size());
    }
    GgufWriter::padding(file);
}

// Fails unless blocks of type k hold t, whose quantizer is q or null
inline void gguf_check_type(const Model& m, const ParamTensor& t, const QuantizedTensor* q, const GgufType& k,
                            const std::string& path) {
    std::vector<Grid> grid;
    std::string why;
    if (q && k.block > 1) why = gguf_cannot_hold(k, gguf_grid_of(m, *q, &grid));
    else if (!k.make) why = "its scales are only known of a model trained with --weights nvfp4";
    else if (t.cols % k.block) why = format("its rows of %lld are not whole blocks of %d", (long long)t.cols, k.block);
    if (!why.empty())
        fail("%s: GGUF type %s cannot hold tensor %s: %s; choose another type (auto finds one)", path.c_str(), k.name,
             t.name.c_str(), why.c_str());
}

static constexpr const char *GGUF_WRITER_KEY = "general.quantized_by", *GGUF_WRITER = "train_qrl";

// whether gguf_export wrote the file, which another export may replace then
inline bool gguf_written_here(const std::string& path) {
    try {
        return gguf_string(gguf_open(path), GGUF_WRITER_KEY, "") == GGUF_WRITER;
    } catch (const Error&) { return false; }  // not a GGUF file
}

inline void gguf_write_general(GgufWriter& w, const std::string& architecture, const std::string& path,
                               const GgufType& linear) {
    size_t slash = path.rfind('/');
    std::string name = path.substr(slash == std::string::npos ? 0 : slash + 1);
    w.text("general.architecture", architecture);
    w.text("general.type", "model");
    w.text("general.name", name.substr(0, name.rfind(".gguf")));
    w.text(GGUF_WRITER_KEY, GGUF_WRITER);
    w.u32("general.file_type", linear.file_type);
    w.u32("general.quantization_version", 2);
}

// Writes m with its tokenizer to path. type: see GgufTypes. Codes and scales of quantized linears are those of the last
// model_refresh, exactly. Fails, with nothing written, naming the tensor and the reason if a type cannot hold one.
inline void gguf_export(const Model& m, const Tokenizer& tok, const std::string& path, const std::string& type) {
    const bool quantized = !quantized_parts(m).empty();
    GgufTypes types = gguf_parse_types(type, quantized);
    std::map<std::string, const GgufType*> smallest;  // of each quantizer, unless the type is given
    for (const LinearPart* p : quantized_parts(m)) {
        const GgufType*& own = smallest[quantizer_text(p->quantizer)];
        if (!types.linear && !own) own = gguf_smallest_type(m, quantizer_text(p->quantizer));
    }
    auto quantized_tensor = [&](const ParamTensor& t) -> const QuantizedTensor* {
        const LinearPart* p = part_of(m, t);
        return p && p->quantizer.on() ? p : nullptr;
    };
    auto type_of = [&](const ParamTensor& t) {
        if (t.kind == ParamKind::norm || t.kind == ParamKind::bias) return gguf_type(GGUF_TYPE_F32);
        const QuantizedTensor* q = quantized_tensor(t);
        if (!types.linear) return q ? smallest[quantizer_text(q->quantizer)] : types.rest;
        bool rest = t.kind != ParamKind::linear || (quantized && !q);
        return rest ? types.rest : types.linear;
    };
    for (const ParamTensor& t : m.tensors) gguf_check_type(m, t, quantized_tensor(t), *type_of(t), path);

    GgufWriter w;
    gguf_write_general(w, m.config.model_type, path, types.linear ? *types.linear : *smallest.begin()->second);
    gguf_write_config(w, m.config);
    gguf_write_tokenizer(w, tok, m.config);
    std::vector<float> divisors;
    if (m.config.rope_scaling == RopeScaling::llama3) {
        for (int i = 0; i < m.config.head_dim / 2; i++) divisors.push_back((float)llama3_rope_divisor(m.config, i));
        w.tensor("rope_freqs.weight", {(int64_t)divisors.size()}, *gguf_type(GGUF_TYPE_F32));
    }
    auto side_name = [&](const ParamTensor& t) {
        std::string n = hf_to_gguf_name(t.name);
        return n.substr(0, n.rfind('.')) + ".scale";
    };
    for (const ParamTensor& t : m.tensors) {
        bool vector = t.kind == ParamKind::norm || t.kind == ParamKind::bias;
        w.tensor(hf_to_gguf_name(t.name), vector ? std::vector<int64_t>{t.cols} : std::vector<int64_t>{t.rows, t.cols},
                 *type_of(t));
        if (type_of(t)->id == GGUF_TYPE_NVFP4) w.tensor(side_name(t), {1}, *gguf_type(GGUF_TYPE_F32));
    }
    AtomicFile file(path);
    w.write_header(file);
    uint64_t start = file.written;
    if (!divisors.empty()) {
        file.write(divisors.data(), divisors.size() * sizeof(float));
        GgufWriter::padding(file);
    }
    Progress line("exporting", "tensor", (int64_t)m.tensors.size());
    for (const ParamTensor& t : m.tensors) {
        const QuantizedTensor* q = quantized_tensor(t);
        gguf_write_tensor(file, m, t, q, *type_of(t));
        line.add();
        if (type_of(t)->id != GGUF_TYPE_NVFP4) continue;
        std::vector<Grid> grid;
        gguf_grid_of(m, *q, &grid);
        float scale = gguf_nvfp4_tensor_scale(grid.data(), q->groups);
        file.write(&scale, sizeof scale);
        GgufWriter::padding(file);
    }
    if (file.written - start != w.data_bytes) fail("%s: wrote another size than announced", path.c_str());
    file.commit();
}
