// What a difference between two evaluations is worth. Values are of problems, in [0, 1]: right or wrong, or the share of a
// problem's samples that is right.
//   interval of a mean over problems   Jeffreys' with an effective number of problems (Korn and Graubard 1998):
//       Beta(m e + 1/2, (1-m) e + 1/2),  e = m (1-m) / (s^2 / n) * (z / t_{n-1})^2, at least n, at most all samples
//   paired tests over problems         McNemar; sign flips, exact for shares; bootstrap of the mean difference
//   several seeds of an arm            seeds and problems are both drawn, and crossed: each seed answers the same problems.
//       V = s^2(D_p) / P + max(sum over arms of s^2(seed means) / S - s^2(residuals) / (S P), 0), D_p of a problem over
//       seeds; residuals of seed + problem, which s^2(D_p) counts already. Student's t, Satterthwaite's degrees of freedom
//   many claims                        Holm; equality within a margin: two one-sided tests, of Student or of Tango's score
// Random numbers are Philox's with a fixed key, so the same values give the same bits.
// The trap: runs of several seeds on one set are not so many times the problems. Both the problems and the seeds limit
// what is known, and three seeds know little of how seeds differ (Student's t for 2 degrees of freedom is 4.3).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <utility>
#include <vector>
#include "../runtime/error.h"
#include "../runtime/rng.h"

struct Confidence {
    double low = 0.0, high = 0.0;
};

// ---------------------------------------------------------------------------------------------------------------------
// distributions

inline double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }

// The regularized incomplete beta function I_x(a, b), a and b > 0: Lentz's continued fraction (Press et al., section 6.4)
inline double beta_cdf(double x, double a, double b) {
    if (!(x > 0.0)) return 0.0;
    if (x >= 1.0) return 1.0;
    if (x > (a + 1.0) / (a + b + 2.0)) return 1.0 - beta_cdf(1.0 - x, b, a);
    const double front =
        std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) + b * std::log1p(-x)) / a;
    const double tiny = 1e-300;
    auto off_zero = [&](double v) { return std::fabs(v) < tiny ? tiny : v; };
    double c = 1.0, d = 1.0 / off_zero(1.0 - (a + b) * x / (a + 1.0)), h = d;
    for (int m = 1; m < 100000; m++) {  // takes some sqrt(max(a, b)) rounds
        const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
        d = 1.0 / off_zero(1.0 + even * d), c = off_zero(1.0 + even / c), h *= d * c;
        const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
        d = 1.0 / off_zero(1.0 + odd * d), c = off_zero(1.0 + odd / c), h *= d * c;
        if (std::fabs(d * c - 1.0) < 1e-16 * 3) break;
    }
    return std::min(front * h, 1.0);
}

// P(T <= t) with df > 0 degrees of freedom, not only whole ones; infinite: the normal
inline double student_cdf(double t, double df) {
    if (std::isinf(df)) return normal_cdf(t);
    const double tail = 0.5 * beta_cdf(df / (df + t * t), 0.5 * df, 0.5);
    return t > 0.0 ? 1.0 - tail : tail;
}

// where a function that rises from below p at `low` to above it at `high` reaches p
inline double bisect(double p, double low, double high, const std::function<double(double)>& cdf) {
    for (int i = 0; i < 200; i++) {
        const double middle = 0.5 * (low + high);
        if (middle <= low || middle >= high) break;
        (cdf(middle) < p ? low : high) = middle;
    }
    return 0.5 * (low + high);
}

inline double beta_quantile(double p, double a, double b) {
    return bisect(p, 0.0, 1.0, [&](double x) { return beta_cdf(x, a, b); });
}

// 0 < p < 1
inline double student_quantile(double p, double df) {
    if (p < 0.5) return -student_quantile(1.0 - p, df);
    double high = 2.0;
    while (student_cdf(high, df) < p && high < 1e300) high *= 2.0;
    return bisect(p, 0.0, high, [&](double t) { return student_cdf(t, df); });
}

inline double normal_quantile(double p) { return student_quantile(p, INFINITY); }

// P(|T| >= |t|)
inline double two_sided(double t, double df) {
    if (std::isinf(df)) return std::erfc(std::fabs(t) / std::sqrt(2.0));
    return beta_cdf(df / (df + t * t), 0.5 * df, 0.5);
}

// ---------------------------------------------------------------------------------------------------------------------
// one evaluation

inline double mean_of(const std::vector<double>& x) {
    return x.empty() ? 0.0 : std::accumulate(x.begin(), x.end(), 0.0) / (double)x.size();
}

// of a sample, over n - 1; 0 for fewer than two
inline double variance_of(const std::vector<double>& x) {
    if (x.size() < 2) return 0.0;
    const double mean = mean_of(x);
    double sum = 0.0;
    for (const double v : x) sum += (v - mean) * (v - mean);
    return sum / (double)(x.size() - 1);
}

// Jeffreys' interval of a proportion: `successes` of `n`, neither of them need be whole. An end is closed where all or
// none are successes.
inline Confidence proportion_interval(double successes, double n, double level = 0.95) {
    if (n <= 0.0) return {0.0, 1.0};
    const double tail = 0.5 * (1.0 - level), a = successes + 0.5, b = n - successes + 0.5;
    return {successes <= 0.0 ? 0.0 : beta_quantile(tail, a, b), successes >= n ? 1.0 : beta_quantile(1.0 - tail, a, b)};
}

// Of the mean of values in [0, 1], one for each problem. samples: completions of all problems together, the number of
// problems at least. Between 94.0 and 96.0 % of such intervals hold the true mean (docs/evaluation.md has the table).
inline Confidence mean_interval(const std::vector<double>& values, double samples, double level = 0.95) {
    const double n = (double)values.size(), mean = mean_of(values), variance = variance_of(values);
    double effective = samples;
    if (variance > 0.0) {
        const double shrink = normal_quantile(0.5 + 0.5 * level) / student_quantile(0.5 + 0.5 * level, n - 1.0);
        effective = mean * (1.0 - mean) * n / variance * shrink * shrink;
    }
    // n draws of numbers in [0, 1] tell of their mean no less than n draws of 0 and 1 do
    effective = std::max(std::min(effective, samples), n);
    return proportion_interval(mean * effective, effective, level);
}

// ---------------------------------------------------------------------------------------------------------------------
// bootstrap and sign flips

static constexpr uint64_t STATISTICS_SEED = 0x7472757374ull;  // any number, but the same one always

// the draws of one resample: whole numbers below n, n < 2^31. Their chances differ by n / 2^32 at most, relatively
struct ResampleDraws {
    uint32_t stream, resample, level, used = 0;
    Philox4 bits{};
    ResampleDraws(uint32_t stream_, int resample_, uint32_t level_)
        : stream(stream_), resample((uint32_t)resample_), level(level_) {}
    uint32_t word() {
        if (used % 4 == 0) bits = rng_bits(STATISTICS_SEED, stream, resample, used / 4, level);
        return philox_word(bits, (int)(used++ % 4));
    }
    size_t below(size_t n) { return (size_t)((uint64_t)word() * (uint64_t)n >> 32); }
};

// The means of `resamples` samples of x with replacement, ascending
inline std::vector<double> bootstrap_means(const std::vector<double>& x, int resamples) {
    std::vector<double> means;
    for (int b = 0; b < resamples; b++) {
        ResampleDraws draw(RNG_BOOTSTRAP, b, 0);
        double sum = 0.0;
        for (size_t i = 0; i < x.size(); i++) sum += x[draw.below(x.size())];
        means.push_back(sum / (double)x.size());
    }
    std::sort(means.begin(), means.end());
    return means;
}

// of ascending numbers, linear between them (numpy's default)
inline double quantile_of(const std::vector<double>& sorted, double p) {
    if (sorted.empty()) return 0.0;
    const double at = std::min(std::max(p, 0.0), 1.0) * (double)(sorted.size() - 1);
    const size_t i = (size_t)at;
    if (i + 1 >= sorted.size()) return sorted.back();
    return sorted[i] + (at - (double)i) * (sorted[i + 1] - sorted[i]);
}

inline Confidence percentile_interval(const std::vector<double>& sorted, double level = 0.95) {
    return {quantile_of(sorted, 0.5 - 0.5 * level), quantile_of(sorted, 0.5 + 0.5 * level)};
}

// Two-sided p of a mean difference of 0, if each problem's difference could as well have the other sign. Exact:
// differences as whole numbers, at most 10^9 steps of work; ok = false where it would take more.
inline double sign_flip_exact(const std::vector<int64_t>& differences, bool* ok) {
    int64_t unit = 0;
    for (const int64_t d : differences) unit = std::gcd(unit, d < 0 ? -d : d);
    *ok = true;
    if (unit == 0) return 1.0;
    std::vector<int64_t> sizes;
    int64_t total = 0, sum = 0;
    for (const int64_t d : differences) {
        if (d == 0) continue;
        sizes.push_back((d < 0 ? -d : d) / unit);
        total += sizes.back(), sum += d / unit;
    }
    if (sum == 0) return 1.0;
    // a sum of signs is at least |sum| from 0 when the negative ones add up to at most `most`, or to the mirror of it
    const int64_t most = (total - (sum < 0 ? -sum : sum)) / 2;
    *ok = (double)(most + 1) * (double)sizes.size() <= 1e9;
    if (!*ok) return 1.0;
    std::vector<double> chance((size_t)most + 1, 0.0);  // of what the negative ones add up to
    chance[0] = 1.0;
    for (const int64_t size : sizes)
        for (int64_t v = most; v >= 0; v--)
            chance[(size_t)v] = 0.5 * (chance[(size_t)v] + (v >= size ? chance[(size_t)(v - size)] : 0.0));
    return std::min(2.0 * std::accumulate(chance.begin(), chance.end(), 0.0), 1.0);
}

// the same by `flips` random flips, the observed signs counted in: never below 1 / (flips + 1)
inline double sign_flip_sampled(const std::vector<double>& differences, int flips) {
    double sum = 0.0, size = 0.0;
    for (const double d : differences) sum += d, size += std::fabs(d);
    int64_t as_far = 1;
    for (int b = 0; b < flips; b++) {
        ResampleDraws draw(RNG_SIGN_FLIP, b, 0);
        double flipped = 0.0;
        uint32_t bits = 0;
        for (size_t i = 0; i < differences.size(); i++, bits >>= 1) {
            if (i % 32 == 0) bits = draw.word();
            flipped += bits & 1 ? differences[i] : -differences[i];
        }
        as_far += std::fabs(flipped) >= std::fabs(sum) - 1e-12 * size;
    }
    return (double)as_far / (double)(flips + 1);
}

// Of problems that only one of the two has right, b and c of them; all three two-sided
struct McNemar {
    double exact = 1.0;      // sign test (McNemar 1947, with the binomial itself): what sign_flip_exact gives, too
    double mid_p = 1.0;      // half of the observed table's chance less (Fagerland et al. 2013)
    double corrected = 1.0;  // chi square with Edwards' continuity correction
};
inline McNemar mcnemar(int64_t b, int64_t c) {
    const double n = (double)(b + c), k = (double)std::min(b, c);
    if (n == 0.0) return {};
    const double log_pmf = std::lgamma(n + 1.0) - std::lgamma(k + 1.0) - std::lgamma(n - k + 1.0) - n * std::log(2.0);
    const double cdf = beta_cdf(0.5, n - k, k + 1.0);
    McNemar r;
    if (b != c) r.exact = std::min(2.0 * cdf, 1.0);
    r.mid_p = std::min(2.0 * cdf - std::exp(log_pmf), 1.0);
    const double z = std::max(std::fabs((double)(b - c)) - 1.0, 0.0) / std::sqrt(n);
    r.corrected = std::erfc(z / std::sqrt(2.0));
    return r;
}

// Tango's score (1998): b and c problems of n that only the first, only the second has right, against a difference of
// rates b/n - c/n of `delta` in [0, 1). Its variance n (2 q + delta (1 - delta)) has for q, the rate of c, the likeliest
// under that difference: the root of 2n q^2 + B q - c delta (1 - delta). So it is not 0 where b = c = 0.
inline double tango_score(double n, double b, double c, double delta) {
    const double half = 0.5 * ((2.0 * n - b + c) * delta - b - c), last = c * delta * (1.0 - delta);
    const double q = (std::sqrt(half * half + 2.0 * n * last) - half) / (2.0 * n);
    const double variance = n * (2.0 * q + delta * (1.0 - delta));
    return variance > 0.0 ? (b - c - n * delta) / std::sqrt(variance) : 0.0;
}

// Two one-sided tests of -margin < difference of rates < margin, 0 < margin < 1
inline double mcnemar_equality_p(double n, double b, double c, double margin) {
    return normal_cdf(std::max(tango_score(n, b, c, margin), tango_score(n, c, b, margin)));
}

// ---------------------------------------------------------------------------------------------------------------------
// several seeds

typedef std::vector<std::vector<double>> Runs;  // of an arm: [seed][problem], each seed with the same problems

// A mean or a difference of means, its standard error, and the degrees of freedom of that
struct Estimate {
    double value = 0.0, error = 0.0, df = 0.0;

    Confidence interval(double level = 0.95) const {
        if (error == 0.0) return {value, value};
        const double half = student_quantile(0.5 + 0.5 * level, df) * error;
        return {value - half, value + half};
    }
    // two-sided, of a value of 0
    double p() const {
        if (error == 0.0) return value == 0.0 ? 1.0 : 0.0;
        return two_sided(value / error, df);
    }
    // Two one-sided tests of -margin < value < margin (Schuirmann 1987); margin > 0, error > 0
    double equality_p(double margin) const { return student_cdf((std::fabs(value) - margin) / error, df); }
};

// a problem's mean over the seeds
inline std::vector<double> over_seeds(const Runs& runs) {
    std::vector<double> mean(runs.empty() ? 0 : runs[0].size(), 0.0);
    for (const auto& run : runs)
        for (size_t i = 0; i < mean.size(); i++) mean[i] += run[i] / (double)runs.size();
    return mean;
}

inline std::vector<double> differences_of(const Runs& a, const Runs& b) {
    std::vector<double> d = over_seeds(b), first = over_seeds(a);
    for (size_t i = 0; i < d.size(); i++) d[i] -= first[i];
    return d;
}

// s^2 of x_sp - x_s - x_p + x, with (S-1)(P-1) degrees of freedom
inline double residual_variance(const Runs& runs) {
    const std::vector<double> problem = over_seeds(runs);
    const double mean = mean_of(problem);
    double sum = 0.0;
    for (const auto& run : runs) {
        const double seed = mean_of(run);
        for (size_t i = 0; i < run.size(); i++) {
            const double r = run[i] - seed - problem[i] + mean;
            sum += r * r;
        }
    }
    const double freedom = ((double)runs.size() - 1.0) * ((double)problem.size() - 1.0);
    return freedom > 0.0 ? sum / freedom : 0.0;
}

// Of mean(b) - mean(a), problem by problem; a empty: of mean(b). An arm with one run adds nothing for its seeds: the
// error is then over problems alone, for this run.
inline Estimate seeds_estimate(const Runs& a, const Runs& b) {
    const std::vector<double> d = a.empty() ? over_seeds(b) : differences_of(a, b);
    const double problems = (double)d.size();
    Estimate e;
    e.value = mean_of(d);
    double variance = variance_of(d) / std::max(problems, 1.0), between = 0.0, between_squares = 0.0;
    double squares = variance * variance / std::max(problems - 1.0, 1.0);  // over degrees of freedom
    for (const Runs* runs : {&a, &b}) {
        if (runs->size() < 2) continue;
        const double seeds = (double)runs->size();
        std::vector<double> means;
        for (const auto& run : *runs) means.push_back(mean_of(run));
        const double part = variance_of(means) / seeds;
        between += part - residual_variance(*runs) / (seeds * problems);
        between_squares += part * part / (seeds - 1.0);
    }
    if (between > 0.0) variance += between, squares += between_squares;
    e.error = std::sqrt(variance);
    e.df = squares > 0.0 ? variance * variance / squares : INFINITY;
    return e;
}

// The same by drawing the seeds of each arm, and the problems, anew: ascending. The trap: S seeds drawn of S vary by
// (S-1) / S of what seeds vary by, so that with few seeds its percentiles hold the truth too seldom where seeds decide,
// and where they do not, drawing cells twice over makes them too wide. docs/evaluation.md has the measured shares.
inline std::vector<double> hierarchical_bootstrap(const Runs& a, const Runs& b, int resamples) {
    const size_t problems = b.empty() ? 0 : b[0].size();
    std::vector<double> means;
    for (int r = 0; r < resamples && problems > 0; r++) {
        std::vector<double> d(problems, 0.0);
        uint32_t level = 1;
        for (const Runs* runs : {&a, &b}) {
            const double sign = (runs == &a ? -1.0 : 1.0) / (double)std::max(runs->size(), (size_t)1);
            ResampleDraws draw(RNG_BOOTSTRAP, r, level++);
            for (size_t s = 0; s < runs->size(); s++) {
                const std::vector<double>& run = (*runs)[draw.below(runs->size())];
                for (size_t i = 0; i < problems; i++) d[i] += sign * run[i];
            }
        }
        ResampleDraws draw(RNG_BOOTSTRAP, r, level);
        double sum = 0.0;
        for (size_t i = 0; i < problems; i++) sum += d[draw.below(problems)];
        means.push_back(sum / (double)problems);
    }
    std::sort(means.begin(), means.end());
    return means;
}

// ---------------------------------------------------------------------------------------------------------------------
// several claims

// Holm's step-down adjustment (1979), in the order given: the largest over all smaller p of (m - rank) p, at most 1
inline std::vector<double> holm(const std::vector<double>& p) {
    std::vector<size_t> order(p.size());
    std::iota(order.begin(), order.end(), (size_t)0);
    std::stable_sort(order.begin(), order.end(), [&](size_t i, size_t j) { return p[i] < p[j]; });
    std::vector<double> adjusted(p.size());
    double largest = 0.0;
    for (size_t rank = 0; rank < order.size(); rank++) {
        largest = std::max(largest, std::min(1.0, (double)(p.size() - rank) * p[order[rank]]));
        adjusted[order[rank]] = largest;
    }
    return adjusted;
}
