// distill: a quantized student learns from a teacher, its own unquantized self unless one is named.
#pragma once
#include "../train/distill.cuh"
#include "calibration.cuh"
#include "training.cuh"

inline DistillConfig distill_config(const Options& o) {
    DistillConfig c;
    for (size_t i = 0; i < std::size(divergence_names); i++)
        if (o.kd_loss == divergence_names[i]) c.divergence = (Divergence)i;
    c.beta = o.jsd_beta;
    c.temperature = o.kd_temperature;
    c.alpha = o.kd_alpha;
    c.top_k = o.kd_top_k;
    c.top_p = o.kd_top_p;
    return c;
}

inline void distill_check(const Options& o) {
    if (o.model.empty()) fail_usage("distill needs --model, the student: a Hugging Face folder or a .gguf file");
    if (o.jsd_beta != Options().jsd_beta && o.kd_loss != "jsd") fail_usage("--jsd_beta belongs to --kd_loss jsd");
    if (o.seq_kd_correct && !o.seq_kd)
        fail_usage("--seq_kd_correct grades what the teacher samples: it needs --seq_kd");
    if (o.seq_kd && o.lmbda >= 1.0) fail_usage("--lmbda 1 leaves no step to --seq_kd; leave one out");
    if (o.assistant_only_loss && (o.seq_kd || o.lmbda > 0.0))
        fail_usage("--assistant_only_loss is about answers that are given; leave it or --%s out",
                   o.seq_kd ? "seq_kd" : "lmbda");
    if (o.temperature == 0.0 && o.lmbda > 0.0)
        fail_usage("--temperature 0: on-policy completions are to be samples; allowed: [0.0001, 100]");
}

// The teacher that is not named: the model that the student was quantized from, or is quantized from now
inline ModelSource default_teacher(const Options& o) {
    const std::string& folder = o.adapter.empty() ? o.model : o.adapter;
    ModelSource source = source_load(folder);
    if (!source.known()) {
        if (quantized_folder(o.model).container != Container::none)
            fail_usage("--model %s does not say what it was quantized from; give that model as --teacher",
                       o.model.c_str());
        return model_source(o.model);
    }
    if (!std::filesystem::exists(source.path))
        fail_usage("%s was quantized from %s, which is gone; give that model, or another teacher, as --teacher",
                   folder.c_str(), source.path.c_str());
    if (content_hash(source.path) != source.hash)
        fail_usage("%s was quantized from %s, whose weights have changed since; give the teacher as --teacher",
                   folder.c_str(), source.path.c_str());
    return source;
}

// The quantizers of the teacher. One that is named is what its folder says, as the reference of eval --against is: the
// weights behind the codes of GPTQ are no model of their own. The student's own self is without any
inline Options teacher_options(const Options& o, const ModelSource& source, const ModelConfig& config) {
    Options t;
    t.command = COMMAND_EVAL;
    t.model = source.path;
    if (is_gguf_path(source.path)) return t;
    if (!o.teacher.empty()) session_stored_quantizer(t, config);
    else if (policy_load(source.path).contains("weights"))
        fprintf(
            stderr, "note: %s is quantized; it teaches with %s\n", escape_controls(source.path).c_str(),
            quantized_folder(source.path).container != Container::none ? "the numbers that its codes stand for"
            : file_exists(source.path + "/quantizer.safetensors")
                ? "the weights behind its codes, no model of their own if they are GPTQ's; give it as --teacher, and "
                  "it teaches quantized"
                : "its unquantized weights");
    return t;
}

inline void teacher_plan(Model& m, const Options& t, const ModelConfig& config) {
    if (weight_rules(t).on()) {
        model_allocate(m, config);
        model_quantize(m, weight_rules(t), false);
    } else {
        model_allocate_frozen(m, config, QuantizerRules(), "the teacher",
                              "--teacher a smaller one, of the same vocabulary");
    }
    model_quantize_activations(m, activation_rules(t));
    model_quantize_kv(m, kv_rules(t), k_pre_bias(t));
    if (!m.frozen) model_rotate(m, t.hadamard);
}

inline void teacher_load(Model& m, const std::string& folder) {
    model_load_weights(m, folder);
    quantizer_load(m, folder);
    model_refresh(m);
    if (m.master.size) buffer_forget(m.master);
}

// what is trained on, as far as the completions are given: they are, unless each step samples its own
inline void distill_data(TrainingRun& r) {
    const Options& o = r.s.o;
    const int64_t per_step = (int64_t)o.per_device_train_batch_size * o.gradient_accumulation_steps;
    const bool sampled = o.seq_kd || o.lmbda > 0.0;
    if (o.seq_kd || o.lmbda >= 1.0) r.data = training_data(training_prompts(r.s, o.seq_kd_correct), per_step, o.seed);
    else r.data = training_examples(r.s, per_step, sampled);
    training_order(r);
    if (sampled) training_whole_steps(r, "per_device_train_batch_size");
    training_hold_out(r, (double)per_step);
    check_overlap(r.s, r.data, r.held_out);
}

// Log-loss of the held-out texts, and how far the student is from the teacher on them; null: stopped
inline nlohmann::ordered_json distill_measure(TrainingRun& r, DistillObjective& d, const std::vector<Example>& texts,
                                              const char* when) {
    StepContext alone;
    alone.comm = &r.comm;
    if (r.comm.world == 1) alone.stop = stop_requested;
    Progress line("held-out texts", "text", 0);
    const DistillPass pass =
        distill_pass(r.t, *d.teacher, d.memory, texts, DistillConfig(), d.micro_batch_tokens, alone, false);
    if (pass.abandoned) return nullptr;
    const DistillSums& s = pass.sums;
    printf("held out %-6s | log-loss %.4f | KL from the teacher %.4f | same first choice %.1f%% | %.0f tokens\n", when,
           s.cross_entropy / s.tokens, s.divergence / s.tokens, 100 * s.agree / s.tokens, s.tokens);
    fflush(stdout);
    return {{"log_loss", s.cross_entropy / s.tokens},
            {"kl", s.divergence / s.tokens},
            {"agreement", s.agree / s.tokens},
            {"tokens", s.tokens}};
}

// --eval_text or the answers of --eval_data; else the task's held-out solutions, if that is what is trained on
inline std::vector<Example> held_out_examples(const Session& s) {
    const Options& o = s.o;
    std::vector<Example> out;
    const TaskSet task = find_task(o.task);
    if (o.eval_text.empty() && o.eval_data.empty() && o.train_data.empty())
        for (uint32_t i = 0; i < (o.eval_n > 0 ? (uint32_t)o.eval_n : task.task->held_out); i++)
            out.push_back(checked_example(s, task_example(task, task_seed(o.seed, true), i, true)));
    for (const ScoredText& t : held_out_texts(s)) {
        const auto first = t.ids.begin() + (t.first > 1 ? t.first : 0);
        Example e;
        e.prompt.tokens.assign(t.ids.begin(), first);
        e.completion.assign(first, t.ids.end());
        out.push_back(e);
    }
    return out;
}

inline int distill_command(Session& s) {
    Options& o = s.o;
    TrainingRun r(s);
    Teacher teacher;
    DistillObjective d;
    distill_check(o);
    const TaskSet task = session_task(o);
    const ModelSource source = o.teacher.empty() ? default_teacher(o) : model_source(o.teacher);
    if (o.train_data.empty())
        o.set_default("max_completion_length", o.max_completion_length, task.longest().completion);
    const bool sampled = o.lmbda > 0.0 || o.seq_kd;
    training_open(r, "per_device_train_batch_size", sampled ? o.per_device_train_batch_size : 0);
    ModelConfig config = model_config(source.path);
    check_same_vocabulary(s.tok, "the student", load_tokenizer(source.path), config.vocab_size,
                          "--teacher " + source.path, "distillation");
    const Options taught = teacher_options(o, source, config);
    const int vocabulary = std::min(s.m.V(), config.vocab_size);
    if (o.kd_top_k > vocabulary) fail_usage("--kd_top_k %d: the vocabulary has %d tokens", o.kd_top_k, vocabulary);
    distill_data(r);
    fit_eval_text(s);
    const std::vector<Example> texts = held_out_examples(s);
    int64_t longest = std::max(r.data.longest, sampled ? r.data.longest_prompt + o.max_completion_length : 0);
    for (const Example& e : texts) longest = std::max(longest, example_tokens(e));
    micro_batch_grow(s, longest);

    d.config = distill_config(o);
    d.micro_batch_tokens = o.micro_batch_tokens;
    d.lmbda = o.lmbda, d.seq_kd = o.seq_kd, d.only_correct = o.seq_kd_correct;
    d.rollout = rollout_config(s);
    d.state = &r.rollouts, d.teacher = &teacher, d.tok = &s.tok;
    RolloutShape samples = rollout_shape((int)r.data.per_step / r.comm.world, 1, r.data.longest_prompt, d.rollout);
    if (!texts.empty()) r.measure = [&](const char* when) { return distill_measure(r, d, texts, when); };
    check_best(r);
    if (training_plan(r, d, o.lmbda > 0.0 ? samples : RolloutShape(), [&] {
            teacher.model.dev = s.m.dev;
            teacher_plan(teacher.model, taught, config);
            // captured decode steps hold the table's address (rope.cuh)
            rope_reserve(teacher.model.rope, std::min(session_positions(s), config.max_position_embeddings), s.m.dev);
            teacher_allocate(teacher, o.micro_batch_tokens);
            if (o.seq_kd) rollout_allocate(teacher.rollouts, teacher.model, samples);
            distill_allocate(d.memory, s.m, o.micro_batch_tokens, vocabulary);
        }))
        return 0;
    session_load_weights(s);
    teacher_load(teacher.model, source.path);
    if (o.teacher.empty()) s.source = source;  // another teacher is not what the student was made of
    training_start(r, sampled,
                   format("%lld examples, %lld steps of up to %lld; teacher %s", (long long)r.data.count,
                          (long long)training_steps(r), (long long)r.data.per_step, source.path.c_str()));
    return training_run(r, d);
}
