// Where the queries, keys and values of attention lie, and which of them see each other (attention.cuh).
#pragma once
#include <cstdint>
#include "../runtime/device.h"

// Keys and values as rows of two places: [rows, NKV*HD] each
struct KeyValueRows {
    const floatX* k = nullptr;
    const floatX* v = nullptr;
    int64_t k_stride = 0, v_stride = 0;  // elements from one row to the next
    HOST_DEVICE Rows<const floatX> rows(bool values) const {
        return values ? Rows<const floatX>{v, v_stride} : Rows<const floatX>{k, k_stride};
    }
};

// What one query sees: n0 rows from row0 of place 0 (packed batch or shared prompt), then n1 rows of place 1 (own
// cache, or the packed batch again)
struct KeyRange {
    int64_t row0 = 0, row1 = 0;
    int n0 = 0, n1 = 0;
};

// What each of T queries sees, and the most keys (n0 + n1) that one of them does, at least
struct KeyRanges {
    const KeyRange* p;  // [T]
    int max_keys;
};

// Sequences end to end: the s-th is rows starts[s] ... starts[s+1] - 1, and together they are all T rows. Each token
// sees its own up to itself, which `ranges` tells row by row, for the CPU's forward. A sequence with a prefix goes on
// from another one, its parent, and sees all rows of it, before its own: prompts whose completions share them. A family
// is a parent and the sequences that go on from it, which follow it at once; they have each a row at least.
struct PackedSequences {
    const int* starts;                  // [count+1]
    const int* prefix = nullptr;        // [count] rows of the parent; 0: none. null: no sequence has one
    const int* prefix_start = nullptr;  // [count] the first of them
    int count = 0;
    int max_length = 0;                // of one, at least; the CPU does not read it
    const KeyRange* ranges = nullptr;  // [T]
};

// the sequences of the family whose parent is `s`: s ... the returned one - 1
HOST_DEVICE int attention_family_end(const int* prefix, int count, int s) {
    int end = s + 1;
    while (prefix && end < count && prefix[end] > 0) end++;
    return end;
}

// T rows (tokens) of NH query heads and NKV key/value heads, HD elements each
struct AttentionShape {
    int64_t T;
    int NH, NKV, HD;
    HOST_DEVICE int group() const { return NH / NKV; }  // query heads that read one key/value head
};

struct AttentionGradients {
    Rows<floatX> dq;      // [T, NH*HD]
    Rows<floatX> dk, dv;  // [T, NKV*HD]
};
