// Oscillation dampening (Nagel, Fournarakis, Bondarenko, Blankevoort 2022, arXiv 2203.11086, section 4.2): weights are kept
// from the edges of their cells, where they would cross to and fro, by a term of the loss
//   lambda_t ||Q(w) - clip(w, range of the grid)||^2,   of which Q(w) gets no gradient
// lambda_t rises from 0 to lambda over the run by half a cosine: the paper anneals it so, for strong dampening from the start
// keeps weights from where they have to go. The gradient, 2 lambda_t (clip(w) - Q(w)), joins that of the task behind
// its clipping, as weight decay does.
//
// Not CAGE: that pulls by a share of the distance past the optimizer, this is a gradient, which Adam scales.
#pragma once
#include "../kernels/oscillation.cuh"
#include "training_method.cuh"

// from 0 to 1 by half a cosine
inline double cosine_rise(double progress) { return 0.5 - 0.5 * std::cos(3.14159265358979323846 * progress); }

struct DampenMethod : TrainingMethod {
    double lambda, now = 0.0;

    explicit DampenMethod(const Settings& s) : lambda(s.number("lambda")) {}

    void attach() override {
        Model& m = *run.model;
        method_needs_masters(m, "dampen");
        method_needs_integers(m, "dampen");
        WeightHook hook;
        hook.before_update = [this, dev = m.dev](LinearPart& p, float* dw, const UpdateMoment& moment) {
            now = lambda * cosine_rise(moment.progress);
            part_in_basis(p, dw, dev, [&](const float* w) {
                dampening(dw, w, p.work, p.grid, quantized_tensor_groups(p), p.quantizer.spec,
                          (float)(2.0 * now / moment.grad_scale), dev);
            });
        };
        for (LinearPart* p : quantized_parts(m)) p->hooks.push_back(hook);
    }

    void metrics(nlohmann::ordered_json& j) const override { j["dampen/lambda"] = now; }
};

inline const MethodRow dampen_row = {
    "dampen",
    "weights are drawn to the middles of their cells (Nagel et al. 2022, arXiv 2203.11086)",
    {{"lambda", "0.01", "[0, 1000000]", "weight of the squared distances at the end of the run, from 0 by half a cosine"}},
    {},
    [](const Settings& s) -> std::unique_ptr<TrainingMethod> { return std::make_unique<DampenMethod>(s); }};
