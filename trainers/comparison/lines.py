"""Cells that differ in their seed only as one line: means with their spread, and how the tables say them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainers.comparison.result import PARTS, CellResult

MIB = 2**20
TASKS = {
    "vqa": "Visual question answering",
    "gqa": "Visual question answering",
    "nlvr2": "Statements about two images",
    "snli-ve": "Visual entailment",
    "refcoco": "Referring expressions",
    "retrieval": "Image and text retrieval",
    "vcr-answer": "Commonsense: which answer",
    "vcr-rationale": "Commonsense: why that answer",
}


@dataclass(frozen=True)
class Spread:
    """Numbers of several seeds.

    mean   of them
    sd     sample standard deviation (over n - 1); None of a single number
    count  how many there are
    """

    mean: float
    sd: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """Of the numbers among them; None where there are none."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        mean = math.fsum(known) / len(known)
        if len(known) == 1:
            return cls(mean, None, 1)
        return cls(mean, math.sqrt(math.fsum((each - mean) ** 2 for each in known) / (len(known) - 1)), len(known))


@dataclass(frozen=True)
class Line:
    """One line of a table.

    label  as the tables call it
    cells  finished ones, a seed each
    """

    label: str
    cells: tuple[CellResult, ...]

    @property
    def first(self) -> CellResult:
        """The cell of the first seed."""
        return self.cells[0]

    def of(self, column: str) -> Spread | None:
        """A column, or a property, of the cells."""
        return Spread.of([getattr(cell, column) for cell in self.cells])

    def latency(self, source: str) -> dict[str, float] | None:
        """Mean milliseconds by part, from "cache" or "pixels"; None where it was not measured."""
        found = {part: self.of(f"{source}_{part}_ms") for part in PARTS}
        known = {part: spread.mean for part, spread in found.items() if spread}
        return known if len(known) == len(PARTS) else None

    def answer(self, source: str) -> Spread | None:
        """Milliseconds from "cache" or "pixels" to the answer."""
        return Spread.of([math.fsum(parts.values()) for cell in self.cells if (parts := cell.latency(source))])

    def total(self, source: str) -> float | None:
        """The mean of `answer`."""
        spread = self.answer(source)
        return spread.mean if spread else None


@dataclass(frozen=True)
class Table:
    """The lines of one task on one data set, whose scores can be compared.

    task, data, metric  as of `CellResult`
    blind               the score without looking, percent
    """

    task: str
    data: str
    metric: str
    blind: float
    lines: tuple[Line, ...]

    @property
    def name(self) -> str:
        return table_name(self.task, self.data)


def table_name(task: str, data: str) -> str:
    """What the table of a task on a data set is called."""
    return f"{TASKS.get(task, task)} ({data})"


def tables_of(results: Sequence[CellResult]) -> list[Table]:
    """Finished cells by what they were scored on, and then by line, in the order in which they come."""
    groups: dict[tuple[str, str], dict[str, list[CellResult]]] = {}
    for each in results:
        if each.error is None and each.metric is not None:
            groups.setdefault((each.task, each.data), {}).setdefault(each.label, []).append(each)
    found = []
    for (task, data), labels in groups.items():
        lines = tuple(Line(label, tuple(cells)) for label, cells in labels.items())
        blind = Spread.of([cell.blind for line in lines for cell in line.cells])
        found.append(Table(task, data, str(lines[0].first.metric), blind.mean if blind else 0.0, lines))
    return found


def spread_text(spread: Spread | None, digits: int = 1) -> str:
    """A mean, and the standard deviation over seeds where there are several."""
    if spread is None:
        return "–"
    return f"{spread.mean:.{digits}f}" + ("" if spread.sd is None else f" ± {spread.sd:.{digits}f}")


def number(value: float | None) -> str:
    """A positive number with three digits that tell something."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def duration(hours: float | None) -> str:
    """A time in the unit that people would take."""
    if hours is None:
        return "–"
    for unit, of_hour in (("h", 1), ("min", 60)):
        if hours * of_hour >= 1:
            return f"{number(hours * of_hour)} {unit}"
    return f"{number(hours * 3600)} s"


def _answer(source: str) -> Callable[[Line], str]:
    def said(line: Line) -> str:
        spread = line.answer(source)
        return spread_text(spread, len(number(spread.mean).partition(".")[2]) if spread else 0)

    return said


def _mean(column: str, scale: float = 1.0) -> Callable[[Line], str]:
    def said(line: Line) -> str:
        spread = line.of(column)
        return number(spread.mean * scale if spread else None)

    return said


def _hours(column: str) -> Callable[[Line], str]:
    def said(line: Line) -> str:
        spread = line.of(column)
        return duration(spread.mean if spread else None)

    return said


# What the tables of Markdown and of the page show of a line: the head of the column, and its text.
COLUMNS: tuple[tuple[str, Callable[[Line], str]], ...] = (
    ("score, %", lambda line: spread_text(line.of("score"))),
    ("seeds", lambda line: str(len(line.cells))),
    ("updates × examples", lambda line: f"{line.first.steps:,} × {line.first.batch_size}"),
    ("answer from the image, ms", _answer("pixels")),
    ("answer from the cache, ms", _answer("cache")),
    ("extraction, ms an image", _mean("extraction_ms")),
    ("extraction, one device", _hours("extraction_hours")),
    ("features, MiB", _mean("feature_bytes", 1 / MIB)),
    ("a training step, ms", _mean("step_ms")),
    ("training", _hours("training_hours")),
    ("pre-training", _hours("pretraining_hours")),
    ("all together", _hours("cost_hours")),
    ("memory in training, MiB", _mean("peak_bytes", 1 / MIB)),
    ("parameters, millions", _mean("parameters", 1e-6)),
    ("of the extractor", _mean("extractor_parameters", 1e-6)),
)


def columns_of(table: Table) -> list[tuple[str, Callable[[Line], str]]]:
    """The columns in which a table says something: those of caches are left out where there are none."""
    return [(head, text) for head, text in COLUMNS if {text(line) for line in table.lines} - {"–", "0", "0 s"}]


def failures(results: Sequence[CellResult]) -> list[str]:
    """What went wrong, a line for each reason; of its cells those that differ in their seed only are named together."""
    reasons: dict[str, list[CellResult]] = {}
    for each in results:
        if each.error:
            reasons.setdefault(each.error, []).append(each)
    return [f"{_called(cells)}: {reason}" for reason, cells in reasons.items()]


def _called(cells: Sequence[CellResult]) -> str:
    if len(cells) == 1:
        return cells[0].called
    seeds: dict[str, list[str]] = {}
    for each in cells:
        seeds.setdefault(f"{each.label}, {each.task}", []).append(str(each.seed))
    named = "; ".join(f"{name} (seed {', '.join(numbers)})" for name, numbers in seeds.items())
    return f"{len(cells)} runs, {named}"


def markdown(title: str, results: Sequence[CellResult], about: Sequence[str]) -> str:
    """The tables as Markdown.

    Args:
        about: lines that say how, where and when it was measured.
    """
    parts = [f"# {title}"]
    for table in tables_of(results):
        columns = columns_of(table)
        head = ["", *(head for head, _ in columns)]
        rows = [[line.label, *(text(line) for _, text in columns)] for line in table.lines]
        lines = [head, ["---"] * len(head), *rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        blind = f"Score: {table.metric}. Without looking at images: {table.blind:.1f} %."
        parts.append(f"## {table.name}\n\n{blind}\n\n{body}")
    failed = failures(results)
    if failed:
        parts.append("## Failed\n\n" + "\n".join(f"- {each}" for each in failed))
    return "\n\n".join([*parts, *about]) + "\n"
