"""The latency benchmark puts each row beside the paper's as factors of the same base."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.latency import PUBLISHED, STAGES, Watch, shown
from benchmarks.latency_cases import CASES, Mark


def found(case: str, ms: float) -> dict[str, Any]:
    return {"case": case, "ms": ms, "p10": ms, "p90": ms, "stages": dict.fromkeys(STAGES, ms / 3)}


def test_every_published_row_is_a_case_and_every_case_is_published() -> None:
    assert {case for each in PUBLISHED for case in each.rows} == CASES.keys()
    assert all(each.base in each.rows for each in PUBLISHED)


def test_factors_are_of_the_base_row() -> None:
    text = shown(PUBLISHED[0], {each: found(each, ms) for each, ms in (("grid-vlp-x152", 40), ("grid-vlp-x50", 10))})
    [x50] = [line for line in text.splitlines() if line.startswith("| x50 ")]
    assert [cell.strip() for cell in x50.split("|")][-4:-1] == ["0.25", "106", "0.48"]
    assert "x101" not in text  # it was not run


def test_a_watch_tells_the_stages_apart() -> None:
    def run(mark: Mark) -> None:
        for stage in STAGES:
            mark(stage)

    spent = Watch(torch.device("cpu")).of(run)
    assert list(spent) == list(STAGES) and all(each >= 0 for each in spent.values())
