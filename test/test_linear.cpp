// Matrix products and linear layers: every run against float64, and the promises of kernels/matmul.cuh and its
// neighbours to the bit: a row's bits depend on the row alone, not on the batch, the tile or the thread order;
// conversions to 8 and 4 bits round as their formats say. Packed codes: test_packed.cpp.
#include "operator_test.h"
#include "test_device.h"
#include "../kernels/linear.cuh"
#include <algorithm>

// the most that one rounding to T changes, relative
template <class T>
static constexpr double ULP = sizeof(T) == 2 ? 1.0 / 256 : 1.0 / (1 << 24);

struct MatmulCase {
    int64_t M, N, K;
    int64_t pad = 0;  // elements between rows, of every matrix
};

static std::string text(const MatmulCase& c, const Backend& run) {
    return format("M %lld N %lld K %lld pad %lld, %s", (long long)c.M, (long long)c.N, (long long)c.K, (long long)c.pad,
                  run.name.c_str());
}

static std::vector<MatmulCase> matmul_cases() {
    std::vector<MatmulCase> cases;
    for (int64_t M : {1, 2, 16, 17, 65, 130})
        for (int64_t N : {1, 8, 67, 128, 200})
            for (int64_t K : {1, 8, 44, 64, 100, 256})
                if (M < 65 || (N + K) % 3 == 0 || K == 44) cases.push_back({M, N, K});
    cases.push_back({33, 40, 72, 8});  // aligned rows with gaps
    cases.push_back({33, 40, 72, 3});  // rows that are not aligned
    cases.push_back({70, 67, 44, 4});  // aligned to 8 bytes
    cases.push_back({130, 136, 520});  // several bands of slices, more than the stages
    cases.push_back({1100, 24, 40});   // more than one band of tiles
    return cases;
}

// a matrix of rows x cols, `pad` elements between rows; the gaps are NaN
template <class T>
static std::vector<T> random_matrix(int64_t rows, int64_t cols, int64_t pad, uint32_t tensor) {
    std::vector<T> values = random_values<T>(rows * cols, tensor), m(rows * (cols + pad), (T)NAN);
    for (int64_t r = 0; r < rows; r++)
        std::copy(values.begin() + r * cols, values.begin() + (r + 1) * cols, m.begin() + r * (cols + pad));
    return m;
}

// a poisoned output with gaps: compares what lies between the rows with what was there
template <class T>
static std::vector<T> dense(const std::vector<T>& m, const std::vector<T>& before, int64_t rows, int64_t cols,
                            int64_t pad, const std::string& what) {
    std::vector<T> out;
    for (int64_t r = 0; r < rows; r++) {
        const T* row = m.data() + r * (cols + pad);
        out.insert(out.end(), row, row + cols);
        if (pad && memcmp(row + cols, before.data() + r * (cols + pad) + cols, pad * sizeof(T)) != 0)
            ADD_FAILURE() << what << ": wrote behind row " << r;
    }
    return out;
}

// sums in float64, and what bounds the error of a float32 sum
struct Sums {
    std::vector<double> value, magnitude;
};

// value(i,j) = old(i,j) + sum_k a(i,k) b(k,j) + bias(j), (rows,cols)
template <class A, class B, class Old, class Bias>
static Sums sums(int64_t rows, int64_t cols, int64_t inner, A a, B b, Old old, Bias bias) {
    Sums s;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            double x = (double)old(i, j) + (double)bias(j),
                   m = std::fabs((double)old(i, j)) + std::fabs((double)bias(j));
            for (int64_t k = 0; k < inner; k++) {
                double p = (double)a(i, k) * (double)b(k, j);
                x += p;
                m += std::fabs(p);
            }
            s.value.push_back(x);
            s.magnitude.push_back(m);
        }
    return s;
}

// each element within one rounding to T and the rounding of a float32 sum of `inner` terms
template <class T>
static void expect_sums(const std::vector<T>& got, const Sums& s, int64_t inner, const std::string& what) {
    ASSERT_EQ(got.size(), s.value.size()) << what;
    for (size_t i = 0; i < got.size(); i++) {
        double bound = 1.001 * ULP<T> * std::fabs(s.value[i]) + (double)(inner + 2) * 6e-8 * s.magnitude[i];
        ASSERT_LE(std::fabs((double)(float)got[i] - s.value[i]), bound)
            << what << ": element " << i << " is " << (float)got[i] << ", not " << s.value[i];
    }
    std::vector<double> reference = s.value;
    if (got.size() >= 64)  // roundings average out
        expect_agree(got, reference, ULP<T> * ULP<T> + 1e-11, 3 * ULP<T> / std::sqrt((double)got.size()) + 2e-6, what);
}

static const auto zero2 = [](int64_t, int64_t) { return 0.0f; };
static const auto zero1 = [](int64_t) { return 0.0f; };

struct MatmulInput {
    std::vector<floatX> a, b, bias;
};

static MatmulInput matmul_input(const MatmulCase& c) {
    MatmulInput in;
    in.a = random_matrix<floatX>(c.M, c.K, c.pad, 1);
    in.b = random_matrix<floatX>(c.N, c.K, c.pad, 2);
    in.bias = random_values<floatX>(c.N, 3);
    return in;
}

template <class O>
static std::vector<O> run_nt(const MatmulCase& c, const MatmulInput& in, bool bias, const Backend& run) {
    select_backend(run);
    TestBuffer<floatX> a(in.a, run.dev), b(in.b, run.dev), bias_buffer(in.bias, run.dev);
    TestBuffer<O> out(c.M * (c.N + c.pad), run.dev);
    std::vector<O> before = out.get();
    matmul_nt(Rows{out.data, c.N + c.pad}, {a.data, c.K + c.pad}, {b.data, c.K + c.pad},
              bias ? bias_buffer.data : nullptr, c.M, c.N, c.K, run.dev);
    return dense(out.get(), before, c.M, c.N, c.pad, text(c, run));
}

TEST(Matmul, NtAgreesWithFloat64AndAllThreadOrdersGiveTheSameBits) {
    std::vector<Backend> runs = all_backends();
    for (const MatmulCase& c : matmul_cases()) {
        MatmulInput in = matmul_input(c);
        int64_t ld = c.K + c.pad;
        auto a = [&](int64_t i, int64_t k) { return (float)in.a[i * ld + k]; };
        auto b = [&](int64_t k, int64_t j) { return (float)in.b[j * ld + k]; };
        Sums plain = sums(c.M, c.N, c.K, a, b, zero2, zero1), with_bias = plain;
        for (size_t i = 0; i < plain.value.size(); i++) {
            double x = (double)(float)in.bias[i % c.N];
            with_bias.value[i] += x;
            with_bias.magnitude[i] += std::fabs(x);
        }
        std::vector<floatX> first;
        std::vector<float> first_float;
        for (size_t r = 0; r < runs.size(); r++) {
            std::string what = text(c, runs[r]);
            std::vector<floatX> out = run_nt<floatX>(c, in, true, runs[r]);
            expect_sums(out, with_bias, c.K, what + ", bias");
            std::vector<float> out_float = run_nt<float>(c, in, false, runs[r]);
            expect_sums(out_float, plain, c.K, what + ", float");
            if (r == 1) first = out, first_float = out_float;
            if (r > 1) {
                EXPECT_TRUE(same_bits(first, out) && same_bits(first_float, out_float))
                    << what << ": bits differ from " << runs[1].name;
            }
        }
    }
}

TEST(Matmul, ARowsBitsDoNotDependOnTheBatch) {
    for (const Backend& run : all_backends())
        for (int64_t K : {44, 264}) {
            MatmulCase all = {150, 67, K};
            MatmulInput in = matmul_input(all);
            std::vector<floatX> out = run_nt<floatX>(all, in, true, run);
            std::vector<float> out_float = run_nt<float>(all, in, false, run);
            for (int64_t M : {1, 2, 16, 17, 31, 40, 64, 65, 129}) {
                MatmulCase c = {M, 67, K};
                MatmulInput part = in;
                int64_t from = 150 - M;
                part.a.assign(in.a.begin() + from * K, in.a.end());
                std::vector<floatX> rows = run_nt<floatX>(c, part, true, run);
                std::vector<float> rows_float = run_nt<float>(c, part, false, run);
                EXPECT_TRUE(memcmp(rows.data(), &out[from * 67], rows.size() * sizeof(floatX)) == 0) << text(c, run);
                EXPECT_TRUE(memcmp(rows_float.data(), &out_float[from * 67], rows_float.size() * 4) == 0)
                    << text(c, run) << ", float";
            }
        }
}

#if HAS_KERNELS
TEST(Matmul, EveryTileGivesTheSameBits) {
    std::vector<Backend> runs = all_backends();
    const MatmulTile tiles[] = {MatmulTile::t16x32, MatmulTile::t32x32, MatmulTile::t64x32, MatmulTile::t64x64,
                                MatmulTile::t128x128};
    for (size_t r = 1; r < runs.size(); r++)
        for (const MatmulCase& c : {MatmulCase{1, 8, 8}, MatmulCase{70, 67, 300}, MatmulCase{130, 136, 520},
                                    MatmulCase{37, 130, 101}, MatmulCase{40, 40, 136, 3}}) {
            select_backend(runs[r]);
            MatmulInput in = matmul_input(c);
            Device dev = runs[r].dev;
            TestBuffer<floatX> a(in.a, dev), b(in.b, dev), bias(in.bias, dev);
            std::vector<floatX> first;
            std::vector<float> first_float;
            for (MatmulTile tile : tiles) {
                TestBuffer<floatX> out(c.M * c.N, dev);
                TestBuffer<float> out_float(c.M * c.N, dev);
                matmul_nt_launch(Rows{out.data, c.N}, {a.data, c.K + c.pad}, {b.data, c.K + c.pad}, bias.data, c.M, c.N,
                                 c.K, tile, dev);
                matmul_nt_launch(Rows{out_float.data, c.N}, {a.data, c.K + c.pad}, {b.data, c.K + c.pad}, nullptr, c.M,
                                 c.N, c.K, tile, dev);
                if (first.empty()) first = out.get(), first_float = out_float.get();
                EXPECT_TRUE(same_bits(first, out.get()) && same_bits(first_float, out_float.get()))
                    << text(c, runs[r]) << ", tile " << (int)tile;
            }
        }
}
#endif

TEST(Matmul, GradientsAgreeWithFloat64) {
    std::vector<Backend> runs = all_backends();
    for (const MatmulCase& c : matmul_cases()) {
        int64_t ldn = c.N + c.pad, ldk = c.K + c.pad;
        std::vector<floatX> dout = random_matrix<floatX>(c.M, c.N, c.pad, 4),
                            w = random_matrix<floatX>(c.N, c.K, c.pad, 5);
        std::vector<floatX> inp = random_matrix<floatX>(c.M, c.K, c.pad, 6);
        std::vector<floatX> skip = random_matrix<floatX>(c.M, c.K, c.pad, 7);
        std::vector<float> skip_float = random_matrix<float>(c.M, c.K, c.pad, 8);
        std::vector<float> dw = random_matrix<float>(c.N, c.K, c.pad, 9);
        auto dout_ij = [&](int64_t i, int64_t k) { return (float)dout[i * ldn + k]; };
        auto dout_ji = [&](int64_t i, int64_t k) { return (float)dout[k * ldn + i]; };
        auto w_kj = [&](int64_t k, int64_t j) { return (float)w[k * ldk + j]; };
        auto inp_kj = [&](int64_t k, int64_t j) { return (float)inp[k * ldk + j]; };
        Sums plain = sums(c.M, c.K, c.N, dout_ij, w_kj, zero2, zero1);
        Sums added = sums(
            c.M, c.K, c.N, dout_ij, w_kj, [&](int64_t i, int64_t j) { return (float)skip[i * ldk + j]; }, zero1);
        Sums added_float = sums(
            c.M, c.K, c.N, dout_ij, w_kj, [&](int64_t i, int64_t j) { return skip_float[i * ldk + j]; }, zero1);
        Sums weight = sums(
            c.N, c.K, c.M, dout_ji, inp_kj, [&](int64_t i, int64_t j) { return dw[i * ldk + j]; }, zero1);
        std::vector<floatX> first;
        std::vector<float> first_dw;
        for (size_t r = 0; r < runs.size(); r++) {
            select_backend(runs[r]);
            Device dev = runs[r].dev;
            std::string what = text(c, runs[r]);
            TestBuffer<floatX> dout_b(dout, dev), w_b(w, dev), inp_b(inp, dev), assigned(c.M * ldk, dev),
                sum(skip, dev);
            TestBuffer<float> sum_float(skip_float, dev), dw_b(dw, dev), assigned_float(c.M * ldk, dev);
            std::vector<floatX> poison = assigned.get();
            std::vector<float> poison_float = assigned_float.get();
            matmul_nn(Rows{assigned.data, ldk}, {dout_b.data, ldn}, {w_b.data, ldk}, c.M, c.N, c.K, false, dev);
            matmul_nn(Rows{assigned_float.data, ldk}, {dout_b.data, ldn}, {w_b.data, ldk}, c.M, c.N, c.K, false, dev);
            matmul_nn(Rows{sum.data, ldk}, {dout_b.data, ldn}, {w_b.data, ldk}, c.M, c.N, c.K, true, dev);
            matmul_nn(Rows{sum_float.data, ldk}, {dout_b.data, ldn}, {w_b.data, ldk}, c.M, c.N, c.K, true, dev);
            matmul_tn({dw_b.data, ldk}, {dout_b.data, ldn}, {inp_b.data, ldk}, c.M, c.N, c.K, dev);
            std::vector<floatX> dinp = dense(assigned.get(), poison, c.M, c.K, c.pad, what);
            expect_sums(dinp, plain, c.N, what + ", dinp");
            expect_sums(dense(assigned_float.get(), poison_float, c.M, c.K, c.pad, what), plain, c.N,
                        what + ", float dinp");
            expect_sums(dense(sum.get(), skip, c.M, c.K, c.pad, what), added, c.N, what + ", dinp +=");
            expect_sums(dense(sum_float.get(), skip_float, c.M, c.K, c.pad, what), added_float, c.N,
                        what + ", float dinp +=");
            std::vector<float> dweight = dense(dw_b.get(), dw, c.N, c.K, c.pad, what);
            expect_sums(dweight, weight, c.M, what + ", dw");
            if (r == 1) first = dinp, first_dw = dweight;
            if (r > 1) { EXPECT_TRUE(same_bits(first, dinp) && same_bits(first_dw, dweight)) << what; }
        }
    }
}

#if HAS_KERNELS
TEST(Cublaslt, OneShapeIsOnePlanAndTheSameBits) {
    std::vector<Backend> runs = all_backends();
    for (size_t r = 1; r < runs.size(); r++) {
        select_backend(runs[r]);
        Device dev = runs[r].dev;
        cublaslt_release();
        int64_t M = 400, N = 24, K = 40;  // M large beside N and K: a sum that the library may split
        TestBuffer<floatX> dout(random_values<floatX>(M * N, 13), dev), inp(random_values<floatX>(M * K, 14), dev);
        std::vector<float> first;
        for (int i = 0; i < 3; i++) {
            TestBuffer<float> dw(std::vector<float>(N * K, 1.0f), dev);
            matmul_tn({dw.data, K}, {dout.data, N}, {inp.data, K}, M, N, K, dev);
            if (i == 0) first = dw.get();
            EXPECT_TRUE(same_bits(first, dw.get())) << runs[r].name;
            EXPECT_EQ(cublaslt_state().plans.size(), 1u) << runs[r].name;
            if (i == 1) {
                cublaslt_release();
                EXPECT_EQ(cublaslt_state().plans.size(), 0u);
            }
        }
        TestBuffer<float> dw(std::vector<float>(N * K, 1.0f), dev);
        matmul_tn({dw.data, K}, {dout.data, N}, {inp.data, K}, M - 1, N, K, dev);
        EXPECT_EQ(cublaslt_state().plans.size(), 2u) << runs[r].name;
        float* unaligned = dw.data + 1;
        matmul_tn({unaligned, K}, {dout.data, N}, {inp.data, K}, M - 1, N, K - 1, dev);
        matmul_tn({unaligned + 3, K}, {dout.data, N}, {inp.data, K}, M - 1, N, K - 1, dev);
        EXPECT_EQ(cublaslt_state().plans.size(), 4u) << runs[r].name;
        dw.get();  // looks behind the end
    }
}
#endif

TEST(Matmul, NoRowsIsNoWorkAndNoInnerDimensionIsZero) {
    for (const Backend& run : all_backends()) {
        select_backend(run);
        floatX* none = nullptr;
        matmul_nt(Rows{none, 8}, {none, 8}, {none, 8}, nullptr, 0, 8, 8, run.dev);
        matmul_nn(Rows{none, 8}, {none, 8}, {none, 8}, 0, 8, 8, false, run.dev);
        TestBuffer<float> dw(std::vector<float>(64, 2.0f), run.dev);
        matmul_tn({dw.data, 8}, {none, 8}, {none, 8}, 0, 8, 8, run.dev);
        EXPECT_TRUE(same_bits(dw.get(), std::vector<float>(64, 2.0f))) << run.name;
        TestBuffer<floatX> out(6, run.dev), dinp(6, run.dev), bias(random_values<floatX>(3, 1), run.dev), a(8, run.dev);
        matmul_nt(Rows{out.data, 3}, {a.data, 0}, {a.data, 0}, bias.data, 2, 3, 0, run.dev);
        matmul_nn(Rows{dinp.data, 3}, {a.data, 0}, {a.data, 3}, 2, 0, 3, false, run.dev);
        for (int i = 0; i < 6; i++) {
            EXPECT_EQ((float)out.get()[i], (float)bias.get()[i % 3]) << run.name;
            EXPECT_EQ((float)dinp.get()[i], 0.0f) << run.name;
        }
        EXPECT_THROW(matmul_nt(Rows{none, 8}, {none, 8}, {none, 8}, nullptr, -1, 8, 8, run.dev), Error);
        EXPECT_THROW(matmul_nt(Rows{none, 8}, {none, 8}, {none, 8}, nullptr, 1ll << 31, 8, 8, run.dev), Error);
    }
}

// ---- linear layers ----

TEST(Linear, LayersAgreeWithFloat64) {
    std::vector<Backend> runs = all_backends();
    for (const MatmulCase& c : {MatmulCase{1, 8, 8}, MatmulCase{17, 67, 44}, MatmulCase{65, 128, 100}}) {
        int64_t T = c.M, OC = c.N, C = c.K;
        MatmulInput in = matmul_input(c);
        std::vector<floatX> dout = random_values<floatX>(T * OC, 10);
        std::vector<float> dw = random_values<float>(OC * C, 11), db = random_values<float>(OC, 12);
        auto at = [](const auto& m, int64_t ld) {
            return [&m, ld](int64_t i, int64_t j) { return (float)m[i * ld + j]; };
        };
        auto swapped = [](const auto& m, int64_t ld) {
            return [&m, ld](int64_t i, int64_t j) { return (float)m[j * ld + i]; };
        };
        Sums out = sums(T, OC, C, at(in.a, C), swapped(in.b, C), zero2, [&](int64_t j) { return (float)in.bias[j]; });
        Sums dinp = sums(T, C, OC, at(dout, OC), at(in.b, C), zero2, zero1);
        Sums dweight = sums(OC, C, T, swapped(dout, OC), at(in.a, C), at(dw, C), zero1);
        Sums dbias = sums(
            1, OC, T, [](int64_t, int64_t) { return 1.0f; }, at(dout, OC), at(db, OC), zero1);
        for (const Backend& run : runs) {
            select_backend(run);
            std::string what = text(c, run);
            TestBuffer<floatX> inp(in.a, run.dev), w(in.b, run.dev), bias(in.bias, run.dev), dy(dout, run.dev);
            TestBuffer<floatX> y(T * OC, run.dev), other(T * OC, run.dev), dx(T * C, run.dev);
            TestBuffer<float> dw_b(dw, run.dev), db_b(db, run.dev);
            linear_forward({y.data, OC}, inp.data, w.data, bias.data, nullptr, nullptr, {T, C, OC}, run.dev);
            expect_sums(y.get(), out, C, what + ", forward");
            Device any_order = run.dev;
            any_order.batch_invariant = false;
            linear_forward({other.data, OC}, inp.data, w.data, bias.data, nullptr, nullptr, {T, C, OC}, any_order);
            expect_sums(other.get(), out, C, what + ", forward in any order");
            if (!run.dev.cuda) {
                PackedWeight<floatX> packed = pack_weight_nt(w.data, OC, C);
                TestBuffer<floatX> packed_y(T * OC, run.dev);
                linear_forward({packed_y.data, OC}, inp.data, nullptr, bias.data, &packed, nullptr, {T, C, OC}, run.dev);
                EXPECT_TRUE(same_bits(y.get(), packed_y.get())) << what;
            }
            linear_backward(dx.data, dw_b.data, db_b.data, dy.data, inp.data, w.data, {T, C, OC}, run.dev);
            expect_sums(dx.get(), dinp, OC, what + ", dinp");
            expect_sums(dw_b.get(), dweight, T, what + ", dweight");
            expect_sums(db_b.get(), dbias, T, what + ", dbias");
        }
    }
}

// ---- the small formats ----

// the numbers of a format by its definition: sign, exponent, mantissa
static double small_float(int code, int exponent_bits, int mantissa_bits, int bias) {
    int mantissa = code & ((1 << mantissa_bits) - 1), exponent = code >> mantissa_bits & ((1 << exponent_bits) - 1);
    bool negative = code >> (mantissa_bits + exponent_bits) & 1;
    double x = exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                             : std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
    return negative ? -x : x;
}

// the code, without sign, whose number is nearest to |x|, even on a tie; `largest` for all beyond
static int nearest_small(double x, int largest, int exponent_bits, int mantissa_bits, int bias) {
    if (std::fabs(x) >= small_float(largest, exponent_bits, mantissa_bits, bias)) return largest;
    int best = 0;
    for (int code = 1; code <= largest; code++) {
        double d = std::fabs(small_float(code, exponent_bits, mantissa_bits, bias) - std::fabs(x));
        double best_d = std::fabs(small_float(best, exponent_bits, mantissa_bits, bias) - std::fabs(x));
        if (d < best_d || (d == best_d && code % 2 == 0)) best = code;
    }
    return best;
}

// all bf16 numbers (NaN and infinities among them), and each number of the format, each midpoint of two and what is one
// float ulp away from them
static std::vector<float> conversion_inputs(int largest, int exponent_bits, int mantissa_bits, int bias) {
    std::vector<float> x;
    for (int i = 0; i < 65536; i++) x.push_back(bf16_bits_to_float((uint16_t)i));
    for (int code = 0; code <= largest; code++) {
        double a = small_float(code, exponent_bits, mantissa_bits, bias);
        double b = small_float(code + 1, exponent_bits, mantissa_bits, bias);
        for (double v : {a, (a + b) / 2})
            for (float y : {(float)v, nextafterf((float)v, INFINITY), nextafterf((float)v, -INFINITY)}) {
                x.push_back(y);
                x.push_back(-y);
            }
    }
    return x;
}

TEST(SmallFormats, RoundToNearestEvenAndSaturate) {
    for (int code = 0; code < 256; code++) {
        float x = e4m3_bits_to_float((uint8_t)code);
        if ((code & 0x7F) == 0x7F) EXPECT_TRUE(std::isnan(x));
        else EXPECT_EQ((double)x, small_float(code, 4, 3, 7)) << "e4m3 " << code;
        EXPECT_EQ(std::signbit(x), code >= 128);
        x = e5m2_bits_to_float((uint8_t)code);
        if ((code & 0x7F) > 0x7C) EXPECT_TRUE(std::isnan(x));
        else if ((code & 0x7F) == 0x7C) EXPECT_TRUE(std::isinf(x));
        else EXPECT_EQ((double)x, small_float(code, 5, 2, 15)) << "e5m2 " << code;
        EXPECT_EQ(std::signbit(x), code >= 128);
        if (code >= 16) continue;
        x = e2m1_bits_to_float((uint8_t)code);
        EXPECT_EQ((double)x, small_float(code, 2, 1, 1)) << "e2m1 " << code;
        EXPECT_EQ(std::signbit(x), code >= 8);
    }
    auto expected = [](float x, int largest, int e, int m, int bias, int nan) {
        int sign = std::signbit(x) ? 1 << (e + m) : 0;
        return std::isnan(x) ? nan : sign | (std::isinf(x) ? largest : nearest_small(x, largest, e, m, bias));
    };
    for (float x : conversion_inputs(0x7E, 4, 3, 7)) {
        int sign = std::signbit(x) ? 128 : 0;
        ASSERT_EQ(float_to_e4m3_bits(x), expected(x, 0x7E, 4, 3, 7, sign | 0x7F)) << x;
    }
    for (float x : conversion_inputs(0x7B, 5, 2, 15)) {
        if (std::isnan(x)) {
            ASSERT_TRUE(std::isnan(e5m2_bits_to_float(float_to_e5m2_bits(x))));
        } else {
            ASSERT_EQ(float_to_e5m2_bits(x), expected(x, 0x7B, 5, 2, 15, 0)) << x;
        }
    }
    for (float x : conversion_inputs(7, 2, 1, 1)) ASSERT_EQ(float_to_e2m1_bits(x), expected(x, 7, 2, 1, 1, 7)) << x;
}

TEST(SmallFormats, Nf4IsTheNearestOfItsNumbers) {
    for (int i = 0; i <= 200000; i++) {
        float x = (float)(i - 100000) / 100000.0f;
        int code = float_to_nf4(x);
        double d = std::fabs((double)nf4_to_float(code) - (double)x);
        for (int other = 0; other < 16; other++)
            ASSERT_LE(d, std::fabs((double)nf4_to_float(other) - (double)x) + 6e-8) << x << " became " << code;
    }
    for (int code = 0; code < 16; code++) EXPECT_EQ(float_to_nf4(nf4_to_float(code)), code);
    for (int code = 0; code < 15; code++) {
        double middle = ((double)nf4_to_float(code) + (double)nf4_to_float(code + 1)) / 2;
        EXPECT_EQ(float_to_nf4((float)(middle - 1e-7)), code);
        EXPECT_EQ(float_to_nf4((float)(middle + 1e-7)), code + 1);
    }
}
