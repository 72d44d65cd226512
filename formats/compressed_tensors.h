// compressed-tensors (llm-compressor; read by vLLM, transformers) and the "fp8" files of DeepSeek's kind. For a linear
// X of W [out, in]:
//   pack-quantized         int of 1 to 8 bits
//       X.weight_packed      I32 [out, in b / 32 up]   u = q + 2^(b-1), the stream of bits along the inputs
//       X.weight_scale       [out, in / g]             W = (u - z) scale
//       X.weight_zero_point  I32 [out b / 32 up, in / g]   asymmetric: the stream of z along the outputs
//       X.weight_shape       I64 [2]
//   int-quantized          X.weight I8 [out, in], X.weight_scale [out, 1]; activations int8, a scale a token
//   float-quantized        X.weight F8_E4M3 [out, in], X.weight_scale [1], [out, 1], [out, in / g] or 128 x 128 tiles
//   mxfp8-quantized        X.weight F8_E4M3 [out, in], X.weight_scale U8 [out, in / 32], an exponent plus 127
//   nvfp4-pack-quantized   X.weight_packed U8 [out, in / 2], the earlier code in the low nibble; X.weight_scale F8_E4M3
//                          [out, in / 16]; X.weight_global_scale F32 [1] = t;  W = e2m1 weight_scale / t
//   mxfp4-pack-quantized   the same codes, X.weight_scale U8 [out, in / 32], an exponent plus 127
//   quant_method "fp8"     X.weight F8_E4M3 and X.weight_scale_inv (a factor all the same), tiles of weight_block_size
// quantization_config: config_groups with their targets ("Linear", a module's name, or re: and a regular expression),
// `ignore`, and the format. `ignore` is not read: what a linear's tensors are says whether it is quantized. Source: compressed-tensors, compressors/.
// The trap: until 0.17 3, 5, 6 and 7 bits were padded (10 values of 3 bits a word). Files have no version; the width of
// weight_packed tells them apart. The dense stream of today is written, both are read.
#pragma once
#include "hf_config.h"
#include "name_pattern.h"
#include "quantized_linear.h"

// ---------------------------------------------------------------------------------------------------------------------
// writing

// which of its formats holds this quantizer; "" if none does. dynamic_activations: W8A8
inline const char* compressed_tensors_format(const Quantizer& q, bool dynamic_activations) {
    return dynamic_activations && quant_is_integer(q.spec) ? "int-quantized" : quant_traits(q.spec).compressed_tensors;
}

// linears that share a quantizer, of one format of the container; targets: their names, or {"Linear"} for all
inline nlohmann::ordered_json compressed_tensors_group_config(const Quantizer& q, bool dynamic_activations,
                                                              const std::vector<std::string>& targets) {
    using J = nlohmann::ordered_json;
    const FormatTraits& traits = quant_traits(q.spec);
    const bool integer = traits.kind == NumberKind::integer;
    auto args = [&](const char* strategy, J group, bool dynamic) {
        J w;
        w["num_bits"] = q.spec.bits;
        w["type"] = integer ? "int" : "float";
        w["symmetric"] = q.spec.symmetric;
        w["strategy"] = strategy;
        w["group_size"] = group;
        w["block_structure"] = nullptr;
        w["dynamic"] = dynamic;
        w["actorder"] = nullptr;
        return w;
    };
    const char* strategy = traits.tensor_scale                         ? "tensor_group"
                           : q.scope == QuantScope::group              ? "group"
                           : q.scope == QuantScope::block              ? "block"
                           : q.scope == QuantScope::tensor && !integer ? "tensor"
                                                                       : "channel";
    J weights = args(strategy, q.scope == QuantScope::group ? J(q.group) : J(), false);
    if (q.scope == QuantScope::block) weights["block_structure"] = {128, 128};
    if (traits.storage == ScaleStorage::e8m0) weights["scale_dtype"] = "torch.uint8";
    if (traits.storage == ScaleStorage::e4m3) weights["scale_dtype"] = "torch.float8_e4m3fn";
    J group;
    group["targets"] = targets;
    group["weights"] = weights;
    group["input_activations"] = dynamic_activations ? args("token", J(), true) : J();
    group["output_activations"] = nullptr;
    group["format"] = compressed_tensors_format(q, dynamic_activations);
    return group;
}

// Linears with the same quantizer, of an exported folder
struct QuantizerGroup {
    Quantizer quantizer;
    std::vector<std::string> linears;
};

// kept: names of linears that are not quantized. Several groups are the container's "mixed-precision".
inline nlohmann::ordered_json compressed_tensors_config(const std::vector<QuantizerGroup>& groups,
                                                        bool dynamic_activations,
                                                        const std::vector<std::string>& kept) {
    nlohmann::ordered_json j;
    const std::string format = compressed_tensors_format(groups[0].quantizer, dynamic_activations);
    bool same = true;
    for (const QuantizerGroup& g : groups)
        same = same && compressed_tensors_format(g.quantizer, dynamic_activations) == format;
    j["quant_method"] = "compressed-tensors";
    j["format"] = same ? format : "mixed-precision";
    j["quantization_status"] = "compressed";
    j["global_compression_ratio"] = nullptr;
    j["kv_cache_scheme"] = nullptr;
    j["ignore"] = kept;
    j["ignore"].push_back("lm_head");
    for (size_t i = 0; i < groups.size(); i++) {
        std::vector<std::string> targets = {"Linear"};
        if (groups.size() > 1) targets = groups[i].linears;
        j["config_groups"]["group_" + std::to_string(i)] =
            compressed_tensors_group_config(groups[i].quantizer, dynamic_activations, targets);
    }
    return j;
}

// scales [rows, spans], in the narrowest type that holds them all
inline ContainerTensor compressed_tensors_scales(const QuantizedLinear& l, int64_t rows, int64_t spans) {
    bool bf16 = true, fp16 = true;
    for (const Grid& g : l.grid) bf16 = bf16 && bf16_holds(g.scale), fp16 = fp16 && fp16_holds(g.scale);
    std::vector<int64_t> shape = {rows, spans};
    if (l.quantizer.scope == QuantScope::tensor && rows == 1) shape = {1};
    int64_t step = l.quantizer.scope == QuantScope::block ? 128 : 1;
    return container_floats(".weight_scale",
                            bf16   ? "BF16"
                            : fp16 ? "F16"
                                   : "F32",
                            shape, [=](const QuantizedLinear& linear, float* x) {
                                for (int64_t r = 0; r < rows; r++)
                                    for (int64_t s = 0; s < spans; s++)
                                        x[r * spans + s] = quantized_linear_grid(linear, r * step, s).scale;
                            });
}

// e4m3 or e8m0 codes of the scales [rows, spans]
inline ContainerTensor compressed_tensors_byte_scales(const char* dtype, int64_t rows, int64_t spans,
                                                      std::function<uint8_t(const QuantizedLinear&, float)> code) {
    return {".weight_scale", dtype, {rows, spans}, [=](const QuantizedLinear& l, uint8_t* bytes) {
                for (int64_t i = 0; i < rows * spans; i++) bytes[i] = code(l, l.grid[i].scale);
            }};
}

// is t NVFP4's, of which each scale is an e4m3 number over t?
inline bool nvfp4_tensor_scale_fits(const QuantizedLinear& l, float t) {
    bool all = t > 0.0f && t <= 3.4e38f;
    for (size_t i = 0; i < l.grid.size() && all; i++)
        all = e4m3_bits_to_float(float_to_e4m3_bits(l.grid[i].scale * t)) / t == l.grid[i].scale;
    return all;
}

inline ContainerTensor compressed_tensors_bytes(const QuantizedLinear& l, const char* dtype) {
    return {".weight", dtype, {l.rows, l.cols}, [](const QuantizedLinear& linear, uint8_t* to) {
                memcpy(to, linear.codes.data(), linear.codes.size());
            }};
}

inline ContainerTensor compressed_tensors_nibbles(const QuantizedLinear& l) {
    return {".weight_packed", "U8", {l.rows, l.cols / 2}, [](const QuantizedLinear& linear, uint8_t* to) {
                for (size_t i = 0; i < linear.codes.size() / 2; i++)
                    to[i] = (uint8_t)((linear.codes[2 * i] & 15) | linear.codes[2 * i + 1] << 4);
            }};
}

// pack-quantized
inline std::vector<ContainerTensor> compressed_tensors_integers(const QuantizedLinear& l) {
    const int64_t rows = l.rows, cols = l.cols, spans = CEIL_DIV(cols, quantized_linear_span(l));
    const int b = l.quantizer.spec.bits;
    const StoredCode s = stored_code(l, b);
    const int64_t words = CEIL_DIV(cols * b, (int64_t)32), zero_words = CEIL_DIV(rows * b, (int64_t)32);
    std::vector<ContainerTensor> list = {container_words(".weight_packed", {rows, words},
                                                         [=](const QuantizedLinear& linear, uint32_t* to) {
#pragma omp parallel for schedule(static)
                                                             for (int64_t r = 0; r < rows; r++)
                                                                 pack_bits(to + r * words, 1, cols, b, [&](int64_t c) {
                                                                     return linear.codes[r * cols + c] + s.shift;
                                                                 });
                                                         }),
                                         compressed_tensors_scales(l, rows, spans),
                                         {".weight_shape", "I64", {2}, [](const QuantizedLinear& linear, uint8_t* to) {
                                              int64_t shape[2] = {linear.rows, linear.cols};
                                              memcpy(to, shape, sizeof(shape));
                                          }}};
    if (!l.quantizer.spec.symmetric)
        list.push_back(container_words(
            ".weight_zero_point", {zero_words, spans}, [=](const QuantizedLinear& linear, uint32_t* to) {
                for (int64_t g = 0; g < spans; g++)
                    pack_bits(to + g, spans, rows, b,
                              [&](int64_t r) { return (int)quantized_linear_grid(linear, r, g).zero; });
            }));
    return list;
}

// the scales of floats, in the storage that their format has
inline std::vector<ContainerTensor> compressed_tensors_float_scales(const QuantizedLinear& l) {
    const int64_t rows = l.rows, spans = CEIL_DIV(l.cols, quantized_linear_span(l));
    const Quantizer& q = l.quantizer;
    const ScaleStorage storage = quant_traits(q.spec).storage;
    if (storage == ScaleStorage::e8m0)
        return {compressed_tensors_byte_scales("U8", rows, spans, [](const QuantizedLinear&, float s) {
            return (uint8_t)(float_bits(s) >> 23);  // 2^-127 is subnormal: exponent 0
        })};
    if (storage == ScaleStorage::e4m3) {
        if (!nvfp4_tensor_scale_fits(l, l.tensor_scale))
            cannot_hold(l, "compressed-tensors", "its scales are not e4m3 numbers over one scale of the tensor");
        return {compressed_tensors_byte_scales(
                    "F8_E4M3", rows, spans,
                    [](const QuantizedLinear& linear, float s) { return float_to_e4m3_bits(s * linear.tensor_scale); }),
                container_floats(".weight_global_scale", "F32", {1},
                                 [](const QuantizedLinear& linear, float* x) { *x = linear.tensor_scale; })};
    }
    if (q.scope == QuantScope::block)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < spans; i++)
                if (l.grid[r * spans + i].scale != l.grid[r / 128 * 128 * spans + i].scale)
                    cannot_hold(l, "compressed-tensors", "rows of a tile have scales of their own");
    const int64_t scale_rows = q.scope == QuantScope::tensor  ? 1
                               : q.scope == QuantScope::block ? CEIL_DIV(rows, (int64_t)128)
                                                              : rows;
    return {compressed_tensors_scales(l, scale_rows, spans)};
}

inline std::vector<ContainerTensor> compressed_tensors_tensors(const QuantizedLinear& l, bool dynamic_activations) {
    const char* name = "compressed-tensors";
    const Quantizer& q = l.quantizer;
    const FormatTraits& traits = quant_traits(q.spec);
    if (!*traits.compressed_tensors)
        cannot_hold(l, name,
                    q.spec.bits == 8 ? "its 8-bit floats are e4m3; export hf"
                                     : format("it has no %s; export %s%s", quant_format_name(q.spec),
                                              *traits.bitsandbytes ? "bnb-" : "hf", traits.bitsandbytes));
    if (traits.kind == NumberKind::integer) {
        require_integers(l, name);
        if (!dynamic_activations) return compressed_tensors_integers(l);
        if (q.spec.bits != 8 || !q.spec.symmetric || q.scope == QuantScope::group)
            cannot_hold(l, "int-quantized", "it stores int8:channel:sym");
        return {compressed_tensors_bytes(l, "I8"), compressed_tensors_scales(l, l.rows, 1)};
    }
    std::vector<ContainerTensor> list = compressed_tensors_float_scales(l);
    list.insert(list.begin(),
                q.spec.bits == 8 ? compressed_tensors_bytes(l, "F8_E4M3") : compressed_tensors_nibbles(l));
    return list;
}

// ---------------------------------------------------------------------------------------------------------------------
// reading

struct CompressedTensorsGroup {
    std::vector<std::string> targets;
    std::string format, type, strategy;
    int bits = 0, group = 0;
    int tile[2] = {128, 128};
    bool symmetric = true, exponents = false;                                     // exponents: scales are bytes of e8m0
    bool bytes() const { return exponents || format == "nvfp4-pack-quantized"; }  // scales of a byte
};

struct CompressedTensorsFormat {
    std::vector<CompressedTensorsGroup> groups;
    std::string scale = ".weight_scale";  // quant_method "fp8": .weight_scale_inv, or .weight_scale without tiles
    bool dynamic_activations = false;     // the folder means W8A8 or the like
};

inline CompressedTensorsFormat compressed_tensors_format_read(const nlohmann::json& j, const std::string& where) {
    CompressedTensorsFormat f;
    const nlohmann::json* groups = config_member(j, "config_groups");
    if (!groups || !groups->is_object() || groups->empty())
        fail("%s: quantization_config has no config_groups", where.c_str());
    std::string format_of_all = config_string(j, "format", "", where);
    size_t n_targets = 0;
    for (auto& [key, group] : groups->items()) {
        std::string at = where + ": config_groups " + shown(key);
        const nlohmann::json* w = group.is_object() ? config_member(group, "weights") : nullptr;
        const nlohmann::json* targets = group.is_object() ? config_member(group, "targets") : nullptr;
        if (!w || !w->is_object() || !targets || !targets->is_array())
            fail("%s: neither a preset's name nor groups without targets and weights are supported", at.c_str());
        CompressedTensorsGroup g;
        for (auto& t : *targets) {
            if (!t.is_string()) fail("%s: a target is not a string", at.c_str());
            g.targets.push_back(t.get<std::string>());
            if (g.targets.back().compare(0, 3, "re:") == 0) name_pattern(g.targets.back().substr(3), at);  // checks it
        }
        n_targets += g.targets.size();
        if (n_targets > 4096) fail("%s: more than 4096 targets", at.c_str());
        g.format = config_string(group, "format", format_of_all.c_str(), at);
        g.bits = config_int(*w, "num_bits", 8, at);
        g.type = config_string(*w, "type", "int", at);
        g.symmetric = config_bool(*w, "symmetric", true, at);
        g.group = config_int(*w, "group_size", 0, at);
        g.strategy = config_string(*w, "strategy", g.group > 0 ? "group" : g.group == -1 ? "channel" : "tensor", at);
        if (const nlohmann::json* tile = config_member(*w, "block_structure")) {
            if (!tile->is_array() || tile->size() != 2) fail("%s: block_structure is not two sizes", at.c_str());
            for (int i = 0; i < 2; i++) g.tile[i] = config_int_value((*tile)[i], "block_structure", at);
        }
        g.exponents = g.format == "mxfp4-pack-quantized" || g.format == "mxfp8-quantized";
        bool known = false;
        for (const char* name : {"pack-quantized", "int-quantized", "float-quantized", "naive-quantized",
                                 "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"})
            known = known || g.format == name;
        if (!known) fail("%s: format %s is not supported", at.c_str(), shown(g.format).c_str());
        if ((g.type != "int" && g.type != "float") || g.bits < 1 || g.bits > 8 || g.group < -1 || g.tile[0] < 1 ||
            g.tile[1] < 1)
            fail("%s: weights of type %s and %d bits in groups of %d are not supported", at.c_str(),
                 shown(g.type).c_str(), g.bits, g.group);
        f.dynamic_activations = f.dynamic_activations || config_member(group, "input_activations");
        f.groups.push_back(g);
    }
    if (const nlohmann::json* t = config_member(j, "transform_config"); t && !t->empty())
        fail("%s: transform_config (rotated weights) is not supported", where.c_str());
    return f;
}

// quant_method "fp8": DeepSeek's and vLLM's own files
inline CompressedTensorsFormat fp8_format_read(const nlohmann::json& j, const std::string& where) {
    CompressedTensorsFormat f;
    CompressedTensorsGroup g;
    std::string fmt = config_string(j, "fmt", "e4m3", where);
    if (fmt != "e4m3") fail("%s: fp8 of fmt %s is not supported; e4m3 is", where.c_str(), shown(fmt).c_str());
    g.targets = {"Linear"};
    g.format = "float-quantized", g.type = "float", g.bits = 8, g.strategy = "tensor";
    if (const nlohmann::json* tile = config_member(j, "weight_block_size")) {
        if (!tile->is_array() || tile->size() != 2) fail("%s: weight_block_size is not two sizes", where.c_str());
        for (int i = 0; i < 2; i++) g.tile[i] = config_int_value((*tile)[i], "weight_block_size", where);
        if (g.tile[0] < 1 || g.tile[1] < 1) fail("%s: weight_block_size is not two sizes", where.c_str());
        g.strategy = "block";
        f.scale = ".weight_scale_inv";
    }
    f.groups = {g};
    f.dynamic_activations = true;
    return f;
}

// As vLLM chooses: the first whose name or pattern the linear has, and only then one for all linears
inline const CompressedTensorsGroup* compressed_tensors_group(const CompressedTensorsFormat& f, const std::string& name,
                                                              const std::string& where) {
    const CompressedTensorsGroup* for_all = nullptr;
    for (const CompressedTensorsGroup& g : f.groups)
        for (const std::string& target : g.targets) {
            if (target == "Linear" && !for_all) for_all = &g;
            if (target == name) return &g;
            if (target.compare(0, 3, "re:") == 0 && name_pattern_matches(name_pattern(target.substr(3), where), name))
                return &g;
        }
    return for_all;
}

inline bool compressed_tensors_has(const CompressedTensorsFormat& f, const ModuleTensors& t) {
    return t.find(".weight_packed") || t.find(f.scale);
}

// the scales [scale_rows, spans] of the strategy: the shape that the file must have
inline std::vector<int64_t> compressed_tensors_scale_shape(const QuantizedLinear& l, const CompressedTensorsGroup& g,
                                                           const ModuleTensors& t) {
    auto tiles = [&](int64_t n, int64_t size) {
        if (n % size && g.strategy != "block")
            fail("%s: groups of %lld do not divide the %lld inputs of %s; the quantization_config is another model's",
                 t.where.c_str(), (long long)size, (long long)n, shown(l.name).c_str());
        return CEIL_DIV(n, size);
    };
    if (g.strategy == "tensor") return {1};
    if (g.strategy == "channel") return {l.rows, 1};
    if (g.strategy == "block") return {tiles(l.rows, g.tile[0]), tiles(l.cols, g.tile[1])};
    if ((g.strategy == "group" || g.strategy == "tensor_group") && g.group > 0) return {l.rows, tiles(l.cols, g.group)};
    fail("%s: strategy %s is not supported", t.where.c_str(), shown(g.strategy).c_str());
}

// A linear while it is read
struct CompressedTensorsLinear {
    QuantizedLinear& l;
    const CompressedTensorsGroup& g;
    const ModuleTensors& t;
    const bool codes_wanted;
    std::vector<int64_t> shape;  // of the scales
    int64_t spans = 1;           // of a row
    Quantizer q = Quantizer();
    std::vector<float> scales = {};
    std::string no_grid = "";  // why there is no quantizer of ours
    [[noreturn]] void refuse(const std::string& why) const {
        fail("%s: %s: %s", t.where.c_str(), shown(l.name).c_str(), why.c_str());
    }
};

// the scales and from them l.grid, zero points apart
inline void compressed_tensors_read_scales(CompressedTensorsLinear& c, const std::string& scale) {
    QuantizedLinear& l = c.l;
    const CompressedTensorsGroup& g = c.g;
    const ModuleTensors& t = c.t;
    const StTensor* stored = t.find(scale);
    if (!stored) t.require(scale, c.shape, "");
    if (g.strategy == "tensor" && stored->shape.empty()) c.shape = {};
    if (g.strategy == "channel" && stored->shape.size() == 1) c.shape = {l.rows};
    t.require(scale, c.shape,
              g.exponents && stored->dtype != "F8_E8M0" ? "U8"
              : g.bytes() && !g.exponents               ? "F8_E4M3"
                                                        : "");
    if (!g.bytes()) {
        c.scales = read_floats(*stored);
    } else {
        float t_scale = 1.0f;
        if (!g.exponents) {
            t_scale = read_floats(t.require(".weight_global_scale", {1}, "F32"))[0];
            if (!(t_scale > 0.0f)) t.damaged(".weight_global_scale", "it is not positive");
            l.tensor_scale = t_scale;
        }
        c.scales.resize(stored->count);
        for (int64_t i = 0; i < stored->count; i++) {
            if (stored->data[i] == (g.exponents ? 255 : 127))
                t.damaged(scale, format("scale %lld is not a number", (long long)i));
            c.scales[i] = g.exponents ? quant_power_of_two((int)stored->data[i] - 127)
                                      : e4m3_bits_to_float(stored->data[i]) / t_scale;
        }
    }
    const int64_t spans = c.spans, high = c.q.scope == QuantScope::block ? g.tile[0] : 1;
    l.grid.resize(c.q.scope == QuantScope::tensor ? 1 : l.rows * spans);
    for (size_t i = 0; i < l.grid.size(); i++) l.grid[i] = Grid{c.scales[i / spans / high * spans + i % spans], 0.0f};
}

// Integers of the streams [n, words] of a tensor: dense, or as before 0.17 whole words of 32 / b. value(i, u) of
// n numbers that lie `stride` words apart
template <class F>
inline void compressed_tensors_unpack(const uint8_t* words, int64_t stride, int64_t n, int b, bool old, F value) {
    const int64_t per_word = 32 / b;
    if (!old) return unpack_bits(words, stride, n, b, value);
    for (int64_t i = 0; i < n; i++)
        value(i, (int)(load_word(words, i / per_word * stride) >> (i % per_word * b) & ((1u << b) - 1)));
}

inline void compressed_tensors_check_shape(const CompressedTensorsLinear& c) {
    const StTensor& stated = c.t.require(".weight_shape", {2}, "");
    int64_t size[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        if (stated.dtype == "I64") memcpy(&size[i], stated.data + 8 * i, 8);
        else if (stated.dtype == "I32") size[i] = (int)load_word(stated.data, i);
    }
    if (size[0] != c.l.rows || size[1] != c.l.cols)
        c.t.damaged(".weight_shape", format("it says [%lld, %lld]", (long long)size[0], (long long)size[1]));
}

inline void compressed_tensors_read_packed(CompressedTensorsLinear& c) {
    QuantizedLinear& l = c.l;
    const ModuleTensors& t = c.t;
    const int b = c.g.bits, shift = 1 << (b - 1);
    const int64_t rows = l.rows, cols = l.cols, spans = c.spans, per_word = 32 / b;
    const int64_t dense = CEIL_DIV(cols * b, (int64_t)32), padded = CEIL_DIV(cols, per_word);
    const StTensor* packed = t.find(".weight_packed");
    const bool old = packed && packed->shape == std::vector<int64_t>{rows, padded} && padded != dense;
    const int64_t width = old ? padded : dense;
    t.require(".weight_packed", {rows, width}, "I32");
    compressed_tensors_check_shape(c);
    if (t.find(".weight_g_idx"))
        fail("%s: %s.weight_g_idx: act-order of kind \"group\" is not supported", t.where.c_str(),
             shown(l.name).c_str());
    if (c.codes_wanted) {
#pragma omp parallel for schedule(static)
        for (int64_t r = 0; r < rows; r++)
            compressed_tensors_unpack(packed->data + 4 * r * width, 1, cols, b, old,
                                      [&](int64_t i, int u) { l.codes[r * cols + i] = (int8_t)(u - shift); });
    }
    if (c.g.symmetric) return;
    const int64_t zero_words = old ? CEIL_DIV(rows, per_word) : CEIL_DIV(rows * b, (int64_t)32);
    const StTensor& zeros = t.require(".weight_zero_point", {zero_words, spans}, "I32");
    if (c.q.scope != QuantScope::group && c.q.scope != QuantScope::channel)
        fail("%s: %s has zero points with strategy %s, which is not supported", t.where.c_str(), shown(l.name).c_str(),
             c.g.strategy.c_str());
    for (int64_t s = 0; s < spans; s++)
        compressed_tensors_unpack(zeros.data + 4 * s, spans, rows, b, old,
                                  [&](int64_t r, int z) { l.grid[r * spans + s].zero = (float)z; });
}

inline void compressed_tensors_read_integers(CompressedTensorsLinear& c) {
    const CompressedTensorsGroup& g = c.g;
    const Quantizer ours = integer_quantizer(g.bits, g.symmetric, c.q.group);
    c.q.spec = ours.spec;
    c.q.enabled = ours.on() && c.q.scope != QuantScope::block;
    if (!c.q.on()) c.no_grid = format("no quantizer here has %d bits with strategy %s", g.bits, g.strategy.c_str());
    if (g.format == "pack-quantized") return compressed_tensors_read_packed(c);
    if (!g.symmetric || g.bits != 8)
        c.refuse(format("%s of %d bits, %s is not supported; 8 bits, symmetric are", g.format.c_str(), g.bits,
                        g.symmetric ? "symmetric" : "asymmetric"));
    const StTensor& w = c.t.require(".weight", {c.l.rows, c.l.cols}, "I8");
    if (c.codes_wanted) memcpy(c.l.codes.data(), w.data, c.l.codes.size());
}

// the codes of the format that compressed-tensors calls `name`
inline QuantSpec compressed_tensors_spec(const std::string& name, int bits) {
    const FormatTraits* f = quant_find([&](const FormatTraits& t) { return name == t.compressed_tensors; });
    return QuantSpec{f->format, bits, true, ScaleRule::amax};
}

inline void compressed_tensors_read_float8(CompressedTensorsLinear& c) {
    QuantizedLinear& l = c.l;
    const CompressedTensorsGroup& g = c.g;
    const int64_t rows = l.rows, cols = l.cols;
    c.q.spec = compressed_tensors_spec(g.exponents ? "mxfp8-quantized" : "float-quantized", 8);
    const StTensor& w = c.t.require(".weight", {rows, cols}, "F8_E4M3");
    if (c.codes_wanted) memcpy(l.codes.data(), w.data, l.codes.size());
    const bool other_tiles = c.q.scope == QuantScope::block && (g.tile[0] != 128 || g.tile[1] != 128 || cols % 128);
    if (!other_tiles && (!g.exponents || g.group == 32)) return;
    c.no_grid = format("no quantizer here has tiles of %d x %d over %lld inputs, or groups of %d", g.tile[0], g.tile[1],
                       (long long)cols, g.group);
    if (!other_tiles || !c.codes_wanted) return;
    // numbers by themselves, since the grid has another shape than ours
    l.values.resize(rows * cols);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < cols; i++)
            l.values[r * cols + i] =
                e4m3_bits_to_float((uint8_t)l.codes[r * cols + i]) * c.scales[r / g.tile[0] * c.spans + i / g.tile[1]];
}

inline void compressed_tensors_read_float4(CompressedTensorsLinear& c) {
    const CompressedTensorsGroup& g = c.g;
    c.q.spec = compressed_tensors_spec(g.exponents ? "mxfp4-pack-quantized" : "nvfp4-pack-quantized", 4);
    if (!g.bytes() || g.group != (g.exponents ? 32 : 16) || c.q.scope != QuantScope::group)
        c.refuse(format("4-bit floats in %s with groups of %d are not supported", shown(g.format).c_str(), g.group));
    const StTensor& packed = c.t.require(".weight_packed", {c.l.rows, c.l.cols / 2}, "U8");
    for (size_t i = 0; i < c.l.codes.size(); i++) c.l.codes[i] = (int8_t)(packed.data[i / 2] >> (i % 2 * 4) & 15);
}

inline void compressed_tensors_read(QuantizedLinear& l, const CompressedTensorsFormat& f, const ModuleTensors& t,
                                    bool codes_wanted = true) {
    const CompressedTensorsGroup* found = compressed_tensors_group(f, l.name, t.where);
    if (!found)
        fail("%s: %s is stored quantized, but no target of config_groups names it", t.where.c_str(),
             shown(l.name).c_str());
    const CompressedTensorsGroup& g = *found;
    CompressedTensorsLinear c = {l, g, t, codes_wanted, compressed_tensors_scale_shape(l, g, t)};
    c.spans = c.shape.size() > 1 ? c.shape[1] : 1;
    c.q.enabled = true;
    c.q.scope = g.strategy == "tensor"    ? QuantScope::tensor
                : g.strategy == "channel" ? QuantScope::channel
                : g.strategy == "block"   ? QuantScope::block
                                          : QuantScope::group;
    c.q.group = c.q.scope == QuantScope::block ? g.tile[1] : c.q.scope == QuantScope::group ? g.group : 0;
    compressed_tensors_read_scales(c, f.scale);
    if (codes_wanted) l.codes.resize(l.rows * l.cols);
    if (g.type == "int") compressed_tensors_read_integers(c);
    else if (g.bits == 8) compressed_tensors_read_float8(c);
    else if (g.bits == 4) compressed_tensors_read_float4(c);
    else c.refuse(format("floats of %d bits are not supported", g.bits));

    l.quantizer = c.q;
    if (c.q.on() && c.no_grid.empty()) return;
    l.no_grid = c.no_grid;
    if (codes_wanted && l.values.empty()) quantized_linear_drop_grid(l, c.no_grid);
    l.quantizer = Quantizer();
    if (codes_wanted) l.codes.clear(), l.grid.clear();
}
