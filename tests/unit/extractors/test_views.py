"""Several views of one decode: what each gives by itself, to the bit, and no network run or held twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from extractors import ConfigError, GridConfig, ImageError, RegionConfig, make_extractor
from extractors.base import Extractor, Prepared
from extractors.configs import ExtractorConfig, PatchConfig, PixelConfig
from extractors.views import Ready, Views, configs_beside, make_views
from storage import GridRecord, RegionRecord
from tests.unit.storage.samples import assert_same

SMALL: dict[str, Any] = {
    "weights": "random:0", "width_divisor": 16, "shorter": 64, "longer": 100, "device": "cpu",
}  # fmt: skip
SIZES = [(50, 70), (90, 60), (50, 70), (50, 70), (64, 64), (300, 400)]
PAIRS = {  # regions' model -> grid's, settings of the former
    "butd-r101": ("butd-r101", {}),
    "grid-r50": ("r50", {"score_threshold": 0.0, "max_boxes": 5}),
    "grid-x101": ("x101", {"score_threshold": 0.0, "max_boxes": 5}),
}
EACH_PAIR = pytest.mark.parametrize("model", PAIRS)


def pair(model: str, **settings: Any) -> dict[str, ExtractorConfig]:
    grid, own = PAIRS[model]
    return {
        "regions": RegionConfig(model=model, **{**SMALL, **own, **settings}),
        "grid": GridConfig(model=grid, **SMALL),  # type: ignore[arg-type]
    }


def photo(height: int = 50, width: int = 70, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def batch_of(views: Views) -> list[Ready]:
    return [views.prepare(str(at), photo(*size, seed=at)) for at, size in enumerate(SIZES)]


@contextmanager
def counted(*modules: nn.Module) -> Iterator[list[nn.Module]]:
    """The modules that ran, once for every run."""
    ran: list[nn.Module] = []
    handles = [each.register_forward_hook(lambda module, *_: ran.append(module)) for each in modules]
    yield ran
    for handle in handles:
        handle.remove()


def alone(configs: Mapping[str, ExtractorConfig]) -> dict[str, Extractor]:
    return {view: make_extractor(config) for view, config in configs.items()}


@EACH_PAIR
def test_every_view_gives_what_its_extractor_gives_by_itself_to_the_bit(model: str) -> None:
    configs = pair(model)
    views, separate = make_views(configs), alone(configs)
    results = views.extract(batch_of(views))
    for view, extractor in separate.items():
        prepared = [extractor.prepare(str(at), photo(*size, seed=at)) for at, size in enumerate(SIZES)]
        for found, wanted in zip(results, extractor.extract(prepared), strict=True):
            assert list(found) == ["regions", "grid"]
            assert_same(found[view], wanted)  # type: ignore[arg-type]
    assert isinstance(results[0]["regions"], RegionRecord) and isinstance(results[0]["grid"], GridRecord)


@EACH_PAIR
def test_a_views_spec_and_names_are_those_of_its_extractor_by_itself(model: str) -> None:
    configs = pair(model)
    views = make_views(configs)
    for view, extractor in alone(configs).items():
        assert views.specs[view].id == extractor.spec.id
        assert views.vocabularies[view] == extractor.vocabulary
    assert views.device == torch.device("cpu")


@EACH_PAIR
def test_a_shared_network_runs_once_and_is_held_once(model: str) -> None:
    views = make_views(pair(model))
    regions, grid = views.extractors["regions"], views.extractors["grid"]
    assert regions.network is grid.network  # type: ignore[attr-defined]
    held = {each.data_ptr() for each in regions.detector.state_dict().values()}  # type: ignore[attr-defined]
    assert all(each.data_ptr() in held for each in grid.res5.state_dict().values())  # type: ignore[attr-defined]
    ready = [views.prepare("a", photo()), views.prepare("b", photo(seed=1)), views.prepare("c", photo(64, 64))]
    with counted(regions.network.stem, regions.network.res4) as ran:  # type: ignore[attr-defined]
        views.extract(ready)
    assert len(ran) == 2 * 3  # on a CPU, every image by itself


def test_an_image_is_resized_once_for_views_that_ask_for_the_same() -> None:
    views = make_views(pair("butd-r101"))
    ready = views.prepare("a", photo())
    assert ready["regions"] is ready["grid"]


OTHERS: dict[str, dict[str, Any]] = {
    "another network": {"model": "r50"},
    "other weights": {"weights": "random:1"},
    "another size": {"shorter": 32},
    "another dtype": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS.keys())
def test_views_that_differ_in_what_the_network_sees_share_nothing(change: dict[str, Any]) -> None:
    configs = pair("butd-r101")
    configs["grid"] = replace(configs["grid"], **change)
    views = make_views(configs)
    assert views.extractors["regions"].network is not views.extractors["grid"].network  # type: ignore[attr-defined]
    [found] = views.extract([views.prepare("a", photo())])
    for view, extractor in alone(configs).items():
        assert_same(found[view], extractor(photo(), "a"))  # type: ignore[arg-type]


def test_two_grids_of_one_size_are_resized_once_and_stored_apart() -> None:
    views = Views(
        {
            "one": make_extractor(GridConfig(model="r50", **SMALL)),
            "other": make_extractor(GridConfig(model="x152", **SMALL)),
        }
    )
    ready = views.prepare("a", photo())
    assert ready["one"] is ready["other"]
    [found] = views.extract([ready])
    assert not np.array_equal(found["one"].features, found["other"].features)  # type: ignore[union-attr]


# Errors of one view.


def with_boxes(folder: Path) -> dict[str, ExtractorConfig]:
    """Regions at boxes of one's own, which only the even images have."""
    boxes = {str(at): [[0, 0, 20, 20]] for at in range(0, len(SIZES), 2)}
    (folder / "boxes.json").write_text(json.dumps(boxes))
    return pair("butd-r101", boxes=str(folder / "boxes.json"), box_format="xyxy", box_units="pixels")


def test_an_image_that_fails_for_one_view_is_there_for_the_other(tmp_path: Path) -> None:
    configs = with_boxes(tmp_path)
    views, separate = make_views(configs), alone(configs)
    results = views.extract(batch_of(views))
    for at, found in enumerate(results):
        image = photo(*SIZES[at], seed=at)
        assert_same(found["grid"], separate["grid"](image, str(at)))  # type: ignore[arg-type]
        if at % 2:
            assert isinstance(found["regions"], ImageError) and found["regions"].reason == "no_boxes"
        else:
            assert_same(found["regions"], separate["regions"](image, str(at)))  # type: ignore[arg-type]


def test_ones_own_boxes_do_not_cost_a_second_resize(tmp_path: Path) -> None:
    ready = make_views(with_boxes(tmp_path)).prepare("0", photo())
    assert isinstance(ready["regions"], Prepared) and isinstance(ready["grid"], Prepared)
    assert ready["regions"].pixels is ready["grid"].pixels and ready["regions"].boxes is not None


def test_features_that_one_view_cannot_store_are_its_error_alone() -> None:
    views = make_views(pair("grid-r50"))
    views.extractors["grid"].res5[-1].conv3.bias = torch.nn.Parameter(torch.full((128,), 1e5), False)  # type: ignore[attr-defined]
    [found] = views.extract([views.prepare("a", photo())])
    assert isinstance(found["grid"], ImageError) and isinstance(found["regions"], RegionRecord)


def test_an_image_that_fails_for_all_views_keeps_all_its_errors() -> None:
    views = make_views(pair("butd-r101"))
    ready = views.prepare("thin", photo(1, 1000))
    for found in (ready, *views.extract([ready])):
        assert {view: each.reason for view, each in found.items()} == {"regions": "too_thin", "grid": "too_thin"}  # type: ignore[union-attr]


def test_no_room_on_the_device_is_the_callers_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    views = make_views(pair("butd-r101"))

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("full")

    ready = [views.prepare("a", photo())]
    monkeypatch.setattr(views.extractors["grid"], "finish", full)
    with pytest.raises(torch.OutOfMemoryError):
        views.extract(ready)


def test_a_single_extractor_is_views_of_one_and_an_empty_batch_is_empty() -> None:
    config = GridConfig(model="r50", **SMALL)
    views = make_views({"grid": config})
    assert views.extract([]) == []
    [found] = views.extract([views.prepare("a", photo())])
    assert list(found) == ["grid"]
    assert_same(found["grid"], make_extractor(config)(photo(), "a"))  # type: ignore[arg-type]


# Which views go together.


@pytest.mark.parametrize("model", ["butd-r101", "grid-r50", "grid-x101", "grid-x152"])
def test_beside_a_named_region_model_the_grid_is_its_own(model: str) -> None:
    regions = RegionConfig(model=model, **SMALL, store_dtype="float32")
    found = configs_beside(regions, ["grid", "regions"])
    assert list(found) == ["grid", "regions"] and found["regions"] is regions
    assert found["grid"] == GridConfig(model=model.removeprefix("grid-"), **SMALL, store_dtype="float32")  # type: ignore[arg-type]


@pytest.mark.parametrize(("grid", "regions"), [("butd-r101", "butd-r101"), ("x152", "grid-x152")])
def test_beside_a_named_grid_model_the_regions_are_of_its_network(grid: Any, regions: str) -> None:
    found = configs_beside(GridConfig(model=grid, **SMALL), ["regions", "grid"])
    assert found["regions"] == RegionConfig(model=regions, **SMALL)


def test_the_other_views_have_their_own_defaults_on_the_same_device() -> None:
    found = configs_beside(RegionConfig(**SMALL), ["regions", "pixels", "patches"])
    assert list(found) == ["regions", "pixels", "patches"]
    assert found["pixels"] == PixelConfig() and found["patches"] == PatchConfig(device="cpu")


def test_pixels_and_regions_come_from_one_decode() -> None:
    small = {"shorter": 32, "longer": 64}
    configs = {"pixels": PixelConfig(**small), "regions": RegionConfig(**SMALL)}
    views, separate = make_views(configs), alone(configs)
    [found] = views.extract([views.prepare("a", photo())])
    for view, extractor in separate.items():
        assert_same(found[view], extractor(photo(), "a"))  # type: ignore[arg-type]


def test_views_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="view 'gird' is not known; choose from regions, grid"):
        configs_beside(RegionConfig(), ["gird"])
    with pytest.raises(ConfigError, match="detectron2:a.yaml gives no grid; leave it out"):
        configs_beside(RegionConfig(model="detectron2:a.yaml"), ["regions", "grid"])
    with pytest.raises(ConfigError, match="x152pp gives no regions; leave it out"):
        configs_beside(GridConfig(model="x152pp"), ["regions", "grid"])


def test_networks_on_several_devices_are_refused() -> None:
    grids = {name: make_extractor(GridConfig(model="r50", **SMALL)) for name in ("one", "other")}
    grids["one"].device, grids["other"].device = torch.device("cuda:0"), torch.device("cuda:1")
    with pytest.raises(ConfigError, match="the views are on cuda:0 and cuda:1; give all of them the same --device"):
        Views(grids)
