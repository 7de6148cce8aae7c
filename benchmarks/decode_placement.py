"""Decoding in the actors' threads, or as tasks on any node with a free CPU: images/s of both on one local cluster.

    uv run python -m benchmarks.decode_placement --images ../shared/data/photos --out benchmarks/results

Protocol: one Ray with a CPU for the actor and `--cpus` for tasks; a grid network of random weights at a divided width,
images resized to 600/1000 as by default; each way three times in turn, the first of each left out as it warms up.
images/s are from the first unit to the last commit, without the start of the actor. Writes
decode_placement_<hardware>_<date>.md and .json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import hardware, table, write_results
from extractors import GridConfig
from pipeline.cluster import ray
from pipeline.config import EngineConfig, ExtractJob
from pipeline.job import run_job
from pipeline.sources import SourceConfig
from tests.faults.cluster_faults import Watch

WAYS = ("actors", "nodes")
RUNS = 3


def run_once(way: str, images: str, width_divisor: int, out: Path) -> dict[str, Any]:
    network = GridConfig(model="r50", weights="random:0", device="cpu", width_divisor=width_divisor)
    engine = EngineConfig(str(out), engine="ray", workers=1, decode_on=way)  # type: ignore[arg-type]
    report = run_job(ExtractJob(SourceConfig(images), network, engine), Watch()).report
    busy = report.seconds["model"] + report.seconds["idle"]  # of the network's one thread, from first image to last
    return {
        "way": way,
        "images": report.images,
        "images_per_second": report.images / busy,
        "idle": report.seconds["idle"] / busy,
        "decode_seconds_an_image": report.seconds["decode"] / report.images,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--width-divisor", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    ray.init(address="local", num_cpus=1 + args.cpus, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        order = [(run, way) for run in range(RUNS) for way in WAYS]
        runs = [run_once(way, args.images, args.width_divisor, Path(folder) / f"{way}{run}") for run, way in order]
    rows = []
    for way in WAYS:
        counted = [run for run in runs if run["way"] == way][1:]
        kinds = ("images_per_second", "idle", "decode_seconds_an_image")
        rows.append([way, *(f"{median(run[kind] for run in counted):.3f}" for kind in kinds)])
    found = table(["decoded on", "images/s", "share of time the network waits", "decode seconds an image"], rows)
    text = f"# Where to decode\n\n{hardware()}. The protocol is in benchmarks/decode_placement.py.\n\n{found}\n"
    print(text)
    print(f"written to {write_results(args.out, 'decode_placement', text, runs)}")


if __name__ == "__main__":
    main()
