// Linears that are quantized in a rotated basis: their texts; gradients against float64; that what knows a weight and its
// Q(W) (CAGE), a second set of weights and a captured decode step know the basis too; and what RoSTE chooses.
#include <gtest/gtest.h>
#include "../rollout.cuh"
#include "../train/trainer.cuh"
#include "operator_test.h"
#include "test_device.h"
#include "tiny_model.h"

static const int64_t T = 5;
static constexpr bool FP32 = sizeof(floatX) == 4;

static void make_model(Model& m, const std::string& weights, const std::string& activations = "none", int layers = 2,
                       SteRule ste = SteRule::identity) {
    m.dev = model_device();
    model_allocate(m, tiny_config(layers));
    model_quantize(m, rules_of(weights, "all", ScaleMode::dynamic, ste), true);
    model_quantize_activations(m, rules_for("activations", activations), ste);
    model_init_random(m, 3);
    for (const ParamTensor& t : m.tensors)
        for (int64_t i = 0; i < t.count() && t.kind == ParamKind::linear; i++) m.master[t.offset + i] *= 6.0f;
    model_refresh(m);
}

static Linear& linear(Model& m, int i) { return *layer_linears(m.layers[i / 4])[i % 4]; }

static Batch some_text() {
    Batch b;
    std::vector<int> ids;
    for (int i = 0; i < 23; i++) ids.push_back((7 * i + 3) % 100);
    batch_add_sequence(b, ids.data(), 14);
    batch_add_sequence(b, ids.data() + 14, 9);
    return b;
}

static std::vector<floatX> hidden_of(Model& m, const Batch& b, const Pass& pass) {
    Activations a;
    activations_allocate(a, m, b.T(), ActivationMode::inference);
    model_forward(m, a, b, pass);
    device_synchronize(m.dev);
    return std::vector<floatX>(a.hidden, a.hidden + (size_t)b.T() * m.C());
}

template <class A, class B>
static double relative(const std::vector<A>& a, const std::vector<B>& b) {
    double dd = 0.0, bb = 0.0;
    for (size_t i = 0; i < b.size(); i++) {
        const double x = (double)(float)a[i], y = (double)(float)b[i];
        dd += (x - y) * (x - y), bb += y * y;
    }
    return a.size() == b.size() ? std::sqrt(dd / bb) : INFINITY;
}

// rows of H x or H^T x, in float64
static std::vector<double> turned(std::vector<double> x, int64_t cols, bool back) {
    const Hadamard h = hadamard_for(cols);
    std::vector<double> buffer((size_t)h.N());
    for (size_t at = 0; at < x.size(); at += (size_t)h.N()) hadamard_double(&x[at], buffer.data(), h, back);
    return x;
}
template <class A>
static std::vector<double> doubles(const A* x, int64_t n) {
    std::vector<double> d;
    for (int64_t i = 0; i < n; i++) d.push_back((double)(float)x[i]);
    return d;
}

TEST(Basis, ATextNamesLinears) {
    const ModelConfig c = tiny_config(3);
    auto text = [&](const std::string& where) { return rotated_text(rotated_linears(c, where)); };
    for (const char* canonical : {"none", "all", "down", "q,k,v,gate,up", "layers.1.o", "o,layers.0-1.down",
                                  "layers.0.q,layers.0.k,layers.0.v,layers.2.q,layers.2.k,layers.2.v"})
        EXPECT_EQ(text(canonical), canonical);
    EXPECT_EQ(text("layers.0-2"), "all");
    EXPECT_EQ(text("*.mlp.*, layers.1"), "layers.1.q,layers.1.k,layers.1.v,layers.1.o,gate,up,down");
    EXPECT_EQ(rotated_list(rotated_linears(c, "o,layers.0-1.down")), "o of layers 0-2; down of layers 0-1");
    auto refused = [&](const ModelConfig& config, const std::string& where, const char* part) {
        try {
            rotated_linears(config, where);
            ADD_FAILURE() << where << " was taken";
        } catch (const Error& e) {
            EXPECT_EQ(e.exit_code, 2);
            EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
        }
    };
    refused(c, "q,k", "q,k,v of layer 0 multiply the same input");
    refused(c, "layers.3", "'layers.3' names no linear");
    refused(c, "head", "names no linear");
    refused(c, "", "'' names no linear");
    ModelConfig r4 = c;
    r4.rotate_down = 32;
    refused(r4, "all", "rotated already");
    EXPECT_EQ(rotated_text(rotated_linears(r4, "q,k,v")), "q,k,v");
}

// dW' and dx' of the rotated product by float64, through the rules of the quantizers, and rotated back
TEST(Basis, GradientsAreThoseOfTheRotatedProductRotatedBack) {
    for (SteRule ste : {SteRule::identity, SteRule::clip}) {
        Model m;
        make_model(m, "int4:g16:sym", "int4:token:sym", 1, ste);
        model_rotate(m, "all");
        model_refresh(m);
        bool clipped_weights = false, clipped_inputs = false;
        TestBuffer<float> grads(std::vector<float>(m.num_params, 0.0f), m.dev);
        model_bind_gradients(m, grads.data);
        for (int i = 0; i < 4; i++) {  // rows of 64 and, with a matrix that is not symmetric, of 96
            Linear& l = linear(m, i);
            const int64_t R = l.rows, C = l.cols;
            const std::vector<floatX> x = random_values<floatX>(T * C, 5), d = random_values<floatX>(T * R, 6);
            TestBuffer<floatX> in(x, m.dev), dout(d, m.dev), out(T * R, m.dev), dinp(T * C, m.dev), qx(T * C, m.dev);
            linear_transform(l, in.data, T, m.dev);
            EXPECT_LE(relative(in.get(), turned(doubles(x.data(), T * C), C, false)), FP32 ? 1e-6 : 4e-3);
            linear_forward(l, out.data, in.data, nullptr, qx.data, T, Pass(), m.dev);
            const std::vector<floatX> q = qx.get();
            linear_backward(l, dinp.data, dout.data, in.data, qx.data, T, Pass(), m.dev);
            linear_transform_backward(l, dinp.data, in.data, T, m.dev);
            std::vector<double> expected_out(T * R), dx(T * C), dw(R * C);
            for (int64_t t = 0; t < T; t++)
                for (int64_t r = 0; r < R; r++)
                    for (int64_t c = 0; c < C; c++) {
                        const double w = (double)(float)l.weight.work[r * C + c], g = (double)(float)d[t * R + r];
                        expected_out[t * R + r] += (double)(float)q[t * C + c] * w;
                        dx[t * C + c] += g * w, dw[r * C + c] += g * (double)(float)q[t * C + c];
                    }
            EXPECT_LE(relative(out.get(), expected_out), FP32 ? 1e-6 : 4e-3);
            TestBuffer<floatX> pass_x(std::vector<floatX>(T * C, (floatX)1.0f), m.dev);  // the rule's mask
            fake_quant_rows_backward(pass_x.data, in.data, T, C, l.input, m.dev);
            const std::vector<floatX> mask_x = pass_x.get();
            for (int64_t k = 0; k < T * C; k++) dx[k] *= (float)mask_x[k], clipped_inputs |= (float)mask_x[k] == 0.0f;
            EXPECT_LE(relative(dinp.get(), turned(dx, C, true)), FP32 ? 2e-6 : 1e-2);
            for (LinearPart& p : l.parts) {
                const float* source = part_source(p, m.dev);
                const std::vector<double> w = turned(doubles(p.master, p.count()), C, false);
                EXPECT_LE(relative(std::vector<float>(source, source + p.count()), w), 1e-6) << p.name;
                TestBuffer<floatX> again(p.count(), m.dev);  // Q of that, by the grid of the refresh
                fake_quant_forward({again.data, nullptr, p.grid}, source, quantized_tensor_groups(p), p.quantizer.spec,
                                   false, m.dev);
                EXPECT_TRUE(same_bits(again.get(), std::vector<floatX>(p.work, p.work + p.count()))) << p.name;
                TestBuffer<float> pass_w(std::vector<float>((size_t)p.count(), 1.0f), m.dev);
                quantized_tensor_backward(p, pass_w.data, source, m.dev);
                const std::vector<float> mask = pass_w.get();
                std::vector<double> part(dw.begin() + p.row0 * C, dw.begin() + (p.row0 + p.rows) * C);
                for (size_t k = 0; k < part.size(); k++) part[k] *= mask[k], clipped_weights |= mask[k] == 0.0f;
                part_gradient(p, p.grad, source, true, m.dev);
                EXPECT_LE(relative(std::vector<float>(p.grad, p.grad + p.count()), turned(part, C, true)), 2e-6)
                    << p.name;
            }
        }
        EXPECT_EQ(clipped_weights && clipped_inputs, ste == SteRule::clip);
    }
}

// a hook at the gradient is given w and dw in the master's basis; so is what is made of the master before
TEST(Basis, HooksSeeTheMastersBasis) {
    Model m;
    make_model(m, "int4:g16");
    model_rotate(m, "down");
    LinearPart& p = m.layers[0].down.parts[0];
    std::vector<float> seen;
    TestBuffer<float> doubled((size_t)p.count(), m.dev), dw(std::vector<float>((size_t)p.count(), 1.0f), m.dev);
    WeightHook hook;
    hook.before_quantize = [&](LinearPart& part, const float* w) -> const float* {
        for (int64_t i = 0; i < part.count(); i++) doubled.data[i] = 2.0f * w[i];
        return doubled.data;
    };
    hook.at_gradient = [&](LinearPart& part, float*, const float* w) { seen.assign(w, w + part.count()); };
    p.hooks = {hook};
    const float* source = part_source(p, m.dev);
    EXPECT_LE(relative(std::vector<float>(source, source + p.count()),
                       turned(doubles(doubled.data, p.count()), p.cols, false)),
              1e-6);
    part_gradient(p, dw.data, source, true, m.dev);
    EXPECT_LE(relative(seen, doubled.get()), 1e-6);
    p.hooks.clear();
}

// CAGE's residual is that of the basis: pulled all the way, a weight lies on its grid there
TEST(Basis, CagePullsTowardsTheGridOfTheBasis) {
    for (const char* form : {"decoupled", "coupled"}) {
        Model m;
        make_model(m, "int4:g16");
        model_rotate(m, "all");
        model_refresh(m);
        Trainer t;
        trainer_init(t, m, 64, false, OptimizerConfig(),
                     training_methods_parse(std::string("cage:lambda=10:silence=0:form=") + form));
        LinearPart& p = m.layers[1].down.parts[0];
        ASSERT_EQ(p.hooks.size(), 1u);
        const float* s = part_source(p, m.dev);
        const std::vector<float> source(s, s + p.count());
        const std::vector<floatX> work(p.work, p.work + p.count());
        EXPECT_GT(relative(source, work), 0.01);
        if (form == std::string("decoupled")) {
            p.hooks[0].after_step(p, {1.0, 1, 1.0});
            s = part_source(p, m.dev);
            EXPECT_LE(relative(std::vector<float>(s, s + p.count()), work), 1e-6);
            continue;
        }
        TestBuffer<float> dw(std::vector<float>((size_t)p.count(), 0.0f), m.dev);
        p.hooks[0].before_update(p, dw.data, {1.0, 1.0});
        const std::vector<float> pull = dw.get();
        std::vector<double> residual;
        for (size_t i = 0; i < work.size(); i++)
            residual.push_back(10.0 * ((double)source[i] - (double)(float)work[i]));
        EXPECT_LE(relative(turned(doubles(pull.data(), p.count()), p.cols, false), residual), 1e-5);
    }
}

// the gradient of the distances to the grid, where that is; what dw was stays
TEST(Basis, DampeningIsThatOfTheBasis) {
    Model m;
    make_model(m, "int4:g16");
    model_rotate(m, "all");
    model_refresh(m);
    Trainer t;
    trainer_init(t, m, 64, false, OptimizerConfig(), training_methods_parse("dampen:lambda=3"));
    LinearPart& p = m.layers[0].down.parts[0];
    const float* s = part_source(p, m.dev);
    std::vector<double> expected;
    for (int64_t i = 0; i < p.count(); i++) {
        const double scale = (double)p.grid[i / 16].scale,
                     w = std::min(std::max((double)s[i], -8.0 * scale), 7.0 * scale);
        expected.push_back(6.0 * (w - (double)(float)p.work[i]));
    }
    const std::vector<float> before = random_values<float>((size_t)p.count(), 4, 0.01f);
    TestBuffer<float> dw(before, m.dev);
    p.hooks[0].before_update(p, dw.data, {1.0, 1.0});
    std::vector<float> added = dw.get();
    for (size_t i = 0; i < added.size(); i++) added[i] -= before[i];
    EXPECT_LE(relative(turned(doubles(added.data(), p.count()), p.cols, false), expected), FP32 ? 1e-5 : 1e-2);
    p.hooks[0].before_update(p, dw.data, {1.0, 0.0});  // lambda 0: there and back
    for (size_t i = 0; i < added.size(); i++) added[i] += before[i];
    EXPECT_LE(relative(dw.get(), added), 1e-6);
}

// A copy of the weights has their bases: it computes the same bits, also when the model has gone on to others
TEST(Basis, AReferenceKeepsItsBasesUntilItFollows) {
    Model m, reference;
    make_model(m, "none");
    const Batch b = some_text();
    model_allocate_reference(reference, m);
    model_rotate(m, "o,layers.0.down");
    model_refresh(m);
    model_copy_work(reference, m);
    const std::vector<floatX> before = hidden_of(m, b, Pass());
    EXPECT_TRUE(same_bits(hidden_of(reference, b, Pass()), before));
    model_set_basis(m, rotated_linears(m.config, "layers.0.down,layers.1.gate,layers.1.up"));
    model_refresh(m);
    EXPECT_TRUE(same_bits(hidden_of(reference, b, Pass()), before));
    model_work_follows(reference, m);
    EXPECT_EQ(rotated_linears(reference), rotated_linears(m));
    EXPECT_LE(relative(std::vector<floatX>(reference.work.data, reference.work.data + reference.work.size),
                       std::vector<floatX>(m.work.data, m.work.data + m.work.size)),
              FP32 ? 1e-6 : 6e-3);
}

// A decode step that was captured in one basis is not replayed in another
TEST(Basis, GenerationFollowsTheBasis) {
    Model m;
    make_model(m, "int4:g16", "int4:token:asym");
    model_rotate(m, "all");
    RolloutConfig c;
    c.max_completion_length = 6;
    c.n_allowed = 100;
    c.prefill_tokens = 64;
    c.max_sequences = 8;
    c.stop_tokens = {100};
    RolloutState kept;
    std::vector<std::vector<float>> logps;
    for (const char* where : {"all", "none"}) {
        model_set_basis(m, rotated_linears(m.config, where));
        model_refresh(m);
        std::vector<float> both[2];
        for (int i = 0; i < 2; i++) {
            RolloutState fresh;
            RolloutConfig run = c;
            run.pass = model_pack(m);
            for (const Completion& done : rollout(m, i ? kept : fresh, {{5, 9, 3}, {1}}, 2, run))
                both[i].insert(both[i].end(), done.logps.begin(), done.logps.end());
            model_unpack(m);
        }
        EXPECT_TRUE(same_bits(both[0], both[1])) << where;
        logps.push_back(both[0]);
    }
    EXPECT_FALSE(same_bits(logps[0], logps[1]));
    if (m.dev.cuda) { EXPECT_GT(kept.graphs.replayed, 0); }
}

// ---------------------------------------------------------------------------------------------------------------------
// RoSTE

static RosteMethod& start_roste(Trainer& t, Model& m, const std::string& text, bool recompute = false) {
    trainer_init(t, m, 64, recompute, OptimizerConfig(), training_methods_parse(text));
    t.methods.list[0]->run.acts = &t.acts;
    t.methods.list[0]->run.sample = {some_text()};
    testing::internal::CaptureStdout();
    methods_start(t);
    testing::internal::GetCapturedStdout();
    return dynamic_cast<RosteMethod&>(*t.methods.list[0]);
}

TEST(Roste, ChoosesByTheErrorOfWeights) {
    Model m;
    make_model(m, "int4:channel:sym:amax7");
    LinearPart &outliers = m.layers[0].down.parts[0], &exact = m.layers[1].down.parts[0];
    for (int64_t i = 0; i < outliers.count(); i++) {
        if (i % outliers.cols == 5) outliers.master[i] = 3.0f;
        exact.master[i] = (float)((i * 7 + i / exact.cols) % 15 - 7) / 16.0f;  // numbers of the grid
    }
    model_forget_grids(m);
    model_refresh(m);
    Trainer t;
    RosteMethod& roste = start_roste(t, m, "roste");
    EXPECT_TRUE(m.layers[0].down.rotated);
    EXPECT_FALSE(m.layers[1].down.rotated);
    EXPECT_EQ(roste.errors[7].plain, 0.0);
    EXPECT_LT(roste.errors[3].rotated, 0.2 * roste.errors[3].plain);
    for (int i = 0; i < 8; i++) {
        Linear& l = linear(m, i);
        EXPECT_EQ(l.rotated, roste.errors[i].rotated < roste.errors[i].plain) << i;
        double error = 0.0;  // of the working weights that came of it
        for (LinearPart& p : l.parts) {
            const float* w = part_source(p, m.dev);
            for (int64_t k = 0; k < p.count(); k++) error += std::pow((double)w[k] - (double)(float)p.work[k], 2);
            EXPECT_EQ(p.flips_total, 0) << p.name;
        }
        const double said = l.rotated ? roste.errors[i].rotated : roste.errors[i].plain;
        EXPECT_NEAR(said, error, 1e-5 * error) << i;
    }
}

// of inputs in full precision, whatever the bases and the working weights are; the mode of the activations does not matter
TEST(Roste, ChoosesByTheErrorOfInputs) {
    Model m;
    make_model(m, "down=int8:channel", "int4:token:asym; layers.1.o=none");
    m.layers[0].ln2.master[9] = 40.0f;
    model_rotate(m, "o");
    model_refresh(m);
    Trainer t, recomputed;
    RosteMethod& roste = start_roste(t, m, "roste");
    EXPECT_TRUE(m.layers[0].gate_up.rotated);
    EXPECT_FALSE(m.layers[1].o.rotated);
    EXPECT_EQ(roste.errors[5].plain, 0.0);
    const RotatedLinears chosen = rotated_linears(m);

    Activations a;
    activations_allocate(a, m, 64, ActivationMode::save_all);
    model_set_basis(m, RotatedLinears(8));
    model_refresh(m, false);
    const Batch b = some_text();
    model_forward(m, a, b, full_precision());
    device_synchronize(m.dev);
    for (int i : {0, 1, 2, 4, 6}) {  // without quantized weights
        const LayerActivations& y = a.layers[i / 4];
        floatX* const x = i % 4 == 0 ? y.ln1 : i % 4 == 1 ? y.att : y.ln2;
        const int64_t C = linear(m, i).cols, n = b.T() * C;
        for (bool rotated : {false, true}) {
            std::vector<floatX> in(x, x + n), q((size_t)n);
            if (rotated) {
                const std::vector<double> r = turned(doubles(x, n), C, false);
                for (int64_t k = 0; k < n; k++) in[k] = (floatX)(float)r[k];
            }
            fake_quant_rows(q.data(), in.data(), b.T(), C, linear(m, i).input, Device());
            double error = 0.0;
            for (int64_t k = 0; k < n; k++)
                error += std::pow((double)(float)in[k] - (double)(float)q[k], 2) / (double)b.T();
            EXPECT_NEAR(rotated ? roste.errors[i].rotated : roste.errors[i].plain, error, (FP32 ? 1e-3 : 2e-2) * error)
                << i << rotated;
        }
    }
    model_refresh(m);
    RosteMethod& again = start_roste(recomputed, m, "roste", true);
    EXPECT_EQ(rotated_linears(m), chosen);
    for (int i = 0; i < 8; i++) EXPECT_EQ(again.errors[i].plain, roste.errors[i].plain) << i;
}

TEST(Roste, ItsChoiceIsStateAndCodesThatTurnAreCounted) {
    Model m;
    make_model(m, "int4:channel:sym:amax7");
    Trainer t;
    RosteMethod& roste = start_roste(t, m, "roste:every=2");
    LinearPart& p = m.layers[0].down.parts[0];
    for (int64_t i = 0; i < p.count(); i++)  // numbers of the grid
        p.master[i] = (float)((i * 7 + i / p.cols) % 15 - 7) / 16.0f;
    linear_set_basis(m.layers[0].down, true);
    model_refresh(m);
    EXPECT_FALSE(roste.after_refresh({1e-3, 1, 0.5}));
    ASSERT_TRUE(m.layers[0].down.rotated);
    EXPECT_TRUE(roste.after_refresh({1e-3, 2, 0.5}));
    EXPECT_FALSE(m.layers[0].down.rotated);
    model_refresh(m, true, true);
    EXPECT_GT(p.flips, p.count() / 4);
    const RotatedLinears now = rotated_linears(m);
    model_set_basis(m, RotatedLinears(8, 1));
    testing::internal::CaptureStdout();
    roste.resumed();
    EXPECT_NE(testing::internal::GetCapturedStdout().find("rotated     "), std::string::npos);
    EXPECT_EQ(rotated_linears(m), now);
}

TEST(Roste, WhatCannotBeIsRefused) {
    auto refused = [&](Model& m, const char* text, const char* part) {
        Trainer t;
        try {
            trainer_init(t, m, 64, false, OptimizerConfig(), training_methods_parse(text));
            ADD_FAILURE() << text << " was taken";
        } catch (const Error& e) {
            EXPECT_EQ(e.exit_code, 2);
            EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
        }
    };
    Model plain, kept, adapted;
    make_model(plain, "none");
    refused(plain, "roste", "no linear is quantized");
    refused(plain, "roste+freeze", "one basis");
    make_model(kept, "int4:channel");
    refused(kept, "roste:rotate=all:every=3", "rotate=adaptive");
    for (LinearPart* p : quantized_parts(kept)) p->quantizer.scale_mode = ScaleMode::kept;
    refused(kept, "roste:every=3", "--qat_scale dynamic");
    model_rotate(kept, "down");
    refused(kept, "freeze", "--hadamard none");
    make_model(adapted, "int4:channel");
    LoraConfig lora;
    lora.r = 2;
    model_adapt(adapted, lora, 1, true);
    refused(adapted, "roste", "--lora_inside_quantizer");
}
