"""Grid records from narrow networks with random weights: what they hold, and what they do not depend on."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from extractors import GridConfig, ImageError, RegionConfig, load_extractor, make_extractor
from extractors.grid import GridExtractor
from extractors.images import resized_shape
from extractors.networks import GRID_MEAN, GRID_MODELS, X101_STD
from extractors.regions import RegionExtractor
from extractors.resnet import ResNetConfig
from storage import GridRecord, Spec
from tests.unit.storage.samples import assert_same

SMALL: dict[str, Any] = {
    "weights": "random:0", "width_divisor": 16, "shorter": 64, "longer": 100, "device": "cpu",
}  # fmt: skip
SIZES = [(50, 70), (90, 60), (50, 70), (50, 70), (1, 1), (1, 1000), (300, 400)]


def make(**settings: Any) -> GridExtractor:
    return make_extractor(GridConfig(**{**SMALL, **settings}))  # type: ignore[return-value]


@pytest.fixture(scope="module", params=GRID_MODELS)
def extractor(request: pytest.FixtureRequest) -> GridExtractor:
    return make(model=request.param)


def photo(height: int = 50, width: int = 70, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_a_record_has_one_feature_for_32_by_32_pixels_of_the_resized_image(
    extractor: GridExtractor, size: tuple[int, int]
) -> None:
    record = extractor(photo(*size), "some/key")
    assert isinstance(record, GridRecord)
    height, width = resized_shape(*size, 64, 100)
    assert (record.key, record.image_size) == ("some/key", size)
    assert record.features.shape == (ceil(height / 32), ceil(width / 32), 128)
    assert record.features.dtype == np.float16 and record.features.flags.c_contiguous
    assert extractor.spec.layout.dim == 128


def test_cells_lie_as_the_image_does(extractor: GridExtractor) -> None:
    """A change in one corner of the image changes that corner of the grid most."""
    before = photo(64, 96)
    after = before.copy()
    after[:24, -24:] = 255 - after[:24, -24:]
    one, other = (extractor(image).features.astype(np.float32) for image in (before, after))
    change = np.abs(one - other).sum(2)
    assert change.shape == (2, 3) and np.unravel_index(change.argmax(), change.shape) == (0, 2)


def test_a_batch_of_several_sizes_equals_one_by_one(extractor: GridExtractor) -> None:
    """Bit for bit on a CPU, where every image runs by itself."""
    batch = [extractor.prepare(str(at), photo(*size, seed=at)) for at, size in enumerate(SIZES)]
    for image, found in zip(batch, extractor.extract(batch), strict=True):
        [alone] = extractor.extract([image])
        assert isinstance(found, GridRecord) and isinstance(alone, GridRecord)
        assert_same(found, alone)


def test_the_same_image_gives_the_same_record_again_also_from_an_extractor_made_anew() -> None:
    first, again, anew = (each(photo()) for each in (*[make()] * 2, make()))
    assert_same(first, again)
    assert_same(first, anew)
    assert first.features.tobytes() != make()(photo(seed=1)).features.tobytes()


def test_pixels_are_prepared_as_blue_green_red() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :, 0] = 200  # red
    prepared = make().prepare("a", image)
    assert prepared.pixels.dtype == torch.uint8 and prepared.pixels.shape == (3, 64, 64)
    assert prepared.pixels[:, 0, 0].tolist() == [0, 0, 200]
    assert (prepared.scale, prepared.image_size) == (1.0, (64, 64))


def test_only_the_x101_was_trained_on_scaled_colours() -> None:
    found = {name: make(model=name).spec.preprocess["std"] for name in GRID_MODELS}
    assert found == {"r50": (1, 1, 1), "x101": X101_STD, "x152": (1, 1, 1), "x152pp": (1, 1, 1)}


def test_the_network_sees_pixels_less_the_mean_over_the_std() -> None:
    made, seen = make(), []
    made.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    image = photo(64, 64)
    made(image)
    wanted = (image[:, :, ::-1].astype(np.float64) - GRID_MEAN) / X101_STD
    np.testing.assert_allclose(seen[0][0].numpy(), wanted.transpose(2, 0, 1), rtol=1e-5, atol=1e-5)


def test_features_that_no_store_can_hold_are_an_error_of_their_image_only() -> None:
    made = make()
    good, bad = made.prepare("good", photo()), made.prepare("bad", photo(seed=1))
    bad = replace(bad, pixels=bad.pixels * 1e20)
    good = replace(good, pixels=good.pixels.float())
    first, error, last = made.extract([good, bad, good])
    assert isinstance(error, ImageError) and error.reason == "not_representable"
    assert isinstance(first, GridRecord) and isinstance(last, GridRecord)
    assert_same(first, last)


def test_features_too_large_for_half_precision_stop_a_call() -> None:
    large = make()
    large.network.res5[-1].conv3.bias.fill_(1e5)
    with pytest.raises(ImageError, match="not finite or above 65504; try --store-dtype float32"):
        large(photo())


@pytest.mark.parametrize("model", ["x101", "x152pp"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_stay_close_and_are_marked(model: str, dtype: str) -> None:
    exact, found = (make(model=model, dtype=each)(photo()).features.astype(np.float32) for each in ("float32", dtype))
    cosine = (exact * found).sum() / np.linalg.norm(exact) / np.linalg.norm(found)
    assert cosine > 0.97 and not np.array_equal(exact, found)
    assert make(model=model, dtype=dtype).spec.model["dtype"] == dtype


def test_every_setting_that_changes_numbers_changes_the_spec() -> None:
    changes: list[dict[str, Any]] = [
        {}, {"model": "x152"}, {"model": "x152pp"}, {"model": "r50"}, {"weights": "random:1"}, {"width_divisor": 32},
        {"shorter": 65}, {"longer": 101}, {"dtype": "bfloat16"}, {"store_dtype": "float32"},
    ]  # fmt: skip
    ids = [make(**change).spec.id for change in changes]
    assert len(set(ids)) == len(changes)
    assert make(model="x101").spec.id == ids[0]


def test_a_spec_survives_its_way_to_disk_and_back() -> None:
    spec = make().spec
    assert Spec.from_dict(spec.to_dict()).id == spec.id


def test_the_models_are_the_published_ones() -> None:
    assert {name: model.body for name, model in GRID_MODELS.items()} == {
        "r50": ResNetConfig(depth=50),
        "x101": ResNetConfig(depth=101, groups=32, width_per_group=8),
        "x152": ResNetConfig(depth=152, groups=32, width_per_group=8),
        "x152pp": ResNetConfig(depth=152, groups=32, width_per_group=8, deform_stages=(4, 5)),
    }


def test_an_extractor_is_made_in_one_line() -> None:
    made = load_extractor("grid", **SMALL)
    assert_same(made(photo()), make()(photo()))
    assert made.vocabulary == {} and made.spec.selection == {}


# Grids of the bottom-up detector: its box head over all of its map.


def regions(**settings: Any) -> RegionExtractor:
    return make_extractor(RegionConfig(**{**SMALL, **settings}))  # type: ignore[return-value]


@pytest.mark.parametrize("size", [(50, 70), (90, 60), (300, 400)])
def test_the_detectors_grid_is_its_own_modules_applied_by_hand(size: tuple[int, int]) -> None:
    made, detector = make(model="butd-r101"), regions()
    image = photo(*size)
    record = made(image, "some/key")
    with torch.inference_mode():
        res4 = detector.detector.backbone(detector.prepare("", image).pixels[None])
        wanted = detector.detector.roi_heads.res5(res4)[0].permute(1, 2, 0)
    assert isinstance(record, GridRecord) and record.image_size == size
    np.testing.assert_array_equal(record.features, wanted.half().numpy())
    assert record.features.shape == (*res4.shape[2:], 128)  # cells of 16 x 16 pixels


@pytest.mark.parametrize("folder", ["butd_regions", "bua_selection"])
def test_both_variants_checkpoints_give_grids_preprocessed_as_they_are_for_regions(shared: Path, folder: str) -> None:
    same = {"weights": f"reference:{shared / 'reference' / folder}", "width_divisor": 1}
    made, detector = make(model="butd-r101", **same), regions(**same)
    assert made.spec.preprocess == detector.spec.preprocess
    assert made.spec.model["weights"] == detector.spec.model["weights"]
    prepared, wanted = made.prepare("a", photo()), detector.prepare("a", photo())
    assert torch.equal(prepared.pixels, wanted.pixels) and prepared.scale == wanted.scale
    [record] = made.extract([prepared])
    assert isinstance(record, GridRecord) and record.features.any()


def test_an_image_too_thin_for_the_detector_is_too_thin_for_its_grid() -> None:
    with pytest.raises(ImageError, match="resize to a side of 1, at least 3 is needed"):
        make(model="butd-r101").prepare("thin", photo(1, 1000))
