// A study as charts: accuracy against bytes, of all arms, and the pictures that its file asks for, each an SVG of its own,
// for a README or a paper.
#pragma once
#include "report_page.h"
#include "study_tables.h"

static constexpr const char* STUDY_BARS = "Bars: 95 % intervals over seeds and problems.";

// one point of a line more, at its place along x
inline void study_point(PlotSeries& s, double x, double value, const Confidence& interval) {
    const size_t at = std::upper_bound(s.x.begin(), s.x.end(), x) - s.x.begin();
    auto put = [at](std::vector<double>& to, double v) { to.insert(to.begin() + (long)at, v); };
    put(s.x, x), put(s.y, 100.0 * value);
    put(s.low, 100.0 * interval.low), put(s.high, 100.0 * interval.high);
}

// Arms by what is deployed: a point for each cell with its interval, a line for each arm. Of more arms than a chart can tell
// apart there are several charts
inline std::string study_pareto(const StudyResults& r, const StudyLayout& layout, const SetComparison& set) {
    std::vector<PlotSeries> series;
    for (size_t c = 0; c < layout.cells.size(); c++) {
        if (r.arm_of[c] < 0) continue;
        const ArmResult& a = set.arms[r.arm_of[c]];
        const double bytes = study_mean(r.outcomes[c], &StudyOutcome::bytes);
        if (a.problems == 0 || !(bytes > 0.0)) continue;
        if (series.empty() || series.back().name != layout.cells[c].arm) {
            series.emplace_back();
            series.back().name = layout.cells[c].arm, series.back().bars = true;
        }
        study_point(series.back(), bytes, a.value, a.interval);
    }
    std::string html;
    for (size_t i = 0; i < series.size(); i += PLOT_MOST_SERIES) {
        Plot p;
        p.title = set.set + ": accuracy against bytes";
        p.x.label = "bytes of the model as it is deployed", p.x.log = true;
        p.y.label = set.metric.name() + ", percent";
        p.series.assign(series.begin() + (long)i,
                        series.begin() + (long)std::min(series.size(), i + (size_t)PLOT_MOST_SERIES));
        html += plot_figure(p, STUDY_BARS);
    }
    return html;
}

// The cells of each line of a picture: an arm's, at one point of the grid's other keys
inline std::vector<std::pair<std::string, std::vector<int>>> study_lines(const StudyLayout& layout,
                                                                         const StudyPicture& picture) {
    std::vector<std::pair<std::string, std::vector<int>>> lines;
    for (const std::string& arm : picture.arms)
        for (int c = 0; c < (int)layout.cells.size(); c++) {
            if (layout.cells[c].arm != arm) continue;
            std::string name = arm;
            for (const auto& [key, value] : layout.cells[c].point)
                if (key != picture.across) name += " " + value;
            const auto at = std::find_if(lines.begin(), lines.end(), [&](const auto& l) { return l.first == name; });
            if (at == lines.end()) lines.push_back({name, {c}});
            else at->second.push_back(c);
        }
    return lines;
}

// more lines than can be told apart are refused before anything runs
inline void study_check_pictures(const Study& study, const StudyLayout& layout) {
    for (const StudyPicture& p : study.pictures)
        if (const size_t n = study_lines(layout, p).size(); n > (size_t)PLOT_MOST_SERIES)
            fail_usage("%s: pictures.%s: %zu lines, and %d can be told apart; name fewer arms",
                       printable(study.file, 400).c_str(), printable(p.name).c_str(), n, PLOT_MOST_SERIES);
}

// the values of a key of the grid as numbers; NAN where one is a text, such as a quantizer's
inline double study_value_number(const std::string& value) {
    char* end = nullptr;
    const double number = strtod(value.c_str(), &end);
    return end != value.c_str() && *end == 0 ? number : NAN;
}

// the cell's value of a key; empty: it has none
inline std::string study_point_value(const StudyCell& cell, const std::string& key) {
    for (const auto& [its, value] : cell.point)
        if (its == key) return value;
    return "";
}

// Accuracy on the first set, by the pictures' names, along the key's values, or where these are texts along bits a weight. Where
// the study has a `start`, as points above it, by seed: seeds may differ by far more than what is done with them does. An arm
// without the key is a line across. A picture without a point is left out
inline std::vector<std::pair<std::string, Plot>> study_pictures(const StudyResults& r, const Study& study,
                                                                const StudyLayout& layout) {
    std::vector<std::pair<std::string, Plot>> plots;
    if (r.sets.empty()) return plots;
    const SetComparison& set = r.sets[0];
    const StudyEvidence e(r, study, layout, set.set, set.metric);
    auto measured = [&](int cell) {
        const ArmResult& a = set.arms[r.arm_of[cell]];
        const int start = study.start.empty() ? -1 : study_ends(e, cell).first;
        if (start < 0) return std::pair(a.value, a.interval);
        const StudyContrast above = study_sum({{cell, 1.0}}, {{start, 1.0}}, -1.0);
        const std::vector<size_t> seeds = e.seeds_of(above);
        if (seeds.empty()) return std::pair((double)NAN, Confidence{NAN, NAN});
        const Estimate estimate = paired_estimate(e.values(above, seeds));
        return std::pair(estimate.value, estimate.interval());
    };
    for (const StudyPicture& picture : study.pictures) {
        Plot p;
        p.title = picture.title, p.width = 760, p.height = 420;
        p.y.label = set.metric.name() + (study.start.empty() ? ", percent" : ", points above " + study.start);
        double least = INFINITY, most = -INFINITY;
        bool numbers = true;
        for (const auto& [key, values] : study.grid)
            for (const std::string& value : values)
                if (key == picture.across && std::isnan(study_value_number(value))) numbers = false;
        std::vector<std::pair<PlotSeries, double>> across;
        for (const auto& [name, cells] : study_lines(layout, picture)) {
            PlotSeries s;
            s.name = name, s.bars = true;
            for (const int c : cells) {
                if (r.arm_of[c] < 0 || set.arms[r.arm_of[c]].problems == 0) continue;
                const auto [y, interval] = measured(c);
                if (std::isnan(y)) continue;  // the start has failed
                const std::string value = study_point_value(layout.cells[c], picture.across);
                if (value.empty()) {
                    across.push_back({s, 100.0 * y});
                    continue;
                }
                const double x = numbers ? study_value_number(value) : study_mean(r.outcomes[c], &StudyOutcome::bits);
                study_point(s, x, y, interval);
                if (std::find(p.x.ticks.begin(), p.x.ticks.end(), x) == p.x.ticks.end()) p.x.ticks.push_back(x);
                least = std::min(least, x), most = std::max(most, x);
            }
            if (!s.x.empty()) p.series.push_back(s);
        }
        if (p.series.empty()) continue;
        for (auto& [s, y] : across) {
            s.bars = false, s.dashed = true;
            s.x = {least, most}, s.y = {y, y};
            p.series.push_back(s);
        }
        std::sort(p.x.ticks.begin(), p.x.ticks.end());
        if (p.x.ticks.size() > 8) p.x.ticks.clear();
        p.x.label = numbers ? picture.across : "bits a weight";
        p.x.log = least > 0.0 && (!numbers || most > 8.0 * least);  // bits do not begin at 0
        plots.push_back({picture.name, p});
    }
    return plots;
}
