// The simulated NCCL (test/simt/nccl.h) between processes: every collective against its definition, and ranks that die,
// do not come or disagree. Needs -DTRAIN_QRL_SIMT -I test/simt.
#include <gtest/gtest.h>

#if !defined(TRAIN_QRL_SIMT)
TEST(Nccl, All) { GTEST_SKIP() << "needs the simt build (make simt)"; }
#else
#include <dirent.h>
#include <nccl.h>
#include <sys/wait.h>
#include "../runtime/dtypes.h"

// f(comm) in `ranks` processes, without the communicator of those for which join(rank) is false; returns each rank's
// exit status, which is f's result
template <class F>
static std::vector<int> in_processes(int ranks, F f, int absent = -1) {
    ncclUniqueId id;
    ncclGetUniqueId(&id);
    std::vector<pid_t> children;
    for (int rank = 0; rank < ranks; rank++) {
        pid_t child = fork();
        if (child == 0) {
            if (rank == absent) _exit(0);
            ncclComm_t comm = nullptr;
            ncclResult_t result = ncclCommInitRank(&comm, ranks, id, rank);
            if (result != ncclSuccess) _exit(100 + result);
            _exit(f(comm));
        }
        children.push_back(child);
    }
    std::vector<int> statuses;
    for (pid_t child : children) {
        int status = 0;
        waitpid(child, &status, 0);
        statuses.push_back(WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    }
    return statuses;
}

// segments left in /dev/shm by this process and its children
static int segments_left() {
    int n = 0;
    std::string name = format("simt_nccl_%d_", (int)getpid());
    if (DIR* folder = opendir("/dev/shm")) {
        while (dirent* entry = readdir(folder)) n += strncmp(entry->d_name, name.c_str(), name.size()) == 0;
        closedir(folder);
    }
    return n;
}

struct Timeout {
    explicit Timeout(const char* seconds) { setenv("TRAIN_QRL_SIMT_NCCL_TIMEOUT", seconds, 1); }
    ~Timeout() { unsetenv("TRAIN_QRL_SIMT_NCCL_TIMEOUT"); }
};

template <class T>
static int all_reduce(ncclComm_t comm, ncclDataType_t type, size_t n) {
    int wrong = 0, rank = comm->rank, ranks = comm->ranks;
    for (ncclRedOp_t op : {ncclSum, ncclMax, ncclMin}) {
        std::vector<T> x(n), out(n + 1, T(-7));
        for (size_t i = 0; i < n; i++) x[i] = T((float)((int)(i % 13) * (rank + 1) - 20));
        if (ncclAllReduce(x.data(), out.data(), n, type, op, comm, nullptr) != ncclSuccess) return 99;
        if (ncclAllReduce(x.data(), x.data(), n, type, op, comm, nullptr) != ncclSuccess) return 99;  // in place
        for (size_t i = 0; i < n; i++) {
            int v = (int)(i % 13), want = 0;
            for (int r = 0; r < ranks; r++) want += v * (r + 1) - 20;
            if (op == ncclMax) want = v * ranks - 20;
            if (op == ncclMin) want = v - 20;
            wrong += (float)out[i] != (float)want || (float)x[i] != (float)want;
        }
        wrong += (float)out[n] != -7.0f;
    }
    return wrong ? 1 : 0;
}

TEST(Nccl, AllReduce) {
    for (int ranks : {1, 2, 3}) {
        std::vector<int> good(ranks, 0);
        // one piece, and more than one
        EXPECT_EQ(in_processes(ranks, [](ncclComm_t c) { return all_reduce<float>(c, ncclFloat, 7); }), good);
        EXPECT_EQ(in_processes(ranks, [](ncclComm_t c) { return all_reduce<float>(c, ncclFloat, 200001); }), good);
        EXPECT_EQ(in_processes(ranks, [](ncclComm_t c) { return all_reduce<bf16>(c, ncclBfloat16, 1000); }), good);
        EXPECT_EQ(in_processes(ranks, [](ncclComm_t c) { return all_reduce<double>(c, ncclDouble, 1000); }), good);
        EXPECT_EQ(in_processes(ranks, [](ncclComm_t c) { return all_reduce<int>(c, ncclInt, 1000); }), good);
    }
    EXPECT_EQ(segments_left(), 0);
}

TEST(Nccl, BroadcastGatherScatter) {
    const int ranks = 3;
    const size_t n = 70001;  // two pieces
    auto test = [&](ncclComm_t comm) {
        int rank = comm->rank, wrong = 0;
        std::vector<float> x(n, (float)rank), all(ranks * n, -1.0f), part(n, -1.0f);
        for (int root = 0; root < ranks; root++) {
            if (ncclBroadcast(x.data(), part.data(), n, ncclFloat, root, comm, nullptr) != ncclSuccess) return 99;
            for (float v : part) wrong += v != (float)root;
        }
        if (ncclAllGather(x.data(), all.data(), n, ncclFloat, comm, nullptr) != ncclSuccess) return 99;
        for (size_t i = 0; i < all.size(); i++) wrong += all[i] != (float)(i / n);
        // rank r gets 0 + 1 + 2 times element (r, i)
        for (size_t i = 0; i < all.size(); i++) all[i] = (float)(rank * (int)(i % 1009 + i / n));
        if (ncclReduceScatter(all.data(), part.data(), n, ncclFloat, ncclSum, comm, nullptr) != ncclSuccess) return 99;
        for (size_t i = 0; i < n; i++) wrong += part[i] != 3.0f * (float)((i + rank * n) % 1009 + rank);
        // in place: the part lies where it belongs
        float* own = all.data() + rank * n;
        if (ncclReduceScatter(all.data(), own, n, ncclFloat, ncclSum, comm, nullptr) != ncclSuccess) return 99;
        for (size_t i = 0; i < n; i++) wrong += own[i] != part[i];
        if (ncclAllGather(own, all.data(), n, ncclFloat, comm, nullptr) != ncclSuccess) return 99;
        for (size_t i = 0; i < all.size(); i++) wrong += all[i] != 3.0f * (float)(i % 1009 + i / n);
        return wrong ? 1 : 0;
    };
    EXPECT_EQ(in_processes(ranks, test), std::vector<int>(ranks, 0));
}

TEST(Nccl, GroupsRunAtTheirEndAndLazyStreamsLater) {
    auto test = [](ncclComm_t comm) {
        float x = 1, y = 2, a = 0, b = 0;
        ncclGroupStart();
        ncclAllReduce(&x, &a, 1, ncclFloat, ncclSum, comm, nullptr);
        ncclAllReduce(&y, &b, 1, ncclFloat, ncclSum, comm, nullptr);
        if (a != 0 || b != 0) return 1;
        if (ncclGroupEnd() != ncclSuccess || a != 2 || b != 4) return 2;
        if (ncclGroupEnd() != ncclInvalidUsage) return 3;
        simt_settings.lazy_streams = true;
        cudaStream_t stream;
        cudaStreamCreate(&stream);
        ncclAllReduce(&a, &a, 1, ncclFloat, ncclSum, comm, stream);
        if (a != 2) return 4;
        cudaStreamSynchronize(stream);
        if (a != 4) return 5;
        return ncclCommDestroy(comm) == ncclSuccess ? 0 : 6;
    };
    EXPECT_EQ(in_processes(2, test), std::vector<int>(2, 0));
}

TEST(Nccl, ADeadRankFailsTheOthers) {
    Timeout timeout("0.5");
    auto test = [](ncclComm_t comm) {
        float x = 1;
        if (ncclAllReduce(&x, &x, 1, ncclFloat, ncclSum, comm, nullptr) != ncclSuccess) return 99;
        if (comm->rank == 1) _exit(0);
        ncclResult_t first = ncclAllReduce(&x, &x, 1, ncclFloat, ncclSum, comm, nullptr);
        ncclResult_t second = ncclAllReduce(&x, &x, 1, ncclFloat, ncclSum, comm, nullptr), later;
        ncclCommGetAsyncError(comm, &later);
        return first == ncclSystemError && second == ncclSystemError && later == ncclSystemError ? 50 : 51;
    };
    EXPECT_EQ(in_processes(3, test), (std::vector<int>{50, 0, 50}));
    EXPECT_EQ(segments_left(), 0);
}

TEST(Nccl, ARankThatNeverComes) {
    Timeout timeout("0.3");
    auto test = [](ncclComm_t) { return 0; };
    EXPECT_EQ(in_processes(2, test, 1), (std::vector<int>{100 + ncclSystemError, 0}));
    EXPECT_EQ(segments_left(), 0);
}

TEST(Nccl, RanksThatDisagree) {
    auto test = [](ncclComm_t comm) {
        float x[4] = {};
        size_t count = comm->rank == 0 ? 3 : 4;
        if (ncclAllReduce(x, x, count, ncclFloat, ncclSum, comm, nullptr) != ncclInvalidArgument) return 1;
        ncclRedOp_t op = comm->rank == 0 ? ncclSum : ncclMax;
        if (ncclAllReduce(x, x, 4, ncclFloat, op, comm, nullptr) != ncclInvalidArgument) return 2;
        if (ncclBroadcast(x, x, 4, ncclFloat, comm->rank, comm, nullptr) != ncclInvalidArgument) return 3;
        if (ncclBroadcast(x, x, 4, ncclFloat, 2, comm, nullptr) != ncclInvalidArgument) return 4;  // no such rank
        return ncclAllReduce(x, x, 4, ncclFloat, ncclSum, comm, nullptr) == ncclSuccess ? 0 : 5;
    };
    EXPECT_EQ(in_processes(2, test), std::vector<int>(2, 0));
}
#endif
