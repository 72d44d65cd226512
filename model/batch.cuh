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
    std::vector<int> prefix;             // [sequences] tokens of the sequence that it goes on from; 0: of none
    std::vector<int> prefix_start;       // [sequences] where that one starts
    std::vector<KeyRange> ranges;        // [T] what each token attends to
    std::vector<CacheRow> writes;        // [T] where its key and value go; empty without a cache
    std::vector<DrawKey> draws;          // [T] keys of the draws of the next tokens; empty without sampling
    std::vector<int> slots;              // [T] of single tokens: whose they are; empty without a repetition penalty
    int64_t T() const { return (int64_t)tokens.size(); }
};

// append n tokens that see `prefix` rows from prefix_start on, and each other
inline void batch_add_rows(Batch& b, const int* tokens, int n, int prefix, int prefix_start) {
    if (b.starts.empty()) b.starts.push_back(0);
    int64_t start = b.T();
    for (int i = 0; i < n; i++) {
        KeyRange r;
        if (prefix) r.row0 = prefix_start, r.n0 = prefix, r.row1 = start, r.n1 = i + 1;
        else r.row0 = start, r.n0 = i + 1;
        b.tokens.push_back(tokens[i]);
        b.positions.push_back(prefix + i);
        b.ranges.push_back(r);
    }
    b.starts.push_back((int)b.T());
    b.prefix.push_back(prefix), b.prefix_start.push_back(prefix_start);
}

// append one whole sequence (training, scoring): token i sees tokens 0..i
inline void batch_add_sequence(Batch& b, const int* tokens, int n) { batch_add_rows(b, tokens, n, 0, 0); }

// append a sequence that goes on from the last one that went on from none, whose tokens it sees before its own
inline void batch_add_continuation(Batch& b, const int* tokens, int n) {
    size_t parent = b.prefix.size() - 1;
    while (b.prefix[parent]) parent--;
    batch_add_rows(b, tokens, n, b.starts[parent + 1] - b.starts[parent], b.starts[parent]);
}

// A batch where the operators read it: the vectors themselves, or their copies on the device
struct BatchView {
    const int *tokens = nullptr, *positions = nullptr, *starts = nullptr;
    const int *prefix = nullptr, *prefix_start = nullptr;  // null: no sequence goes on from another
    const KeyRange* ranges = nullptr;
    const CacheRow* writes = nullptr;
    const DrawKey* draws = nullptr;
    const int* slots = nullptr;
    int64_t T = 0;
    int sequences = 0;  // 0: single tokens
    int longest = 0;    // tokens of the longest sequence
    int most_keys = 0;  // an upper bound of what a single token attends to
};

inline PackedSequences packed_sequences(const BatchView& b) {
    return {b.starts, b.prefix, b.prefix_start, b.sequences, b.longest, b.ranges};
}

// Copies of the batch's arrays on a device; a batch travels there in one piece
struct BatchMemory {
    int64_t capacity = 0;  // tokens
    Buffer<char> device;
    PinnedBuffer host;
};

// 4 ints a token: token and position, and of sequences their prefixes, of single tokens the slots
inline size_t batch_bytes(int64_t T) {
    return (size_t)T * (sizeof(KeyRange) + sizeof(CacheRow) + sizeof(DrawKey) + 4 * sizeof(int)) +
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
    const bool shared = std::any_of(b.prefix.begin(), b.prefix.end(), [](int n) { return n > 0; });
    for (const KeyRange& r : b.ranges) v.most_keys = std::max(v.most_keys, r.n0 + r.n1);
    if (!dev.cuda) {
        v.tokens = b.tokens.data(), v.positions = b.positions.data(), v.starts = b.starts.data();
        v.ranges = b.ranges.data();
        if (shared) v.prefix = b.prefix.data(), v.prefix_start = b.prefix_start.data();
        v.writes = b.writes.data(), v.draws = b.draws.data(), v.slots = b.slots.data();
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
    v.slots = put(b.slots);
    if (shared) v.prefix = put(b.prefix), v.prefix_start = put(b.prefix_start);
    copy_pinned_to_device(memory.device.data, memory.host.data, at, dev);
    return v;
}
