"""A store as it is looked at: opened once, at the precision of what it stores, with what the page says of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from storage import ErrorRow, FeatureStore, TriptychError
from storage.codecs import exact_dtype
from storage.errors import did_you_mean
from storage.secrets import shown

KINDS = {"class": "classes", "attribute": "attributes"}


class ViewError(TriptychError):
    """What the page, or the command, asks for cannot be had; one line for a person."""


class Opened:
    """One store.

    name  for people

    Raises:
        StoreError: no store is there, or its head or manifest is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.name = shown(str(path))
        store = FeatureStore(path)
        wanted = exact_dtype(store.spec.layout.dtype)
        self.store = store if wanted == store.dtype else FeatureStore(path, wanted)
        self.view = self.store.spec.view

    @cached_property
    def errors(self) -> list[ErrorRow]:
        return self.store.errors()

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What `triptych info --json` prints, with names of classes and attributes."""
        from workflows.stores import store_facts

        names = {kind: self.names(kind) for kind in KINDS.values()}
        return {"name": self.name, **names, "fields": list(self.store.spec.carried), **store_facts(self.store)}

    def names(self, kind: str) -> list[str]:
        """Names by id, of "classes" or "attributes"; none where the store has no such vocabulary."""
        found = self.store.vocabulary.get(kind) or []
        return [str(name) for name in found] if isinstance(found, list) else []

    def named(self, what: str, number: int) -> str:
        """The name of a "class" or "attribute", its number where it has none; empty for -1, which is none."""
        names = self.names_of[what]
        if number < 0:
            return ""
        return names[number] if number < len(names) else f"{what} {number}"

    @cached_property
    def names_of(self) -> dict[str, list[str]]:
        return {what: self.names(kind) for what, kind in KINDS.items()}

    def ids(self, what: str, text: str) -> tuple[int, ...]:
        """The ids that a text means: of the name that it is, else of all names that hold it; a number is an id.

        Raises:
            ViewError: there is none.
        """
        names = self.names_of[what]
        if text.isdecimal():
            return (int(text),)
        asked = text.casefold()
        found = [at for at, name in enumerate(names) if asked in name.casefold().split(",")]
        found = found or [at for at, name in enumerate(names) if asked in name.casefold()]
        if not found:
            raise ViewError(self._unknown(what, text, names))
        return tuple(found)

    def _unknown(self, what: str, text: str, names: Sequence[str]) -> str:
        if not names:
            return f"{self.name} does not name its {KINDS[what]}; type a number."
        return f"no {what} has {text!r} in its name{did_you_mean(text, names)}"
