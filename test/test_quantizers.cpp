// Quantizers: their loops against float64 restatements, the kernels against the loops bit for bit, the grids of the
// packages that made test/golden/quantizers.json, and straight-through gradients.
#include <nlohmann/json.hpp>
#include "../runtime/file_io.h"
#include "quantized_tensor.h"
#include "test_rules.h"

// one rounding to floatX, relative
static constexpr double ULP = sizeof(floatX) == 2 ? 1.0 / 256 : 1.0 / (1 << 23);

typedef TestBuffer<floatX> Half;
typedef TestBuffer<float> Full;
static const Device CPU;

template <class T>
static void append(std::vector<float>& to, const std::vector<T>& v) {
    for (const T& x : v) to.push_back((float)x);
}

// ---------------------------------------------------------------------------------------------------------------------
// fake quantization

static QuantSpec integers(int bits, bool symmetric) {
    QuantSpec q;
    q.bits = bits, q.symmetric = symmetric;
    return q;
}

struct QuantCase {
    int bits;
    bool symmetric;
    int64_t groups, group;
    QuantGroups shape() const { return QuantGroups{groups, group}; }
    QuantSpec spec() const { return integers(bits, symmetric); }
};

static std::vector<QuantCase> quant_cases() {
    std::vector<QuantCase> cases;
    for (int bits : {2, 3, 4, 8})
        for (bool symmetric : {true, false}) {
            cases.push_back({bits, symmetric, 70, 32});
            cases.push_back({bits, symmetric, 9, 64});
            cases.push_back({bits, symmetric, 5, 128});
            cases.push_back({bits, symmetric, 3, 1100});
        }
    for (bool symmetric : {true, false}) {
        cases.push_back({8, symmetric, 1, 70000});
        cases.push_back({4, symmetric, 1, 70003});  // a tail
        cases.push_back({4, symmetric, 2, 16385});  // pieces, rows not aligned
        cases.push_back({4, symmetric, 2, 16384});  // the largest group in one piece
        cases.push_back({4, symmetric, 7, 33});
        cases.push_back({4, symmetric, 40, 1});
        cases.push_back({3, symmetric, 3, 67});
    }
    return cases;
}

static std::string text(const QuantCase& c) {
    return format("int%d %s, %lld groups of %lld", c.bits, c.symmetric ? "symmetric" : "asymmetric",
                  (long long)c.groups, (long long)c.group);
}

static double bf16_nearest(double x) { return bf16_bits_to_float(float_to_bf16_bits((float)x)); }

TEST(FakeQuant, GridCodesAndValuesAgainstTheFormulas) {
    for (const QuantCase& c : quant_cases()) {
        const int64_t n = c.groups * c.group;
        std::vector<float> w = random_values<float>(n, 140, 0.3f);
        for (int64_t i = 0; i < n; i++) w[i] = w[i] * (1.0f + (float)(i / c.group)) + (c.symmetric ? 0.0f : 0.05f);
        if (c.groups > 2) std::fill(w.begin() + c.group, w.begin() + 2 * c.group, 0.0f);  // a group of zeros
        if (c.groups > 4)
            for (int64_t i = 0; i < c.group; i++)
                w[3 * c.group + i] = std::fabs(w[3 * c.group + i]);  // min is 0, not them
        Full master(w, CPU);
        Half out(n, CPU), without(n, CPU);
        TestBuffer<int8_t> codes(n, CPU);
        TestBuffer<Grid> grid(c.groups, CPU), grid2(c.groups, CPU);
        fake_quant_forward_cpu(out.data, codes.data, grid.data, ScaleState(), master.data, c.shape(), c.spec(), true);
        EXPECT_EQ(fake_quant_forward_cpu(without.data, nullptr, grid2.data, ScaleState(), master.data, c.shape(),
                                         c.spec(), true),
                  0);
        std::vector<floatX> q = out.get();
        std::vector<int8_t> code = codes.get();
        std::vector<Grid> g = grid.get();
        EXPECT_TRUE(same_bits(q, without.get())) << text(c) << ": codes changed the values";
        EXPECT_TRUE(same_bits(master.get(), w)) << text(c) << ": the weights were changed";
        const double levels = (1 << c.bits) - 1, low = c.symmetric ? -(1 << (c.bits - 1)) : 0,
                     high = c.symmetric ? (1 << (c.bits - 1)) - 1 : levels;
        for (int64_t k = 0; k < c.groups; k++) {
            double smallest = 0, largest = 0;
            for (int64_t i = 0; i < c.group; i++) {
                smallest = std::min(smallest, (double)w[k * c.group + i]);
                largest = std::max(largest, (double)w[k * c.group + i]);
            }
            double s = c.symmetric ? std::max(-smallest, largest) / (levels / 2) : (largest - smallest) / levels;
            // two float roundings before that to bf16: allow the neighbour where s lies at a midpoint
            double expected = std::max(bf16_nearest(s), std::ldexp(1.0, -14));
            EXPECT_TRUE(g[k].scale == expected || std::fabs(g[k].scale / expected - 1) < 1.0 / 128) << text(c);
            EXPECT_EQ(std::fabs(g[k].scale - s) <= std::max(s / 256, std::ldexp(1.0, -14)), true) << text(c);
            EXPECT_EQ(g[k].scale, (float)bf16_nearest(g[k].scale)) << text(c) << ": scale is not a bf16";
            EXPECT_EQ(g[k].scale, fp16_bits_to_float(float_to_fp16_bits(g[k].scale))) << text(c) << ": nor an fp16";
            EXPECT_GE(g[k].scale, std::ldexp(1.0f, -14)) << text(c);
            double zero = c.symmetric ? 0 : std::min(std::max(std::nearbyint(-smallest / g[k].scale), 0.0), levels);
            EXPECT_EQ(g[k].zero, zero) << text(c);
            for (int64_t i = k * c.group; i < (k + 1) * c.group; i++) {
                double exact = (double)w[i] / g[k].scale, qc = std::nearbyint(exact) + zero;
                qc = std::min(std::max(qc, low), high);
                double stored = qc - (c.symmetric ? 0 : 1 << (c.bits - 1));
                double to_tie = std::fabs(std::fabs(exact - std::floor(exact)) - 0.5);
                if (to_tie > 1e-5) {  // next to a tie the float quotient may fall on the other side
                    ASSERT_EQ(code[i], stored) << text(c) << " element " << i;
                    ASSERT_EQ((float)q[i], (float)floatX((float)((qc - zero) * g[k].scale)))
                        << text(c) << " element " << i;
                }
                double real_code = code[i] + (c.symmetric ? 0 : 1 << (c.bits - 1));
                ASSERT_TRUE(real_code >= low && real_code <= high) << text(c);
                double value = (real_code - zero) * g[k].scale;
                ASSERT_NEAR((float)q[i], value, std::fabs(value) * ULP) << text(c);
                bool inside = exact + zero >= low - 0.5 && exact + zero <= high + 0.5;
                ASSERT_LE(std::fabs(value - w[i]), inside ? g[k].scale * 0.50001 : INFINITY) << text(c);
            }
        }
        for (int64_t i = c.group; c.groups > 2 && i < 2 * c.group; i++)
            ASSERT_EQ(float_bits((float)q[i]) << 1, 0u) << text(c) << ": a group of zeros";
    }
}

TEST(FakeQuant, TiesGoToEven) {
    // s = 1 exactly: amax 7.5 at 4 bits, range 15 at 4 bits asymmetric
    std::vector<float> w = {7.5f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 3.4999998f, 3.5f, -7.5f, 6.5f, -3.5f};
    std::vector<float> expected = {7, 0, 2, 2, 0, -2, -2, 3, 4, -8, 6, -4};
    std::vector<floatX> out(w.size());
    std::vector<int8_t> codes(w.size());
    Grid g;
    fake_quant_forward_cpu(out.data(), codes.data(), &g, ScaleState(), w.data(), QuantGroups{1, (int64_t)w.size()},
                           integers(4, true), true);
    EXPECT_EQ(g.scale, 1.0f);
    for (size_t i = 0; i < w.size(); i++) {
        EXPECT_EQ((float)out[i], expected[i]) << w[i];
        EXPECT_EQ(codes[i], (int)expected[i]) << w[i];
    }
    std::vector<float> a = {-5.0f, 10.0f, 0.5f, 1.5f, -0.5f, -4.5f, 9.5f, 2.5f}, rounded = {-5, 10, 0, 2, 0, -4, 10, 2};
    fake_quant_forward_cpu(out.data(), codes.data(), &g, ScaleState(), a.data(), QuantGroups{1, (int64_t)a.size()},
                           integers(4, false), true);
    EXPECT_EQ(g.scale, 1.0f);
    EXPECT_EQ(g.zero, 5.0f);
    for (size_t i = 0; i < a.size(); i++) {
        EXPECT_EQ((float)out[i], rounded[i]) << a[i];
        EXPECT_EQ(codes[i], (int)rounded[i] + 5 - 8) << a[i];
    }
}

TEST(FakeQuant, FlipsAreCountedAndAFrozenScaleStays) {
    for (const QuantCase& c : quant_cases()) {
        const int64_t n = c.groups * c.group;
        if (n < 10) continue;
        std::vector<float> w = random_values<float>(n, 150, 0.3f), moved = w;
        for (int64_t i = 0; i < n; i += 3) moved[i] += 0.02f * (uniform(151, (uint32_t)i) - 0.3f);
        for (bool dynamic : {true, false}) {
            std::vector<floatX> out(n);
            std::vector<int8_t> codes(n), after;
            std::vector<Grid> grid(c.groups), before;
            fake_quant_forward_cpu(out.data(), codes.data(), grid.data(), ScaleState(), w.data(), c.shape(), c.spec(),
                                   true);
            before = grid, after = codes;
            EXPECT_EQ(fake_quant_forward_cpu(out.data(), after.data(), grid.data(), ScaleState(), w.data(), c.shape(),
                                             c.spec(), dynamic),
                      0)
                << text(c) << ": nothing moved";
            int64_t flips = fake_quant_forward_cpu(out.data(), after.data(), grid.data(), ScaleState(), moved.data(),
                                                   c.shape(), c.spec(), dynamic);
            int64_t changed = 0;
            for (int64_t i = 0; i < n; i++) changed += codes[i] != after[i];
            EXPECT_EQ(flips, changed) << text(c);
            bool same_grid = memcmp(grid.data(), before.data(), c.groups * sizeof(Grid)) == 0;
            EXPECT_TRUE(dynamic || same_grid) << text(c) << ": a frozen scale moved";
            EXPECT_TRUE(c.bits < 8 || flips > 0) << text(c);
        }
        // far outside a frozen range: the codes saturate
        std::vector<floatX> out(n);
        std::vector<int8_t> codes(n);
        std::vector<Grid> grid(c.groups, Grid{0.0625f, c.symmetric ? 0.0f : 1.0f});
        for (int64_t i = 0; i < n; i++) moved[i] = i % 2 ? 1e6f : -1e6f;
        fake_quant_forward_cpu(out.data(), codes.data(), grid.data(), ScaleState(), moved.data(), c.shape(), c.spec(),
                               false);
        int least = -(1 << (c.bits - 1)), most = (1 << (c.bits - 1)) - 1;
        for (int64_t i = 0; i < n; i++) ASSERT_EQ(codes[i], i % 2 ? most : least) << text(c);
    }
}

TEST(FakeQuant, ClippedStraightThroughMask) {
    for (const QuantCase& c : quant_cases()) {
        const int64_t n = c.groups * c.group;
        std::vector<float> w = random_values<float>(n, 160), d = random_values<float>(n, 161);
        std::vector<Grid> grid(c.groups);
        const float low = c.symmetric ? -(float)(1 << (c.bits - 1)) : 0.0f;
        const float high = c.symmetric ? (float)((1 << (c.bits - 1)) - 1) : (float)((1 << c.bits) - 1);
        for (int64_t k = 0; k < c.groups; k++) {
            grid[k] = {1.0f / (float)(1 << (c.bits + 1)), c.symmetric ? 0.0f : 1.0f};  // about half lies outside
            float s = grid[k].scale, z = grid[k].zero;
            if (c.group < 9) continue;
            w[k * c.group] = (low - z) * s, w[k * c.group + 1] = (high - z) * s;  // both ends belong to the range
            w[k * c.group + 2] = (low - z) * s - s / 16, w[k * c.group + 3] = (high - z) * s + s / 16;
        }
        Full dw(d, CPU);
        fake_quant_backward_cpu(dw.data, w.data(), grid.data(), c.shape(), c.spec(), SteRule::clip);
        std::vector<float> got = dw.get();
        int64_t kept = 0;
        for (int64_t i = 0; i < n; i++) {
            double x = (double)w[i] / grid[i / c.group].scale + grid[i / c.group].zero;
            bool inside = x >= low && x <= high;
            kept += inside;
            ASSERT_EQ(got[i], inside ? d[i] : 0.0f) << text(c) << " element " << i;
        }
        EXPECT_TRUE(n < 100 || (kept > 0 && kept < n)) << text(c);
    }
}

TEST(FakeQuant, ThreadsDoNotChangeABit) {
    for (const QuantCase& c : {QuantCase{4, true, 1, 9000}, QuantCase{4, false, 40, 33}}) {
        std::vector<float> w = random_values<float>(c.groups * c.group, 170);
        expect_same_for_any_threads<float>(
            [&] {
                const int64_t n = c.groups * c.group;
                std::vector<floatX> out(n);
                std::vector<int8_t> codes(n);
                std::vector<Grid> grid(c.groups);
                int64_t flips = fake_quant_forward_cpu(out.data(), codes.data(), grid.data(), ScaleState(), w.data(),
                                                       c.shape(), c.spec(), true);
                std::vector<float> all(1, (float)flips);
                append(all, out);
                for (int8_t q : codes) all.push_back(q);
                for (Grid g : grid) all.push_back(g.scale), all.push_back(g.zero);
                return all;
            },
            text(c));
    }
}

TEST(FakeQuant, ValuesCodesGridAndFlipsHaveTheBitsOfTheLoopsOnEveryBackend) {
    for (const QuantCase& c : quant_cases()) {
        const int64_t n = c.groups * c.group;
        std::vector<float> w = random_values<float>(n, 70, 0.3f), moved;
        for (int64_t i = 0; i < n; i++) w[i] = w[i] * (1.0f + (float)(i / c.group % 5)) + (c.symmetric ? 0.0f : 0.05f);
        if (c.groups > 2) std::fill(w.begin() + c.group, w.begin() + 2 * c.group, 0.0f);  // a group of zeros
        if (c.groups > 4)
            for (int64_t i = 2 * c.group; i < 3 * c.group; i++) w[i] = std::fabs(w[i]) + 0.01f;  // min is 0, not them
        w[n - 1] = 2.5f;  // the largest is the last
        moved = w;
        for (int64_t i = 0; i < n; i += 3)
            moved[i] += 0.04f * (uniform01(rng_bits(3, RNG_INIT, 71, (uint32_t)i, 0).x[0]) - 0.3f);
        for (bool dynamic : {true, false})
            expect_same_on_all_backends(text(c) + (dynamic ? ", dynamic" : ", static"), [&](const Backend& run) {
                Full first(w, run.dev), second(moved, run.dev);
                Half out(n, run.dev), out2(n, run.dev), without(n, run.dev);
                TestBuffer<int8_t> codes(n, run.dev);
                TestBuffer<Grid> grid(c.groups, run.dev), grid2(c.groups, run.dev);
                TestBuffer<int64_t> counts(std::vector<int64_t>{0, 5, 7}, run.dev);  // 5, 7: added to
                fake_quant_forward({out.data, codes.data, grid.data, ScaleState(), counts.data}, first.data, c.shape(),
                                   c.spec(), true, run.dev);
                std::vector<Grid> grid_before = grid.get();
                std::vector<int8_t> before = codes.get();
                fake_quant_forward({out2.data, codes.data, grid.data, ScaleState(), counts.data + 1}, second.data,
                                   c.shape(), c.spec(), dynamic, run.dev);
                std::vector<int8_t> after = codes.get();
                TestBuffer<int8_t> initial(before, run.dev);
                codes_changed(counts.data + 2, codes.data, initial.data, n, c.spec(), run.dev);
                fake_quant_forward({without.data, nullptr, grid2.data, ScaleState(), nullptr}, first.data, c.shape(),
                                   c.spec(), true, run.dev);
                int64_t flips = 0;
                for (int64_t i = 0; i < n; i++) flips += before[i] != after[i];
                std::vector<int64_t> got = counts.get();
                std::string what = text(c) + ", " + run.name;
                EXPECT_EQ(got[1], flips + 5) << what << ": flips";
                EXPECT_EQ(got[2], flips + 7) << what << ": codes_changed";
                EXPECT_TRUE(n < 500 || flips > 0) << what;
                EXPECT_TRUE(same_bits(without.get(), out.get())) << what << ": codes changed the values";
                EXPECT_TRUE(same_bits(grid2.get(), grid_before)) << what;
                EXPECT_TRUE(same_bits(first.get(), w)) << what << ": the weights were changed";
                std::vector<Grid> grid_after = grid.get();
                EXPECT_TRUE(dynamic || same_bits(grid_after, grid_before)) << what << ": a frozen scale moved";
                expect_written(out.get(), what);
                return Bytes() << out.get() << out2.get() << before << after << grid_before << grid_after;
            });
    }
}

TEST(FakeQuant, ClippedMaskHasTheBitsOfTheLoopsOnEveryBackend) {
    for (const QuantCase& c : quant_cases()) {
        const int64_t n = c.groups * c.group;
        std::vector<float> w = random_values<float>(n, 80), d = random_values<float>(n, 81);
        std::vector<Grid> grids(c.groups);
        for (int64_t g = 0; g < c.groups; g++)  // about half lies outside
            grids[g] = {1.0f / (float)(1 << (c.bits + 1 + g % 2)), c.symmetric ? 0.0f : 1.0f};
        float low = quant_low(c.spec()), high = quant_high(c.spec());
        w[0] = (low - grids[0].zero) * grids[0].scale;  // the ends belong to the range
        if (c.group > 1) w[1] = (high - grids[0].zero) * grids[0].scale;
        expect_same_on_all_backends(text(c), [&](const Backend& run) {
            Full dw(d, run.dev), master(w, run.dev);
            TestBuffer<Grid> grid(grids, run.dev);
            fake_quant_backward(dw.data, master.data, grid.data, c.shape(), c.spec(), SteRule::clip, run.dev);
            std::vector<float> got = dw.get();
            int64_t kept = 0;
            for (int64_t i = 0; i < n; i++) {
                double x = (double)w[i] / grids[i / c.group].scale + grids[i / c.group].zero;
                bool inside = x >= low && x <= high;
                kept += inside;
                EXPECT_EQ(got[i], inside ? d[i] : 0.0f) << text(c) << ", " << run.name << ": element " << i;
            }
            EXPECT_TRUE(n < 100 || (kept > 0 && kept < n)) << text(c);
            return Bytes() << got;
        });
    }
}

// every format, scope and rule: the text, and rows and columns of a matrix it takes
struct FormatCase {
    const char* text;
    int64_t rows, cols;
};

static std::vector<FormatCase> format_cases() {
    return {{"int4:g32:mse", 5, 96},
            {"int3:channel:asym:mse", 9, 100},
            {"int2:g8:mse", 7, 72},
            {"int4:g32:amax7", 5, 96},
            {"int4:g32:signedmax", 5, 96},
            {"int8:tensor:signedmax", 130, 131},
            {"int6:g64", 3, 128},
            {"int5:channel:asym", 3, 77},
            {"nf4", 9, 192},
            {"nf4:dq", 150, 128},
            {"nf4:g32:dq", 5, 96},
            {"nf4:g256:dq", 3, 512},
            {"fp8e4m3:tensor", 140, 129},
            {"fp8e4m3:channel", 3, 1100},
            {"fp8e4m3:g64", 5, 128},
            {"fp8e5m2:channel", 5, 67},
            {"fp8e4m3:128x128", 300, 384},
            {"fp8e5m2:128x128", 5, 128},
            {"mxfp8", 33, 64},
            {"mxfp4", 33, 96},
            {"nvfp4", 33, 96},
            {"nvfp4", 150, 128},
            {"ternary", 140, 129},
            {"ternary:channel", 9, 300},
            {"ternary:g32", 9, 64},
            {"ternary", 3, 5},
            {"mid4:g32", 5, 96},
            {"mid4:g16:gauss", 5, 96},
            {"mid3:channel:gauss", 9, 100},
            {"mid2:channel", 7, 67},
            {"mid3:tensor", 130, 131},
            {"mid2:tensor:gauss", 140, 129},
            {"fp8e4m3:channel", 1, 20000}};
}

static Quantizer with_rule(Quantizer q, Ste rule) {
    q.ste = rule;
    return q;
}

TEST(FakeQuant, EveryFormatHasTheSameBitsOnEveryBackend) {
    for (const FormatCase& c : format_cases()) {
        std::string what = format("%s %lldx%lld", c.text, (long long)c.rows, (long long)c.cols);
        std::vector<float> w = test_weights(c.rows, c.cols, 100), moved = w;
        for (size_t i = 0; i < w.size(); i += 3) moved[i] += 0.1f * (uniform(101, (uint32_t)i) - 0.4f);
        moved.back() = -2.7f;
        expect_same_on_all_backends(what, [&](const Backend& run) {
            TestTensor x(c.text, c.rows, c.cols, w, run.dev);
            x.refresh(ScaleMode::dynamic);
            std::vector<int8_t> first = x.codes.get(), second;
            std::vector<floatX> before = x.work.get();
            std::vector<Grid> grid = x.grid.get();
            Bytes bytes;
            bytes << before << first << grid << x.floats.get() << x.scale_codes.get();
            expect_written(before, what), expect_written(grid, what), expect_written(x.floats.get(), what);
            copy_to_device(x.master.data, moved.data(), moved.size() * sizeof(float), run.dev);
            for (ScaleMode mode : {ScaleMode::kept, ScaleMode::dynamic}) {
                second = x.codes.get();
                x.refresh(mode);
                std::vector<int8_t> now = x.codes.get();
                int64_t flips = 0, total = 0, mask = quant_code_mask(x.q.spec);
                for (size_t i = 0; i < now.size(); i++) {
                    flips += now[i] != second[i] && ((now[i] | second[i]) & mask);
                    total += now[i] != first[i] && ((now[i] | first[i]) & mask);
                }
                EXPECT_EQ(x.counts.get(), (std::vector<int64_t>{flips, total})) << what << ", " << run.name;
                EXPECT_TRUE(mode == ScaleMode::dynamic || total > 0 || w.size() < 100) << what;
                EXPECT_EQ(same_bits(x.grid.get(), grid), mode == ScaleMode::kept) << what << ", " << run.name;
                bytes << x.work.get() << now << x.grid.get() << x.floats.get() << x.scale_codes.get();
            }
            return bytes;
        });
    }
}

TEST(FakeQuant, TheGridOfAnyFormatKeepsItsOwnNumbers) {  // Q(Q(w)) = Q(w), with the grid given from outside
    std::vector<FormatCase> cases = format_cases();
    cases.push_back({"int8:channel:asym", 5, 64});
    cases.push_back({"int2:g32:asym", 5, 64});
    for (const FormatCase& c : cases) {
        std::vector<float> w = test_weights(c.rows, c.cols, 110);
        TestTensor a(c.text, c.rows, c.cols, w, CPU);
        a.refresh(ScaleMode::dynamic);
        std::vector<float> values;
        append(values, a.work.get());
        TestTensor b(c.text, c.rows, c.cols, values, CPU);
        std::vector<Grid> given = a.grid.get();
        for (Grid& g : given)
            if (a.q.double_quant) g.zero = 0.0f;  // a file of NF4 has no more
        quantized_tensor_set_grid(b.t, given.data(), CPU);
        for (int again = 0; again < 2; again++) {
            b.refresh(ScaleMode::kept);
            EXPECT_TRUE(same_bits(a.work.get(), b.work.get())) << c.text;
            EXPECT_TRUE(same_bits(a.codes.get(), b.codes.get())) << c.text;
            EXPECT_TRUE(same_bits(given, b.grid.get())) << c.text;
            EXPECT_EQ(b.counts.get(), (std::vector<int64_t>{0, 0})) << c.text;
        }
    }
}

TEST(FakeQuant, GridsFromOutsideAreChecked) {
    std::vector<float> w = test_weights(4, 64, 111);
    for (Grid bad : {Grid{0.0f, 0.0f}, {NAN, 0.0f}, {INFINITY, 0.0f}, {1.0f, 1.5f}, {1.0f, 16.0f}, {1.0f, -1.0f}}) {
        TestTensor x("int4:g32:asym", 4, 64, w, CPU);
        std::vector<Grid> grid(8, Grid{0.5f, 7.0f});
        grid[5] = bad;
        try {
            quantized_tensor_set_grid(x.t, grid.data(), CPU);
            ADD_FAILURE() << "scale " << bad.scale << " and zero point " << bad.zero << " were taken";
        } catch (const Error& e) { EXPECT_NE(std::string(e.what()).find("w: group 5"), std::string::npos) << e.what(); }
    }
}

// The codes and grids of every format, restated in float64 and by search among all codes
TEST(FakeQuant, EveryFormatChoosesTheNearestOfItsNumbers) {
    for (const FormatCase& c : format_cases()) {
        std::vector<float> w = test_weights(c.rows, c.cols, 120);
        TestTensor x(c.text, c.rows, c.cols, w, CPU);
        x.refresh(ScaleMode::dynamic);
        std::vector<Grid> grid = x.grid.get();
        std::vector<int8_t> codes = x.codes.get();
        std::vector<floatX> work = x.work.get();
        const QuantSpec q = x.q.spec;
        std::vector<int> all;
        for (int code = -128; code < 128; code++) {
            bool used = q.format == QuantFormat::integer   ? code >= -(1 << (q.bits - 1)) && code < 1 << (q.bits - 1)
                        : q.format == QuantFormat::ternary ? code >= -1 && code <= 1
                        : q.bits <= 4                      ? code >= 0 && code < 1 << q.bits
                                                           : std::isfinite(quant_value(q, code, Grid{1.0f, 0.0f}));
            if (used) all.push_back(code);
        }
        for (size_t i = 0; i < w.size(); i += 7) {
            Grid g = grid[i / x.t.group], by = g;
            if (x.q.double_quant) by.scale = by.zero;  // the scale that found the code
            ASSERT_EQ((float)work[i], (float)floatX(quant_value(q, codes[i], g))) << c.text;
            g = by;
            double least = INFINITY, got = std::fabs((double)quant_value(q, codes[i], g) - w[i]);
            for (int code : all) least = std::min(least, std::fabs((double)quant_value(q, code, g) - w[i]));
            ASSERT_LE(got, least * 1.00001 + std::fabs(g.scale) * 1e-6) << c.text << ", element " << i << " " << w[i];
        }
        // the scale, from the group's numbers
        double amax_tensor = 0;
        for (float v : w) amax_tensor = std::max(amax_tensor, (double)std::fabs(v));
        for (int64_t k = 0; k < x.t.groups; k += 3) {
            int64_t tile = x.t.tiles ? k / (QUANT_TILE * x.t.tiles) * QUANT_TILE * x.t.tiles : 0;
            double amax = 0, sum = 0, squares = 0, signed_max = 0;
            for (int64_t member = k; member < k + 1; member++)
                for (int64_t i = member * x.t.group; i < (member + 1) * x.t.group; i++) {
                    sum += std::fabs(w[i]), squares += (double)w[i] * w[i];
                    if (std::fabs(w[i]) > amax) amax = std::fabs(w[i]), signed_max = w[i];
                }
            for (int64_t m = tile; x.t.tiles && m < std::min(tile + QUANT_TILE * x.t.tiles, x.t.groups); m++)
                for (int64_t i = m * x.t.group; m % x.t.tiles == k % x.t.tiles && i < (m + 1) * x.t.group; i++)
                    amax = std::max(amax, (double)std::fabs(w[i]));
            double s = 0, tolerance = 1e-6;
            switch (q.format) {
                case QuantFormat::nf4:
                    s = amax, tolerance = x.q.double_quant ? 0.02 : 0;  // the map's steps near 1
                    if (x.q.double_quant) {                             // against the largest of the block instead
                        ASSERT_NEAR(grid[k].scale, s, 0.008 * amax_tensor) << c.text;
                        continue;
                    }
                    break;
                case QuantFormat::fp8e4m3:
                    s = amax / 448;
                    break;
                case QuantFormat::fp8e5m2:
                    s = amax / 57344;
                    break;
                case QuantFormat::mxfp8:
                case QuantFormat::mxfp4: {
                    double e = amax > 0 ? std::floor(std::log2(amax)) : 0;
                    if (amax >= 1.75 * std::exp2(e)) e++;
                    s = amax > 0 ? std::exp2(e - (q.format == QuantFormat::mxfp8 ? 8 : 2)) : grid[k].scale,
                    tolerance = 0;
                    break;
                }
                case QuantFormat::nvfp4:
                    s = amax / 6, tolerance = 0.0626;  // e4m3 of the scale
                    s = std::max(s, 0.0);
                    if (s * 2688 / amax_tensor < 1.0 / 64) continue;  // a subnormal e4m3, coarser
                    break;
                case QuantFormat::ternary:
                    s = sum / (double)x.t.group, tolerance = 1.0 / 256;
                    break;
                case QuantFormat::mid4:
                case QuantFormat::mid3:
                case QuantFormat::mid2:
                    s = amax / (1 << (q.bits - 1)), tolerance = 1.0 / 256;
                    if (q.rule == ScaleRule::gauss)
                        s = 2 *
                            (q.bits == 4   ? 2.513930578568423
                             : q.bits == 3 ? 2.051068354131873
                                           : 1.4935346200015913) *
                            std::sqrt(squares / (double)x.t.group) / ((1 << q.bits) - 1);
                    break;
                default:
                    if (q.rule == ScaleRule::mse) {  // one of the candidates
                        EXPECT_LE(grid[k].scale, std::max(amax * 2 / ((1 << q.bits) - 1), 6.2e-5) * 1.01) << c.text;
                        continue;
                    }
                    if (!q.symmetric) continue;  // see GridCodesAndValuesAgainstTheFormulas
                    s = q.rule == ScaleRule::amax7       ? amax / ((1 << (q.bits - 1)) - 1)
                        : q.rule == ScaleRule::signedmax ? signed_max / -(1 << (q.bits - 1))
                                                         : amax / (((1 << q.bits) - 1) / 2.0);
                    tolerance = 1.0 / 256;
            }
            if (quant_traits(q).storage == ScaleStorage::bf16 && std::fabs(s) < QUANT_LEAST_SCALE)
                s = s < 0 ? -QUANT_LEAST_SCALE : QUANT_LEAST_SCALE;
            if (s == 0 && q.format != QuantFormat::nf4) continue;  // a group of zeros: any scale
            ASSERT_NEAR(grid[k].scale, s, std::fabs(s) * tolerance) << c.text << ", group " << k;
        }
    }
}

TEST(FakeQuant, SearchFindsTheLeastSquaredError) {
    for (const char* text : {"int4:g32:mse", "int3:g32:asym:mse", "int2:channel:mse"}) {
        std::vector<float> w = test_weights(8, 64, 130);
        for (size_t i = 0; i < w.size(); i += 64) w[i + 5] = 3.0f;  // outliers make shrinking worth it
        TestTensor x(text, 8, 64, w, CPU);
        x.refresh(ScaleMode::dynamic);
        std::vector<Grid> grid = x.grid.get();
        int shrunk = 0;
        for (int64_t k = 0; k < x.t.groups; k++) {
            float low = 0, high = 0;
            for (int64_t i = k * x.t.group; i < (k + 1) * x.t.group; i++)
                low = std::min(low, w[i]), high = std::max(high, w[i]);
            auto error = [&](Grid g) {
                double sum = 0;
                for (int64_t i = k * x.t.group; i < (k + 1) * x.t.group; i++) {
                    double d = (double)quant_value(x.q.spec, quant_code(x.q.spec, w[i], g), g) - w[i];
                    sum += d * d;
                }
                return sum;
            };
            double least = INFINITY;
            for (int i = 0; i < 80; i++)
                least = std::min(least, error(quant_grid(x.q.spec, low, high, 1.0f, (float)(100 - i) / 100.0f)));
            EXPECT_LE(error(grid[k]), least * (1 + 1e-5)) << text;
            shrunk += grid[k].scale < quant_grid(x.q.spec, low, high, 1.0f, 1.0f).scale;
        }
        EXPECT_TRUE(shrunk > 0 || x.q.spec.bits == 2) << text;
    }
}

// c_b of rule gauss: the outermost of 2^b evenly spaced numbers about 0 that leave a standard normal the least squared
// error, which is integrated here by the trapezoid rule
TEST(Midrise, GaussIsTheBestScaleOfANormalDistribution) {
    auto error = [](int bits, double c) {
        const double step = 2 * c / ((1 << bits) - 1), dx = 1.0 / 16384;
        double sum = 0;
        for (double x = dx / 2; x < 9; x += dx) {
            double off = x - std::min((std::floor(x / step) + 0.5) * step, c);
            sum += off * off * std::exp(-x * x / 2);
        }
        return sum * dx;
    };
    const std::pair<int, double> scales[] = {
        {4, MidriseFormat<4>::gauss}, {3, MidriseFormat<3>::gauss}, {2, MidriseFormat<2>::gauss}};
    for (auto [bits, c] : scales) {
        double low = 0.5, high = 4.0;  // by thirds: the error has one minimum
        for (int i = 0; i < 24; i++) {
            const double a = low + (high - low) / 3, b = high - (high - low) / 3;
            if (error(bits, a) < error(bits, b)) high = b;
            else low = a;
        }
        EXPECT_NEAR((low + high) / 2, c, 1e-3 * c) << bits << " bits";
        EXPECT_LT(error(bits, c), error(bits, c * 1.002)) << bits << " bits";
        EXPECT_LT(error(bits, c), error(bits, c * 0.998)) << bits << " bits";
    }
}

// squares as integers: any order, never more than 63 bits, and as exact as floats
TEST(Midrise, TheRootMeanSquareDoesNotDependOnTheOrder) {
    for (int64_t count = 1; count < (int64_t)1 << 44; count += count / 3 + 1) {
        const FixedSum f = quant_fixed_sum(1.99f, count, true);
        EXPECT_LT((__int128)quant_fixed(std::nextafter(2.0f, 0.0f), f) * count, (__int128)1 << 63) << count;
    }
    for (int64_t n : {1, 2, 3, 100, 70003}) {
        std::vector<float> w = test_weights(1, n, 131);
        double squares = 0;
        for (float v : w) squares += (double)v * v;
        const float rms = quant_mean_cpu(w.data(), n, 1, 2.5f, ScaleOf::rms);
        EXPECT_NEAR(rms, std::sqrt(squares / (double)n), 1e-6 * rms + (n > 1000 ? 1e-5 * rms : 0.0)) << n;
        std::reverse(w.begin(), w.end());
        std::rotate(w.begin(), w.begin() + n / 3, w.end());
        EXPECT_EQ(rms, quant_mean_cpu(w.data(), n, 1, 2.5f, ScaleOf::rms)) << n;
    }
    for (float tiny : {1e-38f, 1e-25f, 1e18f}) {
        const std::vector<float> w(5, tiny);
        EXPECT_NEAR(quant_mean_cpu(w.data(), 5, 1, tiny, ScaleOf::rms), tiny > 1e-30f ? tiny : 0.0f,
                    1e-6 * tiny + 1e-36);
    }
}

TEST(Midrise, NumbersAndCodesOfEveryBit) {
    for (int bits : {2, 3, 4}) {
        Quantizer q = quantizer_parse(format("mid%d:channel", bits), "weights");
        const int n = 1 << bits;
        for (int code = 0; code < n; code++) {
            const float value = quant_value(q.spec, code, Grid{0.5f, 0.0f});
            EXPECT_EQ(value, ((float)code - (float)(n / 2) + 0.5f) * 0.5f);
            EXPECT_EQ(quant_code(q.spec, value, Grid{0.5f, 0.0f}), code);
            EXPECT_EQ(quant_flipped(quant_code_mask(q.spec), code, (code + 1) % n), true);
        }
        EXPECT_EQ(quant_code(q.spec, 0.0f, Grid{0.5f, 0.0f}), n / 2);
        EXPECT_EQ(quant_code(q.spec, -1e-30f, Grid{0.5f, 0.0f}), n / 2 - 1);
        for (float far : {100.0f, INFINITY}) {
            EXPECT_EQ(quant_code(q.spec, far, Grid{0.5f, 0.0f}), n - 1);
            EXPECT_EQ(quant_code(q.spec, -far, Grid{0.5f, 0.0f}), 0);
        }
        EXPECT_EQ(quant_code(q.spec, NAN, Grid{0.5f, 0.0f}), 0);  // an index of a table
        auto expect_floor = [&](float x) {
            const double k = std::min(std::max(std::floor((double)x), -n / 2.0), n / 2.0 - 1);
            ASSERT_EQ(quant_code(q.spec, x, Grid{1.0f, 0.0f}), (int)k + n / 2) << x;
        };
        for (int i = -9; i <= 9; i++)
            for (float x :
                 {(float)i, std::nextafter((float)i, 99.0f), std::nextafter((float)i, -99.0f), (float)i + 0.5f})
                expect_floor(x), expect_floor(-x);
        for (uint32_t bits_of = 1; bits_of < 0x7F800000u; bits_of += 99991)
            expect_floor(bits_float(bits_of)), expect_floor(-bits_float(bits_of));
        // trust: half a step beyond the last number, inclusive; the same on both sides
        const float edge = (float)(n / 2) * 0.5f;
        for (SteRule rule : {SteRule::trust, SteRule::clip})
            for (float sign : {1.0f, -1.0f}) {
                EXPECT_TRUE(quant_passes(q.spec, rule, sign * edge, Grid{0.5f, 0.0f}));
                EXPECT_FALSE(quant_passes(q.spec, rule, sign * std::nextafter(edge, 10.0f), Grid{0.5f, 0.0f}));
            }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// straight-through rules

// from the least to the largest number, in scales
static double code_range(const QuantSpec& q) {
    double least = INFINITY, most = -INFINITY;
    const int first = quant_is_integer(q) ? (int)quant_low(q) - quant_shift(q) : q.bits == 8 ? -128 : 0;
    const int last = quant_is_integer(q) ? (int)quant_high(q) - quant_shift(q) : q.bits == 8 ? 127 : (1 << q.bits) - 1;
    for (int code = first; code <= last; code++) {
        const double value = quant_value(q, code, Grid{1.0f, 0.0f});
        if (std::isfinite(value)) least = std::min(least, value), most = std::max(most, value);
    }
    return most - least;
}

// dw = g (1 + delta sign(g) (w - Q(w)) / (range of the grid)) inside and 0 outside, restated in float64
TEST(FakeQuant, EwgsIsItsFormulaOnEveryBackend) {
    std::vector<FormatCase> cases = format_cases();
    cases.push_back({"int4:g32:asym", 6, 64});
    cases.push_back({"int8:channel", 2, 16500});  // pieces
    const float delta = 2.5f;
    for (const FormatCase& c : cases) {
        const std::vector<float> w = test_weights(c.rows, c.cols, 132), d = random_values<float>(c.rows * c.cols, 133);
        const std::string what = format("%s %lldx%lld", c.text, (long long)c.rows, (long long)c.cols);
        expect_same_on_all_backends(what, [&](const Backend& run) {
            TestTensor x(c.text, c.rows, c.cols, w, run.dev);
            x.refresh(ScaleMode::dynamic);
            std::vector<Grid> grid = x.grid.get();
            for (Grid& g : grid) g.scale = (float)bf16(g.scale * 0.9f);  // some lie outside
            if (x.q.double_quant)
                for (Grid& g : grid) g.zero = g.scale;
            TestBuffer<Grid> narrow(grid, run.dev);
            Full dw(d, run.dev), none(d, run.dev), clip(d, run.dev);
            const QuantGroups shape = quantized_tensor_groups(x.t);
            fake_quant_backward(dw.data, x.master.data, narrow.data, shape, x.q.spec, {SteRule::ewgs, delta}, run.dev);
            fake_quant_backward(none.data, x.master.data, narrow.data, shape, x.q.spec, {SteRule::ewgs, 0.0f}, run.dev);
            fake_quant_backward(clip.data, x.master.data, narrow.data, shape, x.q.spec, SteRule::clip, run.dev);
            const std::vector<float> got = dw.get(), clipped = clip.get(), unmoved = none.get();
            for (size_t i = 0; i < clipped.size(); i++)  // -0 and 0 are one number
                EXPECT_EQ(unmoved[i], clipped[i]) << what << ": delta 0 is not clip";
            int64_t changed = 0;
            const double range = code_range(x.q.spec);
            for (size_t i = 0; i < w.size(); i++) {
                const Grid g = grid[i / x.t.group];
                const double off = (double)w[i] - quant_value(x.q.spec, quant_code(x.q.spec, w[i], g), g);
                const double share = g.scale == 0.0f ? 0.0 : off / (std::fabs((double)g.scale) * range);
                const double sign = d[i] < 0 ? -1 : 1;
                const double expected = clipped[i] == 0.0f ? 0.0 : d[i] * (1 + delta * sign * share);
                EXPECT_NEAR(got[i], expected, 1e-5 * std::fabs(d[i])) << what << ", " << run.name << ", element " << i;
                changed += got[i] != clipped[i];
            }
            EXPECT_GT(changed, (int64_t)w.size() / 4) << what;
            return Bytes() << got;
        });
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// activations

TEST(FakeQuantRows, SameBitsOnEveryBackendAndForEveryBatch) {
    for (const char* text :
         {"int8:token", "int8:token:asym", "int4:g32", "int4:token:mse", "fp8e4m3:token", "fp8e5m2:g64", "mxfp8",
          "mxfp4", "nvfp4", "int6:token:amax7", "mid4:token", "mid3:g32:gauss"})
        for (auto [T, C] : {std::pair<int64_t, int64_t>{1, 64}, {7, 192}, {3, 1152}, {2, 16448}}) {
            Quantizer q = quantizer_parse(text, "activations");
            if (T == 2 && q.spec.rule == ScaleRule::mse) continue;  // slow
            std::vector<floatX> x = random_values<floatX>(T * C, 140, 4.0f), d = random_values<floatX>(T * C, 141);
            for (int64_t i = 0; i < C; i++) x[(T - 1) * C + i] = (floatX)((float)x[(T - 1) * C + i] * 0.01f + 0.02f);
            expect_same_on_all_backends(
                format("%s %lldx%lld", text, (long long)T, (long long)C), [&, T = T, C = C](const Backend& run) {
                    Half inp(x, run.dev), out(T * C, run.dev), again(x, run.dev), one(C, run.dev), dinp(d, run.dev),
                        trust(d, run.dev), same(d, run.dev), ewgs(d, run.dev);
                    fake_quant_rows(out.data, inp.data, T, C, q, run.dev);
                    fake_quant_rows(again.data, again.data, T, C, q, run.dev);
                    fake_quant_rows(one.data, inp.data + (T - 1) * C, 1, C, q, run.dev);
                    std::vector<floatX> all = out.get(), last(all.end() - C, all.end());
                    EXPECT_TRUE(same_bits(all, again.get())) << text << ": in place";
                    EXPECT_TRUE(same_bits(last, one.get())) << text << ": a row depends on its batch";
                    fake_quant_rows_backward(dinp.data, inp.data, T, C, with_rule(q, SteRule::clip), run.dev);
                    fake_quant_rows_backward(trust.data, inp.data, T, C, with_rule(q, SteRule::trust), run.dev);
                    fake_quant_rows_backward(same.data, inp.data, T, C, with_rule(q, SteRule::identity), run.dev);
                    fake_quant_rows_backward(ewgs.data, inp.data, T, C, with_rule(q, {SteRule::ewgs, 4.0f}), run.dev);
                    EXPECT_TRUE(same_bits(same.get(), d));
                    std::vector<floatX> clipped = dinp.get(), trusted = trust.get(), moved = ewgs.get();
                    // against the formulas, with the grid of each group
                    QuantGroups g = quantized_rows_groups(q, T, C);
                    int64_t zeros = 0;
                    for (int64_t k = 0; k < g.groups; k++) {
                        float low = 0, high = 0;
                        for (int64_t i = k * g.group; i < (k + 1) * g.group; i++)
                            low = std::min(low, (float)x[i]), high = std::max(high, (float)x[i]);
                        Grid grid = quant_grid(q.spec, low, high, 1.0f, 1.0f);
                        if (q.spec.rule == ScaleRule::mse || q.spec.rule == ScaleRule::gauss)
                            quant_measure_cpu(&grid, ScaleState(), &x[k * g.group], QuantGroups{1, g.group}, q.spec);
                        for (int64_t i = k * g.group; i < (k + 1) * g.group; i++) {
                            float value = quant_value(q.spec, quant_code(q.spec, (float)x[i], grid), grid);
                            EXPECT_EQ((float)all[i], (float)(floatX)value) << text;
                            bool in = quant_passes(q.spec, SteRule::clip, (float)x[i], grid);
                            EXPECT_EQ((float)clipped[i], in ? (float)d[i] : 0.0f) << text;
                            double off = std::fabs(((double)value - (float)x[i]) / grid.scale);
                            const double change = 4.0 * ((double)(float)x[i] - value) / grid.scale / code_range(q.spec);
                            const double expected = in ? (float)d[i] + std::fabs((float)d[i]) * change : 0.0;
                            EXPECT_NEAR((float)moved[i], expected, std::fabs(expected) * ULP + 1e-7) << text;
                            if (*quant_traits(q.spec).learned && std::fabs(off - 0.5) > 1e-4) {
                                EXPECT_EQ((float)trusted[i], off < 0.5 ? (float)d[i] : 0.0f)
                                    << text << " " << (float)x[i];
                            }
                            zeros += !in;
                        }
                    }
                    EXPECT_LT(zeros, T * C / 4) << text;
                    return Bytes() << all << clipped << trusted << moved;
                });
        }
    EXPECT_THROW(quantized_rows_groups(quantizer_parse("int8:g48", "activations"), 1, 64), Error);
    EXPECT_THROW(quantized_rows_groups(quantizer_parse("int8:tensor", "weights"), 1, 64), Error);
}

TEST(FakeQuant, OddAddressesAndCodesThatSaturate) {
    for (auto [offset, odd] : {std::pair<size_t, size_t>{0, 0}, {0, 1}, {1, 1}, {3, 3}})  // odd: of the codes

        expect_same_on_all_backends(format("offset %zu, codes %zu", offset, odd), [&, offset = offset,
                                                                                   odd = odd](const Backend& run) {
            const int64_t groups = 6, group = 64, n = groups * group;
            std::vector<float> w = random_values<float>(n + offset, 90, 1e6f);
            Full master(w, run.dev);
            Half out(n + offset, run.dev);
            TestBuffer<int8_t> codes(std::vector<int8_t>(n + odd, 1), run.dev);
            TestBuffer<int8_t> other(std::vector<int8_t>(n + odd, 1), run.dev);
            TestBuffer<Grid> grid(std::vector<Grid>(groups, Grid{0.0625f, 0.0f}), run.dev);
            TestBuffer<int64_t> counts(std::vector<int64_t>{0, 0}, run.dev);
            fake_quant_forward({out.data + offset, codes.data + odd, grid.data, ScaleState(), counts.data},
                               master.data + offset, QuantGroups{groups, group}, integers(4, true), false, run.dev);
            codes_changed(counts.data + 1, codes.data + odd, other.data + odd, n, integers(4, true), run.dev);
            std::vector<int8_t> q = codes.get();
            for (size_t i = 0; i < n + odd; i++)
                EXPECT_EQ(q[i], i < odd ? 1 : w[i - odd + offset] > 0 ? 7 : -8) << "codes " << odd << ", " << run.name;
            EXPECT_EQ(counts.get()[0], n) << "offset " << offset << ", " << run.name;
            EXPECT_EQ(counts.get()[1], n) << "offset " << offset << ", " << run.name;
            for (size_t i = 0; i < offset; i++) EXPECT_TRUE(still_poison(out.get()[i])) << run.name;
            return Bytes() << out.get() << q;
        });
}

// ---------------------------------------------------------------------------------------------------------------------
// stochastic rounding

TEST(StochasticRounding, IsUnbiasedDrawnByStepAndKeepsTheGridsNumbers) {
    for (const char* text : {"int4:g32:sym", "int4:channel:asym", "int8:tensor"}) {
        const int64_t rows = 12, cols = 96, n = rows * cols;
        std::vector<float> w = random_values<float>(n, 150, 0.5f);
        expect_same_on_all_backends(text, [&](const Backend& run) {
            TestTensor x(text, rows, cols, w, run.dev);
            QuantNoise noise;
            noise.on = true, noise.seed = 7, x.t.number = 3;
            std::vector<double> mean(n);
            std::vector<floatX> first, last, values;
            std::vector<int8_t> codes;
            const int draws = run.dev.cuda ? 2 : 2000;
            for (int step = 0; step < draws; step++) {
                noise.step = (uint32_t)step;
                x.refresh(ScaleMode::kept, noise);
                values = x.work.get();
                for (int64_t i = 0; i < n; i++) mean[i] += (double)(float)values[i] / draws;
                if (step == 0) first = values, codes = x.codes.get();
                if (step == 1) last = values;
            }
            EXPECT_FALSE(same_bits(first, last)) << text << ": two steps drew the same";
            std::vector<Grid> grid = x.grid.get();
            int64_t up = 0, down = 0;
            for (int64_t i = 0; i < n; i++) {
                Grid g = grid[i / x.t.group];
                double level = (double)w[i] / g.scale + g.zero, low = quant_low(x.q.spec), high = quant_high(x.q.spec);
                double value = (double)(float)first[i] / g.scale + g.zero, ulp = std::fabs(level - g.zero) * ULP + 1e-3;
                if (level <= low || level >= high) continue;
                EXPECT_TRUE(value >= std::floor(level) - ulp && value <= std::ceil(level) + ulp)
                    << text << " " << level;
                (value > level ? up : down)++;
                if (draws > 100) {  // 5 standard deviations of the mean of a coin of this step
                    EXPECT_NEAR(mean[i], w[i], g.scale * (5 * 0.5 / std::sqrt(draws)) + std::fabs(w[i]) * ULP) << text;
                }
            }
            EXPECT_TRUE(up > n / 4 && down > n / 4) << text;
            // the grid's own numbers stay
            std::vector<float> own;
            for (int64_t i = 0; i < n; i++) own.push_back(quant_value(x.q.spec, codes[i], grid[i / x.t.group]));
            TestTensor y(text, rows, cols, own, run.dev);
            y.t.number = x.t.number;
            quantized_tensor_set_grid(y.t, grid.data(), run.dev);
            y.refresh(ScaleMode::kept, noise);
            EXPECT_TRUE(same_bits(codes, y.codes.get())) << text;
            return Bytes() << first << last << y.codes.get();
        });
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// the real packages: test/make_golden_quantizers.py, where it is said how their conventions differ

static std::string fnv(const void* data, size_t bytes) {
    uint64_t h = 0xCBF29CE484222325ull;
    for (size_t i = 0; i < bytes; i++) h = (h ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001B3ull;
    return format("%016llx", (unsigned long long)h);
}

static std::vector<float> golden_weights(const std::string& made, int64_t rows, int64_t cols, const TestTensor& x) {
    std::vector<float> w(rows * cols);
    uint32_t state = 1;
    for (float& v : w) {
        state = 1664525u * state + 1013904223u;
        v = (float)((int)(state >> 8) - (1 << 23)) * std::exp2(-24.0f);
    }
    if (made == "plain") {
        for (int64_t i = 0; i < rows * cols; i++) w[i] = w[i] * 0.125f * std::exp2(-(float)(i / cols % 5));
        return w;
    }
    const int bits = x.q.spec.bits;
    const float levels = (float)((1 << bits) - 1), k = std::exp2((float)bits - 2);
    for (int64_t g = 0; g < x.t.groups; g++) {
        float s = std::exp2(-(float)(5 + g % 3)) * (made == "on_grid2" ? 1.0f : 1 + (float)(g % 8) / 8);
        for (int64_t i = 0; i < x.t.group; i++) {
            float& v = w[g * x.t.group + i];
            if (x.q.spec.symmetric) {
                v = i == 0 ? -levels / 2 : v * levels;
            } else {
                volatile float shifted = (v + 0.5f) * levels;  // rounded before k is taken away, as numpy does
                v = i == 0 ? -k : i == 1 ? levels - k : shifted - k;
            }
            v *= s;
        }
    }
    return w;
}

TEST(Golden, ScalesAndCodesAreThoseOfThePackages) {
    nlohmann::json all = nlohmann::json::parse(read_file("test/golden/quantizers.json"));
    EXPECT_GE(all["cases"].size(), 18u);
    for (const nlohmann::json& c : all["cases"]) {
        const std::string text = c["text"], what = c["package"].get<std::string>() + " " + text;
        const int64_t rows = c["rows"], cols = c["cols"];
        TestTensor shape(text, rows, cols, std::vector<float>(rows * cols), CPU);
        std::vector<float> w = golden_weights(c["made"], rows, cols, shape);
        ASSERT_EQ(fnv(w.data(), w.size() * sizeof(float)), c["weights"].get<std::string>())
            << what << ": other weights";
        TestTensor x(text, rows, cols, w, CPU);
        x.refresh(ScaleMode::dynamic);
        std::vector<int8_t> codes = x.codes.get();
        std::vector<float> scales;
        const std::vector<Grid> grid = x.grid.get();
        for (int64_t g = 0; g < x.t.groups; g++)  // one of each tile
            if (!x.t.tiles || g / x.t.tiles % QUANT_TILE == 0) scales.push_back(grid[g].scale);
        for (size_t i = 0; i < c["first_scales"].size(); i++)
            EXPECT_EQ(scales[i], c["first_scales"][i].get<float>()) << what << ", scale " << i;
        for (size_t i = 0; i < c["first_codes"].size(); i++)
            EXPECT_EQ((int)codes[i], c["first_codes"][i].get<int>()) << what << ", code " << i;
        EXPECT_EQ(fnv(scales.data(), scales.size() * sizeof(float)), c["scales"].get<std::string>()) << what;
        EXPECT_EQ(fnv(codes.data(), codes.size()), c["codes"].get<std::string>()) << what;
        for (size_t i = 0; c.contains("first_zeros") && i < c["first_zeros"].size(); i++)
            EXPECT_EQ(grid[i].zero - (float)(1 << (x.q.spec.bits - 1)), c["first_zeros"][i].get<float>()) << what;
        if (c.contains("tensor_scale")) { EXPECT_EQ(*x.t.state.tensor, c["tensor_scale"].get<float>()) << what; }
        if (!c.contains("nested")) continue;
        const nlohmann::json& nested = c["nested"];
        DynamicMap map = dynamic_map();
        EXPECT_EQ(fnv(map.value, sizeof(map.value)), nested["map"].get<std::string>());
        EXPECT_EQ(*x.t.state.tensor, nested["offset"].get<float>());
        float theirs = nested["torch_offset"];  // within an ulp
        EXPECT_TRUE(theirs >= std::nextafter(*x.t.state.tensor, 0.0f) &&
                    theirs <= std::nextafter(*x.t.state.tensor, 1.0f));
        ASSERT_EQ(nested["absmax"].size(), (size_t)CEIL_DIV(x.t.groups, QUANT_NESTED));
        for (size_t i = 0; i < nested["absmax"].size(); i++)
            EXPECT_EQ(x.t.state.absmax[i], nested["absmax"][i].get<float>()) << "block " << i;
        for (size_t i = 0; i < nested["first_codes"].size(); i++)
            EXPECT_EQ((int)x.t.state.codes[i], nested["first_codes"][i].get<int>()) << "scale " << i;
        EXPECT_EQ(fnv(x.t.state.codes, x.t.groups), nested["codes"].get<std::string>());
    }
}
