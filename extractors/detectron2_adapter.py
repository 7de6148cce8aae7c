"""`--model detectron2:CONFIG.yaml`: any R-CNN of detectron2, run by detectron2 itself where it is installed.

The model is built and run through detectron2's own functions: `get_cfg`, `build_model`, and the stages of
`GeneralizedRCNN.inference`; a region's feature is what its `box_predictor` is given. Two things are ours. The resize,
which is detectron2's rule (`extractors/images.py`). And the reading of weights: detectron2's checkpointer unpickles
whatever a file holds and passes over what does not fit, `fill` does neither.

Source: facebookresearch/detectron2 0.6, `engine/defaults.py` DefaultPredictor, `modeling/meta_arch/rcnn.py`,
`modeling/roi_heads/`.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from extractors import selection as rules
from extractors.base import DECODE_POLICY, Extractor, Prepared, pick_device
from extractors.boxes import nonempty
from extractors.configs import DETECTRON2, ConfigError, RegionConfig
from extractors.images import ImageError, resize_shortest_edge
from extractors.weights import Checkpoint, WeightsError, fill, find_weights, read_checkpoint
from storage.interop.unpickling import first_line
from storage.records import Record, RegionRecord
from storage.spec import FeatureLayout, Spec, canonical_json

INSTALL = "`pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2`, with a C++ compiler"
ANCHORS = "proposal_generator.anchor_generator.cell_anchors."
THRESHOLDS = {  # our setting -> where detectron2's config has it
    "max_boxes": ("TEST", "DETECTIONS_PER_IMAGE"),
    "score_threshold": ("MODEL", "ROI_HEADS", "SCORE_THRESH_TEST"),
    "nms_threshold": ("MODEL", "ROI_HEADS", "NMS_THRESH_TEST"),
}


class Detectron2Extractor(Extractor):
    """Pixels to `RegionRecord`s, by detectron2's model and its inference.

    Models of projects that add keys to the config, or heads to the registry, need those imported first.

    Raises:
        ConfigError: detectron2 is not installed, or the settings do not go with it.
        WeightsError: the weights do not fit.
    """

    def __init__(self, config: RegionConfig) -> None:
        _check_settings(config)
        self.config = config
        self.device = pick_device(config.device)
        self.cfg = _read_cfg(config, self.device)
        self.model = _build(self.cfg, config.model)
        self.heads = self.model.roi_heads
        checkpoint = _find_checkpoint(config, self.cfg)
        sha256 = fill(self.model, _without_anchors(checkpoint, self.model), config.model)
        self.has_attributes = _has_attributes(self.heads)
        classes = self.heads.box_predictor.cls_score.out_features - 1
        self.vocabulary = _class_names(self.cfg, classes)
        self.spec = Spec(
            view="regions",
            layout=FeatureLayout(
                self.heads.box_predictor.cls_score.in_features,
                config.store_dtype,
                classes + 1 if config.class_probs else 0,
                without=() if self.has_attributes else ("attribute_ids", "attribute_scores"),
            ),
            model={
                "name": f"{DETECTRON2}{_config_file(config).name}",
                "weights": {"origin": checkpoint.origin, "sha256": sha256},
                "config_sha256": _cfg_sha256(self.cfg),
                "dtype": config.dtype,
            },
            preprocess=_preprocess_facts(self.cfg),
            selection=_selection_facts(self.cfg),
        )

    def prepare(self, key: str, image: np.ndarray) -> Prepared:
        facts = self.spec.preprocess
        resized = resize_shortest_edge(image, facts["shorter"], facts["longer"]) if facts["shorter"] else image
        ordered = resized[:, :, ::-1] if facts["colour"] == "BGR" else resized
        height, width = image.shape[:2]
        pixels = torch.from_numpy(np.ascontiguousarray(ordered.transpose(2, 0, 1)))
        return Prepared(key, (height, width), pixels, min(resized.shape[:2]) / min(height, width))

    def forward(self, batch: list[Prepared]) -> list[Record | ImageError]:
        images = self.model.preprocess_image([{"image": each.pixels.float().to(self.device)} for each in batch])
        maps = self.model.backbone(images.tensor)
        proposals, _ = self.model.proposal_generator(images, maps, None)
        results: list[Record | ImageError] = []
        for index, image in enumerate(batch):
            mine = [maps[name][index : index + 1] for name in self.heads.in_features]
            results.append(self._record(image, mine, proposals[index]))
        return results

    def _record(self, image: Prepared, maps: list[Tensor], proposals: Any) -> Record | ImageError:
        try:
            return self._detect(image, maps, proposals)
        except ImageError as error:
            return error

    def _detect(self, image: Prepared, maps: list[Tensor], proposals: Any) -> Record:
        """One image's maps, (1, C, h, w) each, and its `Instances` of proposals."""
        height, width = image.pixels.shape[1:]
        boxes = proposals.proposal_boxes
        whole = boxes.tensor.new_tensor([[0, 0, width, height]])
        features = self._box_features(maps, type(boxes)(torch.cat([boxes.tensor, whole])))
        predictor = self.heads.box_predictor
        predictions = predictor(features[:-1])
        if not all(bool(each.isfinite().all()) for each in (features, *predictions)):
            raise ImageError("not_representable", "a feature or a score is not finite", "model")
        [found], [rows] = predictor.inference(predictions, [proposals])
        [probs] = predictor.predict_probs(predictions, [proposals])
        frame = rules.Frame((height, width), image.image_size, image.scale)
        boxes = frame.to_original(found.pred_boxes.tensor)
        detected = rules.Selected(rows, boxes, found.pred_classes, found.scores)
        kept = rules.Selected(*(each[nonempty(boxes)] for each in detected))
        return self._to_record(image, kept, features, probs)

    def _box_features(self, maps: list[Tensor], boxes: Any) -> Tensor:
        """What detectron2's box predictor is given for each of R boxes, (R, D) float32."""
        if hasattr(self.heads, "res5"):
            found: Tensor = self.heads._shared_roi_transform(maps, [boxes]).mean(dim=(2, 3))
        else:
            found = self.heads.box_head(self.heads.box_pooler(maps, [boxes])).flatten(1)
        return found.float()

    def _to_record(self, image: Prepared, kept: rules.Selected, features: Tensor, probs: Tensor) -> Record:
        [rows] = self.to_numpy([torch.cat([features[kept.rows], features[-1:]])])
        if isinstance(rows, ImageError):
            raise rows
        record = RegionRecord(
            image.key,
            image.image_size,
            boxes=kept.boxes.float().cpu().numpy(),
            features=rows[:-1],
            whole_image=rows[-1],
            class_ids=kept.class_ids.int().cpu().numpy(),
            class_scores=kept.class_scores.float().cpu().numpy(),
            class_probs=probs[kept.rows].half().cpu().numpy() if self.config.class_probs else None,
        )
        if not self.has_attributes:
            return record
        scores, ids = _attribute_probs(self.heads, features[kept.rows], probs[kept.rows]).max(dim=1)
        return replace(record, attribute_ids=ids.int().cpu().numpy(), attribute_scores=scores.float().cpu().numpy())


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"--model detectron2:... needs detectron2 ({error}); install it: {INSTALL}.") from error


def _check_settings(config: RegionConfig) -> None:
    """What the config file decides cannot be asked for beside it."""
    if config.boxes is not None:
        raise ConfigError(f"--boxes goes with our own networks; {config.model} finds its boxes itself.")
    if config.selection not in ("auto", "detectron2") or config.min_boxes is not None:
        raise ConfigError("detectron2 models keep the boxes that detectron2 keeps; leave --selection, --min-boxes out.")
    if (config.shorter, config.longer) != (RegionConfig.shorter, RegionConfig.longer):
        raise ConfigError(
            "the config of a detectron2 model has the sizes, INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST."
        )
    if config.width_divisor != 1 or config.dtype != "float32":
        raise ConfigError("detectron2 models run as they are, in float32; leave --width-divisor and --dtype out.")


def _config_file(config: RegionConfig) -> Path:
    return Path(config.model.removeprefix(DETECTRON2)).expanduser()


def _read_cfg(config: RegionConfig, device: torch.device) -> Any:
    """The whole config, the thresholds that were asked for in it.

    Raises:
        ConfigError: the file is not a config of the installed detectron2.
    """
    cfg, file = _import("detectron2.config").get_cfg(), _config_file(config)
    if not file.is_file():
        raise ConfigError(f"--model {config.model}: there is no file {file}.")
    try:
        cfg.merge_from_file(str(file), allow_unsafe=False)  # True, its default, lets a config run code
    except Exception as error:  # an assertion, a KeyError of an unknown key, or nearly anything of YAML's
        raise ConfigError(f"{file} is not a config of the detectron2 installed here ({first_line(error)}).") from error
    cfg.MODEL.DEVICE = str(device)
    for name, (*path, last) in THRESHOLDS.items():
        if (wanted := getattr(config, name)) is not None:
            setattr(reduce(getattr, path, cfg), last, wanted)
    return cfg


def _build(cfg: Any, name: str) -> Any:
    """The model without its weights.

    Raises:
        ConfigError: detectron2 cannot build it, or it has no features for a box.
    """
    try:
        model = _import("detectron2.modeling").build_model(cfg).eval()
    except (KeyError, AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f"{name}: detectron2 cannot build this model ({first_line(error)}).") from error
    if not _has_one_box_head(model):
        raise ConfigError(
            f"{name}: found {cfg.MODEL.META_ARCHITECTURE} with {cfg.MODEL.ROI_HEADS.NAME}, wanted an R-CNN with an RPN "
            "and one box head (no RetinaNet, no cascade); choose another config."
        )
    return model


def _has_one_box_head(model: Any) -> bool:
    heads = getattr(model, "roi_heads", None)
    classes = getattr(getattr(heads, "box_predictor", None), "cls_score", None)
    pools = hasattr(heads, "box_pooler") or hasattr(heads, "_shared_roi_transform")
    return isinstance(classes, nn.Linear) and pools and getattr(model, "proposal_generator", None) is not None


def _find_checkpoint(config: RegionConfig, cfg: Any) -> Checkpoint:
    """The weights asked for, or those that the config names.

    Raises:
        WeightsError: there are none; detectron2 itself would go on with random ones.
    """
    if config.weights is not None:
        return find_weights(config.weights)
    if not cfg.MODEL.WEIGHTS:
        raise WeightsError(
            f"{config.model} names no weights; pass --weights FILE, or random:SEED for trying things out."
        )
    manager = _import("detectron2.utils.file_io").PathManager
    try:
        file = Path(manager.get_local_path(cfg.MODEL.WEIGHTS))
    except Exception as error:  # of as many kinds as there are places; its text may hold a signed address
        kind = type(error).__name__
        raise WeightsError(
            f"the weights that {config.model} names cannot be fetched ({kind}); pass --weights."
        ) from error
    if not file.is_file():
        raise WeightsError(f"the weights that {config.model} names are not there; pass --weights FILE.")
    return read_checkpoint(file)


def _without_anchors(checkpoint: Checkpoint, model: nn.Module) -> Checkpoint:
    """A checkpoint without the anchors, which detectron2 since May 2021 takes from the config alone.

    Raises:
        WeightsError: they are not the config's, so that the model would silently be another one.
    """
    if checkpoint.tensors is None or any(name.startswith(ANCHORS) for name in model.state_dict()):
        return checkpoint
    built = list(model.get_submodule("proposal_generator.anchor_generator").cell_anchors)  # type: ignore[arg-type]
    for name, tensor in checkpoint.tensors.items():
        if name.startswith(ANCHORS) and not _same(tensor, built, int(name.removeprefix(ANCHORS))):
            raise WeightsError(
                f"{checkpoint.description} was trained with other anchors than the config's ({name}), and this "
                "detectron2 ignores them; set MODEL.ANCHOR_GENERATOR accordingly, or use a model of ours."
            )
    rest = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(ANCHORS)}
    return replace(checkpoint, tensors=rest)


def _same(tensor: Tensor, built: list[Tensor], level: int) -> bool:
    if level >= len(built) or tensor.shape != built[level].shape:
        return False
    return torch.allclose(tensor, built[level].cpu(), atol=1e-3)


def _has_attributes(heads: Any) -> bool:
    return hasattr(heads, "attribute_predictor") or hasattr(heads.box_predictor, "attr_score")


def _attribute_probs(heads: Any, features: Tensor, probs: Tensor) -> Tensor:
    """Features (N, D) and class probabilities (N, K + 1), background last, to attribute probabilities (N, M).

    By the layers of facebookresearch/grid-feats-vqa, or of airsplay/py-bottom-up-attention, whose last logit is "no
    attribute"; which class the former is given, see `extractors/grid_detector.py`.
    """
    if hasattr(heads, "attribute_predictor"):
        predictor = heads.attribute_predictor
        embedded = predictor.obj_embed(probs[:, :-1].argmax(dim=1))
        logits: Tensor = predictor.attr_score(predictor.fc(torch.cat([features, embedded], dim=1)))
        return logits.softmax(dim=1)
    predictor = heads.box_predictor
    embedded = predictor.cls_embedding(probs.argmax(dim=1))
    logits = predictor.attr_score(predictor.fc_attr(torch.cat([features, embedded], dim=1)).relu())
    return logits[:, :-1].softmax(dim=1)


def _class_names(cfg: Any, classes: int) -> dict[str, list[str]]:
    """The names of the data set that the config tests on, where detectron2 knows them."""
    if not cfg.DATASETS.TEST:
        return {}
    names = _import("detectron2.data").MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes", None)
    return {"classes": list(names)} if names and len(names) == classes else {}


def _cfg_sha256(cfg: Any) -> str:
    """Of all that shapes the model and its input; the weights have a digest of their own."""
    model = {name: value for name, value in cfg.MODEL.items() if name not in ("WEIGHTS", "DEVICE")}
    return hashlib.sha256(canonical_json({"MODEL": model, "INPUT": cfg.INPUT, "TEST": cfg.TEST})).hexdigest()


def _preprocess_facts(cfg: Any) -> dict[str, Any]:
    return {
        "decode": DECODE_POLICY,
        "resize": "pil-bilinear" if cfg.INPUT.MIN_SIZE_TEST else "none",
        "shorter": cfg.INPUT.MIN_SIZE_TEST,
        "longer": cfg.INPUT.MAX_SIZE_TEST,
        "colour": cfg.INPUT.FORMAT,
        "mean": cfg.MODEL.PIXEL_MEAN,
        "std": cfg.MODEL.PIXEL_STD,
    }


def _selection_facts(cfg: Any) -> dict[str, Any]:
    thresholds = {name: reduce(getattr, path, cfg) for name, path in THRESHOLDS.items()}
    return {"rule": "detectron2", "proposals": cfg.MODEL.RPN.POST_NMS_TOPK_TEST, **thresholds}
