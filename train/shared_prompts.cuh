// Micro-batches of completions that share their prompts. The rows of a prompt are in a batch once, and its completions
// go on from them (model/batch.cuh): P + G R rows for a group instead of G (P + R), forward and backward. A row has the
// bits that it has in a whole sequence; gradients are the same sums in another order.
//   The prompt's last row predicts the first token of each completion. A completion's last token predicts nothing that
//   counts, so it has no row. With LoRA dropout a prompt's rows have one draw for its completions, not one each.
// A group that is larger than a micro-batch is cut into pieces, each with a copy of the prompt.
#pragma once
#include "objective.cuh"
#include "samples.cuh"

struct SampleBatch {
    Batch batch;
    ScoredTokens scored;
    struct Token {
        int completion, token;
    };
    std::vector<Token> of;  // [R] which token of which completion each scored one is
};

inline void score_sample(SampleBatch& b, const std::vector<Completion>& completions, int row, int completion,
                         int token) {
    b.scored.rows.push_back(row);
    b.scored.targets.push_back(completions[completion].tokens[token]);
    b.of.push_back({completion, token});
}

// where the completions of chosen[i]'s prompt end; those of a prompt stand together
inline size_t group_end(const std::vector<int>& chosen, const std::vector<Completion>& completions, size_t i) {
    size_t end = i + 1;
    while (end < chosen.size() && completions[chosen[end]].prompt == completions[chosen[i]].prompt) end++;
    return end;
}

// chosen: completions that are not empty. The scored rows ascend, so that equal ones stand together (scatter_rows).
inline SampleBatch sample_batch(const std::vector<int>& chosen, const std::vector<std::vector<int>>& prompts,
                                const std::vector<Completion>& completions) {
    SampleBatch b;
    for (size_t i = 0, end; i < chosen.size(); i = end) {
        end = group_end(chosen, completions, i);
        const std::vector<int>& prompt = prompts[completions[chosen[i]].prompt];
        batch_add_sequence(b.batch, prompt.data(), (int)prompt.size());
        for (size_t k = i; k < end; k++) score_sample(b, completions, (int)b.batch.T() - 1, chosen[k], 0);
        for (size_t k = i; k < end; k++) {
            const std::vector<int>& tokens = completions[chosen[k]].tokens;
            const int row = (int)b.batch.T(), n = (int)tokens.size() - 1;
            if (n == 0) continue;
            batch_add_continuation(b.batch, tokens.data(), n);
            for (int t = 0; t < n; t++) score_sample(b, completions, row + t, chosen[k], t + 1);
        }
    }
    return b;
}

// The chosen completions (those of a prompt together, none empty) as micro-batches of at most `budget` tokens: those of
// the completions, and of each prompt once.
inline std::vector<std::vector<int>> pack_samples(const std::vector<int>& chosen,
                                                  const std::vector<std::vector<int>>& prompts,
                                                  const std::vector<Completion>& completions, int64_t budget) {
    std::vector<std::vector<int>> pieces, out;
    std::vector<int64_t> tokens;  // of the pieces
    for (size_t i = 0, end; i < chosen.size(); i = end) {
        end = group_end(chosen, completions, i);
        const int64_t prompt = (int64_t)prompts[completions[chosen[i]].prompt].size();
        std::vector<int64_t> lengths;
        for (size_t k = i; k < end; k++) lengths.push_back((int64_t)completions[chosen[k]].tokens.size());
        check_micro_batch_fits(prompt + *std::max_element(lengths.begin(), lengths.end()), budget);
        for (const std::vector<int>& piece : pack(lengths, budget - prompt)) {
            pieces.emplace_back();
            tokens.push_back(prompt);
            for (int k : piece) pieces.back().push_back(chosen[i + k]), tokens.back() += lengths[k];
        }
    }
    for (const std::vector<int>& batch : pack(tokens, budget)) {
        out.emplace_back();
        for (int piece : batch) out.back().insert(out.back().end(), pieces[piece].begin(), pieces[piece].end());
    }
    return out;
}
