"""`triptych train-detector` as a user types it, from boxes to weights that extraction takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from storage import open_store
from tests.helpers import json_lines
from trainers.data.files import write_json
from trainers.scenes.drawing import save
from trainers.scenes.scene import make_scene
from trainers.scenes.visual_genome_files import write_visual_genome
from workflows.cli import main
from workflows.scenes import BUNDLED

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["--width-divisor", "16", "--shorter", "64", "--longer", "100", "--batch-size", "2", "--device", "cpu"]
SCENES = 8


def drawn(root: Path, count: int) -> Path:
    """Scenes and their objects."""
    found = [make_scene(0, number) for number in range(count)]
    (root / "images").mkdir()
    for number, scene in enumerate(found):
        save(scene, BUNDLED, root / "images" / f"{number + 1}.jpg")
    write_visual_genome(found, [[] for _ in found], root / "objects")
    return root


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn(tmp_path_factory.mktemp("scenes"), SCENES)


def run(scenes: Path, out: Path, *more: str) -> int:
    data = ["--data", str(scenes / "objects"), "--images", str(scenes / "images"), "--out", str(out)]
    return main(["train-detector", *data, *SMALL, *more])


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in lines(out) if "loss" in line]


def test_a_grid_network_trains_and_its_file_extracts_grids_and_regions(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(scenes, tmp_path / "run", "--kind", "grid", "--steps", "4") == 0
    told = capsys.readouterr().out
    weights = str(tmp_path / "run" / "detector.safetensors")
    assert f"extract grid --model r50 --weights {weights} --shorter 64 --longer 100" in told
    assert "mAP50" in told and "7 images with" in told and "1 images with" in told
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["detector"]["kind"] == "grid" and config["train"]["steps"] == 4
    for view, model in (("grid", "r50"), ("regions", "grid-r50")):
        job = ["extract", view, "--model", model, "--weights", weights, "--images", str(scenes / "images")]
        out = tmp_path / view
        assert main([*job, "--out", str(out), "--shorter", "64", "--longer", "100", "--device", "cpu"]) == 0
        assert len(open_store(out)) == SCENES
    assert "cup" in open_store(tmp_path / "regions").vocabulary["classes"]


@pytest.mark.slow
def test_two_scenes_are_learnt_by_heart(tmp_path: Path) -> None:
    root = drawn(tmp_path, 2)
    data = ["--data", str(root / "objects"), "--test", str(root / "objects"), "--images", str(root / "images")]
    size = ["--width-divisor", "8", "--shorter", "128", "--longer", "213", "--batch-size", "2", "--device", "cpu"]
    out = tmp_path / "run"
    assert (
        main(["train-detector", *data, "--out", str(out), "--kind", "grid", *size, "--steps", "150", "--lr", "0.003"])
        == 0
    )
    [scores] = [line["scores"] for line in lines(out) if "scores" in line]
    assert scores["mAP50"] > 80 and scores["attributes"] > 80
    found = losses(out)
    assert found[-1] < found[0] / 5


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_ray_s_processes_train_one_detector(scenes: Path, tmp_path: Path) -> None:
    every = ("--kind", "grid", "--steps", "2", "--engine", "ray", "--workers", "2")
    assert run(scenes, tmp_path / "run", *every) == 0
    assert (tmp_path / "run" / "detector.safetensors").is_file() and len(losses(tmp_path / "run")) == 1


@pytest.mark.slow
def test_regions_train_and_their_file_is_a_start_for_cells_of_blood(
    scenes: Path, tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(scenes, tmp_path / "run", "--steps", "2") == 0
    blood = shared / "data" / "detection" / "bccd_voc"
    data = ["--data", str(blood / "Annotations"), "--images", str(blood / "JPEGImages")]
    sizes = ["--shorter", "64", "--longer", "100", "--batch-size", "2", "--steps", "2", "--device", "cpu"]
    start = ["--start", str(tmp_path / "run" / "detector.safetensors")]
    capsys.readouterr()
    assert main(["train-detector", *data, "--out", str(tmp_path / "blood"), *start, *sizes]) == 0
    told = capsys.readouterr().out
    assert "54 images with" in told and "3 classes" in told and "new are roi_heads.box_predictor.cls_score" in told
    weights = str(tmp_path / "blood" / "detector.safetensors")
    store = tmp_path / "store"
    job = ["extract", "regions", "--weights", weights, "--images", str(blood / "JPEGImages"), "--score-threshold", "0"]
    assert main([*job, "--out", str(store), "--shorter", "64", "--longer", "100", "--device", "cpu"]) == 0
    assert open_store(store).vocabulary["classes"] == ["platelets", "rbc", "wbc"]
    assert "small" in open_store(store).vocabulary["attributes"]  # the start's: nothing is said of blood


@pytest.mark.slow
def test_a_run_that_goes_on_has_the_losses_of_one_that_did_not_stop(scenes: Path, tmp_path: Path) -> None:
    every = ("--kind", "grid", "--steps", "4", "--save-every", "2")
    assert run(scenes, tmp_path / "whole", *every) == 0
    assert run(scenes, tmp_path / "cut", *every) == 0
    (tmp_path / "cut" / "checkpoints" / "step-00000004.json").unlink()
    assert run(scenes, tmp_path / "cut", *every, "--resume") == 0
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    names = ("run", "checkpoints", "step-00000004", "model.safetensors")
    first, second = (tmp_path.joinpath(run, *names[1:]).read_bytes() for run in ("whole", "cut"))
    assert first == second


@pytest.mark.slow
def test_coco_s_boxes_of_photographs_train(tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = shared / "data" / "detection" / "coco_mini"
    boxes = ["--data", str(coco / "annotations" / "instances_train2017.json"), "--images", str(coco)]
    test = ["--test", str(coco / "annotations" / "instances_val2017.json")]
    run = [*boxes, *test, "--out", str(tmp_path / "run"), "--kind", "grid", "--steps", "2", *SMALL]
    assert main(["train-detector", *run, "--json"]) == 0
    end, weights = json_lines(capsys.readouterr().out)
    assert end["step"] == 2 and weights["weights"] == str(tmp_path / "run" / "detector.safetensors")
    assert (tmp_path / "run" / "detector.safetensors").is_file()


def test_what_is_wrong_is_one_line_and_status_2(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*args: str) -> str:
        assert run(scenes, tmp_path / "run", *args) == 2
        return capsys.readouterr().err

    words = tmp_path / "classes.txt"
    words.write_text("unicorn\n")
    assert "no image with boxes is left of 7" in said("--classes", str(words))
    assert "--shorter 64 must be at least 1 and not above --longer 32" in said("--longer", "32")
    assert "--seed -1 must be 0 or more" in said("--seed", "-1")
    assert "are those of the --start weights" in said("--start", "grid-r50")
    assert not (tmp_path / "run").exists()
    empty: list[Any] = []
    write_json(tmp_path / "none" / "objects.json", empty)
    assert main(["train-detector", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "run")]) == 2
    assert "triptych: " in capsys.readouterr().err
