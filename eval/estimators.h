// Accuracy from n samples of a problem, as it would be with k <= n of them: the exact mean over all C(n, k) subsets, so
// each is unbiased for k fresh samples (a U-statistic), and none is a simulation.
//   avg@k    the mean share of right ones; of every subset size the same number, c / n
//   pass@k   any of the k is right:  1 - C(n-c, k) / C(n, k)   (Chen et al. 2021, eq. 1)
//   maj@k    the answer with most votes is right; a tie is broken at random
//   best@k   the one with the largest reward is right; a tie is broken at random
// maj@k: let class i have m_i of the n samples and x_i of the k, t the votes of the winner, and take x_i as independent
// binomials, whose law given sum x_i = k is the subsets' for any p. Classes with m_i < t cannot reach t: together they
// are one binomial. Over the others, at most n / t, runs a table by votes and by how many have t exactly.
// The trap: a vote among k of n is not a vote among all n; maj@n of n samples has no average left and is noisy.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>
#include "../runtime/error.h"

// n samples of which c are right, and 1 <= k <= n
inline double pass_at_k(int n, int c, int k) {
    if (n - c < k) return 1.0;
    double miss = 1.0;
    for (int i = 0; i < k; i++) miss *= (double)(n - c - i) / (double)(n - i);
    return 1.0 - miss;
}

// of right [n]; 0 without samples
inline double avg_at_k(const std::vector<char>& right) {
    int64_t c = 0;
    for (const char r : right) c += r != 0;
    return right.empty() ? 0.0 : (double)c / (double)right.size();
}

inline void check_subset(const char* what, size_t n, int k) {
    if (k < 1 || (size_t)k > n) fail("%s@%d of %zu samples: there are no subsets of that size", what, k, n);
}

// ---------------------------------------------------------------------------------------------------------------------
// maj@k

// P(x of m), a binomial with chance p in (0, 1)
inline double binomial_pmf(int m, int x, double p) {
    if (x < 0 || x > m) return 0.0;
    return std::exp(std::lgamma(m + 1.0) - std::lgamma(x + 1.0) - std::lgamma(m - x + 1.0) + x * std::log(p) +
                    (m - x) * std::log1p(-p));
}

struct VoteClass {
    int members = 0;
    double right = 0.0;  // share of its members that are right: 0 or 1 unless the grader contradicts itself
};

// Of classes that may have up to t votes: by how many have t exactly and by votes, the chance, and the same times the sum
// of `right` over those that have t
struct VoteTable {
    int t, votes, ties, added = 0;      // votes, ties: the most that matter
    std::vector<double> chance, right;  // [ties + 1][votes + 1]
    std::vector<double> moved, moved_right;

    VoteTable(int t_, int votes_, int ties_) : t(t_), votes(votes_), ties(ties_) {
        chance.assign((size_t)(ties + 1) * (size_t)(votes + 1), 0.0);
        right = moved = moved_right = chance;
        chance[0] = 1.0;
    }
    size_t row(int s) const { return (size_t)s * (size_t)(votes + 1); }
    // votes when s classes have t, and the others less
    int least(int s) const { return s * t; }
    int most(int s, int classes) const {
        return (int)std::min((int64_t)votes, (int64_t)s * t + (int64_t)(classes - s) * (t - 1));
    }
    double right_at(int s, int v) const { return v < least(s) || v > most(s, added) ? 0.0 : right[row(s) + (size_t)v]; }

    // one more class; weight [t+1]: the chance of its having 0 ... t votes
    void add(const std::vector<double>& weight, double is_right) {
        for (int s = 0; s <= std::min(added + 1, ties); s++)  // what lies beyond is never read
            for (int v = least(s); v <= most(s, added + 1); v++)
                moved[row(s) + (size_t)v] = moved_right[row(s) + (size_t)v] = 0.0;
        for (int s = 0; s <= std::min(added, ties); s++) {
            const double *from = &chance[row(s)], *from_right = &right[row(s)];
            double *to = &moved[row(s)], *to_right = &moved_right[row(s)];
            for (int x = 0; x < t; x++) {
                const double w = weight[(size_t)x];
                const int end = std::min(most(s, added), votes - x);
                for (int v = least(s); v <= end; v++) to[v + x] += w * from[v];
                for (int v = least(s); v <= end; v++) to_right[v + x] += w * from_right[v];
            }
            if (s == ties) continue;
            to = &moved[row(s + 1)], to_right = &moved_right[row(s + 1)];
            const double w = weight[(size_t)t];
            for (int v = least(s); v <= std::min(most(s, added), votes - t); v++) {
                to[v + t] += w * from[v];
                to_right[v + t] += w * (from_right[v] + is_right * from[v]);
            }
        }
        chance.swap(moved), right.swap(moved_right);
        added++;
    }
};

// classes: of one member at least; samples that are in none of them have no answer and no vote
inline double majority_at_k(std::vector<VoteClass> classes, int n, int k) {
    std::sort(classes.begin(), classes.end(),
              [](const VoteClass& a, const VoteClass& b) { return a.members > b.members; });
    if (classes.empty()) return 0.0;
    const double p = (k + 0.5) / (n + 1.0);  // near k / n, and neither 0 nor 1
    double sum = 0.0;
    int idle = n;  // samples that are in no class with t members or more
    for (const VoteClass& c : classes) idle -= c.members;
    size_t count = classes.size();
    for (int t = 1; t <= std::min(k, classes[0].members); t++) {
        while (count > 0 && classes[count - 1].members < t) idle += classes[--count].members;
        VoteTable table(t, k, std::min((int)count, k / t));
        std::vector<double> weight((size_t)t + 1);
        for (size_t i = 0; i < count; i++) {
            if (i == 0 || classes[i].members != classes[i - 1].members)
                for (int x = 0; x <= t; x++) weight[(size_t)x] = binomial_pmf(classes[i].members, x, p);
            table.add(weight, classes[i].right);
        }
        for (int v = std::max(t, k - idle); v <= k; v++) {
            double won = 0.0;
            for (int ties = 1; ties <= table.ties; ties++) won += table.right_at(ties, v) / ties;
            if (won > 0.0) sum += won * binomial_pmf(idle, k - v, p);
        }
    }
    return sum / binomial_pmf(n, k, p);
}

// classes, right [n]: samples with the same class gave equal answers, -1 gave none; a subset without any answer is
// wrong. Of a class whose members are graded differently, one of those drawn counts, at random. At worst 0.1 s
// for n = 1024 (classes of two members), 0.1 ms for n = 64.
inline double maj_at_k(const std::vector<int>& classes, const std::vector<char>& right, int k) {
    check_subset("maj", classes.size(), k);
    std::map<int, std::pair<int, int>> counts;  // members, right ones
    for (size_t i = 0; i < classes.size(); i++) {
        if (classes[i] < 0) continue;
        auto& [members, good] = counts[classes[i]];
        members++, good += right[i] != 0;
    }
    std::vector<VoteClass> list;
    for (const auto& item : counts) list.push_back({item.second.first, (double)item.second.second / item.second.first});
    return majority_at_k(std::move(list), (int)classes.size(), k);
}

// ---------------------------------------------------------------------------------------------------------------------
// best-of-N

// rewards, right [n]. NaN is less than any number. P(the best lies in ranks (a, b]) = (C(b, k) - C(a, k)) / C(n, k)
inline double best_at_k(const std::vector<double>& rewards, const std::vector<char>& right, int k) {
    check_subset("best", rewards.size(), k);
    const int n = (int)rewards.size();
    std::vector<std::pair<double, char>> samples;
    for (int i = 0; i < n; i++) {
        const double reward = rewards[(size_t)i];
        samples.push_back({std::isnan(reward) ? -INFINITY : reward, right[(size_t)i]});
    }
    std::sort(samples.begin(), samples.end());
    auto within = [&](int ranks) {  // P(all k lie in the lowest `ranks`)
        double chance = 1.0;
        for (int i = 0; i < k; i++) chance *= std::max((double)(ranks - i), 0.0) / (double)(n - i);
        return chance;
    };
    double sum = 0.0;
    for (int a = 0, b = 0; a < n; a = b) {
        int good = 0;
        for (; b < n && samples[(size_t)b].first == samples[(size_t)a].first; b++)
            good += samples[(size_t)b].second != 0;
        if (good > 0) sum += (double)good / (b - a) * (within(b) - within(a));
    }
    return sum;
}
