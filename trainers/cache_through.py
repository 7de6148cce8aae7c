"""A store that fills itself: images are extracted when first asked for, and read from the store ever after."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from extractors.base import Extractor
from extractors.images import ImageError
from storage.records import PackedBatch, Record, pack
from storage.writer import StoreWriter
from trainers.several import Several
from trainers.visual import Chances, Images, Looked, Renamed, StoreVisual, Visual, VisualError, looked, read

UNIT_BYTES = 256 << 20  # of features that are committed together


class CacheThrough:
    """A store that fills itself: what it lacks is extracted from images when first asked for, and committed.

    Features come out as they will be read again, so the first epoch sees the later ones' numbers. Records wait until
    there are 256 MiB of them; `flush` commits the rest. Several processes may fill one store.

    Args:
        images: by key.
        extractor: makes the features.
        path: of the store; a new one, or one of the same extractor.
        rows, fields: as of `StoreVisual`.

    Raises:
        SpecMismatchError: the store is another extractor's.
    """

    def __init__(
        self,
        images: Images,
        extractor: Extractor,
        path: str | Path,
        rows: int | None = None,
        fields: Sequence[str] = (),
        unit_bytes: int = UNIT_BYTES,
    ) -> None:
        self.images, self.extractor, self.unit_bytes = images, extractor, unit_bytes
        self._writer = StoreWriter(path, extractor.spec, extractor.vocabulary)
        self._stored = StoreVisual(path, rows, fields)
        self._waiting: dict[str, Record] = {}
        self._lock = threading.Lock()

    def missing(self, keys: Sequence[str]) -> list[str]:
        return [key for key in self._stored.missing(keys) if key not in self.images]

    def look(self, keys: Sequence[str], chances: Chances | None = None) -> Looked:
        with self._lock:
            lacking = [key for key in dict.fromkeys(self._stored.missing(keys)) if key not in self._waiting]
            if lacking:
                self._extract(lacking)
            records = [self._record(key) for key in keys] if self._waiting else None
        if records is None:
            return self._stored.look(keys)
        stored = self._stored
        return looked(_packed(records, stored.read_too), stored.rows, stored.fields)

    def flush(self) -> None:
        """Commit what waits."""
        with self._lock:
            self._commit()

    def _record(self, key: str) -> Record:
        waiting = self._waiting.get(key)
        return self._stored.store[key] if waiting is None else waiting

    def _extract(self, keys: Sequence[str]) -> None:
        prepared = [self.extractor.prepare(key, read(self.images, key)) for key in keys]
        for key, record in zip(keys, self.extractor.extract(prepared), strict=True):
            if isinstance(record, ImageError):
                raise VisualError(f"image {key!r} gives no features: {record}") from record
            self._waiting[key] = record
        if sum(record.features.nbytes for record in self._waiting.values()) >= self.unit_bytes:
            self._commit()

    def _commit(self) -> None:
        if not self._waiting:
            return
        with self._writer.unit(sorted(self._waiting)) as unit:
            for key in sorted(self._waiting):
                unit.append(self._waiting[key])
            unit.commit()
        self._stored.store.refresh()
        self._waiting.clear()


def flush(visual: Visual) -> None:
    """Commit what a cache that is being filled still holds back; nothing for other sources."""
    if isinstance(visual, CacheThrough):
        visual.flush()
    for inner in visual.groups.values() if isinstance(visual, Several) else ():
        flush(inner)
    if isinstance(visual, Renamed):
        flush(visual.visual)


def _packed(records: Sequence[Record], names: Sequence[str]) -> PackedBatch:
    """Records end to end, with these fields of theirs, as `FeatureStore.batch` gives them."""
    join = {"whole_image": np.stack}
    others = {name: join.get(name, np.concatenate)([getattr(each, name) for each in records]) for name in names}
    return replace(pack(records), others=others or None)
