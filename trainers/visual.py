"""Visual inputs by key: from a store, or from images. Both, one after the other, are in `cache_through.py`.

    look = visual.look(keys)        what a model takes, and what else is known of these images

Whatever the source, a task asks by key and says no more; comparing two sources is one setting.
Shapes in this file: V images, N regions, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from extractors.images import ImageError
from storage.errors import TriptychError
from storage.records import PackedBatch
from storage.store import FeatureStore, open_store
from trainers.batch import Regions, VisualInput, from_packed
from trainers.images import fast_rcnn_regions

Chances = Sequence[np.random.Generator]
NAMED = 10  # missing keys that an error names


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
