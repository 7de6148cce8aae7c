"""`triptych scenes make` as a user types it: every data set complete, the same bytes each time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import json_lines
from trainers.data import DATASETS
from trainers.data.check import check
from trainers.data.sets import load
from trainers.scenes.making import FEWEST
from trainers.scenes.scene import THINGS
from workflows.cli import main

NAMES = [name for name in DATASETS if name not in ("conceptual_captions", "sbu", "refcocog")]


def make(out: Path, *more: str) -> int:
    return main(["scenes", "make", "--images", "48", "--seed", "1", "--out", str(out), "--workers", "1", *more])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "made"
    assert make(out) == 0
    return out


def images(name: str, root: Path) -> Path:
    group = {"coco_captions": "coco", "vqav2": "coco", "refcoco": "coco", "refcoco+": "coco"}
    return root / "images" / group.get(name, name.removesuffix("_qa"))


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_is_complete_and_has_its_images(
    name: str, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = scenes / "annotations" / name.removesuffix("_qa")
    assert main(["data", "check", name, "--root", str(root), "--images", str(images(name, scenes))]) == 0
    told = capsys.readouterr().out
    assert f"{name} is complete" in told and ": 0 of " in told


def test_no_picture_is_in_two_splits(scenes: Path) -> None:
    for name in NAMES:
        root = scenes / "annotations" / name.removesuffix("_qa")
        splits = [each.split for each in check(name, root).splits if each.complete and each.split != "test-dev"]
        seen: dict[str, str] = {}
        for split in splits:
            for key in load(name, split, root).images():
                assert seen.setdefault(key, split) == split or {split, seen[key]} == {"train", "restval"}


def test_pictures_are_jpegs_of_coco_s_sizes(scenes: Path) -> None:
    paths = sorted((scenes / "images" / "coco").rglob("*.jpg"))
    assert len(paths) == 48
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "JPEG" and image.mode == "RGB" and 427 <= max(image.size) <= 640


def contents(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_the_same_seed_makes_the_same_bytes_and_a_run_goes_on(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(tmp_path / "other", "--workers", "2") == 0
    assert contents(tmp_path / "other") == contents(scenes)
    for path in sorted((tmp_path / "other" / "images" / "coco" / "train2014").iterdir())[:5]:
        path.unlink()
    capsys.readouterr()
    assert make(tmp_path / "other", "--json") == 0
    [facts] = json_lines(capsys.readouterr().out)
    assert facts["images"] == 48 and facts["data_sets"]["vqav2"]["examples"]
    assert contents(tmp_path / "other") == contents(scenes)


def test_what_guessing_gets_is_written(scenes: Path) -> None:
    about = json.loads((scenes / "scenes.json").read_text())
    assert (about["images"], about["seed"], about["things"]) == (48, 1, list(THINGS))
    assert 0 < about["data"]["vqav2"]["guessed"] < 75


def test_what_is_wrong_is_told_in_one_line(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    wrong = {
        f"make {FEWEST} or more": ["--images", "5", "--out", str(tmp_path / "new")],
        "holds other scenes (seed 1 there, 2 asked for)": ["--images", "48", "--seed", "2", "--out", str(scenes)],
        "holds other files": ["--images", "48", "--out", str(tmp_path)],
        "--things 5 1 is no range": ["--things", "5", "1", "--out", str(tmp_path / "new")],
        "two numbers from 1 to 7": ["--things", "1", "8", "--out", str(tmp_path / "new")],
        "holds other scenes (things [3, 7] there, [1, 5] asked for)": [
            *["--images", "48", "--seed", "1", "--things", "1", "5", "--out", str(scenes)]
        ],
        "--seed -1 must be 0 or more": ["--seed", "-1", "--out", str(tmp_path / "new")],
        "--workers 0 draw nothing": ["--workers", "0", "--out", str(tmp_path / "new")],
        "no photograph": ["--images", "48", "--backgrounds", str(tmp_path), "--out", str(tmp_path / "new")],
    }
    for said, args in wrong.items():
        assert main(["scenes", "make", *args]) == 2
        told = capsys.readouterr().err
        assert said in told and told.count("\n") == 1, told
