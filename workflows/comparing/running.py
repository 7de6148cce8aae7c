"""One cell from its config to its row: build, train or go on, score, measure. A finished cell is read, not run.

    OUT/cells/<cell>/run           the run, as of `triptych train`
    OUT/cells/<cell>/result.json   its row, written last
    OUT/cells/<cell>/error.txt     where it went wrong, if it did

Where a cell was interrupted, its run goes on from the newest checkpoint.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config import EngineConfig
from storage import TriptychError
from trainers import machine
from trainers.checkpoint import Checkpoints
from trainers.comparison.result import CellResult, save, saved
from trainers.config import TrainConfig
from trainers.loop import resume
from trainers.tasks.common import SplitTask
from workflows.comparing.cells import Cell
from workflows.comparing.features import Features, extract, features_of
from workflows.comparing.measuring import cached, parameters_of, scored, trained
from workflows.progress import TerminalProgress
from workflows.recipes.building import LEAST, Run, kept_answers
from workflows.recipes.sources import Places
from workflows.runs import built, threads_for

CELLS = "cells"
POINTS, EVALUATIONS = 100, 5  # of the learning curves


@dataclass(frozen=True)
class Setting:
    """Where a comparison's data lies, and where it writes; all as on the command line, for any process."""

    out: str
    images: str
    annotations: str
    tokenizer: str | None = None
    device: str = "cpu"

    def folder(self, cell: Cell) -> Path:
        return Path(self.out) / CELLS / cell.id

    def run_of(self, cell: Cell) -> Run:
        """The run of a cell, in its folder."""
        features = features_of(cell.recipe)
        store = None if features is None else str(features.folder(self.out))
        out = str(self.folder(cell) / "run")
        recipe = replace(cell.recipe, train=replace(cell.recipe.train, out=out, device=self.device))
        least = 1 if cell.tiny else LEAST
        return Run(recipe, Places(store, self.images, self.annotations, self.tokenizer), least, kept_answers(out))


def extract_all(cells: Sequence[Cell], setting: Setting, engine: EngineConfig) -> dict[str, str]:
    """Fill the stores that unfinished cells read; those that cannot be filled, by name, with a line that says why.

    Args:
        engine: how; its `out` is the comparison's.
    """
    needed, lost = dict[str, Features](), {}
    for cell in cells:
        features = features_of(cell.recipe)
        if features is not None and saved(setting.folder(cell)) is None:
            groups = needed[features.name].groups if features.name in needed else ()
            needed[features.name] = replace(features, groups=tuple(dict.fromkeys((*groups, *features.groups))))
    for features in needed.values():
        try:
            extract(features, Path(setting.images), setting.device, engine, TerminalProgress())
        except TriptychError as error:
            lost[features.name] = f"its {features.view} cannot be extracted: {error}"
    return lost


def run_cell(cell: Cell, setting: Setting) -> CellResult:
    """A cell's row, by whatever is left to do for it; what goes wrong is told in the row.

    Raises:
        KeyboardInterrupt: it was asked to stop; what is trained is kept.
    """
    folder = setting.folder(cell)
    known = saved(folder)
    if known is not None:
        return replace(known, label=cell.label)
    try:
        with threads_for(cell.tiny):
            result = _finished(cell, setting)
    except Exception as error:  # whatever it is, it is one cell's; the others go on
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return failed(cell, _line(error))
    finally:
        machine.give_back(torch.device(setting.device))  # to the cells of other processes
    save(result, folder)
    (folder / "error.txt").unlink(missing_ok=True)
    return result


def failed(cell: Cell, error: str) -> CellResult:
    """The row of a cell that did not come to its end."""
    return replace(_head(cell), error=error)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _head(cell: Cell) -> CellResult:
    """What is known of a cell before it runs."""
    recipe, features = cell.recipe, features_of(cell.recipe)
    train = recipe.train
    return CellResult(
        cell=cell.id,
        label=cell.label,
        recipe=cell.name,
        model=cell.model,
        task=recipe.task,
        data="+".join(recipe.data),
        visual=recipe.visual,
        view=features.view if features and recipe.visual == "store" else "pixels",
        seed=train.seed,
        tiny=cell.tiny,
        steps=train.steps or 0,
        batch_size=train.batch_size,
        before=cell.before.id if cell.before else None,
        device=cell.device,
    )


def _finished(cell: Cell, setting: Setting) -> CellResult:
    """Train a cell to its end and measure it.

    Raises:
        TriptychError: what `triptych train` raises, or its pre-training has not come to its end.
    """
    start = cell.start if cell.before is None else _start(cell.before, setting)
    seen_before = cell.before is not None and cell.before.recipe.visual == "pixels"  # its weights are with the others
    network = cell.network if cell.recipe.visual == "pixels" and not seen_before else None
    run = setting.run_of(cell)
    resumed = bool(Checkpoints(run.recipe.train.out).steps())
    model, task, validation = run.build() if resumed else built(run, start, network)
    config = told_often(run.recipe.train, len(task))
    before = _held(model, setting.device)
    summary = resume(config, model, task, validation, {"cell": cell.id, "label": cell.label})
    if summary.interrupted:
        raise KeyboardInterrupt
    peak = machine.peak_gib(torch.device(setting.device)) - before
    result = replace(
        _head(cell),
        steps=summary.total,
        parameters=parameters_of([model]),
        peak_bytes=round(max(0.0, peak) * 2**30),
        hardware=machine.hardware(),
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        **trained(config, validation),
        pretraining_hours=_pretraining(cell, setting),
    )
    if not isinstance(validation, SplitTask):
        return result
    asked: Any = validation
    result = replace(result, **scored(summary, config, task, asked))
    return replace(result, **cached(cell, run, model, asked, setting.out))


def _held(model: nn.Module, name: str) -> float:
    """GiB that are held before training, the model's weights left out; the peak is counted from now on."""
    device = torch.device(name)
    machine.give_back(device)
    machine.reset_peak(device)
    weights = sum(each.nbytes for each in (*model.parameters(), *model.buffers()) if each.device.type == device.type)
    return machine.held_gib(device) - weights / 2**30


def _start(before: Cell, setting: Setting) -> str:
    """Where the weights of a pre-training lie."""
    if saved(setting.folder(before)) is None:
        raise TriptychError(f"what it starts from ({_head(before).called}) is not finished.")
    return str(setting.folder(before) / "run")


def told_often(config: TrainConfig, examples: int) -> TrainConfig:
    """A run's settings with enough lines of metrics, evaluations and checkpoints for curves, and for going on.
    Evaluations are as often as the settings say, if they do."""
    total = config.total_steps(examples)
    part = max(1, total // EVALUATIONS)
    evaluate_every = config.evaluate_every or part
    return replace(config, log_every=max(1, total // POINTS), evaluate_every=evaluate_every, save_every=min(part, 1000))


def _pretraining(cell: Cell, setting: Setting) -> float | None:
    """Hours of all that a cell starts from; 0 where nothing was pre-trained."""
    befores = [saved(setting.folder(each)) for each in cell.lineage[1:]]
    hours = [each.training_hours for each in befores if each and each.training_hours is not None]
    return math.fsum(hours) if len(hours) == len(befores) else None
