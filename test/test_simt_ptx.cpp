// test/simt/simt_ptx.h: the layout of every fragment against the formulas of the PTX ISA manual, element by element;
// when copies land; and the mistakes that these functions must make visible, each planted in one kernel. Needs
// -DTRAIN_QRL_SIMT -I test/simt.
#include <gtest/gtest.h>

#if !defined(TRAIN_QRL_SIMT)
TEST(SimtPtx, All) { GTEST_SKIP() << "needs the simt build (make simt)"; }
#else
#include <chrono>
#include <cmath>
#include <functional>
#include "../runtime/ptx.h"
#include "../runtime/rng.h"
#include "simt_test.h"

// ---------------------------------------------------------------------------------------------------------------------
// mma. PTX ISA manual, "Matrix Fragments for mma.m16n8k16" and "... m16n8k32": which row and column of the matrix
// element i of a lane's fragment is

static int group_id(int lane) { return lane >> 2; }
static int in_group(int lane) { return lane % 4; }

// 16-bit elements, 8 of A and 4 of B
static int a16_row(int lane, int i) {
    return (0 <= i && i < 2) || (4 <= i && i < 6) ? group_id(lane) : group_id(lane) + 8;
}
static int a16_col(int lane, int i) { return i < 4 ? in_group(lane) * 2 + (i & 1) : in_group(lane) * 2 + (i & 1) + 8; }
static int b16_row(int lane, int i) { return i < 2 ? in_group(lane) * 2 + (i & 1) : in_group(lane) * 2 + (i & 1) + 8; }
// 8-bit elements, 16 of A and 8 of B
static int a8_row(int lane, int i) {
    return (0 <= i && i < 4) || (8 <= i && i < 12) ? group_id(lane) : group_id(lane) + 8;
}
static int a8_col(int lane, int i) { return i < 8 ? in_group(lane) * 4 + (i & 3) : in_group(lane) * 4 + (i & 3) + 16; }
static int b8_row(int lane, int i) { return i < 4 ? in_group(lane) * 4 + (i & 3) : in_group(lane) * 4 + (i & 3) + 16; }
static int b_col(int lane) { return group_id(lane); }
// C and D
static int d_row(int lane, int i) { return i < 2 ? group_id(lane) : group_id(lane) + 8; }
static int d_col(int lane, int i) { return in_group(lane) * 2 + (i & 1); }

enum MmaType { MMA_BF16, MMA_FP16, MMA_S8, MMA_E4M3 };

// a: (32,4), b: (32,2), d: (32,4) registers
template <MmaType TYPE>
__global__ void mma_kernel(uint32_t* d, const uint32_t* a, const uint32_t* b) {
    int lane = threadIdx.x;
    if constexpr (TYPE == MMA_S8) {
        mma_m16n8k32_s8(reinterpret_cast<int*>(d) + lane * 4, a + lane * 4, b + lane * 2);
    } else {
        float* out = reinterpret_cast<float*>(d) + lane * 4;
        if constexpr (TYPE == MMA_BF16) mma_m16n8k16_bf16(out, a + lane * 4, b + lane * 2);
        if constexpr (TYPE == MMA_FP16) mma_m16n8k16_fp16(out, a + lane * 4, b + lane * 2);
        if constexpr (TYPE == MMA_E4M3) mma_m16n8k32_e4m3(out, a + lane * 4, b + lane * 2);
    }
}

static uint32_t encode(MmaType type, double x) {
    if (type == MMA_BF16) return float_to_bf16_bits((float)x);
    if (type == MMA_FP16) return float_to_fp16_bits((float)x);
    if (type == MMA_E4M3) return float_to_e4m3_bits((float)x);
    return (uint8_t)(int8_t)x;
}

static double number(uint32_t tensor, uint32_t i) {
    return (double)(rng_bits(3, RNG_INIT, tensor, i, 0).x[0] % 15) - 7;
}

// D = C + A B through fragments; the numbers are small integers, so every order of sums gives the same
template <MmaType TYPE>
static void test_mma() {
    const bool wide = TYPE == MMA_S8 || TYPE == MMA_E4M3;
    const int K = wide ? 32 : 16, bits = wide ? 8 : 16, per_register = 32 / bits;
    std::vector<double> A(16 * K), B(K * 8), C(16 * 8);
    for (size_t i = 0; i < A.size(); i++) A[i] = number(0, (uint32_t)i);
    for (size_t i = 0; i < B.size(); i++) B[i] = number(1, (uint32_t)i);
    for (size_t i = 0; i < C.size(); i++) C[i] = number(2, (uint32_t)i);
    std::vector<uint32_t> a(32 * 4), b(32 * 2), d(32 * 4);
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < 4 * per_register; i++) {
            int row = wide ? a8_row(lane, i) : a16_row(lane, i), col = wide ? a8_col(lane, i) : a16_col(lane, i);
            a[lane * 4 + i / per_register] |= encode(TYPE, A[row * K + col]) << (i % per_register * bits);
        }
        for (int i = 0; i < 2 * per_register; i++) {
            int row = wide ? b8_row(lane, i) : b16_row(lane, i);
            b[lane * 2 + i / per_register] |= encode(TYPE, B[row * 8 + b_col(lane)]) << (i % per_register * bits);
        }
        for (int i = 0; i < 4; i++) {
            double c = C[d_row(lane, i) * 8 + d_col(lane, i)];
            d[lane * 4 + i] = TYPE == MMA_S8 ? (uint32_t)(int)c : float_bits((float)c);
        }
    }
    const std::vector<uint32_t> before = d;
    in_all_orders([&] {
        d = before;
        LAUNCH(mma_kernel<TYPE>, 1, 32, 0, nullptr, d.data(), a.data(), b.data());
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++) {
                int row = d_row(lane, i), col = d_col(lane, i);
                double want = C[row * 8 + col];
                for (int k = 0; k < K; k++) want += A[row * K + k] * B[k * 8 + col];
                uint32_t got = d[lane * 4 + i];
                ASSERT_EQ(TYPE == MMA_S8 ? (double)(int)got : (double)bits_float(got), want)
                    << "type " << TYPE << ", lane " << lane << ", d[" << i << "]";
            }
    });
}

TEST(SimtPtx, FragmentsOfMma) {
    simt_settings.arch = 89;
    test_mma<MMA_BF16>();
    test_mma<MMA_FP16>();
    test_mma<MMA_S8>();
    test_mma<MMA_E4M3>();
    simt_settings = SimtSettings();
}

TEST(SimtPtx, DecodersOfMma) {
    for (uint32_t i = 0; i < 1 << 16; i++) {
        float half = SimtFp16::one(i), want = fp16_bits_to_float((uint16_t)i), pair[2];
        ASSERT_TRUE(float_bits(half) == float_bits(want) || (half != half && want != want)) << i;
        SimtBf16::decode(pair, i << 16 | (i ^ 0x1234));
        ASSERT_EQ(float_bits(pair[0]), (i ^ 0x1234) << 16);
        ASSERT_EQ(float_bits(pair[1]), i << 16);
    }
    for (uint32_t i = 0; i < 256; i++) {
        float four[4], want = e4m3_bits_to_float((uint8_t)i);
        int whole[4];
        SimtE4m3::decode(four, i * 0x01010101u);
        SimtS8::decode(whole, i * 0x01010101u);
        for (int k = 0; k < 4; k++) {
            ASSERT_TRUE(four[k] == want || (want != want && four[k] != four[k])) << i;
            ASSERT_EQ(whole[k], (int8_t)i);
        }
    }
}

// real tensor cores compute each row of D by itself, and so must the stand-in: bits that depend on the neighbours in
// the tile would make a sampler and a trainer differ
TEST(SimtPtx, RowsOfMmaAreIndependent) {
    auto run = [](std::vector<uint32_t> a, const std::vector<uint32_t>& b) {
        std::vector<uint32_t> d(32 * 4);
        LAUNCH(mma_kernel<MMA_BF16>, 1, 32, 0, nullptr, d.data(), a.data(), b.data());
        return d;
    };
    std::vector<uint32_t> a(32 * 4), b(32 * 2);
    auto draw = [](uint32_t i) {
        auto one = [](uint32_t i) { return encode(MMA_BF16, uniform01(rng_bits(5, RNG_INIT, 0, i, 0).x[0]) - 0.5); };
        return one(2 * i) | one(2 * i + 1) << 16;
    };
    for (size_t i = 0; i < b.size(); i++) b[i] = draw(1000 + (uint32_t)i);
    for (size_t i = 0; i < a.size(); i++) a[i] = draw((uint32_t)i);
    std::vector<uint32_t> all = run(a, b);
    for (int row = 0; row < 16; row++) {
        // the row alone, and moved to row 0
        std::vector<uint32_t> alone(a.size()), moved(a.size());
        for (int lane = 0; lane < 32; lane++)
            for (int r = 0; r < 4; r++)
                if (a16_row(lane, 2 * r) == row) {
                    alone[lane * 4 + r] = a[lane * 4 + r];
                    moved[in_group(lane) * 4 + (r & 2)] = a[lane * 4 + r];
                }
        std::vector<uint32_t> d_alone = run(alone, b), d_moved = run(moved, b);
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++)
                if (d_row(lane, i) == row) {
                    ASSERT_EQ(d_alone[lane * 4 + i], all[lane * 4 + i]);
                    ASSERT_EQ(d_moved[in_group(lane) * 4 + (i & 1)], all[lane * 4 + i]);
                }
    }
}

__global__ void partial_mma_kernel(float* out) {
    uint32_t a[4] = {}, b[2] = {};
    float d[4] = {};
    if (threadIdx.x == 7) return;
    mma_m16n8k16_bf16(d, a, b);
    out[threadIdx.x] = d[0];
}

__global__ void divergent_mma_kernel(float* out) {
    uint32_t a[4] = {}, b[2] = {};
    float d[4] = {};
    if (threadIdx.x < 16) mma_m16n8k16_bf16(d, a, b);
    else mma_m16n8k16_fp16(d, a, b);
    out[threadIdx.x] = d[0];
}

TEST(SimtPtx, EveryLaneMustTakePart) {
    float out[32];
    expect_fault([&] { LAUNCH(partial_mma_kernel, 1, 32, 0, nullptr, out); },
                 {"partial_mma_kernel", "mma_m16n8k16_bf16 at", "test_simt_ptx.cpp:", "lane 7 has left"});
    expect_fault([&] { LAUNCH(partial_mma_kernel, 1, 6, 0, nullptr, out); },
                 {"lane 6 has left the kernel or never was"});
    expect_fault([&] { LAUNCH(divergent_mma_kernel, 1, 32, 0, nullptr, out); },
                 {"divergent warp", "mma_m16n8k16_bf16", "mma_m16n8k16_fp16"});
    uint32_t zeros[128] = {};
    expect_fault([&] { LAUNCH(mma_kernel<MMA_E4M3>, 1, 32, 0, nullptr, zeros, zeros, zeros); },
                 {"mma_m16n8k32_e4m3", "needs sm_89"});
}

// ---------------------------------------------------------------------------------------------------------------------
// ldmatrix

// The 16-bit number at row r, column c of matrix i is 1000 i + 10 r + c. Rows of matrices lie in reverse order in
// memory, 48 bytes apart.
template <int MATRICES, bool TRANSPOSED>
__global__ void ldmatrix_kernel(uint32_t* out, int misaligned, int past) {
    DYNAMIC_SHARED(uint16_t, memory);
    int lane = threadIdx.x, row = 8 * MATRICES - 1 - lane;
    if (row >= 0)
        for (int c = 0; c < 8; c++) memory[row * 24 + c] = (uint16_t)(1000 * (lane / 8) + 10 * (lane % 8) + c);
    __syncwarp();
    const uint16_t* address =
        memory + (row >= 0 ? row : 0) * 24 + (lane == 3 ? misaligned : 0) + (lane == 2 ? past : 0);
    uint32_t* r = out + lane * MATRICES;
    if constexpr (MATRICES == 4 && !TRANSPOSED) ldmatrix_x4(r, address);
    if constexpr (MATRICES == 4 && TRANSPOSED) ldmatrix_x4_trans(r, address);
    if constexpr (MATRICES == 2 && !TRANSPOSED) ldmatrix_x2(r, address);
    if constexpr (MATRICES == 2 && TRANSPOSED) ldmatrix_x2_trans(r, address);
}

static constexpr int LDMATRIX_BYTES = 32 * 48;

// the manual: of each matrix, thread t holds elements 2 (t % 4) and the next of row t / 4; with .trans, of column t / 4
template <int MATRICES, bool TRANSPOSED>
static void test_ldmatrix() {
    in_all_orders([] {
        std::vector<uint32_t> out(32 * MATRICES);
        LAUNCH((ldmatrix_kernel<MATRICES, TRANSPOSED>), 1, 32, LDMATRIX_BYTES, nullptr, out.data(), 0, 0);
        for (int t = 0; t < 32; t++)
            for (int i = 0; i < MATRICES; i++)
                for (int half = 0; half < 2; half++) {
                    int along = 2 * (t % 4) + half, across = t / 4;
                    int row = TRANSPOSED ? along : across, col = TRANSPOSED ? across : along;
                    ASSERT_EQ(out[t * MATRICES + i] >> 16 * half & 0xFFFF, (uint32_t)(1000 * i + 10 * row + col))
                        << MATRICES << " matrices, transposed " << TRANSPOSED << ", thread " << t;
                }
    });
}

TEST(SimtPtx, LayoutOfLdmatrix) {
    test_ldmatrix<4, false>();
    test_ldmatrix<4, true>();
    test_ldmatrix<2, false>();
    test_ldmatrix<2, true>();
}

__global__ void ldmatrix_elsewhere_kernel(uint32_t* out) { ldmatrix_x4(out + threadIdx.x * 4, out); }

__global__ void ldmatrix_static_kernel(uint32_t* out) {
    __shared__ __align__(16) uint16_t rows[32 * 8];
    for (int i = 0; i < 8; i++) rows[threadIdx.x * 8 + i] = (uint16_t)(threadIdx.x * 8 + i);
    __syncwarp();
    ldmatrix_x4(out + threadIdx.x * 4, rows + threadIdx.x * 8);
}

TEST(SimtPtx, AddressesOfLdmatrix) {
    alignas(16) uint32_t out[128];
    expect_fault([&] { LAUNCH((ldmatrix_kernel<4, false>), 1, 32, LDMATRIX_BYTES, nullptr, out, 1, 0); },
                 {"ldmatrix_x4 at", "of lane 3 is not a multiple of 16", "thread (3,0,0)"});
    // row 29 of 48 bytes and 144 bytes more begins 16 bytes after the end; 8 elements earlier it ends with it
    expect_fault([&] { LAUNCH((ldmatrix_kernel<4, false>), 1, 32, LDMATRIX_BYTES, nullptr, out, 0, 72); },
                 {"bytes 1536 to 1551 of dynamic shared memory, the launch asked for 1536"});
    LAUNCH((ldmatrix_kernel<4, false>), 1, 32, LDMATRIX_BYTES, nullptr, out, 0, 64);
    LAUNCH(ldmatrix_static_kernel, 1, 32, 0, nullptr, out);
    EXPECT_EQ(out[4 * 5 + 3], 24u * 8 + 8 + 2 + ((24u * 8 + 8 + 3) << 16));
#if defined(__GLIBC__)
    expect_fault([&] { LAUNCH(ldmatrix_elsewhere_kernel, 1, 32, 0, nullptr, out); }, {"is not in shared memory"});
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// cp.async

// out: what lies in shared memory after the issue, the commit, a wait that covers the first group only, and one that
// covers both
__global__ void groups_kernel(float* out, const float* in) {
    DYNAMIC_SHARED(float, tile);
    auto report = [&](int stage) {
        for (int i = 0; i < 8; i++) out[stage * 8 + i] = tile[i];
    };
    for (int i = 0; i < 8; i++) tile[i] = -1;
    cp_async_16(tile, in);
    report(0);
    cp_async_commit();
    cp_async_16(tile + 4, in + 4, 12);
    cp_async_commit();
    cp_async_commit();  // an empty group counts
    report(1);
    cp_async_wait<2>();
    report(2);
    cp_async_wait<1>();
    report(3);
    cp_async_16(tile, in + 8, 0);
    cp_async_wait<0>();  // not committed, so not waited for
    report(4);
    cp_async_commit();
    cp_async_wait<0>();
    report(5);
}

TEST(SimtPtx, CopiesLandAtTheWaitThatCoversThem) {
    alignas(16) float in[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, out[6 * 8];
    LAUNCH(groups_kernel, 1, 1, 32, nullptr, out, in);
    auto is = [&](int stage, std::vector<float> first, std::vector<float> second) {
        first.insert(first.end(), second.begin(), second.end());
        for (int i = 0; i < 8; i++)
            EXPECT_TRUE(out[stage * 8 + i] == first[i] ||
                        (out[stage * 8 + i] != out[stage * 8 + i] && first[i] != first[i]))
                << "stage " << stage << " element " << i << ": " << out[stage * 8 + i];
    };
    std::vector<float> nan(4, NAN);
    is(0, nan, {-1, -1, -1, -1});
    is(1, nan, nan);
    is(2, {1, 2, 3, 4}, nan);
    is(3, {1, 2, 3, 4}, {5, 6, 7, 0});  // the last four bytes were not asked for
    is(4, nan, {5, 6, 7, 0});
    is(5, {0, 0, 0, 0}, {5, 6, 7, 0});
}

__global__ void copy_kernel(const char* in, int to, int from, int bytes, bool commit, bool wait) {
    DYNAMIC_SHARED(char, tile);
    cp_async_16(tile + to, in + from, bytes);
    if (commit) cp_async_commit();
    if (wait) cp_async_wait<0>();
}

__global__ void shared_to_shared_kernel(float* out) {
    DYNAMIC_SHARED(float, tile);
    cp_async_16(tile, tile + 4);
    cp_async_16(out, out);
}

__global__ void copy_elsewhere_kernel(float* out) { cp_async_16(out, out); }

TEST(SimtPtx, FaultsOfCopies) {
    alignas(16) char in[64] = {};
    auto copy = [&](int to, int from, int bytes, bool commit, bool wait) {
        return [=, &in] { LAUNCH(copy_kernel, 1, 1, 64, nullptr, in, to, from, bytes, commit, wait); };
    };
    EXPECT_EQ(message_of(copy(48, 0, 16, true, true)), "no error");
    expect_fault(copy(0, 0, 16, false, true),
                 {"copy_kernel", "left the kernel with 1 copies under way", "never committed"});
    expect_fault(copy(0, 0, 16, true, false), {"test_simt_ptx.cpp:", "no cp_async_wait covers it"});
    expect_fault(copy(8, 0, 16, true, true), {"cp_async_16 at", "not a multiple of 16"});
    expect_fault(copy(0, 4, 16, true, true), {"not a multiple of 16"});
    expect_fault(copy(64, 0, 16, true, true), {"bytes 64 to 79 of dynamic shared memory, the launch asked for 64"});
    expect_fault(copy(0, 0, 17, true, true), {"17 bytes"});
    alignas(16) float out[4];
    expect_fault([&] { LAUNCH(shared_to_shared_kernel, 1, 1, 64, nullptr, out); }, {"global is needed"});
#if defined(__GLIBC__)
    expect_fault([&] { LAUNCH(copy_elsewhere_kernel, 1, 1, 64, nullptr, out); }, {"is not in shared memory"});
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Planted mistakes in a product of the ordinary kind: out (M,8) = A (M,K) Bt (8,K)^T, bf16, tiles of 32 x 16 and 8 x 16
// brought by cp.async, two warps of 16 rows each. Every test of an operator that compares with a reference, has
// poisoned outputs with guard bytes behind them and runs in three orders finds them as this one does.

enum Mistake { NO_MISTAKE, NO_BARRIER, NO_BARRIER_BEFORE_REUSE, NO_WAIT, WRONG_FRAGMENT, WRONG_B_FRAGMENT, TAIL };

template <Mistake MISTAKE>
__global__ void product_kernel(float* out, const bf16* A, const bf16* Bt, int M, int K) {
    DYNAMIC_SHARED(bf16, tile_a);     // (32,16)
    bf16* tile_b = tile_a + 32 * 16;  // (8,16)
    int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    float d[4] = {0, 0, 0, 0};
    for (int k = 0; k < K; k += 16) {
        int row = thread / 2, half = thread % 2 * 8;
        cp_async_16(tile_a + row * 16 + half, A + (row < M ? row : 0) * K + k + half, row < M ? 16 : 0);
        if (thread < 16) cp_async_16(tile_b + row * 16 + half, Bt + row * K + k + half);
        cp_async_commit();
        if (MISTAKE != NO_WAIT || k + 16 >= K) cp_async_wait<0>();
        if (MISTAKE != NO_BARRIER) __syncthreads();
        uint32_t a[4], b[2];
        ldmatrix_x4(a, tile_a + (warp * 16 + lane % 16) * 16 + lane / 16 * 8);
        ldmatrix_x2(b, tile_b + lane % 8 * 16 + lane / 8 % 2 * 8);
        if (MISTAKE == WRONG_FRAGMENT) std::swap(a[1], a[2]);
        if (MISTAKE == WRONG_B_FRAGMENT) std::swap(b[0], b[1]);
        mma_m16n8k16_bf16(d, a, b);
        if (MISTAKE != NO_BARRIER_BEFORE_REUSE) __syncthreads();
    }
    for (int i = 0; i < 4; i++) {
        int row = warp * 16 + lane / 4 + i / 2 * 8, col = lane % 4 * 2 + i % 2;
        if (MISTAKE == TAIL ? row <= M : row < M) out[row * 8 + col] = d[i];
    }
}

struct Findings {
    int nan = 0, wrong = 0, guard = 0;  // elements of all three orders together
    bool orders_differ = false;
};

template <Mistake MISTAKE>
static Findings run_product() {
    const int M = 27, K = 48;
    bf16 *A, *Bt;
    float* out;
    CUDA_CHECK(cudaMalloc(&A, M * K * sizeof(bf16)));
    CUDA_CHECK(cudaMalloc(&Bt, 8 * K * sizeof(bf16)));
    for (int i = 0; i < M * K; i++) A[i] = bf16((float)number(0, (uint32_t)i));
    for (int i = 0; i < 8 * K; i++) Bt[i] = bf16((float)number(1, (uint32_t)i));
    Findings f;
    std::vector<float> first;
    in_all_orders([&] {
        CUDA_CHECK(cudaMalloc(&out, (M + 8) * 8 * sizeof(float)));
        LAUNCH(product_kernel<MISTAKE>, 1, 64, 40 * 16 * sizeof(bf16), nullptr, out, A, Bt, M, K);
        for (int i = 0; i < M * 8; i++) {
            float want = 0;
            for (int k = 0; k < K; k++) want += (float)A[i / 8 * K + k] * (float)Bt[i % 8 * K + k];
            if (out[i] != out[i]) f.nan++;
            else f.wrong += out[i] != want;
        }
        for (int i = M * 8; i < (M + 8) * 8; i++) f.guard += float_bits(out[i]) != 0xFFFFFFFFu;
        std::vector<float> bits(out, out + M * 8);
        if (first.empty()) first = bits;
        f.orders_differ = f.orders_differ || memcmp(first.data(), bits.data(), M * 8 * sizeof(float)) != 0;
        CUDA_CHECK(cudaFree(out));
    });
    CUDA_CHECK(cudaFree(A));
    CUDA_CHECK(cudaFree(Bt));
    return f;
}

TEST(SimtMistake, None) {
    Findings f = run_product<NO_MISTAKE>();
    EXPECT_TRUE(f.nan == 0 && f.wrong == 0 && f.guard == 0 && !f.orders_differ);
}

// found by the poison of copies that have not landed: the other warp's are read
TEST(SimtMistake, MissingBarrierAfterTheWait) { EXPECT_GT(run_product<NO_BARRIER>().nan, 0); }

// found by the comparison, in the order in which the warp that brings B runs first, and by the bits of the three orders
TEST(SimtMistake, MissingBarrierBeforeATileIsReused) {
    Findings f = run_product<NO_BARRIER_BEFORE_REUSE>();
    EXPECT_GT(f.wrong, 0);
    EXPECT_TRUE(f.orders_differ);
}

// found by the poison of copies that have not landed, the thread's own among them
TEST(SimtMistake, MissingWait) { EXPECT_GT(run_product<NO_WAIT>().nan, 0); }

// found by the comparison with the loop
TEST(SimtMistake, WrongFragmentIndex) {
    EXPECT_GT(run_product<WRONG_FRAGMENT>().wrong, 0);
    EXPECT_GT(run_product<WRONG_B_FRAGMENT>().wrong, 0);
}

// found by the guard bytes behind the output
TEST(SimtMistake, OffByOneTail) {
    Findings f = run_product<TAIL>();
    EXPECT_EQ(f.guard, 3 * 8);
    EXPECT_EQ(f.wrong, 0);
}

// dbias (C) = the sum over T rows of dout (T,C): the bits of a float atomic depend on the order
template <bool ATOMIC>
__global__ void dbias_kernel(float* dbias, const float* dout, int T, int C) {
    int i = threadIdx.x;
    if (ATOMIC) {
        for (int c = 0; c < C; c++)
            if (i < T) atomicAdd(&dbias[c], dout[i * C + c]);
    } else if (i < C) {
        for (int t = 0; t < T; t++) dbias[i] += dout[t * C + i];
    }
}

template <bool ATOMIC>
static bool gradients_differ() {
    const int T = 100, C = 8;
    std::vector<float> dout(T * C);
    for (size_t i = 0; i < dout.size(); i++) dout[i] = uniform01(rng_bits(9, RNG_INIT, 0, (uint32_t)i, 0).x[0]) - 0.5f;
    std::vector<std::vector<float> > runs;
    in_all_orders([&] {
        runs.push_back(std::vector<float>(C));
        LAUNCH(dbias_kernel<ATOMIC>, 1, 128, 0, nullptr, runs.back().data(), dout.data(), T, C);
    });
    return runs[0] != runs[1] || runs[0] != runs[2];
}

// found by the bits of the three orders
TEST(SimtMistake, FloatAtomicInAGradient) {
    EXPECT_TRUE(gradients_differ<true>());
    EXPECT_FALSE(gradients_differ<false>());
}

// ---------------------------------------------------------------------------------------------------------------------
// cost: printed, since it depends on the machine

template <class F>
__global__ void repeat_kernel(F f, int rounds) {
    for (int i = 0; i < rounds; i++) f();
}

template <class F>
static void report(const char* name, F f) {
    const int rounds = 2000, warps = 4;
    auto seconds = [] {
        return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    };
    double start = seconds();
    LAUNCH(repeat_kernel<F>, 1, 32 * warps, 2048, nullptr, f, rounds);
    printf("%-20s %5.2f us per warp\n", name, (seconds() - start) * 1e6 / (rounds * warps));
}

TEST(SimtPtx, Cost) {
    simt_settings.arch = 89;
    uint32_t a[4] = {}, b[2] = {};
    report("mma bf16", [=] {
        float d[4] = {};
        mma_m16n8k16_bf16(d, a, b);
    });
    report("mma fp16", [=] {
        float d[4] = {};
        mma_m16n8k16_fp16(d, a, b);
    });
    report("mma s8", [=] {
        int d[4] = {};
        mma_m16n8k32_s8(d, a, b);
    });
    report("mma e4m3", [=] {
        float d[4] = {};
        mma_m16n8k32_e4m3(d, a, b);
    });
    report("ldmatrix_x4", [=] {
        DYNAMIC_SHARED(char, tile);
        uint32_t r[4];
        ldmatrix_x4(r, tile + threadIdx.x % 32 * 16);
    });
    simt_settings = SimtSettings();
}
#endif
