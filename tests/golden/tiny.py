"""Makes small folders in the layout of the official ones, of seeded networks of ours: what the checkers are tried on.

They say nothing of whether our numbers are right; the folders made by official code do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from extractors import load_extractor
from extractors import selection as rules
from extractors.faster_rcnn import CAFFE, PY_BOTTOM_UP, BottomUpDetector, Conventions, DetectorConfig, Predictions
from extractors.grid import GridExtractor
from extractors.regions import RegionExtractor
from extractors.resnet import ResNet, ResNetConfig
from extractors.weights import randomise
from tests.golden.bua_selection import FIELDS, SAMPLE_STEP, confidences
from tests.golden.butd_regions import GIVEN, SelectedList
from tests.golden.detector import Case, proposals_of_map, selected_alone

NARROW = ResNetConfig(depth=50, width_per_group=2, stem_channels=4, res2_channels=8)
SIZES = 64, 96
PROPOSALS = 20
BUTD_LISTS = (SelectedList("sel", "0_k6", "0", 6), SelectedList("maxnms", "g0_img0_k6", "0", 6))
SETTING = {"min_boxes": 2, "max_boxes": 5, "conf_thresh": 0.2}  # of the 10-100 rule


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def write(path: Path, config: Mapping[str, Any], inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Path:
    """A folder's other three files; its weights are there already."""
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save(inputs, path / "inputs.safetensors")
    save(outputs, path / "outputs.safetensors")
    return path


def photo(seed: int) -> Tensor:
    """uint8 (80, 100, 3): smooth random colours."""
    coarse = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    return (nn.functional.interpolate(coarse, (80, 100), mode="bicubic")[0].clamp(0, 1) * 255).byte().permute(1, 2, 0)


@torch.inference_mode()
def grid_folder(path: Path) -> Path:
    """A folder of facebookresearch/grid-feats-vqa with one image."""
    path.mkdir(parents=True)
    network = nn.ModuleDict({"backbone": ResNet(NARROW)})
    randomise(network, 0)
    save(network.state_dict(), path / "weights.safetensors")
    shorter, longer = SIZES
    extractor = load_extractor(
        "grid", model="r50", weights=f"reference:{path}", shorter=shorter, longer=longer, device="cpu"
    )
    assert isinstance(extractor, GridExtractor)
    image = photo(0)
    pixels = extractor.prepare("0", image.numpy()).pixels
    x = (pixels.float() - extractor.mean)[None]
    *stages, (_, grid) = extractor.network.stages(x)
    inputs = {"image_rgb_0": image, "resized_bgr_0": pixels, "network_input_0": x}
    sizes = {"min_size_test": shorter, "max_size_test": longer}
    mean = {"pixel_mean": [103.53, 116.28, 123.675], "pixel_std": [1.0, 1.0, 1.0]}
    config = {
        "upstream": {"repo": "facebookresearch/grid-feats-vqa", "config": "configs/R-50-grid.yaml"},
        "input": {**sizes, **mean},
        "batches": [{"index": 0, "images": [0, 0]}],
    }
    outputs = {
        **{f"{name}_0": tensor for name, tensor in stages},
        "grid_0": grid,
        "batch_0_grid": torch.cat([grid, grid]),
    }
    return write(path, config, inputs, outputs)


def detector_weights(path: Path, conventions: Conventions, image: Tensor) -> None:
    """Weights of a narrow detector that sees several classes in an image, uint8 (H, W, 3), and is sure of some."""
    path.mkdir(parents=True)
    body = replace(NARROW, ceil_pool=True, last_stage=4)
    shape = DetectorConfig(conventions, body, 8, classes=7, attributes=5, embedding=4, attribute_hidden=8)
    detector = BottomUpDetector(shape).eval()
    randomise(detector, 1)
    detector.proposal_generator.rpn_head.anchor_deltas.weight *= 0.1
    res4 = detector.backbone(image.permute(2, 0, 1)[None].float() - 110)
    boxes = proposals_of_map(detector, res4, ((image.shape[0], image.shape[1]), 1.0))
    features = detector.roi_heads.features(res4, boxes)
    head = detector.roi_heads.box_predictor.cls_score
    head.weight *= 3 / head(features).std(dim=0).mean()
    head.bias.sub_(head(features).mean(dim=0))
    save(detector.state_dict(), path / "weights.safetensors")


def region_extractor(path: Path) -> RegionExtractor:
    """The production extractor with a folder's weights."""
    shorter, longer = SIZES
    extractor = load_extractor("regions", weights=f"reference:{path}", shorter=shorter, longer=longer, device="cpu")
    assert isinstance(extractor, RegionExtractor)
    generator = extractor.detector.proposal_generator
    generator.config = replace(generator.config, proposals=PROPOSALS)
    return extractor


def case_of(extractor: RegionExtractor, image: Tensor) -> Case:
    """An image as it lies in a folder, BGR, made ready for the extractor."""
    rgb = np.ascontiguousarray(image.numpy()[:, :, ::-1])
    return Case("0", rgb, extractor.prepare("0", rgb))


def maps_and_features(extractor: RegionExtractor, case: Case, x: Tensor) -> dict[str, Tensor]:
    """What both detector projects store of an image, from the network's input (1, 3, h, w)."""
    generator, heads, frame = extractor.detector.proposal_generator, extractor.detector.roi_heads, case.frame
    res4 = extractor.detector.backbone(x)
    logits, deltas = generator.rpn_head(res4)
    boxes, scores = generator.propose(logits, deltas, frame.input_size, frame.scale)
    score_name = "proposal_scores_0" if extractor.conventions is CAFFE else "proposal_logits_0"
    return {
        "res4_0": res4,
        "rpn_logits_0": logits,
        "rpn_deltas_0": deltas,
        "proposals_0": boxes,
        score_name: scores,
        "roipool_first4_0": next(heads.pool(res4, boxes[:4])),
        "feature_pooled_0": heads.features(res4, boxes),
    }


def kept_fields(kept: rules.Selected, found: Predictions) -> dict[str, Tensor]:
    """What is kept, by field of a record; "ids" are its rows."""
    scores, ids = found.attribute_probs[kept.rows].max(dim=1)
    labels = {"ids": kept.rows, "boxes": kept.boxes, "class_ids": kept.class_ids, "class_scores": kept.class_scores}
    return {**labels, "attribute_ids": ids, "attribute_scores": scores}


@torch.inference_mode()
def butd_folder(path: Path) -> Path:
    """A folder of airsplay/py-bottom-up-attention with one image, a list of either loop, and two given boxes."""
    image, boxes = photo(1), torch.tensor([[3.0, 4.0, 60.0, 70.0], [10.0, 0.0, 100.0, 33.0]])
    detector_weights(path, PY_BOTTOM_UP, image)
    extractor = region_extractor(path)
    case = case_of(extractor, image)
    x = (case.prepared.pixels.float() - extractor.mean)[None]
    outputs = maps_and_features(extractor, case, x)
    outputs |= butd_heads(extractor, outputs["feature_pooled_0"])
    for kind in BUTD_LISTS:
        outputs |= butd_list(extractor, case, outputs, kind)
    outputs |= given_outputs(extractor, case, outputs["res4_0"], boxes)
    inputs = {"image_bgr_0": image, "resized_bgr_0": case.prepared.pixels, "network_input_0": x, "given_boxes_0": boxes}
    config = {
        "upstream": {"repo": "airsplay/py-bottom-up-attention"},
        "input": {"min_size_test": SIZES[0], "max_size_test": SIZES[1]},
        "rpn": {"post_nms_topk": PROPOSALS},
        "selection": {"class_agnostic": {"groups": [{"group": 0, "images": [0]}]}},
    }
    return write(path, config, inputs, outputs)


def butd_heads(extractor: RegionExtractor, pooled: Tensor) -> dict[str, Tensor]:
    """What the heads say of features (R, D)."""
    predictor = extractor.detector.roi_heads.box_predictor
    classes, deltas, attributes = predictor.logits(pooled)
    logits = {"cls_logits_0": classes, "box_deltas_0": deltas, "attr_logits_0": attributes}
    return {**logits, "cls_probs_0": predictor(pooled).class_probs}


def butd_list(
    extractor: RegionExtractor, case: Case, outputs: Mapping[str, Tensor], kind: SelectedList
) -> dict[str, Tensor]:
    """One list of selected boxes; the class-agnostic one with the first four's features."""
    pooled = outputs["feature_pooled_0"]
    found = extractor.detector.roi_heads.box_predictor(pooled)
    kept = kind.choose(extractor, outputs["proposals_0"], found, case.frame)
    arrays, parts = kept_fields(kept, found), {**kind.fields, "ids": f"{kind.prefix}_ids"}
    features = {kind.name("features"): pooled[kept.rows][:4]} if kind.prefix == "maxnms" else {}
    return {**{f"{part}_{kind.suffix}": arrays[field] for field, part in parts.items()}, **features}


def given_outputs(extractor: RegionExtractor, case: Case, res4: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    """Features and labels of given boxes (N, 4)."""
    features = extractor.detector.roi_heads.features(res4, case.frame.to_input(boxes))
    found = extractor.detector.roi_heads.box_predictor(features)
    arrays = {**kept_fields(rules.given(boxes, None, found, case.frame), found), "features": features}
    return {f"given_{part}_0": arrays[field] for field, part in GIVEN.items()}


@torch.inference_mode()
def bua_folder(path: Path) -> Path:
    """A folder of MILVLG/bottom-up-attention.pytorch with one image, one list, and its boxes as a made-up case."""
    image = photo(2)
    detector_weights(path, CAFFE, image)
    extractor = region_extractor(path)
    case = case_of(extractor, image)
    outputs = maps_and_features(extractor, case, case.prepared.pixels[None])
    outputs |= bua_heads_and_list(extractor, case, outputs)
    inputs = {
        "image_bgr_0": image,
        "network_input_sample_0": case.prepared.pixels[:, ::SAMPLE_STEP, ::SAMPLE_STEP],
        "synthetic_boxes_0": outputs["proposals_0"],
        "synthetic_scores_0": outputs["cls_probs_0"],
    }
    made_up = {"index": 0, "im_scale": case.frame.scale, **SETTING}
    config = {
        "upstream": {"repo": "MILVLG/bottom-up-attention.pytorch"},
        "input": {"short_side": SIZES[0], "max_side": SIZES[1]},
        "rpn": {"post_nms_topk": PROPOSALS},
        "selection": {"nms_thresh": 0.3, "synthetic": [made_up]},
    }
    return write(path, config, inputs, outputs)


def bua_heads_and_list(extractor: RegionExtractor, case: Case, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the heads say, every proposal's confidence, and the boxes the 10-100 rule keeps."""
    predictor, pooled = extractor.detector.roi_heads.box_predictor, outputs["feature_pooled_0"]
    found = predictor(pooled)
    low, high, threshold = SETTING.values()
    rule = rules.Selection("10-100", int(low), int(high), threshold, 0.3)
    kept = selected_alone(outputs["proposals_0"], found, case.frame, rule)
    boxes = outputs["proposals_0"] / case.frame.scale
    confidence = confidences(boxes, found.class_probs[:, :-1], rule.nms_threshold)
    arrays, suffix = kept_fields(kept, found), f"0_min{low}_max{high}_t{threshold}"
    return {
        "cls_probs_0": found.class_probs.roll(1, dims=1),
        "attr_probs_0": predictor.logits(pooled)[2].softmax(dim=1),
        "max_conf_0": confidence,
        "synthetic_ids_0": kept.rows.clone(),
        "synthetic_max_conf_0": confidence.clone(),
        **{f"{part}_{suffix}": arrays[field] for field, part in {**FIELDS, "ids": "sel_ids"}.items()},
    }


MAKERS = {"grid": grid_folder, "butd": butd_folder, "bua": bua_folder}


def change(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Edit a folder's outputs.safetensors in place."""
    tensors = load_file(path / "outputs.safetensors")
    edit(tensors)
    save_file(tensors, path / "outputs.safetensors")


def moved(tensor: Tensor) -> Tensor:
    """The same tensor with its first number past any tolerance."""
    tensor = tensor.clone()
    tensor.view(-1)[0] += 1 if tensor.dtype == torch.int64 else 0.05
    return tensor
