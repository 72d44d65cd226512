#!/usr/bin/env python3
"""Writes the seeds seed_* of test/fuzz/corpus/: small valid files of every kind, made of formulas alone. What the
fuzzer found has a name of its own there and is not touched.   test/fuzz/make_corpus.py (in the root of the tree)"""
import json
import os
import struct

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus")


def seed(target, name, data):
    folder = os.path.join(ROOT, target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "seed_" + name), "wb") as f:
        f.write(data.encode() if isinstance(data, str) else data)


def files(**parts):
    """several files as fuzz.h takes them; _ in a name stands for a dot, __ for _"""
    out = b""
    for name, data in parts.items():
        name = name.replace("__", "\0").replace("_", ".").replace("\0", "_")
        data = data if isinstance(data, (bytes, str)) else json.dumps(data)
        out += (b"\n" if out else b"") + b"=== " + name.encode() + b"\n"
        out += data.encode() if isinstance(data, str) else data
    return out


def noise(n, start=1):
    """n bytes of a linear congruential generator"""
    out, x = bytearray(), start
    for _ in range(n):
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF
        out.append(x >> 16 & 255)
    return bytes(out)


def floats(n, value=None):
    return b"".join(struct.pack("<f", (i % 7 - 3) * 0.25 if value is None else value) for i in range(n))


def half(n, bits=0x2C00):  # 1/16
    return struct.pack("<H", bits) * n


def safetensors(tensors, metadata=None):
    """tensors: name -> (dtype, shape, bytes)"""
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


# ---- safetensors ----------------------------------------------------------------------------------------------------

small = {"b": ("F32", [2, 2], floats(4)), "a.weight": ("BF16", [3], half(3, 0x3F80)), "u": ("U8", [0, 4], b"")}
seed("safetensors", "three", safetensors(small, {"format": "pt"}))
types = ["BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64",
         "I64", "U64", "C64"]
width = {"16": 2, "32": 4, "64": 8}
seed("safetensors", "types", safetensors({t: (t, [2], noise(2 * width.get(t[-2:], 1))) for t in types}))
seed("safetensors", "halfbytes", safetensors({"f4": ("F4", [2, 2], noise(2)), "f6": ("F6_E2M3", [4], noise(3))}))
seed("safetensors", "empty", safetensors({}))
seed("safetensors", "scalar", safetensors({"x": ("F32", [], floats(1))}, {"a": "b", "format": "pt"}))
seed("safetensors", "shards", files(
    model_safetensors_index_json={"metadata": {"total_size": 8},
                                  "weight_map": {"x": "a.safetensors", "y": "b.safetensors"}},
    a_safetensors=safetensors({"x": ("F32", [1], floats(1))}),
    b_safetensors=safetensors({"y": ("F32", [1], floats(1))}, {"format": "pt"})))

# ---- config ---------------------------------------------------------------------------------------------------------

qwen3 = {"model_type": "qwen3", "vocab_size": 101, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "max_position_embeddings": 64,
         "rms_norm_eps": 1e-6, "rope_theta": 1000000, "tie_word_embeddings": True, "hidden_act": "silu",
         "attention_bias": False, "use_sliding_window": False, "eos_token_id": [1, 2], "bos_token_id": 3,
         "torch_dtype": "bfloat16", "architectures": ["Qwen3ForCausalLM"]}
qwen2 = {k: v for k, v in qwen3.items() if k not in ("head_dim", "attention_bias")}
qwen2.update(model_type="qwen2", layer_types=["full_attention"] * 2, online_rotations={"qk": 16, "down": 32})
llama = dict(qwen3, model_type="llama", mlp_bias=False, eos_token_id=7, pad_token_id=0, rope_scaling={
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192})
newer = dict(qwen3, dtype="float32", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
for k in ("rope_theta", "torch_dtype"):
    del newer[k]
seed("config", "qwen3", json.dumps(qwen3))
seed("config", "qwen2", files(config_json=qwen2, generation__config_json={"eos_token_id": [5, 6], "top_p": 0.9}))
seed("config", "llama", json.dumps(llama, indent=2))
seed("config", "newer", json.dumps(newer))

# ---- tokenizer ------------------------------------------------------------------------------------------------------

gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
bare = dict(gpt2, use_regex=False)


def tokenizer(pre, **more):
    model = {"type": "BPE", "vocab": {"@bytes": 0, "th": 256, "the": 257, "\u0120the": 258, "12": 259, "\u0120t": 260},
             "merges": ["t h", "th e", ["\u0120t", "he"], "1 2"]}
    model["vocab"]["he"] = 261
    model["merges"] = ["t h", "th e", "\u0120 t", ["h", "e"], "\u0120t he", "1 2"]
    model.update(more.pop("model", {}))
    j = {"version": "1.0", "added_tokens": [
        {"id": 262, "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}] + more.pop("added", []),
        "normalizer": None, "pre_tokenizer": pre, "post_processor": None, "decoder": gpt2, "model": model}
    j.update(more)
    return j


# the regular expressions of Qwen2's and Llama 3's splits, which tokenizer.h knows by their text
qwen2_regex = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
               r"\s+(?!\S)|\s+")
llama3_regex = qwen2_regex.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def split(regex):
    return {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}, bare]}


text = "The theory: 12 tales, don't <|end|>  \n caf\u00e9 \u4f60\u597d 1234\t!"
seed("tokenizer", "gpt2", files(tokenizer_json=tokenizer(gpt2), text=text))
seed("tokenizer", "qwen2", files(
    tokenizer_json=tokenizer(split(qwen2_regex), normalizer={"type": "NFC"}), text="cafe\u0301 " + text,
    tokenizer__config_json={"eos_token": "<|end|>", "pad_token": {"content": "<|pad|>"}, "model_max_length": 512,
                            "chat_template": "{{ x }}", "bos_token": None},
    generation__config_json={"eos_token_id": [262, 5]}))
bos = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}},
                                                {"Sequence": {"id": "A", "type_id": 0}}]}
seed("tokenizer", "llama3", files(
    tokenizer_json=tokenizer(split(llama3_regex), model={"ignore_merges": True},
                             post_processor={"type": "Sequence", "processors": [bare, bos]}), text=text))
smol = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, gpt2]}
seed("tokenizer", "smollm", files(
    tokenizer_json=tokenizer(smol, added=[
        {"id": 263, "content": "cat", "single_word": True, "lstrip": True, "rstrip": True, "normalized": True,
         "special": False}]), text=text + " cat concat cat",
    special__tokens__map_json={"unk_token": "<|end|>", "eos_token": "<|end|>"}, chat__template_jinja="{{ messages }}"))
seed("tokenizer", "vocab_merges", files(
    vocab_json='{"@bytes":0,"th":256,"the":257}', merges_txt="#version: 0.2\nt h\nth e\n", text=text,
    tokenizer__config_json={"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": {
        "258": {"content": "<|endoftext|>", "special": True}}}))
seed("tokenizer", "long_word", files(tokenizer_json=tokenizer(gpt2), text="the" * 40 + " " + "12" * 40))

# ---- dataset --------------------------------------------------------------------------------------------------------

rows = {
    "gsm8k": [{"question": "What is 3 + 4?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"},
              {"question": "Half of 2,468?", "answer": "It is\n#### 1,234"}],
    "trl": [{"prompt": "2 + 2 =", "ground_truth": 4}, {"prompt": [{"role": "user", "content": "Hi"}], "answer": "x"},
            {"prompt": "a", "completion": " b"}, {"prompt": "x", "label": "\\boxed{3}"}],
    "math": [{"problem": "Find $x$.", "solution": "So $\\boxed{\\frac{1}{2}}$."}, {"problem": "p", "answer": "7"}],
    "messages": [{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"},
                               {"role": "assistant", "content": "a"}]},
                 {"prompt": [{"role": "user", "content": "u"}], "completion": [{"role": "assistant", "content": "a"}]},
                 {"text": "plain"}],
}
for name, list_ in rows.items():
    seed("dataset", name, "\n".join(json.dumps(r) for r in list_) + "\n")
seed("dataset", "marks", "\ufeff" + json.dumps(rows["gsm8k"][0]) + "\r\n\n \t\n\ufeff" +
     json.dumps({"question": "caf\u00e9", "answer": "#### -1/2"}, ensure_ascii=False))

# ---- chat -----------------------------------------------------------------------------------------------------------

chatml = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>'"
          " + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
llama3 = ("{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' +"
          " message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0"
          " == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if"
          " add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}")
talk = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2+2? caf\u00e9"},
        {"role": "assistant", "content": "<think>\neasy\n</think>\n\n4"}, {"role": "user", "content": "And 3+3?"}]
tool_talk = [{"role": "user", "content": "Weather?"},
             {"role": "assistant", "content": "", "tool_calls": [
                 {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "n": 1.5e-7}}}]},
             {"role": "tool", "content": "sunny"}, {"role": "tool", "content": "hot"},
             {"role": "assistant", "content": "Nice.", "reasoning_content": "r"}]
tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "required": [True, None],
                                                                            "x": [1, -2, 1e22, 0.1]}}}]
seed("chat", "chatml", files(template=chatml, messages=talk))
seed("chat", "llama3", files(template=llama3, messages=talk))
seed("chat", "tools", files(template="{# note #}{%- if tools %}\n  {{- x['role'] -}} {% endif %}", messages=tool_talk,
                            tools=tools))

# ---- grader ---------------------------------------------------------------------------------------------------------

pairs = [("7", "3 + 4 = 7\n#### 7"), ("1/2", "So \\boxed{\\frac{1}{2}}."), ("0.5", "The answer is 50\\%."),
         ("1,234.50", "\\boxed{\\$1{,}234.5}"), ("(1, 2]", "\\boxed{1 < x \\le 2}"), ("x=3, y=4", "$(3,4)$"),
         ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\boxed{\\begin{pmatrix}1&2\\\\3&4.0\\end{pmatrix}}"),
         ("\\sqrt{8}+\\pi", "<think>no</think> \\boxed{2\\sqrt{2}+\\pi}"), ("C", "The answer is (C) 12."),
         ("x^2-1", "\\boxed{(x-1)(x+1)}"), ("\\{1,2,3\\}", "\\boxed{3, 2, 1}"), ("2 \\pm \\sqrt{3}", "\\fbox{2 \\pm 3^{1/2}}"),
         ("(-\\infty,0)\\cup(1,2)", "\\boxed{x<0 \\text{ or } 1<x<2}"), ("5!", "\\boxed{\\binom{10}{3}}"),
         ("0.\\overline{3}", "\u7b54\u6848\uff1a\u2153 1/3"), ("y = 2x + 1", "\\boxed{2x - y + 1 = 0}"),
         ("12:30", "#### 12:30"), ("\\log_2 8", "\\boxed{\\ln(e^3)}"), ("3\\text{ m}", "\\boxed{3 m}"),
         ("10^{30}", "\\boxed{1e30}"), ("i", "\\boxed{\\sqrt{-1}}"), ("no solution", "\\boxed{\\text{No Solution}}")]
for i, (gold, completion) in enumerate(pairs):
    seed("grader", "%02d" % i, files(completion=completion, gold=gold))

# ---- options --------------------------------------------------------------------------------------------------------

seed("options", "grpo", "grpo\n--model\nm\n--learning_rate\n1e-5\n--weights=int4:g64:sym\n--k_pre_bias\n--beta=0.5")
seed("options", "sft", files(args="sft\n--lora_r=16\n--weights\nnf4:g64:dq\n--quantize_layers=q,k",
                             run_json={"seed": 3, "max_steps": 7, "optim": "muon", "lora_target": "all"}))
seed("options", "rules", "eval\n--weights\nint3:g128:asym; down=int4:g128:asym; layers.0,layers.29=int8:channel; "
     "*.self_attn.*=none; embed=int8:channel\n--activations=int8:token; o=none\n--kv_cache=int4:token:asym;layers.0-3=none")
seed("options", "config", files(run_json={"command": "quantize", "version": "0.1.0", "run_id": "x", "ptq": "rotate+gptq",
                                          "rotations": "r1,r2", "act_order": False, "damp_percent": 0.1,
                                          "weights": "int8:channel:asym:mse"}))
seed("options", "formats", "eval\n--weights=fp8e4m3:128x128\n--activations=mxfp8\n--kv_cache=fp8e5m2:token\n--top_p=0.9")
seed("options", "rewards", "--reward_funcs=exact,format\n--reward_weights=1,0.1\n--loss_type=bnpo\n--epsilon_high=0.3")
seed("options", "help", "help\nsft")
seed("options", "ternary", "distill\n--weights=ternary\n--qat_scale\nlearned\n--kd_alpha=0.5\n--seed=18446744073709551615")
