// Owning arrays: 64-byte aligned, zeroed by the operating system, so that a page nobody touches costs nothing.
#pragma once
#include <sys/mman.h>
#include <cstddef>
#include <utility>
#include "error.h"

template <class T>
struct Buffer {
    T* data = nullptr;
    size_t size = 0;  // elements

    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        swap(other);
        return *this;
    }
    ~Buffer() { release(); }

    // what: for the message when memory is short; hint: the flag that asks for less
    void allocate(size_t n, const char* what, const char* hint = "") {
        release();
        if (n == 0) return;
        void* p = mmap(nullptr, n * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            fail("out of memory: %.1f MiB for %s%s%s", (double)(n * sizeof(T)) / 1048576.0, what, *hint ? "; " : "",
                 hint);
        data = (T*)p;
        size = n;
    }
    // grow if needed; the contents are not kept
    void reserve(size_t n, const char* what, const char* hint = "") {
        if (n > size) allocate(n + n / 4, what, hint);
    }
    void release() {
        if (data) munmap((void*)data, size * sizeof(T));
        data = nullptr;
        size = 0;
    }
    size_t bytes() const { return size * sizeof(T); }
    void swap(Buffer& other) {
        std::swap(data, other.data);
        std::swap(size, other.size);
    }
    T& operator[](size_t i) { return data[i]; }
    const T& operator[](size_t i) const { return data[i]; }
};
