"""How fast the models are, forward and in a training step, against transformers' in the same run.

    uv run python -m benchmarks.models --out benchmarks/results
    uv run python -m benchmarks.models --out benchmarks/results --models vilt --device cpu --dtype float32 --batch 8

Protocol. `model_cases.py` has the models, at their papers' sizes with random weights and without dropout, and the
batches: ViLT-B/32 beside transformers' ViltModel with the same weights; VL-BERT base beside LXMERT and VisualBERT at 36
boxes and at 10 to 100; Grid-VLP with all cells of 600 x 1000 pixels (fine-tuning) and with 100 drawn (pre-training)
beside VisualBERT; PixelBERT with ResNet-50, trained along, on 600 x 1000 pixels; METER with CLIP B/16 at 288 pixels and
RoBERTa. "mixed" batches are padded, "uniform" ones are not. Models and batches have one number type.

A model that packs makes its layout in the pass. A "forward" is in evaluation mode without gradients; a "backward" is a
forward pass, a loss on the pooled state and the way back; a "step" is that and AdamW (fused). No task head is timed.
Models of a group take turns, every other round the other way round; the first round is dropped, and the medians of wall
and of processor seconds are given: read ratios, of processor seconds where the machine is not idle. Memory is what a
pass adds to what was held, at its worst, in a round of its own (on a CPU resident memory). Operations
are counted by torch, padding included where a model computes it; MFU is their rate over that of a large matrix product
in the same run and type.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import (
    give_back,
    hardware,
    held_gib,
    matmul_flops,
    peak_gib,
    reset_peak,
    table,
    wait,
    write_results,
)
from benchmarks.model_cases import GROUPS, Group
from trainers.batch import Batch, Pixels

PASSES = ("forward", "backward", "step")
Clock = tuple[float, float]  # wall and processor seconds


@dataclass
class Timed:
    """One model on one batch.

    turns   by pass, the seconds of every round
    gib     by pass, memory
    flops   by pass, of one pass
    """

    name: str
    model: nn.Module
    run: Callable[[Any, Batch], Tensor]
    theirs: bool
    optimizer: torch.optim.Optimizer
    turns: dict[str, list[Clock]] = field(default_factory=lambda: {each: [] for each in PASSES})
    gib: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PASSES, 0.0))
    flops: dict[str, int] = field(default_factory=dict)

    def forward(self, batch: Batch) -> None:
        self.model.eval()
        with torch.inference_mode():
            self.run(self.model, batch)

    def backward(self, batch: Batch) -> None:
        self.model.train()
        self.run(self.model, batch).float().square().mean().backward()

    def median(self, kind: str) -> Clock:
        wall, processor = (statistics.median(part) for part in zip(*self.turns[kind], strict=True))
        return wall, processor


def built(group: Group, device: torch.device, dtype: torch.dtype) -> list[Timed]:
    """A group's models, ready to run."""
    found = []
    for name, each in group.models.items():
        model = each.make().to(device, dtype)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
        found.append(Timed(name, model, each.run, each.theirs, optimizer))
    return found


def converted(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """A batch on a device, its features or pixels of a type; boxes stay as they are."""
    moved = batch.to(device)
    visual: Any = moved.visual
    name = "images" if isinstance(visual, Pixels) else "features"
    return replace(moved, visual=replace(visual, **{name: getattr(visual, name).to(dtype)}))


def clocked(run: Callable[[], object], device: torch.device) -> Clock:
    """Seconds of one call."""
    wait(device)
    wall, processor = time.perf_counter(), time.process_time()
    run()
    wait(device)
    return time.perf_counter() - wall, time.process_time() - processor


def turn(timed: Timed, batch: Batch, device: torch.device) -> None:
    """One round of one model: a forward pass, and a step, whose two parts are timed one after the other."""
    timed.turns["forward"].append(clocked(lambda: timed.forward(batch), device))
    back = clocked(lambda: timed.backward(batch), device)
    update = clocked(timed.optimizer.step, device)
    timed.turns["backward"].append(back)
    timed.turns["step"].append((back[0] + update[0], back[1] + update[1]))
    timed.optimizer.zero_grad()


def weigh(timed: Timed, batch: Batch, device: torch.device) -> None:
    """Memory that each pass adds, apart from the timed rounds."""
    runs = (lambda: timed.forward(batch), lambda: timed.backward(batch), timed.optimizer.step)
    give_back(device)
    held = held_gib(device)
    for kind, run in zip(PASSES, runs, strict=True):
        reset_peak(device)
        run()
        wait(device)
        timed.gib[kind] = peak_gib(device) - held
        if kind == "forward":
            give_back(device)
    timed.optimizer.zero_grad()


def count(timed: Timed, batch: Batch) -> None:
    """Operations of a forward pass and of a step."""
    for kind, run in (("forward", timed.forward), ("backward", timed.backward)):
        with FlopCounterMode(display=False) as counter:
            run(batch)
        timed.flops[kind] = counter.get_total_flops()
    timed.flops["step"] = timed.flops["backward"]
    timed.optimizer.zero_grad()


def measure(models: list[Timed], batch: Batch, rounds: int, device: torch.device) -> None:
    """All rounds of a group on one batch."""
    for each in models:
        count(each, batch)
        turn(each, batch, device)  # the first one, dropped
        each.turns = {kind: [] for kind in PASSES}
        weigh(each, batch, device)
    for number in range(rounds):
        for each in models if number % 2 else models[::-1]:
            turn(each, batch, device)


def facts(models: list[Timed], size: int, peak: float) -> list[dict[str, Any]]:
    """What is written down, a row for each model and pass; `against` is how many times as fast as each of theirs."""
    rows = []
    for each in models:
        for kind in PASSES:
            wall, processor = each.median(kind)
            against = {
                other.name: [theirs / ours for theirs, ours in zip(other.median(kind), (wall, processor), strict=True)]
                for other in models
                if other.theirs and other is not each
            }
            rows.append(
                {
                    "model": each.name, "pass": kind, "wall": wall, "processor": processor, "pairs": size / wall,
                    "gib": each.gib[kind], "gflop": each.flops[kind] / 1e9, "mfu": each.flops[kind] / wall / peak,
                    "against": against, "turns": each.turns[kind],
                }
            )  # fmt: skip
    return rows


def group_rows(
    group: Group, args: argparse.Namespace, device: torch.device, dtype: torch.dtype, peak: float
) -> list[dict[str, Any]]:
    """All rows of a group, batch by batch."""
    models, rows, size = built(group, device, dtype), [], max(1, int(args.batch * group.share))
    for kind, make in group.batches.items():
        torch.manual_seed(0)
        measure(models, converted(make(size), device, dtype), args.rounds, device)
        rows += [{"batch": f"{kind}, {size}", **row} for row in facts(models, size, peak)]
        print(f"{kind} {', '.join(models_line(row) for row in rows[-len(models) * len(PASSES) :])}", flush=True)
    return rows


def models_line(row: dict[str, Any]) -> str:
    return f"{row['model']} {row['pass']} {row['wall']:.3f} s"


def shown(row: dict[str, Any]) -> list[str]:
    """A row of the Markdown table."""
    ratios = "; ".join(f"{name} {wall:.2f} ({processor:.2f})" for name, (wall, processor) in row["against"].items())
    numbers = [f"{row['wall']:.3f}", f"{row['processor']:.3f}", f"{row['pairs']:.1f}", f"{row['gib']:.2f}"]
    return [row["batch"], row["model"], row["pass"], *numbers, f"{row['gflop']:.0f}", f"{row['mfu']:.0%}", ratios]


HEADER = ["batch", "model", "pass", "wall s", "processor s", "pairs/s", "GiB", "GFLOP", "MFU", "times as fast as"]


def report(found: dict[str, list[dict[str, Any]]], args: argparse.Namespace, peak: float) -> str:
    """The tables as Markdown."""
    parts = [f"## {name}\n\n{table(HEADER, [shown(row) for row in rows])}\n" for name, rows in found.items()]
    what = f"{hardware()}. {args.device}, {args.dtype}, medians of {args.rounds} rounds."
    speed = f"A large matrix product runs at {peak / 1e12:.2f} TFLOP/s."
    how = "Protocol: `benchmarks/models.py`. Ratios are of wall seconds, in brackets of processor seconds."
    return "\n".join([f"# Models\n\n{what} {speed} {how}\n", *parts])


def arguments() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=GROUPS, default=list(GROUPS), help="groups; default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16" if cuda else "float32")
    parser.add_argument("--batch", type=int, default=64 if cuda else 8, help="pairs; groups of large images take fewer")
    parser.add_argument("--rounds", type=int, default=10 if cuda else 5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    peak = matmul_flops(dtype, device)
    found = {name: group_rows(GROUPS[name], args, device, dtype, peak) for name in args.models}
    text = report(found, args, peak)
    print(text)
    everything = "" if set(args.models) == set(GROUPS) else f"_{'_'.join(args.models)}"
    what = f"models{everything}"
    print(write_results(args.out, what, text, {"peak": peak, "rows": found}))


if __name__ == "__main__":
    main()
