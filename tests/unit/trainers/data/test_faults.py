"""Files that are missing or of another format: one line that says what was found, what was wanted and what to do."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.official_files import WRITERS, write_refcoco, write_vcr, write_vqa
from trainers.data import DATASETS, DataError, load
from trainers.data.files import write_json


def refused(name: str, split: str, root: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(name, split, root)
    message = str(caught.value)
    assert "\n" not in message and str(root) in message
    return message


@pytest.mark.parametrize("name", DATASETS)
def test_an_absent_file(tmp_path: Path, name: str) -> None:
    message = refused(name, "train", tmp_path)
    first = DATASETS[name].files["train"][0].split("|")[0]
    assert f"lacks {first}" in message and "`triptych data list` prints the layout" in message


@pytest.mark.parametrize("content", [b"\x80\x81", b"", b"[1, 2]", b'"text"', b"{}", b"7", b'[{"a": 1}]', b"null"])
@pytest.mark.parametrize("name", DATASETS)
def test_other_content_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    root = WRITERS[name](tmp_path, 1).annotations
    place = root / name if (root / name).is_dir() else root
    for file in DATASETS[name].files["train"]:
        there = next(place / each for each in file.split("|") if (place / each).exists())
        good = there.read_bytes()
        there.write_bytes(content)
        assert there.name in refused(name, "train", root)
        there.write_bytes(good)
    assert len(load(name, "train", root).examples)


def changed(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    write_json(path, content)


def test_a_row_without_a_field_is_named(tmp_path: Path) -> None:
    root = write_vqa(tmp_path, 2).annotations
    path = root / "v2_OpenEnded_mscoco_val2014_questions.json"
    changed(path, lambda content: content["questions"][3].pop("question"))
    message = refused("vqav2", "val", root)
    assert f"{path}: entry 3 has no 'question'; wanted VQA questions" in message


def test_a_value_of_another_type_is_shown(tmp_path: Path) -> None:
    root = write_vqa(tmp_path, 2).annotations
    path = root / "v2_OpenEnded_mscoco_val2014_questions.json"
    changed(path, lambda content: content["questions"][0].update(image_id="COCO_val2014_1"))
    assert "'image_id' is 'COCO_val2014_1', not a whole number" in refused("vqav2", "val", root)


def test_annotations_of_other_questions(tmp_path: Path) -> None:
    root = write_vqa(tmp_path, 2).annotations
    (root / "v2_mscoco_val2014_annotations.json").write_bytes(
        (root / "v2_mscoco_train2014_annotations.json").read_bytes()
    )
    assert "answers 0 of the 4 questions" in refused("vqav2", "val", root)


def test_a_line_that_is_no_json_is_numbered(tmp_path: Path) -> None:
    root = write_vcr(tmp_path, 2).annotations
    (root / "val.jsonl").write_text("{}\n{\n", encoding="utf-8")
    assert "entry 0 has no" in refused("vcr", "val", root)
    text = (root / "train.jsonl").read_text(encoding="utf-8")
    (root / "val.jsonl").write_text(text + "{\n", encoding="utf-8")
    assert "val.jsonl, line 3 is no JSON" in refused("vcr", "val", root)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda row: row.update(answer_label=4), "its labels are"),
        (lambda row: row["question"].append([2]), "points to none of its 2 objects"),
        (lambda row: row["answer_choices"].pop(), "3 and 4 choices"),
    ],
)
def test_vcr_that_contradicts_itself(tmp_path: Path, change: Callable[[Any], Any], found: str) -> None:
    path = write_vcr(tmp_path, 1).annotations / "val.jsonl"
    changed(path, change)
    assert found in refused("vcr", "val", path.parent)


def test_refs_that_would_run_code(tmp_path: Path) -> None:
    root = write_refcoco(tmp_path, 1).annotations
    (root / "refcoco+/refs(unc).p").write_bytes(pickle.dumps(Path("x")))
    assert "it asks for pathlib" in refused("refcoco+", "train", root)


def test_unknown_names() -> None:
    with pytest.raises(DataError, match="no data set 'vqa'; choose from coco_captions, .*vqav2"):
        load("vqa", "train", ".")
    with pytest.raises(DataError, match="vqav2 has no split 'dev'; choose from train, val, test, test-dev"):
        load("vqav2", "dev", ".")
    with pytest.raises(DataError, match="there is no folder nowhere"):
        load("vqav2", "val", "nowhere")
