"""Checks folders of MILVLG/bottom-up-attention.pytorch in Caffe mode: every stage, and the 10-100 selection.

Shapes in this file: R proposals, N kept boxes, K object classes, M attributes, D feature width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from extractors import selection as rules
from extractors.faster_rcnn import Predictions
from extractors.regions import RegionExtractor
from tests.golden import detector
from tests.golden.capture import check_repeatable
from tests.golden.compare import DECODED, EXACT, FEATURES, SOFTMAX, Folder, Report
from tests.golden.detector import Case

SAMPLE_STEP = 7  # rows and columns between those of the network input that a folder holds
FIELDS = {  # field of a record -> first part of the official list's name
    "boxes": "sel_boxes",
    "class_ids": "sel_objects",
    "class_scores": "sel_objects_conf",
    "attribute_ids": "sel_attrs",
    "attribute_scores": "sel_attrs_conf",
}


def check(folder: Folder, report: Report) -> None:
    """Compare everything in a folder of this project."""
    extractor = load(folder)
    for case in detector.cases(folder, extractor):
        check_stages(folder, report, extractor, case)
        check_heads(folder, report, extractor, case.index)
        check_confidence(folder, report, case)
        for low, high, threshold in detector.settings_of(folder, rf"sel_ids_{case.index}_min(\d+)_max(\d+)_t([\d.]+)"):
            rule = ten_to_hundred(folder, int(low), int(high), float(threshold))
            check_selection(folder, report, case, rule, f"{case.index}_min{low}_max{high}_t{threshold}")
        check_repeatable(report, extractor, case.prepared)
    for synthetic in folder.setting("selection", "synthetic"):
        check_synthetic(folder, report, synthetic)


def load(folder: Folder, **settings: Any) -> RegionExtractor:
    """The production extractor with the folder's weights and test sizes."""
    sizes = folder.setting("input", "short_side"), folder.setting("input", "max_side")
    return detector.load(folder, sizes, **settings)


def ten_to_hundred(folder: Folder, low: int, high: int, threshold: float) -> rules.Selection:
    """The rule with one of the settings the folder holds lists for."""
    return rules.Selection("10-100", low, high, threshold, folder.setting("selection", "nms_thresh"))


def check_stages(folder: Folder, report: Report, extractor: RegionExtractor, case: Case) -> None:
    """From the raw image to the box features, each stage fed with the stored one before; the maps end to end, too."""
    index, outputs = case.index, folder.outputs
    x = detector.check_maps_end_to_end(folder, report, extractor, case)
    name = f"network_input_sample_{index}"
    report.compare(name, x[0, :, ::SAMPLE_STEP, ::SAMPLE_STEP], folder.inputs[name], EXACT)
    detector.check_maps(folder, report, extractor, case, case.prepared.pixels[None])
    boxes, scores = detector.proposals_of(folder, extractor, case)
    report.compare(f"proposals_{index}", boxes, outputs[f"proposals_{index}"], DECODED)
    report.compare(f"proposal_scores_{index}", scores, outputs[f"proposal_scores_{index}"], SOFTMAX)
    detector.check_pooling(folder, report, extractor, index)


def check_heads(folder: Folder, report: Report, extractor: RegionExtractor, index: str) -> None:
    """The predictor on the stored features; ours puts background last and leaves "no attribute" out."""
    outputs, predictor = folder.outputs, extractor.detector.roi_heads.box_predictor
    pooled = outputs[f"feature_pooled_{index}"]
    found = predictor(pooled)
    no_attribute = predictor.logits(pooled)[2].softmax(dim=1)[:, :1]
    attributes = torch.cat([no_attribute, found.attribute_probs], dim=1)
    classes = found.class_probs.roll(1, dims=1)
    report.compare(f"cls_probs_{index}", classes, outputs[f"cls_probs_{index}"], FEATURES)
    report.compare(f"attr_probs_{index}", attributes, outputs[f"attr_probs_{index}"], FEATURES)


def stored_predictions(folder: Folder, index: str) -> Predictions:
    """The heads' stored output in our order; the rule knows no box deltas, so there are none."""
    classes, attributes = folder.outputs[f"cls_probs_{index}"], folder.outputs[f"attr_probs_{index}"]
    return Predictions(classes.roll(-1, dims=1), classes.new_empty(len(classes), 0), attributes[:, 1:])


def check_confidence(folder: Folder, report: Report, case: Case) -> None:
    """Every proposal's best surviving probability, from the stored ones."""
    index, found = case.index, stored_predictions(folder, case.index)
    boxes = folder.outputs[f"proposals_{index}"] / case.frame.scale
    confidence = confidences(boxes, found.class_probs[:, :-1], folder.setting("selection", "nms_thresh"))
    report.compare(f"max_conf_{index}", confidence, folder.outputs[f"max_conf_{index}"], EXACT)


def confidences(boxes: Tensor, class_probs: Tensor, threshold: float) -> Tensor:
    """One image's, (R,): see `selection.confidences`."""
    return rules.confidences(boxes[None], class_probs[None], threshold, torch.tensor([len(boxes)]))[0]


def check_selection(folder: Folder, report: Report, case: Case, rule: rules.Selection, suffix: str) -> None:
    """One official list, from the stored predictions and from the raw image."""
    outputs, found = folder.outputs, stored_predictions(folder, case.index)
    kept = detector.selected_alone(outputs[f"proposals_{case.index}"], found, case.frame, rule)
    for field, tensor in {"ids": kept.rows, **fields_of(kept, found)}.items():
        name = f"{FIELDS.get(field, 'sel_ids')}_{suffix}"
        report.compare(name, tensor, outputs[name], DECODED if field == "boxes" else EXACT)
    wanted = detector.official(folder, FIELDS, suffix)
    wanted["features"] = (f"end_to_end sel_features_{suffix}", outputs[f"feature_pooled_{case.index}"][kept.rows])
    thresholds = {"score_threshold": rule.score_threshold, "nms_threshold": rule.nms_threshold}
    production = load(folder, selection="10-100", min_boxes=rule.min_boxes, max_boxes=rule.max_boxes, **thresholds)
    detector.check_boxes(report, detector.fields_of(production, case.prepared), wanted)


def fields_of(kept: rules.Selected, found: Predictions) -> dict[str, Tensor]:
    """What is kept, by field of a record."""
    scores, ids = found.attribute_probs[kept.rows].max(dim=1)
    labels = {"boxes": kept.boxes, "class_ids": kept.class_ids, "class_scores": kept.class_scores}
    return {**labels, "attribute_ids": ids, "attribute_scores": scores}


def check_synthetic(folder: Folder, report: Report, case: dict[str, Any]) -> None:
    """The rule alone, on made-up boxes (N, 4) in resized pixels and probabilities (N, K + 1), background first."""
    index = case["index"]
    boxes, probs = (
        folder.inputs[f"synthetic_boxes_{index}"],
        folder.inputs[f"synthetic_scores_{index}"].roll(-1, dims=1),
    )
    rule = ten_to_hundred(folder, case["min_boxes"], case["max_boxes"], case["conf_thresh"])
    nothing = probs.new_empty(len(probs), 0)
    frame = rules.Frame((0, 0), (0, 0), case["im_scale"])
    kept = detector.selected_alone(boxes, Predictions(probs, nothing, nothing), frame, rule)
    confidence = confidences(boxes / case["im_scale"], probs[:, :-1], rule.nms_threshold)
    report.compare(f"synthetic_ids_{index}", kept.rows, folder.outputs[f"synthetic_ids_{index}"], EXACT)
    name = f"synthetic_max_conf_{index}"
    report.compare(name, confidence, folder.outputs[name], EXACT)
