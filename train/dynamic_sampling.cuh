// Dynamic sampling (Yu et al. 2025, DAPO, arXiv 2503.14476, section 3.2): a prompt whose G completions are all right or
// all wrong has no advantage, and another one takes its place before the update.
//
// The outcome decides, and not the whole reward: the weighted sum of the rewards that say right or wrong (REWARD_OUTCOME),
// each taken as 1 above 0.5 and else as 0. A length penalty would give every group a spread, and a wrong one, too.
//
// Prompts come in batches of as many as are missing, from an order of the step's own (further_examples), until none is
// missing, max_batches have been sampled, or there are no more. What is still missing then keeps its first prompt. The
// draws of a further prompt are keyed by the step and its number, which goes on behind the batch's own.
//
// The trap: ranks share a batch evenly. It is filled up to a multiple of them, and what fills it up is not used, or the
// number of ranks would decide which prompts are trained on.
#pragma once
#include <vector>
#include "samples.cuh"
#include "objective.cuh"

// of one step; groups: of completions of a prompt
struct DynamicSampling {
    int generated_groups = 0, redrawn_groups = 0, left_zero_std = 0, batches = 0;
};

inline void dynamic_sampling_metrics(nlohmann::ordered_json& j, const DynamicSampling& d) {
    j["dynamic_sampling/generated_groups"] = d.generated_groups;
    j["dynamic_sampling/redrawn_groups"] = d.redrawn_groups;
    j["dynamic_sampling/left_zero_std"] = d.left_zero_std;
    j["dynamic_sampling/batches"] = d.batches;
}

// [N] the outcome of each completion; REWARD_NONE where no reward that says one applies, so that its group stays. rewards:
// outcome_rewards()
inline std::vector<float> completion_outcomes(const Tokenizer& tok, const RewardSet& rewards,
                                              const std::vector<Example>& batch,
                                              const std::vector<Completion>& completions, int max_length,
                                              Comm* ranks = nullptr) {
    const RewardedGroup r = reward_completions(tok, rewards, batch, completions, max_length, {}, ranks);
    std::vector<float> outcome(completions.size());
    for (size_t f = 0; f < rewards.entries.size(); f++)
        for (size_t i = 0; i < outcome.size(); i++) outcome[i] += rewards.weights[f] * (r.each[f][i] > 0.5f);
    for (size_t i = 0; i < outcome.size(); i++)
        if (!reward_applies(r.total[i])) outcome[i] = REWARD_NONE;
    return outcome;
}

// the groups whose outcomes are all equal
inline std::vector<int> silent_groups(const std::vector<float>& outcome, int G) {
    std::vector<int> silent;
    for (size_t g = 0; g < outcome.size() / G; g++) {
        const float* o = outcome.data() + g * G;
        if (std::all_of(o, o + G, [&](float x) { return x == o[0]; })) silent.push_back((int)g);
    }
    return silent;
}

// What redraw_groups asks for
struct Redraw {
    int G = 1, max_batches = 2;
    // G completions of each prompt; first: the number of the first prompt among those of the step
    std::function<std::vector<Completion>(const std::vector<std::vector<int>>& prompts, int first)> sample;
    std::function<std::vector<float>(const std::vector<Example>&, const std::vector<Completion>&)> outcome;  // [N]
};

// the further group k in place p
inline void take_group(std::vector<Example>& batch, std::vector<Completion>& samples, int p,
                       const std::vector<Example>& further, std::vector<Completion>& done, int k, int G) {
    batch[p] = further[k];
    for (int s = 0; s < G; s++) {
        samples[p * G + s] = std::move(done[k * G + s]);
        samples[p * G + s].prompt = p;
    }
}

// batch [P] and samples [P*G], prompt by prompt, are those of the step. False: it was asked to stop
inline bool redraw_groups(std::vector<Example>& batch, std::vector<Completion>& samples, const Redraw& r,
                          const StepContext& c, DynamicSampling& count) {
    const int P = (int)batch.size();
    std::vector<int> missing = silent_groups(r.outcome(batch, samples), r.G);
    if (step_stop(c)) return false;
    count = {P, 0, 0, 1};
    for (int drawn = 0; !missing.empty() && count.batches < r.max_batches; count.batches++) {
        std::vector<Example> further = c.more(drawn, (int64_t)missing.size());
        const int n = (int)further.size();
        if (n == 0) break;
        while (further.size() % c.world()) further.push_back(further.back());
        std::vector<std::vector<int>> prompts;
        for (const Example& e : further) prompts.push_back(e.prompt.tokens);
        std::vector<Completion> done = r.sample(prompts, P + drawn);
        if (step_stop(c)) return false;
        const std::vector<int> silent = silent_groups(r.outcome(further, done), r.G);
        if (step_stop(c)) return false;
        auto place = missing.begin();
        for (int k = 0; k < n; k++)
            if (!std::binary_search(silent.begin(), silent.end(), k))
                take_group(batch, samples, *place++, further, done, k, r.G);
        count.redrawn_groups += (int)(place - missing.begin());
        count.generated_groups += n;
        missing.erase(missing.begin(), place);
        drawn += n;
    }
    count.left_zero_std = (int)missing.size();
    return true;
}
