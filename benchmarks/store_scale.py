"""Opening a store of ten million records and finding keys in it: time and memory, against a store of a thousand.

    uv run python -m benchmarks.store_scale --work /tmp/store-scale --out benchmarks/results

Protocol. A synthetic manifest, folded as `triptych compact` folds it: keys of 16 characters, units of 1,400 records, no
shards, since neither opening nor looking up touches them. Each figure is of a fresh process: seconds for `open_store`,
resident memory after it and after lookups (all of it, and the anonymous part; the rest is of mapped files, which
processes share and the system takes back when it needs them), and microseconds a lookup of random keys that are
there: in the index, its files being in the page cache; and through the store, which remembers some keys it has found.
Importing this package, numpy and pyarrow takes memory of its own, shown in the first column.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import asked, hardware, table, write_results
from storage import FeatureLayout, Spec, StoreWriter, open_store
from storage.index import write_index
from storage.manifest import Entry, ShardFacts

PER_UNIT, LOOKUPS = 1400, 20_000
SPEC = Spec("regions", FeatureLayout(2048), model={"name": "synthetic"})


def key(number: int) -> str:
    return f"coco/{number:011d}"


def build(path: Path, records: int) -> float:
    """Write the manifest of so many records; returns the seconds that folding took."""
    writer = StoreWriter(path, SPEC)
    entries = []
    for start in range(0, records, PER_UNIT):
        keys = [key(number) for number in range(start, min(start + PER_UNIT, records))]
        unit = f"{start:032x}"
        shard = ShardFacts(f"shards/{unit}.arrow", "arrow", 184_000 * len(keys), "0" * 32, 45 * len(keys), [])
        entries.append(Entry(unit, keys, [], shard, {"committed_at": 0.0}))
    began = time.perf_counter()
    with writer.place.locked():
        write_index(writer.place, None, entries)
    return time.perf_counter() - began


def memory() -> dict[str, float]:
    """Resident memory of this process in MB: all, and the anonymous part of it."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(lines[name].split()[0]) / 1e3 for name in ("VmRSS", "RssAnon")}


def measure(path: Path) -> dict[str, Any]:
    """Open, look up, batch; in this process."""
    imported = memory()
    began = time.perf_counter()
    store = open_store(path)
    opened = time.perf_counter() - began
    after_open = memory()
    keys = [key(number) for number in np.random.default_rng(0).integers(0, len(store), LOOKUPS).tolist()]
    assert all(each in store for each in keys[:1000])
    after_1000 = memory()
    index = store.catalog.index
    assert index is not None
    for each in keys:
        index.find([each])
    began = time.perf_counter()
    for each in keys:
        index.find([each])
    warm = (time.perf_counter() - began) / len(keys)
    for each in keys:
        store.catalog.position(each)
    began = time.perf_counter()
    for each in keys:
        store.catalog.position(each)
    again = (time.perf_counter() - began) / len(keys)
    began = time.perf_counter()
    for start in range(0, len(keys), 64):
        store.positions(keys[start : start + 64])
    batched = (time.perf_counter() - began) / len(keys)
    return {
        "records": len(store),
        "open_ms": opened * 1e3,
        "lookup_us": warm * 1e6,
        "repeated_lookup_us": again * 1e6,
        "batched_lookup_us": batched * 1e6,
        "imported": imported,
        "after_open": after_open,
        "after_1000": after_1000,
        "after_all": memory(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("store-scale"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    rows = []
    for records in (1_000, 1_000_000, 10_000_000):
        path = args.work / str(records)
        folded = None if (path / "index.json").exists() else build(path, records)
        runs = []
        for _ in range(5):
            command = [sys.executable, "-m", "benchmarks.store_scale", "--measure", str(path)]
            runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        middle = sorted(runs, key=lambda run: run["open_ms"])[2]
        size = sum(file.stat().st_size for file in (path / "index").iterdir()) / 1e6
        rows.append({**middle, "fold_s": folded, "index_mb": size, "slowest_open_ms": max(r["open_ms"] for r in runs)})
    text = report(rows)
    write_results(args.out, "store_scale", text, rows)
    print(text)


def report(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    header = ["records", "open, ms (slowest of 5)", "lookup, us", "of a key asked for before", "in batches of 64"]
    header += ["resident: import", "after opening", "after 1,000 lookups", f"after {LOOKUPS:,}", "index on disk"]
    cells = []
    for row in rows:
        times = [f"{row[name]:.2f}" for name in ("lookup_us", "repeated_lookup_us", "batched_lookup_us")]
        after = [row[name] for name in ("after_open", "after_1000", "after_all")]
        resident = [f"{row['imported']['VmRSS']:.0f} MB"]
        resident += [f"{each['VmRSS']:.0f} MB ({each['RssAnon']:.0f} anonymous)" for each in after]
        opened = f"{row['open_ms']:.1f} ({row['slowest_open_ms']:.1f})"
        cells.append([f"{row['records']:,}", opened, *times, *resident, f"{row['index_mb']:.0f} MB"])
    title = f"# Opening stores of any size, {time.strftime('%Y-%m-%d')}"
    command = f"{hardware()}. {asked()}"
    return "\n\n".join([title, command, table(header, cells)]) + "\n"


if __name__ == "__main__":
    main()
