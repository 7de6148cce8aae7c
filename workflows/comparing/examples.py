"""What the lines of a comparison answered differently, out of the predictions that their runs kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from storage import RegionRecord, open_store
from trainers.comparison.examples import Picture, Shown, disagreeing, picture_of, shown
from trainers.comparison.lines import table_name
from trainers.comparison.result import CellResult
from trainers.data import load
from trainers.data.keys import matched
from trainers.tasks.base import Prediction
from workflows.comparing.cells import Cell
from workflows.comparing.features import features_of
from workflows.comparing.looking import with_looks
from workflows.comparing.measuring import predictions_of
from workflows.comparing.running import Setting
from workflows.recipes.sources import SourceImages, find_images, group_of

LINES = 2  # of a table, at least, for a disagreement


def disagreements(cells: Sequence[Cell], results: Sequence[CellResult], setting: Setting) -> list[Shown]:
    """Of each table the examples on which its lines, by their first seed, disagree most."""
    tables: dict[str, dict[str, Cell]] = {}
    for cell, result in zip(cells, results, strict=True):
        if result.error is None and result.metric is not None:
            tables.setdefault(table_name(result.task, result.data), {}).setdefault(cell.label, cell)
    return [each for name, lines in tables.items() if len(lines) >= LINES for each in _of_table(name, lines, setting)]


def _of_table(name: str, lines: Mapping[str, Cell], setting: Setting) -> list[Shown]:
    first = next(iter(lines.values()))
    recipe = first.recipe
    examples = load(recipe.data[0], recipe.validation, setting.annotations).examples
    answers: dict[str, Sequence[Prediction]] = {
        label: predictions_of(str(setting.folder(cell) / "run")) for label, cell in lines.items()
    }
    numbers = disagreeing(examples, answers)
    keys = [key for number in numbers for key in examples[number].images]
    pictures = _pictures(keys, list(lines.values()), setting)
    found = [
        shown(name, examples[number], {label: given[number] for label, given in answers.items()}, pictures.__getitem__)
        for number in numbers
    ]
    texts = [each.texts[0] for each in examples]
    return with_looks(found, [examples[number] for number in numbers], texts, lines, setting)


def _pictures(keys: Sequence[str], cells: Sequence[Cell], setting: Setting) -> dict[str, Picture]:
    """The images of keys, with boxes where one of the cells reads regions."""
    if not keys:
        return {}
    group = group_of(cells[0].recipe.data[0])
    images: SourceImages = find_images(setting.run_of(cells[0]).places, group).called(keys)
    regions = [each for cell in cells if (each := features_of(cell.recipe)) and each.view == "regions"]
    store = open_store(Path(regions[0].folder(setting.out)) / group) if regions else None
    names = {} if store is None else matched(keys, store)
    found = {}
    for key in dict.fromkeys(keys):
        record = store[names[key]] if store is not None and key in names else None
        vocabulary = {} if store is None else store.vocabulary
        found[key] = picture_of(images.read(key), record if isinstance(record, RegionRecord) else None, vocabulary)
    return found
