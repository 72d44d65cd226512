// samples.jsonl: what a few completions look like token by token, for a person who asks what the run rewards. One line a
// step: one prompt and up to four of its completions.
//   step, prompt, gold
//   completions   [] of  sample (its number in the group), reward, rewards {name: number or null}, advantage, finished,
//     tokens      texts, one after another the completion; bytes that are no UTF-8 by themselves are U+FFFD
//     ids         the tokens
//     logp        under the trainer's policy before the first update, at the sampling temperature
//     sampler_logp, advantages, entropy   where the sampler differs; where a completion's tokens differ; where it is known
//     skipped     of a longer completion: tokens that are left out behind the first SAMPLE_FIRST_TOKENS
// Numbers have 4 digits. The steps: the first and the last, SAMPLE_STEPS spread evenly, and those of evaluations unless these
// are more than twice as many. The group: the first whose rewards differ, else the first.
#pragma once
#include "policy_pass.cuh"
#include "samples.cuh"

static constexpr int64_t SAMPLE_STEPS = 20;
static constexpr int SAMPLE_COMPLETIONS = 4, SAMPLE_FIRST_TOKENS = 64, SAMPLE_LAST_TOKENS = 320;

// step: from 1, of `steps`; evaluates: every so many, 0: never
inline bool token_samples_due(int64_t step, int64_t steps, int64_t evaluates, bool last) {
    const int64_t every = std::max<int64_t>((steps + SAMPLE_STEPS - 1) / SAMPLE_STEPS, 1);
    const bool few = evaluates > 0 && steps / evaluates <= 2 * SAMPLE_STEPS;
    return step == 1 || last || step % every == 0 || (few && step % evaluates == 0);
}

// the first group of G whose rewards differ, else 0
inline int telling_group(const std::vector<float>& total, int G) {
    for (size_t i = 0; i + (size_t)G <= total.size(); i += (size_t)G)
        for (int k = 1; k < G; k++)
            if (total[i + (size_t)k] != total[i]) return (int)i / G;
    return 0;
}

// Places in [begin, end): the best and the worst reward, then the first ones; ascending
inline std::vector<int> told_completions(const std::vector<float>& total, int begin, int end) {
    std::vector<int> told;
    auto add = [&](int i) {
        if ((int)told.size() < SAMPLE_COMPLETIONS && std::find(told.begin(), told.end(), i) == told.end())
            told.push_back(i);
    };
    add((int)(std::max_element(total.begin() + begin, total.begin() + end) - total.begin()));
    add((int)(std::min_element(total.begin() + begin, total.begin() + end) - total.begin()));
    for (int i = begin; i < end; i++) add(i);
    std::sort(told.begin(), told.end());
    return told;
}

inline nlohmann::ordered_json four_digits(const std::vector<float>& values, const std::vector<int>& places) {
    nlohmann::ordered_json j = nlohmann::ordered_json::array();
    for (int t : places) j.push_back(std::strtod(format("%.4g", (double)values[t]).c_str(), nullptr));
    return j;
}

// What a step knows of its completions. N of them, G to a prompt
struct TokenSamples {
    const Tokenizer& tok;
    const std::vector<Example>& batch;
    const std::vector<Completion>& samples;
    const RewardSet& rewards;
    const RewardedGroup& rewarded;
    const PolicyData& data;
    const std::vector<std::vector<float>>& entropy;  // [N][n]; empty: it is not known
    int G = 1;
};

inline nlohmann::ordered_json token_sample(const TokenSamples& s, int i) {
    const Completion& c = s.samples[i];
    const int n = (int)c.tokens.size(), most = SAMPLE_FIRST_TOKENS + SAMPLE_LAST_TOKENS;
    std::vector<int> places;
    for (int t = 0; t < n; t++)
        if (n <= most || t < SAMPLE_FIRST_TOKENS || t >= n - SAMPLE_LAST_TOKENS) places.push_back(t);
    nlohmann::ordered_json j, tokens = nlohmann::ordered_json::array(), ids = tokens;
    for (int t : places) {
        tokens.push_back(std::string(tokenizer_token_bytes(s.tok, c.tokens[t])));
        ids.push_back(c.tokens[t]);
    }
    j["sample"] = c.sample;
    j["reward"] = s.rewarded.total[i];
    for (size_t f = 0; f < s.rewards.entries.size(); f++)
        j["rewards"][s.rewards.entries[f].name] = s.rewarded.each[f][i];
    j["advantage"] = s.data.advantages[i];
    j["finished"] = c.finished;
    j["length"] = n;
    j["tokens"] = tokens;
    j["ids"] = ids;
    j["logp"] = four_digits(s.data.old.empty() ? c.logps : s.data.old[i], places);
    if (!s.data.old.empty()) j["sampler_logp"] = four_digits(c.logps, places);
    if (!s.data.token_advantages.empty()) j["advantages"] = four_digits(s.data.token_advantages[i], places);
    if (!s.entropy.empty() && !s.entropy[i].empty()) j["entropy"] = four_digits(s.entropy[i], places);
    if (n > most) j["skipped"] = n - most;
    return j;
}

inline nlohmann::ordered_json token_samples_line(const TokenSamples& s, int64_t step) {
    const int group = telling_group(s.rewarded.total, s.G);
    const Prompt& prompt = s.batch[s.samples[(size_t)group * s.G].prompt].prompt;
    nlohmann::ordered_json j;
    j["step"] = step;
    j["prompt"] = prompt.text;
    j["gold"] = prompt.gold;
    j["completions"] = nlohmann::ordered_json::array();
    for (int i : told_completions(s.rewarded.total, group * s.G, (group + 1) * s.G))
        j["completions"].push_back(token_sample(s, i));
    return j;
}
