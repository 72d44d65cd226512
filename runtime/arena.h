// The memory plan: every large array of a run is one line (what, bytes, the flag that shrinks it). While an arena is
// open, Buffer::allocate adds a line instead of allocating; arena_commit allocates all of them at once, sets their
// pointers and then runs what was waiting for them (views into the arrays). So the plan that is printed is the plan
// that is carried out, and a run that does not fit says so before it has read a weight.
#pragma once
#include <sys/mman.h>
#include <functional>
#include <string>
#include <vector>
#include "device.h"

// Zeroed pages of the operating system, which cost nothing until they are touched; null: it has none. Large arrays begin at
// a multiple of 2 MiB and ask for pages of that size: 512 times fewer faults when they are touched first, and fewer misses
// of the TLB later. munmap(p, bytes) gives them back.
inline void* map_pages(size_t bytes) {
    constexpr size_t HUGE_PAGE = (size_t)1 << 21;
    const bool large = bytes >= 2 * HUGE_PAGE;
    const size_t all = (bytes + 4095) / 4096 * 4096 + (large ? HUGE_PAGE : 0);
    void* mapped = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    if (!large) return mapped;
    char *begin = static_cast<char*>(mapped), *end = begin + all;
    char* p = begin + (HUGE_PAGE - (uintptr_t)begin % HUGE_PAGE) % HUGE_PAGE;
    char* past = p + (all - HUGE_PAGE);
    if (p > begin) munmap(begin, p - begin);
    if (end > past) munmap(past, end - past);
#if defined(MADV_HUGEPAGE)
    madvise(p, all - HUGE_PAGE, MADV_HUGEPAGE);  // an error is a system without them
#endif
    return p;
}

struct Arena {
    struct Line {
        std::string what, hint;
        size_t bytes;
    };
    struct Pending {
        void** pointer;
        size_t offset;
    };
    Device dev;
    bool open = true;
    std::vector<Line> lines;  // arrays of the same name are one line
    std::vector<Pending> pending;
    std::vector<std::function<void()>> on_commit;
    size_t bytes = 0;
    size_t reserve = 0;  // bytes of the device that the plan leaves free
    char* base = nullptr;

    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena() {
        if (!base) return;
#if HAS_KERNELS
        if (dev.cuda) {
            CUDA_WARN(cudaFree(base));
            return;
        }
#endif
        munmap(base, bytes);
    }
};

inline bool arena_is_open(Device dev) { return dev.arena && dev.arena->open; }

// No machine has so much; and sums of it do not wrap
constexpr size_t ARRAY_MOST_BYTES = (size_t)1 << 56;

// of n elements of `size` bytes. Fails where a size is out of all bounds, which a negative one is too
inline size_t array_bytes(size_t n, size_t size, const char* what, const char* hint) {
    size_t bytes = 0;
    if (__builtin_mul_overflow(n, size, &bytes) || bytes > ARRAY_MOST_BYTES)
        fail("out of memory: %s would take more than 2^56 bytes%s%s", what, *hint ? "; " : "", hint);
    return bytes;
}

// a * b * c for the number of elements of an array; SIZE_MAX, which array_bytes refuses, where that is more
inline size_t array_count(int64_t a, int64_t b, int64_t c = 1) {
    int64_t n = 0;
    const bool wraps = __builtin_mul_overflow(a, b, &n) || __builtin_mul_overflow(n, c, &n);
    return wraps || n < 0 ? SIZE_MAX : (size_t)n;
}

// *p is set by arena_commit; 256-byte aligned
inline void arena_add(Arena& a, void** p, size_t bytes, const char* what, const char* hint) {
    array_bytes(array_bytes(bytes, 1, what, hint) + a.bytes, 1, what, hint);
    a.pending.push_back({p, a.bytes});
    a.bytes += (bytes + 255) / 256 * 256;
    for (Arena::Line& l : a.lines)
        if (l.what == what) {
            l.bytes += bytes;
            return;
        }
    a.lines.push_back({what, hint, bytes});
}

// f runs now, or when the arena is committed: for views into arrays that the arena is still to allocate
inline void when_allocated(Device dev, const std::function<void()>& f) {
    if (arena_is_open(dev)) dev.arena->on_commit.push_back(f);
    else f();
}

inline std::string bytes_text(double bytes) {
    const char* unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int i = 0;
    while (bytes >= 1024.0 && i < 4) bytes /= 1024.0, i++;
    return format(i == 0 ? "%.0f %s" : "%.1f %s", bytes, unit[i]);
}

// one line an array, the largest first; those below a hundredth of the whole are added up
inline std::string arena_plan_text(const Arena& a) {
    std::vector<Arena::Line> lines = a.lines;
    for (size_t i = 1; i < lines.size(); i++)
        for (size_t j = i; j > 0 && lines[j].bytes > lines[j - 1].bytes; j--) std::swap(lines[j], lines[j - 1]);
    std::string s = format("memory      %s on the %s\n", bytes_text((double)a.bytes).c_str(),
                           a.dev.cuda ? "GPU" : "host, as it is touched");
    size_t small = 0;
    for (const Arena::Line& l : lines)
        if (l.bytes < a.bytes / 100) small += l.bytes;
        else
            s += format("  %11s  %s%s%s%s\n", bytes_text((double)l.bytes).c_str(), l.what.c_str(),
                        l.hint.empty() ? "" : " (", l.hint.c_str(), l.hint.empty() ? "" : ")");
    s += format("  %11s  smaller arrays\n", bytes_text((double)small).c_str());
    return a.reserve ? s + format("reserve     %s more stay free for modules, CUDA graphs, cuBLASLt and NCCL\n",
                                  bytes_text((double)a.reserve).c_str())
                     : s;
}

// Allocates the plan. On the host the pages are zero and cost nothing until they are touched.
inline void arena_commit(Arena& a) {
    a.open = false;
    const Arena::Line* largest = nullptr;
    for (const Arena::Line& l : a.lines)
        if (!largest || l.bytes > largest->bytes) largest = &l;
    auto refuse = [&](const std::string& have) {
        fail("out of memory: the plan asks for %s%s; its largest line is %s, %s%s%s",
             bytes_text((double)a.bytes).c_str(), have.c_str(), largest->what.c_str(),
             bytes_text((double)largest->bytes).c_str(), largest->hint.empty() ? "" : ": ", largest->hint.c_str());
    };
    if (a.bytes) {
#if HAS_KERNELS
        if (a.dev.cuda) {
            size_t free_bytes = 0, total_bytes = 0;
            CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
            std::string have =
                format(" and a reserve of %s, the GPU has %s free of %s", bytes_text((double)a.reserve).c_str(),
                       bytes_text((double)free_bytes).c_str(), bytes_text((double)total_bytes).c_str());
            cudaError_t error = a.bytes + a.reserve > free_bytes
                                    ? cudaErrorMemoryAllocation
                                    : cudaMalloc(reinterpret_cast<void**>(&a.base), a.bytes);
            if (error == cudaErrorMemoryAllocation) refuse(have);
            CUDA_CHECK(error);
            CUDA_CHECK(cudaMemsetAsync(a.base, 0, a.bytes, a.dev.stream));
        } else
#endif
        {
            a.base = static_cast<char*>(map_pages(a.bytes));
            if (!a.base) refuse("");
        }
    }
    for (const Arena::Pending& p : a.pending) *p.pointer = a.base + p.offset;
    std::vector<std::function<void()>> waiting;
    waiting.swap(a.on_commit);
    for (const std::function<void()>& f : waiting) f();
}
