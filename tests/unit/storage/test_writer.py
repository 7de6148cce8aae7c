"""A unit appears whole or not at all; what is no store, or another spec's store, is refused and left as it was."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import storage.catalog
import storage.writer
from storage import GridRecord, SpecMismatchError, StoreError, StoreWriter, open_store, verify_store
from storage.atomic import HashedFile
from storage.writer import unit_id
from tests.unit.storage.samples import (
    GRID,
    REGIONS,
    assert_same,
    contents,
    error_row,
    make_store,
    partials,
    region_record,
    with_layout,
    write_unit,
)


@pytest.fixture
def writer(tmp_path: Path) -> StoreWriter:
    return StoreWriter(tmp_path / "store", REGIONS)


def assert_sound(path: Path, keys: set[str]) -> None:
    assert verify_store(path).problems == []
    assert set(open_store(path).keys()) == keys


def test_the_id_of_a_unit_stays_what_it_was() -> None:
    # Resuming finds finished units by it.
    assert unit_id("ab" * 32, ["a", "b"]) == "a8b0b331d7465e1318d8d73848c20896"


def test_unit_ids_tell_spec_order_and_borders_of_keys_apart() -> None:
    lists = [["a", "b"], ["b", "a"], ["ab"], ["a", "", "b"], ["a"], [], ["a", "b", ""]]
    ids = {unit_id(spec, keys) for spec in ("ab" * 32, "ac" * 32) for keys in lists}
    assert len(ids) == 2 * len(lists)
    assert all(len(each) == 32 for each in ids)


def test_a_committed_unit_is_one_shard_and_one_entry(writer: StoreWriter) -> None:
    with writer.unit(["a", "b", "c"]) as unit:
        unit.append(region_record("a", 2))
        unit.fail(error_row("b"))
        unit.append(region_record("c", 3))
        entry = unit.commit({"seconds": 1.5})
    assert entry.unit == unit_id(REGIONS.id, ["a", "b", "c"])
    assert (entry.keys, entry.errors) == (["a", "c"], [error_row("b")])
    assert (entry.shard.file, entry.shard.format, entry.shard.rows) == (f"shards/{entry.unit}.arrow", "arrow", 5)
    assert entry.shard.bytes == (writer.path / entry.shard.file).stat().st_size
    assert entry.facts["seconds"] == 1.5 and entry.facts["committed_at"] > 0
    assert open_store(writer.path).entries == [entry]
    assert sorted(path for path in contents(writer.path)) == sorted(
        ["store.json", ".commit.lock", entry.shard.file, f"manifest/{entry.unit}.json"]
    )


def test_nobody_sees_a_unit_before_its_commit(writer: StoreWriter) -> None:
    with writer.unit(["a"]) as unit:
        unit.append(region_record("a"))
        assert len(open_store(writer.path)) == 0
        unit.commit()
        assert len(open_store(writer.path)) == 1


def test_a_unit_left_without_commit_leaves_nothing(writer: StoreWriter) -> None:
    before = contents(writer.path)
    with writer.unit(["a"]) as unit:
        unit.append(region_record("a"))
    assert contents(writer.path) == before


def test_a_failed_unit_leaves_nothing(writer: StoreWriter) -> None:
    before = contents(writer.path)
    with pytest.raises(StoreError, match="does not fit the store"), writer.unit(["a", "b"]) as unit:
        unit.append(region_record("a"))
        unit.append(region_record("b", spec=with_layout(REGIONS, dim=9)))
    assert contents(writer.path) == before


def test_a_unit_in_which_every_image_failed_is_an_entry_without_a_shard(writer: StoreWriter) -> None:
    write_unit(writer, ["a", "b"], failed=["a", "b"])
    store = open_store(writer.path)
    assert len(store) == 0 and [row.key for row in store.errors()] == ["a", "b"]
    assert store.entries[0].shard is None
    assert list((writer.path / "shards").iterdir()) == []
    assert_sound(writer.path, set())


def test_committed_names_records_and_failed_images_of_all_writers(writer: StoreWriter) -> None:
    other = StoreWriter(writer.path, REGIONS)
    write_unit(writer, ["a", "b"], failed=["b"])
    write_unit(other, ["c"])
    for each in (writer, other):
        each.refresh()
        assert each.done(["a", "b", "c", "x"]).tolist() == [True, True, True, False]


def test_writing_a_unit_twice_is_harmless(writer: StoreWriter) -> None:
    write_unit(writer, ["a", "b"], failed=["b"])
    before = contents(writer.path)
    with StoreWriter(writer.path, REGIONS).unit(["a", "b"]) as again:
        again.append(region_record("a"))
        again.fail(error_row("b"))
        assert again.commit() is None
    assert contents(writer.path) == before


def test_a_unit_cut_differently_commits_only_what_others_have_not(writer: StoreWriter) -> None:
    write_unit(writer, ["a", "b", "c"], failed=["c"])
    write_unit(StoreWriter(writer.path, REGIONS), ["b", "c", "d", "e"], failed=["c", "e"])
    store = open_store(writer.path)
    assert [row.key for row in store.errors()].count("c") == 1
    assert {row.key for row in store.errors()} == {"c", "e"}
    assert_sound(writer.path, {"a", "b", "d"})
    for record in store.values():
        assert_same(record, region_record(record.key))
    rest = next(entry for entry in store.entries if "d" in entry.keys)
    assert rest.unit == unit_id(REGIONS.id, ["d", "e"])
    assert partials(writer.path) == []


def test_a_commit_holds_the_lock_from_reading_the_manifest_to_writing_its_entry(
    writer: StoreWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def step(*args: Any) -> Any:
            with (writer.path / ".commit.lock").open("a") as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            seen.append(name)
            return original(*args)

        monkeypatch.setattr(owner, name, step)

    watched(storage.catalog.Catalog, "refresh")
    watched(storage.writer, "write_entry")
    write_unit(writer, ["a"])
    assert seen == ["refresh", "write_entry"]


def test_a_commit_syncs_each_file_before_and_its_folder_after_the_renaming(
    writer: StoreWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def sync(handle: int) -> None:
        steps.append("sync a folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "sync a file")

    def rename(path: Path, target: Path, original: Any = Path.replace) -> Path:
        steps.append(f"name a {target.parent.name} file")
        return original(path, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    write_unit(writer, ["a"])
    assert steps == [
        *("sync a file", "name a shards file", "sync a folder"),
        *("sync a file", "name a manifest file", "sync a folder"),
    ]


def test_an_image_that_failed_elsewhere_is_not_written_again(writer: StoreWriter) -> None:
    write_unit(writer, ["a"], failed=["a"])
    write_unit(writer, ["a", "b"])
    assert_sound(writer.path, {"b"})
    assert [row.key for row in open_store(writer.path).errors()] == ["a"]


def test_only_failed_images_can_be_left_of_a_unit(writer: StoreWriter) -> None:
    write_unit(writer, ["a"])
    write_unit(writer, ["a", "b"], failed=["b"])
    assert_sound(writer.path, {"a"})
    assert [row.key for row in open_store(writer.path).errors()] == ["b"]


def test_opening_a_store_again_goes_on_where_it_ended(writer: StoreWriter) -> None:
    write_unit(writer, ["a"])
    write_unit(StoreWriter(writer.path, replace(REGIONS)), ["b"])
    assert_sound(writer.path, {"a", "b"})


def test_opening_a_store_removes_what_dead_processes_left(writer: StoreWriter) -> None:
    dead = f"~{socket.gethostname()}~{2**22 + 1}~0.partial"  # above the largest process id there can be
    for folder in ("", "shards/", "manifest/"):
        (writer.path / f"{folder}.x{dead}").touch()
    StoreWriter(writer.path, REGIONS)
    assert partials(writer.path) == []


def test_a_store_of_another_spec_is_refused_and_left_as_it_was(writer: StoreWriter) -> None:
    write_unit(writer, ["a"])
    before = contents(writer.path)
    with pytest.raises(SpecMismatchError, match=r"layout\.dtype: 'float16' in the store, 'float32' in this job"):
        StoreWriter(writer.path, with_layout(REGIONS, dtype="float32"))
    assert contents(writer.path) == before


@pytest.mark.parametrize("name", ["photo.jpg", "run.json", "sub/photo.jpg"])
def test_a_folder_with_other_things_in_it_is_refused_and_left_as_it_was(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(StoreError, match="exists and is not a store; choose a new or empty folder"):
        StoreWriter(tmp_path, REGIONS)
    assert contents(tmp_path) == {name: b"mine"}


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(StoreError, match="is not a store"):
        StoreWriter(tmp_path / "file", REGIONS)
    with pytest.raises(StoreError, match="cannot write .*Not a directory"):
        StoreWriter(tmp_path / "file" / "store", REGIONS)


def test_an_empty_folder_and_one_that_a_killed_job_began_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun" / "shards").mkdir(parents=True)
    (tmp_path / "begun" / ".store.json~host~1~0.partial").write_bytes(b"{")
    for name in ("empty", "begun", "not/yet/there"):
        write_unit(StoreWriter(tmp_path / name, REGIONS), ["a"])
        assert_sound(tmp_path / name, {"a"})


def test_a_damaged_head_is_refused_for_writing(writer: StoreWriter) -> None:
    head = writer.path / "store.json"
    head.write_bytes(head.read_bytes().replace(b"float16", b"float32"))
    with pytest.raises(StoreError, match=r"store\.json is damaged"):
        StoreWriter(writer.path, REGIONS)


def test_keys_cannot_name_files(writer: StoreWriter, tmp_path: Path) -> None:
    write_unit(writer, ["../../escape", "/etc/passwd", "a/b"])
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert_sound(writer.path, {"../../escape", "/etc/passwd", "a/b"})


# A full disk: every place where the operating system can refuse, and a real refusal by a limit on file sizes.


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


REFUSED = {
    "write": (HashedFile, "write"),
    "sync": (os, "fsync"),
    "rename": (Path, "replace"),
    "begin": (HashedFile, "__init__"),
}


@pytest.mark.parametrize(("owner", "name"), REFUSED.values(), ids=REFUSED.keys())
def test_a_full_disk_stops_the_job_in_one_line_and_keeps_the_store(
    writer: StoreWriter, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    write_unit(writer, ["a"])
    before = contents(writer.path)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, no_space)
        with pytest.raises(StoreError, match="cannot write .*: No space left on device.*make room") as caught:
            write_unit(writer, ["b", "c"])
    assert "\n" not in str(caught.value)
    assert contents(writer.path) == before
    assert_sound(writer.path, {"a"})
    write_unit(writer, ["b", "c"])
    assert_sound(writer.path, {"a", "b", "c"})


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the kernel refuse to make a file of this process larger; what is written up to there stays."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def wide_record(key: str) -> GridRecord:
    """16 kB of features."""
    return GridRecord(key, (320, 320), np.zeros((32, 32, 8), np.float16))


# The shard is refused while it is closed, synced, or written; buffered bytes are refused a second time on closing.
@pytest.mark.parametrize("size", [100, 1_000, 3_000, 100_000, 270_000])
def test_a_disk_that_fills_while_a_shard_is_written_leaves_no_trace_of_it(writer: StoreWriter, size: int) -> None:
    path = writer.path.with_name("grid")
    grid = StoreWriter(path, GRID)
    write_unit(grid, ["a"])
    before = contents(path)
    keys = [f"{index:02}" for index in range(20)]
    with largest_file(size), pytest.raises(StoreError, match="cannot write .*File too large"), grid.unit(keys) as unit:
        for key in keys:
            unit.append(wide_record(key))
        unit.commit()
    assert contents(path) == before
    assert_sound(path, {"a"})


def test_a_disk_that_fills_between_shard_and_entry_leaves_a_shard_that_nothing_reads(
    writer: StoreWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("storage.places.write_whole", no_space)
        with pytest.raises(StoreError, match="No space left"):
            write_unit(writer, ["a"])
    found = verify_store(writer.path)
    assert found.problems == [] and found.records == 0
    assert found.notes == ["1 shards that were never committed (a job was killed); nothing reads them"]
    write_unit(writer, ["a"])
    assert verify_store(writer.path).notes == []
    assert_sound(writer.path, {"a"})


def test_a_full_disk_refuses_a_new_store_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(StoreError, match=r"cannot write .*store\.json: No space left"):
            StoreWriter(tmp_path / "store", REGIONS)
    assert_sound(make_store(tmp_path / "store", [["a"]]), {"a"})
