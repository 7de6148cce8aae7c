"""Finding damage: every checksum, schema, count and key of a store, read from the bytes where they lie."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from storage.atomic import PARTIAL, unseal
from storage.errors import StoreError
from storage.formats import open_shard_file, plain_layouts
from storage.index import FOLDER as INDEX
from storage.index import HEAD as INDEX_HEAD
from storage.index import index_head, open_index
from storage.manifest import FOLDER, Entry, ShardFacts, entry_file, entry_names
from storage.places import Place, open_place, read_document
from storage.shard import Shard
from storage.spec import Spec
from storage.writer import RUN, SHARDS, read_head

CHUNK = 8 << 20
REMOTE_THREADS = 16
ATTEMPTS = 5
Rows = list[int] | None
OnBytes = Callable[[int, int], None]  # told of bytes checked so far, and of all bytes


@dataclass(frozen=True)
class Problem:
    """Damage: the file it is in, what is wrong, how many images it concerns (None: not known), and which.

    unit  the unit that repairing drops; None where no unit's records are concerned
    """

    file: str
    what: str
    images: int | None = None
    keys: list[str] = field(default_factory=list, compare=False)
    unit: str | None = field(default=None, compare=False)


@dataclass
class Verification:
    """What `verify_store` found; the store is sound when `problems` is empty. Notes are harmless."""

    shards: int = 0
    records: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify_store(path: str | Path, quick: bool = False, on_bytes: OnBytes = lambda done, total: None) -> Verification:
    """Check a store from end to end: seals, lengths, XXH3-128 of every shard, schema, counts, unique keys.

    Args:
        quick: check manifest and lengths only; no shard is opened.
        on_bytes: told of the progress.

    Raises:
        StoreError: there is no readable store to check.
    """
    place = open_place(path)
    for _ in range(ATTEMPTS):
        head = _index_bytes(place)
        found = _verified(place, quick, on_bytes)
        if _index_bytes(place) == head:
            break  # else units were folded or merged meanwhile, and what seems to be missing may lie elsewhere now
    return found


def _index_bytes(place: Place) -> bytes:
    try:
        return place.read(INDEX_HEAD)
    except FileNotFoundError:
        return b""


def _verified(place: Place, quick: bool, on_bytes: OnBytes) -> Verification:
    spec = Spec.from_dict(read_head(place)["spec"])
    found = Verification()
    _check_run(place, found)
    folded = list(_folded(place, found))
    known = {entry.unit for entry, _ in folded}
    units: list[tuple[Entry, Rows]] = [*folded, *((entry, None) for entry in _entries(place, known, found))]
    entries = [entry for entry, _ in units]
    total, done = sum(entry.shard.bytes for entry in entries if entry.shard), 0
    with ThreadPoolExecutor((os.cpu_count() or 1) if place.local else REMOTE_THREADS) as threads:
        checks = threads.map(lambda each: list(_check_unit(place, each[0], each[1], spec, quick)), units)
        for entry, problems in zip(entries, checks, strict=True):
            found.problems += problems
            found.records += len(entry.keys)
            found.shards += entry.shard is not None
            done += entry.shard.bytes if entry.shard else 0
            on_bytes(done, total)
    found.bytes = done
    _check_repeated(place, entries, found)
    found.notes += _leftovers(place, entries, bool(found.problems))
    return found


def _check_run(place: Place, found: Verification) -> None:
    try:
        read_document(place, RUN)
    except FileNotFoundError:
        return
    except StoreError:
        found.problems.append(Problem(RUN, "damaged; it only tells how the last job went", 0))


def _folded(place: Place, found: Verification) -> Iterator[tuple[Entry, Rows]]:
    """Units of the folded manifest with the rows of their keys, after a look at every byte of its tables."""
    try:
        head = index_head(place)
        tables = head["tables"].values() if head else []
        for table in tables:
            if xxhash.xxh3_128_hexdigest(place.read(table["file"])) != table["xxh3_128"]:
                found.problems.append(Problem(table["file"], "checksum differs: the folded manifest was changed"))
                return
        index = open_index(place)
        if index:
            yield from ((entry, index.rows(number).tolist()) for number, entry in enumerate(index.entries()))
    except FileNotFoundError as error:
        found.problems.append(Problem(INDEX_HEAD, f"names a table that is missing: {error}"))
    except (StoreError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, StoreError) and not place.local and _is_sealed(place):
            raise  # out of reach, which is no damage
        found.problems.append(Problem(INDEX_HEAD, f"damaged: {error}"))


def _is_sealed(place: Place) -> bool:
    data = place.read(INDEX_HEAD)
    try:
        unseal(data, INDEX_HEAD)
    except StoreError:
        return False
    return True


def _entries(place: Place, folded: set[str], found: Verification) -> Iterator[Entry]:
    """Units committed since; an entry that a killed job left beside the index is not read any more."""
    if place.local and not (place.local / FOLDER).is_dir():
        found.problems.append(Problem(FOLDER, "missing: without it no shard is found"))
    for unit in entry_names(place):
        if unit in folded:
            continue
        try:
            data = place.read(entry_file(unit))  # an object store out of reach stops here: that is no damage
        except OSError:
            data = b""
        try:
            entry = Entry.from_dict(unseal(data, entry_file(unit)))
        except (StoreError, KeyError, TypeError):
            found.problems.append(Problem(entry_file(unit), "manifest entry damaged", unit=unit))
            continue
        if entry.unit != unit:
            found.problems.append(Problem(entry_file(unit), f"entry of another unit ({entry.unit})", unit=unit))
            continue
        yield entry


def _check_unit(place: Place, entry: Entry, rows: Rows, spec: Spec, quick: bool) -> Iterator[Problem]:
    if entry.shard is None:
        return
    try:
        what = check_bytes(place, entry.shard, quick) or ("" if quick else _check_content(place, entry, rows, spec))
    except (OSError, ValueError) as error:
        what = str(error)
    if what:
        yield Problem(entry.shard.file, what, len(entry.keys), entry.keys, entry.unit)


def check_bytes(place: Place, shard: ShardFacts, quick: bool = False) -> str:
    """What is wrong with a shard's bytes, in words; nothing where they are those that were committed."""
    size = place.size(shard.file)
    if size is None:
        return "missing"
    if size != shard.bytes:
        return f"{size:,} bytes instead of {shard.bytes:,}"
    try:
        changed = not quick and _checksum(place, shard.file, size) != shard.xxh3_128
    except FileNotFoundError:  # another process has replaced it meanwhile
        return "missing"
    return "checksum differs: bytes were changed after the commit" if changed else ""


def _check_content(place: Place, entry: Entry, rows: Rows, spec: Spec) -> str:
    if place.local:
        return _check_shard(place.local / entry.shard.file, entry, rows, spec) if entry.shard else ""
    assert entry.shard is not None
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        path = Path(folder) / Path(entry.shard.file).name
        path.write_bytes(place.read(entry.shard.file))
        return _check_shard(path, entry, rows, spec)


def _check_shard(path: Path, entry: Entry, rows: Rows, spec: Spec) -> str:
    """Compare a shard with its entry; `rows` are those of the entry's keys, None for all."""
    assert entry.shard is not None
    try:
        return _compared(open_shard_file(path, spec, entry.shard.format), path, entry, rows, spec)
    except StoreError as error:
        return str(error)


def _compared(shard: Shard, path: Path, entry: Entry, rows: Rows, spec: Spec) -> str:
    assert entry.shard is not None
    if len(shard) != len(entry.keys) if rows is None else len(shard) <= max(rows, default=-1):
        return f"holds {len(shard)} records, its manifest entry {len(entry.keys)}"
    located = [shard.locate(row) for row in range(len(shard))]
    keys = [segment.keys[image] for segment, image in located]
    if (keys if rows is None else [keys[row] for row in rows]) != entry.keys:
        return "its keys are not those of its manifest entry"
    count = sum(stop - start for start, stop in (segment.rows(image) for segment, image in located))
    if count != entry.shard.rows:
        return f"{count} rows instead of {entry.shard.rows}"
    noted = entry.shard.layouts
    if noted is not None and noted != plain_layouts(path, spec, entry.shard.format):
        return "its columns do not lie where its manifest entry says"
    return ""


def _checksum(place: Place, file: str, size: int) -> str:
    digest = xxhash.xxh3_128()
    if place.local:
        with (place.local / file).open("rb") as handle:
            while chunk := handle.read(CHUNK):
                digest.update(chunk)
    else:
        for start in range(0, size, CHUNK):
            digest.update(place.read_ranges([(file, start, min(CHUNK, size - start))])[0])
    return str(digest.hexdigest())


def _check_repeated(place: Place, entries: list[Entry], found: Verification) -> None:
    """A key in two units: impossible where commits are locked; without a lock the first unit keeps it.

    An image that failed and was tried again stands in both units, and only one of them may have a record of it.
    """
    counts = Counter(key for entry in entries if not entry.facts.get("again") for key in entry.all_keys())
    records = Counter(key for entry in entries for key in entry.keys)
    repeated = {key for each in (counts, records) for key, count in each.items() if count > 1}
    if repeated and not place.local:
        found.notes.append(f"{len(repeated)} keys stand in two units (two writers at once); the first one's are read")
        return
    for entry in entries if repeated else []:
        mine = sorted(repeated & set(entry.all_keys()))
        if mine:
            what = f"keys that stand elsewhere too: {', '.join(mine[:3])}"
            found.problems.append(Problem(entry_file(entry.unit), what, len(mine), mine, entry.unit))


def _leftovers(place: Place, entries: list[Entry], damaged: bool) -> Iterator[str]:
    if place.local:
        folders = (place.local, *(place.local / each for each in (SHARDS, FOLDER, INDEX)))
        partial = [path for folder in folders for path in folder.glob(f".*{PARTIAL}")]
        if partial:
            yield f"{len(partial)} half-written files of a running or killed job; the next job removes what is dead"
    known = {entry.shard.file for entry in entries if entry.shard}
    orphans = [name for name in place.names(SHARDS) if f"{SHARDS}/{name}" not in known]
    if orphans and not damaged:  # with a damaged manifest, a shard without its entry may be the damaged entry's
        yield f"{len(orphans)} shards that were never committed (a job was killed); nothing reads them"
