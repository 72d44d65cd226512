// The simulated cuBLASLt (test/simt/cublasLt.h): products of every supported type against float64 loops over the
// definition, and every refusal that the documentation promises; and the plans of kernels/cublaslt.cuh. Needs -DTRAIN_QRL_SIMT -I test/simt.
#include <gtest/gtest.h>

#if !defined(TRAIN_QRL_SIMT)
TEST(CublasLt, All) { GTEST_SKIP() << "needs the simt build (make simt)"; }
#else
#include <cublasLt.h>
#include "../kernels/cublaslt.cuh"
#include "../model/decode_graph.cuh"
#include "../runtime/dtypes.h"
#include "../runtime/rng.h"

// ---------------------------------------------------------------------------------------------------------------------
// a matrix of any type, behind its own layout

static double read_element(int type, const std::vector<char>& bytes, int64_t i) {
    float f = 0;
    int32_t n = 0;
    uint16_t h = 0;
    switch (type) {
        case CUDA_R_32F:
            memcpy(&f, &bytes[i * 4], 4);
            return f;
        case CUDA_R_32I:
            memcpy(&n, &bytes[i * 4], 4);
            return n;
        case CUDA_R_16BF:
            memcpy(&h, &bytes[i * 2], 2);
            return bf16_bits_to_float(h);
        case CUDA_R_16F:
            memcpy(&h, &bytes[i * 2], 2);
            return fp16_bits_to_float(h);
        case CUDA_R_8I:
            return (int8_t)bytes[i];
        case CUDA_R_8F_E4M3:
            return e4m3_bits_to_float((uint8_t)bytes[i]);
        default:
            return e5m2_bits_to_float((uint8_t)bytes[i]);
    }
}

static void write_element(int type, std::vector<char>& bytes, int64_t i, double x) {
    float f = (float)x;
    int32_t n = (int32_t)x;
    uint16_t h = type == CUDA_R_16BF ? float_to_bf16_bits(f) : float_to_fp16_bits(f);
    switch (type) {
        case CUDA_R_32F:
            memcpy(&bytes[i * 4], &f, 4);
            return;
        case CUDA_R_32I:
            memcpy(&bytes[i * 4], &n, 4);
            return;
        case CUDA_R_16BF:
        case CUDA_R_16F:
            memcpy(&bytes[i * 2], &h, 2);
            return;
        case CUDA_R_8I:
            bytes[i] = (char)(int8_t)n;
            return;
        case CUDA_R_8F_E4M3:
            bytes[i] = (char)float_to_e4m3_bits(f);
            return;
        default:
            bytes[i] = (char)float_to_e5m2_bits(f);
    }
}

static size_t element_bytes(int type) {
    return type == CUDA_R_32F || type == CUDA_R_32I ? 4 : type == CUDA_R_16BF || type == CUDA_R_16F ? 2 : 1;
}

struct Matrix {
    int type;
    int64_t rows, cols, ld;
    bool row_order;
    int batch;
    int64_t stride;
    std::vector<char> bytes;
    cublasLtMatrixLayout_t layout = nullptr;

    Matrix(cudaDataType type, int64_t rows, int64_t cols, int64_t gap = 0, bool row_order = false, int batch = 1)
        : type(type), rows(rows), cols(cols), ld((row_order ? cols : rows) + gap), row_order(row_order), batch(batch) {
        int64_t lines = row_order ? rows : cols;
        stride = ld * lines + gap;
        bytes.assign((size_t)(stride * batch) * element_bytes(type), (char)0xFF);
        EXPECT_EQ(cublasLtMatrixLayoutCreate(&layout, type, (uint64_t)rows, (uint64_t)cols, ld), CUBLAS_STATUS_SUCCESS);
        int32_t order = row_order ? CUBLASLT_ORDER_ROW : CUBLASLT_ORDER_COL, count = batch;
        set(CUBLASLT_MATRIX_LAYOUT_ORDER, order);
        set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, count);
        set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, stride);
    }
    ~Matrix() { cublasLtMatrixLayoutDestroy(layout); }
    Matrix(const Matrix&) = delete;
    Matrix& operator=(const Matrix&) = delete;

    template <class T>
    void set(cublasLtMatrixLayoutAttribute_t which, T value) {
        EXPECT_EQ(cublasLtMatrixLayoutSetAttribute(layout, which, &value, sizeof(value)), CUBLAS_STATUS_SUCCESS);
    }
    int64_t index(int b, int64_t i, int64_t j) const { return b * stride + (row_order ? i * ld + j : i + j * ld); }
    double get(int b, int64_t i, int64_t j) const { return read_element(type, bytes, index(b, i, j)); }
    void put(int b, int64_t i, int64_t j, double x) { write_element(type, bytes, index(b, i, j), x); }
    // small integers and halves, exact in every type
    void fill(uint32_t tensor) {
        for (int b = 0; b < batch; b++)
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < cols; j++) {
                    uint32_t bits = rng_bits(1, RNG_INIT, tensor, (uint32_t)(b * 1000003 + i * 1009 + j), 0).x[0];
                    double x = (double)(bits % 9) - 4;
                    put(b, i, j, type == CUDA_R_8I || type == CUDA_R_32I ? x : x / 2);
                }
    }
    // elements between the columns that are no longer 0xFF
    int64_t touched_gaps() const {
        std::vector<char> mine(bytes.size());
        size_t size = element_bytes(type);
        for (int b = 0; b < batch; b++)
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < cols; j++) memset(&mine[(size_t)index(b, i, j) * size], 1, size);
        int64_t touched = 0;
        for (size_t i = 0; i < bytes.size(); i++) touched += !mine[i] && bytes[i] != (char)0xFF;
        return touched;
    }
};

struct Description {
    cublasLtHandle_t handle = nullptr;
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatmulPreference_t preference = nullptr;
    explicit Description(bool integer = false) {
        EXPECT_EQ(cublasLtCreate(&handle), CUBLAS_STATUS_SUCCESS);
        EXPECT_EQ(cublasLtMatmulDescCreate(&desc, integer ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F,
                                           integer ? CUDA_R_32I : CUDA_R_32F),
                  CUBLAS_STATUS_SUCCESS);
        EXPECT_EQ(cublasLtMatmulPreferenceCreate(&preference), CUBLAS_STATUS_SUCCESS);
    }
    ~Description() {
        cublasLtMatmulPreferenceDestroy(preference);
        cublasLtMatmulDescDestroy(desc);
        cublasLtDestroy(handle);
    }
    Description(const Description&) = delete;
    Description& operator=(const Description&) = delete;
    template <class T>
    void set(cublasLtMatmulDescAttributes_t which, T value) {
        EXPECT_EQ(cublasLtMatmulDescSetAttribute(desc, which, &value, sizeof(value)), CUBLAS_STATUS_SUCCESS);
    }
    template <class T>
    void prefer(cublasLtMatmulPreferenceAttributes_t which, T value) {
        EXPECT_EQ(cublasLtMatmulPreferenceSetAttribute(preference, which, &value, sizeof(value)),
                  CUBLAS_STATUS_SUCCESS);
    }
    void transpose(bool a, bool b) {
        set(CUBLASLT_MATMUL_DESC_TRANSA, (int32_t)(a ? CUBLAS_OP_T : CUBLAS_OP_N));
        set(CUBLASLT_MATMUL_DESC_TRANSB, (int32_t)(b ? CUBLAS_OP_T : CUBLAS_OP_N));
    }
    cublasLtMatmulHeuristicResult_t result = {};
    cublasStatus_t find(const Matrix& a, const Matrix& b, const Matrix& c, const Matrix& d) {
        int count = -1;
        cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, desc, a.layout, b.layout, c.layout, d.layout,
                                                               preference, 1, &result, &count);
        EXPECT_EQ(count, status == CUBLAS_STATUS_SUCCESS ? 1 : 0);
        return status;
    }
    template <class Scalar>
    cublasStatus_t run(Scalar alpha, const Matrix& a, const Matrix& b, Scalar beta, const Matrix& c, Matrix& d) {
        return cublasLtMatmul(handle, desc, &alpha, a.bytes.data(), a.layout, b.bytes.data(), b.layout, &beta,
                              c.bytes.data(), c.layout, d.bytes.data(), d.layout, nullptr, nullptr, 0, nullptr);
    }
};

static double dot(const Matrix& a, bool ta, const Matrix& b, bool tb, int batch, int64_t i, int64_t j) {
    double sum = 0;
    for (int64_t k = 0; k < (ta ? a.rows : a.cols); k++)
        sum += (ta ? a.get(batch, k, i) : a.get(batch, i, k)) * (tb ? b.get(batch, j, k) : b.get(batch, k, j));
    return sum;
}

// alignment of what a vector holds is malloc's 16
struct Arch {
    explicit Arch(int arch) { simt_settings.arch = arch; }
    ~Arch() { simt_settings = SimtSettings(); }
};

// ---------------------------------------------------------------------------------------------------------------------
// products: the values are exact, so is the sum, and only the last rounding is left

struct Shape {
    int64_t m, n, k;
};

static void test_product(cudaDataType in, cudaDataType out, Shape s, bool ta, bool tb, int64_t gap, bool rows,
                         int batch, float alpha, float beta, bool bias) {
    Matrix a(in, ta ? s.k : s.m, ta ? s.m : s.k, gap, rows, batch),
        b(in, tb ? s.n : s.k, tb ? s.k : s.n, gap, rows, batch);
    Matrix c(out, s.m, s.n, gap, rows, batch), d(out, s.m, s.n, gap, rows, batch), bias_values(out, s.m, 1);
    a.fill(1), b.fill(2), bias_values.fill(4);
    if (beta != 0) c.fill(3);  // otherwise NaN, which must not be read
    Description run;
    run.transpose(ta, tb);
    if (bias) {
        run.set(CUBLASLT_MATMUL_DESC_EPILOGUE, (uint32_t)CUBLASLT_EPILOGUE_BIAS);
        run.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, (const void*)bias_values.bytes.data());
    }
    std::string what = format("types %d %d, m %d n %d k %d, %c%c, gap %d, %s order, batch %d, beta %g, bias %d", in,
                              out, (int)s.m, (int)s.n, (int)s.k, ta ? 'T' : 'N', tb ? 'T' : 'N', (int)gap,
                              rows ? "row" : "column", batch, beta, bias);
    ASSERT_EQ(run.run(alpha, a, b, beta, c, d), CUBLAS_STATUS_SUCCESS) << what;
    std::vector<char> expected(d.bytes.size());
    for (int x = 0; x < batch; x++)
        for (int64_t i = 0; i < s.m; i++)
            for (int64_t j = 0; j < s.n; j++) {
                double want = alpha * dot(a, ta, b, tb, x, i, j) + (beta != 0 ? beta * c.get(x, i, j) : 0) +
                              (bias ? bias_values.get(0, i, 0) : 0);
                write_element(out, expected, 0, want);
                ASSERT_EQ(d.get(x, i, j), read_element(out, expected, 0)) << what << ", at " << i << " " << j;
            }
    EXPECT_EQ(d.touched_gaps(), 0) << what;
}

TEST(CublasLt, Products) {
    struct {
        cudaDataType in, out;
    } types[] = {{CUDA_R_32F, CUDA_R_32F},
                 {CUDA_R_16BF, CUDA_R_16BF},
                 {CUDA_R_16BF, CUDA_R_32F},
                 {CUDA_R_16F, CUDA_R_16F},
                 {CUDA_R_16F, CUDA_R_32F}};
    for (auto t : types)
        for (Shape s : {Shape{1, 1, 1}, Shape{33, 5, 67}, Shape{64, 40, 16}})
            for (int trans = 0; trans < 4; trans++)
                for (int64_t gap : {0, 3}) {
                    test_product(t.in, t.out, s, trans & 1, trans & 2, gap, false, 1, 1, 0, false);
                    test_product(t.in, t.out, s, trans & 1, trans & 2, gap, false, 1, 0.5f, 2, true);
                }
    for (int trans = 0; trans < 4; trans++) {
        test_product(CUDA_R_16BF, CUDA_R_32F, Shape{7, 9, 11}, trans & 1, trans & 2, 2, true, 1, 1, 1, true);
        test_product(CUDA_R_16BF, CUDA_R_16BF, Shape{7, 9, 11}, trans & 1, trans & 2, 1, false, 3, 1, 1, false);
    }
    test_product(CUDA_R_32F, CUDA_R_32F, Shape{100, 90, 80}, true, false, 0, false, 1, 1, 0, false);  // several threads
}

TEST(CublasLt, Relu) {
    Matrix a(CUDA_R_32F, 1, 1), b(CUDA_R_32F, 1, 2), d(CUDA_R_32F, 1, 2);
    a.put(0, 0, 0, 1), b.put(0, 0, 0, -3), b.put(0, 0, 1, 3);
    Description run;
    run.set(CUBLASLT_MATMUL_DESC_EPILOGUE, (uint32_t)CUBLASLT_EPILOGUE_RELU);
    ASSERT_EQ(run.run(1.0f, a, b, 0.0f, d, d), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(d.get(0, 0, 0), 0);
    EXPECT_EQ(d.get(0, 0, 1), 3);
}

TEST(CublasLt, InPlace) {
    Matrix a(CUDA_R_16BF, 4, 3), b(CUDA_R_16BF, 3, 5), d(CUDA_R_16BF, 4, 5), old(CUDA_R_16BF, 4, 5);
    a.fill(1), b.fill(2), d.fill(3), old.fill(3);
    Description run;
    ASSERT_EQ(run.run(1.0f, a, b, 1.0f, d, d), CUBLAS_STATUS_SUCCESS);
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 5; j++) EXPECT_EQ(d.get(0, i, j), dot(a, false, b, false, 0, i, j) + old.get(0, i, j));
}

TEST(CublasLt, Int8) {
    Matrix a(CUDA_R_8I, 68, 12), b(CUDA_R_8I, 68, 7), c(CUDA_R_32I, 12, 7), d(CUDA_R_32I, 12, 7);
    a.fill(1), b.fill(2), c.fill(3);
    a.put(0, 0, 0, -128), b.put(0, 0, 0, -128);
    Description run(true);
    run.transpose(true, false);
    ASSERT_EQ(run.run(2, a, b, 3, c, d), CUBLAS_STATUS_SUCCESS);
    for (int i = 0; i < 12; i++)
        for (int j = 0; j < 7; j++) EXPECT_EQ(d.get(0, i, j), 2 * dot(a, true, b, false, 0, i, j) + 3 * c.get(0, i, j));
}

TEST(CublasLt, Fp8) {
    Arch arch(90);
    struct {
        cudaDataType a, b, c, d;
    } types[] = {{CUDA_R_8F_E4M3, CUDA_R_8F_E4M3, CUDA_R_16BF, CUDA_R_16BF},
                 {CUDA_R_8F_E4M3, CUDA_R_8F_E5M2, CUDA_R_32F, CUDA_R_32F},
                 {CUDA_R_8F_E5M2, CUDA_R_8F_E4M3, CUDA_R_16F, CUDA_R_16F},
                 {CUDA_R_8F_E4M3, CUDA_R_8F_E4M3, CUDA_R_16BF, CUDA_R_8F_E4M3},
                 {CUDA_R_8F_E5M2, CUDA_R_8F_E4M3, CUDA_R_16BF, CUDA_R_8F_E5M2}};
    for (auto t : types)
        for (bool outer : {false, true}) {
            Matrix a(t.a, 48, 32), b(t.b, 48, 5), c(t.c, 32, 5), d(t.d, 32, 5), bias(CUDA_R_16BF, 32, 1);
            a.fill(1), b.fill(2), c.fill(3), bias.fill(4);
            std::vector<float> a_scale(32, 0.5f), b_scale(5, 4.0f);
            float d_scale = 0.25f;
            if (outer) a_scale[3] = 1.0f, b_scale[2] = 2.0f;
            Description run;
            run.transpose(true, false);
            run.set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, (const void*)a_scale.data());
            run.set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, (const void*)b_scale.data());
            int32_t mode = outer ? CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F : CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
            run.set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, mode);
            run.set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, mode);
            run.set(CUBLASLT_MATMUL_DESC_EPILOGUE, (uint32_t)CUBLASLT_EPILOGUE_BIAS);
            run.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, (const void*)bias.bytes.data());
            run.set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, (int32_t)CUDA_R_16BF);
            bool narrow = element_bytes(t.d) == 1;
            if (narrow) run.set(CUBLASLT_MATMUL_DESC_D_SCALE_POINTER, (const void*)&d_scale);
            ASSERT_EQ(run.run(1.0f, a, b, 1.0f, c, d), CUBLAS_STATUS_SUCCESS);
            std::vector<char> expected(8);
            for (int i = 0; i < 32; i++)
                for (int j = 0; j < 5; j++) {
                    double want =
                        dot(a, true, b, false, 0, i, j) * a_scale[i] * b_scale[j] + c.get(0, i, j) + bias.get(0, i, 0);
                    write_element(t.d, expected, 0, narrow ? want * d_scale : want);
                    EXPECT_EQ(d.get(0, i, j), read_element(t.d, expected, 0)) << t.d << " at " << i << " " << j;
                }
        }
}

// every finite number of the narrow types comes back, and what is too large saturates (fp8) or is infinite (fp16)
TEST(CublasLt, ConversionsOfTheOutput) {
    std::vector<char> byte(8), own(8);
    for (int type : {CUDA_R_16BF, CUDA_R_16F, CUDA_R_8F_E4M3, CUDA_R_8F_E5M2}) {
        for (uint32_t i = 0; i < 1u << 20; i++) {
            float x = bits_float(i << 12 | (i * 2654435761u >> 20));
            if (x != x) continue;
            simt_lt_store(type, own.data(), 0, x);
            write_element(type, byte, 0, x);
            ASSERT_EQ(memcmp(own.data(), byte.data(), element_bytes(type)), 0) << "type " << type << ", " << x;
            float back = simt_lt_load(type, own.data(), 0);
            ASSERT_EQ(back, (float)read_element(type, own, 0));
        }
        simt_lt_store(type, own.data(), 0, NAN);
        EXPECT_TRUE(std::isnan(simt_lt_load(type, own.data(), 0)));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// refusals

TEST(CublasLt, RefusesShapesThatDoNotFit) {
    Matrix a(CUDA_R_32F, 4, 3), b(CUDA_R_32F, 3, 5), d(CUDA_R_32F, 4, 5), wrong(CUDA_R_32F, 4, 6);
    a.fill(1), b.fill(2);
    Description run;
    EXPECT_EQ(run.find(a, b, d, d), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(run.find(a, a, d, d), CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_EQ(run.find(a, b, wrong, d), CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_EQ(run.run(1.0f, a, b, 0.0f, wrong, wrong), CUBLAS_STATUS_INVALID_VALUE);
    a.set(CUBLASLT_MATRIX_LAYOUT_LD, (int64_t)3);
    EXPECT_EQ(run.find(a, b, d, d), CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_EQ(run.run(1.0f, a, b, 0.0f, d, d), CUBLAS_STATUS_INVALID_VALUE);
    a.set(CUBLASLT_MATRIX_LAYOUT_LD, (int64_t)4);
    d.set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, (int32_t)2);
    EXPECT_EQ(run.find(a, b, d, d), CUBLAS_STATUS_INVALID_VALUE);
}

TEST(CublasLt, RefusesTypes) {
    Matrix f(CUDA_R_32F, 16, 16), bf(CUDA_R_16BF, 16, 16), h(CUDA_R_16F, 16, 16), i8(CUDA_R_8I, 16, 16);
    Matrix i32(CUDA_R_32I, 16, 16), e4(CUDA_R_8F_E4M3, 16, 16), e5(CUDA_R_8F_E5M2, 16, 16);
    Description run, integer(true);
    run.transpose(true, false), integer.transpose(true, false);
    EXPECT_EQ(run.find(bf, bf, bf, bf), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(run.find(bf, h, bf, bf), CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_EQ(run.find(bf, bf, h, h), CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_EQ(run.find(bf, bf, f, bf), CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_EQ(run.find(f, f, bf, bf), CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_EQ(run.find(i8, i8, i32, i32), CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_EQ(integer.find(i8, i8, i32, i32), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(integer.find(i8, i8, f, f), CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_EQ(run.find(e4, e4, bf, bf), CUBLAS_STATUS_NOT_SUPPORTED);  // sm_86
    Arch arch(89);
    EXPECT_EQ(run.find(e4, e4, bf, bf), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(run.find(e5, e5, bf, bf), CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_EQ(run.find(e4, e4, bf, e5), CUBLAS_STATUS_NOT_SUPPORTED);
    run.set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, (int32_t)CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
    run.set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, (int32_t)CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
    EXPECT_EQ(run.find(e4, e4, bf, bf), CUBLAS_STATUS_NOT_SUPPORTED);  // sm_90 alone
}

TEST(CublasLt, RefusesFormatsOfTheNarrowTypes) {
    Arch arch(90);
    for (auto type : {CUDA_R_8I, CUDA_R_8F_E4M3}) {
        bool integer = type == CUDA_R_8I;
        auto out = integer ? CUDA_R_32I : CUDA_R_16BF;
        Description run(integer);
        Matrix a(type, 32, 32), d(out, 32, 32);
        EXPECT_EQ(run.find(a, a, d, d), CUBLAS_STATUS_NOT_SUPPORTED) << "NN";
        run.transpose(false, true);
        EXPECT_EQ(run.find(a, a, d, d), CUBLAS_STATUS_NOT_SUPPORTED) << "NT";
        run.transpose(true, false);
        EXPECT_EQ(run.find(a, a, d, d), CUBLAS_STATUS_SUCCESS) << "TN";
        Matrix row(out, 32, 32, 0, true);
        EXPECT_EQ(run.find(a, a, row, row), CUBLAS_STATUS_NOT_SUPPORTED);
        Matrix odd_k(type, 34, 32), odd_m(type, 32, 34), odd_d(out, 34, 32), odd_ld(type, 32, 32, 2);
        EXPECT_EQ(run.find(odd_k, odd_k, d, d), CUBLAS_STATUS_NOT_SUPPORTED);
        EXPECT_EQ(run.find(odd_m, a, odd_d, odd_d), CUBLAS_STATUS_NOT_SUPPORTED);
        EXPECT_EQ(run.find(odd_ld, a, d, d), CUBLAS_STATUS_NOT_SUPPORTED);
        Matrix free_n(type, 32, 5), free_d(out, 32, 5);
        EXPECT_EQ(run.find(a, free_n, free_d, free_d), CUBLAS_STATUS_SUCCESS);
        run.prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)2);
        EXPECT_EQ(run.find(a, a, d, d), CUBLAS_STATUS_NOT_SUPPORTED);
    }
}

TEST(CublasLt, RefusesAttributesOfTheWrongSizeAndUnknownEpilogues) {
    Matrix a(CUDA_R_32F, 4, 4);
    Description run;
    uint64_t wide = 1;
    EXPECT_EQ(cublasLtMatmulDescSetAttribute(run.desc, CUBLASLT_MATMUL_DESC_TRANSA, &wide, 8),
              CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_EQ(cublasLtMatrixLayoutSetAttribute(a.layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &wide, 8),
              CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_EQ(cublasLtMatmulPreferenceSetAttribute(run.preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &wide, 4),
              CUBLAS_STATUS_INVALID_VALUE);
    run.set(CUBLASLT_MATMUL_DESC_EPILOGUE, (uint32_t)32);  // GELU
    EXPECT_EQ(run.find(a, a, a, a), CUBLAS_STATUS_NOT_SUPPORTED);
    run.set(CUBLASLT_MATMUL_DESC_EPILOGUE, (uint32_t)CUBLASLT_EPILOGUE_BIAS);
    EXPECT_EQ(run.run(1.0f, a, a, 0.0f, a, a), CUBLAS_STATUS_INVALID_VALUE) << "a bias without its address";
    float scale = 1;
    run.set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, (const void*)&scale);
    EXPECT_EQ(run.find(a, a, a, a), CUBLAS_STATUS_INVALID_VALUE) << "a scale of fp32";
}

TEST(CublasLt, WorkspaceAndAlignmentMustBeAsPromised) {
    Matrix a(CUDA_R_16BF, 64, 8), b(CUDA_R_16BF, 64, 8), d(CUDA_R_16BF, 8, 8);
    a.fill(1), b.fill(2);
    Description run;
    run.transpose(true, false);
    ASSERT_EQ(run.find(a, b, d, d), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(run.result.workspaceSize, 0u) << "none is allowed by default";
    run.prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (uint64_t)1 << 20);
    ASSERT_EQ(run.find(a, b, d, d), CUBLAS_STATUS_SUCCESS);
    size_t need = run.result.workspaceSize;
    ASSERT_GT(need, 0u);
    char* workspace;
    CUDA_CHECK(cudaMalloc(&workspace, need));
    float one = 1, zero = 0;
    auto with = [&](const void* a_data, void* w, size_t bytes) {
        return cublasLtMatmul(run.handle, run.desc, &one, a_data, a.layout, b.bytes.data(), b.layout, &zero,
                              d.bytes.data(), d.layout, d.bytes.data(), d.layout, &run.result.algo, w, bytes, nullptr);
    };
    EXPECT_EQ(with(a.bytes.data(), workspace, need), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(d.get(0, 3, 5), dot(a, true, b, false, 0, 3, 5));
    EXPECT_EQ(with(a.bytes.data(), workspace, need - 1), CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_EQ(with(a.bytes.data(), nullptr, 0), CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_EQ(with(a.bytes.data(), workspace + 16, need), CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_EQ(with(nullptr, workspace, need), CUBLAS_STATUS_INVALID_VALUE);
    // 256 bytes were promised
    a.bytes.resize(a.bytes.size() + 2);
    EXPECT_EQ(with(a.bytes.data() + 2, workspace, need), CUBLAS_STATUS_NOT_SUPPORTED);
    run.prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)2);
    run.prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, (uint32_t)CUBLASLT_REDUCTION_SCHEME_NONE);
    ASSERT_EQ(run.find(a, b, d, d), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(run.result.workspaceSize, 0u) << "no reduction scheme that sums parts";
    EXPECT_EQ(with(a.bytes.data() + 2, nullptr, 0), CUBLAS_STATUS_SUCCESS);
    CUDA_CHECK(cudaFree(workspace));
}

TEST(CublasLt, NoDevice) {
    setenv("TRAIN_QRL_SIMT_DEVICES", "0", 1);
    cublasLtHandle_t handle;
    EXPECT_EQ(cublasLtCreate(&handle), CUBLAS_STATUS_NOT_INITIALIZED);
    unsetenv("TRAIN_QRL_SIMT_DEVICES");
    EXPECT_STREQ(cublasLtGetStatusName(CUBLAS_STATUS_NOT_SUPPORTED), "CUBLAS_STATUS_NOT_SUPPORTED");
}

// ---------------------------------------------------------------------------------------------------------------------
// streams and graphs: host scalars are read at the call, device scalars and matrices when the product runs

TEST(CublasLt, LazyStreamsAndGraphs) {
    simt_settings.lazy_streams = true;
    Matrix a(CUDA_R_32F, 1, 1), b(CUDA_R_32F, 1, 1), d(CUDA_R_32F, 1, 1);
    a.put(0, 0, 0, 2), b.put(0, 0, 0, 3), d.put(0, 0, 0, 0);
    Description run;
    cudaStream_t stream;
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    float alpha = 1, beta = 0;
    auto multiply = [&] {
        return cublasLtMatmul(run.handle, run.desc, &alpha, a.bytes.data(), a.layout, b.bytes.data(), b.layout, &beta,
                              d.bytes.data(), d.layout, d.bytes.data(), d.layout, nullptr, nullptr, 0, stream);
    };
    ASSERT_EQ(multiply(), CUBLAS_STATUS_SUCCESS);
    alpha = 100;
    a.put(0, 0, 0, 5);
    EXPECT_EQ(d.get(0, 0, 0), 0) << "not yet";
    CUDA_CHECK(cudaStreamSynchronize(stream));
    EXPECT_EQ(d.get(0, 0, 0), 15);

    cudaGraph_t graph;
    cudaGraphExec_t exec;
    alpha = 10;
    CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    ASSERT_EQ(multiply(), CUBLAS_STATUS_SUCCESS);
    run.set(CUBLASLT_MATMUL_DESC_POINTER_MODE, (int32_t)CUBLASLT_POINTER_MODE_DEVICE);
    CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
    CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    CUDA_CHECK(cudaGraphDestroy(graph));
    alpha = 7;
    a.put(0, 0, 0, 1);
    CUDA_CHECK(cudaGraphLaunch(exec, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
    EXPECT_EQ(d.get(0, 0, 0), 30);
    ASSERT_EQ(multiply(), CUBLAS_STATUS_SUCCESS);
    alpha = 4;
    CUDA_CHECK(cudaStreamSynchronize(stream));
    EXPECT_EQ(d.get(0, 0, 0), 12);
    CUDA_CHECK(cudaGraphExecDestroy(exec));
    CUDA_CHECK(cudaStreamDestroy(stream));
    simt_settings = SimtSettings();
}

// ---------------------------------------------------------------------------------------------------------------------
// plans

// d (1,n) = a (1,4) b (4,n)
static std::vector<float> planned_product(int64_t n) {
    const int64_t m = 1, k = 4;
    std::vector<floatX> a(m * k), b(k * n);
    std::vector<float> d(m * n);
    for (size_t i = 0; i < a.size(); i++) a[i] = floatX(0.01f * (float)(i * 7 % 101));
    for (size_t i = 0; i < b.size(); i++) b[i] = floatX(0.01f * (float)(i * 13 % 103) - 0.5f);
    Device dev;
    dev.cuda = true;
    cublaslt_matmul<float>({d.data(), m}, {a.data(), m}, {b.data(), k}, nullptr, m, n, k, false, dev);
    return d;
}

// as training with micro-batches of every size makes them
TEST(CublasLtPlans, AreBoundedFoundAgainAndTheSameWhenMadeAnew) {
    cublaslt_release();
    const int64_t most = (int64_t)CublasltState::most;
    const SimtLtCounts before = simt_lt_counts();
    auto plans = [&] { return simt_lt_counts().descriptors - before.descriptors; };
    auto asked = [&] { return simt_lt_counts().heuristics - before.heuristics; };
    const std::vector<float> first = planned_product(1), other = planned_product(2);
    for (int64_t n = 3; n <= most; n++) planned_product(n);
    EXPECT_EQ(plans(), most);
    EXPECT_EQ(asked(), most);
    for (int64_t n = most; n >= 1; n--) planned_product(n);
    EXPECT_EQ(asked(), most) << "a known plan was asked for again";
    for (int64_t n = most + 1; n < 2 * most; n++) {
        planned_product(n);
        if (n % 16 == 0) { EXPECT_EQ(planned_product(1), first); }
    }
    EXPECT_EQ(asked(), 2 * most - 1) << "a plan in use was forgotten";
    EXPECT_EQ(planned_product(2), other);
    EXPECT_EQ(asked(), 2 * most);
    EXPECT_EQ(plans(), most) << "what was forgotten is still there";
    EXPECT_EQ(simt_lt_counts().layouts - before.layouts, 3 * most);
    cublaslt_release();
    EXPECT_EQ(plans(), 0);
    EXPECT_EQ(simt_lt_counts().layouts, before.layouts);
}

// the first product makes the handle, which a capture does not allow: decode steps (model/decode_graph.cuh) run once
// before they are captured
TEST(CublasLtPlans, AStepIsCapturedWhenItHasRunOnce) {
    cublaslt_release();
    Device dev;
    dev.cuda = true;
    CUDA_CHECK(cudaStreamCreateWithFlags(&dev.stream, cudaStreamNonBlocking));
    ScratchStack scratch;
    scratch.size = 1 << 16;
    CUDA_CHECK(cudaMalloc(&scratch.base, scratch.size));
    dev.scratch = &scratch;
    floatX one = floatX(1.0f);
    float sum = 0.0f;
    DecodeGraphs graphs;
    for (int i = 1; i <= 4; i++) {
        decode_graph_run(graphs, DecodeGraphKey(), dev, [&] {
            cublaslt_matmul<float>({&sum, 1}, {&one, 1}, {&one, 1}, nullptr, 1, 1, 1, true, dev);
        });
        CUDA_CHECK(cudaStreamSynchronize(dev.stream));
        EXPECT_EQ(sum, (float)i);
    }
    EXPECT_EQ(graphs.eager, 1);
    EXPECT_EQ(graphs.captured, 1);
    EXPECT_EQ(graphs.replayed, 2);
    graphs.clear();
    CUDA_CHECK(cudaFree(scratch.base));
    CUDA_CHECK(cudaStreamDestroy(dev.stream));
    cublaslt_release();
}
#endif
