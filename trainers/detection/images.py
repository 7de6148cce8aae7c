"""Images of a folder as training takes them: resized as extraction resizes them, and kept in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from extractors.images import read_image, resize_shortest_edge
from trainers.data.files import DataError
from trainers.data.keys import matched

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
KEPT_BYTES = 4 << 30  # of resized images: to decode a small data set once an epoch would keep a GPU waiting


class FolderImages:
    """The images in a folder and below, resized as extraction resizes them, by the keys of a data set.

    What was resized stays in memory, up to `KEPT_BYTES`.

    Args:
        folder: its images' keys are their paths without extension.
        shorter, longer: as of `extractors.images.resize_shortest_edge`.

    Raises:
        DataError: it is no folder.
    """

    def __init__(self, folder: str | Path, shorter: int, longer: int) -> None:
        self.shorter, self.longer = shorter, longer
        self.paths: dict[str, Path] = dict(_images_in(Path(folder)))
        if not self.paths:
            raise DataError(f"--images {folder} holds no image ({', '.join(SUFFIXES)}); name their folder.")
        self.names: dict[str, str] = {}
        self._kept: dict[str, tuple[Tensor, tuple[int, int]]] = {}
        self._bytes = 0

    def called(self, keys: Sequence[str]) -> FolderImages:
        """The same, also asked by these keys of a data set."""
        self.names |= matched(keys, self.paths)
        return self

    def __contains__(self, key: object) -> bool:
        return key in self.names

    def read(self, key: str) -> tuple[Tensor, tuple[int, int]]:
        """Pixels (3, h, w) uint8 RGB, and (height, width) of the original.

        Raises:
            ImageError: it cannot be used.
        """
        if key in self._kept:
            return self._kept[key]
        image = read_image(self.paths[self.names[key]])
        resized = resize_shortest_edge(image, self.shorter, self.longer)
        found = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1))), (image.shape[0], image.shape[1])
        if self._bytes + found[0].nbytes <= KEPT_BYTES:
            self._bytes += found[0].nbytes
            self._kept[key] = found
        return found


def _images_in(folder: Path) -> list[tuple[str, Path]]:
    """Keys and paths, in order; linked folders are entered."""
    files = [Path(where) / name for where, _, names in os.walk(folder, followlinks=True) for name in names]
    images = (path for path in files if path.suffix.lower() in SUFFIXES)
    return sorted((path.relative_to(folder).with_suffix("").as_posix(), path) for path in images)
