// Tensor-core and asynchronous-copy instructions (sm_80 and later), each behind a small named function. Only this file
// holds PTX; test/simt/ supplies the same functions in plain C++, with the fragment layouts of the PTX ISA manual
// (section "Matrix multiply-accumulate operation using mma instruction"), so that a wrong fragment index shows there.
//
// Fragments of one lane, g = lane / 4, t = lane % 4; 16-bit elements in pairs, the lower index in the lower half:
//   m16n8k16   A (16,16) row-major: a[0] = A[g][2t,2t+1], a[1] = A[g+8][2t..], a[2] = A[g][2t+8..], a[3] = A[g+8][2t+8..]
//              B (16,8), given as its transpose (8,16) row-major: b[0] = Bt[g][2t,2t+1], b[1] = Bt[g][2t+8..]
//              D (16,8) fp32: d[0,1] = D[g][2t,2t+1], d[2,3] = D[g+8][2t,2t+1]
//   m16n8k32   8-bit elements in fours: a[0] = A[g][4t..4t+3], a[1] = A[g+8][4t..], a[2] = A[g][4t+16..], a[3] =
//              A[g+8][4t+16..]; b[0] = Bt[g][4t..4t+3], b[1] = Bt[g][4t+16..]; D as above
// All 32 lanes of a warp must call the mma and ldmatrix functions together.
#pragma once
#include "device.h"

#if defined(TRAIN_QRL_SIMT)
#include <simt_ptx.h>
#elif defined(__CUDACC__)

// d += a b, bf16 operands, fp32 accumulation
__device__ inline void mma_m16n8k16_bf16(float* d, const uint32_t* a, const uint32_t* b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += a b, fp16 operands, fp32 accumulation
__device__ inline void mma_m16n8k16_fp16(float* d, const uint32_t* a, const uint32_t* b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += a b, signed 8-bit operands, exact 32-bit accumulation
__device__ inline void mma_m16n8k32_s8(int* d, const uint32_t* a, const uint32_t* b) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += a b, e4m3 operands, fp32 accumulation; sm_89 and later
__device__ inline void mma_m16n8k32_e4m3(float* d, const uint32_t* a, const uint32_t* b) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap();
#endif
}

__device__ inline uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

// Four 8x8 matrices of 16-bit elements. Lane l gives the address of row l % 8 of matrix l / 8: 16 bytes of shared
// memory, 16-byte aligned. r[i] = elements 2t, 2t+1 of row g of matrix i.
__device__ inline void ldmatrix_x4(uint32_t* r, const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// the same, each matrix transposed: r[i] = elements g of rows 2t and 2t+1 of matrix i
__device__ inline void ldmatrix_x4_trans(uint32_t* r, const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// two matrices; lanes 0..15 give the addresses, those of the others are not read (but must be valid)
__device__ inline void ldmatrix_x2(uint32_t* r, const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ inline void ldmatrix_x2_trans(uint32_t* r, const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// Starts a copy of 16 bytes from global to shared memory (both 16-byte aligned); of these the first `bytes` (0 ... 16)
// are read and the rest are zero. It has landed only after cp_async_commit, cp_async_wait and, for other threads, a
// barrier.
__device__ inline void cp_async_16(void* shared, const void* global, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global),
                 "r"(bytes)
                 : "memory");
}

// closes the group of copies that this thread has started since the last commit
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// waits until at most N of this thread's committed groups are still under way
template <int N>
__device__ inline void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}
#endif

#if HAS_KERNELS
// two numbers as bf16 in one register, round to nearest even
__device__ inline uint32_t pack_bf16(float low, float high) {
#if defined(__CUDA_ARCH__)
    uint32_t bits;  // one instruction; float_to_bf16_bits takes five a number
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
#else
    return float_to_bf16_bits(low) | (uint32_t)float_to_bf16_bits(high) << 16;
#endif
}
#endif
