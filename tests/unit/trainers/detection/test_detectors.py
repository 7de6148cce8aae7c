"""A detector in training is the one that extraction runs: its norms, its file, and what it starts from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from extractors import ConfigError, GridConfig, RegionConfig, make_extractor
from extractors.configs import SHIPPED, SHIPPED_DETECTOR, SHIPPED_SIZE
from extractors.faster_rcnn import CAFFE, BottomUpDetector, DetectorConfig
from extractors.regions import RegionExtractor
from extractors.resnet import ConvNorm, FrozenNorm
from extractors.weights import SHIPPED_FOLDER, WeightsError, find_weights, randomise, shipped_file
from storage import GridRecord, RegionRecord
from tests.unit.extractors.pictures import noisy_photo
from trainers.detection.building import Built, Kind, Plan, build, narrow_shape
from trainers.detection.norms import LiveNorm
from trainers.detection.saving import FILE, read_detector, save_detector
from trainers.detection.task import detect
from trainers.detection.vocabulary import Names, Vocabulary
from trainers.images import grid_pixels
from trainers.scenes.looks import COLOURS, SIZES, TEXTURES
from trainers.scenes.looks import KINDS as KINDS_OF_THINGS

pytestmark = pytest.mark.usefixtures("one_thread")
VOCABULARY = Vocabulary(Names.of(["cat", "dog", "owl"]), Names.of(["red", "wet"]))
SIZE = {"shorter": 64, "longer": 100, "device": "cpu", "store_dtype": "float32"}
KINDS: tuple[Kind, ...] = ("regions", "grid")


def trained(kind: Kind, vocabulary: Vocabulary = VOCABULARY) -> Built:
    """A narrow detector whose norms have seen some batches."""
    built = build(Plan(kind, divisor=16, shorter=64), vocabulary)
    torch.manual_seed(0)
    built.detector.train()
    for _ in range(3):
        cells = built.detector.cells(built.detector.backbone(torch.randn(2, 3, 64, 80) * 60, 4))
        built.detector.roi_heads.features_of(list(cells.split(1)), [torch.tensor([[0.0, 0, 60, 60]])] * 2)
    torch.nn.init.normal_(built.detector.roi_heads.box_predictor.cls_score.weight)  # type: ignore[union-attr, arg-type]
    built.detector.eval()
    return built


def saved(built: Built, folder: Path, half: bool = False) -> str:
    return save_detector(built.detector, built.vocabulary, str(folder), half=half)


def test_a_norm_in_training_takes_its_batch_s_statistics_and_later_their_means() -> None:
    frozen = FrozenNorm(2)
    frozen.weight.fill_(2.0)
    norm, x = LiveNorm(frozen), torch.randn(8, 2, 5, 5) * 3 + 1
    torch.testing.assert_close(norm(x).std(dim=(0, 2, 3), unbiased=False), torch.tensor([2.0, 2.0]), rtol=1e-4, atol=0)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean(dim=(0, 2, 3)))
    frozen.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm.eval()(x), frozen(x))


@pytest.mark.parametrize("kind", KINDS)
def test_live_norms_keep_the_names_of_fixed_ones(kind: Kind) -> None:
    built = build(Plan(kind, divisor=16), VOCABULARY)
    fixed = type(built.detector)(built.detector.config)
    assert built.detector.state_dict().keys() == fixed.state_dict().keys()
    assert all(isinstance(each.norm, LiveNorm) for each in built.detector.modules() if isinstance(each, ConvNorm))


def test_extraction_has_the_regions_of_training(tmp_path: Path) -> None:
    built = trained("regions")
    settings = {"selection": "detectron2", "score_threshold": 0.05, "weights": saved(built, tmp_path)}
    extractor = make_extractor(RegionConfig(**SIZE, **settings))  # type: ignore[arg-type]
    assert extractor.vocabulary == VOCABULARY.as_json()
    record = extractor(noisy_photo())
    assert isinstance(record, RegionRecord) and record.class_scores is not None and len(record.boxes)
    pixels = grid_pixels([noisy_photo()], 64, 100).normalised(built.colours.mean, built.colours.std, bgr=True)
    with torch.no_grad():
        [found] = detect(built.detector, pixels, [(50, 70)])
        cells = built.detector.backbone(pixels.images)
        height, width = pixels.images.shape[2:]
        whole = built.detector.roi_heads.features(cells, torch.tensor([[0.0, 0.0, width, height]]))
    np.testing.assert_allclose(record.boxes, found["boxes"], atol=1e-2)
    np.testing.assert_allclose(record.class_scores, found["scores"], atol=1e-4)
    assert record.class_ids is not None and record.class_ids.tolist() == found["classes"]
    assert record.attribute_ids is not None and record.attribute_ids.tolist() == found["attributes"]
    np.testing.assert_allclose(record.whole_image, whole[0], atol=1e-4, rtol=1e-4)


def test_extraction_has_the_grid_of_training(tmp_path: Path) -> None:
    built = trained("grid")
    path = saved(built, tmp_path)
    record = make_extractor(GridConfig(model="r50", weights=path, **SIZE))(noisy_photo())  # type: ignore[arg-type]
    assert isinstance(record, GridRecord)
    pixels = grid_pixels([noisy_photo()], 64, 100).normalised(built.colours.mean, built.colours.std, bgr=True)
    with torch.no_grad():
        dilated = built.detector.cells(built.detector.backbone(pixels.images, 4))
    assert record.features.shape[:2] == (2, 3) and dilated.shape[2:] == (
        4,
        6,
    )  # extraction steps where training dilates
    regions = make_extractor(RegionConfig(model="grid-r50", weights=path, **SIZE))  # type: ignore[arg-type]
    assert isinstance(regions, RegionExtractor) and regions.vocabulary == VOCABULARY.as_json()
    torch.testing.assert_close(regions.detector.cells(regions.network(pixels.images, 4)), dilated, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_the_bytes_keep_norms_and_anchors_whole(kind: Kind, tmp_path: Path) -> None:
    built = trained(kind)
    tensors = load_file(saved(built, tmp_path, half=True))
    assert tensors["backbone.stem.conv1.weight"].dtype == torch.float16
    assert tensors["backbone.stem.conv1.norm.running_var"].dtype == torch.float32
    assert tensors["proposal_generator.anchor_generator.cell_anchors.0"].dtype == torch.float32
    again = read_detector(tmp_path / FILE, built.model)
    for name, tensor in built.detector.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)


def test_shipped_names_are_files_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match="scenes-nothing: no such file, and not a published name"):
        find_weights("scenes-nothing")
    saved(trained("grid"), tmp_path)
    (tmp_path / FILE).rename(tmp_path / "scenes-grid.safetensors")
    monkeypatch.setattr("extractors.weights.SHIPPED_FOLDER", tmp_path)
    extractor = make_extractor(GridConfig(model="r50", weights="scenes-grid", **SIZE))  # type: ignore[arg-type]
    assert extractor.spec.model["weights"]["origin"] == "checkpoint"
    assert SHIPPED_FOLDER.name == "shipped" and SHIPPED_FOLDER.parent.name == "extractors"


def test_the_shipped_detector_is_small_and_knows_the_things_of_scenes() -> None:
    path = shipped_file(SHIPPED)
    assert path is not None and path.stat().st_size <= 4_000_000
    shorter, longer = SHIPPED_SIZE
    extractor = make_extractor(RegionConfig(model=SHIPPED_DETECTOR, weights=SHIPPED, shorter=shorter, longer=longer))
    assert extractor.vocabulary["classes"] == sorted(KINDS_OF_THINGS)
    assert extractor.vocabulary["attributes"] == sorted([*COLOURS, *TEXTURES, *SIZES])


def test_a_network_of_another_depth_has_another_name(tmp_path: Path) -> None:
    path = saved(trained("grid"), tmp_path)
    with pytest.raises(WeightsError, match="it has depth 50, groups 1"):
        make_extractor(GridConfig(model="x101", weights=path, **SIZE))  # type: ignore[arg-type]


def test_a_vocabulary_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"vocabulary": json.dumps({"classes": 3})})
    with pytest.raises(WeightsError, match="its metadata name no classes and attributes"):
        find_weights(str(path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_with_the_same_names_keeps_all_and_its_norms_stay(kind: Kind, tmp_path: Path) -> None:
    before = trained(kind)
    again = build(Plan(kind, start=saved(before, tmp_path)), VOCABULARY)
    assert "new are" not in again.started
    for name, tensor in again.detector.state_dict().items():
        assert torch.equal(tensor, before.detector.state_dict()[name]), name
    assert not any(isinstance(each, LiveNorm) for each in again.detector.modules())
    trains = {name.split(".")[1] for name, each in again.detector.named_parameters() if each.requires_grad}
    assert not {"stem", "res2"} & trains and {"res3", "res4"} <= trains


def test_other_classes_begin_anew_and_attributes_stay_where_the_data_has_none(tmp_path: Path) -> None:
    before = trained("regions")
    again = build(Plan("regions", start=saved(before, tmp_path)), Vocabulary(Names.of(["cell"]), Names.of([])))
    assert again.started.endswith(
        "new are roi_heads.box_predictor.cls_score, roi_heads.box_predictor.bbox_pred, "
        "roi_heads.box_predictor.cls_embedding"
    )
    assert again.vocabulary.as_json() == {"classes": ["cell"], "attributes": ["red", "wet"]}
    name = "roi_heads.box_predictor.attr_score.weight"
    assert torch.equal(again.detector.state_dict()[name], before.detector.state_dict()[name])
    assert again.detector.config.classes == 1


def bare(kind: Kind, divisor: int) -> dict[str, Tensor]:
    """Tensors of the backbone alone, as of ImageNet."""
    detector = build(Plan(kind, divisor=divisor), VOCABULARY).detector
    return {name: each.contiguous() for name, each in detector.state_dict().items() if name.startswith("backbone.")}


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    grid, caffe, narrow = tmp_path / "grid", tmp_path / "caffe.safetensors", tmp_path / "narrow.safetensors"
    path = saved(trained("grid"), grid)
    with pytest.raises(WeightsError, match="is of --kind grid; pass that, or weights of --kind regions"):
        build(Plan("regions", start=path), VOCABULARY)
    with pytest.raises(WeightsError, match="random weights are what a run without --start has"):
        build(Plan("grid", start="random:0"), VOCABULARY)
    shape = narrow_shape("regions", 50, 16)
    detector = BottomUpDetector(
        DetectorConfig(CAFFE, shape.body, shape.rpn_channels, 3, 2, shape.embedding, shape.attribute_hidden)
    )
    randomise(detector, 0)
    save_file(detector.state_dict(), caffe, {"vocabulary": json.dumps(VOCABULARY.as_json())})
    with pytest.raises(WeightsError, match="in Caffe's order, training in detectron2's; start from butd-r101-py"):
        build(Plan("regions", start=str(caffe)), VOCABULARY)
    save_file(bare("regions", 16), narrow)
    with pytest.raises(WeightsError, match=r"backbone.stem.conv1.weight is \[4, 3, 7, 7\], \[64, 3, 7, 7\] was wanted"):
        build(Plan("regions", start=str(narrow)), VOCABULARY)
    save_file({"backbone.stem.conv1.weight": torch.zeros(1)}, narrow)
    with pytest.raises(WeightsError, match="is no ResNet of depth 50, 101 or 152"):
        build(Plan("regions", start=str(narrow)), VOCABULARY)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"start": "a.pth", "depth": 50}, "are those of the --start weights"),
        ({"start": "a.pth", "divisor": 2}, "are those of the --start weights"),
        ({"depth": 34}, "--depth 34 must be 50, 101 or 152"),
        ({"divisor": 0}, "--width-divisor 0 above 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Plan(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_the_small_detectors_of_scenes_are_at_most_four_megabytes(kind: Kind, tmp_path: Path) -> None:
    names = [f"name {number}" for number in range(30)]
    built = build(Plan(kind, divisor=4, shorter=320), Vocabulary(Names.of(names), Names.of(names[:17])))
    saved(built, tmp_path, half=True)
    assert (tmp_path / FILE).stat().st_size <= 4_000_000
