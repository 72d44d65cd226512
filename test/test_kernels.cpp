// The operators of kernels/ (rmsnorm, gemm and the quantizers have their own files) against float64 restatements:
// outputs poisoned before, accumulation where the header says so, the same bits for any number of threads and any
// batch; and what they stand on: number formats, Philox, exp_f.
#include "attention_reference.h"
#include <algorithm>
#include <functional>
#include <numeric>
#include "../kernels/adamw.cuh"
#include "../kernels/attention.cuh"
#include "../kernels/embedding.cuh"
#include "../kernels/global_norm.cuh"
#include "../kernels/linear.cuh"
#include "../kernels/lm_head.cuh"
#include "../kernels/rope.cuh"
#include "../kernels/sampling.cuh"
#include "../kernels/swiglu.cuh"
#include "../runtime/math.h"

// one rounding to floatX, relative
static constexpr double ULP = sizeof(floatX) == 2 ? 1.0 / 256 : 1.0 / (1 << 23);

typedef TestBuffer<floatX> Half;
typedef TestBuffer<float> Full;
static const Device CPU;

// |a - reference| <= relative |reference| + absolute for every element; false for NaN
template <class T>
static void expect_close(const std::vector<T>& a, const std::vector<double>& reference, double relative,
                         double absolute, const std::string& what) {
    ASSERT_EQ(a.size(), reference.size()) << what;
    for (size_t i = 0; i < a.size(); i++)
        ASSERT_TRUE(std::fabs((double)(float)a[i] - reference[i]) <= relative * std::fabs(reference[i]) + absolute)
            << what << ": element " << i << " is " << (float)a[i] << ", not " << reference[i];
}

template <class T>
static std::vector<double> widen(const std::vector<T>& v) {
    std::vector<double> d(v.size());
    for (size_t i = 0; i < v.size(); i++) d[i] = (double)(float)v[i];
    return d;
}

template <class T>
static void append(std::vector<float>& to, const std::vector<T>& v) {
    for (const T& x : v) to.push_back((float)x);
}

static std::vector<int> random_ints(size_t n, uint32_t tensor, int below) {
    std::vector<int> v(n);
    for (size_t i = 0; i < n; i++) v[i] = (int)(rng_bits(2, RNG_INIT, tensor, (uint32_t)i, 0).x[0] % (uint32_t)below);
    return v;
}

static float uniform(uint32_t tensor, uint32_t i) { return uniform01(rng_bits(3, RNG_INIT, tensor, i, 0).x[0]); }

// ---------------------------------------------------------------------------------------------------------------------
// number formats

// the nearest of the `count` non-negative numbers value(0) < value(1) < ..., ties to the even index, by bisection in
// float64; above the last one and half a step: count (infinity)
static uint32_t nearest_pattern(double x, uint32_t count, const std::function<double(uint32_t)>& value) {
    uint32_t low = 0, high = count - 1;
    if (x >= value(high)) {
        double step = value(high) - value(high - 1), over = x - value(high);
        return over > step / 2 || (over == step / 2 && high % 2) ? count : high;
    }
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        (value(middle) <= x ? low : high) = middle;
    }
    double below = x - value(low), above = value(high) - x;
    return below < above || (below == above && low % 2 == 0) ? low : high;
}

TEST(Dtypes, EveryBf16PatternSurvives) {
    for (uint32_t b = 0; b < 65536; b++) {
        float x = bf16_bits_to_float((uint16_t)b);
        bool nan = (b & 0x7F80) == 0x7F80 && (b & 0x7F);
        ASSERT_EQ(float_bits(x), b << 16);
        ASSERT_EQ(std::isnan(x), nan);
        ASSERT_EQ(float_to_bf16_bits(x), nan ? b | 0x40 : b) << b;
        bf16 wrapped(x);
        ASSERT_EQ(float_bits((float)wrapped), nan ? (b | 0x40) << 16 : b << 16);
    }
}

TEST(Dtypes, EveryFp16PatternSurvives) {
    for (uint32_t h = 0; h < 65536; h++) {
        float x = fp16_bits_to_float((uint16_t)h);
        int exponent = (h >> 10) & 31, mantissa = h & 1023;
        if (exponent == 31 && mantissa) {
            ASSERT_TRUE(std::isnan(x));
            ASSERT_TRUE(std::isnan(fp16_bits_to_float(float_to_fp16_bits(x))));
            continue;
        }
        double expected = exponent == 31  ? INFINITY
                          : exponent == 0 ? std::ldexp(mantissa, -24)
                                          : std::ldexp(1024 + mantissa, exponent - 25);
        ASSERT_EQ((double)x, h & 0x8000 ? -expected : expected) << h;
        ASSERT_EQ(std::signbit(x), (h & 0x8000) != 0);
        ASSERT_EQ(float_to_fp16_bits(x), h);
    }
}

TEST(Dtypes, RoundingIsToNearestEven) {
    auto bf16_value = [](uint32_t i) { return (double)bf16_bits_to_float((uint16_t)i); };
    auto fp16_value = [](uint32_t i) { return (double)fp16_bits_to_float((uint16_t)i); };
    auto check = [&](float x) {
        for (float y : {x, -x}) {
            uint32_t sign = y < 0 ? 0x8000u : 0u;
            ASSERT_EQ(float_to_bf16_bits(y), sign | nearest_pattern(std::fabs((double)y), 0x7F80, bf16_value)) << y;
            ASSERT_EQ(float_to_fp16_bits(y), sign | nearest_pattern(std::fabs((double)y), 0x7C00, fp16_value)) << y;
        }
    };
    // each number, each midpoint, and the floats beside them
    for (uint32_t i = 0; i + 1 < 0x7F80; i += 7)
        for (uint32_t u : {0x7FFFu, 0x8000u, 0x8001u})
            if ((i << 16) + u) check(bits_float((i << 16) + u));
    for (uint32_t i = 0; i + 1 < 0x7C00; i += 3) {
        uint32_t u = float_bits((float)((fp16_value(i) + fp16_value(i + 1)) / 2));
        for (uint32_t v : {u - 1, u, u + 1}) check(bits_float(v));
    }
    for (uint32_t i = 0; i < 20000; i++) {
        float x = std::fabs(bits_float(rng_bits(1, RNG_TASK, i, 0, 0).x[0]));
        if (std::isfinite(x) && x > 0) check(x);
    }
    for (float x :
         {65504.0f, 65519.0f, 65520.0f, 65535.9f, 65536.0f, 1e38f, 3.4028235e38f, 3.3961e38f, 2.98e-8f, 1e-45f})
        check(x);
    EXPECT_EQ(float_to_bf16_bits(-0.0f), 0x8000);
    EXPECT_EQ(float_to_fp16_bits(-0.0f), 0x8000);
    EXPECT_EQ(float_to_bf16_bits(INFINITY), 0x7F80);
    EXPECT_EQ(float_to_fp16_bits(-INFINITY), 0xFC00);
    EXPECT_TRUE(std::isnan((float)bf16(bits_float(0x7F800001u))));  // its payload lies in the bits cut off
}

// ---------------------------------------------------------------------------------------------------------------------
// random numbers and elementary functions

TEST(Philox, KnownAnswersOfRandom123) {
    struct {
        uint32_t counter[4], key[2], expected[4];
    } vectors[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (auto& v : vectors) {
        Philox4 r = philox4x32_10(v.counter[0], v.counter[1], v.counter[2], v.counter[3], v.key[0], v.key[1]);
        for (int i = 0; i < 4; i++) EXPECT_EQ(r.x[i], v.expected[i]);
    }
    // every argument matters
    Philox4 base = rng_bits(5, RNG_SAMPLE, 1, 2, 3);
    for (Philox4 other : {rng_bits(6, RNG_SAMPLE, 1, 2, 3), rng_bits(5 + (1ull << 32), RNG_SAMPLE, 1, 2, 3),
                          rng_bits(5, RNG_EVAL, 1, 2, 3), rng_bits(5, RNG_SAMPLE, 0, 2, 3),
                          rng_bits(5, RNG_SAMPLE, 1, 0, 3), rng_bits(5, RNG_SAMPLE, 1, 2, 0)})
        EXPECT_NE(memcmp(&base, &other, sizeof(base)), 0);
}

TEST(Philox, Uniform01LiesInZeroOneAndIsEven) {
    EXPECT_EQ(uniform01(0), 0.0f);
    EXPECT_EQ(uniform01(~0u), 1.0f - 1.0f / (1 << 24));
    const int bins = 64, n = 64000;
    std::vector<int> count(bins);
    for (int i = 0; i < n; i++) count[(int)(uniform01(rng_bits(1, RNG_SAMPLE, 0, 0, i).x[0]) * bins)]++;
    double chi = 0;
    for (int c : count) chi += (c - n / bins) * (double)(c - n / bins) / ((double)n / bins);
    EXPECT_LT(chi, 103.4);  // 0.1% of 63 degrees of freedom
    EXPECT_GT(chi, 34.0);   // and not too even
}

TEST(ExpF, WithinOneAndAHalfUlpOverTheWholeRange) {
    double worst = 0;
    float worst_x = 0;
    auto check = [&](float x) {
        double expected = std::exp((double)x);
        float near = (float)expected;
        double ulp = (double)std::nextafter(near, INFINITY) - (double)near;
        double off = std::fabs((double)exp_f(x) - expected) / ulp;
        if (!(off <= worst)) worst = off, worst_x = x;
    };
    for (int64_t i = 0; i <= 3000000; i++) check((float)(-87.0 + 175.0 * (double)i / 3000000.0));
    for (uint32_t u = 0x30000000u; u < 0x42AE0000u; u += 997)  // 5e-10 to 87, evenly in the exponent
        for (float x : {bits_float(u), -bits_float(u)}) check(x);
    printf("exp_f: at most %.3f ulp (at %.9g)\n", worst, worst_x);
    EXPECT_LE(worst, 1.5);
    EXPECT_EQ(exp_f(0.0f), 1.0f);
    EXPECT_EQ(exp_f(-0.0f), 1.0f);
}

TEST(ExpF, SaturatesAndKeepsNaN) {
    for (float x : {-87.5f, -1000.0f, -3e38f, -INFINITY}) EXPECT_EQ(exp_f(x), exp_f(-87.0f)) << x;
    for (float x : {88.5f, 1000.0f, 3e38f, INFINITY}) EXPECT_EQ(exp_f(x), exp_f(88.0f)) << x;
    EXPECT_NEAR(exp_f(-87.0f), 1.6458e-38, 1e-41);
    EXPECT_NEAR(exp_f(88.0f) / 1.6516e38, 1.0, 1e-3);
    EXPECT_TRUE(std::isnan(exp_f(NAN)));
    EXPECT_TRUE(std::isnan(exp_f(-NAN)));
    for (float x : {0.0f, 1.0f, -3.5f, 20.0f, -20.0f})
        EXPECT_NEAR(sigmoid_f(x) * (1 + std::exp(-(double)x)), 1.0, 5e-7) << x;
    EXPECT_EQ(sigmoid_f(200.0f), 1.0f);
    EXPECT_GE(sigmoid_f(-200.0f), 0.0f);
    EXPECT_LE(sigmoid_f(-200.0f), 1e-37f);
}

// ---------------------------------------------------------------------------------------------------------------------
// embedding

TEST(Embedding, ForwardCopiesAndBackwardAdds) {
    for (int64_t C : {1, 3, 64, 65, 200})
        for (int64_t T : {1, 7, 66}) {
            const int64_t V = 13;
            std::string what = format("T %lld C %lld", (long long)T, (long long)C);
            std::vector<int> tokens = random_ints(T, 10, (int)V - 1);  // row V-1 is never used
            tokens[0] = 0;
            std::vector<floatX> wte = random_values<floatX>(V * C, 11), dout = random_values<floatX>(T * C, 12);
            std::vector<float> before = random_values<float>(V * C, 13);
            Half w(wte, CPU), out(T * C, CPU), d(dout, CPU);
            embedding_forward_cpu(out.data, tokens.data(), w.data, T, C);
            std::vector<floatX> copied;
            std::vector<double> expected = widen(before);
            for (int64_t t = 0; t < T; t++)
                for (int64_t c = 0; c < C; c++) {
                    copied.push_back(wte[tokens[t] * C + c]);
                    expected[tokens[t] * C + c] += (double)(float)dout[t * C + c];
                }
            EXPECT_TRUE(same_bits(out.get(), copied)) << what;
            expect_same_for_any_threads<float>(
                [&] {
                    Full dwte(before, CPU);
                    embedding_backward_cpu(dwte.data, d.data, tokens.data(), T, C);
                    return dwte.get();
                },
                what);
            Full dwte(before, CPU);
            embedding_backward_cpu(dwte.data, d.data, tokens.data(), T, C);
            std::vector<float> got = dwte.get();
            expect_close(got, expected, 1e-5, 1e-5, what);
            for (int64_t c = 0; c < C; c++) EXPECT_EQ(got[(V - 1) * C + c], before[(V - 1) * C + c]) << what;
        }
}

// ---------------------------------------------------------------------------------------------------------------------
// rope

struct RopeCase {
    int64_t T;
    int H, HD;
    int64_t gap;  // elements between the rows
};

TEST(Rope, ForwardAndBackwardAgainstFloat64) {
    for (RopeCase c : {RopeCase{1, 1, 2, 0}, {5, 3, 6, 4}, {33, 2, 16, 0}, {9, 1, 64, 64}, {70, 3, 128, 10}}) {
        std::string what = format("T %lld H %d HD %d", (long long)c.T, c.H, c.HD);
        const int64_t width = (int64_t)c.H * c.HD, stride = width + c.gap, half = c.HD / 2;
        RopeTable table;
        rope_init(table, c.HD, 10000.0, false, 1, 1, 4, 0);
        std::vector<int> positions = random_ints(c.T, 20, 3000);
        positions[0] = 0;
        rope_extend(table, *std::max_element(positions.begin(), positions.end()) + 1);
        std::vector<floatX> x = random_values<floatX>(c.T * stride, 21), dy = random_values<floatX>(c.T * stride, 22);
        Half in(x, CPU), out(c.T * width, CPU), in_place(x, CPU), gradient(dy, CPU);
        rope_forward_cpu({out.data, width}, {in.data, stride}, positions.data(), table, c.T, c.H);
        rope_forward_cpu({in_place.data, stride}, {in_place.data, stride}, positions.data(), table, c.T, c.H);
        rope_backward_cpu({gradient.data, stride}, positions.data(), table, c.T, c.H);
        std::vector<floatX> y = out.get(), yy = in_place.get(), dx = gradient.get();
        for (int64_t t = 0; t < c.T; t++) {
            for (int h = 0; h < c.H; h++)
                for (int64_t i = 0; i < half; i++) {
                    // the angle is a float product in transformers too, which matters at long positions
                    float frequency = 1.0f / powf(10000.0f, (float)(2 * i) / (float)c.HD);
                    double angle = (double)((float)positions[t] * frequency), co = cos(angle), si = sin(angle);
                    int64_t a = t * stride + h * c.HD + i, b = a + half, ya = t * width + h * c.HD + i;
                    double x1 = (float)x[a], x2 = (float)x[b], d1 = (float)dy[a], d2 = (float)dy[b];
                    double bound = ULP + 1e-6;
                    ASSERT_NEAR((float)y[ya], x1 * co - x2 * si, bound) << what;
                    ASSERT_NEAR((float)y[ya + half], x2 * co + x1 * si, bound) << what;
                    ASSERT_NEAR((float)dx[a], d1 * co + d2 * si, bound) << what;  // the transpose
                    ASSERT_NEAR((float)dx[b], d2 * co - d1 * si, bound) << what;
                }
            for (int64_t i = 0; i < stride; i++) {
                if (i < width) {
                    ASSERT_EQ((float)yy[t * stride + i], (float)y[t * width + i]) << what;
                } else {
                    ASSERT_EQ((float)yy[t * stride + i], (float)x[t * stride + i]) << what << ": gap";
                    ASSERT_EQ((float)dx[t * stride + i], (float)dy[t * stride + i]) << what << ": gap";
                }
            }
        }
        expect_same_for_any_threads<floatX>(
            [&] {
                Half o(c.T * width, CPU);
                rope_forward_cpu({o.data, width}, {in.data, stride}, positions.data(), table, c.T, c.H);
                return o.get();
            },
            what);
    }
}

TEST(Rope, TableGrowsWithoutChanging) {
    RopeTable small, large;
    rope_init(small, 8, 500000.0, false, 1, 1, 4, 0);
    rope_init(large, 8, 500000.0, false, 1, 1, 4, 0);
    rope_extend(large, 1000);
    for (int n : {1, 2, 10, 400, 1000}) rope_extend(small, n);
    ASSERT_GE(small.positions, 1000);
    for (int i = 0; i < 1000 * 4; i++) {
        ASSERT_EQ(small.cos[i], large.cos[i]);
        ASSERT_EQ(small.sin[i], large.sin[i]);
    }
    rope_extend(small, 3);
    EXPECT_GE(small.positions, 1000);
}

TEST(Rope, Llama3ScalesEachBandOfWavelengths) {
    const double factor = 32, low = 1, high = 4, original = 8192;  // Llama 3.2 1B
    RopeTable plain, scaled;
    rope_init(plain, 64, 500000.0, false, factor, low, high, original);
    rope_init(scaled, 64, 500000.0, true, factor, low, high, original);
    int kept = 0, blended = 0, stretched = 0;
    for (int i = 0; i < 32; i++) {
        double f = plain.inv_freq[i], wavelength = 2 * M_PI / f, expected;
        EXPECT_NEAR(f / std::pow(500000.0, -2.0 * i / 64), 1.0, 1e-6);
        if (wavelength < original / high) {
            kept++;
            expected = f;
        } else if (wavelength > original / low) {
            stretched++;
            expected = f / factor;
        } else {
            blended++;
            double smooth = (original / wavelength - low) / (high - low);
            expected = f * ((1 - smooth) / factor + smooth);
            EXPECT_TRUE(expected > f / factor && expected < f);
        }
        EXPECT_NEAR(scaled.inv_freq[i] / expected, 1.0, 1e-12) << i;
    }
    EXPECT_TRUE(kept > 0 && blended > 0 && stretched > 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// attention

struct AttentionCase {
    std::vector<int> lengths;
    int NH, NKV, HD;
    float scale;  // of q and k
};

static std::vector<AttentionCase> attention_cases() {
    return {{{1}, 1, 1, 1, 1.0f},       {{3, 1, 2}, 2, 1, 2, 1.0f}, {{1, 9, 4}, 6, 2, 7, 1.0f},
            {{17, 33}, 4, 4, 16, 2.0f}, {{70, 5}, 4, 2, 64, 1.0f},  {{300}, 3, 1, 8, 1.0f},
            {{40, 2}, 2, 2, 16, 30.0f}};  // scores of several hundred: a softmax near one-hot
}

struct AttentionData {
    int64_t T = 0;
    std::vector<int> starts;
    std::vector<KeyRange> ranges;
    std::vector<floatX> q, k, v, dout;
    AttentionData(const AttentionCase& c) {
        starts.push_back(0);
        for (int n : c.lengths) {
            for (int i = 0; i < n; i++) {
                KeyRange r;
                r.row0 = T, r.n0 = i + 1;
                ranges.push_back(r);
            }
            starts.push_back((int)(T += n));
        }
        q = random_values<floatX>(T * c.NH * c.HD, 30, c.scale);
        k = random_values<floatX>(T * c.NKV * c.HD, 31, c.scale);
        v = random_values<floatX>(T * c.NKV * c.HD, 32);
        dout = random_values<floatX>(T * c.NH * c.HD, 33);
    }
};

static KeyValueRows rows_of(const Half& k, const Half& v, int64_t stride) { return {k.data, v.data, stride, stride}; }

TEST(Attention, ForwardAgainstFloat64) {
    for (const AttentionCase& c : attention_cases()) {
        AttentionData x(c);
        AttentionReference ref(x.q, x.k, x.v, x.dout, x.starts, c.NH, c.NKV, c.HD);
        std::string what = format("T %lld NH %d NKV %d HD %d", (long long)x.T, c.NH, c.NKV, c.HD);
        const int64_t qw = (int64_t)c.NH * c.HD, kw = (int64_t)c.NKV * c.HD;
        Half q(x.q, CPU), k(x.k, CPU), v(x.v, CPU);
        auto run = [&] {
            Half out(x.T * qw, CPU);
            Full lse(x.T * c.NH, CPU);
            attention_forward_cpu(out.data, lse.data, {q.data, qw}, rows_of(k, v, kw), KeyValueRows(), x.ranges.data(),
                                  {x.T, c.NH, c.NKV, c.HD});
            std::vector<float> both;
            append(both, out.get());
            append(both, lse.get());
            return both;
        };
        std::vector<float> both = run(), out(both.begin(), both.begin() + x.T * qw),
                           lse(both.begin() + x.T * qw, both.end());
        expect_close(out, ref.out, ULP, 2e-6 * c.scale * c.scale, what);
        expect_close(lse, ref.lse, 1e-6, 2e-6 * c.scale * c.scale, what);
        expect_same_for_any_threads<float>(run, what);
    }
}

// A query's bits do not depend on where its keys lie, how they are divided between the two places, nor on its batch
TEST(Attention, TheSameBitsWhereverTheKeysLie) {
    for (const AttentionCase& c : attention_cases()) {
        AttentionData x(c);
        const int64_t qw = (int64_t)c.NH * c.HD, kw = (int64_t)c.NKV * c.HD;
        Half q(x.q, CPU), k(x.k, CPU), v(x.v, CPU), out(x.T * qw, CPU);
        Full lse(x.T * c.NH, CPU);
        attention_forward_cpu(out.data, lse.data, {q.data, qw}, rows_of(k, v, kw), KeyValueRows(), x.ranges.data(),
                              {x.T, c.NH, c.NKV, c.HD});
        std::vector<floatX> all = out.get();
        std::vector<float> all_lse = lse.get();
        for (size_t s = 0; s + 1 < x.starts.size(); s++) {
            int64_t t = x.starts[s + 1] - 1;  // the last query of a sequence, alone
            int n = x.ranges[t].n0;
            for (int split : {0, 1, n / 2, n - 1, n}) {
                if (split < 0 || split > n) continue;
                // place 0 holds the first `split` keys from row 2 on, place 1 the others from row 1, at odd strides
                const int64_t s0 = kw + 3, s1 = kw + 5;
                std::vector<floatX> k0((split + 3) * s0, floatX(NAN)), v0 = k0, k1((n - split + 2) * s1, floatX(NAN)),
                                                                       v1 = k1;
                for (int j = 0; j < n; j++) {
                    const floatX *from_k = x.k.data() + (x.starts[s] + j) * kw,
                                 *from_v = x.v.data() + (x.starts[s] + j) * kw;
                    int64_t at = j < split ? (j + 2) * s0 : (j - split + 1) * s1;
                    std::copy(from_k, from_k + kw, (j < split ? k0 : k1).begin() + at);
                    std::copy(from_v, from_v + kw, (j < split ? v0 : v1).begin() + at);
                }
                KeyRange r;
                r.row0 = 2, r.n0 = split, r.row1 = 1, r.n1 = n - split;
                Half one(qw, CPU);
                Full one_lse(c.NH, CPU);
                attention_forward_cpu(one.data, one_lse.data, {q.data + t * qw, qw}, {k0.data(), v0.data(), s0, s0},
                                      {k1.data(), v1.data(), s1, s1}, &r, {1, c.NH, c.NKV, c.HD});
                EXPECT_TRUE(same_bits(one.get(), {all.begin() + t * qw, all.begin() + (t + 1) * qw}))
                    << "HD " << c.HD << ", " << split << " of " << n << " keys in place 0";
                EXPECT_TRUE(same_bits(one_lse.get(), {all_lse.begin() + t * c.NH, all_lse.begin() + (t + 1) * c.NH}));
            }
        }
    }
}

TEST(Attention, BackwardAgainstFloat64) {
    for (const AttentionCase& c : attention_cases()) {
        AttentionData x(c);
        AttentionReference ref(x.q, x.k, x.v, x.dout, x.starts, c.NH, c.NKV, c.HD);
        std::string what = format("T %lld NH %d NKV %d HD %d", (long long)x.T, c.NH, c.NKV, c.HD);
        // as the model has them: q and k in rows of one matrix, v in another, gaps untouched
        const int64_t qw = (int64_t)c.NH * c.HD, kw = (int64_t)c.NKV * c.HD, qk = qw + kw, wide = qw + 2 * kw + 3;
        std::vector<floatX> joined(x.T * qk), values(x.T * wide, floatX(NAN)), o(x.T * qw);
        std::vector<float> lse(x.T * c.NH);
        for (int64_t t = 0; t < x.T; t++) {
            std::copy_n(x.q.begin() + t * qw, qw, joined.begin() + t * qk);
            std::copy_n(x.k.begin() + t * kw, kw, joined.begin() + t * qk + qw);
            std::copy_n(x.v.begin() + t * kw, kw, values.begin() + t * wide + qw + kw);
        }
        for (size_t i = 0; i < o.size(); i++) o[i] = (float)ref.out[i];
        for (size_t i = 0; i < lse.size(); i++) lse[i] = (float)ref.lse[i];
        auto run = [&] {
            Half dqk(x.T * qk, CPU), dqkv(x.T * wide, CPU), dout(x.dout, CPU), out(o, CPU), q(joined, CPU),
                v(values, CPU);
            Full l(lse, CPU);
            attention_backward_cpu({{dqk.data, qk}, {dqk.data + qw, qk}, {dqkv.data + qw + kw, wide}}, dout.data,
                                   out.data, l.data, {q.data, qk}, {q.data + qw, v.data + qw + kw, qk, wide},
                                   {x.starts.data(), nullptr, nullptr, (int)c.lengths.size()},
                                   {x.T, c.NH, c.NKV, c.HD});
            std::vector<floatX> all = dqk.get(), dv = dqkv.get();
            for (int64_t t = 0; t < x.T; t++)
                for (int64_t i = 0; i < wide; i++) {
                    if (i >= qw + kw && i < qw + 2 * kw) all.push_back(dv[t * wide + i]);
                    else EXPECT_TRUE(still_poison(dv[t * wide + i])) << what << ": wrote between rows";
                }
            return all;
        };
        std::vector<floatX> all = run(), dq, dk, dv(all.begin() + x.T * qk, all.end());
        for (int64_t t = 0; t < x.T; t++) {
            dq.insert(dq.end(), all.begin() + t * qk, all.begin() + t * qk + qw);
            dk.insert(dk.end(), all.begin() + t * qk + qw, all.begin() + (t + 1) * qk);
        }
        // o, and with it D = dout.o, is rounded to floatX
        double cosine = sizeof(floatX) == 2 ? 1e-4 : 1e-9, ratio = sizeof(floatX) == 2 ? 1e-2 : 1e-5;
        if (c.scale > 10) cosine *= 10, ratio *= 10;  // lse of several hundred: its last bit is 3e-5
        if (x.T > 1) {                                // one key: its probability is 1, and dq = dk = 0
            expect_agree(dq, ref.dq, cosine, ratio, what + " dq");
            expect_agree(dk, ref.dk, cosine, ratio, what + " dk");
        } else {
            expect_close(dq, ref.dq, 0, ULP, what + " dq");
            expect_close(dk, ref.dk, 0, ULP, what + " dk");
        }
        expect_agree(dv, ref.dv, cosine, ratio, what + " dv");
        expect_same_for_any_threads<floatX>(run, what);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// swiglu

TEST(Swiglu, ForwardAndBackwardAgainstFloat64) {
    for (int64_t F : {1, 3, 16, 65, 4864})
        for (int64_t T : {1, 5, 34}) {
            if (F > 100 && T > 5) continue;
            std::string what = format("T %lld F %lld", (long long)T, (long long)F);
            std::vector<floatX> gate_up = random_values<floatX>(T * 2 * F, 40, 6.0f),
                                d = random_values<floatX>(T * F, 41);
            gate_up[0] = T > 1 ? 100.0f : -100.0f;  // saturated either way
            Half in(gate_up, CPU), dout(d, CPU);
            auto run = [&] {
                Half out(T * F, CPU), gradient(T * 2 * F, CPU);
                swiglu_forward_cpu(out.data, in.data, T, F);
                swiglu_backward_cpu(gradient.data, dout.data, in.data, T, F);
                std::vector<floatX> both = out.get(), g = gradient.get();
                both.insert(both.end(), g.begin(), g.end());
                return both;
            };
            std::vector<double> expected(T * 3 * F);
            for (int64_t t = 0; t < T; t++)
                for (int64_t f = 0; f < F; f++) {
                    double g = (float)gate_up[t * 2 * F + f], u = (float)gate_up[t * 2 * F + F + f],
                           e = (float)d[t * F + f];
                    auto silu = [](double x) { return x / (1 + std::exp(-x)); };
                    const double h = 1e-5;
                    expected[t * F + f] = silu(g) * u;
                    expected[T * F + t * 2 * F + f] = e * u * (silu(g + h) - silu(g - h)) / (2 * h);
                    expected[T * F + t * 2 * F + F + f] = e * silu(g);
                }
            expect_close(run(), expected, 2 * ULP + 1e-6, 1e-6, what);
            expect_same_for_any_threads<floatX>(run, what);
        }
}

// ---------------------------------------------------------------------------------------------------------------------
// linear

TEST(Linear, ForwardAndBackwardAgainstFloat64) {
    struct {
        int64_t T, C, OC;
    } cases[] = {{1, 1, 1}, {3, 5, 7}, {17, 33, 65}, {70, 64, 130}, {2, 1100, 3}};
    for (auto c : cases)
        for (bool with_bias : {false, true}) {
            std::string what = format("T %lld C %lld OC %lld", (long long)c.T, (long long)c.C, (long long)c.OC);
            std::vector<floatX> x = random_values<floatX>(c.T * c.C, 50), w = random_values<floatX>(c.OC * c.C, 51),
                                b = random_values<floatX>(c.OC, 52), dy = random_values<floatX>(c.T * c.OC, 53);
            std::vector<float> dw0 = random_values<float>(c.OC * c.C, 54), db0 = random_values<float>(c.OC, 55);
            Half inp(x, CPU), weight(w, CPU), bias(b, CPU), dout(dy, CPU);
            PackedWeight<floatX> pack = pack_weight_nt(weight.data, c.OC, c.C);
            const floatX* bias_or_null = with_bias ? bias.data : nullptr;
            auto forward = [&] {
                Half out(c.T * c.OC, CPU);
                linear_forward_cpu({out.data, c.OC}, inp.data, weight.data, bias_or_null, nullptr, {c.T, c.C, c.OC});
                return out.get();
            };
            Half packed_out(c.T * c.OC, CPU);
            linear_forward_cpu({packed_out.data, c.OC}, inp.data, nullptr, bias_or_null, &pack, {c.T, c.C, c.OC});
            std::vector<double> y(c.T * c.OC), dx(c.T * c.C), dw = widen(dw0), db = widen(db0);
            for (int64_t t = 0; t < c.T; t++)
                for (int64_t o = 0; o < c.OC; o++) {
                    double g = (float)dy[t * c.OC + o], sum = with_bias ? (float)b[o] : 0.0;
                    db[o] += with_bias ? g : 0.0;
                    for (int64_t i = 0; i < c.C; i++) {
                        sum += (double)(float)x[t * c.C + i] * (float)w[o * c.C + i];
                        dx[t * c.C + i] += g * (float)w[o * c.C + i];
                        dw[o * c.C + i] += g * (float)x[t * c.C + i];
                    }
                    y[t * c.OC + o] = sum;
                }
            const double absolute = 1e-5 + 5e-8 * (double)(c.T + c.C + c.OC);  // a chain of so many fp32 additions
            expect_close(forward(), y, ULP, absolute, what);
            EXPECT_TRUE(same_bits(forward(), packed_out.get())) << what << ": packed weights";
            expect_same_for_any_threads<floatX>(forward, what);
            auto backward = [&] {
                Half dinp(c.T * c.C, CPU);
                Full dweight(dw0, CPU), dbias(db0, CPU);
                linear_backward_cpu(dinp.data, dweight.data, with_bias ? dbias.data : nullptr, dout.data, inp.data,
                                    weight.data, {c.T, c.C, c.OC});
                std::vector<float> all;
                append(all, dinp.get());
                append(all, dweight.get());
                append(all, dbias.get());
                return all;
            };
            std::vector<float> all = backward();
            auto middle = all.begin() + c.T * c.C, end = middle + c.OC * c.C;
            expect_close(std::vector<float>(all.begin(), middle), dx, ULP, absolute, what + " dinp");
            expect_close(std::vector<float>(middle, end), dw, 1e-6, absolute, what + " dweight");
            expect_close(std::vector<float>(end, all.end()), db, 1e-6, absolute, what + " dbias");
            expect_same_for_any_threads<float>(backward, what);
        }
}

// ---------------------------------------------------------------------------------------------------------------------
// LM head

struct HeadCase {
    int64_t T, C, V;
    float inverse_temperature, scale;  // scale: of the weights
};

static std::vector<HeadCase> head_cases() {
    return {{1, 1, 1, 1.0f, 1.0f},
            {3, 5, 7, 0.5f, 2.0f},
            {9, 8, LM_HEAD_COLUMNS, 1.0f, 1.0f},
            {5, 3, LM_HEAD_COLUMNS + 1, 1.0f / 0.7f, 2.0f},
            {2, 4, 2 * LM_HEAD_COLUMNS + 37, 1.0f, 40.0f},  // logits up to 160: some exponentials vanish
            {LM_HEAD_ROWS + 3, 2, 61, 1.25f, 3.0f},
            {LM_HEAD_ROWS + 1, 1, LM_HEAD_COLUMNS + 5, 1.0f, 2.0f}};
}

struct HeadData {
    std::vector<floatX> hidden, weight;
    std::vector<int> targets;
    std::vector<float> dlogp;
    HeadData(const HeadCase& c)
        : hidden(random_values<floatX>(c.T * c.C, 60)),
          weight(random_values<floatX>(c.V * c.C, 61, c.scale)),
          targets(random_ints(c.T, 62, (int)c.V)),
          dlogp(random_values<float>(c.T, 63)) {
        targets[0] = (int)c.V - 1;
        if (c.T > 1) targets[1] = 0;
    }
};

struct HeadReference {
    std::vector<double> logp, lse, entropy, dhidden, dweight;  // dweight starts at zero
    HeadReference(const HeadCase& c, const HeadData& x) {
        logp.resize(c.T), lse.resize(c.T), entropy.resize(c.T), dhidden.resize(c.T * c.C), dweight.resize(c.V * c.C);
        std::vector<double> z(c.V);
        for (int64_t t = 0; t < c.T; t++) {
            double largest = -1e300, sum = 0, weighted = 0;
            for (int64_t v = 0; v < c.V; v++) {
                z[v] = 0;
                for (int64_t i = 0; i < c.C; i++)
                    z[v] += (double)(float)x.hidden[t * c.C + i] * (float)x.weight[v * c.C + i];
                z[v] *= c.inverse_temperature;
                largest = std::max(largest, z[v]);
            }
            for (double v : z) sum += std::exp(v - largest);
            lse[t] = largest + std::log(sum);
            logp[t] = z[x.targets[t]] - lse[t];
            for (int64_t v = 0; v < c.V; v++) {
                double p = std::exp(z[v] - lse[t]);
                weighted += p * (z[v] - lse[t]);
                double dz = x.dlogp[t] * c.inverse_temperature * ((v == x.targets[t]) - p);
                for (int64_t i = 0; i < c.C; i++) {
                    dhidden[t * c.C + i] += dz * (float)x.weight[v * c.C + i];
                    dweight[v * c.C + i] += dz * (float)x.hidden[t * c.C + i];
                }
            }
            entropy[t] = -weighted;
        }
    }
};

static std::string text(const HeadCase& c) {
    return format("T %lld C %lld V %lld", (long long)c.T, (long long)c.C, (long long)c.V);
}

// logp, lse, entropy, one behind the other
static std::vector<float> head_forward(const HeadCase& c, const HeadData& x, LmHeadScratch& scratch,
                                       bool entropy = true) {
    Half hidden(x.hidden, CPU), weight(x.weight, CPU);
    Full logp(c.T, CPU), lse(c.T, CPU), e(c.T, CPU);
    lm_head_forward_cpu(logp.data, lse.data, entropy ? e.data : nullptr,
                        {hidden.data, weight.data, x.targets.data(), c.T, c.C, c.V, c.inverse_temperature}, scratch);
    std::vector<float> all;
    append(all, logp.get());
    append(all, lse.get());
    if (entropy) append(all, e.get());
    return all;
}

TEST(LmHead, ForwardAgainstFloat64) {
    LmHeadScratch scratch;
    for (const HeadCase& c : head_cases()) {
        HeadData x(c);
        HeadReference ref(c, x);
        std::vector<float> all = head_forward(c, x, scratch);
        auto part = [&](int i) { return std::vector<float>(all.begin() + i * c.T, all.begin() + (i + 1) * c.T); };
        double absolute = 3e-6 * std::max(1.0, (double)c.scale * c.C * c.inverse_temperature);
        expect_close(part(0), ref.logp, 1e-6, absolute, text(c) + " logp");
        expect_close(part(1), ref.lse, 1e-6, absolute, text(c) + " lse");
        expect_close(part(2), ref.entropy, 1e-5, absolute, text(c) + " entropy");
        std::vector<float> without = head_forward(c, x, scratch, false);
        EXPECT_TRUE(same_bits(without, {all.begin(), all.begin() + 2 * c.T})) << text(c);
        for (int i : {0, 2}) EXPECT_TRUE(c.V > 1 || part(i)[0] == 0.0f) << "one word is certain";
        expect_same_for_any_threads<float>(
            [&] {
                LmHeadScratch fresh;
                return head_forward(c, x, fresh);
            },
            text(c));
    }
}

// What the sampler does (a whole row of logits) and what the trainer does (chunks, any batch) give the same bits
TEST(LmHead, SamplersRowAndTrainersChunksGiveTheSameBits) {
    for (const HeadCase& c : head_cases()) {
        HeadData x(c);
        LmHeadScratch scratch;
        std::vector<float> all = head_forward(c, x, scratch), logits(c.V);
        for (int64_t t = 0; t < c.T; t += 1 + c.T / 7) {
            HeadCase alone = c;
            alone.T = 1;
            HeadData one(alone);
            one.hidden.assign(x.hidden.begin() + t * c.C, x.hidden.begin() + (t + 1) * c.C);
            one.weight = x.weight;
            one.targets = {x.targets[t]};
            EXPECT_TRUE(same_bits(head_forward(alone, one, scratch), {all[t], all[c.T + t], all[2 * c.T + t]}))
                << text(c) << " token " << t << " alone";
            gemm_nt(logits.data(), one.hidden.data(), x.weight.data(), nullptr, 1, c.V, c.C);
            SoftmaxState s = softmax_row(logits.data(), c.V, c.inverse_temperature);
            float lse = softmax_lse(s), logp = logit_logp(logits[x.targets[t]], c.inverse_temperature, lse);
            EXPECT_EQ(float_bits(lse), float_bits(all[c.T + t])) << text(c);
            EXPECT_EQ(float_bits(logp), float_bits(all[t])) << text(c);
            EXPECT_EQ(float_bits(softmax_entropy(s)), float_bits(all[2 * c.T + t])) << text(c);
        }
    }
}

TEST(LmHead, BackwardAgainstFloat64) {
    for (const HeadCase& c : head_cases()) {
        HeadData x(c);
        HeadReference ref(c, x);
        std::vector<float> before = random_values<float>(c.V * c.C, 64, 0.1f), lse0(c.T);
        for (int64_t t = 0; t < c.T; t++) lse0[t] = (float)ref.lse[t];
        auto run = [&] {
            LmHeadScratch scratch;
            Half dhidden(c.T * c.C, CPU), hidden(x.hidden, CPU), weight(x.weight, CPU);
            Full dweight(before, CPU), dlogp(x.dlogp, CPU), lse(lse0, CPU);
            lm_head_backward_cpu(dhidden.data, dweight.data, dlogp.data, lse.data,
                                 {hidden.data, weight.data, x.targets.data(), c.T, c.C, c.V, c.inverse_temperature},
                                 scratch);
            std::vector<float> all;
            append(all, dhidden.get());
            append(all, dweight.get());
            return all;
        };
        std::vector<float> all = run(), dweight(all.begin() + c.T * c.C, all.end());
        std::vector<float> dhidden(all.begin(), all.begin() + c.T * c.C);
        if (c.V == 1) {  // p = 1: no gradient at all
            expect_close(dhidden, ref.dhidden, 0, 1e-6, text(c));
            EXPECT_NEAR(dweight[0], before[0], 1e-6);
            continue;
        }
        std::vector<double> with_before = widen(before);
        for (size_t i = 0; i < before.size(); i++) with_before[i] += ref.dweight[i], dweight[i] -= before[i];
        // the gradients of the logits are rounded to floatX
        double cosine = sizeof(floatX) == 2 ? 3e-5 : 1e-9, ratio = sizeof(floatX) == 2 ? 5e-3 : 3e-5;
        expect_agree(dhidden, ref.dhidden, cosine, ratio, text(c) + " dhidden");
        expect_agree(dweight, ref.dweight, cosine, ratio, text(c) + " dweight");
        expect_same_for_any_threads<float>(run, text(c));
    }
}

// A backward after its forward reads what that kept, whether all of it or the first chunks; after another forward, or in
// memory that was not planned, it computes the logits again. Always the same bits.
TEST(LmHead, KeptLogitsGiveTheSameBits) {
    for (HeadCase c :
         {HeadCase{2100, 8, 300, 0.7f, 2.0f}, HeadCase{70, 12, 9000, 1.0f, 1.0f}, HeadCase{5, 4, 9, 1.3f, 2.0f}}) {
        HeadData x(c);
        Half hidden(x.hidden, CPU), weight(x.weight, CPU), other(random_values<floatX>(c.T * c.C, 7, 1.0f), CPU);
        const LmHeadInputs in = {hidden.data, weight.data, x.targets.data(), c.T, c.C, c.V, c.inverse_temperature};
        auto run = [&](bool planned, size_t fewer, bool another) {
            LmHeadScratch scratch;
            if (planned) lm_head_scratch_allocate(scratch, c.T, c.C, c.V, true, CPU);
            EXPECT_EQ(scratch.kept.size > 0, planned);
            const size_t whole = scratch.kept.size;
            scratch.kept.size -= std::min(fewer, whole);
            Half dhidden(c.T * c.C, CPU);
            Full dweight(c.V * c.C, CPU), dlogp(x.dlogp, CPU), logp(c.T, CPU), lse(c.T, CPU);
            lm_head_forward_cpu(logp.data, lse.data, nullptr, in, scratch);
            EXPECT_TRUE(!planned || fewer > 0 || scratch.kept[0] != 0.0f) << "nothing was kept";
            if (another) {
                LmHeadInputs in2 = in;
                in2.hidden = other.data;
                Full logp2(c.T, CPU), lse2(c.T, CPU);
                lm_head_forward_cpu(logp2.data, lse2.data, nullptr, in2, scratch);
            }
            lm_head_backward_cpu(dhidden.data, dweight.data, dlogp.data, lse.data, in, scratch);
            scratch.kept.size = whole;
            std::vector<float> all = logp.get();
            append(all, lse.get());
            append(all, dhidden.get());
            append(all, dweight.get());
            return all;
        };
        const std::vector<float> computed = run(false, 0, false);
        for (size_t fewer : {(size_t)0, (size_t)1, (size_t)1 << 40})
            for (bool another : {false, true}) EXPECT_TRUE(same_bits(run(true, fewer, another), computed)) << text(c);
    }
}

// the float64 gradient that the tests above rest on, against central differences
TEST(LmHead, ReferenceGradientAgainstCentralDifferences) {
    HeadCase c = {3, 4, 9, 1.0f / 0.7f, 2.0f};
    HeadData x(c);
    HeadReference ref(c, x);
    const float h = 1.0f / 64;  // exact in bf16 next to values below 2
    auto total = [&] {
        HeadReference r(c, x);
        double sum = 0;
        for (int64_t t = 0; t < c.T; t++) sum += x.dlogp[t] * r.logp[t];
        return sum;
    };
    auto check = [&](std::vector<floatX>& values, const std::vector<double>& gradient) {
        for (size_t i = 0; i < values.size(); i++) {
            floatX saved = values[i], up = (float)saved + h, down = (float)saved - h;
            values[i] = up;
            double above = total();
            values[i] = down;
            double difference = (above - total()) / ((double)(float)up - (float)down);
            values[i] = saved;
            EXPECT_NEAR(difference, gradient[i], 2e-3) << i;
        }
    };
    check(x.hidden, ref.dhidden);
    check(x.weight, ref.dweight);
}

// ---------------------------------------------------------------------------------------------------------------------
// optimizer

TEST(AdamW, SeveralStepsAgainstFloat64) {
    for (int64_t n : {1, 7, 1000})
        for (float decay : {0.0f, 0.1f}) {
            std::string what = format("n %lld decay %g", (long long)n, decay);
            AdamWConfig c;
            c.learning_rate = 1e-3f, c.weight_decay = decay, c.beta2 = 0.99f;
            std::vector<float> start = random_values<float>(n, 70);
            auto run = [&] {
                Full w(start, CPU), m(std::vector<float>(n), CPU), v(std::vector<float>(n), CPU);
                for (int64_t step = 1; step <= 6; step++) {
                    std::vector<float> g = random_values<float>(n, 71 + (uint32_t)step, step == 4 ? 0.0f : 0.5f);
                    Full grad(g, CPU);
                    adamw_update_cpu(w.data, m.data, v.data, grad.data, n, 0.25f, c, step);
                    EXPECT_TRUE(same_bits(grad.get(), g)) << "the gradient was changed";
                }
                std::vector<float> all = w.get();
                append(all, m.get());
                append(all, v.get());
                return all;
            };
            std::vector<double> w = widen(start), m(n), v(n);
            for (int64_t step = 1; step <= 6; step++) {
                std::vector<float> g = random_values<float>(n, 71 + (uint32_t)step, step == 4 ? 0.0f : 0.5f);
                for (int64_t i = 0; i < n; i++) {
                    double x = 0.25 * g[i], b1 = c.beta1, b2 = c.beta2;
                    m[i] = b1 * m[i] + (1 - b1) * x;
                    v[i] = b2 * v[i] + (1 - b2) * x * x;
                    double mh = m[i] / (1 - std::pow(b1, step)), vh = v[i] / (1 - std::pow(b2, step));
                    w[i] -= (double)c.learning_rate * (mh / (std::sqrt(vh) + c.epsilon) + decay * w[i]);
                }
            }
            std::vector<float> all = run();
            expect_close(std::vector<float>(all.begin(), all.begin() + n), w, 2e-7, 2e-8, what + " w");
            expect_close(std::vector<float>(all.begin() + n, all.begin() + 2 * n), m, 2e-6, 1e-8, what + " m");
            expect_close(std::vector<float>(all.begin() + 2 * n, all.end()), v, 5e-6, 1e-12, what + " v");
            expect_same_for_any_threads<float>(run, what);
        }
}

TEST(AdamW, FirstStepMovesByTheLearningRateWhateverTheGradient) {
    for (float g : {1e-6f, -0.3f, 50.0f}) {
        float w = 1.0f, m = 0.0f, v = 0.0f;
        AdamWConfig c;
        c.learning_rate = 1e-2f, c.epsilon = 1e-12f;
        adamw_update_cpu(&w, &m, &v, &g, 1, 1.0f, c, 1);
        EXPECT_NEAR(w, 1.0f - std::copysign(1e-2f, g), 1e-6f) << g;
    }
    float w = 2.0f, m = 0.0f, v = 0.0f, g = 0.0f;  // no gradient: decay alone
    AdamWConfig c;
    c.learning_rate = 0.1f, c.weight_decay = 0.5f;
    adamw_update_cpu(&w, &m, &v, &g, 1, 1.0f, c, 1);
    EXPECT_FLOAT_EQ(w, 2.0f * (1.0f - 0.05f));
}

TEST(GlobalNorm, AgainstFloat64AndNonFinite) {
    for (int64_t n : {0, 1, 1000, 65535, 65536, 65537, 200001}) {
        std::vector<float> x = random_values<float>(n, 80, 3.0f);
        double expected = 0;
        for (float e : x) expected += (double)e * e;
        EXPECT_NEAR(sum_of_squares_cpu(x.data(), n), expected, 1e-12 * expected) << n;
        expect_same_for_any_threads<double>([&] { return std::vector<double>{sum_of_squares_cpu(x.data(), n)}; },
                                            "norm");
        for (float bad : {NAN, INFINITY, -INFINITY})
            for (int64_t at : {(int64_t)0, n / 2, n - 1}) {
                if (at < 0 || at >= n) continue;
                float saved = x[at];
                x[at] = bad;
                EXPECT_FALSE(std::isfinite(sum_of_squares_cpu(x.data(), n))) << n << " at " << at;
                x[at] = saved;
            }
    }
    float large[2] = {3e38f, 3e38f};  // squares overflow a float
    EXPECT_TRUE(std::isfinite(sum_of_squares_cpu(large, 2)));
}

// ---------------------------------------------------------------------------------------------------------------------
// sampling

// the distribution that (temperature, top_k, top_p, min_p) leaves, by sorting in float64
static std::vector<double> sampling_distribution(const std::vector<float>& logits, const SamplingParams& p) {
    const int n = (int)logits.size();
    std::vector<int> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    std::vector<double> q(n);
    double total = 0, sum = 0, kept = 0;
    int limit = p.top_k > 0 ? std::min(p.top_k, n) : n;
    for (int i = 0; i < limit; i++) total += std::exp(((double)logits[order[i]] - logits[order[0]]) / p.temperature);
    for (int i = 0; i < limit && (i == 0 || sum < p.top_p); i++) {
        q[order[i]] = std::exp(((double)logits[order[i]] - logits[order[0]]) / p.temperature) / total;
        kept = sum += q[order[i]];
    }
    for (double& x : q)
        if (x > 0 && x < p.min_p * q[order[0]]) kept -= x, x = 0;
    for (double& x : q) x /= kept;
    return q;
}

TEST(Sampling, DrawsFollowTheDistribution) {
    struct {
        int n;
        SamplingParams p;
    } cases[] = {{7, {1.0f, 0, 1.0f}},
                 {40, {0.7f, 0, 1.0f}},
                 {300, {1.0f, 0, 1.0f}},
                 {600, {2.0f, 0, 1.0f}},
                 {40, {1.0f, 5, 1.0f}},
                 {40, {1.0f, 0, 0.8f}},
                 {300, {1.3f, 20, 0.9f}},
                 {40, {1.0f, 100, 1.0f}},
                 {40, {1.0f, 40, 0.99f}},
                 {40, {1.0f, 1, 1.0f}},
                 {40, {1.0f, 0, 1e-6f}},
                 {40, {1.0f, 0, 1.0f, false, 0.1f}},
                 {300, {1.3f, 20, 0.9f, false, 0.3f}},
                 {300, {1.0f, 0, 0.8f, false, 0.4f}},
                 {40, {0.8f, 0, 0.6f, false, 0.01f}}};
    uint32_t stream = 0;
    for (auto& c : cases) {
        std::string what = format("n %d temperature %g top_k %d top_p %g", c.n, c.p.temperature, c.p.top_k, c.p.top_p);
        std::vector<float> logits = random_values<float>(c.n, 90 + stream, 3.0f), scratch;
        std::vector<double> q = sampling_distribution(logits, c.p);
        const int draws = 40000;
        std::vector<int> count(c.n);
        stream++;
        for (int i = 0; i < draws; i++)
            count[sample_row(logits.data(), c.n, c.p, uniform(1000 + stream, i), scratch)]++;
        double chi = 0, rest = 0, rest_expected = 0;
        int freedom = -1;
        for (int i = 0; i < c.n; i++) {
            if (q[i] == 0) {
                EXPECT_EQ(count[i], 0) << what << ": token " << i << " lies outside top-k or top-p";
            } else if (q[i] * draws < 8) {
                rest += count[i], rest_expected += q[i] * draws;
            } else {
                chi += (count[i] - q[i] * draws) * (count[i] - q[i] * draws) / (q[i] * draws);
                freedom++;
            }
        }
        if (rest_expected > 0) chi += (rest - rest_expected) * (rest - rest_expected) / rest_expected, freedom++;
        // mean `freedom`, variance twice that: 4 standard deviations and a little for few degrees
        EXPECT_LE(chi, freedom + 4 * std::sqrt(2.0 * freedom) + 4) << what;
    }
}

// A draw inverts the cumulative distribution: equal steps of u give each token its share to within a step
TEST(Sampling, InvertsTheCumulativeDistribution) {
    std::vector<float> logits = random_values<float>(700, 120, 4.0f), scratch;
    for (SamplingParams p : {SamplingParams{0.9f, 0, 1.0f}, {0.9f, 50, 1.0f}, {0.9f, 0, 0.7f}}) {
        std::vector<double> q = sampling_distribution(logits, p);
        const int steps = 6000;
        std::vector<int> count(logits.size());
        for (int i = 0; i < steps; i++)
            count[sample_row(logits.data(), (int64_t)logits.size(), p, ((float)i + 0.5f) / steps, scratch)]++;
        for (size_t i = 0; i < logits.size(); i++) ASSERT_NEAR(count[i], q[i] * steps, 1.01) << i;
    }
}

TEST(Sampling, GreedyTakesTheLowestIndexAmongEquals) {
    std::vector<float> scratch, logits = {1.0f, 3.0f, -2.0f, 3.0f, 3.0f};
    SamplingParams greedy;
    greedy.temperature = 0.0f;
    for (float u : {0.0f, 0.5f, 0.99999994f}) EXPECT_EQ(sample_row(logits.data(), 5, greedy, u, scratch), 1);
    std::vector<float> flat(1000, -0.5f);
    EXPECT_EQ(sample_row(flat.data(), 1000, greedy, 0.9f, scratch), 0);
    EXPECT_EQ(sample_row(flat.data(), 1, greedy, 0.9f, scratch), 0);
    SamplingParams first;  // top-k among equals also keeps the lowest indices
    first.top_k = 3;
    for (int i = 0; i < 100; i++) EXPECT_LT(sample_row(flat.data(), 1000, first, (float)i / 100, scratch), 3);
}

TEST(Sampling, ExtremeUniformsStayInRangeAndPaddingIsNeverDrawn) {
    const float last = 1.0f - 1.0f / (1 << 24);
    std::vector<float> scratch;
    for (int n : {1, 2, 255, 256, 257, 1000, 5000}) {
        std::vector<float> logits = random_values<float>(n + 64, 130 + (uint32_t)n, 5.0f);
        for (int i = n; i < n + 64; i++) logits[i] = 1e4f;  // padded rows, tempting
        for (SamplingParams p :
             {SamplingParams{1.0f, 0, 1.0f}, {1.0f, 3, 1.0f}, {1.0f, 0, 0.9f}, {0.0f, 0, 1.0f}, {1.0f, 1 << 20, 0.5f}})
            for (float u : {0.0f, 1e-7f, 0.5f, last}) {
                int token = sample_row(logits.data(), n, p, u, scratch);
                ASSERT_TRUE(token >= 0 && token < n) << "n " << n << " u " << u;
            }
    }
    // u at its ends, and a head and a tail without weight: the draw has weight. Over many rows, because the float sum
    // of a block may lie above or below the running sum that the draw walks along.
    for (int n : {256, 300, 1000})
        for (uint32_t seed = 0; seed < 40; seed++) {
            std::vector<float> logits = random_values<float>(n, 200 + seed, 3.0f);
            std::fill(logits.begin(), logits.begin() + 100, -200.0f);
            std::fill(logits.begin() + 200, logits.end(), -200.0f);
            for (SamplingParams p :
                 {SamplingParams{1.0f, 0, 1.0f}, SamplingParams{1.0f, n - 1, 1.0f}, SamplingParams{1.0f, 0, 0.999f}})
                for (float u : {0.0f, last}) {
                    int token = sample_row(logits.data(), n, p, u, scratch);
                    EXPECT_TRUE(token >= 100 && token < 200) << "n " << n << " u " << u << ": token " << token;
                }
        }
}
