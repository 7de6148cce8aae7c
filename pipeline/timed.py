"""Reading that may hang: a read is given up after a time, and its thread left behind."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from extractors.images import ImageError

Read = Callable[[str], bytes]
TRIES = 2


def read_within(read: Read, uri: str, seconds: float) -> bytes:
    """What `read(uri)` gives, asked a second time where the first one did not answer in time.

    Nothing can stop a thread that waits for a dead network folder, so a daemon thread does the waiting, one for each
    caller's thread, and is replaced where it does not come back.

    Raises:
        ImageError: reason "timeout", or what `read` raises.
    """
    for _ in range(TRIES):
        try:
            return _reader().ask(read, uri, seconds)
        except queue.Empty:
            _mine.reader = _Reader()
    raise ImageError("timeout", f"{uri} was not read within {seconds:g} s, tried {TRIES} times", stage="read")


class _Reader:
    """A thread that reads what it is asked for, one thing after the other, and ends with this object."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[Read, str] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()
        threading.Thread(target=_answer, args=(self._asked, self._answers), daemon=True, name="reader").start()

    def __del__(self) -> None:
        self._asked.put(None)

    def ask(self, read: Read, uri: str, seconds: float) -> bytes:
        self._asked.put((read, uri))
        answer = self._answers.get(timeout=seconds)
        if isinstance(answer, BaseException):
            raise answer
        return answer


def _answer(asked: queue.SimpleQueue[Any], answers: queue.SimpleQueue[Any]) -> None:
    while (question := asked.get()) is not None:
        read, uri = question
        try:
            answers.put(read(uri))
        except BaseException as error:  # the asking thread decides what it means
            answers.put(error)
        del question, read  # not kept until the next one comes


_mine = threading.local()


def _reader() -> _Reader:
    if not hasattr(_mine, "reader"):
        _mine.reader = _Reader()
    reader: _Reader = _mine.reader
    return reader
