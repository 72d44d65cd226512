// Weights into a model: into its masters, or into a frozen base, which has none.
//
// A frozen base is not trained: no masters, no gradients or moments of it. What its quantizers name exists as packed
// codes alone (kernels/packed_weight.cuh), the rest in working precision. An adapter (adapter.cuh) is trained over it;
// QLoRA (Dettmers et al. 2023, arXiv 2305.14314) is this with NF4 and double quantization.
#pragma once
#include <algorithm>
#include "../runtime/parallel.h"
#include "quantize.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// a frozen base

// Instead of model_allocate and model_quantize. Embedding and head are no linears: they have working weights, with the
// numbers of their quantizers. what, hint: the line of the memory plan for the working weights
inline void model_allocate_frozen(Model& m, const ModelConfig& config, const QuantizerRules& rules,
                                  const char* what = "working weights", const char* hint = "") {
    rules_check(rules, weight_places(config));
    model_describe(m, config);
    m.frozen = true;
    m.weight_rules = rules;
    size_t end = 0;
    bool joined = false;  // to the tensor before, which lies in the array
    for (ParamTensor& t : m.tensors) {
        LinearPart* p = part_of(m, t);
        if (p) quantized_tensor_init(*p, quantizer_of(rules, t));
        t.packed = t.kind == ParamKind::linear && p->quantizer.on();
        if (!t.packed) {
            if (t.part == 0 || !joined) end = (end + 31) / 32 * 32;
            t.offset = end;
            if (p) p->offset = end;
            end += (size_t)t.count();
        }
        joined = !t.packed;
    }
    m.num_params = (end + 31) / 32 * 32;
    size_t bytes = 0;
    for (Layer& layer : m.layers)
        for (Linear* l : layer_linears(layer)) {
            linear_plan_packing(*l);
            l->frozen = true;
        }
    each_packable(m, [&](const Linear& l, const PackedRows& r) { bytes += packed_rows_bytes(l, r, m.dev); });
    m.work.allocate(m.num_params, what, hint, m.dev);
    m.packed_codes.allocate(bytes, "packed weights of the base", "", m.dev);
    when_allocated(m.dev, [&m] {
        model_bind_work(m, m.work.data);
        char* memory = m.packed_codes.data;
        each_packable(m, [&](const Linear& l, PackedRows& r) {
            r.codes = packed_rows_codes(l, r, m.dev);
            quantized_weight_place(r.codes, memory);
            memory += packed_rows_bytes(l, r, m.dev);
        });
    });
}

// true if it gave the tensor its grid (quantized_tensor_set_grid), else the grid is measured
typedef std::function<bool(QuantizedTensor&)> GiveGrid;

// A frozen base is read tensor by tensor: fp32, then codes, which are packed when a run of rows has all of its own.
// Takes the memory of one product, while weights are loaded.
struct BaseLoading {
    std::vector<float> host;
    Buffer<float> fp32;    // [rows, cols] of the tensor
    Buffer<floatX> value;  // what its codes stand for
    Buffer<int8_t> codes;  // [rows, cols] of the run
    Buffer<Grid> grid;     // of the run's tensors, one after another; so are the two behind their scales
    Buffer<float> scale_floats;
    Buffer<uint8_t> scale_codes;
    Buffer<int64_t> counts;
    QuantizedSources sources;
    int64_t groups = 0, floats = 0;  // in grid, in scale_floats
};

// t quantized, as a tensor with arrays in b; work: where its numbers go
inline QuantizedTensor base_tensor(BaseLoading& b, const LinearPart& p, floatX* work, int64_t row) {
    QuantizedTensor t = p;
    t.quantizer.scale_mode = ScaleMode::kept;  // quantized once
    t.master = b.fp32.data, t.work = work;
    t.codes = b.codes.data + row * p.cols, t.grid = b.grid.data + b.groups;
    t.counts = b.counts.data;
    t.state.tensor = b.scale_floats.data + b.floats;
    if (p.quantizer.double_quant) t.state.codes = b.scale_codes.data + b.groups, t.state.absmax = t.state.tensor + 1;
    b.groups += t.groups;
    b.floats += scale_state_floats(t);
    return t;
}

inline void base_reserve(BaseLoading& b, int64_t rows, int64_t cols, int64_t group, Device dev) {
    const char* what = "a tensor of the base while it is loaded";
    const int64_t groups = rows * cols / group + QW_PARTS;
    b.sources = QuantizedSources();
    b.groups = b.floats = 0;
    b.codes.reserve(rows * cols, what, "", dev);
    b.value.reserve(rows * cols, what, "", dev);
    b.grid.reserve(groups, what, "", dev);
    b.scale_floats.reserve(groups + 2 * QW_PARTS, what, "", dev);
    b.scale_codes.reserve(groups, what, "", dev);
    b.counts.reserve(2, what, "", dev);
}

// b.fp32 = the numbers that fill writes
inline void base_read(BaseLoading& b, int64_t n, const std::function<void(float*)>& fill, Device dev) {
    b.fp32.reserve(n, "a tensor of the base while it is loaded", "", dev);
    if (!dev.cuda) {
        fill(b.fp32.data);
        return;
    }
    b.host.resize(n);
    fill(b.host.data());
    copy_to_device(b.fp32.data, b.host.data(), n * sizeof(float), dev);
    device_synchronize(dev);
}

inline void base_fill(Model& m, const ParamTensor& t, const std::function<void(float*)>& fill,
                      const GiveGrid& give_grid) {
    if (!m.loading) m.loading = std::make_shared<BaseLoading>();
    BaseLoading& b = *m.loading;
    Device dev = m.dev;
    dev.arena = nullptr;  // not for long
    base_read(b, t.count(), fill, dev);
    LinearPart* p = part_of(m, t);
    if (!p || !p->quantizer.on()) {
        convert_forward(m.work.data + t.offset, b.fp32.data, t.count(), dev);
        device_synchronize(dev);
        return;
    }
    // the grid that came with the weights, that of the model's folder, or a measured one
    auto quantize = [&](QuantizedTensor& q) {
        if (!(give_grid && give_grid(q)) && m.base_grid) m.base_grid(q);
        quantized_tensor_refresh(q, b.fp32.data, QuantNoise(), dev);
    };
    if (!t.packed) {  // embedding, head
        base_reserve(b, p->rows, p->cols, p->group, dev);
        QuantizedTensor q = base_tensor(b, *p, m.work.data + t.offset, 0);
        quantize(q);
        device_synchronize(dev);
        return;
    }
    Linear& l = linear_of(m, t);
    auto run = std::find_if(l.packed.begin(), l.packed.end(), [&](const PackedRows& r) {
        return t.part >= r.first_part && t.part < r.first_part + r.parts;
    });
    if (t.part == run->first_part) base_reserve(b, run->rows, l.cols, p->group, dev);
    QuantizedTensor q = base_tensor(b, *p, b.value.data, p->row0 - run->row0);
    quantize(q);
    b.sources.part[t.part - run->first_part] = quantized_source(q);
    if (t.part + 1 == run->first_part + run->parts) {
        if (!quantized_fit_scales(run->codes, b.sources, dev))
            fail(
                "%s: the scales of its file are neither bf16 nor fp16 numbers, as --weights %s stores them; choose "
                "another quantizer, which measures its own",
                t.name.c_str(), quantizer_text(p->quantizer).c_str());
        quantized_weight_pack(run->codes, b.sources, dev);
    }
    device_synchronize(dev);
}

// ---------------------------------------------------------------------------------------------------------------------
// any model

// Gives parameter t its values: fill writes them into host memory, from where they go to wherever the weights are
inline void model_fill(Model& m, const ParamTensor& t, const std::function<void(float*)>& fill,
                       const GiveGrid& give_grid = nullptr) {
    if (m.frozen) {
        base_fill(m, t, fill, give_grid);
        return;
    }
    float* p = m.master.data + t.offset;
    if (!m.dev.cuda) {
        fill(p);
        return;
    }
    std::vector<float> host(t.count());
    fill(host.data());
    copy_to_device(p, host.data(), host.size() * sizeof(float), m.dev);
    device_synchronize(m.dev);  // host goes
}

// Normal(0, 0.02) by Box-Muller, the two projections into the residual stream scaled by 1/sqrt(2L) (GPT-2), norms 1
inline void model_init_random(Model& m, uint64_t seed) {
    for (size_t i = 0; i < m.tensors.size(); i++) {
        const ParamTensor& t = m.tensors[i];
        const bool residual = t.kind == ParamKind::linear && (t.product == Product::o || t.product == Product::down);
        float scale = 0.02f * (residual ? 1.0f / sqrtf(2.0f * (float)m.L()) : 1.0f);
        model_fill(m, t, [&](float* p) {
#pragma omp parallel for schedule(static) if (worth_threads(30 * t.count()))
            for (int64_t j = 0; j < t.count(); j++) {
                p[j] = t.kind == ParamKind::norm ? 1.0f : 0.0f;
                if (!is_weight(t)) continue;
                Philox4 r = rng_bits(seed, RNG_INIT, (uint32_t)i, (uint32_t)j, (uint32_t)(j >> 32));
                float u = 1.0f - uniform01(r.x[0]), angle = 6.283185307f * uniform01(r.x[1]);
                p[j] = scale * sqrtf(-2.0f * logf(u)) * cosf(angle);
            }
        });
    }
}
