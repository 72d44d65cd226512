// Texts whose tokens are scored: --eval_text in windows, and the completions of examples.
#pragma once
#include "../eval/log_loss.cuh"
#include "../methods/calibration.cuh"
#include "output.cuh"

inline void fit_eval_text(Session& s) {
    if (!s.o.eval_text.empty()) fit_to_context(s, "eval_text_length", s.o.eval_text_length);
}

// --eval_text in windows; empty without it
inline std::vector<ScoredText> eval_text_windows(const Session& s) {
    const Options& o = s.o;
    if (o.eval_text.empty()) return {};
    std::vector<int> ids = join_documents(s.tok, calibration_documents(s.tok, s.prompt, o.eval_text));
    if (ids.size() < 2) fail("--eval_text %s: fewer than two tokens", o.eval_text.c_str());
    return text_windows(ids, o.eval_text_length);
}

// the completion of an example, given its prompt
inline ScoredText scored_example(const Example& e) {
    ScoredText t{e.prompt.tokens, std::max((int)e.prompt.tokens.size(), 1)};
    t.ids.insert(t.ids.end(), e.completion.begin(), e.completion.end());
    return t;
}

inline int64_t longest_text(const std::vector<ScoredText>& texts) {
    size_t n = 0;
    for (const ScoredText& t : texts) n = std::max(n, t.ids.size());
    return (int64_t)n;
}
