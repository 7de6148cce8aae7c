"""A stand-in for detectron2: what the adapter uses of it, by detectron2's names and signatures, over networks of a few
channels. It shows that the adapter is wired right, not that its numbers are detectron2's."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image, roi_align

CHANNELS, CLASSES, STRIDES = 4, 3, {"res4": 16, "p2": 8, "p3": 16}
DEFAULTS: dict[str, Any] = {
    "MODEL": {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "DEVICE": "cuda",
        "WEIGHTS": "",
        "PIXEL_MEAN": [103.5, 116.3, 123.7],
        "PIXEL_STD": [57.0, 58.0, 59.0],
        "ROI_HEADS": {
            "NAME": "Res5ROIHeads", "IN_FEATURES": ["res4"], "NUM_CLASSES": CLASSES,
            "SCORE_THRESH_TEST": 0.05, "NMS_THRESH_TEST": 0.5,
        },
        "ANCHOR_GENERATOR": {"SIZES": [[16.0, 32.0]]},
        "RPN": {"POST_NMS_TOPK_TEST": 20},
    },
    "INPUT": {"FORMAT": "BGR", "MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 100},
    "TEST": {"DETECTIONS_PER_IMAGE": 10},
    "DATASETS": {"TEST": ("animals",)},
    "OUTPUT_DIR": "./output",
}  # fmt: skip


class CfgNode(dict[str, Any]):
    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__({k: CfgNode(v) if isinstance(v, dict) else v for k, v in values.items()})

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        assert not allow_unsafe, "a config of this kind may run code"
        with open(cfg_filename, encoding="utf-8") as file:  # noqa: PTH123
            self._merge(yaml.safe_load(file))

    def _merge(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if name not in self:
                raise KeyError(f"Non-existent config key: {name}")
            if isinstance(value, dict):
                self[name]._merge(value)
            else:
                self[name] = value


class Boxes:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)


class Instances(SimpleNamespace):
    def __init__(self, image_size: tuple[int, int], **fields: Any) -> None:
        super().__init__(image_size=image_size, **fields)

    def __len__(self) -> int:
        return len(self.proposal_boxes)


class Backbone(nn.Module):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Conv2d(3, CHANNELS, 3, STRIDES[name], 1) for name in names})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: layer(x).relu() for name, layer in self.layers.items()}


class ProposalGenerator(nn.Module):
    """Boxes around the brightest cells of the last map; like detectron2's, its anchors are in no checkpoint."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.anchor_generator = nn.Module()
        cell = torch.tensor(
            [[-size / 2, -size / 2, size / 2, size / 2] for size in cfg.MODEL.ANCHOR_GENERATOR.SIZES[0]]
        )
        self.anchor_generator.cell_anchors = [cell]  # type: ignore[assignment]
        self.rpn_head = nn.Conv2d(CHANNELS, 1, 1)
        self.most = cfg.MODEL.RPN.POST_NMS_TOPK_TEST

    def forward(
        self, images: Any, features: dict[str, Tensor], gt_instances: Any = None
    ) -> tuple[list[Instances], Any]:
        last = list(features.values())[-1]
        proposals = []
        for scores, size in zip(self.rpn_head(last)[:, 0], images.image_sizes, strict=True):
            order = scores.flatten().argsort(descending=True, stable=True)[: self.most]
            at = torch.stack([order % scores.shape[1], order // scores.shape[1]] * 2, 1) * 16.0
            boxes = clip_boxes_to_image(at + self.anchor_generator.cell_anchors[0][1], size)  # type: ignore[index]
            proposals.append(Instances(size, proposal_boxes=Boxes(boxes)))
        return proposals, {}


class FastRCNNOutputLayers(nn.Module):
    def __init__(self, cfg: Any, width: int) -> None:
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(width, CLASSES + 1), nn.Linear(width, 4 * CLASSES)
        self.score, self.nms = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST
        self.most = cfg.TEST.DETECTIONS_PER_IMAGE

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert x.ndim == 2
        return self.cls_score(x), self.bbox_pred(x)

    def predict_probs(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> tuple[Tensor, ...]:
        return predictions[0].softmax(-1).split([len(each) for each in proposals])

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        [probs], [proposal] = self.predict_probs(predictions, proposals), proposals
        moved = proposal.proposal_boxes.tensor[:, None] + 4 * predictions[1].unflatten(1, (-1, 4)).tanh()
        boxes = clip_boxes_to_image(moved, proposal.image_size)
        rows, classes = (probs[:, :-1] > self.score).nonzero(as_tuple=True)
        kept = batched_nms(boxes[rows, classes], probs[rows, classes], classes, self.nms)[: self.most]
        rows, classes = rows[kept], classes[kept]
        found = Boxes(boxes[rows, classes])
        return [Instances(proposal.image_size, pred_boxes=found, scores=probs[rows, classes], pred_classes=classes)], [
            rows
        ]


class Res5ROIHeads(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        self.res5 = nn.Conv2d(CHANNELS, 8, 3, 2, 1)
        self.box_predictor = FastRCNNOutputLayers(cfg, 8)

    def _shared_roi_transform(self, features: list[Tensor], boxes: list[Boxes]) -> Tensor:
        [one] = features
        return self.res5(roi_align(one, [each.tensor for each in boxes], 4, 1 / 16, aligned=True))


class StandardROIHeads(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.in_features = self.box_in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        self.box_head = nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * 4, 6), nn.ReLU())
        self.box_predictor = FastRCNNOutputLayers(cfg, 6)

    def box_pooler(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Small boxes from the first map, large ones from the second."""
        [boxes] = [each.tensor for each in box_lists]
        first, second = (
            roi_align(m, [boxes], 2, 1 / stride, aligned=True) for m, stride in zip(x, (8, 16), strict=True)
        )
        large = (boxes[:, 2] - boxes[:, 0] > 40)[:, None, None, None]
        return torch.where(large, second, first)


class GridAttributeHeads(StandardROIHeads):
    """With the attribute predictor of facebookresearch/grid-feats-vqa."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.attribute_predictor = nn.Module()
        self.attribute_predictor.obj_embed = nn.Embedding(CLASSES + 1, 2)
        self.attribute_predictor.fc = nn.Sequential(nn.Linear(8, 5), nn.ReLU())
        self.attribute_predictor.attr_score = nn.Linear(5, 4)


class ButdAttributeHeads(Res5ROIHeads):
    """With the attribute layers of airsplay/py-bottom-up-attention."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.box_predictor.cls_embedding = nn.Embedding(CLASSES + 1, 2)
        self.box_predictor.fc_attr = nn.Linear(10, 5)
        self.box_predictor.attr_score = nn.Linear(5, 4 + 1)


class CascadeROIHeads(StandardROIHeads):
    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.box_predictor = nn.ModuleList([self.box_predictor])  # type: ignore[assignment]


HEADS = {
    each.__name__: each
    for each in (Res5ROIHeads, StandardROIHeads, GridAttributeHeads, ButdAttributeHeads, CascadeROIHeads)
}


class GeneralizedRCNN(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.backbone = Backbone(cfg.MODEL.ROI_HEADS.IN_FEATURES)
        self.proposal_generator = ProposalGenerator(cfg)
        self.roi_heads: Any = HEADS[cfg.MODEL.ROI_HEADS.NAME](cfg)
        self.register_buffer("pixel_mean", torch.tensor(cfg.MODEL.PIXEL_MEAN).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(cfg.MODEL.PIXEL_STD).view(-1, 1, 1), False)

    def preprocess_image(self, batched_inputs: list[dict[str, Tensor]]) -> Any:
        images = [(each["image"] - self.pixel_mean) / self.pixel_std for each in batched_inputs]
        return SimpleNamespace(
            tensor=torch.stack(images), image_sizes=[(each.shape[1], each.shape[2]) for each in images]
        )


class RetinaNet(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.backbone = Backbone(["p2"])


def build_model(cfg: Any) -> nn.Module:
    kind = {"GeneralizedRCNN": GeneralizedRCNN, "RetinaNet": RetinaNet}[cfg.MODEL.META_ARCHITECTURE]
    return kind(cfg).to(torch.device(cfg.MODEL.DEVICE))


class Catalog(dict[str, Any]):
    def get(self, name: str) -> Any:  # type: ignore[override]
        found = super().get(name, {})
        return SimpleNamespace(get=lambda key, default=None: found.get(key, default))


def install(monkeypatch: pytest.MonkeyPatch, weights: dict[str, str] | None = None) -> None:
    """Put the package where imports find it.

    Args:
        weights: local files of the addresses that the path manager knows.
    """

    def get_local_path(path: str, force: bool = False, **kwargs: Any) -> str:
        return (weights or {})[path]

    parts: dict[str, dict[str, Any]] = {
        "detectron2": {},
        "detectron2.config": {"get_cfg": lambda: CfgNode(DEFAULTS)},
        "detectron2.modeling": {"build_model": build_model},
        "detectron2.utils": {},
        "detectron2.utils.file_io": {"PathManager": SimpleNamespace(get_local_path=get_local_path)},
        "detectron2.data": {"MetadataCatalog": Catalog(animals={"thing_classes": ["cat", "dog", "cow"]})},
    }
    for name, members in parts.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
