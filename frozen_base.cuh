// A base that is not trained: no master weights, no gradients or moments of it. What its quantizer names exists as packed
// codes alone (kernels/packed_weight.cuh), the rest in working precision. An adapter (methods/lora.cuh) is trained over it;
// QLoRA (Dettmers et al. 2023, arXiv 2305.14314) is this with NF4 and double quantization.
#pragma once
#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <vector>
#include "parameters.cuh"

// index into product_shapes, and the first row there
struct PartOfProduct {
    int product;
    int64_t row0;
};
inline PartOfProduct part_of_product(const Model& m, const ParamTensor& t) {
    std::string part = linear_part(t);
    int64_t q = (int64_t)m.NH() * m.HD(), kv = (int64_t)m.NKV() * m.HD();
    if (part == "q") return {0, 0};
    if (part == "k") return {0, q};
    if (part == "v") return {0, q + kv};
    if (part == "o") return {1, 0};
    if (part == "gate") return {2, 0};
    if (part == "up") return {2, m.F()};
    return {3, 0};
}

// Instead of model_allocate and model_quantize: no master weights; the products that `which` names as packed codes. The
// parts of a product share its codes, so all of them or none must be named.
inline void model_allocate_frozen(Model& m, const ModelConfig& config, const Quantizer& q, const std::string& which) {
    m.config = config;
    m.frozen = true;
    m.quantizer = q;
    m.tensors = model_tensors(config, &m.num_params);
    const std::array<ProductShape, 4> shapes = product_shapes(m);
    std::array<int, 4> named = {0, 0, 0, 0}, parts = {3, 1, 2, 1};
    size_t end = 0;
    for (ParamTensor& t : m.tensors) {
        t.packed = q.on() && quantizes(which, t);
        if (t.packed && t.layer == 0) named[part_of_product(m, t).product]++;
        if (t.packed)
            continue;  // the others keep their order, and those behind another one of their product stay there
        std::string part = t.kind == ParamKind::linear || t.kind == ParamKind::bias ? linear_part(t) : "";
        if (part != "k" && part != "v" && part != "up") end = (end + 31) / 32 * 32;
        t.offset = end;
        end += (size_t)t.count();
    }
    for (int p = 0; p < 4; p++)
        if (named[p] && named[p] != parts[p])
            fail_usage(
                "--quantize_layers %s: over a frozen base q, k and v are one matrix, and so are gate and up; name "
                "all parts of it or none",
                which.c_str());
    m.num_params = (end + 31) / 32 * 32;
    m.work.allocate(m.num_params, "working weights", "", m.dev);
    size_t codes = 0;
    for (int p = 0; p < 4; p++)
        if (named[p]) codes += product_codes_bytes(m, shapes[p]) * (size_t)m.L();
    m.base_codes.allocate(codes, "packed weights of the base", "", m.dev);
    when_allocated(m.dev, [=, &m] {
        m.w = model_views(m, m.work.data);
        m.base.assign(m.L(), {});
        size_t at = 0;
        for (int l = 0; l < m.L(); l++)
            for (int p = 0; p < 4; p++) {
                if (!named[p]) continue;
                m.base[l][p] = product_codes(m, shapes[p]);
                quantized_weight_place(m.base[l][p], m.base_codes.data + at);
                at += product_codes_bytes(m, shapes[p]);
            }
    });
    rope_init(m.rope, config.head_dim, config.rope_theta, config.rope_scaling == RopeScaling::llama3, config.factor,
              config.low_freq_factor, config.high_freq_factor, config.original_max_position_embeddings);
    model_online_rotations(m);
}

// A frozen base is read tensor by tensor: fp32, then codes, which are packed when a product has all of its own. Takes
// the memory of one product, while weights are loaded.
struct BaseLoading {
    std::vector<float> host;
    Buffer<float> fp32;    // [rows, cols] of the tensor
    Buffer<floatX> value;  // what its codes stand for
    Buffer<int8_t> codes;  // [rows, cols] of the product
    Buffer<Grid> grid;     // of the product's tensors, one after another; so are the two behind their scales
    Buffer<float> scale_floats;
    Buffer<uint8_t> scale_codes;
    Buffer<int64_t> counts;
    QuantizedSources sources;
    int64_t groups = 0, floats = 0;  // in grid, in scale_floats
};

// give_grid(qt), after fill: true if it gave qt its grid (quantized_tensor_set_grid), else the grid is measured
inline void base_fill(Model& m, const ParamTensor& t, const std::function<void(float*)>& fill,
                      const GiveGrid& give_grid) {
    if (!m.loading) m.loading = std::make_shared<BaseLoading>();
    BaseLoading& b = *m.loading;
    Device dev = m.dev;
    dev.arena = nullptr;  // not for long
    const char* what = "a tensor of the base while it is loaded";
    const int64_t n = t.count();
    b.fp32.reserve(n, what, "", dev);
    if (!dev.cuda) {
        fill(b.fp32.data);
    } else {
        b.host.resize(n);
        fill(b.host.data());
        copy_to_device(b.fp32.data, b.host.data(), n * sizeof(float), dev);
        device_synchronize(dev);
    }
    if (!t.packed) {
        convert_forward(m.work.data + t.offset, b.fp32.data, n, dev);
        device_synchronize(dev);
        return;
    }
    const Quantizer& q = m.quantizer;
    const PartOfProduct part = part_of_product(m, t);
    const ProductShape shape = product_shapes(m)[part.product];
    QuantizedTensor qt;
    qt.name = t.name, qt.rows = t.rows, qt.cols = t.cols;
    quantized_tensor_init(qt, q);
    if (part.row0 == 0) {  // a product begins: room for all of its tensors
        b.sources = QuantizedSources();
        b.groups = b.floats = 0;
        b.codes.reserve(shape.rows * shape.cols, what, "", dev);
        b.value.reserve(shape.rows * shape.cols, what, "", dev);
        const int64_t groups = shape.rows * shape.cols / qt.group + QW_PARTS;
        b.grid.reserve(groups, what, "", dev);
        b.scale_floats.reserve(groups + 2 * QW_PARTS, what, "", dev);
        b.scale_codes.reserve(groups, what, "", dev);
        b.counts.reserve(2, what, "", dev);
    }
    qt.master = b.fp32.data, qt.work = b.value.data;
    qt.codes = b.codes.data + part.row0 * t.cols, qt.grid = b.grid.data + b.groups;
    qt.state.tensor = b.scale_floats.data + b.floats;
    if (q.double_quant) qt.state.codes = b.scale_codes.data + b.groups, qt.state.absmax = qt.state.tensor + 1;
    b.groups += qt.groups;
    b.floats += scale_state_floats(qt, q);
    // the grid that came with the weights, that of the model's folder, or a measured one
    if (!(give_grid && give_grid(qt)) && m.base_grid) m.base_grid(qt);
    quantized_tensor_refresh(qt, q, ScaleMode::frozen, b.counts.data, dev);
    int i = 0;
    while (b.sources.part[i].codes) i++;
    quantized_source(b.sources.part[i], qt, q);
    if (part.row0 + t.rows == shape.rows) {
        QuantizedWeight& w = m.base[t.layer][part.product];
        if (!quantized_fit_scales(w, b.sources, dev))
            fail(
                "%s: the scales of its file are neither bf16 nor fp16 numbers, as --weights %s stores them; choose "
                "another quantizer, which measures its own",
                t.name.c_str(), quantizer_text(q).c_str());
        quantized_weight_pack(w, b.sources, dev);
    }
    device_synchronize(dev);
}

// an adapter on the linears that config.target names
inline void model_adapt(Model& m, const LoraConfig& config, uint64_t seed, bool training) {
    std::vector<LoraPlace> places;
    for (const ParamTensor& t : m.tensors) {
        if (!quantizes(config.target, t)) continue;
        PartOfProduct part = part_of_product(m, t);
        places.push_back({t.name, t.layer * 4 + part.product, part.row0, t.rows, t.cols});
    }
    lora_allocate(m.lora, config, places, m.L() * 4, seed, training, m.dev);
}
