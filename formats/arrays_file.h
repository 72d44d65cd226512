// Arrays of a run's state in a safetensors file, each under its name. A file is read only into the same arrays, all of
// them; whatever differs is an error that names it and leaves the state as it was.
#pragma once
#include <map>
#include <string>
#include <vector>
#include "../runtime/named_array.h"
#include "safetensors.h"

inline void arrays_save(const std::string& path, const std::vector<NamedArray>& arrays,
                        std::map<std::string, std::string> metadata, Device dev) {
    std::vector<StWriteTensor> list;
    for (const NamedArray& a : arrays)
        list.push_back({a.name, a.dtype, {a.rows, a.cols}, [a, dev](int64_t first, int64_t n, uint8_t* dst) {
                            copy_to_host(dst, static_cast<const char*>(a.data) + (size_t)first * a.element,
                                         (size_t)n * a.element, dev);
                        }});
    metadata["format"] = "pt";
    st_write(path, list, metadata);
}

// what: whose state the file is if it is not this one's, as in "another model"
inline void arrays_load(const SafetensorsFile& f, const std::string& path, const std::vector<NamedArray>& arrays,
                        const char* what, Device dev) {
    std::map<std::string, const NamedArray*> known;
    for (const NamedArray& a : arrays) {
        const StTensor* s = st_find(f.tensors, a.name);
        const std::vector<int64_t> shape = {a.rows, a.cols};
        if (!s) fail("%s: %s is missing; is it the state of %s?", path.c_str(), a.name.c_str(), what);
        if (s->dtype != a.dtype || s->shape != shape)
            fail("%s: %s is %s %s, but %s %s is needed; is it the state of %s?", path.c_str(), a.name.c_str(),
                 s->dtype.c_str(), shape_text(s->shape).c_str(), a.dtype, shape_text(shape).c_str(), what);
        known[a.name] = &a;
    }
    for (const auto& [name, s] : f.tensors)
        if (!known.count(name))
            fail("%s: %s belongs to nothing that is trained here; is it the state of %s?", path.c_str(),
                 shown(name).c_str(), what);
    for (const NamedArray& a : arrays) copy_to_device(a.data, st_find(f.tensors, a.name)->data, a.bytes(), dev);
    device_synchronize(dev);  // the file goes
}
