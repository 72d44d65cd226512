// A sampler that differs from the trainer on purpose (train/sampler.cuh): that its tokens and log-probabilities are those
// of a model quantized by the ordinary route, to the bit; when stale weights are taken, and that they are resumed; the
// noise on its norms; and invariant scaling (methods/invariant_scaling.cuh), which is there for such a sampler.
#include <gtest/gtest.h>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>
#include "../formats/checkpoint.h"
#include "../grpo.cuh"
#include "test_device.h"
#include "tiny_model.h"

#if defined(TRAIN_QRL_SIMT)
static constexpr bool SIMULATED = true;
#else
static constexpr bool SIMULATED = false;
#endif
static constexpr int COMPLETION = SIMULATED ? 4 : 12, G = SIMULATED ? 2 : 4, POSITIONS = 64;

// How a model is quantized
struct Made {
    std::string weights = "none", activations = "none", kv = "none", hadamard = "none";
    ScaleMode mode = ScaleMode::dynamic;
    bool codes = true;  // generates from packed codes, on the CPU too
    bool hooked = false, inside = false;
    bool qwen2 = false, pre_bias = false;  // a bias of q,k,v; keys quantized before it
};

// masters that depend on `round`, as if so many steps had been done
static void fill(Model& m, int round = 0) {
    for (size_t i = 0; i < m.tensors.size(); i++) {
        const ParamTensor& t = m.tensors[i];
        model_fill(m, t, [&](float* p) {
            for (int64_t k = 0; k < t.count(); k++) {
                const Philox4 r = rng_bits(8, RNG_INIT, (uint32_t)i, (uint32_t)k, 0);
                const float x = uniform01(r.x[0]) - 0.5f + 0.03f * (float)round * (uniform01(r.x[1]) - 0.5f);
                p[k] = t.kind == ParamKind::norm ? 1.0f + x : (t.kind == ParamKind::linear ? 0.4f : 0.3f) * x;
            }
        });
    }
}

static void fill_adapter(Model& m, int round = 0) {
    for (const LoraTensor& t : m.lora.tensors)
        for (int64_t k = 0; k < t.rows * m.lora.config.r; k++)
            m.lora.master[t.b + k] = (0.2f + 0.05f * (float)round) *
                                     (uniform01(rng_bits(9, RNG_INIT, 0, (uint32_t)(t.b + k), 0).x[0]) - 0.5f);
}

static void make(Model& m, const Made& how) {
    m.dev = model_device();
    ModelConfig config = tiny_config(SIMULATED ? 1 : 2);
    if (how.qwen2) config.model_type = "qwen2", config.qk_norm = false, config.qkv_bias = true;
    model_allocate(m, config);
    if (how.codes) m.codes_beyond = 0;
    model_quantize(m, rules_of(how.weights, "all", how.mode), false);
    model_quantize_activations(m, rules_for("activations", how.activations));
    model_quantize_kv(m, rules_for("kv_cache", how.kv), how.pre_bias);
    LoraConfig lora;
    lora.r = 4, lora.inside_quantizer = true;
    if (how.inside) model_adapt(m, lora, 3, true), lora_init(m.lora, m.dev), fill_adapter(m);
    model_rotate(m, how.hadamard);
    fill(m);
    if (how.hooked) {
        WeightHook hook;
        auto copy = std::make_shared<std::vector<float>>();
        hook.before_quantize = [copy](LinearPart& p, const float* w) -> const float* {
            copy->assign(w, w + p.count());
            for (float& x : *copy) x *= 1.25f;
            return copy->data();
        };
        for (const ParamTensor& t : m.tensors)
            if (t.kind == ParamKind::linear) part_of(m, t)->hooks.push_back(hook);
    }
    model_refresh(m);
}

static void make_frozen(Model& m) {
    m.dev = model_device();
    model_allocate_frozen(m, tiny_config(SIMULATED ? 1 : 2), rules_of("nf4:g32:dq; layers.0.k=none"));
    LoraConfig lora;
    lora.r = 4, lora.alpha = 6;
    model_adapt(m, lora, 11, true);
    fill(m);
    lora_init(m.lora, m.dev);
    fill_adapter(m);
    model_refresh(m);
}

static const std::vector<std::vector<int>> prompts = {{5, 9, 3}, {1}, {2, 2, 2, 2, 2, 2}};

static RolloutConfig rollout_config() {
    RolloutConfig c;
    c.max_completion_length = COMPLETION;
    c.stop_tokens = {7, 8, 10};
    c.n_allowed = 97;
    c.max_sequences = 5;
    c.seed = 11;
    return c;
}

static RolloutShape shape_of() { return rollout_shape((int)prompts.size(), G, 6, rollout_config()); }

static std::vector<Completion> sample(Model& m, RolloutState& state, const Pass& pass) {
    RolloutConfig c = rollout_config();
    c.pass = pass;
    return rollout(m, state, prompts, G, c);
}

// what a model by itself draws
static std::vector<Completion> sample(Model& m) {
    RolloutState state;
    std::vector<Completion> done = sample(m, state, model_pack(m));
    model_unpack(m);
    return done;
}

// with the draws of one step, whatever the step, so that nothing but the policy differs
static std::vector<Completion> sample(Sampler& s, Model& policy, int64_t step = 0) {
    const Pass pass = sampler_begin(s, policy, step);
    RolloutState shared;
    std::vector<Completion> done = sample(s.model(), s.own ? s.rollouts : shared, pass);
    sampler_end(s);
    return done;
}

static bool same(const std::vector<Completion>& a, const std::vector<Completion>& b) {
    if (a.size() != b.size()) return false;
    for (size_t i = 0; i < a.size(); i++)
        if (a[i].tokens != b[i].tokens || a[i].finished != b[i].finished || a[i].logps.size() != b[i].logps.size() ||
            memcmp(a[i].logps.data(), b[i].logps.data(), a[i].logps.size() * sizeof(float)))
            return false;
    return true;
}

static SamplerConfig asks(const char* weights, const char* activations = nullptr, const char* kv = nullptr) {
    SamplerConfig c;
    if (weights) c.weights = rules_parse(weights, "rollout_weights");
    if (activations) c.activations = rules_parse(activations, "rollout_activations");
    if (kv) c.kv_cache = rules_parse(kv, "rollout_kv_cache");
    return c;
}

static void allocate(Sampler& s, Model& policy) { sampler_allocate(s, policy, shape_of(), POSITIONS); }

// largest |logp of the trainer - logp of the sampler|
static double difference(Model& policy, const std::vector<Completion>& done) {
    Trainer t;
    trainer_init(t, policy, 256, false);
    GrpoConfig c;
    c.num_generations = G, c.max_completion_length = COMPLETION, c.micro_batch_tokens = 256;
    const std::vector<float> a(done.size(), 1.0f);
    return policy_pass(t, prompts, done, {a}, c, false).logp_difference_max;
}

// ---------------------------------------------------------------------------------------------------------------------
// quantizers of its own

TEST(Sampler, ByDefaultIsTheTrainer) {
    Model m;
    Made how;
    how.weights = "int4:g32", how.activations = "int8:token", how.kv = "int8:token:asym";
    make(m, how);
    for (const SamplerConfig& c : {SamplerConfig(), asks("int4:g32:sym:amax", "int8:token:sym", "int8:token:asym"),
                                   asks("none; q,k,v,o,gate,up,down=int4:g32")}) {
        Sampler s;
        s.config = c;
        allocate(s, m);
        EXPECT_FALSE(s.own || s.differs());
        if (SIMULATED && !c.activations) continue;
        EXPECT_EQ(sampler_text(s, m), "");
        EXPECT_TRUE(sampler_arrays(s).empty());
        const std::vector<Completion> done = sample(s, m);
        EXPECT_EQ(&s.model(), &m);
        EXPECT_TRUE(same(done, sample(m)));
        EXPECT_EQ(difference(m, done), 0.0);
    }
}

TEST(Sampler, HasTheBitsOfTheOrdinaryRoute) {
    struct Case {
        Made trainer;
        SamplerConfig asked;
        Made plain;  // what the sampler should be
    };
    auto made = [](const char* weights, const char* activations = "none", const char* kv = "none") {
        Made m;
        m.weights = weights, m.activations = activations, m.kv = kv;
        return m;
    };
    std::vector<Case> cases = {
        {made("none"), asks("int4:g32:asym"), made("int4:g32:asym")},
        {made("int4:g32"), asks("none"), made("none")},
        {made("none"), asks("int8:channel", "int8:token", "int4:token:asym"),
         made("int8:channel", "int8:token", "int4:token:asym")},
        {made("int4:g32", "int8:token"), asks(nullptr, "none", "fp8e4m3:token"),
         made("int4:g32", "none", "fp8e4m3:token")},
        {made("int8:channel", "none", "int4:g8:asym"), asks(nullptr, nullptr, "none"), made("int8:channel")},
        {made("nf4:g32:dq"), asks("int4:g16; down=int8:channel; layers.0.k=none"),
         made("int4:g16; down=int8:channel; layers.0.k=none")},
        {made("int4:g32"), asks("nvfp4"), made("nvfp4")},
    };
    if (SIMULATED) cases = {cases[0], cases[3], cases[6]};
    for (size_t i = 2, n = cases.size(); i < n && !SIMULATED; i++) {  // on the CPU without packed codes, too
        cases.push_back(cases[i]);
        cases.back().trainer.codes = cases.back().plain.codes = false;
    }
    // what a method makes of a weight, and the basis it is quantized in, are the sampler's, too
    auto with = [&](const Case& c, const std::function<void(Made&)>& change) {
        cases.push_back(c);
        change(cases.back().trainer), change(cases.back().plain);
    };
    if (!SIMULATED)
        with({made("int4:g32", "int8:token"), asks("int3:g16"), made("int3:g16", "int8:token")},
             [](Made& m) { m.hadamard = "o,layers.0.down"; });
    with({made("int4:g32", "int8:token"), asks(nullptr, "none"), made("int4:g32")},
         [](Made& m) { m.hadamard = "all"; });
    if (!SIMULATED)
        with({made("int4:g32"), asks("int8:channel"), made("int8:channel")}, [](Made& m) { m.hooked = true; });
    with({made("int4:g32"), asks("int8:channel"), made("int8:channel")}, [](Made& m) { m.inside = true; });
    with({made("int4:g32"), asks(nullptr, nullptr, "int4:token:asym"), made("int4:g32", "none", "int4:token:asym")},
         [](Made& m) { m.qwen2 = true; });
    cases.back().plain.pre_bias = true;
    cases.back().asked.k_pre_bias = true;
    for (size_t i = 0; i < cases.size(); i++) {
        const Case& c = cases[i];
        Model m, plain;
        make(m, c.trainer);
        make(plain, c.plain);
        Sampler s;
        s.config = c.asked;
        allocate(s, m);
        ASSERT_TRUE(s.own && s.differs()) << i;
        EXPECT_EQ(s.weights, c.asked.weights ? Sampler::Weights::quantized : Sampler::Weights::shared);
        for (int round : {0, 1}) {  // it follows the masters
            if (SIMULATED && round == 1 && i > 0) continue;
            if (round == 1) fill(m, 1), model_refresh(m), fill(plain, 1), model_refresh(plain);
            const std::vector<Completion> done = sample(s, m);
            EXPECT_TRUE(same(done, sample(plain))) << "case " << i << " round " << round;
            if (SIMULATED && i > 0) continue;
            EXPECT_GT(difference(m, done), 1e-4) << "case " << i;
            EXPECT_EQ(difference(plain, done), 0.0) << "case " << i;
        }
    }
}

// What it generates from is packed codes where the trainer does that
TEST(Sampler, GeneratesFromCodes) {
    for (const SamplerConfig& c : {asks("int8:channel"), asks(nullptr, "int8:token")}) {
        Model m;
        Made how;
        how.weights = "int4:g32";
        make(m, how);
        Sampler s;
        s.config = c;
        allocate(s, m);
        sampler_begin(s, m, 0);
        int packed = 0, runs = 0;
        if (sizeof(floatX) == 2 || !m.dev.cuda)
            each_packable(*s.own, [&](const Linear&, const PackedRows& r) { packed += r.codes.N > 0, runs++; });
        EXPECT_EQ(packed, runs);
        sampler_end(s);
    }
}

// The same text over scales that are kept or learned is no note: the sampler's are measured
TEST(Sampler, OfKeptScalesIsMeasuredAnew) {
    Model m;
    Made how;
    how.weights = "int4:g32", how.mode = ScaleMode::kept;
    make(m, how);
    Sampler s;
    s.config = asks("int4:g32");
    allocate(s, m);
    ASSERT_TRUE(s.own);
    EXPECT_EQ(difference(m, sample(s, m)), 0.0);  // the scales that are kept were measured on these weights
    fill(m, 4);
    model_refresh(m);
    EXPECT_GT(difference(m, sample(s, m)), 1e-4);
    Model shared;
    how.mode = ScaleMode::learned;
    make(shared, how);
    for (int64_t i = 0; i < (int64_t)shared.learned.size; i++) shared.learned[i] *= 0.9f;
    model_refresh(shared);
    Sampler kv;
    kv.config = asks(nullptr, nullptr, "int8:token");
    allocate(kv, shared);
    Model plain;
    how.kv = "int8:token";
    make(plain, how);
    for (int64_t i = 0; i < (int64_t)plain.learned.size; i++) plain.learned[i] *= 0.9f;
    model_refresh(plain);
    EXPECT_TRUE(same(sample(kv, shared), sample(plain))) << "the trainer's working weights, whatever they are made of";
}

TEST(Sampler, OverAFrozenBaseSharesIt) {
    Model m, plain;
    make_frozen(m);
    make_frozen(plain);
    model_quantize_activations(plain, rules_for("activations", "int8:token"));
    model_quantize_kv(plain, rules_for("kv_cache", "int4:token:asym"), false);
    Sampler s;
    s.config = asks(nullptr, "int8:token", "int4:token:asym");
    allocate(s, m);
    for (int round : {0, 1}) {
        for (Model* each : {&m, &plain}) fill_adapter(*each, round), model_refresh(*each);
        const std::vector<Completion> done = sample(s, m);
        EXPECT_TRUE(same(done, sample(plain))) << round;
        EXPECT_GT(difference(m, done), 1e-4);
    }
    EXPECT_EQ(s.own->work.size, 0u);
    EXPECT_EQ(s.own->lora.work.size, 0u);
}

static std::string refusal(const std::function<void()>& f) {
    try {
        f();
    } catch (const Error& e) { return e.what(); }
    return "";
}

TEST(Sampler, WhatAModelCannotBeIsRefusedByItsFlag) {
    const ModelConfig config = tiny_config(2);
    auto refused = [&](const std::function<void()>& f, const std::string& part) {
        const std::string text = refusal(f);
        EXPECT_NE(text.find(part), std::string::npos) << text;
    };
    auto check = [&](const char* weights, const char* activations, const char* kv) {
        return [&config, weights, activations, kv] { check_sampler(config, asks(weights, activations, kv)); };
    };
    refused(check("int4:g33", nullptr, nullptr), "--rollout_weights int4:g33");
    refused(check("int4:g32; layers.9=none", nullptr, nullptr), "--rollout_weights: 'layers.9'");
    refused(check(nullptr, nullptr, "int4:g7:asym"), "--rollout_kv_cache int4:g7:asym");
    refused(check(nullptr, nullptr, "int4:g16:asym"), "--rollout_kv_cache int4:g16:asym");
    refused(check(nullptr, "layers.9=int8:token", nullptr), "--rollout_activations: 'layers.9'");
    refused([] { rules_parse("int4:token", "rollout_weights"); }, "--rollout_weights int4:token");
    refused([] { rules_parse("nf4", "rollout_activations"); }, "--rollout_activations nf4");
    refused([] { rules_parse("int8:channel", "rollout_kv_cache"); }, "--rollout_kv_cache int8:channel");
    Model m;
    make(m, Made());
    refused(
        [&] {
            Sampler s;
            s.config = asks(nullptr, "int8:g33");
            allocate(s, m);
        },
        "--rollout_activations int8:g33");
    refused(
        [&] {
            Sampler s;
            s.config = asks(nullptr, "q=int8:token");
            allocate(s, m);
        },
        "--rollout_activations");
    Model frozen;
    make_frozen(frozen);
    refused(
        [&] {
            Sampler s;
            s.config = asks("int4:g32");
            allocate(s, frozen);
        },
        "--rollout_weights int4:g32:sym: the base of an adapter has no masters");
}

// ---------------------------------------------------------------------------------------------------------------------
// stale weights

struct Stale {
    Model m;
    Sampler s;
    bool frozen;
    explicit Stale(const Made* how, SamplerConfig c) : frozen(!how) {
        if (how) make(m, *how);
        else make_frozen(m);
        c.staleness = 2;
        s.config = c;
        allocate(s, m);
    }
    void move(int round) {
        if (frozen) fill_adapter(m, round);
        else fill(m, round);
        model_refresh(m);
    }
};

static std::vector<char> bytes_of(const NamedArray& a) {
    const char* p = static_cast<const char*>(a.data);
    return std::vector<char>(p, p + a.bytes());
}

TEST(Sampler, StaleWeightsAreTakenOnTimeAndResumed) {
    Made four, learned;
    four.weights = "int4:g32";
    learned.weights = "nf4:g32:dq; down=int8:channel", learned.mode = ScaleMode::kept, learned.hadamard = "o";
    struct Case {
        const Made* trainer;
        SamplerConfig asked;
    };
    std::vector<Case> cases = {{&four, SamplerConfig()}, {nullptr, asks(nullptr, nullptr, "int8:token")}};
    if (!SIMULATED)
        cases.insert(cases.end(), {{&learned, SamplerConfig()},
                                   {&four, asks("none", "int8:token")},
                                   {&learned, asks("int3:g32:asym")},
                                   {nullptr, SamplerConfig()}});
    for (size_t i = 0; i < cases.size(); i++) {
        Stale run(cases[i].trainer, cases[i].asked);
        EXPECT_TRUE(run.s.differs());
        const std::vector<NamedArray> arrays = sampler_arrays(run.s);
        ASSERT_FALSE(arrays.empty());
        std::vector<std::vector<char>> saved;
        nlohmann::ordered_json state = nlohmann::ordered_json::object();
        std::vector<Completion> at[5];
        for (int step = 0; step < 5; step++) {
            run.move(step);
            at[step] = sample(run.s, run.m, step);
            nlohmann::ordered_json j;
            sampler_metrics(run.s, j);
            EXPECT_EQ(j["sampler/staleness"], step % 3);
            if (step != 1) continue;
            sampler_save(run.s, state);
            for (const NamedArray& a : arrays) saved.push_back(bytes_of(a));
        }
        EXPECT_TRUE(same(at[0], at[1]) && same(at[0], at[2]) && same(at[3], at[4])) << i;
        EXPECT_FALSE(same(at[2], at[3])) << i;
        Stale fresh(cases[i].trainer, cases[i].asked);  // of step 3, with nothing from before
        fresh.move(3);
        EXPECT_TRUE(same(at[3], sample(fresh.s, fresh.m, 3))) << i;

        Stale resumed(cases[i].trainer, cases[i].asked);
        const std::vector<NamedArray> to = sampler_arrays(resumed.s);
        ASSERT_EQ(to.size(), saved.size());
        for (size_t k = 0; k < to.size(); k++) {
            EXPECT_EQ(to[k].name, arrays[k].name);
            memcpy(to[k].data, saved[k].data(), saved[k].size());
        }
        sampler_load(resumed.s, state);
        resumed.move(2);
        EXPECT_TRUE(same(at[2], sample(resumed.s, resumed.m, 2))) << i;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// noise

TEST(RolloutNoise, Schedule) {
    RolloutNoise n;
    EXPECT_EQ(noise_sigma(n, 5), 0.0);
    n.start = 1e-2, n.end = 1e-4, n.stages = 10, n.steps = 200;
    for (int step = 0; step < 200; step++) {
        const int stage = step / 20;
        const double expected = stage == 0 ? 0.0 : 1e-2 * std::pow(1e-2, (stage - 1) / 8.0);
        EXPECT_NEAR(noise_sigma(n, step), expected, 1e-12) << step;
    }
    EXPECT_EQ(noise_sigma(n, 20), 1e-2);
    EXPECT_NEAR(noise_sigma(n, 199), 1e-4, 1e-15);
    n.stages = 2;
    EXPECT_EQ(noise_sigma(n, 99), 0.0);
    EXPECT_EQ(noise_sigma(n, 100), 1e-2);
    EXPECT_EQ(noise_sigma(n, 199), 1e-2);
    n.stages = 7, n.steps = 3;  // more stages than steps
    EXPECT_EQ(noise_sigma(n, 0), 0.0);
    EXPECT_NEAR(noise_sigma(n, 2), 1e-2 * std::pow(1e-2, 3 / 5.0), 1e-12);
}

TEST(RolloutNoise, DrawsAreNormalAndKeyed) {
    double sum = 0, squares = 0, fourth = 0;
    const int n = 20000;
    for (int i = 0; i < n; i++) {
        const double z = noise_draw(1, 2, 3, (uint32_t)i);
        sum += z, squares += z * z, fourth += z * z * z * z;
    }
    EXPECT_NEAR(sum / n, 0.0, 4 / std::sqrt((double)n));
    EXPECT_NEAR(squares / n, 1.0, 4 * std::sqrt(2.0 / n));
    EXPECT_NEAR(fourth / n, 3.0, 4 * std::sqrt(96.0 / n));
    const float z = noise_draw(1, 2, 3, 4);
    EXPECT_EQ(z, noise_draw(1, 2, 3, 4));
    for (float other : {noise_draw(2, 2, 3, 4), noise_draw(1, 3, 3, 4), noise_draw(1, 2, 4, 4), noise_draw(1, 2, 3, 5)})
        EXPECT_NE(z, other);
}

// The policy of the rollout is the model whose norms have the noise; nobody else has it
TEST(RolloutNoise, IsOfTheRolloutAlone) {
    for (bool frozen : {false, true}) {
        Model m, noisy;
        Made how;
        how.weights = "int4:g32";
        for (Model* each : {&m, &noisy}) frozen ? make_frozen(*each) : make(*each, how);
        Sampler s;
        s.config.noise.start = 0.1, s.config.noise.end = 0.05, s.config.noise.stages = 3, s.config.noise.steps = 3;
        s.config.noise.seed = 7;
        allocate(s, m);
        EXPECT_TRUE(s.differs());
        EXPECT_FALSE(s.own);
        EXPECT_NE(sampler_text(s, m).find(frozen ? "which the trainer keeps" : "noise on norms"), std::string::npos);
        RolloutState kept;  // graphs of all steps
        auto draw = [&](int step) {
            const Pass pass = sampler_begin(s, m, step);
            std::vector<Completion> done = sample(s.model(), kept, pass);
            sampler_end(s);
            nlohmann::ordered_json j;
            sampler_metrics(s, j);
            EXPECT_NEAR(j["noise/sigma"].get<double>(), step == 0 ? 0.0 : step == 1 ? 0.1 : 0.05, 1e-12);
            return done;
        };
        const std::vector<Completion> policy = sample(m), first = draw(0), second = draw(1), third = draw(2);
        EXPECT_TRUE(same(first, policy));
        EXPECT_FALSE(same(second, policy) || same(third, policy) || same(second, third));
        EXPECT_TRUE(same(draw(1), second)) << "keyed by the step";
        EXPECT_GT(difference(m, second), 1e-3);
        for (int l = 0; l < m.L(); l++)
            for (int which : {0, 1}) {
                floatX* w = which ? noisy.layers[l].ln2.work : noisy.layers[l].ln1.work;
                for (int i = 0; i < m.C(); i++)
                    w[i] = (floatX)((float)w[i] + 0.1f * noise_draw(7, 1, (uint32_t)(2 * l + which), (uint32_t)i));
            }
        EXPECT_TRUE(same(second, sample(noisy)));
        Pass plain = model_pack(m);  // an evaluation in between
        EXPECT_TRUE(same(sample(m, kept, plain), policy));
        model_unpack(m);
    }
}

// with weights of its own, whose norms have the noise
TEST(RolloutNoise, OnASecondModel) {
    Model m, plain;
    Made how;
    make(m, how);
    how.weights = "int4:g32";
    make(plain, how);
    Sampler s, of_plain;
    for (Sampler* each : {&s, &of_plain})
        each->config.noise.start = 0.1, each->config.noise.stages = 2, each->config.noise.steps = 2;
    s.config.weights = rules_parse("int4:g32", "rollout_weights");
    allocate(s, m);
    allocate(of_plain, plain);
    EXPECT_TRUE(same(sample(s, m, 1), sample(of_plain, plain, 1)));
}

// ---------------------------------------------------------------------------------------------------------------------
// through the objective

// One GRPO step's prepare: the default is the trainer's own, and a sampler of its own shows in the first update
TEST(Sampler, InTheObjective) {
    for (const char* weights : {"", "int4:g32"}) {
        Model m;
        make(m, Made());
        Trainer t;
        trainer_init(t, m, 256, false);
        GrpoObjective objective;
        objective.rewards = rewards_parse("exact", "");
        objective.config.num_generations = G, objective.config.max_completion_length = COMPLETION;
        objective.config.micro_batch_tokens = 256;
        objective.rollout = rollout_config();
        const Tokenizer tok = tokenizer_byte_level();
        objective.tok = &tok;
        RolloutState state;
        if (*weights) objective.sampler.config = asks(weights);
        allocate(objective.sampler, m);
        objective.state = objective.sampler.own ? &objective.sampler.rollouts : &state;
        StepContext c;
        for (const std::vector<int>& p : prompts) c.batch.push_back({{"", "1", p}, {}});
        LoopState run;
        ASSERT_TRUE(objective.prepare(t, c, run));
        objective.loss(t, c, false);
        EXPECT_EQ(objective.mismatch.tokens > 0 && objective.mismatch.difference.most > 0.0, *weights != 0);
        EXPECT_EQ(objective.passes[0].ratio_max, 1.0) << "the old log-probabilities are the trainer's";
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// invariant scaling

static std::vector<float> logps_of(Model& m) {
    Activations acts;
    ScoreMemory memory;
    activations_allocate(acts, m, 16, ActivationMode::inference);
    score_memory_allocate(memory, m, 16, false);
    Batch b;
    ScoredTokens s;
    const std::vector<int> ids = {1, 5, 9, 33, 20, 44, 3, 17, 80, 2, 90, 41};
    batch_add_sequence(b, ids.data(), (int)ids.size());
    score_last_sequence(s, b, 0);
    score_forward(m, acts, memory, b, s, 1.0f);
    score_fetch(s, memory, m.dev);
    return s.logp;
}

static double most_apart(const std::vector<float>& a, const std::vector<float>& b) {
    double most = 0;
    for (size_t i = 0; i < a.size(); i++) most = std::max(most, std::fabs((double)a[i] - b[i]));
    return most;
}

static void scale(Trainer& t, Model& m, const std::string& text, bool sampler = false) {
    TrainingMethods methods = training_methods_parse(text);
    for (const auto& method : methods.list) method->run.quantized_sampler = sampler;
    trainer_init(t, m, 64, false, OptimizerConfig(), std::move(methods));
    methods_start(t);
}

static void make_tracked(Model& m, const char* weights, ScaleMode mode = ScaleMode::dynamic) {
    m.dev = model_device();
    model_allocate(m, tiny_config(1));
    model_quantize(m, rules_of(weights, "all", mode), true);
    fill(m);
    model_refresh(m);
}

TEST(InvariantScaling, KeepsTheFunction) {
    // scales of some formats are bf16 numbers, which 1.5 times another is not
    const double rounding = sizeof(floatX) == 2 ? 0.1 : 0.05;
    for (const char* weights : {"int4:g32", "int8:channel:asym", "nf4:g32", "int4:g32:sym:mse"})
        for (ScaleMode mode : {ScaleMode::dynamic, ScaleMode::kept})
            for (const char* text : {"uaq", "uaq:scale=2"}) {
                if (SIMULATED && weights != std::string("int4:g32")) continue;
                Model m;
                make_tracked(m, weights, mode);
                const std::vector<float> before = logps_of(m);
                const std::vector<float> masters(m.master.data, m.master.data + m.master.size);
                Trainer t;
                scale(t, m, text);
                const float s = text == std::string("uaq") ? 1.5f : 2.0f;
                const double apart = most_apart(before, logps_of(m));
                EXPECT_LE(apart, s == 2.0f ? 0.0 : rounding) << weights;
                const double flips = s == 2.0f ? 0.0 : mode == ScaleMode::kept ? 0.002 : 1.0;
                EXPECT_LE(code_flip_rate(m, true), flips) << weights;
                for (const ParamTensor& p : m.tensors) {
                    const bool reads = p.kind == ParamKind::linear &&
                                       (p.product == Product::qkv || p.product == Product::gate_up),
                               norm = p.kind == ParamKind::norm && (p.norm == NormKind::ln1 || p.norm == NormKind::ln2);
                    for (int64_t i = 0; i < p.count(); i++) {
                        const float was = masters[p.offset + i], is = m.master[p.offset + i];
                        ASSERT_EQ(is, reads ? was / s : norm ? was * s : was) << p.name;
                    }
                }
                // and so it stays: another refresh has the same codes
                model_refresh(m);
                EXPECT_EQ(code_flip_rate(m, false), 0.0);
            }
}

// an update of the same size flips s times as many codes
TEST(InvariantScaling, CodesFlipSTimesAsReadily) {
    double flips[2];
    for (int i : {0, 1}) {
        Model m;
        make_tracked(m, "none; q,k,v,gate,up=int8:channel", ScaleMode::kept);
        Trainer t;
        if (i) scale(t, m, "uaq:scale=3");
        for (size_t k = 0; k < m.master.size; k++)
            m.master[k] += rng_bits(3, RNG_INIT, (uint32_t)k, 0, 0).x[0] & 1 ? 3e-5f : -3e-5f;
        model_refresh(m);
        flips[i] = code_flip_rate(m, false);
    }
    EXPECT_GT(flips[0], 0.01);
    EXPECT_NEAR(flips[1] / flips[0], 3.0, 0.3);
}

TEST(InvariantScaling, RefusesWhatItHasNothingToActOn) {
    Model plain;
    make_tracked(plain, "none");
    Trainer t, of_sampler, of_learned, of_adapter;
    EXPECT_NE(refusal([&] { scale(t, plain, "uaq"); }).find("add --weights"), std::string::npos);
    EXPECT_EQ(refusal([&] { scale(of_sampler, plain, "uaq", true); }), "");
    Model learned;
    make_tracked(learned, "int4:g32", ScaleMode::learned);
    EXPECT_NE(refusal([&] { scale(of_learned, learned, "uaq", true); }).find("--qat_scale"), std::string::npos);
    Model frozen;
    make_frozen(frozen);
    EXPECT_NE(refusal([&] { scale(of_adapter, frozen, "uaq", true); }).find("adapter"), std::string::npos);
}
