#!/usr/bin/env python3
"""Writes test/golden/lora_qwen2 and lora_qwen3, which test/test_lora.cpp reads.

Each folder is an adapter as PEFT saves it (adapter_config.json, adapter_model.safetensors) of the tiny model
test/golden/NAME, with random A and B, and golden.safetensors, what transformers and PEFT compute with both in fp32 for
the tokens of test/golden/NAME/golden.safetensors:
  logits [T,V], loss []
  grad.NAME   d loss / d NAME for every A and B, under the name that PEFT saves it by
lora_qwen2 has adapters on some of the projections, with rsLoRA's scale; lora_qwen3 on all.
Run with torch 2.15.0, transformers 5.24.0, peft 0.21.2: python3 test/make_golden_lora.py
"""
import json
import os
import sys

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

CASES = {
    "qwen2": dict(r=3, lora_alpha=5, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"], use_rslora=True),
    "qwen3": dict(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
                                                     "down_proj"]),
}


def main():
    golden = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")
    for name, case in CASES.items():
        out = os.path.join(golden, "lora_" + name)
        base = AutoModelForCausalLM.from_pretrained(os.path.join(golden, name), dtype=torch.float32,
                                                    attn_implementation="eager")
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **case))
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for n, p in model.named_parameters():
                if p.requires_grad:
                    p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if "lora_A" in n else 0.2))
        reference = load_file(os.path.join(golden, name, "golden.safetensors"))
        tokens, starts = reference["tokens"].long(), reference["cu_seqlens"].tolist()
        logits, total, count = [], 0.0, 0
        for a, b in zip(starts, starts[1:]):
            ids = tokens[a:b].unsqueeze(0)
            y = model(input_ids=ids).logits[0]
            logits.append(y.detach())
            logp = torch.log_softmax(y[:-1], -1).gather(1, ids[0, 1:, None])
            total, count = total - logp.sum(), count + logp.numel()
        loss = total / count
        loss.backward()
        model.peft_config["default"].base_model_name_or_path = "test/golden/" + name
        model.save_pretrained(out)
        grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        saved = get_peft_model_state_dict(model, state_dict=grads)
        assert len(saved) == len(grads)
        tensors = {"grad." + n: g.contiguous() for n, g in saved.items()}
        save_file({"logits": torch.cat(logits), "loss": loss.detach().reshape(1), **tensors},
                  os.path.join(out, "golden.safetensors"))
        readme = os.path.join(out, "README.md")
        if os.path.exists(readme):
            os.remove(readme)
        with open(os.path.join(out, "adapter_config.json")) as f:
            config = json.load(f)
        with open(os.path.join(out, "adapter_config.json"), "w") as f:
            json.dump({k: sorted(v) if k == "target_modules" else v for k, v in config.items()}, f, indent=2)
            f.write("\n")


if __name__ == "__main__":
    main()
