"""What a run tells: `RUN/metrics.jsonl`, TensorBoard's files, and how far it is, on stderr.

A line of metrics has, of the updates since the line before: `step` (updates done), `epoch`, `loss` and `losses` by
name, `grad_norm` before clipping, `lr` of the last one, `images_per_s` (examples, over all ranks), `data_wait` (share
of the time in which the loop waited for batches), `memory_gb` (peak; a GPU's, or the process's). A line of an
evaluation has `step` and `scores`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import IO, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from storage.places import Place

FILE = "metrics.jsonl"
LINE_EVERY = 10.0  # seconds between plain lines


class Metrics:
    """The lines of a run so far. In a folder each is written as it comes; to an object store all of them, at `flush`.

    Args:
        step: where the run goes on from; lines of later updates were written by a run that was killed, and go.
    """

    def __init__(self, place: Place, step: int) -> None:
        self._place = place
        self.lines = [line for line in read_metrics(place) if line["step"] <= step]
        place.write(FILE, "".join(map(_written, self.lines)).encode())
        self._file: IO[str] | None = (place.local / FILE).open("a") if place.local else None
        self._board = _board(place, step)

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if self._file is not None:
            self._file.write(_written(line))
            self._file.flush()
        if self._board is not None:
            for name, value in _flat(line):
                self._board.add_scalar(name, value, line["step"])

    def flush(self) -> None:
        """All lines survive whatever happens to this process and its machine."""
        if self._file is not None:
            os.fsync(self._file.fileno())
        else:
            self._place.write(FILE, "".join(map(_written, self.lines)).encode())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(place: Place) -> list[dict[str, Any]]:
    """The lines of a run so far."""
    if place.size(FILE) is None:
        return []
    *whole, _ = place.read(FILE).decode().split("\n")  # behind the last newline is what a kill left of a line
    return [json.loads(line) for line in whole]


def _written(line: Mapping[str, Any]) -> str:
    return json.dumps(line) + "\n"


def _board(place: Place, step: int) -> Any:
    """A writer of TensorBoard's files in `RUN/tensorboard`; None where the package is missing, or RUN is no folder."""
    if place.local is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(place.local / "tensorboard"), purge_step=step + 1)


def _flat(line: Mapping[str, Any]) -> list[tuple[str, float]]:
    nested = [(f"{name}/{key}", value) for name in ("losses", "scores") for key, value in line.get(name, {}).items()]
    return nested + [(name, value) for name, value in line.items() if isinstance(value, int | float) and name != "step"]


class TrainProgress:
    """Shows a run on stderr: a live line on a terminal, plain lines elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._console = Console(file=self._stream, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._total = self._begun_at = 0
        self._began = self._told = 0.0

    def started(self, step: int, total: int) -> None:
        """The run stands at `step` of `total`."""
        self._total, self._begun_at = total, step
        self._began = self._told = time.monotonic()
        if self._console.is_terminal:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}  ETA"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._bar.add_task("steps", total=total, completed=step, facts="")

    def advanced(self, line: Mapping[str, Any]) -> None:
        """A line of metrics is there."""
        step, facts = line["step"], _facts(line)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, facts=facts)
        elif time.monotonic() - self._told >= LINE_EVERY or step == self._total:
            self._told = time.monotonic()
            left = (self._told - self._began) / max(1, step - self._begun_at) * (self._total - step)
            eta = timedelta(seconds=round(left))
            print(f"step {step}/{self._total}  {facts}  ETA {eta}", file=self._stream, flush=True)

    def said(self, text: str) -> None:
        """Something that a person should know."""
        self._console.print(text, markup=False)

    def stopped(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _facts(line: Mapping[str, Any]) -> str:
    rate, wait = line["images_per_s"], line["data_wait"]
    return f"loss {line['loss']:.4f}  {rate:.1f} images/s  {wait:.1%} waiting for data"
