"""How long a command line takes to answer: version, help, lists and mistakes, now and at an earlier revision.

    uv run python -m benchmarks.start --before 3c5f2ee --out benchmarks/results

Protocol: each command is a process of its own, run `--runs` times, both revisions in turn, files in the cache of the
system and compiled by a run that is left out. The least of the times counts, for whatever else the machine does only
adds to it: seconds of wall clock, and in brackets of the processor. The earlier revision is checked out into a
temporary worktree and runs in the same environment. Writes start_<hardware>_<date>.md and .json.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.machine import asked, hardware, table, write_results

ROOT = Path(__file__).parents[1]
LINES = (
    "--version",
    "--help",
    "frobnicate",
    "info --help",
    "export --help",
    "extract grid --help",
    "extract grid --imges photos",
    "plan regions --help",
    "retry --help",
    "doctor --help",
    "demo --help",
    "data check --help",
    "train --help",
    "train-detector --help",
    "compare --help",
    "explain --help",
    "train --list",
)
Times = dict[str, list[tuple[float, float]]]  # seconds of wall clock and of the processor, by command line


def once(line: str, root: Path) -> tuple[float, float]:
    """Seconds of wall clock and of the processor."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "workflows.cli", *line.split()]
    subprocess.run(command, cwd=root, env=environment, capture_output=True, check=False)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """The project as it was."""
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "--quiet", folder, revision], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run([*git, "remove", "--force", folder], check=True)


def measure(roots: dict[str, Path], runs: int) -> dict[str, Times]:
    found: dict[str, Times] = {name: {} for name in roots}
    for line in LINES:
        for run in range(runs + 1):
            for name, root in roots.items():
                times = once(line, root)
                if run:
                    found[name].setdefault(line, []).append(times)
        print(line, {name: least(found[name][line]) for name in roots}, flush=True)
    return found


def least(times: list[tuple[float, float]]) -> str:
    wall, cpu = (min(each) for each in zip(*times, strict=True))
    return f"{wall:.2f} ({cpu:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="the earlier revision")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    with checked_out(args.before) as earlier:
        found = measure({"before": earlier, "now": ROOT}, args.runs)
    rows = [[f"`triptych {line}`", *(least(found[name][line]) for name in found)] for line in LINES]
    report = (
        f"# Start of the command line, {time.strftime('%Y-%m-%d')}\n\n{hardware()}. Before is revision {args.before}; "
        f"seconds, and of the processor in brackets, the least of {args.runs}. {asked()} Load was "
        f"{os.getloadavg()[2]:.0f} on {os.cpu_count()} cores: above one a core, the processor's seconds tell more.\n\n"
        + table(["command", "before", "now"], rows)
        + "\n"
    )
    print(write_results(args.out, "start", report, found))


if __name__ == "__main__":
    main()
