"""The images of a listing, as many as there are: pages of a column table, on disk where they are too many to hold."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from shutil import rmtree
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.contract import ImageRef
from storage.arrow import text_column
from storage.atomic import writing
from storage.bucket import DRAFTS, remove_stale_drafts

PAGE = 1 << 16  # images that are looked at together
HELD = 4 * PAGE  # images that stay in memory, some 30 MB; beyond that all lie on disk

_SCHEMA = pa.schema([("key", pa.string()), ("uri", pa.string())])


class Scratch:
    """A folder for temporary files, only for this user; it goes with this object, or with a later one if killed.

    Raises:
        StoreError: the folder for temporary files (TMPDIR) cannot be written.
    """

    def __init__(self) -> None:
        remove_stale_drafts()
        with writing(Path(tempfile.gettempdir())):
            self.path = Path(tempfile.mkdtemp(prefix=f"{DRAFTS}~{socket.gethostname()}~{os.getpid()}~"))
        self.remove = weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # a forked copy leaves it to its parent
        rmtree(path, ignore_errors=True)


class Refs(Sequence[ImageRef]):
    """Images in order. Choosing among them copies nothing: a choice is a bit an image.

    Threads may share one. It stays in the process that made it.
    """

    def __init__(self, pages: Pages, chosen: Sequence[np.ndarray | None]) -> None:
        self._pages, self._chosen = pages, chosen
        sizes = zip(pages.sizes, chosen, strict=True)
        counts = [size if bits is None else int(np.bitwise_count(bits).sum()) for size, bits in sizes]
        self._ends = np.cumsum([0, *counts])
        self._last: tuple[int, pa.RecordBatch] | None = None

    @classmethod
    def of(cls, refs: Iterable[ImageRef]) -> Refs:
        """Take in all that come, a page at a time; those that are such a list already stay as they are.

        Raises:
            StoreError: they do not fit in memory, and the disk is full.
        """
        if isinstance(refs, Refs):
            return refs
        pages, coming = Pages(), iter(refs)
        while page := list(islice(coming, PAGE)):
            pages.add([ref.key for ref in page], [ref.uri for ref in page])
        return pages.finish()

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, at: int) -> ImageRef: ...
    @overload
    def __getitem__(self, at: slice) -> list[ImageRef]: ...
    def __getitem__(self, at: int | slice) -> ImageRef | list[ImageRef]:
        start, stop, step = (at if isinstance(at, slice) else slice(at, at + 1 or None)).indices(len(self))
        found = self._between(start, stop) if step == 1 else [self[each] for each in range(start, stop, step)]
        if isinstance(at, slice):
            return found
        if not found:
            raise IndexError(f"there are {len(self):,} images, and none is number {at:,}")
        return found[0]

    def __iter__(self) -> Iterator[ImageRef]:
        for keys, uris in self.pages():
            yield from map(ImageRef, keys, uris)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(other) == len(self) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def pages(self) -> Iterator[tuple[list[str], list[str]]]:
        """Keys and uris, some ten thousand at a time."""
        for number in range(len(self._chosen)):
            page = self._page(number)
            yield page.column("key").to_pylist(), page.column("uri").to_pylist()

    def select(self, choose: Callable[[list[str]], np.ndarray]) -> Refs:
        """Those for whose keys `choose` says so.

        Args:
            choose: (K,) bool of K keys; asked page by page, in order.
        """
        chosen = []
        for number, bits in enumerate(self._chosen):
            mask = np.asarray(choose(self._page(number).column("key").to_pylist()), bool)
            if bits is not None:  # `mask` is as long as what was chosen before
                before = _unpacked(bits, self._pages.sizes[number])
                before[before] = mask
                mask = before
            chosen.append(None if mask.all() else np.packbits(mask, bitorder="little"))
        return Refs(self._pages, chosen)

    def first(self, count: int | None) -> Refs:
        """The first so many, or all."""
        if count is None or count >= len(self):
            return self
        left = count

        def choose(keys: list[str]) -> np.ndarray:
            nonlocal left
            mask = np.arange(len(keys)) < left
            left -= int(mask.sum())
            return mask

        return self.select(choose)

    def holding(self, keys: Iterable[str]) -> set[str]:
        """Those of some keys under which there is an image."""
        asked = text_column(list(keys))
        found: set[str] = set()
        for number in range(len(self._chosen)):
            column = self._page(number).column("key")
            found.update(column.filter(pc.is_in(column, value_set=asked)).to_pylist())
        return found

    def _between(self, start: int, stop: int) -> list[ImageRef]:
        found: list[ImageRef] = []
        while start < stop:
            number = int(np.searchsorted(self._ends, start, side="right")) - 1
            skip = start - int(self._ends[number])
            part = self._page(number).slice(skip, stop - start)
            found += map(ImageRef, part.column("key").to_pylist(), part.column("uri").to_pylist())
            start += part.num_rows
        return found

    def _page(self, number: int) -> pa.RecordBatch:
        """The chosen images of one page. The last one is kept, since its neighbours are asked for next."""
        last = self._last
        if last and last[0] == number:
            return last[1]
        page, bits = self._pages[number], self._chosen[number]
        if bits is not None:
            page = page.filter(pa.Array.from_buffers(pa.bool_(), page.num_rows, [None, pa.py_buffer(bits)]))
        self._last = (number, page)
        return page


class Pages:
    """Column tables of keys and uris, in the order they are added; all in one file once they are too many.

    Raises:
        StoreError: they are too many, and the disk is full.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._held: list[pa.RecordBatch] = []
        self._scratch: Scratch | None = None
        self._lock = threading.Lock()
        self._writer: Any = None
        self._reader: Any = None

    def add(self, keys: list[str], uris: list[str]) -> None:
        self.sizes.append(len(keys))
        self._held.append(pa.record_batch([text_column(keys), text_column(uris)], schema=_SCHEMA))
        if self._writer is None and sum(self.sizes) > HELD:
            self._scratch = Scratch()
            with writing(self._path):
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                self._writer = pa.ipc.new_file(str(self._path), _SCHEMA, options=options)
        if self._writer is not None:
            self._write()

    def finish(self) -> Refs:
        """All images; no more are added. Pages are read, not mapped: what was read must not stay resident."""
        if self._writer is not None:
            with writing(self._path):
                self._writer.close()
            self._reader = pa.ipc.open_file(pa.OSFile(str(self._path)))
        return Refs(self, [None] * len(self.sizes))

    def __getitem__(self, number: int) -> pa.RecordBatch:
        if self._reader is None:
            return self._held[number]
        with self._lock:
            return self._reader.get_batch(number)

    @property
    def _path(self) -> Path:
        assert self._scratch is not None
        return self._scratch.path / "images.arrow"

    def _write(self) -> None:
        with writing(self._path):
            for page in self._held:
                self._writer.write_batch(page)
        self._held.clear()


def _unpacked(bits: np.ndarray, count: int) -> np.ndarray:
    return np.unpackbits(bits, count=count, bitorder="little").astype(bool)
