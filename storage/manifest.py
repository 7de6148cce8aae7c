"""Which units are committed: one sealed entry each, written last, naming the shard, its keys and the failed images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

from storage.atomic import seal
from storage.errors import StoreError
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
        """The facts that an entry holds.

        Raises:
            TypeError: they are of other types.
        """
        facts = cls(**values)
        _check_types(facts, file=str, format=str, bytes=int, xxh3_128=str, rows=int, layouts=list | None)
        return facts


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
        """An entry as it was committed.

        Raises:
            KeyError, TypeError: something is missing, or of another type.
        """
        shard = values["shard"]
        entry = cls(
            unit=values["unit"],
            keys=values["keys"],
            errors=[ErrorRow(**row) for row in values["errors"]],
            shard=ShardFacts.from_dict(shard) if shard else None,
            facts=values["facts"],
        )
        _check_types(entry, unit=str, keys=list, facts=dict)
        texts = [*entry.keys, *(text for row in entry.errors for text in astuple(row))]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a key, or a column of an error, is no text")
        if entry.keys and not entry.shard:
            raise TypeError("it has records and no shard")
        return entry


def _check_types(found: Any, **kinds: Any) -> None:
    for name, kind in kinds.items():
        if not isinstance(getattr(found, name), kind):
            raise TypeError(f"{name} is {getattr(found, name)!r:.40}")


def committed_at(entry: Entry) -> float:
    """When a unit was committed, by its writer's clock; 0 where the entry does not say."""
    found = entry.facts.get("committed_at", 0)
    return float(found) if isinstance(found, int | float) else 0.0


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
    content = read_document(place, entry_file(unit))
    try:
        return Entry.from_dict(content)
    except (KeyError, TypeError) as error:
        raise StoreError(
            f"{place.name}/{entry_file(unit)} is no entry of a manifest ({type(error).__name__}: {error}); "
            "run `triptych repair`."
        ) from error


def write_entry(place: Place, entry: Entry) -> None:
    """Commit: after this call the unit's records exist."""
    place.write(entry_file(entry.unit), seal(asdict(entry)))
