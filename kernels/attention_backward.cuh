// The backward kernels of attention.cuh. Three, so that no sum needs atomics: D = dout.out of every row and head; dk
// and dv, a block owning a tile of keys and going over the queries of its group's heads, which for a parent's keys go on
// to the end of its family; dq, a block owning a tile of queries and going over the keys. The last two both recompute s
// and dout.v: 7 products of a tile instead of 5.
//
// The kernel of dk and dv computes the transposes, keys as rows: then p^T and ds^T, as they come out of the tensor
// cores, are the left operands of dv += p^T dout and dk += ds^T q, and nothing passes through shared memory. p and ds
// are rounded to floatX there; scale is left to the end.
#pragma once
#include "attention_tile.cuh"

#if HAS_KERNELS
// A warp owns 16 rows. The stream is the other side's rows, two stages of them in shared memory: as many as fit.
static constexpr int ATTENTION_BACKWARD_WARPS = ATTENTION_MMA ? 4 : 2;
static constexpr int ATTENTION_OWN = 16 * ATTENTION_BACKWARD_WARPS;
template <int HDP>
HOST_DEVICE constexpr int attention_stream() {
    return !ATTENTION_MMA ? 16 : HDP == 128 ? 32 : 64;
}

// two own tiles; two stages of two streamed tiles; two stages of lse and D of the streamed rows; operands
template <int HDP>
HOST_DEVICE constexpr int attention_backward_shared_bytes() {
    constexpr int S = attention_stream<HDP>();
    return (2 * ATTENTION_OWN + 4 * S) * attention_ld<HDP>() * (int)sizeof(floatX) + 4 * S * 4 +
           ATTENTION_BACKWARD_WARPS * attention_operand_floats<S>() * 4;
}

// D (rows) = sum over HD of dout * out; rows = T * NH. 8 lanes a row. grid: CEIL_DIV(rows, 32), 256 threads
__global__ void attention_dot_kernel(float* D, const floatX* dout, const floatX* out, int64_t rows, int HD,
                                     bool aligned) {
    constexpr int W = Pack128<floatX>::size;
    int64_t row = (int64_t)blockIdx.x * 32 + threadIdx.x / 8;
    float sum = 0.0f;
    for (int i = threadIdx.x % 8 * W; row < rows && i < HD; i += 8 * W) {
        Pack128<floatX> a = load_pack(dout + row * HD, i, HD, aligned), b = load_pack(out + row * HD, i, HD, aligned);
        for (int k = 0; k < W; k++) sum = mul_add((float)a[k], (float)b[k], sum);
    }
    sum = group_reduce_sum<8>(sum);
    if (row < rows && threadIdx.x % 8 == 0) D[row] = sum;
}

// What dk, dv and dq are computed from
struct AttentionBackwardInputs {
    Rows<const floatX> dout;  // [T, NH*HD]
    const float *lse, *D;     // [T, NH]
    Rows<const floatX> q;     // [T, NH*HD]
    KeyValueRows kv;          // [T, NKV*HD]
    PackedSequences sequences;
    int tiles;  // of the longest sequence
    AttentionShape shape;
    float scale;
    bool aligned;
};

// S queries of head h, of rows start + i0 on: two tiles, of q and of dout, and lse * log2(e) and D of each in rows
// [2,S]. Zeros from the n-th row after start on.
template <int S, int HDP, int THREADS>
__device__ inline void attention_load_queries(floatX* tiles, float* rows, const AttentionBackwardInputs& x,
                                              int64_t start, int n, int h, int i0) {
    const int NH = x.shape.NH, HD = x.shape.HD;
    const int64_t head = (int64_t)h * HD;
    attention_load_rows<S, HDP, THREADS>(tiles, attention_head(x.q, start, head), i0, n, HD, x.aligned);
    attention_load_rows<S, HDP, THREADS>(tiles + S * attention_ld<HDP>(), attention_head(x.dout, start, head), i0, n,
                                         HD, x.aligned);
    if (rows == nullptr) return;
    for (int r = threadIdx.x; r < S; r += THREADS) {
        int64_t at = (start + i0 + r) * NH + h;
        rows[r] = i0 + r < n ? x.lse[at] * LOG2_E : 0.0f;
        rows[S + r] = i0 + r < n ? x.D[at] : 0.0f;
    }
}

// Of keys and values of a key/value head, two tiles, of positions j0 ... of a sequence
template <int S, int HDP, int THREADS>
__device__ inline void attention_load_keys(floatX* tiles, const AttentionBackwardInputs& x,
                                           const AttentionSequence& sequence, int kv_head, int j0) {
    const int HD = x.shape.HD;
    UNROLL
    for (int values = 0; values < 2; values++) {
        Rows<const floatX> rows = x.kv.rows(values);
        rows.p += (int64_t)kv_head * HD;
        attention_load_tile<S, HDP, THREADS>(
            tiles + values * S * attention_ld<HDP>(), rows.p, HD, x.aligned,
            [&](int r) { return j0 + r < sequence.n ? rows.row(sequence.row(j0 + r)) : nullptr; });
    }
}

// grid: sequence, key/value head, tile of keys
template <int HDP>
__global__ void __launch_bounds__(ATTENTION_BACKWARD_WARPS * 32, 1)
    attention_dkv_kernel(Rows<floatX> dk, Rows<floatX> dv, AttentionBackwardInputs x) {
    constexpr int THREADS = ATTENTION_BACKWARD_WARPS * 32, S = attention_stream<HDP>(), LD = attention_ld<HDP>();
    constexpr int OWN = ATTENTION_OWN, TILE = S * LD;
    DYNAMIC_SHARED(floatX, k_tile);
    const int tiles = x.tiles, NKV = x.shape.NKV, HD = x.shape.HD, group = x.shape.group();
    int tile = blockIdx.x % tiles, kv_head = blockIdx.x / tiles % NKV, number = blockIdx.x / tiles / NKV;
    const AttentionSequence sequence = attention_sequence(x.sequences, number);
    const int prefix = sequence.prefix, n = sequence.n, j0 = prefix + tile * OWN;  // positions
    if (j0 >= n) return;
    // the rows of a family follow one another, so that a parent's queries go on to its end as if they were its own
    const int family = prefix ? number + 1 : attention_family_end(x.sequences.prefix, x.sequences.count, number);
    const int end = x.sequences.starts[family] - (int)sequence.own;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row0 = j0 + warp * 16;
    floatX *v_tile = k_tile + OWN * LD, *stages = v_tile + OWN * LD;  // a stage: rows of q, rows of dout
    float* stage_rows = reinterpret_cast<float*>(stages + 4 * TILE);  // a stage: lse * log2(e), D
    float* operand = stage_rows + 4 * S + warp * attention_operand_floats<S>();

    attention_load_keys<OWN, HDP, THREADS>(k_tile, x, sequence, kv_head, j0);
    int steps_of_head = CEIL_DIV(end - j0, S), steps = group * steps_of_head;
    auto load = [&](int step) {
        if (step < steps)
            attention_load_queries<S, HDP, THREADS>(stages + step % 2 * 2 * TILE, stage_rows + step % 2 * 2 * S, x,
                                                    sequence.own, end, kv_head * group + step / steps_of_head,
                                                    j0 + step % steps_of_head * S);
        cp_async_commit();
    };

    float dk_sum[HDP / 8][4], dv_sum[HDP / 8][4], c = x.scale * LOG2_E;
    attention_zero<HDP>(dk_sum);
    attention_zero<HDP>(dv_sum);
    load(0);
    for (int step = 0; step < steps; step++) {
        cp_async_wait<0>();
        __syncthreads();  // the stage has landed for every thread, and the other one has been read
        load(step + 1);
        int i0 = j0 + step % steps_of_head * S;
        if (row0 >= n || row0 > i0 + S - 1) continue;  // every query here comes before this warp's keys
        const floatX *q_rows = stages + step % 2 * 2 * TILE, *dout_rows = q_rows + TILE;
        const float* rows = stage_rows + step % 2 * 2 * S;
        float p[S / 8][4], ds[S / 8][4];
        attention_zero<S>(p);
        attention_zero<S>(ds);
        attention_multiply_nt<S, HDP>(p, k_tile + warp * 16 * LD, q_rows);
        attention_multiply_nt<S, HDP>(ds, v_tile + warp * 16 * LD, dout_rows);
        UNROLL
        for (int i = 0; i < S / 8; i++)
            UNROLL
            for (int e = 0; e < 4; e++) {
                int r = 8 * i + lane % 4 * 2 + e % 2, j = row0 + lane / 4 + e / 2 * 8;
                bool sees = i0 + r < end && j <= i0 + r;
                p[i][e] = sees ? exp2f(mul_add(p[i][e], c, -rows[r])) : 0.0f;
                ds[i][e] = p[i][e] * (ds[i][e] - rows[S + r]);
            }
        attention_multiply_nn<HDP, S>(dv_sum, p, dout_rows, operand);
        attention_multiply_nn<HDP, S>(dk_sum, ds, q_rows, operand);
    }
    if (row0 >= n) return;
    int rows = n - row0 < 16 ? n - row0 : 16;
    float dk_factor[2] = {x.scale, x.scale}, dv_factor[2] = {1.0f, 1.0f};
    const int64_t row = sequence.own + row0;
    dk.p = dk.row(row) + (int64_t)kv_head * HD, dv.p = dv.row(row) + (int64_t)kv_head * HD;
    attention_store_rows<HDP>(dk, dk_sum, dk_factor, k_tile + warp * 16 * LD, 0, rows, HD, x.aligned);
    attention_store_rows<HDP>(dv, dv_sum, dv_factor, v_tile + warp * 16 * LD, 0, rows, HD, x.aligned);
}

// grid: sequence, head, tile of queries, the last tile of a sequence (the longest work) first
template <int HDP>
__global__ void __launch_bounds__(ATTENTION_BACKWARD_WARPS * 32, 1)
    attention_dq_kernel(Rows<floatX> dq, AttentionBackwardInputs x) {
    constexpr int THREADS = ATTENTION_BACKWARD_WARPS * 32, S = attention_stream<HDP>(), LD = attention_ld<HDP>();
    constexpr int OWN = ATTENTION_OWN, TILE = S * LD;
    DYNAMIC_SHARED(floatX, q_tile);
    const int tiles = x.tiles, NH = x.shape.NH, HD = x.shape.HD;
    int tile = tiles - 1 - blockIdx.x % tiles, h = blockIdx.x / tiles % NH;
    const AttentionSequence sequence = attention_sequence(x.sequences, blockIdx.x / tiles / NH);
    const int n = sequence.n, i0 = sequence.prefix + tile * OWN;  // positions
    if (i0 >= n) return;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row0 = i0 + warp * 16, kv_head = h / x.shape.group();
    floatX *dout_tile = q_tile + OWN * LD, *stages = dout_tile + OWN * LD;  // a stage: keys, values
    float* operand = reinterpret_cast<float*>(stages + 4 * TILE) + 4 * S + warp * attention_operand_floats<S>();

    attention_load_queries<OWN, HDP, THREADS>(q_tile, nullptr, x, sequence.own, n, h, i0);
    int last = (n < i0 + OWN ? n : i0 + OWN) - 1, steps = last / S + 1;
    auto load = [&](int step) {
        if (step < steps)
            attention_load_keys<S, HDP, THREADS>(stages + step % 2 * 2 * TILE, x, sequence, kv_head, step * S);
        cp_async_commit();
    };
    float row_lse[2] = {0.0f, 0.0f}, row_D[2] = {0.0f, 0.0f};
    UNROLL
    for (int r = 0; r < 2; r++) {
        int i = row0 + lane / 4 + 8 * r;
        const int64_t at = (sequence.own + i) * NH + h;
        if (i < n) row_lse[r] = x.lse[at] * LOG2_E, row_D[r] = x.D[at];
    }

    float dq_sum[HDP / 8][4], c = x.scale * LOG2_E;
    attention_zero<HDP>(dq_sum);
    load(0);
    for (int step = 0; step < steps; step++) {
        cp_async_wait<0>();
        __syncthreads();  // the stage has landed for every thread, and the other one has been read
        load(step + 1);
        int j0 = step * S;
        if (row0 >= n || j0 > row0 + 15) continue;  // every key here comes after this warp's queries
        const floatX *k_rows = stages + step % 2 * 2 * TILE, *v_rows = k_rows + TILE;
        float s[S / 8][4], ds[S / 8][4];
        attention_zero<S>(s);
        attention_zero<S>(ds);
        attention_multiply_nt<S, HDP>(s, q_tile + warp * 16 * LD, k_rows);
        attention_multiply_nt<S, HDP>(ds, dout_tile + warp * 16 * LD, v_rows);
        UNROLL
        for (int i = 0; i < S / 8; i++)
            UNROLL
            for (int e = 0; e < 4; e++) {
                bool sees = j0 + 8 * i + lane % 4 * 2 + e % 2 <= row0 + lane / 4 + e / 2 * 8;
                float p = sees ? exp2f(mul_add(s[i][e], c, -row_lse[e / 2])) : 0.0f;
                ds[i][e] = p * (ds[i][e] - row_D[e / 2]);
            }
        attention_multiply_nn<HDP, S>(dq_sum, ds, k_rows, operand);
    }
    if (row0 >= n) return;
    float factor[2] = {x.scale, x.scale};
    dq.p = dq.row(sequence.own + row0) + (int64_t)h * HD;
    attention_store_rows<HDP>(dq, dq_sum, factor, q_tile + warp * 16 * LD, 0, n - row0 < 16 ? n - row0 : 16, HD,
                              x.aligned);
}
#endif
