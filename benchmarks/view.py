"""How long the page of `triptych view` takes on a large store: to start, to search, and to find the nearest regions.

    uv run python -m benchmarks.view --out benchmarks/results

Protocol. A store of --images region records with 36 boxes of width 128 in shards of 1,400 images, which is what a
search reads (ids and scores do not depend on the width of features); and one of --near images with features of width
2,048, which is what the search for neighbours reads. Random values; 1,600 classes and 400 attributes, each as likely.
The server is the command itself, in a process of its own, with one thread of BLAS; it is asked over HTTP. "first page"
is from the start of the process to the end of the answer with the first 24 images. A search is asked until it has
ended, which the page does too, showing what is found so far; each is another one, so that none is remembered. Median of
--repeats starts or searches. Files were just written, so they come from memory, not from the disk. Resident memory is
the server's own, without the pages of mapped files. "CPU" is the server's seconds of processor, which other programs
that run beside do not change; of a start all it took until then, of the others what each took.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import numpy as np

from benchmarks.machine import asked, hardware, table, write_results
from storage import FeatureLayout, RegionRecord, Spec, StoreWriter, open_store

BOXES, SHARD = 36, 1400
CLASSES, ATTRIBUTES = 1600, 400
ask_server = build_opener(ProxyHandler({}))  # whatever proxies the machine has: the server is on it


def build(path: Path, images: int, width: int) -> None:
    """A store of random regions."""
    names = {
        "classes": [f"class{at:04}" for at in range(CLASSES)],
        "attributes": [f"attribute{at:03}" for at in range(ATTRIBUTES)],
    }
    writer = StoreWriter(path, Spec("regions", FeatureLayout(width), {"name": "random"}), names)
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((4096, width)).astype(np.float16)
    for start in range(0, images, SHARD):
        keys = [f"train2014/COCO_train2014_{number:012}" for number in range(start, min(start + SHARD, images))]
        with writer.unit(keys) as unit:
            for key in keys:
                unit.append(record(key, rng, pool))
            unit.commit()
    writer.write_run({"complete": True})


def record(key: str, rng: np.random.Generator, pool: np.ndarray) -> RegionRecord:
    corners = rng.uniform(0, [320, 240], (BOXES, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(20, 240, (BOXES, 2))], axis=1).astype(np.float32)
    features = pool[rng.integers(0, len(pool), BOXES)]
    ids = [rng.integers(0, most, BOXES).astype(np.int32) for most in (CLASSES, ATTRIBUTES)]
    scores = [np.sort(rng.random(BOXES).astype(np.float32))[::-1].copy() for _ in ids]
    return RegionRecord(key, (480, 640), boxes, features, features[0], ids[0], scores[0], ids[1], scores[1])


@contextmanager
def served(store: Path) -> Iterator[tuple[str, subprocess.Popen[str], float]]:
    """The server's address, its process, and when it was started."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "workflows.cli", "view", str(store)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[0], process, began
    finally:
        process.terminate()
        process.wait()


def ask(address: str, what: str, **query: Any) -> dict[str, Any]:
    with ask_server.open(f"{address}api/{what}?{urlencode(query)}") as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def processor(process: subprocess.Popen[str]) -> float:
    """Seconds of processor that a process has taken, its threads included."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ended(address: str, process: subprocess.Popen[str], what: str, **query: Any) -> tuple[dict[str, float], Any]:
    """Seconds to the first answer, to the one that has all, and of processor; and the last answer."""
    began, before = time.perf_counter(), processor(process)
    found = ask(address, what, **query)
    first = time.perf_counter() - began
    while not found["finished"]:
        time.sleep(0.05)
        found = ask(address, what, **query)
    return {"first": first, "all": time.perf_counter() - began, "cpu": processor(process) - before}, found


def median(found: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


def resident(process: subprocess.Popen[str]) -> float:
    """Megabytes of the process's own memory."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return sum(int(each) for each in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+)", status)) / 1024


def starts(store: Path, repeats: int) -> list[dict[str, Any]]:
    """From the start of the process to its address, and to the first page."""
    listening, page = [], []
    for _ in range(repeats):
        with served(store) as (address, process, began):
            listening.append({"all": time.perf_counter() - began, "cpu": processor(process)})
            ask(address, "stores")
            ask(address, "images", count=24)
            page.append({"all": time.perf_counter() - began, "cpu": processor(process)})
    return [{"what": "address printed", **median(listening)}, {"what": "first page", **median(page)}]


def searches(store: Path, repeats: int) -> list[dict[str, Any]]:
    """Each kind of search on one server, in turn."""
    numbers = count(1)
    kinds: dict[str, Any] = {
        "any page of all images": lambda at: {"first": 37 * at},
        "key": lambda at: {"search": f"{at:03}7"},
        "class, first of all searches": lambda at: {"class": f"class{at:04}"},
        "class": lambda at: {"class": f"class{at:04}"},
        "class, attribute and least score": lambda at: {"class": f"class{at:04}", "attribute": "7", "least": 0.5},
    }
    rows = []
    with served(store) as (address, process, _):
        ask(address, "images", count=24)
        before = resident(process)
        for name, query in kinds.items():
            once = name.endswith("searches")  # it opens every shard
            times = range(1 if once else repeats)
            found = [ended(address, process, "images", **query(next(numbers))) for _ in times]
            note = f"{found[-1][1]['found']:,} found"
            rows.append({"what": name, **median([each for each, _ in found]), "note": note})
        rows.append({"what": "resident memory before and after them", "mb": [before, resident(process)]})
    return rows


def neighbours(store: Path) -> list[dict[str, Any]]:
    """The regions nearest to one, over all images of a store."""
    key, images = next(iter(open_store(store))), len(open_store(store))
    with served(store) as (address, process, _):
        before = resident(process)
        seconds, _ = ended(address, process, "near", key=key, row=0, images=images)
        note = f"{images * BOXES / seconds['cpu']:,.0f} regions a CPU second"
        row = {"what": f"nearest of {images * BOXES:,} regions of width 2,048", **seconds, "note": note}
        return [row, {"what": "resident memory before and after it", "mb": [before, resident(process)]}]


def report(rows: list[dict[str, Any]], images: int, load: str) -> str:
    """The results as Markdown."""
    cells = []
    for row in rows:
        if "mb" in row:
            cells.append([row["what"], *(f"{each:,.0f} MB" for each in row["mb"]), "", ""])
        else:
            figures = [f"{row[name]:.2f} s" if name in row else "" for name in ("first", "all", "cpu")]
            cells.append([row["what"], *figures, row.get("note", "")])
    title = f"# The page over {images:,} images, {time.strftime('%Y-%m-%d')}"
    command = f"{hardware()}; {load}. {asked()}"
    return "\n\n".join([title, command, table(["", "first answer", "all of it", "CPU", ""], cells)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--near", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("view-scale"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    stores = {"many": (args.images, 128), "wide": (args.near, 2048)}
    for name, (images, width) in stores.items():
        if not (args.work / name / "run.json").exists():
            build(args.work / name, images, width)
    many, wide = (args.work / name for name in stores)
    load = f"{os.getloadavg()[0]:.1f} other threads wanted {os.cpu_count()} cores as it began"
    rows = [*starts(many, args.repeats), *searches(many, args.repeats), *neighbours(wide)]
    text = report(rows, args.images, load)
    write_results(args.out, "view", text, rows)
    print(text)
    shutil.rmtree(args.work)


if __name__ == "__main__":
    main()
