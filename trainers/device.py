"""The ways of batches and numbers to a device and back, on which neither waits for the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from extractors.launching import to_device
from trainers.tasks.base import Batches


class Mover:
    """Takes batches to a device; to a GPU on a stream of its own, beside what runs there."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batches: Batches) -> Batches:
        if self._stream is None:
            return {name: each.to(self.device) for name, each in batches.items()}
        with torch.cuda.stream(self._stream):
            moved = {name: each.to(self.device) for name, each in batches.items()}
        using = torch.cuda.current_stream(self.device)
        using.wait_stream(self._stream)
        for tensor in _tensors(moved):
            if tensor.is_cuda:
                tensor.record_stream(using)  # else its memory could be given away while it is still read
        return moved


def sent(values: Sequence[Any], device: torch.device) -> Tensor:
    """Numbers as a float32 tensor on the device, sent behind what runs there."""
    return to_device(torch.tensor(values, dtype=torch.float32), device)


class Late:
    """Numbers on their way from the device; reading them waits for what it had to do before, not since."""

    def __init__(self, numbers: Tensor) -> None:
        self._event = None
        self._numbers = numbers.to("cpu", non_blocking=True)
        if numbers.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> list[float]:
        if self._event is not None:
            self._event.synchronize()
        found: list[float] = self._numbers.tolist()
        return found


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
