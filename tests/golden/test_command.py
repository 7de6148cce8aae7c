"""The command's exit status and words: folders that cannot be checked, and several at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.golden.__main__ import CHECKERS, main
from tests.golden.tiny import change, moved

# Folders that cannot be checked.


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a folder is refused."""
    assert main([str(path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert str(path) in line
    return line


def test_no_such_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in refused(tmp_path / "nowhere", capsys)


def test_a_folder_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(tmp_path, capsys)
    assert "no config.json" in line and all(project in line for project in CHECKERS)


@pytest.mark.parametrize("config", [{}, {"upstream": "x"}, {"upstream": {"repo": "some/body"}}])
def test_a_project_nobody_knows(grid: Path, capsys: pytest.CaptureFixture[str], config: object) -> None:
    (grid / "config.json").write_text(json.dumps(config), encoding="utf-8")
    line = refused(grid, capsys)
    assert line.startswith(f"no checker for {grid}: found ") and all(project in line for project in CHECKERS)


@pytest.mark.parametrize("name", ["weights", "inputs", "outputs"])
def test_missing_and_damaged_files(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (folder / f"{name}.safetensors").write_bytes(b"nonsense")
    assert f"{name}.safetensors is not a readable safetensors file" in refused(folder, capsys)
    (folder / f"{name}.safetensors").unlink()
    assert f"lacks {name}.safetensors" in refused(folder, capsys)


def test_a_config_that_is_no_json(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (grid / "config.json").write_text("{", encoding="utf-8")
    assert "cannot be read as JSON" in refused(grid, capsys)


def test_a_config_without_a_setting(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["input"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "config.json lacks 'input" in refused(folder, capsys)


def test_weights_of_another_network(grid: Path, originals: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(originals / "butd" / "weights.safetensors", grid)
    assert "choose the --model these weights were made for" in refused(grid, capsys)


def test_a_stored_tensor_that_fits_nothing(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(grid, lambda tensors: tensors.update({"res3_0": torch.zeros(1, 5, 2, 2)}))
    assert "do not fit the model" in refused(grid, capsys)


# Several folders.


def test_a_folder_above_stands_for_those_below(originals: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(originals)]) == 0
    assert "3 folders: 3 passed, 0 failed, 0 not checked" in capsys.readouterr().out


def test_below_a_folder_other_models_are_passed_over_but_told(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = grid.parent / "vilt"
    other.mkdir()
    (other / "config.json").write_text("{}", encoding="utf-8")
    assert main([str(grid.parent)]) == 0
    assert f"no checker for {other}" in capsys.readouterr().err
    assert main([str(grid), str(other)]) == 2


def test_the_worst_status_wins(grid: Path, originals: Path, tmp_path: Path) -> None:
    change(grid, lambda tensors: tensors.update({"grid_0": moved(tensors["grid_0"])}))
    assert main([str(grid), str(originals / "grid")]) == 1
    assert main([str(grid), str(tmp_path / "nowhere")]) == 2
