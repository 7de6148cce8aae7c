"""A network that goes wrong where a test says so. Actors import this file with the job that they are given."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch

import pipeline.unit as unit
from extractors import GridConfig, ImageError, Prepared
from extractors.grid import GridExtractor
from storage import Record

DAY = 86400


@dataclass(frozen=True)
class HookedConfig(GridConfig):
    """A small grid network, and what goes wrong with it; nothing of that is part of its spec.

    pause    seconds that each image takes
    room     images that the device has memory for at once
    killer   key of an image whose process dies in the network, by `signal`
    hanging  key of an image whose bytes never come
    jumping  the clock jumps by days, forth and back
    pids     folder in which each process of the network leaves a file of its number, with the GPUs that it was given

    On a device that is not there it runs on the CPU: clusters can be told of GPUs that no machine has.
    """

    pause: float = 0.0
    room: int = 1000
    killer: str = ""
    signal: int = 11
    hanging: str = ""
    jumping: bool = False
    pids: str = ""

    def make(self) -> HookedExtractor:
        return _in_an_actor(self)


class HookedExtractor(GridExtractor):
    def __init__(self, config: HookedConfig) -> None:
        super().__init__(config)
        self.hooks = config

    def extract(self, batch: Sequence[Prepared]) -> list[Record | ImageError]:
        time.sleep(self.hooks.pause * len(batch))
        if any(image.key == self.hooks.killer for image in batch):
            os.kill(os.getpid(), self.hooks.signal)
            time.sleep(600)  # a handler may run in another thread, for a while; whoever crashes goes no further
        if len(batch) > self.hooks.room:
            raise torch.OutOfMemoryError("no room, says the test")
        return super().extract(batch)


class HangingSource:
    """A source of which one image never comes."""

    def __init__(self, source: Any, key: str) -> None:
        self.source, self.key = source, key

    def read(self, uri: str) -> bytes:
        while self.key in uri:
            time.sleep(1)
        data: bytes = self.source.read(uri)
        return data


def jumping_clock() -> Any:
    """A `time.time` that is days wrong, by other days each time."""
    true, days = time.time, random.Random(0)
    return lambda: true() + days.uniform(-3, 3) * DAY


def _in_an_actor(config: HookedConfig) -> HookedExtractor:
    """The driver builds the network, too, to know its spec; nothing goes wrong there."""
    if ray.is_initialized() and ray.get_runtime_context().get_actor_id():
        if config.hanging:
            true = unit.open_source
            unit.open_source = lambda source: HangingSource(true(source), config.hanging)  # type: ignore[assignment]
        if config.jumping:
            time.time = jumping_clock()
        if config.pids:
            (Path(config.pids) / str(os.getpid())).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    if config.device.startswith("cuda"):
        config = replace(config, device="cpu")
    return HookedExtractor(config)
