"""`python -m tests.golden FOLDER...`: check reference folders, made by official code, against the
extractors and models.

A folder holds config.json, weights.safetensors, inputs.safetensors and outputs.safetensors, or, where it is of scores,
inputs.json and outputs.json; a folder above such folders stands for all of them. Prints a line a tensor or list. Exit
status: 0 all within tolerance, 1 something past it, 2 a folder that cannot be checked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from storage.errors import TriptychError
from tests.golden import (
    bua_selection,
    butd_regions,
    components,
    grid_feats,
    meter,
    preprocess,
    vilt,
    vl_bert,
    vqa_eval,
)
from tests.golden.compare import FILES, WITHOUT_WEIGHTS, CannotCheckError, Folder, Report, read_config

CHECKERS: dict[str, Callable[[Folder, Report], None]] = {  # the project that config.json names -> its checker
    "facebookresearch/grid-feats-vqa": grid_feats.check,
    "airsplay/py-bottom-up-attention": butd_regions.check,
    "MILVLG/bottom-up-attention.pytorch": bua_selection.check,
    "jackroos/VL-BERT": vl_bert.check,
    "dandelin/ViLT": vilt.check,
    "zdou0830/METER": meter.check,
    "components of models": components.check,
    "image transforms": preprocess.check,
}
MARKS = {
    "components": "components of models",
    "vilt_size": "image transforms",
}  # a setting by which a folder is told that names no project ...
NO_WEIGHTS = set(MARKS.values())  # ... and that has no weights
UNDERSTOOD = f"understood are folders of {', '.join(CHECKERS)}"
PASSED, FAILED, NOT_CHECKED = 0, 1, 2
WORDS = {PASSED: "passed", FAILED: "failed", NOT_CHECKED: "not checked"}


def main(argv: Sequence[str] | None = None) -> int:
    """Check the folders named on the command line; gives the exit status, the worst of theirs."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a reference folder, or one above some")
    with torch.inference_mode():
        statuses = [status for folder in parser.parse_args(argv).folders for status in check_named(folder)]
    counts = [f"{statuses.count(status)} {words}" for status, words in WORDS.items()]
    print(f"{len(statuses)} folders: {', '.join(counts)}")
    return max(statuses)


def check_named(named: Path) -> list[int]:
    """Check a folder, or all below it: a status each. Models not covered are passed over where others are there."""
    below = [named] if (named / "config.json").is_file() or vqa_eval.is_here(named) else folders_below(named)
    covered = [path for path in below if is_covered(path)]
    if not below:
        found = "no config.json in it or below" if named.is_dir() else "no such folder"
        complain(f"no checker for {named}: found {found}; {UNDERSTOOD}.")
    for path in below:
        if path not in covered:
            complain(f"no checker for {path}: found {project(path)} in its config.json; {UNDERSTOOD}.")
    return [check_folder(path) for path in covered] or [NOT_CHECKED]


def folders_below(named: Path) -> list[Path]:
    """Folders with a config.json, or of scores, anywhere below this one."""
    scores = {path.parent for path in named.rglob(vqa_eval.FILES[0]) if vqa_eval.is_here(path.parent)}
    return sorted({path.parent for path in named.rglob("config.json")} | scores)


def is_covered(path: Path) -> bool:
    """Whether a checker knows the folder's project. A config.json that cannot be read is for the check to tell."""
    try:
        return vqa_eval.is_here(path) or upstream_repo(path) in CHECKERS
    except CannotCheckError:
        return True


def project(path: Path) -> str:
    repo = upstream_repo(path)
    return "no upstream.repo" if repo is None else f"upstream.repo {repo!r}"


def upstream_repo(path: Path) -> str | None:
    """What a folder's config.json names as the official code, if it does: {repo, ...}, or repo@commit.

    Raises:
        CannotCheckError: config.json cannot be read.
    """
    config = read_config(path)
    upstream = config.get("upstream", next((name for mark, name in MARKS.items() if mark in config), None))
    repo = upstream.get("repo") if isinstance(upstream, dict) else upstream
    return repo.partition("@")[0] if isinstance(repo, str) else None


def compared(path: Path) -> tuple[Report, str | None]:
    """What was compared of a reference folder, and why the check broke off, if it did."""
    report = Report()
    try:
        compare_all(path, report)
    except TriptychError as error:
        return report, str(error)
    except (RuntimeError, LookupError) as error:  # shapes that do not go together, settings that are not there
        line = str(error).splitlines()[0]
        return report, f"its tensors or settings do not fit the model ({type(error).__name__}: {line})"
    return report, None


def check_folder(path: Path) -> int:
    """Check one reference folder and print its report; where the check breaks off, what was compared until then."""
    report, problem = compared(path)
    print(*report.comparisons, sep="\n", end="\n" if report.comparisons else "")
    if problem is not None:
        complain(f"{path} cannot be checked: {problem}")
        return NOT_CHECKED
    print(f"{path}: {len(report.comparisons)} comparisons, {len(report.failures)} past the tolerance")
    return FAILED if report.failures else PASSED


def compare_all(path: Path, report: Report) -> None:
    """Fill a report with all comparisons of a folder; raises what its checker does."""
    if vqa_eval.is_here(path):
        vqa_eval.check(path, report)
        return
    name = upstream_repo(path) or ""
    folder = Folder.read(path, WITHOUT_WEIGHTS if name in NO_WEIGHTS else FILES)
    CHECKERS[name](folder, report)
    report.fail_unhandled(folder)


def complain(message: str) -> None:
    print(message, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
