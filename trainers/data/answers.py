"""Answers that a classifier chooses from: read from a published list, or built from annotations by the official rule.

Lists of the same 3,129 answers differ in their order (LXMERT, UNITER, MCAN, ViLT), so the order is kept beside every
checkpoint that was trained with it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trainers.data.files import DataError, read_json, readable
from trainers.metrics_vqa import normalise

LEAST = 9  # times that an answer of VQA v2's 3,129 is the most frequent of a question of train and val
SOFT_TARGETS = (0.0, 0.3, 0.6, 0.9, 1.0)  # of an answer that none, one, two, three, four or more people gave
WANTED = (
    "a list of answers, one a line or in JSON; or answers by number or numbers by answer, as LXMERT, UNITER, MCAN and "
    "ViLT publish them"
)


@dataclass(frozen=True)
class AnswerVocabulary:
    """Answers by class number, from 0."""

    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.answers or len(self.index) < len(self.answers):
            twice = [answer for answer, times in Counter(self.answers).items() if times > 1]
            found = f"it has {twice[0]!r} twice" if twice else "it is empty"
            raise DataError(f"this is no vocabulary of answers: {found}; wanted each answer once.")

    def __len__(self) -> int:
        return len(self.answers)

    @cached_property
    def index(self) -> dict[str, int]:
        """The class of each answer."""
        return {answer: at for at, answer in enumerate(self.answers)}

    def targets(self, scores: Mapping[str, float]) -> dict[int, float]:
        """The target of each class, out of an example's truth["scores"]; empty where no answer is in the vocabulary."""
        return {self.index[answer]: score for answer, score in scores.items() if answer in self.index}

    def save(self, path: Path) -> None:
        """Write it as a JSON list, in order."""
        path.write_text(json.dumps(list(self.answers), indent=0, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> AnswerVocabulary:
        """Read one that was saved, or a published list.

        Understood are a JSON list (LXMERT's label2ans and all_ans), {answer: number} (ans2label), {number: answer}
        (ViLT's vqa_dict), a pair of these two (MCAN), and text with an answer a line (`<unk>` included: it is a class).

        Raises:
            DataError: the file is absent, of another format, or has an answer twice.
        """
        if path.suffix == ".txt":
            with readable(path, WANTED):
                return cls(tuple(path.read_text(encoding="utf-8").splitlines()))
        content = read_json(path, WANTED)
        with readable(path, WANTED):
            return cls(tuple(_listed(content)))


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """What VQA trains on, out of what ten people answered: 0.3, 0.6, 0.9 for answers of 1, 2, 3 of them, then 1.0.

    Answers are counted as written and looked up in a normalised vocabulary, so that "The dog" is never a target
    (dandelin/ViLT vilt/utils/write_vqa.py, hengyuan-hu/bottom-up-attention-vqa tools/compute_softscore.py).
    """
    counts = Counter(answers)
    return {answer: SOFT_TARGETS[min(times, len(SOFT_TARGETS) - 1)] for answer, times in counts.items()}


def vqa_vocabulary(most_frequent: Iterable[str], least: int = LEAST) -> AnswerVocabulary:
    """VQA's vocabulary: normalised answers that are a question's most frequent one at least so many times.

    Args:
        most_frequent: `multiple_choice_answer` of every question of train, then of val.

    The order is that of their first question, as ViLT and METER have it.

    Raises:
        DataError: there is no such answer.
    """
    counts = Counter(vocabulary_form(answer) for answer in most_frequent)
    return AnswerVocabulary(tuple(answer for answer, times in counts.items() if times >= least))


def gqa_vocabulary(answers: Iterable[str]) -> AnswerVocabulary:
    """GQA's: every answer of train and val, in the order of their first question."""
    return AnswerVocabulary(tuple(dict.fromkeys(answers)))


def vocabulary_form(answer: str) -> str:
    """An answer as VQA's vocabulary has it: as the evaluation does it, then without the commas that are left."""
    return normalise(answer).replace(",", "")


def _listed(content: Any) -> list[str]:
    """The answers of any published form; raises what odd content leads to."""
    if isinstance(content, list) and len(content) == 2 and all(isinstance(half, dict) for half in content):
        content = content[0]  # MCAN: numbers by answer, then answers by number
    if isinstance(content, dict):
        return _by_number(content)
    if not isinstance(content, list):
        raise ValueError(f"it is a {type(content).__name__}")
    answers = [answer["ans"] if isinstance(answer, dict) else answer for answer in content]
    if not all(isinstance(answer, str) for answer in answers):
        raise ValueError("an answer is no text")
    return answers


def _by_number(content: Mapping[str, Any]) -> list[str]:
    if all(isinstance(answer, str) for answer in content.values()):
        pairs = {int(number): answer for number, answer in content.items()}
    else:
        pairs = {int(number): answer for answer, number in content.items()}
    if sorted(pairs) != list(range(len(content))):
        raise ValueError(f"its numbers are not 0 to {len(content) - 1}")
    return [pairs[number] for number in range(len(content))]
