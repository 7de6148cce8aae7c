"""Keys that come twice, found among any number of images: by hashes, sorted a bucket at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xxhash

from pipeline.sources.contract import ImageRef
from pipeline.sources.refs import Scratch
from storage.atomic import writing

HELD = 1 << 20  # images whose hashes stay in memory, 25 MB
BUCKETS = 256

_ENTRY = np.dtype([("key", np.uint64), ("uri", np.uint64), ("at", np.int64)])


def hashes_of(texts: list[str]) -> np.ndarray:
    """(K,) uint64: XXH3 of each text's UTF-8."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, texts), np.uint64, len(texts))


class Twins:
    """Takes in images in their order, and tells then which of them come twice.

    Two images with one key and one uri are a repeat, which does no harm. With another uri each, they clash. That two
    texts are the same is concluded from 64 bits for each of both; a clash is looked up.
    """

    def __init__(self) -> None:
        self._count = self._held_count = 0
        self._held: list[np.ndarray] = []
        self._scratch: Scratch | None = None

    def add(self, keys: list[str], uris: list[str]) -> None:
        """Note so many more images.

        Raises:
            StoreError: the disk is full.
        """
        entries = np.empty(len(keys), _ENTRY)
        entries["key"], entries["uri"] = hashes_of(keys), hashes_of(uris)
        entries["at"] = np.arange(self._count, self._count + len(keys))
        self._count += len(keys)
        self._held.append(entries)
        self._held_count += len(keys)
        if self._held_count >= HELD:
            self._spill()

    def repeats(self) -> np.ndarray:
        """One bit an image, the lowest of a byte first: set for the second and later ones of the same image."""
        bits = np.zeros(self._count // 8 + 1, np.uint8)
        for bucket in self._buckets():
            same, other = _twins(bucket)
            at = bucket["at"][1:][same & ~other]
            np.bitwise_or.at(bits, at >> 3, np.left_shift(1, at & 7).astype(np.uint8))
        return bits

    def clash(self, refs: Sequence[ImageRef]) -> tuple[ImageRef, ImageRef, int] | None:
        """The first image whose key an earlier one has that is not the same, that one before it, and how many more.

        Args:
            refs: all the images that were added.
        """
        pairs: list[tuple[int, int]] = []
        count = 0
        for bucket in self._buckets():
            at = bucket["at"]
            found = np.flatnonzero(_twins(bucket)[1])
            count += len(found)
            found = found[np.argsort(at[found + 1])[:10]]  # the hashes of so many are not all the same by accident
            pairs += zip(at[found + 1].tolist(), at[found].tolist(), strict=True)
        for second, first in sorted(pairs):
            if refs[first].key == refs[second].key:
                return refs[first], refs[second], count - 1
        return None

    def _buckets(self) -> Iterator[np.ndarray]:
        """All entries, those of one key together, in the order they came."""
        if self._scratch is None:
            yield _sorted(np.concatenate([np.empty(0, _ENTRY), *self._held]))
            return
        if self._held:
            self._spill()
        for number in range(BUCKETS):
            path = self._file(number)
            if path.exists():
                yield _sorted(np.fromfile(path, _ENTRY))

    def _spill(self) -> None:
        self._scratch = self._scratch or Scratch()
        entries = np.concatenate(self._held)
        bucket = (entries["key"] >> np.uint64(56)).astype(np.uint8)
        order = np.argsort(bucket, kind="stable")
        ends = np.cumsum(np.bincount(bucket, minlength=BUCKETS))
        for number, part in enumerate(np.split(entries[order], ends[:-1])):
            with writing(self._file(number)), self._file(number).open("ab") as file:
                file.write(part.tobytes())
        self._held.clear()
        self._held_count = 0

    def _file(self, number: int) -> Path:
        assert self._scratch is not None
        return self._scratch.path / f"{number}.hashes"


def _sorted(entries: np.ndarray) -> np.ndarray:
    return entries[np.argsort(entries["key"], kind="stable")]


def _twins(bucket: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each entry but the first: whether the one before has its key, and whether it then has another uri."""
    same = bucket["key"][1:] == bucket["key"][:-1]
    return same, same & (bucket["uri"][1:] != bucket["uri"][:-1])
