// Distillation: the loss between the logits of teacher and student and its gradient, on every backend, against a float64
// restatement (which is itself checked by central differences) and against torch (test/golden/distill.json); the
// teacher's likeliest tokens against a sort; the LM head by blocks of whole rows against float64 and against lm_head.cuh.
#include "operator_test.h"
#include <nlohmann/json.hpp>
#include <algorithm>
#include <numeric>
#include "../kernels/distill_loss.cuh"
#include "../runtime/file_io.h"

// cosine and norm of gradients, which are rounded to floatX
static constexpr double COSINE = sizeof(floatX) == 2 ? 3e-5 : 1e-9, RATIO = sizeof(floatX) == 2 ? 5e-3 : 3e-5;

static const char* name_of(Divergence d) { return divergence_names[(int)d]; }

static std::string text(const DistillConfig& c, const std::string& run) {
    return format("%s beta %g T %g alpha %g top_k %lld top_p %g, %s", name_of(c.divergence), c.beta, c.temperature,
                  c.alpha, (long long)c.top_k, c.top_p, run.c_str());
}

struct Support {
    int64_t top_k;
    double top_p;
};

static std::vector<DistillConfig> configs(const std::vector<Support>& supports, const std::vector<double>& temperatures,
                                          const std::vector<double>& alphas) {
    std::vector<DistillConfig> all;
    for (size_t d = 0; d < std::size(divergence_names); d++)
        for (Support s : supports)
            for (double T : temperatures)
                for (double alpha : alphas) all.push_back({(Divergence)d, 0.3, T, alpha, s.top_k, s.top_p});
    return all;
}

// ---------------------------------------------------------------------------------------------------------------------
// float64 restatement

// the teacher's likeliest tokens, by a sort
static std::vector<char> sorted_support(const float* u, int64_t V, const DistillConfig& c) {
    std::vector<int> order(V);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return u[a] > u[b]; });
    double total = 0, sum = 0;
    for (int64_t v = 0; v < V; v++) total += std::exp(((double)u[v] - u[order[0]]) / c.temperature);
    std::vector<char> in(V, 0);
    for (int64_t i = 0; i < (c.top_k ? c.top_k : V) && (c.top_p >= 1 || sum < c.top_p * total); i++) {
        in[order[i]] = 1;
        sum += std::exp(((double)u[order[i]] - u[order[0]]) / c.temperature);
    }
    return in;
}

static std::vector<double> log_softmax(const std::vector<double>& z, double temperature) {
    double largest = *std::max_element(z.begin(), z.end()), sum = 0;
    std::vector<double> logp;
    for (double x : z) sum += std::exp((x - largest) / temperature);
    for (double x : z) logp.push_back((x - largest) / temperature - std::log(sum));
    return logp;
}

// log-probabilities of the classes: the support's tokens, then the rest
static std::vector<double> classes(const std::vector<double>& logp, const std::vector<char>& in) {
    std::vector<double> c;
    double rest = 0;
    for (size_t v = 0; v < logp.size(); v++)
        if (in[v]) c.push_back(logp[v]);
        else rest += std::exp(logp[v]);
    if (rest > 0) c.push_back(std::log(rest));
    return c;
}

struct TokenReference {
    double loss, divergence, cross_entropy, rest_mass = 0, support = 0;
    std::vector<double> dlogits;
};

static double mean_log(double log_s, double log_t, double beta) {
    return std::log(beta * std::exp(log_t) + (1 - beta) * std::exp(log_s));
}

static TokenReference token_reference(const std::vector<double>& z, const std::vector<double>& u,
                                      const std::vector<char>& in, int target, const DistillConfig& c) {
    std::vector<double> log_s = log_softmax(z, c.temperature), log_t = log_softmax(u, c.temperature);
    std::vector<double> a = classes(log_s, in), b = classes(log_t, in), log_1 = log_softmax(z, 1.0), slope;
    TokenReference r;
    r.divergence = 0;
    for (size_t i = 0; i < a.size(); i++) {  // KL by its definition; slope: dD/ds of a class, up to a constant
        double s = std::exp(a[i]), t = std::exp(b[i]), m = mean_log(a[i], b[i], c.beta);
        switch (c.divergence) {
            case Divergence::forward_kl:
                r.divergence += t * (b[i] - a[i]);
                slope.push_back(-t / s);
                break;
            case Divergence::reverse_kl:
                r.divergence += s * (a[i] - b[i]);
                slope.push_back(a[i] - b[i]);
                break;
            case Divergence::jsd:
                r.divergence += c.beta * t * (b[i] - m) + (1 - c.beta) * s * (a[i] - m);
                slope.push_back((1 - c.beta) * (a[i] - m));
        }
    }
    r.cross_entropy = -log_1[target];
    r.loss = c.alpha * c.temperature * c.temperature * r.divergence + (1 - c.alpha) * r.cross_entropy;
    double mean = 0;
    for (size_t i = 0; i < a.size(); i++) mean += std::exp(a[i]) * slope[i];
    size_t next = 0;
    for (size_t v = 0; v < z.size(); v++) {
        double d = in[v] ? slope[next++] : slope.back(), ce = std::exp(log_1[v]) - ((int)v == target);
        r.dlogits.push_back(c.alpha * c.temperature * std::exp(log_s[v]) * (d - mean) + (1 - c.alpha) * ce);
        r.support += in[v];
        r.rest_mass += in[v] ? 0 : std::exp(log_t[v]);
    }
    return r;
}

static std::vector<double> doubles(const float* x, int64_t n) { return std::vector<double>(x, x + n); }

TEST(Distill, RestatementHasTheGradientOfCentralDifferences) {
    const int64_t V = 23;
    std::vector<float> z = random_values<float>(V, 1, 3.0f), u = random_values<float>(V, 2, 3.0f);
    for (const DistillConfig& c : configs({{0, 1.0}, {4, 1.0}, {0, 0.7}}, {1.0, 2.0}, {1.0, 0.5, 0.0})) {
        std::vector<char> in = sorted_support(u.data(), V, c);
        std::vector<double> zd = doubles(z.data(), V), ud = doubles(u.data(), V);
        TokenReference r = token_reference(zd, ud, in, 5, c);
        for (int64_t v = 0; v < V; v++) {
            const double h = 1e-5;
            std::vector<double> up = zd, down = zd;
            up[v] += h, down[v] -= h;
            double slope =
                (token_reference(up, ud, in, 5, c).loss - token_reference(down, ud, in, 5, c).loss) / (2 * h);
            ASSERT_NEAR(r.dlogits[v], slope, 1e-8) << text(c, "logit") << " " << v;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// the loss of a block

struct BlockInput {
    int64_t rows, V;
    std::vector<float> logits, teacher;  // [rows,V]
    std::vector<int> targets;
    std::vector<double> weights;
};

static BlockInput block_input(int64_t rows, int64_t V, float scale, uint32_t tensor = 0) {
    BlockInput in = {
        rows, V, random_values<float>(rows * V, 10 + tensor, scale), random_values<float>(rows * V, 11 + tensor, scale),
        {},   {}};
    for (int64_t i = 0; i < rows; i++) {
        in.targets.push_back(i == 0 ? (int)V - 1 : (int)(i * 7919 % V));
        in.weights.push_back(0.5 / (double)(i + 1));
        if (i % 2 == 1) in.logits[i * V + 3 % V] = in.teacher[i * V + 3 % V] = 2 * scale;  // agree
    }
    return in;
}

// as the rows of a LogitBlock lie
template <class T>
static std::vector<T> padded(const std::vector<T>& x, int64_t rows, int64_t V) {
    std::vector<T> p(rows * logit_stride(V));
    memset(static_cast<void*>(p.data()), 0xFF, p.size() * sizeof(T));
    for (int64_t i = 0; i < rows; i++)
        std::copy(x.begin() + i * V, x.begin() + (i + 1) * V, p.begin() + i * logit_stride(V));
    return p;
}

struct BlockResult {
    std::vector<floatX> dlogits;  // [rows,V]
    DistillSums sums;
};

// in two blocks, of which the second adds to the sums of the first
static BlockResult run_loss(const BlockInput& in, const DistillConfig& c, const Backend& run, bool gradient = true) {
    select_backend(run);
    Device dev = run.dev;
    const int64_t rows = in.rows, V = in.V, stride = logit_stride(V), first = rows > 1 ? rows / 2 : rows;
    TestBuffer<float> logits(padded(in.logits, rows, V), dev), teacher(padded(in.teacher, rows, V), dev);
    TestBuffer<floatX> dlogits(rows * stride, dev);
    TestBuffer<int> targets(in.targets, dev);
    TestBuffer<double> weights(in.weights, dev);
    TestBuffer<DistillSums> sums(1, dev);
    distill_sums_reset(sums.data, dev);
    for (int64_t r0 = 0, n = first; r0 < rows; r0 += n, n = rows - first) {
        LogitBlock b = {r0, n, V, {logits.data + r0 * stride, stride}, {teacher.data + r0 * stride, stride}, {}};
        if (gradient) b.dlogits = {dlogits.data + r0 * stride, stride};
        distill_loss(sums.data, b, {weights.data, targets.data}, c, dev);
    }
    std::vector<floatX> all = dlogits.get();
    BlockResult r = {{}, sums.get()[0]};
    for (int64_t i = 0; i < rows; i++)
        for (int64_t v = 0; v < stride; v++) {
            const floatX& x = all[i * stride + v];
            EXPECT_EQ(still_poison(x), !gradient || v >= V) << text(c, run.name) << ": row " << i << " logit " << v;
            if (v < V) r.dlogits.push_back(x);
        }
    return r;
}

static void expect_reference(const BlockInput& in, const DistillConfig& c, const BlockResult& got, float scale,
                             const std::string& what) {
    DistillSums ref;
    std::vector<double> d;
    for (int64_t i = 0; i < in.rows; i++) {
        const float *z = in.logits.data() + i * in.V, *u = in.teacher.data() + i * in.V;
        TokenReference t =
            token_reference(doubles(z, in.V), doubles(u, in.V), sorted_support(u, in.V, c), in.targets[i], c);
        for (double x : t.dlogits) d.push_back(in.weights[i] * x);
        ref.loss += in.weights[i] * t.loss, ref.divergence += t.divergence, ref.cross_entropy += t.cross_entropy;
        ref.rest_mass += t.rest_mass, ref.support += t.support;
        for (double lp : log_softmax(doubles(z, in.V), c.temperature)) ref.entropy -= std::exp(lp) * lp;
        for (double lp : log_softmax(doubles(u, in.V), c.temperature)) ref.teacher_entropy -= std::exp(lp) * lp;
        const int64_t first = std::max_element(z, z + in.V) - z, teacher_first = std::max_element(u, u + in.V) - u;
        ref.agree += first == teacher_first;
        ref.right += first == in.targets[i], ref.teacher_right += teacher_first == in.targets[i];
        ref.teacher_cross_entropy -= log_softmax(doubles(u, in.V), c.temperature)[in.targets[i]];
    }
    const double unit = 3e-6 * std::max(1.0, (double)scale) * (double)in.rows;  // an lse is known to its last place
    const DistillSums& s = got.sums;
    EXPECT_NEAR(s.divergence, ref.divergence, unit) << what;
    EXPECT_NEAR(s.cross_entropy, ref.cross_entropy, unit) << what;
    EXPECT_NEAR(s.loss, ref.loss, 4 * unit) << what;
    EXPECT_NEAR(s.entropy, ref.entropy, 10 * unit) << what;
    EXPECT_NEAR(s.teacher_entropy, ref.teacher_entropy, 10 * unit) << what;
    EXPECT_NEAR(s.rest_mass, ref.rest_mass, unit) << what;
    EXPECT_EQ(s.support, ref.support) << what;
    EXPECT_EQ(s.agree, ref.agree) << what;
    EXPECT_EQ(s.right, ref.right) << what;
    EXPECT_EQ(s.teacher_right, ref.teacher_right) << what;
    EXPECT_NEAR(s.teacher_cross_entropy, ref.teacher_cross_entropy, unit) << what;
    EXPECT_EQ(s.tokens, (double)in.rows) << what;
    if (got.dlogits.empty()) return;
    if (in.V == 1) {
        for (floatX x : got.dlogits) EXPECT_NEAR((float)x, 0.0f, 1e-6) << what;
        return;
    }
    // exp of a log-probability of size `scale` is known to scale x 2^-24
    double loose = std::max(1.0, (double)scale);
    expect_agree(got.dlogits, d, COSINE * loose, RATIO * loose, what);
}

TEST(Distill, LossAndGradientAgreeWithFloat64) {
    BlockInput in = block_input(3, 67, 4.0f);
    for (const DistillConfig& c : configs({{0, 1.0}, {5, 1.0}, {0, 0.8}, {20, 0.9}}, {1.0, 2.0}, {1.0, 0.5, 0.0}))
        for (const Backend& run : all_backends()) {
            if (run.order > 0) continue;
            expect_reference(in, c, run_loss(in, c, run), 4.0f, text(c, run.name));
        }
}

// each token's own numbers are those that a batch of it alone has
TEST(Distill, TokensAloneAreWhatTheSumsAdd) {
    BlockInput in = block_input(6, 67, 4.0f);
    for (int i = 0; i < 6; i++) {  // two tokens that the student has right, three that the teacher has
        const float *z = in.logits.data() + i * 67, *u = in.teacher.data() + i * 67;
        if (i < 2) in.targets[i] = (int)(std::max_element(z, z + 67) - z);
        else if (i < 5) in.targets[i] = (int)(std::max_element(u, u + 67) - u);
    }
    for (const DistillConfig& c : configs({{0, 1.0}, {5, 1.0}}, {2.0}, {0.5}))
        for (const Backend& run : all_backends()) {
            select_backend(run);
            const int64_t stride = logit_stride(67);
            TestBuffer<float> logits(padded(in.logits, 6, 67), run.dev), teacher(padded(in.teacher, 6, 67), run.dev);
            TestBuffer<int> targets(in.targets, run.dev);
            TestBuffer<double> weights(in.weights, run.dev);
            TestBuffer<DistillSums> token(6, run.dev), sums(1, run.dev);
            const DistillTokens tokens = {weights.data, targets.data};
            distill_tokens(token.data, {0, 6, 67, {logits.data, stride}, {teacher.data, stride}, {}}, tokens, c,
                           run.dev);
            double right = 0.0, teacher_right = 0.0;
            for (int i = 0; i < 6; i++) {
                distill_sums_reset(sums.data, run.dev);
                LogitBlock row = {i, 1, 67, {logits.data + i * stride, stride}, {teacher.data + i * stride, stride},
                                  {}};
                distill_loss(sums.data, row, tokens, c, run.dev);
                const DistillSums got = token.get()[i], alone = sums.get()[0];
                EXPECT_EQ(memcmp(&got, &alone, sizeof(DistillSums)), 0) << text(c, run.name) << ": token " << i;
                right += got.right, teacher_right += got.teacher_right;
            }
            EXPECT_GE(right, 2.0) << text(c, run.name);
            EXPECT_GE(teacher_right, 3.0) << text(c, run.name);
        }
}

struct BlockShape {
    int64_t rows, V;
    float scale;
};

TEST(Distill, AwkwardShapesAndAllThreadOrdersGiveTheSameBits) {
    for (BlockShape shape : std::vector<BlockShape>{
             {1, 1, 1.0f}, {2, 5, 2.0f}, {5, 259, 3.0f}, {1, 4096, 4.0f}, {2, 4097, 30.0f}, {3, 9001, 4.0f}}) {
        BlockInput in = block_input(shape.rows, shape.V, shape.scale, 2);
        for (const DistillConfig& c : configs({{0, 1.0}, {std::min<int64_t>(shape.V, 50), 0.95}}, {1.5}, {0.6})) {
            std::vector<Backend> runs = all_backends();
            BlockResult first;
            for (size_t r = 0; r < runs.size(); r++) {
                std::string what = format("rows %lld V %lld, ", (long long)in.rows, (long long)in.V);
                what += text(c, runs[r].name);
                BlockResult got = run_loss(in, c, runs[r]);
                if (r < 2) expect_reference(in, c, got, shape.scale, what);
                if (r == 1) {
                    first = got;
                    BlockResult alone = run_loss(in, c, runs[r], false);
                    EXPECT_EQ(memcmp(&alone.sums, &got.sums, sizeof(DistillSums)), 0) << what << ": without gradient";
                }
                if (r < 2) continue;
                EXPECT_TRUE(same_bits(first.dlogits, got.dlogits)) << what;
                EXPECT_EQ(memcmp(&first.sums, &got.sums, sizeof(DistillSums)), 0) << what;
            }
        }
    }
}

TEST(Distill, CpuValuesNeedNoGradientAndNoNumberOfThreads) {
    BlockInput in = block_input(5, 1000, 4.0f, 3);
    for (const DistillConfig& c : configs({{0, 1.0}, {7, 1.0}}, {1.0, 2.0}, {0.5})) {
        DistillSums with = run_loss(in, c, all_backends()[0]).sums,
                    without = run_loss(in, c, all_backends()[0], false).sums;
        EXPECT_EQ(memcmp(&with, &without, sizeof(DistillSums)), 0) << text(c, "cpu");
        expect_same_for_any_threads<floatX>([&] { return run_loss(in, c, all_backends()[0]).dlogits; }, text(c, "cpu"));
    }
}

TEST(Distill, AgreesWithTorch) {
    nlohmann::json all = nlohmann::json::parse(read_file("test/golden/distill.json"));
    ASSERT_GE(all["cases"].size(), 64u);
    BlockInput in = {all["rows"],
                     all["V"],
                     all["logits"].get<std::vector<float>>(),
                     all["teacher"].get<std::vector<float>>(),
                     all["targets"].get<std::vector<int>>(),
                     all["weights"].get<std::vector<double>>()};
    for (const nlohmann::json& j : all["cases"]) {
        DistillConfig c;
        size_t d = 0;
        while (d < std::size(divergence_names) && divergence_names[d] != j["divergence"].get<std::string>()) d++;
        ASSERT_LT(d, std::size(divergence_names)) << j["divergence"];
        c.divergence = (Divergence)d;
        c.beta = j["beta"], c.temperature = j["temperature"], c.alpha = j["alpha"];
        c.top_k = j["top_k"], c.top_p = j["top_p"];
        for (const Backend& run : all_backends()) {
            if (run.order > 0) continue;
            BlockResult got = run_loss(in, c, run);
            EXPECT_NEAR(got.sums.loss, j["loss"].get<double>(), 1e-5) << text(c, run.name);
            EXPECT_NEAR(got.sums.divergence, j["divergence_sum"].get<double>(), 4e-6) << text(c, run.name);
            EXPECT_NEAR(got.sums.cross_entropy, j["cross_entropy_sum"].get<double>(), 4e-6) << text(c, run.name);
            expect_agree(got.dlogits, j["gradient"].get<std::vector<double>>(), COSINE, RATIO, text(c, run.name));
        }
    }
}

// exactly, not to rounding: a small D is not a difference of large sums
TEST(Distill, NothingIsLeftWhereStudentAndTeacherAgree) {
    BlockInput in = block_input(3, 5000, 5.0f, 4);
    in.teacher = in.logits;
    for (const DistillConfig& c : configs({{0, 1.0}, {5, 1.0}, {0, 0.8}}, {1.0, 2.0}, {1.0}))
        for (const Backend& run : all_backends()) {
            if (run.order > 0) continue;
            BlockResult got = run_loss(in, c, run);
            EXPECT_EQ(got.sums.divergence, 0.0) << text(c, run.name);
            EXPECT_EQ(got.sums.loss, 0.0) << text(c, run.name);
            EXPECT_EQ(got.sums.agree, 3.0) << text(c, run.name);
            for (floatX x : got.dlogits) ASSERT_EQ((float)x, 0.0f) << text(c, run.name);
        }
}

// a student close to its teacher: D is of second order in their difference, far below the last place of the sums of KL
TEST(Distill, SmallDivergencesKeepTheirDigits) {
    BlockInput in = block_input(1, 3000, 4.0f, 6);
    in.teacher = in.logits;
    std::vector<float> moved = random_values<float>(3000, 99, 2e-3f);
    for (size_t i = 0; i < moved.size(); i++) in.teacher[i] += moved[i];
    for (const DistillConfig& c : configs({{0, 1.0}}, {1.0}, {1.0})) {
        TokenReference ref = token_reference(doubles(in.logits.data(), in.V), doubles(in.teacher.data(), in.V),
                                             std::vector<char>(in.V, 1), in.targets[0], c);
        for (const Backend& run : all_backends()) {
            if (run.order > 0) continue;
            double d = run_loss(in, c, run).sums.divergence;
            EXPECT_NEAR(d, ref.divergence, 0.05 * ref.divergence) << text(c, run.name) << " of " << ref.divergence;
        }
    }
}

// data processing inequality: fewer classes, less divergence; and never below 0
TEST(Distill, CoarserSupportsNeverDivergeMore) {
    for (uint32_t tensor : {20, 30, 40}) {
        BlockInput in = block_input(1, 500, tensor == 40 ? 30.0f : 4.0f, tensor);
        for (DistillConfig c : configs({{0, 1.0}}, {1.0, 2.0}, {1.0})) {
            double last = 0.0;
            for (int64_t k : {1, 2, 5, 20, 100, 499, 500, 0}) {
                c.top_k = k;
                double d = run_loss(in, c, all_backends()[0], false).sums.divergence;
                EXPECT_GE(d, last - 2e-6) << text(c, "cpu");
                last = d;
            }
            if (c.divergence == Divergence::jsd) {  // the entropy of the choice between the two
                EXPECT_LE(last, -c.beta * std::log(c.beta) - (1 - c.beta) * std::log(1 - c.beta) + 1e-6);
            }
            c.top_k = 0;
            for (double p : {0.1, 0.5, 0.9, 0.999}) {
                c.top_p = p;
                double d = run_loss(in, c, all_backends()[0], false).sums.divergence;
                EXPECT_TRUE(d >= -2e-6 && d <= last + 2e-6) << text(c, "cpu");
            }
        }
    }
}

TEST(Distill, NanReachesTheLoss) {
    for (bool teacher : {false, true})
        for (const DistillConfig& c : configs({{0, 1.0}, {5, 1.0}, {0, 0.8}}, {1.0}, {0.5})) {
            BlockInput in = block_input(2, 67, 4.0f);
            (teacher ? in.teacher : in.logits)[70] = NAN;
            for (const Backend& run : all_backends()) {
                if (run.order > 0) continue;
                EXPECT_TRUE(std::isnan(run_loss(in, c, run).sums.loss)) << text(c, run.name);
            }
        }
}

static std::string refusal(const LogitBlock& b, const DistillConfig& c, Device dev) {
    try {
        DistillSums sums;
        distill_loss(&sums, b, {nullptr, nullptr}, c, dev);
    } catch (const Error& e) { return e.what(); }
    return "no error";
}

TEST(Distill, BadArgumentsAreRefusedAndNoRowsAreNoWork) {
    alignas(64) float x[64] = {};
    const LogitBlock good = {0, 0, 8, {x, 32}, {x, 32}, {}};
    for (const Backend& run : all_backends()) {
        DistillConfig c;
        EXPECT_EQ(refusal(good, c, run.dev), "no error");
        auto expect = [&](const LogitBlock& b, const DistillConfig& bad, const char* part) {
            EXPECT_NE(refusal(b, bad, run.dev).find(part), std::string::npos) << refusal(b, bad, run.dev);
        };
        LogitBlock b = good;
        b.teacher.p = nullptr;
        expect(b, c, "no teacher");
        b = good, b.V = 0;
        expect(b, c, "bad shape");
        DistillConfig bad = c;
        bad.top_k = 9;
        expect(good, bad, "top_k 9 of a vocabulary of 8: lower --kd_top_k");
        bad = c, bad.top_p = 0.0;
        expect(good, bad, "top_p 0");
        bad = c, bad.temperature = 0.0;
        expect(good, bad, "temperature 0");
        bad = c, bad.alpha = 1.1;
        expect(good, bad, "alpha 1.1");
        bad = c, bad.divergence = Divergence::jsd, bad.beta = 1.0;
        expect(good, bad, "beta 1 of jsd");
        if (!run.dev.cuda) continue;
        b = good, b.rows = 1, b.logits.p = x + 1;
        expect(b, c, "multiples of 16 bytes");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// the likeliest tokens

static std::vector<LikeliestEdge> run_edges(const std::vector<float>& rows, int64_t n, int64_t V, float inverse,
                                            Support s, const Backend& run) {
    select_backend(run);
    TestBuffer<float> x(rows, run.dev);
    TestBuffer<LikeliestEdge> edges(n, run.dev);
    likeliest_edges(edges.data, {x.data, V}, n,
                    likeliest_config(V, inverse, s.top_k, s.top_p, run.dev.cuda && V % 4 == 0), run.dev);
    return edges.get();
}

TEST(Likeliest, TokensAreThoseOfASortOnEveryBackend) {
    for (int64_t V : {1, 2, 67, 256, 5000}) {
        const int64_t n = 4;
        std::vector<float> rows = random_values<float>(n * V, 60, 5.0f);
        for (int64_t v = 0; v < V; v++) {
            rows[V + v] = std::round(rows[V + v]);                            // ties, 0 and -0 among them
            rows[2 * V + v] = 1.0f;                                           // nothing but ties
            rows[3 * V + v] = v % 3 ? rows[3 * V + v] : 100.0f + (float)(v);  // masses that vanish
        }
        for (Support s :
             std::vector<Support>{{1, 1.0}, {(V + 1) / 2, 1.0}, {V, 1.0}, {0, 0.001}, {0, 0.9}, {(V + 2) / 3, 0.77}})
            for (float temperature : {1.0f, 2.0f})
                for (const Backend& run : all_backends()) {
                    std::vector<LikeliestEdge> edges = run_edges(rows, n, V, 1.0f / temperature, s, run);
                    for (int64_t i = 0; i < n; i++) {
                        const float* x = rows.data() + i * V;
                        DistillConfig c;
                        c.temperature = temperature, c.top_k = s.top_k, c.top_p = s.top_p;
                        std::vector<char> in = sorted_support(x, V, c);
                        int wrong = 0;
                        for (int64_t v = 0; v < V; v++) wrong += likeliest_has(edges[i], x[v], (int)v) != (in[v] != 0);
                        // where many have the same mass, p may be met by a sum one token longer
                        int slack = s.top_p < 1.0 && i > 0 ? 1 : 0;
                        EXPECT_LE(wrong, slack) << "V " << V << " row " << i << " top_k " << s.top_k << " top_p "
                                                << s.top_p << " T " << temperature << ", " << run.name;
                    }
                }
        expect_same_on_all_backends(format("V %lld", (long long)V), [&](const Backend& run) {
            Bytes b;
            for (Support s : std::vector<Support>{{0, 0.5}, {(V + 1) / 2, 0.9}})
                b << run_edges(rows, n, V, 1.0f, s, run);
            return b;
        });
    }
    for (const Backend& run : all_backends()) {
        likeliest_edges(nullptr, {nullptr, 5}, 0, likeliest_config(5, 1.0f, 2, 1.0, false), run.dev);
        EXPECT_THROW(likeliest_edges(nullptr, {nullptr, 5}, -1, likeliest_config(5, 1.0f, 2, 1.0, false), run.dev),
                     Error);
    }
}

TEST(Likeliest, RowOfNanHasSomeEdge) {
    std::vector<float> nan(100, NAN);
    for (const Backend& run : all_backends())
        for (Support s : std::vector<Support>{{3, 1.0}, {0, 0.5}})
            EXPECT_GE(run_edges(nan, 1, 100, 1.0f, s, run)[0].index, 0) << run.name;
}

// ---------------------------------------------------------------------------------------------------------------------
// formulas, on both devices

struct ClassPair {
    float log_s, log_t;
};

template <class D>
HOST_DEVICE void write_formulas(float* out, const ClassPair& p, float beta) {
    float s = exp_f(p.log_s), t = exp_f(p.log_t);
    out[0] = D::value(p.log_s, p.log_t, s, t, beta);
    out[1] = D::q(p.log_s, p.log_t, s, t, beta);
    out[2] = log1p_f(s * 0.999f * (p.log_t > p.log_s ? 1.0f : -1.0f));
}

#if HAS_KERNELS
template <class D>
__global__ void formulas_kernel(float* out, const ClassPair* pairs, int n, float beta) {
    int i = blockIdx.x * 64 + threadIdx.x;
    if (i < n) write_formulas<D>(out + 3 * i, pairs[i], beta);
}
#endif

static std::vector<ClassPair> class_pairs() {
    std::vector<ClassPair> p = {{0, 0}, {-1, -1}, {-1, -90}, {-90, -1}, {-1e4f, -1}, {-1, -1e4f}, {-1, NAN}, {NAN, -1}};
    for (size_t i = 0; i < 1000; i++) {
        float a = -20.0f * uniform01(rng_bits(1, RNG_INIT, 70, (uint32_t)i, 0).x[0]);
        float b = uniform01(rng_bits(1, RNG_INIT, 71, (uint32_t)i, 0).x[0]);
        p.push_back({a, i % 3 ? a * b : a + 0.01f * (b - 0.5f)});
    }
    return p;
}

template <class D>
static void expect_formulas(float beta) {
    std::vector<ClassPair> pairs = class_pairs();
    expect_same_on_all_backends("divergence", [&](const Backend& run) {
        TestBuffer<ClassPair> in(pairs, run.dev);
        TestBuffer<float> out(3 * pairs.size(), run.dev);
#if HAS_KERNELS
        if (run.dev.cuda) {
            LAUNCH((formulas_kernel<D>), (unsigned)CEIL_DIV(pairs.size(), 64), 64, 0, run.dev.stream, out.data, in.data,
                   (int)pairs.size(), beta);
            std::vector<float> v = out.get();
            for (float& x : v) x = x == x ? x : 0.0f;  // any NaN
            return Bytes() << v;
        }
#endif
        for (size_t i = 0; i < pairs.size(); i++) write_formulas<D>(out.data + 3 * i, pairs[i], beta);
        std::vector<float> v = out.get();
        for (size_t i = 0; i < pairs.size(); i++) {
            const ClassPair& p = pairs[i];
            bool nan = !(p.log_s == p.log_s && p.log_t == p.log_t);
            EXPECT_EQ(std::isnan(v[3 * i]), nan) << i;
            if (nan) continue;
            EXPECT_GE(v[3 * i], -1e-7f * std::exp(std::max(p.log_s, p.log_t))) << p.log_s << " " << p.log_t;
        }
        for (float& x : v) x = x == x ? x : 0.0f;
        return Bytes() << v;
    });
}

TEST(Divergences, FormulasHaveTheSameBitsOnBothDevicesAndNoTermIsNegative) {
    expect_formulas<ForwardKl>(0.5f);
    expect_formulas<ReverseKl>(0.5f);
    for (float beta : {0.5f, 0.1f}) {  // the mean's KL are not separately above 0 for a class: only their sum is
        std::vector<ClassPair> pairs = class_pairs();
        for (const ClassPair& p : pairs) {
            if (p.log_s != p.log_s || p.log_t != p.log_t || std::min(p.log_s, p.log_t) < -80) continue;
            float out[3];
            write_formulas<Jsd>(out, p, beta);
            double s = std::exp((double)p.log_s), t = std::exp((double)p.log_t), m = mean_log(p.log_s, p.log_t, beta);
            double value = beta * t * (p.log_t - m) + (1 - beta) * s * (p.log_s - m);
            EXPECT_NEAR(out[0], value, 2e-6 * std::max(s, t)) << p.log_s << " " << p.log_t;
            EXPECT_NEAR(out[1], (1 - beta) * s * (p.log_s - m), 2e-6 * std::max(s, t)) << p.log_s << " " << p.log_t;
        }
        expect_formulas<Jsd>(beta);
    }
}

TEST(Math, LogOfOnePlusX) {
    EXPECT_EQ(log1p_f(0.0f), 0.0f);
    EXPECT_TRUE(std::isnan(log1p_f(NAN)));
    for (uint32_t u = 0; u < 0xFFFF0000u; u += 40009) {
        float x = bits_float(u);
        if (!(x > -0.999999f && x < 1e30f)) continue;
        double right = std::log1p((double)x);
        ASSERT_NEAR(log1p_f(x), right, 2.0e-7 * std::fabs(right) + 1e-44) << x;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// LM head by blocks of whole rows

struct HeadShape {
    int64_t R, C, V, teacher_C;
};

struct HeadInput {
    std::vector<floatX> hidden, weight, teacher_hidden, teacher_weight;
    std::vector<float> dweight;
    std::vector<int> targets;
    std::vector<double> weights;
};

static HeadInput head_input(const HeadShape& h) {
    HeadInput in;
    in.hidden = random_values<floatX>(h.R * h.C, 80);
    in.weight = random_values<floatX>(h.V * h.C, 81);
    in.teacher_hidden = random_values<floatX>(h.R * h.teacher_C, 82);
    in.teacher_weight = random_values<floatX>(h.V * h.teacher_C, 83);
    in.dweight = random_values<float>(h.V * h.C, 84, 0.1f);
    for (int64_t i = 0; i < h.R; i++) {
        in.targets.push_back((int)(i * 31 % h.V));
        in.weights.push_back(0.1 + 0.01 * (double)i);
    }
    return in;
}

struct HeadResult {
    std::vector<floatX> dhidden;
    std::vector<float> dweight;
    DistillSums sums;
};

static HeadResult run_head(const HeadShape& h, const HeadInput& in, const DistillConfig& c, int64_t max_rows,
                           const Backend& run, bool gradient = true) {
    select_backend(run);
    Device dev = run.dev;
    TestBuffer<floatX> hidden(in.hidden, dev), weight(in.weight, dev), dhidden(h.R * h.C, dev);
    TestBuffer<floatX> teacher_hidden(in.teacher_hidden, dev), teacher_weight(in.teacher_weight, dev);
    TestBuffer<float> dweight(in.dweight, dev);
    TestBuffer<int> targets(in.targets, dev);
    TestBuffer<double> weights(in.weights, dev);
    TestBuffer<DistillSums> sums(1, dev);
    distill_sums_reset(sums.data, dev);
    LogitScratch scratch;
    scratch.max_rows = max_rows;
    if (max_rows != 1) logit_scratch_allocate(scratch, h.R, h.V, true, gradient, dev);
    lm_head_logits(gradient ? dhidden.data : nullptr, dweight.data,
                   {hidden.data, weight.data, h.R, h.C, h.V, {teacher_hidden.data, teacher_weight.data, h.teacher_C}},
                   scratch, dev, [&](const LogitBlock& b) {
                       EXPECT_EQ(b.dlogits.p != nullptr, gradient);
                       EXPECT_LE(b.rows, max_rows > 0 ? max_rows : h.R);
                       distill_loss(sums.data, b, {weights.data, targets.data}, c, dev);
                   });
    return {dhidden.get(), dweight.get(), sums.get()[0]};
}

TEST(LmHeadLogits, BlocksOfRowsDoNotChangeABitOfDhiddenNorOfTheSums) {
    const HeadShape h = {7, 24, 261, 40};
    HeadInput in = head_input(h);
    DistillConfig c = {Divergence::jsd, 0.4, 2.0, 0.7, 20, 1.0};
    for (const Backend& run : all_backends()) {
        HeadResult whole = run_head(h, in, c, 0, run);
        expect_written(whole.dhidden, run.name);
        for (int64_t rows : {1, 2, 3, 6, 7, 100}) {
            HeadResult got = run_head(h, in, c, rows, run);
            std::string what = format("blocks of %lld, %s", (long long)rows, run.name.c_str());
            EXPECT_TRUE(same_bits(whole.dhidden, got.dhidden)) << what;
            EXPECT_EQ(memcmp(&whole.sums, &got.sums, sizeof(DistillSums)), 0) << what;
            for (size_t i = 0; i < got.dweight.size(); i++)
                ASSERT_NEAR(got.dweight[i], whole.dweight[i], 1e-5) << what << ", " << i;
        }
        HeadResult evaluated = run_head(h, in, c, 3, run, false);
        EXPECT_EQ(memcmp(&whole.sums, &evaluated.sums, sizeof(DistillSums)), 0) << run.name;
        EXPECT_TRUE(same_bits(evaluated.dweight, in.dweight)) << run.name << ": without gradient";
        for (floatX x : evaluated.dhidden) ASSERT_TRUE(still_poison(x)) << run.name;
    }
}

TEST(LmHeadLogits, GradientsAgreeWithFloat64) {
    for (HeadShape h : {HeadShape{1, 8, 67, 16}, {5, 24, 261, 40}, {3, 16, 4099, 8}}) {
        HeadInput in = head_input(h);
        DistillConfig c = {Divergence::forward_kl, 0.5, 2.0, 0.7, 0, 1.0};
        std::vector<double> dhidden(h.R * h.C), dweight(h.V * h.C);
        for (int64_t i = 0; i < h.R; i++) {
            std::vector<double> z(h.V), u(h.V);
            for (int64_t v = 0; v < h.V; v++) {
                for (int64_t k = 0; k < h.C; k++)
                    z[v] += (double)in.hidden[i * h.C + k] * (double)in.weight[v * h.C + k];
                for (int64_t k = 0; k < h.teacher_C; k++)
                    u[v] +=
                        (double)in.teacher_hidden[i * h.teacher_C + k] * (double)in.teacher_weight[v * h.teacher_C + k];
            }
            TokenReference t = token_reference(z, u, std::vector<char>(h.V, 1), in.targets[i], c);
            for (int64_t v = 0; v < h.V; v++)
                for (int64_t k = 0; k < h.C; k++) {
                    dhidden[i * h.C + k] += in.weights[i] * t.dlogits[v] * (double)in.weight[v * h.C + k];
                    dweight[v * h.C + k] += in.weights[i] * t.dlogits[v] * (double)in.hidden[i * h.C + k];
                }
        }
        for (const Backend& run : all_backends()) {
            if (run.order > 0) continue;
            HeadResult got = run_head(h, in, c, 2, run);
            std::vector<double> added;
            for (size_t i = 0; i < got.dweight.size(); i++) added.push_back((double)got.dweight[i] - in.dweight[i]);
            std::string what = format("V %lld, %s", (long long)h.V, run.name.c_str());
            expect_agree(got.dhidden, dhidden, 3 * COSINE, RATIO, what + ", dhidden");
            expect_agree(added, dweight, 3 * COSINE, 3 * RATIO, what + ", dweight");
        }
    }
}

// alpha 0 is lm_head.cuh's loss: the log-probabilities to the bit, the gradient but for the order of a sum
TEST(LmHeadLogits, AlphaZeroIsTheCrossEntropyOfTheLmHead) {
    for (int64_t V : {67, 4096, 9001}) {
        const HeadShape h = {6, 32, V, 16};
        HeadInput in = head_input(h);
        for (const Backend& run : all_backends()) {
            if (run.order > 0) continue;
            HeadResult got = run_head(h, in, {Divergence::forward_kl, 0.5, 1.0, 0.0, 0, 1.0}, 4, run);
            Device dev = run.dev;
            std::vector<float> g;
            for (double w : in.weights) g.push_back((float)-w);
            TestBuffer<floatX> hidden(in.hidden, dev), weight(in.weight, dev), dhidden(h.R * h.C, dev);
            TestBuffer<float> logp(h.R, dev), lse(h.R, dev), dlogp(g, dev), dweight(in.dweight, dev);
            TestBuffer<int> targets(in.targets, dev);
            LmHeadScratch scratch;
            LmHeadInputs inputs = {hidden.data, weight.data, targets.data, h.R, h.C, V, 1.0f};
            lm_head_forward(logp.data, lse.data, nullptr, inputs, scratch, dev);
            lm_head_backward(dhidden.data, dweight.data, dlogp.data, lse.data, inputs, scratch, dev);
            double ce = 0.0;
            for (float x : logp.get()) ce += -(double)x;
            EXPECT_EQ(got.sums.cross_entropy, ce) << V << ", " << run.name;
            std::vector<double> reference, added, reference_added;
            for (floatX x : dhidden.get()) reference.push_back((double)(float)x);
            std::vector<float> dw = dweight.get();
            for (size_t i = 0; i < dw.size(); i++) {
                added.push_back((double)got.dweight[i] - in.dweight[i]);
                reference_added.push_back((double)dw[i] - in.dweight[i]);
            }
            const double slack = sizeof(floatX) == 2 ? 1e-5 : 1e-10;
            expect_agree(got.dhidden, reference, slack, 10 * std::sqrt(slack) / 100,
                         format("V %lld, %s", (long long)V, run.name.c_str()));
            expect_agree(added, reference_added, 1e-9, 1e-5,
                         format("dweight, V %lld, %s", (long long)V, run.name.c_str()));
        }
    }
}

TEST(LmHeadLogits, RowsFitTheBudget) {
    const int64_t V = 151936;
    for (bool teacher : {false, true})
        for (bool training : {false, true}) {
            int64_t rows = logit_block_rows(4096, V, teacher, training);
            int64_t bytes = rows * logit_stride(V) * (4 + (teacher ? 4 : 0) + (training ? (int64_t)sizeof(floatX) : 0));
            EXPECT_LE(bytes, LOGIT_BLOCK_BYTES);
            EXPECT_GE(rows, 128);
            EXPECT_EQ(rows % LOGIT_BLOCK_MIN_ROWS, 0);
            EXPECT_EQ(logit_block_rows(5, V, teacher, training), 5);
            EXPECT_EQ(logit_block_rows(4096, 100000000, teacher, training), LOGIT_BLOCK_MIN_ROWS);
        }
    EXPECT_EQ(logit_block_rows(4096, V, true, true, 7), 7);
    LogitScratch s;
    logit_scratch_allocate(s, 3, 67, false, false, Device());
    EXPECT_TRUE(s.logits.data && !s.teacher.data && !s.dlogits.data);
}

TEST(LmHeadLogits, NoRowsIsNoWorkAndBadShapesAreRefused) {
    for (const Backend& run : all_backends()) {
        LogitScratch s;
        int calls = 0;
        auto loss = [&](const LogitBlock&) { calls++; };
        auto call = [&](const LogitInputs& in) { lm_head_logits(nullptr, nullptr, in, s, run.dev, loss); };
        call({nullptr, nullptr, 0, 8, 67});
        EXPECT_EQ(calls, 0);
        EXPECT_THROW(call({nullptr, nullptr, 1, 0, 67}), Error);
        EXPECT_THROW(call({nullptr, nullptr, 1, 8, 1ll << 31}), Error);
        floatX x = 0.0f;
        EXPECT_THROW(call({&x, &x, 1, 8, 67, {&x, &x, 0}}), Error);
    }
}
