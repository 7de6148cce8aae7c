"""How fast scenes are made, and how much of what is asked about them can be guessed from the text.

    uv run python -m benchmarks.scenes --out benchmarks/results

Protocol. `triptych scenes make` of --images scenes of seed 0 with the bundled photographs, by one and by two processes,
each into a new folder on the local disk; wall clock of the whole command, drawing and the files of all data sets, start
of the processes included. "blind" is what the most frequent answer to the same question in training gets right in
validation. Writes scenes_<hardware>_<date>.md and .json.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import asked, hardware, table, write_results
from trainers.scenes.making import make_scenes
from workflows.scenes import BUNDLED

WORKERS = (1, 2)


def measure(images: int, workers: int) -> dict[str, Any]:
    """One run's rate and what it made."""
    with tempfile.TemporaryDirectory() as work:
        began = time.perf_counter()
        found = make_scenes(Path(work) / "scenes", images, 0, BUNDLED, workers)
        seconds = time.perf_counter() - began
        sizes = [path.stat().st_size for path in (Path(work) / "scenes/images/coco").rglob("*.jpg")]
    counts = {name: written.examples for name, written in found.items()}
    blind = found["vqav2"].guessed
    return {"workers": workers, "images": images, "seconds": seconds, "bytes": sum(sizes), "blind": blind, "of": counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    facts = [measure(args.images, workers) for workers in WORKERS if workers <= (os.cpu_count() or 1)]
    rows = [
        [
            str(each["workers"]),
            f"{each['images'] / each['seconds']:.1f}",
            f"{each['bytes'] / each['images'] / 1024:.0f}",
            f"{each['blind']:.1f} %",
        ]
        for each in facts
    ]
    counts = [[name, *(f"{split} {count:,}" for split, count in of.items())] for name, of in facts[0]["of"].items()]
    most = max(map(len, counts))
    made = table(["data set", *[""] * (most - 1)], [[*row, *[""] * (most - len(row))] for row in counts])
    rates = table(["processes", "images/s", "KiB an image", "VQA, blind"], rows)
    title = f"# Scenes, {time.strftime('%Y-%m-%d')}\n\n{hardware()}. {args.images:,} images."
    command = asked()
    text = f"{title} {command}\n\n{rates}\n\n{made}\n"
    write_results(args.out, "scenes", text, facts)
    print(text)


if __name__ == "__main__":
    main()
