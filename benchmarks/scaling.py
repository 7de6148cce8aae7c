"""Does an image cost the same in a large job as in a small one, and how much do two workers bring?

    uv run python -m benchmarks.scaling --out benchmarks/results

Protocol. The images and the network of `benchmarks.engine_overhead`; 1, 4 and 16 times --images of them, by the local
engine, and where Ray is installed by one and by two actors of one CPU each. Every job runs in processes of its own, the
sizes in turn, --rounds times; medians. Seconds an image are of wall clock, from the first unit to the last commit, and
so contain what a job costs once (threads, the first pass through the network, the last commit). Memory is that of all
processes of a job together, its median over the second and over the last quarter. Nothing else should run. Writes
scaling_<hardware>_<date>.md and .json.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.engine_overhead import NETWORK, engine, write_images
from benchmarks.machine import asked, hardware, positive, table, write_results

TIMES = (1, 4, 16)
WORKERS = {
    "local": [],
    "Ray, 1 actor": ["--engine", "ray", "--workers", "1", "--address", "local"],
    "Ray, 2 actors": ["--engine", "ray", "--workers", "2", "--address", "local"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=32)
    parser.add_argument("--rounds", type=positive, default=1)
    parser.add_argument("--workers", nargs="+", choices=WORKERS, default=list(WORKERS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    names = [name for name in args.workers if name == "local" or importlib.util.find_spec("ray")]
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "images"
        write_images(folder, args.images * max(TIMES))
        for number in range(args.rounds):
            for name in names:
                for times in TIMES:
                    out = Path(work) / f"{name}-{times}-{number}"
                    found = engine([*WORKERS[name], "--limit", str(args.images * times)], folder, out)
                    runs.append({"workers": name, "times": times, **found})
                    print(name, times, found["seconds_an_image"], flush=True)
    text = report(runs, args.images, args.rounds)
    write_results(args.out, "scaling", text, runs)
    print(text)


def report(runs: list[dict[str, Any]], images: int, rounds: int) -> str:
    """The results as Markdown."""
    rows = []
    for name in dict.fromkeys(run["workers"] for run in runs):
        first = 0.0
        for times in TIMES:
            mine = [run for run in runs if (run["workers"], run["times"]) == (name, times)]
            seconds = median(run["seconds_an_image"] for run in mine)
            first = first or seconds
            memory = [f"{median(run['memory_gib'][quarter] for run in mine):.2f}" for quarter in (0, 1)]
            rows.append(
                [name, f"{images * times:,}", f"{seconds * 1e3:.1f}", f"{seconds / first:.3f}", " / ".join(memory)]
            )
    header = ["workers", "images", "ms an image", "x the smallest job's", "GiB in the 2nd / last quarter"]
    command = asked()
    title = f"# Small and large jobs, {time.strftime('%Y-%m-%d')}"
    size = f"{NETWORK['model']} grids, {NETWORK['shorter']}/{NETWORK['longer']}"
    return "\n\n".join([title, f"{hardware()}. {size}, {rounds} rounds. {command}", table(header, rows)]) + "\n"


if __name__ == "__main__":
    main()
