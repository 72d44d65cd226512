// Newton-Schulz iteration towards the orthogonal factor of a matrix (U V^T of G = U S V^T), as Muon uses it (Jordan
// 2024, kellerjordan.github.io/posts/muon):
//   X = G / max(|G|, 1e-7);  steps times:  A = X X^T;  X = a X + (b A + c A A) X      (a, b, c) below; | | Frobenius
// Each step maps every singular value s to a s + b s^3 + c s^5. The coefficients are chosen for a steep start, so
// values do not converge to 1 but come to lie between about 0.7 and 1.2, which Muon does not mind. Where rows > cols,
// A is X^T X and the product X (b A + c A A): the iteration of the transposed matrix.
//
// In fp32, where the original (and torch's) iterates in bf16: small singular values grow by a^5 = 485, and with them
// what was rounded beside large ones. Distance to float64 of [576,1536], relative, fp32 and torch's bf16: random
// numbers 3e-6 and 1e-2; a matrix of rank 8 with a thousandth of noise, as gradients are, 4e-5 and 0.43 (cosine 0.92).
// Iterating on A alone would be a third cheaper and up to 30 times less exact.
//
// A is symmetric and so is A A: the loops compute what is at and below the diagonal, in strips of columns, and copy it
// over the diagonal; tall matrices they transpose first, for rows are multiplied faster than columns.
//
// Multiply-adds, of m = min(rows, cols), n = max: steps (2 m m n + m^3), of which the CPU does about 0.7.
// Launch: 5 kernels a step, the products by matmul.cuh's fp32 tile. The trap: work must hold newton_schulz_floats().
#pragma once
#include <algorithm>
#include <cmath>
#include "../runtime/math.h"
#include "global_norm.cuh"
#include "matmul.cuh"

static constexpr float NEWTON_SCHULZ_A = 3.4445f, NEWTON_SCHULZ_B = -4.7750f, NEWTON_SCHULZ_C = 2.0315f;
static constexpr double NEWTON_SCHULZ_EPSILON = 1e-7;
static constexpr int64_t NEWTON_SCHULZ_SERIAL = 1 << 14;  // numbers that are not worth waking threads for

// floats of scratch: A, A A and the product with X
inline size_t newton_schulz_floats(int64_t rows, int64_t cols) {
    const int64_t m = std::min(rows, cols);
    return (size_t)(2 * m * m + rows * cols);
}

// what X is multiplied with, from the sum of its squares
HOST_DEVICE float newton_schulz_inverse(double sum) {
    const double norm = sqrt(sum);
    return (float)(1.0 / (norm > NEWTON_SCHULZ_EPSILON ? norm : NEWTON_SCHULZ_EPSILON));
}

// ---------------------------------------------------------------------------------------------------------------------
// loops

inline void newton_schulz_scale_cpu(float* x,  // [n]
                                    double sum, int64_t n) {
    const float inverse = newton_schulz_inverse(sum);
#pragma omp parallel for simd schedule(static) if (parallel : n > NEWTON_SCHULZ_SERIAL)
    for (int64_t i = 0; i < n; i++) x[i] *= inverse;
}

// x = p x + q y
inline void newton_schulz_add_cpu(float* x,        // [n]
                                  const float* y,  // [n]
                                  float p, float q, int64_t n) {
#pragma omp parallel for simd schedule(static) if (parallel : n > NEWTON_SCHULZ_SERIAL)
    for (int64_t i = 0; i < n; i++) x[i] = mul_add(p, x[i], q * y[i]);
}

// out = in^T
inline void newton_schulz_transpose_cpu(float* out,       // [cols,rows]
                                        const float* in,  // [rows,cols]
                                        int64_t rows, int64_t cols) {
    constexpr int64_t TILE = 32;
#pragma omp parallel for schedule(static) if (rows * cols > NEWTON_SCHULZ_SERIAL)
    for (int64_t i0 = 0; i0 < rows; i0 += TILE)
        for (int64_t j0 = 0; j0 < cols; j0 += TILE)
            for (int64_t j = j0; j < std::min(j0 + TILE, cols); j++)
                for (int64_t i = i0; i < std::min(i0 + TILE, rows); i++) out[j * rows + i] = in[i * cols + j];
}

// a = x x^T
inline void newton_schulz_gram_cpu(float* a,        // [m,m]
                                   const float* x,  // [m,n]
                                   int64_t m, int64_t n) {
    const int64_t strip = 96;  // two panels of the product
    for (int64_t j = 0; j < m; j += strip)
        gemm_nt(a + j * m + j, x + j * n, x + j * n, nullptr, m - j, std::min(strip, m - j), n, false, {m, n, n});
#pragma omp parallel for schedule(dynamic, 16) if (m * m > NEWTON_SCHULZ_SERIAL)
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = (i / strip + 1) * strip; j < m; j++) a[i * m + j] = a[j * m + i];
}

inline void newton_schulz_cpu(float* x,     // [rows,cols]
                              float* work,  // [newton_schulz_floats]
                              int64_t rows, int64_t cols, int steps) {
    const bool tall = rows > cols;
    const int64_t m = tall ? cols : rows, n = tall ? rows : cols;
    float *a = work, *aa = a + m * m, *y = aa + m * m, *result = x;
    newton_schulz_scale_cpu(x, sum_of_squares_cpu(x, m * n), m * n);
    if (tall) {
        newton_schulz_transpose_cpu(y, x, rows, cols);
        std::swap(x, y);
    }
    for (int step = 0; step < steps; step++) {
        newton_schulz_gram_cpu(a, x, m, n);
        newton_schulz_gram_cpu(aa, a, m, m);
        newton_schulz_add_cpu(a, aa, NEWTON_SCHULZ_B, NEWTON_SCHULZ_C, m * m);
        gemm_nn(y, a, x, m, m, n);
        newton_schulz_add_cpu(x, y, NEWTON_SCHULZ_A, 1.0f, m * n);
    }
    if (tall) newton_schulz_transpose_cpu(result, x, cols, rows);
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
static constexpr int NEWTON_SCHULZ_BLOCK = 256;

// grid: CEIL_DIV(n, NEWTON_SCHULZ_BLOCK)
__global__ void newton_schulz_scale_kernel(float* x, const double* sum, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * NEWTON_SCHULZ_BLOCK + threadIdx.x;
    if (i < n) x[i] *= newton_schulz_inverse(*sum);
}

// grid: CEIL_DIV(n, NEWTON_SCHULZ_BLOCK)
__global__ void newton_schulz_add_kernel(float* x, const float* y, float p, float q, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * NEWTON_SCHULZ_BLOCK + threadIdx.x;
    if (i < n) x[i] = mul_add(p, x[i], q * y[i]);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launcher

// x: [rows,cols], in place; work: [newton_schulz_floats(rows, cols)]
inline void newton_schulz(float* x, float* work, int64_t rows, int64_t cols, int steps, Device dev) {
    NVTX_RANGE("newton_schulz");
    matmul_check("newton_schulz", rows, cols, std::min(rows, cols));
    if (rows == 0 || cols == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        const bool tall = rows > cols;
        const int64_t m = tall ? cols : rows, n = rows * cols;
        float *a = work, *aa = a + m * m, *y = aa + m * m;
        typedef MatmulOperand<float> Operand;
        auto product = [&](float* out, Operand left, Operand right, int64_t M, int64_t N, int64_t K) {
            matmul_fma_launch<float, float>(Rows{out, N}, left, right, nullptr, M, N, K, false, dev);
        };
        auto add = [&](float* to, const float* from, float p, float q, int64_t count) {
            LAUNCH(newton_schulz_add_kernel, (unsigned)CEIL_DIV(count, NEWTON_SCHULZ_BLOCK), NEWTON_SCHULZ_BLOCK, 0,
                   dev.stream, to, from, p, q, count);
        };
        const Operand plain = {x, cols, 1}, transposed = {x, 1, cols}, square = {a, m, 1};
        {
            Scratch partial(2 * (size_t)norm_partials(n), dev);
            const double* sum = sum_of_squares_launch(reinterpret_cast<double*>(partial.data), x, n, dev);
            LAUNCH(newton_schulz_scale_kernel, (unsigned)CEIL_DIV(n, NEWTON_SCHULZ_BLOCK), NEWTON_SCHULZ_BLOCK, 0,
                   dev.stream, x, sum, n);
        }
        for (int step = 0; step < steps; step++) {
            product(a, tall ? transposed : plain, tall ? plain : transposed, m, m, tall ? rows : cols);
            product(aa, square, square, m, m, m);
            add(a, aa, NEWTON_SCHULZ_B, NEWTON_SCHULZ_C, m * m);
            product(y, tall ? plain : square, tall ? square : plain, rows, cols, m);
            add(x, y, NEWTON_SCHULZ_A, 1.0f, n);
        }
        return;
    }
#endif
    (void)dev;
    newton_schulz_cpu(x, work, rows, cols, steps);
}
