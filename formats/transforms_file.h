// input_transforms.safetensors beside a model whose config.json says "input_transforms": true: the learned transforms of
// the inputs of its linears (model/input_transform.h, methods/flatquant.cuh). No other program knows them; one that leaves
// them out computes with wrong weights. For each linear, L.P with P one of qkv, o, gate_up, down, all F32:
//   layers.L.P.left [n1,n1]   .right [n2,n2]   .scale [n1 n2]   .clip [1], the share of a row's range that Q_x covers
// The trap: numbers that are not finite, a scale of 0 or a singular matrix would pass unseen into everything, so that they
// are refused here.
#pragma once
#include <string>
#include <vector>
#include "../model/parameters.cuh"
#include "hf_config.h"
#include "safetensors.h"

inline const char* transforms_file_name = "input_transforms.safetensors";

inline std::string transform_name(int i) {
    const char* products[] = {"qkv", "o", "gate_up", "down"};
    return format("layers.%d.%s.", i / 4, products[i % 4]);
}

// the file, if the configuration has transforms
inline void transforms_save(const ModelConfig& c, const std::string& folder) {
    if (!c.transformed) return;
    std::vector<StWriteTensor> tensors;
    for (size_t i = 0; i < c.transforms->size(); i++) {
        const InputTransform& t = (*c.transforms)[i];
        auto add = [&](const char* part, const std::vector<int64_t>& shape, const float* values) {
            tensors.push_back(st_from_float(transform_name((int)i) + part, "F32", shape, values));
        };
        add("left", {t.n1, t.n1}, t.p1.data());
        add("right", {t.n2, t.n2}, t.p2.data());
        add("scale", {(int64_t)t.n1 * t.n2}, t.scale.data());
        add("clip", {1}, &t.clip);
    }
    st_write(folder + "/" + transforms_file_name, tensors, {{"format", "pt"}});
}

// c, of config.json in this folder, gets what the file holds
inline void transforms_load(ModelConfig& c, const std::string& folder) {
    if (!c.transformed) return;
    const std::string path = folder + "/" + transforms_file_name;
    if (!file_exists(path))
        fail("%s is missing, and config.json says that inputs are transformed; copy the whole folder", path.c_str());
    const SafetensorsFile f = st_open(path);
    auto all = std::make_shared<std::vector<InputTransform>>();
    for (int i = 0; i < 4 * c.num_hidden_layers; i++) {
        const int64_t inputs[] = {c.hidden_size, (int64_t)c.num_attention_heads * c.head_dim, c.hidden_size,
                                  c.intermediate_size};
        Kronecker k;
        if (!kronecker_split(k, inputs[i % 4]))
            fail("%s: %lld inputs have no transform; the file belongs to another model", path.c_str(),
                 (long long)inputs[i % 4]);
        const std::string name = transform_name(i);
        auto read = [&](const char* part, const std::vector<int64_t>& shape) {
            const StTensor& from = st_require(f.tensors, name + part, shape, path);
            std::vector<float> to((size_t)from.count);
            st_read_float(from, to.data());
            for (float x : to)
                if (!std::isfinite(x))
                    fail("%s: tensor %s%s holds a number that is not finite", path.c_str(), name.c_str(), part);
            return to;
        };
        InputTransform t;
        t.n1 = k.n1, t.n2 = k.n2;
        t.p1 = read("left", {k.n1, k.n1}), t.p2 = read("right", {k.n2, k.n2});
        t.scale = read("scale", {k.N()}), t.clip = read("clip", {1})[0];
        bool bad = !(t.clip > 0.0f && t.clip <= 1.0f) || transform_numbers(t).empty();
        for (float r : t.scale) bad = bad || r == 0.0f;
        if (bad) fail("%s: %s* is no transform that can be undone; the file is damaged", path.c_str(), name.c_str());
        all->push_back(t);
    }
    c.transforms = all;
}
