"""What tests share: small photographs, jobs on narrow networks, and the comparison of two stores."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from storage import open_store

TINY = ["--weights", "random:0", "--width-divisor", "32", "--shorter", "64", "--longer", "100", "--device", "cpu"]


def until(holds: Callable[[], bool]) -> None:
    """Wait for what other threads or processes bring about, half a minute at most."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)


def by_others(context: Any, function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """What other processes, one an item, make of items. They are not ended by SIGTERM, as the pool would: where Ray ran
    in this process they inherit its handler, and wait on where it came just before they waited."""
    with context.Pool(len(items)) as pool:
        found: list[Any] = pool.map_async(function, items).get(60)
        pool.close()
        pool.join()
    return found


def write_photos(folder: Path, count: int, seed: int = 0) -> list[str]:
    """Write `count` smooth random JPEGs of several sizes; returns their keys, sorted."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    keys = [f"{'ab'[index % 2]}/photo_{index:03}" for index in range(count)]
    for key in keys:
        path = folder / f"{key}.jpg"
        path.parent.mkdir(exist_ok=True)
        small = rng.integers(0, 255, (6, 8, 3), np.uint8)
        size = (int(rng.integers(80, 160)), int(rng.integers(60, 140)))
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    return sorted(keys)


def json_lines(text: str) -> list[dict[str, Any]]:
    """What --json printed, an object a line."""
    found = [json.loads(line) for line in text.splitlines()]
    assert found and all(isinstance(each, dict) for each in found)
    return found


def differences(first: Path, second: Path) -> list[str]:
    """What tells two stores apart, record by record and bit by bit; shards may be cut differently."""
    a, b = open_store(first), open_store(second)
    found = [] if a.spec.id == b.spec.id else ["spec"]
    found += [f"only in one: {key}" for key in sorted(a.keys() ^ b.keys())]
    for key in sorted(a.keys() & b.keys()):
        for each in fields(a[key]):
            one, other = getattr(a[key], each.name), getattr(b[key], each.name)
            if not (np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other):
                found.append(f"{key}: {each.name}")
    errors = [sorted((row.key, row.stage, row.reason) for row in store.errors()) for store in (a, b)]
    return found + (["errors"] if errors[0] != errors[1] else [])


def largest_differences(first: Path, second: Path) -> str:
    """How far two stores are apart, in words: identical records, and the largest difference of each field."""
    a, b = open_store(first), open_store(second)
    far: dict[str, float] = {}
    for key in sorted(a.keys() & b.keys()):
        for each in fields(a[key]):
            one, other = getattr(a[key], each.name), getattr(b[key], each.name)
            if isinstance(one, np.ndarray) and not np.array_equal(one, other):
                same_shape = one.shape == other.shape
                gap = float(np.abs(one.astype(float) - other.astype(float)).max()) if same_shape else float("inf")
                far[each.name] = max(far.get(each.name, 0.0), gap)
    changed = {line.split(":")[0] for line in differences(first, second)}
    apart = ", ".join(f"{name} {gap:.3g}" for name, gap in sorted(far.items()))
    words = f"{len(a.keys() & b.keys()) - len(changed)} of {len(a.keys() | b.keys())} records identical to the last bit"
    return words + (f"; largest differences: {apart}" if apart else "")


def s3_environment(address: str) -> dict[str, str]:
    """The usual variables for a server of one's own, and nothing of the machine this runs on."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "NO_PROXY": "127.0.0.1",
    }
