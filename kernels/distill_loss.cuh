// Knowledge distillation: the loss between the distributions of a teacher and a student over the vocabulary, and its
// gradient for the student's logits. Of a token with logits z, the teacher's u, and the next token y:
//
//   l = alpha T^2 D(p_t, p_s) + (1 - alpha) CE      p_s = softmax(z / T)   p_t = softmax(u / T)
//   CE = -log softmax(z)_y                          loss = sum of weight l over tokens
//   dl/dz_v = alpha T (q_v - p_s(v) sum_u q_u) + (1 - alpha) (softmax(z)_v - 1[v = y]),  q_v = p_s(v) dD/dp_s(v)
//
// T^2 keeps the size of D's gradient when T changes (Hinton et al. 2015, arXiv 1503.02531, section 2). Divergences:
//   forward_kl   KL(p_t || p_s)      covers all that the teacher does
//   reverse_kl   KL(p_s || p_t)      keeps to what the teacher does most (Gu et al. 2024, arXiv 2306.08543)
//   jsd          beta KL(p_t || m) + (1 - beta) KL(p_s || m),  m = beta p_t + (1 - beta) p_s, beta in (0, 1)
//                (generalised Jensen-Shannon: Agarwal et al. 2024, arXiv 2306.13649, eq. 1)
// A new one is a struct with its two formulas and its row in DIVERGENCES.
//
// Each is written for sums that need not be 1, as a KL with - p_t + p_s (a Bregman divergence): the same number, since
// both sum to 1, but each term is at least 0 and all vanish where p_t = p_s, so that a small D is not the difference of
// large sums in fp32.
//
// Support (top_k, top_p): the teacher's likeliest tokens are classes of their own, all others together are one more, on
// both sides. Nothing is left out, so it is a divergence of coarser distributions and never above the full one (data
// processing inequality). Its probability is the sum of the small ones, not 1 - the sum of the large ones, which would
// cancel. A token of the rest has q_v = p_s(v) q_rest / P_s(rest).
//
// Statistics of a row are softmax_chunk's in lm_head.cuh, to the bit: at T = 1 the cross-entropy and its gradient are
// those of lm_head_forward and lm_head_backward for the same logits.
// Sums: each token's in double; tokens are added one after another on either device, so that the sums of a batch do not
// depend on how it was cut into blocks.
// Exponentials a logit, CPU: 6 (2 for the sums of the softmaxes, 2 for D, 2 for dlogits), of jsd 3 more; where T is not 1
// 2 more. At V = 49,152 and C = 576 a sixth (forward_kl) to a third (jsd) of the time of the products, with a support up
// to a half (2 cores, AVX2).
// On a device a block of LM_HEAD_BLOCK threads has a row; traffic in bytes: 24V read (4V more where T is not 1, 16V to
// 32V more with a support), sizeof(floatX) V written. The least, with a row in shared memory: 8V read.
//
// The trap: dlogits is the gradient by the unscaled logits and includes the token's weight.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>
#include "likeliest.cuh"
#include "lm_head.cuh"
#include "lm_head_logits.cuh"
#include "../runtime/parallel.h"

// ---------------------------------------------------------------------------------------------------------------------
// divergences

// Of one class of the distributions, from its probabilities and their logarithms: value is what it adds to D, q is
// s dD/ds. Plain numbers and no branches: g++ 12 vectorizes neither loops over structs nor choices between products.
struct ForwardKl {
    HOST_DEVICE static float value(float log_s, float log_t, float s, float t, float) {
        return mul_add(t, log_t - log_s, s - t);
    }
    HOST_DEVICE static float q(float, float, float s, float t, float) { return s - t; }
};

struct ReverseKl {
    HOST_DEVICE static float value(float log_s, float log_t, float s, float t, float) {
        return mul_add(s, log_s - log_t, t - s);
    }
    HOST_DEVICE static float q(float log_s, float log_t, float s, float, float) { return s * (log_s - log_t); }
};

struct Jsd {
    // log of m / the larger of s and t: log(1 + c (e^-|d| - 1)), d = log t - log s, c the share of the smaller. No
    // overflow, and exactly 0 where s = t.
    HOST_DEVICE static float log_mean(float d, float beta) {
        // + 0: else nvcc joins the product with log1p_f's 1 + x to one rounding, and hosts do not
        return log1p_f(fmaf(select_f(d > 0.0f, 1.0f - beta, beta), exp_f(-fabsf(d)) - 1.0f, 0.0f));
    }
    HOST_DEVICE static float value(float log_s, float log_t, float s, float t, float beta) {
        float d = log_t - log_s;
        return mul_add(beta * t, 0.5f * (d - fabsf(d)) - log_mean(d, beta), q(log_s, log_t, s, t, beta));
    }
    HOST_DEVICE static float q(float log_s, float log_t, float s, float, float beta) {
        float d = log_t - log_s;
        return (1.0f - beta) * s * (-0.5f * (d + fabsf(d)) - log_mean(d, beta));
    }
};

// clang-format off
#define DIVERGENCES(DIVERGENCE)        \
    DIVERGENCE(forward_kl, ForwardKl)  \
    DIVERGENCE(reverse_kl, ReverseKl)  \
    DIVERGENCE(jsd,        Jsd)
// clang-format on

#define DIVERGENCE_ENUMERATOR(name, D) name,
enum class Divergence { DIVERGENCES(DIVERGENCE_ENUMERATOR) };
#undef DIVERGENCE_ENUMERATOR

// by the enum's number: what flags and logs call them
#define DIVERGENCE_NAME(name, D) #name,
static constexpr const char* divergence_names[] = {DIVERGENCES(DIVERGENCE_NAME)};
#undef DIVERGENCE_NAME

// call(divergence) with its struct
template <class Call>
inline auto divergence_visit(Divergence divergence, const Call& call) {
#define DIVERGENCE_CASE(name, D) \
    case Divergence::name:       \
        return call(D());
    switch (divergence) { DIVERGENCES(DIVERGENCE_CASE) }
#undef DIVERGENCE_CASE
    __builtin_unreachable();
}

// ---------------------------------------------------------------------------------------------------------------------
// a row

struct DistillConfig {
    Divergence divergence = Divergence::forward_kl;
    double beta = 0.5;         // of jsd
    double temperature = 1.0;  // T
    double alpha = 1.0;        // share of the divergence; 1 - alpha of the cross-entropy
    int64_t top_k = 0;         // the teacher's likeliest tokens; 0: all
    double top_p = 1.0;        // the fewest whose probability at T reaches this; 1: all
};

// [R], on the device
struct DistillTokens {
    const double* weight;  // the token's share of the loss
    const int* targets;    // in [0,V)
};

// Sums over tokens. Only doubles: distill_sums_kernel adds them as an array.
struct DistillSums {
    double loss = 0.0;                            // weighted
    double divergence = 0.0;                      // D without T^2
    double cross_entropy = 0.0;                   // of the target, at temperature 1
    double teacher_cross_entropy = 0.0;           // the same of the teacher, at T
    double entropy = 0.0, teacher_entropy = 0.0;  // at T
    double rest_mass = 0.0;                       // the teacher's probability outside of the support
    double support = 0.0;                         // tokens of the vocabulary in the support
    double agree = 0.0;                           // tokens where student and teacher have the same likeliest one
    double right = 0.0, teacher_right = 0.0;      // tokens that are the likeliest one
    double tokens = 0.0;
};
static constexpr int DISTILL_SUMS = sizeof(DistillSums) / sizeof(double);

HOST_DEVICE void distill_sums_add(double* sums, const double* x) {
    for (int i = 0; i < DISTILL_SUMS; i++) sums[i] += x[i];
}

// What every element of a row needs, and in the end the row's sums
struct DistillRow {
    float inverse_temperature, beta;
    float lse, teacher_lse;          // at T
    float lse_1;                     // the student's at temperature 1
    float entropy, teacher_entropy;  // at T
    LikeliestEdge edge;              // of the support
    float scale, ce_scale;           // weight alpha T, weight (1 - alpha)
    float sum_q;                     // over the classes
    float rest_slope;                // q_rest / P_s(rest)
    int target;
};

// What a row's first walk over D leaves
struct DistillClasses {
    double value = 0.0, q = 0.0;            // of the support
    double rest = 0.0, teacher_rest = 0.0;  // probabilities outside
    double rest_count = 0.0;
};

HOST_DEVICE float distill_log_s(float logit, const DistillRow& r) {
    return logit_logp(logit, r.inverse_temperature, r.lse);
}
HOST_DEVICE float distill_log_t(float teacher_logit, const DistillRow& r) {
    return logit_logp(teacher_logit, r.inverse_temperature, r.teacher_lse);
}

// s, s_1: the student's probability at T and at 1; q: of the divergence. FULL: without a support
template <bool FULL>
HOST_DEVICE float distill_dlogit(float s, float s_1, float q, float teacher_logit, int v, const DistillRow& r) {
    if (!FULL) q = select_f(likeliest_has(r.edge, teacher_logit, v), q, s * r.rest_slope);
    float ce = s_1 - select_f(v == r.target, 1.0f, 0.0f);
    return mul_add(r.scale, q - s * r.sum_q, r.ce_scale * ce);
}

// The row's softmaxes: at T the student's and the teacher's, at 1 the student's
struct DistillSoftmax {
    SoftmaxState student, teacher, student_1;
};

HOST_DEVICE void distill_row_begin(DistillRow& r, const DistillSoftmax& s, double weight, int target,
                                   const DistillConfig& c) {
    r.inverse_temperature = (float)(1.0 / c.temperature);
    r.beta = (float)c.beta;
    r.lse = softmax_lse(s.student), r.teacher_lse = softmax_lse(s.teacher);
    r.lse_1 = softmax_lse(s.student_1);
    r.entropy = softmax_entropy(s.student), r.teacher_entropy = softmax_entropy(s.teacher);
    r.scale = (float)(weight * c.alpha * c.temperature), r.ce_scale = (float)(weight * (1.0 - c.alpha));
    r.target = target;
    r.edge = likeliest_all();
    r.sum_q = r.rest_slope = 0.0f;
}

// The likeliest tokens of both
HOST_DEVICE void distill_likeliest(DistillSums& token, int64_t student, int64_t teacher, int64_t target) {
    token.agree = student == teacher ? 1.0 : 0.0;
    token.right = student == target ? 1.0 : 0.0;
    token.teacher_right = teacher == target ? 1.0 : 0.0;
}

// Takes in the class of the rest; the token's sums but for what distill_likeliest says. Logits: of the target
template <class D>
HOST_DEVICE DistillSums distill_row_end(DistillRow& r, DistillClasses& s, float target_logit,
                                        float target_teacher_logit, double weight, int64_t V, const DistillConfig& c) {
    if (s.rest_count > 0.0) {
        const float log_s = (float)log(s.rest), log_t = (float)log(s.teacher_rest);
        const double q = (double)D::q(log_s, log_t, (float)s.rest, (float)s.teacher_rest, r.beta);
        s.value += (double)D::value(log_s, log_t, (float)s.rest, (float)s.teacher_rest, r.beta);
        s.q += q;
        r.rest_slope = (float)(q / s.rest);
    }
    r.sum_q = (float)s.q;
    DistillSums token;
    token.divergence = s.value;
    token.cross_entropy = -(double)logit_logp(target_logit, 1.0f, r.lse_1);
    token.loss =
        weight * fma(c.alpha * c.temperature * c.temperature, token.divergence, (1.0 - c.alpha) * token.cross_entropy);
    token.teacher_cross_entropy = -(double)distill_log_t(target_teacher_logit, r);
    token.entropy = (double)r.entropy;
    token.teacher_entropy = (double)r.teacher_entropy;
    token.rest_mass = s.teacher_rest;
    token.support = (double)V - s.rest_count;
    token.tokens = 1.0;
    return token;
}

inline bool distill_is_full(const DistillConfig& c, int64_t V) {
    return (c.top_k == 0 || c.top_k == V) && c.top_p >= 1.0;
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

// A piece of a row, in the first cache. One formula a loop: of larger ones g++ 12 vectorizes none.
struct DistillPiece {
    static constexpr int size = 512;
    int v0, n;
    const float *logits, *teacher;      // [n]
    float s[size], t[size], s_1[size];  // probabilities
    float value[size], q[size];         // of the divergence
};

inline void distill_probabilities_cpu(float* p, const float* logits, int n, float inverse_temperature, float lse) {
    INDEPENDENT
    for (int i = 0; i < n; i++) p[i] = exp_f(logit_logp(logits[i], inverse_temperature, lse));
}

// Fills p but for value and s_1
template <class D>
inline void distill_piece_cpu(DistillPiece& p, const float* logits, const float* teacher, int v0, int V,
                              const DistillRow& row) {
    const DistillRow r = row;
    const int n = V - v0 < p.size ? V - v0 : p.size;
    p.v0 = v0, p.n = n, p.logits = logits + v0, p.teacher = teacher + v0;
    distill_probabilities_cpu(p.s, p.logits, n, r.inverse_temperature, r.lse);
    distill_probabilities_cpu(p.t, p.teacher, n, r.inverse_temperature, r.teacher_lse);
    const float *z = p.logits, *u = p.teacher;
    INDEPENDENT
    for (int i = 0; i < n; i++) p.q[i] = D::q(distill_log_s(z[i], r), distill_log_t(u[i], r), p.s[i], p.t[i], r.beta);
}

template <class D, bool FULL>
inline void distill_classes_cpu(DistillClasses& s, DistillPiece& p, const DistillRow& row) {
    const DistillRow r = row;
    const float *z = p.logits, *u = p.teacher;
    const int n = p.n, v0 = p.v0;
    INDEPENDENT
    for (int i = 0; i < n; i++)
        p.value[i] = D::value(distill_log_s(z[i], r), distill_log_t(u[i], r), p.s[i], p.t[i], r.beta);
    float value = 0.0f, q = 0.0f, rest = 0.0f, teacher_rest = 0.0f;
    int rest_count = 0;
#pragma omp simd reduction(+ : value, q, rest, teacher_rest, rest_count)
    for (int i = 0; i < n; i++) {
        bool in = FULL || likeliest_has(r.edge, u[i], v0 + i);
        value += select_f(in, p.value[i], 0.0f);
        q += select_f(in, p.q[i], 0.0f);
        rest += select_f(in, 0.0f, p.s[i]);
        teacher_rest += select_f(in, 0.0f, p.t[i]);
        rest_count += in ? 0 : 1;
    }
    s.value += (double)value, s.q += (double)q;
    s.rest += (double)rest, s.teacher_rest += (double)teacher_rest;
    s.rest_count += (double)rest_count;
}

template <bool FULL>
inline void distill_dlogits_cpu(floatX* dlogits, DistillPiece& p, const DistillRow& row) {
    const DistillRow r = row;
    const bool one = r.inverse_temperature == 1.0f;
    if (!one) distill_probabilities_cpu(p.s_1, p.logits, p.n, 1.0f, r.lse_1);
    const float *s_1 = one ? p.s : p.s_1, *u = p.teacher;
    INDEPENDENT
    for (int i = 0; i < p.n; i++) dlogits[i] = distill_dlogit<FULL>(p.s[i], s_1[i], p.q[i], u[i], p.v0 + i, r);
}

// the lowest index of the largest
inline int64_t largest_index(const float* x, int64_t n) {
    float max = -INFINITY;
#pragma omp simd reduction(max : max)
    for (int64_t i = 0; i < n; i++) max = x[i] > max ? x[i] : max;
    int64_t i = 0;
    while (i < n - 1 && x[i] != max) i++;
    return i;
}

// row: of the block
template <class D, bool FULL>
inline DistillSums distill_row_cpu(const LogitBlock& b, int64_t row, const DistillTokens& tokens,
                                   const DistillConfig& c, const LikeliestEdge& edge) {
    const float *logits = b.logits.row(row), *teacher = b.teacher.row(row);
    const double weight = tokens.weight[b.row0 + row];
    const int target = tokens.targets[b.row0 + row];
    const float inverse_temperature = (float)(1.0 / c.temperature);
    DistillSoftmax s;
    s.student = softmax_row(logits, b.V, inverse_temperature);
    s.teacher = softmax_row(teacher, b.V, inverse_temperature);
    s.student_1 = inverse_temperature == 1.0f ? s.student : softmax_row(logits, b.V, 1.0f);
    DistillRow r;
    distill_row_begin(r, s, weight, target, c);
    r.edge = edge;
    DistillClasses classes;
    DistillPiece p;
    for (int v = 0; v < (int)b.V; v += p.size) {
        distill_piece_cpu<D>(p, logits, teacher, v, (int)b.V, r);
        distill_classes_cpu<D, FULL>(classes, p, r);
    }
    DistillSums token = distill_row_end<D>(r, classes, logits[target], teacher[target], weight, b.V, c);
    distill_likeliest(token, largest_index(logits, b.V), largest_index(teacher, b.V), target);
    if (!b.dlogits.p) return token;
    for (int v = 0; v < (int)b.V; v += p.size) {
        distill_piece_cpu<D>(p, logits, teacher, v, (int)b.V, r);
        distill_dlogits_cpu<FULL>(b.dlogits.row(row) + v, p, r);
    }
    return token;
}

template <class D, bool FULL>
inline void distill_tokens_cpu(DistillSums* token,  // [rows]
                               const LogitBlock& b, const DistillTokens& tokens, const DistillConfig& c,
                               const SampleConfig& support) {
    std::vector<LikeliestEdge> edges(b.rows, likeliest_all());
    if (!FULL) likeliest_edges_cpu(edges.data(), b.teacher, b.rows, support);
#pragma omp parallel for schedule(dynamic, 1) if (worth_threads(b.rows * b.V))
    for (int64_t i = 0; i < b.rows; i++) token[i] = distill_row_cpu<D, FULL>(b, i, tokens, c, edges[i]);
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
// The sum over the block's LM_HEAD_BLOCK threads, for every thread
__device__ inline double distill_block_sum(double x) {
    __shared__ double partial[LM_HEAD_WARPS];
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
    __syncthreads();  // the previous call's reads of partial are over
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0.0;
    for (int w = 0; w < LM_HEAD_WARPS; w++) x += partial[w];
    return x;
}

// The sums over the classes, and the likeliest tokens
template <class D, bool FULL>
__device__ inline DistillClasses distill_classes(const float* logits, const float* teacher, int V, const DistillRow& r,
                                                 uint32_t* first, uint32_t* teacher_first) {
    constexpr int W = Pack128<float>::size;
    float value = 0.0f, q = 0.0f, rest = 0.0f, teacher_rest = 0.0f;
    int rest_count = 0;
    uint64_t best = ~(uint64_t)0, teacher_best = best;
    for (int64_t at = threadIdx.x * W; at < V; at += LM_HEAD_BLOCK * W) {
        const int i = (int)at;
        Pack128<float> z = load_pack(logits, i, V, true), u = load_pack(teacher, i, V, true);
        UNROLL
        for (int k = 0; k < W && i + k < V; k++) {
            float log_s = distill_log_s(z[k], r), log_t = distill_log_t(u[k], r);
            float s = exp_f(log_s), t = exp_f(log_t);
            bool in = FULL || likeliest_has(r.edge, u[k], i + k);
            value += select_f(in, D::value(log_s, log_t, s, t, r.beta), 0.0f);
            q += select_f(in, D::q(log_s, log_t, s, t, r.beta), 0.0f);
            rest += select_f(in, 0.0f, s);
            teacher_rest += select_f(in, 0.0f, t);
            rest_count += in ? 0 : 1;
            uint64_t candidate = sample_candidate(z[k], i + k), teacher_candidate = sample_candidate(u[k], i + k);
            best = candidate < best ? candidate : best;
            teacher_best = teacher_candidate < teacher_best ? teacher_candidate : teacher_best;
        }
    }
    *first = (uint32_t)sample_block_min(best), *teacher_first = (uint32_t)sample_block_min(teacher_best);
    DistillClasses c;
    c.value = distill_block_sum((double)value), c.q = distill_block_sum((double)q);
    if (FULL) return c;
    c.rest = distill_block_sum((double)rest), c.teacher_rest = distill_block_sum((double)teacher_rest);
    c.rest_count = distill_block_sum((double)rest_count);
    return c;
}

template <class D, bool FULL>
__device__ inline void distill_dlogits(floatX* dlogits, const float* logits, const float* teacher, int V,
                                       const DistillRow& r) {
    constexpr int W = Pack128<floatX>::size, F = Pack128<float>::size;
    const bool one = r.inverse_temperature == 1.0f;
    for (int64_t first = threadIdx.x * W; first < V; first += LM_HEAD_BLOCK * W) {
        const int i = (int)first;
        Pack128<floatX> d;
        UNROLL
        for (int j = 0; j < W; j += F) {
            Pack128<float> z = load_pack(logits, i + j, V, true), u = load_pack(teacher, i + j, V, true);
            UNROLL
            for (int k = 0; k < F; k++) {
                float log_s = distill_log_s(z[k], r), log_t = distill_log_t(u[k], r);
                float s = exp_f(log_s), s_1 = one ? s : exp_f(logit_logp(z[k], 1.0f, r.lse_1));
                float q = D::q(log_s, log_t, s, exp_f(log_t), r.beta);
                d[j + k] = distill_dlogit<FULL>(s, s_1, q, u[k], i + j + k, r);
            }
        }
        store_pack(dlogits, i, V, true, d);
    }
}

// Rows begin at multiples of 16 bytes. token, edges: (rows); edges may be null if FULL. grid: rows
template <class D, bool FULL>
__global__ void __launch_bounds__(LM_HEAD_BLOCK)
    distill_loss_kernel(DistillSums* token, LogitBlock b, DistillTokens tokens, DistillConfig c,
                        const LikeliestEdge* edges) {
    __shared__ DistillRow r;
    const int64_t row = blockIdx.x;
    const float *logits = b.logits.row(row), *teacher = b.teacher.row(row), inverse = (float)(1.0 / c.temperature);
    const int V = (int)b.V, target = tokens.targets[b.row0 + row];
    const double weight = tokens.weight[b.row0 + row];
    DistillSoftmax softmax;  // thread 0's
    softmax.student = softmax_row_device(logits, V, inverse, true);
    softmax.teacher = softmax_row_device(teacher, V, inverse, true);
    softmax.student_1 = inverse == 1.0f ? softmax.student : softmax_row_device(logits, V, 1.0f, true);
    if (threadIdx.x == 0) {
        distill_row_begin(r, softmax, weight, target, c);
        if (!FULL) r.edge = edges[row];
    }
    __syncthreads();
    uint32_t first, teacher_first;
    DistillClasses classes = distill_classes<D, FULL>(logits, teacher, V, r, &first, &teacher_first);
    if (threadIdx.x == 0) {  // every thread has read r before the sums over the block
        token[row] = distill_row_end<D>(r, classes, logits[target], teacher[target], weight, V, c);
        distill_likeliest(token[row], first, teacher_first, target);
    }
    __syncthreads();
    if (b.dlogits.p) distill_dlogits<D, FULL>(b.dlogits.row(row), logits, teacher, V, r);
}

// sums += all tokens, one after another; a thread has a member. One block of DISTILL_SUMS threads
__global__ void distill_sums_kernel(double* sums, const double* token, int rows) {
    double sum = sums[threadIdx.x];
    for (int64_t i = 0; i < rows; i++) sum += token[i * DISTILL_SUMS + threadIdx.x];
    sums[threadIdx.x] = sum;
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

// sums as before the first call of a pass
inline void distill_sums_reset(DistillSums* sums, Device dev) { set_zero(sums, sizeof(DistillSums), dev); }

inline void distill_check(const LogitBlock& b, const DistillConfig& c) {
    if (!b.teacher.p) fail("distill_loss: no teacher");
    if (b.rows < 0 || b.V < 1 || b.rows > INT32_MAX || b.V > INT32_MAX / 2)
        fail("distill_loss: bad shape: %lld rows of V %lld (V below 2^30)", (long long)b.rows, (long long)b.V);
    if (!(c.temperature > 0.0) || !std::isfinite(c.temperature))
        fail("distill_loss: temperature %g (must be above 0)", c.temperature);
    if (!(c.alpha >= 0.0 && c.alpha <= 1.0)) fail("distill_loss: alpha %g (must be in [0, 1])", c.alpha);
    if (c.divergence == Divergence::jsd && !(c.beta > 0.0 && c.beta < 1.0))
        fail("distill_loss: beta %g of jsd (must be in (0, 1); its ends are forward_kl and reverse_kl)", c.beta);
    if (c.top_k < 0 || c.top_k > b.V)
        fail("distill_loss: top_k %lld of a vocabulary of %lld: lower --kd_top_k, 0 is all", (long long)c.top_k,
             (long long)b.V);
    if (!(c.top_p > 0.0 && c.top_p <= 1.0)) fail("distill_loss: top_p %g (must be in (0, 1])", c.top_p);
}

// For the rows of a block (lm_head_logits.cuh): its dlogits, unless that is null, and what each token adds to the sums:
// token [rows], on the device
inline void distill_tokens(DistillSums* token, const LogitBlock& b, const DistillTokens& tokens, const DistillConfig& c,
                           Device dev) {
    NVTX_RANGE("distill_loss");
    distill_check(b, c);
    if (b.rows == 0) return;
    const bool full = distill_is_full(c, b.V);
    const SampleConfig support = likeliest_config(b.V, (float)(1.0 / c.temperature), c.top_k, c.top_p, true);
#if HAS_KERNELS
    if (dev.cuda) {
        if (!is_aligned16(b.logits) || !is_aligned16(b.teacher) || !is_aligned16(b.dlogits))
            fail("distill_loss: rows of logits must begin at multiples of 16 bytes (lm_head_logits.cuh pads them)");
        Scratch scratch(b.rows * sizeof(LikeliestEdge) / sizeof(float), dev);
        LikeliestEdge* edges = full ? nullptr : reinterpret_cast<LikeliestEdge*>(scratch.data);
        if (!full) likeliest_edges(edges, b.teacher, b.rows, support, dev);
        divergence_visit(c.divergence, [&](auto divergence) {
            using D = decltype(divergence);
            if (full)
                LAUNCH((distill_loss_kernel<D, true>), (unsigned)b.rows, LM_HEAD_BLOCK, 0, dev.stream, token, b, tokens,
                       c, edges);
            else
                LAUNCH((distill_loss_kernel<D, false>), (unsigned)b.rows, LM_HEAD_BLOCK, 0, dev.stream, token, b,
                       tokens, c, edges);
        });
        return;
    }
#endif
    (void)dev;
    divergence_visit(c.divergence, [&](auto divergence) {
        using D = decltype(divergence);
        if (full) distill_tokens_cpu<D, true>(token, b, tokens, c, support);
        else distill_tokens_cpu<D, false>(token, b, tokens, c, support);
    });
}

// The same, with sums += (on the device)
inline void distill_loss(DistillSums* sums, const LogitBlock& b, const DistillTokens& tokens, const DistillConfig& c,
                         Device dev) {
    distill_check(b, c);
    if (b.rows == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        Scratch scratch(b.rows * sizeof(DistillSums) / sizeof(float), dev);
        DistillSums* token = reinterpret_cast<DistillSums*>(scratch.data);
        distill_tokens(token, b, tokens, c, dev);
        LAUNCH(distill_sums_kernel, 1, DISTILL_SUMS, 0, dev.stream, reinterpret_cast<double*>(sums),
               reinterpret_cast<const double*>(token), (int)b.rows);
        return;
    }
#endif
    std::vector<DistillSums> token(b.rows);
    distill_tokens(token.data(), b, tokens, c, dev);
    for (const DistillSums& t : token)
        distill_sums_add(reinterpret_cast<double*>(sums), reinterpret_cast<const double*>(&t));
}
