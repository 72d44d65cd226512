// FlatQuant on a tiny model: gradients of a layer's transforms, that full precision stays what it was, that training
// brings layers nearer than rounding does, that a folder gives the same bits again, and what is refused.
#include <gtest/gtest.h>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>
#include "../formats/checkpoint.h"
#include "../methods/ptq.cuh"
#include "file_test.h"
#include "test_device.h"
#include "tiny_model.h"

static float draw(uint32_t stream, uint32_t i) { return uniform01(rng_bits(3, RNG_INIT, stream, i, 0).x[0]) - 0.5f; }

static constexpr int WINDOWS = 6, LENGTH = 16, TOKENS = WINDOWS * LENGTH;
static constexpr bool FP32 = sizeof(floatX) == 4;

static void with_outliers(Model& m) {
    model_init_random(m, 7);
    for (const ParamTensor& t : m.tensors)
        for (int64_t i = 0; i < t.count(); i++)
            if (t.kind == ParamKind::norm) m.master[t.offset + i] = i % 9 == 4 ? 3.0f : 1.0f + draw(5, (uint32_t)i);
            else m.master[t.offset + i] *= 3.0f;
}

static void tiny_model(Model& m, const char* weights, const char* activations, const char* where = "all") {
    m.dev = model_device();
    model_allocate(m, tiny_config(TINY_LAYERS));
    with_outliers(m);
    model_quantize(m, rules_of(weights, where), true);
    model_quantize_activations(m, rules_parse(activations, "activations"));
}

static const std::vector<std::vector<int>>& windows() {
    static std::vector<std::vector<int>> all;
    for (uint32_t i = 0; all.size() < WINDOWS; i++) {
        all.emplace_back(LENGTH);
        for (uint32_t j = 0; j < LENGTH; j++) all[i][j] = (int)(101.0f * (draw(70, LENGTH * i + j) + 0.5f)) % 101;
    }
    return all;
}

static std::vector<ModuleReport> run(Model& m, const std::string& ptq) {
    const PtqPlan plan = ptq_parse(ptq, {});
    plan.training.check(m);
    PtqMemory s;
    ptq_allocate(s, m, plan, TOKENS, LENGTH, 40);
    std::vector<ModuleReport> reports;
    ptq_run(m, s, plan, windows(),
            [&](int, const PtqLayer& r) { reports.insert(reports.end(), r.modules.begin(), r.modules.end()); });
    return reports;
}

static std::vector<floatX> hidden_of(Model& m, const Pass& pass) {
    Batch b;
    for (const std::vector<int>& w : windows()) batch_add_sequence(b, w.data(), (int)w.size());
    Activations a;
    activations_allocate(a, m, b.T(), ActivationMode::inference);
    model_forward(m, a, b, pass);
    device_synchronize(m.dev);
    return std::vector<floatX>(a.hidden, a.hidden + b.T() * m.C());
}

static double relative(const std::vector<floatX>& a, const std::vector<floatX>& b) {
    double dd = 0.0, bb = 0.0;
    for (size_t i = 0; i < b.size(); i++) {
        const double x = (double)(float)a[i], y = (double)(float)b[i];
        dd += (x - y) * (x - y), bb += y * y;
    }
    return std::sqrt(dd / bb);
}

static std::string message_of(const std::function<void()>& f) {
    try {
        f();
    } catch (const Error& e) { return e.what(); }
    return "";
}

#if defined(PRECISION_FP32)  // which differences need
// A layer without quantizers, of a target that it misses. Of its transforms alone the gradient is that of central
// differences; with the weights behind their inverse it vanishes, for then nothing changes
TEST(Flatquant, GradientIsThatOfCentralDifferences) {
    Model m;
    tiny_model(m, "none", "none");
    model_refresh(m, false);
    Activations a;
    activations_allocate(a, m, TOKENS, ActivationMode::recompute);
    FlatquantMemory f;
    FlatquantConfig c;
    flatquant_allocate(f, m, TOKENS);
    BlockwiseMemory& s = f.block;
    s.windows = &windows(), s.length = LENGTH, s.first = 0, s.end = 1;
    rope_extend(m.rope, LENGTH, m.dev);
    for (int64_t i = 0; i < TOKENS * m.C(); i++) s.input[i] = s.targets[i] = draw(91, (uint32_t)i);
    blockwise_targets(m, a, s);
    for (int64_t i = 0; i < TOKENS * m.C(); i++) s.targets[TOKENS * m.C() + i] += draw(92, (uint32_t)i);
    const std::vector<int> ids = {0, 1, 2, 3, 4, 5};
    Batch b;
    blockwise_batch(m, a, s, b, ids, full_precision());
    layer_from(m, a, 0, s.input.data);
    flatquant_start(m, a, f, c);
    for (FlatquantLinear& t : f.linears)  // not orthogonal
        for (size_t i = 0; i + 1 < t.parameters.size(); i++) t.parameters[i] += 0.2f * draw(93, (uint32_t)i);
    flatquant_bind(m, f);
    flatquant_refresh(m, f);
    m.work_quantized = true;
    auto loss = [&] { return blockwise_errors(m, a, s, nullptr)[0]; };
    double size = 0.0;
    for (int64_t i = 0; i < TOKENS * m.C(); i++)
        size += (double)s.targets[TOKENS * m.C() + i] * s.targets[TOKENS * m.C() + i];
    blockwise_modules(m, a, s, ids, 0.0, [&](int first, int end) { module_backward(m, a, s, first, end, ids); });
    std::vector<float> inputs(f.gradients.data, f.gradients.data + f.gradients.size);
    std::vector<std::vector<float>> numbers;
    for (FlatquantLinear& t : f.linears) numbers.push_back(t.numbers);
    // dP1 = P1^-T M1, dP2 = P2^-T M2; then along its signs
    size_t at = 0;
    std::vector<double> sizes;
    for (int i = 0; i < 4; i++) {
        FlatquantLinear& t = f.linears[i];
        Linear& l = *layer_linears(m.layers[0])[i];
        const size_t n1 = t.first(), n2 = t.second(), cols = (size_t)l.cols, dual = n1 + n2 + cols;
        std::vector<double> d(dual);
        auto factor = [&](size_t from, size_t n, const float* inverse) {
            for (size_t r = 0; r < n; r++)
                for (size_t k = 0; k < n; k++)
                    for (size_t j = 0; j < n; j++)
                        d[from + r * n + j] += (double)inverse[r * n + k] * inputs[at + from + k * n + j];
        };
        factor(0, (size_t)t.now.n1, &t.numbers[dual]), factor(n1, (size_t)t.now.n2, &t.numbers[dual + n1]);
        for (size_t k = 0; k < cols; k++) d[n1 + n2 + k] = inputs[at + n1 + n2 + k];
        for (size_t part = 0; part < 3; part++) {
            const size_t first = part == 0   ? 0
                                 : part == 1 ? n1
                                             : n1 + n2,
                         end = part == 0   ? n1
                               : part == 1 ? n1 + n2
                                           : dual;
            double expected = 0.0, sides[2];
            const float h = 1e-4f;
            for (size_t k = first; k < end; k++) expected += std::fabs(d[k]);
            for (int side = 0; side < 2; side++) {
                InputTransform moved = t.now;
                for (size_t k = first; k < end; k++) {
                    const float by = (side ? h : -h) * (d[k] >= 0.0 ? 1.0f : -1.0f);
                    if (part == 0) moved.p1[k] += by;
                    else if (part == 1) moved.p2[k - n1] += by;
                    else moved.scale[k - n1 - n2] *= std::exp(by);
                }
                linear_load_transform(l, moved, transform_numbers(moved), m.dev);
                sides[side] = loss() * size;
            }
            linear_load_transform(l, t.now, t.numbers, m.dev);
            EXPECT_GT(expected, 0.0) << l.name;
            EXPECT_NEAR((sides[1] - sides[0]) / (2.0 * (double)h), expected, 0.02 * expected) << l.name << " " << part;
            sizes.push_back(expected);
        }
        at += 2 * t.parameters.size();
    }
    flatquant_update(m, f, c, 0, 0.0);
    for (int i = 0; i < 4; i++) {
        const FlatquantLinear& t = f.linears[i];
        const size_t ends[] = {0, t.first(), t.first() + t.second(), t.parameters.size() - 1};
        for (size_t part = 0; part < 3; part++) {
            double sum = 0.0;
            for (size_t k = ends[part]; k < ends[part + 1]; k++) sum += std::fabs((double)t.gradient[k]);
            EXPECT_LT(sum, 1e-3 * sizes[3 * (size_t)i + part]) << i << " " << part;
        }
    }
}
#endif

TEST(Flatquant, FullPrecisionStaysWhatItWas) {
    Model plain, m;
    tiny_model(plain, "int4:channel", "int4:token");
    tiny_model(m, "int4:channel", "int4:token");
    model_refresh(plain, false);
    run(m, "flatquant:epochs=2:batch=2");
    model_refresh(m, false);
    EXPECT_TRUE(m.config.transformed);
    EXPECT_LE(relative(hidden_of(m, full_precision()), hidden_of(plain, full_precision())), FP32 ? 2e-5 : 0.05);
}

#if !defined(TRAIN_QRL_SIMT)  // takes minutes there
TEST(Flatquant, TrainingBringsLayersNearerThanRounding) {
    for (const char* quantizers : {"int4:channel;int4:token", "int3:g32:asym;int4:token:asym", "int4:g16;none"}) {
        const std::string weights = std::string(quantizers).substr(0, std::string(quantizers).find(';'));
        const std::string activations = std::string(quantizers).substr(weights.size() + 1);
        Model m, start;
        tiny_model(m, weights.c_str(), activations.c_str());
        tiny_model(start, weights.c_str(), activations.c_str());
        const std::vector<ModuleReport> r = run(m, "flatquant:epochs=12:batch=2"), s = run(start, "flatquant:epochs=0");
        ASSERT_EQ(r.size(), (size_t)m.L());
        double trained = 0.0, untrained = 0.0;
        for (size_t l = 0; l < r.size(); l++) {
            EXPECT_EQ(r[l].before, s[l].before) << quantizers;
            EXPECT_LT(r[l].after, 0.8 * r[l].before) << quantizers << ", layer " << l;
            trained += r[l].after, untrained += s[l].after;
        }
        EXPECT_LT(trained, 0.9 * untrained) << quantizers;
        for (const Linear* l : layer_linears(m.layers[0]))
            EXPECT_EQ(l->clip < 1.0f, activations != "none") << quantizers;
    }
}

#endif

TEST(Flatquant, WhatWasTrainedIsWhatTheModelComputes) {
    Model plain, m;
    tiny_model(plain, "int4:channel", "int4:token");
    tiny_model(m, "int4:channel", "int4:token");
    model_refresh(plain, false);
    const double error = run(m, "flatquant:epochs=4:batch=2")[0].after;
    Activations a, b;
    Batch text;
    for (const std::vector<int>& w : windows()) batch_add_sequence(text, w.data(), (int)w.size());
    activations_allocate(a, plain, TOKENS, ActivationMode::save_all);
    activations_allocate(b, m, TOKENS, ActivationMode::save_all);
    model_forward(plain, a, text, full_precision());
    model_forward(m, b, text);
    double lost = 0.0, all = 0.0;
    for (int64_t i = 0; i < TOKENS * m.C(); i++) {
        const double f = (double)(float)a.residual[1][i], d = (double)(float)b.residual[1][i] - f;
        lost += d * d, all += f * f;
    }
    EXPECT_NEAR(lost / all, error, (FP32 ? 1e-3 : 0.1) * error);
}

TEST(Flatquant, GptqKeepsTheGridsOfTheClips) {
    Model rtn, gptq;
    tiny_model(rtn, "int4:channel", "int4:token");
    tiny_model(gptq, "int4:channel", "int4:token");
    run(rtn, "rtn+flatquant:epochs=2"), run(gptq, "gptq+flatquant:epochs=2");
    for (size_t i = 0; i < quantized_parts(rtn).size(); i++) {
        const LinearPart *a = quantized_parts(rtn)[i], *b = quantized_parts(gptq)[i];
        if (a->layer != 0) continue;  // behind it GPTQ's layers have other inputs
        EXPECT_EQ(memcmp(a->grid, b->grid, (size_t)a->groups * sizeof(Grid)), 0) << a->name;
        EXPECT_NE(memcmp(a->codes, b->codes, (size_t)a->count()), 0) << a->name;
        EXPECT_FALSE(a->trained_grid || b->trained_grid);
    }
}

TEST(Flatquant, AFolderGivesTheSameBits) {
    TempDir dir;
    const std::string folder = dir.path + "/saved", again = dir.path + "/again";
    Model m, back;
    tiny_model(m, "int4:g16", "int4:token");
    run(m, "flatquant:epochs=2");
    const std::vector<floatX> hidden = hidden_of(m, Pass());
    model_save(m, folder, "float32", [](const std::string&) {});
    auto load = [&](Model& to) {
        to.dev = model_device();
        model_allocate(to, model_config(folder));
        model_quantize(to, rules_of("int4:g16"), false);
        model_quantize_activations(to, rules_parse("int4:token", "activations"));
        model_load_weights(to, folder);
        EXPECT_TRUE(quantizer_load(to, folder));
        model_refresh(to);
    };
    load(back);
    const std::vector<floatX> loaded = hidden_of(back, Pass());
    EXPECT_EQ(memcmp(loaded.data(), hidden.data(), hidden.size() * sizeof(floatX)), 0);
    // and of a second set of weights
    Model reference;
    model_allocate_reference(reference, back);
    model_copy_work(reference, back);
    const std::vector<floatX> copied = hidden_of(reference, Pass());
    EXPECT_EQ(memcmp(copied.data(), hidden.data(), hidden.size() * sizeof(floatX)), 0);
    model_save(back, again, "float32", [](const std::string&) {});
    EXPECT_EQ(read_file(folder + "/input_transforms.safetensors"), read_file(again + "/input_transforms.safetensors"));

    EXPECT_NE(message_of([&] { run(back, "flatquant"); }).find("has learned transforms already"), std::string::npos);
    back.config.tie_word_embeddings = false;
    for (LinearPart* p : quantized_parts(back)) p->measured = false;
    EXPECT_NE(message_of([&] { rotation_apply(back, RotationConfig()); }).find("rotated already"), std::string::npos);
    EXPECT_NE(message_of([&] { rotated_linears(back.config, "down"); }).find("--hadamard none"), std::string::npos);

    // files that are not what they should be
    std::vector<InputTransform> damaged = *m.config.transforms;
    auto refused = [&](const char* part) {
        m.config.transforms = std::make_shared<const std::vector<InputTransform>>(damaged);
        transforms_save(m.config, folder);
        EXPECT_NE(message_of([&] { model_config(folder); }).find(part), std::string::npos);
    };
    const InputTransform good = damaged[1];
    std::fill(damaged[1].p1.begin(), damaged[1].p1.end(), 1.0f);
    refused("layers.0.o.* is no transform that can be undone");
    damaged[1] = good, damaged[1].clip = 1.5f;
    refused("is no transform that can be undone");
    damaged[1] = good, damaged[1].scale[3] = NAN;
    refused("layers.0.o.scale holds a number that is not finite");
    damaged[1] = good, damaged[1].n1 = 12, damaged[1].n2 = 8, std::swap(damaged[1].p1, damaged[1].p2);
    refused("layers.0.o.left");
    std::filesystem::remove(folder + "/input_transforms.safetensors");
    EXPECT_NE(message_of([&] { model_config(folder); }).find("copy the whole folder"), std::string::npos);
}

TEST(Flatquant, Refusals) {
    auto refuse = [](const std::string& ptq, const char* weights, const char* activations, const std::string& part) {
        Model m;
        tiny_model(m, weights, activations);
        EXPECT_NE(message_of([&] { run(m, ptq); }).find(part), std::string::npos) << ptq << " " << weights;
    };
    refuse("flatquant", "nf4:g32", "none", "use an int format");
    refuse("flatquant", "int4:channel:signedmax", "none", "use an int format");
    refuse("flatquant", "int4:channel", "fp8e4m3:token", "use int");
    refuse("awq+flatquant", "int4:channel", "none", "leave those out");
    refuse("flatquant+smoothquant", "int4:channel", "none", "leave those out");
    refuse("blockwise+flatquant", "int4:channel", "none", "leave one of them out");
    refuse("flatquant:steps=3", "int4:channel", "none", "steps");
    ModelConfig c = tiny_config(1);
    c.intermediate_size = 2 * 257;
    Model m;
    model_describe(m, c);
    EXPECT_NE(message_of([&] { ptq_parse("flatquant", {}).training.check(m); }).find("no product of two numbers"),
              std::string::npos);
    c = tiny_config(1), c.rotate_down = 32;
    Model r4;
    model_describe(r4, c);
    EXPECT_NE(message_of([&] { ptq_parse("flatquant", {}).training.check(r4); }).find("(r4)"), std::string::npos);
    c = tiny_config(1), c.transformed = true;
    Model unknown;
    EXPECT_NE(message_of([&] { model_describe(unknown, c); }).find("is not known"), std::string::npos);
}
