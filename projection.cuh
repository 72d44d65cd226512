// One of the four matrix products of a layer, forward and backward: q,k,v together, o, gate and up together, down.
// Whatever stands between the model and a plain product with W stands here: which copy of the weight is read, and the
// quantizer of the activations.
#pragma once
#include "parameters.cuh"

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
    const GenerationWeight* g = m.packed ? &projection_generation(m.generation[layer], p) : nullptr;
    const floatX* bias = m.k_pre_bias ? m.bias_without_k.data : w.qkv_bias;
    inp = projection_input(m, quantized, inp, p, T);
    linear_forward(out, inp, projection_weight(w, p), p == Projection::qkv ? bias : nullptr,
                   g && g->cpu.N ? &g->cpu : nullptr, g && g->codes.N ? &g->codes : nullptr, T, shape.cols,
                   shape.rows, m.dev);
}

// dinp [T,cols] = dout [T,rows] Q(W) through the straight-through rule of Q_x, and the gradients of weight and bias,
// which accumulate in g; inp, quantized: as in the forward (the quantized copy is made again, not kept)
inline void projection_backward(const Model& m, const Weights<float>& g, floatX* dinp, const floatX* dout,
                                const floatX* inp, floatX* quantized, int layer, Projection p, int64_t T) {
    const LayerWeights<float>& d = g.layers[layer];
    ProductShape shape = product_shapes(m)[(int)p];
    const floatX* x = projection_input(m, quantized, inp, p, T);
    linear_backward(dinp, projection_weight(d, p), p == Projection::qkv ? d.qkv_bias : nullptr, dout, x,
                    projection_weight(m.w.layers[layer], p), T, shape.cols, shape.rows, m.dev);
    if (x != inp) fake_quant_rows_backward(dinp, inp, T, shape.cols, m.activations, m.ste, m.dev);
}
