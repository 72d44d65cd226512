"""Matrix products by PyTorch at the shapes of ./train_qrl bench --part operators: nt, nn and tn of each linear, in fp32
and bf16. Weights take turns, as there, so that few rows read them from memory if the layers of a model would."""
import torch

from shapes import SHAPES, arguments, best_time, report

a = arguments(__doc__, seconds=(float, 0.1, "for each number"))
s = SHAPES[a.model][1]
C, F = s["hidden_size"], s["intermediate_size"]
heads, kv = s["num_attention_heads"], s["num_key_value_heads"]
qkv = (heads + 2 * kv) * s.get("head_dim", C // heads)
rows = []
for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
    for N, K in ((qkv, C), (2 * F, C), (C, F)):
        bytes_each = N * K * torch.empty(0, dtype=dtype).element_size()
        weights = [torch.randn(N, K, dtype=dtype) for _ in range(max(1, min((256 << 20) // bytes_each,
                                                                            s["num_hidden_layers"])))]
        turn = 0

        def weight():
            global turn
            turn += 1
            return weights[turn % len(weights)]

        for M in (1, 8, 64, 256, 1024):
            x, dy = torch.randn(M, K, dtype=dtype), torch.randn(M, N, dtype=dtype)
            calls = {"nt": lambda: x @ weight().t(), "nn": lambda: dy @ weight(), "tn": lambda: dy.t() @ x}
            for kind, call in calls.items():
                with torch.no_grad():
                    rows.append(dict(name=f"product {kind} {name}", shape=[M, N, K],
                                     seconds=best_time(call, a.seconds, 3)))
report(model=a.model, rows=rows)
