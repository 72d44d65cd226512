// Hadamard transform: the matrices of every order that models need are orthogonal, the CPU loops equal a product in
// float64 with the matrix, and the kernel has the bits of the loops.
#include "operator_test.h"
#include "../kernels/hadamard.cuh"

typedef TestBuffer<floatX> Half;

static std::vector<double> matrix(const Hadamard& h) {
    int64_t N = h.N();
    std::vector<double> H(N * N);
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j < N; j++) {
            int a = (int)(i / h.P), b = (int)(j / h.P), bits = (int)(i % h.P & j % h.P);
            bool negative = (h.K > 1 && hadamard_negative(h, a, b)) != (__builtin_popcount(bits) % 2 == 1);
            H[i * N + j] = (negative ? -1.0 : 1.0) / std::sqrt((double)N);
        }
    return H;
}

TEST(Hadamard, TheBlocksOfEveryOrderAreOrthogonal) {
    for (int K : {1, 4, 8, 12, 20, 24, 28, 32, 36, 44, 48, 60, 68, 72, 76, 84, 108, 140, 148, 152, 252}) {
        Hadamard h;
        ASSERT_TRUE(hadamard_construct(h, K)) << K;
        for (int a = 0; a < K; a++)
            for (int b = 0; b < K; b++) {
                int rows = 0, columns = 0;
                for (int k = 0; k < K && K > 1; k++) {
                    rows += hadamard_negative(h, a, k) == hadamard_negative(h, b, k) ? 1 : -1;
                    columns += hadamard_negative(h, k, a) == hadamard_negative(h, k, b) ? 1 : -1;
                }
                if (K > 1) { ASSERT_TRUE(rows == (a == b ? K : 0) && columns == rows) << K << ": " << a << ", " << b; }
            }
    }
    Hadamard h;
    for (int K : {2, 3, 10, 16, 22, 40, 52, 92, 172}) EXPECT_FALSE(hadamard_construct(h, K)) << K;
}

TEST(Hadamard, WidthsOfModels) {
    struct Case {
        int64_t length, N;
        int K;
    };
    // hidden sizes, inner sizes and head sizes of the models that the tree is for
    for (const Case& c : {Case{1024, 1024, 1},
                          {4096, 4096, 1},
                          {1536, 1536, 12},
                          {6144, 6144, 12},
                          {896, 896, 28},
                          {2560, 2560, 20},
                          {8960, 8960, 140},
                          {4864, 4864, 76},
                          {9728, 9728, 76},
                          {576, 576, 36},
                          {960, 960, 60},
                          {3584, 3584, 28},
                          {18944, 18944, 148},
                          {14336, 14336, 28},
                          {11008, 256, 1},
                          {27648, 1024, 1},
                          {64, 64, 1},
                          {80, 80, 20},
                          {7, 1, 1}}) {
        Hadamard h = hadamard_for(c.length);
        EXPECT_EQ(h.N(), c.N) << c.length;
        EXPECT_EQ(h.K, c.K) << c.length;
        EXPECT_EQ(c.length % h.N(), 0);
    }
}

template <class Number>
static void expect_the_product_and_the_bits_of_the_loops() {
    struct Case {
        int64_t N, T, segments, gap;
    };
    for (const Case& c : {Case{1, 3, 5, 0},
                          {2, 5, 1, 1},
                          {8, 9, 3, 8},
                          {64, 7, 11, 0},
                          {128, 3, 3, 24},
                          {12, 5, 2, 3},
                          {20, 1, 1, 0},
                          {44, 67, 1, 0},
                          {56, 3, 2, 0},
                          {144, 2, 5, 8},
                          {152, 4, 1, 0},
                          {280, 2, 1, 1},
                          {576, 3, 1, 0},
                          {2048, 2, 2, 0},
                          {4096, 1, 1, 0},
                          {4864, 1, 1, 0},
                          {12288, 1, 1, 0}}) {
        std::string what = format("N %lld T %lld segments %lld gap %lld", (long long)c.N, (long long)c.T,
                                  (long long)c.segments, (long long)c.gap);
        Hadamard h;
        ASSERT_TRUE(hadamard_of_order(h, c.N)) << what;
        int64_t width = c.segments * c.N, stride = width + c.gap;
        std::vector<Number> x = random_values<Number>(c.T * stride, 1), first[3];
        std::vector<double> expected[2], double_row(c.N), buffer(c.N);
        if (c.N <= 600) {
            std::vector<double> H = matrix(h);
            for (int64_t row = 0; row < c.T * c.segments; row++) {
                const Number* from = x.data() + row / c.segments * stride + row % c.segments * c.N;
                for (int64_t i = 0; i < c.N; i++) {
                    double y = 0, dx = 0;
                    for (int64_t j = 0; j < c.N; j++)
                        y += H[i * c.N + j] * (double)(float)from[j], dx += H[j * c.N + i] * (double)(float)from[j];
                    expected[0].push_back(y), expected[1].push_back(dx);
                }
                for (bool transpose : {false, true}) {  // the double loop
                    for (int64_t i = 0; i < c.N; i++) double_row[i] = (double)(float)from[i];
                    hadamard_double(double_row.data(), buffer.data(), h, transpose);
                    for (int64_t i = 0; i < c.N; i++)
                        ASSERT_NEAR(double_row[i], expected[transpose][row * c.N + i], 1e-12) << what;
                }
            }
        }
        for (const Backend& run : all_backends()) {
            select_backend(run);
            TestBuffer<Number> forward(x, run.dev), backward(x, run.dev), both(x, run.dev);
            hadamard_forward(forward.data, stride, h, c.T, c.segments, run.dev);
            hadamard_backward(backward.data, stride, h, c.T, c.segments, run.dev);
            hadamard_forward(both.data, stride, h, c.T, c.segments, run.dev);
            hadamard_backward(both.data, stride, h, c.T, c.segments, run.dev);
            std::vector<Number> y[3] = {forward.get(), backward.get(), both.get()};
            for (int i = 0; i < 3; i++) {
                if (run.name == "cpu") first[i] = y[i];
                EXPECT_TRUE(same_bits(y[i], first[i])) << what << ", " << run.name << ": array " << i;
                std::vector<Number> rows;
                std::vector<double> inputs;
                for (int64_t t = 0; t < c.T; t++) {
                    for (int64_t j = 0; j < width; j++) {
                        rows.push_back(y[i][t * stride + j]);
                        inputs.push_back((double)(float)x[t * stride + j]);
                    }
                    EXPECT_EQ(memcmp(&y[i][t * stride + width], &x[t * stride + width], c.gap * sizeof(Number)), 0)
                        << what << ", " << run.name << ": wrote between rows";
                }
                double cosine = sizeof(Number) == 2 ? 1e-5 : 1e-12, ratio = sizeof(Number) == 2 ? 2e-3 : 1e-6;
                if (i == 2) expect_agree(rows, inputs, cosine, ratio, what + ", " + run.name + ": and back");
                else if (c.N <= 600) expect_agree(rows, expected[i], cosine, ratio, what + ", " + run.name);
            }
        }
    }
}

TEST(Hadamard, EveryBackendGivesTheProductAndTheBitsOfTheLoops) {
    expect_the_product_and_the_bits_of_the_loops<floatX>();
}

TEST(Hadamard, TheSameOfTheRowsOfAWeight) { expect_the_product_and_the_bits_of_the_loops<float>(); }

TEST(Hadamard, ARowHasTheSameBitsInEveryBatch) {
    for (const Backend& run : all_backends()) {
        select_backend(run);
        for (int64_t N : {48, 64, 896}) {
            Hadamard h = hadamard_for(N);
            std::vector<floatX> x = random_values<floatX>(9 * N, 2);
            Half all(x, run.dev), one(std::vector<floatX>(x.begin() + 4 * N, x.begin() + 5 * N), run.dev);
            hadamard_forward(all.data, N, h, 9, 1, run.dev);
            hadamard_forward(one.data, N, h, 1, 1, run.dev);
            std::vector<floatX> a = all.get(), b = one.get();
            EXPECT_EQ(memcmp(&a[4 * N], b.data(), N * sizeof(floatX)), 0) << N << ", " << run.name;
        }
    }
}

TEST(Hadamard, BadShapesAreRefused) {
    floatX x[8];
    EXPECT_THROW(hadamard_forward(x, 8, Hadamard(), 1, 1, Device()), Error);
    EXPECT_THROW(hadamard_forward(x, 7, hadamard_for(8), 2, 1, Device()), Error);
    EXPECT_THROW(hadamard_forward(x, 8, hadamard_for(8), 1, 0, Device()), Error);
    Hadamard h;
    EXPECT_FALSE(hadamard_of_order(h, 32768));
    EXPECT_FALSE(hadamard_of_order(h, 0));
}
