// Claims, decided by what a study found, by rules that its file says before anything has run (docs/study.md).
// Most are about a contrast (study_results.h), in the mean over the points of the grid where both sides are; decided by its
// 95 % interval and a p that is corrected for all claims of the study (Holm).
// The trap: what is not decided is not contradicted. A claim of equality needs a test of equality, or few seeds prove it.
#pragma once
#include "study_tables.h"

enum class ClaimVerdict { supported, contradicted, undecided, not_run };

inline const char* claim_verdict_name(ClaimVerdict v) {
    const char* names[] = {"supported", "contradicted", "undecided", "not run"};
    return names[(int)v];
}

struct ClaimResult {
    const StudyClaim* claim = nullptr;
    ClaimVerdict verdict = ClaimVerdict::not_run;
    std::string figure, interval, why;  // as they are read
    double p = NAN, p_holm = NAN;       // NAN: the rule has none
    int seeds = 0;
    double deviation = NAN;                  // between seeds, of the difference
    std::vector<std::pair<int, int>> cells;  // that were compared; second -1: none
};

// ---------------------------------------------------------------------------------------------------------------------
// rules

// the cells of a side of a claim: an arm's, as far as `where` has their points, or one by its name
inline std::vector<int> claim_cells(const StudyLayout& layout, const StudyClaim& claim, const std::string& side) {
    std::vector<int> cells;
    for (int i = 0; i < (int)layout.cells.size(); i++) {
        const StudyCell& c = layout.cells[i];
        bool in = c.arm == side;
        for (const auto& [key, values] : claim.where)
            for (const auto& [its, value] : c.point)
                in = in && (its != key || std::find(values.begin(), values.end(), value) != values.end());
        if (in || (c.name == side && c.arm != side)) cells.push_back(i);
    }
    return cells;
}

// pairs of cells at the same point; a cell that is named stands beside every one of the other side
inline std::vector<std::pair<int, int>> claim_pairs(const StudyLayout& layout, const StudyClaim& claim,
                                                    const StudyPair& pair) {
    const std::vector<int> first = claim_cells(layout, claim, pair.better),
                           second = claim_cells(layout, claim, pair.worse);
    std::vector<std::pair<int, int>> pairs;
    for (const int a : first)
        for (const int b : second) {
            bool same = true;
            if (layout.cells[a].arm == pair.better && layout.cells[b].arm == pair.worse)
                for (const auto& [key, value] : layout.cells[a].point)
                    for (const auto& [its, other] : layout.cells[b].point)
                        same = same && (key != its || value == other);
            if (same) pairs.push_back({a, b});
        }
    return pairs;
}

// one-sided: of a mean that is at most `bound`
inline double above_p(const Estimate& e, double bound) {
    if (e.error == 0.0) return e.value > bound ? 0.0 : 1.0;
    return student_cdf(-(e.value - bound) / e.error, e.df);
}

inline double seeds_deviation(const Runs& d) {
    std::vector<double> means;
    for (const auto& seed : d) means.push_back(mean_of(seed));
    return means.size() < 2 ? NAN : std::sqrt(variance_of(means));
}

inline std::string points_text(double share) { return format("%+.1f", 100.0 * share); }
inline std::string points_text(const Confidence& c) { return points_text(c.low) + " to " + points_text(c.high); }

// Before Holm: p, the figure, the interval. After it: claim_decide
struct ClaimEvidence {
    ClaimResult result;
    Estimate estimate;     // of the rule's contrast: claimed to be above 0; of equality, the difference
    Confidence bounds;     // its interval
    bool large = true;     // the claimed size is reached
    std::string if_small;  // said where it is not
};

inline ClaimEvidence claim_difference(const StudyEvidence& e, const StudyClaim& claim) {
    ClaimEvidence c;
    c.result.cells = claim_pairs(e.layout, claim, claim.pairs[0]);
    StudyContrast d;
    for (const auto& [a, b] : c.result.cells) {
        const double w = 1.0 / (double)c.result.cells.size();
        d = study_sum(d, {{a, w}, {b, -w}}, 1.0);
    }
    const std::vector<size_t> seeds = e.seeds_of(d);
    if (d.empty() || seeds.empty()) return c;
    const Runs values = e.values(d, seeds);
    if (values[0].empty()) return c;
    c.result.seeds = (int)seeds.size();
    c.result.deviation = seeds_deviation(values);
    c.estimate = paired_estimate(values);
    c.bounds = c.estimate.interval();
    c.result.figure = points_text(c.estimate.value), c.result.interval = points_text(c.bounds);
    const double bound = claim.bound / 100.0;
    if (claim.rule == "more") {
        c.result.p = c.estimate.p();
        c.large = c.estimate.value >= bound;
        c.if_small = format("better, but by less than %g points", claim.bound);
    } else if (claim.rule == "equal") {
        c.result.p = c.estimate.error > 0.0                ? c.estimate.equality_p(bound)
                     : std::fabs(c.estimate.value) < bound ? 0.0
                                                           : 1.0;
    } else {
        c.result.p = above_p(c.estimate, -bound);
    }
    return c;
}

inline ClaimEvidence claim_kept(const StudyEvidence& e, const StudyClaim& claim) {
    ClaimEvidence c;
    const std::vector<int> cells = claim_cells(e.layout, claim, claim.pairs[0].better);
    StudyContrast d;
    for (const int cell : cells) {
        const auto [start, full] = study_ends(e, cell);
        if (start < 0 || full < 0) return c;
        c.result.cells.push_back({cell, full});
        const double w = 1.0 / (double)cells.size(), x = claim.bound / 100.0;
        d = study_sum(d, {{cell, w}, {start, -w * (1.0 - x)}, {full, -w * x}}, 1.0);
    }
    const std::vector<size_t> seeds = e.seeds_of(d);
    if (d.empty() || seeds.empty()) return c;
    const StudyShare share = study_share(e, cells);
    if (std::isnan(share.value)) {
        c.result.verdict = ClaimVerdict::undecided, c.result.why = "full precision gained less than a point";
        return c;
    }
    const double sign = claim.rule == "kept_below" ? -1.0 : 1.0;
    Runs values = e.values(d, seeds);
    for (auto& seed : values)
        for (double& v : seed) v *= sign;
    c.result.seeds = (int)seeds.size();
    c.result.deviation = seeds_deviation(values);
    c.estimate = paired_estimate(values);
    c.bounds = c.estimate.interval();
    c.result.p = c.estimate.p();
    c.result.figure = percent_text(share.value) + " %";
    c.result.interval = share_text(share.interval.low) + " to " + share_text(share.interval.high);
    return c;
}

// steps and values, each the mean of five around it; steps without one are left out
inline std::vector<std::pair<double, double>> smooth_curve(const ReportSeries& series) {
    std::vector<std::pair<double, double>> raw, smooth;
    for (size_t i = 0; i < series.x.size(); i++)
        if (std::isfinite(series.y[i])) raw.push_back({series.x[i], series.y[i]});
    for (size_t i = 0; i < raw.size(); i++) {
        const size_t first = i >= 2 ? i - 2 : 0, end = std::min(raw.size(), i + 3);
        double sum = 0.0;
        for (size_t k = first; k < end; k++) sum += raw[k].second;
        smooth.push_back({raw[i].first, sum / (double)(end - first)});
    }
    return smooth;
}

// the first step at which a curve is as far as `level` on the way that `up` says; one past its last: it never is
inline double step_of_level(const std::vector<std::pair<double, double>>& curve, double level, bool up) {
    for (const auto& [step, v] : curve)
        if (up ? v >= level : v <= level) return step;
    return curve.back().first + 1.0;
}

// curve_of(cell, seed, key): what the last stage that trains logged under a key
template <class Curve>
inline ClaimEvidence claim_sooner(const StudyEvidence& e, const StudyClaim& claim, const Curve& curve_of) {
    ClaimEvidence c;
    c.result.cells = claim_pairs(e.layout, claim, claim.pairs[0]);
    std::vector<double> means, firsts, seconds;
    for (size_t s = 0; s < e.study.seeds.size(); s++) {
        double sum = 0.0;
        bool all = !c.result.cells.empty();
        for (const auto& [a, b] : c.result.cells) {
            if (!(all = all && e.done(a, s) && e.done(b, s))) break;
            const auto first = smooth_curve(curve_of(a, s, claim.curve)),
                       second = smooth_curve(curve_of(b, s, claim.curve));
            if (!(all = !first.empty() && !second.empty())) break;
            const double from = second.front().second, to = second.back().second;
            const double level = from + claim.bound / 100.0 * (to - from);
            const double of_first = step_of_level(first, level, to > from),
                         of_second = step_of_level(second, level, to > from);
            sum += (of_second - of_first) / (double)c.result.cells.size();
            firsts.push_back(of_first), seconds.push_back(of_second);
        }
        if (all) means.push_back(sum);
    }
    if (means.empty()) return c;
    c.result.seeds = (int)means.size();
    c.estimate.value = mean_of(means);
    c.estimate.error = means.size() > 1 ? std::sqrt(variance_of(means) / (double)means.size()) : INFINITY;
    c.estimate.df = std::max((double)means.size() - 1.0, 1.0);
    c.bounds = means.size() > 1 ? c.estimate.interval() : Confidence{-INFINITY, INFINITY};
    c.result.p = means.size() > 1 ? c.estimate.p() : 1.0;
    c.result.figure = format("step %.1f, the other %.1f", mean_of(firsts), mean_of(seconds));
    c.result.interval = means.size() > 1 ? format("%+.1f to %+.1f steps sooner", c.bounds.low, c.bounds.high) : "";
    return c;
}

// Each pair of neighbours at each point: supported where all intervals are above 0, contradicted where one is below
inline ClaimResult claim_order(const StudyEvidence& e, const StudyClaim& claim) {
    ClaimResult r;
    int above = 0, below = 0, all = 0;
    double p = 0.0;
    std::string turned;
    for (size_t i = 0; i + 1 < claim.pairs.size(); i++)
        for (const auto& [a, b] : claim_pairs(e.layout, claim, {claim.pairs[i].better, claim.pairs[i + 1].better})) {
            const StudyContrast d = {{a, 1.0}, {b, -1.0}};
            const std::vector<size_t> seeds = e.seeds_of(d);
            r.cells.push_back({a, b});
            if (seeds.empty()) return r;
            const Estimate estimate = paired_estimate(e.values(d, seeds));
            const Confidence bounds = estimate.interval();
            r.seeds = (int)seeds.size();
            all++, above += bounds.low > 0.0, below += bounds.high < 0.0;
            p = std::max(p, above_p(estimate, 0.0));
            if (bounds.high < 0.0)
                turned += (turned.empty() ? "" : "; ") + e.layout.cells[b].name + " is above " + e.layout.cells[a].name;
        }
    if (all == 0) return r;
    r.p = p;
    r.figure = format("%d of %d above, %d below", above, all, below);
    r.why = turned;
    r.verdict = below ? ClaimVerdict::contradicted : above == all ? ClaimVerdict::supported : ClaimVerdict::undecided;
    return r;
}

// Spearman's: Pearson's of ranks, ties at their mean; NAN: one of them does not vary
inline double rank_correlation(const std::vector<double>& x, const std::vector<double>& y) {
    auto ranks = [](const std::vector<double>& v) {
        std::vector<double> r(v.size());
        for (size_t i = 0; i < v.size(); i++) {
            double below = 0.0, same = 0.0;
            for (const double other : v) below += other < v[i], same += other == v[i];
            r[i] = below + 0.5 * (same - 1.0);
        }
        return r;
    };
    const std::vector<double> a = ranks(x), b = ranks(y);
    const double ma = mean_of(a), mb = mean_of(b);
    double ab = 0.0, aa = 0.0, bb = 0.0;
    for (size_t i = 0; i < a.size(); i++)
        ab += (a[i] - ma) * (b[i] - mb), aa += (a[i] - ma) * (a[i] - ma), bb += (b[i] - mb) * (b[i] - mb);
    return aa > 0.0 && bb > 0.0 ? ab / std::sqrt(aa * bb) : NAN;
}

// How y goes with the first of two numbers, against how it goes with the second, over cells; seeds drawn anew for the
// interval. y_of(cell, seeds), x_of(cell, which, seeds): means over these seeds
template <class Y, class X>
inline ClaimResult claim_correlations(const StudyEvidence& e, ClaimResult r,
                                      const std::vector<std::vector<int>>& needed, const Y& y_of, const X& x_of,
                                      const char* first, const char* second) {
    StudyContrast all;
    for (const auto& cells : needed)
        for (const int c : cells) all.push_back({c, 1.0});
    const std::vector<size_t> seeds = e.seeds_of(all);
    if (seeds.empty() || needed.size() < 4) return r;
    auto correlations = [&](const std::vector<size_t>& drawn) {
        std::vector<double> y, x[2];
        for (size_t i = 0; i < needed.size(); i++) {
            y.push_back(y_of(i, drawn));
            for (const int k : {0, 1}) x[k].push_back(x_of(i, k, drawn));
        }
        return std::pair(rank_correlation(x[0], y), rank_correlation(x[1], y));
    };
    const auto [a, b] = correlations(seeds);
    r.seeds = (int)seeds.size();
    r.figure = format("%.2f with %s, %.2f with %s, %zu cells", a, first, b, second, needed.size());
    if (std::isnan(a) || std::isnan(b)) {
        r.verdict = ClaimVerdict::undecided, r.why = "one of them does not vary";
        return r;
    }
    std::vector<double> differences;
    for (int i = 0; i < 2000; i++) {
        ResampleDraws draw(RNG_BOOTSTRAP, i, 7);
        std::vector<size_t> drawn;
        for (size_t s = 0; s < seeds.size(); s++) drawn.push_back(seeds[draw.below(seeds.size())]);
        const auto [da, db] = correlations(drawn);
        if (!std::isnan(da) && !std::isnan(db)) differences.push_back(da - db);
    }
    std::sort(differences.begin(), differences.end());
    const Confidence bounds = percentile_interval(differences);
    r.interval = format("%+.2f to %+.2f between them", bounds.low, bounds.high);
    r.verdict = seeds.size() < 2              ? ClaimVerdict::undecided
                : bounds.low > 0.0 && a > 0.0 ? ClaimVerdict::supported
                : bounds.high < 0.0           ? ClaimVerdict::contradicted
                                              : ClaimVerdict::undecided;
    return r;
}

// pass@1 of a cell by seed, or with all its samples pass@K; NAN where it is not done
inline std::vector<double> cell_accuracies(const StudyEvidence& e, int cell, bool all_samples) {
    std::vector<double> list;
    for (size_t s = 0; s < e.study.seeds.size(); s++) {
        const SetResult* set = e.done(cell, s) ? find_set(e.evaluation(cell, s), e.set) : nullptr;
        list.push_back(NAN);
        if (!set || set->empty()) continue;
        double sum = 0.0;
        for (const auto& [name, r] : *set) {
            const Graded& g = e.metric.of(r);
            sum += all_samples ? (double)(g.strict > 0) : (double)g.strict / std::max(g.samples, 1);
        }
        list.back() = sum / (double)set->size();
    }
    return list;
}

inline double mean_at(const std::vector<double>& x, const std::vector<size_t>& seeds) {
    double sum = 0.0;
    for (const size_t s : seeds) sum += x[s];
    return sum / (double)seeds.size();
}

inline ClaimResult claim_follows_cells(const StudyEvidence& e, const StudyClaim& claim) {
    ClaimResult r;
    std::vector<std::vector<int>> needed;
    std::vector<std::vector<double>> after, before, full, x[2];
    for (const StudyPair& pair : claim.pairs)
        for (const int cell : claim_cells(e.layout, claim, pair.better)) {
            const auto [start, end] = study_ends(e, cell);
            if (start < 0 || end < 0) continue;
            r.cells.push_back({cell, -1});
            needed.push_back({cell, start, end});
            after.push_back(cell_accuracies(e, cell, false));
            before.push_back(cell_accuracies(e, start, false));
            full.push_back(cell_accuracies(e, end, false));
            for (std::vector<std::vector<double>>& list : x) list.emplace_back();
            for (const StudyOutcome& o : e.results.outcomes[cell])
                x[0].back().push_back(o.crossed), x[1].back().push_back(o.rate);
        }
    auto kept = [&](size_t i, const std::vector<size_t>& seeds) {
        const double from = mean_at(before[i], seeds);
        return (mean_at(after[i], seeds) - from) / (mean_at(full[i], seeds) - from);
    };
    auto of = [&](size_t i, int which, const std::vector<size_t>& seeds) { return mean_at(x[which][i], seeds); };
    return claim_correlations(e, r, needed, kept, of, "cells crossed", "the rate");
}

inline ClaimResult claim_foretold(const StudyEvidence& e, const StudyClaim& claim) {
    ClaimResult r;
    std::vector<std::vector<int>> needed;
    std::vector<std::vector<double>> accuracy, x[2];
    for (const StudyPair& pair : claim.pairs)
        for (const auto& [after, before] : claim_pairs(e.layout, claim, pair)) {
            r.cells.push_back({after, before});
            needed.push_back({after, before});
            accuracy.push_back(cell_accuracies(e, after, false));
            x[0].push_back(cell_accuracies(e, before, true));
            x[1].push_back(cell_accuracies(e, before, false));
        }
    auto gain = [&](size_t i, const std::vector<size_t>& seeds) {
        return mean_at(accuracy[i], seeds) - mean_at(x[1][i], seeds);
    };
    auto of = [&](size_t i, int which, const std::vector<size_t>& seeds) { return mean_at(x[which][i], seeds); };
    return claim_correlations(e, r, needed, gain, of, "coverage", "pass@1");
}

// after Holm's correction
inline void claim_decide(ClaimEvidence& c) {
    ClaimResult& r = c.result;
    const StudyClaim& claim = *r.claim;
    if (r.seeds == 0) return;
    const bool sure = r.p_holm < 0.05;
    r.verdict = ClaimVerdict::undecided;
    if (claim.rule == "equal" || claim.rule == "not_below") {
        const double margin = claim.bound / 100.0;
        const bool outside = c.bounds.high < -margin || (claim.rule == "equal" && c.bounds.low > margin);
        if (sure) r.verdict = ClaimVerdict::supported;
        else if (outside) r.verdict = ClaimVerdict::contradicted;
        return;
    }
    if (sure && c.bounds.high < 0.0) r.verdict = ClaimVerdict::contradicted;
    if (sure && c.bounds.low > 0.0 && c.large) r.verdict = ClaimVerdict::supported;
    if (sure && c.bounds.low > 0.0 && !c.large) r.why = c.if_small;
}

// curve_of(cell, seed, key): a ReportSeries of its last training stage. In the first set, the study's own difficulty
template <class Curve>
inline std::vector<ClaimResult> study_claims(const StudyResults& results, const Study& study, const StudyLayout& layout,
                                             const Curve& curve_of) {
    std::vector<ClaimEvidence> all;
    if (study.claims.empty()) return {};
    const SetComparison first = results.sets.empty() ? SetComparison() : results.sets[0];
    const StudyEvidence e(results, study, layout, first.set, first.metric);
    for (const StudyClaim& claim : study.claims) {
        ClaimEvidence c;
        const std::string& rule = claim.rule;
        if (rule == "order") c.result = claim_order(e, claim);
        else if (rule == "follows_cells") c.result = claim_follows_cells(e, claim);
        else if (rule == "foretold_by_coverage") c.result = claim_foretold(e, claim);
        else if (rule == "sooner") c = claim_sooner(e, claim, curve_of);
        else if (rule.rfind("kept", 0) == 0) c = claim_kept(e, claim);
        else c = claim_difference(e, claim);
        c.result.claim = &claim;
        all.push_back(c);
    }
    std::vector<double> p;
    for (const ClaimEvidence& c : all)
        if (!std::isnan(c.result.p)) p.push_back(c.result.p);
    p = holm(p);
    size_t at = 0;
    std::vector<ClaimResult> decided;
    for (ClaimEvidence& c : all) {
        if (!std::isnan(c.result.p)) c.result.p_holm = p[at++];
        const std::string& rule = c.result.claim->rule;
        if (rule != "order" && rule != "follows_cells" && rule != "foretold_by_coverage") claim_decide(c);
        decided.push_back(c.result);
    }
    return decided;
}

// ---------------------------------------------------------------------------------------------------------------------
// the number of seeds

// The chance that a paired two-sided test of n seeds at `alpha` finds a difference of `effect` standard deviations:
// P(T > t) of Student's noncentral t, whose deviation sqrt(V / df) is integrated over (Simpson)
inline double seeds_power(int n, double effect, double alpha) {
    const double df = n - 1.0, critical = student_quantile(1.0 - 0.5 * alpha, df),
                 shift = effect * std::sqrt((double)n);
    const int steps = 2000;
    const double most = 6.0, h = most / steps;  // of s = sqrt(V / df)
    const double log_norm = std::log(2.0) + 0.5 * df * std::log(0.5 * df) - std::lgamma(0.5 * df);
    double sum = 0.0;
    for (int i = 1; i <= steps; i++) {
        const double s = h * i, density = std::exp(log_norm + (df - 1.0) * std::log(s) - 0.5 * df * s * s);
        sum += (i == steps ? 1.0 : i % 2 ? 4.0 : 2.0) * density * normal_cdf(shift - critical * s);
    }
    return sum * h / 3.0;
}

// the least number of seeds that finds a difference with this power; differences vary by `deviation` between seeds
inline int seeds_for(double difference, double deviation, double power, double alpha) {
    for (int n = 2; n < 1000; n++)
        if (deviation <= 0.0 || seeds_power(n, difference / deviation, alpha) >= power) return n;
    return 1000;
}

// what the differences of a study's claims vary by between seeds, in words; empty: not known
inline std::string study_noise_text(const std::vector<ClaimResult>& claims) {
    std::vector<double> deviations;
    for (const ClaimResult& r : claims)
        if (!std::isnan(r.deviation) && r.claim->rule.rfind("kept", 0) != 0) deviations.push_back(r.deviation);
    if (deviations.empty()) return "";
    std::sort(deviations.begin(), deviations.end());
    const double median = quantile_of(deviations, 0.5), most = deviations.back();
    const int tests = (int)claims.size();
    return format(
        "Between seeds a difference varies by %.1f points (standard deviation, the median of %zu; the largest %.1f). "
        "For 5 points "
        "at 80 %% power that asks for %d seeds, corrected for %d claims for %d; with the largest for %d and %d.",
        100.0 * median, deviations.size(), 100.0 * most, seeds_for(0.05, median, 0.8, 0.05), tests,
        seeds_for(0.05, median, 0.8, 0.05 / tests), seeds_for(0.05, most, 0.8, 0.05),
        seeds_for(0.05, most, 0.8, 0.05 / tests));
}

// ---------------------------------------------------------------------------------------------------------------------
// as a table

// what was compared: "fp>rtn - qat, int4:g32:asym and 2 more"
inline std::string claim_contrast_text(const StudyClaim& claim) {
    std::vector<std::string> parts;
    for (const StudyPair& pair : claim.pairs)
        parts.push_back(pair.worse.empty() ? pair.better : pair.better + " - " + pair.worse);
    std::string text = claim.rule == "order" ? join_words(parts, " > ") : join_words(parts, "; ");
    if (claim.rule == "equal") text += format(", within %g", claim.bound);
    if (claim.rule == "not_below") text += format(", not below by %g", claim.bound);
    if (claim.rule == "more" && claim.bound != 1.0) text += format(", at least %g", claim.bound);
    if (claim.rule == "kept_at_least") text += format(" keeps %g %%", claim.bound);
    if (claim.rule == "kept_below") text += format(" keeps less than %g %%", claim.bound);
    if (claim.rule == "sooner") text += format(", %s by %g %%", claim.curve.c_str(), claim.bound);
    for (const auto& [key, values] : claim.where) text += "; " + join_words(values);
    return text;
}

inline StudyTable study_claims_table(const std::vector<ClaimResult>& claims) {
    StudyTable rows = {{"claim", "verdict", "says", "found", "95 %", "Holm's p", "seeds", "decided by", "from"}};
    for (const ClaimResult& r : claims)
        rows.push_back({r.claim->id, claim_verdict_name(r.verdict) + (r.why.empty() ? std::string() : ": " + r.why),
                        r.claim->text, r.figure, r.interval, std::isnan(r.p_holm) ? "-" : p_text(r.p_holm),
                        std::to_string(r.seeds), claim_contrast_text(*r.claim), r.claim->from});
    return rows;
}

// a line of claims.jsonl
inline StudyJson claim_row(const ClaimResult& r, const StudyLayout& layout) {
    StudyJson cells = StudyJson::array();
    for (const auto& [a, b] : r.cells)
        cells.push_back(layout.cells[a].name + (b < 0 ? "" : " - " + layout.cells[b].name));
    return {{"claim", r.claim->id},
            {"from", r.claim->from},
            {"says", r.claim->text},
            {"rule", r.claim->rule},
            {"by", claim_contrast_text(*r.claim)},
            {"cells", cells},
            {"found", r.figure},
            {"interval", r.interval},
            {"p", r.p},
            {"p_holm", r.p_holm},
            {"seeds", r.seeds},
            {"deviation", r.deviation},
            {"verdict", claim_verdict_name(r.verdict)},
            {"why", r.why}};
}

// for a terminal: a line for each claim
inline std::string study_verdicts(const std::vector<ClaimResult>& claims) {
    std::string text;
    for (const ClaimResult& r : claims) {
        std::string found = r.figure;
        if (!r.interval.empty()) found += " (" + r.interval + ")";
        text += format("%-5s %-12s %s\n      %s%s%s\n", r.claim->id.c_str(), claim_verdict_name(r.verdict),
                       r.claim->text.c_str(), claim_contrast_text(*r.claim).c_str(), found.empty() ? "" : ": ",
                       found.c_str());
    }
    if (const std::string noise = study_noise_text(claims); !noise.empty()) text += "\n" + noise + "\n";
    return text;
}

// table.md
inline std::string study_table(const StudyResults& r, const Study& study, const StudyLayout& layout,
                               const std::vector<ClaimResult>& claims) {
    std::string text = "# " + study_heading(study) + "\n\n";
    if (!study.about.empty()) text += study.about + "\n\n";
    if (!claims.empty()) {
        text += "## Claims\n\n" + md_table(study_claims_table(claims)) + "\n";
        if (const std::string noise = study_noise_text(claims); !noise.empty()) text += noise + "\n\n";
    }
    for (const SetComparison& set : r.sets) {
        text += "## " + set.set + "\n\n" + md_table(study_set_table(r, study, layout, set)) + "\n";
        if (!set.pairs.empty()) text += md_table(study_pairs_table(r, set)) + "\n";
    }
    if (r.sets.empty()) text += "No arm has ended with an evaluation.\n\n";
    return text + study_note(r, study) + "\n";
}
