"""The detector that a run trains: one with random weights, narrow if wished, or one that starts from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from extractors import ConfigError, RegionConfig
from extractors.configs import BUTD, GRID_PREFIX
from extractors.faster_rcnn import CAFFE, GRID_FEATS, PY_BOTTOM_UP, R101_C4, BottomUpDetector, DetectorConfig
from extractors.grid_detector import GridDetector
from extractors.networks import GRID_MODELS, detector_colours, detector_for
from extractors.regions import vocabulary as published_names
from extractors.resnet import BLOCKS
from extractors.trunk import Colours
from extractors.weights import PUBLISHED, Checkpoint, WeightsError, find_weights, match_suffixes, randomise
from trainers.detection.norms import thaw
from trainers.detection.vocabulary import Names, Vocabulary

Kind = Literal["regions", "grid"]
GRID_OF_DEPTH = {50: "r50", 101: "x101", 152: "x152"}
FULL_SIZE = 600  # pixels of the shorter side, which the published anchors are for
BY_CLASS, BY_ATTRIBUTE = ("cls_score", "bbox_pred", "cls_embedding", "obj_embed"), ("attr_score",)  # layers with rows
FROZEN = ("stem", "res2")  # of a start's backbone: detectron2's FREEZE_AT of 2


@dataclass(frozen=True)
class Plan:
    """Which detector a run trains.

    kind     regions: the bottom-up Faster R-CNN; grid: a grid network with its detector's heads
    depth    of the ResNet; of grids 101 and 152 are ResNeXts. None: 50, or that of `start`
    divisor  by which all widths are divided
    start    weights: a file or a published name; None: random ones
    shorter  pixels of the input's shorter side, by which random weights' anchors are scaled
    seed     of random weights

    Raises:
        ConfigError: settings that contradict each other.
    """

    kind: Kind = "regions"
    depth: int | None = None
    divisor: int = 1
    start: str | None = None
    shorter: int = FULL_SIZE
    seed: int = 0

    def __post_init__(self) -> None:
        if self.start is not None and (self.depth is not None or self.divisor != 1):
            raise ConfigError("--depth and --width-divisor are those of the --start weights; leave them out.")
        if self.depth not in (None, *BLOCKS) or self.divisor < 1:
            raise ConfigError(f"--depth {self.depth} must be 50, 101 or 152, --width-divisor {self.divisor} above 0.")


@dataclass(frozen=True)
class Built:
    """A detector to train.

    model       its name in `extract --model`, of regions and, without `grid-`, of a grid network
    vocabulary  of its heads: the data's; where the data says no attributes, those that the start can tell
    started     what it starts from, for people
    """

    model: str
    detector: BottomUpDetector
    vocabulary: Vocabulary
    colours: Colours
    started: str


def build(plan: Plan, vocabulary: Vocabulary) -> Built:
    """Make a detector for a vocabulary.

    Raises:
        ConfigError, WeightsError: the weights to start from cannot be had, or are of another network.
    """
    if plan.start is None:
        return _random(plan, vocabulary)
    checkpoint = _found(plan, plan.start)
    tensors = checkpoint.tensors
    assert tensors is not None
    model = _model(plan.kind, _depth(tensors, checkpoint))
    shape = _shape(plan, model, checkpoint)
    kept = _known(checkpoint, shape)
    if not len(vocabulary.attributes) and kept is not None:
        vocabulary = replace(vocabulary, attributes=kept.attributes)
    shape = replace(shape, classes=len(vocabulary.classes), attributes=vocabulary.attribute_count)
    detector = _made(plan.kind, shape, plan)
    anew = _fill(detector, checkpoint, _foreign(kept, vocabulary))
    for part in FROZEN:
        detector.backbone.get_submodule(part).requires_grad_(False)
    said = f"starts from {checkpoint.description}" + (f"; new are {', '.join(anew)}" if anew else "")
    return Built(model, detector, vocabulary, detector_colours(model, shape.conventions), said)


def _random(plan: Plan, vocabulary: Vocabulary) -> Built:
    model = _model(plan.kind, plan.depth or 50)
    shape = narrow_shape(plan.kind, plan.depth or 50, plan.divisor)
    shape = replace(shape, classes=len(vocabulary.classes), attributes=vocabulary.attribute_count)
    detector = _made(plan.kind, shape, plan)
    thaw(detector)
    said = f"starts from random weights, seed {plan.seed}; its norms are trained"
    return Built(model, detector, vocabulary, detector_colours(model, shape.conventions), said)


def narrow_shape(kind: Kind, depth: int, divisor: int) -> DetectorConfig:
    """The published detector of a depth with all widths divided.

    A narrow grid network's proposals have a hidden layer of a sixteenth of its map's width and not of all: else that
    one layer would be half of its weights.
    """
    heads = {"embedding": max(1, 256 // divisor), "attribute_hidden": max(1, 512 // divisor)}
    if kind == "regions":
        body = replace(R101_C4, depth=depth).narrowed(divisor)
        return DetectorConfig(PY_BOTTOM_UP, body, rpn_channels=max(1, 512 // divisor), **heads)
    body = replace(GRID_MODELS[GRID_OF_DEPTH[depth]].body.narrowed(divisor), res5_dilation=2)
    hidden = body.out_channels(5) // (1 if divisor == 1 else 16)
    return DetectorConfig(
        GRID_FEATS, body, rpn_channels=max(1, hidden), box_hidden=max(1, 1024 // divisor), proposals=1000, **heads
    )


def _made(kind: Kind, shape: DetectorConfig, plan: Plan) -> BottomUpDetector:
    """The network with random weights; its last layers begin near 0, as those of the official codes."""
    detector = BottomUpDetector(shape) if kind == "regions" else GridDetector(shape)
    randomise(detector, plan.seed)
    generator = torch.Generator().manual_seed(plan.seed)
    for name, layer in detector.named_modules():
        last = name.rpartition(".")[2]
        if last in ("objectness_logits", "anchor_deltas", "cls_score", "bbox_pred", "attr_score"):
            nn.init.normal_(layer.weight, std=0.001 if last == "bbox_pred" else 0.01, generator=generator)
    detector.proposal_generator.anchor_generator.cell.mul_(plan.shorter / FULL_SIZE)
    return detector.to(memory_format=torch.channels_last)


def _found(plan: Plan, start: str) -> Checkpoint:
    """The weights to start from.

    Raises:
        WeightsError: they are of the other kind, in Caffe's order, or random.
    """
    mine = [each for each in PUBLISHED if each.startswith(BUTD if plan.kind == "regions" else GRID_PREFIX)]
    checkpoint = find_weights(start, mine)
    tensors = checkpoint.tensors
    if tensors is None:
        raise WeightsError(f"--start {start}: random weights are what a run without --start has; leave it out.")
    is_grid = any(name.startswith("roi_heads.box_head.") for name in tensors)
    is_regions = any(name.startswith("roi_heads.res5.") for name in tensors)
    if (is_grid and plan.kind == "regions") or (is_regions and plan.kind == "grid"):
        other = "grid" if is_grid else "regions"
        raise WeightsError(f"--start {start} is of --kind {other}; pass that, or weights of --kind {plan.kind}.")
    return checkpoint


def _depth(tensors: Mapping[str, Tensor], checkpoint: Checkpoint) -> int:
    blocks = {name.removeprefix("backbone.").split(".")[1] for name in tensors if "res4." in name}
    depths = {counts[2]: depth for depth, counts in BLOCKS.items()}
    if len(blocks) not in depths:
        raise WeightsError(f"{checkpoint.description} is no ResNet of depth 50, 101 or 152 in detectron2's names.")
    return depths[len(blocks)]


def _model(kind: Kind, depth: int) -> str:
    return BUTD if kind == "regions" else f"{GRID_PREFIX}{GRID_OF_DEPTH[depth]}"


def _shape(plan: Plan, model: str, checkpoint: Checkpoint) -> DetectorConfig:
    """Widths of the checkpoint; of one of a bare ResNet, as of ImageNet, the published ones."""
    assert checkpoint.tensors is not None
    if not any("rpn_head." in name for name in checkpoint.tensors):
        return narrow_shape(plan.kind, _depth(checkpoint.tensors, checkpoint), 1)
    shape = detector_for(model, RegionConfig(model=model), checkpoint)
    if shape.conventions == CAFFE:
        raise WeightsError(
            f"{checkpoint.description} counts in Caffe's order, training in detectron2's; start from butd-r101-py."
        )
    return shape


def _known(checkpoint: Checkpoint, shape: DetectorConfig) -> Vocabulary | None:
    """What the checkpoint's heads can tell apart, by name, where that is known."""
    found = checkpoint.vocabulary
    if found is None and shape.conventions == PY_BOTTOM_UP and checkpoint.tensors is not None:
        found = published_names(shape.classes, shape.attributes) or None
    if found is None:
        return None
    return Vocabulary(Names.of(found["classes"]), Names.of([each for each in found["attributes"] if each]))


def _foreign(kept: Vocabulary | None, vocabulary: Vocabulary) -> tuple[str, ...]:
    """The layers that stand for other classes or attributes than the run's."""
    classes = kept is None or kept.classes.names != vocabulary.classes.names
    attributes = kept is None or kept.attributes.names != vocabulary.attributes.names
    return (*(BY_CLASS if classes else ()), *(BY_ATTRIBUTE if attributes else ()))


def _fill(detector: BottomUpDetector, checkpoint: Checkpoint, foreign: tuple[str, ...]) -> list[str]:
    """Put what fits of a checkpoint into a detector; returns the layers that begin anew.

    Raises:
        WeightsError: it lacks a part of the backbone, or a part has another shape.
    """
    wanted, found = detector.state_dict(), dict(checkpoint.tensors or {})
    if checkpoint.by_suffix:
        found = match_suffixes(found, wanted)
    found = {name: each for name, each in found.items() if name in wanted and not any(part in name for part in foreign)}
    for name, tensor in wanted.items():
        if name.startswith("backbone.") and name not in found:
            raise WeightsError(f"{checkpoint.description} has no {name}; start from a detector or a ResNet.")
        if name in found and found[name].shape != tensor.shape:
            raise WeightsError(
                f"{checkpoint.description}: {name} is {list(found[name].shape)}, {list(tensor.shape)} was wanted."
            )
    detector.load_state_dict(found, strict=False)
    anew = [name for name in wanted if name not in found and "cell_anchors" not in name]
    return list(dict.fromkeys(name.rpartition(".")[0] for name in anew))
