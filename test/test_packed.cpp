// Weights stored as packed codes: every format unpacks to the bits of quant_value, products have the bits of the
// products with the working weight, forward and backward, on both devices, and the sizes are what the formats promise.
#include "operator_test.h"
#include "test_device.h"
#include "../kernels/linear.cuh"
#include <algorithm>

struct PackCase {
    QuantFormat format;
    int bits;
    int64_t N, K, group;  // group: of a row; K for channel and tensor
    bool symmetric = true;
    ScaleStorage storage = ScaleStorage::fp32;
    QuantizedRows rows = {};  // of its tensors; {} for one
    int64_t grid_rows = 1;    // rows that share a scale; 0: all of a tensor
    ScaleRule rule = ScaleRule::amax;
};

static QuantSpec spec_of(const PackCase& c) {
    QuantSpec q;
    q.format = c.format, q.bits = c.bits, q.symmetric = c.symmetric, q.rule = c.rule;
    return q;
}
static QuantizedWeight weight_of(const PackCase& c, WeightLayout layout) {
    return quantized_weight(spec_of(c), c.storage, c.rows[0] ? c.rows : QuantizedRows{c.N}, c.K, c.group, layout);
}

static std::string text(const PackCase& c) {
    static const char* const names[] = {"int",   "ternary", "nf4",  "fp8e4m3", "fp8e5m2", "mxfp8",
                                        "mxfp4", "nvfp4",   "mid4", "mid3",    "mid2"};
    static const char* const storages[] = {"fp32", "bf16", "fp16", "e8m0", "e4m3", "nested"};
    return format("%s%d N %lld K %lld group %lld%s, %s scales", names[(int)c.format], c.bits, (long long)c.N,
                  (long long)c.K, (long long)c.group, c.symmetric ? "" : " asym", storages[(int)c.storage]);
}

static std::vector<PackCase> pack_cases() {
    const QuantFormat I = QuantFormat::integer;
    const ScaleStorage f32 = ScaleStorage::fp32, b16 = ScaleStorage::bf16;
    std::vector<PackCase> cases;
    for (int bits : {8, 6, 5, 4, 3, 2}) {
        cases.push_back({I, bits, 8, 128, 128});
        cases.push_back({I, bits, 67, 256, 128, false, b16});
        cases.push_back({I, bits, 13, 256, 32, false, f32});
        cases.push_back({I, bits, 40, 192, 64, true, b16, {}, 1, ScaleRule::signedmax});  // negative scales
        cases.push_back({I, bits, 67, 44, 44, true, b16});         // a channel; no whole span, no aligned rows
        cases.push_back({I, bits, 1, 100, 100, false, f32});       // one row
        cases.push_back({I, bits, 9, 44, 44, false, f32, {}, 0});  // a tensor
        cases.push_back({I, bits, 17, 384, 192, false, b16});      // a group ends inside a span
        cases.push_back({I, bits, 24, 44, 11, false, b16});        // ... and inside a k16 step
        cases.push_back({I, bits, 3, 1, 1});
        cases.push_back({I, bits, 34, 96, 32, true, ScaleStorage::fp16});
        cases.push_back({I, bits, 35, 72, 72, true, b16, {20, 7, 8}, 0});  // a scale a tensor
    }
    const PackCase blocks[] = {{QuantFormat::nf4, 4, 0, 0, 64},
                               {QuantFormat::nf4, 4, 0, 0, 64, true, ScaleStorage::nested},
                               {QuantFormat::mxfp8, 8, 0, 0, 32, true, ScaleStorage::e8m0},
                               {QuantFormat::mxfp4, 4, 0, 0, 32, true, ScaleStorage::e8m0},
                               {QuantFormat::nvfp4, 4, 0, 0, 16, true, ScaleStorage::e4m3},
                               {QuantFormat::fp8e4m3, 8, 0, 0, 64},
                               {QuantFormat::fp8e5m2, 8, 0, 0, 64},
                               {QuantFormat::ternary, 2, 0, 0, 64, true, b16},
                               {QuantFormat::mid4, 4, 0, 0, 32, true, b16},
                               {QuantFormat::mid3, 3, 0, 0, 64, true, b16},
                               {QuantFormat::mid2, 2, 0, 0, 64, true, b16}};
    for (PackCase c : blocks) {
        c.N = 67, c.K = 256, cases.push_back(c);
        c.N = 35, c.K = 192, c.rows = {20, 7, 8}, cases.push_back(c);  // nested scales and t of three tensors
        c.N = 300, c.K = 64, c.rows = {10, 290, 0}, cases.push_back(c);
    }
    for (QuantFormat f : {QuantFormat::fp8e4m3, QuantFormat::fp8e5m2}) {
        cases.push_back({f, 8, 20, 300, 300});
        cases.push_back({f, 8, 5, 40, 40, true, f32, {}, 0});
        cases.push_back({f, 8, 140, 256, 128, true, f32, {}, 128});  // 128 x 128
    }
    cases.push_back({QuantFormat::ternary, 2, 20, 300, 300, true, b16, {}, 0});
    for (auto [f, bits] : {std::pair(QuantFormat::mid4, 4), {QuantFormat::mid3, 3}, {QuantFormat::mid2, 2}}) {
        cases.push_back({f, bits, 20, 300, 300, true, b16, {}, 0});
        cases.push_back({f, bits, 13, 44, 44, true, ScaleStorage::fp16});  // columns beyond K are code 0, no number 0
    }
    cases.push_back({I, 4, 4104, 16, 16, false, b16});   // 8 warps a block
    cases.push_back({QuantFormat::nf4, 4, 2056, 8, 8});  // 4
    cases.push_back({I, 4, 24, 1500, 60, false, b16});   // more spans than stages
    cases.push_back({I, 8, 24, 1536, 128});
    cases.push_back({I, 4, 40, 2100, 700, true, b16});  // several k blocks of the CPU's product
    return cases;
}

struct PackSource {
    std::vector<int8_t> codes;
    std::vector<Grid> grid;             // of all tensors, one after the other
    std::vector<float> tensor, nested;  // as QuantizedSource has them
    std::vector<uint8_t> scale_codes;
    std::vector<int64_t> grid_at, nested_at, row_at, rows;
    std::vector<floatX> working;  // (N,K)
};

// Codes by the definitions of quant_format.cuh. Nested scales are made here: entries of the map and what they stand for
// are the grid.
static PackSource pack_source(const PackCase& c) {
    PackSource s;
    QuantSpec q = spec_of(c);
    std::vector<float> w = random_values<float>(c.N * c.K, 20);
    w[0] = 1.5f, w[c.N * c.K / 2] = 0.0f, w[c.N * c.K - 1] = -1.75f;
    for (int64_t i = 0; i < c.group && c.N > 2; i++) w[c.K + i] = 0.0f;  // a group of zeros
    s.codes.resize(w.size()), s.working.resize(w.size());
    for (int64_t n : c.rows[0] ? c.rows : QuantizedRows{c.N}) {
        if (n) s.row_at.push_back(s.rows.empty() ? 0 : s.row_at.back() + s.rows.back()), s.rows.push_back(n);
    }
    const int64_t groups = (c.K + c.group - 1) / c.group;
    for (size_t part = 0; part < s.rows.size(); part++) {
        const int64_t rows = s.rows[part], row0 = s.row_at[part], tile = c.grid_rows ? c.grid_rows : rows;
        const float* x = w.data() + row0 * c.K;
        float amax = 0;
        for (int64_t i = 0; i < rows * c.K; i++) amax = std::max(amax, std::fabs(x[i]));
        const float t = 448.0f * 6.0f / amax, offset = 0.5f + 0.1f * (float)part;
        if (c.storage == ScaleStorage::e4m3) s.tensor.push_back(t);
        if (c.storage == ScaleStorage::nested) s.tensor.push_back(offset);
        s.grid_at.push_back((int64_t)s.grid.size());
        s.nested_at.push_back((int64_t)s.nested.size());
        for (int64_t i = 0; c.storage == ScaleStorage::nested && i < (rows * groups + 255) / 256; i++)
            s.nested.push_back(0.3f + 0.07f * (float)(i % 5));
        for (int64_t r = 0; r < rows; r += tile)
            for (int64_t g = 0; g < groups; g++) {
                float min = 0, max = 0;
                double size = 0, count = 0;
                for (int64_t i = r; i < std::min(rows, r + tile); i++)
                    for (int64_t k = g * c.group; k < std::min(c.K, (g + 1) * c.group); k++) {
                        min = std::min(min, x[i * c.K + k]), max = std::max(max, x[i * c.K + k]);
                        size += std::fabs(x[i * c.K + k]), count++;
                    }
                if (c.format == QuantFormat::ternary) max = (float)(size / count);
                Grid grid = quant_grid(q, min, max, t, 1.0f);
                if (c.storage == ScaleStorage::nested) {
                    int64_t block = r * groups + g;
                    s.scale_codes.push_back((uint8_t)(block * 37 % 256));
                    volatile float product =
                        dynamic_map_value(s.scale_codes.back()) * s.nested[s.nested_at[part] + block / 256];
                    grid.scale = product + offset;
                } else if (c.storage == ScaleStorage::fp16) {
                    grid.scale = fp16_bits_to_float(float_to_fp16_bits(grid.scale * 1.01f));
                }
                s.grid.push_back(grid);
            }
        for (int64_t r = 0; r < rows; r++)
            for (int64_t k = 0; k < c.K; k++) {
                Grid g = s.grid[s.grid_at[part] + r / tile * groups + k / c.group];
                int code = quant_code(q, x[r * c.K + k], g);
                s.codes[(row0 + r) * c.K + k] = (int8_t)code;
                s.working[(row0 + r) * c.K + k] = (floatX)quant_value(q, code, g);
            }
    }
    return s;
}

// a packed weight where the run wants it
struct PackedOnDevice {
    QuantizedWeight w;
    TestBuffer<uint8_t> memory, scale_codes;
    TestBuffer<int8_t> codes;
    TestBuffer<Grid> grid;
    TestBuffer<float> tensor, nested;
    QuantizedSources from;
    PackedOnDevice(const PackCase& c, const PackSource& s, Device dev, WeightLayout layout)
        : w(weight_of(c, layout)),
          memory(quantized_weight_bytes(w), dev),
          scale_codes(s.scale_codes, dev),
          codes(s.codes, dev),
          grid(s.grid, dev),
          tensor(s.tensor, dev),
          nested(s.nested, dev) {
        quantized_weight_place(w, memory.data);
        for (size_t p = 0; p < s.rows.size(); p++)
            from.part[p] = {codes.data + s.row_at[p] * c.K,
                            grid.data + s.grid_at[p],
                            c.grid_rows ? c.grid_rows : s.rows[p],
                            s.tensor.empty() ? nullptr : tensor.data + p,
                            s.scale_codes.empty() ? nullptr : scale_codes.data + s.grid_at[p],
                            s.nested.empty() ? nullptr : nested.data + s.nested_at[p]};
        quantized_weight_pack(w, from, dev);
    }
    PackedOnDevice(const PackCase& c, const PackSource& s, Device dev)
        : PackedOnDevice(c, s, dev, quantized_layout(dev)) {}
};

// what of a weight's memory is written: all but padding
static std::vector<uint8_t> written(const PackedOnDevice& p) {
    std::vector<uint8_t> all = p.memory.get(), out;
    auto add = [&](const void* at, int64_t n) {
        const uint8_t* from = all.data() + (static_cast<const uint8_t*>(at) - p.memory.data);
        out.insert(out.end(), from, from + n);
    };
    add(p.w.codes, quantized_words(p.w) * 4);
    add(p.w.scales, quantized_scales(p.w) * quantized_scale_bytes(p.w.storage));
    if (p.w.zeros) add(p.w.zeros, quantized_scales(p.w));
    if (p.w.nested) add(p.w.nested, quantized_nested(p.w, p.w.parts) * 4);
    if (p.w.tensor) add(p.w.tensor, p.w.parts * 4);
    return out;
}

TEST(PackedWeight, UnpacksToTheWorkingWeight) {
    std::vector<Backend> runs = all_backends();
    for (const PackCase& c : pack_cases()) {
        PackSource s = pack_source(c);
        for (WeightLayout layout : {WeightLayout::panels, WeightLayout::fragments}) {
            std::vector<uint8_t> first;
            for (const Backend& run : runs) {
                if (run.dev.cuda && (c.N > 2000 || layout == WeightLayout::panels)) continue;
                select_backend(run);
                std::string what = text(c) + (layout == WeightLayout::panels ? ", panels, " : ", ") + run.name;
                PackedOnDevice p(c, s, run.dev, layout);
                std::vector<uint8_t> packed = written(p);
                if (first.empty()) first = packed;
                EXPECT_TRUE(same_bits(first, packed)) << what << ": packed to other bytes than on the CPU";
                for (int64_t pad : {0, 5}) {
                    TestBuffer<floatX> out(c.N * (c.K + pad), run.dev);
                    quantized_weight_unpack(out.data, c.K + pad, p.w, 0, c.N, run.dev);
                    std::vector<floatX> got = out.get();
                    for (int64_t r = 0; r < c.N; r++) {
                        const floatX* row = &got[r * (c.K + pad)];
                        ASSERT_EQ(memcmp(row, &s.working[r * c.K], c.K * sizeof(floatX)), 0)
                            << what << ", pad " << pad << ", row " << r;
                        for (int64_t k = c.K; k < c.K + pad; k++)
                            ASSERT_TRUE(still_poison(row[k])) << what << ": wrote behind row " << r;
                    }
                }
                if (c.N < 5) continue;
                TestBuffer<floatX> part(2 * c.K, run.dev);
                quantized_weight_unpack(part.data, c.K, p.w, 3, 2, run.dev);
                EXPECT_TRUE(memcmp(part.get().data(), &s.working[3 * c.K], 2 * c.K * sizeof(floatX)) == 0) << what;
            }
        }
    }
}

template <class O>
static void expect_packed_product(const PackCase& c, const PackedOnDevice& p, const floatX* a, const floatX* w,
                                  const floatX* bias, int64_t M, const Backend& run) {
    TestBuffer<O> plain(M * (c.N + 3), run.dev), packed(M * (c.N + 3), run.dev);
    matmul_nt(Rows{plain.data, c.N + 3}, {a, c.K}, {w, c.K}, bias, M, c.N, c.K, run.dev);
    matmul_nt_quantized(packed.data, c.N + 3, a, c.K, p.w, bias, M, run.dev);
    EXPECT_TRUE(same_bits(plain.get(), packed.get()))
        << text(c) << ", M " << M << (sizeof(O) == 4 ? ", float, " : ", ") << run.name;
}

TEST(PackedWeight, ProductHasTheBitsOfTheWorkingWeights) {
    for (const PackCase& c : pack_cases()) {
        PackSource s = pack_source(c);
        for (const Backend& run : all_backends()) {
            select_backend(run);
            PackedOnDevice p(c, s, run.dev);
            std::vector<int64_t> rows = {1, 17};
            if (c.K == 256 && c.N == 67) rows = {1, 16, 65};
            if (c.K == 256 && c.group == 128) rows = {1, 2, 16, 17, 64, 65, 128, 129};
            if (c.N > 2000) rows = {3};
            if (!run.dev.cuda) rows.push_back(300);  // several tasks of the CPU's product share a panel
            TestBuffer<floatX> w(s.working, run.dev), bias(random_values<floatX>(c.N, 21), run.dev);
            TestBuffer<floatX> a(random_values<floatX>(rows.back() * c.K, 22), run.dev);
            for (int64_t M : rows) {
                expect_packed_product<floatX>(c, p, a.data, w.data, bias.data, M, run);
                if (M == 1 || M == 17) expect_packed_product<float>(c, p, a.data, w.data, nullptr, M, run);
            }
        }
    }
}

TEST(PackedWeight, GradientOfTheInputHasTheBitsOfTheWorkingWeights) {
    for (const PackCase& c : pack_cases()) {
        if (c.N > 2000) continue;
        PackSource s = pack_source(c);
        for (const Backend& run : all_backends()) {
            if (run.dev.cuda && run.order) continue;
            select_backend(run);
            PackedOnDevice p(c, s, run.dev);
            TestBuffer<floatX> w(s.working, run.dev);
            for (int64_t T : {1, 19}) {
                TestBuffer<floatX> dout(random_values<floatX>(T * c.N, 23), run.dev);
                TestBuffer<floatX> plain(T * c.K, run.dev), packed(T * c.K, run.dev);
                matmul_nn(Rows{plain.data, c.K}, {dout.data, c.N}, {w.data, c.K}, T, c.N, c.K, false, run.dev);
                linear_backward_input_quantized(packed.data, dout.data, p.w, T, run.dev);
                EXPECT_TRUE(same_bits(plain.get(), packed.get())) << text(c) << ", T " << T << ", " << run.name;
            }
        }
    }
}

TEST(PackedWeight, LinearTakesItAndRefusesOthers) {
    PackCase c = {QuantFormat::integer, 4, 24, 64, 32};
    PackSource s = pack_source(c);
    for (const Backend& run : all_backends()) {
        select_backend(run);
        PackedOnDevice p(c, s, run.dev);
        TestBuffer<floatX> w(s.working, run.dev), a(random_values<floatX>(5 * c.K, 22), run.dev);
        TestBuffer<floatX> plain(5 * c.N, run.dev), packed(5 * c.N, run.dev);
        linear_forward({plain.data, c.N}, a.data, w.data, nullptr, nullptr, nullptr, {5, c.K, c.N}, run.dev);
        linear_forward({packed.data, c.N}, a.data, nullptr, nullptr, nullptr, &p.w, {5, c.K, c.N}, run.dev);
        EXPECT_TRUE(same_bits(plain.get(), packed.get())) << run.name;
        EXPECT_THROW(linear_forward({packed.data, c.N}, a.data, nullptr, nullptr, nullptr, &p.w, {5, c.K, 16}, run.dev),
                     Error);
        EXPECT_THROW(quantized_weight_pack(p.w, QuantizedSources(), run.dev), Error);
        EXPECT_THROW(quantized_weight_unpack(packed.data, c.K, p.w, 20, 5, run.dev), Error);
        PackedOnDevice other(c, s, run.dev, run.dev.cuda ? WeightLayout::panels : WeightLayout::fragments);
        EXPECT_THROW(matmul_nt_quantized(packed.data, c.N, a.data, c.K, other.w, nullptr, 5, run.dev), Error);
        EXPECT_THROW(linear_backward_input_quantized(packed.data, a.data, other.w, 1, run.dev), Error);
    }
    QuantSpec q;
    q.format = QuantFormat::nf4, q.bits = 4;
    const WeightLayout panels = WeightLayout::panels;
    EXPECT_THROW(quantized_weight(q, ScaleStorage::nested, {8}, 64, 48, panels), Error);
    EXPECT_THROW(quantized_weight(q, ScaleStorage::fp32, {0}, 64, 64, panels), Error);
    q.symmetric = false;
    EXPECT_THROW(quantized_weight(q, ScaleStorage::fp32, {8}, 64, 64, panels), Error);
    q.format = QuantFormat::integer, q.bits = 7;
    EXPECT_THROW(quantized_weight(q, ScaleStorage::fp32, {8}, 64, 64, panels), Error);
}

// Scales from a file of another tool: the storage that holds them is found, or none
TEST(PackedWeight, StorageIsChosenByWhatHoldsTheScales) {
    for (const Backend& run : all_backends()) {
        if (run.dev.cuda && run.order) continue;
        select_backend(run);
        for (const PackCase& c : pack_cases()) {
            if (c.N > 2000) continue;
            PackSource s = pack_source(c);
            PackedOnDevice p(c, s, run.dev);
            QuantizedWeight w = p.w;
            EXPECT_TRUE(quantized_fit_scales(w, p.from, run.dev)) << text(c) << ", " << run.name;
            EXPECT_EQ((int)w.storage, (int)c.storage) << text(c) << ", " << run.name;
            s.grid.back().scale *= 1.0f + 1.0f / (1 << 20);  // a number of 21 bits
            PackedOnDevice other(c, s, run.dev);
            w = other.w;
            EXPECT_EQ(quantized_fit_scales(w, other.from, run.dev), c.storage == ScaleStorage::fp32)
                << text(c) << ", " << run.name;
        }
    }
    PackCase c = {QuantFormat::integer, 4, 24, 64, 32, true, ScaleStorage::bf16};
    PackSource s = pack_source(c);
    s.grid[3].scale = 1.0f + 1.0f / 1024;  // fp16, not bf16
    PackedOnDevice p(c, s, Device());
    EXPECT_TRUE(quantized_fit_scales(p.w, p.from, Device()));
    EXPECT_EQ((int)p.w.storage, (int)ScaleStorage::fp16);
    s.grid[4].scale = 1.0f / (1 << 20) * 1.25f;  // both, by its size
    s.grid[5].scale = 1.0f / (1 << 30);          // bf16, not fp16
    PackedOnDevice neither(c, s, Device());
    EXPECT_FALSE(quantized_fit_scales(neither.w, neither.from, Device()));
}

TEST(PackedWeight, BitsAWeightAreWhatTheFormatsPromise) {
    struct Size {
        PackCase c;
        double bits;
    };
    const QuantFormat I = QuantFormat::integer;
    const ScaleStorage b16 = ScaleStorage::bf16;
    const Size sizes[] = {{{I, 8, 0, 0, 64, true, b16}, 8.25},
                          {{I, 4, 0, 0, 64, true, b16}, 4.25},
                          {{I, 4, 0, 0, 64, false, b16}, 4.375},
                          {{I, 3, 0, 0, 64, true, b16}, 3.25},
                          {{I, 2, 0, 0, 64, true, b16}, 2.25},
                          {{QuantFormat::ternary, 2, 0, 0, 896, true, b16}, 2.0 + 16.0 / 896},
                          {{QuantFormat::nf4, 4, 0, 0, 64}, 4.5},
                          {{QuantFormat::nf4, 4, 0, 0, 64, true, ScaleStorage::nested}, 4.125 + 32.0 / (64 * 256)},
                          {{QuantFormat::fp8e4m3, 8, 0, 0, 896}, 8 + 32.0 / 896},
                          {{QuantFormat::fp8e5m2, 8, 0, 0, 128}, 8.25},
                          {{QuantFormat::mxfp8, 8, 0, 0, 32, true, ScaleStorage::e8m0}, 8.25},
                          {{QuantFormat::mxfp4, 4, 0, 0, 32, true, ScaleStorage::e8m0}, 4.25},
                          {{QuantFormat::nvfp4, 4, 0, 0, 16, true, ScaleStorage::e4m3}, 4.5},
                          {{QuantFormat::mid3, 3, 0, 0, 64, true, b16}, 3.25}};
    for (Size s : sizes)
        for (WeightLayout layout : {WeightLayout::panels, WeightLayout::fragments}) {
            s.c.N = 4864, s.c.K = 896;
            double bits = quantized_weight_bits_per_weight(weight_of(s.c, layout));
            EXPECT_GE(bits, s.bits) << text(s.c);
            EXPECT_LE(bits, s.bits + 2e-4) << text(s.c);  // 16 bytes of padding and t
            s.c.rows = {4000, 700, 164};
            EXPECT_NEAR(quantized_weight_bits_per_weight(weight_of(s.c, layout)), bits, 1e-4) << text(s.c);
        }
    EXPECT_EQ(quantized_storage(spec_of(sizes[7].c), true), ScaleStorage::nested);
    EXPECT_EQ(quantized_storage(spec_of(sizes[6].c), false), ScaleStorage::fp32);
    EXPECT_EQ(quantized_storage(spec_of(sizes[5].c), false), b16);
    EXPECT_EQ(quantized_storage(spec_of(sizes[11].c), false), ScaleStorage::e8m0);
    EXPECT_EQ(quantized_storage(spec_of(sizes[12].c), false), ScaleStorage::e4m3);
    EXPECT_EQ(quantized_storage(spec_of(sizes[13].c), false), b16);
}

TEST(PackedWeight, AnInt4LoadOfSixteenBytesIsALanesThirtyTwoCodes) {
    PackCase c = {QuantFormat::integer, 4, 8, 128, 128};
    PackSource s = pack_source(c);
    for (const Backend& run : all_backends()) {
        select_backend(run);
        PackedOnDevice p(c, s, run.dev, WeightLayout::fragments);
        std::vector<uint8_t> bytes = p.memory.get();
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 32; i++) {
                int step = i / 4, e = i % 4, k = 16 * step + lane % 4 * 2 + e % 2 + e / 2 * 8;
                int nibble = bytes[lane * 16 + i / 2] >> i % 2 * 4 & 15;
                ASSERT_EQ(nibble - 8, s.codes[lane / 4 * 128 + k])
                    << "lane " << lane << " code " << i << ", " << run.name;
            }
    }
}

// bitsandbytes 0.50.2, functional.create_dynamic_map(signed=True)
TEST(PackedWeight, DynamicMapIsThatOfBitsandbytes) {
    uint64_t hash = 14695981039346656037ull;
    for (uint32_t u = 0; u < 256; u++) {
        uint32_t bits = float_bits(dynamic_map_value(u));
        for (int i = 0; i < 4; i++) hash = (hash ^ (bits >> 8 * i & 255u)) * 1099511628211ull;
        if (u) { EXPECT_GT(dynamic_map_value(u), dynamic_map_value(u - 1)); }
    }
    EXPECT_EQ(hash, 0xd677f22a96665bc4ull) << "FNV-1a of the 256 floats";
    EXPECT_EQ(dynamic_map_value(0), -0.992968738079071f);
    EXPECT_EQ(dynamic_map_value(3), -0.9507812261581421f);
}
