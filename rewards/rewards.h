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
//
// A name with a slash is a reward of the user's own: a shared library where it ends in .so or .dylib (library.h), else a
// program (program.h). Its name in logs is the file's stem. rewards_parse starts and loads nothing.
//
// A row of a data set may name the rewards that apply to it in a field reward_funcs. A reward that does not apply is
// REWARD_NONE, a completion to which none applies has no total.
#pragma once
#include <sys/stat.h>
#include <unistd.h>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>
#include "../runtime/error.h"
#include "../runtime/json.h"
#include "../runtime/nearest.h"
#include "../runtime/settings.h"
#include "../runtime/words.h"
#include "grader.h"
#include "library.h"
#include "program.h"
#include "repetition.h"
#include "reward_input.h"

// of one completion, or of the G completions of a prompt (r [G]); the other is null
struct RewardFn {
    float (*one)(const RewardInput& in, const Settings& s) = nullptr;
    void (*group)(float* r, const RewardInput* in, int G, const Settings& s) = nullptr;
    RewardFn() = default;
    RewardFn(decltype(one) f) : one(f) {}
    RewardFn(decltype(group) f) : group(f) {}
};

enum RewardTrait : unsigned {
    REWARD_OUTCOME = 1,  // says whether the completion is right, by more than 0.5: what --dynamic_sampling goes by
    REWARD_GOLD = 2,     // reads the gold answer
    REWARD_ENTROPY = 4,  // needs that mean
    REWARD_SELF_CERTAINTY = 8,
    REWARD_ROW = 16,       // is told the fields of the problem's row
    REWARD_DECLARED = 32,  // reads a declared answer (\boxed, or a last line ####) and no other
};

struct RewardEntry {
    std::string name;
    RewardFn fn;
    unsigned traits;
    const char* help;
    std::vector<SettingRow> settings = {};
    const char* trl = nullptr;                 // TRL's name of it, which in TRL goes on with _reward
    std::shared_ptr<OwnReward> own = nullptr;  // of the user's; it has no fn then
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
    constexpr unsigned RIGHT = REWARD_OUTCOME | REWARD_GOLD, STRICT = RIGHT | REWARD_DECLARED;
    // clang-format off
    static const std::vector<RewardEntry> table = {
        {"exact", reward_exact, STRICT, "1 if the last \\boxed or #### of a finished completion is right"},
        {"accuracy", reward_accuracy, RIGHT, "1 if the answer is right, wherever it stands"},
        {"boxed", reward_boxed, STRICT, "1 if the last \\boxed is right, plus 0.1 if it can be read"},
        {"majority", reward_majority, REWARD_OUTCOME | REWARD_DECLARED, "1 if the answer that exact would grade is that of most completions of the prompt, two at least"},
        {"format", reward_format, 0, "1 if exactly one answer is declared, by \\boxed or by #### in the last line"},
        {"think_format", reward_think_format, 0, "1 if the completion is <think>...</think> and then anything", {}, "think_format"},
        {"overlong", reward_overlong, 0, "0, falling to -1 where max_completion_length ends",
         {{"cache", "0", "whole [0, 1048576]", "in its last that many tokens; 0: in its last fifth"}}, "soft_overlong_punishment"},
        {"cosine", reward_cosine, REWARD_GOLD | REWARD_DECLARED, "right or wrong as exact has it, by a cosine of the length: right is better short, wrong is better long",
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
    bool has_own() const {
        for (const RewardEntry& entry : entries)
            if (entry.own) return true;
        return false;
    }
    // Programs are started and libraries loaded, before the long work; without this at the first completion
    void start() const {
        for (const RewardEntry& entry : entries)
            if (entry.own) entry.own->start();
    }
    // fails where a program has ended already, say because it found no module
    void check() const {
        for (const RewardEntry& entry : entries)
            if (entry.own) entry.own->check();
    }
};

inline const RewardEntry* find_reward(const std::string& name) {
    for (const RewardEntry& entry : reward_table())
        if (name == entry.name || (entry.trl && (name == entry.trl || name == entry.trl + std::string("_reward"))))
            return &entry;
    return nullptr;
}

// ---------------------------------------------------------------------------------------------------------------------
// rewards of the user's own

inline bool file_is_there(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

inline bool is_own_reward(const std::string& name) { return name.find('/') != std::string::npos; }

inline bool is_reward_library(const std::string& path) {
    auto ends = [&](const std::string& end) {
        return path.size() >= end.size() && path.compare(path.size() - end.size(), end.size(), end) == 0;
    };
    return ends(".so") || ends(".dylib");
}

// "./rewards/my_reward.py" -> "my_reward": a key of metrics.jsonl and of completions.jsonl
inline std::string own_reward_name(const std::string& path) {
    std::string stem = path.substr(path.rfind('/') + 1);
    if (stem.rfind('.') != std::string::npos && stem.rfind('.') > 0) stem.resize(stem.rfind('.'));
    const std::string file = printable(path);
    bool plain = !stem.empty() && stem.size() <= 64;
    for (char c : stem) plain = plain && (isalnum((unsigned char)c) || c == '_' || c == '-' || c == '.');
    if (!plain)
        fail_usage(
            "--reward_funcs: %s is logged under its file's name without the ending: 1 to 64 of A-Z a-z 0-9 _ - .",
            file.c_str());
    for (const char* key : {"step", "prompt", "completion", "gold", "advantage", "finished"})
        if (stem == key)
            fail_usage("--reward_funcs: %s would be logged as '%s', which is taken; rename it", file.c_str(), key);
    if (find_reward(stem))
        fail_usage("--reward_funcs: %s has the name of the reward '%s'; rename it", file.c_str(), stem.c_str());
    return stem;
}

// The file is there, and may be executed or loaded; nothing is done with it
inline void check_own_reward(const std::string& path) {
    const bool library = is_reward_library(path);
    const char* what = library ? "shared library" : "program";
    struct stat st;
    if (path.size() > 4096 || stat(path.c_str(), &st) != 0)
        fail_usage("--reward_funcs: there is no file %s; a name with a / is the path of a %s",
                   printable(path, 200).c_str(), what);
    if (!S_ISREG(st.st_mode))
        fail_usage("--reward_funcs: %s is %s; give the file of a %s", printable(path, 200).c_str(),
                   S_ISDIR(st.st_mode) ? "a folder" : "not a file", what);
    if (!library && access(path.c_str(), X_OK) != 0)
        fail_usage(
            "--reward_funcs: %s may not be executed; chmod +x it, and let its first line say what runs it, such as "
            "#!/usr/bin/env python3",
            printable(path, 200).c_str());
}

// text: "./my_reward.py:timeout=10"
inline RewardEntry own_reward(const std::string& path, const std::string& text, Settings* settings) {
    const bool library = is_reward_library(path);
    const std::vector<SettingRow>& rows = library ? library_settings() : program_settings();
    RewardEntry entry = {own_reward_name(path), {}, REWARD_ROW, "a reward of the user's own", rows, nullptr, nullptr};
    *settings = settings_of(text, rows, "reward_funcs");
    check_own_reward(path);
    if (settings->is("outcome", "true")) entry.traits |= REWARD_OUTCOME;
    if (library) entry.own = std::make_shared<LibraryReward>(entry.name, *settings);
    else entry.own = std::make_shared<ProgramReward>(entry.name, *settings);
    return entry;
}

// the files of those in a text of --reward_funcs
inline std::vector<std::string> own_reward_files(const std::string& names) {
    std::vector<std::string> files;
    for (const std::string& text : split_words(names))
        if (is_own_reward(split_words(text, ":")[0])) files.push_back(split_words(text, ":")[0]);
    return files;
}

// ---------------------------------------------------------------------------------------------------------------------
// the rewards of a run

inline std::vector<float> reward_weights_parse(const std::string& weights, size_t n, const std::string& names) {
    std::vector<float> list;
    if (trim_text(weights).empty()) return std::vector<float>(n, 1.0f);
    for (const std::string& part : split_words(weights)) {
        char* end = nullptr;
        float w = strtof(part.c_str(), &end);
        if (part.empty() || *end != 0 || !(std::fabs(w) <= 1e6f))
            fail_usage("--reward_weights: '%s' is not a number in [-1000000, 1000000]", printable(part).c_str());
        list.push_back(w);
    }
    if (list.size() != n)
        fail_usage("--reward_weights: %zu weights for %zu rewards in --reward_funcs %s; give one each", list.size(), n,
                   printable(names, 200).c_str());
    return list;
}

// "exact,overlong:cache=64,./my_reward.py" and "1.0,0.1,1"; no weights: all 1. Wrong names, settings, counts and numbers
// are usage errors.
inline RewardSet rewards_parse(const std::string& names, const std::string& weights) {
    RewardSet set;
    std::vector<std::string> known;
    for (const RewardEntry& entry : reward_table()) known.push_back(entry.name);
    const std::string list = join_words(known);
    for (const std::string& text : split_words(names)) {
        const std::string word = split_words(text, ":")[0], name = word.substr(0, 64);
        if (name.empty())
            fail_usage("--reward_funcs: an empty name in '%s'; rewards: %s", printable(names).c_str(), list.c_str());
        const RewardEntry* found = find_reward(name);
        if (!found && !is_own_reward(word))
            fail_usage("--reward_funcs: '%s' is not one of %s%s (train_qrl help rewards)%s", printable(name).c_str(),
                       list.c_str(), did_you_mean(name, known).c_str(),
                       file_is_there(word) ? "; a file of that name is meant by a path with a /" : "");
        Settings settings;
        const RewardEntry entry = found ? *found : own_reward(word, text, &settings);
        for (const RewardEntry& other : set.entries)
            if (other.name == entry.name) fail_usage("--reward_funcs: '%s' is named twice", entry.name.c_str());
        if (found) settings = settings_of(text, found->settings, "reward_funcs");
        set.entries.push_back(entry);
        set.settings.push_back(settings);
    }
    set.weights = reward_weights_parse(weights, set.entries.size(), names);
    return set;
}

inline constexpr const char* own_rewards_help[] = {
    "\nRewards of your own: a name with a / is a file, logged under its name without the ending\n\n"
    "  ./NAME.py      a program in any language, started once (chmod +x; a first line such as #!/usr/bin/env "
    "python3).\n"
    "                 Each completion is a line of JSON on its standard input,\n"
    "                   {\"prompt\": ..., \"completion\": ..., \"gold\": ..., \"finished\": true, \"tokens\": 14,\n"
    "                    \"max_tokens\": 56, \"row\": {the fields of the problem's row, or null}}\n"
    "                 and it prints a line: a number, null (the reward does not apply) or {\"reward\": either}\n",
    "  ./NAME.so      a shared library with the functions of rewards/train_qrl_reward.h\n",
    "\nExamples: rewards/examples/steps.py, rewards/examples/digits.c. They run with your rights; what they print on "
    "standard\n"
    "error is shown. A row of --train_data may say which of the rewards apply to it: \"reward_funcs\": "
    "\"exact,NAME\"\n"};

// help rewards
inline std::string rewards_help() {
    std::string text =
        "--reward_funcs NAME[:SETTING=VALUE ...], several joined by commas, as in exact,overlong:cache=64\n"
        "(outcome): says right or wrong, which --dynamic_sampling goes by\n\n";
    for (const RewardEntry& r : reward_table()) {
        text += format("  %-15s%s%s", r.name.c_str(), r.help, r.traits & REWARD_OUTCOME ? " (outcome)" : "");
        if (r.trl) text += format("; TRL's %s_reward", r.trl);
        text += "\n" + settings_help(r.settings);
    }
    text += std::string(own_rewards_help[0]) + settings_help(program_settings()) + own_rewards_help[1] +
            settings_help(library_settings()) + own_rewards_help[2];
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

// [rewards] which of them a row's field reward_funcs names: all where it is empty. unknown: the first name that is none of
// them, if there is one
inline std::vector<bool> rewards_of_row(const RewardSet& set, const std::string& names,
                                        std::string* unknown = nullptr) {
    const size_t F = set.entries.size();
    if (trim_text(names).empty()) return std::vector<bool>(F, true);
    std::vector<bool> applies(F, false);
    for (const std::string& word : split_words(names)) {
        const RewardEntry* entry = find_reward(word);
        bool found = false;
        for (size_t f = 0; f < F; f++)
            if (set.entries[f].name == (entry ? entry->name : word)) applies[f] = found = true;
        if (!found && unknown && unknown->empty()) *unknown = word.empty() ? "an empty name" : word;
    }
    return applies;
}

// Asks the user's own about the completions that they apply to. False: the run was asked to stop
inline bool own_rewards_compute(std::vector<std::vector<float>>& each, const RewardSet& set,
                                const std::vector<RewardInput>& in, const std::vector<int>& group,
                                const std::vector<std::vector<bool>>& applies) {
    for (size_t f = 0; f < set.entries.size(); f++) {
        if (!set.entries[f].own) continue;
        std::vector<RewardItem> items;
        for (size_t i = 0, first = 0; i < in.size(); i++) {
            if (group[i] != group[first]) first = i;
            if (applies[i][f]) items.push_back({&in[i], group[i] + 1, (int)(i - first) + 1, &each[f][i]});
        }
        if (!set.entries[f].own->compute(items)) return false;
    }
    return true;
}

// [N] the weighted sum of the rewards that apply; REWARD_NONE where none does
inline std::vector<float> reward_totals(const RewardSet& set, const std::vector<std::vector<float>>& each, size_t N) {
    std::vector<float> total(N, 0.0f);
    for (size_t i = 0; i < N; i++) {
        bool any = each.empty();
        for (size_t f = 0; f < each.size(); f++) {
            if (!reward_applies(each[f][i])) continue;
            total[i] += set.weights[f] * each[f][i];
            any = true;
        }
        if (!any) total[i] = REWARD_NONE;
    }
    return total;
}

// Rewards of N completions: each [rewards][N], without weights; total [N], the weighted sums. group [N]: the prompts'
// numbers; those of one stand together. False: the run was asked to stop while a reward of the user's own was at work, and
// the numbers mean nothing
inline bool rewards_compute(std::vector<float>& total, std::vector<std::vector<float>>& each, const RewardSet& set,
                            const std::vector<RewardInput>& in, const std::vector<int>& group) {
    const size_t N = in.size(), F = set.entries.size();
    static const std::string all;
    std::vector<std::vector<bool>> applies(N);
    for (size_t i = 0; i < N; i++) applies[i] = rewards_of_row(set, in[i].reward_funcs ? *in[i].reward_funcs : all);
    each.assign(F, std::vector<float>(N));
#pragma omp parallel for schedule(dynamic, 4)
    for (size_t i = 0; i < N; i++)
        for (size_t f = 0; f < F; f++)
            if (set.entries[f].fn.one && applies[i][f]) each[f][i] = set.entries[f].fn.one(in[i], set.settings[f]);
    for (size_t i = 0, end; i < N; i = end) {
        for (end = i + 1; end < N && group[end] == group[i];) end++;
        for (size_t f = 0; f < F; f++)
            if (set.entries[f].fn.group && applies[i][f])
                set.entries[f].fn.group(each[f].data() + i, in.data() + i, (int)(end - i), set.settings[f]);
    }
    for (std::vector<float>& list : each)
        for (float& r : list)
            if (std::isnan(r)) r = INFINITY;  // a model that has diverged: the step is to fail, and not to do without
    const bool whole = own_rewards_compute(each, set, in, group, applies);
    for (size_t i = 0; i < N; i++)
        for (size_t f = 0; f < F; f++)
            if (!applies[i][f]) each[f][i] = REWARD_NONE;
    total = reward_totals(set, each, N);
    return whole;
}
