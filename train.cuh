// What supervised fine-tuning and GRPO share: log-probabilities of chosen tokens forward and backward, and one
// optimizer step (straight-through rule, global norm, clipping, AdamW on the fp32 master, new quantized weights).
#pragma once
#include <string>
#include <vector>
#include "kernels/adamw.cuh"
#include "kernels/global_norm.cuh"
#include "model.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// learning rate

enum class Schedule { linear, cosine, constant };

// step counts from 0; warm-up is linear from 0, as in transformers
inline double schedule_rate(Schedule s, double peak, int64_t step, int64_t warmup, int64_t total) {
    if (step < warmup) return peak * (double)step / (double)(warmup > 1 ? warmup : 1);
    double left = total > warmup ? (double)(total - step) / (double)(total - warmup) : 1.0;
    left = left < 0.0 ? 0.0 : left;
    if (s == Schedule::linear) return peak * left;
    if (s == Schedule::cosine) return peak * 0.5 * (1.0 + cos(3.14159265358979323846 * (1.0 - left)));
    return peak;
}

// ---------------------------------------------------------------------------------------------------------------------
// training state

struct Trainer {
    Model* model = nullptr;
    Buffer<float> grads, moment1, moment2;  // [num_params]
    Weights<float> g;                       // views of grads
    Activations acts;
    LmHeadScratch head;
    Buffer<floatX> hidden, dhidden;  // [rows, C] of the scored tokens
    AdamWConfig adam;
    double max_grad_norm = 1.0;
    int64_t step = 0;  // optimizer steps done
    int64_t skipped = 0, skipped_in_a_row = 0;
    static constexpr int max_skipped_in_a_row = 5;
};

inline void trainer_init(Trainer& t, Model& m, int64_t micro_batch_tokens, bool checkpointing) {
    t.model = &m;
    t.grads.allocate(m.num_params, "gradients");
    t.moment1.allocate(m.num_params, "AdamW's first moments");
    t.moment2.allocate(m.num_params, "AdamW's second moments");
    t.g = model_views(m, t.grads.data);
    for (QuantizedTensor& q : m.quantized) q.grad = t.grads.data + (q.master - m.master.data);
    activations_allocate(t.acts, m, micro_batch_tokens,
                         checkpointing ? ActivationMode::recompute : ActivationMode::save_all);
}

// ---------------------------------------------------------------------------------------------------------------------
// log-probabilities

// Which rows of a batch are scored: the hidden state of rows[i] predicts targets[i]
struct ScoredTokens {
    std::vector<int> rows, targets;         // [R]
    std::vector<float> logp, lse, entropy;  // [R] filled by the forward
    int64_t size() const { return (int64_t)rows.size(); }
};

// score tokens first..n-1 of the sequence that was just added to the batch
inline void score_last_sequence(ScoredTokens& s, const Batch& b, int first) {
    int start = b.starts[b.starts.size() - 2], end = b.starts.back();
    for (int i = start + (first > 1 ? first : 1); i < end; i++) {
        s.rows.push_back(i - 1);
        s.targets.push_back(b.tokens[i]);
    }
}

inline void score_forward(Model& m, Activations& a, LmHeadScratch& head, Buffer<floatX>& hidden, const Batch& b,
                          ScoredTokens& s, float inverse_temperature) {
    model_forward(m, a, b);
    int64_t R = s.size(), C = m.C();
    hidden.reserve(R * C, "hidden states of the scored tokens");
    for (int64_t i = 0; i < R; i++) memcpy(hidden.data + i * C, a.hidden + (int64_t)s.rows[i] * C, C * sizeof(floatX));
    s.logp.resize(R), s.lse.resize(R), s.entropy.resize(R);
    lm_head_forward_cpu(s.logp.data(), s.lse.data(), s.entropy.data(), hidden.data, m.w.head, s.targets.data(), R, C,
                        m.V(), inverse_temperature, head);
}

// dlogp [R] = dL/dlogp of each scored token; gradients of the parameters accumulate in t.grads
inline void score_backward(Trainer& t, const Batch& b, const ScoredTokens& s, const std::vector<float>& dlogp,
                           float inverse_temperature) {
    Model& m = *t.model;
    int64_t R = s.size(), C = m.C();
    t.dhidden.reserve(R * C, "gradients of the scored tokens");
    lm_head_backward_cpu(t.dhidden.data, t.g.head, dlogp.data(), t.hidden.data, m.w.head, s.targets.data(),
                         s.lse.data(), R, C, m.V(), inverse_temperature, t.head);
    memset((void*)t.acts.dnorm, 0, b.T() * C * sizeof(floatX));
    for (int64_t i = 0; i < R; i++)
        memcpy(t.acts.dnorm + (int64_t)s.rows[i] * C, t.dhidden.data + i * C, C * sizeof(floatX));
    model_backward(m, t.acts, b, t.g);
}

// ---------------------------------------------------------------------------------------------------------------------
// optimizer step

struct OptimizerResult {
    double grad_norm = 0.0;
    bool skipped = false;
    double flip_rate = 0.0,
           flip_total = 0.0;  // share of all quantized codes: changed now; different from those at load
};

inline double code_flip_rate(const Model& m, bool total) {
    int64_t flips = 0, codes = 0;
    for (const QuantizedTensor& q : m.quantized) {
        flips += total ? q.flips_total : q.flips;
        codes += q.rows * q.cols;
    }
    return codes ? (double)flips / (double)codes : 0.0;
}

// Consumes t.grads (zero afterwards). A gradient or loss that is not finite skips the step and counts it; after
// max_skipped_in_a_row the run fails.
inline OptimizerResult optimizer_step(Trainer& t, double learning_rate, double loss) {
    Model& m = *t.model;
    OptimizerResult r;
    for (QuantizedTensor& q : m.quantized) quantized_tensor_backward(q, m.quantizer, m.ste);
    r.grad_norm = sqrt(sum_of_squares_cpu(t.grads.data, (int64_t)m.num_params));
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
        AdamWConfig c = t.adam;
        c.learning_rate = (float)learning_rate;
        for (const ParamTensor& p : m.tensors) {
            AdamWConfig tensor = c;
            if (p.kind == ParamKind::norm || p.kind == ParamKind::bias) tensor.weight_decay = 0.0f;
            adamw_update_cpu(m.master.data + p.offset, t.moment1.data + p.offset, t.moment2.data + p.offset,
                             t.grads.data + p.offset, p.count(), (float)clip, tensor, t.step);
        }
        model_refresh(m);
        r.flip_rate = code_flip_rate(m, false);
        r.flip_total = code_flip_rate(m, true);
    }
    memset(t.grads.data, 0, t.grads.bytes());
    return r;
}
