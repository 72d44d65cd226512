// Post-training quantization: the factor of a Hessian, GPTQ against the textbook's order of operations in double, and
// the pipeline on a tiny model against a forward pass of the finished one. Also calibration text and the log-loss.
#include <gtest/gtest.h>
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <vector>
#include "../eval/log_loss.cuh"
#include "../methods/ptq.cuh"
#include "test_device.h"
#include "tiny_model.h"

static float draw(uint32_t stream, uint32_t i) { return uniform01(rng_bits(3, RNG_INIT, stream, i, 0).x[0]) - 0.5f; }

// ---------------------------------------------------------------------------------------------------------------------
// a matrix and the Hessian of correlated inputs of unequal size

struct Problem2 {
    int64_t rows, n;
    std::vector<float> w, h;
};

static Problem2 correlated(int64_t rows, int64_t n, int64_t tokens, uint32_t seed) {
    Problem2 p{rows, n, std::vector<float>(rows * n), std::vector<float>(n * n, 0.0f)};
    for (size_t i = 0; i < p.w.size(); i++) p.w[i] = draw(seed, (uint32_t)i) * 0.2f;
    std::vector<float> x(tokens * n), mixed(tokens * n);
    for (size_t i = 0; i < x.size(); i++) x[i] = draw(seed + 1, (uint32_t)i);
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t j = 0; j < n; j++)
            mixed[t * n + j] = (x[t * n + j] + 2.0f * x[t * n] + x[t * n + (j + 1) % n]) * (1.0f + 2.0f * (j % 5 == 0));
    gemm_tn(p.h.data(), mixed.data(), mixed.data(), tokens, n, n);
    for (float& v : p.h) v *= 2.0f / (float)tokens;
    return p;
}

struct Rounded {
    std::vector<float> w, lost;  // what is left as master; what the codes do not stand for
    std::vector<int8_t> codes;
    std::vector<Grid> grid;
    double damp_percent = 0.0;
};

static Rounded round_problem(const Problem2& p, const Quantizer& q, bool gptq, const GptqConfig& c) {
    QuantizedTensor t;
    t.rows = p.rows, t.cols = p.n;
    quantized_tensor_init(t, q);
    Rounded r{p.w, std::vector<float>(p.w.size()), std::vector<int8_t>(p.w.size()), std::vector<Grid>(t.groups)};
    RoundingScratch scratch;
    RoundedLinear linear = rounded_scratch(scratch, t);
    linear.w = r.w.data(), linear.codes = r.codes.data(), linear.grid = r.grid.data();
    if (!gptq) {
        round_codes_to_nearest(linear, r.lost.data());
        return r;
    }
    GptqMemory g;
    gptq_allocate(g, p.n, p.rows, Device());
    gptq_factor(g, p.h.data(), p.n, c, "test");
    gptq_round(linear, r.lost.data(), g, c);
    r.damp_percent = g.damp_percent;
    return r;
}

static double direct_energy(const std::vector<float>& d, const Problem2& p) {
    double sum = 0.0;
    for (int64_t r = 0; r < p.rows; r++)
        for (int64_t i = 0; i < p.n; i++)
            for (int64_t j = 0; j < p.n; j++)
                sum += (double)d[r * p.n + i] * (double)p.h[i * p.n + j] * (double)d[r * p.n + j];
    return sum;
}

// ---------------------------------------------------------------------------------------------------------------------
// the authors' steps, in double: damp, invert by elimination, upper Cholesky factor, one column after another with the
// update of all that follow at once

static void textbook(const Problem2& p, const Quantizer& q, const GptqConfig& c, int64_t group, Rounded* r) {
    const int64_t n = p.n;
    std::vector<int> order(n);
    std::iota(order.begin(), order.end(), 0);
    if (c.act_order)
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return p.h[a * n + a] > p.h[b * n + b]; });
    std::vector<double> a(n * n), inverse(n * n, 0.0), u(n * n, 0.0);
    double mean = 0.0;
    for (int64_t i = 0; i < n; i++) mean += p.h[i * n + i] / (double)n;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) a[i * n + j] = p.h[order[i] * n + order[j]] + (i == j) * c.damp_percent * mean;
    for (int64_t i = 0; i < n; i++) inverse[i * n + i] = 1.0;
    for (int64_t k = 0; k < n; k++) {  // Gauss-Jordan; positive definite: no pivoting
        double pivot = a[k * n + k];
        for (int64_t j = 0; j < n; j++) a[k * n + j] /= pivot, inverse[k * n + j] /= pivot;
        for (int64_t i = 0; i < n; i++) {
            double f = a[i * n + k];
            if (i == k || f == 0.0) continue;
            for (int64_t j = 0; j < n; j++) {
                a[i * n + j] -= f * a[k * n + j];
                inverse[i * n + j] -= f * inverse[k * n + j];
            }
        }
    }
    for (int64_t i = 0; i < n; i++)  // inverse = u^T u
        for (int64_t j = i; j < n; j++) {
            double s = inverse[i * n + j];
            for (int64_t k = 0; k < i; k++) s -= u[k * n + i] * u[k * n + j];
            u[i * n + j] = i == j ? std::sqrt(s) : s / u[i * n + i];
        }
    QuantizedTensor shape;
    shape.rows = p.rows, shape.cols = n;
    quantized_tensor_init(shape, q);
    RoundingScratch scratch;
    const ScaleState state = rounded_scratch(scratch, shape).state;
    const bool static_groups = c.static_groups || state.tensor;  // nvfp4's scale is of all groups
    quant_measure_cpu(r->grid.data(), state, p.w.data(), quantized_tensor_groups(shape), q.spec);
    for (int64_t row = 0; row < p.rows; row++) {
        std::vector<double> w(n), block;
        for (int64_t i = 0; i < n; i++) w[i] = p.w[row * n + order[i]];
        for (int64_t i = 0; i < n; i++) {
            int64_t at = row * n + order[i];
            Grid& g = r->grid[at / group];
            if (i % 128 == 0) block = w;
            if (!static_groups && group < n && i % group == 0) {
                std::vector<float> now(block.begin() + i, block.begin() + i + group);
                quant_measure_cpu(&g, ScaleState(), now.data(), QuantGroups{1, group}, q.spec);
            }
            r->codes[at] = (int8_t)quant_code(q.spec, (float)w[i], g);
            r->w[at] = (float)w[i];
            double e = (w[i] - quant_value(q.spec, r->codes[at], g)) / u[i * n + i];
            for (int64_t j = i; j < n; j++) w[j] -= e * u[i * n + j];
        }
    }
}

struct Case {
    const char* weights;
    bool act_order, static_groups;
};

inline std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.weights; }  // not its padding

class Gptq : public testing::TestWithParam<Case> {};

// Sums in float may end on the other side of a tie than sums in double: one of the 24 rows may differ.
TEST_P(Gptq, IsTheTextbooks) {
    const Problem2 p = correlated(24, 160, 300, 10);
    Quantizer q = quantizer_parse(GetParam().weights, "weights");
    GptqConfig c = {0.01, GetParam().act_order, GetParam().static_groups};
    Rounded ours = round_problem(p, q, true, c), theirs = ours;
    int64_t group = (int64_t)p.w.size() / (int64_t)ours.grid.size();
    textbook(p, q, c, group, &theirs);
    int rows = 0;
    for (int64_t r = 0; r < p.rows; r++) {
        bool same = std::equal(&ours.codes[r * p.n], &ours.codes[r * p.n] + p.n, &theirs.codes[r * p.n]);
        for (int64_t i = r * p.n; i < (r + 1) * p.n && same; i++) same = std::fabs(ours.w[i] - theirs.w[i]) < 1e-4f;
        rows += !same;
    }
    EXPECT_LE(rows, 1) << "rows with other codes, or other compensated weights";
    // codes and grid are those of each weight's own place, and what was lost is
    size_t between = 0;  // masters that are no number of the grid
    for (size_t i = 0; i < p.w.size(); i++) {
        const float value = quant_value(q.spec, ours.codes[i], ours.grid[i / group]);
        ASSERT_FALSE(
            quant_flipped(quant_code_mask(q.spec), quant_code(q.spec, ours.w[i], ours.grid[i / group]), ours.codes[i]))
            << i;
        ASSERT_EQ(ours.lost[i], p.w[i] - value) << i;
        between += ours.w[i] != value;
    }
    EXPECT_GT(between, p.w.size() * 9 / 10);
    // what GPTQ is for
    double nearest = direct_energy(round_problem(p, q, false, c).lost, p), mine = direct_energy(ours.lost, p);
    EXPECT_LT(mine, 0.85 * nearest);
    EXPECT_NEAR(output_energy(ours.lost.data(), p.h.data(), p.rows, p.n), mine, 1e-3 * mine);
}

INSTANTIATE_TEST_SUITE_P(Formats, Gptq,
                         testing::Values(Case{"int4:g32:sym", true, true}, Case{"int4:g32:sym", false, true},
                                         Case{"int4:g32:sym", false, false}, Case{"int3:g40:asym:mse", true, true},
                                         Case{"int2:g80:asym", false, false}, Case{"int8:channel:sym", true, false},
                                         Case{"int4:tensor:sym:amax7", true, true},
                                         Case{"int4:g32:sym:signedmax", true, true}, Case{"nf4:g32", true, true},
                                         Case{"nf4:g32:dq", true, true}, Case{"fp8e4m3:channel", true, true},
                                         Case{"mxfp4", true, true}, Case{"nvfp4", false, false},
                                         Case{"ternary:g32", true, true}, Case{"mid4:g32", true, true},
                                         Case{"mid3:g40:gauss", false, false}, Case{"mid2:tensor:gauss", true, true}));

TEST(GptqFactor, IsTheInverseFactor) {
    for (int64_t n : {1, 63, 64, 65, 200}) {
        Problem2 p = correlated(1, n, 2 * n + 5, 20);
        GptqMemory g;
        gptq_allocate(g, n, 1, Device());
        gptq_factor(g, p.h.data(), n, {0.01, true, true}, "test");
        for (int64_t i = 1; i < n; i++)
            ASSERT_GE(p.h[g.order[i - 1] * (n + 1)], p.h[g.order[i] * (n + 1)]) << "descending";
        double mean = 0.0, worst = 0.0;
        for (int64_t i = 0; i < n; i++) mean += p.h[i * (n + 1)] / (double)n;
        // U^T U (H + damping) = I
        std::vector<double> uh(n * n, 0.0), product(n * n, 0.0);
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = 0; k < n; k++) {
                ASSERT_TRUE(k >= i || g.upper[i * n + k] == 0.0f);
                for (int64_t j = 0; j < n; j++)
                    uh[i * n + j] +=
                        (double)g.upper[i * n + k] * (p.h[g.order[k] * n + g.order[j]] + (k == j) * 0.01 * mean);
            }
        for (int64_t k = 0; k < n; k++)
            for (int64_t i = 0; i < n; i++)
                for (int64_t j = 0; j < n; j++) product[i * n + j] += (double)g.upper[k * n + i] * uh[k * n + j];
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) worst = std::max(worst, std::fabs(product[i * n + j] - (i == j)));
        EXPECT_LT(worst, 1e-3) << n;
    }
}

// uncorrelated inputs: nothing can make up for an error, in whatever order
TEST(Gptq, DiagonalHessianIsRounding) {
    Problem2 p = correlated(5, 48, 100, 30);
    for (int64_t i = 0; i < p.n; i++)
        for (int64_t j = 0; j < p.n; j++) p.h[i * p.n + j] = i == j ? 1.0f + (float)((i * 7) % 48) : 0.0f;
    Quantizer q = quantizer_parse("int3:g16:asym", "weights");
    EXPECT_EQ(round_problem(p, q, true, {}).codes, round_problem(p, q, false, {}).codes);
}

TEST(Gptq, DeadInputs) {
    Problem2 p = correlated(4, 32, 100, 40);
    for (int64_t i = 0; i < p.n; i++) p.h[5 * p.n + i] = p.h[i * p.n + 5] = 0.0f;
    p.w[5] = 50.0f;  // would spoil its group's scale
    Rounded r = round_problem(p, quantizer_parse("int4:g16:sym", "weights"), true, {});
    for (int64_t row = 0; row < 4; row++) EXPECT_EQ(r.w[row * p.n + 5], 0.0f);
    EXPECT_LT(r.grid[0].scale, 0.02f);
}

TEST(Gptq, DampingIsRaisedUntilTheHessianIsPositiveDefinite) {
    Problem2 p = correlated(4, 96, 8, 50);  // 8 tokens: rank 8
    Quantizer q = quantizer_parse("int4:g32:sym", "weights");
    testing::internal::CaptureStdout();
    Rounded r = round_problem(p, q, true, {0.0, true, true});
    std::string said = testing::internal::GetCapturedStdout();
    EXPECT_GT(r.damp_percent, 0.0);
    EXPECT_LE(r.damp_percent, 0.1);
    EXPECT_NE(said.find("test: its Hessian is not positive definite with --damp_percent 0, taken with"), said.npos);
    EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1);
    EXPECT_LT(direct_energy(r.lost, p), direct_energy(round_problem(p, q, false, {}).lost, p));
    EXPECT_EQ(round_problem(p, q, true, {0.01, true, true}).damp_percent, 0.01);

    auto refuse = [&](const char* part) {
        try {
            round_problem(p, q, true, {});
            ADD_FAILURE() << "taken";
        } catch (const Error& e) { EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what(); }
    };
    p.h[7 * p.n + 8] = p.h[8 * p.n + 7] = 1e4f;  // far from any damping
    refuse("not positive definite even with --damp_percent 1");
    p.h[3 * p.n + 3] = NAN;
    refuse("not finite");
}

TEST(Grids, TileAndSearch) {
    Problem2 p = correlated(200, 256, 4, 60);
    p.w[130 * 256 + 200] = 3.0f;
    Rounded r = round_problem(p, quantizer_parse("fp8e4m3:128x128", "weights"), false, {});
    ASSERT_EQ(r.grid.size(), 400u);
    for (int64_t row = 0; row < 200; row++)
        for (int64_t tile = 0; tile < 2; tile++) {
            float amax = 0.0f;
            for (int64_t i = row / 128 * 128; i < std::min<int64_t>(row / 128 * 128 + 128, 200); i++)
                for (int64_t j = tile * 128; j < tile * 128 + 128; j++)
                    amax = std::max(amax, std::fabs(p.w[i * 256 + j]));
            ASSERT_EQ(r.grid[row * 2 + tile].scale, amax / 448.0f);
        }
    auto loss = [&](const char* text) {
        Rounded q = round_problem(p, quantizer_parse(text, "weights"), false, {});
        double sum = 0.0;
        for (float d : q.lost) sum += (double)d * (double)d;
        return sum;
    };
    EXPECT_LT(loss("int2:g64:asym:mse"), 0.95 * loss("int2:g64:asym"));
    EXPECT_LE(loss("int4:g64:sym:mse"), loss("int4:g64:sym"));
}

// ---------------------------------------------------------------------------------------------------------------------
// the pipeline

static void tiny_model(Model& m, const char* weights, bool codes = true) {
    const ModelConfig c = tiny_config(3);
    m.dev = model_device();
    model_allocate(m, c);
    model_init_random(m, 7);
    for (const ParamTensor& t : m.tensors)
        for (int64_t i = 0; i < t.count(); i++)
            if (t.kind == ParamKind::norm) m.master[t.offset + i] += draw((uint32_t)t.offset, (uint32_t)i);
            else m.master[t.offset + i] *= 6.0f;
    model_quantize(m, rules_of(weights, "all"), codes);
    model_refresh(m);
    model_forget_grids(m);
}

static std::vector<std::vector<int>> tiny_windows() {
    std::vector<std::vector<int>> windows(10, std::vector<int>(24));
    for (size_t i = 0; i < windows.size(); i++)
        for (size_t j = 0; j < windows[i].size(); j++)
            windows[i][j] = (int)(101.0f * (draw(70, (uint32_t)(24 * i + j)) + 0.5f)) % 101;
    return windows;
}

static std::vector<PtqLayer> tiny_run(Model& m, const PtqPlan& plan, bool calibrates = true, int64_t micro = 50) {
    PtqMemory s;
    std::vector<PtqLayer> reports;
    std::vector<std::vector<int>> windows;
    if (calibrates) windows = tiny_windows();
    ptq_allocate(s, m, plan, calibrates ? 240 : 0, 24, micro);
    ptq_run(m, s, plan, windows, [&](int l, const PtqLayer& r) {
        EXPECT_EQ(l, (int)reports.size());
        reports.push_back(r);
    });
    return reports;
}

// Everything the pipeline reports, again from one forward pass of the finished model: the inputs of a product in it are
// those of the calibration, because what comes before is rounded in both.
TEST(Ptq, ErrorsAreThoseOfTheFinishedModel) {
    for (const char* weights : {"int4:g16:sym", "int3:g32:asym"}) {
        Model m;
        tiny_model(m, weights);
        std::vector<float> original(m.master.data, m.master.data + m.num_params);
        std::vector<PtqLayer> reports = tiny_run(m, ptq_parse("gptq", {}));
        ASSERT_EQ(reports.size(), 3u);
        std::vector<float> value(m.num_params);
        for (const LinearPart* t : quantized_parts(m))
            for (int64_t i = 0; i < t->count(); i++)
                value[t->offset + i] = quant_value(t->quantizer.spec, t->codes[i], t->grid[i / t->group]);
        Batch b;
        for (const std::vector<int>& w : tiny_windows()) batch_add_sequence(b, w.data(), (int)w.size());
        Activations a;
        activations_allocate(a, m, b.T(), ActivationMode::save_all);
        model_forward(m, a, b);
        for (int l = 0; l < m.L(); l++)
            for (int p = 0; p < 4; p++) {
                const LayerActivations& y = a.layers[l];
                const floatX* x = p == 0 ? y.ln1 : p == 1 ? y.att : p == 2 ? y.ln2 : y.act;
                const Linear& shape = *layer_linears(m.layers[l])[p];
                const size_t at = shape.parts[0].offset;
                double lost = 0.0, all = 0.0;
                for (int64_t t = 0; t < b.T(); t++)
                    for (int64_t r = 0; r < shape.rows; r++) {
                        double whole = 0.0, rounded = 0.0;
                        for (int64_t k = 0; k < shape.cols; k++) {
                            whole += (double)original[at + r * shape.cols + k] * (double)(float)x[t * shape.cols + k];
                            rounded += (double)value[at + r * shape.cols + k] * (double)(float)x[t * shape.cols + k];
                        }
                        lost += (whole - rounded) * (whole - rounded);
                        all += whole * whole;
                    }
                EXPECT_TRUE(reports[l].linear[p].quantized);
                EXPECT_NEAR(reports[l].linear[p].error, lost / all, 2e-3 * lost / all)
                    << weights << " " << l << " " << p;
            }
    }
}

TEST(Ptq, LosesLessThanRounding) {
    Model gptq, rtn;
    tiny_model(gptq, "int3:g32:sym");
    tiny_model(rtn, "int3:g32:sym");
    std::vector<PtqLayer> a = tiny_run(gptq, ptq_parse("gptq", {})), b = tiny_run(rtn, ptq_parse("rtn", {}));
    for (int l = 0; l < 3; l++)
        for (int p = 0; p < 4; p++) EXPECT_LT(a[l].linear[p].error, 0.9 * b[l].linear[p].error) << l << " " << p;
}

// The kept grid gives the same weights and codes from the master that is left, which to nearest is the weight itself;
// rounding alone is the quantizer's own
TEST(Ptq, RefreshReproducesTheResult) {
    for (const char* method : {"gptq", "rtn"})
        for (const char* weights : {"int4:g32:sym", "int4:g16:asym", "int8:channel:sym", "int3:tensor:sym"}) {
            Model m, fresh;
            tiny_model(m, weights);
            tiny_model(fresh, weights);
            std::vector<float> original(m.master.data, m.master.data + m.num_params);
            std::vector<floatX> rounded(fresh.work.data, fresh.work.data + fresh.num_params);
            tiny_run(m, ptq_parse(method, {}), std::string(method) == "gptq");
            std::vector<floatX> work(m.work.data, m.work.data + m.num_params);
            std::vector<int8_t> codes(m.codes.data, m.codes.data + m.codes.size);
            model_refresh(m);
            EXPECT_EQ(memcmp(work.data(), m.work.data, m.num_params * sizeof(floatX)), 0) << weights;
            EXPECT_EQ(memcmp(codes.data(), m.codes.data, codes.size()), 0) << weights;
            bool same = memcmp(work.data(), rounded.data(), m.num_params * sizeof(floatX)) == 0;
            EXPECT_EQ(same, std::string(method) == "rtn") << weights;
            same = memcmp(original.data(), m.master.data, m.num_params * sizeof(float)) == 0;
            EXPECT_EQ(same, std::string(method) == "rtn") << weights;
        }
}

TEST(Ptq, MicroBatchesAndPartsOfAProduct) {
    Model a, b;
    tiny_model(a, "int4:g16:sym");
    tiny_model(b, "int4:g16:sym");
    tiny_run(a, ptq_parse("rtn", {}), true, 24);
    tiny_run(b, ptq_parse("rtn", {}), true, 1000);
    EXPECT_EQ(memcmp(a.work.data, b.work.data, a.num_params * sizeof(floatX)), 0);
    Model part;
    tiny_model(part, "int4:g16:sym");
    std::vector<float> original(part.master.data, part.master.data + part.num_params);
    model_quantize(part, rules_of("int4:g16:sym", "k,down"), true);
    std::vector<PtqLayer> r = tiny_run(part, ptq_parse("gptq", {}));
    EXPECT_TRUE(r[1].linear[0].quantized && !r[1].linear[1].quantized && !r[1].linear[2].quantized &&
                r[1].linear[3].quantized);
    for (const ParamTensor& t : part.tensors) {
        bool changed = memcmp(&original[t.offset], part.master.data + t.offset, t.count() * sizeof(float)) != 0;
        EXPECT_EQ(changed, quantizer_of(part.weight_rules, t).on()) << t.name;
    }
}

// A transform sees the layer's inputs before it is rounded, and what it makes of the weights is what is rounded:
// halving a norm and doubling the linears behind it changes no code, and scales alone.
TEST(Ptq, Transforms) {
    Model plain, changed;
    tiny_model(plain, "int4:g16:sym");
    tiny_model(changed, "int4:g16:sym");
    Batch b;
    for (const std::vector<int>& w : tiny_windows()) batch_add_sequence(b, w.data(), (int)w.size());
    Activations a;
    activations_allocate(a, plain, b.T(), ActivationMode::save_all);
    model_refresh(plain, false);
    model_forward(plain, a, b, full_precision());
    PtqPlan plan = ptq_parse("gptq", {});
    tiny_run(plain, plan);
    int seen = 0;
    plan.layers.push_back([&](Model& m, const LayerMasters&, int l, const LayerInputs& in) {
        EXPECT_EQ(l, seen++);
        EXPECT_EQ(in.tokens, 240);
        if (l == 0) {
            const floatX* expected[] = {a.layers[0].ln1, a.layers[0].att, a.layers[0].ln2, a.layers[0].act};
            for (int p = 0; p < 4; p++)
                EXPECT_EQ(memcmp(in.x[p], expected[p], (size_t)(240 * in.cols[p]) * sizeof(floatX)), 0) << p;
        }
        for (const ParamTensor& t : m.tensors) {
            bool norm = t.name.find("input_layernorm") != std::string::npos;
            bool behind = t.kind == ParamKind::linear && t.product == Product::qkv;
            for (int64_t i = 0; t.layer == l && (norm || behind) && i < t.count(); i++)
                m.master[t.offset + i] *= norm ? 0.5f : 2.0f;
        }
    });
    EXPECT_TRUE(plan.needs_calibration());
    tiny_run(changed, plan);
    EXPECT_EQ(seen, 3);
    EXPECT_EQ(memcmp(plain.codes.data, changed.codes.data, plain.codes.size), 0);
}

TEST(Ptq, Methods) {
    EXPECT_FALSE(ptq_parse("rtn", {}).needs_calibration());
    EXPECT_TRUE(ptq_parse("gptq", {}).needs_calibration());
    for (const char* bad : {"", "gpt", "gptq+", "+rtn", "gptq+gptq", "gptq rtn"})
        EXPECT_THROW(ptq_parse(bad, {}), Error);
}

// ---------------------------------------------------------------------------------------------------------------------
// calibration text

static std::string text_file(const std::string& name, const std::string& text) {
    std::string path =
        (std::filesystem::temp_directory_path() / ("test_ptq_" + std::to_string(getpid()) + name)).string();
    std::ofstream(path, std::ios::binary) << text;
    return path;
}

TEST(Calibration, Documents) {
    Tokenizer tok = tokenizer_byte_level();
    PromptConfig config;
    auto text = [&](const std::vector<int>& ids) { return tokenizer_decode(tok, ids, false); };
    std::string rows =
                    "{\"text\": \"one\"}\n\n{\"question\": \"2+2\", \"answer\": \"is #### 4\"}\n"
                    "{\"prompt\": \"3+3=\", \"completion\": \"6\"}\n{\"prompt\": \"alone\"}\n"
                    "{\"problem\": \"p\", \"solution\": \"s\", \"answer\": \"a\"}\n",
                path = text_file(".jsonl", rows);
    std::vector<std::vector<int>> d = calibration_documents(tok, config, path);
    ASSERT_EQ(d.size(), 5u);
    EXPECT_EQ(text(d[0]), "one");
    EXPECT_EQ(text(d[1]), std::string("2+2") + ANSWER_INSTRUCTION + "\nis #### 4");
    EXPECT_EQ(text(d[2]), "3+3=6");
    EXPECT_EQ(text(d[3]), "alone");
    EXPECT_EQ(text(d[4]), std::string("p") + ANSWER_INSTRUCTION + "\ns");
    EXPECT_EQ(text(join_documents(tok, {d[0], d[2]})), "one\n\n3+3=6");
    const std::string svamp = text_file(
        ".json", R"x([{"Body": "2 birds.", "Question": "How many?", "Equation": "( 2.0 + 1.0 )", "Answer": 3.0},
        {"Body": "A", "Question": "B", "Equation": "2.0 +", "Answer": 3.0}])x");
    d = calibration_documents(tok, config, svamp);
    ASSERT_EQ(d.size(), 2u);
    EXPECT_EQ(text(d[0]), std::string("2 birds. How many?") + ANSWER_INSTRUCTION + "\n2 + 1 = 3\n#### 3");
    EXPECT_EQ(text(d[1]), std::string("A B") + ANSWER_INSTRUCTION + "\n");
    std::string plain = text_file(".txt", "{\"text\": \"not a row\"}\n");
    EXPECT_EQ(text(calibration_documents(tok, config, plain)[0]), "{\"text\": \"not a row\"}\n");
    auto refuse = [&](const std::string& file, const char* part) {
        try {
            calibration_documents(tok, config, file);
            ADD_FAILURE() << "taken: " << part;
        } catch (const Error& e) { EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what(); }
    };
    refuse(text_file(".jsonl", "{\"text\": 5}\n"), "not text");
    refuse(text_file(".jsonl", "{\"words\": \"x\"}\n"), "no `text`");
    refuse(text_file(".jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n"), "no chat template");
    refuse(text_file(".txt", "ab\xff"), "byte 3 is not valid UTF-8");
    for (const char* end : {".jsonl", ".json", ".txt"}) std::filesystem::remove(text_file(end, ""));
}

TEST(Calibration, Windows) {
    std::vector<int> ids(50);
    std::iota(ids.begin(), ids.end(), 0);
    auto windows = draw_windows(ids, 400, 47, 3, "text");
    ASSERT_EQ(windows.size(), 400u);
    std::vector<int> starts(4, 0);
    for (const std::vector<int>& w : windows) {
        ASSERT_EQ(w.size(), 47u);
        ASSERT_EQ(w[46], w[0] + 46);
        starts.at(w[0])++;
    }
    for (int n : starts) EXPECT_GT(n, 60);
    EXPECT_EQ(windows, draw_windows(ids, 400, 47, 3, "text"));
    EXPECT_NE(windows, draw_windows(ids, 400, 47, 4, "text"));
    EXPECT_EQ(draw_windows(ids, 2, 50, 3, "text")[1], ids);
    try {
        draw_windows(ids, 1, 51, 3, "notes.txt");
        ADD_FAILURE();
    } catch (const Error& e) {
        for (const char* part : {"notes.txt", "50 tokens", "--calibration_length 51"})
            EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// log-loss

TEST(LogLoss, IsTheMeanOfTheScores) {
    Model m;
    tiny_model(m, "int4:g16:sym");
    std::vector<int> ids;
    for (const std::vector<int>& w : tiny_windows()) ids.insert(ids.end(), w.begin(), w.end());
    std::vector<ScoredText> texts = text_windows(ids, 33);  // 7 windows and a rest of 9
    ASSERT_EQ(texts.size(), 8u);
    EXPECT_EQ(texts[7].ids.size(), 9u);
    EXPECT_EQ(text_windows(std::vector<int>(34, 1), 33).size(), 1u) << "a token without one before it";
    texts[2].first = 30;
    double sum = 0.0;
    int64_t n = 0;
    for (const ScoredText& t : texts) {
        Batch b;
        batch_add_sequence(b, t.ids.data(), (int)t.ids.size());
        ScoredTokens s;
        for (int i = t.first; i < (int)t.ids.size(); i++) s.rows.push_back(i - 1), s.targets.push_back(t.ids[i]);
        LogLossMemory one;
        log_loss_allocate(one, m, 64, 64);
        score_forward(m, one.acts, one.score, b, s, 1.0f);
        score_fetch(s, one.score, m.dev);
        for (float logp : s.logp) sum -= logp, n++;
    }
    for (int64_t micro : {1, 70, 1000}) {
        LogLossMemory s;
        log_loss_allocate(s, m, micro, 33);
        LogLoss r = log_loss(m, s, texts);
        EXPECT_EQ(r.tokens, n);
        EXPECT_NEAR(r.mean, sum / (double)n, 1e-6) << micro;
    }
    LogLossMemory s;
    log_loss_allocate(s, m, 64, 64);
    double quantized = log_loss(m, s, texts).mean;
    model_refresh(m, false);
    EXPECT_THROW(log_loss(m, s, texts), Error);  // the pass and the working weights must agree
    EXPECT_NE(log_loss(m, s, texts, full_precision()).mean, quantized);
    EXPECT_THROW(log_loss(m, s, {}), Error);
}
