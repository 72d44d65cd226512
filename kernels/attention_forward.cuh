// The forward kernels of attention.cuh: whole sequences, and one query a row over the cache.
//
// Both run attention_key_blocks and attention_merge over the same blocks and chunks of keys, counted from the first key
// of the sequence, so that a query's bits are the same in both. A masked key counts exp2(-inf) = 0 and adds an exact
// zero. No block is masked as a whole for a row: a warp's 16 queries begin at a position that is a multiple of 16 and
// blocks are a multiple of 16 keys, so that all of them end in the same block, which is where decode ends too.
// Positions count the prefix; after one the first warp may have rows without a query.
#pragma once
#include <type_traits>
#include "attention_tile.cuh"

#if HAS_KERNELS
// keys of a block of the online softmax and of a chunk; the bits of every output depend on both
static constexpr int ATTENTION_KEYS = ATTENTION_MMA ? 64 : 32, ATTENTION_CHUNK = 256;
// 16 queries a warp: 128 a block, 64 in fp32, where a tile of 128 does not fit
static constexpr int ATTENTION_FORWARD_WARPS = ATTENTION_MMA ? 8 : 4;
static constexpr int ATTENTION_MERGE_WARPS = 4;

// q rows of `warps` warps, three tiles of keys or values, operands
template <int HDP>
HOST_DEVICE constexpr int attention_forward_shared_bytes(int warps) {
    return (warps * 16 + 3 * ATTENTION_KEYS) * attention_ld<HDP>() * (int)sizeof(floatX) +
           warps * attention_operand_floats<ATTENTION_KEYS>() * 4;
}

// Rows g and g + 8 of a warp's queries, over the keys of a chunk so far: largest score (before scaling), this lane's
// part of the sum of exp, and sum of exp * v in attention_multiply_nn's layout.
template <int HDP>
struct AttentionChunk {
    float max[2], sum[2], acc[HDP / 8][4];
};

template <int HDP>
__device__ inline void attention_clear(AttentionChunk<HDP>& x) {
    x.max[0] = x.max[1] = -INFINITY;
    x.sum[0] = x.sum[1] = 0.0f;
    attention_zero<HDP>(x.acc);
}

// One block of scores s (16, ATTENTION_KEYS), of the keys from j0 on: s becomes exp(scaled s - max), the sums so far
// are brought to the new max. keys: what rows g and g + 8 see. c: scale * log2(e)
template <int HDP>
__device__ inline void attention_softmax_block(AttentionChunk<HDP>& x, float (*s)[4], int j0, const int* keys,
                                               float c) {
    int t = threadIdx.x % 4;
    UNROLL
    for (int r = 0; r < 2; r++) {
        if (j0 + ATTENTION_KEYS > keys[r]) {
            UNROLL
            for (int n = 0; n < ATTENTION_KEYS / 8; n++)
                UNROLL
                for (int e = 0; e < 2; e++)
                    if (j0 + 8 * n + 2 * t + e >= keys[r]) s[n][2 * r + e] = -INFINITY;
        }
        float max = x.max[r];
        UNROLL
        for (int n = 0; n < ATTENTION_KEYS / 8; n++) max = fmaxf(max, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
        max = group_reduce_max<4>(max);
        float shrink = exp2f((x.max[r] - max) * c), shift = max * c, sum = 0.0f;
        UNROLL
        for (int n = 0; n < ATTENTION_KEYS / 8; n++)
            UNROLL
            for (int e = 0; e < 2; e++) {
                s[n][2 * r + e] = exp2f(mul_add(s[n][2 * r + e], c, -shift));
                sum += s[n][2 * r + e];
            }
        x.sum[r] = mul_add(x.sum[r], shrink, sum);
        x.max[r] = max;
        UNROLL
        for (int n = 0; n < HDP / 8; n++)
            UNROLL
            for (int e = 0; e < 2; e++) x.acc[n][2 * r + e] *= shrink;
    }
}

// The chunks merged so far and the next one: what each is multiplied by
struct AttentionWeights {
    float before, chunk;
};

// total_max, total_sum: of the chunks so far, -inf and 0 at first; max, sum: of the next chunk
__device__ inline AttentionWeights attention_merge(float& total_max, float& total_sum, float max, float sum, float c) {
    float larger = fmaxf(total_max, max);
    AttentionWeights w = {exp2f((total_max - larger) * c), exp2f((max - larger) * c)};
    total_sum = mul_add(total_sum, w.before, sum * w.chunk);
    total_max = larger;
    return w;
}

__device__ inline float attention_merge_value(float total, float acc, AttentionWeights w) {
    return mul_add(total, w.before, acc * w.chunk);
}

// The shared memory of attention_key_blocks
struct AttentionTiles {
    floatX* queries;  // the warp's 16 rows
    floatX* ring;     // three tiles of keys or values
    float* operand;   // attention_operand_floats<ATTENTION_KEYS>() of the warp's own
};

// Blocks of keys first ... end - 1, of which this warp has queries for those before own_end only
struct AttentionBlocks {
    int first, end, own_end;
    int keys[2];  // that rows g and g + 8 see
};

// Runs the blocks. Keys and values come alternately through the ring, two tiles on the way while one is used: item 2b
// is block b's keys, 2b + 1 its values. load(item, tile) starts a copy; barrier() is among the threads that load;
// after(block) follows each block.
template <int HDP, class Load, class Barrier, class After>
__device__ inline void attention_key_blocks(AttentionChunk<HDP>& x, AttentionTiles tiles, AttentionBlocks b, float c,
                                            Load load, Barrier barrier, After after) {
    constexpr int TILE = ATTENTION_KEYS * attention_ld<HDP>();
    auto start = [&](int item) {
        if (item < 2 * b.end) load(item, tiles.ring + item % 3 * TILE);
        cp_async_commit();  // an empty group too, so that the count that is waited for is the same to the end
    };
    start(2 * b.first);
    start(2 * b.first + 1);
    for (int block = b.first; block < b.end; block++) {
        cp_async_wait<1>();
        barrier();  // the keys have landed for every thread, and the tile loaded next has been read
        start(2 * block + 2);
        float s[ATTENTION_KEYS / 8][4];
        if (block < b.own_end) {
            attention_zero<ATTENTION_KEYS>(s);
            attention_multiply_nt<ATTENTION_KEYS, HDP>(s, tiles.queries, tiles.ring + 2 * block % 3 * TILE);
            attention_softmax_block(x, s, block * ATTENTION_KEYS, b.keys, c);
        }
        cp_async_wait<1>();
        barrier();
        start(2 * block + 3);
        if (block < b.own_end) {
            attention_multiply_nn<HDP, ATTENTION_KEYS>(x.acc, s, tiles.ring + (2 * block + 1) % 3 * TILE,
                                                       tiles.operand);
            after(block);
        }
    }
}

// grid: sequence, head, tile of queries, the last tile of a sequence (the longest work) first
template <int HDP>
__global__ void __launch_bounds__(ATTENTION_FORWARD_WARPS * 32)
    attention_forward_kernel(floatX* out, float* lse, Rows<const floatX> q, KeyValueRows kv, PackedSequences sequences,
                             int tiles, AttentionShape shape, float scale, bool aligned) {
    constexpr int THREADS = ATTENTION_FORWARD_WARPS * 32, ROWS = ATTENTION_FORWARD_WARPS * 16, LD = attention_ld<HDP>();
    DYNAMIC_SHARED(floatX, q_tile);
    const int NH = shape.NH, HD = shape.HD;
    int tile = tiles - 1 - blockIdx.x % tiles, h = blockIdx.x / tiles % NH;
    const AttentionSequence sequence = attention_sequence(sequences, blockIdx.x / tiles / NH);
    const int n = sequence.n, i0 = sequence.prefix / 16 * 16 + tile * ROWS;
    if (i0 >= n) return;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row0 = i0 + warp * 16;
    floatX *queries = q_tile + warp * 16 * LD, *ring = q_tile + ROWS * LD;
    float* operands = reinterpret_cast<float*>(ring + 3 * ATTENTION_KEYS * LD);
    float c = scale * LOG2_E;

    attention_load_tile<ROWS, HDP, THREADS>(q_tile, q.p, HD, aligned, [&](int r) -> const floatX* {
        const int i = i0 + r;
        return i >= sequence.prefix && i < n ? q.row(sequence.own + i) + (int64_t)h * HD : nullptr;
    });
    auto load = [&](int item, floatX* to) {
        Rows<const floatX> rows = kv.rows(item % 2);
        rows.p += (int64_t)(h / shape.group()) * HD;
        const int j0 = item / 2 * ATTENTION_KEYS;
        attention_load_tile<ATTENTION_KEYS, HDP, THREADS>(
            to, rows.p, HD, aligned, [&](int r) { return j0 + r < n ? rows.row(sequence.row(j0 + r)) : nullptr; });
    };

    AttentionChunk<HDP> x;
    attention_clear(x);
    float total_max[2] = {-INFINITY, -INFINITY}, total_sum[2] = {0.0f, 0.0f}, total[HDP / 8][4];
    attention_zero<HDP>(total);
    int last = (n < i0 + ROWS ? n : i0 + ROWS) - 1;  // the tile's last query
    int own_blocks = row0 < n ? row0 / ATTENTION_KEYS + 1 : 0;
    AttentionBlocks blocks = {0, last / ATTENTION_KEYS + 1, own_blocks, {row0 + lane / 4 + 1, row0 + lane / 4 + 9}};
    auto merge_at_end_of_chunk = [&](int block) {
        if ((block + 1) % (ATTENTION_CHUNK / ATTENTION_KEYS) != 0 && block + 1 != own_blocks) return;
        UNROLL
        for (int r = 0; r < 2; r++) {
            float sum = group_reduce_sum<4>(x.sum[r]);
            AttentionWeights w = attention_merge(total_max[r], total_sum[r], x.max[r], sum, c);
            UNROLL
            for (int i = 0; i < HDP / 8; i++)
                UNROLL
                for (int e = 2 * r; e < 2 * r + 2; e++) total[i][e] = attention_merge_value(total[i][e], x.acc[i][e], w);
        }
        attention_clear(x);
    };
    AttentionTiles shared = {queries, ring, operands + warp * attention_operand_floats<ATTENTION_KEYS>()};
    attention_key_blocks(
        x, shared, blocks, c, load, [] { __syncthreads(); }, merge_at_end_of_chunk);
    if (own_blocks == 0) return;

    float inverse[2] = {1.0f / total_sum[0], 1.0f / total_sum[1]};
    int first = sequence.prefix > row0 ? sequence.prefix - row0 : 0, rows = n - row0 < 16 ? n - row0 : 16;
    const int64_t row = sequence.own + row0;
    attention_store_rows<HDP>({out + (row * NH + h) * HD, (int64_t)NH * HD}, total, inverse, queries, first, rows, HD,
                              aligned);
    UNROLL
    for (int r = 0; r < 2; r++) {
        int i = lane / 4 + 8 * r;
        if (lane % 4 == 0 && i >= first && i < rows)
            lse[(row + i) * NH + h] = mul_add(total_max[r], scale, logf(total_sum[r]));
    }
}

// A tile of keys or values from rows of codes, by one warp and at once. row(r): the row of the tile's row r, or null
// for zeros; keys of rotation.bias are finished at position j0 + r.
template <int HDP, class Row>
__device__ inline void attention_load_codes(floatX* tile, const KvQuant& quant, const KeyRotation& rotation, int head,
                                            int j0, Row row) {
    constexpr int W = Pack128<floatX>::size, PACKS = HDP / W, LD = attention_ld<HDP>();
    int lane = threadIdx.x % 32;
    if (!rotation.bias) {
        for (int i = lane; i < ATTENTION_KEYS * PACKS; i += 32) {
            int r = i / PACKS, c = i % PACKS * W;
            const uint32_t* from = row(r);
            Pack128<floatX> pack;
            for (int e = 0; e < W; e++) pack[e] = floatX(0.0f);
            if (from && c < quant.HD) pack = kv_read_pack(quant, from, head, c);
            store128(tile + r * LD + c, pack);
        }
        return;
    }
    int half = quant.HD / 2;
    for (int i = lane; i < ATTENTION_KEYS * HDP; i += 32) {
        int r = i / HDP, d = i % HDP;
        const uint32_t* from = row(r);
        if (from == nullptr || d >= quant.HD) {
            tile[r * LD + d] = floatX(0.0f);
        } else if (d < half) {
            RopePair pair = kv_read_key(quant, rotation, from, head, d, j0 + r);
            tile[r * LD + d] = (floatX)pair.x1, tile[r * LD + d + half] = (floatX)pair.x2;
        }
    }
}

// One warp: one chunk of one row's keys, for 16 (or fewer) query heads of one key/value head. It leaves acc (HD), max
// and sum in partial (T,NH,chunks,HD+2). Place: KeyValueRows, or KeyValueCodes. grid: row, key/value head, tile of 16
// heads, chunk
template <int HDP, class Place>
__global__ void __launch_bounds__(32, 1)
    attention_decode_kernel(float* partial, Rows<const floatX> q, Place place0, Place place1, const KeyRange* ranges,
                            int chunks, AttentionShape shape, float scale, bool aligned) {
    DYNAMIC_SHARED(floatX, queries);
    const int NH = shape.NH, NKV = shape.NKV, HD = shape.HD;
    int group = NH / NKV, head_tiles = CEIL_DIV(group, 16), chunk = blockIdx.x % chunks, rest = blockIdx.x / chunks;
    int head_tile = rest % head_tiles, kv_head = rest / head_tiles % NKV;
    int64_t token = rest / head_tiles / NKV;
    KeyRange range = ranges[token];
    int n = range.n0 + range.n1, begin = chunk * ATTENTION_CHUNK;
    if (begin >= n) return;
    int end = n - begin < ATTENTION_CHUNK ? n : begin + ATTENTION_CHUNK;
    int h0 = kv_head * group + head_tile * 16, heads = group - head_tile * 16 < 16 ? group - head_tile * 16 : 16;
    floatX* ring = queries + 16 * attention_ld<HDP>();
    float* operand = reinterpret_cast<float*>(ring + 3 * ATTENTION_KEYS * attention_ld<HDP>());

    attention_load_rows<16, HDP, 32>(queries, {q.row(token) + (int64_t)h0 * HD, HD}, 0, heads, HD, aligned);
    auto load = [&](int item, floatX* to) {
        int j0 = item / 2 * ATTENTION_KEYS;
        if constexpr (std::is_same<Place, KeyValueRows>::value) {
            Rows<const floatX> rows0 = place0.rows(item % 2), rows1 = place1.rows(item % 2);
            rows0.p += range.row0 * rows0.stride + (int64_t)kv_head * HD;
            rows1.p += range.row1 * rows1.stride + (int64_t)kv_head * HD;
            attention_load_tile<ATTENTION_KEYS, HDP, 32>(to, q.p, HD, aligned, [&](int r) -> const floatX* {
                int j = j0 + r;
                if (j >= n) return nullptr;
                return j < range.n0 ? rows0.row(j) : rows1.row(j - range.n0);
            });
        } else {
            int64_t words = kv_row_words(place0.quant);
            const uint32_t* rows0 = (item % 2 ? place0.v : place0.k) + range.row0 * words;
            const uint32_t* rows1 = (item % 2 ? place1.v : place1.k) + range.row1 * words;
            attention_load_codes<HDP>(to, place0.quant, item % 2 ? KeyRotation() : place0.rotation, kv_head, j0,
                                      [&](int r) -> const uint32_t* {
                                          int j = j0 + r;
                                          if (j >= n) return nullptr;
                                          return j < range.n0 ? rows0 + j * words : rows1 + (j - range.n0) * words;
                                      });
        }
    };
    AttentionChunk<HDP> x;
    attention_clear(x);
    int end_block = CEIL_DIV(end, ATTENTION_KEYS);
    AttentionBlocks blocks = {begin / ATTENTION_KEYS, end_block, end_block, {n, n}};
    attention_key_blocks(
        x, {queries, ring, operand}, blocks, scale * LOG2_E, load, [] { __syncwarp(); }, [](int) {});

    UNROLL
    for (int r = 0; r < 2; r++) {
        float sum = group_reduce_sum<4>(x.sum[r]);
        int row = threadIdx.x / 4 + 8 * r, t = threadIdx.x % 4;
        if (row >= heads) continue;
        float* to = partial + ((token * NH + h0 + row) * chunks + chunk) * (HD + 2);
        UNROLL
        for (int i = 0; i < HDP / 8; i++) {
            int d = 8 * i + 2 * t;  // HD is even
            if (d < HD) to[d] = x.acc[i][2 * r], to[d + 1] = x.acc[i][2 * r + 1];
        }
        if (t == 0) to[HD] = x.max[r], to[HD + 1] = sum;
    }
}

// One warp: the chunks of one row and head, in order. A row without keys gets zeros, one with more keys than the grid
// of attention_decode_kernel was made for NaN.
__global__ void __launch_bounds__(ATTENTION_MERGE_WARPS * 32)
    attention_decode_merge_kernel(floatX* out, float* lse, const float* partial, const KeyRange* ranges, int chunks,
                                  int64_t rows, int NH, int HD, float scale) {
    int64_t row = (int64_t)blockIdx.x * ATTENTION_MERGE_WARPS + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (row >= rows) return;
    KeyRange range = ranges[row / NH];
    int n = range.n0 + range.n1, row_chunks = CEIL_DIV(n, ATTENTION_CHUNK);
    float max = -INFINITY, sum = 0.0f, total[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (row_chunks > chunks) sum = bits_float(0x7FC00000u), row_chunks = 0;
    for (int chunk = 0; chunk < row_chunks; chunk++) {
        const float* from = partial + (row * chunks + chunk) * (HD + 2);
        AttentionWeights w = attention_merge(max, sum, from[HD], from[HD + 1], scale * LOG2_E);
        UNROLL
        for (int i = 0; i < 4; i++)
            if (lane + 32 * i < HD) total[i] = attention_merge_value(total[i], from[lane + 32 * i], w);
    }
    float inverse = 1.0f / sum;
    UNROLL
    for (int i = 0; i < 4; i++)
        if (lane + 32 * i < HD) out[row * HD + lane + 32 * i] = (floatX)(n > 0 ? total[i] * inverse : 0.0f);
    if (lane == 0) lse[row] = n > 0 ? mul_add(max, scale, logf(sum)) : 0.0f;
}
#endif
