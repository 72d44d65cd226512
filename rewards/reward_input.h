// What a reward is told of a completion, and what a reward of the user's own is to the rest (program.h, library.h).
#pragma once
#include <cmath>
#include <limits>
#include <string>
#include <vector>
#include "../runtime/json.h"

// A reward that does not apply to a completion: left out of sums, means and deviations (TRL's None)
inline const float REWARD_NONE = std::numeric_limits<float>::quiet_NaN();
inline bool reward_applies(float reward) { return !std::isnan(reward); }

// what a reward of the user's own may pay, so that no weighted sum of them leaves the range of a float
static constexpr double REWARD_MOST = 1e9;

// Means over a completion's tokens, under the policy that sampled it (train/self_certainty.cuh)
struct TokenMeans {
    float entropy = 0.0f, self_certainty = 0.0f;  // nats
};

struct RewardInput {
    const std::string& prompt;
    const std::string& completion;  // text, special tokens removed
    const std::string& gold;
    bool finished;                   // ended with a stop token, not truncated
    const std::vector<int>& tokens;  // with the stop token
    int max_completion_length;
    TokenMeans means = {};                        // if a reward needs them
    const nlohmann::ordered_json* row = nullptr;  // the fields of the problem's row; null: it comes from no file
    const std::string* reward_funcs = nullptr;    // of that row: the rewards that apply to it; null: all
};

// A completion that a reward of the user's own is asked about
struct RewardItem {
    const RewardInput* in;
    int prompt, sample;  // numbers within the batch, from 1, for messages
    float* reward;       // the answer goes here
};

inline std::string item_text(const RewardItem& item) {
    return format("prompt %d, sample %d (of %s)", item.prompt, item.sample,
                  shown(item.in->prompt.substr(0, item.in->prompt.find_last_not_of(" \n") + 1)).c_str());
}

struct OwnReward {
    std::string name, path;
    bool zero = false;   // a completion that it fails on is paid 0; else the run ends
    int64_t failed = 0;  // completions that were paid 0 so, of the last compute()
    int noted = 0;       // notes about them

    virtual ~OwnReward() = default;
    virtual void start() {}  // what can be said before the long work is said here
    virtual void check() {}  // is it still there? before the first compute()
    // Pays each of the items. False: the run was asked to stop, and nothing is known of them
    virtual bool compute(const std::vector<RewardItem>& items) = 0;

    std::string where(const RewardItem* items, size_t n) const {
        return format("--reward_funcs %s: %s%s", path.c_str(), item_text(items[0]).c_str(),
                      n > 1 ? format(" and %zu more of its batch", n - 1).c_str() : "");
    }
    // They get no answer, for this reason: ends the run, or pays 0 and says so, at first
    void give_up(const RewardItem* items, size_t n, const std::string& why) {
        const std::string line = where(items, n) + ": " + why;
        if (!zero) fail("%s; mend it, or give %s:on_error=zero to pay 0 then", line.c_str(), path.c_str());
        static constexpr int notes = 10;
        if (noted++ < notes)
            fprintf(stderr, "note: %s; paid 0%s\n", escape_controls(line).c_str(),
                    noted == notes ? " (more are counted as rewards/NAME/failed, and not told)" : "");
        for (size_t i = 0; i < n; i++) *items[i].reward = 0.0f;
        failed += (int64_t)n;
    }
};
