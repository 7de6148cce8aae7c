"""How far the extractors and models are from the official code: the greatest difference of every tensor.

    uv run python -m benchmarks.golden --out benchmarks/results

Protocol. What `python -m tests.golden` compares, in float32 on a CPU, written down: reference folders hold weights,
inputs and what the official code made of them; a row is the largest absolute difference of one tensor. Tolerances are
those of the test. The last bits depend on the processor and on the library of its matrix products.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.machine import asked, hardware, table, write_results
from tests.golden.__main__ import compared, folders_below, is_covered, upstream_repo
from tests.golden.compare import Comparison, Report

REFERENCE = Path("../shared/reference")


def summary(found: dict[str, Report], projects: dict[str, str]) -> str:
    """A row a folder: how many tensors, and the one that uses most of its tolerance."""
    rows = []
    for name, report in found.items():
        most = max(report.comparisons, key=used)
        what = [str(len(report.comparisons)), str(len(report.failures)), most.name]
        rows.append([name, projects[name], *what, f"{most.difference:.3g}", f"{most.tolerance:g}"])
    header = [
        "folder",
        "official code",
        "comparisons",
        "past the tolerance",
        "nearest to it",
        "difference",
        "tolerance",
    ]
    return table(header, rows)


def used(comparison: Comparison) -> float:
    """The part of its tolerance that a difference takes; where equality is asked for, none or too much."""
    if comparison.tolerance:
        return comparison.difference / comparison.tolerance
    return 0.0 if comparison.ok else float("inf")


def details(report: Report) -> str:
    """A row a tensor."""
    rows = [[each.name, f"{each.difference:.3g}", f"{each.tolerance:g}"] for each in report.comparisons]
    return table(["tensor", "greatest difference", "tolerance"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reference", type=Path, default=REFERENCE, help="a folder above reference folders")
    args = parser.parse_args()
    found: dict[str, Report] = {}
    projects: dict[str, str] = {}
    for path in filter(is_covered, folders_below(args.reference)):
        name = str(path.relative_to(args.reference))
        with torch.inference_mode():
            found[name], problem = compared(path)
        if problem is not None:
            sys.exit(f"{path} cannot be checked: {problem}")
        projects[name] = upstream_repo(path) or ""
        print(f"{name}: {len(found[name].comparisons)} comparisons, {len(found[name].failures)} past the tolerance")
    if not found:
        sys.exit(f"no reference folder lies below {args.reference}; name the folder above them with --reference.")
    parts = [f"## {name}\n\n{details(report)}\n" for name, report in found.items()]
    what = f"{hardware()}. {asked()}"
    text = "\n".join([f"# Distance from the official code\n\n{what}\n\n{summary(found, projects)}\n", *parts])
    facts = {name: [vars(each) for each in report.comparisons] for name, report in found.items()}
    print(write_results(args.out, "golden", text, facts))
    return int(any(report.failures for report in found.values()))


if __name__ == "__main__":
    sys.exit(main())
