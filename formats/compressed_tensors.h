// compressed-tensors (llm-compressor; read by vLLM, transformers) and the "fp8" files of DeepSeek's kind. For a linear
// X of W [out, in]:
//   pack-quantized         int of 1 to 8 bits
//       X.weight_packed      I32 [out, in b / 32 up]   u = q + 2^(b-1), the stream of bits along the inputs
//       X.weight_scale       [out, in / g]             W = (u - z) scale
//       X.weight_zero_point  I32 [out b / 32 up, in / g]   asymmetric: the stream of z along the outputs
//       X.weight_shape       I64 [2]
//   int-quantized          X.weight I8 [out, in], X.weight_scale [out, 1]; activations int8, a scale a token
//   float-quantized        X.weight F8_E4M3 [out, in], X.weight_scale [1], [out, 1], [out, in / g] or tiles
//                          of 128 x 128
//   mxfp8-quantized        X.weight F8_E4M3 [out, in], X.weight_scale U8 [out, in / 32], an exponent plus 127
//   nvfp4-pack-quantized   X.weight_packed U8 [out, in / 2], the earlier code in the low nibble; X.weight_scale F8_E4M3
//                          [out, in / 16]; X.weight_global_scale F32 [1] = t;  W = e2m1 weight_scale / t
//   mxfp4-pack-quantized   the same codes, X.weight_scale U8 [out, in / 32], an exponent plus 127
//   quant_method "fp8"     X.weight F8_E4M3 and X.weight_scale_inv (a factor all the same), tiles of weight_block_size
// quantization_config: config_groups with their targets ("Linear", a module's name, or re: and a regular expression),
// `ignore`, and the format. Source: compressed-tensors, compressors/.
// The trap: until 0.17 3, 5, 6 and 7 bits were padded (10 values of 3 bits a word). Files have no version; the width of
// weight_packed tells them apart. The dense stream of today is written, both are read.
#pragma once
#include <regex>
#include "hf_config.h"
#include "quantized_linear.h"

// ---------------------------------------------------------------------------------------------------------------------
// writing

// which of the formats holds this quantizer; "" if none does. dynamic_activations: W8A8
inline const char* compressed_tensors_format(const Quantizer& q, bool dynamic_activations) {
    switch (q.spec.format) {
        case QuantFormat::integer:
        case QuantFormat::ternary:
            return dynamic_activations ? "int-quantized" : "pack-quantized";
        case QuantFormat::fp8e4m3:
            return "float-quantized";
        case QuantFormat::mxfp8:
            return "mxfp8-quantized";
        case QuantFormat::mxfp4:
            return "mxfp4-pack-quantized";
        case QuantFormat::nvfp4:
            return "nvfp4-pack-quantized";
        default:
            return "";
    }
}

// kept: names of linears that are not quantized
inline nlohmann::ordered_json compressed_tensors_config(const Quantizer& q, bool dynamic_activations,
                                                        const std::vector<std::string>& kept) {
    using J = nlohmann::ordered_json;
    QuantFormat f = q.spec.format;
    bool integer = f == QuantFormat::integer || f == QuantFormat::ternary;
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
    const char* strategy = f == QuantFormat::nvfp4                     ? "tensor_group"
                           : q.scope == QuantScope::group              ? "group"
                           : q.scope == QuantScope::block              ? "block"
                           : q.scope == QuantScope::tensor && !integer ? "tensor"
                                                                       : "channel";
    J weights = args(strategy, q.scope == QuantScope::group ? J(q.group) : J(), false);
    if (q.scope == QuantScope::block) weights["block_structure"] = {128, 128};
    if (f == QuantFormat::mxfp4 || f == QuantFormat::mxfp8) weights["scale_dtype"] = "torch.uint8";
    if (f == QuantFormat::nvfp4) weights["scale_dtype"] = "torch.float8_e4m3fn";
    J j, group;
    const char* name = compressed_tensors_format(q, dynamic_activations);
    group["targets"] = {"Linear"};
    group["weights"] = weights;
    group["input_activations"] = dynamic_activations ? args("token", J(), true) : J();
    group["output_activations"] = nullptr;
    group["format"] = name;
    j["quant_method"] = "compressed-tensors";
    j["format"] = name;
    j["quantization_status"] = "compressed";
    j["global_compression_ratio"] = nullptr;
    j["kv_cache_scheme"] = nullptr;
    j["ignore"] = kept;
    j["ignore"].push_back("lm_head");
    j["config_groups"]["group_0"] = group;
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
                            shape, [=](const QuantizedLinear& l, float* x) {
                                for (int64_t r = 0; r < rows; r++)
                                    for (int64_t s = 0; s < spans; s++)
                                        x[r * spans + s] = quantized_linear_grid(l, r * step, s).scale;
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

inline std::vector<ContainerTensor> compressed_tensors_tensors(const QuantizedLinear& l, bool dynamic_activations) {
    const char* name = "compressed-tensors";
    const Quantizer& q = l.quantizer;
    int64_t rows = l.rows, cols = l.cols, spans = CEIL_DIV(cols, quantized_linear_span(l));
    int b = q.spec.bits;
    ContainerTensor bytes = {".weight", "I8", {rows, cols}, [](const QuantizedLinear& l, uint8_t* to) {
                                 memcpy(to, l.codes.data(), l.codes.size());
                             }};
    auto exponent = [](const QuantizedLinear&, float s) {
        return (uint8_t)(float_bits(s) >> 23);  // 2^-127 is subnormal: exponent 0
    };
    switch (q.spec.format) {
        case QuantFormat::integer:
        case QuantFormat::ternary: {
            require_integers(l, name);
            if (dynamic_activations) {
                if (b != 8 || !q.spec.symmetric || q.scope == QuantScope::group)
                    cannot_hold(l, "int-quantized", "it stores int8:channel:sym");
                return {bytes, compressed_tensors_scales(l, rows, 1)};
            }
            StoredCode s = stored_code(l, b);
            int64_t words = CEIL_DIV(cols * b, (int64_t)32), zero_words = CEIL_DIV(rows * b, (int64_t)32);
            std::vector<ContainerTensor> list = {
                container_words(".weight_packed", {rows, words},
                                [=](const QuantizedLinear& l, uint32_t* to) {
#pragma omp parallel for schedule(static)
                                    for (int64_t r = 0; r < rows; r++)
                                        pack_bits(to + r * words, 1, cols, b,
                                                  [&](int64_t c) { return l.codes[r * cols + c] + s.shift; });
                                }),
                compressed_tensors_scales(l, rows, spans),
                {".weight_shape", "I64", {2}, [](const QuantizedLinear& l, uint8_t* to) {
                     int64_t shape[2] = {l.rows, l.cols};
                     memcpy(to, shape, sizeof(shape));
                 }}};
            if (!q.spec.symmetric)
                list.push_back(container_words(
                    ".weight_zero_point", {zero_words, spans}, [=](const QuantizedLinear& l, uint32_t* to) {
                        for (int64_t g = 0; g < spans; g++)
                            pack_bits(to + g, spans, rows, b,
                                      [&](int64_t r) { return (int)quantized_linear_grid(l, r, g).zero; });
                    }));
            return list;
        }
        case QuantFormat::fp8e4m3: {
            bytes.dtype = "F8_E4M3";
            if (q.scope == QuantScope::block)
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t i = 0; i < spans; i++)
                        if (l.grid[r * spans + i].scale != l.grid[r / 128 * 128 * spans + i].scale)
                            cannot_hold(l, name, "rows of a tile have scales of their own");
            int64_t scale_rows = q.scope == QuantScope::tensor  ? 1
                                 : q.scope == QuantScope::block ? CEIL_DIV(rows, (int64_t)128)
                                                                : rows;
            return {bytes, compressed_tensors_scales(l, scale_rows, spans)};
        }
        case QuantFormat::mxfp8:
            bytes.dtype = "F8_E4M3";
            return {bytes, compressed_tensors_byte_scales("U8", rows, spans, exponent)};
        case QuantFormat::mxfp4:
        case QuantFormat::nvfp4: {
            ContainerTensor packed = {
                ".weight_packed", "U8", {rows, cols / 2}, [](const QuantizedLinear& l, uint8_t* to) {
                    for (size_t i = 0; i < l.codes.size() / 2; i++)
                        to[i] = (uint8_t)((l.codes[2 * i] & 15) | l.codes[2 * i + 1] << 4);
                }};
            if (q.spec.format == QuantFormat::mxfp4)
                return {packed, compressed_tensors_byte_scales("U8", rows, spans, exponent)};
            if (!nvfp4_tensor_scale_fits(l, l.tensor_scale))
                cannot_hold(l, name, "its scales are not e4m3 numbers over one scale of the tensor");
            return {packed,
                    compressed_tensors_byte_scales(
                        "F8_E4M3", rows, spans,
                        [](const QuantizedLinear& l, float s) { return float_to_e4m3_bits(s * l.tensor_scale); }),
                    container_floats(".weight_global_scale", "F32", {1},
                                     [](const QuantizedLinear& l, float* x) { *x = l.tensor_scale; })};
        }
        case QuantFormat::nf4:
            cannot_hold(l, name, "it has no NF4; export bnb-nf4");
        default:
            cannot_hold(l, name, "its 8-bit floats are e4m3");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// reading

struct CompressedTensorsGroup {
    std::vector<std::string> targets;
    std::string format, type, strategy;
    int bits = 0, group = 0;
    int tile[2] = {128, 128};
    bool symmetric = true, exponents = false;  // exponents: scales are bytes of e8m0
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
        }
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

inline const CompressedTensorsGroup* compressed_tensors_group(const CompressedTensorsFormat& f, const std::string& name,
                                                              const std::string& where) {
    for (const CompressedTensorsGroup& g : f.groups)
        for (const std::string& target : g.targets) {
            if (target == "Linear" || target == name) return &g;
            if (target.compare(0, 3, "re:") != 0) continue;
            try {
                // as Python's re.match: from the beginning, not to the end
                if (std::regex_search(name, std::regex(target.substr(3)), std::regex_constants::match_continuous))
                    return &g;
            } catch (const std::regex_error&) {
                fail("%s: the target %s is not a regular expression that can be read here", where.c_str(),
                     shown(target).c_str());
            }
        }
    return nullptr;
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

inline void compressed_tensors_read(QuantizedLinear& l, const CompressedTensorsFormat& f, const ModuleTensors& t,
                                    bool codes_wanted = true) {
    const CompressedTensorsGroup* found = compressed_tensors_group(f, l.name, t.where);
    if (!found)
        fail("%s: %s is stored quantized, but no target of config_groups names it", t.where.c_str(),
             shown(l.name).c_str());
    const CompressedTensorsGroup& g = *found;
    const int64_t rows = l.rows, cols = l.cols;
    Quantizer q;
    q.enabled = true;
    std::vector<int64_t> shape = compressed_tensors_scale_shape(l, g, t);
    int64_t spans = shape.size() > 1 ? shape[1] : 1;
    q.scope = g.strategy == "tensor"    ? QuantScope::tensor
              : g.strategy == "channel" ? QuantScope::channel
              : g.strategy == "block"   ? QuantScope::block
                                        : QuantScope::group;
    q.group = q.scope == QuantScope::block ? g.tile[1] : q.scope == QuantScope::group ? g.group : 0;

    // scales
    std::vector<float> scales;
    const StTensor* stored = t.find(f.scale);
    if (!stored) t.require(f.scale, shape, "");
    if (g.strategy == "tensor" && stored->shape.empty()) shape = {};
    if (g.strategy == "channel" && stored->shape.size() == 1) shape = {rows};
    bool bytes = g.exponents || g.format == "nvfp4-pack-quantized";
    t.require(f.scale, shape,
              g.exponents && stored->dtype != "F8_E8M0" ? "U8"
              : bytes && !g.exponents                   ? "F8_E4M3"
                                                        : "");
    if (!bytes) {
        scales = read_floats(*stored);
    } else {
        float t_scale = 1.0f;
        if (!g.exponents) {
            t_scale = read_floats(t.require(".weight_global_scale", {1}, "F32"))[0];
            if (!(t_scale > 0.0f)) t.damaged(".weight_global_scale", "it is not positive");
            l.tensor_scale = t_scale;
        }
        scales.resize(stored->count);
        for (int64_t i = 0; i < stored->count; i++) {
            if (stored->data[i] == (g.exponents ? 255 : 127))
                t.damaged(f.scale, format("scale %lld is not a number", (long long)i));
            scales[i] = g.exponents ? quant_power_of_two((int)stored->data[i] - 127)
                                    : e4m3_bits_to_float(stored->data[i]) / t_scale;
        }
    }
    int64_t high = q.scope == QuantScope::block ? g.tile[0] : 1;
    l.grid.resize(q.scope == QuantScope::tensor ? 1 : rows * spans);
    for (size_t i = 0; i < l.grid.size(); i++) l.grid[i] = Grid{scales[i / spans / high * spans + i % spans], 0.0f};

    // codes
    int64_t n = rows * cols;
    if (codes_wanted) l.codes.resize(n);
    std::string why;
    if (g.type == "int") {
        q.spec.bits = g.bits;
        q.spec.symmetric = g.symmetric;
        q.enabled = integer_quantizer(g.bits, g.symmetric, q.group).on() && q.scope != QuantScope::block;
        if (!q.on()) why = format("no quantizer here has %d bits with strategy %s", g.bits, g.strategy.c_str());
        if (g.format == "pack-quantized") {
            int b = g.bits;
            int64_t dense = CEIL_DIV(cols * b, (int64_t)32), per_word = 32 / b, padded = CEIL_DIV(cols, per_word);
            const StTensor* packed = t.find(".weight_packed");
            bool old = packed && packed->shape == std::vector<int64_t>{rows, padded} && padded != dense;
            t.require(".weight_packed", {rows, old ? padded : dense}, "I32");
            const StTensor& stated = t.require(".weight_shape", {2}, "");
            int64_t size[2] = {0, 0};
            for (int i = 0; i < 2; i++) {
                if (stated.dtype == "I64") memcpy(&size[i], stated.data + 8 * i, 8);
                else if (stated.dtype == "I32") size[i] = (int)load_word(stated.data, i);
            }
            if (size[0] != rows || size[1] != cols)
                t.damaged(".weight_shape", format("it says [%lld, %lld]", (long long)size[0], (long long)size[1]));
            if (t.find(".weight_g_idx"))
                fail("%s: %s.weight_g_idx: act-order of kind \"group\" is not supported", t.where.c_str(),
                     shown(l.name).c_str());
            int64_t width = old ? padded : dense;
            int shift = 1 << (b - 1);
            if (codes_wanted) {
#pragma omp parallel for schedule(static)
                for (int64_t r = 0; r < rows; r++) {
                    const uint8_t* from = packed->data + 4 * r * width;
                    int8_t* to = l.codes.data() + r * cols;
                    if (!old) unpack_bits(from, 1, cols, b, [&](int64_t c, int u) { to[c] = (int8_t)(u - shift); });
                    else
                        for (int64_t c = 0; c < cols; c++)
                            to[c] =
                                (int8_t)((int)(load_word(from, c / per_word) >> (c % per_word * b) & ((1u << b) - 1)) -
                                         shift);
                }
            }
            if (!g.symmetric) {
                int64_t zero_dense = CEIL_DIV(rows * b, (int64_t)32), zero_padded = CEIL_DIV(rows, per_word);
                const StTensor& zeros = t.require(".weight_zero_point", {old ? zero_padded : zero_dense, spans}, "I32");
                if (q.scope != QuantScope::group && q.scope != QuantScope::channel)
                    fail("%s: %s has zero points with strategy %s, which is not supported", t.where.c_str(),
                         shown(l.name).c_str(), g.strategy.c_str());
                for (int64_t s = 0; s < spans; s++) {
                    if (!old)
                        unpack_bits(zeros.data + 4 * s, spans, rows, b,
                                    [&](int64_t r, int z) { l.grid[r * spans + s].zero = (float)z; });
                    else
                        for (int64_t r = 0; r < rows; r++)
                            l.grid[r * spans + s].zero =
                                (float)(load_word(zeros.data, r / per_word * spans + s) >> (r % per_word * b) &
                                        ((1u << b) - 1));
                }
            }
        } else {
            if (!g.symmetric || g.bits != 8)
                fail("%s: %s: %s of %d bits, %s is not supported; 8 bits, symmetric are", t.where.c_str(),
                     shown(l.name).c_str(), g.format.c_str(), g.bits, g.symmetric ? "symmetric" : "asymmetric");
            const StTensor& w = t.require(".weight", {rows, cols}, "I8");
            if (codes_wanted) memcpy(l.codes.data(), w.data, n);
        }
    } else if (g.bits == 8) {
        q.spec = QuantSpec{g.exponents ? QuantFormat::mxfp8 : QuantFormat::fp8e4m3, 8, true, ScaleRule::amax};
        const StTensor& w = t.require(".weight", {rows, cols}, "F8_E4M3");
        if (codes_wanted) memcpy(l.codes.data(), w.data, n);
        bool other_tiles = q.scope == QuantScope::block && (g.tile[0] != 128 || g.tile[1] != 128 || cols % 128);
        if (other_tiles || (g.exponents && g.group != 32)) {
            why = format("no quantizer here has tiles of %d x %d over %lld inputs, or groups of %d", g.tile[0],
                         g.tile[1], (long long)cols, g.group);
            if (other_tiles) {  // numbers by themselves, since the grid has another shape than ours
                q.enabled = false;
                if (codes_wanted) {
                    l.values.resize(n);
                    for (int64_t r = 0; r < rows; r++)
                        for (int64_t c = 0; c < cols; c++)
                            l.values[r * cols + c] = e4m3_bits_to_float((uint8_t)l.codes[r * cols + c]) *
                                                     scales[r / g.tile[0] * spans + c / g.tile[1]];
                }
            }
        }
    } else if (g.bits == 4) {
        int group = g.exponents ? 32 : 16;
        q.spec = QuantSpec{g.exponents ? QuantFormat::mxfp4 : QuantFormat::nvfp4, 4, true, ScaleRule::amax};
        if (!bytes || g.group != group || q.scope != QuantScope::group)
            fail("%s: %s: 4-bit floats in %s with groups of %d are not supported", t.where.c_str(),
                 shown(l.name).c_str(), shown(g.format).c_str(), g.group);
        const StTensor& packed = t.require(".weight_packed", {rows, cols / 2}, "U8");
        if (codes_wanted)
            for (int64_t i = 0; i < n; i++) l.codes[i] = (int8_t)(packed.data[i / 2] >> (i % 2 * 4) & 15);
    } else {
        fail("%s: floats of %d bits are not supported", t.where.c_str(), g.bits);
    }
    l.quantizer = q;
    if (q.on() && why.empty()) return;
    l.no_grid = why;
    if (!codes_wanted) {
        l.quantizer = Quantizer();
        return;
    }
    if (l.values.empty()) quantized_linear_drop_grid(l, why);
    l.quantizer = Quantizer();
    l.codes.clear(), l.grid.clear();
}
