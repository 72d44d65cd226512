// Quantized containers: what the packages themselves wrote (test/make_golden_containers.py) is read to the numbers they
// say it stands for and written again to the same bytes; a model through each format keeps Q(W) to the bit; what a
// format cannot hold is refused by name; files made to do harm are refused with one line.
#include <gtest/gtest.h>
#include <cmath>
#include <filesystem>
#include <fstream>
#include "../formats/export_model.h"
#include "../runtime/words.h"
#include "load_model.h"
#include "safetensors_test.h"
#include "test_rules.h"

namespace fs = std::filesystem;

// a name for a folder of one test, which is gone before and after
struct TempDir {
    std::string path;
    TempDir() {
        static int n = 0;
        path = (fs::temp_directory_path() / format("test_containers_%ld_%d", (long)getpid(), n++)).string();
        fs::remove_all(path);
    }
    ~TempDir() { fs::remove_all(path); }
};

// The message of the Error that f throws; "" if it throws none. Every message is one line.
template <class F>
static std::string error_of(F f) {
    try {
        f();
    } catch (const Error& e) {
        std::string what = e.what();
        EXPECT_EQ(what.find('\n'), std::string::npos) << what;
        EXPECT_LT(what.size(), 600u) << what;
        return what;
    }
    return "";
}

static void expect_has(const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << "expected '" << part << "' in: " << text;
}

// ---------------------------------------------------------------------------------------------------------------------
// golden linears

struct GoldenCase {
    std::string name, format;  // format: the export format that writes the same bytes
    nlohmann::json config;
    int64_t rows, cols;
};

static SafetensorsFile& golden_file() {
    static SafetensorsFile f = st_open("test/golden/containers.safetensors");
    return f;
}

static std::vector<GoldenCase> golden_cases() {
    std::vector<GoldenCase> list;
    for (auto& [name, text] : golden_file().metadata) {
        nlohmann::json j = nlohmann::json::parse(text);
        GoldenCase c{name, "", j["config"], j["shape"][0], j["shape"][1]};
        std::string method = c.config["quant_method"];
        c.format = method == "gptq"                                  ? c.config["checkpoint_format"].get<std::string>()
                   : method == "bitsandbytes"                        ? "bnb-nf4"
                   : c.config.value("format", "") == "int-quantized" ? "int-quantized"
                                                                     : method;
        list.push_back(c);
    }
    return list;
}

static QuantizedLinear read_case(const GoldenCase& c, const std::map<std::string, StTensor>& tensors) {
    QuantizedLinear l;
    l.name = c.name;
    l.rows = c.rows;
    l.cols = c.cols;
    ModuleTensors m{tensors, c.name, "golden"};
    std::string method = c.config["quant_method"];
    if (method == "gptq") {
        EXPECT_TRUE(gptq_has(m));
        gptq_read(l, gptq_format(c.config, "golden"), m);
    } else if (method == "awq") {
        EXPECT_TRUE(awq_has(m));
        awq_read(l, awq_format(c.config, "golden"), m);
    } else if (method == "bitsandbytes") {
        EXPECT_TRUE(bitsandbytes_has(m));
        bitsandbytes_format(c.config, "golden");
        bitsandbytes_read(l, m);
    } else {
        CompressedTensorsFormat f = compressed_tensors_format_read(c.config, "golden");
        EXPECT_TRUE(compressed_tensors_has(f, m));
        compressed_tensors_read(l, f, m);
    }
    return l;
}

TEST(Containers, ReadToThePackagesOwnNumbersAndWriteTheirBytes) {
    std::vector<GoldenCase> cases = golden_cases();
    ASSERT_EQ(cases.size(), 36u);
    for (const GoldenCase& c : cases) {
        SCOPED_TRACE(c.name);
        QuantizedLinear l = read_case(c, golden_file().tensors);
        bool expect_grid = c.name.find("order") == std::string::npos && c.name.find("crossing") == std::string::npos;
        EXPECT_EQ(l.quantizer.on(), expect_grid) << l.no_grid;
        EXPECT_EQ(l.no_grid.empty(), expect_grid);
        const StTensor& out = *st_find(golden_file().tensors, c.name + ".out");
        std::vector<float> expected(out.count), values(c.rows * c.cols);
        st_read_float(out, expected.data());
        quantized_linear_values(l, values.data());
        for (int64_t i = 0; i < out.count; i++)
            ASSERT_EQ(float_bits(values[i]), float_bits(expected[i])) << i << ": " << values[i] << ", " << expected[i];
        if (!l.quantizer.on()) continue;

        size_t written = 0;
        for (const ContainerTensor& t : container_tensors(l, c.format, "float32")) {
            SCOPED_TRACE(t.suffix);
            const StTensor* theirs = st_find(golden_file().tensors, c.name + t.suffix);
            ASSERT_NE(theirs, nullptr);
            EXPECT_EQ(t.dtype, theirs->dtype);
            ASSERT_EQ(t.shape, theirs->shape);
            std::vector<uint8_t> bytes(theirs->bytes);
            t.build(l, bytes.data());
            EXPECT_EQ(memcmp(bytes.data(), theirs->data, bytes.size()), 0);
            written++;
        }
        size_t stored = 0;
        for (auto& [name, t] : golden_file().tensors)
            stored += name.compare(0, c.name.size() + 1, c.name + ".") == 0 && name != c.name + ".out";
        EXPECT_EQ(written, stored);

        // the numbers give the codes back: a loaded model that refreshes on its frozen grid keeps them
        QuantizedLinear again = l;
        again.codes.clear();
        quantized_linear_encode(again, values.data());
        EXPECT_EQ(again.codes, l.codes);
    }
}

// 3 bits until compressed-tensors 0.17: 10 values a word, and nothing across a border
TEST(Containers, PaddedWordsOfOlderCompressedTensors) {
    const int64_t rows = 12, cols = 64;
    std::vector<uint32_t> packed(rows * 7), zeros(2 * 2);
    std::vector<float> scale = {0.5f, 1, 2, 0.25f, 1, 1, 1, 1, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 7};
    auto code = [](int64_t r, int64_t c) { return (int)((r * 5 + c * 3) % 8); };
    auto zero = [](int64_t r, int64_t g) { return (int)((r + 3 * g) % 8); };
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < cols; c++) packed[r * 7 + c / 10] |= (uint32_t)code(r, c) << (c % 10 * 3);
        for (int64_t g = 0; g < 2; g++) zeros[r / 10 * 2 + g] |= (uint32_t)zero(r, g) << (r % 10 * 3);
    }
    int64_t shape[2] = {rows, cols};
    TempDir d;
    fs::create_directory(d.path);
    st_write(d.path + "/x", {st_from_bytes("x.weight_packed", "I32", {rows, 7}, packed.data()),
                             st_from_bytes("x.weight_zero_point", "I32", {2, 2}, zeros.data()),
                             st_from_bytes("x.weight_shape", "I64", {2}, shape),
                             st_from_float("x.weight_scale", "F32", {rows, 2}, scale.data())});
    SafetensorsFile f = st_open(d.path + "/x");
    GoldenCase c{"x", "", golden_cases()[0].config, rows, cols};
    for (const GoldenCase& g : golden_cases())
        if (g.name == "ct-int3-asym-g32") c.config = g.config;
    QuantizedLinear l = read_case(c, f.tensors);
    std::vector<float> values(rows * cols);
    quantized_linear_values(l, values.data());
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < cols; i++)
            ASSERT_EQ(values[r * cols + i], (float)(code(r, i) - zero(r, i / 32)) * scale[r * 2 + i / 32])
                << r << " " << i;
}

// ---------------------------------------------------------------------------------------------------------------------
// whole models

static ModelConfig small_config() {
    ModelConfig c;
    c.model_type = "qwen2";
    c.vocab_size = 67;
    c.hidden_size = 64;
    c.intermediate_size = 128;
    c.num_hidden_layers = 2;
    c.num_attention_heads = 4;
    c.num_key_value_heads = 2;
    c.head_dim = 16;
    c.max_position_embeddings = 64;
    c.tie_word_embeddings = true;
    c.qkv_bias = true;
    return c;
}

static void small_model(Model& m, const std::string& quantizer, const std::string& which, ScaleMode mode) {
    model_allocate(m, small_config());
    model_quantize(m, rules_of(quantizer, which, mode), true);
    model_init_random(m, 7);
    for (const ParamTensor& t : m.tensors)  // what is not quantized is stored as bf16
        if (t.kind != ParamKind::linear)
            for (int64_t i = 0; i < t.count(); i++)
                m.master.data[t.offset + i] = bf16(m.master.data[t.offset + i] + 0.1f * (float)(i % 7));
    model_refresh(m);
}

static void nothing(const std::string&) {}

// loads a folder as the commands do: with the folder's quantizer, on its own grid
static void load_stored(Model& m, const std::string& dir) {
    ModelConfig config = model_config(dir);
    FolderQuantizer f = quantized_folder_quantizer(quantized_folder(dir), st_open_folder(dir), config);
    ASSERT_NE(f.text, "none") << f.why;
    model_allocate(m, config);
    model_quantize(m, rules_of(f.text, "all", ScaleMode::kept), true);
    model_load_weights(m, dir);
    model_refresh(m);
}

TEST(Export, EveryFormatKeepsQOfWToTheBit) {
    struct {
        const char *quantizer, *formats, *which;
    } cases[] = {
        {"int4:g32:sym", "compressed-tensors gptq gptq_v2 awq", "all"},
        {"int4:g32:asym", "compressed-tensors gptq_v2 awq", "all"},
        {"int3:g64:sym", "compressed-tensors gptq gptq_v2", "all"},
        {"int2:g16:asym", "compressed-tensors gptq_v2", "q,v,down"},
        {"int8:channel", "compressed-tensors int-quantized gptq", "all"},
        {"int8:g32:asym", "compressed-tensors gptq_v2", "gate,up,down"},
        {"int6:g32", "compressed-tensors", "all"},
        {"int5:channel:asym", "compressed-tensors", "all"},
        {"int4:g32:sym:signedmax", "compressed-tensors gptq awq", "all"},
        {"nf4", "bnb-nf4", "all"},
        {"nf4:dq", "bnb-nf4", "all"},
        {"fp8e4m3:tensor", "compressed-tensors", "all"},
        {"fp8e4m3:channel", "compressed-tensors", "q,k,v,o"},
        {"fp8e4m3:g32", "compressed-tensors", "all"},
        {"fp8e4m3:128x128", "compressed-tensors", "down"},
        {"mxfp8", "compressed-tensors", "all"},
        {"mxfp4", "compressed-tensors", "all"},
        {"nvfp4", "compressed-tensors", "all"},
    };
    for (auto& c : cases)
        for (const std::string& format : split_words(c.formats, " ")) {
            SCOPED_TRACE(std::string(c.quantizer) + " as " + format);
            Model m, again;
            small_model(m, c.quantizer, c.which, ScaleMode::dynamic);
            TempDir d;
            ExportSummary r = save_quantized(m, d.path, format, "", nothing);
            const std::vector<LinearPart*> parts = quantized_parts(m);
            EXPECT_EQ(r.linears, (int)parts.size());
            load_stored(again, d.path);
            if (HasFatalFailure()) return;
            const std::vector<LinearPart*> read = quantized_parts(again);
            ASSERT_EQ(read.size(), parts.size());
            EXPECT_TRUE(same_codes(read[0]->quantizer, parts[0]->quantizer));
            for (const ParamTensor& t : m.tensors) {
                bool quantized = quantizer_of(m.weight_rules, t).on();
                for (int64_t i = t.offset; i < (int64_t)t.offset + t.count(); i++)
                    ASSERT_EQ((float)again.work.data[i], quantized || t.kind != ParamKind::linear
                                                             ? (float)m.work.data[i]
                                                             : (float)floatX(bf16(m.master.data[i])))
                        << t.name << " " << i;
            }
            for (size_t i = 0; i < parts.size(); i++) {
                EXPECT_EQ(read[i]->flips_total, 0);
                EXPECT_EQ(memcmp(read[i]->codes, parts[i]->codes, parts[i]->count()), 0);
            }
            // and it is written again from the folder to the same file, with no model at all
            TempDir e;
            ModelFile file = model_file_open(d.path);
            export_folder(export_source(file, model_config(d.path), rules_of("none")), e.path, format, "bfloat16",
                          nothing);
            EXPECT_EQ(read_file(e.path + "/model.safetensors"), read_file(d.path + "/model.safetensors"));
        }
}

TEST(Export, GridsThatAreWrittenAsAnother) {
    struct {
        const char *quantizer, *format, *as;
    } cases[] = {{"int2:g32:sym", "awq", "int4:g32:sym"},
                 {"int3:g32:asym", "awq", "int4:g32:asym"},
                 {"ternary", "gptq", "int2:channel:sym"},
                 {"ternary:g32", "compressed-tensors", "int2:g32:sym"},
                 {"int8:tensor", "int-quantized", "int8:channel:sym"}};
    for (auto& c : cases) {
        SCOPED_TRACE(c.quantizer);
        Model m, again;
        small_model(m, c.quantizer, "all", ScaleMode::dynamic);
        TempDir d;
        save_quantized(m, d.path, c.format, "", nothing);
        load_stored(again, d.path);
        EXPECT_EQ(rules_text(again.weight_rules), c.as);
        for (size_t i = 0; i < m.num_params; i++) ASSERT_EQ((float)again.work.data[i], (float)m.work.data[i]) << i;
    }
}

TEST(Export, PlainFoldersHoldTheQuantizedNumbers) {
    Model m, again;
    small_model(m, "int4:g32:sym", "all", ScaleMode::dynamic);
    TempDir d;
    save_quantized(m, d.path, "hf", "", nothing);
    model_load(again, d.path);
    model_refresh(again);
    for (size_t i = 0; i < m.num_params; i++) ASSERT_EQ((float)again.work.data[i], (float)m.work.data[i]) << i;
}

// weights that moved on a frozen grid: what is exported is that grid, and not one measured from the moved weights
TEST(Export, AFrozenGridIsNotMeasuredAgain) {
    Model m, again;
    small_model(m, "int4:g32:sym", "all", ScaleMode::kept);
    for (size_t i = 0; i < m.num_params; i++) m.master.data[i] *= 0.5f;
    model_refresh(m);
    TempDir d;
    save_quantized(m, d.path, "", "", nothing);
    load_stored(again, d.path);
    for (const LinearPart* q : quantized_parts(m))
        for (int64_t i = q->offset; i < (int64_t)q->offset + q->count(); i++)
            ASSERT_EQ((float)again.work.data[i], (float)m.work.data[i]) << q->name;
}

TEST(Export, AnotherQuantizerIsMeasuredFromTheDequantizedWeights) {
    Model m, plain, again;
    small_model(m, "int8:channel", "all", ScaleMode::dynamic);
    TempDir d, e;
    save_quantized(m, d.path, "compressed-tensors", "", nothing);
    ModelFile file = model_file_open(d.path);
    export_folder(export_source(file, model_config(d.path), rules_of("int4:g32")), e.path,
                  "gptq", "bfloat16", nothing);
    load_stored(again, e.path);
    model_allocate(plain, model_config(d.path));
    model_quantize(plain, rules_of("int4:g32", "all"), false);
    model_load_weights(plain, d.path);
    model_refresh(plain);
    for (size_t i = 0; i < plain.num_params; i++) ASSERT_EQ((float)again.work.data[i], (float)plain.work.data[i]) << i;
}

// ---------------------------------------------------------------------------------------------------------------------
// what a format cannot hold

static QuantizedLinear linear_of(const std::string& quantizer, int64_t rows, int64_t cols) {
    QuantizedLinear l;
    l.name = "model.layers.1.mlp.up_proj";
    l.rows = rows;
    l.cols = cols;
    l.quantizer = quantizer_parse(quantizer, "weights");
    l.grid.assign(quantized_linear_grids(l), Grid{0.5f, l.quantizer.spec.symmetric ? 0.0f : 1.0f});
    l.codes.resize(rows * cols);
    l.tensor_scale = 2.0f;
    return l;
}

TEST(Export, RefusesWhatAFormatCannotHold) {
    auto refused = [](const QuantizedLinear& l, const char* format, const char* why) {
        std::string e = error_of([&] { container_tensors(l, format, "bfloat16"); });
        expect_has(e, "model.layers.1.mlp.up_proj");
        expect_has(e, quantizer_text(l.quantizer));
        expect_has(e, why);
    };
    refused(linear_of("int6:g32", 64, 64), "gptq", "2, 3, 4 and 8 bits");
    refused(linear_of("int3:g8", 32, 40), "gptq", "40 inputs are no multiple of 32");
    refused(linear_of("int4:g8", 12, 64), "gptq", "12 outputs are no multiple of 8");
    refused(linear_of("nf4", 64, 64), "gptq", "integers");
    refused(linear_of("fp8e4m3:128x128", 128, 128), "awq", "integers");
    for (const char* format : {"gptq", "awq"}) refused(linear_of("mid4:g32", 64, 64), format, "integers");
    refused(linear_of("mid4:g32:gauss", 64, 64), "bnb-nf4", "nf4");
    refused(linear_of("mid2:channel", 64, 64), "compressed-tensors", "compressed-tensors");
    refused(linear_of("int8:g32", 64, 64), "awq", "4 bits");
    refused(linear_of("int4:g32", 60, 64), "awq", "multiple of 8");
    refused(linear_of("int4:g32", 64, 64), "bnb-nf4", "nf4");
    refused(linear_of("nf4:g32", 64, 64), "bnb-nf4", "blocks have 64");
    refused(linear_of("nf4", 64, 64), "compressed-tensors", "bnb-nf4");
    refused(linear_of("fp8e5m2:channel", 64, 64), "compressed-tensors", "e4m3");
    refused(linear_of("int8:g32", 64, 64), "int-quantized", "int8:channel:sym");
    refused(linear_of("int8:channel:asym", 64, 64), "int-quantized", "int8:channel:sym");
    refused(linear_of("int4:channel", 64, 64), "int-quantized", "int8:channel:sym");
    QuantizedLinear l = linear_of("int4:g32:asym", 64, 64);
    EXPECT_EQ(container_tensors(l, "gptq", "bfloat16").size(), 4u);
    l.grid[17].zero = 0.0f;
    refused(l, "gptq", "gptq_v2");
    EXPECT_EQ(container_tensors(l, "gptq_v2", "bfloat16").size(), 4u);
    l.grid[3].scale = 1e-9f;
    refused(l, "gptq_v2", "1e-09");
    refused(l, "awq", "1e-09");
    l = linear_of("nvfp4", 32, 64);
    l.tensor_scale = 0.7f;
    refused(l, "compressed-tensors", "e4m3 numbers over one scale");

    Model m;
    small_model(m, "none", "all", ScaleMode::dynamic);
    TempDir d;
    expect_has(error_of([&] { save_quantized(m, d.path, "gptq", "", nothing); }), "no linear is quantized");
    EXPECT_FALSE(fs::exists(d.path));
    EXPECT_FALSE(fs::exists(d.path + ".train_qrl-new"));
    expect_has(error_of([&] { save_quantized(m, d.path, "exl2", "", nothing); }), "exl2");
}

// scales of which t is not the tensor's, and double quantization whose state is another's: refused, and kept as they
// are
TEST(Export, GridsFromOutsideHaveNoState) {
    Model m, again;
    small_model(m, "nvfp4", "all", ScaleMode::kept);
    LinearPart& part = *quantized_parts(m)[3];
    std::vector<Grid> grid(part.grid, part.grid + part.groups);
    grid[5].scale *= 1.01f;
    quantized_tensor_set_grid(part, grid.data(), m.dev);
    model_refresh(m);
    TempDir d, e;
    expect_has(error_of([&] { save_quantized(m, d.path, "", "", nothing); }), part.name.substr(0, 30));

    Model nf4;
    small_model(nf4, "nf4:dq", "all", ScaleMode::kept);
    LinearPart& nested = *quantized_parts(nf4)[3];
    grid.assign(nested.grid, nested.grid + nested.groups);
    grid[5] = Grid{grid[5].scale * 1.5f, 0.0f};
    quantized_tensor_set_grid(nested, grid.data(), nf4.dev);
    model_refresh(nf4);
    save_quantized(nf4, e.path, "", "", nothing);
    load_stored(again, e.path);
    for (size_t i = 0; i < nf4.num_params; i++) ASSERT_EQ((float)again.work.data[i], (float)nf4.work.data[i]) << i;
}

// a group of zeros that a file gives the scale 0
TEST(Containers, AScaleOfZero) {
    QuantizedLinear l = linear_of("int4:g32:asym", 2, 64);
    l.grid[1] = Grid{0.0f, 3.0f};
    for (size_t i = 0; i < l.codes.size(); i++) l.codes[i] = (int8_t)(i % 5);
    QuantizedLinear before = l;
    quantized_linear_settle(l);
    std::vector<float> a(128), b(128);
    quantized_linear_values(before, a.data());
    quantized_linear_values(l, b.data());
    EXPECT_EQ(a, b);
    for (const Grid& g : l.grid) EXPECT_NE(g.scale, 0.0f);  // quantized_tensor_set_grid refuses it
    std::vector<int8_t> codes = l.codes;
    quantized_linear_encode(l, b.data());
    EXPECT_EQ(l.codes, codes);
}

// ---------------------------------------------------------------------------------------------------------------------
// hostile folders

// the golden tensors of a case with one of them replaced
struct Damage {
    std::map<std::string, StTensor> tensors = golden_file().tensors;
    std::vector<std::vector<uint8_t>> kept;
    const GoldenCase c;
    explicit Damage(const GoldenCase& which) : c(which) {}
    StTensor& at(const std::string& suffix) { return tensors.at(c.name + suffix); }
    uint8_t* bytes(const std::string& suffix) {  // a copy to change
        StTensor& t = at(suffix);
        kept.emplace_back(t.data, t.data + t.bytes);
        t.data = kept.back().data();
        return kept.back().data();
    }
    std::string error() {
        return error_of([&] { read_case(c, tensors); });
    }
};

static GoldenCase golden_case(const std::string& name) {
    for (const GoldenCase& c : golden_cases())
        if (c.name == name) return c;
    ADD_FAILURE() << name;
    return golden_cases()[0];
}

TEST(Hostile, TensorsOfAnotherShapeTypeOrMissing) {
    for (const GoldenCase& c : golden_cases())
        for (auto& [name, t] : golden_file().tensors) {
            if (name.compare(0, c.name.size() + 1, c.name + ".") != 0 || name == c.name + ".out") continue;
            std::string suffix = name.substr(c.name.size());
            if (suffix == ".g_idx") continue;  // may be missing
            SCOPED_TRACE(name);
            bool state = suffix == bitsandbytes_state;  // without it these are no codes
            if (!state && suffix != ".qweight" &&
                !(c.config["quant_method"] == "compressed-tensors" &&
                  (suffix == ".weight_packed" || suffix == ".weight_scale"))) {
                Damage d(c);
                d.tensors.erase(name);
                expect_has(d.error(), "is missing");
            }
            Damage e(c);
            e.at(suffix).shape.push_back(1);
            if (!state) expect_has(e.error(), suffix);
            Damage f(c);
            f.at(suffix).shape[0]++;
            if (!state) expect_has(f.error(), suffix);
            Damage g(c);
            g.at(suffix).dtype = "BOOL";
            if (suffix != ".weight_shape") expect_has(g.error(), suffix);
        }
}

TEST(Hostile, NumbersOutOfRange) {
    {
        Damage d(golden_case("gptq-int4-sym-v2-order"));
        int bad = 2;  // of 2 groups
        memcpy(d.bytes(".g_idx") + 4 * 5, &bad, 4);
        expect_has(d.error(), "g_idx: input 5 is in group 2 of 2");
        bad = -1;
        memcpy(d.bytes(".g_idx") + 4 * 5, &bad, 4);
        expect_has(d.error(), "group -1");
    }
    {
        Damage d(golden_case("gptq-int4-sym-v1"));
        uint16_t nan = 0x7E00;
        memcpy(d.bytes(".scales") + 6, &nan, 2);
        expect_has(d.error(), "not finite");
    }
    {
        Damage d(golden_case("ct-int4-g32"));
        int64_t big = (int64_t)1 << 40;
        memcpy(d.bytes(".weight_shape"), &big, 8);
        expect_has(d.error(), "weight_shape");
    }
    {
        Damage d(golden_case("ct-mxfp4"));
        d.bytes(".weight_scale")[3] = 255;
        expect_has(d.error(), "scale 3 is not a number");
    }
    {
        Damage d(golden_case("ct-nvfp4"));
        d.bytes(".weight_scale")[3] = 127;
        expect_has(d.error(), "scale 3 is not a number");
        Damage e(golden_case("ct-nvfp4"));
        memset(e.bytes(".weight_global_scale"), 0, 4);
        expect_has(e.error(), "not positive");
    }
    {
        Damage d(golden_case("bnb-nf4-dq"));
        float level = 0.5f;
        memcpy(d.bytes(".weight.quant_map") + 4, &level, 4);
        expect_has(d.error(), "level 1");
        for (const char* bad :
             {"", "[]", "{", "{\"blocksize\": 64}", "{\"blocksize\": 63, \"shape\": [6, 128]}",
              "{\"blocksize\": 64, \"shape\": [128, 6]}", "{\"blocksize\": 1e300, \"shape\": [6, 128]}",
              "{\"blocksize\": 64, \"shape\": [6, 128], \"nested_offset\": 1, \"nested_blocksize\": 0}",
              "{\"blocksize\": 64, \"shape\": [6, 128], \"nested_offset\": \"x\", \"nested_blocksize\": 256}"}) {
            Damage e(golden_case("bnb-nf4-dq"));
            StTensor& t = e.at(bitsandbytes_state);
            e.kept.emplace_back(bad, bad + strlen(bad));
            t.data = e.kept.back().data();
            t.bytes = strlen(bad);
            EXPECT_NE(e.error(), "") << bad;
        }
    }
}

TEST(Hostile, QuantizationConfigs) {
    TempDir d;
    fs::create_directory(d.path);
    auto message = [&](const std::string& config) {
        std::ofstream(d.path + "/config.json") << config;
        return error_of([&] { quantized_folder(d.path); });
    };
    EXPECT_EQ(message("{}"), "");
    EXPECT_EQ(message("{\"quantization_config\": null}"), "");
    struct {
        const char *config, *says;
    } bad[] = {
        {"3", "not an object"},
        {"{\"quant_method\": \"exl2\"}", "exl2"},
        {"{\"quant_method\": \"gptq\"}", "bits"},
        {"{\"quant_method\": \"gptq\", \"bits\": 5, \"group_size\": 64}", "5 bits"},
        {"{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 0}", "group_size 0"},
        {"{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 64, \"checkpoint_format\": \"marlin\"}", "marlin"},
        {"{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 64, \"pack_dtype\": \"int16\"}", "int16"},
        {"{\"quant_method\": \"awq\", \"bits\": 3}", "3 bits"},
        {"{\"quant_method\": \"awq\", \"bits\": 4, \"version\": \"gemv\"}", "gemv"},
        {"{\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": -7}", "group_size -7"},
        {"{\"quant_method\": \"bitsandbytes\", \"load_in_8bit\": true}", "8-bit"},
        {"{\"quant_method\": \"bitsandbytes\", \"bnb_4bit_quant_type\": \"fp4\"}", "fp4"},
        {"{\"quant_method\": \"fp8\", \"fmt\": \"e5m2\"}", "e5m2"},
        {"{\"quant_method\": \"fp8\", \"weight_block_size\": [0, 128]}", "weight_block_size"},
        {"{\"quant_method\": \"compressed-tensors\"}", "config_groups"},
        {"{\"quant_method\": \"compressed-tensors\", \"config_groups\": {\"g\": [\"Linear\"]}}", "preset"},
        {"{\"quant_method\": \"compressed-tensors\", \"format\": \"marlin-24\", \"config_groups\": {\"g\": "
         "{\"targets\": "
         "[\"Linear\"], \"weights\": {}}}}",
         "marlin-24"},
        {"{\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\", \"config_groups\": {\"g\": "
         "{\"targets\": [\"Linear\"], \"weights\": {\"num_bits\": 40}}}}",
         "40 bits"},
        {"{\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\", \"config_groups\": {\"g\": "
         "{\"targets\": [\"re:(?i)q\"], \"weights\": {}}}}",
         "config_groups 'g': the pattern '(?i)q'"},
    };
    for (auto& b : bad) expect_has(message(std::string("{\"quantization_config\": ") + b.config + "}"), b.says);
}

// expected: Python 3.11's re.match of each pattern with each name
TEST(NamePattern, MatchesWhatPythonsDoes) {
    const char* names[] = {"model.layers.0.self_attn.q_proj",
                           "model.layers.10.self_attn.k_proj",
                           "model.layers.3.mlp.down_proj",
                           "model.layers.21.mlp.gate_proj",
                           "lm_head",
                           "model.embed_tokens",
                           "model.lm_head",
                           "",
                           "a",
                           "aaaa",
                           "ab",
                           "x.y",
                           "a\nb",
                           "a\n"};
    struct {
        const char *pattern, *matches;
    } cases[] = {
        {".*self_attn.*", "11000000000000"},
        {".*\\.(q|k|v)_proj$", "11000000000000"},
        {".*lm_head", "00001010000000"},
        {"model\\.layers\\.[0-9]+\\.mlp\\..*", "00110000000000"},
        {"^(?!.*lm_head).*", "11110101111111"},
        {"model\\.layers\\.(?:[0-9]|1[0-9])\\..*", "11100000000000"},
        {"(?P<x>model)\\.layers\\.\\d{1,2}\\.", "11110000000000"},
        {".*[^0-9]\\d\\.", "10100000000000"},
        {"lm", "00001000000000"},
        {"head", "00000000000000"},
        {"", "11111111111111"},
        {"(a+)+b", "00000000001000"},
        {"(a*)*", "11111111111111"},
        {"(a|aa)+$", "00000000110001"},
        {"a{2}", "00000000010000"},
        {"a{,2}$", "00000001100001"},
        {"a{1,3}b?$", "00000000101001"},
        {"a{", "00000000000000"},
        {"a{}", "00000000000000"},
        {"a{x}", "00000000000000"},
        {"[]a]+$", "00000000110001"},
        {"[^]a]", "11111110000100"},
        {"[a-]", "00000000111011"},
        {"[a\\-z]+", "00000000111011"},
        {".*\\bq_proj\\b", "10000000000000"},
        {"\\w+\\.\\w+$", "00000110000100"},
        {"(?=model).*head$", "00000010000000"},
        {"(?!a)(?!b)", "11111111000100"},
        {"(?:(?!mlp).)*$", "11001111111101"},
        {"a.b", "00000000000000"},
        {"a$", "00000000100001"},
        {"(|a)+b", "00000000001000"},
    };
    for (const auto& c : cases) {
        std::string matches;
        const NamePattern p = name_pattern(c.pattern, "x");
        for (const char* name : names) matches += name_pattern_matches(p, name) ? '1' : '0';
        EXPECT_EQ(matches, c.matches) << c.pattern;
    }
}

TEST(NamePattern, RefusesWhatItDoesNotKnow) {
    struct {
        std::string pattern, says;
    } cases[] = {
        {"(", "x: the pattern '(': a ( without its )"},
        {"a)", "a ) without its ("},
        {"[a", "a [ without its ]"},
        {"*a", "nothing to repeat"},
        {"^*", "nothing to repeat"},
        {"a**", "multiple repeat"},
        {"a{2}{3}", "multiple repeat"},
        {"a*+", "possessive"},
        {"a{3,2}", "below its minimum"},
        {"(?i)a", "a group of kind (?i"},
        {"(?<=a)b", "a group of kind (?<"},
        {"(a)\\1", "\\1"},
        {"\\q", "\\q"},
        {"a\\", "a \\ at its end"},
        {"[b-a]", "a range"},
        {"[\\d-z]", "a range"},
        {"\xC3\xA9", "beyond ASCII"},
        {std::string(33, '('), "more than 32 groups"},
        {std::string(20000, '('), "20000 bytes"},
        {"(a{1000}){1000}", "too long"},
        {"a{99999999999999999999}", "too long"},
    };
    for (const auto& c : cases) expect_has(error_of([&] { name_pattern(c.pattern, "x"); }), c.says);
}

// steps of a backtracking matcher: 2^2000
TEST(NamePattern, TakesNoLongerForHardPatterns) {
    const std::string name = std::string(2000, 'a') + "c";
    for (const char* pattern : {"(a+)+b", "(a|a)*b", "(a|aa)+$", "((a*)*)*b", "(?:(?!a*b)a)*$"})
        EXPECT_FALSE(name_pattern_matches(name_pattern(pattern, "x"), name)) << pattern;
}

TEST(CompressedTensors, Targets) {
    CompressedTensorsFormat f;
    for (const char* target : {"re:.*self_attn.*", "model.layers.0.mlp.up_proj", "re:(", "Linear"}) {
        CompressedTensorsGroup g;
        g.targets = {target};
        f.groups.push_back(g);
    }
    EXPECT_EQ(compressed_tensors_group(f, "model.layers.3.self_attn.q_proj", "x"), &f.groups[0]);
    EXPECT_EQ(compressed_tensors_group(f, "model.layers.0.mlp.up_proj", "x"), &f.groups[1]);
    expect_has(error_of([&] { compressed_tensors_group(f, "model.layers.1.mlp.up_proj", "x"); }), "'('");
    f.groups.erase(f.groups.begin() + 2);
    EXPECT_EQ(compressed_tensors_group(f, "model.layers.1.mlp.up_proj", "x"), &f.groups[2]);
    std::reverse(f.groups.begin(), f.groups.end());  // the one for all linears comes last all the same
    EXPECT_EQ(compressed_tensors_group(f, "model.layers.3.self_attn.q_proj", "x"), &f.groups[2]);
    EXPECT_EQ(compressed_tensors_group(f, "model.layers.1.mlp.up_proj", "x"), &f.groups[0]);
}
