// Activations of a forward, kept for its backward as far as there is one.
#pragma once
#include <utility>
#include "batch.cuh"
#include "parameters.cuh"

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
    BatchView view;                 // the batch of the last forward,
    Pass pass;                      // and what it did
    std::vector<floatX*> residual;  // [L+1] of [T,C]: input of each layer, and the output of the last
    std::vector<LayerActivations> layers;
    floatX* branch;      // [T,C] what a block adds to the residual
    floatX* quantized;   // [T, widest product's input] the fake-quantized input of a product; null without a quantizer
    floatX* hidden;      // [T,C] after the last norm
    float* hidden_rstd;  // [T]
    // gradients of activations, one layer's worth (training only)
    floatX *dresidual, *dnorm, *datt, *dqk, *dqkv, *dgate_up, *dact;
};

inline int64_t quantized_input_width(const Model& m) {
    return m.activation_rules.on() ? std::max({m.C(), m.F(), m.NH() * m.HD()}) : 0;
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

// what, hint: the line of the memory plan, if it is to have one of its own
inline void activations_allocate(Activations& a, const Model& m, int64_t T, ActivationMode mode,
                                 const char* what = nullptr, const char* hint = nullptr) {
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
    if (!what) what = training ? "activations and their gradients" : "activations of generation";
    if (!hint) hint = training ? "lower --micro_batch_tokens or use --gradient_checkpointing" : "lower --rollout_batch";
    a.half.allocate(half * T, what, hint, m.dev);
    a.full.allocate(full * T, "activation statistics", hint, m.dev);
    batch_memory_allocate(a.batch, T, m.dev);
    when_allocated(m.dev, [&a, &m] { activations_views(a, m); });
}
