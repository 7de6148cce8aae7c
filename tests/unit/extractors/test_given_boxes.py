"""The user's own boxes: every form they may have, and a refusal for every form that would be misread silently."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from extractors import ConfigError, ImageError
from extractors.given_boxes import BoxTable, read_boxes


def table(folder: Path, content: Any, box_format: str = "xyxy", units: str = "pixels") -> BoxTable:
    path = folder / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_boxes(str(path), box_format, units)


def refusal(folder: Path, content: Any, box_format: str = "xyxy", units: str = "pixels") -> str:
    """The message that refuses a file, which names the file and is one line."""
    with pytest.raises(ConfigError) as caught:
        table(folder, content, box_format, units)
    message = str(caught.value)
    assert f"--boxes {folder}/boxes.json" in message and "\n" not in message
    return message


def test_boxes_are_read_as_corners(tmp_path: Path) -> None:
    found = table(tmp_path, {"a": [[10, 20, 110, 220], [0, 0, 1.5, 2]], "b": []})
    assert found.of("a", (300, 200)).tolist() == [[10, 20, 110, 200 + 20], [0, 0, 1.5, 2]]
    assert found.of("a", (300, 200)).dtype == torch.float32
    assert found.of("b", (300, 200)).shape == (0, 4)


def test_corner_and_size_become_two_corners(tmp_path: Path) -> None:
    found = table(tmp_path, {"a": [[10, 20, 100, 200]]}, "xywh")
    assert found.of("a", (300, 200)).tolist() == [[10, 20, 110, 220]]


@pytest.mark.parametrize(("box_format", "box"), [("xyxy", [0.25, 0.5, 0.75, 1.0]), ("xywh", [0.25, 0.5, 0.5, 0.5])])
def test_fractions_are_of_width_and_height(tmp_path: Path, box_format: str, box: list[float]) -> None:
    found = table(tmp_path, {"a": [box]}, box_format, "normalized")
    assert found.of("a", (300, 200)).tolist() == [[50, 150, 150, 300]]


def test_the_files_digest_is_kept(tmp_path: Path) -> None:
    found = table(tmp_path, {"a": [[1, 2, 3, 4]]})
    assert found.sha256 == hashlib.sha256((tmp_path / "boxes.json").read_bytes()).hexdigest()


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path, {"a": []})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_boxes("~/boxes.json", "xyxy", "pixels").path == tmp_path / "boxes.json"


def test_boxes_a_little_over_the_edge_are_cut(tmp_path: Path) -> None:
    found = table(tmp_path, {"a": [[-1, -0.5, 201, 300.9]]})
    np.testing.assert_allclose(found.of("a", (300, 200)).numpy(), [[0, 0, 200, 300]])


@pytest.mark.parametrize("box", [[-1.5, 0, 10, 10], [0, 0, 202, 10], [0, 0, 10, 302], [0, -2, 10, 10]])
def test_a_box_outside_its_image_is_an_error_of_that_image(tmp_path: Path, box: list[float]) -> None:
    found = table(tmp_path, {"a": [[0, 0, 5, 5], box]})
    with pytest.raises(ImageError, match=r"box 1 \[.*\] passes the image, 200 x 300 upright pixels; check") as caught:
        found.of("a", (300, 200))
    assert (caught.value.reason, caught.value.stage) == ("bad_boxes", "prepare")


def test_an_image_without_an_entry_is_an_error_of_that_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"boxes\.json has no entry for the key 'b'") as caught:
        table(tmp_path, {"a": []}).of("b", (10, 10))
    assert caught.value.reason == "no_boxes"


# Refusals of the whole file.


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json cannot be read: No such file"):
        read_boxes(str(tmp_path / "absent.json"), "xyxy", "pixels")


@pytest.mark.parametrize("content", ["", "{", "boxes", "{'a': []}"])
def test_what_is_not_json_is_refused(tmp_path: Path, content: str) -> None:
    assert "is not JSON" in refusal(tmp_path, content)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_bytes(b'{"\xe9": []}')
    with pytest.raises(ConfigError, match="is not JSON"):
        read_boxes(str(tmp_path / "boxes.json"), "xyxy", "pixels")


@pytest.mark.parametrize(("content", "kind"), [([[1, 2, 3, 4]], "list"), (5, "int"), (None, "NoneType")])
def test_json_of_another_form_is_refused(tmp_path: Path, content: Any, kind: str) -> None:
    assert f"holds a {kind}; wanted {{key: [[a, b, c, d], ...]}}" in refusal(tmp_path, content)


NOT_FOUR = {
    "three numbers": [[1, 2, 3]],
    "five numbers, as with a score": [[1, 2, 3, 4, 0.9]],
    "four boxes of five numbers": [[1, 2, 3, 4, 0.9]] * 4,
    "four boxes of three numbers": [[1, 2, 3]] * 4,
    "two boxes in one": [[1, 2, 3, 4, 5, 6, 7, 8]],
    "a flat list": [1, 2, 3, 4],
    "boxes of different length": [[1, 2, 3, 4], [1, 2, 3]],
    "words": [["one", 2, 3, 4]],
    "one level too deep": [[[1, 2, 3, 4]]],
    "an object": {"x": 1, "y": 2, "w": 3, "h": 4},
    "a list of objects": [{"bbox": [1, 2, 3, 4]}],
    "a number": 5,
    "a text": "1 2 3 4",
    "nothing": None,
    "an empty object": {},
    "zero": 0,
}


@pytest.mark.parametrize("rows", NOT_FOUR.values(), ids=NOT_FOUR.keys())
def test_anything_but_four_numbers_a_box_is_refused(tmp_path: Path, rows: Any) -> None:
    assert "'bad' is not a list of four numbers a box" in refusal(tmp_path, {"good": [[1, 2, 3, 4]], "bad": rows})


@pytest.mark.parametrize("box", [[10, 10, 10, 20], [10, 10, 5, 20], [10, 20, 20, 20], [10, 20, 30, 10]])
def test_corners_without_an_area_are_refused_as_perhaps_sizes(tmp_path: Path, box: list[float]) -> None:
    message = refusal(tmp_path, {"a": [[1, 2, 3, 4], box]})
    assert "box 1 of 'a' is [" in message and "which as xyxy has no area; is it xywh?" in message


@pytest.mark.parametrize("box", [[10, 10, 0, 20], [10, 10, 20, -1]])
def test_sizes_without_an_area_are_refused_as_perhaps_corners(tmp_path: Path, box: list[float]) -> None:
    message = refusal(tmp_path, {"a": [box]}, "xywh")
    assert f"box 0 of 'a' is {[float(each) for each in box]}, which as xywh has no area; is it xyxy?" in message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "null", "1e999"])
def test_numbers_that_are_none_are_refused(tmp_path: Path, number: str) -> None:
    assert "box 0 of 'a'" in refusal(tmp_path, f'{{"a": [[1, 2, 3, {number}]]}}')


def test_pixels_declared_as_fractions_are_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"a": [[0.1, 0.1, 0.9, 0.9], [10, 20, 110, 220]]}, units="normalized")
    assert message.endswith("a coordinate is 220, above 1; are these --box-units pixels?")


def test_fractions_declared_as_pixels_are_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"a": [[0.1, 0.1, 0.9, 1.0]]})
    assert message.endswith("no coordinate is above 1; are these --box-units normalized?")


@pytest.mark.parametrize("units", ["pixels", "normalized"])
def test_a_file_without_any_box_has_any_units(tmp_path: Path, units: str) -> None:
    assert table(tmp_path, {"a": [], "b": []}, units=units).of("b", (5, 5)).shape == (0, 4)
