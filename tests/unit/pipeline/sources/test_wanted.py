"""--keys FILE, --max-files, and the checks of keys done on columns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.sources import SourceError
from pipeline.sources.checked import all_safe, key_fault
from tests.unit.pipeline.sources.helpers import UNSAFE_KEYS, keys_of, put, source_of

NAMES = ["val2014/COCO_val2014_000000000042.jpg", "val2014/COCO_val2014_000000000007.jpg", "b/x.jpg", "y.jpg"]
FORTY_TWO = "val2014/COCO_val2014_000000000042"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return put(tmp_path / "in", *NAMES)


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("keys.txt", f"y\n\n{FORTY_TWO}\r\ny\n", [FORTY_TWO, "y"]),
        ("keys.json", json.dumps(["b/x"]), ["b/x"]),
        ("vqa.json", json.dumps({"questions": [{"image_id": 42}, {"image_id": 42}]}), [FORTY_TWO]),
        ("rows.jsonl", '{"image_id": 7}\n{"img_fn": "y.jpg"}\n', ["val2014/COCO_val2014_000000000007", "y"]),
    ],
)
def test_only_the_wanted_keys_are_listed_in_the_order_of_the_source(
    root: Path, tmp_path: Path, name: str, text: str, wanted: list[str]
) -> None:
    (tmp_path / name).write_text(text)
    assert keys_of(root, keys=str(tmp_path / name)) == sorted(wanted)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("keys.txt", "y\nno such\nnor this\n", r"names 2 keys that .*/in does not have, the first is 'no such'"),
        ("vqa.json", '[{"image_id": 42}, {"image_id": 43}]', "names one key that .* the first is '43'"),
        ("keys.txt", "42\n", "names one key .* the first is '42'"),  # a list of keys means keys
        ("keys.txt", "\n", "names no key; wanted a text file"),
        ("empty.json", "[]", "names no key"),
        ("bad.json", "{", "cannot be read as annotations in JSON"),
        ("absent.txt", None, "No such file"),
    ],
)
def test_key_files_that_stop_the_plan(root: Path, tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=message) as caught:
        source_of(root, keys=str(tmp_path / name)).list()
    assert "\n" not in str(caught.value)


def test_keys_choose_between_twins_of_which_one_is_not_wanted(tmp_path: Path) -> None:
    root = put(tmp_path / "in", "a.jpg", "b.jpg", "b.png")
    (tmp_path / "keys.txt").write_text("a\n")
    assert keys_of(root, keys=str(tmp_path / "keys.txt")) == ["a"]


def test_too_many_files_stop_the_plan(root: Path) -> None:
    put(root, "notes.txt")
    assert len(keys_of(root, max_files=5)) == 4
    with pytest.raises(SourceError, match=r"holds more than 4 files; raise --max-files"):
        source_of(root, max_files=4).list()


@pytest.mark.parametrize("key", UNSAFE_KEYS)
def test_a_page_of_keys_is_safe_where_each_of_them_is(key: str) -> None:
    assert key_fault(key) and not all_safe(["good", key, "also/good"])


def test_pages_of_good_keys_are_safe() -> None:
    good = ["a", "a/b", "a.b/c d", "..a", "a..", "a/...", "日本", "x" * 1024, "ab:c", "100%", "\xa0"]
    assert all_safe(good) and not any(map(key_fault, good))
