"""Checks the folder of official VQA scores: inputs.json and outputs.json, with neither weights nor tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.golden.compare import CannotCheckError, Report
from trainers.data.answers import soft_scores, vocabulary_form, vqa_vocabulary
from trainers.metrics_vqa import answer_accuracy, normalise

FILES = ("inputs.json", "outputs.json")


def is_here(path: Path) -> bool:
    """Whether a folder is of this kind."""
    return not (path / "config.json").is_file() and (path / FILES[0]).is_file()


def check(path: Path, report: Report) -> None:
    """Compare everything in the folder.

    Raises:
        CannotCheckError: a file is absent, damaged or lacks something.
    """
    inputs, outputs = (_read(path / name) for name in FILES)
    try:
        found = ours(inputs)
    except (KeyError, TypeError) as error:
        raise CannotCheckError(f"{path / FILES[0]} is not as VQA's folder has it ({error!r}).") from error
    for name, wanted in outputs.items():
        if name in found:
            report.same(name, found[name], wanted)
        else:
            report.fail(name, "no check knows this list")
    for name in found.keys() - outputs.keys():
        report.fail(name, f"{path / FILES[1]} lacks it")


def ours(inputs: dict[str, Any]) -> dict[str, list[Any]]:
    """What we give for the inputs, list by list as outputs.json names them."""
    annotations = inputs["annotations"]
    vocabulary = vqa_vocabulary((row["multiple_choice_answer"] for row in annotations), inputs["min_occurrence"])
    answered = [soft_scores([answer["answer"] for answer in row["answers"]]) for row in annotations]
    targets = [{word: score for word, score in each.items() if word in vocabulary.index} for each in answered]
    return {
        "official_eval_process": [normalise(text) for text in inputs["strings"]],
        "answer_vocab_normalise": [vocabulary_form(text) for text in inputs["strings"]],
        "accuracy": [answer_accuracy(case["answers"], case["prediction"]) for case in inputs["accuracy_cases"]],
        "answer_vocabulary": list(vocabulary.answers),
        "soft_targets_butd_vilt": targets,
        "soft_targets_vl_bert": targets,
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CannotCheckError(f"{path} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise CannotCheckError(f"{path} holds a {type(content).__name__}; wanted an object.")
    return content
