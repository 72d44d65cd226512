#!/usr/bin/env python3
"""Writes test/golden/{qwen2,qwen3,llama}, which test/test_golden.cpp reads.

Each folder is a tiny random-weight model as Hugging Face stores it (config.json, model.safetensors, fp32) and
golden.safetensors, what transformers computes with it in fp32 with eager attention, one sequence at a time:
  tokens [T] i32, cu_seqlens [4] i32   three sequences, one behind the other
  logits [T,V]
  logp, entropy [R]                    of each next token, sequence after sequence; R = T - 3
  loss []                              -mean(logp)
  grad.NAME                            d loss / d NAME for every parameter
qwen3's config.json is in the dialect of transformers 5.x, the two others in that of 4.x. Biases and norm weights are
random, so that no parameter can be left out unnoticed. The same versions write the same bytes.
Needs torch, transformers and safetensors: python3 test/make_golden.py [FOLDER]
"""
import json
import os
import sys

import safetensors
import torch
import transformers
from safetensors.torch import save_file
from transformers import (AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM,
                          Qwen3Config, Qwen3ForCausalLM)

SHAPE = dict(vocab_size=67, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256, hidden_act="silu", bos_token_id=0, eos_token_id=1,
             pad_token_id=None, attention_dropout=0.0, attn_implementation="eager")
# original_max 64, low 1, high 4 at head_dim 8: one frequency is kept, one blended, two stretched
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
LENGTHS = (23, 2, 13)

MODELS = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, "4.x",
              dict(rms_norm_eps=1e-6, tie_word_embeddings=True,
                   rope_parameters=dict(rope_type="default", rope_theta=5000.0))),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, "5.x",
              dict(rms_norm_eps=1e-6, tie_word_embeddings=True, head_dim=16,
                   rope_parameters=dict(rope_type="default", rope_theta=20000.0))),
    "llama": (LlamaForCausalLM, LlamaConfig, "4.x",
              dict(rms_norm_eps=1e-5, tie_word_embeddings=False,
                   rope_parameters=dict(rope_theta=10000.0, **LLAMA3))),
}


def randomize(model, generator):
    with torch.no_grad():
        for name, p in model.named_parameters():
            x = torch.randn(p.shape, generator=generator)
            if name.endswith("bias"):
                p.copy_(0.5 * x)
            elif p.dim() == 1:
                p.copy_(1.0 + 0.3 * x)
            elif "embed" in name or "lm_head" in name:
                p.copy_(0.5 * x)
            else:
                p.copy_(x / p.shape[1] ** 0.5)


def config_json(config, dialect):
    c = json.loads(config.to_json_string(use_diff=False))
    keep = ["architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "hidden_act",
            "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "attention_bias", "mlp_bias",
            "use_sliding_window", "sliding_window", "max_window_layers", "layer_types", "attention_dropout",
            "initializer_range", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "dtype"]
    c = {k: c[k] for k in keep if k in c}
    if dialect == "4.x":
        rope = dict(c.pop("rope_parameters"))
        c["rope_theta"] = rope.pop("rope_theta")
        c["rope_scaling"] = rope if rope["rope_type"] != "default" else None
        c["torch_dtype"] = c.pop("dtype")
        c.pop("layer_types", None)  # 4.x wrote it only in its last versions
    return json.dumps(c, indent=2, sort_keys=True) + "\n"


def golden(model, tokens):
    logits, logp, entropy = [], [], []
    for ids in tokens:
        z = model(input_ids=ids[None], use_cache=False).logits[0]
        all_logp = torch.log_softmax(z, dim=-1)
        logits.append(z)
        logp.append(all_logp[:-1].gather(1, ids[1:, None].long())[:, 0])
        entropy.append(-(all_logp.exp() * all_logp).sum(-1)[:-1])
    logits, logp, entropy = torch.cat(logits), torch.cat(logp), torch.cat(entropy)
    loss = -logp.mean()
    model.zero_grad()
    loss.backward()
    out = {"logits": logits, "logp": logp, "entropy": entropy, "loss": loss}
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name
        out["grad." + name] = p.grad
    return {k: v.detach().float().contiguous().clone() for k, v in out.items()}


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, safetensors {safetensors.__version__}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for seed, (name, (model_class, config_class, dialect, extra)) in enumerate(MODELS.items()):
        generator = torch.Generator().manual_seed(1000 + seed)
        config = config_class(**SHAPE, **extra)
        config.dtype = torch.float32
        config.architectures = [model_class.__name__]
        model = model_class(config).float().train()
        randomize(model, generator)
        folder = os.path.join(root, name)
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "config.json"), "w") as f:
            f.write(config_json(config, dialect))
        weights = {k: p.detach().contiguous().clone() for k, p in model.named_parameters()}  # a tied head once
        save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})

        tokens = [torch.randint(0, config.vocab_size, (n,), generator=generator) for n in LENGTHS]
        out = golden(model, tokens)
        # what was written is what was computed with
        again = golden(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float(), tokens)
        assert all(torch.equal(out[k], again[k]) for k in out), name
        out["tokens"] = torch.cat(tokens).to(torch.int32)
        out["cu_seqlens"] = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
        save_file(out, os.path.join(folder, "golden.safetensors"))
        size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
        print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, loss {out['loss'].item():.6f}, "
              f"{size} bytes")


if __name__ == "__main__":
    main()
