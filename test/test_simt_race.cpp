// Barriers left out of kernels: which are shown by the order of the threads, and that race.cpp, which tracks accesses of
// shared memory, finds each. Needs -DTRAIN_QRL_SIMT -I test/simt, -fsanitize=thread for this file alone, and
// test/simt/race.cpp (make build/test_simt_race).
#include <gtest/gtest.h>

#if !defined(TRAIN_QRL_SIMT)
TEST(SimtRace, All) { GTEST_SKIP() << "needs the simt build (make simt)"; }
#else
#include "../runtime/ptx.h"
#include "simt_test.h"

static constexpr int N = 64;  // threads: two warps

#define BARRIER_IF(yes) \
    if (yes) __syncthreads()

// ---------------------------------------------------------------------------------------------------------------------
// the faults: without B the barrier is missing that orders two uses of a shared tile

// read after write: of the other end, of the thread before, of the thread behind, of one that all read
template <bool B>
__global__ void read_other_end(float* out) {
    __shared__ float s[N];
    s[threadIdx.x] = (float)threadIdx.x;
    BARRIER_IF(B);
    out[threadIdx.x] = s[N - 1 - threadIdx.x];
}
template <bool B>
__global__ void read_before(float* out) {
    __shared__ float s[N];
    s[threadIdx.x] = (float)threadIdx.x;
    BARRIER_IF(B);
    if (threadIdx.x > 0) out[threadIdx.x] = s[threadIdx.x - 1];
}
template <bool B>
__global__ void read_behind(float* out) {
    DYNAMIC_SHARED(float, s);
    s[threadIdx.x] = (float)threadIdx.x;
    BARRIER_IF(B);
    if (threadIdx.x + 1 < N) out[threadIdx.x] = s[threadIdx.x + 1];
}
template <bool B>
__global__ void read_first(float* out) {
    DYNAMIC_SHARED(float, s);
    if (threadIdx.x == 0) s[0] = 3.0f;
    BARRIER_IF(B);
    out[threadIdx.x] = s[0];
}

// write after read: the tile is filled again while others still read it
template <bool B, int STEP>
__global__ void refill(float* out) {
    __shared__ float s[N];
    const int i = threadIdx.x;
    s[i] = (float)i;
    __syncthreads();
    const float x = s[(i + N + STEP) % N];
    BARRIER_IF(B);
    s[i] = 100.0f;
    __syncthreads();
    if (i > 0 && i < N - 1) out[i] = x + s[i];
}
template <bool B>
__global__ void refill_before(float* out) {
    refill<B, -1>(out);
}
template <bool B>
__global__ void refill_behind(float* out) {
    refill<B, 1>(out);
}

// write after write: the second half's are to stay
template <bool B>
__global__ void write_twice(float* out) {
    DYNAMIC_SHARED(float, s);
    const int i = threadIdx.x;
    if (i < N / 2) s[i] = 1.0f;
    BARRIER_IF(B);
    if (i >= N / 2) s[i - N / 2] = 2.0f;
    __syncthreads();
    out[i] = s[i % (N / 2)];
}

// a tile that a loop fills again; two stages of it; a sum by halves
template <bool B>
__global__ void tile_of_loop(float* out) {
    __shared__ float s[N];
    const int i = threadIdx.x;
    float sum = 0.0f;
    for (int k = 0; k < 3; k++) {
        s[i] = (float)(100 * k + i);
        __syncthreads();
        sum += s[(i + 7) % N];
        BARRIER_IF(B);
    }
    out[i] = sum;
}
template <bool B>
__global__ void stages_of_loop(float* out) {
    DYNAMIC_SHARED(float, s);
    const int i = threadIdx.x;
    float sum = 0.0f;
    for (int k = 0; k < 5; k++) {
        float* stage = s + k % 2 * N;
        stage[i] = (float)(100 * k + i);
        BARRIER_IF(B);
        sum += stage[(i + 7) % N];
    }
    out[i] = sum;
}
template <bool B>
__global__ void sum_by_halves(float* out) {
    __shared__ float s[N];
    const int i = threadIdx.x;
    s[i] = (float)i;
    __syncthreads();
    for (int half = N / 2; half > 0; half /= 2) {
        if (i < half) s[i] += s[i + half];
        BARRIER_IF(B || half == 1);
    }
    out[i] = s[0];
}

// between lanes of a warp
template <bool B>
__global__ void lanes(float* out) {
    __shared__ float s[N];
    const int i = threadIdx.x;
    s[i] = (float)i;
    if (B) __syncwarp();
    out[i] = s[i ^ 1];
}

// an asynchronous copy is there for the thread that has waited for it, and for the others behind a barrier
template <bool B>
__global__ void copies(float* out) {
    DYNAMIC_SHARED(float, s);
    const int i = threadIdx.x;
    cp_async_16(s + 4 * i, out + N + 4 * i, 16);
    cp_async_commit();
    cp_async_wait<0>();
    BARRIER_IF(B);
    out[i] = s[4 * (N - 1 - i)];
}

// an update that two threads do at once
template <bool B>
__global__ void count(float* out) {
    DYNAMIC_SHARED(float, s);
    if (threadIdx.x == 0) s[0] = 0.0f;
    __syncthreads();
    if (B) atomicAdd(s, 1.0f);
    else s[0] = s[0] + 1.0f;
    __syncthreads();
    out[threadIdx.x] = s[0];
}

// ---------------------------------------------------------------------------------------------------------------------
// who finds them

struct Planted {
    const char* name;
    void (*run)(bool barrier, float* out);
    bool forward, reverse, random;  // the order of the threads shows it
};

#define PLANTED(kernel, ...)                                                       \
    {                                                                              \
#kernel,                                                                         \
            [](bool barrier, float* out) {                                               \
                if (barrier) LAUNCH((kernel<true>), 1, N, N * 16, nullptr, out);         \
                else LAUNCH((kernel<false>), 1, N, N * 16, nullptr, out);                \
            },                                                                           \
            __VA_ARGS__ \
    }

static const Planted planted[] = {
    PLANTED(read_other_end, true, true, true),  //
    PLANTED(read_before, false, true, true),    //
    PLANTED(read_behind, true, false, true),    //
    PLANTED(read_first, false, true, true),     //
    PLANTED(refill_before, true, false, true),  //
    PLANTED(refill_behind, false, true, true),  //
    PLANTED(write_twice, false, true, true),    //
    PLANTED(tile_of_loop, true, true, true),    //
    PLANTED(stages_of_loop, true, true, true),  //
    PLANTED(sum_by_halves, true, false, true),  //
    PLANTED(lanes, true, true, true),           //
    PLANTED(copies, true, true, true),          //
    PLANTED(count, false, false, false),
};

static std::vector<float> result_of(const Planted& p, bool barrier) {
    std::vector<float> out(5 * N);
    for (int i = 0; i < 5 * N; i++) out[i] = (float)i;
    p.run(barrier, out.data());
    return out;
}

static bool same_floats(const std::vector<float>& a, const std::vector<float>& b) {  // NaN too
    return memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Of two accesses that race one order or the other is wrong, so that forward or reverse shows it, where the result depends
// on which came first
TEST(SimtRace, OrderOfThreadsShowsAMissingBarrier) {
    simt_settings.races = false;
    int found[3] = {0, 0, 0}, any = 0;
    for (const Planted& p : planted) {
        const std::vector<float> right = result_of(p, true);
        bool shown[3];
        int order = 0;
        in_all_orders([&] {
            EXPECT_TRUE(same_floats(result_of(p, true), right)) << p.name << ", order " << order;
            shown[order] = !same_floats(result_of(p, false), right);
            found[order] += shown[order];
            order++;
        });
        EXPECT_EQ(shown[SIMT_FORWARD], p.forward) << p.name;
        EXPECT_EQ(shown[SIMT_REVERSE], p.reverse) << p.name;
        EXPECT_EQ(shown[SIMT_RANDOM], p.random) << p.name;
        any += shown[0] || shown[1] || shown[2];
    }
    EXPECT_EQ(found[SIMT_FORWARD], 8);
    EXPECT_EQ(found[SIMT_REVERSE], 9);
    EXPECT_EQ(found[SIMT_RANDOM], 12);
    EXPECT_EQ(any, 12) << "of 13: all but the update that two threads do at once";
    simt_settings = SimtSettings();
}

TEST(SimtRace, TrackedAccessesFindEach) {
    for (const Planted& p : planted) {
        in_all_orders([&] {
            EXPECT_EQ(message_of([&] { result_of(p, true); }), "no error") << p.name;
            const std::string message = message_of([&] { result_of(p, false); });
            EXPECT_NE(message.find(std::string("kernel ") + p.name), std::string::npos) << message;
            EXPECT_NE(message.find("race: it "), std::string::npos) << p.name << ": " << message;
        });
    }
}
#endif
