"""The weights that a run starts from: a published checkpoint, or another run of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from extractors import ConfigError
from trainers.checkpoint import Checkpoints
from trainers.models.checkpoints import OURS, LoadReport, Rules, fill
from trainers.models.grid_vlp import GridVLP
from trainers.models.meter import Meter
from trainers.models.published import start_vilt, start_vilt_from_vit, start_vl_bert, start_vl_bert_from_bert
from trainers.models.published_grid import start_grid_vlp_from_bert
from trainers.models.published_meter import start_meter
from trainers.models.vilt import ViLT
from trainers.models.vl_bert import VLBert
from trainers.tasks.probes import ImageProbe, TextProbe
from workflows.recipes.base import Recipe

WEIGHTS = "model.safetensors"

Start = Callable[[Any, Path], LoadReport]


def start(model: nn.Module, recipe: Recipe, source: str) -> LoadReport:
    """Put the weights into a model that it starts from.

    Args:
        source: a checkpoint of what `recipe.starts` names, a run of it, or its `model.safetensors`.

    Raises:
        ConfigError: there is no such file, or no checkpoint in the run.
        WeightsError: it does not fit the model.
    """
    first, later = _STARTS[type(model)]
    return (first if recipe.task == "pretraining" else later)(model, _file(Path(source).expanduser()))


def _file(source: Path) -> Path:
    if source.is_file():
        return source
    checkpoints = Checkpoints(str(source)) if source.is_dir() else None
    steps = checkpoints.steps() if checkpoints else []
    if checkpoints is None or not steps:
        raise ConfigError(f"--start {source} is no file and has no checkpoints; name a checkpoint or a run of ours.")
    return Path(checkpoints.path(steps[-1])) / WEIGHTS


def _ours(model: nn.Module, source: Path) -> LoadReport:
    """A model of ours of another task."""
    return fill(model, source, OURS, (r"^heads\.",), (r"^heads\.",))


def _encoder(name: str) -> Start:
    """One encoder of a METER of ours."""
    return lambda model, source: fill(model, source, Rules(((rf"^{name}\.", "tower."),)), (r"^classifier\.",), (r"",))


_STARTS: dict[type, tuple[Start, Start]] = {
    VLBert: (start_vl_bert_from_bert, start_vl_bert),
    GridVLP: (start_grid_vlp_from_bert, _ours),
    ViLT: (start_vilt_from_vit, start_vilt),
    Meter: (_ours, start_meter),
    ImageProbe: (_encoder("image"), _encoder("image")),
    TextProbe: (_encoder("text"), _encoder("text")),
}
