"""A job on a real Ray of several nodes, disturbed in nine ways: each time the store of an undisturbed run."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from extractors import ConfigError
from pipeline.job import run_job
from tests.faults.cluster_faults import FAULTS, Scene, Watch, open_scene

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


def test_two_actors_share_a_gpu(scene: Scene, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    shared = {"workers": 2, "gpus_per_worker": 0.5, "cpus_per_worker": 0.5}
    job = scene.job(tmp_path / "store", hooks={"pids": str(pids), "device": "cuda"}, **shared)
    scene.check(tmp_path / "store", run_job(job, Watch()))
    assert [each.read_text() for each in pids.iterdir()] == ["0", "0"]


def test_more_actors_than_gpus_are_an_error_at_once(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--workers 2 need a GPU each, and the Ray cluster has 1\."):
        run_job(scene.job(tmp_path / "store", hooks={"device": "cuda"}, workers=2), Watch())
    assert not (tmp_path / "store" / "manifest").exists()
