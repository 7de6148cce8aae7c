"""What machine a benchmark ran on, and where its results go."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.machine import give_back, hardware, held_gib, peak_gib, reset_peak, wait

if TYPE_CHECKING:  # a benchmark of memory must not load it
    import torch

__all__ = ["Facts", "give_back", "hardware", "held_gib", "matmul_flops", "peak_gib", "reset_peak", "table", "wait"]
__all__ += ["asked", "device", "jpegs", "positive", "write_results"]

LOAD = os.getloadavg()[0]  # processes that ran, on average of the last minute, when the script began


def positive(text: str) -> int:
    """For argparse: a whole number above 0."""
    try:
        found = int(text)
    except ValueError:
        found = 0
    if found < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return found


def jpegs(text: str) -> Path:
    """For argparse: a folder of JPEGs."""
    found = Path(text)
    if not any(found.glob("*.jp*g")):
        raise argparse.ArgumentTypeError(f"there is no folder {text} with files that end in .jpg or .jpeg")
    return found


def device(text: str) -> str:
    """For argparse: what --device names, if it is there."""
    from extractors.base import pick_device
    from storage import TriptychError

    try:
        return str(pick_device(text))
    except TriptychError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def matmul_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of the product of two large square matrices, the best of eight: what counts as the peak."""
    import torch

    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        a @ b
        wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def asked(*beside: str) -> str:
    """For a report: how busy the machine was before, and the command it is the result of, but for where results go.

    Args:
        beside: packages that it needs and the project does not.
    """
    flags = sys.argv[1:]
    if "--out" in flags:
        at = flags.index("--out")
        del flags[at : at + 2]
    more = [part for package in beside for part in ("--with", package)]
    command = shlex.join(["uv", "run", *more, "python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *flags])
    return f"Load before: {LOAD:.1f}. Command: `{command}`; its docstring is the protocol."


def write_results(folder: Path, what: str, report: str, facts: Any) -> Path:
    """Write <what>_cpu<threads>_<date>.md, or <what>_<GPU>_<date>.md, the script's protocol at its end, and .json
    beside it; returns the first. What is there stays: the second one of a day ends in _2."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{what}_{_short_name()}_{datetime.now(UTC):%Y-%m-%d}"
    path, number = folder / f"{name}.md", 1
    while path.exists():
        number += 1
        path = folder / f"{name}_{number}.md"
    path.write_text(report + _protocol(), encoding="utf-8")
    facts = {"hardware": hardware(), "load_before": LOAD, "facts": facts}
    path.with_suffix(".json").write_text(json.dumps(_plain(facts), indent=1, allow_nan=False), encoding="utf-8")
    return path


def _protocol() -> str:
    """That of the script that runs."""
    told = (sys.modules["__main__"].__doc__ or "").partition("\n\nProtocol. ")[2].partition("\n\n")[0].strip()
    return f"\nProtocol. {told}\n" if told else ""


def _plain(facts: Any) -> Any:
    """With None for what JSON has no number for."""
    if isinstance(facts, dict):
        return {name: _plain(each) for name, each in facts.items()}
    if isinstance(facts, list | tuple):
        return [_plain(each) for each in facts]
    return None if isinstance(facts, float) and not math.isfinite(facts) else facts


def _short_name() -> str:
    """The GPU where there is one, else how many cores."""
    import torch

    if not torch.cuda.is_available():
        return f"cpu{os.cpu_count()}"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower().removeprefix("nvidia "))


class Facts:
    """Results by recipe: printed as they come and, with a file, kept there a line each, so that none is found again."""

    def __init__(self, path: Path | None) -> None:
        lines = path.read_text().splitlines() if path and path.exists() else []
        self._path = path
        self.known: dict[str, dict[str, Any]] = {each["recipe"]: each for each in map(json.loads, lines)}

    def add(self, found: dict[str, Any]) -> None:
        self.known[found["recipe"]] = found
        print(json.dumps(found), flush=True)
        if self._path:
            with self._path.open("a") as file:
                print(json.dumps(found), file=file)

    def of(self, recipes: Sequence[str]) -> list[dict[str, Any]]:
        """What is known of them, in their order."""
        return [self.known[name] for name in recipes if name in self.known]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
