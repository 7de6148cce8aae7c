"""Region records from a narrow network with random weights: what they hold, and what they do not depend on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from extractors import ConfigError, ImageError, RegionConfig, load_extractor, make_extractor
from extractors.faster_rcnn import Predictions
from extractors.regions import RegionExtractor
from storage import RegionRecord, Spec
from tests.unit.extractors.pictures import noisy_photo
from tests.unit.storage.samples import assert_same

SMALL: dict[str, Any] = {
    "weights": "random:0", "width_divisor": 16, "shorter": 64, "longer": 100, "device": "cpu",
}  # fmt: skip
SIZES = [(50, 70), (90, 60), (50, 70), (50, 70), (64, 64), (1, 1), (300, 400)]


def make(**settings: Any) -> RegionExtractor:
    return make_extractor(RegionConfig(**SMALL, **settings))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def extractor() -> RegionExtractor:
    return make(class_probs=True)


def write_boxes(folder: Path, boxes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Settings for boxes of one's own, in pixels of the image unless changed."""
    (folder / "boxes.json").write_text(json.dumps(boxes))
    return {"boxes": str(folder / "boxes.json"), "box_format": "xyxy", "box_units": "pixels"} | changes


def test_a_record_holds_what_the_spec_says(extractor: RegionExtractor) -> None:
    record = extractor(noisy_photo(), "some/key")
    assert isinstance(record, RegionRecord)
    count = len(record.features)
    assert (record.key, record.image_size) == ("some/key", (50, 70))
    assert 1 <= count <= 100
    assert record.features.shape == (count, 128) == (count, extractor.spec.layout.dim)
    assert record.features.dtype == record.whole_image.dtype == np.float16
    assert record.class_probs is not None
    assert record.class_probs.shape == (count, 1601) == (count, extractor.spec.layout.class_probs)
    assert set(record.class_ids) <= set(range(1600)) and set(record.attribute_ids) <= set(range(400))
    assert (record.attribute_scores > 0).all() and (record.attribute_scores < 1).all()


def test_class_probabilities_sum_to_one_and_name_the_class(extractor: RegionExtractor) -> None:
    record = extractor(noisy_photo())
    assert record.class_probs is not None
    np.testing.assert_allclose(record.class_probs.astype(np.float64).sum(1), 1, atol=2e-3)
    foreground = record.class_probs[:, :-1]
    rows = np.arange(len(foreground))
    np.testing.assert_allclose(foreground[rows, record.class_ids], record.class_scores, rtol=1e-3, atol=1e-7)
    assert (foreground.max(1) == foreground[rows, record.class_ids]).all()


def test_class_probabilities_are_left_out_unless_asked_for() -> None:
    plain = make()
    assert plain(noisy_photo()).class_probs is None
    assert plain.spec.layout.class_probs == 0


def test_the_number_of_boxes_is_the_users() -> None:
    assert len(make(min_boxes=7, max_boxes=7)(noisy_photo()).features) == 7
    assert len(make(score_threshold=0.0, max_boxes=300)(noisy_photo()).features) > 7


@pytest.mark.parametrize("rule", ["class-aware", "class-agnostic"])
def test_the_other_rules_run_too(rule: str) -> None:
    settings = {"score_threshold": 0.0} if rule == "class-aware" else {}
    record = make(selection=rule, max_boxes=3, **settings)(noisy_photo())
    assert 1 <= len(record.features) <= 3  # fewer where a regressed box lies outside the image
    assert (np.diff(record.class_scores) <= 0).all()
    assert record.boxes.min() >= 0 and (record.boxes[:, 2:] <= [70, 50]).all()


def test_where_no_class_is_likely_class_aware_keeps_nothing_but_the_whole_image() -> None:
    record = make(selection="class-aware", score_threshold=1.0)(noisy_photo())
    assert record.features.shape == (0, 128) and record.boxes.shape == (0, 4)
    assert record.whole_image.shape == (128,) and record.whole_image.any()


@pytest.mark.parametrize("size", [(50, 70), (90, 60), (64, 64), (300, 400)])
def test_the_whole_image_is_one_box_over_all_of_it(tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    own = make(**write_boxes(tmp_path, {"all": [[0, 0, width, height]], "half": [[0, 0, width / 2, height]]}))
    image = noisy_photo(*size)
    assert own(image, "all").features[0].tobytes() == own(image, "all").whole_image.tobytes()
    assert own(image, "half").features[0].tobytes() != own(image, "half").whole_image.tobytes()
    assert own(image, "half").whole_image.tobytes() == make()(image).whole_image.tobytes()


def test_a_batch_of_several_sizes_equals_one_by_one_bit_for_bit(extractor: RegionExtractor) -> None:
    batch = [extractor.prepare(str(at), noisy_photo(*size, seed=at)) for at, size in enumerate(SIZES)]
    together = extractor.extract(batch)
    assert [record.key for record in together if isinstance(record, RegionRecord)] == [str(at) for at in range(7)]
    for image, found in zip(batch, together, strict=True):
        [alone] = extractor.extract([image])
        assert isinstance(found, RegionRecord) and isinstance(alone, RegionRecord)
        assert_same(found, alone)


def test_the_same_image_gives_the_same_record_again_also_from_an_extractor_made_anew(
    extractor: RegionExtractor,
) -> None:
    first, again, anew = extractor(noisy_photo()), extractor(noisy_photo()), make(class_probs=True)(noisy_photo())
    assert_same(first, again)
    assert_same(first, anew)
    assert first.features.tobytes() != extractor(noisy_photo(seed=1)).features.tobytes()


def test_an_empty_batch_gives_nothing(extractor: RegionExtractor) -> None:
    assert extractor.extract([]) == []


def test_boxes_are_in_pixels_of_the_original_image() -> None:
    # 128 x 200 is halved to 64 x 100: the same boxes in twice the pixels.
    small, large = make(min_boxes=20, max_boxes=20), make(min_boxes=20, max_boxes=20)
    image = noisy_photo(64, 100)
    at_64, at_128 = small(image), large(np.ascontiguousarray(image.repeat(2, 0).repeat(2, 1)))
    assert at_128.image_size == (128, 200)
    assert at_128.boxes.max() > 1.5 * at_64.boxes.max()


def test_features_are_those_of_the_boxes_they_stand_beside(tmp_path: Path) -> None:
    image = noisy_photo(32, 48)  # doubled on its way in, so that boxes come back exactly
    found = make(min_boxes=12, max_boxes=12)(image, "a")
    again = make(**write_boxes(tmp_path, {"a": found.boxes.tolist()}))(image, "a")
    assert again.boxes.tobytes() == found.boxes.tobytes()
    assert again.features.tobytes() == found.features.tobytes()
    assert again.class_ids.tolist() == found.class_ids.tolist()
    assert again.attribute_ids.tolist() == found.attribute_ids.tolist()


def test_one_pixel_is_an_image(extractor: RegionExtractor) -> None:
    record = extractor(noisy_photo(1, 1))
    assert record.image_size == (1, 1)
    assert np.isfinite(record.whole_image).all() and np.isfinite(record.boxes).all()


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (2, 200)])
def test_an_image_too_thin_for_the_network_is_an_error_of_that_image(
    extractor: RegionExtractor, size: tuple[int, int]
) -> None:
    with pytest.raises(ImageError, match=r"resize to a side of [12], at least 3 is needed; raise --longer") as bad:
        extractor.prepare("thin", np.zeros((*size, 3), np.uint8))
    assert (bad.value.reason, bad.value.stage) == ("too_thin", "prepare")


def test_the_thinnest_image_that_fits_runs(extractor: RegionExtractor) -> None:
    prepared = extractor.prepare("thin", noisy_photo(3, 100))
    assert min(prepared.pixels.shape[1:]) == 3
    [record] = extractor.extract([prepared])
    assert isinstance(record, RegionRecord)


def test_features_that_no_store_can_hold_are_an_error_of_their_image_only(extractor: RegionExtractor) -> None:
    good, bad = extractor.prepare("good", noisy_photo()), extractor.prepare("bad", noisy_photo(seed=1))
    bad = replace(bad, pixels=bad.pixels * 1e20)
    first, error, last = extractor.extract([good, bad, good])
    assert isinstance(error, ImageError)
    assert (error.reason, error.stage) == ("not_representable", "model")
    assert isinstance(first, RegionRecord) and isinstance(last, RegionRecord)
    assert_same(first, last)
    assert_same(first, extractor(noisy_photo(), "good"))


def test_features_too_large_for_half_precision_are_refused_and_float32_takes_them() -> None:
    for store_dtype in ("float16", "float32"):
        large = make(store_dtype=store_dtype)
        large.detector.roi_heads.res5[-1].conv3.bias.fill_(1e5)
        if store_dtype == "float32":
            assert large(noisy_photo()).features.max() > 65504
        else:
            with pytest.raises(ImageError, match="above 65504; try --store-dtype float32"):
                large(noisy_photo())


def test_stored_half_precision_is_the_rounded_single_precision() -> None:
    half, single = make()(noisy_photo()), make(store_dtype="float32")(noisy_photo())
    assert single.features.dtype == np.float32
    np.testing.assert_array_equal(half.features, single.features.astype(np.float16))
    np.testing.assert_array_equal(half.boxes, single.boxes)


@pytest.mark.parametrize("said", ["class_probs", "box_deltas", "attribute_probs"])
@pytest.mark.parametrize("rule", ["10-100", "class-aware", "class-agnostic", "given"])
def test_scores_that_are_not_finite_are_an_error_of_their_image_only(
    tmp_path: Path, rule: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = write_boxes(tmp_path, {key: [[0, 0, 2, 2]] for key in "abc"})
    made = make(**own) if rule == "given" else make(selection=rule)
    images = [noisy_photo(), noisy_photo(seed=1), np.zeros((2, 2, 3), np.uint8)]
    batch = [made.prepare(key, image) for key, image in zip("abc", images, strict=True)]
    wanted = made.extract(batch)
    made.batched = True
    monkeypatch.setattr(made, "groups", lambda images: [list(range(len(images)))])
    predict = made.detector.roi_heads.predict

    def overflown(features: Tensor) -> Predictions:
        found = predict(features)
        each = len(features) // 3
        getattr(found, said)[each] = torch.nan  # a box of the second image
        getattr(found, said)[each - 1] = torch.nan  # the whole first image, whose scores nobody asks for
        if rule != "given":
            getattr(found, said)[-2] = torch.nan  # behind the third image's proposals, of which there are fewer
        return found

    monkeypatch.setattr(made.detector.roi_heads, "predict", overflown)
    first, error, last = made.extract(batch)
    assert isinstance(error, ImageError)
    assert (error.reason, error.stage) == ("not_representable", "model")
    assert str(error) == "a score, or what moves a box, is not finite"
    for found, before in ((first, wanted[0]), (last, wanted[2])):
        assert isinstance(found, RegionRecord) and isinstance(before, RegionRecord)
        assert len(found.boxes) == len(before.boxes)


@pytest.mark.parametrize("rule", ["10-100", "class-agnostic"])
def test_features_behind_an_images_proposals_are_nobodys(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(selection=rule)
    images = [noisy_photo(), np.zeros((2, 2, 3), np.uint8)]
    batch = [made.prepare(key, image) for key, image in zip("ab", images, strict=True)]
    wanted = made.extract(batch)
    made.batched = True
    monkeypatch.setattr(made, "groups", lambda images: [list(range(len(images)))])
    features_of = made.detector.roi_heads.features_of

    def overflown(maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        found = features_of(maps, boxes)
        found[len(boxes[0]) + len(wanted[1].boxes) : -1] = 1e6  # type: ignore[union-attr] # above the largest float16
        return found

    monkeypatch.setattr(made.detector.roi_heads, "features_of", overflown)
    for found, before in zip(made.extract(batch), wanted, strict=True):
        assert isinstance(found, RegionRecord) and isinstance(before, RegionRecord)
        assert len(found.boxes) == len(before.boxes)


@pytest.mark.parametrize("rule", ["10-100", "class-aware", "class-agnostic", "detectron2"])
def test_what_is_kept_is_told_without_asking_for_a_value(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that has none; what settles stands for the kernel."""
    monkeypatch.setattr("extractors.suppression.settled", lambda over, alive: alive)
    made = make(selection=rule, class_probs=True)
    batch = [made.prepare(str(at), noisy_photo(*size)) for at, size in enumerate(SIZES[:3])]
    boxes, counts = torch.empty(3, 41, 4, device="meta"), torch.empty(3, dtype=torch.int64, device="meta")
    parts = tuple(torch.empty(3 * 41, width, device="meta") for width in (128, 1601, 6400, 400))
    kept = made._kept_together(batch, boxes, counts, parts)
    assert {each.device.type for each in kept if each is not None} == {"meta"}
    most = len(kept.boxes) // 3
    assert most == min(made.rule.max_boxes, len(kept.class_ids) // 3) and kept.features.shape == (3 * most + 3, 128)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "bfloat16-heads"])
def test_other_dtypes_run_and_are_marked(dtype: str) -> None:
    narrow = make(dtype=dtype)
    assert narrow.spec.model["dtype"] == dtype
    exact, found = (
        make()(noisy_photo()).whole_image.astype(np.float32),
        narrow(noisy_photo()).whole_image.astype(np.float32),
    )
    cosine = exact @ found / np.linalg.norm(exact) / np.linalg.norm(found)
    assert cosine > 0.98 and not np.array_equal(exact, found)


def test_low_precision_heads_find_the_same_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, found = make(), make(dtype="bfloat16-heads")
    proposals = []
    for each in (exact, found):
        heads = each.detector.roi_heads
        with monkeypatch.context() as patch:
            patch.setattr(heads, "features_of", Mock(side_effect=heads.features_of))
            each(noisy_photo())
            proposals.append(heads.features_of.call_args.args[1][0])
    assert len(proposals[0]) > 1 and torch.equal(*proposals)
    assert found.detector.roi_heads.res5[0].conv1.weight.dtype == torch.bfloat16
    assert {each.dtype for each in found.detector.backbone.parameters()} == {torch.float32}


def test_tf32_is_a_gpus() -> None:
    with pytest.raises(ConfigError, match="--dtype tf32 is a GPU's; on a CPU choose float32, bfloat16 or float16"):
        make(dtype="tf32")


# Boxes of one's own.

OWN = [[10, 5, 40, 45], [0, 0, 70, 50], [10, 5, 40, 45], [60, 40, 70, 50]]


def test_own_boxes_stay_as_given_and_in_their_order(tmp_path: Path) -> None:
    record = make(**write_boxes(tmp_path, {"a": OWN}))(noisy_photo(), "a")
    np.testing.assert_array_equal(record.boxes, np.array(OWN, np.float32))
    assert record.features[0].tobytes() == record.features[2].tobytes() != record.features[3].tobytes()


def test_regression_moves_the_boxes_and_keeps_the_features(tmp_path: Path) -> None:
    given = make(**write_boxes(tmp_path, {"a": OWN}))(noisy_photo(), "a")
    moved = make(**write_boxes(tmp_path, {"a": OWN}, box_regression=True))(noisy_photo(), "a")
    assert moved.features.tobytes() == given.features.tobytes()
    assert moved.class_ids.tolist() == given.class_ids.tolist()
    assert (moved.boxes != given.boxes).any(axis=1).all()
    assert moved.boxes.min() >= 0 and (moved.boxes[:, 2:] <= [70, 50]).all()


@pytest.mark.parametrize("regression", [False, True])
def test_an_image_may_have_no_boxes(tmp_path: Path, regression: bool) -> None:
    record = make(**write_boxes(tmp_path, {"a": []}, box_regression=regression), class_probs=True)(noisy_photo(), "a")
    assert record.features.shape == (0, 128) and record.class_probs.shape == (0, 1601)
    assert record.whole_image.any()


def test_formats_and_units_are_ways_to_say_the_same(tmp_path: Path) -> None:
    x, y, right, bottom = 7, 5, 42, 35
    ways = [
        ([x, y, right, bottom], {}),
        ([x, y, right - x, bottom - y], {"box_format": "xywh"}),
        ([x / 70, y / 50, right / 70, bottom / 50], {"box_units": "normalized"}),
    ]
    found = [make(**write_boxes(tmp_path, {"a": [box]}, **changes))(noisy_photo(), "a") for box, changes in ways]
    for each in found:
        np.testing.assert_allclose(each.boxes, [[x, y, right, bottom]], rtol=1e-6)
        assert each.features.tobytes() == found[0].features.tobytes()


def test_an_image_without_an_entry_is_an_error_of_that_image(tmp_path: Path) -> None:
    own = make(**write_boxes(tmp_path, {"a": OWN}))
    with pytest.raises(ImageError, match="has no entry for the key 'b'"):
        own.prepare("b", noisy_photo())
    with pytest.raises(ImageError, match="passes the image"):
        own.prepare("a", noisy_photo(20, 20))


# The spec.

CHANGES: dict[str, dict[str, Any]] = {
    "weights": {"weights": "random:1"},
    "width": {"width_divisor": 32},
    "shorter": {"shorter": 65},
    "longer": {"longer": 101},
    "dtype": {"dtype": "bfloat16"},
    "stored dtype": {"store_dtype": "float32"},
    "rule": {"selection": "class-agnostic"},
    "min": {"min_boxes": 11},
    "max": {"max_boxes": 99},
    "score": {"score_threshold": 0.21},
    "nms": {"nms_threshold": 0.31},
    "class probabilities": {"class_probs": True},
}


def spec_of(**settings: Any) -> Spec:
    return make_extractor(RegionConfig(**{**SMALL, **settings})).spec


def test_every_setting_that_changes_numbers_changes_the_spec(tmp_path: Path) -> None:
    specs = {name: spec_of(**change) for name, change in CHANGES.items()} | {"as it was": spec_of()}
    specs["own boxes"] = spec_of(**write_boxes(tmp_path, {"a": OWN}))
    specs["own boxes, regressed"] = spec_of(**write_boxes(tmp_path, {"a": OWN}, box_regression=True))
    specs["other boxes"] = spec_of(**write_boxes(tmp_path, {"a": OWN[1:]}))
    assert len({spec.id for spec in specs.values()}) == len(specs)


@pytest.mark.parametrize(
    "same", [{}, {"selection": "10-100"}, {"min_boxes": 10}, {"score_threshold": 0.2}, {"weights": "random:00"}]
)
def test_a_default_spelled_out_is_the_same_spec(same: dict[str, Any]) -> None:
    assert spec_of(**same).id == spec_of().id


def test_random_and_narrow_networks_are_marked_in_the_spec() -> None:
    model = spec_of().to_dict()["model"]
    assert model["weights"]["origin"] == "random:0" and len(model["weights"]["sha256"]) == 64
    assert model["width_divisor"] == 16


def test_an_extractor_is_made_in_one_line() -> None:
    made = load_extractor("regions", **SMALL)
    assert_same(made(noisy_photo()), make()(noisy_photo()))
    assert len(made.vocabulary["classes"]) == 1600
