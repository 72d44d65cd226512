// Supervised fine-tuning: the mean negative log-likelihood of the completions' tokens (of those that are learnt, where
// Example::learnt says which), given what is before them.
//   loss = -sum_i sum_t log p(y_it | x_i, y_i<t) / N,   N: tokens of all completions of the step
// So it does not matter how the step is cut into micro-batches or shared among ranks.
#pragma once
#include "loop.cuh"

struct SftObjective : Objective {
    int64_t micro_batch_tokens = 4096;

    StepLoss loss(Trainer& t, const StepContext& c, bool gradient) override {
        int64_t tokens = 0;
        for (const Example& e : c.batch) tokens += completion_tokens(e);
        if (tokens <= 0) fail("a batch has no token to learn; every completion in it is empty");
        double total = 0.0, forward_tokens = 0.0;
        const bool whole = each_micro_batch(c.batch, micro_batch_tokens, c, [&](const Batch& b, ScoredTokens& s) {
            score_forward_training(t, b, s, 1.0f, c.pass);
            score_fetch(s, t.score, t.model->dev);
            for (float logp : s.logp) total -= logp;
            if (gradient) score_backward(t, std::vector<float>(s.size(), (float)(-1.0 / (double)tokens)), 1.0f);
            forward_tokens += (double)b.T();
        });
        if (!whole) return {0.0, 0, true};
        sum_over_ranks(t, c, gradient, {&total, &forward_tokens});
        return {total / (double)tokens, (int64_t)forward_tokens};
    }

    void watched(WatchedStep& s, const StepReport& r) const override { s.loss = r.loss; }

    std::string line(const StepReport& r) const override {
        return line_step(r) + format(" loss %.4f | ", r.loss) + line_update(r) +
               format(" %s tok/s | %.1f s", human_count((double)r.forward_tokens / r.train_seconds).c_str(), r.seconds);
    }
};
