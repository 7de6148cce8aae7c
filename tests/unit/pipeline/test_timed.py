"""Reads that hang are given up, retried once, and noted; others are as if nobody watched."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from extractors import ImageError
from pipeline.timed import read_within
from tests.helpers import until


class Source:
    """Hangs for the first `hanging` reads of each address."""

    def __init__(self, hanging: int = 0) -> None:
        self.asked: list[str] = []
        self.release = threading.Event()
        self._hanging = hanging

    def read(self, uri: str) -> bytes:
        self.asked.append(uri)
        if self.asked.count(uri) <= self._hanging:
            self.release.wait(30)
        if uri == "bad":
            raise ImageError("missing", "not there", "read")
        return uri.encode()


def test_bytes_and_errors_come_as_they_are() -> None:
    source = Source()
    assert read_within(source.read, "a", 5) == b"a"
    with pytest.raises(ImageError, match="not there"):
        read_within(source.read, "bad", 5)
    assert read_within(source.read, "b", 5) == b"b"


def test_a_read_that_hangs_once_is_tried_again() -> None:
    source = Source(hanging=1)
    assert read_within(source.read, "a", 0.5) == b"a"
    assert source.asked == ["a", "a"]
    source.release.set()
    assert read_within(source.read, "a", 5) == b"a"  # and the late answer of the first is nobody's


def test_a_read_that_hangs_is_an_error_of_the_image() -> None:
    source = Source(hanging=9)
    with pytest.raises(ImageError, match="not read within 0.05 s, tried 2 times") as caught:
        read_within(source.read, "a", 0.05)
    assert (caught.value.reason, caught.value.stage) == ("timeout", "read")
    source.release.set()


def test_a_clock_that_jumps_does_not_end_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(uri: str) -> bytes:
        monkeypatch.setattr(time, "time", lambda: 4e9)
        time.sleep(0.05)
        return b"x"

    assert read_within(slow, "a", 5) == b"x"


def test_the_reading_thread_ends_with_its_caller() -> None:
    def readers() -> int:
        gc.collect()
        return sum(thread.name == "reader" for thread in threading.enumerate())

    before = readers()
    caller = threading.Thread(target=lambda: read_within(Source().read, "a", 5))
    caller.start()
    caller.join()
    until(lambda: readers() <= before)
