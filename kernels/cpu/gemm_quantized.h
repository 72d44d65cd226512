// Matrix products on the CPU with a weight stored as packed codes (packed_weight.cuh, layout panels): what a quantized
// model generates with, and what a frozen base is trained on.
//
//   gemm_nt_quantized  Y[M,N]  = X[M,K] Q(W)[N,K]^T + bias   forward
//   gemm_nn_quantized  dX[M,K] = dY[M,N] Q(W)[N,K]           activation gradient
//
// Q(W) is never whole in memory. Forward: codes are expanded into the panels of gemm.h, the very words that gemm_pack_b
// makes of the working weight, a piece of a panel at a time (GEMM_PIECE words of 48 columns are 24 KB, in L1), and all
// rows of X meet it before the next one is expanded; with more rows than a task holds (GEMM_TASK_ROWS), a chunk of
// panels for all threads. The tile, its order of summation and so the bits are those of gemm_nt. Gradient: columns of
// Q(W) are expanded to rows as they lie in the working weight, as many as QUANTIZED_COLUMN_BYTES hold, and gemm_nn
// multiplies with them; its bits do not depend on how columns are cut, and the order of summation is its own: over the
// rows of W in k blocks.
//
// Least traffic of a decoded token: the codes and scales, once.
#pragma once
#include "../packed_weight.cuh"
#include "gemm.h"

static constexpr int64_t QUANTIZED_COLUMN_BYTES = 4 << 20;

// Codes [c0, c1) of run `run` in a block of panels, of its rows [j0, j0 + rows)
struct QuantizedRun {
    const uint32_t* block;
    int run, c0, c1;
    int64_t k;  // of code 0, from the panel's first
    int j0, rows;
};
// by which they become numbers
struct QuantizedGroup {
    alignas(64) float table[16], scale[QW_PANEL_ROWS], zero[QW_PANEL_ROWS];
};

#define ISA_FILE "quantized_loops.h"
#include "each_isa.h"

inline GemmExpand quantized_expander(const QuantizedWeight& w) { return ISA_CALL(quantized_expander(w)); }

// Q(W), rows [row0, row0 + rows), columns [k0, k0 + columns), k0 even -> out at ldo
inline void quantized_unpack_panels(floatX* out, int64_t ldo, const QuantizedWeight& w, int64_t row0, int64_t rows,
                                    int64_t k0, int64_t columns) {
    constexpr int R = QW_PANEL_ROWS, KC = 256;
    constexpr int64_t PER_WORD = 4 / sizeof(floatX);
    const GemmExpand expand = quantized_expander(w);
    const GemmKernels& kernels = gemm_kernels();
    const bool words = reinterpret_cast<uintptr_t>(out) % 4 == 0 && ldo % PER_WORD == 0;
    const int64_t first = row0 / R, last = gemm_ceil_div(row0 + rows, R);
#if defined(_OPENMP)
#pragma omp parallel for schedule(static) if (rows * columns > (1 << 16))
#endif
    for (int64_t b = first; b < last; b++) {
        alignas(64) uint32_t panel[KC / PER_WORD * R];
        const int64_t n0 = gemm_max(row0, b * R), n1 = gemm_min(row0 + rows, b * R + R);
        for (int64_t k = 0; k < columns; k += KC) {
            const int64_t kc = gemm_min(KC, columns - k), whole = words && n1 - n0 == R ? kc / PER_WORD : 0;
            expand(panel, &w, b * R, R, k0 + k, kc);
            floatX* to = out + (n0 - row0) * ldo + k;
            int64_t s = 0;
            for (; s + kernels.vf <= whole; s += kernels.vf)
                kernels.transpose_words(reinterpret_cast<uint32_t*>(to) + s, ldo / PER_WORD,
                                        (const char*)(panel + s * R), R * 4, kernels.vf, R);
            for (int64_t n = n0; n < n1; n++)
                for (int64_t i = s * PER_WORD; i < kc; i++)
                    memcpy((void*)(to + (n - n0) * ldo + i),
                           reinterpret_cast<const char*>(panel + i / PER_WORD * R + n % R) +
                               i % PER_WORD * (int64_t)sizeof(floatX),
                           sizeof(floatX));
        }
    }
}

// out: (M,w.N) at ldo; a: (M,w.K) at lda; bias: (w.N) or null. The bits of gemm_nt with the working weight.
template <class O>
void gemm_nt_quantized(O* out, const floatX* a, const QuantizedWeight& w, const floatX* bias, int64_t M,
                       int64_t ldo = 0, int64_t lda = 0) {
    GemmProduct<O, floatX, floatX> product = {out, a, nullptr, bias, M, w.N, w.K, ldo ? ldo : w.N, lda ? lda : w.K, 0};
    product.expand = quantized_expander(w), product.stored = &w;
    gemm_run<false, true>(product);
}

// dinp: (M,w.K); dout: (M,w.N). The bits of gemm_nn with the working weight.
inline void gemm_nn_quantized(floatX* dinp, const floatX* dout, const QuantizedWeight& w, int64_t M) {
    if (M <= 0) return;
    int64_t columns = QUANTIZED_COLUMN_BYTES / (int64_t)sizeof(floatX) / w.N / QW_PANEL_SPAN * QW_PANEL_SPAN;
    columns = gemm_min(w.K, gemm_max(columns, QW_PANEL_SPAN));
    const int64_t ld = gemm_ceil_div(columns, 16) * 16;
    std::vector<floatX> unpacked((size_t)(w.N * ld));
    for (int64_t k = 0; k < w.K; k += columns) {
        const int64_t n = gemm_min(columns, w.K - k);
        quantized_unpack_panels(unpacked.data(), ld, w, 0, w.N, k, n);
        gemm_nn(dinp + k, dout, unpacked.data(), M, w.N, n, false, {w.K, w.N, ld});
    }
}
