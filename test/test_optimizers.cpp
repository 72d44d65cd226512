// Optimizers. Their operators: every backend has the bits of the loops; AdamW's moments in 8 bits against bitsandbytes,
// in bf16 against fp32; Muon's iteration against float64, its steps against torch (test/make_golden_optimizers.py). A
// model's: AdamW has the bits of the loop over tensors that it replaced; memory, reset, files in and out and those that
// must be refused.
#include <gtest/gtest.h>
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>
#include "../formats/optimizer_file.h"
#include "../kernels/weight_hash.cuh"
#include "../model.cuh"
#include "file_test.h"
#include "operator_test.h"
#include "test_device.h"
#include "tiny_model.h"

typedef TestBuffer<float> Full;
typedef TestBuffer<uint8_t> Codes;
static const Device CPU;

// what make_golden_optimizers.py makes of the same seed
static std::vector<float> lcg_values(size_t n, uint32_t x) {
    std::vector<float> v(n);
    for (float& f : v) {
        x = 1664525u * x + 1013904223u;
        f = (float)((int)(x >> 8) - (1 << 23)) * 5.9604644775390625e-8f;
    }
    return v;
}

static const SafetensorsFile& golden() {
    static const SafetensorsFile f = st_open("test/golden/optimizers.safetensors");
    return f;
}
static std::vector<float> golden_floats(const std::string& name) {
    const StTensor* t = st_find(golden().tensors, name);
    if (!t) fail("no %s", name.c_str());
    std::vector<float> v((size_t)t->count);
    st_read_float(*t, v.data());
    return v;
}
static std::vector<uint8_t> golden_bytes(const std::string& name) {
    const StTensor* t = st_find(golden().tensors, name);
    if (!t) fail("no %s", name.c_str());
    return std::vector<uint8_t>(t->data, t->data + t->bytes);
}

// |a - b| / |b - from|; from: none is zero
template <class B>
static double distance(const std::vector<float>& a, const std::vector<B>& b, const std::vector<float>& from = {}) {
    double difference = 0.0, size = 0.0;
    for (size_t i = 0; i < a.size(); i++) {
        const double d = (double)a[i] - (double)b[i], s = (double)b[i] - (from.empty() ? 0.0 : (double)from[i]);
        difference += d * d, size += s * s;
    }
    return std::sqrt(difference / size);
}

// ---------------------------------------------------------------------------------------------------------------------
// bf16 moments

TEST(AdamWBf16, EveryBackendGivesTheBitsOfTheLoops) {
    for (int64_t n : {1, 3, 8, 67, 511, 4101})
        for (size_t offset : {0, 1}) {
            const std::string what = format("n %lld offset %zu", (long long)n, offset);
            const std::vector<float> w0 = random_values<float>(n + offset + 3, 50, 0.1f);
            AdamWConfig c;
            c.learning_rate = 1e-2f, c.weight_decay = 0.1f;
            expect_same_on_all_backends(what, [&](const Backend& run) {
                Full w(w0, run.dev);
                TestBuffer<bf16> m(std::vector<bf16>(w0.size()), run.dev), v(std::vector<bf16>(w0.size()), run.dev);
                for (int step = 1; step <= 3; step++) {
                    Full grad(random_values<float>(w0.size(), 50 + step, 2.0f), run.dev);
                    adamw_bf16_update(w.data + offset, m.data + offset, v.data + offset, grad.data + offset, n, 0.7f, c,
                                      {77, 5, step}, run.dev);
                }
                const std::vector<float> got = w.get();
                for (size_t i = 0; i < w0.size(); i++)
                    EXPECT_EQ(got[i] == w0[i], i < offset || i >= n + offset) << what << ", " << i;
                return Bytes() << got << m.get() << v.get();
            });
        }
}

TEST(AdamWBf16, RandomRoundingKeepsTheMeanAndWhatIsExact) {
    for (float x : {1.0f, -1.00390625f, 3.0e-39f, 0.0f, -0.0f, INFINITY})  // bf16 numbers
        for (uint32_t r : {0u, 1u, 0xFFFFu})
            if ((float_bits(x) & 0xFFFFu) == 0) { EXPECT_EQ(float_to_bf16_random(x, r), float_bits(x) >> 16) << x; }
    EXPECT_TRUE(std::isnan((float)bf16_bits_to_float(float_to_bf16_random(NAN, 0xFFFF))));
    EXPECT_TRUE(std::isnan((float)bf16_bits_to_float(float_to_bf16_random(bits_float(0xFFFFFFFFu), 0xFFFF))));
    for (float x : {1.0017f, -0.333333f, 1e-20f}) {
        double sum = 0.0;
        for (uint32_t r = 0; r < 65536; r++) sum += bf16_bits_to_float(float_to_bf16_random(x, r | r << 16));
        EXPECT_NEAR(sum / 65536, x, 1e-7 * std::fabs(x)) << x;
    }
}

// The second moment after `large` steps of gradients of 1 and `small` of 0.01, over that of fp32: its mean and spread
// over weights, and what rounding to nearest would make of it
struct SecondMoment {
    double mean = 0.0, spread = 0.0, nearest = 0.0;
};
static SecondMoment second_moment(int64_t large, int64_t small) {
    const int64_t n = 1024;
    AdamWConfig c;
    Full w(std::vector<float>(n), CPU), grad(std::vector<float>(n), CPU);
    TestBuffer<bf16> m(std::vector<bf16>(n), CPU), v(std::vector<bf16>(n), CPU);
    float w32 = 0.0f, m32 = 0.0f, v32 = 0.0f, nearest = 0.0f;
    for (int64_t step = 1; step <= large + small; step++) {
        const float g = step <= large ? 1.0f : 0.01f;
        std::fill(grad.data, grad.data + n, g);
        adamw_bf16_update(w.data, m.data, v.data, grad.data, n, 1.0f, c, {77, 5, step}, CPU);
        adamw_update_cpu(&w32, &m32, &v32, &g, 1, 1.0f, c, step);
        nearest = (float)bf16(mul_add(c.beta2, nearest, (1.0f - c.beta2) * g * g));
    }
    SecondMoment r;
    double square = 0.0;
    for (bf16 x : v.get()) {
        const double ratio = (float)x / v32;
        r.mean += ratio / n, square += ratio * ratio / n;
    }
    r.spread = std::sqrt(square - r.mean * r.mean), r.nearest = nearest / v32;
    return r;
}

// Rounded at random the mean follows fp32, with the spreads that the header of adamw_bf16.cuh names; rounded to nearest
// v neither falls nor finds its height
TEST(AdamWBf16, TheSecondMomentFollows) {
    const SecondMoment rising = second_moment(2000, 0), falling = second_moment(300, 1700);
    auto text = [](const SecondMoment& s) { return format("%.4f +- %.4f, nearest %.3f", s.mean, s.spread, s.nearest); };
    RecordProperty("rising", text(rising));
    RecordProperty("falling", text(falling));
    EXPECT_NEAR(rising.mean, 1.0, 0.01);
    EXPECT_NEAR(falling.mean, 1.0, 0.01);
    EXPECT_LT(rising.spread, 0.05);
    EXPECT_LT(falling.spread, 0.15);
    EXPECT_LT(rising.nearest, 0.8);
    EXPECT_GT(falling.nearest, 3.0);
}

// ---------------------------------------------------------------------------------------------------------------------
// 8-bit moments

TEST(AdamW8bit, MapsAreThoseOfBitsandbytes) {
    for (bool with_sign : {true, false}) {
        const std::vector<float> theirs = golden_floats(with_sign ? "map.signed" : "map.unsigned");
        const DynamicMap map = dynamic_map(with_sign);
        for (int u = 0; u < 256; u++) EXPECT_EQ(float_bits(map.value[u]), float_bits(theirs[u])) << u;
    }
}

// the code of each border, of its neighbours and of the entries
TEST(AdamW8bit, CodesAreTheNearest) {
    for (bool with_sign : {true, false}) {
        const DynamicMap map = dynamic_map(with_sign);
        std::vector<float> x = {-1.0f, 0.0f, 1e-30f, -1e-30f, 1.0f}, borders;
        for (int u = 0; u < 255; u++) {
            const float border = dynamic_map_border(map.value, u);
            borders.push_back(border);
            for (float y : {map.value[u], border, std::nextafterf(border, -2.0f), std::nextafterf(border, 2.0f)})
                x.push_back(y);
        }
        std::vector<uint8_t> codes(x.size());
        for (size_t i = 0; i < x.size(); i += 256)
            dynamic_map_codes_cpu(codes.data() + i, x.data() + i, (int)std::min<size_t>(256, x.size() - i),
                                  borders.data());
        for (size_t i = 0; i < x.size(); i++) {
            const int code = dynamic_map_code(map, x[i]);
            EXPECT_EQ(code, codes[i]) << x[i];
            double best = INFINITY;
            for (float value : map.value) best = std::min(best, std::fabs((double)value - x[i]));
            // a border is rounded itself
            EXPECT_NEAR(std::fabs((double)map.value[code] - x[i]), best, 1.3e-7 * std::fabs(x[i])) << x[i];
        }
        EXPECT_EQ(dynamic_map_code(map, NAN), 0);
    }
}

static Bytes run_8bit(const Backend& run, int64_t n, size_t offset, std::vector<float>* weights = nullptr) {
    const int64_t blocks = CEIL_DIV(n, ADAMW_8BIT_BLOCK);
    AdamWConfig c;
    c.learning_rate = 1e-2f, c.weight_decay = 0.1f;
    Full w(random_values<float>(n + offset + 3, 50, 0.1f), run.dev);
    Codes m(std::vector<uint8_t>(n), run.dev), v(std::vector<uint8_t>(n), run.dev);
    Full ma(std::vector<float>(blocks), run.dev), va(std::vector<float>(blocks), run.dev);
    for (int step = 1; step <= 3; step++) {
        std::vector<float> g = random_values<float>(n + offset + 3, 50 + step, 2.0f);
        for (int64_t i = 512; i < std::min<int64_t>(n, 768); i++) g[offset + i] = 0.0f;  // a block of zeros
        Full grad(g, run.dev);
        adamw_8bit_update(w.data + offset, {m.data, v.data, ma.data, va.data}, grad.data + offset, n, 0.7f, c, step,
                          run.dev);
    }
    if (weights) *weights = w.get();
    return Bytes() << w.get() << m.get() << v.get() << ma.get() << va.get();
}

TEST(AdamW8bit, EveryBackendGivesTheBitsOfTheLoops) {
    for (int64_t n : {1, 67, 256, 257, 1000, 4101})
        for (size_t offset : {0, 1}) {
            const std::string what = format("n %lld offset %zu", (long long)n, offset);
            expect_same_on_all_backends(what, [&](const Backend& run) { return run_8bit(run, n, offset); });
        }
    expect_same_for_any_threads<float>(
        [] {
            std::vector<float> w;
            run_8bit({"cpu", CPU, 0}, 4101, 0, &w);
            return w;
        },
        "threads");
}

TEST(AdamW8bit, TwentyStepsOfBitsandbytes) {
    const int64_t n = 4200, blocks = CEIL_DIV(n, ADAMW_8BIT_BLOCK);
    AdamWConfig c;
    c.learning_rate = 1e-2f, c.weight_decay = 0.1f;
    const std::vector<float> start = lcg_values(n, 1);
    std::vector<float> w = start, ma(blocks), va(blocks), w32 = start, m32(n), v32(n);
    std::vector<uint8_t> m(n), v(n);
    for (int step = 1; step <= 20; step++) {
        std::vector<float> g = lcg_values(n, 100 + step);
        for (int64_t i = 0; i < n; i++) g[i] *= std::ldexp(1.0f, -(int)(i % 4));
        adamw_8bit_update(w.data(), {m.data(), v.data(), ma.data(), va.data()}, g.data(), n, 1.0f, c, step, CPU);
        adamw_update(w32.data(), m32.data(), v32.data(), g.data(), n, 1.0f, c, step, CPU);
    }
    auto differ = [](const std::vector<uint8_t>& a, const std::vector<uint8_t>& b) {
        double count = 0.0;
        for (size_t i = 0; i < a.size(); i++) count += a[i] != b[i];
        return count / (double)a.size();
    };
    const double w_off = distance(w, golden_floats("adamw_8bit.w"), start), w_off32 = distance(w, w32, start);
    const double m_off = differ(m, golden_bytes("adamw_8bit.m")), v_off = differ(v, golden_bytes("adamw_8bit.v"));
    const double m_nearest = differ(m, golden_bytes("nearest.m")), v_nearest = differ(v, golden_bytes("nearest.v"));
    RecordProperty("measured", format("weights %.2e (fp32 moments: %.2e), codes of m %.4f v %.4f; of the nearest codes "
                                      "m %.4f v %.4f; absmax %.2e %.2e",
                                      w_off, w_off32, m_off, v_off, m_nearest, v_nearest,
                                      distance(ma, golden_floats("adamw_8bit.m_absmax")),
                                      distance(va, golden_floats("adamw_8bit.v_absmax"))));
    // the package's table of 2^16 steps gives a few codes that are not the nearest, and what follows from them
    EXPECT_LT(w_off, 0.01);
    EXPECT_LT(m_off, 0.05);
    EXPECT_LT(v_off, 0.1);
    EXPECT_LT(distance(ma, golden_floats("adamw_8bit.m_absmax")), 1e-3);
    EXPECT_LT(distance(va, golden_floats("adamw_8bit.v_absmax")), 1e-3);
    // the same formula with the nearest codes
    EXPECT_LT(m_nearest, 1e-3);
    EXPECT_LT(v_nearest, 1e-3);
    EXPECT_LT(w_off32, 0.15) << "8 bits are not 32, but near";
}

// ---------------------------------------------------------------------------------------------------------------------
// Muon

// the iteration in float64
static std::vector<double> newton_schulz_reference(const std::vector<float>& g, int64_t rows, int64_t cols, int steps) {
    const double a = 3.4445f, b = -4.7750f, c = 2.0315f;
    const bool tall = rows > cols;
    const int64_t m = std::min(rows, cols), n = std::max(rows, cols);
    std::vector<double> x(m * n), xx(m * m), p(m * m), y(m * n);
    double norm = 0.0;
    for (float f : g) norm += (double)f * f;
    norm = std::max(std::sqrt(norm), 1e-7);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) x[i * n + j] = g[tall ? j * m + i : i * n + j] / norm;
    auto product = [](std::vector<double>& out, const std::vector<double>& l, const std::vector<double>& r, int64_t M,
                      int64_t N, int64_t K, bool transposed) {
        for (int64_t i = 0; i < M; i++)
            for (int64_t j = 0; j < N; j++) {
                double sum = 0.0;
                for (int64_t k = 0; k < K; k++) sum += l[i * K + k] * (transposed ? r[j * K + k] : r[k * N + j]);
                out[i * N + j] = sum;
            }
    };
    for (int step = 0; step < steps; step++) {
        product(xx, x, x, m, m, n, true);
        product(p, xx, xx, m, m, m, true);
        for (int64_t i = 0; i < m * m; i++) p[i] = b * xx[i] + c * p[i];
        product(y, p, x, m, n, m, false);
        for (int64_t i = 0; i < m * n; i++) x[i] = a * x[i] + y[i];
    }
    if (!tall) return x;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) y[j * m + i] = x[i * n + j];
    return y;
}

TEST(NewtonSchulz, AgreesWithFloat64) {
    const int64_t shapes[][2] = {{1, 1},   {1, 7},   {7, 1},   {2, 2},     {13, 5},    {5, 13},
                                 {64, 64}, {33, 65}, {97, 96}, {100, 193}, {193, 100}, {130, 300}};
    double worst = 0.0;
    for (const auto& s : shapes) {
        const int64_t rows = s[0], cols = s[1];
        const std::vector<float> g = random_values<float>(rows * cols, 60, 3.0f);
        const std::vector<double> reference = newton_schulz_reference(g, rows, cols, 5);
        std::vector<float> first;
        for (const Backend& run : all_backends()) {
            if (run.order > 0 && run.name != "simt reverse" && rows * cols > 5000) continue;  // one other order will do
            select_backend(run);
            Full x(g, run.dev), work(newton_schulz_floats(rows, cols), run.dev);
            newton_schulz(x.data, work.data, rows, cols, 5, run.dev);
            const std::vector<float> got = x.get();
            work.get();  // its guard
            const std::string what = format("[%lld,%lld], %s", (long long)rows, (long long)cols, run.name.c_str());
            const double off = distance(got, reference);
            EXPECT_LT(off, 2e-6) << what;
            worst = std::max(worst, off);
            if (!run.dev.cuda) continue;
            if (first.empty()) first = got;
            EXPECT_TRUE(same_bits(first, got)) << what;
        }
        expect_same_for_any_threads<float>(
            [&] {
                std::vector<float> x = g, work(newton_schulz_floats(rows, cols));
                newton_schulz_cpu(x.data(), work.data(), rows, cols, 5);
                return x;
            },
            "threads");
    }
    RecordProperty("worst", format("%.2e", worst));
}

TEST(NewtonSchulz, ZeroStaysZeroAndTheResultIsNearlyOrthogonal) {
    for (const Backend& run : all_backends()) {
        select_backend(run);
        Full zero(std::vector<float>(6 * 9), run.dev), work(newton_schulz_floats(24, 40), run.dev);
        newton_schulz(zero.data, work.data, 6, 9, 5, run.dev);
        for (float f : zero.get()) ASSERT_EQ(f, 0.0f) << run.name;
        Full x(random_values<float>(24 * 40, 61), run.dev);
        newton_schulz(x.data, work.data, 24, 40, 5, run.dev);
        const std::vector<float> o = x.get();
        double sum = 0.0;
        for (float f : o) sum += (double)f * f;
        EXPECT_NEAR(sum / 24, 0.9, 0.25) << "mean square of the singular values, " << run.name;
        newton_schulz(nullptr, nullptr, 0, 9, 5, run.dev);
    }
}

static std::vector<float> run_muon(int64_t rows, int64_t cols, int steps, const Backend& run) {
    select_backend(run);
    const int64_t n = rows * cols;
    Full w(lcg_values(n, 2), run.dev), b(std::vector<float>(n), run.dev), work(muon_floats(rows, cols), run.dev);
    const std::vector<float> drift = lcg_values(n, 3);
    MuonConfig c;
    c.learning_rate = 0.02f, c.weight_decay = 0.1f;
    for (int step = 1; step <= steps; step++) {
        std::vector<float> g = lcg_values(n, 200 + step);
        for (int64_t i = 0; i < n; i++) g[i] += drift[i];
        Full grad(g, run.dev);
        muon_update(w.data, b.data, grad.data, work.data, rows, cols, 1.0f, c, run.dev);
        EXPECT_TRUE(same_bits(grad.get(), g)) << "the gradient was changed";
    }
    b.get(), work.get();
    return w.get();
}

// torch iterates in bf16: its updates are those of fp32 to its rounding
TEST(Muon, TwentyStepsOfTorch) {
    double worst = 1.0;
    for (auto [rows, cols] : {std::pair<int64_t, int64_t>{40, 24}, {24, 40}, {16, 16}})
        for (const Backend& run : all_backends())
            for (int steps : {1, 20}) {
                if (run.order != 0 || (run.dev.cuda && steps == 20 && rows != 40)) continue;  // slow where simulated
                const std::string name = format("muon.%lldx%lld.%d", (long long)rows, (long long)cols, steps);
                std::vector<float> start = lcg_values(rows * cols, 2), theirs = golden_floats(name);
                std::vector<float> ours = run_muon(rows, cols, steps, run);
                std::vector<double> moved(ours.size());
                for (size_t i = 0; i < ours.size(); i++) {
                    ours[i] -= start[i];
                    moved[i] = (double)theirs[i] - start[i];
                }
                const Agreement a = agreement(ours, moved);
                EXPECT_GT(a.cosine, 0.999) << name << ", " << run.name;
                EXPECT_NEAR(a.ratio, 1.0, 0.01) << name << ", " << run.name;
                worst = std::min(worst, a.cosine);
            }
    RecordProperty("worst", format("%.6f", worst));
}

// one step from zero momentum, by hand: nesterov and grad_scale are factors that the iteration takes out again
TEST(Muon, AStepAgainstFloat64) {
    const int64_t rows = 9, cols = 14, n = rows * cols;
    const std::vector<float> w0 = random_values<float>(n, 70), g = random_values<float>(n, 71),
                             b0 = random_values<float>(n, 72);
    for (bool nesterov : {true, false})
        for (const Backend& run : all_backends()) {
            select_backend(run);
            Full w(w0, run.dev), b(b0, run.dev), grad(g, run.dev), work(muon_floats(rows, cols), run.dev);
            MuonConfig c;
            c.learning_rate = 0.03f, c.weight_decay = 0.2f, c.momentum = 0.9f, c.nesterov = nesterov;
            muon_update(w.data, b.data, grad.data, work.data, rows, cols, 0.5f, c, run.dev);
            std::vector<float> u(n);
            std::vector<double> buffer(n), expected(n);
            for (int64_t i = 0; i < n; i++) {
                const double mu = c.momentum, x = (1.0 - mu) * 0.5 * g[i];
                buffer[i] = mu * b0[i] + x;
                u[i] = (float)(nesterov ? mu * buffer[i] + x : buffer[i]);
            }
            const std::vector<double> o = newton_schulz_reference(u, rows, cols, 5);
            for (int64_t i = 0; i < n; i++) expected[i] = w0[i] - 0.03 * (0.2 * std::sqrt(14.0) * o[i] + 0.2 * w0[i]);
            EXPECT_LT(distance(w.get(), expected), 1e-6) << run.name;
            EXPECT_LT(distance(b.get(), buffer), 1e-6) << run.name;
        }
}

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
    c.ns_steps = 2;  // the simulated GPU is slow
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
            for (int64_t step = 1; step <= 2; step++) one_step(t, step, 1e-3);
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
            const Device dev = what == Trained::all ? model_device() : CPU;
            TrainedModel t, again;
            open_trained(t, config_of(r->name), what, 1, dev);
            one_step(t, 1, 1e-3);
            optimizer_save(t.o, 1, path);
            open_trained(again, config_of(r->name), what, 1, dev);
            copy_on_device(again.m.master.data, t.m.master.data, t.m.master.bytes(), t.m.dev);
            copy_on_device(again.m.lora.master.data, t.m.lora.master.data, t.m.lora.master.bytes(), t.m.dev);
            copy_on_device(again.m.learned.data, t.m.learned.data, t.m.learned.bytes(), t.m.dev);
            EXPECT_EQ(optimizer_load(again.o, path), 1);
            EXPECT_EQ(state_bytes(again.o), state_bytes(t.o)) << r->name;
            one_step(t, 2, 1e-3), one_step(again, 2, 1e-3);
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

static const OptimizerTensor& tensor_of(const Optimizer& o, const std::string& name) {
    for (const OptimizerTensor& t : o.tensors)
        if (t.name == name) return t;
    fail("no %s", name.c_str());
}

TEST(Optimizer, TensorsGetTheirUpdate) {
    struct {
        const char *name, *matrix, *small, *norm, *embedding, *adapters;
    } cases[] = {{"adamw", "adamw", "adamw", "adamw", "adamw", "adamw"},
                 {"adamw_bf16", "adamw_bf16", "adamw_bf16", "adamw_bf16", "adamw_bf16", "adamw_bf16"},
                 {"adamw_8bit", "adamw_8bit", "adamw", "adamw", "adamw_8bit", "adamw"},
                 {"muon", "muon", "muon", "adamw", "adamw", "adamw"}};
    for (auto& c : cases) {
        TrainedModel t, adapter;
        open_trained(t, config_of(c.name), Trained::scales);
        open_trained(adapter, config_of(c.name), Trained::adapter);
        auto expect_rule = [&](const Optimizer& o, const char* tensor, const char* rule) {
            EXPECT_STREQ(tensor_of(o, tensor).rule->name, rule) << c.name << ", " << tensor;
        };
        expect_rule(t.o, "model.layers.0.mlp.up_proj.weight", c.matrix);
        expect_rule(t.o, "model.layers.0.self_attn.k_proj.weight", c.small);
        expect_rule(t.o, "model.norm.weight", c.norm);
        expect_rule(t.o, "model.layers.0.self_attn.q_proj.bias", c.norm);
        expect_rule(t.o, "model.embed_tokens.weight", c.embedding);
        expect_rule(t.o, "scales", "adamw");
        EXPECT_EQ(adapter.o.tensors.size(), 1u);
        if (adapter.m.lora.num_params < (size_t)ADAMW_8BIT_LEAST) expect_rule(adapter.o, "adapters", c.adapters);
    }
}

TEST(Optimizer, TextSaysWhichTensorsGetWhat) {
    TrainedModel t;
    open_trained(t, config_of("adamw"), Trained::adapter);
    EXPECT_EQ(optimizer_text(t.o), format("adamw for 1 tensor of %zu parameters (%s of state)", t.m.lora.num_params,
                                          bytes_text(8.0 * (double)t.m.lora.num_params).c_str()));
    TrainedModel muon;
    open_trained(muon, config_of("muon"), Trained::all);
    int64_t matrices = 0, rest = 0, rest_tensors = 0;
    for (const ParamTensor& p : muon.m.tensors) {
        (p.kind == ParamKind::linear ? matrices : rest) += p.count();
        rest_tensors += p.kind != ParamKind::linear;
    }
    EXPECT_EQ(optimizer_text(muon.o),
              format("adamw for %lld tensors of %lld parameters (%s of state), muon for 7 of %lld (%s)",
                     (long long)rest_tensors, (long long)rest, bytes_text(8.0 * (double)rest).c_str(),
                     (long long)matrices, bytes_text(4.0 * (double)matrices).c_str()));
}

// ---------------------------------------------------------------------------------------------------------------------
// hash of weights

static uint64_t hash_of(const std::vector<float>& x, int64_t skip, uint64_t place, Device dev) {
    TestBuffer<float> device(x, dev);
    TestBuffer<uint64_t> hash(std::vector<uint64_t>{5}, dev);
    weight_hash_add(hash.data, device.data + skip, (int64_t)x.size() - skip, place, dev);
    return hash.get()[0] - 5;
}

TEST(WeightHash, SeesEveryBitAndPlace) {
    for (size_t n : {1, 3, 4, 257, 1030, 65537, 131075})
        for (int64_t skip : {0, 1}) {
            std::vector<float> x = random_values<float>(n + 1, 3);
            uint64_t want = 0;
            for (size_t i = skip; i < x.size(); i++) want += weight_hash_term(x[i], 100 + i - skip);
            for (const Backend& run : all_backends()) {
                select_backend(run);
                EXPECT_EQ(hash_of(x, skip, 100, run.dev), want) << run.name << " " << n;
                EXPECT_NE(hash_of(x, skip, 101, run.dev), want) << run.name << " " << n;
            }
        }
    std::vector<float> x(300, 1.0f);
    const uint64_t want = hash_of(x, 0, 0, Device());
    for (size_t i : {0, 77, 299})
        for (int bit = 0; bit < 32; bit++) {
            std::vector<float> other = x;
            other[i] = bits_float(float_bits(1.0f) ^ 1u << bit);
            EXPECT_NE(hash_of(other, 0, 0, Device()), want) << i << " " << bit;
        }
    x[3] = 2.0f;
    std::vector<float> swapped = x;
    std::swap(swapped[3], swapped[200]);
    EXPECT_NE(hash_of(x, 0, 0, Device()), hash_of(swapped, 0, 0, Device()));
}
