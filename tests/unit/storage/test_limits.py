"""A store of more shards than a process may have files open can be read, as far as the system lets it ask for more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.storage.samples import make_store

SHARDS = 60
READ = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 4096))
import storage.limits
from storage import open_store
storage.limits.SPARE = 20  # so that few shards do
stores = [open_store(path) for path in sys.argv[1:]]
assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 40
for store in stores:
    assert [record.key for record in store.values()] == list(store)
    assert len(store.batch(list(store)).keys) == len(store)
print(sum(map(len, stores)), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""
REFUSED = """
import resource, sys
from storage import StoreError, open_store
store = open_store(sys.argv[1])
keys = list(store)
assert store[keys[0]].key == keys[0]
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
try:
    list(store.values())
except StoreError as error:
    print(error)
print(store[keys[0]].key == keys[0])
"""


def run(code: str, *paths: Path) -> str:
    command = [sys.executable, "-c", code, *map(str, paths)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("format", ["arrow", "hdf5", "arrow-zstd"])
def test_more_shards_than_a_process_may_have_files_open_are_read(tmp_path: Path, format: str) -> None:
    path = make_store(tmp_path / "store", [[f"{number:03}"] for number in range(SHARDS)], format=format)
    records, soft, hard = map(int, run(READ, path).split())
    assert records == SHARDS and hard == 4096
    assert SHARDS < soft <= 4096


def test_shards_of_several_stores_count_together(tmp_path: Path) -> None:
    paths = [make_store(tmp_path / str(at), [[f"{number:03}"] for number in range(20)]) for at in range(4)]
    records, soft, _ = map(int, run(READ, *paths).split())
    assert records == 80 and soft > 80


def test_a_limit_that_cannot_be_raised_is_told_in_one_line(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", [[f"{number:03}"] for number in range(SHARDS)])
    line, still_read = run(REFUSED, path).splitlines()
    assert "cannot be read" in line and "Too many open files" in line
    assert still_read == "True"
