"""Threads that make batches ahead of their use.

Threads, not processes: a task reads features by copying them out of mapped files, which other threads can do at the
same time, while another process would have to send each batch over. For a GPU they end in
page-locked memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from trainers.order import Cut
from trainers.tasks.base import Batches, Task
from trainers.tasks.common import flush_task


@dataclass(frozen=True)
class Loaded:
    """What the model takes of one cut, and of each loss how many things it is the mean of."""

    cut: Cut
    batches: Batches
    counts: dict[str, float]


def load(
    task: Task, coming: Iterable[list[Cut]], workers: int, pin: bool = False
) -> Generator[list[Loaded], None, None]:
    """Lists of cuts as batches, in order, made by threads ahead of their use.

    At least one list is ahead; more, as long as fewer than twice as many cuts as threads wait in all.
    """
    coming, ahead, given = iter(coming), deque[list[Future[Loaded]]](), deque[list[Loaded]]()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="loading")

    def fill() -> None:
        while not ahead or sum(map(len, ahead)) < 2 * workers:
            following = list(islice(coming, 1))
            if not following:
                return
            ahead.append([pool.submit(_loaded, task, cut, pin) for cut in following[0]])

    try:
        fill()
        while ahead:
            now = ahead.popleft()
            fill()
            given.append([each.result() for each in now])
            if len(given) > 2:
                # Nobody has them any more. To give large arrays back takes milliseconds, in which the loop would wait.
                pool.submit(given.popleft().clear)
            del now
            yield [*given[-1]]
    finally:
        pool.shutdown(cancel_futures=True)
        flush_task(task)


def _loaded(task: Task, cut: Cut, pin: bool) -> Loaded:
    batches = task.collate(cut.numbers, cut.epoch)
    counts = task.counts(batches)
    return Loaded(cut, {name: each.pin_memory() for name, each in batches.items()} if pin else batches, counts)
