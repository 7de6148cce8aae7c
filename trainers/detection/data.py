"""Images with labelled boxes, ready to train on: what of a data set is used, and what of it is not and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainers.data.files import DataError
from trainers.detection.images import FolderImages
from trainers.detection.readers import Described, Thing
from trainers.detection.vocabulary import Vocabulary


@dataclass(frozen=True)
class Labelled:
    """One image and its boxes.

    key         names it
    boxes       (N, 4) float32 x1 y1 x2 y2, in pixels of the original image
    classes     (N,) int64
    attributes  of each box the ids of what is said of it; may be none
    """

    key: str
    boxes: np.ndarray
    classes: np.ndarray
    attributes: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class Detections:
    """The images of a split.

    left_out  how many boxes or images are not used, by reason
    """

    images: Sequence[Labelled]
    vocabulary: Vocabulary
    left_out: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.images)

    def __str__(self) -> str:
        boxes = sum(map(len, self.images))
        lost = "; ".join(f"{count:,} {reason}" for reason, count in self.left_out.items() if count)
        return f"{len(self.images):,} images with {boxes:,} boxes" + (f" ({lost})" if lost else "")


def label(described: Sequence[Described], vocabulary: Vocabulary, images: FolderImages) -> Detections:
    """The images that are there, with the boxes whose names the vocabulary has; what is left out is counted.

    Raises:
        DataError: nothing is left to train on.
    """
    lost: Counter[str] = Counter()
    there = images.called([image.key for image in described])
    present = [image for image in described if _counts(image.key in there, lost, "images are missing")]
    labelled = [_labelled(image, vocabulary, lost) for image in present]
    found = [each for each in labelled if _counts(len(each) > 0, lost, "images have no box left")]
    if not found:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in lost.items()) or "there are no images at all"
        raise DataError(f"no image with boxes is left of {len(described):,}: {reasons}; check --images and --classes.")
    return Detections(found, vocabulary, dict(lost))


def _counts(holds: bool, lost: Counter[str], reason: str) -> bool:
    lost[reason] += not holds
    return holds


def _labelled(image: Described, vocabulary: Vocabulary, lost: Counter[str]) -> Labelled:
    classes, attributes = vocabulary.classes.ids, vocabulary.attributes.ids

    def is_used(thing: Thing) -> bool:
        x1, y1, x2, y2 = thing.box
        whole = _counts(x2 > x1 and y2 > y1, lost, "boxes are empty")
        return whole and _counts(any(name in classes for name in thing.names), lost, "boxes are of other classes")

    used = [thing for thing in image.things if is_used(thing)]
    boxes = np.array([thing.box for thing in used], np.float32).reshape(-1, 4)
    ids = [next(classes[name] for name in thing.names if name in classes) for thing in used]
    said = [tuple(dict.fromkeys(attributes[word] for word in thing.attributes if word in attributes)) for thing in used]
    return Labelled(image.key, boxes, np.array(ids, np.int64), tuple(said))


def held_out(described: Sequence[Described], share: float, seed: int) -> tuple[list[Described], list[Described]]:
    """A data set in two, the second one a share of it, at least one image, drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(described))
    apart = set(order[: max(1, round(share * len(described)))].tolist())
    parts: tuple[list[Described], list[Described]] = ([], [])
    for number, image in enumerate(described):
        parts[number in apart].append(image)
    return parts
