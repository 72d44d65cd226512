// What the training loop asks of an objective. A step prepares once (rollouts, rewards, what a teacher has to say), and
// then gives its loss, with the gradient or without, for as many updates as it wants from what it prepared. How the
// gradient comes about is its own affair: by token log-probabilities (score_backward) or by logits (lm_head_logits).
#pragma once
#include <algorithm>
#include <functional>
#include <string>
#include <vector>
#include "../data/examples.h"
#include "../formats/arrays_file.h"
#include "../runtime/comm.h"
#include "../runtime/run_dir.h"
#include "../rollout.cuh"
#include "trainer.cuh"
#include "watch.h"

// All that a run is besides weights, optimizer and random numbers, which are keyed by the step. It changes when a step is
// complete, so that a step which was given up has left nothing in it.
struct LoopState {
    int64_t step = 0;  // steps done
    int64_t tokens_trained = 0;
    double train_seconds = 0.0;
    RolloutStats generated;
    TrainerCounters trainer;  // as that step left them
    nlohmann::ordered_json
        pending;  // the metrics of that step, if they are not logged yet: its evaluation was stopped, or the disk was full
    Watch watch;             // what it is warned of
    bool whole = true;       // the weights are those of that step, and not between two updates of the next
    int64_t num_tokens = 0;  // of each step those that it sampled, a prompt once; where it samples none, trained on
};

// One step as its objective sees it
struct StepContext {
    int64_t step = 0;            // from 0
    std::vector<Example> batch;  // of all ranks
    Pass pass;                   // what the forward of training does
    Comm* comm = nullptr;        // the ranks that share the work; null: this one alone
    std::function<bool()> stop;  // asked now and then; true abandons the step. null: it is to be finished
    int update = 0;              // which of the step's updates this is
    // n prompts from the first-th on that may take the place of the batch's (further_examples)
    std::function<std::vector<Example>(int64_t first, int64_t n)> more = nullptr;
    int world() const { return comm ? comm->world : 1; }
};

// What a step came to, for the lines of the log
struct StepReport {
    int64_t step = 0, steps = 0;  // step: from 1
    double loss = 0.0, learning_rate = 0.0, seconds = 0.0, train_seconds = 0.0;
    int64_t forward_tokens = 0;  // in forward passes of training
    OptimizerResult update;
    bool flips_counted = false;
};

struct Objective {
    virtual ~Objective() = default;
    // Once, with the weights that training begins with, after methods have made of them what they want; not when a run is
    // resumed
    virtual void start(Trainer&) {}
    // Once a step. False: the run was asked to stop, and the step leaves no trace.
    virtual bool prepare(Trainer&, const StepContext&, LoopState&) { return true; }
    // updates from what one step prepared
    virtual int iterations() const { return 1; }
    // Loss of the step's batch over all ranks, and, if asked for, its gradient: added to t.grads, which the ranks enter
    // with zeros and leave with the sum.
    virtual StepLoss loss(Trainer& t, const StepContext& c, bool gradient) = 0;
    // its own numbers for metrics.jsonl, those that a repeated run repeats, and times
    virtual void metrics(nlohmann::ordered_json&) const {}
    virtual void timings(nlohmann::ordered_json&, const StepReport&) const {}
    // what a run is warned by (watch.h), as far as the step shows it
    virtual void watched(WatchedStep&, const StepReport&) const {}
    // the step's line on the console
    virtual std::string line(const StepReport&) const = 0;
    // the step's completions for completions.jsonl, if it sampled any
    virtual void completions(RunDir&, int64_t step) const { (void)step; }
    // some of them token by token, for samples.jsonl, if it knows its tokens' log-probabilities
    virtual void token_samples(RunDir&, int64_t step) const { (void)step; }
    // once a step, after its last update; step: how many are done with it
    virtual void after_step(Trainer&, int64_t step) { (void)step; }
    // asked after each step, whose numbers it has: true ends the run before its last
    virtual bool done() { return false; }
    // What it knows of the steps before, beyond what the step is given: numbers, and arrays that are there from
    // the start
    virtual void save(nlohmann::ordered_json&) const {}
    virtual void load(const nlohmann::ordered_json&) {}
    virtual std::vector<NamedArray> arrays() { return {}; }
};

// ---------------------------------------------------------------------------------------------------------------------
// what objectives share

// has any rank been asked to stop?
inline bool step_stop(const StepContext& c) {
    const bool asked = c.stop && c.stop();
    return c.comm ? comm_any(*c.comm, asked) : asked;
}

// "step 12/300 |"
inline std::string line_step(const StepReport& r) {
    return format("step %*lld/%lld |", r.steps > 999 ? 5 : 3, (long long)r.step, (long long)r.steps);
}

// "grad 0.512 | lr 1.0e-05 | flips 0.012% (0.300%) |"
inline std::string line_update(const StepReport& r) {
    std::string s =
        format("grad %.3f%s | lr %.1e |", r.update.grad_norm, r.update.skipped ? " SKIPPED" : "", r.learning_rate);
    if (r.flips_counted) s += format(" flips %.3f%% (%.2f%%) |", 100 * r.update.flip_rate, 100 * r.update.flip_total);
    return s;
}

inline void check_micro_batch_fits(int64_t tokens, int64_t budget) {
    if (tokens > budget)
        fail("a prompt and completion of %lld tokens exceed --micro_batch_tokens %lld; raise it", (long long)tokens,
             (long long)budget);
}

// Items of these sizes in few bins of at most `capacity`: the largest first, each into the first bin that has room
// (first-fit decreasing: at most 11/9 of the fewest bins, and 6/9; Dosa 2007). Bins and their items ascend in number.
inline std::vector<std::vector<int>> pack(const std::vector<int64_t>& sizes, int64_t capacity) {
    std::vector<int> order(sizes.size());
    for (size_t i = 0; i < order.size(); i++) order[i] = (int)i;
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return sizes[a] > sizes[b]; });
    std::vector<std::vector<int>> bins;
    std::vector<int64_t> room;
    for (int i : order) {
        size_t bin = 0;
        while (bin < bins.size() && room[bin] < sizes[i]) bin++;
        if (bin == bins.size()) bins.emplace_back(), room.push_back(capacity);
        bins[bin].push_back(i);
        room[bin] -= sizes[i];
    }
    for (std::vector<int>& bin : bins) std::sort(bin.begin(), bin.end());
    std::sort(bins.begin(), bins.end());
    return bins;
}

// the sequences that this rank differentiates: [begin, end) of n
inline std::pair<int, int> share_of_ranks(const Comm* comm, size_t n) {
    return comm ? comm_share(*comm, (int)n) : std::pair<int, int>(0, (int)n);
}

inline int64_t example_tokens(const Example& e) { return (int64_t)(e.prompt.tokens.size() + e.completion.size()); }

inline void batch_add(Batch& b, const std::vector<int>& prompt, const std::vector<int>& completion) {
    std::vector<int> ids = prompt;
    ids.insert(ids.end(), completion.begin(), completion.end());
    batch_add_sequence(b, ids.data(), (int)ids.size());
}

// This rank's share of the examples, one micro-batch after the other: use(batch, its scored tokens), which are those of the
// completions. False: the step was abandoned
template <class Use>
bool each_micro_batch(const std::vector<Example>& examples, int64_t budget, const StepContext& c, const Use& use) {
    const auto [begin, end] = share_of_ranks(c.comm, examples.size());
    std::vector<int64_t> lengths;
    for (int i = begin; i < end; i++) lengths.push_back(example_tokens(examples[i]));
    int64_t tokens = 0;
    for (int64_t n : lengths) check_micro_batch_fits(n, budget), tokens += n;
    Progress line("", "token", tokens, ProgressKind::part);
    for (const std::vector<int>& batch : pack(lengths, budget)) {
        if (c.stop && c.stop()) return false;
        Batch b;
        ScoredTokens s;
        for (int i : batch) {
            const Example& e = examples[begin + i];
            batch_add(b, e.prompt.tokens, e.completion);
            const int prompt = (int)e.prompt.tokens.size();
            if (e.learnt.empty()) score_last_sequence(s, b, prompt);
            for (const auto& [first, last] : e.learnt) score_last_sequence(s, b, prompt + first, prompt + last);
        }
        if (s.size() > 0) use(b, s);
        line.add(b.T());
    }
    return true;
}

// All that the ranks' backwards have added up becomes its sum over them. Learned scales are in it where an adapter is
// inside the quantizer (linear_backward_adapted); else their gradients are made of this sum (optimizer_apply) and 0 here.
inline void sum_gradients(Trainer& t, Comm& comm) {
    comm_sum(comm, t.grads.data, t.grads.size);
    if (t.model->lora.inside()) comm_sum(comm, t.scale_grads.data, t.scale_grads.size);
}

// Sums over the ranks: the gradients, if there are any, and numbers of the host
inline void sum_over_ranks(Trainer& t, const StepContext& c, bool gradient, const std::vector<double*>& numbers) {
    if (c.world() == 1) return;
    if (gradient) sum_gradients(t, *c.comm);
    comm_reduce(*c.comm, numbers, Reduce::sum);
}
