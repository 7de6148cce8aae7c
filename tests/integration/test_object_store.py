"""Stores on S3, against moto's server on a loopback port, with faults put between it and the client."""

from __future__ import annotations

import multiprocessing
import pickle
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from storage import SpecMismatchError, StoreError, StoreWriter, open_store, verify_store
from storage.bucket import Bucket
from storage.compact import compact, fold
from storage.records import pack
from tests.helpers import TINY, by_others, differences, s3_environment, write_photos
from tests.unit.storage.samples import (
    GRID,
    PATCHES,
    PIXELS,
    REGIONS,
    assert_same,
    record_of,
    region_record,
    with_layout,
    write_unit,
)
from tests.unit.storage.workers import checksums
from tests.unit.trainers.toy import Toy, toy_config, toy_model
from tests.wire import Wire, s3_server
from trainers.checkpoint import Checkpoints
from trainers.loop import resume, train
from workflows.cli import main

KEYS = [f"image{index:03}" for index in range(12)]


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with s3_server() as (found, address):
        found.address = address  # type: ignore[attr-defined]
        yield found


@pytest.fixture
def url(wire: Wire, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """An address for a new store; temporary files of stores lie in `tmp_path / "tmp"`, and none may be left."""
    wire.clear()
    settings(monkeypatch, wire.address)  # type: ignore[attr-defined]
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    fsspec.filesystem("s3").mkdirs("bucket", exist_ok=True)
    yield f"s3://bucket/{re.sub(r'[^a-z0-9]+', '-', request.node.name)}"
    wire.clear()
    assert list((tmp_path / "tmp").glob("triptych*")) == []


def settings(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """The usual environment variables, and nothing of the machine this runs on."""
    for name, value in s3_environment(address).items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()


def assert_sound(url: str, keys: Iterable[str], notes: int = 0) -> None:
    found = verify_store(url)
    assert found.problems == [] and len(found.notes) == notes, found
    store = open_store(url)
    assert sorted(store) == sorted(keys)
    for record in store.values():
        assert_same(record, region_record(record.key))


def test_motos_own_server_holds_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        settings(monkeypatch, "http://{}:{}".format(*server.get_host_and_port()))
        fsspec.filesystem("s3").mkdir("plain")
        write_unit(StoreWriter("s3://plain", REGIONS), ["a", "b"], ["b"])
        assert_sound("s3://plain", ["a"])
        assert [row.key for row in open_store("s3://plain").errors()] == ["b"]
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("format", "dtype", "view"),
    [
        ("arrow", "float16", REGIONS),
        ("hdf5", "uint8", REGIONS),
        ("arrow", "bfloat16", GRID),
        ("arrow-zstd", "float16", GRID),
        ("hdf5", "float16", PATCHES),
        ("arrow", "bytes", PIXELS),
    ],
)
def test_a_store_is_written_folded_compacted_and_read(
    format: str, dtype: str, view: Any, url: str, tmp_path: Path
) -> None:
    spec = with_layout(view, dtype=dtype)
    for path in (url, tmp_path / "store"):
        writer = StoreWriter(path, spec, format=format)
        for keys in (KEYS[:5], KEYS[5:9], KEYS[9:]):
            write_unit(writer, keys, KEYS[::5])
    here = open_store(tmp_path / "store")
    for step in (lambda: None, lambda: fold(url), lambda: compact(url)):
        step()
        there = open_store(url)
        assert sorted(there) == sorted(here) and there.errors() == here.errors()
        for key in there:
            assert_same(there[key], here[key])
        np.testing.assert_array_equal(there.batch(list(here)).values, here.batch(list(here)).values)
        for quick in (True, False):
            found = verify_store(url, quick)
            assert found.problems == found.notes == [] and found.records == len(here)


def test_reading_fetches_what_is_asked_for_and_several_at_once(url: str, wire: Wire) -> None:
    spec = with_layout(REGIONS, dim=2048)
    keys = [f"image{index:03}" for index in range(300)]
    write_unit(StoreWriter(url, spec), keys)
    store = open_store(url)
    [entry] = store.entries
    assert entry.shard is not None
    store[keys[0]]
    wire.requests.clear()
    record = record_of(keys[7], spec)
    assert_same(store[keys[7]], record)
    assert [size for _, size in wire.requests] == [record.features.nbytes, record.whole_image.nbytes]
    wire.requests.clear()
    wire.slow = 0.1
    asked = keys[::20]
    values = store.batch(asked).values
    np.testing.assert_array_equal(values, pack([record_of(key, spec) for key in asked]).values)
    assert wire.busiest >= 5
    assert len(wire.requests) <= len(asked) and sum(size for _, size in wire.requests) <= 2 * values.nbytes + 65536


def test_opening_and_committing_take_few_requests(url: str, wire: Wire) -> None:
    writer = StoreWriter(url, REGIONS)
    write_unit(writer, ["a"])
    wire.requests.clear()
    write_unit(writer, ["b"])
    asked = [what.split("/features")[0].split()[0] for what, _ in wire.requests]
    assert sorted(asked) == ["GET", "GET", "HEAD", "PUT", "PUT"]  # listing and index; shard, its length, entry
    wire.requests.clear()
    store = open_store(url)
    assert len(wire.requests) == 4 + 2 and not any("/shards/" in what for what, _ in wire.requests)
    wire.requests.clear()
    store["a"]
    assert len(wire.requests) <= 4


@pytest.mark.parametrize("how", [500, 503, "cut", "stop"])
@pytest.mark.parametrize(
    "pattern", ["PUT .*/shards/", "PUT .*/manifest/", "GET .*/shards/", "GET .*/manifest/", "GET .*list-type"]
)
def test_passing_faults_are_lived_through(pattern: str, how: str | int, url: str, wire: Wire) -> None:
    if how == "stop" and not pattern.startswith("GET"):
        pytest.skip("only answers break off")
    write_unit(StoreWriter(url, REGIONS), ["a"])
    wire.fail(pattern, how, times=1)
    write_unit(StoreWriter(url, REGIONS), ["b"])
    assert_same(open_store(url)["a"], region_record("a"))
    wire.clear()
    assert_sound(url, ["a", "b"])


@pytest.mark.slow
@pytest.mark.parametrize("how", [500, "cut"])
@pytest.mark.parametrize("part", ["/shards/", "/manifest/", "/index/keys", "/index.json"])
def test_lasting_faults_end_in_one_line_and_the_same_again_succeeds(
    part: str, how: str | int, url: str, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (part, how) != ("/shards/", 500):  # one with all the patience there is
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        monkeypatch.setattr("storage.bucket.WAITS", (0.1,))
        fsspec.filesystem("s3").clear_instance_cache()
    writer = StoreWriter(url, REGIONS)
    write_unit(writer, ["a"])
    wire.fail(f"PUT .*{part}", how)
    begun = time.monotonic()
    with pytest.raises(StoreError) as caught:
        write_unit(writer, ["b"])
        fold(url)
    assert time.monotonic() - begun < 90
    line = str(caught.value)
    assert line.startswith(f"{url}{part}") and "cannot be written" in line and "\n" not in line
    wire.clear()
    early = part in ("/shards/", "/manifest/")
    assert_sound(url, ["a"] if early else ["a", "b"], notes=int(part == "/manifest/"))
    write_unit(StoreWriter(url, REGIONS), ["b"])
    fold(url)
    assert_sound(url, ["a", "b"], notes=int(part == "/manifest/"))


@pytest.mark.slow
def test_an_upload_in_parts_that_breaks_off_leaves_nothing(
    url: str, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = S3FileSystem._put_file

    async def in_small_parts(files: S3FileSystem, *given: Any, **more: Any) -> None:
        await whole(files, *given, **{**more, "chunksize": 5 << 20})  # of usually 50 MiB; S3 takes no smaller ones

    monkeypatch.setattr(S3FileSystem, "_put_file", in_small_parts)
    S3FileSystem.clear_instance_cache()
    place = Bucket(url)
    for faulty in (True, False):
        draft = place.draft("shards/x.arrow")
        with draft.open("wb") as handle:
            handle.truncate(11 << 20)
        if faulty:
            wire.fail("PUT .*partNumber=2", 500)
            with pytest.raises(StoreError, match="shards/x.arrow cannot be written"):
                place.publish(draft, "shards/x.arrow")
            wire.clear()
            assert place.size("shards/x.arrow") is None and place.names("shards") == []
        else:
            wire.fail("PUT .*partNumber=2", "cut", times=1)
            place.publish(draft, "shards/x.arrow")
            assert place.size("shards/x.arrow") == 11 << 20


def test_a_bucket_that_is_not_there_is_told_in_one_line(url: str) -> None:
    for action in (lambda: open_store("s3://nowhere/s"), lambda: StoreWriter("s3://nowhere/s", REGIONS)):
        with pytest.raises(StoreError, match=r"s3://nowhere/s/store\.json cannot be .*make the bucket, or correct"):
            action()


def test_refused_credentials_are_told_in_one_line(url: str, wire: Wire) -> None:
    wire.fail(".", 403)
    for action in (lambda: open_store(url), lambda: StoreWriter(url, REGIONS), lambda: verify_store(url)):
        with pytest.raises(StoreError, match=r"json cannot be read \(.*\); check the credentials") as caught:
            action()
        assert "\n" not in str(caught.value)


def test_missing_credentials_are_told_in_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", "/nonexistent")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(StoreError, match=r"cannot be read \(.*\); check the credentials"):
        open_store(url)


def test_a_service_that_does_not_answer_is_told_within_a_minute(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings(monkeypatch, "http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(StoreError, match=r"cannot be read \(Could not connect .*\); check the address of the service"):
        open_store(url)
    assert time.monotonic() - begun < 60


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_other_processes_read_a_store_that_was_opened_and_read_here(start: str, url: str) -> None:
    write_unit(StoreWriter(url, REGIONS), KEYS)
    store = open_store(url)
    mine = checksums(store)
    assert checksums(pickle.loads(pickle.dumps(store))) == mine
    context = multiprocessing.get_context(start)
    assert by_others(context, checksums, [store, store]) == [mine, mine]
    if start == "fork":  # inherited, not pickled: its connections must not be used in the child
        result = context.Queue()
        child = context.Process(target=lambda: result.put(checksums(store)))
        child.start()
        assert result.get(timeout=60) == mine
        child.join(60)
        assert child.exitcode == 0
    assert checksums(store) == mine


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_of_a_data_loader_read_a_store(url: str) -> None:
    from torch.utils.data import DataLoader

    write_unit(StoreWriter(url, REGIONS), KEYS)
    store = open_store(url)
    store[KEYS[0]]
    loader: Any = DataLoader(KEYS, batch_size=3, num_workers=2, collate_fn=lambda keys: store.batch(keys), timeout=60)  # type: ignore[arg-type]
    found = [key for batch in loader for key in batch.keys]
    assert found == KEYS


def together(*tasks: Callable[[], object]) -> list[BaseException | None]:
    start = threading.Barrier(len(tasks))
    raised: list[BaseException | None] = [None] * len(tasks)

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
        thread.join(120)
    return raised


def write_units(url: str, units: list[list[str]]) -> None:
    writer = StoreWriter(url, REGIONS)
    for keys in units:
        write_unit(writer, keys)


CUTS = [[KEYS[at : at + 3] for at in range(0, 12, 3)], [KEYS[max(0, at - 2) : at + 2] for at in range(12, -1, -4)]]


def assert_all_there(url: str) -> None:
    assert verify_store(url).problems == []
    store = open_store(url)
    assert sorted(store) == KEYS and len(store) == len(KEYS)
    for key in KEYS:
        assert_same(store[key], region_record(key))


def test_two_threads_with_different_cuts_lose_and_double_nothing(url: str) -> None:
    assert together(*(lambda units=units: write_units(url, units) for units in CUTS)) == [None, None]
    assert_all_there(url)


@pytest.mark.slow
def test_two_processes_with_different_cuts_lose_and_double_nothing(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=write_units, args=(url, units)) for units in CUTS]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert_all_there(url)


def test_of_writers_with_two_specs_one_wins(url: str) -> None:
    specs = [REGIONS, GRID] * 3
    raised = together(*(lambda spec=spec: StoreWriter(url, spec) for spec in specs))
    view = open_store(url).spec.view
    assert [error is None for error in raised] == [spec.view == view for spec in specs], raised
    assert all(error is None or isinstance(error, SpecMismatchError) for error in raised)


def test_a_reader_goes_on_after_a_compaction(url: str) -> None:
    write_units(url, CUTS[0])
    fresh, used = open_store(url), open_store(url)
    checksums(used)
    assert compact(url).units_after == 1
    for store in (fresh, used):
        for key in KEYS:
            assert_same(store[key], region_record(key))
        assert store.batch(KEYS).keys == KEYS


def test_folders_that_a_console_made_are_no_foreign_content(url: str) -> None:
    s3 = fsspec.filesystem("s3")
    for folder in ("", "shards/"):
        s3.call_s3("put_object", Bucket="bucket", Key=f"{url.removeprefix('s3://bucket/')}/{folder}", Body=b"")
    write_unit(StoreWriter(url, REGIONS), ["a"])
    assert_sound(url, ["a"])
    with pytest.raises(StoreError, match="exists and is not a store"):
        StoreWriter("s3://bucket", REGIONS)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local"])
def test_the_commands_take_an_address(
    engine: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photos(tmp_path / "photos", 6)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    for out in (url, str(tmp_path / "store")):
        for _ in range(2):  # the second time there is nothing to do
            flags = ["--images", str(tmp_path / "photos"), "--out", out, "--engine", engine, "--model", "r50", *TINY]
            assert main(["extract", "grid", *flags]) == 0
    assert differences(url, tmp_path / "store") == []  # type: ignore[arg-type]
    capsys.readouterr()
    for command in ("info", "verify", "errors"):
        assert main([command, url]) == 0
    told = capsys.readouterr().out
    assert "6" in told and "broken" in told
    assert not Path("s3:").exists()
    assert main(["info", f"{url}-absent"]) == 2
    line = capsys.readouterr().err
    assert "there is no store at s3://" in line and "Traceback" not in line


def test_a_training_run_lies_there_and_goes_on(url: str, wire: Wire) -> None:
    """One upload breaks off on the way."""
    wire.fail("PUT .*model.safetensors", "cut", times=1)
    first = train(toy_config(url), toy_model(), Toy(), Toy(10))
    assert Checkpoints(url).steps() == [8, 12]
    Checkpoints(url).remove(12)
    again = resume(toy_config(url), toy_model(), Toy(), Toy(10))
    assert (again.losses, again.scores) == (first.losses, first.scores)
    assert not wire.faults[0][2]
