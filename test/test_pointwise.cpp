// The operators that move or change numbers one by one: embedding, rope, swiglu, bias, rows, conversion, AdamW,
// gradient norm. test_kernels.cpp holds their CPU loops against float64; here the launchers run on
// every backend. Where the arithmetic is elementwise, or the order of addition is the same, the kernels must give the
// bits of the CPU loops; where it is not (bias, norm) they are held against float64 too, and every thread order must
// give the same bits.
#include "operator_test.h"
#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <map>
#include "../kernels/adamw.cuh"
#include "../kernels/bias.cuh"
#include "../kernels/convert.cuh"
#include "../kernels/embedding.cuh"
#include "../kernels/global_norm.cuh"
#include "../kernels/mix.cuh"
#include "../kernels/rope.cuh"
#include "../kernels/row_mean.cuh"
#include "../kernels/rows.cuh"
#include "../kernels/self_certainty.cuh"
#include "../kernels/squared_error.cuh"
#include "../kernels/swiglu.cuh"

typedef TestBuffer<floatX> Half;
typedef TestBuffer<float> Full;

static std::vector<int> random_ints(size_t n, uint32_t tensor, int below) {
    std::vector<int> v(n);
    for (size_t i = 0; i < n; i++) v[i] = (int)(rng_bits(2, RNG_INIT, tensor, (uint32_t)i, 0).x[0] % (uint32_t)below);
    return v;
}

// n distinct numbers below `below`, in no order
static std::vector<int> distinct_ints(size_t n, uint32_t tensor, int below) {
    std::vector<int> v(below);
    for (int i = 0; i < below; i++) v[i] = i;
    for (int i = below - 1; i > 0; i--)
        std::swap(v[i], v[rng_bits(3, RNG_INIT, tensor, (uint32_t)i, 0).x[0] % (uint32_t)(i + 1)]);
    v.resize(n);
    return v;
}

// ---------------------------------------------------------------------------------------------------------------------
// rows

struct RowsCase {
    int64_t R, T, C;
};

static std::vector<RowsCase> rows_cases() {
    return {{1, 1, 1}, {1, 3, 8}, {5, 9, 67}, {33, 40, 64}, {7, 7, 576}, {3, 5, 2056}, {3, 4, 4100}, {0, 4, 16}};
}

TEST(Rows, GatherAndScatter) {
    for (const RowsCase& c : rows_cases())
        for (const Backend& run : all_backends()) {
            select_backend(run);
            std::string what =
                format("R %lld T %lld C %lld, %s", (long long)c.R, (long long)c.T, (long long)c.C, run.name.c_str());
            std::vector<floatX> x = random_values<floatX>(c.T * c.C, 1), y = random_values<floatX>(c.R * c.C + 1, 2);
            std::vector<int> rows = distinct_ints(c.T, 3, (int)c.T);  // the first R are used
            std::vector<floatX> gathered(c.R * c.C), scattered(c.T * c.C, (floatX)0.0f);
            for (int64_t r = 0; r < c.R; r++)
                for (int64_t i = 0; i < c.C; i++) {
                    gathered[r * c.C + i] = x[rows[r] * c.C + i];
                    scattered[rows[r] * c.C + i] = y[r * c.C + i];
                }
            TestBuffer<int> index(rows, run.dev);
            Half in(x, run.dev), small(y, run.dev), got(c.R * c.C, run.dev), all(c.T * c.C, run.dev);
            gather_rows(got.data, in.data, index.data, c.R, c.C, run.dev);
            EXPECT_TRUE(same_bits(got.get(), gathered)) << what;
            scatter_rows(all.data, small.data, index.data, c.R, c.T, c.C, run.dev);
            EXPECT_TRUE(same_bits(all.get(), scattered)) << what;
        }
}

// runs of 1, 3 and 2 equal rows: the sums in fp32, in order, then rounded once
TEST(Rows, ScatterAddsUpARunOfEqualRows) {
    for (int C : {24, 67, 2056})
        for (const Backend& run : all_backends()) {
            select_backend(run);
            const std::vector<int> rows = {4, 1, 1, 1, 3, 0, 0};
            std::vector<floatX> x = random_values<floatX>(7 * C, 4), want(5 * C, (floatX)0.0f);
            for (int i = 0; i < C; i++) {
                auto at = [&](int r) { return (float)x[r * C + i]; };
                want[4 * C + i] = x[i], want[3 * C + i] = x[4 * C + i];
                want[C + i] = (floatX)(at(1) + at(2) + at(3)), want[i] = (floatX)(at(5) + at(6));
            }
            Half in(x, run.dev), out(5 * C, run.dev);
            TestBuffer<int> index(rows, run.dev);
            scatter_rows(out.data, in.data, index.data, 7, 5, C, run.dev);
            EXPECT_TRUE(same_bits(out.get(), want)) << C << ", " << run.name;
        }
}

TEST(Rows, GatherTakesARowTwice) {
    for (const Backend& run : all_backends()) {
        select_backend(run);
        Half in(random_values<floatX>(3 * 24, 4), run.dev), out(4 * 24, run.dev);
        TestBuffer<int> index(std::vector<int>{2, 0, 2, 2}, run.dev);
        gather_rows(out.data, in.data, index.data, 4, 24, run.dev);
        std::vector<floatX> x = in.get(), y = out.get();
        for (int i = 0; i < 24; i++) {
            EXPECT_TRUE((float)y[i] == (float)x[48 + i] && (float)y[24 + i] == (float)x[i] &&
                        (float)y[48 + i] == (float)x[48 + i] && (float)y[72 + i] == (float)x[48 + i])
                << run.name;
        }
    }
}

template <class T>
static void expect_rows_put(const RowsCase& c, const Backend& run) {
    select_backend(run);
    const std::string what = format("R %lld T %lld C %lld, %zu bytes, %s", (long long)c.R, (long long)c.T,
                                    (long long)c.C, sizeof(T), run.name.c_str());
    const std::vector<int> a = random_ints(c.T * c.C, 5, 200), b = random_ints(c.R * c.C + 1, 6, 200);
    std::vector<T> x, y;
    for (int v : a) x.push_back((T)(float)v);
    for (int v : b) y.push_back((T)(float)v);
    const std::vector<int> rows = distinct_ints(c.T, 7, (int)c.T);  // the first R are used
    std::vector<T> gathered(c.R * c.C), put = x;
    for (int64_t r = 0; r < c.R; r++)
        for (int64_t i = 0; i < c.C; i++) {
            gathered[r * c.C + i] = x[rows[r] * c.C + i];
            put[rows[r] * c.C + i] = y[r * c.C + i];
        }
    TestBuffer<int> index(rows, run.dev);
    TestBuffer<T> all(x, run.dev), some(y, run.dev), got(c.R * c.C, run.dev);
    gather_rows(got.data, all.data, index.data, c.R, c.C, run.dev);
    EXPECT_TRUE(same_bits(got.get(), gathered)) << what;
    put_rows(all.data, some.data, index.data, c.R, c.C, run.dev);
    EXPECT_TRUE(same_bits(all.get(), put)) << what;
}

TEST(Rows, ArePutBackAndTheOthersStay) {
    for (const RowsCase& c : rows_cases())
        for (const Backend& run : all_backends()) {
            expect_rows_put<float>(c, run), expect_rows_put<bf16>(c, run), expect_rows_put<uint8_t>(c, run);
        }
}

// width: beyond the columns that are asked for stand zeros
TEST(Rows, GatherColumns) {
    struct Case {
        int64_t T, C, count, width;
    };
    for (const Case& c : {Case{1, 1, 1, 1}, Case{5, 67, 9, 9}, Case{3, 67, 67, 128}, Case{9, 40, 1, 64},
                          Case{130, 300, 31, 33}, Case{0, 8, 2, 4}, Case{2, 8, 0, 3}})
        for (const Backend& run : all_backends()) {
            select_backend(run);
            const int64_t stride = c.C + 3, out_stride = c.width + 5;
            std::vector<floatX> x = random_values<floatX>(c.T * stride + 1, 8);
            std::vector<int> columns = distinct_ints(c.C, 9, (int)c.C);
            TestBuffer<int> index(columns, run.dev);
            Half in(x, run.dev), out(c.T * out_stride, run.dev);
            std::vector<floatX> want = out.get();
            for (int64_t t = 0; t < c.T; t++)
                for (int64_t i = 0; i < c.width; i++)
                    want[t * out_stride + i] = i < c.count ? x[t * stride + columns[i]] : (floatX)0.0f;
            gather_columns({out.data, out_stride}, {in.data, stride}, index.data, c.T, c.count, c.width, run.dev);
            EXPECT_TRUE(same_bits(out.get(), want)) << format("T %lld C %lld, %lld of %lld columns, ", (long long)c.T,
                                                              (long long)c.C, (long long)c.count, (long long)c.width)
                                                    << run.name;
        }
}

// the loop against float64, the kernels with its bits
TEST(Rows, MeanSize) {
    for (const RowsCase& c : {RowsCase{1, 0, 1}, RowsCase{3, 0, 31}, RowsCase{9, 0, 67}, RowsCase{17, 0, 576},
                              RowsCase{2, 0, 4100}, RowsCase{0, 0, 8}}) {
        const std::vector<float> x = random_values<float>(c.R * c.C, 10);
        expect_same_on_all_backends(format("R %lld C %lld", (long long)c.R, (long long)c.C), [&](const Backend& run) {
            Full in(x, run.dev), out(c.R, run.dev);
            row_mean_size(out.data, in.data, c.R, c.C, run.dev);
            const std::vector<float> got = out.get();
            for (int64_t r = 0; r < c.R; r++) {
                double sum = 0.0;
                for (int64_t i = 0; i < c.C; i++) sum += std::fabs((double)x[r * c.C + i]);
                EXPECT_NEAR(got[r], sum / (double)c.C, 2e-6 * sum / (double)c.C) << r;
            }
            return Bytes() << got;
        });
    }
}

// the loop against KL(uniform || p) in float64 from all the logits, the kernels with its bits
TEST(Rows, SelfCertaintyNeedsNoLogits) {
    for (const auto& [R, C, V] : {std::array<int, 3>{1, 1, 1}, {3, 31, 7}, {9, 67, 101}, {2, 576, 300}, {0, 8, 5}}) {
        const std::vector<floatX> hidden = random_values<floatX>((size_t)R * C, 11);
        const std::vector<floatX> weight = random_values<floatX>((size_t)V * C, 12);
        std::vector<float> sums(C), lse(R);
        bias_backward_cpu(sums.data(), weight.data(), V, C);
        std::vector<double> want(R);
        const double temperature = 0.7;
        for (int r = 0; r < R; r++) {
            std::vector<double> z(V);
            double total = 0.0;
            for (int v = 0; v < V; v++) {
                for (int i = 0; i < C; i++) z[v] += (double)(float)hidden[r * C + i] * (double)(float)weight[v * C + i];
                z[v] /= temperature;
                total += std::exp(z[v]);
            }
            lse[r] = (float)std::log(total);
            for (int v = 0; v < V; v++) want[r] -= std::log(V * std::exp(z[v]) / total) / V;
        }
        expect_same_on_all_backends(format("R %d C %d V %d", R, C, V), [&, R = R, C = C, V = V](const Backend& run) {
            Half in(hidden, run.dev);
            Full of_head(sums, run.dev), logs(lse, run.dev), out(R, run.dev);
            self_certainty(out.data, in.data, of_head.data, logs.data, R, C, V, (float)(1.0 / temperature), run.dev);
            const std::vector<float> got = out.get();
            for (int r = 0; r < R; r++) EXPECT_NEAR(got[r], want[r], 2e-5 * (1.0 + std::fabs(want[r]))) << r;
            return Bytes() << got;
        });
    }
}

TEST(Rows, KeysAndValuesGoToTheirPlaceAndNowhereElse) {
    struct Case {
        int64_t T, width, gap;
    };
    for (const Case& c : {Case{1, 8, 0}, Case{9, 24, 40}, Case{13, 67, 5}, Case{4, 1024, 64}, Case{2, 2200, 8}})
        for (const Backend& run : all_backends()) {
            select_backend(run);
            std::string what = format("T %lld width %lld gap %lld, %s", (long long)c.T, (long long)c.width,
                                      (long long)c.gap, run.name.c_str());
            const int64_t rows[2] = {c.T + 3, c.T + 1}, k_stride = c.width + c.gap, v_stride = c.width + 2 * c.gap;
            std::vector<floatX> kx = random_values<floatX>(c.T * k_stride, 5),
                                vx = random_values<floatX>(c.T * v_stride, 6);
            Half k_rows(kx, run.dev), v_rows(vx, run.dev);
            Half k0(rows[0] * c.width, run.dev), k1(rows[1] * c.width, run.dev);
            Half v0(rows[0] * c.width, run.dev), v1(rows[1] * c.width, run.dev);
            std::vector<int> at0 = distinct_ints(c.T, 7, (int)rows[0]), at1 = distinct_ints(c.T, 8, (int)rows[1]);
            std::vector<CacheRow> writes;
            for (int t = 0; t < c.T; t++) writes.push_back(t % 3 == 1 ? CacheRow{1, at1[t]} : CacheRow{0, at0[t]});
            TestBuffer<CacheRow> to(writes, run.dev);
            floatX *k[2] = {k0.data, k1.data}, *v[2] = {v0.data, v1.data};
            kv_cache_write(k, v, {k_rows.data, k_stride}, {v_rows.data, v_stride}, to.data, c.T, c.width, run.dev);
            std::vector<floatX> got_k[2] = {k0.get(), k1.get()}, got_v[2] = {v0.get(), v1.get()};
            std::map<std::pair<int, int64_t>, int64_t> written;
            for (int64_t t = 0; t < c.T; t++) written[{writes[t].place, writes[t].row}] = t;
            for (int place = 0; place < 2; place++)
                for (int64_t r = 0; r < rows[place]; r++)
                    for (int64_t i = 0; i < c.width; i++) {
                        floatX a = got_k[place][r * c.width + i], b = got_v[place][r * c.width + i];
                        auto found = written.find({place, r});
                        if (found == written.end())
                            ASSERT_TRUE(still_poison(a) && still_poison(b))
                                << what << ": place " << place << " row " << r;
                        else
                            ASSERT_TRUE((float)a == (float)kx[found->second * k_stride + i] &&
                                        (float)b == (float)vx[found->second * v_stride + i])
                                << what << ": place " << place << " row " << r;
                    }
        }
}

TEST(Convert, RoundsLikeOneNumberAtATime) {
    for (int64_t n : {1, 3, 8, 67, 2048, 2051, 9001})
        for (size_t offset : {0, 1}) {  // 1: not aligned
            std::vector<float> x = random_values<float>(n + offset, 9, 3.0f);
            if (n > 60) {
                x[20] = INFINITY, x[21] = -INFINITY, x[22] = bits_float(0x3F808000u), x[23] = bits_float(0x3F818000u);
                x[24] = -0.0f, x[25] = 1e-40f, x[26] = NAN;
            }
            for (const Backend& run : all_backends()) {
                select_backend(run);
                Full in(x, run.dev);
                Half out(n + offset, run.dev);
                convert_forward(out.data + offset, in.data + offset, n, run.dev);
                std::vector<floatX> y = out.get();
                for (int64_t i = 0; i < n; i++) {
                    floatX expected = (floatX)x[i + offset];
                    ASSERT_EQ(memcmp(&y[i + offset], &expected, sizeof(floatX)), 0)
                        << "n " << n << " element " << i << ", " << run.name;
                }
                if (offset) { EXPECT_TRUE(still_poison(y[0])) << run.name; }
                Half half(y, run.dev);
                Full wide(n + offset, run.dev);
                convert_widen(wide.data + offset, half.data + offset, n, run.dev);
                std::vector<float> z = wide.get();
                for (int64_t i = 0; i < n; i++) {
                    float expected = (float)y[i + offset];
                    ASSERT_EQ(memcmp(&z[i + offset], &expected, sizeof(float)), 0)
                        << "n " << n << " element " << i << " widened, " << run.name;
                }
                if (offset) { EXPECT_TRUE(still_poison(z[0])) << run.name; }
            }
        }
}

TEST(Mix, IsTheWeightedMeanRoundedOnce) {
    for (int64_t n : {1, 3, 8, 67, 2051})
        for (float a : {1.0f, 0.6f, 0.01f})
            for (size_t offset : {0, 1}) {  // 1: not aligned
                std::vector<floatX> x = random_values<floatX>(n + offset, 11, 3.0f),
                                    y = random_values<floatX>(n + offset, 12, 3.0f);
                for (const Backend& run : all_backends()) {
                    select_backend(run);
                    Half in(x, run.dev), out(y, run.dev);
                    mix_forward(out.data + offset, in.data + offset, a, n, run.dev);
                    std::vector<floatX> got = out.get();
                    for (int64_t i = (int64_t)offset; i < n + (int64_t)offset; i++) {
                        const double exact = (double)a * (float)x[i] + (1.0 - (double)a) * (float)y[i];
                        ASSERT_NEAR(
                            (float)got[i], exact,
                            (sizeof(floatX) == 2 ? 4e-3 : 3e-7) * (std::fabs((float)x[i]) + std::fabs((float)y[i])))
                            << "n " << n << " a " << a << " element " << i << ", " << run.name;
                        if (a == 1.0f) { ASSERT_EQ((float)got[i], (float)x[i]); }
                    }
                    if (offset) { ASSERT_EQ((float)got[0], (float)y[0]) << run.name; }
                }
            }
}

// the sum over more than a chunk; the gradient on rows that no pack divides, assigned and added
TEST(SquaredErrors, SumsAndGradientsAreTheSameOnEveryBackend) {
    for (int64_t n : {1, 3, 255, 257, 2051, 70001}) {
        const std::vector<floatX> x = random_values<floatX>(n, 31, 3.0f), y = random_values<floatX>(n, 32, 2.0f),
                                  before = random_values<floatX>(n, 33);
        double loss = 0.0, size = 0.0;
        for (int64_t i = 0; i < n; i++) {
            const double d = (double)(float)x[i] - (double)(float)y[i];
            loss += d * d, size += (double)(float)y[i] * (double)(float)y[i];
        }
        const std::string what = format("n %lld", (long long)n);
        expect_same_on_all_backends(what, [&](const Backend& run) {
            Half a(x, run.dev), b(y, run.dev), d(n, run.dev), added(before, run.dev);
            const SquaredError e = squared_error_forward(a.data, b.data, n, run.dev);
            EXPECT_NEAR(e.loss, loss, 1e-6 * loss) << what << ", " << run.name;
            EXPECT_NEAR(e.size, size, 1e-12 * size) << what << ", " << run.name;
            squared_error_backward(d.data, a.data, b.data, n, false, run.dev);
            squared_error_backward(added.data, a.data, b.data, n, true, run.dev);
            const std::vector<floatX> assigned = d.get(), sum = added.get();
            for (int64_t i = 0; i < n; i++) {
                const double exact = 2.0 * ((double)(float)x[i] - (double)(float)y[i]),
                             tolerance = (sizeof(floatX) == 2 ? 4e-3 : 3e-7) * (std::fabs(exact) + 2.0);
                EXPECT_NEAR((float)assigned[i], exact, tolerance) << what << " element " << i << ", " << run.name;
                EXPECT_NEAR((float)sum[i], exact + (double)(float)before[i], tolerance) << what << " element " << i;
            }
            return Bytes() << std::vector<double>{e.loss, e.size} << assigned << sum;
        });
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// embedding

TEST(Embedding, RepeatedTokensAddInOrderOnEveryBackend) {
    struct Case {
        int64_t T, C;
        int V;
        const char* tokens;
    };
    for (const Case& c : {Case{1, 1, 1, "same"}, Case{33, 8, 67, "random"}, Case{70, 67, 67, "same"},
                          Case{67, 24, 67, "distinct"}, Case{300, 64, 40, "random"}, Case{7, 1100, 3, "random"},
                          Case{9, 1100, 9, "same"}, Case{100, 40, 67, "mostly one"}, Case{16, 16, 3, "halves"}}) {
        std::string what = format("T %lld C %lld V %d, %s tokens", (long long)c.T, (long long)c.C, c.V, c.tokens),
                    kind = c.tokens;
        std::vector<int> tokens = random_ints(c.T, 10, c.V);
        if (kind == "same") std::fill(tokens.begin(), tokens.end(), c.V - 1);
        if (kind == "distinct") tokens = distinct_ints(c.T, 11, c.V);
        if (kind == "mostly one")
            for (int64_t t = 0; t < c.T; t++)
                if (t % 10 != 3) tokens[t] = 5;
        if (kind == "halves")  // runs of exactly the 8 rows that are in flight
            for (int64_t t = 0; t < c.T; t++) tokens[t] = t % 2 ? 2 : 0;
        std::vector<floatX> wte = random_values<floatX>(c.V * c.C, 12), dout = random_values<floatX>(c.T * c.C, 13);
        std::vector<float> before = random_values<float>(c.V * c.C, 14);
        std::vector<floatX> out(c.T * c.C);
        std::vector<float> dwte = before;
        for (int64_t t = 0; t < c.T; t++)
            for (int64_t i = 0; i < c.C; i++) {
                out[t * c.C + i] = wte[tokens[t] * c.C + i];
                dwte[tokens[t] * c.C + i] += (float)dout[t * c.C + i];
            }
        for (const Backend& run : all_backends()) {
            select_backend(run);
            TestBuffer<int> index(tokens, run.dev);
            Half weight(wte, run.dev), y(c.T * c.C, run.dev), dy(dout, run.dev);
            Full dw(before, run.dev);
            embedding_forward(y.data, index.data, weight.data, c.T, c.C, run.dev);
            embedding_backward(dw.data, dy.data, index.data, c.T, c.C, run.dev);
            EXPECT_TRUE(same_bits(y.get(), out)) << what << ", " << run.name << ": forward";
            EXPECT_TRUE(same_bits(dw.get(), dwte)) << what << ", " << run.name << ": backward";
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// rope

struct RopeCase {
    int64_t T;
    int H, HD;
    int64_t gap;
};

TEST(Rope, EveryBackendGivesTheBitsOfTheLoops) {
    for (const RopeCase& c : {RopeCase{1, 1, 2, 0},
                              {5, 3, 6, 4},
                              {33, 2, 8, 0},
                              {9, 1, 64, 64},
                              {20, 3, 128, 8},
                              {3, 40, 128, 0},
                              {7, 2, 66, 2},
                              {5, 2, 36, 0}}) {
        std::string what = format("T %lld H %d HD %d gap %lld", (long long)c.T, c.H, c.HD, (long long)c.gap);
        int64_t width = (int64_t)c.H * c.HD, stride = width + c.gap;
        std::vector<int> positions = random_ints(c.T, 20, 3000);
        positions[0] = 0;
        std::vector<floatX> x = random_values<floatX>(c.T * stride, 21), dy = random_values<floatX>(c.T * stride, 22);
        expect_same_on_all_backends(what, [&](const Backend& run) {
            RopeTable table;
            rope_init(table, c.HD, 10000.0, false, 1, 1, 4, 0);
            rope_extend(table, 3000, run.dev);
            TestBuffer<int> at(positions, run.dev);
            Half in(x, run.dev), out(c.T * width, run.dev), in_place(x, run.dev), gradient(dy, run.dev);
            rope_forward({out.data, width}, {in.data, stride}, at.data, table, c.T, c.H, run.dev);
            rope_forward({in_place.data, stride}, {in_place.data, stride}, at.data, table, c.T, c.H, run.dev);
            rope_backward({gradient.data, stride}, at.data, table, c.T, c.H, run.dev);
            std::vector<floatX> y = out.get(), yy = in_place.get(), dx = gradient.get();
            for (int64_t t = 0; t < c.T; t++) {
                EXPECT_EQ(memcmp(&y[t * width], &yy[t * stride], width * sizeof(floatX)), 0)
                    << what << ", " << run.name << ": in place, token " << t;
                for (int64_t h = 0; h < c.H; h++)  // float64, angle as a float product
                    for (int i = 0; i < c.HD / 2; i++) {
                        float f = 1.0f / powf(10000.0f, (float)(2 * i) / (float)c.HD);
                        double angle = (double)((float)positions[t] * f), co = cos(angle), si = sin(angle);
                        int64_t a = t * stride + h * c.HD + i, b = a + c.HD / 2;
                        double bound = (sizeof(floatX) == 2 ? 1.0 / 256 : 1e-7) + 1e-6;
                        EXPECT_NEAR((float)yy[a], (double)(float)x[a] * co - (double)(float)x[b] * si, bound) << what;
                        EXPECT_NEAR((float)yy[b], (double)(float)x[b] * co + (double)(float)x[a] * si, bound) << what;
                        EXPECT_NEAR((float)dx[a], (double)(float)dy[a] * co + (double)(float)dy[b] * si, bound) << what;
                        EXPECT_NEAR((float)dx[b], (double)(float)dy[b] * co - (double)(float)dy[a] * si, bound) << what;
                    }
                int64_t from = t * stride + width;
                EXPECT_TRUE(memcmp(&yy[from], &x[from], c.gap * sizeof(floatX)) == 0 &&
                            memcmp(&dx[from], &dy[from], c.gap * sizeof(floatX)) == 0)
                    << what << ", " << run.name << ": wrote between rows, token " << t;
            }
            return Bytes() << y << yy << dx;
        });
    }
}

#if HAS_KERNELS
TEST(Rope, TheTableOnTheDeviceGrowsAndAReservedOneStays) {
    for (const Backend& run : all_backends()) {
        if (!run.dev.cuda) continue;
        select_backend(run);
        for (bool reserve : {false, true}) {
            RopeTable r;
            rope_init(r, 8, 500000.0, false, 1, 1, 4, 0);
            if (reserve) rope_reserve(r, 1000, run.dev);
            const float* cos_before = r.device_cos.data;
            for (int n : {1, 2, 10, 400, 1000, 30}) {
                rope_extend(r, n, run.dev);
                ASSERT_GE(r.device_positions, n);
                std::vector<float> c(r.device_positions * 4), s(r.device_positions * 4);
                copy_to_host(c.data(), r.device_cos.data, c.size() * sizeof(float), run.dev);
                copy_to_host(s.data(), r.device_sin.data, s.size() * sizeof(float), run.dev);
                ASSERT_EQ(memcmp(c.data(), r.cos.data(), c.size() * sizeof(float)), 0) << n << ", " << run.name;
                ASSERT_EQ(memcmp(s.data(), r.sin.data(), s.size() * sizeof(float)), 0) << n << ", " << run.name;
            }
            if (!reserve) continue;
            EXPECT_EQ(r.device_cos.data, cos_before) << "the address moved";
            EXPECT_EQ(r.device_positions, 1000);
            EXPECT_THROW(rope_extend(r, 1001, run.dev), std::exception);
        }
        RopeTable host_only;
        rope_init(host_only, 8, 500000.0, false, 1, 1, 4, 0);
        rope_extend(host_only, 10);
        Half x(random_values<floatX>(8, 23), run.dev);
        TestBuffer<int> at(std::vector<int>{0}, run.dev);
        EXPECT_THROW(rope_backward({x.data, 8}, at.data, host_only, 1, 1, run.dev), std::exception);
        rope_extend(host_only, 10, run.dev);  // tabulated before, not yet on the device
        EXPECT_GE(host_only.device_positions, 10);
    }
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// swiglu

TEST(Swiglu, EveryBackendGivesTheBitsOfTheLoops) {
    struct Case {
        int64_t T, F;
    };
    for (const Case& c :
         {Case{1, 1}, Case{3, 44}, Case{5, 67}, Case{2, 1024}, Case{3, 1032}, Case{2, 2100}, Case{70, 8}}) {
        std::string what = format("T %lld F %lld", (long long)c.T, (long long)c.F);
        std::vector<floatX> x = random_values<floatX>(c.T * 2 * c.F, 30, 6.0f),
                            dy = random_values<floatX>(c.T * c.F, 31);
        if (c.F > 40)  // saturated
            x[0] = 200.0f, x[1] = -200.0f, x[2] = -90.0f, x[3] = 0.0f;
        expect_same_on_all_backends(what, [&](const Backend& run) {
            Half in(x, run.dev), out(c.T * c.F, run.dev), dout(dy, run.dev), dx(c.T * 2 * c.F, run.dev),
                in_place(x, run.dev);
            swiglu_forward(out.data, in.data, c.T, c.F, run.dev);
            swiglu_backward(dx.data, dout.data, in.data, c.T, c.F, run.dev);
            swiglu_backward(in_place.data, dout.data, in_place.data, c.T, c.F, run.dev);
            std::vector<floatX> y = out.get(), d = dx.get();
            EXPECT_TRUE(same_bits(d, in_place.get())) << what << ", " << run.name << ": in place";
            double ulp = sizeof(floatX) == 2 ? 1.0 / 256 : 1e-6;
            for (int64_t t = 0; t < c.T; t++)
                for (int64_t f = 0; f < c.F; f++) {
                    double g = (float)x[t * 2 * c.F + f], u = (float)x[t * 2 * c.F + c.F + f];
                    double e = (float)dy[t * c.F + f], s = 1 / (1 + std::exp(-g));
                    double value = g * s * u, dg = e * u * s * (1 + g * (1 - s)), du = e * g * s;
                    EXPECT_NEAR((float)y[t * c.F + f], value, 2 * ulp * std::fabs(value) + 1e-30) << what;
                    EXPECT_NEAR((float)d[t * 2 * c.F + f], dg, ulp * std::fabs(dg) + 1e-6) << what;
                    EXPECT_NEAR((float)d[t * 2 * c.F + c.F + f], du, ulp * std::fabs(du) + 1e-30) << what;
                }
            return Bytes() << y << d;
        });
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// bias

TEST(Bias, AgainstFloat64AndTheSameBitsInEveryOrder) {
    struct Case {
        int64_t T, OC;
    };
    for (const Case& c :
         {Case{1, 1}, Case{3, 67}, Case{33, 300}, Case{300, 44}, Case{1, 2056}, Case{65, 256}, Case{9000, 3}}) {
        std::vector<floatX> dy = random_values<floatX>(c.T * c.OC, 40);
        std::vector<float> before = random_values<float>(c.OC, 41), first, cpu = before;
        std::vector<double> reference(c.OC), size(c.OC);
        for (int64_t i = 0; i < c.OC; i++) reference[i] = before[i], size[i] = std::fabs(before[i]);
        for (int64_t t = 0; t < c.T; t++)
            for (int64_t i = 0; i < c.OC; i++) {
                reference[i] += (double)(float)dy[t * c.OC + i];
                size[i] += std::fabs((double)(float)dy[t * c.OC + i]);
                cpu[i] += (float)dy[t * c.OC + i];
            }
        for (const Backend& run : all_backends()) {
            select_backend(run);
            std::string what = format("T %lld OC %lld, %s", (long long)c.T, (long long)c.OC, run.name.c_str());
            Half dout(dy, run.dev);
            Full dbias(before, run.dev);
            bias_backward(dbias.data, dout.data, c.T, c.OC, run.dev);
            std::vector<float> got = dbias.get();
            for (int64_t i = 0; i < c.OC; i++)
                ASSERT_NEAR(got[i], reference[i], size[i] * 6e-8 * std::min(c.T + 1.0, 300.0))
                    << what << ": column " << i;
            if (!run.dev.cuda) EXPECT_TRUE(same_bits(got, cpu)) << what << ": tokens in order";
            else if (first.empty()) first = got;
            else EXPECT_TRUE(same_bits(got, first)) << what;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// optimizer

TEST(AdamW, EveryBackendGivesTheBitsOfTheLoops) {
    for (int64_t n : {1, 3, 4, 67, 1024, 5001})
        for (size_t offset : {0, 1}) {
            std::string what = format("n %lld offset %zu", (long long)n, offset);
            // 3 more behind, which must stay
            std::vector<float> w0 = random_values<float>(n + offset + 3, 50, 0.1f);
            AdamWConfig c;
            c.learning_rate = 1e-2f, c.weight_decay = 0.1f;
            expect_same_on_all_backends(what, [&](const Backend& run) {
                Full w(w0, run.dev), m(std::vector<float>(n + offset + 3, 0.0f), run.dev),
                    v(std::vector<float>(n + offset + 3, 0.0f), run.dev);
                std::vector<double> rw(w0.begin(), w0.end()), rm(w0.size()), rv(w0.size());
                for (int step = 1; step <= 3; step++) {
                    std::vector<float> g = random_values<float>(n + offset + 3, 50 + step, 2.0f);
                    Full grad(g, run.dev);
                    adamw_update(w.data + offset, m.data + offset, v.data + offset, grad.data + offset, n, 0.7f, c,
                                 step, run.dev);
                    for (size_t i = offset; i < n + offset; i++) {
                        double x = 0.7f * g[i], b1 = c.beta1, b2 = c.beta2;
                        rm[i] = b1 * rm[i] + (1 - b1) * x;
                        rv[i] = b2 * rv[i] + (1 - b2) * x * x;
                        rw[i] -= c.learning_rate * (rm[i] / (1 - std::pow(b1, step)) /
                                                        (std::sqrt(rv[i] / (1 - std::pow(b2, step))) + c.epsilon) +
                                                    c.weight_decay * rw[i]);
                    }
                }
                std::vector<float> got = w.get();
                for (size_t i = 0; i < w0.size(); i++) EXPECT_NEAR(got[i], rw[i], 1e-6) << what << ", " << run.name;
                return Bytes() << got << m.get() << v.get();
            });
        }
}

TEST(GlobalNorm, AgainstFloat64AndTheSameBitsInEveryOrder) {
    for (int64_t n : {1, 3, 67, 1024, 65536, 65537, 200003})
        for (size_t offset : {0, 1}) {
            std::vector<float> x = random_values<float>(n + offset, 60);
            double reference = 0, first = 0;
            for (int64_t i = 0; i < n; i++) reference += (double)x[i + offset] * x[i + offset];
            for (const Backend& run : all_backends()) {
                select_backend(run);
                Full in(x, run.dev);
                double got = sum_of_squares(in.data + offset, n, run.dev);
                EXPECT_NEAR(got / reference, 1.0, 1e-12) << "n " << n << ", " << run.name;
                if (!run.dev.cuda) continue;
                if (first == 0) first = got;
                EXPECT_EQ(got, first) << "n " << n << ", " << run.name;
            }
        }
    for (const Backend& run : all_backends()) EXPECT_EQ(sum_of_squares(nullptr, 0, run.dev), 0.0);
}

TEST(GlobalNorm, OneNumberThatIsNotFiniteShowsAndALargeOneDoesNot) {
    for (const Backend& run : all_backends()) {
        select_backend(run);
        for (int64_t at : {0, 2, 1027, 69999})
            for (float bad : {NAN, INFINITY, -INFINITY, 3e38f}) {
                std::vector<float> x(70000, 0.25f);
                x[at] = bad;
                Full in(x, run.dev);
                double got = sum_of_squares(in.data, (int64_t)x.size(), run.dev);
                EXPECT_EQ(std::isfinite(got), std::isfinite(bad)) << bad << " at " << at << ", " << run.name;
                EXPECT_EQ(std::isnan(got), std::isnan(bad)) << bad << " at " << at << ", " << run.name;
            }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// bad shapes

TEST(Launchers, EmptyIsNoWorkAndBadShapesAreRefused) {
    for (const Backend& run : all_backends()) {
        select_backend(run);
        Device dev = run.dev;
        RopeTable rope;
        rope_init(rope, 8, 10000.0, false, 1, 1, 4, 0);
        embedding_forward(nullptr, nullptr, nullptr, 0, 8, dev);
        embedding_backward(nullptr, nullptr, nullptr, 0, 8, dev);
        rope_backward({nullptr, 8}, nullptr, rope, 0, 1, dev);
        swiglu_forward(nullptr, nullptr, 0, 8, dev);
        bias_backward(nullptr, nullptr, 0, 8, dev);
        adamw_update(nullptr, nullptr, nullptr, nullptr, 0, 1.0f, AdamWConfig(), 1, dev);
        convert_forward(nullptr, nullptr, 0, dev);
        convert_widen(nullptr, nullptr, 0, dev);
        mix_forward(nullptr, nullptr, 0.5f, 0, dev);
        EXPECT_EQ(squared_error_forward(nullptr, nullptr, 0, dev).loss, 0.0);
        squared_error_backward(nullptr, nullptr, nullptr, 0, true, dev);
        EXPECT_THROW(gather_rows<floatX>(nullptr, nullptr, nullptr, 1, 0, dev), std::exception);
        EXPECT_THROW(swiglu_backward(nullptr, nullptr, nullptr, -1, 8, dev), std::exception);
    }
}
