// Token embedding.
//   forward   out[t,c] = wte[tokens[t], c]
//   backward  dwte[tokens[t], c] += dout[t, c]
// The trap: two tokens of a batch may be the same row, so the backward must not add in an order that depends on
// threads. On the CPU each thread owns a range of columns and walks the tokens in order. On the device the positions
// are first sorted by (token, position), then one block owns each token's row and adds its positions in order: the same
// additions in the same order, so the same bits.
//
// The sort counts: the place of t is the number of positions whose (token, position) is smaller. That is T^2 integer
// comparisons (16,384 tokens: 2.7e8, some 30 us of an A100) from an array that stays in the cache, and needs neither
// atomics nor memory of the size of the vocabulary.
//
// Traffic in bytes for bf16, least and moved: forward 4TC; backward 2TC + 8C a distinct token (dwte read and written).
// Launch. Forward: gather_rows (rows.cuh). Sort: 8 threads a token, 256 a block. Backward: a block of 128 threads a run
// of equal tokens and 128 packs of columns; it keeps 8 rows in flight, so that a token with a tenth of the batch (a
// space, the end of a prompt) costs 1/8 of a memory latency a position and not a whole one. Positions that do not begin
// a run leave at once.
#pragma once
#include <cstdint>
#include "rows.cuh"
#include "../runtime/parallel.h"

inline void embedding_forward_cpu(floatX* out,        // [T,C]
                                  const int* tokens,  // [T], each in [0,V)
                                  const floatX* wte,  // [V,C]
                                  int64_t T, int64_t C) {
#pragma omp parallel for schedule(static) if (worth_threads(T * C / 8))
    for (int64_t t = 0; t < T; t++) memcpy(out + t * C, wte + (int64_t)tokens[t] * C, C * sizeof(floatX));
}

inline void embedding_backward_cpu(float* dwte,         // [V,C] +=
                                   const floatX* dout,  // [T,C]
                                   const int* tokens,   // [T]
                                   int64_t T, int64_t C) {
    const int64_t columns = 64, blocks = (C + columns - 1) / columns;
#pragma omp parallel for schedule(static) if (worth_threads(T * C / 4))
    for (int64_t b = 0; b < blocks; b++) {
        int64_t c0 = b * columns, c1 = c0 + columns < C ? c0 + columns : C;
        for (int64_t t = 0; t < T; t++) {
            float* row = dwte + (int64_t)tokens[t] * C;
            const floatX* d = dout + t * C;
            for (int64_t c = c0; c < c1; c++) row[c] += (float)d[c];
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
static constexpr int EMBEDDING_SORT_BLOCK = 256, EMBEDDING_SORT_LANES = 8;
static constexpr int EMBEDDING_BACKWARD_BLOCK = 128, EMBEDDING_BACKWARD_ROWS = 8;

// sorted_position, sorted_token: [T], by (token, position). grid: CEIL_DIV(T, EMBEDDING_SORT_BLOCK /
// EMBEDDING_SORT_LANES)
__global__ void embedding_sort_kernel(int* sorted_position, int* sorted_token, const int* tokens, int T) {
    constexpr int LANES = EMBEDDING_SORT_LANES;
    int64_t t = (int64_t)blockIdx.x * (EMBEDDING_SORT_BLOCK / LANES) + threadIdx.x / LANES;
    int lane = threadIdx.x % LANES, place = 0;
    bool live = t < T;  // the others still take part in the warp's sums
    int token = live ? tokens[t] : 0;
    for (int s = lane; live && s < T; s += LANES) place += tokens[s] < token || (tokens[s] == token && s < t);
    for (int offset = LANES / 2; offset > 0; offset /= 2) place += __shfl_xor_sync(0xFFFFFFFFu, place, offset);
    if (!live || lane != 0) return;
    sorted_position[place] = (int)t;
    sorted_token[place] = token;
}

// grid: (T, CEIL_DIV(packs of C, EMBEDDING_BACKWARD_BLOCK))
__global__ void embedding_backward_kernel(float* dwte, const floatX* dout, const int* sorted_position,
                                          const int* sorted_token, int T, int C, bool aligned) {
    constexpr int W = Pack128<floatX>::size, N = EMBEDDING_BACKWARD_ROWS;
    int first = blockIdx.x, token = sorted_token[first];
    if (first > 0 && sorted_token[first - 1] == token) return;
    int64_t column = ((int64_t)blockIdx.y * EMBEDDING_BACKWARD_BLOCK + threadIdx.x) * W;
    if (column >= C) return;
    int i = (int)column;
    float* row = dwte + (int64_t)token * C;
    float sum[W];
    for (int p = 0; p < W; p += 4) {
        Pack128<float> a = load_pack(row, i + p, C, aligned);
        for (int k = 0; k < 4; k++) sum[p + k] = a[k];
    }
    bool more = true;
    for (int j = first; more; j += N) {
        Pack128<floatX> d[N];
        bool mine[N];
        for (int n = 0; n < N; n++) {
            mine[n] = T - j > n && sorted_token[j + n] == token;
            if (mine[n]) d[n] = load_pack(dout + (int64_t)sorted_position[j + n] * C, i, C, aligned);
        }
        for (int n = 0; n < N; n++)
            if (mine[n])
                for (int k = 0; k < W; k++) sum[k] += (float)d[n][k];
        more = mine[N - 1] && T - j > N;
    }
    for (int p = 0; p < W; p += 4) {
        Pack128<float> a;
        for (int k = 0; k < 4; k++) a[k] = sum[p + k];
        store_pack(row, i + p, C, aligned, a);
    }
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

// out: [T,C]; tokens: [T], each in [0,V); wte: [V,C]
inline void embedding_forward(floatX* out, const int* tokens, const floatX* wte, int64_t T, int64_t C, Device dev) {
    NVTX_RANGE("embedding_forward");
#if HAS_KERNELS
    if (dev.cuda) {
        gather_rows(out, wte, tokens, T, C, dev);
        return;
    }
#endif
    (void)dev;
    embedding_forward_cpu(out, tokens, wte, T, C);
}

// dwte: [V,C], +=; dout: [T,C]; tokens: [T], each in [0,V)
inline void embedding_backward(float* dwte, const floatX* dout, const int* tokens, int64_t T, int64_t C, Device dev) {
    NVTX_RANGE("embedding_backward");
    rows_check("embedding_backward", T, C);
    if (T == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        Scratch sorted(2 * (size_t)T, dev);
        int *position = reinterpret_cast<int*>(sorted.data), *token = position + T;
        LAUNCH(embedding_sort_kernel, (unsigned)CEIL_DIV(T, EMBEDDING_SORT_BLOCK / EMBEDDING_SORT_LANES),
               EMBEDDING_SORT_BLOCK, 0, dev.stream, position, token, tokens, (int)T);
        bool aligned = is_aligned16(dwte, C) && is_aligned16(dout, C);
        int64_t packs = CEIL_DIV(C, Pack128<floatX>::size);
        LAUNCH(embedding_backward_kernel, dim3((unsigned)T, (unsigned)CEIL_DIV(packs, EMBEDDING_BACKWARD_BLOCK)),
               EMBEDDING_BACKWARD_BLOCK, 0, dev.stream, dwte, dout, position, token, (int)T, (int)C, aligned);
        return;
    }
#endif
    (void)dev;
    embedding_backward_cpu(dwte, dout, tokens, T, C);
}
