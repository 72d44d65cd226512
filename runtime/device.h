// What the three builds share. The same source is compiled by g++ (CPU loops only), by nvcc (CPU loops and kernels) and
// by g++ with -DTRAIN_QRL_SIMT -I test/simt, where <cuda_runtime.h> is a stand-in that runs the kernels on the CPU.
// Kernels and their launches stand inside #if HAS_KERNELS. They are launched by LAUNCH, declare dynamic shared memory
// by DYNAMIC_SHARED, and move 16 bytes at a time by load128 and store128. The trap: LAUNCH is asynchronous under nvcc,
// so an illegal access shows at a later CUDA_CHECK, not at its own line.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <type_traits>
#include "dtypes.h"
#include "error.h"

#if defined(__CUDACC__) || defined(TRAIN_QRL_SIMT)
#define HAS_KERNELS 1
#include <cuda_runtime.h>
#else
#define HAS_KERNELS 0
#endif
#if defined(__CUDACC__)
#include <nvtx3/nvToolsExt.h>
#endif

#define CEIL_DIV(a, b) (((a) + (b)-1) / (b))

// ---------------------------------------------------------------------------------------------------------------------
// where an operator runs: the last argument of every launcher. Device() is the CPU.

struct Arena;         // runtime/arena.h: the memory plan
struct ScratchStack;  // below: memory for one operator

// batch_invariant: on a GPU, a Linear's forward sums each output in one order whatever the batch, so that sampler and
// trainer agree to the bit. Without it cuBLASLt computes large batches faster and the policy ratio at step 0 is 1 to
// rounding.
#if HAS_KERNELS
struct Device {
    bool cuda = false;
    cudaStream_t stream = nullptr;
    Arena* arena = nullptr;
    ScratchStack* scratch = nullptr;
    bool batch_invariant = true;
};
#else
struct Device {
    static constexpr bool cuda = false;
    Arena* arena = nullptr;
    bool batch_invariant = true;
};
#endif

// A matrix: its first row and the elements from one row to the next. Rows{p, stride} has the T of p.
template <class T>
struct Rows {
    T* p = nullptr;
    int64_t stride = 0;
    HOST_DEVICE T* row(int64_t i) const { return p + i * stride; }
};
template <class T>
Rows(T*, int64_t) -> Rows<T>;

// ---------------------------------------------------------------------------------------------------------------------
// checks, range markers, launches

#if HAS_KERNELS
inline const char* cuda_hint(cudaError_t error) {
    switch (error) {
        case cudaErrorMemoryAllocation:
            return "lower --micro_batch_tokens or --rollout_batch";
        case cudaErrorNoDevice:
        case cudaErrorInsufficientDriver:
            return "is there an NVIDIA GPU, and a driver as new as the toolkit?";
        case cudaErrorNoKernelImageForDevice:
            return "compile for the architecture of this GPU";
        case cudaErrorIllegalAddress:
        case cudaErrorMisalignedAddress:
        case cudaErrorLaunchFailure:
            return "an earlier kernel may be at fault: rerun under compute-sanitizer";
        default:
            return "compute-sanitizer or CUDA_LAUNCH_BLOCKING=1 finds the kernel at fault";
    }
}

inline void cuda_check(cudaError_t error, const char* call, const char* file, int line) {
    if (error != cudaSuccess) fail("%s:%d: %s: %s (%s)", file, line, call, cudaGetErrorString(error), cuda_hint(error));
}
#define CUDA_CHECK(call) cuda_check((call), #call, __FILE__, __LINE__)

// The same where nothing can be thrown, in a destructor: a line. At the end of the program the runtime may have gone first
inline void cuda_warn(cudaError_t error, const char* call, const char* file, int line) {
    if (error == cudaSuccess || error == cudaErrorCudartUnloading) return;
    fprintf(stderr, "warning: %s:%d: %s: %s (%s)\n", file, line, call, cudaGetErrorString(error), cuda_hint(error));
}
#define CUDA_WARN(call) cuda_warn((call), #call, __FILE__, __LINE__)

// Lets a kernel have `bytes` of dynamic shared memory: above 48 KB, its static shared memory included, it must ask. Fails
// where a block of the GPU has less than both. Returns bytes
template <class Kernel>
size_t allow_dynamic_shared(Kernel* kernel, size_t bytes, const char* name, const char* file, int line) {
    cudaFuncAttributes attributes;
    int device = 0, most = 0;
    cuda_check(cudaFuncGetAttributes(&attributes, kernel), name, file, line);
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    if (attributes.sharedSizeBytes + bytes > (size_t)most)
        fail(
            "%s:%d: kernel %s: %zu bytes of dynamic and %zu of static shared memory, and a block of this GPU has at "
            "most "
            "%d; use --device cpu",
            file, line, name, bytes, attributes.sharedSizeBytes, most);
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes), name, file, line);
    return bytes;
}
#endif

// NVTX_RANGE(name): names the enclosing scope in a profiler's timeline; nothing outside nvcc
#if defined(__CUDACC__)
struct NvtxRange {
    explicit NvtxRange(const char* name) { nvtxRangePushA(name); }
    ~NvtxRange() { nvtxRangePop(); }
    NvtxRange(const NvtxRange&) = delete;
    NvtxRange& operator=(const NvtxRange&) = delete;
};
#define NVTX_RANGE(name) NvtxRange nvtx_range_(name)
#else
#define NVTX_RANGE(name) (void)0
#endif

// A number as a type, for a generic lambda that launches one instance of a kernel or another: launch(Int<32>()).
template <int N>
using Int = std::integral_constant<int, N>;

// LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)
// A template kernel is put in parentheses with its arguments written out: LAUNCH((kernel<8, true>), ...).
#if HAS_KERNELS
// once for each place and each size that is larger than those before
#define LAUNCH_SHARED(kernel, bytes)      \
    static size_t launch_allowed_ = 0;    \
    size_t launch_shared_ = (bytes);      \
    if (launch_shared_ > launch_allowed_) \
    launch_allowed_ = allow_dynamic_shared(kernel, launch_shared_, #kernel, __FILE__, __LINE__)
#endif
#if defined(__CUDACC__)
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                    \
    do {                                                                          \
        LAUNCH_SHARED(kernel, shared_bytes);                                      \
        kernel<<<(grid), (block), launch_shared_, (stream)>>>(__VA_ARGS__);       \
        cuda_check(cudaGetLastError(), "launch of " #kernel, __FILE__, __LINE__); \
    } while (0)
#elif defined(TRAIN_QRL_SIMT)
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                                    \
    do {                                                                                                          \
        LAUNCH_SHARED(kernel, shared_bytes);                                                                      \
        simt_launch(#kernel, __FILE__, __LINE__, (grid), (block), launch_shared_, (stream), kernel, __VA_ARGS__); \
    } while (0)
#endif

// Before a loop that indexes registers: nvcc must unroll it, or the array goes to memory. UNROLL_TIMES(n): not more than n
// times. Nothing for the host's compiler, which does not know the pragma
#define UNROLL_PRAGMA_(text) _Pragma(#text)
#if defined(__CUDA_ARCH__)
#define UNROLL _Pragma("unroll")
#define UNROLL_TIMES(n) UNROLL_PRAGMA_(unroll n)
#else
#define UNROLL
#define UNROLL_TIMES(n)
#endif

// DYNAMIC_SHARED(type, name): `type* name` at the start of the block's dynamic shared memory, 16-byte aligned
#if defined(__CUDACC__)
#define DYNAMIC_SHARED(type, name)                                   \
    extern __shared__ __align__(16) unsigned char dynamic_shared_[]; \
    type* name = reinterpret_cast<type*>(dynamic_shared_)
#elif defined(TRAIN_QRL_SIMT)
#define DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(simt_dynamic_shared())
#endif

// ---------------------------------------------------------------------------------------------------------------------
// Memory that lives for one operator, uninitialised. On the host: the heap. On a device: the top of the stack that the
// run's memory plan holds for it (the kernels of one stream run in order, so what a Scratch gives back the next may
// take), or, when that is full or there is none, the stream's memory pool.

#if HAS_KERNELS
struct ScratchStack {
    char* base = nullptr;
    size_t size = 0, used = 0, peak = 0;  // bytes
};
#endif

// waits until everything on the stream has been done
inline void device_synchronize(Device dev) {
#if HAS_KERNELS
    if (dev.cuda) CUDA_CHECK(cudaStreamSynchronize(dev.stream));
#endif
    (void)dev;
}

struct Scratch {
    float* data = nullptr;  // (count)
    Device dev;
    bool from_stack = false;
    size_t bytes;
    Scratch(size_t count, Device on) : dev(on), bytes((count * sizeof(float) + 255) / 256 * 256) {
        if (bytes == 0) return;
#if HAS_KERNELS
        if (dev.cuda && dev.scratch && dev.scratch->base && dev.scratch->used + bytes <= dev.scratch->size) {
            from_stack = true;
            data = reinterpret_cast<float*>(dev.scratch->base + dev.scratch->used);
            dev.scratch->used += bytes;
            if (dev.scratch->used > dev.scratch->peak) dev.scratch->peak = dev.scratch->used;
            return;
        }
        if (dev.cuda) {
            CUDA_CHECK(cudaMallocAsync(reinterpret_cast<void**>(&data), bytes, dev.stream));
            return;
        }
#endif
        data = static_cast<float*>(malloc(bytes));
        if (!data) fail("out of memory: %zu bytes of scratch", bytes);
    }
    // what fails here, such as a free within a capture, spoils what follows
    ~Scratch() noexcept(false) {
        if (!data) return;
#if HAS_KERNELS
        if (from_stack) {
            dev.scratch->used -= bytes;
            return;
        }
        if (dev.cuda) {
            if (std::uncaught_exceptions()) CUDA_WARN(cudaFreeAsync(data, dev.stream));
            else CUDA_CHECK(cudaFreeAsync(data, dev.stream));
            return;
        }
#endif
        free(data);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
};

// Host memory: page-locked for a device, so that copies to and from it need no detour and no wait; else ordinary
struct PinnedBuffer {
    char* data = nullptr;
    size_t size = 0;
    bool pinned = false;
    PinnedBuffer() = default;
    PinnedBuffer(const PinnedBuffer&) = delete;
    PinnedBuffer& operator=(const PinnedBuffer&) = delete;
    ~PinnedBuffer() { release(); }
    void release() {
#if HAS_KERNELS
        if (pinned) CUDA_WARN(cudaFreeHost(data));
#endif
        if (!pinned) free(data);
        data = nullptr;
        size = 0;
        pinned = false;
    }
};

inline void pinned_allocate(PinnedBuffer& b, size_t bytes, Device dev = Device()) {
    b.release();
    if (bytes == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        CUDA_CHECK(cudaMallocHost(reinterpret_cast<void**>(&b.data), bytes));
        b.size = bytes;
        b.pinned = true;
        return;
    }
#endif
    (void)dev;
    b.data = static_cast<char*>(malloc(bytes));
    if (!b.data) fail("out of memory: %zu bytes of host memory", bytes);
    b.size = bytes;
}

// ---------------------------------------------------------------------------------------------------------------------
// copies between host and device, counted: a training step should need few

struct Transfers {
    int64_t to_device = 0, to_host = 0;  // copies
    int64_t to_device_bytes = 0, to_host_bytes = 0;
};
inline Transfers transfers;

// from page-locked memory, which stays as it is until the stream is waited for; on the CPU an ordinary copy
inline void copy_pinned_to_device(void* to, const void* from, size_t bytes, Device dev) {
    if (bytes == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, dev.stream));
        transfers.to_device++;
        transfers.to_device_bytes += (int64_t)bytes;
        return;
    }
#endif
    (void)dev;
    memmove(to, from, bytes);
}

// `from` may be changed or freed at once. The driver may read pageable memory after the call has returned (CUDA Runtime API,
// "API synchronization behavior"), so that what is small goes through a ring of pinned memory, and what is large is waited for.
inline void copy_to_device(void* to, const void* from, size_t bytes, Device dev) {
#if HAS_KERNELS
    constexpr size_t ring_bytes = 1 << 20;
    static PinnedBuffer& ring = *new PinnedBuffer;  // never freed: at the program's end the driver may be gone
    static size_t used = 0;
    if (dev.cuda && bytes > 0 && bytes <= ring_bytes / 4) {
        if (!ring.data) pinned_allocate(ring, ring_bytes, dev);
        if (used + bytes > ring_bytes) {
            CUDA_CHECK(cudaDeviceSynchronize());
            used = 0;
        }
        memcpy(ring.data + used, from, bytes);
        copy_pinned_to_device(to, ring.data + used, bytes, dev);
        used += (bytes + 15) / 16 * 16;
        return;
    }
    copy_pinned_to_device(to, from, bytes, dev);
    if (dev.cuda && bytes > 0) CUDA_CHECK(cudaStreamSynchronize(dev.stream));
#else
    copy_pinned_to_device(to, from, bytes, dev);
#endif
}

// waits for the stream: what was computed on it before has arrived when this returns
inline void copy_to_host(void* to, const void* from, size_t bytes, Device dev) {
    if (bytes == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, dev.stream));
        CUDA_CHECK(cudaStreamSynchronize(dev.stream));
        transfers.to_host++;
        transfers.to_host_bytes += (int64_t)bytes;
        return;
    }
#endif
    (void)dev;
    memmove(to, from, bytes);
}

inline void copy_on_device(void* to, const void* from, size_t bytes, Device dev) {
    if (bytes == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, dev.stream));
        return;
    }
#endif
    (void)dev;
    memmove(to, from, bytes);
}

inline void set_zero(void* p, size_t bytes, Device dev) {
    if (bytes == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        CUDA_CHECK(cudaMemsetAsync(p, 0, bytes, dev.stream));
        return;
    }
#endif
    (void)dev;
    memset(p, 0, bytes);
}

// ---------------------------------------------------------------------------------------------------------------------
// device functions

#if HAS_KERNELS
// 16 bytes of T in registers, so that a load or store is one 128-bit transaction
template <class T>
struct alignas(16) Pack128 {
    static constexpr int size = 16 / (int)sizeof(T);
    T v[size];
    __device__ T& operator[](int i) { return v[i]; }
    __device__ const T& operator[](int i) const { return v[i]; }
};

// p: 16-byte aligned
template <class T>
__device__ inline Pack128<T> load128(const T* p) {
    int4 bits = *reinterpret_cast<const int4*>(p);
    Pack128<T> pack;
    memcpy(&pack, &bits, 16);
    return pack;
}

template <class T>
__device__ inline void store128(T* p, const Pack128<T>& pack) {
    int4 bits;
    memcpy(&bits, &pack, 16);
    *reinterpret_cast<int4*>(p) = bits;
}

// Elements i ... i + size - 1 of a row of C; what lies past C reads as zero and is not stored. aligned: see
// is_aligned16. The element an index belongs to does not depend on aligned, so neither do the bits of a sum over the
// row.
template <class T>
__device__ inline Pack128<T> load_pack(const T* row, int i, int C, bool aligned) {
    if (aligned && i + Pack128<T>::size <= C) return load128(row + i);
    Pack128<T> pack;
    for (int k = 0; k < Pack128<T>::size; k++) pack[k] = i + k < C ? row[i + k] : T(0.0f);
    return pack;
}

template <class T>
__device__ inline void store_pack(T* row, int i, int C, bool aligned, const Pack128<T>& pack) {
    if (aligned && i + Pack128<T>::size <= C) {
        store128(row + i, pack);
        return;
    }
    for (int k = 0; k < Pack128<T>::size && i + k < C; k++) row[i + k] = pack[k];
}

// every row of a matrix whose rows begin `stride` elements apart begins at a multiple of 16 bytes
template <class T>
inline bool is_aligned16(const T* p, int64_t stride) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride % Pack128<T>::size == 0;
}
template <class T>
inline bool is_aligned16(Rows<T> x) {
    return is_aligned16(x.p, x.stride);
}

// Sums over groups of LANES neighbouring lanes (a power of two, at most 32); every lane of the group gets the same
// bits. All 32 lanes of the warp must call it.
template <int LANES>
__device__ inline float group_reduce_sum(float x) {
    for (int offset = LANES / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
    return x;
}

template <int LANES>
__device__ inline float group_reduce_max(float x) {
    for (int offset = LANES / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, offset));
    return x;
}

__device__ inline float warp_reduce_sum(float x) { return group_reduce_sum<32>(x); }
__device__ inline float warp_reduce_max(float x) { return group_reduce_max<32>(x); }

// Sum over the block; every thread gets the same bits. blockDim.x is a multiple of 32, and all threads must call it.
__device__ inline float block_reduce_sum(float x) {
    __shared__ float partial[32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_reduce_sum(x);
    __syncthreads();  // the previous call's reads of partial are over
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    return warp_reduce_sum(lane < warps ? partial[lane] : 0.0f);
}
#endif
