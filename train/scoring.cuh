// Log-probabilities of chosen tokens of a batch under a model: what training differentiates and evaluation adds up.
#pragma once
#include <string>
#include <vector>
#include "../kernels/policy_loss.cuh"
#include "../model.cuh"

// What scoring needs besides the activations: which rows, their hidden states, and the results. Arrays are where the
// model is; capacity is a micro-batch.
struct ScoreMemory {
    int64_t capacity = 0;                     // scored tokens
    Buffer<int> rows;                         // [2, R]: rows, then targets, brought by one copy
    Buffer<float> logp, lse, entropy, dlogp;  // [capacity]
    Buffer<float> dentropy;                   // [capacity], or none
    Buffer<floatX> hidden, dhidden;           // [capacity, C]
    LmHeadScratch head;
    PolicyMemory policy;
};

// training: also what the backward needs; with_entropy: of a loss that has the entropy, too
inline void score_memory_allocate(ScoreMemory& s, const Model& m, int64_t tokens, bool training,
                                  bool with_entropy = false) {
    const char* hint = training ? "lower --micro_batch_tokens" : "";
    s.capacity = tokens;
    s.rows.allocate(2 * tokens, "scored tokens", hint, m.dev);
    for (Buffer<float>* b : {&s.logp, &s.lse, &s.entropy}) b->allocate(tokens, "scored tokens", hint, m.dev);
    s.hidden.allocate(tokens * m.C(), "hidden states of the scored tokens", hint, m.dev);
    lm_head_scratch_allocate(s.head, tokens, m.C(), m.V(), training, m.dev);
    if (!training) return;
    s.dlogp.allocate(tokens, "scored tokens", hint, m.dev);
    if (with_entropy) s.dentropy.allocate(tokens, "scored tokens", hint, m.dev);
    s.dhidden.allocate(tokens * m.C(), "hidden states of the scored tokens", hint, m.dev);
    policy_memory_allocate(s.policy, tokens, m.dev);
}

// Which rows of a batch are scored: the hidden state of rows[i] predicts targets[i]
struct ScoredTokens {
    std::vector<int> rows, targets;         // [R]
    std::vector<float> logp, lse, entropy;  // [R], see score_fetch
    int64_t size() const { return (int64_t)rows.size(); }
};

// score tokens first..last-1 (-1: to its end) of the sequence that was just added to the batch
inline void score_last_sequence(ScoredTokens& s, const Batch& b, int first, int last = -1) {
    int start = b.starts[b.starts.size() - 2], end = last < 0 ? b.starts.back() : start + last;
    for (int i = start + (first > 1 ? first : 1); i < end; i++) {
        s.rows.push_back(i - 1);
        s.targets.push_back(b.tokens[i]);
    }
}

// memory.hidden [R,C] and the targets behind memory.rows [2,R], of the scored tokens of b
inline void score_hidden(Model& m, Activations& a, ScoreMemory& memory, const Batch& b, const ScoredTokens& s,
                         const Pass& pass) {
    const int64_t R = s.size();
    if (R > memory.capacity) fail("%lld scored tokens in memory for %lld", (long long)R, (long long)memory.capacity);
    model_forward(m, a, b, pass);
    std::vector<int> both = s.rows;
    both.insert(both.end(), s.targets.begin(), s.targets.end());
    copy_to_device(memory.rows.data, both.data(), both.size() * sizeof(int), m.dev);
    gather_rows(memory.hidden.data, a.hidden, memory.rows.data, R, m.C(), m.dev);
}

// memory.logp, .lse and .entropy [R] of the scored tokens of b
inline void score_forward(Model& m, Activations& a, ScoreMemory& memory, const Batch& b, const ScoredTokens& s,
                          float inverse_temperature, const Pass& pass = Pass()) {
    const int64_t R = s.size(), C = m.C();
    score_hidden(m, a, memory, b, s, pass);
    NVTX_RANGE("lm_head");
    lm_head_forward(memory.logp.data, memory.lse.data, memory.entropy.data,
                    {memory.hidden.data, m.head.work, memory.rows.data + R, R, C, m.V(), inverse_temperature},
                    memory.head, m.dev);
}

// the results as vectors on the host
inline void score_fetch(ScoredTokens& s, const ScoreMemory& memory, Device dev) {
    int64_t R = s.size();
    s.logp.resize(R), s.lse.resize(R), s.entropy.resize(R);
    copy_to_host(s.logp.data(), memory.logp.data, R * sizeof(float), dev);
    copy_to_host(s.lse.data(), memory.lse.data, R * sizeof(float), dev);
    copy_to_host(s.entropy.data(), memory.entropy.data, R * sizeof(float), dev);
}
