// From the answers of an evaluation to its numbers, by set, by subject, by level, by length and by form of answer.
//   greedy, pass@1     mean over problems of what is right: of the greedy completion, and of the share of sampled ones (avg@n)
//   pass@k, maj@k      a right one among k samples; the vote of k samples is right (eval/estimators.h, both unbiased)
//   best@k             the sample of the highest reward among k is right
// each strict, and lenient (eval/evaluate.cuh). Intervals are 95 % over problems (eval/statistics.h).
//
// The trap: samples of a problem are not independent of one another, so n problems with 8 samples each are n
// observations, and not 8 n.
#pragma once
#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>
#include "estimators.h"
#include "evaluate.cuh"
#include "statistics.h"

struct MeanEstimate {
    double mean = 0.0, standard_error = 0.0, low = 0.0, high = 0.0;  // 95 %
};

// of one value a problem, over `samples` completions in all. Values that are shares, in [0, 1], have the interval of
// shares; others Student's
inline MeanEstimate mean_estimate(const std::vector<double>& values, double samples) {
    const bool shares = std::all_of(values.begin(), values.end(), [](double v) { return v >= 0.0 && v <= 1.0; });
    MeanEstimate m;
    if (values.empty()) return m;
    const double n = (double)values.size();
    m.mean = mean_of(values);
    m.standard_error = std::sqrt(variance_of(values) / n);
    Confidence c{m.mean, m.mean};
    if (shares) c = mean_interval(values, samples);
    else if (values.size() > 1) c = Estimate{m.mean, m.standard_error, n - 1}.interval();
    m.low = c.low, m.high = c.high;
    return m;
}

struct EvalAt {
    int k = 1;
    double pass = 0.0, majority = 0.0, best = 0.0;  // best: only where completions have rewards
    double pass_lenient = 0.0, majority_lenient = 0.0;
};

struct EvalGroup {
    std::string by, name;     // "subject", "algebra"
    int problems = 0;         // by length and by form: completions
    double share = 0.0;       // of all problems or completions
    MeanEstimate right = {};  // strict, of sampled completions if there are any, else of greedy ones
};

struct EvalScores {
    int problems = 0, samples = 0;  // of sampled completions if there are any, else of greedy ones
    int greedy_problems = 0;
    MeanEstimate greedy, greedy_lenient, pass1, pass1_lenient, reward;
    std::vector<std::pair<std::string, MeanEstimate>> rewards;
    bool best = false;          // does a reward choose that does not read the gold answer?
    std::vector<EvalAt> at;     // k = 2, 4, ... and the number of samples
    double disagreement = 0.0;  // share of completions that strict and lenient judge differently
    double mean_length = 0.0, clipped_ratio = 0.0, garbled_ratio = 0.0, repeating_ratio = 0.0;
    std::vector<EvalGroup> groups;
};

// [first, last) of each problem in samples that are sorted by it
inline std::vector<std::pair<size_t, size_t>> problem_spans(const std::vector<EvalSample>& samples) {
    std::vector<std::pair<size_t, size_t>> spans;
    for (size_t i = 0; i < samples.size();) {
        size_t e = i;
        while (e < samples.size() && samples[e].problem == samples[i].problem) e++;
        spans.push_back({i, e});
        i = e;
    }
    return spans;
}

// mean over problems of the mean over a problem's completions; those for which value is NaN do not count
template <class Value>
MeanEstimate mean_over_problems(const std::vector<EvalSample>& samples, Value value) {
    std::vector<double> means;
    for (auto [b, e] : problem_spans(samples)) {
        double sum = 0.0;
        int n = 0;
        for (size_t i = b; i < e; i++) {
            const double v = value(samples[i]);
            if (std::isnan(v)) continue;
            sum += v;
            n++;
        }
        if (n) means.push_back(sum / n);
    }
    return mean_estimate(means, (double)samples.size());
}

// 2, 4, 8, ... below n, and n
inline std::vector<int> sample_counts(int n) {
    std::vector<int> ks;
    for (int k = 2; k < n; k *= 2) ks.push_back(k);
    if (n > 1) ks.push_back(n);
    return ks;
}

inline void score_at(EvalScores& s, const std::vector<EvalSample>& samples) {
    for (int k : sample_counts(s.samples)) s.at.push_back({k});
    const auto spans = problem_spans(samples);
    for (auto [b, e] : spans) {
        const int n = (int)(e - b);
        std::vector<double> reward;
        for (size_t i = b; i < e; i++) reward.push_back(samples[i].reward);
        for (bool lenient : {false, true}) {
            std::vector<char> right;
            int c = 0;
            for (size_t i = b; i < e; i++) {
                right.push_back(lenient ? samples[i].lenient : samples[i].strict);
                c += right.back();
            }
            std::vector<int> classes;
            if (lenient) classes = answer_classes(&samples[b], n, true);
            else
                for (size_t i = b; i < e; i++) classes.push_back(samples[i].vote);
            for (EvalAt& at : s.at) {
                (lenient ? at.pass_lenient : at.pass) += pass_at_k(n, c, at.k) / (double)spans.size();
                (lenient ? at.majority_lenient : at.majority) += maj_at_k(classes, right, at.k) / (double)spans.size();
                if (!lenient) at.best += best_at_k(reward, right, at.k) / (double)spans.size();
            }
        }
    }
}

// completions by a name of each
template <class Name>
void group_by(EvalScores& s, const char* by, const std::vector<EvalSample>& samples, bool of_problems, Name name) {
    std::map<std::string, std::vector<EvalSample>> parts;
    std::map<std::string, std::set<int>> problems;
    std::vector<std::string> order;
    for (const EvalSample& x : samples) {
        const std::string part = name(x);
        if (part.empty()) continue;
        if (!parts.count(part)) order.push_back(part);
        EvalSample brief;  // without its texts
        brief.problem = x.problem, brief.strict = x.strict;
        parts[part].push_back(std::move(brief));
        problems[part].insert(x.problem);
    }
    if (of_problems) std::sort(order.begin(), order.end());
    for (const std::string& part : order) {
        EvalGroup g{by, part, of_problems ? (int)problems[part].size() : (int)parts[part].size()};
        g.share = (double)parts[part].size() / (double)samples.size();
        g.right = mean_over_problems(parts[part], [](const EvalSample& x) { return (double)x.strict; });
        s.groups.push_back(g);
    }
}

// by quarters of the completions' lengths
inline void group_by_length(EvalScores& s, const std::vector<EvalSample>& samples) {
    std::vector<int> lengths;
    for (const EvalSample& x : samples) lengths.push_back(x.length);
    std::sort(lengths.begin(), lengths.end());
    if (lengths.empty() || lengths.front() == lengths.back()) return;
    std::vector<int> ends;  // the largest length of each quarter
    for (int q = 1; q <= 4; q++) {
        const int end = lengths[lengths.size() * q / 4 - (q == 4 || lengths.size() * q / 4 > 0)];
        if (ends.empty() || end > ends.back()) ends.push_back(end);
    }
    if (ends.size() < 2) return;  // most were cut off at one length
    std::vector<std::string> names;
    for (size_t q = 0; q < ends.size(); q++)
        names.push_back(format("%d-%d", q ? ends[q - 1] + 1 : lengths.front(), ends[q]));
    for (size_t q = 0; q < ends.size(); q++)
        group_by(s, "length", samples, false, [&](const EvalSample& x) {
            const bool here = x.length <= ends[q] && (q == 0 || x.length > ends[q - 1]);
            return here ? names[q] : std::string();
        });
}

inline void score_groups(EvalScores& s, const std::vector<EvalSample>& samples, const std::vector<Prompt>& prompts) {
    auto of_problem = [&](std::string Problem::*field) {
        return [&prompts, field](const EvalSample& x) {
            const std::shared_ptr<const Problem>& p = prompts[x.problem].problem;
            return p ? (*p).*field : std::string();
        };
    };
    group_by(s, "subject", samples, true, of_problem(&Problem::subject));
    group_by(s, "level", samples, true, of_problem(&Problem::level));
    group_by_length(s, samples);
    for (int f = ANSWER_FORMATS; f-- > 0;)
        group_by(s, "format", samples, false,
                 [f](const EvalSample& x) { return (int)x.format == f ? answer_format_names[f] : ""; });
}

// rewards: what the samples were paid by
inline EvalScores eval_scores(const EvalAnswers& a, const std::vector<Prompt>& prompts, const RewardSet& rewards = {}) {
    EvalScores s;
    for (const RewardEntry& entry : rewards.entries) s.best = s.best || !(entry.traits & REWARD_GOLD);
    auto strict = [](const EvalSample& x) { return (double)x.strict; };
    auto lenient = [](const EvalSample& x) { return (double)x.lenient; };
    s.greedy_problems = (int)problem_spans(a.greedy).size();
    s.greedy = mean_over_problems(a.greedy, strict);
    s.greedy_lenient = mean_over_problems(a.greedy, lenient);
    const std::vector<EvalSample>& samples = a.sampled.empty() ? a.greedy : a.sampled;
    const auto spans = problem_spans(samples);
    s.problems = (int)spans.size();
    if (samples.empty()) return s;
    if (!a.sampled.empty()) {
        s.samples = (int)(spans[0].second - spans[0].first);
        s.pass1 = mean_over_problems(a.sampled, strict);
        s.pass1_lenient = mean_over_problems(a.sampled, lenient);
        score_at(s, a.sampled);
    }
    for (size_t f = 0; f < rewards.entries.size(); f++)
        s.rewards.push_back({rewards.entries[f].name,
                             mean_over_problems(samples, [f](const EvalSample& x) { return (double)x.rewards[f]; })});
    if (!rewards.entries.empty())
        s.reward = mean_over_problems(samples, [](const EvalSample& x) { return (double)x.reward; });
    const double n = (double)samples.size();
    for (const EvalSample& x : samples) {
        s.mean_length += x.length;
        s.clipped_ratio += !x.finished;
        s.garbled_ratio += x.garbled;
        s.repeating_ratio += x.repeating;
        s.disagreement += x.strict != x.lenient;
    }
    for (double* share : {&s.mean_length, &s.clipped_ratio, &s.garbled_ratio, &s.repeating_ratio, &s.disagreement})
        *share /= n;
    score_groups(s, samples, prompts);
    return s;
}
