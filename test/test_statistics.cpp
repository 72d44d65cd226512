// Estimators and statistics of evaluations: against enumeration of all subsets, scipy (test/make_golden_statistics.py),
// and, for intervals, the share of them that hold the truth.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <map>
#include <tuple>
#include "../eval/comparison.h"
#include "../eval/estimators.h"
#include "../eval/statistics.h"
#include "../runtime/file_io.h"

using nlohmann::json;

static const json& golden() {
    static const json j = json::parse(read_file("test/golden/statistics.json"));
    return j;
}

static void expect_close(double a, double b, double tolerance, const std::string& what) {
    EXPECT_NEAR(a, b, tolerance * std::max(fabs(b), 1e-12)) << what;
}

// numbers of a test's own
struct Draws {
    uint32_t used = 0;
    uint64_t seed;
    explicit Draws(uint64_t seed_) : seed(seed_) {}
    uint32_t bits() {
        const Philox4 p = rng_bits(seed, 1000, used / 4, 0, 0);
        return philox_word(p, (int)(used++ % 4));
    }
    int below(int n) { return (int)((uint64_t)bits() * (uint64_t)n >> 32); }
    double uniform() { return (bits() + 0.5) / 4294967296.0; }
    double normal() { return sqrt(-2.0 * log(uniform())) * cos(6.283185307179586 * uniform()); }
};

// ---------------------------------------------------------------------------------------------------------------------
// estimators

// the mean over all subsets of k of n <= 16 samples
template <class Value>
static double over_subsets(int n, int k, Value value) {
    double sum = 0.0;
    int count = 0;
    for (int mask = 0; mask < 1 << n; mask++) {
        std::vector<int> subset;
        for (int i = 0; i < n; i++)
            if (mask >> i & 1) subset.push_back(i);
        if ((int)subset.size() != k) continue;
        sum += value(subset), count++;
    }
    return sum / count;
}

TEST(Estimators, PassAndAverageAreMeansOverAllSubsets) {
    for (int n = 1; n <= 9; n++)
        for (int c = 0; c <= n; c++)
            for (int k = 1; k <= n; k++) {
                const auto any = [&](const std::vector<int>& s) { return s[0] < c ? 1.0 : 0.0; };
                EXPECT_NEAR(pass_at_k(n, c, k), over_subsets(n, k, any), 1e-14) << n << " " << c << " " << k;
                const auto share = [&](const std::vector<int>& s) {
                    return (double)std::count_if(s.begin(), s.end(), [&](int i) { return i < c; }) / k;
                };
                std::vector<char> right((size_t)n, 0);
                std::fill(right.begin(), right.begin() + c, 1);
                EXPECT_NEAR(avg_at_k(right), over_subsets(n, k, share), 1e-14) << n << " " << c << " " << k;
            }
}

// the winner's share of right ones among those drawn; of tied winners the mean; without a vote 0
static double vote(const std::vector<int>& subset, const std::vector<int>& classes, const std::vector<char>& right) {
    std::map<int, std::pair<int, int>> votes;
    int most = 0;
    for (const int i : subset) {
        if (classes[(size_t)i] < 0) continue;
        auto& [n, good] = votes[classes[(size_t)i]];
        most = std::max(most, ++n), good += right[(size_t)i];
    }
    double sum = 0.0;
    int winners = 0;
    for (const auto& v : votes)
        if (v.second.first == most) winners++, sum += (double)v.second.second / most;
    return winners ? sum / winners : 0.0;
}

TEST(Estimators, MajorityIsTheMeanOverAllSubsetsTiesIncluded) {
    Draws draws(1);
    double largest = 0.0;
    int ties = 0;
    for (int round = 0; round < 150; round++) {
        const int n = 1 + draws.below(11), kinds = 1 + draws.below(5);
        std::vector<int> classes;
        std::vector<char> right;
        for (int i = 0; i < n; i++) {
            classes.push_back(draws.below(kinds + 1) - 1);
            // a grader that agrees with itself, two right classes, and one that does not
            right.push_back((char)(round % 3 == 0   ? classes.back() == 0
                                   : round % 3 == 1 ? classes.back() == 0 || classes.back() == 2
                                                    : draws.below(2)));
        }
        for (int k = 1; k <= n; k++) {
            const double exact =
                over_subsets(n, k, [&](const std::vector<int>& subset) { return vote(subset, classes, right); });
            largest = std::max(largest, fabs(maj_at_k(classes, right, k) - exact));
            ties += k == 2;
        }
    }
    EXPECT_LT(largest, 1e-13);
    EXPECT_GT(ties, 100);
    EXPECT_EQ(maj_at_k({-1, -1}, {1, 1}, 2), 0.0);                    // nobody votes
    EXPECT_NEAR(maj_at_k({0, -1, 0}, {1, 0, 1}, 1), 2.0 / 3, 1e-14);  // of one sample: it is right
    EXPECT_NEAR(maj_at_k({5, 9}, {1, 0}, 2), 0.5, 1e-14);             // a tie
    EXPECT_THROW(maj_at_k({0}, {1}, 2), Error);
    EXPECT_THROW(maj_at_k({0}, {1}, 0), Error);
}

TEST(Estimators, MajorityOfMany) {
    for (const json& row : golden()["majorities"]) {  // hypergeometric
        const int n = row[0], m = row[1], k = row[2];
        std::vector<int> classes((size_t)n, 1);
        std::vector<char> right((size_t)n, 0);
        std::fill(classes.begin(), classes.begin() + m, 0);
        std::fill(right.begin(), right.begin() + m, 1);
        expect_close(maj_at_k(classes, right, k), row[3], 1e-10, row.dump());
    }
    for (const int members : {1, 2, 256})  // equal classes: each wins as often
        for (const int k : {1, 300}) {
            std::vector<int> classes;
            std::vector<char> right;
            for (int i = 0; i < 1024; i++) classes.push_back(i / members), right.push_back(i < members);
            expect_close(maj_at_k(classes, right, k), members / 1024.0, 1e-10, std::to_string(members));
        }
}

TEST(Estimators, BestIsTheMeanOverAllSubsetsTiesIncluded) {
    Draws draws(2);
    for (int round = 0; round < 100; round++) {
        const int n = 1 + draws.below(10);
        std::vector<double> rewards;
        std::vector<char> right;
        for (int i = 0; i < n; i++) rewards.push_back(0.25 * draws.below(4)), right.push_back((char)draws.below(2));
        if (round % 5 == 0) rewards[0] = round % 2 ? NAN : -INFINITY;
        for (int k = 1; k <= n; k++) {
            const double exact = over_subsets(n, k, [&](const std::vector<int>& subset) {
                auto reward = [&](int i) { return std::isnan(rewards[(size_t)i]) ? -INFINITY : rewards[(size_t)i]; };
                double best = -INFINITY, good = 0.0, tied = 0.0;
                for (const int i : subset) best = std::max(best, reward(i));
                for (const int i : subset)
                    if (reward(i) == best) tied++, good += right[(size_t)i];
                return good / tied;
            });
            EXPECT_NEAR(best_at_k(rewards, right, k), exact, 1e-13);
        }
    }
    EXPECT_THROW(best_at_k({1.0}, {1}, 2), Error);
}

// ---------------------------------------------------------------------------------------------------------------------
// scipy

TEST(Statistics, DistributionsAreScipys) {
    const json& g = golden()["distributions"];
    for (const json& x : g["normal_quantile"]) EXPECT_NEAR(normal_quantile(x[0]), x[1], 1e-9) << x;
    for (const json& x : g["student_quantile"])
        EXPECT_NEAR(student_quantile(x[0], x[1]), x[2], 1e-8 * std::max(1.0, fabs(x[2].get<double>()))) << x;
    for (const json& x : g["student_cdf"]) expect_close(student_cdf(x[0], x[1]), x[2], 1e-9, x.dump());
    for (const json& x : g["two_sided"]) expect_close(two_sided(x[0], x[1]), x[2], 1e-9, x.dump());
    for (const json& x : g["beta_cdf"]) EXPECT_NEAR(beta_cdf(x[0], x[1], x[2]), x[3], 1e-8) << x;
    for (const json& x : g["beta_quantile"]) EXPECT_NEAR(beta_quantile(x[0], x[1], x[2]), x[3], 1e-9) << x;
}

TEST(Statistics, McNemarIsScipys) {
    for (const json& x : golden()["mcnemar"]) {
        const McNemar m = mcnemar(x[0], x[1]);
        expect_close(m.exact, x[2], 1e-9, x.dump());
        expect_close(m.mid_p, x[3], 1e-9, x.dump());
        expect_close(m.corrected, x[4], 1e-9, x.dump());
        std::vector<int64_t> signs(x[0].get<size_t>(), 1);  // the same test
        signs.resize(signs.size() + x[1].get<size_t>(), -1);
        signs.resize(signs.size() + 50, 0);
        bool ok = false;
        expect_close(sign_flip_exact(signs, &ok), x[2], 1e-9, x.dump());
        EXPECT_TRUE(ok);
    }
    EXPECT_EQ(mcnemar(0, 0).exact, 1.0);
    EXPECT_EQ(mcnemar(0, 0).mid_p, 1.0);
}

TEST(Statistics, SignFlipsAreScipys) {
    for (const json& x : golden()["sign_flips"]) {
        const std::vector<int64_t> whole = x["differences"];
        bool ok = false;
        const double p = sign_flip_exact(whole, &ok);
        EXPECT_TRUE(ok);
        EXPECT_NEAR(p, x["p"].get<double>(), 1e-12) << x;
        std::vector<double> shares;
        for (const int64_t d : whole) shares.push_back((double)d / 7.0);
        EXPECT_NEAR(sign_flip_sampled(shares, 20000), p, 4.5 * sqrt(p * (1 - p) / 20000) + 1e-4) << x;
    }
    bool ok = true;
    std::vector<int64_t> fine;
    for (int i = 0; i < 2000; i++) fine.push_back(i % 3 ? 999983 : -1000003 + i);
    sign_flip_exact(fine, &ok);
    EXPECT_FALSE(ok) << "more work than is promised";
}

TEST(Statistics, BootstrapIntervalsAreScipys) {
    for (const json& x : golden()["bootstrap"]) {
        const std::vector<double> means = x["means"];
        const Confidence percentile = percentile_interval(means);
        EXPECT_NEAR(percentile.low, x["percentile"][0].get<double>(), 1e-12);
        EXPECT_NEAR(percentile.high, x["percentile"][1].get<double>(), 1e-12);
    }
}

TEST(Statistics, BootstrapDrawsEachElementAlike) {
    std::vector<double> x;
    for (int i = 0; i < 50; i++) x.push_back(sqrt(i));
    const std::vector<double> means = bootstrap_means(x, 20000);
    EXPECT_TRUE(std::is_sorted(means.begin(), means.end()));
    const double error = sqrt(variance_of(x) * 49 / 50 / 50);  // of a mean of 50 drawn from these 50
    EXPECT_NEAR(mean_of(means), mean_of(x), 4.5 * error / sqrt(20000.0));
    EXPECT_NEAR(sqrt(variance_of(means)), error, 0.03 * error);
    EXPECT_EQ(means, bootstrap_means(x, 20000)) << "the same bits each time";
}

TEST(Statistics, StudentsTestsAreScipys) {
    for (const json& x : golden()["student"]) {
        Estimate e;
        e.value = x["mean"], e.error = x["error"], e.df = x["n"].get<double>() - 1.0;
        if (!x["d"].is_null()) {
            const Estimate made = seeds_estimate({}, {x["d"].get<std::vector<double>>()});
            expect_close(made.value, e.value, 1e-9, "mean");
            expect_close(made.error, e.error, 1e-9, "error");
            EXPECT_NEAR(made.df, e.df, 1e-9);
        }
        expect_close(e.p(), x["p"], 1e-8, "p");
        expect_close(e.interval().low, x["interval"][0], 1e-8, "low");
        expect_close(e.interval().high, x["interval"][1], 1e-8, "high");
        expect_close(e.equality_p(x["margin"]), x["equality"], 1e-8, "equality");
    }
    // where a seed moves all problems alike, problems add nothing, and it is Welch's test of the seeds' means
    for (const json& x : golden()["welch"]) {
        Runs a, b;
        const std::vector<double> problems = {-0.2, 0.0, 0.05, 0.15};
        for (const double mean : x["a"].get<std::vector<double>>()) {
            a.emplace_back();
            for (const double p : problems) a.back().push_back(mean + p);
        }
        for (const double mean : x["b"].get<std::vector<double>>()) {
            b.emplace_back();
            for (const double p : problems) b.back().push_back(mean + p);
        }
        const Estimate e = seeds_estimate(a, b);
        expect_close(e.df, x["df"], 1e-6, "df");
        expect_close(e.p(), x["p"], 1e-6, "p");
        expect_close(e.interval().low, x["interval"][0], 1e-6, "low");
        expect_close(e.interval().high, x["interval"][1], 1e-6, "high");
    }
}

// log-likelihood of b, c and the rest of n, of which q + delta, q and the rest are the rates
static double table_likelihood(double n, double b, double c, double delta, double q) {
    auto term = [](double count, double rate) { return count == 0.0 ? 0.0 : count * log(std::max(rate, 1e-300)); };
    return term(b, q + delta) + term(c, q) + term(n - b - c, 1.0 - delta - 2.0 * q);
}

TEST(Statistics, TangosScoreIsOfTheLikeliestTable) {
    for (const auto& [n, b, c] : {std::tuple(50.0, 3.0, 4.0), {100.0, 0.0, 0.0}, {100.0, 0.0, 9.0}, {30.0, 12.0, 1.0}})
        for (const double delta : {0.01, 0.05, 0.3}) {
            double low = 0.0, high = 0.5 * (1.0 - delta);  // the likelihood has one peak
            for (int i = 0; i < 300; i++) {
                const double left = low + (high - low) / 3, right = high - (high - low) / 3;
                if (table_likelihood(n, b, c, delta, left) < table_likelihood(n, b, c, delta, right)) low = left;
                else high = right;
            }
            const double q = 0.5 * (low + high);
            EXPECT_NEAR(tango_score(n, b, c, delta), (b - c - n * delta) / sqrt(n * (2 * q + delta - delta * delta)),
                        1e-5)
                << n << " " << b << " " << c << " " << delta;
        }
    // without a margin it is McNemar's, uncorrected
    EXPECT_NEAR(tango_score(100, 20, 5, 0.0), 15 / sqrt(25.0), 1e-12);
    // equal on all of 100 problems says little of 2 points, which would show on 2 of them on average
    EXPECT_GT(mcnemar_equality_p(100, 0, 0, 0.02), 0.05);
    EXPECT_LT(mcnemar_equality_p(1000, 0, 0, 0.02), 0.001);
    EXPECT_NEAR(mcnemar_equality_p(200, 9, 4, 0.1), mcnemar_equality_p(200, 4, 9, 0.1), 1e-15);
}

TEST(Statistics, EqualityIsSeldomFoundWhereThereIsNone) {
    Draws draws(6);
    for (const auto& [n, up, down] : {std::tuple(200, 0.10, 0.05), {500, 0.05, 0.0}, {500, 0.2, 0.15}}) {
        int tango = 0, student = 0;  // the difference is the margin itself
        const int rounds = 2000;
        for (int r = 0; r < rounds; r++) {
            std::vector<double> d;
            int b = 0, c = 0;
            for (int i = 0; i < n; i++) {
                const double u = draws.uniform();
                d.push_back(u < up ? 1.0 : u < up + down ? -1.0 : 0.0);
                b += d.back() > 0.0, c += d.back() < 0.0;
            }
            tango += mcnemar_equality_p(n, b, c, 0.05) < 0.05;
            student += seeds_estimate({}, {d}).equality_p(0.05) < 0.05;
        }
        printf("%d problems, %g better, %g worse, margin 5 points: equal by Tango %.1f %%, by Student %.1f %%\n", n, up,
               down, 100.0 * tango / rounds, 100.0 * student / rounds);
        EXPECT_LT((double)tango / rounds, 0.05 + 3.5 * sqrt(0.05 * 0.95 / rounds));
    }
}

TEST(Statistics, HolmStepsDown) {
    EXPECT_EQ(holm({}), std::vector<double>());
    EXPECT_EQ(holm({0.5}), std::vector<double>{0.5});
    // by hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04, which may not be below the one before it
    const std::vector<double> p = holm({0.01, 0.04, 0.03, 0.005}), expected = {0.03, 0.06, 0.06, 0.02};
    for (size_t i = 0; i < 4; i++) EXPECT_NEAR(p[i], expected[i], 1e-15);
    EXPECT_EQ(holm({0.9, 0.8}), (std::vector<double>{1.0, 1.0}));
}

// ---------------------------------------------------------------------------------------------------------------------
// shares of intervals that hold the truth

// rounds of a simulation: ten times as many for the numbers of docs/evaluation.md
static int rounds_of(int n) { return getenv("TRAIN_QRL_LONG") ? 10 * n : n; }

// exact, for right or wrong once a problem: the sum of chances of the counts whose interval holds p
static double coverage_of(int n, double p, const std::vector<Confidence>& of_count) {
    double sum = 0.0;
    for (int c = 0; c <= n; c++)
        if (of_count[(size_t)c].low <= p && p <= of_count[(size_t)c].high) sum += binomial_pmf(n, c, p);
    return sum;
}

static std::vector<Confidence> intervals_of_counts(int n) {
    std::vector<Confidence> all;
    for (int c = 0; c <= n; c++) {
        std::vector<double> values((size_t)n, 0.0);
        std::fill(values.begin(), values.begin() + c, 1.0);
        all.push_back(mean_interval(values, n));
    }
    return all;
}

TEST(Coverage, OfProportionsIs94To96Percent) {
    for (const int n : {100, 200, 500}) {
        const std::vector<Confidence> of_count = intervals_of_counts(n);
        std::string line;
        double near = 0.0;
        for (int tenth = 1; tenth <= 9; tenth++) {
            const double share = coverage_of(n, tenth / 10.0, of_count);
            line += format(" %.1f", 100 * share);
            EXPECT_GE(share, 0.94) << n << " " << tenth;
            EXPECT_LE(share, 0.96) << n << " " << tenth;
            // a count is whole, so that the share jumps as p moves; its mean over p near by does not
            double smooth = 0.0;
            for (int i = -25; i <= 25; i++) smooth += coverage_of(n, tenth / 10.0 + i * 0.001, of_count) / 51.0;
            EXPECT_NEAR(smooth, 0.95, 0.004) << n << " " << tenth;
            near += smooth / 9.0;
        }
        printf("n %4d, p 0.1 ... 0.9:%s; near by %.2f\n", n, line.c_str(), 100 * near);
        EXPECT_EQ(of_count[0].low, 0.0);
        EXPECT_EQ(of_count[(size_t)n].high, 1.0);
        EXPECT_GT(of_count[0].high, 0.0);
    }
}

// k samples of each of n problems, whose chances are beta distributed: concentration 0.3, nearly all or nothing; 1000,
// all alike
TEST(Coverage, OfShares) {
    const int n = 100, rounds = rounds_of(1500);
    Draws draws(3);
    for (const int k : {2, 16})
        for (const double concentration : {0.3, 4.0, 1000.0}) {
            std::string line;
            for (const double p : {0.1, 0.3, 0.5, 0.9}) {
                std::vector<double> chances;  // a table of the distribution
                for (int i = 0; i < 400; i++)
                    chances.push_back(beta_quantile((i + 0.5) / 400, p * concentration, (1 - p) * concentration));
                const double truth = mean_of(chances);
                int hits = 0;
                for (int r = 0; r < rounds; r++) {
                    std::vector<double> values;
                    for (int i = 0; i < n; i++) {
                        const double chance = chances[(size_t)draws.below(400)];
                        int right = 0;
                        for (int s = 0; s < k; s++) right += draws.uniform() < chance;
                        values.push_back((double)right / k);
                    }
                    const Confidence c = mean_interval(values, n * k);
                    hits += c.low <= truth && truth <= c.high;
                }
                const double share = (double)hits / rounds, noise = 3.5 * sqrt(0.95 * 0.05 / rounds);
                EXPECT_GE(share, 0.94 - noise) << k << " " << concentration << " " << p;
                EXPECT_LE(share, 0.96 + noise) << k << " " << concentration << " " << p;
                line += format(" %.1f", 100 * share);
            }
            printf("n %d, %2d samples, concentration %g, p 0.1 0.3 0.5 0.9:%s\n", n, k, concentration, line.c_str());
        }
}

// Two arms of S seeds: the difference is 0 on average over seeds and problems. `seed`, `problem`: standard deviations in
// points of a seed's effect, and of an arm's on a problem; a cell is right or wrong. hits: Student's t, bootstrap
struct SeedsCoverage {
    double student = 0.0, bootstrap = 0.0;
};
static SeedsCoverage seeds_coverage(int seeds, int problems, double seed, double problem, int rounds, Draws& draws) {
    SeedsCoverage r;
    for (int round = 0; round < rounds; round++) {
        std::vector<double> level;
        for (int i = 0; i < problems; i++) level.push_back(0.2 + 0.6 * draws.uniform());
        Runs arms[2];
        for (Runs& arm : arms) {
            std::vector<double> own;
            for (int i = 0; i < problems; i++) own.push_back(problem * draws.normal());
            for (int s = 0; s < seeds; s++) {
                const double shift = seed * draws.normal();
                arm.emplace_back();
                for (int i = 0; i < problems; i++)
                    arm.back().push_back(draws.uniform() < level[(size_t)i] + own[(size_t)i] + shift);
            }
        }
        const Confidence c = seeds_estimate(arms[0], arms[1]).interval();
        r.student += (c.low <= 0.0 && 0.0 <= c.high) / (double)rounds;
        const Confidence h = percentile_interval(hierarchical_bootstrap(arms[0], arms[1], 200));
        r.bootstrap += (h.low <= 0.0 && 0.0 <= h.high) / (double)rounds;
    }
    return r;
}

TEST(Coverage, OverSeeds) {
    const int rounds = rounds_of(400);
    const double noise = 3.5 * sqrt(0.95 * 0.05 / rounds);
    Draws draws(4);
    for (const int seeds : {3, 5})
        for (const double seed : {0.0, 0.02, 0.08}) {
            const SeedsCoverage c = seeds_coverage(seeds, 200, seed, 0.1, rounds, draws);
            printf("%d seeds, 200 problems, seeds differ by %g points: t %.1f, bootstrap %.1f\n", seeds, 100 * seed,
                   100 * c.student, 100 * c.bootstrap);
            EXPECT_GE(c.student, 0.94 - noise);
            EXPECT_LE(c.student, 0.975 + noise);
            if (seeds == 3 && seed == 0.08) {
                EXPECT_LT(c.bootstrap, 0.93) << "is the note at hierarchical_bootstrap true?";
            }
        }
}

TEST(Coverage, OfPairedDifferences) {
    const int rounds = rounds_of(1000);
    const double noise = 3.5 * sqrt(0.95 * 0.05 / rounds);
    Draws draws(5);
    for (const auto& [up, down] : {std::pair(0.1, 0.05), std::pair(0.05, 0.05), std::pair(0.3, 0.3)}) {
        int hits = 0;
        for (int r = 0; r < rounds; r++) {
            std::vector<double> d;
            for (int i = 0; i < 200; i++) {
                const double u = draws.uniform();
                d.push_back(u < up ? 1.0 : u < up + down ? -1.0 : 0.0);
            }
            const Confidence c = percentile_interval(bootstrap_means(d, 400));
            hits += c.low <= up - down + 1e-12 && up - down - 1e-12 <= c.high;
        }
        printf("200 problems, %g better and %g worse: %.1f\n", up, down, 100.0 * hits / rounds);
        EXPECT_GE((double)hits / rounds, 0.94 - noise);
        EXPECT_LE((double)hits / rounds, 0.96 + noise);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// what is made of evaluations

TEST(Comparison, NamesAndMetrics) {
    EXPECT_EQ(arm_name(0), "A");
    EXPECT_EQ(arm_name(25), "Z");
    EXPECT_EQ(arm_name(26), "AA");
    EXPECT_EQ(arm_name(26 * 27), "AAA");
    EXPECT_EQ(metric_named("auto", true).name(), "pass@1 strict");
    EXPECT_EQ(metric_named("auto", false).name(), "greedy strict");
    EXPECT_EQ(metric_named("greedy_lenient", true).name(), "greedy lenient");
    EXPECT_EQ(metric_named("pass@8", true).k, 8);
    for (const char* wrong : {"pass@0", "pass@", "pass@x", "pass@99999999999", "strictly", "", "pass@-1"})
        EXPECT_THROW(metric_named(wrong, true), Error) << wrong;
    ProblemResult r;
    r.sampled = {4, 1, 2, 1};
    r.greedy = {1, 0, 1, 1};
    EXPECT_EQ(metric_named("strict", true).value(r), 0.25);
    EXPECT_EQ(metric_named("lenient", true).value(r), 0.5);
    EXPECT_EQ(metric_named("greedy", true).value(r), 0.0);
    EXPECT_EQ(metric_named("greedy_lenient", true).value(r), 1.0);
    EXPECT_EQ(metric_named("pass@2", true).value(r), 0.5);
    EXPECT_FALSE(metric_named("pass@5", true).covers(r));
}

TEST(Comparison, VerdictNeedsIntervalAndAdjustedP) {
    PairResult r;
    r.wins = 10, r.losses = 2;
    r.estimate.value = 0.04;
    r.interval = {0.01, 0.07};
    r.p_holm = 0.2;
    EXPECT_EQ(verdict_of(r, 0, "B"), "undecided");
    r.p_holm = 0.02;
    EXPECT_EQ(verdict_of(r, 0, "B"), "B is better");
    r.interval = {-0.01, 0.07};
    EXPECT_EQ(verdict_of(r, 0, "B"), "undecided");
    r.interval = {-0.007, -0.001}, r.estimate.value = -0.004;
    EXPECT_EQ(verdict_of(r, 0, "B"), "B is worse, by less than a point");
    r.equality_holm = 0.001;
    EXPECT_EQ(verdict_of(r, 2, "B"), "B is worse, and equal within 2 points");
    EXPECT_EQ(verdict_of(r, 0, "B"), "B is worse, by less than a point") << "without a margin nothing is equal";
    r.p_holm = 1.0;
    EXPECT_EQ(verdict_of(r, 2, "B"), "equal within 2 points");
    r.wins = r.losses = 0;
    EXPECT_EQ(verdict_of(r, 2, "B"), "the same on every problem");
}
