// A Linear: one of the four matrix products of a layer (q,k,v together, o, gate and up together, down), with its weights,
// its quantizers, its packed codes and its adapter.
//
//   out [T,rows] = Q_x(x) Q(W)^T + bias + s (x A^T) B^T             Q_x, adapter: if it has them
//   dx = dout Q(W) through the rule of Q_x;  dW += dout^T Q_x(x), the gradient of Q(W)
//
// Its parts are tensors of the checkpoint, one above the other, each with a quantizer of its own. What the forward reads
// is one of: the working weight [rows,cols]; while it generates, the weight laid out for that; and of a frozen base,
// which is a Linear without masters, packed codes alone. All give the same bits, since a column of the output meets one
// row of Q(W) in one order of summation.
//
// A rotated basis (linear_set_basis): x and W are multiplied with a Hadamard matrix before their quantizers, which spreads
// outliers of single channels over all of them (QuEST, arXiv 2502.05003; RoSTE, arXiv 2502.09003):
//   out = Q_x(x H^T) Q(W H^T)^T + bias;   dW = dW' H, dx = dx' H, of the rotated ones by the rules of their quantizers
// H H^T = 1, so that in full precision nothing changes but rounding. The master stays in its own basis: a checkpoint is an
// ordinary model, and optimizers and adapters inside the quantizer see nothing of it. Not so R4 of methods/rotation.cuh,
// where the stored W is the rotated one. H has no random signs: an input whose channels share one mean puts all of that
// into a single channel. The trap: part.work is of the basis, part.master is not; part_value has the two together.
//
// A learned transform P of the inputs (FlatQuant) is, as R4, one of x and of the stored W: out = Q_x(x P) Q(W P^-T)^T + bias,
// where Q_x covers a share `clip` of a row's range. It is trained where its gradients have memory, see TransformGradient.
//
// Hooks: what a method does to a weight at the fixed moments of its life, see WeightHook.
//
// A method may also train some of the rows alone: of dW those are computed then, the others of the gradient stay 0, and
// the optimizer leaves them and their moments as they are. dx and the gradient of the bias are whole.
#pragma once
#include <functional>
#include <string>
#include <vector>
#include "../kernels/convert.cuh"
#include "../kernels/hadamard.cuh"
#include "../kernels/kronecker.cuh"
#include "../kernels/linear.cuh"
#include "../kernels/range_backward.cuh"
#include "../kernels/rows.cuh"
#include "../quant.cuh"
#include "adapter.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// what a forward does

// The backward does the same as its forward
struct Pass {
    bool quantized = true;  // with Q(W) and Q_x; false: full precision. The KV cache keeps its quantizer either way,
    bool adapter = true;    // false: the base alone, which is the reference policy of an adapter
    bool packed = false;    // weights as model_pack laid them out
    uint32_t dropout = 0;   // the number of the pass, which keys the adapter's dropout; 0: none
    bool kv = true;         // unless keys and values are to be as they are, too
    const floatX* norms = nullptr;  // [L,2,C] weights of the norms before attention and MLP; null: the model's
};

inline Pass full_precision() {
    Pass p;
    p.quantized = false;
    return p;
}

// ---------------------------------------------------------------------------------------------------------------------
// what a linear is

// Where a parameter lies. Views; null where there is none
struct Param {
    float* master = nullptr;
    floatX* work = nullptr;
    float* grad = nullptr;
};

struct LinearPart;

// An optimizer's step, for what comes after it
struct StepInfo {
    double learning_rate = 0.0;  // of the weight's group
    int64_t step = 0;            // of those that have been done, this one included
    double progress = 0.0;       // the share of the run that is done, this step included
};

// What is known when the gradient is complete
struct UpdateMoment {
    double grad_scale = 1.0;  // the optimizer will multiply it with this (clipping)
    double progress = 0.0;    // as StepInfo's
};

// Any of them may be empty. Hooks run in the order in which they were added, those at the gradient in reverse. All numbers
// are in the basis of the master but for part.work, see part_value.
struct WeightHook {
    // before it is quantized: the numbers [rows,cols] to quantize instead of w, which may be changed in place if it is
    // not the master
    std::function<const float*(LinearPart&, const float* w)> before_quantize;
    // dw [rows,cols], the gradient of Q(w) after the quantizer's own rule: in place. w: what was quantized
    std::function<void(LinearPart&, float* dw, const float* w)> at_gradient;
    // dw, the gradient of part.master over all micro-batches and ranks, before the optimizer takes it: in place
    std::function<void(LinearPart&, float* dw, const UpdateMoment&)> before_update;
    // after the step has moved part.master and before it is quantized again; part.work is still the Q(w) of before
    std::function<void(LinearPart&, const StepInfo&)> after_step;
};

// The rows of a part that are trained
struct PartRows : RowList {
    const char* method = nullptr;  // the name of what chooses them; null: all rows, always
    int64_t most = 0;              // that a list of it ever has
};

// Those of a linear, over its parts, with memory for a product with them
struct LinearRows : RowList {
    floatX* dout = nullptr;    // [T, trained_rows_width]
    float* dweight = nullptr;  // [trained_rows_width, cols]
};

// Columns of the product for `count` trained rows. On a device the number is rounded up to what a tile has anyway, or
// each linear of a model would have a plan of its own (cublaslt.cuh)
inline int64_t trained_rows_width(int64_t count, Device dev) { return dev.cuda ? CEIL_DIV(count, 64) * 64 : count; }

struct LinearPart : QuantizedTensor {
    const char* label = "";  // q, k, v, o, gate, up, down; embed, head
    int layer = -1;
    int64_t row0 = 0;  // of the linear
    PartRows trained;
    std::vector<WeightHook> hooks;
    Hadamard basis;            // that it is quantized in; off: its own
    float* rotated = nullptr;  // [rows,cols] the model's scratch for it, shared by all parts
};

// Rows of a linear that are packed as one: neighbours with the same quantizer
struct PackedRows {
    int first_part = 0, parts = 0;
    int64_t row0 = 0, rows = 0;
    bool can_pack = false;  // all of its parts are quantized
    bool fits = true;       // the codes can hold the scales of a file's grid, in this storage
    ScaleStorage fit_storage = ScaleStorage::fp32;
    QuantizedWeight codes;        // N 0: none, the working weight is read
    PackedWeight<floatX> layout;  // CPU: the working weight as its product wants it, while the model generates
};

// What the backward gives for the parameters of a learned transform; views, which accumulate. Null: it is not trained
struct TransformGradient {
    float *m1 = nullptr, *m2 = nullptr;  // [n1,n1], [n2,n2] moments of the inputs
    float* scale = nullptr;              // [cols] of log r, the inputs' part
    float* clip = nullptr;               // [1]
    bool on() const { return m1; }
};

struct Linear {
    const char* name = "";  // of its parts, as in a report: "q,k,v"
    int layer = -1;
    int64_t rows = 0, cols = 0;
    std::vector<LinearPart> parts;
    Param weight;     // [rows,cols]: its parts, which are neighbours; work is null if some part is packed codes alone
    Param bias;       // [rows], of q,k,v; or null
    Quantizer input;  // Q_x, one scale a row or group of it
    Hadamard transform;   // x is multiplied with it before anything else, in place (R4 of methods/rotation.cuh, a basis)
    bool rotated = false;  // the transform is that of a basis, its parts'
    Kronecker learned, dual;  // instead of that: a learned transform of x, and of W
    float clip = 1.0f;        // with it: the share of a row's range that Q_x covers
    TransformGradient learned_gradient;
    LinearRows trained;
    bool frozen = false;  // the codes of `packed` are all there is where a run has some
    std::vector<PackedRows> packed;
    const Lora* lora = nullptr;  // the model's adapter
    LoraSpan adapter;
};

// are its inputs other than what the layer before gives?
inline bool is_transformed(const Linear& l) { return l.transform.on() || l.learned.on(); }

inline bool has_adapter(const Linear& l, const Pass& pass) { return l.lora->on() && pass.adapter; }

// neighbours with the same quantizer, in l.packed; after the parts got theirs
inline void linear_plan_packing(Linear& l) {
    l.packed.clear();
    for (size_t i = 0; i < l.parts.size(); i++) {
        const LinearPart& p = l.parts[i];
        const bool joins = i > 0 && p.quantizer.on() == l.parts[i - 1].quantizer.on() &&
                           quantizer_text(p.quantizer) == quantizer_text(l.parts[i - 1].quantizer);
        if (!joins) {
            l.packed.emplace_back();
            l.packed.back().first_part = (int)i, l.packed.back().row0 = p.row0;
            l.packed.back().can_pack = p.quantizer.on();
        }
        l.packed.back().parts++;
        l.packed.back().rows += p.rows;
    }
}

// the packed codes of a run that can_pack, without memory
inline QuantizedWeight packed_rows_codes(const Linear& l, const PackedRows& r, Device dev) {
    const Quantizer& q = l.parts[r.first_part].quantizer;
    const bool grouped = q.scope == QuantScope::group || q.scope == QuantScope::block;
    QuantizedRows rows = {0, 0, 0};
    for (int i = 0; i < r.parts; i++) rows[i] = l.parts[r.first_part + i].rows;
    return quantized_weight(q.spec, quantized_storage(q.spec, q.double_quant), rows, l.cols, grouped ? q.group : l.cols,
                            quantized_layout(dev));
}
inline size_t packed_rows_bytes(const Linear& l, const PackedRows& r, Device dev) {
    return (quantized_weight_bytes(packed_rows_codes(l, r, dev)) + 255) / 256 * 256;
}

// The basis that x and the weights are quantized in: rotated, or their own; what the forward reads is made anew afterwards
inline void linear_set_basis(Linear& l, bool rotated) {
    if (rotated == l.rotated) return;
    if (rotated && is_transformed(l)) fail("%s of layer %d is transformed already", l.name, l.layer);
    l.rotated = rotated;
    l.transform = rotated ? hadamard_for(l.cols) : Hadamard();
    for (LinearPart& p : l.parts) p.basis = l.transform;
}

// what packing reads of a quantized tensor
inline QuantizedSource quantized_source(const QuantizedTensor& t) {
    QuantizedSource s;
    s.codes = t.codes, s.grid = t.grid;
    s.grid_rows = t.quantizer.scope == QuantScope::tensor ? t.rows : 1;  // a 128 x 128 tile's is stored in each row
    s.tensor = t.state.tensor, s.scale_codes = t.state.codes, s.nested = t.state.absmax;
    return s;
}

// ---------------------------------------------------------------------------------------------------------------------
// forward

// x [T,cols] = H x in place, or x P, if the linear has a transform; before linear_forward, and what the backward reads
inline void linear_transform(const Linear& l, floatX* x, int64_t T, Device dev) {
    if (l.transform.on()) hadamard_forward(x, l.cols, l.transform, T, l.cols / l.transform.N(), dev);
    if (l.learned.on()) kronecker_forward(x, l.learned, T, dev);
}
// x, that was transformed, as it was
inline void linear_restore(const Linear& l, floatX* x, int64_t T, Device dev) {
    if (l.transform.on()) hadamard_backward(x, l.cols, l.transform, T, l.cols / l.transform.N(), dev);
    if (l.learned.on()) kronecker_backward(x, l.dual, T, dev);
}
// dx: the gradient of x, the transformed, becomes that of what it was; the gradients of a transform in training
// accumulate
inline void linear_transform_backward(const Linear& l, floatX* dx, const floatX* x, int64_t T, Device dev) {
    if (l.transform.on()) hadamard_backward(dx, l.cols, l.transform, T, l.cols / l.transform.N(), dev);
    if (!l.learned.on()) return;
    const TransformGradient& d = l.learned_gradient;
    if (d.on()) kronecker_moments(d.m1, d.m2, x, (const floatX*)dx, l.learned, T, dev);
    kronecker_backward(dx, l.learned, T, dev);
    if (!d.on()) return;
    Scratch scratch((size_t)CEIL_DIV(T * l.cols * (int64_t)sizeof(floatX), (int64_t)sizeof(float)), dev);
    floatX* original = reinterpret_cast<floatX*>(scratch.data);
    copy_on_device(original, x, (size_t)(T * l.cols) * sizeof(floatX), dev);
    linear_restore(l, original, T, dev);
    kronecker_columns(d.scale, (const floatX*)original, (const floatX*)dx, l.cols, T, 1.0f, dev);
}

// Q_x with what a learned transform has of it
inline Quantizer linear_input_quantizer(const Linear& l) {
    Quantizer q = l.input;
    q.spec.clip = l.clip;
    return q;
}

// The numbers the product multiplies with: inp, or its fake-quantized copy in `quantized` [T,cols]
inline const floatX* linear_input(const Linear& l, floatX* quantized, const floatX* inp, int64_t T, const Pass& pass,
                                  Device dev) {
    if (!pass.quantized || !l.input.on()) return inp;
    fake_quant_rows(quantized, inp, T, l.cols, linear_input_quantizer(l), dev);
    return quantized;
}

// dinp [T,cols], the gradient of Q_x(inp), becomes that of inp: by the rule of Q_x, or where a transform is in training
// through the range that it measures
inline void linear_input_backward(const Linear& l, floatX* dinp, const floatX* inp, int64_t T, Device dev) {
    const Quantizer q = linear_input_quantizer(l);
    if (!l.learned_gradient.on()) {
        fake_quant_rows_backward(dinp, inp, T, l.cols, q, dev);
        return;
    }
    const QuantGroups shape = quantized_rows_groups(q, T, l.cols);
    Scratch scratch(4 * (size_t)shape.groups, dev);
    Grid *grid = reinterpret_cast<Grid*>(scratch.data), *range = grid + shape.groups;
    quant_measure(grid, ScaleState(), inp, shape, q.spec, dev);
    quant_measure(range, ScaleState(), inp, shape, {q.spec, GridOf::ends}, dev);
    RangeGradient d;
    RangeClip clip;
    d.ratio = l.learned_gradient.clip, clip.ratio = l.clip;
    range_backward(dinp, d, inp, range, grid, clip, shape, q.spec, dev);
}

// out [T,rows] of the whole linear; inp [T,cols]; bias: [rows] or null; quantized: scratch [T,cols] for Q_x(inp), not
// touched without a quantizer of the inputs
inline void linear_forward(const Linear& l, floatX* out, const floatX* inp, const floatX* bias, floatX* quantized,
                           int64_t T, const Pass& pass, Device dev) {
    const floatX* x = linear_input(l, quantized, inp, T, pass, dev);
    if (!pass.packed && !l.frozen)
        linear_forward({out, l.rows}, x, l.weight.work, bias, nullptr, nullptr, {T, l.cols, l.rows}, dev);
    else
        for (const PackedRows& r : l.packed)
            linear_forward({out + r.row0, l.rows}, x, l.parts[r.first_part].work, bias ? bias + r.row0 : nullptr,
                           pass.packed && r.layout.N ? &r.layout : nullptr, r.codes.N ? &r.codes : nullptr,
                           {T, l.cols, r.rows}, dev);
    if (has_adapter(l, pass) && !l.lora->inside())
        lora_forward(*l.lora, l.adapter, out, inp, pass.dropout, T, l.cols, l.rows, dev);
}

// ---------------------------------------------------------------------------------------------------------------------
// backward

// What is quantized of a part: its master, or what its hooks make of that, in the basis that it is quantized in
inline const float* part_source(LinearPart& p, Device dev) {
    const float* w = p.master;
    for (const WeightHook& h : p.hooks)
        if (h.before_quantize) w = h.before_quantize(p, w);
    if (!p.basis.on()) return w;
    copy_on_device(p.rotated, w, (size_t)p.count() * sizeof(float), dev);
    hadamard_forward(p.rotated, p.cols, p.basis, p.rows, p.cols / p.basis.N(), dev);
    return p.rotated;
}

// dw, the gradient of Q(w), becomes that of w and of whatever w is made of. w: part_source(p), which is lost
inline void part_gradient(LinearPart& p, float* dw, const float* w, bool quantized, Device dev) {
    if (quantized && p.quantizer.on()) quantized_tensor_backward(p, dw, w, dev);
    if (p.basis.on()) {
        bool hooked = false;
        for (const WeightHook& h : p.hooks) hooked = hooked || h.at_gradient;
        const int64_t segments = p.cols / p.basis.N();
        hadamard_backward(dw, p.cols, p.basis, p.rows, segments, dev);
        if (hooked) hadamard_backward(p.rotated, p.cols, p.basis, p.rows, segments, dev);  // w, for them
    }
    for (size_t i = p.hooks.size(); i-- > 0;)
        if (p.hooks[i].at_gradient) p.hooks[i].at_gradient(p, dw, w);
}

// use(w): w [rows,cols] = part_source(p), and dw [rows,cols] in its basis, where both meet p.work and its grid; dw is
// rotated there and back
template <class Use>
void part_in_basis(LinearPart& p, float* dw, Device dev, const Use& use) {
    const float* w = part_source(p, dev);
    if (p.basis.on()) hadamard_forward(dw, p.cols, p.basis, p.rows, p.cols / p.basis.N(), dev);
    use(w);
    if (p.basis.on()) hadamard_backward(dw, p.cols, p.basis, p.rows, p.cols / p.basis.N(), dev);
}

// use(q): q [rows,cols] = Q(W) in the basis of the master, floatX or, if it had to be rotated back, fp32. For pulls
// towards the grid: with W' = W H^T, W' - Q(W') = (W - q) H^T. Overwrites what part_source gave
template <class Use>
void part_value(LinearPart& p, Device dev, const Use& use) {
    if (!p.basis.on()) {
        use((const floatX*)p.work);
        return;
    }
    convert_widen(p.rotated, p.work, p.count(), dev);
    hadamard_backward(p.rotated, p.cols, p.basis, p.rows, p.cols / p.basis.N(), dev);
    use((const float*)p.rotated);
}

// dinp [T,cols] = dout [T,rows] Q(W) for a weight that is not trained itself
inline void linear_backward_input(const Linear& l, floatX* dinp, const floatX* dout, int64_t T, Device dev) {
    if (l.packed.size() == 1 && l.packed[0].codes.N) {
        linear_backward_input_quantized(dinp, dout, l.packed[0].codes, T, dev);
        return;
    }
    if (l.weight.work) {
        matmul_nn(Rows{dinp, l.cols}, {dout, l.rows}, {l.weight.work, l.cols}, T, l.rows, l.cols, false, dev);
        return;
    }
    // parts in several formats: the sum runs over the rows of all of them, so they are expanded together
    Scratch scratch((size_t)CEIL_DIV(l.rows * l.cols * (int64_t)sizeof(floatX), (int64_t)sizeof(float)), dev);
    floatX* whole = reinterpret_cast<floatX*>(scratch.data);
    for (const PackedRows& r : l.packed) {
        floatX* to = whole + r.row0 * l.cols;
        if (r.codes.N) quantized_weight_unpack(to, l.cols, r.codes, 0, r.rows, dev);
        else copy_on_device(to, l.parts[r.first_part].work, (size_t)(r.rows * l.cols) * sizeof(floatX), dev);
    }
    matmul_nn(Rows{dinp, l.cols}, {dout, l.rows}, {whole, l.cols}, T, l.rows, l.cols, false, dev);
}

// the adapter's part of the backward: dA and dB, and dinp of the whole; x: what the product multiplied with
inline void linear_backward_adapted(Linear& l, floatX* dinp, const floatX* dout, const floatX* inp, const floatX* x,
                                    int64_t T, const Pass& pass, Device dev) {
    const Lora& lora = *l.lora;
    const int64_t C = l.cols;
    linear_backward_input(l, dinp, dout, T, dev);
    if (x != inp) linear_input_backward(l, dinp, inp, T, dev);
    if (!lora.inside()) {
        lora_backward(lora, l.adapter, dinp, dout, inp, pass.dropout, T, C, l.rows, dev);
        return;
    }
    for (int i = 0; i < l.adapter.count; i++) {  // dW is not kept: its rule and its hooks run at once
        const LoraTensor& t = lora.tensors[l.adapter.first + i];
        set_zero(lora.dweight.data, (size_t)(t.rows * C) * sizeof(float), dev);
        matmul_tn({lora.dweight.data, C}, {dout + t.row0, l.rows}, {x, C}, T, t.rows, C, dev);
        LinearPart& p = l.parts[t.part];
        part_gradient(p, lora.dweight.data, part_source(p, dev), pass.quantized, dev);
    }
}

// Of weight.grad the trained rows += those of dout^T x. Sums begin with what the gradient holds, as those of all rows
// do: on the CPU the bits are the same
inline void linear_backward_rows(const Linear& l, const floatX* dout, const floatX* x, int64_t T, Device dev) {
    const LinearRows& r = l.trained;
    if (r.count == 0) return;
    const int64_t C = l.cols, width = trained_rows_width(r.count, dev);
    gather_columns({r.dout, width}, {dout, l.rows}, r.rows, T, r.count, width, dev);
    gather_rows(r.dweight, l.weight.grad, r.rows, r.count, C, dev);
    matmul_tn({r.dweight, C}, {r.dout, width}, {x, C}, T, width, C, dev);
    put_rows(l.weight.grad, r.dweight, r.rows, r.count, C, dev);
}

// dinp [T,cols] = dout [T,rows] Q(W) through the straight-through rule of Q_x; the gradients of weight and bias, or of
// the adapter, accumulate in their views. inp, quantized: as in the forward (the quantized copy is made again, not kept)
inline void linear_backward(Linear& l, floatX* dinp, const floatX* dout, const floatX* inp, floatX* quantized,
                            int64_t T, const Pass& pass, Device dev) {
    const floatX* x = linear_input(l, quantized, inp, T, pass, dev);
    if (l.lora->on()) {
        linear_backward_adapted(l, dinp, dout, inp, x, T, pass, dev);
        return;
    }
    if (l.trained.all) {
        linear_backward(dinp, l.weight.grad, l.bias.grad, dout, x, l.weight.work, {T, l.cols, l.rows}, dev);
    } else {
        linear_backward_input(l, dinp, dout, T, dev);
        linear_backward_rows(l, dout, x, T, dev);
        if (l.bias.grad) bias_backward(l.bias.grad, dout, T, l.rows, dev);
    }
    if (x != inp) linear_input_backward(l, dinp, inp, T, dev);
}
