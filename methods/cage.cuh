// CAGE: curvature-aware gradient estimation (Tabesh, Safaryan, Alistarh 2025, arXiv 2510.18784). A quantized model is
// sought where no step of the loss and none towards the grid would help, grad f(x) + lambda (x - Q(x)) = 0. With
// e_t = x_t - Q(x_t), G_t the straight-through gradient at Q(x_t):
//   decoupled   x_t+1 = A(x_t, G_t) - eta_t lambda_t e_t          A: any optimizer's step, eta_t its rate
//   coupled     x_t+1 = A(x_t, G_t + lambda_t e_t)                Adam's second moment then scales the pull
//   lambda_t    0 in the first `silence` of the run, then linear up to lambda at its end
// The paper's settings are decoupled, lambda 10, silence 0.8. Coupled, the pull joins the gradient behind its clipping, as
// in an optimizer that does both. Decoupled, e_t is taken with x_t moved by A and Q(x_t) of before, which differs from
// the above by eta_t lambda_t (A(x_t) - x_t), a pull of the step itself; so no copy of x_t is kept.
//
// Under RL: what is pulled to its cell's middle takes longer to leave it, so that codes flip less (quant/code_flip_rate).
#pragma once
#include "../kernels/grid_pull.cuh"
#include "training_method.cuh"

// lambda_t / lambda; progress: share of the run that is done, the present step included
inline double cage_ramp(double progress, double silence) {
    if (progress <= silence) return 0.0;
    return std::min((progress - silence) / (1.0 - silence), 1.0);
}

struct CageMethod : TrainingMethod {
    double lambda, silence;
    bool coupled;
    double now = 0.0;  // lambda_t of the last step

    explicit CageMethod(const Settings& s)
        : lambda(s.number("lambda")), silence(s.number("silence")), coupled(s.is("form", "coupled")) {}

    void attach() override {
        Model& m = *run.model;
        method_needs_masters(m, "cage");
        const Device dev = m.dev;
        WeightHook hook;
        if (coupled)
            hook.before_update = [this, dev](LinearPart& p, float* dw, const UpdateMoment& moment) {
                now = lambda * cage_ramp(moment.progress, silence);
                if (now == 0.0) return;
                part_value(p, dev, [&](const auto* q) {
                    grid_pull_add(dw, p.master, q, p.count(), (float)(now / moment.grad_scale), dev);
                });
            };
        else
            hook.after_step = [this, dev](LinearPart& p, const StepInfo& step) {
                now = lambda * cage_ramp(step.progress, silence);
                if (now == 0.0) return;
                part_value(p, dev, [&](const auto* q) {
                    grid_pull(p.master, q, p.count(), (float)std::min(step.learning_rate * now, 1.0), dev);
                });
            };
        for (LinearPart* p : quantized_parts(m)) p->hooks.push_back(hook);
    }

    void metrics(nlohmann::ordered_json& j) const override { j["cage/lambda"] = now; }
};

inline const MethodRow cage_row = {
    "cage",
    "pull of the weights towards their grid late in training (CAGE, arXiv 2510.18784)",
    {{"lambda", "10", "[0, 1000000]", "strength of the pull at the end of the run, times the learning rate"},
     {"silence", "0.8", "[0, 1)", "share of the run before it begins"},
     {"form", "decoupled", "decoupled|coupled", "behind the optimizer's step, or in its gradient"}},
    {},
    [](const Settings& s) -> std::unique_ptr<TrainingMethod> { return std::make_unique<CageMethod>(s); }};
