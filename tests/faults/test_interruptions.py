"""Killed, interrupted and resumed: nothing lost, nothing doubled, and the end is the same as without."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from storage import open_store, verify_store
from tests.forked import Command
from tests.helpers import TINY, differences, write_photos

KILLS = 10


def start(photos: Path, out: Path) -> Command:
    """The command in a process of its own, as far as its first line, so that the clock starts with the work."""
    flags = ["--images", str(photos), "--out", str(out), "--images-per-shard", "2", *TINY]
    command = Command("workflows.cli", ["extract", "regions", *flags], out.parent / "said")
    while " images in " not in command.err and command.poll() is None:
        time.sleep(0.005)
    return command


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_at_ten_random_moments_then_the_store_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 90)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"")
    process = start(tmp_path / "photos", tmp_path / "whole")
    began = time.monotonic()
    assert process.wait() == 0
    moments = random.Random(7)
    longest = (time.monotonic() - began) / KILLS
    hit, counts = 0, []
    for _ in range(KILLS):
        process = start(tmp_path / "photos", tmp_path / "killed")
        time.sleep(moments.uniform(0, longest))
        hit += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert verify_store(tmp_path / "killed").problems == []
        counts.append(len(open_store(tmp_path / "killed")))
    assert hit >= KILLS // 2, f"only {hit} of {KILLS} kills met a running job: {counts}"
    assert counts == sorted(counts)
    assert start(tmp_path / "photos", tmp_path / "killed").wait() == 0
    assert differences(tmp_path / "killed", tmp_path / "whole") == []
    found = verify_store(tmp_path / "killed")
    assert found.problems == []
    assert not list((tmp_path / "killed").rglob(".*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_keeps_what_is_committed_and_ends_with_130(how: signal.Signals, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 90)
    process = start(tmp_path / "photos", tmp_path / "s")
    while not list((tmp_path / "s" / "manifest").glob("*.json")):
        time.sleep(0.01)
    process.send_signal(how)
    assert process.wait() == 130
    assert "interrupted" in process.out
    store = open_store(tmp_path / "s")
    assert 0 < len(store) < 90
    assert not store.run["complete"]
    assert verify_store(tmp_path / "s").problems == []
    assert not list((tmp_path / "s").rglob(".*.partial"))
