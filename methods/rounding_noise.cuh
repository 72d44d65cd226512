// Full-precision training with the noise of a grid: the control of what rounding does to learning, apart from what it
// does to the model that learning begins with. The model begins as it is, with weights W_0; its changes are those that it
// would have on a grid that stays where the first weights put it:
//   forward and backward at   V_t = W_0 + Q(W_t) - Q(W_0)         W_t: trained by the gradient at V_t, W_t+1 = A(W_t, G(V_t))
// A change dw of a weight that lies anywhere in its cell alike moves V by dw in the mean, with variance |dw| (cell - |dw|):
// a signal that is never lost, under noise that falls with the cells a weight crosses. Training on the grid itself,
// --weights with --qat_scale static, is this and the error W_0 - Q(W_0) of the start.
//
// The model has no quantizer: what is saved is V, in full precision, and evaluates as it was trained. W is state of the
// run, as are W_0 and the grid. Linears only, as --weights quantizes them.
//
// The trap: between steps the master is V. The optimizer has to find W there, so it is put back just before the update.
#pragma once
#include "../kernels/grid_pull.cuh"
#include "training_method.cuh"

struct RoundingNoiseMethod : TrainingMethod {
    Quantizer quantizer;
    Buffer<float> latent, begin;            // [weights] W_t, W_0, the linears one after another
    Buffer<floatX> rounded_begin, rounded;  // [weights] Q(W_0); [largest] Q(W_t) of one tensor
    Buffer<Grid> grids;
    Buffer<int64_t> counts;  // [2] of the refresh, which nobody reads
    std::vector<QuantizedTensor> tensors;
    std::vector<LinearPart*> parts;

    explicit RoundingNoiseMethod(const Settings& s)
        : quantizer(
              quantizer_parse("int" + s.word("bits") + ":" + s.word("scope") + ":" + s.word("range"), "weights")) {
        quantizer.scale_mode = ScaleMode::kept;
    }

    void attach() override {
        Model& m = *run.model;
        if (m.lora.on()) fail_usage("--methods rounding_noise acts on trained weights; leave the adapter out");
        if (!quantized_parts(m).empty())
            fail_usage("--methods rounding_noise adds the noise of a grid to full precision; leave --weights out");
        int64_t weights = 0, largest = 0, groups = 0;
        for (const ParamTensor& t : m.tensors) {
            if (t.kind != ParamKind::linear) continue;
            LinearPart* p = part_of(m, t);
            QuantizedTensor q;
            q.name = p->name, q.rows = p->rows, q.cols = p->cols, q.offset = (size_t)weights;
            quantized_tensor_init(q, quantizer, "methods rounding_noise");
            weights += q.count(), largest = std::max(largest, q.count());
            groups += q.groups;
            tensors.push_back(q), parts.push_back(p);
        }
        const char* what = "rounding noise";
        latent.allocate((size_t)weights, what, "", m.dev), begin.allocate((size_t)weights, what, "", m.dev);
        rounded_begin.allocate((size_t)weights, what, "", m.dev), rounded.allocate((size_t)largest, what, "", m.dev);
        grids.allocate((size_t)groups, what, "", m.dev), counts.allocate(2, what, "", m.dev);
        for (size_t i = 0; i < parts.size(); i++) {
            WeightHook hook;
            hook.before_update = [this, i](LinearPart& p, float*, const UpdateMoment&) {
                copy_on_device(p.master, latent.data + tensors[i].offset, p.count() * sizeof(float), run.model->dev);
            };
            hook.after_step = [this, i](LinearPart& p, const StepInfo&) { moved(i, p); };
            parts[i]->hooks.push_back(hook);
        }
    }

    void start() override {
        for (size_t i = 0; i < parts.size(); i++)
            for (Buffer<float>* b : {&latent, &begin})
                copy_on_device(b->data + tensors[i].offset, parts[i]->master, parts[i]->count() * sizeof(float),
                               run.model->dev);
        round_begin();
    }

    // the same grid again: it is measured on the same weights
    void resumed() override { round_begin(); }

    std::vector<NamedArray> arrays() override {
        std::vector<NamedArray> list;
        add_array(list, "rounding_noise.latent", latent);
        add_array(list, "rounding_noise.begin", begin);
        return list;
    }

    void round_begin() {
        const Device dev = run.model->dev;
        int64_t group = 0;
        for (QuantizedTensor& q : tensors) {
            q.grid = grids.data + group, q.counts = counts.data;
            group += q.groups;
            q.work = rounded_begin.data + q.offset;
            quantized_tensor_refresh(q, begin.data + q.offset, QuantNoise(), dev);
            q.work = rounded.data;
        }
    }

    // p.master: W_t as the optimizer left it -> V_t
    void moved(size_t i, LinearPart& p) {
        const Device dev = run.model->dev;
        const int64_t n = p.count(), at = (int64_t)tensors[i].offset;
        copy_on_device(latent.data + at, p.master, n * sizeof(float), dev);
        quantized_tensor_refresh(tensors[i], latent.data + at, QuantNoise(), dev);
        grid_pull(p.master, rounded.data, n, 1.0f, dev);
        grid_pull_add(p.master, begin.data + at, rounded_begin.data + at, n, 1.0f, dev);
    }
};

inline const MethodRow rounding_noise_row = {
    "rounding_noise",
    "full precision, whose weights change as on a grid: the control of training on one",
    {{"bits", "4", "8|6|5|4|3|2", "of the grid"},
     {"scope", "tensor", "tensor|channel|g32|g64|g128", "what shares a scale"},
     {"range", "sym", "sym|asym", "of the codes"}},
    {},
    [](const Settings& s) -> std::unique_ptr<TrainingMethod> { return std::make_unique<RoundingNoiseMethod>(s); }};
