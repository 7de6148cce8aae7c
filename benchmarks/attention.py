"""Sequences of different lengths: which way is attention among them computed fastest?

    uv run python -m benchmarks.attention --device cuda

One call of each way, forward and back, with dropout of a tenth, on a layer's query, key and value: of the tiny twins'
width and of BERT-base's, of lengths drawn between those that the models see. Times are of the best of five rounds of
twenty calls; "called" is what the processor needs to start the work, beside a GPU that computes. "padded" and "each"
are `trainers/models/layers.py`'s, the others were not taken.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.machine import hardware, table, wait, write_results
from trainers.models import layers
from trainers.models.layers import Spans

# What they are, how many, least and most tokens of one, width, heads.
SHAPES = (
    ("twin, regions", 256, 14, 24, 128, 4),
    ("twin, grid", 256, 80, 100, 128, 4),
    ("base, regions", 64, 40, 60, 768, 12),
    ("base, grid", 64, 300, 628, 768, 12),
    ("base, patches", 64, 160, 260, 768, 12),
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CALLS, ROUNDS, DROPOUT = 20, 5, 0.1
Form = Callable[[Tensor, Tensor, Tensor, int, Spans, float], Tensor]


def nested(query: Tensor, key: Tensor, value: Tensor, heads: int, spans: Spans, dropout: float) -> Tensor:
    """By torch's nested tensors."""
    shortest, longest = min(spans.lengths), spans.longest
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(
            x.unflatten(-1, (heads, -1)), spans.offsets, min_seqlen=shortest, max_seqlen=longest
        ).transpose(1, 2)
        for x in (query, key, value)
    )
    return functional.scaled_dot_product_attention(q, k, v, None, dropout).transpose(1, 2).values().flatten(-2)


def direct(query: Tensor, key: Tensor, value: Tensor, heads: int, spans: Spans, dropout: float) -> Tensor:
    """By the kernel that nested tensors end in, which torch has under a private name only."""
    q, k, v = (x.unflatten(-1, (heads, -1))[None] for x in (query, key, value))
    starts, longest = spans.offsets.int(), spans.longest
    out, *_ = torch.ops.aten._efficient_attention_forward(
        q, k, v, None, starts, starts, longest, longest, dropout, 0, True
    )
    return out[0].flatten(-2)


FORMS: dict[str, Form] = {
    "padded": layers.attend_padded,
    "each": layers.attend_each,
    "nested": nested,
    "direct": direct,
}


def main() -> None:
    """Time all ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--forms", nargs="+", default=["padded", "nested", "direct"], choices=FORMS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    rows = []
    for name, *shape in SHAPES:
        for dtype in DTYPES:
            for form in asked.forms:
                took, called = timed(FORMS[form], shape, DTYPES[dtype], torch.device(asked.device))
                rows.append([name, dtype, form, f"{took:.3f}", f"{called:.3f}"])
                print("  ".join(rows[-1]), flush=True)
    header = ["sequences", "numbers", "way", "ms", "called, ms"]
    report = f"# Ways to attend among sequences\n\n{hardware()}.\n\n{table(header, rows)}\n"
    print(write_results(asked.out, "attention", report, [dict(zip(header, row, strict=True)) for row in rows]))


def timed(form: Form, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> tuple[float, float]:
    """Milliseconds of a call, and until it is started."""
    batch, least, most, width, heads = shape
    rng = np.random.default_rng(0)
    spans = Spans.of([int(each) for each in rng.integers(least, most + 1, batch)]).to(device)
    packed = [torch.randn(sum(spans.lengths), width, device=device, dtype=dtype).requires_grad_() for _ in range(3)]
    found = []
    for _ in range(ROUNDS + 1):  # the first one warms up
        began = time.perf_counter()
        for _ in range(CALLS):
            torch.autograd.grad(form(*packed, heads, spans, DROPOUT).sum(), packed)
        called = time.perf_counter() - began
        wait(device)
        found.append((time.perf_counter() - began, called))
    took, called = min(found[1:])
    return 1000 * took / CALLS, 1000 * called / CALLS


if __name__ == "__main__":
    main()
