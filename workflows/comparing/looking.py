"""Where the lines of a comparison look, in examples on which they disagree: what `triptych explain` shows of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from storage import TriptychError
from trainers.checkpoint import load_weights
from trainers.comparison.examples import LOOK, Look, Shown, telling_word, uri_of
from trainers.data.base import Example
from workflows.comparing.cells import Cell
from workflows.comparing.running import Setting
from workflows.looking import Opened, of_one_image

LOOKED = 3  # examples of a table: a model of each line is loaded and asked


def with_looks(
    shown: Sequence[Shown], asked: Sequence[Example], texts: Sequence[str], lines: Mapping[str, Cell], setting: Setting
) -> list[Shown]:
    """The first examples of a table with what each line looks at when it reads the word that tells most.

    Args:
        shown, asked: the examples, as the page shows them and as their data set has them.
        texts: of all examples, by which the word is chosen.
        lines: a cell of each.
    """
    looked = min(LOOKED, len(shown)) if all(of_one_image(cell.recipe.task) for cell in lines.values()) else 0
    words = [telling_word(each.text, texts) for each in shown[:looked]]
    questions = list(zip(asked, words, strict=False))
    looks = {label: _looks(cell, questions, setting) for label, cell in lines.items()} if questions else {}
    found = []
    for row, (each, word) in enumerate(zip(shown, words, strict=False)):
        answers = tuple(replace(said, look=looks[said.label][row]) for said in each.answers)
        found.append(replace(each, answers=answers, word=word))
    return [*found, *shown[looked:]]


def _looks(cell: Cell, questions: Sequence[tuple[Example, str]], setting: Setting) -> list[Look | str]:
    """Of each example the pictures, or a line that says why there are none: that is this model's, and no failure."""
    run = setting.run_of(cell)
    opened = Opened(run)
    load_weights(opened.model, run.recipe.train.out)
    found: list[Look | str] = []
    for example, word in questions:
        try:
            seen = opened.at(example.images[0], word, example.texts[0])
        except TriptychError as error:
            found.append(str(error))
            continue
        attention, gradcam = (uri_of(each, LOOK) for each in seen.pictures().values())
        found.append(Look(seen.chosen, attention, gradcam))
    return found
