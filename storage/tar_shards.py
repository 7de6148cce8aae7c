"""Records as webdataset shards: tar files, read in order, with a few .npy files and a .json for each key."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from storage.atomic import discard, partial_path, publish, remove_stale_partials, writing
from storage.errors import StoreError
from storage.records import Record
from storage.store import FeatureStore

_NOTHING = "%2F"  # stands for an empty part of a key; no other part is written so, since parts have no slashes


def write_tar_shards(store: FeatureStore, out: Path, shard_bytes: int) -> list[Path]:
    """Write a store's records, in its order. Each tar appears whole or not at all; after an error, none is left.

    A tar is closed with the first record that makes its arrays `shard_bytes` or more.

    Raises:
        StoreError: a shard is damaged, `out` has tar files already, or it cannot be written.
        ValueError: `shard_bytes` is not positive.
    """
    if shard_bytes < 1:
        raise ValueError(f"a tar shard of {shard_bytes} bytes holds no record")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        remove_stale_partials(out)
        if any(out.glob("*.tar")):  # what is left of a longer list would be read as more of this one
            raise StoreError(f"{out} has tar files already; remove them, or choose another folder.")
    samples = map(sample, store.iter())
    written: list[Path] = []
    first = next(samples, None)
    try:
        while first is not None:
            written.append(out / f"{len(written):06}.tar")
            first = _write_tar(written[-1], first, samples, shard_bytes)
    except BaseException:
        for path in written:
            discard(path)
        raise
    return written


def sample(record: Record) -> dict[str, Any]:
    """One record as webdataset keeps it; bfloat16 features are written as float32, since .npy files have no such type.

    The .json has what is no array, among it the key as it is in the store.
    """
    found: dict[str, Any] = {"__key__": tar_key(record.key)}
    plain: dict[str, Any] = {}
    for name, value in vars(record).items():
        if isinstance(value, np.ndarray):
            found[f"{name}.npy"] = _npy(value.astype(np.float32) if value.dtype.name == "bfloat16" else value)
        elif value is not None:
            plain[name] = value
    found["json"] = json.dumps(plain).encode()
    return found


def tar_key(key: str) -> str:
    """A key as a tar member's name.

    webdataset cuts a name at the first dot of its last part, and passes over names that begin like `__meta__/`. And a
    name must lead nowhere else when somebody unpacks the tar.
    """
    name = "/".join(quote(part, safe=" ").replace(".", "%2E") or _NOTHING for part in key.split("/"))
    return f"%5F{name[1:]}" if name.startswith("__") else name


def store_key(name: str) -> str:
    """The key that `tar_key` made a name of."""
    return "/".join("" if part == _NOTHING else unquote(part) for part in name.split("/"))


def _write_tar(final: Path, first: dict[str, Any], more: Iterator[dict[str, Any]], size: int) -> dict[str, Any] | None:
    """Write one tar; returns the sample that did not fit, None after the last one."""
    import webdataset  # it imports torch

    coming: dict[str, Any] | None = first
    partial = partial_path(final)
    try:
        with writing(final):
            with partial.open("wb") as handle:
                with webdataset.TarWriter(handle, mtime=0) as tar:  # PAX, in which names may be long
                    while coming is not None and size > 0:
                        size -= tar.write(coming)
                        coming = next(more, None)
                handle.flush()
                os.fsync(handle.fileno())
            publish(partial, final)
    finally:
        discard(partial)
    return coming


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
