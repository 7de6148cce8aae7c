"""What the checkers of models share: hooks on packed layers, and comparisons where tensors mean something."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.golden.capture import captured
from tests.golden.compare import MODELS, Report
from trainers.batch import Batch
from trainers.models.layers import Encoder, Spans, States


class Run:
    """A model's pass over one batch: its states, and what every layer was given and gave, padded."""

    def __init__(self, model: nn.Module, batch: Batch, **settings: object) -> None:
        encoder: Encoder = model.get_submodule("encoder")  # type: ignore[assignment]
        with captured({f"layer_{number}": layer for number, layer in enumerate(encoder)}) as seen:
            self.states: States = model(batch, **settings)
        spans: Spans = self.states.spans
        self.embeddings = spans.pad(seen["layer_0"].given)
        self.layers = {name: spans.pad(each.gave) for name, each in seen.items()}
        self.mask = spans.pad(torch.ones(len(self.states.tokens), dtype=torch.bool))


def compare_valid(
    report: Report, name: str, found: Tensor, wanted: Tensor, mask: Tensor, tolerance: float = MODELS
) -> None:
    """Compare rows of two padded tensors where `mask` (of their leading shape) is True."""
    if found.shape[: mask.ndim] != mask.shape or wanted.shape[: mask.ndim] != mask.shape:
        report.fail(
            name, f"found shape {list(found.shape)}, wanted {list(wanted.shape)}, mask {list(mask.shape)}", tolerance
        )
        return
    report.compare(name, found[mask], wanted[mask], tolerance)


def cut(tensor: Tensor, length: int) -> Tensor:
    """The first columns of a padded tensor: official ones may be padded further than the batch needs."""
    return tensor[:, :length]
