"""How fast our store is read and written, against memcpy, the disk, and the stores that people use today.

    uv run python -m benchmarks.store --work /tmp/store-bench --out benchmarks/results

Protocol. Three sets of about 2.2 GB each, 2048 float16 values a row: 10 to 100 boxes (var), 36 boxes (fixed), 19 x 32
grids (grid). Ratios are medians over interleaved rounds, each against the baseline of its own round. Nothing else
should run.

warm    everything in the page cache. Random keys; features and boxes go into one reused buffer. Seconds are of CPU, for
        two processes of the wall clock. Baseline: numpy copying the same rows and boxes from arrays in memory.
cold    the caches of all files are dropped, and every candidate runs in a process of its own, its buffers filled
        before. Seconds are of the wall clock. Baselines: eight threads that `preadv` the same records into reused
        buffers; mapped reads without advice.
large   the same with a store larger than memory (--large GIB): a fifth of it, and the whole.
write   a shard of 256 MB, synced. Baseline: the same bytes written in 8 MiB pieces and synced.
shuffle how far apart records come out that lie next to each other: 1 is a perfect shuffle.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import feature_sets as sets
from benchmarks.machine import asked, hardware, table, write_results
from storage import FeatureStore, RegionRecord, StoreWriter, open_store
from storage.arrow import ArrowShardWriter
from storage.hdf5 import Hdf5ShardWriter
from storage.order import Order, batches
from storage.reading import KEPT, THREADS, BatchLoader, _Ring, record_bytes

BATCH, SMALL_BATCH, ROUNDS, FORMATS = 64, 8, 7, ("arrow", "hdf5")
COLD_ROUNDS, WRITING_ROUNDS = 3, 15
NPZ_IMAGES = {"var": 1500, "fixed": 1500, "grid": 200}


def build(work: Path) -> None:
    """Write what is missing of all stores."""
    rows = sets.pool()
    for kind, count in sets.IMAGES.items():
        if (work / kind / "done").exists():
            continue
        made = list(sets.records(kind, count, rows))
        for format in FORMATS:
            sets.write_store(work / kind / format, kind, format, made)
        few = made[: NPZ_IMAGES[kind]]
        sets.write_lmdb(work / kind / "pickle.lmdb", made, "pickle")
        sets.write_lmdb(work / kind / "uniter.lmdb", few, "uniter")
        sets.write_npz(work / kind / "npz", few)
        (work / kind / "done").touch()


# warm


def single_reads(read: Callable[[str], dict[str, np.ndarray]], keys: list[str], buffer: np.ndarray) -> int:
    """Read records one by one into the buffer; returns the bytes of features."""
    total = 0
    for key in keys:
        arrays = read(key)
        features = arrays["features"]
        buffer[: len(features)] = features
        total += features.nbytes
    return total


def batch_reads(read: Callable[[list[str], np.ndarray], Any], keys: list[str], buffer: np.ndarray) -> int:
    """Read batches of 64 into the buffer; returns the bytes of features."""
    total = 0
    for start in range(0, len(keys) - BATCH + 1, BATCH):
        total += read(keys[start : start + BATCH], buffer)
    return total


def from_memory(store: FeatureStore, keys: list[str]) -> Callable[[str], dict[str, np.ndarray]]:
    """The baseline: the same rows and boxes, as arrays in memory."""
    found = {}
    for key in keys:
        record = store[key]
        boxes = record.boxes if isinstance(record, RegionRecord) else np.zeros((0, 4), np.float32)
        found[key] = {"features": record.features.reshape(-1, sets.WIDTH).copy(), "boxes": boxes.copy()}
    return found.__getitem__


def one_by_one(read: Callable[[str], dict[str, np.ndarray]]) -> Callable[[list[str], np.ndarray], int]:
    """Batches of a store that gives single records: packed into the buffer as they come."""

    def batch(keys: list[str], buffer: np.ndarray) -> int:
        at, boxes = 0, []
        for key in keys:
            arrays = read(key)
            values = arrays["features"]
            buffer[at : at + len(values)] = values
            at += len(values)
            boxes.append(arrays["boxes"])
        np.concatenate(boxes)
        return at * buffer.shape[1] * buffer.itemsize

    return batch


def from_store(store: FeatureStore) -> Callable[[list[str], np.ndarray], int]:
    return lambda keys, buffer: store.batch(keys, out=buffer).values.nbytes


def warm(work: Path, kind: str) -> list[dict[str, Any]]:
    """Random single reads and batches, in GB per CPU second, and as shares of memcpy."""
    folder = work / kind
    stores = {format: open_store(folder / format) for format in FORMATS}
    keys = np.random.default_rng(2).permutation(list(stores["arrow"])).tolist()[: 25600 * 1024 * 1024 // (1 << 23)]
    few = [key for key in keys if int(key) < NPZ_IMAGES[kind]]
    memory = from_memory(stores["arrow"], keys)
    buffer = np.zeros((BATCH * max(len(memory(key)["features"]) for key in keys), sets.WIDTH), np.float16)
    ours = {format: sets.Ours(folder / format) for format in FORMATS}
    others: dict[str, Callable[[str], dict[str, np.ndarray]]] = {
        "LMDB, pickled float16": sets.Lmdb(folder / "pickle.lmdb", "pickle"),
        "UNITER's LMDB": sets.Lmdb(folder / "uniter.lmdb", "uniter"),
        "npz an image": sets.Npz(folder / "npz"),
    }
    subset = {"UNITER's LMDB", "npz an image"}
    positions = {format: stores[format].positions(keys) for format in FORMATS}

    def by_position(format: str) -> int:
        found = 0
        for start in range(0, len(keys) - BATCH + 1, BATCH):
            found += stores[format].batch(positions[format][start : start + BATCH], out=buffer).values.nbytes
        return found

    candidates: dict[tuple[str, str], Callable[[], int]] = {
        ("memcpy", "single"): lambda: single_reads(memory, keys, buffer),
        ("memcpy", "batch"): lambda: batch_reads(one_by_one(memory), keys, buffer),
    }
    for format in FORMATS:
        name = {"arrow": "Arrow", "hdf5": "HDF5"}[format]
        candidates[name, "single"] = lambda format=format: single_reads(ours[format], keys, buffer)
        candidates[name, "batch"] = lambda format=format: batch_reads(from_store(stores[format]), keys, buffer)
        candidates[f"{name}, by position", "batch"] = lambda format=format: by_position(format)
    for name, read in others.items():
        mine = few[: 4 * BATCH] if name in subset else keys
        candidates[name, "single"] = lambda read=read, mine=mine: single_reads(read, mine, buffer)
        candidates[name, "batch"] = lambda read=read, mine=mine: batch_reads(one_by_one(read), mine, buffer)
    return _rounds(candidates, kind)


def _rounds(candidates: dict[tuple[str, str], Callable[[], int]], kind: str) -> list[dict[str, Any]]:
    rates: dict[tuple[str, str], list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS + 1):  # the first one warms up
        for name, run in candidates.items():
            began = time.process_time()
            size = run()
            rates[name].append(size / 1e9 / (time.process_time() - began))
    found = []
    for (name, how), values in rates.items():
        shares = [mine / base for mine, base in zip(values[1:], rates["memcpy", how][1:], strict=True)]
        rate = {"gb_s": _median(values[1:]), "of_memcpy": _median(shares)}
        found.append({"set": kind, "store": name, "read": how, **rate})
    return found


def two_processes(work: Path, kind: str) -> list[dict[str, Any]]:
    """Two processes at once, batches by key: GB/s of the wall clock, together."""
    found = []
    context = multiprocessing.get_context("spawn")
    for name in ("memcpy", *FORMATS, "pickle"):
        rates = []
        for _ in range(3):
            start, results = context.Barrier(2), context.Queue()
            arguments = (str(work / kind), name, start, results)
            processes = [context.Process(target=_one_of_two, args=arguments) for _ in range(2)]
            for process in processes:
                process.start()
            rates.append(sum(results.get() for _ in processes))
            for process in processes:
                process.join()
        found.append({"set": kind, "store": name, "gb_s": _median(rates)})
    for row in found:
        row["of_memcpy"] = row["gb_s"] / found[0]["gb_s"]
    return found


def _one_of_two(folder: str, name: str, start: Any, results: Any) -> None:
    store = open_store(Path(folder) / ("hdf5" if name == "hdf5" else "arrow"))
    keys = np.random.default_rng(os.getpid()).permutation(list(store)).tolist()[:2560]
    rows = max(len(store[key].features.reshape(-1, sets.WIDTH)) for key in keys)
    buffer = np.zeros((BATCH * rows, sets.WIDTH), np.float16)
    read = from_store(store)
    if name == "memcpy":
        read = one_by_one(from_memory(store, keys))
    elif name == "pickle":
        read = one_by_one(sets.Lmdb(Path(folder) / "pickle.lmdb", "pickle"))
    batch_reads(read, keys, buffer)
    start.wait()
    began = time.perf_counter()
    size = sum(batch_reads(read, keys, buffer) for _ in range(3))
    results.put(size / 1e9 / (time.perf_counter() - began))


# cold


def cold_candidate(path: Path, how: str, records: int) -> dict[str, float]:
    """Read records of a store whose files are not in the page cache; runs in a process of its own."""
    _drop(path)
    store = open_store(path)
    order = np.random.default_rng(3).permutation(len(store))[:records]
    size, seconds = _COLD[how](store, order)
    return {"gb_s": size / 1e9 / seconds}


def _loader(store: FeatureStore, order: np.ndarray) -> tuple[int, float]:
    return _steady(store, order, batches(Order(len(store), record_bytes(store), seed=0), BATCH))


def _loader_small(store: FeatureStore, order: np.ndarray) -> tuple[int, float]:
    return _steady(store, order, batches(Order(len(store), record_bytes(store), seed=0), SMALL_BATCH), SMALL_BATCH)


def _loader_random(store: FeatureStore, order: np.ndarray) -> tuple[int, float]:
    return _steady(store, order, iter(np.array_split(order, max(1, len(order) // BATCH))))


def _steady(
    store: FeatureStore, order: np.ndarray, coming: Iterator[np.ndarray], size: int = BATCH
) -> tuple[int, float]:
    """Bytes and seconds of a loader whose buffers are there already, as they are after an epoch's first batches."""
    loader = BatchLoader(store, size)
    most = np.sort(store._reading(np.arange(len(store))).rows[:, 3])[-size:].sum()
    buffers = [np.ones((int(most), sets.WIDTH), np.float16) for _ in range(THREADS + 1 + KEPT)]  # zeros: made later
    loader._idle = _Ring([*buffers])
    _drop(store.path)  # opening the shards has read their heads; as for the baseline
    began, total, records = time.perf_counter(), 0, 0
    for batch in loader.read(coming):
        total += batch.values.nbytes
        records += len(batch.keys)
        if records >= len(order):
            break
    return total, time.perf_counter() - began


def _naive(store: FeatureStore, order: np.ndarray) -> tuple[int, float]:
    began = time.perf_counter()
    buffer = np.zeros((100 * 7, sets.WIDTH), np.float16)
    total = 0
    for position in order[: max(40, len(order) // 15)].tolist():
        features = store.at(position).features.reshape(-1, sets.WIDTH)
        buffer[: len(features)] = features
        total += features.nbytes
    return total, time.perf_counter() - began


def _preadv(store: FeatureStore, order: np.ndarray) -> tuple[int, float]:
    ranges = store._reading(order).ranges()
    handles = {path: os.open(path, os.O_RDONLY) for path in {path for path, _, _ in ranges}}
    buffers = [bytearray(b"1" * max(size for _, _, size in ranges)) for _ in range(BATCH)]

    def read(numbered: tuple[int, tuple[Path, int, int]]) -> int:
        number, (path, place, size) = numbered
        return os.preadv(handles[path], [memoryview(buffers[number % BATCH])[:size]], place)

    _drop(store.path)
    began = time.perf_counter()
    with ThreadPoolExecutor(8) as threads:
        total = sum(threads.map(read, enumerate(ranges)))
    return total, time.perf_counter() - began


_COLD = {
    "loader": _loader,
    "loader, batches of 8": _loader_small,
    "loader, any order": _loader_random,
    "naive": _naive,
    "preadv": _preadv,
}


def cold(work: Path, kind: str, rounds: int, records: int | None = None) -> list[dict[str, Any]]:
    """Shuffled reading of both formats against the two baselines."""
    found = []
    for format in FORMATS if records is None else ("arrow",):
        rates: dict[str, list[float]] = {how: [] for how in _COLD}
        for _ in range(rounds):
            for how in _COLD:
                path, count = work / kind / format, records or sets.IMAGES[kind]
                rates[how].append(_alone(how, path, count))
        for how, values in rates.items():
            row: dict[str, Any] = {"set": kind, "format": format, "how": how, "gb_s": _median(values)}
            for base in ("preadv", "naive"):
                row[f"of_{base}"] = _median([a / b for a, b in zip(values, rates[base], strict=True)])
            found.append(row)
    return found


def _alone(how: str, path: Path, records: int) -> float:
    """GB/s of a cold candidate in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.store", "--candidate", how, str(path), str(records)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rate: float = told["gb_s"]
    return rate


def large(work: Path, gib: int) -> list[dict[str, Any]]:
    """A store larger than memory; its records repeat, its bytes on disk do not know."""
    path = work / "large" / "arrow"
    if not (work / "large" / "done").exists():
        made = list(sets.records("var", sets.UNIT["var"], sets.pool()))
        writer = StoreWriter(path, sets.spec_of("var"))
        for unit_number in range(gib * 4):
            part = [replace(record, key=f"{unit_number:04d}-{record.key}") for record in made]
            with writer.unit([record.key for record in part]) as unit:
                for record in part:
                    unit.append(record)
                unit.commit()
        (work / "large" / "done").touch()
    store = open_store(path)
    rows = cold(work, "large", 1, records=len(store) // 5)
    naive = next(row["gb_s"] for row in rows if row["how"] == "naive")
    epoch = {how: _alone(how, path, len(store)) for how in ("loader", "preadv")}
    whole = {"set": "large", "format": "arrow"}
    for how, rate in epoch.items():
        shares = {"of_preadv": rate / epoch["preadv"], "of_naive": rate / naive}
        rows.append({**whole, "how": f"{how}, the whole epoch", "gb_s": rate, **shares})
    return rows


def _drop(path: Path) -> None:
    os.sync()
    for file in path.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


# writing


def writing(work: Path, kind: str) -> list[dict[str, Any]]:
    """Shards of about 256 MB against a plain write of as many bytes, all synced; GB/s of the wall clock."""
    spec = sets.spec_of(kind)
    made = list(sets.records(kind, sets.UNIT[kind], sets.pool()))
    made = [_own_memory(record) for record in made]
    plain = np.concatenate([record.features.reshape(-1) for record in made]).view(np.uint8)
    target = work / "written"
    candidates: dict[str, Callable[[], int]] = {"plain write": lambda: _plain_write(target, plain)}
    makers = {"Arrow": ArrowShardWriter, "HDF5": Hdf5ShardWriter}
    for name, maker in makers.items():
        for checksum in (True, False):
            label = name if checksum else f"{name}, no checksum"
            make = partial(maker, target, spec, checksum=checksum)
            candidates[label] = lambda make=make: _shard(make(), made)
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(WRITING_ROUNDS + 1):
        for name, run in candidates.items():
            target.unlink(missing_ok=True)
            os.sync()
            began = time.perf_counter()
            size = run()
            rates[name].append(size / 1e9 / (time.perf_counter() - began))
    target.unlink()
    base = rates["plain write"][1:]
    return [
        {
            "set": kind,
            "writer": name,
            "gb_s": _median(values[1:]),
            "of_plain": _median([a / b for a, b in zip(values[1:], base, strict=True)]),
            "checksum_costs": _costs(rates, name),
        }
        for name, values in rates.items()
    ]


def _costs(rates: dict[str, list[float]], name: str) -> float | None:
    """Share by which the checksum makes writing longer."""
    without = rates.get(f"{name}, no checksum")
    return _median([b / a for a, b in zip(rates[name][1:], without[1:], strict=True)]) - 1 if without else None


def _own_memory(record: Any) -> Any:
    return replace(record, features=record.features.copy())


def _plain_write(path: Path, data: np.ndarray) -> int:
    with path.open("wb", buffering=0) as handle:
        for start in range(0, len(data), 8 << 20):
            handle.write(memoryview(data[start : start + (8 << 20)]))
        os.fsync(handle.fileno())
    return len(data)


def _shard(writer: Any, made: list[Any]) -> int:
    for record in made:
        writer.append(record)
    size: int = writer.close()[0]
    return size


# shuffling


def shuffle_quality(records: int, size: int) -> dict[str, float]:
    """How far apart input neighbours come out: mean distance over that of a perfect shuffle, and other shares."""
    order = np.concatenate(list(Order(records, size, seed=0).positions()))
    place = np.empty(records, np.int64)
    place[order] = np.arange(records)
    gaps = np.abs(np.diff(place))
    perfect = np.abs(np.diff(np.random.default_rng(4).permutation(records)))
    return {
        "records": records,
        "record_bytes": size,
        "neighbours_apart_mean": float(gaps.mean()),
        "neighbours_apart_median": float(np.median(gaps)),
        "of_perfect": float(gaps.mean() / perfect.mean()),
        "neighbours_in_one_batch": float((np.diff(place // BATCH) == 0).mean()),
        "in_one_batch_when_perfect": BATCH / records,
        "moved_of_perfect": float(np.abs(place - np.arange(records)).mean() / (records / 3)),
    }


def _median(values: list[float]) -> float:
    return float(np.median(values))


def report(facts: dict[str, Any]) -> str:
    """The results as Markdown."""
    parts = [
        f"# Reading and writing the store, {time.strftime('%Y-%m-%d')}",
        f"{hardware()}. {asked()}",
        "## Warm: everything in memory",
        _warm_table(facts["warm"]),
        "Two processes at once, batches by key, GB/s of both together:",
        _two_table(facts["two_processes"]),
        "## Cold: nothing in memory",
        "`loader` is `BatchLoader(store, 64, shuffle=0)`; `any order` a permutation of all records, known in advance.",
        _cold_table(facts["cold"]),
        "## Writing",
        _writing_table(facts["writing"]),
        "## The shuffle",
        _shuffle_table(facts["shuffle"]),
    ]
    return "\n\n".join(parts) + "\n"


def _two_table(rows: list[dict[str, Any]]) -> str:
    cells = [[row["set"], row["store"], f"{row['gb_s']:.2f}", f"{row['of_memcpy']:.2f}"] for row in rows]
    return table(["set", "store", "GB/s", "x memcpy"], cells)


def _cold_table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        rates = [f"{row['gb_s']:.2f}", f"{row['of_preadv']:.2f}", f"{row['of_naive']:.1f}"]
        cells.append([row["set"], row["format"], row["how"], *rates])
    return table(["set", "format", "read by", "GB/s", "x 8-thread preadv", "x naive mapped reads"], cells)


def _writing_table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        costs = "" if row["checksum_costs"] is None else f"{row['checksum_costs']:.1%}"
        cells.append([row["set"], row["writer"], f"{row['gb_s']:.2f}", f"{row['of_plain']:.2f}", costs])
    return table(["set", "writer", "GB/s", "x plain write", "checksum costs"], cells)


def _shuffle_table(rows: list[dict[str, Any]]) -> str:
    header = ["records", "bytes each", "neighbours apart, mean", "of a perfect shuffle", "median"]
    header += ["neighbours in one batch of 64", "when perfect", "moved, of a perfect shuffle"]
    cells = []
    for row in rows:
        apart = [f"{row['neighbours_apart_mean']:,.0f}", f"{row['of_perfect']:.3f}"]
        apart.append(f"{row['neighbours_apart_median']:,.0f}")
        shares = [f"{row[name]:.2%}" for name in ("neighbours_in_one_batch", "in_one_batch_when_perfect")]
        moved = f"{row['moved_of_perfect']:.2f}"
        cells.append([f"{row['records']:,}", f"{row['record_bytes']:,}", *apart, *shares, moved])
    return table(header, cells)


def _warm_table(rows: list[dict[str, Any]]) -> str:
    found = []
    for row in rows:
        ours = {each["store"]: each for each in rows if (each["set"], each["read"]) == (row["set"], row["read"])}
        faster = ours["Arrow"]["gb_s"] / row["gb_s"]
        rate = [f"{row['gb_s']:.2f}", f"{row['of_memcpy']:.3f}"]
        found.append([row["set"], row["read"], row["store"], *rate, f"{faster:.1f}"])
    return table(["set", "read", "store", "GB per CPU second", "x memcpy", "Arrow is faster by"], sorted(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("store-bench"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--large", type=int, default=0, help="GiB of a store larger than memory; 0: leave out")
    parser.add_argument("--candidate", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.candidate:
        how, path, records = args.candidate
        print(json.dumps(cold_candidate(Path(path), how, int(records))))
        return
    build(args.work)
    facts: dict[str, Any] = {}
    facts["warm"] = [row for kind in sets.IMAGES for row in warm(args.work, kind)]
    facts["two_processes"] = [row for kind in sets.IMAGES for row in two_processes(args.work, kind)]
    facts["cold"] = [row for kind in sets.IMAGES for row in cold(args.work, kind, COLD_ROUNDS)]
    facts["cold"] += large(args.work, args.large) if args.large else []
    facts["writing"] = [row for kind in ("var", "grid") for row in writing(args.work, kind)]
    size = record_bytes(open_store(args.work / "var" / "arrow"))
    facts["shuffle"] = [shuffle_quality(count, size) for count in (6_000, 120_000, 3_000_000)]
    text = report(facts)
    write_results(args.out, "store", text, facts)
    print(text)


if __name__ == "__main__":
    main()
