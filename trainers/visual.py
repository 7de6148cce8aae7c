"""Visual inputs by key: from a store, from images, or from images the first time and from a store ever after.

    look = visual.look(keys)        what a model takes, and what else is known of these images

Whatever the source, a task asks by key and says no more; comparing two sources is one setting.
Shapes in this file: V images, N regions, C classes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from extractors.base import Extractor
from extractors.images import ImageError
from storage.errors import TriptychError
from storage.records import PackedBatch, Record, pack
from storage.store import FeatureStore, open_store
from storage.writer import StoreWriter
from trainers.batch import Pixels, Regions, VisualInput, from_packed
from trainers.images import fast_rcnn_regions

Chances = Sequence[np.random.Generator]
NAMED = 10  # missing keys that an error names
UNIT_BYTES = 256 << 20  # of features that are committed together


class VisualError(TriptychError):
    """Images or features that a run needs and that are not there, or cannot be used."""


@dataclass(frozen=True, eq=False)
class Looked:
    """What is known of V images.

    visual   what a model takes
    sizes    (V, 2) float32   height, width of the upright originals, in pixels
    others   by name, (V, N) or (V, N, C), zero behind each image's last region: class_ids, class_probs
    """

    visual: VisualInput
    sizes: Tensor
    others: Mapping[str, Tensor] = field(default_factory=dict)

    def original_boxes(self) -> Tensor:
        """(V, N, 4) x1 y1 x2 y2 of the regions, in pixels of the originals."""
        assert isinstance(self.visual, Regions)
        ratio = (self.sizes / self.visual.image_sizes).flip(-1).repeat(1, 2)
        return self.visual.boxes * ratio[:, None]


class Visual(Protocol):
    """Where visual inputs come from. `look` is called from many threads at once."""

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of the keys that cannot be looked up."""

    def look(self, keys: Sequence[str], chances: Chances | None = None) -> Looked:
        """These images, in this order.

        Args:
            chances: of each image, for random changes of its colours and shape; None: none are made.

        Raises:
            VisualError: one cannot be used.
        """


class Images(Protocol):
    """Images by key, decoded."""

    def __contains__(self, key: object) -> bool: ...

    def read(self, key: str) -> np.ndarray:
        """(H, W, 3) uint8 RGB, upright.

        Raises:
            ImageError: it cannot be used.
        """


def require(visual: Visual, keys: Sequence[str], what: str) -> None:
    """See that every image is there before the first step.

    Raises:
        VisualError: some are not; the message has their number and the first ten.
    """
    lost = visual.missing(keys)
    if lost:
        named = ", ".join(lost[:NAMED]) + (", ..." if len(lost) > NAMED else "")
        raise VisualError(
            f"{len(lost):,} of {len(keys):,} images of {what} are missing: {named}; "
            "add them to the store or the image folder, or name the right one."
        )


class StoreVisual:
    """Cached features, or cached pixels.

    Args:
        store: a store, or its path.
        rows: at most so many boxes of each image, the detector's first ones; default: all.
        fields: what else to read of regions, out of class_ids, class_probs.

    Raises:
        StoreError: there is no such store.
    """

    def __init__(self, store: FeatureStore | str | Path, rows: int | None = None, fields: Sequence[str] = ()) -> None:
        self.store = store if isinstance(store, FeatureStore) else open_store(store)
        self.rows, self.fields = rows, tuple(fields)
        # A tower's class token is a token of the model; a detector's own feature of the whole image is not VL-BERT's.
        with_class = self.store.spec.view == "patches" and "whole_image" in self.store.spec.carried
        self.read_too = (*self.fields, *(["whole_image"] if with_class else []))

    def missing(self, keys: Sequence[str]) -> list[str]:
        if not keys:
            return []
        found = self.store.catalog.find(keys)
        return [key for key, place in zip(keys, found, strict=True) if place < 0]

    def look(self, keys: Sequence[str], chances: Chances | None = None) -> Looked:
        try:
            packed = self.store.batch(keys, self.read_too)
        except KeyError as error:
            raise VisualError(f"an image has no features: {error.args[0]}.") from error
        return looked(packed, self.rows, self.fields, self.store.spec.layout.box_units)


def looked(packed: PackedBatch, rows: int | None, fields: Sequence[str], box_units: str = "pixels") -> Looked:
    """What a store read, as a model takes it."""
    visual = from_packed(packed, rows, box_units)
    width = visual.boxes.shape[1] if isinstance(visual, Regions) else 0
    others = {name: _padded((packed.others or {})[name], packed.offsets, width) for name in fields}
    return Looked(visual, torch.from_numpy(packed.image_sizes.astype(np.float32)), others)


def _padded(values: np.ndarray, offsets: np.ndarray, width: int) -> Tensor:
    """(V, width, ...) of values (sum N, ...), zeros behind each image's last."""
    found = np.zeros((len(offsets) - 1, width, *values.shape[1:]), values.dtype)
    for row, (start, stop) in enumerate(pairwise(offsets.tolist())):
        count = min(stop - start, width)
        found[row, :count] = values[start : start + count]
    return torch.from_numpy(found)


class PixelVisual:
    """Images decoded and prepared as a model's official code does.

    Args:
        images: by key.
        prepare: (H, W, 3) uint8 images to what the model takes, such as `vilt_pixels`.
        change: of one image by chance, before it is prepared (RandAugment); default: none.
    """

    def __init__(
        self,
        images: Images,
        prepare: Callable[[Sequence[np.ndarray]], VisualInput],
        change: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
    ) -> None:
        self.images, self.prepare, self.change = images, prepare, change

    def missing(self, keys: Sequence[str]) -> list[str]:
        return [key for key in keys if key not in self.images]

    def look(self, keys: Sequence[str], chances: Chances | None = None) -> Looked:
        images = [read(self.images, key) for key in keys]
        sizes = _sizes(images)
        if self.change is not None and chances is not None:
            images = [self.change(image, chance) for image, chance in zip(images, chances, strict=True)]
        return Looked(self.prepare(images), sizes)


class RegionPixels:
    """Images and their boxes, for VL-BERT's own network; boxes and classes are those of a store of regions.

    Args:
        images: by key.
        regions: a `StoreVisual` that has the boxes, with the rows and fields that are wanted.
        shorter, longer: 600 and 1000; VCR has 1200.
    """

    def __init__(self, images: Images, regions: Visual, shorter: int = 600, longer: int = 1000) -> None:
        self.images, self.regions, self.shorter, self.longer = images, regions, shorter, longer

    def missing(self, keys: Sequence[str]) -> list[str]:
        lost = set(self.regions.missing(keys))
        return [key for key in keys if key in lost or key not in self.images]

    def look(self, keys: Sequence[str], chances: Chances | None = None) -> Looked:
        images = [read(self.images, key) for key in keys]
        known = self.regions.look(keys)
        assert isinstance(known.visual, Regions), "boxes come from a store of regions"
        assert known.visual.lengths is not None
        boxes = [each[:count].numpy() for each, count in zip(known.visual.boxes, known.visual.lengths, strict=True)]
        return Looked(fast_rcnn_regions(images, boxes, self.shorter, self.longer), _sizes(images), known.others)


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


def read(images: Images, key: str) -> np.ndarray:
    """One image.

    Raises:
        VisualError: it cannot be used.
    """
    try:
        return images.read(key)
    except ImageError as error:
        raise VisualError(f"image {key!r} cannot be used: {error}") from error


def _sizes(images: Sequence[np.ndarray]) -> Tensor:
    return torch.tensor([image.shape[:2] for image in images], dtype=torch.float32)


def _packed(records: Sequence[Record], names: Sequence[str]) -> PackedBatch:
    """Records end to end, with these fields of theirs, as `FeatureStore.batch` gives them."""
    join = {"whole_image": np.stack}
    others = {name: join.get(name, np.concatenate)([getattr(each, name) for each in records]) for name in names}
    return replace(pack(records), others=others or None)


class Renamed:
    """A visual input asked by a data set's keys, which stand in the store or the folder under other names.

    Args:
        names: of the data set's keys, as `trainers.data.keys.matched` finds them; what it lacks is missing.
    """

    def __init__(self, visual: Visual, names: Mapping[str, str]) -> None:
        self.visual, self.names = visual, names

    def missing(self, keys: Sequence[str]) -> list[str]:
        lost = set(self.visual.missing(list({self.names[key] for key in keys if key in self.names})))
        return [key for key in keys if self.names.get(key) is None or self.names[key] in lost]

    def look(self, keys: Sequence[str], chances: Chances | None = None) -> Looked:
        return self.visual.look([self.names[key] for key in keys], chances)


class Several:
    """Images of several data sets, which may have equal keys: those here are GROUP/key.

    Args:
        groups: where the images of each group come from; all give the same kind of input.
    """

    def __init__(self, groups: Mapping[str, Visual]) -> None:
        self.groups = groups

    def missing(self, keys: Sequence[str]) -> list[str]:
        found: list[str] = []
        for group, rows in self._rows(keys).items():
            own = [keys[row].partition("/")[2] for row in rows]
            lost = set(self.groups[group].missing(own) if group in self.groups else own)
            found += [keys[row] for row, key in zip(rows, own, strict=True) if key in lost]
        return found

    def look(self, keys: Sequence[str], chances: Chances | None = None) -> Looked:
        parts, order = [], list[int]()
        for group, rows in self._rows(keys).items():
            own = [keys[row].partition("/")[2] for row in rows]
            drawn = None if chances is None else [chances[row] for row in rows]
            parts.append(self.groups[group].look(own, drawn))
            order += rows
        return parts[0] if len(parts) == 1 else joined(parts, np.argsort(order).tolist())

    def _rows(self, keys: Sequence[str]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for row, key in enumerate(keys):
            found.setdefault(key.partition("/")[0], []).append(row)
        return found


def flush(visual: Visual) -> None:
    """Commit what a cache that is being filled still holds back; nothing for other sources."""
    if isinstance(visual, CacheThrough):
        visual.flush()
    for inner in visual.groups.values() if isinstance(visual, Several) else ():
        flush(inner)
    if isinstance(visual, Renamed):
        flush(visual.visual)


def joined(parts: Sequence[Looked], order: Sequence[int]) -> Looked:
    """Several batches of images as one, its rows in this order of theirs end to end."""
    visual = _join([part.visual for part in parts], order)
    others = {name: _join([part.others[name] for part in parts], order) for name in parts[0].others}
    return Looked(visual, _join([part.sizes for part in parts], order), others)


def _join(values: Sequence[Any], order: Sequence[int]) -> Any:
    """Tensors padded with zeros to one shape but for the first axis; tuples; or what holds such."""
    first = values[0]
    if first is None:
        return None
    if isinstance(first, tuple):
        together = tuple(each for value in values for each in value)
        return tuple(together[row] for row in order)
    if isinstance(first, Tensor):
        shape = [max(value.shape[axis] for value in values) for axis in range(1, first.dim())]
        padded = [_grown(value, shape) for value in values]
        return torch.cat(padded)[list(order)]
    full = [_with_masks(value) for value in values]
    found = {each.name: _join([getattr(value, each.name) for value in full], order) for each in fields(first)}
    return type(first)(**found)


def _grown(value: Tensor, shape: Sequence[int]) -> Tensor:
    if list(value.shape[1:]) == list(shape):
        return value
    grown = value.new_zeros(len(value), *shape)
    grown[(slice(None), *(slice(size) for size in value.shape[1:]))] = value
    return grown


def _with_masks(part: Any) -> Any:
    """The same with its mask, or its sizes, written out: padding will come."""
    shown, name = replace(part), "sizes" if isinstance(part, Pixels) else "mask"
    if getattr(part, name) is not None:
        return part
    if isinstance(part, Pixels):
        value = torch.tensor(part.shapes)
    else:
        rows = part.boxes.shape[1] if isinstance(part, Regions) else part.features.shape[1]
        value = torch.ones(len(part), rows, dtype=torch.bool)
    object.__setattr__(shown, name, value)  # given to the class it would be dropped again, as it hides nothing yet
    return shown
