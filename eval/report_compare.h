// Several runs as one page. Runs that differ only in their seed are an arm: its curves are means over the seeds with Student's
// 95 % intervals, at the steps that all of them have; an arm of one run has that run's curves. Tests between arms are not made
// here: differences of held-out answers are tested problem by problem (train_qrl compare).
#pragma once
#include "report.h"

struct ReportArm {
    std::string name;   // "A"
    std::string label;  // "A weights none": with what tells it from the others
    std::vector<ReportRun> runs;
};

// options that do not make another arm
inline bool is_of_run(const std::string& option) {
    if (option == "command" || option == "version") return false;
    return is_about_run(option) || option == "seed" || option == "output_dir" || option == "overwrite_output_dir";
}

// name -> text of what makes the arm; an option that an older version did not have is at its default
inline std::map<std::string, std::string> arm_options(const ReportRun& r) {
    std::map<std::string, std::string> map;
    if (!r.config.is_object()) return {{"folder", r.path}};  // nothing is known of it
    Options defaults;
    const std::string command = text_at(r.config, "command", "grpo");
    for (int c = 0; c < COMMAND_COUNT; c++)
        if (command == command_rows[c].name) defaults.command = (Command)c;
    resolve_options(defaults);
    nlohmann::ordered_json all = options_to_json(defaults);
    all.update(r.config);
    for (const auto& item : all.items())
        if (!is_of_run(item.key()))
            map[item.key()] = item.value().is_string() ? item.value().get<std::string>() : item.value().dump();
    return map;
}

inline std::string seed_text(const ReportRun& r) {
    return r.config.is_object() && r.config.contains("seed") ? r.config["seed"].dump() : "?";
}

// options whose values differ between arms -> the value of each arm
inline std::map<std::string, std::vector<std::string>> arm_differences(const std::vector<ReportArm>& arms) {
    std::map<std::string, std::vector<std::string>> values;
    std::vector<std::map<std::string, std::string>> options;
    std::set<std::string> names;
    for (const ReportArm& arm : arms) {
        options.push_back(arm_options(arm.runs[0]));
        for (const auto& item : options.back()) names.insert(item.first);
    }
    for (const std::string& name : names) {
        std::vector<std::string> of_arms;
        for (auto& map : options) of_arms.push_back(map.count(name) ? map[name] : "");
        if (std::set<std::string>(of_arms.begin(), of_arms.end()).size() > 1) values[name] = of_arms;
    }
    return values;
}

inline std::vector<ReportArm> report_arms(const std::vector<std::string>& paths) {
    std::vector<ReportArm> arms;
    std::map<std::map<std::string, std::string>, size_t> place;
    std::set<std::string> seen;
    for (const std::string& path : paths) {
        ReportRun r = report_open(path);
        std::error_code ec;
        if (!seen.insert(std::filesystem::canonical(r.path, ec).string()).second)
            fail_usage("%s is given twice", printable(path, 400).c_str());
        if (!r.results.is_null())
            fail("%s is an evaluation: train_qrl compare tests evaluations against each other", path.c_str());
        const auto [at, fresh] = place.try_emplace(arm_options(r), arms.size());
        if (fresh) arms.push_back({std::string(1, (char)('A' + arms.size())), "", {}});
        for (const ReportRun& other : arms[at->second].runs)
            if (seed_text(other) == seed_text(r))
                fail(
                    "%s and %s have the same options and the seed %s: two of one seed tell no more than one; leave one "
                    "out",
                    other.path.c_str(), path.c_str(), seed_text(r).c_str());
        arms[at->second].runs.push_back(std::move(r));
        if (arms.size() > (size_t)PLOT_MOST_SERIES)
            fail("more than %d arms, which is what can be told apart in a plot; give fewer runs", PLOT_MOST_SERIES);
    }
    for (size_t i = 0; i < arms.size(); i++) {
        arms[i].label = arms[i].name;
        for (const auto& [name, values] : arm_differences(arms))
            if (arms[i].label.size() < 32) arms[i].label += " " + name + " " + (values[i].empty() ? "-" : values[i]);
    }
    return arms;
}

// ---------------------------------------------------------------------------------------------------------------------
// over seeds

// mean, and Student's interval where there are two values or more
inline HeldOut over_values(const std::vector<double>& values) {
    HeldOut h;
    if (values.empty()) return h;
    h.value = mean_of(values);
    if (values.size() < 2) return h;
    h.error = std::sqrt(variance_of(values) / (double)values.size());
    const Confidence c = Estimate{h.value, h.error, (double)values.size() - 1.0}.interval();
    h.low = c.low, h.high = c.high;
    return h;
}

// of each run of an arm that has it
template <class Of>
inline std::vector<double> values_of(const ReportArm& arm, const Of& of) {
    std::vector<double> values;
    for (const ReportRun& r : arm.runs)
        if (const double v = of(r); std::isfinite(v)) values.push_back(v);
    return values;
}

// those of x where all of the lines have a number
inline std::vector<PlotSeries> common_steps(const std::vector<PlotSeries>& lines) {
    std::map<double, size_t> count;
    for (const PlotSeries& s : lines)
        for (size_t i = 0; i < s.x.size(); i++) count[s.x[i]] += std::isfinite(s.y[i]);
    std::vector<PlotSeries> common(lines.size());
    for (size_t k = 0; k < lines.size(); k++)
        for (size_t i = 0; i < lines[k].x.size(); i++)
            if (count[lines[k].x[i]] == lines.size())
                common[k].x.push_back(lines[k].x[i]), common[k].y.push_back(lines[k].y[i]);
    return common;
}

// A line of an arm: of its run, or of its runs' means
inline PlotSeries arm_line(const ReportArm& arm, const CurveLine& line) {
    std::vector<PlotSeries> lines;
    for (const ReportRun& r : arm.runs) {
        PlotSeries s = curve_line(r, report_evaluations(r), line);
        if (std::any_of(s.y.begin(), s.y.end(), [](double v) { return std::isfinite(v); }))
            lines.push_back(std::move(s));
    }
    PlotSeries mean;
    if (lines.size() == 1) {
        const bool bars = lines[0].bars;
        mean = plot_thinned(lines[0], REPORT_MOST_POINTS, false);
        if (!bars) mean.low.clear(), mean.high.clear();  // bands of several arms hide each other
    } else if (!lines.empty()) {
        const bool bars = lines[0].bars;
        lines = common_steps(lines);
        for (PlotSeries& s : lines) s = plot_thinned(s, REPORT_MOST_POINTS, false);
        mean.bars = bars, mean.x = lines[0].x;
        for (size_t i = 0; i < mean.x.size(); i++) {
            std::vector<double> values;
            for (const PlotSeries& s : lines) values.push_back(s.y[i]);
            const HeldOut h = over_values(values);
            const auto ends = std::minmax_element(values.begin(), values.end());
            const bool two = values.size() == 2 && !bars;  // t is 12.7 then, and the band would be all that is seen
            mean.y.push_back(h.value);
            mean.low.push_back(two ? *ends.first : h.low), mean.high.push_back(two ? *ends.second : h.high);
        }
    }
    mean.name = arm.label, mean.dashed = false;
    return mean;
}

// ---------------------------------------------------------------------------------------------------------------------
// the table

struct ArmNumbers {
    std::string metric;
    HeldOut before, after, difference, reward;
    double steps = 0.0, seconds = 0.0;
};

inline HeldOut run_held_out(const ReportRun& r, const std::string& metric, const char* when) {
    return held_out_when(report_evaluations(r), metric, when);
}

inline ArmNumbers arm_numbers(const ReportArm& arm) {
    ArmNumbers n;
    for (const ReportRun& r : arm.runs)
        if (n.metric.empty()) n.metric = headline_metric(report_evaluations(r));
    auto held = [&](const char* when) {
        return over_values(values_of(arm, [&](const ReportRun& r) { return run_held_out(r, n.metric, when).value; }));
    };
    n.before = held("before"), n.after = held("last");
    n.difference = over_values(values_of(arm, [&](const ReportRun& r) {
        return run_held_out(r, n.metric, "last").value - run_held_out(r, n.metric, "before").value;
    }));
    n.reward = over_values(values_of(arm, [](const ReportRun& r) { return final_mean(r, "reward"); }));
    if (arm.runs.size() == 1) {  // over its problems
        n.before = run_held_out(arm.runs[0], n.metric, "before"), n.after = run_held_out(arm.runs[0], n.metric, "last");
        n.difference = held_out_difference(n.before, n.after);
    }
    n.steps = mean_of(values_of(arm, [](const ReportRun& r) { return r.last_step(); }));
    n.seconds = mean_of(values_of(arm, run_seconds));
    return n;
}

inline std::string seeds_text(const ReportArm& arm) {
    std::vector<std::string> seeds;
    for (const ReportRun& r : arm.runs) seeds.push_back(seed_text(r));
    return join_words(seeds);
}

inline std::string reward_text(const HeldOut& h) {
    std::string s = number_text(h.value);
    if (std::isfinite(h.low)) s += format(" [%.4g, %.4g]", h.low, h.high);
    return s;
}

// a line on the console
inline std::string arm_text(const ReportArm& arm) {
    const ArmNumbers n = arm_numbers(arm);
    std::string s = printable(arm.label, 60) + format("  %zu run%s, seed%s ", arm.runs.size(),
                                                      arm.runs.size() == 1 ? "" : "s", arm.runs.size() == 1 ? "" : "s");
    s += seeds_text(arm);
    if (!n.metric.empty())
        s += "; " + n.metric + " " + held_out_text(n.before, n.metric) + " before, " +
             held_out_text(n.after, n.metric) + " after, " + held_out_text(n.difference, n.metric, true);
    return s;
}

inline std::string arms_table(const std::vector<ReportArm>& arms) {
    std::vector<HtmlRow> rows;
    for (const ReportArm& arm : arms) {
        const ArmNumbers n = arm_numbers(arm);
        rows.push_back({html_text(arm.label, 120), html_text(seeds_text(arm), 200), html_text(n.metric),
                        held_out_text(n.before, n.metric), held_out_text(n.after, n.metric),
                        held_out_text(n.difference, n.metric, true), reward_text(n.reward), format("%.0f", n.steps),
                        seconds_text(n.seconds)});
    }
    std::string s = html_table(
        "Arms, with 95 % intervals",
        {"arm", "seeds", "held out", "before", "after", "difference", "reward, last tenth", "steps", "time of a run"},
        rows);
    return s +
           "<p class=\"soft\">Intervals are Student's over the seeds of an arm; with one seed they are over problems, "
           "and say "
           "nothing of other seeds. Differences between arms are tested by <code>train_qrl compare</code>, from "
           "evaluations.</p>\n";
}

inline std::string arms_options(const std::vector<ReportArm>& arms) {
    std::vector<HtmlRow> rows;
    HtmlRow head = {"option"};
    for (const ReportArm& arm : arms) head.push_back(arm.name);
    for (const auto& [name, values] : arm_differences(arms)) {
        rows.push_back({"<code>--" + html_text(name, 80) + "</code>"});
        for (const std::string& v : values) rows.back().push_back(v.empty() ? "(empty)" : html_text(v, 300));
    }
    if (rows.empty()) return "<p>The runs differ in their seeds alone.</p>\n";
    return html_table("Options that differ between the arms", head, rows, "words");
}

// what a reader must know of single runs
inline std::string arms_notes(const std::vector<ReportArm>& arms) {
    std::string s;
    for (const ReportArm& arm : arms) {
        std::set<double> ends;
        for (const ReportRun& r : arm.runs) {
            ends.insert(r.last_step());
            for (const std::string& note : r.notes)
                s += "<p class=\"warning\">" + html_text(r.path + ": " + note, 600) + "</p>\n";
            if (!r.warnings.empty())
                s += "<p class=\"warning\">" + html_text(r.path, 300) +
                     format(": it gave %zu warning%s; its own report has them</p>\n", r.warnings.size(),
                            r.warnings.size() == 1 ? "" : "s");
        }
        if (ends.size() > 1)
            s += "<p class=\"warning\">Arm " + arm.name +
                 format(": its runs end at steps %.0f to %.0f; its curves end where the first of them ends.</p>\n",
                        *ends.begin(), *ends.rbegin());
    }
    return s;
}

// ---------------------------------------------------------------------------------------------------------------------
// the page

inline std::string arms_figure(const std::vector<ReportArm>& arms, const CurveRow& row, const CurveLine& line,
                               bool named) {
    std::vector<PlotSeries> lines;
    bool constant = true;
    for (const ReportArm& arm : arms) {
        PlotSeries s = arm_line(arm, line);
        if (s.x.empty()) continue;
        constant = constant && is_flat(s) && (lines.empty() || lines[0].y[0] == s.y[0]);
        lines.push_back(std::move(s));
    }
    if (lines.empty() || constant) return "";
    for (PlotSeries& s : lines) scale_line(s, row.scale);
    return lines_figure(row.title + (named && !line.name.empty() ? ": " + line.name : ""), "step", row.y,
                        std::move(lines), "");
}

// keys: of the numbers to draw; none: of all
inline std::string arms_curves(const std::vector<ReportArm>& arms, const std::set<std::string>& keys = {}) {
    std::string s, section;
    bool open = false;
    size_t seeds = 1, steps = 0;
    for (const ReportArm& arm : arms) {
        seeds = std::max(seeds, arm.runs.size());
        for (const ReportRun& r : arm.runs)
            for (const auto& item : r.numbers) steps = std::max(steps, item.second.x.size());
    }
    if (seeds > 1)
        s += "<p class=\"soft\">Lines are means over an arm's seeds, bands and bars Student's 95 % intervals of them; "
             "of two "
             "seeds a band reaches from one to the other.</p>\n";
    if (steps > REPORT_MOST_POINTS)
        s += format("<p class=\"soft\">Each point of a curve is the mean of about %zu logged steps.</p>\n",
                    (steps + REPORT_MOST_POINTS - 1) / REPORT_MOST_POINTS);
    auto add = [&](const std::string& title, const std::string& figure) {
        if (figure.empty()) return;
        if (title != section) s += format("%s<h3>", open ? "</div>\n" : "") + title + "</h3>\n<div class=\"curves\">\n";
        section = title, open = true;
        s += figure;
    };
    for (const CurveRow& row : report_curves) {
        std::vector<CurveLine> lines;
        for (const ReportArm& arm : arms)
            for (const ReportRun& r : arm.runs)
                for (const CurveLine& line : curve_lines(r, row))
                    if ((keys.empty() || keys.count(line.key)) && !curve_line(r, report_evaluations(r), line).x.empty() &&
                        std::none_of(lines.begin(), lines.end(), [&](const CurveLine& l) { return l.key == line.key; }))
                        lines.push_back(line);
        for (const CurveLine& line : lines) add(row.section, arms_figure(arms, row, line, lines.size() > 1));
    }
    return open ? s + "</div>\n" : "";
}

inline std::string comparison_page(const std::vector<ReportArm>& arms) {
    size_t runs = 0;
    std::vector<HtmlRow> files;
    for (const ReportArm& arm : arms)
        for (const ReportRun& r : arm.runs) {
            runs++;
            files.push_back({arm.name, html_text(seed_text(r)), html_text(r.path, 300), run_state(r)});
        }
    std::vector<PageSection> sections = {{"arms", "Arms", arms_table(arms)},
                                         {"options", "What differs", arms_options(arms)}};
    const std::string notes = arms_notes(arms), curves = arms_curves(arms);
    if (!notes.empty()) sections.push_back({"notes", "Notes", notes});
    if (!curves.empty()) sections.push_back({"curves", "Curves", curves});
    sections.push_back({"runs", "Runs", html_table("Runs", {"arm", "seed", "folder", "state"}, files, "words")});
    const std::string under =
        format("%zu run%s in %zu arm%s", runs, runs == 1 ? "" : "s", arms.size(), arms.size() == 1 ? "" : "s");
    return html_page("Comparison of runs \xC2\xB7 train_qrl", "Comparison of runs", under, sections);
}
