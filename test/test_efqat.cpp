// EfQAT (methods/efqat.cuh): which rows are chosen; that of the gradient those are the ones of the whole backward and
// the others 0; that the optimizer moves them as a smaller weight, and the others, moments included, not at all; what
// it refuses.
#include <gtest/gtest.h>
#include <set>
#include "../train/sft.cuh"
#include "operator_test.h"
#include "test_device.h"
#include "tiny_model.h"

// ---------------------------------------------------------------------------------------------------------------------
// the choice

static std::vector<int> chosen(const std::vector<float>& importance, const std::vector<int64_t>& rows,
                               EfqatSelect select, double share) {
    std::vector<int> list;
    const std::vector<uint8_t> mask = efqat_choose(importance, rows, select, share);
    for (size_t i = 0; i < mask.size(); i++)
        if (mask[i]) list.push_back((int)i);
    return list;
}

TEST(Efqat, ChoosesTheImportantRows) {
    typedef std::vector<int> List;
    // three weights of 4, 2 and 6 rows, whose means are 4, 5.5 and 3
    const std::vector<int64_t> rows = {4, 2, 6};
    const std::vector<float> importance = {1, 9, 4, 2, 5, 6, 3, 3, 3, 3, 3, 3};
    auto with = [&](EfqatSelect select, double share) { return chosen(importance, rows, select, share); };
    EXPECT_EQ(with(EfqatSelect::cwpl, 0.5), (List{1, 2, 5, 6, 7, 8}));  // equal ones by their index
    EXPECT_EQ(with(EfqatSelect::cwpl, 0.01), (List{1, 5, 6}));          // one at least
    EXPECT_EQ(with(EfqatSelect::cwpl, 0.3), (List{1, 5, 6, 7}));        // 1.2, 0.6 and 1.8 rows
    EXPECT_EQ(with(EfqatSelect::cwpn, 0.25), (List{1, 4, 5}));
    EXPECT_EQ(with(EfqatSelect::cwpn, 0.5), (List{1, 2, 4, 5, 6, 7}));
    EXPECT_EQ(with(EfqatSelect::cwpn, 0.01), (List{1}));
    EXPECT_EQ(with(EfqatSelect::lwpn, 0.01), (List{4, 5}));
    EXPECT_EQ(with(EfqatSelect::lwpn, 2.0 / 12), (List{4, 5}));
    EXPECT_EQ(with(EfqatSelect::lwpn, 3.0 / 12), (List{0, 1, 2, 3, 4, 5}));  // the weight that crosses the share, too
    for (EfqatSelect select : {EfqatSelect::cwpl, EfqatSelect::cwpn, EfqatSelect::lwpn})
        EXPECT_EQ(with(select, 1.0).size(), 12u);
    const float nan = NAN;
    EXPECT_EQ(chosen({nan, 1, 2, nan}, {4}, EfqatSelect::cwpl, 0.5), (List{1, 2}));
}

// ---------------------------------------------------------------------------------------------------------------------
// a model in training

static constexpr int LAYERS = HAS_KERNELS ? 1 : 2, EXAMPLES = HAS_KERNELS ? 4 : 8;

struct EfqatRun {
    Model m;
    Trainer t;
    EfqatMethod* method = nullptr;
    SftObjective objective;
    StepContext context;

    // v is not quantized, so that a linear has parts with rows of both kinds
    explicit EfqatRun(const std::string& methods, const std::string& optim = "adamw",
                      const std::string& weights = "int4:g8; v=none", int64_t tokens = 16) {
        m.dev = model_device();
        ModelConfig c = tiny_config(LAYERS);
        c.qkv_bias = true;
        model_allocate(m, c);
        model_quantize(m, rules_of(weights), true);
        model_init_random(m, 5);
        model_refresh(m);
        OptimizerConfig optimizer;
        optimizer.name = optim, optimizer.ns_steps = 2;
        optimizer_rates(optimizer, 0.01, 0.1);
        trainer_init(t, m, tokens, false, optimizer, training_methods_parse(methods));
        if (!t.methods.list.empty()) method = static_cast<EfqatMethod*>(t.methods.list[0].get());
        objective.micro_batch_tokens = tokens;
        for (int i = 0; i < EXAMPLES; i++) {
            Example e;
            for (int j = 0; j < 2 + i % 3; j++) e.prompt.tokens.push_back((7 * i + 3 * j + 1) % 100);
            for (int j = 0; j < 1 + i % 5; j++) e.completion.push_back((11 * i + 5 * j + 2) % 100);
            context.batch.push_back(e);
        }
        methods_start(t);
    }
    void loss() { objective.loss(t, context, true); }
    void step() {
        loss();
        optimizer_apply(t, 0.01, 1.0);
    }
    template <class T>
    std::vector<T> host(const T* data, size_t n) const {
        std::vector<T> v(n);
        copy_to_host(v.data(), data, n * sizeof(T), m.dev);
        return v;
    }
    std::vector<float> grads() const { return host(t.grads.data, t.grads.size); }
    std::vector<float> masters() const { return host(m.master.data, m.master.size); }
    std::vector<char> state() const { return host(t.optimizer.state.data, t.optimizer.state.size); }
    std::vector<uint8_t> mask() const { return host(method->mask.data, method->mask.size); }
};

// for each parameter, 0 where it belongs to a row that is not trained
static std::vector<uint8_t> trained_numbers(const EfqatRun& r) {
    std::vector<uint8_t> all(r.m.num_params, 1);
    const std::vector<uint8_t> mask = r.mask();
    size_t row = 0;
    for (const LinearPart* p : r.method->parts)
        for (int64_t i = 0; i < p->rows; i++)
            std::fill_n(all.begin() + (std::ptrdiff_t)(p->offset + (size_t)(i * p->cols)), p->cols, mask[row++]);
    EXPECT_EQ(row, mask.size());
    return all;
}

static const char* const each_select[] = {"efqat:share=0.3", "efqat:share=0.2:select=cwpn",
                                          "efqat:share=0.4:select=lwpn"};

// several micro-batches add up
TEST(Efqat, GradientsAreThoseOfTheWholeBackwardAndZeroElsewhere) {
    EfqatRun whole("none");
    whole.loss();
    const std::vector<float> want = whole.grads();
    for (const char* methods : each_select) {
        EfqatRun some(methods);
        some.loss();
        const std::vector<float> got = some.grads();
        const std::vector<uint8_t> trained = trained_numbers(some);
        std::vector<float> x;
        std::vector<double> y;
        size_t frozen = 0, differ = 0;
        for (size_t i = 0; i < got.size(); i++) {
            if (trained[i]) {
                x.push_back(got[i]), y.push_back(want[i]);
                differ += float_bits(got[i]) != float_bits(want[i]);
                continue;
            }
            frozen++;
            ASSERT_EQ(float_bits(got[i]), 0u) << methods << ": " << i;
        }
        EXPECT_GT(frozen, got.size() / 8) << methods;
        EXPECT_TRUE(some.m.dev.cuda || differ == 0) << methods;  // cuBLASLt's bits depend on the shape
        expect_agree(x, y, 1e-6, 1e-3, methods);
        bool partial = false;
        for (Layer& l : some.m.layers)
            for (Linear* linear : layer_linears(l)) partial |= !linear->trained.all && linear->trained.count > 0;
        EXPECT_TRUE(partial) << methods;
    }
}

#if !HAS_KERNELS  // the kernels of a step are in the tests above and below, and the simulated GPU is slow
// weights and moments, with momentum and weight decay, while the choice moves
TEST(Efqat, OtherRowsStayWithTheirMoments) {
    for (const char* methods : each_select) {
        EfqatRun r(std::string(methods) + ":every=1");
        for (int step = 1; step <= 3; step++) {
            const std::vector<uint8_t> trained = trained_numbers(r), mask = r.mask();
            const std::vector<float> before = r.masters();
            const std::vector<char> state = r.state();
            r.step();
            const std::vector<float> after = r.masters();
            const std::vector<char> state_after = r.state();
            size_t at = 0;
            for (const OptimizerTensor& t : r.t.optimizer.tensors) {
                const size_t offset = (size_t)(t.weight - r.m.master.data);
                for (const StateArray& a : t.state) {
                    for (int64_t i = 0; i < t.count(); i++) {
                        const bool same = memcmp(&state[at + 4 * i], &state_after[at + 4 * i], 4) == 0;
                        if (!trained[offset + i]) { ASSERT_TRUE(same) << methods << ", " << t.name << "." << a.name; }
                    }
                    at += optimizer_stride(a);
                }
            }
            size_t trained_moved = 0, count = 0;
            for (size_t i = 0; i < after.size(); i++) {
                const bool same = float_bits(before[i]) == float_bits(after[i]);
                if (!trained[i]) { ASSERT_TRUE(same) << methods << ", step " << step << ": " << i; }
                count += trained[i], trained_moved += trained[i] && !same;
            }
            EXPECT_GT(trained_moved, count / 2) << methods;
            EXPECT_EQ(r.method->changed > 0.0, !same_bits(mask, r.mask())) << methods;
        }
    }
}

// the weights of a run move too little for another choice, so they are changed from outside
TEST(Efqat, ChoosesAnewAfterSoManySteps) {
    EfqatRun once("efqat:share=0.3"), often("efqat:share=0.3:every=2");
    const std::vector<uint8_t> first = once.mask();
    EXPECT_TRUE(same_bits(first, often.mask()));
    std::vector<float> w = often.masters();
    for (const LinearPart* p : often.method->parts)  // the least important rows become the largest
        for (int64_t i = 0; i < p->count(); i++)
            w[p->offset + (size_t)i] = 0.1f / (0.01f + fabsf(w[p->offset + (size_t)i]));
    for (EfqatRun* r : {&once, &often}) copy_to_device(r->m.master.data, w.data(), r->m.master.bytes(), r->m.dev);
    for (int step = 1; step <= 2; step++) {
        once.step(), often.step();
        EXPECT_EQ(same_bits(first, often.mask()), step == 1);
        EXPECT_TRUE(same_bits(first, once.mask()));
        EXPECT_EQ(often.method->changed > 0.1, step == 2);
    }
    double share = 0.0;
    for (uint8_t c : often.mask()) share += (double)c / (double)first.size();
    nlohmann::ordered_json j;
    often.method->metrics(j);
    EXPECT_DOUBLE_EQ(j["efqat/rows"].get<double>(), share);
    EXPECT_NEAR(share, 0.3, 0.02);
    const std::vector<uint8_t> trained = trained_numbers(often);  // and these are what is computed from here on
    often.loss();
    const std::vector<float> grads = often.grads();
    size_t zeros = 0;
    for (size_t i = 0; i < grads.size(); i++)
        if (!trained[i]) ASSERT_EQ(float_bits(grads[i]), 0u);
        else zeros += grads[i] == 0.0f;
    EXPECT_LT(zeros, grads.size() / 10);
}

TEST(Efqat, AllRowsAreTheRunWithout) {
    for (const char* methods : {"efqat:share=1:every=1", "efqat:share=1:select=cwpn", "efqat:share=1:select=lwpn"}) {
        EfqatRun none("none"), all(methods);
        for (int step = 0; step < 2; step++) none.step(), all.step();
        EXPECT_TRUE(same_bits(none.masters(), all.masters())) << methods;
        EXPECT_EQ(none.state(), all.state()) << methods;
        EXPECT_EQ(all.method->dout.size, 0u) << methods;
    }
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// the optimizer

// Every rule moves the rows of each weight as it moves a weight that has no others
TEST(Efqat, RowsMoveAsASmallerWeight) {
    for (const char* optim : {"adamw", "adamw_bf16", "muon"}) {
        EfqatRun r("efqat:share=0.3", optim);
        for (int64_t step = 1; step <= 3; step++) {
            const std::vector<float> grads = random_values<float>(r.m.num_params, 40 + (uint32_t)step);
            copy_to_device(r.t.grads.data, grads.data(), r.t.grads.bytes(), r.m.dev);
            std::vector<std::vector<float>> want;  // of each tensor with a list: its rows
            std::vector<std::vector<char>> state;
            for (const OptimizerTensor& t : r.t.optimizer.tensors) {
                if (!t.trained || t.trained->all) continue;
                const std::vector<int> rows = r.host(t.trained->rows, (size_t)t.trained->count);
                auto cut = [&](const void* data, size_t element) {
                    const size_t row = (size_t)t.cols * element;
                    const std::vector<char> all = r.host((const char*)data, (size_t)t.rows * row);
                    std::vector<char> some;
                    for (int i : rows) some.insert(some.end(), all.begin() + i * row, all.begin() + (i + 1) * row);
                    return some;
                };
                TestBuffer<char> w(cut(t.weight, 4), r.m.dev), g(cut(t.grad, 4), r.m.dev),
                    scratch(t.rule->scratch_bytes(t), r.m.dev);
                OptimizerTensor small = t;
                small.rows = (int64_t)rows.size();
                small.weight = (float*)w.data, small.grad = (float*)g.data;
                std::vector<std::unique_ptr<TestBuffer<char>>> arrays;
                for (StateArray& a : small.state) {
                    arrays.push_back(
                        std::make_unique<TestBuffer<char>>(cut(a.data, state_type_bytes(a.type)), r.m.dev));
                    a.rows = small.rows, a.data = arrays.back()->data;
                }
                const OptimizerConfig& c = r.t.optimizer.config;
                t.rule->update(small, {0.02f, 0.1f, 0.5f, step, scratch.data}, c, r.m.dev);
                const std::vector<char> moved = w.get();
                want.emplace_back(moved.size() / 4);
                memcpy(want.back().data(), moved.data(), moved.size());
                for (const auto& a : arrays) state.push_back(a->get());
            }
            EXPECT_EQ(want.size(), 6u * LAYERS) << optim;  // q, k, o, gate, up and down
            optimizer_update(r.t.optimizer, {0.02, 0.5, step});
            size_t i = 0, k = 0;
            for (const OptimizerTensor& t : r.t.optimizer.tensors) {
                if (!t.trained || t.trained->all) continue;
                const std::vector<int> rows = r.host(t.trained->rows, (size_t)t.trained->count);
                auto is = [&](const void* data, size_t element, const char* expected) {
                    const size_t row = (size_t)t.cols * element;
                    const std::vector<char> all = r.host((const char*)data, (size_t)t.rows * row);
                    bool same = true;
                    for (size_t n = 0; n < rows.size(); n++)
                        same &= memcmp(all.data() + rows[n] * row, expected + n * row, row) == 0;
                    return same;
                };
                EXPECT_TRUE(is(t.weight, 4, (const char*)want[i++].data())) << optim << ", " << t.name;
                for (const StateArray& a : t.state)
                    EXPECT_TRUE(is(a.data, state_type_bytes(a.type), state[k++].data())) << optim << ", " << t.name;
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// refusals

static void expect_refused(const std::function<void()>& f, const char* part) {
    try {
        f();
        ADD_FAILURE() << "was taken: " << part;
    } catch (const Error& e) {
        EXPECT_EQ(e.exit_code, 2) << e.what();
        EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    }
}

TEST(Efqat, Refuses) {
    expect_refused([] { EfqatRun r("efqat", "adamw", "none"); }, "no weight is quantized");
    expect_refused([] { EfqatRun r("efqat", "adamw", "none; embed=int8:channel"); }, "of these none is");
    expect_refused([] { EfqatRun r("efqat", "adamw_8bit"); }, "--optim adamw_8bit with --methods efqat");
    expect_refused([] { training_methods_parse("cage+efqat"); }, "cage and efqat do not go together");
    expect_refused([] { training_methods_parse("efqat:share=0"); }, "share=0");
    auto attach = [](const std::function<void(Model&)>& prepare) {
        Model m;
        Trainer t;
        m.dev = model_device();
        model_allocate(m, tiny_config(1));
        prepare(m);
        trainer_init(t, m, 16, false, OptimizerConfig(), training_methods_parse("efqat"));
    };
    expect_refused(
        [&] { attach([](Model& m) { model_quantize(m, rules_of("int4:g8", "all", ScaleMode::learned), false); }); },
        "--qat_scale dynamic or static");
    expect_refused(
        [&] {
            attach([](Model& m) {
                LoraConfig lora;
                lora.r = 2;
                model_quantize(m, rules_of("int4:g8"), false);
                model_adapt(m, lora, 1, true);
            });
        },
        "leave the adapter out");
    // a checkpoint's rows, with settings that planned for fewer
    EfqatRun small("efqat:share=0.1");
    std::vector<uint8_t> many(small.method->mask.size, 1);
    many[0] = many[100] = 0;
    copy_to_device(small.method->mask.data, many.data(), many.size(), small.m.dev);
    expect_refused([&] { small.method->resumed(); }, "more rows than these settings plan for");
}
