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
#include "advantages.h"
#include "loops.h"
#include "watch.h"

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
    const auto [begin, end] = ranks ? comm_share(*ranks, (int)prompts.size()) : std::pair(0, (int)prompts.size());
    Progress line("sampling", "completion", (int64_t)(end - begin) * G, ProgressKind::part);
    auto on_end = [&line](const Completion&) { line.add(); };
    if (!ranks || ranks->world == 1) return rollout(m, s, prompts, G, config, stats, on_token, on_end);
    Comm& comm = *ranks;
    config.first_prompt += begin;
    std::vector<Completion> mine =
        rollout(m, s, {prompts.begin() + begin, prompts.begin() + end}, G, config, stats, on_token, on_end);
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
    std::vector<std::vector<float>> each;  // [rewards][N]; REWARD_NONE where one does not apply
    std::vector<std::string> texts;        // [N]
    std::vector<int> failed;               // [rewards] completions that one of the user's own failed on, and paid 0 for
};

// What one rank computed of its part, as ints to be gathered: state (0 done, 1 failed, 2 asked to stop), then of each
// reward the failures and the bits of its numbers
inline std::vector<int> reward_share(const RewardedGroup& part, int state) {
    std::vector<int> row = {state};
    for (size_t f = 0; f < part.each.size(); f++) {
        row.push_back(part.failed[f]);
        const size_t at = row.size();
        row.resize(at + part.each[f].size());
        if (!part.each[f].empty()) memcpy(row.data() + at, part.each[f].data(), part.each[f].size() * sizeof(float));
    }
    return row;
}

// the parts of all ranks, which are of equal size, one after another. False: one of them failed
inline bool reward_join(RewardedGroup& r, const std::vector<int>& rows, size_t ranks, size_t n, size_t rewards) {
    r.each.assign(rewards, std::vector<float>(n));
    r.failed.assign(rewards, 0);
    const size_t part = n / ranks, width = rows.size() / ranks;
    bool good = true;
    for (size_t k = 0; k < ranks; k++) {
        const int* row = rows.data() + k * width;
        good &= *row++ != 1;
        for (size_t f = 0; f < rewards; f++, row += part) {
            r.failed[f] += *row++;
            if (part) memcpy(r.each[f].data() + k * part, row, part * sizeof(float));
        }
    }
    return good;
}

// The rewards of the completions [begin, end), which are whole groups
inline int reward_part(RewardedGroup& r, const RewardSet& rewards, const std::vector<RewardInput>& in,
                       const std::vector<int>& prompt, size_t begin, size_t end) {
    const bool whole = rewards_compute(r.total, r.each, rewards, {in.begin() + begin, in.begin() + end},
                                       {prompt.begin() + begin, prompt.begin() + end});
    r.failed.clear();
    for (const RewardEntry& entry : rewards.entries) r.failed.push_back(entry.own ? (int)entry.own->failed : 0);
    return whole ? 0 : 2;
}

// Each rank asks its own program about its part, and all get the same numbers, whatever the program answers: two of them
// need not agree. A rank whose program fails tells the others before it leaves.
inline void reward_over_ranks(RewardedGroup& r, Comm& comm, const RewardSet& rewards,
                              const std::vector<RewardInput>& in, const std::vector<int>& prompt) {
    const size_t n = in.size(), part = n / comm.world, begin = part * comm.rank;
    const size_t F = rewards.entries.size();
    RewardedGroup mine;
    std::string failure;
    int code = 1, state = 1;
    try {
        state = reward_part(mine, rewards, in, prompt, begin, begin + part);
    } catch (const Error& e) {
        failure = e.what(), code = e.exit_code;
        mine.each.assign(F, std::vector<float>(part));
        mine.failed.assign(F, 0);
    }
    const bool good = reward_join(r, comm_gather(comm, reward_share(mine, state)), comm.world, n, F);
    if (!failure.empty()) throw Error(code, failure);
    if (!good) fail("rank %d of %d: the reward of another rank failed; its message says why", comm.rank, comm.world);
    r.total = reward_totals(rewards, r.each, n);
}

// Those of a prompt stand together. max_length: what a completion may have had; means: of each completion, if a reward
// needs them; ranks: those that have the same completions, so that each asks rewards of the user's own about its part of
// the prompts (null: this one about all). Where stop_requested() meanwhile, the numbers may mean nothing
inline RewardedGroup reward_completions(const Tokenizer& tok, const RewardSet& rewards,
                                        const std::vector<Example>& batch, const std::vector<Completion>& completions,
                                        int max_length, const std::vector<TokenMeans>& means = {},
                                        Comm* ranks = nullptr) {
    RewardedGroup r;
    Progress line("rewards", "completion", 0, ProgressKind::part);
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
                      p.problem && p.problem->row ? p.problem->row.get() : nullptr,
                      p.problem ? &p.problem->reward_funcs : nullptr});
        prompt.push_back(c.prompt);
    }
    if (ranks && ranks->world > 1 && rewards.has_own()) reward_over_ranks(r, *ranks, rewards, in, prompt);
    else reward_part(r, rewards, in, prompt, 0, n);
    return r;
}

// Mean and deviation of each reward over the completions that it applies to, under TRL's names; null where there are none
inline void reward_metrics(nlohmann::ordered_json& j, const RewardSet& rewards, const RewardedGroup& r) {
    for (size_t f = 0; f < rewards.entries.size(); f++) {
        const std::string name = "rewards/" + rewards.entries[f].name;
        std::vector<float> applied;
        for (float x : r.each[f])
            if (reward_applies(x)) applied.push_back(x);
        double mean = 0.0;
        for (float x : applied) mean += x / (double)applied.size();
        j[name + "/mean"] = mean;
        j[name + "/std"] = sample_std(applied.data(), (int)applied.size(), mean);
        if (applied.empty()) j[name + "/mean"] = j[name + "/std"] = nullptr;
        if (rewards.entries[f].own && rewards.entries[f].own->zero) j[name + "/failed"] = r.failed[f];
    }
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

// ---------------------------------------------------------------------------------------------------------------------
// what a run is warned by (watch.h)

// Of a step's completions: in how many an answer of any form is found, and how many declare one as `exact` reads it. NaN:
// no reward reads answers. lenient: how many are right wherever the answer stands, where no reward calls one right
struct AnswerShares {
    double found = NAN, declared = NAN, lenient = NAN;
};

// share of the completions that are right by a reward that says so; NaN: none does
inline double right_share(const RewardSet& rewards, const RewardedGroup& r) {
    double right = 0.0, judged = 0.0;
    for (size_t i = 0; i < r.total.size(); i++) {
        bool any = false, good = false;
        for (size_t f = 0; f < rewards.entries.size(); f++) {
            if (!(rewards.entries[f].traits & REWARD_OUTCOME) || !reward_applies(r.each[f][i])) continue;
            any = true, good = good || r.each[f][i] > 0.5f;
        }
        judged += any, right += good;
    }
    return judged > 0.0 ? right / judged : NAN;
}

inline AnswerShares answer_shares(const RewardSet& rewards, const std::vector<Example>& batch,
                                  const std::vector<Completion>& completions, const RewardedGroup& r, int max_length) {
    AnswerShares shares;
    if (!(rewards.traits() & (REWARD_GOLD | REWARD_DECLARED)) || completions.empty()) return shares;
    const bool lenient = right_share(rewards, r) == 0.0;
    const size_t n = completions.size();
    int found = 0, declared = 0, right = 0;
#pragma omp parallel for schedule(dynamic, 4) reduction(+ : found, declared, right)
    for (size_t i = 0; i < n; i++) {
        const Completion& c = completions[i];
        const Prompt& p = batch[c.prompt].prompt;
        const RewardInput in{p.text, r.texts[i], p.gold, c.finished, c.tokens, max_length};
        std::string answer;
        found += !found_answer(in).empty();
        declared += declared_answer(in, answer);
        right += lenient && !p.gold.empty() && reward_accuracy(in) > 0.5f;
    }
    shares.found = (double)found / (double)n, shares.declared = (double)declared / (double)n;
    if (lenient) shares.lenient = (double)right / (double)n;
    return shares;
}

inline void answer_metrics(nlohmann::ordered_json& j, const AnswerShares& shares) {
    if (std::isnan(shares.found)) return;
    j["completions/answered_ratio"] = shares.found;
    j["completions/declared_ratio"] = shares.declared;
}

inline void watched_samples(WatchedStep& s, const std::vector<Completion>& samples) {
    s.completions = (int)samples.size();
    s.clipped = clipped_ratio(samples);
    s.ended_length = sample_length_statistics(samples, true).mean;
}

// the range of the rewards [N], and the standard error of their mean, by the means of the groups of G
inline void watched_rewards(WatchedStep& s, const std::vector<float>& total, int G) {
    std::vector<float> means;
    s.reward_low = INFINITY, s.reward_high = -INFINITY;
    for (size_t g = 0; g < total.size() / G; g++) {
        double sum = 0.0;
        int n = 0;
        for (int i = 0; i < G; i++) {
            const float r = total[g * G + i];
            if (!reward_applies(r)) continue;
            s.reward_low = std::min(s.reward_low, (double)r), s.reward_high = std::max(s.reward_high, (double)r);
            sum += r, n++;
        }
        if (n) means.push_back((float)(sum / n));
    }
    double mean = 0.0;
    for (float m : means) mean += m / (double)means.size();
    if (means.size() > 1)
        s.reward_error = sample_std(means.data(), (int)means.size(), mean) / std::sqrt((double)means.size());
}
