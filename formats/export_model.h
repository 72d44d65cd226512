// Where an export's codes and scales come from: a model in memory on the grid that it has (measured, learned, or found
// by a calibration), or files that are read tensor by tensor. A grid that is there stays, unless rules are given.
#pragma once
#include "masters_file.h"

// Takes what stands behind the scales of l, if they are still what it gives: a grid from outside has nothing behind it,
// and NF4's scales are then kept as they are
inline void quantized_linear_keep_state(QuantizedLinear& l, float tensor, NestedScales n) {
    if (quant_traits(l.quantizer.spec).tensor_scale) l.tensor_scale = tensor;
    if (!l.quantizer.double_quant) return;
    const DynamicMap map = dynamic_map();
    bool same = true;
    n.offset = tensor;
    for (size_t i = 0; i < l.grid.size() && same; i++)
        same = dynamic_map_scale(map, n.codes[i], n.scales[i / QUANT_NESTED], tensor) == l.grid[i].scale;
    if (same) l.nested = std::move(n);
}

// Quantizes w on a grid that is measured, as training does it: l has name, rows and cols
inline void quantized_linear_measure(QuantizedLinear& l, const Quantizer& q, const float* w) {
    QuantizedTensor t;
    t.name = l.name, t.rows = l.rows, t.cols = l.cols;
    quantized_tensor_init(t, q);
    std::vector<floatX> work(l.rows * l.cols);
    NestedScales nested;
    float tensor = 0.0f;
    int64_t counts[2];
    l.quantizer = q;
    l.grid.resize(t.groups);
    l.codes.resize(l.rows * l.cols);
    if (q.double_quant) {
        nested.codes.resize(t.groups);
        nested.scales.resize(CEIL_DIV(t.groups, (int64_t)QUANT_NESTED));
    }
    t.work = work.data(), t.grid = l.grid.data(), t.codes = l.codes.data();
    t.state = ScaleState{&tensor, nested.codes.data(), nested.scales.data()};
    t.counts = counts;
    quantized_tensor_refresh(t, w, QuantNoise(), Device());
    quantized_linear_keep_state(l, tensor, nested);
}

// The files at f, quantized as the rules say if they are on, else as the folder has them
inline ExportSource export_source(const ModelFile& f, const ModelConfig& config, const QuantizerRules& rules) {
    ExportSource s;
    size_t n;
    s.config = config;
    s.tensors = model_tensors(config, &n);
    s.read = [&f, config](const ParamTensor& t, float* to) {
        QuantizedLinear l;
        model_file_read(f, config, t, to, &l);
    };
    bool asym = false;  // a folder's linears share a quantizer, though some may do without zero points
    if (!rules.on() && f.folder.container != Container::none) {
        FolderQuantizer stored = quantized_folder_quantizer(f.folder, f.set, config);
        asym = stored.quantizer.on() && !stored.quantizer.spec.symmetric;
    }
    s.quantized = [&f, config, rules, asym](const ParamTensor& t, QuantizedLinear* l) {
        if (!rules.on()) {
            bool found =
                is_gguf_path(f.path) ? gguf_linear(f, config, t, l) : quantized_folder_read(f.folder, f.set, t, l);
            if (found && asym) quantized_linear_to_asym(*l);
            return found;
        }
        const Quantizer q = quantizer_of(rules, t);
        if (!q.on()) return false;
        std::vector<float> w(t.count());
        QuantizedLinear stored;
        model_file_read(f, config, t, w.data(), &stored);
        l->name = module_name(t);
        l->rows = t.rows, l->cols = t.cols;
        quantized_linear_measure(*l, q, w.data());
        return true;
    };
    return s;
}

// The same from a model in memory: codes and grid as they are there (measured, learned, or found by a calibration). A
// quantized weight is read by its codes; its master, what they were rounded from, is no part of it.
inline ExportSource export_source(const Model& m) {
    ExportSource s;
    s.config = m.config;
    s.tensors = m.tensors;
    s.read = [&m](const ParamTensor& t, float* to) {
        copy_to_host(to, m.master.data + t.offset, t.count() * sizeof(float), m.dev);
    };
    s.quantized = [&m, read = s.read](const ParamTensor& t, QuantizedLinear* l) {
        const LinearPart* part = part_of(m, t);
        if (!part || !part->quantizer.on()) return false;
        const QuantizedTensor& q = *part;
        if (!q.measured) fail("%s has no grid yet; refresh the model before it is exported", q.name.c_str());
        l->name = module_name(t);
        l->rows = t.rows, l->cols = t.cols;
        l->quantizer = q.quantizer;
        l->grid.resize(q.groups);
        copy_to_host(l->grid.data(), q.grid, q.groups * sizeof(Grid), m.dev);
        l->codes.resize(t.count());
        if (q.codes) {
            copy_to_host(l->codes.data(), q.codes, l->codes.size(), m.dev);
        } else {
            std::vector<float> w(t.count());
            read(t, w.data());
            quantized_linear_encode(*l, w.data());
        }
        NestedScales nested;
        float tensor = 0.0f;
        if (q.state.tensor) copy_to_host(&tensor, q.state.tensor, sizeof(float), m.dev);
        if (q.state.codes) {
            nested.codes.resize(q.groups);
            nested.scales.resize(CEIL_DIV(q.groups, (int64_t)QUANT_NESTED));
            copy_to_host(nested.codes.data(), q.state.codes, nested.codes.size(), m.dev);
            copy_to_host(nested.scales.data(), q.state.absmax, nested.scales.size() * sizeof(float), m.dev);
        }
        quantized_linear_keep_state(*l, tensor, nested);
        return true;
    };
    return s;
}

inline ExportSummary export_folder(const ExportSource& source, const std::string& dir, const std::string& format,
                                   const std::string& save_dtype, const std::function<void(const std::string&)>& also) {
    ExportSummary summary;
    replace_folder(dir, [&](const std::string& temp) {
        summary = export_into(source, temp, format, save_dtype);
        summary.format = format;
        also(temp);
    });
    return summary;
}

// A quantized model into a folder that loads again with the same Q(W). format: a name of export_formats, or "" for the
// one that holds the quantizer best; save_dtype: of what is not quantized, or "" for the usual one. masters: where
// given, the model's masters are written too, and it tells of them
inline ExportSummary save_quantized(const Model& m, const std::string& dir, std::string format, std::string save_dtype,
                                    const std::function<void(const std::string&)>& also,
                                    MastersReport* masters = nullptr) {
    if (format.empty()) format = natural_format(m.weight_rules);
    if (save_dtype.empty()) save_dtype = format == "hf" ? "float32" : "bfloat16";
    return export_folder(export_source(m), dir, format, save_dtype, [&](const std::string& folder) {
        if (format == "hf") quantizer_save(m, folder);  // plain weights do not tell their grid
        policy_save(m, folder);
        if (masters) *masters = masters_save(m, folder);
        also(folder);
    });
}
