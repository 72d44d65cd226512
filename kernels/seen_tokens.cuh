// The tokens that a sequence has had, prompt and completion, as bits; and the repetition penalty of their logits (Keskar
// et al. 2019, CTRL, section 4.1, as transformers has it): x / penalty where x > 0, else x * penalty, once a token however
// often it occurred. Bits and not lists: a slot's memory is the same in every step, which a CUDA graph wants, and the draw
// asks for the 4 tokens of a pack by one load.
//
// The trap: a slot has one row in a batch, so that marking needs no atomics.
//
// Memory: V / 8 bytes a slot (19 KB at V = 151,936). Traffic of a draw: 1/32 of that of the logits.
#pragma once
#include <cstdint>
#include <vector>
#include "../runtime/device.h"

// bits: [slots, words]; slots: [rows] whose tokens a row's are, -1: none. bits null: there is no penalty
struct SeenTokens {
    uint32_t* bits = nullptr;
    const int* slots = nullptr;
    int64_t words = 0;
    HOST_DEVICE uint32_t* row(int64_t i) const { return slots[i] < 0 ? nullptr : bits + slots[i] * words; }
};

inline int64_t seen_words(int64_t V) { return CEIL_DIV(V, 32); }

HOST_DEVICE float penalized_logit(float x, float penalty) { return x > 0.0f ? x / penalty : x * penalty; }

HOST_DEVICE void seen_mark_one(uint32_t* bits, int token) { bits[token / 32] |= 1u << token % 32; }

// bits [words] of a prompt
inline std::vector<uint32_t> seen_bits(const std::vector<int>& tokens, int64_t V) {
    std::vector<uint32_t> bits(seen_words(V));
    for (int t : tokens) seen_mark_one(bits.data(), t);
    return bits;
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

inline void seen_mark_cpu(SeenTokens seen,
                          const int* tokens,  // [rows]
                          int64_t rows) {
    for (int64_t i = 0; i < rows; i++)
        if (uint32_t* bits = seen.row(i)) seen_mark_one(bits, tokens[i]);
}

// The n logits that a draw looks at. bits: null: none was seen
inline void penalize_row(float* out, const float* logits, int64_t n, const uint32_t* bits, float penalty) {
    for (int64_t i = 0; i < n; i++) out[i] = logits[i];
    for (int64_t w = 0; bits && w < seen_words(n); w++)
        for (int k = 0; k < 32 && bits[w] >> k; k++)
            if (bits[w] >> k & 1 && 32 * w + k < n) out[32 * w + k] = penalized_logit(logits[32 * w + k], penalty);
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
static constexpr int SEEN_BLOCK = 256;

// tokens: (rows). grid: CEIL_DIV(rows, SEEN_BLOCK)
__global__ void seen_mark_kernel(SeenTokens seen, const int* tokens, int rows) {
    int i = blockIdx.x * SEEN_BLOCK + threadIdx.x;
    if (i >= rows) return;
    uint32_t* bits = seen.row(i);
    if (bits) seen_mark_one(bits, tokens[i]);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

// The token of each row counts as seen by its slot from now on. tokens: [rows], in [0, V)
inline void seen_mark(SeenTokens seen, const int* tokens, int64_t rows, Device dev) {
    NVTX_RANGE("seen_mark");
    if (rows < 0 || rows > INT32_MAX) fail("seen_mark: bad shape: %lld rows", (long long)rows);
    if (rows == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(seen_mark_kernel, (unsigned)CEIL_DIV(rows, SEEN_BLOCK), SEEN_BLOCK, 0, dev.stream, seen, tokens,
               (int)rows);
        return;
    }
#endif
    (void)dev;
    seen_mark_cpu(seen, tokens, rows);
}
