// What a study found: of each cell and seed the numbers of its runs, of each cell what of the gain it kept, and the pairs
// that the study asks for, tested and corrected for their number (Holm).
//   contrast   of a seed and a problem: a sum of cells' accuracies, such as better - worse. Cells with the same seed began
//              alike, so that seeds are paired
//   estimate   its mean, with Student's t over seeds and problems (statistics.h; a hierarchical bootstrap is too narrow with
//              few seeds, docs/evaluation.md)
//   share      of the gain, (arm - start) / (full - start): at least x where arm - start - x (full - start) is above 0, which
//              is a contrast; its interval is Fieller's (1954), all x that this test does not reject
#pragma once
#include "comparison.h"
#include "report_run.h"
#include "study.h"

// one cell with one seed
struct StudyOutcome {
    std::string state;                             // done, or why it is not
    nlohmann::json summary;                        // of its evaluation
    double tokens = 0.0;                           // that training stages ran forward and backward
    double seconds = 0.0, peak = 0.0;              // of all its stages
    double flips = NAN;                            // share of codes that differ from the start of the last stage
    double bits = NAN, bytes = NAN;                // a weight; of the model as it is deployed
    double drift = NAN;                            // KL of a token from `full`, on what that answers
    double reward = NAN, entropy = NAN, kl = NAN;  // at the end of the last stage that has them
    double deadzone = NAN, mismatch = NAN;         // the same
    double rate = NAN, crossed = NAN;  // learning rate of the last stage that trains; in cells, of all steps
};

struct StudyResults {
    std::vector<std::vector<StudyOutcome>> outcomes;  // [cells][seeds of the cell]
    std::vector<Arm> arms;    // [cells], of the seeds that are done; those without any are left out
    std::vector<int> arm_of;  // [cells]; -1: none is done
    std::vector<SetComparison> sets;
};

// What runs logged, by folder: cells share stages, and claims and the page ask again, so that each is read once
class StudyHistories {
    std::map<std::string, ReportRun> runs;

public:
    const ReportRun& of(const std::string& folder) {
        const auto [at, fresh] = runs.try_emplace(folder);
        if (fresh) at->second.path = folder, report_read(at->second);
        return at->second;
    }
};

// of a number that a run logged: its mean over the last fifth of the steps, and at the last; NAN: it is not there
inline double study_last_fifth(const ReportRun& run, const char* key) {
    const auto steps = run.numbers.find("step"), at = run.numbers.find(key);
    if (steps == run.numbers.end() || at == run.numbers.end()) return NAN;
    const size_t n = steps->second.x.size();
    const double from = steps->second.x[n - (n + 4) / 5];
    double sum = 0.0;
    size_t counted = 0;
    for (size_t i = 0; i < at->second.x.size(); i++)
        if (at->second.x[i] >= from && std::isfinite(at->second.y[i])) sum += at->second.y[i], counted++;
    return counted ? sum / (double)counted : NAN;
}
inline double study_last(const ReportRun& run, const char* key) {
    const auto at = run.numbers.find(key);
    return at == run.numbers.end() || at->second.x.back() != run.last_step() ? NAN : at->second.y.back();
}

template <class Json>
inline double study_number(const Json& j, const char* key) {
    return j.contains(key) && j[key].is_number() ? j[key].template get<double>() : NAN;
}

// summary_of(run): null where it has not ended; history_of(run): a ReportRun, without numbers where none are logged
template <class Summary, class History>
inline StudyOutcome study_outcome(const StudyLayout& layout, const StudyCell& cell, size_t seed,
                                  const Summary& summary_of, const History& history_of) {
    StudyOutcome o;
    for (const int i : cell.chains[seed]) {
        const StudyRun& run = layout.runs[i];
        const nlohmann::json j = summary_of(run);
        if (j.is_null()) continue;
        auto plus = [&](double& sum, const char* key) { sum += j.contains(key) ? study_number(j, key) : 0.0; };
        plus(o.tokens, "tokens_trained"), plus(o.seconds, "wall_seconds");
        o.peak = std::max(o.peak, j.contains("peak_rss_bytes") ? study_number(j, "peak_rss_bytes") : 0.0);
        o.flips = study_number(j, "code_flip_total");
        const ReportRun& history = history_of(run);
        for (const auto& [to, key] : {std::pair(&o.reward, "reward"),
                                      {&o.entropy, "entropy"},
                                      {&o.kl, "kd/divergence"},
                                      {&o.deadzone, "quant/deadzone_share"},
                                      {&o.mismatch, "sampling/sampling_logp_difference/mean"}})
            if (const double x = study_last_fifth(history, key); !std::isnan(x)) *to = x;
        if (!(IN_TRAIN >> run.command & 1) || history.numbers.empty()) continue;
        if (const StudyJson rate = run.flags.value("learning_rate", StudyJson()); rate.is_string())
            o.rate = strtod(rate.get<std::string>().c_str(), nullptr);  // of the grid
        else if (rate.is_number()) o.rate = rate.get<double>();
        o.crossed = study_last(history, "quant/learning_rate_in_cells_total");
    }
    if (cell.evaluations[seed] >= 0) o.summary = summary_of(layout.runs[cell.evaluations[seed]]);
    if (!o.summary.is_null()) {
        o.state = "done", o.bits = study_number(o.summary, "bits_per_weight");
        o.bytes = study_number(o.summary, "deployed_bytes");
    }
    if (cell.drifts[seed] >= 0)
        if (const nlohmann::json j = summary_of(layout.runs[cell.drifts[seed]]); j.contains("completions"))
            o.drift = study_number(j["completions"], "kl");
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

// ---------------------------------------------------------------------------------------------------------------------
// contrasts

// Of a contrast, by seed and problem. Unlike seeds_estimate, of which this is the value and the error, never with more degrees
// of freedom than seeds - 1: where two seeds happen to agree, what seeds vary by is estimated as nothing, and an interval over
// problems alone would be sure of what other seeds may not do. One seed: over problems, for this seed.
inline Estimate paired_estimate(const Runs& d) {
    Estimate e = seeds_estimate({}, d);
    if (d.size() > 1) e.df = std::min(e.df, (double)d.size() - 1.0);
    return e;
}

struct StudyTerm {
    int cell;
    double weight;
};
typedef std::vector<StudyTerm> StudyContrast;

// What cells answered of one set
struct StudyEvidence {
    const StudyResults& results;
    const Study& study;
    const StudyLayout& layout;
    std::string set;
    Metric metric;
    std::vector<std::vector<std::vector<double>>> accuracies;  // [cells][seeds][problems of all]; NAN: not asked

    StudyEvidence(const StudyResults& r, const Study& s, const StudyLayout& l, const std::string& of, const Metric& m)
        : results(r), study(s), layout(l), set(of), metric(m), accuracies(l.cells.size()) {
        std::map<std::string, size_t> places;
        for (const Arm& arm : r.arms)
            for (const Evaluation& run : arm.runs)
                if (const SetResult* answers = find_set(run, of))
                    for (const auto& problem : *answers) places.emplace(problem.first, places.size());
        for (size_t c = 0; c < l.cells.size(); c++)
            for (size_t seed = 0; seed < s.seeds.size(); seed++) {
                accuracies[c].emplace_back(places.size(), NAN);
                const SetResult* answers = done((int)c, seed) ? find_set(evaluation((int)c, seed), of) : nullptr;
                if (!answers) continue;
                for (const auto& [problem, answer] : *answers)
                    if (m.covers(answer)) accuracies[c][seed][places[problem]] = m.value(answer);
            }
    }

    bool done(int cell, size_t seed) const {
        return seed < results.outcomes[cell].size() && results.outcomes[cell][seed].state == "done";
    }
    // the evaluation of a cell with a seed; the arm has those that are done, in order
    const Evaluation& evaluation(int cell, size_t seed) const {
        size_t at = 0;
        for (size_t s = 0; s < seed; s++) at += done(cell, s);
        return results.arms[results.arm_of[cell]].runs[at];
    }
    // seeds with which all of these cells are done
    std::vector<size_t> seeds_of(const StudyContrast& terms) const {
        std::vector<size_t> list;
        for (size_t s = 0; s < study.seeds.size(); s++)
            if (std::all_of(terms.begin(), terms.end(), [&](const StudyTerm& t) { return done(t.cell, s); }))
                list.push_back(s);
        return list;
    }

    // [seeds][problems that all of them have]
    Runs values(const StudyContrast& terms, const std::vector<size_t>& seeds) const {
        Runs sum(seeds.size());
        for (size_t p = 0; p < (accuracies.empty() || accuracies[0].empty() ? 0 : accuracies[0][0].size()); p++) {
            std::vector<double> of(seeds.size(), 0.0);
            for (size_t s = 0; s < seeds.size(); s++)
                for (const StudyTerm& t : terms) of[s] += t.weight * accuracies[t.cell][seeds[s]][p];
            if (std::any_of(of.begin(), of.end(), [](double v) { return std::isnan(v); })) continue;
            for (size_t s = 0; s < seeds.size(); s++) sum[s].push_back(of[s]);
        }
        return sum;
    }
};

inline StudyContrast study_sum(StudyContrast a, const StudyContrast& b, double weight) {
    for (const StudyTerm& t : b) a.push_back({t.cell, weight * t.weight});
    StudyContrast sum;
    for (const StudyTerm& t : a) {
        auto at = std::find_if(sum.begin(), sum.end(), [&](const StudyTerm& s) { return s.cell == t.cell; });
        if (at == sum.end()) sum.push_back(t);
        else at->weight += t.weight;
    }
    return sum;
}

// ---------------------------------------------------------------------------------------------------------------------
// pairs

// All cells of a seed began alike, which compare_set cannot know: with several seeds a pair's difference is that of each seed
// with which both are done; a pair without such a seed is left out
inline void study_pair_seeds(const StudyResults& r, const Study& study, const StudyLayout& layout, SetComparison& set) {
    const StudyEvidence e(r, study, layout, set.set, set.metric);
    auto cell_of = [&](size_t arm) {
        return (int)(std::find(r.arm_of.begin(), r.arm_of.end(), (int)arm) - r.arm_of.begin());
    };
    std::vector<PairResult> kept;
    for (PairResult& pair : set.pairs) {
        const StudyContrast d = {{cell_of(pair.b), 1.0}, {cell_of(pair.a), -1.0}};
        const std::vector<size_t> seeds = e.seeds_of(d);
        if (seeds.empty()) continue;
        kept.push_back(pair);
        if (r.arms[pair.a].runs.size() == 1 && r.arms[pair.b].runs.size() == 1) continue;  // exact, over problems
        const Runs values = e.values(d, seeds);
        PairResult& its = kept.back();
        its.estimate = paired_estimate(values);
        its.interval = its.estimate.interval(), its.p = its.estimate.p();
        its.test = seeds.size() > 1 ? "Student's t over seeds and problems, paired" : "Student's t over problems";
        its.wins = its.losses = its.ties = 0;
        for (const double x : over_seeds(values)) (x > 1e-9 ? its.wins : x < -1e-9 ? its.losses : its.ties)++;
    }
    set.pairs = kept;
}

// The sets that were asked, first those of the study's `evaluation` in its order, then those of arms with one of their own
inline std::vector<std::string> study_set_names(const StudyResults& r, const Study& study, const StudyLayout& layout) {
    std::vector<std::string> names;
    for (const bool own : {false, true})
        for (size_t c = 0; c < layout.cells.size(); c++) {
            if (r.arm_of[c] < 0 || study.arm(layout.cells[c].arm).evaluation.empty() == own) continue;
            for (const std::string& set : r.arms[r.arm_of[c]].runs[0].order)
                if (std::find(names.begin(), names.end(), set) == names.end()) names.push_back(set);
        }
    return names;
}

// folder_of_evaluation(cell, seed): where it has ended, else empty
template <class Folder>
inline void study_compare(StudyResults& r, const Study& study, const StudyLayout& layout,
                          const Folder& folder_of_evaluation) {
    for (size_t c = 0; c < layout.cells.size(); c++) {
        Arm arm;
        arm.name = layout.cells[c].name;
        for (size_t s = 0; s < r.outcomes[c].size(); s++)
            if (r.outcomes[c][s].state == "done") arm.runs.emplace_back().path = folder_of_evaluation(c, s);
        r.arm_of.push_back(arm.runs.empty() ? -1 : (int)r.arms.size());
        if (!arm.runs.empty()) r.arms.push_back(std::move(arm));
    }
    load_runs(r.arms);
    CompareConfig config;
    for (const StudyPair& pair : study.pairs)
        for (size_t c = 0; c < layout.cells.size(); c++) {
            if (layout.cells[c].arm != pair.worse || r.arm_of[c] < 0) continue;
            for (const int better : study_cells_beside(layout, layout.cells[c], pair.better))
                if (r.arm_of[better] >= 0) config.pairs.push_back({(size_t)r.arm_of[c], (size_t)r.arm_of[better]});
        }
    const bool no_pairs = config.pairs.empty();
    if (no_pairs && !r.arms.empty()) config.pairs.push_back({0, 0});  // of no meaning: it is taken out again
    for (const std::string& set : study_set_names(r, study, layout)) {
        r.sets.push_back(compare_set(r.arms, set, config));
        if (no_pairs) r.sets.back().pairs.clear();
        study_pair_seeds(r, study, layout, r.sets.back());
    }
    adjust_pairs(r.sets);
}

// start and full beside a cell; -1: none, or several, at points of the grid that the cell is not of
inline std::pair<int, int> study_ends(const StudyEvidence& e, int cell) {
    const std::vector<int> start = study_cells_beside(e.layout, e.layout.cells[cell], e.study.start),
                           full = study_cells_beside(e.layout, e.layout.cells[cell], e.study.full);
    return {start.size() == 1 ? start[0] : -1, full.size() == 1 ? full[0] : -1};
}

// ---------------------------------------------------------------------------------------------------------------------
// the share of the gain

struct StudyShare {
    double value = NAN;
    Confidence interval = {NAN, NAN};  // infinite where the gain itself may be none
    int seeds = 0;
};

// The mean share of several cells
inline StudyShare study_share(const StudyEvidence& e, const std::vector<int>& cells) {
    StudyShare share;
    StudyContrast kept, gain;
    for (const int c : cells) {
        const auto [start, full] = study_ends(e, c);
        if (start < 0 || full < 0) return share;
        const double w = 1.0 / (double)cells.size();
        kept = study_sum(kept, {{c, w}, {start, -w}}, 1.0);
        gain = study_sum(gain, {{full, w}, {start, -w}}, 1.0);
    }
    if (cells.empty()) return share;
    const std::vector<size_t> seeds = e.seeds_of(study_sum(kept, gain, 1.0));
    if (seeds.empty()) return share;
    // both over the same problems
    const StudyContrast all = study_sum(kept, gain, 0.0);
    Runs of_kept = e.values(all, seeds), of_gain = e.values(study_sum(gain, kept, 0.0), seeds);
    const double g = mean_of(over_seeds(of_gain));
    share.seeds = (int)seeds.size();
    if (!(g >= 0.01)) return share;  // less than a point is no gain to speak of
    share.value = mean_of(over_seeds(of_kept)) / g;
    auto rejected = [&](double x) {
        Runs d = of_kept;
        for (size_t s = 0; s < d.size(); s++)
            for (size_t p = 0; p < d[s].size(); p++) d[s][p] -= x * of_gain[s][p];
        const Confidence c = paired_estimate(d).interval();
        return c.low > 0.0 || c.high < 0.0;
    };
    // outwards until it is rejected, and then between; beyond 300 % the gain itself is hardly there
    auto end = [&](double sign) {
        double inside = share.value, outside = inside;
        while (!rejected(outside)) {
            if (std::fabs(outside - share.value) > 3.0) return sign * INFINITY;
            inside = outside, outside += sign * 0.1;
        }
        for (int i = 0; i < 10; i++) {
            const double middle = 0.5 * (inside + outside);
            (rejected(middle) ? outside : inside) = middle;
        }
        return inside;
    };
    share.interval = {end(-1.0), end(1.0)};
    return share;
}

inline std::string share_text(double share) { return std::isinf(share) ? std::string("none") : percent_text(share); }
