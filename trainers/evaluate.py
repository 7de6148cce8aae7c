"""Running a model over a whole split, each example once, however many ranks share it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from storage.places import open_place
from trainers import ranks
from trainers.config import TrainConfig
from trainers.device import Mover
from trainers.loading import load
from trainers.order import chunks
from trainers.tasks.base import Prediction, Task

FILE = "predictions.json"


@dataclass(frozen=True)
class Evaluation:
    """What came out of a split.

    scores       metrics by name
    predictions  one an example, in order; on rank 0 only
    """

    scores: dict[str, float]
    predictions: Sequence[Prediction]


def evaluate(model: nn.Module, task: Task, config: TrainConfig) -> Evaluation:
    """Predict and score a split; of `config`, batch size, number type, device, threads and folder count.

    Rank 0 writes `RUN/predictions.json`, a list with one prediction an example; `task.write` has the official format.
    The model is afterwards in the mode it was in.

    Raises:
        ConfigError: the device is not there.
        TriptychError: what a task says of its data.
    """
    device = ranks.device_of(config.device)
    with ranks.together(device):
        model.to(device)
        return evaluate_here(model, task, config, device)


def evaluate_here(model: nn.Module, task: Task, config: TrainConfig, device: torch.device) -> Evaluation:
    """As `evaluate`, for a model that is on the device, in a group of ranks that stands."""
    shares = ranks.gathered(_share(model, task, config, device))
    found: list[Prediction] = in_turn(shares)

    def scored() -> dict[str, float]:
        _require_each(len(task), found)
        place = open_place(config.out)
        place.make([""])
        place.write(FILE, json.dumps(found).encode())
        return task.score(found)

    return Evaluation(ranks.by_first(scored), found)


def _share(model: nn.Module, task: Task, config: TrainConfig, device: torch.device) -> list[Prediction]:
    """Predictions for every world-th example from this rank's on."""
    world, move = ranks.world(), Mover(device)
    numbers = list(range(ranks.rank(), len(task), world))
    cuts = ([cut] for cut in chunks(0, numbers, config.micro_batch or -(-config.batch_size // world)))
    training, found = model.training, list[Prediction]()
    model.eval()
    try:
        with torch.no_grad(), autocast(config, device):
            for [part] in load(task, cuts, config.workers, pin=device.type == "cuda"):
                predictions = task.predict(model, move(part.batches))
                _require_each(len(part.cut.numbers), predictions)
                found += predictions
    finally:
        model.train(training)
    return found


def in_turn(shares: Sequence[Sequence[Any]]) -> list[Any]:
    """The shares of all ranks in the order of the examples: share r has the examples r, r + world, ..."""
    longest = max(map(len, shares), default=0)
    return list(
        chain.from_iterable([share[place] for share in shares if place < len(share)] for place in range(longest))
    )


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """Matrix products in the run's number type."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16")


def _require_each(examples: int, predictions: Sequence[Prediction]) -> None:
    if len(predictions) != examples:
        raise ValueError(f"{len(predictions)} predictions for {examples} examples; a task's predict gives one for each")
