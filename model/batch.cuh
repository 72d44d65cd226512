// The tokens of one forward pass, and where the operators read them.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>
#include "../kernels/attention.cuh"
#include "../kernels/sampling.cuh"

// The tokens of one forward pass. Either whole sequences, one after another, each attending to itself (starts is not
// empty, the ranges are rows of the batch); or single tokens that attend to what the cache holds (starts is empty, the
// ranges are rows of the cache).
struct Batch {
    std::vector<int> tokens, positions;  // [T]
    std::vector<int> starts;             // [sequences+1]
    std::vector<KeyRange> ranges;        // [T] what each token attends to
    std::vector<CacheRow> writes;        // [T] where its key and value go; empty without a cache
    std::vector<DrawKey> draws;          // [T] keys of the draws of the next tokens; empty without sampling
    int64_t T() const { return (int64_t)tokens.size(); }
};

// append one whole sequence (training, scoring): token i sees tokens 0..i
inline void batch_add_sequence(Batch& b, const int* tokens, int n) {
    if (b.starts.empty()) b.starts.push_back(0);
    int64_t start = b.T();
    for (int i = 0; i < n; i++) {
        KeyRange r;
        r.row0 = start;
        r.n0 = i + 1;
        b.tokens.push_back(tokens[i]);
        b.positions.push_back(i);
        b.ranges.push_back(r);
    }
    b.starts.push_back((int)b.T());
}

// A batch where the operators read it: the vectors themselves, or their copies on the device
struct BatchView {
    const int *tokens = nullptr, *positions = nullptr, *starts = nullptr;
    const KeyRange* ranges = nullptr;
    const CacheRow* writes = nullptr;
    const DrawKey* draws = nullptr;
    int64_t T = 0;
    int sequences = 0;  // 0: single tokens
    int longest = 0;    // tokens of the longest sequence
    int most_keys = 0;  // an upper bound of what a single token attends to
};

// Copies of the batch's arrays on a device; a batch travels there in one piece
struct BatchMemory {
    int64_t capacity = 0;  // tokens
    Buffer<char> device;
    PinnedBuffer host;
};

inline size_t batch_bytes(int64_t T) {
    return (size_t)T * (sizeof(KeyRange) + sizeof(CacheRow) + sizeof(DrawKey) + 2 * sizeof(int)) +
           (size_t)(T + 1) * sizeof(int);
}

inline void batch_memory_allocate(BatchMemory& b, int64_t T, Device dev) {
    b.capacity = T;
    if (!dev.cuda) return;
    b.device.allocate(batch_bytes(T), "token arrays of a batch", "", dev);
    pinned_allocate(b.host, batch_bytes(T), dev);
}

inline BatchView batch_view(BatchMemory& memory, const Batch& b, Device dev) {
    BatchView v;
    v.T = b.T();
    if (v.T > memory.capacity)
        fail("a batch of %lld tokens in memory for %lld", (long long)v.T, (long long)memory.capacity);
    v.sequences = b.starts.empty() ? 0 : (int)b.starts.size() - 1;
    for (int i = 0; i < v.sequences; i++) v.longest = std::max(v.longest, b.starts[i + 1] - b.starts[i]);
    for (const KeyRange& r : b.ranges) v.most_keys = std::max(v.most_keys, r.n0 + r.n1);
    if (!dev.cuda) {
        v.tokens = b.tokens.data(), v.positions = b.positions.data(), v.starts = b.starts.data();
        v.ranges = b.ranges.data();
        v.writes = b.writes.data(), v.draws = b.draws.data();
        return v;
    }
    device_synchronize(dev);  // the batch before may still be travelling from the same memory
    size_t at = 0;
    auto put = [&](const auto& list) {
        typedef std::decay_t<decltype(list[0])> T;
        if (list.empty()) return (const T*)nullptr;
        memcpy(memory.host.data + at, list.data(), list.size() * sizeof(T));
        const T* p = reinterpret_cast<const T*>(memory.device.data + at);
        at += list.size() * sizeof(T);
        return p;
    };
    // the widest first keeps each aligned; the ranges of whole sequences follow from their starts
    if (!v.sequences) v.ranges = put(b.ranges);
    v.writes = put(b.writes);
    v.draws = put(b.draws), v.tokens = put(b.tokens), v.positions = put(b.positions), v.starts = put(b.starts);
    copy_to_device(memory.device.data, memory.host.data, at, dev);
    return v;
}
