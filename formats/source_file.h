// source.json beside a checkpoint: the unquantized model that a quantized one was made of, by path and by a hash of its
// weights. Distillation teaches the quantized model with it, and the hash tells a model that has changed since.
#pragma once
#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>
#include "../runtime/file_io.h"
#include "../runtime/json.h"
#include "../runtime/progress.h"

struct ModelSource {
    std::string path;  // absolute; empty: none is known
    std::string hash;
    bool known() const { return !path.empty(); }
};

// The weight files of a model: the .gguf file, or a folder's .safetensors in the order of their names, without what
// training goes on from: that may be removed
inline std::vector<std::string> weight_files(const std::string& model) {
    namespace fs = std::filesystem;
    if (!fs::is_directory(model)) return {model};
    std::vector<std::string> files;
    for (const fs::directory_entry& e : fs::directory_iterator(model)) {
        const std::string name = e.path().filename();
        const bool of_training =
            name == "masters.safetensors" || name == "optimizer.safetensors" || name == "trainer.safetensors";
        if (e.path().extension() == ".safetensors" && !of_training) files.push_back(e.path().string());
    }
    std::sort(files.begin(), files.end());
    return files;
}

// Of a model or of any other file: 64 bits, FNV-1a over words of 8 bytes and a shift that carries high bits down: it tells files apart by accident, not
// by malice. 16 hexadecimal digits
inline std::string content_hash(const std::string& model) {
    uint64_t h = 14695981039346656037ull;
    auto mix = [&](uint64_t word) { h = (h ^ word) * 1099511628211ull, h ^= h >> 29; };
    const std::vector<std::string> files = weight_files(model);
    Progress line("hashing", "file", (int64_t)files.size());
    double all = 0.0, done = 0.0;
    std::error_code missing;  // which MappedFile says
    for (const std::string& path : files) all += (double)std::filesystem::file_size(path, missing);
    for (const std::string& path : files) {
        MappedFile file(path);
        const uint8_t* p = file.data;
        mix(file.size);
        for (size_t at = 0; at < file.size; at += 8) {
            uint64_t word = 0;
            memcpy(&word, p + at, std::min<size_t>(8, file.size - at));
            mix(word);
            if (at % ((size_t)16 << 20) == 0) line.measure(done + (double)at, all);
        }
        done += (double)file.size;
        line.add();
    }
    return format("%016llx", (unsigned long long)h);
}

inline ModelSource model_source(const std::string& model) {
    return {std::filesystem::absolute(model).lexically_normal().string(), content_hash(model)};
}

inline void source_save(const ModelSource& source, const std::string& folder) {
    if (!source.known()) return;
    nlohmann::ordered_json j;
    j["path"] = source.path;
    j["hash"] = source.hash;
    write_file_atomic(folder + "/source.json", j.dump(2) + "\n");
}

// unknown where there is none
inline ModelSource source_load(const std::string& folder) {
    const std::string path = folder + "/source.json";
    if (!file_exists(path)) return {};
    nlohmann::json j = json_parse(read_file(path, 1 << 20), path);
    auto text = [&](const char* key) {
        if (!j.is_object() || !j.contains(key) || !j[key].is_string())
            fail("%s: no text `%s`; remove the file or give --teacher", path.c_str(), key);
        return j[key].get<std::string>();
    };
    const ModelSource source = {text("path"), text("hash")};
    if (!source.known()) fail("%s: `path` is empty; remove the file or give --teacher", path.c_str());
    return source;
}
