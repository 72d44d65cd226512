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
#include <memory>
#include <string>
#include <vector>
#include "formats/hf_config.h"
#include "kernels/attention.cuh"
#include "kernels/embedding.cuh"
#include "kernels/linear.cuh"
#include "kernels/lm_head.cuh"
#include "kernels/rmsnorm.cuh"
#include "kernels/rope.cuh"
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

struct PackedLayer {
    PackedWeight<floatX> qkv, o, gate_up, down;
};

struct Model {
    ModelConfig config;
    std::vector<ParamTensor> tensors;
    size_t num_params = 0;  // elements of the arrays below, alignment gaps included
    Buffer<float> master;   // [num_params]
    Buffer<floatX> work;    // [num_params]
    Weights<floatX> w;      // views of work
    RopeTable rope;
    Device dev;

    Quantizer quantizer;
    ScaleMode scale_mode = ScaleMode::dynamic;
    SteRule ste = SteRule::identity;
    std::vector<QuantizedTensor> quantized;

    bool packed = false;  // the linears also lie in the GEMM's own layout (generation)
    std::vector<PackedLayer> packed_layers;
    PackedWeight<floatX> packed_head;

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
    m.master.allocate(m.num_params, "the fp32 master weights");
    m.work.allocate(m.num_params, "the working weights");
    m.w = model_views(m, m.work.data);
    rope_init(m.rope, config.head_dim, config.rope_theta, config.rope_scaling == RopeScaling::llama3, config.factor,
              config.low_freq_factor, config.high_freq_factor, config.original_max_position_embeddings);
}

// Normal(0, 0.02) by Box-Muller, the two projections into the residual stream scaled by 1/sqrt(2L) (GPT-2), norms 1
inline void model_init_random(Model& m, uint64_t seed) {
    for (size_t i = 0; i < m.tensors.size(); i++) {
        const ParamTensor& t = m.tensors[i];
        float* p = m.master.data + t.offset;
        if (t.kind == ParamKind::norm)
            for (int64_t j = 0; j < t.count(); j++) p[j] = 1.0f;
        if (t.kind == ParamKind::norm || t.kind == ParamKind::bias) continue;
        bool residual = t.name.find("o_proj") != std::string::npos || t.name.find("down_proj") != std::string::npos;
        float scale = 0.02f * (residual ? 1.0f / sqrtf(2.0f * (float)m.L()) : 1.0f);
        for (int64_t j = 0; j < t.count(); j++) {
            Philox4 r = rng_bits(seed, RNG_INIT, (uint32_t)i, (uint32_t)j, (uint32_t)(j >> 32));
            float u = 1.0f - uniform01(r.x[0]), angle = 6.283185307f * uniform01(r.x[1]);
            p[j] = scale * sqrtf(-2.0f * logf(u)) * cosf(angle);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// quantization of the linears

// which: "all", or a list of q,k,v,o,gate,up,down. Embeddings and head are never among them.
inline void model_quantize(Model& m, const Quantizer& q, ScaleMode mode, SteRule ste, const std::string& which,
                           bool track_flips) {
    m.quantizer = q;
    m.scale_mode = mode;
    m.ste = ste;
    m.quantized.clear();
    if (!q.on()) return;
    for (const ParamTensor& t : m.tensors) {
        if (t.kind != ParamKind::linear) continue;
        size_t end = t.name.rfind("_proj"), start = t.name.rfind('.', end) + 1;
        std::string part = t.name.substr(start, end - start);
        if (which != "all" && ("," + which + ",").find("," + part + ",") == std::string::npos) continue;
        QuantizedTensor qt;
        qt.name = t.name;
        qt.rows = t.rows;
        qt.cols = t.cols;
        qt.master = m.master.data + t.offset;
        qt.work = m.work.data + t.offset;
        quantized_tensor_init(qt, q, track_flips);
        m.quantized.push_back(std::move(qt));
    }
}

// work = floatX(master) everywhere, quantizer left out: the full-precision policy. model_refresh brings it back.
inline void model_work_from_master(Model& m) {
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < m.num_params; i++) m.work.data[i] = m.master.data[i];
}

// work from master: after loading and after every optimizer step
inline void model_refresh(Model& m) {
    size_t next = 0;
    for (const ParamTensor& t : m.tensors) {
        if (next < m.quantized.size() && m.quantized[next].work == m.work.data + t.offset) {
            quantized_tensor_refresh(m.quantized[next++], m.quantizer, m.scale_mode);
            continue;
        }
        const float* from = m.master.data + t.offset;
        floatX* to = m.work.data + t.offset;
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < t.count(); i++) to[i] = from[i];
    }
}

// Generation multiplies thousands of times with the same weights: lay them out once as the GEMM wants them. The results
// have the same bits (cpu/gemm.h). Undo with model_unpack before the weights change.
inline void model_pack(Model& m) {
    m.packed_layers.resize(m.L());
    for (int l = 0; l < m.L(); l++) {
        const LayerWeights<floatX>& w = m.w.layers[l];
        PackedLayer& p = m.packed_layers[l];
        p.qkv = pack_weight_nt(w.qkv, m.QKV(), m.C());
        p.o = pack_weight_nt(w.o, m.C(), m.NH() * m.HD());
        p.gate_up = pack_weight_nt(w.gate_up, 2 * m.F(), m.C());
        p.down = pack_weight_nt(w.down, m.C(), m.F());
    }
    m.packed_head = pack_weight_nt(m.w.head, m.V(), m.C());
    m.packed = true;
}

inline void model_unpack(Model& m) {
    m.packed = false;
    m.packed_layers.clear();
    m.packed_head = PackedWeight<floatX>();
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
    std::vector<floatX*> residual;  // [L+1] of [T,C]: input of each layer, and the output of the last
    std::vector<LayerActivations> layers;
    floatX* branch;      // [T,C] what a block adds to the residual
    floatX* hidden;      // [T,C] after the last norm
    float* hidden_rstd;  // [T]
    // gradients of activations, one layer's worth (training only)
    floatX *dresidual, *dnorm, *datt, *dqk, *dqkv, *dgate_up, *dact;
};

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
    a.half.allocate(half * T, "activations", hint);
    a.full.allocate(full * T, "activation statistics", hint);
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

struct CacheRow {
    int place;
    int64_t row;
};

// The tokens of one forward pass, sequence after sequence
struct Batch {
    std::vector<int> tokens, positions;  // [T]
    std::vector<int> starts;             // [sequences+1]
    std::vector<KeyRange> ranges;        // [T] what each token attends to
    std::vector<CacheRow> writes;        // [T] where its key and value go; empty without a cache
    int64_t T() const { return (int64_t)tokens.size(); }
    int sequences() const { return (int)starts.size() - 1; }
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

// attention and MLP of layer l, from a.layers[l].ln1 to a.branch; residual_in is the layer's input
inline void layer_forward(Model& m, Activations& a, int l, const floatX* residual_in, const Batch& b, KVCache* cache) {
    int64_t T = b.T();
    int C = m.C(), F = m.F(), NH = m.NH(), NKV = m.NKV(), HD = m.HD(), QKV = m.QKV(), QK = (NH + NKV) * HD;
    const LayerWeights<floatX>& w = m.w.layers[l];
    const PackedLayer* p = m.packed ? &m.packed_layers[l] : nullptr;
    LayerActivations& y = a.layers[l];

    linear_forward_cpu(y.qkv, y.ln1, w.qkv, w.qkv_bias, p ? &p->qkv : nullptr, T, C, QKV);
    if (m.config.qk_norm) {
        float eps = m.config.rms_norm_eps;
        rmsnorm_heads_forward(y.qk, y.q_rstd, y.qkv, w.q_norm, T, NH, HD, QK, QKV, eps, m.dev);
        rmsnorm_heads_forward(y.qk + NH * HD, y.k_rstd, y.qkv + NH * HD, w.k_norm, T, NKV, HD, QK, QKV, eps, m.dev);
        rope_forward_cpu(y.qk, QK, y.qk, QK, b.positions.data(), m.rope, T, NH + NKV);
    } else {
        rope_forward_cpu(y.qk, QK, y.qkv, QKV, b.positions.data(), m.rope, T, NH + NKV);
    }

    KeyValueRows place[2];
    if (cache) {
        for (int64_t t = 0; t < T; t++) {
            int64_t at = (l * cache->rows[b.writes[t].place] + b.writes[t].row) * cache->width;
            memcpy(cache->k[b.writes[t].place].data + at, y.qk + t * QK + NH * HD, cache->width * sizeof(floatX));
            memcpy(cache->v[b.writes[t].place].data + at, y.qkv + t * QKV + QK, cache->width * sizeof(floatX));
        }
        for (int i = 0; i < 2; i++) {
            int64_t base = l * cache->rows[i] * cache->width;
            place[i] = {cache->k[i].data + base, cache->v[i].data + base, cache->width, cache->width};
        }
    } else {
        place[0] = {y.qk + NH * HD, y.qkv + QK, QK, QKV};
    }
    attention_forward_cpu(y.att, y.lse, y.qk, QK, place[0], place[1], b.ranges.data(), T, NH, NKV, HD);
    linear_forward_cpu(a.branch, y.att, w.o, nullptr, p ? &p->o : nullptr, T, NH * HD, C);

    fused_residual_rmsnorm_forward(y.mid, y.ln2, y.ln2_rstd, residual_in, a.branch, w.ln2, T, C, m.config.rms_norm_eps,
                                   m.dev);
    linear_forward_cpu(y.gate_up, y.ln2, w.gate_up, nullptr, p ? &p->gate_up : nullptr, T, C, 2 * F);
    swiglu_forward_cpu(y.act, y.gate_up, T, F);
    linear_forward_cpu(a.branch, y.act, w.down, nullptr, p ? &p->down : nullptr, T, F, C);
}

// tokens -> a.hidden [T,C]
inline void model_forward(Model& m, Activations& a, const Batch& b, KVCache* cache = nullptr) {
    int64_t T = b.T();
    if (T > a.capacity) fail("a batch of %lld tokens in activations for %lld", (long long)T, (long long)a.capacity);
    int last = 0;
    for (int p : b.positions) last = p > last ? p : last;
    rope_extend(m.rope, last + 1);
    int C = m.C(), L = m.L();
    float eps = m.config.rms_norm_eps;
    embedding_forward_cpu(a.residual[0], b.tokens.data(), m.w.embed, T, C);
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

// ---------------------------------------------------------------------------------------------------------------------
// backward

// gradients of every parameter from a.dnorm = dL/dhidden [T,C]; grads accumulate
inline void model_backward(Model& m, Activations& a, const Batch& b, const Weights<float>& g) {
    int64_t T = b.T();
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
        linear_backward_cpu(a.dact, d.down, nullptr, a.dresidual, y.act, w.down, T, F, C);
        swiglu_backward_cpu(a.dgate_up, a.dact, y.gate_up, T, F);
        linear_backward_cpu(a.dnorm, d.gate_up, nullptr, a.dgate_up, y.ln2, w.gate_up, T, C, 2 * F);
        rmsnorm_backward(a.dresidual, d.ln2, a.dnorm, y.mid, w.ln2, y.ln2_rstd, T, C, true, m.dev);
        // attention
        linear_backward_cpu(a.datt, d.o, nullptr, a.dresidual, y.att, w.o, T, NH * HD, C);
        floatX* dqk = m.config.qk_norm ? a.dqk : a.dqkv;
        int64_t stride = m.config.qk_norm ? QK : QKV;
        attention_backward_cpu(dqk, stride, dqk + NH * HD, stride, a.dqkv + QK, QKV, a.datt, y.att, y.lse, y.qk, QK,
                               {y.qk + NH * HD, y.qkv + QK, QK, QKV}, b.starts.data(), b.sequences(), NH, NKV, HD);
        rope_backward_cpu(dqk, stride, b.positions.data(), m.rope, T, NH + NKV);
        if (m.config.qk_norm) {
            rmsnorm_heads_backward(a.dqkv, d.q_norm, a.dqk, y.qkv, w.q_norm, y.q_rstd, T, NH, HD, QKV, QK, QKV, false,
                                   m.dev);
            rmsnorm_heads_backward(a.dqkv + NH * HD, d.k_norm, a.dqk + NH * HD, y.qkv + NH * HD, w.k_norm, y.k_rstd, T,
                                   NKV, HD, QKV, QK, QKV, false, m.dev);
        }
        linear_backward_cpu(a.dnorm, d.qkv, d.qkv_bias, a.dqkv, y.ln1, w.qkv, T, C, QKV);
        rmsnorm_backward(a.dresidual, d.ln1, a.dnorm, a.residual[l], w.ln1, y.ln1_rstd, T, C, true, m.dev);
    }
    embedding_backward_cpu(g.embed, a.dresidual, b.tokens.data(), T, C);
}
