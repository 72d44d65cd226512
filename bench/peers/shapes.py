"""Models of bench/shapes.h with random weights, as transformers builds them, and what the scripts here share.

pip install torch transformers trl
"""
import argparse
import json
import resource
import time

import torch
import transformers

SHAPES = {  # of the published config.json files
    "135m": ("Llama", dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                           num_key_value_heads=3, head_dim=64, vocab_size=49152)),
    "0.5b": ("Qwen2", dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
                           num_key_value_heads=2, vocab_size=151936)),
    "0.6b": ("Qwen3", dict(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
                           num_key_value_heads=8, head_dim=128, vocab_size=151936)),
    "1.5b": ("Qwen2", dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
                           num_key_value_heads=2, vocab_size=151936)),
    "tiny": ("Llama", dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                           num_key_value_heads=2, head_dim=16, vocab_size=512)),
}


def random_model(name, dtype=torch.float32):
    family, sizes = SHAPES[name]
    config = getattr(transformers, family + "Config")(tie_word_embeddings=True, max_position_embeddings=8192, **sizes)
    torch.manual_seed(0)
    return getattr(transformers, family + "ForCausalLM")(config).to(dtype)


def arguments(description, **defaults):
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--model", choices=SHAPES, default="135m")
    p.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    for name, (kind, default, text) in defaults.items():
        if kind is bool:
            p.add_argument("--" + name, action="store_true", help=text)
        else:
            p.add_argument("--" + name, type=kind, default=default, help=text)
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    return a


def best_time(call, seconds, least):
    """Of one call: the best of those that fit in the seconds, after one to warm up."""
    call()
    best, calls, start = float("inf"), 0, time.perf_counter()
    while calls < least or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        call()
        best, calls = min(best, time.perf_counter() - begin), calls + 1
    return best


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(**numbers):
    """The last line of each script, which compare.py reads."""
    versions = dict(torch=torch.__version__, transformers=transformers.__version__, threads=torch.get_num_threads())
    print(json.dumps({**numbers, **versions}))
