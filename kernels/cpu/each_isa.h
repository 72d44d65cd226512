// Compiles the loops of one file for each instruction set, in a namespace each:
//   #define ISA_FILE "attention_loops.h"
//   #include "each_isa.h"
// and `isa_avx512::attention_rows(...)` and the like are there. ISA_CALL(function)(arguments) takes the one of this CPU.
//
// In the file: ISA tells which (ISA_PORTABLE, ISA_AVX2 ...), so vectors can be typed by it; everything must be inline
// functions, templates or constants, without includes. The trap: clang gives the target to functions alone, not to lambdas
// and not to what OpenMP makes of a parallel region. So both stay outside, in the functions that call these.
#if !defined(ISA_ONCE)
#define ISA_ONCE
#include "../../runtime/cpu_isa.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define ISA_PORTABLE 0     // the generic vectors of GCC and Clang: SSE2, NEON, or whatever the build is for
#define ISA_AVX2 1         // AVX2 and FMA
#define ISA_AVX512 2       // AVX-512 F, BW, VL, DQ
#define ISA_AVX512_BF16 3  // and vdpbf16ps

#if defined(__clang__)
#define ISA_PRAGMA(text) _Pragma(#text)
#define ISA_TARGET(list) ISA_PRAGMA(clang attribute push(__attribute__((target(list))), apply_to = function))
#define ISA_TARGET_END _Pragma("clang attribute pop")
#else
#define ISA_PRAGMA(text) _Pragma(#text)
#define ISA_TARGET(list) _Pragma("GCC push_options") ISA_PRAGMA(GCC target(list))
#define ISA_TARGET_END _Pragma("GCC pop_options")
#endif
#define ISA_LIST_AVX2 "avx2,fma,f16c"
#define ISA_LIST_AVX512 "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq"
#define ISA_LIST_AVX512_BF16 "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16"

// the one of this CPU
#if defined(__x86_64__)
#define ISA_CALL(function)                                                \
    (cpu_isa_vectors() == CpuIsa::avx512_bf16 ? isa_avx512_bf16::function \
     : cpu_isa_vectors() == CpuIsa::avx512    ? isa_avx512::function      \
     : cpu_isa_vectors() == CpuIsa::avx2      ? isa_avx2::function        \
                                              : isa_portable::function)
#else
#define ISA_CALL(function) isa_portable::function
#endif
#endif

#define ISA ISA_PORTABLE
namespace isa_portable {
#include ISA_FILE
}
#undef ISA
#if defined(__x86_64__)
ISA_TARGET(ISA_LIST_AVX2)
#define ISA ISA_AVX2
namespace isa_avx2 {
#include ISA_FILE
}
#undef ISA
ISA_TARGET_END
ISA_TARGET(ISA_LIST_AVX512)
#define ISA ISA_AVX512
namespace isa_avx512 {
#include ISA_FILE
}
#undef ISA
ISA_TARGET_END
ISA_TARGET(ISA_LIST_AVX512_BF16)
#define ISA ISA_AVX512_BF16
namespace isa_avx512_bf16 {
#include ISA_FILE
}
#undef ISA
ISA_TARGET_END
#endif
#undef ISA_FILE
