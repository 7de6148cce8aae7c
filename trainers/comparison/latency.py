"""How long one example takes from its image, or from the cache, to its answer, and in which part of the model.

    visual       reading the image or its features, all that makes tokens of them, and looking up the words
    transformer  where text and image meet: VL-BERT's, Grid-VLP's and ViLT's encoder; METER's text encoder, fusion and
                 decoder
    heads        poolers and the task's head
    rest         cutting the text into tokens and laying them out

These are the parts of figure 1 of ViLT (Kim et al., ICML 2021), whose "visual embedding" is our visual part.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from extractors.base import Extractor
from trainers.batch import from_images
from trainers.config import TrainConfig
from trainers.device import Mover
from trainers.evaluate import autocast
from trainers.machine import wait
from trainers.models.meter import Meter
from trainers.tasks.common import OnSplit
from trainers.tasks.retrieval import Retrieval
from trainers.visual import Chances, Images, Looked, Visual, read

EXAMPLES, WARMUP, SECONDS = 20, 3, 60.0  # that are timed, that come before, and after which no more are
Spent = dict[str, float]  # seconds by part
POOLERS = ("pooler", "text_pooler", "image_pooler")


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one example; its parts add up to `total`."""

    visual: float
    transformer: float
    heads: float
    rest: float

    @property
    def total(self) -> float:
        return self.visual + self.transformer + self.heads + self.rest


class Extracted:
    """What an extractor makes of images as they are asked for: a store's features, without the store.

    Args:
        images: by key.
        rows: at most so many boxes of each image.
    """

    def __init__(self, images: Images, extractor: Extractor, rows: int | None = None) -> None:
        self.images, self.extractor, self.rows = images, extractor, rows

    def missing(self, keys: Sequence[str]) -> list[str]:
        return [key for key in keys if key not in self.images]

    def look(self, keys: Sequence[str], chances: Chances | None = None) -> Looked:
        images = [read(self.images, key) for key in keys]
        sizes = torch.from_numpy(np.array([image.shape[:2] for image in images], np.float32))
        return Looked(from_images(self.extractor, images, self.rows), sizes)


class _Timed:
    """A visual input whose looks are timed."""

    def __init__(self, visual: Visual, spent: Spent, device: torch.device) -> None:
        self.visual, self.spent, self.device = visual, spent, device

    def missing(self, keys: Sequence[str]) -> list[str]:
        return self.visual.missing(keys)

    def look(self, keys: Sequence[str], chances: Chances | None = None) -> Looked:
        with _timing(self.spent, "look", self.device):
            return self.visual.look(keys, chances)


def latency(model: nn.Module, task: OnSplit, config: TrainConfig, visual: Visual | None = None) -> Latency:
    """The median over the first examples of a split, one at a time, each part by itself; images are read before.

    An image of a retrieval task goes with one of its texts. Of `config`, the number type counts; the model stays where
    it is, and in the mode that it was in.

    Args:
        visual: where images come from, instead of where the task has them from.
    """
    device = next(model.parameters()).device
    found: list[Spent] = []
    began, training = time.perf_counter(), model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(config, device):
            for number in range(min(len(task), EXAMPLES)):
                only = alone(task, number, visual)
                rounds = WARMUP if not found else 1  # the rounds before warm the file system's cache, too
                found.append([_once(model, only, device) for _ in range(rounds + 1)][-1])
                if time.perf_counter() - began > SECONDS:
                    break
    finally:
        model.train(training)
    return Latency(*(1e3 * statistics.median(each[part.name] for each in found) for part in fields(Latency)))


def alone(task: OnSplit, number: int, visual: Visual | None = None) -> OnSplit:
    """A task with one of its examples; of a retrieval task, with one of its texts."""
    only, example = copy.copy(task), task.split.examples[number]
    if isinstance(task, Retrieval):
        only.__dict__.pop("_texts", None)
        example = replace(example, texts=example.texts[:1])
    only.split = replace(task.split, examples=[example])
    only.visual = visual or task.visual
    return only


def _once(model: nn.Module, task: OnSplit, device: torch.device) -> Spent:
    """What one example took."""
    spent: Spent = defaultdict(float)
    task = copy.copy(task)
    task.visual = _Timed(task.visual, spent, device)
    with _hooked(model, spent, device):
        with _timing(spent, "before", device):
            batches = Mover(device)(task.collate([0], 0))
        with _timing(spent, "model", device):
            task.predict(model, batches)
    embedding = spent["model"] - spent["transformer"] - spent["heads"]
    return spent | {"visual": spent["look"] + embedding, "rest": spent["before"] - spent["look"]}


@contextmanager
def _hooked(model: nn.Module, spent: Spent, device: torch.device) -> Iterator[None]:
    """Time a model's parts while the block runs."""
    handles, starts = [], dict[nn.Module, float]()

    def start(module: nn.Module, _: Any) -> None:
        wait(device)
        starts[module] = time.perf_counter()

    def stop(name: str, module: nn.Module) -> None:
        wait(device)
        spent[name] += time.perf_counter() - starts[module]

    for name, modules in parts_of(model).items():
        for module in modules:
            handles.append(module.register_forward_pre_hook(start))
            handles.append(module.register_forward_hook(lambda module, *_, name=name: stop(name, module)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def parts_of(model: Any) -> dict[str, list[nn.Module]]:
    """The modules whose passes are the transformer's and the heads'; none of them runs inside another one."""
    transformer = [model.text, model.fusion] if isinstance(model, Meter) else [model.encoder]
    if isinstance(model, Meter) and model.decoder is not None:
        transformer += list(model.decoder.layers)  # it is entered by its methods, which no hook sees
    heads = [*model.heads.values(), *(getattr(model, name, None) for name in POOLERS)]
    return {"transformer": transformer, "heads": [each for each in heads if each is not None]}


@contextmanager
def _timing(spent: Spent, name: str, device: torch.device) -> Iterator[None]:
    wait(device)
    began = time.perf_counter()
    yield
    wait(device)
    spent[name] += time.perf_counter() - began
