"""Stores as torch data sets: every record once over ranks and workers, however the processes are started."""

from __future__ import annotations

import multiprocessing
import pickle
import socket
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from storage import FeatureStore, StoreError, StoreWriter, open_store
from storage.torch_data import StoreDataset, StoreIterable, as_tensor, tensors
from tests.unit.storage import torch_workers
from tests.unit.storage.samples import GRID, REGIONS, grid_record, make_store, with_layout, write_unit

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # more workers than cores
]

KEYS = [f"k{number:02}" for number in range(23)]
UNITS = [KEYS[:9], KEYS[9:]]


def as_they_are(samples: list[Any]) -> list[Any]:
    """Records of several sizes are not stacked."""
    return samples


def loader_of(dataset: Any, workers: int, start: str | None = None, **more: Any) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=3,
        num_workers=workers,
        multiprocessing_context=start if workers else None,
        collate_fn=as_they_are,
        **more,
    )


def samples_of(loader: DataLoader[Any]) -> list[dict[str, Any]]:
    return [sample for batch in loader for sample in batch]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store", UNITS)


def assert_is_record(sample: dict[str, Any], store: FeatureStore) -> None:
    """Everything that the record has, bit for bit."""
    wanted = {name: value for name, value in vars(store[sample["key"]]).items() if value is not None}
    assert set(sample) == set(wanted)
    for name, value in wanted.items():
        if isinstance(value, np.ndarray):
            found = sample[name]
            assert isinstance(found, torch.Tensor) and str(found.dtype) == f"torch.{value.dtype.name}", name
            assert found.shape == value.shape
            assert not value.size or bytes(found.reshape(-1).view(torch.uint8).numpy()) == value.tobytes(), name
        else:
            assert sample[name] == value


@pytest.mark.parametrize("kind", ["map", "stream"])
@pytest.mark.parametrize(
    ("workers", "start"),
    [
        pytest.param(0, None, id="none"),
        pytest.param(2, "fork", id="fork"),
        pytest.param(2, "spawn", id="spawn", marks=pytest.mark.slow),
    ],
)
def test_a_dataloader_gives_each_record_once_whole_and_without_a_warning(
    path: Path, kind: str, workers: int, start: str | None
) -> None:
    dataset: Any = StoreDataset(path) if kind == "map" else StoreIterable(path, shuffle=1)
    store = open_store(path)
    store["k03"]  # one shard is mapped before processes are started
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # forked workers raise, too
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        found = samples_of(loader_of(dataset, workers, start))
    assert Counter(sample["key"] for sample in found) == Counter(KEYS)
    for sample in found:
        assert_is_record(sample, store)
    if kind == "map":
        assert [sample["key"] for sample in found] == list(store)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_ranks_and_workers_share_a_stream_without_overlap(path: Path, workers: int, world: int) -> None:
    shares = []
    for rank in range(world):
        dataset = StoreIterable(path, shuffle=5, rank=rank, world=world)
        dataset.set_epoch(2)
        found = [sample["key"] for sample in samples_of(loader_of(dataset, workers, "fork"))]
        assert len(found) == len(dataset)
        assert set(found) == {record.key for record in dataset.store.iter(5, 2, rank, world)}  # whatever the workers
        shares.append(found)
    assert Counter(key for share in shares for key in share) == Counter(KEYS)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_workers_than_records_still_give_each_once(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", [["a", "b"]])
    for rank, wanted in enumerate([["a"], ["b"]]):
        dataset = StoreIterable(path, rank=rank, world=2)
        assert [sample["key"] for sample in samples_of(loader_of(dataset, 3, "fork"))] == wanted


def test_a_stream_has_another_order_in_each_epoch_and_the_stores_own_without_a_seed(path: Path) -> None:
    shuffled, plain = StoreIterable(path, shuffle=1), StoreIterable(path)
    orders = []
    for epoch in (0, 1, 0):
        shuffled.set_epoch(epoch)
        orders.append([sample["key"] for sample in shuffled])
    assert orders[0] == orders[2] != orders[1]
    assert [sample["key"] for sample in plain] == list(open_store(path))


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_that_live_on_hear_of_the_next_epoch(path: Path, start: str) -> None:
    dataset = StoreIterable(path, shuffle=1)
    loader = loader_of(dataset, 1, start, persistent_workers=True)
    for epoch in (0, 3):
        dataset.set_epoch(epoch)
        wanted = [record.key for record in open_store(path).iter(1, epoch)]
        assert [sample["key"] for sample in samples_of(loader)] == wanted


def test_keys_decide_what_a_data_set_serves_and_in_which_order(path: Path) -> None:
    keys = ["k20", "k01", "k20", "k08"]
    dataset = StoreDataset(path, keys)
    assert len(dataset) == 4
    assert [dataset[index]["key"] for index in range(4)] == keys
    assert dataset[-1]["key"] == "k08"
    with pytest.raises(IndexError):
        dataset[4]
    with pytest.raises(KeyError, match="'k99' is not among the 23 keys"):
        StoreDataset(path, ["k01", "k99"])


def test_shuffling_and_spreading_by_torchs_own_samplers_gives_each_record_once(path: Path) -> None:
    dataset = StoreDataset(path)
    found = samples_of(loader_of(dataset, 0, shuffle=True, generator=torch.Generator().manual_seed(1)))
    assert Counter(sample["key"] for sample in found) == Counter(KEYS)
    ranks: list[Any] = [torch.utils.data.DistributedSampler(dataset, 2, rank, shuffle=True) for rank in range(2)]
    shares = [[sample["key"] for sample in samples_of(loader_of(dataset, 0, sampler=rank))] for rank in ranks]
    assert set(shares[0]) | set(shares[1]) == set(KEYS)


@pytest.mark.parametrize("stored", ["float16", "float32", "bfloat16", "uint8"])
@pytest.mark.parametrize("asked", [None, "float32", "bfloat16"])
def test_features_are_tensors_of_the_dtype_asked_for(tmp_path: Path, stored: str, asked: str | None) -> None:
    path = make_store(tmp_path / "store", UNITS, with_layout(REGIONS, dtype=stored))
    store = open_store(path, asked)
    wanted = getattr(torch, asked or ("float16" if stored == "uint8" else stored))
    for dataset in (StoreDataset(path, dtype=asked), StoreIterable(path, dtype=asked)):
        samples = samples_of(loader_of(dataset, 0))
        assert len(samples) == 23
        for sample in samples:
            assert sample["features"].dtype == sample["whole_image"].dtype == wanted
            assert_is_record(sample, store)
            if wanted == torch.bfloat16:
                numbers = store[sample["key"]].features.astype(np.float32)
                np.testing.assert_array_equal(sample["features"].float().numpy(), numbers)


@pytest.mark.parametrize("format", ["arrow", "hdf5", "arrow-zstd"])
@pytest.mark.parametrize("stored", ["float16", "bfloat16", "uint8"])
def test_tensors_can_be_written_without_a_warning_and_change_no_file(tmp_path: Path, format: str, stored: str) -> None:
    spec = with_layout(REGIONS, dtype=stored, class_probs=3)
    store = open_store(make_store(tmp_path / "store", UNITS, spec, format=format))
    before = {path: path.read_bytes() for path in store.path.rglob("*.*") if path.is_file()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for record in store.values():
            for value in tensors(record).values():
                if isinstance(value, torch.Tensor):
                    value.zero_()
    assert before == {path: path.read_bytes() for path in before}


def test_tensors_share_the_memory_of_their_record(path: Path) -> None:
    record = open_store(path)["k03"]
    found = tensors(record)
    assert found["features"].data_ptr() == record.features.ctypes.data
    assert found["key"] == "k03" and found["image_size"] == record.image_size and "class_probs" not in found
    assert as_tensor(np.arange(3, dtype=np.int32)).tolist() == [0, 1, 2]


def test_grids_stack_into_batches_by_torchs_own_collate(tmp_path: Path) -> None:
    spec = with_layout(GRID, dtype="bfloat16")
    writer = StoreWriter(tmp_path / "store", spec)
    with writer.unit(KEYS) as unit:
        for key in KEYS:
            unit.append(grid_record(key, (2, 3), spec))
        unit.commit()
    [batch] = list(DataLoader(StoreDataset(writer.path), batch_size=23))
    assert batch["features"].shape == (23, 2, 3, 8) and batch["features"].dtype == torch.bfloat16
    assert batch["key"] == KEYS


def test_a_data_set_sent_elsewhere_carries_no_features_and_serves_the_same(path: Path) -> None:
    for dataset in (StoreDataset(path, KEYS[::-1]), StoreIterable(path, shuffle=3)):
        served = [sample["key"] for sample in samples_of(loader_of(dataset, 0))]
        sent = pickle.dumps(dataset)
        assert len(sent) < 4000
        assert [sample["key"] for sample in samples_of(loader_of(pickle.loads(sent), 0))] == served


def test_a_data_set_sent_elsewhere_refuses_a_store_that_grew(path: Path) -> None:
    sent = [pickle.dumps(StoreDataset(path)), pickle.dumps(StoreIterable(path))]
    write_unit(StoreWriter(path, REGIONS), ["later"])
    for each in sent:
        with pytest.raises(StoreError, match="has changed since this data set was made; make it anew"):
            pickle.loads(each)


def test_forked_workers_serve_the_store_as_it_was_when_it_was_opened(path: Path) -> None:
    for dataset in (StoreDataset(path), StoreIterable(path)):
        write_unit(StoreWriter(path, REGIONS), [f"later {type(dataset).__name__}"])
        found = [sample["key"] for sample in samples_of(loader_of(dataset, 2, "fork"))]
        assert len(found) == len(dataset) and Counter(found).keys() >= set(KEYS) and max(Counter(found).values()) == 1


def test_a_missing_shard_is_an_error_of_the_loop(path: Path) -> None:
    for file in (path / "shards").iterdir():
        file.unlink()
    for dataset in (StoreDataset(path), StoreIterable(path)):
        for workers in (0, 1):
            coming = iter(loader_of(dataset, workers, "fork"))
            with pytest.raises(StoreError, match="is missing; `triptych verify`"):
                next(coming)
            if workers:
                coming._shutdown_workers()  # type: ignore[attr-defined]  # left to the garbage collector, it takes seconds


def test_what_makes_no_sense_is_refused_before_workers_are_started(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank 1 is not one of 1 processes"):
        StoreIterable(path, rank=1)
    with pytest.raises(ValueError, match="must not be negative"):
        StoreIterable(path, shuffle=-1)
    for kind in (StoreDataset, StoreIterable):
        with pytest.raises(StoreError, match="there is no store at"):
            kind(tmp_path / "absent")


@pytest.mark.slow
def test_real_ranks_find_their_shares_by_themselves(path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=torch_workers.serve, args=(path, rank, 2, port, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=90) for _ in processes)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert Counter(found[0] + found[1]) == Counter(KEYS)
    assert [len(found[0]), len(found[1])] == [11, 12]
