// A method of quantized training: what a paper does to weights, gradients and grids while a model learns, whatever it
// learns from. It acts at fixed moments, and knows neither the loop nor the objective.
//
//   attach        the model has its quantizers and its adapter, its weights are not there yet: refuse what cannot be,
//                 plan memory (Buffer::allocate), add hooks to weights (WeightHook of model/linear.cuh)
//   start         once, before the first step, with the weights loaded; not when a run is resumed
//   resumed       instead of start: arrays() hold what was saved
//   hooks         of each weight: at its gradient, before its update, after its step
//   after_step    when all weights have moved, before new working weights are made of them
//   after_refresh then; true: it has changed what they are made of, and they are made once more
// Steps in full precision (a cold start) pass without any of them. Ranks do the same in the same order: what a method
// decides may depend on weights, on gradients and on what start was given, which are the same on all.
//
// What a method knows of the steps before lies in arrays(), or a resumed run would not be the run that it resumes.
//
// A new method is
//   1. a file NAME.cuh here: the equations with their source, the class, and its row
//   2. its #include and its line in training_methods() of training_methods.cuh
// and no more: the flag, its help, checkpoints and metrics come from what the row and the class say.
#pragma once
#include <memory>
#include <string>
#include <vector>
#include "../model.cuh"
#include "../runtime/json.h"
#include "../runtime/named_array.h"
#include "../runtime/settings.h"

// What a method may know of its run. Set before attach; acts and sample before start or resumed
struct MethodContext {
    Model* model = nullptr;
    int64_t tokens = 0;              // most of a micro-batch
    bool basis_given = false;        // by --hadamard, and not by the folder that the model comes from
    bool quantized_sampler = false;  // --rollout_weights
    Activations* acts = nullptr;     // scratch between steps: training's
    std::vector<Batch> sample;       // some of the run's training text, in micro-batches that fit acts
};

struct TrainingMethod {
    MethodContext run;
    virtual ~TrainingMethod() = default;
    virtual void attach() = 0;
    virtual void start() {}
    virtual void resumed() {}
    virtual void after_step(const StepInfo&) {}
    virtual bool after_refresh(const StepInfo&) { return false; }
    virtual std::vector<NamedArray> arrays() { return {}; }
    virtual void metrics(nlohmann::ordered_json&) const {}
};

// Two methods that cannot be together, and why. NAME of the other
struct MethodConflict {
    const char *other, *why;
};

struct MethodRow {
    const char *name, *help;
    std::vector<SettingRow> settings;
    std::vector<MethodConflict> conflicts;  // said by one of the two
    std::unique_ptr<TrainingMethod> (*make)(const Settings&);
};

// ---------------------------------------------------------------------------------------------------------------------
// refusals that several share

// quantized weights with masters of their own, or `name` has nothing to act on
inline void method_needs_masters(const Model& m, const char* name) {
    if (m.lora.on())
        fail_usage("--methods %s acts on trained weights, those under an adapter stay as they are; leave %s",
                   name, m.lora.inside() ? "--lora_inside_quantizer out" : "the adapter out");
    if (quantized_parts(m).empty())
        fail_usage("--methods %s: no weight is quantized; add --weights, such as int4:g32:sym", name);
}

// ... that are quantized in the basis of their masters
inline void method_needs_own_basis(const Model& m, const char* name) {
    const std::string rotated = rotated_text(rotated_linears(m));
    if (rotated != "none")
        fail_usage("--methods %s acts on weights where they are quantized, and --hadamard %s rotates them there; take "
                   "--hadamard none", name, rotated.c_str());
}

// ... and in integer formats, whose codes lie in the order of what they stand for
inline void method_needs_integers(const Model& m, const char* name) {
    for (const LinearPart* p : quantized_parts(m))
        if (!quant_is_integer(p->quantizer.spec))
            fail_usage("--methods %s: --weights %s has no integer codes; use an int format", name,
                       quantizer_text(p->quantizer).c_str());
}
