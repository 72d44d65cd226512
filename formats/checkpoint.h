// Models on disk: read from a Hugging Face folder or a GGUF file, written as a Hugging Face folder.
//
// Weights are saved as float32 unless asked otherwise: at a learning rate of 1e-6 a run moves a weight of 0.02 by less
// than half a step of bf16 (1.2e-4), and a checkpoint rounded to bf16 would lose what was learnt.
// A checkpoint appears whole or not at all: it is written as NAME.tmp and renamed.
//
// A folder may be quantized (quantized_model.h). Its master weights are then what its codes stand for, and where the
// model's quantizer is the folder's and its scales are not dynamic, the grid is the folder's too: Q(W) has the same bits.
#pragma once
#include <filesystem>
#include <functional>
#include <string>
#include <vector>
#include "../model.cuh"
#include "gguf.h"
#include "hf_config.h"
#include "quantized_model.h"
#include "safetensors.h"

inline bool is_gguf_path(const std::string& path) {
    return path.size() >= 5 && path.compare(path.size() - 5, 5, ".gguf") == 0;
}

inline std::vector<int64_t> param_shape(const ParamTensor& t) {
    if (t.kind == ParamKind::norm || t.kind == ParamKind::bias) return {t.cols};
    return {t.rows, t.cols};
}

// Fails unless every number is finite: one NaN in a weight becomes NaN everywhere after one step
inline void check_finite(const float* x, int64_t n, const std::string& name, const std::string& where) {
    bool finite = true;
#pragma omp parallel for simd schedule(static) reduction(&& : finite)
    for (int64_t i = 0; i < n; i++) finite = finite && (float_bits(x[i]) & 0x7F800000u) != 0x7F800000u;
    if (!finite)
        fail("%s: tensor %s holds a number that is not finite; the file is damaged", where.c_str(), name.c_str());
}

inline void check_model_path(const std::string& path) {
    if (!is_gguf_path(path) && !std::filesystem::is_directory(path))
        fail("--model %s: %s; name a Hugging Face folder or a .gguf file", path.c_str(),
             std::filesystem::exists(path) ? "neither a folder nor a .gguf file" : "no such file or folder");
}

// path: a folder with config.json and safetensors, or a .gguf file
inline ModelConfig model_config(const std::string& path) {
    check_model_path(path);
    return is_gguf_path(path) ? config_from_gguf(gguf_open(path)) : config_load(path);
}

// The files of a model, open for reading
struct ModelFile {
    std::string path;
    GgufFile gguf;  // one of the two
    SafetensorsSet set;
    QuantizedFolder folder;
};

inline ModelFile model_file_open(const std::string& path) {
    check_model_path(path);
    ModelFile f;
    f.path = path;
    if (is_gguf_path(path)) {
        f.gguf = gguf_open(path);
    } else {
        f.set = st_open_folder(path);
        f.folder = quantized_folder(path);
    }
    return f;
}

// the numbers of a tensor -> to [count]; what quantized ones stand for. true: l has its codes and grid
inline bool model_file_read(const ModelFile& f, const ModelConfig& config, const ParamTensor& t, float* to,
                            QuantizedLinear* l) {
    bool quantized = false;
    if (is_gguf_path(f.path)) {
        gguf_read_parameter(f.gguf, config, t.name, param_shape(t), to);
    } else if ((quantized = quantized_folder_read(f.folder, f.set, t, l))) {
        quantized_linear_values(*l, to);
    } else {
        st_read_float(st_require(f.set.tensors, t.name, param_shape(t), f.path), to);
    }
    check_finite(to, t.count(), t.name, f.path);
    return quantized;
}

// the grid that a file gave, instead of a measured one
inline void model_keep_grid(Model& m, const ParamTensor& t, QuantizedLinear& l) {
    for (QuantizedTensor& q : m.quantized) {
        if (q.offset != t.offset || m.scale_mode == ScaleMode::dynamic || !same_codes(l.quantizer, m.quantizer))
            continue;
        if (!m.quantizer.spec.symmetric) quantized_linear_to_asym(l);
        quantized_tensor_set_grid(q, m.quantizer, l.grid.data(), m.dev);
        const NestedScales& n = l.nested;
        float tensor = n.codes.empty() ? l.tensor_scale : n.offset;
        if (q.state.tensor) copy_to_device(q.state.tensor, &tensor, sizeof(float), m.dev);
        if (q.state.codes && !n.codes.empty()) {
            copy_to_device(q.state.codes, n.codes.data(), n.codes.size(), m.dev);
            copy_to_device(q.state.absmax, n.scales.data(), n.scales.size() * sizeof(float), m.dev);
        }
        device_synchronize(m.dev);  // host memory goes
    }
}

// Fills the master weights of a model that was allocated for model_config(path); model_refresh makes the working ones.
inline void model_load_weights(Model& m, const std::string& path) {
    ModelFile f = model_file_open(path);
    for (const ParamTensor& t : m.tensors) {
        QuantizedLinear l;
        bool quantized = false;
        model_fill(m, t, [&](float* to) { quantized = model_file_read(f, m.config, t, to, &l); });
        if (quantized) model_keep_grid(m, t, l);
    }
}

inline void model_load(Model& m, const std::string& path) {
    model_allocate(m, model_config(path));
    model_load_weights(m, path);
}

// Runs fill(folder) for a folder that gets the name dir when it is complete, in place of one that was there
inline void replace_folder(const std::string& dir, const std::function<void(const std::string&)>& fill) {
    namespace fs = std::filesystem;
    std::string temp = dir + ".tmp", old = dir + ".old";
    std::error_code ec;
    fs::remove_all(temp, ec);
    if (!fs::create_directories(temp, ec)) fail("cannot create %s: %s", temp.c_str(), ec.message().c_str());
    try {
        fill(temp);
    } catch (...) {
        fs::remove_all(temp, ec);
        throw;
    }
    fs::remove_all(old, ec);
    if (fs::exists(dir)) fs::rename(dir, old, ec);
    fs::rename(temp, dir, ec);
    if (ec) fail("cannot rename %s to %s: %s", temp.c_str(), dir.c_str(), ec.message().c_str());
    fs::remove_all(old, ec);
}

// also(folder): what else belongs into it (the tokenizer), before the folder gets its name
inline void model_save(const Model& m, const std::string& dir, const std::string& save_dtype,
                       const std::function<void(const std::string&)>& also) {
    replace_folder(dir, [&](const std::string& temp) {
        ModelConfig config = m.config;
        config.torch_dtype = save_dtype;
        write_file_atomic(temp + "/config.json", config_to_json(config));
        std::vector<StWriteTensor> tensors;
        for (const ParamTensor& t : m.tensors)
            tensors.push_back(st_from_callback(t.name, st_dtype_of(save_dtype), param_shape(t),
                                               [&m, &t](int64_t first, int64_t n, float* buffer) {
                                                   copy_to_host(buffer, m.master.data + t.offset + first,
                                                                n * sizeof(float), m.dev);
                                               }));
        st_write_folder(temp, tensors, (uint64_t)4 << 30);
        also(temp);
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// export

// Takes what stands behind the scales of l, if they are still what it gives: a grid from outside has nothing behind it,
// and NF4's scales are then kept as they are
inline void quantized_linear_keep_state(QuantizedLinear& l, float tensor, NestedScales n) {
    if (l.quantizer.spec.format == QuantFormat::nvfp4) l.tensor_scale = tensor;
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
    t.name = l.name, t.rows = l.rows, t.cols = l.cols, t.master = w;
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
    quantized_tensor_refresh(t, q, ScaleMode::dynamic, counts, Device());
    quantized_linear_keep_state(l, tensor, nested);
}

// The files at f, quantized by q where it is on (only the layers named by `which`), else as the folder has them
inline ExportSource export_source(const ModelFile& f, const ModelConfig& config, const Quantizer& q,
                                  const std::string& which) {
    ExportSource s;
    size_t n;
    s.config = config;
    s.tensors = model_tensors(config, &n);
    s.read = [&f, config](const ParamTensor& t, float* to) {
        QuantizedLinear l;
        model_file_read(f, config, t, to, &l);
    };
    bool asym = false;  // a folder's linears share a quantizer, though some may do without zero points
    if (!q.on() && f.folder.container != Container::none) {
        FolderQuantizer stored = quantized_folder_quantizer(f.folder, f.set, config);
        asym = stored.quantizer.on() && !stored.quantizer.spec.symmetric;
    }
    s.quantized = [&f, config, q, which, asym](const ParamTensor& t, QuantizedLinear* l) {
        if (!q.on()) {
            bool found = quantized_folder_read(f.folder, f.set, t, l);
            if (found && asym) quantized_linear_to_asym(*l);
            return found;
        }
        if (!quantizes(which, t)) return false;
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

// the same from a model in memory, on the grid that it has (measured, learned, or found by a calibration)
inline ExportSource export_source(const Model& m) {
    ExportSource s;
    s.config = m.config;
    s.tensors = m.tensors;
    s.read = [&m](const ParamTensor& t, float* to) {
        copy_to_host(to, m.master.data + t.offset, t.count() * sizeof(float), m.dev);
    };
    s.quantized = [&m, read = s.read](const ParamTensor& t, QuantizedLinear* l) {
        for (const QuantizedTensor& q : m.quantized) {
            if (q.offset != t.offset) continue;
            if (!q.measured) fail("%s has no grid yet; refresh the model before it is exported", q.name.c_str());
            std::vector<float> w(t.count());
            read(t, w.data());
            l->name = module_name(t);
            l->rows = t.rows, l->cols = t.cols;
            l->quantizer = m.quantizer;
            l->grid.resize(q.groups);
            copy_to_host(l->grid.data(), q.grid, q.groups * sizeof(Grid), m.dev);
            quantized_linear_encode(*l, w.data());
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
        }
        return false;
    };
    return s;
}

inline ExportSummary export_folder(const ExportSource& source, const std::string& dir, const std::string& format,
                                   const std::string& save_dtype, const std::function<void(const std::string&)>& also) {
    ExportSummary summary;
    replace_folder(dir, [&](const std::string& temp) {
        summary = export_into(source, temp, format, save_dtype);
        also(temp);
    });
    return summary;
}

// A quantized model into a folder that loads again with the same Q(W). format: a name of export_formats, or "auto" for
// the one that holds the quantizer best
inline ExportSummary save_quantized(const Model& m, const std::string& dir, const std::string& format,
                                    const std::function<void(const std::string&)>& also) {
    std::string name = format == "auto" ? natural_format(m.quantizer) : format;
    return export_folder(export_source(m), dir, name, name == "hf" ? "float32" : "bfloat16", also);
}
