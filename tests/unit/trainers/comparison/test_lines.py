"""Seeds summed up: means, spread, and how tables say them."""

from __future__ import annotations

import statistics

import pytest

from tests.unit.trainers.comparison.cells import cached, result
from trainers.comparison.lines import Line, Spread, duration, failures, markdown, number, spread_text, tables_of
from trainers.comparison.result import CellResult


def test_the_spread_is_the_sample_standard_deviation() -> None:
    values = [50.0, 53.0, 61.0]
    spread = Spread.of(values)
    assert spread == Spread(pytest.approx(statistics.mean(values)), pytest.approx(statistics.stdev(values)), 3)
    assert Spread.of([7.0, None]) == Spread(7.0, None, 1)
    assert Spread.of([None]) is None
    assert (spread_text(spread), spread_text(Spread.of([7.0])), spread_text(None)) == ("54.7 ± 5.7", "7.0", "–")


def test_cells_are_put_together_by_what_was_scored_and_by_label() -> None:
    cells = [
        result(seed=0, score=50.0),
        result(seed=1, score=54.0, blind=42.0),
        cached(seed=0),
        result("ViLT, pixels", data="nlvr2", task="nlvr2", score=70.0),
        CellResult("x", "ViLT, pixels", task="vqa", data="vqav2", error="broke"),
        result("pre-training", metric=None, score=None),
    ]
    vqa, nlvr2 = tables_of(cells)
    assert [line.label for line in vqa.lines] == ["ViLT, pixels", "VL-BERT, cached regions"]
    assert [len(line.cells) for line in vqa.lines] == [2, 1]
    assert vqa.lines[0].of("score") == Spread(52.0, pytest.approx(8**0.5), 2)
    assert vqa.blind == pytest.approx((40 + 42 + 40) / 3)
    assert (nlvr2.name, nlvr2.lines[0].first.score) == ("Statements about two images (nlvr2)", 70.0)


def test_latency_is_there_only_where_all_of_it_was_measured() -> None:
    line = Line("a", (result(), result(seed=1, pixels_visual_ms=6.0)))
    assert line.latency("pixels") == {"visual": 5.0, "transformer": 3.0, "heads": 2.0, "rest": 1.0}
    assert line.total("pixels") == 11.0
    assert line.latency("cache") is None and line.total("cache") is None


@pytest.mark.parametrize(
    ("hours", "text"), [(30, "30.0 h"), (1, "1.00 h"), (0.5, "30.0 min"), (0.01, "36.0 s"), (0, "0 s"), (None, "–")]
)
def test_times_have_the_unit_that_people_would_take(hours: float | None, text: str) -> None:
    assert duration(hours) == text


@pytest.mark.parametrize(
    ("value", "text"), [(12345.6, "12,346"), (12.34, "12.3"), (1.234, "1.23"), (0.01234, "0.0123"), (0, "0")]
)
def test_numbers_keep_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_what_failed_for_one_reason_is_one_line() -> None:
    def lost(label: str, task: str, seed: int, error: str | None = "its time was over") -> CellResult:
        return CellResult("x", label, task=task, seed=seed, error=error)

    cells = [lost("A", "vqa", 1), lost("A", "vqa", 2), lost("B", "vqa", 2), lost("A", "nlvr2", 2, "no file")]
    assert failures([*cells, lost("B", "vqa", 0, None)]) == [
        "3 runs, A, vqa (seed 1, 2); B, vqa (seed 2): its time was over",
        "A, seed 2, nlvr2: no file",
    ]


def test_the_markdown_has_a_line_for_each_label_and_names_what_failed() -> None:
    cells = [
        result(seed=0),
        result(seed=1, score=52.0, pixels_visual_ms=5.0),
        cached(),
        CellResult("x", "METER", task="vqa", seed=3, error="no such file"),
    ]
    text = markdown("Side by side", cells, ["Measured today."])
    lines = text.splitlines()
    assert lines[0] == "# Side by side" and "Without looking at images: 40.0 %." in text
    [vilt] = [line for line in lines if line.startswith("| ViLT, pixels")]
    assert vilt.split(" | ")[1:5] == ["51.0 ± 1.4", "2", "40 × 8", "10.5 ± 0.7"]
    [vl_bert] = [line for line in lines if line.startswith("| VL-BERT")]
    assert vl_bert.split(" | ")[4:9] == ["96.0", "7.00", "80.0", "15.0 min", "5.00"]
    assert "- METER, seed 3, vqa: no such file" in lines and lines[-1] == "Measured today."
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert len(widths) == 1
