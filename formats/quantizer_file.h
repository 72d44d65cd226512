// quantizer.safetensors beside a checkpoint: the grids of a run whose scales are kept or trained (--qat_scale static,
// learned), so that evaluation and a later run quantize as training did. Metadata: quantizer, the text of --weights,
// and learned_scale, what was trained if anything. For each quantized tensor NAME, fp32, R its scales' shape [rows,
// groups of a row] ([1, 1] for one scale a tensor):
//   NAME.scale         R   the scale before it is rounded to the grid's (bf16); with double quantization, before that
//   NAME.zero          R   asymmetric: the zero point
//   NAME.tensor_scale  [1] nvfp4: t
//   NAME.offset        R   learned_scale lsq_offset: b
//   NAME.upper, .lower R   learned_scale lwc: a and b
// The trap: a grid that was measured on other weights is no error that arithmetic would show, so a file of another
// quantizer is refused, not ignored.
#pragma once
#include <map>
#include <string>
#include <vector>
#include "../model.cuh"
#include "safetensors.h"

inline const char* learned_scale_name(LearnedScale kind) {
    const char* names[] = {"lsq", "lsq_offset", "lwc"};
    return names[(int)kind];
}

inline std::vector<int64_t> grid_shape(const QuantizedTensor& t) {
    if (t.groups < t.rows) return {1, 1};
    return {t.rows, t.groups / t.rows};
}

// nothing where scales are measured at each step
inline void quantizer_save(const Model& m, const std::string& folder) {
    if (m.quantized.empty() || m.scale_mode == ScaleMode::dynamic) return;
    const bool learned = m.scale_mode == ScaleMode::learned, lwc = learned && m.learned_scale == LearnedScale::lwc;
    std::vector<StWriteTensor> tensors;
    // filled when written: the arrays of all tensors at once would be a second copy of the grids
    auto add = [&](const QuantizedTensor& t, const char* part, std::vector<int64_t> shape,
                   std::function<std::vector<float>()> values) {
        tensors.push_back(
            st_from_callback(t.name + "." + part, "F32", shape, [values](int64_t first, int64_t n, float* to) {
                std::vector<float> all = values();
                std::copy(all.begin() + first, all.begin() + first + n, to);
            }));
    };
    auto grid_part = [&m](const QuantizedTensor& t, bool zero) {
        std::vector<Grid> grid(t.groups);
        copy_to_host(grid.data(), t.grid, t.groups * sizeof(Grid), m.dev);
        std::vector<float> part;
        for (const Grid& g : grid) part.push_back(zero ? g.zero : g.scale);
        return part;
    };
    auto floats = [&m](const float* from, int64_t n) {
        std::vector<float> all(n);
        copy_to_host(all.data(), from, n * sizeof(float), m.dev);
        return all;
    };
    for (const QuantizedTensor& t : m.quantized) {
        if (!t.measured) fail("%s has no scales yet, so that there are none to save", t.name.c_str());
        const QuantizedTensor* q = &t;
        if (learned && !lwc) add(t, "scale", grid_shape(t), [=] { return floats(q->learned.a, q->groups); });
        else add(t, "scale", grid_shape(t), [=, &m] { return grid_part(*q, m.quantizer.double_quant); });
        if (!m.quantizer.spec.symmetric) add(t, "zero", grid_shape(t), [=] { return grid_part(*q, true); });
        if (quant_traits(m.quantizer.spec).tensor_scale)
            add(t, "tensor_scale", {1}, [=] { return floats(q->state.tensor, 1); });
        if (learned && m.learned_scale == LearnedScale::lsq_offset)
            add(t, "offset", grid_shape(t), [=] { return floats(q->learned.b, q->groups); });
        if (lwc) {
            add(t, "upper", grid_shape(t), [=] { return floats(q->learned.a, q->groups); });
            add(t, "lower", grid_shape(t), [=] { return floats(q->learned.b, q->groups); });
        }
    }
    std::map<std::string, std::string> metadata = {{"format", "pt"}, {"quantizer", quantizer_text(m.quantizer)}};
    if (learned) metadata["learned_scale"] = learned_scale_name(m.learned_scale);
    st_write(folder + "/quantizer.safetensors", tensors, metadata);
}

// the grid of one tensor, and (same_kind) the parameters that it is made of
inline void quantizer_load_tensor(const Model& m, QuantizedTensor& t, const SafetensorsFile& f, const std::string& path,
                                  bool same_kind) {
    auto read = [&](const char* part, std::vector<int64_t> shape) {
        const StTensor& from = st_require(f.tensors, t.name + "." + part, shape, path);
        std::vector<float> to(from.count);
        st_read_float(from, to.data());
        for (float x : to)
            if (!std::isfinite(x))
                fail("%s: tensor %s.%s holds a number that is not finite", path.c_str(), t.name.c_str(), part);
        return to;
    };
    std::vector<float> scale = read("scale", grid_shape(t)), zero(t.groups);
    std::vector<Grid> grid(t.groups);
    if (!m.quantizer.spec.symmetric) zero = read("zero", grid_shape(t));
    const bool rounded = quant_is_integer(m.quantizer.spec);
    for (int64_t g = 0; g < t.groups; g++) grid[g] = {rounded ? quant_round_scale(scale[g]) : scale[g], zero[g]};
    if (m.quantizer.double_quant) {
        std::vector<float> state(scale_state_floats(t, m.quantizer));
        std::vector<uint8_t> codes(t.groups);
        quant_nested_cpu(grid.data(), ScaleState{state.data(), codes.data(), state.data() + 1}, t.groups);
        copy_to_device(t.state.tensor, state.data(), state.size() * sizeof(float), m.dev);
        copy_to_device(t.state.codes, codes.data(), codes.size(), m.dev);
        device_synchronize(m.dev);  // the arrays go
    }
    if (quant_traits(m.quantizer.spec).tensor_scale) {
        std::vector<float> tensor = read("tensor_scale", {1});
        copy_to_device(t.state.tensor, tensor.data(), sizeof(float), m.dev);
        device_synchronize(m.dev);
    }
    quantized_tensor_set_grid(t, m.quantizer, grid.data(), m.dev);
    if (!same_kind) return;
    const bool lwc = m.learned_scale == LearnedScale::lwc;
    std::vector<float> a = lwc ? read("upper", grid_shape(t)) : scale, b(t.groups);
    if (m.learned_scale != LearnedScale::lsq) b = read(lwc ? "lower" : "offset", grid_shape(t));
    copy_to_device(t.learned.a, a.data(), t.groups * sizeof(float), m.dev);
    copy_to_device(t.learned.b, b.data(), t.groups * sizeof(float), m.dev);
    device_synchronize(m.dev);
    t.restored = true;
}

// Gives the model the grids of its folder, if it has some: they count as measured, and dynamic scales become frozen
// ones; those of a frozen base as its weights are loaded, so call this before. Fails where the file belongs to another
// quantizer. true: there were grids
inline bool quantizer_load(Model& m, const std::string& folder) {
    const std::string path = folder + "/quantizer.safetensors";
    size_t packed = 0;
    for (const ParamTensor& t : m.tensors) packed += t.packed;
    const size_t tensors = m.frozen ? packed : m.quantized.size();
    if (tensors == 0 || !file_exists(path)) return false;
    std::shared_ptr<SafetensorsFile> file = std::make_shared<SafetensorsFile>(st_open(path));
    SafetensorsFile& f = *file;
    const std::string text = quantizer_text(m.quantizer),
                      saved = f.metadata.count("quantizer") ? f.metadata["quantizer"] : "";
    if (saved != text)
        fail(
            "%s holds the scales of --weights %s, not of %s; give the same, --qat_scale dynamic in training, or remove "
            "the file",
            path.c_str(), saved.empty() ? "?" : saved.c_str(), text.c_str());
    size_t scales = 0;
    for (auto& [name, tensor] : f.tensors) scales += name.size() > 6 && name.compare(name.size() - 6, 6, ".scale") == 0;
    if (scales != tensors)
        fail("%s holds the scales of %zu tensors, but --quantize_layers names %zu; name the same layers", path.c_str(),
             scales, tensors);
    const bool same_kind = m.scale_mode == ScaleMode::learned && f.metadata.count("learned_scale") &&
                           f.metadata["learned_scale"] == learned_scale_name(m.learned_scale);
    auto load = [path, file, same_kind, &m](QuantizedTensor& t) {
        quantizer_load_tensor(m, t, *file, path, same_kind);
    };
    if (m.frozen) m.base_grid = load;
    for (QuantizedTensor& t : m.quantized) load(t);
    if (m.scale_mode == ScaleMode::dynamic) m.scale_mode = ScaleMode::frozen;
    return true;
}
