// Claims, decided by what a study found, by rules that its file says before anything has run (docs/study.md).
// Most are about a contrast (study_results.h), in the mean over the points of the grid where both sides are. Every rule gives
// two chances of what was found or more: p_for, were the claim just not true, and p_against, were it just true. The p of the
// claim is twice the smaller one, corrected for all claims of the study (Holm); below 0.05 the claim is supported or
// contradicted, by which of the two it was.
// The traps: what is not decided is not contradicted. A claim of equality needs a test of equality, or few seeds prove it.
// Where all differences are alike Student's t is sure of anything: two empty models are equal only as far as they were asked.
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
    double p = NAN, p_holm = NAN;       // NAN: nothing was found that has one
    int seeds = 0;
    double deviation = NAN;                  // between seeds, of the difference
    double problems_error = NAN;             // what the choice of problems adds to its error, however many the seeds
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

// one-sided: of a mean that is at most `bound`; error > 0
inline double above_p(const Estimate& e, double bound) { return student_cdf(-(e.value - bound) / e.error, e.df); }
inline double below_p(const Estimate& e, double bound) { return student_cdf((e.value - bound) / e.error, e.df); }

// Of a contrast whose differences are all alike, of which an error of 0 would be sure: at least the error that one problem
// more, with a difference of one, would have given
inline Estimate claim_estimate(const Runs& values) {
    Estimate e = paired_estimate(values);
    if (e.error == 0.0)
        e.error = 1.0 / (double)(values[0].size() + 1), e.df = std::max((double)values.size() - 1.0, 1.0);
    return e;
}

inline double seeds_deviation(const Runs& d) {
    std::vector<double> means;
    for (const auto& seed : d) means.push_back(mean_of(seed));
    return means.size() < 2 ? NAN : std::sqrt(variance_of(means));
}

// sqrt of s^2 of the problems' own part over their number: s^2(D_p), less what the residuals of S seeds put into it
inline double problems_error(const Runs& d) {
    const double own = variance_of(over_seeds(d)) - residual_variance(d) / (double)d.size();
    return d.size() < 2 ? NAN : std::sqrt(std::max(own, 0.0) / (double)d[0].size());
}

inline std::string points_text(double share) { return format("%+.1f", 100.0 * share); }
inline std::string points_text(const Confidence& c) { return points_text(c.low) + " to " + points_text(c.high); }

// Before Holm. After it: claim_decide
struct ClaimEvidence {
    ClaimResult result;
    double p_for = NAN, p_against = NAN;  // one-sided
    bool large = true;                    // the claimed size is reached
    std::string if_small;                 // said where it is not
};

// of a mean that is claimed to be above 0
inline void claim_above(ClaimEvidence& c, const Estimate& e) {
    c.p_for = above_p(e, 0.0), c.p_against = below_p(e, 0.0);
}

// what differences vary by, and what is found of them; false: there are none
inline bool claim_values(const StudyEvidence& e, const StudyContrast& d, ClaimResult& r, Runs* values) {
    const std::vector<size_t> seeds = e.seeds_of(d);
    if (d.empty() || seeds.empty()) return false;
    *values = e.values(d, seeds);
    if ((*values)[0].empty()) return false;
    r.seeds = (int)seeds.size();
    r.deviation = seeds_deviation(*values);
    r.problems_error = problems_error(*values);
    return true;
}

inline ClaimEvidence claim_difference(const StudyEvidence& e, const StudyClaim& claim) {
    ClaimEvidence c;
    c.result.cells = claim_pairs(e.layout, claim, claim.pairs[0]);
    StudyContrast d;
    for (const auto& [a, b] : c.result.cells) {
        const double w = 1.0 / (double)c.result.cells.size();
        d = study_sum(d, {{a, w}, {b, -w}}, 1.0);
    }
    Runs values;
    if (!claim_values(e, d, c.result, &values)) return c;
    const Estimate found = claim_estimate(values);
    c.result.figure = points_text(found.value), c.result.interval = points_text(found.interval());
    const double bound = claim.bound / 100.0;
    if (claim.rule == "more") {
        claim_above(c, found);
        c.large = found.value >= bound;
        c.if_small = format("better, but by less than %g points", claim.bound);
    } else if (claim.rule == "equal") {  // Schuirmann's two tests; against it: outside, on either side
        c.p_for = found.equality_p(bound);
        c.p_against = std::min(1.0, 2.0 * std::min(above_p(found, bound), below_p(found, -bound)));
    } else {
        c.p_for = above_p(found, -bound), c.p_against = below_p(found, -bound);
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
    Runs values;
    if (!claim_values(e, d, c.result, &values)) return c;
    const StudyShare share = study_share(e, cells);
    if (std::isnan(share.value)) {
        c.result.why = "full precision gained less than a point";
        return c;
    }
    claim_above(c, claim_estimate(values));
    if (claim.rule == "kept_below") std::swap(c.p_for, c.p_against);
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

// Steps are whole: where seeds agree, each of the two is known no better than evenly within one (1/12 each).
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
    c.result.figure = format("step %.1f, the other %.1f", mean_of(firsts), mean_of(seconds));
    if (means.size() < 2) return c;
    const double whole = 1.0 / (6.0 * (double)c.result.cells.size());
    const Estimate found = {mean_of(means), std::sqrt(std::max(variance_of(means), whole) / (double)means.size()),
                            (double)means.size() - 1.0};
    const Confidence bounds = found.interval();
    c.result.interval = format("%+.1f to %+.1f steps sooner", bounds.low, bounds.high);
    claim_above(c, found);
    return c;
}

// Each pair of neighbours at each point: for the claim speaks the least of all, against it the most, of so many looked at
inline ClaimEvidence claim_order(const StudyEvidence& e, const StudyClaim& claim) {
    ClaimEvidence c;
    ClaimResult& r = c.result;
    int above = 0, below = 0, all = 0, seeds = 0;
    double p_for = 0.0, p_against = 1.0;
    std::string turned;
    for (size_t i = 0; i + 1 < claim.pairs.size(); i++)
        for (const auto& [a, b] : claim_pairs(e.layout, claim, {claim.pairs[i].better, claim.pairs[i + 1].better})) {
            r.cells.push_back({a, b});
            ClaimResult of_pair;
            Runs values;
            if (!claim_values(e, {{a, 1.0}, {b, -1.0}}, of_pair, &values)) return c;
            const Estimate found = claim_estimate(values);
            const Confidence bounds = found.interval();
            seeds = all ? std::min(seeds, of_pair.seeds) : of_pair.seeds;
            all++, above += bounds.low > 0.0, below += bounds.high < 0.0;
            p_for = std::max(p_for, above_p(found, 0.0)), p_against = std::min(p_against, below_p(found, 0.0));
            if (bounds.high < 0.0)
                turned += (turned.empty() ? "" : "; ") + e.layout.cells[b].name + " is above " + e.layout.cells[a].name;
        }
    if (all == 0) return c;
    r.seeds = seeds;
    r.figure = format("%d of %d above, %d below", above, all, below);
    r.why = turned;
    c.p_for = p_for, c.p_against = std::min(1.0, all * p_against);
    return c;
}

// Spearman's: Pearson's of ranks, ties at their mean; NAN: one of them does not vary, or has a NAN
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
    for (const std::vector<double>* list : {&x, &y})
        if (std::any_of(list->begin(), list->end(), [](double v) { return std::isnan(v); })) return NAN;
    const std::vector<double> a = ranks(x), b = ranks(y);
    const double ma = mean_of(a), mb = mean_of(b);
    double ab = 0.0, aa = 0.0, bb = 0.0;
    for (size_t i = 0; i < a.size(); i++)
        ab += (a[i] - ma) * (b[i] - mb), aa += (a[i] - ma) * (a[i] - ma), bb += (b[i] - mb) * (b[i] - mb);
    return aa > 0.0 && bb > 0.0 ? ab / std::sqrt(aa * bb) : NAN;
}

// How y goes with the first of two numbers, against how it goes with the second, over cells: rank correlations of each seed,
// their difference over seeds (Student's t; where seeds agree wholly, a correlation of k cells is known to 1 / sqrt(k - 1)).
// y_of(cell, seed), x_of(cell, which, seed); NAN: not known
template <class Y, class X>
inline ClaimEvidence claim_correlations(const StudyEvidence& e, ClaimEvidence c,
                                        const std::vector<std::vector<int>>& needed, const Y& y_of, const X& x_of,
                                        const char* first, const char* second) {
    ClaimResult& r = c.result;
    StudyContrast all;
    for (const auto& cells : needed)
        for (const int cell : cells) all.push_back({cell, 1.0});
    const std::vector<size_t> seeds = e.seeds_of(all);
    if (seeds.empty() || needed.size() < 4) return c;
    r.seeds = (int)seeds.size();
    std::vector<double> firsts, seconds, differences;
    for (const size_t seed : seeds) {
        std::vector<double> y, x[2];
        for (size_t i = 0; i < needed.size(); i++) {
            y.push_back(y_of(i, seed));
            for (const int k : {0, 1}) x[k].push_back(x_of(i, k, seed));
        }
        const double a = rank_correlation(x[0], y), b = rank_correlation(x[1], y);
        firsts.push_back(a), seconds.push_back(b), differences.push_back(a - b);
        if (!std::isnan(a - b)) continue;
        r.why = format("with seed %llu one of them is not known, or does not vary",
                       (unsigned long long)e.study.seeds[seed]);
        return c;
    }
    r.figure = format("%.2f with %s, %.2f with %s, %zu cells", mean_of(firsts), first, mean_of(seconds), second,
                      needed.size());
    if (seeds.size() < 2) return c;
    const double n = (double)seeds.size(), varies = variance_of(differences);
    const double of_one = varies > 0.0 ? varies : 1.0 / (double)(needed.size() - 1);
    const Estimate found = {mean_of(differences), std::sqrt(of_one / n), n - 1.0};
    const Confidence bounds = found.interval();
    r.interval = format("%+.2f to %+.2f between them", bounds.low, bounds.high);
    claim_above(c, found);
    c.large = mean_of(firsts) > 0.0;
    c.if_small = format("nearer to %s than to %s, but falling with both", first, second);
    return c;
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

inline ClaimEvidence claim_follows_cells(const StudyEvidence& e, const StudyClaim& claim) {
    ClaimEvidence c;
    std::vector<std::vector<int>> needed;
    std::vector<std::vector<double>> after, before, full, x[2];
    for (const StudyPair& pair : claim.pairs)
        for (const int cell : claim_cells(e.layout, claim, pair.better)) {
            const auto [start, end] = study_ends(e, cell);
            if (start < 0 || end < 0) continue;
            c.result.cells.push_back({cell, -1});
            needed.push_back({cell, start, end});
            after.push_back(cell_accuracies(e, cell, false));
            before.push_back(cell_accuracies(e, start, false));
            full.push_back(cell_accuracies(e, end, false));
            for (std::vector<std::vector<double>>& list : x) list.emplace_back();
            for (const StudyOutcome& o : e.results.outcomes[cell])
                x[0].back().push_back(o.crossed), x[1].back().push_back(o.rate);
        }
    auto kept = [&](size_t i, size_t seed) {  // less than a point is no gain to speak of
        const double gain = full[i][seed] - before[i][seed];
        return gain >= 0.01 ? (after[i][seed] - before[i][seed]) / gain : NAN;
    };
    auto of = [&](size_t i, int which, size_t seed) { return x[which][i][seed]; };
    return claim_correlations(e, c, needed, kept, of, "cells crossed", "the rate");
}

inline ClaimEvidence claim_foretold(const StudyEvidence& e, const StudyClaim& claim) {
    ClaimEvidence c;
    std::vector<std::vector<int>> needed;
    std::vector<std::vector<double>> accuracy, x[2];
    for (const StudyPair& pair : claim.pairs)
        for (const auto& [after, before] : claim_pairs(e.layout, claim, pair)) {
            c.result.cells.push_back({after, before});
            needed.push_back({after, before});
            accuracy.push_back(cell_accuracies(e, after, false));
            x[0].push_back(cell_accuracies(e, before, true));
            x[1].push_back(cell_accuracies(e, before, false));
        }
    auto gain = [&](size_t i, size_t seed) { return accuracy[i][seed] - x[1][i][seed]; };
    auto of = [&](size_t i, int which, size_t seed) { return x[which][i][seed]; };
    return claim_correlations(e, c, needed, gain, of, "coverage", "pass@1");
}

// after Holm's correction
inline void claim_decide(ClaimEvidence& c) {
    ClaimResult& r = c.result;
    if (r.seeds == 0) return;
    r.verdict = ClaimVerdict::undecided;
    if (r.seeds < 2 && r.why.empty()) r.why = "one seed";
    if (!(r.p_holm < 0.05)) return;
    if (c.p_against < c.p_for) r.verdict = ClaimVerdict::contradicted;
    else if (c.large) r.verdict = ClaimVerdict::supported;
    else r.why = c.if_small;
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
        if (rule == "order") c = claim_order(e, claim);
        else if (rule == "follows_cells") c = claim_follows_cells(e, claim);
        else if (rule == "foretold_by_coverage") c = claim_foretold(e, claim);
        else if (rule == "sooner") c = claim_sooner(e, claim, curve_of);
        else if (rule.rfind("kept", 0) == 0) c = claim_kept(e, claim);
        else c = claim_difference(e, claim);
        c.result.claim = &claim;
        all.push_back(c);
    }
    std::vector<double> p;
    for (ClaimEvidence& c : all) {
        if (c.result.seeds >= 2 && !std::isnan(c.p_for))
            c.result.p = std::min(1.0, 2.0 * std::min(c.p_for, c.p_against));
        p.push_back(std::isnan(c.result.p) ? 1.0 : c.result.p);  // what was not found counts among the claims
    }
    p = holm(p);
    std::vector<ClaimResult> decided;
    for (size_t i = 0; i < all.size(); i++) {
        if (!std::isnan(all[i].result.p)) all[i].result.p_holm = p[i];
        claim_decide(all[i]);
        decided.push_back(all[i].result);
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

// The least number of seeds that finds a difference with this power. Differences vary by `deviation` between seeds;
// problems_error: what the choice of problems adds to the error of their mean, however many the seeds. 0: no number does
inline int seeds_for(double difference, double deviation, double power, double alpha, double problems_error = 0.0) {
    for (int n = 2; n < 1000; n++) {
        const double of_one = std::sqrt(deviation * deviation + n * problems_error * problems_error);
        if (of_one <= 0.0 || seeds_power(n, difference / of_one, alpha) >= power) return n;
    }
    return 0;
}

// what the differences of a study's claims vary by between seeds, in words; empty: not known
inline std::string study_noise_text(const std::vector<ClaimResult>& claims) {
    std::vector<double> deviations, of_problems;
    for (const ClaimResult& r : claims)
        if (!std::isnan(r.deviation) && r.claim->rule.rfind("kept", 0) != 0)
            deviations.push_back(r.deviation), of_problems.push_back(r.problems_error);
    if (deviations.empty()) return "";
    std::sort(deviations.begin(), deviations.end()), std::sort(of_problems.begin(), of_problems.end());
    const double median = quantile_of(deviations, 0.5), most = deviations.back(), error = quantile_of(of_problems, 0.5);
    const int tests = (int)claims.size();
    auto seeds = [&](double deviation, int of) {
        const int n = seeds_for(0.05, deviation, 0.8, 0.05 / of, error);
        return n ? std::to_string(n) : std::string("no number");
    };
    return format(
        "Between seeds a difference varies by %.1f points (standard deviation, the median of %zu; the largest %.1f), "
        "and "
        "the choice of problems adds %.1f to its error. For 5 points at 80 %% power that asks for %s seeds, corrected "
        "for "
        "%d claims for %s; with the largest for %s and %s.",
        100.0 * median, deviations.size(), 100.0 * most, 100.0 * error, seeds(median, 1).c_str(), tests,
        seeds(median, tests).c_str(), seeds(most, 1).c_str(), seeds(most, tests).c_str());
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
