"""Whatever happens to the bytes: every reader works, or raises the project's own error in one line, within bounds.

These runs are the same each time. `python -m tests.fuzz READER|all EXAMPLES [SEED]` tries others each time.
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
EXAMPLES = 20


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address in a damaged file is not tried again."""
    monkeypatch.setattr("pipeline.sources.addresses.WAITS", ())


@pytest.mark.parametrize("name", READERS)
def test_the_sample_is_sound(name: str, tmp_path: Path) -> None:
    READERS[name].write(tmp_path, "", lambda data: data)
    assert works_or_says_why(READERS[name].read, tmp_path) == ""


@pytest.mark.parametrize("name", READERS)
def test_damaged_bytes_are_read_or_refused(name: str, tmp_path: Path) -> None:
    fuzz(name, EXAMPLES, tmp_path, derandomize=True)


def test_one_reader_can_be_fuzzed_at_length() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "lxmert-tsv", "20", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-8000:]
    assert "20 examples, seed 7" in done.stderr
