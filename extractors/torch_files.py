"""Files of torch.save, read without running what they name: tensors, plain values, and nothing in place of the rest.

Checkpoints of training frameworks (Lightning's `.ckpt`, VL-BERT's `.model`) hold their trainer's objects beside the
tensors. torch's own reader for untrusted files refuses such a file; here every class and function that it does not
know by itself becomes an empty container, so that the tensors come out and nothing of the file is called.
"""

from __future__ import annotations

import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

LEGACY_PICKLES = 5  # in files from before torch 1.6: a magic number, the version, the system, the content, the storages


class _Left:
    """Stands for a class or function of the file: what is made of it is an empty dictionary, which may be filled."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return OrderedDict()


class _LeftList:
    """The same for kinds of lists."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return []


def load_plain(path: Path) -> Any:
    """What a file of plain tensors holds; anything else in it is refused, with whatever error torch has for it."""
    return torch.load(path, map_location="cpu", weights_only=True)


def load_tensors(path: Path) -> Any:
    """What a trainer's file holds: tensors and plain values as they are, other objects as empty containers."""
    try:
        return load_plain(path)
    except UnpicklingError:
        names = sorted(_names(path))
    stand_ins = [(_LeftList if name.endswith("List") else _Left, name) for name in names]
    with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
        return load_plain(path)


def _names(path: Path) -> set[str]:
    """The classes and functions that a file names, found without loading it."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return {name for _ in range(LEGACY_PICKLES) for name in _named_in(file)}
        with zipfile.ZipFile(file) as archive:
            [content] = [name for name in archive.namelist() if name.endswith("data.pkl")]
            with archive.open(content) as part:
                return set(_named_in(part))


def _named_in(file: Any) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":  # torch.save writes no other kind, and names modules as Python 2 did
            module, _, name = str(argument).partition(" ")
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            yield f"{module}.{name}"
