"""Finding damage: every checksum, schema, count and key of a store, read from the bytes on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from storage.atomic import PARTIAL, read_sealed
from storage.errors import StoreError
from storage.manifest import FOLDER, Entry, read_entry
from storage.spec import Spec
from storage.store import open_shard
from storage.writer import RUN, SHARDS, read_head

CHUNK = 8 << 20


@dataclass(frozen=True)
class Problem:
    """Damage: the file it is in, what is wrong, and how many images it concerns (None: not known)."""

    file: str
    what: str
    images: int | None = None


@dataclass
class Verification:
    """What `verify_store` found; the store is sound when `problems` is empty. Notes are harmless."""

    shards: int = 0
    records: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify_store(path: str | Path) -> Verification:
    """Check a store from end to end: seals, lengths, XXH3-128 of every shard, schema, counts, unique keys.

    Raises:
        StoreError: there is no readable store to check.
    """
    root = Path(path)
    spec = Spec.from_dict(read_head(root)["spec"])
    found = Verification()
    _check_run(root, found)
    entries = list(_entries(root, found))
    for entry in entries:
        found.problems += _check_unit(root, entry, spec)
        found.records += len(entry.keys)
        found.shards += entry.shard is not None
        found.bytes += entry.shard.bytes if entry.shard else 0
    found.problems += _repeated_keys(entries)
    found.notes += _leftovers(root, entries, bool(found.problems))
    return found


def _check_run(root: Path, found: Verification) -> None:
    if (root / RUN).exists():
        try:
            read_sealed(root / RUN)
        except StoreError:
            found.problems.append(Problem(RUN, "damaged; it only tells how the last job went", 0))


def _entries(root: Path, found: Verification) -> Iterator[Entry]:
    if not (root / FOLDER).is_dir():
        found.problems.append(Problem(FOLDER, "missing: without it no shard is found"))
    for path in sorted((root / FOLDER).glob("*.json")):
        try:
            entry = read_entry(path)
        except (StoreError, KeyError, TypeError, OSError):
            found.problems.append(Problem(f"{FOLDER}/{path.name}", "manifest entry damaged"))
            continue
        if entry.unit != path.stem:
            found.problems.append(Problem(f"{FOLDER}/{path.name}", f"entry of another unit ({entry.unit})"))
        yield entry


def _check_unit(root: Path, entry: Entry, spec: Spec) -> Iterator[Problem]:
    if entry.shard is None:
        return
    name, images = entry.shard.file, len(entry.keys)
    path = root / name
    try:
        if not path.exists():
            yield Problem(name, "missing", images)
        elif path.stat().st_size != entry.shard.bytes:
            yield Problem(name, f"{path.stat().st_size:,} bytes instead of {entry.shard.bytes:,}", images)
        elif _checksum(path) != entry.shard.xxh3_128:
            yield Problem(name, "checksum differs: bytes were changed after the commit", images)
        else:
            yield from _check_content(root, entry, spec)
    except (StoreError, OSError, ValueError) as error:
        yield Problem(name, str(error), images)


def _check_content(root: Path, entry: Entry, spec: Spec) -> Iterator[Problem]:
    assert entry.shard is not None
    shard = open_shard(root, entry, spec)
    records = [shard[row] for row in range(len(shard))]
    if [record.key for record in records] != entry.keys:
        yield Problem(entry.shard.file, "its keys are not those of its manifest entry", len(entry.keys))
    rows = sum(record.features.size // spec.layout.dim for record in records)
    if rows != entry.shard.rows:
        yield Problem(entry.shard.file, f"{rows} rows instead of {entry.shard.rows}", len(entry.keys))


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
    return str(digest.hexdigest())


def _repeated_keys(entries: list[Entry]) -> Iterator[Problem]:
    counts = Counter(key for entry in entries for key in entry.all_keys())
    repeated = {key for key, count in counts.items() if count > 1}
    for entry in entries:
        mine = sorted(repeated & set(entry.all_keys()))
        if mine:
            what = f"keys that stand elsewhere too: {', '.join(mine[:3])}"
            yield Problem(f"{FOLDER}/{entry.unit}.json", what, len(mine))


def _leftovers(root: Path, entries: list[Entry], damaged: bool) -> Iterator[str]:
    partial = [path for folder in (root, root / SHARDS, root / FOLDER) for path in folder.glob(f".*{PARTIAL}")]
    if partial:
        yield f"{len(partial)} half-written files of a running or killed job; the next job removes what is dead"
    known = {entry.shard.file for entry in entries if entry.shard}
    orphans = [path for path in (root / SHARDS).glob("*") if not path.name.startswith(".")]
    orphans = [path for path in orphans if f"{SHARDS}/{path.name}" not in known]
    if orphans and not damaged:  # with a damaged manifest, a shard without its entry may be the damaged entry's
        yield f"{len(orphans)} shards that were never committed (a job was killed); nothing reads them"
