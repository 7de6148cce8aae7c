"""Calls of one function side by side on this machine, by processes that stay: for work whose results are small and that
goes on where it stopped when it is called again."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
LOST = "its process was lost; the memory of the machine may be too small for so many processes."


def side_by_side(
    run: Callable[[T], R], items: Sequence[T], processes: int, after: Mapping[int, int]
) -> Iterator[tuple[int, R | str]]:
    """The number of each item with its result, as they come; or with a line that says why there is none.

    Items begin in their order, but for those that have to wait. What the processes print is mixed, and not shown.

    Args:
        run: a function of an importable module, or a partial of one.
        processes: so many at most.
        after: of an item that has to wait, by its number, the one that must have ended.

    Raises:
        KeyboardInterrupt: it was asked to stop; what runs has come to its end.
    """
    waiting, ended, running = list(range(len(items))), set[int](), dict[Future[R], int]()
    pool, broken = _pool(processes), False
    try:
        while waiting or running:
            ready = [number for number in waiting if number not in after or after[number] in ended]
            for number in ready[: 0 if broken else processes - len(running)]:
                waiting.remove(number)
                running[pool.submit(run, items[number])] = number
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number = running.pop(future)
                ended.add(number)
                broken = isinstance(future.exception(), BrokenProcessPool)
                yield number, LOST if broken else future.result()
            if broken and not running:  # all that ran are lost with the one; what has not begun gets new processes
                pool, broken = _pool(processes), False
    finally:
        pool.shutdown(cancel_futures=True)


def _pool(processes: int) -> ProcessPoolExecutor:
    """Spawned, not forked: who calls may have threads, or a GPU."""
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_begin)


def _begin() -> None:
    """Ctrl-C is for the process that waits for all; a run heeds it by itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the process ends
