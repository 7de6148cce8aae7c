"""--keys FILE: which of a source's images to take, by their keys or by the ids that a data set's annotations name."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.sources.contract import SourceError
from pipeline.sources.files import source_errors
from pipeline.sources.refs import PAGE
from pipeline.sources.twins import hashes_of
from storage.against import names_of, needed_ids
from storage.errors import StoreError

_WANTED = "a text file with one key a line, a JSON list of keys, or annotations in JSON that name images"


def open_wanted(file: str | None) -> Wanted | None:
    """What a file asks for; None without a file.

    Raises:
        SourceError: the file cannot be read, or names no key.
    """
    return Wanted(Path(file)) if file else None


class Wanted:
    """The keys that a file names, eight bytes each: 64-bit hashes stand for them.

    A text file and a JSON list name keys as they are. Annotations name ids; a key is taken for an id as `triptych info
    --against` does: `val2014/COCO_val2014_000000000042` is the image 42.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ids, self._names = _opened(file)
        hashes = [self._hashed(page) for page in _pages(self._ids())]
        self._hashes = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]))
        self._found = np.zeros(len(self._hashes), bool)
        if not len(self._hashes):
            raise SourceError(f"--keys {file} names no key; wanted {_WANTED}")

    def among(self, keys: list[str]) -> np.ndarray:
        """(K,) bool: which of some keys of the source are wanted. Remembers that they are there."""
        hashes = self._hashed(keys)
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        hit = self._hashes[at] == hashes
        self._found[at[hit]] = True
        counts = [len(self._names(key)) for key in keys]
        return np.logical_or.reduceat(hit, np.cumsum([0, *counts[:-1]]))

    def check_all_found(self, images: str) -> None:
        """Whatever was asked for must have been there.

        Raises:
            SourceError: naming the first key that was not, and how many.
        """
        if self._found.all():
            return
        missing = [each for page in _pages(self._ids()) for each in page if not self._was_found(each)]
        if missing:
            keys = "one key" if len(missing) == 1 else f"{len(missing):,} keys"
            raise SourceError(
                f"--keys {self._file} names {keys} that {images} does not have, the first is {missing[0]!r}; "
                "take them out, or see whether --images and --keys belong together."
            )

    def _was_found(self, key: str) -> bool:
        return bool(self._found[np.searchsorted(self._hashes, self._hashed([key]))].any())

    def _hashed(self, keys: list[str]) -> np.ndarray:
        return hashes_of([name for key in keys for name in self._names(key)])


def _opened(file: Path) -> tuple[Callable[[], Iterable[str]], Callable[[str], list[str]]]:
    """What reads the file's keys, and what else a key may be called in it."""
    if file.suffix.lower() not in (".json", ".jsonl"):
        return lambda: _lines(file), lambda key: [key]
    with source_errors(file, _WANTED):
        text = file.read_text(encoding="utf-8")
    with contextlib.suppress(ValueError):  # else JSON lines
        content = json.loads(text)
        if isinstance(content, list) and all(isinstance(each, str | int) for each in content):
            keys = [str(each) for each in content]
            return lambda: keys, lambda key: [key]
    try:
        ids = list(dict.fromkeys(needed_ids(file)))
    except StoreError as error:
        raise SourceError(f"--keys {error}") from error
    return lambda: ids, names_of


def _lines(file: Path) -> Iterator[str]:
    with source_errors(file, _WANTED), file.open(encoding="utf-8-sig") as lines:
        yield from (key for line in lines if (key := line.strip()))


def _pages(keys: Iterable[str]) -> Iterator[list[str]]:
    coming = iter(keys)
    while page := list(islice(coming, PAGE)):
        yield page
