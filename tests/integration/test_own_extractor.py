"""The extractor that the documentation shows: one of its own, run by the pipeline of all others."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from extractors import ConfigError, ExtractorConfig, GridConfig
from extractors.base import Extractor
from storage import GridRecord, SpecMismatchError, open_store, verify_store
from tests.helpers import write_photos
from workflows.cli import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_extractor.py"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 2)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, arguments)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")


def test_it_fills_a_store_that_is_like_any_other(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, photos, tmp_path / "s", "random:0")
    assert "images      3" in capsys.readouterr().out
    assert verify_store(tmp_path / "s").problems == []
    store = open_store(tmp_path / "s")
    record = store["a/photo_000"]
    assert isinstance(record, GridRecord) and record.features.shape[-1] == 576 and record.features.any()
    assert [(row.key, row.stage) for row in store.errors()] == [("broken", "decode")]
    assert (store.spec.model["name"], store.spec.model["weights"]["origin"]) == ("mobilenet_v3_small", "random:0")
    with pytest.raises(SpecMismatchError, match="model.weights.sha256"):
        run(monkeypatch, photos, tmp_path / "s", "random:1")
    assert main(["retry", str(tmp_path / "s")]) == 2
    assert "an extractor of one's own" in capsys.readouterr().err


def test_it_is_under_60_lines() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 60


def test_settings_without_a_view_are_refused() -> None:
    class Nameless(ExtractorConfig):
        def make(self) -> Extractor:
            raise AssertionError

    with pytest.raises(ConfigError, match="choose one of regions, grid, patches, pixels"):
        Nameless()
    assert GridConfig.view == "grid"
