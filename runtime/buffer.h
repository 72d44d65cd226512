// Owning arrays, on the host or on a device: 64-byte aligned, zero. On the host the operating system gives zeroed
// pages, so that a page nobody touches costs nothing.
#pragma once
#include <cstddef>
#include <utility>
#include "arena.h"

template <class T>
struct Buffer {
    T* data = nullptr;
    size_t size = 0;  // elements
    bool on_device = false, in_arena = false;

    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    // not while an open arena holds the address of `data`
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        swap(other);
        return *this;
    }
    ~Buffer() { release(); }

    // what: the line of the memory plan, and the message when memory is short; hint: the flag that asks for less.
    // While dev's arena is open, data stays null until arena_commit.
    void allocate(size_t n, const char* what, const char* hint = "", Device dev = Device()) {
        release();
        if (n == 0) return;
        const size_t total = array_bytes(n, sizeof(T), what, hint);
        size = n;
        on_device = dev.cuda;
        if (arena_is_open(dev)) {
            in_arena = true;
            arena_add(*dev.arena, reinterpret_cast<void**>(&data), total, what, hint);
            return;
        }
        auto refuse = [&] {
            size = 0;
            fail("out of memory: %s for %s%s%s", bytes_text((double)total).c_str(), what, *hint ? "; " : "", hint);
        };
#if HAS_KERNELS
        if (dev.cuda) {
            cudaError_t error = cudaMalloc(reinterpret_cast<void**>(&data), total);
            if (error == cudaErrorMemoryAllocation) refuse();
            CUDA_CHECK(error);
            CUDA_CHECK(cudaMemsetAsync(data, 0, total, dev.stream));
            return;
        }
#endif
        data = (T*)map_pages(total);
        if (!data) refuse();
    }
    // grow if needed; the contents are not kept
    void reserve(size_t n, const char* what, const char* hint = "", Device dev = Device()) {
        if (n > size) allocate(n + n / 4, what, hint, dev);
    }
    void release() {
#if HAS_KERNELS
        if (data && on_device && !in_arena) CUDA_WARN(cudaFree(data));
#endif
        if (data && !on_device && !in_arena) munmap((void*)data, size * sizeof(T));
        data = nullptr;
        size = 0;
        on_device = in_arena = false;
    }
    // the memory of another, which outlives this
    void view(const Buffer& other) {
        release();
        data = other.data, size = other.size, on_device = other.on_device;
        in_arena = true;  // of whoever frees it
    }
    size_t bytes() const { return size * sizeof(T); }
    void swap(Buffer& other) {
        std::swap(data, other.data);
        std::swap(size, other.size);
        std::swap(on_device, other.on_device);
        std::swap(in_arena, other.in_arena);
    }
    T& operator[](size_t i) { return data[i]; }
    const T& operator[](size_t i) const { return data[i]; }
};

// The contents are not needed any more: gives the pages back to the operating system, or the memory to the device
template <class T>
inline void buffer_forget(Buffer<T>& b) {
    if (!b.in_arena) b.release();
    if (!b.data || b.on_device) return;
    uintptr_t page = 4096, first = ((uintptr_t)b.data + page - 1) / page * page,
              last = ((uintptr_t)b.data + b.bytes()) / page * page;
    if (last > first) madvise((void*)first, last - first, MADV_DONTNEED);
}
