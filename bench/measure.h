// How a number of the benchmark comes about: one call to warm up, then the best of as many as fit in the time given for
// it. A machine that others share is slower now and then and never faster, so that the best is what repeats.
#pragma once
#include <algorithm>
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>
#include "../runtime/dtypes.h"
#include "../runtime/run_dir.h"
#if defined(_OPENMP)
#include <omp.h>
#endif

struct BenchTiming {
    double best = 0.0, worst = 0.0;  // seconds of a call
    int calls = 0;
};

// seconds: for all calls together; 0: one call and no warm-up, which is for tests. At least `least` calls otherwise
template <class F>
BenchTiming bench_time(double seconds, int least, const F& call) {
    BenchTiming t;
    if (seconds > 0) call();
    else least = 1;
    const double start = wall_seconds();
    while (t.calls < least || wall_seconds() - start < seconds) {
        const double begin = wall_seconds();
        call();
        const double took = std::max(wall_seconds() - begin, 1e-9);
        t.best = t.calls ? std::min(t.best, took) : took;
        t.worst = std::max(t.worst, took);
        t.calls++;
    }
    return t;
}

// of the machine, without swapping; 0: it does not say
inline double available_memory_bytes() {
    std::ifstream in("/proc/meminfo");
    std::string key, unit;
    for (double kibibytes; in >> key >> kibibytes && std::getline(in, unit);)
        if (key == "MemAvailable:") return 1024.0 * kibibytes;
    return 0.0;
}

inline int bench_threads() {
#if defined(_OPENMP)
    return omp_get_max_threads();
#else
    return 1;
#endif
}

// What must be done at least, whoever does it. A multiply-add counts two; each input is read once, each output written once
enum class BenchUnit { fp32, bf16 };  // what the multiply-adds are of
struct BenchWork {
    double flops = 0.0;
    BenchUnit unit = BenchUnit::fp32;
    double read = 0.0, written = 0.0;  // bytes
    double resident = 0.0;             // bytes that repeated calls go round in; 0: read + written
    double bytes() const { return read + written; }
};

// A line of a table
struct BenchRow {
    std::string part, model, name;
    std::vector<int64_t> shape;
    BenchTiming time;
    std::vector<BenchWork> work;                            // done one after the other
    std::vector<std::pair<std::string, double>> more = {};  // numbers of its own
    double flops() const {
        double sum = 0.0;
        for (const BenchWork& w : work) sum += w.flops;
        return sum;
    }
    double bytes() const {
        double sum = 0.0;
        for (const BenchWork& w : work) sum += w.bytes();
        return sum;
    }
};

inline std::string sizes_text(const std::vector<int64_t>& shape) {
    std::string s;
    for (int64_t n : shape) s += (s.empty() ? "" : "x") + std::to_string(n);
    return s;
}
