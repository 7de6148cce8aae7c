"""Which units are committed: one sealed entry each, written last, naming the shard, its keys and the failed images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storage.atomic import read_sealed, write_sealed

FOLDER = "manifest"


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One image that has no record, and why.

    stage   where it failed: "read", "decode", "prepare" or "model"
    reason  a short code to count by, such as "truncated"
    """

    key: str
    uri: str
    stage: str
    reason: str
    message: str


@dataclass(frozen=True)
class ShardFacts:
    """What a shard must be: `rows` counts boxes or cells, `bytes` and `xxh3_128` are of the whole file."""

    file: str
    format: str
    bytes: int
    xxh3_128: str
    rows: int


@dataclass(frozen=True)
class Entry:
    """One committed unit. `keys` are its records in shard order; `shard` is None where every image failed."""

    unit: str
    keys: list[str]
    errors: list[ErrorRow]
    shard: ShardFacts | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def all_keys(self) -> Iterator[str]:
        """Keys of records and of failed images."""
        yield from self.keys
        yield from (error.key for error in self.errors)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Entry:
        shard = values["shard"]
        return cls(
            unit=values["unit"],
            keys=values["keys"],
            errors=[ErrorRow(**row) for row in values["errors"]],
            shard=ShardFacts(**shard) if shard else None,
            facts=values["facts"],
        )


class Manifest:
    """The committed units of one store, as far as they have been read; `refresh` reads what is new."""

    def __init__(self, store: Path) -> None:
        self.folder = store / FOLDER
        self.entries: dict[str, Entry] = {}
        self.refresh()

    def refresh(self) -> list[Entry]:
        """Read the entries that other writers committed since; returns them, in order of unit id.

        Raises:
            StoreError: an entry is damaged.
        """
        names = {path.stem for path in self.folder.glob("*.json")}
        new = [read_entry(entry_path(self.folder, name)) for name in sorted(names - self.entries.keys())]
        self.entries |= {entry.unit: entry for entry in new}
        self.entries = dict(sorted(self.entries.items()))
        return new

    def add(self, entry: Entry) -> None:
        """Commit: after this call the unit's records exist."""
        write_sealed(entry_path(self.folder, entry.unit), asdict(entry))
        self.entries[entry.unit] = entry


def entry_path(folder: Path, unit: str) -> Path:
    return folder / f"{unit}.json"


def read_entry(path: Path) -> Entry:
    return Entry.from_dict(read_sealed(path))
