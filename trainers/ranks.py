"""This process among those that train together: plain torch.distributed, whoever started them.

torchrun and Ray Train tell a process by the environment who it is; alone, it is rank 0 of 1, and nothing here does
anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from extractors.base import pick_device
from storage.errors import TriptychError

T = TypeVar("T")


class EveryRankError(TriptychError):
    """What stops a run on all of its ranks alike; starting them again would change nothing."""


def running() -> bool:
    """True where several processes train together."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if running() else 0


def world() -> int:
    return dist.get_world_size() if running() else 1


def device_of(name: str) -> torch.device:
    """The device a config names; of several GPUs of a machine the one of this process.

    Raises:
        ConfigError: it is not there.
    """
    device = pick_device(name)
    if device.type != "cuda":
        return device
    number = int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index
    return torch.device("cuda", number % torch.cuda.device_count())


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Join the group that torchrun's environment speaks of, unless somebody (Ray Train) has done so."""
    joins = not running() and int(os.environ.get("WORLD_SIZE", 1)) > 1
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if joins:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        if joins:
            dist.destroy_process_group()


def summed(tensor: Tensor) -> Tensor:
    """The sum over all ranks, on each."""
    if running():
        dist.all_reduce(tensor)
    return tensor


def by_first(work: Callable[[], T]) -> T:
    """What rank 0 finds out, on each rank.

    Raises:
        EveryRankError: it met an error that concerns the whole run.
    """
    box: list[Any] = [None]
    if rank() == 0:
        try:
            box = [work()]
        except TriptychError as error:
            box = [error if isinstance(error, EveryRankError) else EveryRankError(str(error))]
    if running():
        dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], EveryRankError):
        raise box[0]
    found: T = box[0]
    return found


def gathered(value: Any) -> list[Any]:
    """What each rank has, on rank 0; elsewhere nothing."""
    if not running():
        return [value]
    found: list[Any] | None = [None] * world() if rank() == 0 else None
    dist.gather_object(value, found, dst=0)
    return found or []
