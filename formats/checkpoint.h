// Models on disk: read from a Hugging Face folder or a GGUF file, written as a Hugging Face folder.
//
// Weights are saved as float32 unless asked otherwise: at a learning rate of 1e-6 a run moves a weight of 0.02 by less
// than half a step of bf16 (1.2e-4), and a checkpoint rounded to bf16 would lose what was learnt.
// A checkpoint appears whole or not at all (runtime/folders.h).
//
// A folder may be quantized (quantized_model.h). Its master weights are then what its codes stand for (training goes on
// from those of masters_file.h), and where the model's quantizer is the folder's and its scales are not dynamic, the
// grid is the folder's too: Q(W) has the same bits.
#pragma once
#include <filesystem>
#include <functional>
#include <string>
#include <vector>
#include "../model.cuh"
#include "../runtime/folders.h"
#include "gguf_grid.h"
#include "hf_config.h"
#include "other_tensors.h"
#include "quantized_model.h"
#include "quantizer_file.h"
#include "safetensors.h"
#include "transforms_file.h"

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
#pragma omp parallel for schedule(static) reduction(&& : finite)
    for (int64_t i = 0; i < n; i++) finite = finite && (float_bits(x[i]) & 0x7F800000u) != 0x7F800000u;
    if (!finite)
        fail("%s: tensor %s holds a number that is not finite; the file is damaged", where.c_str(), name.c_str());
}

inline void check_model_path(const std::string& path) {
    if (!is_gguf_path(path) && !std::filesystem::is_directory(path))
        fail("--model %s: %s; name a Hugging Face folder or a .gguf file", path.c_str(),
             std::filesystem::exists(path) ? "neither a folder nor a .gguf file" : "no such file or folder");
}

// path: a folder with config.json and safetensors, or a .gguf file. Fails if the files hold more of a model than its
// configuration says.
inline ModelConfig model_config(const std::string& path) {
    check_model_path(path);
    if (is_gguf_path(path)) {
        const GgufFile f = gguf_open(path);
        const ModelConfig c = config_from_gguf(f);
        check_other_tensors(f, c);
        return c;
    }
    ModelConfig c = config_load(path);
    transforms_load(c, path);
    const SafetensorsSet set = st_open_folder(path);
    c.tie_word_embeddings = st_head_is_tied(set, c.tie_word_embeddings, path);
    check_other_tensors(set, quantized_folder(path), c);
    return c;
}

// The files of a model, open for reading
struct ModelFile {
    std::string path;
    GgufFile gguf;  // one of the two
    SafetensorsSet set;
    QuantizedFolder folder;
    Quantizer gguf_quantizer;  // that all its linears share; off: none
    bool tied = false;         // its head is its embedding
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
    const ModelConfig config = model_config(path);
    f.tied = config.tie_word_embeddings;
    if (is_gguf_path(path) && !gguf_quantizer(f.gguf, config, &f.gguf_quantizer).empty())
        f.gguf_quantizer = Quantizer();
    return f;
}

// the name of t in the file: a model may be loaded untied, and its head is then what the file ties it to
inline std::string model_file_name(const ModelFile& f, const ParamTensor& t) {
    return t.kind == ParamKind::head && f.tied ? "model.embed_tokens.weight" : t.name;
}

// the codes and grid of a linear of a GGUF file; false: it has none (such as Q4_1's with a minimum off the grid)
inline bool gguf_linear(const ModelFile& f, const ModelConfig& config, const ParamTensor& t, QuantizedLinear* l) {
    GgufGrid g;
    if (!f.gguf_quantizer.on() || t.kind != ParamKind::linear) return false;
    if (!gguf_read_grid(f.gguf, config, t.name, t.rows, t.cols, &g).empty()) return false;
    l->name = module_name(t);
    l->rows = t.rows, l->cols = t.cols;
    l->quantizer = f.gguf_quantizer;
    l->codes = std::move(g.codes), l->grid = std::move(g.grid);
    if (quant_traits(g.spec).tensor_scale)
        l->tensor_scale = 1.0f / gguf_nvfp4_tensor_scale(l->grid.data(), (int64_t)l->grid.size());
    return true;
}

// the numbers of a tensor -> to [count]; what quantized ones stand for. true: l has its codes and grid
inline bool model_file_read(const ModelFile& f, const ModelConfig& config, const ParamTensor& t, float* to,
                            QuantizedLinear* l) {
    bool quantized = false;
    const std::string name = model_file_name(f, t);
    if (is_gguf_path(f.path)) {
        gguf_read_parameter(f.gguf, config, name, param_shape(t), to);
        quantized = gguf_linear(f, config, t, l);
    } else if ((quantized = quantized_folder_read(f.folder, f.set, t, l))) {
        quantized_linear_values(*l, to);
    } else {
        st_read_float(st_require(f.set.tensors, name, param_shape(t), f.path), to);
    }
    check_finite(to, t.count(), t.name, f.path);
    return quantized;
}

// Gives q the grid that a file holds instead of a measured one
inline void keep_grid(QuantizedTensor& q, QuantizedLinear& l, Device dev) {
    if (!q.quantizer.spec.symmetric) quantized_linear_to_asym(l);
    quantized_tensor_set_grid(q, l.grid.data(), dev);
    const NestedScales& n = l.nested;
    float tensor = n.codes.empty() ? l.tensor_scale : n.offset;
    if (q.state.tensor) copy_to_device(q.state.tensor, &tensor, sizeof(float), dev);
    if (q.state.codes && !n.codes.empty()) {
        copy_to_device(q.state.codes, n.codes.data(), n.codes.size(), dev);
        copy_to_device(q.state.absmax, n.scales.data(), n.scales.size() * sizeof(float), dev);
    }
    device_synchronize(dev);  // host memory goes
}

// Fills the weights of a model that was allocated for model_config(path): the masters, from which model_refresh makes
// the working ones, or a frozen base. A quantized file's own grid stays where the model's quantizer is the file's and
// its scales are not to be measured; a frozen base always takes it.
inline void model_load_weights(Model& m, const std::string& path) {
    ModelFile f = model_file_open(path);
    double weights = 0.0, loaded = 0.0;
    for (const ParamTensor& t : m.tensors) weights += (double)t.count();
    Progress line("loading", "tensor", (int64_t)m.tensors.size());
    for (const ParamTensor& t : m.tensors) {
        QuantizedLinear l;
        bool quantized = false;
        LinearPart* part = part_of(m, t);
        auto stored = [&] { return part && quantized && same_codes(l.quantizer, part->quantizer); };
        model_fill(
            m, t,
            [&](float* to) {
                quantized = model_file_read(f, m.config, t, to, &l);
                if (part && quantized) quantized_linear_narrow(l, part->quantizer);
            },
            [&](QuantizedTensor& q) {
                if (!stored()) return false;
                keep_grid(q, l, m.dev);
                return true;
            });
        // a grid of the weight as it is means nothing in a rotated basis
        if (!m.frozen && stored() && part->quantizer.scale_mode != ScaleMode::dynamic && !part->basis.on())
            keep_grid(*part, l, m.dev);
        line.add();
        line.measure(loaded += (double)t.count(), weights);
    }
}

// values(t, first, n, buffer): what is written of a tensor
typedef std::function<void(const ParamTensor&, int64_t, int64_t, float*)> TensorValues;

// also(folder): what else belongs into it (the tokenizer), before the folder gets its name
inline void model_save(const Model& m, const std::string& dir, const std::string& save_dtype,
                       const std::function<void(const std::string&)>& also, TensorValues values = nullptr) {
    const bool own_grid = !values;  // other values than the master's are not on its grid
    if (!values)
        values = [&m](const ParamTensor& t, int64_t first, int64_t n, float* buffer) {
            copy_to_host(buffer, m.master.data + t.offset + first, n * sizeof(float), m.dev);
        };
    replace_folder(dir, [&](const std::string& temp) {
        ModelConfig config = m.config;
        config.torch_dtype = save_dtype;
        write_file_atomic(temp + "/config.json", config_to_json(config));
        transforms_save(config, temp);
        std::vector<StWriteTensor> tensors;
        for (const ParamTensor& t : m.tensors)
            tensors.push_back(
                st_from_callback(t.name, st_dtype_of(save_dtype), param_shape(t),
                                 [&](int64_t first, int64_t n, float* buffer) { values(t, first, n, buffer); }));
        st_write_folder(temp, tensors, (uint64_t)4 << 30);
        if (own_grid) quantizer_save(m, temp), policy_save(m, temp);
        also(temp);
    });
}
