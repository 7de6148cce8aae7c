"""What an image's features are: shapes, dtypes, units and order. A record that disagrees with itself cannot be built.

Shapes in this file: N boxes, D feature width, C classes, H x W cells or pixels, B images of a batch, M rows of a padded
one.
Feature dtypes: float16, float32, or bfloat16 as `ml_dtypes.bfloat16`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PER_BOX = {
    "class_ids": np.int32,
    "class_scores": np.float32,
    "attribute_ids": np.int32,
    "attribute_scores": np.float32,
}


@dataclass(frozen=True, eq=False)
class RegionRecord:
    """The boxes a detector kept in one image, in the detector's order (the user's own order for given boxes).

    key               str               names the image in its store
    image_size        (height, width)   of the upright original, in pixels; (0, 0) where a foreign file did not tell
    boxes             (N, 4) float32    x1 y1 x2 y2, in pixels of the original image (see FeatureLayout.box_units)
    features          (N, D)            one pooled feature a box
    whole_image       (D,)              feature of one RoI that covers the whole image
    class_ids         (N,)   int32      0-based, background not counted
    class_scores      (N,)   float32    probability of that class
    attribute_ids     (N,)   int32      0-based, "no attribute" not counted; -1 where the model has none
    attribute_scores  (N,)   float32    probability of that attribute
    class_probs       (N, C)            float16 or float32: all class probabilities, background last; when asked for

    What comes after `features` is None where the store does not have it (FeatureLayout.without).

    Raises:
        ValueError: the arrays do not agree in length, width or dtype.
    """

    key: str
    image_size: tuple[int, int]
    boxes: np.ndarray
    features: np.ndarray
    whole_image: np.ndarray | None = None
    class_ids: np.ndarray | None = None
    class_scores: np.ndarray | None = None
    attribute_ids: np.ndarray | None = None
    attribute_scores: np.ndarray | None = None
    class_probs: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.features.ndim != 2:
            raise ValueError(f"{self.key}: region features must be (N, D), found {self.features.shape}")
        rows, width = self.features.shape
        _require(self.key, "boxes", self.boxes, (rows, 4), np.float32)
        _require(self.key, "whole_image", self.whole_image, (width,), self.features.dtype)
        for name, dtype in PER_BOX.items():
            _require(self.key, name, getattr(self, name), (rows,), dtype)
        if self.class_probs is not None:
            wanted = np.float32 if self.class_probs.dtype == np.float32 else np.float16
            _require(self.key, "class_probs", self.class_probs, (rows, self.class_probs.shape[-1]), wanted)


@dataclass(frozen=True, eq=False)
class GridRecord:
    """The last feature map of one image.

    key         str               names the image in its store
    image_size  (height, width)   of the upright original, in pixels; (0, 0) where a foreign file did not tell
    features    (H, W, D)         row-major over the image, top-left cell first

    Raises:
        ValueError: the features are not three-dimensional.
    """

    key: str
    image_size: tuple[int, int]
    features: np.ndarray

    def __post_init__(self) -> None:
        if self.features.ndim != 3:
            raise ValueError(f"{self.key}: grid features must be (H, W, D), found {self.features.shape}")


@dataclass(frozen=True, eq=False)
class PatchRecord:
    """The patch tokens of one image, by a vision transformer.

    key          str               names the image in its store
    image_size   (height, width)   of the upright original, in pixels
    features     (H, W, D)         row-major over what the tower saw of the image, top-left patch first
    whole_image  (D,)              the tower's class token; None where it has none (FeatureLayout.without)

    Raises:
        ValueError: the arrays do not agree in width or dtype, or the features are not three-dimensional.
    """

    key: str
    image_size: tuple[int, int]
    features: np.ndarray
    whole_image: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.features.ndim != 3:
            raise ValueError(f"{self.key}: patch features must be (H, W, D), found {self.features.shape}")
        _require(self.key, "whole_image", self.whole_image, self.features.shape[2:], self.features.dtype)


@dataclass(frozen=True, eq=False)
class PixelRecord:
    """One image, decoded and resized, for networks that are trained end to end.

    key         str               names the image in its store
    image_size  (height, width)   of the upright original, in pixels
    pixels      (H, W, 3) uint8   upright RGB

    Raises:
        ValueError: the pixels are of another shape or dtype.
    """

    key: str
    image_size: tuple[int, int]
    pixels: np.ndarray

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or self.pixels.dtype != np.uint8:
            raise ValueError(
                f"{self.key}: pixels must be uint8 (H, W, 3), found {self.pixels.dtype} {self.pixels.shape}"
            )

    @property
    def features(self) -> np.ndarray:
        """The pixels, by the name of what other records hold."""
        return self.pixels


Record = RegionRecord | GridRecord | PatchRecord | PixelRecord
RECORD_OF: dict[str, type[Record]] = {
    "regions": RegionRecord,
    "grid": GridRecord,
    "patches": PatchRecord,
    "pixels": PixelRecord,
}


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Several records end to end; image i owns rows `offsets[i]:offsets[i + 1]`.

    keys         B strings
    values       (sum N, D)             features; cells row by row. Of a store of pixels (sum H W, 3) uint8, row by row
    offsets      (B + 1,) int64
    image_sizes  (B, 2) int32           height, width of the upright originals, in pixels
    boxes        (sum N, 4) float32     regions only
    grid_shapes  (B, 2) int32           not for regions: cells (or pixels) down, and across
    others       by name, where asked for: class_ids, class_scores, attribute_ids, attribute_scores (sum N,),
                 class_probs (sum N, C), whole_image (B, D)
    """

    keys: list[str]
    values: np.ndarray
    offsets: np.ndarray
    image_sizes: np.ndarray
    boxes: np.ndarray | None = None
    grid_shapes: np.ndarray | None = None
    others: dict[str, np.ndarray] | None = None


@dataclass(frozen=True, eq=False)
class PaddedBatch:
    """Several records side by side, each cut or padded to M rows in its own order; no row is invented.

    keys         B strings
    values       (B, M, D)          features, zero where `mask` is False
    mask         (B, M) bool        True where a row is the record's
    image_sizes  (B, 2) int32       height, width of the upright originals, in pixels
    boxes        (B, M, 4) float32  regions only; zero where `mask` is False
    grid_shapes  (B, 2) int32       not for regions: cells down, cells across, before anything was cut
    """

    keys: list[str]
    values: np.ndarray
    mask: np.ndarray
    image_sizes: np.ndarray
    boxes: np.ndarray | None = None
    grid_shapes: np.ndarray | None = None


def pack(records: Sequence[Record]) -> PackedBatch:
    """Copy records of one view into one packed batch.

    Raises:
        ValueError: no record was given.
    """
    if not records:
        raise ValueError("a batch needs at least one key")
    rows = [record.features.reshape(-1, record.features.shape[-1]) for record in records]
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(each) for each in rows], out=offsets[1:])
    regions = [record for record in records if isinstance(record, RegionRecord)]
    grids = [record for record in records if not isinstance(record, RegionRecord)]
    return PackedBatch(
        keys=[record.key for record in records],
        values=np.concatenate(rows),
        offsets=offsets,
        image_sizes=np.array([record.image_size for record in records], np.int32),
        boxes=np.concatenate([record.boxes for record in regions]) if regions else None,
        grid_shapes=np.array([record.features.shape[:2] for record in grids], np.int32) if grids else None,
    )


def pad(batch: PackedBatch, rows: int) -> PaddedBatch:
    """Lay a packed batch out as (B, rows): longer records are cut, shorter ones padded with zeros and masked.

    Where every record has so many rows, nothing is copied: the result is the packed batch's memory.

    Raises:
        ValueError: `rows` is not positive.
    """
    if rows < 1:
        raise ValueError(f"a padded batch needs at least one row an image, not {rows}")
    counts = np.minimum(np.diff(batch.offsets), rows)
    mask = np.arange(rows) < counts[:, None]
    if (np.diff(batch.offsets) == rows).all():
        values, boxes = batch.values.reshape(len(counts), rows, -1), batch.boxes
        boxes = None if boxes is None else boxes.reshape(len(counts), rows, 4)
        return PaddedBatch(batch.keys, values, mask, batch.image_sizes, boxes, batch.grid_shapes)
    values = np.zeros((len(counts), rows, batch.values.shape[1]), batch.values.dtype)
    boxes = None if batch.boxes is None else np.zeros((len(counts), rows, 4), np.float32)
    for image, (start, count) in enumerate(zip(batch.offsets[:-1].tolist(), counts.tolist(), strict=True)):
        values[image, :count] = batch.values[start : start + count]
        if boxes is not None and batch.boxes is not None:
            boxes[image, :count] = batch.boxes[start : start + count]
    return PaddedBatch(batch.keys, values, mask, batch.image_sizes, boxes, batch.grid_shapes)


def _require(key: str, name: str, array: np.ndarray | None, shape: tuple[int, ...], dtype: object) -> None:
    if array is not None and (array.shape != shape or array.dtype != dtype):
        raise ValueError(
            f"{key}: {name} is {array.dtype} {array.shape}, but the features ask for {np.dtype(dtype)} {shape}"  # type: ignore[call-overload]
        )
