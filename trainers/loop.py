"""The training loop: one for all models and tasks, alone or as one of several ranks.

Chance. Before each update torch's generators are seeded from seed, step and rank, and examples draw theirs from seed,
epoch and number (`trainers/tasks/base.py`): where a run is interrupted leaves no trace in it. On a CPU in float32 the
losses of a run that was killed and went on are those of one that was not, bit for bit.

Ranks. Losses and gradients of an update are means over the global batch, however it is cut into ranks' shares and
accumulated parts. They are equal up to the order of additions, which rounds otherwise, and up to dropout, which each
rank draws for itself.

Looking at losses. They are read one update late, when the device has the next one to do, so that it never stands idle
for a look. A loss that is not finite stops the run before anything of it is saved.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from storage.errors import TriptychError
from trainers import ranks
from trainers.checkpoint import FOLDER, Checkpoints, Saved
from trainers.config import TrainConfig
from trainers.device import Late, Mover, sent
from trainers.evaluate import autocast, evaluate_here
from trainers.journal import NORM, Journal
from trainers.loading import Loaded, load
from trainers.models.layers import Encoder
from trainers.optim import Optimisers, factor
from trainers.order import Order
from trainers.ranks import EveryRankError
from trainers.tasks.base import Batches, Task

CONFIG = "config.json"


class DivergedError(EveryRankError):
    """A loss or a gradient is no longer a number."""


@dataclass(frozen=True)
class RunSummary:
    """How a run ended.

    step         updates done, of `total`
    interrupted  whether it was asked to stop; `resume` goes on
    losses       means of the last line of metrics, by name
    scores       of the last evaluation; best_step is the one with the best
    checkpoint   where the last one's tensors lie: a folder with `model.safetensors`
    seconds      of this process, of the updates alone
    data_wait    share of them in which the loop waited for batches
    """

    step: int
    total: int
    interrupted: bool
    losses: dict[str, float]
    scores: dict[str, float]
    best_step: int | None
    checkpoint: str
    seconds: float
    data_wait: float


def train(
    config: TrainConfig, model: nn.Module, task: Task, validation: Task | None = None, about: Mapping[str, Any] = {}
) -> RunSummary:
    """Train a model on a task, evaluating on another split's.

    Args:
        about: more that `RUN/config.json` keeps, as a recipe's settings; JSON-like.

    Raises:
        TriptychError: there is a run in `config.out` already, or what `resume` says.
    """
    with ranks.together(ranks.device_of(config.device)):
        ranks.by_first(lambda: require_new(config.out))
        return _Run(config, model, task, validation).go(about)


def resume(
    config: TrainConfig, model: nn.Module, task: Task, validation: Task | None = None, about: Mapping[str, Any] = {}
) -> RunSummary:
    """Go on with a run from its newest sound checkpoint; from the beginning where it was stopped before its first.

    Raises:
        TriptychError: the run had other settings, or its checkpoints are damaged.
        ConfigError: settings and model, or the machine, do not go together.
        DivergedError: a loss is not finite.
    """
    with ranks.together(ranks.device_of(config.device)):
        return _Run(config, model, task, validation).go(about)


def require_new(out: str) -> None:
    """Refuse to write a second run into a folder.

    Raises:
        TriptychError: there is a run already.
    """
    found = Checkpoints(out).steps()
    if found:
        raise TriptychError(
            f"{out} has a run up to step {found[-1]}; go on with it by --resume, or choose another --out."
        )


@dataclass(frozen=True)
class _Report:
    """One update's numbers, on their way from the device: losses over all ranks, wish to stop, gradient's norm."""

    step: int
    numbers: Late
    parts: list[tuple[Loaded, Tensor]]


class _Losses(nn.Module):
    """A task's losses as one module's output, so that DistributedDataParallel sees all that a model does for them."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batches: Batches) -> dict[str, Tensor]:
        return self.task.losses(self.model, batches)


class _Run:
    """One process's part in a run."""

    def __init__(self, config: TrainConfig, model: nn.Module, task: Task, validation: Task | None) -> None:
        self.config, self.task, self.validation = config, task, validation
        self.device, self.rank, self.world = ranks.device_of(config.device), ranks.rank(), ranks.world()
        self.model = model.to(self.device).train()
        self.order = Order(len(task), config.batch_size, config.seed)
        self.optimisers = Optimisers(model, config)
        self.checkpoints = Checkpoints(config.out)
        self.journal = Journal(config, len(task), self.device, tells=self.rank == 0)
        self.total, self.done = self.journal.total, 0
        self.names: list[str] = []
        self.asked = self.stopping = False
        self._saved: Saved | None = None
        prepare(model, config)

    # the run

    def go(self, about: Mapping[str, Any]) -> RunSummary:
        self._restore()
        self.module = self._wrapped()
        if self.rank == 0:
            self.checkpoints.place.make([FOLDER])
            content = {"train": asdict(self.config), "total_steps": self.total, **about}
            self.checkpoints.place.write(CONFIG, json.dumps(content, indent=1).encode())
        self.journal.open(self.checkpoints.place, self.done)
        try:
            with heeding_signals(self._ask_to_stop):
                self._steps()
        finally:
            self.journal.close()
        return self._summary()

    def _steps(self) -> None:
        """Update after update; looking at the losses of each as the next one runs."""
        cuts = (
            self.order.cuts(step, self.rank, self.world, self.config.micro_batch)
            for step in range(self.done, self.total)
        )
        with closing(load(self.task, cuts, self.config.workers, pin=self.device.type == "cuda")) as loading:
            self._walk(loading)
        if self.checkpoints.steps()[-1:] != [self.done]:
            self._save()

    def _walk(self, loading: Iterator[list[Loaded]]) -> None:
        move, last = Mover(self.device), None
        while self.done < self.total and not self.stopping:
            began = time.perf_counter()
            parts = next(loading)
            waited = time.perf_counter() - began
            report = self._update(parts, move)
            if last is not None:
                self._note(last)
            last, self.done = report, self.done + 1
            if self._is_due():
                self._note(last)
                last = None
            self.journal.spend(time.perf_counter() - began, waited)
            if last is None:
                self._tell()
        if last is not None:
            self._note(last)

    def _update(self, parts: list[Loaded], move: Mover) -> _Report:
        """One update of the weights."""
        torch.manual_seed(_seed(self.config.seed, self.done, self.rank))
        self._name_losses(parts)
        counts = sent([[part.counts[name] for name in self.names] for part in parts], self.device)
        totals = ranks.summed(counts.sum(0))
        weights = torch.where(totals > 0, counts / totals, 0.0)
        shares = [
            self._backward(move(part.batches), weight, last=number == len(parts) - 1)
            for number, (part, weight) in enumerate(zip(parts, weights, strict=True))
        ]
        norm = nn.utils.clip_grad_norm_(self.optimisers.parameters.values(), self.config.clip or math.inf)
        self.optimisers.step(factor(self.config, self.done, self.total))
        summed = ranks.summed(torch.cat([torch.stack(shares).sum(0), sent([self.asked], self.device)]))
        numbers = Late(torch.cat([summed, norm.detach().reshape(1)]))
        return _Report(self.done, numbers, list(zip(parts, shares, strict=True)))

    def _backward(self, batches: Batches, weights: Tensor, last: bool) -> Tensor:
        """Add a part's share of the gradients; returns its share of each loss. The last part's are sent around."""
        silent = isinstance(self.module, DistributedDataParallel) and not last
        with self.module.no_sync() if silent else nullcontext():  # type: ignore[operator]
            with autocast(self.config, self.device):
                losses = self.module(batches)
            shares = torch.stack([losses[name].float() for name in self.names]) * weights
            (shares.sum() * self.world).backward()  # DistributedDataParallel takes the ranks' mean
        return shares.detach()

    def _name_losses(self, parts: list[Loaded]) -> None:
        found = sorted(parts[0].counts)
        self.names = self.names or found
        for part in parts:
            if sorted(part.counts) != self.names:
                raise ValueError(
                    f"a batch has the losses {sorted(part.counts)}, the first had {self.names}; name all always"
                )

    # what is told and kept

    def _note(self, report: _Report) -> None:
        """Take an update's numbers into the window.

        Raises:
            DivergedError: one of them is not finite.
        """
        *losses, asked, norm = report.numbers.read()
        named = dict(zip(self.names, losses, strict=True)) | {NORM: norm}
        if not all(map(math.isfinite, named.values())):
            raise DivergedError(_trouble(report, self.names, named, self.order.batch(report.step), self.rank))
        self.journal.add(named)
        self.stopping = asked > 0

    def _is_due(self) -> bool:
        """True where something is told or kept after the updates that are done."""
        every = (self.config.log_every, self.config.save_every, self.config.evaluate_every)
        return self.done == self.total or any(each and self.done % each == 0 for each in every)

    def _tell(self) -> None:
        """A line of metrics, an evaluation, a checkpoint: what is due."""
        config, ended = self.config, self.done == self.total
        if self.done % config.log_every == 0 or ended:
            self.journal.log(self.done)
        if self.validation and (ended or (config.evaluate_every and self.done % config.evaluate_every == 0)):
            scores = evaluate_here(self.model, self.validation, config, self.device).scores
            self.journal.score(self.done, scores, self.validation.metric)
        if self.done % config.save_every == 0 or ended or self.journal.best_step == self.done:
            self._save()

    def _save(self) -> None:
        """Rank 0 writes a checkpoint."""
        if self.rank == 0:
            self.journal.flush()
            self.checkpoints.save(self.done, self.model, self.optimisers, self.config, self.journal.state())
            self.checkpoints.prune(self.config.keep, self.journal.best_step)

    def _restore(self) -> None:
        """Take up the newest sound checkpoint, the same on all ranks."""
        step = ranks.by_first(self._newest)
        if step is None:
            return
        saved = self._saved or self.checkpoints.read(step)
        self._saved = None
        self.model.load_state_dict(saved.model)
        self.optimisers.load(saved.optimiser)
        self.journal.restore(saved.state)
        self.done = step

    def _newest(self) -> int | None:
        self._saved = self.checkpoints.newest(self.config, self.journal.say)
        return self._saved.step if self._saved else None

    # the rest

    def _wrapped(self) -> nn.Module:
        module = _Losses(self.model, self.task)
        if self.world == 1:
            return module
        # Heads of other tasks, and what a checkpoint brought along, get no gradients. Statistics are fixed everywhere.
        return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)

    def _ask_to_stop(self) -> None:
        self.asked = True

    def _summary(self) -> RunSummary:
        journal, path = self.journal, self.checkpoints.path(self.done)
        wait = journal.waited / max(journal.seconds, 1e-9)
        ended = (self.done, self.total, self.done < self.total)
        return RunSummary(*ended, journal.losses, journal.scores, journal.best_step, path, journal.seconds, wait)


def prepare(model: nn.Module, config: TrainConfig) -> None:
    """Set up what a config wants of the model itself: activations computed again, compilation."""
    if config.checkpoint_activations:
        if callable(keep_less := getattr(model, "checkpoint", None)):
            keep_less()  # towers of other libraries have names of their own for this
        for encoder in (each for each in model.modules() if isinstance(each, Encoder)):
            encoder.checkpointing = True
    if config.compile:
        model.compile()


@contextmanager
def heeding_signals(ask: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask for an end after the update that runs; a second one ends at once."""
    if threading.current_thread() is not threading.main_thread():  # Ray Train's workers; Ray ends them its own way
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}

    def heed(number: int, _: Any) -> None:
        signal.signal(number, before[signal.Signals(number)])
        ask()

    for each in before:
        signal.signal(each, heed)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _seed(*numbers: int) -> int:
    """One seed out of several numbers, that no other numbers are likely to give."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _trouble(
    report: _Report, names: Sequence[str], named: Mapping[str, float], batch: Sequence[tuple[int, int]], rank: int
) -> str:
    """What is not finite, at which step, and the examples nearest to blame."""
    what = ", ".join(
        f"{name or 'the norm of the gradient'} is {value}" for name, value in named.items() if not math.isfinite(value)
    )
    bad = [part.cut for part, shares in report.parts if not bool(torch.isfinite(shares).all())]
    numbers = [number for cut in bad for number in cut.numbers] or [number for _, number in batch]
    shown = ", ".join(map(str, numbers[:10])) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")
    where = f"rank {rank} had the examples" if bad else "the batch had the examples"
    return (
        f"step {report.step + 1} is not finite: {what}; {where} number {shown}. Nothing of it is saved; look at them, "
        "lower the learning rate, or clip more."
    )
