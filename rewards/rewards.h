// Rewards by name: what a completion is paid.
//
// One reward is one function and one line in reward_table(). --reward_funcs names them, --reward_weights weighs them
// (TRL's option names); the reward of a completion is the weighted sum. Sources: `boxed` is boxed_reward of
// understand-r1-zero, `think_format` is TRL's think_format_reward, `overlong` is the soft overlong punishment of DAPO
// (arXiv 2503.14476, equation 13).
//
// The trap: paying for more than the task. `exact` looks only at a declared form in a completion that ended by itself;
// `accuracy` finds answers anywhere and is meant for evaluation.
#pragma once
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>
#include "../runtime/error.h"
#include "../runtime/nearest.h"
#include "../runtime/words.h"
#include "grader.h"

struct RewardInput {
    const std::string& prompt;
    const std::string& completion;  // text, special tokens removed
    const std::string& gold;
    bool finished;          // ended with a stop token, not truncated
    int completion_tokens;  // with the stop token
    int max_completion_length;
};

typedef float (*RewardFn)(const RewardInput& in);

struct RewardEntry {
    const char* name;
    RewardFn fn;
    const char* help;
};

// part of max_completion_length in which `overlong` grows from 0 to -1 (DAPO: 4096 of 20480)
static constexpr double overlong_cache_fraction = 0.2;

// 1 if the last \boxed, else the last "#### N", of a finished completion is right
inline float reward_exact(const RewardInput& in) {
    std::string answer;
    if (!in.finished || (!strict_boxed(in.completion, answer) && !strict_hash(in.completion, answer))) return 0;
    return grade(in.gold, answer) == Verdict::correct ? 1.0f : 0.0f;
}

// 1 if the answer is right, wherever extract_answer finds it; for a letter also what extract_choice finds
inline float reward_accuracy(const RewardInput& in) {
    ExtractedAnswer answer = extract_answer(in.completion);
    if (grade(in.gold, answer.text) == Verdict::correct) return 1;
    bool choice = answer.rule == AnswerRule::none && in.gold.size() == 1 && is_ascii_letter(in.gold[0]);
    return choice && grade(in.gold, extract_choice(in.completion)) == Verdict::correct ? 1.0f : 0.0f;
}

// 1 if the last \boxed is right, and 0.1 more if what it holds can be read: 0, 0.1 or 1.1 for a readable gold
inline float reward_boxed(const RewardInput& in) {
    std::string answer;
    if (!strict_boxed(in.completion, answer)) return 0;
    bool right = grade(in.gold, answer) == Verdict::correct;
    return (right ? 1.0f : 0.0f) + (right || answer_parses(answer) ? 0.1f : 0.0f);
}

// 1 if the visible text declares exactly one answer: one \boxed{...}, or one "#### N", which is then the last line
inline float reward_format(const RewardInput& in) {
    std::string s;
    if (!text_after_thinking(in.completion, s)) return 0;
    int boxes = 0, hashes = 0;
    bool last = false, unclosed = false;
    for (size_t i = 0; i < s.size();) {
        BoxedText box = s[i] == '\\' ? box_at(s, i) : BoxedText();
        boxes += box.state == BoxedText::closed;
        unclosed = unclosed || box.state == BoxedText::unclosed;
        if (unclosed) break;
        i = box.state == BoxedText::closed ? box.end : i + 1;
    }
    for (size_t i = 0; i < s.size();) {
        size_t e = s.find('\n', i);
        if (e == std::string::npos) e = s.size();
        std::string line = s.substr(i, e - i);
        bool hash = !last_hash_answer(line).empty();
        hashes += hash;
        if (!trim_text(line).empty()) last = hash;
        i = e + 1;
    }
    return !unclosed && boxes + hashes == 1 && (hashes == 0 || last) ? 1.0f : 0.0f;
}

// ^<think>(?!.*<think>)(.*?)</think>.*$ where a dot also matches a line feed
inline float reward_think_format(const RewardInput& in) {
    const std::string& s = in.completion;
    if (s.compare(0, 7, "<think>") != 0 || s.find("<think>", 7) != std::string::npos) return 0;
    return s.find("</think>", 7) != std::string::npos ? 1.0f : 0.0f;
}

// 0 up to L = max - cache tokens, then a line to -1 at max, -1 beyond; cache = overlong_cache_fraction * max
inline float reward_overlong(const RewardInput& in) {
    double max = in.max_completion_length, cache = std::max(1.0, std::floor(max * overlong_cache_fraction));
    if (max <= 0) return 0;
    double over = in.completion_tokens - (max - cache);
    return over <= 0 ? 0.0f : (float)-std::min(1.0, over / cache);
}

inline const std::vector<RewardEntry>& reward_table() {
    static const std::vector<RewardEntry> table = {
        {"exact", reward_exact, "1 if the last \\boxed or #### of a finished completion is right"},
        {"accuracy", reward_accuracy, "1 if the answer is right, wherever it stands"},
        {"boxed", reward_boxed, "1 if the last \\boxed is right, plus 0.1 if it can be read"},
        {"format", reward_format, "1 if exactly one answer is declared, by \\boxed or by #### in the last line"},
        {"think_format", reward_think_format, "1 if the completion is <think>...</think> and then anything"},
        {"overlong", reward_overlong, "0 to -1 in the last fifth of max_completion_length"},
    };
    return table;
}

struct RewardSet {
    std::vector<RewardEntry> entries;  // [rewards]
    std::vector<float> weights;        // [rewards]
};

// "exact,format" and "1.0,0.1"; no weights: all 1. Wrong names, counts and numbers are usage errors.
inline RewardSet rewards_parse(const std::string& names, const std::string& weights) {
    RewardSet set;
    std::vector<std::string> known;
    for (const RewardEntry& entry : reward_table()) known.push_back(entry.name);
    const std::string list = join_words(known);
    for (const std::string& full : split_words(names)) {
        const std::string name = full.substr(0, 64);
        const RewardEntry* found = nullptr;
        for (const RewardEntry& entry : reward_table())
            if (name == entry.name) found = &entry;
        if (name.empty())
            fail_usage("--reward_funcs: an empty name in '%s'; rewards: %s", names.c_str(), list.c_str());
        if (!found)
            fail_usage("--reward_funcs: '%s' is not one of %s%s", name.c_str(), list.c_str(),
                       did_you_mean(name, known).c_str());
        for (const RewardEntry& entry : set.entries)
            if (entry.fn == found->fn) fail_usage("--reward_funcs: '%s' is named twice", name.c_str());
        set.entries.push_back(*found);
    }
    if (trim_text(weights).empty()) {
        set.weights.assign(set.entries.size(), 1.0f);
        return set;
    }
    for (const std::string& part : split_words(weights)) {
        char* end = nullptr;
        float w = strtof(part.c_str(), &end);
        if (part.empty() || *end != 0 || !(std::fabs(w) <= 1e6f))
            fail_usage("--reward_weights: '%s' is not a number in [-1000000, 1000000]", part.c_str());
        set.weights.push_back(w);
    }
    if (set.weights.size() != set.entries.size()) {
        fail_usage("--reward_weights: %zu weights for %zu rewards in --reward_funcs %s; give one each",
                   set.weights.size(), set.entries.size(), names.c_str());
    }
    return set;
}

// The weighted sum; `each` [rewards] receives the rewards without their weights, and may be null.
inline float rewards_compute(const RewardSet& set, const RewardInput& in, float* each) {
    float combined = 0;
    for (size_t i = 0; i < set.entries.size(); i++) {
        float r = set.entries[i].fn(in);
        if (each) each[i] = r;
        combined += set.weights[i] * r;
    }
    return combined;
}
