"""Fixtures that many tests share: where the shared reference data lies, and small records."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests run side by side: a waiting thread gives its core away

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference tensors and real data that lies beside a checkout; tests without it skip."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared reference data is not at {SHARED}")
    return SHARED


@pytest.fixture(autouse=True)
def one_cluster_at_a_time(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests that start Ray wait for each other, in whatever process they run: two clusters would starve both."""
    if request.node.get_closest_marker("ray") is None:
        yield
        return
    together = tmp_path_factory.getbasetemp().parent  # of all processes of a run
    with (together / "ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
