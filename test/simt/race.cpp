// Races in shared memory, whatever order the threads ran in. A program whose kernels were compiled with -fsanitize=thread
// calls these functions at each load and store in the place of libtsan's; linked without that flag, they are all there is.
//
// Two accesses of one byte by two threads race, if one writes and no barrier lies between them: no __syncthreads, and of
// threads of a warp no __syncwarp (shuffles and votes order no memory). Atomics race with plain accesses alone. Of reads
// the last two threads are remembered, so that of three readers in a warp one may be forgotten.
//
// What it cannot see: global memory; what the C library does (a memcpy of an unknown size); a race that the data of the run
// does not come to. Takes part in an asynchronous copy: its issue and its landing, as writes of the thread that waits.
#include "../../runtime/device.h"

struct Access {
    uint32_t epoch = 0, warp_epoch = 0;  // 0: none
    uint16_t thread = 0;
    bool atomic = false;
};
struct Cell {
    Access write, reads[2];  // reads: the last two threads
};
struct Shadow {
    std::vector<Cell> dynamic{SIMT_SHARED_BYTES}, fixed;
};

static thread_local bool inside = false;

// of the OS thread; not a thread-local variable, which the end of a block would take for one of the kernel's
static Shadow& shadow(SimtBlock& b) {
    if (!b.shadow) {
        auto made = std::make_shared<Shadow>();
        made->fixed.resize((size_t)(b.locals.end - b.locals.begin));
        b.shadow = made;
    }
    return *static_cast<Shadow*>(b.shadow.get());
}

// is `before` ordered before what thread t does now, or its own?
static bool ordered(const SimtBlock& b, const Access& before, const SimtThread& t) {
    if (before.epoch != b.epoch || before.thread == t.linear) return true;
    return before.thread / 32 == t.linear / 32 && before.warp_epoch < b.warp[t.linear / 32].epoch;
}

// What the access is to an earlier one of cell: a race with thread *other, or null; then it is remembered
static const char* race_with(Cell& cell, const SimtBlock& b, const SimtThread& t, bool write, bool atomic,
                             unsigned* other) {
    if (!ordered(b, cell.write, t) && !(atomic && cell.write.atomic)) {
        *other = cell.write.thread;
        return write ? "writes what was written" : "reads what was written";
    }
    for (const Access& read : cell.reads)
        if (write && !ordered(b, read, t) && !(atomic && read.atomic)) {
            *other = read.thread;
            return "writes what was read";
        }
    const Access now = {b.epoch, b.warp[t.linear / 32].epoch, (uint16_t)t.linear, atomic};
    if (write) {
        cell.write = now;
    } else {
        if (cell.reads[0].thread != t.linear) cell.reads[1] = cell.reads[0];
        cell.reads[0] = now;
    }
    return nullptr;
}

static void access_of(SimtThread* t, const void* p, size_t bytes, bool write, bool atomic) {
    if (!t || !simt_block || inside) return;
    SimtBlock& b = *simt_block;
    if (!b.settings.races) return;
    const char* at = static_cast<const char*>(p);
    const bool dynamic = at >= b.shared && at < b.shared + SIMT_SHARED_BYTES;
    const bool fixed = at >= b.locals.begin && at < b.locals.end && p != &simt_thread && p != &simt_block;
    if (!dynamic && !fixed) return;
    inside = true;
    Shadow& s = shadow(b);
    Cell* cells = dynamic ? &s.dynamic[(size_t)(at - b.shared)] : &s.fixed[(size_t)(at - b.locals.begin)];
    const char* how = nullptr;
    unsigned other = 0;
    for (size_t i = 0; i < bytes && !how; i++) how = race_with(cells[i], b, *t, write, atomic, &other);
    inside = false;
    if (!how) return;
    const uint3 o = b.thread[other].index;
    simt_fault(b, t, "race: it %s by thread (%u,%u,%u) since the last barrier, %zu bytes at %zu of %s shared memory",
               how, o.x, o.y, o.z, bytes, (size_t)(at - (dynamic ? b.shared : b.locals.begin)),
               dynamic ? "dynamic" : "static");
}

static void access(const void* p, size_t bytes, bool write, bool atomic = false) {
    access_of(simt_thread, p, bytes, write, atomic);
}
static const bool told = (
    simt_accessed = [](SimtThread* t, const void* p, size_t n, bool write) { access_of(t, p, n, write, false); }, true);

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* p, size_t n) { access(p, n, false); }
void __tsan_write_range(void* p, size_t n) { access(p, n, true); }
#define PLAIN(n)                                                    \
    void __tsan_read##n(void* p) { access(p, n, false); }           \
    void __tsan_write##n(void* p) { access(p, n, true); }           \
    void __tsan_unaligned_read##n(void* p) { access(p, n, false); } \
    void __tsan_unaligned_write##n(void* p) { access(p, n, true); } \
    void __tsan_volatile_read##n(void* p) { access(p, n, false); }  \
    void __tsan_volatile_write##n(void* p) { access(p, n, true); }
PLAIN(1)
PLAIN(2) PLAIN(4) PLAIN(8) PLAIN(16)
#undef PLAIN

// the order that was asked for is not kept track of: all are sequentially consistent
#define ATOMIC(bits, T)                                                                                \
    T __tsan_atomic##bits##_load(const volatile T* p, int) {                                           \
        access((const void*)p, sizeof(T), false, true);                                                \
        return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                   \
    }                                                                                                  \
    void __tsan_atomic##bits##_store(volatile T* p, T x, int) {                                        \
        access((const void*)p, sizeof(T), true, true);                                                 \
        __atomic_store_n(p, x, __ATOMIC_SEQ_CST);                                                      \
    }                                                                                                  \
    T __tsan_atomic##bits##_exchange(volatile T* p, T x, int) {                                        \
        access((const void*)p, sizeof(T), true, true);                                                 \
        return __atomic_exchange_n(p, x, __ATOMIC_SEQ_CST);                                            \
    }                                                                                                  \
    T __tsan_atomic##bits##_fetch_add(volatile T* p, T x, int) {                                       \
        access((const void*)p, sizeof(T), true, true);                                                 \
        return __atomic_fetch_add(p, x, __ATOMIC_SEQ_CST);                                             \
    }                                                                                                  \
    T __tsan_atomic##bits##_fetch_sub(volatile T* p, T x, int) {                                       \
        access((const void*)p, sizeof(T), true, true);                                                 \
        return __atomic_fetch_sub(p, x, __ATOMIC_SEQ_CST);                                             \
    }                                                                                                  \
    T __tsan_atomic##bits##_fetch_or(volatile T* p, T x, int) {                                        \
        access((const void*)p, sizeof(T), true, true);                                                 \
        return __atomic_fetch_or(p, x, __ATOMIC_SEQ_CST);                                              \
    }                                                                                                  \
    T __tsan_atomic##bits##_fetch_and(volatile T* p, T x, int) {                                       \
        access((const void*)p, sizeof(T), true, true);                                                 \
        return __atomic_fetch_and(p, x, __ATOMIC_SEQ_CST);                                             \
    }                                                                                                  \
    bool __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* expected, T x, int, int) {    \
        access((const void*)p, sizeof(T), true, true);                                                 \
        return __atomic_compare_exchange_n(p, expected, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    }                                                                                                  \
    bool __tsan_atomic##bits##_compare_exchange_weak(volatile T* p, T* expected, T x, int, int) {      \
        access((const void*)p, sizeof(T), true, true);                                                 \
        return __atomic_compare_exchange_n(p, expected, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    }
    ATOMIC(8, uint8_t) ATOMIC(16, uint16_t) ATOMIC(32, uint32_t) ATOMIC(64, uint64_t)
#undef ATOMIC
        void __tsan_atomic_thread_fence(int) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
void __tsan_atomic_signal_fence(int) {}
}
