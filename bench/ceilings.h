// The machine's ceilings, measured in this process on all its threads: multiply-adds a second by each kind of instruction
// that the CPU has, whatever the compiler was allowed to use, and bytes a second from working sets of several sizes.
// The share of a ceiling is what the tables of the benchmark are in.
//
// The peaks are loops of one instruction on registers, written as assembly, so that neither the compiler nor its flags
// change them. 14 sums: more than latency x units of any of these (6 x 2 at most). AMX: 2 x 2 tiles. The trap: operands that
// are zero take less power, and a CPU may run faster on them than on numbers.
#pragma once
#include <cstring>
#include "measure.h"
#include "../kernels/cpu/gemm_amx.h"
#include "../runtime/buffer.h"

struct CeilingPeak {
    const char *key, *name;
    double rate;  // operations a second
};
struct CeilingBandwidth {
    double size;        // bytes of the working set, of all threads together
    double read, copy;  // bytes a second; copy: read and written together
};
struct Ceilings {
    int threads = 1;
    std::vector<CeilingPeak> peaks;
    std::vector<CeilingBandwidth> memory;  // small sizes first
};

// ---------------------------------------------------------------------------------------------------------------------
// multiply-adds

struct PeakLoop {
    const char *key, *name;
    bool there;                                         // has the CPU got it
    double operations;                                  // of one round
    void (*run)(int64_t rounds, const void* operands);  // operands: 2 KiB, no number zero
};

#if defined(__x86_64__)
// INSTRUCTION on 14 sums, with registers 14 and 15 of WIDTH (xmm, ymm, zmm) as factors
#define PEAK_LOOP(FUNCTION, INSTRUCTION, WIDTH)                                                                    \
    inline void FUNCTION(int64_t rounds, const void* operands) {                                                   \
        __asm__ volatile("vmovups (%1), %%" WIDTH "14\n\tvmovups 64(%1), %%" WIDTH                                 \
                         "15\n\t"                                                                                  \
                         ".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13\n\tvmovups 128(%1), %%" WIDTH                     \
                         "\\r\n\t.endr\n\t"                                                                        \
                         "1: .irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13\n\t" INSTRUCTION " %%" WIDTH "14, %%" WIDTH    \
                         "15, %%" WIDTH                                                                            \
                         "\\r\n\t.endr\n\t"                                                                        \
                         "sub $1, %0\n\tjnz 1b\n\tvzeroupper"                                                      \
                         : "+r"(rounds)                                                                            \
                         : "r"(operands)                                                                           \
                         : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", \
                           "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");                          \
    }
PEAK_LOOP(peak_fma_ymm, "vfmadd231ps", "ymm")
PEAK_LOOP(peak_fma_zmm, "vfmadd231ps", "zmm")
PEAK_LOOP(peak_bf16_zmm, "vdpbf16ps", "zmm")
PEAK_LOOP(peak_int8_zmm, "vpdpbusd", "zmm")
#undef PEAK_LOOP

#define PEAK_AMX_LOOP(FUNCTION, INSTRUCTION)                                                                           \
    inline void FUNCTION(int64_t rounds, const void* operands) {                                                       \
        const AmxConfig config = amx_config(32, 32, 16); /* 16 rows of 64 bytes in each of the eight tiles */          \
        __asm__ volatile(                                                                                              \
            "ldtilecfg (%2)\n\tmov $64, %%ecx\n\t"                                                                     \
            ".irp t,4,5,6,7\n\ttileloadd (%1,%%rcx,1), %%tmm\\t\n\t.endr\n\t"                                          \
            ".irp t,0,1,2,3\n\ttilezero %%tmm\\t\n\t.endr\n\t"                                                         \
            "1: " INSTRUCTION " %%tmm6, %%tmm4, %%tmm0\n\t" INSTRUCTION " %%tmm7, %%tmm4, %%tmm1\n\t" INSTRUCTION      \
            " %%tmm6, %%tmm5, %%tmm2\n\t" INSTRUCTION " %%tmm7, %%tmm5, %%tmm3\n\tsub $1, %0\n\tjnz 1b\n\ttilerelease" \
            : "+r"(rounds)                                                                                             \
            : "r"(operands), "r"(&config)                                                                              \
            : "memory", "cc", "rcx");                                                                                  \
    }
PEAK_AMX_LOOP(peak_amx_bf16, "tdpbf16ps")
PEAK_AMX_LOOP(peak_amx_int8, "tdpbssd")
#undef PEAK_AMX_LOOP

#else
// what the compiler's vectors of 16 bytes make of it
inline void peak_fma_generic(int64_t rounds, const void* operands) {
    typedef float Four __attribute__((vector_size(16)));
    Four a, b, sum[14];
    memcpy(&a, operands, 16), memcpy(&b, (const char*)operands + 64, 16);
    for (Four& s : sum) s = a;
    for (; rounds > 0; rounds--)
        for (int i = 0; i < 14; i++) sum[i] += a * b;
    for (const Four& s : sum) __asm__ volatile("" : : "m"(s));
}
#endif

inline std::vector<PeakLoop> peak_loops() {
#if defined(__x86_64__)
    const bool wide = __builtin_cpu_supports("avx512f");
    std::string note;
    const bool tiles = cpu_amx_allowed(note);
    return {{"fp32_fma", "fp32 FMA, 512 bits", wide, 14.0 * 16 * 2, peak_fma_zmm},
            {"fp32_fma", "fp32 FMA, 256 bits", !wide && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"),
             14.0 * 8 * 2, peak_fma_ymm},
            {"bf16_dot", "bf16 vdpbf16ps", wide && __builtin_cpu_supports("avx512bf16"), 14.0 * 32 * 2, peak_bf16_zmm},
            {"int8_dot", "int8 vpdpbusd (VNNI)", wide && __builtin_cpu_supports("avx512vnni"), 14.0 * 64 * 2,
             peak_int8_zmm},
            {"amx_bf16", "bf16 AMX", tiles, 4.0 * 16 * 16 * 32 * 2, peak_amx_bf16},
            {"amx_int8", "int8 AMX", tiles, 4.0 * 16 * 16 * 64 * 2, peak_amx_int8}};
#else
    return {{"fp32_fma", "fp32 multiply-add, 128 bits", true, 14.0 * 4 * 2, peak_fma_generic}};
#endif
}

// operations a second of all threads together
inline double measure_peak(const PeakLoop& loop, double seconds) {
    alignas(64) uint16_t operands[1024];
    for (uint16_t& x : operands) x = 0x3F81;  // 1.0078 as bf16, 1.0117 as fp32 pairs
    const int64_t rounds = 200000;
    const BenchTiming t = bench_time(seconds, 5, [&] {
#if defined(_OPENMP)
#pragma omp parallel
#endif
        loop.run(rounds, operands);
    });
    return loop.operations * (double)rounds * bench_threads() / t.best;
}

// ---------------------------------------------------------------------------------------------------------------------
// bytes

// Reads them all and keeps nothing. n: a multiple of 512
#if defined(__x86_64__)
#define READ_LOOP(FUNCTION, LOAD, WIDTH, BYTES)                                                             \
    inline void FUNCTION(const char* p, int64_t n) {                                                        \
        const char* end = p + n;                                                                            \
        __asm__ volatile("1: .irp r,0,1,2,3,4,5,6,7\n\t" LOAD " \\r*" BYTES "(%0), %%" WIDTH                \
                         "\\r\n\t.endr\n\tadd $8*" BYTES ", %0\n\tcmp %1, %0\n\tjb 1b"                      \
                         : "+r"(p)                                                                          \
                         : "r"(end)                                                                         \
                         : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7"); \
    }
READ_LOOP(read_bytes_xmm, "movups", "xmm", "16")
READ_LOOP(read_bytes_ymm, "vmovups", "ymm", "32")
READ_LOOP(read_bytes_zmm, "vmovups", "zmm", "64")
#undef READ_LOOP
#endif
inline void read_bytes(const char* p, int64_t n) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) read_bytes_zmm(p, n);
    else if (__builtin_cpu_supports("avx")) read_bytes_ymm(p, n);
    else read_bytes_xmm(p, n);
#else
    uint64_t sum = 0, x;
    for (int64_t i = 0; i < n; i += 8) memcpy(&x, p + i, 8), sum += x;
    __asm__ volatile("" : : "r"(sum));
#endif
}

inline CeilingBandwidth measure_bandwidth(int64_t size, double seconds) {
    const int threads = bench_threads();
    const int64_t part = std::max<int64_t>(size / threads / 1024 * 1024, 1024), half = part / 2 / 512 * 512;
    const int rounds = (int)std::max<int64_t>(1, (64 << 20) / size);
    Buffer<char> memory;
    memory.allocate((size_t)(part * threads), "the bandwidth benchmark");
    auto on_each_part = [&](const auto& f) {
#if defined(_OPENMP)
#pragma omp parallel for schedule(static, 1)
#endif
        for (int t = 0; t < threads; t++)
            for (int i = 0; i < rounds; i++) f(memory.data + t * part);
    };
    on_each_part([&](char* p) { memset(p, 1, (size_t)part); });
    const BenchTiming read = bench_time(seconds, 5, [&] { on_each_part([&](char* p) { read_bytes(p, part); }); });
    const BenchTiming copy =
        bench_time(seconds, 5, [&] { on_each_part([&](char* p) { memcpy(p + half, p, (size_t)half); }); });
    const double moved = (double)rounds * threads;
    return {(double)(part * threads), moved * (double)part / read.best, moved * 2.0 * (double)half / copy.best};
}

// ---------------------------------------------------------------------------------------------------------------------
// all of them

inline Ceilings measure_ceilings(double seconds) {
    Ceilings c;
    c.threads = bench_threads();
    for (const PeakLoop& loop : peak_loops())
        if (loop.there) c.peaks.push_back({loop.key, loop.name, measure_peak(loop, seconds)});
    for (int64_t size : {256ll << 10, 1ll << 20, 4ll << 20, 16ll << 20, 64ll << 20, 256ll << 20})
        c.memory.push_back(measure_bandwidth(size, seconds));
    return c;
}

// The fastest instructions for such numbers. bf16 factors may be multiplied as fp32, too
inline const CeilingPeak* ceiling_peak(const Ceilings& c, BenchUnit unit) {
    const CeilingPeak* best = nullptr;
    for (const CeilingPeak& p : c.peaks) {
        const bool bf16_only = !strcmp(p.key, "bf16_dot") || !strcmp(p.key, "amx_bf16");
        if (strcmp(p.key, "fp32_fma") && !(bf16_only && unit == BenchUnit::bf16)) continue;
        if (!best || p.rate > best->rate) best = &p;
    }
    return best;
}

// of the smallest measured working set that is not smaller than w's
inline const CeilingBandwidth& ceiling_memory(const Ceilings& c, const BenchWork& w) {
    const double resident = w.resident > 0 ? w.resident : w.bytes();
    for (const CeilingBandwidth& b : c.memory)
        if (resident <= b.size) return b;
    return c.memory.back();
}

// What the machine needs for w at the least, and what binds it
struct CeilingBound {
    double seconds = 0.0;
    std::string by;
};
inline CeilingBound ceiling_bound(const Ceilings& c, const BenchWork& w) {
    const CeilingPeak* peak = ceiling_peak(c, w.unit);
    const CeilingBandwidth& b = ceiling_memory(c, w);
    const bool copies = 2.0 * w.written > w.read;  // at least half as much written as read: the ceiling of a copy
    const double compute = peak && w.flops > 0 ? w.flops / peak->rate : 0.0,
                 move = w.bytes() > 0 ? w.bytes() / (copies ? b.copy : b.read) : 0.0;
    if (compute >= move) return {compute, peak ? peak->name : ""};
    return {move, format("%s, %s", copies ? "copy" : "read", bytes_text(b.size).c_str())};
}

// of work that is done one after the other; by: what binds the longest part
inline CeilingBound ceiling_bound(const Ceilings& c, const std::vector<BenchWork>& work) {
    CeilingBound all, longest;
    for (const BenchWork& w : work) {
        const CeilingBound b = ceiling_bound(c, w);
        all.seconds += b.seconds;
        if (b.seconds > longest.seconds) longest = b;
    }
    all.by = longest.by;
    return all;
}
