// kernels/cpu/gemm.h: against float64 loops, and the promise that the bits of an output depend on its row and column
// alone, for each instruction set that this CPU has, and AMX by its stand-in; with -fsanitize=address every matrix here is a
// heap block of exactly its size.
#include "../kernels/cpu/gemm.h"
#include <gtest/gtest.h>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

static std::mt19937 rng(1);

static int random_int(int lo, int hi) { return lo + (int)(rng() % (uint32_t)(hi - lo + 1)); }

// Each instruction set that the machine has, and AMX computed by its stand-in
class Gemm : public testing::TestWithParam<CpuIsa> {
    const CpuIsa before = cpu_isa();
    void SetUp() override { cpu_isa_choice().isa = GetParam(); }
    void TearDown() override { cpu_isa_choice().isa = before; }
};

static std::vector<CpuIsa> instruction_sets() {
    std::vector<CpuIsa> sets;
    for (int i = 0; i <= (int)cpu_isa_detect().isa; i++) sets.push_back((CpuIsa)i);
#if defined(__x86_64__)
    sets.push_back(CpuIsa::amx_stand_in);
#endif
    return sets;
}

// The loops above the tiles are the same for all, so all shapes run with the best one alone.
static bool whole_set() { return cpu_isa() == cpu_isa_detect().isa; }

static std::string instruction_set_name(const testing::TestParamInfo<CpuIsa>& info) {
    const char* names[] = {"portable", "avx2", "avx512", "avx512_bf16", "amx", "amx_stand_in"};
    return names[(int)info.param];
}

INSTANTIATE_TEST_SUITE_P(EachIsa, Gemm, testing::ValuesIn(instruction_sets()), instruction_set_name);

enum Fill { GAUSS, SMALL_INTEGERS };

template <class T>
static std::vector<T> random_matrix(int64_t n, Fill fill = GAUSS) {
    std::normal_distribution<float> gauss;
    std::vector<T> x((size_t)n);
    for (T& e : x) e = fill == GAUSS ? T(gauss(rng)) : T((float)random_int(-4, 4));
    return x;
}

template <class T>
static bool same_bits(const T* a, const T* b, int64_t n) {
    return memcmp((const void*)a, (const void*)b, (size_t)n * sizeof(T)) == 0;
}

static void set_threads(int n) {
#if defined(_OPENMP)
    omp_set_num_threads(n);
#else
    (void)n;
#endif
}

static int default_threads() {
#if defined(_OPENMP)
    return omp_get_num_procs();
#else
    return 1;
#endif
}

// C[M,N] against the sum over k of A(i,k) B(k,j) in float64. The bound is the textbook one (Higham, Accuracy and
// Stability, 3.1) for the order gemm.h documents: chains of at most kc terms, then a chain of blocks, old value
// and bias. With u = 2^-24 it is (terms + blocks + 2) u sum |a b|; bf16 inputs have exact products, float inputs lose
// nothing to FMA, one more u a product without. A bf16 output adds its own 2^-8. 1e-36 is for subnormals, which
// vdpbf16ps counts as zero.
template <class TC, class TA, class TB>
static void expect_product(const TC* C, int64_t ldc, const TC* old, int64_t ldo, const TA* A, int64_t sa_i,
                           int64_t sa_k, const TB* B, int64_t sb_k, int64_t sb_j, const TB* bias, int64_t M, int64_t N,
                           int64_t K, bool exact, const char* what) {
    const double u = std::ldexp(1.0, -24);
    const int64_t kc = gemm_kernels().kc;
    const double gamma = ((double)gemm_min(K, kc) + (double)gemm_ceil_div(K, kc) + 3) * u;
    for (int64_t i = 0; i < M; i++)
        for (int64_t j = 0; j < N; j++) {
            double sum = 0, size = 0;
            for (int64_t k = 0; k < K; k++) {
                double p = (double)(float)A[i * sa_i + k * sa_k] * (double)(float)B[k * sb_k + j * sb_j];
                sum += p, size += std::fabs(p);
            }
            if (old) sum += (double)(float)old[i * ldo + j], size += std::fabs((float)old[i * ldo + j]);
            if (bias) sum += (double)(float)bias[j], size += std::fabs((float)bias[j]);
            double got = (double)(float)C[i * ldc + j];
            if (exact) {  // small integers: no order of summation rounds
                ASSERT_EQ(got, (double)(float)TC((float)sum))
                    << what << " at " << i << "," << j << " of M=" << M << " N=" << N << " K=" << K;
                continue;
            }
            double bound = gamma * size + (sizeof(TC) == 2 ? std::fabs(sum) * std::ldexp(1.0, -8) * 1.01 : 0) + 1e-36;
            ASSERT_LE(std::fabs(got - sum), bound)
                << what << " at " << i << "," << j << " of M=" << M << " N=" << N << " K=" << K;
        }
}

// One shape, all forms. Leading dimensions `gap` wider than the rows; the gaps of outputs must keep their poison.
template <class TC, class TA, class TB>
static void check_shape(int64_t M, int64_t N, int64_t K, int64_t gap, Fill fill) {
    SCOPED_TRACE(testing::Message() << "M=" << M << " N=" << N << " K=" << K << " gap=" << gap << " sizes "
                                    << sizeof(TC) << sizeof(TA) << sizeof(TB));
    const bool exact = fill == SMALL_INTEGERS;
    const int64_t ldk = K + gap, ldn = N + 2 * gap;
    // a last row ends with its last element, not with a gap: nothing may be read behind it
    auto X = random_matrix<TA>((M - 1) * ldk + K, fill);
    auto W = random_matrix<TB>((N - 1) * ldk + K, fill);
    auto dY = random_matrix<TA>((M - 1) * ldn + N, fill);
    auto bias = random_matrix<TB>(N, fill);
    auto poison = [&](const auto& now, const auto& before, int64_t rows, int64_t cols, int64_t ld) {
        for (int64_t i = 0; i + 1 < rows; i++)
            if (!same_bits(&now[(size_t)(i * ld + cols)], &before[(size_t)(i * ld + cols)], ld - cols)) return false;
        return true;
    };
    PackedWeight<TB> packed = pack_weight_nt(W.data(), N, K, ldk);
    const TB* no_bias = nullptr;
    const TC* no_old = nullptr;
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        const auto before = random_matrix<TC>((M - 1) * ldn + N, fill);
        auto Y = before, Y2 = before;
        const TC* old = accumulate ? before.data() : no_old;
        gemm_nt(Y.data(), X.data(), W.data(), accumulate ? no_bias : bias.data(), M, N, K, accumulate, {ldn, ldk, ldk});
        expect_product(Y.data(), ldn, old, ldn, X.data(), ldk, 1, W.data(), 1, ldk, accumulate ? no_bias : bias.data(),
                       M, N, K, exact, "gemm_nt");
        EXPECT_TRUE(poison(Y, before, M, N, ldn));
        gemm_nt_packed(Y2.data(), X.data(), packed, accumulate ? no_bias : bias.data(), M, accumulate, {ldn, ldk});
        EXPECT_TRUE(same_bits(Y.data(), Y2.data(), (int64_t)Y.size())) << "packed differs from unpacked";
        // bias and accumulate together, and nullptr as a literal
        Y = before;
        gemm_nt(Y.data(), X.data(), W.data(), bias.data(), M, N, K, true, {ldn, ldk, ldk});
        expect_product(Y.data(), ldn, before.data(), ldn, X.data(), ldk, 1, W.data(), 1, ldk, bias.data(), M, N, K,
                       exact, "gemm_nt bias+old");
        gemm_nt(Y.data(), X.data(), W.data(), nullptr, M, N, K, false, {ldn, ldk, ldk});
        expect_product(Y.data(), ldn, no_old, 0, X.data(), ldk, 1, W.data(), 1, ldk, no_bias, M, N, K, exact,
                       "gemm_nt plain");

        const auto before_x = random_matrix<TC>((M - 1) * ldk + K, fill);
        auto dX = before_x;
        gemm_nn(dX.data(), dY.data(), W.data(), M, N, K, accumulate, {ldk, ldn, ldk});
        expect_product(dX.data(), ldk, accumulate ? before_x.data() : no_old, ldk, dY.data(), ldn, 1, W.data(), ldk, 1,
                       no_bias, M, K, N, exact, "gemm_nn");
        EXPECT_TRUE(poison(dX, before_x, M, K, ldk));
    }
    const auto before_w = random_matrix<float>((N - 1) * ldk + K, fill);
    auto dW = before_w;
    auto X2 = random_matrix<TB>((M - 1) * ldk + K, fill);
    gemm_tn(dW.data(), dY.data(), X2.data(), M, N, K, {ldk, ldn, ldk});
    expect_product(dW.data(), ldk, before_w.data(), ldk, dY.data(), 1, ldn, X2.data(), ldk, 1, no_bias, N, K, M, exact,
                   "gemm_tn");
    EXPECT_TRUE(poison(dW, before_w, N, K, ldk));
}

static void check_types(int64_t M, int64_t N, int64_t K, int64_t gap, Fill fill) {
    check_shape<bf16, bf16, bf16>(M, N, K, gap, fill);
    check_shape<float, bf16, bf16>(M, N, K, gap, fill);
    check_shape<float, float, float>(M, N, K, gap, fill);
}

TEST_P(Gemm, EveryTileShape) {
    const GemmKernels& k = gemm_kernels();
    const int64_t VF = k.vf, NR = k.vf * k.panel_vectors[1], MR = k.mr[k.dot ? GEMM_PAIRS_DOT : GEMM_FLOATS];
    for (int64_t M = 1; M <= MR + 1; M++)
        for (int64_t N : {(int64_t)1, VF - 1, VF, VF + 1, 2 * VF, NR - 1, NR, NR + 1, 2 * NR + 3})
            check_types(M, N, 1 + (M * 7 + N) % 40, M % 3, SMALL_INTEGERS);
}

TEST_P(Gemm, AwkwardShapes) {
    const int64_t shapes[][3] = {{1, 1, 1},     {1, 1, 2},      {2, 3, 5},     {7, 1, 33},    {1, 129, 17},
                                 {31, 33, 3},   {100, 130, 65}, {129, 17, 40}, {3, 1025, 9},  {1025, 9, 3},
                                 {9, 3, 1023},  {9, 3, 1024},   {17, 5, 1025}, {5, 50, 2049}, {1030, 50, 20},
                                 {11, 2500, 7}, {2500, 7, 11}};
    for (auto& s : shapes) {
        check_types(s[0], s[1], s[2], 0, GAUSS);
        check_types(s[0], s[1], s[2], 5, SMALL_INTEGERS);
    }
}

TEST_P(Gemm, RandomShapes) {
    for (int i = 0; i < 40; i++)
        check_types(random_int(1, 90), random_int(1, 150), random_int(1, 150), random_int(0, 9),
                    i % 2 ? GAUSS : SMALL_INTEGERS);
}

TEST_P(Gemm, MixedTypes) {
    for (int i = 0; i < 10; i++) {
        int64_t M = random_int(1, 40), N = random_int(1, 80), K = random_int(1, 80), gap = random_int(0, 3);
        check_shape<float, float, bf16>(M, N, K, gap, i % 2 ? GAUSS : SMALL_INTEGERS);
        check_shape<bf16, float, bf16>(M, N, K, gap, i % 2 ? GAUSS : SMALL_INTEGERS);
        check_shape<float, bf16, float>(M, N, K, gap, i % 2 ? GAUSS : SMALL_INTEGERS);
    }
    check_shape<bf16, float, bf16>(9, 70, 1027, 1, GAUSS);
}

// Several chunks of panels and of rows: what does not fit GEMM_SHARED_BYTES at once.
TEST_P(Gemm, SeveralChunks) {
    const int64_t M = 20, N = 4500, K = 1100;
    auto X = random_matrix<bf16>(M * K, SMALL_INTEGERS), W = random_matrix<bf16>(N * K, SMALL_INTEGERS);
    std::vector<bf16> Y((size_t)(M * N));
    const bf16 *none = nullptr, *no_old = nullptr;
    for (int threads : {1, 2}) {
        if (threads == 1 && !whole_set()) continue;
        set_threads(threads);
        Y.assign(Y.size(), bf16(99.0f));
        gemm_nt(Y.data(), X.data(), W.data(), nullptr, M, N, K);
        expect_product(Y.data(), N, no_old, 0, X.data(), K, 1, W.data(), 1, K, none, M, N, K, true, "gemm_nt");
        auto packed = pack_weight_nt(W.data(), N, K);
        Y.assign(Y.size(), bf16(99.0f));
        gemm_nt_packed(Y.data(), X.data(), packed, nullptr, M);
        expect_product(Y.data(), N, no_old, 0, X.data(), K, 1, W.data(), 1, K, none, M, N, K, true, "gemm_nt_packed");
        if (!whole_set()) continue;
        // rows: 4500 rows of bf16 sums over K = 1100
        std::vector<bf16> Z((size_t)(N * M));
        gemm_nt(Z.data(), W.data(), X.data(), nullptr, N, M, K);
        expect_product(Z.data(), M, no_old, 0, W.data(), K, 1, X.data(), 1, K, none, N, M, K, true, "gemm_nt tall");
        std::vector<bf16> V((size_t)(N * 300));
        auto X3 = random_matrix<bf16>(300 * K, SMALL_INTEGERS);
        gemm_nt(V.data(), W.data(), X3.data(), nullptr, N, 300, K);
        for (int64_t i = 0; i < N; i += 251)
            expect_product(V.data() + i * 300, 300, no_old, 0, W.data() + i * K, K, 1, X3.data(), 1, K, none, 1, 300, K,
                           true, "gemm_nt chunks of rows");
    }
    set_threads(default_threads());
}

// ---- batch invariance ----

template <class TC, class T>
static void check_invariance(int64_t N, int64_t K) {
    SCOPED_TRACE(testing::Message() << "N=" << N << " K=" << K << " sizes " << sizeof(TC) << sizeof(T));
    const int64_t M = 100;
    auto X = random_matrix<T>(M * K), W = random_matrix<T>(N * K), bias = random_matrix<T>(N),
         dY = random_matrix<T>(M * N);
    set_threads(1);
    std::vector<TC> Y((size_t)(M * N)), dX((size_t)(M * K));
    gemm_nt(Y.data(), X.data(), W.data(), bias.data(), M, N, K);
    gemm_nn(dX.data(), dY.data(), W.data(), M, N, K);
    auto packed = pack_weight_nt(W.data(), N, K);
    for (int threads : {1, 2, 3}) {
        if (threads == 2 && !whole_set()) continue;
        set_threads(threads);
        SCOPED_TRACE(testing::Message() << "threads=" << threads);
        for (int64_t m : {1, 2, 3, 7, 16, 17, 64, 100}) {
            for (int64_t from : {(M - m) / 2, (int64_t)0, M - m}) {
                if (from != (M - m) / 2 && !whole_set()) continue;
                std::vector<TC> y((size_t)(m * N)), x((size_t)(m * K));
                gemm_nt(y.data(), X.data() + from * K, W.data(), bias.data(), m, N, K);
                ASSERT_TRUE(same_bits(y.data(), Y.data() + from * N, m * N)) << "gemm_nt rows " << from << "+" << m;
                y.assign(y.size(), TC(7.0f));
                gemm_nt_packed(y.data(), X.data() + from * K, packed, bias.data(), m);
                ASSERT_TRUE(same_bits(y.data(), Y.data() + from * N, m * N)) << "packed rows " << from << "+" << m;
                gemm_nn(x.data(), dY.data() + from * N, W.data(), m, N, K);
                ASSERT_TRUE(same_bits(x.data(), dX.data() + from * K, m * K)) << "gemm_nn rows " << from << "+" << m;
                if (m == M) break;
            }
        }
        // columns [n0, n1) on their own
        const int64_t cuts[] = {0, 1, N / 3, N / 2 + 1, N};
        for (int c = 0; c < 4; c++) {
            int64_t n0 = gemm_min(cuts[c], N), n = gemm_max(n0, cuts[c + 1]) - n0;
            if (n == 0) continue;
            for (int64_t m : {5, 100}) {
                std::vector<TC> y((size_t)(m * n));
                gemm_nt(y.data(), X.data(), W.data() + n0 * K, bias.data() + n0, m, n, K);
                for (int64_t i = 0; i < m; i++)
                    ASSERT_TRUE(same_bits(&y[(size_t)(i * n)], &Y[(size_t)(i * N + n0)], n))
                        << "columns " << n0 << "+" << n;
                auto part = pack_weight_nt(W.data() + n0 * K, n, K);
                gemm_nt_packed(y.data(), X.data(), part, bias.data() + n0, m);
                for (int64_t i = 0; i < m; i++)
                    ASSERT_TRUE(same_bits(&y[(size_t)(i * n)], &Y[(size_t)(i * N + n0)], n))
                        << "packed " << n0 << "+" << n;
            }
        }
        const int64_t k0 = K / 3, k = K - k0;
        std::vector<TC> x((size_t)(M * k));
        gemm_nn(x.data(), dY.data(), W.data() + k0, M, N, k, false, {0, 0, K});
        for (int64_t i = 0; i < M; i++)
            ASSERT_TRUE(same_bits(&x[(size_t)(i * k)], &dX[(size_t)(i * K + k0)], k)) << "gemm_nn columns from " << k0;
    }
    set_threads(default_threads());
}

TEST_P(Gemm, BatchInvariance) {
    const int64_t shapes[][2] = {{1, 1}, {49, 7}, {64, 64}, {130, 128}, {200, 333}, {97, 1024}, {70, 2051}, {1500, 50}};
    for (auto& s : shapes) {
        check_invariance<bf16, bf16>(s[0], s[1]);
        if (!whole_set()) continue;
        check_invariance<float, bf16>(s[0], s[1]);
        check_invariance<float, float>(s[0], s[1]);
    }
}

// The test above means something only if an order of summation shows in the bits.
TEST_P(Gemm, OrderOfSummationShows) {
    const int64_t M = 20, N = 30, K = 500;
    auto X = random_matrix<float>(M * K), W = random_matrix<float>(N * K);
    std::vector<float> Xr((size_t)(M * K)), Wr((size_t)(N * K)), Y((size_t)(M * N)), Yr((size_t)(M * N));
    for (int64_t i = 0; i < M; i++)
        for (int64_t k = 0; k < K; k++) Xr[(size_t)(i * K + k)] = X[(size_t)(i * K + K - 1 - k)];
    for (int64_t i = 0; i < N; i++)
        for (int64_t k = 0; k < K; k++) Wr[(size_t)(i * K + k)] = W[(size_t)(i * K + K - 1 - k)];
    gemm_nt(Y.data(), X.data(), W.data(), nullptr, M, N, K);
    gemm_nt(Yr.data(), Xr.data(), Wr.data(), nullptr, M, N, K);
    EXPECT_FALSE(same_bits(Y.data(), Yr.data(), M * N));
}

TEST_P(Gemm, WeightGradientIsDeterministic) {
    const int64_t shapes[][3] = {{100, 130, 70}, {1500, 60, 90}, {37, 300, 200}};
    for (auto& s : shapes) {
        const int64_t M = s[0], N = s[1], K = s[2];
        auto X = random_matrix<bf16>(M * K), dY = random_matrix<bf16>(M * N);
        auto old = random_matrix<float>(N * K);
        set_threads(1);
        auto dW = old;
        gemm_tn(dW.data(), dY.data(), X.data(), M, N, K);
        for (int threads : {1, 2, 3}) {
            set_threads(threads);
            auto again = old;
            gemm_tn(again.data(), dY.data(), X.data(), M, N, K);
            EXPECT_TRUE(same_bits(dW.data(), again.data(), N * K)) << threads << " threads";
            // the rows of dW in two calls: a sharded weight
            const int64_t n = N / 3;
            again = old;
            gemm_tn(again.data(), dY.data(), X.data(), M, n, K, {0, N});
            gemm_tn(again.data() + n * K, dY.data() + n, X.data(), M, N - n, K, {0, N});
            EXPECT_TRUE(same_bits(dW.data(), again.data(), N * K)) << threads << " threads, split";
        }
    }
    set_threads(default_threads());
}

// ---- edges of the number formats ----

TEST_P(Gemm, Bf16OutputIsTheRoundedFloatOutput) {
    const int64_t M = 9, N = 101, K = 40;
    auto X = random_matrix<bf16>(M * K), W = random_matrix<bf16>(N * K);
    for (int64_t k = 0; k < K; k++) {
        X[(size_t)k] = bf16(1e30f), W[(size_t)k] = bf16(1e30f);  // overflows to infinity
        X[(size_t)(K + k)] = bf16(std::numeric_limits<float>::quiet_NaN());
    }
    std::vector<float> Y((size_t)(M * N));
    std::vector<bf16> Z((size_t)(M * N));
    gemm_nt(Y.data(), X.data(), W.data(), nullptr, M, N, K);
    gemm_nt(Z.data(), X.data(), W.data(), nullptr, M, N, K);
    EXPECT_TRUE(std::isinf(Y[0]));
    EXPECT_TRUE(std::isnan(Y[(size_t)N]));
    for (int64_t i = 0; i < M * N; i++) EXPECT_EQ(Z[(size_t)i].bits, float_to_bf16_bits(Y[(size_t)i])) << i;
}

// What is not finite stays in its row and its column: padding must not carry it further (0 * inf is NaN).
template <class T>
static void check_non_finite() {
    const int64_t M = 11, N = 53, K = 37;
    auto X = random_matrix<T>(M * K), W = random_matrix<T>(N * K);
    X[(size_t)(4 * K + K - 1)] = T(std::numeric_limits<float>::infinity());
    W[(size_t)(50 * K + 3)] = T(std::numeric_limits<float>::quiet_NaN());
    std::vector<float> Y((size_t)(M * N));
    gemm_nt(Y.data(), X.data(), W.data(), nullptr, M, N, K);
    for (int64_t i = 0; i < M; i++)
        for (int64_t j = 0; j < N; j++)
            EXPECT_EQ(std::isfinite(Y[(size_t)(i * N + j)]), i != 4 && j != 50) << i << "," << j;
}
TEST_P(Gemm, NonFiniteStaysInItsRowAndColumn) {
    check_non_finite<bf16>();
    check_non_finite<float>();
}

TEST_P(Gemm, NoRowsIsNothing) {
    float y = 3.0f, w = 2.0f;
    const float* null = nullptr;
    gemm_nt(&y, null, &w, nullptr, 0, 1, 1);
    gemm_nn(&y, null, &w, 0, 1, 1);
    gemm_tn(&y, null, null, 0, 1, 1);
    auto packed = pack_weight_nt(&w, 1, 1);
    gemm_nt_packed(&y, null, packed, nullptr, 0);
    EXPECT_EQ(y, 3.0f);
}

TEST_P(Gemm, PackedWeightMovesAndRepacks) {
    const int64_t M = 3, N = 50, K = 21;
    auto X = random_matrix<bf16>(M * K), W = random_matrix<bf16>(N * K), V = random_matrix<bf16>(N * K);
    std::vector<float> want((size_t)(M * N)), got((size_t)(M * N));
    PackedWeight<bf16> a = pack_weight_nt(W.data(), N, K), b;
    EXPECT_GE(a.bytes(), (size_t)(N * K * 2));
    EXPECT_LE(a.bytes(), (size_t)((N + gemm_kernels().vf) * (K + 1) * 2));
    const uint32_t* memory = a.words;
    repack_weight_nt(a, V.data(), N, K);
    EXPECT_EQ(a.words, memory) << "the same shape keeps its memory";
    b = std::move(a);
    gemm_nt(want.data(), X.data(), V.data(), nullptr, M, N, K);
    gemm_nt_packed(got.data(), X.data(), b, nullptr, M);
    EXPECT_TRUE(same_bits(want.data(), got.data(), M * N));
    repack_weight_nt(b, W.data(), N - 7, K);
    want.resize((size_t)(M * (N - 7))), got.resize(want.size());
    gemm_nt(want.data(), X.data(), W.data(), nullptr, M, N - 7, K);
    gemm_nt_packed(got.data(), X.data(), b, nullptr, M);
    EXPECT_TRUE(same_bits(want.data(), got.data(), M * (N - 7)));
}
