"""How well boxes are found, classed and described: mean average precision by torchmetrics, and attributes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from extractors import ConfigError
from trainers.detection.data import Labelled
from trainers.tasks.base import Prediction

FOUND = 0.5  # overlap from which a box counts as the true one


def require_metrics() -> None:
    """See that what measures is installed, before hours of training.

    Raises:
        ConfigError: it is not.
    """
    lost = [each for each in ("torchmetrics", "pycocotools") if importlib.util.find_spec(each) is None]
    if lost:
        raise ConfigError(f"mean average precision needs {' and '.join(lost)}; install triptych[detection].")


def scores(found: Sequence[Prediction], truth: Sequence[Labelled], with_attributes: bool) -> dict[str, float]:
    """Scores of a split, in percent.

    Args:
        found: of each image "boxes", "scores", "classes" and "attributes", as of `trainers.detection.task.detect`.
        truth: the same images, in the same order.
        with_attributes: whether the data says any.

    Returns:
        mAP over overlaps from 0.50 to 0.95, mAP50 (COCO's), and `attributes`: of the true boxes with attributes that
        were found in their class, how many were given one of theirs.
    """
    from torchmetrics.detection import MeanAveragePrecision  # here, as not everyone trains detectors

    # One rank scores what all have found: it must not wait for the others to score, too.
    measure = MeanAveragePrecision("xyxy", "bbox", backend="pycocotools", sync_on_compute=False)
    measure.warn_on_many_detections = False
    measure.update([_tensors(each) for each in found], [_truth(each) for each in truth])
    whole = measure.compute()
    result = {"mAP": 100 * float(whole["map"]), "mAP50": 100 * float(whole["map_50"])}
    if with_attributes:
        right = [hit for each, true in zip(found, truth, strict=True) for hit in described(each, true)]
        result["attributes"] = 100 * float(np.mean(right)) if right else 0.0
    return result


def _tensors(found: Prediction) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor(found["boxes"], dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(found["scores"], dtype=torch.float32),
        "labels": torch.tensor(found["classes"], dtype=torch.int64),
    }


def _truth(labelled: Labelled) -> dict[str, torch.Tensor]:
    return {"boxes": torch.from_numpy(labelled.boxes), "labels": torch.from_numpy(labelled.classes)}


def described(found: Prediction, labelled: Labelled) -> Iterator[bool]:
    """Of each true box with attributes that was found in its class, whether the surest box on it names one of them."""
    from torchvision.ops import box_iou

    boxes = _tensors(found)
    overlap = box_iou(torch.from_numpy(labelled.boxes), boxes["boxes"])
    for row, said in enumerate(labelled.attributes):
        hits = ((overlap[row] >= FOUND) & (boxes["labels"] == int(labelled.classes[row]))).nonzero()[:, 0]
        if said and len(hits):
            surest = int(hits[boxes["scores"][hits].argmax()])
            yield found["attributes"][surest] in said
