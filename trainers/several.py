"""Images of several data sets in one batch, whatever their keys and wherever each set's images come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.batch import Pixels, Regions
from trainers.visual import Chances, Looked, Visual


class Several:
    """Images of several data sets, which may have equal keys: those here are GROUP/key.

    Args:
        groups: where the images of each group come from; all give the same kind of input.
    """

    def __init__(self, groups: Mapping[str, Visual]) -> None:
        self.groups = groups

    def missing(self, keys: Sequence[str]) -> list[str]:
        found: list[str] = []
        for group, rows in self._rows(keys).items():
            own = [keys[row].partition("/")[2] for row in rows]
            lost = set(self.groups[group].missing(own) if group in self.groups else own)
            found += [keys[row] for row, key in zip(rows, own, strict=True) if key in lost]
        return found

    def look(self, keys: Sequence[str], chances: Chances | None = None) -> Looked:
        parts, order = [], list[int]()
        for group, rows in self._rows(keys).items():
            own = [keys[row].partition("/")[2] for row in rows]
            drawn = None if chances is None else [chances[row] for row in rows]
            parts.append(self.groups[group].look(own, drawn))
            order += rows
        return parts[0] if len(parts) == 1 else joined(parts, np.argsort(order).tolist())

    def _rows(self, keys: Sequence[str]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for row, key in enumerate(keys):
            found.setdefault(key.partition("/")[0], []).append(row)
        return found


def joined(parts: Sequence[Looked], order: Sequence[int]) -> Looked:
    """Several batches of images as one, its rows in this order of theirs end to end."""
    visual = _join([part.visual for part in parts], order)
    others = {name: _join([part.others[name] for part in parts], order) for name in parts[0].others}
    return Looked(visual, _join([part.sizes for part in parts], order), others)


def _join(values: Sequence[Any], order: Sequence[int]) -> Any:
    """Tensors padded with zeros to one shape but for the first axis; tuples; or what holds such."""
    first = values[0]
    if first is None:
        return None
    if isinstance(first, tuple):
        together = tuple(each for value in values for each in value)
        return tuple(together[row] for row in order)
    if isinstance(first, Tensor):
        shape = [max(value.shape[axis] for value in values) for axis in range(1, first.dim())]
        padded = [_grown(value, shape) for value in values]
        return torch.cat(padded)[list(order)]
    full = [_with_masks(value) for value in values]
    found = {each.name: _join([getattr(value, each.name) for value in full], order) for each in fields(first)}
    return type(first)(**found)


def _grown(value: Tensor, shape: Sequence[int]) -> Tensor:
    if list(value.shape[1:]) == list(shape):
        return value
    grown = value.new_zeros(len(value), *shape)
    grown[(slice(None), *(slice(size) for size in value.shape[1:]))] = value
    return grown


def _with_masks(part: Any) -> Any:
    """The same with its mask, or its sizes, written out: padding will come."""
    shown, name = replace(part), "sizes" if isinstance(part, Pixels) else "mask"
    if getattr(part, name) is not None:
        return part
    if isinstance(part, Pixels):
        value = torch.tensor(part.shapes)
    else:
        rows = part.boxes.shape[1] if isinstance(part, Regions) else part.features.shape[1]
        value = torch.ones(len(part), rows, dtype=torch.bool)
    object.__setattr__(shown, name, value)  # given to the class it would be dropped again, as it hides nothing yet
    return shown
