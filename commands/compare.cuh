// compare: evaluations beside each other, with intervals and paired tests. What it prints is of eval/comparison.h.
#pragma once
#include "../eval/comparison.h"
#include "../runtime/standard_files.h"
#include "session.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// as text

// in points; sign: of a difference
inline std::string points_text(const Confidence& c, bool sign) {
    return sign ? format("[%+.1f, %+.1f]", 100 * c.low, 100 * c.high)
                : format("[%.1f, %.1f]", 100 * c.low, 100 * c.high);
}

// rows of cells as columns, two blanks between them: numbers end at the right, text (the first column, and with `words`
// the last) begins at the left
inline void print_columns(const std::vector<std::vector<std::string>>& rows, bool words) {
    std::vector<size_t> width;
    for (const auto& row : rows)
        for (size_t i = 0; i < row.size(); i++) {
            if (i == width.size()) width.push_back(0);
            width[i] = std::max(width[i], row[i].size());
        }
    for (const auto& row : rows) {
        std::string line;
        for (size_t i = 0; i < row.size(); i++) {
            const std::string blanks(width[i] - row[i].size(), ' ');
            if (i == 0) line += "  " + row[i] + blanks;
            else if (words && i + 1 == row.size()) line += "  " + row[i];
            else line += "  " + blanks + row[i];
        }
        print_result(line);
    }
}

// "8", "3-8"
inline std::string samples_text(const ArmResult& a) {
    return a.fewest == a.most ? std::to_string(a.most) : format("%d-%d", a.fewest, a.most);
}

inline std::string paths_text(const Arm& arm) {
    std::string s;
    for (const Evaluation& run : arm.runs) s += (s.empty() ? "" : ",") + run.path;
    return printable(s, 400);
}

// without the columns that hold nothing, and without those that the first of their name has already
inline std::vector<std::vector<std::string>> told_columns(const std::vector<std::vector<std::string>>& rows) {
    std::vector<std::vector<std::string>> told(rows.size());
    std::set<std::string> names;
    for (size_t i = 0; i < rows[0].size(); i++) {
        bool empty = rows.size() > 1;
        for (size_t r = 1; r < rows.size(); r++) empty = empty && rows[r][i] == "-";
        if (empty || !names.insert(rows[0][i]).second) continue;
        for (size_t r = 0; r < rows.size(); r++) told[r].push_back(rows[r][i]);
    }
    return told;
}

inline void print_arms(const std::vector<Arm>& arms, const SetComparison& c) {
    std::vector<std::vector<std::string>> rows = {{"", "problems", "runs", "samples", c.metric.name(), "95 % interval",
                                                   "pass@1 strict", "pass@1 lenient", "greedy strict", "greedy lenient",
                                                   "disagree", "length", "cut off"}};
    for (size_t i = 0; i < arms.size(); i++) {
        const ArmResult& a = c.arms[i];
        if (a.problems == 0) continue;
        rows.push_back({arms[i].name, std::to_string(a.problems), std::to_string(arms[i].runs.size()), samples_text(a),
                        percent_text(a.value), points_text(a.interval, false), percent_text(a.strict),
                        percent_text(a.lenient), percent_text(a.greedy), percent_text(a.greedy_lenient),
                        percent_text(a.differ), format("%.1f", a.length), percent_text(a.cut_off)});
    }
    print_columns(told_columns(rows), false);
}

inline void print_pairs(const std::vector<Arm>& arms, const SetComparison& c, double margin) {
    std::vector<std::vector<std::string>> rows = {
        {"", "problems", "points", "95 % interval", "p", "Holm's p", "wins", "losses", "ties", "greedy", "verdict"}};
    if (margin > 0.0) rows[0].insert(rows[0].begin() + 6, "Holm's p, equal");
    const bool same = !c.metric.sampled && c.metric.strict;  // the points are those of greedy answers
    for (const PairResult& r : c.pairs) {
        rows.push_back({arms[r.b].name + " - " + arms[r.a].name, std::to_string(r.problems),
                        format("%+.1f", 100 * r.estimate.value), points_text(r.interval, true), p_text(r.p),
                        p_text(r.p_holm), std::to_string(r.wins), std::to_string(r.losses), std::to_string(r.ties),
                        same || std::isnan(r.greedy) ? "-" : format("%+.1f", 100 * r.greedy),
                        verdict_of(r, margin, arms[r.b].name)});
        if (margin > 0.0) rows.back().insert(rows.back().begin() + 6, p_text(r.equality_holm));
    }
    print_columns(told_columns(rows), true);
}

// what the p and the interval of a pair are of
inline std::string method_text(const std::vector<Arm>& arms, const PairResult& r) {
    std::string s = "  " + arms[r.b].name + " - " + arms[r.a].name + ": ";
    if (r.seeds)
        return s + r.test + format(", %.1f degrees of freedom; hierarchical bootstrap ", r.estimate.df) +
               points_text(r.bootstrap, true);
    s += r.test;
    if (r.test == "McNemar") s += format(", exact; mid-p %s", p_text(r.mcnemar.mid_p).c_str());
    return s + "; bootstrap over problems";
}

// "A none; B int8:channel; C 1, 2, 3"
inline std::string values_text(const std::vector<Arm>& arms, const std::vector<std::vector<std::string>>& values) {
    std::vector<std::string> of_arms;
    for (size_t i = 0; i < arms.size(); i++) {
        std::vector<std::string> own;
        for (const std::string& v : values[i])
            if (std::find(own.begin(), own.end(), v) == own.end()) own.push_back(v);
        of_arms.push_back(arms[i].name + " " + printable(join_words(own), 200));
    }
    return join_words(of_arms, "; ");
}

inline void print_comparison(const std::vector<Arm>& arms, const std::vector<SetComparison>& sets,
                             const CompareConfig& config) {
    for (const Arm& arm : arms) {
        print_result(arm.name + "  " + paths_text(arm) + (&arm == &arms[0] && !config.all_pairs ? "  (baseline)" : ""));
        for (const Evaluation& run : arm.runs)
            if (!run.unended.empty()) print_result("   " + printable(run.path, 400) + ": " + run.unended);
    }
    for (const auto& [name, values] : differing_options(arms))
        print_result("--" + printable(name) + ": " + values_text(arms, values));
    size_t pairs = 0;
    bool one_run = false;
    for (const SetComparison& c : sets) {
        pairs += c.pairs.size();
        print_result("\n" + (c.set.empty() ? std::string("(set without a name)") : printable(c.set)) + ", " +
                     c.metric.name() + ", in percent");
        print_arms(arms, c);
        if (!c.pairs.empty()) print_pairs(arms, c, config.margin);
        for (const PairResult& r : c.pairs) {
            print_result(method_text(arms, r));
            one_run = one_run || arms[r.a].runs.size() == 1 || arms[r.b].runs.size() == 1;
        }
        for (const std::string& note : c.notes) print_result("  note: " + note);
    }
    print_result(format("\nHolm over %zu comparison%s", pairs, pairs == 1 ? "" : "s"));
    if (one_run)
        print_result("an arm of one run: what its intervals and tests say is of this run, not of other seeds of it");
}

// ---------------------------------------------------------------------------------------------------------------------
// as JSON

inline nlohmann::ordered_json ends_json(const Confidence& c) { return {c.low, c.high}; }

inline nlohmann::ordered_json pair_json(const std::vector<Arm>& arms, const PairResult& r, double margin) {
    nlohmann::ordered_json j;
    j["baseline"] = arms[r.a].name, j["other"] = arms[r.b].name;
    j["problems"] = r.problems;
    j["baseline_value"] = r.first, j["other_value"] = r.second;
    j["difference"] = r.estimate.value;
    j["interval"] = ends_json(r.interval);
    j["interval_method"] = r.seeds ? "Student's t over seeds and problems" : "paired bootstrap over problems";
    j["standard_error"] = r.estimate.error;
    j["degrees_of_freedom"] = r.estimate.df;
    if (r.seeds) j["hierarchical_bootstrap"] = ends_json(r.bootstrap);
    j["test"] = r.test;
    j["p"] = r.p, j["p_holm"] = r.p_holm;
    if (r.test == "McNemar") j["mcnemar_mid_p"] = r.mcnemar.mid_p, j["mcnemar_corrected"] = r.mcnemar.corrected;
    if (margin > 0.0) j["equality_p"] = r.equality, j["equality_p_holm"] = r.equality_holm;
    j["wins"] = r.wins, j["losses"] = r.losses, j["ties"] = r.ties;
    j["greedy_difference"] = r.greedy;
    j["verdict"] = verdict_of(r, margin, arms[r.b].name);
    return j;
}

inline nlohmann::ordered_json set_json(const std::vector<Arm>& arms, const SetComparison& c, double margin) {
    nlohmann::ordered_json j;
    j["set"] = c.set;
    j["metric"] = c.metric.name();
    for (size_t i = 0; i < arms.size(); i++) {
        const ArmResult& a = c.arms[i];
        j["arms"].push_back({{"arm", arms[i].name},
                             {"problems", a.problems},
                             {"samples", {a.fewest, a.most}},
                             {"value", a.problems ? a.value : NAN},
                             {"interval", ends_json(a.interval)},
                             {"strict", a.strict},
                             {"lenient", a.lenient},
                             {"greedy", a.greedy},
                             {"greedy_lenient", a.greedy_lenient},
                             {"disagreement", a.differ},
                             {"mean_length", a.length},
                             {"clipped_ratio", a.cut_off}});
    }
    j["pairs"] = nlohmann::ordered_json::array();
    for (const PairResult& r : c.pairs) j["pairs"].push_back(pair_json(arms, r, margin));
    j["notes"] = c.notes;
    return j;
}

inline nlohmann::ordered_json comparison_json(const Options& o, const std::vector<Arm>& arms,
                                              const std::vector<SetComparison>& sets) {
    nlohmann::ordered_json j;
    j["options"] = options_to_json(o);
    j["confidence"] = 0.95;
    for (const Arm& arm : arms) {
        nlohmann::ordered_json a = {{"arm", arm.name}, {"runs", nlohmann::ordered_json::array()}};
        for (const Evaluation& run : arm.runs)
            a["runs"].push_back({{"path", run.path}, {"partial", !run.unended.empty()}});
        j["arms"].push_back(a);
    }
    for (const auto& [name, values] : differing_options(arms))
        for (size_t i = 0; i < arms.size(); i++) j["differing_options"][name][arms[i].name] = values[i];
    for (const SetComparison& c : sets) j["sets"].push_back(set_json(arms, c, o.margin));
    return j;
}

inline int compare_command(Session& s) {
    const Options& o = s.o;
    CompareConfig config;
    config.metric = o.metric, config.set = o.set;
    config.all_pairs = o.pairs == "all";
    config.margin = o.margin;
    config.resamples = o.bootstrap_samples;
    metric_named(o.metric, true);  // a wrong name is told before files are read
    const std::vector<Arm> arms = load_arms(o.arguments);
    const std::vector<SetComparison> sets = compare_evaluations(arms, config);
    if (!o.output.empty()) write_file_atomic(o.output, json_line(comparison_json(o, arms, sets), 2) + "\n");
    print_comparison(arms, sets, config);
    return 0;
}
