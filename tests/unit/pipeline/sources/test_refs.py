"""Lists of images of any length: in memory or on disk, they behave as plain lists and hold no more than a page."""

from __future__ import annotations

import gc
import os
import subprocess
import tempfile
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources import ImageRef, Refs, refs, twins
from pipeline.sources.twins import Twins
from storage.errors import StoreError


@pytest.fixture(autouse=True, params=["memory", "disk"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Pages of 8 images; with "disk", 20 are too many for the memory. Where temporary files lie."""
    monkeypatch.setattr(refs, "PAGE", 8)
    monkeypatch.setattr(refs, "HELD", 20 if request.param == "disk" else 10**6)
    monkeypatch.setattr(twins, "HELD", 20 if request.param == "disk" else 10**6)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def images(count: int) -> Iterator[ImageRef]:
    return (ImageRef(f"k{number}", f"/x/é{number}.jpg") for number in range(count))


@pytest.mark.parametrize("count", [0, 1, 8, 21, 50])
def test_it_is_a_sequence_like_a_list(count: int) -> None:
    found, plain = Refs.of(images(count)), list(images(count))
    assert found == plain and list(found) == plain and len(found) == count and bool(found) == bool(count)
    for each in (
        slice(None),
        slice(3, 19),
        slice(-4, None),
        slice(40, 90),
        slice(None, None, 7),
        slice(None, None, -1),
    ):
        assert found[each] == plain[each]
    assert [found[at] for at in range(-count, count)] == plain + plain
    for at in (count, -count - 1):
        with pytest.raises(IndexError, match=f"there are {count} images, and none is number {at}"):
            found[at]
    assert Refs.of(found) is found


def test_choices_of_choices_are_those_of_both() -> None:
    found, numbers = Refs.of(images(50)), range(50)
    odd = found.select(lambda keys: np.array([int(key[1:]) % 2 == 1 for key in keys]))
    late = odd.select(lambda keys: np.array([int(key[1:]) > 20 for key in keys]))
    assert [ref.key for ref in late] == [f"k{n}" for n in numbers if n % 2 and n > 20]
    assert [ref.key for ref in late.first(5)] == ["k21", "k23", "k25", "k27", "k29"]
    assert late.first(None) is late and late.first(100) is late and late.first(0) == []
    assert late[3:6] == [late[at] for at in (3, 4, 5)]
    assert late.holding(["k21", "k1", "k22", "elsewhere"]) == {"k21"}
    assert len(found) == 50  # the first list is as it was


def test_threads_may_share_one() -> None:
    found, plain, wrong = Refs.of(images(400)), list(images(400)), []

    def look(step: int) -> None:
        wrong.extend(at for at in range(0, 400, step) if found[at] != plain[at])

    threads = [threading.Thread(target=look, args=(step,)) for step in (1, 3, 7, 11)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


def test_temporary_files_go_with_the_list(kept: Path) -> None:
    found = Refs.of(images(50))
    part = found.first(3)
    folders = list(kept.iterdir())
    del found
    gc.collect()
    assert len(part) == 3 and list(kept.iterdir()) == folders
    assert all(folder.stat().st_mode & 0o077 == 0 for folder in folders)  # addresses may hold secrets
    del part
    gc.collect()
    assert not list(kept.iterdir())


def test_what_a_killed_process_left_goes_with_the_next(kept: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    mine = refs.Scratch()
    left = kept / mine.path.name.replace(f"~{os.getpid()}~", f"~{dead.pid}~")
    left.mkdir()
    also_mine = refs.Scratch()
    assert set(kept.iterdir()) == {mine.path, also_mine.path}


def test_no_room_for_temporary_files_is_one_line(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refs, "HELD", 20)
    monkeypatch.setattr(tempfile, "tempdir", str(kept / "absent"))
    with pytest.raises(StoreError, match="cannot write .*absent: No such file") as caught:
        Refs.of(images(50))
    assert "\n" not in str(caught.value)


def test_memory_does_not_grow_with_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as Python sees it; `benchmarks/plan_scale.py` measures the whole process."""
    monkeypatch.setattr(refs, "PAGE", 1024)
    monkeypatch.setattr(refs, "HELD", 1024)
    peaks = []
    for count in (10_000, 40_000):
        tracemalloc.start()
        found = Refs.of(images(count))
        left = found.select(lambda keys: np.arange(len(keys)) % 2 == 0)
        assert sum(1 for _ in left) == count / 2
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] < 3e6


# Twins


def taken(pairs: list[tuple[str, str]]) -> tuple[Twins, Refs]:
    found = Twins()
    for start in range(0, len(pairs), 7):
        part = pairs[start : start + 7]
        found.add([key for key, _ in part], [uri for _, uri in part])
    return found, Refs.of(ImageRef(*pair) for pair in pairs)


def test_repeats_are_told_from_clashes() -> None:
    pairs = [(f"k{number % 40}", f"u{number % 40}") for number in range(100)]
    found, listed = taken(pairs)
    bits = np.unpackbits(found.repeats(), bitorder="little")[:100]
    assert bits.tolist() == [0] * 40 + [1] * 60
    assert found.clash(listed) is None


def test_the_first_clash_is_named_and_the_others_counted() -> None:
    pairs = [(f"k{number}", f"u{number}") for number in range(50)]
    pairs[30], pairs[44] = ("k7", "other"), ("k3", "another")
    found, listed = taken(pairs)
    assert found.clash(listed) == (ImageRef("k7", "u7"), ImageRef("k7", "other"), 1)
    assert not found.repeats().any()


def test_equal_hashes_are_no_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "hashes_of", lambda texts: np.array([len(text) for text in texts], np.uint64))
    found, listed = taken([("a", "x"), ("b", "xy"), ("cd", "x")])
    assert found.clash(listed) is None
    found, listed = taken([("a", "x"), ("b", "xy"), ("a", "xyz")])
    assert not found.repeats().any()
