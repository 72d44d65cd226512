// study: arms over a grid and seeds, from one file: the runs (study_runs.cuh), and then tables of what they found.
#pragma once
#include "../eval/study_page.h"
#include "model_card.cuh"
#include "study_needs.cuh"

// Studies that come with the program stand in eval/studies; a path is a file of the user's own
inline std::string study_file(const std::string& name) {
    if (file_exists(name) || name.find_first_of("/.") != std::string::npos) return name;
    std::vector<std::string> names;
    const std::string folder = "eval/studies";
    std::error_code ec;
    for (const auto& entry : std::filesystem::directory_iterator(folder, ec))
        if (entry.path().extension() == ".json") names.push_back(entry.path().stem().string());
    std::sort(names.begin(), names.end());
    if (std::find(names.begin(), names.end(), name) != names.end()) return folder + "/" + name + ".json";
    fail_usage("study %s: there is no such file, and %s has %s%s", printable(name).c_str(), folder.c_str(),
               names.empty() ? "none" : join_words(names).c_str(), did_you_mean(name, names).c_str());
}

// every run's flags, before the first begins
inline void study_check_flags(const StudyWork& w) {
    for (const StudyRun& run : w.layout.runs) {
        const std::vector<std::string> args = study_arguments(w, run, [](const StudyRun&) { return std::string("-"); });
        try {
            parse_options(args);
        } catch (const Error& e) {
            fail_usage("%s: stage %s: %s", printable(w.study.file, 400).c_str(), run.stage.c_str(), e.what());
        }
    }
}

// What made the results of the folder: those of another program are not mixed with this one's
inline void study_claim_folder(const StudyWork& w) {
    const std::string path = w.folder + "/study.json";
    StudyJson now = {
        {"version", TRAIN_QRL_VERSION}, {"precision", PRECISION_NAME}, {"instructions", instructions_name()}};
    if (file_exists(path)) {
        const nlohmann::json before = json_parse(read_file(path, 1 << 20), path);
        for (const auto& item : now.items()) {
            const std::string had = before.is_object() ? before.value(item.key(), "") : "", has = item.value();
            if (had != has)
                fail("%s holds results of a program with %s '%s', and this one has '%s'; give another --output_dir",
                     w.folder.c_str(), item.key().c_str(), printable(had).c_str(), has.c_str());
        }
        return;
    }
    for (const auto& entry : std::filesystem::directory_iterator(w.folder))
        if (const std::string name = entry.path().filename().string(); name != ".lock")
            fail("%s holds %s and is no study's folder; give another --output_dir", w.folder.c_str(),
                 printable(name).c_str());
    write_file_atomic(path, now.dump(1) + "\n");
}

// of a cell whose sweep has chosen nothing
inline std::string study_why_not_chosen(const StudyWork& w, const StudyCell& cell) {
    const std::vector<std::string>& stages = w.study.arm(cell.arm).stages;
    for (const StudyRun& run : w.layout.runs) {
        const auto failed = w.failed.find(run.id);
        if (failed == w.failed.end() || run.flags.at("seed").get<uint64_t>() != w.study.sweep_seed) continue;
        if (std::find(stages.begin(), stages.end(), run.stage) != stages.end())
            return "failed: sweep of " + run.stage + ": " + failed->second;
    }
    return "no sweep of it has ended";
}

inline StudyResults study_results(StudyWork& w) {
    StudyResults r;
    auto summary_of = [&](const StudyRun& run) { return study_summary(w.path(run)); };
    auto history_of = [&](const StudyRun& run) -> const ReportRun& { return w.histories.of(w.path(run)); };
    for (const StudyCell& cell : w.layout.cells) {
        r.outcomes.emplace_back();
        for (size_t s = 0; s < cell.chains.size(); s++) {
            StudyOutcome o = study_outcome(w.layout, cell, s, summary_of, history_of);
            std::vector<int> all = cell.chains[s];
            if (cell.evaluations[s] >= 0) all.push_back(cell.evaluations[s]);
            for (const int i : all) {
                const auto failed = w.failed.find(w.layout.runs[i].id);
                if (o.state.empty() && failed != w.failed.end())
                    o.state = "failed: " + w.layout.runs[i].stage + ": " + failed->second;
            }
            if (o.state.empty()) o.state = all.empty() ? study_why_not_chosen(w, cell) : "not run yet";
            r.outcomes.back().push_back(o);
        }
    }
    study_compare(r, w.study, w.layout,
                  [&](size_t c, size_t s) { return w.path(w.layout.runs[w.layout.cells[c].evaluations[s]]); });
    return r;
}

inline std::vector<ClaimResult> study_claims(StudyWork& w, const StudyResults& r) {
    return study_claims(r, w.study, w.layout, [&](int cell, size_t seed, const std::string& key) {
        const ReportRun* last = nullptr;
        for (const int i : w.layout.cells[cell].chains[seed])
            if (IN_TRAIN >> w.layout.runs[i].command & 1) last = &w.histories.of(w.path(w.layout.runs[i]));
        return last && last->numbers.count(key) ? last->numbers.at(key) : ReportSeries();
    });
}

inline void study_write(StudyWork& w, const StudyResults& r, const std::vector<ClaimResult>& claims) {
    const std::vector<StudyJson> rows = study_rows(r, w.study, w.layout);
    std::string lines;
    for (const StudyJson& row : rows) lines += json_line(row) + "\n";
    write_file_atomic(w.folder + "/results.jsonl", lines);
    write_file_atomic(w.folder + "/results.csv", study_csv(rows));
    if (!claims.empty()) {
        lines.clear();
        for (const ClaimResult& claim : claims) lines += json_line(claim_row(claim, w.layout)) + "\n";
        write_file_atomic(w.folder + "/claims.jsonl", lines);
    }
    write_file_atomic(w.folder + "/table.md", study_table(r, w.study, w.layout, claims));
    for (const auto& [name, picture] : study_pictures(r, w.study, w.layout))
        write_file_atomic(w.folder + "/" + name + ".svg", plot_svg(picture));
    report_write(w.folder + "/report.html",
                 study_page(
                     r, w.study, w.layout, claims, [&](const StudyRun& run) { return w.path(run); },
                     [&](const StudyRun& run) -> const ReportRun& { return w.histories.of(w.path(run)); }));
}

// --plan: what there is to do, as the command lines that do it
inline void study_print_plan(StudyWork& w) {
    for (int i = 0; i < (int)w.layout.runs.size(); i++) {
        const StudyRun& run = w.layout.runs[i];
        const char* state = study_state(w, i) == StudyState::done ? "done   " : "to run ";
        std::string line;
        for (const std::string& arg : study_arguments(w, run, [&](const StudyRun& other) {
                 const std::string there = study_checkpoint(w.path(other));
                 return there.empty() ? w.path(other) + "/checkpoint-..." : there;
             }))
            line += " " + shell_word(arg);
        printf("%s ./train_qrl%s\n", state, line.c_str());
    }
    if (!w.layout.complete) printf("        and those of the cells whose values the sweeps above choose\n");
}

inline int study_command(Session& s) {
    const Options& o = s.o;
    StudyWork w;
    const std::string file = study_file(o.arguments[0]);
    StudyJson j = json_parse<StudyJson>(read_file(file, 64 << 20), file);
    if (o.seeds > 0 && j.is_object()) {
        j["seeds"] = o.seeds;
        if (o.quick && j.contains("quick") && j["quick"].is_object()) j["quick"].erase("seeds");
    }
    w.study = study_parse(j, file, o.quick);
    if (!o.claims.empty()) study_keep_claims(w.study, split_words(o.claims));
    if (!o.model.empty()) w.study.model = o.model;
    w.folder = o.given("output_dir") ? o.output_dir : "study-" + w.study.name;
    while (w.folder.size() > 1 && w.folder.back() == '/') w.folder.pop_back();
    study_update(w);
    StudyWork all = w;  // with what is behind sweeps
    all.layout = study_foresee(w.study, w.scores);
    study_check_flags(all);
    study_check_pictures(w.study, all.layout);
    int to_do = 0;
    for (int i = 0; i < (int)w.layout.runs.size(); i++) to_do += study_state(w, i) != StudyState::done;
    const size_t later = all.layout.runs.size() - w.layout.runs.size();
    printf("study   %s: %zu cells x %zu seeds, %zu runs%s, %d of them to do; in %s\n", w.study.name.c_str(),
           w.layout.cells.size(), w.study.seeds.size(), w.layout.runs.size(),
           later ? format(" and %zu that sweeps decide on", later).c_str() : "", to_do, w.folder.c_str());
    if (o.plan) study_print_plan(w);
    study_prepare(w, all, o.jobs, cpu_share().threads());
    if (o.plan) return 0;
    make_folders(w.folder);
    const FolderLock lock(w.folder);
    study_claim_folder(w);
    const bool ended = study_run_all(w);
    const StudyResults r = study_results(w);
    const std::vector<ClaimResult> claims = study_claims(w, r);
    study_write(w, r, claims);
    if (!ended) {
        printf("stopped; the same command goes on\n");
        return stop_exit_code();
    }
    printf("\n%s\nresults in %s: report.html, table.md, %sresults.csv, results.jsonl\n",
           claims.empty() ? study_table(r, w.study, w.layout, claims).c_str() : study_verdicts(claims).c_str(),
           w.folder.c_str(), claims.empty() ? "" : "claims.jsonl, ");
    return w.failed.empty() ? 0 : 1;
}
