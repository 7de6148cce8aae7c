"""The local engine: one unit is committed while the next one runs, and nothing of that is lost or left behind."""

from __future__ import annotations

import importlib.metadata
import threading
from pathlib import Path
from typing import Any

import pytest

from extractors import GridConfig
from pipeline.config import EngineConfig, ExtractJob
from pipeline.job import run_job
from pipeline.sources import SourceConfig
from storage import StoreError, open_store
from storage.writer import UnitWriter
from tests.faults.cluster_faults import Watch
from tests.helpers import write_photos

IMAGES, A_UNIT = 6, 2
SMALL: dict[str, Any] = {"weights": "random:0", "width_divisor": 32, "shorter": 64, "longer": 100, "device": "cpu"}


def job_of(folder: Path) -> ExtractJob:
    write_photos(folder / "photos", IMAGES)
    engine = EngineConfig(str(folder / "store"), images_per_shard=A_UNIT)
    return ExtractJob(SourceConfig(str(folder / "photos")), GridConfig(model="r50", **SMALL), engine)


def test_the_next_unit_runs_while_one_is_being_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beyond, commit, waited = threading.Event(), UnitWriter.commit, []

    def slow(unit: UnitWriter, facts: Any = None) -> Any:
        waited.append(beyond.wait(30))
        return commit(unit, facts)

    monkeypatch.setattr(UnitWriter, "commit", slow)
    result = run_job(job_of(tmp_path), Watch(A_UNIT + 1, beyond.set))
    assert waited == [True] * (IMAGES // A_UNIT)
    assert (result.status, result.report.records, len(open_store(tmp_path / "store"))) == (0, IMAGES, IMAGES)


def test_a_unit_that_cannot_be_written_ends_the_one_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(unit: UnitWriter, facts: Any = None) -> Any:
        raise StoreError("No space left")

    monkeypatch.setattr(UnitWriter, "commit", full)
    before = threading.active_count()
    with pytest.raises(StoreError, match="No space left"):
        run_job(job_of(tmp_path), Watch())
    assert threading.active_count() == before
    assert list((tmp_path / "store" / "shards").iterdir()) == []


def test_a_checkout_that_is_not_installed_extracts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert run_job(job_of(tmp_path), Watch()).status == 0
    assert '"not installed"' in (tmp_path / "store" / "run.json").read_text()
