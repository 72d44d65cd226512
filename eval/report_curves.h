// Which curve is drawn from which number: one table. A new curve is a row of report_curves; a key of metrics.jsonl that no
// row names is drawn by itself at the end.
//   key      of metrics.jsonl, or eval:KEY of evaluations.jsonl (eval:A/B where B is a key of its object A); with an interval
//            where the log has KEY_interval. A * stands for any name: each match is a line, or with `each` a plot
//   around   a key whose number is drawn as a band of that size on both sides; low, high: keys of the band's ends
// A line that is the same number at every step is told as text: nothing is to be seen in it.
#pragma once
#include <algorithm>
#include <string>
#include <vector>
#include "report_page.h"
#include "report_run.h"

static constexpr size_t REPORT_MOST_POINTS = 120;  // of a line
static constexpr size_t REPORT_MOST_OTHERS = 24;   // plots of keys that the table does not name

struct CurveLine {
    std::string key, name = "";
    std::string around = "", low = "", high = "";
    bool dashed = false;
};

struct CurveRow {
    const char* section;
    std::string title, y;
    std::vector<CurveLine> lines;
    std::string note = "";
    double scale = 1.0;  // 100: as percent
    bool log = false, each = false;
};

inline const std::vector<CurveRow> report_curves = {
    {"Learning",
     "Held out: share that is right",
     "percent",
     {{"eval:pass@1", "pass@1"},
      {"eval:greedy", "greedy", "", "", "", true},
      {"eval:full_precision/pass@1", "pass@1 in full precision"}},
     "Bars: 95 % intervals over problems.",
     100},
    {"Learning", "Held out: reward", "reward", {{"eval:reward", "reward"}}, "Bars: 95 % intervals over problems."},
    {"Learning", "Held out: log-loss", "nat a token", {{"eval:measured/log_loss", "log-loss"}}},
    {"Learning", "Held out: KL from the teacher", "nat a token", {{"eval:measured/kl", "KL"}}},
    {"Learning", "Held out: same first choice", "percent", {{"eval:measured/agreement", "agreement"}}, "", 100},
    {"Learning",
     "Reward",
     "reward",
     {{"reward", "mean", "reward_group_std"}},
     "Band: the mean deviation within a group, to both sides."},
    {"Learning", "Rewards by function", "reward", {{"rewards/*/mean"}}},
    {"Learning",
     "Prompts without a spread of rewards",
     "percent",
     {{"frac_reward_zero_std", "of the groups"}},
     "Nothing is learnt from them.",
     100},
    {"Learning", "Loss", "loss", {{"loss", "loss"}, {"policy_loss", "without the entropy bonus", "", "", "", true}}},
    {"Learning",
     "Entropy",
     "nat a token",
     {{"entropy", "entropy"}, {"kd/teacher_entropy", "teacher", "", "", "", true}}},
    {"Learning", "KL from the reference", "nat a token", {{"kl", "KL"}}},
    {"Learning",
     "Divergence from the teacher",
     "nat a token",
     {{"kd/divergence", "divergence"}, {"kd/cross_entropy", "cross-entropy", "", "", "", true}}},
    {"Learning", "Teacher and student: same first choice", "percent", {{"kd/agreement", "agreement"}}, "", 100},

    {"Completions",
     "Length",
     "tokens",
     {{"completions/mean_length", "mean", "", "completions/min_length", "completions/max_length"},
      {"completions/mean_terminated_length", "of those that ended", "", "", "", true}},
     "Band: from the shortest to the longest."},
    {"Completions",
     "Cut off, garbled, repeating",
     "percent",
     {{"completions/clipped_ratio", "cut off"},
      {"completions/garbled_ratio", "garbled", "", "", "", true},
      {"completions/repeating_ratio", "repeating"}},
     "",
     100},
    {"Completions", "Held out: length", "tokens", {{"eval:completions/mean_length", "mean"}}},
    {"Completions", "Held out: cut off", "percent", {{"eval:completions/clipped_ratio", "cut off"}}, "", 100},
    {"Completions",
     "Groups that were sampled and replaced",
     "groups",
     {{"dynamic_sampling/generated_groups", "sampled"},
      {"dynamic_sampling/redrawn_groups", "replaced", "", "", "", true},
      {"dynamic_sampling/left_zero_std", "left without a spread"}}},

    {"Updates", "Gradient norm", "norm", {{"grad_norm", "before clipping"}}},
    {"Updates", "Learning rate", "", {{"learning_rate", "learning rate"}}},
    {"Updates",
     "Clipped ratios",
     "percent",
     {{"clip_ratio/region_mean", "all"},
      {"clip_ratio/low_mean", "low", "", "", "", true},
      {"clip_ratio/high_mean", "high"}},
     "Mean over the step's updates.",
     100},
    {"Updates", "Capped ratios (cispo)", "percent", {{"cispo_clip_ratio", "capped"}}, "", 100},
    {"Updates", "Mean weight (vespo)", "", {{"vespo/phi_seq_mean", "weight"}}},
    {"Updates", "Completions too far from their sampler", "percent", {{"off_policy_mask_ratio", "left out"}}, "", 100},
    {"Updates", "Updates left out", "since the start", {{"skipped_steps", "not finite"}}},

    {"Quantization", "Codes that a step changes", "percent", {{"quant/code_flip_rate", "of all codes"}}, "", 100},
    {"Quantization",
     "Codes that differ from the start",
     "percent",
     {{"quant/code_flip_total", "of all codes"}},
     "",
     100},
    {"Quantization",
     "Dead zone",
     "percent",
     {{"quant/deadzone_share", "of weights, 100 updates"},
      {"quant/deadzone_share_step", "one update", "", "", "", true}},
     "Weights whose cell's edge is farther than Adam goes at this rate.",
     100},
    {"Quantization", "Learning rate in cells", "cells", {{"quant/learning_rate_in_cells", "of a step"}}},
    {"Quantization", "Way so far in cells", "cells", {{"quant/learning_rate_in_cells_total", "summed over the run"}}},
    {"Quantization",
     "Noise of the grid",
     "root mean square of Q(w) - w",
     {{"quant/grid_noise", "over that of w"}, {"quant/grid_noise_in_cells", "in cells", "", "", "", true}}},
    {"Quantization",
     "Length of Q(w), and what became 0",
     "share",
     {{"quant/scale_bias", "how far Q(w) is longer"},
      {"quant/deadzone_truncation", "norm that became 0", "", "", "", true}}},
    {"Quantization", "Drift of the scales", "mean relative change", {{"quant/scale_drift", "since the start"}}},
    {"Quantization",
     "Drift since a code's last change",
     "cells",
     {{"quant/master_drift", "mean"}, {"quant/master_drift_max", "largest", "", "", "", true}}},
    {"Quantization", "Codes that turned back", "percent", {{"quant/oscillating_share", "oscillating"}}, "", 100},

    {"Sampler and trainer",
     "Difference of log-probabilities",
     "nat",
     {{"sampling/sampling_logp_difference/mean", "mean"},
      {"sampling/sampling_logp_difference/max", "largest", "", "", "", true}}},
    {"Sampler and trainer",
     "Ratios, or the weights that correct",
     "ratio",
     {{"sampling/importance_sampling_ratio/mean", "mean", "", "sampling/importance_sampling_ratio/min",
       "sampling/importance_sampling_ratio/max"}},
     "Band: from the least to the largest."},
    {"Sampler and trainer",
     "Ratios before truncation or mask",
     "ratio",
     {{"sampling/raw_importance_sampling_ratio/mean", "mean", "", "sampling/raw_importance_sampling_ratio/min",
       "sampling/raw_importance_sampling_ratio/max"}},
     "Band: from the least to the largest."},
    {"Sampler and trainer",
     "Effective sample size",
     "percent",
     {{"sampling/raw_effective_sample_size/token", "of tokens"},
      {"sampling/raw_effective_sample_size/sequence", "of completions", "", "", "", true}},
     "",
     100},
    {"Sampler and trainer",
     "KL between sampler and trainer",
     "nat a token",
     {{"rollout_corr/kl", "k1"}, {"rollout_corr/k3_kl", "k3", "", "", "", true}}},
    {"Sampler and trainer", "Age of the sampler's weights", "steps", {{"sampler/staleness", "staleness"}}},
    {"Sampler and trainer", "Noise on the norms", "sigma", {{"noise/sigma", "sigma"}}},

    {"Time",
     "Where a step's time goes",
     "seconds",
     {{"timing_s/gen", "sampling"},
      {"timing_s/reward", "rewards"},
      {"timing_s/update_actor", "updates"},
      {"timing_s/rest", "the rest", "", "", "", true}}},
    {"Time", "Time of a step", "seconds", {{"step_time", "step"}}},
    {"Time",
     "Speed",
     "tokens a second",
     {{"perf/gen_tokens_per_second", "sampled"}, {"perf/train_tokens_per_second", "trained", "", "", "", true}}},
};

// what no curve is made of, or a curve of another key says
inline bool report_ignores(const std::string& key) {
    for (const char* name :
         {"step", "epoch", "num_tokens", "reward_std", "entropy_coef", "clip_ratio/low_min", "clip_ratio/high_max",
          "completions/min_terminated_length", "completions/max_terminated_length", "dynamic_sampling/batches"})
        if (key == name) return true;
    const size_t n = key.size();
    return key.rfind("eval_", 0) == 0 || (key.rfind("rewards/", 0) == 0 && n > 4 && key.compare(n - 4, 4, "/std") == 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// lines

// "rewards/*/mean" and "rewards/exact/mean"; what the * stands for is `name`
inline bool curve_key_matches(const std::string& pattern, const std::string& key, std::string* name) {
    const size_t star = pattern.find('*');
    if (star == std::string::npos) return pattern == key;
    const size_t rest = pattern.size() - star - 1;
    if (key.size() < star + rest + 1 || key.compare(0, star, pattern, 0, star) != 0 ||
        key.compare(key.size() - rest, rest, pattern, star + 1, rest) != 0)
        return false;
    *name = key.substr(star, key.size() - star - rest);
    return true;
}

// what evaluations.jsonl has under KEY or A/KEY, with its intervals; the evaluation of the best weights is no point of a curve
inline PlotSeries evaluation_line(const std::vector<nlohmann::ordered_json>& evaluations, const CurveLine& line) {
    const std::string path = line.key.substr(5);
    PlotSeries s;
    s.name = line.name, s.dashed = line.dashed, s.bars = true;
    bool intervals = false;
    for (const nlohmann::ordered_json& e : evaluations) {
        if (text_at(e, "when") == "best") continue;
        const size_t slash = path.find('/');
        const std::string head = path.substr(0, slash);
        const bool inner = !e.contains(path) && slash != std::string::npos && e.contains(head);
        const nlohmann::ordered_json& j = inner ? e[head] : e;
        const std::string key = inner ? path.substr(slash + 1) : path;
        const double v = number_at(j, key);
        if (!std::isfinite(v)) continue;
        double low = NAN, high = NAN;
        intervals |= interval_at(j, key + "_interval", &low, &high);
        s.x.push_back(number_at(e, "step")), s.y.push_back(v), s.low.push_back(low), s.high.push_back(high);
    }
    if (!intervals) s.low.clear(), s.high.clear();
    return s;
}

inline PlotSeries metric_line(const ReportRun& r, const CurveLine& line) {
    PlotSeries s;
    s.name = line.name, s.dashed = line.dashed;
    auto values = [&](const std::string& key) -> const ReportSeries* {
        const auto at = key.empty() ? r.numbers.end() : r.numbers.find(key);
        return at == r.numbers.end() ? nullptr : &at->second;
    };
    const ReportSeries* y = values(line.key);
    if (!y) return s;
    s.x = y->x, s.y = y->y;
    const ReportSeries *around = values(line.around), *low = values(line.low), *high = values(line.high);
    if (around && around->x == y->x)
        for (size_t i = 0; i < y->x.size(); i++)
            s.low.push_back(y->y[i] - around->y[i]), s.high.push_back(y->y[i] + around->y[i]);
    if (low && high && low->x == y->x && high->x == y->x) s.low = low->y, s.high = high->y;
    return s;
}

inline PlotSeries curve_line(const ReportRun& r, const std::vector<nlohmann::ordered_json>& evaluations,
                             const CurveLine& line) {
    return line.key.rfind("eval:", 0) == 0 ? evaluation_line(evaluations, line) : metric_line(r, line);
}

// The lines of a row that a run has, each * replaced by what it stands for
inline std::vector<CurveLine> curve_lines(const ReportRun& r, const CurveRow& row) {
    std::vector<CurveLine> lines;
    for (const CurveLine& line : row.lines) {
        if (line.key.find('*') == std::string::npos) {
            lines.push_back(line);
            continue;
        }
        for (const std::string& key : r.keys) {
            CurveLine one = line;
            if (curve_key_matches(line.key, key, &one.name)) one.key = key, lines.push_back(one);
        }
    }
    return lines;
}

inline bool is_flat(const PlotSeries& s) {
    for (double v : s.y)
        if (!(v == s.y[0])) return false;
    return s.low.empty() || std::equal(s.low.begin(), s.low.end(), s.high.begin());
}

inline void scale_line(PlotSeries& s, double by) {
    if (by == 1.0) return;
    for (std::vector<double>* v : {&s.y, &s.low, &s.high})
        for (double& x : *v) x *= by;
}
