"""Stores on object stores: whole objects or none, faults, listings that lag, writers without a lock between them.

The object store is fsspec's in memory, with faults: errors for chosen requests, and objects that a listing shows late.
"""

from __future__ import annotations

import errno
import itertools
import os
import pickle
import random
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage import FeatureStore, Spec, SpecMismatchError, StoreError, StoreWriter, bucket, open_store, verify_store
from storage.bucket import Bucket
from storage.compact import compact, fold
from storage.places import UnreachableError, open_place
from storage.records import pack
from tests.unit.storage.samples import (
    GRID,
    PATCHES,
    PIXELS,
    REGIONS,
    assert_same,
    error_row,
    record_of,
    region_record,
    with_layout,
    write_unit,
)

URL = "faulty://bucket/features"
BUSY = OSError(errno.EBUSY, "Please reduce your request rate")


class Faulty(MemoryFileSystem):
    """An object store in memory.

    faults    called before each request with its kind and the object's path; raises what shall go wrong
    lag       how many listings do not show an object that was just made
    requests  what was asked for: kind, path, bytes that came
    """

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    faults: ClassVar[Callable[[str, str], None]]
    lag: ClassVar[int]
    requests: ClassVar[list[tuple[str, str, int]]]
    creates: ClassVar[bool]
    _born: ClassVar[dict[str, int]]
    _listings: ClassVar[Iterator[int]]
    _one_at_a_time: ClassVar[Any]

    @classmethod
    def start(cls) -> None:
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.faults = staticmethod(lambda kind, path: None)
        cls.lag, cls.requests, cls.creates, cls._born, cls._listings = 0, [], True, {}, itertools.count()
        cls._one_at_a_time = threading.RLock()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("faulty://", "memory://")))

    def _asked(self, kind: str, path: str, size: int = 0) -> None:
        type(self).faults(kind, path)
        self.requests.append((kind, path, size))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        self._asked("get", path)
        data = bytes(super().cat_file(path, start, end, **kwargs))
        self.requests[-1] = ("get", path, len(data))
        return data

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self._asked("put", path)
        if mode == "create" and not self.creates:
            raise NotImplementedError
        with self._one_at_a_time:
            super().pipe_file(path, value, mode=mode, **kwargs)
            self._born[self._strip_protocol(path)] = next(self._listings)

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def rm_file(self, path: str) -> None:
        self._asked("delete", path)
        super().rm_file(path)

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        self._asked("head", path)
        return dict(super().info(path, **kwargs))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        self._asked("list", path)
        now = next(self._listings)
        found = super().ls(path, detail=True, **kwargs)
        shown = [each for each in found if now - self._born.get(each["name"], -(10**9)) > self.lag]
        return shown if detail else [each["name"] for each in shown]


@pytest.fixture(autouse=True)
def remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Faulty]:
    """A new, empty object store without faults; temporary files and cached tables of its stores lie in `tmp_path`."""
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    Faulty.start()
    monkeypatch.setattr(bucket, "WAITS", (0.0, 0.0))
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return Faulty


def make(
    units: Sequence[Sequence[str]], spec: Spec = REGIONS, failed: Sequence[str] = (), format: str = "arrow"
) -> str:
    writer = StoreWriter(URL, spec, format=format)
    for keys in units:
        write_unit(writer, keys, failed)
    return URL


def failing(kind: str, part: str, error: Exception, times: float = float("inf")) -> Callable[[str, str], None]:
    """Faults for requests of a kind whose path has this part: the first so many end with the error."""
    left = [times]

    def fault(asked: str, path: str) -> None:
        if asked == kind and part in path and left[0] > 0:
            left[0] -= 1
            raise error

    return fault


def assert_sound(keys: Sequence[str], failed: Sequence[str] = (), notes: int | None = 0) -> FeatureStore:
    """Every key is there once, whichever way it is asked for, and nothing is damaged."""
    found = verify_store(URL)
    assert found.problems == [] and (notes is None or len(found.notes) == notes), found
    store = open_store(URL)
    assert sorted(store) == sorted(keys) and len(store) == len(keys)
    for record in store.values():
        assert_same(record, region_record(record.key))
    if keys:
        wanted = pack([region_record(key) for key in keys])
        np.testing.assert_array_equal(store.batch(list(keys)).values, wanted.values)
    assert sorted(row.key for row in store.errors()) == sorted(failed)
    return store


def leftovers() -> list[Path]:
    return list(Path(tempfile.gettempdir()).iterdir())


@pytest.mark.parametrize("format", ["arrow", "hdf5", "arrow-zstd"])
@pytest.mark.parametrize(
    ("view", "dtype"),
    [
        *((view, dtype) for view in (REGIONS, GRID) for dtype in ("float16", "bfloat16", "uint8")),
        *((PATCHES, "float16"), (PATCHES, "uint8"), (PIXELS, "bytes")),
    ],
    ids=lambda value: getattr(value, "view", value),
)
def test_a_store_holds_what_a_folder_would(format: str, dtype: str, view: Spec, tmp_path: Path) -> None:
    spec = with_layout(view, dtype=dtype)
    folder = StoreWriter(tmp_path / "store", spec, format=format)
    make([["a", "b", "c"], ["d"], ["e"]], spec, ["b"], format)
    for keys in (["a", "b", "c"], ["d"], ["e"]):
        write_unit(folder, keys, ["b"])
    here = open_store(tmp_path / "store")
    for step in (lambda: None, lambda: fold(URL), lambda: compact(URL)):
        step()
        there = open_store(URL)
        assert sorted(there) == ["a", "c", "d", "e"] and there.errors() == [error_row("b")]
        for key in there:
            assert_same(there[key], here[key])
        np.testing.assert_array_equal(there.batch(["e", "a", "e"]).values, here.batch(["e", "a", "e"]).values)
        for quick in (False, True):
            found = verify_store(URL, quick=quick)
            assert found.problems == found.notes == [] and found.records == 4
    assert leftovers() == []


def test_fsspecs_own_memory_holds_a_store_too() -> None:
    url = "memory://bucket/of/test_places"
    write_unit(StoreWriter(url, REGIONS), ["a"])
    assert_same(open_store(url)["a"], region_record("a"))
    with pytest.raises(SpecMismatchError):
        StoreWriter(url, GRID)


@pytest.mark.parametrize("format", ["arrow", "hdf5"])
def test_one_record_is_fetched_without_its_shard(format: str, remote: type[Faulty]) -> None:
    spec = with_layout(REGIONS, dim=2048)
    keys = [f"image{index:03}" for index in range(300)]
    make([keys], spec, format=format)
    shard = max(len(each.getvalue()) for each in remote.store.values())
    store = open_store(URL)
    remote.requests.clear()
    assert_same(store[keys[7]], record_of(keys[7], spec))
    assert sum(size for _, _, size in remote.requests) < 0.1 * shard
    remote.requests.clear()
    assert_same(store[keys[8]], record_of(keys[8], spec))  # what all records of the shard share is there by now
    record = record_of(keys[8], spec)
    assert [size for _, _, size in remote.requests] == [record.features.nbytes, record.whole_image.nbytes]


def test_parts_of_files_come_back_as_asked_for_and_neighbours_in_one_request(remote: type[Faulty]) -> None:
    place, rng = Bucket(URL), random.Random(0)
    files = {name: rng.randbytes(1_000_000) for name in ("x", "y")}
    for name, data in files.items():
        place.write(name, data)
    for _ in range(50):
        asked = [(rng.choice("xy"), start := rng.randrange(999_000), rng.choice([0, 1, 999, 1_000_000 - start]))
                 for _ in range(rng.randrange(9))]  # fmt: skip
        assert place.read_ranges(asked) == [files[name][start : start + size] for name, start, size in asked]
    remote.requests.clear()
    place.read_ranges([("x", 500_000, 10), ("x", 0, 10), ("x", 40_000, 10), ("y", 0, 10), ("x", 5, 10)])
    assert sorted(size for _, _, size in remote.requests) == [10, 10, 40_010]


def test_a_part_that_comes_short_is_refused() -> None:
    place = Bucket(URL)
    place.write("x", b"0123456789")
    with pytest.raises(StoreError, match=r"faulty://bucket/features/x gave 2 bytes instead of 5; try again\."):
        place.read_ranges([("x", 8, 5)])


REQUESTS = [
    ("head", "store.json"),
    ("put", "store.json"),
    ("put", "shards/"),
    ("head", "shards/"),
    ("put", "manifest/"),
    ("get", "manifest/"),
    ("list", "manifest"),
    ("put", "index/keys"),
    ("put", "index.json"),
    ("get", "index.json"),
    ("get", "index/lookup"),
    ("delete", "manifest/"),
    ("get", "shards/"),
]


def whole_way() -> None:
    make([["a", "b"], ["c"]], failed=["b"])
    assert sorted(open_store(URL)) == ["a", "c"]
    fold(URL)
    assert_sound(["a", "c"], ["b"])


@pytest.mark.parametrize(("kind", "part"), REQUESTS)
def test_a_request_that_fails_twice_is_made_again(kind: str, part: str, remote: type[Faulty]) -> None:
    remote.faults = staticmethod(failing(kind, part, BUSY, times=2))
    whole_way()
    assert leftovers() == []


@pytest.mark.parametrize(("kind", "part"), REQUESTS)
def test_a_request_that_always_fails_ends_in_one_line_and_the_same_again_succeeds(
    kind: str, part: str, remote: type[Faulty]
) -> None:
    remote.faults = staticmethod(failing(kind, part, BUSY))
    with pytest.raises(UnreachableError) as caught:
        whole_way()
    line = str(caught.value)
    assert f"{URL}/{part}" in line and "reduce your request rate" in line and "\n" not in line
    assert leftovers() == []
    remote.faults = staticmethod(lambda kind, path: None)
    if any("store.json" in path for path in remote.store):
        found = verify_store(URL)
        assert found.problems == []
        store = open_store(URL)
        for record in store.values():
            assert_same(record, region_record(record.key))
    writer = StoreWriter(URL, REGIONS)
    for keys in (["a", "b"], ["c"]):
        if not writer.done(keys).all():
            write_unit(writer, keys, ["b"])
    fold(URL)
    assert sorted(open_store(URL)) == ["a", "c"] and verify_store(URL).problems == []


@pytest.mark.parametrize("part", ["shards/", "manifest/"])
def test_a_commit_that_fails_leaves_nothing_to_see(part: str, remote: type[Faulty]) -> None:
    make([["a"]])
    writer = StoreWriter(URL, REGIONS)
    remote.faults = staticmethod(failing("put", part, BUSY))
    with pytest.raises(StoreError, match=f"{URL}/{part}.* cannot be written .*; what was committed before is kept"):
        write_unit(writer, ["b"])
    remote.faults = staticmethod(lambda kind, path: None)
    assert_sound(["a"], notes=int(part == "manifest/"))  # the shard without an entry is a note
    write_unit(writer, ["b"])
    assert_sound(["a", "b"], notes=int(part == "manifest/"))


def test_errors_that_no_other_try_can_mend_are_not_tried_again(remote: type[Faulty]) -> None:
    make([["a"]])
    asked: list[str] = []

    def refuse(kind: str, path: str) -> None:
        asked.append(kind)
        raise PermissionError("Forbidden")

    remote.faults = staticmethod(refuse)
    with pytest.raises(StoreError, match=r"store\.json cannot be read \(Forbidden\); check the credentials"):
        open_store(URL)
    assert asked == ["get"]


def test_drafts_go_whatever_happens(remote: type[Faulty]) -> None:
    writer = StoreWriter(URL, REGIONS)
    with pytest.raises(RuntimeError), writer.unit(["a"]) as unit:
        unit.append(region_record("a"))
        assert len(leftovers()) == 1
        raise RuntimeError
    with writer.unit(["a"]) as unit:
        unit.fail(error_row("a"))
        unit.commit()
    assert leftovers() == []


def test_drafts_of_dead_processes_go_when_the_next_writer_comes_and_those_of_live_ones_stay() -> None:
    code = (
        "import sys, storage.bucket as p, tempfile; tempfile.tempdir = sys.argv[1]; p.Bucket('memory://x').draft('y')"
    )
    subprocess.run([sys.executable, "-c", code, tempfile.gettempdir()], check=True, cwd=Path(__file__).parents[3])
    [dead] = leftovers()
    mine = Bucket(URL).draft("shards/x")
    StoreWriter(URL, REGIONS)
    assert leftovers() == [mine.parent] != [dead]


def test_a_writer_knows_its_own_commits_before_they_are_listed(remote: type[Faulty]) -> None:
    remote.lag = 10**6
    writer = StoreWriter(URL, REGIONS)
    write_unit(writer, ["a", "b"], ["b"])
    assert open_store(URL).keys() == set()
    writer.refresh()
    assert writer.done(["a", "b", "c"]).tolist() == [True, True, False]
    write_unit(writer, ["a", "b", "c"], ["b"])  # only c is new
    writer.catalog.reload()
    assert writer.done(["a", "b", "c"]).all() and writer.catalog.units == 2
    remote.lag = 0
    assert_sound(["a", "c"], ["b"])


def test_what_others_removed_is_not_taken_for_a_listing_that_lags(remote: type[Faulty]) -> None:
    writer = StoreWriter(URL, REGIONS)
    for key in "ab":
        write_unit(writer, [key])
    compact(URL)
    writer.refresh()
    assert writer.done(["a", "b"]).all() and writer.place.names("manifest") == []


def test_units_that_must_be_there_are_found_without_a_listing(remote: type[Faulty]) -> None:
    remote.lag = 10**6
    first, second = StoreWriter(URL, REGIONS), StoreWriter(URL, REGIONS)
    with first.unit(["a"]) as unit:
        unit.append(region_record("a"))
        unit.commit()
    second.refresh()
    assert not second.done(["a"]).any()
    second.refresh([unit.unit, "of nobody"])
    assert second.done(["a"]).all()


def doubled(remote: type[Faulty]) -> None:
    """Two units that share b (a record in both) and x (failed in both), as writers make that do not see each other."""
    remote.lag = 10**6
    write_unit(StoreWriter(URL, REGIONS), ["a", "b", "x"], ["x"])
    write_unit(StoreWriter(URL, REGIONS), ["b", "c", "x"], ["x"])
    remote.lag = 0


def test_a_key_in_two_units_is_read_once(remote: type[Faulty]) -> None:
    doubled(remote)
    store = assert_sound(["a", "b", "c"], ["x"], notes=1)
    assert len(list(store.values())) == 3
    assert "2 keys stand in two units" in verify_store(URL).notes[0]


@pytest.mark.parametrize("step", [fold, compact])
def test_folding_and_compacting_remove_the_double(step: Callable[[str], Any], remote: type[Faulty]) -> None:
    doubled(remote)
    step(URL)
    assert_sound(["a", "b", "c"], ["x"])
    write_unit(StoreWriter(URL, REGIONS), ["d"])
    compact(URL)
    assert_sound(["a", "b", "c", "d"], ["x"])


@pytest.mark.parametrize("lag", [0, 3, 40])
def test_two_writers_with_different_cuts_lose_no_key_even_where_listings_lag(lag: int, remote: type[Faulty]) -> None:
    keys = [f"image{index:03}" for index in range(40)]
    cuts = [[keys[at : at + 5] for at in range(0, 40, 5)], [keys[max(0, at - 2) : at + 3] for at in range(0, 40, 5)]]
    cuts[1].append(keys[38:])
    failed = keys[::7]
    writers = [StoreWriter(URL, REGIONS) for _ in cuts]
    remote.lag = lag
    together(
        [lambda at=at: [write_unit(writers[at], each, failed) for each in cuts[at][:: 1 - 2 * at]] for at in (0, 1)]
    )
    remote.lag = 0
    good = [key for key in keys if key not in failed]
    found = verify_store(URL)
    assert found.problems == []
    store = open_store(URL)
    assert sorted(store) == good and len(store) == len(good)
    assert sorted(row.key for row in store.errors()) == failed
    counts = Counter(key for entry in store.entries for key in entry.all_keys())
    assert set(counts) == set(keys)
    fold(URL)
    assert_sound(good, failed, notes=None)  # both may have written one unit: the shard that its entry does not name


def together(tasks: Sequence[Callable[[], object]]) -> list[BaseException | None]:
    """Run at once; returns what each raised, which fails the test unless it is about a spec."""
    start, raised = threading.Barrier(len(tasks)), [None] * len(tasks)

    def run(at: int) -> None:
        start.wait()
        try:
            tasks[at]()
        except BaseException as error:
            raised[at] = error

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(error is None or isinstance(error, SpecMismatchError) for error in raised), raised
    return raised


def test_writers_that_make_a_store_at_once_agree_on_one_spec(remote: type[Faulty]) -> None:
    specs = [REGIONS, GRID] * 3
    raised = together([lambda spec=spec: StoreWriter(URL, spec) for spec in specs])
    view = open_store(URL).spec.view
    assert [error is None for error in raised] == [spec.view == view for spec in specs]


def test_a_writer_that_comes_between_the_look_and_the_write_wins(remote: type[Faulty]) -> None:
    met = []

    def other_comes_first(kind: str, path: str) -> None:
        if kind == "put" and not met:
            met.append(path)
            StoreWriter(URL, GRID)

    remote.faults = staticmethod(other_comes_first)
    with pytest.raises(SpecMismatchError):
        StoreWriter(URL, REGIONS)
    assert met and open_store(URL).spec.view == "grid"


def test_a_store_is_made_where_objects_cannot_be_created_on_condition(remote: type[Faulty]) -> None:
    remote.creates = False
    make([["a"]])
    assert_sound(["a"])
    with pytest.raises(SpecMismatchError):
        StoreWriter(URL, GRID)


@pytest.mark.parametrize("format", ["arrow", "arrow-zstd"])
@pytest.mark.parametrize("read_before", [[], ["a"], ["a", "b", "c"]])
def test_a_reader_goes_on_after_a_compaction(read_before: list[str], format: str, remote: type[Faulty]) -> None:
    make([["a"], ["b"], ["c"]], format=format)
    store = open_store(URL)
    for key in read_before:
        assert_same(store[key], region_record(key))
    assert compact(URL).units_after == 1
    for key in store:
        assert_same(store[key], region_record(key))
    wanted = pack([region_record(key) for key in "cab"])
    np.testing.assert_array_equal(store.batch(["c", "a", "b"]).values, wanted.values)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).batch(["c", "a", "b"]).values, wanted.values)


def test_a_missing_shard_is_told_in_one_line_and_others_are_read(remote: type[Faulty]) -> None:
    make([["a"], ["b"]])
    store = open_store(URL)
    store["a"]
    [entry] = [entry for entry in store.entries if "a" in entry.keys]
    store.place.remove(entry.shard.file)
    for fresh in (store, open_store(URL)):
        with pytest.raises(StoreError, match=r"is missing; `triptych verify` lists all damage\."):
            fresh["a"]
        assert_same(fresh["b"], region_record("b"))
    [problem] = verify_store(URL).problems
    assert (problem.file, problem.what, problem.keys) == (entry.shard.file, "missing", ["a"])


def test_changed_bytes_and_lengths_are_found(remote: type[Faulty]) -> None:
    make([["a"], ["b"]])
    first, second = (entry.shard.file for entry in open_store(URL).entries)
    place = open_place(URL)
    data = place.read(first)
    place.write(first, data[:100] + bytes([data[100] ^ 1]) + data[101:])
    place.write(second, place.read(second)[:-1])
    whats = {problem.file: problem.what for problem in verify_store(URL).problems}
    assert "checksum differs" in whats[first] and "bytes instead of" in whats[second]


def test_a_prefix_with_other_things_is_refused_and_an_empty_folder_object_is_none(remote: type[Faulty]) -> None:
    place = Bucket(URL)
    listed: list[dict[str, Any]] = [{"name": "bucket/features/", "type": "file", "size": 0}]
    place.fs.ls = lambda path, detail: listed
    assert not place.is_something_else("store.json", {"shards"})
    listed.append({"name": "bucket/features/shards", "type": "directory", "size": 0})
    assert not place.is_something_else("store.json", {"shards"})
    listed.append({"name": "bucket/features/thesis.pdf", "type": "file", "size": 5})
    assert place.is_something_else("store.json", {"shards"})
    del place.fs.ls
    place.write("thesis.pdf", b"x")
    with pytest.raises(StoreError, match=f"{URL} exists and is not a store"):
        StoreWriter(URL, REGIONS)


def test_connections_are_not_taken_into_a_forked_process(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Bucket(URL)
    first = place.fs
    assert place.fs is first
    process = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: process + 1)
    assert place.fs is not first and place.fs is place.fs


def test_paths_of_remote_stores_are_their_addresses() -> None:
    assert str(StoreWriter(URL, REGIONS).path) == str(open_store(URL + "/").path) == URL


def test_a_store_without_its_head_is_told_apart() -> None:
    with pytest.raises(StoreError, match=f"there is no store at {URL} "):
        open_store(URL)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://bucket/features", "install s3fs (`uv pip install s3fs`)"),
        ("nowhere://bucket/features", "cannot be reached (Protocol not known: nowhere"),
    ],
)
def test_an_address_that_nothing_here_can_reach_says_what_is_missing(
    url: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    registry = sys.modules["fsspec.registry"]
    monkeypatch.delitem(registry._registry, "s3", raising=False)
    for action in (lambda: open_store(url), lambda: StoreWriter(url, REGIONS)):
        with pytest.raises(StoreError) as caught:
            action()
        assert words in str(caught.value) and "\n" not in str(caught.value)
