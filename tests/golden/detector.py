"""What the two bottom-up detector projects have in common: images, stages up to the box features, matched boxes.

Shapes in this file: R proposals, N kept boxes, C channels of res4, D feature width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from extractors import load_extractor
from extractors.base import Prepared
from extractors.faster_rcnn import BottomUpDetector, Predictions
from extractors.regions import RegionExtractor
from extractors.selection import Frame, Proposed, Selected, Selection, select
from tests.golden.capture import arrays_of, captured, extract_last
from tests.golden.compare import EXACT, FEATURES, MATCHED, Folder, Report

TOLERANCES = {  # of a record's arrays, end to end
    "boxes": MATCHED,
    "class_ids": EXACT,
    "class_scores": FEATURES,
    "attribute_ids": EXACT,
    "attribute_scores": FEATURES,
    "features": FEATURES,
}

Fields = Mapping[str, Tensor]  # what is known of N boxes, by field of a record


@dataclass(frozen=True)
class Case:
    """One image of a folder, by its number: RGB, and as the extractor prepares it."""

    index: str
    image: np.ndarray
    prepared: Prepared

    @property
    def frame(self) -> Frame:
        height, width = self.prepared.pixels.shape[1:]
        return Frame((height, width), self.prepared.image_size, self.prepared.scale)


def load(folder: Folder, sizes: tuple[int, int], **settings: Any) -> RegionExtractor:
    """The production extractor with the folder's weights.

    Args:
        sizes: shorter and longer side.
        settings: more fields of `RegionConfig`.
    """
    shorter, longer = sizes
    extractor = load_extractor(
        "regions",
        weights=folder.weights,
        shorter=shorter,
        longer=longer,
        store_dtype="float32",
        device="cpu",
        **settings,
    )
    assert isinstance(extractor, RegionExtractor)
    # How many proposals are kept is no weight and no setting; the folders have fewer than the published 300.
    generator = extractor.detector.proposal_generator
    generator.config = replace(generator.config, proposals=folder.setting("rpn", "post_nms_topk"))
    return extractor


def cases(folder: Folder, extractor: RegionExtractor) -> list[Case]:
    """The images of a folder."""
    found = []
    for index in folder.indices("image_bgr"):
        image = np.ascontiguousarray(folder.image(f"image_bgr_{index}")[:, :, ::-1])
        found.append(Case(index, image, extractor.prepare(index, image)))
    return found


def settings_of(folder: Folder, pattern: str) -> list[tuple[str, ...]]:
    """The groups of a pattern in every output it fits: how a list's name spells its settings."""
    fits = (re.fullmatch(pattern, name) for name in folder.outputs)
    return sorted(each.groups() for each in fits if each)


def check_maps(folder: Folder, report: Report, extractor: RegionExtractor, case: Case, x: Tensor) -> None:
    """res4 from the network's input (1, 3, h, w), and the RPN's maps from the stored res4."""
    res4, logits, deltas = (f"{name}_{case.index}" for name in ("res4", "rpn_logits", "rpn_deltas"))
    report.compare(res4, extractor.detector.backbone(x), folder.outputs[res4], FEATURES)
    found = extractor.detector.proposal_generator.rpn_head(folder.outputs[res4])
    report.compare(logits, found[0], folder.outputs[logits], FEATURES)
    report.compare(deltas, found[1], folder.outputs[deltas], FEATURES)


def proposals_of(folder: Folder, extractor: RegionExtractor, case: Case) -> tuple[Tensor, Tensor]:
    """Proposals (R, 4) and their scores (R,) from the stored maps of the RPN."""
    logits, deltas = folder.outputs[f"rpn_logits_{case.index}"], folder.outputs[f"rpn_deltas_{case.index}"]
    frame = case.frame
    return extractor.detector.proposal_generator.propose(logits, deltas, frame.input_size, frame.scale)


def proposals_of_map(detector: BottomUpDetector, res4: Tensor, frame: tuple[tuple[int, int], float]) -> Tensor:
    """Proposals (R, 4) of one image's map (1, C, h, w), whose input has a size and a scale."""
    [boxes], [count] = detector.proposals(res4, [frame])
    return boxes[:count]


def selected_alone(
    boxes: Tensor, found: Predictions, frame: Frame, rule: Selection, detector: BottomUpDetector | None = None
) -> Selected:
    """What a rule selects from one image's proposals (R, 4); a detector moves them, where the rule asks for it."""
    found = Predictions(*(each[None] for each in found))

    def regress(rows: Tensor, classes: Tensor) -> Tensor:
        assert detector is not None
        return detector.decode(boxes[None], found.box_deltas, rows, classes)

    selected, [count] = select(Proposed(boxes[None], torch.tensor([len(boxes)]), found, [frame], regress), rule)
    return Selected(*(each[0, :count] for each in selected))


def check_pooling(folder: Folder, report: Report, extractor: RegionExtractor, index: str) -> None:
    """RoIPool and box features of the stored res4 and proposals."""
    outputs, heads = folder.outputs, extractor.detector.roi_heads
    res4, proposals = outputs[f"res4_{index}"], outputs[f"proposals_{index}"]
    first, pooled = f"roipool_first4_{index}", f"feature_pooled_{index}"
    report.compare(first, next(heads.pool(res4, proposals[: len(outputs[first])])), outputs[first], EXACT)
    report.compare(pooled, heads.features(res4, proposals), outputs[pooled], FEATURES)


def check_maps_end_to_end(folder: Folder, report: Report, extractor: RegionExtractor, case: Case) -> Tensor:
    """The maps the production extractor makes of the raw image; gives the network's input (1, 3, h, w)."""
    head = extractor.detector.proposal_generator.rpn_head
    with captured({"res4": extractor.detector.backbone, "rpn": head}) as seen:
        extract_last(extractor, case.prepared)
    found = {"res4": seen["res4"].gave, "rpn_logits": seen["rpn"].gave[0], "rpn_deltas": seen["rpn"].gave[1]}
    for name, tensor in found.items():
        wanted = folder.outputs[f"{name}_{case.index}"]
        report.compare(f"end_to_end {name}_{case.index}", tensor, wanted, FEATURES)
    return seen["res4"].given


def check_boxes(report: Report, found: Fields, wanted: Mapping[str, tuple[str, Tensor]], matched: bool = True) -> None:
    """Boxes of ours, with what goes with them, against an official list.

    Args:
        found: tensors by field of a record, a row a box.
        wanted: line name and tensor by the same fields; a tensor may hold the first boxes' rows only.
        matched: compare as sets, by box and class; else row by row.
    """
    name, boxes = wanted["boxes"]
    if len(found["boxes"]) != len(boxes):
        report.fail(name, f"found {len(found['boxes'])} boxes, wanted {len(boxes)}", MATCHED)
        return
    if matched:
        rows = partners(found, {field: tensor for field, (_, tensor) in wanted.items()})
        if len(rows.unique()) < len(rows):
            report.fail(name, "two official boxes have the same nearest one of ours", MATCHED)
            return
        found = {field: found[field][rows] for field in wanted}
    for field, (name, tensor) in wanted.items():
        report.compare(name, found[field][: len(tensor)], tensor, TOLERANCES[field])


def fields_of(extractor: RegionExtractor, prepared: Prepared) -> Fields:
    """The arrays of a production record as tensors, by field."""
    return arrays_of(extract_last(extractor, prepared))


def official(folder: Folder, names: Mapping[str, str], suffix: str) -> dict[str, tuple[str, Tensor]]:
    """An official list for `check_boxes`, end to end; `names` are its tensors' first parts by field."""
    full = {field: f"{name}_{suffix}" for field, name in names.items()}
    return {field: (f"end_to_end {name}", folder.outputs[name]) for field, name in full.items()}


def partners(found: Fields, wanted: Fields) -> Tensor:
    """For each wanted box the row (N,) of our nearest one, among those of its class where classes are given."""
    distance = torch.cdist(found["boxes"], wanted["boxes"], p=torch.inf)
    if "class_ids" in wanted:
        distance[found["class_ids"][:, None] != wanted["class_ids"][None]] = torch.inf
    return distance.argmin(dim=0) if len(distance) else torch.empty(0, dtype=torch.int64)
