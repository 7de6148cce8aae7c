"""`triptych data check`: what is there, what is missing, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.official_files import WRITERS, write_nlvr2, write_vqa
from tests.unit.storage.samples import make_store
from trainers.data import DATASETS
from workflows.cli import main


def run(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["data", "check", *map(str, args)])
    return status, capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "conceptual_captions"])
def test_a_whole_data_set_is_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    files = WRITERS[name](tmp_path, 1)
    status, out = run(capsys, name, "--root", files.annotations, "--images", files.images)
    assert f"{name} is complete" in out and ": 0 of " in out and status == 0


def test_what_is_missing_is_told_with_the_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_vqa(tmp_path, 2)
    (files.annotations / "v2_mscoco_val2014_annotations.json").unlink()
    (files.annotations / "v2_OpenEnded_mscoco_test2015_questions.json").write_text("{}", encoding="utf-8")
    status, out = run(capsys, "vqav2", "--root", files.annotations)
    lines = out.splitlines()
    assert status == 1
    assert lines[0].split() == ["train", "4", "examples", "2", "images"]
    assert lines[1].split() == ["val", "MISSING", "v2_mscoco_val2014_annotations.json"]
    assert lines[2].startswith("test        WRONG") and "has no 'questions'" in lines[2]
    assert "vqav2 is not complete" in out and "key 9" in out and "visualqa.org" in out


def test_absent_images_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_nlvr2(tmp_path, 2)
    (files.images / "dev/dev-1-1-img0.png").unlink()
    args = ("nlvr2", "--root", files.annotations, "--images", files.images)
    status, out = run(capsys, *args)
    assert status == 1 and "1 of 12 images are absent: dev-1-1-img0" in out
    facts = json.loads(run(capsys, *args, "--json")[1])
    assert facts["absent"] == {f"images {files.images}": ["dev-1-1-img0"]} and facts["complete"] is False
    assert [split["examples"] for split in facts["splits"]] == [2, 2, 2] and facts["images"] == 12


def test_keys_absent_from_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_vqa(tmp_path, 1)
    store = make_store(tmp_path / "store", [["1", "val2014/COCO_val2014_000000000002"]])
    status, out = run(capsys, "vqav2", "--root", files.annotations, "--store", store)
    assert status == 1 and f"store {store}: 1 of 3 images are absent: 3" in out


def test_optional_splits_may_be_absent_and_not_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = WRITERS["gqa"](tmp_path, 1)
    status, out = run(capsys, "gqa", "--root", files.annotations)
    assert status == 0 and "MISSING (optional)  train_all_questions" in out
    (files.annotations / "submission_all_questions.json").write_text("[]", encoding="utf-8")
    assert run(capsys, "gqa", "--root", files.annotations)[0] == 1


def test_wrong_names_are_wrong_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "vqa", "--root", str(tmp_path)]) == 2
    assert "no data set 'vqa'; choose from" in capsys.readouterr().err
    assert main(["data", "check", "gqa", "--root", str(tmp_path / "no")]) == 2


def test_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}: " in out for name in DATASETS) and "refs(unc).p, instances.json" in out
