"""How long one answer takes, beside the times that the papers report: Grid-VLP's tables 2 and 3, METER's table 2.

    uv run python -m benchmarks.latency --out benchmarks/results
    uv run python -m benchmarks.latency --out benchmarks/results --device cpu --rounds 1 --rows vilt meter-clip

Protocol. One question about one image of 480 x 640 pixels, a batch of one, as in METER's appendix B, without gradients,
at the models' full size with random weights. Time runs from resized pixels in the host's memory to the scores of 3,129
answers; decoding and resizing are left out. `latency_cases.py` has the rows. Region rows are a detector, with all its
suppression, and the model that reads its boxes: always 36 of the bottom-up detector, or 100 of the ResNeXt-152. Sizes
are the papers': 600/1000 for detectors and grids, 384 for ViLT and Swin, 576 for CLIP (METER's size for VQA). Texts
have their papers' longest length. Every row warms up, then runs --rounds times, and the device is waited for behind
every stage; medians are given, of the whole pass its 10th and 90th percentile, too. float32 is multiplied as such on a
GPU.

Milliseconds cannot be compared over machines, so each table has a base row, and both columns of factors are of it: ours
of our base, the paper's of its. Not among the rows, since the project has no such models: ViLBERT, OSCAR, VinVL,
CLIP-ViL, ALBEF. VL-BERT stands for UNITER, which is as large a transformer over words and 36 boxes. ViLT's figure 1
has the times that METER's table 2 quotes in its first column.
"""

from __future__ import annotations

import argparse
import gc
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.latency_cases import CASES, Run, Where
from benchmarks.machine import hardware, table, wait, write_results
from extractors.base import float32_multiplied

STAGES = ("visual", "transformer", "heads")
Timed = dict[str, float]  # milliseconds of one pass, by stage


@dataclass(frozen=True)
class Published:
    """A column of a paper's table.

    source  which one
    base    the case that the others are factors of
    rows    by case, the row's name in the paper and its time, in `unit`
    """

    source: str
    base: str
    rows: dict[str, tuple[str, float]]
    unit: str = "ms"


PUBLISHED = (
    Published(
        'Grid-VLP, table 2, "Avg Time (ms)"',
        "grid-vlp-x152",
        {
            "grid-vlp-x50": ("x50", 106),
            "grid-vlp-x101": ("x101", 153),
            "grid-vlp-x152": ("x152", 221),
            "grid-vlp-x152-regions": ("x152 (region)", 572),
        },
    ),
    Published(
        'Grid-VLP, table 3, "Speedup"',
        "grid-vlp-x152",
        {
            "grid-vlp-x152-448-448": ("448, 448", 1 / 3),
            "grid-vlp-x152-448-746": ("448, 746", 1 / 2),
            "grid-vlp-x152": ("600, 1000", 1),
        },
        unit="of the last row, one over the speedup",
    ),
    Published(
        'METER, appendix, table 2, "Time ([8])": as measured by ViLT',
        "vilt",
        {
            "visual-bert": ("VisualBERT", 925),
            "lxmert": ("LXMERT", 900),
            "vl-bert": ("UNITER-Base", 900),
            "pixel-bert-x152": ("PixelBERT-X152", 160),
            "vilt": ("ViLT", 15),
        },
    ),
    Published(
        'METER, appendix, table 2, "Time (ours)": on a V100',
        "vilt",
        {
            "vilt": ("ViLT", 26),
            "meter-swin": ("METER-Swin BASE", 59),
            "meter-clip": ("METER-CLIP-ViT BASE", 53),
        },
    ),
)


class Watch:
    """Tells the milliseconds of each stage of a pass, the device waited for behind it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def of(self, run: Run) -> Timed:
        self.spent: Timed = {}
        wait(self.device)
        self.last = time.perf_counter()
        run(self.mark)
        return self.spent

    def mark(self, stage: str) -> None:
        wait(self.device)
        now = time.perf_counter()
        self.spent[stage], self.last = 1e3 * (now - self.last), now


def measure(name: str, where: Where, rounds: int, warmup: int) -> dict[str, Any]:
    """Medians of one case, by stage and of the whole pass."""
    run, watch = CASES[name](where), Watch(where.device)
    with torch.inference_mode(), float32_multiplied(where.dtype, where.device):
        passes = [watch.of(run) for _ in range(warmup + rounds)][warmup:]
    whole = [sum(each.values()) for each in passes]
    low, median, high = np.percentile(whole, (10, 50, 90)).tolist()
    stages = {stage: float(np.median([each[stage] for each in passes])) for stage in STAGES}
    return {"case": name, "ms": median, "p10": low, "p90": high, "stages": stages, "passes": passes}


def shown(published: Published, found: dict[str, dict[str, Any]]) -> str:
    """One table of a paper, with ours beside it; rows that were not run are left out."""
    base, theirs = found.get(published.base), published.rows[published.base][1]
    rows = []
    for case, (name, reported) in published.rows.items():
        if case in found:
            each = found[case]
            stages = [f"{each['stages'][stage]:.1f}" for stage in STAGES]
            whole = f"{each['ms']:.1f} ({each['p10']:.1f} to {each['p90']:.1f})"
            factor = f"{each['ms'] / base['ms']:.2f}" if base else ""
            rows.append([name, case, *stages, whole, factor, f"{reported:.3g}", f"{reported / theirs:.2f}"])
    header = ["row", "case", *(f"{stage}, ms" for stage in STAGES), "whole, ms (p10 to p90)"]
    header += ["ours, of the base", f"paper, {published.unit}", "paper's, of the base"]
    return f"## {published.source}\n\nBase: {published.rows[published.base][0]}.\n\n{table(header, rows)}\n"


def report(found: dict[str, dict[str, Any]], args: argparse.Namespace) -> str:
    """All tables as Markdown."""
    what = f"{hardware()}. {args.device}, {args.dtype}, medians of {args.rounds} passes after {args.warmup}."
    parts = [shown(each, found) for each in PUBLISHED if set(each.rows) & set(found)]
    return "\n".join([f"# Latency of one answer\n\n{what} Protocol: `benchmarks/latency.py`.\n", *parts])


def arguments() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rows", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--rounds", type=int, default=20 if cuda else 3)
    parser.add_argument("--warmup", type=int, default=5 if cuda else 1)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    where, found = Where(torch.device(args.device), args.dtype), {}
    for name in args.rows:
        began = time.perf_counter()
        found[name] = measure(name, where, args.rounds, args.warmup)
        gc.collect()
        print(f"{name}: {found[name]['ms']:.1f} ms, {time.perf_counter() - began:.1f} s in all", flush=True)
    text = report(found, args)
    print(text)
    everything = "" if len(found) == len(CASES) else f"_{'_'.join(found)}"
    what = f"latency{everything}_{args.dtype}"
    print(write_results(args.out, what, text, found))


if __name__ == "__main__":
    main()
