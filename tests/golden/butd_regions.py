"""Checks folders of airsplay/py-bottom-up-attention: every stage, both selection rules, given boxes, padded batches.

Shapes in this file: R proposals, N kept boxes, D feature width.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from extractors import selection as rules
from extractors.faster_rcnn import Predictions
from extractors.regions import RegionExtractor
from tests.golden import detector
from tests.golden.capture import check_repeatable
from tests.golden.compare import DECODED, EXACT, FEATURES, SOFTMAX, Folder, Report
from tests.golden.detector import Case
from tests.golden.grid_feats import zero_padded

# Fields of a record -> what the official lists call them.
LABELS = {"boxes": "boxes", "class_ids": "classes", "class_scores": "scores"}
ATTRIBUTES = {"attribute_ids": "attr_classes", "attribute_scores": "attr_scores"}
GIVEN = {"features": "features", "class_ids": "classes", "class_scores": "scores", **ATTRIBUTES}


@dataclass(frozen=True)
class SelectedList:
    """One official list of boxes: `prefix`_boxes_`suffix` and its sisters, at most `count` rows of image `index`."""

    prefix: str  # "sel": the notebook's class-aware loop; "maxnms": the batch script's class-agnostic one
    suffix: str
    index: str
    count: int

    @property
    def rule(self) -> str:
        return {"sel": "class-aware", "maxnms": "class-agnostic"}[self.prefix]

    @property
    def fields(self) -> Mapping[str, str]:
        """Fields of a record -> first parts of the list's names."""
        parts = {**LABELS, **ATTRIBUTES} if self.prefix == "sel" else LABELS
        return {field: f"{self.prefix}_{part}" for field, part in parts.items()}

    def name(self, part: str) -> str:
        return f"{self.prefix}_{part}_{self.suffix}"

    def choose(
        self, extractor: RegionExtractor, proposals: Tensor, found: Predictions, frame: rules.Frame
    ) -> rules.Selected:
        rule = replace(rules.DEFAULTS[self.rule], max_boxes=self.count)
        return detector.selected_alone(proposals, found, frame, rule, extractor.detector)


def check(folder: Folder, report: Report) -> None:
    """Compare everything in a folder of this project."""
    extractor = load(folder)
    cases = {case.index: case for case in detector.cases(folder, extractor)}
    for case in cases.values():
        check_stages(folder, report, extractor, case)
        check_heads(folder, report, extractor, case.index)
        if f"given_boxes_{case.index}" in folder.inputs:
            check_given(folder, report, extractor, case)
        check_repeatable(report, extractor, case.prepared)
        for kind in lists_of(folder, case.index):
            check_selection(folder, report, extractor, case, kind)
    for group in folder.setting("selection", "class_agnostic", "groups"):
        if len(group["images"]) > 1:
            check_padded_group(folder, report, extractor, group["group"], [cases[str(i)] for i in group["images"]])


def load(folder: Folder, **settings: Any) -> RegionExtractor:
    """The production extractor with the folder's weights and test sizes."""
    sizes = folder.setting("input", "min_size_test"), folder.setting("input", "max_size_test")
    return detector.load(folder, sizes, **settings)


def lists_of(folder: Folder, index: str) -> list[SelectedList]:
    """The official lists of an image that was run alone."""
    aware = detector.settings_of(folder, rf"sel_ids_({index}_k(\d+))")
    agnostic = detector.settings_of(folder, rf"maxnms_ids_(g\d+_img{index}_k(\d+))")
    return [SelectedList("sel", suffix, index, int(count)) for suffix, count in aware] + [
        SelectedList("maxnms", suffix, index, int(count)) for suffix, count in agnostic
    ]


def check_stages(folder: Folder, report: Report, extractor: RegionExtractor, case: Case) -> None:
    """From the raw image to the box features, each stage fed with the stored one before; the maps end to end, too."""
    index, inputs, outputs = case.index, folder.inputs, folder.outputs
    report.compare(f"resized_bgr_{index}", case.prepared.pixels, inputs[f"resized_bgr_{index}"], EXACT)
    x = detector.check_maps_end_to_end(folder, report, extractor, case)
    if f"network_input_{index}" in inputs:
        report.compare(f"network_input_{index}", x, inputs[f"network_input_{index}"], EXACT)
    stored = inputs[f"resized_bgr_{index}"].float() - extractor.mean
    detector.check_maps(folder, report, extractor, case, stored[None])
    boxes, logits = detector.proposals_of(folder, extractor, case)
    report.compare(f"proposals_{index}", boxes, outputs[f"proposals_{index}"], DECODED)
    report.compare(f"proposal_logits_{index}", logits, outputs[f"proposal_logits_{index}"], EXACT)
    detector.check_pooling(folder, report, extractor, index)


def check_heads(folder: Folder, report: Report, extractor: RegionExtractor, index: str) -> None:
    """The predictor on the stored features."""
    outputs, predictor = folder.outputs, extractor.detector.roi_heads.box_predictor
    classes, deltas, attributes = predictor.logits(outputs[f"feature_pooled_{index}"])
    probs = predictor(outputs[f"feature_pooled_{index}"]).class_probs
    found = {"cls_logits": classes, "cls_probs": probs, "box_deltas": deltas, "attr_logits": attributes}
    for name, tensor in found.items():
        report.compare(f"{name}_{index}", tensor, outputs[f"{name}_{index}"], FEATURES)


def stored_predictions(folder: Folder, index: str) -> Predictions:
    """The heads' stored output; attribute probabilities are not stored, their logits are."""
    outputs = folder.outputs
    attributes = outputs[f"attr_logits_{index}"][:, :-1].softmax(dim=1)
    return Predictions(outputs[f"cls_probs_{index}"], outputs[f"box_deltas_{index}"], attributes)


def check_selection(folder: Folder, report: Report, extractor: RegionExtractor, case: Case, kind: SelectedList) -> None:
    """One list from the stored predictions, then from the raw image."""
    outputs, found = folder.outputs, stored_predictions(folder, case.index)
    kept = kind.choose(extractor, outputs[f"proposals_{case.index}"], found, case.frame)
    for part, tensor in (("ids", kept.rows), ("classes", kept.class_ids), ("scores", kept.class_scores)):
        report.compare(kind.name(part), tensor, outputs[kind.name(part)], EXACT)
    report.compare(kind.name("boxes"), kept.boxes, outputs[kind.name("boxes")], DECODED)
    check_what_else(folder, report, found, kept, kind)
    wanted = detector.official(folder, kind.fields, kind.suffix)
    features = outputs[f"feature_pooled_{case.index}"][kept.rows]
    wanted["features"] = (f"end_to_end {kind.name('features')}", features)
    production = load(folder, selection=kind.rule, max_boxes=kind.count)
    detector.check_boxes(report, detector.fields_of(production, case.prepared), wanted)


def check_what_else(
    folder: Folder, report: Report, found: Predictions, kept: rules.Selected, kind: SelectedList
) -> None:
    """What the batch script's lists hold besides, the first boxes' features, or the notebook's: attributes."""
    outputs = folder.outputs
    if kind.prefix == "maxnms":
        wanted = outputs[kind.name("features")]
        pooled = outputs[f"feature_pooled_{kind.index}"][kept.rows]
        report.compare(kind.name("features"), pooled[: len(wanted)], wanted, FEATURES)
        return
    scores, classes = found.attribute_probs[kept.rows].max(dim=1)
    report.compare(kind.name("attr_classes"), classes, outputs[kind.name("attr_classes")], EXACT)
    report.compare(kind.name("attr_scores"), scores, outputs[kind.name("attr_scores")], SOFTMAX)


def check_given(folder: Folder, report: Report, extractor: RegionExtractor, case: Case) -> None:
    """Given boxes: their features from the stored res4, labels from the stored features, and both from the image."""
    index, outputs, heads = case.index, folder.outputs, extractor.detector.roi_heads
    boxes, pooled = folder.inputs[f"given_boxes_{index}"], outputs[f"given_features_{index}"]
    found = heads.box_predictor(pooled)
    kept = rules.given(boxes, None, found, case.frame)
    scores, classes = found.attribute_probs.max(dim=1)
    for part, tensor, tolerance in (
        ("features", heads.features(outputs[f"res4_{index}"], case.frame.to_input(boxes)), FEATURES),
        ("classes", kept.class_ids, EXACT),
        ("scores", kept.class_scores, FEATURES),
        ("attr_classes", classes, EXACT),
        ("attr_scores", scores, FEATURES),
    ):
        report.compare(f"given_{part}_{index}", tensor, outputs[f"given_{part}_{index}"], tolerance)
    wanted = detector.official(folder, {field: f"given_{part}" for field, part in GIVEN.items()}, index)
    wanted["boxes"] = (f"end_to_end given_boxes_{index}", boxes)
    detector.check_boxes(report, given_fields(folder, case, boxes), wanted, matched=False)


def given_fields(folder: Folder, case: Case, boxes: Tensor) -> detector.Fields:
    """The production record of an image with the user's boxes (N, 4), which go through a file."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "boxes.json"
        file.write_text(json.dumps({case.index: boxes.tolist()}), encoding="utf-8")
        extractor = load(folder, boxes=str(file), box_format="xyxy", box_units="pixels")
    return detector.fields_of(extractor, extractor.prepare(case.index, case.image))


def check_padded_group(
    folder: Folder, report: Report, extractor: RegionExtractor, group: int, members: list[Case]
) -> None:
    """The batch script's zero-padded batch of several images, which our extractor never makes."""
    images = [(case.prepared.pixels.float() - extractor.mean)[None] for case in members]
    res4 = extractor.detector.backbone(zero_padded(images))
    for case, map_of_one in zip(members, res4.split(1), strict=True):
        frame = case.frame.input_size, case.frame.scale
        proposals = detector.proposals_of_map(extractor.detector, map_of_one, frame)
        name = f"maxnms_batch_proposals_img{case.index}"
        detector.check_boxes(report, {"boxes": proposals}, {"boxes": (name, folder.outputs[name])})
        for suffix, count in detector.settings_of(folder, rf"maxnms_boxes_(g{group}_img{case.index}_k(\d+))"):
            kind = SelectedList("maxnms", suffix, case.index, int(count))
            found = fields_of_map(extractor, map_of_one, case.frame, kind)
            parts = {**LABELS, "features": "features"}
            wanted = {field: (kind.name(part), folder.outputs[kind.name(part)]) for field, part in parts.items()}
            detector.check_boxes(report, found, wanted)


def fields_of_map(extractor: RegionExtractor, res4: Tensor, frame: rules.Frame, kind: SelectedList) -> detector.Fields:
    """One list of boxes, with their features, from a map (1, C, h, w)."""
    proposals = detector.proposals_of_map(extractor.detector, res4, (frame.input_size, frame.scale))
    features = extractor.detector.roi_heads.features(res4, proposals)
    found = extractor.detector.roi_heads.box_predictor(features)
    kept = kind.choose(extractor, proposals, found, frame)
    labels = {"boxes": kept.boxes, "class_ids": kept.class_ids, "class_scores": kept.class_scores}
    return {**labels, "features": features[kept.rows]}
