// quantizer.safetensors beside a checkpoint: the grids of a run whose scales are kept or trained (--qat_scale static,
// learned), so that evaluation and a later run quantize as training did. Metadata: quantizer, the text of --weights,
// and learned_scale, what was trained if anything. For each quantized tensor NAME, fp32, R its scales' shape [rows,
// groups of a row] ([1, 1] for one scale a tensor):
//   NAME.scale         R   the scale as it is; learned_scale lsq, lsq_offset, pact: before it is rounded to the grid's
//                          (bf16, at least 2^-14); double quantization: before that, if the grid was measured
//   NAME.scale_code    R   double quantization of a model file (bnb-nf4), which does not tell the scales before: the codes
//   NAME.absmax        [groups / 256, rounded up], and NAME.mean [1], by which they are NAME.scale
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

inline std::vector<int64_t> grid_shape(const QuantizedTensor& t) {
    if (t.groups < t.rows) return {1, 1};
    return {t.rows, t.groups / t.rows};
}

template <class T>
inline std::vector<T> on_host(const T* from, int64_t n, Device dev) {
    std::vector<T> all(n);
    copy_to_host(all.data(), from, n * sizeof(T), dev);
    return all;
}

inline std::vector<float> grid_part(const QuantizedTensor& t, bool zero, Device dev) {
    std::vector<float> part;
    for (const Grid& g : on_host(t.grid, t.groups, dev)) part.push_back(zero ? g.zero : g.scale);
    return part;
}

inline bool all_zero(const std::vector<float>& x) {
    return std::all_of(x.begin(), x.end(), [](float v) { return v == 0.0f; });
}

// what is saved of one tensor's grid, in the order of the file
inline void quantizer_tensors(std::vector<StWriteTensor>& out, const QuantizedTensor& t, Device dev) {
    const Quantizer& q = t.quantizer;
    const bool learned = q.scale_mode == ScaleMode::learned;
    const LearnedScale kind = q.learned_scale;
    // filled when written: the arrays of all tensors at once would be a second copy of the grids
    auto add = [&](const char* part, std::vector<int64_t> shape, std::function<std::vector<float>()> values) {
        out.push_back(
            st_from_callback(t.name + "." + part, "F32", shape, [values](int64_t first, int64_t n, float* to) {
                std::vector<float> all = values();
                std::copy(all.begin() + first, all.begin() + first + n, to);
            }));
    };
    auto floats = [dev](const float* from, int64_t n) { return [=] { return on_host(from, n, dev); }; };
    if (!t.measured) fail("%s has no scales yet, so that there are none to save", t.name.c_str());
    const QuantizedTensor* kept = &t;
    // a grid of a model file has no scales before double quantization (Grid::zero), and all zeros is no grid of a weight
    const bool before = q.double_quant && !all_zero(grid_part(t, true, dev));
    if (learned && kind != LearnedScale::lwc) add("scale", grid_shape(t), floats(t.learned.a, t.groups));
    else add("scale", grid_shape(t), [=] { return grid_part(*kept, before, dev); });
    if (q.double_quant && !before) {
        add("scale_code", grid_shape(t), [=] {
            const std::vector<uint8_t> codes = on_host(kept->state.codes, kept->groups, dev);
            return std::vector<float>(codes.begin(), codes.end());
        });
        add("absmax", {scale_state_floats(t) - 1}, floats(t.state.absmax, scale_state_floats(t) - 1));
        add("mean", {1}, floats(t.state.tensor, 1));
    }
    if (!q.spec.symmetric) add("zero", grid_shape(t), [=] { return grid_part(*kept, true, dev); });
    if (quant_traits(q.spec).tensor_scale) add("tensor_scale", {1}, floats(t.state.tensor, 1));
    if (learned && kind == LearnedScale::lsq_offset) add("offset", grid_shape(t), floats(t.learned.b, t.groups));
    if (learned && kind == LearnedScale::lwc) {
        add("upper", grid_shape(t), floats(t.learned.a, t.groups));
        add("lower", grid_shape(t), floats(t.learned.b, t.groups));
    }
}

// what a folder has of a model: all its weights, an adapter alone, or weights with the adapter added
enum class Saved { model, adapter, merged };

// quantizer.json beside a checkpoint or an adapter: what its policy is quantized to, in the words of the flags
// --weights, --activations, --kv_cache, --k_pre_bias, --hadamard and --lora_inside_quantizer. What is none is left out,
// but for the weights under an adapter, whose base may have a quantizer of its own. The sum of a frozen base and its
// adapter has none: it is on no grid, and no policy of a training. hadamard: the linears that are quantized in a rotated
// basis (model/basis.cuh); the weights in the folder are not rotated, so that it is an ordinary one to other programs.
inline void policy_save(const Model& m, const std::string& folder, Saved what = Saved::model) {
    nlohmann::ordered_json j;
    const bool adapter = what == Saved::adapter, inside = m.lora.inside();
    if (adapter || (m.weight_rules.on() && (what == Saved::model || inside))) j["weights"] = rules_text(m.weight_rules);
    if (m.activation_rules.on()) j["activations"] = rules_text(m.activation_rules);
    if (m.kv_rules.on()) j["kv_cache"] = rules_text(m.kv_rules);
    if (m.k_pre_bias) j["k_pre_bias"] = true;
    const std::string rotated = rotated_text(rotated_linears(m));
    if (rotated != "none") j["hadamard"] = rotated;
    if (adapter && inside) j["lora_inside_quantizer"] = true;
    if (!j.empty()) write_file_atomic(folder + "/quantizer.json", j.dump(2) + "\n");
}

// The same read again; empty objects where there is none. Checkpoints of before have the weights' text beside their
// grids, if their scales were static or learned.
inline nlohmann::json policy_load(const std::string& folder) {
    const std::string path = folder + "/quantizer.json", grids = folder + "/quantizer.safetensors";
    if (file_exists(path)) {
        nlohmann::json j = json_parse(read_file(path, 1 << 20), path);
        if (!j.is_object()) fail("%s: not a JSON object", path.c_str());
        return j;
    }
    nlohmann::json j = nlohmann::json::object();
    if (file_exists(grids)) j["weights"] = st_open(grids).metadata["quantizer"];
    return j;
}

// its text of the weights; "none" where it has none
inline std::string policy_weights(const nlohmann::json& policy) {
    return policy.contains("weights") && policy["weights"].is_string() ? policy["weights"].get<std::string>() : "none";
}

// nothing where scales are measured at each step
inline void quantizer_save(const Model& m, const std::string& folder) {
    std::vector<StWriteTensor> tensors;
    std::string learned;
    for (const LinearPart* t : quantized_parts(m)) {
        if (t->quantizer.scale_mode == ScaleMode::dynamic) return;
        if (t->quantizer.scale_mode == ScaleMode::learned) learned = learned_scale_name(t->quantizer.learned_scale);
        quantizer_tensors(tensors, *t, m.dev);
    }
    if (tensors.empty()) return;
    std::map<std::string, std::string> metadata = {{"format", "pt"}, {"quantizer", rules_text(m.weight_rules)}};
    if (!learned.empty()) metadata["learned_scale"] = learned;
    st_write(folder + "/quantizer.safetensors", tensors, metadata);
}

// The grid of t, from the file at path. learned: its parameters were trained as t's are to be
inline void quantizer_load_tensor(QuantizedTensor& t, const SafetensorsFile& f, const std::string& path, bool learned,
                                  Device dev) {
    auto read = [&](const char* part, std::vector<int64_t> shape) {
        const StTensor& from = st_require(f.tensors, t.name + "." + part, shape, path);
        std::vector<float> to(from.count);
        st_read_float(from, to.data());
        for (float x : to)
            if (!std::isfinite(x))
                fail("%s: tensor %s.%s holds a number that is not finite", path.c_str(), t.name.c_str(), part);
        return to;
    };
    const Quantizer& q = t.quantizer;
    std::vector<float> scale = read("scale", grid_shape(t)), zero(t.groups);
    std::vector<Grid> grid(t.groups);
    if (!q.spec.symmetric) zero = read("zero", grid_shape(t));
    // a trained scale is rounded as it was in the forward; one of a model file may be a number that rounding would change
    const auto kind = f.metadata.find("learned_scale");
    const bool trained = kind != f.metadata.end() && kind->second != learned_scale_name(LearnedScale::lwc);
    for (int64_t g = 0; g < t.groups; g++) grid[g] = {trained ? quant_round_scale(scale[g]) : scale[g], zero[g]};
    if (q.double_quant) {
        std::vector<float> state(scale_state_floats(t));
        std::vector<uint8_t> codes(t.groups);
        if (f.tensors.count(t.name + ".scale_code")) {
            const std::vector<float> code = read("scale_code", grid_shape(t)),
                                     absmax = read("absmax", {(int64_t)state.size() - 1});
            for (int64_t g = 0; g < t.groups; g++) {
                if (!(code[g] >= 0.0f && code[g] <= 255.0f))
                    fail(
                        "%s: tensor %s.scale_code holds %g, which is no byte; remove the file, and scales are measured",
                        path.c_str(), t.name.c_str(), code[g]);
                codes[g] = (uint8_t)code[g];
            }
            state[0] = read("mean", {1})[0];
            std::copy(absmax.begin(), absmax.end(), state.begin() + 1);
        } else {
            for (float x : scale)  // sizes, whose mean is summed as fixed-point numbers
                if (x < 0.0f) fail("%s: tensor %s.scale holds a negative number", path.c_str(), t.name.c_str());
            // files of before scale_code have zeros for the scales of a model file
            if (t.master && all_zero(scale) && !all_zero(on_host(t.master, t.count(), dev)))
                fail("%s: the scales of %s are all 0 and its weights are not; remove the file, and scales are measured",
                     path.c_str(), t.name.c_str());
            quant_nested_cpu(grid.data(), ScaleState{state.data(), codes.data(), state.data() + 1}, t.groups);
        }
        copy_to_device(t.state.tensor, state.data(), state.size() * sizeof(float), dev);
        copy_to_device(t.state.codes, codes.data(), codes.size(), dev);
        device_synchronize(dev);  // the arrays go
    }
    if (quant_traits(q.spec).tensor_scale) {
        std::vector<float> tensor = read("tensor_scale", {1});
        copy_to_device(t.state.tensor, tensor.data(), sizeof(float), dev);
        device_synchronize(dev);
    }
    quantized_tensor_set_grid(t, grid.data(), dev);
    if (!learned) return;
    const bool lwc = q.learned_scale == LearnedScale::lwc;
    std::vector<float> a = lwc ? read("upper", grid_shape(t)) : scale, b(t.groups);
    if (lwc) b = read("lower", grid_shape(t));
    if (q.learned_scale == LearnedScale::lsq_offset) b = read("offset", grid_shape(t));
    copy_to_device(t.learned.a, a.data(), t.groups * sizeof(float), dev);
    copy_to_device(t.learned.b, b.data(), t.groups * sizeof(float), dev);
    device_synchronize(dev);
    t.restored = true;
}

// Gives the model the grids of its folder, if it has some: they count as measured, and dynamic scales become kept
// ones; those of a frozen base as its weights are loaded, so call this before. Fails where the file belongs to another
// quantizer. true: there were grids
inline bool quantizer_load(Model& m, const std::string& folder) {
    const std::string path = folder + "/quantizer.safetensors";
    const std::vector<LinearPart*> parts = quantized_parts(m);
    if (parts.empty() || !file_exists(path)) return false;
    std::shared_ptr<SafetensorsFile> file = std::make_shared<SafetensorsFile>(st_open(path));
    SafetensorsFile& f = *file;
    const std::string text = rules_text(m.weight_rules),
                      saved = f.metadata.count("quantizer") ? f.metadata["quantizer"] : "";
    // files of before the rules have the quantizer alone, whichever layers it was for
    const bool one = m.weight_rules.rules.size() == 1 && saved == quantizer_text(m.weight_rules.rules[0].quantizer);
    if (saved != text && !one)
        fail(
            "%s holds the scales of --weights %s, not of %s; give the same, --qat_scale dynamic in training, or remove "
            "the file",
            path.c_str(), saved.empty() ? "?" : saved.c_str(), text.c_str());
    size_t scales = 0;
    for (auto& [name, tensor] : f.tensors) scales += name.size() > 6 && name.compare(name.size() - 6, 6, ".scale") == 0;
    if (scales != parts.size())
        fail("%s holds the scales of %zu tensors, but --weights and --quantize_layers name %zu; name the same layers",
             path.c_str(), scales, parts.size());
    auto load = [file, path, dev = m.dev](QuantizedTensor& t) {
        const auto kind = file->metadata.find("learned_scale");
        const Quantizer& q = t.quantizer;
        quantizer_load_tensor(t, *file, path,
                              q.scale_mode == ScaleMode::learned && kind != file->metadata.end() &&
                                  kind->second == learned_scale_name(q.learned_scale),
                              dev);
    };
    if (m.frozen) {
        m.base_grid = load;
        return true;
    }
    for (LinearPart* t : parts) {
        load(*t);
        if (t->quantizer.scale_mode == ScaleMode::dynamic) t->quantizer.scale_mode = ScaleMode::kept;
    }
    return true;
}
