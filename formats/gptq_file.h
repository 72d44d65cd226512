// GPTQ's container (AutoGPTQ, GPTQModel; read by vLLM, transformers). For a linear X of W [out, in], b in {2, 3, 4, 8}:
//   X.qweight  I32 [in b / 32, out]        the stream of bits along the inputs, one for each output
//   X.qzeros   I32 [in / g, out b / 32]    the stream along the outputs, one for each group
//   X.scales   F16 [in / g, out]
//   X.g_idx    I32 [in]                    the group of each input; j / g unless GPTQ permuted them (act-order)
//   W[o, j] = scales[g_idx[j], o] (q - z)
// quantization_config: quant_method "gptq", bits, group_size (-1: a row), desc_act, sym, checkpoint_format.
// The trap: checkpoint_format "gptq" (v1) stores z - 1, "gptq_v2" stores z. v1 has no place for z = 0: the word of
// z - 1 = -1 would spoil its neighbours. Source: the pack() functions of AutoGPTQ and GPTQModel.
#pragma once
#include "hf_config.h"
#include "quantized_linear.h"

// ---------------------------------------------------------------------------------------------------------------------
// writing

inline nlohmann::ordered_json gptq_config(const Quantizer& q, bool v2, const std::vector<std::string>& kept) {
    nlohmann::ordered_json j;
    j["quant_method"] = "gptq";
    j["bits"] = q.spec.bits;
    j["group_size"] = q.scope == QuantScope::group ? q.group : -1;
    j["desc_act"] = false;
    j["sym"] = q.spec.symmetric;
    j["checkpoint_format"] = v2 ? "gptq_v2" : "gptq";
    j["lm_head"] = false;
    j["pack_dtype"] = "int32";
    j["meta"] = {{"quantizer", {"train_qrl:0.1.0"}}};
    if (!kept.empty()) {
        j["dynamic"] = nlohmann::ordered_json::object();
        for (const std::string& name : kept) j["dynamic"]["-:^" + name + "$"] = nlohmann::ordered_json::object();
    }
    return j;
}

// The tensors of l; fails where the container cannot hold it
inline std::vector<ContainerTensor> gptq_tensors(const QuantizedLinear& l, bool v2) {
    const char* name = v2 ? "GPTQ v2" : "GPTQ";
    require_integers(l, name);
    int b = l.quantizer.spec.bits, unit = b == 3 ? 32 : 32 / b;
    if (b != 2 && b != 3 && b != 4 && b != 8) cannot_hold(l, name, "it has 2, 3, 4 and 8 bits");
    for (int64_t n : {l.rows, l.cols})
        if (n % unit)
            cannot_hold(l, name,
                        format("%lld %s are no multiple of %d, which is what its words hold", (long long)n,
                               n == l.rows ? "outputs" : "inputs", unit));
    require_fp16_scales(l, name);
    if (!v2 && !l.quantizer.spec.symmetric)
        for (const Grid& g : l.grid)
            if (g.zero == 0.0f) cannot_hold(l, name, "a zero point is 0, which it stores as -1; export gptq_v2");
    int64_t span = quantized_linear_span(l), groups = l.cols / span, rows = l.rows, cols = l.cols;
    StoredCode s = stored_code(l, b);
    return {
        container_words(".qweight", {cols * b / 32, rows},
                        [=](const QuantizedLinear& linear, uint32_t* words) {
#pragma omp parallel for schedule(static)
                            for (int64_t o = 0; o < rows; o++)
                                pack_bits(words + o, rows, cols, b,
                                          [&](int64_t i) { return linear.codes[o * cols + i] + s.shift; });
                        }),
        container_words(".qzeros", {groups, rows * b / 32},
                        [=](const QuantizedLinear& linear, uint32_t* words) {
                            for (int64_t g = 0; g < groups; g++)
                                pack_bits(words + g * (rows * b / 32), 1, rows, b, [&](int64_t o) {
                                    return stored_zero(linear, s, quantized_linear_grid(linear, o, g)) - !v2;
                                });
                        }),
        container_floats(".scales", "F16", {groups, rows},
                         [=](const QuantizedLinear& linear, float* x) {
                             for (int64_t g = 0; g < groups; g++)
                                 for (int64_t o = 0; o < rows; o++)
                                     x[g * rows + o] = quantized_linear_grid(linear, o, g).scale;
                         }),
        container_words(".g_idx", {cols},
                        [=](const QuantizedLinear&, uint32_t* words) {
                            for (int64_t j = 0; j < cols; j++) words[j] = (uint32_t)(j / span);
                        }),
    };
}

// ---------------------------------------------------------------------------------------------------------------------
// reading

struct GptqFormat {
    int bits = 4, group = 128;  // group -1: a row
    bool v2 = false;
};

inline GptqFormat gptq_format(const nlohmann::json& j, const std::string& where) {
    GptqFormat f;
    f.bits = config_required_int(j, "bits", where);
    if (f.bits != 2 && f.bits != 3 && f.bits != 4 && f.bits != 8)
        fail("%s: GPTQ of %d bits is not supported; 2, 3, 4 and 8 are", where.c_str(), f.bits);
    f.group = config_required_int(j, "group_size", where);
    if (f.group != -1 && f.group < 1)
        fail("%s: group_size %d; -1 or a positive number is expected", where.c_str(), f.group);
    std::string layout =
        config_string(j, "checkpoint_format", config_string(j, "format", "gptq", where).c_str(), where);
    if (layout != "gptq" && layout != "gptq_v2")
        fail("%s: checkpoint_format %s is not supported; gptq and gptq_v2 are", where.c_str(), shown(layout).c_str());
    f.v2 = layout == "gptq_v2";
    std::string words = config_string(j, "pack_dtype", "int32", where);
    if (words != "int32") fail("%s: pack_dtype %s is not supported; int32 is", where.c_str(), shown(words).c_str());
    return f;
}

inline bool gptq_has(const ModuleTensors& t) { return t.find(".qweight") != nullptr; }

// l.name, rows and cols are given. codes_wanted false: only what the quantizer is
inline void gptq_read(QuantizedLinear& l, const GptqFormat& f, const ModuleTensors& t, bool codes_wanted = true) {
    const int b = f.bits, unit = b == 3 ? 32 : 32 / b, mask = (1 << b) - 1;
    int64_t span = f.group == -1 ? l.cols : f.group, rows = l.rows, cols = l.cols;
    if (cols % span || cols % unit || rows % unit)
        fail(
            "%s: %s is [%lld, %lld], which GPTQ of %d bits in groups of %lld cannot hold; the quantization_config is "
            "another model's",
            t.where.c_str(), shown(l.name).c_str(), (long long)rows, (long long)cols, b, (long long)span);
    int64_t groups = cols / span;
    const StTensor& words = t.require(".qweight", {cols * b / 32, rows}, "I32");
    const StTensor& zero_words = t.require(".qzeros", {groups, rows * b / 32}, "I32");
    std::vector<float> scales = read_floats(t.require(".scales", {groups, rows}, ""));
    std::vector<int> group_of(cols);
    bool in_order = true;
    const StTensor* order = t.find(".g_idx") ? &t.require(".g_idx", {cols}, "I32") : nullptr;
    for (int64_t j = 0; j < cols; j++) {
        group_of[j] = order ? (int)load_word(order->data, j) : (int)(j / span);
        if (group_of[j] < 0 || group_of[j] >= groups)
            t.damaged(".g_idx",
                      format("input %lld is in group %d of %lld", (long long)j, group_of[j], (long long)groups));
        in_order = in_order && group_of[j] == j / span;
    }
    std::vector<Grid> grid(rows * groups);  // [rows, groups]
    bool symmetric = true;
    for (int64_t g = 0; g < groups; g++)
        unpack_bits(zero_words.data + g * (rows * b / 32) * 4, 1, rows, b, [&](int64_t o, int stored) {
            int z = f.v2 ? stored : (stored + 1) & mask;
            grid[o * groups + g] = Grid{scales[g * rows + o], (float)z};
            symmetric = symmetric && z == 1 << (b - 1);
        });
    l.quantizer = integer_quantizer(b, symmetric, f.group == -1 ? 0 : span);
    if (!in_order || !l.quantizer.on()) {
        l.no_grid = in_order ? format("no quantizer here has %d bits in groups of %lld", b, (long long)span)
                             : "its inputs are grouped out of order (act-order)";
        l.quantizer = Quantizer();
        if (!codes_wanted) return;
        l.values.resize(rows * cols);
#pragma omp parallel for schedule(static)
        for (int64_t o = 0; o < rows; o++)
            unpack_bits(words.data + 4 * o, rows, cols, b, [&](int64_t j, int q) {
                Grid g = grid[o * groups + group_of[j]];
                l.values[o * cols + j] = ((float)q - g.zero) * g.scale;
            });
        return;
    }
    if (symmetric)
        for (Grid& g : grid) g.zero = 0.0f;
    l.grid = std::move(grid);
    if (!codes_wanted) return;
    l.codes.resize(rows * cols);
#pragma omp parallel for schedule(static)
    for (int64_t o = 0; o < rows; o++)
        unpack_bits(words.data + 4 * o, rows, cols, b,
                    [&](int64_t j, int q) { l.codes[o * cols + j] = (int8_t)(q - (1 << (b - 1))); });
}
