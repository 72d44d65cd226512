// The memory plan of a command, its allocation, and the weights that go into it.
#pragma once
#include "adapter.cuh"

// What operators need for themselves: cuBLASLt asks for 32 MiB, the sums of the backward for a few rows a block
constexpr size_t OPERATOR_SCRATCH = (size_t)48 << 20;

// What the plan leaves free of a device, for what allocates by itself: the modules of kernels, which are loaded when they
// are first used (cuBLASLt's are the largest), up to 128 graphs of decode steps, scratch beyond OPERATOR_SCRATCH; and with
// several ranks NCCL's buffers, which it allocates at the first collective of each kind. No figure of a GPU yet
constexpr size_t DEVICE_RESERVE = (size_t)512 << 20, NCCL_RESERVE = (size_t)512 << 20;

// A micro-batch holds the longest sequence that can come: what the data have, and prompts with as many sampled tokens as
// are allowed. The memory plan then has it; a step that found one too long would be the end of the run.
inline void micro_batch_grow(Session& s, int64_t longest) {
    if (longest <= s.o.micro_batch_tokens) return;
    s.notes.push_back(format("--micro_batch_tokens %d is raised to %lld, the tokens of the longest sequence",
                             s.o.micro_batch_tokens, (long long)longest));
    s.o.micro_batch_tokens = (int)longest;
}

// The tokens of a window: at most the model's context, unless the user asked for more
inline void fit_to_context(Session& s, const char* flag, int& tokens) {
    const int most = s.m.config.max_position_embeddings;
    if (tokens > most && s.o.given(flag)) fail_usage("--%s %d: the model's context is %d", flag, tokens, most);
    tokens = std::min(tokens, most);
}

// of the longest sequence that the model is asked about
inline int session_positions(const Session& s) {
    const Options& o = s.o;
    return std::min(std::max({o.micro_batch_tokens, o.max_prompt_length + o.max_completion_length, o.max_length}),
                    s.m.config.max_position_embeddings);
}

// Plans the model with its quantizers and its adapter, in s.m.dev.arena
inline void session_plan_model(Session& s, bool track_flips) {
    LoraConfig lora = lora_from_options(s);
    const bool training = IN_TRAIN >> s.o.command & 1;
    if (lora.on() && !lora.inside_quantizer) {
        model_allocate_frozen(s.m, ModelConfig(s.m.config), weight_rules(s.o));
    } else {
        model_allocate(s.m, ModelConfig(s.m.config));
        model_quantize(s.m, weight_rules(s.o), track_flips);
        s.m.noise.seed = s.o.seed;
    }
    model_quantize_activations(s.m, activation_rules(s.o), ste_rule(s.o));
    model_quantize_kv(s.m, kv_rules(s.o), k_pre_bias(s.o));
    if (lora.on()) model_adapt(s.m, lora, s.o.seed, training);
    model_rotate(s.m, s.o.hadamard);
}

// Plans the model and whatever `more` allocates. Nothing is allocated before session_allocate.
inline void session_plan(Session& s, bool track_flips, const std::function<void()>& more) {
    s.m.dev.arena = &s.arena;
    if (s.m.dev.cuda) s.arena.reserve = DEVICE_RESERVE + (world_size() > 1 ? NCCL_RESERVE : 0);
    session_plan_model(s, track_flips);
    more();
    const Options& o = s.o;
    if (o.command != COMMAND_LOGPROBS) rope_reserve(s.m.rope, session_positions(s), s.m.dev);
#if HAS_KERNELS
    if (s.m.dev.cuda) {
        size_t decode = attention_decode_scratch(o.rollout_batch, o.max_prompt_length + o.max_completion_length,
                                                 s.m.NH(), s.m.HD());
        size_t base = 0;  // a product of a packed base is expanded whole for the gradient of its inputs
        for (const Linear* l : layer_linears(s.m.layers[0]))
            base =
                std::max(base, s.m.frozen && s.m.weight_rules.on() ? (size_t)(l->rows * l->cols) * sizeof(floatX) : 0);
        s.m.dev.scratch->size = OPERATOR_SCRATCH + decode * sizeof(float) + base;
        arena_add(s.arena, reinterpret_cast<void**>(&s.m.dev.scratch->base), s.m.dev.scratch->size,
                  "scratch of operators", "lower --rollout_batch");
    }
#endif
}

// What training goes on from, where the weights are those of a quantized folder; an adapter inside the quantizer was
// trained over them and is used over them
inline void session_load_masters(Session& s) {
    const bool trained = (IN_TRAIN >> s.o.command & 1) || s.m.lora.inside();
    if (s.m.frozen || !trained) return;
    const MastersLoaded masters = masters_load(s.m, s.o.model);
    if (masters.weights) fprintf(stderr, "master weights are those of %s/masters.safetensors\n", s.o.model.c_str());
    if (masters.left)
        fprintf(stderr,
                "%s%d weights begin at what their codes stand for: their masters make up for the errors of scales that "
                "are not kept here (--qat_scale static keeps them, without --hadamard)\n",
                masters.weights ? "but " : "", masters.left);
}

// Are the weights to be others than those that the grids beside a folder's are of, or in another basis? By the flags, or
// by an adapter's policy
inline bool other_weights(const Options& o, const ModelConfig& config, const std::string& folder) {
    if (policy_hadamard(policy_load(folder), config, folder) != hadamard_rules(o, config)) return true;
    const std::string stored = policy_rules(policy_load(folder), "weights", folder);
    return stored != "none" && stored != rules_text(weight_rules(o)) &&
           stored != rules_text(rules_parse(o.weights, "weights"));
}

// The weights: drawn at random for the embedded model, read for others, with the grids they were trained with (unless
// training says dynamic, or the weights are to be others); and the working weights made of them, quantized or not yet
inline void session_load_weights(Session& s, bool quantized = true) {
    const bool dynamic = s.o.given("qat_scale") && scale_mode(s.o) == ScaleMode::dynamic;
    auto grids = [&] {
        const std::string& folder = s.m.lora.inside() && !s.o.adapter.empty() ? s.o.adapter : s.o.model;
        if (s.o.command == COMMAND_QUANTIZE || dynamic || other_weights(s.o, s.m.config, folder)) return;
        if (quantizer_load(s.m, folder))
            fprintf(stderr, "scales are those of %s/quantizer.safetensors\n", folder.c_str());
    };
    if (s.embedded_model) {
        model_init_random(s.m, s.o.seed);
    } else {
        if (s.m.frozen) grids();  // which is quantized as it is read
        model_load_weights(s.m, s.o.model);
        if (!s.m.frozen) grids();
        session_load_masters(s);
        s.base = s.o.model;
        s.source = source_load(s.o.model);
    }
    session_load_adapter(s);
    model_refresh(s.m, quantized);
}

// true: --plan, and the plan has been printed; nothing more is to be done
inline bool session_allocate(Session& s) {
    if (s.o.plan) {
        for (const std::string& note : s.notes) printf("note        %s\n", note.c_str());
        fputs(arena_plan_text(s.arena).c_str(), stdout);
        return true;
    }
    arena_commit(s.arena);
    return false;
}
