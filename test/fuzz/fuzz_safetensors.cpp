// A safetensors file, or a folder of shards with its index. Every tensor of what is read lies within a file, and what
// is written of it reads back as the same tensors and metadata, and writes the same bytes again.
#include "../../formats/safetensors.h"
#include "fuzz.h"

static std::vector<StWriteTensor> fuzz_tensors_of(const std::map<std::string, StTensor>& tensors) {
    std::vector<StWriteTensor> list;
    for (const auto& [name, t] : tensors) {
        const int bits = st_dtypes[st_dtype_index(t.dtype)].bits;
        list.push_back({name, t.dtype, t.shape, [bits, from = t.data](int64_t first, int64_t n, uint8_t* dst) {
                            memcpy(dst, from + first * bits / 8, (size_t)(n * bits / 8));
                        }});
    }
    return list;
}

static int fuzz_safetensors(const uint8_t* data, size_t size) {
    static const FuzzFolder folder;
    folder.put(fuzz_files(data, size, "model.safetensors"),
               {"model.safetensors", "model.safetensors.index.json", "a.safetensors", "b.safetensors"});
    SafetensorsSet set;
    if (!fuzz_accepts([&] { set = st_open_folder(folder.path); })) return 0;
    for (const auto& item : set.tensors) {
        const StTensor& t = item.second;
        bool inside = false;
        for (const MappedFile& f : set.files)
            inside = inside || (t.data >= f.data && t.data + t.bytes <= f.data + f.size);
        fuzz_require(inside, "a tensor lies within a file");
        std::vector<float> values((size_t)(t.dtype[0] == 'F' || t.dtype[0] == 'B' ? t.count : 0));
        fuzz_accepts([&] { st_read_float(t, values.data(), 0, (int64_t)values.size()); });
    }
    const std::string again = folder / "again", twice = folder / "twice";
    st_write(again, fuzz_tensors_of(set.tensors), set.metadata);
    const SafetensorsFile copy = st_open(again);
    fuzz_require(copy.metadata == set.metadata && copy.tensors.size() == set.tensors.size(), "nothing is lost");
    for (const auto& [name, t] : set.tensors) {
        const StTensor* c = st_find(copy.tensors, name);
        fuzz_require(c && c->dtype == t.dtype && c->shape == t.shape && c->bytes == t.bytes &&
                         (t.bytes == 0 || memcmp(c->data, t.data, t.bytes) == 0),
                     "a tensor is the same");
    }
    st_write(twice, fuzz_tensors_of(copy.tensors), copy.metadata);
    fuzz_require(read_file(again) == read_file(twice), "the bytes are the same");
    return 0;
}
FUZZ_TARGET(safetensors)
