"""What every model receives: text, and one visual input, which is cached features or pixels.

    Batch(text, visual, image_of, targets)
        text    Text        token ids, which of them are real, segments
        visual  Regions     boxes with their cached features, or with the pixels to compute them from
             or Cells       a cached grid, or the cached patches of a tower
             or Pixels      whole images

Shapes in this file: B texts, T text positions, V visual inputs, N regions, L cells or patches, D feature width, H x W
pixels. A text goes with the visual input of its own number unless `image_of` says otherwise, so that V may be below B.

Padding. Rows are filled from the left. `mask` is True where a row is real, and None where every row is: a full mask
that is given becomes None, so that attention never meets a mask that hides nothing. `lengths` are the same numbers on
the host: models lay tokens out by them without asking the device. Built on the CPU, a part finds both by itself; they
stay through `to`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from extractors.base import Extractor
from extractors.images import ImageError
from storage.records import PackedBatch, Record, pack, pad
from storage.torch_data import as_tensor

P = TypeVar("P", bound="Part")


class Part:
    """What can be sent to a device, or put in page-locked memory, with all that it holds."""

    def to(self: P, device: torch.device | str, non_blocking: bool = True) -> P:
        """The same on a device; from page-locked memory without waiting."""
        return _mapped(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: P) -> P:
        """The same in page-locked memory; a `DataLoader` calls it."""
        return _mapped(self, Tensor.pin_memory)


@dataclass(frozen=True, eq=False)
class Text(Part):
    """Texts as token ids.

    ids       (B, T) int64
    mask      (B, T) bool    True where a token is real; None: all are
    segments  (B, T) int64   0, or 1 for a second text; None: 0 everywhere
    tags      (B, T) int64   the region that a token speaks of, counted from 1; 0 for the whole image (VCR); None: 0
    lengths   B ints         real tokens of each text, on the host; None where only the device knows

    Raises:
        ValueError: shapes differ, or a mask on the CPU is not filled from the left.
    """

    ids: Tensor
    mask: Tensor | None = None
    segments: Tensor | None = None
    tags: Tensor | None = None
    lengths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("mask", "segments", "tags"):
            _require_shape(f"text {name}", getattr(self, name), self.ids.shape)
        _settle(self, self.ids.shape)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Pixels(Part):
    """Whole images, padded at the right and below to one size.

    images   (V, 3, H, W)        uint8, red green blue, as decoded; or floating point, normalised as the model's network
                                 wants it and zero in the padding
    sizes    (V, 2) int64        height, width of the part that is an image; None: all of it is
    shapes   V pairs             the same on the host; None where only the device knows
    colours  (V, 2, 3) float32   mean and deviation, of values from 0 to 255, that bytes are to be normalised by; None:
                                 the network's own
    """

    images: Tensor
    sizes: Tensor | None = None
    shapes: tuple[tuple[int, int], ...] | None = None
    colours: Tensor | None = None

    def __post_init__(self) -> None:
        count, _, height, width = self.images.shape
        whole = ((height, width),) * count
        _require_shape("colours", self.colours, (count, 2, 3))
        if self.sizes is None:
            object.__setattr__(self, "shapes", whole)
            return
        _require_shape("image sizes", self.sizes, (count, 2))
        if self.shapes is None and self.sizes.device.type == "cpu":
            object.__setattr__(self, "shapes", _pairs(self.sizes))
        if self.shapes == whole:
            object.__setattr__(self, "sizes", None)

    def __len__(self) -> int:
        return len(self.images)

    def normalised(self, mean: Sequence[float], std: Sequence[float], bgr: bool = False) -> Pixels:
        """Bytes as floats less the mean, over the deviation, zero in the padding; floats as they are.

        `mean` and `std` are of values from 0 to 255, in the order of the channels that come out; `colours` go before
        them.
        """
        if self.images.is_floating_point():
            return self
        images = (self.images.flip(1) if bgr else self.images).float()
        if self.colours is not None:
            low, scale = self.colours[..., None, None].unbind(1)
        else:  # filled on the device: numbers from the host would be waited for
            low, scale = (torch.cat([images.new_full((1, 1, 1), each) for each in part]) for part in (mean, std))
        images = (images - low) / scale
        images = images if self.sizes is None else images * self.inside()[:, None]
        return replace(self, images=images, colours=None)

    def inside(self) -> Tensor:
        """(V, H, W) bool: True on the images, False in the padding."""
        (height, width), device = self.images.shape[2:], self.images.device
        if self.sizes is None:
            return torch.ones(len(self), height, width, dtype=torch.bool, device=device)
        rows = torch.arange(height, device=device) < self.sizes[:, :1]
        columns = torch.arange(width, device=device) < self.sizes[:, 1:]
        return rows[:, :, None] & columns[:, None, :]


@dataclass(frozen=True, eq=False)
class Regions(Part):
    """Boxes of images, with features from a cache or with the pixels to compute them from: one of the two.

    boxes        (V, N, 4) float32   x1 y1 x2 y2, in pixels of `image_sizes`
    image_sizes  (V, 2) float32      height, width of the image that the boxes are of: the original with features from a
                                     cache, the resized one with pixels
    mask         (V, N) bool         True where a region is real; None: all are
    features     (V, N, D)           in the stored dtype
    whole_image  (V, D)              feature of the whole image; None: models that need one take the regions' mean
    pixels       Pixels              the images, instead of features
    outlines     (V, N, 14, 14)      with pixels: what of each box is the object (VCR); None: all of it
    hidden       (V, N) bool         regions whose appearance the model must not see (masked RoI classification)
    lengths      V ints              real regions of each image, on the host

    Raises:
        ValueError: shapes differ, or there are both features and pixels, or neither.
    """

    boxes: Tensor
    image_sizes: Tensor
    mask: Tensor | None = None
    features: Tensor | None = None
    whole_image: Tensor | None = None
    pixels: Pixels | None = None
    outlines: Tensor | None = None
    hidden: Tensor | None = None
    lengths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        count, rows = self.boxes.shape[:2]
        if (self.features is None) == (self.pixels is None):
            raise ValueError("regions need features or pixels, one of the two; leave the other one out")
        _require_shape("image sizes", self.image_sizes, (count, 2))
        for name in ("mask", "hidden"):
            _require_shape(f"region {name}", getattr(self, name), (count, rows))
        if self.features is not None:
            _require_shape("region features", self.features, (count, rows, self.features.shape[-1]))
        _settle(self, (count, rows))

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, eq=False)
class Cells(Part):
    """The cells of a cached grid, or the cached patches of a tower, row by row from the top left.

    features     (V, L, D)        in the stored dtype
    mask         (V, L) bool      True where a cell is real; None: all are
    shapes       V pairs          cells down, cells across, on the host
    whole_image  (V, D)           the tower's class token, where it has one
    lengths      V ints           real cells of each image, on the host

    Raises:
        ValueError: shapes differ.
    """

    features: Tensor
    mask: Tensor | None = None
    shapes: tuple[tuple[int, int], ...] | None = None
    whole_image: Tensor | None = None
    lengths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _require_shape("cell mask", self.mask, self.features.shape[:2])
        _settle(self, self.features.shape[:2])

    def __len__(self) -> int:
        return len(self.features)


VisualInput = Regions | Cells | Pixels


@dataclass(frozen=True, eq=False)
class Batch(Part):
    """What a model's `forward` takes.

    text      B texts
    visual    V visual inputs; None for text alone
    image_of  B ints on the host: the visual input of each text; None: text i has input i. Several texts may share one:
              the four choices of VCR, the captions of a ranking
    targets   what a task's loss compares with, by name
    layout    where the model will put each token, as its `layout` method says; None: it finds out in `forward`
    """

    text: Text
    visual: VisualInput | None = None
    image_of: tuple[int, ...] | None = None
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    layout: Any = None

    def __post_init__(self) -> None:
        if self.visual is None:
            return
        if self.image_of is None and len(self.text) != len(self.visual):
            raise ValueError(
                f"{len(self.text)} texts, but {len(self.visual)} images; say with image_of what goes with what"
            )
        if self.image_of is not None and len(self.image_of) != len(self.text):
            raise ValueError(
                f"image_of names {len(self.image_of)} images for {len(self.text)} texts; name one for each"
            )

    def __len__(self) -> int:
        return len(self.text)


def from_packed(batch: PackedBatch, rows: int | None = None, box_units: str = "pixels") -> VisualInput:
    """The visual input of what a store read: `FeatureStore.batch`, or a batch of a `BatchLoader`.

    Args:
        batch: records of any view. `whole_image` among its `others` is passed on.
        rows: at most so many regions or cells of each image, the first ones; default: all.
        box_units: the store's `spec.layout.box_units`.

    Raises:
        ValueError: boxes are fractions, or the image's size is not known: models need boxes in pixels.
    """
    if batch.boxes is None and batch.values.dtype == np.uint8:
        return _pixels(batch)
    counts = np.diff(batch.offsets)
    padded = pad(batch, max(1, int(min(counts.max(), rows or counts.max()))))
    features, mask = as_tensor(padded.values), torch.from_numpy(padded.mask)
    whole = (batch.others or {}).get("whole_image")
    whole_image = None if whole is None else as_tensor(whole)
    if padded.boxes is None:
        cut = rows is not None and rows < counts.max()
        shapes = None if batch.grid_shapes is None or cut else _pairs(torch.from_numpy(batch.grid_shapes))
        return Cells(features, mask, shapes, whole_image)
    if box_units != "pixels" or not batch.image_sizes.all():
        raise ValueError(
            f"boxes are in {box_units} and image sizes are {'known' if batch.image_sizes.all() else 'not known'}; "
            "models need pixels and sizes: import the features again with --sizes"
        )
    sizes = torch.from_numpy(batch.image_sizes).float()
    return Regions(torch.from_numpy(padded.boxes), sizes, mask, features, whole_image)


def from_records(records: Sequence[Record], rows: int | None = None) -> VisualInput:
    """The visual input of records of one view: of a store, or fresh from an extractor. Errors as of `from_packed`."""
    batch, wholes = pack(records), [getattr(record, "whole_image", None) for record in records]
    if all(whole is not None for whole in wholes):
        batch = replace(batch, others={"whole_image": np.stack([np.asarray(whole) for whole in wholes])})
    return from_packed(batch, rows)


def from_images(extractor: Extractor, images: Sequence[np.ndarray], rows: int | None = None) -> VisualInput:
    """The visual input that a store of this extractor would give for these images, without a store.

    Args:
        images: uint8 (H, W, 3) RGB, upright, as `extractors.read_image` gives them.
        rows: as of `from_packed`.

    Raises:
        ImageError: an image cannot be used.
    """
    results = extractor.extract([extractor.prepare(str(number), image) for number, image in enumerate(images)])
    for result in results:
        if isinstance(result, ImageError):
            raise result
    return from_records([result for result in results if not isinstance(result, ImageError)], rows)


def stack_pixels(images: Sequence[Tensor]) -> Pixels:
    """Images (3, h, w) of any sizes as one batch, zeros to the right and below."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    # NumPy asks for large pages: with torch's memory, more than half of the time would go into page faults.
    stacked = torch.from_numpy(np.zeros((len(images), 3, height, width), images[0].numpy().dtype))
    for row, image in zip(stacked, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return Pixels(stacked, torch.tensor([image.shape[1:] for image in images]))


def _pixels(batch: PackedBatch) -> Pixels:
    assert batch.grid_shapes is not None
    shapes, starts = batch.grid_shapes.tolist(), batch.offsets.tolist()
    rows = [batch.values[start:stop] for start, stop in pairwise(starts)]
    images = [
        torch.from_numpy(each.reshape(*shape, 3)).permute(2, 0, 1) for each, shape in zip(rows, shapes, strict=True)
    ]
    return stack_pixels(images)


def _settle(part: Text | Regions | Cells, shape: Sequence[int]) -> None:
    """Find `lengths` where the CPU knows the mask, and drop a mask that hides nothing."""
    count, rows = shape
    if part.mask is None:
        object.__setattr__(part, "lengths", (rows,) * count)
    elif part.lengths is None and part.mask.device.type == "cpu":
        mask = part.mask.bool()
        lengths = mask.sum(1)
        if bool((mask != (torch.arange(rows) < lengths[:, None])).any()):
            raise ValueError("a mask has real rows behind padding; fill rows from the left")
        object.__setattr__(part, "lengths", tuple(lengths.tolist()))
        object.__setattr__(part, "mask", mask)
    if part.lengths == (rows,) * count:
        object.__setattr__(part, "mask", None)


def _pairs(sizes: Tensor) -> tuple[tuple[int, int], ...]:
    return tuple((height, width) for height, width in sizes.tolist())


def _require_shape(what: str, tensor: Tensor | None, shape: Sequence[int]) -> None:
    if tensor is not None and tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{what} has shape {list(tensor.shape)}, wanted {list(shape)}; pad both alike")


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _mapped(each, change) for name, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _mapped(getattr(value, each.name), change) for each in fields(value)})
    return value
