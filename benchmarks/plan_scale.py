"""Planning millions of images: time, memory and temporary disk, with an empty store and with 40 % done, and killed.

    uv run python -m benchmarks.plan_scale --images 10000000 --work /tmp/plan-scale --out benchmarks/results

Protocol. A list file of synthetic names (coco/00000000000.jpg and so on; only the first image exists, and planning
opens none), and the synthetic manifest of `benchmarks.store_scale`. Each row is of a fresh process that lists the file,
checks keys and repeats, asks the store what is done, and then goes once through all units, as an engine does; seconds
of the clock, and of the processor in brackets. Resident memory: after importing this package (torch is most of it), and
the most it ever was. Disk: most bytes in the folder of temporary files, looked at ten times a second. The last row is
killed (SIGKILL) at half the time that the row before took to plan, and run again: what the killed one left is gone, and
the units are the same, by a digest over their ids. With --empty-only all rows are of the empty store.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from benchmarks.machine import asked, hardware, table, write_results
from benchmarks.store_scale import PER_UNIT, SPEC, build, key
from pipeline.plan import make_plan
from pipeline.sources import SourceConfig, open_source
from storage import StoreWriter
from storage.bucket import DRAFTS
from storage.writer import unit_id

DONE = 0.4
LINES = 100_000  # written at once


def list_file(work: Path, images: int) -> Path:
    """A list file of so many names, of which the first is a file."""
    (work / "coco").mkdir(parents=True, exist_ok=True)
    (work / f"{key(0)}.jpg").touch()
    path = work / f"images-{images}.txt"
    with path.open("w") as file:
        for start in range(0, images, LINES):
            file.write("".join(f"{key(number)}.jpg\n" for number in range(start, min(start + LINES, images))))
    return path


def memory() -> dict[str, float]:
    """Resident memory of this process in MB: now, and the most so far."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {"now": int(lines["VmRSS"].split()[0]) / 1e3, "most": int(lines["VmHWM"].split()[0]) / 1e3}


def plan(images: Path, store: Path) -> dict[str, Any]:
    """Plan, and go through the units; in this process."""
    imported, clock = memory(), [times()]
    listing = open_source(SourceConfig(str(images))).list()
    clock.append(times())
    found = make_plan(listing, StoreWriter(store, SPEC).done, PER_UNIT)
    clock.append(times())
    digest = xxhash.xxh3_64()
    for unit in found.units:
        digest.update(unit_id(SPEC.id, unit.keys))
    clock.append(times())
    return {
        "images": found.images,
        "done": found.done,
        "units": len(found.units),
        "seconds": (np.diff(clock, axis=0)).tolist(),
        "imported_mb": imported["now"],
        "most_mb": memory()["most"],
        "digest": digest.hexdigest(),
    }


def times() -> tuple[float, float]:
    """Seconds of the clock, and of the processor."""
    return time.perf_counter(), time.process_time()


def run(images: Path, store: Path, scratch: Path, kill_after: float | None = None) -> dict[str, Any]:
    """`plan` in a fresh process, with its temporary files in `scratch`; killed after so many seconds, if any."""
    scratch.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.plan_scale", "--plan", str(images), str(store)]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    began, most = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        while process.poll() is None:
            most = max(most, size_of(scratch))
            if kill_after and time.perf_counter() - began > kill_after:
                process.kill()
            time.sleep(0.1)
        assert process.stdout is not None
        text = process.stdout.read()
    found = {"disk_mb": most / 1e6, "left": [path.name for path in scratch.glob(f"{DRAFTS}~*")]}
    return found if kill_after else {**json.loads(text), **found}


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder that others may be changing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, action="append", help="how many; may be given more than once")
    parser.add_argument("--empty-only", action="store_true", help="leave out the store that is 40 %% done")
    parser.add_argument("--work", type=Path, default=Path("plan-scale"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--plan", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plan:
        print(json.dumps(plan(*args.plan)))
        return
    rows = [
        row for images in args.images or [1_000_000, 10_000_000] for row in measured(args.work, images, args.empty_only)
    ]
    text = report(rows)
    write_results(args.out, "plan_scale", text, rows)
    print(text)


def measured(work: Path, images: int, empty_only: bool) -> list[dict[str, Any]]:
    """The rows of one size."""
    listed, scratch = list_file(work, images), work / "tmp"
    stores = {"empty": work / "empty"}
    if not empty_only:
        stores["40 % done"] = work / f"store-{images}"
        if not (stores["40 % done"] / "index.json").exists():
            build(stores["40 % done"], int(DONE * images))
    rows = []
    for name, store in stores.items():
        rows.append({"store": name, **run(listed, store, scratch)})
        print(rows[-1], flush=True)
    before = rows[-1]
    killed = run(listed, store, scratch, kill_after=sum(clock for clock, _ in before["seconds"][:2]) / 2)
    again = run(listed, store, scratch)
    assert killed["left"] and not again["left"], "a killed planner leaves its files, and the next one removes them"
    assert again["digest"] == before["digest"], "planned again, the units are the same"
    listed.unlink()
    return [*rows, {"store": f"{name}, after a kill", **again}]


def report(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    header = ["images", "store", "units", "list and check, s", "ask the store, s", "all units, s"]
    header += ["resident: import", "most", "temporary disk"]
    cells = []
    for row in rows:
        spent = [f"{clock:.1f} ({processor:.1f})" for clock, processor in row["seconds"]]
        sizes = [f"{row[name]:,.0f} MB" for name in ("imported_mb", "most_mb", "disk_mb")]
        cells.append([f"{row['images']:,}", row["store"], f"{row['units']:,}", *spent, *sizes])
    title = f"# Planning millions of images, {time.strftime('%Y-%m-%d')}"
    command = f"{hardware()}. {asked()}"
    return "\n\n".join([title, command, table(header, cells)]) + "\n"


if __name__ == "__main__":
    main()
