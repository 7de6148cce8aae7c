"""The settings of every view, which the command line shows: light to import, for they need no network library.

Field comments are the help texts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args, get_origin, get_type_hints

from storage.errors import TriptychError, did_you_mean

if TYPE_CHECKING:
    from extractors.base import Extractor

BUTD = "butd-r101"
GRID_PREFIX = "grid-"  # of a grid network used as the detector it was trained as
DETECTORS = (BUTD, "grid-r50", "grid-x101", "grid-x152")
# What comes with the package: a grid network that knows the things of generated scenes, and the size of their images.
SHIPPED, SHIPPED_DETECTOR, SHIPPED_SIZE = "scenes-grid", "grid-r50", (224, 373)
DETECTRON2 = "detectron2:"  # in front of the config file of a model that detectron2 itself runs


class ConfigError(TriptychError):
    """Settings that contradict each other, or the machine."""


@dataclass(frozen=True)
class ExtractorConfig(ABC):
    """What every view's settings are. Field comments are the help texts of the command line.

    view  what the records are of
    """

    view: ClassVar[Literal["regions", "grid", "patches", "pixels"]]

    def __post_init__(self) -> None:
        _check_choices(self)

    @abstractmethod
    def make(self) -> Extractor:
        """Build the extractor that these settings describe, weights loaded, on its device.

        Raises:
            ConfigError, WeightsError: the settings, or the weights, do not fit.
        """


@dataclass(frozen=True)
class NetworkConfig(ExtractorConfig):
    """What all views share that run a network."""

    weights: str | None = None
    """A file, a published name, reference:FOLDER, or random:SEED (for trying things out). Default: the published
    weights of the model."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: the GPU where there is one, said at the start."""
    dtype: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    """Number type the network computes in. tf32: stored as float32, multiplied with 10 bits of mantissa; GPUs only."""
    store_dtype: Literal["float16", "float32", "bfloat16", "uint8"] = "float16"
    """Number type features are stored in; uint8: 8 bits a value, with a square-root scale for each feature."""


@dataclass(frozen=True)
class ResizedConfig(ExtractorConfig):
    """What all views share that keep the whole image in its own shape."""

    shorter: int = 600
    """Resize the shorter side to this many pixels ..."""
    longer: int = 1000
    """... unless the longer side would pass this many."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.shorter <= self.longer:
            raise ConfigError(f"--shorter {self.shorter} must be at least 1 and not above --longer {self.longer}.")


@dataclass(frozen=True)
class ConvConfig(ResizedConfig, NetworkConfig):
    """What both views of the convolutional networks share."""

    width_divisor: int = 1
    """Divide all widths of the network by this: quick trials with random weights only, marked in the store."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width_divisor < 1:
            raise ConfigError(f"--width-divisor {self.width_divisor} must be at least 1.")


def _check_choices(config: ExtractorConfig) -> None:
    """The command line keeps to the declared choices by itself; this holds Python callers to them, too."""
    for name, kind in get_type_hints(type(config)).items():
        parts = (kind, *get_args(kind))  # a choice may be optional
        choices = [choice for part in parts if get_origin(part) is Literal for choice in get_args(part)]
        value = getattr(config, name, None)
        if choices and value not in choices and not (value is None and type(None) in parts):
            option = f"--{name.replace('_', '-')}"
            near = did_you_mean(str(value), map(str, choices))
            raise ConfigError(f"{option} {value!r} is not known; choose one of {', '.join(map(str, choices))}{near}")


@dataclass(frozen=True)
class RegionConfig(ConvConfig):
    """Settings of a region extraction. Thresholds left out are those of the selection rule's official code."""

    view = "regions"

    dtype: Literal["float32", "tf32", "bfloat16", "float16", "bfloat16-heads"] = "float32"  # type: ignore[assignment]
    """Number type the network computes in. tf32: stored as float32, multiplied with 10 bits of mantissa; GPUs only.
    bfloat16-heads: the box head in bfloat16, and what finds the boxes in float32, so that the same ones are found."""
    model: str = "butd-r101"
    """butd-r101: the bottom-up attention Faster R-CNN, ResNet-101 C4; its checkpoint tells which of the two published
    variants it is, and random weights follow the Caffe one. grid-r50, grid-x101, grid-x152: a grid network as the
    detector it was trained as. detectron2:CONFIG.yaml: any R-CNN of detectron2, where that is installed."""
    selection: Literal["auto", "10-100", "class-aware", "class-agnostic", "detectron2"] = "auto"
    """Which boxes are kept. auto: 10-100 for Caffe-order weights, class-aware for py-bottom-up-attention's, detectron2
    (its own inference) for the other models."""
    min_boxes: int | None = None
    """10-100: keep at least so many boxes."""
    max_boxes: int | None = None
    """Keep at most so many boxes; the loops of class-aware and class-agnostic aim for this number."""
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
        foreign = self.model.startswith(DETECTRON2) and self.model.endswith((".yaml", ".yml"))
        if self.model not in DETECTORS and not foreign:
            names, near = ", ".join(DETECTORS), did_you_mean(self.model, DETECTORS)
            raise ConfigError(
                f"--model {self.model!r} is not known; choose one of {names}, detectron2:CONFIG.yaml{near}"
            )
        if self.boxes is not None and (self.box_format is None or self.box_units is None):
            raise ConfigError(
                "--boxes needs --box-format xyxy|xywh and --box-units pixels|normalized: they differ silently."
            )
        if self.boxes is None and (self.box_format or self.box_units or self.box_regression):
            raise ConfigError("--box-format, --box-units and --box-regression go with --boxes FILE.")
        chosen = (self.min_boxes, self.max_boxes, self.score_threshold, self.nms_threshold)
        if self.boxes is not None and (self.selection != "auto" or any(each is not None for each in chosen)):
            raise ConfigError("--boxes keeps all your boxes; leave the selection settings out.")

    def make(self) -> Extractor:
        from extractors.regions import make_region_extractor

        return make_region_extractor(self)


@dataclass(frozen=True)
class GridConfig(ConvConfig):
    """Settings of a grid extraction."""

    view = "grid"

    model: Literal["r50", "x101", "x152", "x152pp", "butd-r101"] = "x101"
    """Network: ResNet-50, ResNeXt-101 or -152, the deformable ResNeXt-152 (X-152++), or the region detector's own
    backbone."""

    def make(self) -> Extractor:
        from extractors.grid import GridExtractor

        return GridExtractor(self)


@dataclass(frozen=True)
class PatchConfig(NetworkConfig):
    """Settings of a patch extraction."""

    view = "patches"

    weights: str | None = None
    """A .safetensors file, a folder with model.safetensors, or random:SEED (for trying things out). Default: the
    model's own, of its folder or from the Hugging Face hub."""
    model: str = "hf:openai/clip-vit-base-patch16"
    """hf:NAME or hf:FOLDER for CLIP, SigLIP, ViT, DINOv2 or Swin of transformers; timm:NAME or timm:FOLDER for timm's
    ViT, DeiT, BEiT, CaiT, VOLO and Swin models."""
    layer: int = -1
    """Whose tokens: -1 the last block (of Swin: stage), -2 the one before (METER's choice of CLIP), ...; 1 the first,
    0 the patch embedding."""
    norm: bool = True
    """Apply the tower's final normalisation to the layer, whichever it is; --no-norm gives its output as it is."""
    size: int | None = None
    """Side of the square that the tower sees, in pixels; positions are interpolated. Default: the tower's own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        library, _, name = self.model.partition(":")
        if library not in ("hf", "timm") or not name:
            raise ConfigError(
                f"--model {self.model!r} is not known; choose hf:NAME, hf:FOLDER, timm:NAME or timm:FOLDER, "
                "such as hf:openai/clip-vit-base-patch16 or timm:swin_base_patch4_window7_224."
            )
        if self.size is not None and self.size < 1:
            raise ConfigError(f"--size {self.size} must be at least 1.")

    def make(self) -> Extractor:
        from extractors.patches import PatchExtractor

        return PatchExtractor(self)


@dataclass(frozen=True)
class PixelConfig(ResizedConfig):
    """Settings of a pixel extraction."""

    view = "pixels"

    shorter: int = 384
    """Resize the shorter side to this many pixels ..."""
    longer: int = 640
    """... unless the longer side would pass this many (vilt has a limit of its own)."""
    rule: Literal["shortest-edge", "vilt"] = "shortest-edge"
    """How: in the image's shape, bilinear; or as ViLT does, bicubic and in whole patches."""

    def make(self) -> Extractor:
        from extractors.pixels import PixelExtractor

        return PixelExtractor(self)


CONFIGS: dict[str, type[ExtractorConfig]] = {
    kind.view: kind for kind in (RegionConfig, GridConfig, PatchConfig, PixelConfig)
}


def view_of(config: ExtractorConfig) -> str:
    """The view that a config's records are of."""
    return config.view
