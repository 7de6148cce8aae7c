"""`triptych extract patches` and `extract pixels` as a user types them, on a tiny tower and small photographs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from extractors import load_extractor, read_image
from storage import PatchRecord, PixelRecord, open_store
from storage.interop import FORMATS
from tests.helpers import differences, write_photos
from tests.unit.extractors.towers import save_tower
from workflows.cli import main

VIEWS = ("patches", "pixels")


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tower("clip", tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 6)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 half a photograph")
    Image.new("RGB", (900, 1), (7, 8, 9)).save(folder / "thread.png")
    return folder


def extract(view: str, photos: Path, out: Path, tower: Path, *more: str) -> int:
    patches, pixels = ["--model", f"hf:{tower}", "--device", "cpu"], ["--shorter", "48", "--longer", "64"]
    settings = patches if view == "patches" else pixels
    return main(["extract", view, "--images", str(photos), "--out", str(out), *settings, *more])


def info(store: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["info", str(store), "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


@pytest.mark.parametrize("format", ["arrow", "hdf5"])
@pytest.mark.parametrize("view", VIEWS)
def test_every_image_is_accounted_for_and_what_is_there_is_sound(
    view: str, format: str, photos: Path, tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    assert extract(view, photos, out, tower, "--format", format) == 0
    told = capsys.readouterr()
    assert "images      8" in told.out and "records     7" in told.out and "errors      1" in told.out
    assert "random" not in told.out + told.err
    facts = info(out, capsys)
    assert (facts["view"], facts["records"], facts["errors"], facts["complete"]) == (view, 7, 1, True)
    assert main(["verify", str(out)]) == 0
    assert main(["info", str(out)]) == 0
    assert ("model     none" if view == "pixels" else "model     hf:clip_vision_model") in capsys.readouterr().out


def test_a_store_of_pixels_holds_the_resized_photographs(photos: Path, tower: Path, tmp_path: Path) -> None:
    assert extract("pixels", photos, tmp_path / "s", tower) == 0
    store, extractor = open_store(tmp_path / "s"), load_extractor("pixels", shorter=48, longer=64)
    assert len({store[key].features.shape for key in store}) > 1
    for key in store:
        [path] = photos.glob(f"{key}.*")
        wanted = extractor(read_image(path), key)
        assert isinstance(wanted, PixelRecord)
        np.testing.assert_array_equal(store[key].features, wanted.pixels)
    assert store["thread"].features.shape == (1, 64, 3) and store["thread"].features[0, 0].tolist() == [7, 8, 9]


def test_a_store_of_patches_holds_what_the_tower_gives(photos: Path, tower: Path, tmp_path: Path) -> None:
    assert extract("patches", photos, tmp_path / "s", tower, "--layer", "-2", "--batch-size", "3") == 0
    store = open_store(tmp_path / "s")
    extractor = load_extractor("patches", model=f"hf:{tower}", layer=-2, device="cpu")
    assert store.spec.id == extractor.spec.id and store.spec.model["layer"] == 2
    for key in store:
        [path] = photos.glob(f"{key}.*")
        record, wanted = store[key], extractor(read_image(path), key)
        assert isinstance(record, PatchRecord) and isinstance(wanted, PatchRecord)
        np.testing.assert_allclose(record.features, wanted.features, rtol=2**-10, atol=1e-4)
        np.testing.assert_allclose(record.whole_image, wanted.whole_image, rtol=2**-10, atol=1e-4)


@pytest.mark.parametrize("view", VIEWS)
def test_a_job_goes_on_where_it_stopped_and_refuses_other_settings(
    view: str, photos: Path, tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract(view, photos, tmp_path / "s", tower, "--limit", "3") == 0
    assert extract(view, photos, tmp_path / "s", tower) == 0
    assert extract(view, photos, tmp_path / "once", tower) == 0
    assert differences(tmp_path / "s", tmp_path / "once") == []
    other = ["--no-norm"] if view == "patches" else ["--longer", "65"]
    assert extract(view, photos, tmp_path / "s", tower, *other) == 2
    field = "model.norm: True" if view == "patches" else "preprocess.longer: 64"
    assert field in capsys.readouterr().err


@pytest.mark.parametrize("view", VIEWS)
def test_formats_of_other_projects_say_that_they_cannot_take_it(
    view: str, photos: Path, tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract(view, photos, tmp_path / "s", tower, "--limit", "2")
    for name in FORMATS:
        capsys.readouterr()
        assert main(["export", str(tmp_path / "s"), "--out", str(tmp_path / name), "--to", name]) == 2, name
        told = capsys.readouterr().err
        assert f"holds {view}" in told and told.count("\n") == 1


def test_flags_that_mean_nothing_to_pixels_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for view, there, absent in (
        ("pixels", ("--shorter", "--longer"), ("--weights", "--device", "--dtype", "--store-dtype", "--width-divisor")),
        ("patches", ("--weights", "--layer", "--norm", "--size", "--store-dtype"), ("--shorter", "--width-divisor")),
    ):
        assert main(["extract", view, "--help"]) == 0
        told = capsys.readouterr().out
        assert all(flag in told for flag in there)
        assert not [flag for flag in absent if f"{flag} " in told]


def test_a_tower_that_is_not_there_is_one_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", "timm:vit_tinny", "--weights", "random:0"]
    assert main(["extract", "patches", "--images", str(photos), "--out", str(tmp_path / "s"), *model]) == 2
    told = capsys.readouterr().err
    assert told.startswith("triptych: --model timm:vit_tinny is neither a model of timm") and told.count("\n") == 1


@pytest.mark.ray
@pytest.mark.slow
def test_both_engines_make_the_same_store(local_ray: None, photos: Path, tower: Path, tmp_path: Path) -> None:
    assert extract("patches", photos, tmp_path / "local", tower) == 0
    assert extract("patches", photos, tmp_path / "ray", tower, "--engine", "ray", "--workers", "1") == 0
    assert differences(tmp_path / "local", tmp_path / "ray") == []
