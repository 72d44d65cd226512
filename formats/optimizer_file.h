// The state of an optimizer in a safetensors file: the array `m` of tensor `model.norm.weight` is named
// model.norm.weight.m; the metadata has the optimizer's name and the number of steps done. A file is read only into an
// optimizer that has the same arrays (arrays_file.h).
#pragma once
#include <string>
#include <vector>
#include "../optimizers/optimizer.cuh"
#include "arrays_file.h"

inline const char* state_type_name(StateType t) {  // safetensors'
    switch (t) {
        case StateType::f32:
            return "F32";
        case StateType::bf16:
            return "BF16";
        case StateType::u8:
            break;
    }
    return "U8";
}

inline std::vector<NamedArray> optimizer_arrays(const Optimizer& o) {
    std::vector<NamedArray> list;
    for (const OptimizerTensor& t : o.tensors)
        for (const StateArray& a : t.state)
            list.push_back(
                {t.name + "." + a.name, state_type_name(a.type), a.rows, a.cols, a.data, state_type_bytes(a.type)});
    return list;
}

// step: optimizer steps done
inline void optimizer_save(const Optimizer& o, int64_t step, const std::string& path) {
    arrays_save(path, optimizer_arrays(o), {{"optimizer", o.config.name}, {"step", std::to_string(step)}}, o.dev);
}

// Returns the steps done. Every array is checked before the first is read.
inline int64_t optimizer_load(Optimizer& o, const std::string& path) {
    const SafetensorsFile f = st_open(path);
    auto metadata = [&](const char* key) {
        auto it = f.metadata.find(key);
        return it == f.metadata.end() ? std::string() : it->second;
    };
    const std::string name = metadata("optimizer"), digits = metadata("step");
    if (name.empty()) fail("%s: not an optimizer's state: its metadata names no optimizer", path.c_str());
    if (name != o.config.name)
        fail("%s: the state of %s, but this run's optimizer is %s; use the same, or begin without the state",
             path.c_str(), shown(name).c_str(), o.config.name.c_str());
    if (digits.empty() || digits.size() > 18 || digits.find_first_not_of("0123456789") != std::string::npos)
        fail("%s: the number of steps in its metadata is %s; the file is damaged", path.c_str(), shown(digits).c_str());
    arrays_load(f, path, optimizer_arrays(o), "another model", o.dev);
    return std::stoll(digits);
}
