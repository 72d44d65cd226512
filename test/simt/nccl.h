// Stands in for NCCL: collectives between processes of one machine through POSIX shared memory. The segment is named by
// the unique id and unlinked as soon as every rank has opened it. Data go through one slot per rank in pieces, and
// every rank reduces the slots in the order of the ranks (fp32 for bf16, rounded once), so that all ranks get the same
// bits.
//
// As the real one between the GPUs of one machine, a collective goes on by itself (a thread) while the host works, and one
// whose others do not come never ends: the death or the abort of a rank is not told to the others, and ncclCommDestroy
// waits for all of them. Only ncclCommAbort ends what this rank waits in. With config.blocking 0 joining goes on by itself
// too, as ncclInProgress of ncclCommGetAsyncError.
//
// Not as the real one: whoever has waited TRAIN_QRL_SIMT_NCCL_TIMEOUT seconds (60) fails with ncclSystemError, and all
// others with it, so that a test ends; ranks that call different collectives, counts, types or roots fail with
// ncclInvalidArgument; on the default stream, and in a graph, a collective runs within the call.
#pragma once
#include <cuda_runtime.h>
#include <fcntl.h>
#include <unistd.h>
#include <random>
#include <thread>

#define NCCL_UNIQUE_ID_BYTES 128
struct ncclUniqueId {
    char internal[NCCL_UNIQUE_ID_BYTES];
};

enum ncclResult_t {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7,
};
enum ncclDataType_t {
    ncclInt8 = 0,
    ncclChar = 0,
    ncclUint8 = 1,
    ncclInt32 = 2,
    ncclInt = 2,
    ncclInt64 = 4,
    ncclFloat32 = 7,
    ncclFloat = 7,
    ncclFloat64 = 8,
    ncclDouble = 8,
    ncclBfloat16 = 9,
};
enum ncclRedOp_t { ncclSum = 0, ncclMax = 2, ncclMin = 3 };

inline const char* ncclGetErrorString(ncclResult_t result) {
    switch (result) {
        case ncclSuccess:
            return "no error";
        case ncclSystemError:
            return "unhandled system error";
        case ncclInvalidArgument:
            return "invalid argument";
        case ncclInvalidUsage:
            return "invalid usage";
        default:
            return result == ncclInProgress ? "NCCL operation in progress" : "an error of the simulated NCCL";
    }
}

static constexpr int SIMT_NCCL_MAX_RANKS = 16;
static constexpr size_t SIMT_NCCL_SLOT = 256 * 1024;  // bytes

enum SimtNcclKind { SIMT_ALL_REDUCE, SIMT_BROADCAST, SIMT_ALL_GATHER, SIMT_REDUCE_SCATTER };

struct SimtNcclCall {
    int kind, type, op, root;
    size_t count;
};

// what the processes share; new shared memory is zero
struct SimtNcclShared {
    std::atomic<int> joined, arrived, round, left, failed;
    SimtNcclCall call[SIMT_NCCL_MAX_RANKS];
    alignas(64) char slot[SIMT_NCCL_MAX_RANKS][SIMT_NCCL_SLOT];
};

// what a communicator does by itself: joining, or a collective
struct SimtNcclWork {
    std::atomic<bool> over{false}, aborted{false};
    std::atomic<int> result{ncclSuccess};
    std::thread thread;
    ~SimtNcclWork() { wait(); }
    void wait() {
        if (thread.joinable()) thread.join();
    }
};

typedef struct SimtNcclComm {
    int rank, ranks;
    SimtNcclShared* shared = nullptr;
    std::atomic<bool> aborted{false};
    bool joining = false;                // work is that
    std::shared_ptr<SimtNcclWork> work;  // the last
} * ncclComm_t;

struct ncclConfig_t {
    int blocking = 1;
};
#define NCCL_CONFIG_INITIALIZER ncclConfig_t()

inline double simt_nccl_timeout() {
    const char* text = getenv("TRAIN_QRL_SIMT_NCCL_TIMEOUT");
    return text ? atof(text) : 60.0;
}

// waits until ready(), sleeping longer and longer; false: the others do not come, or this rank has aborted
template <class F>
bool simt_nccl_wait(ncclComm_t comm, F ready) {
    SimtNcclShared* s = comm->shared;
    auto start = std::chrono::steady_clock::now();
    for (int i = 0; !ready(); i++) {
        if (s->failed || comm->aborted) return false;
        if (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() > simt_nccl_timeout()) {
            s->failed = 1;
            return false;
        }
        usleep(i < 100 ? 0 : 200);
    }
    return true;
}

inline bool simt_nccl_barrier(ncclComm_t comm) {
    SimtNcclShared* s = comm->shared;
    int round = s->round;
    if (s->failed) return false;
    if (++s->arrived == comm->ranks) {
        s->arrived = 0;
        s->round++;
        return true;
    }
    return simt_nccl_wait(comm, [=] { return s->round != round; });
}

// f() by itself
inline std::shared_ptr<SimtNcclWork> simt_nccl_start(ncclComm_t comm, std::function<ncclResult_t()> f) {
    auto work = std::make_shared<SimtNcclWork>();
    comm->work = work;
    SimtNcclWork* w = work.get();  // the thread is joined before it goes
    work->thread = std::thread([w, f] {
        w->result = f();
        w->over = true;
    });
    return work;
}

inline ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    std::random_device random;
    memset(id->internal, 0, sizeof(id->internal));
    snprintf(id->internal, sizeof(id->internal), "/simt_nccl_%d_%08x%08x", (int)getpid(), random(), random());
    return ncclSuccess;
}

// returns when all ranks have called it
inline ncclResult_t simt_nccl_join(ncclComm_t comm, const ncclUniqueId& id) {
    SimtNcclShared* s = comm->shared;
    s->joined++;
    bool all = simt_nccl_wait(comm, [=] { return s->joined >= comm->ranks; });
    shm_unlink(id.internal);
    return all ? ncclSuccess : ncclSystemError;
}

inline void simt_nccl_free(ncclComm_t comm) {
    if (comm->work) comm->work->wait();
    munmap(comm->shared, sizeof(SimtNcclShared));
    delete comm;
}

inline ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                           ncclConfig_t* config) {
    if (!comm || ranks < 1 || ranks > SIMT_NCCL_MAX_RANKS || rank < 0 || rank >= ranks) return ncclInvalidArgument;
    int file = shm_open(id.internal, O_CREAT | O_RDWR, 0600);
    if (file < 0) return ncclSystemError;
    void* p = ftruncate(file, sizeof(SimtNcclShared)) == 0
                  ? mmap(nullptr, sizeof(SimtNcclShared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
                  : MAP_FAILED;
    close(file);
    if (p == MAP_FAILED) {
        shm_unlink(id.internal);
        return ncclSystemError;
    }
    ncclComm_t made = new SimtNcclComm;
    made->rank = rank, made->ranks = ranks, made->shared = static_cast<SimtNcclShared*>(p);
    if (config && !config->blocking) {
        *comm = made;
        made->joining = true;
        simt_nccl_start(made, [=] { return simt_nccl_join(made, id); });
        return ncclInProgress;
    }
    ncclResult_t result = simt_nccl_join(made, id);
    if (result == ncclSuccess) *comm = made;
    else simt_nccl_free(made);
    return result;
}
inline ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
    return ncclCommInitRankConfig(comm, ranks, id, rank, nullptr);
}

inline ncclResult_t ncclCommFinalize(ncclComm_t comm) { return comm ? ncclSuccess : ncclInvalidArgument; }
inline ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    if (!comm) return ncclInvalidArgument;
    SimtNcclShared* s = comm->shared;
    s->left++;
    bool all = simt_nccl_wait(comm, [=] { return s->left >= comm->ranks; });
    simt_nccl_free(comm);
    return all ? ncclSuccess : ncclSystemError;
}
inline ncclResult_t ncclCommAbort(ncclComm_t comm) {
    if (!comm) return ncclInvalidArgument;
    comm->aborted = true;
    if (comm->work) comm->work->aborted = true;
    simt_nccl_free(comm);
    return ncclSuccess;
}
inline ncclResult_t ncclCommCount(ncclComm_t comm, int* ranks) {
    *ranks = comm->ranks;
    return ncclSuccess;
}
inline ncclResult_t ncclCommUserRank(ncclComm_t comm, int* rank) {
    *rank = comm->rank;
    return ncclSuccess;
}
inline ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* result) {
    *result = ncclSuccess;
    if (comm->work && comm->work->over) *result = (ncclResult_t)(int)comm->work->result;
    if (comm->work && !comm->work->over && comm->joining) *result = ncclInProgress;
    if (comm->shared->failed) *result = ncclSystemError;
    return ncclSuccess;
}

// ---------------------------------------------------------------------------------------------------------------------
// collectives

inline size_t simt_nccl_bytes(int type) {
    switch (type) {
        case ncclInt8:
        case ncclUint8:
            return 1;
        case ncclBfloat16:
            return 2;
        case ncclInt32:
        case ncclFloat32:
            return 4;
        case ncclInt64:
        case ncclFloat64:
            return 8;
    }
    return 0;
}

template <class T>
T simt_nccl_combine(int op, T a, T b) {
    return op == ncclSum ? (T)(a + b) : op == ncclMax ? std::max(a, b) : std::min(a, b);
}

// out[i] = the slots' elements i, combined in the order of the ranks
template <class T>
void simt_nccl_reduce(const SimtNcclComm* comm, int op, void* out, size_t count) {
    for (size_t i = 0; i < count; i++) {
        auto at = [&](int rank) { return reinterpret_cast<const T*>(comm->shared->slot[rank])[i]; };
        T x = at(0);
        for (int rank = 1; rank < comm->ranks; rank++) x = simt_nccl_combine(op, x, at(rank));
        static_cast<T*>(out)[i] = x;
    }
}

inline void simt_nccl_reduce_bf16(const SimtNcclComm* comm, int op, void* out, size_t count) {
    for (size_t i = 0; i < count; i++) {
        auto at = [&](int rank) {
            return __uint_as_float((unsigned)reinterpret_cast<const uint16_t*>(comm->shared->slot[rank])[i] << 16);
        };
        float x = at(0);
        for (int rank = 1; rank < comm->ranks; rank++) x = simt_nccl_combine(op, x, at(rank));
        unsigned bits = __float_as_uint(x);
        bits = std::isnan(x) ? bits | 0x400000u : bits + 0x7FFFu + (bits >> 16 & 1u);
        static_cast<uint16_t*>(out)[i] = (uint16_t)(bits >> 16);
    }
}

inline void simt_nccl_reduce_any(const SimtNcclComm* comm, int type, int op, void* out, size_t count) {
    if (type == ncclFloat32) simt_nccl_reduce<float>(comm, op, out, count);
    else if (type == ncclFloat64) simt_nccl_reduce<double>(comm, op, out, count);
    else if (type == ncclInt32) simt_nccl_reduce<int32_t>(comm, op, out, count);
    else if (type == ncclInt64) simt_nccl_reduce<int64_t>(comm, op, out, count);
    else if (type == ncclInt8) simt_nccl_reduce<int8_t>(comm, op, out, count);
    else if (type == ncclUint8) simt_nccl_reduce<uint8_t>(comm, op, out, count);
    else simt_nccl_reduce_bf16(comm, op, out, count);
}

// count: of the elements of one rank's part, as the caller gave it
inline ncclResult_t simt_nccl_run(ncclComm_t comm, const void* send, void* recv, SimtNcclCall call) {
    SimtNcclShared* s = comm->shared;
    const int rank = comm->rank, ranks = comm->ranks;
    const size_t size = simt_nccl_bytes(call.type), most = SIMT_NCCL_SLOT / size;
    s->call[rank] = call;
    if (!simt_nccl_barrier(comm)) return ncclSystemError;
    for (int r = 0; r < ranks; r++) {
        const SimtNcclCall& other = s->call[r];
        if (other.kind != call.kind || other.type != call.type || other.op != call.op || other.root != call.root ||
            other.count != call.count) {
            simt_nccl_barrier(comm);  // until all have seen it
            return ncclInvalidArgument;
        }
    }
    // a reduce-scatter is one round for each receiver
    int receivers = call.kind == SIMT_REDUCE_SCATTER ? ranks : 1;
    for (int receiver = 0; receiver < receivers; receiver++)
        for (size_t done = 0, n; done < call.count; done += n) {
            n = std::min(most, call.count - done);
            const char* from = static_cast<const char*>(send) + ((size_t)receiver * call.count + done) * size;
            if (call.kind != SIMT_BROADCAST || rank == call.root) memcpy(s->slot[rank], from, n * size);
            if (!simt_nccl_barrier(comm)) return ncclSystemError;
            char* to = static_cast<char*>(recv) + done * size;
            if (call.kind == SIMT_BROADCAST) memcpy(to, s->slot[call.root], n * size);
            else if (call.kind == SIMT_ALL_REDUCE) simt_nccl_reduce_any(comm, call.type, call.op, to, n);
            else if (call.kind == SIMT_REDUCE_SCATTER) {
                if (rank == receiver) simt_nccl_reduce_any(comm, call.type, call.op, to, n);
            } else {
                for (int r = 0; r < ranks; r++) memcpy(to + (size_t)r * call.count * size, s->slot[r], n * size);
            }
            if (!simt_nccl_barrier(comm)) return ncclSystemError;
        }
    return ncclSuccess;
}

// Between ncclGroupStart and ncclGroupEnd collectives only collect; they run, in order, at the end of the group.
struct SimtNcclGroup {
    int depth = 0;
    std::vector<std::function<ncclResult_t()>> calls;
};
inline SimtNcclGroup& simt_nccl_group() {
    static thread_local SimtNcclGroup group;
    return group;
}
inline ncclResult_t ncclGroupStart() {
    simt_nccl_group().depth++;
    return ncclSuccess;
}
inline ncclResult_t ncclGroupEnd() {
    SimtNcclGroup& group = simt_nccl_group();
    if (group.depth == 0) return ncclInvalidUsage;
    if (--group.depth) return ncclSuccess;
    ncclResult_t result = ncclSuccess;
    for (auto& call : group.calls)
        if (result == ncclSuccess) result = call();
    group.calls.clear();
    return result;
}

inline void simt_nccl_check(int result) {
    if (result != ncclSuccess) fail("NCCL collective on a stream: %s", ncclGetErrorString((ncclResult_t)result));
}

// of a stream: a collective that failed is never over, until its communicator is aborted
inline std::function<bool(bool)> simt_nccl_running(std::shared_ptr<SimtNcclWork> work) {
    return [work](bool wait) {
        if (wait) work->wait();
        if (wait && !work->aborted) simt_nccl_check(work->result);
        return work->over && (work->aborted || work->result == ncclSuccess);
    };
}

inline ncclResult_t simt_nccl_call(const void* send, void* recv, SimtNcclCall call, ncclComm_t comm,
                                   cudaStream_t stream) {
    if (!comm || !simt_nccl_bytes(call.type) || (call.op != ncclSum && call.op != ncclMax && call.op != ncclMin) ||
        call.root < 0 || call.root >= comm->ranks || (call.count && (!send || !recv)))
        return ncclInvalidArgument;
    auto now = [=] { return simt_nccl_run(comm, send, recv, call); };
    auto start = [=] {
        if (comm->joining && (!comm->work->over || comm->work->result != ncclSuccess)) return ncclInvalidUsage;
        comm->joining = false;
        if (!stream) return simt_runs_now(stream) ? now() : ncclInternalError;
        bool captures = stream->capture != cudaStreamCaptureStatusNone;
        auto work = [=] {
            if (captures) simt_nccl_check(now());
            else stream->running = simt_nccl_running(simt_nccl_start(comm, now));
        };
        if (captures || simt_settings.lazy_streams || stream->running || !stream->queue.empty())
            simt_later(stream, work);
        else work();
        return ncclSuccess;
    };
    if (simt_nccl_group().depth == 0) return start();
    simt_nccl_group().calls.push_back(start);
    return ncclSuccess;
}

inline ncclResult_t ncclAllReduce(const void* send, void* recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
                                  ncclComm_t comm, cudaStream_t stream) {
    return simt_nccl_call(send, recv, SimtNcclCall{SIMT_ALL_REDUCE, type, op, 0, count}, comm, stream);
}
// send is read on the root alone
inline ncclResult_t ncclBroadcast(const void* send, void* recv, size_t count, ncclDataType_t type, int root,
                                  ncclComm_t comm, cudaStream_t stream) {
    return simt_nccl_call(send, recv, SimtNcclCall{SIMT_BROADCAST, type, ncclSum, root, count}, comm, stream);
}
// recv: (ranks, count)
inline ncclResult_t ncclAllGather(const void* send, void* recv, size_t count, ncclDataType_t type, ncclComm_t comm,
                                  cudaStream_t stream) {
    return simt_nccl_call(send, recv, SimtNcclCall{SIMT_ALL_GATHER, type, ncclSum, 0, count}, comm, stream);
}
// send: (ranks, count)
inline ncclResult_t ncclReduceScatter(const void* send, void* recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
                                      ncclComm_t comm, cudaStream_t stream) {
    return simt_nccl_call(send, recv, SimtNcclCall{SIMT_REDUCE_SCATTER, type, op, 0, count}, comm, stream);
}
