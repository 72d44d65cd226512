// Speed of the CUDA operators at the shapes of Qwen2.5-0.5B. `make bench` runs it where there is a GPU:
//   nvcc -std=c++17 -O3 -arch=native -x cu bench/bench_kernels.cpp -o bench_kernels -Xcompiler -fopenmp -lcublasLt
//   ./bench_kernels [--tiny]
// --tiny runs every line once at small shapes and prints no speeds, so that test/simt/ can run it too:
//   g++ -std=c++17 -O1 -fopenmp -DTRAIN_QRL_SIMT -I test/simt bench/bench_kernels.cpp -o bench_kernels
//
// ms      median of 21 calls after 3 warm-up calls, between two events of the stream
// MB      least memory traffic, as the head of the operator's file counts it; of a product, each operand once (`+=`
//         twice); of the attention, each input and output once
// GFLOP   least arithmetic, a multiply-add counting two: the causal half of the attention, and in its backward 5
//         products (the kernels compute 2 of them twice); of the LM head 1 product forward and 3 backward
// GB/s, TFLOP/s   these over ms: what moving or computing more than the least costs counts against the operator
// peak    GB/s in percent of the card's memory bandwidth (memory clock x 2 x bus width)
// lt      speed relative to cuBLASLt's in bf16 (fp32 in an fp32 build) at the same shape in this run; 1 is as fast
// nt      the same relative to matmul_nt, the operator that a quantized weight replaces
//
// Before each call a kernel reads 256 MB, more than any L2 holds, so that operands come from memory as they do in a
// model whose weights are larger. It only reads: lines that a memset had written would be written back during the call.
// It also hides the latency of the launch, but not that of the many launches of the LM head. sum_of_squares brings its
// result to the host, and is charged for it.
#include <algorithm>
#include <cstdio>
#include <functional>
#include "../kernels/adamw.cuh"
#include "../kernels/attention.cuh"
#include "../kernels/embedding.cuh"
#include "../kernels/fake_quant.cuh"
#include "../kernels/linear.cuh"
#include "../kernels/rmsnorm.cuh"
#include "../kernels/rope.cuh"
#include "../kernels/sampling.cuh"
#include "../kernels/swiglu.cuh"
#include "../kernels/global_norm.cuh"
#include "../runtime/open_device.h"
#include "arrays.cuh"

#if HAS_KERNELS
struct Shapes {
    int64_t C = 896, F = 4864, V = 151936, T = 4096, sequences = 8, keys = 512, group = 64;
    int NH = 14, NKV = 2, HD = 64;
    int64_t weights = 1 << 26;  // of adamw, sum_of_squares, fake_quant
    int64_t head_rows = 512, sampled_rows = 256, flush = 1 << 26;
    std::vector<int64_t> decode_rows = {8, 64, 256}, quantized_rows = {8, 64};
};

static Shapes tiny_shapes() {
    Shapes s;
    s.C = 64, s.F = 192, s.V = 300, s.T = 34, s.sequences = 2, s.keys = 300;
    s.NH = 4, s.NKV = 2, s.HD = 16;
    s.weights = 4096, s.head_rows = 3, s.sampled_rows = 2, s.flush = 1024;
    s.decode_rows = {1, 3}, s.quantized_rows = {3};
    return s;
}

struct Row {
    const char* name;
    std::vector<int64_t> shape;
    std::function<void()> run;
    double bytes, flops;
};

// rows[0] is cuBLASLt's and rows[1] matmul_nt, and the others are compared with them
enum Comparison { ALONE, PRODUCTS };

struct Bench {
    Device dev;
    bool tiny = false;
    double peak = 0;  // GB/s, 0 unknown
    Buffer<float> flush;
    Buffer<double> flush_sums;
    cudaEvent_t begin, end;
};

// GB/s
static double peak_bandwidth() {
#if defined(__CUDACC__)
    int kilohertz = 0, bits = 0;
    CUDA_CHECK(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrMemoryClockRate, 0));
    CUDA_CHECK(cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, 0));
    return 2.0 * kilohertz * 1e3 * bits / 8 * 1e-9;
#else
    return 0;
#endif
}

static double milliseconds(Bench& b, const std::function<void()>& run) {
    const int warm_up = b.tiny ? 0 : 3, calls = b.tiny ? 1 : 21;
    std::vector<float> times;
    for (int i = 0; i < warm_up + calls; i++) {
        LAUNCH(sum_of_squares_kernel, (unsigned)b.flush_sums.size, NORM_BLOCK, 0, b.dev.stream, b.flush_sums.data,
               b.flush.data, (int64_t)b.flush.size, true);
        CUDA_CHECK(cudaEventRecord(b.begin, b.dev.stream));
        run();
        CUDA_CHECK(cudaEventRecord(b.end, b.dev.stream));
        CUDA_CHECK(cudaEventSynchronize(b.end));
        float ms;
        CUDA_CHECK(cudaEventElapsedTime(&ms, b.begin, b.end));
        if (i >= warm_up) times.push_back(ms);
    }
    std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
    return times[times.size() / 2];
}

static std::string cell(const char* fmt, double x) { return x > 0 ? format(fmt, x) : "-"; }

static void print_cells(const char* name, const std::string& shape, const std::vector<std::string>& cells) {
    printf("%-34s%-17s", name, shape.c_str());
    for (const std::string& c : cells) printf("%10s", c.c_str());
    printf("\n");
    fflush(stdout);
}

static void measure(Bench& b, const std::vector<Row>& rows, Comparison comparison = ALONE) {
    std::vector<double> ms;
    for (const Row& r : rows) {
        std::string shape;
        for (int64_t n : r.shape) shape += (shape.empty() ? "" : "x") + std::to_string(n);
        ms.push_back(milliseconds(b, r.run));
        if (b.tiny) {
            print_cells(r.name, shape, {"ran"});
            continue;
        }
        double t = ms.back(), bandwidth = r.bytes / t * 1e-6;
        auto relative_to = [&](size_t i) { return comparison == PRODUCTS && ms.size() > i ? ms[i] / t : 0; };
        print_cells(
            r.name, shape,
            {cell("%.4f", t), cell("%.2f", r.bytes * 1e-6), cell("%.2f", r.flops * 1e-9), cell("%.0f", bandwidth),
             cell("%.1f", r.flops / t * 1e-9), cell("%.0f%%", b.peak > 0 ? 100 * bandwidth / b.peak : 0),
             cell("%.2f", relative_to(0)), cell("%.2f", relative_to(1))});
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// the rows of the table

static constexpr double X = sizeof(floatX);

static void bench_embedding(Bench& b, const Shapes& s) {
    const Device dev = b.dev;
    const int64_t T = s.T, C = s.C;
    std::vector<int> ids = indices(T, s.V);
    Buffer<int> tokens = on_device(ids, dev);
    Buffer<floatX> wte = noise<floatX>(s.V * C, dev), x = room<floatX>(T * C, dev);
    Buffer<float> dwte = room<float>(s.V * C, dev);
    std::sort(ids.begin(), ids.end());
    const double distinct = (double)(std::unique(ids.begin(), ids.end()) - ids.begin());
    measure(b, {
                   {"embedding_forward",
                    {T, C},
                    [&] { embedding_forward(x.data, tokens.data, wte.data, T, C, dev); },
                    2 * X * T * C,
                    0},
                   {"embedding_backward",
                    {T, C},
                    [&] { embedding_backward(dwte.data, x.data, tokens.data, T, C, dev); },
                    X * T * C + 8 * distinct * C,
                    0},
               });
}

static void bench_rmsnorm(Bench& b, const Shapes& s) {
    const Device dev = b.dev;
    const int64_t T = s.T, C = s.C;
    const double dweight_blocks = (double)CEIL_DIV(T, rmsnorm_rows_per_block(T));
    Buffer<floatX> x = noise<floatX>(T * C, dev), y = noise<floatX>(T * C, dev), sum = room<floatX>(T * C, dev),
                   n = room<floatX>(T * C, dev), w = noise<floatX>(C, dev);
    Buffer<float> rstd = room<float>(T, dev), dw = room<float>(C, dev);
    measure(b, {
                   {"fused_residual_rmsnorm_forward",
                    {T, C},
                    [&] {
                        fused_residual_rmsnorm_forward(sum.data, n.data, rstd.data, x.data, y.data, w.data, {T, (int)C},
                                                       1e-6f, dev);
                    },
                    4 * X * T * C,
                    0},
                   {"rmsnorm_backward (dinp +=)",
                    {T, C},
                    [&] {
                        rmsnorm_backward(sum.data, dw.data, y.data, x.data, w.data, rstd.data, {T, (int)C}, true, dev);
                    },
                    4 * X * T * C + 8 * dweight_blocks * C,
                    0},
               });
}

static void bench_rope(Bench& b, const Shapes& s) {
    const Device dev = b.dev;
    const int64_t T = s.T, length = T / s.sequences, stride = (s.NH + 2 * s.NKV) * s.HD;
    const int H = s.NH + s.NKV;
    RopeTable table;
    rope_init(table, s.HD, 1e6, false, 1, 1, 1, 1);
    rope_extend(table, (int)length, dev);
    std::vector<int> position((size_t)T);
    for (int64_t t = 0; t < T; t++) position[t] = (int)(t % length);
    Buffer<int> positions = on_device(position, dev);
    Buffer<floatX> qkv = noise<floatX>(T * stride, dev), qk = room<floatX>(T * H * s.HD, dev);
    measure(b, {{"rope_forward",
                 {T, H, s.HD},
                 [&] {
                     rope_forward({qk.data, H * s.HD}, {qkv.data, stride}, positions.data, table, T, H, dev);
                 },
                 2 * X * T * H * s.HD,
                 0}});
}

static void bench_swiglu(Bench& b, const Shapes& s) {
    const Device dev = b.dev;
    const int64_t T = s.T, F = s.F;
    Buffer<floatX> gate_up = noise<floatX>(2 * T * F, dev), h = noise<floatX>(T * F, dev),
                   dgate_up = room<floatX>(2 * T * F, dev);
    measure(b,
            {
                {"swiglu_forward", {T, F}, [&] { swiglu_forward(h.data, gate_up.data, T, F, dev); }, 3 * X * T * F, 0},
                {"swiglu_backward",
                 {T, F},
                 [&] { swiglu_backward(dgate_up.data, h.data, gate_up.data, T, F, dev); },
                 5 * X * T * F,
                 0},
            });
}

static void bench_attention(Bench& b, const Shapes& s) {
    const Device dev = b.dev;
    const int64_t T = s.T, length = T / s.sequences, Q = s.NH * s.HD, KV = s.NKV * s.HD, QKV = Q + 2 * KV;
    const double pairs = (double)s.sequences * length * (length + 1) / 2, heads = s.NH + s.NKV;
    std::vector<int> start;
    for (int64_t i = 0; i <= s.sequences; i++) start.push_back((int)(i * length));
    Buffer<int> starts = on_device(start, dev);
    Buffer<floatX> qkv = noise<floatX>(T * QKV, dev), dqkv = room<floatX>(T * QKV, dev), out = room<floatX>(T * Q, dev),
                   dout = noise<floatX>(T * Q, dev);
    Buffer<float> lse = room<float>(T * s.NH, dev);
    KeyValueRows kv = {qkv.data + Q, qkv.data + Q + KV, QKV, QKV};
    measure(b, {
                   {"attention_forward",
                    {s.sequences, length, s.NH, s.HD},
                    [&] {
                        attention_forward(out.data, lse.data, {qkv.data, QKV}, kv,
                                          {starts.data, nullptr, nullptr, (int)s.sequences, (int)length},
                                          {T, s.NH, s.NKV, s.HD}, dev);
                    },
                    2 * X * T * s.HD * heads,
                    4 * pairs * s.NH * s.HD},
                   {"attention_backward",
                    {s.sequences, length, s.NH, s.HD},
                    [&] {
                        attention_backward({{dqkv.data, QKV}, {dqkv.data + Q, QKV}, {dqkv.data + Q + KV, QKV}},
                                           dout.data, out.data, lse.data, {qkv.data, QKV}, kv,
                                           {starts.data, nullptr, nullptr, (int)s.sequences, (int)length},
                                           {T, s.NH, s.NKV, s.HD}, dev);
                    },
                    4 * X * T * s.HD * heads,
                    10 * pairs * s.NH * s.HD},
               });
}

static void bench_decode(Bench& b, const Shapes& s, int64_t R) {
    const Device dev = b.dev;
    const int64_t Q = s.NH * s.HD, KV = s.NKV * s.HD;
    std::vector<KeyRange> range((size_t)R);
    for (int64_t r = 0; r < R; r++) range[r].row1 = r * s.keys, range[r].n1 = (int)s.keys;
    Buffer<KeyRange> ranges = on_device(range, dev);
    Buffer<floatX> q = noise<floatX>(R * Q, dev), out = room<floatX>(R * Q, dev),
                   k = noise<floatX>(R * s.keys * KV, dev), v = noise<floatX>(R * s.keys * KV, dev);
    Buffer<float> lse = room<float>(R * s.NH, dev);
    KeyValueRows cache = {k.data, v.data, KV, KV};
    measure(b, {{"attention_decode",
                 {R, s.keys, s.NH, s.HD},
                 [&] {
                     attention_decode(out.data, lse.data, {q.data, Q}, KeyValueRows(), cache,
                                      {ranges.data, (int)s.keys}, {R, s.NH, s.NKV, s.HD}, dev);
                 },
                 2 * X * R * s.keys * KV,
                 4.0 * R * s.keys * Q}});
}

static void bench_products(Bench& b, const Shapes& s, int64_t N, int64_t K) {
    const Device dev = b.dev;
    const int64_t M = s.T;
    const double flops = 2.0 * M * N * K, operands = X * (M * K + N * K + M * N);
    Buffer<floatX> a = noise<floatX>(M * K, dev), w = noise<floatX>(N * K, dev), out = noise<floatX>(M * N, dev),
                   da = room<floatX>(M * K, dev);
    Buffer<float> dw = room<float>(N * K, dev);
    const floatX* no_bias = nullptr;
    measure(b,
            {
                {"matmul_nt_any_order (cuBLASLt)",
                 {M, N, K},
                 [&] {
                     matmul_nt_any_order({out.data, N}, {a.data, K}, {w.data, K}, no_bias, M, N, K, dev);
                 },
                 operands,
                 flops},
                {"matmul_nt",
                 {M, N, K},
                 [&] {
                     matmul_nt(Rows{out.data, N}, {a.data, K}, {w.data, K}, no_bias, M, N, K, dev);
                 },
                 operands,
                 flops},
            },
            PRODUCTS);
    measure(b, {
                   {"matmul_nn (cuBLASLt)",
                    {M, N, K},
                    [&] {
                        matmul_nn(Rows{da.data, K}, {out.data, N}, {w.data, K}, M, N, K, false, dev);
                    },
                    operands,
                    flops},
                   {"matmul_tn (cuBLASLt)",
                    {M, N, K},
                    [&] {
                        matmul_tn({dw.data, K}, {out.data, N}, {a.data, K}, M, N, K, dev);
                    },
                    X * (M * N + M * K) + 8.0 * N * K,
                    flops},
               });
}

static void bench_quantized(Bench& b, const Shapes& s, int64_t M, int64_t N, int64_t K) {
    const Device dev = b.dev;
    const double flops = 2.0 * M * N * K, rows = X * (M * K + M * N), weight = X * N * K;
    struct Format {
        const char* name;
        QuantFormat format;
        int bits;
    };
    const Format formats[] = {{"matmul_nt_quantized int8", QuantFormat::integer, 8},
                              {"matmul_nt_quantized int4", QuantFormat::integer, 4},
                              {"matmul_nt_quantized nf4", QuantFormat::nf4, 4},
                              {"matmul_nt_quantized mxfp4", QuantFormat::mxfp4, 4},
                              {"matmul_nt_quantized fp8e4m3", QuantFormat::fp8e4m3, 8}};
    Buffer<floatX> a = noise<floatX>(M * K, dev), w = noise<floatX>(N * K, dev), out = room<floatX>(M * N, dev);
    const std::vector<float> master = numbers<float>(N * K);
    std::vector<PackedCodes> packed;
    for (auto& f : formats) packed.push_back(pack_codes(master, N, K, s.group, f.format, f.bits, dev));
    const floatX* no_bias = nullptr;
    std::vector<Row> table = {
        {"matmul_nt_any_order (cuBLASLt)",
         {M, N, K},
         [&] {
             matmul_nt_any_order({out.data, N}, {a.data, K}, {w.data, K}, no_bias, M, N, K, dev);
         },
         rows + weight,
         flops},
        {"matmul_nt",
         {M, N, K},
         [&] {
             matmul_nt(Rows{out.data, N}, {a.data, K}, {w.data, K}, no_bias, M, N, K, dev);
         },
         rows + weight,
         flops},
    };
    for (size_t i = 0; i < packed.size(); i++) {
        const PackedCodes& p = packed[i];
        table.push_back({formats[i].name,
                         {M, N, K},
                         [&] { matmul_nt_quantized(out.data, N, a.data, K, p.w, no_bias, M, dev); },
                         rows + (double)p.memory.size,
                         flops});
    }
    measure(b, table, PRODUCTS);
}

static void bench_lm_head(Bench& b, const Shapes& s) {
    const Device dev = b.dev;
    const int64_t T = s.head_rows, C = s.C, V = s.V;
    Buffer<int> targets = on_device(indices(T, V), dev);
    Buffer<floatX> hidden = noise<floatX>(T * C, dev), w = noise<floatX>(V * C, dev),
                   dhidden = room<floatX>(T * C, dev);
    Buffer<float> logp = room<float>(T, dev), lse = room<float>(T, dev), entropy = room<float>(T, dev),
                  dlogp = noise<float>(T, dev), dw = room<float>(V * C, dev);
    LmHeadScratch scratch;
    lm_head_scratch_allocate(scratch, T, C, V, true, dev);
    measure(b, {
                   {"lm_head_forward",
                    {T, V, C},
                    [&] {
                        lm_head_forward(logp.data, lse.data, entropy.data,
                                        {hidden.data, w.data, targets.data, T, C, V, 1.0f}, scratch, dev);
                    },
                    X * (T + V) * C,
                    2.0 * T * V * C},
                   {"lm_head_backward",
                    {T, V, C},
                    [&] {
                        lm_head_backward(dhidden.data, dw.data, dlogp.data, lse.data,
                                         {hidden.data, w.data, targets.data, T, C, V, 1.0f}, scratch, dev);
                    },
                    X * (2 * T + V) * C + 8.0 * V * C,
                    6.0 * T * V * C},
               });
}

static void bench_sampling(Bench& b, const Shapes& s) {
    const Device dev = b.dev;
    const int64_t R = s.sampled_rows, V = s.V;
    std::vector<DrawKey> key((size_t)R);
    for (int64_t r = 0; r < R; r++) key[r].sample = (uint32_t)r;
    Buffer<DrawKey> keys = on_device(key, dev);
    Buffer<float> logits = noise<float>(R * V, dev), logps = room<float>(R, dev);
    Buffer<int> tokens = room<int>(R, dev);
    auto row = [&](const char* name, SamplingParams p) {
        return Row{name,
                   {R, V},
                   [&, p] {
                       sample_rows(tokens.data, logps.data, logits.data, {R, V, V}, p, DrawStream(), keys.data, dev);
                   },
                   4.0 * R * V,
                   0};
    };
    measure(b,
            {row("sample_rows", {1.0f, 0, 1.0f, false}), row("sample_rows greedy", {0.0f, 0, 1.0f, false}),
             row("sample_rows gumbel", {1.0f, 0, 1.0f, true}), row("sample_rows top-p 0.95", {1.0f, 0, 0.95f, false}),
             row("sample_rows top-k 50 top-p 0.95", {1.0f, 50, 0.95f, false})});
}

static void bench_weights(Bench& b, const Shapes& s) {
    const Device dev = b.dev;
    const int64_t n = s.weights, groups = n / s.group;
    Buffer<float> w = noise<float>(n, dev), m = room<float>(n, dev), v = room<float>(n, dev),
                  grad = noise<float>(n, dev);
    Buffer<floatX> q = room<floatX>(n, dev);
    Buffer<int8_t> codes = room<int8_t>(n, dev);
    Buffer<Grid> grid = room<Grid>(groups, dev);
    Buffer<int64_t> changed = room<int64_t>(1, dev);
    measure(b, {
                   {"adamw_update",
                    {n},
                    [&] { adamw_update(w.data, m.data, v.data, grad.data, n, 1.0f, AdamWConfig(), 1, dev); },
                    28.0 * n,
                    0},
                   {"sum_of_squares", {n}, [&] { sum_of_squares(grad.data, n, dev); }, 4.0 * n, 0},
                   {"fake_quant_forward int4:g64",
                    {groups, s.group},
                    [&] {
                        fake_quant_forward({q.data, codes.data, grid.data, ScaleState(), changed.data}, w.data,
                                           QuantGroups{groups, s.group}, QuantSpec{QuantFormat::integer, 4}, true, dev);
                    },
                    (6 + X) * n,
                    0},
                   {"fake_quant_backward int4:g64",
                    {groups, s.group},
                    [&] {
                        fake_quant_backward(grad.data, w.data, grid.data, QuantGroups{groups, s.group},
                                            QuantSpec{QuantFormat::integer, 4}, SteRule::clip, dev);
                    },
                    12.0 * n,
                    0},
               });
}

static void bench_all(bool tiny) {
    const Shapes s = tiny ? tiny_shapes() : Shapes();
    Bench b;
    b.dev = open_device("cuda", 0, reinterpret_cast<const void*>(sum_of_partials_kernel));
    b.tiny = tiny;
    b.peak = peak_bandwidth();
    b.flush = room<float>(s.flush, b.dev);
    b.flush_sums = room<double>(CEIL_DIV(s.flush, NORM_CHUNK), b.dev);
    CUDA_CHECK(cudaEventCreate(&b.begin));
    CUDA_CHECK(cudaEventCreate(&b.end));
    Buffer<char> scratch = room<char>(tiny ? 1 << 20 : 128 << 20, b.dev);
    b.dev.scratch->base = scratch.data, b.dev.scratch->size = scratch.size;

    printf("%s%s, %s\n", device_text(b.dev, "").c_str(), (b.peak > 0 ? format(", %.0f GB/s", b.peak) : "").c_str(),
           sizeof(floatX) == 2 ? "bf16" : "fp32");
    print_cells("", "", {"ms", "MB", "GFLOP", "GB/s", "TFLOP/s", "peak", "lt", "nt"});
    bench_embedding(b, s);
    bench_rmsnorm(b, s);
    bench_rope(b, s);
    bench_swiglu(b, s);
    bench_attention(b, s);
    for (int64_t rows : s.decode_rows) bench_decode(b, s, rows);
    bench_products(b, s, s.F, s.C);
    bench_products(b, s, s.C, s.F);
    for (int64_t rows : s.quantized_rows) {
        bench_quantized(b, s, rows, s.F, s.C);
        bench_quantized(b, s, rows, s.C, s.F);
    }
    bench_lm_head(b, s);
    bench_sampling(b, s);
    bench_weights(b, s);

    CUDA_CHECK(cudaEventDestroy(b.begin));
    CUDA_CHECK(cudaEventDestroy(b.end));
    cublaslt_release();
    CUDA_CHECK(cudaStreamDestroy(b.dev.stream));
}

int main(int argc, char** argv) {
    const bool tiny = argc == 2 && strcmp(argv[1], "--tiny") == 0;
    int devices = 0;
    if (argc > 1 && !tiny) {
        fprintf(stderr, "bench_kernels: the only option is --tiny\n");
        return 2;
    }
#if defined(TRAIN_QRL_SIMT)
    const bool gpu = tiny;  // simulated: for small shapes
#else
    const bool gpu = true;
#endif
    if (!gpu || cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        printf("CUDA operators: not measured, no NVIDIA GPU\n");
        return 0;
    }
    try {
        bench_all(tiny);
    } catch (const Error& e) {
        fprintf(stderr, "bench_kernels: %s\n", e.what());
        return e.exit_code;
    }
    return 0;
}
#else
int main() {
    printf("CUDA operators: not measured, built without CUDA\n");
    return 0;
}
#endif
