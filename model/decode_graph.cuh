// CUDA graphs of decode steps. A graph holds the launches of one step with their grids and addresses; what changes from
// step to step (tokens, positions, cache rows, keys of the draws) is read from device memory at fixed addresses.
#pragma once
#include <functional>
#include <vector>
#include "../kernels/sampling.cuh"
#include "../runtime/device.h"

// What a captured step depends on besides the memory it reads
struct DecodeGraphKey {
    int64_t rows;
    int keys;
    bool codes;  // the linears are read as packed codes
    SamplingParams sampling;
    uint64_t seed;
    uint32_t stream;
    int n_allowed;
    const void* norms;          // of Pass
    std::vector<char> rotated;  // which linears transform their inputs, see model/basis.cuh
};

inline bool same_key(const DecodeGraphKey& a, const DecodeGraphKey& b) {
    return a.rows == b.rows && a.keys == b.keys && a.codes == b.codes && same_sampling(a.sampling, b.sampling) &&
           a.seed == b.seed && a.stream == b.stream && a.n_allowed == b.n_allowed && a.norms == b.norms &&
           a.rotated == b.rotated;
}

struct DecodeGraphs {
    static constexpr int keys_step = 256;           // the grid of attention is for a multiple of this many keys
    int64_t eager = 0, captured = 0, replayed = 0;  // steps
#if HAS_KERNELS
    struct Entry {
        DecodeGraphKey key;
        cudaGraphExec_t exec;  // null: its step has run once, without a graph
    };
    static constexpr size_t most = 128;
    std::vector<Entry> entries;
    DecodeGraphs() = default;
    DecodeGraphs(const DecodeGraphs&) = delete;
    DecodeGraphs& operator=(const DecodeGraphs&) = delete;
    ~DecodeGraphs() { clear(); }
    // when memory that the graphs address has moved
    void clear() {
        for (Entry& e : entries)
            if (e.exec) CUDA_WARN(cudaGraphExecDestroy(e.exec));
        entries.clear();
    }
#else
    void clear() {}
#endif
};

#if HAS_KERNELS
// step() as a graph
inline cudaGraphExec_t decode_graph_capture(Device dev, const std::function<void()>& step) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA_CHECK(cudaStreamBeginCapture(dev.stream, cudaStreamCaptureModeThreadLocal));
    try {
        step();
    } catch (...) {  // leave the stream usable
        if (cudaStreamEndCapture(dev.stream, &graph) == cudaSuccess) CUDA_WARN(cudaGraphDestroy(graph));
        throw;
    }
    CUDA_CHECK(cudaStreamEndCapture(dev.stream, &graph));
    CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    CUDA_CHECK(cudaGraphDestroy(graph));
    return exec;
}

// The step of this key: run as it is the first time, because what it does once (loading its kernels, creating a library's
// handle) is not allowed in a capture; captured the second time; replayed from then on
inline void decode_graph_run(DecodeGraphs& g, const DecodeGraphKey& key, Device dev,
                             const std::function<void()>& step) {
    DecodeGraphs::Entry* entry = nullptr;
    for (DecodeGraphs::Entry& e : g.entries)
        if (same_key(e.key, key)) entry = &e;
    if (!entry) {
        if (g.entries.size() == DecodeGraphs::most) g.clear();
        step();
        g.entries.push_back({key, nullptr});
        g.eager++;
        return;
    }
    (entry->exec ? g.replayed : g.captured)++;
    if (!entry->exec) entry->exec = decode_graph_capture(dev, step);
    CUDA_CHECK(cudaGraphLaunch(entry->exec, dev.stream));
}
#endif
