// How the cost of training grows, one size at a time: tokens in a micro-batch, context, group, model. Each is a table, and
// a plot of what was measured (from the slowest call to the fastest) beside what the machine's ceilings would allow.
//   batch     sft steps of one micro-batch of sequences of 128 tokens
//   context   sft steps of 2,048 tokens, cut into fewer and longer sequences
//   group     forward and backward of GRPO for one prompt of 256 tokens and G completions of 64; a token of the group is
//             one of a prompt with its completion, G x (256 + 64), so that sharing the prompt shows as speed
//   model     forward and backward of 256 tokens, without the optimizer: its moments of the largest model would not fit a
//             machine that its weights fit
#pragma once
#include <functional>
#include "../eval/plot.h"
#include "ceilings.h"
#include "shapes.h"
#include "steps.cuh"

struct GrowthSizes {
    std::vector<int64_t> batch = {128, 256, 512, 1024, 2048, 4096}, context = {64, 128, 256, 512, 1024, 2048},
                         group = {2, 4, 8, 16};
    int64_t sequence = 128, tokens = 2048, prompt = 256, completion = 64, model_tokens = 256;
};

struct Growth {
    StepBench step;
    GrowthSizes sizes;
    Ceilings ceilings;
    std::function<void(const BenchRow&)> report;
    std::vector<std::pair<std::string, std::string>> files = {};  // name, SVG
};

// a row of a table, with the tokens that its speed counts
struct GrowthPoint {
    double x, tokens;
    BenchRow row;
};

inline void growth_plot(Growth& g, const std::string& name, const std::string& title, const std::string& along,
                        const std::vector<GrowthPoint>& points, bool log_y) {
    Plot p;
    p.title = title;
    p.x.label = along, p.x.log = true;
    p.y.label = "training tokens a second", p.y.log = log_y;
    p.series.resize(2);
    PlotSeries &measured = p.series[0], &bound = p.series[1];
    measured.name = "measured", bound.name = "the machine's ceilings", bound.dashed = true;
    for (const GrowthPoint& point : points) {
        for (PlotSeries* s : {&measured, &bound}) s->x.push_back(point.x);
        p.x.ticks.push_back(point.x);
        measured.y.push_back(point.tokens / point.row.time.best);
        measured.low.push_back(point.tokens / point.row.time.worst);
        measured.high.push_back(point.tokens / point.row.time.best);
        bound.y.push_back(point.tokens / ceiling_bound(g.ceilings, point.row.work).seconds);
    }
    g.files.push_back({"growth_" + name + ".svg", plot_svg(p)});
}

inline GrowthPoint growth_point(Growth& g, double x, double tokens, BenchRow row, const char* name) {
    row.part = "growth", row.name = name;
    row.more = {{"tokens_per_second", tokens / row.time.best}};
    g.report(row);
    return {x, tokens, row};
}

// ---------------------------------------------------------------------------------------------------------------------
// batch and context

inline void growth_sft(Growth& g, BenchModel& b) {
    const GrowthSizes& z = g.sizes;
    std::vector<GrowthPoint> points;
    for (int64_t T : z.batch)
        points.push_back(
            growth_point(g, (double)T, (double)T, bench_sft(g.step, b, T / z.sequence, z.sequence), "batch"));
    growth_plot(g, "batch", "Speed of training and tokens in a micro-batch, " + g.step.model,
                format("tokens in a micro-batch, sequences of %lld", (long long)z.sequence), points, false);
    points.clear();
    for (int64_t n : z.context)
        points.push_back(
            growth_point(g, (double)n, (double)z.tokens, bench_sft(g.step, b, z.tokens / n, n), "context"));
    growth_plot(g, "context", "Speed of training and context, " + g.step.model,
                format("tokens of a sequence, %lld in a step", (long long)z.tokens), points, false);
}

// ---------------------------------------------------------------------------------------------------------------------
// group

// G completions of one prompt, with the log-probabilities that the policy gives them
inline std::vector<Completion> made_up_group(BenchModel& b, const std::vector<std::vector<int>>& prompts, int64_t G,
                                             int64_t length, const GrpoConfig& c) {
    std::vector<Completion> group((size_t)G);
    for (int64_t i = 0; i < G; i++) {
        group[i].sample = (int)i;
        group[i].tokens = random_tokens(length, b.m.V(), (uint32_t)(100 + i));
        group[i].logps.resize((size_t)length);
    }
    const std::vector<std::vector<float>> logps = completion_logps(b.t, b.m, Pass(), prompts, group, c);
    for (int64_t i = 0; i < G; i++) group[i].logps = logps[i];
    return group;
}

inline void growth_group(Growth& g, BenchModel& b) {
    const GrowthSizes& z = g.sizes;
    GrpoConfig c;
    c.micro_batch_tokens = b.t.acts.capacity;
    c.max_completion_length = (int)z.completion;
    const std::vector<std::vector<int>> prompts = {random_tokens(z.prompt, b.m.V(), 1)};
    std::vector<GrowthPoint> points;
    for (int64_t G : z.group) {
        const std::vector<Completion> group = made_up_group(b, prompts, G, z.completion, c);
        std::vector<float> advantages;
        for (int64_t i = 0; i < G; i++) advantages.push_back(i % 2 ? 1.0f : -1.0f);
        BenchRow row = {"growth", g.step.model, "group", {G, z.prompt, z.completion}, {}, {}};
        row.time = bench_time(g.step.seconds, 2, [&] { policy_pass(b.t, prompts, group, {advantages}, c); });
        set_zero(b.t.grads.data, b.t.grads.bytes(), b.m.dev);
        const double p = (double)z.prompt, n = (double)(G * z.completion);
        row.work = {
            forward_backward_work(b.m, p + n, n),
            attention_work(
                b.m, causal_pairs(p) + (double)G * ((double)z.completion * p + causal_pairs((double)z.completion)),
                true)};
        points.push_back(growth_point(g, (double)G, (double)(G * (z.prompt + z.completion)), row, "group"));
    }
    growth_plot(g, "group", "Speed of training and group size, " + g.step.model,
                format("completions of one prompt (%lld + %lld tokens)", (long long)z.prompt, (long long)z.completion),
                points, false);
}

// ---------------------------------------------------------------------------------------------------------------------
// model

// forward and backward of one sequence
inline BenchRow forward_backward(const StepBench& s, BenchModel& b, int64_t T) {
    Batch batch;
    ScoredTokens scored;
    batch_add_sequence(batch, random_tokens(T, b.m.V(), 1).data(), (int)T);
    score_last_sequence(scored, batch, 0);
    const std::vector<float> dlogp((size_t)scored.size(), -1.0f / (float)scored.size());
    BenchRow r = {"growth", s.model, "model", {T}, {}, {}};
    r.time = bench_time(s.seconds, 2, [&] {
        score_forward_training(b.t, batch, scored, 1.0f);
        score_backward(b.t, dlogp, 1.0f);
    });
    r.work = {forward_backward_work(b.m, (double)T, (double)scored.size()),
              attention_work(b.m, causal_pairs((double)T), true)};
    return r;
}

// bytes that forward and backward touch: masters, working weights, gradients; activations are few
inline double forward_backward_bytes(const ModelConfig& config) {
    size_t n = 0;
    model_tensors(config, &n);
    return (double)n * (4 + STEP_FLOATX + 4) + (1 << 30);
}

// models: smallest first. Those that the machine has no memory for are said to be left out
inline void growth_model(Growth& g, const std::vector<BenchShape>& models) {
    std::vector<GrowthPoint> points;
    for (const BenchShape& shape : models) {
        const double need = forward_backward_bytes(shape.config), left = available_memory_bytes();
        if (left > 0 && need > left) {
            printf("%-9sleft out: forward and backward need %s, the machine has %s left\n", shape.name,
                   bytes_text(need).c_str(), bytes_text(left).c_str());
            continue;
        }
        BenchModel b;
        bench_model_open(b, shape.config, QuantizerRules(), g.sizes.model_tokens);
        g.step.model = shape.name;
        const BenchRow row = forward_backward(g.step, b, g.sizes.model_tokens);
        const double T = (double)g.sizes.model_tokens;
        points.push_back(growth_point(g, linear_count(b.m) + head_count(b.m), T, row, "model"));
    }
    if (points.empty()) return;
    growth_plot(g, "model", "Speed of forward and backward, and size of the model", "weights of linears and head",
                points, true);
}
