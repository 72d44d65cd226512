// Iterative freezing of oscillating codes (Nagel, Fournarakis, Bondarenko, Blankevoort 2022, arXiv 2203.11086, section 4.3):
// a weight whose code goes to and fro more often than a threshold is frozen, for good, at its code's running mean.
// What oscillates and the formulas: kernels/oscillation.cuh. The threshold falls from `from` to `to` over the run by half
// a cosine; momentum m = 0.01 and 0.04 to 0.01 are the paper's. With m = 0.01 one turn gives f = 0.01, so that a
// threshold below m freezes at the first.
//
// Scales must stay or be trained. A scale that is measured at each step would be measured on the frozen weights, too: a
// frozen largest weight lies on its code's value, which is below the largest of the range under rule amax, and the
// scale would shrink by 1/15 at each step.
//
// State: 10 bytes a weight. It also counts what oscillates (from=1:to=1 does only that).
#pragma once
#include "../kernels/oscillation.cuh"
#include "dampen.cuh"
#include "training_method.cuh"

struct FreezeMethod : TrainingMethod {
    double from, to, momentum;
    Buffer<int8_t> code, direction;  // [weights], the quantized tensors one after another
    Buffer<float> frequency, ema;
    Buffer<int64_t> counts;  // [2]
    int64_t weights = 0;

    explicit FreezeMethod(const Settings& s)
        : from(s.number("from")), to(s.number("to")), momentum(s.number("momentum")) {}

    void attach() override {
        Model& m = *run.model;
        method_needs_masters(m, "freeze");
        method_needs_own_basis(m, "freeze");
        method_needs_integers(m, "freeze");
        for (const LinearPart* p : quantized_parts(m)) {
            if (p->quantizer.scale_mode == ScaleMode::dynamic)
                fail_usage(
                    "--methods freeze: a scale that is measured at each step would follow what is frozen; add "
                    "--qat_scale static or learned");
            if (p->quantizer.stochastic)
                fail_usage("--methods freeze: codes that are drawn always oscillate; leave --rounding stochastic out");
            weights += p->count();
        }
        for (Buffer<int8_t>* b : {&code, &direction}) b->allocate((size_t)weights, "oscillation of codes", "", m.dev);
        for (Buffer<float>* b : {&frequency, &ema}) b->allocate((size_t)weights, "oscillation of codes", "", m.dev);
        counts.allocate(2, "oscillation of codes", "", m.dev);
    }

    // use(part, its arrays)
    template <class Use>
    void each(const Use& use) const {
        int64_t at = 0;
        for (LinearPart* p : quantized_parts(*run.model)) {
            use(*p, Oscillation{code.data + at, direction.data + at, frequency.data + at, ema.data + at});
            at += p->count();
        }
    }

    void start() override {
        each([this](LinearPart& p, const Oscillation& o) {
            oscillation_start(o, p.master, p.grid, quantized_tensor_groups(p), p.quantizer.spec, run.model->dev);
        });
    }

    void after_step(const StepInfo&) override {
        each([this](LinearPart& p, const Oscillation& o) {
            oscillation_hold(o, p.master, p.grid, quantized_tensor_groups(p), p.quantizer.spec, run.model->dev);
        });
    }

    // the working weights and codes of what is frozen are set with it, so that none has to be made again
    bool after_refresh(const StepInfo& step) override {
        const OscillationRule rule = {(float)momentum, (float)(from + (to - from) * cosine_rise(step.progress))};
        each([&](LinearPart& p, const Oscillation& o) {
            oscillation_track(o, p.master, p.work, p.codes, p.grid, quantized_tensor_groups(p), p.quantizer.spec, rule,
                              run.model->dev);
        });
        return false;
    }

    std::vector<NamedArray> arrays() override {
        std::vector<NamedArray> list;
        add_array(list, "freeze.code", code);
        add_array(list, "freeze.direction", direction);
        add_array(list, "freeze.frequency", frequency);
        add_array(list, "freeze.ema", ema);
        return list;
    }

    void metrics(nlohmann::ordered_json& j) const override {
        const Device dev = run.model->dev;
        int64_t n[2];
        set_zero(counts.data, counts.bytes(), dev);
        oscillation_count(counts.data, {code.data, direction.data, frequency.data, ema.data}, weights, dev);
        copy_to_host(n, counts.data, sizeof(n), dev);
        j["freeze/oscillating"] = (double)n[0] / (double)weights;
        j["freeze/frozen"] = (double)n[1] / (double)weights;
    }
};

inline const MethodRow freeze_row = {
    "freeze",
    "codes that oscillate are frozen (Nagel et al. 2022, arXiv 2203.11086)",
    {{"from", "0.04", "[0, 1]", "frequency of oscillation beyond which a weight is frozen, at the run's beginning"},
     {"to", "0.01", "[0, 1]", "the same at its end"},
     {"momentum", "0.01", "(0, 1]", "of the running means of frequency and code"}},
    {{"roste", "it freezes codes of weights in their own basis, and that one rotates them"}},
    [](const Settings& s) -> std::unique_ptr<TrainingMethod> { return std::make_unique<FreezeMethod>(s); }};
