// What the kernels of attention share: tiles of rows in shared memory and products of one warp with them. Part of
// attention.cuh.
//
// A tile holds rows of HDP elements: HD padded with zeros to 16, 32, 64 or 128. Rows are HDP elements and 16 bytes
// apart, so that the 8 rows one ldmatrix reads lie in different banks.
// A warp's product is (16,N), kept as mma.m16n8k16 has it: lane l = 4 g + t holds of columns 8n + 2t and 8n + 2t + 1
// the rows g (d[n][0], d[n][1]) and g + 8 (d[n][2], d[n][3]). In bf16 the tensor cores compute it, in fp32 (for tests)
// a loop of fused multiply-adds with the same layout; both go up k in order, so that the bits of a row of d depend on
// that row of a and on b alone.
#pragma once
#include "../runtime/math.h"
#include "../runtime/ptx.h"

#if HAS_KERNELS
static constexpr bool ATTENTION_MMA = sizeof(floatX) == 2;
static constexpr float LOG2_E = 1.44269504088896341f;

// elements from one row of a tile to the next
template <int HDP>
HOST_DEVICE constexpr int attention_ld() {
    return HDP + 16 / (int)sizeof(floatX);
}

// of multiply_nn, fp32: one warp's left operand (16,K); bf16 needs none
template <int K>
HOST_DEVICE constexpr int attention_operand_floats() {
    return ATTENTION_MMA ? 0 : 16 * (K + 4);
}

// Starts the copy of ROWS rows to a tile. row(r): address of row r, or null for zeros. any: an address that is valid.
// Rows that are not 16-byte aligned are copied element by element, at once.
template <int ROWS, int HDP, int THREADS, class Row>
__device__ inline void attention_load_tile(floatX* tile, const floatX* any, int HD, bool aligned, Row row) {
    constexpr int W = Pack128<floatX>::size, PACKS = HDP / W;
    // at 128 a loop: its addresses, unrolled, are registers that attention_dkv lacks on sm_120 (80 bytes spilled)
    [[maybe_unused]] constexpr int times = HDP == 128 ? 1 : ROWS * PACKS / THREADS + 1;
    UNROLL_TIMES(times)
    for (int first = 0; first < ROWS * PACKS; first += THREADS) {
        int i = first + threadIdx.x;
        if (ROWS * PACKS % THREADS != 0 && i >= ROWS * PACKS) break;
        int r = i / PACKS, c = i % PACKS * W;
        const floatX* from = row(r);
        bool live = from != nullptr && c < HD;
        floatX* to = tile + r * attention_ld<HDP>() + c;
        if (aligned) cp_async_16(to, live ? from + c : any, live ? 16 : 0);
        else {
            Pack128<floatX> pack;
            for (int e = 0; e < W; e++) pack[e] = live && c + e < HD ? from[c + e] : floatX(0.0f);
            store128(to, pack);
        }
    }
}

// x's rows from `start` on, columns from `column` on: a head of a sequence
__device__ inline Rows<const floatX> attention_head(Rows<const floatX> x, int64_t start, int64_t column) {
    return {x.row(start) + column, x.stride};
}

// The same of rows first ... first + ROWS - 1 of x, with zeros from the n-th on; x has one row at least
template <int ROWS, int HDP, int THREADS>
__device__ inline void attention_load_rows(floatX* tile, Rows<const floatX> x, int first, int n, int HD, bool aligned) {
    attention_load_tile<ROWS, HDP, THREADS>(tile, x.p, HD, aligned,
                                            [&](int r) { return first + r < n ? x.row(first + r) : nullptr; });
}

// d (16,N) += a (16,K) b (N,K)^T, both in tiles of HDP = K
template <int N, int K>
__device__ inline void attention_multiply_nt(float (*d)[4], const floatX* a, const floatX* b) {
    constexpr int LD = attention_ld<K>();
    int lane = threadIdx.x % 32;
    if constexpr (ATTENTION_MMA) {
        UNROLL
        for (int k = 0; k < K; k += 16) {
            uint32_t a_part[4];
            ldmatrix_x4(a_part, a + lane % 16 * LD + k + lane / 16 * 8);
            UNROLL
            for (int n = 0; n < N; n += 16) {
                uint32_t b_part[4];
                ldmatrix_x4(b_part, b + (n + lane / 16 * 8 + lane % 8) * LD + k + lane / 8 % 2 * 8);
                mma_m16n8k16_bf16(d[n / 8], a_part, b_part);
                mma_m16n8k16_bf16(d[n / 8 + 1], a_part, b_part + 2);
            }
        }
    } else {
        const floatX *a_row = a + lane / 4 * LD, *b_row = b + lane % 4 * 2 * LD;
        for (int k = 0; k < K; k++) {
            float x[2] = {(float)a_row[k], (float)a_row[8 * LD + k]};
            UNROLL
            for (int n = 0; n < N / 8; n++)
                UNROLL
                for (int e = 0; e < 4; e++) d[n][e] = mul_add(x[e / 2], (float)b_row[(8 * n + e % 2) * LD + k], d[n][e]);
        }
    }
}

// d (16,N) += p (16,K) b (K,N): p is a product, rounded to floatX here, b a tile of HDP = N.
// operand: attention_operand_floats<K>() of the warp's own
template <int N, int K>
__device__ inline void attention_multiply_nn(float (*d)[4], const float (*p)[4], const floatX* b, float* operand) {
    constexpr int LD = attention_ld<N>();
    int lane = threadIdx.x % 32;
    if constexpr (ATTENTION_MMA) {
        (void)operand;
        UNROLL
        for (int k = 0; k < K; k += 16) {
            const float(*tile)[4] = p + k / 8;
            uint32_t a_part[4] = {pack_bf16(tile[0][0], tile[0][1]), pack_bf16(tile[0][2], tile[0][3]),
                                  pack_bf16(tile[1][0], tile[1][1]), pack_bf16(tile[1][2], tile[1][3])};
            UNROLL
            for (int n = 0; n < N; n += 16) {
                uint32_t b_part[4];
                ldmatrix_x4_trans(b_part, b + (k + lane / 8 % 2 * 8 + lane % 8) * LD + n + lane / 16 * 8);
                mma_m16n8k16_bf16(d[n / 8], a_part, b_part);
                mma_m16n8k16_bf16(d[n / 8 + 1], a_part, b_part + 2);
            }
        }
    } else {
        int g = lane / 4, t = lane % 4;
        UNROLL
        for (int n = 0; n < K / 8; n++)
            UNROLL
            for (int e = 0; e < 4; e++) operand[(g + e / 2 * 8) * (K + 4) + 8 * n + 2 * t + e % 2] = p[n][e];
        __syncwarp();
        for (int k = 0; k < K; k++) {
            float x[2] = {operand[g * (K + 4) + k], operand[(g + 8) * (K + 4) + k]};
            UNROLL
            for (int n = 0; n < N / 8; n++)
                UNROLL
                for (int e = 0; e < 4; e++) d[n][e] = mul_add(x[e / 2], (float)b[k * LD + 8 * n + 2 * t + e % 2], d[n][e]);
        }
        __syncwarp();  // operand is free again
    }
}

template <int N>
__device__ inline void attention_zero(float (*d)[4]) {
    UNROLL
    for (int n = 0; n < N / 8; n++)
        UNROLL
        for (int e = 0; e < 4; e++) d[n][e] = 0.0f;
}

// Rows `first` ... rows - 1 of d (16,HDP), times factor[0] in rows 0..7 of the lane's and factor[1] in 8..15, to out.
// They pass through staging, 16 rows of a tile that no other warp uses, so that they are stored in whole packs.
template <int HDP>
__device__ inline void attention_store_rows(Rows<floatX> out, const float (*d)[4], const float* factor, floatX* staging,
                                            int first, int rows, int HD, bool aligned) {
    constexpr int W = Pack128<floatX>::size, PACKS = HDP / W, LD = attention_ld<HDP>();
    int lane = threadIdx.x % 32;
    __syncwarp();  // the other lanes' reads of staging are over
    UNROLL
    for (int n = 0; n < HDP / 8; n++)
        UNROLL
        for (int e = 0; e < 4; e++)
            staging[(lane / 4 + e / 2 * 8) * LD + 8 * n + lane % 4 * 2 + e % 2] = (floatX)(d[n][e] * factor[e / 2]);
    __syncwarp();
    for (int i = lane; i < 16 * PACKS; i += 32) {
        int r = i / PACKS, c = i % PACKS * W;
        if (r >= first && r < rows && c < HD) store_pack(out.row(r), c, HD, aligned, load128(staging + r * LD + c));
    }
}
#endif
