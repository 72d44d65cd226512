// A Linear with quantized inputs, and with parts in several formats: forward and gradients are those of a plain linear
// layer on Q_x(x) and Q(W), the gradient of x passes the straight-through rule, and only what is named is touched.
#include <gtest/gtest.h>
#include <cstring>
#include "../model.cuh"
#include "operator_test.h"
#include "test_device.h"
#include "test_rules.h"

static const int64_t T = 5;

static ModelConfig small_config() {
    ModelConfig c;
    c.model_type = "qwen2";
    c.vocab_size = 40;
    c.hidden_size = 32;
    c.intermediate_size = 48;
    c.num_hidden_layers = 2;
    c.num_attention_heads = 4;
    c.num_key_value_heads = 2;
    c.head_dim = 8;
    c.qkv_bias = true;
    return c;
}

static void small_model(Model& m, const std::string& activations, const std::string& which, SteRule ste,
                        const std::string& weights = "none") {
    m.dev = model_device();
    model_allocate(m, small_config());
    model_init_random(m, 3);
    m.codes_beyond = 0;  // generation reads codes where it can
    model_quantize(m, rules_of(weights), false);
    model_quantize_activations(m, rules_for("activations", activations, which), ste);
    model_refresh(m);
}

static Linear& linear(Model& m, Product p) { return *layer_linears(m.layers[0])[(int)p]; }

struct Products {
    std::vector<floatX> out, dinp;
    std::vector<float> grads;
};

// forward and backward of product p for inputs x, by the model or on inputs that are quantized beforehand
static Products run_product(Model& m, Product p, const std::vector<floatX>& x, const std::vector<floatX>& dout,
                            const Pass& pass = Pass()) {
    Linear& l = linear(m, p);
    TestBuffer<floatX> in(x, m.dev), d(dout, m.dev), out(T * l.rows, m.dev), dinp(T * l.cols, m.dev),
        scratch(T * l.cols, m.dev);
    TestBuffer<float> grads(std::vector<float>(m.num_params, 0.0f), m.dev);
    model_bind_gradients(m, grads.data);
    linear_forward(l, out.data, in.data, l.bias.work, scratch.data, T, pass, m.dev);
    linear_backward(l, dinp.data, d.data, in.data, scratch.data, T, pass, m.dev);
    return {out.get(), dinp.get(), grads.get()};
}

static const Product products[] = {Product::qkv, Product::o, Product::gate_up, Product::down};

TEST(Linear, QuantizedInputsMultiplyAndTheGradientPassesStraightThrough) {
    for (const char* text : {"int8:token:sym", "int4:token:asym", "int4:g8:sym", "fp8e4m3:token", "mxfp4"})
        for (SteRule ste : {SteRule::identity, SteRule::clip})
            for (Product p : products) {
                Quantizer q = quantizer_parse(text, "activations");
                q.ste = ste;
                Model quantized, plain;
                small_model(plain, "none", "all", ste);
                const int64_t rows = linear(plain, p).rows, cols = linear(plain, p).cols;
                if (q.scope == QuantScope::group && cols % q.group) continue;  // mxfp4's 32 and 48 inputs
                std::string which = std::string(text) == "mxfp4" ? "q,k,v,o,gate,up" : "all";
                small_model(quantized, text, which, ste);
                std::vector<floatX> x = random_values<floatX>(T * cols, 5), d = random_values<floatX>(T * rows, 6);
                std::vector<floatX> qx(x.size());
                fake_quant_rows(qx.data(), x.data(), T, cols, q, Device());
                ASSERT_NE(memcmp(qx.data(), x.data(), x.size() * sizeof(floatX)), 0);
                Products a = run_product(quantized, p, x, d), b = run_product(plain, p, qx, d);
                std::string what = std::string(text) + ", product " + std::to_string((int)p);
                EXPECT_TRUE(same_bits(a.out, b.out)) << what;
                EXPECT_TRUE(same_bits(a.grads, b.grads)) << what;
                std::vector<floatX> dx = b.dinp;
                fake_quant_rows_backward(dx.data(), x.data(), T, cols, q, Device());
                EXPECT_TRUE(same_bits(a.dinp, dx)) << what;
                // full precision is that of the activations too
                Products full = run_product(quantized, p, x, d, full_precision()), none = run_product(plain, p, x, d);
                EXPECT_TRUE(same_bits(full.out, none.out)) << what;
            }
}

TEST(Linear, OnlyTheNamedInputsAreQuantizedAndHalfAProductIsRefused) {
    Model m;
    small_model(m, "int4:token:sym", "down", SteRule::identity);
    Model plain;
    small_model(plain, "none", "all", SteRule::identity);
    for (Product p : {Product::qkv, Product::down}) {
        const Linear& l = linear(m, p);
        std::vector<floatX> x = random_values<floatX>(T * l.cols, 5), d = random_values<floatX>(T * l.rows, 6);
        EXPECT_EQ(same_bits(run_product(m, p, x, d).out, run_product(plain, p, x, d).out), p == Product::qkv);
    }
    auto refused = [&](const char* text, const char* which, const char* part) {
        try {
            model_quantize_activations(m, rules_for("activations", text, which));
            ADD_FAILURE() << text << " for " << which << " was taken";
        } catch (const Error& e) {
            EXPECT_EQ(e.exit_code, 2);
            EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
        }
    };
    refused("int8:token:sym", "q,o", "same input");
    refused("int8:tensor:sym", "all", "use token");
    refused("int8:g10:sym", "o", "groups of 10 do not divide the 32 inputs");
}

// q, k and v in three formats and gate alone: sampler (packed), trainer and a frozen base multiply with the same numbers
TEST(Linear, PartsInSeveralFormatsHaveTheSameBitsPackedAndNot) {
    const std::string rules = "int4:g16; k=int8:channel; v=none; up=none; down=nf4:g16; layers.1=fp8e4m3:channel";
    for (bool head : {false, true}) {
        Model m, frozen;
        const std::string text = rules + (head ? "; embed=int8:channel" : "");
        small_model(m, "int8:token", "all", SteRule::identity, text);
        frozen.dev = model_device();
        model_allocate_frozen(frozen, small_config(), rules_of(text));
        model_quantize_activations(frozen, rules_for("activations", "int8:token"));
        LoraConfig lora;
        lora.r = 2;
        model_adapt(frozen, lora, 1, true);
        model_init_random(frozen, 3);
        model_refresh(frozen);
        std::vector<float> adapter_grads(frozen.lora.num_params);
        frozen.lora.grads = adapter_grads.data();
        Pass base;  // the adapter's B is zero, but its product is one more rounding
        base.adapter = false;
        EXPECT_EQ(linear(m, Product::qkv).packed.size(), 3u);
        EXPECT_EQ(linear(m, Product::gate_up).packed.size(), 2u);
        for (Product p : products) {
            const Linear& l = linear(m, p);
            std::vector<floatX> x = random_values<floatX>(T * l.cols, 5), d = random_values<floatX>(T * l.rows, 6);
            Products plain = run_product(m, p, x, d);
            const Pass packed = model_pack(m);
            if (generates_from_codes(m)) { EXPECT_GT(l.packed[0].codes.N, 0); }
            EXPECT_TRUE(same_bits(run_product(m, p, x, d, packed).out, plain.out)) << (int)p << ": packed";
            model_unpack(m);
            TestBuffer<floatX> in(x, m.dev), dout(d, m.dev), out(T * l.rows, m.dev), dinp(T * l.cols, m.dev),
                scratch(T * l.cols, m.dev);
            Linear& f = linear(frozen, p);
            EXPECT_EQ(f.weight.work == nullptr, true);
            linear_forward(f, out.data, in.data, f.bias.work, scratch.data, T, base, m.dev);
            EXPECT_TRUE(same_bits(out.get(), plain.out)) << (int)p << ": frozen";
            const Pass frozen_packed = model_pack(frozen, base);
            linear_forward(f, out.data, in.data, f.bias.work, scratch.data, T, frozen_packed, m.dev);
            EXPECT_TRUE(same_bits(out.get(), plain.out)) << (int)p << ": frozen, generating";
            model_unpack(frozen);
            linear_backward_input(f, dinp.data, dout.data, T, m.dev);
            EXPECT_TRUE(same_bits(dinp.get(), plain.dinp)) << (int)p << ": gradient over a frozen base";
        }
        EXPECT_EQ(memcmp(m.embed.work, frozen.embed.work, (size_t)m.embed.count() * sizeof(floatX)), 0) << head;
    }
}

// What a method does to a weight at its fixed moments: what is quantized, what the gradient becomes, what follows a step
TEST(Linear, HooksRunAtTheirMoments) {
    Model m;
    small_model(m, "none", "all", SteRule::identity, "int4:g16");
    LinearPart& part = m.layers[0].down.parts[0];
    std::vector<float> doubled((size_t)part.count());
    std::vector<std::string> order;
    auto hook = [&](const char* name) {
        WeightHook h;
        h.before_quantize = [&, name](LinearPart& p, const float* w) -> const float* {
            order.push_back(std::string("quantize ") + name);
            for (int64_t i = 0; i < p.count(); i++) doubled[(size_t)i] = 2.0f * w[i];
            return doubled.data();
        };
        h.at_gradient = [&, name](LinearPart& p, float* dw, const float*) {
            order.push_back(std::string("gradient ") + name);
            for (int64_t i = 0; i < p.count(); i++) dw[i] *= 2.0f;
        };
        h.after_step = [&, name](LinearPart& p, const StepInfo& step) {
            order.push_back(std::string("step ") + name);
            EXPECT_EQ(step.step, 7);
            p.master[0] = 42.0f;
        };
        return h;
    };
    std::vector<floatX> before(part.work, part.work + part.count());
    part.hooks = {hook("a"), hook("b")};
    model_refresh(m);
    for (int64_t i = 0; i < part.count(); i++)  // four times the weight has the same codes, and scales alone
        ASSERT_NEAR((float)part.work[i], 4.0f * (float)before[i], 0.02f * std::fabs((float)before[i])) << i;
    std::vector<float> dw((size_t)part.count(), 1.0f);
    part_gradient(part, dw.data(), part_source(part, m.dev), true, m.dev);
    EXPECT_EQ(dw[3], 4.0f);
    for (const WeightHook& h : part.hooks) h.after_step(part, {1e-3, 7});
    EXPECT_EQ(part.master[0], 42.0f);
    const std::vector<std::string> expected = {"quantize a", "quantize b", "quantize a", "quantize b",
                                               "gradient b", "gradient a", "step a",     "step b"};
    EXPECT_EQ(order, expected);
}
