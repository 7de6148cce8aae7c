"""Images of several units on their way to the networks: loaded in order, put into batches with their like, and run.

One thread does so for all units of a worker, whoever waits for a disk meanwhile. What one unit's images leave over, the
next one's batches take along: of few images a batch seldom finds its like in size.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple

from extractors import ImageError
from extractors.ragged import Size
from extractors.views import Ready
from pipeline.batching import BatchSize, like_sized
from pipeline.sources import ImageRef
from storage import ErrorRow, Record

UNTOLD = 8  # batches that have run and nobody has taken: with so many, what writes is slower than the networks
Outcomes = dict[str, Record | ErrorRow]  # of one image, by view


@dataclass(frozen=True)
class Loaded:
    """An image ready for the networks, or what is wrong with it, and the seconds it took by stage."""

    ref: ImageRef
    ready: Ready | ImageError
    seconds: dict[str, float]

    @property
    def size(self) -> Size | None:
        """(height, width) that it has for the first network that takes it; None where none does."""
        if isinstance(self.ready, ImageError):
            return None
        return next((each.size for each in self.ready.values() if not isinstance(each, ImageError)), None)


class Image(NamedTuple):
    """A loaded image, with its number in its unit."""

    number: int
    loaded: Loaded
    unit: Flow


class Batch(NamedTuple):
    """What became of images that ran together, one outcome each, and the seconds it took."""

    images: list[Image]
    outcomes: list[Outcomes]
    seconds: float


class _Loading(NamedTuple):
    """An image that is being loaded."""

    number: int
    future: Future[Loaded]
    unit: Flow


class Flow:
    """One unit's images: iterate over it for the batches that they are in, until all have come.

    left    images that are not being loaded yet, with their numbers
    ended   whether nobody waits for it any more
    untold  batches that have run and were not taken yet

    Raises, there:
        whatever loading or running one of them raised; CancelledError where the feeder was closed.
    """

    def __init__(self, refs: Sequence[ImageRef], changed: threading.Condition) -> None:
        self.left = deque(enumerate(refs))
        self.ended = False
        self.untold = 0
        self._missing, self._changed = len(refs), changed
        self._found: SimpleQueue[Batch | BaseException] = SimpleQueue()

    def put(self, found: Batch | BaseException) -> None:
        """Tell of a batch, or of what ends it all; who does so has the lock of `changed`."""
        self._found.put(found)
        self.untold += 1

    def __iter__(self) -> Iterator[Batch]:
        while self._missing:
            found = self._found.get()
            with self._changed:
                self.untold -= 1
                self._changed.notify()
            if isinstance(found, BaseException):
                raise found
            self._missing -= sum(image.unit is self for image in found.images)
            yield found


class Feeder:
    """Keeps the networks at work on the images of all units.

    Args:
        load: begins to load an image.
        run: gives a batch to the networks.
        size: how many images a batch has, and how many are kept ready to choose from.
        loaders: images that are loaded at once.
        networks: batches that run at once; one more is kept waiting for them.
    """

    def __init__(
        self,
        load: Callable[[ImageRef], Future[Loaded]],
        run: Callable[[list[Image]], Future[Batch]],
        size: BatchSize,
        loaders: int,
        networks: int,
    ) -> None:
        self._load, self._run, self._size, self._loaders, self._networks = load, run, size, loaders, networks
        self._changed = threading.Condition()
        self._units: list[Flow] = []  # oldest first
        self._loading: deque[_Loading] = deque()
        self._waiting: list[Image] = []
        self._running = 0
        self._closed = False
        self._thread = threading.Thread(target=self._feed, name="feeder", daemon=True)
        self._thread.start()

    def add(self, refs: Sequence[ImageRef]) -> Flow:
        """Take a unit's images behind those of the units before; give it to `leave` at the end.

        Raises:
            CancelledError: the feeder is closed.
        """
        unit = Flow(refs, self._changed)
        with self._changed:
            if self._closed:
                raise CancelledError
            self._units.append(unit)
            self._load_more()
            self._changed.notify()
        return unit

    def leave(self, unit: Flow) -> None:
        """Nobody waits for this unit's images any more."""
        with self._changed:
            self._drop(unit)
            self._changed.notify()

    def close(self) -> None:
        """Begin nothing more; units that are not through end with CancelledError."""
        self._stop(CancelledError())

    def join(self) -> None:
        """Wait for its thread, once what it may be waiting for has ended."""
        self._thread.join()

    def _stop(self, reason: BaseException) -> None:
        with self._changed:
            self._closed = True
            for unit in list(self._units):
                unit.put(reason)
                self._drop(unit)
            self._changed.notify()

    def _feed(self) -> None:
        try:
            while self._step():
                continue
        except BaseException as error:  # or units would wait for ever
            self._stop(error)

    def _step(self) -> bool:
        """Load, wait for an image or begin a batch, whatever is due; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._may_begin() or self._may_load())
            if self._closed:
                return False
            self._load_more()
            step = partial(self._begin, self._chosen()) if self._may_begin() else partial(self._take, self._loading[0])
        step()  # without the lock: both may take a while
        return True

    def _may_load(self) -> bool:
        coming = self._loading or any(unit.left for unit in self._units)
        return bool(coming) and len(self._waiting) < self._size.ahead

    def _may_begin(self) -> bool:
        """Whether a batch can be chosen: from as many images as there should be or, where no more are coming as yet,
        only just before the networks have nothing to do."""
        if sum(unit.untold for unit in self._units) >= UNTOLD:
            return False
        if len(self._waiting) >= self._size.ahead:
            return self._running <= self._networks
        return bool(self._waiting) and not self._may_load() and self._running < self._networks

    def _load_more(self) -> None:
        most = self._loaders + self._size.ahead
        for unit in self._units:
            while unit.left and len(self._loading) + len(self._waiting) < most:
                number, ref = unit.left.popleft()
                self._loading.append(_Loading(number, self._load(ref), unit))

    def _take(self, first: _Loading) -> None:
        """Wait for the image that is to be loaded next."""
        error: BaseException | None = None
        try:
            loaded = first.future.result()
        except BaseException as caught:  # a unit's, not this thread's
            error = caught
        with self._changed:
            if first.unit.ended:
                return
            self._loading.popleft()
            if error is None:
                self._waiting.append(Image(first.number, loaded, first.unit))
            else:
                first.unit.put(error)
                self._drop(first.unit)

    def _chosen(self) -> list[Image]:
        batch, self._waiting = like_sized(self._waiting, self._size.now, lambda image: image.loaded.size)
        self._running += 1
        return batch

    def _begin(self, batch: list[Image]) -> None:
        try:
            future = self._run(batch)
        except RuntimeError as error:  # the networks' threads are gone
            future = Future()
            future.set_exception(error)
        future.add_done_callback(lambda done: self._end(batch, done))

    def _end(self, batch: list[Image], done: Future[Batch]) -> None:
        found: Batch | BaseException | None = CancelledError() if done.cancelled() else done.exception()
        with self._changed:
            for unit in {image.unit for image in batch}:
                unit.put(found or done.result())
            self._running -= 1
            self._changed.notify()

    def _drop(self, unit: Flow) -> None:
        """Forget a unit's images that are in no batch."""
        unit.ended = True
        if unit in self._units:
            self._units.remove(unit)
        for each in self._loading:
            if each.unit is unit:
                each.future.cancel()
        self._loading = deque(each for each in self._loading if each.unit is not unit)
        self._waiting = [image for image in self._waiting if image.unit is not unit]
