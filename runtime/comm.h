// Ranks: one process a GPU, data-parallel, through NCCL. A run of several ranks is the run of one rank with its work
// shared: each samples its part of a step's prompts and differentiates its part of the completions; everything else is
// computed by every rank from the same numbers, so that the weights stay equal without being sent. The losses are
// weighted over the whole batch (grpo.cuh), so the sum of the ranks' gradients is the gradient, up to rounding.
//
// RANK, WORLD_SIZE and LOCAL_RANK are torchrun's. The ranks meet through a file beside --output_dir, which they must
// share: rank 0 writes NCCL's id into it and removes it when all have come.
#pragma once
#include <sys/stat.h>
#include <unistd.h>
#include <chrono>
#include <ctime>
#include <exception>
#include <string>
#include <vector>
#include "buffer.h"
#include "file_io.h"
#if HAS_KERNELS && __has_include(<nccl.h>)
#define HAS_NCCL 1
#include <nccl.h>
#else
#define HAS_NCCL 0
#endif

struct Comm {
    int rank = 0, world = 1;
    Device dev;
    Buffer<double> small;  // [small_size] what a reduction of host numbers travels in
    static constexpr size_t small_size = 64;
#if HAS_NCCL
    ncclComm_t nccl = nullptr;
#endif
    Comm() = default;
    Comm(const Comm&) = delete;
    Comm& operator=(const Comm&) = delete;
#if HAS_NCCL
    ~Comm() {
        // after an error the others may wait in a collective: leave without them
        if (nccl && std::uncaught_exceptions()) ncclCommAbort(nccl);
        else if (nccl) ncclCommDestroy(nccl);
    }
#endif
};

inline int environment_int(const char* name, int otherwise) {
    const char* text = getenv(name);
    if (!text || !*text) return otherwise;
    char* end = nullptr;
    long n = strtol(text, &end, 10);
    if (*end || n < 0 || n > 1 << 16) fail_usage("%s=%s: a whole number is needed", name, text);
    return (int)n;
}

inline int world_size() {
    int n = environment_int("WORLD_SIZE", 1);
    if (n < 1) fail_usage("WORLD_SIZE=%d: at least 1", n);
    return n;
}
inline int world_rank() { return environment_int("RANK", 0); }
inline int local_rank() { return environment_int("LOCAL_RANK", environment_int("RANK", 0)); }

#if HAS_NCCL
inline void nccl_check(ncclResult_t result, const char* call, const char* file, int line) {
    if (result != ncclSuccess)
        fail("%s:%d: %s: %s (did every rank start, and is every one alive? NCCL_DEBUG=INFO says more)", file, line,
             call, ncclGetErrorString(result));
}
#define NCCL_CHECK(call) nccl_check((call), #call, __FILE__, __LINE__)

inline double seconds_now() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// The id that rank 0 wrote. A file from before this start (less a minute, for ranks that start one after another) is
// what a killed run left.
inline ncclUniqueId comm_read_id(const std::string& path, int rank, double timeout) {
    double start = seconds_now();
    for (;;) {
        struct stat about;
        if (stat(path.c_str(), &about) == 0 && (double)about.st_mtime > start - 60.0 &&
            about.st_size == (off_t)sizeof(ncclUniqueId)) {
            MappedFile file(path);
            ncclUniqueId id;
            memcpy(&id, file.data, sizeof(id));
            return id;
        }
        if (seconds_now() - start > timeout)
            fail("rank %d waited %.0f s for rank 0 at %s; start it with the same --output_dir", rank, timeout,
                 path.c_str());
        usleep(20000);
    }
}
#endif

// Joins the ranks of the environment; alone if there is one. meeting: the file, a path that all ranks share
inline void comm_open(Comm& c, const std::string& meeting, Device dev, double timeout = 60.0) {
    c.world = world_size();
    c.rank = world_rank();
    c.dev = dev;
    if (c.rank >= c.world) fail_usage("RANK=%d of WORLD_SIZE=%d: ranks count from 0", c.rank, c.world);
    if (c.world == 1) return;
    if (!dev.cuda) fail("WORLD_SIZE=%d: several ranks need GPUs; use --device cuda, or one rank", c.world);
#if HAS_NCCL
    Device plain = dev;
    plain.arena = nullptr;
    c.small.allocate(Comm::small_size, "reductions over the ranks", "", plain);
    ncclUniqueId id;
    if (c.rank == 0) {
        unlink(meeting.c_str());
        NCCL_CHECK(ncclGetUniqueId(&id));
        write_file_atomic(meeting, std::string(reinterpret_cast<const char*>(&id), sizeof(id)));
    } else {
        id = comm_read_id(meeting, c.rank, timeout);
    }
    ncclResult_t joined = ncclCommInitRank(&c.nccl, c.world, id, c.rank);
    if (c.rank == 0) unlink(meeting.c_str());  // also after a failure: the next run must not find it
    NCCL_CHECK(joined);
#else
    (void)timeout;
    fail(
        "WORLD_SIZE=%d: this program was built without NCCL (meeting at %s); install NCCL and build it again, or use "
        "one rank",
        c.world, meeting.c_str());
#endif
}

// the part of n things that is this rank's: [begin, end), whole multiples of `step`
inline std::pair<int, int> comm_share(const Comm& c, int n, int step = 1) {
    int64_t pieces = n / step;
    return {(int)(pieces * c.rank / c.world) * step, (int)(pieces * (c.rank + 1) / c.world) * step};
}

// x [n], where the device has it: the sum over the ranks, each of which brings its own part
inline void comm_sum(Comm& c, float* x, size_t n) {
    if (c.world == 1) return;
    (void)x, (void)n;
#if HAS_NCCL
    NVTX_RANGE("all_reduce");
    NCCL_CHECK(ncclAllReduce(x, x, n, ncclFloat, ncclSum, c.nccl, c.dev.stream));
#endif
}

enum class Reduce { sum, min, max };

// x, numbers of the host: their sum, minimum or maximum over the ranks
inline void comm_reduce(Comm& c, const std::vector<double*>& x, Reduce how) {
    if (c.world == 1) return;
    (void)x, (void)how;
#if HAS_NCCL
    std::vector<double> values;
    for (double* p : x) values.push_back(*p);
    if (values.size() > Comm::small_size) fail("comm_reduce: %zu numbers at once", values.size());
    copy_to_device(c.small.data, values.data(), values.size() * sizeof(double), c.dev);
    ncclRedOp_t op = how == Reduce::sum ? ncclSum : how == Reduce::min ? ncclMin : ncclMax;
    NCCL_CHECK(ncclAllReduce(c.small.data, c.small.data, values.size(), ncclDouble, op, c.nccl, c.dev.stream));
    copy_to_host(values.data(), c.small.data, values.size() * sizeof(double), c.dev);
    for (size_t i = 0; i < x.size(); i++) *x[i] = values[i];
#endif
}

// is it so on any rank? Every rank gets the same answer
inline bool comm_any(Comm& c, bool yes) {
    double x = yes;
    comm_reduce(c, {&x}, Reduce::max);
    return x > 0.0;
}

// the ranks' lists one after another; each rank brings the same number of them
inline std::vector<int> comm_gather(Comm& c, const std::vector<int>& mine) {
    if (c.world == 1) return mine;
    std::vector<int> all(mine.size() * c.world);
#if HAS_NCCL
    Buffer<int> device;
    Device plain = c.dev;
    plain.arena = nullptr;
    device.allocate(all.size(), "completions of all ranks", "lower --max_completion_length", plain);
    copy_to_device(device.data + c.rank * mine.size(), mine.data(), mine.size() * sizeof(int), c.dev);
    NCCL_CHECK(
        ncclAllGather(device.data + c.rank * mine.size(), device.data, mine.size(), ncclInt, c.nccl, c.dev.stream));
    copy_to_host(all.data(), device.data, all.size() * sizeof(int), c.dev);
#endif
    return all;
}
