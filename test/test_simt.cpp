// The simulated CUDA runtime (test/simt/) itself: intrinsics against their definitions, every fault it promises to
// report planted and found, and a race shown by the order of the threads. Needs -DTRAIN_QRL_SIMT -I test/simt.
#include <gtest/gtest.h>
#include <chrono>
#include <cmath>

#if !defined(TRAIN_QRL_SIMT)
TEST(Simt, All) { GTEST_SKIP() << "needs the simt build (make simt)"; }
#else
#include "simt_test.h"

// ---------------------------------------------------------------------------------------------------------------------
// what works

__global__ void index_kernel(int* count) {
    unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    count[block * blockDim.x * blockDim.y * blockDim.z + thread]++;
}

TEST(Simt, EveryThreadOfEveryBlockRunsOnce) {
    in_all_orders([] {
        std::vector<int> count(3 * 2 * 4 * 5 * 3 * 2);
        LAUNCH(index_kernel, dim3(3, 2, 4), dim3(5, 3, 2), 0, nullptr, count.data());
        EXPECT_EQ(count, std::vector<int>(count.size(), 1));
    });
}

__global__ void shuffle_kernel(int* out, int width, int by) {
    int i = threadIdx.x, v = 100 + i;
    out[i] = __shfl_sync(~0u, v, by, width);
    out[64 + i] = __shfl_up_sync(~0u, v, by, width);
    out[128 + i] = __shfl_down_sync(~0u, v, by, width);
    out[192 + i] = __shfl_xor_sync(~0u, v, by, width);
}

// two warps at once; the definition of CUDA C++ Programming Guide, section Warp Shuffle Functions
TEST(Simt, Shuffles) {
    in_all_orders([] {
        for (int width : {1, 2, 4, 8, 16, 32})
            for (int by = 0; by < 32; by++) {
                std::vector<int> out(256, -1);
                LAUNCH(shuffle_kernel, 1, 64, 0, nullptr, out.data(), width, by);
                for (int i = 0; i < 64; i++) {
                    int lane = i % 32, warp = i - lane, segment = lane / width * width;
                    ASSERT_EQ(out[i], 100 + warp + segment + by % width);
                    ASSERT_EQ(out[64 + i], 100 + warp + (lane - by < segment ? lane : lane - by));
                    ASSERT_EQ(out[128 + i], 100 + warp + (lane + by >= segment + width ? lane : lane + by));
                    ASSERT_EQ(out[192 + i], 100 + warp + ((lane ^ by) >= segment + width ? lane : lane ^ by));
                }
            }
    });
}

__global__ void types_kernel(double* d, long long* l, float* f) {
    int i = threadIdx.x;
    d[i] = __shfl_xor_sync(~0u, i + 0.5, 1);
    l[i] = __shfl_xor_sync(~0u, (long long)i << 40, 1);
    f[i] = __shfl_xor_sync(~0u, i + 0.25f, 1);
}

TEST(Simt, ShufflesMoveFourAndEightBytes) {
    std::vector<double> d(32);
    std::vector<long long> l(32);
    std::vector<float> f(32);
    LAUNCH(types_kernel, 1, 32, 0, nullptr, d.data(), l.data(), f.data());
    for (int i = 0; i < 32; i++) {
        EXPECT_EQ(d[i], (i ^ 1) + 0.5);
        EXPECT_EQ(l[i], (long long)(i ^ 1) << 40);
        EXPECT_EQ(f[i], (i ^ 1) + 0.25f);
    }
}

// lanes 0 to 7 and 8 to 31 go separate ways, each with its own mask, a different number of times
__global__ void masks_kernel(unsigned* out) {
    int i = threadIdx.x;
    unsigned low = 0xFFu, high = ~low;
    if (i < 8) {
        for (int k = 0; k < 3; k++) out[i] = __ballot_sync(low, i % 2);
        __syncwarp(low);
    } else {
        out[i] = (unsigned)__any_sync(high, i == 9) + 2 * (unsigned)__all_sync(high, i != 9) +
                 4 * (unsigned)__all_sync(high, 1);
        __syncwarp(high);
    }
    __syncwarp();
    out[32 + i] = out[31 - i];
}

TEST(Simt, VotesAndMasks) {
    in_all_orders([] {
        std::vector<unsigned> out(64);
        LAUNCH(masks_kernel, 1, 32, 0, nullptr, out.data());
        for (int i = 0; i < 32; i++) {
            ASSERT_EQ(out[i], i < 8 ? 0xAAu : 5u);
            ASSERT_EQ(out[32 + i], out[31 - i]);
        }
    });
}

__global__ void warp_reductions_kernel(int* out, unsigned* bits) {
    int i = threadIdx.x, x = (i * 37 + 11) % 64 - 40;
    out[i] = __reduce_add_sync(~0u, x);
    out[32 + i] = __reduce_min_sync(~0u, x);
    out[64 + i] = __reduce_max_sync(~0u, x);
    bits[i] = __reduce_and_sync(~0u, (unsigned)x | 0x80u);
    bits[32 + i] = __reduce_or_sync(~0u, (unsigned)x & 0xF0u);
    bits[64 + i] = __reduce_xor_sync(~0u, (unsigned)x);
    bits[96 + i] = __reduce_max_sync(~0u, (unsigned)x);
    unsigned half = i < 16 ? 0xFFFFu : 0xFFFF0000u;
    bits[128 + i] = (unsigned)__reduce_add_sync(half, 1 + (i < 16));
    bits[160 + i] = __match_any_sync(~0u, i % 5);
    bits[192 + i] = __activemask();
    __syncwarp();
}

TEST(Simt, WarpReductionsAndMatches) {
    in_all_orders([] {
        std::vector<int> out(96);
        std::vector<unsigned> bits(224);
        LAUNCH(warp_reductions_kernel, 1, 32, 0, nullptr, out.data(), bits.data());
        int sum = 0, least = 100, most = -100;
        unsigned all = ~0u, any = 0, odd = 0, top = 0, same[5] = {};
        for (int i = 0; i < 32; i++) {
            int x = (i * 37 + 11) % 64 - 40;
            sum += x, least = std::min(least, x), most = std::max(most, x);
            all &= (unsigned)x | 0x80u, any |= (unsigned)x & 0xF0u, odd ^= (unsigned)x;
            top = std::max(top, (unsigned)x);
            same[i % 5] |= 1u << i;
        }
        for (int i = 0; i < 32; i++) {
            ASSERT_EQ(out[i], sum);
            ASSERT_EQ(out[32 + i], least);
            ASSERT_EQ(out[64 + i], most);
            ASSERT_EQ(bits[i], all);
            ASSERT_EQ(bits[32 + i], any);
            ASSERT_EQ(bits[64 + i], odd);
            ASSERT_EQ(bits[96 + i], top);
            ASSERT_EQ(bits[128 + i], i < 16 ? 32u : 16u);
            ASSERT_EQ(bits[160 + i], same[i % 5]);
            ASSERT_EQ(bits[192 + i], ~0u);
        }
    });
}

__global__ void barrier_votes_kernel(int* out, int n) {
    int i = threadIdx.x;
    if (i >= n) return;
    out[i] = __syncthreads_count(i % 3 == 0);
    out[100 + i] = __syncthreads_or(i == n - 1) + 2 * __syncthreads_or(0);
    out[200 + i] = __syncthreads_and(i >= 0) + 2 * __syncthreads_and(i != 5);
    __syncthreads();
}

TEST(Simt, VotesAtBarriers) {
    in_all_orders([] {
        std::vector<int> out(300, -1);
        LAUNCH(barrier_votes_kernel, 1, 96, 0, nullptr, out.data(), 70);
        for (int i = 0; i < 70; i++) {
            ASSERT_EQ(out[i], 24);
            ASSERT_EQ(out[100 + i], 1);
            ASSERT_EQ(out[200 + i], 1);
        }
    });
}

TEST(Simt, Arithmetic) {
    EXPECT_EQ(__dp4a(0x01FF7F80, 0x02037F80, 5), 5 + 2 - 3 + 127 * 127 + 128 * 128);
    EXPECT_EQ(__dp4a(0x01FF0000u, 0x02030000u, 5u), 5u + 2 + 3 * 255);
    EXPECT_EQ(__float_as_uint(__uint_as_float(0x7FC01234u)), 0x7FC01234u);
    EXPECT_EQ(__float_as_int(-0.0f), INT32_MIN);
    EXPECT_EQ(__saturatef(NAN), 0.0f);
    EXPECT_EQ(__saturatef(2.0f), 1.0f);
    float x = 1.0f + 0x1p-12f;
    EXPECT_EQ(__fadd_rn(__fmul_rn(x, x), -1.0f), 0x1p-11f);  // fma would keep 2^-24
    EXPECT_EQ(__popc(0xF0F0u), 8);
    EXPECT_EQ(__clz(1), 31);
    EXPECT_EQ(__ffs(8), 4);
    char4 c = make_char4(-1, 2, 3, 4);
    EXPECT_EQ(sizeof(c), 4u);
    EXPECT_EQ(c.x, -1);
}

// half of the threads return at once, a last one between two barriers
__global__ void early_kernel(float* out, int n) {
    DYNAMIC_SHARED(float, values);
    int i = threadIdx.x;
    if (i >= n) return;
    values[i] = (float)i;
    __syncthreads();
    out[i] = values[n - 1 - i];
    if (i == n - 1) return;
    __syncthreads();
    unsigned votes = __ballot_sync(~0u, 1);
    if (i == 0) out[n] = (float)__popc(votes);
}

TEST(Simt, ThreadsThatLeftAreNotWaitedFor) {
    in_all_orders([] {
        const int n = 45;
        std::vector<float> out(n + 1, -1.0f);
        LAUNCH(early_kernel, 4, 128, 128 * sizeof(float), nullptr, out.data(), n);
        for (int i = 0; i < n; i++) ASSERT_EQ(out[i], (float)(n - 1 - i));
        EXPECT_EQ(out[n], 32.0f);
    });
}

__global__ void reduce_kernel(float* out, const float* in) {
    float sum = block_reduce_sum(in[threadIdx.x]), again = block_reduce_sum(sum);
    float most = warp_reduce_max(in[threadIdx.x]), group = group_reduce_sum<8>(1.0f);
    out[threadIdx.x * 4] = sum;
    out[threadIdx.x * 4 + 1] = again;
    out[threadIdx.x * 4 + 2] = most;
    out[threadIdx.x * 4 + 3] = group;
}

TEST(Simt, ReductionsOfDeviceHeader) {
    for (int threads : {32, 96, 1024})
        in_all_orders([=] {
            std::vector<float> in(threads), out(threads * 4);
            for (int i = 0; i < threads; i++) in[i] = (float)(i * 7 % 31);
            float sum = 0;
            for (float x : in) sum += x;
            LAUNCH(reduce_kernel, 3, threads, 0, nullptr, out.data(), in.data());
            for (int i = 0; i < threads; i++) {
                float most = 0;
                for (int l = 0; l < 32; l++) most = std::max(most, in[i / 32 * 32 + l]);
                ASSERT_EQ(out[i * 4], sum);
                ASSERT_EQ(out[i * 4 + 1], sum * threads);
                ASSERT_EQ(out[i * 4 + 2], most);
                ASSERT_EQ(out[i * 4 + 3], 8.0f);
            }
        });
}

__global__ void packs_kernel(bf16* out, const bf16* in, int C, bool aligned) {
    for (int i = threadIdx.x * Pack128<bf16>::size; i < C; i += blockDim.x * Pack128<bf16>::size) {
        Pack128<bf16> pack = load_pack(in, i, C, aligned);
        if (aligned && i + Pack128<bf16>::size <= C) pack = load128(in + i);
        for (int k = 0; k < Pack128<bf16>::size; k++) pack[k] = bf16(2.0f * (float)pack[k]);
        if (aligned && i + Pack128<bf16>::size <= C) store128(out + i, pack);
        else store_pack(out, i, C, aligned, pack);
    }
}

TEST(Simt, PacksAndTheirTails) {
    for (int C : {1, 7, 8, 9, 300})
        for (int offset : {0, 1}) {
            bf16 *in, *out;
            CUDA_CHECK(cudaMalloc(&in, (C + 9) * sizeof(bf16)));
            CUDA_CHECK(cudaMalloc(&out, (C + 9) * sizeof(bf16)));
            for (int i = 0; i < C; i++) in[offset + i] = bf16((float)i);
            bool aligned = is_aligned16(in + offset, 0);
            EXPECT_EQ(aligned, offset == 0);
            LAUNCH(packs_kernel, 1, 32, 0, nullptr, out + offset, in + offset, C, aligned);
            for (int i = 0; i < C; i++) EXPECT_EQ((float)out[offset + i], (float)bf16(2.0f * (float)bf16((float)i)));
            for (int i = C; i < C + 8; i++) EXPECT_EQ(out[offset + i].bits, 0xFFFF) << "wrote past the end";
            CUDA_CHECK(cudaFree(in));
            CUDA_CHECK(cudaFree(out));
        }
}

__global__ void atomics_kernel(int* n, float* f, double* d, unsigned* most, int* least, unsigned* bits,
                               unsigned long long* big) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(n, 1);
    atomicAdd(f, 1);
    atomicAdd(d, 0.5);
    atomicMax(most, i);
    atomicMin(least, -i);
    atomicOr(bits, 1u << i % 32);
    atomicAdd(big, 1ull << 40);
}

TEST(Simt, AtomicsAcrossBlocks) {
    int n = 0, least = 0;
    unsigned most = 0, bits = 0;
    unsigned long long big = 0;
    float f = 0;
    double d = 0;
    LAUNCH(atomics_kernel, 64, 128, 0, nullptr, &n, &f, &d, &most, &least, &bits, &big);
    EXPECT_EQ(n, 8192);
    EXPECT_EQ(f, 8192.0f);
    EXPECT_EQ(d, 4096.0);
    EXPECT_EQ(most, 8191u);
    EXPECT_EQ(least, -8191);
    EXPECT_EQ(bits, ~0u);
    EXPECT_EQ(big, 8192ull << 40);
}

__global__ void exchange_kernel(int* out, int* p) {
    out[0] = atomicExch(p, 5);
    out[1] = atomicCAS(p, 5, 6);
    out[2] = atomicCAS(p, 5, 7);
    out[3] = atomicSub(p, 1);
    out[4] = atomicAnd(p, 4);
}

TEST(Simt, AtomicsReturnTheOldValue) {
    int out[5], p = 4;
    LAUNCH(exchange_kernel, 1, 1, 0, nullptr, out, &p);
    EXPECT_EQ(std::vector<int>(out, out + 5), (std::vector<int>{4, 5, 6, 6, 5}));
    EXPECT_EQ(p, 4);
}

__global__ void uninitialised_kernel(float* out) {
    DYNAMIC_SHARED(float, values);
    out[blockIdx.x * blockDim.x + threadIdx.x] = values[threadIdx.x];
    values[threadIdx.x] = 1.0f;
}

TEST(Simt, MemoryStartsAsNan) {
    std::vector<float> out(8 * 32);
    LAUNCH(uninitialised_kernel, 8, 32, 32 * sizeof(float), nullptr, out.data());
    for (float x : out) EXPECT_TRUE(std::isnan(x));
    bf16* p;
    CUDA_CHECK(cudaMalloc(&p, 2));
    EXPECT_TRUE(std::isnan((float)*p));
    CUDA_CHECK(cudaFree(p));
}

// whatever a block left in `__shared__` is NaN for the next block of its OS thread
__global__ void stale_kernel(float* out) {
    __shared__ float values[32];
    __shared__ int count;
    out[blockIdx.x * 64 + threadIdx.x] = values[threadIdx.x];
    out[blockIdx.x * 64 + 32 + threadIdx.x] = (float)count;
    values[threadIdx.x] = 1.5f;
    count = 7;
}

TEST(Simt, StaticSharedMemoryIsNotKept) {
#if defined(__GLIBC__)
    const int blocks = 200;
    std::vector<float> out(blocks * 64);
    LAUNCH(stale_kernel, blocks, 32, 0, nullptr, out.data());
    int nan = 0;
    for (int b = 0; b < blocks; b++)
        for (int i = 0; i < 32; i++) {
            EXPECT_NE(out[b * 64 + i], 1.5f);
            // a lane of the block sees what an earlier lane wrote, that is a race; lane 0 reads first
            if (i == 0) {
                EXPECT_NE(out[b * 64 + 32 + i], 7.0f);
            }
            nan += std::isnan(out[b * 64 + i]);
        }
    EXPECT_GT(nan, 0);
#endif
}

template <int N, bool B>
__global__ void named_kernel(int* out) {
    *out = N + B;
}

TEST(Simt, RemembersWhichKernelsRan) {
    int out = 0;
    EXPECT_EQ(simt_launched().count("named_kernel"), 0u);
    LAUNCH((named_kernel<3, true>), 1, 1, 0, nullptr, &out);
    EXPECT_EQ(out, 4);
    EXPECT_EQ(simt_launched().count("named_kernel"), 1u);
}

// ---------------------------------------------------------------------------------------------------------------------
// a race: thread i reads what thread i + 1 writes, with or without the barrier that orders them

template <bool BARRIER>
__global__ void neighbour_kernel(int* out, int* values) {
    int i = threadIdx.x, n = blockDim.x;
    values[i] = i;
    if (BARRIER) __syncthreads();
    out[i] = values[(i + 1) % n];
}

template <bool BARRIER>
static std::vector<int> run_neighbours(SimtOrder order, uint64_t seed) {
    simt_settings = SimtSettings{order, seed};
    std::vector<int> out(96, -1), values(96, -1);
    LAUNCH(neighbour_kernel<BARRIER>, 1, 96, 0, nullptr, out.data(), values.data());
    simt_settings = SimtSettings();
    return out;
}

TEST(Simt, OrderOfThreadsShowsARace) {
    std::vector<int> forward = run_neighbours<false>(SIMT_FORWARD, 0), reverse = run_neighbours<false>(SIMT_REVERSE, 0);
    std::vector<int> random = run_neighbours<false>(SIMT_RANDOM, 1);
    EXPECT_NE(forward, reverse);
    EXPECT_NE(forward, random);
    EXPECT_NE(reverse, random);
    EXPECT_EQ(random, run_neighbours<false>(SIMT_RANDOM, 1));
    EXPECT_NE(random, run_neighbours<false>(SIMT_RANDOM, 2));
    forward = run_neighbours<true>(SIMT_FORWARD, 0);
    for (int i = 0; i < 96; i++) EXPECT_EQ(forward[i], (i + 1) % 96);
    for (uint64_t seed = 0; seed < 20; seed++) EXPECT_EQ(forward, run_neighbours<true>(SIMT_RANDOM, seed));
    EXPECT_EQ(forward, run_neighbours<true>(SIMT_REVERSE, 0));
}

// ---------------------------------------------------------------------------------------------------------------------
// planted faults

__global__ void barrier_and_shuffle_kernel(int* out) {
    if (threadIdx.x < 16) __syncthreads();
    else out[threadIdx.x] = __shfl_xor_sync(~0u, 1, 1);
}

TEST(SimtFault, HalfAWarpAtABarrierHalfInAShuffle) {
    int out[32];
    expect_fault([&] { LAUNCH(barrier_and_shuffle_kernel, 2, 32, 0, nullptr, out); },
                 {"barrier_and_shuffle_kernel", "block (", "thread (0,0,0)", "deadlock",
                  "16 of 32 threads wait in __syncthreads", "16 wait in a warp operation",
                  "thread (16,0,0) in __shfl_xor_sync(0xFFFFFFFF)", "test_simt.cpp:"});
}

__global__ void two_lines_kernel(int* out) {
    if (threadIdx.x < 40) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    *out = 1;
}

TEST(SimtFault, BarrierOnTwoLines) {
    int out;
    expect_fault([&] { LAUNCH(two_lines_kernel, 1, 64, 0, nullptr, &out); },
                 {"divergent barrier", "thread (0,0,0) waits at", "thread (40,0,0) at"});
}

__global__ void left_kernel(int* out) {
    if (threadIdx.x >= 16) return;
    out[threadIdx.x] = __shfl_down_sync(~0u, (int)threadIdx.x, 16);
}

TEST(SimtFault, ShuffleReadsALaneThatLeft) {
    int out[32];
    expect_fault([&] { LAUNCH(left_kernel, 1, 32, 0, nullptr, out); },
                 {"left_kernel", "thread (0,0,0)", "__shfl_down_sync", "reads lane 16, which has left"});
    // lanes that the block never had
    expect_fault([&] { LAUNCH(left_kernel, 1, 16, 0, nullptr, out); }, {"reads lane 16, which has left"});
}

__global__ void mask_kernel(int* out, unsigned mask) {
    if (threadIdx.x < 8) out[threadIdx.x] = __shfl_xor_sync(mask, 1, 8);
}

TEST(SimtFault, ShuffleReadsALaneOutsideTheMask) {
    int out[32];
    expect_fault([&] { LAUNCH(mask_kernel, 1, 32, 0, nullptr, out, 0xFFu); },
                 {"reads lane 8, which is not in the mask"});
}

TEST(SimtFault, CallerOutsideItsMask) {
    int out[32];
    expect_fault([&] { LAUNCH(mask_kernel, 1, 32, 0, nullptr, out, 0xFF00u); }, {"is not in its own mask 0x0000FF00"});
}

__global__ void width_kernel(int* out) { *out = __shfl_sync(~0u, 1, 0, 12); }

TEST(SimtFault, WidthThatIsNoPowerOfTwo) {
    int out;
    expect_fault([&] { LAUNCH(width_kernel, 1, 32, 0, nullptr, &out); }, {"width 12"});
}

__global__ void two_operations_kernel(int* out) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(~0u, 1, 1);
    else out[threadIdx.x] = (int)__ballot_sync(~0u, 1);
}

TEST(SimtFault, OneWarpInTwoOperations) {
    int out[32];
    expect_fault([&] { LAUNCH(two_operations_kernel, 1, 32, 0, nullptr, out); },
                 {"divergent warp", "__shfl_xor_sync(0xFFFFFFFF)", "a vote(0xFFFFFFFF)"});
}

// lane 0 leaves the loop one round early and the kernel not at all
__global__ void rounds_kernel(int* out) {
    for (int i = 0; i < (threadIdx.x == 0 ? 2 : 3); i++) *out += __shfl_sync(~0u, i, 1);
    __syncthreads();
}

TEST(SimtFault, OneLaneLeavesTheLoopEarly) {
    int out = 0;
    expect_fault([&] { LAUNCH(rounds_kernel, 1, 64, 0, nullptr, &out); },
                 {"deadlock", "wait in __syncthreads", "31 wait in a warp operation"});
}

__global__ void empty_kernel(int) {}

TEST(SimtFault, LaunchLimits) {
    int out = 0;
    expect_fault([&] { LAUNCH(left_kernel, 1, 1025, 0, nullptr, &out); },
                 {"left_kernel", "(1025,1,1) threads", "test_simt.cpp:"});
    expect_fault([&] { LAUNCH(left_kernel, 1, dim3(32, 33), 0, nullptr, &out); }, {"(32,33,1) threads"});
    expect_fault([&] { LAUNCH(left_kernel, 1, 0, 0, nullptr, &out); }, {"(0,1,1) threads"});
    expect_fault([&] { LAUNCH(left_kernel, 0, 32, 0, nullptr, &out); }, {"grid of (0,1,1) blocks"});
    expect_fault([&] { LAUNCH(left_kernel, dim3(1, 65536), 32, 0, nullptr, &out); }, {"grid of (1,65536,1) blocks"});
    for (int arch : {80, 86, 89, 90, 100, 120}) {
        size_t most = 1024 * (arch == 80 ? 163 : arch == 90 || arch == 100 ? 227 : 99);
        simt_settings.arch = arch;
        EXPECT_EQ(message_of([&] { LAUNCH(empty_kernel, 1, 32, most, nullptr, 0); }), "no error");
        expect_fault([&] { LAUNCH(empty_kernel, 1, 32, most + 1, nullptr, 0); },
                     {format("kernel empty_kernel: %zu bytes of dynamic and 0 of static shared memory, and a block of "
                             "this GPU has at most %zu",
                             most + 1, most)});
        // past LAUNCH's own check: the size that was allowed belongs to another GPU
        expect_fault([&] { simt_launch("empty_kernel", "", 1, 1, 32, most + 1, nullptr, empty_kernel, 0); },
                     {format("empty_kernel: %zu bytes of shared memory; at most %zu on sm_%d", most + 1, most, arch)});
    }
    simt_settings.arch = 75;
    expect_fault([&] { LAUNCH(empty_kernel, 1, 32, 0, nullptr, 0); }, {"simt_settings.arch is 75"});
    simt_settings = SimtSettings();
}

__global__ void crowded_kernel(int) {}

// static shared memory counts, too
TEST(SimtFault, SharedMemoryIsStaticAndDynamic) {
    const size_t fixed = 20000, most = 99 * 1024;
    simt_shared(reinterpret_cast<const void*>(crowded_kernel)).fixed = fixed;
    const size_t beyond = 48 * 1024 - fixed + 1;
    EXPECT_EQ(message_of([&] { simt_launch("crowded_kernel", "", 1, 1, 1, beyond - 1, nullptr, crowded_kernel, 0); }),
              "no error");
    expect_fault([&] { simt_launch("crowded_kernel", "", 1, 1, 1, beyond, nullptr, crowded_kernel, 0); },
                 {"49153 bytes of shared memory, above 48 KB, and it has not asked for them"});
    EXPECT_EQ(message_of([&] { LAUNCH(crowded_kernel, 1, 1, beyond, nullptr, 0); }), "no error") << "LAUNCH asks";
    EXPECT_EQ(message_of([&] { LAUNCH(crowded_kernel, 1, 1, most - fixed, nullptr, 0); }), "no error");
    expect_fault([&] { LAUNCH(crowded_kernel, 1, 1, most - fixed + 1, nullptr, 0); },
                 {"81377 bytes of dynamic and 20000 of static shared memory", "at most 101376", "--device cpu"});
}

__global__ void trap_kernel(int n) {
    if ((int)threadIdx.x == n) __trap();
}

TEST(SimtFault, Trap) {
    expect_fault([&] { LAUNCH(trap_kernel, 1, 64, 0, nullptr, 40); },
                 {"trap_kernel", "thread (40,0,0): __trap at ", "test_simt.cpp:"});
}

__global__ void reduce_in_half_a_warp_kernel(int* out) {
    if (threadIdx.x < 16) *out = __reduce_add_sync(~0u, 1);
    __syncthreads();
}

TEST(SimtFault, ReductionWithoutHalfOfItsMask) {
    int out;
    expect_fault([&] { LAUNCH(reduce_in_half_a_warp_kernel, 1, 32, 0, nullptr, &out); },
                 {"deadlock", "16 wait in a warp operation", "__reduce_add_sync(0xFFFFFFFF)"});
}

__global__ void overrun_kernel(int n) {
    DYNAMIC_SHARED(char, bytes);
    bytes[n] = 1;
}

TEST(SimtFault, WritesPastDynamicSharedMemory) {
#if defined(SIMT_ASAN)
    EXPECT_DEATH({ LAUNCH(overrun_kernel, 1, 1, 64, nullptr, 64); }, "use-after-poison");
#else
    expect_fault([&] { LAUNCH(overrun_kernel, 1, 1, 64, nullptr, 64); },
                 {"overrun_kernel", "wrote byte 64", "asked for 64"});
#endif
    LAUNCH(overrun_kernel, 1, 1, 64, nullptr, 63);
}

__global__ void throwing_kernel(int* out) {
    int& x = *out;
    __syncthreads();
    if (blockIdx.x == 3 && threadIdx.x == 5) throw std::runtime_error("thrown inside");
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(&x, 1);
}

TEST(SimtFault, ExceptionNamesItsThreadAndTheNextLaunchWorks) {
    int out = 0;
    expect_fault([&] { LAUNCH(throwing_kernel, 4, 32, 0, nullptr, &out); },
                 {"throwing_kernel, block (3,0,0), thread (5,0,0): thrown inside"});
    out = 0;
    LAUNCH(throwing_kernel, 3, 32, 0, nullptr, &out);
    EXPECT_EQ(out, 3);
}

__global__ void stack_kernel(int) { memset(simt_thread->fiber.stack, 0, 8); }

TEST(SimtFault, StackTooSmall) {
    expect_fault([&] { LAUNCH(stack_kernel, 1, 32, 0, nullptr, 0); }, {"stack_kernel", "KB of stack"});
}

// ---------------------------------------------------------------------------------------------------------------------
// cost: printed, since it depends on the machine

__global__ void switch_kernel(int rounds) {
    for (int i = 0; i < rounds; i++) __syncwarp();
}

__global__ void barrier_kernel(int rounds) {
    for (int i = 0; i < rounds; i++) __syncthreads();
}

TEST(Simt, CostOfASwitch) {
    auto seconds = [] {
        return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    };
    auto report = [&](const char* name, double count, auto launch) {
        launch();
        double start = seconds();
        launch();
        printf("%-40s %6.1f ns\n", name, (seconds() - start) * 1e9 / count);
    };
    for (int threads : {32, 256, 1024}) {
        int rounds = 1 << 18 >> (threads > 32 ? 3 : 0);
        rounds /= threads / 32;
        report(format("__syncwarp, %d threads, per thread", threads).c_str(), (double)rounds * threads,
               [&] { LAUNCH(switch_kernel, 1, threads, 0, nullptr, rounds); });
        report(format("__syncthreads, %d threads, per thread", threads).c_str(), (double)rounds * threads,
               [&] { LAUNCH(barrier_kernel, 1, threads, 0, nullptr, rounds); });
    }
    report("empty kernel, 512 blocks of 256, per thread", 512.0 * 256,
           [&] { LAUNCH(empty_kernel, 512, 256, 0, nullptr, 0); });
}
#endif
