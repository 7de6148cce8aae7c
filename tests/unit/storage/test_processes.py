"""Several processes on one store, and processes that die in the middle: nothing lost, nothing doubled, nothing torn.

Processes are started by a fork server that has imported the workers, so that starting one takes milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from storage import FeatureStore, StoreWriter, open_store, verify_store
from storage.writer import unit_id
from tests.forked import PROCESSES
from tests.unit.storage import workers
from tests.unit.storage.samples import REGIONS, assert_same, make_store, partials, region_record, write_unit


def finish(*processes: BaseProcess) -> None:
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def assert_whole(path: Path) -> FeatureStore:
    """The store opens, verifies, and every record in it is the one its key asks for."""
    assert verify_store(path).problems == []
    store = open_store(path)
    for record in store.values():
        assert_same(record, region_record(record.key))
    return store


def test_two_processes_with_different_cuts_of_the_same_images_lose_and_double_nothing(tmp_path: Path) -> None:
    keys = [f"image{index:03}" for index in range(60)]
    failed = keys[::7]
    cuts = [[keys[at : at + 6] for at in range(0, 60, 6)], [keys[max(0, at - 2) : at + 4] for at in range(0, 60, 6)]]
    cuts[1].append(keys[58:])
    start = PROCESSES.Barrier(2)
    arguments = [(tmp_path / "store", units, failed, start) for units in (cuts[0], cuts[1][::-1])]
    processes = [PROCESSES.Process(target=workers.write_units, args=each) for each in arguments]
    for process in processes:
        process.start()
    finish(*processes)
    store = assert_whole(tmp_path / "store")
    counts = Counter(key for entry in store.entries for key in entry.all_keys())
    assert counts == Counter(keys)  # each once
    assert {row.key for row in store.errors()} == set(failed)
    assert len(store) + len(store.errors()) == len(keys)
    assert partials(tmp_path) == []


def test_processes_that_make_a_store_at_once_agree_on_one_spec(tmp_path: Path) -> None:
    start, results = PROCESSES.Barrier(4), PROCESSES.Queue()
    views = ["regions", "grid", "regions", "grid"]
    arguments = [(tmp_path / "store", view, start, results) for view in views]
    processes = [PROCESSES.Process(target=workers.create, args=each) for each in arguments]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in views]
    finish(*processes)
    view = open_store(tmp_path / "store").spec.view
    assert sorted(found) == sorted((each, "made" if each == view else "refused") for each in views)
    assert verify_store(tmp_path / "store").problems == []
    assert partials(tmp_path) == []


def test_a_job_killed_at_random_moments_leaves_whole_records_and_goes_on(tmp_path: Path) -> None:
    seed = 20240229
    moments = random.Random(seed)
    path = StoreWriter(tmp_path / "store", REGIONS).path
    sizes = []
    for turn in range(8):
        begun = PROCESSES.Event()
        process = PROCESSES.Process(target=workers.write_until_killed, args=(path, begun))
        process.start()
        assert begun.wait(60)
        moment = moments.uniform(0.0, 0.06)
        process.join(moment)  # it never ends by itself: this waits for the moment
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        store = assert_whole(path)
        sizes.append(len(store))
        print(f"seed {seed}, turn {turn}: killed after {moment:.4f} s, {len(store)} records")
        assert len(store) == 2 * len(store.errors())  # units are whole: two records and one failed image each
    assert sizes == sorted(set(sizes))  # every job went on where the one before was killed
    StoreWriter(path, REGIONS)
    assert partials(path) == []


def test_a_process_killed_before_any_step_of_a_commit_loses_its_unit_at_most(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", [["a", "b"]])
    committed_at = None
    for steps in range(200):
        process = PROCESSES.Process(target=workers.write_and_die, args=(path, ["c", "d"], steps))
        process.start()
        process.join(60)
        store = assert_whole(path)
        assert set(store.keys()) in ({"a", "b"}, {"a", "b", "c", "d"})
        if "c" in store and committed_at is None:
            committed_at = steps
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert process.exitcode == 0 and steps > 10
    assert committed_at is not None
    write_unit(StoreWriter(path, REGIONS), ["c", "d"])
    assert set(assert_whole(path).keys()) == {"a", "b", "c", "d"}
    assert partials(path) == []


def test_a_unit_killed_between_shard_and_entry_is_written_again(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", [["a"]])
    orphan = path / "shards" / f"{unit_id(REGIONS.id, ['b'])}.arrow"
    orphan.write_bytes(b"of a job that died before its manifest entry")
    write_unit(StoreWriter(path, REGIONS), ["b"])
    assert set(assert_whole(path).keys()) == {"a", "b"}


@pytest.fixture(autouse=True, scope="module")
def _end_of_processes() -> Iterator[None]:
    """No test leaves a process behind."""
    yield
    assert multiprocessing.active_children() == []
