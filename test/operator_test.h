// What the tests of the operators share. One test file is compiled three ways, like the tree (runtime/device.h): on the
// CPU loops, on the kernels through test/simt/ in three thread orders, and by nvcc on a GPU.
#pragma once
#include <gtest/gtest.h>
#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>
#if defined(_OPENMP)
#include <omp.h>
#endif
#include "../runtime/device.h"
#include "../runtime/rng.h"

// one way to run an operator
struct Backend {
    std::string name;
    Device dev;
    int order = 0;  // of the simulated threads
};

inline std::vector<Backend> all_backends() {
    std::vector<Backend> runs = {{"cpu", Device(), 0}};
#if HAS_KERNELS
    Device cuda;
    cuda.cuda = true;
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) return runs;
#if defined(TRAIN_QRL_SIMT)
    runs.push_back({"simt forward", cuda, SIMT_FORWARD});
    runs.push_back({"simt reverse", cuda, SIMT_REVERSE});
    runs.push_back({"simt random", cuda, SIMT_RANDOM});
#else
    runs.push_back({"cuda", cuda, 0});
#endif
#endif
    return runs;
}

inline void select_backend(const Backend& run) {
#if defined(TRAIN_QRL_SIMT)
    simt_settings.order = (SimtOrder)run.order;
    simt_settings.seed = 1;
#else
    (void)run;
#endif
}

#if defined(TRAIN_QRL_SIMT)
// For test/coverage. TRAIN_QRL_LAUNCHED=file: a line "kernel suite.test" for each kernel that a test launched.
// TRAIN_QRL_SKIP_KERNEL=name: launches of that kernel do nothing, so that a test that compares its result must fail.
struct LaunchLog : testing::EmptyTestEventListener {
    void OnTestStart(const testing::TestInfo&) override {
        const char* skip = getenv("TRAIN_QRL_SKIP_KERNEL");
        simt_skipped_kernel() = skip ? skip : "";
        simt_launched().clear();
    }
    void OnTestEnd(const testing::TestInfo& test) override {
        const char* path = getenv("TRAIN_QRL_LAUNCHED");
        FILE* file = path ? fopen(path, "a") : nullptr;
        if (!file) return;
        for (const std::string& kernel : simt_launched())
            fprintf(file, "%s %s.%s\n", kernel.c_str(), test.test_suite_name(), test.name());
        fclose(file);
    }
};
inline bool launch_log_added = (testing::UnitTest::GetInstance()->listeners().Append(new LaunchLog), true);
#endif

// n elements where the run wants them, each byte 0xFF (NaN in fp32 and bf16) until written, with a guard behind them
template <class T>
struct TestBuffer {
    static constexpr size_t GUARD = 64;
    T* data = nullptr;  // (n)
    size_t n;
    Device dev;

    TestBuffer(size_t n, Device dev) : n(n), dev(dev) {
        std::vector<T> poison(n + GUARD);
        memset(static_cast<void*>(poison.data()), 0xFF, poison.size() * sizeof(T));
#if HAS_KERNELS
        if (dev.cuda) {
            CUDA_CHECK(cudaMalloc(&data, poison.size() * sizeof(T)));
            CUDA_CHECK(cudaMemcpy(data, poison.data(), poison.size() * sizeof(T), cudaMemcpyDefault));
            return;
        }
#endif
        data = static_cast<T*>(aligned_alloc(256, (poison.size() * sizeof(T) + 255) / 256 * 256));
        memcpy(static_cast<void*>(data), poison.data(), poison.size() * sizeof(T));
    }
    TestBuffer(const std::vector<T>& values, Device dev) : TestBuffer(values.size(), dev) {
#if HAS_KERNELS
        if (dev.cuda) {
            CUDA_CHECK(cudaMemcpy(data, values.data(), n * sizeof(T), cudaMemcpyDefault));
            return;
        }
#endif
        if (n) memcpy(static_cast<void*>(data), values.data(), n * sizeof(T));
    }
    ~TestBuffer() {
#if HAS_KERNELS
        if (dev.cuda) {
            cudaFree(data);
            return;
        }
#endif
        free(data);
    }
    TestBuffer(const TestBuffer&) = delete;
    TestBuffer& operator=(const TestBuffer&) = delete;

    std::vector<T> get() const {
        std::vector<T> all(n + GUARD);
#if HAS_KERNELS
        if (dev.cuda) CUDA_CHECK(cudaMemcpy(all.data(), data, all.size() * sizeof(T), cudaMemcpyDefault));
        else
#endif
            memcpy(static_cast<void*>(all.data()), data, all.size() * sizeof(T));
        const unsigned char* guard = reinterpret_cast<const unsigned char*>(all.data() + n);
        for (size_t i = 0; i < GUARD * sizeof(T); i++)
            if (guard[i] != 0xFF) {
                ADD_FAILURE() << "byte " << i << " behind a buffer of " << n << " elements was written";
                break;
            }
        all.resize(n);
        return all;
    }
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && (a.empty() || memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class T>
bool still_poison(const T& x) {
    unsigned char bytes[sizeof(T)];
    memcpy(bytes, &x, sizeof(T));
    for (unsigned char byte : bytes)
        if (byte != 0xFF) return false;
    return true;
}

// uniform in [-scale, scale], rounded to T
template <class T>
std::vector<T> random_values(size_t n, uint32_t tensor, float scale = 1.0f) {
    std::vector<T> v(n);
    for (size_t i = 0; i < n; i++)
        v[i] = (T)(scale * (2.0f * uniform01(rng_bits(1, RNG_INIT, tensor, (uint32_t)i, 0).x[0]) - 1.0f));
    return v;
}

// cosine and ratio of norms of `a` to the reference; NaN anywhere makes both NaN
struct Agreement {
    double cosine, ratio;
};

template <class T>
Agreement agreement(const std::vector<T>& a, const std::vector<double>& reference) {
    double aa = 0, rr = 0, ar = 0;
    for (size_t i = 0; i < reference.size(); i++) {
        double x = (double)(float)a[i], r = reference[i];
        aa += x * x;
        rr += r * r;
        ar += x * r;
    }
    if (rr == 0) return {aa == 0 ? 1.0 : 0.0, aa == 0 ? 1.0 : INFINITY};
    return {ar / std::sqrt(aa * rr), std::sqrt(aa / rr)};
}

// Fails for NaN. One rounding to floatX turns the vector by an angle of at most half an ulp, so that 1 - cosine is
// below ulp^2, and the ratio of norms averages over the elements.
template <class T>
void expect_agree(const std::vector<T>& a, const std::vector<double>& reference, double cosine_tolerance,
                  double ratio_tolerance, const std::string& what) {
    ASSERT_EQ(a.size(), reference.size()) << what;
    Agreement g = agreement(a, reference);
    EXPECT_TRUE(std::fabs(g.cosine - 1) <= cosine_tolerance && std::fabs(g.ratio - 1) <= ratio_tolerance)
        << what << ": 1 - cosine " << format("%.2e", 1 - g.cosine) << ", norm ratio - 1 "
        << format("%.2e", g.ratio - 1);
}

// the bytes of what an operator wrote, array after array
struct Bytes {
    std::vector<unsigned char> bytes;
    std::vector<size_t> ends;
    template <class T>
    Bytes& operator<<(const std::vector<T>& v) {
        const unsigned char* p = reinterpret_cast<const unsigned char*>(v.data());
        bytes.insert(bytes.end(), p, p + v.size() * sizeof(T));
        ends.push_back(bytes.size());
        return *this;
    }
};

// run(backend) gives the same bits on all of them
inline void expect_same_on_all_backends(const std::string& what, const std::function<Bytes(const Backend&)>& run) {
    Bytes first;
    for (const Backend& backend : all_backends()) {
        select_backend(backend);
        Bytes got = run(backend);
        if (backend.name == "cpu") {
            first = got;
            continue;
        }
        ASSERT_EQ(got.ends, first.ends) << what;
        size_t i = 0;
        while (i < got.bytes.size() && got.bytes[i] == first.bytes[i]) i++;
        if (i == got.bytes.size()) continue;
        size_t array = std::upper_bound(got.ends.begin(), got.ends.end(), i) - got.ends.begin();
        ADD_FAILURE() << what << ", " << backend.name << ": array " << array << " differs from the CPU's at byte "
                      << i - (array ? got.ends[array - 1] : 0);
    }
}

template <class T>
void expect_written(const std::vector<T>& v, const std::string& what) {
    for (size_t i = 0; i < v.size(); i++)
        ASSERT_FALSE(still_poison(v[i])) << what << ": element " << i << " not written";
}

// what `run` returns, with 1, 2 and 3 threads: the same bits
template <class T>
void expect_same_for_any_threads(const std::function<std::vector<T>()>& run, const std::string& what) {
    std::vector<T> first = run();
#if defined(_OPENMP)
    const int threads = omp_get_max_threads();
    for (int n : {1, 2, 3}) {
        omp_set_num_threads(n);
        EXPECT_TRUE(same_bits(first, run())) << what << " with " << n << " threads";
    }
    omp_set_num_threads(threads);
#endif
}
