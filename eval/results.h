// The numbers of an evaluation as text and as JSON: the table that `eval` prints, the object that summaries hold, and
// results.json in the shape of lm-evaluation-harness (`results` by task and "metric,filter"), whose filters are here
// strict and lenient.
#pragma once
#include <ctime>
#include "../runtime/run_dir.h"
#include "scores.h"

// one set of problems that was evaluated
struct EvalSet {
    std::string name, source;  // source: the file or the task
    std::vector<Prompt> prompts;
    int shots = 0;      // examples in a prompt
    int available = 0;  // problems of the source; prompts may be its first
    EvalScores scores;
    bool stopped = false;
};

inline nlohmann::ordered_json interval_json(const MeanEstimate& m) {
    return nlohmann::ordered_json::array({m.low, m.high});
}

// as summaries hold them: keys without a filter are strict
inline nlohmann::ordered_json eval_to_json(const EvalScores& s) {
    nlohmann::ordered_json j;
    if (s.samples > 0) {
        j["pass@1"] = s.pass1.mean;
        j["pass@1_standard_error"] = s.pass1.standard_error;
        j["pass@1_interval"] = interval_json(s.pass1);
        j["pass@1_lenient"] = s.pass1_lenient.mean;
        for (const EvalAt& at : s.at) j[format("pass@%d", at.k)] = at.pass;
        for (const EvalAt& at : s.at) j[format("maj@%d", at.k)] = at.majority;
        if (s.best)
            for (const EvalAt& at : s.at) j[format("best@%d", at.k)] = at.best;
    }
    j["completions/mean_length"] = s.mean_length;
    j["completions/clipped_ratio"] = s.clipped_ratio;
    j["completions/garbled_ratio"] = s.garbled_ratio;
    j["completions/repeating_ratio"] = s.repeating_ratio;
    if (s.greedy_problems > 0) {
        j["greedy"] = s.greedy.mean;
        j["greedy_interval"] = interval_json(s.greedy);
        j["greedy_lenient"] = s.greedy_lenient.mean;
    }
    j["disagreement"] = s.disagreement;
    if (s.rewards.empty()) return j;
    j["reward"] = s.reward.mean;
    j["reward_interval"] = interval_json(s.reward);
    for (const auto& [name, mean] : s.rewards) j["rewards/" + name + "/mean"] = mean.mean;
    return j;
}

// "greedy,strict": value and "greedy_stderr,strict": its standard error
inline void lm_eval_metric(nlohmann::ordered_json& j, const std::string& metric, const std::string& filter,
                           const MeanEstimate& m) {
    j[metric + "," + filter] = m.mean;
    j[metric + "_stderr," + filter] = m.standard_error;
    j[metric + "_interval," + filter] = interval_json(m);
}

inline nlohmann::ordered_json lm_eval_set(const EvalSet& set) {
    const EvalScores& s = set.scores;
    nlohmann::ordered_json j;
    j["alias"] = set.name;
    if (s.greedy_problems > 0) {
        lm_eval_metric(j, "greedy", "strict", s.greedy);
        lm_eval_metric(j, "greedy", "lenient", s.greedy_lenient);
    }
    if (s.samples > 0) {
        lm_eval_metric(j, "pass@1", "strict", s.pass1);
        lm_eval_metric(j, "pass@1", "lenient", s.pass1_lenient);
    }
    for (const EvalAt& at : s.at) {
        j[format("pass@%d,strict", at.k)] = at.pass;
        j[format("pass@%d,lenient", at.k)] = at.pass_lenient;
        j[format("maj@%d,strict", at.k)] = at.majority;
        j[format("maj@%d,lenient", at.k)] = at.majority_lenient;
        if (s.best) j[format("best@%d,strict", at.k)] = at.best;
    }
    if (!s.rewards.empty()) lm_eval_metric(j, "reward", "none", s.reward);
    for (const auto& [name, mean] : s.rewards) lm_eval_metric(j, "rewards/" + name, "none", mean);
    j["disagreement,none"] = s.disagreement;
    j["mean_length,none"] = s.mean_length;
    j["clipped_ratio,none"] = s.clipped_ratio;
    j["garbled_ratio,none"] = s.garbled_ratio;
    j["repeating_ratio,none"] = s.repeating_ratio;
    return j;
}

inline nlohmann::ordered_json groups_json(const EvalScores& s) {
    nlohmann::ordered_json j = nlohmann::ordered_json::object();
    for (const EvalGroup& g : s.groups) {
        const bool of_problems = g.by == "subject" || g.by == "level";
        j[g.by][g.name] = {{of_problems ? "problems" : "completions", g.problems},
                           {"share", g.share},
                           {"right", g.right.mean},
                           {"interval", interval_json(g.right)}};
    }
    return j;
}

// results.json. config: what was evaluated and how (of model_args, gen_kwargs and the like)
inline nlohmann::ordered_json lm_eval_results(const std::vector<EvalSet>& sets, const nlohmann::ordered_json& config,
                                              double seconds) {
    nlohmann::ordered_json j;
    bool partial = false;
    for (const EvalSet& set : sets) partial = partial || set.stopped;
    if (partial) j["partial"] = true;
    for (const char* part : {"results", "n-samples", "configs", "n-shot", "higher_is_better", "breakdown"})
        j[part] = nlohmann::ordered_json::object();
    for (const EvalSet& set : sets) {
        const EvalScores& s = set.scores;
        j["results"][set.name] = lm_eval_set(set);
        j["n-samples"][set.name] = {{"original", set.available},
                                    {"effective", std::max(s.problems, s.greedy_problems)},
                                    {"asked", set.prompts.size()}};
        j["configs"][set.name] = {{"task", set.name},
                                  {"dataset_path", set.source},
                                  {"output_type", "generate_until"},
                                  {"repeats", s.samples}};
        j["n-shot"][set.name] = set.shots;
        for (const char* metric : {"greedy", "pass@1"}) j["higher_is_better"][set.name][metric] = true;
        j["breakdown"][set.name] = groups_json(s);
    }
    j["config"] = config;
    j["date"] = (int64_t)time(nullptr);
    j["total_evaluation_time_seconds"] = seconds;
    return j;
}

// ---------------------------------------------------------------------------------------------------------------------
// text

// " 61.2 [58.5, 63.9]", 19 columns: percent, and the 95 % interval
inline std::string percent_text(const MeanEstimate& m) {
    return format("%5.1f %-13s", 100 * m.mean, format("[%.1f, %.1f]", 100 * m.low, 100 * m.high).c_str());
}

// A row a set: what greedy decoding and n samples of each problem give, in percent
inline std::string eval_table(const std::vector<EvalSet>& sets) {
    size_t width = 3;
    int samples = 0;
    bool greedy = false, rewards = false, best = false;
    for (const EvalSet& set : sets) {
        width = std::max(width, set.name.size());
        samples = std::max(samples, set.scores.samples);
        greedy = greedy || set.scores.greedy_problems;
        rewards = rewards || !set.scores.rewards.empty();
        best = best || set.scores.best;
    }
    std::string text = format("%-*s  problems", (int)width, "set");
    if (greedy) text += "  greedy               lenient";
    if (samples) text += "  pass@1               lenient";
    if (samples > 1)
        text += format("  %7s  %7s", format("pass@%d", samples).c_str(), format("maj@%d", samples).c_str());
    if (samples > 1 && best) text += format("  %7s", format("best@%d", samples).c_str());
    if (rewards) text += "  reward";
    text += "  length  cut off\n";
    for (const EvalSet& set : sets) {
        const EvalScores& s = set.scores;
        text += format("%-*s  %8d", (int)width, set.name.c_str(), std::max(s.problems, s.greedy_problems));
        if (greedy) text += format("  %s  %7.1f", percent_text(s.greedy).c_str(), 100 * s.greedy_lenient.mean);
        if (samples) text += format("  %s  %7.1f", percent_text(s.pass1).c_str(), 100 * s.pass1_lenient.mean);
        const EvalAt last = s.at.empty() ? EvalAt{} : s.at.back();
        if (samples > 1) text += format("  %7.1f  %7.1f", 100 * last.pass, 100 * last.majority);
        if (samples > 1 && best) text += format("  %7.1f", 100 * last.best);
        if (rewards) text += format("  %6.3f", s.reward.mean);
        text += format("  %6.1f  %6.1f%%%s\n", s.mean_length, 100 * s.clipped_ratio,
                       set.stopped ? format("  partial: of %zu problems", set.prompts.size()).c_str() : "");
    }
    return text;
}

// A set's answers by subject, level, length and form: what is right in each, and its share
inline std::string eval_details(const EvalSet& set) {
    const EvalScores& s = set.scores;
    std::string text, by;
    int shown = 0;
    for (const EvalGroup& g : s.groups) {
        if (g.by != by) {
            if (!text.empty()) text += "\n";
            by = g.by;
            shown = 0;
            text += format("  by %-8s", by.c_str());
        }
        if (++shown == 13) text += " ...";
        if (shown > 12) continue;
        text += format("%s %s %.1f (%.0f%%)", shown > 1 ? " |" : "", printable(g.name, 32).c_str(), 100 * g.right.mean,
                       100 * g.share);
    }
    if (!text.empty())
        text = set.name + ", strictly right in percent, and in brackets the share of the completions\n" + text + "\n";
    return text;
}

// A limit that cuts many completions off is what their number measures
constexpr double CUT_OFF_TOLD = 0.1;

// "": few were
inline std::string cut_off_note(const EvalSet& set, int max_completion_length) {
    if (set.scores.clipped_ratio <= CUT_OFF_TOLD) return "";
    return format(
        "note: %s: %.0f%% of the completions were cut off at --max_completion_length %d, and are strictly wrong\n",
        printable(set.name).c_str(), 100 * set.scores.clipped_ratio, max_completion_length);
}
