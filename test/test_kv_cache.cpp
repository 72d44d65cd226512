// The quantized KV cache: codes, scales and values against the number formats one number at a time, on every backend;
// decode over codes against decode over the values they stand for; and with whole models that sampler and trainer
// compute the same log-probabilities to the bit, in any batch, cut into micro-batches and with recomputed activations.
#include <algorithm>
#include "../grpo.cuh"
#include "load_model.h"
#include "operator_test.h"
#include "test_device.h"
#include "test_rules.h"

static const char* const quantizers[] = {
    "int8:token:asym",   "int8:token:sym",  "int6:token:asym", "int4:token:asym",
    "int4:g8:sym:amax7", "int3:token:asym", "int2:token:asym", "int4:token:signedmax",
    "fp8e4m3:token",     "fp8e5m2:g8",      "nf4:g8",          "mid4:token",
    "mid3:g8",           "mid2:token"};

static KvQuant kv_quant(const std::string& text, int NKV, int HD) {
    Model m;
    m.config.num_key_value_heads = NKV, m.config.head_dim = HD;
    m.layers.resize(1);
    m.layers[0].kv = quantizer_parse(text, "kv_cache");
    return layer_kv_quant(m, 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// the row of codes

struct KvCase {
    int64_t T;
    int NKV, HD, gap;
};

// what the cache must hold, and the values, one number at a time
struct KvReference {
    std::vector<floatX> values;   // [T, NKV*HD]
    std::vector<uint32_t> grids;  // [T, NKV*groups]
    std::vector<uint8_t> codes;   // [T, bytes]
    std::vector<float> scales;    // as grids
    KvReference(const KvQuant& q, const std::vector<floatX>& x, int64_t T, const std::vector<floatX>& bias) {
        const int width = q.NKV * q.HD, groups = q.HD / q.group;
        values.resize(T * width), codes.assign(T * width * q.bits / 8, 0);
        for (int64_t t = 0; t < T; t++)
            for (int g = 0; g < q.NKV * groups; g++) {
                const floatX* from = x.data() + t * width + g * q.group;
                float min = 0, max = 0;
                for (int i = 0; i < q.group; i++) {
                    min = std::min(min, (float)from[i]);
                    max = std::max(max, (float)from[i]);
                }
                Grid grid = quant_grid(q.spec, min, max, 1.0f, 1.0f);
                bool integer = q.spec.format == QuantFormat::integer;
                grids.push_back(integer ? float_bits(grid.scale) | (uint32_t)grid.zero : float_bits(grid.scale));
                scales.push_back(grid.scale);
                for (int i = 0; i < q.group; i++) {
                    int n = g * q.group + i, code = quant_code(q.spec, (float)from[i], grid);
                    float level = quant_value(q.spec, code, Grid{1.0f, grid.zero});
                    values[t * width + n] = bias.empty() ? (floatX)quant_value(q.spec, code, grid)
                                                         : (floatX)mul_add(level, grid.scale, (float)bias[n]);
                    unsigned stored = integer ? code + (1 << (q.spec.bits - 1)) : (unsigned)code & ((1 << q.bits) - 1);
                    size_t bit = ((size_t)t * width + n) * q.bits;
                    codes[bit / 8] |= (uint8_t)(stored << bit % 8);
                }
            }
    }
};

TEST(KvQuantize, CodesScalesAndValuesOfEveryFormatOnEveryBackend) {
    for (const KvCase& c : {KvCase{1, 1, 8, 0}, KvCase{7, 3, 16, 5}, KvCase{5, 2, 64, 8}, KvCase{3, 1, 128, 0},
                            KvCase{4, 3, 24, 1}, KvCase{6, 5, 40, 0}})
        for (const char* text : quantizers)
            for (bool with_bias : {false, true})
                for (const Backend& run : all_backends()) {
                    select_backend(run);
                    KvQuant q = kv_quant(text, c.NKV, c.HD);
                    if (with_bias && run.order == 1) continue;
                    std::string what = format("%s T %lld NKV %d HD %d gap %d bias %d, %s", text, (long long)c.T, c.NKV,
                                              c.HD, c.gap, with_bias, run.name.c_str());
                    const int width = c.NKV * c.HD, stride = width + c.gap, words = (int)kv_row_words(q);
                    std::vector<floatX> x = random_values<floatX>(c.T * width, 3, 5.0f),
                                        rows(c.T * stride, floatX(7.0f));
                    for (int i = 0; i < c.HD; i++) x[i] = (floatX)0.0f;  // a head of zeros
                    if (c.T > 2)
                        for (int i = 0; i < c.HD; i++) x[2 * width + i] = (floatX)(1.0f + (float)x[2 * width + i] / 8);
                    for (int64_t t = 0; t < c.T; t++)
                        std::copy_n(x.begin() + t * width, width, rows.begin() + t * stride);
                    std::vector<floatX> b = with_bias ? random_values<floatX>(width, 4, 50.0f) : std::vector<floatX>();
                    KvReference expected(q, x, c.T, b);
                    TestBuffer<floatX> inout(rows, run.dev), bias(b, run.dev), apart(c.T * width, run.dev);
                    TestBuffer<uint32_t> cache0((c.T + 1) * words, run.dev), cache1((c.T + 2) * words, run.dev);
                    std::vector<CacheRow> writes;  // every third nowhere, the others in turn from the last row on
                    for (int64_t t = 0; t < c.T; t++) writes.push_back({(int)(t % 2), t % 3 == 2 ? -1 : c.T - t});
                    TestBuffer<CacheRow> to(writes, run.dev);
                    uint32_t* cache[2] = {cache0.data, cache1.data};
                    const floatX* bias_data = with_bias ? bias.data : nullptr;
                    kv_quantize(q, apart.data, width, inout.data, stride, bias_data, cache, nullptr, c.T, run.dev);
                    kv_quantize(q, inout.data, stride, inout.data, stride, bias_data, cache, to.data, c.T, run.dev);
                    EXPECT_TRUE(same_bits(apart.get(), expected.values)) << what;
                    std::vector<floatX> got = inout.get();
                    std::vector<uint32_t> row[2] = {cache0.get(), cache1.get()};
                    const int grids = c.NKV * c.HD / q.group, bytes = width * q.bits / 8;
                    std::vector<bool> written[2] = {std::vector<bool>(c.T + 1), std::vector<bool>(c.T + 2)};
                    for (int64_t t = 0; t < c.T; t++) {
                        ASSERT_EQ(memcmp(&got[t * stride], &expected.values[t * width], width * sizeof(floatX)), 0)
                            << what << ", in place, token " << t;
                        for (int i = width; i < stride; i++) ASSERT_EQ((float)got[t * stride + i], 7.0f) << what;
                        if (writes[t].row < 0) continue;
                        written[writes[t].place][writes[t].row] = true;
                        const uint32_t* r = row[writes[t].place].data() + writes[t].row * words;
                        ASSERT_EQ(memcmp(r, &expected.grids[t * grids], grids * 4), 0) << what << ", scales of " << t;
                        ASSERT_EQ(memcmp(r + (grids + 1) / 2 * 2, &expected.codes[t * bytes], bytes), 0)
                            << what << ", codes of token " << t;
                        if (with_bias) continue;
                        std::vector<floatX> head(c.HD);
                        for (int h = 0; h < c.NKV; h++) {
                            kv_read_head_cpu(head.data(), q, kv_levels(q), r, h);
                            ASSERT_EQ(
                                memcmp(head.data(), &expected.values[t * width + h * c.HD], c.HD * sizeof(floatX)), 0)
                                << what << ", read back, token " << t << ", head " << h;
                        }
                    }
                    for (int place : {0, 1})
                        for (size_t i = 0; i < row[place].size(); i++)
                            ASSERT_TRUE(written[place][i / words] || still_poison(row[place][i]))
                                << what << ", row " << i / words;
                }
}

TEST(KvQuantize, ANumberThatIsNotFiniteMakesItsGroupNaNAndNoOther) {
    for (const char* text : {"int8:g8:asym", "int4:g8:sym", "fp8e4m3:g8", "nf4:g8"})
        for (float odd : {NAN, INFINITY, -INFINITY})
            for (const Backend& run : all_backends()) {
                select_backend(run);
                KvQuant q = kv_quant(text, 1, 24);
                std::vector<floatX> x = random_values<floatX>(24, 5), head(24);
                x[11] = (floatX)odd;
                TestBuffer<floatX> inout(x, run.dev);
                TestBuffer<uint32_t> cache(kv_row_words(q), run.dev);
                TestBuffer<CacheRow> to(std::vector<CacheRow>{{1, 0}}, run.dev);
                uint32_t* places[2] = {nullptr, cache.data};
                kv_quantize(q, inout.data, 24, inout.data, 24, nullptr, places, to.data, 1, run.dev);
                std::vector<floatX> got = inout.get();
                kv_read_head_cpu(head.data(), q, kv_levels(q), cache.get().data(), 0);
                for (int i = 0; i < 24; i++) {
                    EXPECT_EQ(std::isnan((float)got[i]), i / 8 == 1) << text << ", " << run.name << ", " << i;
                    EXPECT_EQ(std::isnan((float)head[i]), i / 8 == 1) << text << ", " << run.name << ", " << i;
                }
            }
}

TEST(KvQuantize, ErrorsAreThoseOfTheBits) {
    const int64_t T = 64;
    const int width = 128;
    std::vector<floatX> x = random_values<floatX>(T * width, 9, 4.0f);
    struct Bound {
        const char* text;
        double rms;  // of the error, relative
    };
    // a uniform variable in [-1,1] over 2^b levels: 2^-b of its own root mean square, and bf16's 2^-9 / sqrt(3)
    for (const Bound& b :
         {Bound{"int8:token:asym", 0.0045}, Bound{"int6:token:asym", 0.0175}, Bound{"int4:token:asym", 0.072},
          Bound{"int3:token:asym", 0.155}, Bound{"fp8e4m3:token", 0.03}, Bound{"nf4:g64", 0.10},
          Bound{"mid4:token", 0.072}, Bound{"mid2:g32", 0.26}}) {
        KvQuant q = kv_quant(b.text, 2, 64);
        std::vector<floatX> y(x.size());
        kv_quantize_cpu(q, y.data(), width, x.data(), width, nullptr, nullptr, nullptr, T);
        double error = 0, size = 0;
        for (size_t i = 0; i < x.size(); i++) {
            error += ((double)(float)y[i] - (float)x[i]) * ((double)(float)y[i] - (float)x[i]);
            size += (double)(float)x[i] * (float)x[i];
        }
        EXPECT_LT(std::sqrt(error / size), b.rms) << b.text;
        EXPECT_GT(std::sqrt(error / size), b.rms / 4) << b.text;
    }
}

TEST(KvQuantize, BytesOfARow) {
    struct Row {
        const char* text;
        int NKV, HD, bytes;
    };
    for (const Row& r :
         {Row{"int8:token:asym", 3, 64, 208}, Row{"int4:token:asym", 3, 64, 112}, Row{"int2:token:asym", 3, 64, 64},
          Row{"int8:g32", 2, 64, 144}, Row{"nf4", 2, 64, 80}, Row{"mxfp8", 2, 64, 144}, Row{"int3:token", 8, 128, 544}})
        EXPECT_EQ(kv_row_words(kv_quant(r.text, r.NKV, r.HD)) * 4, r.bytes) << r.text;
}

// ---------------------------------------------------------------------------------------------------------------------
// attention over codes

struct CodesCase {
    int NH, NKV, HD;
    std::vector<KeyRange> ranges;
};

static KeyRange key_range(int64_t row0, int n0, int64_t row1, int n1) {
    KeyRange r;
    r.row0 = row0, r.n0 = n0, r.row1 = row1, r.n1 = n1;
    return r;
}

// Rows of keys and values are quantized into the cache; the floats they stand for, finished by bias and rotation where
// that is to come, go to a cache of floats.
TEST(KvAttention, DecodeOverCodesGivesTheBitsOfDecodeOverTheValues) {
    const std::vector<CodesCase> cases = {
        {2, 1, 8, {key_range(0, 1, 0, 0), key_range(1, 3, 2, 2), KeyRange()}},
        {4, 2, 16, {key_range(2, 70, 1, 65), key_range(0, 0, 3, 9), key_range(5, 64, 0, 0)}},
        {3, 3, 64, {key_range(1, 5, 7, 130)}},
        {20, 1, 24, {key_range(0, 33, 4, 7)}},
        {2, 2, 128, {key_range(0, 260, 0, 20)}},
    };
    for (const CodesCase& c : cases)
        for (const char* text : quantizers)
            for (bool pre_bias : {false, true}) {
                if (c.HD > 64 && strcmp(text, "int4:token:asym") && strcmp(text, "fp8e4m3:token")) continue;
                const int64_t ROWS = 300, T = (int64_t)c.ranges.size();
                const KvQuant q = kv_quant(text, c.NKV, c.HD);
                const int64_t width = (int64_t)c.NKV * c.HD, words = kv_row_words(q), qw = (int64_t)c.NH * c.HD;
                std::vector<floatX> b = random_values<floatX>(width, 24, 3.0f);
                RopeTable rope;
                rope_init(rope, c.HD, 10000.0, false, 1, 1, 1, 1);
                rope_extend(rope, 400);
                int most = 1;
                for (const KeyRange& r : c.ranges) most = std::max(most, r.n0 + r.n1);
                // With a rotation a row's value depends on where in the sequence it stands: a place of values a query
                for (const Backend& run : all_backends()) {
                    if (run.order == 1 && strcmp(text, "int4:token:asym")) continue;
                    select_backend(run);
                    std::string what = format("%s NH %d NKV %d HD %d%s, %s", text, c.NH, c.NKV, c.HD,
                                              pre_bias ? " before the bias" : "", run.name.c_str());
                    std::vector<uint32_t> codes[2][2];  // keys and values, place
                    std::vector<floatX> values[2][2];
                    for (int kind : {0, 1})
                        for (int place : {0, 1}) {
                            std::vector<floatX> x =
                                random_values<floatX>(ROWS * width, 20 + 2 * kind + place, kind ? 1.0f : 2.0f);
                            codes[kind][place].resize(ROWS * words);
                            std::vector<CacheRow> writes;
                            for (int64_t r = 0; r < ROWS; r++) writes.push_back({0, r});
                            uint32_t* to[2] = {codes[kind][place].data(), nullptr};
                            kv_quantize_cpu(q, x.data(), width, x.data(), width,
                                            pre_bias && kind == 0 ? b.data() : nullptr, to, writes.data(), ROWS);
                            values[kind][place] = x;
                        }
                    TestBuffer<uint32_t> k0(codes[0][0], run.dev), k1(codes[0][1], run.dev), v0(codes[1][0], run.dev),
                        v1(codes[1][1], run.dev);
                    TestBuffer<floatX> fv0(values[1][0], run.dev), fv1(values[1][1], run.dev), bias(b, run.dev),
                        queries(random_values<floatX>(T * qw, 25, 2.0f), run.dev), out(T * qw, run.dev);
                    TestBuffer<float> lse(T * c.NH, run.dev), cos(rope.cos, run.dev), sin(rope.sin, run.dev);
                    TestBuffer<KeyRange> ranges(c.ranges, run.dev);
                    KeyRotation rotation;
                    if (pre_bias) rotation = {bias.data, cos.data, sin.data};
                    attention_decode_codes(out.data, lse.data, {queries.data, qw}, {k0.data, v0.data, q, rotation},
                                           {k1.data, v1.data, q, rotation}, {ranges.data, most}, T, c.NH, run.dev);
                    std::vector<floatX> got = out.get();
                    std::vector<float> got_lse = lse.get();
                    for (int64_t t = 0; t < T; t++) {
                        const KeyRange& r = c.ranges[t];
                        std::vector<floatX> keys[2] = {values[0][0], values[0][1]};
                        if (pre_bias) {
                            std::vector<int> position;
                            for (int j = 0; j < r.n0 + r.n1; j++) position.push_back(j);
                            floatX *a = keys[0].data() + r.row0 * width, *d = keys[1].data() + r.row1 * width;
                            rope_cpu({a, width}, {a, width}, position.data(), rope, r.n0, c.NKV, 1.0f);
                            rope_cpu({d, width}, {d, width}, position.data() + r.n0, rope, r.n1, c.NKV, 1.0f);
                        }
                        TestBuffer<floatX> fk0(keys[0], run.dev), fk1(keys[1], run.dev), want(qw, run.dev);
                        TestBuffer<float> want_lse(c.NH, run.dev);
                        attention_decode(want.data, want_lse.data, {queries.data + t * qw, qw},
                                         {fk0.data, fv0.data, width, width}, {fk1.data, fv1.data, width, width},
                                         {ranges.data + t, most}, {1, c.NH, c.NKV, c.HD}, run.dev);
                        ASSERT_EQ(memcmp(want.get().data(), got.data() + t * qw, qw * sizeof(floatX)), 0)
                            << what << ", row " << t;
                        ASSERT_EQ(memcmp(want_lse.get().data(), got_lse.data() + t * c.NH, c.NH * 4), 0)
                            << what << ", row " << t;
                    }
                }
            }
}

// ---------------------------------------------------------------------------------------------------------------------
// whole models

static void golden_model(Model& m, const char* name, const char* kv, bool pre_bias, Device dev,
                         const char* weights = "none") {
    m.dev = dev;
    model_load(m, std::string("test/golden/") + name);
    model_quantize(m, rules_of(weights, "all"), false);
    model_quantize_kv(m, rules_for("kv_cache", kv), pre_bias);
    model_refresh(m);
}

static std::vector<Device> devices() {
    std::vector<Device> list = {Device()};
    if (model_device().cuda) list.push_back(model_device());
    return list;
}

// a simulated step takes seconds: less there
static std::vector<std::vector<int>> prompts(Device dev) {
    if (dev.cuda) return {{5, 9, 3, 4}, {1}};
    return {{5, 9, 3}, {1}, {2, 2, 2, 2, 2, 2, 2}, {60, 11, 12, 50, 4}};
}
static int longest(Device dev) { return dev.cuda ? 3 : 9; }
static int generations(Device dev) { return dev.cuda ? 2 : 3; }

static RolloutConfig sampling(Device dev) {
    RolloutConfig c;
    c.max_completion_length = longest(dev);
    c.stop_tokens = {7, 8};
    c.n_allowed = 67;
    c.max_sequences = 64;
    c.seed = 4;
    return c;
}

static std::vector<Completion> sample(Model& m, RolloutConfig c) {
    RolloutState state;
    c.pass = model_pack(m);
    std::vector<Completion> done = rollout(m, state, prompts(m.dev), generations(m.dev), c);
    model_unpack(m);
    return done;
}

static GrpoConfig grpo(int64_t micro_batch_tokens, Device dev) {
    GrpoConfig c;
    c.num_generations = generations(dev);
    c.max_completion_length = longest(dev);
    c.micro_batch_tokens = micro_batch_tokens;
    return c;
}

static bool same_completions(const std::vector<Completion>& a, const std::vector<Completion>& b) {
    for (size_t i = 0; i < a.size(); i++)
        if (a[i].tokens != b[i].tokens || !same_bits(a[i].logps, b[i].logps)) return false;
    return a.size() == b.size();
}

static std::vector<float> advantages(size_t n) {
    std::vector<float> a;
    for (size_t i = 0; i < n; i++) a.push_back((float)(i % 3) - 1.0f);
    return a;
}

struct KvModel {
    const char* name;
    bool pre_bias;
};
static const KvModel kv_models[] = {{"qwen2", false}, {"qwen2", true}, {"qwen3", false}, {"llama", false}};

static std::string text(const KvModel& k, const char* kv, Device dev) {
    return format("%s %s%s on %s", k.name, kv, k.pre_bias ? " before the bias" : "", dev.cuda ? "simt" : "cpu");
}

// rollout, then the policy pass: whole, cut into micro-batches, with recomputed activations
TEST(KvModels, SamplerAndTrainerAgreeToTheBit) {
    for (Device dev : devices())
        for (const KvModel& k : kv_models)
            for (const char* kv : {"int8:token:asym", "int4:token:asym", "int4:g8:sym", "int2:token:asym",
                                   "fp8e4m3:token", "fp8e5m2:token", "nf4:g8", "int4:token:asym; layers.0=none"}) {
                // on the simulated device a mixture of layers, and fp8
                if (dev.cuda && strcmp(kv, k.pre_bias ? "int4:token:asym; layers.0=none" : "fp8e4m3:token")) continue;
                if (dev.cuda && !k.pre_bias && strcmp(k.name, "qwen3")) continue;
                Model m;
                golden_model(m, k.name, kv, k.pre_bias, dev);
                std::vector<Completion> done = sample(m, sampling(dev));
                std::vector<float> gradients[3];
                for (int run : {0, 1, 2}) {
                    int64_t budget = run == 1 ? 20 : 1024;
                    if (dev.cuda && run == 1) continue;
                    Trainer t;
                    trainer_init(t, m, budget, run == 2);
                    PolicyPass p = policy_pass(t, prompts(dev), done, {advantages(done.size())}, grpo(budget, dev));
                    EXPECT_EQ(p.logp_difference_max, 0.0) << text(k, kv, dev) << ", run " << run;
                    EXPECT_EQ(p.ratio_min, 1.0) << text(k, kv, dev);
                    EXPECT_EQ(p.ratio_max, 1.0) << text(k, kv, dev);
                    gradients[run].assign(t.grads.data, t.grads.data + t.grads.size);
                }
                EXPECT_TRUE(same_bits(gradients[0], gradients[2])) << text(k, kv, dev) << ": recomputed";
                EXPECT_GT(sum_of_squares_cpu(gradients[0].data(), (int64_t)gradients[0].size()), 0.0);
                if (dev.cuda) continue;
                std::vector<double> whole(gradients[0].begin(), gradients[0].end());
                // bf16 rounds a shared prompt's dk and dv after their sum over the completions of a micro-batch
                const bool half = sizeof(floatX) == 2;
                expect_agree(gradients[1], whole, half ? 1e-4 : 1e-8, half ? 5e-3 : 1e-4,
                             text(k, kv, dev) + ", micro-batches");
            }
}

TEST(KvModels, TheBatchDoesNotChangeABitAndTheQuantizerDoes) {
    for (Device dev : devices())
        for (const KvModel& k : kv_models) {
            if (dev.cuda && !k.pre_bias) continue;
            Model m;
            golden_model(m, k.name, "int4:token:asym", k.pre_bias, dev);
            std::vector<Completion> reference = sample(m, sampling(dev));
            for (int slots : {1, 5}) {
                if (dev.cuda && slots == 5) continue;
                RolloutConfig c = sampling(dev);
                c.max_sequences = slots, c.prefill_tokens = 1;
                EXPECT_TRUE(same_completions(reference, sample(m, c))) << text(k, "int4", dev) << ", " << slots;
            }
            if (dev.cuda) continue;
            Model none;
            golden_model(none, k.name, "none", false, dev);
            EXPECT_FALSE(same_completions(reference, sample(none, sampling(dev)))) << text(k, "int4", dev);
        }
}

// The codes are what decode reads: with a cache of another state, the tokens would differ. And it is small.
TEST(KvModels, TheCacheHoldsCodesAndNoFloats) {
    Model m;
    golden_model(m, "qwen3", "int4:token:asym", false, Device());
    RolloutState s;
    RolloutShape shape = rollout_shape(4, 3, 7, sampling(Device()));
    rollout_allocate(s, m, shape);
    for (int place : {0, 1}) {
        EXPECT_EQ(s.cache.k[place].size + s.cache.v[place].size, 0u);
        // 2 heads of 16: 2 words of scales and 2 x 8 bytes of codes, in whole 16 bytes
        EXPECT_EQ(s.cache.k_codes[place].bytes(), (size_t)(2 * s.cache.rows[place] * 32));
        EXPECT_EQ(s.cache.v_codes[place].bytes(), s.cache.k_codes[place].bytes());
    }
}

// mean log-probability of a fixed text, and the gradient of its mean
struct Scored {
    double mean = 0;
    std::vector<float> logp, gradient;
};
static Scored score(Model& m) {
    std::vector<int> tokens;
    for (int i = 0; i < 40; i++) tokens.push_back((i * i * 7 + 3 * i) % 67);
    Trainer t;
    trainer_init(t, m, 40, false);
    Batch b;
    ScoredTokens s;
    batch_add_sequence(b, tokens.data(), 40);
    score_last_sequence(s, b, 1);
    score_forward(m, t.acts, t.score, b, s, 1.0f);
    score_fetch(s, t.score, m.dev);
    Scored r;
    for (float x : s.logp) r.mean += x / s.size();
    r.logp = s.logp;
    score_backward(t, std::vector<float>(s.size(), 1.0f / s.size()), 1.0f);
    r.gradient.assign(t.grads.data, t.grads.data + t.grads.size);
    return r;
}

// straight through: at 8 bits the gradient of every parameter is nearly that without a quantizer, the bias of k
// included
TEST(KvModels, TheBackwardIsStraightThrough) {
    for (Device dev : devices())
        for (const KvModel& k : kv_models) {
            Model none, m;
            golden_model(none, k.name, "none", false, dev);
            golden_model(m, k.name, "int8:token:asym", k.pre_bias, dev);
            if (dev.cuda && !k.pre_bias) continue;
            Scored a = score(none), b = score(m);
            EXPECT_NEAR(a.mean, b.mean, 0.02) << text(k, "int8", dev);
            for (const ParamTensor& t : m.tensors) {
                // the bias of k does nothing but through the differences of rotations; what is left of it is small
                double tolerance = t.name.find("k_proj.bias") != std::string::npos ? 0.02 : 2e-3;
                std::vector<double> want(a.gradient.begin() + t.offset, a.gradient.begin() + t.offset + t.count());
                std::vector<float> got(b.gradient.begin() + t.offset, b.gradient.begin() + t.offset + t.count());
                expect_agree(got, want, tolerance, 0.05, text(k, "int8", dev) + " " + t.name);
            }
        }
}

// a bias that takes the range of the head for itself is why there is the option
TEST(KvModels, QuantizingBeforeALargeBiasIsNearerToTheModel) {
    auto error = [](const char* kv, bool pre_bias) {
        Scored r[2];
        for (int i : {0, 1}) {
            Model m;
            golden_model(m, "qwen2", i ? kv : "none", i && pre_bias, Device());
            for (const ParamTensor& t : m.tensors)
                if (t.name.find("k_proj.bias") != std::string::npos)
                    for (int64_t j = 0; j < t.count(); j += 4) m.master[t.offset + j] = 40.0f;
            model_refresh(m);
            r[i] = score(m);
        }
        double sum = 0;
        for (size_t i = 0; i < r[0].logp.size(); i++) sum += std::fabs((double)r[0].logp[i] - r[1].logp[i]);
        return sum / r[0].logp.size();
    };
    double after = error("int4:token:asym", false), before = error("int4:token:asym", true);
    EXPECT_LT(before, 0.5 * after) << before << " before the bias, " << after << " after";
    EXPECT_GT(before, 0.0);
}

TEST(KvModels, AStepOfGrpoWithQuantizedWeightsAndCache) {
    for (Device dev : devices()) {
        Model m;
        golden_model(m, "qwen2", "int4:token:asym", true, dev, "int4:channel:sym");
        Trainer t;
        trainer_init(t, m, 1024, true);
        std::vector<float> before(m.master.data, m.master.data + m.num_params);
        for (int step = 0; step < (dev.cuda ? 1 : 2); step++) {
            RolloutConfig c = sampling(dev);
            c.step = step;
            std::vector<Completion> done = sample(m, c);
            PolicyPass p = policy_pass(t, prompts(dev), done, {advantages(done.size())}, grpo(1024, dev));
            EXPECT_EQ(p.logp_difference_max, 0.0) << "step " << step;
            OptimizerResult o = optimizer_apply(t, 1e-2, p.loss);
            EXPECT_TRUE(!o.skipped && o.grad_norm > 0);
        }
        EXPECT_FALSE(same_bits(before, std::vector<float>(m.master.data, m.master.data + m.num_params)));
    }
}

TEST(KvModels, RefusesWhatDoesNotFit) {
    ModelConfig qwen2, qwen3;
    qwen2.head_dim = 64, qwen2.qkv_bias = true;
    qwen3.head_dim = 20, qwen3.qk_norm = true;
    auto message = [](const ModelConfig& c, const char* text, bool pre_bias) -> std::string {
        try {
            check_kv_rules(c, rules_for("kv_cache", text), pre_bias);
        } catch (const Error& e) { return e.what(); }
        return "";
    };
    for (const char* text : quantizers) EXPECT_EQ(message(qwen2, text, true), "") << text;
    EXPECT_EQ(message(qwen2, "mxfp4", false), "");
    EXPECT_EQ(message(qwen2, "none", false), "");
    struct Refusal {
        const ModelConfig& config;
        const char* text;
        bool pre_bias;
        const char* part;
    };
    for (const Refusal& r :
         {Refusal{qwen2, "int8:tensor", false, "use token"}, Refusal{qwen2, "nvfp4", false, "the scale of the others"},
          Refusal{qwen2, "ternary", false, "the scale of the others"}, Refusal{qwen2, "nf4:dq", false, "leave :dq out"},
          Refusal{qwen2, "int4:token:asym:mse", false, "amax7"}, Refusal{qwen2, "mid4:token:gauss", false, "amax"},
          Refusal{qwen2, "int4:g48", false, "do not divide heads of 64"},
          Refusal{qwen3, "nf4", false, "do not divide heads of 20"},
          Refusal{qwen3, "mxfp8", false, "do not divide heads of 20"},
          Refusal{qwen3, "int2:g10", false, "do not fill whole bytes"},
          Refusal{qwen3, "int4:token:asym", true, "no bias"}, Refusal{qwen2, "none", true, "--kv_cache"},
          Refusal{qwen2, "int4:channel", false, "token"}}) {
        std::string got = message(r.config, r.text, r.pre_bias);
        EXPECT_NE(got.find(r.part), std::string::npos) << r.text << ": " << got;
        EXPECT_NE(got.find("--k"), std::string::npos) << got;
    }
}
