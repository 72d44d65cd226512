// A Qwen-style transformer: forward, backward, and the same forward over a KV cache. Its parameters: parameters.cuh.
//
//   residual_0 = embed(tokens)
//   per layer   x = rmsnorm(residual);  q,k,v = W_qkv x (+ bias);  q,k = rmsnorm per head (Qwen3);  q,k = rope(q,k)
//               residual += W_o attention(q, k, v)
//               x = rmsnorm(residual);  residual += W_down (silu(W_gate x) * W_up x)
//               a rotated model (methods/rotation.cuh) transforms q and k after rope, and the input of W_down, online
//   hidden = rmsnorm(residual);  logits = hidden W_head^T   (kernels/lm_head.cuh; W_head = embed when tied)
//
// One architecture covers Qwen2/2.5 (bias on q,k,v), Qwen3 (norm on each head of q and k, explicit head_dim) and
// Llama/SmolLM2 (neither). Sequences are packed one after another without padding. The letters of the shapes are those
// of parameters.cuh.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>
#include "kernels/attention.cuh"
#include "kernels/embedding.cuh"
#include "kernels/lm_head.cuh"
#include "kernels/rmsnorm.cuh"
#include "kernels/rows.cuh"
#include "kernels/sampling.cuh"
#include "kernels/swiglu.cuh"
#include "projection.cuh"

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
    floatX* qk;       // [T,(NH+NKV)*HD], q and k after norm, rope and rotation
    floatX* att;      // [T,NH*HD]
    floatX* mid;      // [T,C] residual after attention
    floatX* ln2;      // [T,C]
    floatX* gate_up;  // [T,2F]
    floatX* act;      // [T,F] input of down, rotated if that is
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
    floatX* quantized;   // [T, widest product's input] the fake-quantized input of a product; null without a quantizer
    floatX* hidden;      // [T,C] after the last norm
    float* hidden_rstd;  // [T]
    // gradients of activations, one layer's worth (training only)
    floatX *dresidual, *dnorm, *datt, *dqk, *dqkv, *dgate_up, *dact;
};

inline void activations_views(Activations& a, const Model& m);

inline int64_t quantized_input_width(const Model& m) {
    return m.activations.on() ? std::max({m.C(), m.F(), m.NH() * m.HD()}) : 0;
}

inline void activations_allocate(Activations& a, const Model& m, int64_t T, ActivationMode mode) {
    a.mode = mode;
    a.capacity = T;
    int64_t C = m.C(), F = m.F(), NH = m.NH(), NKV = m.NKV(), HD = m.HD(), QKV = m.QKV(), L = m.L();
    int64_t copies = mode == ActivationMode::save_all ? L : 1,
            residuals = mode == ActivationMode::inference ? 1 : L + 1;
    bool training = mode != ActivationMode::inference;
    int64_t half = copies * (4 * C + QKV + (NH + NKV) * HD + NH * HD + 3 * F) + residuals * C + 2 * C;
    if (training) half += 2 * C + NH * HD + (NH + NKV) * HD + QKV + 3 * F;
    half += quantized_input_width(m);
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
    a.quantized = quantized_input_width(m) ? take(quantized_input_width(m)) : nullptr;
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
    Buffer<floatX> k[2], v[2];                // [L, rows, NKV*HD]; or, with a quantizer,
    Buffer<uint32_t> k_codes[2], v_codes[2];  // [L, rows, kv_row_words] (kernels/kv_quant.cuh)
    int64_t rows[2] = {0, 0};
    int64_t width = 0;  // NKV*HD
};

// bits 0 without a quantizer
inline KvQuant model_kv_quant(const Model& m) {
    KvQuant q;
    q.spec = m.kv_cache.spec, q.NKV = m.NKV(), q.HD = m.HD();
    q.group = m.kv_cache.scope == QuantScope::group ? m.kv_cache.group : q.HD;
    q.bits = m.kv_cache.on() ? kv_stored_bits(q.spec) : 0;
    return q;
}

// fails if keys and values of the model cannot be quantized so
inline void check_kv_cache(const ModelConfig& c, const Quantizer& q, bool k_pre_bias) {
    if (k_pre_bias && !q.on())
        fail_usage("--k_pre_bias true: there is no quantizer of keys; give --kv_cache too (such as int4:token:asym)");
    if (k_pre_bias && (!c.qkv_bias || c.qk_norm))
        fail_usage("--k_pre_bias true: this model's keys have no bias (Qwen2's have); leave it out");
    if (!q.on()) return;
    std::string text = quantizer_text(q, "token");
    auto refuse = [&](const std::string& why) { fail_usage("--kv_cache %s: %s", text.c_str(), why.c_str()); };
    if (q.scope == QuantScope::tensor || !quant_traits(q.spec).kv_cache)
        refuse(
            "a token that is added would change the scale of the others; choose int8:token:asym, int4:token:asym, "
            "fp8e4m3:token, nf4 or mxfp4");
    if (q.double_quant) refuse("scales of single tokens are not quantized again; leave :dq out");
    if (q.spec.rule == ScaleRule::mse) refuse("no search for a scale at every token; choose amax, amax7 or signedmax");
    int group = q.scope == QuantScope::group ? q.group : c.head_dim, bits = kv_stored_bits(q.spec);
    if (c.head_dim % group)
        refuse(format("groups of %d do not divide heads of %d; choose a divisor", group, c.head_dim));
    if (group * bits % 8)
        refuse(format("%d codes of %d bits do not fill whole bytes; choose another group", group, bits));
}

// Keys and values get their quantizer; before trainers and caches are made
inline void model_quantize_kv(Model& m, const Quantizer& q, bool k_pre_bias) {
    check_kv_cache(m.config, q, k_pre_bias);
    if (k_pre_bias && m.rotate_qk.on())
        fail_usage("--k_pre_bias true: the keys of this model are rotated after RoPE; leave it out");
    m.kv_cache = q;
    m.k_pre_bias = k_pre_bias;
    if (k_pre_bias) m.bias_without_k.allocate(m.QKV(), "a bias", "", m.dev);
}

inline void kv_cache_allocate(KVCache& c, const Model& m, int place, int64_t rows, const char* what, const char* hint) {
    KvQuant q = model_kv_quant(m);
    c.width = (int64_t)m.NKV() * m.HD();
    c.rows[place] = rows;
    for (int values : {0, 1}) {
        if (q.bits) (values ? c.v_codes : c.k_codes)[place].allocate(m.L() * rows * kv_row_words(q), what, hint, m.dev);
        else (values ? c.v : c.k)[place].allocate(m.L() * rows * c.width, what, hint, m.dev);
    }
}

// y.att from y.qk and the values in y.qkv: keys and values into the cache, and attention
inline void attention_kv(Model& m, LayerActivations& y, int l, const BatchView& b, KVCache* cache) {
    const int64_t T = b.T;
    const int NH = m.NH(), NKV = m.NKV(), HD = m.HD(), QKV = m.QKV(), QK = (NH + NKV) * HD;
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
}

// y.att from y.qkv: keys and values to their codes and back, into the cache, and attention. Queries are finished; keys
// too, unless their bias is still to come.
inline void attention_quantized_kv(Model& m, LayerActivations& y, int l, const BatchView& b, KVCache* cache) {
    const KvQuant q = model_kv_quant(m);
    const int64_t T = b.T, k_at = (int64_t)m.NH() * m.HD(), v_at = k_at + (int64_t)m.NKV() * m.HD(), QK = v_at;
    KeyRotation rotation;
    if (m.k_pre_bias)
        rotation = {m.w.layers[l].qkv_bias + k_at, m.dev.cuda ? m.rope.device_cos.data : m.rope.cos.data(),
                    m.dev.cuda ? m.rope.device_sin.data : m.rope.sin.data()};
    KeyValueCodes place[2];
    uint32_t *k_cache[2] = {nullptr, nullptr}, *v_cache[2] = {nullptr, nullptr};
    for (int i = 0; cache && i < 2; i++) {
        int64_t base = l * cache->rows[i] * kv_row_words(q);
        k_cache[i] = cache->k_codes[i].data + base, v_cache[i] = cache->v_codes[i].data + base;
        place[i] = {k_cache[i], v_cache[i], q, rotation};
    }
    const CacheRow* writes = cache ? b.writes : nullptr;
    floatX *k = y.qk + k_at, *v = y.qkv + v_at;
    if (m.k_pre_bias) {
        kv_quantize(q, k, QK, y.qkv + k_at, m.QKV(), rotation.bias, k_cache, writes, T, m.dev);
        rope_forward(k, QK, k, QK, b.positions, m.rope, T, m.NKV(), m.dev);
    } else {
        kv_quantize(q, k, QK, k, QK, nullptr, k_cache, writes, T, m.dev);
    }
    kv_quantize(q, v, m.QKV(), v, m.QKV(), nullptr, v_cache, writes, T, m.dev);
    if (b.sequences)
        attention_forward(y.att, y.lse, y.qk, QK, {k, v, QK, m.QKV()}, b.ranges, b.starts, b.sequences, b.longest, T,
                          m.NH(), m.NKV(), m.HD(), m.dev);
    else attention_decode_codes(y.att, y.lse, y.qk, QK, place[0], place[1], b.ranges, b.most_keys, T, m.NH(), m.dev);
}

// attention of layer l, from a.layers[l].ln1 to .att
inline void layer_attention_forward(Model& m, Activations& a, int l, const BatchView& b, KVCache* cache) {
    int64_t T = b.T;
    int NH = m.NH(), NKV = m.NKV(), HD = m.HD(), QKV = m.QKV(), QK = (NH + NKV) * HD;
    const LayerWeights<floatX>& w = m.w.layers[l];
    LayerActivations& y = a.layers[l];
    float eps = m.config.rms_norm_eps;

    if (m.k_pre_bias) {
        copy_on_device(m.bias_without_k.data, w.qkv_bias, QKV * sizeof(floatX), m.dev);
        set_zero(m.bias_without_k.data + NH * HD, NKV * HD * sizeof(floatX), m.dev);
    }
    projection_forward(m, y.qkv, y.ln1, a.quantized, l, Projection::qkv, T);
    if (m.config.qk_norm) {
        rmsnorm_heads_forward(y.qk, y.q_rstd, y.qkv, w.q_norm, T, NH, HD, QK, QKV, eps, m.dev);
        rmsnorm_heads_forward(y.qk + NH * HD, y.k_rstd, y.qkv + NH * HD, w.k_norm, T, NKV, HD, QK, QKV, eps, m.dev);
        rope_forward(y.qk, QK, y.qk, QK, b.positions, m.rope, T, NH + NKV, m.dev);
    } else {
        rope_forward(y.qk, QK, y.qkv, QKV, b.positions, m.rope, T, m.k_pre_bias ? NH : NH + NKV, m.dev);
    }
    if (m.rotate_qk.on()) hadamard_forward(y.qk, QK, m.rotate_qk, T, QK / m.rotate_qk.N(), m.dev);
    if (m.kv_cache.on()) attention_quantized_kv(m, y, l, b, cache);
    else attention_kv(m, y, l, b, cache);
}

// MLP of layer l before its last product, from a.layers[l].ln2 to .act
inline void layer_mlp_forward(Model& m, Activations& a, int l, int64_t T) {
    LayerActivations& y = a.layers[l];
    projection_forward(m, y.gate_up, y.ln2, a.quantized, l, Projection::gate_up, T);
    swiglu_forward(y.act, y.gate_up, T, m.F(), m.dev);
    if (m.rotate_down.on()) hadamard_forward(y.act, m.F(), m.rotate_down, T, m.F() / m.rotate_down.N(), m.dev);
}

// layer l, from a.layers[l].ln1 to .mid and a.branch, which are to be added; residual_in is the layer's input
inline void layer_forward(Model& m, Activations& a, int l, const floatX* residual_in, const BatchView& b,
                          KVCache* cache) {
    LayerActivations& y = a.layers[l];
    layer_attention_forward(m, a, l, b, cache);
    projection_forward(m, a.branch, y.att, a.quantized, l, Projection::o, b.T);
    fused_residual_rmsnorm_forward(y.mid, y.ln2, y.ln2_rstd, residual_in, a.branch, m.w.layers[l].ln2, b.T, m.C(),
                                   m.config.rms_norm_eps, m.dev);
    layer_mlp_forward(m, a, l, b.T);
    projection_forward(m, a.branch, y.act, a.quantized, l, Projection::down, b.T);
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
        projection_backward(m, g, a.dact, a.dresidual, y.act, a.quantized, l, Projection::down, T);
        if (m.rotate_down.on()) hadamard_backward(a.dact, F, m.rotate_down, T, F / m.rotate_down.N(), m.dev);
        swiglu_backward(a.dgate_up, a.dact, y.gate_up, T, F, m.dev);
        projection_backward(m, g, a.dnorm, a.dgate_up, y.ln2, a.quantized, l, Projection::gate_up, T);
        rmsnorm_backward(a.dresidual, d.ln2, a.dnorm, y.mid, w.ln2, y.ln2_rstd, T, C, true, m.dev);
        // attention
        projection_backward(m, g, a.datt, a.dresidual, y.att, a.quantized, l, Projection::o, T);
        floatX* dqk = m.config.qk_norm ? a.dqk : a.dqkv;
        int64_t stride = m.config.qk_norm ? QK : QKV;
        attention_backward(dqk, stride, dqk + NH * HD, stride, a.dqkv + QK, QKV, a.datt, y.att, y.lse, y.qk, QK,
                           {y.qk + NH * HD, y.qkv + QK, QK, QKV}, b.starts, b.sequences, b.longest, T, NH, NKV, HD,
                           m.dev);
        if (m.rotate_qk.on()) hadamard_backward(dqk, stride, m.rotate_qk, T, QK / m.rotate_qk.N(), m.dev);
        rope_backward(dqk, stride, b.positions, m.rope, T, NH + NKV, m.dev);
        if (m.config.qk_norm) {
            rmsnorm_heads_backward(a.dqkv, d.q_norm, a.dqk, y.qkv, w.q_norm, y.q_rstd, T, NH, HD, QKV, QK, QKV, false,
                                   m.dev);
            rmsnorm_heads_backward(a.dqkv + NH * HD, d.k_norm, a.dqk + NH * HD, y.qkv + NH * HD, w.k_norm, y.k_rstd, T,
                                   NKV, HD, QKV, QK, QKV, false, m.dev);
        }
        projection_backward(m, g, a.dnorm, a.dqkv, y.ln1, a.quantized, l, Projection::qkv, T);
        rmsnorm_backward(a.dresidual, d.ln1, a.dnorm, a.residual[l], w.ln1, y.ln1_rstd, T, C, true, m.dev);
    }
    if (g.embed) embedding_backward(g.embed, a.dresidual, b.tokens, T, C, m.dev);
}
