"""Synthetic features as a detector makes them, in our store and in the stores that people use today."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import lmdb
import lz4.frame
import msgpack
import msgpack_numpy
import numpy as np

from storage import FeatureLayout, GridRecord, Record, RegionRecord, Spec, StoreWriter, open_store

WIDTH, POOL = 2048, 16384
IMAGES = {"var": 12000, "fixed": 15000, "grid": 880}  # about 2.2 GB each
UNIT = {"var": 1400, "fixed": 1750, "grid": 110}  # about 256 MB


def pool() -> np.ndarray:
    """Rows (POOL, WIDTH) float16: not negative, 27 % zeros, half below 0.1, largest 26."""
    rng = np.random.default_rng(0)
    rows = np.minimum(rng.gamma(0.35, 1.1, (POOL, WIDTH)), 26).astype(np.float32)
    rows[rng.random((POOL, WIDTH)) < 0.27] = 0
    return rows.astype(np.float16)


def spec_of(kind: str) -> Spec:
    return Spec("grid" if kind == "grid" else "regions", FeatureLayout(WIDTH), model={"name": f"synthetic-{kind}"})


def records(kind: str, count: int, rows: np.ndarray) -> Iterator[Record]:
    """Boxes: 10 to 100, mean 45 (var), or 36 (fixed); cells: 19 x 32 (grid)."""
    rng = np.random.default_rng(1)
    for number in range(count):
        key = f"{number:012d}"
        if kind == "grid":
            start = int(rng.integers(0, POOL - 19 * 32))
            yield GridRecord(key, (600, 1000), rows[start : start + 19 * 32].reshape(19, 32, WIDTH))
            continue
        boxes = 36 if kind == "fixed" else int(np.clip(rng.gamma(3.2, 14), 10, 100))
        start = int(rng.integers(0, POOL - boxes))
        scores = rng.random(boxes, np.float32)
        ids = rng.integers(0, 1600, boxes).astype(np.int32)
        corners = (rng.random((boxes, 4)) * 640).astype(np.float32)
        features = rows[start : start + boxes]
        yield RegionRecord(key, (480, 640), corners, features, features[0], ids, scores, ids % 400, scores)


def write_store(path: Path, kind: str, format: str, made: list[Record]) -> None:
    """One of our stores, in units of about 256 MB."""
    writer = StoreWriter(path, spec_of(kind), format=format)
    for start in range(0, len(made), UNIT[kind]):
        part = made[start : start + UNIT[kind]]
        with writer.unit([record.key for record in part]) as unit:
            for record in part:
                unit.append(record)
            unit.commit()


def write_lmdb(path: Path, made: list[Record], value: str) -> None:
    """An LMDB as people write it: pickled float16 arrays, or UNITER's lz4-compressed msgpack-numpy."""
    size = sum(record.features.nbytes for record in made) * 2 + (64 << 20)
    with lmdb.open(str(path), map_size=size, subdir=False, sync=False) as env:
        for start in range(0, len(made), 512):
            with env.begin(write=True) as transaction:
                for record in made[start : start + 512]:
                    transaction.put(record.key.encode(), ENCODE[value](arrays_of(record)))
        env.sync(True)


def write_npz(path: Path, made: list[Record]) -> None:
    """One uncompressed .npz an image."""
    path.mkdir(parents=True, exist_ok=True)
    for record in made:
        np.savez(path / f"{record.key}.npz", **arrays_of(record))
    os.sync()


def arrays_of(record: Record) -> dict[str, np.ndarray]:
    """Feature and boxes, which is what is read back."""
    boxes = record.boxes if isinstance(record, RegionRecord) else np.zeros((0, 4), np.float32)
    return {"features": np.ascontiguousarray(record.features.reshape(-1, WIDTH)), "boxes": boxes}


def _msgpack(arrays: dict[str, np.ndarray]) -> bytes:
    return lz4.frame.compress(msgpack.packb(arrays, default=msgpack_numpy.encode))


ENCODE = {"pickle": lambda arrays: pickle.dumps(arrays, pickle.HIGHEST_PROTOCOL), "uniter": _msgpack}
DECODE = {
    "pickle": pickle.loads,
    "uniter": lambda data: msgpack.unpackb(lz4.frame.decompress(data), object_hook=msgpack_numpy.decode),
}


class Lmdb:
    """Reads what `write_lmdb` wrote."""

    def __init__(self, path: Path, value: str) -> None:
        env = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
        self._transaction, self._decode = env.begin(buffers=True), DECODE[value]

    def __call__(self, key: str) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = self._decode(self._transaction.get(key.encode()))
        return found


class Npz:
    """Reads what `write_npz` wrote."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, key: str) -> dict[str, np.ndarray]:
        with np.load(io.BytesIO((self._path / f"{key}.npz").read_bytes())) as file:
            return {"features": file["features"], "boxes": file["boxes"]}


class Ours:
    """Single records of our store, by key."""

    def __init__(self, path: Path) -> None:
        self._store = open_store(path)

    def __call__(self, key: str) -> dict[str, np.ndarray]:
        record = self._store[key]
        boxes = record.boxes if isinstance(record, RegionRecord) else np.zeros((0, 4), np.float32)
        return {"features": record.features.reshape(-1, WIDTH), "boxes": boxes}
