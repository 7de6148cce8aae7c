"""What stops a job: errors that say what was found, what was wanted and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class TriptychError(Exception):
    """The job as a whole is wrong; the message is one clear line and the command exits with status 2."""


class StoreError(TriptychError):
    """A store that is absent, damaged, or not what the job needs."""


class SpecMismatchError(StoreError):
    """The store holds features of another spec than the one this job would write."""

    def __init__(self, path: object, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        self.differences = spec_differences(stored, wanted)
        super().__init__(
            f"{path} holds other features than this job would write ({'; '.join(self.differences)}). "
            "Choose another --out folder, or repeat the settings of the store."
        )


def spec_differences(
    stored: Mapping[str, Any],
    wanted: Mapping[str, Any],
    prefix: str = "",
    names: tuple[str, str] = ("the store", "this job"),
) -> list[str]:
    """Name each field in which two nested mappings differ: `a.b: 1 in the store, 2 in this job`."""
    found: list[str] = []
    for name in sorted(stored.keys() | wanted.keys()):
        old, new = stored.get(name), wanted.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += spec_differences(old, new, f"{prefix}{name}.", names)
        elif old != new:
            found.append(f"{prefix}{name}: {old!r} in {names[0]}, {new!r} in {names[1]}")
    return found


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not known: `; did you mean NAME?`, or a full stop if none is near."""
    # Options are like options, and their dashes are no likeness.
    bare = {each.lstrip("-"): each for each in known if each.startswith("-") == given.startswith("-")}
    near = difflib.get_close_matches(given.lstrip("-"), bare, n=1)
    return f"; did you mean {bare[near[0]]}?" if near else "."
