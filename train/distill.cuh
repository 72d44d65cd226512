// Knowledge distillation: a quantized student learns the next-token distribution of a teacher, its own unquantized self
// as a rule (Lv et al. 2026, arXiv 2601.14888; NVIDIA 2026, QAD, arXiv 2601.20088).
//   loss = sum over tokens of alpha T^2 D(teacher, student) + (1 - alpha) cross-entropy, over N, the tokens of the step
// D and what it leaves out: kernels/distill_loss.cuh. The tokens are those of completions, given their prompts:
//   traces        of the data set
//   the teacher's its samples, those with a wrong answer left out if asked (sequence-level distillation, Kim & Rush 2016)
//   the student's what the quantized policy itself samples (on-policy; Agarwal et al. 2024, GKD, arXiv 2306.13649). A
//                 step is on-policy with probability lmbda, GKD's name and rule.
// Teacher and student are two models that share a vocabulary and nothing else. Both run over the same micro-batches.
#pragma once
#include "../kernels/distill_loss.cuh"
#include "loop.cuh"
#include "samples.cuh"

// A model whose weights stay as they are, with the memory of its forward
struct Teacher {
    Model model;
    Activations acts;
    Buffer<floatX> hidden;  // [tokens, its C]
    RolloutState rollouts;  // only if it samples
};

// model: allocated. tokens: of a micro-batch
inline void teacher_allocate(Teacher& t, int64_t tokens) {
    const char* hint = "lower --micro_batch_tokens";
    activations_allocate(t.acts, t.model, tokens, ActivationMode::inference, "the teacher's activations", hint);
    t.hidden.allocate(tokens * t.model.C(), "the teacher's hidden states", hint, t.model.dev);
}

// What one pass needs besides the trainer's memory
struct DistillMemory {
    LogitScratch logits;
    Buffer<double> weight;     // [tokens]
    Buffer<DistillSums> sums;  // [1]
};

inline void distill_allocate(DistillMemory& d, const Model& student, int64_t tokens, int64_t vocabulary) {
    logit_scratch_allocate(d.logits, tokens, vocabulary, true, true, student.dev);
    d.weight.allocate(tokens, "weights of the scored tokens", "", student.dev);
    d.sums.allocate(1, "weights of the scored tokens", "", student.dev);
}

// Teacher and student over one micro-batch; its sums are added to d.sums, its gradients to t.grads
inline void distill_micro_batch(Trainer& t, Teacher& teacher, DistillMemory& d, const Batch& b, const ScoredTokens& s,
                                const DistillConfig& c, double weight, bool gradient, Pass pass) {
    Model& m = *t.model;
    const int64_t R = s.size();
    model_forward(teacher.model, teacher.acts, b, Pass());
    pass.dropout = gradient ? ++t.passes : 0;
    score_hidden(m, t.acts, t.score, b, s, pass);
    gather_rows(teacher.hidden.data, teacher.acts.hidden, t.score.rows.data, R, teacher.model.C(), m.dev);
    const std::vector<double> weights(R, weight);
    copy_to_device(d.weight.data, weights.data(), R * sizeof(double), m.dev);
    trainer_bind(t);
    LogitInputs in{t.score.hidden.data, m.head.work, R, m.C(), std::min(m.V(), teacher.model.V())};
    in.teacher = {teacher.hidden.data, teacher.model.head.work, teacher.model.C()};
    const DistillTokens tokens{d.weight.data, t.score.rows.data + R};
    lm_head_logits(gradient ? t.score.dhidden.data : nullptr, gradient ? m.head.grad : nullptr, in, d.logits, m.dev,
                   [&](const LogitBlock& block) { distill_loss(d.sums.data, block, tokens, c, m.dev); });
    if (gradient) score_hidden_backward(t, R);
}

struct DistillPass {
    DistillSums sums;
    int64_t forward_tokens = 0;
    bool abandoned = false;
};

// Over the completions of all examples: every rank takes its share and gets the sums of all
inline DistillPass distill_pass(Trainer& t, Teacher& teacher, DistillMemory& d, const std::vector<Example>& examples,
                                const DistillConfig& config, int64_t micro_batch_tokens, const StepContext& c,
                                bool gradient) {
    DistillPass out;
    const Device dev = t.model->dev;
    int64_t tokens = 0;
    for (const Example& e : examples) tokens += completion_tokens(e);
    distill_sums_reset(d.sums.data, dev);
    out.abandoned = !each_micro_batch(examples, micro_batch_tokens, c, [&](const Batch& b, const ScoredTokens& s) {
        distill_micro_batch(t, teacher, d, b, s, config, 1.0 / (double)tokens, gradient, c.pass);
        out.forward_tokens += b.T();
    });
    if (out.abandoned) return out;
    copy_to_host(&out.sums, d.sums.data, sizeof(out.sums), dev);
    double forward_tokens = (double)out.forward_tokens;
    std::vector<double*> numbers = {&forward_tokens};
    for (int i = 0; i < DISTILL_SUMS; i++) numbers.push_back(reinterpret_cast<double*>(&out.sums) + i);
    sum_over_ranks(t, c, gradient, numbers);
    out.forward_tokens = (int64_t)forward_tokens;
    return out;
}

enum class Traces { given, teacher, student };

struct DistillObjective : Objective {
    DistillConfig config;
    int64_t micro_batch_tokens = 4096;
    double lmbda = 0.0;         // share of the steps whose completions the student samples
    bool seq_kd = false;        // the other steps' completions are sampled by the teacher, and not given
    bool only_correct = false;  // the teacher's samples with a wrong answer are left out
    RolloutConfig rollout;
    RolloutState* state = nullptr;  // of the student's samples
    Teacher* teacher = nullptr;
    DistillMemory memory;
    const Tokenizer* tok = nullptr;

    // of this step
    Traces traces = Traces::given;
    std::vector<Example> examples;
    std::vector<Completion> samples;
    RolloutStats generated;
    DistillPass pass;

    bool student_samples(int64_t step) const {
        if (lmbda <= 0.0 || lmbda >= 1.0) return lmbda >= 1.0;
        return uniform01(rng_bits(rollout.seed, RNG_DISTILL, (uint32_t)step, 0, 0).x[0]) < lmbda;
    }

    bool prepare(Trainer& t, const StepContext& c, LoopState& run) override {
        examples = c.batch;
        samples.clear();
        generated = RolloutStats();
        traces = student_samples(c.step) ? Traces::student : seq_kd ? Traces::teacher : Traces::given;
        if (traces == Traces::given) return !step_stop(c);
        Model& m = traces == Traces::student ? *t.model : teacher->model;
        std::vector<std::vector<int>> prompts;
        for (const Example& e : examples) prompts.push_back(e.prompt.tokens);
        rollout.step = (uint32_t)c.step;
        rollout.pass = model_pack(m);
        samples = rollout_of_ranks(c.comm, m, traces == Traces::student ? *state : teacher->rollouts, prompts, 1,
                                   rollout, &generated, [&](int, int) { return !(c.stop && c.stop()); });
        model_unpack(m);
        if (step_stop(c)) return false;
        run.generated.prompt_tokens += generated.prompt_tokens;
        run.generated.completion_tokens += generated.completion_tokens;
        run.generated.seconds += generated.seconds;
        take_samples();
        return true;
    }

    // the samples as the step's examples; those that are rejected have no completion
    void take_samples() {
        for (size_t i = 0; i < samples.size(); i++) {
            const Prompt& prompt = examples[i].prompt;
            examples[i].completion = samples[i].tokens;
            if (traces != Traces::teacher || !only_correct) continue;
            const std::string text = completion_text(*tok, samples[i]);
            RewardInput in{
                prompt.text, text, prompt.gold, samples[i].finished, samples[i].tokens, rollout.max_completion_length};
            if (reward_accuracy(in) < 0.5f) examples[i].completion.clear();
        }
        auto empty = [](const Example& e) { return completion_tokens(e) <= 0; };
        examples.erase(std::remove_if(examples.begin(), examples.end(), empty), examples.end());
    }

    StepLoss loss(Trainer& t, const StepContext& c, bool gradient) override {
        pass = distill_pass(t, *teacher, memory, examples, config, micro_batch_tokens, c, gradient);
        return {pass.sums.loss, pass.forward_tokens, pass.abandoned, examples.empty()};
    }

    double mean(double sum) const { return pass.sums.tokens > 0.0 ? sum / pass.sums.tokens : 0.0; }

    void metrics(nlohmann::ordered_json& j) const override {
        const DistillSums& s = pass.sums;
        j["kd/divergence"] = mean(s.divergence);
        j["kd/cross_entropy"] = mean(s.cross_entropy);
        j["kd/agreement"] = mean(s.agree);
        j["kd/rest_mass"] = mean(s.rest_mass);
        j["kd/support"] = mean(s.support);
        j["kd/teacher_entropy"] = mean(s.teacher_entropy);
        j["entropy"] = mean(s.entropy);
        j["kd/tokens"] = s.tokens;
        if (lmbda > 0.0) j["kd/on_policy"] = traces == Traces::student ? 1 : 0;
        if (samples.empty()) return;
        if (only_correct) j["kd/accepted"] = (double)examples.size() / (double)samples.size();
        length_metrics(j, samples);
        std::vector<std::string> texts;
        for (const Completion& c : samples) texts.push_back(completion_text(*tok, c));
        loop_ratios(j, samples, texts);
    }

    void timings(nlohmann::ordered_json& j, const StepReport& r) const override {
        if (generated.seconds > 0.0) j["timing_s/gen"] = generated.seconds;
        j["perf/train_tokens_per_second"] = (double)r.forward_tokens / r.train_seconds;
    }

    void completions(RunDir& run, int64_t step) const override {
        for (const Example& e : examples) {
            if (samples.empty()) return;
            nlohmann::ordered_json j;
            j["step"] = step;
            j["prompt"] = e.prompt.text;
            j["completion"] = tokenizer_decode(*tok, e.completion, true);
            j["gold"] = e.prompt.gold;
            j["by"] = traces == Traces::student ? "student" : "teacher";
            log_completion(run, j);
        }
    }

    void watched(WatchedStep& s, const StepReport& r) const override {
        s.loss = r.loss;
        if (!samples.empty()) watched_samples(s, samples);
    }

    std::string line(const StepReport& r) const override {
        const char* of[] = {"", " of the teacher's", " of its own"};
        return line_step(r) +
               format(" loss %.4f | %s %.4f | ce %.4f | agree %.1f%% | ", r.loss,
                      divergence_names[(int)config.divergence], mean(pass.sums.divergence),
                      mean(pass.sums.cross_entropy), 100 * mean(pass.sums.agree)) +
               line_update(r) +
               format(" %.0f tokens%s | %s tok/s | %.1f s", pass.sums.tokens, of[(int)traces],
                      human_count((double)r.forward_tokens / r.train_seconds).c_str(), r.seconds);
    }
};
