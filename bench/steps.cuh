// Whole steps of a model with random weights: a step of sft, a decode step, a step of GRPO, in the program's own loop
// (loop_step, policy_pass, decode_step), and the least work in each.
//   sft      rows of `length` random tokens, all of them learnt but the first of each row; update of the optimizer included
//   decode   one token for each of R sequences whose caches hold `keys` tokens, and the draw of the next
//   grpo     sampling, training and update. Completions have their full length (no token ends one), and a reward of its
//            own gives each an advantage that is not zero, so that nothing can be left out
// Work counted as the least: each product once forward and twice backward, so recomputed logits or activations are no
// credit; the causal half of attention; a prompt that a group shares once; of the optimizer, weight, moments and gradient
// read (the gradient twice, its norm comes first) and written, the gradient as zeros.
#pragma once
#include <functional>
#include "../grpo.cuh"
#include "../train/sft.cuh"
#include "measure.h"

struct StepSizes {
    int64_t rows = 2, length = 512;                      // sft
    int64_t sequences = 64, keys = 512;                  // decode
    int prompts = 2, generations = 8;                    // grpo
    int64_t prompt_length = 64, completion_length = 64;  // tokens
    int64_t micro_batch_tokens = 2048;
};

// ---------------------------------------------------------------------------------------------------------------------
// least work

static constexpr double STEP_FLOATX = sizeof(floatX);
static constexpr BenchUnit STEP_UNIT = sizeof(floatX) == 2 ? BenchUnit::bf16 : BenchUnit::fp32;

// weights of the linears of all layers
inline double linear_count(const Model& m) {
    double n = 0.0;
    for (const ParamTensor& t : m.tensors) n += t.kind == ParamKind::linear ? (double)t.count() : 0.0;
    return n;
}
inline double head_count(const Model& m) { return (double)m.V() * m.C(); }
// of all layers, a query and a key: products with k and with v
inline double pair_flops(const Model& m) { return 4.0 * m.L() * m.NH() * m.HD(); }

// the products of T tokens of which R are scored
inline BenchWork forward_backward_work(const Model& m, double T, double R) {
    BenchWork w;
    w.flops = 6.0 * (linear_count(m) * T + head_count(m) * R), w.unit = STEP_UNIT;
    return w;
}
inline BenchWork attention_work(const Model& m, double pairs, bool backward) {
    BenchWork w;
    w.flops = pair_flops(m) * pairs * (backward ? 3.5 : 1.0);
    return w;
}
inline BenchWork optimizer_work(const Model& m) {
    BenchWork w;
    w.read = 20.0 * (double)m.num_params, w.written = (16.0 + STEP_FLOATX) * (double)m.num_params;
    return w;
}
// bytes of the weights that one token's forward reads: codes where they are packed, and the head
inline double decode_weight_bytes(const Model& m) {
    double bits = 0.0;
    for (const ParamTensor& t : m.tensors) {
        if (t.kind != ParamKind::linear) continue;
        const LinearPart& p = *part_of(m, t);
        const bool codes = p.quantizer.on() && generates_from_codes(m);
        bits += (double)t.count() * (codes ? part_bits(p) : 8.0 * STEP_FLOATX);
    }
    return bits / 8.0 + STEP_FLOATX * head_count(m);
}
// one token for each of R sequences
inline BenchWork decode_work(const Model& m, double R) {
    BenchWork w;
    w.flops = 2.0 * R * (linear_count(m) + head_count(m)), w.unit = STEP_UNIT;
    w.read = decode_weight_bytes(m);
    return w;
}
// pairs: of a token and a key of its cache, which is read once for all heads of its group
inline BenchWork decode_attention_work(const Model& m, double pairs) {
    BenchWork w = attention_work(m, pairs, false);
    w.read = 2.0 * STEP_FLOATX * m.L() * m.NKV() * m.HD() * pairs;
    return w;
}

inline double causal_pairs(double n) { return n * (n + 1) / 2; }

// ---------------------------------------------------------------------------------------------------------------------
// a model in training

struct BenchModel {
    Model m;
    Trainer t;
    LoopState state;
};

inline void bench_model_open(BenchModel& b, const ModelConfig& config, const QuantizerRules& weights,
                             int64_t micro_batch_tokens) {
    OptimizerConfig optimizer;
    optimizer_rates(optimizer, 1e-6, 0.0);
    model_allocate(b.m, config);
    model_quantize(b.m, weights, false);
    model_init_random(b.m, 0);
    model_refresh(b.m);
    trainer_init(b.t, b.m, micro_batch_tokens, false, optimizer);
}

inline std::vector<int> random_tokens(int64_t n, int V, uint32_t number) {
    std::vector<int> ids((size_t)n);
    for (int64_t i = 0; i < n; i++) ids[i] = (int)(rng_bits(2, RNG_INIT, number, (uint32_t)i, 0).x[0] % (uint32_t)V);
    return ids;
}

// endless examples: prompt and completion of so many random tokens
inline TrainingData made_up_data(const Model& m, int64_t per_step, int64_t prompt, int64_t completion) {
    TrainingData d;
    d.count = INT32_MAX / per_step * per_step, d.per_step = per_step, d.shuffled = false;
    d.example = [V = m.V(), prompt, completion](int64_t i) {
        Example e;
        e.prompt.tokens = random_tokens(prompt, V, (uint32_t)(2 * i));
        e.completion = random_tokens(completion, V, (uint32_t)(2 * i + 1));
        return e;
    };
    return d;
}

inline StepReport bench_loop_step(BenchModel& b, Objective& objective, const TrainingData& data) {
    LoopConfig c;
    c.steps = INT32_MAX, c.learning_rate = 1e-6;
    StepReport r;
    if (!loop_step(b.t, objective, data, c, b.state, r) || r.update.skipped)
        fail("a step of the benchmark was skipped: loss %g", r.loss);
    return r;
}

// ---------------------------------------------------------------------------------------------------------------------
// the steps

struct StepBench {
    std::string model;
    QuantizerRules weights;
    double seconds = 0.1;
    StepSizes sizes;
};

inline double peak_mebibytes() { return (double)peak_rss_bytes() / 1048576.0; }

inline BenchRow bench_sft(const StepBench& s, BenchModel& b, int64_t rows, int64_t length) {
    SftObjective objective;
    objective.micro_batch_tokens = b.t.acts.capacity;
    const TrainingData data = made_up_data(b.m, rows, 0, length);
    BenchRow r = {"sft", s.model, "sft step", {rows, length}, {}, {}};
    r.time = bench_time(s.seconds, 2, [&] { bench_loop_step(b, objective, data); });
    const double T = (double)(rows * length);
    r.work = {forward_backward_work(b.m, T, T - (double)rows),
              attention_work(b.m, (double)rows * causal_pairs((double)length), true), optimizer_work(b.m)};
    r.more = {{"tokens_per_second", T / r.time.best}, {"peak_mib", peak_mebibytes()}};
    return r;
}

// the batch of a decode step in which each of R slots holds `keys` tokens, the one that is run included
inline Batch decode_batch(const Model& m, int64_t R, int64_t keys) {
    Batch b;
    b.tokens = random_tokens(R, m.V(), 0);
    for (int64_t i = 0; i < R; i++) {
        KeyRange range;
        range.row1 = i * keys, range.n1 = (int)keys;
        b.positions.push_back((int)keys - 1);
        b.ranges.push_back(range);
        b.writes.push_back({1, range.row1 + keys - 1});
        b.draws.push_back({0, (uint32_t)i, 0});
    }
    return b;
}

// pages of zeros that nobody has written would all be one page
inline void fill_cache(KVCache& cache) {
    for (Buffer<floatX>* c : {&cache.k[1], &cache.v[1]})
        for (size_t i = 0; i < c->size; i++) c->data[i] = floatX((float)(i % 17) * 0.05f - 0.4f);
}

inline BenchRow bench_decode(const StepBench& s, Model& m, int64_t R, int64_t keys) {
    RolloutState state;
    RolloutShape shape;
    shape.slots = (int)R, shape.prompt_rows = 1, shape.own_rows = R * keys, shape.tokens = R, shape.regions = 1;
    rollout_allocate(state, m, shape);
    fill_cache(state.cache);
    RolloutConfig config;
    config.pass = model_pack(m);
    config.n_allowed = m.V();
    rope_extend(m.rope, (int)keys, m.dev);
    const Batch first = decode_batch(m, R, keys);
    BenchRow r = {"decode", s.model, "decode step", {R, keys}, {}, {}};
    r.time = bench_time(s.seconds, 3, [&] {
        Batch batch = first;
        decode_step(m, state, batch, config);
    });
    model_unpack(m);
    r.work = {decode_work(m, (double)R), decode_attention_work(m, (double)(R * keys))};
    r.more = {{"tokens_per_second", (double)R / r.time.best}};
    return r;
}

// rewards -0.5, 1, 2, 3 ... in each group: none is the group's mean
struct SyntheticGrpo : GrpoObjective {
    RewardedGroup reward() const override {
        RewardedGroup r;
        for (const Completion& c : samples) r.total.push_back(c.sample ? (float)c.sample : -0.5f);
        return r;
    }
};

// one after the other: prompts; their samples, token by token; training, a prompt once for its group; the update
inline std::vector<BenchWork> grpo_work(const Model& m, const StepSizes& z) {
    const double P = z.prompts, N = P * z.generations, p = (double)z.prompt_length, n = (double)z.completion_length,
                 own = n * p + causal_pairs(n);  // pairs of a completion
    BenchWork prefill, head;
    prefill.flops = 2.0 * linear_count(m) * P * p, prefill.unit = STEP_UNIT;
    head.flops = 2.0 * head_count(m) * N, head.read = STEP_FLOATX * head_count(m), head.unit = STEP_UNIT;
    std::vector<BenchWork> work = {prefill,
                                   attention_work(m, P * causal_pairs(p), false),
                                   head,
                                   forward_backward_work(m, P * p + N * n, N * n),
                                   attention_work(m, P * causal_pairs(p) + N * own, true),
                                   optimizer_work(m)};
    for (double t = 1; t < n; t++) {
        work.push_back(decode_work(m, N));
        work.push_back(decode_attention_work(m, N * (p + t)));
    }
    return work;
}

inline BenchRow bench_grpo(const StepBench& s, BenchModel& b) {
    const StepSizes& z = s.sizes;
    RolloutState rollouts;
    SyntheticGrpo objective;
    GrpoConfig& c = objective.config;
    c.num_generations = z.generations, c.max_completion_length = (int)z.completion_length;
    c.micro_batch_tokens = b.t.acts.capacity;
    RolloutConfig& r = objective.rollout;
    r.max_completion_length = (int)z.completion_length, r.n_allowed = b.m.V();
    r.prefill_tokens = (int)std::max(z.prompt_length, std::min(c.micro_batch_tokens, z.prompts * z.prompt_length));
    objective.state = &rollouts;
    const TrainingData data = made_up_data(b.m, z.prompts, z.prompt_length, 0);
    BenchRow row = {"grpo", s.model, "grpo step", {z.prompts, z.generations, z.prompt_length, z.completion_length},
                    {},     {}};
    double best = 0.0, generate = 0.0, train = 0.0;
    row.time = bench_time(s.seconds, 2, [&] {
        const StepReport report = bench_loop_step(b, objective, data);
        if (best > 0 && report.seconds >= best) return;
        best = report.seconds, generate = objective.generated.seconds, train = report.train_seconds;
    });
    for (float a : objective.advantages.a)
        if (a == 0.0f) fail("a completion of the benchmark has no advantage");
    const double tokens = (double)z.prompts * z.generations * (double)z.completion_length;
    if (objective.generated.completion_tokens != (int64_t)tokens) fail("a completion of the benchmark ended early");
    row.work = grpo_work(b.m, z);
    row.more = {{"generation_seconds", generate},
                {"training_seconds", train},
                {"tokens_per_second", tokens / row.time.best},
                {"generated_tokens_per_second", tokens / generate},
                {"peak_mib", peak_mebibytes()}};
    return row;
}
