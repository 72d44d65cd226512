// Attention on the CPU (kernels/cpu/attention.h) with the loops of each instruction set that this CPU has: against
// float64, and that a token's bits are the same in a batch of whole sequences, behind a prefix that others share, decoded
// over two places and over codes, in any tile and for any number of threads.
#include "../kernels/attention.cuh"
#include "attention_reference.h"

// A family: a parent of length[0] rows, and sequences that go on from it
typedef std::vector<int> Family;

struct Case {
    std::vector<Family> families;
    int NH, NKV, HD;
    float scale;  // of q and k
};

static std::vector<Case> cases() {
    return {
        {{{1}}, 1, 1, 1, 1.0f},
        {{{3}, {1}, {2}}, 2, 1, 2, 1.0f},
        {{{1, 2, 1}, {9}}, 6, 2, 7, 1.0f},
        {{{17, 5, 70, 1}, {33}}, 4, 4, 16, 2.0f},
        {{{70, 64, 66}, {5}}, 4, 2, 64, 1.0f},
        {{{300}}, 3, 1, 8, 1.0f},
        {{{65, 3}, {64}, {80, 40, 1}}, 9, 3, 33, 1.0f},
        {{{20}}, 14, 1, 130, 1.0f},  // more heads in a group than rows in a tile
        {{{70, 66, 30}}, 7, 1, 96, 1.0f},
        {{{40, 2}}, 2, 2, 256, 4.0f},
        {{{48, 50}}, 2, 1, 32, 30.0f},  // scores of several hundred: a softmax near one-hot
    };
}

static std::vector<CpuIsa> instruction_sets() {
    std::vector<CpuIsa> all;
    for (CpuIsa isa : {CpuIsa::portable, CpuIsa::avx2, CpuIsa::avx512, CpuIsa::avx512_bf16, CpuIsa::amx})
        if (isa <= cpu_isa_detect().isa) all.push_back(isa);
    return all;
}

// the loops of an instruction set, until the end of the scope
struct With {
    CpuIsa before = cpu_isa();
    With(CpuIsa isa) { cpu_isa_choice().isa = isa; }
    ~With() { cpu_isa_choice().isa = before; }
};

static std::string text(const Case& c, CpuIsa isa) {
    std::string s = format("NH %d NKV %d HD %d, %s, families", c.NH, c.NKV, c.HD, cpu_isa_name(isa));
    for (const Family& f : c.families) {
        s += " {";
        for (int n : f) s += format(" %d", n);
        s += " }";
    }
    return s;
}

// rows of two arrays, as the model has them: q and k in one, v in another
struct Data {
    int64_t T = 0, qw, kw;
    std::vector<int> starts = {0}, prefix, prefix_start;
    std::vector<KeyRange> ranges;
    std::vector<floatX> q, k, v, dout;
    Data(const Case& c) : qw((int64_t)c.NH * c.HD), kw((int64_t)c.NKV * c.HD) {
        for (const Family& f : c.families) {
            const int parent = (int)T;
            for (size_t s = 0; s < f.size(); s++) {
                prefix.push_back(s ? f[0] : 0), prefix_start.push_back(s ? parent : 0);
                for (int i = 0; i < f[s]; i++) {
                    KeyRange r;
                    if (s) r.row0 = parent, r.n0 = f[0], r.row1 = T, r.n1 = i + 1;
                    else r.row0 = T, r.n0 = i + 1;
                    ranges.push_back(r);
                }
                starts.push_back((int)(T += f[s]));
            }
        }
        q = random_values<floatX>(T * qw, 30, c.scale), k = random_values<floatX>(T * kw, 31, c.scale);
        v = random_values<floatX>(T * kw, 32), dout = random_values<floatX>(T * qw, 33);
    }
    PackedSequences sequences() const {
        return {starts.data(), prefix.data(), prefix_start.data(), (int)prefix.size(), 0, ranges.data()};
    }
    AttentionShape shape(const Case& c) const { return {T, c.NH, c.NKV, c.HD}; }
    // the row of a token's key j
    int64_t key(int64_t t, int j) const {
        const KeyRange& r = ranges[t];
        return j < r.n0 ? r.row0 + j : r.row1 + j - r.n0;
    }
};

struct Result {
    std::vector<floatX> out, dq, dk, dv;
    std::vector<float> lse;
};
static bool operator==(const Result& a, const Result& b) {
    return same_bits(a.out, b.out) && same_bits(a.lse, b.lse) && same_bits(a.dq, b.dq) && same_bits(a.dk, b.dk) &&
           same_bits(a.dv, b.dv);
}

// forward and backward
static Result run(const Case& c, const Data& x) {
    const Device dev;
    TestBuffer<floatX> q(x.q, dev), k(x.k, dev), v(x.v, dev), dout(x.dout, dev), out(x.T * x.qw, dev),
        dq(x.T * x.qw, dev), dk(x.T * x.kw, dev), dv(x.T * x.kw, dev);
    TestBuffer<float> lse(x.T * c.NH, dev);
    const KeyValueRows kv = {k.data, v.data, x.kw, x.kw};
    attention_forward(out.data, lse.data, {q.data, x.qw}, kv, x.sequences(), x.shape(c), dev);
    attention_backward({{dq.data, x.qw}, {dk.data, x.kw}, {dv.data, x.kw}}, dout.data, out.data, lse.data,
                       {q.data, x.qw}, kv, x.sequences(), x.shape(c), dev);
    return {out.get(), dq.get(), dk.get(), dv.get(), lse.get()};
}

// In float64, each sequence with its prefix repeated. The rows of a repeated prefix have no gradient of their own.
struct Expected {
    std::vector<double> out, lse, dq, dk, dv;
    Expected(const Case& c, const Data& x) {
        std::vector<int> starts = {0};
        std::vector<int64_t> row;  // of the batch
        std::vector<bool> repeated;
        for (size_t s = 0; s < x.prefix.size(); s++) {
            for (int i = 0; i < x.prefix[s]; i++) row.push_back(x.prefix_start[s] + i), repeated.push_back(true);
            for (int t = x.starts[s]; t < x.starts[s + 1]; t++) row.push_back(t), repeated.push_back(false);
            starts.push_back((int)row.size());
        }
        auto rows = [&](const std::vector<floatX>& from, int64_t width, bool gradient) {
            std::vector<floatX> to;
            for (size_t i = 0; i < row.size(); i++)
                for (int64_t d = 0; d < width; d++)
                    to.push_back(gradient && repeated[i] ? floatX(0.0f) : from[row[i] * width + d]);
            return to;
        };
        AttentionReference ref(rows(x.q, x.qw, false), rows(x.k, x.kw, false), rows(x.v, x.kw, false),
                               rows(x.dout, x.qw, true), starts, c.NH, c.NKV, c.HD);
        out.assign(x.T * x.qw, 0), dq = out, dk.assign(x.T * x.kw, 0), dv = dk, lse.assign(x.T * c.NH, 0);
        for (size_t i = 0; i < row.size(); i++) {
            for (int64_t d = 0; d < x.kw; d++) {
                dk[row[i] * x.kw + d] += ref.dk[i * x.kw + d];
                dv[row[i] * x.kw + d] += ref.dv[i * x.kw + d];
            }
            if (repeated[i]) continue;
            std::copy_n(ref.out.begin() + i * x.qw, x.qw, out.begin() + row[i] * x.qw);
            std::copy_n(ref.dq.begin() + i * x.qw, x.qw, dq.begin() + row[i] * x.qw);
            std::copy_n(ref.lse.begin() + i * c.NH, c.NH, lse.begin() + row[i] * c.NH);
        }
    }
};

// So instruction sets agree with each other, too.
TEST(AttentionCpu, AgreesWithFloat64) {
    for (const Case& c : cases()) {
        const Data x(c);
        const Expected ref(c, x);
        for (CpuIsa isa : instruction_sets()) {
            With with(isa);
            const std::string what = text(c, isa);
            const Result got = run(c, x);
            const bool half = sizeof(floatX) == 2, large = c.scale > 2;
            // out, and with it D = dout.out, is rounded to floatX; scores of several hundred have an error of 3e-5
            // and does not average where there are few
            const double few = x.T < 8 ? 4 : 1;
            const double cosine = few * (half ? 2e-5 : large ? 5e-9 : 1e-10);
            const double ratio = few * (half ? 3e-3 : large ? 1e-4 : 3e-6);
            expect_agree(got.out, ref.out, cosine, ratio, what + ", out");
            for (size_t i = 0; i < ref.lse.size(); i++)
                ASSERT_NEAR(got.lse[i], ref.lse[i], 2e-6 * c.scale * c.scale + 1e-6 * std::fabs(ref.lse[i])) << what;
            expect_agree(got.dv, ref.dv, cosine, ratio, what + ", dv");
            if (x.T == 1) continue;  // the softmax of one key is constant, what is left of the gradient is rounding
            expect_agree(got.dq, ref.dq, cosine, ratio, what + ", dq");
            expect_agree(got.dk, ref.dk, cosine, ratio, what + ", dk");
        }
    }
}

// Long sequences with few heads are cut into pieces for several threads, and a tile has fewer rows then
TEST(AttentionCpu, TheSameBitsForAnyNumberOfThreads) {
    std::vector<Case> all = cases();
    all.push_back({{{200, 100}}, 4, 1, 64, 1.0f});
    for (const Case& c : all) {
        const Data x(c);
        for (CpuIsa isa : instruction_sets()) {
            With with(isa);
            const Result first = run(c, x);
#if defined(_OPENMP)
            const int threads = omp_get_max_threads();
            for (int n : {1, 2, 3}) {
                omp_set_num_threads(n);
                EXPECT_TRUE(run(c, x) == first) << text(c, isa) << " with " << n << " threads";
            }
            omp_set_num_threads(threads);
#endif
        }
    }
}

// `rows` of decode -> their outputs and lse
static std::pair<std::vector<floatX>, std::vector<float>> decoded(const Case& c, const std::vector<floatX>& queries,
                                                                  KeyValueRows place0, KeyValueRows place1,
                                                                  const std::vector<KeyRange>& ranges) {
    const Device dev;
    const int64_t rows = (int64_t)ranges.size(), qw = (int64_t)c.NH * c.HD;
    TestBuffer<floatX> q(queries, dev), out(rows * qw, dev);
    TestBuffer<float> lse(rows * c.NH, dev);
    attention_decode(out.data, lse.data, {q.data, qw}, place0, place1, {ranges.data(), 0}, {rows, c.NH, c.NKV, c.HD},
                     dev);
    return {out.get(), lse.get()};
}

// Every token as a row of decode: in the order of the batch, so that tiles form over what rows share; backwards and with
// an unused row after each; and each alone, its keys copied to two places at odd strides, divided at a point that
// differs from row to row.
TEST(AttentionCpu, DecodeGivesTheBitsOfWholeSequences) {
    for (const Case& c : cases()) {
        const Data x(c);
        for (CpuIsa isa : instruction_sets()) {
            With with(isa);
            const std::string what = text(c, isa);
            const Result whole = run(c, x);
            const KeyValueRows kv = {x.k.data(), x.v.data(), x.kw, x.kw};
            auto [out, lse] = decoded(c, x.q, kv, kv, x.ranges);
            EXPECT_TRUE(same_bits(out, whole.out) && same_bits(lse, whole.lse)) << what;
            std::vector<KeyRange> ranges;
            std::vector<floatX> queries, want;
            for (int64_t t = x.T - 1; t >= 0; t--) {
                ranges.push_back(x.ranges[t]), ranges.push_back(KeyRange());
                for (int i = 0; i < 2; i++)
                    queries.insert(queries.end(), x.q.begin() + t * x.qw, x.q.begin() + (t + 1) * x.qw);
                want.insert(want.end(), whole.out.begin() + t * x.qw, whole.out.begin() + (t + 1) * x.qw);
                want.insert(want.end(), x.qw, floatX(0.0f));
            }
            EXPECT_TRUE(same_bits(decoded(c, queries, kv, kv, ranges).first, want)) << what << ", backwards";
            for (int64_t t = 0; t < x.T; t += 1 + t / 8) {
                const int n = x.ranges[t].n0 + x.ranges[t].n1, split = (int)(t * 37 % (n + 1));
                const int64_t s0 = x.kw + 3, s1 = x.kw + 5;
                std::vector<floatX> place[4] = {std::vector<floatX>((split + 2) * s0, floatX(NAN)),
                                                std::vector<floatX>((split + 2) * s0, floatX(NAN)),
                                                std::vector<floatX>((n - split + 1) * s1, floatX(NAN)),
                                                std::vector<floatX>((n - split + 1) * s1, floatX(NAN))};
                for (int j = 0; j < n; j++)
                    for (int kind : {0, 1}) {
                        const bool first = j < split;
                        std::copy_n((kind ? x.v : x.k).begin() + x.key(t, j) * x.kw, x.kw,
                                    place[2 * !first + kind].begin() + (first ? (j + 2) * s0 : (j - split + 1) * s1));
                    }
                KeyRange r;
                r.row0 = 2, r.n0 = split, r.row1 = 1, r.n1 = n - split;
                auto [one, one_lse] = decoded(c, {x.q.begin() + t * x.qw, x.q.begin() + (t + 1) * x.qw},
                                              {place[0].data(), place[1].data(), s0, s0},
                                              {place[2].data(), place[3].data(), s1, s1}, {r});
                EXPECT_EQ(memcmp(one.data(), &whole.out[t * x.qw], x.qw * sizeof(floatX)), 0)
                    << what << ", token " << t;
                EXPECT_EQ(memcmp(one_lse.data(), &whole.lse[t * c.NH], c.NH * 4), 0) << what << ", token " << t;
            }
        }
    }
}

// Keys that a token does not see change nothing, whatever they are: here the later half of each sequence
TEST(AttentionCpu, WhatIsNotSeenIsNotAdded) {
    for (const Case& c : cases()) {
        const Data x(c);
        for (CpuIsa isa : instruction_sets()) {
            With with(isa);
            const Result clean = run(c, x);
            Data y = x;
            std::vector<bool> late(x.T);
            for (size_t s = 0; s < x.prefix.size(); s++)
                for (int t = x.starts[s]; t < x.starts[s + 1]; t++)
                    late[t] = 2 * (t - x.starts[s]) >= x.starts[s + 1] - x.starts[s] || (x.prefix[s] > 0);
            for (int64_t t = 0; t < x.T; t++)
                for (int64_t d = 0; late[t] && d < x.kw; d++)
                    y.k[t * x.kw + d] = floatX(d % 2 ? NAN : INFINITY),
                                   y.v[t * x.kw + d] = floatX(d % 2 ? INFINITY : NAN);
            const Result got = run(c, y);
            for (int64_t t = 0; t < x.T; t++) {
                if (late[t]) continue;
                ASSERT_EQ(memcmp(&got.out[t * x.qw], &clean.out[t * x.qw], x.qw * sizeof(floatX)), 0)
                    << text(c, isa) << ", token " << t;
                ASSERT_EQ(memcmp(&got.lse[t * c.NH], &clean.lse[t * c.NH], c.NH * 4), 0) << text(c, isa);
            }
        }
    }
}

// The rows of the batch as a cache of 8-bit codes, whose values are what the batch itself attends to
TEST(AttentionCpu, DecodeOverCodesGivesTheBitsOfWholeSequences) {
    for (const Case& c : cases()) {
        Data x(c);
        KvQuant quant;
        quant.NKV = c.NKV, quant.HD = quant.group = c.HD, quant.bits = 8;
        std::vector<uint32_t> codes[2];
        std::vector<CacheRow> writes;
        for (int64_t t = 0; t < x.T; t++) writes.push_back({0, t});
        for (int kind : {0, 1}) {
            codes[kind].resize(x.T * kv_row_words(quant));
            uint32_t* to[2] = {codes[kind].data(), nullptr};
            std::vector<floatX>& rows = kind ? x.v : x.k;
            kv_quantize_cpu(quant, rows.data(), x.kw, rows.data(), x.kw, nullptr, to, writes.data(), x.T);
        }
        const KeyValueCodes place = {codes[0].data(), codes[1].data(), quant, {}};
        for (CpuIsa isa : instruction_sets()) {
            With with(isa);
            const Device dev;
            const Result whole = run(c, x);
            TestBuffer<floatX> q(x.q, dev), out(x.T * x.qw, dev);
            TestBuffer<float> lse(x.T * c.NH, dev);
            attention_decode_codes(out.data, lse.data, {q.data, x.qw}, place, place, {x.ranges.data(), 0}, x.T, c.NH,
                                   dev);
            EXPECT_TRUE(same_bits(out.get(), whole.out)) << text(c, isa);
            EXPECT_TRUE(same_bits(lse.get(), whole.lse)) << text(c, isa);
        }
    }
}

// attention.cuh's plain loops say the same
TEST(AttentionCpu, AgreesWithThePlainLoops) {
    for (const Case& c : cases()) {
        const Data x(c);
        std::vector<floatX> plain(x.T * x.qw);
        std::vector<float> lse(x.T * c.NH);
        const KeyValueRows kv = {x.k.data(), x.v.data(), x.kw, x.kw};
        attention_forward_cpu(plain.data(), lse.data(), {x.q.data(), x.qw}, kv, kv, x.ranges.data(), x.shape(c));
        const std::vector<double> want(plain.begin(), plain.end());
        for (CpuIsa isa : instruction_sets()) {
            With with(isa);
            expect_agree(run(c, x).out, want, sizeof(floatX) == 2 ? 4e-5 : 1e-8, sizeof(floatX) == 2 ? 3e-3 : 1e-4,
                         text(c, isa));
        }
    }
}
