// Optimizers. AdamW: the bits of the loop over tensors that it replaced, with decay, rates and scales as they were; the
// state's memory, reset, files in and out and those that must be refused.
#include <gtest/gtest.h>
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>
#include "../formats/optimizer_file.h"
#include "../model.cuh"
#include "file_test.h"
#include "operator_test.h"
#include "test_device.h"
#include "tiny_model.h"

typedef TestBuffer<float> Full;

// ---------------------------------------------------------------------------------------------------------------------
// a model with an optimizer

struct TrainedModel {
    Model m;
    Optimizer o;
    Buffer<float> grads, scale_grads;
};

enum class Trained { all, adapter, scales };

static void open_trained(TrainedModel& t, const OptimizerConfig& config, Trained what, int layers = 1,
                         Device dev = model_device()) {
    t.m.dev = dev;
    ModelConfig c = tiny_config(layers);
    c.qkv_bias = true;
    model_allocate(t.m, c);
    model_init_random(t.m, 7);
    if (what == Trained::scales) model_quantize(t.m, rules_of("int4:g16", "all", ScaleMode::learned), false);
    if (what == Trained::adapter) {
        LoraConfig lora;
        lora.r = 4;
        model_adapt(t.m, lora, 3, true);
        lora_init(t.m.lora, dev);
    }
    model_refresh(t.m, what == Trained::scales);
    t.grads.allocate(t.m.lora.on() ? t.m.lora.num_params : t.m.num_params, "gradients", "", dev);
    t.scale_grads.allocate(t.m.learned.size, "gradients", "", dev);
    optimizer_init(t.o, t.m, t.grads, t.scale_grads, config);
}

static void draw(Buffer<float>& b, uint32_t tensor, Device dev) {
    std::vector<float> v = random_values<float>(b.size, tensor, 0.1f);
    copy_to_device(b.data, v.data(), b.bytes(), dev);
}

static void one_step(TrainedModel& t, int64_t step, double rate, double grad_scale = 1.0) {
    draw(t.grads, 100 + (uint32_t)step, t.m.dev);
    draw(t.scale_grads, 200 + (uint32_t)step, t.m.dev);
    optimizer_update(t.o, {rate, grad_scale, step});
}

static std::vector<float> values(const float* p, size_t n, Device dev) {
    std::vector<float> v(n);
    copy_to_host(v.data(), p, n * sizeof(float), dev);
    return v;
}
static std::vector<float> values(const Buffer<float>& b, Device dev) { return values(b.data, b.size, dev); }

static std::vector<char> state_bytes(const Optimizer& o) {
    std::vector<char> v(o.state.size);
    copy_to_host(v.data(), o.state.data, v.size(), o.dev);
    return v;
}

static OptimizerConfig config_of(const char* name, double rate = 1e-3, double decay = 0.1) {
    OptimizerConfig c;
    c.name = name;
    optimizer_rates(c, rate, decay);
    return c;
}

// ---------------------------------------------------------------------------------------------------------------------
// AdamW

// What train.cuh did before there were optimizers: two arrays of moments as long as the weights, a loop over tensors
TEST(Optimizer, AdamWHasTheBitsOfTheLoopOverTensors) {
    for (Trained what : {Trained::all, Trained::adapter, Trained::scales}) {
        AdamWConfig adam;
        adam.learning_rate = 1.3e-3f, adam.weight_decay = 0.07f, adam.beta2 = 0.99f;
        const double peak = 1.3e-3, scale_peak = 0.0371;
        OptimizerConfig config = config_of("adamw", peak, 0.07);
        config.beta2 = 0.99f;
        config.of(ParamGroup::scales).learning_rate = scale_peak;
        TrainedModel t;
        open_trained(t, config, what);
        Device dev = t.m.dev;
        Buffer<float>& trained = t.m.lora.on() ? t.m.lora.master : t.m.master;
        Full w(values(trained, dev), dev), m(std::vector<float>(trained.size), dev),
            v(std::vector<float>(trained.size), dev);
        const size_t scales = t.m.learned.size;
        Full ws(values(t.m.learned, dev), dev), ms(std::vector<float>(scales), dev),
            vs(std::vector<float>(scales), dev);
        EXPECT_EQ(scales > 0, what == Trained::scales);
        for (int64_t step = 1; step <= 4; step++) {
            const double rate = peak * (1.0 - 0.23 * (double)(step - 1)), clip = 0.37;
            one_step(t, step, rate, clip);
            AdamWConfig c = adam;
            c.learning_rate = (float)rate;
            if (t.m.lora.on())
                adamw_update(w.data, m.data, v.data, t.grads.data, (int64_t)w.n, (float)clip, c, step, dev);
            else
                for (const ParamTensor& p : t.m.tensors) {
                    AdamWConfig tensor = c;
                    if (p.kind == ParamKind::norm || p.kind == ParamKind::bias) tensor.weight_decay = 0.0f;
                    adamw_update(w.data + p.offset, m.data + p.offset, v.data + p.offset, t.grads.data + p.offset,
                                 p.count(), (float)clip, tensor, step, dev);
                }
            c.weight_decay = 0.0f;
            c.learning_rate = (float)(scale_peak * (rate / adam.learning_rate));
            adamw_update(ws.data, ms.data, vs.data, t.scale_grads.data, (int64_t)scales, 1.0f, c, step, dev);
        }
        EXPECT_TRUE(same_bits(values(trained, dev), w.get())) << (int)what;
        EXPECT_TRUE(same_bits(values(t.m.learned, dev), ws.get())) << (int)what;
        const OptimizerTensor& first = t.o.tensors.front();
        EXPECT_TRUE(same_bits(values(first.array<float>(1), (size_t)first.count(), dev),
                              values(v.data, (size_t)first.count(), dev)));
        EXPECT_EQ(t.o.tensors.size(), (t.m.lora.on() ? 1 : t.m.tensors.size()) + (scales ? 1 : 0));
    }
}

TEST(Optimizer, GroupsHaveTheirOwnRatesAndZeroLeavesThemAlone) {
    OptimizerConfig config = config_of("adamw");
    config.of(ParamGroup::norms).learning_rate = 0.0;
    config.of(ParamGroup::embeddings).learning_rate = 2e-3;
    TrainedModel t;
    open_trained(t, config, Trained::scales);
    std::vector<float> before = values(t.m.master, t.m.dev), scales = values(t.m.learned, t.m.dev);
    draw(t.grads, 1, t.m.dev);
    optimizer_update(t.o, {0.5e-3, 1.0, 1, false});
    std::vector<float> after = values(t.m.master, t.m.dev), grads = values(t.grads, t.m.dev);
    for (const ParamTensor& p : t.m.tensors)
        for (size_t i = p.offset; i < p.offset + (size_t)p.count(); i++) {
            const bool still = p.kind == ParamKind::norm || p.kind == ParamKind::bias;
            // the first step is the rate, whatever the gradient
            const double decay = 0.1 * before[i], g = grads[i];
            const double rate = p.kind == ParamKind::embedding ? 1e-3 : 0.5e-3;
            const double expected = still ? 0.0 : -rate * (std::copysign(1.0, g) + decay);
            if (std::fabs(g) > 1e-4 || still) { ASSERT_NEAR(after[i] - before[i], expected, 1e-6) << p.name; }
        }
    EXPECT_TRUE(same_bits(values(t.m.learned, t.m.dev), scales)) << "scales moved without gradients";
}

TEST(Optimizer, NamesAreRowsOfTheTable) {
    for (const UpdateRule* r : optimizer_rules()) EXPECT_EQ(&optimizer_rule(r->name), r);
    try {
        optimizer_rule("adamv");
        FAIL();
    } catch (const Error& e) {
        EXPECT_EQ(e.exit_code, 2);
        expect_has(e.what(), "did you mean adamw?");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// all of them

TEST(Optimizer, IsPlannedInTheArenaAndResets) {
    for (const UpdateRule* r : optimizer_rules()) {
        Device dev = model_device();
        Arena arena;
        arena.dev = dev;
        TrainedModel t;
        t.m.dev = dev;
        t.m.dev.arena = &arena;
        model_allocate(t.m, tiny_config(1));
        t.grads.allocate(t.m.num_params, "gradients", "", t.m.dev);
        optimizer_init(t.o, t.m, t.grads, t.scale_grads, config_of(r->name));
        bool planned = false;
        for (const Arena::Line& l : arena.lines)
            planned |= l.what == format("optimizer state (%s)", r->name) && l.bytes == t.o.state.bytes();
        EXPECT_TRUE(planned) << r->name;
        EXPECT_EQ(t.o.tensors[0].weight, nullptr);
        arena_commit(arena);
        model_init_random(t.m, 7);
        const std::vector<float> start = values(t.m.master, dev);
        std::vector<float> first;
        for (int again = 0; again < 2; again++) {
            copy_to_device(t.m.master.data, start.data(), t.m.master.bytes(), dev);
            for (int64_t step = 1; step <= 3; step++) one_step(t, step, 1e-3);
            const std::vector<float> end = values(t.m.master, dev);
            EXPECT_FALSE(same_bits(start, end)) << r->name;
            if (first.empty()) first = end;
            EXPECT_TRUE(same_bits(first, end)) << r->name;
            optimizer_reset(t.o);
            for (char c : state_bytes(t.o)) ASSERT_EQ(c, 0) << r->name;
        }
    }
}

TEST(Optimizer, ItsFileGoesOnWithTheSameBits) {
    TempDir dir;
    for (const UpdateRule* r : optimizer_rules())
        for (Trained what : {Trained::all, Trained::adapter, Trained::scales}) {
            const std::string path = dir / "optimizer.safetensors";
            TrainedModel t, again;
            open_trained(t, config_of(r->name), what);
            for (int64_t step = 1; step <= 3; step++) one_step(t, step, 1e-3);
            optimizer_save(t.o, 3, path);
            open_trained(again, config_of(r->name), what);
            copy_on_device(again.m.master.data, t.m.master.data, t.m.master.bytes(), t.m.dev);
            copy_on_device(again.m.lora.master.data, t.m.lora.master.data, t.m.lora.master.bytes(), t.m.dev);
            copy_on_device(again.m.learned.data, t.m.learned.data, t.m.learned.bytes(), t.m.dev);
            EXPECT_EQ(optimizer_load(again.o, path), 3);
            EXPECT_EQ(state_bytes(again.o), state_bytes(t.o)) << r->name;
            one_step(t, 4, 1e-3), one_step(again, 4, 1e-3);
            EXPECT_TRUE(same_bits(values(t.m.master, t.m.dev), values(again.m.master, t.m.dev))) << r->name;
            EXPECT_TRUE(same_bits(values(t.m.lora.master, t.m.dev), values(again.m.lora.master, t.m.dev))) << r->name;
            EXPECT_TRUE(same_bits(values(t.m.learned, t.m.dev), values(again.m.learned, t.m.dev))) << r->name;
        }
}

TEST(Optimizer, AFileThatDoesNotFitIsRefusedAndChangesNothing) {
    TempDir dir;
    const std::string path = dir / "o.safetensors", other = dir / "other.safetensors";
    TrainedModel t;
    open_trained(t, config_of("adamw"), Trained::all);
    one_step(t, 1, 1e-3);
    const std::vector<char> before = state_bytes(t.o);
    optimizer_save(t.o, 1, path);
    auto refused = [&](const std::string& file, const std::string& part) {
        expect_has(error_of([&] { optimizer_load(t.o, file); }), part);
        EXPECT_EQ(state_bytes(t.o), before) << part;
    };
    TrainedModel larger, adapter;
    open_trained(larger, config_of("adamw"), Trained::all, 2);
    optimizer_save(larger.o, 1, other);
    refused(other, ".weight.m' belongs to nothing that is trained here");
    open_trained(adapter, config_of("adamw"), Trained::adapter);
    optimizer_save(adapter.o, 1, other);
    refused(other, "model.embed_tokens.weight.m is missing");
    // one array changed at a time
    const SafetensorsFile f = st_open(path);
    auto rewrite = [&](const std::string& name, const char* dtype, const std::vector<int64_t>& shape,
                       std::map<std::string, std::string> metadata) {
        std::vector<StWriteTensor> list;
        for (const auto& [key, s] : f.tensors) {
            const bool change = key == name;
            const uint8_t* data = s.data;
            const std::string type = change ? dtype : s.dtype;
            const size_t size = (size_t)st_dtypes[st_dtype_index(type)].bits / 8;
            list.push_back({key, type, change ? shape : s.shape, [=](int64_t first, int64_t n, uint8_t* dst) {
                                memcpy(dst, data + first * size, (size_t)n * size);
                            }});
        }
        st_write(other, list, metadata);
    };
    const std::map<std::string, std::string> good = {{"optimizer", "adamw"}, {"step", "1"}};
    const std::string norm = "model.norm.weight.v";
    rewrite("", "", {}, good);
    EXPECT_EQ(optimizer_load(t.o, other), 1);
    rewrite(norm, "F32", {1, 32}, good);
    refused(other, "model.norm.weight.v is F32 [1, 32], but F32 [1, 64] is needed");
    rewrite(norm, "BF16", {1, 64}, good);
    refused(other, "model.norm.weight.v is BF16 [1, 64], but F32 [1, 64] is needed");
    rewrite("", "", {}, {{"optimizer", "lion"}, {"step", "1"}});
    refused(other, "the state of 'lion', but this run's optimizer is adamw");
    rewrite("", "", {}, {{"optimizer", "adamw"}, {"step", "-1"}});
    refused(other, "the number of steps in its metadata is '-1'");
    rewrite("", "", {}, {{"format", "pt"}});
    refused(other, "its metadata names no optimizer");
    put(other, "not safetensors");
    refused(other, "this is not a safetensors file");
}

TEST(Optimizer, TextSaysWhichTensorsGetWhat) {
    TrainedModel t;
    open_trained(t, config_of("adamw"), Trained::adapter);
    EXPECT_EQ(optimizer_text(t.o), format("adamw for 1 tensor of %zu parameters (%s of state)", t.m.lora.num_params,
                                          bytes_text(8.0 * (double)t.m.lora.num_params).c_str()));
}
