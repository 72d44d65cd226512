// A program compiled for a newer CPU (MARCH=native elsewhere) dies of SIGILL on this one, even for --version. So before
// anything else it compares the instructions that the compiler was allowed to use with those that the CPU has.
// The trap: the check itself may use none of them, and static initialisers run before main. Everything here is compiled
// for the first x86-64 and calls nothing that is not; the check is a constructor of the earliest priority a program has.
#pragma once
#if defined(__x86_64__) && defined(__GNUC__)
#include <unistd.h>
#include <cstddef>

#define CPU_BASELINE __attribute__((target("arch=x86-64"), noinline))

struct CpuFeature {
    const char* name;
    bool compiled, supported;  // may the program use it, has the CPU got it
};

// of -march, by the compiler's macro; those that a loop or an intrinsic of this program could become
#define CPU_FEATURES(ENTRY)             \
    ENTRY("sse3", __SSE3__)             \
    ENTRY("ssse3", __SSSE3__)           \
    ENTRY("sse4.1", __SSE4_1__)         \
    ENTRY("sse4.2", __SSE4_2__)         \
    ENTRY("popcnt", __POPCNT__)         \
    ENTRY("avx", __AVX__)               \
    ENTRY("fma", __FMA__)               \
    ENTRY("bmi", __BMI__)               \
    ENTRY("bmi2", __BMI2__)             \
    ENTRY("avx2", __AVX2__)             \
    ENTRY("avx512f", __AVX512F__)       \
    ENTRY("avx512bw", __AVX512BW__)     \
    ENTRY("avx512cd", __AVX512CD__)     \
    ENTRY("avx512dq", __AVX512DQ__)     \
    ENTRY("avx512vl", __AVX512VL__)     \
    ENTRY("avx512ifma", __AVX512IFMA__) \
    ENTRY("avx512vbmi", __AVX512VBMI__) \
    ENTRY("avx512vnni", __AVX512VNNI__) \
    ENTRY("avx512bf16", __AVX512BF16__)

// a macro that is defined is 1, and one that is not stays its own name
#define CPU_TEXT(macro) #macro
#define CPU_IS_ONE(macro) (CPU_TEXT(macro)[0] == '1')

// The line for a CPU that lacks what the program was compiled for -> text [size], ended by 0; 0: it lacks nothing
CPU_BASELINE inline size_t cpu_refusal(const CpuFeature* features, size_t n, char* text, size_t size) {
    size_t length = 0, missing = 0;
    auto add = [&](const char* s) CPU_BASELINE {
        for (; *s && length + 1 < size; s++) text[length++] = *s;
    };
    for (size_t i = 0; i < n; i++) {
        if (!features[i].compiled || features[i].supported) continue;
        add(missing++ ? ", " : "train_qrl: this program was compiled for a CPU with ");
        add(features[i].name);
    }
    if (missing) add(", which this CPU lacks; compile it here (make), or for older CPUs (make MARCH=x86-64-v2)\n");
    text[length] = 0;
    return length;
}

CPU_BASELINE inline void cpu_check() {
    __builtin_cpu_init();
    const CpuFeature features[] = {
#define CPU_FEATURE(name, macro) {name, CPU_IS_ONE(macro), __builtin_cpu_supports(name) != 0},
        CPU_FEATURES(CPU_FEATURE)
#undef CPU_FEATURE
    };
    char text[512];
    const size_t length = cpu_refusal(features, sizeof(features) / sizeof(features[0]), text, sizeof(text));
    if (length == 0) return;
    if (write(2, text, length) < 0) {}  // nobody reads it: the exit code is all there is
    _exit(1);
}

// 101: the first priority that is not the system's
__attribute__((constructor(101), used)) CPU_BASELINE static void cpu_check_first() { cpu_check(); }
#endif
