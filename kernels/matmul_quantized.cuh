// Matrix product with a packed quantized weight: what a quantized model decodes with.
//
//   out[M,N] = a[M,K] Q(W)[N,K]^T + bias,  Q(W) = the working weight that packed_weight.cuh unpacks to
// The bits are those of matmul_nt with Q(W): the same k16 steps in order with the same operands; only where Q(W) is
// made differs. Decoded rows and the trainer's rows, packed or not, agree.
//
// M up to QUANTIZED_MATMUL_ROWS (decoding): bound by memory. A warp owns 8 columns of out for all of K and streams its
// own packed blocks (128 b bytes for 8 x 128 weights) through shared memory into the B fragments of its mma's; no code
// is read twice in a tile of 64 rows, none by another warp. Least traffic: the packed weight, once; moved: the packed
// weight CEIL_DIV(M,64) times from memory or L2, and a (M,K) from L2 once for each block of 16 ... 64 columns.
// Larger M (prompts, training) and fp32: panels of Q(W) are unpacked to scratch for matmul_nt, 2 bytes written and read
// a weight, which M > 128 multiply-adds a weight outweigh.
// The CPU's product is in cpu/gemm_quantized.h.
// Launch: 8 columns a warp, 2 to 8 warps a block so that N still gives about one block a multiprocessor; 16 or 64 rows.
//
// The trap: rows of the tile beyond M are never loaded. Their products are garbage, even NaN, and end in rows of D that
// nobody stores.
#pragma once
#include "cpu/gemm_quantized.h"
#include "matmul.cuh"
#include "packed_weight.cuh"

static constexpr int64_t QUANTIZED_MATMUL_ROWS = 128;
static constexpr int64_t QUANTIZED_PANEL_NUMBERS = 1 << 24;  // of Q(W) at a time: 32 MB of bf16

#if HAS_KERNELS
// does a format keep codes of this kind in so many bits? Kinds that none has are left out of the kernel
constexpr bool quantized_has(NumberKind kind, int bits) {
    for (const FormatTraits& t : quant_formats)
        for (const FormatName& n : t.names)
            if (t.kind == kind && (n.bits > 4 ? 8 : n.bits) == bits) return true;
    return false;
}
template <NumberKind KIND, int BITS>
constexpr bool QUANTIZED_HAS = quantized_has(KIND, BITS);

// The numbers of one k16 step as the two registers of a B fragment. codes: quantized_step_codes; table: the format's
// numbers in shared memory, 16 banks, so that no two lanes conflict; zero: 2^23 + the zero point, which 2^23 + u - zero
// makes exact
template <int BITS>
__device__ inline void quantized_fragment(uint32_t* b, uint32_t codes, NumberKind kind, const float* table, float zero,
                                          float scale) {
    auto number = [=](uint32_t u) {
        switch (kind) {
            case NumberKind::table:
                if (QUANTIZED_HAS<NumberKind::table, BITS>) return table[u];
                break;
            case NumberKind::e4m3:
                if (QUANTIZED_HAS<NumberKind::e4m3, BITS>) return e4m3_bits_to_float((uint8_t)u);
                break;
            case NumberKind::e5m2:
                if (QUANTIZED_HAS<NumberKind::e5m2, BITS>) return e5m2_bits_to_float((uint8_t)u);
                break;
            case NumberKind::integer:
                break;
        }
        return bits_float(0x4B000000u | u) - zero;
    };
    float x[4];
    UNROLL
    for (int e = 0; e < 4; e++) x[e] = number(quantized_step_code(codes, BITS, e)) * scale;
    b[0] = pack_bf16(x[0], x[1]);
    b[1] = pack_bf16(x[2], x[3]);
}

template <int BM>
static constexpr int QUANTIZED_STAGES = BM == 16 ? 8 : 4;

// the rows of a and the row of blocks that a warp multiplies
struct QuantizedTile {
    int64_t m0, block_row;
    int rows;   // of a, up to BM
    bool live;  // is there such a row of blocks?
};

// span `span` of a's rows and of each warp's codes -> stage, by copies that a wait will have landed
template <int BITS, int BM>
__device__ inline void quantized_load_span(unsigned char* stage, int64_t span, const bf16* a, int64_t lda,
                                           const QuantizedWeight& w, const QuantizedTile& t, bool aligned_a) {
    constexpr int A_BYTES = BM * QW_SPAN * 2, CODE_BYTES = 128 * BITS;
    for (int i = threadIdx.x; i < t.rows * (QW_SPAN / 8); i += blockDim.x) {
        int row = i / (QW_SPAN / 8), chunk = i % (QW_SPAN / 8);
        int64_t k = span * QW_SPAN + chunk * 8, left = w.K - k;
        int n = left < 0 ? 0 : left > 8 ? 8 : (int)left;
        const bf16* from = n > 0 ? a + (t.m0 + row) * lda + k : a;
        bf16* to = reinterpret_cast<bf16*>(stage) + matmul_swizzle<QW_SPAN>(row, chunk);
        matmul_load_chunk(to, from, n, aligned_a);
    }
    if (!t.live) return;
    const unsigned char* codes =
        reinterpret_cast<const unsigned char*>(w.codes) + (t.block_row * quantized_spans(w) + span) * CODE_BYTES;
    unsigned char* to = stage + A_BYTES + threadIdx.x / 32 * CODE_BYTES;
    for (int i = threadIdx.x % 32; i < CODE_BYTES / 16; i += 32) cp_async_16(to + i * 16, codes + i * 16);
}

// the scales of a span of row n, or of each of its steps, and 2^23 + their zero points
template <int SCALES>
__device__ inline void quantized_load_scales(float* scale, float* zero, const QuantizedWeight& w, int64_t n, int span) {
    const int64_t groups = quantized_groups(w);
    UNROLL
    for (int s = 0; s < SCALES; s++) {
        int64_t group = ((int64_t)span * QW_SPAN + s * 16) / w.group;
        group = group < groups ? group : groups - 1;
        scale[s] = quantized_scale(w, n, group);
        zero[s] = 8388608.0f + quantized_zero(w, n, group);
    }
}

template <int MT, class O>
__device__ inline void quantized_store(O* out, int64_t ldo, const float (&sum)[MT][4], const bf16* bias, int64_t N,
                                       const QuantizedTile& t) {
    int lane = threadIdx.x % 32;
    int64_t col = t.block_row * 8 + lane % 4 * 2;
    UNROLL
    for (int i = 0; i < MT; i++) {
        UNROLL
        for (int e = 0; e < 4; e++) {
            int row = i * 16 + e / 2 * 8 + lane / 4;
            int64_t n = col + e % 2;
            if (row >= t.rows || n >= N) continue;
            float x = sum[i][e];
            if (bias) x += (float)bias[n];
            out[(t.m0 + row) * ldo + n] = (O)x;
        }
    }
}

// SCALES: 1 if all of a span shares a scale, else 8, one a k16 step. blockDim: 32 a warp, each 8 columns.
// grid: (CEIL_DIV(N, 8 * warps), CEIL_DIV(M, BM)); dynamic shared memory: stages of a's tile and each warp's codes
template <int BITS, int SCALES, int BM, class O>
__global__ void __launch_bounds__(256, 2)
    matmul_nt_quantized_kernel(O* out, int64_t ldo, const bf16* a, int64_t lda, QuantizedWeight w, const bf16* bias,
                               int64_t M, bool aligned_a) {
    constexpr int MT = BM / 16, STAGES = QUANTIZED_STAGES<BM>, A_BYTES = BM * QW_SPAN * 2, CODE_BYTES = 128 * BITS;
    DYNAMIC_SHARED(unsigned char, shared);
    __shared__ float table[16];
    const NumberKind kind = quant_kind(w.spec);
    if (threadIdx.x < 16 && kind == NumberKind::table)
        table[threadIdx.x] = quantized_value(w.spec.format, threadIdx.x, 0.0f, 1.0f);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    int stage_bytes = A_BYTES + warps * CODE_BYTES, spans = (int)quantized_spans(w);
    QuantizedTile t;
    t.m0 = (int64_t)blockIdx.y * BM, t.block_row = (int64_t)blockIdx.x * warps + warp;
    t.rows = M - t.m0 < BM ? (int)(M - t.m0) : BM;
    t.live = t.block_row < quantized_row_blocks(w);
    int64_t scale_row = (t.live ? t.block_row : 0) * QW_ROWS + lane / 4;
    auto load = [&](int span) {
        unsigned char* stage = shared + span % STAGES * stage_bytes;
        if (span < spans) quantized_load_span<BITS, BM>(stage, span, a, lda, w, t, aligned_a);
        cp_async_commit();
    };
    float sum[MT][4] = {}, scale[SCALES], zero[SCALES], next_scale[SCALES], next_zero[SCALES];
    quantized_load_scales<SCALES>(next_scale, next_zero, w, scale_row, 0);
    for (int s = 0; s < STAGES - 1; s++) load(s);
    for (int span = 0; span < spans; span++) {
        UNROLL
        for (int s = 0; s < SCALES; s++) scale[s] = next_scale[s], zero[s] = next_zero[s];
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // the span has landed for every thread, and the stage loaded next has been read
        load(span + STAGES - 1);
        if (span + 1 < spans && w.group < w.K)
            quantized_load_scales<SCALES>(next_scale, next_zero, w, scale_row, span + 1);
        const unsigned char* stage = shared + span % STAGES * stage_bytes;
        const bf16* as = reinterpret_cast<const bf16*>(stage);
        const uint32_t* block = reinterpret_cast<const uint32_t*>(stage + A_BYTES + warp * CODE_BYTES);
        UNROLL
        for (int step = 0; step < QW_SPAN / 16; step++) {
            uint32_t b[2];
            int s = SCALES == 1 ? 0 : step;
            quantized_fragment<BITS>(b, quantized_step_codes(block, BITS, lane, step), kind, table, zero[s], scale[s]);
            UNROLL
            for (int i = 0; i < MT; i++) {
                uint32_t af[4];
                matmul_load_a<QW_SPAN>(af, as, i * 16, step);
                mma_m16n8k16_bf16(sum[i], af, b);
            }
        }
    }
    cp_async_wait<0>();
    quantized_store(out, ldo, sum, bias, w.N, t);
}

template <int BITS, int SCALES, int BM, class O>
void matmul_nt_quantized_launch_one(O* out, int64_t ldo, const bf16* a, int64_t lda, const QuantizedWeight& w,
                                    const bf16* bias, int64_t M, Device dev) {
    int64_t blocks8 = quantized_row_blocks(w);
    int warps = blocks8 >= 8 * 128 ? 8 : blocks8 >= 4 * 128 ? 4 : 2;
    dim3 grid((unsigned)CEIL_DIV(blocks8, warps), (unsigned)CEIL_DIV(M, BM));
    LAUNCH((matmul_nt_quantized_kernel<BITS, SCALES, BM, O>), grid, warps * 32,
           (size_t)(QUANTIZED_STAGES<BM> * (BM * QW_SPAN * 2 + warps * 128 * BITS)), dev.stream, out, ldo, a, lda, w,
           bias, M, is_aligned16(a, lda));
}

template <class O>
void matmul_nt_quantized_launch(O* out, int64_t ldo, const bf16* a, int64_t lda, const QuantizedWeight& w,
                                const bf16* bias, int64_t M, Device dev) {
    auto launch = [&](auto bits) {
        constexpr int BITS = decltype(bits)::value;
        bool one = w.group % QW_SPAN == 0 || w.group == w.K;
        if (M <= 16) {
            if (one) matmul_nt_quantized_launch_one<BITS, 1, 16>(out, ldo, a, lda, w, bias, M, dev);
            else matmul_nt_quantized_launch_one<BITS, 8, 16>(out, ldo, a, lda, w, bias, M, dev);
        } else {
            if (one) matmul_nt_quantized_launch_one<BITS, 1, 64>(out, ldo, a, lda, w, bias, M, dev);
            else matmul_nt_quantized_launch_one<BITS, 8, 64>(out, ldo, a, lda, w, bias, M, dev);
        }
    };
    switch (quantized_bits(w)) {
        case 2:
            return launch(Int<2>());
        case 3:
            return launch(Int<3>());
        case 4:
            return launch(Int<4>());
        default:
            return launch(Int<8>());
    }
}
template <class O>
void matmul_nt_quantized_launch(O*, int64_t, const float*, int64_t, const QuantizedWeight&, const float*, int64_t,
                                Device) {}  // fp32 goes by panels
#endif

// out: (M,w.N) at ldo, floatX or float; a: (M,w.K) at lda; bias: (w.N) or null. The bits of matmul_nt with the unpacked
// weight.
template <class O>
void matmul_nt_quantized(O* out, int64_t ldo, const floatX* a, int64_t lda, const QuantizedWeight& w,
                         const floatX* bias, int64_t M, Device dev) {
    NVTX_RANGE("matmul_nt_quantized");
    matmul_check("matmul_nt_quantized", M, w.N, w.K);
    if (M == 0 || w.N == 0) return;
    if (w.layout != quantized_layout(dev)) fail("matmul_nt_quantized: the weight was packed for another device");
    if (!dev.cuda) {
        gemm_nt_quantized(out, a, w, bias, M, ldo, lda);
        return;
    }
#if HAS_KERNELS
    bool steps = w.group % 16 == 0 || w.group == w.K;  // the kernel takes one scale a k16 step
    if (dev.cuda && sizeof(floatX) == 2 && M <= QUANTIZED_MATMUL_ROWS && steps) {
        matmul_nt_quantized_launch(out, ldo, a, lda, w, bias, M, dev);
        return;
    }
#endif
    int64_t panel = QUANTIZED_PANEL_NUMBERS / w.K / QW_ROWS * QW_ROWS;
    panel = panel < 256 ? 256 : panel;
    panel = panel < w.N ? panel : w.N;
    int64_t ld = CEIL_DIV(w.K, 8) * 8;  // aligned rows
    Scratch scratch((size_t)CEIL_DIV(panel * ld * (int64_t)sizeof(floatX), (int64_t)sizeof(float)), dev);
    floatX* unpacked = reinterpret_cast<floatX*>(scratch.data);
    for (int64_t n = 0; n < w.N; n += panel) {
        int64_t rows = w.N - n < panel ? w.N - n : panel;
        quantized_weight_unpack(unpacked, ld, w, n, rows, dev);
        matmul_nt(Rows{out + n, ldo}, {a, lda}, {unpacked, ld}, bias ? bias + n : nullptr, M, rows, w.K, dev);
    }
}

// dinp: (M,w.K) = dout Q(W), both dense; dout: (M,w.N). The bits of matmul_nn with the unpacked weight, which is what
// it multiplies with: on a device in scratch, the whole weight, since sums run over its rows.
inline void matmul_nn_quantized(floatX* dinp, const floatX* dout, const QuantizedWeight& w, int64_t M, Device dev) {
    NVTX_RANGE("matmul_nn_quantized");
    matmul_check("matmul_nn_quantized", M, w.N, w.K);
    if (M == 0 || w.K == 0) return;
    if (w.layout != quantized_layout(dev)) fail("matmul_nn_quantized: the weight was packed for another device");
    if (!dev.cuda) {
        gemm_nn_quantized(dinp, dout, w, M);
        return;
    }
    Scratch scratch((size_t)CEIL_DIV(w.N * w.K * (int64_t)sizeof(floatX), (int64_t)sizeof(float)), dev);
    floatX* unpacked = reinterpret_cast<floatX*>(scratch.data);
    quantized_weight_unpack(unpacked, w.K, w, 0, w.N, dev);
    matmul_nn(Rows{dinp, w.K}, {dout, w.N}, {unpacked, w.K}, M, w.N, w.K, false, dev);
}
