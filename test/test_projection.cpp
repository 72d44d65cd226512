// A layer's products with quantized inputs: forward and gradients are those of a plain linear layer on Q_x(x), the
// gradient of x passes the straight-through rule, and only the named products are touched.
#include <gtest/gtest.h>
#include <cstring>
#include "../projection.cuh"
#include "operator_test.h"
#include "test_device.h"

static const int64_t T = 5;

static void small_model(Model& m, const char* activations, const char* which, SteRule ste) {
    ModelConfig c;
    c.model_type = "qwen2";
    c.vocab_size = 40;
    c.hidden_size = 32;
    c.intermediate_size = 48;
    c.num_hidden_layers = 1;
    c.num_attention_heads = 4;
    c.num_key_value_heads = 2;
    c.head_dim = 8;
    c.qkv_bias = true;
    m.dev = model_device();
    model_allocate(m, c);
    model_init_random(m, 3);
    model_quantize(m, Quantizer(), ScaleMode::dynamic, ste, "all", false);
    model_quantize_activations(m, quantizer_parse(activations, "activations"), which);
    model_refresh(m);
}

struct Products {
    std::vector<floatX> out, dinp;
    std::vector<float> grads;
};

// forward and backward of product p for inputs x, by the model or on inputs that are quantized beforehand
static Products run_product(Model& m, Projection p, const std::vector<floatX>& x, const std::vector<floatX>& dout) {
    ProductShape shape = product_shapes(m)[(int)p];
    TestBuffer<floatX> in(x, m.dev), d(dout, m.dev), out(T * shape.rows, m.dev), dinp(T * shape.cols, m.dev),
        scratch(T * shape.cols, m.dev);
    TestBuffer<float> grads(std::vector<float>(m.num_params, 0.0f), m.dev);
    projection_forward(m, out.data, in.data, scratch.data, 0, p, T);
    projection_backward(m, model_views(m, grads.data), dinp.data, d.data, in.data, scratch.data, 0, p, T);
    return {out.get(), dinp.get(), grads.get()};
}

TEST(Projection, QuantizedInputsMultiplyAndTheGradientPassesStraightThrough) {
    for (const char* text : {"int8:token:sym", "int4:token:asym", "int4:g8:sym", "fp8e4m3:token", "mxfp4"})
        for (SteRule ste : {SteRule::identity, SteRule::clip})
            for (Projection p : {Projection::qkv, Projection::o, Projection::gate_up, Projection::down}) {
                Quantizer q = quantizer_parse(text, "activations");
                ProductShape shape;
                {
                    Model m;
                    small_model(m, "none", "all", ste);
                    shape = product_shapes(m)[(int)p];
                }
                if (q.scope == QuantScope::group && shape.cols % q.group) continue;  // mxfp4's 32 and 48 inputs
                std::string which = std::string(text) == "mxfp4" ? "q,k,v,o,gate,up" : "all";
                Model quantized, plain;
                small_model(quantized, text, which.c_str(), ste);
                small_model(plain, "none", "all", ste);
                std::vector<floatX> x = random_values<floatX>(T * shape.cols, 5),
                                    d = random_values<floatX>(T * shape.rows, 6);
                std::vector<floatX> qx(x.size());
                fake_quant_rows(qx.data(), x.data(), T, shape.cols, q, Device());
                ASSERT_NE(memcmp(qx.data(), x.data(), x.size() * sizeof(floatX)), 0);
                Products a = run_product(quantized, p, x, d), b = run_product(plain, p, qx, d);
                std::string what = std::string(text) + ", product " + std::to_string((int)p);
                EXPECT_TRUE(same_bits(a.out, b.out)) << what;
                EXPECT_TRUE(same_bits(a.grads, b.grads)) << what;
                std::vector<floatX> dx = b.dinp;
                fake_quant_rows_backward(dx.data(), x.data(), T, shape.cols, q, ste, Device());
                EXPECT_TRUE(same_bits(a.dinp, dx)) << what;
                quantized.quantize = false;  // full precision is that of the activations too
                EXPECT_TRUE(same_bits(run_product(quantized, p, x, d).out, run_product(plain, p, x, d).out)) << what;
            }
}

TEST(Projection, OnlyTheNamedProductsAreQuantizedAndHalfAProductIsRefused) {
    Model m;
    small_model(m, "int4:token:sym", "down", SteRule::identity);
    Model plain;
    small_model(plain, "none", "all", SteRule::identity);
    for (Projection p : {Projection::qkv, Projection::down}) {
        ProductShape shape = product_shapes(m)[(int)p];
        std::vector<floatX> x = random_values<floatX>(T * shape.cols, 5), d = random_values<floatX>(T * shape.rows, 6);
        EXPECT_EQ(same_bits(run_product(m, p, x, d).out, run_product(plain, p, x, d).out), p == Projection::qkv);
    }
    auto refused = [&](const char* text, const char* which, const char* part) {
        try {
            model_quantize_activations(m, quantizer_parse(text, "activations"), which);
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
