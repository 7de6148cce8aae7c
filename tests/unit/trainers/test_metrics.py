"""Scores by their official rules, on cases small enough to work out by hand, and the files that are submitted."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from trainers.data.base import Example
from trainers.data.submissions import (
    write_captions,
    write_gqa,
    write_nlvr2,
    write_refcoco,
    write_snli_ve,
    write_vcr,
    write_vqa,
)
from trainers.metrics import (
    box_iou,
    gqa_accuracy,
    nlvr2_scores,
    refcoco_accuracy,
    retrieval_recalls,
    snli_ve_accuracy,
    vcr_accuracy,
    vqa_accuracy,
)


def examples(**truths: dict) -> list[Example]:
    return [Example(id, ("1",), ("x",), truth) for id, truth in truths.items()]


def predictions(name: str, **values: object) -> list[dict]:
    """In another order than the examples."""
    return [{"id": id, name: value} for id, value in reversed(values.items())]


def test_vqa_by_type() -> None:
    known = {"answer_type": "other", "question_type": "what"}
    asked = examples(
        a={"answers": ["red"] * 9 + ["blue"], **known},
        b={"answers": ["2"] * 10, "answer_type": "number", "question_type": "how many"},
    )
    scores = vqa_accuracy(predictions("answer", a="blue", b="2"), asked)
    assert scores == pytest.approx(
        {"accuracy": 65, "other": 30, "number": 100, "question: what": 30, "question: how many": 100}
    )


def test_gqa_counts_balanced_questions() -> None:
    asked = examples(
        a={"answer": "yes", "structural": "verify", "balanced": True},
        b={"answer": "red", "structural": "query", "balanced": True},
        c={"answer": "cat", "structural": "query", "balanced": True},
        d={"answer": "cat", "structural": "query", "balanced": False},
    )
    said = predictions("answer", a="yes", b="red", c="dog", d="cat")
    assert gqa_accuracy(said, asked) == pytest.approx({"accuracy": 200 / 3, "binary": 100, "open": 50})
    with pytest.raises(ValueError, match="no balanced question"):
        gqa_accuracy(said[:1], asked[3:])


def test_nlvr2_is_consistent_where_all_pairs_of_a_sentence_are_right() -> None:
    truths = {"dev-1-0-0": True, "dev-1-1-0": False, "dev-1-0-1": True, "dev-2-0-0": False}
    asked = examples(**{id: {"label": label} for id, label in truths.items()})
    said = predictions("answer", **{**truths, "dev-1-1-0": True})
    assert nlvr2_scores(said, asked) == pytest.approx({"accuracy": 75, "consistency": 200 / 3})


def test_snli_ve() -> None:
    asked = examples(a={"label": 0}, b={"label": 2})
    assert snli_ve_accuracy(predictions("label", a="contradiction", b="neutral"), asked) == {"accuracy": 50}


def test_vcr_takes_the_rationale_given_the_right_answer() -> None:
    asked = examples(a={"answer": 1, "rationale": 2}, b={"answer": 0, "rationale": 0}, c={"answer": 3, "rationale": 1})
    eye = np.eye(4).tolist()
    said = [
        {"id": "a", "answer": eye[1], "rationales": [eye[0], eye[2], eye[0], eye[0]]},  # both right
        {"id": "b", "answer": eye[2], "rationales": [eye[0], eye[1], eye[1], eye[1]]},  # the rationale alone
        {"id": "c", "answer": eye[3], "rationales": [eye[1], eye[1], eye[1], eye[0]]},  # the answer alone
    ]
    assert vcr_accuracy(said, asked) == pytest.approx({"Q->A": 200 / 3, "QA->R": 200 / 3, "Q->AR": 100 / 3})


def test_boxes_end_with_their_last_pixel() -> None:
    first, second = np.array([[0.0, 0, 9, 9], [0, 0, 0, 0]]), np.array([[5.0, 0, 14, 9], [2, 2, 3, 3]])
    assert box_iou(first, second).tolist() == [50 / 150, 0]
    asked = examples(a={"box": np.float32([0, 0, 9, 9])}, b={"box": np.float32([0, 0, 9, 9])})
    said = predictions("box", a=[0, 0, 9, 4], b=[0, 0, 9, 3])  # 50 and 40 of 100 pixels; 45 of 100 without the last
    assert refcoco_accuracy(said, asked) == {"accuracy": 50}


def test_retrieval_both_ways() -> None:
    scores = np.zeros((3, 12))
    own = [0] * 4 + [1] * 4 + [2] * 4
    scores[0, 3] = 1  # a text of its own first
    scores[1, [0, 1, 2, 4]] = [5, 4, 3, 2]  # its own fourth
    scores[2] = [9, 9, 9, 9, 9, 9, 9, 9, 0, 1, 0, 0]  # its own ninth
    found = retrieval_recalls(scores, own)
    assert [found[f"TR@{k}"] for k in (1, 5, 10)] == pytest.approx([100 / 3, 200 / 3, 100])
    # Images before a text's own one: text 3, 4, 9 and those of image 0 and 2 with the same score first.
    ranks = []
    for text, column in enumerate(scores.T):
        order = np.argsort(-column, kind="stable").tolist()
        ranks.append(order.index(own[text]))
    assert found["IR@1"] == pytest.approx(100 * np.mean([rank < 1 for rank in ranks])) and found["IR@5"] == 100


@pytest.mark.parametrize("seed", range(3))
def test_retrieval_as_sorting_has_it(seed: int) -> None:
    chance = np.random.default_rng(seed)
    scores, own = chance.integers(0, 8, (20, 60)).astype(np.float32), np.repeat(np.arange(20), 3)
    found = retrieval_recalls(scores, own)
    best = np.argsort(-scores, axis=1, kind="stable")
    for k in (1, 5, 10):
        hits = [(own[row[:k]] == image).any() for image, row in enumerate(best)]
        assert found[f"TR@{k}"] == pytest.approx(100 * np.mean(hits))


def test_a_model_that_knows_nothing_recalls_nothing_for_free() -> None:
    found = retrieval_recalls(np.zeros((10, 20)), np.repeat(np.arange(10), 2))
    assert (found["TR@1"], found["IR@1"]) == (10, 10)


@pytest.mark.parametrize(
    ("scores", "own", "found"),
    [
        (np.zeros((2, 3)), [0, 0, 0], "for 3 texts of 1 images"),
        (np.zeros((2, 3)), [0, 1], "for 2 texts"),
        (np.full((1, 1), np.nan), [0], "nan"),
    ],
)
def test_retrieval_refuses(scores: np.ndarray, own: list[int], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        retrieval_recalls(scores, own)


@pytest.mark.parametrize("said", [[], ["a"], ["a", "b", "c"], ["a", "a"], ["a", "b", "b"]])
def test_every_example_needs_one_prediction(said: list[str]) -> None:
    asked = examples(a={"label": 0}, b={"label": 0})
    with pytest.raises(ValueError, match="for 2 examples; wanted one of each"):
        snli_ve_accuracy([{"id": id, "label": "neutral"} for id in said], asked)


# Submissions


def test_json_submissions(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_vqa(predictions("answer", **{"9000": "red"}), path)
    assert json.loads(path.read_text()) == [{"question_id": 9000, "answer": "red"}]
    write_gqa(predictions("answer", **{"201": "yes"}), path)
    assert json.loads(path.read_text()) == [{"questionId": "201", "prediction": "yes"}]
    write_captions(predictions("caption", **{"9": "a cat", "x_1": "dog"}), path)
    assert json.loads(path.read_text()) == [{"image_id": "x_1", "caption": "dog"}, {"image_id": 9, "caption": "a cat"}]
    write_refcoco(predictions("box", **{"3": np.float32([1, 2, 3, 4])}), path)
    assert json.loads(path.read_text()) == [{"sent_id": 3, "box": [1, 2, 3, 4]}]
    write_snli_ve(predictions("label", **{"1.jpg#0r1n": "neutral"}), path)
    assert path.read_text() == '{"pairID": "1.jpg#0r1n", "gold_label": "neutral"}\n'


def test_table_submissions(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_nlvr2([{"id": "dev-850-0-0", "answer": True}, {"id": "dev-850-1-0", "answer": False}], path)
    assert path.read_text() == "dev-850-0-0,True\ndev-850-1-0,False\n"
    rationales = [[at / 16 for at in range(first, first + 4)] for first in range(0, 16, 4)]
    write_vcr([{"id": "test-0", "answer": [0.1, 0.2, 0.3, 0.4], "rationales": rationales}], path)
    head, row = csv.reader(path.read_text().splitlines())
    assert len(head) == len(row) == 21 and head[:2] == ["annot_id", "answer_0"] and row[0] == "test-0"
    assert (head[6], row[6]) == ("rationale_conditioned_on_a0_1", "0.0625")
    assert (head[20], row[20]) == ("rationale_conditioned_on_a3_3", "0.9375")
