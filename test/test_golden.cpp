// The whole model against transformers: logits, loss, log-probabilities, entropies and the gradient of every parameter
// of tiny random Qwen2, Qwen3 and Llama models (test/make_golden.py), with stored and with recomputed activations; and
// the forward over a KV cache against the packed forward, bit for bit.
#include <gtest/gtest.h>
#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <vector>
#if defined(_OPENMP)
#include <omp.h>
#endif
#include "../train/trainer.cuh"
#include "load_model.h"
#include "test_device.h"
#include "test_rules.h"

// fp32: what two orders of summation may differ by. bf16: 8 bits of mantissa against transformers' fp32.
#if defined(PRECISION_FP32)
static constexpr double LOGITS_RELATIVE = 1e-5, LOSS_TOLERANCE = 1e-6, TOKEN_TOLERANCE = 1e-5;
static constexpr double LOGITS_COSINE = 1 - 1e-10, GRADIENT_COSINE = 1 - 1e-10, GRADIENT_NORM = 1e-5;
#else
static constexpr double LOGITS_RELATIVE = 0.1, LOSS_TOLERANCE = 0.01, TOKEN_TOLERANCE = 0.5;
static constexpr double LOGITS_COSINE = 0.998, GRADIENT_COSINE = 0.998, GRADIENT_NORM = 0.05;
#endif

struct Golden {
    std::vector<int> tokens, starts;
    std::vector<float> logits, logp, entropy;
    float loss = 0.0f;
    SafetensorsFile file;
};

static std::vector<int> read_ints(const SafetensorsFile& f, const std::string& name) {
    const StTensor* t = st_find(f.tensors, name);
    if (!t || t->dtype != "I32") fail("golden tensor %s of type I32 is missing", name.c_str());
    std::vector<int> v(t->count);
    memcpy(v.data(), t->data, t->bytes);
    return v;
}

static std::vector<float> read_floats(const SafetensorsFile& f, const std::string& name) {
    const StTensor* t = st_find(f.tensors, name);
    if (!t) fail("golden tensor %s is missing", name.c_str());
    std::vector<float> v(t->count);
    st_read_float(*t, v.data());
    return v;
}

static Golden read_golden(const std::string& folder) {
    Golden g;
    g.file = st_open(folder + "/golden.safetensors");
    g.tokens = read_ints(g.file, "tokens");
    g.starts = read_ints(g.file, "cu_seqlens");
    g.logits = read_floats(g.file, "logits");
    g.logp = read_floats(g.file, "logp");
    g.entropy = read_floats(g.file, "entropy");
    g.loss = read_floats(g.file, "loss").at(0);
    return g;
}

struct Difference {
    double cosine = 1.0, norm_ratio = 1.0, relative = 0.0;  // relative: |a - b| / |b|
};

static Difference difference(const float* a, const float* b, int64_t n) {
    double aa = 0, bb = 0, ab = 0, dd = 0;
    for (int64_t i = 0; i < n; i++) {
        aa += (double)a[i] * a[i], bb += (double)b[i] * b[i], ab += (double)a[i] * b[i];
        dd += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    }
    return {ab / std::sqrt(aa * bb), std::sqrt(aa / bb), std::sqrt(dd / bb)};
}

struct Result {
    std::vector<float> logits, grads, logp;
    std::vector<floatX> hidden;
    std::string summary;
};

struct GoldenModel : testing::TestWithParam<const char*> {
    std::string folder() const { return std::string("test/golden/") + GetParam(); }
};

// forward, loss and backward of the three sequences in one batch
static Result run_model(const std::string& folder, const Golden& g, ActivationMode mode, Model& m) {
    Result r;
    m.dev = model_device();
    model_load(m, folder);
    model_refresh(m);
    Trainer t;
    const int64_t T = (int64_t)g.tokens.size();
    trainer_init(t, m, T, mode == ActivationMode::recompute);
    EXPECT_EQ(t.acts.mode, mode);
    memset((void*)t.acts.half.data, 0xFF, t.acts.half.bytes());  // NaN: nothing may rest on zeroed memory
    memset((void*)t.acts.full.data, 0xFF, t.acts.full.bytes());
    Batch b;
    ScoredTokens s;
    for (size_t i = 0; i + 1 < g.starts.size(); i++) {
        batch_add_sequence(b, g.tokens.data() + g.starts[i], g.starts[i + 1] - g.starts[i]);
        score_last_sequence(s, b, 0);
    }
    EXPECT_EQ(s.size(), (int64_t)g.logp.size());
    score_forward(m, t.acts, t.score, b, s, 1.0f);
    score_fetch(s, t.score, m.dev);
    r.logits.assign(T * m.V(), NAN);
    gemm_nt(r.logits.data(), t.acts.hidden, m.head.work, nullptr, T, m.V(), m.C());
    r.hidden.assign(t.acts.hidden, t.acts.hidden + T * m.C());
    r.logp = s.logp;

    double loss = 0.0, worst_logp = 0.0, worst_entropy = 0.0, scale = std::fmax(1.0, std::fabs(g.loss));
    for (int64_t i = 0; i < s.size(); i++) {
        loss -= (double)s.logp[i] / (double)s.size();
        worst_logp = std::fmax(worst_logp, std::fabs((double)s.logp[i] - g.logp[i]));
        worst_entropy = std::fmax(worst_entropy, std::fabs((double)s.entropy[i] - g.entropy[i]));
        EXPECT_FALSE(std::isnan(s.logp[i]) || std::isnan(s.entropy[i])) << "scored token " << i;
    }
    // relative: the golden loss of about 8 is itself an fp32 number, whose last bit is worth 1e-6
    EXPECT_LE(std::fabs(loss - g.loss), LOSS_TOLERANCE * scale);
    EXPECT_LE(worst_logp, TOKEN_TOLERANCE);
    EXPECT_LE(worst_entropy, TOKEN_TOLERANCE);
    r.summary = format("loss %.7f (relative difference %.1e), worst logp %.1e, worst entropy %.1e", loss,
                       std::fabs(loss - g.loss) / scale, worst_logp, worst_entropy);

    std::vector<float> dlogp(s.size(), -1.0f / (float)s.size());
    score_backward(t, dlogp, 1.0f);
    r.grads.assign(t.grads.data, t.grads.data + t.grads.size);
    return r;
}

TEST_P(GoldenModel, LogitsLossAndEveryGradientAgreeWithTransformers) {
    Golden g = read_golden(folder());
    Model m;
    Result r = run_model(folder(), g, ActivationMode::save_all, m);
    printf("%s %s: %s\n", GetParam(), PRECISION_NAME, r.summary.c_str());
    const int64_t T = (int64_t)g.tokens.size(), V = m.V();
    ASSERT_EQ((int64_t)g.logits.size(), T * V);
    double worst_relative = 0.0, worst_max = 0.0, least_cosine = 1.0;
    for (int64_t t = 0; t < T; t++) {
        const float *a = r.logits.data() + t * V, *b = g.logits.data() + t * V;
        Difference d = difference(a, b, V);
        double largest = 0.0, off = 0.0;
        for (int64_t v = 0; v < V; v++) {
            largest = std::fmax(largest, std::fabs(b[v]));
            off = std::fmax(off, std::fabs((double)a[v] - b[v]));
        }
        EXPECT_LE(d.relative, LOGITS_RELATIVE) << "token " << t;
        EXPECT_LE(off / largest, LOGITS_RELATIVE) << "token " << t;
        EXPECT_GE(d.cosine, LOGITS_COSINE) << "token " << t;
        worst_relative = std::fmax(worst_relative, d.relative);
        worst_max = std::fmax(worst_max, off / largest);
        least_cosine = std::fmin(least_cosine, d.cosine);
    }
    printf("  logits: worst row |a-b|/|b| %.1e, max|a-b|/max|b| %.1e, 1-cosine %.1e\n", worst_relative, worst_max,
           1 - least_cosine);

    double worst_cosine = 1.0, worst_norm = 0.0;
    std::string cosine_name, norm_name;
    std::set<std::string> compared;
    for (const ParamTensor& p : m.tensors) {
        std::vector<float> expected = read_floats(g.file, "grad." + p.name);
        ASSERT_EQ((int64_t)expected.size(), p.count()) << p.name;
        Difference d = difference(r.grads.data() + p.offset, expected.data(), p.count());
        EXPECT_GT(d.cosine, GRADIENT_COSINE) << p.name;  // false for NaN
        EXPECT_LE(std::fabs(d.norm_ratio - 1.0), GRADIENT_NORM) << p.name;
        compared.insert("grad." + p.name);
        if (!(d.cosine >= worst_cosine)) worst_cosine = d.cosine, cosine_name = p.name;
        if (!(std::fabs(d.norm_ratio - 1.0) <= worst_norm))
            worst_norm = std::fabs(d.norm_ratio - 1.0), norm_name = p.name;
    }
    printf("  gradients: worst 1-cosine %.1e (%s), |norm ratio - 1| %.1e (%s)\n", 1 - worst_cosine, cosine_name.c_str(),
           worst_norm, norm_name.c_str());
    for (const auto& [name, tensor] : g.file.tensors) {
        bool known = name.rfind("grad.", 0) != 0 || compared.count(name);
        EXPECT_TRUE(known) << name << " is a parameter of transformers' model and not of ours";
    }
}

TEST_P(GoldenModel, RecomputedActivationsGiveTheSameBits) {
    Golden g = read_golden(folder());
    Model a, b;
    Result stored = run_model(folder(), g, ActivationMode::save_all, a);
    Result recomputed = run_model(folder(), g, ActivationMode::recompute, b);
    EXPECT_EQ(memcmp(stored.logits.data(), recomputed.logits.data(), stored.logits.size() * sizeof(float)), 0);
    EXPECT_EQ(memcmp(stored.logp.data(), recomputed.logp.data(), stored.logp.size() * sizeof(float)), 0);
    EXPECT_EQ(memcmp(stored.grads.data(), recomputed.grads.data(), stored.grads.size() * sizeof(float)), 0);
}

#if defined(_OPENMP)
TEST_P(GoldenModel, TheNumberOfThreadsDoesNotChangeABit) {
    Golden g = read_golden(folder());
    const int threads = omp_get_max_threads();
    std::vector<Result> r;
    for (int n : {1, 2, 3}) {
        omp_set_num_threads(n);
        Model m;
        r.push_back(run_model(folder(), g, ActivationMode::save_all, m));
        EXPECT_EQ(memcmp(r[0].logits.data(), r.back().logits.data(), r[0].logits.size() * sizeof(float)), 0);
        EXPECT_EQ(memcmp(r[0].grads.data(), r.back().grads.data(), r[0].grads.size() * sizeof(float)), 0);
    }
    omp_set_num_threads(threads);
}
#endif

TEST_P(GoldenModel, GradientsAccumulate) {
    Golden g = read_golden(folder());
    Model m;
    Result once = run_model(folder(), g, ActivationMode::save_all, m);
    Trainer t;
    trainer_init(t, m, (int64_t)g.tokens.size(), false);
    const int64_t R = (int64_t)g.logp.size();
    for (size_t i = 0; i + 1 < g.starts.size(); i++) {  // one sequence at a time
        Batch b;
        ScoredTokens s;
        batch_add_sequence(b, g.tokens.data() + g.starts[i], g.starts[i + 1] - g.starts[i]);
        score_last_sequence(s, b, 0);
        score_forward(m, t.acts, t.score, b, s, 1.0f);
        score_backward(t, std::vector<float>(s.size(), -1.0f / (float)R), 1.0f);
    }
    for (const ParamTensor& p : m.tensors) {
        Difference d = difference(t.grads.data + p.offset, once.grads.data() + p.offset, p.count());
        EXPECT_LE(d.relative, 1e-6) << p.name;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// KV cache

// Every sequence over the cache: its first `prompt` tokens as one block in place 0, then a token at a time in place 1,
// all sequences together in one batch. -> the hidden states [T,C], in the order of g.tokens
static std::vector<floatX> decode(Model& m, const Golden& g, int prompt, const Pass& pass = Pass()) {
    const int N = (int)g.starts.size() - 1, C = m.C();
    int longest = 0;
    for (int i = 0; i < N; i++) longest = std::max(longest, g.starts[i + 1] - g.starts[i]);
    KVCache cache;
    for (int place : {0, 1}) {
        kv_cache_allocate(cache, m, place, (int64_t)N * longest + 3, "keys and values", "");
        memset((void*)cache.k[place].data, 0xFF, cache.k[place].bytes());
        memset((void*)cache.v[place].data, 0xFF, cache.v[place].bytes());
    }
    Activations acts;
    activations_allocate(acts, m, (int64_t)g.tokens.size(), ActivationMode::inference);
    memset((void*)acts.half.data, 0xFF, acts.half.bytes());
    std::vector<floatX> hidden(g.tokens.size() * C);
    auto first_row = [&](int i) { return (int64_t)(N - 1 - i) * longest + 3; };  // not where a packed batch has them
    auto run = [&](Batch& b, const std::vector<int>& at) {
        model_forward(m, acts, b, pass, &cache);
        for (size_t i = 0; i < at.size(); i++)
            memcpy((void*)(hidden.data() + (int64_t)at[i] * C), acts.hidden + i * C, C * sizeof(floatX));
    };
    Batch prefill;
    std::vector<int> at;
    for (int i = 0; i < N; i++) {
        int n = std::min(prompt, g.starts[i + 1] - g.starts[i]);
        batch_add_sequence(prefill, g.tokens.data() + g.starts[i], n);
        for (int j = 0; j < n; j++) {
            prefill.writes.push_back({0, first_row(i) + j});
            at.push_back(g.starts[i] + j);
        }
    }
    if (!at.empty()) run(prefill, at);
    for (int j = prompt; j < longest; j++) {
        Batch b;
        at.clear();
        for (int i = 0; i < N; i++) {
            if (g.starts[i] + j >= g.starts[i + 1]) continue;
            KeyRange range;
            range.row0 = first_row(i), range.n0 = prompt;
            range.row1 = first_row(N - 1 - i), range.n1 = j - prompt + 1;
            b.tokens.push_back(g.tokens[g.starts[i] + j]);
            b.positions.push_back(j);
            b.ranges.push_back(range);
            b.writes.push_back({1, range.row1 + j - prompt});
            at.push_back(g.starts[i] + j);
        }
        run(b, at);
    }
    return hidden;
}

TEST_P(GoldenModel, DecodingOverTheCacheGivesTheBitsOfThePackedForward) {
    Golden g = read_golden(folder());
    Model m;
    Result packed = run_model(folder(), g, ActivationMode::save_all, m);
    for (bool pack : {false, true}) {
        const Pass pass = pack ? model_pack(m) : Pass();
        for (int prompt : {0, 1, 2, 9, 23}) {
            std::vector<floatX> hidden = decode(m, g, prompt, pass);
            for (size_t t = 0; t < g.tokens.size(); t++)
                EXPECT_EQ(memcmp(hidden.data() + t * m.C(), packed.hidden.data() + t * m.C(), m.C() * sizeof(floatX)),
                          0)
                    << "prompt of " << prompt << " tokens, token " << t << (pack ? ", packed weights" : "");
        }
    }
    model_unpack(m);
}

// What the sampler computes from packed codes is what the trainer computes from the working weights
TEST_P(GoldenModel, DecodingFromCodesGivesTheBitsOfTheTrainersForward) {
    Golden g = read_golden(folder());
    // down has 44 columns, which only whole rows divide
    const char* const all = "all";
    const char* const but_down = "q,k,v,o,gate,up";
    struct {
        const char *text, *which;
        int products;
    } const formats[] = {{"int8:channel:sym", all, 4},
                         {"int6:channel:asym", all, 4},
                         {"int5:tensor:sym", all, 4},
                         {"int4:channel:sym:mse", all, 4},
                         {"int3:channel:asym", all, 4},
                         {"int4:g32:sym:signedmax", but_down, 3},
                         {"int2:g16:asym", "q,k,v,gate", 2},
                         {"ternary:tensor", all, 4},
                         {"nf4:g32", but_down, 3},
                         {"nf4:g32:dq", but_down, 3},
                         {"fp8e4m3:channel", all, 4},
                         {"fp8e5m2:tensor", all, 4},
                         {"mxfp8", but_down, 3},
                         {"mxfp4", but_down, 3},
                         {"nvfp4", but_down, 3}};
    int turn = GetParam()[0] == 'l' ? 0 : GetParam()[4] == '2' ? 1 : 2;
    for (auto [text, which, products] : formats) {
        Model m;
        m.dev = model_device();
        if (m.dev.cuda && turn++ % 3) continue;  // simulated: a third of the formats for each model
        m.codes_beyond = 0;
        model_load(m, folder());
        model_quantize(m, rules_of(text, which), false);
        model_refresh(m);
        Activations acts;
        const int64_t T = (int64_t)g.tokens.size();
        activations_allocate(acts, m, T, ActivationMode::save_all);
        Batch b;
        for (size_t i = 0; i + 1 < g.starts.size(); i++)
            batch_add_sequence(b, g.tokens.data() + g.starts[i], g.starts[i + 1] - g.starts[i]);
        model_forward(m, acts, b);
        std::vector<floatX> hidden(acts.hidden, acts.hidden + T * m.C());
        const Pass packed = model_pack(m);
        int from_codes = 0;
        for (const Layer& layer : m.layers)
            for (const Linear* l : layer_linears(layer))
                for (const PackedRows& r : l->packed) from_codes += r.codes.N > 0;
        EXPECT_EQ(from_codes, generates_from_codes(m) ? products * m.L() : 0) << text;
        // what is generated from codes, or on the CPU from a copy, does not read the working weights
        for (const ParamTensor& t : m.tensors)
            if (t.kind == ParamKind::linear && (!m.dev.cuda || from_codes == 4 * m.L()))
                memset((void*)(m.work.data + t.offset), 0xFF, t.count() * sizeof(floatX));
        EXPECT_EQ(memcmp(decode(m, g, 9, packed).data(), hidden.data(), hidden.size() * sizeof(floatX)), 0) << text;
    }
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenModel, testing::Values("qwen2", "qwen3", "llama"),
                         [](const testing::TestParamInfo<const char*>& i) { return std::string(i.param); });
