// OpenMP's threads: how long they wait awake, and how many there are.
#pragma once
#include <sched.h>
#include <unistd.h>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include "error.h"
#if defined(_OPENMP)
#include <omp.h>
#endif

// ---------------------------------------------------------------------------------------------------------------------
// how long a thread waits awake

// A thread that waits at a barrier spins for this long and sleeps then. Waking it costs the others some 5 us, and a
// decode step of a small model has a barrier every 20 us; but a spinning thread holds the core that the thread it waits
// for may need, and by spinning it uses up the share that would let it go first when it has work again. bench/busy_neighbour
// measures both: 2 cores, the embedded example alone and beside a busy loop on each core, where its share is a half.
constexpr double SPIN_SECONDS = 20e-6;

// of one pass through libgomp's waiting loop, whose length is that of the CPU's pause: 25 ns on Zen 4, 45 on Skylake
inline double spin_seconds() {
    constexpr int N = 500;
    double best = 1.0;
    for (int i = 0; i < 3; i++) {
        const auto start = std::chrono::steady_clock::now();
        for (int k = 0; k < N; k++) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#elif defined(__aarch64__)
            asm volatile("yield");
#endif
        }
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / N);
    }
    return std::max(best, 1e-9);
}

// Before the first parallel region. libgomp reads the variable when it is loaded, which is why the program starts itself
// again, some 2 ms. libomp counts in milliseconds, which is too long: its threads sleep at once.
inline void threads_spin_briefly(char** argv) {
#if defined(_OPENMP) && defined(__linux__)
    for (const char* set : {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"})
        if (getenv(set)) return;
    setenv("GOMP_SPINCOUNT", std::to_string((long)(SPIN_SECONDS / spin_seconds())).c_str(), 1);
    setenv("KMP_BLOCKTIME", "0", 1);
    execv("/proc/self/exe", argv);  // returns only if it failed: then the threads spin longer, and all else is the same
#else
    (void)argv;
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// how many

// What this process may use of the machine. quota: cores' worth of time that its container pays for; 0: no limit
struct CpuShare {
    int cores = 1, affinity = 1;
    double quota = 0.0;
    int threads() const {
        const int most = std::max(affinity, 1);
        return quota > 0.0 && quota < most ? std::max((int)std::ceil(quota), 1) : most;
    }
};

// cgroup v2's cpu.max, "200000 100000" or "max 100000", in microseconds; 0: no limit, or not to be read
inline double cpu_max_quota(const std::string& text) {
    double quota = 0.0, period = 0.0;
    return sscanf(text.c_str(), "%lf %lf", &quota, &period) == 2 && quota > 0.0 && period > 0.0 ? quota / period : 0.0;
}

// path of the process below the mount of a hierarchy, from /proc/self/cgroup: that of v2 ("0::/a/b") or, with a controller,
// that of v1 ("4:cpu,cpuacct:/a/b"); "" where there is none
inline std::string cgroup_path(const std::string& self_cgroup, const std::string& controller) {
    std::istringstream lines(self_cgroup);
    for (std::string line; std::getline(lines, line);) {
        const size_t first = line.find(':'), second = first == line.npos ? first : line.find(':', first + 1);
        if (second == line.npos) continue;
        const std::string names = line.substr(first + 1, second - first - 1);
        const bool found =
            controller.empty() ? names.empty() : ("," + names + ",").find("," + controller + ",") != names.npos;
        if (found) return line.substr(second + 1);
    }
    return "";
}

// The least of the quotas of this process's group and of those above it. root: "/" but in tests. Within a container the
// mount may begin at the group itself, whose path then names folders that are not there: those are passed over.
inline double cpu_quota(const std::string& root) {
    auto text = [&](const std::string& path) {
        std::ifstream file(root + path);
        std::ostringstream all;
        if (file) all << file.rdbuf();
        return all.str();
    };
    double least = 0.0;
    auto limit = [&](double quota) { least = quota > 0.0 && (least == 0.0 || quota < least) ? quota : least; };
    auto walk = [&](std::string path, auto at) {
        for (;; path = path.substr(0, path.rfind('/'))) {
            while (!path.empty() && path.back() == '/') path.pop_back();
            at(path);
            if (path.find('/') == path.npos) return;
        }
    };
    const std::string self = text("proc/self/cgroup"), mounts = "sys/fs/cgroup";
    for (const char* mount : {"", "/unified"})
        walk(cgroup_path(self, ""),
             [&](const std::string& p) { limit(cpu_max_quota(text(mounts + mount + p + "/cpu.max"))); });
    for (const char* mount : {"/cpu", "/cpu,cpuacct"})
        walk(cgroup_path(self, "cpu"), [&](const std::string& p) {
            const std::string at = mounts + mount + p + "/cpu.cfs_";  // a quota of -1: none
            limit(cpu_max_quota(text(at + "quota_us") + " " + text(at + "period_us")));
        });
    return least;
}

inline CpuShare cpu_share(const std::string& root = "/") {
    CpuShare s;
    s.cores = s.affinity = std::max((int)std::thread::hardware_concurrency(), 1);
#if defined(__linux__)
    s.cores = std::max((int)sysconf(_SC_NPROCESSORS_ONLN), 1);
#if defined(_OPENMP)
    s.affinity = omp_get_num_procs();  // asks sched_getaffinity, for any number of CPUs
#endif
    s.quota = cpu_quota(root);
#else
    (void)root;
#endif
    return s;
}

// "2 threads", and of how many cores where it has not all of them
inline std::string cpu_share_text(int threads, const CpuShare& s) {
    std::string text = format("%d thread%s", threads, threads == 1 ? "" : "s"), why;
    if (s.affinity < s.cores) why = format("; affinity %d", s.affinity);
    if (s.quota > 0.0 && s.quota < s.affinity) why += format("; quota %.1f", s.quota);
    if (threads == s.cores && why.empty()) return text;
    return text + format(" (of %d core%s%s)", s.cores, s.cores == 1 ? "" : "s", why.c_str());
}
