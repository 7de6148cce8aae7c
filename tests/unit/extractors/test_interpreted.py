"""The kernels give what they stand for: by Triton's interpreter, in one process, since it takes seconds to start."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from extractors.kernels import has_triton

pytestmark = pytest.mark.skipif(not has_triton(), reason="there is no Triton, or no C compiler")


@pytest.fixture(scope="module")
def wrong() -> dict[str, str]:
    """What went wrong, by kernel."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    program = [sys.executable, "-m", "tests.unit.extractors.interpreted"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("kernel", ["suppression", "parts", "orders", "pooling", "clearing", "resizing"])
def test_a_kernel_gives_the_same(kernel: str, wrong: dict[str, str]) -> None:
    assert wrong[kernel] == ""
