"""Decoding in processes gives what decoding here gives, outlives a process that dies, and ends when it is told to."""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from extractors import ConfigError, GridConfig, ImageError, RegionConfig
from extractors.base import Extractor, Prepared
from extractors.views import Views, make_views
from pipeline.config import EngineConfig
from pipeline.decoding import DECODES, ProcessLoader, _packed, _Process, refuse_here
from pipeline.feeding import Loaded
from pipeline.sources import ImageRef, SourceConfig, open_source
from pipeline.unit import load_image
from storage import FeatureLayout, Record, Spec, TriptychError

SMALL = {"weights": "random:0", "width_divisor": 32, "shorter": 40, "longer": 80, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for row, size in enumerate([(30, 50), (60, 20), (50, 50)]):
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(found / f"{row}.png")
    (found / "broken.png").write_bytes(b"none")
    return found


def same(one: Loaded, other: Loaded) -> None:
    assert one.ref == other.ref and one.seconds.keys() == other.seconds.keys()
    if isinstance(other.ready, ImageError):
        assert isinstance(one.ready, ImageError)
        assert (one.ready.reason, one.ready.stage, str(one.ready)) == (
            other.ready.reason, other.ready.stage, str(other.ready)
        )  # fmt: skip
        return
    assert not isinstance(one.ready, ImageError) and one.ready.keys() == other.ready.keys()
    for mine, theirs in zip(one.ready.values(), other.ready.values(), strict=True):
        assert isinstance(mine, Prepared) and isinstance(theirs, Prepared)
        assert mine.pixels.dtype == theirs.pixels.dtype and torch.equal(mine.pixels, theirs.pixels)
        assert (mine.key, mine.image_size, mine.scale) == (theirs.key, theirs.image_size, theirs.scale)


def test_a_process_gives_what_this_one_would_and_is_replaced_where_it_dies(folder: Path) -> None:
    views = make_views({"regions": RegionConfig(**SMALL), "grid": GridConfig(model="butd-r101", **SMALL)})  # type: ignore[arg-type]
    source, settings = open_source(SourceConfig(str(folder))), EngineConfig("")
    refs = [*source.list().refs, ImageRef("gone", str(folder / "gone.png"))]
    loader = ProcessLoader(source, views, settings)
    try:
        for ref in refs:
            found = loader(ref)
            same(found, load_image(source, views, ref, settings))
            if not isinstance(found.ready, ImageError):
                assert found.ready["regions"].pixels is found.ready["grid"].pixels  # type: ignore[union-attr]
        first = loader._process()
        os.kill(first._child.pid, signal.SIGKILL)
        same(loader(refs[0]), load_image(source, views, refs[0], settings))
        assert loader._process() is not first
    finally:
        loader.close()
    assert all(each._child.poll() is not None for each in loader._all)


def test_an_image_that_kills_its_process_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views = make_views({"grid": GridConfig(model="r50", **SMALL)})  # type: ignore[arg-type]
    source = open_source(SourceConfig(str(folder)))
    loader = ProcessLoader(source, views, EngineConfig(""))
    monkeypatch.setattr("pipeline.decoding._Process.load", dies)
    try:
        found = loader(source.list().refs[0])
    finally:
        loader.close()
    assert isinstance(found.ready, ImageError) and found.ready.reason == "crashed" and "2 times" in str(found.ready)


def dies(process: _Process, ref: ImageRef) -> Loaded:
    process.stands = True
    raise EOFError


class Mistaken(Extractor):
    """As one of a user's own may be."""

    spec, vocabulary, device = Spec("grid", FeatureLayout(1)), {}, torch.device("cpu")

    def prepare(self, key: str, image: np.ndarray) -> Prepared:
        raise ConfigError("--side: 0 is no side") if key == "0" else Unpicklable(lambda: None)

    def forward(self, batch: list[Prepared]) -> list[Record | ImageError]:
        return []


class Unpicklable(Exception):
    def __str__(self) -> str:
        return "what cannot be sent"


def test_a_mistake_is_raised_as_where_this_process_decodes(folder: Path) -> None:
    source = open_source(SourceConfig(str(folder)))
    loader = ProcessLoader(source, Views({"grid": Mistaken()}), EngineConfig(""))
    first, second, *_ = source.list().refs
    try:
        with pytest.raises(ConfigError, match="0 is no side") as found:
            loader(first)
        with pytest.raises(RuntimeError, match="what cannot be sent"):
            loader(second)
        assert len(loader._all) == 1, "the process goes on"
    finally:
        loader.close()
    assert "in prepare" in found.value.__notes__[0]


def test_an_image_that_memory_has_no_room_for_is_an_error_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, views = open_source(SourceConfig(str(folder))), make_views({"grid": GridConfig(model="r50", **SMALL)})  # type: ignore[arg-type]
    ref = source.list().refs[0]
    loaded = load_image(source, views, ref, EngineConfig(""))
    with mmap.mmap(-1, 4096) as small, pytest.raises(ImageError, match="more than 0 MiB of pixels") as found:
        _packed(loaded, small)
    assert found.value.reason == "out_of_memory"
    monkeypatch.setattr(views, "prepare", Mock(side_effect=MemoryError("Unable to allocate 9 GiB")))
    ready = load_image(source, views, ref, EngineConfig("")).ready
    assert isinstance(ready, ImageError) and (ready.reason, ready.stage) == ("out_of_memory", "prepare")


OWN = """
import sys
from dataclasses import dataclass

import numpy as np
import torch

from extractors import Extractor, Prepared
from extractors.views import Views
from pipeline.config import EngineConfig
from pipeline.decoding import ProcessLoader
from pipeline.sources import SourceConfig, open_source
from storage import FeatureLayout, Spec


class Own(Extractor):
    spec, vocabulary, device = Spec("grid", FeatureLayout(1)), {}, torch.device("cpu")

    def prepare(self, key, image):
        return Prepared(key, image.shape[:2], torch.full((3, 2, 2), len(key)), 1.0)

    def forward(self, batch):
        return []


if __name__ == "__main__":
    source = open_source(SourceConfig(sys.argv[1]))
    loader = ProcessLoader(source, Views({"grid": Own()}), EngineConfig(""))
    print("sum", int(loader(source.list().refs[0]).ready["grid"].pixels.sum()))
    loader.close()
"""


def test_an_extractor_may_be_defined_in_the_script_that_is_run(folder: Path, tmp_path: Path) -> None:
    """As examples/own_extractor.py is: all images of such a script were error rows where a GPU was."""
    script = tmp_path / "own.py"
    script.write_text(OWN)
    run = [sys.executable, str(script), str(folder)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    assert subprocess.run(run, capture_output=True, text=True, env=env, check=True).stdout == "sum 12\n"


@pytest.mark.parametrize("more", [0, 1 << 20])  # a pipe takes 64 KiB of what nobody reads
def test_processes_that_never_begin_are_an_error_of_the_job(folder: Path, more: int) -> None:
    views = make_views({"grid": GridConfig(model="r50", **SMALL)})  # type: ignore[arg-type]
    source = open_source(SourceConfig(str(folder)))
    loader = ProcessLoader(source, views, EngineConfig(""))
    loader._tools = pickle.dumps({}) + b"cno_such_module\nThing\n." + bytes(more)
    try:
        with pytest.raises(TriptychError, match="end before they begin"):
            loader(source.list().refs[0])
    finally:
        loader.close()


def test_a_job_begins_no_other_in_a_process_that_decodes_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_here()
    monkeypatch.setenv(DECODES, "1")
    with pytest.raises(TriptychError, match="if __name__ == '__main__'"):
        refuse_here()
