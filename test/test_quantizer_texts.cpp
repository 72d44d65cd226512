// Texts of quantizers, good and bad, and quantized tensors: flips, groups, straight-through rules by name.
#include "quantized_tensor.h"
#include "test_rules.h"

static const Device CPU;

TEST(Quantizer, TextsRoundTrip) {
    EXPECT_FALSE(quantizer_parse("none", "weights").on());
    EXPECT_EQ(quantizer_text(quantizer_parse("none", "weights")), "none");
    for (int bits : {8, 6, 5, 4, 3, 2})
        for (const char* scope : {"tensor", "channel", "g16", "g32", "g64", "g128"})
            for (const char* rest : {"", ":sym", ":asym"}) {
                std::string t = format("int%d:%s%s", bits, scope, rest);
                Quantizer q = quantizer_parse(t, "weights");
                EXPECT_TRUE(q.on());
                EXPECT_EQ(q.spec.bits, bits);
                EXPECT_EQ(q.spec.symmetric, std::string(rest) != ":asym");
                EXPECT_EQ(q.group, scope[0] == 'g' ? atoi(scope + 1) : 0);
                EXPECT_EQ(quantizer_text(q), *rest ? t : t + ":sym");
            }
}

TEST(Quantizer, OtherFormatsHaveCanonicalTextsToo) {
    struct {
        const char *text, *canonical, *flag;
    } texts[] = {{"int4:g64:amax7", "int4:g64:sym:amax7", "weights"},
                 {"int4:g64:sym:signedmax", "int4:g64:sym:signedmax", "weights"},
                 {"int3:g128:asym:mse", "int3:g128:asym:mse", "weights"},
                 {"nf4", "nf4:g64", "weights"},
                 {"nf4:dq", "nf4:g64:dq", "weights"},
                 {"nf4:g32:dq", "nf4:g32:dq", "weights"},
                 {"fp8e4m3:tensor", "fp8e4m3:tensor", "weights"},
                 {"fp8e5m2:channel", "fp8e5m2:channel", "weights"},
                 {"fp8e4m3:128x128", "fp8e4m3:128x128", "weights"},
                 {"mxfp8", "mxfp8", "weights"},
                 {"mxfp4", "mxfp4", "weights"},
                 {"nvfp4", "nvfp4", "weights"},
                 {"ternary", "ternary:tensor", "weights"},
                 {"ternary:channel", "ternary:channel", "weights"},
                 {"mid4:g32:amax", "mid4:g32", "weights"},
                 {"mid3:channel:gauss", "mid3:channel:gauss", "weights"},
                 {"mid2:tensor", "mid2:tensor", "weights"},
                 {"mid4:token:gauss", "mid4:token:gauss", "activations"},
                 {"int8:token", "int8:token:sym", "activations"},
                 {"int4:token:asym", "int4:token:asym", "kv_cache"},
                 {"fp8e4m3:token", "fp8e4m3:token", "activations"}};
    for (auto& t : texts) {
        Quantizer q = quantizer_parse(t.text, t.flag);
        bool weights = std::string(t.flag) == "weights";
        EXPECT_EQ(quantizer_text(q, weights ? "channel" : "token"), t.canonical);
        EXPECT_EQ(quantizer_text(quantizer_parse(t.canonical, t.flag), weights ? "channel" : "token"), t.canonical);
    }
}

TEST(Quantizer, BadTextsAreRefusedWithFlagAndPlace) {
    struct {
        const char *text, *place;
    } bad[] = {{"", "character 1 "},
               {"int7:g32", "character 1 "},
               {"INT4:g32", "character 1 "},
               {"int4", "character 6 "},
               {"int4:", "character 6 "},
               {"int4:g7", "character 6 "},
               {"int4:g", "character 6 "},
               {"int4:g32x", "character 6 "},
               {"int4:gN", "character 6 "},
               {"int4:channel", "character 6 "},
               {"fp8e4m3:128x128", "character 9 "},
               {"fp8e4m3", "character 9 "},
               {"mxfp4:g32", "character 7 "},
               {"int8:tensor", "use token"},
               {"int4:g32:asym:amax7", "character 15 "},
               {"int4:g32:mse:sym", "character 14 "},
               {"int4:g32:", "character 10 "},
               {"int4:g32:symm", "character 10 "},
               {"int4:g32:sym:", "character 14 "},
               {"int4:g32:sym:x", "character 14 "},
               {" int4:g32", "character 1 "},
               {"none:g32", "character 1 "},
               {"int4:G32", "character 6 "},
               {"int4::sym", "character 6 "},
               {"int4:g32:gauss", "character 10 "},
               {"mid4", "character 6 "},
               {"mid1:g32", "character 1 "},
               {"mid4:g32:sym", "character 10 "},
               {"mid4:g32:mse", "character 10 "},
               {"mid4:g32:gauss:amax", "character 16 "},
               {"int44:g32", "character 1 "}};
    auto refused = [](const char* text, const char* flag, const char* place) {
        try {
            quantizer_parse(text, flag);
            ADD_FAILURE() << "'" << text << "' was taken";
        } catch (const Error& e) {
            std::string message = e.what();
            EXPECT_EQ(e.exit_code, 2);
            EXPECT_NE(message.find(std::string("--") + flag), std::string::npos) << message;
            EXPECT_NE(message.find(place), std::string::npos) << "'" << text << "': " << message;
            EXPECT_EQ(message.find('\n'), std::string::npos) << message;
        }
    };
    for (auto& b : bad) refused(b.text, "kv_cache", b.place);
    for (const char* text : {"nf4:g64", "ternary:g64"}) refused(text, "activations", "character 1 ");
    refused("nf4:tensor", "weights", "character 5 ");
    refused("nf4:g64:sym", "weights", "character 9 ");
    refused("nf4:dq:dq", "weights", "character 8 ");
    refused("int4:tensor:mse", "weights", "character 13 ");
    refused("int8:token", "weights", "character 6 ");
}

TEST(Quantizer, TensorRefreshCountsFlipsAgainstTheLastAndTheFirst) {
    for (const char* t : {"int4:g32:sym", "int4:g32:asym", "int3:channel", "int8:tensor"})
        for (ScaleMode mode : {ScaleMode::dynamic, ScaleMode::kept}) {
            Quantizer q = quantizer_parse(t, "weights");
            QuantizedTensor x;
            x.name = "w", x.rows = 6, x.cols = 64;
            const int64_t n = x.rows * x.cols;
            std::vector<float> w = random_values<float>(n, 180, 0.1f);
            std::vector<floatX> work(n);
            x.master = w.data(), x.work = work.data();
            quantized_tensor_init(x, q);
            x.quantizer.scale_mode = mode;
            std::vector<Grid> grid(x.groups);
            std::vector<int8_t> codes(n), initial(n);
            x.grid = grid.data(), x.codes = codes.data(), x.initial = initial.data();
            int64_t counts[2];
            x.counts = counts;
            EXPECT_EQ(x.groups * x.group, n);
            EXPECT_EQ(x.groups, q.scope == QuantScope::tensor ? 1 : q.scope == QuantScope::channel ? 6 : 12);
            quantized_tensor_refresh(x, x.master, QuantNoise(), Device());
            EXPECT_EQ(counts[0], 0);
            EXPECT_EQ(counts[1], 0);
            std::vector<int8_t> first = codes, last = first;
            float scale = x.grid[0].scale;
            for (int step = 1; step <= 3; step++) {
                for (int64_t i = 0; i < n; i++)
                    w[i] = w[i] * (step == 2 ? 1.5f : 1.0f) + 0.01f * uniform(181 + step, (uint32_t)i);
                quantized_tensor_refresh(x, x.master, QuantNoise(), Device());
                int64_t flips = 0, total = 0;
                for (int64_t i = 0; i < n; i++) flips += x.codes[i] != last[i], total += x.codes[i] != first[i];
                EXPECT_EQ(counts[0], flips) << t;
                EXPECT_EQ(counts[1], total) << t;
                EXPECT_GT(flips, 0) << t;
                last = codes;
            }
            EXPECT_EQ(x.grid[0].scale == scale, mode == ScaleMode::kept) << t;
        }
}

TEST(Quantizer, GroupsMustDivideTheInputs) {
    QuantizedTensor x;
    x.name = "model.layers.0.mlp.down_proj.weight", x.rows = 4, x.cols = 48;
    try {
        quantized_tensor_init(x, quantizer_parse("int4:g32", "weights"));
        ADD_FAILURE() << "48 inputs were taken in groups of 32";
    } catch (const Error& e) {
        EXPECT_EQ(e.exit_code, 2);
        EXPECT_NE(std::string(e.what()).find(x.name), std::string::npos);
    }
}

TEST(Quantizer, StraightThroughRules) {
    Quantizer q = quantizer_parse("int4:channel:sym", "weights");
    std::vector<float> w = {8.0f, -8.0f, 7.6f, 1.0f}, ones(4, 1.0f), d = ones;
    std::vector<floatX> work(4);
    QuantizedTensor x;
    x.rows = 1, x.cols = 4, x.master = w.data(), x.work = work.data(), x.grad = d.data();
    quantized_tensor_init(x, q);
    Grid grid;
    int64_t counts[2];
    x.grid = &grid, x.counts = counts;
    x.quantizer.scale_mode = ScaleMode::kept;
    quantized_tensor_refresh(x, x.master, QuantNoise(),
                             Device());  // s = 8/7.5 = 1.0667: 7.5 lies above 7, -7.5 within -8
    quantized_tensor_backward(x, x.grad, x.master, Device());
    EXPECT_EQ(d, ones);
    x.quantizer.ste = SteRule::clip;
    quantized_tensor_backward(x, x.grad, x.master, Device());
    EXPECT_EQ(d, (std::vector<float>{0.0f, 1.0f, 0.0f, 1.0f}));
}
