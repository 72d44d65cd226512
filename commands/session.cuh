// What every command needs first: threads, device, model, tokenizer, prompts.
#pragma once
#include <string>
#include <vector>
#include "../data/known_sets.h"
#include "../data/prompts.h"
#include "../formats/export_model.h"
#include "../formats/merged_adapter.h"
#include "../formats/source_file.h"
#include "../formats/tokenizer_file.h"
#include "../rollout.cuh"
#include "../runtime/comm.h"
#include "../runtime/open_device.h"
#include "../runtime/run_dir.h"
#include "../runtime/stop.h"
#include "../runtime/threads.h"
#include "quantizer_options.cuh"

// The checkpoint that a run goes on from
struct ResumePoint {
    std::string folder;            // empty: none
    nlohmann::ordered_json state;  // its trainer_state.json
    bool from_start = false;       // the run was killed before it had one
    bool on() const { return !folder.empty(); }
    int64_t step() const { return state["loop"]["step"]; }
};

struct Session {
    Options o;
    Arena arena;  // the memory plan; outlives what lies in it
    Model m;
    Tokenizer tok;
    bool embedded_model = false;
    PromptConfig prompt;
    PeftAdapter adapter;  // of --adapter
    std::string base;     // the model that adapters are saved for
    ModelSource source;   // the unquantized model behind a quantized one, if it is known
    ResumePoint resume;   // of --resume_from_checkpoint
    // lines for the start of the run: what was decided in place of the user
    std::vector<std::string> notes;
};

// A Qwen3-style model over bytes. 4 layers of width 128, 0.6M parameters, are large enough to learn column arithmetic in a
// minute on two cores
inline ModelConfig embedded_config(int layers = 4, int width = 128) {
    ModelConfig c;
    c.model_type = "qwen3";
    c.vocab_size = 259;
    c.hidden_size = width;
    c.intermediate_size = 2 * width;
    c.num_hidden_layers = layers;
    c.num_attention_heads = width / 32;
    c.num_key_value_heads = width / 64;
    c.head_dim = 32;
    c.max_position_embeddings = 1024;
    c.rms_norm_eps = 1e-6f;
    c.rope_theta = 10000.0f;
    c.tie_word_embeddings = true;
    c.qk_norm = true;
    c.torch_dtype = "float32";
    return c;
}

// --embedded_size 4x128
inline ModelConfig embedded_config_of(const std::string& size) {
    const size_t times = size.find('x');
    int layers = 0, width = 0;
    if (times == std::string::npos || !parse_whole(size.substr(0, times), &layers) ||
        !parse_whole(size.substr(times + 1), &width) || layers < 1 || layers > 64 || width < 64 || width > 1024 ||
        width % 64)
        fail_usage("--embedded_size %s: not LAYERSxWIDTH, such as 4x128; 1 to 64 layers, a multiple of 64 up to 1024",
                   printable(size).c_str());
    return embedded_config(layers, width);
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

// --threads, else as many as affinity and the container's quota allow; OMP_NUM_THREADS is the user's word, too
inline void session_threads(const Options& o) {
#if defined(_OPENMP)
    const CpuShare share = cpu_share();
    // 4096 threads on two cores take minutes to start and to meet at each barrier
    const int most = std::max(64, 4 * share.affinity);
    if (o.threads > share.threads())
        fprintf(stderr, "warning: --threads %d is more than the cores: %s; threads then wait for each other%s\n",
                o.threads, cpu_share_text(share.threads(), share).c_str(),
                o.threads > most ? format("; %d are started", most).c_str() : "");
    if (o.threads > 0) omp_set_num_threads(std::min(o.threads, most));
    else if (!getenv("OMP_NUM_THREADS")) omp_set_num_threads(share.threads());
#else
    if (o.threads > 1) fprintf(stderr, "warning: built without OpenMP, --threads %d has no effect\n", o.threads);
#endif
}

// --prompt_style, --num_fewshot and --fewshot_data
inline void prompt_style_options(const Options& o, PromptConfig& p) {
    p.style = find_prompt_style(o.prompt_style);
    const bool few = p.style.ask;
    if (!few && (o.num_fewshot >= 0 || !o.fewshot_data.empty()))
        fail_usage("--%s belongs to --prompt_style lm_eval_gsm8k", o.num_fewshot >= 0 ? "num_fewshot" : "fewshot_data");
    if (o.prompt_style != "auto" && !o.prompt_template.empty())
        fail_usage("--prompt_template: --prompt_style %s brings its own; leave one out", o.prompt_style.c_str());
    if (*p.style.system && !o.system_prompt.empty())
        fail_usage("--system_prompt: --prompt_style %s brings its own; leave one out", o.prompt_style.c_str());
    if (!few) return;
    p.num_shots = o.num_fewshot >= 0 ? o.num_fewshot : p.style.shots;
    if (o.prompt_style == "lm_eval_gsm8k_cot") {
        p.shots = chain_of_thought_shots();
        if (!o.fewshot_data.empty()) fail_usage("--fewshot_data: lm_eval_gsm8k_cot has examples of its own");
        if (p.num_shots > (int)p.shots.size())
            fail_usage("--num_fewshot %d: lm_eval_gsm8k_cot has %zu examples", p.num_shots, p.shots.size());
    } else if (p.num_shots > 0) {
        p.shots = load_shots(find_data_set(o.fewshot_data.empty() ? "gsm8k" : o.fewshot_data, "fewshot_data", true),
                             p.num_shots);
    }
}

inline PromptConfig prompt_config(const Options& o) {
    PromptConfig p;
    p.prompt_template = o.prompt_template;
    p.system_prompt = o.system_prompt;
    p.chat_template = o.chat_template;
    p.enable_thinking = o.enable_thinking == "auto" ? -1 : o.enable_thinking == "true" ? 1 : 0;
    prompt_style_options(o, p);
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

// a switch of one template alone
inline void check_enable_thinking(const Options& o, const PromptConfig& p) {
    if (o.enable_thinking == "auto" || (use_chat(p) && p.chat == ChatTemplate::qwen3)) return;
    fail_usage("--enable_thinking %s is a switch of Qwen3's chat template, and %s; leave it out",
               o.enable_thinking.c_str(), use_chat(p) ? "this model has another" : "no chat template is in use");
}

// Tokenizer, and the model's configuration and quantizers, for s.m.dev
inline void session_describe(Session& s) {
    s.prompt = prompt_config(s.o);
    s.o.set_default("stop_strings", s.o.stop_strings, std::string(s.prompt.style.stop_strings));
    if (s.prompt.num_shots > 0) s.o.set_default("max_prompt_length", s.o.max_prompt_length, 2048);  // with its examples
    s.embedded_model = s.o.model.empty();
    if (s.embedded_model) {
        s.m.config = embedded_config_of(s.o.embedded_size);
        s.tok = tokenizer_byte_level();  // without a template: it would cost more tokens than the task's plain prompts
        s.m.config.eos_token_ids = s.tok.eos;
        if (!s.o.tokenizer.empty()) fail_usage("--tokenizer: the embedded model has its own; give --model too");
    } else {
        if (s.o.given("embedded_size"))
            fail_usage("--embedded_size %s is of the embedded model; leave it or --model out",
                       printable(s.o.embedded_size).c_str());
        std::string path = s.o.tokenizer.empty() ? s.o.model : s.o.tokenizer;
        if (s.o.command != COMMAND_LOGPROBS || !lacks_tokenizer(path)) s.tok = load_tokenizer(path);
        s.prompt.chat = chat_template_detect(s.tok.chat_text);
        check_enable_thinking(s.o, s.prompt);
        s.m.config = model_config(s.o.model);
        session_stored_quantizer(s.o, s.m.config);
        if (s.o.lora_r > 0 && !s.o.given("weights") && s.o.weights == "none" && !s.o.lora_inside_quantizer)
            s.o.weights = "nf4:g64:dq";  // QLoRA (arXiv 2305.14314)
    }
    check_device_takes_model(s);
    check_weights(s.m.config, s.o);
    check_kv_rules(s.m.config, kv_rules(s.o), k_pre_bias(s.o));
    hadamard_rules(s.o, s.m.config);
    if (tokenizer_vocab_size(s.tok) > s.m.V())
        fail("the tokenizer has %d tokens and the model %d rows; they do not belong together",
             tokenizer_vocab_size(s.tok), s.m.V());
    for (int id : s.tok.eos)
        if (std::find(s.m.config.eos_token_ids.begin(), s.m.config.eos_token_ids.end(), id) ==
            s.m.config.eos_token_ids.end())
            s.m.config.eos_token_ids.push_back(id);
}

// Device, tokenizer and the model's configuration; no weights yet. Without --model: the embedded model and a byte-level
// tokenizer.
inline void session_open(Session& s) {
    cpu_isa();  // of a TRAIN_QRL_CPU_ISA that this CPU has not we hear now
    session_threads(s.o);
    if (world_size() > 1 && !(IN_TRAIN >> s.o.command & 1))
        fail_usage("WORLD_SIZE=%d: only %s take several ranks; start one", world_size(),
                   command_names(IN_TRAIN).c_str());
    s.o.train_data = find_data_set(s.o.train_data, "train_data", true);
    if (s.o.command != COMMAND_EVAL) s.o.eval_data = find_data_set(s.o.eval_data);  // eval takes several
    s.m.dev = open_device(s.o.device, world_size() > 1 ? local_rank() : 0, device_probe());
    s.m.dev.batch_invariant = s.o.batch_invariant;
    s.arena.dev = s.m.dev;
    session_describe(s);
}

// Two models must mean the same by a token. A vocabulary padded to another size does no harm. who: the model with tok;
// flag: what named the other, whose embeddings have `rows` rows; use: what needs this
inline void check_same_vocabulary(const Tokenizer& tok, const char* who, const Tokenizer& other, int rows,
                                  const std::string& flag, const char* use) {
    const int n = tokenizer_vocab_size(tok), theirs = tokenizer_vocab_size(other);
    if (theirs != n || rows < n)
        fail("%s has a vocabulary of %d tokens, %s one of %d; %s needs the same one", flag.c_str(), theirs, who, n,
             use);
    for (int id = 0; id < n; id++)
        if (tokenizer_token_bytes(tok, id) != tokenizer_token_bytes(other, id))
            fail("%s has another vocabulary: its token %d is '%s', that of %s '%s'", flag.c_str(), id,
                 printable(std::string(tokenizer_token_bytes(other, id))).c_str(), who,
                 printable(std::string(tokenizer_token_bytes(tok, id))).c_str());
}

inline RolloutConfig rollout_config(const Session& s) {
    RolloutConfig r;
    r.sampling = SamplingParams{(float)s.o.temperature, s.o.top_k, (float)s.o.top_p, s.o.sampling_method == "gumbel"};
    r.sampling.min_p = (float)s.o.min_p, r.sampling.repetition_penalty = (float)s.o.repetition_penalty;
    r.max_completion_length = s.o.max_completion_length;
    r.stop_tokens = s.m.config.eos_token_ids;
    r.stop_strings = {stop_strings_parse(s.o.stop_strings),
                      [tok = &s.tok](int id) { return tokenizer_token_bytes(*tok, id); }};
    r.n_allowed = tokenizer_vocab_size(s.tok);
    r.max_sequences = s.o.rollout_batch;
    r.prefill_tokens = s.o.micro_batch_tokens;
    r.seed = s.o.seed;
    return r;
}
