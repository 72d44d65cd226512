// Low-rank adapters over a frozen base: LoRA (Hu et al. 2021, arXiv 2106.09685), QLoRA (Dettmers et al. 2023, arXiv
// 2305.14314, the base quantized) and L4Q (Jeon et al. 2024, arXiv 2402.04902, the adapter inside the quantizer).
//
//   y = x Wq^T + s (x A^T) B^T                      A [r,C] Kaiming-uniform, B [OC,r] zero, s = alpha / r (rsLoRA:
//                                                   alpha / sqrt(r)); Wq is never touched, nothing is merged
//   dB = dY^T (s x A^T);  dh = s dY B;  dA = dh^T x;  dx = dY Wq + dh A
//   L4Q   Wq = Q(W0 + s B A);  dA = s B^T M(dWq), dB = s M(dWq) A^T, M: zero where the quantizer clips; y = x Wq^T
// A joined product (q, k, v; gate, up) has one A matrix of all its parts' rows, so that x is read once, and a B for
// each part, which is added into that part's columns of the output.
//
// Arithmetic: h = floatX(s x A^T) and the product h B^T are those of matmul_nt, whose bits do not depend on the batch,
// and y = floatX(y + h B^T). Sampler and trainer therefore compute the same bits with an adapter as without one.
// Dropout (on x, one mask for the parts of a joined product, in training alone) makes them differ, as it is meant to.
//
// Memory of an adapter of n parameters: 4n master, 2n working (bf16), 4n gradients, 8n moments; the scratch below.
// Loops run over LORA_ROWS rows at a time, so scratch does not grow with the batch.
#pragma once
#include <cmath>
#include <string>
#include <vector>
#include "../kernels/convert.cuh"
#include "../kernels/lora.cuh"
#include "../kernels/matmul.cuh"
#include "../runtime/buffer.h"

static constexpr int64_t LORA_ROWS = 1024;

struct LoraConfig {
    int r = 0;  // 0: no adapter
    double alpha = 32.0, dropout = 0.0;
    bool rslora = false;
    bool inside_quantizer = false;  // L4Q
    std::string target = "all";     // or a list of q,k,v,o,gate,up,down
    bool on() const { return r > 0; }
};

// The adapter of one weight
struct LoraTensor {
    std::string name;                      // the weight's: model.layers.0.self_attn.q_proj.weight
    int part = 0;                          // the weight, among the parts of its linear
    int64_t row0 = 0, rows = 0, cols = 0;  // its rows there
    size_t a = 0, b = 0;                   // offsets of A [r,cols] and B [rows,r]
};

// The adapters of one linear: neighbours among the tensors. number: of the linear in the model, a key of its dropout
struct LoraSpan {
    int first = 0, count = 0;
    uint32_t number = 0;
};

struct Lora {
    LoraConfig config;
    float scale = 0.0f;
    uint64_t seed = 0;
    std::vector<LoraTensor> tensors;
    size_t num_params = 0;
    Buffer<float> master;    // [num_params]
    Buffer<floatX> work;     // [num_params]
    float* grads = nullptr;  // [num_params], the trainer's
    // scratch
    Buffer<float> sums, delta;  // [LORA_ROWS, parts r]; [LORA_ROWS, widest]
    Buffer<floatX> h, dh;       // [LORA_ROWS, parts r]
    Buffer<floatX> dropped;     // [LORA_ROWS, widest input], with dropout
    // L4Q's scratch, of the largest tensor
    Buffer<float> combined, dweight;
    Buffer<floatX> dweight_work, scaled_b;
    bool on() const { return config.on(); }
    bool inside() const { return config.on() && config.inside_quantizer; }
};

// A linear that an adapter is to be put on, with the weights of it that get one: name, row0, rows and cols. Receives
// their span.
struct LoraPlace {
    LoraSpan* span;
    std::vector<LoraTensor> tensors;
};

inline void lora_allocate(Lora& l, const LoraConfig& config, const std::vector<LoraPlace>& places, uint64_t seed,
                          bool training, Device dev) {
    const int64_t r = config.r;
    l.config = config;
    l.seed = seed;
    l.scale = (float)(config.rslora ? config.alpha / std::sqrt((double)r) : config.alpha / (double)r);
    l.tensors.clear();
    size_t end = 0;
    int64_t parts = 0, widest_in = 0, widest_out = 0, largest = 0;
    for (const LoraPlace& place : places) {
        place.span->first = (int)l.tensors.size(), place.span->count = (int)place.tensors.size();
        parts = std::max(parts, (int64_t)place.tensors.size());
        size_t a = end = (end + 31) / 32 * 32;
        for (const LoraTensor& t : place.tensors) end += (size_t)(r * t.cols);
        for (LoraTensor t : place.tensors) {
            end = (end + 31) / 32 * 32;
            t.a = a, t.b = end;
            a += (size_t)(r * t.cols);
            end += (size_t)(t.rows * r);
            l.tensors.push_back(t);
            widest_in = std::max(widest_in, t.cols), widest_out = std::max(widest_out, t.rows);
            largest = std::max(largest, t.rows * t.cols);
        }
    }
    l.num_params = (end + 31) / 32 * 32;
    l.master.allocate(l.num_params, "adapters, fp32", "lower --lora_r", dev);
    l.work.allocate(l.num_params, "adapters", "lower --lora_r", dev);
    const char* what = "scratch of adapters";
    if (config.inside_quantizer) {
        l.combined.allocate(largest, what, "", dev);
        l.scaled_b.allocate(widest_out * r, what, "", dev);
        if (!training) return;
        l.dweight.allocate(largest, what, "", dev);
        l.dweight_work.allocate(largest, what, "", dev);
        l.delta.allocate(widest_out * r, what, "", dev);
        return;
    }
    l.sums.allocate(LORA_ROWS * parts * r, what, "", dev);
    l.h.allocate(LORA_ROWS * parts * r, what, "", dev);
    l.delta.allocate(LORA_ROWS * std::max(widest_out, config.dropout > 0.0 ? widest_in : 0), what, "", dev);
    if (training) l.dh.allocate(LORA_ROWS * parts * r, what, "", dev);
    if (training && config.dropout > 0.0) l.dropped.allocate(LORA_ROWS * widest_in, what, "", dev);
}

// A uniform in [-1/sqrt(C), 1/sqrt(C)], which is what PEFT's kaiming_uniform_(a = sqrt(5)) comes to; B zero
inline void lora_init(Lora& l, Device dev) {
    std::vector<float> host(l.num_params);
    for (size_t i = 0; i < l.tensors.size(); i++) {
        const LoraTensor& t = l.tensors[i];
        const float bound = 1.0f / std::sqrt((float)t.cols);
        for (int64_t j = 0; j < l.config.r * t.cols; j++)
            host[t.a + j] =
                bound * (2.0f * uniform01(rng_bits(l.seed, RNG_LORA, (uint32_t)i, (uint32_t)j, 0).x[0]) - 1.0f);
    }
    copy_to_device(l.master.data, host.data(), host.size() * sizeof(float), dev);
    device_synchronize(dev);  // host goes
}

// work from master
inline void lora_refresh(Lora& l, Device dev) {
    convert_forward(l.work.data, l.master.data, (int64_t)l.num_params, dev);
}

// ---------------------------------------------------------------------------------------------------------------------
// beside the base

// pass: the number of the pass whose dropout it is; 0: none
inline LoraDropout lora_dropout_of(const Lora& l, LoraSpan span, uint32_t pass, int64_t row0) {
    LoraDropout d;
    if (!pass || l.config.dropout == 0.0) return d;
    d.p = (float)l.config.dropout, d.seed = l.seed, d.pass = pass, d.product = span.number, d.row0 = row0;
    return d;
}

// l.h = floatX(s x A^T) for `rows` rows of inp; returns x, which is inp or what dropout left of it
inline const floatX* lora_down(const Lora& l, const floatX* inp, const LoraDropout& d, LoraSpan span, int64_t rows,
                               int64_t C, Device dev) {
    const int64_t n = (int64_t)span.count * l.config.r;
    const floatX* x = inp;
    if (d.p > 0.0f) {
        lora_dropout(l.dropped.data, inp, d, rows, C, dev);
        x = l.dropped.data;
    }
    matmul_nt(Rows{l.sums.data, n}, {x, C}, {l.work.data + l.tensors[span.first].a, C}, nullptr, rows, n, C, dev);
    lora_scale(l.h.data, l.sums.data, l.scale, rows * n, dev);
    return x;
}

// out [T,OC] += s (inp A^T) B^T for the parts of the linear that have an adapter; inp [T,C]; pass: see lora_dropout_of
inline void lora_forward(const Lora& l, LoraSpan span, floatX* out, const floatX* inp, uint32_t pass, int64_t T,
                         int64_t C, int64_t OC, Device dev) {
    const int64_t r = l.config.r, n = span.count * r;
    if (span.count == 0) return;
    for (int64_t t0 = 0; t0 < T; t0 += LORA_ROWS) {
        const int64_t rows = std::min(LORA_ROWS, T - t0);
        lora_down(l, inp + t0 * C, lora_dropout_of(l, span, pass, t0), span, rows, C, dev);
        for (int i = 0; i < span.count; i++) {
            const LoraTensor& p = l.tensors[span.first + i];
            matmul_nt(Rows{l.delta.data, p.rows}, {l.h.data + i * r, n}, {l.work.data + p.b, r}, nullptr, rows, p.rows,
                      r, dev);
            lora_add(out + t0 * OC + p.row0, l.delta.data, 1.0f, LoraDropout(), OC, rows, p.rows, dev);
        }
    }
}

// dinp [T,C] += dh A, and the gradients of A and B, which accumulate in l.grads; dout [T,OC], inp [T,C]
inline void lora_backward(const Lora& l, LoraSpan span, floatX* dinp, const floatX* dout, const floatX* inp,
                          uint32_t pass, int64_t T, int64_t C, int64_t OC, Device dev) {
    float* grads = l.grads;
    const int64_t r = l.config.r, n = span.count * r;
    if (span.count == 0) return;
    const size_t a = l.tensors[span.first].a;
    for (int64_t t0 = 0; t0 < T; t0 += LORA_ROWS) {
        const int64_t rows = std::min(LORA_ROWS, T - t0);
        const LoraDropout d = lora_dropout_of(l, span, pass, t0);
        const floatX* x = lora_down(l, inp + t0 * C, d, span, rows, C, dev);
        for (int i = 0; i < span.count; i++) {
            const LoraTensor& p = l.tensors[span.first + i];
            const floatX* dy = dout + t0 * OC + p.row0;
            matmul_tn({grads + p.b, r}, {dy, OC}, {l.h.data + i * r, n}, rows, p.rows, r, dev);
            matmul_nn(Rows{l.sums.data + i * r, n}, {dy, OC}, {l.work.data + p.b, r}, rows, p.rows, r, false, dev);
        }
        lora_scale(l.dh.data, l.sums.data, l.scale, rows * n, dev);
        matmul_tn({grads + a, C}, {l.dh.data, n}, {x, C}, rows, n, C, dev);
        if (d.p == 0.0f) {
            matmul_nn(Rows{dinp + t0 * C, C}, {l.dh.data, n}, {l.work.data + a, C}, rows, n, C, true, dev);
        } else {
            matmul_nn(Rows{l.delta.data, C}, {l.dh.data, n}, {l.work.data + a, C}, rows, n, C, false, dev);
            lora_add(dinp + t0 * C, l.delta.data, 1.0f, d, C, rows, C, dev);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// inside the quantizer

// out [rows,cols] = w0 + s B A; leaves floatX(s B) in l.scaled_b
inline void lora_combine(const Lora& l, float* out, const float* w0, const LoraTensor& t, Device dev) {
    const int64_t r = l.config.r;
    copy_on_device(out, w0, (size_t)(t.rows * t.cols) * sizeof(float), dev);
    lora_scale(l.scaled_b.data, l.master.data + t.b, l.scale, t.rows * r, dev);
    matmul_nn(Rows{out, t.cols}, {l.scaled_b.data, r}, {l.work.data + t.a, t.cols}, t.rows, r, t.cols, true, dev);
}

// From dweight [rows,cols] = M(dWq) and l.scaled_b of this tensor: the gradients of A and B, accumulated in l.grads
inline void lora_inside_backward(const Lora& l, const float* dweight, const LoraTensor& t, Device dev) {
    float* grads = l.grads;
    const int64_t r = l.config.r;
    floatX* dw = l.dweight_work.data;
    convert_forward(dw, dweight, t.rows * t.cols, dev);
    matmul_tn({grads + t.a, t.cols}, {l.scaled_b.data, r}, {dw, t.cols}, t.rows, r, t.cols, dev);
    matmul_nt(Rows{l.delta.data, r}, {dw, t.cols}, {l.work.data + t.a, t.cols}, nullptr, t.rows, r, t.cols, dev);
    lora_add(grads + t.b, l.delta.data, l.scale, LoraDropout(), r, t.rows, r, dev);
}
