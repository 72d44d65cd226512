// Parameters of the transformer, and what the forward reads of them.
//
// Parameters lie in one array, in the order of the layers; q,k,v and gate,up are neighbours, so that each group is one
// matmul although every tensor keeps its own quantizer (linear.cuh). The fp32 master is what the optimizer moves; `work`
// is what the forward reads: floatX(master), or the quantizer's value for a quantized weight.
//
// A Model is one set of weights. A reference policy or a teacher is a second one, with quantizers of its own.
//
// Shape letters of the whole tree: B sequences, T tokens, C hidden size, V vocabulary, L layers, NH query heads,
// NKV key/value heads, HD head size, F inner size of the MLP, G samples of one prompt (group), R rank.
#pragma once
#include <array>
#include <functional>
#include <memory>
#include <string>
#include <vector>
#include "../kernels/rope.cuh"
#include "../runtime/rng.h"
#include "config.h"
#include "linear.cuh"
#include "quantizer_rules.h"

// ---------------------------------------------------------------------------------------------------------------------
// parameters

enum class ParamKind { embedding, head, linear, norm, bias };
enum class Product { qkv, o, gate_up, down };  // the four linears of a layer
inline constexpr const char* product_names[] = {"q,k,v", "o", "gate,up", "down"};
enum class NormKind { last, ln1, ln2, q_norm, k_norm };

// A tensor of the checkpoint
struct ParamTensor {
    std::string name;  // Hugging Face's
    ParamKind kind;
    int64_t rows, cols;   // a vector is [1, n]
    size_t offset;        // into master, work, gradients and moments
    int layer;            // -1 outside the layers
    const char* label;    // of a weight: q, k, v, o, gate, up, down, embed, head
    Product product;      // of a linear or its bias: which of its layer's,
    int part;             // and which part of that
    NormKind norm;        // of a norm: which one
    bool packed = false;  // lies in no array but in the packed codes of a frozen base
    int64_t count() const { return rows * cols; }
};

struct Layer {
    Linear qkv;            // [(NH+2*NKV)*HD, C], with a bias or without
    Linear o;              // [C, NH*HD]
    Linear gate_up;        // [2*F, C]
    Linear down;           // [C, F]
    Param ln1, ln2;        // [C]
    Param q_norm, k_norm;  // [HD]; null without
    Quantizer kv;          // of its keys and values
};
inline std::array<Linear*, 4> layer_linears(Layer& l) { return {&l.qkv, &l.o, &l.gate_up, &l.down}; }
inline std::array<const Linear*, 4> layer_linears(const Layer& l) { return {&l.qkv, &l.o, &l.gate_up, &l.down}; }

struct BaseLoading;

struct Model {
    ModelConfig config;
    Device dev;  // where the arrays are and the operators run; set before model_allocate
    std::vector<ParamTensor> tensors;
    size_t num_params = 0;  // elements of the arrays below, alignment gaps included
    Buffer<float> master;   // [num_params]; none of a frozen base or of a reference
    Buffer<floatX> work;    // [num_params]
    std::vector<Layer> layers;
    LinearPart embed, head;  // [V,C]; a tied head reads what the embedding does
    Param norm;              // [C], the last one
    RopeTable rope;
    Hadamard rotate_qk;  // online, of q and k after RoPE (R3); R4 is the transform of the down linears
    Buffer<float> transforms;  // the numbers of the linears' learned transforms, if they have some
    Buffer<float> rotated;  // [largest weight of a linear] while it is in its rotated basis (basis.cuh), if any has one

    QuantizerRules weight_rules, activation_rules, kv_rules;  // as they were asked for
    QuantNoise noise;                                         // stochastic rounding: seed and step
    bool work_quantized = true;                               // what model_refresh last made of the working weights
    Buffer<Grid> grids;                                       // of the quantized tensors, one after another
    Buffer<float> scale_floats;     // what stands behind their scales (ScaleState): for each tensor, its own, then
    Buffer<uint8_t> scale_codes;    // those of its blocks of scales; and the codes of the scales
    Buffer<float> learned;          // [quantized tensors, 2, groups]: LearnedGrid's parameters
    Buffer<Grid> learned_ranges;    // lwc: of the quantized tensors, as grids
    Buffer<int8_t> codes, initial;  // their codes now and at load; only when flips are tracked
    Buffer<int64_t> flip_counts;    // [quantized tensors, 2]

    bool k_pre_bias = false;        // keys are quantized before their bias is added
    Buffer<floatX> bias_without_k;  // [QKV] of the layer at work: its bias, zero for k

    PackedWeight<floatX> head_layout;  // CPU: the head as generation multiplies with it
    Buffer<char> packed_codes;         // of linears: for generation, or for good in a frozen base
    size_t codes_beyond = 4 << 20;     // bytes of working weights; see generates_from_codes

    // A frozen base has no masters and nothing that trains them; what its quantizer names exists as packed codes alone,
    // which rollout, training and evaluation multiply with
    bool frozen = false;
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
    auto add = [&](const std::string& name, ParamKind kind, int64_t rows, int64_t cols, int layer, bool joined,
                   const char* label = "", Product product = Product::qkv, int part = 0,
                   NormKind norm = NormKind::last) {
        if (!joined) end = (end + 31) / 32 * 32;
        list.push_back({name, kind, rows, cols, end, layer, label, product, part, norm});
        end += (size_t)(rows * cols);
    };
    int64_t C = c.hidden_size, F = c.intermediate_size, q = (int64_t)c.num_attention_heads * c.head_dim,
            kv = (int64_t)c.num_key_value_heads * c.head_dim;
    add("model.embed_tokens.weight", ParamKind::embedding, c.vocab_size, C, -1, false, "embed");
    for (int l = 0; l < c.num_hidden_layers; l++) {
        std::string p = "model.layers." + std::to_string(l) + ".";
        add(p + "input_layernorm.weight", ParamKind::norm, 1, C, l, false, "", Product::qkv, 0, NormKind::ln1);
        add(p + "self_attn.q_proj.weight", ParamKind::linear, q, C, l, false, "q", Product::qkv, 0);
        add(p + "self_attn.k_proj.weight", ParamKind::linear, kv, C, l, true, "k", Product::qkv, 1);
        add(p + "self_attn.v_proj.weight", ParamKind::linear, kv, C, l, true, "v", Product::qkv, 2);
        if (c.qkv_bias) {
            add(p + "self_attn.q_proj.bias", ParamKind::bias, 1, q, l, false, "q", Product::qkv, 0);
            add(p + "self_attn.k_proj.bias", ParamKind::bias, 1, kv, l, true, "k", Product::qkv, 1);
            add(p + "self_attn.v_proj.bias", ParamKind::bias, 1, kv, l, true, "v", Product::qkv, 2);
        }
        if (c.qk_norm) {
            add(p + "self_attn.q_norm.weight", ParamKind::norm, 1, c.head_dim, l, false, "", Product::qkv, 0,
                NormKind::q_norm);
            add(p + "self_attn.k_norm.weight", ParamKind::norm, 1, c.head_dim, l, false, "", Product::qkv, 0,
                NormKind::k_norm);
        }
        add(p + "self_attn.o_proj.weight", ParamKind::linear, C, q, l, false, "o", Product::o, 0);
        add(p + "post_attention_layernorm.weight", ParamKind::norm, 1, C, l, false, "", Product::qkv, 0, NormKind::ln2);
        add(p + "mlp.gate_proj.weight", ParamKind::linear, F, C, l, false, "gate", Product::gate_up, 0);
        add(p + "mlp.up_proj.weight", ParamKind::linear, F, C, l, true, "up", Product::gate_up, 1);
        add(p + "mlp.down_proj.weight", ParamKind::linear, C, F, l, false, "down", Product::down, 0);
    }
    add("model.norm.weight", ParamKind::norm, 1, C, -1, false);
    if (!c.tie_word_embeddings) add("lm_head.weight", ParamKind::head, c.vocab_size, C, -1, false, "head");
    *num_params = (end + 31) / 32 * 32;
    return list;
}

// ---------------------------------------------------------------------------------------------------------------------
// from a tensor of the checkpoint to what the forward reads, and back

inline Linear& linear_of(Model& m, const ParamTensor& t) { return *layer_linears(m.layers[t.layer])[(int)t.product]; }
inline const Linear& linear_of(const Model& m, const ParamTensor& t) {
    return *layer_linears(m.layers[t.layer])[(int)t.product];
}
// the weight that t is: part of a linear, embedding or head; null for norms and biases
inline const LinearPart* part_of(const Model& m, const ParamTensor& t) {
    if (t.kind == ParamKind::linear) return &linear_of(m, t).parts[t.part];
    return t.kind == ParamKind::embedding ? &m.embed : t.kind == ParamKind::head ? &m.head : nullptr;
}
inline LinearPart* part_of(Model& m, const ParamTensor& t) {
    return const_cast<LinearPart*>(part_of(static_cast<const Model&>(m), t));
}

inline Param& norm_of(Model& m, const ParamTensor& t) {
    switch (t.norm) {
        case NormKind::ln1:
            return m.layers[t.layer].ln1;
        case NormKind::ln2:
            return m.layers[t.layer].ln2;
        case NormKind::q_norm:
            return m.layers[t.layer].q_norm;
        case NormKind::k_norm:
            return m.layers[t.layer].k_norm;
        case NormKind::last:
            break;
    }
    return m.norm;
}

// the weights with a quantizer, in the order of memory
inline std::vector<LinearPart*> quantized_parts(Model& m) {
    std::vector<LinearPart*> list;
    for (const ParamTensor& t : m.tensors) {
        LinearPart* p = part_of(m, t);
        if (p && p->quantizer.on()) list.push_back(p);
    }
    return list;
}
inline std::vector<const LinearPart*> quantized_parts(const Model& m) {
    std::vector<const LinearPart*> list;
    for (LinearPart* p : quantized_parts(const_cast<Model&>(m))) list.push_back(p);
    return list;
}

// layers and linears of m.config with their shapes, and neither views nor quantizers
inline void model_structure(Model& m) {
    m.layers.clear();
    m.layers.resize(m.L());
    for (int l = 0; l < m.L(); l++)
        for (int p = 0; p < 4; p++) {
            Linear& linear = *layer_linears(m.layers[l])[p];
            linear.name = product_names[p], linear.layer = l, linear.lora = &m.lora;
            linear.adapter.number = (uint32_t)(l * 4 + p);
        }
    for (const ParamTensor& t : m.tensors) {
        if (t.kind == ParamKind::norm || t.kind == ParamKind::bias) continue;
        LinearPart part;
        part.name = t.name, part.rows = t.rows, part.cols = t.cols, part.label = t.label, part.offset = t.offset;
        part.layer = t.layer;
        if (t.kind != ParamKind::linear) {
            *part_of(m, t) = part;
            continue;
        }
        Linear& linear = linear_of(m, t);
        part.row0 = linear.rows;
        linear.rows += t.rows, linear.cols = t.cols;
        linear.parts.push_back(part);
    }
    for (Layer& l : m.layers)
        for (Linear* linear : layer_linears(l)) linear_plan_packing(*linear);
}

// Points one kind of view (Param::master and QuantizedTensor::master, say) at at(tensor), where it lies or null
template <class T, class At>
void model_bind_each(Model& m, const At& at, T* Param::*view, T* QuantizedTensor::*weight) {
    for (const ParamTensor& t : m.tensors) {
        T* p = at(t);
        if (LinearPart* part = part_of(m, t)) part->*weight = p;
        if (t.kind == ParamKind::linear && (t.part == 0 || !p)) linear_of(m, t).weight.*view = p;
        if (t.kind == ParamKind::bias && t.part == 0) linear_of(m, t).bias.*view = p;
        if (t.kind == ParamKind::norm) norm_of(m, t).*view = p;
    }
    if (m.config.tie_word_embeddings) m.head.*weight = m.embed.*weight;
}
// at an array of num_params elements, or at nothing
template <class T>
void model_bind(Model& m, T* base, T* Param::*view, T* QuantizedTensor::*weight) {
    model_bind_each(
        m, [&](const ParamTensor& t) { return base && !t.packed ? base + t.offset : nullptr; }, view, weight);
}
inline void model_bind_masters(Model& m, float* base) { model_bind(m, base, &Param::master, &QuantizedTensor::master); }
inline void model_bind_work(Model& m, floatX* base) { model_bind(m, base, &Param::work, &QuantizedTensor::work); }
// null: nothing of the base is trained
inline void model_bind_gradients(Model& m, float* base) { model_bind(m, base, &Param::grad, &QuantizedTensor::grad); }

// Where the parameters of layers [first,end) lie, one after another; offsets into master, work and gradients
struct ParamRange {
    size_t first = 0, end = 0;
    size_t count() const { return end - first; }
};
inline ParamRange layer_parameters(const Model& m, int first, int end) {
    ParamRange r = {m.num_params, 0};
    for (const ParamTensor& t : m.tensors)
        if (t.layer >= first && t.layer < end)
            r.first = std::min(r.first, t.offset), r.end = std::max(r.end, t.offset + (size_t)t.count());
    return r;
}
// layers [first,end) alone have gradients, in grads [layer_parameters]
inline void model_bind_layer_gradients(Model& m, float* grads, int first, int end) {
    const size_t start = layer_parameters(m, first, end).first;
    model_bind_each(
        m,
        [&](const ParamTensor& t) { return t.layer >= first && t.layer < end ? grads + (t.offset - start) : nullptr; },
        &Param::grad, &QuantizedTensor::grad);
}

// ---------------------------------------------------------------------------------------------------------------------
// masters on the host, where methods change them

// of a layer; weights in the order of Product
struct LayerMasters {
    float* weight[4] = {};
    float *qkv_bias = nullptr, *ln1 = nullptr, *ln2 = nullptr;
};
struct HostMasters {
    float *embed = nullptr, *head = nullptr, *norm = nullptr;
    std::vector<LayerMasters> layers;
};

// use(HostMasters) with the masters of a layer (-1: all of them) on the host: themselves, or a copy, which then goes
// back. copy: its memory
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
    HostMasters w;
    w.layers.resize(m.L());
    for (const ParamTensor& t : m.tensors) {
        if (!wanted(t)) continue;
        float* p = base + (t.offset - first);
        if (t.kind == ParamKind::embedding) w.embed = p;
        if (t.kind == ParamKind::head) w.head = p;
        if (t.kind == ParamKind::norm && t.layer < 0) w.norm = p;
        if (t.layer < 0) continue;
        LayerMasters& l = w.layers[t.layer];
        if (t.kind == ParamKind::linear && t.part == 0) l.weight[(int)t.product] = p;
        if (t.kind == ParamKind::bias && t.part == 0) l.qkv_bias = p;
        if (t.norm == NormKind::ln1) l.ln1 = p;
        if (t.norm == NormKind::ln2) l.ln2 = p;
    }
    if (!w.head) w.head = w.embed;
    use((const HostMasters&)w);
    if (!m.dev.cuda) return;
    copy_to_device(m.master.data + first, base, (end - first) * sizeof(float), m.dev);
    device_synchronize(m.dev);  // the copy may go
}

// ---------------------------------------------------------------------------------------------------------------------
// memory

// the online rotations that the configuration names
inline void model_online_rotations(Model& m) {
    auto matrix = [](int N) {
        Hadamard h;
        if (N && !hadamard_of_order(h, N)) fail("online_rotations: no Hadamard matrix of order %d is known here", N);
        return h;
    };
    m.rotate_qk = matrix(m.config.rotate_qk);
    for (Layer& l : m.layers) l.down.transform = matrix(m.config.rotate_down);
}

// Memory for a learned transform of every linear, which linear_load_transform gives it
inline void model_plan_transforms(Model& m) {
    auto numbers = [](const Kronecker& k) { return 2 * ((int64_t)k.n1 * k.n1 + (int64_t)k.n2 * k.n2 + k.N()); };
    int64_t size = 0;
    for (const Linear* l : layer_linears(m.layers[0])) {
        Kronecker k;
        if (!kronecker_split(k, l->cols))
            fail("transforms of inputs: %lld, those of %s, are no product of two numbers up to %d; leave them out",
                 (long long)l->cols, l->name, KRONECKER_MOST);
        size += numbers(k) * m.L();
    }
    m.transforms.allocate((size_t)size, "transforms of inputs", "", m.dev);
    when_allocated(m.dev, [&m, numbers] {
        float* at = m.transforms.data;
        for (Layer& layer : m.layers)
            for (Linear* l : layer_linears(layer)) {
                Kronecker size_of, &k = l->learned, &d = l->dual;
                kronecker_split(size_of, l->cols);
                const int64_t first = (int64_t)size_of.n1 * size_of.n1, second = (int64_t)size_of.n2 * size_of.n2;
                k.p1 = at, k.p2 = k.p1 + first, k.scale = k.p2 + second;
                d.p1 = k.scale + l->cols, d.p2 = d.p1 + first, d.scale = d.p2 + second;
                at += numbers(size_of);
            }
    });
}

// numbers: transform_numbers(t)
inline void linear_load_transform(Linear& l, const InputTransform& t, const std::vector<float>& numbers, Device dev) {
    copy_to_device(const_cast<float*>(l.learned.p1), numbers.data(), numbers.size() * sizeof(float), dev);
    device_synchronize(dev);  // the numbers may go
    l.learned.n1 = l.dual.n1 = t.n1, l.learned.n2 = l.dual.n2 = t.n2;
    l.clip = t.clip;
}

// the learned transforms that the configuration has
inline void model_input_transforms(Model& m) {
    if (!m.config.transformed) return;
    if (!m.config.transforms) fail("the configuration says that inputs are transformed, and by what is not known");
    model_plan_transforms(m);
    when_allocated(m.dev, [&m] {
        for (int i = 0; i < 4 * m.L(); i++) {
            const InputTransform& t = (*m.config.transforms)[(size_t)i];
            linear_load_transform(*layer_linears(m.layers[i / 4])[i % 4], t, transform_numbers(t), m.dev);
        }
    });
}

// what every set of weights has but its arrays
inline void model_describe(Model& m, const ModelConfig& config) {
    m.config = config;
    m.tensors = model_tensors(config, &m.num_params);
    model_structure(m);
    rope_init(m.rope, config.head_dim, config.rope_theta, config.rope_scaling == RopeScaling::llama3, config.factor,
              config.low_freq_factor, config.high_freq_factor, config.original_max_position_embeddings);
    model_online_rotations(m);
    model_input_transforms(m);
}

// arrays for a configuration; the weights are zero until loaded or drawn
inline void model_allocate(Model& m, const ModelConfig& config) {
    model_describe(m, config);
    m.master.allocate(m.num_params, "fp32 master weights", "", m.dev);
    m.work.allocate(m.num_params, "working weights", "", m.dev);
    when_allocated(m.dev, [&m] {
        model_bind_masters(m, m.master.data);
        model_bind_work(m, m.work.data);
    });
}

// Numbers that do not change, for a second set of weights: working weights alone, with the quantizers that m has for
// activations and the KV cache. model_copy_work fills them, in the bases that m's linears have then.
inline void model_allocate_reference(Model& reference, const Model& m) {
    reference.dev = m.dev;
    model_describe(reference, m.config);
    for (int l = 0; l < m.L(); l++) {
        reference.layers[l].kv = m.layers[l].kv;
        for (int p = 0; p < 4; p++) layer_linears(reference.layers[l])[p]->input = layer_linears(m.layers[l])[p]->input;
    }
    reference.activation_rules = m.activation_rules, reference.kv_rules = m.kv_rules;
    reference.k_pre_bias = m.k_pre_bias;
    if (m.k_pre_bias) reference.bias_without_k.allocate(m.QKV(), "a bias", "", m.dev);
    reference.work.allocate(m.num_params, "the reference model", "--beta 0 needs none", m.dev);
    when_allocated(m.dev, [&reference] { model_bind_work(reference, reference.work.data); });
}
inline void model_copy_work(Model& reference, const Model& m) {
    copy_on_device(reference.work.data, m.work.data, reference.work.bytes(), m.dev);
    for (int l = 0; l < m.L(); l++)
        for (int p = 0; p < 4; p++)
            linear_set_basis(*layer_linears(reference.layers[l])[p], layer_linears(m.layers[l])[p]->rotated);
}
