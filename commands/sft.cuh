// sft: next-token cross-entropy on completions. Also the embedded model's cold start.
#pragma once
#include <string>
#include <vector>
#include "session.cuh"

// One example as tokens: tokens from `first` on are learnt
struct SftTokens {
    std::vector<int> ids;
    int first = 0;
};

struct SftResult {
    double loss = 0.0, grad_norm = 0.0;
    int64_t tokens = 0, forward_tokens = 0;
    bool skipped = false;
};

// Mean negative log-likelihood over the learnt tokens of all the examples, in micro-batches, and one optimizer step
inline SftResult sft_step(Trainer& t, const std::vector<const SftTokens*>& examples, int64_t budget,
                          double learning_rate, const Pass& pass = Pass()) {
    SftResult r;
    for (const SftTokens* e : examples) r.tokens += (int64_t)e->ids.size() - std::max(e->first, 1);
    if (r.tokens <= 0) fail("a batch has no token to learn; every completion in it is empty");
    double total = 0.0;
    for (size_t i = 0; i < examples.size();) {
        Batch b;
        ScoredTokens s;
        for (; i < examples.size() && (b.T() == 0 || b.T() + (int64_t)examples[i]->ids.size() <= budget); i++) {
            batch_add_sequence(b, examples[i]->ids.data(), (int)examples[i]->ids.size());
            score_last_sequence(s, b, examples[i]->first);
        }
        score_forward_training(t, b, s, 1.0f, pass);
        score_fetch(s, t.score, t.model->dev);
        for (float logp : s.logp) total -= logp;
        score_backward(t, std::vector<float>(s.size(), (float)(-1.0 / (double)r.tokens)), 1.0f);
        r.forward_tokens += b.T();
    }
    r.loss = total / (double)r.tokens;
    OptimizerResult o = optimizer_step(t, learning_rate, r.loss, pass);
    r.grad_norm = o.grad_norm;
    r.skipped = o.skipped;
    return r;
}

inline void append_tokens(const Tokenizer& tok, const std::string& text, std::vector<int>& ids) {
    std::vector<int> more;
    tokenizer_encode(tok, text, more);
    ids.insert(ids.end(), more.begin(), more.end());
}

// Plain text is followed by the end token; a conversation is rendered by the chat template, and the tokens after the
// prompt's own rendering are learnt.
inline SftTokens sft_tokens(const Session& s, const SftExample& e) {
    SftTokens t;
    bool chat = use_chat(s.prompt);
    if (e.messages.is_null() && (!chat || e.prompt.empty())) {
        if (!e.prompt.empty()) append_tokens(s.tok, problem_text(s.prompt, e.prompt, e.bare, chat), t.ids);
        t.first = (int)t.ids.size();
        append_tokens(s.tok, e.completion, t.ids);
        if (!s.m.config.eos_token_ids.empty()) t.ids.push_back(s.m.config.eos_token_ids[0]);
    } else {
        if (!chat)
            fail("%s:%d: the example is a list of messages, but no chat template is in use; give a model that has one",
                 e.source.c_str(), e.line);
        nlohmann::ordered_json messages = e.messages;
        int given = e.prompt_messages;
        if (messages.is_null()) {
            messages = prompt_messages(problem_text(s.prompt, e.prompt, e.bare, chat), s.prompt);
            given = (int)messages.size();
            messages.push_back({{"role", "assistant"}, {"content", e.completion}});
        }
        nlohmann::ordered_json before(messages.begin(), messages.begin() + given);
        std::string prompt = chat_render(s.prompt.chat, before, nullptr, true, s.prompt.enable_thinking);
        std::string all = chat_render(s.prompt.chat, messages, nullptr, false, s.prompt.enable_thinking);
        if (all.compare(0, prompt.size(), prompt) != 0)
            fail(
                "%s:%d: the chat template renders the prompt differently once the answer follows; give prompt and "
                "completion as text instead",
                e.source.c_str(), e.line);
        append_tokens(s.tok, prompt, t.ids);
        t.first = (int)t.ids.size();
        append_tokens(s.tok, all.substr(prompt.size()), t.ids);
    }
    if ((int)t.ids.size() > s.o.max_length)
        fail("%s:%d: the example has %zu tokens, --max_length is %d; raise it or leave the row out", e.source.c_str(),
             e.line, t.ids.size(), s.o.max_length);
    if ((int)t.ids.size() > s.m.config.max_position_embeddings)
        fail("%s:%d: the example has %zu tokens, the model's context is %d; leave the row out", e.source.c_str(),
             e.line, t.ids.size(), s.m.config.max_position_embeddings);
    if ((int)t.ids.size() <= std::max(t.first, 1))
        fail("%s:%d: the completion is empty, there is nothing to learn", e.source.c_str(), e.line);
    return t;
}

// ---------------------------------------------------------------------------------------------------------------------
// cold start of the embedded model

// Supervised steps on freshly drawn problems of the embedded task, in full precision, until the loss (mean of the last
// `window` steps) is below `target`. A fixed number of steps would not do: the skill comes suddenly, and at a different
// step for each seed. The target leaves room for RL: at a mean negative log-likelihood of 0.065 a token, over solutions
// of about 30 tokens, about 40 % of the sampled solutions are free of mistakes.
struct ColdStartConfig {
    int max_steps = 800, batch = 128, window = 10;
    double learning_rate = 2e-3, target = 0.065;
};

// t is left as new.
inline void cold_start(Session& s, Trainer& t, const ColdStartConfig& c) {
    const AdamWConfig adam = t.adam;
    const double max_grad_norm = t.max_grad_norm;
    t.adam = AdamWConfig();
    t.adam.beta2 = 0.99f;
    t.max_grad_norm = 1.0;
    model_refresh(s.m, false);
    int end = s.m.config.eos_token_ids[0];
    double start = wall_seconds();
    int64_t tokens = 0;
    std::vector<double> losses;
    for (int step = 0; step < c.max_steps && !stop_requested(); step++) {
        std::vector<SftTokens> rows(c.batch);
        std::vector<const SftTokens*> batch;
        for (int i = 0; i < c.batch; i++) {
            ArithmeticProblem p = arithmetic_problem(s.o.seed, (uint32_t)(step * c.batch + i), false);
            append_tokens(s.tok, p.question + "\n", rows[i].ids);
            rows[i].first = (int)rows[i].ids.size();
            append_tokens(s.tok, p.solution, rows[i].ids);
            rows[i].ids.push_back(end);
            batch.push_back(&rows[i]);
        }
        double rate = schedule_rate(Schedule::constant, c.learning_rate, step + 1, 20, c.max_steps);
        SftResult r = sft_step(t, batch, s.o.micro_batch_tokens, rate, full_precision());
        tokens += r.forward_tokens;
        losses.push_back(r.loss);
        double recent = 0.0;
        int n = std::min((int)losses.size(), c.window);
        for (int i = 0; i < n; i++) recent += losses[losses.size() - 1 - i] / n;
        bool done = (n == c.window && recent < c.target) || step + 1 == c.max_steps;
        if (step % 50 == 0 || done) {
            printf("cold start %4d | loss %.4f (until %.3f) | grad %.2f | lr %.1e | %s tok/s | %.0f s\n", step + 1,
                   recent, c.target, r.grad_norm, rate, human_count((double)tokens / (wall_seconds() - start)).c_str(),
                   wall_seconds() - start);
            fflush(stdout);
        }
        if (done) break;
    }
    trainer_reset(t);
    t.adam = adam;
    t.max_grad_norm = max_grad_norm;
    model_forget_grids(s.m);
    model_refresh(s.m);
}

inline void trainer_from_options(Trainer& t, Model& m, const Options& o);

// The same for a frozen base, which cannot be trained itself: a model of its own learns, is saved as `folder`, where
// the adapters will find their base, and is then frozen and quantized.
inline void cold_start_of_base(Session& s, const ColdStartConfig& c, const std::string& folder) {
    Session cold;
    cold.o = s.o;
    cold.tok = s.tok;
    cold.m.dev = s.m.dev;
    cold.m.dev.arena = nullptr;
    model_allocate(cold.m, s.m.config);
    model_init_random(cold.m, s.o.seed);
    Trainer t;
    trainer_from_options(t, cold.m, s.o);
    cold_start(cold, t, c);
    session_save(cold, folder);
    s.base = folder;
    for (size_t i = 0; i < s.m.tensors.size(); i++) {
        const ParamTensor& from = cold.m.tensors[i];
        model_fill(s.m, s.m.tensors[i], [&](float* to) {
            copy_to_host(to, cold.m.master.data + from.offset, from.count() * sizeof(float), s.m.dev);
        });
    }
    session_load_adapter(s);
    model_refresh(s.m);
}

inline void summary_lora(nlohmann::ordered_json& summary, const Model& m) {
    if (!m.lora.on()) return;
    summary["lora"]["r"] = m.lora.config.r;
    summary["lora"]["alpha"] = m.lora.config.alpha;
    summary["lora"]["target"] = m.lora.config.target;
    summary["lora"]["inside_quantizer"] = m.lora.inside();
    summary["lora"]["parameters"] = m.lora.num_params;
}

// ---------------------------------------------------------------------------------------------------------------------
// the command

inline Schedule parse_schedule(const std::string& name) {
    return name == "cosine" ? Schedule::cosine : name == "linear" ? Schedule::linear : Schedule::constant;
}

inline void trainer_from_options(Trainer& t, Model& m, const Options& o) {
    trainer_init(t, m, o.micro_batch_tokens, o.gradient_checkpointing);
    t.max_grad_norm = o.max_grad_norm;
    t.scale_learning_rate = o.scale_learning_rate >= 0.0 ? o.scale_learning_rate
                            : o.learned_scale == "lwc"   ? 0.01
                                                         : o.learning_rate;
    t.adam = {(float)o.learning_rate, (float)o.adam_beta1, (float)o.adam_beta2, (float)o.adam_epsilon,
              (float)o.weight_decay};
}

inline int sft_command(Session& s) {
    double start = wall_seconds();
    Options& o = s.o;
    if (o.train_data.empty()) fail_usage("sft needs --train_data: JSONL of prompt and completion, or of text");
    session_open(s);
    std::vector<SftTokens> rows;
    for (const SftExample& e : load_sft(o.train_data)) rows.push_back(sft_tokens(s, e));
    for (const SftTokens& r : rows)
        if ((int)r.ids.size() > o.micro_batch_tokens)
            fail("an example of %zu tokens exceeds --micro_batch_tokens %d; raise it", r.ids.size(),
                 o.micro_batch_tokens);
    std::vector<Prompt> held_out;
    if (!o.eval_data.empty()) held_out = eval_prompts(s);
    const int64_t per_step = (int64_t)o.per_device_train_batch_size * o.gradient_accumulation_steps;
    const int64_t n = (int64_t)rows.size(), per_epoch = (n + per_step - 1) / per_step;
    const int64_t steps = o.max_steps >= 0 ? o.max_steps : (int64_t)ceil((double)per_epoch * o.num_train_epochs);

    Trainer t;
    RolloutState state;
    session_plan(s, true, [&] {
        trainer_from_options(t, s.m, o);
        if (!held_out.empty()) rollout_allocate(state, s.m, eval_shape(s, held_out));
    });
    if (session_allocate(s)) return 0;
    session_load_weights(s);
    RunDir run = session_run_dir(o);
    fputs(options_print(o).c_str(), stdout);
    print_start(s);
    printf("data        %lld examples, %lld steps of up to %lld\n", (long long)n, (long long)steps,
           (long long)per_step);
    EvalResult before, after;
    if (!held_out.empty()) before = run_eval(s, state, held_out, 0);

    int64_t tokens_trained = 0, step = 0;
    double train_seconds = 0.0;
    for (; step < steps && !stop_requested(); step++) {
        double step_start = wall_seconds();
        int64_t epoch = step / per_epoch, first = step % per_epoch * per_step;
        std::vector<int> order = epoch_order((int)n, o.seed, (uint32_t)epoch);
        std::vector<const SftTokens*> batch;
        for (int64_t i = first; i < std::min(first + per_step, n); i++) batch.push_back(&rows[order[i]]);
        double rate = schedule_rate(parse_schedule(o.lr_scheduler_type), o.learning_rate, step, o.warmup_steps, steps);
        SftResult r = sft_step(t, batch, o.micro_batch_tokens, rate);
        tokens_trained += r.forward_tokens;
        double seconds = wall_seconds() - step_start;
        train_seconds += seconds;
        if ((step + 1) % o.logging_steps == 0 || step + 1 == steps) {
            nlohmann::ordered_json j;
            j["step"] = step + 1;
            j["loss"] = r.loss;
            j["grad_norm"] = r.grad_norm;
            j["learning_rate"] = rate;
            if (s.m.flip_counts.size) {
                j["quant/code_flip_rate"] = code_flip_rate(s.m, false);
                j["quant/code_flip_total"] = code_flip_rate(s.m, true);
            }
            j["skipped_steps"] = t.skipped;
            j["epoch"] = (double)(step + 1) / (double)per_epoch;
            j["num_tokens"] = tokens_trained;
            j["step_time"] = seconds;
            log_metrics(run, j);
            printf("step %lld/%lld | loss %.4f | grad %.3f%s | lr %.1e | %s tok/s | %.1f s\n", (long long)step + 1,
                   (long long)steps, r.loss, r.grad_norm, r.skipped ? " SKIPPED" : "", rate,
                   human_count((double)r.forward_tokens / seconds).c_str(), seconds);
            fflush(stdout);
        }
        bool last = step + 1 == steps;
        if (o.save_steps > 0 && (step + 1) % o.save_steps == 0 && !last)
            session_save(s, format("%s/checkpoint-%lld", run.path.c_str(), (long long)step + 1));
        if (o.eval_steps > 0 && (step + 1) % o.eval_steps == 0 && !last && !held_out.empty())
            print_eval(format("step %lld", (long long)step + 1).c_str(),
                       run_eval(s, state, held_out, (uint32_t)(step + 1)), nullptr, policy_text(o));
    }
    if (!held_out.empty() && !stop_requested()) {
        after = run_eval(s, state, held_out, 1u << 30);
        print_eval("before", before, nullptr, policy_text(o));
        print_eval("after", after, nullptr, policy_text(o));
    }
    std::string checkpoint = format("%s/checkpoint-%lld", run.path.c_str(), (long long)step);
    session_save(s, checkpoint);
    nlohmann::ordered_json summary;
    summary["command"] = "sft";
    summary["seed"] = o.seed;
    summary_quantizers(summary, s);
    summary_lora(summary, s.m);
    summary["model"] = s.embedded_model ? "embedded" : o.model;
    summary["steps"] = step;
    summary["stopped"] = stop_requested();
    if (before.n) {
        summary["eval"]["n"] = before.n;
        summary["eval"]["before"] = eval_to_json(before);
        if (after.n) summary["eval"]["after"] = eval_to_json(after);
    }
    summary["wall_seconds"] = wall_seconds() - start;
    summary["tokens_trained"] = tokens_trained;
    summary["training_tokens_per_second"] = train_seconds > 0 ? (double)tokens_trained / train_seconds : 0.0;
    summary["skipped_steps"] = t.skipped;
    summary["checkpoint"] = checkpoint;
    summary["peak_rss_bytes"] = peak_rss_bytes();
    close_run_dir(run, summary);
    printf("%s after %lld steps, %.1f s, peak memory %.0f MiB; results in %s, model in %s\n",
           stop_requested() ? "stopped" : "done", (long long)step, wall_seconds() - start,
           (double)peak_rss_bytes() / 1048576.0, run.path.c_str(), checkpoint.c_str());
    return stop_requested() ? stop_exit_code() : 0;
}
