"""The weights that a run starts from: a published checkpoint, or another run of ours; and those of its network.

What a file is, its names tell: BERT, a ViT, a published checkpoint of the model, or one of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from extractors import ConfigError
from extractors.weights import WeightsError, read_checkpoint
from trainers.checkpoint import PARTS, Checkpoints
from trainers.models.checkpoints import LoadReport, listed
from trainers.models.fast_rcnn import FastRCNN
from trainers.models.grid_vlp import GridNetwork, GridVLP
from trainers.models.meter import Meter
from trainers.models.published import (
    load_vl_bert_network,
    start_vilt,
    start_vilt_from_vit,
    start_vl_bert,
    start_vl_bert_from_bert,
)
from trainers.models.published_grid import load_grid_network, start_grid_vlp, start_grid_vlp_from_bert
from trainers.models.published_meter import start_encoder, start_meter
from trainers.models.vilt import ViLT
from trainers.models.vl_bert import VLBert
from trainers.tasks.probes import ImageProbe, TextProbe
from workflows.recipes.beginning import ANSWERING
from workflows.recipes.building import kept_answers

Start = Callable[[Any, Mapping[str, Tensor]], LoadReport]


def start(model: nn.Module, source: str, answers: Sequence[str] = ()) -> LoadReport:
    """Put the weights into a model that it starts from.

    Args:
        source: a checkpoint of the model or of what its paper starts from, or a run of ours; a file, or a run's folder
            or address.
        answers: of the model's head, in its order. A run of ours knows its own: where those are others, or in another
            order, each answer gets its own weights, and one that is new there keeps what the model has.

    Raises:
        ConfigError: there is no such file, or no checkpoint in the run.
        StoreError: the run's newest checkpoint is damaged.
        WeightsError: it does not fit the model.
    """
    tensors, changed = _read(source), list[str]()
    theirs = _answers_of(source)
    if theirs and answers and tuple(answers) != theirs:
        tensors, changed = _by_answer(model, tensors, theirs, answers)
    named = "\n".join(tensors)
    load = next(load for mark, load in _STARTS[type(model)] if re.search(mark, named, re.MULTILINE))
    try:
        report = load(model, tensors)
    except WeightsError as error:
        raise WeightsError(f"--start {source}: {error}") from error
    return replace(report, source=source, changed=(*report.changed, *changed))


def start_network(model: nn.Module, source: str) -> str:
    """Put weights into the network that a model sees pixels through; returns the SHA-256 of its tensors.

    Args:
        source: a file, a published name, or random:SEED, as of `extract --weights`.

    Raises:
        ConfigError: the model has no such network.
        WeightsError: they cannot be had, or do not fit.
    """
    network = getattr(model, "network", None)
    try:
        if isinstance(network, FastRCNN):
            return load_vl_bert_network(network, source)
        if isinstance(network, GridNetwork):
            return load_grid_network(network, source)
    except WeightsError as error:
        raise WeightsError(f"--start-network: {error}") from error
    raise ConfigError(
        f"--start-network {source}: this run has no convolutional network for pixels; leave it out, or choose "
        "--visual pixels of a VL-BERT, Grid-VLP or PixelBERT."
    )


def told(report: LoadReport) -> str:
    """What a model starts from, in one line: what is new in it, what of the file it has no use for."""
    parts = {"new": _parts(report.missing), "left out": _parts(report.unexpected), "changed": report.changed}
    rest = [f"; {what}: {listed(names)}" for what, names in parts.items() if names]
    return f"starts from {report.source}: {report.loaded} tensors" + "".join(rest)


def _parts(names: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))


def _read(source: str) -> Mapping[str, Tensor]:
    path = Path(source).expanduser()
    if path.is_file():
        return read_checkpoint(path).tensors or {}
    if path.is_dir() or "://" in source:
        run = Checkpoints(str(path) if path.is_dir() else source)
        steps = run.steps()
        if steps:
            return run.read(steps[-1], PARTS[:1]).model
    raise ConfigError(f"--start {source} is no file and has no checkpoints; name a checkpoint or a run of ours.")


def _answers_of(source: str) -> tuple[str, ...] | None:
    """The answers of the run that a folder, an address or a run's file of weights belongs to; None where there are
    none."""
    path = Path(source).expanduser().absolute()
    if not path.is_file():
        return kept_answers(str(path) if path.is_dir() else source)
    return kept_answers(str(path.parents[2])) if path.name == PARTS[0] and len(path.parents) > 2 else None


def _by_answer(
    model: Any, tensors: Mapping[str, Tensor], theirs: Sequence[str], ours: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """A file's heads of answers with the model's answers, and what was done."""
    found, wanted, changed = dict(tensors), model.state_dict(), list[str]()
    rows_of = {answer: row for row, answer in enumerate(theirs)}
    known = [row for row, answer in enumerate(ours) if answer in rows_of]
    rows = [rows_of[ours[row]] for row in known]
    for head in ANSWERING.keys() & set(model.heads):
        [last] = [name for name, each in model.named_modules() if each is list(model.heads[head].modules())[-1]]
        parts = {f"{last}.weight", f"{last}.bias"} & found.keys()
        for name in parts:
            own = wanted[name].clone()
            own[known] = found[name][rows].to(own)
            found[name] = own
        if parts:
            changed.append(f"heads.{head} has {len(known)} of its {len(ours)} answers from there, by their names")
    return found, changed


_ANY, _BERT, _TEXT = "", r"(^|\.)embeddings\.word_embeddings\.", r"^(\w+\.)*text(_embeddings)?\."
# Of each model, what a file may be: a name that tells it, and what loads it. The first that fits is taken.
_STARTS: dict[type, tuple[tuple[str, Start], ...]] = {
    VLBert: ((_BERT, start_vl_bert_from_bert), (_ANY, start_vl_bert)),
    GridVLP: ((_BERT, start_grid_vlp_from_bert), (_ANY, start_grid_vlp)),
    ViLT: ((_TEXT, start_vilt), (_ANY, start_vilt_from_vit)),
    Meter: ((_ANY, start_meter),),
    ImageProbe: ((_ANY, lambda model, tensors: start_encoder(model.tower, tensors)),),
    TextProbe: ((_ANY, lambda model, tensors: start_encoder(model.tower, tensors)),),
}
