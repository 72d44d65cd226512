// safetensors: u64 little-endian N, N bytes of JSON, then the data.
//   {"__metadata__": {"format": "pt"}, "name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}
// Offsets count from the end of the JSON, and the tensors tile the data: no hole, no overlap, nothing behind the last.
// A large model is several such files and model.safetensors.index.json: {"metadata": {"total_size": n},
// "weight_map": {tensor: file}}. Source: the format section of the safetensors project's README.
// The trap: a foreign header need not be padded, so tensor data may be misaligned; values are loaded with memcpy.
#pragma once
#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>
#include "../runtime/dtypes.h"
#include "../runtime/file_io.h"
#include "../runtime/json.h"
#include "../runtime/progress.h"

struct StDtype {
    const char* name;
    int bits;
};

// In the order of the reference implementation, whose files hold the last rows of this table first.
static constexpr StDtype st_dtypes[] = {
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
    {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64},
};
static constexpr uint64_t st_max_header = 100000000;  // the reference implementation's limit
static constexpr int64_t st_parallel = 1 << 16;       // fewer elements are not worth waking threads for

// index into st_dtypes, -1 if there is no such type
inline int st_dtype_index(const std::string& name) {
    for (size_t i = 0; i < sizeof(st_dtypes) / sizeof(st_dtypes[0]); i++)
        if (name == st_dtypes[i].name) return (int)i;
    return -1;
}

// Elements and bytes of a shape; false on overflow or where the bits do not fill whole bytes.
inline bool st_extent(const std::vector<int64_t>& shape, int bits, uint64_t* count, uint64_t* bytes) {
    uint64_t total_bits;
    *count = 1;
    for (int64_t d : shape)
        if (d < 0 || !mul_u64(*count, (uint64_t)d, count)) return false;
    if (*count > INT64_MAX || !mul_u64(*count, (uint64_t)bits, &total_bits) || total_bits % 8 != 0) return false;
    *bytes = total_bits / 8;
    return true;
}

inline std::string shape_text(const std::vector<int64_t>& shape) {
    std::string s = "[";
    for (size_t i = 0; i < shape.size() && i < 8; i++) s += format(i ? ", %lld" : "%lld", (long long)shape[i]);
    return s + (shape.size() > 8 ? ", ...]" : "]");
}

struct StTensor {
    std::string name, dtype;
    std::vector<int64_t> shape;     // row-major
    const uint8_t* data = nullptr;  // [bytes] in the mapped file, no alignment
    uint64_t bytes = 0;
    int64_t count = 0;  // elements
    std::string path;   // of the file, for messages
};

// The tensors point into `file`, wherever this object moves.
struct SafetensorsFile {
    MappedFile file;
    std::map<std::string, StTensor> tensors;
    std::map<std::string, std::string> metadata;
};

struct SafetensorsSet {
    std::vector<MappedFile> files;
    std::map<std::string, StTensor> tensors;
    std::map<std::string, std::string> metadata;  // of the first file
};

// ----------------------------------------------------------------------------------------------------------------
// reading

// One entry of a header: where in the data_bytes at `base` the tensor lies
inline StTensor st_parse_tensor(const std::string& name, const nlohmann::json& info, const uint8_t* base,
                                uint64_t data_bytes, const std::string& path) {
    std::string where = path + ": tensor " + shown(name);
    const char* w = where.c_str();
    if (!info.is_object() || !info.contains("dtype") || !info["dtype"].is_string() || !info.contains("shape") ||
        !info["shape"].is_array() || !info.contains("data_offsets") || !info["data_offsets"].is_array() ||
        info["data_offsets"].size() != 2)
        fail("%s needs dtype, shape and two data_offsets; the file is damaged", w);
    StTensor t;
    t.name = name;
    t.path = path;
    t.dtype = info["dtype"].get<std::string>();
    int dtype = st_dtype_index(t.dtype);
    if (dtype < 0) fail("%s has the unknown dtype %s", w, shown(t.dtype).c_str());
    for (auto& d : info["shape"]) {
        if (!d.is_number_unsigned() || d.get<uint64_t>() > INT64_MAX)
            fail("%s has a shape entry that is not a size; the file is damaged", w);
        t.shape.push_back(d.get<int64_t>());
    }
    uint64_t offset[2], count, bytes;
    for (int i = 0; i < 2; i++) {
        auto& o = info["data_offsets"][i];
        if (!o.is_number_unsigned()) fail("%s has a data offset that is not an offset; the file is damaged", w);
        offset[i] = o.get<uint64_t>();
    }
    if (offset[0] > offset[1] || offset[1] > data_bytes)
        fail("%s lies at bytes %llu to %llu of %llu; the file is truncated or damaged, copy it again", w,
             (unsigned long long)offset[0], (unsigned long long)offset[1], (unsigned long long)data_bytes);
    if (!st_extent(t.shape, st_dtypes[dtype].bits, &count, &bytes))
        fail("%s: no file can hold a %s of shape %s", w, t.dtype.c_str(), shape_text(t.shape).c_str());
    if (bytes != offset[1] - offset[0])
        fail("%s: a %s of shape %s needs %llu bytes, the header gives it %llu; the file is damaged", w, t.dtype.c_str(),
             shape_text(t.shape).c_str(), (unsigned long long)bytes, (unsigned long long)(offset[1] - offset[0]));
    t.data = base + offset[0];
    t.bytes = bytes;
    t.count = (int64_t)count;
    return t;
}

// Fails unless the tensors, in the order of their places, fill data_bytes at `base` without hole or overlap
inline void st_check_tiling(const std::map<std::string, StTensor>& tensors, const uint8_t* base, uint64_t data_bytes,
                            const char* file) {
    std::vector<const StTensor*> order;
    for (const auto& [name, t] : tensors) order.push_back(&t);
    std::sort(order.begin(), order.end(), [](const StTensor* a, const StTensor* b) {
        return a->data != b->data ? a->data < b->data : a->bytes < b->bytes;
    });
    uint64_t end = 0;
    for (const StTensor* t : order) {
        const uint64_t begin = (uint64_t)(t->data - base);
        if (begin != end)
            fail("%s: tensor %s %s; the file is damaged", file, shown(t->name).c_str(),
                 begin < end ? "overlaps the one before it" : "leaves a hole before it");
        end = begin + t->bytes;
    }
    if (end != data_bytes)
        fail("%s: %llu bytes behind the last tensor belong to none; the file is damaged", file,
             (unsigned long long)(data_bytes - end));
}

// The header of data [size]; path is for messages. Fails with one line on anything the format does not allow.
inline void st_parse(const uint8_t* data, uint64_t size, const std::string& path,
                     std::map<std::string, StTensor>* tensors, std::map<std::string, std::string>* metadata) {
    const char* file = path.c_str();
    if (size < 8)
        fail("%s: %llu bytes are too few for a safetensors file; copy or download it again", file,
             (unsigned long long)size);
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | data[i];
    if (n > st_max_header || n < 2)
        fail("%s: a header of %llu bytes (2 to %llu are allowed); this is not a safetensors file", file,
             (unsigned long long)n, (unsigned long long)st_max_header);
    if (n > size - 8)
        fail("%s: a header of %llu bytes in a file of %llu; it is truncated, copy or download it again", file,
             (unsigned long long)n, (unsigned long long)size);
    if (data[8] != '{') fail("%s: the header does not begin with '{'; this is not a safetensors file", file);
    const uint8_t* base = data + 8 + n;
    const uint64_t data_bytes = size - 8 - n;

    nlohmann::json header = json_parse({(const char*)data + 8, (size_t)n}, path);
    for (auto& [name, info] : header.items()) {
        if (name != "__metadata__") {  // json_parse has refused a second tensor of this name
            tensors->emplace(name, st_parse_tensor(name, info, base, data_bytes, path));
            continue;
        }
        if (!info.is_object()) fail("%s: __metadata__ is not an object; the file is damaged", file);
        for (auto& [key, value] : info.items()) {
            if (!value.is_string()) fail("%s: __metadata__ %s is not a string", file, shown(key).c_str());
            (*metadata)[key] = value.get<std::string>();
        }
    }
    st_check_tiling(*tensors, base, data_bytes, file);
}

inline SafetensorsFile st_open(const std::string& path) {
    SafetensorsFile f;
    f.file = MappedFile(path);
    st_parse(f.file.data, f.file.size, path, &f.tensors, &f.metadata);
    return f;
}

// The model in a folder: model.safetensors, or the shards that model.safetensors.index.json names.
inline SafetensorsSet st_open_folder(const std::string& dir) {
    SafetensorsSet set;
    std::string single = dir + "/model.safetensors", index_path = single + ".index.json";
    if (file_exists(single)) {
        SafetensorsFile f = st_open(single);
        set.files.push_back(std::move(f.file));
        set.tensors = std::move(f.tensors);
        set.metadata = std::move(f.metadata);
        return set;
    }
    if (!file_exists(index_path))
        fail("%s holds neither model.safetensors nor model.safetensors.index.json%s", dir.c_str(),
             file_exists(dir + "/pytorch_model.bin") || file_exists(dir + "/pytorch_model.bin.index.json")
                 ? "; convert its pytorch_model.bin to safetensors first"
                 : "; give the folder of a Hugging Face model");
    nlohmann::json index = json_parse(read_file(index_path, st_max_header), index_path);
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
        fail("%s: weight_map is missing; the file is damaged", index_path.c_str());
    std::set<std::string> shards;
    for (auto& [name, file] : index["weight_map"].items()) {
        std::string shard = file.is_string() ? file.get<std::string>() : "";
        // a name, not a path: an index must not make us read outside its folder
        if (shard.empty() || shard[0] == '.' || shard.find_first_of(std::string("/\\\0", 3)) != std::string::npos)
            fail("%s: tensor %s is said to be in %s, which is not a file name", index_path.c_str(), shown(name).c_str(),
                 shown(shard).c_str());
        if (shards.insert(shard).second && !file_exists(dir + "/" + shard))
            fail("%s: the shard %s is missing from the folder; download it", index_path.c_str(), shown(shard).c_str());
    }
    if (shards.empty()) fail("%s: weight_map is empty; the file is damaged", index_path.c_str());
    for (const std::string& shard : shards) {
        SafetensorsFile f = st_open(dir + "/" + shard);
        if (set.files.empty()) set.metadata = std::move(f.metadata);
        set.files.push_back(std::move(f.file));
        for (auto& [name, tensor] : f.tensors) {
            auto inserted = set.tensors.emplace(name, tensor);
            if (!inserted.second)
                fail("%s: tensor %s is in %s too; keep one of them", tensor.path.c_str(), shown(name).c_str(),
                     inserted.first->second.path.c_str());
        }
    }
    for (auto& [name, file] : index["weight_map"].items()) {
        auto it = set.tensors.find(name);
        std::string path = dir + "/" + file.get<std::string>();
        if (it == set.tensors.end() || it->second.path != path)
            fail("%s: tensor %s is not in %s as the index says; download the shard again", index_path.c_str(),
                 shown(name).c_str(), path.c_str());
    }
    return set;
}

// The tensor of this name, nullptr if there is none.
inline const StTensor* st_find(const std::map<std::string, StTensor>& tensors, const std::string& name) {
    auto it = tensors.find(name);
    return it == tensors.end() ? nullptr : &it->second;
}

// The tensor of this name and shape, or one line saying what is wrong; where names the folder or file.
inline const StTensor& st_require(const std::map<std::string, StTensor>& tensors, const std::string& name,
                                  const std::vector<int64_t>& shape, const std::string& where) {
    const StTensor* t = st_find(tensors, name);
    if (!t)
        fail("%s: tensor %s is missing; is this the model that its config.json describes?", where.c_str(),
             name.c_str());
    if (t->shape != shape)
        fail("%s: tensor %s has shape %s, but config.json asks for %s", t->path.c_str(), name.c_str(),
             shape_text(t->shape).c_str(), shape_text(shape).c_str());
    return *t;
}

// Elements [first, first + n) as fp32 into dst [n]; n = -1 reads to the end. F32, F16, BF16 and F64 (rounded).
inline void st_read_float(const StTensor& t, float* dst, int64_t first = 0, int64_t n = -1) {
    if (n < 0) n = t.count - first;
    if (first < 0 || n < 0 || first > t.count || n > t.count - first)
        fail("%s: elements %lld to %lld of tensor %s, which has %lld", t.path.c_str(), (long long)first,
             (long long)(first + n), shown(t.name).c_str(), (long long)t.count);
    const uint8_t* data = t.data;
    if (t.dtype == "F32") {
        const int64_t chunk = 1 << 16;
#pragma omp parallel for schedule(static) if (n > st_parallel)
        for (int64_t i = 0; i < n; i += chunk)
            memcpy(dst + i, data + 4 * (first + i), 4 * (size_t)std::min(chunk, n - i));
    } else if (t.dtype == "BF16") {
#pragma omp parallel for schedule(static) if (n > st_parallel)
        for (int64_t i = 0; i < n; i++) {
            uint16_t bits;
            memcpy(&bits, data + 2 * (first + i), 2);
            dst[i] = bf16_bits_to_float(bits);
        }
    } else if (t.dtype == "F16") {
#pragma omp parallel for schedule(static) if (n > st_parallel)
        for (int64_t i = 0; i < n; i++) {
            uint16_t bits;
            memcpy(&bits, data + 2 * (first + i), 2);
            dst[i] = fp16_bits_to_float(bits);
        }
    } else if (t.dtype == "F64") {
#pragma omp parallel for schedule(static) if (n > st_parallel)
        for (int64_t i = 0; i < n; i++) {
            double value;
            memcpy(&value, data + 8 * (first + i), 8);
            dst[i] = (float)value;
        }
    } else {
        fail("%s: tensor %s is %s; only F32, F16, BF16 and F64 can be read as numbers", t.path.c_str(),
             shown(t.name).c_str(), t.dtype.c_str());
    }
}

// ----------------------------------------------------------------------------------------------------------------
// writing

// A tensor to write. encode(first, n, dst) puts elements [first, first + n), in the file's dtype, at dst; it is called
// for 1 Mi elements at a time, in order, so a model is never copied as a whole.
struct StWriteTensor {
    std::string name, dtype;
    std::vector<int64_t> shape;
    std::function<void(int64_t first, int64_t n, uint8_t* dst)> encode;
};

// fp32 src [n] -> dst [n] in dtype F32, F16 or BF16, rounded to nearest even
inline void st_encode_float(const std::string& dtype, const float* src, int64_t n, uint8_t* dst) {
    if (dtype == "F32") {
        memcpy(dst, src, 4 * (size_t)n);
    } else if (dtype == "BF16" || dtype == "F16") {
        bool bf = dtype == "BF16";
#pragma omp parallel for schedule(static) if (n > st_parallel)
        for (int64_t i = 0; i < n; i++) {
            uint16_t bits = bf ? float_to_bf16_bits(src[i]) : float_to_fp16_bits(src[i]);
            memcpy(dst + 2 * i, &bits, 2);
        }
    } else {
        fail("numbers can be written as F32, F16 or BF16, not as %s", shown(dtype).c_str());
    }
}

// fp32 values -> dtype F32, F16 or BF16. data must outlive the write.
inline StWriteTensor st_from_float(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape,
                                   const float* data) {
    return {name, dtype, shape,
            [dtype, data](int64_t first, int64_t n, uint8_t* dst) { st_encode_float(dtype, data + first, n, dst); }};
}

// Values that fill(first, n, buffer [n]) computes when their turn comes -> dtype F32, F16 or BF16.
inline StWriteTensor st_from_callback(const std::string& name, const std::string& dtype,
                                      const std::vector<int64_t>& shape,
                                      std::function<void(int64_t first, int64_t n, float* buffer)> fill) {
    return {name, dtype, shape, [dtype, fill](int64_t first, int64_t n, uint8_t* dst) {
                std::vector<float> buffer((size_t)n);
                fill(first, n, buffer.data());
                st_encode_float(dtype, buffer.data(), n, dst);
            }};
}

// bytes of each tensor, all of them checked
inline std::vector<uint64_t> st_layout(const std::string& path, const std::vector<StWriteTensor>& tensors) {
    std::vector<uint64_t> bytes(tensors.size());
    std::set<std::string> names;
    for (size_t i = 0; i < tensors.size(); i++) {
        const StWriteTensor& t = tensors[i];
        uint64_t count;
        int dtype = st_dtype_index(t.dtype);
        if (dtype < 0 || !st_extent(t.shape, st_dtypes[dtype].bits, &count, &bytes[i]))
            fail("cannot write %s: tensor %s of dtype %s and shape %s", path.c_str(), shown(t.name).c_str(),
                 shown(t.dtype).c_str(), shape_text(t.shape).c_str());
        if (t.name == "__metadata__" || !names.insert(t.name).second)
            fail("cannot write %s: the tensor name %s is taken", path.c_str(), shown(t.name).c_str());
    }
    return bytes;
}

// header and data of tensors[which] into file, which stays uncommitted
inline void st_write_into(AtomicFile& file, const std::vector<StWriteTensor>& tensors,
                          const std::vector<uint64_t>& bytes, std::vector<size_t> which,
                          const std::map<std::string, std::string>& metadata) {
    // the reference implementation's order: by dtype, widest first, then by name
    std::sort(which.begin(), which.end(), [&](size_t a, size_t b) {
        int da = st_dtype_index(tensors[a].dtype), db = st_dtype_index(tensors[b].dtype);
        return da != db ? da > db : tensors[a].name < tensors[b].name;
    });
    nlohmann::ordered_json header = nlohmann::ordered_json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    uint64_t offset = 0;
    for (size_t i : which) {
        nlohmann::ordered_json info;
        info["dtype"] = tensors[i].dtype;
        info["shape"] = tensors[i].shape;
        info["data_offsets"] = {offset, offset + bytes[i]};
        header.push_back({tensors[i].name, info});
        offset += bytes[i];
    }
    std::string text;
    try {
        text = header.dump();
    } catch (const nlohmann::json::exception&) {
        fail("cannot write %s: a tensor name or the metadata is not UTF-8", file.path.c_str());
    }
    text.resize((text.size() + 7) / 8 * 8, ' ');
    if (text.size() > st_max_header)
        fail("cannot write %s: its header would have %llu bytes, %llu are allowed; write smaller shards",
             file.path.c_str(), (unsigned long long)text.size(), (unsigned long long)st_max_header);
    uint8_t length[8];
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)((uint64_t)text.size() >> (8 * i));
    file.write(length, 8);
    file.write(text);
    const int64_t chunk = 1 << 20;
    std::vector<uint8_t> buffer;
    Progress line("writing", "tensor", (int64_t)which.size());
    double written = 0.0;
    for (size_t i : which) {
        const StWriteTensor& t = tensors[i];
        int bits = st_dtypes[st_dtype_index(t.dtype)].bits;
        const int64_t count = (int64_t)(bytes[i] * 8 / (uint64_t)bits);  // st_layout has checked it
        for (int64_t first = 0; first < count; first += chunk) {
            int64_t n = std::min(chunk, count - first);
            buffer.resize((size_t)(n * bits / 8));
            t.encode(first, n, buffer.data());
            file.write(buffer.data(), buffer.size());
            line.measure(written += (double)buffer.size(), (double)offset);
        }
        line.add();
    }
}

// One file, complete or not there at all. transformers wants the metadata {"format": "pt"}.
inline void st_write(const std::string& path, const std::vector<StWriteTensor>& tensors,
                     const std::map<std::string, std::string>& metadata = {{"format", "pt"}}) {
    std::vector<uint64_t> bytes = st_layout(path, tensors);
    std::vector<size_t> all(tensors.size());
    for (size_t i = 0; i < all.size(); i++) all[i] = i;
    AtomicFile file(path);
    st_write_into(file, tensors, bytes, all, metadata);
    file.commit();
}

// A model into an existing folder: model.safetensors, or shards of at most max_shard_bytes of data (0: no limit; a
// larger tensor gets a shard of its own) and their index. The shards get their names only when all are on the disk;
// an index or a model.safetensors of an earlier write, which a reader would take instead, is removed.
inline void st_write_folder(const std::string& dir, const std::vector<StWriteTensor>& tensors,
                            uint64_t max_shard_bytes = 0,
                            const std::map<std::string, std::string>& metadata = {{"format", "pt"}}) {
    std::string single = dir + "/model.safetensors", index_path = single + ".index.json";
    std::vector<uint64_t> bytes = st_layout(single, tensors);
    std::vector<std::vector<size_t>> shards(1);
    uint64_t filled = 0, total = 0;
    for (size_t i = 0; i < tensors.size(); i++) {
        if (max_shard_bytes > 0 && !shards.back().empty() &&
            bytes[i] > max_shard_bytes - std::min(max_shard_bytes, filled)) {
            shards.emplace_back();
            filled = 0;
        }
        shards.back().push_back(i);
        filled += bytes[i];
        total += bytes[i];
    }
    if (shards.size() == 1) {
        st_write(single, tensors, metadata);
        unlink(index_path.c_str());
        return;
    }
    nlohmann::ordered_json weight_map = nlohmann::ordered_json::object();
    std::vector<std::unique_ptr<AtomicFile>> files;
    for (size_t s = 0; s < shards.size(); s++) {
        std::string name = format("model-%05zu-of-%05zu.safetensors", s + 1, shards.size());
        files.push_back(std::make_unique<AtomicFile>(dir + "/" + name));
        st_write_into(*files.back(), tensors, bytes, shards[s], metadata);
        files.back()->finish();
        for (size_t i : shards[s]) weight_map.push_back({tensors[i].name, name});
    }
    AtomicFile index(index_path);
    nlohmann::ordered_json j;
    j["metadata"]["total_size"] = total;
    j["weight_map"] = weight_map;
    index.write(j.dump(2) + "\n");
    index.finish();
    for (auto& f : files) f->commit();
    index.commit();
    unlink(single.c_str());
}

// An index of the model in a folder of one file, for loaders that would otherwise take all *.safetensors beside it; a
// folder of shards has one
inline void st_write_index(const std::string& dir) {
    const std::string single = dir + "/model.safetensors";
    if (!file_exists(single)) return;
    nlohmann::ordered_json j;
    uint64_t total = 0;
    j["weight_map"] = nlohmann::ordered_json::object();
    for (const auto& [name, t] : st_open(single).tensors) {
        j["weight_map"].push_back({name, "model.safetensors"});
        total += t.bytes;
    }
    j["metadata"]["total_size"] = total;
    write_file_atomic(single + ".index.json", j.dump(2) + "\n");
}
