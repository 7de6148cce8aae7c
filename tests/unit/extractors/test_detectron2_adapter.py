"""How the adapter is wired to detectron2, on a stand-in for it: what goes in, what is read off, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from extractors import ConfigError, RegionConfig, WeightsError, make_extractor
from extractors.detectron2_adapter import Detectron2Extractor
from extractors.images import resize_shortest_edge
from storage import RegionRecord
from tests.unit.extractors import fake_detectron2
from tests.unit.extractors.pictures import noisy_photo
from tests.unit.storage.samples import assert_same

C4 = {"MODEL": {"ROI_HEADS": {"NAME": "Res5ROIHeads"}}}
FPN = {"MODEL": {"ROI_HEADS": {"NAME": "StandardROIHeads", "IN_FEATURES": ["p2", "p3"]}}}
BOTH = pytest.mark.parametrize("cfg", [C4, FPN], ids=["C4", "FPN"])


@pytest.fixture(autouse=True)
def detectron2(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_detectron2.install(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def make(folder: Path, cfg: dict[str, Any], name: str = "model.yaml", **settings: Any) -> Detectron2Extractor:
    (folder / name).write_text(yaml.safe_dump(cfg))
    wanted = {"weights": "random:0", "device": "cpu", "store_dtype": "float32", **settings}
    return make_extractor(RegionConfig(model=f"detectron2:{folder / name}", **wanted))  # type: ignore[return-value]


def by_hand(made: Detectron2Extractor, image: np.ndarray) -> tuple[Any, Tensor, Tensor]:
    """As detectron2's own inference on one image: instances in input pixels, their rows, and all box features."""
    model = made.model
    resized = resize_shortest_edge(image, 64, 100)[:, :, ::-1].astype(np.float32).transpose(2, 0, 1)
    images = model.preprocess_image([{"image": torch.as_tensor(np.ascontiguousarray(resized))}])
    features = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, features, None)
    maps = [features[name] for name in model.roi_heads.in_features]
    boxes = [each.proposal_boxes for each in proposals]
    if hasattr(model.roi_heads, "box_head"):
        found = model.roi_heads.box_head(model.roi_heads.box_pooler(maps, boxes))
    else:
        found = model.roi_heads._shared_roi_transform(maps, boxes).mean(dim=[2, 3])
    predictor = model.roi_heads.box_predictor
    [instances], [rows] = predictor.inference(predictor(found), proposals)
    return instances, rows, found


@BOTH
@torch.inference_mode()
def test_a_record_holds_what_detectron2_keeps_and_the_features_it_computed_it_from(
    folder: Path, cfg: dict[str, Any]
) -> None:
    made = make(folder, cfg)
    record = made(noisy_photo())
    instances, rows, features = by_hand(made, noisy_photo())
    assert isinstance(record, RegionRecord) and 2 <= len(record.boxes) == len(rows) <= 10
    np.testing.assert_allclose(record.features, features[rows].numpy(), rtol=1e-4, atol=1e-4)
    scale = torch.tensor([70 / 90, 50 / 64] * 2)  # 50 x 70 is resized to 64 x 90
    np.testing.assert_allclose(record.boxes, (instances.pred_boxes.tensor * scale).numpy(), rtol=1e-4, atol=1e-4)
    assert record.class_ids.tolist() == instances.pred_classes.tolist()
    np.testing.assert_allclose(record.class_scores, instances.scores.numpy(), rtol=1e-5)
    assert record.features.shape[1] == made.spec.layout.dim == (6 if cfg is FPN else 8)
    assert record.whole_image.shape == record.features.shape[1:] and record.attribute_ids is None


@BOTH
def test_a_batch_equals_one_by_one(folder: Path, cfg: dict[str, Any]) -> None:
    made = make(folder, cfg)
    images = [noisy_photo(seed=0), noisy_photo(seed=1), noisy_photo(90, 60)]
    batch = [made.prepare(str(at), image) for at, image in enumerate(images)]
    for at, found in enumerate(made.extract(batch)):
        wanted = made(images[at], str(at))
        assert isinstance(found, RegionRecord) and isinstance(wanted, RegionRecord) and len(found.boxes) > 1
        assert found.class_ids.tolist() == wanted.class_ids.tolist()
        np.testing.assert_allclose(found.features, wanted.features, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.boxes, wanted.boxes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_pixels_come_in_the_order_and_size_of_the_config(folder: Path, order: str) -> None:
    image = np.zeros((50, 70, 3), np.uint8)
    image[:, :, 0] = 200  # red
    sizes = {"FORMAT": order, "MIN_SIZE_TEST": 32, "MAX_SIZE_TEST": 40}
    made = make(folder, {**C4, "INPUT": sizes})
    prepared = made.prepare("a", image)
    assert prepared.pixels.shape == (3, 29, 40)
    assert prepared.pixels[:, 0, 0].tolist() == ([0, 0, 200] if order == "BGR" else [200, 0, 0])
    facts = made.spec.preprocess
    assert (facts["colour"], facts["shorter"], facts["longer"]) == (order, 32, 40)
    assert facts["std"] == [57.0, 58.0, 59.0]


def test_a_size_of_nought_means_no_resize(folder: Path) -> None:
    made = make(folder, {**C4, "INPUT": {"MIN_SIZE_TEST": 0}})
    assert made.prepare("a", noisy_photo(33, 47)).pixels.shape == (3, 33, 47)
    assert made.spec.preprocess["resize"] == "none"


def test_thresholds_that_are_asked_for_win_over_the_configs(folder: Path) -> None:
    made = make(folder, C4, max_boxes=2, score_threshold=0.01, nms_threshold=0.9)
    assert len(made(noisy_photo()).boxes) == 2
    assert made.spec.selection == {
        "rule": "detectron2", "proposals": 20, "max_boxes": 2, "score_threshold": 0.01, "nms_threshold": 0.9,
    }  # fmt: skip
    assert make(folder, C4).spec.selection["score_threshold"] == 0.05
    assert len(make(folder, C4, score_threshold=0.9999)(noisy_photo()).boxes) == 0


def test_class_probabilities_are_stored_where_asked_for(folder: Path) -> None:
    record = make(folder, C4, class_probs=True)(noisy_photo())
    assert record.class_probs is not None and record.class_probs.shape == (len(record.boxes), 4)
    at = np.arange(len(record.boxes))
    np.testing.assert_allclose(record.class_probs[at, record.class_ids], record.class_scores, rtol=1e-3)


@torch.inference_mode()
def test_attributes_are_told_by_the_layers_of_either_project(folder: Path) -> None:
    for base, name in ((FPN, "GridAttributeHeads"), (C4, "ButdAttributeHeads")):
        heads = {**base["MODEL"]["ROI_HEADS"], "NAME": name}
        made = make(folder, {"MODEL": {"ROI_HEADS": heads}})
        record = made(noisy_photo())
        layers = made.heads.attribute_predictor if base is FPN else made.heads.box_predictor
        features = torch.from_numpy(record.features)
        probs = made.heads.box_predictor.cls_score(features).softmax(1)
        if base is FPN:
            embedded = layers.obj_embed(probs[:, :3].argmax(1))
            wanted = layers.attr_score(layers.fc(torch.cat([features, embedded], 1))).softmax(1)
        else:
            embedded = layers.cls_embedding(probs.argmax(1))
            wanted = layers.attr_score(layers.fc_attr(torch.cat([features, embedded], 1)).relu())[:, :4].softmax(1)
        assert record.attribute_ids.tolist() == wanted.argmax(1).tolist()
        np.testing.assert_allclose(record.attribute_scores, wanted.amax(1).numpy(), rtol=1e-5)
        assert made.spec.layout.without == ()


def test_a_model_without_attributes_says_so(folder: Path) -> None:
    assert make(folder, C4).spec.layout.without == ("attribute_ids", "attribute_scores")


def test_classes_have_the_names_of_the_data_set(folder: Path) -> None:
    assert make(folder, C4).vocabulary == {"classes": ["cat", "dog", "cow"]}
    assert make(folder, {**C4, "DATASETS": {"TEST": ["unheard-of"]}}).vocabulary == {}
    assert make(folder, {**C4, "DATASETS": {"TEST": []}}).vocabulary == {}


def test_a_feature_that_is_no_number_is_an_error_of_its_image(folder: Path) -> None:
    made = make(folder, C4)
    made.model.roi_heads.res5.bias.data.fill_(torch.nan)
    [found] = made.extract([made.prepare("a", noisy_photo())])
    assert found.reason == "not_representable"  # type: ignore[union-attr]


# The spec.


def test_the_spec_tells_configs_and_weights_apart_and_nothing_else(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    same = [
        make(folder, C4),
        make(folder / "elsewhere", C4),
        make(folder, {**C4, "OUTPUT_DIR": "/there"}),
        make(folder, {"MODEL": {**C4["MODEL"], "WEIGHTS": "another.pth"}}),
    ]
    others = [
        make(folder, FPN),
        make(folder, {"MODEL": {**C4["MODEL"], "PIXEL_MEAN": [1.0, 2.0, 3.0]}}),
        make(folder, {**C4, "INPUT": {"MIN_SIZE_TEST": 63}}),
        make(folder, C4, weights="random:1"),
        make(folder, C4, max_boxes=9),
    ]
    assert len({each.spec.id for each in same}) == 1
    assert len({each.spec.id for each in (same[0], *others)}) == 1 + len(others)
    model = same[0].spec.model
    assert model["name"] == "detectron2:model.yaml" and model["weights"]["origin"] == "random:0"


# Weights.


def save(made: Detectron2Extractor, path: Path, **changes: Tensor) -> str:
    torch.save({"model": made.model.state_dict() | changes}, path)
    return str(path)


def test_weights_come_from_a_file_from_the_config_or_from_where_the_config_points(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = make(folder, C4, weights="random:7")
    file = save(wanted, folder / "model_final.pth")
    fake_detectron2.install(monkeypatch, {"detectron2://zoo/model_final.pth": file, file: file})
    ways = [
        {"weights": file},
        {"weights": None, "named": file},
        {"weights": None, "named": "detectron2://zoo/model_final.pth"},
    ]
    for way in ways:
        cfg = {"MODEL": {**C4["MODEL"], "WEIGHTS": way.get("named", "")}}
        made = make(folder, cfg, weights=way["weights"])
        assert made.spec.model["weights"]["sha256"] == wanted.spec.model["weights"]["sha256"]
        assert made.spec.model["weights"]["origin"] == "checkpoint"
        assert_same(made(noisy_photo()), wanted(noisy_photo()))


def test_without_weights_nothing_runs(folder: Path) -> None:
    with pytest.raises(WeightsError, match="names no weights; pass --weights FILE, or random:SEED"):
        make(folder, C4, weights=None)
    secret = {"MODEL": {**C4["MODEL"], "WEIGHTS": "https://me:password@host/model.pth?signature=1"}}
    with pytest.raises(WeightsError, match="cannot be fetched") as caught:
        make(folder, secret, weights=None)
    assert "password" not in str(caught.value) and "signature" not in str(caught.value)


def test_weights_must_fit_in_all_their_parts(folder: Path) -> None:
    file = save(make(folder, FPN), folder / "fpn.pth")
    with pytest.raises(WeightsError, match="does not fit detectron2:.*tensors are missing, the first is backbone"):
        make(folder, C4, weights=file)


def test_weights_of_other_anchors_are_refused_and_of_the_same_are_taken(folder: Path) -> None:
    made = make(folder, C4)
    name = "proposal_generator.anchor_generator.cell_anchors.0"
    same = torch.tensor([[-8.0, -8, 8, 8], [-16, -16, 16, 16]])
    assert make(folder, C4, weights=save(made, folder / "same.pth", **{name: same}))(noisy_photo()).features.any()
    for other in (same * 2, same[:1]):
        with pytest.raises(WeightsError, match="other anchors than the config's .*cell_anchors.0.*ANCHOR_GENERATOR"):
            make(folder, C4, weights=save(made, folder / "other.pth", **{name: other}))


# What is refused.


def test_without_detectron2_a_line_says_how_to_install_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detectron2.config", None)  # an import then fails
    with pytest.raises(ConfigError) as caught:
        make(folder, C4)
    message = str(caught.value)
    assert "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2" in message
    assert "compiler" in message and "\n" not in message


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "own boxes": (
        {"boxes": "b.json", "box_format": "xyxy", "box_units": "pixels"},
        "--boxes goes with our own networks",
    ),
    "a rule": ({"selection": "10-100"}, "leave --selection, --min-boxes out"),
    "a least number": ({"min_boxes": 3}, "leave --selection, --min-boxes out"),
    "a size": ({"shorter": 500}, "INPUT.MIN_SIZE_TEST"),
    "a width": ({"width_divisor": 2}, "leave --width-divisor and --dtype out"),
    "a dtype": ({"dtype": "bfloat16"}, "leave --width-divisor and --dtype out"),
}


@pytest.mark.parametrize(("settings", "message"), WRONG.values(), ids=WRONG.keys())
def test_settings_that_the_config_decides_are_refused(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(folder, C4, **settings)


def test_a_config_that_is_not_one_is_refused_in_one_line(folder: Path) -> None:
    with pytest.raises(ConfigError, match="Non-existent config key: SOLVED"):
        make(folder, {"SOLVED": {}})
    with pytest.raises(ConfigError, match="there is no file .*absent.yaml"):
        make_extractor(RegionConfig(model=f"detectron2:{folder}/absent.yaml", device="cpu"))
    with pytest.raises(ConfigError, match="cannot build this model .*'Unheard'"):
        make(folder, {"MODEL": {"META_ARCHITECTURE": "Unheard"}})


def test_models_without_one_box_head_are_refused(folder: Path) -> None:
    cascade = {**FPN["MODEL"]["ROI_HEADS"], "NAME": "CascadeROIHeads"}
    for model in ({"META_ARCHITECTURE": "RetinaNet"}, {"ROI_HEADS": cascade}):
        with pytest.raises(ConfigError, match="wanted an R-CNN with an RPN and one box head"):
            make(folder, {"MODEL": model})
