"""How a running job looks: a live line on a terminal, plain lines elsewhere, and the summary at the end."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.job import INTERRUPTED, JobResult, JobStart
from pipeline.unit import STAGES
from workflows.text import size

LINE_EVERY = 10.0  # seconds between plain lines


class TerminalProgress:
    """Shows a job on stderr; stdout stays free for the summary."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._console = Console(file=self._stream, highlight=False, soft_wrap=True)
        self._done = self._failed = self._to_do = 0
        self._bar: Progress | None = None
        self._began = self._told = 0.0

    def started(self, start: JobStart) -> None:
        """Say what will run, and with which weights, before the first image."""
        for line in opening_lines(start):
            self._console.print(line, markup=False)
        self._to_do = start.plan.to_do
        self._began = self._told = time.monotonic()
        if self._console.is_terminal and self._to_do:
            self._bar = Progress(
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}  {task.fields[failed]} failed  ETA"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
            self._bar.add_task("images", total=self._to_do, rate="", failed=0)

    def advanced(self, images: int, failed: int) -> None:
        """Count finished images; `failed` of them have an error row."""
        self._done += images
        self._failed += failed
        rate = self._done / max(time.monotonic() - self._began, 1e-6)
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=self._done, rate=f"{rate:.1f} images/s", failed=self._failed)
        elif time.monotonic() - self._told >= LINE_EVERY:
            self._told = time.monotonic()
            left = (self._to_do - self._done) / rate
            line = f"{self._done}/{self._to_do} images  {rate:.2f} images/s  ETA {clock(left)}  {self._failed} failed"
            print(line, file=self._stream, flush=True)

    def stopped(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def opening_lines(start: JobStart) -> list[str]:
    """What a person should know before the first image."""
    plan, listing = start.plan, start.listing
    lines = [f"{plan.images} images in {start.job.source.images}, {plan.done} of them done, on {start.device}"]
    if listing.passed_over:
        files = "file" if listing.passed_over == 1 else "files"
        lines.append(f"{listing.passed_over} other {files} passed over: no images by their names, or excluded")
    if listing.repeated:
        lines.append(f"{listing.repeated} repeats of a listed image left out")
    if start.weights_origin != "checkpoint":
        lines.append(f"weights are {start.weights_origin}: these features are for trying things out only")
    return lines


def summary(result: JobResult) -> str:
    """The end of a job in a few lines: counts, errors by reason, speed, where the time went, bytes."""
    report, plan = result.report, result.start.plan
    failed = sum(result.errors.values())
    lines = [
        "interrupted: what is committed is kept; the same command goes on from here"
        if result.status == INTERRUPTED
        else "done",
        f"  images      {plan.images} ({plan.done} before this run, {report.images} in it)",
        f"  records     {report.records} in this run, {report.rows} rows, {size(report.bytes)}",
        f"  errors      {failed}" + "".join(f"\n    {count:>6}  {name}" for name, count in result.errors.most_common()),
    ]
    if report.images:
        lines.append(f"  speed       {result.images_per_second:.2f} images/s over {clock(result.seconds)}")
        lines.append(f"  started in  {result.startup:.1f} s, largest process {size(report.peak_rss)}")
        lines.append(f"  time        {time_split(report.seconds)}")
    lines.append(f"  store       {result.start.job.engine.out}")
    if result.start.weights_origin != "checkpoint":
        lines.append(f"  weights     {result.start.weights_origin}: features for trying things out only")
    return "\n".join(lines)


def time_split(seconds: dict[str, float]) -> str:
    """Seconds by stage, summed over threads; the stages overlap, so "idle" is what the others cost the model."""
    parts = [f"{stage} {seconds.get(stage, 0.0):.1f} s" for stage in STAGES]
    return ", ".join([*parts, f"model idle {seconds.get('idle', 0.0):.1f} s"])


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
