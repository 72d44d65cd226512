"""A step of supervised fine-tuning by PyTorch and transformers: forward, backward, clipping, AdamW, on random tokens.

--precision fp32   everything in fp32
            amp    fp32 weights and optimizer, products under bf16 autocast: what train_qrl's bf16 build keeps
            bf16   weights, gradients and moments in bf16 (updates of small learning rates are lost)
The work of ./train_qrl bench --part sft with the same sizes.
"""
import torch

from shapes import arguments, best_time, peak_mib, random_model, report

a = arguments(__doc__, rows=(int, 4, "sequences of a step"), length=(int, 512, "tokens of each"),
              precision=(str, "amp", "fp32, amp or bf16"), seconds=(float, 1.0, "for the number; 2 steps at least"))
assert a.precision in ("fp32", "amp", "bf16"), a.precision
model = random_model(a.model, torch.bfloat16 if a.precision == "bf16" else torch.float32).train()
model.config.use_cache = False
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
generator = torch.Generator().manual_seed(1)


def step():
    tokens = torch.randint(model.config.vocab_size, (a.rows, a.length), generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=a.precision == "amp"):
        loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


seconds = best_time(step, a.seconds, 2)
report(model=a.model, precision=a.precision, seconds=seconds, tokens_per_second=a.rows * a.length / seconds,
       peak_mib=peak_mib())
