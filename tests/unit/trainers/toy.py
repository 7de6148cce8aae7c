"""A small task for the training loop: tell from a grid which of four patterns it shows, and guess hidden words.

As a script it trains a Grid-VLP of two layers on it: `python -m tests.unit.trainers.toy JSON`, with the settings of
`TrainConfig`, and besides `resume`, `dropout`, `slow` (seconds a batch takes to load) and `examples`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.batch import Batch, Cells, Text
from trainers.config import TrainConfig
from trainers.loop import RunSummary, resume, train
from trainers.models.grid_vlp import GridVLP, GridVLPConfig
from trainers.models.layers import LayerConfig
from trainers.tasks.base import Batches, Prediction, generator

WORDS, CELLS, WIDTH, PATTERNS, HIDDEN = 5, 4, 6, 4, 3


class Toy:
    """Example n shows pattern n % 4, and has 2 to 5 words."""

    metric = "accuracy"

    def __init__(self, examples: int = 40, slow: float = 0.0, bad: Sequence[int] = ()) -> None:
        self.examples, self.slow, self.bad = examples, slow, bad
        self.asked: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.examples

    def collate(self, numbers: Sequence[int], epoch: int) -> Batches:
        time.sleep(self.slow)
        self.asked += [(epoch, number) for number in numbers]
        ids, words, cells, hidden = zip(*(self._example(number, epoch) for number in numbers), strict=True)
        mask = torch.arange(WORDS) < torch.tensor(words)[:, None]
        labels = torch.tensor([number % PATTERNS for number in numbers])
        targets = {"pattern": labels, "words": torch.stack(ids), "hidden": torch.stack(hidden) & mask}
        shown = torch.where(targets["hidden"], HIDDEN, targets["words"])
        return {"toy": Batch(Text(shown, mask), Cells(torch.stack(cells)), targets=targets)}

    def _example(self, number: int, epoch: int) -> tuple[Tensor, int, Tensor, Tensor]:
        chance = generator(1, epoch, number)
        ids = torch.from_numpy(generator(2, 0, number).integers(4, 20, WORDS))
        cells = torch.from_numpy(chance.normal(size=(CELLS, WIDTH))).float() * 0.3
        cells[:, number % PATTERNS] += 2.0
        if number in self.bad:
            cells[0, 0] = float("nan")
        return ids, 2 + number % 4, cells, torch.from_numpy(chance.random(WORDS) < 0.4)

    def counts(self, batches: Batches) -> dict[str, float]:
        batch = batches["toy"]
        return {"pattern": len(batch), "words": float(batch.targets["hidden"].sum())}

    def losses(self, model: nn.Module, batches: Batches) -> dict[str, Tensor]:
        batch = batches["toy"]
        states = model(batch)
        logits = model.heads["vqa"](model.pooled(states))
        words = model.heads["mlm"](states.text, model.text.word.weight)
        hidden = batch.targets["hidden"].flatten()
        of_words = F.cross_entropy(words.flatten(0, -2).float(), batch.targets["words"].flatten(), reduction="none")
        return {
            "pattern": F.cross_entropy(logits.float(), batch.targets["pattern"]),
            "words": (of_words * hidden).sum() / hidden.sum().clamp(min=1),
        }

    def predict(self, model: nn.Module, batches: Batches) -> list[Prediction]:
        batch = batches["toy"]
        best = model.heads["vqa"](model.pooled(model(batch))).argmax(1).tolist()
        return [
            {"id": id, "answer": answer} for id, answer in zip(batch.targets["pattern"].tolist(), best, strict=True)
        ]

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        right = sum(each["id"] == each["answer"] for each in predictions)
        return {"accuracy": 100 * right / len(predictions)}

    def write(self, predictions: Sequence[Prediction], path: Path) -> None:
        path.write_text(json.dumps(list(predictions)))


def toy_model(dropout: float = 0.1) -> GridVLP:
    """A Grid-VLP of two layers; one of its heads gets no gradients."""
    torch.manual_seed(0)
    layer = LayerConfig(dim=16, heads=2, hidden=24, dropout=dropout, attention_dropout=dropout)
    heads = ("mlm", "itm", "vqa")
    return GridVLP(
        GridVLPConfig(layer, 2, vocabulary=20, positions=8, feature_dim=WIDTH, heads=heads, vqa_answers=PATTERNS)
    )


def toy_config(out: Path | str, **changes: Any) -> TrainConfig:
    """A short run on the CPU."""
    usual: dict[str, Any] = {"steps": 12, "batch_size": 8, "lr": 3e-3, "log_every": 1, "save_every": 4, "device": "cpu"}
    return TrainConfig(str(out), **(usual | changes))


def told(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics of a run, without what clocks and memory say."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_s", "data_wait", "memory_gb")} for line in lines]


def toy_run(settings: dict[str, Any]) -> RunSummary:
    """Train as the settings say."""
    again, dropout = settings.pop("resume", False), settings.pop("dropout", 0.1)
    task = Toy(settings.pop("examples", 40), settings.pop("slow", 0.0))
    return (resume if again else train)(toy_config(**settings), toy_model(dropout), task, Toy(10))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(vars(toy_run(json.loads(sys.argv[1])))))
