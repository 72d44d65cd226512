// Drift: how far a model, quantized as a rule, is from a reference, its full precision as a rule. For each scored token
// y, given what stands before it, with p_r of the reference and p of the model:
//   log-loss     -log p(y), -log p_r(y)     perplexity = exp(mean log-loss)
//   KL           sum over v of p_r(v) log(p_r(v) / p(v)), in nats: what the reference loses if the model speaks for it
//   agreement    both have the same likeliest token
//   lost         y is the reference's likeliest token and not the model's
// A text has many tokens, which depend on each other: standard errors are over texts (windows, completions), those of a
// ratio of sums (Cochran 1977, section 2.11).
// Greedy completions of both differ at some token and have nothing in common behind it: where that is, is measured, too.
// By layer: the residual stream behind it, h of the model and h_r of the reference, means over tokens of
//   |h - h_r| / |h_r|  and  h.h_r / (|h| |h_r|)     from what each model's own layers gave, and from h_r: a layer's own
//
// The trap: a model that was rotated offline (methods/rotation.cuh) has its residual stream in another basis, where the
// errors of layers mean nothing; those of its embeddings are then above 1. Probabilities are in no basis.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <string>
#include <vector>
#include "../kernels/distill_loss.cuh"
#include "../kernels/lm_head_logits.cuh"
#include "../methods/blockwise_modules.cuh"
#include "../rollout.cuh"
#include "../runtime/progress.h"
#include "../runtime/stop.h"
#include "log_loss.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// memory

// One of the two models, whose weights stay as they are
struct DriftSide {
    Model* model = nullptr;
    Activations acts;
    Buffer<floatX> hidden;  // [tokens,C] of the scored tokens; of a walk of layers, the residual stream
};

struct DriftMemory {
    DriftSide model, reference;
    Buffer<int> rows;           // [2,tokens]: rows, then targets
    Buffer<double> weight;      // [tokens] 1
    Buffer<DistillSums> token;  // [tokens]
    Buffer<floatX> own;         // [tokens,C] of a layer, from the reference's input; none where shapes differ
    LogitScratch logits;
    int64_t V() const { return std::min(model.model->V(), reference.model->V()); }
};

inline bool drift_same_shape(const Model& a, const Model& b) { return a.L() == b.L() && a.C() == b.C(); }

// s.model.model and s.reference.model are described already. tokens: of a micro-batch, which the longest text fits
inline void drift_allocate(DriftMemory& s, int64_t tokens) {
    const char* hint = "lower --micro_batch_tokens";
    const Device dev = s.model.model->dev;
    for (DriftSide* side : {&s.model, &s.reference}) {
        const bool reference = side == &s.reference;
        activations_allocate(side->acts, *side->model, tokens, ActivationMode::inference,
                             reference ? "the reference's activations" : "activations", hint);
        side->hidden.allocate(tokens * side->model->C(), "hidden states of the scored tokens", hint, dev);
    }
    s.rows.allocate(2 * tokens, "scored tokens", hint, dev);
    s.weight.allocate(tokens, "scored tokens", hint, dev);
    s.token.allocate(tokens, "scored tokens", hint, dev);
    if (drift_same_shape(*s.model.model, *s.reference.model))
        s.own.allocate(tokens * s.model.model->C(), "a layer's output", hint, dev);
    logit_scratch_allocate(s.logits, tokens, s.V(), true, false, dev);
}

// ---------------------------------------------------------------------------------------------------------------------
// tokens

struct DriftToken {
    int text = 0;      // number of its text
    int position = 1;  // among the scored tokens of its text, from 1
    double kl = 0.0, log_loss = 0.0, reference_log_loss = 0.0, reference_entropy = 0.0;
    bool agree = false, right = false, reference_right = false;
};

// The tokens of one micro-batch, behind the forwards of both models; where: of each, its text and position
inline void drift_batch(DriftMemory& s, const Batch& b, const ScoredTokens& scored, std::vector<DriftToken> where,
                        std::vector<DriftToken>& out) {
    const int64_t R = scored.size();
    const Device dev = s.model.model->dev;
    std::vector<int> both = scored.rows;
    both.insert(both.end(), scored.targets.begin(), scored.targets.end());
    copy_to_device(s.rows.data, both.data(), both.size() * sizeof(int), dev);
    for (DriftSide* side : {&s.model, &s.reference}) {
        model_forward(*side->model, side->acts, b);
        gather_rows(side->hidden.data, side->acts.hidden, s.rows.data, R, side->model->C(), dev);
    }
    const Model &m = *s.model.model, &r = *s.reference.model;
    LogitInputs in{s.model.hidden.data, m.head.work, R, m.C(), s.V()};
    in.teacher = {s.reference.hidden.data, r.head.work, r.C()};
    const DistillTokens tokens{s.weight.data, s.rows.data + R};
    lm_head_logits(nullptr, nullptr, in, s.logits, dev, [&](const LogitBlock& block) {
        distill_tokens(s.token.data + block.row0, block, tokens, DistillConfig(), dev);
    });
    std::vector<DistillSums> got(R);
    copy_to_host(got.data(), s.token.data, R * sizeof(DistillSums), dev);
    for (int64_t i = 0; i < R; i++) {
        DriftToken& t = where[i];
        if (!std::isfinite(got[i].divergence))
            fail("drift: token %d of text %d: %s gives no finite probabilities; its weights or activations overflow",
                 t.position, t.text + 1, std::isfinite(got[i].teacher_cross_entropy) ? "the model" : "the reference");
        t.kl = std::max(got[i].divergence, 0.0);  // below 0 it can be by rounding alone
        t.log_loss = got[i].cross_entropy, t.reference_log_loss = got[i].teacher_cross_entropy;
        t.reference_entropy = got[i].teacher_entropy;
        t.agree = got[i].agree > 0.0, t.right = got[i].right > 0.0, t.reference_right = got[i].teacher_right > 0.0;
        out.push_back(t);
    }
}

// The scored tokens of all texts, in order; fewer after a signal. Working weights of both are quantized, where they are
inline std::vector<DriftToken> drift_tokens(DriftMemory& s, const std::vector<ScoredText>& texts) {
    std::vector<DriftToken> out;
    const std::vector<double> ones(s.weight.size, 1.0);
    copy_to_device(s.weight.data, ones.data(), ones.size() * sizeof(double), s.model.model->dev);
    Progress line("comparing", "text", (int64_t)texts.size());
    for (size_t i = 0; i < texts.size() && !stop_requested();) {
        Batch b;
        ScoredTokens scored;
        std::vector<DriftToken> where;
        for (; i < texts.size() && (b.T() == 0 || b.T() + (int64_t)texts[i].ids.size() <= s.model.acts.capacity); i++) {
            batch_add_sequence(b, texts[i].ids.data(), (int)texts[i].ids.size());
            const int64_t before = scored.size();
            score_last_sequence(scored, b, texts[i].first);
            for (int64_t k = before; k < scored.size(); k++) {
                where.emplace_back();
                where.back().text = (int)i, where.back().position = (int)(k - before) + 1;
            }
        }
        if (scored.size() > 0) drift_batch(s, b, scored, where, out);
        line.to((int64_t)i);
    }
    return out;
}

// ---------------------------------------------------------------------------------------------------------------------
// what they say

// of some of the tokens, between two bounds of what they were chosen by
struct DriftPart {
    double low = 0.0, high = 0.0;
    int64_t tokens = 0;
    double kl = 0.0, agreement = 0.0;
};

struct DriftMeasure {
    int64_t tokens = 0, texts = 0;
    double log_loss = 0.0, reference_log_loss = 0.0, log_loss_difference_error = 0.0;
    double kl = 0.0, kl_error = 0.0;
    std::array<double, 4> quantiles = {};  // of KL: median, 90 %, 99 %, largest
    double agreement = 0.0, agreement_error = 0.0;
    double right = 0.0, reference_right = 0.0, lost = 0.0;  // shares of the tokens
    std::vector<DriftPart> by_position;                     // [2^k, 2^(k+1) - 1]
    std::vector<DriftPart> by_entropy;                      // quartiles of the reference's entropy
};
static constexpr double drift_quantiles[] = {0.5, 0.9, 0.99, 1.0};

// the smallest of sorted values that a share q of them do not exceed
inline double nearest_rank(const std::vector<double>& sorted, double q) {
    if (sorted.empty()) return 0.0;
    const double rank = std::ceil(q * (double)sorted.size());
    return sorted[(size_t)std::max(rank - 1.0, 0.0)];
}

// Standard error of the mean of value over tokens, whose texts are independent; NaN for a single text
template <class Value>
double drift_error(const std::vector<DriftToken>& tokens, const Value& value) {
    std::map<int, std::pair<double, double>> texts;  // sum, tokens
    double sum = 0.0;
    for (const DriftToken& t : tokens) texts[t.text].first += value(t), texts[t.text].second += 1.0, sum += value(t);
    const double n = (double)texts.size(), N = (double)tokens.size(), mean = sum / N;
    if (n < 2.0) return NAN;
    double squares = 0.0;
    for (const auto& [number, t] : texts) squares += std::pow(t.first - mean * t.second, 2.0);
    return std::sqrt(squares * n / (n - 1.0)) / N;
}

inline void drift_part_add(DriftPart& p, const DriftToken& t) {
    p.tokens++;
    p.kl += t.kl, p.agreement += t.agree;
}
inline void drift_part_means(std::vector<DriftPart>& parts) {
    for (DriftPart& p : parts) p.kl /= std::max<double>(p.tokens, 1), p.agreement /= std::max<double>(p.tokens, 1);
}

inline std::vector<DriftPart> drift_by_position(const std::vector<DriftToken>& tokens) {
    std::vector<DriftPart> parts;
    for (const DriftToken& t : tokens) {
        size_t k = 0;
        while (t.position >> (k + 1)) k++;
        if (parts.size() <= k) parts.resize(k + 1);
        drift_part_add(parts[k], t);
    }
    for (size_t k = 0; k < parts.size(); k++)
        parts[k].low = std::ldexp(1.0, (int)k), parts[k].high = std::ldexp(1.0, (int)k + 1) - 1.0;
    drift_part_means(parts);
    return parts;
}

inline std::vector<DriftPart> drift_by_entropy(std::vector<DriftToken> tokens) {
    std::stable_sort(tokens.begin(), tokens.end(), [](const DriftToken& a, const DriftToken& b) {
        return a.reference_entropy < b.reference_entropy;
    });
    std::vector<DriftPart> parts(4);
    for (size_t i = 0; i < tokens.size(); i++) {
        DriftPart& p = parts[i * 4 / tokens.size()];
        if (p.tokens == 0) p.low = tokens[i].reference_entropy;
        p.high = tokens[i].reference_entropy;
        drift_part_add(p, tokens[i]);
    }
    drift_part_means(parts);
    return parts;
}

// Fails where no token was scored
inline DriftMeasure drift_measure(const std::vector<DriftToken>& tokens) {
    if (tokens.empty()) fail("drift: no token is scored; bring texts of two tokens at least");
    DriftMeasure m;
    std::vector<double> kl;
    for (const DriftToken& t : tokens) {
        if (m.tokens == 0 || t.text != tokens[m.tokens - 1].text) m.texts++;
        m.tokens++;
        m.log_loss += t.log_loss, m.reference_log_loss += t.reference_log_loss, m.kl += t.kl;
        m.agreement += t.agree, m.right += t.right, m.reference_right += t.reference_right;
        m.lost += t.reference_right && !t.right;
        kl.push_back(t.kl);
    }
    for (double* sum : {&m.log_loss, &m.reference_log_loss, &m.kl, &m.agreement, &m.right, &m.reference_right, &m.lost})
        *sum /= (double)m.tokens;
    m.kl_error = drift_error(tokens, [](const DriftToken& t) { return t.kl; });
    m.agreement_error = drift_error(tokens, [](const DriftToken& t) { return t.agree ? 1.0 : 0.0; });
    m.log_loss_difference_error =
        drift_error(tokens, [](const DriftToken& t) { return t.log_loss - t.reference_log_loss; });
    std::sort(kl.begin(), kl.end());
    for (size_t i = 0; i < m.quantiles.size(); i++) m.quantiles[i] = nearest_rank(kl, drift_quantiles[i]);
    m.by_position = drift_by_position(tokens);
    m.by_entropy = drift_by_entropy(tokens);
    return m;
}

// ---------------------------------------------------------------------------------------------------------------------
// greedy completions

// How the texts of both go apart. Tokens in common: before the first difference, or all of a completion that is the same
struct DriftGreedy {
    int n = 0, identical = 0;
    double mean = 0.0, median = 0.0;                                // tokens in common
    int both = 0, only_reference = 0, only_model = 0, neither = 0;  // have it right
    std::vector<int> common;                                        // [n]
};

// tokens before the first difference of a and b
inline int tokens_in_common(const std::vector<int>& a, const std::vector<int>& b) {
    size_t i = 0;
    while (i < a.size() && i < b.size() && a[i] == b[i]) i++;
    return (int)i;
}

// Completions of the same problems in the same order, [n] each; right: of each, whether its answer is
inline DriftGreedy drift_greedy(const std::vector<Completion>& model, const std::vector<Completion>& reference,
                                const std::vector<bool>& right, const std::vector<bool>& reference_right) {
    DriftGreedy g;
    std::vector<double> sorted;
    for (size_t i = 0; i < model.size(); i++) {
        g.common.push_back(tokens_in_common(model[i].tokens, reference[i].tokens));
        g.identical += model[i].tokens == reference[i].tokens;
        g.mean += g.common.back();
        sorted.push_back(g.common.back());
        (right[i] ? reference_right[i] ? g.both : g.only_model : reference_right[i] ? g.only_reference : g.neither)++;
    }
    g.n = (int)model.size();
    g.mean /= std::max(g.n, 1);
    std::sort(sorted.begin(), sorted.end());
    g.median = nearest_rank(sorted, 0.5);
    return g;
}

// ---------------------------------------------------------------------------------------------------------------------
// layers

struct LayerDrift {
    double error = 0.0, cosine = 0.0;          // behind this layer and all before it
    double own_error = 0.0, own_cosine = 0.0;  // of this layer alone, from the reference's input
};
struct DriftLayers {
    int64_t tokens = 0;
    std::vector<LayerDrift> layers;  // [L+1]: the embeddings first
    bool same_basis() const { return layers.empty() || layers[0].error < 1.0; }
};
// enough for three digits of a mean
static constexpr int64_t DRIFT_LAYER_TOKENS = 8192;

// error += |x - y| / |y|, cosine += x.y / (|x| |y|) of each row; x, y [T,C], where y is 0 the error counts |x| > 0 as 1
inline void add_row_errors(double* error, double* cosine, const std::vector<floatX>& x, const std::vector<floatX>& y,
                           int64_t T, int64_t C) {
    double sum = 0.0, cosines = 0.0;
#pragma omp parallel for schedule(static) reduction(+ : sum, cosines) if (worth_threads(T * C))
    for (int64_t t = 0; t < T; t++) {
        double dd = 0.0, xx = 0.0, yy = 0.0, xy = 0.0;
        for (int64_t i = t * C; i < (t + 1) * C; i++) {
            const double a = (float)x[i], b = (float)y[i];
            dd += (a - b) * (a - b), xx += a * a, yy += b * b, xy += a * b;
        }
        sum += yy > 0.0 ? std::sqrt(dd / yy) : xx > 0.0 ? 1.0 : 0.0;
        cosines += dd == 0.0 ? 1.0 : xx > 0.0 && yy > 0.0 ? xy / std::sqrt(xx * yy) : 0.0;
    }
    *error += sum, *cosine += cosines;
}

// One model's layer over the batch in side.acts.view: in [T,C] to out [T,C], which may be in
inline void drift_layer(DriftSide& side, int l, const floatX* in, floatX* out) {
    Activations& a = side.acts;
    layer_from(*side.model, a, l, in);
    layer_output(*side.model, a, l, out, a.hidden, a.hidden_rstd, side.model->norm.work);
}

// both models over a micro-batch, layer by layer; sums are added to r
inline void drift_walk(DriftMemory& s, const Batch& b, DriftLayers& r) {
    const Device dev = s.model.model->dev;
    const int64_t T = b.T(), C = s.model.model->C();
    std::vector<floatX> x(T * C), y(T * C);
    int last = 0;
    for (int p : b.positions) last = std::max(last, p);
    for (DriftSide* side : {&s.model, &s.reference}) {
        check_pass(*side->model, Pass());
        rope_extend(side->model->rope, last + 1, dev);
        side->acts.view = batch_view(side->acts.batch, b, dev);
        side->acts.pass = Pass();
        embedding_forward(side->hidden.data, side->acts.view.tokens, side->model->embed.work, T, (int)C, dev);
    }
    auto compare = [&](double* error, double* cosine, const floatX* h) {
        copy_to_host(x.data(), h, x.size() * sizeof(floatX), dev);
        add_row_errors(error, cosine, x, y, T, C);
    };
    for (size_t l = 0; l < r.layers.size(); l++) {
        if (l > 0) {
            drift_layer(s.model, (int)l - 1, s.reference.hidden.data, s.own.data);
            drift_layer(s.model, (int)l - 1, s.model.hidden.data, s.model.hidden.data);
            drift_layer(s.reference, (int)l - 1, s.reference.hidden.data, s.reference.hidden.data);
        }
        copy_to_host(y.data(), s.reference.hidden.data, y.size() * sizeof(floatX), dev);
        LayerDrift& d = r.layers[l];
        compare(&d.error, &d.cosine, s.model.hidden.data);
        compare(&d.own_error, &d.own_cosine, l > 0 ? s.own.data : s.model.hidden.data);
    }
    r.tokens += T;
}

// Over the first texts, some DRIFT_LAYER_TOKENS tokens; none where the models are not of one shape, or after a signal
inline DriftLayers drift_layers(DriftMemory& s, const std::vector<ScoredText>& texts) {
    DriftLayers r;
    if (!drift_same_shape(*s.model.model, *s.reference.model)) return r;
    r.layers.resize(s.model.model->L() + 1);
    Progress line("comparing layers", "token", 0);
    for (size_t i = 0; i < texts.size() && r.tokens < DRIFT_LAYER_TOKENS && !stop_requested();) {
        Batch b;
        for (; i < texts.size() && (b.T() == 0 || b.T() + (int64_t)texts[i].ids.size() <= s.model.acts.capacity); i++)
            batch_add_sequence(b, texts[i].ids.data(), (int)texts[i].ids.size());
        drift_walk(s, b, r);
        line.to(r.tokens);
    }
    for (LayerDrift& l : r.layers)
        for (double* sum : {&l.error, &l.cosine, &l.own_error, &l.own_cosine}) *sum /= std::max<double>(r.tokens, 1);
    return r;
}
