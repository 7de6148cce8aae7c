"""VCR's annotated objects end to end: images with the boxes and outlines of their metadata.

The shorter side has 600 pixels, the longer one at most 1,200. Shapes in this file: V images, N objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from trainers.batch import Regions
from trainers.data.vcr import Metadata, read_metadata
from trainers.images import OUTLINE, fast_rcnn_regions, outline
from trainers.visual import Chances, Images, Looked, read


class ObjectPixels:
    """Images and what is annotated in them, for VL-BERT's own network.

    Args:
        images: by key.
        folder: where each key's metadata lies, KEY.json.
        shorter, longer: sides that images are resized to.
    """

    def __init__(self, images: Images, folder: Path, shorter: int = 600, longer: int = 1200) -> None:
        self.images, self.folder, self.shorter, self.longer = images, folder, shorter, longer

    def missing(self, keys: Sequence[str]) -> list[str]:
        return [key for key in keys if key not in self.images or not self._metadata(key).is_file()]

    def _metadata(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def look(self, keys: Sequence[str], chances: Chances | None = None) -> Looked:
        images, known = [read(self.images, key) for key in keys], [read_metadata(self._metadata(key)) for key in keys]
        regions = fast_rcnn_regions(images, [each.boxes for each in known], self.shorter, self.longer)
        sizes = torch.tensor([image.shape[:2] for image in images], dtype=torch.float32)
        return Looked(replace(regions, outlines=_outlines(regions, known)), sizes)


def _outlines(regions: Regions, known: Sequence[Metadata]) -> torch.Tensor:
    """(V, N, 14, 14)."""
    found = torch.zeros(*regions.boxes.shape[:2], OUTLINE, OUTLINE)
    for row, each in enumerate(known):
        for place, (polygons, box) in enumerate(zip(each.segms, each.boxes.tolist(), strict=True)):
            found[row, place] = outline(polygons, box)
    return found
