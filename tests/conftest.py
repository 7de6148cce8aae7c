"""Fixtures that many tests share: where the shared reference data lies, and small records."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests run side by side: a waiting thread gives its core away

MEMORY, WANTED = Path("/dev/shm"), 8 << 30  # bytes
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= WANTED:  # stores are synced file by file: disks make that slow
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

STARTS_RAY = "pytest.mark.ray"
LONG = ("tests/faults/test_interruptions.py", "ray")  # what takes longest of all, the longest one last
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference tensors and real data that lies beside a checkout; tests without it skip."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared reference data is not at {SHARED}")
    return SHARED


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny models run on one thread: more of them only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def local_ray() -> None:
    """A Ray of two CPUs, which all tests that are content with it share."""
    from pipeline.cluster import ray  # first, since it sets what Ray reads from the environment when it is imported

    if not ray.is_initialized():
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file's tests in one process, for what they share, and all files with Ray in one: two clusters would starve
    both. What takes longest begins."""
    from xdist.scheduler import LoadFileScheduling

    root = Path(__file__).parent
    ray = {
        path.relative_to(root.parent).as_posix() for path in root.rglob("test_*.py") if STARTS_RAY in path.read_text()
    }

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "ray" if file in ray else file

        def _assign_work_unit(self, node: Any) -> None:
            for scope in LONG:
                if scope in self.workqueue:
                    self.workqueue.move_to_end(scope, last=False)
            super()._assign_work_unit(node)

    return Scheduling(config, log)
