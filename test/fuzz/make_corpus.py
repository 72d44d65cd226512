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
        data = data if isinstance(data, (bytes, str)) else json.dumps(data, separators=(",", ":"))
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
    "published": [{"input": "q", "code": "def f():", "target": -1.5e+22},
                  {"ID": "chal-1", "Body": "Six cats", "Question": "How many?", "Answer": 6.0, "Type": "Sum"},
                  {"id": 7, "context": "c", "question": "q", "final_answer": ["$2$", "3"], "is_multiple_answer": True,
                   "unit": "cm", "subfield": "Algebra"},
                  {"Problem": "q", "Answer": 204, "ID": "2024-I-1"}, {"question": "q", "problem": "q", "answer": "27.0"},
                  {"prompt": [{"role": "user", "content": "q"}], "data_source": "d", "extra_info": {"index": 3},
                   "reward_model": {"style": "rule", "ground_truth": "72"}}],
    "options": [{"Question": "q", "Correct Answer": "a", "Incorrect Answer 1": "b", "Incorrect Answer 2": "c",
                 "Incorrect Answer 3": "d", "Subdomain": "s"},
                {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
                {"question": "q", "options": ["x", 5], "answer": "A"}],
    "given": [{"problem": "q", "answer": "1", "planning": "p", "knowledge": {"fact": ["f", "g"]},
               "subproblems": {"1q": "s", "1a": "t"}},
              {"prompt": [{"role": "user", "content": "q"}], "answer": "1", "plan": ["p"], "knowledge": "k",
               "sub_problems": [{"question": "s", "answer": "t"}], "tools": [{"type": "function"}]}],
}
for name, list_ in rows.items():
    seed("dataset", name, "\n".join(json.dumps(r) for r in list_) + "\n")
for name in ("options", "published"):
    seed("dataset", "list_" + name, "\ufeff" + json.dumps(rows[name], indent=1) + "\n[" + json.dumps(rows[name][0]) + "]")
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
         ("x^2-1", "\\boxed{(x-1)(x+1)}"), ("\\{1,2,3\\}", "\\boxed{3, 2, 1}"),
         ("2 \\pm \\sqrt{3}", "\\fbox{2 \\pm 3^{1/2}}"),
         ("(-\\infty,0)\\cup(1,2)", "\\boxed{x<0 \\text{ or } 1<x<2}"), ("5!", "\\boxed{\\binom{10}{3}}"),
         ("0.\\overline{3}", "\u7b54\u6848\uff1a\u2153 1/3"), ("y = 2x + 1", "\\boxed{2x - y + 1 = 0}"),
         ("12:30", "#### 12:30"), ("\\log_2 8", "\\boxed{\\ln(e^3)}"), ("3\\text{ m}", "\\boxed{3 m}"),
         ("10^{30}", "\\boxed{1e30}"), ("i", "\\boxed{\\sqrt{-1}}"), ("no solution", "\\boxed{\\text{No Solution}}"),
         ("\\lfloor(2n-1)/5\\rfloor", "\\boxed{\\lceil(2n-5)/5\\rceil}"), ("\\gcd(m,n)", "#### gcd(n, m)"),
         ("1,2,100", "\\boxed{100, 2, 1}"), ("(a) 5 (b) 7", "\\boxed{5, 7}"), ("7!! - (-1)^n", "\\boxed{105-(-1)^{n+2}}"),
         ("\\mathbb{R} \\setminus \\{0\\}", "\\boxed{x \\ne 0}"), ("2^2 3^4", "#### 324"),
         ("2\\sqrt{3}\\text{ cm}^2", "\\boxed{\\sqrt{12}\\ \\frac{\\text{m}}{\\text{s}}}"),
         ("2\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\boxed{\\begin{pmatrix}2\\\\4\\end{pmatrix}}"),
         ("x \\equiv 1 \\pmod{3}", "\\boxed{4 (mod 3)}"), ("f(2x)", "\\boxed{2f(x), f(x+x)}")]
for i, (gold, completion) in enumerate(pairs):
    seed("grader", "%02d" % i, files(completion=completion, gold=gold))

# ---- options --------------------------------------------------------------------------------------------------------

seed("options", "grpo", "grpo\n--model\nm\n--learning_rate\n1e-5\n--weights=int4:g64:sym\n--k_pre_bias\n--beta=0.5")
seed("options", "sft", files(args="sft\n--lora_r=16\n--weights\nnf4:g64:dq\n--quantize_layers=q,k",
                             run_json={"seed": 3, "max_steps": 7, "optim": "muon", "lora_target": "all"}))
seed("options", "rules", "eval\n--weights\nint3:g128:asym; down=int4:g128:asym; layers.0,layers.29=int8:channel; "
     "*.self_attn.*=none; embed=int8:channel\n--activations=int8:token; o=none\n"
     "--kv_cache=int4:token:asym;layers.0-3=none")
seed("options", "config", files(run_json={"command": "quantize", "version": "0.1.0", "run_id": "x",
                                          "ptq": "rotate+gptq",
                                          "rotations": "r1,r2", "act_order": False, "damp_percent": 0.1,
                                          "weights": "int8:channel:asym:mse"}))
seed("options", "formats",
     "eval\n--weights=fp8e4m3:128x128\n--activations=mxfp8\n--kv_cache=fp8e5m2:token\n--top_p=0.9")
seed("options", "rewards", "--reward_funcs=exact,format\n--reward_weights=1,0.1\n--loss_type=bnpo\n--epsilon_high=0.3")
seed("options", "help", "help\nsft")
seed("options", "ternary",
     "distill\n--weights=ternary\n--qat_scale\nlearned\n--kd_alpha=0.5\n--seed=18446744073709551615")

# ---- gguf -----------------------------------------------------------------------------------------------------------

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9


def gtext(s):
    s = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(s)) + s


def gvalue(v):
    if isinstance(v, bool):
        return struct.pack("<IB", BOOL, v)
    if isinstance(v, int):
        return struct.pack("<II", U32, v)
    if isinstance(v, float):
        return struct.pack("<If", F32, v)
    if isinstance(v, str):
        return struct.pack("<I", STRING) + gtext(v)
    if isinstance(v[0], str):
        return struct.pack("<IIQ", ARRAY, STRING, len(v)) + b"".join(gtext(x) for x in v)
    return struct.pack("<IIQ", ARRAY, I32, len(v)) + struct.pack("<%di" % len(v), *v)


def gguf(pairs, tensors, version=3, align=32):
    """tensors: name -> (type, shape as in Hugging Face, bytes)"""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    head += b"".join(gtext(k) + gvalue(v) for k, v in pairs.items())
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        head += gtext(name) + struct.pack("<I", len(shape)) + struct.pack("<%dQ" % len(shape), *shape[::-1])
        head += struct.pack("<IQ", kind, len(data))
        data += raw + b"\0" * (-len(raw) % align)
    return head + b"\0" * (-len(head) % align) + data


def gconfig(arch, **more):
    a = arch + "."
    pairs = {"general.architecture": arch, a + "block_count": 1, a + "context_length": 8, a + "embedding_length": 32,
             a + "feed_forward_length": 32, a + "attention.head_count": 2, a + "attention.head_count_kv": 1,
             a + "attention.layer_norm_rms_epsilon": 1e-6, a + "rope.freq_base": 10000.0}
    pairs.update(more)
    return pairs


def gmodel(kind, raw, biases=()):
    """the tensors of one layer; raw(rows, cols): the bytes of a matrix of type kind"""
    t = {"token_embd.weight": (0, [4, 32], floats(128)), "output_norm.weight": (0, [32], floats(32, 1.0))}
    for name in ("attn_norm", "ffn_norm"):
        t["blk.0.%s.weight" % name] = (0, [32], floats(32, 1.0))
    for name, rows in (("attn_q", 32), ("attn_k", 16), ("attn_v", 16), ("attn_output", 32), ("ffn_gate", 32),
                       ("ffn_up", 32), ("ffn_down", 32)):
        t["blk.0.%s.weight" % name] = (kind, [rows, 32], raw(rows, 32))
        if name in biases:
            t["blk.0.%s.bias" % name] = (0, [rows], floats(rows))
    return t


def blocks(size, scale_at, nonzero=b"\x00\x2c"):
    def raw(rows, cols):
        out = b""
        for i in range(rows * cols // 32):
            b = bytearray(noise(size, i + 1))
            for at in scale_at:
                b[at:at + 2] = nonzero
            out += bytes(b)
        return out
    return raw


seed("gguf", "f16_qwen2", gguf(gconfig("qwen2"), gmodel(1, lambda r, c: half(r * c), ("attn_q", "attn_k", "attn_v"))))
seed("gguf", "q4_0_llama", gguf(gconfig("llama", **{"llama.rope.dimension_count": 16}), gmodel(2, blocks(18, [0]))))
norms = {"blk.0.attn_%s_norm.weight" % k: (0, [16], floats(16, 1.0)) for k in "qk"}
seed("gguf", "q8_0_qwen3", gguf(gconfig("qwen3", **{"qwen3.attention.key_length": 16}),
                                dict(gmodel(8, blocks(34, [0])), **norms), version=2))
# one tensor of each type: id -> (values of a block, its bytes)
kinds = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
         11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 30: (1, 2), 34: (256, 54), 35: (256, 66),
         39: (32, 17), 40: (64, 36), 42: (64, 18)}
seed("gguf", "types", gguf({}, {"t%d" % k: (k, [n], noise(size, k + 1)) for k, (n, size) in kinds.items()}))
rope = {"rope_freqs.weight": (0, [8], floats(8, 1.0))}
seed("gguf", "rope_freqs", gguf(gconfig("llama"), {"token_embd.weight": (0, [4, 32], floats(128)), **rope}))


def byte_chars():
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) if b in plain else chr(256 + [x for x in range(256) if x not in plain].index(b)) for b in range(256)]


seed("gguf", "tokenizer", gguf(
    {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "general.name": "the 12 <s> th",
     "tokenizer.ggml.tokens": byte_chars() + ["th", "the", "<s>"], "tokenizer.ggml.token_type": [1] * 258 + [3],
     "tokenizer.ggml.merges": ["t h", "th e"], "tokenizer.ggml.bos_token_id": 258, "tokenizer.ggml.add_bos_token": True,
     "tokenizer.chat_template": "{{ x }}"}, {}))

# ---- containers -----------------------------------------------------------------------------------------------------

Q, OUT, IN = "model.layers.0.self_attn.q_proj", 32, 64  # q_proj of fuzz_containers.cpp: [32, 64]
K = "model.layers.0.self_attn.k_proj"


def container(name, config, tensors, **more):
    seed("containers", name, files(config_json={"quantization_config": config}, **more,
                                   model_safetensors=safetensors(tensors)))


def gptq(bits, group, zeros=None, order=None):
    g = IN // group if group > 0 else 1
    z = zeros if zeros is not None else b"\x77" * (g * OUT * bits // 8)
    t = {Q + ".qweight": ("I32", [IN * bits // 32, OUT], noise(IN * OUT * bits // 8)),
         Q + ".qzeros": ("I32", [g, OUT * bits // 32], z), Q + ".scales": ("F16", [g, OUT], half(g * OUT))}
    if order:
        t[Q + ".g_idx"] = ("I32", [IN], struct.pack("<%di" % IN, *order))
    return t


conf = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
container("gptq4", conf, gptq(4, 32, order=[i // 32 for i in range(IN)]))
container("gptq4_narrow", conf, gptq(4, 32), quantizer_json={"weights": "none; q=int3:g32:sym"})
container("gptq8_tensor", dict(conf, bits=8, group_size=-1), gptq(8, -1, zeros=b"\x7f" * OUT),
          quantizer_json={"weights": "none; self_attn.q_proj=none; q=int8:tensor:sym"})
container("gptq4_order", dict(conf, desc_act=True), gptq(4, 32, order=[(i + 1) // 2 % 2 for i in range(IN)]))
container("gptq3", dict(conf, bits=3, checkpoint_format="gptq_v2"), gptq(3, 32, zeros=noise(2 * OUT * 3 // 8)))
container("gptq8", dict(conf, bits=8, group_size=-1), gptq(8, -1, zeros=b"\x7f" * OUT))
seed("containers", "gptq2_old", files(config_json={}, quantize__config_json=dict(conf, bits=2, group_size=64),
                                      model_safetensors=safetensors(gptq(2, 64, zeros=b"\x55" * (OUT // 4)))))
container("awq", {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}, {
    Q + ".qweight": ("I32", [IN, OUT // 8], noise(IN * OUT // 2)), Q + ".qzeros": ("I32", [2, OUT // 8], noise(OUT)),
    Q + ".scales": ("F16", [2, OUT], half(2 * OUT))})


def compressed(fmt, bits, kind, strategy, group=None, sym=True, tile=None):
    w = {"num_bits": bits, "type": kind, "symmetric": sym, "strategy": strategy, "group_size": group}
    if tile:
        w["block_structure"] = tile
    return {"quant_method": "compressed-tensors", "format": fmt, "ignore": ["lm_head"], "config_groups": {
        "group_0": {"targets": ["Linear"], "weights": w, "input_activations": None, "format": fmt}}}


shape64 = ("I64", [2], struct.pack("<qq", OUT, IN))
packed = ("I32", [OUT, IN // 8], noise(OUT * IN // 2))
container("ct_int4", compressed("pack-quantized", 4, "int", "group", 32, sym=False), {
    Q + ".weight_packed": packed, Q + ".weight_scale": ("BF16", [OUT, 2], half(2 * OUT, 0x3D80)),
    Q + ".weight_zero_point": ("I32", [OUT // 8, 2], noise(OUT)), Q + ".weight_shape": shape64})
container("ct_int3_old", compressed("pack-quantized", 3, "int", "channel"), {
    Q + ".weight_packed": ("I32", [OUT, 7], noise(OUT * 28)), Q + ".weight_shape": shape64,
    Q + ".weight_scale": ("F32", [OUT, 1], floats(OUT, 0.125))})
container("ct_int8", compressed("int-quantized", 8, "int", "channel"), {
    Q + ".weight": ("I8", [OUT, IN], noise(OUT * IN)), Q + ".weight_scale": ("BF16", [OUT, 1], half(OUT, 0x3D80))})
regex = compressed("int-quantized", 8, "int", "tensor")
regex["config_groups"]["group_0"]["targets"] = ["re:.*q_proj$", K]
container("ct_regex", regex, {Q + ".weight": ("I8", [OUT, IN], noise(OUT * IN)),
                              Q + ".weight_scale": ("F32", [1], floats(1, 0.125))})
finite8 = bytes(b & 0xF7 for b in noise(OUT * IN))
container("ct_fp8", compressed("float-quantized", 8, "float", "block", tile=[16, 32]), {
    Q + ".weight": ("F8_E4M3", [OUT, IN], finite8), Q + ".weight_scale": ("F32", [2, 2], floats(4, 0.5))})
container("fp8", {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}, {
    Q + ".weight": ("F8_E4M3", [OUT, IN], finite8), Q + ".weight_scale_inv": ("F32", [1, 1], floats(1, 0.5))})
container("ct_mxfp8", compressed("mxfp8-quantized", 8, "float", "group", 32), {
    Q + ".weight": ("F8_E4M3", [OUT, IN], finite8), Q + ".weight_scale": ("U8", [OUT, 2], b"\x7b" * (2 * OUT))})
container("ct_nvfp4", compressed("nvfp4-pack-quantized", 4, "float", "tensor_group", 16), {
    Q + ".weight_packed": ("U8", [OUT, IN // 2], noise(OUT * IN // 2)),
    Q + ".weight_scale": ("F8_E4M3", [OUT, 4], b"\x38" * (4 * OUT)),
    Q + ".weight_global_scale": ("F32", [1], floats(1, 8.0))})
container("ct_mxfp4", compressed("mxfp4-pack-quantized", 4, "float", "group", 32), {
    Q + ".weight_packed": ("U8", [OUT, IN // 2], noise(OUT * IN // 2)),
    Q + ".weight_scale": ("U8", [OUT, 2], b"\x7b" * (2 * OUT))})
nf4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
       0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]


def bitsandbytes(state, more):
    text = json.dumps(dict({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [OUT, IN]}, **state))
    return {Q + ".weight": ("U8", [OUT * IN // 2, 1], noise(OUT * IN // 2)),
            Q + ".weight.quant_map": ("F32", [16], struct.pack("<16f", *nf4)), **more,
            Q + ".weight.quant_state.bitsandbytes__nf4": ("U8", [len(text)], text.encode())}


bnb = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
container("bnb", bnb, bitsandbytes({}, {Q + ".weight.absmax": ("F32", [OUT], floats(OUT, 0.5))}))
container("bnb_nested", dict(bnb, bnb_4bit_use_double_quant=True), bitsandbytes(
    {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25}, {
        Q + ".weight.absmax": ("U8", [OUT], noise(OUT)), Q + ".weight.nested_absmax": ("F32", [1], floats(1, 0.5)),
        Q + ".weight.nested_quant_map": ("F32", [256], b"".join(struct.pack("<f", i / 256) for i in range(256)))}))

# ---- checkpoint -----------------------------------------------------------------------------------------------------

W = "model.layers.0.self_attn.q_proj"  # [16, 16] in fuzz_checkpoint.cpp
lora = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "r": 2, "lora_alpha": 4,
        "lora_dropout": 0.1, "bias": "none", "target_modules": ["q_proj"], "use_rslora": False, "use_dora": False,
        "init_lora_weights": True, "rank_pattern": {}, "modules_to_save": None}
seed("checkpoint", "adapter", files(adapter__config_json=lora, adapter__model_safetensors=safetensors({
    "base_model.model.%s.lora_A.weight" % W: ("F32", [2, 16], floats(32)),
    "base_model.model.%s.lora_B.weight" % W: ("BF16", [16, 2], half(32, 0x3D80))})))
seed("checkpoint", "adapter_rank1", files(
    adapter__config_json=dict(lora, r=1, lora_alpha=0.3, use_rslora=True, target_modules=["down_proj", "v_proj"]),
    adapter__model_safetensors=safetensors({
        "base_model.model.model.layers.0.%s.lora_%s.weight" % (m, ab):
            ("F16", [1, 16] if ab == "A" else [16, 1], half(16))
        for m in ("mlp.down_proj", "self_attn.v_proj") for ab in "AB"})))


def grids(rules, tensors, **more):
    return safetensors({W + ".weight." + n: t for n, t in tensors.items()},
                       dict({"format": "pt", "quantizer": rules}, **more))


def quantized(name, rules, tensors, extra=None, **more):
    seed("checkpoint", name, files(quantizer_json=dict({"weights": rules}, **(extra or {})),
                                   quantizer_safetensors=grids(rules, tensors, **more)))


column = ("F32", [16, 1], floats(16, 0.0625))
quantized("int4", "none; q=int4:channel:sym", {"scale": column})
quantized("int4_asym", "none; q=int4:g8:asym", {"scale": ("F32", [16, 2], floats(32, 0.0625)),
                                                "zero": ("F32", [16, 2], floats(32, 7.0))},
          {"activations": "int8:token:sym", "kv_cache": "int4:token:asym", "k_pre_bias": True})
quantized("nf4", "none; q=nf4:g8:dq", {"scale": ("F32", [16, 2], floats(32, 0.25))})
quantized("fp8", "none; q=fp8e4m3:tensor", {"scale": ("F32", [1, 1], floats(1, 0.25))})
quantized("nvfp4", "none; q=nvfp4", {"scale": column, "tensor_scale": ("F32", [1], floats(1, 8.0))})
for kind, parts in (("lsq", ()), ("lsq_offset", ("offset",)), ("lwc", ("upper", "lower"))):
    quantized("learned_" + kind, "none; q=int4:channel:asym", {
        "scale": column, "zero": ("F32", [16, 1], floats(16, 7.0)), **{p: column for p in parts}}, learned_scale=kind)
seed("checkpoint", "masters", files(
    quantizer_json={"weights": "none; q=int2:channel:sym"},
    quantizer_safetensors=grids("none; q=int2:channel:sym", {"scale": ("F32", [16, 1], floats(16, 1024.0))}),
    masters_safetensors=safetensors({W + ".weight": ("F32", [16, 16], floats(256, 0.5))}, {"quantizer": "x"})))
seed("checkpoint", "dynamic", '{"weights": "int4:g16:sym; o=none", "lora_inside_quantizer": false}')
seed("checkpoint", "source", files(source_json={"path": "/a/b", "hash": "0123456789abcdef"}))

# ---- resume ---------------------------------------------------------------------------------------------------------

loop = {"step": 3, "tokens_trained": 1000, "train_seconds": 1.5, "prompt_tokens": 5, "completion_tokens": 6,
        "generate_seconds": 0.25, "optimizer_steps": 3, "forward_passes": 6, "skipped_steps": 1, "skipped_in_a_row": 0,
        "pending_metrics": None}
state = {"version": 1, "loop": loop, "objective": {}, "command": "sft", "run_id": "r", "wall_seconds": 2.0,
         "evaluated": {}, "measured": {"loss": 1}, "checkpoints": [1, 2, 3], "best": {"step": 2, "value": 0.5},
         "build": {"precision": "fp32", "device": "cpu", "instructions": "AVX2", "ranks": "1"},
         "inputs": {"train_data": {"path": "a.jsonl", "hash": "00"}},
         "given": {"learning_rate": "1e-05", "max_steps": "9", "weights": "int4:g64:sym"},
         "options": {"learning_rate": "1e-06", "seed": "1", "optim": "muon", "save_steps": "4"}}
seed("resume", "state", json.dumps(state))
seed("resume", "state_grpo", json.dumps(dict(state, command="grpo",
                                             loop=dict(loop, pending_metrics={"step": 3, "x": None}),
                                             given={"k_pre_bias": "true", "reward_funcs": "exact,format"}), indent=1))
# an adapter of rank 1 on q_proj [8, 8]: A and B, each from a multiple of 32 on
moments = {"adapters." + n: ("F32", [1, 64], floats(64)) for n in ("m", "v")}
seed("resume", "optimizer", files(optimizer_safetensors=safetensors(moments, {"optimizer": "adamw", "step": "7"})))
seed("resume", "arrays", files(trainer_safetensors=safetensors({
    "masters": ("F32", [1, 8], floats(8)), "grids": ("F32", [2, 2], floats(4)),
    "scale_codes": ("U8", [1, 4], b"abcd")})))
seed("resume", "log", files(metrics_jsonl='{"step":1,"loss":2.5}\n{"step":2,"loss":2}\n{"step":3,"loss":1}\n{"step":4'))
