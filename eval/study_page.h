// A study as one page: its claims and tables, accuracy against bytes, and the curves of what it trained, means over seeds.
#pragma once
#include "report_compare.h"
#include "study_claims.h"
#include "study_pictures.h"

// curves of what was trained; there are too many arms to draw every number of each
inline const std::set<std::string> study_curves = {"reward",
                                                   "entropy",
                                                   "loss",
                                                   "kd/divergence",
                                                   "completions/mean_length",
                                                   "quant/code_flip_total",
                                                   "quant/deadzone_share",
                                                   "sampling/sampling_logp_difference/mean"};

// kind: "words" where cells are texts
inline std::string study_html_table(const std::string& caption, const StudyTable& rows, const char* kind = "") {
    HtmlRow head;
    std::vector<HtmlRow> body;
    for (size_t i = 0; i < rows.size(); i++) {
        HtmlRow row;
        for (const std::string& cell : rows[i]) row.push_back(html_text(cell, 300));
        if (i == 0) head = row;
        else body.push_back(row);
    }
    return html_table(html_text(caption), head, body, kind);
}

// What arms took on this machine: no result, for it differs from one time to the next
inline StudyTable study_cost_table(const StudyResults& r, const StudyLayout& layout) {
    StudyTable rows = {{"arm", "time of its stages", "peak memory", "tokens trained", "bytes"}};
    for (size_t c = 0; c < layout.cells.size(); c++) {
        if (r.arm_of[c] < 0) continue;
        const std::vector<StudyOutcome>& o = r.outcomes[c];
        rows.push_back({layout.cells[c].name, duration_text(study_mean(o, &StudyOutcome::seconds)),
                        bytes_text(study_mean(o, &StudyOutcome::peak)),
                        human_count(study_mean(o, &StudyOutcome::tokens)),
                        bytes_text(study_mean(o, &StudyOutcome::bytes))});
    }
    return rows;
}

// the last run of each cell that has steps, each once. history_of(run): a ReportRun
template <class History>
inline std::vector<ReportArm> study_curve_arms(const StudyLayout& layout, const StudyResults& r,
                                               const History& history_of) {
    std::vector<ReportArm> arms;
    std::set<int> drawn;
    for (size_t c = 0; c < layout.cells.size(); c++) {
        const StudyCell& cell = layout.cells[c];
        ReportArm arm;
        arm.name = arm_name(arms.size()), arm.label = cell.name;
        for (size_t s = 0; s < cell.chains.size(); s++) {
            int last = -1;
            for (const int run : cell.chains[s])
                if (IN_TRAIN >> layout.runs[run].command & 1 && !history_of(layout.runs[run]).numbers.empty())
                    last = run;
            if (last >= 0 && r.outcomes[c][s].state == "done" && drawn.insert(last).second)
                arm.runs.push_back(history_of(layout.runs[last]));
        }
        if (!arm.runs.empty() && arm.runs[0].last_step() > 0) arms.push_back(std::move(arm));
    }
    return arms;
}

template <class Folder, class History>
inline std::string study_page(const StudyResults& r, const Study& study, const StudyLayout& layout,
                              const std::vector<ClaimResult>& claims, const Folder& folder_of,
                              const History& history_of) {
    std::string tables, pairs, pareto;
    for (const SetComparison& set : r.sets) {
        tables += study_html_table(set.set, study_set_table(r, study, layout, set));
        if (!set.pairs.empty()) pairs += study_html_table(set.set, study_pairs_table(r, set));
        pareto += study_pareto(r, layout, set);
    }
    const std::string note = "<p>" + html_text(study_note(r, study)) + "</p>\n";
    std::vector<PageSection> sections;
    if (!claims.empty())
        sections.push_back({"claims", "Claims",
                            study_html_table("Claims", study_claims_table(claims), "words") + "<p>" +
                                html_text(study_noise_text(claims)) + "</p>\n"});
    sections.push_back({"arms", "Arms", tables + note});
    if (!pairs.empty()) sections.push_back({"differences", "Differences", pairs});
    std::string pictures;
    for (const auto& [name, picture] : study_pictures(r, study, layout)) pictures += plot_figure(picture, STUDY_BARS);
    if (!pictures.empty())
        sections.push_back({"pictures", "Pictures", "<div class=\"curves\">\n" + pictures + "</div>\n"});
    if (!pareto.empty())
        sections.push_back({"bytes", "Accuracy against bytes", "<div class=\"curves\">\n" + pareto + "</div>\n"});
    const std::vector<ReportArm> arms = study_curve_arms(layout, r, history_of);
    const size_t charts = (arms.size() + PLOT_MOST_SERIES - 1) / PLOT_MOST_SERIES;
    for (size_t i = 0; i < charts; i++) {
        const auto first = arms.begin() + (long)(i * PLOT_MOST_SERIES);
        const auto end = i + 1 == charts ? arms.end() : first + PLOT_MOST_SERIES;
        const std::string curves = arms_curves(std::vector<ReportArm>(first, end), study_curves);
        if (!curves.empty())
            sections.push_back(
                {format("curves-%zu", i + 1),
                 "Curves of what was trained" + (charts > 1 ? format(", %zu of %zu", i + 1, charts) : ""), curves});
    }
    sections.push_back(
        {"cost", "Cost",
         study_html_table("Means over seeds, shared stages counted for each", study_cost_table(r, layout))});
    std::vector<HtmlRow> runs;
    for (const StudyRun& run : layout.runs) {
        const std::string folder = folder_of(run);
        runs.push_back({html_text(run.id), command_rows[run.command].name, html_text(folder, 300)});
    }
    sections.push_back({"runs", "Runs", html_table("Runs", {"run", "command", "folder"}, runs, "words")});
    const std::string heading = html_text(study_heading(study));
    return html_page(heading + " \xC2\xB7 train_qrl", heading, html_text(study.about), sections);
}
