"""Whatever happens to the bytes: every reader works, or raises the project's own error in one line, within bounds.

The quick runs are the same each time. The slow ones are others each time, in a process of their own, so that a crash or
a hang is seen; `python -m tests.fuzz READER EXAMPLES [SEED]` does the same by hand.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.properties import works_or_says_why
from tests.fuzz.readers import READERS

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::RuntimeWarning")]
ROOT = Path(__file__).parents[2]
EXAMPLES, MANY = 50, 1000


@pytest.mark.parametrize("name", READERS)
def test_the_sample_is_sound(name: str, tmp_path: Path) -> None:
    READERS[name].write(tmp_path, "", lambda data: data)
    assert works_or_says_why(READERS[name].read, tmp_path) == ""


@pytest.mark.parametrize("name", READERS)
def test_damaged_bytes_are_read_or_refused(name: str, tmp_path: Path) -> None:
    fuzz(name, EXAMPLES, tmp_path, derandomize=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_bytes_are_read_or_refused(name: str) -> None:
    command = [sys.executable, "-m", "tests.fuzz", name, str(MANY)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-8000:]
