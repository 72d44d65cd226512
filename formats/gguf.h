// GGUF, llama.cpp's model file, versions 2 and 3, little-endian:
//   "GGUF", u32 version, u64 n_tensors, u64 n_kv, the key-value pairs, the tensor infos, padding, the data.
//   string = u64 length + bytes;  pair = string key, u32 type, value;  array = u32 element type, u64 n, elements
//   tensor info = string name, u32 n_dims, u64 dims (fastest first), u32 type, u64 offset into the data
// The trap: llama.cpp stores the q and k rows of architecture "llama" permuted for interleaved RoPE, see
// gguf_unpermute_rows; those of qwen2 and qwen3 are stored as Hugging Face has them.
#pragma once
#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>
#include "gguf_blocks.h"
#include "../model/config.h"
#include "../runtime/file_io.h"
#include "../runtime/printable.h"

// ----------------------------------------------------------------------------------------------------------------
// the file

enum GgufValueType : uint32_t {
    GGUF_U8 = 0,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_VALUE_TYPES
};

// bytes of a scalar; 0 for strings and arrays
static constexpr int gguf_value_bytes[GGUF_VALUE_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

// A metadata value as it lies in the file: a scalar (count 1), a string (count bytes) or an array (count elements, each
// checked to lie within the file).
struct GgufValue {
    uint32_t type = 0, element = 0;  // element: type of an array's elements
    uint64_t count = 0;
    const uint8_t* data = nullptr;
};

struct GgufTensor {
    std::string name;
    const GgufType* type = nullptr;
    std::vector<int64_t> shape;     // row-major as in Hugging Face: a weight is [out, in]
    int64_t count = 0;              // elements
    const uint8_t* data = nullptr;  // [bytes], whole blocks
    uint64_t bytes = 0;
    std::string path;  // of the file, for messages
};

struct GgufFile {
    std::string path;
    MappedFile file;
    uint32_t version = 0;
    std::map<std::string, GgufValue> values;
    std::map<std::string, GgufTensor> tensors;
};

// A position in the header. take() is the only way forward and never passes the end.
struct GgufCursor {
    const uint8_t *p, *end;
    const char* path;
    uint64_t left() const { return (uint64_t)(end - p); }
    const uint8_t* take(uint64_t n, const std::string& what) {
        if (n > left())
            fail("%s: %s needs %llu bytes where %llu are left; the file is truncated or damaged", path, what.c_str(),
                 (unsigned long long)n, (unsigned long long)left());
        const uint8_t* at = p;
        p += n;
        return at;
    }
    uint32_t u32(const std::string& what) {
        uint32_t v;
        memcpy(&v, take(4, what), 4);
        return v;
    }
    uint64_t u64(const std::string& what) {
        uint64_t v;
        memcpy(&v, take(8, what), 8);
        return v;
    }
    std::string name(uint64_t longest, const std::string& what) {
        uint64_t n = u64(what);
        if (n > longest)
            fail("%s: %s is a name of %llu bytes (at most %llu are allowed); the file is damaged", path, what.c_str(),
                 (unsigned long long)n, (unsigned long long)longest);
        const uint8_t* s = take(n, what);
        return std::string((const char*)s, (size_t)n);
    }
};

// one metadata value, every length in it checked
inline GgufValue gguf_parse_value(GgufCursor& c, const std::string& what) {
    GgufValue v;
    v.type = c.u32(what);
    if (v.type >= GGUF_VALUE_TYPES)
        fail("%s: %s has the unknown type %u; the file is damaged", c.path, what.c_str(), v.type);
    if (v.type == GGUF_STRING) {
        v.count = c.u64(what);
        v.data = c.take(v.count, what);
    } else if (v.type == GGUF_ARRAY) {
        v.element = c.u32(what);
        v.count = c.u64(what);
        v.data = c.p;
        if (v.element >= GGUF_VALUE_TYPES || v.element == GGUF_ARRAY)
            fail("%s: %s is an array of type %u, which is not supported", c.path, what.c_str(), v.element);
        if (v.element == GGUF_STRING) {
            for (uint64_t i = 0; i < v.count; i++) c.take(c.u64(what), what);
        } else {
            uint64_t bytes;
            if (!mul_u64(v.count, (uint64_t)gguf_value_bytes[v.element], &bytes)) bytes = UINT64_MAX;
            c.take(bytes, what);
        }
    } else {
        v.count = 1;
        v.data = c.take((uint64_t)gguf_value_bytes[v.type], what);
    }
    return v;
}

inline void gguf_parse_tensor(GgufCursor& c, GgufTensor* t, uint64_t* offset) {
    t->path = c.path;
    t->name = c.name(63, "a tensor name");  // ggml holds names in 64 bytes
    std::string what = "tensor " + shown(t->name);
    const char* w = what.c_str();
    uint32_t n_dims = c.u32(what);
    if (n_dims > 4) fail("%s: %s has %u dimensions (at most 4 are allowed); the file is damaged", c.path, w, n_dims);
    uint64_t count = 1;
    for (uint32_t i = 0; i < n_dims; i++) {
        uint64_t d = c.u64(what);
        if (d == 0 || d > INT64_MAX || !mul_u64(count, d, &count) || count > INT64_MAX / 16)
            fail("%s: %s has an impossible dimension %llu; the file is damaged", c.path, w, (unsigned long long)d);
        t->shape.insert(t->shape.begin(), (int64_t)d);
    }
    uint32_t id = c.u32(what);
    t->type = gguf_type(id);
    if (!t->type) fail("%s: %s has the unknown type %u; the file is damaged or newer than this reader", c.path, w, id);
    uint64_t row = t->shape.empty() ? 1 : (uint64_t)t->shape.back();
    if (row % (uint64_t)t->type->block != 0)
        fail("%s: %s has rows of %llu values, but %s comes in blocks of %d; the file is damaged", c.path, w,
             (unsigned long long)row, t->type->name, t->type->block);
    t->count = (int64_t)count;
    t->bytes =
        count / (uint64_t)t->type->block * (uint64_t)t->type->bytes;  // below 2^63: count < 2^59, <= 8 bytes each
    *offset = c.u64(what);
}

// where tensors may begin: multiples of it
inline uint64_t gguf_alignment(const GgufFile& f) {
    auto it = f.values.find("general.alignment");
    if (it == f.values.end()) return 32;
    uint32_t a = 0;
    if (it->second.type == GGUF_U32) memcpy(&a, it->second.data, 4);
    if (a < 1 || a > (1u << 20) || (a & (a - 1)) != 0)
        fail("%s: general.alignment is not a power of two up to 2^20; the file is damaged", f.path.c_str());
    return a;
}

// The header of data [size] into f->values and f->tensors, which then point into data. f->path is for messages.
inline void gguf_parse(const uint8_t* data, uint64_t size, GgufFile* f) {
    const char* path = f->path.c_str();
    GgufCursor c = {data, data + size, path};
    if (size < 4 || memcmp(data, "GGUF", 4) != 0) fail("%s: does not begin with GGUF; give a .gguf file", path);
    c.take(4, "the magic");
    f->version = c.u32("the version");
    if (f->version == 0x02000000u || f->version == 0x03000000u)
        fail("%s: a big-endian GGUF file; convert it with gguf-convert-endian", path);
    if (f->version != 2 && f->version != 3) fail("%s: GGUF version %u; 2 and 3 are supported", path, f->version);
    uint64_t n_tensors = c.u64("the number of tensors"), n_kv = c.u64("the number of keys");
    // the smallest pair takes 8 + 4 + 1 bytes, the smallest tensor info 8 + 4 + 4 + 8
    if (n_kv > c.left() / 13 || n_tensors > c.left() / 24)
        fail("%s: %llu keys and %llu tensors do not fit into %llu bytes; the file is truncated or damaged", path,
             (unsigned long long)n_kv, (unsigned long long)n_tensors, (unsigned long long)size);
    for (uint64_t i = 0; i < n_kv; i++) {
        std::string key = c.name(65535, "a key");
        GgufValue value = gguf_parse_value(c, "key " + shown(key));
        if (!f->values.emplace(key, value).second)
            fail("%s: the key %s appears twice; the file is damaged", path, shown(key).c_str());
    }
    const uint64_t alignment = gguf_alignment(*f);
    struct Span {
        uint64_t offset;
        GgufTensor* tensor;
    };
    std::vector<Span> spans;
    for (uint64_t i = 0; i < n_tensors; i++) {
        GgufTensor t;
        uint64_t offset;
        gguf_parse_tensor(c, &t, &offset);
        std::string name = t.name;
        auto inserted = f->tensors.emplace(name, std::move(t));
        if (!inserted.second) fail("%s: the tensor %s appears twice; the file is damaged", path, shown(name).c_str());
        spans.push_back({offset, &inserted.first->second});
    }
    uint64_t start = (uint64_t)(c.p - data);
    start += (alignment - start % alignment) % alignment;
    uint64_t data_bytes = start < size ? size - start : 0;
    std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.offset < b.offset; });
    uint64_t end = 0;
    for (const Span& s : spans) {
        GgufTensor& t = *s.tensor;
        if (s.offset % alignment != 0)
            fail("%s: tensor %s begins at offset %llu, which is no multiple of %llu; the file is damaged", path,
                 shown(t.name).c_str(), (unsigned long long)s.offset, (unsigned long long)alignment);
        if (s.offset > data_bytes || t.bytes > data_bytes - s.offset)
            fail("%s: tensor %s needs %llu bytes at offset %llu of %llu; the file is truncated, copy it again", path,
                 shown(t.name).c_str(), (unsigned long long)t.bytes, (unsigned long long)s.offset,
                 (unsigned long long)data_bytes);
        if (s.offset < end)
            fail("%s: tensor %s overlaps the one before it; the file is damaged", path, shown(t.name).c_str());
        end = s.offset + t.bytes;
        t.data = data + start + s.offset;
    }
}

inline GgufFile gguf_open(const std::string& path) {
    GgufFile f;
    f.path = path;
    f.file = MappedFile(path);
    gguf_parse(f.file.data, f.file.size, &f);
    return f;
}

inline const GgufTensor* gguf_find(const GgufFile& f, const std::string& name) {
    auto it = f.tensors.find(name);
    return it == f.tensors.end() ? nullptr : &it->second;
}

// ----------------------------------------------------------------------------------------------------------------
// metadata

inline const GgufValue* gguf_value(const GgufFile& f, const std::string& key) {
    auto it = f.values.find(key);
    return it == f.values.end() ? nullptr : &it->second;
}

// a scalar of integer or bool type at p; false for other types and for u64 beyond int64
inline bool gguf_scalar_int(uint32_t type, const uint8_t* p, int64_t* out) {
    uint64_t u = 0;
    int bytes = type < GGUF_VALUE_TYPES ? gguf_value_bytes[type] : 0;
    if (bytes == 0 || type == GGUF_F32 || type == GGUF_F64) return false;
    memcpy(&u, p, (size_t)bytes);
    bool is_signed = type == GGUF_I8 || type == GGUF_I16 || type == GGUF_I32 || type == GGUF_I64;
    if (type == GGUF_U64 && u > INT64_MAX) return false;
    int shift = 64 - 8 * bytes;
    *out = is_signed ? (int64_t)(u << shift) >> shift : (int64_t)u;
    return true;
}

inline int64_t gguf_int(const GgufFile& f, const std::string& key, int64_t fallback) {
    const GgufValue* v = gguf_value(f, key);
    int64_t out = fallback;
    if (v && !gguf_scalar_int(v->type, v->data, &out))
        fail("%s: the key %s is not an integer", f.path.c_str(), shown(key).c_str());
    return out;
}

inline double gguf_float(const GgufFile& f, const std::string& key, double fallback) {
    const GgufValue* v = gguf_value(f, key);
    if (!v) return fallback;
    if (v->type == GGUF_F32) {
        float x;
        memcpy(&x, v->data, 4);
        return x;
    }
    if (v->type == GGUF_F64) {
        double x;
        memcpy(&x, v->data, 8);
        return x;
    }
    fail("%s: the key %s is not a floating-point number", f.path.c_str(), shown(key).c_str());
}

inline std::string gguf_string(const GgufFile& f, const std::string& key, const std::string& fallback) {
    const GgufValue* v = gguf_value(f, key);
    if (!v) return fallback;
    if (v->type != GGUF_STRING) fail("%s: the key %s is not a string", f.path.c_str(), shown(key).c_str());
    return std::string((const char*)v->data, (size_t)v->count);
}

// arrays; empty when the key is absent
inline std::vector<std::string> gguf_strings(const GgufFile& f, const std::string& key) {
    std::vector<std::string> out;
    const GgufValue* v = gguf_value(f, key);
    if (!v) return out;
    if (v->type != GGUF_ARRAY || v->element != GGUF_STRING)
        fail("%s: the key %s is not an array of strings", f.path.c_str(), shown(key).c_str());
    out.reserve((size_t)v->count);  // gguf_parse_value has walked over all of them
    const uint8_t* p = v->data;
    for (uint64_t i = 0; i < v->count; i++) {
        uint64_t n;
        memcpy(&n, p, 8);
        out.emplace_back((const char*)p + 8, (size_t)n);
        p += 8 + n;
    }
    return out;
}

inline std::vector<int> gguf_ints(const GgufFile& f, const std::string& key) {
    std::vector<int> out;
    const GgufValue* v = gguf_value(f, key);
    if (!v) return out;
    if (v->type != GGUF_ARRAY) fail("%s: the key %s is not an array", f.path.c_str(), shown(key).c_str());
    for (uint64_t i = 0; i < v->count; i++) {
        int64_t x = 0;
        if (v->element == GGUF_STRING ||
            !gguf_scalar_int(v->element, v->data + i * (uint64_t)gguf_value_bytes[v->element], &x) || x > INT32_MAX ||
            x < INT32_MIN)
            fail("%s: the key %s is not an array of 32-bit integers", f.path.c_str(), shown(key).c_str());
        out.push_back((int)x);
    }
    return out;
}

// ----------------------------------------------------------------------------------------------------------------
// reading a tensor

// Elements [first, first + n) of a tensor as fp32 into dst [n]; n = -1 reads to the end. Both must be whole blocks,
// which whole rows always are.
inline void gguf_read_float(const GgufTensor& t, float* dst, int64_t first = 0, int64_t n = -1) {
    if (n < 0) n = t.count - first;
    std::string where = t.path + ": tensor " + shown(t.name);
    const char* w = where.c_str();
    if (first < 0 || n < 0 || first > t.count || n > t.count - first)
        fail("%s: elements %lld to %lld of %lld", w, (long long)first, (long long)(first + n), (long long)t.count);
    if (first % t.type->block != 0 || n % t.type->block != 0)
        fail("%s: %lld elements from %lld are not whole blocks of %d", w, (long long)n, (long long)first,
             t.type->block);
    if (!t.type->read) {
        std::string known;
        for (const GgufType& k : gguf_types)
            if (k.read) known += (known.empty() ? "" : ", ") + std::string(k.name);
        fail("%s has type %s, which cannot be read; use %s", w, t.type->name, known.c_str());
    }
    int64_t size = t.type->bytes, values = t.type->block, blocks = n / values;
    const uint8_t* data = t.data + first / values * size;
#pragma omp parallel for schedule(static) if (n > (1 << 16))
    for (int64_t i = 0; i < blocks; i++) t.type->read(data + i * size, dst + i * values);
}

// ----------------------------------------------------------------------------------------------------------------
// names and row order

static constexpr const char* gguf_layer_names[][2] = {
    {"attn_norm.weight", "input_layernorm.weight"},
    {"attn_q.weight", "self_attn.q_proj.weight"},
    {"attn_k.weight", "self_attn.k_proj.weight"},
    {"attn_v.weight", "self_attn.v_proj.weight"},
    {"attn_q.bias", "self_attn.q_proj.bias"},
    {"attn_k.bias", "self_attn.k_proj.bias"},
    {"attn_v.bias", "self_attn.v_proj.bias"},
    {"attn_q_norm.weight", "self_attn.q_norm.weight"},
    {"attn_k_norm.weight", "self_attn.k_norm.weight"},
    {"attn_output.weight", "self_attn.o_proj.weight"},
    {"ffn_norm.weight", "post_attention_layernorm.weight"},
    {"ffn_gate.weight", "mlp.gate_proj.weight"},
    {"ffn_up.weight", "mlp.up_proj.weight"},
    {"ffn_down.weight", "mlp.down_proj.weight"},
};
static constexpr const char* gguf_global_names[][2] = {
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
};

// "" for a name that is in neither table
inline std::string hf_to_gguf_name(const std::string& name) {
    const std::string prefix = "model.layers.";
    for (auto& pair : gguf_global_names)
        if (name == pair[1]) return pair[0];
    if (name.compare(0, prefix.size(), prefix) != 0) return "";
    size_t begin = prefix.size(), dot = name.find('.', begin);
    if (dot == std::string::npos || dot == begin || dot - begin > 4 ||
        name.find_first_not_of("0123456789", begin) != dot)
        return "";
    std::string layer = name.substr(begin, dot - begin), rest = name.substr(dot + 1);
    for (auto& pair : gguf_layer_names)
        if (rest == pair[1]) return "blk." + layer + "." + pair[0];
    return "";
}

// What llama.cpp does to the q and k projections of architecture "llama": row 2i + s of a head (s = 0, 1; the pairs of
// interleaved RoPE) is row s * HD/2 + i of Hugging Face's (the halves of rotate_half RoPE). The row of Hugging Face's
// matrix that is row r of the file's:
inline int64_t gguf_hf_row(int64_t r, int64_t head_dim) {
    int64_t in_head = r % head_dim;
    return r - in_head + in_head % 2 * (head_dim / 2) + in_head / 2;
}

// Undoes it in place. w [rows, cols], rows = n_head * HD; n_head is NH for q, NKV for k. A bias has cols = 1.
inline void gguf_unpermute_rows(float* w, int64_t n_head, int64_t rows, int64_t cols) {
    if (n_head < 1 || rows % (2 * n_head) != 0)
        fail("cannot reorder %lld rows for rotary embeddings with %lld heads", (long long)rows, (long long)n_head);
    int64_t head_dim = rows / n_head;
    std::vector<float> head((size_t)(head_dim * cols));
    for (int64_t h = 0; h < n_head; h++) {
        float* rows_of_head = w + h * head_dim * cols;  // [HD, cols]
        memcpy(head.data(), rows_of_head, head.size() * sizeof(float));
        for (int64_t r = 0; r < head_dim; r++)
            memcpy(rows_of_head + gguf_hf_row(r, head_dim) * cols, head.data() + r * cols,
                   (size_t)cols * sizeof(float));
    }
}

// The tensor of a parameter. Fails if it is missing or has another shape.
inline const GgufTensor& gguf_parameter(const GgufFile& f, const std::string& hf_name,
                                        const std::vector<int64_t>& shape) {
    std::string name = hf_to_gguf_name(hf_name);
    const GgufTensor* t = gguf_find(f, name);
    if (!t)
        fail("%s: tensor %s (%s) is missing; the file is incomplete or of another architecture", f.path.c_str(),
             name.c_str(), hf_name.c_str());
    if (t->shape != shape) {
        std::string have, want;
        for (int64_t d : t->shape) have += format(" %lld", (long long)d);
        for (int64_t d : shape) want += format(" %lld", (long long)d);
        fail("%s: tensor %s has shape%s, but the metadata ask for%s", f.path.c_str(), name.c_str(), have.c_str(),
             want.c_str());
    }
    return *t;
}

// heads whose rows are permuted in the file, 0: none
inline int gguf_permuted_heads(const ModelConfig& c, const std::string& hf_name) {
    if (c.model_type != "llama") return 0;
    return hf_name.find(".q_proj.") != std::string::npos   ? c.num_attention_heads
           : hf_name.find(".k_proj.") != std::string::npos ? c.num_key_value_heads
                                                           : 0;
}

// what all of an NVFP4 tensor is multiplied with: NAME.scale beside NAME.weight; 1 without it
inline float gguf_tensor_scale(const GgufFile& f, const GgufTensor& t) {
    const GgufTensor* s = gguf_find(f, t.name.substr(0, t.name.rfind('.')) + ".scale");
    float scale = 1.0f;
    if (s && s->count != 1) fail("%s: tensor %s has more than one value", f.path.c_str(), shown(s->name).c_str());
    if (s) gguf_read_float(*s, &scale);
    return scale;
}

// A parameter under its Hugging Face name, in Hugging Face's row order: dst [shape]
inline void gguf_read_parameter(const GgufFile& f, const ModelConfig& c, const std::string& hf_name,
                                const std::vector<int64_t>& shape, float* dst) {
    const GgufTensor& t = gguf_parameter(f, hf_name, shape);
    gguf_read_float(t, dst);
    float scale = gguf_tensor_scale(f, t);
    if (scale != 1.0f)
        for (int64_t i = 0; i < t.count; i++) dst[i] *= scale;
    if (int heads = gguf_permuted_heads(c, hf_name)) gguf_unpermute_rows(dst, heads, shape[0], t.count / shape[0]);
}

// ----------------------------------------------------------------------------------------------------------------
// configuration and tokenizer

// What inv_freq of pair i (0 <= i < HD/2) is divided by under llama3 scaling. With wavelength 2 pi / inv_freq: 1 below
// original / high, factor above original / low, and in between 1 / ((1 - s) / factor + s) with s linear in 1 /
// wavelength.
inline double llama3_rope_divisor(const ModelConfig& c, int i) {
    double wavelength = 2 * 3.14159265358979323846 * std::pow((double)c.rope_theta, 2.0 * i / c.head_dim);
    double periods = c.original_max_position_embeddings / wavelength;
    if (periods > c.high_freq_factor) return 1;
    if (periods < c.low_freq_factor) return c.factor;
    double s = (periods - c.low_freq_factor) / ((double)c.high_freq_factor - c.low_freq_factor);
    return 1 / ((1 - s) / c.factor + s);
}

// rope_freqs.weight [HD/2] holds these divisors, but GGUF does not say from which llama3 parameters. All published
// models have low 1, high 4, original 8192, and the largest divisor is the factor; anything else is refused, unless
// gguf_write.h has left the four numbers under keys of its own.
inline void gguf_read_rope_freqs(const GgufFile& f, ModelConfig* c) {
    const GgufTensor* t = gguf_find(f, "rope_freqs.weight");
    if (!t) return;
    const char* path = f.path.c_str();
    if (c->head_dim < 2 || t->count != c->head_dim / 2)
        fail("%s: rope_freqs.weight has %lld values, but head_dim %d needs %d", path, (long long)t->count, c->head_dim,
             c->head_dim / 2);
    std::vector<float> divisor((size_t)t->count);
    gguf_read_float(*t, divisor.data());
    c->rope_scaling = RopeScaling::llama3;
    const std::string k = "llama.rope.llama3.";
    c->factor = (float)gguf_float(f, k + "factor", *std::max_element(divisor.begin(), divisor.end()));
    c->low_freq_factor = (float)gguf_float(f, k + "low_freq_factor", 1);
    c->high_freq_factor = (float)gguf_float(f, k + "high_freq_factor", 4);
    int64_t original = gguf_int(f, k + "original_context_length", 8192);
    if (original < 1 || original > INT32_MAX)
        fail("%s: the key %soriginal_context_length is %lld", path, k.c_str(), (long long)original);
    c->original_max_position_embeddings = (int)original;
    for (size_t i = 0; i < divisor.size(); i++)
        if (!(std::fabs(divisor[i] - llama3_rope_divisor(*c, (int)i)) <= 1e-3 * divisor[i]))
            fail(
                "%s: rope_freqs.weight is not llama3 scaling with low_freq_factor %g, high_freq_factor %g and "
                "original_max_position_embeddings %d; use the Hugging Face folder of this model",
                path, c->low_freq_factor, c->high_freq_factor, c->original_max_position_embeddings);
    if (c->factor == 1) c->rope_scaling = RopeScaling::none;
}

// Ids that end a text or fill a batch
inline void gguf_read_token_ids(const GgufFile& f, ModelConfig* c) {
    auto token = [&](const char* key) {
        int64_t id = gguf_int(f, std::string("tokenizer.ggml.") + key, -1);
        if (id < -1 || id >= c->vocab_size)
            fail("%s: tokenizer.ggml.%s is %lld, outside the vocabulary of %d", f.path.c_str(), key, (long long)id,
                 c->vocab_size);
        return (int)id;
    };
    c->bos_token_id = token("bos_token_id");
    c->pad_token_id = token("padding_token_id");
    for (const char* key : {"eos_token_id", "eot_token_id", "eom_token_id"}) {
        int id = token(key);
        if (id >= 0 && std::find(c->eos_token_ids.begin(), c->eos_token_ids.end(), id) == c->eos_token_ids.end())
            c->eos_token_ids.push_back(id);
    }
}

// The model's shape from the metadata; V from the embedding and tie_word_embeddings from the absence of output.weight.
inline ModelConfig config_from_gguf(const GgufFile& f) {
    const char* path = f.path.c_str();
    ModelConfig c;
    c.model_type = gguf_string(f, "general.architecture", "");
    if (c.model_type != "qwen2" && c.model_type != "qwen3" && c.model_type != "llama")
        fail("%s: architecture %s is not supported; qwen2, qwen3 and llama are", path, shown(c.model_type).c_str());
    std::string a = c.model_type + ".";
    auto size_of = [&](const std::string& key, int64_t fallback) {
        int64_t v = gguf_int(f, a + key, fallback);
        if (v < 1 || v > INT32_MAX)
            fail("%s: the key %s is missing or not a positive size", path, shown(a + key).c_str());
        return (int)v;
    };
    c.hidden_size = size_of("embedding_length", -1);
    c.intermediate_size = size_of("feed_forward_length", -1);
    c.num_hidden_layers = size_of("block_count", -1);
    c.num_attention_heads = size_of("attention.head_count", -1);
    c.num_key_value_heads = size_of("attention.head_count_kv", c.num_attention_heads);
    c.max_position_embeddings = size_of("context_length", -1);
    c.head_dim = size_of("attention.key_length", c.hidden_size / c.num_attention_heads);
    if (size_of("attention.value_length", c.head_dim) != c.head_dim)
        fail("%s: attention.value_length differs from key_length %d, which is not supported", path, c.head_dim);
    if (size_of("rope.dimension_count", c.head_dim) != c.head_dim)
        fail("%s: rope.dimension_count differs from head_dim %d; only full rotary embeddings are supported", path,
             c.head_dim);
    if (gguf_int(f, a + "expert_count", 0) > 0) fail("%s: mixtures of experts are not supported", path);
    int64_t window = gguf_int(f, a + "attention.sliding_window", 0);
    if (window > 0 && window < c.max_position_embeddings)
        fail("%s: a sliding window of %lld tokens; only full attention is supported", path, (long long)window);
    c.rms_norm_eps = (float)gguf_float(f, a + "attention.layer_norm_rms_epsilon", 1e-6);
    c.rope_theta = (float)gguf_float(f, a + "rope.freq_base", 10000);
    std::string scaling = gguf_string(f, a + "rope.scaling.type", "none");
    if (scaling != "none" || gguf_float(f, a + "rope.scale_linear", 1) != 1)
        fail("%s: rope scaling of type %s is not supported", path, shown(scaling).c_str());

    const GgufTensor* embedding = gguf_find(f, "token_embd.weight");
    if (!embedding || embedding->shape.size() != 2 || embedding->shape[0] > INT32_MAX)
        fail("%s: token_embd.weight is missing or not a matrix; the file is incomplete", path);
    c.vocab_size = (int)embedding->shape[0];
    c.tie_word_embeddings = !gguf_find(f, "output.weight");
    c.qk_norm = c.model_type == "qwen3";
    c.qkv_bias = c.model_type == "qwen2";
    gguf_read_rope_freqs(f, &c);
    gguf_read_token_ids(f, &c);
    config_check(c, f.path);
    return c;
}

struct GgufTokenizerParts {
    std::string model, pre;           // "gpt2" (byte-level BPE) and the name of its pre-tokenizer, e.g. "qwen2"
    std::vector<std::string> tokens;  // by id, in GPT-2's byte alphabet
    std::vector<int> token_type;      // by id: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte
    std::vector<std::string> merges;  // "left right", by rank
    int bos_token_id = -1, eos_token_id = -1, pad_token_id = -1;  // -1: none
    bool add_bos = false, add_space_prefix = false;
    std::string chat_template;  // Jinja, "" if there is none
};

inline GgufTokenizerParts gguf_tokenizer(const GgufFile& f) {
    const char* path = f.path.c_str();
    const std::string g = "tokenizer.ggml.";
    GgufTokenizerParts t;
    t.model = gguf_string(f, g + "model", "");
    t.pre = gguf_string(f, g + "pre", "");
    t.tokens = gguf_strings(f, g + "tokens");
    t.token_type = gguf_ints(f, g + "token_type");
    t.merges = gguf_strings(f, g + "merges");
    t.chat_template = gguf_string(f, "tokenizer.chat_template", "");
    if (t.tokens.empty() || t.tokens.size() > (1u << 22))
        fail("%s: tokenizer.ggml.tokens is missing or too long; use a GGUF file that holds its tokenizer", path);
    if (t.token_type.empty()) t.token_type.assign(t.tokens.size(), 1);
    if (t.token_type.size() != t.tokens.size())
        fail("%s: %zu tokens but %zu token types; the file is damaged", path, t.tokens.size(), t.token_type.size());
    struct {
        const char* key;
        int* id;
    } ids[] = {
        {"bos_token_id", &t.bos_token_id}, {"eos_token_id", &t.eos_token_id}, {"padding_token_id", &t.pad_token_id}};
    for (auto& i : ids) {
        int64_t id = gguf_int(f, g + i.key, -1);
        if (id < -1 || id >= (int64_t)t.tokens.size())
            fail("%s: tokenizer.ggml.%s is %lld, but there are %zu tokens", path, i.key, (long long)id,
                 t.tokens.size());
        *i.id = (int)id;
    }
    t.add_bos = gguf_int(f, g + "add_bos_token", 0) != 0;
    t.add_space_prefix = gguf_int(f, g + "add_space_prefix", 0) != 0;
    return t;
}
