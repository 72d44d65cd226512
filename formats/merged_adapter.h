// A model with its adapter added to the weights, on request: W + (alpha/r) B A in full precision. Merging changes the
// model where the base is quantized: a frozen base gives what its codes stand for, and quantizing the sum again would
// round away part of what the adapter learnt. The report says how much.
#pragma once
#include "export_model.h"
#include "peft.h"

// What merging changed: sizes of the base's adapted weights, of what was added to them, and of what quantizing the sum
// once more would take away (0 without a quantizer)
struct MergeReport {
    double base = 0.0, added = 0.0, lost = 0.0;
};

// n numbers (whole rows if t is packed) of tensor t of the base, from `first`, as they are multiplied with (frozen) or
// as the master has them
inline void base_values(const Model& m, const ParamTensor& t, int64_t first, int64_t n, float* out) {
    if (!m.frozen) {
        copy_to_host(out, m.master.data + t.offset + first, n * sizeof(float), m.dev);
        return;
    }
    std::vector<floatX> host(n);
    if (t.packed) {
        Device dev = m.dev;
        dev.arena = nullptr;
        Buffer<floatX> rows;
        rows.allocate(n, "a tensor of the base", "", dev);
        const Linear& l = linear_of(m, t);
        for (const PackedRows& r : l.packed)
            if (t.part >= r.first_part && t.part < r.first_part + r.parts)
                quantized_weight_unpack(rows.data, t.cols, r.codes, l.parts[t.part].row0 - r.row0 + first / t.cols,
                                        n / t.cols, dev);
        copy_to_host(host.data(), rows.data, n * sizeof(floatX), dev);
    } else {
        copy_to_host(host.data(), m.work.data + t.offset + first, n * sizeof(floatX), m.dev);
    }
    for (int64_t i = 0; i < n; i++) out[i] = (float)host[i];
}

// What lies beside a merged model: with the adapter inside the quantizer the sum is what was trained, on the adapter's
// grid; else it is on none
inline void merged_beside(const Model& m, const std::string& folder) {
    if (m.lora.inside()) quantizer_save(m, folder);
    policy_save(m, folder, Saved::merged);
}

// The model with W + s B A for W, a folder like model_save's
inline MergeReport merged_save(const Model& m, const std::string& dir, const std::string& save_dtype,
                               const std::function<void(const std::string&)>& also) {
    MergeReport report;
    const Lora& l = m.lora;
    const int64_t r = l.config.r;
    std::vector<float> adapter(l.num_params), merged;
    copy_to_host(adapter.data(), l.master.data, l.num_params * sizeof(float), m.dev);
    auto merge = [&](const ParamTensor& t, const LoraTensor& a) {
        const float *A = adapter.data() + a.a, *B = adapter.data() + a.b;
        double base = 0.0, added = 0.0;
#pragma omp parallel for schedule(static) reduction(+ : base, added)
        for (int64_t row = 0; row < t.rows; row++) {
            std::vector<float> delta(t.cols);
            for (int64_t k = 0; k < r; k++)
                for (int64_t c = 0; c < t.cols; c++) delta[c] += B[row * r + k] * A[k * t.cols + c];
            float* w = merged.data() + row * t.cols;
            for (int64_t c = 0; c < t.cols; c++) {
                float d = l.scale * delta[c];
                base += (double)w[c] * w[c];
                added += (double)d * d;
                w[c] += d;
            }
        }
        report.base += base;
        report.added += added;
        const LinearPart& part = *part_of(m, t);
        if (!part.quantizer.on()) return;
        QuantizedLinear q;
        q.name = t.name, q.rows = t.rows, q.cols = t.cols;
        std::vector<float> w = merged, value(t.count());  // w: in the basis that it is quantized in
        if (part.basis.on()) hadamard_forward(w.data(), t.cols, part.basis, t.rows, t.cols / part.basis.N(), Device());
        quantized_linear_measure(q, part.quantizer, w.data());
        quantized_linear_values(q, value.data());
        for (int64_t i = 0; i < t.count(); i++) report.lost += ((double)w[i] - value[i]) * ((double)w[i] - value[i]);
    };
    auto beside = [&](const std::string& folder) { merged_beside(m, folder), also(folder); };
    model_save(m, dir, save_dtype, beside, [&](const ParamTensor& t, int64_t first, int64_t n, float* buffer) {
        const LoraTensor* adapted = nullptr;
        if (t.kind == ParamKind::linear) {
            const LoraSpan& span = linear_of(m, t).adapter;
            for (int i = span.first; i < span.first + span.count; i++)
                if (l.tensors[i].part == t.part) adapted = &l.tensors[i];
        }
        if (!adapted && !t.packed) {
            base_values(m, t, first, n, buffer);
            return;
        }
        if (first == 0) {  // the whole tensor, of which the next calls ask for the rest
            merged.resize(t.count());
            base_values(m, t, 0, t.count(), merged.data());
            if (adapted) merge(t, *adapted);
        }
        std::copy(merged.begin() + first, merged.begin() + first + n, buffer);
    });
    report.base = sqrt(report.base), report.added = sqrt(report.added), report.lost = sqrt(report.lost);
    return report;
}
