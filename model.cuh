// A Qwen-style transformer: parameters, forward, backward, and the same forward over a KV cache.
//
//   residual_0 = embed(tokens)
//   per layer   x = rmsnorm(residual);  q,k,v = W_qkv x (+ bias);  q,k = rmsnorm per head (Qwen3);  q,k = rope(q,k)
//               residual += W_o attention(q, k, v)
//               x = rmsnorm(residual);  residual += W_down (silu(W_gate x) * W_up x)
//   hidden = rmsnorm(residual);  logits = hidden W_head^T   (kernels/lm_head.cuh; W_head = embed when tied)
//
// One architecture covers Qwen2/2.5 (bias on q,k,v), Qwen3 (norm on each head of q and k, explicit head_dim) and
// Llama/SmolLM2 (neither). Sequences are packed one after another without padding.
//
// Shape letters of the whole tree: B sequences, T tokens, C hidden size, V vocabulary, L layers, NH query heads,
// NKV key/value heads, HD head size, F inner size of the MLP, G samples of one prompt (group), R rank.
//
// Parameters lie in one array, in the order of the layers; q,k,v and gate,up are neighbours, so that each group is one
// matmul although every tensor keeps its own quantizer. The fp32 master is what the optimizer moves; `work` is what the
// forward reads: floatX(master), or the quantizer's value for a quantized linear.
#pragma once
#include <array>
#include <memory>
#include <string>
#include <vector>
#include "formats/hf_config.h"
#include "kernels/attention.cuh"
#include "kernels/embedding.cuh"
#include "kernels/linear.cuh"
#include "kernels/convert.cuh"
#include "kernels/lm_head.cuh"
#include "kernels/rmsnorm.cuh"
#include "kernels/rope.cuh"
#include "kernels/rows.cuh"
#include "kernels/sampling.cuh"
#include "kernels/swiglu.cuh"
#include "quant.cuh"
#include "runtime/rng.h"

// ---------------------------------------------------------------------------------------------------------------------
// parameters

enum class ParamKind { embedding, head, linear, norm, bias };

struct ParamTensor {
    std::string name;  // Hugging Face's
    ParamKind kind;
    int64_t rows, cols;  // a vector is [1, n]
    size_t offset;       // into master, work, gradients and moments
    int layer;           // -1 outside the layers
    int64_t count() const { return rows * cols; }
};

template <class T>
struct LayerWeights {
    T* ln1;       // [C]
    T* qkv;       // [(NH+2*NKV)*HD, C]
    T* qkv_bias;  // [(NH+2*NKV)*HD] or null
    T* q_norm;    // [HD] or null
    T* k_norm;    // [HD] or null
    T* o;         // [C, NH*HD]
    T* ln2;       // [C]
    T* gate_up;   // [2*F, C]
    T* down;      // [C, F]
};

template <class T>
struct Weights {
    T* embed;  // [V,C]
    std::vector<LayerWeights<T>> layers;
    T* norm;  // [C]
    T* head;  // [V,C]; embed when tied
};

// A weight laid out for generation: in the CPU product's own order, or as the quantizer's packed codes on a device
struct GenerationWeight {
    PackedWeight<floatX> cpu;
    QuantizedWeight codes;  // N 0: the working weight is read
};

struct GenerationLayer {
    GenerationWeight qkv, o, gate_up, down;
};

struct Model {
    ModelConfig config;
    std::vector<ParamTensor> tensors;
    size_t num_params = 0;  // elements of the arrays below, alignment gaps included
    Buffer<float> master;   // [num_params]
    Buffer<floatX> work;    // [num_params]
    Weights<floatX> w;      // views of work
    RopeTable rope;
    Device dev;  // where the arrays are and the operators run; set before model_allocate

    Quantizer quantizer;
    ScaleMode scale_mode = ScaleMode::dynamic;
    SteRule ste = SteRule::identity;
    bool quantize = true;  // false: the forward reads the full-precision weights all the same
    std::vector<QuantizedTensor> quantized;
    Buffer<Grid> grids;             // of the quantized tensors, one after another
    Buffer<int8_t> codes, initial;  // their codes now and at load; only when flips are tracked
    Buffer<int64_t> flip_counts;    // [quantized tensors, 2]

    bool packed = false;  // the linears are read as `generation` has them
    std::vector<GenerationLayer> generation;
    PackedWeight<floatX> generation_head;
    Buffer<char> generation_codes;  // what the packed codes lie in

    int C() const { return config.hidden_size; }
    int L() const { return config.num_hidden_layers; }
    int V() const { return config.vocab_size; }
    int F() const { return config.intermediate_size; }
    int NH() const { return config.num_attention_heads; }
    int NKV() const { return config.num_key_value_heads; }
    int HD() const { return config.head_dim; }
    int QKV() const { return (NH() + 2 * NKV()) * HD(); }
};

// the tensors of a configuration, in memory order
inline std::vector<ParamTensor> model_tensors(const ModelConfig& c, size_t* num_params) {
    std::vector<ParamTensor> list;
    size_t end = 0;
    // joined: directly behind the tensor before it, because one matmul reads both
    auto add = [&](const std::string& name, ParamKind kind, int64_t rows, int64_t cols, int layer, bool joined) {
        if (!joined) end = (end + 31) / 32 * 32;
        list.push_back({name, kind, rows, cols, end, layer});
        end += (size_t)(rows * cols);
    };
    int64_t C = c.hidden_size, F = c.intermediate_size, q = (int64_t)c.num_attention_heads * c.head_dim,
            kv = (int64_t)c.num_key_value_heads * c.head_dim;
    add("model.embed_tokens.weight", ParamKind::embedding, c.vocab_size, C, -1, false);
    for (int l = 0; l < c.num_hidden_layers; l++) {
        std::string p = "model.layers." + std::to_string(l) + ".";
        add(p + "input_layernorm.weight", ParamKind::norm, 1, C, l, false);
        add(p + "self_attn.q_proj.weight", ParamKind::linear, q, C, l, false);
        add(p + "self_attn.k_proj.weight", ParamKind::linear, kv, C, l, true);
        add(p + "self_attn.v_proj.weight", ParamKind::linear, kv, C, l, true);
        if (c.qkv_bias) {
            add(p + "self_attn.q_proj.bias", ParamKind::bias, 1, q, l, false);
            add(p + "self_attn.k_proj.bias", ParamKind::bias, 1, kv, l, true);
            add(p + "self_attn.v_proj.bias", ParamKind::bias, 1, kv, l, true);
        }
        if (c.qk_norm) {
            add(p + "self_attn.q_norm.weight", ParamKind::norm, 1, c.head_dim, l, false);
            add(p + "self_attn.k_norm.weight", ParamKind::norm, 1, c.head_dim, l, false);
        }
        add(p + "self_attn.o_proj.weight", ParamKind::linear, C, q, l, false);
        add(p + "post_attention_layernorm.weight", ParamKind::norm, 1, C, l, false);
        add(p + "mlp.gate_proj.weight", ParamKind::linear, F, C, l, false);
        add(p + "mlp.up_proj.weight", ParamKind::linear, F, C, l, true);
        add(p + "mlp.down_proj.weight", ParamKind::linear, C, F, l, false);
    }
    add("model.norm.weight", ParamKind::norm, 1, C, -1, false);
    if (!c.tie_word_embeddings) add("lm_head.weight", ParamKind::head, c.vocab_size, C, -1, false);
    *num_params = (end + 31) / 32 * 32;
    return list;
}

// views of an array of num_params elements
template <class T>
Weights<T> model_views(const Model& m, T* base) {
    Weights<T> w{};
    w.layers.resize(m.L());
    for (const ParamTensor& t : m.tensors) {
        T* p = base + t.offset;
        auto ends = [&](const char* s) {
            size_t n = strlen(s);
            return t.name.size() >= n && t.name.compare(t.name.size() - n, n, s) == 0;
        };
        if (t.layer < 0) {
            if (t.kind == ParamKind::embedding) w.embed = p;
            else if (t.kind == ParamKind::head) w.head = p;
            else w.norm = p;
            continue;
        }
        LayerWeights<T>& l = w.layers[t.layer];
        if (ends("input_layernorm.weight")) l.ln1 = p;
        else if (ends("q_proj.weight")) l.qkv = p;
        else if (ends("q_proj.bias")) l.qkv_bias = p;
        else if (ends("q_norm.weight")) l.q_norm = p;
        else if (ends("k_norm.weight")) l.k_norm = p;
        else if (ends("o_proj.weight")) l.o = p;
        else if (ends("post_attention_layernorm.weight")) l.ln2 = p;
        else if (ends("gate_proj.weight")) l.gate_up = p;
        else if (ends("down_proj.weight")) l.down = p;
    }
    if (!w.head) w.head = w.embed;
    return w;
}

// arrays for a configuration; the weights are zero until loaded or drawn
inline void model_allocate(Model& m, const ModelConfig& config) {
    m.config = config;
    m.tensors = model_tensors(config, &m.num_params);
    m.master.allocate(m.num_params, "fp32 master weights", "", m.dev);
    m.work.allocate(m.num_params, "working weights", "", m.dev);
    when_allocated(m.dev, [&m] { m.w = model_views(m, m.work.data); });
    rope_init(m.rope, config.head_dim, config.rope_theta, config.rope_scaling == RopeScaling::llama3, config.factor,
              config.low_freq_factor, config.high_freq_factor, config.original_max_position_embeddings);
}

// Give parameter t its values: fill writes them into host memory, from where they go to wherever the master weights are
inline void model_fill(Model& m, const ParamTensor& t, const std::function<void(float*)>& fill) {
    float* p = m.master.data + t.offset;
    if (!m.dev.cuda) {
        fill(p);
        return;
    }
    std::vector<float> host(t.count());
    fill(host.data());
    copy_to_device(p, host.data(), host.size() * sizeof(float), m.dev);
    device_synchronize(m.dev);  // host goes
}

// Normal(0, 0.02) by Box-Muller, the two projections into the residual stream scaled by 1/sqrt(2L) (GPT-2), norms 1
inline void model_init_random(Model& m, uint64_t seed) {
    for (size_t i = 0; i < m.tensors.size(); i++) {
        const ParamTensor& t = m.tensors[i];
        bool residual = t.name.find("o_proj") != std::string::npos || t.name.find("down_proj") != std::string::npos;
        float scale = 0.02f * (residual ? 1.0f / sqrtf(2.0f * (float)m.L()) : 1.0f);
        model_fill(m, t, [&](float* p) {
            for (int64_t j = 0; j < t.count(); j++) {
                p[j] = t.kind == ParamKind::norm ? 1.0f : 0.0f;
                if (t.kind == ParamKind::norm || t.kind == ParamKind::bias) continue;
                Philox4 r = rng_bits(seed, RNG_INIT, (uint32_t)i, (uint32_t)j, (uint32_t)(j >> 32));
                float u = 1.0f - uniform01(r.x[0]), angle = 6.283185307f * uniform01(r.x[1]);
                p[j] = scale * sqrtf(-2.0f * logf(u)) * cosf(angle);
            }
        });
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// quantization of the linears

inline WeightFormat quantizer_format(const Quantizer& q) {
    return q.bits == 8   ? WeightFormat::int8
           : q.bits == 4 ? WeightFormat::int4
           : q.bits == 3 ? WeightFormat::int3
                         : WeightFormat::int2;
}

// A device generates from codes at their own size, because reading the weights is what a decode step waits for. In an
// fp32 build the product with codes would unpack them first, so there the working weights are read.
inline bool generates_from_codes(const Model& m) { return m.dev.cuda && m.quantizer.on() && sizeof(floatX) == 2; }

// rows and columns of the four products of a layer
struct ProductShape {
    int64_t rows, cols;
};
inline std::array<ProductShape, 4> product_shapes(const Model& m) {
    int64_t C = m.C(), F = m.F(), q = (int64_t)m.NH() * m.HD();
    return {{{m.QKV(), C}, {C, q}, {2 * F, C}, {C, F}}};  // qkv, o, gate and up, down
}

// a scale for each group or, where one serves a whole row or tensor, for each row
inline size_t product_codes_bytes(const Quantizer& q, ProductShape p) {
    int64_t group = q.scope == QuantScope::group ? q.group : p.cols;
    size_t bytes = quantized_weight_bytes(quantizer_format(q), p.rows, p.cols, group, !q.symmetric, true);
    return (bytes + 255) / 256 * 256;
}

inline void generation_codes_allocate(Model& m) {
    if (!generates_from_codes(m)) return;
    size_t bytes = 0;
    for (ProductShape p : product_shapes(m)) {
        if (m.quantizer.scope == QuantScope::group && p.cols % m.quantizer.group) continue;  // not quantized
        bytes += (size_t)m.L() * product_codes_bytes(m.quantizer, p);
    }
    m.generation_codes.allocate(bytes, "packed codes for generation", "", m.dev);
}

// which: "all", or a list of q,k,v,o,gate,up,down. Embeddings and head are never quantized.
inline bool quantizes(const std::string& which, const ParamTensor& t) {
    if (t.kind != ParamKind::linear) return false;
    size_t end = t.name.rfind("_proj"), start = t.name.rfind('.', end) + 1;
    std::string part = "," + t.name.substr(start, end - start) + ",";
    return which == "all" || ("," + which + ",").find(part) != std::string::npos;
}

// fails if the quantizer's groups do not divide a tensor's inputs: to be asked before the long work
inline void check_quantizer(const ModelConfig& config, const Quantizer& q, const std::string& which) {
    size_t n;
    for (const ParamTensor& t : model_tensors(config, &n)) {
        QuantizedTensor qt;
        qt.name = t.name, qt.rows = t.rows, qt.cols = t.cols;
        if (q.on() && quantizes(which, t)) quantized_tensor_init(qt, q);
    }
}

// the tensors that `which` names get their quantizer; track_flips: their codes are kept to be compared
inline void model_quantize(Model& m, const Quantizer& q, ScaleMode mode, SteRule ste, const std::string& which,
                           bool track_flips) {
    m.quantizer = q;
    m.scale_mode = mode;
    m.ste = ste;
    m.quantized.clear();
    if (!q.on()) return;
    int64_t groups = 0, codes = 0;
    for (const ParamTensor& t : m.tensors) {
        if (!quantizes(which, t)) continue;
        QuantizedTensor qt;
        qt.name = t.name;
        qt.rows = t.rows;
        qt.cols = t.cols;
        qt.offset = t.offset;
        quantized_tensor_init(qt, q);
        groups += qt.groups;
        codes += qt.rows * qt.cols;
        m.quantized.push_back(qt);
    }
    m.grids.allocate(groups, "quantization scales", "", m.dev);
    if (track_flips || generates_from_codes(m)) m.codes.allocate(codes, "quantization codes", "", m.dev);
    if (track_flips) m.initial.allocate(codes, "quantization codes at load", "", m.dev);
    generation_codes_allocate(m);
    m.flip_counts.allocate(2 * m.quantized.size(), "code-flip counters", "", m.dev);
    when_allocated(m.dev, [&m] {
        int64_t group = 0, code = 0;
        for (QuantizedTensor& t : m.quantized) {
            t.master = m.master.data + t.offset;
            t.work = m.work.data + t.offset;
            t.grid = m.grids.data + group;
            t.codes = m.codes.size ? m.codes.data + code : nullptr;
            t.initial = m.initial.size ? m.initial.data + code : nullptr;
            group += t.groups;
            code += t.rows * t.cols;
        }
    });
}

// work from master: after loading and after every optimizer step
inline void model_refresh(Model& m) {
    NVTX_RANGE("quantize_weights");
    size_t next = 0;
    for (const ParamTensor& t : m.tensors) {
        if (m.quantize && next < m.quantized.size() && m.quantized[next].offset == t.offset) {
            quantized_tensor_refresh(m.quantized[next], m.quantizer, m.scale_mode, m.flip_counts.data + 2 * next,
                                     m.dev);
            next++;
            continue;
        }
        convert_forward(m.work.data + t.offset, m.master.data + t.offset, t.count(), m.dev);
    }
    if (!m.quantize || m.quantized.empty()) return;
    std::vector<int64_t> counts(m.flip_counts.size);
    copy_to_host(counts.data(), m.flip_counts.data, m.flip_counts.bytes(), m.dev);
    for (size_t i = 0; i < m.quantized.size(); i++) {
        m.quantized[i].flips = m.quantized[i].initial ? counts[2 * i] : 0;
        m.quantized[i].flips_total = m.quantized[i].initial ? counts[2 * i + 1] : 0;
    }
}

// the quantized tensors whose rows are those of a product of `rows` rows that begins at `weight`; the whole product
// must be quantized, and one scale for a whole tensor cannot be that of its neighbour too
inline const QuantizedTensor* quantized_product(const Model& m, size_t offset, int64_t rows) {
    for (size_t i = 0; i < m.quantized.size(); i++) {
        if (m.quantized[i].offset != offset) continue;
        int64_t found = 0;
        size_t j = i;
        for (; j < m.quantized.size() && found < rows; j++) {
            if (m.quantized[j].offset != offset + (size_t)(found * m.quantized[i].cols)) return nullptr;
            found += m.quantized[j].rows;
        }
        bool one = j == i + 1;
        return found == rows && (one || m.quantizer.scope != QuantScope::tensor) ? &m.quantized[i] : nullptr;
    }
    return nullptr;
}

// Generation multiplies thousands of times with the same weights: lay them out once as its products want them. The
// results have the same bits (cpu/gemm.h, kernels/matmul_quantized.cuh). Undo with model_unpack before the weights
// change.
inline void model_pack(Model& m) {
    NVTX_RANGE("pack_weights");
    std::array<ProductShape, 4> shapes = product_shapes(m);
    m.generation.resize(m.L());
    size_t at = 0;
    for (int l = 0; l < m.L(); l++) {
        GenerationLayer& g = m.generation[l];
        const LayerWeights<floatX>& layer = m.w.layers[l];
        GenerationWeight* const to[] = {&g.qkv, &g.o, &g.gate_up, &g.down};
        const floatX* const from[] = {layer.qkv, layer.o, layer.gate_up, layer.down};
        for (int i = 0; i < 4; i++) {
            auto [rows, cols] = shapes[i];
            if (!m.dev.cuda) {
                to[i]->cpu = pack_weight_nt(from[i], rows, cols);
                continue;
            }
            to[i]->codes = QuantizedWeight();
            const QuantizedTensor* t = m.quantize && generates_from_codes(m)
                                           ? quantized_product(m, from[i] - m.work.data, rows)
                                           : nullptr;
            if (!t) continue;
            int64_t group = m.quantizer.scope == QuantScope::tensor ? rows * cols : t->group;
            to[i]->codes = quantized_weight_view(m.generation_codes.data + at, quantizer_format(m.quantizer), rows,
                                                 cols, group, !m.quantizer.symmetric, true);
            quantized_weight_pack(to[i]->codes, t->codes, t->grid, group, m.dev);
            at += product_codes_bytes(m.quantizer, shapes[i]);
        }
    }
    if (!m.dev.cuda) m.generation_head = pack_weight_nt(m.w.head, m.V(), m.C());
    m.packed = true;
}

inline void model_unpack(Model& m) {
    m.packed = false;
    if (!m.dev.cuda) m.generation.clear();
    m.generation_head = PackedWeight<floatX>();
}

// out [T,OC] = inp [T,C] weight^T + bias; g: the weight as generation has it, or null
inline void linear_of(const Model& m, floatX* out, const floatX* inp, const floatX* weight, const floatX* bias,
                      const GenerationWeight* g, int64_t T, int64_t C, int64_t OC) {
    linear_forward(out, inp, weight, bias, g && !m.dev.cuda ? &g->cpu : nullptr, g && g->codes.N ? &g->codes : nullptr,
                   T, C, OC, m.dev);
}

// ---------------------------------------------------------------------------------------------------------------------
// batches

// The tokens of one forward pass. Either whole sequences, one after another, each attending to itself (starts is not
// empty, the ranges are rows of the batch); or single tokens that attend to what the cache holds (starts is empty, the
// ranges are rows of the cache).
struct Batch {
    std::vector<int> tokens, positions;  // [T]
    std::vector<int> starts;             // [sequences+1]
    std::vector<KeyRange> ranges;        // [T] what each token attends to
    std::vector<CacheRow> writes;        // [T] where its key and value go; empty without a cache
    std::vector<DrawKey> draws;          // [T] keys of the draws of the next tokens; empty without sampling
    int64_t T() const { return (int64_t)tokens.size(); }
};

// append one whole sequence (training, scoring): token i sees tokens 0..i
inline void batch_add_sequence(Batch& b, const int* tokens, int n) {
    if (b.starts.empty()) b.starts.push_back(0);
    int64_t start = b.T();
    for (int i = 0; i < n; i++) {
        KeyRange r;
        r.row0 = start;
        r.n0 = i + 1;
        b.tokens.push_back(tokens[i]);
        b.positions.push_back(i);
        b.ranges.push_back(r);
    }
    b.starts.push_back((int)b.T());
}

// A batch where the operators read it: the vectors themselves, or their copies on the device
struct BatchView {
    const int *tokens = nullptr, *positions = nullptr, *starts = nullptr;
    const KeyRange* ranges = nullptr;
    const CacheRow* writes = nullptr;
    const DrawKey* draws = nullptr;
    int64_t T = 0;
    int sequences = 0;  // 0: single tokens
    int longest = 0;    // tokens of the longest sequence
    int most_keys = 0;  // an upper bound of what a single token attends to
};

// Copies of the batch's arrays on a device; a batch travels there in one piece
struct BatchMemory {
    int64_t capacity = 0;  // tokens
    Buffer<char> device;
    PinnedBuffer host;
};

inline size_t batch_bytes(int64_t T) {
    return (size_t)T * (sizeof(KeyRange) + sizeof(CacheRow) + sizeof(DrawKey) + 2 * sizeof(int)) +
           (size_t)(T + 1) * sizeof(int);
}

inline void batch_memory_allocate(BatchMemory& b, int64_t T, Device dev) {
    b.capacity = T;
    if (!dev.cuda) return;
    b.device.allocate(batch_bytes(T), "token arrays of a batch", "", dev);
    pinned_allocate(b.host, batch_bytes(T), dev);
}

inline BatchView batch_view(BatchMemory& memory, const Batch& b, Device dev) {
    BatchView v;
    v.T = b.T();
    if (v.T > memory.capacity)
        fail("a batch of %lld tokens in memory for %lld", (long long)v.T, (long long)memory.capacity);
    v.sequences = b.starts.empty() ? 0 : (int)b.starts.size() - 1;
    for (int i = 0; i < v.sequences; i++) v.longest = std::max(v.longest, b.starts[i + 1] - b.starts[i]);
    for (const KeyRange& r : b.ranges) v.most_keys = std::max(v.most_keys, r.n0 + r.n1);
    if (!dev.cuda) {
        v.tokens = b.tokens.data(), v.positions = b.positions.data(), v.starts = b.starts.data();
        v.ranges = b.ranges.data();
        v.writes = b.writes.data(), v.draws = b.draws.data();
        return v;
    }
    device_synchronize(dev);  // the batch before may still be travelling from the same memory
    size_t at = 0;
    auto put = [&](const auto& list) {
        typedef std::decay_t<decltype(list[0])> T;
        if (list.empty()) return (const T*)nullptr;
        memcpy(memory.host.data + at, list.data(), list.size() * sizeof(T));
        const T* p = reinterpret_cast<const T*>(memory.device.data + at);
        at += list.size() * sizeof(T);
        return p;
    };
    // the widest first keeps each aligned; the ranges of whole sequences follow from their starts
    if (!v.sequences) v.ranges = put(b.ranges);
    v.writes = put(b.writes);
    v.draws = put(b.draws), v.tokens = put(b.tokens), v.positions = put(b.positions), v.starts = put(b.starts);
    copy_to_device(memory.device.data, memory.host.data, at, dev);
    return v;
}

// ---------------------------------------------------------------------------------------------------------------------
// activations

enum class ActivationMode {
    inference,  // one layer's worth, reused
    recompute,  // the residual at each layer, the rest computed again in the backward
    save_all,   // everything
};

struct LayerActivations {
    floatX* ln1;      // [T,C]
    floatX* qkv;      // [T,QKV], v is read from here
    floatX* qk;       // [T,(NH+NKV)*HD], q and k after norm and rope
    floatX* att;      // [T,NH*HD]
    floatX* mid;      // [T,C] residual after attention
    floatX* ln2;      // [T,C]
    floatX* gate_up;  // [T,2F]
    floatX* act;      // [T,F]
    float* ln1_rstd;  // [T]
    float* q_rstd;    // [T,NH]
    float* k_rstd;    // [T,NKV]
    float* lse;       // [T,NH]
    float* ln2_rstd;  // [T]
};

struct Activations {
    ActivationMode mode;
    int64_t capacity = 0;  // tokens
    Buffer<floatX> half;
    Buffer<float> full;
    BatchMemory batch;
    BatchView view;                 // the batch of the last forward
    std::vector<floatX*> residual;  // [L+1] of [T,C]: input of each layer, and the output of the last
    std::vector<LayerActivations> layers;
    floatX* branch;      // [T,C] what a block adds to the residual
    floatX* hidden;      // [T,C] after the last norm
    float* hidden_rstd;  // [T]
    // gradients of activations, one layer's worth (training only)
    floatX *dresidual, *dnorm, *datt, *dqk, *dqkv, *dgate_up, *dact;
};

inline void activations_views(Activations& a, const Model& m);

inline void activations_allocate(Activations& a, const Model& m, int64_t T, ActivationMode mode) {
    a.mode = mode;
    a.capacity = T;
    int64_t C = m.C(), F = m.F(), NH = m.NH(), NKV = m.NKV(), HD = m.HD(), QKV = m.QKV(), L = m.L();
    int64_t copies = mode == ActivationMode::save_all ? L : 1,
            residuals = mode == ActivationMode::inference ? 1 : L + 1;
    bool training = mode != ActivationMode::inference;
    int64_t half = copies * (4 * C + QKV + (NH + NKV) * HD + NH * HD + 3 * F) + residuals * C + 2 * C;
    if (training) half += 2 * C + NH * HD + (NH + NKV) * HD + QKV + 3 * F;
    int64_t full = copies * (2 + 2 * NH + NKV) + 1;
    const char* hint =
        training ? "lower --micro_batch_tokens or use --gradient_checkpointing" : "lower --rollout_batch";
    a.half.allocate(half * T, training ? "activations and their gradients" : "activations of generation", hint, m.dev);
    a.full.allocate(full * T, "activation statistics", hint, m.dev);
    batch_memory_allocate(a.batch, T, m.dev);
    when_allocated(m.dev, [&a, &m] { activations_views(a, m); });
}

// the arrays of an Activations within its two buffers
inline void activations_views(Activations& a, const Model& m) {
    int64_t C = m.C(), F = m.F(), NH = m.NH(), NKV = m.NKV(), HD = m.HD(), QKV = m.QKV(), L = m.L(), T = a.capacity;
    int64_t copies = a.mode == ActivationMode::save_all ? L : 1,
            residuals = a.mode == ActivationMode::inference ? 1 : L + 1;
    bool training = a.mode != ActivationMode::inference;
    floatX* h = a.half.data;
    float* f = a.full.data;
    auto take = [&](int64_t n) { return std::exchange(h, h + n * T); };
    auto take_full = [&](int64_t n) { return std::exchange(f, f + n * T); };
    a.layers.resize(L);
    for (int64_t l = 0; l < L; l++) {
        if (l >= copies) {
            a.layers[l] = a.layers[0];
            continue;
        }
        LayerActivations& y = a.layers[l];
        y.ln1 = take(C), y.qkv = take(QKV), y.qk = take((NH + NKV) * HD), y.att = take(NH * HD), y.mid = take(C);
        y.ln2 = take(C), y.gate_up = take(2 * F), y.act = take(F);
        y.ln1_rstd = take_full(1), y.q_rstd = take_full(NH), y.k_rstd = take_full(NKV), y.lse = take_full(NH);
        y.ln2_rstd = take_full(1);
    }
    a.residual.resize(L + 1);
    for (int64_t l = 0; l <= L; l++) a.residual[l] = l < residuals ? take(C) : a.residual[0];
    a.branch = take(C), a.hidden = take(C), a.hidden_rstd = take_full(1);
    if (training) {
        a.dresidual = take(C), a.dnorm = take(C), a.datt = take(NH * HD), a.dqk = take((NH + NKV) * HD);
        a.dqkv = take(QKV), a.dgate_up = take(2 * F), a.dact = take(F);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// forward

// Keys and values of earlier tokens: place 0 holds prompts, place 1 the sampled tokens (kernels/attention.cuh)
struct KVCache {
    Buffer<floatX> k[2], v[2];  // [L, rows, NKV*HD]
    int64_t rows[2] = {0, 0};
    int64_t width = 0;  // NKV*HD
};

// attention and MLP of layer l, from a.layers[l].ln1 to a.branch; residual_in is the layer's input
inline void layer_forward(Model& m, Activations& a, int l, const floatX* residual_in, const BatchView& b,
                          KVCache* cache) {
    int64_t T = b.T;
    int C = m.C(), F = m.F(), NH = m.NH(), NKV = m.NKV(), HD = m.HD(), QKV = m.QKV(), QK = (NH + NKV) * HD;
    const LayerWeights<floatX>& w = m.w.layers[l];
    const GenerationLayer* p = m.packed ? &m.generation[l] : nullptr;
    LayerActivations& y = a.layers[l];
    float eps = m.config.rms_norm_eps;

    linear_of(m, y.qkv, y.ln1, w.qkv, w.qkv_bias, p ? &p->qkv : nullptr, T, C, QKV);
    if (m.config.qk_norm) {
        rmsnorm_heads_forward(y.qk, y.q_rstd, y.qkv, w.q_norm, T, NH, HD, QK, QKV, eps, m.dev);
        rmsnorm_heads_forward(y.qk + NH * HD, y.k_rstd, y.qkv + NH * HD, w.k_norm, T, NKV, HD, QK, QKV, eps, m.dev);
        rope_forward(y.qk, QK, y.qk, QK, b.positions, m.rope, T, NH + NKV, m.dev);
    } else {
        rope_forward(y.qk, QK, y.qkv, QKV, b.positions, m.rope, T, NH + NKV, m.dev);
    }

    const floatX *k = y.qk + NH * HD, *v = y.qkv + QK;
    KeyValueRows place[2];
    if (cache) {
        floatX *k_cache[2], *v_cache[2];
        for (int i = 0; i < 2; i++) {
            int64_t base = l * cache->rows[i] * cache->width;
            k_cache[i] = cache->k[i].data + base, v_cache[i] = cache->v[i].data + base;
            place[i] = {k_cache[i], v_cache[i], cache->width, cache->width};
        }
        kv_cache_write(k_cache, v_cache, k, QK, v, QKV, b.writes, T, cache->width, m.dev);
    }
    if (b.sequences)
        attention_forward(y.att, y.lse, y.qk, QK, {k, v, QK, QKV}, b.ranges, b.starts, b.sequences, b.longest, T, NH,
                          NKV, HD, m.dev);
    else attention_decode(y.att, y.lse, y.qk, QK, place[0], place[1], b.ranges, b.most_keys, T, NH, NKV, HD, m.dev);
    linear_of(m, a.branch, y.att, w.o, nullptr, p ? &p->o : nullptr, T, NH * HD, C);

    fused_residual_rmsnorm_forward(y.mid, y.ln2, y.ln2_rstd, residual_in, a.branch, w.ln2, T, C, eps, m.dev);
    linear_of(m, y.gate_up, y.ln2, w.gate_up, nullptr, p ? &p->gate_up : nullptr, T, C, 2 * F);
    swiglu_forward(y.act, y.gate_up, T, F, m.dev);
    linear_of(m, a.branch, y.act, w.down, nullptr, p ? &p->down : nullptr, T, F, C);
}

// b.tokens -> a.hidden [T,C]. Nothing here depends on the contents of the batch but its sizes, so that a decode step
// can be captured once and replayed (rollout.cuh); positions must be in the rope table already.
inline void model_forward_view(Model& m, Activations& a, const BatchView& b, KVCache* cache) {
    NVTX_RANGE("forward");
    int64_t T = b.T;
    int C = m.C(), L = m.L();
    float eps = m.config.rms_norm_eps;
    embedding_forward(a.residual[0], b.tokens, m.w.embed, T, C, m.dev);
    rmsnorm_forward(a.layers[0].ln1, a.layers[0].ln1_rstd, a.residual[0], m.w.layers[0].ln1, T, C, eps, m.dev);
    for (int l = 0; l < L; l++) {
        layer_forward(m, a, l, a.residual[l], b, cache);
        // the residual addition and the next norm in one pass
        bool last_layer = l + 1 == L;
        floatX* out = last_layer ? a.hidden : a.layers[l + 1].ln1;
        float* rstd = last_layer ? a.hidden_rstd : a.layers[l + 1].ln1_rstd;
        const floatX* weight = last_layer ? m.w.norm : m.w.layers[l + 1].ln1;
        fused_residual_rmsnorm_forward(a.residual[l + 1], out, rstd, a.layers[l].mid, a.branch, weight, T, C, eps,
                                       m.dev);
    }
}

// tokens -> a.hidden [T,C]; b stays alive until the backward
inline void model_forward(Model& m, Activations& a, const Batch& b, KVCache* cache = nullptr) {
    int last = 0;
    for (int p : b.positions) last = p > last ? p : last;
    rope_extend(m.rope, last + 1, m.dev);
    a.view = batch_view(a.batch, b, m.dev);
    model_forward_view(m, a, a.view, cache);
}

// ---------------------------------------------------------------------------------------------------------------------
// backward

// gradients of every parameter from a.dnorm = dL/dhidden [T,C], for the batch of the last forward; grads accumulate
inline void model_backward(Model& m, Activations& a, const Weights<float>& g) {
    NVTX_RANGE("backward");
    const BatchView& b = a.view;
    int64_t T = b.T;
    int C = m.C(), F = m.F(), NH = m.NH(), NKV = m.NKV(), HD = m.HD(), QKV = m.QKV(), QK = (NH + NKV) * HD, L = m.L();
    rmsnorm_backward(a.dresidual, g.norm, a.dnorm, a.residual[L], m.w.norm, a.hidden_rstd, T, C, false, m.dev);
    for (int l = L - 1; l >= 0; l--) {
        const LayerWeights<floatX>& w = m.w.layers[l];
        const LayerWeights<float>& d = g.layers[l];
        LayerActivations& y = a.layers[l];
        if (a.mode == ActivationMode::recompute) {
            rmsnorm_forward(y.ln1, y.ln1_rstd, a.residual[l], w.ln1, T, C, m.config.rms_norm_eps, m.dev);
            layer_forward(m, a, l, a.residual[l], b, nullptr);
        }
        // MLP
        linear_backward(a.dact, d.down, nullptr, a.dresidual, y.act, w.down, T, F, C, m.dev);
        swiglu_backward(a.dgate_up, a.dact, y.gate_up, T, F, m.dev);
        linear_backward(a.dnorm, d.gate_up, nullptr, a.dgate_up, y.ln2, w.gate_up, T, C, 2 * F, m.dev);
        rmsnorm_backward(a.dresidual, d.ln2, a.dnorm, y.mid, w.ln2, y.ln2_rstd, T, C, true, m.dev);
        // attention
        linear_backward(a.datt, d.o, nullptr, a.dresidual, y.att, w.o, T, NH * HD, C, m.dev);
        floatX* dqk = m.config.qk_norm ? a.dqk : a.dqkv;
        int64_t stride = m.config.qk_norm ? QK : QKV;
        attention_backward(dqk, stride, dqk + NH * HD, stride, a.dqkv + QK, QKV, a.datt, y.att, y.lse, y.qk, QK,
                           {y.qk + NH * HD, y.qkv + QK, QK, QKV}, b.starts, b.sequences, b.longest, T, NH, NKV, HD,
                           m.dev);
        rope_backward(dqk, stride, b.positions, m.rope, T, NH + NKV, m.dev);
        if (m.config.qk_norm) {
            rmsnorm_heads_backward(a.dqkv, d.q_norm, a.dqk, y.qkv, w.q_norm, y.q_rstd, T, NH, HD, QKV, QK, QKV, false,
                                   m.dev);
            rmsnorm_heads_backward(a.dqkv + NH * HD, d.k_norm, a.dqk + NH * HD, y.qkv + NH * HD, w.k_norm, y.k_rstd, T,
                                   NKV, HD, QKV, QK, QKV, false, m.dev);
        }
        linear_backward(a.dnorm, d.qkv, d.qkv_bias, a.dqkv, y.ln1, w.qkv, T, C, QKV, m.dev);
        rmsnorm_backward(a.dresidual, d.ln1, a.dnorm, a.residual[l], w.ln1, y.ln1_rstd, T, C, true, m.dev);
    }
    embedding_backward(g.embed, a.dresidual, b.tokens, T, C, m.dev);
}
