"""Each fault of a cluster many times, at random moments: how often the store was that of an undisturbed run.

    uv run python -m benchmarks.fault_matrix --runs 20 --out benchmarks/results

Protocol: one Ray of two nodes with a CPU each on this machine, kept for all runs; 24 photographs, a narrow grid
network, two actors a job, started anew for each. Run k of a fault has the seed k: it decides moments, images, processes
and signals. A run passes where the store has the records of the undisturbed run to the last bit, as many records and
errors as there are images, and is sound. Needs root for the disk that fills up. Writes fault_matrix_<hardware>_<date>
.md and .json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from benchmarks.machine import hardware, table, write_results
from tests.faults.cluster_faults import FAULTS, Scene, open_scene


def run_once(fault: str, scene: Scene, seed: int, folder: Path) -> dict[str, Any]:
    """One run: its seed, its seconds, and what went wrong, if anything did."""
    folder.mkdir(parents=True)
    scene.restore()
    began, trouble = time.monotonic(), ""
    try:
        FAULTS[fault](scene, Random(seed), folder)
    except Exception:
        trouble = traceback.format_exc()
    return {"fault": fault, "seed": seed, "seconds": round(time.monotonic() - began, 1), "trouble": trouble}


def report(runs: list[dict[str, Any]]) -> str:
    rows = []
    for fault in dict.fromkeys(run["fault"] for run in runs):
        mine = [run for run in runs if run["fault"] == fault]
        passed = sum(not run["trouble"] for run in mine)
        seeds = f"{mine[0]['seed']} to {mine[-1]['seed']}"
        seconds = f"{median(run['seconds'] for run in mine):.1f}"
        rows.append([fault, str(len(mine)), str(passed), seeds, seconds])
    lines = table(["fault", "runs", "passed", "seeds", "median seconds"], rows)
    return f"# Faults of a cluster\n\n{hardware()}. The protocol is in benchmarks/fault_matrix.py.\n\n{lines}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="of each fault")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", choices=FAULTS, help="one fault alone")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder, open_scene(Path(folder)) as scene:
        for fault in [args.only] if args.only else FAULTS:
            for seed in range(args.first_seed, args.first_seed + args.runs):
                runs.append(run_once(fault, scene, seed, Path(folder) / fault.replace(" ", "-") / str(seed)))
                print(f"{fault}, seed {seed}: {runs[-1]['trouble'] or 'passed'} ({runs[-1]['seconds']} s)", flush=True)
    found = report(runs)
    print(found)
    print(f"written to {write_results(args.out, 'fault_matrix', found, runs)}")


if __name__ == "__main__":
    main()
