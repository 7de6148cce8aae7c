"""A disk that is really full, a folder that became read-only, a permission that was lost: one clear line each, and the
store stays what it was. Needs root, for mounting a small file system and for becoming another user.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import storage.hdf5  # before a test forks: another user may not be allowed to read it
from storage import StoreError, StoreWriter, open_store, verify_store
from storage.compact import compact, fold
from storage.convert import convert
from storage.repair import repair_store
from tests.unit.storage.samples import REGIONS, assert_same, contents, make_store, region_record, write_unit

assert storage.hdf5
UNITS = [[f"{unit}{row}" for row in "abc"] for unit in range(6)]
KEYS = sorted(key for unit in UNITS for key in unit)
LATER = [f"later {row}" for row in range(60)]
PAGE = 4096
FORK = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@pytest.fixture
def disk() -> Iterator[Path]:
    """A file system of one megabyte, in a place that every user may enter."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root can mount a small file system")
    folder = Path(tempfile.mkdtemp(prefix="small-disk-"))
    try:
        folder.chmod(0o755)
        mount("-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", str(folder))
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    finally:
        folder.rmdir()


def fill(disk: Path, free: int) -> None:
    """Take up the disk but for so many bytes."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(PAGE))
        except OSError:
            pass
    os.truncate(filler, max(0, filler.stat().st_size - free))


def assert_as_before(path: Path, keys: list[str]) -> None:
    assert verify_store(path).problems == []
    store = open_store(path)
    assert sorted(store) == keys
    for key in keys:
        assert_same(store[key], region_record(key))


def assert_clear(error: BaseException, *words: str) -> None:
    assert "\n" not in str(error)
    for word in words:
        assert word in str(error)


def write(path: Path, out: Path, format: str) -> None:
    write_unit(StoreWriter(path, REGIONS, format=format), LATER)


def fold_it(path: Path, out: Path, format: str) -> None:
    fold(path)


def compact_it(path: Path, out: Path, format: str) -> None:
    compact(path)


def convert_it(path: Path, out: Path, format: str) -> None:
    convert(path, out, format)


WORK: dict[str, Any] = {
    "write": (write, "arrow"),
    "fold": (fold_it, "arrow"),
    "compact": (compact_it, "arrow"),
    "convert": (convert_it, "arrow"),
    "convert to an archive": (convert_it, "arrow-zstd"),
}


@pytest.mark.parametrize(("work", "format"), WORK.values(), ids=WORK.keys())
def test_a_disk_that_is_full_sooner_or_later_is_told_in_one_line_and_costs_nothing(
    disk: Path, work: Callable[[Path, Path, str], None], format: str
) -> None:
    """With a page more room each time, it gets further each time, until there is enough."""
    refused = 0
    for pages in range(200):
        path, out = disk / "store", disk / "out"
        for each in (path, out):
            shutil.rmtree(each, ignore_errors=True)
        make_store(path, UNITS, format=format if work is compact_it else "arrow")
        fill(disk, pages * PAGE)
        try:
            work(path, out, format)
            break
        except StoreError as error:
            refused += 1
            assert_clear(error, "cannot write", "No space left on device", "make room")
        assert_as_before(path, KEYS)
        assert work is not convert_it or not (out / "store.json").exists() or verify_store(out).problems == []
        (disk / "filler").unlink()
        if pages % 4 == 0:  # the same command goes on from there
            work(path, out, format)
            assert_as_before(path, sorted(KEYS + LATER) if work is write else KEYS)
            assert work is not convert_it or sorted(open_store(out)) == KEYS
    else:
        pytest.fail("the disk was never large enough")
    assert refused >= 4
    assert_as_before(path, sorted(KEYS + LATER) if work is write else KEYS)


def test_a_disk_that_is_full_for_hdf5_is_told_in_one_line_too(disk: Path) -> None:
    """In processes of their own: HDF5 tidies up when a process ends, and may crash then."""
    for pages in range(8):
        shutil.rmtree(disk / "store", ignore_errors=True)
        path = make_store(disk / "store", UNITS, format="hdf5")
        fill(disk, pages * PAGE)
        command = [sys.executable, "-c", WRITE_HDF5, str(path)]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        told = done.stdout.splitlines()
        assert told == ["enough room"] or (len(told) == 1 and "No space left on device" in told[0])
        if told != ["enough room"]:
            assert_as_before(path, KEYS)
        (disk / "filler").unlink()
    assert told == ["enough room"]


WRITE_HDF5 = """
import sys
from pathlib import Path
from storage import StoreError
from tests.faults.test_store_faults import write
try:
    write(Path(sys.argv[1]), Path(), "hdf5")
    print("enough room")
except StoreError as error:
    print(error)
"""


def damage(path: Path) -> list[str]:
    """Cut a shard; returns the keys that are left."""
    entry = open_store(path).entries[0]
    assert entry.shard is not None
    os.truncate(path / entry.shard.file, 100)
    return sorted(set(KEYS) - set(entry.keys))


def test_a_full_disk_stops_a_repair_in_one_line_and_making_room_lets_it_end(disk: Path) -> None:
    path = make_store(disk / "store", UNITS)
    fold(path)
    left = damage(path)
    fill(disk, 0)
    with pytest.raises(StoreError) as caught:
        repair_store(path)
    assert_clear(caught.value, "cannot write", "No space left on device")
    assert sorted(open_store(path)) == KEYS
    (disk / "filler").unlink()
    repair_store(path)
    assert_as_before(path, left)


EVERYTHING: dict[str, Callable[[Path, Path], Any]] = {
    "begin writing": lambda path, out: StoreWriter(path, REGIONS),
    "write": lambda path, out: write(path, out, "arrow"),
    "write hdf5": lambda path, out: write(path, out, "hdf5"),
    "fold": lambda path, out: fold(path),
    "compact": lambda path, out: compact(path),
    "convert beside it": lambda path, out: convert(path, out, "arrow"),
    "repair": lambda path, out: repair_store(path),
}


@pytest.mark.parametrize("work", EVERYTHING.values(), ids=EVERYTHING.keys())
def test_a_disk_that_became_read_only_is_told_in_one_line_and_its_store_is_read(
    disk: Path, work: Callable[[Path, Path], Any]
) -> None:
    path = make_store(disk / "store", UNITS)
    before = contents(path)
    mount("-o", "remount,ro", str(disk))
    with pytest.raises(StoreError) as caught:
        work(path, disk / "out")
    assert_clear(caught.value, "cannot write", "Read-only file system")
    assert_as_before(path, KEYS)
    assert contents(path) == before


def test_a_writer_whose_disk_becomes_read_only_is_told_in_one_line(disk: Path) -> None:
    path = make_store(disk / "store", UNITS)
    writer = StoreWriter(path, REGIONS)
    mount("-o", "remount,ro", str(disk))
    with pytest.raises(StoreError) as caught:
        write_unit(writer, LATER)
    assert_clear(caught.value, "cannot write", "Read-only file system")
    assert_as_before(path, KEYS)


def as_nobody(work: Callable[[Path, Path], Any], path: Path, results: Any) -> None:
    os.setgid(65534)
    os.setuid(65534)
    told = "it was allowed"
    try:
        work(path, path.with_name("out"))
    except StoreError as error:
        told = str(error)
    except Exception as error:
        told = f"{type(error).__name__}, which is no StoreError: {error}"
    try:
        assert_as_before(path, KEYS)
    except Exception as error:
        results.put((told, repr(error)))
    else:
        results.put((told, "read"))


@pytest.fixture
def owned() -> Iterator[Path]:
    """A store of root's in a folder that everybody may enter."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    folder = Path(tempfile.mkdtemp(prefix="owned-"))
    folder.chmod(0o755)
    yield make_store(folder / "store", UNITS)
    shutil.rmtree(folder)


def told_to_nobody(work: Callable[[Path, Path], Any], path: Path) -> tuple[str, str]:
    results = FORK.Queue()
    process = FORK.Process(target=as_nobody, args=(work, path, results))
    process.start()
    found: tuple[str, str] = results.get(timeout=60)
    process.join(60)
    return found


@pytest.mark.parametrize("work", EVERYTHING.values(), ids=EVERYTHING.keys())
def test_a_user_without_permission_is_told_in_one_line_and_can_read(
    owned: Path, work: Callable[[Path, Path], Any]
) -> None:
    before = contents(owned)
    told, read = told_to_nobody(work, owned)
    assert read == "read"
    assert "\n" not in told and "cannot write" in told and "Permission denied" in told, told
    assert contents(owned) == before


@pytest.mark.parametrize("hidden", ["store.json", "shards", "manifest"])
def test_a_user_who_may_not_even_read_is_told_in_one_line(owned: Path, hidden: str) -> None:
    def read(path: Path, out: Path) -> None:
        list(open_store(path).values())

    (owned / hidden).chmod(0)
    told, _ = told_to_nobody(read, owned)
    assert "\n" not in told and hidden in told and "no StoreError" not in told, told
