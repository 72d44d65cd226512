// RMSNorm: every run (CPU loops; kernels) against a float64 restatement, gradients against central differences of it,
// and the promises of kernels/rmsnorm.cuh: a row's bits depend on the row alone, dweight does not depend on the
// threads, gaps between strided rows stay untouched.
#include "operator_test.h"
#include "../kernels/rmsnorm.cuh"
#include <algorithm>
#if defined(_OPENMP)
#include <omp.h>
#endif

static constexpr float EPS = 1e-6f;
// one rounding to floatX, relative
static constexpr double ULP = sizeof(floatX) == 2 ? 1.0 / 256 : 1.0 / (1 << 24);

struct NormCase {
    int64_t T;
    int H, C;
    int64_t stride;  // of inp and dinp; out and dout have H * C
};

static std::vector<NormCase> norm_cases() {
    std::vector<NormCase> cases;
    for (int C : {1, 3, 8, 31, 64, 127, 128, 576, 896, 1100})
        for (int T : {1, 2, 33}) cases.push_back({T, 1, C, C});
    cases.push_back({300, 1, 40, 40});    // several blocks of rows for dweight
    cases.push_back({1, 1, 2056, 2056});  // more packs than threads in fp32 and bf16
    cases.push_back({5, 3, 64, 64 * 5});
    cases.push_back({70, 2, 128, 128 * 2 + 8});
    cases.push_back({5, 3, 31, 31 * 3 + 2});
    return cases;
}

static std::string text(const NormCase& c, const Backend& run) {
    return format("T %lld H %d C %d stride %lld, %s", (long long)c.T, c.H, c.C, (long long)c.stride, run.name.c_str());
}

// rows of a strided matrix, packed to (T*H, C)
template <class X>
static std::vector<X> packed(const std::vector<X>& v, const NormCase& c) {
    std::vector<X> p;
    for (int64_t t = 0; t < c.T; t++) p.insert(p.end(), v.begin() + t * c.stride, v.begin() + t * c.stride + c.H * c.C);
    return p;
}

template <class X>
static void expect_gaps_untouched(const std::vector<X>& v, const NormCase& c, const std::string& what) {
    for (int64_t t = 0; t < c.T; t++)
        for (int64_t i = (int64_t)c.H * c.C; i < c.stride; i++)
            ASSERT_TRUE(still_poison(v[t * c.stride + i])) << what << ": wrote between rows, token " << t;
}

struct Reference {
    std::vector<double> y, rstd, dinp, dweight;
};

// x, dy: (rows,C); w: (C). dinp by central differences of loss = sum(dy * x * rstd * w): with one x_i moved by h, both
// sum(dy * w * x) and mean(x^2) change by a term, so a difference costs nothing per element. dweight is a plain sum.
static Reference reference(const std::vector<floatX>& x, const std::vector<floatX>& dy, const std::vector<floatX>& w,
                           int C) {
    Reference ref;
    ref.dweight.assign(C, 0.0);
    for (size_t r = 0; r < x.size() / C; r++) {
        const floatX *row = &x[r * C], *g = &dy[r * C];
        double squares = 0, s = 0;
        for (int i = 0; i < C; i++) {
            squares += (double)(float)row[i] * (double)(float)row[i];
            s += (double)(float)g[i] * (double)(float)w[i] * (double)(float)row[i];
        }
        double rstd = 1 / std::sqrt(squares / C + EPS);
        ref.rstd.push_back(rstd);
        auto loss = [&](int i, double h) {
            double moved = squares + 2 * h * (double)(float)row[i] + h * h;
            return (s + (double)(float)g[i] * (double)(float)w[i] * h) / std::sqrt(moved / C + EPS);
        };
        for (int i = 0; i < C; i++) {
            double n = (double)(float)row[i] * rstd, h = 1e-5 * std::sqrt(squares / C + EPS);
            ref.y.push_back((double)(float)(floatX)(float)n * (double)(float)w[i]);
            ref.dinp.push_back((loss(i, h) - loss(i, -h)) / (2 * h));
            ref.dweight[i] += (double)(float)g[i] * (double)(float)(floatX)(float)n;
        }
    }
    return ref;
}

struct NormResult {
    std::vector<floatX> out, dinp, dinp_added;
    std::vector<float> rstd, dweight;
};

struct NormInput {
    std::vector<floatX> inp, weight, dout, skip;  // skip: what dinp holds before accumulation, at inp's stride
    std::vector<float> dweight;
};

static NormInput norm_input(const NormCase& c) {
    NormInput in;
    in.inp = random_values<floatX>(c.T * c.stride, 1, 3.0f);
    in.weight = random_values<floatX>(c.C, 2);
    in.dout = random_values<floatX>(c.T * c.H * c.C, 3);
    in.skip = random_values<floatX>(c.T * c.stride, 4);
    in.dweight = random_values<float>(c.C, 5);
    return in;
}

static NormResult run_norm(const NormCase& c, const NormInput& in, const Backend& run) {
    select_backend(run);
    Device dev = run.dev;
    int64_t n = c.T * c.H * c.C;
    TestBuffer<floatX> out(n, dev), inp(in.inp, dev), weight(in.weight, dev), dout(in.dout, dev),
        dinp(c.T * c.stride, dev);
    TestBuffer<floatX> dinp_added(in.skip, dev);
    TestBuffer<float> rstd(c.T * c.H, dev), dweight(in.dweight, dev), dweight_again(in.dweight, dev);
    rmsnorm_heads_forward({out.data, c.H * c.C}, rstd.data, {inp.data, c.stride}, weight.data, {c.T, c.C, c.H}, EPS,
                          dev);
    rmsnorm_heads_backward({dinp.data, c.stride}, dweight.data, {dout.data, c.H * c.C}, {inp.data, c.stride},
                           weight.data, rstd.data, {c.T, c.C, c.H}, false, dev);
    rmsnorm_heads_backward({dinp_added.data, c.stride}, dweight_again.data, {dout.data, c.H * c.C},
                           {inp.data, c.stride}, weight.data, rstd.data, {c.T, c.C, c.H}, true, dev);
    NormResult result;
    result.out = out.get();
    result.rstd = rstd.get();
    expect_gaps_untouched(dinp.get(), c, text(c, run));
    result.dinp = packed(dinp.get(), c);
    result.dinp_added = packed(dinp_added.get(), c);
    result.dweight = dweight.get();
    EXPECT_TRUE(same_bits(result.dweight, dweight_again.get())) << text(c, run);
    return result;
}

TEST(Rmsnorm, AgreesWithFloat64AndCentralDifferences) {
    for (const NormCase& c : norm_cases()) {
        NormInput in = norm_input(c);
        std::vector<floatX> x = packed(in.inp, c), skip = packed(in.skip, c);
        Reference ref = reference(x, in.dout, in.weight, c.C);
        for (const Backend& run : all_backends()) {
            std::string what = text(c, run);
            NormResult got = run_norm(c, in, run);
            for (size_t i = 0; i < ref.rstd.size(); i++) ASSERT_NEAR(got.rstd[i] / ref.rstd[i], 1.0, 1e-6) << what;
            // n is one rounding away where x * rstd falls near a tie, y another
            for (size_t i = 0; i < ref.y.size(); i++)
                ASSERT_LE(std::fabs((double)(float)got.out[i] - ref.y[i]),
                          (sizeof(floatX) == 2 ? 2 : 8) * ULP * std::fabs(ref.y[i]))
                    << what;
            // roundings of a column share its weight, so it is columns that average out
            double cosine = ULP * ULP + 1e-12, ratio = ULP * std::min(0.6, 3 / std::sqrt((double)c.C)) + 5e-7;
            expect_agree(got.out, ref.y, cosine, ratio, what + ", y");
            std::vector<double> added(ref.dinp), dweight(ref.dweight);
            for (size_t i = 0; i < added.size(); i++) added[i] += (double)(float)skip[i];
            for (size_t i = 0; i < dweight.size(); i++) dweight[i] += (double)in.dweight[i];
            // C = 1: y is the sign of x times w, its gradient is eps away from 0 and made of cancellation
            if (c.C > 1) expect_agree(got.dinp, ref.dinp, cosine, ratio, what + ", dinp");
            expect_agree(got.dinp_added, added, cosine, ratio, what + ", dinp +=");
            // n is rounded in the sum too, and may flip near a tie
            expect_agree(got.dweight, dweight, 1e-8, sizeof(floatX) == 2 ? 2e-5 : 2e-6, what + ", dweight");
        }
    }
}

TEST(Rmsnorm, KernelsAgreeWithCpuLoopsAndAllThreadOrdersGiveTheSameBits) {
    std::vector<Backend> runs = all_backends();
    if (runs.size() == 1) GTEST_SKIP() << "needs a GPU or the simt build (make simt)";
    for (const NormCase& c : norm_cases()) {
        NormInput in = norm_input(c);
        NormResult cpu = run_norm(c, in, runs[0]), first = run_norm(c, in, runs[1]);
        std::string what = text(c, runs[1]);
        size_t differ = 0;
        for (size_t i = 0; i < cpu.out.size(); i++) {
            float a = (float)cpu.out[i], b = (float)first.out[i];
            differ += a != b;
            ASSERT_LE(std::fabs(a - b), (sizeof(floatX) == 2 ? 2 : 8) * ULP * std::fabs(a)) << what;
        }
        // the sums differ in order alone, so rstd differs in its last bits and few roundings to bf16 flip
        if (sizeof(floatX) == 2) { EXPECT_LE(differ, 2 + cpu.out.size() / 100) << what; }
        for (size_t i = 0; i < cpu.rstd.size(); i++) ASSERT_NEAR(first.rstd[i] / cpu.rstd[i], 1.0f, 1e-6f) << what;
        for (size_t r = 2; r < runs.size(); r++) {
            NormResult other = run_norm(c, in, runs[r]);
            EXPECT_TRUE(same_bits(first.out, other.out) && same_bits(first.rstd, other.rstd) &&
                        same_bits(first.dinp, other.dinp) && same_bits(first.dinp_added, other.dinp_added) &&
                        same_bits(first.dweight, other.dweight))
                << text(c, runs[r]) << ": bits differ from " << runs[1].name;
        }
    }
}

TEST(Rmsnorm, FusedIsAdditionThenNorm) {
    for (const Backend& run : all_backends()) {
        select_backend(run);
        for (int C : {1, 3, 31, 64, 127, 128, 576, 1100})
            for (int T : {1, 33}) {
                std::string what = text({T, 1, C, C}, run);
                size_t n = (size_t)T * C;
                std::vector<floatX> a = random_values<floatX>(n, 6, 3.0f), b = random_values<floatX>(n, 7), sum(n);
                for (size_t i = 0; i < n; i++) sum[i] = (floatX)((float)a[i] + (float)b[i]);
                TestBuffer<floatX> inp(a, run.dev), x(b, run.dev), w(random_values<floatX>(C, 8), run.dev),
                    plain_in(sum, run.dev);
                TestBuffer<floatX> residual(n, run.dev), out(n, run.dev), plain(n, run.dev), in_place(a, run.dev),
                    out2(n, run.dev);
                TestBuffer<float> rstd(T, run.dev), rstd2(T, run.dev), rstd3(T, run.dev);
                fused_residual_rmsnorm_forward(residual.data, out.data, rstd.data, inp.data, x.data, w.data, {T, C},
                                               EPS, run.dev);
                rmsnorm_forward(plain.data, rstd2.data, plain_in.data, w.data, {T, C}, EPS, run.dev);
                fused_residual_rmsnorm_forward(in_place.data, out2.data, rstd3.data, in_place.data, x.data, w.data,
                                               {T, C}, EPS, run.dev);
                EXPECT_TRUE(same_bits(residual.get(), sum)) << what;
                EXPECT_TRUE(same_bits(out.get(), plain.get()) && same_bits(rstd.get(), rstd2.get())) << what;
                EXPECT_TRUE(same_bits(in_place.get(), sum) && same_bits(out2.get(), out.get())) << what << ", in place";
            }
    }
}

// also where the row lies: a copy that begins at another address gives the same bits, though it cannot be read in packs
TEST(Rmsnorm, BitsOfARowDependOnTheRowAlone) {
    for (const Backend& run : all_backends()) {
        select_backend(run);
        for (int C : {31, 64, 128, 576, 1100}) {
            const int T = 33, t = 17;
            std::vector<floatX> all = random_values<floatX>((size_t)T * C, 9, 3.0f),
                                grad = random_values<floatX>((size_t)T * C, 10);
            std::vector<floatX> row(1), row_grad(1);  // one element of padding
            row.insert(row.end(), all.begin() + t * C, all.begin() + (t + 1) * C);
            row_grad.insert(row_grad.end(), grad.begin() + t * C, grad.begin() + (t + 1) * C);
            TestBuffer<floatX> inp(all, run.dev), w(random_values<floatX>(C, 11), run.dev), out((size_t)T * C, run.dev);
            TestBuffer<floatX> alone(row, run.dev), alone_out(C, run.dev), dout(grad, run.dev),
                alone_dout(row_grad, run.dev);
            TestBuffer<floatX> dinp((size_t)T * C, run.dev), alone_dinp(C, run.dev);
            TestBuffer<float> rstd(T, run.dev), alone_rstd(1, run.dev), dw(std::vector<float>(C), run.dev),
                alone_dw(std::vector<float>(C), run.dev);
            rmsnorm_forward(out.data, rstd.data, inp.data, w.data, {T, C}, EPS, run.dev);
            rmsnorm_forward(alone_out.data, alone_rstd.data, alone.data + 1, w.data, {1, C}, EPS, run.dev);
            rmsnorm_backward(dinp.data, dw.data, dout.data, inp.data, w.data, rstd.data, {T, C}, false, run.dev);
            rmsnorm_backward(alone_dinp.data, alone_dw.data, alone_dout.data + 1, alone.data + 1, w.data,
                             alone_rstd.data, {1, C}, false, run.dev);
            std::vector<floatX> y = out.get(), dx = dinp.get();
            std::vector<floatX> y_row(y.begin() + t * C, y.begin() + (t + 1) * C),
                dx_row(dx.begin() + t * C, dx.begin() + (t + 1) * C);
            EXPECT_TRUE(same_bits(y_row, alone_out.get())) << text({T, 1, C, C}, run);
            EXPECT_TRUE(same_bits(dx_row, alone_dinp.get())) << text({T, 1, C, C}, run);
        }
    }
}

TEST(Rmsnorm, BitsDoNotDependOnTheNumberOfThreads) {
#if defined(_OPENMP)
    int threads = omp_get_max_threads();
    NormCase c = {300, 3, 40, 120};
    NormInput in = norm_input(c);
    for (const Backend& run : all_backends()) {
        std::vector<NormResult> results;
        for (int n : {1, 2, 5}) {
            omp_set_num_threads(n);
            results.push_back(run_norm(c, in, run));
        }
        for (size_t i = 1; i < results.size(); i++)
            EXPECT_TRUE(same_bits(results[0].out, results[i].out) && same_bits(results[0].dinp, results[i].dinp) &&
                        same_bits(results[0].dweight, results[i].dweight))
                << run.name;
    }
    omp_set_num_threads(threads);
#else
    GTEST_SKIP() << "needs OpenMP (-fopenmp)";
#endif
}

// x = 2, 1: rstd is 0.632456 (mean of squares 2.5), n is 1.264911 -> 1.265625 and 0.632456 -> 0.6328125. n * w rounds
// to 1.328125 and 0.6640625; x * rstd * w, without the rounding of n, to 1.3203125 and 0.66015625.
TEST(Rmsnorm, RoundsBeforeTheWeight) {
#if defined(PRECISION_FP32)
    GTEST_SKIP() << "a property of the bf16 build";
#else
    for (const Backend& run : all_backends()) {
        select_backend(run);
        TestBuffer<floatX> out(2, run.dev), inp({floatX(2.0f), floatX(1.0f)}, run.dev);
        TestBuffer<floatX> w({floatX(1.046875f), floatX(1.046875f)}, run.dev);
        TestBuffer<float> rstd(1, run.dev);
        rmsnorm_forward(out.data, rstd.data, inp.data, w.data, {1, 2}, 0.0f, run.dev);
        std::vector<floatX> y = out.get();
        EXPECT_EQ((float)y[0], 1.328125f) << run.name;
        EXPECT_EQ((float)y[1], 0.6640625f) << run.name;
    }
#endif
}

TEST(Rmsnorm, NoRowsIsNoWork) {
    for (const Backend& run : all_backends()) {
        TestBuffer<float> dw(std::vector<float>(8, 2.0f), run.dev);
        rmsnorm_forward(nullptr, nullptr, nullptr, nullptr, {0, 8}, EPS, run.dev);
        rmsnorm_backward(nullptr, dw.data, nullptr, nullptr, nullptr, nullptr, {0, 8}, false, run.dev);
        EXPECT_TRUE(same_bits(dw.get(), std::vector<float>(8, 2.0f)));
    }
}

TEST(Rmsnorm, RefusesBadShapes) {
    EXPECT_THROW(rmsnorm_forward(nullptr, nullptr, nullptr, nullptr, {1, 0}, EPS, Device()), Error);
    EXPECT_THROW(rmsnorm_forward(nullptr, nullptr, nullptr, nullptr, {-1, 8}, EPS, Device()), Error);
    EXPECT_THROW(rmsnorm_forward(nullptr, nullptr, nullptr, nullptr, {1ll << 31, 8}, EPS, Device()), Error);
}
