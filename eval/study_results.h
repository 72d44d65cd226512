// What a study found: of each cell and seed the numbers of its runs, and of each cell their means with intervals over seeds,
// what of the gain it kept, and the pairs that the study asks for, tested and corrected for their number (Holm).
//   results.jsonl, results.csv   a row for each cell, seed and set
//   table.md                     a row for each cell; then the pairs; report.html: study_page.h
#pragma once
#include "comparison.h"
#include "study.h"

// one cell with one seed
struct StudyOutcome {
    std::string state;                 // done, or why it is not
    nlohmann::json summary;            // of its evaluation
    double tokens = 0.0;               // that training stages ran forward and backward
    double seconds = 0.0, peak = 0.0;  // of all its stages
    double flips = NAN, bits = NAN;    // share of codes that differ from the start of the last stage; bits a weight
    double reward = NAN, entropy = NAN, kl = NAN;  // at the end of the last stage that has them
};

struct StudyResults {
    std::vector<std::vector<StudyOutcome>> outcomes;  // [cells][seeds]
    std::vector<Arm> arms;    // [cells], of the seeds that are done; those without any are left out
    std::vector<int> arm_of;  // [cells]; -1: none is done
    std::vector<SetComparison> sets;
};

// means of the last fifth of a run's steps; NAN where a step has no such number
inline double study_last_fifth(const std::vector<nlohmann::json>& steps, const char* key) {
    double sum = 0.0;
    size_t n = 0;
    for (size_t i = steps.size() - (steps.size() + 4) / 5; i < steps.size(); i++)
        if (steps[i].contains(key) && steps[i][key].is_number()) sum += steps[i][key].get<double>(), n++;
    return n ? sum / (double)n : NAN;
}

inline std::vector<nlohmann::json> study_steps(const std::string& run_folder) {
    std::vector<nlohmann::json> steps;
    const std::string path = run_folder + "/metrics.jsonl";
    if (!file_exists(path)) return steps;
    for (const std::string& line : split_words(read_file(path, 1u << 30), "\n"))
        if (!line.empty()) steps.push_back(json_parse(line, path));
    return steps;
}

inline double study_number(const nlohmann::json& j, const char* key) {
    return j.contains(key) && j[key].is_number() ? j[key].get<double>() : NAN;
}

// summary_of(run): null where it has not ended; folder_of(run)
template <class Summary, class Folder>
inline StudyOutcome study_outcome(const StudyLayout& layout, const StudyCell& cell, size_t seed,
                                  const Summary& summary_of, const Folder& folder_of) {
    StudyOutcome o;
    for (const int i : cell.chains[seed]) {
        const StudyRun& run = layout.runs[i];
        const nlohmann::json j = summary_of(run);
        if (j.is_null()) continue;
        auto plus = [&](double& sum, const char* key) { sum += j.contains(key) ? study_number(j, key) : 0.0; };
        plus(o.tokens, "tokens_trained"), plus(o.seconds, "wall_seconds");
        o.peak = std::max(o.peak, j.contains("peak_rss_bytes") ? study_number(j, "peak_rss_bytes") : 0.0);
        o.flips = study_number(j, "code_flip_total");
        const std::vector<nlohmann::json> steps = study_steps(folder_of(run));
        for (const auto& [to, key] :
             {std::pair(&o.reward, "reward"), {&o.entropy, "entropy"}, {&o.kl, "kd/divergence"}})
            if (const double x = study_last_fifth(steps, key); !std::isnan(x)) *to = x;
    }
    if (cell.evaluations[seed] >= 0) o.summary = summary_of(layout.runs[cell.evaluations[seed]]);
    if (!o.summary.is_null()) o.state = "done", o.bits = study_number(o.summary, "bits_per_weight");
    return o;
}

// cells of `other` at the same point of the grid, as far as both have its keys
inline std::vector<int> study_cells_beside(const StudyLayout& layout, const StudyCell& cell, const std::string& other) {
    std::vector<int> out;
    for (int i = 0; i < (int)layout.cells.size(); i++) {
        const StudyCell& c = layout.cells[i];
        bool same = c.arm == other;
        for (const auto& [key, value] : c.point)
            for (const auto& [its_key, its_value] : cell.point) same = same && (key != its_key || value == its_value);
        if (same) out.push_back(i);
    }
    return out;
}

// folder_of_evaluation(cell, seed): where it has ended, else empty
template <class Folder>
inline void study_compare(StudyResults& r, const Study& study, const StudyLayout& layout,
                          const Folder& folder_of_evaluation) {
    for (size_t c = 0; c < layout.cells.size(); c++) {
        Arm arm;
        arm.name = layout.cells[c].name;
        for (size_t s = 0; s < study.seeds.size(); s++)
            if (r.outcomes[c][s].state == "done") arm.runs.push_back(load_evaluation(folder_of_evaluation(c, s)));
        r.arm_of.push_back(arm.runs.empty() ? -1 : (int)r.arms.size());
        if (!arm.runs.empty()) r.arms.push_back(std::move(arm));
    }
    CompareConfig config;
    for (const StudyPair& pair : study.pairs)
        for (size_t c = 0; c < layout.cells.size(); c++) {
            if (layout.cells[c].arm != pair.worse || r.arm_of[c] < 0) continue;
            for (const int better : study_cells_beside(layout, layout.cells[c], pair.better))
                if (r.arm_of[better] >= 0) config.pairs.push_back({(size_t)r.arm_of[c], (size_t)r.arm_of[better]});
        }
    const bool no_pairs = config.pairs.empty();
    std::set<std::string> names;
    for (const Arm& arm : r.arms)
        for (const auto& set : arm.runs[0].sets) names.insert(set.first);
    if (no_pairs && !r.arms.empty()) config.pairs.push_back({0, 0});  // of no meaning: it is taken out again
    for (const std::string& set : names) {
        r.sets.push_back(compare_set(r.arms, set, config));
        if (no_pairs) r.sets.back().pairs.clear();
    }
    adjust_pairs(r.sets);
}

// share of the gain from `start` to `full` that a cell has; NAN: there is none to speak of, less than a point
inline double study_kept(const StudyResults& r, const Study& study, const StudyLayout& layout, const SetComparison& set,
                         int cell) {
    if (study.start.empty() || study.full.empty() || r.arm_of[cell] < 0) return NAN;
    double ends[2] = {NAN, NAN};
    for (const int e : {0, 1})
        for (const int i : study_cells_beside(layout, layout.cells[cell], e ? study.full : study.start))
            if (r.arm_of[i] >= 0) ends[e] = set.arms[r.arm_of[i]].value;
    return ends[1] - ends[0] >= 0.01 ? (set.arms[r.arm_of[cell]].value - ends[0]) / (ends[1] - ends[0]) : NAN;
}

// ---------------------------------------------------------------------------------------------------------------------
// as files

inline std::vector<StudyJson> study_rows(const StudyResults& r, const Study& study, const StudyLayout& layout) {
    std::vector<StudyJson> rows;
    for (size_t c = 0; c < layout.cells.size(); c++)
        for (size_t s = 0; s < study.seeds.size(); s++) {
            const StudyOutcome& o = r.outcomes[c][s];
            StudyJson row = {{"arm", layout.cells[c].arm}, {"cell", layout.cells[c].name}};
            for (const auto& [key, values] : study.grid) row[key] = nullptr;
            for (const auto& [key, value] : layout.cells[c].point) row[key] = value;
            row["seed"] = study.seeds[s];
            row["state"] = o.state;
            auto add = [&](const std::string& set, const nlohmann::json& eval) {
                StudyJson full = row;
                full["set"] = set;
                for (const char* key : {"pass@1", "greedy", "completions/mean_length", "completions/clipped_ratio"})
                    full[key] = study_number(eval, key);
                full["bits_per_weight"] = o.bits, full["code_flips"] = o.flips;
                full["reward"] = o.reward, full["entropy"] = o.entropy, full["kd/divergence"] = o.kl;
                full["tokens_trained"] = o.tokens;
                rows.push_back(full);
            };
            if (o.summary.is_null()) {
                add("", nlohmann::json::object());
                continue;
            }
            const nlohmann::json& eval = o.summary["eval"];
            if (eval.contains("n")) add(r.sets.size() == 1 ? r.sets[0].set : "", eval);
            else
                for (const auto& item : eval.items()) add(item.key(), item.value());
        }
    return rows;
}

inline std::string csv_cell(const StudyJson& v) {
    if (v.is_null() || (v.is_number_float() && !std::isfinite(v.get<double>()))) return "";
    if (!v.is_string()) return v.dump();
    std::string s = v.get<std::string>(), quoted;
    if (s.find_first_of(",\"\n") == std::string::npos) return s;
    for (const char c : s) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
    return "\"" + quoted + "\"";
}

inline std::string study_csv(const std::vector<StudyJson>& rows) {
    std::string text;
    for (const StudyJson& row : rows) {
        std::string line, head;
        for (const auto& item : row.items()) {
            head += (head.empty() ? "" : ",") + csv_cell(item.key());
            line += (line.empty() ? "" : ",") + csv_cell(item.value());
        }
        if (text.empty()) text = head + "\n";
        text += line + "\n";
    }
    return text;
}

inline double study_mean(const std::vector<StudyOutcome>& outcomes, double StudyOutcome::*of) {
    double sum = 0.0;
    int n = 0;
    for (const StudyOutcome& o : outcomes)
        if (o.state == "done" && !std::isnan(o.*of)) sum += o.*of, n++;
    return n ? sum / n : NAN;
}

// rows of cells, the first of which is the head
typedef std::vector<std::vector<std::string>> StudyTable;

inline std::string md_table(const StudyTable& rows) {
    std::string text;
    for (size_t i = 0; i < rows.size(); i++) {
        text += "|";
        for (std::string cell : rows[i]) {
            for (size_t at = 0; (at = cell.find('|', at)) != std::string::npos; at += 2) cell.insert(at, "\\");
            text += " " + cell + " |";
        }
        text += "\n";
        for (size_t k = 0; i == 0 && k < rows[0].size(); k++) text += k ? "---|" : "|---|";
        if (i == 0) text += "\n";
    }
    return text;
}

// what a sweep has chosen: "rl.learning_rate 1e-4"
inline std::string study_chosen_text(const StudyCell& cell) {
    std::string s;
    for (const auto& [name, value] : cell.chosen)
        s += (s.empty() ? "" : ", ") + name + " " + (value.is_string() ? value.get<std::string>() : value.dump());
    return s;
}

inline StudyTable study_set_table(const StudyResults& r, const Study& study, const StudyLayout& layout,
                                  const SetComparison& set) {
    StudyTable rows = {{"arm", set.metric.name(), "95 %", "greedy", "gain kept", "length", "cut off", "bits a weight",
                        "codes flipped", "entropy", "tokens trained", "seeds", "chosen"}};
    for (size_t c = 0; c < layout.cells.size(); c++) {
        const StudyCell& cell = layout.cells[c];
        const std::vector<StudyOutcome>& outcomes = r.outcomes[c];
        std::string why;
        size_t done = 0;
        for (const StudyOutcome& o : outcomes)
            if (o.state == "done") done++;
            else why = o.state;
        std::vector<std::string> row = {cell.name};
        if (r.arm_of[c] < 0) {
            row.push_back(why);
            row.resize(rows[0].size(), "");
        } else {
            const ArmResult& a = set.arms[r.arm_of[c]];
            const double flips = study_mean(outcomes, &StudyOutcome::flips),
                         entropy = study_mean(outcomes, &StudyOutcome::entropy);
            for (const std::string& text :
                 {percent_text(a.value), percent_text(a.interval.low) + " to " + percent_text(a.interval.high),
                  percent_text(a.greedy), percent_text(study_kept(r, study, layout, set, (int)c)),
                  format("%.1f", a.length), percent_text(a.cut_off),
                  format("%.2f", study_mean(outcomes, &StudyOutcome::bits)),
                  std::isnan(flips) ? std::string("-") : format("%.3f %%", 100.0 * flips),
                  std::isnan(entropy) ? std::string("-") : format("%.3f", entropy),
                  human_count(study_mean(outcomes, &StudyOutcome::tokens)),
                  done == outcomes.size() ? std::to_string(done)
                                          : format("%zu of %zu: %s", done, outcomes.size(), why.c_str()),
                  study_chosen_text(cell)})
                row.push_back(text);
        }
        rows.push_back(row);
    }
    const bool nothing = std::all_of(rows.begin() + 1, rows.end(), [](const auto& row) { return row.back().empty(); });
    for (std::vector<std::string>& row : rows)
        if (nothing) row.pop_back();  // no arm has a sweep
    return rows;
}

inline StudyTable study_pairs_table(const StudyResults& r, const SetComparison& set) {
    StudyTable rows = {{"difference", "points", "95 %", "p", "Holm's p", "verdict"}};
    for (const PairResult& p : set.pairs)
        rows.push_back({r.arms[p.b].name + " - " + r.arms[p.a].name, format("%+.1f", 100.0 * p.estimate.value),
                        format("%+.1f to %+.1f", 100.0 * p.interval.low, 100.0 * p.interval.high), p_text(p.p),
                        p_text(p.p_holm), verdict_of(p, 0.0, r.arms[p.b].name)});
    return rows;
}

// how the tables are to be read
inline std::string study_note(const StudyResults& r, const Study& study) {
    std::vector<std::string> seeds;
    for (const uint64_t seed : study.seeds) seeds.push_back(std::to_string(seed));
    size_t pairs = 0;
    for (const SetComparison& set : r.sets) pairs += set.pairs.size();
    std::string text = "Seeds " + join_words(seeds) + ". In percent, with intervals over seeds and problems";
    if (!study.start.empty())
        text += "; gain kept: of what " + study.full + " gained over " + study.start + ", less than a point is none";
    if (pairs) text += format("; Holm's correction over %zu comparison%s", pairs, pairs == 1 ? "" : "s");
    return text + ".";
}

inline std::string study_heading(const Study& study) { return study.title.empty() ? study.name : study.title; }

inline std::string study_table(const StudyResults& r, const Study& study, const StudyLayout& layout) {
    std::string text = "# " + study_heading(study) + "\n\n";
    if (!study.about.empty()) text += study.about + "\n\n";
    for (const SetComparison& set : r.sets) {
        text += "## " + set.set + "\n\n" + md_table(study_set_table(r, study, layout, set)) + "\n";
        if (!set.pairs.empty()) text += md_table(study_pairs_table(r, set)) + "\n";
    }
    if (r.sets.empty()) text += "No arm has ended with an evaluation.\n\n";
    return text + study_note(r, study) + "\n";
}
