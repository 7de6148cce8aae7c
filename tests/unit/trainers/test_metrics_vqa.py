"""How right answers are: the official rule with its quirks, and equality with the official code's figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainers.data.base import Example
from trainers.data.vqa import read, read_truths
from trainers.metrics import vqa_accuracy
from trainers.metrics_vqa import CONTRACTIONS, NUMBERS, answer_accuracy, normalise


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("The dog.", "dog"),
        ("none", "0"),
        ("one-way", "1 way"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("1,000.", "1000"),
        ("red,white,10,5", "redwhite105"),
        ("3.5.", "3.5"),
        ("u.s.a", "usa"),
        ("dont", "don't"),
        ("Im", "im"),
        ("somebody'd", "somebodyd"),
        ("a/b c", "b c"),
        ("what?", "what"),
        ("." * 33, "."),
        ("a", ""),
    ],
)
def test_normalised(answer: str, wanted: str) -> None:
    assert normalise(answer) == wanted


@pytest.mark.parametrize(
    ("answers", "prediction", "wanted"),
    [
        (["yes"] * 10, "Yes", 0),
        (["yes"] * 9 + ["no"], "Yes", 1),
        (["yes"] * 9 + ["no"], "no", 0.3),
        (["red"] * 2 + ["blue"] * 8, "red", 0.6),
        (["red"] * 3 + ["blue"] * 7, "red", 0.9),
        (["red"] * 4 + ["blue"] * 6, "a red!", 1),
        ([" yes\n"] * 10, "yes", 1),
        (["yes"] * 10, "", 0),
    ],
)
def test_accuracy(answers: list[str], prediction: str, wanted: float) -> None:
    assert answer_accuracy(answers, prediction) == pytest.approx(wanted)


def test_official_lists(shared: Path) -> None:
    lists = json.loads((shared / "data/annotations/vqav2/official_normalisation_lists.json").read_text())
    assert {key: value for key, value in lists["contractions"].items() if key != value} == CONTRACTIONS
    assert lists["manualMap"] == NUMBERS


def test_every_official_case(shared: Path) -> None:
    cases = json.loads((shared / "data/annotations/vqav2/official_normaliser_cases.json").read_text())["cases"]
    assert len(cases) > 100
    assert [(raw, normalise(raw)) for raw, _ in cases] == [(raw, wanted) for raw, wanted in cases]


def test_real_answers_score_as_the_official_evaluation_scores_them(shared: Path) -> None:
    folder = shared / "data/annotations/vqav2"
    said = json.loads((folder / "human_answers_as_results.json").read_text())
    official = json.loads((folder / "human_answers_expected_accuracy.json").read_text())
    truths = read_truths(folder / "mscoco_train2014_subset_annotations.json")
    asked = [Example(str(row["question_id"]), ("1",), ("x",), truths[row["question_id"]]) for row in said]
    found = vqa_accuracy([{"id": str(row["question_id"]), "answer": row["answer"]} for row in said], asked)
    assert round(found["accuracy"], 4) == official["overall"]
    for kind, wanted in official["perAnswerType"].items():
        assert round(found[kind], 4) == wanted
    for kind, wanted in official["perQuestionType"].items():
        assert round(found[f"question: {kind}"], 4) == wanted


def test_real_questions_and_answers_belong_together(shared: Path) -> None:
    folder = shared / "data/annotations/vqav2"
    names = ("OpenEnded_mscoco_train2014_subset_questions.json", "mscoco_train2014_subset_annotations.json")
    assert all(len(example.truth["answers"]) == 10 for example in read("train", [folder / name for name in names]))
