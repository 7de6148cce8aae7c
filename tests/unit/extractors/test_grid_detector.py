"""Regions from the grid networks: official checkpoints load by name, and every stage is that of plain functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from extractors import GridConfig, RegionConfig, WeightsError, make_extractor
from extractors import boxes as box_ops
from extractors.faster_rcnn import GRID_FEATS
from extractors.grid_detector import GridDetector
from extractors.networks import GRID_MEAN, X101_STD, detector_for
from extractors.regions import RegionExtractor
from extractors.resnet import ResNet
from extractors.weights import Checkpoint, fill, find_weights
from storage import RegionRecord
from tests.unit.extractors.pictures import noisy_photo

SMALL: dict[str, Any] = {
    "weights": "random:0", "width_divisor": 16, "shorter": 64, "longer": 100, "device": "cpu", "store_dtype": "float32",
}  # fmt: skip
MODELS = ("grid-r50", "grid-x101", "grid-x152")
ALL = {"score_threshold": 0.0}  # random weights are sure of nothing


def make(**settings: Any) -> RegionExtractor:
    return make_extractor(RegionConfig(**{**SMALL, "model": "grid-r50", **ALL, **settings}))  # type: ignore[return-value]


def unfolded(**settings: Any) -> GridDetector:
    """The detector of `make`, its norms as in checkpoints."""
    config = RegionConfig(**{**SMALL, "model": "grid-r50", **settings})
    checkpoint = find_weights(config.weights or "")
    detector = GridDetector(detector_for(config.model, config, checkpoint)).eval()
    fill(detector, checkpoint, "detector")
    return detector


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# The layout of the checkpoints of facebookresearch/grid-feats-vqa: all tensors outside of the backbone.
HEADS = {
    "proposal_generator.rpn_head.conv.weight": (2048, 2048, 3, 3),
    "proposal_generator.rpn_head.conv.bias": (2048,),
    "proposal_generator.rpn_head.objectness_logits.weight": (15, 2048, 1, 1),
    "proposal_generator.rpn_head.objectness_logits.bias": (15,),
    "proposal_generator.rpn_head.anchor_deltas.weight": (60, 2048, 1, 1),
    "proposal_generator.rpn_head.anchor_deltas.bias": (60,),
    "proposal_generator.anchor_generator.cell_anchors.0": (15, 4),
    "roi_heads.box_head.fc1.weight": (1024, 2048),
    "roi_heads.box_head.fc1.bias": (1024,),
    "roi_heads.box_head.fc2.weight": (1024, 1024),
    "roi_heads.box_head.fc2.bias": (1024,),
    "roi_heads.box_predictor.cls_score.weight": (1601, 1024),
    "roi_heads.box_predictor.cls_score.bias": (1601,),
    "roi_heads.box_predictor.bbox_pred.weight": (6400, 1024),
    "roi_heads.box_predictor.bbox_pred.bias": (6400,),
    "roi_heads.attribute_predictor.obj_embed.weight": (1601, 256),
    "roi_heads.attribute_predictor.fc.0.weight": (512, 1280),
    "roi_heads.attribute_predictor.fc.0.bias": (512,),
    "roi_heads.attribute_predictor.attr_score.weight": (400, 512),
    "roi_heads.attribute_predictor.attr_score.bias": (400,),
}


@pytest.mark.parametrize("model", MODELS)
def test_the_network_has_the_names_and_shapes_of_the_published_checkpoint(model: str) -> None:
    shape = detector_for(model, RegionConfig(model=model), Checkpoint("checkpoint", "", {}))
    with torch.device("meta"):
        found = {name: tuple(each.shape) for name, each in GridDetector(shape).state_dict().items()}
    assert {name: each for name, each in found.items() if not name.startswith("backbone.")} == HEADS
    assert found["backbone.res5.2.conv3.weight"][0] == 2048
    assert (shape.proposals, shape.feature_dim, shape.body.res5_dilation) == (1000, 1024, 2)


@pytest.mark.parametrize(("folder", "model"), [("r50", "grid-r50"), ("x101", "grid-x101")])
def test_an_official_checkpoint_loads_with_every_tensor_in_its_place(shared: Path, folder: str, model: str) -> None:
    path = shared / "reference" / "grid_feats" / folder
    settings: dict[str, Any] = {"model": model, "weights": f"reference:{path}", "width_divisor": 1}
    made = make(**settings)
    official, ours = load_file(path / "weights.safetensors"), unfolded(**settings).state_dict()
    assert ours.keys() == official.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in official.items())
    own = made.detector.config.anchors
    torch.testing.assert_close(own, official["proposal_generator.anchor_generator.cell_anchors.0"], rtol=0, atol=1e-4)
    record = made(noisy_photo())
    assert isinstance(record, RegionRecord) and record.features.shape == (len(record.boxes), 16)
    assert 0 < len(record.boxes) <= 100 and set(record.attribute_ids) <= set(range(6))


def test_a_checkpoint_without_a_head_is_refused_and_so_is_one_too_many() -> None:
    whole, network = unfolded().state_dict(), unfolded()
    for change, message in (
        ({"roi_heads.attribute_predictor.attr_score.bias": None}, "1 of .* the first is roi_heads.attribute_predictor"),
        (
            {"roi_heads.mask_head.weight": torch.ones(1)},
            "1 tensors have no place in it, the first is roi_heads.mask_head",
        ),
    ):
        tensors = {name: each for name, each in (whole | change).items() if each is not None}
        with pytest.raises(WeightsError, match=message):
            fill(network, Checkpoint("checkpoint", "a file", tensors), "detector grid-r50")


def test_a_backbone_alone_has_no_regions(tmp_path: Path) -> None:
    grid = make_extractor(GridConfig(**{**SMALL, "model": "r50"}))
    network = ResNet(grid.network.config)  # type: ignore[attr-defined]
    tensors = {f"backbone.{name}": each for name, each in network.state_dict().items()}
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="has no detector's heads .*is it for `extract grid`"):
        make(weights=f"reference:{tmp_path}", width_divisor=1)


# Stages, by plain functions over the state dict.

TENSORS = dict[str, Tensor]


def small_detector() -> GridDetector:
    return unfolded()


def conv(tensors: TENSORS, name: str, x: Tensor, **steps: int) -> Tensor:
    """A convolution without bias and its fixed normalisation."""
    x = F.conv2d(x, tensors[f"{name}.weight"], **steps)
    mean, var, weight, bias = (
        tensors[f"{name}.norm.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def plain_res5(tensors: TENSORS, x: Tensor) -> Tensor:
    """Three bottlenecks of a ResNet-50, no stride, dilation 2."""
    for block in ("backbone.res5.0", "backbone.res5.1", "backbone.res5.2"):
        y = conv(tensors, f"{block}.conv1", x).relu()
        y = conv(tensors, f"{block}.conv2", y, padding=2, dilation=2).relu()
        y = conv(tensors, f"{block}.conv3", y)
        x = (y + (conv(tensors, f"{block}.shortcut", x) if block.endswith("0") else x)).relu()
    return x


def linear(tensors: TENSORS, name: str, x: Tensor) -> Tensor:
    return F.linear(x, tensors[f"roi_heads.{name}.weight"], tensors[f"roi_heads.{name}.bias"])


@torch.inference_mode()
def test_boxes_are_found_on_a_dilated_res5() -> None:
    detector, res4 = small_detector(), noise(1, 64, 4, 6)
    wanted = plain_res5(detector.state_dict(), res4)
    for each in (detector, make().detector):
        torch.testing.assert_close(each.cells(res4), wanted, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_feature_is_one_aligned_sample_of_the_map_through_two_layers() -> None:
    detector, cells = small_detector(), noise(1, 128, 4, 6)
    tensors = detector.state_dict()
    boxes = torch.tensor([[0.0, 0, 95, 63], [10, 5, 40, 60], [33, 33, 35, 36]])
    found = detector.roi_heads.features(cells, boxes)
    pooled = roi_align(cells, [boxes], 1, 1 / 16, 2, aligned=True)[:, :, 0, 0]
    hidden = linear(tensors, "box_head.fc1", pooled).relu()
    torch.testing.assert_close(found, linear(tensors, "box_head.fc2", hidden).relu())
    assert found.shape == (3, 64)


@torch.inference_mode()
def test_the_heads_say_classes_deltas_and_the_attributes_of_the_best_real_class() -> None:
    detector = small_detector()
    tensors, features = detector.state_dict(), noise(5, 64).relu()
    tensors["roi_heads.box_predictor.cls_score.bias"][-1] = 100.0  # background wins, and still is not embedded
    found = detector.roi_heads.predict(features)
    classes = linear(tensors, "box_predictor.cls_score", features)
    embedded = tensors["roi_heads.attribute_predictor.obj_embed.weight"][classes[:, :-1].argmax(1)]
    hidden = linear(tensors, "attribute_predictor.fc.0", torch.cat([features, embedded], 1)).relu()
    torch.testing.assert_close(found.class_probs, classes.softmax(1))
    torch.testing.assert_close(found.box_deltas, linear(tensors, "box_predictor.bbox_pred", features))
    torch.testing.assert_close(
        found.attribute_probs, linear(tensors, "attribute_predictor.attr_score", hidden).softmax(1)
    )


@torch.inference_mode()
def test_boxes_move_as_detectron2_moves_them() -> None:
    detector, proposals, deltas = small_detector(), torch.tensor([[4.0, 4, 30, 20]]), noise(1, 6400)
    every = torch.arange(1600)[None]
    found = detector.decode(proposals[None], deltas[None], torch.zeros_like(every), every)
    assert found.shape == (1, 1600, 4)
    assert torch.equal(found.flatten(1), box_ops.decode(deltas, proposals, (10, 10, 5, 5), 0))


@torch.inference_mode()
def test_a_record_is_what_the_stages_give() -> None:
    made, image = make(max_boxes=12), noisy_photo(64, 96)
    x = (
        torch.from_numpy(image[:, :, ::-1].astype(np.float32).transpose(2, 0, 1))
        - torch.tensor(GRID_MEAN)[:, None, None]
    )
    cells = made.detector.cells(made.network(x[None].contiguous(memory_format=torch.channels_last), 4))
    record = made(image)
    assert isinstance(record, RegionRecord) and len(record.boxes) == 12
    assert (np.diff(record.class_scores) <= 0).all() and record.boxes.max() <= 96
    whole = made.detector.roi_heads.features(cells, torch.tensor([[0.0, 0, 96, 64]]))
    np.testing.assert_allclose(record.whole_image, whole[0].numpy(), rtol=1e-4, atol=1e-5)
    [boxes], [count] = made.detector.proposals(cells, [((64, 96), 1.0)])
    proposals = boxes[:count]
    assert 12 < len(proposals) <= 1000
    features = made.detector.roi_heads.features(cells, proposals).numpy()
    for row in record.features:
        assert np.abs(features - row).max(axis=1).min() < 1e-4


# The extractor.


@pytest.mark.parametrize("model", MODELS)
def test_every_model_runs_and_says_what_it_is(model: str) -> None:
    made = make(model=model)
    record = made(noisy_photo())
    assert record.features.shape == (100, 64) == (100, made.spec.layout.dim)
    assert record.attribute_ids.max() < 400 and record.class_ids.max() < 1600
    facts = made.spec
    assert (facts.model["name"], facts.model["conventions"]) == (model, GRID_FEATS.name)
    assert facts.preprocess["mean"] == GRID_MEAN
    assert facts.preprocess["std"] == (X101_STD if model == "grid-x101" else (1, 1, 1))
    assert facts.selection["rule"] == "detectron2" and facts.selection["proposals"] == 1000
    assert made.vocabulary == {}


def test_the_other_rules_and_ones_own_boxes_run_too(tmp_path: Path) -> None:
    assert len(make(selection="10-100", min_boxes=7, max_boxes=7)(noisy_photo()).boxes) == 7
    assert len(make(selection="class-aware", max_boxes=4)(noisy_photo()).boxes) == 4
    (tmp_path / "boxes.json").write_text('{"image": [[0, 0, 70, 50], [5, 5, 20, 30]]}')
    boxes = {"boxes": str(tmp_path / "boxes.json"), "box_format": "xyxy", "box_units": "pixels"}
    record = make(score_threshold=None, **boxes)(noisy_photo())
    assert record.boxes.tolist() == [[0, 0, 70, 50], [5, 5, 20, 30]]
    assert record.features[0].tobytes() == record.whole_image.tobytes()


def test_an_unsure_network_keeps_nothing() -> None:
    record = make(score_threshold=1.0)(noisy_photo())
    assert record.features.shape == (0, 64) and record.whole_image.any()


def test_random_weights_are_those_of_the_grid_network_of_this_seed() -> None:
    grid = make_extractor(GridConfig(**{**SMALL, "model": "r50"})).network.state_dict()  # type: ignore[attr-defined]
    ours = make().network.state_dict()
    assert ours.keys() == grid.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in grid.items())


def test_a_thin_image_is_no_error_here() -> None:
    assert make()(noisy_photo(1, 1000)).whole_image.any()


def test_a_config_is_narrowed_in_all_its_layers() -> None:
    shape = detector_for("grid-r50", RegionConfig(**{**SMALL, "model": "grid-r50"}), Checkpoint("random:0", "", None))
    assert (shape.rpn_channels, shape.box_hidden) == (128, 64)
