// Rotations of the hidden spaces: QuaRot (Ashkboos et al. 2024, arXiv 2404.00456) and SpinQuant (Liu et al. 2024, arXiv
// 2405.16406) with random Hadamard matrices. Outliers of single channels spread over all of them, which then are
// quantized with smaller steps; the full-precision function stays, since R^T R = 1.
//
//   h' = R h,  R = H D,  D random signs, H Hadamard (kernels/hadamard.cuh)
//   W that reads h    W' = W R^T: each row becomes R row
//   W that writes h   W' = R W: each column becomes R column
//
//   R1  hidden state    read by q,k,v,gate,up and the head, written by embedding, o and down. RMSNorm commutes with R
//                       only if its weights are 1: they are folded into the columns of what reads it first
//   R2  values          a rotation for each kv head, written by v (with its bias), read by o in the blocks of every
//                       query head of that kv head
//   R3  q and k         online after RoPE, which does not commute with a rotation; for a quantized KV cache
//   R4  input of down   online after SwiGLU, down' = down H^T
// R1 and R2 leave an ordinary model. R3 and R4 (H without signs) are part of the forward and backward of model.cuh, and
// their orders are written to config.json; no other program knows them, so a model for others takes R1 and R2 alone.
//
// The trap: a tied head cannot stay so. The embedding becomes R e, the head R (g * e) with the last norm's weights g.
// All sums are in double, and every weight is rounded to fp32 once for each side that is rotated.
#pragma once
#include <sys/mman.h>
#include <cstring>
#include <functional>
#include <string>
#include <vector>
#include "../model.cuh"

struct RotationConfig {
    uint64_t seed = 0;
    bool hidden = true, values = true;            // R1, R2
    bool online_qk = false, online_down = false;  // R3, R4
};

// H D on the segments of a vector of n
struct Rotation {
    Hadamard h;
    int64_t n = 0;
    std::vector<double> sign;  // [n]
};

// which: 0 the hidden state, then one for each kv head of each layer
inline Rotation rotation_random(int64_t n, uint64_t seed, uint32_t which) {
    Rotation r;
    r.h = hadamard_for(n);
    r.n = n;
    for (int64_t i = 0; i < n; i++)
        r.sign.push_back(rng_bits(seed, RNG_ROTATION, which, (uint32_t)i, 0).x[0] >> 31 ? -1.0 : 1.0);
    return r;
}

// x = R x; x, buffer: [n]
inline void rotate(const Rotation& r, double* x, double* buffer) {
    for (int64_t i = 0; i < r.n; i++) x[i] *= r.sign[i];
    for (int64_t i = 0; i < r.n; i += r.h.N()) hadamard_double(x + i, buffer, r.h, false);
}

// W = W diag(gain) R^T, for what reads the rotated space. w: rows of r.n, `stride` apart; gain: [r.n] or null
inline void rotate_inputs(float* w, int64_t rows, int64_t stride, const float* gain, const Rotation& r) {
#pragma omp parallel
    {
        std::vector<double> x(2 * r.n);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; i++) {
            float* row = w + i * stride;
            for (int64_t j = 0; j < r.n; j++) x[j] = gain ? (double)row[j] * gain[j] : (double)row[j];
            rotate(r, x.data(), x.data() + r.n);
            for (int64_t j = 0; j < r.n; j++) row[j] = (float)x[j];
        }
    }
}

// W = R W, for what writes the rotated space. w: [r.n, cols]
inline void rotate_outputs(float* w, int64_t cols, const Rotation& r) {
    constexpr int64_t W = 16;  // columns at a time: a cache line
#pragma omp parallel
    {
        std::vector<double> x((W + 1) * r.n);
#pragma omp for schedule(static)
        for (int64_t c0 = 0; c0 < cols; c0 += W) {
            int64_t n = cols - c0 < W ? cols - c0 : W;
            for (int64_t i = 0; i < r.n; i++)
                for (int64_t c = 0; c < n; c++) x[c * r.n + i] = w[i * cols + c0 + c];
            for (int64_t c = 0; c < n; c++) rotate(r, x.data() + c * r.n, x.data() + W * r.n);
            for (int64_t i = 0; i < r.n; i++)
                for (int64_t c = 0; c < n; c++) w[i * cols + c0 + c] = (float)x[c * r.n + i];
        }
    }
}

// A tied head becomes a tensor of its own, behind the others, whose places stay. Never two copies of the weights: the
// old pages go back to the operating system as they are copied.
inline void model_untie(Model& m) {
    if (!m.config.tie_word_embeddings) return;
    if (m.dev.cuda) fail("rotation: the head is tied; untie its configuration before the weights go to the device");
    size_t before = m.num_params;
    m.config.tie_word_embeddings = false;
    m.tensors = model_tensors(m.config, &m.num_params);
    Buffer<float> old;
    old.swap(m.master);
    m.master.allocate(m.num_params, "fp32 master weights");
    const size_t piece = (size_t)16 << 20;
    for (size_t at = 0; at < before; at += piece) {
        size_t bytes = (before - at < piece ? before - at : piece) * sizeof(float);
        memcpy(m.master.data + at, old.data + at, bytes);
        madvise(old.data + at, bytes, MADV_DONTNEED);  // refused where that is not a whole page: then it waits
    }
    m.work.allocate(m.num_params, "working weights");
    model_structure(m);
    model_online_rotations(m);
    model_bind_masters(m, m.master.data);
    model_bind_work(m, m.work.data);
    memcpy(m.head.master, m.embed.master, (size_t)m.V() * m.C() * sizeof(float));
}

// w: all masters of m, on the host
inline void rotate_masters(const Model& m, const HostMasters& w, const RotationConfig& config) {
    int64_t C = m.C(), F = m.F(), HD = m.HD(), NH = m.NH(), NKV = m.NKV(), V = m.V();
    if (config.hidden) {
        Rotation r = rotation_random(C, config.seed, 0);
        auto fold = [&](float* norm) {
            for (int64_t j = 0; j < C; j++) norm[j] = 1.0f;
        };
        rotate_inputs(w.embed, V, C, nullptr, r);  // a row of it is a hidden state
        for (const LayerMasters& l : w.layers) {
            rotate_inputs(l.weight[(int)Product::qkv], m.QKV(), C, l.ln1, r);
            rotate_inputs(l.weight[(int)Product::gate_up], 2 * F, C, l.ln2, r);
            rotate_outputs(l.weight[(int)Product::o], NH * HD, r);
            rotate_outputs(l.weight[(int)Product::down], F, r);
            fold(l.ln1), fold(l.ln2);
        }
        rotate_inputs(w.head, V, C, w.norm, r);
        fold(w.norm);
    }
    for (size_t i = 0; i < w.layers.size() && config.values; i++) {
        const LayerMasters& l = w.layers[i];
        for (int64_t kv = 0; kv < NKV; kv++) {
            Rotation r = rotation_random(HD, config.seed, (uint32_t)(1 + i * NKV + kv));
            int64_t row = (NH + NKV + kv) * HD;
            rotate_outputs(l.weight[(int)Product::qkv] + row * C, C, r);
            if (l.qkv_bias) rotate_outputs(l.qkv_bias + row, 1, r);
            for (int64_t h = kv * (NH / NKV); h < (kv + 1) * (NH / NKV); h++)
                rotate_inputs(l.weight[(int)Product::o] + h * HD, C, NH * HD, nullptr, r);
        }
    }
    if (config.online_down) {
        Rotation r;
        r.h = hadamard_for(F);
        r.n = F;
        r.sign.assign(F, 1.0);
        for (const LayerMasters& l : w.layers) rotate_inputs(l.weight[(int)Product::down], C, F, nullptr, r);
    }
}

// Rotates the master weights of a model, on the host; model_refresh makes the working ones. Before anything measures
// them and, if R1 has to untie the head, before anything that holds views of the parameters.
inline void rotation_apply(Model& m, const RotationConfig& config) {
    const std::vector<LinearPart*> quantized = quantized_parts(m);
    for (const LinearPart* t : quantized)
        if (t->measured) fail("rotation: %s has been quantized already", t->name.c_str());
    if (config.hidden && m.config.tie_word_embeddings && !quantized.empty())
        fail("rotation: the head is tied and the model's arrays are in use; untie its configuration first");
    if (m.rotate_qk.on() || is_transformed(m.layers[0].down)) fail("rotation: the model is rotated already");
    if (config.hidden) model_untie(m);
    std::vector<float> copy;
    host_masters(m, -1, copy, [&](const HostMasters& w) { rotate_masters(m, w, config); });
    if (config.online_qk) m.config.rotate_qk = (int)hadamard_for(m.HD()).N();
    if (config.online_down) m.config.rotate_down = (int)hadamard_for(m.F()).N();
    model_online_rotations(m);
}

typedef std::function<void(Model&)> ModelTransform;

inline ModelTransform rotation_transform(const RotationConfig& c) {
    return [c](Model& m) { rotation_apply(m, c); };
}
