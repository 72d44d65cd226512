// Product of rows with a Kronecker product of two matrices, in place: the learned transforms of a linear's inputs of
// FlatQuant (Sun et al. 2024, arXiv 2410.09426; methods/flatquant.cuh), and what undoes them in its weights.
//
//   forward   y = (x r) (P1 (x) P2):   Y = P1^T (X r) P2          x, y: [T,N] as T matrices X, Y [n1,n2], N = n1 n2
//   backward  dX = (P1 dY P2^T) r                                 r: [N], null: 1
// The dual D of P has D1 = P1^-T, D2 = P2^-T and 1/r. Of weights W [rows,N] that multiply x, forward by D gives
// W' = W (1/r) P^-T, so that y W'^T = x W^T; backward by D of W''s gradient is W's, and of y it is x again.
//
// What gradients of P are made of, of rows y and their gradients dy:
//   moments   M1[a][b] += sum over t,j of Y[a][j] dY[b][j],   M2[a][b] += sum over t,i of Y[i][a] dY[i][b]
//   dP1 = P1^-T M1 of the inputs y, and - P1^-T M1^T of the weights W' as rows, whose gradient goes through P1^-T; P2
//   alike. For r: d(log r)[k] = sum x dx - sum W dW, of the columns.
//
// Forward and backward have the same bits on both devices: sums by fmaf in the order of the index. Moments and column
// sums have an order of their own on each. The trap: P is not orthogonal, and the backward is no inverse.
//
// Traffic in bytes for bf16, least and moved: 4TN, and the matrices, which the caches hold; arithmetic a number: n1 + n2
// multiply-adds. Launch: a block of 256 threads a row, N floats of shared memory; moments: a thread a number of theirs,
// which is meant for calibration.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>
#include "../runtime/device.h"
#include "../runtime/math.h"
#include "../runtime/parallel.h"

static constexpr int KRONECKER_MOST = 256;          // rows of a factor
static constexpr int64_t KRONECKER_MOST_N = 24576;  // 96 KB of shared memory: every GPU since sm_80 has 99

// Views, where the rows are
struct Kronecker {
    int n1 = 0, n2 = 0;                        // n1 0: there is none
    const float *p1 = nullptr, *p2 = nullptr;  // [n1,n1], [n2,n2]
    const float* scale = nullptr;              // [n1 n2] r, or null
    int64_t N() const { return (int64_t)n1 * n2; }
    bool on() const { return n1 > 0; }
};

// n1 <= n2, as equal as the divisors of `length` allow; false: too far from it, or too long
inline bool kronecker_split(Kronecker& k, int64_t length) {
    k = Kronecker();
    if (length < 1 || length > KRONECKER_MOST_N) return false;
    int64_t n = 1;
    for (int64_t d = 1; d * d <= length; d++)
        if (length % d == 0) n = d;
    if (length / n > KRONECKER_MOST) return false;
    k.n1 = (int)n, k.n2 = (int)(length / n);
    return true;
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

static constexpr int KRONECKER_ROWS = 4;

// KRONECKER_ROWS rows of W neighbours of c. Not inlined: where its loops are mixed with others, g++ 12 keeps the sums in
// memory (0.9 instead of 18 GFLOP/s)
template <int W>
__attribute__((noinline)) void kronecker_tile_cpu(float* c, const float* a, const float* b, int inner, int cols,
                                                  bool add) {
    float sum[KRONECKER_ROWS][W] = {};
    for (int k = 0; k < inner; k++) {
        const float* from = b + (int64_t)k * cols;
        for (int r = 0; r < KRONECKER_ROWS; r++) {
            const float x = a[(int64_t)r * inner + k];
#pragma omp simd
            for (int n = 0; n < W; n++) sum[r][n] = fmaf(x, from[n], sum[r][n]);
        }
    }
    for (int r = 0; r < KRONECKER_ROWS; r++)
        for (int n = 0; n < W; n++) {
            float& to = c[(int64_t)r * cols + n];
            to = add ? to + sum[r][n] : sum[r][n];
        }
}

// c [rows,cols] = a [rows,inner] b [inner,cols], or that is added to c
inline void kronecker_product_cpu(float* c, const float* a, const float* b, int rows, int inner, int cols, bool add) {
    const int whole = rows / KRONECKER_ROWS * KRONECKER_ROWS, wide = cols / 8 * 8;
    for (int i = 0; i < whole; i += KRONECKER_ROWS) {
        float* to = c + (int64_t)i * cols;
        const float* from = a + (int64_t)i * inner;
        int j = 0;
        for (; j + 16 <= wide; j += 16) kronecker_tile_cpu<16>(to + j, from, b + j, inner, cols, add);
        if (j < wide) kronecker_tile_cpu<8>(to + j, from, b + j, inner, cols, add);
    }
    for (int i = 0; i < rows; i++)
        for (int j = i < whole ? wide : 0; j < cols; j++) {
            float sum = 0.0f, &to = c[(int64_t)i * cols + j];
            for (int k = 0; k < inner; k++) sum = fmaf(a[(int64_t)i * inner + k], b[(int64_t)k * cols + j], sum);
            to = add ? to + sum : sum;
        }
}

// out [cols,rows] = in [rows,cols] transposed
template <class Number>
inline void kronecker_transpose_cpu(float* out, const Number* in, int rows, int cols) {
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) out[(int64_t)j * rows + i] = (float)in[(int64_t)i * cols + j];
}

// x: [T,N]
template <class Number>
inline void kronecker_cpu(Number* x, const Kronecker& k, int64_t T, bool backward) {
    const int n1 = k.n1, n2 = k.n2, N = n1 * n2;
    std::vector<float> turned((size_t)(backward ? n2 * n2 : n1 * n1));
    kronecker_transpose_cpu(turned.data(), backward ? k.p2 : k.p1, backward ? n2 : n1, backward ? n2 : n1);
    const float *left = backward ? k.p1 : turned.data(), *right = backward ? turned.data() : k.p2;
#pragma omp parallel if (worth_threads(T * N * (n1 + n2) / 16))
    {
        std::vector<float> buffer((size_t)N), between((size_t)N);
        float *v = buffer.data(), *z = between.data();
#pragma omp for schedule(static)
        for (int64_t t = 0; t < T; t++) {
            Number* y = x + t * N;
            const bool before = k.scale && !backward, after = k.scale && backward;
            for (int i = 0; i < N; i++) v[i] = before ? (float)y[i] * k.scale[i] : (float)y[i];
            kronecker_product_cpu(z, v, right, n1, n2, n2, false);
            kronecker_product_cpu(v, left, z, n1, n1, n2, false);
            for (int i = 0; i < N; i++) y[i] = (Number)(after ? v[i] * k.scale[i] : v[i]);
        }
    }
}

template <class Number>
inline void kronecker_moments_cpu(float* m1,         // [n1,n1]
                                  float* m2,         // [n2,n2]
                                  const Number* y,   // [T,n1,n2]
                                  const Number* dy,  // [T,n1,n2]
                                  const Kronecker& k, int64_t T) {
    constexpr int64_t CHUNKS = 16;  // whatever the threads
    const int n1 = k.n1, n2 = k.n2, N = n1 * n2, all = n1 * n1 + n2 * n2;
    std::vector<float> sums((size_t)(CHUNKS * all));
#pragma omp parallel for schedule(static) if (worth_threads(T * N * (n1 + n2) / 16))
    for (int64_t c = 0; c < CHUNKS; c++) {
        std::vector<float> a((size_t)N), b((size_t)N), turned((size_t)N);
        float* sum = sums.data() + c * all;
        for (int64_t t = T * c / CHUNKS; t < T * (c + 1) / CHUNKS; t++) {
            for (int i = 0; i < N; i++) a[i] = (float)y[t * N + i], b[i] = (float)dy[t * N + i];
            kronecker_transpose_cpu(turned.data(), dy + t * N, n1, n2);
            kronecker_product_cpu(sum, a.data(), turned.data(), n1, n2, n1, true);
            kronecker_transpose_cpu(turned.data(), y + t * N, n1, n2);
            kronecker_product_cpu(sum + n1 * n1, turned.data(), b.data(), n2, n1, n2, true);
        }
    }
    for (int64_t c = 0; c < CHUNKS; c++)
        for (int i = 0; i < all; i++) (i < n1 * n1 ? m1[i] : m2[i - n1 * n1]) += sums[c * all + i];
}

template <class Number>
inline void kronecker_columns_cpu(float* sum, const Number* x, const Number* dx, int64_t N, int64_t T, float sign) {
    constexpr int64_t W = 64;  // columns at a time
#pragma omp parallel for schedule(static) if (worth_threads(T * N / 2))
    for (int64_t k0 = 0; k0 < N; k0 += W) {
        float part[W] = {};
        const int64_t n = N - k0 < W ? N - k0 : W;
        for (int64_t t = 0; t < T; t++)
            for (int64_t i = 0; i < n; i++)
                part[i] = fmaf((float)x[t * N + k0 + i], (float)dx[t * N + k0 + i], part[i]);
        for (int64_t i = 0; i < n; i++) sum[k0 + i] = fmaf(sign, part[i], sum[k0 + i]);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
static constexpr int KRONECKER_BLOCK = 256;

// A row a block; its two products in turn, each in place: the numbers that a thread writes are those that nobody reads
// any more. shared: N floats. grid: T
template <class Number>
__global__ void kronecker_kernel(Number* x, Kronecker k, bool backward) {
    DYNAMIC_SHARED(float, v);
    const int n1 = k.n1, n2 = k.n2, N = n1 * n2, thread = threadIdx.x;
    Number* y = x + (int64_t)blockIdx.x * N;
    for (int i = thread; i < N; i += KRONECKER_BLOCK)
        v[i] = k.scale && !backward ? (float)y[i] * k.scale[i] : (float)y[i];
    const int rows = KRONECKER_BLOCK / n2, columns = KRONECKER_BLOCK / n1;
    for (int first = 0; first < n1; first += rows) {  // z = v P2, or v P2^T: of a row of v alone
        const int i = first + thread / n2, j = thread % n2;
        const bool mine = thread < rows * n2 && i < n1;
        float sum = 0.0f;
        __syncthreads();
        for (int a = 0; a < n2 && mine; a++)
            sum = fmaf(v[i * n2 + a], backward ? k.p2[j * n2 + a] : k.p2[a * n2 + j], sum);
        __syncthreads();
        if (mine) v[i * n2 + j] = sum;
    }
    for (int first = 0; first < n2; first += columns) {  // P1^T z, or P1 z: of a column of z alone
        const int i = thread / columns, j = first + thread % columns;
        const bool mine = i < n1 && j < n2;
        float sum = 0.0f;
        __syncthreads();
        for (int a = 0; a < n1 && mine; a++)
            sum = fmaf(backward ? k.p1[i * n1 + a] : k.p1[a * n1 + i], v[a * n2 + j], sum);
        __syncthreads();
        if (mine) v[i * n2 + j] = sum;
    }
    __syncthreads();
    for (int i = thread; i < N; i += KRONECKER_BLOCK) y[i] = (Number)(k.scale && backward ? v[i] * k.scale[i] : v[i]);
}

// a thread a number of the moments. grid: CEIL_DIV(n1 n1 + n2 n2, KRONECKER_BLOCK)
template <class Number>
__global__ void kronecker_moments_kernel(float* m1, float* m2, const Number* y, const Number* dy, Kronecker k,
                                         int64_t T) {
    const int n1 = k.n1, n2 = k.n2, N = n1 * n2, at = blockIdx.x * KRONECKER_BLOCK + threadIdx.x;
    if (at >= n1 * n1 + n2 * n2) return;
    const bool first = at < n1 * n1;
    const int n = first ? n1 : n2, others = first ? n2 : n1, step = first ? 1 : n2, own = first ? n2 : 1;
    const int index = first ? at : at - n1 * n1, a = index / n * own, b = index % n * own;
    float sum = 0.0f;
    for (int64_t t = 0; t < T; t++) {
        float row = 0.0f;
        for (int j = 0; j < others; j++)
            row = fmaf((float)y[t * N + a + j * step], (float)dy[t * N + b + j * step], row);
        sum += row;
    }
    (first ? m1 : m2)[index] += sum;
}

// a thread a column. grid: CEIL_DIV(N, KRONECKER_BLOCK)
template <class Number>
__global__ void kronecker_columns_kernel(float* sum, const Number* x, const Number* dx, int64_t N, int64_t T,
                                         float sign) {
    const int64_t k = (int64_t)blockIdx.x * KRONECKER_BLOCK + threadIdx.x;
    if (k >= N) return;
    float part = 0.0f;
    for (int64_t t = 0; t < T; t++) part = fmaf((float)x[t * N + k], (float)dx[t * N + k], part);
    sum[k] = fmaf(sign, part, sum[k]);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

inline void kronecker_check(const Kronecker& k, int64_t T) {
    if (!k.on() || k.n2 < 1 || k.n1 > KRONECKER_MOST || k.n2 > KRONECKER_MOST || k.N() > KRONECKER_MOST_N || T < 0 ||
        T > INT32_MAX)
        fail("kronecker: bad shape: T %lld, %d x %d", (long long)T, k.n1, k.n2);
}

template <class Number>
inline void kronecker_launch(Number* x, const Kronecker& k, int64_t T, bool backward, Device dev) {
    kronecker_check(k, T);
    if (T == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(kronecker_kernel<Number>, (unsigned)T, KRONECKER_BLOCK, (size_t)k.N() * sizeof(float), dev.stream, x, k,
               backward);
        return;
    }
#endif
    (void)dev;
    kronecker_cpu(x, k, T, backward);
}

// x: [T,N] in place; floatX or fp32
template <class Number>
inline void kronecker_forward(Number* x, const Kronecker& k, int64_t T, Device dev) {
    NVTX_RANGE("kronecker_forward");
    kronecker_launch(x, k, T, false, dev);
}

// dx: [T,N], in place on the gradient of the transformed rows
template <class Number>
inline void kronecker_backward(Number* dx, const Kronecker& k, int64_t T, Device dev) {
    NVTX_RANGE("kronecker_backward");
    kronecker_launch(dx, k, T, true, dev);
}

// m1: [n1,n1], m2: [n2,n2] accumulate; y, dy: [T,N]; of k the sizes alone
template <class Number>
inline void kronecker_moments(float* m1, float* m2, const Number* y, const Number* dy, const Kronecker& k, int64_t T,
                              Device dev) {
    NVTX_RANGE("kronecker_moments");
    kronecker_check(k, T);
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(kronecker_moments_kernel<Number>, (unsigned)CEIL_DIV(k.n1 * k.n1 + k.n2 * k.n2, KRONECKER_BLOCK),
               KRONECKER_BLOCK, 0, dev.stream, m1, m2, y, dy, k, T);
        return;
    }
#endif
    (void)dev;
    kronecker_moments_cpu(m1, m2, y, dy, k, T);
}

// sum: [N] += sign times the sums over the rows of x dx; x, dx: [T,N]
template <class Number>
inline void kronecker_columns(float* sum, const Number* x, const Number* dx, int64_t N, int64_t T, float sign,
                              Device dev) {
    NVTX_RANGE("kronecker_columns");
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(kronecker_columns_kernel<Number>, (unsigned)CEIL_DIV(N, KRONECKER_BLOCK), KRONECKER_BLOCK, 0, dev.stream,
               sum, x, dx, N, T, sign);
        return;
    }
#endif
    (void)dev;
    kronecker_columns_cpu(sum, x, dx, N, T, sign);
}
