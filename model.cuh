// A Qwen-style transformer: forward, backward, and the same forward over a KV cache. Its parts: model/.
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
// of model/parameters.cuh.
#pragma once
#include <vector>
#include "kernels/embedding.cuh"
#include "kernels/lm_head.cuh"
#include "kernels/rmsnorm.cuh"
#include "kernels/rows.cuh"
#include "kernels/swiglu.cuh"
#include "model/basis.cuh"
#include "model/kv_cache.cuh"
#include "model/loading.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// forward

// weights [C] of the norm before a layer's attention (0) or before its MLP (1)
inline const floatX* layer_norm_weight(const Model& m, const Pass& pass, int l, int which) {
    if (pass.norms) return pass.norms + (size_t)(2 * l + which) * (size_t)m.C();
    return which ? m.layers[l].ln2.work : m.layers[l].ln1.work;
}

// attention of layer l, from a.layers[l].ln1 to .att; what o multiplies, and ln1 what q,k,v did: transformed
inline void layer_attention_forward(Model& m, Activations& a, int l, const BatchView& b, const Pass& pass,
                                    KVCache* cache) {
    int64_t T = b.T;
    int NH = m.NH(), NKV = m.NKV(), HD = m.HD(), QKV = m.QKV(), QK = (NH + NKV) * HD;
    const Layer& w = m.layers[l];
    LayerActivations& y = a.layers[l];
    float eps = m.config.rms_norm_eps;

    const bool pre_bias = m.k_pre_bias && w.kv.on() && pass.kv;
    if (pre_bias) {
        copy_on_device(m.bias_without_k.data, w.qkv.bias.work, QKV * sizeof(floatX), m.dev);
        set_zero(m.bias_without_k.data + NH * HD, NKV * HD * sizeof(floatX), m.dev);
    }
    linear_transform(w.qkv, y.ln1, T, m.dev);
    linear_forward(w.qkv, y.qkv, y.ln1, pre_bias ? m.bias_without_k.data : w.qkv.bias.work, a.quantized, T, pass,
                   m.dev);
    if (m.config.qk_norm) {
        rmsnorm_heads_forward({y.qk, QK}, y.q_rstd, {y.qkv, QKV}, w.q_norm.work, {T, HD, NH}, eps, m.dev);
        rmsnorm_heads_forward({y.qk + NH * HD, QK}, y.k_rstd, {y.qkv + NH * HD, QKV}, w.k_norm.work, {T, HD, NKV}, eps,
                              m.dev);
        rope_forward({y.qk, QK}, {y.qk, QK}, b.positions, m.rope, T, NH + NKV, m.dev);
    } else {
        rope_forward({y.qk, QK}, {y.qkv, QKV}, b.positions, m.rope, T, pre_bias ? NH : NH + NKV, m.dev);
    }
    if (m.rotate_qk.on()) hadamard_forward(y.qk, QK, m.rotate_qk, T, QK / m.rotate_qk.N(), m.dev);
    if (w.kv.on() && pass.kv) attention_quantized_kv(m, y, l, b, cache);
    else attention_kv(m, y, l, b, cache);
    linear_transform(w.o, y.att, T, m.dev);
}

// MLP of layer l before its last product, from a.layers[l].ln2 to .act
inline void layer_mlp_forward(Model& m, Activations& a, int l, int64_t T, const Pass& pass) {
    LayerActivations& y = a.layers[l];
    const Layer& w = m.layers[l];
    linear_transform(w.gate_up, y.ln2, T, m.dev);
    linear_forward(w.gate_up, y.gate_up, y.ln2, nullptr, a.quantized, T, pass, m.dev);
    swiglu_forward(y.act, y.gate_up, T, m.F(), m.dev);
    linear_transform(w.down, y.act, T, m.dev);
}

// Layer l, from a.layers[l].ln1 to .mid and a.branch, which are to be added; residual_in [T,C] is the layer's input.
// Can be called alone, after rmsnorm_forward of residual_in.
inline void layer_forward(Model& m, Activations& a, int l, const floatX* residual_in, const BatchView& b,
                          const Pass& pass, KVCache* cache) {
    LayerActivations& y = a.layers[l];
    const Layer& w = m.layers[l];
    layer_attention_forward(m, a, l, b, pass, cache);
    linear_forward(w.o, a.branch, y.att, nullptr, a.quantized, b.T, pass, m.dev);
    fused_residual_rmsnorm_forward(y.mid, y.ln2, y.ln2_rstd, residual_in, a.branch, layer_norm_weight(m, pass, l, 1),
                                   {b.T, m.C()}, m.config.rms_norm_eps, m.dev);
    layer_mlp_forward(m, a, l, b.T, pass);
    linear_forward(w.down, a.branch, y.act, nullptr, a.quantized, b.T, pass, m.dev);
}

// b.tokens -> a.hidden [T,C]. Nothing here depends on the contents of the batch but its sizes, so that a decode step
// can be captured once and replayed (rollout.cuh); positions must be in the rope table already.
inline void model_forward_view(Model& m, Activations& a, const BatchView& b, const Pass& pass, KVCache* cache) {
    NVTX_RANGE("forward");
    int64_t T = b.T;
    int C = m.C(), L = m.L();
    float eps = m.config.rms_norm_eps;
    embedding_forward(a.residual[0], b.tokens, m.embed.work, T, C, m.dev);
    rmsnorm_forward(a.layers[0].ln1, a.layers[0].ln1_rstd, a.residual[0], layer_norm_weight(m, pass, 0, 0), {T, C}, eps,
                    m.dev);
    for (int l = 0; l < L; l++) {
        layer_forward(m, a, l, a.residual[l], b, pass, cache);
        // the residual addition and the next norm in one pass
        bool last_layer = l + 1 == L;
        floatX* out = last_layer ? a.hidden : a.layers[l + 1].ln1;
        float* rstd = last_layer ? a.hidden_rstd : a.layers[l + 1].ln1_rstd;
        const floatX* weight = last_layer ? m.norm.work : layer_norm_weight(m, pass, l + 1, 0);
        fused_residual_rmsnorm_forward(a.residual[l + 1], out, rstd, a.layers[l].mid, a.branch, weight, {T, C}, eps,
                                       m.dev);
    }
}

// fails unless the working weights are those that the pass means
inline void check_pass(const Model& m, const Pass& pass) {
    if (pass.quantized != m.work_quantized && (m.weight_rules.on() || m.activation_rules.on()))
        fail("a forward in %s with working weights in %s: model_refresh comes first",
             pass.quantized ? "quantized numbers" : "full precision",
             m.work_quantized ? "quantized numbers" : "full precision");
}

// tokens -> a.hidden [T,C]; b stays alive until the backward
inline void model_forward(Model& m, Activations& a, const Batch& b, const Pass& pass = Pass(),
                          KVCache* cache = nullptr) {
    check_pass(m, pass);
    int last = 0;
    for (int p : b.positions) last = p > last ? p : last;
    rope_extend(m.rope, last + 1, m.dev);
    a.view = batch_view(a.batch, b, m.dev);
    a.pass = pass;
    model_forward_view(m, a, a.view, pass, cache);
}

// ---------------------------------------------------------------------------------------------------------------------
// backward

// Layer l: a.dresidual [T,C], the gradient of its output, becomes that of its input; gradients of its parameters accumulate
// in their views. For the batch and pass of the last forward; can be called alone, after layer_forward.
inline void layer_backward(Model& m, Activations& a, int l) {
    const BatchView& b = a.view;
    int64_t T = b.T;
    int C = m.C(), F = m.F(), NH = m.NH(), NKV = m.NKV(), HD = m.HD(), QKV = m.QKV(), QK = (NH + NKV) * HD;
    Layer& w = m.layers[l];
    LayerActivations& y = a.layers[l];
    // MLP
    linear_backward(w.down, a.dact, a.dresidual, y.act, a.quantized, T, a.pass, m.dev);
    linear_transform_backward(w.down, a.dact, y.act, T, m.dev);
    swiglu_backward(a.dgate_up, a.dact, y.gate_up, T, F, m.dev);
    linear_backward(w.gate_up, a.dnorm, a.dgate_up, y.ln2, a.quantized, T, a.pass, m.dev);
    linear_transform_backward(w.gate_up, a.dnorm, y.ln2, T, m.dev);
    rmsnorm_backward(a.dresidual, w.ln2.grad, a.dnorm, y.mid, w.ln2.work, y.ln2_rstd, {T, C}, true, m.dev);
    // attention
    linear_backward(w.o, a.datt, a.dresidual, y.att, a.quantized, T, a.pass, m.dev);
    linear_transform_backward(w.o, a.datt, y.att, T, m.dev);
    linear_restore(w.o, y.att, T, m.dev);  // attention's backward wants its output as it was
    floatX* dqk = m.config.qk_norm ? a.dqk : a.dqkv;
    int64_t stride = m.config.qk_norm ? QK : QKV;
    attention_backward({{dqk, stride}, {dqk + NH * HD, stride}, {a.dqkv + QK, QKV}}, a.datt, y.att, y.lse, {y.qk, QK},
                       {y.qk + NH * HD, y.qkv + QK, QK, QKV}, packed_sequences(b), {T, NH, NKV, HD}, m.dev);
    if (m.rotate_qk.on()) hadamard_backward(dqk, stride, m.rotate_qk, T, QK / m.rotate_qk.N(), m.dev);
    rope_backward({dqk, stride}, b.positions, m.rope, T, NH + NKV, m.dev);
    if (m.config.qk_norm) {
        rmsnorm_heads_backward({a.dqkv, QKV}, w.q_norm.grad, {a.dqk, QK}, {y.qkv, QKV}, w.q_norm.work, y.q_rstd,
                               {T, HD, NH}, false, m.dev);
        rmsnorm_heads_backward({a.dqkv + NH * HD, QKV}, w.k_norm.grad, {a.dqk + NH * HD, QK}, {y.qkv + NH * HD, QKV},
                               w.k_norm.work, y.k_rstd, {T, HD, NKV}, false, m.dev);
    }
    linear_backward(w.qkv, a.dnorm, a.dqkv, y.ln1, a.quantized, T, a.pass, m.dev);
    linear_transform_backward(w.qkv, a.dnorm, y.ln1, T, m.dev);
    rmsnorm_backward(a.dresidual, w.ln1.grad, a.dnorm, a.residual[l], w.ln1.work, y.ln1_rstd, {T, C}, true, m.dev);
}

// Gradients of every parameter from a.dnorm = dL/dhidden [T,C], for the batch and pass of the last forward; they
// accumulate in the views that model_bind_gradients gave
inline void model_backward(Model& m, Activations& a) {
    NVTX_RANGE("backward");
    const BatchView& b = a.view;
    const int C = m.C(), L = m.L();
    rmsnorm_backward(a.dresidual, m.norm.grad, a.dnorm, a.residual[L], m.norm.work, a.hidden_rstd, {b.T, C}, false,
                     m.dev);
    for (int l = L - 1; l >= 0; l--) {
        if (a.mode == ActivationMode::recompute) {
            LayerActivations& y = a.layers[l];
            rmsnorm_forward(y.ln1, y.ln1_rstd, a.residual[l], m.layers[l].ln1.work, {b.T, C}, m.config.rms_norm_eps,
                            m.dev);
            layer_forward(m, a, l, a.residual[l], b, a.pass, nullptr);
        }
        layer_backward(m, a, l);
    }
    if (m.embed.grad) embedding_backward(m.embed.grad, a.dresidual, b.tokens, b.T, C, m.dev);
}
