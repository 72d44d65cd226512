// Sampler against trainer: the weights and metrics of TRL's and verl's own code on the same numbers
// (test/make_golden_mismatch.py), what those two have not (bins, effective sample sizes, QuRL's clip) from its
// formulas, and what a run may not ask for.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include "../runtime/file_io.h"
#include "../train/adaptive_clip.h"
#include "../train/mismatch.h"

using nlohmann::json;

static const json& golden() {
    static const json j = json::parse(read_file("test/golden/mismatch.json"));
    return j;
}

static TokenRows rows(const char* name) { return golden().at(name).get<TokenRows>(); }

static ImportanceSampling sampling(const std::string& mode, double clip_min = 0.0, double clip_max = 2.0) {
    ImportanceSampling c;
    c.mode = importance_mode_named(mode);
    c.clip_min = clip_min, c.clip_max = clip_max;
    return c;
}

static nlohmann::ordered_json metrics_of(const ImportanceSampling& c, const TokenRows& sampler,
                                         const TokenRows& trainer, const TokenRows& entropy = {}) {
    nlohmann::ordered_json j;
    mismatch_metrics(j, measure_mismatch(sampler, trainer, entropy, c, importance_weights(c, sampler, trainer)));
    return j;
}

static void expect_relative(double a, double b, double tolerance, const std::string& what) {
    EXPECT_NEAR(a, b, tolerance * std::max(1.0, fabs(b))) << what;
}

static std::string usage_error(const ImportanceSampling& c, bool given, const std::string& loss = "clip",
                               bool adaptive = false, int updates = 2) {
    try {
        importance_sampling_check(c, given, loss, adaptive, updates);
    } catch (const Error& e) {
        EXPECT_EQ(e.exit_code, 2);
        return e.what();
    }
    return "";
}

// ---------------------------------------------------------------------------------------------------------------------
// golden

TEST(Mismatch, WeightsAreTrls) {
    const TokenRows sampler = rows("sampler"), trainer = rows("trainer"), current = rows("current");
    const std::vector<double> advantages = golden()["advantages"];
    int cases = 0, phis = 0;
    for (const json& x : golden()["modes"]) {
        const ImportanceSampling c = sampling(x["mode"], x["clip_min"], x["clip_max"]);
        const std::string what = x["mode"].get<std::string>() + " " + x["clip_max"].dump();
        const ImportanceWeights w = importance_weights(c, sampler, trainer);
        const std::vector<std::vector<double>> expected = x["weights"];
        ASSERT_EQ(w.weight.size(), expected.size());
        for (size_t i = 0; i < expected.size(); i++) {
            ASSERT_EQ(w.weight[i].size(), expected[i].size());
            for (size_t t = 0; t < expected[i].size(); t++)
                expect_relative(w.weight[i][t], expected[i][t], 1e-12, what);
        }
        nlohmann::ordered_json j;
        mismatch_metrics(j, measure_mismatch(sampler, trainer, {}, c, w));
        for (const auto& [key, value] : x["ratio"].items())
            expect_relative(j["sampling/importance_sampling_ratio/" + key], value, 1e-12, what + " " + key);
        if (x.contains("verl"))
            for (const auto& [key, value] : x["verl"].items())
                expect_relative(j["rollout_corr/" + key], value, 1e-7, what + " " + key);
        cases++;
        if (!x.contains("vespo_phi")) continue;
        for (size_t i = 0; i < expected.size(); i++) {  // VESPO's phi(w), with TRL's k and lambda
            double log_w = w.log_weight[i];
            for (size_t t = 0; t < trainer[i].size(); t++) log_w += (double)current[i][t] - trainer[i][t];
            log_w = std::min(std::max(log_w, log(1e-8)), 20.0);
            const double k = advantages[i] >= 0 ? 2.0 : 3.0, lambda = advantages[i] >= 0 ? 3.0 : 2.0;
            expect_relative(exp(lambda + k * log_w - lambda * exp(log_w)), x["vespo_phi"][i], 1e-12, what + " phi");
            phis++;
        }
    }
    EXPECT_EQ(cases, 12);
    EXPECT_EQ(phis, 36);
}

TEST(Mismatch, MetricsAreTrlsAndVerls) {
    const auto j = metrics_of(sampling("none"), rows("sampler"), rows("trainer"));
    expect_relative(j["sampling/sampling_logp_difference/mean"], golden()["difference"]["mean"], 1e-12, "mean");
    expect_relative(j["sampling/sampling_logp_difference/max"], golden()["difference"]["max"], 1e-12, "max");
    for (const char* key : {"kl", "k3_kl", "ppl_ratio", "log_ppl_abs_diff", "chi2_token", "chi2_seq"})
        expect_relative(j[std::string("rollout_corr/") + key], golden()["verl"][key], 1e-7, key);
}

// the loss knows log pi - log pi_old of its tokens; the helper gives the rest of the mean
TEST(Mismatch, OffPolicyMaskIsTrls) {
    const TokenRows sampler = rows("sampler"), trainer = rows("trainer"), current = rows("current");
    const std::vector<double> advantages = golden()["advantages"], d = sampler_divergence(sampler, trainer);
    int dropped = 0;
    for (const json& x : golden()["off_policy_mask"])
        for (size_t i = 0; i < d.size(); i++) {
            double moved = 0.0;
            for (size_t t = 0; t < trainer[i].size(); t++) moved += (double)current[i][t] - trainer[i][t];
            const bool keep = advantages[i] >= 0 || d[i] - moved / (double)trainer[i].size() <= x["threshold"];
            EXPECT_EQ(keep, x["keep"][i] == 1.0) << i << " at " << x["threshold"];
            dropped += !keep;
        }
    EXPECT_GT(dropped, 3);
    EXPECT_LT(dropped, 16);
}

// ---------------------------------------------------------------------------------------------------------------------
// formulas

TEST(Mismatch, WithoutOneEverythingIsExact) {
    const TokenRows x = rows("trainer");
    for (const ImportanceMode& mode : importance_modes) {
        ImportanceSampling c;
        c.mode = mode;
        const ImportanceWeights w = importance_weights(c, x, x);
        for (size_t i = 0; i < x.size(); i++) {
            EXPECT_EQ(w.log_weight[i], 0.0);
            for (double v : w.weight[i]) EXPECT_EQ(v, 1.0);
        }
        const auto j = metrics_of(c, x, x, x);
        for (const char* zero :
             {"sampling/sampling_logp_difference/max", "rollout_corr/k3_kl", "rollout_corr/chi2_seq"})
            EXPECT_EQ(j[zero], 0.0) << zero;
        EXPECT_EQ(j["sampling/raw_effective_sample_size/sequence"], 1.0);
        EXPECT_EQ(j.contains("rollout_corr/rollout_is_mean"), mode.corrects);
    }
    for (const std::vector<ClipRange>& row : clip_ranges(x, x, 0.2, 0.28, 2.0))
        for (const ClipRange& r : row) EXPECT_TRUE(r.low == 1.0 - 0.2 && r.high == 1.0 + 0.28);
}

// no correction is no weight, while the raw numbers stay what they are with one
TEST(Mismatch, RawIsApartFromApplied) {
    const TokenRows sampler = rows("sampler"), trainer = rows("trainer");
    const auto none = metrics_of(sampling("none"), sampler, trainer),
               token = metrics_of(sampling("token_truncate"), sampler, trainer),
               sequence = metrics_of(sampling("sequence_mask"), sampler, trainer);
    double sum = 0.0, most = 0.0, squares = 0.0, n = 0.0;
    for (size_t i = 0; i < sampler.size(); i++)
        for (size_t t = 0; t < sampler[i].size(); t++) {
            const double r = exp((double)trainer[i][t] - (double)sampler[i][t]);
            sum += r, squares += r * r, most = std::max(most, r), n++;
        }
    for (const auto* j : {&none, &token}) {
        expect_relative((*j)["sampling/raw_importance_sampling_ratio/mean"], sum / n, 1e-12, "mean");
        expect_relative((*j)["sampling/raw_importance_sampling_ratio/max"], most, 1e-12, "max");
        expect_relative((*j)["sampling/raw_effective_sample_size/token"], sum * sum / (n * squares), 1e-12, "size");
    }
    EXPECT_EQ(none["sampling/importance_sampling_ratio/max"], 1.0);
    EXPECT_EQ(token["sampling/importance_sampling_ratio/max"], 2.0);
    EXPECT_EQ(sequence["sampling/importance_sampling_ratio/min"], 0.0);  // masked
    EXPECT_GT(sequence["rollout_corr/rollout_rs_masked_fraction"], 0.0);
    EXPECT_EQ(token["rollout_corr/rollout_rs_masked_fraction"], 0.0);
}

TEST(Mismatch, EmptyRowsDoNotCount) {
    TokenRows sampler = rows("sampler"), trainer = rows("trainer"), entropy = rows("current");
    for (const ImportanceMode& mode : importance_modes) {
        ImportanceSampling c;
        c.mode = mode;
        TokenRows s = sampler, t = trainer, e = entropy;
        for (TokenRows* x : {&s, &t, &e}) x->insert(x->begin() + 2, std::vector<float>());
        EXPECT_EQ(metrics_of(c, s, t, e).dump(), metrics_of(c, sampler, trainer, entropy).dump());
        EXPECT_EQ(importance_weights(c, s, t).log_weight[2], 0.0);
        EXPECT_EQ(sampler_divergence(s, t)[2], 0.0);
    }
    EXPECT_TRUE(metrics_of(sampling("token_mask"), {{}, {}}, {{}, {}}, {{}, {}}).empty());
}

TEST(Mismatch, BinsOfPositionAndEntropy) {
    // |d| is the place, the entropy falls with it
    TokenRows sampler(2), trainer(2), entropy(2);
    for (int t = 0; t < 20; t++) {
        const int i = t < 5;
        const int place = (int)trainer[i].size() + 1;
        trainer[i].push_back(-1.0f);
        sampler[i].push_back(-1.0f + (t % 2 ? 1 : -1) * 0.125f * (float)place);
        entropy[i].push_back(100.0f - (float)place);
    }
    const auto j = metrics_of(sampling("none"), sampler, trainer, entropy);
    const auto mean = [](std::vector<int> places) {
        double sum = 0.0;
        for (int p : places) sum += 0.125 * p;
        return sum / (double)places.size();
    };
    const json position = {mean({1, 1}), mean({2, 3, 2, 3}), mean({4, 5, 6, 7, 4, 5}),
                           mean({8, 9, 10, 11, 12, 13, 14, 15})};
    const json by_position = j["sampling/logp_difference_by_position"];
    EXPECT_EQ(by_position, position);
    // places in descending order: 15, 14, ..., 6, then 5 5 4 4 3 3 2 2 1 1
    const json by_entropy = {mean({15, 14}), mean({13, 12}), mean({11, 10}), mean({9, 8}), mean({7, 6}),
                             mean({5, 5}),   mean({4, 4}),   mean({3, 3}),   mean({2, 2}), mean({1, 1})};
    EXPECT_EQ(json(j["sampling/logp_difference_by_entropy"]), by_entropy);
    EXPECT_EQ(j["sampling/entropy_of_bin"][0], 85.5);
    EXPECT_EQ(j["sampling/entropy_of_bin"][9], 99.0);
    // fewer tokens than bins: null, and no NaN
    const auto few = metrics_of(sampling("none"), {{-1, -2}}, {{-1.5, -2}}, {{1, 2}});
    EXPECT_EQ(few["sampling/logp_difference_by_entropy"].size(), 10u);
    EXPECT_EQ(few["sampling/logp_difference_by_entropy"][0], 0.5);
    EXPECT_TRUE(few["sampling/logp_difference_by_entropy"][9].is_null());
    EXPECT_FALSE(metrics_of(sampling("none"), sampler, trainer).contains("sampling/logp_difference_by_entropy"));
}

// sums below the clamp: two completions of which one has all the weight are one, not two equal ones
TEST(Mismatch, SampleSizeOfLongCompletions) {
    TokenRows trainer(2, std::vector<float>(100, -1.0f)), sampler = trainer;
    for (float& x : sampler[0]) x = -0.5f;   // sum of d: -50
    for (float& x : sampler[1]) x = -0.25f;  // -75
    const auto j = metrics_of(sampling("sequence_truncate"), sampler, trainer);
    EXPECT_NEAR(j["sampling/raw_effective_sample_size/sequence"], 0.5, 1e-9);
    EXPECT_NEAR(j["sampling/raw_importance_sampling_ratio/max"], exp(-20.0), 1e-15);
    for (const auto& [key, value] : j.items())
        EXPECT_TRUE(!value.is_number() || std::isfinite(value.get<double>())) << key;
    // nothing left of a batch
    const auto all = metrics_of(sampling("sequence_mask", 0.1, 2.0), sampler, trainer);
    EXPECT_EQ(all["rollout_corr/rollout_rs_masked_fraction"], 1.0);
    EXPECT_EQ(all["rollout_corr/rollout_is_eff_sample_size"], 0.0);
}

// A collapsed sampler: finite weights without an upper bound
TEST(Mismatch, RatiosAreBounded) {
    const TokenRows sampler = {{-800.0f}}, trainer = {{-0.1f}};
    const double most = std::numeric_limits<double>::infinity();
    EXPECT_EQ(importance_weights(sampling("token_mask", 0.0, most), sampler, trainer).weight[0][0], exp(20.0));
    EXPECT_EQ(importance_weights(sampling("token_mask"), sampler, trainer).weight[0][0], 0.0);
    EXPECT_EQ(importance_weights(sampling("token_truncate"), sampler, trainer).weight[0][0], 2.0);
    EXPECT_TRUE(std::isfinite(clip_ranges(sampler, trainer, 0.2, 0.2, 2.0)[0][0].high));
}

TEST(Mismatch, RowsThatDoNotMatchAreRefused) {
    EXPECT_THROW(importance_weights(sampling("none"), {{-1}}, {{-1, -2}}), Error);
    EXPECT_THROW(sampler_divergence({{-1}}, {{-1}, {-2}}), Error);
    EXPECT_THROW(metrics_of(sampling("none"), {{-1, -1}}, {{-1, -2}}, {{1}}), Error);
}

// ---------------------------------------------------------------------------------------------------------------------
// QuRL's clip

// The bound of the weighted ratio min(q, C) rho is (1 + epsilon_high) q, which is what it is without truncation
TEST(AdaptiveClip, UndoesTheTruncationsOfItsBound) {
    const double epsilon_low = 0.2, epsilon_high = 0.28, C = 2.0;
    for (double q : {0.01, 0.5, 1.0, 1.9, 2.0, 2.5, 8.0, 1e5}) {
        const ClipRange r = clip_range(q, epsilon_low, epsilon_high, C);
        EXPECT_EQ(r.low, 1.0 - epsilon_low);
        EXPECT_GE(r.high, 1.0 + epsilon_high);
        const double truncated = std::min(q, C);
        expect_relative(truncated * r.high, (1.0 + epsilon_high) * q, 1e-12, "the bound of the weighted ratio");
        EXPECT_EQ(r.high > 1.0 + epsilon_high, q > C);
    }
    EXPECT_DOUBLE_EQ(clip_range(5.0, epsilon_low, epsilon_high, C).high, 1.28 * 2.5);
}

TEST(AdaptiveClip, RangesOfEachToken) {
    const TokenRows sampler = {{-3.0f, -1.0f}, {}, {-0.5f}}, trainer = {{-1.0f, -1.5f}, {}, {-0.5f}};
    const auto r = clip_ranges(sampler, trainer, 0.1, 0.2, 2.0);
    ASSERT_EQ(r.size(), 3u);
    ASSERT_EQ(r[0].size(), 2u);
    EXPECT_TRUE(r[1].empty());
    EXPECT_DOUBLE_EQ(r[0][0].high, 1.2 * exp(2.0) / 2.0);
    EXPECT_DOUBLE_EQ(r[0][1].high, 1.2);
    EXPECT_DOUBLE_EQ(r[2][0].high, 1.2);
}

// ---------------------------------------------------------------------------------------------------------------------
// what is refused

TEST(Mismatch, WhatDoesNothingIsRefused) {
    const auto refused = [](const std::string& error, const char* part) {
        EXPECT_NE(error.find(part), std::string::npos) << error;
    };
    refused(usage_error(sampling("token_truncate", 2.5, 2.0), true), "--importance_sampling_clip_min 2.5");
    refused(usage_error(sampling("token_mask", 2.0, 2.0), true), "clip_min");
    refused(usage_error(sampling("none"), true), "--importance_sampling_mode none");
    refused(usage_error(sampling("sequence_mask"), false, "vespo"), "vespo");
    refused(usage_error(sampling("sequence_truncate"), false, "vespo"), "token_truncate");
    refused(usage_error(sampling("token_mask"), false, "clip", true), "token_truncate, not token_mask");
    refused(usage_error(sampling("none"), false, "clip", true), "not none");
    refused(usage_error(sampling("token_truncate"), false, "cispo", true), "--policy_loss clip, not cispo");
    refused(usage_error(sampling("token_truncate"), false, "clip", true, 1), "--num_iterations");
    EXPECT_EQ(usage_error(sampling("token_truncate", 0.5, 2.0), true, "vespo"), "");
    EXPECT_EQ(usage_error(sampling("sequence_mask"), true, "clip"), "");
    EXPECT_EQ(usage_error(sampling("token_truncate"), true, "clip", true, 2), "");
    EXPECT_EQ(usage_error(sampling("none"), false), "");
    EXPECT_THROW(importance_mode_named("tis"), Error);
}

TEST(Mismatch, NoteWhereNothingDiffers) {
    const ImportanceSampling c = sampling("sequence_mask"), none = sampling("none");
    EXPECT_EQ(importance_sampling_note(c, true, false, false).find("--importance_sampling_mode sequence_mask: "), 0u);
    EXPECT_EQ(importance_sampling_note(c, true, true, false).find("--importance_sampling_mode sequence_mask, --ad"),
              0u);
    EXPECT_EQ(importance_sampling_note(c, false, true, false).find("--adaptive_clip: nothing to correct"), 0u);
    EXPECT_EQ(importance_sampling_note(c, true, true, true), "");
    EXPECT_EQ(importance_sampling_note(c, false, false, false), "");
    EXPECT_EQ(importance_sampling_note(none, true, false, false), "");
}
