"""Region features: a detector on an image, and the published rules for which of its boxes are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from extractors import selection as rules
from extractors.base import Extractor, Prepared, model_facts
from extractors.configs import DETECTRON2, ConfigError, RegionConfig
from extractors.faster_rcnn import CAFFE, GRID_FEATS, DetectorConfig, Predictions
from extractors.given_boxes import BoxTable, read_boxes
from extractors.images import ImageError
from extractors.launching import to_device, to_host
from extractors.networks import load_detector
from extractors.ragged import Areas, own_parts
from extractors.suppression import taken
from extractors.trunk import Results, TrunkExtractor
from storage.records import Record, RegionRecord
from storage.spec import FeatureLayout, Spec

VOCABULARY = Path(__file__).parent / "vocabulary"


class RegionExtractor(TrunkExtractor):
    """Pixels to `RegionRecord`s, by one of `DETECTORS`.

    Raises:
        ConfigError, WeightsError: the settings, or the weights, do not fit.
    """

    config: RegionConfig

    def __init__(self, config: RegionConfig) -> None:
        self.loaded = load_detector(config.model, config)
        self.detector = self.loaded.detector
        super().__init__(config, self.detector.backbone, self.loaded.colours)
        shape = self.detector.config
        self.conventions = shape.conventions
        self.table = _read_table(config)
        self.rule = choose_rule(config, shape)
        self.vocabulary = self.loaded.checkpoint.vocabulary or {}
        if not self.vocabulary and self.conventions != GRID_FEATS:
            self.vocabulary = vocabulary(shape.classes, shape.attributes)
        self.spec = Spec(
            view="regions",
            layout=FeatureLayout(shape.feature_dim, config.store_dtype, shape.classes + 1 if config.class_probs else 0),
            model={
                **model_facts(config, self.loaded.checkpoint, self.loaded.sha256),
                "conventions": self.conventions.name,
            },
            preprocess=self.preprocess_facts(),
            selection=self._selection_facts(),
        )

    def accept(self, prepared: Prepared) -> Prepared:
        prepared = super().accept(prepared)
        if self.table is None:
            return prepared
        return replace(prepared, boxes=self.table.of(prepared.key, prepared.image_size))

    def finish(self, batch: list[Prepared], res4: Tensor, areas: Areas | None) -> Results:
        cells = self.detector.cells(res4, areas)
        if areas is not None:
            areas.clear(cells)  # the RPN's convolution is 3x3
        frames = [_frame(image) for image in batch]
        wholes = torch.stack([rules.whole_image_box(frame.input_size, self.conventions) for frame in frames])
        wholes = to_device(wholes, self.device)
        if self.table is None:
            sizes = [(each.input_size, each.scale) for each in frames]
            proposals, counts = self.detector.proposals(cells, sizes, areas)
            boxes = torch.cat([proposals, wholes], dim=1)
            kept = self._kept_together(batch, boxes, counts, self._said(cells, areas, list(boxes)))
            return self._leaving(batch, kept, [len(kept.boxes) // len(batch)] * len(batch))
        given = self._given(batch)
        inputs = [self._input_boxes(*each) for each in zip(given, frames, strict=True)]
        own = [torch.cat(each) for each in zip(inputs, wholes, strict=True)]
        parts = zip(*(each.split([len(mine) for mine in own]) for each in self._said(cells, areas, own)), strict=True)
        each_image = [self._kept(*each) for each in zip(batch, given, own, parts, strict=True)]
        fields = zip(*each_image, strict=True)
        kept = _Kept._make(None if field[0] is None else torch.cat(field) for field in fields)
        return self._leaving(batch, kept, [len(mine) for mine in given])

    def _said(self, cells: Tensor, areas: Areas | None, boxes: list[Tensor]) -> tuple[Tensor, ...]:
        """Features of each image's boxes (R + 1, 4) in input pixels, end to end, and what the heads predict of them."""
        heads = self.detector.roi_heads
        features = heads.features_of(own_parts(cells, areas)[: len(boxes)], boxes)
        return features, *heads.predict(features)

    def _given(self, batch: list[Prepared]) -> list[Tensor]:
        """Each image's boxes that the user gave, (N, 4) in original pixels, on the device."""
        boxes = [image.boxes for image in batch if image.boxes is not None]
        return list(to_device(torch.cat(boxes), self.device).split([len(mine) for mine in boxes]))

    def _kept_together(self, batch: list[Prepared], boxes: Tensor, counts: Tensor, parts: tuple[Tensor, ...]) -> _Kept:
        """From what is known of all images' boxes; the whole image, last, is not among those to select from."""
        features, *predicted = (each.unflatten(0, boxes.shape[:2]) for each in parts)
        found, frames = Predictions(*(each[:, :-1] for each in predicted)), [_frame(image) for image in batch]
        regress = partial(self.detector.decode, boxes[:, :-1], found.box_deltas)
        proposed = rules.Proposed(boxes[:, :-1], counts, found, frames, regress)
        selected, kept = rules.select(proposed, self.rule)
        rows = selected.rows
        there = rules.within(kept, rows.shape[1])
        scores, ids = taken(found.attribute_probs, rows).max(dim=2)
        class_probs = taken(found.class_probs, rows).half().flatten(0, 1) if self.config.class_probs else None
        return _Kept(
            torch.cat([taken(features, rows).where(there[..., None], 0), features[:, -1:]], dim=1).flatten(0, 1),
            kept,
            (_finite(found) | ~proposed.there).all(dim=1),
            selected.boxes.float().flatten(0, 1),
            selected.class_ids.int().flatten(),
            selected.class_scores.flatten(),
            ids.int().flatten(),
            scores.flatten(),
            class_probs,
        )

    def _kept(self, image: Prepared, given: Tensor, boxes: Tensor, parts: tuple[Tensor, ...]) -> _Kept:
        """As `_kept_together` of one image whose boxes are the user's: all of them, (N, 4) in original pixels."""
        features, *predicted = parts
        found, regress = Predictions(*(each[:-1] for each in predicted)), None
        if self.config.box_regression:
            regress = partial(self.detector.decode, boxes[None, :-1], found.box_deltas[None])
        selected = rules.given(given, regress, found, _frame(image))
        scores, ids = found.attribute_probs.max(dim=1)
        return _Kept(
            features,
            torch.tensor([len(given)]),
            _finite(found).all()[None],
            selected.boxes.float(),
            selected.class_ids.int(),
            selected.class_scores,
            ids.int(),
            scores,
            found.class_probs.half() if self.config.class_probs else None,
        )

    def _input_boxes(self, boxes: Tensor, frame: rules.Frame) -> Tensor:
        """Given boxes in input pixels: one factor in Caffe's convention, one an axis in detectron2's."""
        return boxes * frame.scale if self.conventions is CAFFE else frame.to_input(boxes)

    def _leaving(self, batch: list[Prepared], kept: _Kept, lengths: list[int]) -> Results:
        """What waits for the records: each field of all images, `lengths` boxes each, leaves a GPU in one copy."""
        every, counts, finite, *fields = kept
        columns = [to_host(field).split(lengths) for field in fields if field is not None]
        found, fine = to_host(counts), to_host(finite)
        arrived = self.leaving(every, [(length + 1,) for length in lengths])

        def results() -> list[Record | ImageError]:
            features = arrived()  # first, as it waits for all
            rows = zip(batch, features, found.tolist(), fine.tolist(), *columns, strict=True)
            return [
                _record(image, mine, good, [each[:count].numpy() for each in row])
                for image, mine, count, good, *row in rows
            ]

        return results

    def _selection_facts(self) -> dict[str, object]:
        common = {"proposals": self.detector.config.proposals}
        if self.table:
            return {"rule": "given", "boxes_sha256": self.table.sha256, "regressed": self.config.box_regression}
        return {**common, **{name: getattr(self.rule, name) for name in self.rule.__dataclass_fields__}}


class _Kept(NamedTuple):
    """What is kept of images, end to end, on the device: of each N boxes, of which the first `there` count.

    features (sum N + 1, D), the whole image's last of each; there (B,); finite (B,) bool, whether all is that the heads
    say; the rest as in `RegionRecord`, (sum N, ...)
    """

    features: Tensor
    there: Tensor
    finite: Tensor
    boxes: Tensor
    class_ids: Tensor
    class_scores: Tensor
    attribute_ids: Tensor
    attribute_scores: Tensor
    class_probs: Tensor | None  # where they are asked for


def _record(
    image: Prepared, features: np.ndarray | ImageError, finite: bool, fields: Sequence[np.ndarray]
) -> RegionRecord | ImageError:
    """`fields`: as `_Kept` orders them, from boxes on."""
    if isinstance(features, ImageError):
        return features
    if not finite:
        return ImageError("not_representable", "a score, or what moves a box, is not finite", "model")
    named = dict(zip(_Kept._fields[3:], fields, strict=False))  # without class_probs where they are not asked for
    mine = features[: len(fields[0])]
    return RegionRecord(image.key, image.image_size, features=mine, whole_image=features[-1], **named)


def _finite(found: Predictions) -> Tensor:
    """(..., R) bool, of R boxes: a sum is not finite where a part of it is not."""
    parts = (found.class_probs, found.box_deltas, found.attribute_probs)
    return torch.stack([each.sum(dim=-1) for each in parts]).sum(dim=0).isfinite()


def _frame(image: Prepared) -> rules.Frame:
    return rules.Frame(image.size, image.image_size, image.scale)


def choose_rule(config: RegionConfig, shape: DetectorConfig) -> rules.Selection:
    """The selection rule with its thresholds; what the user left out is the official code's.

    Raises:
        ConfigError: thresholds that no box could meet.
    """
    if config.boxes is not None:
        return rules.Selection("given", 0, 0, 0.0, 0.0)
    name = rules.DEFAULT_RULE[shape.conventions.name] if config.selection == "auto" else config.selection
    if name != "10-100" and config.min_boxes is not None:
        raise ConfigError(f"--min-boxes belongs to the 10-100 rule; {name} has --max-boxes only.")
    if name == "class-agnostic" and config.score_threshold is not None:
        raise ConfigError("--score-threshold has no effect on the class-agnostic rule; leave it out.")
    wanted = {each: getattr(config, each) for each in ("min_boxes", "max_boxes", "score_threshold", "nms_threshold")}
    rule = replace(rules.DEFAULTS[name], **{each: value for each, value in wanted.items() if value is not None})
    if not 0 <= rule.min_boxes <= rule.max_boxes or rule.max_boxes < 1:
        raise ConfigError(
            f"--min-boxes {rule.min_boxes} and --max-boxes {rule.max_boxes} must be 0 <= min <= max, max > 0."
        )
    if not (0 <= rule.score_threshold <= 1 and 0 < rule.nms_threshold < 1):
        raise ConfigError(
            f"--score-threshold {rule.score_threshold} must lie in [0, 1] and "
            f"--nms-threshold {rule.nms_threshold} in (0, 1)."
        )
    return rule


@cache
def _names(file: str) -> tuple[str, ...]:
    lines = (VOCABULARY / file).read_text(encoding="utf-8").splitlines()
    return tuple(line.split(",")[0].strip() for line in lines)


def vocabulary(classes: int, attributes: int) -> dict[str, list[str]]:
    """Visual Genome's names of a bottom-up detector's class and attribute ids, if it has as many; else empty. (In which
    order the grid networks' detectors count the same classes, nothing published tells.)"""
    objects, adjectives = _names("objects_vocab.txt"), _names("attributes_vocab.txt")
    if (classes, attributes) != (len(objects), len(adjectives)):
        return {}
    return {"classes": list(objects), "attributes": list(adjectives)}


def _read_table(config: RegionConfig) -> BoxTable | None:
    if config.boxes is None:
        return None
    assert config.box_format and config.box_units  # RegionConfig refuses to be built without
    return read_boxes(config.boxes, config.box_format, config.box_units)


def make_region_extractor(config: RegionConfig) -> Extractor:
    """The extractor of a region config: our own networks, or detectron2's."""
    if not config.model.startswith(DETECTRON2):
        return RegionExtractor(config)
    from extractors.detectron2_adapter import Detectron2Extractor  # it imports this module

    return Detectron2Extractor(config)
