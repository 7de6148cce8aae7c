"""Items by several processes: in their order, after what they wait for, and told of where a process dies."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from pipeline.processes import LOST, side_by_side
from tests.helpers import until


def _noted(item: int, folder: Path) -> int:
    """Twice the item, once two have begun; when it began stands in a file. An odd one takes its process with it."""
    (folder / str(item)).write_text(f"{time.monotonic()} {os.getpid()}")
    if item % 2:
        os._exit(1)
    until(lambda: len(list(folder.iterdir())) > 1)
    return 2 * item


def test_results_come_by_number_and_what_waits_begins_last(tmp_path: Path) -> None:
    """The second item waits for the last one."""
    found = dict(side_by_side(partial(_noted, folder=tmp_path), [0, 2, 4, 6], 2, {1: 3}))
    assert found == {0: 0, 1: 4, 2: 8, 3: 12}
    began = {number: (tmp_path / str(number)).read_text().split() for number in (0, 2, 4, 6)}
    assert max(began, key=lambda number: float(began[number][0])) == 2
    assert len({process for _, process in began.values()} | {str(os.getpid())}) == 3, "two others, which stay"


def test_a_lost_process_is_told_of_and_what_has_not_begun_goes_on(tmp_path: Path) -> None:
    found = dict(side_by_side(partial(_noted, folder=tmp_path), [1, 2, 4], 1, {1: 0}))
    assert found == {0: LOST, 1: 4, 2: 8}
