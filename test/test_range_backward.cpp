// A quantizer's backward through its measured range against float64, on every backend, for weights with logits and for
// activations with one ratio.
#include "operator_test.h"
#include "../kernels/range_backward.cuh"

template <class Number>
static void expect_the_formulas(bool logits) {
    struct Case {
        int64_t groups, group;
        bool symmetric;
    };
    for (const Case& c :
         {Case{1, 1, true}, {3, 7, true}, {5, 64, false}, {40, 33, true}, {9, 576, false}, {2, 1000, true}}) {
        const size_t n = (size_t)(c.groups * c.group);
        QuantSpec q;
        q.bits = 4, q.symmetric = c.symmetric;
        std::vector<Number> w = random_values<Number>(n, 21);
        for (int64_t j = 0; j < c.group; j++)
            w[(size_t)j] = (Number)std::fabs((float)w[(size_t)j]);  // an end that is 0
        const std::vector<Number> dq = random_values<Number>(n, 22);
        const std::vector<float> a = random_values<float>((size_t)c.groups, 23),
                                 b = random_values<float>((size_t)c.groups, 24);
        const QuantGroups shape = {c.groups, c.group};
        const float ratio = 0.8f;
        std::vector<Grid> range((size_t)c.groups), grid((size_t)c.groups);
        quant_measure(range.data(), ScaleState(), w.data(), shape, {q, GridOf::ends}, Device());
        std::vector<double> dw(n), da((size_t)c.groups, 1.0), db((size_t)c.groups, 2.0), dratio(1, 3.0);
        for (size_t g = 0; g < (size_t)c.groups; g++) {
            const double up = logits ? 1.0 / (1.0 + std::exp(-(double)a[g])) : ratio;
            const double down = logits ? 1.0 / (1.0 + std::exp(-(double)b[g])) : ratio;
            const double max = range[g].scale, min = range[g].zero;
            grid[g] = quant_grid(q, (float)(down * min), (float)(up * max), 1.0f, 1.0f);
            const double s = grid[g].scale, z = grid[g].zero, low = quant_low(q), high = quant_high(q);
            double S = 0.0, O = 0.0;
            int64_t first_max = -1, first_min = -1;
            for (int64_t j = 0; j < c.group; j++) {
                const size_t i = g * (size_t)c.group + (size_t)j;
                const double x = (double)(float)w[i] / s, at = x + z, d = (double)(float)dq[i];
                const bool below = at<low, above = at> high;
                S += d * (below ? low - z : above ? high - z : std::rint(x) - x);
                O += below || above ? d : 0.0;
                dw[i] = below || above ? 0.0 : d;
                if (first_max < 0 && (double)(float)w[i] == max) first_max = (int64_t)i;
                if (first_min < 0 && (double)(float)w[i] == min) first_min = (int64_t)i;
            }
            double dupper = 0.0, dlower = 0.0;
            if (!c.symmetric) {
                const double t = S - O * down * min / s;
                dupper = t / 15.0, dlower = O - t / 15.0;
            } else {
                (-down * min > up * max ? dlower : dupper) = (-down * min > up * max ? -S : S) / 7.5;
            }
            if (max > 0.0) dw[(size_t)first_max] += up * dupper;
            if (min < 0.0) dw[(size_t)first_min] += down * dlower;
            da[g] += dupper * max * up * (1.0 - up), db[g] += dlower * min * down * (1.0 - down);
            dratio[0] += dupper * max + dlower * min;
        }
        for (const Backend& run : all_backends()) {
            select_backend(run);
            const std::string what = format("%d x %d on ", (int)c.groups, (int)c.group) + run.name;
            TestBuffer<Number> x(w, run.dev), d(dq, run.dev);
            TestBuffer<Grid> r(range, run.dev), g(grid, run.dev);
            TestBuffer<float> la(a, run.dev), lb(b, run.dev), ga(std::vector<float>((size_t)c.groups, 1.0f), run.dev),
                gb(std::vector<float>((size_t)c.groups, 2.0f), run.dev), gr(std::vector<float>(1, 3.0f), run.dev);
            RangeGradient to;
            RangeClip clip;
            if (logits) to.a = ga.data, to.b = gb.data, clip.a = la.data, clip.b = lb.data;
            else to.ratio = gr.data, clip.ratio = ratio;
            range_backward(d.data, to, x.data, r.data, g.data, clip, shape, q, run.dev);
            const bool half = sizeof(Number) == 2;
            expect_agree(d.get(), dw, half ? 2e-5 : 1e-9, half ? 5e-3 : 1e-4, what);
            if (logits) {
                expect_agree(ga.get(), da, 1e-9, 1e-4, what + ", a");
                expect_agree(gb.get(), db, 1e-9, 1e-4, what + ", b");
            } else {
                expect_agree(gr.get(), dratio, 1e-9, 1e-4, what + ", ratio");
            }
        }
    }
}

TEST(RangeBackward, Weights) { expect_the_formulas<float>(true); }
TEST(RangeBackward, Activations) { expect_the_formulas<floatX>(false); }

TEST(RangeBackward, AClipIsAShareOfTheRange) {
    QuantSpec q;
    q.bits = 4, q.clip = 0.5f;
    for (bool symmetric : {true, false}) {
        q.symmetric = symmetric;
        QuantSpec whole = q;
        whole.clip = 1.0f;
        const Grid half = quant_grid(q, -3.0f, 5.0f, 1.0f, 1.0f), expected = quant_grid(whole, -1.5f, 2.5f, 1.0f, 1.0f);
        EXPECT_EQ(memcmp(&half, &expected, sizeof(Grid)), 0);
    }
}
