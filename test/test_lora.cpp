// Low-rank adapters: the pointwise kernels against their loops; logits and gradients of A and B against PEFT
// (test/make_golden_lora.py) and, over packed codes, against central differences; sampler and trainer to the bit; the
// adapter inside the quantizer against double loops; what a frozen base does not have; PEFT's files in and out, and the
// ones that must be refused.
#include <gtest/gtest.h>
#include <unistd.h>
#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <vector>
#include "../formats/merged_adapter.h"
#include "../formats/peft.h"
#include "../grpo.cuh"
#include "load_model.h"
#include "operator_test.h"
#include "test_device.h"
#include "tiny_model.h"

// ---------------------------------------------------------------------------------------------------------------------
// kernels

static LoraDropout dropout(float p) {
    LoraDropout d;
    d.p = p, d.seed = 3, d.pass = 2, d.product = 5, d.row0 = 1000;
    return d;
}

TEST(LoraKernels, ScaleHasTheBitsOfTheLoop) {
    for (int64_t n : {1, 7, 8, 333, 4096}) {
        std::vector<float> x = random_values<float>(n, 1);
        std::vector<floatX> expected(n);
        lora_scale_cpu(expected.data(), x.data(), 1.7f, n);
        for (const Backend& run : all_backends()) {
            select_backend(run);
            TestBuffer<float> in(x, run.dev);
            TestBuffer<floatX> out(n, run.dev);
            lora_scale(out.data, in.data, 1.7f, n, run.dev);
            EXPECT_TRUE(same_bits(out.get(), expected)) << run.name << ", " << n;
        }
    }
}

template <class O>
static void add_case(int64_t T, int64_t C, int64_t ldo, float p) {
    std::vector<float> delta = random_values<float>(T * C, 1);
    std::vector<O> start = random_values<O>(T * ldo, 2), expected = start;
    lora_add_cpu(expected.data() + 1, delta.data(), 1.3f, dropout(p), ldo, T, C);
    for (const Backend& run : all_backends()) {
        select_backend(run);
        TestBuffer<float> d(delta, run.dev);
        TestBuffer<O> out(start, run.dev);
        lora_add(out.data + 1, d.data, 1.3f, dropout(p), ldo, T, C, run.dev);
        EXPECT_TRUE(same_bits(out.get(), expected)) << run.name << ", " << T << " x " << C << ", p " << p;
    }
    EXPECT_FALSE(same_bits(expected, start));
}

TEST(LoraKernels, AddIntoASliceHasTheBitsOfTheLoop) {
    for (float p : {0.0f, 0.3f}) {
        add_case<floatX>(1, 8, 16, p), add_case<floatX>(5, 13, 14, p), add_case<floatX>(9, 200, 300, p);
        add_case<float>(3, 13, 14, p), add_case<float>(7, 64, 72, p);
    }
}

TEST(LoraKernels, DropoutHasTheBitsOfTheLoopAndItsProbability) {
    for (int64_t C : {13, 64}) {
        const int64_t T = 301;
        std::vector<floatX> x = random_values<floatX>(T * C, 1), expected(T * C);
        for (floatX& v : x)
            if ((float)v == 0.0f) v = (floatX)1.0f;
        lora_dropout_cpu(expected.data(), x.data(), dropout(0.3f), T, C);
        int zeros = 0;
        for (int64_t i = 0; i < T * C; i++) {
            zeros += (float)expected[i] == 0.0f;
            if ((float)expected[i] != 0.0f) { EXPECT_NEAR((float)expected[i], (float)x[i] / 0.7f, 0.01f); }
        }
        EXPECT_NEAR(zeros / (double)(T * C), 0.3, 0.03);
        for (const Backend& run : all_backends()) {
            select_backend(run);
            TestBuffer<floatX> in(x, run.dev), out(T * C, run.dev);
            lora_dropout(out.data, in.data, dropout(0.3f), T, C, run.dev);
            EXPECT_TRUE(same_bits(out.get(), expected)) << run.name << ", " << C;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// models

#if defined(PRECISION_FP32)
static constexpr double LOGITS_RELATIVE = 1e-5, LOSS_TOLERANCE = 1e-6, GRADIENT_RELATIVE = 2e-5;
#else  // PEFT's own bf16 is as far from its fp32: logits 0.05, gradients up to 0.28 (qwen2's q_proj)
static constexpr double LOGITS_RELATIVE = 0.1, LOSS_TOLERANCE = 0.02, GRADIENT_RELATIVE = 0.35;
#endif

static std::vector<Device> devices() {
    std::vector<Device> list = {Device()};
    if (model_device().cuda) list.push_back(model_device());
    return list;
}

struct Golden {
    std::vector<int> tokens, starts;
    std::vector<float> logits;
    float loss = 0.0f;
    SafetensorsFile file;
};

static std::vector<int> read_ints(const SafetensorsFile& f, const char* name) {
    const StTensor* t = st_find(f.tensors, name);
    if (!t || t->dtype != "I32") fail("golden tensor %s of type I32 is missing", name);
    std::vector<int> v(t->count);
    memcpy(v.data(), t->data, t->bytes);
    return v;
}

static std::vector<float> read_floats(const SafetensorsFile& f, const std::string& name) {
    const StTensor* t = st_find(f.tensors, name);
    if (!t) fail("golden tensor %s is missing", name.c_str());
    std::vector<float> v(t->count);
    st_read_float(*t, v.data());
    return v;
}

static Golden read_golden(const std::string& name) {
    Golden g;
    SafetensorsFile base = st_open("test/golden/" + name + "/golden.safetensors");
    g.tokens = read_ints(base, "tokens");
    g.starts = read_ints(base, "cu_seqlens");
    g.file = st_open("test/golden/lora_" + name + "/golden.safetensors");
    g.logits = read_floats(g.file, "logits");
    g.loss = read_floats(g.file, "loss").at(0);
    return g;
}

static double relative(const float* a, const float* b, int64_t n) {
    double dd = 0, bb = 0;
    for (int64_t i = 0; i < n; i++) dd += ((double)a[i] - b[i]) * ((double)a[i] - b[i]), bb += (double)b[i] * b[i];
    return std::sqrt(dd / bb);
}

// the golden model `name` with its golden adapter; weights: the quantizer of its base
static void golden_model(Model& m, const std::string& name, const char* weights, Device dev, bool inside = false,
                         double drop = 0.0) {
    std::string folder = "test/golden/" + name;
    m.dev = dev;
    PeftAdapter adapter = peft_open("test/golden/lora_" + name);
    EXPECT_EQ(adapter.base, folder);
    adapter.config.dropout = drop;
    adapter.config.inside_quantizer = inside;
    if (inside) {
        model_allocate(m, model_config(folder));
        model_quantize(m, rules_of(weights), false);
    } else {
        model_allocate_frozen(m, model_config(folder), rules_of(weights));
    }
    model_adapt(m, adapter.config, 5, true);
    model_load_weights(m, folder);
    peft_load(adapter, m.lora, m.dev);
    model_refresh(m);
}

static void golden_batch(const Golden& g, Batch& b, ScoredTokens& s) {
    for (size_t i = 0; i + 1 < g.starts.size(); i++) {
        batch_add_sequence(b, g.tokens.data() + g.starts[i], g.starts[i + 1] - g.starts[i]);
        score_last_sequence(s, b, 0);
    }
}

struct Result {
    std::vector<float> logits, grads;
    double loss = 0.0;
};

static Result run_model(Model& m, const Golden& g, bool recompute, uint32_t passes = 0, Pass pass = Pass()) {
    Result r;
    Trainer t;
    const int64_t T = (int64_t)g.tokens.size();
    trainer_init(t, m, T, recompute);
    memset((void*)t.acts.half.data, 0xFF, t.acts.half.bytes());  // NaN: nothing may rest on zeroed memory
    Batch b;
    ScoredTokens s;
    golden_batch(g, b, s);
    t.passes = passes;  // of training before this one
    score_forward_training(t, b, s, 1.0f, pass);
    score_fetch(s, t.score, m.dev);
    r.logits.assign(T * m.V(), NAN);
    gemm_nt(r.logits.data(), t.acts.hidden, m.head.work, nullptr, T, m.V(), m.C());
    for (float logp : s.logp) r.loss -= (double)logp / (double)s.size();
    score_backward(t, std::vector<float>(s.size(), -1.0f / (float)s.size()), 1.0f);
    r.grads.assign(t.grads.data, t.grads.data + t.grads.size);
    return r;
}

static void expect_golden_gradients(const Model& m, const Golden& g, const std::vector<float>& grads) {
    std::set<std::string> compared;
    double worst = 0.0;
    for (const LoraTensor& t : m.lora.tensors)
        for (char which : {'A', 'B'}) {
            std::string name = "grad." + peft_name(t.name, which);
            std::vector<float> expected = read_floats(g.file, name);
            ASSERT_EQ((int64_t)expected.size(), (which == 'A' ? t.cols : t.rows) * m.lora.config.r) << name;
            double r = relative(grads.data() + (which == 'A' ? t.a : t.b), expected.data(), (int64_t)expected.size());
            EXPECT_LE(r, GRADIENT_RELATIVE) << name;
            worst = std::fmax(worst, r);
            compared.insert(name);
        }
    for (const auto& [name, tensor] : g.file.tensors)
        EXPECT_TRUE(name.rfind("grad.", 0) != 0 || compared.count(name)) << name << " was not compared";
    printf("  gradients: worst |a-b|/|b| %.1e\n", worst);
}

TEST(Lora, LogitsLossAndGradientsAgreeWithPeft) {
    for (std::string name : {"qwen2", "qwen3"})
        for (Device dev : devices()) {
            Golden g = read_golden(name);
            Model m;
            golden_model(m, name, "none", dev);
            EXPECT_EQ(m.master.size, 0u);
            Result r = run_model(m, g, false);
            double worst = relative(r.logits.data(), g.logits.data(), (int64_t)g.logits.size());
            printf("%s on %s, %s: loss %.7f (PEFT %.7f), logits |a-b|/|b| %.1e\n", name.c_str(),
                   dev.cuda ? "cuda" : "cpu", PRECISION_NAME, r.loss, g.loss, worst);
            EXPECT_LE(worst, LOGITS_RELATIVE);
            EXPECT_LE(std::fabs(r.loss - g.loss), LOSS_TOLERANCE * g.loss);
            ASSERT_EQ(r.grads.size(), m.lora.num_params);
            expect_golden_gradients(m, g, r.grads);
            Model again;
            golden_model(again, name, "none", dev);
            Result recomputed = run_model(again, g, true);
            EXPECT_TRUE(same_bits(recomputed.logits, r.logits) && same_bits(recomputed.grads, r.grads));
        }
}

// A small random model over a packed base, or with the adapter inside the quantizer; B is not zero. plain: without an
// adapter, quantized as a model is whose weights are trained
static void tiny_model(Model& m, const char* weights, Device dev, bool inside = false, double drop = 0.0,
                       bool plain = false, const std::string& grids = "") {
    const ModelConfig c = tiny_config();
    m.dev = dev;
    LoraConfig lora;
    lora.r = 4, lora.alpha = 6, lora.dropout = drop, lora.inside_quantizer = inside;
    if (inside || plain) {
        model_allocate(m, c);
        model_quantize(m, rules_of(weights), true);
    } else {
        model_allocate_frozen(m, c, rules_of(weights));
    }
    if (!plain) model_adapt(m, lora, 11, true);
    if (!grids.empty()) { EXPECT_TRUE(quantizer_load(m, grids)); }
    for (size_t i = 0; i < m.tensors.size(); i++)
        model_fill(m, m.tensors[i], [&](float* p) {
            const ParamTensor& t = m.tensors[i];
            for (int64_t j = 0; j < t.count(); j++) {
                float x = uniform01(rng_bits(8, RNG_INIT, (uint32_t)i, (uint32_t)j, 0).x[0]) - 0.5f;
                p[j] = t.kind == ParamKind::norm ? 1.0f + x : t.kind == ParamKind::linear ? 0.4f * x : 0.3f * x;
            }
        });
    if (!plain) lora_init(m.lora, m.dev);
    for (const LoraTensor& t : m.lora.tensors)
        for (int64_t j = 0; j < t.rows * lora.r; j++)
            m.lora.master[t.b + j] = 0.2f * (uniform01(rng_bits(9, RNG_INIT, 0, (uint32_t)(t.b + j), 0).x[0]) - 0.5f);
    model_refresh(m);
}

static const char* base_formats[] = {
    "int8:channel", "int6:g32",   "int4:g32:asym",   "int3:tensor", "int4:g32:sym:mse",
    "nf4:g32",      "nf4:g32:dq", "fp8e4m3:channel", "fp8e5m2:g16", "mxfp8",
    "mxfp4",        "nvfp4",      "ternary:g32",     "mid4:g32",    "mid3:channel:gauss",
    "mid2:tensor"};

static std::vector<float> logps_of(Model& m, const Pass& pass = Pass()) {
    Batch batch;
    ScoredTokens s;
    std::vector<int> ids = {1, 5, 9, 33, 20, 44, 3, 17, 80, 2, 90, 41};
    batch_add_sequence(batch, ids.data(), (int)ids.size());
    score_last_sequence(s, batch, 0);
    Activations acts;
    ScoreMemory memory;
    activations_allocate(acts, m, batch.T(), ActivationMode::inference);
    score_memory_allocate(memory, m, batch.T(), false);
    score_forward(m, acts, memory, batch, s, 1.0f, pass);
    score_fetch(s, memory, m.dev);
    return s.logp;
}

TEST(Lora, ThePackedBaseHasTheBitsOfTheQuantizedModelAndNoOtherWeights) {
    for (Device dev : devices())
        for (std::string weights : base_formats) {
            if (dev.cuda && weights != "int3:tensor" && weights != "nf4:g32:dq" && weights != "nvfp4") continue;
            Model full, frozen;
            tiny_model(full, weights.c_str(), dev, false, 0.0, true);
            tiny_model(frozen, weights.c_str(), dev);
            Pass base;
            base.adapter = false;
            int64_t linear = 0, others = 0;
            for (const ParamTensor& t : full.tensors) (t.kind == ParamKind::linear ? linear : others) += t.count();
            EXPECT_EQ(frozen.master.size, 0u);
            EXPECT_LE((int64_t)frozen.work.size, others + 32 * (int64_t)full.tensors.size());
            EXPECT_GE((int64_t)full.work.size, others + linear);
            EXPECT_TRUE(same_bits(logps_of(full), logps_of(frozen, base))) << weights;
        }
}

static std::string scratch_folder(const char* name) {
    std::string dir = testing::TempDir() + "lora_" + name + "_" + std::to_string(getpid());
    std::filesystem::remove_all(dir);
    std::filesystem::create_directories(dir);
    return dir;
}

TEST(Lora, ThePackedBaseTakesTheGridThatAFileHas) {
    for (const char* weights : {"int4:g32:asym", "int3:tensor", "nf4:g32:dq", "nvfp4"}) {
        Model full, frozen, measured;
        tiny_model(full, weights, Device(), false, 0.0, true);
        std::string dir = scratch_folder("grid");
        for (LinearPart* t : quantized_parts(full)) {
            for (int64_t g = 0; g < t->groups; g++)
                if (t->quantizer.spec.format == QuantFormat::integer)
                    t->grid[g].scale = quant_round_scale(0.7f * t->grid[g].scale);
                else t->grid[g].scale *= 0.5f, t->grid[g].zero *= 0.5f;  // dq: zero has the scale before
            if (t->quantizer.spec.format == QuantFormat::nvfp4) t->state.tensor[0] *= 2.0f;
            t->given = true;
            t->quantizer.scale_mode = ScaleMode::kept;
        }
        model_refresh(full);
        quantizer_save(full, dir);
        Model loaded;
        tiny_model(loaded, weights, Device(), false, 0.0, true, dir);
        tiny_model(frozen, weights, Device(), false, 0.0, false, dir);
        tiny_model(measured, weights, Device());
        Pass base;
        base.adapter = false;
        EXPECT_TRUE(same_bits(logps_of(loaded), logps_of(frozen, base))) << weights;
        EXPECT_FALSE(same_bits(logps_of(measured, base), logps_of(frozen, base))) << weights;
        std::filesystem::remove_all(dir);
    }
}

#if defined(PRECISION_FP32)
// derivative of the golden loss by one number of the adapter, from two evaluations
static double loss_of(Trainer& t, const Golden& g) {
    Batch b;
    ScoredTokens s;
    golden_batch(g, b, s);
    t.passes = 0;  // the same dropout each time
    score_forward_training(t, b, s, 1.0f);
    score_fetch(s, t.score, t.model->dev);
    double loss = 0.0;
    for (float logp : s.logp) loss -= (double)logp / (double)s.size();
    return loss;
}

TEST(Lora, GradientsOverPackedCodesAreCentralDifferences) {
    Golden g = read_golden("qwen3");
    for (double drop : {0.0, 0.4}) {
        Model m;
        golden_model(m, "qwen3", "int4:channel", Device(), false, drop);
        Result r = run_model(m, g, drop > 0.0);
        Trainer t;
        trainer_init(t, m, (int64_t)g.tokens.size(), false);
        std::vector<double> numbers, gradients;
        for (size_t i = 0; i < m.lora.tensors.size(); i++)
            for (size_t at : {m.lora.tensors[i].a + 5 * i % 60, m.lora.tensors[i].b + 3 * i % 50}) {
                const float old = m.lora.master[at], eps = drop > 0.0 ? 4e-3f : 2e-2f;
                double loss[2];
                for (int k = 0; k < 2; k++) {
                    m.lora.master[at] = old + (k ? eps : -eps);
                    model_refresh(m);
                    loss[k] = loss_of(t, g);
                }
                m.lora.master[at] = old;
                numbers.push_back((loss[1] - loss[0]) / (2.0 * eps));
                gradients.push_back(r.grads[at]);
            }
        double dd = 0, bb = 0;
        for (size_t i = 0; i < numbers.size(); i++) {
            dd += (numbers[i] - gradients[i]) * (numbers[i] - gradients[i]);
            bb += numbers[i] * numbers[i];
        }
        EXPECT_LE(std::sqrt(dd / bb), 5e-3) << "dropout " << drop;
    }
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// training

static std::vector<std::vector<int>> prompts() { return {{5, 9, 3}, {1}, {2, 2, 2, 2, 2, 2, 2}}; }

static std::vector<Completion> sample(Model& m) {
    RolloutConfig c;
    c.max_completion_length = m.dev.cuda ? 5 : 14;  // the simulated device is slow
    c.stop_tokens = {7, 8, 10};
    c.n_allowed = 97;
    c.max_sequences = 7;
    c.prefill_tokens = 8;
    RolloutState state;
    c.pass = model_pack(m);
    std::vector<Completion> done = rollout(m, state, prompts(), 3, c);
    model_unpack(m);
    return done;
}

static std::vector<float> advantages(size_t n) {
    std::vector<float> a(n);
    for (size_t i = 0; i < n; i++) a[i] = (float)(i % 3) - 1.0f;
    return a;
}

static GrpoConfig grpo_config() {
    GrpoConfig c;
    c.num_generations = 3;
    c.max_completion_length = 14;
    c.micro_batch_tokens = 64;
    return c;
}

TEST(Lora, SamplerAndTrainerAgreeToTheBit) {
    for (Device dev : devices())
        for (const char* weights : {"none", "int4:g32", "nf4:g32:dq"})
            for (bool inside : {false, true}) {
                if (inside && std::string(weights) == "none") continue;
                if (dev.cuda && std::string(weights) != "int4:g32") continue;
                Model m;
                tiny_model(m, weights, dev, inside);
                std::vector<Completion> done = sample(m);
                Trainer t;
                trainer_init(t, m, 64, false);
                for (int pass = 0; pass < 2; pass++) {
                    PolicyPass p = policy_pass(t, prompts(), done, advantages(done.size()), {}, grpo_config());
                    EXPECT_GT(p.tokens, 10);
                    if (pass == 0) {
                        EXPECT_EQ(p.logp_difference_max, 0.0) << weights;
                        EXPECT_EQ(p.ratio_min, 1.0);
                        EXPECT_EQ(p.ratio_max, 1.0);
                    } else {
                        EXPECT_NE(p.ratio_max, 1.0) << weights << ": the policy that acts has not moved";
                    }
                    optimizer_apply(t, 1e-2, p.loss);
                }
            }
}

TEST(Lora, DropoutIsOfTrainingAloneAndTheSameWhenComputedAgain) {
    for (Device dev : devices()) {
        Golden g = read_golden("qwen3");
        Model a, b, c;
        golden_model(a, "qwen3", "none", dev, false, 0.5);
        golden_model(b, "qwen3", "none", dev, false, 0.5);
        golden_model(c, "qwen3", "none", dev);
        Result stored = run_model(a, g, false), recomputed = run_model(b, g, true), without = run_model(c, g, false);
        EXPECT_TRUE(same_bits(stored.logits, recomputed.logits) && same_bits(stored.grads, recomputed.grads));
        EXPECT_FALSE(same_bits(stored.logits, without.logits));
        Result next = run_model(a, g, false, 1);
        EXPECT_FALSE(same_bits(stored.logits, next.logits)) << "each pass draws its own";
        Model d, e;
        tiny_model(d, "int4:g32", dev, false, 0.5);
        tiny_model(e, "int4:g32", dev);
        std::vector<Completion> x = sample(d), y = sample(e);
        for (size_t i = 0; i < x.size(); i++)
            EXPECT_TRUE(x[i].tokens == y[i].tokens && same_bits(x[i].logps, y[i].logps));
    }
}

TEST(Lora, TheReferencePolicyIsTheBase) {
    for (Device dev : devices()) {
        Model m, zero;
        tiny_model(m, "int4:g32", dev);
        std::vector<Completion> done = sample(m);
        Trainer t;
        trainer_init(t, m, 64, false);
        Pass base;
        base.adapter = false;
        std::vector<std::vector<float>> ref = completion_logps(t, m, base, prompts(), done, grpo_config());
        tiny_model(zero, "int4:g32", dev);
        set_zero(zero.lora.master.data, zero.lora.master.bytes(), dev);
        model_refresh(zero);
        Trainer t0;
        trainer_init(t0, zero, 64, false);
        GrpoConfig c = grpo_config();
        c.beta = 0.1;
        std::vector<Completion> as_base = done;
        for (size_t i = 0; i < done.size(); i++) as_base[i].logps = ref[i];
        PolicyPass p = policy_pass(t0, prompts(), as_base, advantages(done.size()), {}, grpo_config());
        EXPECT_EQ(p.logp_difference_max, 0.0);  // adapter off = adapter zero
        p = policy_pass(t, prompts(), done, advantages(done.size()), ref, c);
        EXPECT_GT(p.kl, 0.0);
        EXPECT_EQ(p.logp_difference_max, 0.0);  // and it is on again
    }
}

TEST(Lora, TrainingLowersTheLossAndLeavesTheBaseAsItIs) {
    Model m;
    tiny_model(m, "int4:g32", model_device());
    lora_init(m.lora, m.dev);  // B zero
    model_refresh(m);
    Trainer t;
    trainer_init(t, m, 64, true);
    EXPECT_EQ(t.grads.size, m.lora.num_params);
    EXPECT_EQ(t.optimizer.tensors[0].count(), (int64_t)m.lora.num_params);
    std::vector<char> codes(m.packed_codes.data, m.packed_codes.data + m.packed_codes.size);
    std::vector<floatX> work(m.work.data, m.work.data + m.work.size);
    std::vector<int> ids = {1, 5, 9, 33, 20, 44, 3, 17, 80, 2};
    double first = 0.0, last = 0.0;
    for (int step = 0; step < 12; step++) {
        Batch b;
        ScoredTokens s;
        batch_add_sequence(b, ids.data(), (int)ids.size());
        score_last_sequence(s, b, 0);
        score_forward_training(t, b, s, 1.0f);
        score_fetch(s, t.score, m.dev);
        last = 0.0;
        for (float logp : s.logp) last -= logp / (double)s.size();
        if (step == 0) first = last;
        score_backward(t, std::vector<float>(s.size(), -1.0f / (float)s.size()), 1.0f);
        OptimizerResult r = optimizer_apply(t, 1e-2, last);
        EXPECT_GT(r.grad_norm, 0.0);
        EXPECT_EQ(r.flip_rate, 0.0);
    }
    EXPECT_LT(last, 0.7 * first);
    EXPECT_EQ(memcmp(codes.data(), m.packed_codes.data, codes.size()), 0);
    EXPECT_EQ(memcmp((void*)work.data(), (void*)m.work.data, work.size() * sizeof(floatX)), 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// inside the quantizer

TEST(L4Q, UnquantizedItIsLora) {
    for (std::string name : {"qwen2", "qwen3"})
        for (Device dev : devices()) {
            Golden g = read_golden(name);
            Model m;
            golden_model(m, name, "int4:channel", dev, true);
            model_refresh(m, false);
            Result r = run_model(m, g, false, 0, full_precision());
            EXPECT_LE(relative(r.logits.data(), g.logits.data(), (int64_t)g.logits.size()), LOGITS_RELATIVE);
            expect_golden_gradients(m, g, r.grads);
        }
}

// the gradient of Q(W0 + s B A) by a full-parameter model of the same numbers; then dA and dB in double
TEST(L4Q, GradientsAreThoseOfTheQuantizedSumWhereItIsNotClipped) {
    for (Device dev : devices()) {
        Golden g = read_golden("qwen3");
        Model m, full;
        golden_model(m, "qwen3", "int3:channel", dev, true);
        Result r = run_model(m, g, false);
        full.dev = dev;
        model_allocate(full, model_config("test/golden/qwen3"));
        model_quantize(full, rules_of("int3:channel", "all", ScaleMode::dynamic, SteRule::clip), false);
        model_load_weights(full, "test/golden/qwen3");
        const int64_t rank = m.lora.config.r;
        const double s = m.lora.scale;
        for (const ParamTensor& t : full.tensors)
            for (const LoraTensor& a : m.lora.tensors)
                if (a.name == t.name)
                    lora_combine(m.lora, full.master.data + t.offset, m.master.data + t.offset, a, dev);
        model_refresh(full);
        Result f = run_model(full, g, false);
        EXPECT_TRUE(same_bits(f.logits, r.logits));
        int clipped = 0;
        const std::vector<LinearPart*> quantized = quantized_parts(full);
        for (size_t i = 0; i < quantized.size(); i++) {
            QuantizedTensor q = *quantized[i];
            std::vector<float> dw(f.grads.begin() + q.offset, f.grads.begin() + q.offset + q.rows * q.cols);
            quantized_tensor_backward(q, dw.data(), q.master, Device());
            for (size_t k = 0; k < dw.size(); k++) clipped += dw[k] == 0.0f && f.grads[q.offset + k] != 0.0f;
            const LoraTensor& t = m.lora.tensors[i];
            ASSERT_EQ(t.name, q.name);
            std::vector<float> da(rank * t.cols), db(t.rows * rank);
            for (int64_t k = 0; k < rank; k++)
                for (int64_t c = 0; c < t.cols; c++) {
                    double sum = 0.0;
                    for (int64_t n = 0; n < t.rows; n++)
                        sum += m.lora.master[t.b + n * rank + k] * (double)dw[n * t.cols + c];
                    da[k * t.cols + c] = (float)(s * sum);
                }
            for (int64_t n = 0; n < t.rows; n++)
                for (int64_t k = 0; k < rank; k++) {
                    double sum = 0.0;
                    for (int64_t c = 0; c < t.cols; c++)
                        sum += m.lora.master[t.a + k * t.cols + c] * (double)dw[n * t.cols + c];
                    db[n * rank + k] = (float)(s * sum);
                }
            EXPECT_LE(relative(r.grads.data() + t.a, da.data(), rank * t.cols), GRADIENT_RELATIVE) << t.name;
            EXPECT_LE(relative(r.grads.data() + t.b, db.data(), t.rows * rank), GRADIENT_RELATIVE) << t.name;
        }
        EXPECT_GT(clipped, 0) << "the mask was not tried";
    }
}

// One linear and its five gradients, restated in float64 with the paper's quantizer: with W = W0 + s B A, of each group
//   w = (W - b) / a,  w~ = round(clamp(w, Qn, Qp)),  Wq = a w~ + b,  Y = X Wq^T,  G = dY^T X
// The paper's gradients, which stand beside their lines below, have no gradient scale; learned_backward has LSQ's h.
// Its integers here are those of an asymmetric grid, Qn = 0 and Qp = 2^bits - 1, and b = -z a with z an integer.
// They start elsewhere: the paper with a = max(|min / Qn|, |max / Qp|) of signed integers and b = 0, here with the
// measured grid of W0 (B is 0), a = (max - min) / Qp in bf16 and b = -rint(-min / a) a, which leaves no code unused.
TEST(L4Q, TheGradientsOfALinearAreThePapers) {
    const double tolerance = sizeof(floatX) == 4 ? 2e-5 : 0.02;
    const int64_t T = 7, r = 3;
    LoraConfig config;
    config.r = (int)r, config.alpha = 6, config.inside_quantizer = true;
    for (Device dev : devices()) {
        Model m;
        m.dev = dev;
        model_allocate(m, tiny_config(1));
        model_quantize(
            m, rules_of("int3:g32:asym", "all", ScaleMode::learned, SteRule::identity, LearnedScale::lsq_offset), true);
        model_adapt(m, config, 11, true);
        for (size_t i = 0; i < m.num_params; i++)
            m.master.data[i] = uniform01(rng_bits(8, RNG_INIT, 1, (uint32_t)i, 0).x[0]) - 0.4f;
        lora_init(m.lora, dev);
        model_refresh(m);
        Trainer t;
        trainer_init(t, m, 16, true);
        trainer_bind(t);
        Linear& l = m.layers[0].o;
        LinearPart& p = l.parts[0];
        const LoraTensor& adapter = m.lora.tensors[l.adapter.first];
        const int64_t R = p.rows, C = p.cols, n = R * C, group = p.group;
        const double s = m.lora.scale, Qp = 7;
        for (int64_t k = 0; k < p.groups; k++) {  // the start
            double least = 0, most = 0;
            for (int64_t i = k * group; i < (k + 1) * group; i++)
                least = std::min(least, (double)p.master[i]), most = std::max(most, (double)p.master[i]);
            EXPECT_NEAR(p.learned.a[k], (most - least) / Qp, p.learned.a[k] / 256);
            EXPECT_EQ(p.learned.b[k], -std::rint(-(float)least / p.learned.a[k]) * p.learned.a[k]);
        }
        for (int64_t i = 0; i < R * r; i++)
            m.lora.master[adapter.b + i] = 0.4f * (uniform01(rng_bits(9, RNG_INIT, 0, (uint32_t)i, 0).x[0]) - 0.5f);
        for (int64_t k = 0; k < p.groups; k++) {  // narrower, so that some numbers lie outside
            const float z = -p.learned.b[k] / p.learned.a[k];
            p.learned.a[k] = (float)bf16(0.7f * p.learned.a[k]);
            p.learned.b[k] = -rintf(z) * p.learned.a[k];
        }
        model_refresh(m);
        TestBuffer<floatX> x(random_values<floatX>(T * C, 1), dev), dy(random_values<floatX>(T * R, 2), dev);
        TestBuffer<floatX> y(T * R, dev), dx(T * C, dev);
        linear_forward(l, y.data, x.data, nullptr, nullptr, T, Pass(), dev);
        linear_backward(l, dx.data, dy.data, x.data, nullptr, T, Pass(), dev);

        const std::vector<floatX> X = x.get(), dY = dy.get();
        const float* source = part_source(p, Device());
        std::vector<float> W(source, source + n);
        std::vector<double> Wq(n), G(n, 0.0), in(n), da(p.groups, 0.0), db(p.groups, 0.0);
        const float *A = m.lora.master.data + adapter.a, *B = m.lora.master.data + adapter.b;
        int64_t outside = 0;
        for (int64_t i = 0; i < n; i++) {
            double w0 = p.master[i];
            for (int64_t k = 0; k < r; k++) w0 += s * B[i / C * r + k] * A[k * C + i % C];  // W = W0 + s B A
            EXPECT_NEAR(W[i], w0, tolerance) << i;
            for (int64_t row = 0; row < T; row++)  // G = dY^T X
                G[i] += (double)(float)dY[row * R + i / C] * (float)X[row * C + i % C];
            const int64_t k = i / group;
            const double a = p.learned.a[k], b = p.learned.b[k], w = (W[i] - b) / a;
            const double level = std::nearbyint(std::min(std::max(w, 0.0), Qp));
            Wq[i] = a * level + b;
            in[i] = w >= 0.0 && w <= Qp;
            outside += in[i] == 0.0;
            da[k] += G[i] * (in[i] != 0.0 ? level - w : level);  // da = sum G (w~ - w inside; Qn, Qp outside)
            db[k] += G[i] * (1.0 - in[i]);                       // db = sum G outside
        }
        EXPECT_GT(outside, n / 20);
        auto close = [&](const char* what, const auto* got, const std::vector<double>& expected) {
            const std::vector<float> mine(got, got + expected.size()), paper(expected.begin(), expected.end());
            EXPECT_LE(relative(mine.data(), paper.data(), (int64_t)mine.size()), tolerance) << what;
        };
        std::vector<double> Y(T * R, 0.0), dX(T * C, 0.0), dA(r * C, 0.0), dB(R * r, 0.0);
        for (int64_t row = 0; row < T; row++)
            for (int64_t i = 0; i < n; i++) {
                Y[row * R + i / C] += (float)X[row * C + i % C] * Wq[i];    // Y = X Wq^T
                dX[row * C + i % C] += (float)dY[row * R + i / C] * Wq[i];  // dX = dY Wq
            }
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = 0; k < r; k++) {
                dA[k * C + i % C] += s * B[i / C * r + k] * G[i] * in[i];  // dA = s B^T (G inside)
                dB[i / C * r + k] += s * G[i] * in[i] * A[k * C + i % C];  // dB = s (G inside) A^T
            }
        const double h = 1.0 / std::sqrt((double)n * Qp);
        for (double& v : da) v *= h;
        for (double& v : db) v *= h;
        close("Y", y.get().data(), Y);
        close("dX", dx.get().data(), dX);
        close("dA", m.lora.grads + adapter.a, dA);
        close("dB", m.lora.grads + adapter.b, dB);
        close("da", p.learned.da, da);
        close("db", p.learned.db, db);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// files

TEST(Peft, WhatIsSavedIsWhatWasRead) {
    for (std::string name : {"qwen2", "qwen3"}) {
        Model m;
        golden_model(m, name, "int8:channel", model_device());
        std::string dir = scratch_folder("saved"), from = "test/golden/lora_" + name;
        peft_save(m.lora, dir, "test/golden/" + name, m.dev);
        PeftAdapter a = peft_open(from), b = peft_open(dir);
        EXPECT_EQ(a.base, b.base);
        EXPECT_EQ(a.config.r, b.config.r);
        EXPECT_EQ(a.config.alpha, b.config.alpha);
        EXPECT_EQ(a.config.rslora, b.config.rslora);
        EXPECT_EQ(a.config.target, b.config.target);
        ASSERT_EQ(a.file.tensors.size(), b.file.tensors.size());
        for (const auto& [tensor, t] : a.file.tensors) {
            const StTensor* other = st_find(b.file.tensors, tensor);
            ASSERT_TRUE(other && other->bytes == t.bytes) << tensor;
            EXPECT_EQ(memcmp(other->data, t.data, t.bytes), 0) << tensor;
        }
        std::filesystem::remove_all(dir);
    }
}

TEST(Peft, MergedWeightsAreTheSameFunctionInFullPrecision) {
    for (std::string name : {"qwen2", "qwen3"}) {
        Golden g = read_golden(name);
        Model m, merged;
        golden_model(m, name, "none", model_device());
        std::string dir = scratch_folder("merged");
        MergeReport report = merged_save(m, dir, "float32", [](const std::string&) {});
        EXPECT_GT(report.added / report.base, 0.01);
        EXPECT_EQ(report.lost, 0.0);
        merged.dev = model_device();
        model_load(merged, dir);
        model_refresh(merged);
        Result r = run_model(merged, g, false);
        EXPECT_LE(relative(r.logits.data(), g.logits.data(), (int64_t)g.logits.size()), LOGITS_RELATIVE);
        Model packed;
        golden_model(packed, name, "int4:channel", model_device());
        report = merged_save(packed, dir, "float32", [](const std::string&) {});
        EXPECT_GT(report.lost / report.base, 0.01);  // 4 bits do not hold the sum
        std::filesystem::remove_all(dir);
    }
}

// a valid adapter_config.json with one key changed
static std::string config_with(const std::string& key, const nlohmann::json& value) {
    nlohmann::json j = nlohmann::json::parse(read_file("test/golden/lora_qwen3/adapter_config.json"));
    j[key] = value;
    return j.dump();
}

static std::string refusal(const std::function<void()>& f) {
    try {
        f();
    } catch (const Error& e) { return e.what(); }
    return "";
}

TEST(Peft, ConfigurationsOfOtherFunctionsAreRefused) {
    struct Case {
        std::string key;
        nlohmann::json value;
        const char* says;
    };
    const Case cases[] = {
        {"peft_type", "IA3", "only LORA"},
        {"use_dora", true, "use_dora"},
        {"use_qalora", true, "use_qalora"},
        {"rank_pattern", {{"q_proj", 8}}, "rank_pattern"},
        {"alpha_pattern", {{"q_proj", 8}}, "alpha_pattern"},
        {"modules_to_save", {"lm_head"}, "modules_to_save"},
        {"layers_to_transform", {0}, "layers_to_transform"},
        {"bias", "all", "bias"},
        {"lora_bias", true, "lora_bias"},
        {"fan_in_fan_out", true, "fan_in_fan_out"},
        {"init_lora_weights", "pissa", "pissa"},
        {"target_modules", {"q_proj", "lm_head"}, "lm_head"},
        {"target_modules", ".*q_proj", "target_modules"},
        {"target_modules", nlohmann::json::array(), "target_modules"},
        {"target_modules", nullptr, "target_modules"},
        {"r", 0, "r is 0"},
        {"r", 1.5, "r"},
        {"r", 1e9, "r is"},
        {"lora_alpha", "x", "lora_alpha"},
        {"lora_dropout", 1.0, "lora_dropout"},
    };
    for (const Case& c : cases) {
        LoraConfig config;
        std::string base;
        std::string message =
            refusal([&] { peft_config_from_json(config_with(c.key, c.value), "here", &config, &base); });
        EXPECT_NE(message.find(c.says), std::string::npos) << c.key << ": " << message;
        EXPECT_NE(message.find("here"), std::string::npos);
    }
    LoraConfig config;
    std::string base;
    peft_config_from_json(config_with("target_modules", "all-linear"), "here", &config, &base);
    EXPECT_EQ(config.target, "all");
    EXPECT_NE(refusal([&] { peft_config_from_json("[]", "here", &config, &base); }), "");
}

TEST(Peft, FilesThatDoNotFitAreRefused) {
    Model m;
    golden_model(m, "qwen3", "none", Device());
    std::string dir = scratch_folder("bad");
    EXPECT_NE(refusal([&] { peft_open(dir); }).find("adapter_config.json"), std::string::npos);
    auto write = [&](const std::function<void(std::vector<StWriteTensor>&, std::vector<float>&)>& change) {
        std::vector<float> host(m.lora.master.data, m.lora.master.data + m.lora.num_params);
        std::vector<StWriteTensor> tensors;
        for (const LoraTensor& t : m.lora.tensors) {
            tensors.push_back(st_from_float(peft_name(t.name, 'A'), "F32", {4, t.cols}, host.data() + t.a));
            tensors.push_back(st_from_float(peft_name(t.name, 'B'), "F32", {t.rows, 4}, host.data() + t.b));
        }
        change(tensors, host);
        write_file_atomic(dir + "/adapter_config.json", peft_config_to_json(m.lora.config, "base"));
        st_write(dir + "/adapter_model.safetensors", tensors);
        return refusal([&] { peft_load(peft_open(dir), m.lora, m.dev); });
    };
    EXPECT_EQ(write([](auto&, auto&) {}), "");
    EXPECT_NE(write([](auto& t, auto&) { t.pop_back(); }).find("lora_B"), std::string::npos);
    EXPECT_NE(write([](auto& t, auto&) { t[3].shape = {4, t[3].shape[0]}; }).find("lora_B"), std::string::npos);
    EXPECT_NE(write([&](auto&, auto& x) { x[m.lora.tensors[2].b] = NAN; }).find("not finite"), std::string::npos);
    EXPECT_NE(write([](auto& t, auto&) {
                  t.push_back(t[0]);
                  t.back().name = "base_model.model.model.layers.7.mlp.up_proj.lora_A.weight";
              }).find("layers.7"),
              std::string::npos);
    std::filesystem::remove_all(dir);
}

TEST(Frozen, OnlyWhatIsNamedIsPacked) {
    Model half;
    model_allocate_frozen(half, model_config("test/golden/qwen3"), rules_of("int4:channel", "q,k,v,down"));
    EXPECT_EQ(half.layers[0].o.packed[0].codes.N, 0);
    EXPECT_GT(half.layers[1].down.packed[0].codes.N, 0);
    EXPECT_EQ(half.layers[1].qkv.packed.size(), 1u);
}
