// Which instructions this CPU has. The loops whose speed depends on them (products, attention) are compiled once for each
// row of CpuIsa (kernels/cpu/each_isa.h), and one binary takes the best that the CPU it runs on has.
//
// TRAIN_QRL_CPU_ISA=portable|avx2|avx512|avx512_bf16|amx takes a lesser one, as ONEDNN_MAX_CPU_ISA does: to compare, or to
// repeat on one machine the bits of another, for the rows differ in rounding (gemm_loops.h). amx_stand_in computes what AMX
// would in plain loops, on any machine and very slowly: for tests.
//
// The trap: the operating system must agree. AVX-512 needs its registers saved at a switch (what __builtin_cpu_supports
// asks); AMX, whose tiles are 8 KB a thread, is off until a process asks for it, and the kernel may refuse.
#pragma once
#include <cstdlib>
#include <cstring>
#include <string>
#include "error.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

// from least to most; each row has the instructions of those before it
enum class CpuIsa { portable, avx2, avx512, avx512_bf16, amx, amx_stand_in };

inline const char* cpu_isa_name(CpuIsa isa) {
    switch (isa) {
        case CpuIsa::portable:
            return "portable loops";
        case CpuIsa::avx2:
            return "AVX2";
        case CpuIsa::avx512:
            return "AVX-512";
        case CpuIsa::avx512_bf16:
            return "AVX-512 BF16";
        case CpuIsa::amx:
            return "AMX";
        case CpuIsa::amx_stand_in:
            return "AMX, computed in plain loops";
    }
    return "";
}

struct CpuIsaChoice {
    CpuIsa isa = CpuIsa::portable;
    std::string note;  // what the user should know of it, or empty
};

// May this process use the tiles? note: why not, where the CPU has them
inline bool cpu_amx_allowed(std::string& note) {
#if defined(__x86_64__) && defined(__linux__)
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 24 & 1) || !(d >> 22 & 1))
        return false;                                                     // AMX-TILE, AMX-BF16
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;  // OSXSAVE
    unsigned low;
    __asm__ volatile("xgetbv" : "=a"(low) : "c"(0) : "edx");
    const unsigned tiles = 3u << 17;  // XTILECFG and XTILEDATA are saved at a switch
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    if ((low & tiles) == tiles && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0) return true;
    note = "this CPU has AMX, but its operating system does not let a program use it; AVX-512 is used";
#else
    (void)note;
#endif
    return false;
}

// the best that the CPU has
inline CpuIsaChoice cpu_isa_detect() {
    CpuIsaChoice best;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool pairs = avx512 && __builtin_cpu_supports("avx512bf16");
    best.isa = pairs ? CpuIsa::avx512_bf16 : avx512 ? CpuIsa::avx512 : avx2 ? CpuIsa::avx2 : CpuIsa::portable;
    if (pairs && cpu_amx_allowed(best.note)) best.isa = CpuIsa::amx;
#endif
    return best;
}

// AMD's vdpbf16ps has twice the rate of fp32's multiply-add, Intel's half of it (measured: 900 to 449 and 230 to 445 GFLOP/s)
inline bool cpu_fast_dot() {
#if defined(__x86_64__)
    return __builtin_cpu_is("amd");
#else
    return false;
#endif
}

// what TRAIN_QRL_CPU_ISA asks for (null: nothing), within what there is; unasked, vdpbf16ps only where it is the faster way
inline CpuIsaChoice cpu_isa_choose(const char* asked, CpuIsaChoice best) {
    if (!asked || !*asked) {
        if (best.isa == CpuIsa::avx512_bf16 && !cpu_fast_dot()) best.isa = CpuIsa::avx512;
        return best;
    }
    const char* names[] = {"portable", "avx2", "avx512", "avx512_bf16", "amx", "amx_stand_in"};
    for (int i = 0; i < 6; i++) {
        if (strcmp(asked, names[i]) != 0) continue;
        const CpuIsa isa = (CpuIsa)i;
        if (isa > best.isa && isa != CpuIsa::amx_stand_in)
            fail_usage("TRAIN_QRL_CPU_ISA=%s: this CPU has %s", asked, cpu_isa_name(best.isa));
        return {isa, ""};
    }
    fail_usage("TRAIN_QRL_CPU_ISA=%s: portable, avx2, avx512, avx512_bf16, amx or amx_stand_in", asked);
}

inline CpuIsaChoice& cpu_isa_choice() {
    static CpuIsaChoice choice = cpu_isa_choose(getenv("TRAIN_QRL_CPU_ISA"), cpu_isa_detect());
    return choice;
}

inline CpuIsa cpu_isa() { return cpu_isa_choice().isa; }

// the instructions for all that is not a product of tiles
inline CpuIsa cpu_isa_vectors() {
    static const CpuIsa best = cpu_isa_detect().isa;
    const CpuIsa isa = cpu_isa();
    if (isa == CpuIsa::amx) return CpuIsa::avx512_bf16;
    if (isa == CpuIsa::amx_stand_in) return best < CpuIsa::avx512 ? best : CpuIsa::avx512;
    return isa;
}

// are products of bf16 faster than those of fp32?
inline bool cpu_fast_bf16() {
    return cpu_isa() == CpuIsa::amx || (cpu_isa() == CpuIsa::avx512_bf16 && cpu_fast_dot());
}
