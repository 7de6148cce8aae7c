"""What can be scored without looking."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from trainers.comparison.blind import blind_score, deal, guessed
from trainers.data.answers import AnswerVocabulary
from trainers.data.base import Example, Split
from trainers.tasks.answers import Answers
from trainers.tasks.reasoning import Reasoning
from trainers.tasks.retrieval import Retrieval


def test_the_same_text_is_answered_as_most_often_before() -> None:
    known = [("is it red ?", "no"), ("is it red ?", "no"), ("is it red ?", "yes"), ("is it blue ?", "yes")]
    assert guessed(known, ["is it red ?", "Is it BLUE ?"]) == ["no", "yes"]


def test_a_new_text_is_answered_as_those_that_begin_alike() -> None:
    known = [("what colour is it ?", "red"), ("what colour is that ?", "blue"), ("what colour is that ?", "blue")]
    known += [("how many ?", "2")] * 5
    assert guessed(known, ["what colour is the cat ?", "what colour has it ?", "where ?"]) == ["blue", "blue", "2"]


def answers(ten: dict[str, int]) -> dict[str, Any]:
    given = tuple(answer for answer, times in ten.items() for _ in range(times))
    return {"answers": given, "multiple_choice_answer": given[0], "answer_type": "other", "question_type": "what"}


def questions(*rows: tuple[str, dict[str, int]]) -> list[Example]:
    return [Example(str(at), ("k",), (text,), answers(ten)) for at, (text, ten) in enumerate(rows)]


def task_of(kind: Any, examples: list[Example], **settings: Any) -> Any:
    return kind(Split("any", "val", examples), None, None, **settings)


def test_vqa_without_looking_is_scored_as_vqa_is() -> None:
    known = questions(("what is it ?", {"cat": 10}), ("what is it ?", {"cat": 10}), ("what is it ?", {"dog": 10}))
    asked = questions(("what is it ?", {"cat": 10}), ("what is it ?", {"dog": 8, "cat": 2}))
    task = task_of(Answers, asked, answers=AnswerVocabulary(("cat", "dog")))
    # the second: of ten people the two who said cat find one other, the eight find two: (2 * 1/3 + 8 * 2/3) / 10
    assert blind_score(task, known, []) == pytest.approx(100 * (1 + 0.6) / 2)


def test_statements_without_looking_are_true_as_often_as_before() -> None:
    truths = [True, True, False]
    known = [
        Example(f"train-1-{at}-0", ("a", "b"), ("left is red",), {"label": each}) for at, each in enumerate(truths)
    ]
    asked = [Example(f"dev-1-{at}-0", ("a", "b"), ("left is red",), {"label": at == 0}) for at in range(4)]
    assert blind_score(task_of(Reasoning, asked), known, []) == 25.0


def test_dealt_predictions_stay_among_like_questions() -> None:
    texts = ["what ?"] * 4 + ["how ?"] * 4
    examples = [Example(str(at), ("k",), (text,)) for at, text in enumerate(texts)]
    task = task_of(Answers, examples, answers=AnswerVocabulary(("cat",)))
    predictions = [{"id": str(at), "answer": at} for at in range(8)]
    dealt = deal(task, predictions, 1)
    assert [each["id"] for each in dealt] == [each["id"] for each in predictions]
    said = [each["answer"] for each in dealt]
    assert sorted(said[:4]) == [0, 1, 2, 3] and sorted(said[4:]) == [4, 5, 6, 7] and said != list(range(8))


def test_retrieval_without_looking_is_chance() -> None:
    """Every image gets another one's scores, which were perfect."""
    examples = [Example(str(at), (str(at),), (f"text {at}",)) for at in range(50)]
    rows = np.eye(50, dtype=np.float32)
    predictions = [{"id": str(at), "scores": base64.b64encode(row.tobytes()).decode()} for at, row in enumerate(rows)]
    task = task_of(Retrieval, examples)
    assert task.score(predictions)["recall_mean"] == 100
    assert 5 < blind_score(task, [], predictions) < 20  # of 50, the first 1, 5 or 10: 10.7 %
