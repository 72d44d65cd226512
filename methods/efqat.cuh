// EfQAT: efficient quantization-aware training (Ashkboos, Verhoef, Hoefler, Eleftheriou, Dazzi 2024, arXiv 2411.11038).
// Of a quantized model only the most important output channels, rows of the weights, are trained; of the gradient of a
// weight only their rows are computed, so that the backward is faster (the paper: 1.44 to 1.64 times):
//   I_r = 1/C sum_c |W_rc|                    importance of row r of W [rows,C], its fp32 master
//   dW_r = sum_t dY_tr X_t for chosen r, 0 for the others;  dX and the gradients of biases are whole
//   cwpl   of each weight its share of rows with the largest I
//   cwpn   the share of the rows of all weights with the largest I: one threshold for the network
//   lwpn   whole weights, those with the largest mean |W| first, until they have the share of all rows
// Every `every` optimizer steps the rows are chosen anew; the paper does so about every 4096 samples, for shares of
// 0.05, 0.1 and 0.25. Norms and biases are always trained.
//
// There is no public code. Decided here:
//   - A share is rounded to the nearest number of rows, at least one; equal rows are taken by their index, in the order
//     of memory; lwpn takes the weight that crosses the share, too.
//   - The weights are the linears of the layers that have a quantizer. Embedding and head, quantized or not, are
//     trained as ever, and so is a linear without a quantizer; --group_learning_rates embeddings=0 leaves the former
//     alone.
//   - A row that is not chosen keeps its weights and its moments as they are: no momentum and no decay moves it. One
//     that is chosen again goes on with the moments it had; one that is chosen late begins with moments of 0, whose
//     correction for the first steps is over: with AdamW's defaults it moves by about 3 times the rate at first.
//   - Muon makes the update of the chosen rows orthogonal, as a matrix of their own.
//   - Learned scales, which the paper trains always, are refused: their gradient is a sum over all of dW.
//
// What is saved is time: gradient and moments keep their size, for the choice moves, and ranks add up zeros. Gradients
// that other methods add to rows that are not chosen count in the gradient's norm and do nothing else.
#pragma once
#include <algorithm>
#include "../kernels/row_mean.cuh"
#include "training_method.cuh"

enum class EfqatSelect { cwpl, cwpn, lwpn };

// ---------------------------------------------------------------------------------------------------------------------
// the choice

// how many of `rows` are chosen
inline int64_t efqat_count(double share, int64_t rows) {
    return std::clamp<int64_t>(llround(share * (double)rows), 1, rows);
}

// the indices of scores, the largest first, equal ones in their order. What is not a number comes last
inline std::vector<int64_t> efqat_order(std::vector<double> scores) {
    std::vector<int64_t> order(scores.size());
    for (size_t i = 0; i < order.size(); i++) {
        order[i] = (int64_t)i;
        if (!std::isfinite(scores[i])) scores[i] = -1.0;
    }
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
    return order;
}

// importance: of the rows of all weights, one after another; rows: of each weight. The result is 1 where a row is
// trained
inline std::vector<uint8_t> efqat_choose(const std::vector<float>& importance, const std::vector<int64_t>& rows,
                                         EfqatSelect select, double share) {
    std::vector<uint8_t> mask(importance.size(), 0);
    auto take_best = [&](int64_t first, int64_t n) {
        const std::vector<int64_t> order =
            efqat_order(std::vector<double>(importance.begin() + first, importance.begin() + first + n));
        for (int64_t i = 0; i < efqat_count(share, n); i++) mask[first + order[i]] = 1;
    };
    if (select == EfqatSelect::cwpn) {
        take_best(0, (int64_t)mask.size());
        return mask;
    }
    std::vector<int64_t> first(rows.size(), 0);
    for (size_t i = 1; i < rows.size(); i++) first[i] = first[i - 1] + rows[i - 1];
    if (select == EfqatSelect::cwpl) {
        for (size_t i = 0; i < rows.size(); i++) take_best(first[i], rows[i]);
        return mask;
    }
    std::vector<double> mean(rows.size(), 0.0);
    for (size_t i = 0; i < rows.size(); i++)
        for (int64_t r = 0; r < rows[i]; r++) mean[i] += importance[first[i] + r] / (double)rows[i];
    const int64_t wanted = efqat_count(share, (int64_t)mask.size());
    int64_t taken = 0;
    for (int64_t i : efqat_order(mean)) {
        if (taken >= wanted) break;
        std::fill_n(mask.begin() + first[i], rows[i], (uint8_t)1);
        taken += rows[i];
    }
    return mask;
}

// ---------------------------------------------------------------------------------------------------------------------
// the method

struct EfqatMethod : TrainingMethod {
    EfqatSelect select;
    double share;
    int64_t every;
    std::vector<LinearPart*> parts;  // that have a quantizer, in the order of memory
    std::vector<int64_t> rows;       // of each
    Buffer<uint8_t> mask;            // [rows of parts] 1: trained
    Buffer<float> importance;        // [rows of parts] scratch
    Buffer<int> part_rows;           // [rows of parts] the lists of parts, each where its rows are
    Buffer<int> linear_rows;         // [rows of all linears] the same of linears
    Buffer<floatX> dout;             // see LinearRows
    Buffer<float> dweight;
    double trained = 1.0, changed = 0.0;  // shares of all rows; changed by the last step

    explicit EfqatMethod(const Settings& s)
        : select(s.is("select", "cwpl")   ? EfqatSelect::cwpl
                 : s.is("select", "cwpn") ? EfqatSelect::cwpn
                                          : EfqatSelect::lwpn),
          share(s.number("share")),
          every(s.whole("every")) {}

    void attach() override {
        Model& m = *run.model;
        method_needs_masters(m, "efqat");
        for (LinearPart* p : quantized_parts(m)) {
            if (p->layer < 0) continue;
            if (p->quantizer.scale_mode == ScaleMode::learned)
                fail_usage(
                    "--methods efqat: a learned scale learns from all rows of a weight's gradient, and efqat "
                    "computes some; take --qat_scale dynamic or static");
            parts.push_back(p);
            rows.push_back(p->rows);
        }
        if (parts.empty())
            fail_usage(
                "--methods efqat chooses rows of quantized linears, and of these none is; name one in --weights");
        plan();
    }

    void start() override { take(choose()); }
    void resumed() override {
        std::vector<uint8_t> saved(mask.size);
        copy_to_host(saved.data(), mask.data, mask.bytes(), run.model->dev);
        for (uint8_t& s : saved) s = s != 0;
        take(saved);
        check_room();
    }

    void after_step(const StepInfo& step) override {
        changed = 0.0;
        if (every == 0 || step.step % every) return;
        std::vector<uint8_t> before(mask.size);
        copy_to_host(before.data(), mask.data, mask.bytes(), run.model->dev);
        const std::vector<uint8_t> now = choose();
        for (size_t i = 0; i < now.size(); i++) changed += (double)(now[i] != before[i]) / (double)now.size();
        take(now);
    }

    std::vector<NamedArray> arrays() override {
        std::vector<NamedArray> list;
        add_array(list, "efqat.rows", mask);
        return list;
    }

    void metrics(nlohmann::ordered_json& j) const override {
        j["efqat/rows"] = trained;
        if (every > 0) j["efqat/changed"] = changed;
    }

    // The most rows of a list over weights that have `all` rows, of which `open` may be left out. each: those that cwpl
    // leaves; smallest: of the weights. What is trained as a whole has no list
    int64_t longest(int64_t all, int64_t open, int64_t each, int64_t smallest) const {
        const int64_t total = (int64_t)mask.size, budget = efqat_count(share, total);
        if (select == EfqatSelect::cwpl) return each == all ? 0 : each;
        if (budget == total) return 0;
        return select == EfqatSelect::lwpn ? all - smallest : std::min(all - 1, all - open + std::min(open, budget));
    }

    // memory for the longest lists
    void plan() {
        Model& m = *run.model;
        int64_t total = 0, all = 0, width = 0, gradient = 0;
        for (int64_t n : rows) total += n;
        mask.allocate((size_t)total, "rows that are trained", "", m.dev);
        importance.allocate((size_t)total, "rows that are trained", "", m.dev);
        part_rows.allocate((size_t)total, "rows that are trained", "", m.dev);
        for (LinearPart* p : parts) {
            p->trained.method = "efqat";
            p->trained.most = longest(p->rows, p->rows, efqat_count(share, p->rows), p->rows);
        }
        for (Layer& layer : m.layers)
            for (Linear* l : layer_linears(layer)) {
                all += l->rows;
                int64_t open = 0, each = l->rows, smallest = l->rows;
                for (const LinearPart& p : l->parts) {
                    if (!p.trained.method) continue;
                    open += p.rows, each -= p.rows - efqat_count(share, p.rows), smallest = std::min(smallest, p.rows);
                }
                if (open == 0) continue;
                const int64_t most = longest(l->rows, open, each, smallest);
                width = std::max(width, trained_rows_width(most, m.dev));
                gradient = std::max(gradient, trained_rows_width(most, m.dev) * l->cols);
            }
        linear_rows.allocate((size_t)all, "rows that are trained", "", m.dev);
        dout.allocate((size_t)(run.tokens * width), "gradients of trained rows", "lower --micro_batch_tokens", m.dev);
        dweight.allocate((size_t)gradient, "gradients of trained rows", "", m.dev);
    }

    // A checkpoint of a run with a larger share has more rows than memory was planned for
    void check_room() {
        Model& m = *run.model;
        bool fits = true;
        for (const LinearPart* p : parts) fits &= p->trained.all || p->trained.count <= p->trained.most;
        for (Layer& layer : m.layers)
            for (const Linear* l : layer_linears(layer)) {
                const int64_t width = l->trained.all ? 0 : trained_rows_width(l->trained.count, m.dev);
                fits &= width * run.tokens <= (int64_t)dout.size && width * l->cols <= (int64_t)dweight.size;
            }
        if (!fits)
            fail_usage(
                "--methods efqat: the checkpoint trains more rows than these settings plan for; give `select` and "
                "`share` as it had them");
    }

    // the rows that are important now
    std::vector<uint8_t> choose() {
        const Device dev = run.model->dev;
        int64_t first = 0;
        for (const LinearPart* p : parts) {
            row_mean_size(importance.data + first, p->master, p->rows, p->cols, dev);
            first += p->rows;
        }
        std::vector<float> host(importance.size);
        copy_to_host(host.data(), importance.data, importance.bytes(), dev);
        return efqat_choose(host, rows, select, share);
    }

    // from here on, those of `chosen` are trained
    void take(const std::vector<uint8_t>& chosen) {
        Model& m = *run.model;
        std::vector<int> lists(chosen.size()), whole(linear_rows.size);
        const uint8_t* of_part = chosen.data();
        int64_t first = 0, at = 0;
        trained = 0.0;
        for (uint8_t c : chosen) trained += (double)c / (double)chosen.size();
        for (Layer& layer : m.layers)
            for (Linear* l : layer_linears(layer)) {
                LinearRows& r = l->trained;
                r.count = 0, r.rows = linear_rows.data + at;
                for (LinearPart& p : l->parts) {
                    const bool open = p.trained.method != nullptr;  // rows may be left out
                    const int64_t before = r.count;
                    for (int64_t i = 0; i < p.rows; i++) {
                        if (open && !of_part[i]) continue;
                        if (open) lists[first + r.count - before] = (int)i;
                        whole[at + r.count++] = (int)(p.row0 + i);
                    }
                    if (!open) continue;
                    p.trained.count = r.count - before, p.trained.rows = part_rows.data + first;
                    p.trained.all = p.trained.count == p.rows;
                    first += p.rows, of_part += p.rows;
                }
                r.all = r.count == l->rows;
                r.dout = dout.data, r.dweight = dweight.data;
                at += l->rows;
            }
        copy_to_device(mask.data, chosen.data(), mask.bytes(), m.dev);
        copy_to_device(part_rows.data, lists.data(), part_rows.bytes(), m.dev);
        copy_to_device(linear_rows.data, whole.data(), linear_rows.bytes(), m.dev);
        device_synchronize(m.dev);  // the host's arrays go
    }
};

inline const MethodRow efqat_row = {
    "efqat",
    "of quantized weights the most important rows alone are trained: a faster backward (EfQAT, arXiv 2411.11038)",
    {{"select", "cwpl", "cwpl|cwpn|lwpn", "a share of each weight's rows, of all rows, or whole weights"},
     {"share", "0.1", "(0, 1]", "of the rows that is trained"},
     {"every", "0", "whole [0, 1000000000]", "optimizer steps until rows are chosen anew; 0: the first choice stays"}},
    {{"cage", "its pull moves the rows that are to stay as they are"}},
    [](const Settings& s) -> std::unique_ptr<TrainingMethod> { return std::make_unique<EfqatMethod>(s); }};
