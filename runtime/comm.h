// Ranks: one process a GPU, data-parallel, through NCCL. A run of several ranks is the run of one rank with its work
// shared: each samples its part of a step's prompts and differentiates its part of the completions; everything else is
// computed by every rank from the same numbers, so that the weights stay equal without being sent. The losses are
// weighted over the whole batch (grpo.cuh), so the sum of the ranks' gradients is the gradient, up to rounding.
//
// RANK, WORLD_SIZE and LOCAL_RANK are torchrun's. The ranks meet through files beside --output_dir, which they must
// share: each asks with a random number in a file of its own, and takes NCCL's id from a file of rank 0's that has this
// number in it, so that nothing a killed run left is taken for an answer.
//
// A rank that dies is not heard of: on one machine NCCL tells the others nothing, and its kernels wait for ever. So the
// communicator is non-blocking, and each function here returns when its collective is done, has failed, or has taken
// --ddp_timeout seconds; then the communicator is aborted, which frees the stream, and the rank fails.
#pragma once
#include <unistd.h>
#include <chrono>
#include <exception>
#include <functional>
#include <random>
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
    double timeout = 1800.0;  // seconds that this rank waits for the others
    Buffer<double> small;     // [small_size] what a reduction of host numbers travels in
    static constexpr size_t small_size = 64;
#if HAS_NCCL
    ncclComm_t nccl = nullptr;  // none after an error
#endif
    Comm() = default;
    Comm(const Comm&) = delete;
    Comm& operator=(const Comm&) = delete;
#if HAS_NCCL
    ~Comm();
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
// ---------------------------------------------------------------------------------------------------------------------
// waiting

inline void nccl_check(ncclResult_t result, const char* call, const char* file, int line) {
    if (result != ncclSuccess)
        fail("%s:%d: %s: %s (NCCL_DEBUG=INFO says more)", file, line, call, ncclGetErrorString(result));
}
#define NCCL_CHECK(call) nccl_check((call), #call, __FILE__, __LINE__)

inline double seconds_now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Waits for the communicator, and for the work on the stream if it is asked to. Empty: done; else what is wrong.
// meanwhile: called at each look, may be null
inline std::string comm_wait(Comm& c, bool stream, const std::function<void()>& meanwhile = nullptr) {
    for (const double start = seconds_now();;) {
        ncclResult_t state = ncclSuccess;
        const ncclResult_t asked = ncclCommGetAsyncError(c.nccl, &state);
        if (asked != ncclSuccess) state = asked;
        if (state != ncclSuccess && state != ncclInProgress) return ncclGetErrorString(state);
        if (state == ncclSuccess) {
            const cudaError_t done = stream ? cudaStreamQuery(c.dev.stream) : cudaSuccess;
            if (done == cudaSuccess) return "";
            if (done != cudaErrorNotReady) return cudaGetErrorString(done);
            (void)cudaGetLastError();  // "not ready" is no error, and the next launch asks for the last one
        }
        if (meanwhile) meanwhile();
        const double waited = seconds_now() - start;
        if (waited > c.timeout) return format("waited %g s for the others (--ddp_timeout)", c.timeout);
        if (waited > 2e-3) usleep(meanwhile ? 20000 : 50);  // a small reduction takes 20 us, a large one milliseconds
    }
}

inline void comm_abort(Comm& c) {
    if (c.nccl) ncclCommAbort(c.nccl);
    c.nccl = nullptr;
}

// after the call of a collective, which has returned `called`: until it is done
inline void comm_finish(Comm& c, ncclResult_t called, const char* what) {
    const bool started = called == ncclSuccess || called == ncclInProgress;
    const std::string wrong = started ? comm_wait(c, true) : ncclGetErrorString(called);
    if (wrong.empty()) return;
    comm_abort(c);
    fail("rank %d of %d: %s: %s; has another rank died or stopped? Its message says why (NCCL_DEBUG=INFO says more)",
         c.rank, c.world, what, wrong.c_str());
}

// before a collective
inline void comm_check(const Comm& c, const char* what) {
    if (!c.nccl) fail("rank %d of %d: %s after the ranks have parted", c.rank, c.world, what);
}

// All ranks are here, so that none waits in ncclCommDestroy for one that is gone; false: they are not
inline bool comm_parting(Comm& c) {
    const ncclResult_t called = ncclAllReduce(c.small.data, c.small.data, 1, ncclDouble, ncclSum, c.nccl, c.dev.stream);
    if ((called != ncclSuccess && called != ncclInProgress) || !comm_wait(c, true).empty()) return false;
    const ncclResult_t last = ncclCommFinalize(c.nccl);
    return (last == ncclSuccess || last == ncclInProgress) && comm_wait(c, false).empty();
}

inline Comm::~Comm() {
    if (!nccl) return;
    // after an error the others may wait in a collective, and learn of it by their timeout: leave without them
    if (std::uncaught_exceptions() || !comm_parting(*this)) comm_abort(*this);
    else ncclCommDestroy(nccl);
}

// ---------------------------------------------------------------------------------------------------------------------
// meeting: MEETING.1, MEETING.2, ... hold what each rank asked with; MEETING, of rank 0: NCCL's id, and what each rank
// (rank 0 too, with 0) had asked with when it was written

inline std::string meeting_question(const std::string& meeting, int rank) { return meeting + format(".%d", rank); }

// the file's bytes if there are as many as they should be; else none
inline std::string meeting_read(const std::string& path, size_t bytes) {
    if (!file_exists(path)) return "";
    try {
        const std::string text = read_file(path, 1 << 20);
        return text.size() == bytes ? text : "";
    } catch (const Error&) {  // it went between the two
        return "";
    }
}

inline std::vector<uint64_t> meeting_asked(const std::string& meeting, int world) {
    std::vector<uint64_t> asked(world, 0);
    for (int rank = 1; rank < world; rank++) {
        const std::string text = meeting_read(meeting_question(meeting, rank), sizeof(uint64_t));
        if (!text.empty()) memcpy(&asked[rank], text.data(), sizeof(uint64_t));
    }
    return asked;
}

// Rank 0: answers those who ask, until all have joined; a question of an earlier run is answered too, and nobody reads it
inline std::string meeting_answer(Comm& c, const std::string& meeting, const ncclUniqueId& id) {
    std::vector<uint64_t> answered(c.world, 0);
    return comm_wait(c, false, [&] {
        const std::vector<uint64_t> asked = meeting_asked(meeting, c.world);
        if (asked == answered) return;
        answered = asked;
        write_file_atomic(meeting, std::string(reinterpret_cast<const char*>(&id), sizeof(id)) +
                                       std::string(reinterpret_cast<const char*>(asked.data()), 8 * asked.size()));
    });
}

// The others: the id that answers `nonce`
inline ncclUniqueId meeting_ask(const Comm& c, const std::string& meeting, uint64_t nonce) {
    write_file_atomic(meeting_question(meeting, c.rank),
                      std::string(reinterpret_cast<const char*>(&nonce), sizeof(nonce)));
    for (const double start = seconds_now();;) {
        const std::string text = meeting_read(meeting, sizeof(ncclUniqueId) + 8 * (size_t)c.world);
        uint64_t answered = 0;
        if (!text.empty()) memcpy(&answered, text.data() + sizeof(ncclUniqueId) + 8 * c.rank, sizeof(answered));
        if (answered == nonce) {
            ncclUniqueId id;
            memcpy(&id, text.data(), sizeof(id));
            return id;
        }
        if (seconds_now() - start > c.timeout)
            fail("rank %d waited %g s for rank 0 at %s (--ddp_timeout); start it with the same --output_dir", c.rank,
                 c.timeout, meeting.c_str());
        usleep(20000);
    }
}

inline uint64_t meeting_nonce() {
    std::random_device random;
    return (uint64_t)random() << 32 | random() | 1;
}

inline void comm_meet(Comm& c, const std::string& meeting) {
    const std::string mine = c.rank == 0 ? meeting : meeting_question(meeting, c.rank);
    struct Remove {  // also after a failure
        const std::string& path;
        ~Remove() { unlink(path.c_str()); }
    } remove{mine};
    ncclUniqueId id;
    if (c.rank == 0) NCCL_CHECK(ncclGetUniqueId(&id));
    else id = meeting_ask(c, meeting, meeting_nonce());
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    const ncclResult_t called = ncclCommInitRankConfig(&c.nccl, c.world, id, c.rank, &config);
    if (called != ncclInProgress) NCCL_CHECK(called);
    const std::string wrong = c.rank == 0 ? meeting_answer(c, meeting, id) : comm_wait(c, false);
    if (wrong.empty()) return;
    comm_abort(c);
    fail(
        "rank %d of %d: joining the others: %s; did every rank start, with the same --output_dir? (NCCL_DEBUG=INFO "
        "says more)",
        c.rank, c.world, wrong.c_str());
}
#endif

// Joins the ranks of the environment; alone if there is one. meeting: a path that all ranks share; timeout: seconds that
// a rank waits for the others, here and later
inline void comm_open(Comm& c, const std::string& meeting, Device dev, double timeout) {
    c.world = world_size();
    c.rank = world_rank();
    c.dev = dev;
    c.timeout = timeout;
    if (c.rank >= c.world) fail_usage("RANK=%d of WORLD_SIZE=%d: ranks count from 0", c.rank, c.world);
    if (c.world == 1) return;
    if (!dev.cuda) fail("WORLD_SIZE=%d: several ranks need GPUs; use --device cuda, or one rank", c.world);
#if HAS_NCCL
    Device plain = dev;
    plain.arena = nullptr;
    c.small.allocate(Comm::small_size, "reductions over the ranks", "", plain);
    comm_meet(c, meeting);
#else
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
    if (n == 0) return;
    NVTX_RANGE("all_reduce");
    comm_check(c, "all-reduce");
    comm_finish(c, ncclAllReduce(x, x, n, ncclFloat, ncclSum, c.nccl, c.dev.stream), "all-reduce of gradients");
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
    comm_check(c, "reduction");
    comm_finish(c, ncclAllReduce(c.small.data, c.small.data, values.size(), ncclDouble, op, c.nccl, c.dev.stream),
                "reduction of numbers");
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
    comm_check(c, "gathering");
    comm_finish(
        c, ncclAllGather(device.data + c.rank * mine.size(), device.data, mine.size(), ncclInt, c.nccl, c.dev.stream),
        "gathering of completions");
    copy_to_host(all.data(), device.data, all.size() * sizeof(int), c.dev);
#endif
    return all;
}
