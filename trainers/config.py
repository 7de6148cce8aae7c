"""What a training run is set to: one frozen dataclass, which `RUN/config.json` holds, and checkpoints compare."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import ceil
from typing import Any, Literal, Self, get_args

from extractors import ConfigError

OptimiserName = Literal["adamw", "adam", "sgd"]
Schedule = Literal["linear", "constant", "cosine", "milestones"]
DTypeName = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Rule:
    """What some parameters have otherwise than the rest. All rules that match apply, later ones over earlier ones.

    pattern       regular expression, searched for in a parameter's name
    lr            factor on the run's learning rate
    weight_decay  instead of the run's
    optimiser     instead of the run's
    optional      whether the model may lack such parameters, as a network where its features are cached
    """

    pattern: str
    lr: float | None = None
    weight_decay: float | None = None
    optimiser: OptimiserName | None = None
    optional: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run; a run with equal settings has equal losses, wherever it is interrupted and gone on with.

    out             the run's folder, or an address that fsspec knows
    steps, epochs   how long: updates, or passes over the examples, rounded up to whole updates; one of the two
    batch_size      examples an update, over all ranks and accumulated parts
    micro_batch     examples that a rank runs through the model at once; None: its whole share
    optimiser       of what no rule gives another one; `adam` adds its decay to the gradient, `adamw` does not
    lr              largest learning rate
    betas, eps      of Adam and AdamW; both correct their bias, unlike the BertAdam that LXMERT used
    momentum        of SGD
    rules           parameters that are treated otherwise: heads that learn faster, no decay of biases, SGD for a CNN
    warmup          updates until the rate is full, growing evenly; below 1: a share of all
    schedule        afterwards down to 0 in a line, or in half a cosine; constant; or a factor `drop` at each milestone
    milestones      shares of all updates
    clip            largest norm of the gradient of all parameters together; None: as it is
    dtype           of matrix products: bfloat16 by autocast. Weights and the optimiser's numbers are float32
    compile         run the model through torch.compile
    checkpoint_activations  keep no activations inside layers, but compute them again going back
    seed            of the order, of the examples' chance and of dropout
    device          cpu, cuda, cuda:N, or auto
    save_every      updates between checkpoints
    keep            newest checkpoints that stay, beside the best by the task's metric
    evaluate_every  updates between evaluations; None: at the end only, where there is something to evaluate on
    log_every       updates between lines of metrics; a line has the means since the one before
    workers         threads that load

    Raises:
        ConfigError: a value that cannot be meant.
    """

    out: str
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 32
    micro_batch: int | None = None
    optimiser: OptimiserName = "adamw"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    weight_decay: float = 0.01
    rules: tuple[Rule, ...] = ()
    warmup: float = 0.1
    schedule: Schedule = "linear"
    milestones: tuple[float, ...] = ()
    drop: float = 0.1
    clip: float | None = 1.0
    dtype: DTypeName = "float32"
    compile: bool = False
    checkpoint_activations: bool = False
    seed: int = 0
    device: str = "auto"
    save_every: int = 1000
    keep: int = 2
    evaluate_every: int | None = None
    log_every: int = 10
    workers: int = 2

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ConfigError(f"a run needs steps or epochs, one of the two, not {self.steps} and {self.epochs}")
        for name in ("steps", "epochs", "micro_batch", "clip", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}; it must be above 0, or left out")
        for name in ("batch_size", "lr", "save_every", "keep", "log_every", "workers"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name, kind in (("optimiser", OptimiserName), ("schedule", Schedule), ("dtype", DTypeName)):
            _one_of(name, getattr(self, name), get_args(kind))
        for rule in self.rules:
            _check(rule)
        if (self.schedule == "milestones") != bool(self.milestones):
            raise ConfigError(f"milestones {self.milestones} do not go with the schedule {self.schedule!r}; give both")
        if self.seed < 0:
            raise ConfigError(f"--seed {self.seed} must be 0 or more")
        if self.warmup < 0 or not all(0 < each < 1 for each in self.milestones):
            raise ConfigError(f"warmup {self.warmup} must be 0 or more, milestones {self.milestones} between 0 and 1")

    def total_steps(self, examples: int) -> int:
        """Updates of the whole run on so many examples."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return ceil(self.epochs * examples / self.batch_size)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """What `dataclasses.asdict` made, after JSON turned its tuples into lists.

        Raises:
            ConfigError: a setting that this version does not know.
        """
        unknown = sorted(content.keys() - {each.name for each in fields(cls)})
        if unknown:
            raise ConfigError(f"a run has settings that this version does not know: {', '.join(unknown)}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        return cls(**(values | {"rules": tuple(Rule(**each) for each in content.get("rules", ()))}))


def _check(rule: Rule) -> None:
    try:
        re.compile(rule.pattern)
    except re.error as error:
        raise ConfigError(f"the pattern {rule.pattern!r} of a rule is no regular expression: {error}") from error
    if rule.optimiser is not None:
        _one_of(f"optimiser of the rule {rule.pattern!r}", rule.optimiser, get_args(OptimiserName))


def _one_of(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{what} is {value!r}; choose out of {', '.join(choices)}")
