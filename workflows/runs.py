"""Runs of `triptych train` as their folders keep them: how they begin, what is known of them, how they ended."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from extractors import ConfigError
from extractors.configs import SHIPPED
from storage.places import open_place
from trainers.config import TrainConfig
from trainers.evaluate import FILE as PREDICTIONS
from trainers.loop import CONFIG, RunSummary
from trainers.models.checkpoints import LoadReport
from trainers.tasks.base import Prediction, Task
from workflows.recipes import RECIPES, Recipe, recipe_of
from workflows.recipes.base import RANDOM, extracting_with
from workflows.recipes.building import Run, kept_answers
from workflows.recipes.sources import Places
from workflows.recipes.starting import start, start_network, told
from workflows.recipes.tiny import tiny

if TYPE_CHECKING:
    from workflows.train import Train


def built(run: Run, source: str | None, network: str | None = None) -> tuple[nn.Module, Task, Task | None]:
    """Model, task and validation, the model with the weights that it starts from."""
    return run.build(partial(begin, run.recipe, source, network))


def begin(
    recipe: Recipe, source: str | None, network: str | None, model: nn.Module, answers: Sequence[str]
) -> LoadReport | None:
    """Give a model the weights that it starts from, and say which these are."""
    report, random = None, getattr(model, "network", None) is not None
    if source is not None:
        report = start(model, source, answers)
        random = random and any(name.startswith("network.") for name in report.missing)
        print(told(report))
    elif recipe.starts != RANDOM:
        print(f"starts from random weights; its paper starts from {recipe.starts} (--start)")
    if network is not None:
        print(f"its network starts from {network}, SHA-256 {start_network(model, network)}")
    elif random:
        print("its network starts from random weights (--start-network)")
    return report


@contextmanager
def threads_for(tiny: bool) -> Iterator[None]:
    """One thread for tiny twins while they run: two are not faster on an idle machine, since they wait for each other
    longer than they compute, and were 75 times slower on two cores of which another program had one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if tiny else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def about_of(name: str, run: Run, flags: Train) -> dict[str, Any]:
    """What `RUN/config.json` keeps beside the settings of the loop, so that `evaluate` finds all again."""
    begun = {"start": flags.start, "start_network": flags.start_network}
    facts = {"expected": run.recipe.expected, "source": run.recipe.source, **begun}
    places = {key: whole_path(value) for key, value in asdict(run.places).items()}
    return {"recipe": name, "tiny": flags.tiny, "visual": run.recipe.visual, "places": places, **facts}


def kept(out: str) -> Run:
    """The run whose config lies in a folder.

    Raises:
        ConfigError: there is none.
    """
    try:
        content = json.loads(open_place(out).read(CONFIG))
        if "recipe" not in content:
            raise ValueError("it says no recipe, as runs of `triptych compare` and of your own scripts do not")
        recipe = replace(recipe_of(content["recipe"]), visual=content["visual"])
        network = content.get("start_network")
        recipe = tiny(recipe, shipped=network == SHIPPED) if content["tiny"] else recipe
        recipe = extracting_with(recipe, network)
        config = TrainConfig.from_json(content["train"])
        places = Places(**content["places"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{out} holds no run of `triptych train` ({error}); name its --out folder.") from error
    recipe = replace(recipe, train=replace(config, out=out))
    return Run(recipe, places, vocabulary=kept_answers(out))


def answers_of(out: str, recipe: Recipe) -> list[Prediction]:
    """The predictions of a run of VCR's answers, newest: of its training's end, or of `triptych evaluate`.

    Args:
        recipe: of the run that it is scored beside.

    Raises:
        ConfigError: it is no such run, or has none yet; or what is beside it are no rationales.
    """
    tasks = (recipe.task, kept(out).recipe.task)
    if tasks != ("vcr-rationale", "vcr-answer"):
        raise ConfigError(f"--beside scores a run of vcr-rationale with one of vcr-answer, not {' with '.join(tasks)}.")
    try:
        found: list[Prediction] = json.loads(open_place(out).read(PREDICTIONS))
    except FileNotFoundError as error:
        raise ConfigError(f"--beside {out} has no predictions yet; run `triptych evaluate {out}` first.") from error
    return found


def listed() -> Iterator[tuple[str, Recipe]]:
    """All recipes by name."""
    for name, recipe in RECIPES.items():
        yield name, recipe()


def ended(summary: RunSummary, recipe: Recipe) -> str:
    """How a run ended, in a few lines."""
    losses = "  ".join(f"{name} {value:.4f}" for name, value in summary.losses.items())
    scores = "  ".join(f"{name} {value:.2f}" for name, value in summary.scores.items())
    lines = [f"step {summary.step} of {summary.total}  {losses}", f"scores  {scores}" if scores else ""]
    lines += [f"paper   {recipe.expected}", f"weights {summary.checkpoint}"]
    return "\n".join(line for line in lines if line)


def scored(step: int, scores: Mapping[str, float], recipe: Recipe) -> str:
    """Scores as people read them."""
    lines = [f"{name:<24} {value:.2f}" for name, value in scores.items()]
    return "\n".join([f"step {step}", *lines, f"paper: {recipe.expected}"])


def whole_path(place: str | None) -> str | None:
    """A path that means the same wherever it is read; addresses, names and lists as they are."""
    return str(Path(place).absolute()) if place is not None and Path(place).exists() else place
