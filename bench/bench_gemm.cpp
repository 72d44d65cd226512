// Speed of kernels/cpu/gemm.h at the shapes of the embedded model, SmolLM-135M (C 576, V 49152) and Qwen2.5-0.5B (C
// 896, F 4864).
//   g++ -std=c++17 -O3 -march=native -fopenmp bench/bench_gemm.cpp -o bench_gemm && ./bench_gemm [seconds for each
//   number]
// A number is the best of several calls, in GFLOP/s, one multiply-add counting two. `tile` is the register tile alone
// on operands in L1, on as many threads: what the blocking above it could reach at most.
#include "../kernels/cpu/gemm_quantized.h"
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

static double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// the shortest of the calls of f that fit in `budget` seconds, three at least
template <class F>
static double best_time(double budget, F f) {
    double best = 1e30, start = seconds();
    for (int calls = 0; calls < 3 || seconds() - start < budget; calls++) {
        double t = seconds();
        f();
        t = seconds() - t;
        best = t < best ? t : best;
    }
    return best;
}

template <class T>
static std::vector<T> numbers(int64_t n) {
    std::vector<T> x((size_t)n);
    uint32_t state = 1;
    for (T& e : x) {
        state = state * 1664525u + 1013904223u;
        e = T((float)(state >> 8) * (2.0f / 16777216.0f) - 1.0f);
    }
    return x;
}

static int thread_count() {
#if defined(_OPENMP)
    return omp_get_max_threads();
#else
    return 1;
#endif
}

// GFLOP/s of the full tile with both operands in L1, all threads together
template <class T>
static double tile_speed(double budget) {
    const GemmKernels& k_ = gemm_kernels();
    const GemmKind kind = gemm_kind<T, T>();
    const int mr = k_.mr[kind], nv = k_.panel_vectors[sizeof(T) == 4], nr = nv * k_.vf;
    const int64_t steps = 128, repeat = 2000;  // 24 KB of B at 48 columns
    double best = best_time(budget, [&] {
#if defined(_OPENMP)
#pragma omp parallel
#endif
        {
            alignas(64) float tile[GEMM_MAX_MR * GEMM_MAX_NR];
            alignas(64) uint32_t a[GEMM_MAX_MR * 2 * steps] = {}, b[GEMM_MAX_NR * steps] = {};
            for (int64_t i = 0; i < repeat; i++)
                k_.tile[kind][0](tile, (const char*)a, 8 * steps, b, steps, false, mr, nv);
        }
    });
    const double k = (double)steps * (sizeof(T) == 2 ? 2 : 1);
    return 2.0 * mr * nr * k * repeat * thread_count() / best * 1e-9;
}

template <class T>
static void bench(const char* type, double budget) {
    const int64_t shapes[][3] = {{64, 128, 128},    {64, 384, 128},   {512, 384, 128},   {1024, 768, 384},
                                 {1, 576, 576},     {64, 576, 576},   {64, 1536, 576},   {1024, 1536, 576},
                                 {4096, 576, 1536}, {1, 49152, 576},  {64, 49152, 576},  {64, 4864, 896},
                                 {512, 4864, 896},  {512, 896, 4864}, {1024, 1024, 1024}};
    printf("\n%s, tile %.0f GFLOP/s\n", type, tile_speed<T>(budget));
    printf("%6s %6s %6s %8s %8s %8s %8s\n", "M", "N", "K", "nt", "packed", "nn", "tn");
    for (auto& s : shapes) {
        const int64_t M = s[0], N = s[1], K = s[2];
        const auto X = numbers<T>(M * K), W = numbers<T>(N * K), dY = numbers<T>(M * N);
        std::vector<T> Y((size_t)(M * N)), dX((size_t)(M * K));
        std::vector<float> dW((size_t)(N * K));
        const PackedWeight<T> packed = pack_weight_nt(W.data(), N, K);
        const double gflop = 2e-9 * (double)M * (double)N * (double)K;
        double nt = best_time(budget, [&] { gemm_nt(Y.data(), X.data(), W.data(), nullptr, M, N, K); });
        double pk = best_time(budget, [&] { gemm_nt_packed(Y.data(), X.data(), packed, nullptr, M); });
        double nn = best_time(budget, [&] { gemm_nn(dX.data(), dY.data(), W.data(), M, N, K); });
        double tn = best_time(budget, [&] { gemm_tn(dW.data(), dY.data(), X.data(), M, N, K); });
        printf("%6lld %6lld %6lld %8.0f %8.0f %8.0f %8.0f\n", (long long)M, (long long)N, (long long)K, gflop / nt,
               gflop / pk, gflop / nn, gflop / tn);
    }
}

// Decoding: the product with packed codes against the product with the laid-out working weight, time over time, below 1
// is faster. The two take turns, both warm.
static void bench_quantized(double budget) {
    struct Format {
        const char* name;
        QuantFormat format;
        int bits;
        int64_t group;
        bool symmetric;
    };
    const Format formats[] = {
        {"int8", QuantFormat::integer, 8, 64, true},    {"int4", QuantFormat::integer, 4, 64, true},
        {"int4a", QuantFormat::integer, 4, 64, false},  {"int3", QuantFormat::integer, 3, 64, true},
        {"int2", QuantFormat::integer, 2, 64, true},    {"nf4", QuantFormat::nf4, 4, 64, true},
        {"mxfp4", QuantFormat::mxfp4, 4, 32, true},     {"nvfp4", QuantFormat::nvfp4, 4, 16, true},
        {"fp8e4m3", QuantFormat::fp8e4m3, 8, 64, true}, {"fp8e5m2", QuantFormat::fp8e5m2, 8, 64, true}};
    const int64_t shapes[][2] = {{256, 128}, {1152, 896}, {896, 896}, {9728, 896}, {896, 4864}};
    printf("\nproduct with packed codes / with packed %s weight, time over time\n", PRECISION_NAME);
    printf("%6s %6s %6s %8s", "M", "N", "K", "GFLOP/s");
    for (const Format& f : formats) printf(" %8s", f.name);
    printf("\n");
    for (auto& s : shapes) {
        const int64_t N = s[0], K = s[1];
        const auto W = numbers<floatX>(N * K);
        const PackedWeight<floatX> packed = pack_weight_nt(W.data(), N, K);
        std::vector<std::vector<char>> memory;
        std::vector<QuantizedWeight> quantized;
        for (const Format& f : formats) {
            QuantSpec q;
            q.format = f.format, q.bits = f.bits, q.symmetric = f.symmetric;
            const float t = 448.0f * 6.0f;
            std::vector<Grid> grid((size_t)(N * K / f.group));
            std::vector<int8_t> codes((size_t)(N * K));
            for (int64_t i = 0; i < N * K; i++) {
                Grid& g = grid[(size_t)(i / f.group)];
                if (i % f.group == 0) g = quant_grid(q, -1.0f, 1.0f, t, 1.0f);
                codes[(size_t)i] = (int8_t)quant_code(q, (float)W[(size_t)i], g);
            }
            QuantizedWeight w = quantized_weight(q, quantized_storage(q, false), {N}, K, f.group, WeightLayout::panels);
            memory.emplace_back(quantized_weight_bytes(w) + 64);
            quantized_weight_place(w, (char*)(((uintptr_t)memory.back().data() + 63) / 64 * 64));
            QuantizedSources from;
            from.part[0].codes = codes.data(), from.part[0].grid = grid.data(), from.part[0].tensor = &t;
            quantized_weight_pack(w, from, Device());
            quantized.push_back(w);
        }
        for (int64_t M : {1, 8, 64}) {
            const auto X = numbers<floatX>(M * K);
            std::vector<floatX> Y((size_t)(M * N));
            double first = 0;
            std::vector<double> ratio;
            for (const QuantizedWeight& w : quantized) {
                double plain = 1e30, codes = 1e30;
                for (int turn = 0; turn < 4; turn++) {
                    plain = std::min(
                        plain, best_time(budget / 4, [&] { gemm_nt_packed(Y.data(), X.data(), packed, nullptr, M); }));
                    codes = std::min(
                        codes, best_time(budget / 4, [&] { gemm_nt_quantized(Y.data(), X.data(), w, nullptr, M); }));
                }
                if (first == 0) first = plain;
                ratio.push_back(codes / plain);
            }
            printf("%6lld %6lld %6lld %8.1f", (long long)M, (long long)N, (long long)K,
                   2e-9 * (double)M * (double)N * (double)K / first);
            for (double r : ratio) printf(" %8.2f", r);
            printf("\n");
        }
    }
}

int main(int argc, char** argv) {
    const double budget = argc > 1 ? atof(argv[1]) : 0.02;
    printf("%s, %d threads\n", cpu_isa_name(cpu_isa()), thread_count());
    bench_quantized(budget);
    bench<bf16>("bf16", budget);
    bench<float>("float", budget);
    return 0;
}
