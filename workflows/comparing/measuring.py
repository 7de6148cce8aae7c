"""What is measured of a trained cell: its time and curve, its score, the cache's cost, the time of an answer."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from extractors import make_extractor
from extractors.base import Extractor
from extractors.configs import NetworkConfig
from storage.places import open_place
from trainers.comparison.blind import blind_score
from trainers.comparison.latency import Extracted, Latency, latency
from trainers.config import TrainConfig
from trainers.evaluate import FILE as PREDICTIONS
from trainers.loop import RunSummary
from trainers.progress import read_metrics
from trainers.tasks.common import OnSplit
from trainers.visual import Images, RegionPixels, Visual
from workflows.comparing.cells import Cell
from workflows.comparing.features import cost_of, features_of
from workflows.recipes import Recipe
from workflows.recipes.building import Run
from workflows.recipes.sources import find_images, group_of


def trained(config: TrainConfig, validation: Any) -> dict[str, Any]:
    """Time of training and its curve, from the lines of metrics: of all parts of a run that was gone on with."""
    lines = read_metrics(open_place(config.out))
    steps, seconds, curve, before = list[float](), 0.0, list[dict[str, Any]](), 0
    for line in lines:
        if "loss" in line:
            took = config.batch_size / line["images_per_s"]
            seconds += took * (line["step"] - before)
            before = line["step"]
            steps.append(1e3 * took)
            curve.append({"step": line["step"], "loss": line["loss"], "score": None})
        elif validation is not None:
            curve.append({"step": line["step"], "loss": None, "score": line["scores"][validation.metric]})
    return {"step_ms": statistics.median(steps), "training_hours": seconds / 3600, "curve": curve}


def scored(summary: RunSummary, config: TrainConfig, task: Any, validation: OnSplit) -> dict[str, Any]:
    """The score that training ended with, and what it would be without looking."""
    predictions = predictions_of(config.out)
    return {
        "metric": validation.metric,
        "score": summary.scores[validation.metric],
        "scores": summary.scores,
        "examples": len(validation),
        "blind": blind_score(validation, task.split.examples, predictions),
    }


def predictions_of(out: str) -> list[Mapping[str, Any]]:
    """The predictions that a run ended with."""
    found: list[Mapping[str, Any]] = json.loads(open_place(out).read(PREDICTIONS))
    return found


def cached(cell: Cell, run: Run, model: nn.Module, validation: OnSplit, out: str) -> dict[str, Any]:
    """What the cache costs, and how long an example takes with it and without."""
    config, features = run.recipe.train, features_of(cell.recipe)
    found: dict[str, Any] = {"extraction_ms": 0.0, "extraction_hours": 0.0, "feature_bytes": 0}
    known = [features_of(each.recipe) for each in cell.lineage]
    folders = dict.fromkeys(folder for each in known if each for folder in each.folders(out))
    if folders:
        cost = cost_of(list(folders))
        found |= {"images": cost.images, "extraction_ms": cost.ms, "extraction_hours": cost.hours}
        found |= {"feature_bytes": cost.bytes, "specs": cost.specs}
    if features is None:
        return found | _parts("pixels", latency(model, validation, config))
    extractor = _extractor(features.config, config.device)
    found["extractor_parameters"] = parameters_of(vars(extractor).values())
    if cell.recipe.visual == "store":
        found |= _parts("cache", latency(model, validation, config))
    images = find_images(run.places, group_of(run.recipe.data[0])).called(validation.split.images())
    return found | _parts("pixels", latency(model, validation, config, _unseen(run.recipe, images, extractor)))


def _unseen(recipe: Recipe, images: Images, extractor: Extractor) -> Visual:
    """Images of which nothing is cached: features are extracted as they are asked for, or VL-BERT's boxes are."""
    found = Extracted(images, extractor, recipe.boxes)
    return found if recipe.visual == "store" else RegionPixels(images, found, recipe.side, recipe.side * 5 // 3)


def _extractor(config: Any, device: str) -> Extractor:
    return make_extractor(replace(config, device=device) if isinstance(config, NetworkConfig) else config)


def _parts(source: str, found: Latency) -> dict[str, float]:
    return {f"{source}_{part}_ms": value for part, value in asdict(found).items()}


def parameters_of(parts: Iterable[Any]) -> int:
    """Numbers of all networks among some things, each once."""
    networks = [each for each in parts if isinstance(each, nn.Module)]
    return sum(each.numel() for each in {id(each): each for net in networks for each in net.parameters()}.values())
