// Rewards by name: what a completion is paid.
//
// One reward is one function and one line in reward_table(). --reward_funcs names them with their settings,
// --reward_weights weighs them (TRL's option names); the reward of a completion is the weighted sum. A reward is of one
// completion, or (majority) of all completions of a prompt; most read text, two read what the policy itself thinks of the
// tokens, which is computed only if one of them is named. Sources: `boxed` is boxed_reward of understand-r1-zero,
// `think_format`, `overlong` (DAPO, arXiv 2503.14476, equation 13), `cosine` and `repetition` (arXiv 2502.03373) are TRL's
// and go by TRL's names, too. Without a gold answer: `majority` (TTRL, arXiv 2504.16084), `self_certainty` (Intuitor,
// arXiv 2505.19590), `entropy` (arXiv 2505.15134).
//
// The trap: paying for more than the task. `exact` looks only at a declared form in a completion that ended by itself;
// `accuracy` finds answers anywhere and is meant for evaluation. Rewards without a gold answer pay a policy for agreeing
// with itself, at which it gets better whether it is right or not.
#pragma once
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>
#include "../runtime/error.h"
#include "../runtime/json.h"
#include "../runtime/nearest.h"
#include "../runtime/settings.h"
#include "../runtime/words.h"
#include "grader.h"
#include "repetition.h"

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
};

// of one completion, or of the G completions of a prompt (r [G]); the other is null
struct RewardFn {
    float (*one)(const RewardInput& in, const Settings& s) = nullptr;
    void (*group)(float* r, const RewardInput* in, int G, const Settings& s) = nullptr;
    RewardFn(decltype(one) f) : one(f) {}
    RewardFn(decltype(group) f) : group(f) {}
};

enum RewardTrait : unsigned {
    REWARD_OUTCOME = 1,  // says whether the completion is right, by more than 0.5: what --dynamic_sampling goes by
    REWARD_GOLD = 2,     // reads the gold answer
    REWARD_ENTROPY = 4,  // needs that mean
    REWARD_SELF_CERTAINTY = 8,
};

struct RewardEntry {
    const char* name;
    RewardFn fn;
    unsigned traits;
    const char* help;
    std::vector<SettingRow> settings = {};
    const char* trl = nullptr;  // TRL's name of it, which in TRL goes on with _reward
};

// part of max_completion_length in which `overlong` grows from 0 to -1 unless its cache is given (DAPO: 4096 of 20480)
static constexpr double overlong_cache_fraction = 0.2;

// the last \boxed, else the last "#### N", of a finished completion; false: none
inline bool declared_answer(const RewardInput& in, std::string& answer) {
    return in.finished && (strict_boxed(in.completion, answer) || strict_hash(in.completion, answer));
}

// 1 if the last \boxed, else the last "#### N", of a finished completion is right
inline float reward_exact(const RewardInput& in, const Settings& = {}) {
    std::string answer;
    if (!declared_answer(in, answer)) return 0;
    return grade(in.gold, answer) == Verdict::correct ? 1.0f : 0.0f;
}

// the answer that `accuracy` reads: what extract_answer finds; for a gold letter without one, what extract_choice finds
inline std::string found_answer(const RewardInput& in) {
    const ExtractedAnswer answer = extract_answer(in.completion);
    const bool choice = answer.rule == AnswerRule::none && in.gold.size() == 1 && is_ascii_letter(in.gold[0]);
    return choice ? extract_choice(in.completion) : answer.text;
}

// 1 if the answer is right, wherever it is found
inline float reward_accuracy(const RewardInput& in, const Settings& = {}) {
    return grade(in.gold, found_answer(in)) == Verdict::correct ? 1.0f : 0.0f;
}

// 1 if the last \boxed is right, and 0.1 more if what it holds can be read: 0, 0.1 or 1.1 for a readable gold
inline float reward_boxed(const RewardInput& in, const Settings&) {
    std::string answer;
    if (!strict_boxed(in.completion, answer)) return 0;
    bool right = grade(in.gold, answer) == Verdict::correct;
    return (right ? 1.0f : 0.0f) + (right || answer_parses(answer) ? 0.1f : 0.0f);
}

// 1 if the visible text declares exactly one answer: one \boxed{...}, or one "#### N", which is then the last line
inline float reward_format(const RewardInput& in, const Settings&) {
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
inline float reward_think_format(const RewardInput& in, const Settings&) {
    const std::string& s = in.completion;
    if (s.compare(0, 7, "<think>") != 0 || s.find("<think>", 7) != std::string::npos) return 0;
    return s.find("</think>", 7) != std::string::npos ? 1.0f : 0.0f;
}

// 0 up to L = max - cache tokens, then a line to -1 at max, -1 beyond; cache = overlong_cache_fraction * max unless given
inline float reward_overlong(const RewardInput& in, const Settings& s) {
    double max = in.max_completion_length, cache = std::max(1.0, std::floor(max * overlong_cache_fraction));
    if (max <= 0) return 0;
    if (s.whole("cache") > 0) cache = s.number("cache");
    double over = (double)in.tokens.size() - (max - cache);
    return over <= 0 ? 0.0f : (float)-std::min(1.0, over / cache);
}

// low + (high - low) (1 + cos(pi min(L / max_len, 1))) / 2: from high at no tokens to low at max_len, where right from
// max_correct to min_correct, and where wrong from min_wrong to max_wrong. Right is what `exact` says it is.
inline float reward_cosine(const RewardInput& in, const Settings& s) {
    const bool right = reward_exact(in) > 0.5f;
    const double low = s.number(right ? "min_correct" : "max_wrong"),
                 high = s.number(right ? "max_correct" : "min_wrong");
    const double most = s.whole("max_len") > 0 ? s.number("max_len") : std::max(in.max_completion_length, 1);
    const double progress = std::min((double)in.tokens.size() / most, 1.0);
    return (float)(low + 0.5 * (high - low) * (1.0 + std::cos(progress * 3.14159265358979323846)));
}

// max_penalty times the share of the tokens' n-grams that came before
inline float reward_repetition(const RewardInput& in, const Settings& s) {
    return (float)(repeated_ngram_share(in.tokens, (int)s.whole("n")) * s.number("max_penalty"));
}

inline float reward_entropy(const RewardInput& in, const Settings&) { return -in.means.entropy; }
inline float reward_self_certainty(const RewardInput& in, const Settings&) { return in.means.self_certainty; }

// 1 if the answer that `exact` would grade is the one that most of the group declare: at least two, of equally many the
// first. Each counts for the first answer before it that the grader calls equal. Words count for nothing, or a group
// would be paid for agreeing on "unknown".
inline void reward_majority(float* r, const RewardInput* in, int G, const Settings&) {
    std::vector<std::string> answers;  // those that differ
    std::vector<int> votes, of(G, -1);
    for (int i = 0; i < G; i++) {
        std::string answer;
        if (!declared_answer(in[i], answer) || !answer_parses(answer)) continue;
        size_t k = 0;
        while (k < answers.size() && grade(answers[k], answer) != Verdict::correct) k++;
        if (k == answers.size()) answers.push_back(answer), votes.push_back(0);
        of[i] = (int)k;
        votes[k]++;
    }
    const auto most = std::max_element(votes.begin(), votes.end());
    const int winner = most == votes.end() || *most < 2 ? G : (int)(most - votes.begin());
    for (int i = 0; i < G; i++) r[i] = of[i] == winner ? 1.0f : 0.0f;
}

inline const std::vector<RewardEntry>& reward_table() {
    constexpr unsigned RIGHT = REWARD_OUTCOME | REWARD_GOLD;
    // clang-format off
    static const std::vector<RewardEntry> table = {
        {"exact", reward_exact, RIGHT, "1 if the last \\boxed or #### of a finished completion is right"},
        {"accuracy", reward_accuracy, RIGHT, "1 if the answer is right, wherever it stands"},
        {"boxed", reward_boxed, RIGHT, "1 if the last \\boxed is right, plus 0.1 if it can be read"},
        {"majority", reward_majority, REWARD_OUTCOME, "1 if the answer that exact would grade is that of most completions of the prompt, two at least"},
        {"format", reward_format, 0, "1 if exactly one answer is declared, by \\boxed or by #### in the last line"},
        {"think_format", reward_think_format, 0, "1 if the completion is <think>...</think> and then anything", {}, "think_format"},
        {"overlong", reward_overlong, 0, "0, falling to -1 where max_completion_length ends",
         {{"cache", "0", "whole [0, 1048576]", "in its last that many tokens; 0: in its last fifth"}}, "soft_overlong_punishment"},
        {"cosine", reward_cosine, REWARD_GOLD, "right or wrong as exact has it, by a cosine of the length: right is better short, wrong is better long",
         {{"min_wrong", "-1", "[-100, 100]", "of a wrong completion without tokens"},
          {"max_wrong", "-0.5", "[-100, 100]", "of a wrong one of max_len tokens or more"},
          {"min_correct", "0.5", "[-100, 100]", "of a right one of max_len tokens or more"},
          {"max_correct", "1", "[-100, 100]", "of a right one without tokens"},
          {"max_len", "0", "whole [0, 1048576]", "tokens; 0: max_completion_length"}}, "cosine_scaled"},
        {"repetition", reward_repetition, 0, "max_penalty times the share of token n-grams that came before",
         {{"n", "3", "whole [1, 1024]", "tokens of an n-gram"},
          {"max_penalty", "-1", "[-100, 0]", "what nothing but repeats would get"}}, "repetition_penalty"},
        {"entropy", reward_entropy, REWARD_ENTROPY, "minus the policy's mean entropy at the completion's tokens"},
        {"self_certainty", reward_self_certainty, REWARD_SELF_CERTAINTY, "mean KL(uniform, policy) at the completion's tokens"},
    };
    // clang-format on
    return table;
}

struct RewardSet {
    std::vector<RewardEntry> entries;  // [rewards]
    std::vector<Settings> settings;    // [rewards]
    std::vector<float> weights;        // [rewards]
    unsigned traits() const {          // of any
        unsigned all = 0;
        for (const RewardEntry& entry : entries) all |= entry.traits;
        return all;
    }
};

inline const RewardEntry* find_reward(const std::string& name) {
    for (const RewardEntry& entry : reward_table())
        if (name == entry.name || (entry.trl && (name == entry.trl || name == entry.trl + std::string("_reward"))))
            return &entry;
    return nullptr;
}

// "exact,overlong:cache=64" and "1.0,0.1"; no weights: all 1. Wrong names, settings, counts and numbers are usage errors.
inline RewardSet rewards_parse(const std::string& names, const std::string& weights) {
    RewardSet set;
    std::vector<std::string> known;
    for (const RewardEntry& entry : reward_table()) known.push_back(entry.name);
    const std::string list = join_words(known);
    for (const std::string& text : split_words(names)) {
        const std::string name = split_words(text, ":")[0].substr(0, 64);
        if (name.empty())
            fail_usage("--reward_funcs: an empty name in '%s'; rewards: %s", printable(names).c_str(), list.c_str());
        const RewardEntry* found = find_reward(name);
        if (!found)
            fail_usage("--reward_funcs: '%s' is not one of %s%s (train_qrl help rewards)", printable(name).c_str(),
                       list.c_str(), did_you_mean(name, known).c_str());
        for (const RewardEntry& entry : set.entries)
            if (entry.name == found->name) fail_usage("--reward_funcs: '%s' is named twice", found->name);
        set.entries.push_back(*found);
        set.settings.push_back(settings_of(text, found->settings, "reward_funcs"));
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

// help rewards
inline std::string rewards_help() {
    std::string text =
        "--reward_funcs NAME[:SETTING=VALUE ...], several joined by commas, as in exact,overlong:cache=64\n"
        "(outcome): says right or wrong, which --dynamic_sampling goes by\n\n";
    for (const RewardEntry& r : reward_table()) {
        text += format("  %-15s%s%s", r.name, r.help, r.traits & REWARD_OUTCOME ? " (outcome)" : "");
        if (r.trl) text += format("; TRL's %s_reward", r.trl);
        text += "\n" + settings_help(r.settings);
    }
    return text;
}

// Those of them that say right or wrong and count
inline RewardSet outcome_rewards(const RewardSet& all) {
    RewardSet set;
    for (size_t f = 0; f < all.entries.size(); f++) {
        if (!(all.entries[f].traits & REWARD_OUTCOME) || all.weights[f] == 0.0f) continue;
        set.entries.push_back(all.entries[f]);
        set.settings.push_back(all.settings[f]);
        set.weights.push_back(all.weights[f]);
    }
    return set;
}

// Rewards of N completions: each [rewards][N], without weights; total [N], the weighted sums. group [N]: the prompts'
// numbers; those of one stand together.
inline void rewards_compute(std::vector<float>& total, std::vector<std::vector<float>>& each, const RewardSet& set,
                            const std::vector<RewardInput>& in, const std::vector<int>& group) {
    const size_t N = in.size(), F = set.entries.size();
    each.assign(F, std::vector<float>(N));
    total.assign(N, 0.0f);
#pragma omp parallel for schedule(dynamic, 4)
    for (size_t i = 0; i < N; i++)
        for (size_t f = 0; f < F; f++)
            if (set.entries[f].fn.one) each[f][i] = set.entries[f].fn.one(in[i], set.settings[f]);
    for (size_t i = 0, end; i < N; i = end) {
        for (end = i + 1; end < N && group[end] == group[i];) end++;
        for (size_t f = 0; f < F; f++)
            if (set.entries[f].fn.group)
                set.entries[f].fn.group(each[f].data() + i, in.data() + i, (int)(end - i), set.settings[f]);
    }
    for (size_t i = 0; i < N; i++)
        for (size_t f = 0; f < F; f++) total[i] += set.weights[f] * each[f][i];
}
