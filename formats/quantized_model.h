// Model folders whose linears are stored as a quantized container: which container it is, what quantizer it has, one
// linear after the other; and the writer of such folders. The containers are in files of their own.
//
// Both ways a linear is in memory at a time, never the model: reading maps the files, writing builds a tensor when its
// turn comes (st_write_folder) and asks for its linear again.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>
#include "../model/quantize.cuh"
#include "awq_file.h"
#include "bitsandbytes.h"
#include "compressed_tensors.h"
#include "gptq_file.h"
#include "hf_config.h"
#include "transforms_file.h"

enum class Container { none, gptq, awq, compressed_tensors, bitsandbytes };

inline const char* container_name(Container c) {
    const char* names[] = {"plain", "gptq", "awq", "compressed-tensors", "bitsandbytes"};
    return names[(int)c];
}

// the module of a linear's weight: its name without .weight
inline std::string module_name(const ParamTensor& t) { return t.name.substr(0, t.name.size() - strlen(".weight")); }

// ---------------------------------------------------------------------------------------------------------------------
// reading

struct QuantizedFolder {
    Container container = Container::none;
    std::string path;
    GptqFormat gptq;
    AwqFormat awq;
    CompressedTensorsFormat compressed_tensors;
};

// what quantization_config of config.json says (or quantize_config.json, which older GPTQ folders have)
inline QuantizedFolder quantized_folder(const std::string& dir) {
    QuantizedFolder f;
    f.path = dir;
    std::string where = dir + "/config.json";
    if (!file_exists(where)) return f;
    nlohmann::json j = json_parse(read_file(where, 64 << 20), where), other;
    const nlohmann::json* q = j.is_object() ? config_member(j, "quantization_config") : nullptr;
    std::string old = dir + "/quantize_config.json";
    if (!q && file_exists(old)) {
        other = json_parse(read_file(old, 64 << 20), where = old);
        q = &other;
    } else {
        where += ": quantization_config";
    }
    if (!q) return f;
    if (!q->is_object()) fail("%s: not an object", where.c_str());
    std::string method = config_string(*q, "quant_method", "", where);
    if (method.empty()) method = config_member(*q, "config_groups") ? "compressed-tensors" : "gptq";
    if (method == "gptq") {
        f.container = Container::gptq;
        f.gptq = gptq_format(*q, where);
    } else if (method == "awq") {
        f.container = Container::awq;
        f.awq = awq_format(*q, where);
    } else if (method == "compressed-tensors") {
        f.container = Container::compressed_tensors;
        f.compressed_tensors = compressed_tensors_format_read(*q, where);
    } else if (method == "fp8") {
        f.container = Container::compressed_tensors;
        f.compressed_tensors = fp8_format_read(*q, where);
    } else if (method == "bitsandbytes") {
        f.container = Container::bitsandbytes;
        bitsandbytes_format(*q, where);
    } else {
        fail("%s: quant_method %s is not supported; compressed-tensors, gptq, awq, bitsandbytes and fp8 are",
             where.c_str(), shown(method).c_str());
    }
    return f;
}

// false: this weight is stored as plain numbers. codes_wanted false: only the quantizer, and why there is none
inline bool quantized_folder_read(const QuantizedFolder& f, const SafetensorsSet& set, const ParamTensor& t,
                                  QuantizedLinear* l, bool codes_wanted = true) {
    if (f.container == Container::none || t.kind != ParamKind::linear) return false;
    *l = QuantizedLinear();
    l->name = module_name(t);
    l->rows = t.rows;
    l->cols = t.cols;
    ModuleTensors m{set.tensors, l->name, f.path};
    switch (f.container) {
        case Container::gptq:
            if (!gptq_has(m)) return false;
            gptq_read(*l, f.gptq, m, codes_wanted);
            break;
        case Container::awq:
            if (!awq_has(m)) return false;
            awq_read(*l, f.awq, m, codes_wanted);
            break;
        case Container::compressed_tensors:
            if (!compressed_tensors_has(f.compressed_tensors, m)) return false;
            compressed_tensors_read(*l, f.compressed_tensors, m, codes_wanted);
            break;
        case Container::bitsandbytes:
            if (!bitsandbytes_has(m)) return false;
            bitsandbytes_read(*l, m, codes_wanted);
            break;
        case Container::none:
            return false;
    }
    if (codes_wanted) quantized_linear_settle(*l);
    return true;
}

// the two have the same codes; a symmetric grid is an asymmetric one too. The scale rule is no property of a file, and
// double quantization one of the scales alone.
inline bool same_codes(const Quantizer& stored, const Quantizer& q) {
    return stored.on() && q.on() && stored.spec.format == q.spec.format && stored.spec.bits == q.spec.bits &&
           stored.scope == q.scope && stored.group == q.group && (stored.spec.symmetric || !q.spec.symmetric);
}

// What the linears of a folder are quantized to
struct FolderQuantizer {
    Quantizer quantizer;        // that all quantized linears share; off: there is none
    std::string text = "none";  // of all of them, as --weights takes it
    std::string why;            // there is neither
    int linears = 0;            // stored quantized
};

// places and their quantizers as rules; a part that has the same in all layers is named once
inline std::string folder_rules(const std::vector<QuantizerPlace>& linears,
                                const std::vector<std::pair<QuantizerPlace, std::string>>& stored) {
    std::vector<std::string> texts;
    std::map<std::string, std::vector<std::string>> where;
    auto count = [](const auto& list, const auto& wanted) { return std::count_if(list.begin(), list.end(), wanted); };
    for (const auto& [place, text] : stored) {
        const std::string &part = place.part, &own = text;
        const bool all = count(stored, [&](const auto& s) { return s.first.part == part && s.second == own; }) ==
                         count(linears, [&](const QuantizerPlace& p) { return p.part == part; });
        const std::string name = all ? part : place_text(place);
        std::vector<std::string>& names = where[text];
        if (names.empty()) texts.push_back(text);
        if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
    std::string rules = "none";
    for (const std::string& text : texts) rules += "; " + join_words(where[text], ",") + "=" + text;
    return rules;
}

inline FolderQuantizer quantized_folder_quantizer(const QuantizedFolder& f, const SafetensorsSet& set,
                                                  const ModelConfig& config) {
    FolderQuantizer r;
    size_t n;
    std::vector<QuantizerPlace> linears;
    std::vector<std::pair<QuantizerPlace, std::string>> stored;
    bool shared = true;
    for (const ParamTensor& t : model_tensors(config, &n)) {
        if (t.kind != ParamKind::linear) continue;
        linears.push_back({t.layer, t.label, t.name});
        QuantizedLinear l;
        if (!quantized_folder_read(f, set, t, &l, false)) continue;
        r.linears++;
        if (!l.quantizer.on()) {
            if (r.why.empty()) r.why = l.name + ": " + l.no_grid;
            continue;
        }
        stored.push_back({linears.back(), quantizer_text(l.quantizer)});
        const Quantizer before = r.quantizer;
        if (r.linears == 1 || same_codes(before, l.quantizer)) {
            r.quantizer = l.quantizer;
            r.quantizer.double_quant = l.quantizer.double_quant && (r.linears == 1 || before.double_quant);
        } else {
            shared = shared && same_codes(l.quantizer, before);
        }
    }
    if (!r.why.empty() || !shared) r.quantizer = Quantizer();
    if (!r.why.empty() || stored.empty()) return r;
    for (auto& [place, text] : stored)
        if (shared) text = quantizer_text(r.quantizer);
    r.text = shared && stored.size() == linears.size() ? quantizer_text(r.quantizer) : folder_rules(linears, stored);
    return r;
}

// ---------------------------------------------------------------------------------------------------------------------
// writing

// Where an exported model comes from, a tensor at a time
struct ExportSource {
    ModelConfig config;
    std::vector<ParamTensor> tensors;
    // the numbers [count] of a tensor
    std::function<void(const ParamTensor&, float* to)> read;
    // false: it is not quantized; l gets name, rows and cols from the caller
    std::function<bool(const ParamTensor&, QuantizedLinear* l)> quantized;
};

struct ExportFormat {
    const char* name;
    const char* help;
    Container container;
};

static constexpr ExportFormat export_formats[] = {
    {"hf", "plain weights, Q(W) where they are quantized", Container::none},
    {"compressed-tensors", "integers, ternary, fp8e4m3, mxfp8, mxfp4, nvfp4", Container::compressed_tensors},
    {"int-quantized", "compressed-tensors' W8A8: int8 weights, and activations a token", Container::compressed_tensors},
    {"gptq", "2, 3, 4 and 8 bits; zero points are stored minus 1", Container::gptq},
    {"gptq_v2", "the same, zero points as they are", Container::gptq},
    {"awq", "up to 4 bits", Container::awq},
    {"bnb-nf4", "nf4, with or without double quantization", Container::bitsandbytes},
};

inline const ExportFormat* export_format(const std::string& name) {
    for (const ExportFormat& f : export_formats)
        if (name == f.name) return &f;
    return nullptr;
}

// the format that holds a quantizer best
inline const char* natural_format(const Quantizer& q) {
    if (!q.on()) return "hf";
    if (is_bitsandbytes(quant_traits(q.spec))) return q.group == 64 ? "bnb-nf4" : "hf";
    return *quant_traits(q.spec).compressed_tensors ? "compressed-tensors" : "hf";
}

// any mixture fits hf, and so do embedding and head
inline const char* natural_format(const QuantizerRules& rules) {
    for (const QuantizerPlace& p :
         {QuantizerPlace{-1, "embed", "model.embed_tokens.weight"}, QuantizerPlace{-1, "head", "lm_head.weight"}})
        if (quantizer_of(rules, p).on()) return "hf";
    return natural_format(single_quantizer(rules));
}

inline std::vector<ContainerTensor> container_tensors(const QuantizedLinear& l, const std::string& format,
                                                      const std::string& dtype) {
    if (format == "gptq" || format == "gptq_v2") return gptq_tensors(l, format == "gptq_v2");
    if (format == "awq") return awq_tensors(l);
    if (format == "bnb-nf4") return bitsandbytes_tensors(l, dtype);
    return compressed_tensors_tensors(l, format == "int-quantized");
}

inline nlohmann::ordered_json container_config(const std::vector<QuantizerGroup>& groups, const std::string& format,
                                               const std::string& dtype, const std::vector<std::string>& kept) {
    const Quantizer& q = groups[0].quantizer;
    if (format == "gptq" || format == "gptq_v2") return gptq_config(q, format == "gptq_v2", kept);
    if (format == "awq") return awq_config(q, kept);
    if (format == "bnb-nf4") return bitsandbytes_config(q.double_quant, dtype, kept);
    return compressed_tensors_config(groups, format == "int-quantized", kept);
}

inline const char* st_dtype_of(const std::string& save_dtype) {
    return save_dtype == "bfloat16" ? "BF16" : save_dtype == "float16" ? "F16" : "F32";
}

// The linears of a source, with the last one kept: a container's tensors of a linear are written one after another
struct LinearCache {
    const ExportSource& source;
    QuantizedLinear linear;
    const QuantizedLinear* get(const ParamTensor& t) {
        if (linear.name == module_name(t)) return &linear;
        linear = QuantizedLinear();
        const bool weight = t.kind != ParamKind::norm && t.kind != ParamKind::bias;
        if (!weight || !source.quantized(t, &linear)) {
            linear.name.clear();
            return nullptr;
        }
        return &linear;
    }
};

// What was written, for the one who asked
struct ExportSummary {
    std::string format;
    std::vector<QuantizerGroup> groups;             // of the quantized linears
    int linears = 0;                                // how many those are
    uint64_t bytes = 0;                             // of all tensors
    uint64_t linear_bytes = 0, linear_weights = 0;  // of the quantized linears, all in, and how many weights they have
};

// the numbers of a tensor, made when their turn to be written comes: Q(W) where it is quantized
inline StWriteTensor export_plain(const ExportSource& source, const ParamTensor& t, const std::string& save_dtype,
                                  std::shared_ptr<LinearCache> cache) {
    std::vector<int64_t> shape = {t.rows, t.cols};
    if (t.kind == ParamKind::norm || t.kind == ParamKind::bias) shape = {t.cols};
    auto whole = std::make_shared<std::vector<float>>();
    return st_from_callback(t.name, st_dtype_of(save_dtype), shape,
                            [&source, &t, whole, cache](int64_t first, int64_t n, float* to) {
                                if (whole->empty()) {
                                    whole->resize(t.count());
                                    const QuantizedLinear* l = cache->get(t);
                                    if (l) quantized_linear_values(*l, whole->data());
                                    else source.read(t, whole->data());
                                }
                                std::copy(whole->begin() + first, whole->begin() + first + n, to);
                                if (first + n == t.count()) std::vector<float>().swap(*whole);
                            });
}

// a container's tensor of linear t, made when its turn comes; bytes: how many it has
inline StWriteTensor export_part(const ParamTensor& t, const ContainerTensor& part, std::shared_ptr<LinearCache> cache,
                                 uint64_t* bytes) {
    uint64_t count;
    const int bits = st_dtypes[st_dtype_index(part.dtype)].bits;
    if (!st_extent(part.shape, bits, &count, bytes)) fail("a tensor of %s is too large", shown(t.name).c_str());
    auto whole = std::make_shared<std::vector<uint8_t>>();
    return {module_name(t) + part.suffix, part.dtype, part.shape,
            [&t, part, whole, cache, bits, size = *bytes](int64_t first, int64_t n, uint8_t* to) {
                if (whole->empty()) {
                    whole->resize(size);
                    part.build(*cache->get(t), whole->data());
                }
                memcpy(to, whole->data() + first * bits / 8, n * bits / 8);
                if ((uint64_t)((first + n) * bits / 8) == size) std::vector<uint8_t>().swap(*whole);
            }};
}

// counts a quantized weight; fails where the format does not hold it beside the others. table: embedding or head
inline void export_count(ExportSummary& summary, const QuantizedLinear& l, bool table, const std::string& format) {
    const bool plain = export_format(format)->container == Container::none;
    if (!plain && table)
        fail("%s cannot hold %s: it holds quantized linears alone; leave head and embed out of --weights, or take hf",
             format.c_str(), shown(l.name).c_str());
    if (!plain && !l.quantizer.on())
        fail("%s cannot hold %s: %s", format.c_str(), shown(l.name).c_str(), l.no_grid.c_str());
    auto same = [&](const QuantizerGroup& g) {
        return same_codes(l.quantizer, g.quantizer) && same_codes(g.quantizer, l.quantizer);
    };
    auto group = std::find_if(summary.groups.begin(), summary.groups.end(), same);
    if (group == summary.groups.end()) {
        if (!plain && !summary.groups.empty() && export_format(format)->container != Container::compressed_tensors)
            fail("%s cannot hold %s: it has %s and others have %s; compressed-tensors and hf hold mixtures",
                 format.c_str(), shown(l.name).c_str(), quantizer_text(l.quantizer).c_str(),
                 quantizer_text(summary.groups[0].quantizer).c_str());
        group = summary.groups.insert(summary.groups.end(), QuantizerGroup{l.quantizer, {}});
    }
    group->linears.push_back(l.name);
    group->quantizer.double_quant = group->quantizer.double_quant && !l.nested.codes.empty();
    summary.linears++;
}

// Fails as the export of a weight [rows, cols] would that is quantized by q, beside those that were asked about before,
// as far as that does not depend on its scales and zero points: before an hour of work and not behind it
inline void check_container(ExportSummary& before, const std::string& format, const std::string& name, bool table,
                            int64_t rows, int64_t cols, const Quantizer& q) {
    if (export_format(format)->container == Container::none) return;
    QuantizedLinear l;
    l.name = name, l.rows = rows, l.cols = cols, l.quantizer = q, l.tensor_scale = 1.0f;
    l.grid.assign(quantized_linear_grids(l),
                  Grid{1.0f, q.spec.symmetric ? 0.0f : 1.0f});  // GPTQ v1 has no zero point 0
    if (q.double_quant) {
        l.nested.codes.resize(l.grid.size());
        l.nested.scales.resize(CEIL_DIV((int64_t)l.grid.size(), QUANT_NESTED));
    }
    export_count(before, l, table, format);
    container_tensors(l, format, "bfloat16");
}

// Writes config.json and the safetensors of a folder that exists. save_dtype: of what is not quantized. Fails with one
// line that names the tensor and the reason where the format cannot hold it, before anything is written.
inline ExportSummary export_into(const ExportSource& source, const std::string& dir, const std::string& format,
                                 const std::string& save_dtype) {
    const ExportFormat* row = export_format(format);
    if (!row) fail("no export format is called %s", format.c_str());
    const bool plain = row->container == Container::none;
    ExportSummary summary;
    auto cache = std::make_shared<LinearCache>(LinearCache{source, {}});
    std::vector<StWriteTensor> tensors;
    std::vector<std::string> kept;
    Progress line("exporting", "tensor", (int64_t)source.tensors.size());
    for (const ParamTensor& t : source.tensors) {
        line.add();
        const QuantizedLinear* l = cache->get(t);
        if (l) export_count(summary, *l, t.kind != ParamKind::linear, format);
        if (!l && t.kind == ParamKind::linear) kept.push_back(module_name(t));
        if (!l || plain) {
            tensors.push_back(export_plain(source, t, save_dtype, cache));
            continue;
        }
        summary.linear_weights += t.count();
        for (const ContainerTensor& part : container_tensors(*l, format, save_dtype)) {
            uint64_t bytes;
            tensors.push_back(export_part(t, part, cache, &bytes));
            summary.linear_bytes += bytes;
        }
    }
    if (!plain && summary.linears == 0)
        fail_usage("%s holds quantized linears, and no linear is quantized; choose --weights, or export hf",
                   format.c_str());
    ModelConfig config = source.config;
    config.torch_dtype = save_dtype;
    nlohmann::ordered_json j = json_parse<nlohmann::ordered_json>(config_to_json(config), "config.json");
    if (!plain) {
        j["quantization_config"] = container_config(summary.groups, format, save_dtype, kept);
        if (row->container == Container::gptq)
            write_file_atomic(dir + "/quantize_config.json", j["quantization_config"].dump(2) + "\n");
    }
    write_file_atomic(dir + "/config.json", j.dump(2) + "\n");
    transforms_save(config, dir);
    for (uint64_t bytes : st_layout(dir, tensors)) summary.bytes += bytes;
    st_write_folder(dir, tensors, (uint64_t)4 << 30);
    return summary;
}
