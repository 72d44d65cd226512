// The state of an optimizer in a safetensors file: the array `m` of tensor `model.norm.weight` is named
// model.norm.weight.m; the metadata has the optimizer's name and the number of steps done. A file is read only into an
// optimizer that has the same arrays, all of them; whatever differs is an error that leaves the state as it was.
#pragma once
#include <cinttypes>
#include <map>
#include <string>
#include <vector>
#include "../optimizers/optimizer.cuh"
#include "safetensors.h"

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

// step: optimizer steps done
inline void optimizer_save(const Optimizer& o, int64_t step, const std::string& path) {
    std::vector<StWriteTensor> list;
    for (const OptimizerTensor& t : o.tensors)
        for (const StateArray& a : t.state) {
            const char* data = static_cast<const char*>(a.data);
            const size_t size = state_type_bytes(a.type);
            const Device dev = o.dev;
            list.push_back({t.name + "." + a.name,
                            state_type_name(a.type),
                            {a.rows, a.cols},
                            [=](int64_t first, int64_t n, uint8_t* dst) {
                                copy_to_host(dst, data + first * size, (size_t)n * size, dev);
                            }});
        }
    st_write(path, list, {{"format", "pt"}, {"optimizer", o.config.name}, {"step", std::to_string(step)}});
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
    size_t arrays = 0;
    for (const OptimizerTensor& t : o.tensors)
        for (const StateArray& a : t.state) {
            const std::string full = t.name + "." + a.name;
            const StTensor* s = st_find(f.tensors, full);
            const std::vector<int64_t> shape = {a.rows, a.cols};
            if (!s) fail("%s: %s is missing; is it the state of another model?", path.c_str(), full.c_str());
            if (s->dtype != state_type_name(a.type) || s->shape != shape)
                fail("%s: %s is %s %s, but %s %s is needed; is it the state of another model?", path.c_str(),
                     full.c_str(), s->dtype.c_str(), shape_text(s->shape).c_str(), state_type_name(a.type),
                     shape_text(shape).c_str());
            arrays++;
        }
    if (arrays != f.tensors.size())
        for (const auto& [full, s] : f.tensors) {
            bool known = false;
            for (const OptimizerTensor& t : o.tensors)
                for (const StateArray& a : t.state) known |= full == t.name + "." + a.name;
            if (!known)
                fail("%s: %s belongs to nothing that is trained here; is it the state of another model?", path.c_str(),
                     shown(full).c_str());
        }
    for (const OptimizerTensor& t : o.tensors)
        for (const StateArray& a : t.state)
            copy_to_device(a.data, st_find(f.tensors, t.name + "." + a.name)->data, a.bytes(), o.dev);
    device_synchronize(o.dev);  // the file goes
    return std::stoll(digits);
}
