// Memory of the simulated device: ordinary memory, filled with 0xFF (NaN in fp32 and bf16) when it is allocated, and
// known by address, so that a copy of the wrong kind is refused. TRAIN_QRL_SIMT_MEMORY=bytes: the device's size, for
// tests of what happens when it is full; otherwise 16 GiB are reported and no limit is enforced.
#pragma once
#include <map>
#include "simt_stream.h"

struct SimtAllocation {
    size_t bytes;
    bool pinned;  // host memory of cudaMallocHost
};

struct SimtMemory {
    std::mutex mutex;
    std::map<const char*, SimtAllocation> allocations;
    size_t used = 0;  // of the device
};

inline SimtMemory& simt_memory() {
    static SimtMemory* memory = new SimtMemory;  // outlives every static object that frees in its destructor
    return *memory;
}

inline size_t simt_memory_limit() {
    const char* text = getenv("TRAIN_QRL_SIMT_MEMORY");
    return text ? strtoull(text, nullptr, 10) : 0;
}

// where p lies: 'd' device, 'p' pinned, 'h' other host memory
inline char simt_place(const void* p) {
    SimtMemory& m = simt_memory();
    std::lock_guard<std::mutex> lock(m.mutex);
    const char* at = static_cast<const char*>(p);
    auto next = m.allocations.upper_bound(at);
    if (next == m.allocations.begin()) return 'h';
    --next;
    if (at >= next->first + next->second.bytes) return 'h';
    return next->second.pinned ? 'p' : 'd';
}

inline cudaError_t simt_allocate(void** p, size_t bytes, bool pinned) {
    *p = nullptr;
    if (bytes == 0) return cudaSuccess;
    SimtMemory& m = simt_memory();
    std::lock_guard<std::mutex> lock(m.mutex);
    size_t limit = pinned ? 0 : simt_memory_limit();
    if (bytes > PTRDIFF_MAX || (limit && (bytes > limit || m.used > limit - bytes))) return cudaErrorMemoryAllocation;
    if (posix_memalign(p, 256, bytes) != 0) {
        *p = nullptr;
        return cudaErrorMemoryAllocation;
    }
    memset(*p, 0xFF, bytes);
    m.allocations[static_cast<char*>(*p)] = SimtAllocation{bytes, pinned};
    if (!pinned) m.used += bytes;
    return cudaSuccess;
}

inline cudaError_t simt_release(void* p, bool pinned) {
    if (!p) return cudaSuccess;
    SimtMemory& m = simt_memory();
    std::lock_guard<std::mutex> lock(m.mutex);
    auto found = m.allocations.find(static_cast<char*>(p));
    if (found == m.allocations.end() || found->second.pinned != pinned) return cudaErrorInvalidValue;
    if (!pinned) m.used -= found->second.bytes;
    m.allocations.erase(found);
    free(p);
    return cudaSuccess;
}

template <class T>
cudaError_t cudaMalloc(T** p, size_t bytes) {
    cudaError_t error = simt_forbidden_in_capture(nullptr);
    return error == cudaSuccess ? simt_allocate(reinterpret_cast<void**>(p), bytes, false) : error;
}
// waits for the device, as the real one does
inline cudaError_t cudaFree(void* p) {
    cudaError_t error = p ? cudaDeviceSynchronize() : cudaSuccess;
    return error == cudaSuccess ? simt_release(p, false) : error;
}
// Not while the stream captures: the memory would belong to the graph.
template <class T>
cudaError_t cudaMallocAsync(T** p, size_t bytes, cudaStream_t stream) {
    cudaError_t error = stream ? simt_forbidden_in_capture(stream) : cudaSuccess;
    return error == cudaSuccess ? simt_allocate(reinterpret_cast<void**>(p), bytes, false) : error;
}
inline cudaError_t cudaFreeAsync(void* p, cudaStream_t stream) {
    cudaError_t error = stream ? simt_forbidden_in_capture(stream) : cudaSuccess;
    if (error != cudaSuccess) return error;
    if (simt_runs_now(stream)) return simt_release(p, false);
    simt_later(stream, [p] { simt_release(p, false); });
    return cudaSuccess;
}
template <class T>
cudaError_t cudaMallocHost(T** p, size_t bytes, unsigned = 0) {
    return simt_allocate(reinterpret_cast<void**>(p), bytes, true);
}
template <class T>
cudaError_t cudaHostAlloc(T** p, size_t bytes, unsigned) {
    return simt_allocate(reinterpret_cast<void**>(p), bytes, true);
}
inline cudaError_t cudaFreeHost(void* p) { return simt_release(p, true); }

inline cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
    SimtMemory& m = simt_memory();
    std::lock_guard<std::mutex> lock(m.mutex);
    *total_bytes = simt_memory_limit() ? simt_memory_limit() : (size_t)16 << 30;
    *free_bytes = *total_bytes > m.used ? *total_bytes - m.used : 0;
    return cudaSuccess;
}

// The pool of cudaMallocAsync is the heap; what it may keep is accepted and changes nothing.
typedef struct SimtMemPool* cudaMemPool_t;
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4 };
inline cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
    *pool = nullptr;
    return cudaSuccess;
}
inline cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
inline cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }

// ---------------------------------------------------------------------------------------------------------------------
// copies

enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault,
};

inline bool simt_right_kind(const void* to, const void* from, cudaMemcpyKind kind) {
    if (kind == cudaMemcpyDefault) return true;
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    return (simt_place(to) == 'd') == to_device && (simt_place(from) == 'd') == from_device;
}

inline void simt_copy_rows(char* to, size_t to_pitch, const char* from, size_t from_pitch, size_t width, size_t rows) {
    for (size_t i = 0; i < rows && width; i++) memcpy(to + i * to_pitch, from + i * from_pitch, width);
}

// Rows of `width` bytes. The source is read when the stream comes to it: of pageable memory, too, the real one promises no
// more. The copy is over when this returns when the destination is pageable.
inline cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                     size_t rows, cudaMemcpyKind kind, cudaStream_t stream = nullptr) {
    if (width == 0 || rows == 0) return cudaSuccess;
    if (!to || !from || to_pitch < width || from_pitch < width || !simt_right_kind(to, from, kind))
        return cudaErrorInvalidValue;
    char* t = static_cast<char*>(to);
    const char* f = static_cast<const char*>(from);
    if (simt_runs_now(stream)) {
        simt_copy_rows(t, to_pitch, f, from_pitch, width, rows);
        return cudaSuccess;
    }
    bool captures = stream->capture != cudaStreamCaptureStatusNone;
    simt_later(stream, [=] { simt_copy_rows(t, to_pitch, f, from_pitch, width, rows); });
    if (!captures && simt_place(t) == 'h') simt_drain(stream);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream = nullptr) {
    return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, bytes ? 1 : 0, kind, stream);
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    cudaError_t error = simt_forbidden_in_capture(nullptr);
    return error == cudaSuccess ? cudaMemcpyAsync(to, from, bytes, kind, nullptr) : error;
}
inline cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                size_t rows, cudaMemcpyKind kind) {
    cudaError_t error = simt_forbidden_in_capture(nullptr);
    return error == cudaSuccess ? cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, rows, kind, nullptr) : error;
}
inline cudaError_t cudaMemsetAsync(void* p, int byte, size_t bytes, cudaStream_t stream = nullptr) {
    if (bytes == 0) return cudaSuccess;
    if (!p) return cudaErrorInvalidValue;
    simt_enqueue(stream, [=] { memset(p, byte, bytes); });
    return cudaSuccess;
}
inline cudaError_t cudaMemset(void* p, int byte, size_t bytes) { return cudaMemsetAsync(p, byte, bytes, nullptr); }
