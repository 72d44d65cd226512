// One of the four matrix products of a layer, forward and backward: q,k,v together, o, gate and up together, down.
// Whatever stands between the model and a plain product with W stands here: which copy of the weight is read, and the
// quantizer of the activations, and the adapter beside it (methods/lora.cuh), which multiplies the inputs as they are.
#pragma once
#include "frozen_base.cuh"

enum class Projection { qkv, o, gate_up, down };  // the order of product_shapes and of GenerationLayer

template <class T>
inline T* projection_weight(const LayerWeights<T>& w, Projection p) {
    return p == Projection::qkv ? w.qkv : p == Projection::o ? w.o : p == Projection::gate_up ? w.gate_up : w.down;
}

inline const GenerationWeight& projection_generation(const GenerationLayer& g, Projection p) {
    return p == Projection::qkv ? g.qkv : p == Projection::o ? g.o : p == Projection::gate_up ? g.gate_up : g.down;
}

// The numbers the product multiplies with: inp, or its fake-quantized copy in `quantized` [T,cols]
inline const floatX* projection_input(const Model& m, floatX* quantized, const floatX* inp, Projection p, int64_t T) {
    if (!m.quantize || !m.activation_products[(int)p]) return inp;
    fake_quant_rows(quantized, inp, T, product_shapes(m)[(int)p].cols, m.activations, m.dev);
    return quantized;
}

// out [T,rows] = Q_x(inp [T,cols]) Q(W)^T + bias, with rows and cols of product_shapes; quantized: scratch [T,cols] for
// Q_x(inp), not touched without an activation quantizer
inline void projection_forward(const Model& m, floatX* out, const floatX* inp, floatX* quantized, int layer,
                               Projection p, int64_t T) {
    const LayerWeights<floatX>& w = m.w.layers[layer];
    ProductShape shape = product_shapes(m)[(int)p];
    const QuantizedWeight* base = !m.base.empty() && m.base[layer][(int)p].N ? &m.base[layer][(int)p] : nullptr;
    const GenerationWeight* g = m.packed && !base ? &projection_generation(m.generation[layer], p) : nullptr;
    const floatX* bias = m.k_pre_bias ? m.bias_without_k.data : w.qkv_bias;
    const floatX* x = projection_input(m, quantized, inp, p, T);
    linear_forward(out, x, projection_weight(w, p), p == Projection::qkv ? bias : nullptr,
                   g && g->cpu.N ? &g->cpu : nullptr,
                   base              ? base
                   : g && g->codes.N ? &g->codes
                                     : nullptr,
                   {T, shape.cols, shape.rows}, m.dev);
    if (m.lora.on() && m.lora.enabled && !m.lora.inside())
        lora_forward(m.lora, out, inp, layer * 4 + (int)p, T, shape.cols, shape.rows, m.dev);
}

// the adapter's part of the backward: dA and dB, and dinp of the whole; x: what the product multiplied with
inline void adapted_projection_backward(const Model& m, float* adapters, floatX* dinp, const floatX* dout,
                                        const floatX* inp, const floatX* x, int layer, Projection p, int64_t T) {
    const Lora& l = m.lora;
    ProductShape shape = product_shapes(m)[(int)p];
    const int64_t C = shape.cols, OC = shape.rows;
    const floatX* weight = projection_weight(m.w.layers[layer], p);
    if (!m.base.empty() && m.base[layer][(int)p].N)
        linear_backward_input_quantized(dinp, dout, m.base[layer][(int)p], T, m.dev);
    else matmul_nn(Rows{dinp, C}, {dout, OC}, {weight, C}, T, OC, C, false, m.dev);
    if (x != inp) fake_quant_rows_backward(dinp, inp, T, C, m.activations, m.ste, m.dev);
    if (!l.inside()) {
        lora_backward(l, adapters, dinp, dout, inp, layer * 4 + (int)p, T, C, OC, m.dev);
        return;
    }
    const Lora::Span span = l.of_product[layer * 4 + (int)p];
    for (int i = 0; i < span.count; i++) {
        const LoraTensor& t = l.tensors[span.first + i];
        set_zero(l.dweight.data, (size_t)(t.rows * t.cols) * sizeof(float), m.dev);
        matmul_tn({l.dweight.data, C}, {dout + t.row0, OC}, {x, C}, T, t.rows, C, m.dev);
        size_t offset = (size_t)(weight - m.work.data) + (size_t)(t.row0 * C);
        lora_combine(l, l.combined.data, m.master.data + offset, t, m.dev);
        for (size_t j = 0; j < m.quantized.size(); j++) {
            QuantizedTensor q = m.quantized[j];
            if (q.offset != offset || !m.quantize) continue;
            q.master = l.combined.data;
            q.grad = l.dweight.data;
            QuantNoise noise = m.noise;
            noise.tensor = (uint32_t)j;
            quantized_tensor_backward(q, m.quantizer, SteRule::clip, m.dev, m.scale_mode, m.learned_scale, noise);
        }
        lora_inside_backward(l, adapters, l.dweight.data, t, m.dev);
    }
}

// dinp [T,cols] = dout [T,rows] Q(W) through the straight-through rule of Q_x, and the gradients of weight and bias,
// which accumulate in g; inp, quantized: as in the forward (the quantized copy is made again, not kept)
inline void projection_backward(const Model& m, const Weights<float>& g, floatX* dinp, const floatX* dout,
                                const floatX* inp, floatX* quantized, int layer, Projection p, int64_t T) {
    const floatX* x = projection_input(m, quantized, inp, p, T);
    if (m.lora.on()) {
        adapted_projection_backward(m, g.adapters, dinp, dout, inp, x, layer, p, T);
        return;
    }
    const LayerWeights<float>& d = g.layers[layer];
    ProductShape shape = product_shapes(m)[(int)p];
    linear_backward(dinp, projection_weight(d, p), p == Projection::qkv ? d.qkv_bias : nullptr, dout, x,
                    projection_weight(m.w.layers[layer], p), {T, shape.cols, shape.rows}, m.dev);
    if (x != inp) fake_quant_rows_backward(dinp, inp, T, shape.cols, m.activations, m.ste, m.dev);
}
