// What test/format_recipe asks of a format that was added by the recipe of kernels/quant_format.cuh (recipe/log4.cuh):
// everything that the formats of the tree can do, with no line about it outside its file and the table. The numbers
// expected here are made anew, in double.
#include "../../formats/quantizer_file.h"
#include "../../kernels/kv_quant.cuh"
#include "../../kernels/linear.cuh"
#include "../file_test.h"
#include "../operator_test.h"
#include "../tiny_model.h"

// the 16 numbers, by code
static double number(int code) {
    double size = code & 7 ? std::exp2((code & 7) - 7) : 0.0;
    return code & 8 ? -size : size;
}

struct Expected {
    std::vector<float> scale, value;
    std::vector<int> code;
};
static Expected expected(const std::vector<float>& w, int64_t group) {
    Expected e;
    for (size_t i = 0; i < w.size(); i++) {
        if (i % group == 0) {
            float amax = 0.0f;
            for (int64_t j = 0; j < group; j++) amax = std::max(amax, std::fabs(w[i + j]));
            e.scale.push_back(amax > 0.0f ? amax : 1.0f);
        }
        float s = e.scale.back(), x = w[i] / s;
        int best = 0;
        for (int code = 0; code < 16; code++)
            if (std::fabs(number(code) - (double)x) < std::fabs(number(best) - (double)x)) best = code;
        e.code.push_back(best == 0 && x < 0.0f ? 8 : best);
        e.value.push_back((float)number(e.code.back()) * s);
    }
    return e;
}

static std::vector<float> weights(size_t n) {
    std::vector<float> w = random_values<float>(n, 1);
    for (size_t i = 0; i < n; i++) w[i] *= std::exp2f(-(float)(i % 9));  // all 16 codes
    for (int i = 0; i < 32; i++) w[i] = 0.0f;                            // a group of zeros
    return w;
}

TEST(FormatRecipe, IsParsedByEveryFlagAndNamed) {
    EXPECT_EQ(quantizer_text(quantizer_parse("log4", "weights")), "log4:g32");
    EXPECT_EQ(quantizer_text(quantizer_parse("log4:g64", "activations")), "log4:g64");
    EXPECT_EQ(quantizer_text(quantizer_parse("log4:g8", "kv_cache")), "log4:g8");
    auto message = [](const char* text) {
        try {
            quantizer_parse(text, "weights");
        } catch (const Error& e) { return std::string(e.what()); }
        return std::string();
    };
    expect_has(message("log4:channel"), "'channel' at character 6");
    expect_has(message("log4:g32:asym"), "'asym' at character 10");
    expect_has(message("log5"), "log4");
}

TEST(FormatRecipe, ForwardAndGradientOnEveryBackend) {
    const int64_t rows = 24, cols = 96, group = 32, n = rows * cols, groups = n / group;
    const Quantizer q = quantizer_parse("log4", "weights");
    const std::vector<float> w = weights(n);
    const Expected e = expected(w, group);
    for (const Backend& run : all_backends()) {
        select_backend(run);
        TestBuffer<float> master(w, run.dev), gradient(std::vector<float>(n, 1.0f), run.dev);
        TestBuffer<floatX> work(n, run.dev);
        TestBuffer<int8_t> codes(std::vector<int8_t>(n, 0), run.dev);
        TestBuffer<Grid> grid(groups, run.dev);
        TestBuffer<int64_t> changed(std::vector<int64_t>(1, 0), run.dev);
        const QuantGroups shape = {groups, group};
        fake_quant_forward({work.data, codes.data, grid.data, ScaleState(), changed.data}, master.data, shape, q.spec,
                           true, run.dev);
        std::vector<floatX> got = work.get();
        std::vector<int8_t> code = codes.get();
        std::vector<Grid> scales = grid.get();
        int64_t flips = 0;
        std::vector<int> seen(16);
        for (int64_t i = 0; i < n; i++) {
            ASSERT_EQ(scales[i / group].scale, e.scale[i / group]) << run.name;
            ASSERT_EQ((int)code[i], e.code[i]) << run.name << ", element " << i << ", w " << w[i];
            ASSERT_EQ((float)got[i], (float)(floatX)e.value[i]) << run.name << ", element " << i;
            flips += (code[i] & 7) != 0;  // -0 is no other number than the 0 before
            seen[code[i]]++;
        }
        EXPECT_EQ(std::count(seen.begin(), seen.end(), 0), 0) << "some codes were not tested";
        EXPECT_EQ(changed.get()[0], flips) << run.name;

        // a grid of half the scale: what lies half a step beyond it gets no gradient
        for (Grid& g : scales) g.scale *= 0.5f;
        TestBuffer<Grid> half(scales, run.dev);
        fake_quant_backward(gradient.data, master.data, half.data, shape, q.spec, SteRule::clip, run.dev);
        std::vector<float> passed = gradient.get();
        int64_t blocked = 0;
        for (int64_t i = 0; i < n; i++) {
            bool passes = std::fabs(w[i] / scales[i / group].scale) <= 1.25f;
            ASSERT_EQ(passed[i], passes ? 1.0f : 0.0f) << run.name << ", element " << i;
            blocked += !passes;
        }
        EXPECT_GT(blocked, groups / 2);
    }
}

TEST(FormatRecipe, ProductWithPackedCodesHasTheBitsOfTheWorkingWeights) {
    const int64_t N = 40, K = 288, group = 32;
    const Quantizer q = quantizer_parse("log4", "weights");
    const std::vector<float> w = weights(N * K);
    const Expected e = expected(w, group);
    std::vector<int8_t> code(e.code.begin(), e.code.end());
    std::vector<Grid> scales;
    for (float s : e.scale) scales.push_back({s, 0.0f});
    std::vector<floatX> working;
    for (float x : e.value) working.push_back((floatX)x);
    for (const Backend& run : all_backends()) {
        select_backend(run);
        QuantizedWeight packed = quantized_weight(q.spec, quantized_storage(q.spec, false), QuantizedRows{N}, K, group,
                                                  quantized_layout(run.dev));
        EXPECT_EQ(quantized_bits(packed), 4);
        TestBuffer<uint8_t> memory(quantized_weight_bytes(packed), run.dev);
        TestBuffer<int8_t> codes(code, run.dev);
        TestBuffer<Grid> grid(scales, run.dev);
        quantized_weight_place(packed, memory.data);
        QuantizedSources from;
        from.part[0].codes = codes.data, from.part[0].grid = grid.data;
        quantized_weight_pack(packed, from, run.dev);
        TestBuffer<floatX> unpacked(N * K, run.dev), weight(working, run.dev);
        quantized_weight_unpack(unpacked.data, K, packed, 0, N, run.dev);
        EXPECT_TRUE(same_bits(unpacked.get(), working)) << run.name;
        for (int64_t M : {1, 5, 130}) {
            if (M > 5 && run.order) continue;
            TestBuffer<floatX> a(random_values<floatX>(M * K, 2), run.dev),
                dout(random_values<floatX>(M * N, 3), run.dev);
            TestBuffer<floatX> out(M * N, run.dev), out_packed(M * N, run.dev), da(M * K, run.dev),
                da_packed(M * K, run.dev);
            matmul_nt_quantized(out_packed.data, N, a.data, K, packed, (const floatX*)nullptr, M, run.dev);
            matmul_nn_quantized(da_packed.data, dout.data, packed, M, run.dev);
            if (run.dev.cuda) {
#if HAS_KERNELS
                matmul_nt(Rows{out.data, N}, {a.data, K}, {weight.data, K}, nullptr, M, N, K, run.dev);
                matmul_nn(Rows{da.data, K}, {dout.data, N}, {weight.data, K}, M, N, K, false, run.dev);
#endif
            } else {
                gemm_nt(out.data, a.data, weight.data, (const floatX*)nullptr, M, N, K);
                gemm_nn(da.data, dout.data, weight.data, M, N, K);
            }
            EXPECT_TRUE(same_bits(out.get(), out_packed.get())) << run.name << ", M " << M;
            EXPECT_TRUE(same_bits(da.get(), da_packed.get())) << run.name << ", M " << M;
        }
    }
}

TEST(FormatRecipe, KeysAndValuesAreKeptAsItsCodes) {
    const int64_t T = 6;
    KvQuant q;
    q.spec = quantizer_parse("log4:g8", "kv_cache").spec;
    q.NKV = 2, q.HD = 16, q.group = 8, q.bits = kv_stored_bits(q.spec);
    const int width = q.NKV * q.HD, words = (int)kv_row_words(q);
    std::vector<floatX> x = random_values<floatX>(T * width, 5, 3.0f);
    const Expected e = expected(std::vector<float>(x.begin(), x.end()), 8);
    std::vector<CacheRow> writes;
    for (int64_t t = 0; t < T; t++) writes.push_back({0, t});
    for (const Backend& run : all_backends()) {
        select_backend(run);
        TestBuffer<floatX> inp(x, run.dev), out(T * width, run.dev);
        TestBuffer<uint32_t> rows(T * words, run.dev);
        TestBuffer<CacheRow> to(writes, run.dev);
        uint32_t* cache[2] = {rows.data, nullptr};
        kv_quantize(q, out.data, width, inp.data, width, nullptr, cache, to.data, T, run.dev);
        std::vector<floatX> got = out.get(), head(q.HD);
        std::vector<uint32_t> row = rows.get();
        for (int64_t i = 0; i < T * width; i++) ASSERT_EQ((float)got[i], (float)(floatX)e.value[i]) << run.name;
        for (int64_t t = 0; t < T; t++)
            for (int h = 0; h < q.NKV; h++) {
                kv_read_head_cpu(head.data(), q, kv_levels(q), row.data() + t * words, h);
                ASSERT_EQ(memcmp(head.data(), &got[t * width + h * q.HD], q.HD * sizeof(floatX)), 0) << run.name;
            }
    }
}

TEST(FormatRecipe, ItsGridIsSavedAndLoaded) {
    const Quantizer q = quantizer_parse("log4", "weights");
    auto open = [&](Model& m, uint64_t seed) {
        model_allocate(m, tiny_config(2));
        model_init_random(m, seed);
        model_quantize(m, rules_of(quantizer_text(q), "all", ScaleMode::kept), true);
    };
    TempDir dir;
    Model m, again;
    open(m, 1), open(again, 2);
    model_refresh(m);
    quantizer_save(m, dir.path);
    ASSERT_TRUE(quantizer_load(again, dir.path));
    EXPECT_TRUE(again.grids.size == m.grids.size && memcmp(again.grids.data, m.grids.data, m.grids.bytes()) == 0);
    memcpy(again.master.data, m.master.data, m.master.bytes());
    model_refresh(again);
    EXPECT_EQ(memcmp(again.work.data, m.work.data, m.work.bytes()), 0);
    for (const LinearPart* t : quantized_parts(m)) {
        const Expected e = expected(std::vector<float>(t->master, t->master + t->count()), 32);
        for (int64_t i = 0; i < t->count(); i++) ASSERT_EQ((float)t->work[i], (float)(floatX)e.value[i]) << t->name;
    }
}
