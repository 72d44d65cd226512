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
#include "kernels/convert.cuh"
#include "kernels/hadamard.cuh"
#include "kernels/linear.cuh"
#include "kernels/rope.cuh"
#include "methods/lora.cuh"
#include "model/config.h"
#include "quant.cuh"
#include "runtime/rng.h"

// ---------------------------------------------------------------------------------------------------------------------
// parameters

enum class ParamKind { embedding, head, linear, norm, bias };

struct ParamTensor {
    std::string name;  // Hugging Face's
    ParamKind kind;
    int64_t rows, cols;   // a vector is [1, n]
    size_t offset;        // into master, work, gradients and moments
    int layer;            // -1 outside the layers
    bool packed = false;  // lies in no array but in the packed codes of a frozen base
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
    T* norm;                // [C]
    T* head;                // [V,C]; embed when tied
    T* adapters = nullptr;  // gradients of Lora's parameters
};

// A weight laid out for generation: in the CPU product's own order, or as the quantizer's packed codes on a device
struct GenerationWeight {
    PackedWeight<floatX> cpu;
    QuantizedWeight codes;  // N 0: the working weight is read
};

struct GenerationLayer {
    GenerationWeight qkv, o, gate_up, down;
};

struct BaseLoading;

struct Model {
    ModelConfig config;
    std::vector<ParamTensor> tensors;
    size_t num_params = 0;  // elements of the arrays below, alignment gaps included
    Buffer<float> master;   // [num_params]
    Buffer<floatX> work;    // [num_params]
    Weights<floatX> w;      // views of work
    RopeTable rope;
    Hadamard rotate_qk, rotate_down;  // online, of q and k after RoPE (R3) and of the input of down (R4)
    Device dev;                       // where the arrays are and the operators run; set before model_allocate

    Quantizer quantizer;
    ScaleMode scale_mode = ScaleMode::dynamic;
    SteRule ste = SteRule::identity;
    LearnedScale learned_scale = LearnedScale::lsq;
    QuantNoise noise;                              // stochastic rounding: seed and step; refresh adds the tensor
    bool quantize = true;                          // false: the forward reads the full-precision weights all the same
    Quantizer activations;                         // of the inputs of the products
    std::array<bool, 4> activation_products = {};  // which of a layer's products: qkv, o, gate and up, down
    std::vector<QuantizedTensor> quantized;
    Buffer<Grid> grids;             // of the quantized tensors, one after another
    Buffer<float> scale_floats;     // what stands behind their scales (ScaleState): for each tensor, its own, then
    Buffer<uint8_t> scale_codes;    // those of its blocks of scales; and the codes of the scales
    Buffer<float> learned;          // [quantized tensors, 2, groups]: LearnedGrid's parameters
    Buffer<Grid> learned_ranges;    // lwc: of the quantized tensors, as grids
    Buffer<int8_t> codes, initial;  // their codes now and at load; only when flips are tracked
    Buffer<int64_t> flip_counts;    // [quantized tensors, 2]

    Quantizer kv_cache;             // of keys and values; also with quantize false
    bool k_pre_bias = false;        // keys are quantized before their bias is added
    Buffer<floatX> bias_without_k;  // [QKV] of the layer at work: its bias, zero for k

    bool packed = false;  // the linears are read as `generation` has them
    std::vector<GenerationLayer> generation;
    PackedWeight<floatX> generation_head;
    Buffer<char> generation_codes;  // what the packed codes lie in
    size_t codes_beyond = 4 << 20;  // bytes of working weights; see generates_from_codes

    // A frozen base has no master weights and nothing that trains them; what its quantizer names exists as packed codes
    // alone, which rollout, training and evaluation multiply with
    bool frozen = false;
    std::vector<std::array<QuantizedWeight, 4>> base;  // [L] as product_shapes; N 0: the working weight is read
    Buffer<char> base_codes;
    std::shared_ptr<BaseLoading> loading;
    std::function<void(QuantizedTensor&)> base_grid;  // gives a tensor of the base the grid of a file; or none
    Lora lora;

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

// t, a tensor of a layer, at p
template <class T>
void layer_view(LayerWeights<T>& l, const ParamTensor& t, T* p) {
    auto ends = [&](const char* s) {
        size_t n = strlen(s);
        return t.name.size() >= n && t.name.compare(t.name.size() - n, n, s) == 0;
    };
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

// views of an array of num_params elements
template <class T>
Weights<T> model_views(const Model& m, T* base) {
    Weights<T> w{};
    w.layers.resize(m.L());
    for (const ParamTensor& t : m.tensors) {
        T* p = t.packed ? nullptr : base + t.offset;
        if (t.layer >= 0) layer_view(w.layers[t.layer], t, p);
        else if (t.kind == ParamKind::embedding) w.embed = p;
        else if (t.kind == ParamKind::head) w.head = p;
        else w.norm = p;
    }
    if (!w.head) w.head = w.embed;
    return w;
}

// use(w) with the masters of a layer (-1: all of them) on the host: themselves, or a copy, which then goes back
template <class F>
void host_masters(Model& m, int layer, std::vector<float>& copy, const F& use) {
    size_t first = m.num_params, end = 0;
    auto wanted = [&](const ParamTensor& t) { return layer < 0 || t.layer == layer; };
    for (const ParamTensor& t : m.tensors)
        if (wanted(t)) first = std::min(first, t.offset), end = std::max(end, t.offset + (size_t)t.count());
    float* base = m.master.data + first;
    if (m.dev.cuda) {
        copy.resize(end - first);
        base = copy.data();
        copy_to_host(base, m.master.data + first, (end - first) * sizeof(float), m.dev);
    }
    Weights<float> w{};
    if (layer < 0) w = model_views(m, base);
    w.layers.resize(m.L());
    for (const ParamTensor& t : m.tensors)
        if (layer >= 0 && wanted(t)) layer_view(w.layers[layer], t, base + (t.offset - first));
    use((const Weights<float>&)w);
    if (!m.dev.cuda) return;
    copy_to_device(m.master.data + first, base, (end - first) * sizeof(float), m.dev);
    device_synchronize(m.dev);  // the copy may go
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

// Give parameter t its values: fill writes them into host memory, from where they go to wherever the weights are
// (give_grid: see base_fill)
typedef std::function<bool(QuantizedTensor&)> GiveGrid;
inline void base_fill(Model& m, const ParamTensor& t, const std::function<void(float*)>& fill,
                      const GiveGrid& give_grid);

inline void model_fill(Model& m, const ParamTensor& t, const std::function<void(float*)>& fill,
                       const GiveGrid& give_grid = nullptr) {
    if (m.frozen) {
        base_fill(m, t, fill, give_grid);
        return;
    }
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

// rows and columns of the four products of a layer, and the rows of the tensors that each joins
struct ProductShape {
    int64_t rows, cols;
    QuantizedRows parts;
};
inline std::array<ProductShape, 4> product_shapes(const Model& m) {
    int64_t C = m.C(), F = m.F(), q = (int64_t)m.NH() * m.HD(), kv = (int64_t)m.NKV() * m.HD();
    return {{{q + 2 * kv, C, {q, kv, kv}},
             {C, q, {C, 0, 0}},
             {2 * F, C, {F, F, 0}},
             {C, F, {C, 0, 0}}}};  // qkv, o, gate and up, down
}

// Generation reads codes at their own size where reading the weights is what a decode step waits for: on a device (in
// an fp32 build the product would unpack them first, so not there), and on the CPU where the working weights of the
// linears are beyond what stays in the caches; below, the laid-out working weights are faster.
inline bool generates_from_codes(const Model& m) {
    if (m.frozen) return false;  // it has nothing else
    if (!m.quantizer.on() || m.dev.cuda) return m.quantizer.on() && sizeof(floatX) == 2;
    size_t bytes = 0;
    for (const ParamTensor& t : m.tensors) bytes += t.kind == ParamKind::linear ? t.count() * sizeof(floatX) : 0;
    return bytes > m.codes_beyond;
}

// the packed codes of a product, without memory
inline QuantizedWeight product_codes(const Model& m, const ProductShape& p) {
    const Quantizer& q = m.quantizer;
    bool grouped = q.scope == QuantScope::group || q.scope == QuantScope::block;
    return quantized_weight(q.spec, quantized_storage(q.spec, q.double_quant), p.parts, p.cols,
                            grouped ? q.group : p.cols, quantized_layout(m.dev));
}
inline size_t product_codes_bytes(const Model& m, const ProductShape& p) {
    return (quantized_weight_bytes(product_codes(m, p)) + 255) / 256 * 256;
}

inline void generation_codes_allocate(Model& m) {
    if (!generates_from_codes(m)) return;
    size_t bytes = 0;
    for (const ProductShape& p : product_shapes(m)) {
        if (m.quantizer.group && p.cols % m.quantizer.group) continue;  // not quantized, or check_quantizer refuses it
        bytes += (size_t)m.L() * product_codes_bytes(m, p);
    }
    m.generation_codes.allocate(bytes, "packed codes for generation", "", m.dev);
}

// the part of a layer that a linear is: "q", "k", ... "down"
inline std::string linear_part(const ParamTensor& t) {
    size_t end = t.name.rfind("_proj"), start = t.name.rfind('.', end) + 1;
    return t.name.substr(start, end - start);
}

// which: "all", or a list of q,k,v,o,gate,up,down. Embeddings and head are never quantized.
inline bool quantizes(const std::string& which, const ParamTensor& t) {
    if (t.kind != ParamKind::linear) return false;
    std::string part = "," + linear_part(t) + ",";
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

// The inputs of the products whose linears `which` names get a quantizer. The linears of a product share their input,
// so that a list that names some of them only is refused.
inline void model_quantize_activations(Model& m, const Quantizer& q, const std::string& which) {
    m.activations = q;
    m.activation_products = {};
    if (!q.on()) return;
    static const std::vector<std::string> parts[] = {{"q", "k", "v"}, {"o"}, {"gate", "up"}, {"down"}};
    for (int p = 0; p < 4; p++) {
        size_t named = 0;
        for (const std::string& part : parts[p])
            named += which == "all" || ("," + which + ",").find("," + part + ",") != which.npos;
        if (named != 0 && named != parts[p].size())
            fail_usage(
                "--quantize_layers %s with --activations: %s and its neighbours multiply the same input; name all of "
                "q,k,v and all of gate,up, or none",
                which.c_str(), parts[p][0].c_str());
        int64_t cols = product_shapes(m)[p].cols;
        if (named && q.scope == QuantScope::group && cols % q.group)
            fail_usage("--activations %s: groups of %d do not divide the %lld inputs of %s; choose a divisor or token",
                       quantizer_text(q, "token").c_str(), q.group, (long long)cols, parts[p][0].c_str());
        m.activation_products[p] = named > 0;
    }
}

// the tensors that `which` names get their quantizer; track_flips: their codes are kept to be compared
inline void model_quantize(Model& m, const Quantizer& q, ScaleMode mode, SteRule ste, const std::string& which,
                           bool track_flips, LearnedScale learned_scale = LearnedScale::lsq) {
    m.quantizer = q;
    m.scale_mode = mode;
    m.learned_scale = learned_scale;
    m.ste = ste;
    m.quantized.clear();
    if (!q.on()) return;
    int64_t groups = 0, codes = 0, floats = 0;
    for (const ParamTensor& t : m.tensors) {
        if (!quantizes(which, t)) continue;
        QuantizedTensor qt;
        qt.name = t.name;
        qt.rows = t.rows;
        qt.cols = t.cols;
        qt.offset = t.offset;
        quantized_tensor_init(qt, q);
        groups += qt.groups;
        floats += scale_state_floats(qt, q);
        codes += qt.rows * qt.cols;
        m.quantized.push_back(qt);
    }
    m.grids.allocate(groups, "quantization scales", "", m.dev);
    m.scale_floats.allocate(floats, "quantization scales", "", m.dev);
    if (mode == ScaleMode::learned) {
        m.learned.allocate(2 * groups, "learned scales", "", m.dev);
        m.learned_ranges.allocate(learned_scale == LearnedScale::lwc ? groups : 0, "learned scales", "", m.dev);
    }
    m.scale_codes.allocate(q.double_quant ? groups : 0, "quantization scales", "", m.dev);
    if (track_flips || generates_from_codes(m)) m.codes.allocate(codes, "quantization codes", "", m.dev);
    if (track_flips) m.initial.allocate(codes, "quantization codes at load", "", m.dev);
    generation_codes_allocate(m);
    m.flip_counts.allocate(2 * m.quantized.size(), "code-flip counters", "", m.dev);
    when_allocated(m.dev, [&m] {
        int64_t group = 0, code = 0, floats = 0;
        for (QuantizedTensor& t : m.quantized) {
            t.master = m.master.data + t.offset;
            t.work = m.work.data + t.offset;
            t.grid = m.grids.data + group;
            if (m.learned.size) t.learned.a = m.learned.data + 2 * group, t.learned.b = t.learned.a + t.groups;
            if (m.learned_ranges.size) t.learned.range = m.learned_ranges.data + group;
            if (m.scale_floats.size) t.state.tensor = m.scale_floats.data + floats;
            if (m.scale_codes.size) {
                t.state.codes = m.scale_codes.data + group;
                t.state.absmax = t.state.tensor + 1;
            }
            floats += scale_state_floats(t, m.quantizer);
            t.codes = m.codes.size ? m.codes.data + code : nullptr;
            t.initial = m.initial.size ? m.initial.data + code : nullptr;
            group += t.groups;
            code += t.rows * t.cols;
        }
    });
}

// what packing reads of a quantized tensor
inline void quantized_source(QuantizedSource& s, const QuantizedTensor& t, const Quantizer& q) {
    s.codes = t.codes, s.grid = t.grid;
    s.grid_rows =
        q.scope == QuantScope::tensor ? t.rows : 1;  // the scale of a 128 x 128 tile stands in each of its rows
    s.tensor = t.state.tensor, s.scale_codes = t.state.codes, s.nested = t.state.absmax;
}

// ---------------------------------------------------------------------------------------------------------------------
// what the forward reads, made of the masters

// work from master: after loading and after every optimizer step
inline void model_refresh(Model& m) {
    NVTX_RANGE("quantize_weights");
    if (m.lora.on()) lora_refresh(m.lora, m.dev);
    m.loading.reset();
    if (m.frozen) return;
    size_t next = 0, adapted = 0;
    for (const ParamTensor& t : m.tensors) {
        const float* master = m.master.data + t.offset;
        if (m.lora.inside() && adapted < m.lora.tensors.size() && m.lora.tensors[adapted].name == t.name) {
            lora_combine(m.lora, m.lora.combined.data, master, m.lora.tensors[adapted++], m.dev);
            master = m.lora.combined.data;
        }
        if (m.quantize && next < m.quantized.size() && m.quantized[next].offset == t.offset) {
            QuantNoise noise = m.noise;
            noise.tensor = (uint32_t)next;
            m.quantized[next].master = master;
            quantized_tensor_refresh(m.quantized[next], m.quantizer, m.scale_mode, m.flip_counts.data + 2 * next, m.dev,
                                     m.learned_scale, noise);
            next++;
            continue;
        }
        convert_forward(m.work.data + t.offset, master, t.count(), m.dev);
    }
    if (!m.quantize || m.quantized.empty()) return;
    std::vector<int64_t> counts(m.flip_counts.size);
    copy_to_host(counts.data(), m.flip_counts.data, m.flip_counts.bytes(), m.dev);
    for (size_t i = 0; i < m.quantized.size(); i++) {
        m.quantized[i].flips = m.quantized[i].initial ? counts[2 * i] : 0;
        m.quantized[i].flips_total = m.quantized[i].initial ? counts[2 * i + 1] : 0;
    }
}

// what a product's codes are packed from: the quantized tensors that are its rows, which begin at `offset`; false if
// not all of them are quantized
inline bool quantized_product(const Model& m, size_t offset, const ProductShape& p, QuantizedSources& from,
                              bool* foreign) {
    int part = 0;
    *foreign = false;
    for (const QuantizedTensor& t : m.quantized) {
        if (t.offset != offset) continue;
        quantized_source(from.part[part], t, m.quantizer);
        *foreign |= t.foreign;
        offset += (size_t)(t.rows * t.cols);
        if (++part == QW_PARTS || p.parts[part] == 0) return true;
    }
    return false;
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
            const ProductShape& p = shapes[i];
            QuantizedSources sources;
            if (!m.base.empty() && m.base[l][i].N) continue;  // packed for good
            bool foreign, from_codes = m.quantize && m.generation_codes.size &&
                                       quantized_product(m, (size_t)(from[i] - m.work.data), p, sources, &foreign);
            QuantizedWeight codes = from_codes ? product_codes(m, p) : QuantizedWeight();
            to[i]->codes = QuantizedWeight();
            // where the storage cannot hold a file's scales, the working weights are read
            if (from_codes && (!foreign || quantized_fit_scales(codes, sources, m.dev))) {
                to[i]->codes = codes;
                quantized_weight_place(to[i]->codes, m.generation_codes.data + at);
                quantized_weight_pack(to[i]->codes, sources, m.dev);
                at += product_codes_bytes(m, p);
            } else if (!m.dev.cuda) {
                to[i]->cpu = pack_weight_nt(from[i], p.rows, p.cols);
            }
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
