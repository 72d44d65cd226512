// What the program asks of the machine: the instructions it was compiled for and memory.
#include <gtest/gtest.h>
#include "../runtime/buffer.h"
#include "../runtime/cpu_check.h"
#include "../runtime/cpu_isa.h"
#include "../runtime/open_device.h"
#include "../runtime/threads.h"
#include "file_test.h"

#if defined(__x86_64__)
TEST(CpuCheck, NamesWhatIsCompiledAndLacking) {
    char text[512];
    auto refusal = [&](std::vector<CpuFeature> features, size_t size = sizeof(text)) {
        const size_t n = cpu_refusal(features.data(), features.size(), text, size);
        EXPECT_EQ(n, strlen(text));
        return std::string(text);
    };
    EXPECT_EQ(refusal({{"avx", true, true}, {"avx2", false, false}, {"fma", false, true}}), "");
    EXPECT_EQ(
        refusal({{"avx", true, true}, {"avx2", true, false}, {"fma", false, false}, {"bmi", true, false}}),
        "train_qrl: this program was compiled for a CPU with avx2, bmi, which this CPU lacks; compile it here (make), "
        "or for older CPUs (make MARCH=x86-64-v2)\n");
    EXPECT_EQ(refusal({{"avx2", true, false}}, 20), "train_qrl: this pro");  // no byte behind its end
}

TEST(CpuCheck, KnowsWhatThisProgramWasCompiledFor) {
#define F(name, macro) std::pair<const char*, bool>{name, CPU_IS_ONE(macro)},
    const std::pair<const char*, bool> features[] = {CPU_FEATURES(F)};
#undef F
    for (auto [name, compiled] : features) {
        if (std::string(name) == "sse4.2") {
#ifdef __SSE4_2__
            EXPECT_TRUE(compiled);
#else
            EXPECT_FALSE(compiled);
#endif
        }
        if (std::string(name) == "avx512f") {
#ifdef __AVX512F__
            EXPECT_TRUE(compiled);
#else
            EXPECT_FALSE(compiled);
#endif
        }
    }
}
#endif

TEST(Threads, QuotaOfOneGroup) {
    EXPECT_EQ(cpu_max_quota("200000 100000\n"), 2.0);
    EXPECT_EQ(cpu_max_quota("50000 100000"), 0.5);
    for (const char* none : {"max 100000\n", "-1 100000", "", "100000", "100000 0", "a b"})
        EXPECT_EQ(cpu_max_quota(none), 0.0) << none;
    const std::string self = "5:cpu,cpuacct:/a:b\n4:cpuset:/c\n0::/d/e\n";
    EXPECT_EQ(cgroup_path(self, ""), "/d/e");
    EXPECT_EQ(cgroup_path(self, "cpu"), "/a:b");
    EXPECT_EQ(cgroup_path(self, "cpuset"), "/c");
    EXPECT_EQ(cgroup_path(self, "memory"), "");
    EXPECT_EQ(cgroup_path("garbage\n", ""), "");
}

// made-up files of a machine
struct MadeUpRoot {
    TempDir dir;
    void file(const std::string& path, const std::string& text) {
        fs::create_directories(fs::path(dir / path).parent_path());
        put(dir / path, text);
    }
    double quota() const { return cpu_quota(dir.path + "/"); }
};

TEST(Threads, QuotaOfAllGroupsAbove) {
    MadeUpRoot none;
    EXPECT_EQ(none.quota(), 0.0);
    none.file("proc/self/cgroup", "0::/\n");
    EXPECT_EQ(none.quota(), 0.0);

    MadeUpRoot v2;
    v2.file("proc/self/cgroup", "0::/a/b\n");
    v2.file("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    EXPECT_EQ(v2.quota(), 0.0);
    v2.file("sys/fs/cgroup/a/cpu.max", "250000 100000\n");
    EXPECT_EQ(v2.quota(), 2.5);
    v2.file("sys/fs/cgroup/a/b/cpu.max", "400000 100000\n");
    EXPECT_EQ(v2.quota(), 2.5) << "the group above allows less";

    MadeUpRoot container;  // which sees its own group as the mount's root
    container.file("proc/self/cgroup", "0::/docker/0123\n");
    container.file("sys/fs/cgroup/cpu.max", "150000 100000\n");
    EXPECT_EQ(container.quota(), 1.5);

    MadeUpRoot v1;
    v1.file("proc/self/cgroup", "7:cpu,cpuacct:/x\n1:name=systemd:/\n");
    v1.file("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "-1\n");
    v1.file("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us", "100000\n");
    EXPECT_EQ(v1.quota(), 0.0);
    v1.file("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "50000\n");
    EXPECT_EQ(v1.quota(), 0.5);
}

TEST(Threads, AreCountedByAffinityAndQuota) {
    auto threads = [](int cores, int affinity, double quota) { return CpuShare{cores, affinity, quota}.threads(); };
    EXPECT_EQ(threads(64, 64, 0.0), 64);
    EXPECT_EQ(threads(64, 8, 0.0), 8);
    EXPECT_EQ(threads(64, 8, 2.5), 3);
    EXPECT_EQ(threads(64, 8, 0.1), 1);
    EXPECT_EQ(threads(64, 2, 6.0), 2);
    EXPECT_EQ(threads(1, 1, 0.0), 1);
    EXPECT_EQ(cpu_share_text(2, {2, 2, 0.0}), "2 threads");
    EXPECT_EQ(cpu_share_text(1, {2, 2, 0.0}), "1 thread (of 2 cores)");
    EXPECT_EQ(cpu_share_text(2, {64, 64, 2.0}), "2 threads (of 64 cores; quota 2.0)");
    EXPECT_EQ(cpu_share_text(3, {64, 8, 2.5}), "3 threads (of 64 cores; affinity 8; quota 2.5)");
    const CpuShare here = cpu_share();
    EXPECT_GE(here.threads(), 1);
    EXPECT_LE(here.threads(), here.affinity);
    EXPECT_LE(here.affinity, here.cores);
}

// a page behind the end, or before the beginning, would be somebody else's
TEST(Devices, GpusAreNamedAsTheEnvironmentHasThem) {
    typedef std::vector<std::string> Names;
    EXPECT_EQ(gpu_names(3, nullptr), (Names{"0", "1", "2"}));
    EXPECT_EQ(gpu_names(2, "5,GPU-8f1a"), (Names{"5", "GPU-8f1a"}));
    EXPECT_EQ(gpu_names(1, "3,9"), (Names{"3"}));  // CUDA stops at the first that is not there
    EXPECT_EQ(gpu_names(0, nullptr), Names());
    EXPECT_EQ(visible_gpus("cpu"), Names());
}

TEST(Memory, LargeArraysBeginAtHugePagesAndEndWhereTheyShould) {
    for (size_t bytes :
         {(size_t)100, (size_t)4096, ((size_t)2 << 20) + 1, ((size_t)4 << 20), ((size_t)9 << 20) + 12345}) {
        char* p = static_cast<char*>(map_pages(bytes));
        ASSERT_NE(p, nullptr);
        EXPECT_EQ((uintptr_t)p % (bytes >= (size_t)4 << 20 ? (size_t)2 << 20 : 4096), 0u) << bytes;
        for (size_t i = 0; i < bytes; i += 4096) EXPECT_EQ(p[i], 0) << i;
        p[0] = p[bytes - 1] = 1;
        unsigned char there = 0;
        const size_t end = (bytes + 4095) / 4096 * 4096;
        EXPECT_EQ(mincore(p + end - 4096, 4096, &there), 0);
        EXPECT_EQ(munmap(p, bytes), 0);
        EXPECT_EQ(mincore(p, 4096, &there), -1) << "still mapped";
        EXPECT_EQ(mincore(p + end - 4096, 4096, &there), -1) << "still mapped";
    }
    EXPECT_EQ(map_pages((size_t)1 << 60), nullptr);
}

TEST(Memory, SizesThatWrapAreRefused) {
    Buffer<double> b;
    const char* wanted = "out of memory: a b would take more than 2^56 bytes; lower --c";
    for (size_t n : {SIZE_MAX, (size_t)1 << 61, (size_t)(int64_t)-1, ((size_t)1 << 53) + 1}) {
        EXPECT_EQ(error_of([&] { b.allocate(n, "a b", "lower --c"); }), wanted) << n;
        EXPECT_EQ(b.size, 0u);
    }
    EXPECT_EQ(array_count(1 << 20, 1 << 20, 3), (size_t)3 << 40);
    for (size_t n :
         {array_count((int64_t)1 << 40, (int64_t)1 << 40), array_count(1 << 30, 1 << 30, 1 << 10), array_count(-1, 3)})
        EXPECT_EQ(n, SIZE_MAX);
}

// each of the arrays is possible, their sum is not
TEST(Memory, APlanThatWrapsIsRefused) {
    Arena arena;
    Device dev;
    dev.arena = &arena;
    Buffer<char> one, two, three;
    one.allocate((size_t)1 << 55, "a", "", dev);
    two.allocate((size_t)1 << 54, "b", "", dev);
    EXPECT_EQ(error_of([&] { three.allocate((size_t)1 << 55, "c", "lower --d", dev); }),
              "out of memory: c would take more than 2^56 bytes; lower --d");
    EXPECT_EQ(arena.bytes, (size_t)3 << 54);
    EXPECT_EQ(arena.lines.size(), 2u);
}

TEST(CpuIsa, WhatIsAskedForWithinWhatThereIs) {
    auto choose = [](const char* asked, CpuIsa best) { return cpu_isa_choose(asked, {best, "a note"}); };
    EXPECT_EQ(choose("avx2", CpuIsa::avx512).isa, CpuIsa::avx2);
    EXPECT_EQ(choose("portable", CpuIsa::amx).isa, CpuIsa::portable);
    EXPECT_EQ(choose("avx512_bf16", CpuIsa::avx512_bf16).isa, CpuIsa::avx512_bf16);
    EXPECT_EQ(choose("amx_stand_in", CpuIsa::portable).isa, CpuIsa::amx_stand_in);
    for (const char* nothing : {(const char*)nullptr, ""}) {
        EXPECT_EQ(choose(nothing, CpuIsa::amx).isa, CpuIsa::amx);
        EXPECT_EQ(choose(nothing, CpuIsa::avx2).note, "a note");
        // vdpbf16ps where it is slower than fp32's multiply-add: not unless asked for
        EXPECT_EQ(choose(nothing, CpuIsa::avx512_bf16).isa, cpu_fast_dot() ? CpuIsa::avx512_bf16 : CpuIsa::avx512);
    }
    EXPECT_THROW(choose("avx512", CpuIsa::avx2), Error);
    EXPECT_THROW(choose("amx", CpuIsa::avx512_bf16), Error);
    EXPECT_THROW(choose("sse", CpuIsa::amx), Error);
}
