// The curves of a run as figures by section, and what is logged by layer.
#pragma once
#include "report_curves.h"

struct FigureSection {
    std::string title, figures, constants;  // HTML; constants: what is the same at every step
    bool empty() const { return figures.empty() && constants.empty(); }
};

// what a point of a curve is, where a run has logged more steps than are drawn; "": one step
inline std::string thinning_note(size_t steps) {
    if (steps <= REPORT_MOST_POINTS) return "";
    return format(
        "<p class=\"soft\">Each point of a curve is the mean of about %zu logged steps. Where a plot says nothing else "
        "of it, "
        "a band reaches from the least to the largest of them.</p>\n",
        (steps + REPORT_MOST_POINTS - 1) / REPORT_MOST_POINTS);
}

// lines of one plot, thinned alike; "": there is none
inline std::string lines_figure(const std::string& title, const std::string& x, const std::string& y,
                                std::vector<PlotSeries> lines, const std::string& note, bool log = false) {
    if (lines.empty()) return "";
    const bool spread = lines.size() <= 2;
    for (PlotSeries& s : lines) s = plot_thinned(s, REPORT_MOST_POINTS, spread);
    if (lines.size() == 1) lines[0].dashed = false;
    Plot p;
    p.title = title, p.x.label = x, p.y.label = y, p.y.log = log, p.series = std::move(lines);
    return plot_figure(p, html_text(note));
}

inline void add_row(FigureSection& section, const ReportRun& r, const std::vector<nlohmann::ordered_json>& evaluations,
                    const CurveRow& row, const std::string& title, const std::vector<CurveLine>& lines) {
    std::vector<PlotSeries> drawn;
    size_t there = 0;
    for (const CurveLine& line : lines) {
        PlotSeries s = curve_line(r, evaluations, line);
        if (std::none_of(s.y.begin(), s.y.end(), [](double v) { return std::isfinite(v); })) continue;
        there++;
        if (is_flat(s)) {
            section.constants += format("%s<code>%s</code> %s", section.constants.empty() ? "" : ", ",
                                        html_text(line.key, 80).c_str(), number_text(s.y[0]).c_str());
            continue;
        }
        scale_line(s, row.scale);
        if (drawn.size() < (size_t)PLOT_MOST_SERIES) drawn.push_back(std::move(s));
    }
    // without the others of its row a line has no legend
    const std::string y = drawn.size() == 1 && there > 1 ? row.y + ": " + drawn[0].name : row.y;
    section.figures += lines_figure(title, "step", y, std::move(drawn), row.note, row.log);
}

// at most n places of [0, size), with the first and the last
inline std::vector<size_t> spread_places(size_t size, size_t n) {
    std::vector<size_t> places;
    for (size_t k = 0; k < std::min(n, size); k++) places.push_back(n < size ? k * (size - 1) / (n - 1) : k);
    return places;
}

// One column of a log by tensor: along the layers at up to four steps, and along the steps by kind
inline std::string layer_figures(const LayerLog& log, const char* column, const std::string& title,
                                 const std::string& y, double scale) {
    const auto at = std::find(log.columns.begin(), log.columns.end(), column);
    if (at == log.columns.end() || log.rows.empty()) return "";
    const size_t c = (size_t)(at - log.columns.begin()), L = log.layers.size();
    std::vector<PlotSeries> along, over;
    if (L > 1)
        for (size_t k : spread_places(log.rows.size(), 4)) {
            PlotSeries s;
            s.name = format("step %.0f", log.rows[k].step);
            for (size_t l = 0; l < L; l++) s.x.push_back(log.layers[l]), s.y.push_back(scale * log.value(k, c, l));
            along.push_back(s);
        }
    for (size_t g = 0; g < log.kinds.size() && log.kinds.size() <= (size_t)PLOT_MOST_SERIES; g++) {
        PlotSeries s;
        s.name = log.kinds[g];
        for (size_t k = 0; k < log.rows.size(); k++)
            s.x.push_back(log.rows[k].step), s.y.push_back(scale * log.value(k, c, L + g));
        if (log.rows.size() > 1) over.push_back(s);
    }
    std::string figures;
    for (auto* lines : {&along, &over}) {
        const bool flat = std::all_of(lines->begin(), lines->end(), is_flat);
        const bool drawn = std::any_of(lines->begin(), lines->end(), [](const PlotSeries& s) {
            return std::any_of(s.y.begin(), s.y.end(), [](double v) { return std::isfinite(v); });
        });
        if (flat || !drawn) continue;
        const bool by_layer = lines == &along;
        figures += lines_figure(title + (by_layer ? ", by layer" : ", by kind of weight"), by_layer ? "layer" : "step",
                                y, *lines, format("Means over the tensors of a %s.", by_layer ? "layer" : "kind"));
    }
    return figures;
}

inline std::string quantization_by_layer(const ReportRun& r) {
    return layer_figures(r.flips, "total", "Codes that differ from the start", "percent", 100) +
           layer_figures(r.flips, "now", "Codes that a step changes", "percent", 100) +
           layer_figures(r.grids, "deadzone_share", "Dead zone", "percent", 100) +
           layer_figures(r.grids, "grid_noise_in_cells", "Noise of the grid", "cells", 1) +
           layer_figures(r.grids, "scale_drift", "Drift of the scales", "relative change", 1) +
           layer_figures(r.grids, "oscillating_share", "Codes that turned back", "percent", 100);
}

// The last step's mean differences by place in a completion, and by entropy
inline std::string mismatch_figures(const ReportRun& r) {
    auto numbers = [&](const char* key) {
        const auto at = r.arrays.find(key);
        return at == r.arrays.end() ? std::vector<double>() : at->second;
    };
    std::string figures;
    PlotSeries place, entropy;
    place.name = entropy.name = "mean difference";
    place.y = numbers("sampling/logp_difference_by_position");
    for (size_t i = 0; i < place.y.size(); i++) place.x.push_back((double)i);
    entropy.x = numbers("sampling/entropy_of_bin"), entropy.y = numbers("sampling/logp_difference_by_entropy");
    if (place.y.size() > 1 && !is_flat(place))
        figures += lines_figure("Difference by place in the completion", "place, as a power of two", "nat", {place},
                                "At the last step: tokens 1, 2-3, 4-7, ...");
    if (entropy.x.size() > 1 && entropy.x.size() == entropy.y.size() && !is_flat(entropy))
        figures += lines_figure("Difference by the trainer's entropy", "entropy, nat", "nat", {entropy},
                                "At the last step: ten parts of equally many tokens.");
    return figures;
}

inline std::vector<FigureSection> report_figures(const ReportRun& r) {
    const std::vector<nlohmann::ordered_json> evaluations = report_evaluations(r);
    std::vector<FigureSection> sections;
    std::set<std::string> named;
    for (const CurveRow& row : report_curves) {
        if (sections.empty() || sections.back().title != row.section) sections.push_back({row.section, "", ""});
        const std::vector<CurveLine> lines = curve_lines(r, row);
        for (const CurveLine& line : lines)
            for (const std::string& key : {line.key, line.around, line.low, line.high}) named.insert(key);
        if (row.each)
            for (const CurveLine& line : lines)
                add_row(sections.back(), r, evaluations, row, row.title + " " + line.name, {line});
        else if (!(row.title == "Time of a step" && r.numbers.count("timing_s/rest")))
            add_row(sections.back(), r, evaluations, row, row.title, lines);
    }
    for (FigureSection& s : sections) {
        if (s.title == "Quantization") s.figures += quantization_by_layer(r);
        if (s.title == "Sampler and trainer") s.figures += mismatch_figures(r);
    }
    FigureSection others{"Other numbers", "", ""};
    size_t n = 0;
    for (const std::string& key : r.keys)
        if (!named.count(key) && !report_ignores(key) && n++ < REPORT_MOST_OTHERS)
            add_row(others, r, evaluations, {"", key, "", {}}, key, {{key, key}});
    sections.push_back(others);
    sections.erase(std::remove_if(sections.begin(), sections.end(), [](const FigureSection& s) { return s.empty(); }),
                   sections.end());
    return sections;
}

inline std::string figures_html(const ReportRun& r) {
    size_t steps = 0;
    for (const auto& item : r.numbers) steps = std::max(steps, item.second.x.size());
    const std::vector<FigureSection> sections = report_figures(r);
    std::string s = sections.empty() ? "" : thinning_note(steps);
    for (const FigureSection& section : sections) {
        s += "<h3>" + section.title + "</h3>\n";
        if (!section.figures.empty()) s += "<div class=\"curves\">\n" + section.figures + "</div>\n";
        if (!section.constants.empty())
            s += "<p class=\"soft\">The same at every step: " + section.constants + ".</p>\n";
    }
    return s;
}
