// A run's curve as one SVG, for a README or a paper: what its samples were paid, and what of the held-out problems was right.
#pragma once
#include "report_curves.h"

// the lines that the run has: the reward of each step, pass@1 and greedy of evaluations with their intervals; of supervised
// runs without evaluations the loss
inline Plot report_picture(const ReportRun& r) {
    const std::vector<nlohmann::ordered_json> evaluations = report_evaluations(r);
    Plot p;
    p.title = text_at(r.config, "command", "run") + ", weights " + text_at(r.config, "weights", "none");
    p.x.label = "step", p.y.label = "mean";
    const std::vector<CurveLine> lines = {{"reward", "reward of the step's samples"},
                                          {"eval:pass@1", "held out: pass@1"},
                                          {"eval:greedy", "held out: greedy", "", "", "", true}};
    auto add = [&](const CurveLine& line) {
        const PlotSeries s = curve_line(r, evaluations, line);
        if (std::any_of(s.y.begin(), s.y.end(), [](double v) { return std::isfinite(v); }))
            p.series.push_back(plot_thinned(s, REPORT_MOST_POINTS, false));
    };
    for (const CurveLine& line : lines) add(line);
    if (p.series.empty()) add({"loss", "loss"});
    if (p.series.empty())
        fail("%s: neither `reward` nor `loss` is in metrics.jsonl, and there is no evaluation: nothing to draw",
             r.path.c_str());
    p.width = 760, p.height = 380;
    return p;
}
