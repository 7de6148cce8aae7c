"""Optimisers by parameter group, and how the learning rate goes.

The rate of update s, counted from 0, of n, of which w warm up: (s + 1) / w of the full one, and then (n - s) / (n - w)
or its cosine, so that no update has a rate of 0. The official codes differ by one update at either end: transformers
starts with a rate of 0 (ViLT, METER), VL-BERT ends with one.

LXMERT's BertAdam (of pytorch-pretrained-bert) is AdamW without the correction of the first updates' bias. It is left
out on purpose: with a warm-up the two differ for some hundred updates of small rates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from extractors import ConfigError
from trainers.config import OptimiserName, TrainConfig

Kind = tuple[OptimiserName, float, float]  # optimiser, learning rate, weight decay


def factor(config: TrainConfig, step: int, total: int) -> float:
    """What the learning rate of an update is multiplied by, `step` counted from 0 out of `total`."""
    warm = round(config.warmup * total) if config.warmup < 1 else int(config.warmup)
    if step < warm:
        return (step + 1) / warm
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "milestones":
        return config.drop ** sum(step >= share * total for share in config.milestones)
    left = (total - step) / (total - warm)
    return left if config.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)


def kinds(model: nn.Module, config: TrainConfig) -> dict[str, Kind]:
    """How each parameter that is trained is treated, by its name.

    Raises:
        ConfigError: a rule matches no parameter, or nothing is to be trained.
    """
    unused = {rule.pattern for rule in config.rules if not rule.optional}
    found: dict[str, Kind] = {}
    for name, parameter in model.named_parameters():
        optimiser, lr, decay = config.optimiser, 1.0, config.weight_decay
        for rule in config.rules:
            if not re.search(rule.pattern, name):
                continue
            unused.discard(rule.pattern)
            optimiser = rule.optimiser or optimiser
            lr = lr if rule.lr is None else rule.lr
            decay = decay if rule.weight_decay is None else rule.weight_decay
        if parameter.requires_grad:
            found[name] = (optimiser, lr * config.lr, decay)
    if unused:
        names = ", ".join(name for name, _ in model.named_parameters())
        raise ConfigError(f"no parameter's name has {sorted(unused)[0]!r} in it; the model's are {names:.300}")
    if not found:
        raise ConfigError("the model has no parameter that is trained; thaw a part of it")
    return found


class Optimisers:
    """The optimisers of one run as one; their numbers are kept by the parameters' names.

    Raises:
        ConfigError: as of `kinds`.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
        groups: dict[Kind, list[nn.Parameter]] = {}
        for name, kind in kinds(model, config).items():
            groups.setdefault(kind, []).append(self.parameters[name])
        used = dict.fromkeys(optimiser for optimiser, _, _ in groups)
        self.all = [
            _made(name, [_group(kind, each) for kind, each in groups.items() if kind[0] == name], config)
            for name in used
        ]

    def step(self, factor: float) -> None:
        """One update with the learning rates times a factor; the gradients are gone afterwards."""
        for optimiser in self.all:
            for group in optimiser.param_groups:
                group["lr"] = group["full_lr"] * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """All that is needed to go on: `<parameter>/<number's name>`."""
        return {
            f"{name}/{kind}": value
            for name, state in self._states()
            for kind, value in state.items()
            if isinstance(value, Tensor)
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave; settings and parameters must be the same."""
        owner = {
            id(each): optimiser
            for optimiser in self.all
            for group in optimiser.param_groups
            for each in group["params"]
        }
        for key, value in tensors.items():
            name, _, kind = key.rpartition("/")
            parameter = self.parameters[name]
            if value.shape == parameter.shape:  # in the parameter's layout: fused steps go through memory, not indices
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            owner[id(parameter)].state[parameter][kind] = value.to(parameter.device)

    def _states(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, parameter in self.parameters.items():
            for optimiser in self.all:
                if parameter in optimiser.state:
                    yield name, optimiser.state[parameter]


def _group(kind: Kind, parameters: list[nn.Parameter]) -> dict[str, Any]:
    _, lr, decay = kind
    return {"params": parameters, "lr": lr, "full_lr": lr, "weight_decay": decay}


def _made(name: OptimiserName, groups: list[dict[str, Any]], config: TrainConfig) -> Optimizer:
    if name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
