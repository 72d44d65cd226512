// The operators of the CPU path, one by one, through the launchers that the model calls, at a model's shapes. The least
// arithmetic and traffic are counted as the heads of the operators' files count them.
//   products   out [M,N] = x [M,K] w [N,K]^T (nt; packed: w laid out before, as generation has it), dx = dout w (nn) and
//              dw += dout^T x (tn), in fp32 and bf16, whatever the build's own precision. The weights take turns, as the
//              layers of a model do, so that a product of few rows reads them from memory if the model would.
//   x nt       of quantized weights: speed relative to the packed product of the same rows
#pragma once
#include <functional>
#include "../quant.cuh"
#include "../kernels/adamw.cuh"
#include "../kernels/attention.cuh"
#include "../kernels/embedding.cuh"
#include "../kernels/fake_quant.cuh"
#include "../kernels/global_norm.cuh"
#include "../kernels/linear.cuh"
#include "../kernels/lm_head.cuh"
#include "../kernels/rmsnorm.cuh"
#include "../kernels/rope.cuh"
#include "../kernels/sampling.cuh"
#include "../kernels/swiglu.cuh"
#include "../model/batch.cuh"
#include "../model/config.h"
#include "arrays.cuh"
#include "measure.h"

struct OperatorBench {
    std::string model;
    ModelConfig config;
    double seconds = 0.1;
    std::function<void(const BenchRow&)> report;
    // sizes that are no model's; a small model's are smaller
    int64_t tokens = 2048, head_rows = 256, sampled_rows = 64, keys = 512, weights = 1 << 25, rotated_bytes = 256 << 20;
    std::vector<int64_t> rows = {1, 8, 64, 256, 1024};
    int64_t C() const { return config.hidden_size; }
    int64_t F() const { return config.intermediate_size; }
    int64_t V() const { return config.vocab_size; }
    int NH() const { return config.num_attention_heads; }
    int NKV() const { return config.num_key_value_heads; }
    int HD() const { return config.head_dim; }
    int64_t Q() const { return (int64_t)NH() * HD(); }
    int64_t KV() const { return (int64_t)NKV() * HD(); }
    int64_t QKV() const { return Q() + 2 * KV(); }
};

static constexpr double FLOATX_BYTES = sizeof(floatX);
static constexpr BenchUnit FLOATX_UNIT = sizeof(floatX) == 2 ? BenchUnit::bf16 : BenchUnit::fp32;

inline BenchTiming bench_operator(const OperatorBench& b, const std::string& name, const std::vector<int64_t>& shape,
                                  const BenchWork& work, const std::function<void()>& call,
                                  const std::vector<std::pair<std::string, double>>& more = {}) {
    const BenchRow row = {"operators", b.model, name, shape, bench_time(b.seconds, 3, call), {work}, more};
    b.report(row);
    return row.time;
}

inline BenchWork memory_work(double read, double written) { return {0.0, BenchUnit::fp32, read, written, 0.0}; }

// ---------------------------------------------------------------------------------------------------------------------
// products

// how many weights of so many bytes take turns: as many as the model has layers, within the memory set aside for it
inline int64_t rotated_copies(const OperatorBench& b, double bytes) {
    const int64_t fit = (int64_t)((double)b.rotated_bytes / bytes);
    return std::max<int64_t>(1, std::min<int64_t>(fit, b.config.num_hidden_layers));
}

template <class T>
struct BenchWeights {
    int64_t N, K;
    std::vector<Buffer<T>> plain;
    std::vector<PackedWeight<T>> packed;
    double bytes() const { return (double)(plain.size() * N * K * sizeof(T)); }
};

template <class T>
BenchWeights<T> bench_weights(const OperatorBench& b, int64_t N, int64_t K) {
    BenchWeights<T> w = {N, K, {}, {}};
    w.plain.push_back(noise<T>(N * K, Device()));
    for (int64_t i = rotated_copies(b, (double)(N * K * sizeof(T))); i > 1; i--) {
        w.plain.push_back(room<T>(N * K, Device()));
        memcpy(w.plain.back().data, w.plain[0].data, w.plain[0].bytes());
    }
    for (const Buffer<T>& p : w.plain) w.packed.push_back(pack_weight_nt(p.data, N, K));
    return w;
}

template <class T>
void bench_products_of(const OperatorBench& b, const BenchWeights<T>& w, int64_t M) {
    const int64_t N = w.N, K = w.K;
    const Buffer<T> x = noise<T>(M * K, Device()), dout = noise<T>(M * N, Device());
    Buffer<T> out = room<T>(M * N, Device()), dx = room<T>(M * K, Device());
    Buffer<float> dw = room<float>(N * K, Device());
    const double X = sizeof(T), all = X * (double)(M * K + N * K + M * N);
    const std::string type = X == 2 ? " bf16" : " fp32";
    BenchWork work = {2.0 * (double)(M * N * K), X == 2 ? BenchUnit::bf16 : BenchUnit::fp32};
    size_t turn = 0;
    auto next = [&] { return turn = (turn + 1) % w.plain.size(); };
    work.read = X * (double)(M * K + N * K), work.written = X * (double)(M * N), work.resident = all + w.bytes();
    bench_operator(b, "product nt" + type, {M, N, K}, work,
                   [&] { gemm_nt(out.data, x.data, w.plain[next()].data, nullptr, M, N, K); });
    bench_operator(b, "product nt packed" + type, {M, N, K}, work,
                   [&] { gemm_nt_packed(out.data, x.data, w.packed[next()], nullptr, M); });
    work.read = X * (double)(M * N + N * K), work.written = X * (double)(M * K);
    bench_operator(b, "product nn" + type, {M, N, K}, work,
                   [&] { gemm_nn(dx.data, dout.data, w.plain[next()].data, M, N, K); });
    work.read = X * (double)(M * N + M * K) + 4.0 * (double)(N * K), work.written = 4.0 * (double)(N * K);
    work.resident = 0;
    bench_operator(b, "product tn" + type, {M, N, K}, work, [&] { gemm_tn(dw.data, dout.data, x.data, M, N, K); });
}

template <class T>
void bench_products(const OperatorBench& b) {
    for (auto [N, K] : {std::pair(b.QKV(), b.C()), std::pair(2 * b.F(), b.C()), std::pair(b.C(), b.F())}) {
        const BenchWeights<T> w = bench_weights<T>(b, N, K);
        for (int64_t M : b.rows) bench_products_of(b, w, M);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// products with packed codes

// copies of the codes, which take turns
struct BenchCodes {
    PackedCodes first;
    std::vector<Buffer<char>> memory;
    std::vector<QuantizedWeight> w;
};

inline BenchCodes bench_codes(const OperatorBench& b, const Quantizer& f, const std::vector<float>& master, int64_t N,
                              int64_t K) {
    BenchCodes c;
    c.first = pack_codes(master, N, K, f.group, f.spec.format, f.spec.bits, Device());
    c.w.push_back(c.first.w);
    for (int64_t i = rotated_copies(b, (double)c.first.memory.bytes()); i > 1; i--) {
        c.memory.push_back(room<char>((int64_t)c.first.memory.size, Device()));
        memcpy(c.memory.back().data, c.first.memory.data, c.first.memory.size);
        c.w.push_back(c.first.w);
        quantized_weight_place(c.w.back(), c.memory.back().data);
    }
    return c;
}

inline void bench_quantized_products(const OperatorBench& b, int64_t N, int64_t K) {
    const std::string group = K % 64 == 0 ? ":g64" : ":g32";
    std::vector<Quantizer> formats;
    for (const std::string& text : {"int8" + group, "int4" + group, "int3" + group, "nf4" + group, std::string("mxfp4"),
                                    std::string("nvfp4"), "fp8e4m3" + group})
        formats.push_back(quantizer_parse(text, "weights"));
    const BenchWeights<floatX> plain = bench_weights<floatX>(b, N, K);
    const std::vector<float> master = numbers<float>(N * K);
    std::vector<BenchCodes> codes;
    for (const Quantizer& f : formats) codes.push_back(bench_codes(b, f, master, N, K));
    const floatX* no_bias = nullptr;
    for (int64_t M : b.rows) {
        if (M > 64) break;  // of decoding
        const Buffer<floatX> x = noise<floatX>(M * K, Device());
        Buffer<floatX> out = room<floatX>(M * N, Device());
        size_t turn = 0;
        const double whole =
            bench_time(b.seconds, 3, [&] {
                gemm_nt_packed(out.data, x.data, plain.packed[turn++ % plain.packed.size()], no_bias, M);
            }).best;
        for (size_t i = 0; i < codes.size(); i++) {
            const BenchCodes& c = codes[i];
            const double bytes = (double)c.first.memory.size, rows = FLOATX_BYTES * (double)(M * K);
            const BenchWork work = {2.0 * (double)(M * N * K), FLOATX_UNIT, bytes + rows,
                                    FLOATX_BYTES * (double)(M * N), bytes * (double)c.w.size()};
            BenchRow row = {"operators", b.model, "product quantized " + quantizer_text(formats[i]),
                            {M, N, K},   {},      {work}};
            row.time = bench_time(b.seconds, 3, [&] {
                matmul_nt_quantized(out.data, N, x.data, K, c.w[turn++ % c.w.size()], no_bias, M, Device());
            });
            row.more.push_back({"times_nt_packed", whole / row.time.best});
            b.report(row);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// attention

inline void bench_attention(const OperatorBench& b, int64_t sequences) {
    const int64_t T = b.tokens, length = T / sequences, Q = b.Q(), KV = b.KV(), QKV = b.QKV();
    const double pairs = (double)sequences * (double)length * (double)(length + 1) / 2, X = FLOATX_BYTES;
    Batch batch;
    const std::vector<int> tokens((size_t)length);
    for (int64_t s = 0; s < sequences; s++) batch_add_sequence(batch, tokens.data(), (int)length);
    const Buffer<floatX> qkv = noise<floatX>(T * QKV, Device()), dout = noise<floatX>(T * Q, Device());
    Buffer<floatX> out = room<floatX>(T * Q, Device()), dqkv = room<floatX>(T * QKV, Device());
    Buffer<float> lse = room<float>(T * b.NH(), Device());
    const KeyValueRows kv = {qkv.data + Q, qkv.data + Q + KV, QKV, QKV};
    const PackedSequences packed = {batch.starts.data(), nullptr, nullptr, (int)sequences, (int)length, batch.ranges.data()};
    const AttentionShape shape = {T, b.NH(), b.NKV(), b.HD()};
    const std::vector<int64_t> shown = {sequences, length, b.NH(), b.HD()};
    const double qo = X * (double)(T * Q), kv_bytes = 2 * X * (double)(T * KV);
    bench_operator(b, "attention forward", shown, {4 * pairs * (double)Q, BenchUnit::fp32, qo + kv_bytes, qo, 0.0},
                   [&] {
                       attention_forward(out.data, lse.data, {qkv.data, QKV}, kv, packed, shape, Device());
                   });
    bench_operator(b, "attention backward", shown,
                   {10 * pairs * (double)Q, BenchUnit::fp32, 3 * qo + kv_bytes, qo + kv_bytes, 0.0}, [&] {
                       attention_backward({{dqkv.data, QKV}, {dqkv.data + Q, QKV}, {dqkv.data + Q + KV, QKV}},
                                          dout.data, out.data, lse.data, {qkv.data, QKV}, kv, packed, shape, Device());
                   });
}

inline void bench_attention_decode(const OperatorBench& b, int64_t R) {
    const int64_t keys = b.keys, Q = b.Q(), KV = b.KV();
    std::vector<KeyRange> ranges((size_t)R);
    for (int64_t r = 0; r < R; r++) ranges[r].row1 = r * keys, ranges[r].n1 = (int)keys;
    const Buffer<floatX> q = noise<floatX>(R * Q, Device()), k = noise<floatX>(R * keys * KV, Device()),
                         v = noise<floatX>(R * keys * KV, Device());
    Buffer<floatX> out = room<floatX>(R * Q, Device());
    Buffer<float> lse = room<float>(R * b.NH(), Device());
    const KeyValueRows cache = {k.data, v.data, KV, KV};
    const double rows = FLOATX_BYTES * (double)(R * Q);
    bench_operator(
        b, "attention decode", {R, keys, b.NH(), b.HD()},
        {4.0 * (double)(R * keys * Q), BenchUnit::fp32, rows + 2 * FLOATX_BYTES * (double)(R * keys * KV), rows, 0.0},
        [&] {
            attention_decode(out.data, lse.data, {q.data, Q}, KeyValueRows(), cache, {ranges.data(), (int)keys},
                             {R, b.NH(), b.NKV(), b.HD()}, Device());
        });
}

// ---------------------------------------------------------------------------------------------------------------------
// the others

inline void bench_pointwise(const OperatorBench& b) {
    const Device dev;
    const int64_t T = b.tokens, C = b.C(), F = b.F(), H = b.NH() + b.NKV();
    const double X = FLOATX_BYTES, tc = X * (double)(T * C), tf = X * (double)(T * F),
                 qk = X * (double)(T * H * b.HD());
    const Buffer<floatX> x = noise<floatX>(T * C, dev), y = noise<floatX>(T * C, dev), w = noise<floatX>(C, dev),
                         gate_up = noise<floatX>(2 * T * F, dev), qkv = noise<floatX>(T * b.QKV(), dev);
    Buffer<floatX> sum = room<floatX>(T * C, dev), n = room<floatX>(T * C, dev), act = room<floatX>(T * F, dev),
                   dgate_up = room<floatX>(2 * T * F, dev), rotated = room<floatX>(T * H * b.HD(), dev);
    Buffer<float> rstd = room<float>(T, dev), dw = room<float>(C, dev);
    bench_operator(b, "fused_residual_rmsnorm forward", {T, C}, memory_work(2 * tc, 2 * tc), [&] {
        fused_residual_rmsnorm_forward(sum.data, n.data, rstd.data, x.data, y.data, w.data, {T, (int)C}, 1e-6f, dev);
    });
    bench_operator(b, "rmsnorm backward", {T, C}, memory_work(3 * tc, tc), [&] {
        rmsnorm_backward(sum.data, dw.data, y.data, x.data, w.data, rstd.data, {T, (int)C}, true, dev);
    });
    bench_operator(b, "swiglu forward", {T, F}, memory_work(2 * tf, tf),
                   [&] { swiglu_forward(act.data, gate_up.data, T, F, dev); });
    bench_operator(b, "swiglu backward", {T, F}, memory_work(3 * tf, 2 * tf),
                   [&] { swiglu_backward(dgate_up.data, act.data, gate_up.data, T, F, dev); });
    RopeTable table;
    rope_init(table, b.HD(), b.config.rope_theta, false, 1, 1, 1, 1);
    rope_extend(table, (int)b.keys);
    std::vector<int> positions((size_t)T);
    for (int64_t t = 0; t < T; t++) positions[t] = (int)(t % b.keys);
    bench_operator(b, "rope forward", {T, H, b.HD()}, memory_work(qk, qk), [&] {
        rope_forward({rotated.data, H * b.HD()}, {qkv.data, b.QKV()}, positions.data(), table, T, (int)H, dev);
    });
}

inline void bench_embedding(const OperatorBench& b) {
    const Device dev;
    const int64_t T = b.tokens, C = b.C();
    const std::vector<int> tokens = indices(T, b.V());
    const Buffer<floatX> wte = noise<floatX>(b.V() * C, dev);
    Buffer<floatX> x = room<floatX>(T * C, dev);
    Buffer<float> dwte = room<float>(b.V() * C, dev);
    const double tc = FLOATX_BYTES * (double)(T * C);
    std::vector<int> ids = tokens;
    std::sort(ids.begin(), ids.end());
    const double distinct = 4.0 * (double)C * (double)(std::unique(ids.begin(), ids.end()) - ids.begin());
    bench_operator(b, "embedding forward", {T, C}, memory_work(tc, tc),
                   [&] { embedding_forward(x.data, tokens.data(), wte.data, T, C, dev); });
    bench_operator(b, "embedding backward", {T, C}, memory_work(tc + distinct, distinct),
                   [&] { embedding_backward(dwte.data, x.data, tokens.data(), T, C, dev); });
}

inline void bench_lm_head(const OperatorBench& b) {
    const Device dev;
    const int64_t T = b.head_rows, C = b.C(), V = b.V();
    const std::vector<int> targets = indices(T, V);
    const Buffer<floatX> hidden = noise<floatX>(T * C, dev), w = noise<floatX>(V * C, dev);
    Buffer<floatX> dhidden = room<floatX>(T * C, dev);
    const Buffer<float> dlogp = noise<float>(T, dev);
    Buffer<float> logp = room<float>(T, dev), lse = room<float>(T, dev), entropy = room<float>(T, dev),
                  dw = room<float>(V * C, dev);
    LmHeadScratch scratch;
    lm_head_scratch_allocate(scratch, T, C, V, true, dev);
    const LmHeadInputs in = {hidden.data, w.data, targets.data(), T, C, V, 1.0f};
    const double product = 2.0 * (double)(T * V * C), X = FLOATX_BYTES, vc = (double)(V * C), tc = X * (double)(T * C);
    bench_operator(b, "lm_head forward", {T, V, C}, {product, FLOATX_UNIT, tc + X * vc, 12.0 * (double)T, 0.0},
                   [&] { lm_head_forward(logp.data, lse.data, entropy.data, in, scratch, dev); });
    bench_operator(b, "lm_head backward", {T, V, C}, {2 * product, FLOATX_UNIT, tc + (X + 4) * vc, tc + 4 * vc, 0.0},
                   [&] { lm_head_backward(dhidden.data, dw.data, dlogp.data, lse.data, in, scratch, dev); });
}

inline void bench_sampling(const OperatorBench& b) {
    const int64_t R = b.sampled_rows, V = b.V();
    std::vector<DrawKey> keys((size_t)R);
    for (int64_t r = 0; r < R; r++) keys[r].sample = (uint32_t)r;
    const Buffer<float> logits = noise<float>(R * V, Device());
    Buffer<float> logps = room<float>(R, Device());
    Buffer<int> tokens = room<int>(R, Device());
    const std::pair<const char*, SamplingParams> ways[] = {{"sample", {1.0f, 0, 1.0f, false}},
                                                           {"sample greedy", {0.0f, 0, 1.0f, false}},
                                                           {"sample gumbel", {1.0f, 0, 1.0f, true}},
                                                           {"sample top-p 0.95", {1.0f, 0, 0.95f, false}},
                                                           {"sample top-k 50", {1.0f, 50, 1.0f, false}}};
    for (const auto& way : ways)
        bench_operator(b, way.first, {R, V}, memory_work(4.0 * (double)(R * V), 0.0), [&] {
            sample_rows(tokens.data, logps.data, logits.data, {R, V, V}, way.second, DrawStream(), keys.data(),
                        Device());
        });
}

inline void bench_weight_operators(const OperatorBench& b) {
    const Device dev;
    const int64_t n = b.weights, group = 64, groups = n / group;
    const double N = (double)n;
    Buffer<float> w = noise<float>(n, dev), m = room<float>(n, dev), v = room<float>(n, dev),
                  grad = noise<float>(n, dev);
    Buffer<floatX> q = room<floatX>(n, dev);
    Buffer<int8_t> codes = room<int8_t>(n, dev);
    Buffer<Grid> grid = room<Grid>(groups, dev);
    Buffer<int64_t> changed = room<int64_t>(1, dev);
    const QuantSpec int4 = quantizer_parse("int4:g64", "weights").spec;
    bench_operator(b, "adamw", {n}, memory_work(16 * N, 12 * N),
                   [&] { adamw_update(w.data, m.data, v.data, grad.data, n, 1.0f, AdamWConfig(), 1, dev); });
    bench_operator(b, "global norm", {n}, memory_work(4 * N, 0), [&] { sum_of_squares(grad.data, n, dev); });
    bench_operator(b, "convert fp32 to working weights", {n}, memory_work(4 * N, FLOATX_BYTES * N),
                   [&] { convert_forward(q.data, w.data, n, dev); });
    bench_operator(b, "fake_quant int4:g64", {groups, group}, memory_work(5 * N, (1 + FLOATX_BYTES) * N), [&] {
        fake_quant_forward({q.data, codes.data, grid.data, ScaleState(), changed.data}, w.data,
                           QuantGroups{groups, group}, int4, true, dev);
    });
}

inline void bench_operators(const OperatorBench& b) {
    bench_products<float>(b);
    bench_products<bf16>(b);
    bench_quantized_products(b, 2 * b.F(), b.C());
    bench_quantized_products(b, b.C(), b.F());
    for (int64_t sequences : {8, 1}) bench_attention(b, sequences);
    for (int64_t R : {8, 64}) bench_attention_decode(b, R);
    bench_pointwise(b);
    bench_embedding(b);
    bench_lm_head(b);
    bench_sampling(b);
    bench_weight_operators(b);
}
