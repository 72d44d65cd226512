// Hadamard transform of rows, in place: of activations (floatX), the online rotations of QuaRot (arXiv 2404.00456) and
// SpinQuant (arXiv 2405.16406), and the matrix that the fused ones are made of (methods/rotation.cuh); of a weight W
// [rows,cols] or its gradient (fp32), whose rows are multiplied as those of activations are, W' = W H^T, for a linear
// that is quantized in a rotated basis (model/linear.cuh).
//
//   forward   y = H x,    H = (H_K (x) S_P) / sqrt(N),  N = K P,  P a power of two,  H H^T = 1
//   backward  dx = H^T dy
// for each of the segments of N neighbours that a row consists of (one if N is the row's length; the heads of q and k).
// S_P is Sylvester's matrix, S[i][j] = (-1)^popcount(i & j), which is symmetric. H_K is 1, or Paley's (1933), with the
// quadratic character chi of the integers modulo a prime q, chi(0) = 0, and J = [0 1; e Q], Q[a][b] = chi(a - b):
//   I   q = 3 mod 4, K = q + 1:     1 + J with e = -1           12, 20, 24, 32, 44, 48, 60, 140 ...
//   II  q = 1 mod 4, K = 2(q + 1):  J (x) [1 1; 1 -1] + 1 (x) [1 -1; -1 -1] with e = 1       28, 36, 76 ...
// N takes the smallest K that fits it. Where none up to HADAMARD_MOST_K does (11008 = 172 * 64), a row is cut into
// segments whose length is the largest power of two that divides it: block-diagonal, as in QuEST (arXiv 2502.05003).
//
// Both devices give the same bits: sums of two in the order of the butterflies, then the K terms of a sum in order,
// then one product; nothing can be fused. The trap: H_K is not symmetric (Paley I), the backward takes its transpose.
//
// Traffic in bytes for bf16, least and moved: 4TC (C: length of a row), for fp32 8TC. Arithmetic a number: log2(P) + K sums.
// Launch: a block of 256 threads works on as many segments as make 2048 numbers, or on one; N floats of shared memory.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>
#include "../runtime/device.h"
#include "../runtime/math.h"
#include "../runtime/parallel.h"

static constexpr int HADAMARD_MOST_K = 256;
static constexpr int64_t HADAMARD_MOST_N =
    22528;  // with the signs 96 KB of shared memory: every GPU since sm_80 has 99

struct Hadamard {
    int K = 0, P = 0;                             // K 0: there is none
    int q = 0;                                    // K > 1: of Paley's construction
    bool two = false;                             // Paley II
    uint32_t squares[HADAMARD_MOST_K / 32] = {};  // bit a: chi(a) = 1
    int64_t N() const { return (int64_t)K * P; }
    bool on() const { return K > 0; }
};

// the sign of H_K[i][j]
HOST_DEVICE bool hadamard_negative(const Hadamard& h, int i, int j) {
    int a = h.two ? i / 2 : i, b = h.two ? j / 2 : j, odd_i = i % 2, odd_j = j % 2;
    if (a == b) return h.two && (odd_i || odd_j);  // 1, or [1 -1; -1 -1]
    bool negative;
    if (a == 0 || b == 0) {
        negative = b == 0 && !h.two;  // the border: 1, and e below
    } else {
        int d = a - b < 0 ? a - b + h.q : a - b;
        negative = !(h.squares[d / 32] >> (d % 32) & 1);
    }
    return negative != (h.two && odd_i && odd_j);  // [1 1; 1 -1]
}

// H_K of order K, or false
inline bool hadamard_construct(Hadamard& h, int K) {
    h = Hadamard();
    h.K = K;
    if (K == 1) return true;
    auto prime = [](int n) {
        for (int d = 2; d * d <= n; d++)
            if (n % d == 0) return false;
        return n > 1;
    };
    h.two = !(prime(K - 1) && (K - 1) % 4 == 3);
    h.q = h.two ? K / 2 - 1 : K - 1;
    if (h.two && (K % 2 || !prime(h.q) || h.q % 4 != 1)) return false;
    for (int64_t a = 1; a < h.q; a++) {
        int square = (int)(a * a % h.q);
        h.squares[square / 32] |= 1u << (square % 32);
    }
    return true;
}

// H of exactly this order, or false
inline bool hadamard_of_order(Hadamard& h, int64_t N) {
    if (N < 1 || N > HADAMARD_MOST_N) return false;
    int64_t P = N & -N;
    for (int64_t K = N / P; P > 0 && K <= HADAMARD_MOST_K; K *= 2, P /= 2)
        if (hadamard_construct(h, (int)K)) {
            h.P = (int)P;
            return true;
        }
    return false;
}

// for rows of `length`: of that order if there is one, else as wide a block as divides it
inline Hadamard hadamard_for(int64_t length) {
    Hadamard h;
    int64_t N = length;
    if (!hadamard_of_order(h, N)) {
        N = length & -length;
        while (N > HADAMARD_MOST_N) N /= 2;
        if (!hadamard_of_order(h, N)) fail("hadamard: rows of %lld", (long long)length);
    }
    return h;
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

// x = H x or H^T x in double: for weights. x, buffer: [N]
inline void hadamard_double(double* x, double* buffer, const Hadamard& h, bool transpose) {
    int K = h.K, P = h.P;
    for (int k = 0; k < K; k++)
        for (int step = 1; step < P; step *= 2)
            for (int i = 0; i < P; i += 2 * step)
                for (int j = i; j < i + step; j++) {
                    double a = x[k * P + j], b = x[k * P + j + step];
                    x[k * P + j] = a + b, x[k * P + j + step] = a - b;
                }
    double scale = 1.0 / std::sqrt((double)h.N());
    for (int64_t i = 0; i < h.N(); i++) buffer[i] = x[i] * scale, x[i] = 0.0;
    for (int i = 0; i < K; i++)
        for (int j = 0; j < K; j++) {
            bool negative = K > 1 && (transpose ? hadamard_negative(h, j, i) : hadamard_negative(h, i, j));
            double sign = negative ? -1.0 : 1.0;
            for (int p = 0; p < P; p++) x[i * P + p] += sign * buffer[j * P + p];
        }
}

// x: [T, segments * N], a token each `stride` elements
template <class Number>
inline void hadamard_cpu(Number* x, int64_t stride, const Hadamard& h, int64_t T, int64_t segments, bool transpose) {
    constexpr int W = 16;  // neighbours at a time
    const int K = h.K, P = h.P, width = P < W ? W : P;
    const float scale = (float)(1.0 / std::sqrt((double)h.N()));
    std::vector<uint32_t> flip((size_t)K * K);  // the sign bit of H_K
    for (int i = 0; i < K && K > 1; i++)
        for (int j = 0; j < K; j++)
            flip[(size_t)i * K + j] =
                (transpose ? hadamard_negative(h, j, i) : hadamard_negative(h, i, j)) ? 0x80000000u : 0u;
#pragma omp parallel if (worth_threads(T * segments * h.N()))
    {
        std::vector<float> buffer((size_t)K * width);
        float* v = buffer.data();
#pragma omp for schedule(static)
        for (int64_t row = 0; row < T * segments; row++) {
            Number* y = x + row / segments * stride + row % segments * h.N();
            for (int k = 0; k < K; k++) {
                float* u = v + (int64_t)k * width;
                INDEPENDENT
                for (int p = 0; p < P; p++) u[p] = (float)y[(int64_t)k * P + p];
                for (int step = 1; step < P; step *= 2)
                    for (int i = 0; i < P; i += 2 * step) {
                        INDEPENDENT
                        for (int j = i; j < i + step; j++) {
                            float a = u[j], b = u[j + step];
                            u[j] = a + b, u[j + step] = a - b;
                        }
                    }
            }
            if (K == 1) {
                INDEPENDENT
                for (int p = 0; p < P; p++) y[p] = (Number)(v[p] * scale);
                continue;
            }
            for (int i = 0; i < K; i += 4)  // K is a multiple of 4
                for (int p = 0; p < P; p += W) {
                    float sum[4][W] = {};
                    for (int j = 0; j < K; j++) {
                        const float* u = v + (int64_t)j * width + p;
                        for (int r = 0; r < 4; r++) {
                            uint32_t f = flip[(size_t)(i + r) * K + j];
                            INDEPENDENT
                            for (int n = 0; n < W; n++) sum[r][n] += bits_float(float_bits(u[n]) ^ f);
                        }
                    }
                    for (int r = 0; r < 4; r++)
                        for (int n = 0; n < W && p + n < P; n++)
                            y[(int64_t)(i + r) * P + p + n] = (Number)(sum[r][n] * scale);
                }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernel

#if HAS_KERNELS
static constexpr int HADAMARD_BLOCK = 256, HADAMARD_NUMBERS = 2048;

// shared: per_block * N floats, then K * CEIL_DIV(K, 32) words of signs. grid: CEIL_DIV(rows, per_block)
// h is indexed where it lies, in constant memory
template <class Number>
__global__ void hadamard_kernel(Number* x, int64_t stride, const __grid_constant__ Hadamard h, int64_t rows,
                                int64_t segments, int per_block, float scale, bool transpose, bool aligned) {
    constexpr int W = Pack128<Number>::size;
    DYNAMIC_SHARED(float, v);
    const int N = h.K * h.P, K = h.K, P = h.P, words = CEIL_DIV(K, 32);
    uint32_t* signs = reinterpret_cast<uint32_t*>(v + (int64_t)per_block * N);
    int64_t first = (int64_t)blockIdx.x * per_block;
    int mine = (int)(rows - first < per_block ? rows - first : per_block), packs = CEIL_DIV(N, W);
    for (int i = threadIdx.x; i < mine * packs; i += HADAMARD_BLOCK) {
        int64_t row = first + i / packs;
        int at = i % packs * W;
        Pack128<Number> in = load_pack(x + row / segments * stride + row % segments * N, at, N, aligned);
        for (int k = 0; k < W && at + k < N; k++) v[i / packs * N + at + k] = (float)in[k];
    }
    for (int w = threadIdx.x; w < K * words && K > 1; w += HADAMARD_BLOCK) {
        uint32_t bits = 0;
        int i = w / words, j0 = w % words * 32;
        for (int j = j0; j < K && j < j0 + 32; j++)
            bits |= (uint32_t)(transpose ? hadamard_negative(h, j, i) : hadamard_negative(h, i, j)) << (j - j0);
        signs[w] = bits;
    }
    for (int step = 1; step < P; step *= 2) {
        __syncthreads();
        for (int i = threadIdx.x; i < mine * (N / 2); i += HADAMARD_BLOCK) {
            int a = i / step * 2 * step + i % step;  // N is a multiple of 2 step: pairs do not cross segments
            float p = v[a], q = v[a + step];
            v[a] = p + q;
            v[a + step] = p - q;
        }
    }
    __syncthreads();
    if (K == 1) {
        for (int i = threadIdx.x; i < mine * packs; i += HADAMARD_BLOCK) {
            int64_t row = first + i / packs;
            int at = i % packs * W;
            Pack128<Number> out;
            for (int k = 0; k < W; k++) out[k] = (Number)(at + k < N ? v[i / packs * N + at + k] * scale : 0.0f);
            store_pack(x + row / segments * stride + row % segments * N, at, N, aligned, out);
        }
        return;
    }
    for (int i = threadIdx.x; i < mine * (N / 4); i += HADAMARD_BLOCK) {
        int segment = i / (N / 4), p = i % P, k0 = i % (N / 4) / P * 4;
        const float* u = v + segment * N + p;
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (int w = 0; w < words; w++) {
            uint32_t row[4];
            UNROLL
            for (int r = 0; r < 4; r++) row[r] = signs[(k0 + r) * words + w];
            int n = K - w * 32 < 32 ? K - w * 32 : 32;
            for (int j = 0; j < n; j++) {
                uint32_t bits = float_bits(u[(w * 32 + j) * P]);
                UNROLL
                for (int r = 0; r < 4; r++) sum[r] += bits_float(bits ^ (row[r] << (31 - j) & 0x80000000u));
            }
        }
        int64_t at = first + segment;
        Number* y = x + at / segments * stride + at % segments * N + p;
        UNROLL
        for (int r = 0; r < 4; r++) y[(k0 + r) * P] = (Number)(sum[r] * scale);
    }
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

template <class Number>
inline void hadamard_launch(Number* x, int64_t stride, const Hadamard& h, int64_t T, int64_t segments, bool transpose,
                            Device dev) {
    if (!h.on() || T < 0 || segments < 1 || (T > 1 && stride < segments * h.N()) || T * segments > INT32_MAX)
        fail("hadamard: bad shape: T %lld, segments %lld of %lld, stride %lld", (long long)T, (long long)segments,
             (long long)h.N(), (long long)stride);
    if (T == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        int N = (int)h.N(), per_block = N < HADAMARD_NUMBERS ? HADAMARD_NUMBERS / N : 1;
        size_t shared = ((size_t)per_block * N + (size_t)h.K * CEIL_DIV(h.K, 32)) * sizeof(float);
        bool aligned = is_aligned16(x, stride) && N % Pack128<Number>::size == 0;
        LAUNCH(hadamard_kernel<Number>, (unsigned)CEIL_DIV(T * segments, per_block), HADAMARD_BLOCK, shared, dev.stream,
               x, stride, h, T * segments, segments, per_block, (float)(1.0 / std::sqrt((double)N)), transpose,
               aligned);
        return;
    }
#endif
    (void)dev;
    hadamard_cpu(x, stride, h, T, segments, transpose);
}

// In place, every segment of a row by itself; floatX or fp32. x: [T, segments * h.N()], a row each `stride` elements
template <class Number>
inline void hadamard_forward(Number* x, int64_t stride, const Hadamard& h, int64_t T, int64_t segments, Device dev) {
    NVTX_RANGE("hadamard_forward");
    hadamard_launch(x, stride, h, T, segments, false, dev);
}

// in place on the gradient of the transformed rows
template <class Number>
inline void hadamard_backward(Number* dx, int64_t stride, const Hadamard& h, int64_t T, int64_t segments, Device dev) {
    NVTX_RANGE("hadamard_backward");
    hadamard_launch(dx, stride, h, T, segments, true, dev);
}
