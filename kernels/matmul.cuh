// Matrix products of the linear layers and the LM head, on either device.
//
//   matmul_nt   out[M,N]  = a[M,K] b[N,K]^T + bias   forward
//   matmul_nn   dinp[M,K] (+)= dout[M,N] w[N,K]      activation gradient
//   matmul_tn   dw[N,K]   += dout[M,N]^T inp[M,K]    weight gradient, float
// On the CPU all three are cpu/gemm.h. On a GPU the forward is the kernel below and the gradients, whose bits may
// depend on the batch, are cuBLASLt's (cublaslt.cuh).
//
// The forward kernel. Every output is one chain of k16 steps, k = 0 upwards, in one fp32 accumulator, then the bias,
// then one rounding. No split of K, in any tile: so the bits of an output depend on its row of a, its row of b and its
// bias, and not on M, N, the tile or the place in it. A sampler that decodes 1 ... 256 rows and a trainer that sees
// thousands get the same log-probabilities (the policy ratio at step 0 is exactly 1). What that costs: with few rows
// and few columns, blocks are too few to fill a large GPU, where splitting K would.
//   pipeline   STAGES slices of BK in shared memory, filled by cp.async 16 bytes at a time, STAGES - 1 slices ahead;
//              one barrier a slice. Rows that are not 16-byte aligned are loaded element by element.
//   banks      chunks of 16 bytes are permuted within their row: neither ldmatrix nor the writes meet a conflict
//   tensor     mma.m16n8k16, bf16 in, fp32 sums in registers: 64 x 32 a warp in the 128 x 128 tile
// Traffic: least 2 (MK + NK + MN) bytes; moved: a CEIL_DIV(N,BN) times and b CEIL_DIV(M,BM) times, from L2 but for the
// first; with M <= 64 the weight b is read once, so decoding costs what the weight's bytes cost.
// Launch: MatmulTile. 128 or 256 threads; 64 to 82 KB of shared memory; two blocks of the largest tile fit a
// multiprocessor of an A100 or H100.
// fp32 builds (the twin for tests) use plain multiply-adds, one tile shape, the same order of k.
//
// The trap: K's tail. A slice's last elements beyond K must be zero in both operands, or NaN in what lies behind a row
// times zero spoils it.
#pragma once
#include <cstdint>
#include "../runtime/device.h"
#include "../runtime/ptx.h"
#include "cpu/gemm.h"
#include "cublaslt.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// CUDA: tiles of shared memory, common to this file and matmul_quantized.cuh

#if HAS_KERNELS
// A tile of bf16 in shared memory: BK elements a row, in chunks of 16 bytes that are permuted within the row, so that
// the 8 rows ldmatrix reads at one k, and the chunks a warp writes, fall into different banks.
template <int BK>
__device__ inline int matmul_swizzle(int row, int chunk) {
    static_assert(BK == 32 || BK % 64 == 0, "rows of 64 bytes, or of multiples of 128");
    if constexpr (BK == 32) return row * BK + (chunk ^ (row / 2 % 4)) * 8;
    else return row * BK + (chunk ^ (row % 8)) * 8;
}

// 8 elements to shared memory, those from the n-th on zero. What is not 16-byte aligned is copied element by element,
// at once.
__device__ inline void matmul_load_chunk(bf16* to, const bf16* from, int n, bool aligned) {
    if (aligned) {
        cp_async_16(to, from, n * 2);
    } else {
        Pack128<bf16> pack;
        for (int e = 0; e < 8; e++) pack[e] = e < n ? from[e] : bf16(0.0f);
        store128(to, pack);
    }
}

// Starts the copy of rows row0 ... row0 + ROWS - 1, columns k0 ... k0 + BK - 1 of x (rows,K) to `tile`; what lies
// outside x is zero.
template <int ROWS, int BK, int THREADS>
__device__ inline void matmul_load_tile(bf16* tile, Rows<const bf16> x, int64_t row0, int64_t rows, int64_t k0,
                                        int64_t K, bool aligned) {
    constexpr int CHUNKS = BK / 8;
    UNROLL
    for (int first = 0; first < ROWS * CHUNKS; first += THREADS) {
        int i = first + threadIdx.x;
        if (ROWS * CHUNKS % THREADS != 0 && i >= ROWS * CHUNKS) break;
        int row = i / CHUNKS, chunk = i % CHUNKS;
        int64_t k = k0 + chunk * 8, left = row0 + row < rows ? K - k : 0;
        int n = left < 0 ? 0 : left > 8 ? 8 : (int)left;
        const bf16* from = n > 0 ? x.row(row0 + row) + k : x.p;
        bf16* to = tile + matmul_swizzle<BK>(row, chunk);
        matmul_load_chunk(to, from, n, aligned);
    }
}

// A's fragments for one k16 step: 16 rows from `row`
template <int BK>
__device__ inline void matmul_load_a(uint32_t* a, const bf16* tile, int row, int step) {
    int lane = threadIdx.x % 32;
    ldmatrix_x4(a, tile + matmul_swizzle<BK>(row + lane % 16, step * 2 + lane / 16));
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// CUDA: the tensor cores

#if HAS_KERNELS
// dynamic shared memory: STAGES tiles of a (BM,BK) and b (BN,BK), then the tile of out
template <int BM, int BN, int BK, int STAGES, class O>
constexpr int matmul_shared_bytes() {
    constexpr int tiles = STAGES * (BM + BN) * BK * 2, out = BM * (BN * (int)sizeof(O) + 16);
    return tiles > out ? tiles : out;
}

// elements from one row to the next of the tile of out, which is stored through shared memory in whole packs
template <int BN, class O>
HOST_DEVICE constexpr int matmul_out_ld() {
    return BN + 16 / (int)sizeof(O);
}

// A warp's sums (16 MT, 8 NT) += rows warp_m ... of as (BM,BK) times rows warp_n ... of bs (BN,BK)
template <int BK, int MT, int NT>
__device__ inline void matmul_multiply_slice(float (&sum)[MT][NT][4], const bf16* as, const bf16* bs, int warp_m,
                                             int warp_n) {
    static_assert(NT == 1 || NT % 2 == 0, "b is loaded two tiles of 8 columns at a time");
    int lane = threadIdx.x % 32;
    UNROLL
    for (int step = 0; step < BK / 16; step++) {
        uint32_t af[MT][4], bf[NT * 2];
        UNROLL
        for (int i = 0; i < MT; i++) matmul_load_a<BK>(af[i], as, warp_m + i * 16, step);
        if constexpr (NT == 1) {
            ldmatrix_x2(bf, bs + matmul_swizzle<BK>(warp_n + lane % 8, step * 2 + lane / 8 % 2));
        } else {
            UNROLL
            for (int j = 0; j < NT; j += 2) {
                int row = warp_n + j * 8 + lane / 16 * 8 + lane % 8;
                ldmatrix_x4(bf + j * 2, bs + matmul_swizzle<BK>(row, step * 2 + lane / 8 % 2));
            }
        }
        UNROLL
        for (int i = 0; i < MT; i++)
            UNROLL
            for (int j = 0; j < NT; j++) mma_m16n8k16_bf16(sum[i][j], af[i], bf + j * 2);
    }
}

// A warp's sums plus bias, rounded, to its place in the tile of out; n0: its first column of N
template <class O, int MT, int NT>
__device__ inline void matmul_round_sums(O* tile, int ld, const float (&sum)[MT][NT][4], const bf16* bias, int64_t n0,
                                         int64_t N) {
    int lane = threadIdx.x % 32;
    UNROLL
    for (int j = 0; j < NT; j++) {
        int col = j * 8 + lane % 4 * 2;
        float bias0 = bias && n0 + col < N ? (float)bias[n0 + col] : 0.0f;
        float bias1 = bias && n0 + col + 1 < N ? (float)bias[n0 + col + 1] : 0.0f;
        UNROLL
        for (int i = 0; i < MT; i++)
            UNROLL
            for (int half = 0; half < 2; half++) {
                O* to = tile + (i * 16 + half * 8 + lane / 4) * ld + col;
                float x0 = sum[i][j][half * 2], x1 = sum[i][j][half * 2 + 1];
                if (bias) x0 += bias0, x1 += bias1;
                to[0] = (O)x0;
                to[1] = (O)x1;
            }
    }
}

// The tile (BM,BN) to rows m0 ..., columns n0 ... of out (M,N)
template <int BM, int BN, int THREADS, class O>
__device__ inline void matmul_store_tile(Rows<O> out, const O* tile, int64_t m0, int64_t M, int64_t n0, int64_t N,
                                         bool aligned) {
    constexpr int LD = matmul_out_ld<BN, O>(), W = Pack128<O>::size;
    for (int i = threadIdx.x; i < BM * (BN / W); i += THREADS) {
        int row = i / (BN / W), col = i % (BN / W) * W;
        if (m0 + row >= M || n0 + col >= N) continue;
        store_pack(out.row(m0 + row), (int)n0 + col, (int)N, aligned, load128(tile + row * LD + col));
    }
}

// whether the rows of a product's matrices begin at multiples of 16 bytes
struct MatmulAligned {
    bool out, a, b;
};

// grid: tiles of BM x BN in one dimension; 8 tiles down, then the next column of tiles, so that the blocks that run at
// a time share rows of a and of b in the L2
template <int BM, int BN, int BK, int WARPS_M, int WARPS_N, int STAGES, class O>
__global__ void __launch_bounds__(WARPS_M* WARPS_N * 32)
    matmul_nt_kernel(Rows<O> out, Rows<const bf16> a, Rows<const bf16> b, const bf16* bias, int64_t M, int64_t N,
                     int64_t K, MatmulAligned aligned) {
    constexpr int THREADS = WARPS_M * WARPS_N * 32, MT = BM / WARPS_M / 16, NT = BN / WARPS_N / 8;
    DYNAMIC_SHARED(bf16, tiles);
    int64_t tiles_m = CEIL_DIV(M, BM), tiles_n = CEIL_DIV(N, BN);
    int64_t band = blockIdx.x / (8 * tiles_n), in_band = blockIdx.x % (8 * tiles_n);
    int64_t band_rows = tiles_m - band * 8 < 8 ? tiles_m - band * 8 : 8;
    int64_t m0 = (band * 8 + in_band % band_rows) * BM, n0 = in_band / band_rows * BN;
    int warp = threadIdx.x / 32;
    int warp_m = warp / WARPS_N * MT * 16, warp_n = warp % WARPS_N * NT * 8;

    float sum[MT][NT][4];
    UNROLL
    for (int i = 0; i < MT; i++)
        UNROLL
        for (int j = 0; j < NT; j++)
            UNROLL
            for (int e = 0; e < 4; e++) sum[i][j][e] = 0.0f;

    int slices = (int)CEIL_DIV(K, BK);
    auto load = [&](int slice) {
        bf16* stage = tiles + slice % STAGES * (BM + BN) * BK;
        if (slice < slices) {
            matmul_load_tile<BM, BK, THREADS>(stage, a, m0, M, (int64_t)slice * BK, K, aligned.a);
            matmul_load_tile<BN, BK, THREADS>(stage + BM * BK, b, n0, N, (int64_t)slice * BK, K, aligned.b);
        }
        cp_async_commit();  // an empty group too, so that the count that is waited for is the same to the end
    };
    for (int s = 0; s < STAGES - 1; s++) load(s);
    for (int slice = 0; slice < slices; slice++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // the slice has landed for every thread, and the stage loaded next has been read
        load(slice + STAGES - 1);
        const bf16 *as = tiles + slice % STAGES * (BM + BN) * BK, *bs = as + BM * BK;
        matmul_multiply_slice<BK>(sum, as, bs, warp_m, warp_n);
    }
    cp_async_wait<0>();
    __syncthreads();

    O* tile = reinterpret_cast<O*>(tiles) + warp_m * matmul_out_ld<BN, O>() + warp_n;
    matmul_round_sums(tile, matmul_out_ld<BN, O>(), sum, bias, n0 + warp_n, N);
    __syncthreads();
    matmul_store_tile<BM, BN, THREADS>(out, reinterpret_cast<const O*>(tiles), m0, M, n0, N, aligned.out);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// CUDA: the ordinary cores, for fp32

#if HAS_KERNELS
static constexpr int MATMUL_FMA_TILE = 64, MATMUL_FMA_K = 16, MATMUL_FMA_BLOCK = 256;

// x(i,j) = p[i * row + j * col]
template <class T>
struct MatmulOperand {
    const T* p;
    int64_t row, col;
};

// Multiply-adds on the ordinary cores, k upwards in one sum for each output. out[i,j] (+)= sum_k a(i,k) b(k,j) +
// bias[j]. A thread has 4 x 4 outputs, 16 apart. grid: tiles of 64 x 64, columns first
template <class O, class T>
__global__ void matmul_fma_kernel(Rows<O> out, MatmulOperand<T> a, MatmulOperand<T> b, const T* bias, int64_t M,
                                  int64_t N, int64_t K, bool accumulate) {
    constexpr int TILE = MATMUL_FMA_TILE, TK = MATMUL_FMA_K;
    __shared__ float as[TK][TILE + 1], bs[TK][TILE + 1];
    int64_t tiles_n = CEIL_DIV(N, TILE), m0 = blockIdx.x / tiles_n * TILE, n0 = blockIdx.x % tiles_n * TILE;
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float sum[4][4];
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) sum[i][j] = 0.0f;
    for (int64_t k0 = 0; k0 < K; k0 += TK) {
        __syncthreads();  // the reads of the last slice are over
        for (int e = threadIdx.x; e < TILE * TK; e += MATMUL_FMA_BLOCK) {
            // neighbouring threads take neighbouring addresses, whichever dimension is contiguous
            int ai = a.col == 1 ? e / TK : e % TILE, ak = a.col == 1 ? e % TK : e / TILE;
            int bj = b.row == 1 ? e / TK : e % TILE, bk = b.row == 1 ? e % TK : e / TILE;
            as[ak][ai] = m0 + ai < M && k0 + ak < K ? (float)a.p[(m0 + ai) * a.row + (k0 + ak) * a.col] : 0.0f;
            bs[bk][bj] = n0 + bj < N && k0 + bk < K ? (float)b.p[(k0 + bk) * b.row + (n0 + bj) * b.col] : 0.0f;
        }
        __syncthreads();
        for (int k = 0; k < TK; k++)
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) sum[i][j] = fmaf(as[k][ty + 16 * i], bs[k][tx + 16 * j], sum[i][j]);
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            int64_t row = m0 + ty + 16 * i, col = n0 + tx + 16 * j;
            if (row >= M || col >= N) continue;
            float x = sum[i][j];
            if (accumulate) x = (float)out.row(row)[col] + x;
            if (bias) x += (float)bias[col];
            out.row(row)[col] = (O)x;
        }
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

inline void matmul_check(const char* name, int64_t M, int64_t N, int64_t K) {
    if (M < 0 || N < 0 || K < 0 || M > INT32_MAX || N > INT32_MAX || K > INT32_MAX)
        fail("%s: bad shape: M %lld, N %lld, K %lld (each must be below 2^31)", name, (long long)M, (long long)N,
             (long long)K);
    if ((M / 64 + 1) * (N / 64 + 1) > INT32_MAX)
        fail("%s: M %lld x N %lld is more tiles than a grid has: split the batch", name, (long long)M, (long long)N);
}

#if HAS_KERNELS
template <class O, class T>
void matmul_fma_launch(Rows<O> out, MatmulOperand<T> a, MatmulOperand<T> b, const T* bias, int64_t M, int64_t N,
                       int64_t K, bool accumulate, Device dev) {
    unsigned tiles = (unsigned)(CEIL_DIV(M, MATMUL_FMA_TILE) * CEIL_DIV(N, MATMUL_FMA_TILE));
    LAUNCH((matmul_fma_kernel<O, T>), tiles, MATMUL_FMA_BLOCK, 0, dev.stream, out, a, b, bias, M, N, K, accumulate);
}
#endif

// The shapes of the tile of out that a block computes; they do not change a bit of it.
enum class MatmulTile { automatic, t16x32, t32x32, t64x32, t64x64, t128x128 };

#if HAS_KERNELS
// Few rows, as in decoding: the weight is read once whatever the tile, so the tile is narrow and many blocks share the
// work. Many rows: the largest tile, unless that leaves most of a GPU of about 100 multiprocessors idle.
inline MatmulTile matmul_choose_tile(int64_t M, int64_t N) {
    if (M <= 16) return MatmulTile::t16x32;
    if (M <= 32) return MatmulTile::t32x32;
    if (M <= 64) return MatmulTile::t64x32;
    return CEIL_DIV(M, 128) * CEIL_DIV(N, 128) < 100 ? MatmulTile::t64x64 : MatmulTile::t128x128;
}

template <class O>
void matmul_nt_launch(Rows<O> out, Rows<const bf16> a, Rows<const bf16> b, const bf16* bias, int64_t M, int64_t N,
                      int64_t K, MatmulTile tile, Device dev) {
    MatmulAligned aligned = {is_aligned16(out), is_aligned16(a), is_aligned16(b)};
    auto launch = [&](auto bm, auto bn, auto bk, auto warps_m, auto warps_n, auto stages) {
        constexpr int BM = decltype(bm)::value, BN = decltype(bn)::value, BK = decltype(bk)::value;
        constexpr int WM = decltype(warps_m)::value, WN = decltype(warps_n)::value, S = decltype(stages)::value;
        LAUNCH((matmul_nt_kernel<BM, BN, BK, WM, WN, S, O>), (unsigned)(CEIL_DIV(M, BM) * CEIL_DIV(N, BN)),
               WM * WN * 32, (matmul_shared_bytes<BM, BN, BK, S, O>()), dev.stream, out, a, b, bias, M, N, K, aligned);
    };
    if (tile == MatmulTile::automatic) tile = matmul_choose_tile(M, N);
    switch (tile) {
        case MatmulTile::t16x32:
            return launch(Int<16>(), Int<32>(), Int<128>(), Int<1>(), Int<4>(), Int<6>());
        case MatmulTile::t32x32:
            return launch(Int<32>(), Int<32>(), Int<128>(), Int<1>(), Int<4>(), Int<5>());
        case MatmulTile::t64x32:
            return launch(Int<64>(), Int<32>(), Int<64>(), Int<2>(), Int<2>(), Int<6>());
        case MatmulTile::t64x64:
            return launch(Int<64>(), Int<64>(), Int<64>(), Int<2>(), Int<2>(), Int<4>());
        default:
            return launch(Int<128>(), Int<128>(), Int<32>(), Int<2>(), Int<4>(), Int<4>());
    }
}

// fp32 has one shape of tile
template <class O>
void matmul_nt_launch(Rows<O> out, Rows<const float> a, Rows<const float> b, const float* bias, int64_t M, int64_t N,
                      int64_t K, MatmulTile, Device dev) {
    matmul_fma_launch<O, float>(out, {a.p, a.stride, 1}, {b.p, 1, b.stride}, bias, M, N, K, false, dev);
}
#endif

// out: (M,N), floatX or float; a: (M,K); b: (N,K); bias: (N) or null. The bits of a row of out depend on that row of a
// and on b alone, never on M.
template <class O>
void matmul_nt(Rows<O> out, Rows<const floatX> a, Rows<const floatX> b, const floatX* bias, int64_t M, int64_t N,
               int64_t K, Device dev) {
    NVTX_RANGE("matmul_nt");
    matmul_check("matmul_nt", M, N, K);
    if (M == 0 || N == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        matmul_nt_launch(out, a, b, bias, M, N, K, MatmulTile::automatic, dev);
        return;
    }
#endif
    (void)dev;
    gemm_nt(out.p, a.p, b.p, bias, M, N, K, false, {out.stride, a.stride, b.stride});
}

// The same product by cuBLASLt: faster for large M, but the bits of a row depend on M.
inline void matmul_nt_any_order(Rows<floatX> out, Rows<const floatX> a, Rows<const floatX> b, const floatX* bias,
                                int64_t M, int64_t N, int64_t K, Device dev) {
    NVTX_RANGE("matmul_nt_any_order");
    matmul_check("matmul_nt_any_order", M, N, K);
#if HAS_KERNELS
    if (dev.cuda && M > 0 && N > 0 && K > 0) {
        cublaslt_matmul<floatX>({out.p, out.stride}, {b.p, b.stride, true}, {a.p, a.stride}, bias, N, M, K, false, dev);
        return;
    }
#endif
    matmul_nt(out, a, b, bias, M, N, K, dev);
}

// dinp: (M,K), floatX or float, = or += (accumulate); dout: (M,N); w: (N,K)
template <class O>
void matmul_nn(Rows<O> dinp, Rows<const floatX> dout, Rows<const floatX> w, int64_t M, int64_t N, int64_t K,
               bool accumulate, Device dev) {
    NVTX_RANGE("matmul_nn");
    matmul_check("matmul_nn", M, N, K);
    if (M == 0 || K == 0) return;
#if HAS_KERNELS
    if (dev.cuda && N == 0) {
        matmul_fma_launch<O, floatX>(dinp, {dout.p, dout.stride, 1}, {w.p, w.stride, 1}, nullptr, M, K, N, accumulate,
                                     dev);
        return;
    }
    if (dev.cuda) {
        cublaslt_matmul<O>({dinp.p, dinp.stride}, {w.p, w.stride}, {dout.p, dout.stride}, nullptr, K, M, N, accumulate,
                           dev);
        return;
    }
#endif
    (void)dev;
    gemm_nn(dinp.p, dout.p, w.p, M, N, K, accumulate, {dinp.stride, dout.stride, w.stride});
}

// dw: (N,K), +=; dout: (M,N); inp: (M,K)
inline void matmul_tn(Rows<float> dw, Rows<const floatX> dout, Rows<const floatX> inp, int64_t M, int64_t N, int64_t K,
                      Device dev) {
    NVTX_RANGE("matmul_tn");
    matmul_check("matmul_tn", M, N, K);
    if (M == 0 || N == 0 || K == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        cublaslt_matmul<float>({dw.p, dw.stride}, {inp.p, inp.stride}, {dout.p, dout.stride, true}, nullptr, K, N, M,
                               true, dev);
        return;
    }
#endif
    (void)dev;
    gemm_tn(dw.p, dout.p, inp.p, M, N, K, {dw.stride, dout.stride, inp.stride});
}
