// The simulated runtime's memory, streams, events, graphs and device (test/simt/simt_memory.h, simt_stream.h,
// cuda_runtime.h): what each call does, and that forgotten synchronisation shows. Needs -DTRAIN_QRL_SIMT -I test/simt.
#include <gtest/gtest.h>

#if !defined(TRAIN_QRL_SIMT)
TEST(SimtRuntime, All) { GTEST_SKIP() << "needs the simt build (make simt)"; }
#else
#include <functional>
#include "../runtime/buffer.h"
#include "simt_test.h"

struct Environment {
    const char* name;
    Environment(const char* name, const char* value) : name(name) { setenv(name, value, 1); }
    ~Environment() { unsetenv(name); }
};

// two streams that the default one does not wait for, and lazy, while it lives
struct Lazy {
    cudaStream_t a = nullptr, b = nullptr;
    Lazy() {
        simt_settings.lazy_streams = true;
        CUDA_CHECK(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
        CUDA_CHECK(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
    }
    ~Lazy() {
        cudaStreamDestroy(a);
        cudaStreamDestroy(b);
        simt_settings = SimtSettings();
    }
};

template <class T>
static T* device_array(std::vector<T> values) {
    T* p;
    CUDA_CHECK(cudaMalloc(&p, values.size() * sizeof(T)));
    CUDA_CHECK(cudaMemcpy(p, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}

__global__ void add_kernel(int* p, int x) { *p += x; }
__global__ void double_kernel(int* to, const int* from) { *to = 2 * *from; }

// ---------------------------------------------------------------------------------------------------------------------
// memory

TEST(SimtRuntime, RuntimeCopiesAndSets) {
    int *p, host[4] = {1, 2, 3, 4}, back[4];
    cudaStream_t stream;
    CUDA_CHECK(cudaStreamCreate(&stream));
    CUDA_CHECK(cudaMallocAsync(&p, sizeof(host), stream));
    CUDA_CHECK(cudaMemcpyAsync(p, host, sizeof(host), cudaMemcpyHostToDevice, stream));
    CUDA_CHECK(cudaMemset(p + 1, 0, 4));
    CUDA_CHECK(cudaMemcpy(back, p, sizeof(host), cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaFreeAsync(p, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
    CUDA_CHECK(cudaStreamDestroy(stream));
    EXPECT_EQ(std::vector<int>(back, back + 4), (std::vector<int>{1, 0, 3, 4}));
    std::string message = message_of([] {
        char* huge;
        CUDA_CHECK(cudaMalloc(&huge, SIZE_MAX - 4096));
    });
    EXPECT_NE(message.find("out of memory"), std::string::npos) << message;
    EXPECT_NE(message.find("test_simt_runtime.cpp"), std::string::npos) << message;
}

TEST(SimtRuntime, CopiesOfTheWrongKindAreRefused) {
    int *device, *pinned, host = 1, other;
    CUDA_CHECK(cudaMalloc(&device, 4));
    CUDA_CHECK(cudaMallocHost(&pinned, 4));
    EXPECT_EQ(cudaMemcpy(device, &host, 4, cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(pinned, device, 4, cudaMemcpyDeviceToHost), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(&other, pinned, 4, cudaMemcpyHostToHost), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(&other, device, 4, cudaMemcpyDefault), cudaSuccess);
    EXPECT_EQ(other, 1);
    EXPECT_EQ(cudaMemcpy(&other, &host, 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemcpy(device, device, 4, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemcpy(device, pinned, 4, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemcpy(nullptr, &host, 4, cudaMemcpyDefault), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemcpy(nullptr, nullptr, 0, cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_EQ(cudaFree(&host), cudaErrorInvalidValue);
    EXPECT_EQ(cudaFree(pinned), cudaErrorInvalidValue);
    EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
    EXPECT_EQ(cudaFree(device), cudaSuccess);
    EXPECT_EQ(cudaFree(device), cudaErrorInvalidValue) << "twice";
    EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
}

TEST(SimtRuntime, CopiesOfRows) {
    std::vector<int> from = {1, 2, 3, 4, 5, 6}, to(6, 0);
    int* p = device_array(from);
    EXPECT_EQ(cudaMemcpy2D(to.data(), 8, p, 12, 8, 2, cudaMemcpyDeviceToHost), cudaSuccess);
    EXPECT_EQ(to, (std::vector<int>{1, 2, 4, 5, 0, 0}));
    EXPECT_EQ(cudaMemcpy2DAsync(to.data(), 4, p, 12, 8, 2, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    CUDA_CHECK(cudaFree(p));
}

TEST(SimtRuntime, FullMemory) {
    Environment limit("TRAIN_QRL_SIMT_MEMORY", "10000");
    char *a, *b, *pinned;
    size_t left, total;
    CUDA_CHECK(cudaMalloc(&a, 6000));
    EXPECT_EQ(cudaMalloc(&b, 5000), cudaErrorMemoryAllocation);
    EXPECT_EQ(b, nullptr);
    EXPECT_EQ(cudaMallocAsync(&b, 5000, nullptr), cudaErrorMemoryAllocation);
    CUDA_CHECK(cudaMallocHost(&pinned, 50000));  // not the device's
    CUDA_CHECK(cudaMemGetInfo(&left, &total));
    EXPECT_EQ(left, 4000u);
    EXPECT_EQ(total, 10000u);
    CUDA_CHECK(cudaFree(a));
    CUDA_CHECK(cudaMallocAsync(&b, 10000, nullptr));
    std::string message = message_of([] {
        char* p;
        CUDA_CHECK(cudaMalloc(&p, 1));
    });
    EXPECT_NE(message.find("out of memory (lower --micro_batch_tokens"), std::string::npos) << message;
    CUDA_CHECK(cudaFreeAsync(b, nullptr));
    CUDA_CHECK(cudaFreeHost(pinned));
}

TEST(SimtRuntime, ThePlanLeavesTheReserveFree) {
    for (int64_t room : {-1, 0}) {
        Environment limit("TRAIN_QRL_SIMT_MEMORY", std::to_string((11 << 20) + room).c_str());
        Arena arena;
        arena.dev.cuda = true;
        arena.reserve = 1 << 20;
        Device dev = arena.dev;
        dev.arena = &arena;
        Buffer<char> buffer;
        buffer.allocate(10 << 20, "numbers", "lower --micro_batch_tokens", dev);
        EXPECT_NE(arena_plan_text(arena).find("reserve     1.0 MiB more stay free"), std::string::npos);
        const std::string message = message_of([&] { arena_commit(arena); });
        if (room == 0) {
            EXPECT_EQ(message, "no error");
        } else {
            EXPECT_NE(message.find("the plan asks for 10.0 MiB and a reserve of 1.0 MiB, the GPU has 11.0 MiB free"),
                      std::string::npos)
                << message;
        }
    }
}

// what goes wrong where memory is given back is said
TEST(SimtRuntime, FreesAreChecked) {
    Device dev;
    dev.cuda = true;
    CUDA_CHECK(cudaStreamCreateWithFlags(&dev.stream, cudaStreamNonBlocking));
    const std::string message = message_of([&] {
        Scratch scratch(10, dev);
        CUDA_CHECK(cudaStreamBeginCapture(dev.stream, cudaStreamCaptureModeThreadLocal));
    });
    EXPECT_NE(message.find("cudaFreeAsync"), std::string::npos) << message;
    cudaGraph_t graph;
    EXPECT_EQ(cudaStreamEndCapture(dev.stream, &graph), cudaErrorStreamCaptureInvalidated);
    CUDA_CHECK(cudaStreamDestroy(dev.stream));
    Buffer<float> buffer;
    dev.stream = nullptr;
    buffer.allocate(10, "numbers", "", dev);
    CUDA_CHECK(cudaFree(buffer.data));
    testing::internal::CaptureStderr();
    buffer.release();
    const std::string warning = testing::internal::GetCapturedStderr();
    EXPECT_EQ(warning.rfind("warning: ", 0), 0u) << warning;
    EXPECT_NE(warning.find("cudaFree(data)"), std::string::npos) << warning;
}

// ---------------------------------------------------------------------------------------------------------------------
// the device

TEST(SimtRuntime, Device) {
    simt_settings.arch = 120;
    cudaDeviceProp p;
    int count = 0, device = -1, value = 0, version = 0;
    CUDA_CHECK(cudaGetDeviceCount(&count));
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaSetDevice(0));
    CUDA_CHECK(cudaGetDeviceProperties(&p, 0));
    EXPECT_EQ(count, 1);
    EXPECT_EQ(device, 0);
    EXPECT_STREQ(p.name, "simt");
    EXPECT_EQ(p.major, 12);
    EXPECT_EQ(p.minor, 0);
    EXPECT_EQ(p.sharedMemPerBlockOptin, 99u * 1024);
    EXPECT_EQ(p.totalGlobalMem, (size_t)16 << 30);
    CUDA_CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    EXPECT_EQ(value, 99 * 1024);
    CUDA_CHECK(cudaDriverGetVersion(&version));
    EXPECT_GE(version, 12000);
    EXPECT_EQ(cudaSetDevice(1), cudaErrorInvalidDevice);
    EXPECT_EQ(cudaFuncSetAttribute(add_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 100 * 1024),
              cudaErrorInvalidValue);
    simt_settings = SimtSettings();
    Environment none("TRAIN_QRL_SIMT_DEVICES", "0");
    EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
    EXPECT_EQ(count, 0);
    EXPECT_EQ(cudaGetDeviceProperties(&p, 0), cudaErrorNoDevice);
}

// ---------------------------------------------------------------------------------------------------------------------
// streams that run at once, and lazy ones

TEST(SimtRuntime, WorkRunsAtOnceByDefault) {
    int* p = device_array<int>({1});
    cudaStream_t stream;
    CUDA_CHECK(cudaStreamCreate(&stream));
    LAUNCH(add_kernel, 1, 1, 0, stream, p, 2);
    EXPECT_EQ(*p, 3);
    EXPECT_EQ(cudaStreamQuery(stream), cudaSuccess);
    CUDA_CHECK(cudaStreamDestroy(stream));
    CUDA_CHECK(cudaFree(p));
}

TEST(SimtRuntime, LazyWorkRunsInOrderWhenWaitedFor) {
    Lazy lazy;
    int* p = device_array<int>({1});
    LAUNCH(add_kernel, 1, 1, 0, lazy.a, p, 2);
    LAUNCH(double_kernel, 1, 1, 0, lazy.a, p, p);
    CUDA_CHECK(cudaMemsetAsync(p + 0, 0, 0, lazy.a));
    EXPECT_EQ(*p, 1);
    LAUNCH(add_kernel, 1, 1, 0, nullptr, p, 10);  // the default stream does not wait for a non-blocking one
    EXPECT_EQ(*p, 11);
    EXPECT_EQ(cudaStreamQuery(lazy.a), cudaErrorNotReady);
    EXPECT_EQ(cudaGetLastError(), cudaErrorNotReady);
    CUDA_CHECK(cudaStreamSynchronize(lazy.a));
    EXPECT_EQ(*p, 26);
    LAUNCH(add_kernel, 1, 1, 0, lazy.b, p, 1);
    CUDA_CHECK(cudaStreamSynchronize(lazy.a));
    EXPECT_EQ(*p, 26) << "another stream";
    CUDA_CHECK(cudaDeviceSynchronize());
    EXPECT_EQ(*p, 27);
    cudaStream_t blocking;
    CUDA_CHECK(cudaStreamCreate(&blocking));
    LAUNCH(add_kernel, 1, 1, 0, blocking, p, 100);
    EXPECT_EQ(*p, 27);
    LAUNCH(double_kernel, 1, 1, 0, nullptr, p, p);  // the default stream waits for this one
    EXPECT_EQ(*p, 254);
    CUDA_CHECK(cudaStreamDestroy(blocking));
    CUDA_CHECK(cudaFree(p));
}

TEST(SimtRuntime, LazyCopies) {
    Lazy lazy;
    int *p = device_array<int>({0, 0}), *pinned, host = 5, back = 0;
    CUDA_CHECK(cudaMallocHost(&pinned, 8));
    pinned[0] = 5;
    CUDA_CHECK(cudaMemcpyAsync(p, pinned, 4, cudaMemcpyHostToDevice, lazy.a));
    CUDA_CHECK(cudaMemcpyAsync(p + 1, &host, 4, cudaMemcpyHostToDevice, lazy.a));
    pinned[0] = host = 6;  // neither may be reused yet
    CUDA_CHECK(cudaMemcpyAsync(pinned + 1, p, 4, cudaMemcpyDeviceToHost, lazy.a));
    EXPECT_EQ(p[0], 0);
    CUDA_CHECK(cudaMemcpyAsync(&back, p + 1, 4, cudaMemcpyDeviceToHost, lazy.a));  // to pageable memory: waits
    EXPECT_EQ(p[0], 6);
    EXPECT_EQ(p[1], 6);
    EXPECT_EQ(pinned[1], 6);
    EXPECT_EQ(back, 6);
    CUDA_CHECK(cudaFree(p));
    CUDA_CHECK(cudaFreeHost(pinned));
}

// what the program copies may be changed at once, whatever its size, and more often than its ring has room for
TEST(SimtRuntime, SourcesOfCopiesMayBeReused) {
    Lazy lazy;
    Device dev;
    dev.cuda = true, dev.stream = lazy.a;
    for (const size_t n : {(size_t)1, (size_t)1000, (size_t)60000, (size_t)300000}) {
        std::vector<std::vector<int> > sent;
        std::vector<int*> at;
        for (int copy = 0; copy < 7; copy++) {
            std::vector<int> source(n);
            for (size_t i = 0; i < n; i++) source[i] = (int)i * 7 + copy;
            sent.push_back(source);
            at.push_back(device_array<int>(std::vector<int>(n, -1)));
            copy_to_device(at.back(), source.data(), n * sizeof(int), dev);
            std::fill(source.begin(), source.end(), -2);
        }
        CUDA_CHECK(cudaStreamSynchronize(lazy.a));
        for (size_t copy = 0; copy < sent.size(); copy++) {
            EXPECT_EQ(std::vector<int>(at[copy], at[copy] + n), sent[copy]) << n << " " << copy;
            CUDA_CHECK(cudaFree(at[copy]));
        }
    }
}

// b reads what a writes; without the event's wait it reads the value of before
static int run_two_streams(bool wait) {
    Lazy lazy;
    int *p = device_array<int>({1}), *q = device_array<int>({0}), result;
    cudaEvent_t event;
    CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    LAUNCH(add_kernel, 1, 1, 0, lazy.a, p, 20);
    CUDA_CHECK(cudaEventRecord(event, lazy.a));
    LAUNCH(add_kernel, 1, 1, 0, lazy.a, p, 1000);  // after the record: not waited for
    if (wait) CUDA_CHECK(cudaStreamWaitEvent(lazy.b, event, 0));
    LAUNCH(double_kernel, 1, 1, 0, lazy.b, q, p);
    CUDA_CHECK(cudaStreamSynchronize(lazy.b));
    result = *q;
    CUDA_CHECK(cudaEventDestroy(event));
    CUDA_CHECK(cudaFree(p));
    CUDA_CHECK(cudaFree(q));
    return result;
}

TEST(SimtRuntime, AMissingWaitBetweenStreamsShows) {
    EXPECT_EQ(run_two_streams(true), 42);
    EXPECT_EQ(run_two_streams(false), 2);
}

TEST(SimtRuntime, Events) {
    Lazy lazy;
    int* p = device_array<int>({0});
    cudaEvent_t start, end, untimed;
    float milliseconds = -1;
    CUDA_CHECK(cudaEventCreate(&start));
    CUDA_CHECK(cudaEventCreate(&end));
    CUDA_CHECK(cudaEventCreateWithFlags(&untimed, cudaEventDisableTiming));
    EXPECT_EQ(cudaEventQuery(end), cudaSuccess) << "never recorded";
    CUDA_CHECK(cudaEventSynchronize(end));
    CUDA_CHECK(cudaStreamWaitEvent(lazy.b, end, 0));
    CUDA_CHECK(cudaEventRecord(start, lazy.a));
    LAUNCH(add_kernel, 1, 1, 0, lazy.a, p, 1);
    CUDA_CHECK(cudaEventRecord(end, lazy.a));
    EXPECT_EQ(cudaEventElapsedTime(&milliseconds, start, end), cudaErrorNotReady);
    int questions = 0;
    while (cudaEventQuery(end) == cudaErrorNotReady) questions++;
    EXPECT_EQ(questions, 3);
    EXPECT_EQ(cudaGetLastError(), cudaErrorNotReady);
    EXPECT_EQ(*p, 1);
    EXPECT_EQ(cudaEventElapsedTime(&milliseconds, start, end), cudaSuccess);
    EXPECT_GE(milliseconds, 0);
    CUDA_CHECK(cudaEventRecord(untimed, nullptr));
    EXPECT_EQ(cudaEventElapsedTime(&milliseconds, start, untimed), cudaErrorInvalidResourceHandle);
    LAUNCH(add_kernel, 1, 1, 0, lazy.a, p, 1);
    CUDA_CHECK(cudaEventRecord(end, lazy.a));
    LAUNCH(add_kernel, 1, 1, 0, lazy.a, p, 1);
    CUDA_CHECK(cudaEventSynchronize(end));
    EXPECT_EQ(*p, 2);
    for (cudaEvent_t event : {start, end, untimed}) CUDA_CHECK(cudaEventDestroy(event));
    CUDA_CHECK(cudaFree(p));
}

__global__ void failing_kernel(int) {
    if (threadIdx.x == 1) __trap();
}

TEST(SimtRuntime, AFaultOfLazyWorkIsThrownWhereItIsWaitedFor) {
    Lazy lazy;
    LAUNCH(failing_kernel, 1, 32, 0, lazy.a, 0);
    std::string message = message_of([&] { CUDA_CHECK(cudaStreamSynchronize(lazy.a)); });
    EXPECT_NE(message.find("failing_kernel"), std::string::npos) << message;
    CUDA_CHECK(cudaStreamSynchronize(lazy.a));
}

// ---------------------------------------------------------------------------------------------------------------------
// graphs

TEST(SimtRuntime, GraphReplaysWhatWasRecorded) {
    for (bool lazily : {false, true}) {
        simt_settings.lazy_streams = lazily;
        cudaStream_t stream;
        CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        int *p = device_array<int>({1}), *q = device_array<int>({0}), argument = 2;
        cudaStreamCaptureStatus status;
        cudaGraph_t graph;
        cudaGraphExec_t exec;
        CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
        EXPECT_EQ(status, cudaStreamCaptureStatusActive);
        LAUNCH(add_kernel, 1, 1, 0, stream, p, argument);
        argument = 50;  // the launch has its copy
        LAUNCH(double_kernel, 1, 1, 0, stream, q, p);
        CUDA_CHECK(cudaMemcpyAsync(p, q, 4, cudaMemcpyDeviceToDevice, stream));
        CUDA_CHECK(cudaMemsetAsync(q, 0, 4, stream));
        EXPECT_EQ(*p, 1) << "recorded, not run";
        CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
        CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
        EXPECT_EQ(status, cudaStreamCaptureStatusNone);
        size_t nodes = 0;
        CUDA_CHECK(cudaGraphGetNodes(graph, nullptr, &nodes));
        EXPECT_EQ(nodes, 4u);
        CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
        CUDA_CHECK(cudaGraphDestroy(graph));
        CUDA_CHECK(cudaGraphLaunch(exec, stream));
        CUDA_CHECK(cudaGraphLaunch(exec, stream));
        EXPECT_EQ(*p, lazily ? 1 : 16);
        CUDA_CHECK(cudaGraphExecDestroy(exec));  // what was launched runs all the same
        CUDA_CHECK(cudaStreamSynchronize(stream));
        EXPECT_EQ(*p, 16);
        EXPECT_EQ(*q, 0);
        CUDA_CHECK(cudaStreamDestroy(stream));
        CUDA_CHECK(cudaFree(p));
        CUDA_CHECK(cudaFree(q));
        simt_settings = SimtSettings();
    }
}

// each of these is refused, and spoils the capture
TEST(SimtRuntime, WhatACaptureForbids) {
    cudaStream_t stream, other;
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaStreamCreate(&other));
    cudaEvent_t event;
    CUDA_CHECK(cudaEventCreate(&event));
    int *p = device_array<int>({1}), host = 0;
    void* memory;
    std::vector<std::function<cudaError_t()> > forbidden = {
        [&] { return cudaStreamSynchronize(stream); },
        [&] { return cudaDeviceSynchronize(); },
        [&] { return cudaMalloc(&memory, 16); },
        [&] { return cudaMallocAsync(&memory, 16, stream); },
        [&] { return cudaFreeAsync(p, stream); },
        [&] { return cudaFree(p); },
        [&] { return cudaMemcpy(&host, p, 4, cudaMemcpyDeviceToHost); },
        [&] { return cudaEventRecord(event, stream); },
        [&] { return cudaStreamWaitEvent(stream, event, 0); },
    };
    cudaGraph_t graph;
    for (size_t i = 0; i < forbidden.size(); i++) {
        CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        EXPECT_EQ(forbidden[i](), cudaErrorStreamCaptureUnsupported) << i;
        LAUNCH(add_kernel, 1, 1, 0, stream, p, 1);
        EXPECT_EQ(*p, 1) << i;
        EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated) << i;
        EXPECT_EQ(graph, nullptr);
    }
    // other streams go on meanwhile
    CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    LAUNCH(add_kernel, 1, 1, 0, other, p, 1);
    CUDA_CHECK(cudaStreamSynchronize(other));
    EXPECT_EQ(*p, 2);
    EXPECT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaErrorIllegalState);
    CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
    CUDA_CHECK(cudaGraphDestroy(graph));
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorIllegalState);
    EXPECT_EQ(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal), cudaErrorStreamCaptureUnsupported);
    CUDA_CHECK(cudaStreamDestroy(stream));
    CUDA_CHECK(cudaStreamDestroy(other));
    CUDA_CHECK(cudaEventDestroy(event));
    CUDA_CHECK(cudaFree(p));
}

TEST(SimtRuntime, AWrongLaunchIsReportedWhereItIsRecorded) {
    Lazy lazy;
    int n = 0;
    std::string message = message_of([&] { LAUNCH(add_kernel, 1, 2000, 0, lazy.a, &n, 1); });
    EXPECT_NE(message.find("(2000,1,1) threads"), std::string::npos) << message;
}
#endif
