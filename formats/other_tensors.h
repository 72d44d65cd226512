// What the files of a model hold beyond the tensors that its configuration asks for. A bias of o_proj, a norm more or a
// layer more would change what the model computes, and left out without a word it computes something else: such a file
// is refused. What belongs to nothing here (the head of another task, say) is named and left out; buffers that other
// programs store, and biases of zero as GPTQ writes them, say nothing.
#pragma once
#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <vector>
#include "../model/parameters.cuh"
#include "gguf.h"
#include "quantized_model.h"

struct OtherTensors {
    std::vector<std::string> change, belong_to_nothing;
};

inline bool ends_with(const std::string& text, const std::string& end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// a buffer that is computed from the configuration: of rotary embeddings, of the causal mask
inline bool is_buffer(const std::string& name) {
    for (const char* end : {"rotary_emb.inv_freq", "attn.masked_bias", "attn_rot_embd.weight"})
        if (ends_with(name, end)) return true;
    return false;
}

// what a container has beside a linear's weight, or in its place
inline bool is_container_part(const std::string& suffix) {
    static const std::string parts =
        " qweight qzeros scales g_idx "  // gptq, awq
        "weight_packed weight_shape weight_scale weight_scale_inv weight_zero_point weight_global_scale weight_g_idx "
        "input_scale input_zero_point input_global_scale output_scale output_zero_point activation_scale k_scale "
        "v_scale "
        "weight.absmax weight.quant_map weight.nested_absmax weight.nested_quant_map ";
    const bool known =
        !suffix.empty() && suffix.find(' ') == suffix.npos && parts.find(" " + suffix + " ") != parts.npos;
    return known || suffix.rfind("weight.quant_state.", 0) == 0;
}

// The module and the rest of a tensor's name: "model.layers.0.mlp.up_proj" and "weight.absmax", where the module has a
// weight among `expected`; else the name up to its last dot
inline std::string split_module(const std::string& name, const std::set<std::string>& expected, std::string* rest) {
    for (size_t dot = name.find('.'); dot != std::string::npos; dot = name.find('.', dot + 1))
        if (expected.count(name.substr(0, dot) + ".weight")) {
            *rest = name.substr(dot + 1);
            return name.substr(0, dot);
        }
    const size_t last = name.rfind('.');
    *rest = last == std::string::npos ? "" : name.substr(last + 1);
    return name.substr(0, last);
}

// Tensors: a map from names to what has data [bytes]. expected: names with a use; layer: how the names of a layer begin;
// part(suffix): is it known beside a weight?
template <class Tensors, class Part>
OtherTensors other_tensors(const Tensors& tensors, const std::set<std::string>& expected, const std::string& layer,
                           const Part& part) {
    OtherTensors others;
    for (const auto& [name, t] : tensors) {
        if (expected.count(name) || is_buffer(name)) continue;
        std::string rest;
        const bool of_module = expected.count(split_module(name, expected, &rest) + ".weight") != 0;
        if ((of_module || name.rfind(layer, 0) == 0) && part(rest)) continue;
        if (rest == "bias" && std::all_of(t.data, t.data + t.bytes, [](uint8_t byte) { return byte == 0; })) continue;
        (of_module || name.rfind(layer, 0) == 0 ? others.change : others.belong_to_nothing).push_back(name);
    }
    return others;
}

inline void check_other_tensors(const OtherTensors& others, const ModelConfig& c, const std::string& path) {
    auto some = [](const std::vector<std::string>& names) {
        std::string text;
        for (size_t i = 0; i < std::min(names.size(), (size_t)3); i++) text += (i ? ", " : "") + shown(names[i]);
        return text + (names.size() > 3 ? format(" and %zu more", names.size() - 3) : "");
    };
    if (!others.change.empty())
        fail(
            "%s holds tensors that change what the model computes and that its configuration (%s of %d layers) does "
            "not "
            "have: %s; this program would leave them out",
            path.c_str(), c.model_type.c_str(), c.num_hidden_layers, some(others.change).c_str());
    if (!others.belong_to_nothing.empty())
        note_once(format("note: %s holds tensors that are no part of this model and are left out: %s", path.c_str(),
                         some(others.belong_to_nothing).c_str()));
}

inline std::set<std::string> expected_tensors(const ModelConfig& c) {
    size_t n;
    std::set<std::string> names;
    for (const ParamTensor& t : model_tensors(c, &n)) names.insert(t.name);
    names.insert("lm_head.weight");  // where the head is tied it is equal to the embedding
    return names;
}

inline void check_other_tensors(const SafetensorsSet& set, const QuantizedFolder& folder, const ModelConfig& c) {
    const bool quantized = folder.container != Container::none;
    check_other_tensors(
        other_tensors(set.tensors, expected_tensors(c), "model.layers.",
                      [&](const std::string& suffix) { return quantized && is_container_part(suffix); }),
        c, folder.path);
}

inline void check_other_tensors(const GgufFile& f, const ModelConfig& c) {
    std::set<std::string> names = {"rope_freqs.weight"};
    for (const std::string& name : expected_tensors(c)) names.insert(hf_to_gguf_name(name));
    check_other_tensors(other_tensors(f.tensors, names, "blk.",
                                      [](const std::string& suffix) {  // NVFP4's scales of a tensor and of its input
                                          return suffix == "scale" || suffix == "input_scale";
                                      }),
                        c, f.path);
}

// Are the numbers of two tensors the same?
inline bool st_same_numbers(const StTensor& a, const StTensor& b) {
    if (a.shape != b.shape) return false;
    if (a.dtype == b.dtype) return memcmp(a.data, b.data, a.bytes) == 0;
    const int64_t most = 1 << 20;
    std::vector<float> x(std::min(most, a.count)), y(x.size());
    for (int64_t first = 0; first < a.count; first += most) {
        const int64_t n = std::min(most, a.count - first);
        st_read_float(a, x.data(), first, n), st_read_float(b, y.data(), first, n);
        if (!std::equal(x.begin(), x.begin() + n, y.begin())) return false;
    }
    return true;
}

// Is the head the embedding, as the configuration says? A file may hold another one all the same, which then counts, as
// for transformers 5.
inline bool st_head_is_tied(const SafetensorsSet& set, bool tie_word_embeddings, const std::string& path) {
    const StTensor *head = st_find(set.tensors, "lm_head.weight"),
                   *embed = st_find(set.tensors, "model.embed_tokens.weight");
    if (!tie_word_embeddings || !head || !embed || st_same_numbers(*head, *embed)) return tie_word_embeddings;
    note_once(
        format("note: %s: tie_word_embeddings is true, but lm_head.weight is not the embedding; the head of the "
               "file is used, and the model is saved untied",
               path.c_str()));
    return false;
}
