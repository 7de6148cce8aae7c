"""A job on a real Ray of several nodes, disturbed in nine ways: each time the store of an undisturbed run."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cluster_faults import FAULTS, Scene, open_scene

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with open_scene(tmp_path_factory.mktemp("scene")) as found:
        yield found


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_nothing(fault: str, scene: Scene, tmp_path: Path) -> None:
    if fault == "disk full" and os.geteuid():
        pytest.skip("only root can mount a small file system")
    FAULTS[fault](scene, random.Random(0), tmp_path)
