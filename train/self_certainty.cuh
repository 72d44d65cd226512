// What a policy thinks of its own completions: of each, the means over its tokens of the entropy and of the
// self-certainty (kernels/self_certainty.cuh), for rewards that need no gold answer. One forward of the completions,
// before the first update, at the temperature at which they were sampled.
//
// The trap: every rank needs the means of all completions, or their rewards differ.
#pragma once
#include <array>
#include <cstring>
#include <vector>
#include "../kernels/bias.cuh"
#include "../kernels/self_certainty.cuh"
#include "shared_prompts.cuh"

// The means of one micro-batch's completions, which are whole. sums: of the head's rows, [C]
inline void add_token_means(std::vector<TokenMeans>& means, SampleBatch& b, Trainer& t, const float* sums,
                            const std::vector<Completion>& completions, float inverse_temperature, const Pass& pass) {
    const Model& m = *t.model;
    const int64_t R = b.scored.size();
    score_forward(*t.model, t.acts, t.score, b.batch, b.scored, inverse_temperature, pass);
    score_fetch(b.scored, t.score, m.dev);
    Scratch certainty(R, m.dev);
    self_certainty(certainty.data, t.score.hidden.data, sums, t.score.lse.data, R, m.C(), m.V(), inverse_temperature,
                   m.dev);
    std::vector<float> values(R);
    copy_to_host(values.data(), certainty.data, R * sizeof(float), m.dev);
    std::vector<std::array<double, 2>> total(completions.size());
    for (int64_t r = 0; r < R; r++) {
        total[b.of[r].completion][0] += b.scored.entropy[r];
        total[b.of[r].completion][1] += values[r];
    }
    for (int64_t r = 0; r < R; r++) {
        const int i = b.of[r].completion;
        const double n = (double)completions[i].tokens.size();
        means[i] = {(float)(total[i][0] / n), (float)(total[i][1] / n)};
    }
}

// one of each completion; every rank gets those of all
inline std::vector<TokenMeans> token_means(Trainer& t, const Pass& pass, const std::vector<std::vector<int>>& prompts,
                                           const std::vector<Completion>& completions, float temperature,
                                           int64_t micro_batch_tokens, Comm* comm) {
    const Model& m = *t.model;
    std::vector<TokenMeans> means(completions.size());
    std::vector<int> mine;
    const auto [begin, end] = share_of_ranks(comm, completions.size());
    for (int i = begin; i < end; i++)
        if (!completions[i].tokens.empty()) mine.push_back(i);
    Scratch sums(m.C(), m.dev);
    set_zero(sums.data, m.C() * sizeof(float), m.dev);
    bias_backward(sums.data, m.head.work, m.V(), m.C(), m.dev);
    Progress line("scoring", "completion", (int64_t)mine.size(), ProgressKind::part);
    for (const std::vector<int>& chosen : pack_samples(mine, prompts, completions, micro_batch_tokens)) {
        SampleBatch b = sample_batch(chosen, prompts, completions);
        add_token_means(means, b, t, sums.data, completions, 1.0f / temperature, pass);
        line.add((int64_t)chosen.size());
    }
    if (!comm || comm->world == 1) return means;
    static_assert(sizeof(TokenMeans) == 2 * sizeof(int), "a completion's means travel as two ints");
    std::vector<int> bits(2 * (size_t)(end - begin));
    memcpy(bits.data(), means.data() + begin, bits.size() * sizeof(int));
    bits = comm_gather(*comm, bits);
    memcpy(static_cast<void*>(means.data()), bits.data(), bits.size() * sizeof(int));
    return means;
}
