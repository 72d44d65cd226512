// What objectives share that sample: completions drawn by all ranks, their texts, rewards and lengths.
#pragma once
#include <cmath>
#include <cstring>
#include <string>
#include <vector>
#include "../data/examples.h"
#include "../rewards/rewards.h"
#include "../rollout.cuh"
#include "../runtime/comm.h"
#include "loops.h"

inline std::string completion_text(const Tokenizer& tok, const Completion& c) {
    std::vector<int> ids = c.tokens;
    if (c.stop_token) ids.pop_back();
    return tokenizer_decode(tok, ids, false);
}

// Each rank samples its part of the prompts (their number is a multiple of the ranks'), and every rank gets all
// completions, with the tokens that one rank alone would draw (unless --batch_invariant is off).
inline std::vector<Completion> rollout_of_ranks(Comm* ranks, Model& m, RolloutState& s,
                                                const std::vector<std::vector<int>>& prompts, int G,
                                                RolloutConfig config, RolloutStats* stats,
                                                const std::function<bool(int, int)>& on_token) {
    if (!ranks || ranks->world == 1) return rollout(m, s, prompts, G, config, stats, on_token);
    Comm& comm = *ranks;
    auto [begin, end] = comm_share(comm, (int)prompts.size());
    config.first_prompt += begin;
    std::vector<Completion> mine =
        rollout(m, s, {prompts.begin() + begin, prompts.begin() + end}, G, config, stats, on_token);
    // a row a completion: finished, ended by a stop token, length, tokens, bits of their log-probabilities
    const int most = config.max_completion_length, row = 3 + 2 * most;
    std::vector<int> rows(mine.size() * row);
    for (size_t i = 0; i < mine.size(); i++) {
        int* r = rows.data() + i * row;
        r[0] = mine[i].finished;
        r[1] = mine[i].stop_token;
        r[2] = (int)mine[i].tokens.size();
        std::copy(mine[i].tokens.begin(), mine[i].tokens.end(), r + 3);
        if (r[2]) memcpy(r + 3 + most, mine[i].logps.data(), r[2] * sizeof(float));
    }
    rows = comm_gather(comm, rows);
    std::vector<Completion> all(prompts.size() * G);
    for (size_t i = 0; i < all.size(); i++) {
        const int* r = rows.data() + i * row;
        all[i].prompt = (int)i / G;
        all[i].sample = (int)i % G;
        all[i].finished = r[0];
        all[i].stop_token = r[1];
        all[i].tokens.assign(r + 3, r + 3 + r[2]);
        all[i].logps.resize(r[2]);
        if (r[2]) memcpy(all[i].logps.data(), r + 3 + most, r[2] * sizeof(float));
    }
    if (stats) {
        double prompt_tokens = (double)stats->prompt_tokens, completion_tokens = (double)stats->completion_tokens;
        comm_reduce(comm, {&prompt_tokens, &completion_tokens}, Reduce::sum);
        stats->prompt_tokens = (int64_t)prompt_tokens;
        stats->completion_tokens = (int64_t)completion_tokens;
    }
    return all;
}

// rewards of N completions
struct RewardedGroup {
    std::vector<float> total;              // [N]
    std::vector<std::vector<float>> each;  // [rewards][N]
    std::vector<std::string> texts;        // [N]
};

// Those of a prompt stand together. max_length: what a completion may have had; means: of each completion, if a reward
// needs them
inline RewardedGroup reward_completions(const Tokenizer& tok, const RewardSet& rewards,
                                        const std::vector<Example>& batch, const std::vector<Completion>& completions,
                                        int max_length, const std::vector<TokenMeans>& means = {}) {
    RewardedGroup r;
    const size_t n = completions.size();
    r.texts.resize(n);
#pragma omp parallel for schedule(dynamic, 4)
    for (size_t i = 0; i < n; i++) r.texts[i] = completion_text(tok, completions[i]);
    std::vector<RewardInput> in;
    std::vector<int> prompt;
    in.reserve(n);
    for (size_t i = 0; i < n; i++) {
        const Completion& c = completions[i];
        const Prompt& p = batch[c.prompt].prompt;
        in.push_back({p.text, r.texts[i], p.gold, c.finished, c.tokens, max_length,
                      means.empty() ? TokenMeans() : means[i],
                      p.problem && p.problem->row ? p.problem->row.get() : nullptr});
        prompt.push_back(c.prompt);
    }
    rewards_compute(r.total, r.each, rewards, in, prompt);
    return r;
}

struct SampleLengths {
    double mean = 0.0, low = 0.0, high = 0.0;  // tokens
};

inline SampleLengths sample_length_statistics(const std::vector<Completion>& samples, bool only_finished) {
    SampleLengths s;
    double sum = 0.0, low = 1e30;
    int n = 0;
    for (const Completion& c : samples) {
        if (only_finished && !c.finished) continue;
        double length = (double)c.tokens.size();
        sum += length;
        low = std::min(low, length);
        s.high = std::max(s.high, length);
        n++;
    }
    if (n) s.mean = sum / n, s.low = low;
    return s;
}

// share of the samples that were cut off
inline double clipped_ratio(const std::vector<Completion>& samples) {
    double clipped = 0.0;
    for (const Completion& c : samples) clipped += !c.finished;
    return samples.empty() ? 0.0 : clipped / (double)samples.size();
}

// under TRL's names
inline void length_metrics(nlohmann::ordered_json& j, const std::vector<Completion>& samples) {
    for (bool only_finished : {false, true}) {
        const SampleLengths s = sample_length_statistics(samples, only_finished);
        const std::string suffix = only_finished ? "terminated_length" : "length";
        j["completions/mean_" + suffix] = s.mean;
        j["completions/min_" + suffix] = s.low;
        j["completions/max_" + suffix] = s.high;
    }
    j["completions/clipped_ratio"] = clipped_ratio(samples);
}

// the completions that do not read as text, and those that go round in circles (loops.h)
inline void loop_ratios(nlohmann::ordered_json& j, const std::vector<Completion>& samples,
                        const std::vector<std::string>& texts) {
    const double n = std::max((double)samples.size(), 1.0);
    double garbled = 0.0, repeating = 0.0;
    for (size_t i = 0; i < samples.size(); i++) {
        garbled += is_garbled(texts[i], samples[i].finished);
        repeating += is_repeating(samples[i].tokens, samples[i].finished);
    }
    j["completions/garbled_ratio"] = garbled / n;
    j["completions/repeating_ratio"] = repeating / n;
}
