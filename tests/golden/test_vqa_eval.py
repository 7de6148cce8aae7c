"""The folder of official VQA scores, and that nothing wrong passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.__main__ import main
from tests.golden.vqa_eval import ours

ANSWERS = [{"answer": answer, "answer_id": at} for at, answer in enumerate(["red"] * 8 + ["The dog", "blue"], 1)]
INPUTS = {
    "strings": ["The dog.", "1,000"],
    "accuracy_cases": [{"answers": ["red"] * 10, "prediction": "Red"}],
    "annotations": [{"question_id": 1, "multiple_choice_answer": "red", "answers": ANSWERS}],
    "min_occurrence": 1,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of ours in the official layout, alone in its parent."""
    made = tmp_path / "vqa_eval"
    made.mkdir()
    (made / "inputs.json").write_text(json.dumps(INPUTS), encoding="utf-8")
    (made / "outputs.json").write_text(json.dumps(ours(INPUTS)), encoding="utf-8")
    return made


def test_official_scores(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(shared / "reference/vqa_eval")]) == 0, capsys.readouterr().out


def test_our_own_pass(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder.parent)]) == 0
    assert f"{folder}: 6 comparisons, 0 past the tolerance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("official_eval_process", ["dog", "1,000"], "entry 1: found '1000', wanted '1,000'"),
        ("accuracy", [0, 1], "found 1 entries, wanted 2"),
        ("soft_targets_vl_bert", [{"red": 0.9}], "entry 0"),
        ("something else", [], "no check knows this list"),
    ],
)
def test_another_value_fails(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, value: object, told: str
) -> None:
    outputs = json.loads((folder / "outputs.json").read_text(encoding="utf-8"))
    (folder / "outputs.json").write_text(json.dumps({**outputs, name: value}), encoding="utf-8")
    assert main([str(folder)]) == 1
    assert told in capsys.readouterr().out


def test_a_list_that_is_not_there_fails(folder: Path) -> None:
    outputs = json.loads((folder / "outputs.json").read_text(encoding="utf-8"))
    del outputs["accuracy"]
    (folder / "outputs.json").write_text(json.dumps(outputs), encoding="utf-8")
    assert main([str(folder)]) == 1


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_inputs_of_another_kind(folder: Path, content: str) -> None:
    (folder / "inputs.json").write_text(content, encoding="utf-8")
    assert main([str(folder)]) == 2
