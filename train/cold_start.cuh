// Cold start: supervised steps in full precision on a task's solutions, for a model that knows nothing yet, until the
// loss (mean of the last `window` steps) is below `target`. A fixed number of steps would not do: the skill comes
// suddenly, and at a different step for each seed. The target leaves room for RL: at a mean negative log-likelihood of
// 0.065 a token, over solutions of about 30 tokens, about 40 % of the sampled solutions are free of mistakes.
#pragma once
#include "sft.cuh"

struct ColdStartConfig {
    int max_steps = 800, batch = 128, window = 10;
    double learning_rate = 2e-3, target = 0.065;
};

struct ColdStartObjective : SftObjective {
    ColdStartConfig config;
    std::vector<double> losses;
    double start = wall_seconds();
    int64_t tokens = 0;

    StepLoss loss(Trainer& t, const StepContext& c, bool gradient) override {
        StepLoss l = SftObjective::loss(t, c, gradient);
        losses.push_back(l.loss);
        tokens += l.forward_tokens;
        return l;
    }
    double recent() const {
        const int n = std::min((int)losses.size(), config.window);
        double mean = 0.0;
        for (int i = 0; i < n; i++) mean += losses[losses.size() - 1 - i] / n;
        return mean;
    }
    bool done() override { return (int)losses.size() >= config.window && recent() < config.target; }
    std::string line(const StepReport& r) const override {
        const double seconds = wall_seconds() - start;
        return format("cold start %4lld | loss %.4f (until %.3f) | grad %.2f | lr %.1e | %s tok/s | %.0f s",
                      (long long)r.step, recent(), config.target, r.update.grad_norm, r.learning_rate,
                      human_count((double)tokens / seconds).c_str(), seconds);
    }
};

// The model in full precision, and t as new, afterwards. example: the index-th of the task's
inline void cold_start(Trainer& t, const ColdStartConfig& c, int64_t micro_batch_tokens,
                       const std::function<Example(int64_t)>& example, const std::function<bool()>& stop) {
    const OptimizerConfig optimizer = t.optimizer.config;
    const double max_grad_norm = t.max_grad_norm;
    optimizer_rates(t.optimizer.config, c.learning_rate, 0.0);
    t.optimizer.config.beta1 = 0.9f, t.optimizer.config.beta2 = 0.99f, t.optimizer.config.epsilon = 1e-8f;
    t.max_grad_norm = 1.0;
    Model& m = *t.model;
    model_refresh(m, false);
    ColdStartObjective objective;
    objective.config = c;
    objective.micro_batch_tokens = micro_batch_tokens;
    TrainingData data;
    data.count = (int64_t)c.max_steps * c.batch;
    data.per_step = c.batch;
    data.shuffled = false;
    data.example = example;
    LoopConfig loop;
    loop.steps = c.max_steps;
    loop.learning_rate = c.learning_rate;
    loop.warmup_steps = 20, loop.warmup_from = 1;
    loop.logging_steps = 50;
    loop.pass = full_precision();
    loop.stop = stop;
    Progress progress("cold start", "step", 0, ProgressKind::steps);  // it ends by the loss
    loop.progress = &progress;
    LoopState state;
    train_loop(t, objective, data, loop, state);
    trainer_reset(t);
    t.optimizer.config = optimizer;
    t.max_grad_norm = max_grad_norm;
    model_forget_grids(m);
    model_refresh(m);
}
