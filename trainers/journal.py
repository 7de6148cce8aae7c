"""What a run knows of itself since its last line of metrics, and where it says so: metrics and progress, on rank 0."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from storage.places import Place
from trainers.config import TrainConfig
from trainers.optim import factor
from trainers.progress import Metrics, TrainProgress

NORM = ""  # the gradient's norm among the numbers of an update; the others are losses


@dataclass
class Window:
    """Sums over the updates since the last line of metrics."""

    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0


class Journal:
    """The numbers of a run; all ranks keep them, one tells.

    losses   means of the last line of metrics
    scores   of the last evaluation
    best     the best score by the task's metric, and the update after which it was
    seconds  that updates took in this process, `waited` of them for batches
    """

    def __init__(self, config: TrainConfig, examples: int, device: torch.device, tells: bool) -> None:
        self.config, self.examples, self.device = config, examples, device
        self.total = config.total_steps(examples)
        self.window = Window()
        self.losses: dict[str, float] = {}
        self.scores: dict[str, float] = {}
        self.best: tuple[float, int] | None = None
        self.seconds = self.waited = 0.0
        self.progress = TrainProgress() if tells else None
        self.metrics: Metrics | None = None

    @property
    def best_step(self) -> int | None:
        return self.best[1] if self.best else None

    def open(self, place: Place, step: int) -> None:
        """Begin to tell, of a run that stands at a step."""
        if self.progress:
            self.metrics = Metrics(place, step)
            self.progress.started(step, self.total)

    def close(self) -> None:
        if self.progress:
            self.progress.stopped()
        if self.metrics:
            self.metrics.close()

    def flush(self) -> None:
        """What was told survives."""
        if self.metrics:
            self.metrics.flush()

    def say(self, text: str) -> None:
        if self.progress:
            self.progress.said(text)

    def add(self, numbers: Mapping[str, float]) -> None:
        """Take in one update's losses, and the norm of its gradient."""
        for name, value in numbers.items():
            self.window.sums[name] = self.window.sums.get(name, 0.0) + value
        self.window.steps += 1

    def spend(self, seconds: float, waited: float) -> None:
        """An update took so long, so much of it waiting for its batches."""
        self.seconds += seconds
        self.waited += waited
        self.window.seconds += seconds
        self.window.waited += waited

    def log(self, step: int) -> None:
        """Tell of the updates since the last time."""
        window, self.window = self.window, Window()
        means = {name: value / window.steps for name, value in window.sums.items()}
        norm = means.pop(NORM)
        self.losses, seconds = means, max(window.seconds, 1e-9)
        line = {
            "step": step,
            "epoch": step * self.config.batch_size / self.examples,
            "loss": sum(means.values()),
            "losses": means,
            "grad_norm": norm,
            "lr": self.config.lr * factor(self.config, step - 1, self.total),
            "images_per_s": window.steps * self.config.batch_size / seconds,
            "data_wait": window.waited / seconds,
            "memory_gb": _peak_memory(self.device) / 1e9,
        }
        if self.progress and self.metrics:
            self.metrics.add(line)
            self.progress.advanced(line)

    def score(self, step: int, scores: dict[str, float], metric: str) -> None:
        """Tell of an evaluation, and remember it where it is the best."""
        self.scores = scores
        if self.best is None or scores[metric] > self.best[0]:
            self.best = (scores[metric], step)
        if self.metrics:
            self.metrics.add({"step": step, "scores": scores})
        self.say(f"step {step}  " + "  ".join(f"{name} {value:.2f}" for name, value in scores.items()))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, as plain JSON values."""
        return {"window": asdict(self.window), "losses": self.losses, "scores": self.scores, "best": self.best}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.window = Window(**state["window"])
        self.losses, self.scores = dict(state["losses"]), dict(state["scores"])
        self.best = None if state["best"] is None else (state["best"][0], state["best"][1])


def _peak_memory(device: torch.device) -> int:
    """Bytes: of a GPU what torch took of it at most, else of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
