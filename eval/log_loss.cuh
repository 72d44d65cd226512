// Log-loss: the mean negative log-likelihood of a token, in nats, under the forward of the trainer, and so under the
// quantizers that the model has. The measure of quantization that needs the fewest tokens: accuracy on 256 problems has
// a standard error of 3 points, the log-loss of the same answers one below 0.01 between two versions of a model.
#pragma once
#include <algorithm>
#include <vector>
#include "../runtime/progress.h"
#include "../train/scoring.cuh"

// tokens first..n-1 of ids are scored, given those before them (the first of all never is)
struct ScoredText {
    std::vector<int> ids;
    int first = 1;
};

struct LogLoss {
    double mean = 0.0;  // nats a token
    int64_t tokens = 0;
};

struct LogLossMemory {
    Activations acts;
    ScoreMemory score;
};

// texts of at most `longest` tokens, about micro_batch_tokens at a time
inline void log_loss_allocate(LogLossMemory& s, const Model& m, int64_t micro_batch_tokens, int64_t longest) {
    const int64_t tokens = std::max(micro_batch_tokens, longest);
    activations_allocate(s.acts, m, tokens, ActivationMode::inference);
    score_memory_allocate(s.score, m, tokens, false);
}

// ids cut into windows, one after another; a token does not see what is before its window
inline std::vector<ScoredText> text_windows(const std::vector<int>& ids, int64_t window) {
    std::vector<ScoredText> out;
    for (size_t at = 0; at + 1 < ids.size(); at += window)
        out.push_back({std::vector<int>(ids.begin() + at, ids.begin() + std::min(at + (size_t)window, ids.size())), 1});
    return out;
}

inline LogLoss log_loss(Model& m, LogLossMemory& s, const std::vector<ScoredText>& texts, const Pass& pass = Pass()) {
    LogLoss r;
    double sum = 0.0;
    Progress line("log-loss", "text", (int64_t)texts.size());
    for (size_t i = 0; i < texts.size(); line.to((int64_t)i)) {
        Batch b;
        ScoredTokens scored;
        for (; i < texts.size() && (b.T() == 0 || b.T() + (int64_t)texts[i].ids.size() <= s.acts.capacity); i++) {
            batch_add_sequence(b, texts[i].ids.data(), (int)texts[i].ids.size());
            score_last_sequence(scored, b, texts[i].first);
        }
        if (scored.size() == 0) continue;
        score_forward(m, s.acts, s.score, b, scored, 1.0f, pass);
        score_fetch(scored, s.score, m.dev);
        for (float logp : scored.logp) sum -= logp;
        r.tokens += scored.size();
    }
    if (r.tokens == 0) fail("log-loss: the text has no token to score; bring at least two tokens");
    r.mean = sum / (double)r.tokens;
    return r;
}
