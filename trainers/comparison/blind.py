"""What can be scored without looking: by the most frequent answer to like texts, or by predictions dealt out anew."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from trainers.data.base import Example
from trainers.data.snli_ve import LABELS
from trainers.tasks.answers import Answers
from trainers.tasks.base import Prediction
from trainers.tasks.common import OnSplit
from trainers.tasks.entailment import Entailment
from trainers.tasks.reasoning import Reasoning

DEALS = 20
BEGINNINGS = (4, 3, 2, 1, 0)  # first words that two texts share, where all of them are shared by none


def blind_score(task: OnSplit, known: Sequence[Example], predictions: Sequence[Prediction]) -> float:
    """The task's metric of whoever does not see the images.

    Where an example has one answer (VQA, GQA, NLVR2, SNLI-VE), it is the one most frequent in training among those
    with the same text, or else with the same first words. Elsewhere it is the mean of DEALS deals.

    Args:
        known: the examples of training.
        predictions: of the model, for the tasks that are dealt out.
    """
    key = _key_of(task)
    if key is None:
        dealt = [task.score(deal(task, predictions, seed))[task.metric] for seed in range(DEALS)]
        return float(np.mean(dealt))
    name, field = key
    asked = [example.texts[0] for example in task.split.examples]
    guesses = guessed(((each.texts[0], each.truth[field]) for each in known if field in each.truth), asked)
    said = [LABELS[guess] if name == "label" else guess for guess in guesses]
    ids = [example.id for example in task.split.examples]
    return task.score([{"id": id, name: answer} for id, answer in zip(ids, said, strict=True)])[task.metric]


def _key_of(task: OnSplit) -> tuple[str, str] | None:
    """What a prediction calls its answer, and an example's truth; None where there is no one answer."""
    if isinstance(task, Answers):
        return "answer", "answer" if task.kind == "gqa" else "multiple_choice_answer"
    if isinstance(task, Reasoning):
        return "answer", "label"
    return ("label", "label") if isinstance(task, Entailment) else None


def guessed(known: Iterable[tuple[str, Any]], asked: Iterable[str]) -> list[Any]:
    """Of each text that is asked the most frequent answer to like ones: the same, or else with the same first words."""
    counts: dict[tuple[str, ...], Counter[Any]] = defaultdict(Counter)
    for text, answer in known:
        for beginning in _beginnings(text):
            counts[beginning][answer] += 1
    found = (next(each for each in _beginnings(text) if each in counts) for text in asked)
    return [counts[each].most_common(1)[0][0] for each in found]


def _beginnings(text: str) -> Iterator[tuple[str, ...]]:
    """The whole text, marked as such, and its first words, the most first."""
    words = tuple(text.lower().split())
    yield (*words, "")
    for count in BEGINNINGS:
        yield words[:count]


def deal(task: OnSplit, predictions: Sequence[Prediction], seed: int) -> list[Prediction]:
    """Each example another one's prediction, out of those that ask the same question."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, example in enumerate(task.split.examples):
        groups[example.texts[0] if isinstance(task, Answers) else ""].append(number)
    rng, found = np.random.default_rng(seed), list(predictions)
    for members in groups.values():
        for number, other in zip(members, rng.permutation(members), strict=True):
            found[number] = {**predictions[other], "id": predictions[number]["id"]}
    return found
