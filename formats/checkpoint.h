// Models on disk: read from a Hugging Face folder or a GGUF file, written as a Hugging Face folder.
//
// Weights are saved as float32 unless asked otherwise: at a learning rate of 1e-6 a run moves a weight of 0.02 by less
// than half a step of bf16 (1.2e-4), and a checkpoint rounded to bf16 would lose what was learnt.
// A checkpoint appears whole or not at all: it is written as NAME.tmp and renamed.
#pragma once
#include <filesystem>
#include <functional>
#include <string>
#include <vector>
#include "../model.cuh"
#include "gguf.h"
#include "hf_config.h"
#include "peft.h"
#include "quantizer_file.h"
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

// Fills the master weights of a model that was allocated for model_config(path); model_refresh makes the working ones.
inline void model_load_weights(Model& m, const std::string& path) {
    check_model_path(path);
    GgufFile gguf;
    SafetensorsSet set;
    if (is_gguf_path(path)) gguf = gguf_open(path);
    else set = st_open_folder(path);
    for (const ParamTensor& t : m.tensors)
        model_fill(m, t, [&](float* to) {
            if (is_gguf_path(path)) gguf_read_parameter(gguf, m.config, t.name, param_shape(t), to);
            else st_read_float(st_require(set.tensors, t.name, param_shape(t), path), to);
            check_finite(to, t.count(), t.name, path);
        });
}

inline void model_load(Model& m, const std::string& path) {
    model_allocate(m, model_config(path));
    model_load_weights(m, path);
}

inline const char* st_dtype_of(const std::string& save_dtype) {
    return save_dtype == "bfloat16" ? "BF16" : save_dtype == "float16" ? "F16" : "F32";
}

// dir, whole or not at all: write(folder) fills a folder that then gets the name
inline void folder_save(const std::string& dir, const std::function<void(const std::string&)>& write) {
    namespace fs = std::filesystem;
    std::string temp = dir + ".tmp", old = dir + ".old";
    std::error_code ec;
    fs::remove_all(temp, ec);
    if (!fs::create_directories(temp, ec)) fail("cannot create %s: %s", temp.c_str(), ec.message().c_str());
    try {
        write(temp);
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
    folder_save(dir, [&](const std::string& temp) {
        ModelConfig config = m.config;
        config.torch_dtype = save_dtype;
        write_file_atomic(temp + "/config.json", config_to_json(config));
        std::vector<StWriteTensor> tensors;
        for (const ParamTensor& t : m.tensors)
            tensors.push_back(st_from_callback(
                t.name, st_dtype_of(save_dtype), param_shape(t),
                [&](int64_t first, int64_t n, float* buffer) { values(t, first, n, buffer); }));
        st_write_folder(temp, tensors, (uint64_t)4 << 30);
        if (own_grid) quantizer_save(m, temp);
        also(temp);
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// merged adapters

// What merging changed: sizes of the base's adapted weights, of what was added to them, and of what quantizing the sum
// once more would take away (0 without a quantizer)
struct MergeReport {
    double base = 0.0, added = 0.0, lost = 0.0;
};

// n numbers (whole rows if t is packed) of tensor t of the base, from `first`, as they are multiplied with (frozen) or as the master has them
inline void base_values(const Model& m, const ParamTensor& t, int64_t first, int64_t n, float* out) {
    if (!m.frozen) {
        copy_to_host(out, m.master.data + t.offset + first, n * sizeof(float), m.dev);
        return;
    }
    std::vector<floatX> host(n);
    if (t.packed) {
        PartOfProduct part = part_of_product(m, t);
        Device dev = m.dev;
        dev.arena = nullptr;
        Buffer<floatX> rows;
        rows.allocate(n, "a tensor of the base", "", dev);
        quantized_weight_unpack(rows.data, t.cols, m.base[t.layer][part.product], part.row0 + first / t.cols,
                                n / t.cols, dev);
        copy_to_host(host.data(), rows.data, n * sizeof(floatX), dev);
    } else {
        copy_to_host(host.data(), m.work.data + t.offset + first, n * sizeof(floatX), m.dev);
    }
    for (int64_t i = 0; i < n; i++) out[i] = (float)host[i];
}

// The model with W + s B A for W, a folder like model_save's
inline MergeReport merged_save(const Model& m, const std::string& dir, const std::string& save_dtype,
                               const std::function<void(const std::string&)>& also) {
    MergeReport report;
    const Lora& l = m.lora;
    const int64_t r = l.config.r;
    std::vector<float> adapter(l.num_params), merged;
    copy_to_host(adapter.data(), l.master.data, l.num_params * sizeof(float), m.dev);
    auto merge = [&](const ParamTensor& t, const LoraTensor& a) {
        const float *A = adapter.data() + a.a, *B = adapter.data() + a.b;
        double base = 0.0, added = 0.0;
#pragma omp parallel for schedule(static) reduction(+ : base, added)
        for (int64_t row = 0; row < t.rows; row++) {
            std::vector<float> delta(t.cols);
            for (int64_t k = 0; k < r; k++)
                for (int64_t c = 0; c < t.cols; c++) delta[c] += B[row * r + k] * A[k * t.cols + c];
            float* w = merged.data() + row * t.cols;
            for (int64_t c = 0; c < t.cols; c++) {
                float d = l.scale * delta[c];
                base += (double)w[c] * w[c];
                added += (double)d * d;
                w[c] += d;
            }
        }
        report.base += base;
        report.added += added;
        if (!m.quantizer.on()) return;
        std::vector<floatX> value(t.count());
        std::vector<int8_t> codes(t.count());
        QuantizedTensor q;
        q.name = t.name, q.rows = t.rows, q.cols = t.cols;
        quantized_tensor_init(q, m.quantizer);
        std::vector<Grid> grid(q.groups);
        std::vector<float> floats(scale_state_floats(q, m.quantizer) + 1);
        std::vector<uint8_t> scales(q.groups);
        int64_t counts[2];
        q.state.tensor = floats.data();
        if (m.quantizer.double_quant) q.state.codes = scales.data(), q.state.absmax = floats.data() + 1;
        q.master = merged.data(), q.work = value.data(), q.codes = codes.data(), q.grid = grid.data();
        quantized_tensor_refresh(q, m.quantizer, ScaleMode::dynamic, counts, Device());
        for (int64_t i = 0; i < t.count(); i++)
            report.lost += ((double)merged[i] - (float)value[i]) * ((double)merged[i] - (float)value[i]);
    };
    model_save(m, dir, save_dtype, also, [&](const ParamTensor& t, int64_t first, int64_t n, float* buffer) {
        const LoraTensor* adapted = nullptr;
        for (const LoraTensor& a : l.tensors)
            if (a.name == t.name) adapted = &a;
        if (!adapted && !t.packed) {
            base_values(m, t, first, n, buffer);
            return;
        }
        if (first == 0) {  // the whole tensor, of which the next calls ask for the rest
            merged.resize(t.count());
            base_values(m, t, 0, t.count(), merged.data());
            if (adapted) merge(t, *adapted);
        }
        std::copy(merged.begin() + first, merged.begin() + first + n, buffer);
    });
    report.base = sqrt(report.base), report.added = sqrt(report.added), report.lost = sqrt(report.lost);
    return report;
}
