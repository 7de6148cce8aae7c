"""What every extractor is: pixels in, records out. It opens no file but its weights and prints nothing.

One that is not of this package is a config with a `view` and a `make`, and an `Extractor`: examples/own_extractor.py.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from extractors.configs import ConfigError, ConvConfig, NetworkConfig, ResizedConfig
from extractors.fused import compute_dtype
from extractors.images import ImageError, resize_shortest_edge
from extractors.launching import arrival, to_host
from extractors.resnet import ResNetConfig
from extractors.weights import Checkpoint
from storage.codecs import record_dtype
from storage.frames import resized_shape
from storage.records import Record
from storage.spec import Spec

DECODE_POLICY = "upright 8-bit RGB, alpha dropped, v1"  # extractors/images.py says what it covers
FLOAT16_MAX = 65504.0
LATER_AT_MOST = 8 << 20  # bytes of an image that a device resizes: more take long on their way, and much memory


@dataclass(frozen=True)
class Prepared:
    """One image on its way to the device.

    key         names the image
    image_size  (height, width) of the upright original
    pixels      (3, h, w) resized, RGB for patches and BGR for the other views: uint8, or float32 with the mean taken
                off already (Caffe's order)
    scale       resized pixels per original pixel
    boxes       (N, 4) float32 given by the user, in original pixels, or None
    resized     (h, w) that the device is to resize to: then pixels are the original's, (H, W, 3) uint8 RGB
    """

    key: str
    image_size: tuple[int, int]
    pixels: Tensor
    scale: float
    boxes: Tensor | None = None
    resized: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) that the network sees."""
        return self.resized or (self.pixels.shape[1], self.pixels.shape[2])


class Extractor(ABC):
    """One network on one device.

    Attributes:
        spec: what decides the numbers.
        vocabulary: names of the classes and attributes, where the network knows any.
    """

    spec: Spec
    vocabulary: dict[str, list[str]]
    device: torch.device

    @abstractmethod
    def prepare(self, key: str, image: np.ndarray) -> Prepared:
        """Resize on the CPU; runs in decode threads.

        Args:
            key: names the image.
            image: uint8 (H, W, 3) RGB, upright.

        Raises:
            ImageError: this image cannot be used.
        """

    @abstractmethod
    def forward(self, batch: list[Prepared]) -> list[Record | ImageError]:
        """Run images that `groups` puts together; one result each, in order."""

    def groups(self, batch: Sequence[Prepared]) -> list[list[int]]:
        """Which rows of a batch run together: here, images of equal resized size."""
        by_size: dict[torch.Size, list[int]] = {}
        for row, image in enumerate(batch):
            by_size.setdefault(image.pixels.shape, []).append(row)
        return list(by_size.values())

    def extract(self, batch: Sequence[Prepared]) -> list[Record | ImageError]:
        """Run images of any sizes; one result each, in order. An image's features do not depend on its batch."""
        found: dict[int, Record | ImageError] = {}
        with torch.inference_mode(), self.precision():
            for rows in self.groups(batch):
                found.update(zip(rows, self.forward([batch[row] for row in rows]), strict=True))
        return [found[row] for row in range(len(batch))]

    def __call__(self, image: np.ndarray, key: str = "image") -> Record:
        """The record of one image.

        Args:
            image: uint8 (H, W, 3) RGB, upright, as `extractors.read_image` gives it.

        Raises:
            ImageError: this image cannot be used.
        """
        [result] = self.extract([self.prepare(key, image)])
        if isinstance(result, ImageError):
            raise result
        return result

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Compute in the number type of the spec."""
        name = self.spec.model["dtype"]
        dtype = compute_dtype(name)
        lower = dtype != torch.float32
        with float32_multiplied(name, self.device), torch.autocast(self.device.type, dtype, enabled=lower):
            yield

    def to_numpy(self, features: Sequence[Tensor]) -> list[np.ndarray | ImageError]:
        """Features of several images, (..., D) each, in the dtype that records carry to the store: the stored one, or
        float32 where the store encodes. They leave a GPU together.

        Returns:
            an array an image, or the error that a value is not finite, or too large for the stored dtype.
        """
        rows = torch.cat([each.reshape(-1, each.shape[-1]) for each in features])
        return self.leaving(rows, [each.shape[:-1] for each in features])()

    def leaving(self, features: Tensor, shapes: Sequence[Sequence[int]]) -> Callable[[], list[np.ndarray | ImageError]]:
        """What waits for the features of several images and gives what `to_numpy` does; their device is busy meanwhile.

        A GPU gets a few operators a batch, and none an image: its thread has to share Python with all others.

        Args:
            features: (R, D), rows of all images, end to end.
            shapes: of each image's rows, (H, W) or (N,).
        """
        dtype = record_dtype(self.spec.layout.dtype).name
        limit = FLOAT16_MAX if dtype == "float16" else torch.finfo(torch.float32).max
        good = to_host((features.abs() <= limit).all(dim=1))
        stored = to_host(features.to(getattr(torch, dtype)))
        wait, width = arrival(self.device), features.shape[1]
        ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]

        def arrived() -> list[np.ndarray | ImageError]:
            wait()
            bits = stored.view(torch.uint16) if dtype == "bfloat16" else stored  # torch makes no numpy array of it
            rows = bits.numpy().view(record_dtype(dtype))
            error = ImageError(
                "not_representable", f"a feature is not finite or above {limit:g}; try --store-dtype float32", "model"
            )
            each_image = zip(np.split(rows, ends), np.split(good.numpy(), ends), shapes, strict=True)
            return [part.reshape(*shape, width) if fine.all() else error for part, fine, shape in each_image]

        return arrived


@contextmanager
def float32_multiplied(name: str, device: torch.device) -> Iterator[None]:
    """float32 means float32 on a GPU, too, where torch would round convolutions to TF32 unless told otherwise.

    The setting is the whole process's: threads that want the same share it, and one that wants another waits.
    """
    if device.type != "cuda":
        yield
        return
    with _multiplied.as_wanted("tf32" if name == "tf32" else "ieee"):
        yield


class _Multiplied:
    """How torch multiplies float32 on a GPU, while anyone asks for it."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._wanted: list[str] = []  # by each of those inside; all the same
        self._before: list[str] = []

    @contextmanager
    def as_wanted(self, wanted: str) -> Iterator[None]:
        with self._turn:
            self._turn.wait_for(lambda: wanted in self._wanted or not self._wanted)
            if not self._wanted:
                self._before = self._exchange([wanted] * 2)
            self._wanted.append(wanted)
        try:
            yield
        finally:
            with self._turn:
                self._wanted.pop()
                if not self._wanted:
                    self._exchange(self._before)
                self._turn.notify_all()

    @staticmethod
    def _exchange(values: Sequence[str]) -> list[str]:
        """Set products and convolutions; gives what they were."""
        settings: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
        before = [each.fp32_precision for each in settings]
        for each, value in zip(settings, values, strict=True):
            each.fp32_precision = value
        return before


_multiplied = _Multiplied()


def device_for(config: NetworkConfig) -> torch.device:
    """The device a config names.

    Raises:
        ConfigError: it is not there, or does not know the number type.
    """
    device = pick_device(config.device)
    if config.dtype == "tf32" and device.type != "cuda":
        raise ConfigError("--dtype tf32 is a GPU's; on a CPU choose float32, bfloat16 or float16.")
    return device


def pick_device(name: str) -> torch.device:
    """The device that a name means on this machine.

    Raises:
        ConfigError: a GPU was asked for and there is none: no silent fallback.
    """
    if name == "auto":
        return pick_device("cuda" if torch.cuda.is_available() else "cpu")
    unknown = f"--device {name!r} is not known; choose cpu, cuda, cuda:N or auto."
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(unknown) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(unknown)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name} was asked for, but torch {torch.__version__} sees {torch.cuda.device_count()} GPUs here; "
            "pass --device cpu, or check the driver."
        )
    if device.type == "cuda" and device.index is None:  # else each thread would take it for its own current one
        device = torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_initialized() else 0)
    return device


def narrowed(body: ResNetConfig, config: ConvConfig, checkpoint: Checkpoint) -> ResNetConfig:
    """A body with divided widths.

    Raises:
        ConfigError: real weights were to be narrowed.
    """
    if config.width_divisor > 1 and checkpoint.tensors is not None:
        raise ConfigError("--width-divisor goes with random weights only; trained ones have the width they have.")
    return body.narrowed(config.width_divisor) if config.width_divisor > 1 else body


def model_facts(config: ConvConfig, checkpoint: Checkpoint, digest: str) -> dict[str, object]:
    """The `model` part of a spec."""
    return {
        "name": getattr(config, "model", ""),
        "weights": {"origin": checkpoint.origin, "sha256": digest},
        "width_divisor": config.width_divisor,
        "dtype": config.dtype,
    }


def pil_facts(config: ResizedConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, object]:
    """The `preprocess` part of a spec, for images resized as bytes."""
    return {
        "decode": DECODE_POLICY,
        "resize": "pil-bilinear",
        "shorter": config.shorter,
        "longer": config.longer,
        "colour": "BGR",
        "mean": mean,
        "std": std,
    }


def prepare_pil(key: str, image: np.ndarray, config: ResizedConfig) -> Prepared:
    """detectron2's way: resize the bytes with Pillow, take the mean off later, on the device."""
    resized = resize_shortest_edge(image, config.shorter, config.longer)
    pixels = torch.from_numpy(np.ascontiguousarray(resized[:, :, ::-1].transpose(2, 0, 1)))
    height, width = image.shape[:2]
    return Prepared(key, (height, width), pixels, min(resized.shape[:2]) / min(height, width))


def prepare_later(key: str, image: np.ndarray, config: ResizedConfig) -> Prepared:
    """As `prepare_pil`, but resizing is left to the device, for which what is too large is resized here."""
    if image.nbytes > LATER_AT_MOST:
        return prepare_pil(key, image, config)
    height, width = image.shape[:2]
    size = resized_shape(height, width, config.shorter, config.longer)
    pixels = torch.from_numpy(np.array(image, order="C"))  # of our own, as where it is resized
    return Prepared(key, (height, width), pixels, min(size) / min(height, width), resized=size)
