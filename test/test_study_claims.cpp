// Claims: each rule on results that are made up, so that what it has to say is known (eval/study_claims.h).
#include <gtest/gtest.h>
#include "../eval/study_claims.h"
#include "../eval/study_pictures.h"

// Accuracies by cell and seed as evaluations of 200 problems with four samples each. The same problems are hard in all cells
struct MadeUp {
    Study study;
    StudyLayout layout;
    StudyResults results;

    static constexpr int problems = 200, samples = 4;

    int add(const std::string& arm, const std::string& bits, const std::vector<double>& accuracies) {
        StudyCell cell;
        cell.arm = cell.name = arm;
        if (!bits.empty()) cell.point.push_back({"bits", bits}), cell.name += " " + bits;
        Arm a;
        std::vector<StudyOutcome> outcomes;
        for (const double accuracy : accuracies) {
            Evaluation e;
            const int right = (int)std::lround(accuracy * problems * samples);
            for (int p = 0; p < problems; p++) {
                ProblemResult r;
                r.gold = std::to_string(p);
                r.sampled.samples = samples;
                // evenly over the problems, the first ones get what is left over
                r.sampled.strict = right / problems + (p < right % problems);
                e.sets["set"][std::to_string(p)] = r;
            }
            a.runs.push_back(e);
            StudyOutcome o;
            o.state = "done";
            outcomes.push_back(o);
            cell.chains.push_back({0});
            cell.evaluations.push_back(0);
        }
        while (study.seeds.size() < accuracies.size()) study.seeds.push_back(study.seeds.size() + 1);
        layout.cells.push_back(cell);
        results.outcomes.push_back(outcomes);
        results.arm_of.push_back((int)results.arms.size());
        results.arms.push_back(a);
        if (results.sets.empty()) {
            results.sets.emplace_back();
            results.sets[0].set = "set", results.sets[0].metric = Metric{true, true, 1};
        }
        return (int)layout.cells.size() - 1;
    }

    void claim(const std::string& rule, const std::vector<StudyPair>& pairs, double bound) {
        StudyClaim c;
        c.id = rule, c.text = rule, c.rule = rule, c.pairs = pairs, c.bound = bound;
        study.claims.push_back(c);
    }

    std::map<std::pair<int, size_t>, std::vector<double>> curves;
    ClaimResult decide(size_t i = 0) const {
        return study_claims(results, study, layout, [&](int cell, size_t seed, const std::string& key) {
            ReportSeries series;
            const auto at = curves.find({cell, seed});
            for (size_t k = 0; key == "divergence" && at != curves.end() && k < at->second.size(); k++)
                series.x.push_back((double)k + 1.0), series.y.push_back(at->second[k]);
            return series;
        })[i];
    }
};

TEST(Study, TheFirstSetIsThatOfTheEvaluation) {
    MadeUp m;
    m.add("own", "", {0.5}), m.add("a", "", {0.5});
    for (Arm& arm : m.results.arms) arm.runs[0].order = {"math-500", "aime24"};
    m.results.arms[0].runs[0].order = {"amc"};
    m.study.arms.resize(2);
    m.study.arms[0].name = "own", m.study.arms[0].evaluation["eval_data"] = "amc";
    m.study.arms[1].name = "a";
    EXPECT_EQ(study_set_names(m.results, m.study, m.layout), (std::vector<std::string>{"math-500", "aime24", "amc"}));
}

static std::string verdict(const MadeUp& m, size_t i = 0) { return claim_verdict_name(m.decide(i).verdict); }

TEST(Claims, MoreIsSupportedContradictedOrUndecided) {
    const std::vector<StudyPair> pair = {{"a", "b"}};
    MadeUp better;
    better.add("a", "", {0.50, 0.52, 0.49, 0.51}), better.add("b", "", {0.40, 0.43, 0.39, 0.40});
    better.claim("more", pair, 1.0);
    const ClaimResult r = better.decide();
    EXPECT_EQ(r.verdict, ClaimVerdict::supported);
    EXPECT_EQ(r.figure, "+10.0");
    EXPECT_EQ(r.seeds, 4);
    EXPECT_NEAR(r.deviation, 0.0082, 1e-4);  // of 0.10, 0.09, 0.10, 0.11
    better.claim("more", {{"b", "a"}}, 1.0);
    EXPECT_EQ(verdict(better, 1), "contradicted");
    better.claim("more", pair, 12.0);
    EXPECT_EQ(verdict(better, 2), "undecided");
    EXPECT_EQ(better.decide(2).why, "better, but by less than 12 points");

    MadeUp noisy;  // seeds differ more than the arms do
    noisy.add("a", "", {0.60, 0.30, 0.55, 0.35}), noisy.add("b", "", {0.35, 0.45, 0.60, 0.30});
    noisy.claim("more", pair, 1.0);
    EXPECT_EQ(verdict(noisy), "undecided");
}

TEST(Claims, SeedsArePaired) {
    // the seeds are far apart, the difference is the same in each
    MadeUp m;
    m.add("a", "", {0.20, 0.40, 0.60, 0.80}), m.add("b", "", {0.17, 0.37, 0.57, 0.77});
    m.claim("more", {{"a", "b"}}, 1.0);
    EXPECT_EQ(verdict(m), "supported");
}

TEST(Pairs, OfAStudyArePairedBySeed) {
    MadeUp m;
    m.add("a", "", {0.30, 0.50, 0.70}), m.add("b", "", {0.25, 0.46, 0.65});
    PairResult pair;
    pair.a = 1, pair.b = 0;  // a - b
    pair.interval = {-1.0, 1.0}, pair.p = 1.0;
    m.results.sets[0].pairs = {pair};
    study_pair_seeds(m.results, m.study, m.layout, m.results.sets[0]);
    const PairResult& found = m.results.sets[0].pairs[0];
    EXPECT_NEAR(found.estimate.value, 0.1400 / 3, 1e-9);
    EXPECT_GT(found.interval.low, 0.0) << "seeds differ by forty points, their differences by one";
    EXPECT_LT(found.p, 0.05);
    // seeds that are not done with both are left out: what is left is 0.30 - 0.25, and not 0.50 - 0.25
    m.results.outcomes[1][1].state = m.results.outcomes[1][2].state = "failed";
    m.results.arms[1].runs.resize(1);
    m.results.sets[0].pairs = {pair};
    study_pair_seeds(m.results, m.study, m.layout, m.results.sets[0]);
    ASSERT_EQ(m.results.sets[0].pairs.size(), 1u);
    EXPECT_NEAR(m.results.sets[0].pairs[0].estimate.value, 0.05, 1e-9);
    EXPECT_EQ(m.results.sets[0].pairs[0].wins + m.results.sets[0].pairs[0].ties, MadeUp::problems);
    m.results.outcomes[0][0].state = "failed";  // and a pair without a seed in common
    m.results.arms[0].runs.erase(m.results.arms[0].runs.begin());
    study_pair_seeds(m.results, m.study, m.layout, m.results.sets[0]);
    EXPECT_TRUE(m.results.sets[0].pairs.empty());
}

TEST(Pictures, StandAboveTheStartBySeed) {
    MadeUp m;
    m.add("start", "", {0.10, 0.30, 0.50}), m.add("a", "int4", {0.20, 0.41, 0.60});
    m.study.start = "start", m.study.grid = {{"bits", {"int4"}}};
    m.study.pictures = {{"p", "p", "bits", {"a", "start"}}};
    for (int c = 0; c < 2; c++) {
        ArmResult a;
        a.problems = MadeUp::problems, a.value = 0.3, a.interval = {0.0, 1.0};
        m.results.sets[0].arms.push_back(a);
        for (StudyOutcome& o : m.results.outcomes[c]) o.bits = 4.5;
    }
    const auto pictures = study_pictures(m.results, m.study, m.layout);
    ASSERT_EQ(pictures.size(), 1u);
    const Plot& p = pictures[0].second;
    ASSERT_EQ(p.series.size(), 2u);
    EXPECT_NEAR(p.series[0].y[0], 31.0 / 3, 1e-9);
    EXPECT_GT(p.series[0].low[0], 5.0) << "by seed; seeds differ by forty points";
    EXPECT_LT(p.series[0].high[0], 16.0);
    EXPECT_EQ(p.series[1].y, (std::vector<double>{0.0, 0.0}));
    EXPECT_NE(p.y.label.find("points above start"), std::string::npos);
    for (StudyOutcome& o : m.results.outcomes[0]) o.state = "failed";
    EXPECT_TRUE(study_pictures(m.results, m.study, m.layout).empty()) << "nothing to stand above";
}

TEST(Claims, EqualityNeedsATestOfIt) {
    MadeUp m;
    auto add = [&](const char* arm, std::vector<double> x) {
        for (const double v : std::vector<double>(x)) x.push_back(v);
        m.add(arm, "", x);
    };
    add("a", {0.50, 0.51, 0.50, 0.49}), add("b", {0.50, 0.50, 0.505, 0.495});
    add("c", {0.45, 0.46, 0.44, 0.45}), add("d", {0.60, 0.40, 0.55, 0.45});
    m.claim("equal", {{"a", "b"}}, 2.0);
    m.claim("equal", {{"a", "c"}}, 2.0);
    m.claim("equal", {{"a", "d"}}, 2.0);
    m.claim("not_below", {{"a", "b"}}, 2.0);
    m.claim("not_below", {{"c", "a"}}, 2.0);
    m.claim("not_below", {{"a", "d"}}, 2.0);
    const char* wanted[] = {"supported", "contradicted", "undecided", "supported", "contradicted", "undecided"};
    for (size_t i = 0; i < 6; i++) EXPECT_EQ(verdict(m, i), wanted[i]) << i;
}

TEST(Claims, WhatIsKeptOfTheGain) {
    MadeUp m;
    m.study.start = "start", m.study.full = "fp";
    m.add("start", "", {0.20, 0.21, 0.19, 0.20}), m.add("fp", "", {0.60, 0.62, 0.59, 0.60});
    const int half = m.add("half", "", {0.40, 0.41, 0.39, 0.41});
    m.add("all", "", {0.60, 0.61, 0.59, 0.61});
    m.claim("kept_at_least", {{"all", ""}}, 90.0);
    m.claim("kept_at_least", {{"half", ""}}, 90.0);
    m.claim("kept_below", {{"half", ""}}, 60.0);
    m.claim("kept_below", {{"all", ""}}, 60.0);
    const char* wanted[] = {"supported", "contradicted", "supported", "contradicted"};
    for (size_t i = 0; i < 4; i++) EXPECT_EQ(verdict(m, i), wanted[i]) << i;
    const StudyEvidence e(m.results, m.study, m.layout, "set", Metric{true, true, 1});
    const StudyShare share = study_share(e, {half});
    EXPECT_NEAR(share.value, 0.2025 / 0.4025, 1e-9);
    EXPECT_LT(share.interval.low, share.value);
    EXPECT_GT(share.interval.high, share.value);
    EXPECT_NEAR(share.interval.high - share.interval.low, 0.06, 0.05);
    for (const int end : {0, 1}) {  // of which every other share is rejected
        const StudyShare of_end = study_share(e, {end});
        EXPECT_NEAR(of_end.value, end, 1e-9);
        EXPECT_NEAR(of_end.interval.low, end, 1e-3);
        EXPECT_NEAR(of_end.interval.high, end, 1e-3);
    }

    MadeUp none;  // nothing was gained
    none.study.start = "start", none.study.full = "fp";
    none.add("start", "", {0.30, 0.30}), none.add("fp", "", {0.305, 0.305}), none.add("a", "", {0.31, 0.29});
    none.claim("kept_at_least", {{"a", ""}}, 90.0);
    EXPECT_EQ(verdict(none), "undecided");
    EXPECT_NE(none.decide().why.find("less than a point"), std::string::npos);
}

TEST(Claims, AMeanOverPointsAndOnlyThoseThatCount) {
    MadeUp m;
    m.study.grid = {{"bits", {"4", "2"}}};
    m.add("a", "4", {0.50, 0.51, 0.49}), m.add("a", "2", {0.50, 0.51, 0.49});
    m.add("b", "4", {0.50, 0.50, 0.50}), m.add("b", "2", {0.30, 0.31, 0.30});
    m.add("plain", "", {0.40, 0.41, 0.39});
    m.claim("more", {{"a", "b"}}, 1.0);
    EXPECT_EQ(m.decide().cells.size(), 2u);  // 4 beside 4, 2 beside 2
    EXPECT_EQ(m.decide().figure, "+9.8");
    m.claim("more", {{"a", "b"}}, 1.0);
    m.study.claims.back().where = {{"bits", {"2"}}};
    EXPECT_EQ(m.decide(1).figure, "+19.7");
    m.claim("more", {{"a 4", "b 2"}}, 1.0);  // cells by their names
    EXPECT_EQ(m.decide(2).figure, "+19.7");
    m.claim("more", {{"a", "plain"}}, 1.0);  // an arm without the key stands beside every point
    EXPECT_EQ(m.decide(3).figure, "+10.0");
    m.claim("more", {{"a 3", "b 2"}}, 1.0);
    EXPECT_EQ(verdict(m, 4), "not run");
}

TEST(Claims, HolmOverAllOfThem) {
    MadeUp m;
    m.add("a", "", {0.50, 0.53, 0.47}), m.add("b", "", {0.44, 0.45, 0.45});
    m.claim("more", {{"a", "b"}}, 1.0);
    const double alone = m.decide().p_holm;
    EXPECT_EQ(alone, m.decide().p);
    m.claim("more", {{"b", "a"}}, 1.0);
    EXPECT_NEAR(m.decide().p_holm, 2.0 * alone, 1e-12);
}

TEST(Claims, HolmCountsWhatWasNotFound) {
    MadeUp m;
    m.add("a", "", {0.50, 0.53, 0.47}), m.add("b", "", {0.44, 0.45, 0.45});
    m.claim("more", {{"a", "b"}}, 1.0), m.claim("more", {{"a", "never"}}, 1.0);
    EXPECT_NEAR(m.decide().p_holm, 2.0 * m.decide().p, 1e-12);
    EXPECT_EQ(verdict(m, 1), "not run");
}

TEST(Claims, WhatIsAllAlikeIsKnownAsFarAsItWasAsked) {
    for (const bool many : {true, false}) {
        MadeUp m;  // two models that answer nothing
        const std::vector<double> nothing(6, 0.0);
        m.add("a", "", nothing), m.add("b", "", nothing);
        for (Arm& arm : m.results.arms)
            for (Evaluation& e : arm.runs)
                while (!many && e.sets["set"].size() > 5) e.sets["set"].erase(e.sets["set"].begin());
        m.claim("equal", {{"a", "b"}}, 2.0), m.claim("not_below", {{"a", "b"}}, 2.0);
        for (const size_t i : {0, 1}) EXPECT_EQ(verdict(m, i), many ? "supported" : "undecided") << i;
    }
    MadeUp m;  // two seeds that agree in steps by chance
    const int a = m.add("a", "", {0.5, 0.5}), b = m.add("b", "", {0.5, 0.5});
    for (size_t seed = 0; seed < 2; seed++)
        m.curves[{a, seed}] = {1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0},
                     m.curves[{b, seed}] = {1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0};
    m.claim("sooner", {{"a", "b"}}, 90.0);
    m.study.claims.back().curve = "divergence";
    EXPECT_GT(m.decide().p, 0.05);
}

TEST(Claims, OneSeedDecidesNothing) {
    MadeUp m;
    m.add("a", "", {0.9}), m.add("b", "", {0.1});
    m.claim("more", {{"a", "b"}}, 1.0);
    EXPECT_EQ(verdict(m), "undecided");
    EXPECT_EQ(m.decide().why, "one seed");
}

TEST(Claims, AnOrderHoldsAtEveryPointOrIsTurned) {
    MadeUp m;
    m.study.grid = {{"bits", {"4", "2"}}};
    m.add("a", "4", {0.60, 0.61, 0.59, 0.60}), m.add("a", "2", {0.50, 0.51, 0.49, 0.50});
    m.add("b", "4", {0.50, 0.51, 0.49, 0.50}), m.add("b", "2", {0.40, 0.41, 0.39, 0.40});
    m.add("c", "4", {0.30, 0.31, 0.29, 0.30}), m.add("c", "2", {0.45, 0.46, 0.44, 0.45});
    m.claim("order", {{"a", ""}, {"b", ""}}, 0.0);
    m.claim("order", {{"a", ""}, {"b", ""}, {"c", ""}}, 0.0);
    EXPECT_EQ(verdict(m, 0), "supported");
    EXPECT_EQ(verdict(m, 1), "contradicted");
    EXPECT_EQ(m.decide(1).why, "c 2 is above b 2");
}

TEST(Claims, WhichIsSooner) {
    MadeUp m;
    const int a = m.add("a", "", {0.5, 0.5, 0.5}), b = m.add("b", "", {0.5, 0.5, 0.5});
    for (size_t seed = 0; seed < 3; seed++) {
        std::vector<double> fast, slow;
        for (int i = 0; i < 40; i++) {
            fast.push_back(1.0 - std::min(1.0, (i + 0.1 * (double)seed) / 10.0));
            slow.push_back(1.0 - std::min(1.0, (i + 0.2 * (double)seed) / 30.0));
        }
        m.curves[{a, seed}] = fast, m.curves[{b, seed}] = slow;
    }
    m.claim("sooner", {{"a", "b"}}, 90.0);
    m.study.claims.back().curve = "divergence";
    m.claim("sooner", {{"b", "a"}}, 90.0);
    m.study.claims.back().curve = "divergence";
    EXPECT_EQ(verdict(m, 0), "supported");
    EXPECT_EQ(verdict(m, 1), "contradicted");
    EXPECT_EQ(step_of_level({{1, 0.0}, {2, 0.5}, {3, 1.0}}, 0.5, true), 2.0);
    EXPECT_EQ(step_of_level({{1, 0.0}, {2, 0.5}, {3, 1.0}}, 2.0, true), 4.0) << "never";
    EXPECT_EQ(step_of_level({{1, 1.0}, {2, 0.5}, {3, 0.1}}, 0.5, false), 2.0);
}

TEST(Claims, WhatIsKeptGoesWithCellsOrWithTheRate) {
    for (const bool cells : {true, false}) {
        MadeUp m;
        m.study.start = "start", m.study.full = "fp";
        m.add("start", "", std::vector<double>(6, 0.2)), m.add("fp", "", {0.60, 0.61, 0.59, 0.60, 0.60, 0.60});
        for (int grid = 0; grid < 3; grid++)
            for (int rate = 0; rate < 4; rate++) {
                const double crossed = (grid + 1) * 10.0 + rate, order = cells ? crossed : rate * 10.0 + grid;
                const double accuracy = 0.2 + 0.008 * order;
                const int c = m.add("q", format("%d%d", grid, rate),
                                    {accuracy, accuracy + 0.002, accuracy - 0.002, accuracy, accuracy, accuracy});
                for (StudyOutcome& o : m.results.outcomes[c]) o.crossed = crossed, o.rate = rate;
            }
        m.claim("follows_cells", {{"q", ""}}, 0.0);
        EXPECT_EQ(verdict(m), cells ? "supported" : "contradicted") << m.decide().figure << m.decide().interval;
        m.results.outcomes[5][1].crossed = NAN;
        EXPECT_EQ(verdict(m), "undecided") << "a number that was not logged is not the least";
        EXPECT_NE(m.decide().why.find("with seed 2"), std::string::npos) << m.decide().why;
    }
    EXPECT_NEAR(rank_correlation({1, 2, 3, 4}, {10, 20, 30, 5}), -0.2, 1e-12);  // scipy.stats.spearmanr
    EXPECT_NEAR(rank_correlation({1, 2, 2, 4}, {1, 3, 2, 4}), 0.9486832980505138, 1e-12);
    EXPECT_TRUE(std::isnan(rank_correlation({1, 1, 1}, {1, 2, 3})));
}

// power of the paired t test: statsmodels.stats.power.TTestPower().power(effect, n, alpha)
TEST(Claims, SeedsForAPower) {
    EXPECT_NEAR(seeds_power(34, 0.5, 0.05), 0.80778, 1e-5);
    EXPECT_NEAR(seeds_power(10, 1.0, 0.05), 0.80310, 1e-5);
    EXPECT_NEAR(seeds_power(10, 1e-9, 0.05), 0.025, 1e-5) << "one side of what chance finds";
    EXPECT_EQ(seeds_for(0.5, 1.0, 0.8, 0.05), 34);
    EXPECT_EQ(seeds_for(1.0, 1.0, 0.8, 0.05), 10);
    EXPECT_EQ(seeds_for(0.05, 0.0, 0.8, 0.05), 2);
    EXPECT_EQ(seeds_for(0.5, 1.0, 0.8, 0.05, 0.05), 37) << "the problems' own error stays";
    EXPECT_EQ(seeds_for(0.5, 1.0, 0.8, 0.05, 0.3), 0) << "and may be too large for any number of seeds";
}

// 95 % intervals of a contrast over few seeds, by what seeds and problems vary by: the truth is inside often enough
TEST(Claims, IntervalsHoldTheTruthWithFewSeeds) {
    for (const int seeds : {2, 3, 6})
        for (const double between : {0.0, 0.02}) {
            int inside = 0, surely = 0;
            const int trials = 1000, problems = 60;
            for (int t = 0; t < trials; t++) {
                ResampleDraws draw(RNG_BOOTSTRAP, t, 3);
                auto normal = [&] {  // a sum of twelve uniforms
                    double sum = -6.0;
                    for (int i = 0; i < 12; i++) sum += (double)draw.below(1000) / 999.0;
                    return sum;
                };
                std::vector<double> problem;
                for (int p = 0; p < problems; p++) problem.push_back(0.1 * normal());
                Runs d(seeds);
                for (auto& seed : d) {
                    const double shift = between * normal();
                    for (int p = 0; p < problems; p++) seed.push_back(shift + problem[p] + 0.3 * normal());
                }
                const Confidence c = paired_estimate(d).interval(), narrow = seeds_estimate({}, d).interval();
                inside += c.low <= 0.0 && c.high >= 0.0;
                surely += narrow.low <= 0.0 && narrow.high >= 0.0;
            }
            EXPECT_GE(inside, 940) << seeds << " seeds that vary by " << between << ", and " << surely
                                   << " with the degrees of freedom of seeds_estimate";
        }
}
