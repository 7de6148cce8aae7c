"""Dropping what is damaged, so that the next extraction redoes exactly that."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import xxhash

from storage.catalog import Catalog
from storage.compact import remove_shards
from storage.errors import StoreError
from storage.formats import FORMATS, open_shard_file, plain_layouts
from storage.index import FOLDER as INDEX
from storage.index import HEAD as INDEX_HEAD
from storage.index import index_head, write_index
from storage.manifest import FOLDER, Entry, ShardFacts, entry_file, entry_names, read_entry
from storage.places import Place, open_place
from storage.spec import Spec
from storage.verify import Problem, Verification, verify_store
from storage.writer import RUN, SHARDS, read_head, unit_id


@dataclass
class Repair:
    """What was dropped: units, and the keys of their images as far as they are known; notes tell what else was done."""

    units: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def repair_store(path: str | Path, found: Verification | None = None) -> Repair:
    """Drop damaged units; a damaged folded manifest is made anew from the shards.

    Args:
        found: what `verify_store` said just now; it is asked where this is left out.

    Raises:
        StoreError: there is no readable store, or it cannot be written.
    """
    place = open_place(path)
    spec = Spec.from_dict(read_head(place)["spec"])
    found = found or verify_store(path)
    done = Repair()
    with place.alone(), place.locked():
        place.make((SHARDS, FOLDER))
        for problem in found.problems:
            _drop_files(place, problem, done)
        if any(problem.file == INDEX_HEAD or problem.file.startswith(f"{INDEX}/") for problem in found.problems):
            _rebuild(place, spec, done)
        damaged = frozenset(problem.unit for problem in found.problems if problem.unit)
        _drop_units(place, damaged, done)
    return done


def _drop_files(place: Place, problem: Problem, done: Repair) -> None:
    """Remove what has no meaning without its unit: the note of the last job, and entries that cannot be read."""
    if problem.file == RUN:
        place.remove(RUN)
        done.notes.append(f"{RUN} removed; it only told how the last job went")
    elif problem.unit and problem.file == entry_file(problem.unit) and problem.images is None:
        place.remove(problem.file)
        for kind in FORMATS.values():
            place.remove(f"{SHARDS}/{problem.unit}{kind.suffix}")
        done.units.append(problem.unit)


def _drop_units(place: Place, units: frozenset[str], done: Repair) -> None:
    catalog = Catalog(place)
    entries = [entry for entry in catalog.entries() if entry.unit in units]
    # Before the index: left beside it by a kill, an entry would come back to life.
    place.remove(*(entry_file(entry.unit) for entry in entries))
    if catalog.index and not units.isdisjoint(catalog.index.unit_ids()):
        write_index(place, catalog.index, [], units)
    for entry in entries:
        done.units.append(entry.unit)
        done.keys += entry.all_keys()
    remove_shards(place, entries)


def _rebuild(place: Place, spec: Spec, done: Repair) -> None:
    """Make the folded manifest anew from what the shards say of themselves; the failed images of its units are lost."""
    if place.local is None:
        raise StoreError(f"{place.name}: a damaged index can only be made anew in a folder; copy the store to one.")
    tail = [read_entry(place, unit) for unit in entry_names(place)]
    files = {entry.shard.file for entry in tail if entry.shard}
    noted = _noted_checksums(place)
    found = []
    for name in place.names(SHARDS):
        file = f"{SHARDS}/{name}"
        if file not in files:
            entry = _entry_of(place.local / file, spec)
            if entry and entry.shard and entry.shard.xxh3_128 == noted.get(file, entry.shard.xxh3_128):
                found.append(entry)
            else:
                place.remove(file)
                done.notes.append(f"{file} removed: " + ("its checksum differs" if entry else "it cannot be read"))
    rebuilt = _without_copies(place, tail, found, done)
    write_index(place, None, [*tail, *rebuilt])
    place.remove(*(entry_file(entry.unit) for entry in tail))
    blind = sum(entry.shard is None or entry.shard.file not in noted for entry in rebuilt)
    done.notes.append(
        f"the folded manifest was made anew from {len(rebuilt)} shards"
        + (f", of {blind} of which no checksum was left to compare" if blind else "")
        + "; images that had failed will be tried again"
    )


def _noted_checksums(place: Place) -> dict[str, str]:
    """Checksums of shards by file, where the table of units is still what was written; else none."""
    try:
        table = (index_head(place) or {})["tables"]["units"]
        data = place.read(table["file"])
        if xxhash.xxh3_128_hexdigest(data) != table["xxh3_128"]:
            return {}
        shards = pa.ipc.open_file(pa.py_buffer(data)).read_all()["shard"].to_pylist()
    except (OSError, StoreError, KeyError, TypeError):
        return {}
    return {facts["file"]: facts["xxh3_128"] for facts in map(json.loads, filter(None, shards))}


def _without_copies(place: Place, tail: list[Entry], found: list[Entry], done: Repair) -> list[Entry]:
    """Rebuilt units, the largest first, but for those that others hold as a whole; killed jobs leave such shards."""
    taken = {key for entry in tail for key in entry.keys}
    kept = []
    for entry in sorted(found, key=lambda entry: -len(entry.keys)):
        if entry.shard and taken.issuperset(entry.keys):
            place.remove(entry.shard.file)
            done.notes.append(f"{entry.shard.file} removed: other shards hold its records, too")
            continue
        taken.update(entry.keys)
        kept.append(entry)
    return kept


def _entry_of(path: Path, spec: Spec) -> Entry | None:
    for format, kind in FORMATS.items():
        if path.suffix != kind.suffix:
            continue
        try:
            shard = open_shard_file(path, spec, format)
            located = [shard.locate(row) for row in range(len(shard))]
            layouts = plain_layouts(path, spec, format)
        except StoreError:
            continue
        except ValueError:  # an archive under the name of its plain sibling: its columns cannot be mapped
            continue
        keys = [segment.keys[image] for segment, image in located]
        rows = sum(stop - start for start, stop in (segment.rows(image) for segment, image in located))
        data = path.read_bytes()
        facts = ShardFacts(f"{SHARDS}/{path.name}", format, len(data), xxhash.xxh3_128_hexdigest(data), rows, layouts)
        stem = path.stem.partition("-")[0]
        named_by_id = len(stem) == 32 and set(stem) <= set("0123456789abcdef")
        unit = stem if named_by_id else unit_id(spec.id, keys)
        return Entry(unit, keys, [], facts, {"rebuilt": True})
    return None
