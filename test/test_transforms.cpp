// AWQ, SmoothQuant and rotations on whole models: they leave the full-precision function as it was, the gradients of a
// model with online rotations are those of the plain one, and quantization errors fall where outliers were planted.
#include <gtest/gtest.h>
#include <unistd.h>
#include <cmath>
#include <filesystem>
#include "../methods/ptq.cuh"
#include "../train/trainer.cuh"
#include "load_model.h"
#include "test_device.h"
#include "test_rules.h"

// relative difference of logits and gradients
#if defined(PRECISION_FP32)
static constexpr double CLOSE = 5e-6;
#else
static constexpr double CLOSE = 0.1;
#endif

static double relative(const float* a, const float* b, int64_t n) {
    double dd = 0, bb = 0;
    for (int64_t i = 0; i < n; i++) dd += ((double)a[i] - b[i]) * ((double)a[i] - b[i]), bb += (double)b[i] * b[i];
    return std::sqrt(dd / bb);
}

static double relative(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() ? relative(a.data(), b.data(), (int64_t)a.size()) : INFINITY;
}

// random tokens in three sequences
static Batch batch_of(const Model& m, std::vector<int> lengths) {
    Batch b;
    uint32_t at = 0;
    for (int n : lengths) {
        std::vector<int> tokens;
        for (int i = 0; i < n; i++) tokens.push_back((int)(rng_bits(3, RNG_INIT, at++, 0, 0).x[0] % m.V()));
        batch_add_sequence(b, tokens.data(), n);
    }
    return b;
}

struct Trace {
    Activations acts, scratch;
    std::vector<Batch> batches;  // of one
    std::vector<float> logits;
    std::vector<LayerInputs> inputs;  // views of acts
};

static void forward(Model& m, Trace& r, const Batch& b) {
    model_refresh(m, false);
    activations_allocate(r.acts, m, b.T(), ActivationMode::save_all);
    model_forward(m, r.acts, b, full_precision());
    r.logits.resize(b.T() * m.V());
    gemm_nt(r.logits.data(), r.acts.hidden, m.head.work, nullptr, b.T(), m.V(), m.C());
    activations_allocate(r.scratch, m, b.T(), ActivationMode::inference);
    r.batches = {b};
    r.inputs.clear();
    for (const LayerActivations& l : r.acts.layers)
        r.inputs.push_back({b.T(),
                            {l.ln1, l.att, l.ln2, l.act},
                            {l.ln1, l.att, l.ln2, l.act},
                            {m.C(), m.NH() * m.HD(), m.C(), m.F()},
                            &r.batches,
                            &r.scratch});
}

static void give_quantizer(Model& m, const char* text, bool codes = false) { model_quantize(m, rules_of(text), codes); }

static HostMasters all_masters(Model& m) {
    HostMasters all;
    std::vector<float> copy;
    const Device dev = std::exchange(m.dev, Device());  // the simulated device's memory is the host's: no copy
    host_masters(m, -1, copy, [&](const HostMasters& w) { all = w; });
    m.dev = dev;
    return all;
}
static LayerMasters masters(Model& m, int layer) { return all_masters(m).layers[layer]; }

// out = Q(w) to nearest, a tensor [rows, cols]
static void nearest(float* out, const float* w, int64_t rows, int64_t cols, const Quantizer& q) {
    QuantizedTensor t;
    t.rows = rows, t.cols = cols;
    quantized_tensor_init(t, q);
    RoundingScratch scratch;
    RoundedLinear r = rounded_scratch(scratch, t);
    std::copy_n(w, rows * cols, r.w);
    round_to_nearest(r);
    std::copy_n(r.w, rows * cols, out);
}

static std::vector<float> logits_of(Model& m, const Batch& b) {
    Trace r;
    forward(m, r, b);
    return r.logits;
}

static std::vector<float> gradients_of(Model& m, const Batch& b, bool recompute) {
    model_refresh(m, false);
    Trainer t;
    trainer_init(t, m, b.T(), recompute);
    ScoredTokens s;
    Batch scored;
    for (size_t i = 0; i + 1 < b.starts.size(); i++) {
        batch_add_sequence(scored, b.tokens.data() + b.starts[i], b.starts[i + 1] - b.starts[i]);
        score_last_sequence(s, scored, 0);
    }
    score_forward(m, t.acts, t.score, scored, s, 1.0f, full_precision());
    score_backward(t, std::vector<float>(s.size(), -1.0f / (float)s.size()), 1.0f);
    return std::vector<float>(t.grads.data, t.grads.data + t.grads.size);
}

// "mha": a qwen2 whose query heads have kv heads of their own, with biases; other names are golden models
static void load(Model& m, const std::string& name) {
    if (name != "mha") {
        model_load(m, "test/golden/" + name);
    } else {
        ModelConfig c = config_load("test/golden/qwen2");
        c.num_key_value_heads = c.num_attention_heads;
        c.intermediate_size = 48;
        model_allocate(m, c);
        model_init_random(m, 5);
        for (size_t i = 0; i < m.num_params; i++) m.master[i] *= 3.0f;  // far from linear
        for (LayerMasters& l : all_masters(m).layers)
            for (int i = 0; i < m.QKV(); i++) l.qkv_bias[i] = 0.3f * std::sin(1.0f + (float)i);
    }
    HostMasters w = all_masters(m);  // norms that matter
    for (LayerMasters& l : w.layers)
        for (int i = 0; i < m.C(); i++)
            l.ln1[i] *= 1.0f + 0.5f * std::sin((float)i), l.ln2[i] *= 1.0f + 0.5f * std::cos((float)i);
    for (int i = 0; i < m.C(); i++) w.norm[i] *= 1.0f + 0.3f * std::sin(2.0f * (float)i);
}

struct Transforms : testing::TestWithParam<const char*> {};

// ---------------------------------------------------------------------------------------------------------------------
// rotation

TEST_P(Transforms, RotationsLeaveTheFunction) {
    struct Case {
        bool hidden, values, qk, down;
    };
    for (const Case& c : {Case{true, false, false, false},
                          {false, true, false, false},
                          {false, false, true, false},
                          {false, false, false, true},
                          {true, true, true, true}}) {
        Model m;
        load(m, GetParam());
        Batch b = batch_of(m, {9, 1, 17});
        bool tied = m.config.tie_word_embeddings;
        std::vector<float> before = logits_of(m, b), old(m.master.data, m.master.data + m.num_params);
        std::vector<ParamTensor> tensors = m.tensors;
        RotationConfig config;
        config.hidden = c.hidden, config.values = c.values, config.online_qk = c.qk, config.online_down = c.down;
        rotation_apply(m, config);
        double difference = relative(logits_of(m, b), before);
        EXPECT_LE(difference, CLOSE) << c.hidden << c.values << c.qk << c.down;
        EXPECT_GT(difference, 0.0);
        EXPECT_EQ(m.config.tie_word_embeddings, tied && !c.hidden);
        for (const ParamTensor& t : tensors) {
            auto is = [&](const char* part) { return t.name.find(part) != std::string::npos; };
            bool changed = memcmp(m.master.data + t.offset, old.data() + t.offset, t.count() * sizeof(float)) != 0;
            bool norm = t.kind == ParamKind::norm && !is("q_norm") && !is("k_norm");
            bool expected = c.hidden && t.kind != ParamKind::bias && (t.kind != ParamKind::norm || norm);
            expected = expected || (c.values && (is("v_proj") || is("o_proj"))) || (c.down && is("down_proj"));
            EXPECT_EQ(changed, expected) << t.name;
            for (int64_t i = 0; i < t.count() && norm && c.hidden; i++) ASSERT_EQ(m.master[t.offset + i], 1.0f);
        }
        EXPECT_EQ(m.rotate_qk.N(), c.qk ? m.HD() : 0);
        EXPECT_EQ(m.layers[0].down.transform.N(), c.down ? m.F() : 0);  // 44, 48: Paley I of 43, 47
    }
}

// w = w H^T for the rows of a linear whose input is transformed online
static void rotate_rows(float* w, int64_t rows, int64_t cols) {
    Rotation r;
    r.h = hadamard_for(cols), r.n = cols;
    r.sign.assign(cols, 1.0);
    rotate_inputs(w, rows, cols, nullptr, r);
}

// online: R3 and R4 as rotation.cuh has them; else a transform of the input of every linear
static void expect_gradients_of_the_plain_model(const char* name, bool online) {
    for (bool recompute : {false, true}) {
        Model plain, rotated;
        load(plain, name), load(rotated, name);
        Batch b = batch_of(plain, {9, 1, 17});
        RotationConfig config;
        config.hidden = config.values = false, config.online_qk = config.online_down = true;
        if (online) rotation_apply(rotated, config);
        for (int l = 0; l < rotated.L() && !online; l++)
            for (int p = 0; p < 4; p++) {
                Linear& linear = *layer_linears(rotated.layers[l])[p];
                linear.transform = hadamard_for(linear.cols);
                rotate_rows(masters(rotated, l).weight[p], linear.rows, linear.cols);
            }
        EXPECT_LE(relative(logits_of(rotated, b), logits_of(plain, b)), CLOSE);
        std::vector<float> a = gradients_of(plain, b, recompute), g = gradients_of(rotated, b, recompute);
        for (const ParamTensor& t : plain.tensors) {
            std::vector<float> expected(a.begin() + t.offset, a.begin() + t.offset + t.count());
            // down' = down H^T, and so is its gradient
            if (t.kind == ParamKind::linear && (!online || t.product == Product::down))
                rotate_rows(expected.data(), t.rows, t.cols);
            // a gradient that is zero up to rounding (the bias of k: softmax ignores it) has no relative error
            double size = 0, all = 0;
            for (float x : expected) size += (double)x * x;
            for (float x : a) all += (double)x * x;
            if (size < (sizeof(floatX) == 4 ? 1e-10 : 1e-4) * all) continue;
            EXPECT_LE(relative(g.data() + t.offset, expected.data(), t.count()), 3 * CLOSE) << t.name;
        }
    }
}

TEST_P(Transforms, GradientsWithOnlineRotationsAreThoseOfThePlainModel) {
    expect_gradients_of_the_plain_model(GetParam(), true);
}

TEST_P(Transforms, AnyLinearsInputCanBeTransformedOnline) { expect_gradients_of_the_plain_model(GetParam(), false); }

// masters stay as they are, and so do their gradients once they are rotated back
TEST_P(Transforms, ABasisLeavesTheFunctionInFullPrecision) {
    Model plain, rotated;
    load(plain, GetParam()), load(rotated, GetParam());
    model_rotate(rotated, "all");
    Batch b = batch_of(plain, {9, 1, 17});
    EXPECT_LE(relative(logits_of(rotated, b), logits_of(plain, b)), CLOSE);
    std::vector<float> a = gradients_of(plain, b, false), g = gradients_of(rotated, b, false);
    EXPECT_EQ(memcmp(plain.master.data, rotated.master.data, plain.master.bytes()), 0);
    double all = 0;
    for (float x : a) all += (double)x * x;
    for (const ParamTensor& t : plain.tensors) {
        if (t.kind == ParamKind::linear) {
            const Hadamard& h = part_of(rotated, t)->basis;
            hadamard_cpu(g.data() + t.offset, t.cols, h, t.rows, t.cols / h.N(), true);
        }
        double size = 0;
        for (int64_t i = 0; i < t.count(); i++) size += (double)a[t.offset + i] * a[t.offset + i];
        if (size < (sizeof(floatX) == 4 ? 1e-10 : 1e-4) * all) continue;  // zero up to rounding
        EXPECT_LE(relative(g.data() + t.offset, a.data() + t.offset, t.count()), 3 * CLOSE) << t.name;
    }
}

TEST_P(Transforms, ARotatedModelIsSavedLoadedAndDecodesTheBitsOfItsForward) {
    std::string folder = testing::TempDir() + "train_qrl_rotated_" + GetParam() + std::to_string(getpid());
    Model m, back;
    load(m, GetParam());
    RotationConfig config;
    config.seed = 7;
    config.online_qk = config.online_down = true;
    rotation_apply(m, config);
    model_save(m, folder, "float32", [](const std::string&) {});
    back.dev = model_device();
    model_load(back, folder);
    std::filesystem::remove_all(folder);
    EXPECT_EQ(back.config.rotate_qk, m.HD());
    EXPECT_EQ(back.config.rotate_down, m.F());
    EXPECT_FALSE(back.config.tie_word_embeddings);
    ASSERT_EQ(back.num_params, m.num_params);
    EXPECT_EQ(memcmp(back.master.data, m.master.data, m.num_params * sizeof(float)), 0);

    // whole, and over the cache: 5 tokens at once, then one at a time
    Batch b = batch_of(m, {13});
    Trace host, whole;
    forward(m, host, b), forward(back, whole, b);
    EXPECT_LE(relative(whole.logits, host.logits), CLOSE);
    KVCache cache;
    for (int place : {0, 1}) kv_cache_allocate(cache, back, place, 13, "keys and values", "");
    Activations acts;
    activations_allocate(acts, back, 13, ActivationMode::inference);
    auto check = [&](int first, int n) {
        device_synchronize(back.dev);
        EXPECT_EQ(memcmp(acts.hidden, whole.acts.hidden + first * m.C(), n * m.C() * sizeof(floatX)), 0)
            << "token " << first;
    };
    Batch prompt;
    batch_add_sequence(prompt, b.tokens.data(), 5);
    for (int i = 0; i < 5; i++) prompt.writes.push_back({0, i});
    model_forward(back, acts, prompt, full_precision(), &cache);
    check(0, 5);
    for (int i = 5; i < 13; i++) {
        Batch one;
        KeyRange range;
        range.row0 = 0, range.n0 = 5, range.row1 = 0, range.n1 = i - 4;
        one.tokens = {b.tokens[i]}, one.positions = {i}, one.ranges = {range}, one.writes = {{1, i - 5}};
        model_forward(back, acts, one, full_precision(), &cache);
        check(i, 1);
    }
}

TEST(Rotation, ConfigurationsThatCannotBeAreRefused) {
    ModelConfig c = config_load("test/golden/llama");
    auto message = [&](const std::string& online) {
        nlohmann::json j = nlohmann::json::parse(config_to_json(c));
        j["online_rotations"] = nlohmann::json::parse(online);
        try {
            Model m;
            model_allocate(m, config_from_json(j.dump(), "config.json"));
        } catch (const Error& e) { return std::string(e.what()); }
        return std::string();
    };
    EXPECT_EQ(message(R"({"qk": 4, "down": 44})"), "");
    EXPECT_NE(message(R"({"qk": 3})").find("does not divide 8"), std::string::npos);
    EXPECT_NE(message(R"({"down": -4})").find("does not divide 44"), std::string::npos);
    EXPECT_NE(message(R"({"down": 11})").find("order 11"), std::string::npos);
    EXPECT_NE(message(R"({"value": 8})").find("not supported"), std::string::npos);
    EXPECT_NE(message("true").find("not an object"), std::string::npos);
    EXPECT_EQ(config_to_json(c).find("online_rotations"), std::string::npos);

    Model m;
    load(m, "llama");
    RotationConfig online;
    online.online_down = true;
    rotation_apply(m, online);
    EXPECT_THROW(rotation_apply(m, online), Error);
    Model quantized;
    load(quantized, "llama");
    model_quantize(quantized, rules_of("int4:channel:sym", "all"), false);
    model_refresh(quantized);
    EXPECT_THROW(rotation_apply(quantized, RotationConfig()), Error);
}

// sum of squares of Q(W) - W over the layers' linears, relative to those of W
static double weight_error(const Model& m, const char* quantizer) {
    Quantizer q = quantizer_parse(quantizer, "weights");
    double error = 0, size = 0;
    for (const ParamTensor& t : m.tensors) {
        if (t.kind != ParamKind::linear) continue;
        std::vector<float> w(m.master.data + t.offset, m.master.data + t.offset + t.count()), d = w;
        nearest(d.data(), d.data(), t.rows, t.cols, q);
        for (int64_t i = 0; i < t.count(); i++) error += (d[i] - w[i]) * (d[i] - w[i]), size += w[i] * w[i];
    }
    return error / size;
}

TEST(Rotation, OutliersThatWerePlantedSpread) {
    Model m;
    load(m, "llama");
    for (LayerMasters& l : all_masters(m).layers)
        for (int i = 0; i < 2 * m.F(); i++)
            l.weight[(int)Product::gate_up][i * m.C() + 5] *= 20.0f;  // a hidden channel
    Batch b = batch_of(m, {24});
    std::vector<float> before = logits_of(m, b);
    double plain = weight_error(m, "int4:channel:sym");
    rotation_apply(m, RotationConfig());
    EXPECT_LT(weight_error(m, "int4:channel:sym"), 0.5 * plain);
    EXPECT_LE(relative(logits_of(m, b), before), CLOSE);
}

// ---------------------------------------------------------------------------------------------------------------------
// SmoothQuant

TEST(SmoothQuant, ScalesOfAKnownExample) {
    // columns with max|X| 8, 1, 0 and max|W| 2, 4, 1: alpha 0.5 gives sqrt(8/2), sqrt(1/4) and the floors
    std::vector<floatX> x = {floatX(-8.0f), floatX(0.5f), floatX(0.0f), floatX(1.0f), floatX(1.0f), floatX(0.0f)};
    std::vector<float> w = {2.0f, 1.0f, 0.5f, -1.0f, -4.0f, 1.0f};
    std::vector<float> s = smoothquant_scales(x.data(), 2, w.data(), 2, 3, 0.5);
    EXPECT_FLOAT_EQ(s[0], 2.0f);
    EXPECT_FLOAT_EQ(s[1], 0.5f);
    EXPECT_FLOAT_EQ(s[2], std::sqrt(1e-5f));
    s = smoothquant_scales(x.data(), 2, w.data(), 2, 3, 1.0);
    EXPECT_FLOAT_EQ(s[0], 8.0f);
    EXPECT_FLOAT_EQ(s[1], 1.0f);
    EXPECT_FLOAT_EQ(s[2], 1e-5f);
}

TEST_P(Transforms, SmoothQuantLeavesTheFunctionAndBalancesTheMaxima) {
    Model m;
    load(m, GetParam());
    Batch b = batch_of(m, {9, 1, 17});
    Trace before, after;
    forward(m, before, b);
    for (int l = 0; l < m.L(); l++) smoothquant_layer(m.layers[l], masters(m, l), before.inputs[l], 0.5);
    forward(m, after, b);
    EXPECT_LE(relative(after.logits, before.logits), CLOSE);
    for (int l = 0; l < m.L(); l++)
        for (int i : {0, 2}) {
            const float* weight = masters(m, l).weight[i];
            for (int64_t j = 0; j < m.C(); j++) {
                float xmax = 0, wmax = 0;
                for (int64_t t = 0; t < b.T(); t++)
                    xmax = std::fmax(xmax, std::fabs((float)after.inputs[l].x[i][t * m.C() + j]));
                for (int64_t r = 0; r < layer_linears(m.layers[l])[i]->rows; r++)
                    wmax = std::fmax(wmax, std::fabs(weight[r * m.C() + j]));
                ASSERT_NEAR(xmax, wmax, CLOSE * 4 * wmax) << l << ", " << i << ", " << j;
            }
        }
    EXPECT_THROW(smoothquant_layer(m.layers[0], masters(m, 0), before.inputs[0], 1.5), Error);
}

// ---------------------------------------------------------------------------------------------------------------------
// AWQ

TEST(RoundToNearest, IsTheDefinitionOfTheFormats) {
    const int64_t rows = 130, cols = 256;
    std::vector<float> w(rows * cols), out(rows * cols);
    for (size_t i = 0; i < w.size(); i++)
        w[i] = 2.0f * uniform01(rng_bits(1, RNG_INIT, 9, (uint32_t)i, 0).x[0]) - 0.7f + (i % 97 == 0 ? 3.0f : 0.0f);
    auto error = [&](const char* text) {
        nearest(out.data(), w.data(), rows, cols, quantizer_parse(text, "weights"));
        double sum = 0;
        for (size_t i = 0; i < w.size(); i++) sum += (out[i] - w[i]) * (out[i] - w[i]);
        return sum;
    };
    // one group by hand
    error("int4:g32:asym");
    float min = 0, max = 0;
    for (int j = 32; j < 64; j++) min = std::fmin(min, w[cols + j]), max = std::fmax(max, w[cols + j]);
    Quantizer q = quantizer_parse("int4:g32:asym", "weights");
    Grid g = quant_grid(q.spec, min, max, 1.0f, 1.0f);
    for (int j = 32; j < 64; j++) EXPECT_EQ(out[cols + j], quant_value(q.spec, quant_code(q.spec, w[cols + j], g), g));
    // a tile of 128 x 128 shares a scale; the last one is of 2 rows
    error("fp8e4m3:128x128");
    float amax = 0;
    for (int i : {128, 129})
        for (int j = 128; j < 256; j++) amax = std::fmax(amax, std::fabs(w[i * cols + j]));
    q = quantizer_parse("fp8e4m3:128x128", "weights");
    g = quant_grid(q.spec, 0.0f, amax, 1.0f, 1.0f);
    for (int i : {128, 129})
        for (int j = 128; j < 256; j++)
            ASSERT_EQ(out[i * cols + j], quant_value(q.spec, quant_code(q.spec, w[i * cols + j], g), g));
    EXPECT_LT(error("int3:g128:sym:mse"), 0.95 * error("int3:g128:sym"));
    EXPECT_LT(error("int4:g32:sym"), error("int4:channel:sym"));
    EXPECT_LT(error("int8:channel:sym"), 0.02 * error("int4:channel:sym"));
    EXPECT_LT(error("int4:channel:sym"), error("int4:tensor:sym"));
    EXPECT_LT(error("nf4:g64"), error("int3:g64:asym"));
    EXPECT_LT(error("nvfp4"), error("mxfp4"));
    EXPECT_LT(error("mxfp8"), 0.1 * error("mxfp4"));
    EXPECT_GT(error("ternary"), error("int3:channel:sym"));
    EXPECT_THROW(error("int4:g48:sym"), Error);
}

// What a layer gives behind product i, in float: attention and o for q,k,v, the MLP for gate and up, else the product
static std::vector<float> module_of(Model& m, const LayerInputs& in, int layer, int i) {
    std::vector<float> out;
    AwqLinear p = awq_linear(m, masters(m, layer), layer, (Product)i);
    awq_module(m, p, in, in.tokens,
               [&](const floatX* y, int64_t, int64_t T) { out.insert(out.end(), y, y + T * m.C()); });
    return out;
}

// mean squared error of the module with product i rounded as the masters are now, against `exact`
static double module_error(Model& m, const std::vector<float>& exact, const LayerInputs& in, int layer, int i) {
    for (const LinearPart* t : awq_linear(m, masters(m, layer), layer, (Product)i).parts) {
        std::vector<float> Q(t->rows * t->cols);
        nearest(Q.data(), m.master.data + t->offset, t->rows, t->cols, t->quantizer);
        for (size_t k = 0; k < Q.size(); k++) t->work[k] = floatX(Q[k]);
    }
    std::vector<float> now = module_of(m, in, layer, i);
    model_refresh(m, false);
    double sum = 0;
    for (size_t k = 0; k < now.size(); k++) sum += (now[k] - exact[k]) * (now[k] - exact[k]);
    return sum / (double)now.size();
}

// The searched error is that of the scaled model: of what is behind the product, with its new inputs. Only products
// whose rows a later product's scales do not divide (o; v and up where those are left as they are) can be compared.
TEST_P(Transforms, AwqScalingLeavesTheFunctionAndLowersTheErrorOfEveryModule) {
    for (const char* text : {"int4:channel:asym", "int3:channel:sym", "int4:g8:asym", "nvfp4"}) {
        Model m;
        load(m, GetParam());
        if (std::string(text) == "int4:g8:asym" && m.F() % 8) continue;
        if (std::string(text) == "nvfp4" && m.F() % 16) continue;
        give_quantizer(m, text);
        Batch b = batch_of(m, {9, 1, 30});
        for (LayerMasters& l : all_masters(m).layers)
            l.ln1[3] *= 15.0f, l.ln2[7] *= 15.0f;  // activations with outliers
        Trace before, after;
        forward(m, before, b);
        AwqConfig config;
        config.clip = false;
        double plain[2][4];
        std::vector<float> exact[2][4];
        std::vector<std::array<AwqResult, 4>> results;
        for (int l = 0; l < m.L(); l++)
            for (int i = 0; i < 4; i++) {
                exact[l][i] = module_of(m, before.inputs[l], l, i);
                plain[l][i] = module_error(m, exact[l][i], before.inputs[l], l, i);
            }
        for (int l = 0; l < m.L(); l++) results.push_back(awq_layer(m, masters(m, l), l, before.inputs[l], config));
        forward(m, after, b);
        EXPECT_LE(relative(after.logits, before.logits), 4 * CLOSE) << text;
        int scaled = 0, compared = 0;
        for (int l = 0; l < m.L(); l++)
            for (int i = 0; i < 4; i++) {
                std::string what = format("%s: layer %d, product %d", text, l, i);
                const AwqResult& r = results[l][i];
                if (i == 1 && m.NH() != m.NKV()) {
                    EXPECT_EQ(r.ratio, -1) << what;
                    continue;
                }
                EXPECT_LE(r.error, r.error_plain) << what;
                EXPECT_EQ(r.error < r.error_plain, r.ratio >= 0) << what;
                scaled += r.ratio >= 0;
                EXPECT_NEAR(r.error_plain, plain[l][i], 1e-4 * plain[l][i]) << what;
                if (i % 2 == 0) { EXPECT_LT(r.error, 0.95 * r.error_plain) << what; }
                const bool divided = i < 3 && (i == 0 ? results[l][1].ratio : i == 2 ? results[l][3].ratio : -1) >= 0;
                if (divided || sizeof(floatX) != 4) continue;  // bf16 rounds the new activations anew
                // row by row of the residual: what o and down write is not scaled
                EXPECT_NEAR(module_error(m, exact[l][i], after.inputs[l], l, i), r.error, 2e-3 * r.error) << what;
                compared++;
            }
        EXPECT_GT(scaled, 4) << text;
        if (sizeof(floatX) == 4) { EXPECT_GT(compared, 1) << text; }
    }
}

// What AutoAWQ searches: with keys of 0 every query attends to all alike, so that the errors of queries, the largest of
// the product's by far, do not count
TEST(Awq, SearchesBehindAttention) {
    Model m;
    load(m, "llama");
    give_quantizer(m, "int3:channel:sym");
    const int64_t queries = (int64_t)m.NH() * m.HD() * m.C(), keys = (int64_t)m.NKV() * m.HD() * m.C();
    for (LayerMasters& l : all_masters(m).layers) {
        float* qkv = l.weight[(int)Product::qkv];
        for (int64_t k = 0; k < queries; k++) qkv[k] *= 30.0f;
        for (int64_t k = 0; k < keys; k++) qkv[queries + k] = 0.0f;
    }
    Batch b = batch_of(m, {40});
    Trace pass;
    forward(m, pass, b);
    std::vector<float> work(m.work.data, m.work.data + m.num_params);
    AwqLinear p = awq_linear(m, masters(m, 0), 0, Product::qkv);
    ASSERT_EQ(p.parts.size(), 3u);
    const std::vector<const LinearPart*> parts = p.parts;
    AwqResult all = awq_search_scale(m, p, pass.inputs[0], AwqConfig());
    EXPECT_TRUE(std::equal(work.begin(), work.end(), m.work.data)) << "the working weights are as they were";
    p.parts = {parts[2]};
    AwqResult value = awq_search_scale(m, p, pass.inputs[0], AwqConfig());
    EXPECT_GT(value.error, 0.0);
    EXPECT_EQ(all.error, value.error);
    EXPECT_EQ(all.scales, value.scales);
    p.parts = {parts[0]};
    EXPECT_EQ(awq_search_scale(m, p, pass.inputs[0], AwqConfig()).error_plain, 0.0);
}

TEST(Awq, ClippingKeepsWhatActivationsWeigh) {
    // a group whose largest weight meets no activation: its range is best given up
    const int64_t rows = 3, cols = 32, tokens = 40;
    std::vector<float> w(rows * cols), x(tokens * cols);
    for (size_t i = 0; i < w.size(); i++) w[i] = std::sin(1.0f + 3.0f * (float)i);
    for (size_t i = 0; i < x.size(); i++) x[i] = i % cols == 5 ? 0.0f : std::cos(0.7f * (float)(i * i % 1001));
    w[5] = 1.9f, w[cols + 5] = -1.9f;
    std::vector<float> old = w;
    Quantizer q = quantizer_parse("int3:g32:asym", "weights");
    awq_clip(w.data(), rows, cols, cols, x.data(), tokens, q, AwqConfig());
    EXPECT_LT(w[5], 1.3f);
    EXPECT_GT(w[cols + 5], -1.3f);
    auto error = [&](const std::vector<float>& a, int64_t r) {
        std::vector<float> Q(rows * cols);
        nearest(Q.data(), a.data(), rows, cols, q);
        double sum = 0;
        for (int64_t t = 0; t < tokens; t++) {
            double y = 0;
            for (int64_t j = 0; j < cols; j++) y += (double)x[t * cols + j] * (Q[r * cols + j] - old[r * cols + j]);
            sum += y * y;
        }
        return sum;
    };
    for (int64_t r = 0; r < rows; r++) {
        // the least of the twenty
        double least = INFINITY;
        for (int i = 0; i < 20; i++) {
            std::vector<float> c = old;
            float amax = 0;
            for (int64_t j = 0; j < cols; j++) amax = std::fmax(amax, std::fabs(old[r * cols + j]));
            float most = amax * (float)(1.0 - 0.025 * i);
            for (float& v : c) v = std::fmin(std::fmax(v, -most), most);
            least = std::fmin(least, error(c, r));
        }
        EXPECT_NEAR(error(w, r), least, 1e-5 * least) << r;
    }
    EXPECT_LT(error(w, 0), 0.6 * error(old, 0));
}

TEST(Awq, ClipsAllButQueriesAndKeys) {
    Model m;
    load(m, "mha");
    Batch b = batch_of(m, {40});
    Trace before;
    forward(m, before, b);
    std::vector<float> old(m.master.data, m.master.data + m.num_params);
    AwqConfig config;
    config.scale = false;
    give_quantizer(m, "int2:g8:asym");
    awq_layer(m, masters(m, 0), 0, before.inputs[0], config);
    for (const ParamTensor& t : m.tensors) {
        bool changed = memcmp(m.master.data + t.offset, old.data() + t.offset, t.count() * sizeof(float)) != 0;
        bool clipped = t.layer == 0 && t.kind == ParamKind::linear && t.name.find("q_proj") == std::string::npos &&
                       t.name.find("k_proj") == std::string::npos;
        EXPECT_EQ(changed, clipped) << t.name;
    }
}

#if defined(TRAIN_QRL_SIMT)
// The whole pipeline with the model on the device: masters are transformed and rounded on the host, the rest runs there
TEST(Transforms, OnTheDeviceAsOnTheHost) {
    std::vector<std::vector<int>> windows(6, std::vector<int>(16));
    for (size_t i = 0; i < 96; i++) windows[i / 16][i % 16] = (int)(rng_bits(3, RNG_INIT, 5, (uint32_t)i, 0).x[0] % 90);
    const char* cases[][3] = {{"rotate+gptq", "llama", "int4:channel:sym"},
                              {"awq+gptq", "mha", "int4:g8:asym"},
                              {"smoothquant+rtn", "mha", "nf4:g8:dq"}};
    for (auto [method, model, weights] : cases) {
        std::vector<float> result[2];
        for (int device : {0, 1}) {
            Model m;
            if (device) m.dev = model_device();
            load(m, model);
            give_quantizer(m, weights, true);
            PtqConfig config;
            PtqPlan plan = ptq_parse(method, config);
            PtqMemory memory;
            ptq_allocate(memory, m, plan, 96, 16, 40);
            ptq_run(m, memory, plan, windows, [](int, const PtqLayer& r) { EXPECT_LT(r.linear[0].error, 0.1); });
            device_synchronize(m.dev);
            result[device].assign(m.master.data, m.master.data + m.num_params);
        }
        // a sum in another order may end beyond a tie of a code, and change what the later columns make up for
        EXPECT_LT(relative(result[1], result[0]), 0.02) << method;
    }
}
#endif

INSTANTIATE_TEST_SUITE_P(Models, Transforms, testing::Values("qwen2", "qwen3", "llama", "mha"),
                         [](const testing::TestParamInfo<const char*>& i) { return std::string(i.param); });
