"""Object detection as a task of the training loop: images with boxes in, boxes with classes and attributes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from extractors import boxes as box_ops
from extractors.faster_rcnn import BottomUpDetector, Predictions
from extractors.images import ImageError
from extractors.ragged import Areas, own_parts
from extractors.selection import DEFAULTS, Frame, Proposed, detectron2_inference
from extractors.trunk import SHARED_STAGE, Colours
from trainers.batch import Batch, Pixels, Regions, Text, stack_pixels
from trainers.data.files import write_json
from trainers.detection.data import Detections, Labelled
from trainers.detection.images import FolderImages
from trainers.detection.losses import Truth, losses
from trainers.detection.scores import scores
from trainers.tasks.base import Batches, Prediction, generator
from trainers.visual import VisualError

IMAGES = "images"  # the name of the only batch
FLIPPED = 0.5  # of the training images, as in all official codes
SMALLEST = 1.0  # pixels of the input: what is left of a box behind the image's edge may be less


@dataclass(frozen=True)
class _Input:
    """One image as a batch has it: pixels (3, h, w) uint8, (height, width) of the original, and what is in it."""

    pixels: Tensor
    original: tuple[int, int]
    boxes: Tensor
    classes: Tensor
    attributes: tuple[tuple[int, ...], ...]


class DetectionTask:
    """A detector on one split.

    Args:
        split: what to find.
        images: its images.
        colours: of the network's input.
        seed: of all chance.
        training: whether half of the images are mirrored.
    """

    metric = "mAP"

    def __init__(
        self, split: Detections, images: FolderImages, colours: Colours, seed: int = 0, training: bool = False
    ) -> None:
        self.split, self.images, self.colours, self.seed, self.training = split, images, colours, seed, training
        images.called([each.key for each in split.images])

    def __len__(self) -> int:
        return len(self.split)

    def collate(self, numbers: Sequence[int], epoch: int) -> Batches:
        """A batch whose targets are classes (B, G), attributes (B, G, A), original sizes (B, 2) and numbers (B,)."""
        inputs = [self._input(number, epoch) for number in numbers]
        counts = torch.tensor([len(each.boxes) for each in inputs])
        most = max(1, int(counts.max()))
        boxes, classes = torch.zeros(len(inputs), most, 4), torch.zeros(len(inputs), most, dtype=torch.int64)
        for row, each in enumerate(inputs):
            boxes[row, : counts[row]], classes[row, : counts[row]] = each.boxes, each.classes
        targets = {
            "classes": classes,
            "attributes": self._attributes(inputs, most),
            "originals": torch.tensor([each.original for each in inputs]),
            "numbers": torch.tensor(numbers),
        }
        sizes = torch.tensor([each.pixels.shape[1:] for each in inputs], dtype=torch.float32)
        pixels, real = stack_pixels([each.pixels for each in inputs]), torch.arange(most) < counts[:, None]
        nothing = Text(torch.zeros(len(inputs), 0, dtype=torch.int64))
        return {IMAGES: Batch(nothing, Regions(boxes, sizes, real, pixels=pixels), targets=targets)}

    def _attributes(self, inputs: Sequence[_Input], most: int) -> Tensor:
        """(B, G, A), -1 where there are no more; no room for any where the data knows none, else for one at least: a
        loss is named in every batch, or in none."""
        widest = max((len(said) for each in inputs for said in each.attributes), default=0)
        room = max(widest, 1) if len(self.split.vocabulary.attributes) else 0
        found = torch.full((len(inputs), most, room), -1)
        for row, each in enumerate(inputs):
            for place, said in enumerate(each.attributes):
                found[row, place, : len(said)] = torch.tensor(said, dtype=torch.int64)
        return found

    def counts(self, batches: Batches) -> dict[str, float]:
        """All losses are means over images."""
        names = ["proposal", "proposal_box", "class", "box"]
        if len(self.split.vocabulary.attributes):
            names.append("attribute")
        return dict.fromkeys(names, float(len(batches[IMAGES])))

    def losses(self, model: nn.Module, batches: Batches) -> dict[str, Tensor]:
        detector, batch = _detector(model), batches[IMAGES]
        visual, targets = _regions(batch), batch.targets
        truth = Truth.of(visual, targets["classes"], targets["attributes"])
        return losses(detector, self._normalised(visual).images, truth)

    def predict(self, model: nn.Module, batches: Batches) -> list[Prediction]:
        """Of each image the boxes that detectron2's own inference keeps (0.05, suppression at 0.5, at most 100)."""
        batch = batches[IMAGES]
        originals: list[list[int]] = batch.targets["originals"].tolist()
        numbers: list[int] = batch.targets["numbers"].tolist()
        found = detect(_detector(model), self._normalised(_regions(batch)), [(h, w) for h, w in originals])
        return [{"id": self.split.images[number].key, **each} for number, each in zip(numbers, found, strict=True)]

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return scores(predictions, self.split.images, with_attributes=len(self.split.vocabulary.attributes) > 0)

    def write(self, predictions: Sequence[Prediction], path: Path) -> None:
        """Predictions as they are, in JSON."""
        write_json(path, list(predictions))

    def _normalised(self, visual: Regions) -> Pixels:
        assert visual.pixels is not None
        return visual.pixels.normalised(self.colours.mean, self.colours.std, bgr=True)

    def _input(self, number: int, epoch: int) -> _Input:
        """One image and its boxes in the pixels of the resized one.

        Raises:
            VisualError: it cannot be used.
        """
        labelled = self.split.images[number]
        try:
            pixels, original = self.images.read(labelled.key)
        except ImageError as error:
            raise VisualError(f"image {labelled.key!r} cannot be used: {error}") from error
        size = (pixels.shape[1], pixels.shape[2])
        boxes = box_ops.clip(Frame(size, original, 1.0).to_input(torch.from_numpy(labelled.boxes)), *size)
        if self.training and generator(self.seed, epoch, number).random() < FLIPPED:
            pixels, boxes = mirrored(pixels, boxes)
        return _Input(pixels, original, *_kept(boxes, labelled))


def mirrored(pixels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """An image (3, h, w) and its boxes (N, 4), left and right exchanged."""
    left, top, right, bottom = boxes.unbind(1)
    width = pixels.shape[2]
    return pixels.flip(2), torch.stack([width - right, top, width - left, bottom], dim=1)


def _kept(boxes: Tensor, labelled: Labelled) -> tuple[Tensor, Tensor, tuple[tuple[int, ...], ...]]:
    """What is large enough to be trained on."""
    rows = ((boxes[:, 2:] - boxes[:, :2]) >= SMALLEST).all(dim=1).nonzero()[:, 0]
    classes = torch.from_numpy(labelled.classes)[rows]
    return boxes[rows], classes, tuple(labelled.attributes[row] for row in rows.tolist())


def detect(detector: BottomUpDetector, pixels: Pixels, originals: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """What a detector finds in images, each as if it were alone.

    Args:
        pixels: normalised.
        originals: (height, width) of each image before it was resized.

    Returns:
        Of each image "boxes" in pixels of the original, "scores", "classes" and "attributes", best first.
    """
    assert pixels.shapes is not None
    sizes, device = list(pixels.shapes), pixels.images.device
    areas = None
    if len(set(sizes)) > 1:
        height, width = pixels.images.shape[2:]
        areas = Areas(sizes, detector.config.body.ceil_pool, device, (height, width))
    images = pixels.images.contiguous(memory_format=torch.channels_last)
    cells = detector.cells(detector.backbone(images, SHARED_STAGE, areas), areas)
    if areas is not None:
        areas.clear(cells)
    boxes, counts = detector.proposals(cells, [(size, 1.0) for size in sizes], areas)
    features = detector.roi_heads.features_of(own_parts(cells, areas), list(boxes))
    said = detector.roi_heads.predict(features)
    found = Predictions(*(each.float().unflatten(0, boxes.shape[:2]) for each in said))
    frames = [Frame(size, original, 1.0) for size, original in zip(sizes, originals, strict=True)]
    regress = partial(detector.decode, boxes, found.box_deltas)
    kept, many = detectron2_inference(Proposed(boxes, counts, found, frames, regress), DEFAULTS["detectron2"])
    found_there = {
        "boxes": kept.boxes,
        "scores": kept.class_scores,
        "classes": kept.class_ids,
        "attributes": box_ops.taken(found.attribute_probs, kept.rows).argmax(dim=2),
    }
    fields = {name: each.cpu() for name, each in found_there.items()}
    return [
        {name: each[row, :count].tolist() for name, each in fields.items()} for row, count in enumerate(many.tolist())
    ]


def _detector(model: nn.Module) -> BottomUpDetector:
    assert isinstance(model, BottomUpDetector)
    return model


def _regions(batch: Batch) -> Regions:
    assert isinstance(batch.visual, Regions)
    return batch.visual
