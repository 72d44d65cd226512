// Stands in for the CUDA toolkit's header of the same name when g++ compiles with -DTRAIN_QRL_SIMT -I test/simt:
// qualifiers, vector types, built-in variables, intrinsics, and the part of the runtime API that the tree uses. See
// simt.h (how kernels are run), simt_stream.h (streams, events, graphs), simt_memory.h (memory and copies).
#pragma once
#include <cmath>
#include "simt_memory.h"

#define __global__ inline
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
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
SIMT_VECTOR(short, short, 8)
SIMT_VECTOR(unsigned short, ushort, 8)
SIMT_VECTOR(signed char, char, 4)
SIMT_VECTOR(unsigned char, uchar, 4)
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
#define __syncthreads_count(yes) simt_syncthreads(SIMT_SITE, yes)
#define __syncthreads_or(yes) (simt_syncthreads(SIMT_SITE, yes) != 0)
#define __syncthreads_and(yes) simt_syncthreads_and(SIMT_SITE, yes)
#define __trap() simt_trap(SIMT_SITE)
#define __syncwarp \
    SimtSyncwarp { SIMT_SITE }
#define __shfl_sync(mask, ...) simt_shuffle(SIMT_SITE, SIMT_SHFL, mask, __VA_ARGS__)
#define __shfl_up_sync(mask, ...) simt_shuffle(SIMT_SITE, SIMT_SHFL_UP, mask, __VA_ARGS__)
#define __shfl_down_sync(mask, ...) simt_shuffle(SIMT_SITE, SIMT_SHFL_DOWN, mask, __VA_ARGS__)
#define __shfl_xor_sync(mask, ...) simt_shuffle(SIMT_SITE, SIMT_SHFL_XOR, mask, __VA_ARGS__)
#define __ballot_sync(mask, yes) simt_ballot(SIMT_SITE, mask, yes)
#define __any_sync(mask, yes) (simt_ballot(SIMT_SITE, mask, yes) != 0)
#define __all_sync(mask, yes) simt_all(SIMT_SITE, mask, yes)
#define __reduce_add_sync(mask, x) simt_reduce(SIMT_SITE, "__reduce_add_sync", mask, x, SimtAdd())
#define __reduce_min_sync(mask, x) simt_reduce(SIMT_SITE, "__reduce_min_sync", mask, x, SimtMin())
#define __reduce_max_sync(mask, x) simt_reduce(SIMT_SITE, "__reduce_max_sync", mask, x, SimtMax())
#define __reduce_and_sync(mask, x) simt_reduce(SIMT_SITE, "__reduce_and_sync", mask, (unsigned)(x), SimtAnd())
#define __reduce_or_sync(mask, x) simt_reduce(SIMT_SITE, "__reduce_or_sync", mask, (unsigned)(x), SimtOr())
#define __reduce_xor_sync(mask, x) simt_reduce(SIMT_SITE, "__reduce_xor_sync", mask, (unsigned)(x), SimtXor())
#define __match_any_sync(mask, x) simt_match_any(SIMT_SITE, mask, x)

struct SimtAdd {
    unsigned operator()(unsigned a, unsigned b) const { return a + b; }  // wraps
};
struct SimtMin {
    template <class T>
    T operator()(T a, T b) const {
        return a < b ? a : b;
    }
};
struct SimtMax {
    template <class T>
    T operator()(T a, T b) const {
        return a > b ? a : b;
    }
};
struct SimtAnd {
    unsigned operator()(unsigned a, unsigned b) const { return a & b; }
};
struct SimtOr {
    unsigned operator()(unsigned a, unsigned b) const { return a | b; }
};
struct SimtXor {
    unsigned operator()(unsigned a, unsigned b) const { return a ^ b; }
};

template <class T, class F>
void simt_reduce_compute(SimtThread* lanes, unsigned group) {
    T result = *static_cast<T*>(lanes[__builtin_ctz(group)].operands);
    for (unsigned m = group & (group - 1); m; m &= m - 1)
        result = (T)F()(result, *static_cast<T*>(lanes[__builtin_ctz(m)].operands));
    for (unsigned m = group; m; m &= m - 1) *static_cast<T*>(lanes[__builtin_ctz(m)].operands) = result;
}

template <class T, class F>
T simt_reduce(const char* site, const char* name, unsigned mask, T x, F) {
    static_assert(std::is_same<T, int>::value || std::is_same<T, unsigned>::value, "reductions of int and unsigned");
    static const SimtTogether together = {name, false, simt_reduce_compute<T, F>};
    simt_together(site, &together, mask, &x);
    return x;
}

struct SimtMatch {
    uint64_t value;
    unsigned equal;
};

inline void simt_match_compute(SimtThread* lanes, unsigned group) {
    for (unsigned m = group; m; m &= m - 1) {
        SimtMatch& mine = *static_cast<SimtMatch*>(lanes[__builtin_ctz(m)].operands);
        mine.equal = 0;
        for (unsigned n = group; n; n &= n - 1)
            if (static_cast<SimtMatch*>(lanes[__builtin_ctz(n)].operands)->value == mine.value) mine.equal |= n & -n;
    }
}

// lanes of the mask whose x has the same bits
template <class T>
unsigned simt_match_any(const char* site, unsigned mask, T x) {
    static const SimtTogether together = {"__match_any_sync", false, simt_match_compute};
    SimtMatch match = {0, 0};
    memcpy(&match.value, &x, sizeof(T));
    simt_together(site, &together, mask, &match);
    return match.equal;
}

// lanes that have not left; which of them run together is not defined here, as it is not on a GPU
inline unsigned __activemask() { return simt_block->warp[simt_thread->linear / 32].alive; }

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
inline void __threadfence_system() { __threadfence(); }
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
// one instruction on a GPU; libm's is a call, which took a third of a simulated rollout
inline float simt_fmaxf(float x, float y) { return x > y || y != y ? x : y; }
inline float simt_fminf(float x, float y) { return x < y || y != y ? x : y; }
#define fmaxf(x, y) simt_fmaxf(x, y)
#define fminf(x, y) simt_fminf(x, y)
inline float __fdividef(float x, float y) { return x / y; }
inline int __float2int_rn(float x) { return (int)nearbyintf(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __saturatef(float x) { return x > 0 ? x < 1 ? x : 1 : 0; }
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline int __float_as_int(float x) { return (int)__float_as_uint(x); }
inline float __int_as_float(int bits) { return __uint_as_float((unsigned)bits); }

// rounded by themselves, never contracted to fma
inline float __fmul_rn(float x, float y) {
    volatile float z = x * y;
    return z;
}
inline float __fadd_rn(float x, float y) {
    volatile float z = x + y;
    return z;
}

// c plus the dot product of four bytes
inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 32; i += 8) c += (int8_t)(a >> i) * (int8_t)(b >> i);
    return c;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 32; i += 8) c += (uint8_t)(a >> i) * (uint8_t)(b >> i);
    return c;
}

// ---------------------------------------------------------------------------------------------------------------------
// the device: "simt", of the architecture in simt_settings; TRAIN_QRL_SIMT_DEVICES=0: there is none

enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
    int major, minor, multiProcessorCount, maxThreadsPerBlock, warpSize;
};
struct cudaFuncAttributes {
    size_t sharedSizeBytes;  // static
    int maxThreadsPerBlock, maxDynamicSharedSizeBytes;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

inline cudaError_t cudaGetDeviceCount(int* count) {
    const char* text = getenv("TRAIN_QRL_SIMT_DEVICES");
    *count = text ? atoi(text) : 1;
    return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}
inline cudaError_t simt_check_device(int device) {
    int count;
    cudaError_t error = cudaGetDeviceCount(&count);
    return error != cudaSuccess ? error : device < 0 || device >= count ? cudaErrorInvalidDevice : cudaSuccess;
}
inline int& simt_device() {
    static thread_local int device = 0;
    return device;
}
inline cudaError_t cudaGetDevice(int* device) {
    *device = simt_device();
    return simt_check_device(*device);
}
inline cudaError_t cudaSetDevice(int device) {
    cudaError_t error = simt_check_device(device);
    if (error == cudaSuccess) simt_device() = device;
    return error;
}
inline cudaError_t cudaDriverGetVersion(int* version) {
    *version = 13000;
    return cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
    cudaError_t error = simt_check_device(device);
    if (error != cudaSuccess) return error;
    size_t unused;
    *p = cudaDeviceProp();
    strcpy(p->name, "simt");
    cudaMemGetInfo(&unused, &p->totalGlobalMem);
    p->sharedMemPerBlock = 48 * 1024;
    p->sharedMemPerBlockOptin = simt_max_shared(simt_settings.arch);
    p->sharedMemPerMultiprocessor = p->sharedMemPerBlockOptin + 1024;
    p->major = simt_settings.arch / 10;
    p->minor = simt_settings.arch % 10;
    p->multiProcessorCount = 8;
    p->maxThreadsPerBlock = SIMT_MAX_THREADS;
    p->warpSize = warpSize;
    return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    cudaError_t error = cudaGetDeviceProperties(&p, device);
    if (error != cudaSuccess) return error;
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock:
            *value = p.maxThreadsPerBlock;
            return cudaSuccess;
        case cudaDevAttrWarpSize:
            *value = p.warpSize;
            return cudaSuccess;
        case cudaDevAttrMultiProcessorCount:
            *value = p.multiProcessorCount;
            return cudaSuccess;
        case cudaDevAttrComputeCapabilityMajor:
            *value = p.major;
            return cudaSuccess;
        case cudaDevAttrComputeCapabilityMinor:
            *value = p.minor;
            return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            *value = (int)p.sharedMemPerMultiprocessor;
            return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = (int)p.sharedMemPerBlockOptin;
            return cudaSuccess;
    }
    return cudaErrorInvalidValue;
}
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel kernel) {
    const SimtShared& shared = simt_shared(reinterpret_cast<const void*>(kernel));
    *attributes = cudaFuncAttributes{shared.fixed, SIMT_MAX_THREADS, (int)shared.allowed};
    return simt_check_device(simt_device());
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int bytes) {
    SimtShared& shared = simt_shared(reinterpret_cast<const void*>(kernel));
    if (bytes < 0 || shared.fixed + (size_t)bytes > simt_max_shared(simt_settings.arch)) return cudaErrorInvalidValue;
    shared.allowed = (size_t)bytes;
    return cudaSuccess;
}
