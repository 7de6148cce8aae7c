"""Settings that contradict each other, the weights or the machine are refused before anything runs, in one line that
says what was found and what to do."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from extractors import ConfigError, GridConfig, RegionConfig, WeightsError, load_extractor, make_extractor
from extractors.base import float32_multiplied, pick_device
from extractors.configs import ExtractorConfig
from extractors.faster_rcnn import BottomUpDetector, DetectorConfig
from extractors.regions import choose_rule, vocabulary
from extractors.selection import DEFAULTS, Selection
from storage import TriptychError

BOXES = {"boxes": "b.json", "box_format": "xyxy", "box_units": "pixels"}

WRONG: dict[str, tuple[type[ExtractorConfig], dict[str, Any], str]] = {
    "shorter above longer": (GridConfig, {"shorter": 800, "longer": 600}, "--shorter 800 .* not above --longer 600"),
    "no pixels": (GridConfig, {"shorter": 0}, "--shorter 0 must be at least 1"),
    "divisor of nought": (RegionConfig, {"width_divisor": 0}, "--width-divisor 0 must be at least 1"),
    "unknown dtype": (GridConfig, {"dtype": "float64"}, "--dtype 'float64' .*float32, tf32, bfloat16, float16"),
    "box heads of a grid": (GridConfig, {"dtype": "bfloat16-heads"}, "--dtype 'bfloat16-heads' .*float32, tf32"),
    "unknown store dtype": (GridConfig, {"store_dtype": "int8"}, "--store-dtype 'int8' .*float16, float32"),
    "unknown grid model": (GridConfig, {"model": "r18"}, "--model 'r18' .*r50, x101, x152, x152pp"),
    "unknown region model": (
        RegionConfig,
        {"model": "x101"},
        "--model 'x101' .*butd-r101, grid-r50, .*detectron2:CONFIG",
    ),
    "detectron2 without a config": (
        RegionConfig,
        {"model": "detectron2:R50"},
        "--model 'detectron2:R50' .*CONFIG.yaml",
    ),
    "a config without detectron2": (RegionConfig, {"model": "a.yaml"}, "--model 'a.yaml' is not known"),
    "unknown rule": (
        RegionConfig,
        {"selection": "best"},
        "--selection 'best' .*auto, 10-100, class-aware, class-agnostic, detectron2",
    ),
    "unknown box format": (RegionConfig, {**BOXES, "box_format": "yxyx"}, "--box-format 'yxyx' .*xyxy, xywh"),
    "unknown box units": (RegionConfig, {**BOXES, "box_units": "percent"}, "--box-units 'percent' .*normalized"),
    "boxes of no format": (RegionConfig, {**BOXES, "box_format": None}, "--boxes needs --box-format xyxy.xywh"),
    "boxes of no units": (RegionConfig, {**BOXES, "box_units": None}, "--boxes needs .* --box-units pixels"),
    "format without boxes": (RegionConfig, {"box_format": "xyxy"}, "go with --boxes FILE"),
    "units without boxes": (RegionConfig, {"box_units": "pixels"}, "go with --boxes FILE"),
    "regression without boxes": (RegionConfig, {"box_regression": True}, "go with --boxes FILE"),
    "boxes and a rule": (RegionConfig, {**BOXES, "selection": "10-100"}, "leave the selection settings out"),
    "boxes and a number": (RegionConfig, {**BOXES, "min_boxes": 0}, "leave the selection settings out"),
    "boxes and a threshold": (RegionConfig, {**BOXES, "score_threshold": 0.0}, "leave the selection settings out"),
}


@pytest.mark.parametrize(("kind", "settings", "message"), WRONG.values(), ids=WRONG.keys())
def test_settings_that_cannot_be_meant_are_refused(
    kind: type[ExtractorConfig], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        kind(**settings)
    assert "\n" not in str(caught.value) and str(caught.value).endswith((".", "?"))


def test_settings_that_can_be_meant_are_taken() -> None:
    assert GridConfig(shorter=600, longer=600).model == "x101"
    assert RegionConfig(**BOXES, box_regression=True).selection == "auto"
    assert RegionConfig().weights is None
    assert RegionConfig(model="detectron2:configs/faster_rcnn.yaml").model.endswith("faster_rcnn.yaml")


RULES: dict[str, tuple[dict[str, Any], str]] = {
    "min above max": ({"min_boxes": 50, "max_boxes": 36}, "--min-boxes 50 and --max-boxes 36 must be 0 <= min <= max"),
    "min above the default max": ({"min_boxes": 101}, "--min-boxes 101 and --max-boxes 100"),
    "negative min": ({"min_boxes": -1}, "--min-boxes -1"),
    "no boxes at all": ({"min_boxes": 0, "max_boxes": 0}, "max > 0"),
    "score above one": ({"score_threshold": 1.1}, r"--score-threshold 1\.1 must lie in \[0, 1\]"),
    "score below nought": ({"score_threshold": -0.1}, "--score-threshold -0.1"),
    "overlap of one": ({"nms_threshold": 1.0}, r"--nms-threshold 1\.0 in \(0, 1\)"),
    "overlap of nought": ({"nms_threshold": 0.0}, "--nms-threshold 0.0"),
    "not a number": ({"score_threshold": float("nan")}, "--score-threshold nan"),
    "min of another rule": ({"selection": "class-aware", "min_boxes": 3}, "--min-boxes belongs to the 10-100 rule"),
    "min of detectron2's": ({"selection": "detectron2", "min_boxes": 3}, "detectron2 has --max-boxes only"),
    "score of another rule": ({"selection": "class-agnostic", "score_threshold": 0.1}, "no effect on the class"),
}


@pytest.mark.parametrize(("settings", "message"), RULES.values(), ids=RULES.keys())
def test_thresholds_that_no_box_could_meet_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_rule(RegionConfig(**settings), DetectorConfig())


def test_thresholds_left_out_are_those_of_the_rule() -> None:
    assert choose_rule(RegionConfig(), DetectorConfig()) == DEFAULTS["10-100"]
    config = RegionConfig(selection="class-aware", max_boxes=20, nms_threshold=0.4)
    assert choose_rule(config, DetectorConfig()) == Selection("class-aware", 0, 20, 0.2, 0.4)
    assert choose_rule(RegionConfig(min_boxes=36, max_boxes=36), DetectorConfig()).min_boxes == 36


def test_unknown_views_are_refused() -> None:
    with pytest.raises(ConfigError, match="view 'boxes' is not known; choose one of regions, grid, patches, pixels"):
        load_extractor("boxes")


def test_real_weights_cannot_be_narrowed(tmp_path: Path) -> None:
    save_file({"backbone.stem.conv1.weight": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="--width-divisor goes with random weights only"):
        make_extractor(GridConfig(weights=str(tmp_path / "w.safetensors"), width_divisor=2))


def test_weights_of_the_other_view_are_told_apart(tmp_path: Path) -> None:
    save_file({"backbone.stem.conv1.weight": torch.ones(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="is not a bottom-up detector .*is it for `extract grid`"):
        make_extractor(RegionConfig(weights=str(tmp_path / "weights.safetensors")))
    for kind, model in ((GridConfig, "x101"), (RegionConfig, "grid-x101")):
        with pytest.raises(WeightsError, match="is not a grid network .*is it for `regions`"):
            make_extractor(kind(model=model, weights=f"reference:{tmp_path}"))


def test_weights_of_another_grid_network_name_what_is_missing(tmp_path: Path) -> None:
    save_file({"backbone.stem.conv1.weight": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="does not fit grid network x101: .* tensors are missing, the first is"):
        make_extractor(GridConfig(weights=str(tmp_path / "w.safetensors")))


def test_a_missing_file_of_boxes_is_refused(tmp_path: Path) -> None:
    config = RegionConfig(weights="random:0", width_divisor=16, device="cpu", **{**BOXES, "boxes": str(tmp_path / "b")})
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        make_extractor(config)


def test_boxes_of_another_form_stop_the_job(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"a": [[1, 2, 3]]}))
    config = RegionConfig(weights="random:0", width_divisor=16, device="cpu", **{**BOXES, "boxes": str(path)})
    with pytest.raises(ConfigError, match="'a' is not a list of four numbers a box"):
        make_extractor(config)


# Devices.


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="--device cuda was asked for, .* sees 0 GPUs here; pass --device cpu"):
        load_extractor("grid", weights="random:0", width_divisor=16, device="cuda")


def test_a_gpu_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda") == torch.device("cuda:0")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="--device cuda:2 was asked for, .* sees 2 GPUs"):
        pick_device("cuda:2")


@pytest.mark.parametrize("available", [False, True])
def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch, available: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(available))
    assert pick_device("auto").type == ("cuda" if available else "cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "mps", "meta", "cpu cuda"])
def test_devices_of_other_kinds_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--device '{name}' is not known; choose cpu, cuda, cuda:N or auto"):
        pick_device(name)


def test_the_cpu_is_the_cpu() -> None:
    assert pick_device("cpu") == torch.device("cpu")


# Names of classes.


def test_the_published_detector_has_names_for_all_its_ids() -> None:
    names = vocabulary(1600, 400)
    assert (len(names["classes"]), len(names["attributes"])) == (1600, 400)
    assert all(name and name == name.strip() for group in names.values() for name in group)


def test_detectors_with_other_numbers_of_classes_have_none() -> None:
    assert vocabulary(1601, 400) == vocabulary(1600, 401) == vocabulary(80, 0) == {}


def test_a_config_error_stops_a_job() -> None:
    assert issubclass(ConfigError, TriptychError)


def test_the_default_detector_is_the_published_one() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(each.shape) for name, each in BottomUpDetector(DetectorConfig()).state_dict().items()}
    predictor = "roi_heads.box_predictor."
    assert shapes["proposal_generator.rpn_head.conv.weight"] == (512, 1024, 3, 3)
    assert shapes["proposal_generator.rpn_head.objectness_logits.weight"] == (24, 512, 1, 1)
    assert shapes["proposal_generator.rpn_head.anchor_deltas.weight"] == (48, 512, 1, 1)
    assert shapes["proposal_generator.anchor_generator.cell_anchors.0"] == (12, 4)
    assert shapes[f"{predictor}cls_score.weight"] == (1601, 2048)
    assert shapes[f"{predictor}bbox_pred.weight"] == (6404, 2048)
    assert shapes[f"{predictor}cls_embedding.weight"] == (1601, 256)
    assert shapes[f"{predictor}fc_attr.weight"] == (512, 2304)
    assert shapes[f"{predictor}attr_score.weight"] == (401, 512)


@pytest.mark.parametrize(("dtype", "wanted"), [("float32", "ieee"), ("tf32", "tf32"), ("bfloat16", "ieee")])
def test_a_gpu_rounds_float32_to_tf32_only_where_it_was_asked_for(dtype: str, wanted: str) -> None:
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [each.fp32_precision for each in settings]
    with float32_multiplied(dtype, torch.device("cuda")):
        assert [each.fp32_precision for each in settings] == [wanted, wanted]
    assert [each.fp32_precision for each in settings] == before


def test_threads_that_want_float32_multiplied_otherwise_wait_for_one_another() -> None:
    cuda, inside, seen = torch.device("cuda"), threading.Barrier(3), []

    def use(dtype: str) -> None:
        with float32_multiplied(dtype, cuda):
            if dtype == "float32":
                inside.wait(10)  # two that want the same are in it together, while the third one waits
                inside.wait(10)
            seen.append((dtype, torch.backends.cudnn.conv.fp32_precision))

    threads = [threading.Thread(target=use, args=(dtype,)) for dtype in ("float32", "float32", "tf32")]
    for each in threads[:2]:
        each.start()
    inside.wait(10)
    threads[2].start()
    threads[2].join(0.1)
    assert threads[2].is_alive() and not seen
    inside.wait(10)
    for each in threads:
        each.join(10)
    assert seen == [("float32", "ieee"), ("float32", "ieee"), ("tf32", "tf32")]
