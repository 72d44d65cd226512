// Block-wise reconstruction on a tiny model: the gradient of a module's loss, what is reported against a forward of the
// finished model, that training brings modules nearer, schedules, and what is refused.
#include <gtest/gtest.h>
#include <cmath>
#include <string>
#include <vector>
#include "../methods/ptq.cuh"
#include "test_device.h"
#include "tiny_model.h"

static float draw(uint32_t stream, uint32_t i) { return uniform01(rng_bits(3, RNG_INIT, stream, i, 0).x[0]) - 0.5f; }

static constexpr int LAYERS = 3, WINDOWS = 10, LENGTH = 24, TOKENS = WINDOWS * LENGTH;

static void tiny_model(Model& m, const char* weights, const char* where = "all", const char* activations = "none",
                       const char* kv = "none", bool tied = true) {
    m.dev = model_device();
    ModelConfig c = tiny_config(LAYERS);
    c.tie_word_embeddings = tied;
    model_allocate(m, c);
    model_init_random(m, 7);
    for (const ParamTensor& t : m.tensors)
        for (int64_t i = 0; i < t.count(); i++)
            if (t.kind == ParamKind::norm) m.master[t.offset + i] += draw((uint32_t)t.offset, (uint32_t)i);
            else m.master[t.offset + i] *= 6.0f;
    model_quantize(m, rules_of(weights, where), true);
    model_quantize_activations(m, rules_parse(activations, "activations"));
    model_quantize_kv(m, rules_parse(kv, "kv_cache"), false);
}

static const std::vector<std::vector<int>>& windows() {
    static std::vector<std::vector<int>> all;
    for (uint32_t i = 0; all.size() < WINDOWS; i++) {
        all.emplace_back(LENGTH);
        for (uint32_t j = 0; j < LENGTH; j++) all[i][j] = (int)(101.0f * (draw(70, LENGTH * i + j) + 0.5f)) % 101;
    }
    return all;
}

static std::vector<ModuleReport> run(Model& m, const std::string& ptq, int64_t micro = 60, uint64_t seed = 1) {
    PtqConfig config;
    config.seed = seed;
    const PtqPlan plan = ptq_parse(ptq, config);
    PtqMemory s;
    ptq_allocate(s, m, plan, TOKENS, LENGTH, micro);
    std::vector<ModuleReport> reports;
    ptq_run(m, s, plan, windows(),
            [&](int, const PtqLayer& r) { reports.insert(reports.end(), r.modules.begin(), r.modules.end()); });
    return reports;
}

static bool same(const Model& a, const Model& b) {
    return memcmp(a.work.data, b.work.data, a.num_params * sizeof(floatX)) == 0 &&
           memcmp(a.master.data, b.master.data, a.num_params * sizeof(float)) == 0;
}

// what each layer gives for all windows
static std::vector<std::vector<floatX>> layer_outputs(Model& m, bool quantized) {
    Batch b;
    for (const std::vector<int>& w : windows()) batch_add_sequence(b, w.data(), (int)w.size());
    Activations a;
    activations_allocate(a, m, b.T(), ActivationMode::save_all);
    model_refresh(m, quantized);
    model_forward(m, a, b, quantized ? Pass() : full_precision());
    std::vector<std::vector<floatX>> outputs;
    for (int l = 1; l <= m.L(); l++) outputs.emplace_back(a.residual[l], a.residual[l] + b.T() * m.C());
    return outputs;
}

// ---------------------------------------------------------------------------------------------------------------------
// the gradient

#if defined(PRECISION_FP32)  // which central differences need
// Of a module of two layers without quantizers, whose weights have moved since f was taken
TEST(Blockwise, GradientIsThatOfCentralDifferences) {
    Model m;
    tiny_model(m, "int8:channel", "down");  // what is not quantized is a smooth function of its masters
    model_refresh(m, false);
    Activations a;
    activations_allocate(a, m, 2 * LENGTH, ActivationMode::recompute);
    BlockwiseMemory s;
    BlockwiseConfig c;
    c.layers = 2;
    blockwise_allocate(s, c, m, TOKENS);
    s.windows = &windows(), s.length = LENGTH, s.first = 1, s.end = 3;
    rope_extend(m.rope, LENGTH, m.dev);
    for (int64_t i = 0; i < TOKENS * m.C(); i++)
        s.targets[i] = draw(90, (uint32_t)i), s.input[i] = draw(91, (uint32_t)i);
    blockwise_targets(m, a, s);
    const std::vector<int> ids = {7, 2};
    auto refresh = [&] { convert_forward(m.work.data, m.master.data, (int64_t)m.num_params, m.dev); };
    for (const ParamTensor& t : m.tensors)
        for (int64_t i = 0; t.layer > 0 && i < t.count(); i++)
            m.master[t.offset + i] += 0.1f * draw(92 + (uint32_t)t.offset, (uint32_t)i);
    refresh();
    auto loss = [&] {
        double sum = 0.0;
        blockwise_modules(m, a, s, ids, 0.3, [&](int first, int end) {
            for (int l = first; l < end; l++)
                blockwise_windows(m, s, ids, [&](int64_t at, int64_t all, int64_t n) {
                    sum += squared_error_forward(a.residual[l + 1] + at, blockwise_target(m, s, l + 1) + all, n, m.dev)
                               .loss;
                });
        });
        return sum;
    };
    model_bind_layer_gradients(m, s.grads.data, 1, 3);
    blockwise_modules(m, a, s, ids, 0.3, [&](int first, int end) { module_backward(m, a, s, first, end, ids); });
    const size_t start = layer_parameters(m, 1, 3).first;
    // along a direction of each tensor, so that a difference stands out of the rounding
    for (const ParamTensor& t : m.tensors) {
        if (t.layer < 1) continue;
        double expected = 0.0, sides[2];
        std::vector<float> w(m.master.data + t.offset, m.master.data + t.offset + t.count());
        auto along = [&](int64_t i) { return s.grads[t.offset - start + i] >= 0.0f ? 1.0f : -1.0f; };
        const float h = t.count() > 1000 ? 3e-5f : 3e-4f;
        for (int64_t i = 0; i < t.count(); i++) expected += (double)along(i) * s.grads[t.offset - start + i];
        for (int side = 0; side < 2; side++) {
            for (int64_t i = 0; i < t.count(); i++) m.master[t.offset + i] = w[i] + (side ? h : -h) * along(i);
            refresh();
            sides[side] = loss();
        }
        std::copy(w.begin(), w.end(), m.master.data + t.offset);
        refresh();
        EXPECT_GT(expected, 0.0) << t.name;
        EXPECT_NEAR((sides[1] - sides[0]) / (2.0 * (double)h), expected, 0.02 * expected) << t.name;
    }
}
#endif

TEST(Blockwise, ForcingAndRates) {
    BlockwiseConfig c;
    c.steps = 100, c.forcing = 0.5;
    EXPECT_EQ(blockwise_forcing(c, 0), 1.0);
    EXPECT_NEAR(blockwise_forcing(c, 20), 0.6, 1e-12);
    EXPECT_NEAR(blockwise_forcing(c, 49), 0.02, 1e-12);
    for (int64_t t : {50, 51, 99}) EXPECT_EQ(blockwise_forcing(c, t), 0.0);
    c.forcing = 0.0;
    EXPECT_EQ(blockwise_forcing(c, 0), 0.0);
    EXPECT_EQ(blockwise_decay(c, 0), 1.0);
    EXPECT_NEAR(blockwise_decay(c, 50), 0.525, 1e-12);
    EXPECT_NEAR(blockwise_decay(c, 100), 0.05, 1e-12);
    BlockwiseOrder order = {5, 3};
    std::vector<int> seen;
    for (int i = 0; i < 5; i++)
        for (int id : order.next(2)) seen.push_back(id);
    for (int epoch = 0; epoch < 2; epoch++) {
        std::vector<int> one(seen.begin() + 5 * epoch, seen.begin() + 5 * epoch + 5);
        std::sort(one.begin(), one.end());
        EXPECT_EQ(one, (std::vector<int>{0, 1, 2, 3, 4}));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// training

struct Case {
    const char *ptq, *weights;
    double share;  // of the error that is left at most, in each module
};
inline std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.ptq << " " << c.weights; }

class BlockwiseTraining : public testing::TestWithParam<Case> {};

TEST_P(BlockwiseTraining, ComesNearerAndLeavesAKeptGrid) {
    Model m;
    const std::string ptq = GetParam().ptq;
    const bool transformed = ptq.find("awq") == 0 || ptq.find("rotate") == 0;
    tiny_model(m, GetParam().weights, "all", "none", "none", !transformed);
    const std::vector<float> original(m.master.data, m.master.data + m.num_params);
    const std::vector<ModuleReport> reports = run(m, ptq);
    for (const ModuleReport& r : reports) {
        EXPECT_LT(r.after, GetParam().share * r.before) << "layers " << r.first << "-" << r.end;
    }
    EXPECT_EQ(reports.back().end, LAYERS);
    const std::vector<floatX> work(m.work.data, m.work.data + m.num_params);
    const std::vector<int8_t> codes(m.codes.data, m.codes.data + m.codes.size);
    for (const LinearPart* p : quantized_parts(m)) {
        EXPECT_EQ(p->quantizer.scale_mode, ScaleMode::kept);
        EXPECT_FALSE(p->learned.a || p->grad);
        for (int64_t g = 0; quant_traits(p->quantizer.spec).affine && g < p->groups; g++) {
            ASSERT_EQ(p->grid[g].scale, (float)bf16(p->grid[g].scale));
            ASSERT_EQ(p->grid[g].zero, rintf(p->grid[g].zero));
        }
    }
    model_refresh(m);
    EXPECT_EQ(memcmp(work.data(), m.work.data, work.size() * sizeof(floatX)), 0);
    EXPECT_EQ(memcmp(codes.data(), m.codes.data, codes.size()), 0);
    for (const ParamTensor& t : m.tensors) {
        const bool moved = memcmp(&original[t.offset], m.master.data + t.offset, t.count() * sizeof(float)) != 0;
        if (!transformed) { EXPECT_EQ(moved, quantizer_of(m.weight_rules, t).on()) << t.name; }
    }
}

#define RATES ":learning_rate=1e-3:scale_learning_rate=1e-3"
INSTANTIATE_TEST_SUITE_P(Schedules, BlockwiseTraining,
                         testing::Values(Case{"blockwise:steps=20" RATES, "int2:g16:asym", 0.8},
                                         Case{"rtn+blockwise:steps=20" RATES, "int3:g32:sym", 0.8},
                                         Case{"blockwise:steps=20:layers=2" RATES, "int2:g16:asym", 0.8},
                                         Case{"blockwise:steps=20:schedule=parallel" RATES, "int2:g16:asym", 0.8},
                                         Case{"gptq+blockwise:steps=20:learning_rate=1e-4:scale_learning_rate=0",
                                              "int2:g16:asym", 1.0},
                                         Case{"rotate+blockwise:steps=20" RATES, "int3:channel:sym", 0.8},
                                         Case{"awq+blockwise:steps=20" RATES, "int3:g16:asym", 0.95},
                                         Case{"blockwise:steps=20" RATES, "nf4:g16", 0.9},
                                         Case{"blockwise:steps=20" RATES, "int3:g32:sym:signedmax", 0.9}));

// f has neither Q_x nor the quantizer of the cache; f^ both, and what is trained before it
TEST(Blockwise, ErrorsAreThoseOfTheFinishedModel) {
    for (const char* schedule : {"sequential", "parallel"}) {
        Model m, plain;
        tiny_model(m, "int3:g16:asym", "all", "int4:token", "int4:token:asym");
        tiny_model(plain, "none");
        const std::vector<ModuleReport> reports =
            run(m, std::string("blockwise:layers=2:steps=8:learning_rate=1e-3:schedule=") + schedule);
        const std::vector<std::vector<floatX>> f = layer_outputs(plain, false), q = layer_outputs(m, true);
        ASSERT_EQ(reports.size(), 2u);
        for (const ModuleReport& r : reports) {
            double lost = 0.0, all = 0.0;
            for (int l = r.first; l < r.end; l++)
                for (size_t i = 0; i < f[l].size(); i++) {
                    const double d = (double)(float)q[l][i] - (double)(float)f[l][i];
                    lost += d * d, all += (double)(float)f[l][i] * (double)(float)f[l][i];
                }
            EXPECT_NEAR(r.after, lost / all, 1e-5 * lost / all) << schedule << " " << r.first;
        }
    }
}

TEST(Blockwise, SameSeedSameBitsAndWhatChangesThem) {
    auto trained = [](Model& m, const std::string& settings, uint64_t seed = 1) {
        tiny_model(m, "int2:g16:asym");
        return run(m, "blockwise:steps=6:learning_rate=1e-3" + settings, 60, seed);
    };
    Model a, again, seed, unforced, whole, parallel;
    const std::vector<ModuleReport> r = trained(a, "");
    trained(again, "");
    EXPECT_TRUE(same(a, again));
    trained(seed, "", 2);
    EXPECT_FALSE(same(a, seed));
    // nothing is before the first module that could be forced
    const std::vector<ModuleReport> u = trained(unforced, ":forcing=0");
    EXPECT_EQ(r[0].after, u[0].after);
    EXPECT_NE(r[1].after, u[1].after);
    trained(whole, ":layers=3");
    trained(parallel, ":layers=3:schedule=parallel");
    EXPECT_TRUE(same(whole, parallel));
    EXPECT_FALSE(same(whole, a));
}

TEST(Blockwise, MicroBatchesChangeRoundingAlone) {
    std::vector<double> errors;
    for (int64_t micro : {24, 1000}) {
        Model m;
        tiny_model(m, "int4:g16:sym");
        errors.push_back(run(m, "blockwise:steps=4:batch=5:layers=3", micro)[0].after);
    }
    EXPECT_NEAR(errors[0], errors[1], 0.02 * errors[0]);
}

// ---------------------------------------------------------------------------------------------------------------------
// what is refused

TEST(Blockwise, Refusals) {
    auto refuse = [](const std::string& ptq, int layers, const std::vector<std::string>& parts) {
        Model m;
        model_describe(m, tiny_config(layers));
        try {
            ptq_parse(ptq, {}).training.check(m);
            ADD_FAILURE() << "taken: " << ptq;
        } catch (const Error& e) {
            EXPECT_EQ(e.exit_code, 2);
            for (const std::string& part : parts)
                EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
        }
    };
    refuse("blockwise", 1, {"one layer", "distill"});
    refuse("gptq+blockwise:layers=4", 3, {"layers=4", "3"});
    refuse("blockwise:learning_rate=0:scale_learning_rate=0", 3, {"train nothing"});
    refuse("blockwise:steps=0", 3, {"steps=0", "[1, 1000000]"});
    refuse("blockwise:schedule=serial", 3, {"schedule=serial", "sequential, parallel"});
    refuse("blockwise:step=3", 3, {"step", "did you mean", "steps"});
    refuse("gptq:steps=3+blockwise", 3, {"gptq", "it has no settings"});
    refuse("blockwise+blockwise", 3, {"given twice"});
    Model m;
    model_describe(m, tiny_config(3));
    ptq_parse("blockwise:layers=3", {}).training.check(m);
    EXPECT_TRUE(ptq_parse("rtn+blockwise", {}).needs_calibration());
}
