// Runs CUDA kernels on the CPU: the threads of a block are fibers on one OS thread, blocks are spread over OS threads.
//
// A thread runs until it waits or returns. A warp intrinsic waits for the lanes of its mask, __syncthreads for the
// block; threads that returned are not waited for. Which thread runs next is a setting (forward, reverse, random by
// seed): a kernel whose result depends on it has a race. Dynamic shared memory and cudaMalloc start as NaN in fp32 and
// bf16. Faults throw Error from the launch, with kernel, block and thread: threads that wait for each other or for a
// barrier the others do not reach, one barrier reached on two lines, a shuffle from a lane that has left or is not in
// the mask, writes past dynamic shared memory, more than 1024 threads or the
// shared memory of simt_settings.arch.
//
// What it cannot show: a read of `__shared__` bytes that no block has written yet on its OS thread gives zero (dynamic
// shared memory is NaN, and what a block wrote to `__shared__` is NaN for the next block); the size of `__shared__` is
// not counted in the limit; host memory that a kernel reads. A thread runs from barrier to barrier without a break, so that
// orders show a race only if the result depends on which of two threads ran first: not an update that two of them do at
// once (x = x + 1, both reads before both writes). Those are found where accesses are tracked, by race.cpp. A
// thread that spins on memory another thread of its block shall write spins forever.
#pragma once
#include <link.h>
#include <sys/mman.h>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>
#include "../../runtime/error.h"
#include "fiber.h"
#if defined(_OPENMP)
#include <omp.h>
#endif

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned nx = 1, unsigned ny = 1, unsigned nz = 1) : x(nx), y(ny), z(nz) {}
};

enum SimtOrder { SIMT_FORWARD, SIMT_REVERSE, SIMT_RANDOM };

struct SimtSettings {
    SimtOrder order = SIMT_FORWARD;
    uint64_t seed = 0;          // of SIMT_RANDOM
    bool lazy_streams = false;  // see simt_stream.h
    bool races = true;          // of shared memory are faults, in a program with race.cpp
    int arch = 86;              // the GPU whose limits hold: 80, 86, 89, 90, 100 or 120
};

inline SimtSettings simt_settings;

static constexpr int SIMT_MAX_THREADS = 1024;
static constexpr size_t SIMT_MAX_SHARED = 227 * 1024;
static constexpr size_t SIMT_CANARY = 256;  // bytes behind dynamic shared memory that must keep their value
#if defined(SIMT_ASAN)
static constexpr size_t SIMT_STACK = 256 * 1024;
#else
static constexpr size_t SIMT_STACK = 128 * 1024;
#endif
// Not a power of two, so that the hot ends of a thousand stacks do not fall into one cache set.
static constexpr size_t SIMT_STACK_STRIDE = SIMT_STACK + 17 * 64;
static constexpr uint64_t SIMT_STACK_CANARY = 0x5AFE57ACC0FFEE00ull;

enum SimtOp {
    SIMT_SYNCWARP,
    SIMT_SHFL,
    SIMT_SHFL_UP,
    SIMT_SHFL_DOWN,
    SIMT_SHFL_XOR,
    SIMT_BALLOT,
    SIMT_TOGETHER,
    SIMT_SYNCTHREADS,
};

struct SimtThread;

// An operation that the last lane to come computes for all: lanes is the warp's 32 threads, group those that take part.
struct SimtTogether {
    const char* name;
    bool whole_warp;  // all 32 lanes must exist and take part
    void (*compute)(SimtThread* lanes, unsigned group);
};

// a cp.async under way
struct SimtCopy {
    void* to;
    const void* from;
    int bytes;
    unsigned group;  // commits of the thread before it
    const char* site;
};

struct SimtThread {
    Fiber fiber;
    uint3 index;
    unsigned linear;
    // the operation it waits in
    SimtOp op;
    const char* site;  // "file:line"
    unsigned mask;
    int param, width;              // of a shuffle
    uint64_t value;                // in, then out
    const SimtTogether* together;  // of SIMT_TOGETHER
    void* operands;
    // cp.async
    std::vector<SimtCopy> copies;
    unsigned commits;
};

inline const char* simt_op_name(const SimtThread& t) {
    static const char* const names[] = {"__syncwarp",      "__shfl_sync", "__shfl_up_sync", "__shfl_down_sync",
                                        "__shfl_xor_sync", "a vote",      "",               "__syncthreads"};
    return t.op == SIMT_TOGETHER ? t.together->name : names[t.op];
}

// bit l: lane l
struct SimtWarp {
    unsigned alive, ready, in_warp_op, in_barrier;
    uint32_t epoch;  // of the warp: grows with each __syncwarp
};

// Where `__shared__` variables lie: the program's thread-local variables, in the copy of the calling OS thread. Empty
// where the C library does not tell.
struct SimtRange {
    char *begin = nullptr, *end = nullptr;
};

inline SimtRange simt_thread_locals() {
    SimtRange range;
#if defined(__GLIBC__)
    dl_iterate_phdr(
        [](dl_phdr_info* program, size_t, void* result) {
            for (int i = 0; i < program->dlpi_phnum; i++)
                if (program->dlpi_phdr[i].p_type == PT_TLS && program->dlpi_tls_data) {
                    char* begin = static_cast<char*>(program->dlpi_tls_data);
                    *static_cast<SimtRange*>(result) = SimtRange{begin, begin + program->dlpi_phdr[i].p_memsz};
                }
            return 1;  // the first is the program itself, the others are its libraries
        },
        &range);
#endif
    return range;
}

struct SimtBlock {
    // the launch
    const char* kernel = nullptr;
    void (*invoke)(void*) = nullptr;
    void* arguments = nullptr;
    dim3 grid, dim;
    size_t shared_bytes = 0;
    SimtSettings settings;
    // the block
    uint3 index = {0, 0, 0};
    unsigned threads = 0, alive = 0, in_barrier = 0;
    unsigned barrier_threads = 0, barrier_votes = 0;  // of the last barrier: who came, who voted yes
    unsigned ready_warps = 0;
    uint32_t epoch = 0;  // grows with each block that the OS thread runs and each __syncthreads of it; see race.cpp
    uint64_t random = 0;
    std::string fault;
    SimtWarp warp[SIMT_MAX_THREADS / 32];
    SimtThread thread[SIMT_MAX_THREADS];
    // the OS thread
    Fiber scheduler;
    bool fibers_made = false;
    char* stacks = nullptr;
    char* shared = nullptr;
    SimtRange locals;
    std::vector<char> locals_before;
    std::shared_ptr<void> shadow;  // race.cpp's
};

inline thread_local SimtBlock* simt_block = nullptr;
inline thread_local SimtThread* simt_thread = nullptr;

static constexpr size_t SIMT_STACKS_BYTES = SIMT_STACK_STRIDE * SIMT_MAX_THREADS;
static constexpr size_t SIMT_SHARED_BYTES = SIMT_MAX_SHARED + 1024;  // a multiple of 1024 with room for the canary

// ---------------------------------------------------------------------------------------------------------------------
// scheduling

inline std::string simt_where(const SimtBlock& b, const SimtThread& t) {
    return format("kernel %s, block (%u,%u,%u), thread (%u,%u,%u)", b.kernel, b.index.x, b.index.y, b.index.z,
                  t.index.x, t.index.y, t.index.z);
}

// bit of m to run next
inline int simt_pick(SimtBlock& b, unsigned m) {
    if (b.settings.order == SIMT_FORWARD) return __builtin_ctz(m);
    if (b.settings.order == SIMT_REVERSE) return 31 - __builtin_clz(m);
    b.random ^= b.random << 13;
    b.random ^= b.random >> 7;
    b.random ^= b.random << 17;
    // each with the same probability: of two warps, one that is ahead is soon overtaken
    for (uint64_t k = (b.random >> 32) * (unsigned)__builtin_popcount(m) >> 32; k; k--) m &= m - 1;
    return __builtin_ctz(m);
}

// Leaves `from` for the next thread that can run, or for the scheduler if there is none or the block has a fault.
__attribute__((noinline)) inline void simt_yield(SimtBlock& b, SimtThread* from) {
    if (b.ready_warps == 0 || !b.fault.empty()) {
        fiber_switch(&from->fiber, &b.scheduler);
        return;
    }
    int w = simt_pick(b, b.ready_warps);
    SimtThread* to = &b.thread[w * 32 + simt_pick(b, b.warp[w].ready)];
    simt_thread = to;
    if (to != from) fiber_switch(&from->fiber, &to->fiber);
}

// Ends the block with a message. The kernel is not resumed and its stacks are dropped as they are, so nothing that owns
// memory may be alive in the caller.
[[noreturn]] __attribute__((format(printf, 3, 4))) inline void simt_fault(SimtBlock& b, SimtThread* from,
                                                                          const char* fmt, ...) {
    va_list args;
    va_start(args, fmt);
    b.fault = simt_where(b, *from) + ": " + vformat(fmt, args);
    va_end(args);
    for (;;) simt_yield(b, from);
}

inline void simt_make_ready(SimtBlock& b, int w, unsigned lanes) {
    b.warp[w].ready |= lanes;
    b.ready_warps |= 1u << w;
}

inline bool simt_same_site(const char* a, const char* b) { return a == b || strcmp(a, b) == 0; }

// ---------------------------------------------------------------------------------------------------------------------
// waiting

inline void simt_try_barrier(SimtBlock& b, SimtThread* from) {
    if (b.alive == 0 || b.in_barrier < b.alive) return;
    int warps = (int)(b.threads + 31) / 32;
    const SimtThread* first = nullptr;
    b.barrier_threads = b.in_barrier;
    b.barrier_votes = 0;
    for (int w = 0; w < warps; w++)
        for (unsigned m = b.warp[w].in_barrier; m; m &= m - 1) {
            const SimtThread* t = &b.thread[w * 32 + __builtin_ctz(m)];
            b.barrier_votes += t->value != 0;
            if (!first) first = t;
            else if (!simt_same_site(first->site, t->site))
                simt_fault(b, from, "divergent barrier: thread (%u,%u,%u) waits at %s, thread (%u,%u,%u) at %s",
                           first->index.x, first->index.y, first->index.z, first->site, t->index.x, t->index.y,
                           t->index.z, t->site);
        }
    b.in_barrier = 0;
    b.epoch++;
    for (int w = 0; w < warps; w++) {
        if (b.warp[w].in_barrier) simt_make_ready(b, w, b.warp[w].in_barrier);
        b.warp[w].in_barrier = 0;
    }
}

// the lane a shuffle reads, or the caller's own where the rule says that it keeps its value
inline int simt_shuffle_source(const SimtThread& t, int lane) {
    int segment = lane & ~(t.width - 1), source = lane;
    switch (t.op) {
        case SIMT_SHFL:
            return segment + (t.param & (t.width - 1));
        case SIMT_SHFL_UP:
            source = lane - t.param;
            return source < segment ? lane : source;
        case SIMT_SHFL_DOWN:
            source = lane + t.param;
            return source >= segment + t.width ? lane : source;
        // a lane of an earlier segment may be read, of a later one not
        default:
            source = lane ^ t.param;
            return source >= segment + t.width ? lane : source;
    }
}

// Completes the operation lane `any` of warp w waits in, if all its lanes have come.
inline void simt_try_warp_op(SimtBlock& b, SimtThread* from, int w, int any) {
    SimtWarp& warp = b.warp[w];
    SimtThread* lanes = &b.thread[w * 32];
    const SimtThread& t = lanes[any];
    unsigned group = t.mask & warp.alive;
    if (group & ~warp.in_warp_op) return;
    uint64_t value[32], ballot = 0;
    for (unsigned m = group; m; m &= m - 1) {
        int l = __builtin_ctz(m);
        const SimtThread& u = lanes[l];
        if (u.op != t.op || u.mask != t.mask || !simt_same_site(u.site, t.site))
            simt_fault(b, from, "divergent warp: lane %d waits in %s(0x%08X) at %s, lane %d in %s(0x%08X) at %s", any,
                       simt_op_name(t), t.mask, t.site, l, simt_op_name(u), u.mask, u.site);
        value[l] = u.value;
        if (t.op == SIMT_BALLOT && u.value) ballot |= 1ull << l;
    }
    if (t.op == SIMT_TOGETHER && t.together->whole_warp && group != ~0u)
        simt_fault(b, from, "%s at %s needs all 32 lanes of its warp; lane %d has left the kernel or never was",
                   t.together->name, t.site, __builtin_ctz(~group));
    if (t.op == SIMT_BALLOT)
        for (unsigned m = group; m; m &= m - 1) lanes[__builtin_ctz(m)].value = ballot;
    else if (t.op == SIMT_TOGETHER) t.together->compute(lanes, group);
    else if (t.op != SIMT_SYNCWARP)
        for (unsigned m = group; m; m &= m - 1) {
            int l = __builtin_ctz(m), source = simt_shuffle_source(lanes[l], l);
            if (!(group >> source & 1))
                simt_fault(b, &lanes[l], "%s at %s reads lane %d, which %s", simt_op_name(t), t.site, source,
                           t.mask >> source & 1 ? "has left the kernel" : "is not in the mask");
            lanes[l].value = value[source];
        }
    if (t.op == SIMT_SYNCWARP) warp.epoch++;
    warp.in_warp_op &= ~group;
    simt_make_ready(b, w, group);
}

// Waits in an operation described by the caller's op, site, mask and value.
inline void simt_wait(SimtBlock& b, SimtThread* t) {
    int w = (int)t->linear / 32, lane = (int)t->linear % 32;
    SimtWarp& warp = b.warp[w];
    warp.ready &= ~(1u << lane);
    if (warp.ready == 0) b.ready_warps &= ~(1u << w);
    if (t->op == SIMT_SYNCTHREADS) {
        warp.in_barrier |= 1u << lane;
        b.in_barrier++;
        simt_try_barrier(b, t);
    } else {
        if (!(t->mask >> lane & 1))
            simt_fault(b, t, "%s at %s: the caller, lane %d, is not in its own mask 0x%08X", simt_op_name(*t),
                       t->site, lane, t->mask);
        warp.in_warp_op |= 1u << lane;
        simt_try_warp_op(b, t, w, lane);
    }
    simt_yield(b, t);
}

// The kernel has returned. Those who wait may have waited for this thread alone.
inline void simt_leave(SimtBlock& b, SimtThread* t) {
    int w = (int)t->linear / 32;
    SimtWarp& warp = b.warp[w];
    unsigned bit = 1u << (t->linear % 32);
    if (!t->copies.empty())
        simt_fault(b, t, "left the kernel with %zu copies under way, the first cp_async_16 at %s: %s", t->copies.size(),
                   t->copies[0].site,
                   t->copies[0].group < t->commits ? "no cp_async_wait covers it" : "it was never committed");
    warp.alive &= ~bit;
    warp.ready &= ~bit;
    if (warp.ready == 0) b.ready_warps &= ~(1u << w);
    b.alive--;
    for (int l = 0; l < 32; l++)
        if (warp.in_warp_op >> l & 1) simt_try_warp_op(b, t, w, l);
    simt_try_barrier(b, t);
    simt_yield(b, t);
}

// A fiber is one thread of every block its OS thread runs: it is resumed for the next block where it left the last.
inline void simt_fiber_main() {
    fiber_entered();
    for (;;) {
        SimtBlock& b = *simt_block;
        SimtThread* t = simt_thread;
        try {
            b.invoke(b.arguments);
        } catch (const std::exception& e) { b.fault = simt_where(b, *t) + ": " + e.what(); }
        while (!b.fault.empty()) simt_yield(b, t);
        simt_leave(b, t);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// blocks

// the OS thread's block; stacks are reserved at once and touched as they are used
inline SimtBlock& simt_this_block() {
    struct Owner {
        std::unique_ptr<SimtBlock> block{new SimtBlock};
        Owner() {
            void* p = mmap(nullptr, SIMT_STACKS_BYTES, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (p == MAP_FAILED) fail("simt: no memory for %d stacks", SIMT_MAX_THREADS);
            block->stacks = static_cast<char*>(p);
            block->shared = static_cast<char*>(aligned_alloc(1024, SIMT_SHARED_BYTES));
            if (!block->shared) fail("simt: no memory for shared memory");
            fiber_adopt_current(&block->scheduler);
            block->locals = simt_thread_locals();
        }
        ~Owner() {
#if defined(SIMT_ASAN)
            __asan_unpoison_memory_region(block->stacks, SIMT_STACKS_BYTES);
            __asan_unpoison_memory_region(block->shared, SIMT_SHARED_BYTES);
#endif
            munmap(block->stacks, SIMT_STACKS_BYTES);
            free(block->shared);
        }
    };
    static thread_local Owner owner;
    return *owner.block;
}

inline void simt_make_fibers(SimtBlock& b) {
#if defined(SIMT_ASAN)
    __asan_unpoison_memory_region(b.stacks, SIMT_STACKS_BYTES);
#endif
    for (int i = 0; i < SIMT_MAX_THREADS; i++) {
        char* stack = b.stacks + i * SIMT_STACK_STRIDE;
        memcpy(stack, &SIMT_STACK_CANARY, 8);
        fiber_make(&b.thread[i].fiber, stack, SIMT_STACK, simt_fiber_main);
    }
    b.fibers_made = true;
}

inline std::string simt_deadlock(const SimtBlock& b) {
    std::string s;
    unsigned left = b.threads - b.alive, told = 0;
    const SimtThread *barrier = nullptr, *warp_op = nullptr;
    for (unsigned i = 0; i < b.threads; i++) {
        if (b.warp[i / 32].in_barrier >> (i % 32) & 1 && !barrier) barrier = &b.thread[i];
        if (b.warp[i / 32].in_warp_op >> (i % 32) & 1 && !warp_op) warp_op = &b.thread[i];
    }
    s = simt_where(b, barrier ? *barrier : *warp_op) + ": deadlock: ";
    if (barrier)
        s += format("%u of %u threads wait in __syncthreads at %s", b.in_barrier, b.threads, barrier->site), told++;
    if (warp_op)
        s += format("%s%u wait in a warp operation, thread (%u,%u,%u) in %s(0x%08X) at %s", told ? ", " : "",
                    b.alive - b.in_barrier, warp_op->index.x, warp_op->index.y, warp_op->index.z,
                    simt_op_name(*warp_op), warp_op->mask, warp_op->site);
    return s + format(", %u have left", left);
}

// `__shared__` variables are thread-local variables of the OS thread, and nothing tells them apart from others but that
// a kernel writes them: what has changed when a block ends is its static shared memory, and becomes 0xFF, so that the
// next block that reads before it writes gets NaN in fp32 and bf16, not the values of this block.
inline void simt_remember_locals(SimtBlock& b) {
    if (b.locals.begin) b.locals_before.assign(b.locals.begin, b.locals.end);
}

inline void simt_poison_locals(SimtBlock& b) {
    if (!b.locals.begin || memcmp(b.locals.begin, b.locals_before.data(), b.locals_before.size()) == 0) return;
    for (size_t i = 0; i < b.locals_before.size(); i++)
        if (b.locals.begin[i] != b.locals_before[i]) b.locals.begin[i] = (char)0xFF;
}

// Runs block `index` of the launch in b; a fault is left in b.fault.
inline void simt_run_block(SimtBlock& b, uint64_t index) {
    b.index = uint3{(unsigned)(index % b.grid.x), (unsigned)(index / b.grid.x % b.grid.y),
                    (unsigned)(index / b.grid.x / b.grid.y)};
    if (!b.fibers_made) simt_make_fibers(b);
    memset(b.shared, 0xFF, b.shared_bytes + SIMT_CANARY);
#if defined(SIMT_ASAN)
    __asan_poison_memory_region(b.shared + (b.shared_bytes + 7) / 8 * 8, SIMT_CANARY);
#endif
    b.random = (b.settings.seed + 1) * 0x9E3779B97F4A7C15ull ^ (index + 1) * 0xD1B54A32D192ED03ull;
    if (b.random == 0) b.random = 1;
    b.alive = b.threads;
    b.in_barrier = 0;
    b.epoch++;
    b.ready_warps = 0;
    for (unsigned w = 0; w * 32 < b.threads; w++) {
        unsigned n = b.threads - w * 32;
        b.warp[w] = SimtWarp{n >= 32 ? ~0u : (1u << n) - 1, 0, 0, 0, 0};
        simt_make_ready(b, (int)w, b.warp[w].alive);
    }
    for (unsigned i = 0; i < b.threads; i++) {
        b.thread[i].copies.clear();
        b.thread[i].commits = 0;
    }
    int w = simt_pick(b, b.ready_warps);
    simt_remember_locals(b);
    simt_thread = &b.thread[w * 32 + simt_pick(b, b.warp[w].ready)];
    simt_block = &b;
    fiber_switch(&b.scheduler, &simt_thread->fiber);
    simt_thread = nullptr;
    simt_block = nullptr;
    simt_poison_locals(b);
#if defined(SIMT_ASAN)
    __asan_unpoison_memory_region(b.shared, SIMT_SHARED_BYTES);
#endif
    if (b.fault.empty() && b.alive) b.fault = simt_deadlock(b);
    for (size_t i = 0; i < SIMT_CANARY && b.fault.empty(); i++)
        if (b.shared[b.shared_bytes + i] != (char)0xFF)
            b.fault =
                format("kernel %s, block (%u,%u,%u): wrote byte %zu of dynamic shared memory, the launch asked for %zu",
                       b.kernel, b.index.x, b.index.y, b.index.z, b.shared_bytes + i, b.shared_bytes);
    if (!b.fault.empty()) b.fibers_made = false;
}

inline void simt_check_stacks(SimtBlock& b) {
    for (unsigned i = 0; i < b.threads && b.fibers_made; i++)
        if (memcmp(b.thread[i].fiber.stack, &SIMT_STACK_CANARY, 8) != 0) {
            b.fibers_made = false;
            b.fault = format("kernel %s: a thread needs more than the %zu KB of stack it has here", b.kernel,
                             SIMT_STACK / 1024);
        }
}

// ---------------------------------------------------------------------------------------------------------------------
// launches

// names of the kernels that ran, template arguments left out: a test asks it whether each kernel of the tree was run
inline std::set<std::string>& simt_launched() {
    static std::set<std::string> names;
    return names;
}

// launches of this kernel do nothing: a test asks whether anybody notices
inline std::string& simt_skipped_kernel() {
    static std::string name;
    return name;
}

inline std::mutex& simt_mutex() {
    static std::mutex mutex;
    return mutex;
}

// "(scale_kernel<8, true>)" -> "scale_kernel"
inline std::string simt_kernel_name(const std::string& text) {
    size_t begin = text.find_first_not_of("( ");
    if (begin == std::string::npos) return text;
    return text.substr(begin, text.find_first_of("<) ", begin) - begin);
}

// CUDA C++ Programming Guide, "Technical Specifications per Compute Capability": shared memory of a thread block
inline size_t simt_max_shared(int arch) {
    switch (arch) {
        case 80:
            return 163 * 1024;
        case 86:
        case 89:
        case 120:
            return 99 * 1024;
        case 90:
        case 100:
            return 227 * 1024;
    }
    fail("simt_settings.arch is %d; 80, 86, 89, 90, 100 or 120", arch);
}

// Shared memory of a kernel: `fixed`, its static, is not known here and 0 unless a test says it; `allowed`: the most dynamic
// that cudaFuncSetAttribute was told of
struct SimtShared {
    size_t fixed = 0, allowed = 0;
};
inline SimtShared& simt_shared(const void* kernel) {
    static std::map<const void*, SimtShared> all;
    return all[kernel];
}

inline void simt_check_launch(const char* kernel, const char* file, int line, dim3 grid, dim3 dim, size_t shared_bytes,
                              SimtShared allowed) {
    std::string name = simt_kernel_name(kernel);
    uint64_t threads = (uint64_t)dim.x * dim.y * dim.z, blocks = (uint64_t)grid.x * grid.y * grid.z;
    if (threads == 0 || threads > SIMT_MAX_THREADS || dim.z > 64)
        fail("%s:%d: kernel %s: a block of (%u,%u,%u) threads; 1 to %d, z at most 64", file, line, name.c_str(), dim.x,
             dim.y, dim.z, SIMT_MAX_THREADS);
    if (blocks == 0 || grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535)
        fail("%s:%d: kernel %s: a grid of (%u,%u,%u) blocks; at least 1, x below 2^31, y and z below 65536", file, line,
             name.c_str(), grid.x, grid.y, grid.z);
    if (allowed.fixed + shared_bytes > simt_max_shared(simt_settings.arch))
        fail("%s:%d: kernel %s: %zu bytes of shared memory; at most %zu on sm_%d", file, line, name.c_str(),
             allowed.fixed + shared_bytes, simt_max_shared(simt_settings.arch), simt_settings.arch);
    if (allowed.fixed + shared_bytes > 48 * 1024 && shared_bytes > allowed.allowed)
        fail("%s:%d: kernel %s: %zu bytes of shared memory, above 48 KB, and it has not asked for them", file, line,
             name.c_str(), allowed.fixed + shared_bytes);
}

// Runs a launch that simt_check_launch has let pass.
inline void simt_run(const char* kernel, const char* file, int line, dim3 grid, dim3 dim, size_t shared_bytes,
                     void (*invoke)(void*), void* arguments) {
    std::string name = simt_kernel_name(kernel);
    uint64_t threads = (uint64_t)dim.x * dim.y * dim.z, blocks = (uint64_t)grid.x * grid.y * grid.z;
    SimtSettings settings = simt_settings;
    std::string fault;
    {
        std::lock_guard<std::mutex> lock(simt_mutex());
        simt_launched().insert(name);
        if (name == simt_skipped_kernel()) return;
    }
    std::atomic<uint64_t> next{0};
    std::atomic<bool> stop{false};
    auto worker = [&] {
        SimtBlock& b = simt_this_block();
        b.kernel = name.c_str();
        b.invoke = invoke;
        b.arguments = arguments;
        b.grid = grid;
        b.dim = dim;
        b.shared_bytes = shared_bytes;
        b.settings = settings;
        b.fault.clear();
        b.threads = (unsigned)threads;
        for (unsigned i = 0; i < b.threads; i++) {
            b.thread[i].linear = i;
            b.thread[i].index = uint3{i % dim.x, i / dim.x % dim.y, i / dim.x / dim.y};
        }
        for (uint64_t i; !stop && b.fault.empty() && (i = next++) < blocks;) {
            uint64_t index = i;
            if (settings.order == SIMT_REVERSE) index = blocks - 1 - i;
            // a permutation: a prime above any grid of the tests, and an offset
            if (settings.order == SIMT_RANDOM) index = (i * 2147483659u % blocks + settings.seed) % blocks;
            simt_run_block(b, index);
        }
        if (b.fault.empty()) simt_check_stacks(b);
        if (b.fault.empty()) return;
        stop = true;
        std::lock_guard<std::mutex> lock(simt_mutex());
        if (fault.empty()) fault = b.fault;
    };
#if defined(_OPENMP)
    int workers = omp_get_max_threads();
    if ((uint64_t)workers > blocks) workers = (int)blocks;
#pragma omp parallel num_threads(workers)
#endif
    worker();
    if (!fault.empty()) fail("%s:%d: %s", file, line, fault.c_str());
}

inline void* simt_dynamic_shared() { return simt_block->shared; }

// race.cpp is told by it of accesses by the simulation, on behalf of a thread
inline void (*simt_accessed)(SimtThread* t, const void* p, size_t bytes, bool write) = nullptr;

// faults unless `bytes` at p are the block's shared memory
inline void simt_check_shared(SimtThread* t, const char* name, const char* site, const void* p, size_t bytes) {
    SimtBlock& b = *simt_block;
    const char* begin = static_cast<const char*>(p);
    if (begin >= b.shared && begin < b.shared + SIMT_SHARED_BYTES) {
        if ((size_t)(begin - b.shared) + bytes > b.shared_bytes)
            simt_fault(b, t, "%s at %s: bytes %zu to %zu of dynamic shared memory, the launch asked for %zu", name,
                       site, (size_t)(begin - b.shared), (size_t)(begin - b.shared) + bytes - 1, b.shared_bytes);
        return;
    }
    if (b.locals.begin && (begin < b.locals.begin || begin + bytes > b.locals.end))
        simt_fault(b, t, "%s at %s: address %p is not in shared memory", name, site, p);
}

// ---------------------------------------------------------------------------------------------------------------------
// what the intrinsics of cuda_runtime.h are made of

// returns how many threads voted yes
inline int simt_syncthreads(const char* site, bool yes = false) {
    SimtThread* t = simt_thread;
    t->op = SIMT_SYNCTHREADS;
    t->site = site;
    t->value = yes;
    simt_wait(*simt_block, t);
    return (int)simt_block->barrier_votes;
}

inline bool simt_syncthreads_and(const char* site, bool yes) {
    return simt_syncthreads(site, yes) == (int)simt_block->barrier_threads;
}

[[noreturn]] inline void simt_trap(const char* site) { simt_fault(*simt_block, simt_thread, "__trap at %s", site); }

// operands: what `together` reads and writes of this lane, alive until this returns
inline void simt_together(const char* site, const SimtTogether* together, unsigned mask, void* operands) {
    SimtThread* t = simt_thread;
    t->op = SIMT_TOGETHER;
    t->site = site;
    t->mask = mask;
    t->together = together;
    t->operands = operands;
    simt_wait(*simt_block, t);
}

// a type, so that __syncwarp() and __syncwarp(mask) can both be one macro
struct SimtSyncwarp {
    const char* site;
    void operator()(unsigned mask = 0xFFFFFFFFu) const {
        SimtThread* t = simt_thread;
        t->op = SIMT_SYNCWARP;
        t->site = site;
        t->mask = mask;
        simt_wait(*simt_block, t);
    }
};

// bit l: lane l of the mask voted yes; lanes that have left vote no
inline unsigned simt_ballot(const char* site, unsigned mask, bool yes) {
    SimtThread* t = simt_thread;
    t->op = SIMT_BALLOT;
    t->site = site;
    t->mask = mask;
    t->value = yes;
    simt_wait(*simt_block, t);
    return (unsigned)t->value;
}

inline bool simt_all(const char* site, unsigned mask, bool yes) { return simt_ballot(site, mask, !yes) == 0; }

template <class T>
T simt_shuffle(const char* site, SimtOp op, unsigned mask, T value, int param, int width = 32) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    SimtThread* t = simt_thread;
    t->op = op;
    t->site = site;
    if (width < 1 || width > 32 || (width & (width - 1)))
        simt_fault(*simt_block, t, "%s at %s: width %d is not 1, 2, 4, 8, 16 or 32", simt_op_name(*t), site, width);
    t->mask = mask;
    t->param = param;
    t->width = width;
    t->value = 0;
    memcpy(&t->value, &value, sizeof(T));
    simt_wait(*simt_block, t);
    memcpy(&value, &t->value, sizeof(T));
    return value;
}
