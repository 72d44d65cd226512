// Rounding a weight matrix, column by column (GPTQ: Frantar et al., arXiv 2210.17323; OPTQ, ICLR 2023).
//
//   H = 2/T X^T X + damp mean(diag H) I      [n,n], X [T,n] the inputs that calibration text gives the product
//   U upper triangular with U^T U = H^-1     the Cholesky factor of the inverse
//   for each column i, in order:   q_i = Q(w_i),  e = (w_i - q_i) / U_ii,  w_j -= e U_ij for all j > i
//
// so that the columns still to come make up for the error of those that are rounded: each step is the least-squares
// optimum of ||(W - Q) X||^2 given the columns before it. Rows do not meet: one U serves all rows of all linears that
// read the same input. Columns go in blocks of 128, behind which one matrix product brings the others up to date.
//   act_order       columns in descending order of diag H, while their errors can still be made up for
//   static_groups   grids measured on the weights as they were; else on the weights as they are at the beginning of the
//                   block in which the group begins, as in the authors' code (two bits gain by not chasing the errors
//                   of their own block). A scale that depends on other groups (nvfp4, nf4:dq, 128x128) is static
// act_order without static_groups would scatter a group over the row, which our grids (and most containers) cannot
// hold. A dead input (H_jj = 0) gets H_jj = 1 and weights of 0, as in the authors' code.
//
// U costs one factorization, not the three of the usual route (factor, invert, factor): with the order of rows and
// columns reversed H = J M J, M = L L^T, U = J L^-1 J is upper triangular and U^T U = J L^-T L^-1 J = H^-1. It is done
// in double: H's condition number may reach n / damp_percent, 5e5 at n = 4864, which leaves fp32 two digits, and text
// of few tokens makes H singular but for the damping. 4864^3 * 2/3 = 77 GFLOP, some seconds on two cores.
//
// What is left as master weight is each w_i as it was when its turn came, compensated and not yet rounded: its rounding
// is q_i, and training goes on from there. From the cell's centre q_i a step of 1e-4 would have to cross half a cell.
//
// The trap: the grid of weight (row, column) is that of its place in the tensor, not of its turn; all arrays here are
// in the tensor's own order but for U and the working copy of W.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>
#include "../kernels/cpu/gemm.h"
#include "rtn.cuh"

struct GptqConfig {
    double damp_percent = 0.01;
    bool act_order = true, static_groups = true;
};

static constexpr int64_t GPTQ_BLOCK = 128;        // columns between two updates of the rest
static constexpr double GPTQ_MOST_DAMPING = 1.0;  // of mean(diag H); beyond, the Hessian is useless
static constexpr double GPTQ_LEAST_PIVOT = 1e-7;  // of mean(diag H): the rounding of sums in fp32

// ---------------------------------------------------------------------------------------------------------------------
// the factor of a Hessian

// c [rows,cols] -= a [rows,K] b [K,cols], row strides lda, ldb, ldc
inline void subtract_product(double* c, int64_t ldc, const double* a, int64_t lda, const double* b, int64_t ldb,
                             int64_t rows, int64_t cols, int64_t K) {
    constexpr int64_t R = 4, W = 16, CHUNK = 256;  // a register tile; CHUNK x W of b stay in the L1 cache
    for (int64_t k0 = 0; k0 < K; k0 += CHUNK)
        for (int64_t j0 = 0; j0 < cols; j0 += W)
            for (int64_t i0 = 0; i0 < rows; i0 += R) {
                const int64_t k1 = std::min(k0 + CHUNK, K), ni = std::min(R, rows - i0), nj = std::min(W, cols - j0);
                if (ni < R || nj < W) {
                    for (int64_t i = i0; i < i0 + ni; i++)
                        for (int64_t k = k0; k < k1; k++)
                            for (int64_t j = j0; j < j0 + nj; j++) c[i * ldc + j] -= a[i * lda + k] * b[k * ldb + j];
                    continue;
                }
                double sum[R][W] = {};
                for (int64_t k = k0; k < k1; k++)
                    for (int64_t i = 0; i < R; i++) {
                        const double x = a[(i0 + i) * lda + k], *y = b + k * ldb + j0;
#pragma omp simd
                        for (int64_t j = 0; j < W; j++) sum[i][j] += x * y[j];
                    }
                for (int64_t i = 0; i < R; i++)
                    for (int64_t j = 0; j < W; j++) c[(i0 + i) * ldc + j0 + j] -= sum[i][j];
            }
}

static constexpr int64_t FACTOR_BLOCK = 64;

// a = L L^T in place, the lower triangle of [n,n]. false: a pivot is not above `least`, a is not positive definite.
inline bool cholesky_lower(double* a, int64_t n, double least) {
    const int64_t NB = FACTOR_BLOCK;
    std::vector<double> panel((size_t)(n * NB));  // rows of L that the block column needs, transposed: [j0,nb]
    for (int64_t j0 = 0; j0 < n; j0 += NB) {
        const int64_t nb = std::min(NB, n - j0), blocks = (n - j0 + NB - 1) / NB;
#pragma omp parallel for schedule(static)
        for (int64_t k = 0; k < j0; k++)
            for (int64_t j = 0; j < nb; j++) panel[k * nb + j] = a[(j0 + j) * n + k];
#pragma omp parallel for schedule(dynamic)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t i0 = j0 + b * NB;
            subtract_product(a + i0 * n + j0, n, a + i0 * n, n, panel.data(), nb, std::min(NB, n - i0), nb, j0);
        }
        for (int64_t j = j0; j < j0 + nb; j++) {
            double pivot = a[j * n + j];
            for (int64_t k = j0; k < j; k++) pivot -= a[j * n + k] * a[j * n + k];
            if (!(pivot > least) || !std::isfinite(pivot)) return false;
            a[j * n + j] = std::sqrt(pivot);
            for (int64_t i = j + 1; i < j0 + nb; i++) {
                double s = a[i * n + j];
                for (int64_t k = j0; k < j; k++) s -= a[i * n + k] * a[j * n + k];
                a[i * n + j] = s / a[j * n + j];
            }
        }
#pragma omp parallel for schedule(static)
        for (int64_t i = j0 + nb; i < n; i++)
            for (int64_t j = j0; j < j0 + nb; j++) {
                double s = a[i * n + j];
#pragma omp simd reduction(- : s)
                for (int64_t k = j0; k < j; k++) s -= a[i * n + k] * a[j * n + k];
                a[i * n + j] = s / a[j * n + j];
            }
    }
    return true;
}

// a = L^-1 in place, L the lower triangle of [n,n]; above it a is set to 0
inline void invert_lower(double* a, int64_t n) {
    const int64_t NB = FACTOR_BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) std::fill(a + i * n + i + 1, a + (i + 1) * n, 0.0);
    std::vector<double> rows((size_t)(n * NB));  // the block row of the inverse: [nb,n]
    for (int64_t i0 = 0; i0 < n; i0 += NB) {
        const int64_t nb = std::min(NB, n - i0), blocks = i0 / NB + 1;
#pragma omp parallel for schedule(dynamic)
        for (int64_t b = 0; b < blocks; b++) {
            // X L_ii-solved from -L[i, k] Linv[k, j]; of the diagonal block itself from the identity
            const int64_t j0 = b * NB, width = std::min(NB, n - j0);
            double* x = rows.data() + j0;
            for (int64_t r = 0; r < nb; r++)
                for (int64_t j = 0; j < width; j++) x[r * n + j] = j0 == i0 && r == j ? 1.0 : 0.0;
            subtract_product(x, n, a + i0 * n + j0, n, a + j0 * n + j0, n, nb, width, i0 - j0);
            for (int64_t r = 0; r < nb; r++) {
                for (int64_t k = 0; k < r; k++)
                    for (int64_t j = 0; j < width; j++) x[r * n + j] -= a[(i0 + r) * n + i0 + k] * x[k * n + j];
                for (int64_t j = 0; j < width; j++) x[r * n + j] /= a[(i0 + r) * n + i0 + r];
            }
        }
        for (int64_t r = 0; r < nb; r++) std::copy_n(rows.data() + r * n, i0 + r + 1, a + (i0 + r) * n);
    }
}

// What GPTQ needs besides a matrix; one for all products of a model
struct GptqMemory {
    Buffer<double> factor;      // [n,n]
    Buffer<float> upper;        // [n,n] U, in the order in which columns are rounded
    Buffer<float> errors;       // [rows,GPTQ_BLOCK] -e of a block's columns
    std::vector<int> order;     // [n] the columns, in the order in which they are rounded
    std::vector<char> dead;     // [n]
    double damp_percent = 0.0;  // what it took
};

// for linears of up to n inputs and weights of up to `rows` rows
inline void gptq_allocate(GptqMemory& g, int64_t n, int64_t rows, Device host) {
    g.factor.allocate((size_t)(n * n), "GPTQ: a Hessian's factor", "", host);
    g.upper.allocate((size_t)(n * n), "GPTQ: a Hessian's factor", "", host);
    g.errors.allocate((size_t)(rows * GPTQ_BLOCK), "GPTQ: a matrix being rounded", "", host);
}

// g.upper, order and dead of the Hessian h [n,n], on the host. `where` opens the messages: which product it is.
inline void gptq_factor(GptqMemory& g, const float* h, int64_t n, const GptqConfig& c, const std::string& where) {
    double mean = 0.0;
    g.dead.assign(n, 0);
    for (int64_t i = 0; i < n; i++) {
        float d = h[i * n + i];
        if (!std::isfinite(d))
            fail("%s: the calibration text gives inputs that are not finite; are the weights damaged?", where.c_str());
        g.dead[i] = d == 0.0f;
        mean += (d == 0.0f ? 1.0 : (double)d) / (double)n;
    }
    auto diagonal = [&](int i) { return g.dead[i] ? 1.0f : h[(int64_t)i * n + i]; };
    g.order.resize(n);
    std::iota(g.order.begin(), g.order.end(), 0);
    if (c.act_order)
        std::stable_sort(g.order.begin(), g.order.end(), [&](int a, int b) { return diagonal(a) > diagonal(b); });
    double* m = g.factor.data;
    for (g.damp_percent = c.damp_percent;; g.damp_percent = std::max(10.0 * g.damp_percent, 1e-4)) {
        if (g.damp_percent > GPTQ_MOST_DAMPING)
            fail(
                "%s: its Hessian is not positive definite even with --damp_percent %g; bring more or other calibration "
                "text",
                where.c_str(), GPTQ_MOST_DAMPING);
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < n; i++) {
            const int64_t from = g.order[n - 1 - i];
            for (int64_t j = 0; j < i; j++) m[i * n + j] = h[from * n + g.order[n - 1 - j]];
            m[i * n + i] = (double)diagonal((int)from) + g.damp_percent * mean;
        }
        if (cholesky_lower(m, n, GPTQ_LEAST_PIVOT * mean)) break;
    }
    if (g.damp_percent != c.damp_percent)
        printf("%s: its Hessian is not positive definite with --damp_percent %g, taken with %g\n", where.c_str(),
               c.damp_percent, g.damp_percent);
    invert_lower(m, n);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) g.upper[i * n + j] = (float)m[(n - 1 - i) * n + n - 1 - j];
}

// ---------------------------------------------------------------------------------------------------------------------
// rounding

// Codes and grid of t.w with the factor of the Hessian of t's inputs; t.w becomes the compensated weights. work
// [rows,n]: the working copy, and afterwards what was lost, t.w as it was less what the codes stand for, in t's own
// order.
inline void gptq_round(const RoundedLinear& t, float* work, GptqMemory& g, const GptqConfig& c) {
    const int64_t n = t.cols, rows = t.rows;
    const int64_t group = t.shape.group;
    const bool measured_first = c.static_groups || group >= n || t.shape.tiles || t.state.tensor;
    if (measured_first && !t.keep_grid) {  // on the weights without those of dead inputs, as the authors' code does
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < n; j++) work[r * n + j] = g.dead[j] ? 0.0f : t.w[r * n + j];
        quant_measure_cpu(t.grid, t.state, work, t.shape, t.spec);
    }
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < n; i++) work[r * n + i] = g.dead[g.order[i]] ? 0.0f : t.w[r * n + g.order[i]];
    const float* U = g.upper.data;
    for (int64_t i1 = 0; i1 < n; i1 += GPTQ_BLOCK) {
        const int64_t i2 = std::min(i1 + GPTQ_BLOCK, n);
#pragma omp parallel for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *w = work + r * n, *errors = g.errors.data + r * GPTQ_BLOCK;
            for (int64_t i = CEIL_DIV(i1, group) * group; i < i2 && !measured_first && !t.keep_grid; i += group)
                quant_measure_cpu(&t.grid_of(r * n + i), ScaleState(), w + i, QuantGroups{1, group}, t.spec);
            for (int64_t i = i1; i < i2; i++) {
                const int64_t at = r * n + g.order[i];
                const Grid grid = t.grid_of(at);
                const int code = quant_code(t.spec, w[i], grid);
                const float value = quant_value(t.spec, code, grid), e = (value - w[i]) / U[i * n + i];
                t.codes[at] = (int8_t)code;
                errors[i - i1] = e;
                INDEPENDENT
                for (int64_t j = i + 1; j < i2; j++) w[j] += e * U[i * n + j];
            }
        }
        if (i2 < n) gemm_nn(work + i2, g.errors.data, U + i1 * n + i2, rows, i2 - i1, n - i2, true, {n, GPTQ_BLOCK, n});
    }
#pragma omp parallel
    {
        std::vector<float> compensated(n);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *w = t.w + r * n, *lost = work + r * n;
            for (int64_t i = 0; i < n; i++) compensated[g.order[i]] = lost[i];
            for (int64_t j = 0; j < n; j++) {
                const int64_t at = r * n + j;
                lost[j] = w[j] - quant_value(t.spec, t.codes[at], t.grid_of(at));
                w[j] = compensated[j];
            }
        }
    }
}

inline Rounder gptq_rounder(const GptqConfig& c) {
    auto memory = std::make_shared<GptqMemory>();
    Rounder r;
    r.allocate = [memory](int64_t inputs, int64_t, int64_t rows, Device host) {
        gptq_allocate(*memory, inputs, rows, host);
    };
    r.prepare = [memory, c](const float* h, int64_t n, const std::string& where) {
        gptq_factor(*memory, h, n, c, where);
        return memory->damp_percent;
    };
    r.round = [memory, c](const RoundedLinear& t, float* lost) { gptq_round(t, lost, *memory, c); };
    return r;
}

// sum of the squares of the product's outputs with matrix d [rows,n], from the Hessian h [n,n]: tr(d h d^T)
inline double output_energy(const float* d, const float* h, int64_t rows, int64_t n) {
    const int64_t most = 256;
    std::vector<float> dh((size_t)(std::min(most, rows) * n));
    std::vector<double> row(rows, 0.0);
    for (int64_t r0 = 0; r0 < rows; r0 += most) {
        int64_t count = std::min(most, rows - r0);
        gemm_nn(dh.data(), d + r0 * n, h, count, n, n);
#pragma omp parallel for schedule(static)
        for (int64_t r = 0; r < count; r++)
            for (int64_t j = 0; j < n; j++) row[r0 + r] += (double)dh[r * n + j] * (double)d[(r0 + r) * n + j];
    }
    return std::accumulate(row.begin(), row.end(), 0.0);
}
