"""The page of a comparison: one HTML file with tables, charts and examples, which needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.comparison.charts import Curve, Point, curves, scatter
from trainers.comparison.examples import Shown
from trainers.comparison.lines import Line, Table, columns_of, duration, failures, number, tables_of
from trainers.comparison.result import PARTS, CellResult

TEMPLATE = Path(__file__).parent / "report.html"
SOURCES = {"pixels": "from the image", "cache": "from the cache"}
PART_NAMES = {"visual": "visual embedding", "transformer": "transformer", "heads": "heads", "rest": "text, layout"}


@dataclass(frozen=True)
class Report:
    """What the page shows.

    title      of the comparison
    source     the paper's table that it follows, if any
    results    all cells
    examples   on which lines disagree
    command    that made it
    processes  how many cells ran at once on one machine
    begun      whether models begin with weights that were given
    """

    title: str
    results: Sequence[CellResult]
    command: str
    source: str = ""
    examples: Sequence[Shown] = ()
    processes: int = 1
    begun: bool = False


def render(report: Report) -> str:
    """The page as HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    results = report.results
    return environment.get_template(TEMPLATE.name).render(
        report=report,
        tables=[_table(table) for table in tables_of(results)],
        failed=failures(results),
        tiny=any(each.tiny for each in results),
        parts=PART_NAMES,
        facts=facts_of(results),
    )


def facts_of(results: Sequence[CellResult]) -> dict[str, list[str]]:
    """Where and when cells were measured, and what made their features; each value once."""
    found: dict[str, dict[str, None]] = {"hardware": {}, "date": {}, "specs": {}}
    for each in results:
        for name in ("hardware", "date"):
            if value := getattr(each, name):
                found[name][value] = None
        found["specs"].update(dict.fromkeys(each.specs))
    return {name: list(values) for name, values in found.items()}


def _table(table: Table) -> dict[str, Any]:
    """A table and its charts, as the template takes them."""
    return {
        "table": table,
        "columns": [head for head, _ in columns_of(table)],
        "rows": [(line.label, [text(line) for _, text in columns_of(table)]) for line in table.lines],
        "latency": _scatter(table, _latency, "milliseconds to an answer", table.metric),
        "cost": _scatter(table, _cost, "seconds of extraction and training", table.metric),
        "bars": bars(table),
        "loss": _curves(table, "loss", "loss"),
        "score": _curves(table, "score", f"{table.metric}, %"),
        "names": [line.label for line in table.lines],
        "best": _best(table),
    }


def _best(table: Table) -> dict[str, Any]:
    """What a hasty reader wants to know: which line has the best score, which is the fastest, which the cheapest."""
    best = max(table.lines, key=_score)
    quick = min(table.lines, key=lambda line: _latency(line) or float("inf"))
    cheap = min(table.lines, key=lambda line: _cost(line) or float("inf"))
    cost = _cost(cheap)
    return {
        "best": best.label,
        "score": f"{_score(best):.1f}",
        "seen": _score(best) > table.blind,
        "quick": quick.label,
        "ms": number(_latency(quick)),
        "cheap": cheap.label,
        "cost": duration(None if cost is None else cost / 3600),
    }


def _score(line: Line) -> float:
    spread = line.of("score")
    return spread.mean if spread else 0.0


def _latency(line: Line) -> float | None:
    """Milliseconds to an answer as the line is meant to be used: from the cache, where it has one."""
    return line.total("cache") or line.total("pixels")


def _cost(line: Line) -> float | None:
    """Seconds of one device."""
    spread = line.of("cost_hours")
    return None if spread is None else 3600 * spread.mean


def _scatter(table: Table, x_of: Any, x_name: str, metric: str) -> str:
    points = []
    for colour, line in enumerate(table.lines):
        x, score = x_of(line), line.of("score")
        if x and score:
            points.append(Point(line.label, x, score.mean, score.sd, colour))
    return scatter(points, x_name, f"{metric}, %", ("without looking", table.blind)) if points else ""


def bars(table: Table) -> list[dict[str, Any]]:
    """Of each line and source the parts of its time: their share of the longest time of all, percent."""
    rows: list[tuple[str, str, Mapping[str, float]]] = []
    for line in table.lines:
        for source, name in SOURCES.items():
            parts = line.latency(source)
            if parts is not None:
                rows.append((line.label, name, parts))
    longest = max((sum(parts.values()) for _, _, parts in rows), default=1.0)
    return [
        {
            "label": label,
            "source": source,
            "total": number(sum(parts.values())),
            "parts": [(part, number(parts[part]), 100 * max(0.0, parts[part]) / longest) for part in PARTS],
        }
        for label, source, parts in rows
    ]


def _curves(table: Table, column: str, name: str) -> str:
    """Of every cell the curve of its loss or score; of one line in one colour."""
    found = []
    for colour, line in enumerate(table.lines):
        for cell in line.cells:
            points = [(each["step"], each[column]) for each in cell.curve if each[column] is not None]
            if points:
                found.append(Curve(f"{line.label}, seed {cell.seed}", points, colour))
    return curves(found, "updates", name) if found else ""
