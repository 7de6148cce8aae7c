"""Fuzz readers at length: python -m tests.fuzz READER|all EXAMPLES [SEED]. What ended it stays in its folder.

With `all`, each reader has a process of its own, so that a crash or a hang of one is seen and the others go on.
"""

from __future__ import annotations

import faulthandler
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.properties import works_or_says_why
from tests.fuzz.readers import READERS

HANGS = 60  # seconds that no reader of a few kilobytes takes


def fuzz(name: str, examples: int, folder: Path, derandomize: bool = False, start: int | None = None) -> None:
    """Try damaged samples; raises what the reader should not."""
    reader = READERS[name]
    place = folder / "sample"

    @settings(
        max_examples=examples,
        derandomize=derandomize,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(reader.cases())
    def trial(case: tuple[str, object]) -> None:
        shutil.rmtree(place, ignore_errors=True)
        reader.write(place, *case)
        if not derandomize:
            faulthandler.dump_traceback_later(HANGS, exit=True)
        works_or_says_why(reader.read, place, reader.asks_first)
        faulthandler.cancel_dump_traceback_later()

    (trial if start is None else seed(start)(trial))()


def fuzz_all(examples: str, start: str) -> str:
    """Every reader; returns the names of those that failed."""
    command = [sys.executable, "-m", "tests.fuzz"]
    return " ".join(name for name in READERS if subprocess.run([*command, name, examples, *start.split()]).returncode)


def main(name: str, examples: str, start: str = "") -> None:
    if name == "all":
        sys.exit(fuzz_all(examples, start))
    faulthandler.enable()
    warnings.simplefilter("ignore")
    number = int(start) if start else random.SystemRandom().randrange(1 << 32)
    folder = Path(tempfile.mkdtemp(prefix="triptych-fuzz-"))
    print(f"{name}: {examples} examples, seed {number}, in {folder}", file=sys.stderr, flush=True)
    fuzz(name, int(examples), folder, start=number)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
