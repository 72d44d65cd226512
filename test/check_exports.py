#!/usr/bin/env python3
"""Opens exported folders with the tools they are for and compares log-probabilities with train_qrl's own.

  python3 test/check_exports.py [--program ./train_qrl] FOLDER...
  python3 test/check_exports.py --all [--model FOLDER] [--keep FOLDER]     every format, of a model or a tiny random one

transformers opens plain folders, compressed-tensors and bitsandbytes; GPTQModel opens gptq, gptq_v2 and awq. Each is
asked for the log-probabilities of the same random ids as it is used, in fp32 where it can; then again with the weights
that the tool says the file has, in fp32: GPTQModel computes in 16 bits, and compressed-tensors may quantize activations.
The two columns are the largest difference from `train_qrl logprobs` on the same folder. A line says why a tool does not
open a folder.
Needs torch, transformers and what the formats need: compressed-tensors, bitsandbytes, gptqmodel.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

# export formats and the quantizers that each is tried with
FORMATS = [
    ("hf", "int4:g64"), ("compressed-tensors", "int2:g64"), ("compressed-tensors", "int3:g64"),
    ("compressed-tensors", "int4:g64"), ("compressed-tensors", "int4:g64:asym"),
    ("compressed-tensors", "int6:channel"), ("compressed-tensors", "int8:channel"),
    ("compressed-tensors", "ternary"), ("compressed-tensors", "fp8e4m3:tensor"),
    ("compressed-tensors", "fp8e4m3:channel"), ("compressed-tensors", "fp8e4m3:128x128"),
    ("compressed-tensors", "mxfp8"), ("compressed-tensors", "mxfp4"), ("compressed-tensors", "nvfp4"),
    ("int-quantized", "int8:channel"), ("gptq", "int2:g64"), ("gptq", "int3:g64"), ("gptq", "int4:g64"),
    ("gptq", "int8:g64"), ("gptq", "int4:channel"), ("gptq_v2", "int4:g64:asym"), ("awq", "int4:g64"),
    ("awq", "int4:g64:asym"), ("awq", "int3:g64"), ("bnb-nf4", "nf4"), ("bnb-nf4", "nf4:dq"),
]


def logprobs(model, ids):
    with torch.no_grad():
        z = model(input_ids=torch.tensor([ids])).logits[0].float()
    return torch.log_softmax(z, -1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def ours(program, folder, ids):
    out = subprocess.run([program, "logprobs", "--model", folder], input=json.dumps({"ids": ids}) + "\n",
                         capture_output=True, text=True)
    if out.returncode:
        raise RuntimeError(out.stderr.strip().splitlines()[-1])
    return torch.tensor(json.loads(out.stdout)["logprobs"])


def replace(model, name, weight, bias):
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight.data = weight.float().contiguous()
    if bias is not None:
        linear.bias.data = bias.float()
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, linear)


def dense(model):
    """GPTQModel's linears replaced by fp32 ones of the weights that it reads"""
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear, PackableQuantLinear
    from gptqmodel.quantization.awq.utils.packing_utils import reverse_awq_order, unpack_awq

    for name, m in list(model.named_modules()):
        if not isinstance(m, BaseQuantLinear):
            continue
        m.scales = m.scales.float()
        if isinstance(m, PackableQuantLinear):
            w = PackableQuantLinear.dequantize_weight(m).T
        else:
            q, z = reverse_awq_order(*unpack_awq(m.qweight, m.qzeros, m.bits), m.bits)
            g = m.in_features // m.scales.shape[0]
            w = (((q & 15) - (z & 15).repeat_interleave(g, 0)) * m.scales.repeat_interleave(g, 0)).T
        replace(model, name, w, m.bias)
    return model.float()


def compressed_tensors_weights(folder, config):
    """what compressed-tensors makes of each linear, with the scales in fp32 (its loaders round them to the model's type)"""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    modules, weights = {}, {}
    for file in sorted(f for f in os.listdir(folder) if f.endswith(".safetensors")):
        for name, t in load_file(os.path.join(folder, file)).items():
            module, _, part = name.rpartition(".")
            modules.setdefault(module, {})[part] = t
    config = QuantizationConfig.model_validate(config)
    scheme = config.config_groups["group_0"]
    for name, parts in modules.items():
        if "weight_scale" not in parts:
            continue
        scale, g = parts["weight_scale"], parts.get("weight_global_scale")
        scale = 2.0 ** (scale.float() - 127) if "mx" in config.format else scale.float()
        if "fp4" in config.format:
            rows, half = parts["weight_packed"].shape
            x = unpack_fp4_from_uint8(parts["weight_packed"], rows, 2 * half, torch.float32)
            w = dequantize(x_q=x, scale=scale, args=scheme.weights, global_scale=g, dtype=torch.float32)
        elif "mx" in config.format:
            w = dequantize(x_q=parts["weight"], scale=scale, args=scheme.weights)
        else:
            compressor = BaseCompressor.get_value_from_registry(config.format)
            w = compressor.decompress({**parts, "weight_scale": scale}, scheme)["weight"]
        weights[name] = w.float()
    return weights


def check(program, folder, ids):
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    with open(os.path.join(folder, "config.json")) as f:
        config = json.load(f).get("quantization_config", {"quant_method": "plain"})
    method = config["quant_method"]
    reference = ours(program, folder, ids)
    diff = lambda lp: (lp - reference).abs().max().item()  # noqa: E731
    load = lambda dtype, **k: AutoModelForCausalLM.from_pretrained(  # noqa: E731
        folder, dtype=dtype, attn_implementation="eager", **k).eval()
    if method in ("gptq", "awq"):
        from gptqmodel import BACKEND, GPTQModel
        backend = BACKEND.GPTQ_TORCH if method == "gptq" else BACKEND.AWQ_TORCH
        model = GPTQModel.load(folder, device="cpu", backend=backend).model
        for m in model.modules():  # the compiled form needs minutes and computes the same
            m.__dict__.pop("dequantize_weight", None)
        tool = f"GPTQModel, {next(model.parameters()).dtype}".replace("torch.", "")
        native = diff(logprobs(model, ids))
        return tool, native, diff(logprobs(dense(model), ids))
    if method == "compressed-tensors":
        tool = "transformers, float32"
        try:
            native = diff(logprobs(load(torch.float32), ids))
        except RuntimeError:  # asymmetric: zero points are expected unpacked; MX, NV: the loader makes them bfloat16
            tool = "transformers, bfloat16, dequantize=True"
            native = diff(logprobs(load(torch.bfloat16, quantization_config=CompressedTensorsConfig(dequantize=True)), ids))
        model = load(torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True))
        for name, w in compressed_tensors_weights(folder, config).items():
            model.get_submodule(name).weight.data = w
        return tool, native, diff(logprobs(model, ids))
    model = load(torch.float32)
    native = diff(logprobs(model, ids))
    if method == "plain":
        return "transformers, float32", native, native
    import bitsandbytes.functional as F
    model = load(torch.float32)  # again: the first forward packs the weights anew for the CPU's bfloat16
    for name, m in list(model.named_modules()):
        state = getattr(getattr(m, "weight", None), "quant_state", None)
        if state is not None:
            state.dtype = torch.float32
            replace(model, name, F.dequantize_4bit(m.weight.data, state), m.bias)
    for p in model.parameters():
        p.data = p.data.float()
    return "transformers, bfloat16 linears", native, diff(logprobs(model, ids))


def tiny_model(folder):
    """dimensions that all formats' groups and kernels divide"""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(vocab_size=131, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
                         tie_word_embeddings=True, bos_token_id=0, eos_token_id=1)
    model = Qwen2ForCausalLM(config).float()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            x = torch.randn(p.shape, generator=g)
            x = 0.5 * x if name.endswith("bias") or "embed" in name else 1 + 0.3 * x if p.dim() == 1 else x / p.shape[1] ** 0.5
            p.copy_(x.bfloat16().float())
    model.save_pretrained(folder)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folders", nargs="*")
    p.add_argument("--program", default="./train_qrl")
    p.add_argument("--all", action="store_true")
    p.add_argument("--model")
    p.add_argument("--keep")
    p.add_argument("--tokens", type=int, default=48)
    o = p.parse_args()
    work = o.keep or tempfile.mkdtemp()
    jobs = [(f, "", f) for f in o.folders]
    if o.all:
        model = o.model or os.path.join(work, "tiny")
        if not o.model:
            tiny_model(model)
        for format, quantizer in FORMATS:
            jobs.append((format, quantizer, os.path.join(work, f"{format}-{quantizer}".replace(":", "-"))))
    torch.set_num_threads(2)
    failed = 0
    for format, quantizer, folder in jobs:
        line = f"| {format} | {quantizer} | "
        try:
            if quantizer:
                made = subprocess.run([o.program, "export", "--model", model, "--format", format, "--weights", quantizer,
                                       "--output_dir", folder, "--overwrite_output_dir"], capture_output=True, text=True)
                if made.returncode:
                    raise RuntimeError(made.stderr.strip().splitlines()[-1])
            with open(os.path.join(folder, "config.json")) as f:
                vocabulary = json.load(f)["vocab_size"]
            ids = torch.randint(0, vocabulary, (o.tokens,), generator=torch.Generator().manual_seed(3)).tolist()
            tool, native, exact = check(o.program, folder, ids)
            line += f"{tool} | {native:.1e} | {exact:.1e} |"
        except Exception as e:
            failed += 1
            line += f"not opened: {type(e).__name__}: {str(e).splitlines()[0][:200] if str(e) else ''} | | |"
        print("RESULT " + line, flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
