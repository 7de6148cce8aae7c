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
from pipeline.batching import LOOK_AHEAD, BatchSize, like_sized
from pipeline.sources import ImageRef
from storage import ErrorRow, Record

UNTOLD = 4  # batches that units were told of and have not taken: with so many, who writes is slower than the networks
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


class Done(NamedTuple):
    """What became of an image, and the seconds that loading it took by stage; its pixels are gone."""

    number: int
    outcomes: Outcomes
    seconds: dict[str, float]
    unit: Flow


class Batch(NamedTuple):
    """Images that have run together, and the seconds it took."""

    images: list[Done]
    seconds: float


class _Loading(NamedTuple):
    """An image that is being loaded."""

    number: int
    future: Future[Loaded]
    unit: Flow


class Flow:
    """One unit's images: iterate over it for the batches that they are in, until all have come.

    Raises, there:
        whatever loading or running one of them raised; CancelledError where the feeder was closed.
    """

    def __init__(self, refs: Sequence[ImageRef], taken: Callable[[Flow], None]) -> None:
        self.left = deque(enumerate(refs))  # images that are not being loaded yet, with their numbers
        self.untold = 0  # how often it was told of a batch that it has not taken yet
        self.found: SimpleQueue[Batch | BaseException] = SimpleQueue()
        self._missing, self._taken = len(refs), taken

    def __iter__(self) -> Iterator[Batch]:
        while self._missing:
            found = self.found.get()
            self._taken(self)
            if isinstance(found, BaseException):
                raise found
            self._missing -= sum(image.unit is self for image in found.images)
            yield found


class Feeder:
    """Keeps the networks at work on the images of all units.

    What happens elsewhere comes to its thread through a queue, so that nobody else touches what it knows.

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
        self._happened: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._closed, self._closing = False, threading.Lock()
        self._units: list[Flow] = []  # oldest first
        self._loading: deque[_Loading] = deque()
        self._waiting: list[Image] = []
        self._running = 0
        threading.Thread(target=self._feed, name="feeder", daemon=True).start()

    def add(self, refs: Sequence[ImageRef]) -> Flow:
        """Take a unit's images behind those of the units before; give it to `leave` at the end.

        Raises:
            CancelledError: the feeder is closed.
        """
        unit = Flow(refs, lambda unit: self._happened.put(partial(self._tell, unit, -1)))
        with self._closing:
            if self._closed:
                raise CancelledError
            self._happened.put(lambda: self._units.append(unit))
        return unit

    def leave(self, unit: Flow) -> None:
        """Nobody waits for this unit's images any more."""
        self._happened.put(lambda: self._drop(unit))

    def close(self) -> None:
        """Begin nothing more; units that are not through end with CancelledError."""
        with self._closing:
            self._closed = True
            self._happened.put(lambda: None)

    def _feed(self) -> None:
        reason: BaseException | None = None
        try:
            while not self._closed:
                self._happened.get()()
                self._take()
                while self._may_begin():
                    self._begin()
                    self._take()  # what was loaded while there was no place for it
                self._load_more()
        except BaseException as error:  # or units would wait for ever
            reason = error
        with self._closing:
            closed, self._closed = self._closed, True  # what loads may be gone then
        while not self._happened.empty():  # those that came at the last moment
            self._happened.get()()
        for unit in list(self._units):
            unit.found.put(reason if reason and not closed else CancelledError())
            self._drop(unit)

    def _load_more(self) -> None:
        for unit in self._units:
            while unit.left and len(self._loading) + len(self._waiting) < self._size.ahead + self._loaders:
                number, ref = unit.left.popleft()
                future = self._load(ref)
                self._loading.append(_Loading(number, future, unit))
                future.add_done_callback(lambda _: self._happened.put(lambda: None))

    def _take(self) -> None:
        """Have those that are loaded wait for a batch."""
        while self._loading and self._loading[0].future.done() and len(self._waiting) < self._size.ahead:
            number, future, unit = self._loading.popleft()
            error = CancelledError() if future.cancelled() else future.exception()
            if error is None:
                self._waiting.append(Image(number, future.result(), unit))
            else:
                unit.found.put(error)
                self._drop(unit)

    def _may_begin(self) -> bool:
        """Whether a batch can be chosen: from as many images as there should be or, where no more are coming as yet,
        only just before the networks have nothing to do."""
        if not self._waiting or sum(unit.untold for unit in self._units) >= UNTOLD:
            return False
        if len(self._waiting) >= self._size.ahead:
            return self._running <= self._networks
        coming = self._loading or any(unit.left for unit in self._units)
        return not coming and self._running < self._networks

    def _begin(self) -> None:
        batch, self._waiting = like_sized(self._waiting, self._size.now, lambda image: image.loaded.size)
        self._running += 1
        try:
            future = self._run(batch)
        except RuntimeError as error:  # the networks' threads are gone
            future = Future()
            future.set_exception(error)
        units = {image.unit for image in batch}
        future.add_done_callback(lambda done: self._end(units, done))

    def _end(self, units: set[Flow], done: Future[Batch]) -> None:
        """Tell a batch's units of it; runs in a network's thread."""
        error = CancelledError() if done.cancelled() else done.exception()
        for unit in units:
            unit.found.put(error or done.result())
        self._happened.put(partial(self._ended, units))

    def _ended(self, units: set[Flow]) -> None:
        self._running -= 1
        for unit in units:
            self._tell(unit, 1)

    def _tell(self, unit: Flow, more: int) -> None:
        unit.untold += more

    def _drop(self, unit: Flow) -> None:
        """Forget a unit's images that are in no batch."""
        if unit in self._units:
            self._units.remove(unit)
        for each in self._loading:
            if each.unit is unit:
                each.future.cancel()
        self._loading = deque(each for each in self._loading if each.unit is not unit)
        self._waiting = [image for image in self._waiting if image.unit is not unit]


def most_begun(batch: int, networks: int, loaders: int) -> int:
    """Images of a unit that can be under way at once, from the one being loaded to the batch that is being written.

    Where one waits long for its like they may be more.
    """
    ready = LOOK_AHEAD * batch if batch > 1 else 1
    return loaders + ready + batch * (networks + 1 + UNTOLD + 1)
