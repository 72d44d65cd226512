// masters.safetensors beside a quantized model: the fp32 weights that its codes were rounded from, so that training
// from it can go on. A container has codes alone, and the middle of a cell is half a cell away from the next code: at
// learning rate 1e-4 seven steps from there flip none. For each quantized weight, whatever the folder's format:
//   NAME   F32 [rows, cols]   by the checkpoint's name, as model.layers.0.self_attn.q_proj.weight
// Its rounding on the folder's own grid is the folder's code, which is checked as it is read; evaluation, export and a
// frozen base have no use for it, and without it training begins at what the codes stand for.
//
// The trap: loaders that take every *.safetensors of a folder would read these as the model. vLLM leaves out what
// model.safetensors.index.json does not name, so that the folder gets one.
#pragma once
#include <atomic>
#include <memory>
#include <string>
#include <vector>
#include "checkpoint.h"

// A quantized folder, open for its codes: a container, or plain weights with their grids beside them
struct StoredCodes {
    ModelFile file;
    std::shared_ptr<SafetensorsFile> grids;  // of plain weights
    QuantizerRules rules;                    // and their quantizers
};

inline StoredCodes stored_codes_open(const std::string& folder) {
    StoredCodes s;
    s.file = model_file_open(folder);
    const std::string grids = folder + "/quantizer.safetensors";
    if (s.file.folder.container != Container::none || !file_exists(grids)) return s;
    s.grids = std::make_shared<SafetensorsFile>(st_open(grids));
    s.rules = rules_parse(policy_weights(policy_load(folder)), "weights");
    return s;
}

// Those of a plain weight: encoded on the grid that lies beside it
inline bool stored_plain_codes(const StoredCodes& s, const ParamTensor& t, QuantizedLinear* l) {
    const Quantizer q = s.grids ? quantizer_of(s.rules, t) : Quantizer();
    if (!q.on()) return false;
    QuantizedTensor grid;
    grid.name = t.name, grid.rows = t.rows, grid.cols = t.cols;
    quantized_tensor_init(grid, q);
    std::vector<float> state(scale_state_floats(grid) + 1), values(t.count());
    std::vector<uint8_t> scale_codes(grid.groups);
    l->name = module_name(t), l->rows = t.rows, l->cols = t.cols, l->quantizer = q;
    l->grid.resize(grid.groups);
    grid.grid = l->grid.data();
    grid.state = {state.data(), scale_codes.data(), state.data() + 1};
    quantizer_load_tensor(grid, *s.grids, s.file.path + "/quantizer.safetensors", false, Device());
    st_read_float(st_require(s.file.set.tensors, model_file_name(s.file, t), param_shape(t), s.file.path),
                  values.data());
    quantized_linear_encode(*l, values.data());
    return true;
}

// The codes of weight t and their grid; false: it has none
inline bool stored_codes_read(const StoredCodes& s, const ParamTensor& t, QuantizedLinear* l) {
    if (!is_weight(t)) return false;
    if (s.file.folder.container == Container::none) return stored_plain_codes(s, t, l);
    return quantized_folder_read(s.file.folder, s.file.set, t, l) && l->quantizer.on();
}

// Of w [rows, cols]: how many are not rounded to their code in l. settle: those become what the code stands for
inline int64_t masters_astray(const QuantizedLinear& l, float* w, bool settle) {
    const QuantSpec spec = l.quantizer.spec;
    const int mask = quant_code_mask(spec);
    std::atomic<int64_t> astray{0};
    quantized_linear_each(l, [&](int64_t i, Grid g) {
        if (!quant_flipped(mask, quant_code(spec, w[i], g), l.codes[i])) return;
        astray++;
        if (settle) w[i] = quant_value(spec, l.codes[i], g);
    });
    return astray;
}

// What was written
struct MastersReport {
    uint64_t bytes = 0;
    int64_t settled = 0;  // weights that are their code's value: the format keeps less of a scale than rounded them
};

// The masters of m, whose quantized folder is complete but for them: they must round to the codes that are read from it
inline MastersReport masters_save(const Model& m, const std::string& folder) {
    MastersReport report;
    const StoredCodes stored = stored_codes_open(folder);
    std::vector<StWriteTensor> tensors;
    std::vector<float> whole;  // the tensor whose turn it is
    for (const ParamTensor& t : m.tensors) {
        const LinearPart* part = part_of(m, t);
        if (!part || !part->quantizer.on()) continue;
        report.bytes += (uint64_t)t.count() * sizeof(float);
        tensors.push_back(st_from_callback(t.name, "F32", param_shape(t), [&](int64_t first, int64_t n, float* to) {
            if (first == 0) {
                QuantizedLinear l;
                whole.resize(t.count());
                copy_to_host(whole.data(), m.master.data + t.offset, t.count() * sizeof(float), m.dev);
                if (!stored_codes_read(stored, t, &l)) fail("%s: %s has no codes", folder.c_str(), t.name.c_str());
                report.settled += masters_astray(l, whole.data(), true);
            }
            std::copy(whole.begin() + first, whole.begin() + first + n, to);
        }));
    }
    if (tensors.empty()) return report;
    st_write(folder + "/masters.safetensors", tensors, {{"format", "pt"}, {"quantizer", rules_text(m.weight_rules)}});
    st_write_index(folder);
    return report;
}

// Whether w [rows, cols] is rounded to the codes of l on scales that are measured on it by q, too. Weights that GPTQ
// compensated, or blockwise trained, make up for errors of the folder's grid and on another are no model
inline bool masters_find_codes(QuantizedLinear l, const Quantizer& q, float* w) {
    QuantizedTensor t;
    t.rows = l.rows, t.cols = l.cols;
    quantized_tensor_init(t, l.quantizer = q);
    std::vector<float> state(scale_state_floats(t) + 1);
    std::vector<uint8_t> scale_codes(t.groups);
    quant_measure(l.grid.data(), {state.data(), q.double_quant ? scale_codes.data() : nullptr, state.data() + 1}, w,
                  quantized_tensor_groups(t), q.spec, Device());
    return masters_astray(l, w, false) <= t.count() / 100;  // those that were settled
}

// What was read
struct MastersLoaded {
    int weights = 0, left = 0;  // left: no masters for scales of their own
};

// The masters of a model whose weights were loaded from folder, if that has some: of the weights that still have the
// folder's quantizer, and its grid or one on which they have the same codes. Fails where they do not belong to the
// folder's codes.
inline MastersLoaded masters_load(Model& m, const std::string& folder) {
    MastersLoaded loaded;
    const std::string path = folder + "/masters.safetensors";
    if (!file_exists(path)) return loaded;
    try {
        const StoredCodes stored = stored_codes_open(folder);
        const SafetensorsFile file = st_open(path);
        for (const ParamTensor& t : m.tensors) {
            LinearPart* part = part_of(m, t);
            QuantizedLinear l;
            if (!part || !part->quantizer.on() || !stored_codes_read(stored, t, &l)) continue;
            quantized_linear_narrow(l, part->quantizer);
            if (!same_codes(l.quantizer, part->quantizer)) continue;
            std::vector<float> w(t.count());
            st_read_float(st_require(file.tensors, t.name, param_shape(t), path), w.data());
            check_finite(w.data(), t.count(), t.name, path);
            if (const int64_t astray = masters_astray(l, w.data(), false))
                fail("%s: %lld of the %lld numbers of %s do not round to the folder's codes, they belong to others",
                     path.c_str(), (long long)astray, (long long)t.count(), t.name.c_str());
            if (!part->given && !masters_find_codes(l, part->quantizer, w.data())) {
                loaded.left++;
                continue;
            }
            copy_to_device(part->master, w.data(), w.size() * sizeof(float), m.dev);
            device_synchronize(m.dev);  // w goes
            loaded.weights++;
        }
    } catch (const Error& e) {
        fail("%s; remove masters.safetensors, and training begins at what the codes stand for", e.what());
    }
    return loaded;
}
