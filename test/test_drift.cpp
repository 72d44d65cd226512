// Drift of a quantized model from a reference (eval/drift.cuh): a model against itself drifts by nothing, to the last bit;
// against a quantized one each number is that of a restatement in float64 from the logits of the whole vocabulary; sums
// over parts are the whole.
#include <gtest/gtest.h>
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>
#include "../eval/drift.cuh"
#include "../model/loading.cuh"
#include "test_device.h"
#include "tiny_model.h"

#if defined(TRAIN_QRL_SIMT)
static constexpr int CAPACITY = 24;
#else
static constexpr int CAPACITY = 40;
#endif

static void make_model(Model& m, const char* weights, uint64_t seed = 5, const char* activations = "none") {
    m.dev = model_device();
    model_allocate(m, tiny_config());
    model_quantize(m, rules_of(weights), false);
    model_quantize_activations(m, rules_for("activations", activations));
    for (size_t i = 0; i < m.tensors.size(); i++) {
        const ParamTensor& t = m.tensors[i];
        model_fill(m, t, [&](float* p) {
            for (int64_t k = 0; k < t.count(); k++) {
                const float x = uniform01(rng_bits(seed, RNG_INIT, (uint32_t)i, (uint32_t)k, 0).x[0]) - 0.5f;
                p[k] = t.kind == ParamKind::norm ? 1.0f + x : 0.4f * x;
            }
        });
    }
    model_refresh(m);
}

// five texts, which no micro-batch of CAPACITY tokens holds all of
static std::vector<ScoredText> texts() {
    std::vector<ScoredText> out;
    const int lengths[] = {11, 3, 24, 7, 16}, firsts[] = {1, 2, 1, 5, 9};
    for (int i = 0; i < 5; i++) {
        out.push_back({{}, firsts[i]});
        for (int k = 0; k < lengths[i]; k++)
            out[i].ids.push_back((int)(rng_bits(3, RNG_SAMPLE, (uint32_t)i, (uint32_t)k, 0).x[0] % 101));
    }
    return out;
}

struct Pair {
    Model model, reference;
    DriftMemory memory;
    explicit Pair(const char* weights, uint64_t seed = 5, const char* activations = "none") {
        make_model(model, weights, seed, activations), make_model(reference, "none");
        memory.model.model = &model, memory.reference.model = &reference;
        drift_allocate(memory, CAPACITY);
    }
};

template <class T>
static std::vector<double> host(const T* x, size_t n, Device dev) {
    std::vector<T> copy(n);
    copy_to_host(copy.data(), x, n * sizeof(T), dev);
    std::vector<double> out;
    for (const T& v : copy) out.push_back((double)(float)v);
    return out;
}

// log-probabilities of the whole vocabulary behind each token of a text, [T,V], in float64 from the last hidden states
static std::vector<std::vector<double>> log_probabilities(Model& m, const std::vector<int>& ids) {
    Activations a;
    activations_allocate(a, m, CAPACITY, ActivationMode::inference);
    Batch b;
    batch_add_sequence(b, ids.data(), (int)ids.size());
    model_forward(m, a, b);
    const int C = m.C(), V = m.V();
    const std::vector<double> h = host(a.hidden, ids.size() * C, m.dev), w = host(m.head.work, (size_t)V * C, m.dev);
    std::vector<std::vector<double>> out(ids.size(), std::vector<double>(V));
    for (size_t t = 0; t < ids.size(); t++) {
        double sum = 0.0;
        for (int v = 0; v < V; v++) {
            for (int c = 0; c < C; c++) out[t][v] += h[t * C + c] * w[(size_t)v * C + c];
            sum += std::exp(out[t][v]);
        }
        for (double& x : out[t]) x -= std::log(sum);
    }
    return out;
}

static bool largest(const std::vector<double>& x, int v) {
    return std::max_element(x.begin(), x.end()) - x.begin() == v;
}

TEST(Drift, AModelAgainstItselfDriftsByNothing) {
    Pair p("none");
    const std::vector<DriftToken> tokens = drift_tokens(p.memory, texts());
    ASSERT_EQ(tokens.size(), 10u + 1 + 23 + 2 + 7);
    for (const DriftToken& t : tokens) {
        EXPECT_EQ(t.kl, 0.0);
        EXPECT_EQ(t.log_loss, t.reference_log_loss);
        EXPECT_TRUE(t.agree);
        EXPECT_EQ(t.right, t.reference_right);
    }
    const DriftMeasure m = drift_measure(tokens);
    EXPECT_EQ(m.texts, 5);
    EXPECT_EQ(m.kl, 0.0);
    EXPECT_EQ(m.kl_error, 0.0);
    EXPECT_EQ(m.agreement, 1.0);
    EXPECT_EQ(m.lost, 0.0);
    EXPECT_EQ(m.quantiles[3], 0.0);
    const DriftLayers layers = drift_layers(p.memory, texts());
    ASSERT_EQ((int)layers.layers.size(), TINY_LAYERS + 1);
    EXPECT_EQ(layers.tokens, 11 + 3 + 24 + 7 + 16);
    for (const LayerDrift& l : layers.layers) {
        EXPECT_EQ(l.error, 0.0);
        EXPECT_EQ(l.own_error, 0.0);
        EXPECT_EQ(l.cosine, 1.0);
        EXPECT_EQ(l.own_cosine, 1.0);
    }
}

TEST(Drift, EachTokenAgreesWithFloat64) {
    for (const char* activations : {"none", "int4:token"}) {
        Pair p("int4:g16", 5, activations);
        const std::vector<DriftToken> tokens = drift_tokens(p.memory, texts());
        size_t at = 0, lost = 0;
        for (int i = 0; i < 5; i++) {
            const ScoredText t = texts()[i];
            const auto model = log_probabilities(p.model, t.ids), reference = log_probabilities(p.reference, t.ids);
            for (int k = t.first; k < (int)t.ids.size(); k++, at++) {
                ASSERT_LT(at, tokens.size());
                const DriftToken& got = tokens[at];
                const std::vector<double>&q = model[k - 1], &r = reference[k - 1];
                double kl = 0.0, entropy = 0.0;
                for (size_t v = 0; v < q.size(); v++)
                    kl += std::exp(r[v]) * (r[v] - q[v]), entropy -= std::exp(r[v]) * r[v];
                EXPECT_EQ(got.text, i);
                EXPECT_EQ(got.position, k - t.first + 1);
                EXPECT_NEAR(got.kl, kl, 1e-6);
                EXPECT_GT(kl, 1e-4) << "nothing is measured";
                EXPECT_NEAR(got.log_loss, -q[t.ids[k]], 1e-5);
                EXPECT_NEAR(got.reference_log_loss, -r[t.ids[k]], 1e-5);
                EXPECT_NEAR(got.reference_entropy, entropy, 1e-5);
                EXPECT_EQ(got.right, largest(q, t.ids[k]));
                EXPECT_EQ(got.reference_right, largest(r, t.ids[k]));
                EXPECT_EQ(got.agree, largest(q, (int)(std::max_element(r.begin(), r.end()) - r.begin())));
                lost += got.reference_right && !got.right;
            }
        }
        EXPECT_EQ(at, tokens.size());
        EXPECT_EQ(std::llround(drift_measure(tokens).lost * (double)tokens.size()), (long long)lost);
    }
}

// the reference's choices as the next tokens: all of them are its own, and some are lost
TEST(Drift, WhatTheReferenceHasRightIsLostWhereTheModelDiffers) {
    Pair p("int2:g16");
    std::vector<ScoredText> choice = {{{7, 20, 33}, 3}};
    for (int k = 3; k < 20; k++) {
        const std::vector<double> r = log_probabilities(p.reference, choice[0].ids).back();
        choice[0].ids.push_back((int)(std::max_element(r.begin(), r.end()) - r.begin()));
    }
    const DriftMeasure m = drift_measure(drift_tokens(p.memory, choice));
    EXPECT_EQ(m.tokens, 17);
    EXPECT_EQ(m.reference_right, 1.0);
    EXPECT_GT(m.lost, 0.0);
    EXPECT_NEAR(m.lost, 1.0 - m.agreement, 1e-12);
    EXPECT_NEAR(m.right, m.agreement, 1e-12);
    EXPECT_TRUE(std::isnan(m.kl_error)) << "a single text has no standard error";
}

TEST(Drift, LogLossIsThatOfTheCommandAndPartsAddUp) {
    Pair p("int4:g16");
    const std::vector<DriftToken> tokens = drift_tokens(p.memory, texts());
    const DriftMeasure m = drift_measure(tokens);
    for (const bool reference : {false, true}) {
        LogLossMemory memory;
        Model& of = reference ? p.reference : p.model;
        log_loss_allocate(memory, of, CAPACITY, CAPACITY);
        const LogLoss loss = log_loss(of, memory, texts());
        EXPECT_EQ(loss.tokens, m.tokens);
        EXPECT_NEAR(loss.mean, reference ? m.reference_log_loss : m.log_loss, 1e-6);
    }
    for (const std::vector<DriftPart>* parts : {&m.by_position, &m.by_entropy}) {
        int64_t n = 0;
        double kl = 0.0, agreement = 0.0;
        for (const DriftPart& part : *parts)
            n += part.tokens, kl += part.kl * (double)part.tokens, agreement += part.agreement * (double)part.tokens;
        EXPECT_EQ(n, m.tokens);
        EXPECT_NEAR(kl / (double)n, m.kl, 1e-12);
        EXPECT_NEAR(agreement / (double)n, m.agreement, 1e-12);
    }
    ASSERT_EQ(m.by_position.size(), 5u);  // 1, 2-3, 4-7, 8-15, 16-31
    EXPECT_EQ(m.by_position[0].tokens, 5);
    EXPECT_EQ(m.by_position[4].low, 16.0);
    EXPECT_EQ(m.by_position[4].high, 31.0);
    EXPECT_EQ(m.by_position[4].tokens, 8);
    for (size_t i = 1; i < 4; i++) EXPECT_GE(m.by_entropy[i].low, m.by_entropy[i - 1].high);
    EXPECT_LE(m.quantiles[0], m.quantiles[1]);
    EXPECT_LE(m.quantiles[1], m.quantiles[2]);
    EXPECT_LE(m.quantiles[2], m.quantiles[3]);
}

TEST(Drift, MoreBitsDriftLess) {
    double last = 1e9;
    for (const char* weights : {"int2:g16", "int4:g16", "int8:g16"}) {
        Pair p(weights);
        const double kl = drift_measure(drift_tokens(p.memory, texts())).kl;
        EXPECT_GT(kl, 0.0) << weights;
        EXPECT_LT(kl, 0.5 * last) << weights;
        last = kl;
    }
}

// residual streams [T,C] behind the embeddings and each layer, of a forward that keeps them all
static std::vector<std::vector<double>> residuals(Model& m, const std::vector<int>& ids) {
    Activations a;
    activations_allocate(a, m, CAPACITY, ActivationMode::recompute);
    Batch b;
    batch_add_sequence(b, ids.data(), (int)ids.size());
    model_forward(m, a, b);
    std::vector<std::vector<double>> out;
    for (int l = 0; l <= m.L(); l++) out.push_back(host(a.residual[l], ids.size() * (size_t)m.C(), m.dev));
    return out;
}

TEST(Drift, LayersAgreeWithAForwardThatKeepsThem) {
    Pair p("int4:g16; embed=int4:g16");
    const DriftLayers got = drift_layers(p.memory, texts());
    const int C = p.model.C();
    std::vector<double> error(TINY_LAYERS + 1), cosine(TINY_LAYERS + 1);
    for (const ScoredText& t : texts()) {
        const auto x = residuals(p.model, t.ids), y = residuals(p.reference, t.ids);
        for (size_t l = 0; l < x.size(); l++)
            for (size_t k = 0; k < t.ids.size(); k++) {
                double dd = 0.0, xx = 0.0, yy = 0.0, xy = 0.0;
                for (size_t i = k * C; i < (k + 1) * C; i++)
                    dd += std::pow(x[l][i] - y[l][i], 2.0), xx += x[l][i] * x[l][i], yy += y[l][i] * y[l][i],
                        xy += x[l][i] * y[l][i];
                error[l] += std::sqrt(dd / yy) / 61.0, cosine[l] += xy / std::sqrt(xx * yy) / 61.0;
            }
    }
    ASSERT_EQ(got.tokens, 61);
    EXPECT_TRUE(got.same_basis());
    for (size_t l = 0; l < got.layers.size(); l++) {
        EXPECT_GT(error[l], 0.01) << "nothing is measured";
        EXPECT_NEAR(got.layers[l].error, error[l], 1e-9);
        EXPECT_NEAR(got.layers[l].cosine, cosine[l], 1e-9);
        EXPECT_GT(got.layers[l].own_error, 0.0);
    }
    EXPECT_EQ(got.layers[0].own_error, got.layers[0].error);
    for (size_t l = 1; l < got.layers.size(); l++)
        EXPECT_LT(got.layers[l].own_error, got.layers[l].error) << "what came before is left out";
}

// only layer 0 is quantized: what follows adds no error of its own
TEST(Drift, ALayerInFullPrecisionHasNoErrorOfItsOwn) {
    Pair p("layers.0=int4:g16");
    const DriftLayers got = drift_layers(p.memory, texts());
    EXPECT_EQ(got.layers[0].error, 0.0);
    EXPECT_GT(got.layers[1].own_error, 0.0);
    EXPECT_EQ(got.layers[1].own_error, got.layers[1].error) << "the first layer's input is clean";
    for (size_t l = 2; l < got.layers.size(); l++) {
        EXPECT_EQ(got.layers[l].own_error, 0.0);
        EXPECT_GT(got.layers[l].error, 0.0);
    }
}

TEST(Drift, OtherShapesAndOtherBasesHaveNoLayers) {
    Pair p("none");
    Model wide;
    ModelConfig config = tiny_config();
    config.hidden_size = 96;
    wide.dev = model_device();
    model_allocate(wide, config);
    model_init_random(wide, 3);
    model_refresh(wide);
    DriftMemory memory;
    memory.model.model = &p.model, memory.reference.model = &wide;
    drift_allocate(memory, CAPACITY);
    EXPECT_TRUE(drift_layers(memory, texts()).layers.empty());
    EXPECT_GT(drift_measure(drift_tokens(memory, texts())).kl, 0.0) << "tokens need the vocabulary alone";
    Pair other("none", 77);  // independent weights: embeddings sqrt(2) apart
    EXPECT_FALSE(drift_layers(other.memory, texts()).same_basis());
}

TEST(Drift, NumbersThatOverflowAreSaid) {
    Pair p("none");
    for (const ParamTensor& t : p.model.tensors)
        if (t.kind == ParamKind::norm && t.layer < 0)
            model_fill(p.model, t, [&](float* x) { std::fill(x, x + t.count(), INFINITY); });
    model_refresh(p.model);
    std::string message;
    try {
        drift_tokens(p.memory, texts());
    } catch (const Error& e) { message = e.what(); }
    EXPECT_NE(message.find("the model gives no finite"), std::string::npos) << message;
}

TEST(Drift, QuantilesAndStandardErrors) {
    const std::vector<double> ten = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    EXPECT_EQ(nearest_rank(ten, 0.5), 5);
    EXPECT_EQ(nearest_rank(ten, 0.9), 9);
    EXPECT_EQ(nearest_rank(ten, 0.99), 10);
    EXPECT_EQ(nearest_rank(ten, 1.0), 10);
    EXPECT_EQ(nearest_rank({3}, 0.5), 3);
    // texts of one token each: the standard error of a mean; ten times the same token in a text changes nothing
    for (int repeated : {1, 10}) {
        std::vector<DriftToken> tokens;
        for (int i = 0; i < 10; i++)
            for (int k = 0; k < repeated; k++) {
                tokens.emplace_back();
                tokens.back().text = i, tokens.back().position = k + 1, tokens.back().kl = ten[i];
            }
        // variance 82.5 / 9, over 10
        EXPECT_NEAR(drift_measure(tokens).kl_error, std::sqrt(82.5 / 9.0 / 10.0), 1e-12);
    }
    EXPECT_THROW(drift_measure({}), Error);
}

TEST(Drift, FirstDifferenceOfGreedyTexts) {
    EXPECT_EQ(tokens_in_common({1, 2, 3}, {1, 2, 3}), 3);
    EXPECT_EQ(tokens_in_common({1, 2, 3}, {1, 9, 3}), 1);
    EXPECT_EQ(tokens_in_common({1, 2}, {1, 2, 3}), 2);
    EXPECT_EQ(tokens_in_common({}, {4}), 0);
    auto completions = [](const std::vector<std::vector<int>>& tokens) {
        std::vector<Completion> out(tokens.size());
        for (size_t i = 0; i < tokens.size(); i++) out[i].tokens = tokens[i];
        return out;
    };
    const DriftGreedy g =
        drift_greedy(completions({{1, 2, 3}, {1, 2}, {5}, {6, 6}}), completions({{1, 2, 3}, {1, 2, 3}, {4}, {6, 6}}),
                     {true, true, false, false}, {true, false, true, false});
    EXPECT_EQ(g.n, 4);
    EXPECT_EQ(g.identical, 2);
    EXPECT_EQ(g.common, (std::vector<int>{3, 2, 0, 2}));
    EXPECT_EQ(g.mean, 7.0 / 4);
    EXPECT_EQ(g.median, 2.0);
    EXPECT_EQ(g.both, 1);
    EXPECT_EQ(g.only_model, 1);
    EXPECT_EQ(g.only_reference, 1);
    EXPECT_EQ(g.neither, 1);
}
