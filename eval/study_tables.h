// What a study found as files:
//   results.jsonl, results.csv   a row for each cell, seed and set
//   table.md                     a row for each cell; then the pairs. report.html: study_page.h
#pragma once
#include "../runtime/arena.h"
#include "study_results.h"

// the name of the only set that a cell was asked with a seed that is done
inline std::string study_only_set(const StudyResults& r, size_t cell, size_t seed) {
    size_t at = 0;
    for (size_t s = 0; s < seed; s++) at += r.outcomes[cell][s].state == "done";
    const std::vector<std::string>& order = r.arms[r.arm_of[cell]].runs[at].order;
    return order.empty() ? "" : order[0];
}

inline std::vector<StudyJson> study_rows(const StudyResults& r, const Study& study, const StudyLayout& layout) {
    std::vector<StudyJson> rows;
    for (size_t c = 0; c < layout.cells.size(); c++)
        for (size_t s = 0; s < r.outcomes[c].size(); s++) {
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
                full["bits_per_weight"] = o.bits, full["deployed_bytes"] = o.bytes, full["code_flips"] = o.flips;
                full["reward"] = o.reward, full["entropy"] = o.entropy, full["kd/divergence"] = o.kl;
                full["kl_from_full"] = o.drift, full["deadzone_share"] = o.deadzone;
                full["sampling_logp_difference"] = o.mismatch;
                full["tokens_trained"] = o.tokens;
                rows.push_back(full);
            };
            if (o.summary.is_null()) {
                add("", nlohmann::json::object());
                continue;
            }
            const nlohmann::json& eval = o.summary["eval"];
            if (eval.contains("n")) add(study_only_set(r, c, s), eval);
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

inline std::string kept_text(const StudyShare& s) {
    if (std::isnan(s.value)) return "-";
    if (std::isinf(s.interval.low) && std::isinf(s.interval.high)) return percent_text(s.value);
    return percent_text(s.value) + " (" + share_text(s.interval.low) + " to " + share_text(s.interval.high) + ")";
}

inline std::string study_reported(const Study& study, const StudyCell& cell) {
    for (const std::string& name : {cell.name, cell.arm})
        if (const auto at = study.reported.find(name); at != study.reported.end()) return at->second;
    return "";
}

inline StudyTable study_set_table(const StudyResults& r, const Study& study, const StudyLayout& layout,
                                  const SetComparison& set) {
    StudyTable rows = {{"arm", set.metric.name(), "95 %", "greedy", "gain kept", "length", "cut off", "bits a weight",
                        "bytes", "codes flipped", "entropy", "KL from full", "tokens trained", "seeds", "chosen",
                        "reported"}};
    const StudyEvidence evidence(r, study, layout, set.set, set.metric);
    for (size_t c = 0; c < layout.cells.size(); c++) {
        const StudyCell& cell = layout.cells[c];
        const std::vector<StudyOutcome>& outcomes = r.outcomes[c];
        std::string why;
        size_t done = 0;
        for (const StudyOutcome& o : outcomes)
            if (o.state == "done") done++;
            else why = o.state;
        if (r.arm_of[c] >= 0 && set.arms[r.arm_of[c]].problems == 0) continue;  // it has an evaluation of its own
        std::vector<std::string> row = {cell.name};
        if (r.arm_of[c] < 0) {
            row.push_back(why);
            row.resize(rows[0].size(), "");
        } else {
            const ArmResult& a = set.arms[r.arm_of[c]];
            const double flips = study_mean(outcomes, &StudyOutcome::flips),
                         entropy = study_mean(outcomes, &StudyOutcome::entropy),
                         drift = study_mean(outcomes, &StudyOutcome::drift);
            for (const std::string& text :
                 {percent_text(a.value), percent_text(a.interval.low) + " to " + percent_text(a.interval.high),
                  percent_text(a.greedy), kept_text(study_share(evidence, {(int)c})), format("%.1f", a.length),
                  percent_text(a.cut_off), format("%.2f", study_mean(outcomes, &StudyOutcome::bits)),
                  study_mean(outcomes, &StudyOutcome::bytes) > 0.0
                      ? bytes_text(study_mean(outcomes, &StudyOutcome::bytes))
                      : std::string("-"),
                  std::isnan(flips) ? std::string("-") : format("%.3f %%", 100.0 * flips),
                  std::isnan(entropy) ? std::string("-") : format("%.3f", entropy),
                  std::isnan(drift) ? std::string("-") : format("%.4f", drift),
                  human_count(study_mean(outcomes, &StudyOutcome::tokens)),
                  done == outcomes.size() ? std::to_string(done)
                                          : format("%zu of %zu: %s", done, outcomes.size(), why.c_str()),
                  study_chosen_text(cell)})
                row.push_back(text);
        }
        if (row.size() == rows[0].size()) row.back() = study_reported(study, cell);
        else row.push_back(study_reported(study, cell));
        rows.push_back(row);
    }
    for (const size_t column :
         {rows[0].size() - 1, rows[0].size() - 2}) {  // no paper says anything, no arm has a sweep
        bool nothing = true;
        for (size_t i = 1; i < rows.size(); i++) nothing = nothing && rows[i][column].empty();
        for (std::vector<std::string>& row : rows)
            if (nothing) row.erase(row.begin() + (long)column);
    }
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
