// What every command needs first: threads, model, tokenizer, prompts, quantizer.
#pragma once
#include <string>
#include <vector>
#include "../data/arithmetic.h"
#include "../data/prompts.h"
#include "../eval/pass_at_k.h"
#include "../formats/export_model.h"
#include "../formats/merged_adapter.h"
#include "../formats/tokenizer_file.h"
#include "../rollout.cuh"
#include "../runtime/comm.h"
#include "../runtime/open_device.h"
#include "../runtime/options.h"
#include "../runtime/run_dir.h"
#include "../train.cuh"

struct Session {
    Options o;
    Arena arena;  // the memory plan; outlives what lies in it
    Model m;
    Tokenizer tok;
    bool embedded_model = false;
    PromptConfig prompt;
    PeftAdapter adapter;  // of --adapter
    std::string base;     // the model that adapters are saved for
};

// A Qwen3-style model of 0.6M parameters over bytes: large enough to learn column arithmetic in a minute on two
// cores
inline ModelConfig embedded_config() {
    ModelConfig c;
    c.model_type = "qwen3";
    c.vocab_size = 259;
    c.hidden_size = 128;
    c.intermediate_size = 256;
    c.num_hidden_layers = 4;
    c.num_attention_heads = 4;
    c.num_key_value_heads = 2;
    c.head_dim = 32;
    c.max_position_embeddings = 512;
    c.rms_norm_eps = 1e-6f;
    c.rope_theta = 10000.0f;
    c.tie_word_embeddings = true;
    c.qk_norm = true;
    c.torch_dtype = "float32";
    return c;
}

inline Tokenizer load_tokenizer(const std::string& path) {
    Tokenizer tok;
    if (is_gguf_path(path)) {
        GgufFile f = gguf_open(path);
        GgufTokenizerParts p = gguf_tokenizer(f);
        if (p.model != "gpt2")
            fail("%s: tokenizer model '%s' is not supported; byte-level BPE ('gpt2') is", path.c_str(),
                 p.model.c_str());
        tok = tokenizer_from_parts(p.tokens, p.merges, p.token_type, p.pre, p.eos_token_id, p.bos_token_id,
                                   p.pad_token_id, p.add_bos, p.chat_template);
    } else {
        tokenizer_load(tok, path);
    }
    return tok;
}

inline void session_threads(const Options& o) {
#if defined(_OPENMP)
    if (o.threads > 0) omp_set_num_threads(o.threads);
#else
    if (o.threads > 1) fprintf(stderr, "warning: built without OpenMP, --threads %d has no effect\n", o.threads);
#endif
}

inline PromptConfig prompt_config(const Options& o) {
    PromptConfig p;
    p.prompt_template = o.prompt_template;
    p.system_prompt = o.system_prompt;
    p.chat_template = o.chat_template;
    p.enable_thinking = o.enable_thinking == "auto" ? -1 : o.enable_thinking == "true" ? 1 : 0;
    return p;
}

// A model folder that brings none can still be asked for the log-probabilities of ids
inline bool lacks_tokenizer(const std::string& path) {
    return std::filesystem::is_directory(path) && !std::filesystem::exists(path + "/tokenizer.json") &&
           !std::filesystem::exists(path + "/vocab.json");
}

// some kernel of the program, to ask whether it was compiled for this GPU
inline const void* device_probe() {
#if HAS_KERNELS
    return reinterpret_cast<const void*>(convert_forward_kernel);
#else
    return nullptr;
#endif
}

// The largest head a kernel takes is 128 wide (kernels/attention.cuh); the CPU loops take any
inline void check_device_takes_model(const Session& s) {
    if (s.m.dev.cuda && s.m.config.head_dim > 128)
        fail("%s: head_dim %d is more than the 128 that the CUDA attention takes; use --device cpu", s.o.model.c_str(),
             s.m.config.head_dim);
}

inline ScaleMode scale_mode(const Options& o) {
    return o.qat_scale == "static"    ? ScaleMode::kept
           : o.qat_scale == "learned" ? ScaleMode::learned
                                      : ScaleMode::dynamic;
}
inline LearnedScale learned_scale(const Options& o) {
    return o.learned_scale == "lwc"          ? LearnedScale::lwc
           : o.learned_scale == "lsq_offset" ? LearnedScale::lsq_offset
                                             : LearnedScale::lsq;
}

inline SteRule ste_rule(const Options& o) {
    return o.ste == "clip" ? SteRule::clip : o.ste == "trust" ? SteRule::trust : SteRule::identity;
}

// --weights with --quantize_layers, and how they are trained
inline QuantizerRules weight_rules(const Options& o) {
    QuantizerRules rules = rules_parse(o.weights, "weights", o.quantize_layers);
    for (QuantizerRule& r : rules.rules) {
        r.quantizer.scale_mode = scale_mode(o);
        r.quantizer.learned_scale = learned_scale(o);
        r.quantizer.ste = ste_rule(o);
        r.quantizer.stochastic = o.rounding == "stochastic";
    }
    return rules;
}
// --activations; --quantize_layers restricts it as it does the weights
inline QuantizerRules activation_rules(const Options& o) {
    QuantizerRules rules = rules_parse(o.activations, "activations");
    if (o.quantize_layers == "all" || rules.rules.size() > 1 || !rules.rules[0].where.empty()) return rules;
    return rules_parse(o.activations, "activations", o.quantize_layers);
}
inline QuantizerRules kv_rules(const Options& o) { return rules_parse(o.kv_cache, "kv_cache"); }

// What a checkpoint's or an adapter's policy was quantized to, unless the flags ask for another; an export asks for its
// weights alone. true: it told of those
inline bool session_stored_policy(Options& o) {
    const std::string& folder = o.adapter.empty() ? o.model : o.adapter;
    const nlohmann::json j = policy_load(folder);
    std::string taken;
    auto take = [&](const char* name, std::string& value) {
        if (!j.contains(name) || !j[name].is_string() || o.given(name)) return false;
        value = j[name].get<std::string>();
        taken += std::string(" --") + name + " '" + value + "'";
        return true;
    };
    const bool weights = take("weights", o.weights);
    if (o.command != COMMAND_EXPORT) take("activations", o.activations);
    if (o.command != COMMAND_EXPORT && take("kv_cache", o.kv_cache) && !o.given("k_pre_bias"))
        o.k_pre_bias = config_bool(j, "k_pre_bias", false, folder + "/quantizer.json");
    if (!taken.empty()) fprintf(stderr, "note: %s: trained as%s\n", folder.c_str(), taken.c_str());
    return weights;
}

// A folder that is quantized already keeps its quantizer and its scales, unless --weights asks for another
inline void session_stored_quantizer(Options& o, const ModelConfig& config) {
    if (is_gguf_path(o.model)) {
        Quantizer own, asked = single_quantizer(weight_rules(o));
        if (!gguf_quantizer(gguf_open(o.model), config, &own).empty() || !own.spec.symmetric) return;
        const std::string text = quantizer_text(own);
        if (!o.given("weights"))
            fprintf(stderr, "note: %s: dequantized; --weights %s --qat_scale static keeps its codes and scales\n",
                    o.model.c_str(), text.c_str());
        else if (same_codes(own, asked) && o.qat_scale == "static")
            fprintf(stderr, "note: %s: read as --weights %s with the file's own scales\n", o.model.c_str(),
                    text.c_str());
        return;
    }
    if (session_stored_policy(o)) return;
    QuantizedFolder folder = quantized_folder(o.model);
    if (folder.container == Container::none) return;
    FolderQuantizer f = quantized_folder_quantizer(folder, st_open_folder(o.model), config);
    const char* name = container_name(folder.container);
    Quantizer asked = single_quantizer(weight_rules(o));
    if (f.text == "none" && !o.given("weights")) {
        fprintf(stderr, "note: %s: %s weights are dequantized (%s)\n", o.model.c_str(), name,
                f.why.empty() ? "no linear is quantized" : f.why.c_str());
    } else if (!o.given("weights") || (same_codes(f.quantizer, asked) && !o.given("qat_scale"))) {
        o.weights = o.given("quantize_layers") ? quantizer_text(f.quantizer) : f.text;
        const bool frozen = (o.lora_r > 0 || !o.adapter.empty()) && !o.lora_inside_quantizer;
        if (!o.given("qat_scale") && !frozen) o.qat_scale = "static";  // a frozen base keeps the file's scales anyway
        fprintf(stderr, "note: %s: %s, read as --weights %s%s\n", o.model.c_str(), name, o.weights.c_str(),
                o.qat_scale == "dynamic" && !frozen ? "" : " with the file's own scales");
    } else if (!same_codes(f.quantizer, asked) || o.qat_scale == "dynamic") {
        fprintf(stderr, "note: %s: %s weights (%s) are dequantized%s\n", o.model.c_str(), name,
                f.text != "none" ? f.text.c_str() : f.why.c_str(), asked.on() ? " and quantized anew" : "");
    }
    if (folder.compressed_tensors.dynamic_activations)
        fprintf(stderr, "note: %s was made for quantized activations; they are not quantized unless asked\n",
                o.model.c_str());
}

// --weights, and whether the options of its training go with it: to be asked before the long work
inline void check_weights(const ModelConfig& config, const Options& o) {
    const QuantizerRules rules = weight_rules(o);
    check_weight_rules(config, rules);
    const bool learned = o.qat_scale == "learned", stochastic = o.rounding == "stochastic";
    if (!rules.on() && (learned || stochastic))
        fail_usage("--%s needs --weights, such as int4:g32", learned ? "qat_scale learned" : "rounding stochastic");
    for (const QuantizerRule& r : rules.rules) check_trained(r.quantizer);
    const Options normal;  // what a run's config.json repeats is no wish
    const char* unused = learned                                               ? nullptr
                         : o.learned_scale != normal.learned_scale             ? "learned_scale"
                         : o.scale_learning_rate != normal.scale_learning_rate ? "scale_learning_rate"
                                                                               : nullptr;
    if (unused) fail_usage("--%s needs --qat_scale learned", unused);
}

// Device, tokenizer and the model's configuration; no weights yet. Without --model: the embedded model and a byte-level
// tokenizer.
inline void session_open(Session& s) {
    session_threads(s.o);
    if (world_size() > 1 && s.o.command != COMMAND_GRPO)
        fail_usage("WORLD_SIZE=%d: only grpo takes several ranks; start one", world_size());
    s.prompt = prompt_config(s.o);
    s.embedded_model = s.o.model.empty();
    s.m.dev = open_device(s.o.device, world_size() > 1 ? local_rank() : 0, device_probe());
    s.m.dev.batch_invariant = s.o.batch_invariant;
    s.arena.dev = s.m.dev;
    if (s.embedded_model) {
        s.m.config = embedded_config();
        s.tok = tokenizer_byte_level();  // without a template: it would cost more tokens than the task's plain prompts
        s.m.config.eos_token_ids = s.tok.eos;
        if (!s.o.tokenizer.empty()) fail_usage("--tokenizer: the embedded model has its own; give --model too");
    } else {
        std::string path = s.o.tokenizer.empty() ? s.o.model : s.o.tokenizer;
        if (s.o.command != COMMAND_LOGPROBS || !lacks_tokenizer(path)) s.tok = load_tokenizer(path);
        s.prompt.chat = chat_template_detect(s.tok.chat_text);
        s.m.config = model_config(s.o.model);
        session_stored_quantizer(s.o, s.m.config);
        if (s.o.lora_r > 0 && !s.o.given("weights") && s.o.weights == "none" && !s.o.lora_inside_quantizer)
            s.o.weights = "nf4:g64:dq";  // QLoRA (arXiv 2305.14314)
    }
    check_device_takes_model(s);
    check_weights(s.m.config, s.o);
    check_kv_rules(s.m.config, kv_rules(s.o), s.o.k_pre_bias);
    if (tokenizer_vocab_size(s.tok) > s.m.V())
        fail("the tokenizer has %d tokens and the model %d rows; they do not belong together",
             tokenizer_vocab_size(s.tok), s.m.V());
    for (int id : s.tok.eos)
        if (std::find(s.m.config.eos_token_ids.begin(), s.m.config.eos_token_ids.end(), id) ==
            s.m.config.eos_token_ids.end())
            s.m.config.eos_token_ids.push_back(id);
}

// Reads what --adapter names; a model that is not named is the adapter's base
inline void session_adapter(Session& s) {
    if (s.o.adapter.empty()) return;
    s.adapter = peft_open(s.o.adapter);
    if (!s.o.model.empty()) return;
    if (s.adapter.base.empty()) fail_usage("--adapter %s names no base model; give --model", s.o.adapter.c_str());
    s.o.model = s.adapter.base;
}

// the adapter of this run: that of --adapter, a new one of --lora_r, or none
inline LoraConfig lora_from_options(const Session& s) {
    const Options& o = s.o;
    const Options normal;
    LoraConfig c;
    const bool loaded = !o.adapter.empty();
    if (!loaded && o.lora_r == 0) {
        const char* flag = o.lora_inside_quantizer                 ? "lora_inside_quantizer"
                           : o.merge_adapter                       ? "merge_adapter"
                           : o.lora_alpha != normal.lora_alpha     ? "lora_alpha"
                           : o.lora_dropout != normal.lora_dropout ? "lora_dropout"
                           : o.lora_target != normal.lora_target   ? "lora_target"
                                                                   : nullptr;
        if (flag) fail_usage("--%s: there is no adapter; give --lora_r (16, say) or --adapter", flag);
        return c;
    }
    if (loaded) {
        c = s.adapter.config;
        const char* flag = o.lora_r && o.lora_r != c.r                           ? "lora_r"
                           : o.given("lora_alpha") && o.lora_alpha != c.alpha    ? "lora_alpha"
                           : o.given("lora_target") && o.lora_target != c.target ? "lora_target"
                                                                                 : nullptr;
        if (flag)
            fail_usage("--%s contradicts --adapter %s, which has r %d, alpha %g and targets %s; leave it out", flag,
                       o.adapter.c_str(), c.r, c.alpha, c.target.c_str());
    } else {
        c.r = o.lora_r, c.alpha = o.lora_alpha, c.target = o.lora_target;
    }
    c.dropout = o.lora_dropout;
    c.inside_quantizer = o.lora_inside_quantizer;
    if (c.inside_quantizer && o.weights == "none")
        fail_usage("--lora_inside_quantizer needs a quantizer: give --weights, such as int4:g32:sym");
    // a frozen base is quantized once, and nothing is trained through its quantizer
    const char* flag = c.inside_quantizer                ? nullptr
                       : o.qat_scale != normal.qat_scale ? "qat_scale"
                       : o.ste != normal.ste             ? "ste"
                       : o.rounding != normal.rounding   ? "rounding"
                                                         : nullptr;
    if (flag)
        fail_usage(
            "--%s: the base is frozen and quantized once (--lora_inside_quantizer would train through its "
            "quantizer); leave it out",
            flag);
    return c;
}

// What operators need for themselves: cuBLASLt asks for 32 MiB, the sums of the backward for a few rows a block
constexpr size_t OPERATOR_SCRATCH = (size_t)48 << 20;

// Plans the model with its quantizer and whatever `more` allocates. Nothing is allocated before session_allocate.
inline void session_plan(Session& s, bool track_flips, const std::function<void()>& more) {
    s.m.dev.arena = &s.arena;
    LoraConfig lora = lora_from_options(s);
    const bool training = s.o.command == COMMAND_GRPO || s.o.command == COMMAND_SFT;
    if (lora.on() && !lora.inside_quantizer) {
        model_allocate_frozen(s.m, ModelConfig(s.m.config), weight_rules(s.o));
    } else {
        model_allocate(s.m, ModelConfig(s.m.config));
        model_quantize(s.m, weight_rules(s.o), track_flips);
        s.m.noise.seed = s.o.seed;
    }
    model_quantize_activations(s.m, activation_rules(s.o), ste_rule(s.o));
    model_quantize_kv(s.m, kv_rules(s.o), s.o.k_pre_bias);
    if (lora.on()) model_adapt(s.m, lora, s.o.seed, training);
    more();
    const Options& o = s.o;
    int positions = std::max({o.micro_batch_tokens, o.max_prompt_length + o.max_completion_length, o.max_length});
    if (o.command != COMMAND_LOGPROBS)
        rope_reserve(s.m.rope, std::min(positions, s.m.config.max_position_embeddings), s.m.dev);
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

inline void session_load_adapter(Session& s) {
    if (!s.m.lora.on()) return;
    if (s.o.adapter.empty()) lora_init(s.m.lora, s.m.dev);
    else peft_load(s.adapter, s.m.lora, s.m.dev);
}

// The weights: drawn at random for the embedded model, read for others, with the grids they were trained with (unless
// training says dynamic); and the working weights made of them, quantized or not yet
inline void session_load_weights(Session& s, bool quantized = true) {
    bool measured =
        s.o.command == COMMAND_QUANTIZE || (s.o.given("qat_scale") && scale_mode(s.o) == ScaleMode::dynamic);
    auto grids = [&] {
        const std::string& folder = s.m.lora.inside() && !s.o.adapter.empty() ? s.o.adapter : s.o.model;
        if (!measured && quantizer_load(s.m, folder))
            fprintf(stderr, "scales are those of %s/quantizer.safetensors\n", folder.c_str());
    };
    if (s.embedded_model) {
        model_init_random(s.m, s.o.seed);
    } else {
        if (s.m.frozen) grids();  // which is quantized as it is read
        model_load_weights(s.m, s.o.model);
        if (!s.m.frozen) grids();
        s.base = s.o.model;
    }
    session_load_adapter(s);
    model_refresh(s.m, quantized);
}

// true: --plan, and the plan has been printed; nothing more is to be done
inline bool session_allocate(Session& s) {
    if (s.o.plan) {
        fputs(arena_plan_text(s.arena).c_str(), stdout);
        return true;
    }
    arena_commit(s.arena);
    return false;
}

// --output_dir, or the first of out, out-2, out-3 ... that holds no run
inline RunDir session_run_dir(Options& o) {
    for (int i = 2;
         !o.given("output_dir") && std::filesystem::is_directory(o.output_dir) && !run_in_folder(o.output_dir).empty();
         i++)
        o.output_dir = "out-" + std::to_string(i);
    return open_run_dir(o.output_dir, o.overwrite_output_dir, o.log_completions && o.command != COMMAND_SFT,
                        options_to_json(o));
}

inline RolloutConfig rollout_config(const Session& s) {
    RolloutConfig r;
    r.sampling = SamplingParams{(float)s.o.temperature, s.o.top_k, (float)s.o.top_p, s.o.sampling_method == "gumbel"};
    r.max_completion_length = s.o.max_completion_length;
    r.stop_tokens = s.m.config.eos_token_ids;
    r.n_allowed = tokenizer_vocab_size(s.tok);
    r.max_sequences = s.o.rollout_batch;
    r.prefill_tokens = s.o.micro_batch_tokens;
    r.seed = s.o.seed;
    return r;
}

// ---------------------------------------------------------------------------------------------------------------------
// problems

constexpr int EMBEDDED_COMPLETION_LENGTH = 56;
constexpr uint32_t EMBEDDED_TRAIN_PROBLEMS = 100000, EMBEDDED_EVAL_PROBLEMS = 256;

inline std::vector<Problem> embedded_problems(uint64_t seed, uint32_t n, bool held_out) {
    std::vector<Problem> out;
    for (uint32_t i = 0; i < n; i++) {
        ArithmeticProblem a = arithmetic_problem(seed, i, held_out);
        Problem p;
        p.question = a.question + "\n";
        p.gold = a.gold;
        p.source = held_out ? "embedded task, held out" : "embedded task";
        p.line = (int)i;
        out.push_back(p);
    }
    return out;
}

inline Prompt checked_prompt(const Session& s, const Problem& problem) {
    Prompt p = make_prompt(s.tok, problem, s.prompt);
    int n = (int)p.tokens.size();
    if (!problem.gold.empty() && !answer_parses(problem.gold))
        fail("%s:%d: the gold answer '%s' cannot be read as an answer", problem.source.c_str(), problem.line,
             printable(problem.gold).c_str());
    if (n == 0) fail("%s:%d: the prompt is empty", problem.source.c_str(), problem.line);
    if (n > s.o.max_prompt_length)
        fail("%s:%d: the prompt has %d tokens, --max_prompt_length is %d; raise it or leave the row out",
             problem.source.c_str(), problem.line, n, s.o.max_prompt_length);
    if (n + s.o.max_completion_length > s.m.config.max_position_embeddings)
        fail(
            "%s:%d: %d prompt tokens and --max_completion_length %d exceed the model's context of %d; lower it or "
            "leave the row out",
            problem.source.c_str(), problem.line, n, s.o.max_completion_length, s.m.config.max_position_embeddings);
    return p;
}

inline std::vector<Prompt> make_prompts(const Session& s, const std::vector<Problem>& problems) {
    std::vector<Prompt> out;
    for (const Problem& p : problems) out.push_back(checked_prompt(s, p));
    return out;
}

// A model of the user's own is trained on the embedded task only when asked to
inline void check_task(const Options& o) {
    if (!o.model.empty() && o.train_data.empty() && o.eval_data.empty() && !o.given("task"))
        fail_usage("name a data set with --%s, or take the embedded problems with --task arithmetic",
                   o.command == COMMAND_EVAL ? "eval_data" : "train_data");
}

// held-out problems: --eval_data, else the embedded task's when that is what is trained on; empty otherwise
inline std::vector<Prompt> eval_prompts(const Session& s) {
    std::vector<Problem> problems;
    if (!s.o.eval_data.empty()) problems = load_problems(s.o.eval_data);
    else if (s.o.train_data.empty()) problems = embedded_problems(0, EMBEDDED_EVAL_PROBLEMS, true);
    if (s.o.eval_n > 0 && (int)problems.size() > s.o.eval_n) problems.resize(s.o.eval_n);
    return make_prompts(s, problems);
}

// room for an evaluation of these prompts
inline RolloutShape eval_shape(const Session& s, const std::vector<Prompt>& prompts) {
    int64_t longest = 0;
    for (const Prompt& p : prompts) longest = std::max(longest, (int64_t)p.tokens.size());
    RolloutConfig c = rollout_config(s);
    return rollout_larger(rollout_shape((int)prompts.size(), 1, longest, c),
                          rollout_shape((int)prompts.size(), std::max(s.o.eval_samples, 1), longest, c));
}

inline EvalResult run_eval(Session& s, RolloutState& state, const std::vector<Prompt>& prompts, uint32_t index,
                           const Pass& pass = Pass()) {
    EvalConfig c;
    c.rollout = rollout_config(s);
    c.rollout.pass = pass;
    c.rollout.stream = RNG_EVAL;
    c.rollout.step = index;
    c.samples = s.o.eval_samples;
    c.on_token = [](int, int) { return !stop_requested(); };
    return evaluate(s.m, state, s.tok, prompts, c);
}

// the same policy without its quantizer
inline EvalResult run_eval_full_precision(Session& s, RolloutState& state, const std::vector<Prompt>& prompts,
                                          uint32_t index) {
    model_refresh(s.m, false);
    EvalResult r = run_eval(s, state, prompts, index, full_precision());
    model_refresh(s.m);
    return r;
}

// ---------------------------------------------------------------------------------------------------------------------
// what a run prints first

// the instructions of the matrix products; those of AVX512_BF16 multiply bf16 only
inline const char* gemm_backend_name() {
    const char* names[] = {"portable loops", "AVX2", "AVX-512", "AVX-512 BF16"};
    return names[sizeof(floatX) == 4 && GEMM_BACKEND == GEMM_AVX512_BF16 ? GEMM_AVX512 : GEMM_BACKEND];
}

inline void print_start(const Session& s) {
    const ModelConfig& c = s.m.config;
    int64_t params = 0, linear = 0;
    for (const ParamTensor& t : s.m.tensors) {
        params += t.count();
        if (t.kind == ParamKind::linear) linear += t.count();
    }
    printf(
        "model       %s: %s, %s parameters (%s in linears), %d layers, hidden %d, heads %d/%d of %d, vocabulary %d\n",
        s.embedded_model ? "embedded, from scratch" : s.o.model.c_str(), c.model_type.c_str(),
        human_count((double)params).c_str(), human_count((double)linear).c_str(), c.num_hidden_layers, c.hidden_size,
        c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.vocab_size);
#if defined(_OPENMP)
    std::string cpu = format("%d threads", omp_get_max_threads());
#else
    std::string cpu = "1 thread (built without OpenMP)";
#endif
    printf("device      %s, %s%s%s\n", device_text(s.m.dev, cpu).c_str(), PRECISION_NAME, s.m.dev.cuda ? "" : ", ",
           s.m.dev.cuda ? "" : gemm_backend_name());
    if (s.m.lora.on()) {
        const Lora& l = s.m.lora;
        printf("adapter     r %d, alpha %g, %zu linears, %s parameters%s; base %s%s\n", l.config.r, l.config.alpha,
               l.tensors.size(), human_count((double)l.num_params).c_str(),
               s.o.adapter.empty() ? "" : (", from " + s.o.adapter).c_str(),
               l.inside()              ? "frozen, quantized with the adapter inside: "
               : s.m.weight_rules.on() ? "packed: "
                                       : "frozen, ",
               s.m.weight_rules.on() ? rules_text(s.m.weight_rules).c_str() : PRECISION_NAME);
    }
    if (s.m.weight_rules.on()) fputs(quantizer_table(s.m).c_str(), stdout);
    for (const std::string& note : rules_overridden(s.m.weight_rules, weight_places(c)))
        printf("note        %s\n", note.c_str());
    for (const std::string& note : rules_overridden(s.m.activation_rules, weight_places(c, true)))
        printf("note        %s\n", note.c_str());
    for (const std::string& note : rules_overridden(s.m.kv_rules, cache_places(c)))
        printf("note        %s\n", note.c_str());
    fputs(arena_plan_text(s.arena).c_str(), stdout);
    fflush(stdout);  // into a pipe, too, before the long work
}

// The model; of a model with an adapter the adapter alone, and on request the model that merging makes of both
inline void session_save(const Session& s, const std::string& dir) {
    auto tokenizer = [&](const std::string& folder) { tokenizer_save(s.tok, folder); };
    if (!s.m.lora.on()) {
        model_save(s.m, dir, s.o.save_dtype, tokenizer);
        return;
    }
    replace_folder(dir, [&](const std::string& folder) {
        peft_save(s.m.lora, folder, s.base, s.m.dev);
        if (s.m.lora.inside()) quantizer_save(s.m, folder);  // the grid of weights and adapters together
        policy_save(s.m, folder);
        tokenizer(folder);
    });
    if (!s.o.merge_adapter) return;
    MergeReport r = merged_save(s.m, dir + "-merged", s.o.save_dtype, tokenizer);
    printf("merged      into %s-merged, %s: the adapters add %.3g%% to their weights", dir.c_str(),
           s.o.save_dtype.c_str(), 100 * r.added / r.base);
    if (s.m.weight_rules.on())
        printf("; quantizing the sum to %s would change it by %.3g%%%s", rules_text(s.m.weight_rules).c_str(),
               100 * r.lost / r.base,
               s.m.lora.inside() ? ", which is what was trained" : ", so it is not the policy that was trained");
    printf("\n");
}

// what the policy is quantized to, as it is printed
inline std::string policy_text(const Options& o) {
    auto brief = [](const std::string& rules) {  // the table at the start has them all
        return rules.find(';') == rules.npos ? rules : rules.substr(0, rules.find(';')) + "; ...";
    };
    std::string text = brief(o.weights);
    if (o.activations != "none") text += ", activations " + brief(o.activations);
    if (o.kv_cache != "none") text += ", KV " + brief(o.kv_cache);
    return text;
}

inline void summary_quantizers(nlohmann::ordered_json& summary, const Session& s) {
    summary["weights"] = rules_text(s.m.weight_rules);
    summary["activations"] = rules_text(s.m.activation_rules);
    summary["kv_cache"] = rules_text(s.m.kv_rules);
}

inline void print_eval(const char* when, const EvalResult& quantized, const EvalResult* full,
                       const std::string& weights) {
    if (quantized.n == 0) return;  // stopped before it was complete
    printf("held out %-7s| %-13s pass@1 %5.1f%% +- %.1f (greedy %.1f%%)", when, weights.c_str(), 100 * quantized.pass1,
           100 * quantized.pass1_standard_error, 100 * quantized.greedy);
    if (full) printf(" | full precision %5.1f%% (greedy %.1f%%)", 100 * full->pass1, 100 * full->greedy);
    printf(" | %d problems x %d samples, length %.1f\n", quantized.n, quantized.samples, quantized.mean_length);
    fflush(stdout);
}

inline std::string one_line(std::string text, size_t most) {
    std::string out;
    for (char c : text) out += c == '\n' ? " / " : std::string(1, c);
    return out.size() > most ? out.substr(0, most) + "..." : out;
}

inline void print_samples(const char* when, const std::vector<Prompt>& prompts, const EvalResult& e) {
    if (e.sampled.empty()) return;
    printf("samples %s\n", when);
    for (int i = 0; i < 5 && i < (int)e.sampled.size() / std::max(e.samples, 1); i++) {
        const EvalSample& c = e.sampled[(size_t)i * e.samples];
        printf("  %s  %s -> %s  (answer %s)\n", c.strict ? "right" : "wrong",
               one_line(prompts[c.problem].text, 60).c_str(), one_line(c.text, 100).c_str(),
               prompts[c.problem].gold.c_str());
    }
}
