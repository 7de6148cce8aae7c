"""What region and grid extractors have in common: a ResNet up to res4, which two views of one network run only once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from extractors.base import ConvConfig, Extractor, Prepared, pick_device, pil_facts, prepare_pil
from extractors.images import ImageError, resize_caffe
from extractors.resnet import ResNet
from storage.records import Record

SMALLEST_INPUT = 3  # pixels a side: the Caffe pool has no output below
SHARED_STAGE = 4  # behind it the views go their own ways: res5 is a box head, dilated, or neither
UNIT_STD = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Colours:
    """What becomes of an image's pixels before the network.

    mean, std  of blue, green and red
    resize     "pil-bilinear" on bytes, mean after; or "cv2-linear" on floats, mean before, as in Caffe
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float] = UNIT_STD
    resize: str = "pil-bilinear"


class TrunkExtractor(Extractor):
    """An extractor whose network starts with a ResNet.

    Attributes:
        network: the ResNet; two extractors that hold the same one may be given the same `res4`.
    """

    def __init__(self, config: ConvConfig, network: ResNet, colours: Colours) -> None:
        self.config: ConvConfig = config
        self.device = pick_device(config.device)
        self.network = network
        self.colours = colours
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

    def accept(self, prepared: Prepared) -> Prepared:
        """What this extractor adds to a resized image, which itself stays as it is.

        Raises:
            ImageError: the network has no output for it.
        """
        smallest = min(prepared.pixels.shape[1:])
        if self.network.config.ceil_pool and smallest < SMALLEST_INPUT:
            raise ImageError(
                "too_thin",
                f"{prepared.image_size[1]} x {prepared.image_size[0]} pixels resize to a side of {smallest}, at least "
                f"{SMALLEST_INPUT} is needed; raise --longer or leave the image out",
                "prepare",
            )
        return prepared

    def res4(self, batch: list[Prepared]) -> Tensor:
        """The map (B, C, h / 16, w / 16) of images of equal resized size, in the dtype the network computes in."""
        x = torch.stack([image.pixels for image in batch]).to(self.device, non_blocking=True)
        if self.colours.resize != "cv2-linear":  # there the mean is off already
            x = (x.float() - self.mean) / self.std
        found: Tensor = self.network(x, SHARED_STAGE)
        return found

    @abstractmethod
    def finish(self, batch: list[Prepared], res4: Tensor) -> list[Record | ImageError]:
        """The rest of `forward`, from the map on."""

    def forward(self, batch: list[Prepared]) -> list[Record | ImageError]:
        return self.finish(batch, self.res4(batch))

    def preprocess_facts(self) -> dict[str, object]:
        """The `preprocess` part of the spec."""
        return pil_facts(self.config, self.colours.mean, self.colours.std) | {"resize": self.colours.resize}


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
    results: dict[str, list[Record | ImageError]] = {name: [] for name in family}
    first, extractor = next(iter(family.items()))
    with torch.inference_mode(), extractor._autocast():
        for _, group in groupby(batch, key=lambda images: images[first].pixels.shape):
            images = list(group)
            res4 = extractor.res4([each[first] for each in images])
            for name, member in family.items():
                results[name] += member.finish([each[name] for each in images], res4)
    return [{name: results[name][row] for name in family} for row in range(len(batch))]
