// Parameters of the transformer, what the forward reads of them, and their quantizers.
//
// Parameters lie in one array, in the order of the layers; q,k,v and gate,up are neighbours, so that each group is one
// matmul although every tensor keeps its own quantizer. The fp32 master is what the optimizer moves; `work` is what the
// forward reads: floatX(master), or the quantizer's value for a quantized linear.
//
// Shape letters of the whole tree: B sequences, T tokens, C hidden size, V vocabulary, L layers, NH query heads,
// NKV key/value heads, HD head size, F inner size of the MLP, G samples of one prompt (group), R rank.
#pragma once
#include <array>
#include <functional>
#include <memory>
#include <string>
#include <vector>
#include "formats/hf_config.h"
#include "kernels/convert.cuh"
#include "kernels/hadamard.cuh"
#include "kernels/linear.cuh"
#include "kernels/rope.cuh"
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
    Hadamard rotate_qk, rotate_down;  // online, of q and k after RoPE (R3) and of the input of down (R4)
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

// the online rotations that the configuration names
inline void model_online_rotations(Model& m) {
    m.rotate_qk = m.rotate_down = Hadamard();
    for (auto [h, N] : {std::pair{&m.rotate_qk, m.config.rotate_qk}, std::pair{&m.rotate_down, m.config.rotate_down}})
        if (N && !hadamard_of_order(*h, N)) fail("online_rotations: no Hadamard matrix of order %d is known here", N);
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
    model_online_rotations(m);
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
    return q.spec.bits == 8   ? WeightFormat::int8
           : q.spec.bits == 4 ? WeightFormat::int4
           : q.spec.bits == 3 ? WeightFormat::int3
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
    size_t bytes = quantized_weight_bytes(quantizer_format(q), p.rows, p.cols, group, !q.spec.symmetric, true);
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
                                                 cols, group, !m.quantizer.spec.symmetric, true);
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
