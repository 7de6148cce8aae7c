"""Calls of one function on a Ray cluster, a task each: for work whose results are small and that goes on where it
stopped when it is called again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from pipeline.cluster import connect, last_line, ray  # first of all that imports Ray: it sets what Ray then reads

T = TypeVar("T")
R = TypeVar("R")
RETRIES = 3  # of a task whose process or node was lost


def spread(
    run: Callable[[T], R], items: Sequence[T], device: str, address: str | None
) -> Iterator[tuple[int, R | str]]:
    """The number of each item with its result, as they come; or with a line that says why there is none.

    Args:
        run: a function of an importable module, or a partial of one.
        device: "cuda" for a GPU each, else a CPU each.
        address: as of `EngineConfig.address`.

    Raises:
        ConfigError: the cluster cannot be reached.
    """
    started_here = not ray.is_initialized()
    connect(address)
    task = ray.remote(num_cpus=1, num_gpus=int(device == "cuda"), max_retries=RETRIES)(_call)
    running = {task.remote(run, item): number for number, item in enumerate(items)}
    try:
        while running:
            [done], _ = ray.wait(list(running), num_returns=1)
            number = running.pop(done)
            try:
                yield number, ray.get(done)
            except ray.exceptions.RayError as error:
                yield number, last_line(error)
    finally:
        for left in running:
            ray.cancel(left, force=True)
        if started_here:
            ray.shutdown()


def _call(run: Callable[[T], R], item: T) -> R:
    return run(item)
