// Options: `./train_qrl [command] [--flag value ...]`. One table makes the struct, the parser, --help, the start-up
// print, config.json and docs/flags.md. Names and defaults are TRL's (GRPOConfig, SFTConfig) where it has
// one. To add an option, add one line to OPTION_TABLE.
//
//   OPT(type, name, default, allowed, commands, help)
//     type      std::string, int, uint64_t, double or bool
//     allowed   "[2, 1024]"  interval, round brackets exclude the end: "(0, 1]", "[0, inf)"
//               "a|b|c"      one of these
//               "{a, b, c}"  a comma list of these
//               ""           anything
//     commands  bit mask of the commands that take it
//
// The trap: an interval is about what the user may write. A default outside of its interval means "not set" (shown as
// "unset", null in JSON); parse_options() must give it a value, see resolve_options().
#pragma once
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>
#include "error.h"
#include "file_io.h"
#include "json.h"
#include "nearest.h"
#include "printable.h"
#include "stop_strings.h"
#include "words.h"

#define TRAIN_QRL_VERSION "0.1.0"

// ---------------------------------------------------------------------------------------------------------------------
// commands

// A row is a command NAME, whose function is NAME_command(Session&). trains: it updates weights by an objective.
#define COMMAND_TABLE(CMD)                                                                       \
    CMD(GRPO, grpo, true, "reinforcement learning with group-relative advantages (the default)") \
    CMD(SFT, sft, true, "supervised fine-tuning on prompt and completion pairs")                 \
    CMD(DISTILL, distill, true, "a quantized student learns from an unquantized teacher")        \
    CMD(EVAL, eval, false, "accuracy of a model on a set of problems")                           \
    CMD(COMPARE, compare, false, "paired tests between evaluations")                             \
    CMD(REPORT, report, false, "a run as a page of curves, or several beside each other")        \
    CMD(STUDY, study, false, "arms, each a chain of stages, over a grid and seeds, as one table")   \
    CMD(QUANTIZE, quantize, false, "post-training quantization of a model's weights")            \
    CMD(GENERATE, generate, false, "complete one prompt")                                        \
    CMD(TOKENIZE, tokenize, false, "text to token ids, or back with --decode")                   \
    CMD(LOGPROBS, logprobs, false, "log-probability of every token of a text")                   \
    CMD(GRADE, grade, false, "are these answers right? JSON lines in and out")                   \
    CMD(EXPORT, export, false, "a model as a file that other tools load")                        \
    CMD(BENCH, bench, false, "speed of this machine, of the operators and of whole steps")

enum Command : int {
#define CMD(id, name, trains, help) COMMAND_##id,
    COMMAND_TABLE(CMD)
#undef CMD
        COMMAND_COUNT
};

enum CommandMask : unsigned {
#define CMD(id, name, trains, help) IN_##id = 1u << COMMAND_##id,
    COMMAND_TABLE(CMD)
#undef CMD
};
static constexpr unsigned IN_TRAIN =  // updates weights
#define CMD(id, name, trains, help) (trains ? (unsigned)IN_##id : 0u) |
    COMMAND_TABLE(CMD) 0u;
#undef CMD
static constexpr unsigned IN_SAMPLE = IN_TRAIN | IN_EVAL | IN_GENERATE | IN_QUANTIZE;  // draws completions
static constexpr unsigned IN_FILES = IN_TRAIN | IN_EVAL | IN_QUANTIZE;        // reads data sets, writes --output_dir
static constexpr unsigned IN_MODEL = IN_FILES | IN_GENERATE | IN_LOGPROBS;    // runs the model
static constexpr unsigned IN_TEXT = IN_GENERATE | IN_TOKENIZE | IN_LOGPROBS;  // takes --prompt
static constexpr unsigned IN_OPEN = IN_MODEL | IN_EXPORT | IN_TOKENIZE;       // takes --model
static constexpr unsigned IN_ALL = (1u << COMMAND_COUNT) - 1;

struct CommandRow {
    const char* name;
    const char* help;
};

static constexpr CommandRow command_rows[COMMAND_COUNT] = {
#define CMD(id, name, trains, help) {#name, help},
    COMMAND_TABLE(CMD)
#undef CMD
};

// what a command takes beside its flags; "": nothing
inline const char* arguments_text(Command c) {
    return c == COMMAND_COMPARE ? "EVALUATION EVALUATION ..." : c == COMMAND_REPORT ? "RUN [RUN ...]" : c == COMMAND_STUDY ? "STUDY" : "";
}

// ---------------------------------------------------------------------------------------------------------------------
// the table

// clang-format off
#define OPTION_TABLE(GROUP, OPT) \
GROUP("files") \
OPT(std::string, model, "", "", IN_OPEN | IN_STUDY, "Hugging Face folder or .gguf file; empty: the embedded model") \
OPT(std::string, tokenizer, "", "", IN_OPEN, "folder or tokenizer.json; empty: the one beside the model") \
OPT(std::string, train_data, "", "", IN_TRAIN | IN_QUANTIZE, "JSONL or JSON list to train on, or gsm8k as data/download fetched it; empty: the embedded task") \
OPT(std::string, eval_data, "", "", IN_FILES, "JSONL or JSON list of held-out problems, or the name of a set that data/download fetched, such as gsm8k; empty: the embedded task's; eval takes several, joined by commas") \
OPT(bool, allow_overlap, false, "", IN_TRAIN, "go on where held-out problems are trained on, too; they are counted and the first is named") \
OPT(std::string, output_dir, "out", "", IN_FILES | IN_EXPORT | IN_BENCH | IN_STUDY, "folder for config.json, metrics.jsonl and checkpoints; unless given, the first of out, out-2, ... without a run; bench writes only if it is given") \
OPT(bool, overwrite_output_dir, false, "", IN_FILES | IN_EXPORT | IN_BENCH, "write into a folder that already holds a run or an export; what this program wrote there is replaced, and nothing else") \
OPT(std::string, eval_text, "", "", IN_EVAL | IN_QUANTIZE | IN_DISTILL, "text or JSONL file whose log-loss is measured") \
OPT(int, eval_text_length, 512, "[2, 1048576]", IN_EVAL | IN_QUANTIZE | IN_DISTILL, "tokens of the windows into which eval_text is cut") \
OPT(std::string, against, "", "", IN_EVAL, "the reference: a Hugging Face folder or .gguf file with the same vocabulary, the full precision of --model as a rule; measured is how far --model is from it, by token, completion and layer") \
OPT(std::string, traces, "", "", IN_EVAL, "with --against: JSONL with `prompt` and `completion`, such as the completions.jsonl of a run, whose completions are scored by both models; --eval_n: at most so many") \
OPT(std::string, config, "", "", IN_ALL, "JSON file with the same keys as these flags; a flag wins over the file") \
OPT(std::string, format, "", "", IN_EXPORT | IN_QUANTIZE, "what to write: hf, compressed-tensors, int-quantized, gptq, gptq_v2, awq, bnb-nf4; export also gguf, or gguf:TYPE such as gguf:Q4_0; quantize, unless given: what holds the quantizer best") \
GROUP("quantization") \
OPT(std::string, weights, "none", "", IN_MODEL | IN_EXPORT | IN_BENCH, "quantizer of the linear layers' weights, such as int4:g32:sym or none, or rules such as 'int4:g64; down=int8:channel; layers.0-2=none'; unless given, the model folder's own, and nf4:g64:dq under --lora_r") \
OPT(std::string, activations, "none", "", IN_MODEL, "quantizer of what the linear layers multiply, such as int8:token:sym or none") \
OPT(std::string, quantize_layers, "all", "{all, q, k, v, o, gate, up, down}", IN_MODEL | IN_EXPORT | IN_BENCH, "linear layers that are quantized") \
OPT(std::string, qat_scale, "dynamic", "dynamic|static|learned", IN_TRAIN, "scales: from the current weights at every step, kept from the first, or trained; the last two are saved with a checkpoint and read with it") \
OPT(std::string, learned_scale, "lsq", "lsq|lsq_offset|lwc|pact", IN_TRAIN, "what --qat_scale learned trains: the scale, also an offset, how far the range is clipped, or (pact) the scale by the clipped numbers alone") \
OPT(double, scale_learning_rate, -1, "[0, 10]", IN_TRAIN, "learning rate of learned scales; unset: that of the weights, for lwc 0.01") \
OPT(std::string, ste, "identity", "", IN_TRAIN, "gradient through the rounding: identity (passed on), clip (zero where the value was clipped), trust (zero where it was more than half a step away), or ewgs:delta=0.001 (clip, and more for a value that has farther to go to its next number); learned scales clip") \
OPT(std::string, quant_statistics, "grid", "none|grid|history", IN_TRAIN, "what is logged of the quantized weights' grids beside flipped codes: grid (dead zone, learning rate in cells, noise, scales), also history (drift since a code's last change and codes that oscillate, for 6 bytes a weight), or none") \
OPT(std::string, rounding, "nearest", "nearest|stochastic", IN_TRAIN, "rounding of the weights in training; stochastic: drawn anew at each step") \
OPT(std::string, methods, "none", "", IN_TRAIN, "methods of quantized training, joined by +, each with its settings, such as cage:lambda=10:silence=0.8; train_qrl help methods lists them") \
OPT(std::string, kv_cache, "none", "", IN_MODEL, "quantizer of keys and values, such as int8:token:asym, int4:g32:asym or fp8e4m3:token") \
OPT(std::string, hadamard, "none", "", IN_MODEL & ~IN_QUANTIZE, "linears whose inputs and weights are multiplied with a Hadamard matrix before they are quantized: all, none or names such as 'down' or 'layers.0-3,o'; weights are saved as they are without; unless given, as the model was trained") \
OPT(bool, k_pre_bias, false, "", IN_MODEL, "quantize keys before their bias is added (Qwen2)") \
GROUP("adapters") \
OPT(int, lora_r, 0, "[0, 1024]", IN_TRAIN, "rank of low-rank adapters, which are trained over a frozen base (QLoRA's unless --weights says another, such as none); 0: all weights are trained") \
OPT(double, lora_alpha, 32, "[1e-06, 1000000]", IN_TRAIN, "the adapters count alpha / r times") \
OPT(double, lora_dropout, 0.0, "[0, 1)", IN_TRAIN, "share of the adapters' inputs that is dropped in training; makes the trainer differ from the sampler") \
OPT(std::string, lora_target, "all", "{all, q, k, v, o, gate, up, down}", IN_TRAIN, "linear layers that get an adapter") \
OPT(bool, lora_inside_quantizer, false, "", IN_MODEL & ~IN_QUANTIZE, "L4Q: quantize the sum of weight and adapter, and not the weight alone; unless given, as the adapter was trained") \
OPT(std::string, adapter, "", "", IN_MODEL & ~IN_QUANTIZE, "folder of a PEFT adapter to use or to train on; without --model, over the base that it names") \
OPT(bool, merge_adapter, false, "", IN_TRAIN, "write the model with merged adapters, too, beside each checkpoint") \
GROUP("post-training quantization") \
OPT(bool, save_masters, true, "", IN_QUANTIZE, "write masters.safetensors beside the model: the fp32 weights that its codes were rounded from, which training goes on from; false: from what the codes stand for") \
OPT(std::string, ptq, "gptq", "", IN_QUANTIZE, "methods, joined by +: rtn (to nearest), gptq, awq, smoothquant, rotate, blockwise (train what was rounded, with settings of its own), flatquant (learn transforms of the inputs before); such as rotate+gptq+blockwise:steps=400; train_qrl help ptq lists them") \
OPT(std::string, calibration, "prompts", "", IN_QUANTIZE, "text or JSONL file; prompts: those of train_data and their answers; self: the model's own answers to them; rtn needs none but then measures the products' outputs") \
OPT(int, calibration_samples, 128, "[1, 65536]", IN_QUANTIZE, "windows of calibration text; self: problems that are answered, too") \
OPT(int, calibration_length, 512, "[2, 1048576]", IN_QUANTIZE, "tokens of a window") \
OPT(double, smoothquant_alpha, 0.5, "[0, 1]", IN_QUANTIZE, "smoothquant: how much of the inputs' range moves into the weights") \
OPT(std::string, rotations, "r1,r2", "{r1, r2, r3, r4}", IN_QUANTIZE, "rotate: hidden states, values, and online, at a cost for each token, queries and keys (r3) and the input of down (r4)") \
OPT(double, damp_percent, 0.01, "[0, 1]", IN_QUANTIZE, "gptq: share of the Hessian's mean diagonal that is added to it") \
OPT(bool, act_order, true, "", IN_QUANTIZE, "gptq: columns in descending order of their inputs' size") \
OPT(bool, static_groups, true, "", IN_QUANTIZE, "gptq: scales from the weights as they were, else as they have become when a group's turn comes") \
GROUP("GRPO") \
OPT(int, num_generations, 8, "[2, 1024]", IN_GRPO | IN_BENCH, "completions per prompt: the group size G") \
OPT(int, prompts_per_step, 8, "[1, 65536]", IN_GRPO | IN_BENCH, "prompts of a batch, over all micro-batches and ranks") \
OPT(int, steps_per_generation, 0, "[1, 65536]", IN_GRPO, "batches that are sampled at once, before the updates from them; unset: gradient_accumulation_steps, which is one update") \
OPT(int, num_iterations, 1, "[1, 64]", IN_GRPO, "passes over one generation of rollouts") \
OPT(int, gradient_accumulation_steps, 1, "[1, 65536]", IN_TRAIN, "batches per optimizer step") \
OPT(std::string, loss_type, "dapo", "grpo|dr_grpo|bnpo|dapo|cispo|sapo|gspo|luspo|vespo|tbpo", IN_GRPO, "TRL's names for a policy loss, what its ratio is of, and an average, each of which can also be given by itself") \
OPT(std::string, policy_loss, "auto", "auto|clip|cispo|sapo|vespo|trust_band", IN_GRPO, "loss of a token: clip (PPO's, GRPO's clipped ratio), cispo (a capped ratio that is not differentiated), sapo (a soft gate), vespo (a soft weight of the whole sequence), trust_band (clipped on both sides where the advantage is negative); auto: loss_type's") \
OPT(std::string, importance_sampling_level, "auto", "auto|token|sequence", IN_GRPO, "the ratio is the token's, or the geometric mean of its sequence's (GSPO); auto: loss_type's") \
OPT(std::string, loss_aggregation, "auto", "auto|seq-mean-token-mean|token-mean|micro-batch-token-mean|seq-mean-token-sum-norm|seq-mean-token-sum", IN_GRPO, "how token losses are averaged; auto: loss_type's") \
OPT(double, epsilon, 0.2, "[0, 1]", IN_GRPO, "the ratio is clipped below 1 - epsilon") \
OPT(double, epsilon_high, -1, "[0, 100]", IN_GRPO, "the ratio is clipped above 1 + epsilon_high, for cispo above epsilon_high itself; unset: epsilon, for cispo 5") \
OPT(double, delta, -1, "(1, 1000]", IN_GRPO, "dual clip: the unclipped ratio counts as this at most; unset: no bound, for trust_band 1 + epsilon_high") \
OPT(double, sapo_temperature_pos, 1.0, "[1e-06, 100]", IN_GRPO, "sapo: steepness of the gate where the advantage is positive") \
OPT(double, sapo_temperature_neg, 1.05, "[1e-06, 100]", IN_GRPO, "sapo: where it is not") \
OPT(double, vespo_k_pos, 2.0, "[0, 100]", IN_GRPO, "vespo: exponent of the sequence's weight where the advantage is not negative") \
OPT(double, vespo_lambda_pos, 3.0, "[0, 100]", IN_GRPO, "vespo: its decay there") \
OPT(double, vespo_k_neg, 3.0, "[0, 100]", IN_GRPO, "vespo: exponent where the advantage is negative") \
OPT(double, vespo_lambda_neg, 2.0, "[0, 100]", IN_GRPO, "vespo: decay there") \
OPT(double, off_policy_mask_threshold, -1, "[1e-06, 1000]", IN_GRPO, "completions with a negative advantage are left out once their tokens are on average this much less likely than when they were sampled, in nat; unset: never") \
OPT(double, top_entropy_quantile, 1.0, "[1e-06, 1]", IN_GRPO, "share of the tokens, those of the largest entropy, that the policy loss takes") \
OPT(double, entropy_coef, 0.0, "[-10, 10]", IN_GRPO, "weight of the entropy bonus, the mean entropy of the tokens") \
OPT(double, beta, 0.0, "[0, 100]", IN_GRPO, "weight of the KL divergence from the reference model; 0 keeps no reference") \
OPT(std::string, kl_estimator, "k3", "k1|k2|k3", IN_GRPO, "estimate of the KL divergence from a token's log-ratio x = ref - logp: -x, x^2/2 or exp(x) - x - 1; in the loss k1 has a gradient of mean 0, unless it is corrected") \
OPT(bool, kl_in_reward, false, "", IN_GRPO, "the reward pays the KL divergence, and not the loss") \
OPT(bool, use_bias_correction_kl, false, "", IN_GRPO, "multiply the KL term by the ratio, for the gradient of the divergence where the policy has left its samples (TRL 1.16 does unless told not to)") \
OPT(bool, sync_ref_model, false, "", IN_GRPO, "the reference model follows the policy") \
OPT(double, ref_model_mixup_alpha, 0.6, "[1e-06, 1]", IN_GRPO, "share of the policy in the reference model at each sync; small and with 1 step between syncs, a moving average") \
OPT(int, ref_model_sync_steps, 512, "[1, 1000000000]", IN_GRPO, "steps between two syncs of the reference model") \
OPT(std::string, advantage_estimator, "group", "group|rloo|batch|reinforce_plus_plus|reinforce_plus_plus_baseline", IN_GRPO, "what a reward is compared with: the mean of its group, the others of its group, the mean of the batch; the last two are whitened over the tokens of the batch") \
OPT(std::string, scale_rewards, "auto", "auto|group|batch|none", IN_GRPO, "divide advantages by this standard deviation; auto: group, but for rloo none and for the others batch") \
OPT(std::string, reward_funcs, "exact", "", IN_GRPO | IN_EVAL, "comma list of rewards, each with its settings, such as 'exact, overlong:cache=64', or files of your own, as ./my_reward.py; train_qrl help rewards lists them; eval, unless given: those of the run that wrote the model") \
OPT(std::string, reward_weights, "", "", IN_GRPO | IN_EVAL, "comma list of numbers, one for each reward; empty: 1 each") \
OPT(bool, dynamic_sampling, false, "", IN_GRPO, "prompts whose completions are all right or all wrong are replaced by others before the update (DAPO)") \
OPT(int, dynamic_sampling_max_batches, 10, "[2, 60]", IN_GRPO, "most batches of prompts that one step samples for dynamic_sampling, its own included") \
OPT(std::string, curriculum, "", "", IN_GRPO, "which training problems come first, by the share of their answers that are right: a field of the rows that has it, such as pass_rate, or the folder of an evaluation of them, with settings such as evals/train:by=easy_first or pass_rate:min=0.1:max=0.9; by=variance, unless given: in proportion to p (1 - p); empty: none") \
OPT(bool, mask_truncated_completions, false, "", IN_GRPO, "leave completions that hit the length limit out of the loss") \
GROUP("sampler that differs from the trainer") \
OPT(std::string, rollout_weights, "", "", IN_GRPO, "quantizer of the weights that completions are sampled with, as --weights has it, or none: full precision; made of the trainer's masters before each rollout; empty: the trainer's weights") \
OPT(std::string, rollout_activations, "", "", IN_GRPO, "the same of activations, as --activations has it; empty: the trainer's") \
OPT(std::string, rollout_kv_cache, "", "", IN_GRPO, "the same of keys and values, as --kv_cache has it; empty: the trainer's") \
OPT(int, rollout_staleness, 0, "[0, 1000000]", IN_GRPO, "completions come from the trainer's weights of up to so many steps ago: the sampler takes them anew before every (n+1)-th step; 0: before each") \
OPT(std::string, importance_sampling_mode, "token_truncate", "none|token_truncate|token_mask|sequence_truncate|sequence_mask", IN_GRPO, "what corrects for a sampler that differs: the probability ratio of the trainer before its update to the sampler, of a token or of its whole sequence, truncated at the bounds or 0 outside of them, times the policy loss (TRL's vllm_importance_sampling_mode); where nothing differs it is 1") \
OPT(double, importance_sampling_clip_max, 2.0, "[1e-06, 1e+08]", IN_GRPO, "its upper bound") \
OPT(double, importance_sampling_clip_min, 0, "[0, 1e+08]", IN_GRPO, "its lower bound; 0: none") \
OPT(bool, adaptive_clip, false, "", IN_GRPO, "QuRL: the upper end of the clipped range is raised for tokens whose ratio was truncated") \
OPT(double, noise_sigma_start, 0, "[0, 1]", IN_GRPO, "adaptive quantization noise (QeRL): standard deviation of what is added to the sampler's norms, in the first stage that has any; 0: none") \
OPT(double, noise_sigma_end, 1e-4, "[1e-12, 1]", IN_GRPO, "the same in the last stage") \
OPT(int, noise_num_stages, 10, "[2, 1000000]", IN_GRPO, "stages of equal length that the run is cut into; the first has no noise") \
GROUP("distillation") \
OPT(std::string, teacher, "", "", IN_DISTILL, "Hugging Face folder or .gguf file with the student's vocabulary; empty: the model that the student was quantized from") \
OPT(std::string, kd_loss, "forward_kl", "forward_kl|reverse_kl|jsd", IN_DISTILL, "divergence of the student from the teacher: KL(teacher, student), KL(student, teacher), or Jensen-Shannon") \
OPT(double, jsd_beta, 0.5, "[0.0001, 0.9999]", IN_DISTILL, "share of the teacher in the mixture of jsd; near 0 it is like forward_kl, near 1 like reverse_kl") \
OPT(double, kd_temperature, 1.0, "[0.01, 100]", IN_DISTILL, "divides the logits of both in the divergence, which counts temperature^2 times") \
OPT(double, kd_alpha, 1.0, "[0, 1]", IN_DISTILL, "share of the divergence in the loss; the rest is cross-entropy") \
OPT(int, kd_top_k, 0, "[0, 1048576]", IN_DISTILL, "tell apart the teacher's k likeliest tokens only, all others being one; 0: all") \
OPT(double, kd_top_p, 1.0, "[1e-06, 1]", IN_DISTILL, "tell apart the teacher's likeliest tokens that hold this mass") \
OPT(double, lmbda, 0.0, "[0, 1]", IN_DISTILL, "share of the steps whose completions the student samples (on-policy); the others take those of the data") \
OPT(bool, seq_kd, false, "", IN_DISTILL, "completions sampled by the teacher in place of those of the data") \
OPT(bool, seq_kd_correct, false, "", IN_DISTILL, "leave out the teacher's samples whose answer is wrong") \
GROUP("sampling") \
OPT(int, max_prompt_length, 512, "[1, 1048576]", IN_SAMPLE | IN_BENCH, "tokens; a longer prompt is an error, in training what overlong_rows says") \
OPT(int, max_completion_length, 256, "[1, 1048576]", IN_SAMPLE | IN_BENCH, "tokens") \
OPT(double, temperature, 1.0, "[0, 100]", IN_SAMPLE, "divides the logits; 0 is greedy, and else at least 0.0001") \
OPT(int, top_k, 0, "[0, 1048576]", IN_SAMPLE, "sample among the k likeliest tokens; 0: all; makes the sampler differ from the trainer") \
OPT(double, top_p, 1.0, "[1e-06, 1]", IN_SAMPLE, "sample among the likeliest tokens that hold this mass; makes the sampler differ from the trainer") \
OPT(double, min_p, 0.0, "[0, 1)", IN_SAMPLE, "sample among the tokens that are at least this times as likely as the likeliest; 0: all; makes the sampler differ from the trainer") \
OPT(double, repetition_penalty, 1.0, "[0.01, 100]", IN_SAMPLE, "divides the logits above 0 of tokens that the prompt or the completion so far has, and multiplies those below; 1: off; makes the sampler differ from the trainer") \
OPT(std::string, stop_strings, "", "", IN_SAMPLE, "comma list of texts that end a completion and stay in it, such as '\\n\\n,Question:'; white space counts; escapes: \\n \\t \\r \\, \\\\") \
OPT(std::string, sampling_method, "inverse", "inverse|gumbel", IN_SAMPLE, "draw by the inverse of the cumulative distribution, one random number a token; or by Gumbel noise, one a word of the vocabulary") \
OPT(int, rollout_batch, 256, "[1, 65536]", IN_TRAIN | IN_EVAL | IN_QUANTIZE, "sequences decoded at once") \
GROUP("optimizer") \
OPT(std::string, optim, "adamw", "", IN_TRAIN, "adamw, adamw_bf16 or adamw_8bit (smaller moments), or muon (hidden matrices; adamw for the rest)") \
OPT(double, learning_rate, 1e-6, "[0, 10]", IN_TRAIN, "peak learning rate") \
OPT(double, weight_decay, 0.0, "[0, 10]", IN_TRAIN, "decoupled weight decay of matrices, embeddings and adapters") \
OPT(std::string, group_learning_rates, "", "", IN_TRAIN, "peak learning rates of parameter groups, such as 'embeddings=1e-5, norms=0' (0: not trained); groups: matrices, norms (and biases), embeddings (and head), scales, adapters") \
OPT(std::string, group_weight_decays, "", "", IN_TRAIN, "weight decays of parameter groups, such as 'embeddings=0'") \
OPT(double, muon_momentum, 0.95, "[0, 1)", IN_TRAIN, "decay of Muon's momentum") \
OPT(double, adam_beta1, 0.9, "[0, 1)", IN_TRAIN, "decay of the first moment") \
OPT(double, adam_beta2, 0.999, "[0, 1)", IN_TRAIN, "decay of the second moment") \
OPT(double, adam_epsilon, 1e-8, "[1e-30, 1]", IN_TRAIN, "added to the root of the second moment") \
OPT(double, max_grad_norm, 1.0, "[0, 1000000000]", IN_TRAIN, "gradients are scaled down to this global norm; 0: never") \
OPT(std::string, lr_scheduler_type, "linear", "linear|cosine|constant", IN_TRAIN, "learning rate after the warm-up: down to 0, or constant") \
OPT(int, warmup_steps, 0, "[0, 1000000000]", IN_TRAIN, "steps, as max_steps counts them, from 0 up to the learning rate") \
OPT(int, max_steps, -1, "[-1, 1000000000]", IN_TRAIN, "steps: for grpo one generation with all its updates, else one optimizer step; -1: as many as num_train_epochs gives") \
OPT(double, num_train_epochs, 1.0, "[1e-06, 1000000]", IN_TRAIN, "passes over the training data") \
GROUP("training") \
OPT(uint64_t, seed, 0, "", IN_FILES | IN_GENERATE, "same seed, same machine, same bits") \
OPT(int, micro_batch_tokens, 4096, "[1, 16777216]", IN_FILES | IN_BENCH, "most tokens in one forward and backward pass; raised where one sequence is longer") \
OPT(bool, shuffle_dataset, true, "", IN_TRAIN, "draw the order of the rows anew for each epoch, by the seed; false: as they stand in the file") \
OPT(bool, gradient_checkpointing, false, "", IN_TRAIN, "recompute activations in the backward pass") \
OPT(int, per_device_train_batch_size, 16, "[1, 65536]", IN_SFT | IN_DISTILL | IN_BENCH, "rows per batch") \
OPT(int, max_length, 1024, "[2, 1048576]", IN_SFT | IN_DISTILL | IN_QUANTIZE | IN_BENCH, "tokens of prompt and completion together") \
OPT(bool, assistant_only_loss, false, "", IN_SFT | IN_DISTILL, "learn every answer of a row of messages, as TRL does with this flag; false: the last one, given all that is before it") \
OPT(std::string, overlong_rows, "drop", "drop|truncate|wrap|error", IN_TRAIN, "rows of train_data that are longer than max_prompt_length, max_length or the model's context: drop (left out, and counted), truncate (a prompt's question loses its beginning, a completion its end), wrap (a row of text goes on in further rows; others are dropped) or error") \
OPT(int, eval_steps, 0, "[0, 1000000000]", IN_TRAIN, "evaluate every so many steps; 0: only at the end") \
OPT(int, eval_n, -1, "[0, 1000000000]", IN_FILES, "held-out problems; 0: all; unset: all, in training as many as take an eighth of the completions that it trains on, 32 at least") \
OPT(int, eval_samples, 1, "[0, 1024]", IN_TRAIN | IN_EVAL, "sampled completions per held-out problem") \
OPT(bool, eval_greedy, true, "", IN_TRAIN | IN_EVAL, "also a greedy completion per held-out problem") \
OPT(bool, eval_full_precision, true, "", IN_TRAIN, "before and after training of a quantized policy, also without its quantizers") \
OPT(std::string, generation_config, "none", "none|model", IN_EVAL | IN_GENERATE, "model: sample as the model's generation_config.json recommends, where no flag says otherwise") \
OPT(bool, resume, false, "", IN_EVAL, "go on with the evaluation in output_dir that was stopped") \
OPT(int, save_steps, 0, "[0, 1000000000]", IN_TRAIN, "checkpoint every so many steps; 0: only at the end") \
OPT(int, save_total_limit, 0, "[0, 1000000000]", IN_TRAIN, "most checkpoints that are kept, the oldest go; 0: all") \
OPT(bool, save_only_model, false, "", IN_TRAIN, "checkpoints without what a run resumes from") \
OPT(std::string, resume_from_checkpoint, "", "", IN_TRAIN, "go on from this checkpoint folder, or from the last one in output_dir: last; flags that are not given are those of its run") \
OPT(bool, load_best_model_at_end, false, "", IN_TRAIN, "keep the checkpoint of the best evaluation, and end with its weights") \
OPT(std::string, metric_for_best_model, "auto", "auto|pass@1|greedy|log_loss|kl|agreement", IN_TRAIN, "which evaluation is best; auto: pass@1 where problems are held out, else log_loss") \
OPT(std::string, save_dtype, "float32", "float32|bfloat16|float16", IN_TRAIN | IN_QUANTIZE | IN_EXPORT, "type of the saved weights; unless given, bfloat16 for what a quantized export does not quantize") \
OPT(int, logging_steps, 1, "[1, 1000000000]", IN_TRAIN, "log every so many steps") \
OPT(bool, log_completions, true, "", IN_GRPO | IN_DISTILL | IN_EVAL, "write completions.jsonl") \
OPT(std::string, report_to, "tensorboard, html", "{tensorboard, html, none}", IN_TRAIN, "where a run can be watched while it goes on: tensorboard (event files in output_dir, for tensorboard --logdir), html (report.html there), or none") \
OPT(int, ddp_timeout, 1800, "[1, 604800]", IN_TRAIN, "seconds that a rank waits for the others before it gives up; one that has died or is stuck is not heard of") \
OPT(int, threads, 0, "[0, 4096]", IN_MODEL | IN_EXPORT | IN_BENCH, "CPU threads; 0: the cores that affinity and a container's quota allow") \
OPT(std::string, device, "auto", "auto|cpu|cuda", IN_MODEL, "where the model runs; auto: the GPU in a program compiled by nvcc, else the CPU") \
OPT(bool, batch_invariant, true, "", IN_MODEL, "on a GPU, matmuls of the forward give a token the same bits in whatever batch it is, so that the policy ratio starts at exactly 1; false: cuBLASLt") \
OPT(bool, plan, false, "", IN_MODEL | IN_STUDY, "print the memory plan, of a study its runs, and stop") \
GROUP("prompts") \
OPT(std::string, prompt, "", "", IN_TEXT, "the text to work on; empty: standard input") \
OPT(bool, decode, false, "", IN_TOKENIZE, "the input is token ids") \
OPT(std::string, prompt_style, "auto", "auto|boxed|lm_eval_gsm8k|lm_eval_gsm8k_cot", IN_FILES, "how problems are asked; auto: a bare question is told to answer after ####; boxed: Qwen2.5-Math's system message; lm_eval_*: lm-eval's few-shot prompts and stop strings") \
OPT(int, num_fewshot, -1, "[0, 64]", IN_FILES, "worked examples before a question; unset: as the prompt style has it, 5 for lm_eval_gsm8k and 8 for lm_eval_gsm8k_cot") \
OPT(std::string, fewshot_data, "", "", IN_FILES, "JSONL whose first rows are lm_eval_gsm8k's examples; empty: GSM8K's training set as data/download gsm8k writes it") \
OPT(std::string, prompt_given, "none", "none|plan|knowledge|subproblems", IN_TRAIN | IN_EVAL, "what of a row is put before its question: SPARKLE's plan, knowledge or subproblems fields") \
OPT(std::string, prompt_template, "", "", IN_FILES, "text around a problem, with {question} or {prompt} in it; empty: the problem, and for rows with a question field how to give the answer") \
OPT(std::string, system_prompt, "", "", IN_FILES | IN_GENERATE, "system message of the chat template; rows of messages that bring one keep it") \
OPT(std::string, chat_template, "auto", "auto|on|off", IN_FILES | IN_GENERATE, "wrap prompts as chat messages; auto: if the tokenizer has a template") \
OPT(std::string, enable_thinking, "auto", "auto|true|false", IN_FILES | IN_GENERATE | IN_TOKENIZE, "Qwen3's thinking switch of the chat template") \
GROUP("comparison") \
OPT(bool, quick, false, "", IN_STUDY, "the study's quick form: fewer seeds, arms and values, as its file says; the whole goes on from there") \
OPT(std::string, claims, "", "", IN_STUDY, "comma list of the study's claims: these alone, with the arms that they need; empty: all claims and arms") \
OPT(int, seeds, 0, "[0, 1000]", IN_STUDY, "seeds 1 to this in place of the study's own; 0: those") \
OPT(int, jobs, 0, "[0, 1024]", IN_STUDY, "runs of a study at a time, which share cores and GPUs; 0: one a GPU, else a core, as far as memory allows") \
OPT(std::string, metric, "auto", "", IN_COMPARE, "of a problem: strict or lenient (share of its sampled completions that are right), pass@K and maj@K (strict, of K samples), greedy or greedy_lenient; auto: strict, and greedy where an evaluation has no samples") \
OPT(std::string, set, "", "", IN_COMPARE, "the one set to compare; empty: all") \
OPT(std::string, pairs, "baseline", "baseline|all", IN_COMPARE, "compare the first evaluation with each of the others, or each with each") \
OPT(double, margin, 0, "[0, 100)", IN_COMPARE, "points within which two evaluations count as equal, which two one-sided tests then test; 0: not tested") \
OPT(int, bootstrap_samples, 10000, "[100, 1000000]", IN_COMPARE, "resamples of the bootstrap, and of the sign flips where an exact test would take too long") \
OPT(std::string, output, "", "", IN_COMPARE | IN_REPORT, "compare: JSON file for all that is printed and more; empty: none; report: the HTML file, or an .svg for the curve alone; empty: report.html in the run's folder, of several runs in the current one") \
GROUP("embedded task") \
OPT(std::string, task, "arithmetic", "", IN_FILES, "problems made up without a data set: arithmetic, chains, knights or words, at levels of difficulty such as chains:2, chains:1-3 or chains:hard; eval takes several, joined by commas; with --model they must be asked for") \
OPT(std::string, embedded_size, "4x128", "", IN_TRAIN, "layers and width of the embedded model, which is made from scratch; the width a multiple of 64") \
OPT(double, cold_start_loss, 0.065, "[1e-06, 10]", IN_GRPO, "the embedded model is first taught by examples until its loss a token is below this") \
GROUP("benchmark") \
OPT(std::string, bench_model, "135m", "{embedded, 135m, 0.5b, 0.6b, 1.5b}", IN_BENCH, "shapes with random weights: the embedded model, SmolLM2-135M, Qwen2.5-0.5B, Qwen3-0.6B, Qwen2.5-1.5B") \
OPT(std::string, part, "operators, sft, decode, grpo", "{ceilings, operators, sft, decode, grpo, growth}", IN_BENCH, "what is measured, after the machine's ceilings: operators one by one, whole steps, and how training grows with batch, context, group and model") \
OPT(double, seconds, 0.1, "[0, 3600]", IN_BENCH, "for each number, of which the best call counts; 0: one call")
// clang-format on

enum OptionType { OPTION_STRING, OPTION_INT, OPTION_UINT64, OPTION_DOUBLE, OPTION_BOOL };
inline constexpr OptionType option_type_of(const std::string*) { return OPTION_STRING; }
inline constexpr OptionType option_type_of(const int*) { return OPTION_INT; }
inline constexpr OptionType option_type_of(const uint64_t*) { return OPTION_UINT64; }
inline constexpr OptionType option_type_of(const double*) { return OPTION_DOUBLE; }
inline constexpr OptionType option_type_of(const bool*) { return OPTION_BOOL; }

struct OptionRow {
    const char* name;  // nullptr: the title of a group, in help
    OptionType type;
    const char* allowed;
    unsigned commands;
    const char* help;
};

static constexpr OptionRow option_rows[] = {
#define GROUP(title) {nullptr, OPTION_BOOL, "", 0, title},
#define OPT(type, name, def, allowed, commands, help) {#name, option_type_of((type*)nullptr), allowed, commands, help},
    OPTION_TABLE(GROUP, OPT)
#undef GROUP
#undef OPT
};
static constexpr int OPTION_ROWS = (int)(sizeof(option_rows) / sizeof(option_rows[0]));

// the row of a name, or -1
inline int option_index(const std::string& name) {
    for (int i = 0; i < OPTION_ROWS; i++)
        if (option_rows[i].name && name == option_rows[i].name) return i;
    return -1;
}

enum OptionsAction {
    OPTIONS_RUN,
    OPTIONS_HELP,
    OPTIONS_MARKDOWN,
    OPTIONS_METHODS,
    OPTIONS_PTQ,
    OPTIONS_REWARDS,
    OPTIONS_VERSION
};

struct Options {
#define GROUP(title)
#define OPT(type, name, def, allowed, commands, help) type name = def;
    OPTION_TABLE(GROUP, OPT)
#undef GROUP
#undef OPT
    Command command = COMMAND_GRPO;
    bool command_given = false;
    std::vector<std::string> arguments;  // what stands beside the flags, for a command with arguments_text()
    OptionsAction action = OPTIONS_RUN;
    bool is_given[OPTION_ROWS] = {};  // on the command line or in --config
    bool is_taken[OPTION_ROWS] = {};  // not given, but with the value that the run of a config.json took

    // did the user set it? (a caller may change only what was not given)
    bool given(const char* name) const {
        int i = option_index(name);
        if (i < 0) fail("no option is called %s", name);
        return is_given[i];
    }
    // `value` unless the user gave the option another
    template <class T>
    void set_default(const char* name, T& field, const T& value) {
        if (!given(name) && !is_taken[option_index(name)]) field = value;
    }
};

// the field behind a row; nullptr for a group's title
inline void* option_field(Options& o, int row) {
    void* fields[] = {
#define GROUP(title) nullptr,
#define OPT(type, name, def, allowed, commands, help) &o.name,
        OPTION_TABLE(GROUP, OPT)
#undef GROUP
#undef OPT
    };
    return fields[row];
}
inline const void* option_field(const Options& o, int row) { return option_field(const_cast<Options&>(o), row); }

// ---------------------------------------------------------------------------------------------------------------------
// what is allowed

struct Interval {
    double low = 0, high = 0;
    bool low_open = false, high_open = false;
};

inline bool is_interval(const char* allowed) { return allowed[0] == '[' || allowed[0] == '('; }
inline bool is_set(const char* allowed) { return allowed[0] == '{'; }

// "(0, 1]" of the table; test_options checks that every row parses
inline Interval parse_interval(const char* allowed) {
    Interval r;
    char open = 0, close = 0;
    if (sscanf(allowed, "%c%lf, %lf%c", &open, &r.low, &r.high, &close) != 4 || (open != '[' && open != '(') ||
        (close != ']' && close != ')') || !(r.low < r.high))
        fail("bad interval '%s' in the table of options", allowed);
    r.low_open = open == '(';
    r.high_open = close == ')';
    return r;
}

inline bool interval_has(const Interval& r, double v) {
    return (r.low_open ? v > r.low : v >= r.low) && (r.high_open ? v < r.high : v <= r.high);
}

// "a|b" or "{a, b}" -> a, b
inline std::vector<std::string> allowed_words(const char* allowed) {
    std::string s = allowed;
    if (s.empty() || is_interval(allowed)) return {};
    if (is_set(allowed)) return split_words(s.substr(1, s.size() - 2), ",");
    return split_words(s, "|");
}

// grpo, sft, ... for a bit mask
inline std::string command_names(unsigned mask, const char* between = ", ") {
    std::vector<std::string> names;
    for (int c = 0; c < COMMAND_COUNT; c++)
        if (mask >> c & 1) names.push_back(command_rows[c].name);
    return join_words(names, between);
}

// ---------------------------------------------------------------------------------------------------------------------
// values as text

// shortest text that reads back as the same number
inline std::string double_text(double v) {
    char buffer[64];
    auto r = std::to_chars(buffer, buffer + sizeof(buffer), v);
    return std::string(buffer, r.ptr);
}

// a default outside of its interval means "not set"
inline bool option_is_set(const Options& o, int row) {
    const OptionRow& r = option_rows[row];
    if (!is_interval(r.allowed)) return true;
    const void* p = option_field(o, row);
    double v = r.type == OPTION_INT ? *(const int*)p : *(const double*)p;
    return interval_has(parse_interval(r.allowed), v);
}

// value as the user would write it
inline std::string option_text(const Options& o, int row) {
    const void* p = option_field(o, row);
    if (!option_is_set(o, row)) return "unset";
    switch (option_rows[row].type) {
        case OPTION_STRING:
            return *(const std::string*)p;
        case OPTION_INT:
            return std::to_string(*(const int*)p);
        case OPTION_UINT64:
            return std::to_string(*(const uint64_t*)p);
        case OPTION_DOUBLE:
            return double_text(*(const double*)p);
        case OPTION_BOOL:
            return *(const bool*)p ? "true" : "false";
    }
    return "";
}

// value as JSON has it; null: unset
inline nlohmann::ordered_json option_json(const Options& o, int row) {
    const void* p = option_field(o, row);
    if (!option_is_set(o, row)) return nullptr;
    switch (option_rows[row].type) {
        case OPTION_STRING:
            return *(const std::string*)p;
        case OPTION_INT:
            return *(const int*)p;
        case OPTION_UINT64:
            return *(const uint64_t*)p;
        case OPTION_DOUBLE:
            return *(const double*)p;
        case OPTION_BOOL:
            return *(const bool*)p;
    }
    return nullptr;
}

template <typename T>
inline bool parse_whole(const std::string& text, T* v) {
    auto r = std::from_chars(text.data(), text.data() + text.size(), *v);
    return r.ec == std::errc() && r.ptr == text.data() + text.size();
}

// Sets one option from text. `where` names it in errors: "--beta x" or "run.json: beta x".
inline void set_option(Options& o, int row, const std::string& text, const std::string& where) {
    const OptionRow& r = option_rows[row];
    void* p = option_field(o, row);
    std::vector<std::string> words = allowed_words(r.allowed);
    std::string range = is_interval(r.allowed) ? std::string("; allowed: ") + r.allowed : "";
    double number = 0;
    switch (r.type) {
        case OPTION_STRING:
            if (is_set(r.allowed)) {
                std::set<std::string> seen;
                for (const std::string& word : split_words(text, ",")) {
                    bool known = false;
                    for (const std::string& w : words) known = known || w == word;
                    if (!known)
                        fail_usage("%s: '%s' is not one of %s%s", where.c_str(), printable(word).c_str(),
                                   join_words(words).c_str(), did_you_mean(word, words).c_str());
                    if (!seen.insert(word).second)
                        fail_usage("%s: '%s' is listed twice", where.c_str(), printable(word).c_str());
                }
            } else if (!words.empty()) {
                bool known = false;
                for (const std::string& w : words) known = known || w == text;
                if (!known)
                    fail_usage("%s: not one of %s%s", where.c_str(), join_words(words).c_str(),
                               did_you_mean(text, words).c_str());
            }
            *(std::string*)p = text;
            return;
        case OPTION_BOOL:
            if (text != "true" && text != "false") fail_usage("%s: not true or false", where.c_str());
            *(bool*)p = text == "true";
            return;
        case OPTION_UINT64: {
            uint64_t v = 0;
            if (!parse_whole(text, &v)) fail_usage("%s: not an integer from 0 to 18446744073709551615", where.c_str());
            *(uint64_t*)p = v;
            return;
        }
        case OPTION_INT: {
            long long v = 0;  // wider than the field: 3000000000 is an integer, but out of range
            auto e = std::from_chars(text.data(), text.data() + text.size(), v);
            if (text.empty() || e.ptr != text.data() + text.size() || e.ec == std::errc::invalid_argument)
                fail_usage("%s: not an integer%s", where.c_str(), range.c_str());
            number = e.ec == std::errc() ? (double)v : std::numeric_limits<double>::infinity();
            break;
        }
        case OPTION_DOUBLE:
            if (!parse_whole(text, &number) || !std::isfinite(number))
                fail_usage("%s: not a number%s", where.c_str(), range.c_str());
            break;
    }
    bool inside = !is_interval(r.allowed) || interval_has(parse_interval(r.allowed), number);
    if (r.type == OPTION_INT) inside = inside && number >= -2147483648.0 && number <= 2147483647.0;
    if (!inside) fail_usage("%s: out of range%s", where.c_str(), range.c_str());
    if (r.type == OPTION_INT) *(int*)p = (int)number;
    else *(double*)p = number;
}

// ---------------------------------------------------------------------------------------------------------------------
// parser

inline std::vector<std::string> option_names(unsigned mask) {
    std::vector<std::string> names;
    for (int i = 0; i < OPTION_ROWS; i++)
        if (option_rows[i].name && (option_rows[i].commands & mask)) names.push_back(option_rows[i].name);
    return names;
}

inline Command parse_command(const std::string& text, const std::string& where) {
    std::vector<std::string> names;
    for (int c = 0; c < COMMAND_COUNT; c++) {
        if (text == command_rows[c].name) return (Command)c;
        names.push_back(command_rows[c].name);
    }
    fail_usage("%sunknown command '%s', not one of %s%s", where.c_str(), printable(text).c_str(),
               join_words(names).c_str(), did_you_mean(text, names).c_str());
}

// The row of a flag of this command. `shown` is how the user wrote it: "flag --x", or "run.json: key x".
inline int option_row_of(const std::string& name, Command command, const std::string& shown, const char* dashes) {
    int row = option_index(name);
    if (row < 0)
        fail_usage("%s is unknown%s (%s --help lists the flags)", shown.c_str(),
                   did_you_mean(name, option_names(1u << command), dashes).c_str(), command_rows[command].name);
    if (!(option_rows[row].commands >> command & 1))
        fail_usage("%s is not used by %s, only by %s", shown.c_str(), command_rows[command].name,
                   command_names(option_rows[row].commands).c_str());
    return row;
}

// Reads --config: one object whose keys are option names. null leaves the default. The keys "command", "version",
// "run_id" and "machine", which config.json of a run has, are understood: the command is taken when the command line names none.
// "arguments" is a list of what stands beside the flags.
inline nlohmann::ordered_json read_config_file(const std::string& path) {
    const std::string file = printable(path, 400);
    std::string text;
    try {
        text = read_file(path, 1 << 20);
    } catch (const Error& e) { fail_usage("--config: %s", e.what()); }
    nlohmann::ordered_json j;
    JsonFault fault;
    if (!json_read(text, {}, &j, &fault)) {
        if (fault.byte == 0) fail_usage("--config %s: %s", file.c_str(), fault.why.c_str());
        const std::string before = text.substr(0, fault.byte - 1);
        const size_t line_start = before.rfind('\n') + 1;  // npos + 1: 0
        fail_usage("--config %s:%zu:%zu: not JSON: %s", file.c_str(),
                   (size_t)std::count(before.begin(), before.end(), '\n') + 1, before.size() - line_start + 1,
                   fault.why.c_str());
    }
    if (!j.is_object()) fail_usage("--config %s: not a JSON object", file.c_str());
    return j;
}

// the key "arguments" of a config file, unless the command line has some
inline void config_arguments(Options& o, const nlohmann::ordered_json& list, const std::string& file) {
    bool texts = list.is_array();
    for (const auto& v : list) texts = texts && v.is_string();
    if (!texts) fail_usage("%sarguments: not a list of texts", file.c_str());
    if (o.arguments.empty()) o.arguments = list.get<std::vector<std::string>>();
}

// What a run adds to its options: `given`, the names of those that the user gave, and `taken`, those of the others whose
// value is not their default, because it follows from the model, the task or other options
inline void add_given(nlohmann::ordered_json& j, const Options& o) {
    const Options normal;
    j["given"] = nlohmann::ordered_json::array();
    j["taken"] = nlohmann::ordered_json::object();
    for (int i = 0; i < OPTION_ROWS; i++) {
        if (!option_rows[i].name || !j.contains(option_rows[i].name)) continue;
        if (o.is_given[i]) j["given"].push_back(option_rows[i].name);
        else if (option_text(o, i) != option_text(normal, i)) j["taken"][option_rows[i].name] = option_json(o, i);
    }
}

// what a run's config.json has beside options; given and taken: see config_given()
inline bool is_about_run(const std::string& key) {
    for (const char* name : {"command", "version", "run_id", "machine", "given", "taken"})
        if (key == name) return true;
    return false;
}

// Does a value of a config file count as given? All do, but those that a run's config.json has only because the run had
// them (add_given), unless they were changed there by hand. Else a rerun would be refused what was never asked for.
inline bool config_given(const nlohmann::ordered_json& j, const std::string& name, const nlohmann::ordered_json& value,
                         int row, const std::string& file) {
    if (!j.contains("given")) return true;
    const nlohmann::ordered_json& given = j["given"];
    const nlohmann::ordered_json taken = j.contains("taken") ? j["taken"] : nlohmann::ordered_json::object();
    if (!given.is_array() || !taken.is_object())
        fail_usage("%sgiven and taken: not a list and an object, as a run writes them", file.c_str());
    if (std::find(given.begin(), given.end(), name) != given.end()) return true;
    if (taken.contains(name)) return taken[name] != value;
    return option_json(Options(), row) != value;
}

inline void apply_config_file(Options& o, const std::string& path) {
    nlohmann::ordered_json j = read_config_file(path);
    std::string file = printable(path, 400) + ": ";
    if (j.contains("command")) {
        if (!j["command"].is_string()) fail_usage("%scommand: not a string", file.c_str());
        Command c = parse_command(j["command"].get<std::string>(), file);
        if (o.command_given && c != o.command)
            fail_usage("%sis for command %s, but the command line says %s", file.c_str(), command_rows[c].name,
                       command_rows[o.command].name);
        o.command = c;
    }
    for (auto& item : j.items()) {
        if (is_about_run(item.key())) continue;
        if (item.key() == "arguments" && *arguments_text(o.command)) {
            config_arguments(o, item.value(), file);
            continue;
        }
        std::string shown = file + "key " + printable(item.key());
        if (item.key() == "config") fail_usage("%s: a config file cannot name another", shown.c_str());
        int row = option_row_of(item.key(), o.command, shown, "");
        const nlohmann::ordered_json& v = item.value();
        if (v.is_null()) continue;
        const bool given = config_given(j, item.key(), v, row, file);
        if (!given && !option_is_set(Options(), row)) continue;  // it follows from others
        OptionType type = option_rows[row].type;
        const char* wanted = type == OPTION_STRING ? "a string" : type == OPTION_BOOL ? "true or false" : "a number";
        bool right = type == OPTION_STRING ? v.is_string() : type == OPTION_BOOL ? v.is_boolean() : v.is_number();
        if (!right) fail_usage("%s: not %s", shown.c_str(), wanted);
        std::string text = v.is_string() ? v.get<std::string>() : v.dump();
        set_option(o, row, text, file + item.key() + " " + printable(text));
        (given ? o.is_given : o.is_taken)[row] = true;
    }
}

// Gives the "unset" options the values they stand for. Called by parse_options().
inline void resolve_options(Options& o) {
    const bool cispo = o.policy_loss == "cispo" || (o.policy_loss == "auto" && o.loss_type == "cispo");
    if (!option_is_set(o, option_index("epsilon_high"))) o.epsilon_high = cispo ? 5.0 : o.epsilon;
    if (!option_is_set(o, option_index("steps_per_generation"))) o.steps_per_generation = o.gradient_accumulation_steps;
}

// is `where` (tensorboard, html) one of --report_to?
inline bool reports_to(const Options& o, const char* where) { return list_has(o.report_to, where); }

// What no single row can check.
inline void check_options(const Options& o) {
    if (o.temperature > 0 && o.temperature < 0.0001)  // logits divided by it would leave the numbers there are
        fail_usage("--temperature %s: less than 0.0001; 0 is greedy", double_text(o.temperature).c_str());
    if (o.command == COMMAND_GRPO && o.temperature == 0)
        fail_usage(
            "--temperature 0: greedy completions of a prompt are all equal, so that grpo has nothing to learn "
            "from; allowed: [0.0001, 100]");
    if (o.temperature == 0 && o.min_p > 0)
        fail_usage("--min_p %s does nothing at --temperature 0, which takes the likeliest token; leave one out",
                   double_text(o.min_p).c_str());
    if (!o.traces.empty() && o.against.empty())
        fail_usage("--traces %s: two models score them; name the reference with --against",
                   printable(o.traces).c_str());
    stop_strings_parse(o.stop_strings);
    if (reports_to(o, "none") && split_words(o.report_to).size() > 1)
        fail_usage("--report_to %s: none stands alone; leave it or the others out", printable(o.report_to).c_str());
    if (o.command == COMMAND_COMPARE && o.arguments.size() < 2)
        fail_usage(
            "compare needs two evaluations at least, folders of train_qrl eval: train_qrl compare BASELINE OTHER ...; "
            "seeds of one arm are joined by commas: a1,a2,a3");
    if (o.command == COMMAND_REPORT && o.arguments.empty())
        fail_usage("report needs the folder of a run, or several: train_qrl report RUN [RUN ...]");
    if (o.command == COMMAND_STUDY && o.arguments.size() != 1)
        fail_usage("study needs one study: a name of eval/studies, or a file: train_qrl study STUDY");
}

// args without the program's name. Throws Error(2) with one line on bad use. help, -h, --help and --version win over
// the other flags: when action is not OPTIONS_RUN, main prints options_answer() and leaves.
inline Options parse_options(const std::vector<std::string>& args) {
    Options o;
    size_t at = 0;
    if (at < args.size() && args[at] == "help") {
        o.action = OPTIONS_HELP;
        at++;
        for (const auto& [word, action] : {std::pair("markdown", OPTIONS_MARKDOWN),
                                           {"methods", OPTIONS_METHODS},
                                           {"ptq", OPTIONS_PTQ},
                                           {"rewards", OPTIONS_REWARDS}})
            if (at < args.size() && args[at] == word) {
                o.action = action;
                return o;
            }
    }
    if (at < args.size() && (args[at].empty() || args[at][0] != '-')) {
        o.command = parse_command(args[at++], "");
        o.command_given = true;
    }
    for (size_t i = at; i < args.size(); i++) {
        if (args[i] == "--help" || args[i] == "-h") o.action = OPTIONS_HELP;
        else if (args[i] == "--version" && o.action == OPTIONS_RUN) o.action = OPTIONS_VERSION;
    }
    if (o.action != OPTIONS_RUN) return o;

    // the flags as written; the command that checks them may still come from --config
    std::vector<std::pair<std::string, std::string>> flags;
    std::set<std::string> seen;
    while (at < args.size()) {
        const std::string& arg = args[at++];
        if (arg[0] != '-') {
            o.arguments.push_back(arg);
            continue;
        }
        if (arg.size() < 3 || arg.compare(0, 2, "--") != 0)
            fail_usage("unexpected argument '%s': flags start with --, a value follows its flag",
                       printable(arg).c_str());
        size_t equals = arg.find('=');
        std::string name = arg.substr(2, equals == std::string::npos ? equals : equals - 2), value;
        int row = option_index(name);
        bool has_next = at < args.size() && args[at].compare(0, 2, "--") != 0;
        if (equals != std::string::npos) value = arg.substr(equals + 1);
        else if (row >= 0 && option_rows[row].type == OPTION_BOOL) value = has_next ? args[at++] : "true";
        else if (has_next) value = args[at++];
        else if (row >= 0)
            fail_usage("--%s needs a value%s%s (write --%s=VALUE for a value that starts with --)", name.c_str(),
                       option_rows[row].allowed[0] ? ": " : "", option_rows[row].allowed, name.c_str());
        if (!seen.insert(name).second) fail_usage("--%s is given twice", printable(name).c_str());
        if (name == "config") o.config = value;
        flags.push_back({name, value});
    }
    if (seen.count("config")) {
        if (o.config.empty()) fail_usage("--config needs a file name");
        apply_config_file(o, o.config);
    }
    if (!o.arguments.empty() && !*arguments_text(o.command))
        fail_usage("unexpected argument '%s': flags start with --, a value follows its flag",
                   printable(o.arguments[0]).c_str());
    for (const auto& flag : flags) {
        int row = option_row_of(flag.first, o.command, "flag --" + printable(flag.first), "--");
        set_option(o, row, flag.second, "--" + flag.first + " " + printable(flag.second));
        o.is_given[row] = true;
    }
    resolve_options(o);
    check_options(o);
    return o;
}

inline Options parse_options(int argc, char** argv) {
    return parse_options(std::vector<std::string>(argv + (argc > 0), argv + argc));
}

// ---------------------------------------------------------------------------------------------------------------------
// what the table prints

// the group's title lines and rows that `mask` uses, in order
inline std::vector<int> rows_for(unsigned mask) {
    std::vector<int> rows;
    for (int i = 0; i < OPTION_ROWS; i++) {
        if (option_rows[i].name) {
            if (option_rows[i].commands & mask) rows.push_back(i);
        } else {
            if (!rows.empty() && !option_rows[rows.back()].name) rows.pop_back();  // a group without rows
            rows.push_back(i);
        }
    }
    if (!rows.empty() && !option_rows[rows.back()].name) rows.pop_back();
    return rows;
}

// allowed values in words: "grpo, dr_grpo", "[2, 1024]", "list of all, q, k", "text"
inline std::string allowed_text(int row) {
    const OptionRow& r = option_rows[row];
    if (is_interval(r.allowed)) return (r.type == OPTION_INT ? "integer " : "number ") + std::string(r.allowed);
    if (is_set(r.allowed)) return "list of " + join_words(allowed_words(r.allowed));
    if (r.allowed[0]) return join_words(allowed_words(r.allowed));
    switch (r.type) {
        case OPTION_STRING:
            return "text";
        case OPTION_INT:
            return "integer";
        case OPTION_UINT64:
            return "integer >= 0";
        case OPTION_DOUBLE:
            return "number";
        case OPTION_BOOL:
            return "true, false";
    }
    return "";
}

// --help of one command
inline std::string options_help(const Options& o) {
    std::string s = "usage: train_qrl [command] [--flag value | --flag=value ...]\n\ncommands\n";
    for (int c = 0; c < COMMAND_COUNT; c++) s += format("  %-10s %s\n", command_rows[c].name, command_rows[c].help);
    s += format("  %-10s the flags of a command: train_qrl help sft\n", "help");
    if (*arguments_text(o.command))
        s += format("\nusage: train_qrl %s %s [--flag value ...]\n", command_rows[o.command].name,
                    arguments_text(o.command));
    s += format("\nflags of %s, with their defaults", command_rows[o.command].name);
    Options defaults;
    for (int i : rows_for(1u << o.command)) {
        const OptionRow& r = option_rows[i];
        if (!r.name) {
            s += format("\n\n%s", r.help);
            continue;
        }
        std::string value = option_text(defaults, i);
        if (value.empty()) value = "\"\"";
        s += format("\n  --%-28s %-10s %s", r.name, value.c_str(), r.help);
        if (r.allowed[0])
            s += format(" %s", is_interval(r.allowed) || is_set(r.allowed)
                                   ? r.allowed
                                   : ("{" + join_words(allowed_words(r.allowed), "|") + "}").c_str());
    }
    return s + "\n";
}

// the rows of a command whose value is not the default
inline std::vector<int> changed_rows(const Options& o) {
    Options defaults;
    resolve_options(defaults);
    std::vector<int> rows;
    for (int i : rows_for(1u << o.command))
        if (option_rows[i].name && option_text(o, i) != option_text(defaults, i)) rows.push_back(i);
    return rows;
}

// What differs from the defaults, each with its default: `* learning_rate  5e-06  (default 1e-06)`
inline std::string options_print(const Options& o) {
    Options defaults;
    resolve_options(defaults);
    std::string s = format("train_qrl %s %s\n", TRAIN_QRL_VERSION, command_rows[o.command].name);
    auto show = [](const std::string& v) { return v.empty() ? std::string("\"\"") : printable(v, 200); };
    int others = 0;
    for (int i : rows_for(1u << o.command)) {
        const OptionRow& r = option_rows[i];
        if (!r.name) continue;
        const std::string value = option_text(o, i), normal = option_text(defaults, i);
        if (value != normal)
            s += format("* %-28s %s  (default %s)\n", r.name, show(value).c_str(), show(normal).c_str());
        else others++;
    }
    return s +
           format("  %d others are at their defaults; %s --help tells of them\n", others, command_rows[o.command].name);
}

// Everything that applies to the command, in the table's order; --config FILE reads it back. Left out are --config itself,
// whose values are in here, and what goes on with a run or replaces one: to repeat a run is to begin it.
inline nlohmann::ordered_json options_to_json(const Options& o) {
    nlohmann::ordered_json j;
    j["version"] = TRAIN_QRL_VERSION;
    j["command"] = command_rows[o.command].name;
    if (*arguments_text(o.command)) j["arguments"] = o.arguments;
    for (int i = 0; i < OPTION_ROWS; i++) {
        const OptionRow& r = option_rows[i];
        const std::string name = r.name ? r.name : "config";
        if (!(r.commands >> o.command & 1) || name == "config" || name == "resume_from_checkpoint" ||
            name == "resume" || name == "overwrite_output_dir")
            continue;
        j[r.name] = option_json(o, i);
    }
    return j;
}

// The table of docs/flags.md.
inline std::string options_markdown() {
    auto cell = [](const std::string& text) {
        std::string s;
        for (char c : text) s += c == '|' ? std::string("\\|") : std::string(1, c);
        return s;
    };
    std::string s = "| flag | default | allowed | commands | meaning |\n| --- | --- | --- | --- | --- |\n";
    Options defaults;
    for (int i = 0; i < OPTION_ROWS; i++) {
        const OptionRow& r = option_rows[i];
        if (!r.name) continue;
        std::string value = option_text(defaults, i);
        if (!value.empty()) value = "`" + cell(value) + "`";
        std::string commands = r.commands == IN_ALL ? "all" : command_names(r.commands);
        s += "| `--" + std::string(r.name) + "` | " + value + " | " + cell(allowed_text(i)) + " | " + commands + " | " +
             cell(r.help) + " |\n";
    }
    return s;
}

// The text for help and version, but for help methods, help ptq and help rewards, whose tables lie above.
inline std::string options_answer(const Options& o) {
    if (o.action == OPTIONS_VERSION) return format("train_qrl %s\n", TRAIN_QRL_VERSION);
    return o.action == OPTIONS_MARKDOWN ? options_markdown() : options_help(o);
}
