"""Region features: the bottom-up detector on an image, and the published rules for which of its boxes are kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from extractors import selection as rules
from extractors.base import (
    ConfigError,
    Extractor,
    ExtractorConfig,
    Prepared,
    model_facts,
    narrowed,
    pick_device,
    pil_facts,
    prepare_pil,
)
from extractors.faster_rcnn import CAFFE, PY_BOTTOM_UP, BottomUpDetector, DetectorConfig, Predictions
from extractors.given_boxes import BoxTable, read_boxes
from extractors.images import ImageError, resize_caffe
from extractors.resnet import infer_config
from extractors.weights import PUBLISHED, Checkpoint, Tensors, WeightsError, fill, find_weights
from storage.records import Record, RegionRecord
from storage.spec import FeatureLayout, Spec

MEAN_BGR = (102.9801, 115.9465, 122.7717)
SMALLEST_INPUT = 3  # pixels a side: the Caffe pool has no output below

VOCABULARY = Path(__file__).parent / "vocabulary"


@dataclass(frozen=True)
class RegionConfig(ExtractorConfig):
    """Settings of a region extraction. Thresholds left out are those of the selection rule's official code."""

    model: Literal["butd-r101"] = "butd-r101"
    """The bottom-up attention Faster R-CNN, ResNet-101 C4. Its checkpoint tells which of the two published variants it
    is; random weights follow the Caffe one."""
    selection: Literal["auto", "10-100", "class-aware", "class-agnostic"] = "auto"
    """Which boxes are kept. auto: 10-100 for Caffe-order weights, class-aware for py-bottom-up-attention's."""
    min_boxes: int | None = None
    """10-100: keep at least so many boxes."""
    max_boxes: int | None = None
    """Keep at most so many boxes; the loops of the other two rules aim for this number."""
    score_threshold: float | None = None
    """Keep boxes this sure of their class."""
    nms_threshold: float | None = None
    """Suppress boxes of one class that overlap more than this; where the loops start."""
    boxes: str | None = None
    """JSON file with your own boxes, {key: [[a, b, c, d], ...]}: features of these instead of detected ones."""
    box_format: Literal["xyxy", "xywh"] | None = None
    """What the four numbers are. Must be given with --boxes."""
    box_units: Literal["pixels", "normalized"] | None = None
    """Pixels of the upright original image, or fractions of it. Must be given with --boxes."""
    box_regression: bool = False
    """Report the detector's regressed boxes instead of your own; the features stay those of your boxes."""
    class_probs: bool = False
    """Store all class probabilities of every box."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.boxes is not None and (self.box_format is None or self.box_units is None):
            raise ConfigError(
                "--boxes needs --box-format xyxy|xywh and --box-units pixels|normalized: they differ silently."
            )
        if self.boxes is None and (self.box_format or self.box_units or self.box_regression):
            raise ConfigError("--box-format, --box-units and --box-regression go with --boxes FILE.")
        chosen = (self.min_boxes, self.max_boxes, self.score_threshold, self.nms_threshold)
        if self.boxes is not None and (self.selection != "auto" or any(each is not None for each in chosen)):
            raise ConfigError("--boxes keeps all your boxes; leave the selection settings out.")


class RegionExtractor(Extractor):
    """Pixels to `RegionRecord`s.

    Raises:
        ConfigError, WeightsError: the settings, or the weights, do not fit.
    """

    def __init__(self, config: RegionConfig) -> None:
        self.config = config
        self.device = pick_device(config.device)
        fitting = [name for name in PUBLISHED if name.startswith(config.model)]
        checkpoint = find_weights(config.weights or config.model, fitting)
        shape = detector_for(config, checkpoint)
        self.detector = BottomUpDetector(shape).eval()
        digest = fill(self.detector, checkpoint, f"detector {config.model}")
        self.detector.to(self.device).to(memory_format=torch.channels_last)
        self.conventions = shape.conventions
        self.mean = torch.tensor(MEAN_BGR, device=self.device)[:, None, None]
        self.table = _read_table(config)
        self.rule = choose_rule(config, shape)
        self.vocabulary = vocabulary(shape.classes, shape.attributes)
        probs = shape.classes + 1 if config.class_probs else 0
        self.spec = Spec(
            view="regions",
            layout=FeatureLayout(shape.body.out_channels(5), config.store_dtype, probs),
            model={**model_facts(config, checkpoint, digest), "conventions": self.conventions.name},
            preprocess=pil_facts(config, MEAN_BGR, (1.0, 1.0, 1.0)) | self._resize_facts(),
            selection=self._selection_facts(),
        )

    def prepare(self, key: str, image: np.ndarray) -> Prepared:
        if self.conventions is CAFFE:
            prepared = _prepare_caffe(key, image, self.config)
        else:
            prepared = prepare_pil(key, image, self.config)
        smallest = min(prepared.pixels.shape[1:])
        if smallest < SMALLEST_INPUT:
            raise ImageError(
                "too_thin",
                f"{prepared.image_size[1]} x {prepared.image_size[0]} pixels resize to a side of {smallest}, at least "
                f"{SMALLEST_INPUT} is needed; raise --longer or leave the image out",
                "prepare",
            )
        boxes = self.table.of(key, prepared.image_size) if self.table else None
        return replace(prepared, boxes=boxes)

    def forward(self, batch: list[Prepared]) -> list[Record | ImageError]:
        x = torch.stack([image.pixels for image in batch]).to(self.device, non_blocking=True)
        if self.conventions is not CAFFE:
            x = x.float() - self.mean
        res4 = self.detector.backbone(x)
        return [self._record(image, res4[index : index + 1].float()) for index, image in enumerate(batch)]

    def _record(self, image: Prepared, res4: Tensor) -> Record | ImageError:
        try:
            return self._detect(image, res4)
        except ImageError as error:
            return error

    def _detect(self, image: Prepared, res4: Tensor) -> Record:
        height, width = image.pixels.shape[1:]
        frame = rules.Frame((height, width), image.image_size, image.scale)
        if image.boxes is None:
            boxes = self.detector.propose(res4, frame.input_size, frame.scale)
        else:
            boxes = self._input_boxes(image.boxes.to(self.device), frame)
        heads = self.detector.roi_heads
        whole = rules.whole_image_box(frame.input_size, self.conventions).to(self.device)
        features = heads.features(res4, torch.cat([boxes, whole]))
        found = Predictions(*(each.float() for each in heads.box_predictor(features[:-1])))
        kept = self._select(boxes, found, frame, image.boxes)
        return self._to_record(image, kept, found, features)

    def _input_boxes(self, boxes: Tensor, frame: rules.Frame) -> Tensor:
        """Given boxes in input pixels: one factor in Caffe's convention, one an axis in detectron2's."""
        return boxes * frame.scale if self.conventions is CAFFE else frame.to_input(boxes)

    def _select(self, boxes: Tensor, found: Predictions, frame: rules.Frame, own: Tensor | None) -> rules.Selected:
        if self.rule.rule == "10-100":
            return rules.by_confidence(boxes, found, frame, self.rule)
        if own is not None and not self.config.box_regression:
            return rules.given(own.to(self.device), None, found, frame)
        regressed = self.detector.decode(boxes, found.box_deltas)
        if own is not None:
            return rules.given(own.to(self.device), regressed, found, frame)
        choose = rules.class_aware if self.rule.rule == "class-aware" else rules.class_agnostic
        return choose(regressed, found, frame, self.rule)

    def _to_record(self, image: Prepared, kept: rules.Selected, found: Predictions, features: Tensor) -> Record:
        attribute_scores, attribute_ids = found.attribute_probs[kept.rows].max(dim=1)
        probs = found.class_probs[kept.rows].half().cpu().numpy() if self.config.class_probs else None
        return RegionRecord(
            image.key,
            image.image_size,
            boxes=kept.boxes.float().cpu().numpy(),
            features=self.to_numpy(features[kept.rows]),
            whole_image=self.to_numpy(features[-1]),
            class_ids=kept.class_ids.int().cpu().numpy(),
            class_scores=kept.class_scores.cpu().numpy(),
            attribute_ids=attribute_ids.int().cpu().numpy(),
            attribute_scores=attribute_scores.cpu().numpy(),
            class_probs=probs,
        )

    def _resize_facts(self) -> dict[str, object]:
        return {"resize": self.conventions.resize}

    def _selection_facts(self) -> dict[str, object]:
        common = {"proposals": self.detector.config.proposals}
        if self.table:
            return {"rule": "given", "boxes_sha256": self.table.sha256, "regressed": self.config.box_regression}
        return {**common, **{name: getattr(self.rule, name) for name in self.rule.__dataclass_fields__}}


def choose_rule(config: RegionConfig, shape: DetectorConfig) -> rules.Selection:
    """The selection rule with its thresholds; what the user left out is the official code's.

    Raises:
        ConfigError: thresholds that no box could meet.
    """
    if config.boxes is not None:
        return rules.Selection("given", 0, 0, 0.0, 0.0)
    name = rules.DEFAULT_RULE[shape.conventions.name] if config.selection == "auto" else config.selection
    if name != "10-100" and config.min_boxes is not None:
        raise ConfigError(f"--min-boxes belongs to the 10-100 rule; {name} aims for --max-boxes.")
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


def detector_for(config: RegionConfig, checkpoint: Checkpoint) -> DetectorConfig:
    """The detector to build: which variant, read off the checkpoint's layout; a reference folder's widths, too.

    Raises:
        WeightsError: the checkpoint is not a bottom-up detector.
    """
    tensors = checkpoint.tensors
    body = narrowed(DetectorConfig().body, config, checkpoint)
    if tensors is None:
        return replace(DetectorConfig(), body=body, rpn_channels=max(1, 512 // config.width_divisor))
    try:
        logits = _ending(tensors, "rpn_head.objectness_logits.weight").shape[0]
        moves = _ending(tensors, "rpn_head.anchor_deltas.weight").shape[0]
        paired = logits * 2 == moves
        if checkpoint.is_reference:
            return _reference_detector(tensors, paired)
    except KeyError as error:
        raise WeightsError(
            f"{checkpoint.description} is not a bottom-up detector (it lacks {error}); is it for `extract grid`?"
        ) from error
    return replace(DetectorConfig(), conventions=CAFFE if paired else PY_BOTTOM_UP, body=body)


def _reference_detector(tensors: Tensors, paired: bool) -> DetectorConfig:
    shapes = {n.removeprefix("backbone."): t.shape for n, t in tensors.items() if n.startswith("backbone.")}
    predictor = "roi_heads.box_predictor."
    return DetectorConfig(
        conventions=CAFFE if paired else PY_BOTTOM_UP,
        body=infer_config(shapes, last_stage=4, ceil_pool=True),
        rpn_channels=tensors["proposal_generator.rpn_head.conv.weight"].shape[0],
        classes=tensors[f"{predictor}cls_score.weight"].shape[0] - 1,
        attributes=tensors[f"{predictor}attr_score.weight"].shape[0] - 1,
        embedding=tensors[f"{predictor}cls_embedding.weight"].shape[1],
        attribute_hidden=tensors[f"{predictor}fc_attr.weight"].shape[0],
    )


def _ending(tensors: Tensors, suffix: str) -> Tensor:
    for name, tensor in tensors.items():
        if name.endswith(suffix):
            return tensor
    raise KeyError(suffix)


@cache
def _names(file: str) -> tuple[str, ...]:
    lines = (VOCABULARY / file).read_text(encoding="utf-8").splitlines()
    return tuple(line.split(",")[0].strip() for line in lines)


def vocabulary(classes: int, attributes: int) -> dict[str, list[str]]:
    """Visual Genome's names of class and attribute ids, for detectors that have as many; empty for others."""
    objects, adjectives = _names("objects_vocab.txt"), _names("attributes_vocab.txt")
    if (classes, attributes) != (len(objects), len(adjectives)):
        return {}
    return {"classes": list(objects), "attributes": list(adjectives)}


def _read_table(config: RegionConfig) -> BoxTable | None:
    if config.boxes is None:
        return None
    assert config.box_format and config.box_units  # RegionConfig refuses to be built without
    return read_boxes(config.boxes, config.box_format, config.box_units)


def _prepare_caffe(key: str, image: np.ndarray, config: RegionConfig) -> Prepared:
    """Caffe's way: the mean comes off first, as floats, then OpenCV resizes by one factor."""
    resized, scale = resize_caffe(np.ascontiguousarray(image[:, :, ::-1]), MEAN_BGR, config.shorter, config.longer)
    pixels = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
    return Prepared(key, (image.shape[0], image.shape[1]), pixels, scale)
