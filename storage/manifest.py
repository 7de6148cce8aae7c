"""Which units are committed: one sealed entry each, written last, naming the shard, its keys and the failed images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from storage.atomic import seal
from storage.places import Place, read_document

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
    """What a shard must be: `rows` counts boxes or cells, `bytes` and `xxh3_128` are of the whole file.

    layouts  where its columns lie (`storage.shard.Layout`, as plain values), by which a shard on an object store is
             read in parts; None in an archive, whose columns are compressed, and in entries of format version 1
    """

    file: str
    format: str
    bytes: int
    xxh3_128: str
    rows: int
    layouts: list[dict[str, Any]] | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ShardFacts:
        return cls(**values)


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
            shard=ShardFacts.from_dict(shard) if shard else None,
            facts=values["facts"],
        )


def entry_file(unit: str) -> str:
    return f"{FOLDER}/{unit}.json"


def entry_names(place: Place) -> list[str]:
    """Units whose entries lie in the manifest, sorted."""
    return [name.removesuffix(".json") for name in place.names(FOLDER) if name.endswith(".json")]


def read_entry(place: Place, unit: str) -> Entry:
    """One unit's entry.

    Raises:
        FileNotFoundError: it is not there.
        StoreError: it is damaged.
    """
    return Entry.from_dict(read_document(place, entry_file(unit)))


def write_entry(place: Place, entry: Entry) -> None:
    """Commit: after this call the unit's records exist."""
    place.write(entry_file(entry.unit), seal(asdict(entry)))
