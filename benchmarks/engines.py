"""Both views at full width on both engines: images/s, peak memory, and whether the two stores are equal.

    uv run python -m benchmarks.engines --images ../shared/data/photos --out benchmarks/results

Protocol: one process a job, started fresh, random weights, fp32, batch of one; the Ray engine with two actors of one
CPU each on a local cluster, the local engine with all CPUs. images/s are of the run after the network is built; for
Ray they include starting the actors. Nothing else should run meanwhile. Writes engines_<hardware>_<date>.md and .json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import asked, hardware
from storage import open_store, verify_store
from tests.helpers import largest_differences

JOBS = {"grid": ["--model", "x101"], "regions": []}
ENGINES = {"local": [], "ray": ["--engine", "ray", "--workers", "2", "--address", "local"]}


def run_job(view: str, engine: str, images: str, out: Path) -> dict[str, Any]:
    """One extraction in a process of its own; its facts from the store's own account."""
    flags = ["--images", images, "--out", str(out), "--weights", "random:0", "--device", "cpu"]
    command = [sys.executable, "-m", "workflows.cli", "extract", view, *flags, *JOBS[view], *ENGINES[engine]]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    store = open_store(out)
    return {
        "view": view,
        "engine": engine,
        "images": store.run["images"],
        "records": len(store),
        "errors": len(store.errors()),
        "images_per_second": store.run["images_per_second"],
        "whole_process_seconds": round(time.perf_counter() - began, 1),
        "peak_gib": round(store.run["peak_rss"] / 2**30, 2),
        "stage_seconds": store.run["stage_seconds"],
        "megabytes": round(sum(entry.shard.bytes for entry in store.entries if entry.shard) / 1e6, 1),
        "sound": not verify_store(out).problems,
    }


def table(rows: list[dict[str, Any]], equal: dict[str, str]) -> str:
    """The report as Markdown."""
    lines = [
        f"# Both engines at full width, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"{hardware()}. {asked()}",
        "",
        "| view | engine | images | errors | images/s | largest process | whole process | stored | verify |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['view']} | {row['engine']} | {row['images']} | {row['errors']} | {row['images_per_second']:.3f} "
        f"| {row['peak_gib']} GiB | {row['whole_process_seconds']} s | {row['megabytes']} MB "
        f"| {'sound' if row['sound'] else 'DAMAGED'} |"
        for row in rows
    ]
    lines += ["", *(f"Local against Ray, {view}: {words}." for view, words in equal.items()), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    rows, equal = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for view in JOBS:
            stores = {engine: Path(folder) / f"{view}-{engine}" for engine in ENGINES}
            rows += [run_job(view, engine, args.images, out) for engine, out in stores.items()]
            equal[view] = largest_differences(stores["local"], stores["ray"])
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"engines_cpu{torch.get_num_threads()}_{datetime.now(UTC):%Y-%m-%d}"
    report = table(rows, equal)
    (args.out / f"{name}.md").write_text(report, encoding="utf-8")
    facts = {"hardware": hardware(), "rows": rows, "equal": equal}
    (args.out / f"{name}.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    print(report)


if __name__ == "__main__":
    main()
