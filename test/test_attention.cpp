// Attention: every run (CPU loops; kernels) against a float64 restatement, and the promises of kernels/attention.cuh:
// a query's bits are the same from attention_forward and attention_decode, wherever its keys lie and whatever else is
// in the batch, results do not depend on the order of threads, and gaps between strided rows stay untouched.
#include "attention_reference.h"
#include "../kernels/attention.cuh"
#include <algorithm>

struct AttentionCase {
    std::vector<int> lengths;
    int NH, NKV, HD;
    float scale;                     // of q and k
    int gap;                         // elements between the rows of q, k, v and of the gradients
    std::vector<int> children = {};  // of each sequence: how many of those after it go on from it
};

// Blocks of keys are 64 (32 in fp32), tiles of queries 64 and 128, chunks 256.
static std::vector<AttentionCase> attention_cases() {
    return {
        {{1}, 1, 1, 2, 1.0f, 0},         {{3, 1, 2}, 2, 1, 8, 1.0f, 8}, {{7, 64, 1, 65}, 4, 2, 16, 1.0f, 0},
        {{130, 33}, 4, 1, 32, 1.0f, 24}, {{70}, 7, 1, 64, 1.0f, 8},     {{300}, 2, 1, 16, 2.0f, 0},
        {{530}, 1, 1, 8, 1.0f, 0},                                       // three chunks
        {{65, 17}, 2, 2, 128, 1.0f, 0},  {{20}, 34, 2, 8, 1.0f, 0},      // more heads in a group than rows in a tile
        {{36}, 3, 1, 10, 1.0f, 3},                                       // rows that are not aligned
        {{9, 70}, 1, 1, 98, 1.0f, 2},    {{40, 2}, 2, 2, 16, 30.0f, 0},  // scores of several hundred: a softmax near
                                                                         // one-hot
    };
}

// Prompts that several sequences go on from, of lengths around the blocks of keys and the tiles of queries; between them
// sequences without.
static std::vector<AttentionCase> shared_prefix_cases() {
    return {{{1, 1}, 1, 1, 2, 1.0f, 0, {1, 0}},
            {{3, 2, 5, 1, 4}, 2, 1, 8, 1.0f, 8, {3, 0, 0, 0, 0}},
            {{7, 9, 1, 64, 65, 40, 3, 3}, 4, 2, 16, 1.0f, 0, {2, 0, 0, 0, 1, 0, 1, 0}},
            {{31, 140, 17}, 2, 1, 32, 1.0f, 24, {2, 0, 0}},
            {{130, 20, 70}, 3, 1, 64, 1.0f, 8, {2, 0, 0}},
            {{250, 30, 9}, 2, 2, 16, 2.0f, 0, {2, 0, 0}},  // chunks end within the completions
            {{18, 5, 11}, 1, 1, 98, 1.0f, 3, {2, 0, 0}}};
}

static std::string text(const AttentionCase& c, const Backend& run) {
    std::string lengths;
    for (int n : c.lengths) lengths += format("%s%d", lengths.empty() ? "" : ",", n);
    return format("lengths %s NH %d NKV %d HD %d gap %d, %s", lengths.c_str(), c.NH, c.NKV, c.HD, c.gap,
                  run.name.c_str());
}

// q, k, v, dout: (T,width) without gaps
struct AttentionData {
    int64_t T = 0;
    std::vector<int> starts, prefix, prefix_start;
    std::vector<KeyRange> ranges;
    std::vector<floatX> q, k, v, dout;
    AttentionData(const AttentionCase& c) {
        starts.push_back(0);
        int children = 0, parent = 0;
        for (size_t s = 0; s < c.lengths.size(); s++) {
            const int n = c.lengths[s];
            const bool child = children > 0;
            if (child) children--;
            else parent = (int)s, children = c.children.empty() ? 0 : c.children[s];
            prefix.push_back(child ? c.lengths[parent] : 0);
            prefix_start.push_back(child ? starts[parent] : 0);
            for (int i = 0; i < n; i++) {
                KeyRange r;
                if (child) r.row0 = starts[parent], r.n0 = c.lengths[parent], r.row1 = T, r.n1 = i + 1;
                else r.row0 = T, r.n0 = i + 1;
                ranges.push_back(r);
            }
            starts.push_back((int)(T += n));
        }
        q = random_values<floatX>(T * c.NH * c.HD, 30, c.scale);
        k = random_values<floatX>(T * c.NKV * c.HD, 31, c.scale);
        v = random_values<floatX>(T * c.NKV * c.HD, 32);
        dout = random_values<floatX>(T * c.NH * c.HD, 33);
    }
};

// rows of `width` elements, gap elements apart; the gaps are NaN
template <class X>
static std::vector<X> spread(const std::vector<X>& v, int64_t width, int64_t gap) {
    std::vector<X> rows(v.size() / width * (width + gap));
    memset(static_cast<void*>(rows.data()), 0xFF, rows.size() * sizeof(X));
    for (size_t t = 0; t < v.size() / width; t++)
        std::copy_n(v.begin() + t * width, width, rows.begin() + t * (width + gap));
    return rows;
}

template <class X>
static std::vector<X> gathered(const std::vector<X>& rows, int64_t width, int64_t gap, const std::string& what) {
    std::vector<X> v;
    for (size_t at = 0; at < rows.size(); at += width + gap) {
        v.insert(v.end(), rows.begin() + at, rows.begin() + at + width);
        for (int64_t i = 0; i < gap; i++)
            EXPECT_TRUE(still_poison(rows[at + width + i])) << what << ": wrote between rows";
    }
    return v;
}

struct AttentionResult {
    std::vector<floatX> out, dq, dk, dv;
    std::vector<float> lse;
};

static bool same_result(const AttentionResult& a, const AttentionResult& b) {
    return same_bits(a.out, b.out) && same_bits(a.lse, b.lse) && same_bits(a.dq, b.dq) && same_bits(a.dk, b.dk) &&
           same_bits(a.dv, b.dv);
}

// forward and backward of the packed batch
static AttentionResult run_attention(const AttentionCase& c, const AttentionData& x, const Backend& run) {
    select_backend(run);
    Device dev = run.dev;
    std::string what = text(c, run);
    int64_t qw = (int64_t)c.NH * c.HD, kw = (int64_t)c.NKV * c.HD, qs = qw + c.gap, ks = kw + c.gap;
    int sequences = (int)c.lengths.size(), longest = *std::max_element(c.lengths.begin(), c.lengths.end());
    TestBuffer<floatX> q(spread(x.q, qw, c.gap), dev), k(spread(x.k, kw, c.gap), dev), v(spread(x.v, kw, c.gap), dev),
        dout(x.dout, dev), out(x.T * qw, dev), dq(x.T * qs, dev), dk(x.T * ks, dev), dv(x.T * ks, dev);
    TestBuffer<float> lse(x.T * c.NH, dev);
    TestBuffer<KeyRange> ranges(x.ranges, dev);
    TestBuffer<int> starts(x.starts, dev);
    KeyValueRows kv = {k.data, v.data, ks, ks};
    TestBuffer<int> prefix(x.prefix, dev), prefix_start(x.prefix_start, dev);
    const bool shared = !c.children.empty();
    PackedSequences packed = {
        starts.data, shared ? prefix.data : nullptr, shared ? prefix_start.data : nullptr, sequences, longest,
        ranges.data};
    attention_forward(out.data, lse.data, {q.data, qs}, kv, packed, {x.T, c.NH, c.NKV, c.HD}, dev);
    attention_backward({{dq.data, qs}, {dk.data, ks}, {dv.data, ks}}, dout.data, out.data, lse.data, {q.data, qs}, kv,
                       packed, {x.T, c.NH, c.NKV, c.HD}, dev);
    return {out.get(), gathered(dq.get(), qw, c.gap, what), gathered(dk.get(), kw, c.gap, what),
            gathered(dv.get(), kw, c.gap, what), lse.get()};
}

// In bf16 p and ds are rounded too (kernels), so that their errors, of up to 2^-9 each, average over keys and queries.
TEST(Attention, AgreesWithFloat64) {
    for (const AttentionCase& c : attention_cases()) {
        AttentionData x(c);
        AttentionReference ref(x.q, x.k, x.v, x.dout, x.starts, c.NH, c.NKV, c.HD);
        for (const Backend& run : all_backends()) {
            std::string what = text(c, run);
            AttentionResult got = run_attention(c, x, run);
            bool half = sizeof(floatX) == 2;
            // scores of several hundred have an error of up to 3e-5 in fp32, and so has log p
            bool large = c.scale > 4;
            double cosine = half ? 2e-5 : large ? 5e-9 : 1e-10, ratio = half ? 3e-3 : large ? 1e-4 : 3e-6;
            expect_agree(got.out, ref.out, cosine, ratio, what + ", out");
            for (size_t i = 0; i < ref.lse.size(); i++)
                ASSERT_NEAR(got.lse[i], ref.lse[i], 2e-6 * c.scale * c.scale + 1e-6 * std::fabs(ref.lse[i])) << what;
            expect_agree(got.dv, ref.dv, cosine, ratio, what + ", dv");
            if (x.T == 1) {  // the softmax of one key is constant, what is left of the gradient is rounding
                for (const std::vector<floatX>* d : {&got.dq, &got.dk})
                    for (floatX e : *d) ASSERT_LE(std::fabs((float)e), half ? 1e-2 : 1e-6) << what;
                continue;
            }
            expect_agree(got.dq, ref.dq, cosine, ratio, what + ", dq");
            expect_agree(got.dk, ref.dk, cosine, ratio, what + ", dk");
        }
    }
}

TEST(Attention, AllThreadOrdersGiveTheSameBits) {
    std::vector<Backend> runs = all_backends();
    if (runs.size() < 3) GTEST_SKIP() << "needs the simt build (make simt)";
    std::vector<AttentionCase> cases = attention_cases();
    for (const AttentionCase& c : shared_prefix_cases()) cases.push_back(c);
    for (const AttentionCase& c : cases) {
        AttentionData x(c);
        AttentionResult first = run_attention(c, x, runs[1]);
        for (size_t r = 2; r < runs.size(); r++)
            EXPECT_TRUE(same_result(first, run_attention(c, x, runs[r])))
                << text(c, runs[r]) << ": bits differ from " << runs[1].name;
    }
}

// alone, and as the packed batch has it
TEST(Attention, ASequenceHasTheSameBitsInAnyBatch) {
    for (const AttentionCase& c : attention_cases()) {
        if (c.lengths.size() == 1) continue;
        AttentionData x(c);
        std::vector<Backend> runs = all_backends();
        for (size_t r = 0; r < runs.size() && r < 2; r++) {
            AttentionResult all = run_attention(c, x, runs[r]);
            for (size_t s = 0; s < c.lengths.size(); s++) {
                AttentionCase alone_case = c;
                alone_case.lengths = {c.lengths[s]};
                AttentionData part(alone_case);
                auto rows = [&](const auto& v) {
                    int64_t width = (int64_t)v.size() / x.T;
                    return std::decay_t<decltype(v)>(v.begin() + x.starts[s] * width,
                                                     v.begin() + x.starts[s + 1] * width);
                };
                part.q = rows(x.q), part.k = rows(x.k), part.v = rows(x.v), part.dout = rows(x.dout);
                AttentionResult alone = run_attention(alone_case, part, runs[r]);
                EXPECT_TRUE(
                    same_result(alone, {rows(all.out), rows(all.dq), rows(all.dk), rows(all.dv), rows(all.lse)}))
                    << text(c, runs[r]) << ", sequence " << s;
            }
        }
    }
}

// the same queries and keys without sharing: each sequence that goes on from another has a copy of its rows
struct Unshared {
    AttentionCase c;
    std::vector<int64_t> row;     // of the shared batch, of each row here
    std::vector<char> duplicate;  // rows of a copy
    Unshared(const AttentionCase& shared, const AttentionData& x) : c(shared) {
        c.children.clear(), c.lengths.clear();
        for (size_t s = 0; s < shared.lengths.size(); s++) {
            for (int i = 0; i < x.prefix[s]; i++) row.push_back(x.prefix_start[s] + i), duplicate.push_back(1);
            for (int i = 0; i < shared.lengths[s]; i++) row.push_back(x.starts[s] + i), duplicate.push_back(0);
            c.lengths.push_back(x.prefix[s] + shared.lengths[s]);
        }
    }
    // copies have no gradient of their own: dout is that of the batch that shares
    AttentionData data(const AttentionData& x) const {
        AttentionData y(c);
        auto rows = [&](const std::vector<floatX>& from) {
            const int64_t width = (int64_t)from.size() / x.T;
            std::vector<floatX> to;
            for (int64_t r : row) to.insert(to.end(), from.begin() + r * width, from.begin() + (r + 1) * width);
            return to;
        };
        y.q = rows(x.q), y.k = rows(x.k), y.v = rows(x.v), y.dout = rows(x.dout);
        const int64_t width = (int64_t)x.dout.size() / x.T;
        for (size_t r = 0; r < row.size(); r++)
            if (duplicate[r]) std::fill_n(y.dout.begin() + r * width, width, floatX(0.0f));
        return y;
    }
    // of an array of a row each: the rows that are not copies, or the sums over all
    template <class X>
    std::vector<double> back(const std::vector<X>& from, int64_t T, bool sum) const {
        const int64_t width = (int64_t)(from.size() / row.size());
        std::vector<double> to(T * width);
        for (size_t r = 0; r < row.size(); r++)
            for (int64_t i = 0; i < width && (sum || !duplicate[r]); i++)
                to[row[r] * width + i] += (double)(float)from[r * width + i];
        return to;
    }
};

TEST(Attention, ASharedPrefixGivesTheBitsOfWholeSequencesAndTheSumOfTheirGradients) {
    for (const AttentionCase& c : shared_prefix_cases()) {
        AttentionData x(c);
        Unshared unshared(c, x);
        AttentionData y = unshared.data(x);
        AttentionReference ref(y.q, y.k, y.v, y.dout, y.starts, c.NH, c.NKV, c.HD);
        auto total = [&](const std::vector<double>& v) {
            const int64_t width = (int64_t)(v.size() / unshared.row.size());
            std::vector<double> to(x.T * width);
            for (size_t r = 0; r < unshared.row.size(); r++)
                for (int64_t i = 0; i < width; i++) to[unshared.row[r] * width + i] += v[r * width + i];
            return to;
        };
        for (const Backend& run : all_backends()) {
            const std::string what = text(c, run);
            AttentionResult got = run_attention(c, x, run), whole = run_attention(unshared.c, y, run);
            const std::vector<double> out = unshared.back(whole.out, x.T, false),
                                      lse = unshared.back(whole.lse, x.T, false);
            for (size_t i = 0; i < out.size(); i++) ASSERT_EQ((float)got.out[i], (float)out[i]) << what << ", " << i;
            for (size_t i = 0; i < lse.size(); i++) ASSERT_EQ(got.lse[i], (float)lse[i]) << what << ", " << i;
            const bool half = sizeof(floatX) == 2;
            const double cosine = half ? 2e-5 : 1e-10, ratio = half ? 3e-3 : 3e-6;
            expect_agree(got.dv, total(ref.dv), cosine, ratio, what + ", dv");
            if (x.T == 2) continue;  // two keys with the softmax of a few numbers: rounding is what is left
            expect_agree(got.dq, total(ref.dq), cosine, ratio, what + ", dq");
            expect_agree(got.dk, total(ref.dk), cosine, ratio, what + ", dk");
        }
    }
}

// Every token as a row of decode, in another order, its keys in the two places at an odd row and stride, divided at a
// point that differs from row to row, and an unused row after each third.
TEST(Attention, DecodeGivesTheBitsOfForward) {
    for (const AttentionCase& c : attention_cases()) {
        AttentionData x(c);
        const int64_t qw = (int64_t)c.NH * c.HD, kw = (int64_t)c.NKV * c.HD, qs = qw + c.gap, ks = kw + c.gap;
        // place 0: row 3 + t of token t, place 1: row 2 * t + 1; the others are NaN
        const int64_t width1 = kw + 8 + c.gap;
        auto placed = [&](const std::vector<floatX>& v, int64_t stride, int64_t rows, auto row) {
            std::vector<floatX> place(rows * stride, floatX(NAN));
            for (int64_t t = 0; t < x.T; t++) std::copy_n(v.begin() + t * kw, kw, place.begin() + row(t) * stride);
            return place;
        };
        auto row0 = [](int64_t t) { return t + 3; };
        auto row1 = [](int64_t t) { return t + 1; };
        std::vector<KeyRange> ranges;
        std::vector<int> token;  // of a row; -1: unused
        std::vector<floatX> queries;
        for (int64_t i = 0; i < x.T; i++) {
            int64_t t = x.T - 1 - i;
            KeyRange r;
            int n = x.ranges[t].n0, split = (int)(t * 37 % (n + 1));
            r.row0 = row0(x.ranges[t].row0), r.n0 = split, r.row1 = row1(x.ranges[t].row0 + split), r.n1 = n - split;
            ranges.push_back(r), token.push_back((int)t);
            queries.insert(queries.end(), x.q.begin() + t * qw, x.q.begin() + (t + 1) * qw);
            if (i % 3) continue;
            ranges.push_back(KeyRange()), token.push_back(-1);
            queries.insert(queries.end(), qw, floatX(1.0f));
        }
        int longest = *std::max_element(c.lengths.begin(), c.lengths.end()), rows = (int)ranges.size();
        for (const Backend& run : all_backends()) {
            std::string what = text(c, run);
            AttentionResult whole = run_attention(c, x, run);
            TestBuffer<floatX> q(spread(queries, qw, c.gap), run.dev), k0(placed(x.k, ks, x.T + 3, row0), run.dev),
                v0(placed(x.v, ks, x.T + 3, row0), run.dev), k1(placed(x.k, width1, x.T + 1, row1), run.dev),
                v1(placed(x.v, width1, x.T + 1, row1), run.dev);
            TestBuffer<KeyRange> range(ranges, run.dev);
            std::vector<floatX> first;
            for (int max_keys : {longest, longest + 300}) {
                TestBuffer<floatX> out(rows * qw, run.dev);
                TestBuffer<float> lse(rows * c.NH, run.dev);
                attention_decode(out.data, lse.data, {q.data, qs}, {k0.data, v0.data, ks, ks},
                                 {k1.data, v1.data, width1, width1}, {range.data, max_keys}, {rows, c.NH, c.NKV, c.HD},
                                 run.dev);
                std::vector<floatX> got = out.get();
                std::vector<float> got_lse = lse.get();
                for (int r = 0; r < rows; r++)
                    for (int64_t i = 0; i < qw; i++) {
                        floatX want = token[r] < 0 ? floatX(0.0f) : whole.out[token[r] * qw + i];
                        float want_lse = token[r] < 0 ? 0.0f : whole.lse[token[r] * c.NH + i / c.HD];
                        ASSERT_EQ(memcmp(&got[r * qw + i], &want, sizeof(floatX)), 0)
                            << what << ", max_keys " << max_keys << ", row " << r << ", token " << token[r]
                            << ", element " << i << ": " << (float)got[r * qw + i] << ", forward " << (float)want;
                        ASSERT_EQ(memcmp(&got_lse[r * c.NH + i / c.HD], &want_lse, 4), 0)
                            << what << ", max_keys " << max_keys << ", row " << r;
                    }
            }
        }
    }
}

// A row with more chunks than the grid has is not silently cut short.
TEST(Attention, MoreKeysThanTheGridIsForGiveNaN) {
    for (const Backend& run : all_backends()) {
        if (!run.dev.cuda) continue;
        select_backend(run);
        KeyRange range;
        range.n0 = 257;
        TestBuffer<floatX> q(random_values<floatX>(8, 1), run.dev), k(random_values<floatX>(257 * 8, 2), run.dev),
            out(8, run.dev);
        TestBuffer<float> lse(1, run.dev);
        TestBuffer<KeyRange> ranges(std::vector<KeyRange>{range}, run.dev);
        KeyValueRows kv = {k.data, k.data, 8, 8};
        attention_decode(out.data, lse.data, {q.data, 8}, kv, kv, {ranges.data, 200}, {1, 1, 1, 8}, run.dev);
        for (floatX e : out.get()) EXPECT_TRUE(std::isnan((float)e)) << run.name;
        EXPECT_TRUE(std::isnan(lse.get()[0])) << run.name;
    }
}

TEST(Attention, RefusesWhatItCannotDo) {
    for (const Backend& run : all_backends()) {
        select_backend(run);
        auto message = [&](int NH, int NKV, int HD) -> std::string {
            try {
                attention_decode(nullptr, nullptr, {nullptr, 0}, {}, {}, {nullptr, 1}, {0, NH, NKV, HD}, run.dev);
                attention_forward(nullptr, nullptr, {nullptr, 0}, {}, {}, {0, NH, NKV, HD}, run.dev);
            } catch (const std::exception& e) { return e.what(); }
            return "";
        };
        EXPECT_EQ(message(4, 2, 128), "") << run.name;  // no rows, no work
        EXPECT_NE(message(4, 3, 64).find("NKV 3"), std::string::npos) << run.name << ": " << message(4, 3, 64);
        for (int HD : {130, 7}) {
            if (run.dev.cuda) EXPECT_NE(message(1, 1, HD).find("--device cpu"), std::string::npos) << message(1, 1, HD);
            else EXPECT_EQ(message(1, 1, HD), "");
        }
    }
}
