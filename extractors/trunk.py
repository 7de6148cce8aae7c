"""What region and grid extractors have in common: a ResNet up to res4, which two views of one network run only once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from extractors.base import Extractor, Prepared, device_for, float32_multiplied, pil_facts, prepare_later, prepare_pil
from extractors.configs import ConvConfig
from extractors.images import ImageError, resize_caffe
from extractors.kernels import has_triton
from extractors.launching import started
from extractors.ragged import Areas, Size, common_size, groups, padded_count
from extractors.resize import Originals, originals
from extractors.resnet import ResNet
from storage.records import Record

SMALLEST_INPUT = 3  # pixels a side: the Caffe pool has no output below
SHARED_STAGE = 4  # behind it the views go their own ways: res5 is a box head, dilated, or neither
UNIT_STD = (1.0, 1.0, 1.0)

Results = Callable[[], list[Record | ImageError]]  # of the images that a network is at work on; it waits for them


@dataclass(frozen=True)
class Colours:
    """What becomes of an image's pixels before the network.

    mean, std  of blue, green and red
    resize     "pil-bilinear" on bytes, mean after; or "cv2-linear" on floats, mean before, as in Caffe
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float] = UNIT_STD
    resize: str = "pil-bilinear"


class Stacked(NamedTuple):
    """A batch on the CPU, in memory that a GPU copies from by itself where there is one.

    pixels  (B, 3, h, w) in the images' dtype, beside the smaller ones lies anything; or what becomes that on the GPU
    sizes   of the images in it, B, some of which are not there but fill it up
    """

    pixels: Tensor | Originals
    sizes: list[Size]


class TrunkExtractor(Extractor):
    """An extractor whose network starts with a ResNet.

    Attributes:
        network: the ResNet; two extractors that hold the same one may be given the same `res4`.
        batched: whether several images run at once. On a CPU they do not: that gains nothing, and an image alone has
            the same sums to the last bit whatever its batch.
        resizes: whether its device does, wherever images are decoded.
    """

    def __init__(self, config: ConvConfig, network: ResNet, colours: Colours) -> None:
        self.config: ConvConfig = config
        self.device = device_for(config)
        self.batched = self.device.type != "cpu"
        self.network = network
        self.colours = colours
        self.resizes = self.device.type == "cuda" and colours.resize == "pil-bilinear" and has_triton()
        self.mean, self.std = (
            torch.tensor(each, device=self.device)[:, None, None] for each in (colours.mean, colours.std)
        )

    def prepare(self, key: str, image: np.ndarray) -> Prepared:
        return self.accept(self.resize(key, image))

    def resize(self, key: str, image: np.ndarray) -> Prepared:
        """The resized image: equal for all extractors whose `spec.preprocess` is equal."""
        if self.colours.resize == "cv2-linear":
            return _prepare_caffe(key, image, self.config, self.colours)
        return prepare_pil(key, image, self.config)

    def resize_late(self, key: str, image: np.ndarray) -> Prepared:
        """As `resize`, but what the device can resize to the same bytes is left to it."""
        return prepare_later(key, image, self.config) if self.resizes else self.resize(key, image)

    def accept(self, prepared: Prepared) -> Prepared:
        """What this extractor adds to a resized image, which itself stays as it is.

        Raises:
            ImageError: the network has no output for it.
        """
        smallest = min(prepared.size)
        if self.network.config.ceil_pool and smallest < SMALLEST_INPUT:
            raise ImageError(
                "too_thin",
                f"{prepared.image_size[1]} x {prepared.image_size[0]} pixels resize to a side of {smallest}, at least "
                f"{SMALLEST_INPUT} is needed; raise --longer or leave the image out",
                "prepare",
            )
        return prepared

    @contextmanager
    def precision(self) -> Iterator[None]:
        """The weights have the number type already."""
        with float32_multiplied(self.config.dtype, self.device):
            yield

    def groups(self, batch: Sequence[Prepared]) -> list[list[int]]:
        """Images of similar sizes, which are padded to run together; on a CPU every image by itself."""
        sizes = [image.size for image in batch]
        return groups(sizes) if self.batched else [[row] for row in range(len(sizes))]

    def stack(self, batch: Sequence[Prepared]) -> Stacked:
        """Images that `groups` puts together as what `res4` takes; on a GPU the batch is filled up."""
        sizes = [image.size for image in batch]
        sizes += [common_size(sizes)] * (padded_count(len(sizes)) - len(sizes) if self.batched else 0)
        pinned = self.device.type == "cuda"
        if any(image.resized for image in batch):
            return Stacked(originals(batch, pinned), sizes)
        shape = (len(sizes), 3, *common_size(sizes))
        pixels = torch.empty(shape, dtype=batch[0].pixels.dtype, pin_memory=pinned)
        pixels[len(batch) :] = 0
        for row, image in enumerate(batch):
            height, width = image.size
            pixels[row, :, :height, :width] = image.pixels
        return Stacked(pixels, sizes)

    def res4(self, stacked: Stacked) -> tuple[Tensor, Areas | None]:
        """The map (B, C, h / 16, w / 16) in the dtype the network computes in, and where images are in it if padded.

        B is the number of images, or more: on a GPU a batch is filled up, and what is behind the images means nothing.
        """
        areas = None
        if len(set(stacked.sizes)) > 1:
            areas = Areas(stacked.sizes, self.network.config.ceil_pool, self.device)
        x = on_device(stacked, self.device)
        if self.colours.resize != "cv2-linear":  # there the mean is off already
            x = (x.float() - self.mean) / self.std
        if areas is not None:
            areas.clear(x)
        x = x.to(self.network.stem.conv1.weight.dtype, memory_format=torch.channels_last)
        found: Tensor = self.network(x, SHARED_STAGE, areas)
        return found, areas

    @abstractmethod
    def finish(self, batch: list[Prepared], res4: Tensor, areas: Areas | None) -> Results:
        """The rest of the network, from the map on, which stays as it is where images are in it; it may hold more.

        Returns:
            what waits for the results.
        """

    def forward(self, batch: list[Prepared]) -> list[Record | ImageError]:
        return self.finish(batch, *self.res4(self.stack(batch)))()

    def extract(self, batch: Sequence[Prepared]) -> list[Record | ImageError]:
        found = extract_together({"": self}, [{"": image} for image in batch])
        return [each[""] for each in found]

    def preprocess_facts(self) -> dict[str, object]:
        """The `preprocess` part of the spec."""
        return pil_facts(self.config, self.colours.mean, self.colours.std) | {"resize": self.colours.resize}


def on_device(stacked: Stacked, device: torch.device) -> Tensor:
    """(B, 3, h, w)."""
    if isinstance(stacked.pixels, Tensor):
        return stacked.pixels.to(device, non_blocking=True)
    return stacked.pixels.resized(device, len(stacked.sizes), common_size(stacked.sizes))


def _prepare_caffe(key: str, image: np.ndarray, config: ConvConfig, colours: Colours) -> Prepared:
    """Caffe's way: the mean comes off first, as floats, then OpenCV resizes by one factor."""
    resized, scale = resize_caffe(np.ascontiguousarray(image[:, :, ::-1]), colours.mean, config.shorter, config.longer)
    pixels = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
    return Prepared(key, (image.shape[0], image.shape[1]), pixels, scale)


def extract_together(
    family: Mapping[str, TrunkExtractor], batch: Sequence[Mapping[str, Prepared]]
) -> list[dict[str, Record | ImageError]]:
    """As the `extract` of every extractor in a family, but up to res4 all of them run once.

    Args:
        family: extractors of one network, computing in one dtype.
        batch: an image by extractor, its pixels the same for all.
    """
    results: list[dict[str, Record | ImageError]] = [{} for _ in batch]
    first, extractor = next(iter(family.items()))
    groups = extractor.groups([images[first] for images in batch])
    under_way = []
    for rows in groups:
        mine = [batch[row] for row in rows]
        stacked = extractor.stack([images[first] for images in mine])  # here, as it takes a while for many images
        under_way.append(started(partial(_begin, family, mine, stacked), extractor.device))
    for rows, begun in zip(groups, under_way, strict=True):
        for name, found in begun.result().items():
            for row, result in zip(rows, found(), strict=True):
                results[row][name] = result
    return results


def _begin(
    family: Mapping[str, TrunkExtractor], batch: Sequence[Mapping[str, Prepared]], stacked: Stacked
) -> dict[str, Results]:
    """Run images that go together through the networks of a family; what waits for each member's results."""
    extractor = next(iter(family.values()))
    with torch.inference_mode(), extractor.precision():
        res4, areas = extractor.res4(stacked)
        return {name: member.finish([images[name] for images in batch], res4, areas) for name, member in family.items()}
