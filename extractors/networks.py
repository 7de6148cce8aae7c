"""The published networks by name: how each is built, and what its checkpoint tells of it.

Sources: facebookresearch/grid-feats-vqa `configs/*-grid.yaml`, `X-152-challenge.yaml`; the bottom-up detectors named in
`extractors/faster_rcnn.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from extractors.base import device_for, narrowed
from extractors.configs import BUTD, GRID_PREFIX, ConvConfig
from extractors.faster_rcnn import CAFFE, GRID_FEATS, PY_BOTTOM_UP, BottomUpDetector, Conventions, DetectorConfig
from extractors.grid_detector import GridDetector
from extractors.resnet import ResNetConfig, infer_config
from extractors.trunk import UNIT_STD, Colours
from extractors.weights import PUBLISHED, Checkpoint, Tensors, WeightsError, fill, find_weights, tensors_sha256

BUTD_MEAN = (102.9801, 115.9465, 122.7717)
GRID_MEAN = (103.53, 116.28, 123.675)
X101_STD = (57.375, 57.12, 58.395)  # of the X-101 alone: the other three networks were trained on 0..255
GRID_PROPOSALS = 1000


@dataclass(frozen=True)
class GridModel:
    """A grid network: its body, the deviation its pixels are divided by, and the name of its official config."""

    body: ResNetConfig
    upstream: str
    std: tuple[float, float, float] = UNIT_STD


_X152 = ResNetConfig(depth=152, groups=32, width_per_group=8)
GRID_MODELS = {
    "r50": GridModel(ResNetConfig(depth=50), "R-50-grid"),
    "x101": GridModel(ResNetConfig(depth=101, groups=32, width_per_group=8), "X-101-grid", X101_STD),
    "x152": GridModel(_X152, "X-152-grid"),
    "x152pp": GridModel(replace(_X152, deform_stages=(4, 5)), "X-152-challenge"),
}


@dataclass(frozen=True)
class LoadedDetector:
    """A detector with its weights, on its device, made ready for inference.

    sha256           of its tensors, as they were loaded
    backbone_sha256  of its backbone's
    """

    name: str
    detector: BottomUpDetector
    checkpoint: Checkpoint
    sha256: str
    backbone_sha256: str

    @property
    def colours(self) -> Colours:
        """What its pixels need."""
        return detector_colours(self.name, self.detector.config.conventions)


def detector_colours(name: str, conventions: Conventions) -> Colours:
    """What the pixels of one of `DETECTORS` need."""
    if name != BUTD:
        return grid_colours(name.removeprefix(GRID_PREFIX))
    return Colours(BUTD_MEAN, resize=conventions.resize)


def grid_colours(name: str) -> Colours:
    """What the pixels of a grid network need."""
    return Colours(GRID_MEAN, GRID_MODELS[name].std)


def load_detector(name: str, config: ConvConfig) -> LoadedDetector:
    """Build one of `DETECTORS` with the weights that a config names.

    Raises:
        ConfigError, WeightsError: the settings, or the weights, do not fit.
    """
    device = device_for(config)
    fitting = [each for each in PUBLISHED if each == name or each.startswith(f"{name}-")]
    checkpoint = find_weights(config.weights or name, fitting)
    kind = BottomUpDetector if name == BUTD else GridDetector
    detector = kind(detector_for(name, config, checkpoint)).eval()
    sha256 = fill(detector, checkpoint, f"detector {name}")
    backbone_sha256 = tensors_sha256(as_in_checkpoints(detector.backbone))
    detector.ready(config.dtype, device)
    return LoadedDetector(name, detector, checkpoint, sha256, backbone_sha256)


def as_in_checkpoints(backbone: nn.Module) -> nn.Module:
    """A backbone whose tensors have their names in checkpoints."""
    return nn.ModuleDict({"backbone": backbone})


def detector_for(name: str, config: ConvConfig, checkpoint: Checkpoint) -> DetectorConfig:
    """The detector to build: which variant, read off the checkpoint's layout; where it has its own widths, these too.

    Raises:
        WeightsError: the checkpoint is not such a detector.
    """
    if name != BUTD:
        return _grid_detector_for(name.removeprefix(GRID_PREFIX), config, checkpoint)
    tensors = checkpoint.tensors
    body = narrowed(DetectorConfig().body, config, checkpoint)
    if tensors is None:
        return replace(DetectorConfig(), body=body, rpn_channels=max(1, 512 // config.width_divisor))
    try:
        logits = _ending(tensors, "rpn_head.objectness_logits.weight")
        moves = _ending(tensors, "rpn_head.anchor_deltas.weight")
        shape = replace(DetectorConfig(), conventions=CAFFE if logits * 2 == moves else PY_BOTTOM_UP, body=body)
        return _with_widths_of(tensors, shape) if checkpoint.has_own_widths else shape
    except KeyError as error:
        raise WeightsError(
            f"{checkpoint.description} is not a bottom-up detector (it lacks {error}); is it for `extract grid`, or "
            "for another --model, such as grid-r50?"
        ) from error


def _with_widths_of(tensors: Tensors, shape: DetectorConfig) -> DetectorConfig:
    shapes = {n.removeprefix("backbone."): t.shape for n, t in tensors.items() if n.startswith("backbone.")}
    predictor = "roi_heads.box_predictor."
    return replace(
        shape,
        body=infer_config(shapes, last_stage=4, ceil_pool=True),
        rpn_channels=_rows(tensors, "proposal_generator.rpn_head.conv.weight"),
        classes=_rows(tensors, f"{predictor}cls_score.weight") - 1,
        attributes=_rows(tensors, f"{predictor}attr_score.weight") - 1,
        embedding=tensors[f"{predictor}cls_embedding.weight"].shape[1],
        attribute_hidden=_rows(tensors, f"{predictor}fc_attr.weight"),
    )


def _grid_detector_for(name: str, config: ConvConfig, checkpoint: Checkpoint) -> DetectorConfig:
    """As `Base-RCNN-grid.yaml` has it: res5 dilated, its width in the RPN, too."""
    body = replace(grid_body(name, config, checkpoint), res5_dilation=2)
    shape = DetectorConfig(
        GRID_FEATS,
        body,
        rpn_channels=body.out_channels(5),
        proposals=GRID_PROPOSALS,
        box_hidden=max(1, DetectorConfig().box_hidden // config.width_divisor),
    )
    if not checkpoint.has_own_widths or checkpoint.tensors is None:
        return shape
    try:
        return _grid_detector_with_widths_of(checkpoint.tensors, shape)
    except KeyError as error:
        raise WeightsError(
            f"{checkpoint.description} has no detector's heads (it lacks {error}); is it for `extract grid`?"
        ) from error


def _grid_detector_with_widths_of(tensors: Tensors, shape: DetectorConfig) -> DetectorConfig:
    predictor = "roi_heads.attribute_predictor."
    return replace(
        shape,
        rpn_channels=_rows(tensors, "proposal_generator.rpn_head.conv.weight"),
        classes=_rows(tensors, "roi_heads.box_predictor.cls_score.weight") - 1,
        attributes=_rows(tensors, f"{predictor}attr_score.weight"),
        embedding=tensors[f"{predictor}obj_embed.weight"].shape[1],
        attribute_hidden=_rows(tensors, f"{predictor}fc.0.weight"),
        box_hidden=_rows(tensors, "roi_heads.box_head.fc1.weight"),
    )


def grid_body(name: str, config: ConvConfig, checkpoint: Checkpoint) -> ResNetConfig:
    """The body to build: the model's own, narrowed where asked; or that of a checkpoint with its own widths.

    Raises:
        WeightsError: the checkpoint is of another network.
    """
    model = GRID_MODELS[name]
    body = narrowed(model.body, config, checkpoint)
    if not checkpoint.has_own_widths or checkpoint.tensors is None:
        return body
    if checkpoint.upstream and checkpoint.upstream != model.upstream:
        raise WeightsError(
            f"{checkpoint.description} was made with {checkpoint.upstream}, and {name} is {model.upstream}; "
            "choose another --model."
        )
    shapes = {n.removeprefix("backbone."): t.shape for n, t in checkpoint.tensors.items() if n.startswith("backbone.")}
    try:
        body = infer_config(shapes, last_stage=5, ceil_pool=False)
    except KeyError as error:
        raise WeightsError(
            f"{checkpoint.description} is not a grid network (no {error}); is it for `regions`?"
        ) from error
    other_depth = not checkpoint.is_reference and body.depth != model.body.depth  # reference folders are shallower
    if other_depth or (body.groups > 1, body.deform_stages) != (model.body.groups > 1, model.body.deform_stages):
        raise WeightsError(
            f"{checkpoint.description} is not a {name}: it has depth {body.depth}, groups {body.groups} and deformable "
            f"stages {list(body.deform_stages)}; choose another --model."
        )
    return body


def _rows(tensors: Tensors, name: str) -> int:
    return tensors[name].shape[0]


def _ending(tensors: Tensors, suffix: str) -> int:
    """Rows of the first tensor whose name ends so: some files leave the front of a name out."""
    for name, tensor in tensors.items():
        if name.endswith(suffix):
            return tensor.shape[0]
    raise KeyError(suffix)
