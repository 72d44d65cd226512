// Methods of quantized training: their texts, and the operators that they are made of, on every backend against float64 and
// the CPU's bits. What they do to a run is tested through the program (test_cli_methods.cpp).
#include "operator_test.h"
#include "../kernels/grid_pull.cuh"
#include "../kernels/oscillation.cuh"
#include "../methods/training_methods.cuh"

typedef TestBuffer<float> Full;

static std::string message_of_methods(const std::string& text) {
    try {
        training_methods_parse(text);
    } catch (const Error& e) { return e.what(); }
    return "no error";
}

TEST(Methods, TextsAreParsedAndRefusedByName) {
    const TrainingMethods m = training_methods_parse("cage:lambda=2.5:form=coupled + freeze");
    ASSERT_EQ(m.names, (std::vector<std::string>{"cage", "freeze"}));
    const CageMethod& cage = dynamic_cast<const CageMethod&>(*m.list[0]);
    EXPECT_EQ(cage.lambda, 2.5);
    EXPECT_EQ(cage.silence, 0.8);
    EXPECT_TRUE(cage.coupled);
    EXPECT_TRUE(training_methods_parse("none").list.empty());
    for (const auto& [text, part] :
         std::vector<std::pair<std::string, std::string>>{{"cagee", "did you mean cage?"},
                                                          {"", "'' is not one of"},
                                                          {"cage+cage", "cage is given twice"},
                                                          {"cage:lamda=1", "did you mean lambda?"},
                                                          {"cage:lambda=x", "lambda=x: not a number in [0, 1000000]"},
                                                          {"cage:lambda=-1", "lambda=-1"},
                                                          {"cage:lambda", "lambda needs a value"},
                                                          {"cage:lambda=1:lambda=2", "lambda is given twice"},
                                                          {"cage:form=couple", "did you mean coupled?"},
                                                          {"freeze:momentum=0", "momentum=0"}})
        EXPECT_NE(message_of_methods(text).find(part), std::string::npos) << text << ": " << message_of_methods(text);
}

TEST(Methods, EveryRowHasHelpAndItsDefaultsAreAllowed) {
    for (const MethodRow* r : training_methods()) {
        EXPECT_NE(training_methods_help().find(std::string("  ") + r->name + " "), std::string::npos);
        for (const SettingRow& s : r->settings) setting_check(s, s.value, r->name);
        EXPECT_TRUE(r->make(settings_of(r->name, r->settings, "methods")) != nullptr);
        for (const MethodConflict& c : r->conflicts)
            EXPECT_TRUE(find_training_method(c.other)) << r->name << " conflicts with " << c.other;
    }
}

TEST(Methods, CageIsSilentThenRises) {
    EXPECT_EQ(cage_ramp(0.3, 0.8), 0.0);
    EXPECT_EQ(cage_ramp(0.8, 0.8), 0.0);
    EXPECT_NEAR(cage_ramp(0.9, 0.8), 0.5, 1e-12);
    EXPECT_EQ(cage_ramp(1.0, 0.8), 1.0);
    EXPECT_EQ(cage_ramp(1.5, 0.8), 1.0);  // a run that goes on beyond its steps
    EXPECT_EQ(cage_ramp(0.5, 0.0), 0.5);
    EXPECT_EQ(cosine_rise(0.0), 0.0);
    EXPECT_NEAR(cosine_rise(0.5), 0.5, 1e-12);
    EXPECT_NEAR(cosine_rise(1.0), 1.0, 1e-12);
}

// x - share (x - q), dx + weight (x - q) in double
TEST(Methods, PullTowardsTheGrid) {
    for (int64_t n : {1, 7, 256, 5000}) {
        const std::vector<float> x = random_values<float>(n, 1), d = random_values<float>(n, 2);
        const std::vector<floatX> q = random_values<floatX>(n, 3);
        expect_same_on_all_backends(format("n %lld", (long long)n), [&](const Backend& run) {
            Full moved(x, run.dev), gradient(d, run.dev), at(x, run.dev);
            TestBuffer<floatX> grid(q, run.dev);
            grid_pull(moved.data, grid.data, n, 0.25f, run.dev);
            grid_pull_add(gradient.data, at.data, grid.data, n, 3.0f, run.dev);
            const std::vector<float> a = moved.get(), b = gradient.get();
            for (int64_t i = 0; i < n; i++) {
                EXPECT_NEAR(a[i], x[i] - 0.25 * ((double)x[i] - (float)q[i]), 1e-6);
                EXPECT_NEAR(b[i], d[i] + 3.0 * ((double)x[i] - (float)q[i]), 1e-5);
            }
            return Bytes() << a << b;
        });
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// oscillation

// The rules as they are told, with a history of every code
struct OscillationReference {
    std::vector<int> codes;
    double f = 0.0, ema = 0.0;
    int last = 0;
    bool frozen = false;
    int held = 0;

    explicit OscillationReference(int code) : codes{code}, ema(code) {}
    void step(int now, double m, double threshold) {
        if (frozen) return;
        const int change = now - codes.back(), direction = (change > 0) - (change < 0);
        const double o = direction != 0 && direction == -last ? 1.0 : 0.0;
        f = m * o + (1.0 - m) * f;
        if (direction) last = direction;
        if (f > threshold) frozen = true, held = (int)std::rint(ema);
        ema = m * now + (1.0 - m) * ema;
        codes.push_back(now);
    }
};

struct OscillationArrays {
    TestBuffer<int8_t> code, direction;
    Full frequency, ema;
    OscillationArrays(int64_t n, Device dev) : code(n, dev), direction(n, dev), frequency(n, dev), ema(n, dev) {}
    Oscillation view() { return {code.data, direction.data, frequency.data, ema.data}; }
};

TEST(Methods, OscillatingCodesAreCountedAndFrozen) {
    for (bool symmetric : {true, false})
        for (QuantGroups shape : {QuantGroups{1, 1}, QuantGroups{3, 67}, QuantGroups{40, 32}}) {
            QuantSpec spec;
            spec.bits = 3, spec.symmetric = symmetric;
            const int64_t n = shape.groups * shape.group;
            const OscillationRule rule = {0.2f, 0.3f};
            const std::vector<Grid> grid(shape.groups, Grid{0.5f, symmetric ? 0.0f : 3.0f});
            // each weight jumps between two neighbours, in every third step or less
            auto weights = [&](int step) {
                std::vector<float> w = random_values<float>(n, 5, 1.2f);
                for (int64_t i = 0; i < n; i++)
                    if (step % (1 + i % 5) == 0) w[i] += (step / (1 + (int)(i % 5))) % 2 ? 0.5f : -0.5f;
                return w;
            };
            expect_same_on_all_backends(format("groups of %lld", (long long)shape.group), [&](const Backend& run) {
                OscillationArrays a(n, run.dev);
                TestBuffer<Grid> grids(grid, run.dev);
                Full start(weights(0), run.dev);
                oscillation_start(a.view(), start.data, grids.data, shape, spec, run.dev);
                std::vector<OscillationReference> want;
                for (float w : weights(0)) want.emplace_back(quant_code(spec, w, grid[0]));
                std::vector<float> last, held;
                std::vector<floatX> work;
                for (int step = 1; step <= 12; step++) {
                    const std::vector<float> w = weights(step);
                    Full master(w, run.dev);
                    TestBuffer<floatX> q(std::vector<floatX>(n, (floatX)9.0f), run.dev);
                    TestBuffer<int8_t> codes(std::vector<int8_t>(n, 99), run.dev);
                    oscillation_track(a.view(), master.data, q.data, codes.data, grids.data, shape, spec, rule,
                                      run.dev);
                    for (int64_t i = 0; i < n; i++) want[i].step(quant_code(spec, w[i], grid[0]), 0.2, 0.3);
                    last = master.get(), work = q.get();
                    for (int64_t i = 0; i < n; i++) {
                        const float value = want[i].frozen ? quant_value(spec, want[i].held, grid[0]) : w[i];
                        EXPECT_EQ(last[i], value) << step << " " << i;
                        EXPECT_EQ((float)work[i], want[i].frozen ? value : 9.0f) << step << " " << i;
                        EXPECT_EQ((int)codes.get()[i], want[i].frozen ? want[i].held : 99) << step << " " << i;
                    }
                }
                Full moved(weights(1), run.dev);
                oscillation_hold(a.view(), moved.data, grids.data, shape, spec, run.dev);
                held = moved.get();
                int64_t oscillating = 0, frozen = 0;
                for (int64_t i = 0; i < n; i++) {
                    frozen += want[i].frozen;
                    oscillating += !want[i].frozen && want[i].f > OSCILLATING;
                    EXPECT_EQ(held[i], want[i].frozen ? quant_value(spec, want[i].held, grid[0]) : weights(1)[i]);
                    EXPECT_NEAR(a.frequency.get()[i], want[i].f, 1e-6);
                }
                if (n > 100) {
                    EXPECT_GT(frozen, 0);
                    EXPECT_GT(oscillating, 0);
                }
                TestBuffer<int64_t> counts(std::vector<int64_t>{0, 0}, run.dev);
                oscillation_count(counts.data, a.view(), n, run.dev);
                EXPECT_EQ(counts.get(), (std::vector<int64_t>{oscillating, frozen}));
                return Bytes() << last << work << held << a.ema.get() << a.code.get() << a.direction.get();
            });
        }
}

// half the gradient of weight (Q - clip(w))^2, by central differences with Q held
TEST(Methods, DampeningIsAGradient) {
    QuantSpec spec;
    spec.bits = 3;
    const QuantGroups shape = {5, 33};
    const int64_t n = shape.groups * shape.group;
    const std::vector<Grid> grid(shape.groups, Grid{0.25f, 0.0f});  // -1 ... 0.75: some are outside
    const std::vector<float> w = random_values<float>(n, 8, 1.5f), d = random_values<float>(n, 9);
    std::vector<floatX> q(n);
    for (int64_t i = 0; i < n; i++) q[i] = (floatX)quant_value(spec, quant_code(spec, w[i], grid[0]), grid[0]);
    expect_same_on_all_backends("dampening", [&](const Backend& run) {
        Full dw(d, run.dev), at(w, run.dev);
        TestBuffer<floatX> work(q, run.dev);
        TestBuffer<Grid> grids(grid, run.dev);
        dampening(dw.data, at.data, work.data, grids.data, shape, spec, 2.0f, run.dev);
        const std::vector<float> got = dw.get();
        for (int64_t i = 0; i < n; i++) {
            auto loss = [&](double x) {
                const double clipped = std::min(std::max(x, -1.0), 0.75), off = (float)q[i] - clipped;
                return off * off;
            };
            const double h = 1e-6, slope = (loss(w[i] + h) - loss(w[i] - h)) / (2 * h);
            EXPECT_NEAR(got[i], d[i] + slope, 1e-4) << i << " " << w[i];  // weight 2, half the gradient
        }
        return Bytes() << got;
    });
}
