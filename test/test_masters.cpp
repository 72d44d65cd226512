// masters.safetensors beside a quantized model: for each method and format the masters round to the codes that are in
// the folder, the model loaded from codes or from masters is the one that was measured, and a file that does not belong
// to the codes is refused.
#include <gtest/gtest.h>
#include <cstring>
#include <vector>
#include "../eval/log_loss.cuh"
#include "../formats/export_model.h"
#include "../methods/ptq.cuh"
#include "file_test.h"
#include "test_device.h"
#include "test_rules.h"

static ModelConfig small_config() {
    ModelConfig c;
    c.model_type = "qwen3";
    c.vocab_size = 101;
    c.hidden_size = 64;
    c.intermediate_size = 128;
    c.num_hidden_layers = 2;
    c.num_attention_heads = 4;
    c.num_key_value_heads = 2;
    c.head_dim = 16;
    c.max_position_embeddings = 64;
    c.qk_norm = true;
    return c;
}

static std::vector<std::vector<int>> windows() {
    std::vector<std::vector<int>> all(10, std::vector<int>(24));
    for (size_t i = 0; i < all.size(); i++)
        for (size_t j = 0; j < all[i].size(); j++)
            all[i][j] = (int)(101.0f * uniform01(rng_bits(3, RNG_INIT, 70, (uint32_t)(24 * i + j), 0).x[0])) % 101;
    return all;
}

static double mean_loss(Model& m) {
    std::vector<int> ids;
    for (const std::vector<int>& w : windows()) ids.insert(ids.end(), w.begin(), w.end());
    LogLossMemory memory;
    log_loss_allocate(memory, m, 256, 48);
    return log_loss(m, memory, text_windows(ids, 48)).mean;
}

// a model quantized by --ptq method, as the quantize command does it
static void quantized_model(Model& m, const std::string& weights, const std::string& method) {
    m.dev = model_device();
    model_allocate(m, small_config());
    model_init_random(m, 7);
    for (size_t i = 0; i < m.num_params; i++) m.master[i] *= 3.0f;
    model_quantize(m, rules_of(weights), true);
    const PtqPlan plan = ptq_parse(method, {});
    PtqMemory s;
    ptq_allocate(s, m, plan, plan.needs_calibration() ? 240 : 0, 24, 50);
    ptq_run(m, s, plan, plan.needs_calibration() ? windows() : std::vector<std::vector<int>>(),
            [](int, const PtqLayer&) {});
}

// the folder as a command loads it: on the folder's own grid; masters: as training does
static void load(Model& m, const std::string& dir, bool masters, ScaleMode mode = ScaleMode::kept) {
    m.dev = model_device();
    model_allocate(m, model_config(dir));
    QuantizerRules rules = rules_of(policy_weights(policy_load(dir)), "all", mode);
    model_quantize(m, rules, true);
    model_load_weights(m, dir);
    if (mode != ScaleMode::dynamic) quantizer_load(m, dir);
    if (masters) { EXPECT_GT(masters_load(m, dir).weights, 0); }
    model_refresh(m);
}

static void nothing(const std::string&) {}

static bool same_work(const Model& a, const Model& b) {
    return a.num_params == b.num_params && memcmp(a.work.data, b.work.data, a.num_params * sizeof(floatX)) == 0;
}

struct Case {
    const char *format, *weights;
};

class Masters : public testing::TestWithParam<Case> {};

TEST_P(Masters, RoundToTheCodesOfTheFolder) {
    const auto [format, weights] = GetParam();
    for (const char* method : {"rtn", "gptq", "awq+gptq", "smoothquant", "rotate+gptq", "blockwise:steps=3"}) {
        SCOPED_TRACE(method);
        Model m, codes, masters;
        TempDir d;
        quantized_model(m, weights, method);
        MastersReport report;
        save_quantized(m, d / "q", format, "float32", nothing, &report);
        const double measured = mean_loss(m);
        load(codes, d / "q", false);
        load(masters, d / "q", true);
        const double from_codes = mean_loss(codes), from_masters = mean_loss(masters);
        printf("%-18s %-15s %-11s log-loss %.9f in process, %.9f loaded, %.9f from masters\n", format, weights, method,
               measured, from_codes, from_masters);
        EXPECT_EQ(measured, from_codes);
        EXPECT_EQ(measured, from_masters);
        EXPECT_TRUE(same_work(m, codes) && same_work(m, masters));
        EXPECT_EQ(memcmp(m.codes.data, masters.codes.data, m.codes.size), 0);
        // they are the weights that were rounded, and these are between the numbers of the grid
        int64_t other = 0, on_grid = 0, count = 0;
        for (const LinearPart* t : quantized_parts(masters))
            for (int64_t i = 0; i < t->count(); i++, count++) {
                other += m.master[t->offset + i] != masters.master[t->offset + i];
                on_grid += (float)masters.work[t->offset + i] == (float)floatX(masters.master[t->offset + i]);
            }
        EXPECT_EQ(other, report.settled);
        EXPECT_LT(report.settled, count / 100);
        EXPECT_EQ(report.bytes, (uint64_t)count * sizeof(float));
        EXPECT_LT(on_grid, count / (sizeof(floatX) == 4 ? 20 : 2));
    }
}

INSTANTIATE_TEST_SUITE_P(
    Formats, Masters,
    testing::Values(Case{"hf", "int3:g32:asym:mse"}, Case{"hf", "nf4:g32:dq"}, Case{"hf", "mid3:g32:gauss"},
                    Case{"hf", "int4:g32; down=int8:channel; k=none; embed=int8:channel"},
                    Case{"compressed-tensors", "int3:g32:asym"}, Case{"compressed-tensors", "int3:tensor:sym"},
                    Case{"compressed-tensors", "nvfp4"}, Case{"int-quantized", "int8:channel"},
                    Case{"gptq", "int4:g32:sym"}, Case{"gptq_v2", "int3:g32:asym"}, Case{"awq", "int4:g32:asym"},
                    Case{"awq", "int3:g32:asym"}, Case{"bnb-nf4", "nf4"}, Case{"bnb-nf4", "nf4:dq"}));

// other tools load the plain folder as the quantized model
TEST(MastersFile, PlainWeightsAreTheGridsValues) {
    Model m;
    TempDir d;
    quantized_model(m, "int3:g32:asym", "gptq");
    MastersReport report;
    save_quantized(m, d / "q", "hf", "", nothing, &report);
    const SafetensorsFile plain = st_open(d / "q/model.safetensors"), masters = st_open(d / "q/masters.safetensors");
    EXPECT_EQ(masters.tensors.size(), quantized_parts(m).size());
    for (const LinearPart* t : quantized_parts(m)) {
        std::vector<float> values(t->count());
        st_read_float(plain.tensors.at(t->name), values.data());
        for (int64_t i = 0; i < t->count(); i++)
            ASSERT_EQ(values[i], quant_value(t->quantizer.spec, t->codes[i], t->grid[i / t->group])) << t->name;
        EXPECT_EQ(masters.tensors.at(t->name).dtype, "F32");
    }
    // loaders that would take every file of the folder look here which belong to the model
    const nlohmann::json index = nlohmann::json::parse(read_file(d / "q/model.safetensors.index.json", 1 << 20));
    EXPECT_EQ(index["weight_map"].size(), plain.tensors.size());
    for (const auto& [name, file] : index["weight_map"].items()) EXPECT_EQ(file, "model.safetensors") << name;
}

// Scales measured anew, or in another basis: masters that are rounded to the folder's codes on them are taken, those that
// make up for errors of the folder's grid are not. Another quantizer has the dequantized weights
TEST(MastersFile, WithScalesOfTheirOwn) {
    struct {
        const char *method, *weights;
        bool taken;
    } const cases[] = {{"rtn", "int4:g32:asym:mse", true},
                       {"smoothquant", "nf4:g32:dq", true},
                       {"gptq", "int4:g32:sym", false},
                       {"gptq", "nf4:g32:dq", false}};
    for (const auto& [method, weights, taken] : cases) {
        Model m, codes, other;
        TempDir d;
        quantized_model(m, weights, method);
        MastersReport report;
        save_quantized(m, d / "q", "", "float32", nothing, &report);
        load(codes, d / "q", false, ScaleMode::dynamic);
        for (const char* basis : {"none", "down"}) {
            SCOPED_TRACE(format("%s %s, --hadamard %s", method, weights, basis));
            Model again;
            again.dev = model_device();
            model_allocate(again, m.config);
            model_quantize(again, rules_of(weights), true);
            model_rotate(again, basis);
            model_load_weights(again, d / "q");
            const MastersLoaded loaded = masters_load(again, d / "q");
            const int all = (int)quantized_parts(m).size();
            EXPECT_EQ(loaded.weights, taken ? all : 0);
            EXPECT_EQ(loaded.left, taken ? 0 : all);
            const Model& from = taken ? m : codes;
            int64_t different = 0;
            for (const LinearPart* t : quantized_parts(m))
                for (int64_t i = 0; i < t->count(); i++)
                    different += from.master[t->offset + i] != again.master[t->offset + i];
            EXPECT_LT(different, (int64_t)m.num_params / 100);  // those that were settled
        }
        model_allocate(other, m.config);
        model_quantize(other, rules_of("int8:channel"), true);
        model_load_weights(other, d / "q");
        const MastersLoaded none = masters_load(other, d / "q");
        EXPECT_EQ(none.weights + none.left, 0);
    }
}

TEST(MastersFile, BadInput) {
    Model m;
    TempDir d;
    quantized_model(m, "int4:g32:sym", "gptq");
    MastersReport report;
    save_quantized(m, d / "q", "", "float32", nothing, &report);
    const std::string path = d / "q/masters.safetensors", whole = read_file(path);
    const std::string name = "model.layers.1.mlp.down_proj.weight";
    Model again;
    load(again, d / "q", true);
    auto refused = [&](const std::string& part) {
        const std::string e = error_of([&] { masters_load(again, d / "q"); });
        expect_has(e, part);
        expect_has(e, path);
        expect_has(e, "remove masters.safetensors");
    };
    auto changed = [&](const std::function<void(StWriteTensor&, std::vector<float>&)>& change) {
        SafetensorsFile f = st_open(d / "whole");
        std::vector<StWriteTensor> tensors;
        std::map<std::string, std::vector<float>> values;
        for (const auto& [key, t] : f.tensors) {
            values[key].resize(t.count);
            st_read_float(t, values[key].data());
            tensors.push_back(st_from_float(key, "F32", t.shape, values[key].data()));
            if (key == name) change(tensors.back(), values[key]);
        }
        st_write(path, tensors);
    };
    put(d / "whole", whole);
    for (size_t length : {(size_t)0, (size_t)5, (size_t)200, whole.size() / 2, whole.size() - 1}) {
        put(path, whole.substr(0, length));
        refused("masters.safetensors: ");
    }
    changed([](StWriteTensor& t, std::vector<float>&) { std::swap(t.shape[0], t.shape[1]); });
    refused("has shape");
    changed([](StWriteTensor& t, std::vector<float>&) { t.name = "another"; });
    refused(name + " is missing");
    changed([](StWriteTensor&, std::vector<float>& w) { w[70] = -w[70] + 0.5f; });
    refused("1 of the 8192 numbers of " + name + " do not round");
    changed([](StWriteTensor&, std::vector<float>& w) { w[70] = NAN; });
    refused("not finite");
    // of another quantization of the same model
    Model other;
    TempDir e;
    quantized_model(other, "int4:g32:sym", "rtn");
    save_quantized(other, e / "q", "", "float32", nothing, &report);
    fs::copy_file(e / "q/masters.safetensors", path, fs::copy_options::overwrite_existing);
    refused("do not round to the folder's codes");
    fs::remove(path);
    EXPECT_EQ(masters_load(again, d / "q").weights, 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// grids of a container that training keeps, beside its checkpoint

// dir, a container, as a frozen base; grids: the folder whose quantizer.safetensors it takes where dir has none
static void load_frozen(Model& m, const std::string& dir) {
    m.dev = model_device();
    model_allocate_frozen(m, model_config(dir), rules_of(policy_weights(policy_load(dir))));
    quantizer_load(m, dir);
    model_load_weights(m, dir);
}

// NF4's doubly quantized scales have no scale before them in a file; GPTQ's and AWQ's are fp16, of 11 bits and from 2^-24
TEST(KeptGrids, OfAContainerAreReadAsTheyWereTrained) {
    for (const auto& [format, weights] : {Case{"bnb-nf4", "nf4:dq"}, Case{"gptq", "int4:g32:sym"},
                                          Case{"awq", "int4:g32:asym"}, Case{"compressed-tensors", "int8:channel"}}) {
        SCOPED_TRACE(format);
        Model m, trained, again, frozen;
        TempDir d;
        quantized_model(m, weights, "rtn");
        if (quant_is_integer(quantized_parts(m)[0]->quantizer.spec)) {
            for (LinearPart* t : quantized_parts(m)) {
                for (int64_t g = 0; g < t->groups; g++)
                    t->grid[g].scale = g % 50 == 49 ? 3.0f / (1 << 20) : (float)(1 + 1e-3) * t->grid[g].scale;
                for (int64_t g = 0; g < t->groups; g++)
                    t->grid[g].scale = fp16_bits_to_float(float_to_fp16_bits(t->grid[g].scale));
                t->given = true;
            }
            model_refresh(m);
        }
        save_quantized(m, d / "q", format, "float32", nothing);
        load(trained, d / "q", false);
        EXPECT_TRUE(same_work(m, trained));
        for (LinearPart* t : quantized_parts(trained))
            for (int64_t i = 0; i < t->count(); i++) t->master[i] *= i % 3 ? 1.0f : 0.7f;  // codes flip
        model_refresh(trained);
        EXPECT_FALSE(same_work(m, trained));
        model_save(trained, d / "c", "float32", nothing);
        load(again, d / "c", false);
        EXPECT_TRUE(same_work(trained, again));
        EXPECT_EQ(memcmp(trained.grids.data, again.grids.data, trained.grids.bytes()), 0);
        EXPECT_TRUE(trained.scale_codes.size == again.scale_codes.size &&
                    trained.scale_floats.size == again.scale_floats.size);
        if (trained.scale_codes.size) {
            EXPECT_EQ(memcmp(trained.scale_codes.data, again.scale_codes.data, trained.scale_codes.bytes()), 0);
            EXPECT_EQ(memcmp(trained.scale_floats.data, again.scale_floats.data, trained.scale_floats.bytes()), 0);
        }
        load_frozen(frozen, d / "c");
        EXPECT_EQ(mean_loss(trained), mean_loss(frozen));
        // and goes back into its container
        save_quantized(again, d / "e", format, "float32", nothing);
        Model exported;
        load(exported, d / "e", false);
        EXPECT_TRUE(same_work(trained, exported));
    }
}

// as they were written without scale_code
TEST(KeptGrids, ScalesThatAreAllZeroAreRefused) {
    Model m, trained;
    TempDir d;
    quantized_model(m, "nf4:dq", "rtn");
    save_quantized(m, d / "q", "bnb-nf4", "float32", nothing);
    load(trained, d / "q", false);
    model_save(trained, d / "c", "float32", nothing);
    const std::string path = d / "c/quantizer.safetensors";
    put(d / "whole", read_file(path));
    const SafetensorsFile f = st_open(d / "whole");
    auto changed = [&](bool with_codes, float code) {
        std::vector<StWriteTensor> tensors;
        for (const auto& [name, t] : f.tensors) {
            const bool scale = name.size() > 6 && name.compare(name.size() - 6, 6, ".scale") == 0;
            if (!scale && !with_codes) continue;
            const float fill = scale ? 0.0f : code;
            tensors.push_back(st_from_callback(name, "F32", t.shape,
                                               [fill](int64_t, int64_t n, float* to) { std::fill(to, to + n, fill); }));
        }
        st_write(path, tensors, f.metadata);
    };
    auto refused = [&](const char* part) {
        Model kept, frozen;
        for (const std::string& e :
             {error_of([&] { load(kept, d / "c", false); }), error_of([&] { load_frozen(frozen, d / "c"); })}) {
            expect_has(e, part);
            expect_has(e, path);
            expect_has(e, "model.layers.0.self_attn.q_proj.weight");
            expect_has(e, "remove the file");
        }
    };
    changed(false, 0.0f);
    refused("are all 0");
    changed(true, 256.0f);
    refused("256, which is no byte");
    // a weight of zeros has no other scales
    Model zeros, again;
    quantized_model(zeros, "nf4:dq", "rtn");
    memset(zeros.master.data, 0, zeros.master.bytes());
    for (LinearPart* t : quantized_parts(zeros)) t->measured = false;
    model_refresh(zeros);
    model_save(zeros, d / "z", "float32", nothing);
    load(again, d / "z", false);
    EXPECT_TRUE(same_work(zeros, again));
}
