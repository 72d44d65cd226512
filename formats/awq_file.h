// AWQ's container, layout "gemm" (AutoAWQ; read by vLLM, transformers). For a linear X of W [out, in], 4 bits only:
//   X.qweight  I32 [in, out / 8]        X.qzeros  I32 [in / g, out / 8]        X.scales  F16 [in / g, out]
//   W[o, j] = (q - z) scales[j / g, o]; zero points are stored as they are
// quantization_config: quant_method "awq", bits 4, group_size (-1: a column of W^T), zero_point, version "gemm".
// The trap: nibble i of a word (from the lowest) is that of output 8 c + order[i], order = 0 2 4 6 1 3 5 7: what a
// kernel needs that unpacks 16 bits at a time. Source: llm-awq and AutoAWQ, WQLinear_GEMM.
// Fewer bits fit as they are: a grid of 2 or 3 bits is one of 4 whose outer codes are not used.
#pragma once
#include "hf_config.h"
#include "quantized_linear.h"

static constexpr int awq_order[8] = {0, 2, 4, 6, 1, 3, 5, 7};

inline nlohmann::ordered_json awq_config(const Quantizer& q, const std::vector<std::string>& kept) {
    nlohmann::ordered_json j;
    j["quant_method"] = "awq";
    j["bits"] = 4;
    j["group_size"] = q.scope == QuantScope::group ? q.group : -1;
    j["zero_point"] = true;  // they are written also where all are 8
    j["version"] = "gemm";
    j["modules_to_not_convert"] = nullptr;
    if (!kept.empty()) j["modules_to_not_convert"] = kept;
    return j;
}

// words [n / 8] from value(o), o < n
template <class F>
inline void awq_pack(uint32_t* words, int64_t n, F value) {
    for (int64_t c = 0; c < n / 8; c++) {
        uint32_t w = 0;
        for (int i = 0; i < 8; i++) w |= (uint32_t)value(8 * c + awq_order[i]) << (4 * i);
        words[c] = w;
    }
}

template <class F>
inline void awq_unpack(const uint8_t* words, int64_t n, F put) {
    for (int64_t c = 0; c < n / 8; c++) {
        uint32_t w = load_word(words, c);
        for (int i = 0; i < 8; i++) put(8 * c + awq_order[i], (int)(w >> (4 * i) & 15u));
    }
}

inline std::vector<ContainerTensor> awq_tensors(const QuantizedLinear& l) {
    require_integers(l, "AWQ");
    if (l.quantizer.spec.bits > 4) cannot_hold(l, "AWQ", "it has 4 bits");
    if (l.rows % 8)
        cannot_hold(l, "AWQ",
                    format("%lld outputs are no multiple of 8, which is what its words hold", (long long)l.rows));
    require_fp16_scales(l, "AWQ");
    int64_t groups = l.cols / quantized_linear_span(l), rows = l.rows, cols = l.cols;
    StoredCode s = stored_code(l, 4);
    return {
        container_words(".qweight", {cols, rows / 8},
                        [=](const QuantizedLinear& linear, uint32_t* words) {
#pragma omp parallel for schedule(static)
                            for (int64_t j = 0; j < cols; j++)
                                awq_pack(words + j * (rows / 8), rows,
                                         [&](int64_t o) { return linear.codes[o * cols + j] + s.shift; });
                        }),
        container_words(".qzeros", {groups, rows / 8},
                        [=](const QuantizedLinear& linear, uint32_t* words) {
                            for (int64_t g = 0; g < groups; g++)
                                awq_pack(words + g * (rows / 8), rows, [&](int64_t o) {
                                    return stored_zero(linear, s, quantized_linear_grid(linear, o, g));
                                });
                        }),
        container_floats(".scales", "F16", {groups, rows},
                         [=](const QuantizedLinear& linear, float* x) {
                             for (int64_t g = 0; g < groups; g++)
                                 for (int64_t o = 0; o < rows; o++)
                                     x[g * rows + o] = quantized_linear_grid(linear, o, g).scale;
                         }),
    };
}

struct AwqFormat {
    int group = 128;  // -1: a row of W
};

inline AwqFormat awq_format(const nlohmann::json& j, const std::string& where) {
    AwqFormat f;
    int bits = config_int(j, "bits", config_int(j, "w_bit", 4, where), where);
    if (bits != 4) fail("%s: AWQ of %d bits is not supported; 4 is", where.c_str(), bits);
    f.group = config_int(j, "group_size", config_int(j, "q_group_size", 128, where), where);
    if (f.group != -1 && f.group < 1)
        fail("%s: group_size %d; -1 or a positive number is expected", where.c_str(), f.group);
    std::string version = config_string(j, "version", "gemm", where);
    for (char& c : version) c = (char)tolower(c);
    if (version != "gemm") fail("%s: AWQ version %s is not supported; gemm is", where.c_str(), shown(version).c_str());
    return f;
}

inline bool awq_has(const ModuleTensors& t) { return t.find(".qweight") != nullptr; }

inline void awq_read(QuantizedLinear& l, const AwqFormat& f, const ModuleTensors& t, bool codes_wanted = true) {
    int64_t span = f.group == -1 ? l.cols : f.group, rows = l.rows, cols = l.cols;
    if (cols % span || rows % 8)
        fail(
            "%s: %s is [%lld, %lld], which AWQ in groups of %lld cannot hold; the quantization_config is another "
            "model's",
            t.where.c_str(), shown(l.name).c_str(), (long long)rows, (long long)cols, (long long)span);
    int64_t groups = cols / span;
    const StTensor& words = t.require(".qweight", {cols, rows / 8}, "I32");
    const StTensor& zeros = t.require(".qzeros", {groups, rows / 8}, "I32");
    std::vector<float> scales = read_floats(t.require(".scales", {groups, rows}, ""));
    l.grid.resize(rows * groups);
    bool symmetric = true;
    for (int64_t g = 0; g < groups; g++)
        awq_unpack(zeros.data + g * (rows / 8) * 4, rows, [&](int64_t o, int z) {
            l.grid[o * groups + g] = Grid{scales[g * rows + o], (float)z};
            symmetric = symmetric && z == 8;
        });
    l.quantizer = integer_quantizer(4, symmetric, f.group == -1 ? 0 : span);
    bool keep = l.quantizer.on();
    if (!keep) l.no_grid = format("no quantizer here has groups of %lld", (long long)span);
    if (symmetric)
        for (Grid& g : l.grid) g.zero = 0.0f;
    if (!codes_wanted) return;
    l.codes.resize(rows * cols);
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < cols; j++)
        awq_unpack(words.data + j * (rows / 8) * 4, rows,
                   [&](int64_t o, int q) { l.codes[o * cols + j] = (int8_t)(q - 8); });
    if (!keep) quantized_linear_drop_grid(l, l.no_grid);
}
