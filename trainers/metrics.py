"""Scores of the tasks, in percent, each by the rule of its official evaluation.

Predictions are what `Task.predict` gives: one an example, with its "id". Examples are those of the split, with truth as
the modules of `trainers.data` say.

Shapes in this file: B boxes, I images, T texts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainers.caption_words import words
from trainers.data.base import Example
from trainers.data.nlvr2 import sentence_of
from trainers.data.snli_ve import LABELS
from trainers.metrics_captions import tokenised_scores
from trainers.metrics_vqa import answer_accuracy

Prediction = Mapping[str, Any]

RECALLS = (1, 5, 10)
RIGHT_IOU = 0.5  # of a box with the true one, from which on it is right


def vqa_accuracy(predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, float]:
    """ "accuracy" of all, and of each answer type ("yes/no") and question type ("question: what color is").

    Args:
        predictions: with "answer".

    Raises:
        ValueError: ids do not fit the examples, or there are none.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    for prediction, example in paired(predictions, examples):
        truth = example.truth
        right = answer_accuracy(truth["answers"], prediction["answer"])
        for name in ("accuracy", truth["answer_type"], f"question: {truth['question_type']}"):
            groups[name].append(right)
    return {name: percent(group) for name, group in groups.items()}


def gqa_accuracy(predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, float]:
    """ "accuracy" of the balanced questions, and of the "binary" and "open" ones among them (GQA's eval.py).

    Args:
        predictions: with "answer".

    Raises:
        ValueError: ids do not fit the examples, or no question is balanced.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for prediction, example in paired(predictions, examples):
        if example.truth["balanced"]:
            hit = prediction["answer"] == example.truth["answer"]
            right["accuracy"].append(hit)
            right["open" if example.truth["structural"] == "query" else "binary"].append(hit)
    if not right:
        raise ValueError("no balanced question was answered, so there is no accuracy")
    return {name: percent(hits) for name, hits in right.items()}


def nlvr2_scores(predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, float]:
    """ "accuracy", and "consistency": the share of sentences that are right of all their pairs (nlvr2/eval/metrics.py).

    Args:
        predictions: with "answer", a bool.

    Raises:
        ValueError: ids do not fit the examples, or there are none.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for prediction, example in paired(predictions, examples):
        right[sentence_of(example.id)].append(prediction["answer"] == example.truth["label"])
    hits = [hit for sentence in right.values() for hit in sentence]
    return {"accuracy": percent(hits), "consistency": percent([all(sentence) for sentence in right.values()])}


def snli_ve_accuracy(predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, float]:
    """ "accuracy" of predictions with "label", one of `trainers.data.snli_ve.LABELS`; errors as of `nlvr2_scores`."""
    pairs = paired(predictions, examples)
    return {"accuracy": percent([each["label"] == LABELS[example.truth["label"]] for each, example in pairs])}


def vcr_accuracy(predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, float]:
    """ "Q->A", "QA->R" given the right answer, and "Q->AR", for which both of a question have to be right.

    Args:
        predictions: with "answer", scores of the four, and "rationales", scores of the four given each answer.

    Raises:
        ValueError: ids do not fit the examples, or there are none.
    """
    answers, rationales = [], []
    for prediction, example in paired(predictions, examples):
        truth = example.truth
        answers.append(_best(prediction["answer"]) == truth["answer"])
        rationales.append(_best(prediction["rationales"][truth["answer"]]) == truth["rationale"])
    both = [answer and rationale for answer, rationale in zip(answers, rationales, strict=True)]
    return {"Q->A": percent(answers), "QA->R": percent(rationales), "Q->AR": percent(both)}


def refcoco_accuracy(predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, float]:
    """ "accuracy": the share of boxes whose IoU with the true one is at least 0.5 (VL-BERT's refcoco/function/test.py).

    Args:
        predictions: with "box", x1, y1, x2, y2 in pixels of the original image.

    Raises:
        ValueError: ids do not fit the examples, or there are none.
    """
    pairs = paired(predictions, examples)
    found = np.array([prediction["box"] for prediction, _ in pairs], np.float64).reshape(-1, 4)
    true = np.array([example.truth["box"] for _, example in pairs], np.float64).reshape(-1, 4)
    return {"accuracy": percent((box_iou(found, true) >= RIGHT_IOU).tolist())}


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU (B,) of boxes (B, 4), pair by pair, x1, y1, x2, y2 in pixels; a width is x2 - x1 + 1."""
    left_top, right_bottom = np.maximum(first[:, :2], second[:, :2]), np.minimum(first[:, 2:], second[:, 2:])
    shared = np.prod(np.maximum(right_bottom - left_top + 1, 0), axis=1)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1) for boxes in (first, second)]
    iou: np.ndarray = shared / (areas[0] + areas[1] - shared)
    return iou


def caption_scores(predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, float]:
    """Scores as papers print them: "BLEU-1" to "BLEU-4", "ROUGE-L", "CIDEr", of which the last may be above 100.

    Args:
        predictions: with "caption".
        examples: with all captions of an image as their texts.

    Raises:
        ValueError: ids do not fit the examples, or there are none.
    """
    pairs = paired(predictions, examples)
    references = {example.id: [words(text) for text in example.texts] for _, example in pairs}
    candidates = {example.id: words(prediction["caption"]) for prediction, example in pairs}
    return {name: 100 * score for name, score in tokenised_scores(references, candidates).items()}


def retrieval_recalls(scores: np.ndarray, image_of_text: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Recall both ways: "TR@k" over images, any of an image's own texts among the k best; "IR@k" over texts.

    Args:
        scores: (I, T), the larger the better. Of equal ones the first counts as better.
        image_of_text: (T,) the row of each text's image.

    Raises:
        ValueError: the shapes do not fit, an image has no text, or a score is nan.
    """
    own = np.asarray(image_of_text, np.int64)
    if scores.ndim != 2 or scores.shape[1] != len(own) or set(own.tolist()) != set(range(len(scores))):
        raise ValueError(f"scores are {scores.shape}, for {len(own)} texts of {len(set(own.tolist()))} images")
    if np.isnan(scores).any():
        raise ValueError("scores have nan among them")
    texts = [_rank(row, np.flatnonzero(own == image)) for image, row in enumerate(scores)]
    images = [_rank(column, own[text : text + 1]) for text, column in enumerate(np.ascontiguousarray(scores.T))]
    recalls = {f"TR@{k}": percent([rank < k for rank in texts]) for k in RECALLS}
    return recalls | {f"IR@{k}": percent([rank < k for rank in images]) for k in RECALLS}


def _rank(scores: np.ndarray, wanted: np.ndarray) -> int:
    """How many come before the best of some, in a stable sort from the largest."""
    best = wanted[np.argmax(scores[wanted])]
    return int((scores > scores[best]).sum() + (scores[:best] == scores[best]).sum())


def _best(scores: Sequence[float]) -> int:
    return int(np.argmax(scores))


def paired(predictions: Sequence[Prediction], examples: Sequence[Example]) -> list[tuple[Prediction, Example]]:
    """Each prediction with its example, by id, in the order of the examples.

    Raises:
        ValueError: there are none, or an example has no prediction or several.
    """
    by_id = {prediction["id"]: prediction for prediction in predictions}
    if not predictions or len(by_id) < len(predictions) or by_id.keys() != {example.id for example in examples}:
        raise ValueError(
            f"{len(predictions)} predictions of {len(by_id)} ids for {len(examples)} examples; wanted one of each"
        )
    return [(by_id[example.id], example) for example in examples]


def percent(shares: Sequence[float]) -> float:
    """The mean in percent; raises ValueError where there is nothing."""
    if not len(shares):
        raise ValueError("there is nothing to score")
    return 100 * float(sum(shares)) / len(shares)
