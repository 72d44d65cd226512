// What is logged of the grids of a run, beside the codes that flip: metrics.jsonl has the totals over all quantized
// weights, quant_statistics.jsonl each tensor. What they are is kernels/grid_statistics.cuh's.
//   quant/deadzone_share       the edge of the cell is farther than 100 updates at this step's rate may move a weight
//   quant/deadzone_share_step  ... than one, so that its code cannot flip in the next step
//   quant/learning_rate_in_cells        this step's rate, of all its updates, and
//   quant/learning_rate_in_cells_total  of all updates so far, each at the cells of the next step that was logged
//   quant/scale_bias, deadzone_truncation, grid_noise, grid_noise_in_cells, scale_drift
//   quant/master_drift, master_drift_max, oscillating_share     with --quant_statistics history
// The first four say how far Adam goes. They are left out where a weight moves by something else than its own rate: under
// an adapter; the two shares also where codes are drawn, which have no dead zone.
#pragma once
#include <string>
#include <vector>
#include "../kernels/grid_statistics.cuh"
#include "../optimizers/optimizer.cuh"
#include "../runtime/json.h"
#include "../runtime/named_array.h"

static constexpr double DEADZONE_UPDATES = 100.0;

enum class QuantStatisticsKind { none, grid, history };

struct QuantStatistics {
    QuantStatisticsKind kind = QuantStatisticsKind::none;
    std::vector<LinearPart*> parts;
    std::vector<ParamGroup> group;     // of each
    bool adapter = false;              // what moves is not the weights
    bool drawn = false;                // codes are, at each step
    Buffer<Grid> first;                // the model's grids, as the run began
    Buffer<int8_t> codes, directions;  // GridHistory's, of the parts, one after another
    Buffer<float> values;
    Buffer<GridSums> sums;        // [parts]
    double rate = 0.0;            // of the updates since the last line
    std::vector<double> crossed;  // [parts] cells until then
    bool on() const { return kind != QuantStatisticsKind::none; }
    bool has_history() const { return kind == QuantStatisticsKind::history; }
};

// Of a tensor or of all: what is logged
struct GridReport {
    GridSums sums = {};
    double weights = 0.0;
    double rate_cells = 0.0, crossed = 0.0;  // over weights that have a cell
};

// After the model's quantizers and its adapter
inline void quant_statistics_plan(QuantStatistics& s, Model& m, QuantStatisticsKind kind) {
    s.kind = kind;
    if (!s.on()) return;
    int64_t weights = 0;
    s.adapter = m.lora.on();
    for (const ParamTensor& t : m.tensors) {
        LinearPart* p = part_of(m, t);
        if (!p || !p->quantizer.on()) continue;
        s.parts.push_back(p), s.group.push_back(param_group(t.kind));
        s.drawn = s.drawn || p->quantizer.stochastic;
        weights += p->count();
    }
    s.crossed.assign(s.parts.size(), 0.0);
    const char* hint = "--quant_statistics none";
    s.first.allocate(m.grids.size, "quantization scales at the start", hint, m.dev);
    s.sums.allocate(s.parts.size(), "statistics of the grids", hint, m.dev);
    if (!s.has_history()) return;
    hint = "--quant_statistics grid";
    s.codes.allocate(weights, "history of the codes", hint, m.dev);
    s.directions.allocate(weights, "history of the codes", hint, m.dev);
    s.values.allocate(weights, "history of the codes", hint, m.dev);
}

// use(i, part, its weights, its history) for each
template <class Use>
inline void quant_statistics_each(const QuantStatistics& s, const Model& m, const Use& use) {
    int64_t weight = 0;
    for (size_t i = 0; i < s.parts.size(); i++) {
        LinearPart& p = *s.parts[i];
        GridWeights w;
        w.w = part_source(p, m.dev), w.q = p.work, w.grid = p.grid, w.first = s.first.data + (p.grid - m.grids.data);
        w.shape = quantized_tensor_groups(p), w.spec = p.quantizer.spec;
        GridHistory h;
        if (s.has_history()) h = {s.codes.data + weight, s.directions.data + weight, s.values.data + weight};
        use(i, p, w, h);
        weight += p.count();
    }
}

// The weights, their grids and codes are those that training begins with
inline void quant_statistics_start(QuantStatistics& s, Model& m) {
    if (!s.on()) return;
    copy_on_device(s.first.data, m.grids.data, s.first.bytes(), m.dev);
    if (!s.has_history()) return;
    quant_statistics_each(s, m, [&](size_t, LinearPart& p, const GridWeights& w, const GridHistory& h) {
        copy_on_device(h.code, p.codes, (size_t)p.count(), m.dev);
        copy_on_device(h.value, w.w, (size_t)p.count() * sizeof(float), m.dev);
    });
}

// After each update: new codes have been made of the weights
inline void quant_statistics_update(QuantStatistics& s, Model& m, double rate) {
    if (s.on()) s.rate += rate;
    if (!s.has_history()) return;
    quant_statistics_each(s, m, [&](size_t, LinearPart& p, const GridWeights& w, const GridHistory& h) {
        grid_history(nullptr, h, w, p.codes, m.dev);
    });
}

inline std::vector<NamedArray> quant_statistics_arrays(QuantStatistics& s) {
    std::vector<NamedArray> list;
    if (s.first.size) list.push_back({"grids_at_start", "F32", (int64_t)s.first.size, 2, s.first.data, sizeof(float)});
    add_array(list, "history.codes", s.codes);
    add_array(list, "history.directions", s.directions);
    add_array(list, "history.values", s.values);
    return list;
}
inline nlohmann::ordered_json quant_statistics_save(const QuantStatistics& s) {
    return {{"rate", s.rate}, {"crossed", s.crossed}};
}
// state: trainer_state.json, `where`
inline void quant_statistics_load(QuantStatistics& s, const nlohmann::ordered_json& state, const std::string& where) {
    auto refuse = [&] { fail("%s: no `quant_statistics` of these weights; the file is damaged", where.c_str()); };
    if (!state.contains("quant_statistics") || !state["quant_statistics"].is_object()) refuse();
    const nlohmann::ordered_json& j = state["quant_statistics"];
    if (!j.contains("rate") || !j["rate"].is_number() || !j.contains("crossed") || !j["crossed"].is_array() ||
        j["crossed"].size() != s.crossed.size())
        refuse();
    s.rate = j["rate"];
    for (size_t i = 0; i < s.crossed.size(); i++) {
        if (!j["crossed"][i].is_number()) refuse();
        s.crossed[i] = j["crossed"][i];
    }
}

// Of each part, for a line that is logged now. rate: of an update; updates: of a step
inline std::vector<GridReport> quant_statistics_measure(QuantStatistics& s, Model& m, const OptimizerConfig& o,
                                                        double rate, int updates) {
    auto of = [&](size_t i, double x) { return optimizer_rate(o, s.group[i], x); };
    set_zero(s.sums.data, s.sums.bytes(), m.dev);
    quant_statistics_each(s, m, [&](size_t i, LinearPart& p, const GridWeights& w, const GridHistory& h) {
        grid_statistics(s.sums.data + i, w, {of(i, rate), of(i, DEADZONE_UPDATES * rate)}, m.dev);
        if (s.has_history()) grid_history(s.sums.data + i, h, w, p.codes, m.dev);
    });
    std::vector<GridSums> sums(s.parts.size());
    copy_to_host(sums.data(), s.sums.data, s.sums.bytes(), m.dev);
    std::vector<GridReport> reports(s.parts.size());
    for (size_t i = 0; i < reports.size(); i++) {
        GridReport& r = reports[i];
        r.sums = sums[i], r.weights = (double)s.parts[i]->count();
        r.rate_cells = updates * (double)of(i, rate) * r.sums.inverse;
        if (r.sums.cells > 0.0) s.crossed[i] += (double)of(i, s.rate) * r.sums.inverse / r.sums.cells;
        r.crossed = s.crossed[i] * r.sums.cells;
    }
    s.rate = 0.0;
    return reports;
}

inline GridReport grid_reports_total(const std::vector<GridReport>& reports) {
    GridReport all;
    for (const GridReport& r : reports) {
        grid_sums_join(all.sums, r.sums);
        all.weights += r.weights, all.rate_cells += r.rate_cells, all.crossed += r.crossed;
    }
    return all;
}

typedef std::vector<std::pair<const char*, double>> GridNumbers;

// under their names, the same of every report of a run
inline GridNumbers grid_report_numbers(const GridReport& r, const QuantStatistics& s) {
    const GridSums& g = r.sums;
    auto share = [](double part, double whole) { return whole > 0.0 ? part / whole : 0.0; };
    GridNumbers n;
    if (!s.adapter && !s.drawn)
        n = {{"deadzone_share", share(g.beyond_steps, g.cells)},
             {"deadzone_share_step", share(g.beyond_step, g.cells)}};
    if (!s.adapter) {
        n.push_back({"learning_rate_in_cells", share(r.rate_cells, g.cells)});
        n.push_back({"learning_rate_in_cells_total", share(r.crossed, g.cells)});
    }
    n.push_back({"scale_bias", g.squares > 0.0 ? g.products / g.squares - 1.0 : 0.0});
    n.push_back({"deadzone_truncation", std::sqrt(share(g.zeroed, g.squares))});
    n.push_back({"grid_noise", std::sqrt(share(g.errors, g.squares))});
    n.push_back({"grid_noise_in_cells", std::sqrt(share(g.cell_errors, g.cells))});
    n.push_back({"scale_drift", share(g.scales, r.weights)});
    if (!s.has_history()) return n;
    n.push_back({"master_drift", share(g.drift, g.cells)});
    n.push_back({"master_drift_max", g.largest_drift});
    n.push_back({"oscillating_share", share(g.turned, r.weights)});
    return n;
}

// A line of quant_statistics.jsonl: the names once, then each tensor's numbers to 6 digits
inline nlohmann::ordered_json quant_statistics_line(const QuantStatistics& s, const std::vector<GridReport>& reports,
                                                    int64_t step) {
    nlohmann::ordered_json j;
    j["step"] = step;
    for (const auto& [name, value] : grid_report_numbers(reports[0], s)) j["columns"].push_back(name), (void)value;
    for (size_t i = 0; i < reports.size(); i++) {
        nlohmann::ordered_json& row = j[s.parts[i]->name];
        for (const auto& [name, value] : grid_report_numbers(reports[i], s))
            row.push_back(std::strtod(format("%.6g", value).c_str(), nullptr)), (void)name;
    }
    return j;
}
