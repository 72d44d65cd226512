// Kronecker products: rows times P1 (x) P2 in float64, the bits of the CPU loops on every backend, the dual, and what
// the gradients of the factors are made of.
#include "operator_test.h"
#include "../kernels/kronecker.cuh"

struct Shape {
    int n1, n2;
    int64_t T;
};
static const Shape shapes[] = {{1, 1, 3},   {1, 7, 2},   {3, 5, 4},   {8, 8, 1},
                               {24, 24, 5}, {9, 16, 33}, {32, 48, 3}, {2, 250, 2}};

struct Factors {
    std::vector<float> p1, p2, scale;
    TestBuffer<float> b1, b2, bs;
    Kronecker k;
    Factors(const Shape& s, bool scaled, Device dev)
        : p1(random_values<float>((size_t)s.n1 * s.n1, 11)),
          p2(random_values<float>((size_t)s.n2 * s.n2, 12)),
          scale(random_values<float>((size_t)s.n1 * s.n2, 13)),
          b1(p1, dev),
          b2(p2, dev),
          bs(scale, dev) {
        k.n1 = s.n1, k.n2 = s.n2, k.p1 = b1.data, k.p2 = b2.data, k.scale = scaled ? bs.data : nullptr;
    }
};

template <class Number>
static std::vector<double> product(const std::vector<Number>& x, const Factors& f, bool backward) {
    const int n1 = f.k.n1, n2 = f.k.n2, N = n1 * n2;
    std::vector<double> y(x.size());
    for (size_t row = 0; row < x.size(); row += (size_t)N)
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) {  // y[j] += x[i] P[i][j]
                const double p = (double)f.p1[i / n2 * n1 + j / n2] * f.p2[i % n2 * n2 + j % n2];
                const double r = f.k.scale ? f.scale[i] : 1.0;
                if (backward) y[row + i] += (double)(float)x[row + j] * p * r;
                else y[row + j] += (double)(float)x[row + i] * r * p;
            }
    return y;
}

template <class Number>
static void expect_the_product_and_the_bits_of_the_loops() {
    for (const Shape& s : shapes)
        for (bool scaled : {false, true}) {
            const size_t n = (size_t)(s.T * s.n1 * s.n2);
            const std::string what = format("%d x %d, T %d%s", s.n1, s.n2, (int)s.T, scaled ? ", scaled" : "");
            const std::vector<Number> x = random_values<Number>(n, 14);
            expect_same_on_all_backends(what, [&](const Backend& run) {
                Factors f(s, scaled, run.dev);
                TestBuffer<Number> y(x, run.dev), dx(x, run.dev);
                kronecker_forward(y.data, f.k, s.T, run.dev);
                kronecker_backward(dx.data, f.k, s.T, run.dev);
                const double cosine = sizeof(Number) == 2 ? 1e-5 : 1e-11, ratio = sizeof(Number) == 2 ? 2e-3 : 1e-5;
                expect_agree(y.get(), product(x, f, false), cosine, ratio, what);
                expect_agree(dx.get(), product(x, f, true), cosine, ratio, what + ", backward");
                return Bytes() << y.get() << dx.get();
            });
        }
}

TEST(Kronecker, TheProductAndTheBitsOfTheLoops) { expect_the_product_and_the_bits_of_the_loops<floatX>(); }
TEST(Kronecker, TheSameOfTheRowsOfAWeight) { expect_the_product_and_the_bits_of_the_loops<float>(); }

template <class Number>
static void expect_moments() {
    for (const Shape& s : shapes) {
        const int n1 = s.n1, n2 = s.n2, N = n1 * n2;
        const std::vector<Number> y = random_values<Number>((size_t)s.T * N, 15),
                                  dy = random_values<Number>((size_t)s.T * N, 16);
        std::vector<double> m1(n1 * n1, 1.0), m2(n2 * n2, 2.0), columns(N, 3.0);
        for (int64_t t = 0; t < s.T; t++)
            for (int i = 0; i < n1; i++)
                for (int j = 0; j < n2; j++) {
                    const double x = (double)(float)y[t * N + i * n2 + j];
                    for (int b = 0; b < n1; b++) m1[i * n1 + b] += x * (double)(float)dy[t * N + b * n2 + j];
                    for (int b = 0; b < n2; b++) m2[j * n2 + b] += x * (double)(float)dy[t * N + i * n2 + b];
                    columns[i * n2 + j] -= x * (double)(float)dy[t * N + i * n2 + j];
                }
        for (const Backend& run : all_backends()) {
            select_backend(run);
            const std::string what = format("%d x %d on ", n1, n2) + run.name;
            Factors f(s, false, run.dev);
            TestBuffer<Number> a(y, run.dev), b(dy, run.dev);
            TestBuffer<float> g1(std::vector<float>(n1 * n1, 1.0f), run.dev),
                g2(std::vector<float>(n2 * n2, 2.0f), run.dev), gs(std::vector<float>(N, 3.0f), run.dev);
            kronecker_moments(g1.data, g2.data, a.data, b.data, f.k, s.T, run.dev);
            kronecker_columns(gs.data, a.data, b.data, N, s.T, -1.0f, run.dev);
            expect_agree(g1.get(), m1, 1e-11, 1e-5, what + ", moments of the first");
            expect_agree(g2.get(), m2, 1e-11, 1e-5, what + ", of the second");
            expect_agree(gs.get(), columns, 1e-11, 1e-5, what + ", columns");
        }
    }
}

TEST(Kronecker, Moments) { expect_moments<floatX>(); }
TEST(Kronecker, MomentsOfWeights) { expect_moments<float>(); }

TEST(Kronecker, MomentsDoNotDependOnTheThreads) {
    const Shape s = {24, 32, 50};
    const std::vector<floatX> y = random_values<floatX>(50 * 768, 17), dy = random_values<floatX>(50 * 768, 18);
    Factors f(s, false, Device());
    expect_same_for_any_threads<float>(
        [&] {
            std::vector<float> sums(24 * 24 + 32 * 32 + 768);
            kronecker_moments(sums.data(), sums.data() + 24 * 24, y.data(), dy.data(), f.k, s.T, Device());
            kronecker_columns(sums.data() + 24 * 24 + 32 * 32, y.data(), dy.data(), 768, s.T, 1.0f, Device());
            return sums;
        },
        "moments");
}

TEST(Kronecker, WidthsOfModels) {
    struct Case {
        int64_t length;
        int n1, n2;
    };
    for (const Case& c : {Case{576, 24, 24},
                          {1536, 32, 48},
                          {896, 28, 32},
                          {4864, 64, 76},
                          {8960, 80, 112},
                          {9728, 76, 128},
                          {1, 1, 1},
                          {251, 1, 251}}) {
        Kronecker k;
        ASSERT_TRUE(kronecker_split(k, c.length)) << c.length;
        EXPECT_EQ(k.n1, c.n1) << c.length;
        EXPECT_EQ(k.n2, c.n2) << c.length;
    }
    Kronecker k;
    for (int64_t length : {0, 257, 2 * 257, 32768}) EXPECT_FALSE(kronecker_split(k, length)) << length;
}

TEST(Kronecker, BadShapesAreRefused) {
    floatX x[4] = {};
    EXPECT_THROW(kronecker_forward(x, Kronecker(), 1, Device()), Error);
    Kronecker wide;
    wide.n1 = 1, wide.n2 = KRONECKER_MOST + 1;
    EXPECT_THROW(kronecker_forward(x, wide, 1, Device()), Error);
    wide.n2 = 2;
    EXPECT_THROW(kronecker_backward(x, wide, -1, Device()), Error);
}
