// How far the sampler is from the trainer: what a step logs about its samples before their first update, under TRL's
// and verl's names.
//
//   d_t = log pi_old(t) - log pi_sampler(t),  r_t = exp(d_t),  s_i = sum of the d of completion i
//   kl = mean(-d),  k3_kl = mean(r - d - 1)       two estimates of KL(sampler || trainer); the second is never negative
//   ppl_ratio = mean_i exp(-s_i / n_i),  log_ppl_abs_diff = mean_i |s_i / n_i|
//   chi2_token = mean(r^2) - 1,  chi2_seq = mean_i(exp(2 s_i)) - 1
//   effective sample size = (sum r)^2 / (n sum r^2), a share: 1 where sampler and trainer agree
//
// verl 0.9's definitions (rollout_corr_helper.py) without its 1e-8 in the denominators. Raw: of r. Applied: of the
// weights that the policy loss takes (importance_sampling.h); verl's rollout_is_* are the applied ones', over tokens at
// either level.
//
// mean |d| by position: powers of two of the token's place, counted from 1 (1, 2-3, 4-7, ...), since contexts and with
// them the rounding errors of a cache grow with the place itself; by entropy: ten bins of equally many tokens, in
// ascending order of the trainer's entropy. They tell a sampler whose errors add up from one that is only unsure where
// the trainer is.
//
// Traps: the effective sample size of sequences is taken from logarithms. Clamped like the ratios, sums that are all
// below -20 would be equal and look perfect. Several ranks bring their rows together first: quantiles cannot be added.
#pragma once
#include <cstddef>
#include <nlohmann/json.hpp>
#include <numeric>
#include "importance_sampling.h"

struct LeastMeanMost {
    double least = std::numeric_limits<double>::infinity(), sum = 0.0, most = 0.0;
    int64_t n = 0;
    void add(double x) {
        least = std::min(least, x), most = std::max(most, x);
        sum += x;
        n++;
    }
    double mean() const { return sum / (double)n; }
};

struct Mismatch {
    int64_t tokens = 0, sequences = 0;  // that count; with none, nothing is logged
    LeastMeanMost difference;           // |d|
    LeastMeanMost raw, applied;         // ratios and weights; of sequences in a sequence mode, else of tokens
    double kl = 0.0, k3_kl = 0.0, ppl_ratio = 0.0, log_ppl_abs_diff = 0.0, chi2_token = 0.0, chi2_seq = 0.0;
    double token_sample_size = 0.0, sequence_sample_size = 0.0;  // raw
    bool corrected = false;
    double is_mean = 0.0, is_std = 0.0, is_sample_size = 0.0, masked_fraction = 0.0;  // applied
    std::vector<LeastMeanMost> by_position, by_entropy, entropy;  // the last: entropies of by_entropy's tokens
};

static constexpr int MISMATCH_ENTROPY_BINS = 10;

// of weights exp(log_weight), as a share of their number
inline double effective_sample_size(const std::vector<double>& log_weight) {
    const double most = *std::max_element(log_weight.begin(), log_weight.end());
    double sum = 0.0, squares = 0.0;
    for (double x : log_weight) {
        const double w = exp(x - most);
        sum += w;
        squares += w * w;
    }
    return sum * sum / ((double)log_weight.size() * squares);
}

inline int position_bin(size_t t) {
    int bin = 0;
    for (size_t place = t + 1; place > 1; place /= 2) bin++;
    return bin;
}

// d, entropy: [tokens]
inline void mismatch_by_entropy(Mismatch& m, const std::vector<double>& d, const std::vector<float>& entropy) {
    std::vector<size_t> order(d.size());
    std::iota(order.begin(), order.end(), (size_t)0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return entropy[a] < entropy[b]; });
    m.by_entropy.resize(MISMATCH_ENTROPY_BINS);
    m.entropy.resize(MISMATCH_ENTROPY_BINS);
    for (size_t k = 0; k < order.size(); k++) {
        const size_t bin = k * MISMATCH_ENTROPY_BINS / order.size();
        m.by_entropy[bin].add(fabs(d[order[k]]));
        m.entropy[bin].add(entropy[order[k]]);
    }
}

inline void mismatch_applied(Mismatch& m, const ImportanceSampling& c, const ImportanceWeights& w) {
    m.corrected = c.mode.corrects;
    LeastMeanMost tokens;
    double squares = 0.0, masked = 0.0;
    for (const std::vector<double>& row : w.weight) {
        if (c.mode.sequence && !row.empty()) m.applied.add(row[0]);
        for (double x : row) {
            tokens.add(x);
            squares += x * x;
            masked += c.mode.masks && x == 0.0;
        }
    }
    if (!c.mode.sequence) m.applied = tokens;
    const double n = (double)tokens.n;
    m.is_mean = tokens.mean();
    m.is_std = sqrt(std::max(squares / n - m.is_mean * m.is_mean, 0.0));
    m.is_sample_size = squares > 0.0 ? tokens.sum * tokens.sum / (n * squares) : 0.0;
    m.masked_fraction = masked / n;
}

// entropy: the trainer's, [N][n_i], or empty; w: importance_weights(c, sampler, trainer)
inline Mismatch measure_mismatch(const TokenRows& sampler, const TokenRows& trainer, const TokenRows& entropy,
                                 const ImportanceSampling& c, const ImportanceWeights& w) {
    importance_check_rows(sampler, trainer);
    if (!entropy.empty()) importance_check_rows(entropy, trainer);
    Mismatch m;
    std::vector<double> d, sums;
    std::vector<float> entropies;
    for (size_t i = 0; i < sampler.size(); i++) {
        const size_t n = sampler[i].size();
        if (n == 0) continue;
        const double sum = log_ratio_sum(sampler, trainer, i), mean = sum / (double)n, ratio = importance_ratio(sum);
        sums.push_back(sum);
        m.ppl_ratio += exp(-mean);
        m.log_ppl_abs_diff += fabs(mean);
        m.chi2_seq += ratio * ratio;
        if (c.mode.sequence) m.raw.add(ratio);
        for (size_t t = 0; t < n; t++) {
            const double x = log_ratio_at(sampler, trainer, i, t), r = importance_ratio(x);
            d.push_back(x);
            m.difference.add(fabs(x));
            m.kl -= x;
            m.k3_kl += expm1(x) - x;
            m.chi2_token += r * r;
            if (!c.mode.sequence) m.raw.add(r);
            const int bin = position_bin(t);
            if (bin >= (int)m.by_position.size()) m.by_position.resize(bin + 1);
            m.by_position[bin].add(fabs(x));
        }
        if (!entropy.empty()) entropies.insert(entropies.end(), entropy[i].begin(), entropy[i].end());
    }
    m.tokens = (int64_t)d.size(), m.sequences = (int64_t)sums.size();
    if (m.tokens == 0) return m;
    const double tokens = (double)m.tokens, sequences = (double)m.sequences;
    m.kl /= tokens, m.k3_kl /= tokens, m.chi2_token = m.chi2_token / tokens - 1.0;
    m.ppl_ratio /= sequences, m.log_ppl_abs_diff /= sequences, m.chi2_seq = m.chi2_seq / sequences - 1.0;
    m.token_sample_size = effective_sample_size(d);
    m.sequence_sample_size = effective_sample_size(sums);
    if (!entropies.empty()) mismatch_by_entropy(m, d, entropies);
    mismatch_applied(m, c, w);
    return m;
}

// ---------------------------------------------------------------------------------------------------------------------
// metrics.jsonl

inline nlohmann::ordered_json means_of(const std::vector<LeastMeanMost>& bins) {
    nlohmann::ordered_json j = nlohmann::ordered_json::array();
    for (const LeastMeanMost& b : bins) {
        if (b.n) j.push_back(b.mean());
        else j.push_back(nullptr);
    }
    return j;
}

inline void mismatch_metrics(nlohmann::ordered_json& j, const Mismatch& m) {
    if (m.tokens == 0) return;
    j["sampling/sampling_logp_difference/mean"] = m.difference.mean();
    j["sampling/sampling_logp_difference/max"] = m.difference.most;
    const auto range = [&j](const std::string& name, const LeastMeanMost& x) {
        j[name + "/min"] = x.least;
        j[name + "/mean"] = x.mean();
        j[name + "/max"] = x.most;
    };
    range("sampling/importance_sampling_ratio", m.applied);
    range("sampling/raw_importance_sampling_ratio", m.raw);
    j["sampling/raw_effective_sample_size/token"] = m.token_sample_size;
    j["sampling/raw_effective_sample_size/sequence"] = m.sequence_sample_size;
    j["rollout_corr/kl"] = m.kl;
    j["rollout_corr/k3_kl"] = m.k3_kl;
    j["rollout_corr/ppl_ratio"] = m.ppl_ratio;
    j["rollout_corr/log_ppl_abs_diff"] = m.log_ppl_abs_diff;
    j["rollout_corr/chi2_token"] = m.chi2_token;
    j["rollout_corr/chi2_seq"] = m.chi2_seq;
    if (m.corrected) {
        j["rollout_corr/rollout_is_mean"] = m.is_mean;
        j["rollout_corr/rollout_is_std"] = m.is_std;
        j["rollout_corr/rollout_is_eff_sample_size"] = m.is_sample_size;
        j["rollout_corr/rollout_rs_masked_fraction"] = m.masked_fraction;
    }
    j["sampling/logp_difference_by_position"] = means_of(m.by_position);
    if (m.by_entropy.empty()) return;
    j["sampling/logp_difference_by_entropy"] = means_of(m.by_entropy);
    j["sampling/entropy_of_bin"] = means_of(m.entropy);
}
