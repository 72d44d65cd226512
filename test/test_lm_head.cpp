// LM head, sampling and the policy loss on every backend. LM head: log-probability, entropy and gradients against a
// float64 restatement. Sampling: the kernel draws the token that the CPU loop draws, unless float64 says that the draw
// lies on a boundary; its log-probability is the trainer's to the bit. Policy loss: against a restatement of the sums.
#include "operator_test.h"
#include "test_device.h"
#include "../kernels/sampling.cuh"
#include <algorithm>
#include <numeric>

static std::vector<int> random_tokens(size_t n, uint32_t tensor, int64_t V) {
    std::vector<int> v(n);
    for (size_t i = 0; i < n; i++) v[i] = (int)(rng_bits(1, RNG_INIT, tensor, (uint32_t)i, 0).x[0] % (uint64_t)V);
    return v;
}

template <class T>
static std::vector<T> rows_of(const std::vector<T>& v, int64_t first, int64_t n, int64_t width) {
    return std::vector<T>(v.begin() + first * width, v.begin() + (first + n) * width);
}

// ---------------------------------------------------------------------------------------------------------------------
// LM head

struct HeadCase {
    int64_t T, C, V;
    float inverse_temperature, scale;  // scale: of the weights
};

static std::vector<HeadCase> head_cases() {
    return {{1, 8, 1, 1.0f, 1.0f},
            {1, 8, 67, 1.0f, 2.0f},
            {5, 44, 259, 1.0f / 0.7f, 1.0f},
            {5, 64, 4096, 1.0f, 0.5f},
            {5, 8, 4097, 1.25f, 3.0f},
            {1, 44, 9000, 0.5f, 40.0f},  // logits far below the largest: their exponentials vanish
            {33, 8, 9000, 1.0f, 2.0f},
            {LM_HEAD_ROWS + 2, 8, 67, 1.0f, 2.0f}};
}

static std::string text(const HeadCase& c, const Backend& run) {
    return format("T %lld C %lld V %lld, %s", (long long)c.T, (long long)c.C, (long long)c.V, run.name.c_str());
}

struct HeadInput {
    std::vector<floatX> hidden, weight;
    std::vector<int> targets;
    std::vector<float> dlogp, dweight;
    std::vector<float> dentropy;  // empty: the loss has none
};

static HeadInput head_input(const HeadCase& c) {
    HeadInput in;
    in.hidden = random_values<floatX>(c.T * c.C, 1);
    in.weight = random_values<floatX>(c.V * c.C, 2, c.scale);
    in.targets = random_tokens(c.T, 3, c.V);
    in.targets[0] = (int)c.V - 1;
    if (c.T > 2) in.targets[1] = 0, in.targets[2] = (int)std::min(c.V - 1, LM_HEAD_COLUMNS);
    in.dlogp = random_values<float>(c.T, 4);
    in.dweight = random_values<float>(c.V * c.C, 5, 0.1f);
    return in;
}

struct HeadResult {
    std::vector<float> logp, lse, entropy, dweight;
    std::vector<floatX> dhidden;
};

static HeadResult run_head(const HeadCase& c, const HeadInput& in, const Backend& run) {
    select_backend(run);
    Device dev = run.dev;
    LmHeadScratch scratch;
    TestBuffer<floatX> hidden(in.hidden, dev), weight(in.weight, dev), dhidden(c.T * c.C, dev);
    TestBuffer<int> targets(in.targets, dev);
    TestBuffer<float> logp(c.T, dev), lse(c.T, dev), entropy(c.T, dev), dlogp(in.dlogp, dev), dweight(in.dweight, dev);
    TestBuffer<float> dentropy(in.dentropy, dev);
    lm_head_forward(logp.data, lse.data, entropy.data,
                    {hidden.data, weight.data, targets.data, c.T, c.C, c.V, c.inverse_temperature}, scratch, dev);
    lm_head_backward(dhidden.data, dweight.data, dlogp.data, lse.data,
                     {hidden.data, weight.data, targets.data, c.T, c.C, c.V, c.inverse_temperature}, scratch, dev,
                     in.dentropy.empty() ? LmHeadEntropy() : LmHeadEntropy{entropy.data, dentropy.data});
    TestBuffer<float> logp2(c.T, dev), lse2(c.T, dev);
    LmHeadScratch planned;
    lm_head_scratch_allocate(planned, c.T, c.C, c.V, false, dev);
    lm_head_forward(logp2.data, lse2.data, nullptr,
                    {hidden.data, weight.data, targets.data, c.T, c.C, c.V, c.inverse_temperature}, planned, dev);
    HeadResult r = {logp.get(), lse.get(), entropy.get(), dweight.get(), dhidden.get()};
    EXPECT_TRUE(same_bits(r.logp, logp2.get()) && same_bits(r.lse, lse2.get())) << text(c, run) << ": without entropy";
    return r;
}

struct HeadReference {
    std::vector<double> logp, lse, entropy, dhidden, dweight;
};

static HeadReference head_reference(const HeadCase& c, const HeadInput& in) {
    HeadReference ref;
    ref.dhidden.assign(c.T * c.C, 0.0);
    ref.dweight.assign(c.V * c.C, 0.0);
    std::vector<double> z(c.V);
    for (int64_t t = 0; t < c.T; t++) {
        double largest = -1e300, sum = 0, entropy = 0;
        for (int64_t v = 0; v < c.V; v++) {
            double dot = 0;
            for (int64_t i = 0; i < c.C; i++)
                dot += (double)(float)in.hidden[t * c.C + i] * (double)(float)in.weight[v * c.C + i];
            z[v] = dot * c.inverse_temperature;
            largest = std::max(largest, z[v]);
        }
        for (double x : z) sum += std::exp(x - largest);
        double lse = largest + std::log(sum);
        for (double x : z) entropy -= std::exp(x - lse) * (x - lse);
        for (int64_t v = 0; v < c.V; v++) {
            double p = std::exp(z[v] - lse), dz = in.dlogp[t] * c.inverse_temperature * ((v == in.targets[t]) - p);
            if (!in.dentropy.empty()) dz -= in.dentropy[t] * c.inverse_temperature * p * (z[v] - lse + entropy);
            for (int64_t i = 0; i < c.C; i++) {
                ref.dhidden[t * c.C + i] += dz * (double)(float)in.weight[v * c.C + i];
                ref.dweight[v * c.C + i] += dz * (double)(float)in.hidden[t * c.C + i];
            }
        }
        ref.lse.push_back(lse);
        ref.logp.push_back(z[in.targets[t]] - lse);
        ref.entropy.push_back(entropy);
    }
    return ref;
}

// A sum over a chunk on the CPU is a chain of LM_HEAD_COLUMNS / lanes roundings; UBSan keeps the loop scalar
#if defined(__SANITIZE_ADDRESS__)
static constexpr double LANES = 1.0;
#else
static constexpr double LANES = __BIGGEST_ALIGNMENT__ / 4;  // floats of the widest vector
#endif
static constexpr double CHAIN = (double)LM_HEAD_COLUMNS / LANES / (1 << 24);

static void expect_head_agrees(const HeadCase& c, const HeadInput& in) {
    HeadReference ref = head_reference(c, in);
    std::vector<Backend> runs = all_backends();
    std::vector<HeadResult> results;
    for (const Backend& run : runs) {
        if (c.T > LM_HEAD_ROWS && results.size() > 1) continue;  // more rows of the same: one order will do
        results.push_back(run_head(c, in, run));
        HeadResult& got = results.back();
        std::string what = text(c, run);
        double absolute = 3e-6 * std::max(1.0, (double)c.scale * (double)c.C * c.inverse_temperature);
        for (int64_t t = 0; t < c.T; t++) {
            ASSERT_NEAR(got.lse[t], ref.lse[t], absolute) << what << ", token " << t;
            ASSERT_NEAR(got.logp[t], ref.logp[t], absolute) << what << ", token " << t;
            double chain = run.dev.cuda ? 0.0 : CHAIN * std::max(1.0, ref.entropy[t]);
            ASSERT_NEAR(got.entropy[t], ref.entropy[t], absolute + chain) << what << ", token " << t;
        }
        if (c.V == 1) {  // p = 1: no gradient
            for (floatX d : got.dhidden) ASSERT_NEAR((float)d, 0.0f, 1e-6) << what;
            continue;
        }
        std::vector<double> dweight;
        for (size_t i = 0; i < got.dweight.size(); i++) dweight.push_back((double)got.dweight[i] - in.dweight[i]);
        // the gradients of the logits are rounded to floatX
        double cosine = sizeof(floatX) == 2 ? 3e-5 : 1e-9, ratio = sizeof(floatX) == 2 ? 5e-3 : 3e-5;
        expect_agree(got.dhidden, ref.dhidden, cosine, ratio, what + ", dhidden");
        expect_agree(dweight, ref.dweight, cosine, ratio, what + ", dweight");
    }
    for (size_t r = 2; r < results.size(); r++)
        EXPECT_TRUE(same_bits(results[1].logp, results[r].logp) && same_bits(results[1].lse, results[r].lse) &&
                    same_bits(results[1].entropy, results[r].entropy) &&
                    same_bits(results[1].dhidden, results[r].dhidden) &&
                    same_bits(results[1].dweight, results[r].dweight))
            << text(c, runs[r]) << ": bits differ from " << runs[1].name;
}

TEST(LmHead, AgreesWithFloat64AndAllThreadOrdersGiveTheSameBits) {
    for (const HeadCase& c : head_cases()) expect_head_agrees(c, head_input(c));
}

TEST(LmHead, TheGradientOfTheEntropyAgreesWithFloat64) {
    for (const HeadCase& c : head_cases()) {
        HeadInput in = head_input(c);
        in.dentropy = random_values<float>(c.T, 6, 2.0f);
        expect_head_agrees(c, in);
        for (float& g : in.dlogp) g = 0.0f;  // alone
        if (c.V == 259) expect_head_agrees(c, in);
    }
}

// the float64 gradient that the test above rests on
TEST(LmHead, TheReferencesEntropyAgainstCentralDifferences) {
    const HeadCase c = {3, 4, 9, 1.0f / 0.7f, 2.0f};
    HeadInput in = head_input(c);
    in.dentropy = random_values<float>(c.T, 6, 2.0f);
    const HeadReference ref = head_reference(c, in);
    const float h = 1.0f / 64;  // exact in bf16 next to values below 2
    auto total = [&] {
        const HeadReference r = head_reference(c, in);
        double sum = 0;
        for (int64_t t = 0; t < c.T; t++) sum += in.dlogp[t] * r.logp[t] + in.dentropy[t] * r.entropy[t];
        return sum;
    };
    auto check = [&](std::vector<floatX>& values, const std::vector<double>& gradient) {
        for (size_t i = 0; i < values.size(); i++) {
            const floatX saved = values[i], up = (float)saved + h, down = (float)saved - h;
            values[i] = up;
            const double above = total();
            values[i] = down;
            const double difference = (above - total()) / ((double)(float)up - (float)down);
            values[i] = saved;
            EXPECT_NEAR(difference, gradient[i], 4e-3) << i;
        }
    };
    check(in.hidden, ref.dhidden);
    check(in.weight, ref.dweight);
}

// The sampler's rows of logits and the trainer's chunks, in whatever batch, give a token the same log-probability
TEST(LmHead, SamplerAndTrainerGiveTheSameBits) {
    for (HeadCase c : {HeadCase{9, 8, 67, 1.0f, 2.0f},
                       {5, 44, 259, 1.0f, 2.0f},
                       {2, 64, 4096, 1.0f, 1.0f},
                       {3, 8, 4097, 1.0f, 3.0f},
                       {4, 8, 9000, 1.0f, 3.0f},
                       {3, 8, 9002, 1.0f, 9.0f}}) {
        HeadInput in = head_input(c);
        for (SamplingParams p : {SamplingParams{0.7f, 0, 1.0f, false},
                                 {1.0f, 20, 0.9f, false},
                                 {0.0f, 0, 1.0f, false},
                                 {1.3f, 0, 1.0f, true}})
            for (const Backend& run : all_backends()) {
                if (run.order != 0) continue;
                select_backend(run);
                c.inverse_temperature = sampling_inverse_temperature(p);
                LmHeadScratch scratch;
                TestBuffer<floatX> hidden(in.hidden, run.dev), weight(in.weight, run.dev);
                TestBuffer<float> logits(c.T * c.V, run.dev), sampled(c.T, run.dev), logp(c.T, run.dev),
                    lse(c.T, run.dev), alone(1, run.dev), alone_lse(1, run.dev);
                TestBuffer<int> tokens(c.T, run.dev);
                TestBuffer<DrawKey> keys(std::vector<DrawKey>(c.T, DrawKey{1, 2, 3}), run.dev);
                matmul_nt(Rows{logits.data, c.V}, {hidden.data, c.C}, {weight.data, c.C}, nullptr, c.T, c.V, c.C,
                          run.dev);
                sample_rows(tokens.data, sampled.data, logits.data, {c.T, c.V, c.V}, p, DrawStream(), keys.data,
                            run.dev);
                lm_head_forward(logp.data, lse.data, nullptr,
                                {hidden.data, weight.data, tokens.data, c.T, c.C, c.V, c.inverse_temperature}, scratch,
                                run.dev);
                EXPECT_TRUE(same_bits(sampled.get(), logp.get())) << text(c, run) << " top_k " << p.top_k;
                int64_t t = c.T - 1;
                lm_head_forward(
                    alone.data, alone_lse.data, nullptr,
                    {hidden.data + t * c.C, weight.data, tokens.data + t, 1, c.C, c.V, c.inverse_temperature}, scratch,
                    run.dev);
                EXPECT_EQ(float_bits(alone.get()[0]), float_bits(logp.get()[t])) << text(c, run);
                EXPECT_EQ(float_bits(alone_lse.get()[0]), float_bits(lse.get()[t])) << text(c, run);
            }
    }
}

// where a row lies must not change its bits, although a row off 16 bytes cannot be read in packs
TEST(LmHead, LogProbabilityDoesNotDependOnTheAddress) {
    for (const Backend& run : all_backends()) {
        if (!run.dev.cuda) continue;  // the CPU loops take no address into account
        select_backend(run);
        for (int64_t V : {67, 4096, 9000}) {
            std::vector<float> x = random_values<float>(V, 7, 8.0f), moved(1);
            moved.insert(moved.end(), x.begin(), x.end());
            TestBuffer<float> a(x, run.dev), b(moved, run.dev), logp_a(1, run.dev), logp_b(1, run.dev);
            TestBuffer<int> token_a(1, run.dev), token_b(1, run.dev);
            TestBuffer<DrawKey> key(std::vector<DrawKey>(1), run.dev);
            for (SamplingParams p : {SamplingParams(), {1.0f, 0, 0.9f, true}, {1.0f, 50, 0.9f, false}}) {
                sample_rows(token_a.data, logp_a.data, a.data, {1, V, V}, p, DrawStream(), key.data, run.dev);
                sample_rows(token_b.data, logp_b.data, b.data + 1, {1, V, V}, p, DrawStream(), key.data, run.dev);
                EXPECT_EQ(token_a.get()[0], token_b.get()[0]) << V;
                EXPECT_TRUE(same_bits(logp_a.get(), logp_b.get())) << V;
            }
        }
    }
}

TEST(LmHead, NoTokensIsNoWorkAndBadShapesAreRefused) {
    for (const Backend& run : all_backends()) {
        LmHeadScratch scratch;
        lm_head_forward(nullptr, nullptr, nullptr, {nullptr, nullptr, nullptr, 0, 8, 67, 1.0f}, scratch, run.dev);
        lm_head_backward(nullptr, nullptr, nullptr, nullptr, {nullptr, nullptr, nullptr, 0, 8, 67, 1.0f}, scratch,
                         run.dev);
        EXPECT_THROW(
            lm_head_forward(nullptr, nullptr, nullptr, {nullptr, nullptr, nullptr, 1, 0, 67, 1.0f}, scratch, run.dev),
            Error);
        EXPECT_THROW(lm_head_backward(nullptr, nullptr, nullptr, nullptr,
                                      {nullptr, nullptr, nullptr, 1, 8, 1ll << 31, 1.0f}, scratch, run.dev),
                     Error);
        const float dentropy = 1.0f;
        EXPECT_THROW(lm_head_backward(nullptr, nullptr, nullptr, nullptr, {nullptr, nullptr, nullptr, 1, 8, 67, 1.0f},
                                      scratch, run.dev, {nullptr, &dentropy}),
                     Error);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// sampling

struct Drawn {
    std::vector<int> tokens;
    std::vector<float> logps;
};

static const DrawStream STREAM = {0x123456789ABCDEFull, RNG_EVAL};

static std::vector<DrawKey> draw_keys(int64_t rows) {
    std::vector<DrawKey> keys;
    for (int64_t i = 0; i < rows; i++) keys.push_back({7, (uint32_t)(i / 3), (uint32_t)(100 * i)});
    return keys;
}

// seen: [rows]-many slots of bits, the last row has none; or empty
static Drawn run_sample(const std::vector<float>& logits, int64_t rows, int64_t V, int64_t n_allowed,
                        const SamplingParams& p, const std::vector<DrawKey>& keys, const Backend& run,
                        const std::vector<uint32_t>& seen = {}) {
    select_backend(run);
    std::vector<int> slot_of(rows, -1);
    for (int64_t i = 0; i + 1 < rows; i++) slot_of[i] = (int)(rows - 1 - i);
    TestBuffer<uint32_t> bits(seen, run.dev);
    TestBuffer<int> slots(slot_of, run.dev);
    TestBuffer<float> x(logits, run.dev), logps(rows, run.dev);
    TestBuffer<int> tokens(rows, run.dev);
    TestBuffer<DrawKey> k(keys, run.dev);
    sample_rows(tokens.data, logps.data, x.data, {rows, V, n_allowed}, p, STREAM, k.data, run.dev,
                seen.empty() ? SeenTokens() : SeenTokens{bits.data, slots.data, seen_words(V)});
    return {tokens.get(), logps.get()};
}

static std::string text(int64_t V, int64_t n, const SamplingParams& p, const std::string& run) {
    return format("V %lld n_allowed %lld temperature %g top_k %d top_p %g min_p %g penalty %g%s, %s", (long long)V,
                  (long long)n, p.temperature, p.top_k, p.top_p, p.min_p, p.repetition_penalty,
                  p.gumbel ? " gumbel" : "", run.c_str());
}

// Whether drawing `token` at this quantile is right to within 2e-6 in probability, top-p's edge included
static bool draw_is_right(const float* logits, int64_t n, const SamplingParams& p, double quantile, int token) {
    const double slack = 2e-6;
    std::vector<int> order(n);
    std::iota(order.begin(), order.end(), 0);
    bool masked = sampling_is_masked(p, n);
    if (masked) std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    double largest = *std::max_element(logits, logits + n), total = 0;
    int64_t limit = p.top_k > 0 ? std::min<int64_t>(p.top_k, n) : n;
    std::vector<double> w;
    for (int64_t i = 0; i < limit; i++) total += w.emplace_back(std::exp((logits[order[i]] - largest) / p.temperature));
    for (double edge : {-slack, slack}) {  // top-p's set a little smaller, a little larger
        double kept = 0, sum = 0;
        int64_t n_kept = 0;
        while (n_kept < limit && (n_kept == 0 || p.top_p >= 1.0f || kept < (p.top_p + edge) * total))
            kept += w[n_kept++];
        while (n_kept > 1 && w[n_kept - 1] < p.min_p * (1 + edge)) kept -= w[--n_kept];
        for (int64_t i = 0; i < n_kept; sum += w[i++])
            if (order[i] == token)
                if (quantile >= sum / kept - slack && quantile <= (sum + w[i]) / kept + slack) return true;
    }
    return false;
}

static std::vector<SamplingParams> all_params() {
    std::vector<SamplingParams> all = {{0.0f, 0, 1.0f, false},
                                       {1.0f, 0, 1.0f, false},
                                       {0.6f, 0, 1.0f, false},
                                       {0.0f, 5, 0.9f, true},
                                       {1.0f, 0, 1.0f, true}};
    for (int k : {0, 1, 5, 50})
        for (float top_p : {0.1f, 0.9f, 1.0f})
            for (bool gumbel : {false, true})
                if (k > 0 || top_p < 1.0f) all.push_back({k == 5 ? 0.6f : 1.2f, k, top_p, gumbel});
    for (bool gumbel : {false, true})
        for (float min_p : {0.02f, 0.4f, 0.99f}) {
            all.push_back({1.2f, 0, 1.0f, gumbel, min_p});
            all.push_back({0.8f, 50, 1.0f, gumbel, min_p});
            all.push_back({1.2f, 0, 0.8f, gumbel, min_p});
        }
    all.push_back({1.2f, 300, 0.95f, false, 0.05f});
    all.push_back({1.2f, 300, 0.95f, true, 0.05f});
    return all;
}

TEST(Sampling, KernelsDrawTheTokensOfTheCpuLoop) {
    struct {
        int64_t rows, V, n_allowed;
        float step;  // > 0: logits are multiples of it, so that many are equal
    } cases[] = {{3, 1, 1, 0},       {8, 67, 67, 0},         {6, 259, 250, 0.5f}, {2, 4096, 4096, 0},
                 {2, 4097, 4097, 0}, {3, 9000, 4090, 0.25f}, {2, 9000, 8999, 0},  {1, 140003, 140001, 0}};
    std::vector<Backend> runs = all_backends();
    for (auto& c : cases) {
        std::vector<float> logits = random_values<float>(c.rows * c.V, (uint32_t)c.V, 6.0f);
        for (int64_t i = 0; i < c.rows; i++)
            for (int64_t v = 0; v < c.V; v++) {
                float& x = logits[i * c.V + v];
                if (c.step > 0) x = c.step * std::floor(x / c.step);
                if (i == 1 && v % 3) x = -1e30f;  // as if masked
                if (v >= c.n_allowed) x = 1e4f;   // padding, tempting; above what -1e30 leaves of an entropy
            }
        std::vector<DrawKey> keys = draw_keys(c.rows);
        int variant = 0;
        for (const SamplingParams& p : all_params()) {
            variant++;
            if (c.V > 100000 && variant % 4 != 1 && !(p.top_k == 50 && p.top_p == 0.9f)) continue;
            Drawn cpu = run_sample(logits, c.rows, c.V, c.n_allowed, p, keys, runs[0]), first;
            for (size_t r = 0; r < runs.size(); r++) {
                if (r > 1 && (c.V > 100000 || variant % 4 != 1)) break;  // other orders: every fourth
                Drawn got = run_sample(logits, c.rows, c.V, c.n_allowed, p, keys, runs[r]);
                std::string what = text(c.V, c.n_allowed, p, runs[r].name);
                if (r == 1) first = got;
                if (r > 1) {
                    EXPECT_TRUE(same_bits(first.tokens, got.tokens) && same_bits(first.logps, got.logps)) << what;
                }
                for (int64_t i = 0; i < c.rows; i++) {
                    const float* row = &logits[i * c.V];
                    int token = got.tokens[i];
                    ASSERT_TRUE(token >= 0 && token < c.n_allowed) << what << ": token " << token;
                    double quantile = draw_quantile(draw_uniform(STREAM, keys[i]));
                    bool exact = p.gumbel || p.temperature == 0.0f;
                    EXPECT_TRUE(token == cpu.tokens[i] ||
                                (!exact && draw_is_right(row, c.n_allowed, p, quantile, token)))
                        << what << ", row " << i << ": token " << token << ", the CPU's " << cpu.tokens[i];
                    if (!exact) {
                        EXPECT_TRUE(draw_is_right(row, c.n_allowed, p, quantile, token)) << what << " row " << i;
                    }
                    float logp = logit_logp(row[cpu.tokens[i]], sampling_inverse_temperature(p),
                                            softmax_lse(softmax_row(row, c.V, sampling_inverse_temperature(p))));
                    if (token == cpu.tokens[i]) {
                        ASSERT_NEAR(got.logps[i], logp, 2e-6 * (1 + std::fabs(logp))) << what;
                    }
                }
            }
        }
    }
}

// The draw is that of the penalized logits, and its log-probability is that of the logits without
TEST(Sampling, APenaltyReachesTheDrawAndNotTheLogProbability) {
    struct {
        int64_t rows, V, n_allowed;
    } cases[] = {{3, 1, 1}, {6, 67, 60}, {3, 9003, 8999}};
    std::vector<Backend> runs = all_backends();
    for (auto& c : cases) {
        const std::vector<float> logits = random_values<float>(c.rows * c.V, (uint32_t)c.V + 3, 6.0f);
        const int64_t words = seen_words(c.V);
        std::vector<uint32_t> seen(c.rows * words);
        for (size_t i = 0; i < seen.size(); i++) seen[i] = rng_bits(5, RNG_INIT, (uint32_t)i, 0, 0).x[0];
        const std::vector<DrawKey> keys = draw_keys(c.rows);
        int variant = 0;
        for (SamplingParams p : all_params()) {
            if (++variant % 4 != 1 && c.V > 1000) continue;
            p.repetition_penalty = variant % 2 ? 2.5f : 0.3f;
            SamplingParams without = p;
            without.repetition_penalty = 1.0f;
            std::vector<float> penalized = logits;
            for (int64_t i = 0; i + 1 < c.rows; i++)
                for (int64_t v = 0; v < c.V; v++) {
                    float& x = penalized[i * c.V + v];
                    if (seen[(c.rows - 1 - i) * words + v / 32] >> v % 32 & 1)
                        x = x > 0 ? x / p.repetition_penalty : x * p.repetition_penalty;
                }
            for (const Backend& run : runs) {
                if (run.order > 1) continue;
                const std::string what = text(c.V, c.n_allowed, p, run.name);
                const Drawn got = run_sample(logits, c.rows, c.V, c.n_allowed, p, keys, run, seen);
                EXPECT_EQ(got.tokens, run_sample(penalized, c.rows, c.V, c.n_allowed, without, keys, run).tokens)
                    << what;
                const float inverse = sampling_inverse_temperature(p);
                for (int64_t i = 0; i < c.rows; i++) {
                    const float* row = &logits[i * c.V];
                    const float logp =
                        logit_logp(row[got.tokens[i]], inverse, softmax_lse(softmax_row(row, c.V, inverse)));
                    ASSERT_NEAR(got.logps[i], logp, 2e-6 * (1 + std::fabs(logp))) << what << ", row " << i;
                }
            }
        }
    }
}

TEST(Sampling, MarkedTokensAreSeenByTheirSlot) {
    const int64_t V = 70, words = seen_words(V);
    ASSERT_EQ(words, 3);
    for (const Backend& run : all_backends()) {
        select_backend(run);
        std::vector<uint32_t> before(4 * words);
        before[0] = 5;
        TestBuffer<uint32_t> bits(before, run.dev);
        TestBuffer<int> slots(std::vector<int>{2, -1, 0, 3}, run.dev);
        SeenTokens seen = {bits.data, slots.data, words};
        seen_mark(seen, TestBuffer<int>(std::vector<int>{69, 1, 31, 32}, run.dev).data, 4, run.dev);
        seen_mark(seen, TestBuffer<int>(std::vector<int>{0, 2, 31, 63}, run.dev).data, 4, run.dev);
        std::vector<uint32_t> expected(4 * words);
        expected[0] = 5 | 1u << 31;
        expected[2 * words] = 1, expected[2 * words + 2] = 1u << 5;
        expected[3 * words + 1] = 1 | 1u << 31;
        EXPECT_EQ(bits.get(), expected) << run.name;
        seen_mark(seen, nullptr, 0, run.dev);
        EXPECT_THROW(seen_mark(seen, nullptr, -1, run.dev), Error);
    }
}

// draws over the whole unit interval, where neighbouring uniform numbers meet every boundary
TEST(Sampling, KernelsInvertTheCumulativeDistribution) {
    std::vector<Backend> runs = all_backends();
    const int64_t V = 300, rows = 60;
    std::vector<float> one = random_values<float>(V, 21, 4.0f), logits;
    for (int64_t i = 0; i < V; i++) one[i] = 0.125f * std::floor(8 * one[i]);
    for (int64_t i = 0; i < rows; i++) logits.insert(logits.end(), one.begin(), one.end());
    std::vector<DrawKey> keys = draw_keys(rows);
    for (SamplingParams p : {SamplingParams{0.9f, 0, 1.0f, false},
                             {0.9f, 40, 1.0f, false},
                             {0.9f, 0, 0.8f, false},
                             {0.9f, 40, 0.8f, false},
                             {0.9f, 0, 1.0f, false, 0.03f},
                             {0.9f, 40, 0.9f, false, 0.2f},
                             {0.9f, 40, 1e-6f, false},
                             {0.9f, 40, 0.999999f, false}})
        for (size_t r = 0; r < std::min<size_t>(runs.size(), 2); r++) {
            Drawn got = run_sample(logits, rows, V, V, p, keys, runs[r]);
            for (int64_t i = 0; i < rows; i++)
                EXPECT_TRUE(
                    draw_is_right(one.data(), V, p, draw_quantile(draw_uniform(STREAM, keys[i])), got.tokens[i]))
                    << text(V, V, p, runs[r].name) << ", row " << i << ": token " << got.tokens[i];
        }
}

TEST(Sampling, KeyIsSeedStreamStepSampleAndToken) {
    std::vector<float> logits = random_values<float>(100, 22), scratch;
    SamplingParams p;
    DrawKey key = {3, 41, 5};
    Drawn got = run_sample(logits, 1, 100, 100, p, {key}, all_backends()[0]);
    float u = uniform01(rng_bits(STREAM.seed, STREAM.stream, 3, 41, 5).x[0]);
    EXPECT_EQ(got.tokens[0], sample_row(logits.data(), 100, p, u, scratch));
    // one number is used for one thing: the noise of all words, and the uniform number, of one row
    std::vector<uint32_t> words = {rng_bits(STREAM.seed, STREAM.stream, 3, 41, 5).x[0]};
    for (uint32_t q = 0; q < 64; q++)
        for (uint32_t x : gumbel_bits(STREAM, key, q).x) words.push_back(x);
    std::sort(words.begin(), words.end());
    EXPECT_TRUE(std::adjacent_find(words.begin(), words.end()) == words.end());
}

TEST(Sampling, GreedyTakesTheLowestIndexAmongEquals) {
    SamplingParams greedy = {0.0f, 0, 1.0f, false};
    for (const Backend& run : all_backends())
        for (int64_t V : {5, 9000}) {
            std::vector<float> x(3 * V, -0.5f);
            x[V + 3] = x[2 * V - 1] = 2.0f;             // row 1
            x[2 * V + 2] = -0.0f, x[3 * V - 1] = 0.0f;  // row 2: equals
            EXPECT_EQ(run_sample(x, 3, V, V, greedy, draw_keys(3), run).tokens, (std::vector<int>{0, 3, 2}))
                << run.name;
        }
}

// a broken row (the rows that fill up a decode step, or a diverged model) must not send the kernel out of bounds
TEST(Sampling, NanLogitsGiveSomeTokenInRange) {
    for (const Backend& run : all_backends()) {
        if (!run.dev.cuda || run.order != 0) continue;  // std::partial_sort is not asked to order NaN
        for (float bad : {NAN, INFINITY, -INFINITY})
            for (const SamplingParams& p : all_params()) {
                const int64_t V = 300, n = 290;
                std::vector<float> x(2 * V, bad);
                for (int64_t i = V; i < 2 * V; i += 2) x[i] = 0.1f * (float)(i % 7);
                for (int token : run_sample(x, 2, V, n, p, draw_keys(2), run).tokens)
                    EXPECT_TRUE(token >= 0 && token < n) << text(V, n, p, run.name) << ": " << token;
            }
    }
}

TEST(Sampling, GumbelNoiseAgainstFloat64) {
    std::vector<uint32_t> bits = {0u, 1u, 255u, 0x7FFFFFFFu, 0x80000000u, 0xFFFFFF00u, 0xFFFFFFFEu, 0xFFFFFFFFu};
    for (uint32_t i = 0; i < 20000; i++) {
        uint32_t x = rng_bits(2, RNG_INIT, i, 0, 0).x[0];
        bits.push_back(x >> i % 32);
        bits.push_back(~(x >> i % 32));
    }
    double sum = 0, squares = 0;
    for (uint32_t b : bits) {
        double u = ((double)b + 0.5) / 4294967296.0, g = -std::log(-std::log1p(-u));
        ASSERT_NEAR(gumbel_noise(b), g, 4e-7 * std::max(1.0, std::fabs(g))) << b;
    }
    for (uint32_t i = 0; i < 100000; i++) {
        double g = gumbel_noise(rng_bits(3, RNG_INIT, i, 0, 0).x[1]);
        sum += g, squares += g * g;
    }
    double mean = sum / 1e5, variance = squares / 1e5 - mean * mean;  // of Gumbel: Euler's constant, pi^2 / 6
    EXPECT_NEAR(mean, 0.5772157, 0.02);
    EXPECT_NEAR(variance, 1.6449341, 0.05);
}

TEST(Sampling, GumbelDrawsFollowTheDistribution) {
    const int n = 40;
    std::vector<float> one = random_values<float>(n + 3, 23, 3.0f);
    for (const Backend& run : all_backends()) {
        if (run.order != 0) continue;
        for (SamplingParams p : {SamplingParams{1.0f, 0, 1.0f, true}, {0.7f, 10, 0.9f, true}}) {
            const int64_t rows = run.dev.cuda ? 400 : 40000;
            std::vector<float> logits;
            for (int64_t i = 0; i < rows; i++) logits.insert(logits.end(), one.begin(), one.end());
            std::vector<int> order(n), count(n);
            std::iota(order.begin(), order.end(), 0);
            std::sort(order.begin(), order.end(), [&](int a, int b) { return one[a] > one[b]; });
            std::vector<double> q(n);
            int limit = p.top_k > 0 ? p.top_k : n;
            double total = 0, kept = 0;
            for (int i = 0; i < limit; i++) total += std::exp(one[order[i]] / (double)p.temperature);
            for (int i = 0; i < limit && (kept < p.top_p || p.top_p == 1.0f); i++)
                kept += q[order[i]] = std::exp(one[order[i]] / (double)p.temperature) / total;
            for (int token : run_sample(logits, rows, n + 3, n, p, draw_keys(rows), run).tokens) count[token]++;
            double chi = 0, rest = 0, rest_expected = 0;
            int freedom = -1;
            for (int i = 0; i < n; i++) {
                double expected = q[i] / kept * (double)rows;
                if (expected == 0) {
                    EXPECT_EQ(count[i], 0) << "token " << i << " lies outside top-k or top-p";
                } else if (expected < 8) {
                    rest += count[i], rest_expected += expected;
                } else {
                    chi += (count[i] - expected) * (count[i] - expected) / expected;
                    freedom++;
                }
            }
            if (rest_expected > 0) chi += (rest - rest_expected) * (rest - rest_expected) / rest_expected, freedom++;
            // mean `freedom`, variance twice that: 4 standard deviations and a little for few degrees
            EXPECT_LE(chi, freedom + 4 * std::sqrt(2.0 * freedom) + 4) << text(n + 3, n, p, run.name);
        }
    }
}

TEST(Sampling, NoRowsIsNoWorkAndBadShapesAreRefused) {
    for (const Backend& run : all_backends()) {
        SamplingParams p;
        sample_rows(nullptr, nullptr, nullptr, {0, 5, 5}, p, STREAM, nullptr, run.dev);
        EXPECT_THROW(sample_rows(nullptr, nullptr, nullptr, {1, 5, 0}, p, STREAM, nullptr, run.dev), Error);
        EXPECT_THROW(sample_rows(nullptr, nullptr, nullptr, {1, 5, 6}, p, STREAM, nullptr, run.dev), Error);
        EXPECT_THROW(sample_rows(nullptr, nullptr, nullptr, {1, 1ll << 40, 6}, p, STREAM, nullptr, run.dev), Error);
        p.repetition_penalty = 1.2f;  // of which tokens?
        EXPECT_THROW(sample_rows(nullptr, nullptr, nullptr, {0, 5, 5}, p, STREAM, nullptr, run.dev), Error);
    }
}

TEST(Sampling, ParametersAreCompared) {
    SamplingParams p = {0.7f, 5, 0.9f, true};
    EXPECT_TRUE(same_sampling(p, p));
    EXPECT_FALSE(same_sampling(p, {0.8f, 5, 0.9f, true}) || same_sampling(p, {0.7f, 6, 0.9f, true}) ||
                 same_sampling(p, {0.7f, 5, 0.8f, true}) || same_sampling(p, {0.7f, 5, 0.9f, false}) ||
                 same_sampling(p, {0.7f, 5, 0.9f, true, 0.1f}) || same_sampling(p, {0.7f, 5, 0.9f, true, 0, 1.1f}));
}
