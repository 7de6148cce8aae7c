"""Which images the network takes at once, and how many: like sizes from a look-ahead window, as many as fit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple, TypeVar

import torch

from extractors.ragged import Size, Together

LOOK_AHEAD = 6  # batches' worth of images that are kept ready, so that a batch finds its like
LARGEST = 32  # images that `auto` takes at most: more give a GPU nothing to gain
ROOM = 0.8  # share of the device's memory that `auto` counts on; the rest is for what differs between batches

T = TypeVar("T")


class Memory(NamedTuple):
    """Bytes of a device: held before the first batch, the most held so far, and all that one process may have."""

    before: int
    most: int
    all: int


class DeviceMemory:
    """Of a GPU, for this process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = torch.cuda.memory_allocated(device)
        self.forget()

    def now(self) -> Memory:
        free, _ = torch.cuda.mem_get_info(self._device)
        most = torch.cuda.max_memory_allocated(self._device)
        return Memory(self._before, most, free + torch.cuda.memory_reserved(self._device))

    def forget(self) -> None:
        """The most held so far: of a job before, or of what did not fit."""
        torch.cuda.reset_peak_memory_stats(self._device)


class Turns:
    """Batches run beside one another, and one may wait until it is alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = self._waiting = 0
        self._alone = False

    @contextmanager
    def beside(self) -> Iterator[None]:
        """While others run, once nobody is alone or waits for it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._waiting)
            self._running += 1
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside `beside`: while nobody else runs, or is alone."""
        self._leave()
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not self._alone and not self._running)
            self._waiting -= 1
            self._alone = True
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._running += 1
                self._changed.notify_all()

    def _leave(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()


class BatchSize:
    """How many images the network takes at once; network threads tell it what fitted.

    Args:
        wanted: a number, or "auto": on a GPU doubled up to `LARGEST` while the memory it took so far says that twice as
            many have room; on a CPU one, since there images run side by side in threads.
        memory: of the device, looked at after each full batch; None on a CPU.
    """

    def __init__(self, wanted: int | Literal["auto"], memory: DeviceMemory | None) -> None:
        self._lock = threading.Lock()
        self._memory = memory if wanted == "auto" else None
        self._grows = self._memory is not None
        self.now = 1 if wanted == "auto" else wanted

    def fitted(self, images: int) -> None:
        """A batch of so many ran."""
        with self._lock:
            if self._memory is None or not self._grows or images < self.now or self.now >= LARGEST:
                return
            memory = self._memory.now()
            if memory.before + 2 * (memory.most - memory.before) <= ROOM * memory.all:
                self.now = min(LARGEST, 2 * images)

    def overflowed(self, images: int) -> None:
        """A batch of so many did not fit: no more than half as many from now on."""
        with self._lock:
            self.now = max(1, min(self.now, images // 2))
            self._grows = False

    def one_alone(self, before: int) -> None:
        """A batch that began with size `before` had an image that has no room alone: it says nothing of others."""
        with self._lock:
            self.now = max(self.now, before)
            self._grows = self._memory is not None
            if self._memory is not None:
                self._memory.forget()

    @property
    def ahead(self) -> int:
        """Images that are kept ready, of which a batch is chosen."""
        return LOOK_AHEAD * self.now if self.now > 1 else 1


def largest(wanted: int | Literal["auto"], on_gpu: bool) -> int:
    """The most images that a batch can ever have."""
    return (LARGEST if on_gpu else 1) if wanted == "auto" else wanted


def device_memory(device: torch.device) -> DeviceMemory | None:
    """What `BatchSize` asks of a device."""
    return DeviceMemory(device) if device.type == "cuda" else None


def like_sized(waiting: Sequence[T], count: int, size_of: Callable[[T], Size | None]) -> tuple[list[T], list[T]]:
    """The first of those that wait with those nearest to it in size, equal ones side by side, and the rest in order.

    What would be in a padded batch of its own waits on: a GPU's thread takes as long for half a batch as for a whole.

    Args:
        count: how many at most.
        size_of: (height, width); None for what never reaches the network, and goes with anyone.
    """
    found = [size_of(each) for each in waiting]
    first = next((size for size in found if size), None)

    def gap(at: int) -> int:
        size = found[at]
        return abs(size[0] - first[0]) + abs(size[1] - first[1]) if size and first else 0

    chosen: list[int] = []
    together = Together()
    for at in sorted(range(len(waiting)), key=lambda at: (at > 0, gap(at))):
        size = found[at]
        if len(chosen) < count and (size is None or together.admits(size)):
            chosen.append(at)
    batch, taken = sorted(chosen, key=lambda at: found[at] or first or (0, 0)), set(chosen)
    return [waiting[at] for at in batch], [each for at, each in enumerate(waiting) if at not in taken]


def in_order(batches: Iterable[Iterable[tuple[int, T]]]) -> Iterator[T]:
    """What is numbered from 0, in the order of its numbers, as soon as it can be had."""
    held: dict[int, T] = {}
    following = 0
    for batch in batches:
        held.update(batch)
        while following in held:
            yield held.pop(following)
            following += 1
