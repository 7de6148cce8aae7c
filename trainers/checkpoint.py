"""Checkpoints of a run: `RUN/checkpoints/step-N.json`, and beside it a folder with the tensors.

    step-00001000/model.safetensors      the model's state, in its own names
    step-00001000/optimiser.safetensors  the optimisers' numbers, by parameter
    step-00001000.json                   sealed: settings, where the run is, size and checksum of both files

The sealed file is written last: without it a checkpoint does not exist, so that none is ever half there, in a folder or
on an object store. No state of a random generator is in it: chance comes from seed, step and rank alone (`loop.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import xxhash
from safetensors import SafetensorError
from torch import Tensor, nn

from storage.errors import StoreError, TriptychError, spec_differences
from storage.places import Place, open_place, read_document, write_document
from trainers.config import TrainConfig
from trainers.optim import Optimisers

FOLDER = "checkpoints"
PARTS = ("model.safetensors", "optimiser.safetensors")
FORMAT = 1
MAY_DIFFER = {"out", "device", "save_every", "keep", "workers"}  # between the parts of one run


@dataclass(frozen=True)
class Saved:
    """One checkpoint that was read.

    step       updates that are done
    state      of the loop, as plain JSON values
    model, optimiser   tensors by name
    """

    step: int
    state: dict[str, Any]
    model: dict[str, Tensor]
    optimiser: dict[str, Tensor]


class Checkpoints:
    """The checkpoints of one run, in a folder or on an object store."""

    def __init__(self, out: str | Path) -> None:
        self.place: Place = open_place(out)

    def steps(self) -> list[int]:
        """Updates after which there is a checkpoint, in order."""
        names = [name.removeprefix("step-") for name in self.place.names(FOLDER) if name.endswith(".json")]
        return sorted(int(name.removesuffix(".json")) for name in names)

    def path(self, step: int) -> str:
        """Where the tensors of one lie, for people and for `load_tensors`."""
        return f"{self.place.name}/{_name(step)}"

    def save(
        self, step: int, model: nn.Module, optimisers: Optimisers, config: TrainConfig, state: Mapping[str, Any]
    ) -> None:
        """Write a checkpoint; it is there when this returns, and before that not at all.

        Raises:
            StoreError: what it is written to refuses.
        """
        self.place.make([_name(step)])
        files = {}
        for part, tensors in zip(PARTS, (model.state_dict(), optimisers.tensors()), strict=True):
            data = safetensors.torch.save({name: each.detach().cpu().contiguous() for name, each in tensors.items()})
            self.place.write(f"{_name(step)}/{part}", data)
            files[part] = {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
        content = {"format": FORMAT, "step": step, "settings": asdict(config), "state": dict(state), "files": files}
        write_document(self.place, f"{_name(step)}.json", content)

    def prune(self, keep: int, best: int | None) -> None:
        """Remove all but the newest ones and the best one."""
        for step in self.steps()[:-keep]:
            if step != best:
                self.remove(step)

    def remove(self, step: int) -> None:
        self.place.remove(f"{_name(step)}.json")  # first: from then on it does not exist
        self.place.remove(*(f"{_name(step)}/{part}" for part in PARTS))
        if self.place.local is not None:
            (self.place.local / _name(step)).rmdir()

    def newest(self, config: TrainConfig, tell: Callable[[str], None]) -> Saved | None:
        """The newest sound checkpoint, of a run with these settings; damaged ones are told of and passed over.

        Raises:
            TriptychError: the run had other settings, or all its checkpoints are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                found, settings = self._read(step, PARTS)
            except (StoreError, FileNotFoundError) as error:
                tell(f"the checkpoint of step {step} is passed over: {error}")
                continue
            self._require_same(settings, config)
            return found
        if steps:
            raise TriptychError(
                f"all checkpoints of {self.place.name} are damaged; start the run again in another --out"
            )
        return None

    def read(self, step: int, parts: tuple[str, ...] = PARTS) -> Saved:
        """One checkpoint, or only some parts of it.

        Raises:
            StoreError: it is not there, or damaged.
        """
        try:
            return self._read(step, parts)[0]
        except FileNotFoundError as error:
            raise StoreError(f"{self.place.name} has no checkpoint of step {step}, only of {self.steps()}") from error

    def _read(self, step: int, parts: tuple[str, ...]) -> tuple[Saved, dict[str, Any]]:
        content = read_document(self.place, f"{_name(step)}.json")
        if content["format"] != FORMAT:
            raise StoreError(f"it has format {content['format']}, this version reads {FORMAT}")
        tensors = {part: self._tensors(f"{_name(step)}/{part}", content["files"][part]) for part in parts}
        model, optimiser = (tensors.get(part, {}) for part in PARTS)
        return Saved(step, content["state"], model, optimiser), content["settings"]

    def _tensors(self, file: str, facts: Mapping[str, Any]) -> dict[str, Tensor]:
        data = self.place.read(file)
        if (len(data), xxhash.xxh3_128_hexdigest(data)) != (facts["bytes"], facts["xxh3_128"]):
            raise StoreError(f"{self.place.name}/{file} is damaged: its checksum does not fit")
        try:
            return dict(safetensors.torch.load(data))
        except SafetensorError as error:
            raise StoreError(f"{self.place.name}/{file} is no safetensors file: {error}") from error

    def _require_same(self, stored: dict[str, Any], config: TrainConfig) -> None:
        here = TrainConfig.from_json(stored)
        before, now = ({k: v for k, v in asdict(each).items() if k not in MAY_DIFFER} for each in (here, config))
        differences = spec_differences(before, now, names=("the run so far", "this command"))
        if differences:
            raise TriptychError(
                f"{self.place.name} holds a run with other settings ({'; '.join(differences)}). Repeat its settings to "
                "go on with it, or choose another --out."
            )


def _name(step: int) -> str:
    return f"{FOLDER}/step-{step:08d}"


def load_weights(model: nn.Module, out: str | Path, step: int | None = None) -> int:
    """Give a model the weights of a run's checkpoint; by default the newest. Returns its step.

    Raises:
        StoreError: there is none, or it is damaged or of another model.
    """
    found = Checkpoints(out)
    steps = found.steps()
    if not steps:
        raise StoreError(f"{found.place.name} has no checkpoint yet; train first")
    step = steps[-1] if step is None else step
    try:
        model.load_state_dict(found.read(step, PARTS[:1]).model)
    except RuntimeError as error:
        what = " ".join(str(error).split())
        raise StoreError(f"{found.path(step)} is of another model: {what:.400}") from error
    return step
