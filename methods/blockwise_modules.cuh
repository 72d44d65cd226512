// Modules of layers as block-wise reconstruction (blockwise.cuh) runs them: their forward from what is before them,
// their error against the same layers in full precision, and its gradient. A span is the layers that are trained at a
// time: one module, or several, of which each gets what the one before gives.
//
//   loss of a module = sum over its layers l of ||f_l - f^_l||^2      f, f^ [tokens,C]: kept; of the quantized layers
//   so that the gradient of its layer l's output is 2 (f^_l - f_l), and what comes back from layer l + 1 of the module
//
// The trap: a micro-batch takes windows of any place in the text, so that what is kept of all tokens is met window by
// window.
#pragma once
#include <algorithm>
#include <numeric>
#include <vector>
#include "../kernels/mix.cuh"
#include "../kernels/squared_error.cuh"
#include "calibration.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// memory

struct BlockwiseMemory {
    Buffer<floatX> targets;             // [span+1,tokens,C] f: the span's input, and its layers' outputs
    Buffer<floatX> input;               // [tokens,C] f^ at the span's input
    Buffer<float> grads, m, v;          // [the span's parameters]
    Buffer<float> grid, dgrid, gm, gv;  // [2,groups of the span] the parameters of its grids
    int64_t tokens = 0, length = 0;     // length: of a window
    const std::vector<std::vector<int>>* windows = nullptr;
    int first = 0, end = 0;  // the span
    int layers = 1;          // of a module

    int64_t plane(const Model& m_) const { return tokens * m_.C(); }
};

inline std::vector<LinearPart*> blockwise_parts(Model& m, int first, int end) {
    std::vector<LinearPart*> list;
    for (LinearPart* p : quantized_parts(m))
        if (p->layer >= first && p->layer < end) list.push_back(p);
    return list;
}

// ---------------------------------------------------------------------------------------------------------------------
// forward and backward of a micro-batch. ids: its windows, of equal length

inline const floatX* blockwise_target(const Model& m, const BlockwiseMemory& s, int layer) {
    return s.targets.data + (int64_t)(layer - s.first) * s.plane(m);
}

// use(offset of a window in the micro-batch, its offset in arrays of all windows, numbers)
template <class F>
void blockwise_windows(const Model& m, const BlockwiseMemory& s, const std::vector<int>& ids, const F& use) {
    const int64_t n = s.length * m.C();
    for (size_t i = 0; i < ids.size(); i++) use((int64_t)i * n, ids[i] * n, n);
}

inline void blockwise_batch(const Model& m, Activations& a, const BlockwiseMemory& s, Batch& b,
                            const std::vector<int>& ids, const Pass& pass) {
    b = Batch();
    for (int id : ids) batch_add_sequence(b, (*s.windows)[id].data(), (int)s.length);
    a.view = batch_view(a.batch, b, m.dev);
    a.pass = pass;
}

// out [T,C], of the norm behind it, from layer l's a.layers[l].mid and a.branch
inline void layer_output(Model& m, Activations& a, int l, floatX* out, floatX* norm, float* rstd,
                         const floatX* weight) {
    fused_residual_rmsnorm_forward(out, norm, rstd, a.layers[l].mid, a.branch, weight, {a.view.T, m.C()},
                                   m.config.rms_norm_eps, m.dev);
}
inline void layer_from(Model& m, Activations& a, int l, const floatX* residual) {
    rmsnorm_forward(a.layers[l].ln1, a.layers[l].ln1_rstd, residual, m.layers[l].ln1.work, {a.view.T, m.C()},
                    m.config.rms_norm_eps, m.dev);
    layer_forward(m, a, l, residual, a.view, a.pass, nullptr);
}

// a.residual[l + 1] of the layers of a module, from a.residual[first]. The norm behind the last is for its sum alone
inline void module_forward(Model& m, Activations& a, int first, int end) {
    for (int l = first; l < end; l++) {
        layer_from(m, a, l, a.residual[l]);
        layer_output(m, a, l, a.residual[l + 1], a.hidden, a.hidden_rstd, m.norm.work);
    }
}

// Gradients of the module's loss, behind its module_forward; those of its parameters accumulate
inline void module_backward(Model& m, Activations& a, const BlockwiseMemory& s, int first, int end,
                            const std::vector<int>& ids) {
    for (int l = end - 1; l >= first; l--) {
        const floatX* target = blockwise_target(m, s, l + 1);
        blockwise_windows(m, s, ids, [&](int64_t at, int64_t all, int64_t n) {
            squared_error_backward(a.dresidual + at, a.residual[l + 1] + at, target + all, n, l + 1 < end, m.dev);
        });
        if (l + 1 < end) layer_from(m, a, l, a.residual[l]);
        layer_backward(m, a, l);
    }
}

// The modules of the span in turn, each from what the one before gives and a share lambda of full precision;
// use(first, end) behind each
template <class F>
void blockwise_modules(Model& m, Activations& a, const BlockwiseMemory& s, const std::vector<int>& ids, double lambda,
                       const F& use) {
    Batch b;
    blockwise_batch(m, a, s, b, ids, Pass());
    blockwise_windows(m, s, ids, [&](int64_t at, int64_t all, int64_t n) {
        copy_on_device(a.residual[s.first] + at, s.input.data + all, (size_t)n * sizeof(floatX), m.dev);
    });
    for (int first = s.first, end; first < s.end; first = end) {
        end = std::min(first + s.layers, s.end);
        const floatX* target = blockwise_target(m, s, first);
        if (lambda > 0.0)
            blockwise_windows(m, s, ids, [&](int64_t at, int64_t all, int64_t n) {
                mix_forward(a.residual[first] + at, target + all, (float)lambda, n, m.dev);
            });
        module_forward(m, a, first, end);
        use(first, end);
    }
}

// ids in micro-batches that fit a
inline std::vector<std::vector<int>> blockwise_split(const std::vector<int>& ids, const Activations& a,
                                                     int64_t length) {
    const size_t most = (size_t)std::max<int64_t>(a.capacity / length, 1);
    std::vector<std::vector<int>> list;
    for (size_t i = 0; i < ids.size(); i += most)
        list.emplace_back(ids.begin() + (std::ptrdiff_t)i,
                          ids.begin() + (std::ptrdiff_t)std::min(i + most, ids.size()));
    return list;
}
inline std::vector<int> blockwise_all(const BlockwiseMemory& s) {
    std::vector<int> ids(s.windows->size());
    std::iota(ids.begin(), ids.end(), 0);
    return ids;
}

// f of the span's layers, whose working weights are in full precision still; the first plane is there
inline void blockwise_targets(Model& m, Activations& a, BlockwiseMemory& s) {
    Pass pass = full_precision();
    pass.kv = false;
    for (const std::vector<int>& ids : blockwise_split(blockwise_all(s), a, s.length)) {
        Batch b;
        blockwise_batch(m, a, s, b, ids, pass);
        floatX* x = s.targets.data + ids[0] * s.length * m.C();
        for (int l = s.first; l < s.end; l++, x += s.plane(m)) {
            layer_from(m, a, l, x);
            layer_output(m, a, l, x + s.plane(m), a.hidden, a.hidden_rstd, m.norm.work);
        }
    }
}

// Each module's error over all windows; out [tokens,C]: what the span gives, unless null
inline std::vector<double> blockwise_errors(Model& m, Activations& a, const BlockwiseMemory& s, floatX* out) {
    std::vector<SquaredError> sums((size_t)CEIL_DIV(s.end - s.first, s.layers));
    for (const std::vector<int>& ids : blockwise_split(blockwise_all(s), a, s.length)) {
        const int64_t at = ids[0] * s.length * m.C(), n = (int64_t)ids.size() * s.length * m.C();
        blockwise_modules(m, a, s, ids, 0.0, [&](int first, int end) {
            SquaredError& sum = sums[(size_t)((first - s.first) / s.layers)];
            for (int l = first; l < end; l++) {
                const SquaredError e =
                    squared_error_forward(a.residual[l + 1], blockwise_target(m, s, l + 1) + at, n, m.dev);
                sum.loss += e.loss, sum.size += e.size;
            }
        });
        if (out) copy_on_device(out + at, a.residual[s.end], (size_t)n * sizeof(floatX), m.dev);
    }
    std::vector<double> errors;
    for (const SquaredError& e : sums) errors.push_back(e.size > 0.0 ? e.loss / e.size : 0.0);
    return errors;
}
