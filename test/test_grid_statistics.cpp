// Statistics of grids (kernels/grid_statistics.cuh) against a float64 restatement that knows a format by the numbers of its
// codes alone: cells, sums and counts of every format of the table, and the history of codes that flip.
#include <gtest/gtest.h>
#include "../kernels/grid_statistics.cuh"
#include "operator_test.h"

// numbers of all codes at scale 1, each once, with the sign of the scale's
static std::vector<double> numbers_of(QuantSpec spec, Grid g) {
    std::vector<double> numbers;
    const int first = quant_is_integer(spec) ? (int)quant_low(spec) - quant_shift(spec) : 0;
    const int last = quant_is_integer(spec) ? (int)quant_high(spec) - quant_shift(spec) : (1 << spec.bits) - 1;
    const float sign = g.scale < 0.0f ? -1.0f : 1.0f, zero = quant_is_integer(spec) ? g.zero : 0.0f;
    for (int code = first; code <= last; code++) {
        const double x = quant_value(spec, code, Grid{sign, zero});
        if (std::isfinite(x)) numbers.push_back(x);
    }
    std::sort(numbers.begin(), numbers.end());
    numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
    return numbers;
}

struct CellReference {
    double edge = 0.0, cell = 0.0;
    CellReference(double w, QuantSpec spec, Grid g) {
        const double size = !quant_is_integer(spec) && g.zero > 0.0f ? g.zero : std::fabs(g.scale);
        if (size < (double)QUANT_LEAST_NORMAL) return;
        const std::vector<double> numbers = numbers_of(spec, g);
        size_t i = 0;
        auto middle = [&](size_t at) { return 0.5 * (numbers[at] + numbers[at + 1]) * size; };
        while (i + 1 < numbers.size() && w > middle(i)) i++;
        const bool first = i == 0, last = i + 1 == numbers.size();
        edge = std::min(first ? INFINITY : w - middle(i - 1), last ? INFINITY : middle(i) - w);
        cell = first  ? 2.0 * (middle(i) - numbers[i] * size)
               : last ? 2.0 * (numbers[i] * size - middle(i - 1))
                      : middle(i) - middle(i - 1);
    }
};

// Weights with their grids and codes, some of the groups zeros, some weights far outside of the range
struct Quantized {
    QuantSpec spec;
    QuantGroups shape;
    std::vector<float> w;
    std::vector<floatX> q;
    std::vector<int8_t> codes;
    std::vector<Grid> grid;

    Quantized(QuantSpec spec_, QuantGroups shape_, uint32_t seed, float beyond = 1.0f) : spec(spec_), shape(shape_) {
        const int64_t n = shape.groups * shape.group;
        w = random_values<float>((size_t)n, seed, 0.3f);
        for (int64_t i = 0; i < n; i++)
            if (shape.groups > 2 && i / shape.group == 1) w[i] = 0.0f;
        q.resize((size_t)n), codes.resize((size_t)n), grid.resize((size_t)shape.groups);
        float tensor = 0.0f;
        const bool scaled = quant_traits(spec).tensor_scale;
        quant_measure_cpu(grid.data(), {scaled ? &tensor : nullptr}, w.data(), shape, {spec});
        for (float& x : w) x *= beyond;
        quantize();
    }
    void quantize() {
        fake_quant_forward_cpu(q.data(), codes.data(), grid.data(), ScaleState(), w.data(), shape, spec, false);
    }
};

static std::vector<QuantSpec> all_specs() {
    std::vector<QuantSpec> specs;
    for (const FormatTraits& t : quant_formats)
        for (const FormatName& name : t.names) {
            QuantSpec spec;
            spec.format = t.format, spec.bits = name.bits;
            specs.push_back(spec);
            if (!t.affine) continue;
            spec.rule = ScaleRule::signedmax;
            specs.push_back(spec);
            spec.rule = ScaleRule::amax, spec.symmetric = false;
            specs.push_back(spec);
        }
    return specs;
}

static std::string spec_text(QuantSpec spec) {
    return format("%s %d bits %s", quant_format_name(spec), spec.bits, spec.symmetric ? "sym" : "asym");
}

static GridSums reference_sums(const Quantized& t, const std::vector<Grid>& first, GridReach reach) {
    GridSums s = {};
    for (size_t i = 0; i < t.w.size(); i++) {
        const Grid g = t.grid[i / (size_t)t.shape.group];
        const double w = t.w[i], q = (double)(float)t.q[i];
        const CellReference c(w, t.spec, g);
        s.squares += w * w, s.products += w * q, s.errors += (q - w) * (q - w);
        s.zeroed += q == 0.0 ? w * w : 0.0;
        const double s0 = first[i / (size_t)t.shape.group].scale;
        s.scales += s0 == 0.0 ? (double)(g.scale != 0.0f) : std::fabs(g.scale / s0 - 1.0);
        if (c.cell == 0.0) continue;
        s.cells += 1.0, s.inverse += 1.0 / c.cell, s.cell_errors += std::pow((q - w) / c.cell, 2.0);
        s.beyond_step += c.edge > (double)reach.step, s.beyond_steps += c.edge > (double)reach.steps;
    }
    return s;
}

static void expect_sums(const GridSums& got, const GridSums& want, const std::string& what) {
    const double* x = &got.squares;
    const double* y = &want.squares;
    for (int i = 0; i <= GRID_SUMS; i++)
        EXPECT_NEAR(x[i], y[i], 2e-6 * std::fabs(y[i]) + 1e-12) << what << " sum " << i;
}

// on each backend: sums() of what run(sums, backend) adds to; those of the simulated orders have the same bits
static void expect_sums_everywhere(const GridSums& want, const std::string& what,
                                   const std::function<void(GridSums*, const Backend&)>& run) {
    std::vector<GridSums> on_device;
    for (const Backend& backend : all_backends()) {
        select_backend(backend);
        TestBuffer<GridSums> sums(std::vector<GridSums>(1, GridSums()), backend.dev);
        run(sums.data, backend);
        expect_sums(sums.get()[0], want, what + ", " + backend.name);
        if (backend.name == "cpu") continue;
        if (on_device.empty()) on_device = sums.get();
        EXPECT_TRUE(same_bits(on_device, sums.get())) << what << ", " << backend.name;
    }
}

TEST(GridStatistics, AgreesWithFloat64) {
    for (QuantSpec spec : all_specs())
        for (QuantGroups shape : {QuantGroups{1, 1}, QuantGroups{3, 67}, QuantGroups{1, GRID_PIECE + 300}})
            for (float beyond : {1.0f, 1.7f}) {
                if (beyond != 1.0f && shape.groups == 1) continue;
                Quantized t(spec, shape, 3, beyond);
                std::vector<Grid> first = t.grid;
                for (size_t g = 0; g < first.size(); g++) first[g].scale *= 1.0f + 0.25f * (float)(g % 3);
                const GridReach reach = {0.004f, 0.02f};
                const GridSums want = reference_sums(t, first, reach);
                const std::string what = format("%s, groups of %lld", spec_text(spec).c_str(), (long long)shape.group);
                expect_sums_everywhere(want, what, [&](GridSums* sums, const Backend& run) {
                    TestBuffer<float> w(t.w, run.dev);
                    TestBuffer<floatX> q(t.q, run.dev);
                    TestBuffer<Grid> grid(t.grid, run.dev), start(first, run.dev);
                    grid_statistics(sums, {w.data, q.data, grid.data, start.data, shape, spec}, reach, run.dev);
                });
            }
}

// With double quantization the codes are those of the scale before it
TEST(GridStatistics, CellsAreThoseOfTheScaleThatCodes) {
    for (QuantSpec spec : all_specs()) {
        if (!quant_traits(spec).double_quant) continue;
        const Grid g = {0.9f, 1.1f};
        Quantized t(spec, {1, 256}, 5);
        t.grid[0] = g;
        t.quantize();
        const GridSums want = reference_sums(t, {g}, {0.01f, 0.05f});
        GridSums got = {};
        grid_statistics(&got, {t.w.data(), t.q.data(), t.grid.data(), t.grid.data(), t.shape, spec}, {0.01f, 0.05f},
                        Device());
        expect_sums(got, want, spec_text(spec));
    }
}

TEST(GridStatistics, AnEmptyTensorAddsNothingAndThreadsDoNotMatter) {
    GridSums none = {};
    GridWeights nothing;
    nothing.shape = {0, 32};
    grid_statistics(&none, nothing, {1.0f, 1.0f}, Device());
    EXPECT_EQ(none.cells + none.squares, 0.0);
    QuantSpec spec;
    spec.bits = 4;
    const Quantized t(spec, {300, 128}, 4);
    expect_same_for_any_threads<GridSums>(
        [&] {
            GridSums s = {};
            grid_statistics(&s, {t.w.data(), t.q.data(), t.grid.data(), t.grid.data(), t.shape, spec}, {0.01f, 0.1f},
                            Device());
            return std::vector<GridSums>{s};
        },
        "statistics");
}

// what a weight's history is, restated
struct WeightHistory {
    double value;
    int code, last = 0;
    bool turned = false;
};

TEST(GridStatistics, HistoryFollowsTheCodes) {
    for (QuantSpec spec : all_specs()) {
        if (spec.bits > 4 && quant_is_integer(spec)) continue;
        const QuantGroups shape = {3, 67};
        const int64_t n = shape.groups * shape.group;
        const int mask = quant_code_mask(spec);
        // each weight walks to and fro, the faster the higher its index; grids stay those of the start
        const Quantized start(spec, shape, 6);
        std::vector<Quantized> steps;
        std::vector<WeightHistory> want;
        for (int64_t i = 0; i < n; i++) want.push_back({start.w[i], start.codes[i]});
        for (int step = 1; step <= 6; step++) {
            Quantized t = start;
            for (int64_t i = 0; i < n; i++) t.w[i] += 0.2f * sinf(0.05f * (float)(i % 60) * (float)step);
            t.quantize();
            steps.push_back(t);
            for (int64_t i = 0; i < n; i++) {
                WeightHistory& h = want[i];
                const Grid g = t.grid[i / shape.group];
                const bool flipped = quant_flipped(mask, t.codes[i], h.code);
                const double change = quant_value(spec, t.codes[i], g) - quant_value(spec, h.code, g);
                h.code = t.codes[i];
                if (!flipped) continue;
                h.turned = h.last * change < 0.0;
                h.last = change > 0.0 ? 1 : -1, h.value = t.w[i];
            }
        }
        GridSums sums = {};
        std::vector<int8_t> directions;
        std::vector<float> values;
        for (int64_t i = 0; i < n; i++) {
            const WeightHistory& h = want[i];
            directions.push_back((int8_t)(h.last * (1 + h.turned))), values.push_back((float)h.value);
            const CellReference c(steps.back().w[i], spec, start.grid[i / shape.group]);
            sums.turned += h.turned;
            if (c.cell == 0.0) continue;
            const double drift = std::fabs(steps.back().w[i] - h.value) / c.cell;
            sums.drift += drift, sums.largest_drift = std::max(sums.largest_drift, drift);
        }
        EXPECT_GT(sums.turned, 5.0) << spec_text(spec);
        EXPECT_GT(sums.drift, 0.5) << spec_text(spec);
        for (bool twice : {false, true})
            expect_sums_everywhere(sums, spec_text(spec), [&](GridSums* out, const Backend& run) {
                TestBuffer<int8_t> code(start.codes, run.dev);
                TestBuffer<int8_t> direction(std::vector<int8_t>((size_t)n, 0), run.dev);
                TestBuffer<float> value(start.w, run.dev);
                TestBuffer<Grid> grid(start.grid, run.dev);
                const GridHistory h = {code.data, direction.data, value.data};
                for (size_t i = 0; i < steps.size(); i++) {
                    TestBuffer<float> w(steps[i].w, run.dev);
                    TestBuffer<int8_t> codes(steps[i].codes, run.dev);
                    const GridWeights t = {w.data, nullptr, grid.data, nullptr, shape, spec};
                    const bool last = i + 1 == steps.size();
                    if (twice || !last) grid_history(nullptr, h, t, codes.data, run.dev);
                    if (last) grid_history(out, h, t, codes.data, run.dev);
                }
                EXPECT_TRUE(same_bits(code.get(), steps.back().codes)) << spec_text(spec) << ", " << run.name;
                EXPECT_TRUE(same_bits(direction.get(), directions)) << spec_text(spec) << ", " << run.name;
                EXPECT_TRUE(same_bits(value.get(), values)) << spec_text(spec) << ", " << run.name;
            });
    }
}
