// The functions of the CPU's matrix product for the instructions of this CPU.
#pragma once
#include "gemm_amx.h"
#include "gemm_kernels.h"
#define ISA_FILE "gemm_loops.h"
#include "each_isa.h"

inline GemmKernels gemm_kernels_for(CpuIsa isa) {
    GemmKernels k = ISA_CALL(gemm_kernels_of(cpu_isa_vectors()));
#if defined(__x86_64__)
    if (isa >= CpuIsa::amx) k = gemm_kernels_amx(isa, k);
#endif
    return k;
}

// those of this CPU
inline const GemmKernels& gemm_kernels() {
    static GemmKernels k = gemm_kernels_for(cpu_isa());
    if (k.isa != cpu_isa()) k = gemm_kernels_for(cpu_isa());  // a test has chosen another
    return k;
}
