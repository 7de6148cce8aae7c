"""How a running job looks: a live line on a terminal, plain lines elsewhere, and the summary at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from storage.secrets import shown
from workflows.bottleneck import bottleneck
from workflows.output import emit
from workflows.text import size

if TYPE_CHECKING:
    from rich.progress import Progress

    from pipeline.job import JobResult, JobStart
    from pipeline.probe import Probe
    from pipeline.unit import UnitReport

LINE_EVERY = 10.0  # seconds between plain lines
INTERRUPTED = 130
STAGES = ("read", "decode", "model", "write")


def told(run: Callable[[Any], JobResult], as_json: bool) -> JobResult:
    """Run a job, telling of it and of its end: lines of JSON, or progress on stderr and a summary on stdout.

    Args:
        run: the job, given whoever shows its progress.
    """
    if as_json:
        machine = JsonProgress()
        result = run(machine)
        machine.ended(result)
    else:
        result = run(TerminalProgress())
        print(summary(result), flush=True)
    return result


class TerminalProgress:
    """Shows a job on stderr; stdout stays free for the summary."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        from rich.console import Console

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
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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

    def reported(self, total: UnitReport) -> None:
        """A unit is committed; the bar has counted its images already."""

    def stopped(self) -> None:
        if self._bar is not None:
            self._bar.stop()


class JsonProgress:
    """Tells of a job in JSON lines: `start`, `progress` every ten seconds and at each commit, `end`.

    images    finished in this run, `failed` of them with an error row
    reasons   of the failed ones, and `stage_seconds` by stage, of the units that are committed
    """

    def __init__(self) -> None:
        self._done = self._failed = self._to_do = 0
        self._total: UnitReport | None = None
        self._began = self._told = 0.0

    def started(self, start: JobStart) -> None:
        plan, listing = start.plan, start.listing
        self._to_do = plan.to_do
        self._began = self._told = time.monotonic()
        self._tell(
            "start",
            source=shown(start.job.source.images),
            stores={view: shown(out) for view, out in start.job.outs.items()},
            images=plan.images,
            done_before=plan.done,
            units=len(plan.units),
            passed_over=listing.passed_over,
            repeated=listing.repeated,
            device=start.device,
            weights=start.weights,
        )

    def advanced(self, images: int, failed: int) -> None:
        self._done += images
        self._failed += failed
        if time.monotonic() - self._told >= LINE_EVERY:
            self._progress()

    def reported(self, total: UnitReport) -> None:
        self._total = total
        self._progress()

    def stopped(self) -> None:
        """The end is told by `ended`, which knows more."""

    def ended(self, result: JobResult) -> None:
        report = result.report
        self._tell(
            "end",
            status=result.status,
            images=report.images,
            records=report.records,
            rows=report.rows,
            bytes=report.bytes,
            errors=dict(result.errors),
            seconds=round(result.seconds, 3),
            startup_seconds=round(result.startup, 3),
            images_per_second=round(result.images_per_second, 3),
            stage_seconds=_rounded(report.seconds),
            bottleneck=bottleneck(result),
            peak_rss=report.peak_rss,
        )

    def _progress(self) -> None:
        self._told = time.monotonic()
        seconds = max(self._told - self._began, 1e-6)
        rate = self._done / seconds
        self._tell(
            "progress",
            images=self._done,
            of=self._to_do,
            failed=self._failed,
            seconds=round(seconds, 3),
            images_per_second=round(rate, 3),
            seconds_left=round((self._to_do - self._done) / rate, 1) if rate else None,
            reasons=dict(self._total.reasons) if self._total else {},
            stage_seconds=_rounded(self._total.seconds) if self._total else {},
        )

    def _tell(self, event: str, **facts: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        emit({"event": event, "at": now, **facts})


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {stage: round(value, 3) for stage, value in sorted(seconds.items())}


def opening_lines(start: JobStart) -> list[str]:
    """What a person should know before the first image."""
    plan, listing = start.plan, start.listing
    source = shown(start.job.source.images)
    lines = [f"{plan.images} images in {source}, {plan.done} of them done, on {start.device}"]
    if listing.passed_over:
        files = "file" if listing.passed_over == 1 else "files"
        lines.append(f"{listing.passed_over} other {files} passed over: no images by their names, or excluded")
    if listing.repeated:
        lines.append(f"{listing.repeated} repeats of a listed image left out")
    if start.weights_origin != "checkpoint":
        lines.append(f"weights are {start.weights_origin}: these features are for trying things out only")
    return lines


def plan_facts(start: JobStart, probe: Probe | None, workers: int) -> dict[str, Any]:
    """The same as JSON has it; what a probe would tell is None without one, or where all its images failed."""
    plan, job = start.plan, start.job
    told = probe if probe and sum(probe.reasons.values()) < probe.images else None
    return {
        "source": shown(job.source.images),
        "stores": {view: shown(out) for view, out in job.outs.items()},
        "images": plan.images,
        "done_before": plan.done,
        "to_do": plan.to_do,
        "units": len(plan.units),
        "device": start.device,
        "weights": start.weights,
        "images_per_second": told and round(told.images_per_second, 3),
        "seconds": told and round(told.seconds_for(plan.to_do, workers), 1),
        "bytes": told and told.bytes_for(plan.to_do),
        "reasons": probe and dict(probe.reasons),
    }


def plan_lines(start: JobStart, probe: Probe | None, workers: int) -> list[str]:
    """What a job would do, and what it would cost."""
    plan, job = start.plan, start.job
    lines = [
        *opening_lines(start),
        f"{plan.to_do} to do, in {len(plan.units)} units, into {', '.join(map(shown, job.outs.values()))}",
    ]
    if probe is None:
        return lines
    seconds, failed = probe.seconds_for(plan.to_do, workers), sum(probe.reasons.values())
    if failed == probe.images:
        reasons = ", ".join(f"{count} {name}" for name, count in probe.reasons.most_common())
        return [*lines, f"{failed} images tried here, none of which became a record ({reasons}): no estimate"]
    lines.append(f"{probe.images} images tried here: {probe.images_per_second:.2f} images/s, {failed} failed")
    at_once = f" with {workers} such workers" if workers > 1 else ""
    lines.append(
        f"about {clock(seconds)} hours{at_once}" if seconds >= 3600 else f"about {clock(seconds)} min{at_once}"
    )
    lines.append(f"about {size(probe.bytes_for(plan.to_do))} of features")
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
        lines += [f"  bottleneck  {sentence}" for sentence in [bottleneck(result)] if sentence]
    lines += [f"  store       {shown(out)}" for out in result.start.job.outs.values()]
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
