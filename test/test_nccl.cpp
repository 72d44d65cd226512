// The simulated NCCL (test/simt/nccl.h) between processes: every collective against its definition, and ranks that die,
// do not come or disagree; and runtime/comm.h over it. Needs -DTRAIN_QRL_SIMT -I test/simt.
#include <gtest/gtest.h>

#if !defined(TRAIN_QRL_SIMT)
TEST(Nccl, All) { GTEST_SKIP() << "needs the simt build (make simt)"; }
#else
#include <dirent.h>
#include <nccl.h>
#include <signal.h>
#include <sys/wait.h>
#include <filesystem>
#include "../runtime/open_device.h"
#include "../train/rank_check.cuh"

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

// as on a machine with GPUs: nothing tells the others that a rank has gone, and a query of the stream does not block
TEST(Nccl, AnAbortIsNotToldToTheOthers) {
    auto test = [](ncclComm_t comm) {
        cudaStream_t stream;
        cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
        float x = 1;
        if (comm->rank == 1) return ncclCommAbort(comm) == ncclSuccess ? 0 : 1;
        if (ncclAllReduce(&x, &x, 1, ncclFloat, ncclSum, comm, stream) != ncclSuccess) return 2;
        for (int i = 0; i < 100; i++, usleep(1000)) {
            ncclResult_t state;
            if (cudaStreamQuery(stream) != cudaErrorNotReady || cudaGetLastError() != cudaErrorNotReady) return 3;
            if (ncclCommGetAsyncError(comm, &state) != ncclSuccess || state != ncclSuccess) return 4;
        }
        if (ncclCommAbort(comm) != ncclSuccess) return 5;
        return cudaStreamSynchronize(stream) == cudaSuccess && x == 1 ? 0 : 6;
    };
    EXPECT_EQ(in_processes(2, test), std::vector<int>(2, 0));
}

// ---------------------------------------------------------------------------------------------------------------------
// runtime/comm.h

struct RankEnd {
    int status = -1;  // exit status, 128 + signal when killed
    std::string error;
};

struct Ranks : testing::Test {
    std::string folder, meeting;
    void SetUp() override {
        ASSERT_EQ(cudaGetLastError(), cudaSuccess) << "of another test; the ranks would inherit it";
        folder = (std::filesystem::temp_directory_path() / format("test_nccl_%d", (int)getpid())).string();
        std::filesystem::remove_all(folder);
        std::filesystem::create_directories(folder);
        meeting = folder + "/out.nccl_id";
    }
    void TearDown() override { std::filesystem::remove_all(folder); }

    // f(Comm&) in each rank for which there is one; delay: seconds before each begins
    template <class F>
    std::vector<RankEnd> run(int world, F f, double timeout, std::vector<double> delay = {}, int absent = -1) {
        std::vector<pid_t> children;
        delay.resize(world, 0.0);
        for (int rank = 0; rank < world; rank++) {
            children.push_back(rank == absent ? 0 : fork());
            if (rank != absent && children.back() == 0) _exit(one(rank, world, f, timeout, delay[rank]));
        }
        std::vector<RankEnd> ends(world);
        for (int rank = 0; rank < world; rank++) {
            if (rank == absent) continue;
            int status = 0;
            waitpid(children[rank], &status, 0);
            ends[rank].status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            const std::string error = folder + format("/error.%d", rank);
            if (file_exists(error)) ends[rank].error = read_file(error);
        }
        return ends;
    }
    template <class F>
    int one(int rank, int world, F f, double timeout, double delay) {
        setenv("RANK", std::to_string(rank).c_str(), 1);
        setenv("WORLD_SIZE", std::to_string(world).c_str(), 1);
        usleep((useconds_t)(delay * 1e6));
        try {
            const Device dev = open_device("cuda", 0, nullptr);
            Comm comm;
            comm_open(comm, meeting, dev, timeout);
            f(comm);
            return 0;
        } catch (const Error& e) {
            write_file_atomic(folder + format("/error.%d", rank), e.what());
            return e.exit_code;
        }
    }
    int files() {  // that a meeting has left
        int n = 0;
        for (const auto& entry : std::filesystem::directory_iterator(folder))
            n += entry.path().filename().string().rfind("out.nccl_id", 0) == 0;
        return n;
    }
};

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << text

static void sum_once(Comm& c) {
    Buffer<float> x;
    x.allocate(1000, "test", "", c.dev);
    std::vector<float> host(1000, (float)(c.rank + 1));
    copy_to_device(x.data, host.data(), x.bytes(), c.dev);
    comm_sum(c, x.data, x.size);
    if (cudaGetLastError() != cudaSuccess) fail("the wait has left an error");
    copy_to_host(host.data(), x.data, x.bytes(), c.dev);
    for (float v : host)
        if (v != (float)(c.world * (c.world + 1) / 2)) fail("the sum is %g", v);
}

TEST_F(Ranks, SumReduceGather) {
    auto work = [](Comm& c) {
        sum_once(c);
        usleep(c.rank == 1 ? 20000 : 0);  // the others wait
        sum_once(c);
        double low = c.rank, high = c.rank;
        comm_reduce(c, {&low}, Reduce::min);
        comm_reduce(c, {&high}, Reduce::max);
        if (low != 0 || high != c.world - 1 || !comm_any(c, c.rank == 1) || comm_any(c, false)) fail("reductions");
        if (comm_gather(c, {c.rank, 7}) != std::vector<int>{0, 7, 1, 7, 2, 7}) fail("gathering");
    };
    for (const RankEnd& end : run(3, work, 30)) EXPECT_EQ(end.status, 0) << end.error;
    EXPECT_EQ(files(), 0);
    EXPECT_EQ(segments_left(), 0);
}

TEST_F(Ranks, ADeadRankEndsTheOthersWithAMessage) {
    auto ends = run(
        3,
        [](Comm& c) {
            sum_once(c);
            c.timeout = 0.2;
            if (c.rank == 1) raise(SIGKILL);
            sum_once(c);
        },
        30);
    EXPECT_EQ(ends[1].status, 128 + SIGKILL);
    for (int rank : {0, 2}) {
        EXPECT_EQ(ends[rank].status, 1);
        EXPECT_HAS(ends[rank].error, format("rank %d of 3: all-reduce of gradients: waited 0.2 s", rank));
        EXPECT_HAS(ends[rank].error, "--ddp_timeout");
    }
}

TEST_F(Ranks, AnErrorOnOneRankEndsTheOthersWithAMessage) {
    auto ends = run(
        2,
        [](Comm& c) {
            sum_once(c);
            c.timeout = 0.2;
            if (c.rank == 1) fail("planted");
            comm_any(c, true);
        },
        30);
    EXPECT_EQ(ends[1].status, 1);
    EXPECT_EQ(ends[1].error, "planted");
    EXPECT_EQ(ends[0].status, 1);
    EXPECT_HAS(ends[0].error, "rank 0 of 2: reduction of numbers: waited 0.2 s");
}

// whoever catches the error can still read its device, and cannot go on with the others
TEST_F(Ranks, TheStreamIsFreeAfterATimeout) {
    auto ends = run(
        2,
        [](Comm& c) {
            c.timeout = 0.2;
            if (c.rank == 1) raise(SIGKILL);
            try {
                sum_once(c);
            } catch (const Error&) {}
            double x = 5;
            copy_to_device(c.small.data, &x, sizeof(x), c.dev);
            copy_to_host(&x, c.small.data, sizeof(x), c.dev);
            comm_any(c, false);
        },
        30);
    EXPECT_EQ(ends[0].status, 1);
    EXPECT_HAS(ends[0].error, "reduction after the ranks have parted");
}

TEST_F(Ranks, OneThatEndsLaterDoesNotWaitForeverToPart) {
    auto ends = run(
        2,
        [](Comm& c) {
            sum_once(c);
            c.timeout = 0.2;
            if (c.rank == 1) raise(SIGKILL);
        },
        30);
    EXPECT_EQ(ends[0].status, 0) << ends[0].error;
}

TEST_F(Ranks, RanksThatDisagreeFail) {
    auto ends = run(
        2, [](Comm& c) { comm_gather(c, std::vector<int>(c.rank + 3, 0)); }, 30);
    for (const RankEnd& end : ends) {
        EXPECT_EQ(end.status, 1);
        EXPECT_HAS(end.error, "gathering of completions: invalid argument");
    }
}

TEST_F(Ranks, ARankThatDoesNotComeIsSaid) {
    auto ends = run(
        2, [](Comm&) {}, 0.2, {}, 1);
    EXPECT_EQ(ends[0].status, 1);
    EXPECT_HAS(ends[0].error, "rank 0 of 2: joining the others: waited 0.2 s");
    EXPECT_EQ(files(), 0);
    ends = run(
        2, [](Comm&) {}, 0.2, {}, 0);
    EXPECT_EQ(ends[1].status, 1);
    EXPECT_HAS(ends[1].error, "rank 1 waited 0.2 s for rank 0 at " + meeting);
    EXPECT_EQ(files(), 0);
}

// Killed runs leave answers and questions, which may be as new as can be; whoever comes first meets the run of now
TEST_F(Ranks, WhatAKilledRunLeftIsNotTakenForAnAnswer) {
    const std::string stale(sizeof(ncclUniqueId) + 3 * sizeof(uint64_t), '\1');
    for (const std::vector<double>& delay : {std::vector<double>{0.1, 0, 0}, {0, 0.1, 0}, {0, 0, 0.1}}) {
        write_file_atomic(meeting, stale);
        for (int rank : {1, 2}) write_file_atomic(meeting_question(meeting, rank), std::string(8, '\1'));
        for (const RankEnd& end : run(3, sum_once, 20, delay)) EXPECT_EQ(end.status, 0) << end.error;
        EXPECT_EQ(files(), 0);
    }
    write_file_atomic(meeting, std::string(sizeof(ncclUniqueId), '\1'));  // of another number of ranks
    for (const RankEnd& end : run(2, sum_once, 20, {0.1, 0})) EXPECT_EQ(end.status, 0) << end.error;
}

// ---------------------------------------------------------------------------------------------------------------------
// train/rank_check.cuh

// an optimizer with one tensor of each group, of the same weights on every rank; `wrong`: the group of which rank 1 has
// another last weight
static void check_agreement(Comm& c, int wrong) {
    Optimizer o;
    Buffer<float> weights[PARAM_GROUPS];
    o.dev = c.dev;
    for (int g = 0; g < PARAM_GROUPS; g++) {
        OptimizerTensor t;
        t.group = (ParamGroup)g, t.rows = 3, t.cols = 41 + g;
        std::vector<float> host((size_t)t.count());
        for (size_t i = 0; i < host.size(); i++) host[i] = 0.1f * (float)i;
        if (g == wrong && c.rank == 1) host.back() = nextafterf(host.back(), 9.0f);
        weights[g].allocate(host.size(), "test", "", c.dev);
        copy_to_device(weights[g].data, host.data(), weights[g].bytes(), c.dev);
        device_synchronize(c.dev);
        t.weight = weights[g].data;
        o.tensors.push_back(t);
    }
    check_ranks_agree(o, c, 17);
}

TEST_F(Ranks, OneBitOfAnyGroupIsFound) {
    for (const RankEnd& end : run(
             2, [](Comm& c) { check_agreement(c, -1); }, 30))
        EXPECT_EQ(end.status, 0) << end.error;
    for (int g = 0; g < PARAM_GROUPS; g++)
        for (const RankEnd& end : run(
                 2, [g](Comm& c) { check_agreement(c, g); }, 30)) {
            EXPECT_EQ(end.status, 1);
            EXPECT_HAS(end.error, "step 17: the 2 ranks hold different weights");
            EXPECT_HAS(end.error, format("(%s: ", param_group_names[g]));
        }
}
#endif
