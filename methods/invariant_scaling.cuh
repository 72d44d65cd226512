// Update-aware quantization by invariant scaling: QuRL (Li, Elangovan, Dong, Panda, Khailany 2026, arXiv 2602.13953). RL
// moves weights by some 1e-7 a step, far less than a cell of a quantizer's grid, so that a quantized sampler hardly
// follows its trainer. Once, before training, for the products that read a norm (q,k,v; gate,up):
//   norm' = s norm,  W' = W / s          s > 1; W' (norm' x) = W (norm x): the function stays
// Adam's step does not depend on the size of the gradient: W' moves as far as W would have, over a grid whose cells are s
// times smaller, since scales follow the weights. Codes flip s times as readily, and a step counts s times in the function.
//
// Inferred, since no code is public and little of the text was at hand: that all these products have the same s, the same
// for every channel, and its default of 1.5. o and down read no norm and stay as they are; so does the bias of q,k,v, which
// is added behind the product.
//
// What follows from it: gradients of the norms are s times smaller, those of W' s times larger, and with them the global
// norm that is clipped. In bf16 norm' is rounded once more unless s is a power of two, so that logits move by rounding. What
// is saved is an ordinary model of the same function, and nothing is undone: a run that begins with it and this method
// scales again, one that is resumed does not.
//
// The grid of scales that are kept is divided by s where the format has integer codes, so that codes stay (a GPTQ start);
// other formats are measured anew. Learned scales, which have moments of their own, are refused.
#pragma once
#include <vector>
#include "smoothquant.cuh"
#include "training_method.cuh"

struct InvariantScalingMethod : TrainingMethod {
    float scale;

    explicit InvariantScalingMethod(const Settings& s) : scale((float)s.number("scale")) {}

    void attach() override {
        Model& m = *run.model;
        if (!run.quantized_sampler || m.lora.on()) method_needs_masters(m, "uaq");
        for (const LinearPart* p : quantized_parts(m))
            if (p->quantizer.scale_mode == ScaleMode::learned)
                fail_usage(
                    "--methods uaq divides weights, and --qat_scale learned has scales of what they were; take "
                    "--qat_scale dynamic");
    }

    // of a part whose master has been divided
    void divide_grid(LinearPart& p) const {
        const Quantizer& q = p.quantizer;
        if (!q.on() || q.scale_mode != ScaleMode::kept || !p.measured) return;
        if (!quant_is_integer(q.spec)) {
            p.measured = p.foreign = false;
            return;
        }
        const Device dev = run.model->dev;
        std::vector<Grid> grid(p.groups);
        copy_to_host(grid.data(), p.grid, grid.size() * sizeof(Grid), dev);
        for (Grid& g : grid) g.scale /= scale;
        copy_to_device(p.grid, grid.data(), grid.size() * sizeof(Grid), dev);
        device_synchronize(dev);  // grid goes
        p.foreign = true, p.fit_known = false;
    }

    void start() override {
        Model& m = *run.model;
        std::vector<float> copy;
        const std::vector<float> s(m.C(), scale);
        for (int l = 0; l < m.L(); l++) {
            host_masters(m, l, copy, [&](const HostMasters& w) {
                const LayerMasters& layer = w.layers[l];
                divide_columns(layer.weight[(int)Product::qkv], m.QKV(), m.C(), s.data());
                divide_columns(layer.weight[(int)Product::gate_up], 2 * m.F(), m.C(), s.data());
                for (float* norm : {layer.ln1, layer.ln2}) scale_columns(norm, 1, m.C(), s.data());
            });
            for (Linear* linear : {&m.layers[l].qkv, &m.layers[l].gate_up})
                for (LinearPart& p : linear->parts) divide_grid(p);
        }
    }
};

inline const MethodRow invariant_scaling_row = {
    "uaq",
    "weights behind a norm divided and the norm multiplied, so that updates count more against the grid (QuRL, arXiv "
    "2602.13953)",
    {{"scale", "1.5", "[1, 1000]", "of the norms; weights are divided by it"}},
    {},
    [](const Settings& s) -> std::unique_ptr<TrainingMethod> { return std::make_unique<InvariantScalingMethod>(s); }};
