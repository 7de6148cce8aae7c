"""How fast the models are, forward and in a training step, against transformers' in the same run.

    uv run python -m benchmarks.models --out benchmarks/results

Protocol. ViLT-B/32 against transformers' ViltModel with the same weights and inputs, no dropout, float32 on a CPU,
bfloat16 where a GPU is. "mixed" is a padded batch of photographs' shapes as ViLT resizes them and texts of 9 to 20 of
40 tokens; "uniform" has one shape and full texts, so that nothing is padded. Ours makes its layout in the pass. A
training step is forward, a loss on the pooled state, backward; no optimiser. Both take turns, the first turn is
dropped, and the medians of wall and of processor seconds are given: read the ratio, and the one of processor seconds
where the machine is not idle.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import hardware, table, write_results
from trainers.batch import Batch, Text, stack_pixels
from trainers.models.layers import LayerConfig
from trainers.models.published import load_vilt
from trainers.models.vilt import ViLT, ViLTConfig

SHAPES = [(384, 512), (512, 384), (384, 576), (384, 384), (384, 512), (384, 512), (576, 384), (384, 544)]
WORDS = [12, 9, 15, 20, 11, 13, 10, 17]
WIDTH = 40
Run = Callable[[], Tensor]


def vilt_batch(shapes: list[tuple[int, int]], words: list[int], device: str) -> Batch:
    """Random images of these shapes with texts of these lengths."""
    torch.manual_seed(0)
    mask = torch.arange(WIDTH) < torch.tensor(words)[:, None]
    images = stack_pixels([torch.randn(3, *shape) for shape in shapes])
    return Batch(Text(torch.randint(1000, 30000, mask.shape), mask), images).to(device)


def pair(layers: int, device: str) -> tuple[ViLT, nn.Module]:
    """Our ViLT and theirs, with the same weights."""
    from transformers import ViltConfig, ViltModel

    theirs = ViltModel(ViltConfig(num_hidden_layers=layers, max_image_length=-1, layer_norm_eps=1e-12))
    ours = ViLT(ViLTConfig(LayerConfig(dropout=0, attention_dropout=0), layers, heads=()))
    load_vilt(ours, theirs.state_dict())
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return ours.to(device, dtype), theirs.to(device, dtype)


def runs(ours: ViLT, theirs: nn.Module, batch: Batch) -> dict[str, tuple[nn.Module, Run]]:
    """What is timed, by name; each gives the pooled state."""
    pixels: Any = batch.visual
    mask = torch.ones_like(batch.text.ids) if batch.text.mask is None else batch.text.mask.long()
    given = {"input_ids": batch.text.ids, "attention_mask": mask, "pixel_values": pixels.images}
    given["pixel_mask"] = pixels.inside().long()
    return {
        "transformers": (theirs, lambda: theirs(**given).pooler_output),
        "ours": (ours, lambda: ours.pooled(ours(batch))),
    }


def seconds(model: nn.Module, run: Run, training: bool, device: str) -> tuple[float, float]:
    """Wall and processor seconds of one turn."""
    model.train(training)
    wall, processor = time.perf_counter(), time.process_time()
    with torch.set_grad_enabled(training):
        pooled = run()
        if training:
            pooled.float().square().mean().backward()
    if device == "cuda":
        torch.cuda.synchronize()
    found = time.perf_counter() - wall, time.process_time() - processor
    model.zero_grad()
    return found


def measure(batch: Batch, models: tuple[ViLT, nn.Module], turns: int, device: str) -> dict[str, dict[str, list[float]]]:
    """Medians of wall and processor seconds by kind of pass and name."""
    named = runs(*models, batch)
    found: dict[str, dict[str, list[float]]] = {}
    for kind, training in (("forward", False), ("training step", True)):
        turn: dict[str, list[tuple[float, float]]] = {name: [] for name in named}
        for _ in range(turns + 1):
            for name, (model, run) in named.items():
                turn[name].append(seconds(model, run, training, device))
        found[kind] = {
            name: [statistics.median(part) for part in zip(*each[1:], strict=True)] for name, each in turn.items()
        }
    return found


def report(found: dict[str, dict[str, dict[str, list[float]]]], args: argparse.Namespace) -> str:
    """The tables as Markdown."""
    rows = []
    for batch, kinds in found.items():
        for kind, named in kinds.items():
            theirs = named["transformers"]
            for name, (wall, processor) in named.items():
                ratios = [f"{theirs[0] / wall:.2f}", f"{theirs[1] / processor:.2f}"]
                rows.append([batch, kind, name, f"{wall:.3f}", f"{processor:.3f}", *ratios])
    header = ["batch", "pass", "model", "wall s", "processor s", "times as fast (wall)", "(processor)"]
    what = f"{hardware()}. ViLT-B/32 of {args.layers} layers, batch of {args.batch}, medians of {args.turns} turns."
    return f"# Models\n\n{what} Protocol: `benchmarks/models.py`.\n\n{table(header, rows)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=len(SHAPES), choices=range(1, len(SHAPES) + 1))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models, count = pair(args.layers, device), args.batch
    batches = {
        "mixed": vilt_batch(SHAPES[:count], WORDS[:count], device),
        "uniform": vilt_batch(SHAPES[:1] * count, [WIDTH] * count, device),
    }
    found = {name: measure(batch, models, args.turns, device) for name, batch in batches.items()}
    text = report(found, args)
    print(text)
    print(write_results(args.out, "models", text, found))


if __name__ == "__main__":
    main()
