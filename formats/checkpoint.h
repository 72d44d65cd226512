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

// also(folder): what else belongs into it (the tokenizer), before the folder gets its name
inline void model_save(const Model& m, const std::string& dir, const std::string& save_dtype,
                       const std::function<void(const std::string&)>& also) {
    namespace fs = std::filesystem;
    std::string temp = dir + ".tmp", old = dir + ".old";
    std::error_code ec;
    fs::remove_all(temp, ec);
    if (!fs::create_directories(temp, ec)) fail("cannot create %s: %s", temp.c_str(), ec.message().c_str());
    try {
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
        quantizer_save(m, temp);
        also(temp);
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
