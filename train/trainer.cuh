// A model in training: its gradients and what its optimizer keeps, the forward and backward of chosen tokens, and one
// optimizer step (straight-through rule, global norm, clipping, the update of the fp32 master, new quantized weights).
#pragma once
#include <string>
#include <vector>
#include "../kernels/global_norm.cuh"
#include "../methods/training_methods.cuh"
#include "../optimizers/optimizer.cuh"
#include "quant_statistics.cuh"
#include "scoring.cuh"

// What it counts, all that a trainer is besides its arrays
struct TrainerCounters {
    int64_t step = 0;     // optimizer steps done
    uint32_t passes = 0;  // forward passes of training, which draw their own dropout
    int64_t skipped = 0, skipped_in_a_row = 0;
};

struct Trainer : TrainerCounters {
    Model* model = nullptr;
    Buffer<float> grads;        // [num_params], of the model or, if it has an adapter, of that
    Buffer<float> unwanted;     // [C] where gradients of norms go that are not trained
    Buffer<float> scale_grads;  // of m.learned
    Optimizer optimizer;
    TrainingMethods methods;
    QuantStatistics statistics;
    double progress = 0.0;  // share of the run that is done with the present step
    Activations acts;
    ScoreMemory score;
    double max_grad_norm = 1.0;
    static constexpr int max_skipped_in_a_row = 5;
};

// The model's gradients go to this trainer: before its backward and its step, for a model may have several
inline void trainer_bind(Trainer& t) {
    Model& m = *t.model;
    model_bind_gradients(m, m.lora.on() ? nullptr : t.grads.data);
    if (m.lora.on()) {
        m.lora.grads = t.grads.data;
        m.norm.grad = t.unwanted.data;
        for (Layer& l : m.layers) l.ln1.grad = l.ln2.grad = l.q_norm.grad = l.k_norm.grad = t.unwanted.data;
    }
    for (LinearPart* p : quantized_parts(m)) {
        if (!p->learned.a) continue;
        p->learned.da = t.scale_grads.data + (p->learned.a - m.learned.data);
        p->learned.db = p->learned.da + p->groups;
    }
}

inline void trainer_init(Trainer& t, Model& m, int64_t micro_batch_tokens, bool checkpointing,
                         const OptimizerConfig& optimizer = OptimizerConfig(), TrainingMethods methods = {},
                         bool with_entropy = false) {
    t.model = &m;
    t.methods = std::move(methods);
    for (const auto& method : t.methods.list) {
        method->run.model = &m, method->run.tokens = micro_batch_tokens;
        method->attach();
    }
    const size_t n = m.lora.on() ? m.lora.num_params : m.num_params;
    t.grads.allocate(n, "gradients", "", m.dev);
    if (m.lora.on()) t.unwanted.allocate(std::max(m.C(), m.HD()), "gradients of norms", "", m.dev);
    t.scale_grads.allocate(m.learned.size, "gradients", "", m.dev);
    optimizer_init(t.optimizer, m, t.grads, t.scale_grads, optimizer);
    activations_allocate(t.acts, m, micro_batch_tokens,
                         checkpointing ? ActivationMode::recompute : ActivationMode::save_all);
    score_memory_allocate(t.score, m, micro_batch_tokens, true, with_entropy);
}

// The weights are those that training begins with
inline void methods_start(Trainer& t) {
    for (const auto& method : t.methods.list) method->start();
    if (!t.methods.list.empty()) model_refresh(*t.model);
}

// as if nothing had been trained yet
inline void trainer_reset(Trainer& t) {
    for (Buffer<float>* b : {&t.grads, &t.scale_grads}) set_zero(b->data, b->bytes(), t.model->dev);
    optimizer_reset(t.optimizer);
    t.step = t.skipped = t.skipped_in_a_row = 0;
    t.model->noise.step = 0;  // stochastic rounding's draws, as a resumed run has them
}

// ---------------------------------------------------------------------------------------------------------------------
// forward and backward

// The forward of score_backward: with dropout, if the model's adapter has any
inline void score_forward_training(Trainer& t, const Batch& b, const ScoredTokens& s, float inverse_temperature,
                                   Pass pass = Pass()) {
    pass.dropout = ++t.passes;
    score_forward(*t.model, t.acts, t.score, b, s, inverse_temperature, pass);
}

// From t.score.dhidden [R,C], the gradient of the hidden states that were scored; gradients of the parameters
// accumulate in t.grads
inline void score_hidden_backward(Trainer& t, int64_t R) {
    Model& m = *t.model;
    scatter_rows(t.acts.dnorm, t.score.dhidden.data, t.score.rows.data, R, t.acts.view.T, m.C(), m.dev);
    model_backward(m, t.acts);
}

// t.score.dhidden, and the head's gradient, from t.score.dlogp [R] = dL/dlogp of the tokens of the last
// score_forward_training; with_entropy: and from t.score.dentropy [R] = dL/dentropy
inline void score_head_backward(Trainer& t, int64_t R, float inverse_temperature, bool with_entropy = false) {
    NVTX_RANGE("lm_head_backward");
    Model& m = *t.model;
    ScoreMemory& memory = t.score;
    if (with_entropy && !memory.dentropy.data) fail("score_backward: the trainer has no room for entropy gradients");
    trainer_bind(t);
    lm_head_backward(memory.dhidden.data, m.head.grad, memory.dlogp.data, memory.lse.data,
                     {memory.hidden.data, m.head.work, memory.rows.data + R, R, m.C(), m.V(), inverse_temperature},
                     memory.head, m.dev,
                     with_entropy ? LmHeadEntropy{memory.entropy.data, memory.dentropy.data} : LmHeadEntropy());
}

// both
inline void score_backward(Trainer& t, int64_t R, float inverse_temperature, bool with_entropy = false) {
    score_head_backward(t, R, inverse_temperature, with_entropy);
    score_hidden_backward(t, R);
}

// the same with dL/dlogp from the host
inline void score_backward(Trainer& t, const std::vector<float>& dlogp, float inverse_temperature) {
    copy_to_device(t.score.dlogp.data, dlogp.data(), dlogp.size() * sizeof(float), t.model->dev);
    score_backward(t, (int64_t)dlogp.size(), inverse_temperature);
}

// ---------------------------------------------------------------------------------------------------------------------
// optimizer step

// What an objective's loss came to
struct StepLoss {
    double loss = 0.0;
    int64_t forward_tokens = 0;  // that the forward ran over: those of a shared prompt once
    bool abandoned = false;      // it was stopped half-way, and its gradients are incomplete
    bool empty = false;          // there was nothing to learn from: the step is skipped
};

// The loss of one step's batch at the weights as they are; its gradient too, if asked for, which is added to t.grads
typedef std::function<StepLoss(bool gradient)> LossFunction;

struct OptimizerResult {
    StepLoss loss;
    double grad_norm = 0.0;
    bool skipped = false;
    double flip_rate = 0.0,
           flip_total = 0.0;  // share of all quantized codes: changed now; different from those at load
};

inline double code_flip_rate(const Model& m, bool total) {
    int64_t flips = 0, codes = 0;
    for (const LinearPart* p : quantized_parts(m)) {
        flips += total ? p->flips_total : p->flips;
        codes += p->count();
    }
    return codes ? (double)flips / (double)codes : 0.0;
}

// use(part, its hook) for every hook of a weight
template <class Use>
void each_hook(Model& m, const Use& use) {
    for (const ParamTensor& p : m.tensors)
        if (LinearPart* part = part_of(m, p))
            for (const WeightHook& h : part->hooks) use(p, *part, h);
}

// After the masters have moved: what methods do then, new working weights, flips counted
inline void optimizer_moved(Trainer& t, OptimizerResult& r, double learning_rate, const Pass& pass) {
    Model& m = *t.model;
    StepInfo info = {learning_rate, t.step, t.progress};
    const auto& methods = t.methods.list;
    if (pass.quantized) {
        each_hook(m, [&](const ParamTensor& p, LinearPart& part, const WeightHook& h) {
            info.learning_rate = optimizer_rate(t.optimizer.config, param_group(p.kind), learning_rate);
            if (h.after_step) h.after_step(part, info);
        });
        info.learning_rate = learning_rate;
        for (const auto& method : methods) method->after_step(info);
    }
    m.noise.step = (uint32_t)t.step;
    model_refresh(m, pass.quantized);
    for (size_t i = 0; i < methods.size() && pass.quantized; i++)
        if (methods[i]->after_refresh(info)) model_refresh(m, true, true);
    if (pass.quantized) quant_statistics_update(t.statistics, m, learning_rate);
    r.flip_rate = code_flip_rate(m, false);
    r.flip_total = code_flip_rate(m, true);
}

// Consumes t.grads (zero afterwards), which those passes left that were as `pass`. A gradient or loss that is not finite
// skips the step and counts it; after max_skipped_in_a_row the run fails.
inline OptimizerResult optimizer_apply(Trainer& t, double learning_rate, double loss, const Pass& pass = Pass()) {
    Model& m = *t.model;
    OptimizerResult r;
    NVTX_RANGE("optimizer_step");
    trainer_bind(t);
    for (const ParamTensor& p : m.tensors) {
        LinearPart* part = part_of(m, p);
        if (part && part->grad) part_gradient(*part, part->grad, part_source(*part, m.dev), pass.quantized, m.dev);
    }
    r.grad_norm = sqrt(sum_of_squares(t.grads.data, (int64_t)t.grads.size, m.dev));
    if (!std::isfinite(r.grad_norm) || !std::isfinite(loss)) {
        r.skipped = true;
        t.skipped++;
        if (++t.skipped_in_a_row >= Trainer::max_skipped_in_a_row)
            fail(
                "loss or gradient not finite in %d steps in a row (step %lld: loss %g, gradient norm %g); lower "
                "--learning_rate or check the data",
                Trainer::max_skipped_in_a_row, (long long)t.step, loss, r.grad_norm);
    } else {
        t.skipped_in_a_row = 0;
        t.step++;
        double clip =
            t.max_grad_norm > 0.0 && r.grad_norm > t.max_grad_norm ? t.max_grad_norm / (r.grad_norm + 1e-6) : 1.0;
        if (pass.quantized)
            each_hook(m, [&](const ParamTensor&, LinearPart& part, const WeightHook& h) {
                if (h.before_update && part.grad) h.before_update(part, part.grad, {clip, t.progress});
            });
        optimizer_update(t.optimizer, {learning_rate, clip, t.step, pass.quantized});
        optimizer_moved(t, r, learning_rate, pass);
    }
    set_zero(t.grads.data, t.grads.bytes(), m.dev);
    set_zero(t.scale_grads.data, t.scale_grads.bytes(), m.dev);
    return r;
}

// One update by losses alone: no backward runs.
inline OptimizerResult optimizer_search(Trainer& t, double learning_rate, const LossFunction& loss, const Pass& pass) {
    OptimizerResult r;
    t.step++;
    t.optimizer.rule->search(t.optimizer, {learning_rate, 1.0, t.step, pass.quantized}, [&] {
        model_refresh(*t.model, pass.quantized);
        const StepLoss l = loss(false);
        r.loss.loss = l.loss;
        r.loss.forward_tokens += l.forward_tokens;
        return l.loss;
    });
    optimizer_moved(t, r, learning_rate, pass);
    return r;
}

// One update from a loss that is evaluated here, as often as the optimizer needs
inline OptimizerResult optimizer_step(Trainer& t, double learning_rate, const LossFunction& loss, const Pass& pass) {
    if (t.optimizer.rule->search) return optimizer_search(t, learning_rate, loss, pass);
    const StepLoss l = loss(true);
    OptimizerResult r;
    if (!l.abandoned && !l.empty) r = optimizer_apply(t, learning_rate, l.loss, pass);
    if (l.empty) r.skipped = true, t.skipped++;
    r.loss = l;
    return r;
}
