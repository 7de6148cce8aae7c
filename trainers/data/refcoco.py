"""RefCOCO, RefCOCO+ and RefCOCOg in the refer toolkit's files: refs(unc).p and instances.json. Keys: COCO ids.

Each expression is an example, its id the sent_id. truth: {"box": (4,) float32 what is referred to, "candidates": (N, 4)
float32 the boxes of all annotated objects of the image, "size": (height, width), "ref_id", "ann_id"}.
Boxes are x1, y1, x2, y2 in pixels of the original image; x2 = x1 + width, as VL-BERT has them
(refcoco/data/datasets/refcoco.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import StoreError
from storage.interop.unpickling import loads
from trainers.data.base import Example
from trainers.data.files import DataError, each, items, listed, number, read_json, readable, text

REFS = "the refer toolkit's pickled list of {ref_id, ann_id, image_id, split, sentences: [{sent_id, sent}]}"
INSTANCES = 'the refer toolkit\'s instances.json: {"images": [...], "annotations": [{"id", "image_id", "bbox"}]}'
PROPOSALS = 'detections: [{"image_id": 9, "box": [x, y, width, height], "score": 0.9}]'


def read(split: str, paths: Sequence[Path]) -> list[Example]:
    """The expressions of a split out of refs(*).p and instances.json, in the order of the refs.

    Raises:
        DataError: a file is absent or of another format, or the two do not belong together.
    """
    refs_path, instances_path = paths
    objects = read_objects(instances_path)
    examples = each(refs_path, _refs(refs_path), lambda ref: objects.examples(ref, split), REFS)
    return [example for of_ref in examples for example in of_ref]


def read_proposals(path: Path) -> dict[str, np.ndarray]:
    """Detected boxes (N, 4) float32 by image key, as MAttNet's detections for RefCOCO are published.

    Raises:
        DataError: the file is absent or of another format.
    """
    content = listed(path, read_json(path, PROPOSALS), PROPOSALS)
    rows = each(path, content, lambda row: (str(number(row, "image_id")), items(row, "box"), None), PROPOSALS)
    with readable(path, PROPOSALS):
        return {image: boxes for image, (boxes, _) in _boxes_by_image(rows).items()}


@dataclass(frozen=True)
class Objects:
    """What instances.json says.

    boxes  by image key: (N, 4) float32, and the annotation id of each
    sizes  by image key: (height, width)
    """

    boxes: dict[str, tuple[np.ndarray, list[Any]]]
    sizes: dict[str, tuple[int, int]]

    def examples(self, ref: Any, split: str) -> list[Example]:
        """The expressions of one ref; none if it is of another split.

        Raises:
            ValueError, KeyError: its object is not there.
        """
        if text(ref, "split") != split:
            return []
        image, annotation = str(number(ref, "image_id")), number(ref, "ann_id")
        if image not in self.boxes or annotation not in self.boxes[image][1]:
            raise ValueError(f"instances.json has no annotation {annotation} of the image {image}")
        candidates, ids = self.boxes[image]
        truth = {
            "box": candidates[ids.index(annotation)],
            "candidates": candidates,
            "size": self.sizes[image],
            "ref_id": number(ref, "ref_id"),
            "ann_id": annotation,
        }
        return [
            Example(str(number(sentence, "sent_id")), (image,), (text(sentence, "sent").strip(),), truth)
            for sentence in items(ref, "sentences")
        ]


def read_objects(path: Path) -> Objects:
    """Boxes and sizes of instances.json; errors as of `read`."""
    content = read_json(path, INSTANCES)
    with readable(path, INSTANCES):
        images, rows = items(content, "images"), items(content, "annotations")
    sizes = dict(each(path, images, _size, INSTANCES))
    boxes = each(path, rows, _object, INSTANCES)
    with readable(path, INSTANCES):
        return Objects(_boxes_by_image(boxes), sizes)


def _size(row: Any) -> tuple[str, tuple[int, int]]:
    return str(number(row, "id")), (number(row, "height"), number(row, "width"))


def _object(row: Any) -> tuple[str, list[float], int]:
    return str(number(row, "image_id")), items(row, "bbox"), number(row, "id")


def _boxes_by_image(rows: Iterable[tuple[str, list[float], Any]]) -> dict[str, tuple[np.ndarray, list[Any]]]:
    """From (image, [x, y, width, height], id): boxes (N, 4) and ids by image."""
    found: dict[str, tuple[list[list[float]], list[Any]]] = defaultdict(lambda: ([], []))
    for image, box, id in rows:
        found[image][0].append(box)
        found[image][1].append(id)
    return {image: (_corners(boxes), ids) for image, (boxes, ids) in found.items()}


def _corners(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    found = np.array(boxes, np.float32).reshape(len(boxes), 4)
    found[:, 2:] += found[:, :2]
    return found


def _refs(path: Path) -> list[Any]:
    with readable(path, REFS):
        data = path.read_bytes()
    try:
        content = loads(data, str(path))
    except StoreError as error:
        raise DataError(f"{error} Wanted {REFS}.") from error
    return listed(path, content, REFS)
