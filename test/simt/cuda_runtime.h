// Stands in for the CUDA toolkit's header of the same name when g++ compiles with -DTRAIN_QRL_SIMT -I test/simt:
// qualifiers, vector types, built-in variables, intrinsics, and the part of the runtime API that the tree uses. See
// simt.h. Streams are synchronous. Memory from cudaMalloc is filled with 0xFF, NaN in fp32 and bf16.
#pragma once
#include <cmath>
#include "simt.h"

#define __global__ inline
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static thread_local
#define __constant__ static

// ---------------------------------------------------------------------------------------------------------------------
// vector types; loads of 16 bytes go through them whatever the element type, hence may_alias

#define SIMT_VECTOR(type, name, align)                                       \
    struct __attribute__((may_alias, aligned(align / 2))) name##2 {          \
        type x, y;                                                           \
    };                                                                       \
    struct __attribute__((may_alias, aligned(align))) name##4 {              \
        type x, y, z, w;                                                     \
    };                                                                       \
    inline name##2 make_##name##2(type x, type y) { return name##2 {x, y}; } \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return name##4 {x, y, z, w}; }
SIMT_VECTOR(float, float, 16)
SIMT_VECTOR(int, int, 16)
SIMT_VECTOR(unsigned, uint, 16)
#undef SIMT_VECTOR

// ---------------------------------------------------------------------------------------------------------------------
// built-in variables

#define threadIdx (simt_thread->index)
#define blockIdx (simt_block->index)
#define blockDim (simt_block->dim)
#define gridDim (simt_block->grid)
static constexpr int warpSize = 32;

// ---------------------------------------------------------------------------------------------------------------------
// barriers, shuffles, votes; macros, so that a fault names the line

#define SIMT_TEXT_(x) #x
#define SIMT_TEXT(x) SIMT_TEXT_(x)
#define SIMT_SITE __FILE__ ":" SIMT_TEXT(__LINE__)

#define __syncthreads() simt_syncthreads(SIMT_SITE)
#define __syncwarp \
    SimtSyncwarp { SIMT_SITE }
#define __shfl_sync(mask, ...) simt_shuffle(SIMT_SITE, SIMT_SHFL, mask, __VA_ARGS__)
#define __shfl_up_sync(mask, ...) simt_shuffle(SIMT_SITE, SIMT_SHFL_UP, mask, __VA_ARGS__)
#define __shfl_down_sync(mask, ...) simt_shuffle(SIMT_SITE, SIMT_SHFL_DOWN, mask, __VA_ARGS__)
#define __shfl_xor_sync(mask, ...) simt_shuffle(SIMT_SITE, SIMT_SHFL_XOR, mask, __VA_ARGS__)
#define __ballot_sync(mask, yes) simt_ballot(SIMT_SITE, mask, yes)
#define __any_sync(mask, yes) (simt_ballot(SIMT_SITE, mask, yes) != 0)
#define __all_sync(mask, yes) simt_all(SIMT_SITE, mask, yes)

// ---------------------------------------------------------------------------------------------------------------------
// memory

template <class T>
T __ldg(const T* p) {
    return *p;
}
template <class T>
T __ldcs(const T* p) {
    return *p;
}
template <class T>
T __ldcg(const T* p) {
    return *p;
}
template <class T>
void __stcs(T* p, T x) {
    *p = x;
}
template <class T>
void __stcg(T* p, T x) {
    *p = x;
}

inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() {}

// old = *p; *p = f(old); returns old
template <class T, class F>
T simt_atomic(T* p, F f) {
    typedef std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t> Bits;
    static_assert(sizeof(T) == sizeof(Bits), "atomics of 4 or 8 bytes");
    Bits* bits = reinterpret_cast<Bits*>(p);
    Bits seen = __atomic_load_n(bits, __ATOMIC_RELAXED), next;
    T old;
    do {
        memcpy(&old, &seen, sizeof(T));
        T x = f(old);
        memcpy(&next, &x, sizeof(T));
    } while (!__atomic_compare_exchange_n(bits, &seen, next, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
    return old;
}

// the second parameter's type is not deduced, so that atomicAdd(&f, 1) converts
template <class T>
struct SimtSame {
    typedef T type;
};
template <class T>
T atomicAdd(T* p, typename SimtSame<T>::type x) {
    return simt_atomic(p, [=](T old) { return (T)(old + x); });
}
template <class T>
T atomicSub(T* p, typename SimtSame<T>::type x) {
    return simt_atomic(p, [=](T old) { return (T)(old - x); });
}
template <class T>
T atomicMax(T* p, typename SimtSame<T>::type x) {
    return simt_atomic(p, [=](T old) { return old > x ? old : x; });
}
template <class T>
T atomicMin(T* p, typename SimtSame<T>::type x) {
    return simt_atomic(p, [=](T old) { return old < x ? old : x; });
}
template <class T>
T atomicAnd(T* p, typename SimtSame<T>::type x) {
    return simt_atomic(p, [=](T old) { return (T)(old & x); });
}
template <class T>
T atomicOr(T* p, typename SimtSame<T>::type x) {
    return simt_atomic(p, [=](T old) { return (T)(old | x); });
}
template <class T>
T atomicExch(T* p, typename SimtSame<T>::type x) {
    return simt_atomic(p, [=](T) { return x; });
}
template <class T>
T atomicCAS(T* p, typename SimtSame<T>::type expected, typename SimtSame<T>::type x) {
    return simt_atomic(p, [=](T old) { return old == expected ? x : old; });
}

// ---------------------------------------------------------------------------------------------------------------------
// arithmetic

using std::max;
using std::min;
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline int __float2int_rn(float x) { return (int)nearbyintf(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }

// ---------------------------------------------------------------------------------------------------------------------
// runtime API

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorIllegalAddress = 700,
    cudaErrorMisalignedAddress = 716,
    cudaErrorLaunchFailure = 719,
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault,
};
struct SimtStream {};
typedef SimtStream* cudaStream_t;

inline const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorMemoryAllocation:
            return "out of memory";
        default:
            return "an error of the simulated runtime";
    }
}

// A launch that failed has thrown, so nothing is left to ask for.
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

inline cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    *stream = new SimtStream;
    return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    return cudaSuccess;
}

template <class T>
cudaError_t cudaMalloc(T** p, size_t bytes) {
    *p = nullptr;
    if (bytes == 0) return cudaSuccess;
    if (bytes > PTRDIFF_MAX) return cudaErrorMemoryAllocation;
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, bytes) != 0) return cudaErrorMemoryAllocation;
    memset(memory, 0xFF, bytes);
    *p = static_cast<T*>(memory);
    return cudaSuccess;
}
inline cudaError_t cudaFree(void* p) {
    free(p);
    return cudaSuccess;
}
template <class T>
cudaError_t cudaMallocAsync(T** p, size_t bytes, cudaStream_t) {
    return cudaMalloc(p, bytes);
}
inline cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }

inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    if (bytes) memcpy(to, from, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t = nullptr) {
    return cudaMemcpy(to, from, bytes, kind);
}
inline cudaError_t cudaMemset(void* p, int byte, size_t bytes) {
    if (bytes) memset(p, byte, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int byte, size_t bytes, cudaStream_t = nullptr) {
    return cudaMemset(p, byte, bytes);
}
