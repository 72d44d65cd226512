// Learned scales (LSQ, PACT, LWC) against a float64 restatement of the loss that they descend, and scales under codes that
// stay.
#include "../kernels/adamw.cuh"
#include "../kernels/code_scale.cuh"
#include "quantized_tensor.h"
#include "test_rules.h"

typedef TestBuffer<floatX> Half;
typedef TestBuffer<float> Full;
static const Device CPU;

struct LearnedCase {
    const char* text;
    LearnedScale kind;
    int64_t rows, cols;
};

static std::vector<LearnedCase> learned_cases() {
    return {{"int4:g32", LearnedScale::lsq, 6, 64},
            {"int2:channel", LearnedScale::lsq, 5, 67},
            {"int4:g32:asym", LearnedScale::lsq, 6, 64},
            {"int8:tensor", LearnedScale::lsq, 130, 131},
            {"int4:g32:asym", LearnedScale::lsq_offset, 6, 64},
            {"int3:channel:asym", LearnedScale::lsq_offset, 3, 5000},
            {"mid4:g32", LearnedScale::lsq, 6, 64},
            {"mid2:channel", LearnedScale::lsq, 5, 67},
            {"mid3:tensor:gauss", LearnedScale::lsq, 130, 131},
            {"mid3:channel", LearnedScale::pact, 5, 67},
            {"int4:g32", LearnedScale::pact, 6, 64},
            {"int2:channel", LearnedScale::pact, 5, 5000},
            {"int4:g32", LearnedScale::lwc, 6, 64},
            {"int4:g64:amax7", LearnedScale::lwc, 6, 64},
            {"int3:channel:asym", LearnedScale::lwc, 5, 67}};
}

// a tensor with parameters of its grid
struct LearnedTensor : TestTensor {
    LearnedScale kind;
    Full parameters, gradients, grad;
    TestBuffer<Grid> range;
    LearnedTensor(const LearnedCase& c, const std::vector<float>& w, const std::vector<float>& d, Device dev)
        : TestTensor(c.text, c.rows, c.cols, w, dev),
          kind(c.kind),
          parameters(2 * t.groups, dev),
          gradients(std::vector<float>(2 * t.groups), dev),  // what accumulates
          grad(d, dev),
          range(t.groups, dev) {
        t.learned.a = parameters.data, t.learned.b = parameters.data + t.groups;
        t.learned.da = gradients.data, t.learned.db = gradients.data + t.groups;
        if (kind == LearnedScale::lwc) t.learned.range = range.data;
        t.grad = grad.data;
        t.quantizer.learned_scale = kind;
    }
    void refresh() { TestTensor::refresh(ScaleMode::learned); }
    void backward() { quantized_tensor_backward(t, t.grad, t.master, master.dev); }
};

// The loss sum dQ Q(w) as a function of one group's parameters, in float64, where what rounding adds to w/s, z and s is
// held (that is what passing it through means)
static double learned_surrogate(const LearnedTensor& x, const std::vector<float>& w, const std::vector<float>& d,
                                int64_t group, const std::vector<Grid>& grid, const std::vector<float>& at, double a,
                                double b) {
    const QuantSpec q = x.q.spec;
    const Grid g = grid[group];
    const bool middle = q.format != QuantFormat::integer;  // numbers are k + 1/2
    const double low = middle ? 0.5 - (1 << (q.bits - 1)) : quant_low(q), high = middle ? -low : quant_high(q);
    const double beyond = middle ? 0.5 : 0.0;
    const double a0 = at[group], b0 = at[x.t.groups + group];
    auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
    double least = 0, most = 0;
    for (int64_t i = group * x.t.group; i < (group + 1) * x.t.group; i++)
        least = std::min(least, (double)w[i]), most = std::max(most, (double)w[i]);
    auto exact = [&](double pa, double pb) {
        if (x.kind != LearnedScale::lwc) return pa;
        double lower = sigmoid(pb) * least, upper = sigmoid(pa) * most;
        if (!q.symmetric) return (upper - lower) / ((1 << q.bits) - 1);
        double divisor = q.rule == ScaleRule::amax7 ? high : ((1 << q.bits) - 1) / 2.0;
        return std::max(-lower, upper) / divisor;
    };
    auto zero_exact = [&](double pb, double s) {
        return x.kind == LearnedScale::lsq || x.kind == LearnedScale::pact ? (double)g.zero
               : q.symmetric                                               ? 0.0
               : x.kind == LearnedScale::lsq_offset                        ? -pb / s
                                                                           : -sigmoid(pb) * least / s;
    };
    double s = exact(a, b) + (g.scale - exact(a0, b0));
    double z = zero_exact(b, s) + (g.zero - zero_exact(b0, g.scale));
    double loss = 0;
    for (int64_t i = group * x.t.group; i < (group + 1) * x.t.group; i++) {
        float at_code = w[i] / g.scale + g.zero;
        const float at_scale = w[i] / g.scale;
        double level =
            middle ? std::min(std::max(std::floor((double)at_scale) + 0.5, low), high) : (double)rintf(at_scale);
        double value = at_code < low - beyond         ? (low - z) * s
                       : at_code > high + beyond      ? (high - z) * s
                       : x.kind == LearnedScale::pact ? w[i]
                                                      : w[i] + (level - (double)at_scale) * s;
        loss += d[i] * value;
    }
    return loss;
}

TEST(LearnedScale, GradientsAreThoseOfTheSurrogateOnEveryBackend) {
    for (const LearnedCase& c : learned_cases()) {
        const int64_t n = c.rows * c.cols;
        std::string what = format("%s kind %d", c.text, (int)c.kind);
        std::vector<float> w = random_values<float>(n, 160, 0.5f), d = random_values<float>(n, 161);
        for (float& v : w) v = v * v * v * 4 + 0.03f;
        Bytes bits;
        for (const Backend& run : all_backends()) {
            select_backend(run);
            LearnedTensor x(c, w, d, run.dev);
            x.refresh();
            // narrower than the weights, so that some lie outside
            std::vector<float> at = x.parameters.get();
            for (size_t i = 0; i < at.size(); i++) {
                if (c.kind == LearnedScale::lwc) at[i] = 1.0f + 0.1f * (float)(i % 5);
                else at[i] = (float)bf16(at[i] * (0.6f + 0.05f * (float)(i % 4)));
            }
            copy_to_device(x.parameters.data, at.data(), at.size() * sizeof(float), run.dev);
            x.refresh();
            std::vector<Grid> grid = x.grid.get();
            x.backward();
            std::vector<float> got = x.gradients.get(), dw = x.grad.get();
            const bool scaled = c.kind == LearnedScale::lsq || c.kind == LearnedScale::lsq_offset;
            const int most = (1 << (x.q.spec.symmetric ? x.q.spec.bits - 1 : x.q.spec.bits)) - 1;  // of an integer
            const double h = scaled ? 1.0 / std::sqrt((double)n * most) : 1.0;
            double largest = 0;
            int64_t outside = 0;
            for (int64_t i = 0; i < n; i++) {
                bool in = quant_passes(x.q.spec, SteRule::clip, w[i], grid[i / x.t.group]);
                EXPECT_EQ(dw[i], in ? d[i] : 0.0f) << what << ", " << run.name;
                outside += !in;
            }
            EXPECT_GT(outside, 0) << what;
            for (int64_t k = 0; k < x.t.groups; k++)
                for (int which = 0; which < 2; which++) {
                    double a = at[k], b = at[x.t.groups + k];
                    double& moved = which ? b : a;
                    double start = moved, step = std::max(1e-4, std::fabs(start) * 1e-4);
                    moved = start + step;
                    double up = learned_surrogate(x, w, d, k, grid, at, a, b);
                    moved = start - step;
                    double down = learned_surrogate(x, w, d, k, grid, at, a, b);
                    double expected = h * (up - down) / (2 * step), value = got[which * x.t.groups + k];
                    double scale = h * std::sqrt((double)x.t.group) * (c.kind == LearnedScale::lwc ? 0.1 : 1.0);
                    EXPECT_NEAR(value, expected, 1e-3 * std::fabs(expected) + 2e-4 * scale)
                        << what << ", " << run.name << ", group " << k << ", parameter " << which;
                    largest = std::max(largest, std::fabs(expected) / scale);
                }
            EXPECT_GT(largest, 0.01) << what;
            Bytes now;
            now << grid << dw << x.work.get() << x.codes.get();
            if (run.name == "cpu") bits = now;
            EXPECT_EQ(now.bytes, bits.bytes) << what << ", " << run.name;
        }
    }
}

TEST(LearnedScale, StartsAtTheMeasuredGridAndStaysAboveTheLeastScale) {
    for (const LearnedCase& c : learned_cases()) {
        const int64_t n = c.rows * c.cols;
        std::vector<float> w = random_values<float>(n, 170, 0.5f), d(n, 0.0f);
        LearnedTensor x(c, w, d, CPU);
        TestTensor measured(c.text, c.rows, c.cols, w, CPU);
        x.refresh();
        measured.refresh(ScaleMode::dynamic);
        if (c.kind != LearnedScale::lwc) {
            EXPECT_TRUE(same_bits(x.codes.get(), measured.codes.get())) << c.text;
            EXPECT_TRUE(same_bits(x.grid.get(), measured.grid.get())) << c.text;
            for (int64_t k = 0; k < x.t.groups; k++) x.t.learned.a[k] = -1.0f;
            x.refresh();
            for (const Grid& g : x.grid.get()) EXPECT_EQ(g.scale, QUANT_LEAST_SCALE) << c.text;
            for (int64_t k = 0; k < x.t.groups; k++) EXPECT_EQ(x.t.learned.a[k], QUANT_LEAST_SCALE) << c.text;
        } else {
            for (int64_t k = 0; k < x.t.groups; k++)
                EXPECT_NEAR(x.grid.get()[k].scale / measured.grid.get()[k].scale, 0.982, 0.01) << c.text;
        }
    }
}

// Descent on sum (Q(w) - w)^2 along the gradients finds grids that are better than the measured ones
TEST(LearnedScale, DescentLowersTheError) {
    for (const LearnedCase& c : {LearnedCase{"int3:channel", LearnedScale::lsq, 4, 256},
                                 {"mid2:channel", LearnedScale::lsq, 4, 256},
                                 {"int3:channel:asym", LearnedScale::lsq_offset, 4, 256},
                                 {"int3:channel:asym", LearnedScale::lwc, 4, 256},
                                 {"int3:channel", LearnedScale::lwc, 4, 256}}) {
        const int64_t n = c.rows * c.cols;
        std::vector<float> w = random_values<float>(n, 180, 0.5f);
        for (float& v : w) v = v * v * v * 4 + 0.05f;
        LearnedTensor x(c, w, w, CPU);
        std::vector<float> m(2 * x.t.groups), v(2 * x.t.groups);
        AdamWConfig adam;
        adam.learning_rate = c.kind == LearnedScale::lwc ? 0.05f : 0.002f;
        double first = 0, least = INFINITY;
        for (int step = 1; step <= 100; step++) {
            x.refresh();
            double error = 0;
            for (int64_t i = 0; i < n; i++) {
                float off = (float)x.work.data[i] - w[i];
                error += (double)off * off;
                x.grad.data[i] = 2 * off;
            }
            if (step == 1) first = error;
            least = std::min(least, error);
            x.backward();
            adamw_update(x.parameters.data, m.data(), v.data(), x.gradients.data, 2 * x.t.groups, 1.0f, adam, step,
                         CPU);
        }
        EXPECT_LT(least, 0.97 * first) << c.text << " kind " << (int)c.kind;
    }
}

// the gradient against its sum in double and the numbers against their formula; rounded again they have their codes, at any
// scale: what E2E-QP rests on
TEST(CodeScale, GradientAndNumbersUnderCodesThatStay) {
    struct Case {
        const char* weights;
        int64_t rows, cols;
    };
    for (const Case& c : {Case{"int2:g8:asym", 3, 40}, Case{"int4:g33:sym", 5, 66}, Case{"int8:channel:asym", 9, 301},
                          Case{"int3:tensor:sym", 7, 31}}) {
        QuantizedTensor t;
        t.rows = c.rows, t.cols = c.cols;
        quantized_tensor_init(t, quantizer_parse(c.weights, "weights"));
        const QuantSpec q = t.quantizer.spec;
        const QuantGroups shape = quantized_tensor_groups(t);
        const int64_t n = t.count();
        const std::vector<float> w = random_values<float>(n, 61, 0.3f), dw = random_values<float>(n, 62);
        std::vector<float> a = random_values<float>(t.groups, 63), out(n);
        std::vector<int8_t> codes(n);
        std::vector<Grid> grid(t.groups);
        fake_quant_forward_cpu(out.data(), codes.data(), grid.data(), ScaleState(), w.data(), shape, q, true);
        for (float& x : a) x = 0.02f + std::fabs(x);
        a[0] = -1.0f;  // a scale that a step has taken too far
        expect_same_on_all_backends(c.weights, [&](const Backend& run) {
            TestBuffer<float> ds(t.groups, run.dev), d(dw, run.dev), scale(a, run.dev), x(n, run.dev);
            TestBuffer<int8_t> k(codes, run.dev);
            TestBuffer<Grid> g(grid, run.dev);
            code_scale_backward(ds.data, d.data, k.data, g.data, shape, q, run.dev);
            code_scale_forward(x.data, scale.data, k.data, g.data, shape, q, run.dev);
            const std::vector<float> sums = ds.get(), values = x.get(), left = d.get();
            for (int64_t i = 0; i < t.groups; i++) {
                double exact = 0.0, size = 0.0;
                const Grid now = {quant_round_scale(std::max(a[i], QUANT_LEAST_SCALE)), grid[i].zero};
                for (int64_t j = i * t.group; j < (i + 1) * t.group; j++) {
                    const double term = (double)dw[j] * (double)quant_value(q, codes[j], Grid{1.0f, grid[i].zero});
                    exact += term, size += std::fabs(term);
                    EXPECT_EQ(left[j], 0.0f);
                    EXPECT_EQ(values[j], quant_value(q, codes[j], now)) << c.weights;
                    EXPECT_EQ(quant_code(q, values[j], now), codes[j]) << c.weights;
                }
                EXPECT_NEAR(sums[i], exact, 1e-6 * size) << c.weights << " group " << i << ", " << run.name;
            }
            return Bytes() << sums << values << left;
        });
    }
}

TEST(LearnedScale, RefusedWhereItMakesNoSense) {
    auto refused = [](const char* text, LearnedScale kind, bool stochastic) {
        try {
            Quantizer q = quantizer_parse(text, "weights");
            q.scale_mode = stochastic ? ScaleMode::dynamic : ScaleMode::learned;
            q.learned_scale = kind, q.stochastic = stochastic;
            check_trained(q);
            return false;
        } catch (const Error& e) {
            EXPECT_EQ(e.exit_code, 2);
            EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
            return true;
        }
    };
    for (const char* text : {"nf4:g64", "fp8e4m3:channel", "mxfp4", "nvfp4", "ternary:tensor"}) {
        EXPECT_TRUE(refused(text, LearnedScale::lsq, false)) << text;
        EXPECT_TRUE(refused(text, LearnedScale::lsq, true)) << text;
    }
    EXPECT_TRUE(refused("int4:g32:sym:signedmax", LearnedScale::lsq, false));
    EXPECT_TRUE(refused("int4:g32:sym", LearnedScale::lsq_offset, false));
    EXPECT_FALSE(refused("int4:g32:asym", LearnedScale::lsq_offset, false));
    EXPECT_FALSE(refused("int4:g32:sym", LearnedScale::lwc, false));
    EXPECT_FALSE(refused("int4:g32:sym", LearnedScale::lsq, true));
    for (LearnedScale kind : {LearnedScale::lsq_offset, LearnedScale::lwc})
        EXPECT_TRUE(refused("mid4:g32", kind, false));
    for (LearnedScale kind : {LearnedScale::lsq, LearnedScale::pact})
        EXPECT_FALSE(refused("mid2:channel", kind, false));
    EXPECT_TRUE(refused("mid4:g32", LearnedScale::lsq, true));
    EXPECT_TRUE(refused("int4:g32:asym", LearnedScale::pact, false));
    EXPECT_FALSE(refused("int4:g32:sym", LearnedScale::pact, false));
    Quantizer q = quantizer_parse("int4:g32", "weights");
    q.stochastic = true, q.ste = {SteRule::ewgs, 0.1f};
    EXPECT_THROW(check_trained(q), Error);
}
