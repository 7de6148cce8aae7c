"""Visual inputs by key: the same from a store, from pixels and through the cache, and what is missing told at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from extractors.images import ImageError
from storage import SpecMismatchError, open_store
from tests.unit.trainers.tasks import tiny
from trainers.batch import Cells, Pixels, Regions
from trainers.cache_through import CacheThrough
from trainers.images import meter_square, square_pixels, vilt_pixels
from trainers.several import Several
from trainers.visual import PixelVisual, RegionPixels, Renamed, StoreVisual, VisualError, require

KEYS = ["picture-3", "picture-0", "picture-5"]


class Counted(tiny.Pictures):
    """Pictures that count how often they are read."""

    def __init__(self, count: int = 24) -> None:
        super().__init__(count)
        self.reads: list[str] = []

    def read(self, key: str) -> np.ndarray:
        self.reads.append(key)
        return super().read(key)


def vilt(images: Any) -> Pixels:
    return vilt_pixels(images, 64)


def test_a_store_gives_what_it_holds_and_fields_beside() -> None:
    found = StoreVisual(tiny.store("regions"), 2, ("class_ids", "class_probs")).look(KEYS)
    assert isinstance(found.visual, Regions) and found.visual.whole_image is None
    assert found.visual.boxes.shape == (3, 2, 4) and found.sizes.tolist() == [[64, 96], [64, 64], [64, 96]]
    records = [tiny._regions(key) for key in KEYS]
    for row, record in enumerate(records):
        assert record.class_ids is not None and record.class_probs is not None
        assert found.others["class_ids"][row].tolist() == record.class_ids[:2].tolist()
        assert np.array_equal(found.others["class_probs"][row].numpy(), record.class_probs[:2])


def test_patches_bring_their_class_token_and_grids_their_shapes() -> None:
    patches = StoreVisual(tiny.store("patches")).look(KEYS).visual
    assert isinstance(patches, Cells) and patches.whole_image is not None
    grids = StoreVisual(tiny.store("grid")).look(KEYS).visual
    assert isinstance(grids, Cells) and grids.shapes == ((2, 3), (2, 2), (2, 3))


def test_an_image_without_features_is_named() -> None:
    visual = StoreVisual(tiny.store("grid"))
    assert visual.missing(["picture-3", "other-1"]) == ["other-1"] and visual.missing([]) == []
    with pytest.raises(VisualError, match="an image has no features: 'other-1' is not among the 24 keys"):
        visual.look(["other-1"])


def test_all_missing_keys_are_counted_and_ten_named_before_anything_starts() -> None:
    visual = StoreVisual(tiny.store("grid"))
    require(visual, KEYS, "vqav2 val")
    with pytest.raises(VisualError, match=r"12 of 15 images of vqav2 val are missing: no-0, .*no-9, \.\.\.; add them"):
        require(visual, [*KEYS, *(f"no-{number}" for number in range(12))], "vqav2 val")


def test_pixels_are_prepared_by_the_model_s_own_way_and_changed_by_chance() -> None:
    images = Counted()
    plain = PixelVisual(images, vilt)
    found = plain.look(KEYS)
    assert isinstance(found.visual, Pixels) and found.visual.shapes == ((64, 96), (64, 64), (64, 96))
    assert found.sizes.tolist() == [[64, 96], [64, 64], [64, 96]]

    def darker(image: np.ndarray, chance: np.random.Generator) -> np.ndarray:
        return image // int(chance.integers(2, 5))

    changed = PixelVisual(images, vilt, darker)
    draws = [np.random.default_rng(number) for number in range(3)]
    assert not torch.equal(changed.look(KEYS, draws).visual.images, found.visual.images)  # type: ignore[union-attr]
    assert torch.equal(changed.look(KEYS).visual.images, found.visual.images)  # type: ignore[union-attr]


def test_an_image_that_cannot_be_used_is_named() -> None:
    class Broken(tiny.Pictures):
        def read(self, key: str) -> np.ndarray:
            raise ImageError("truncated", "it ends too early", "decode")

    with pytest.raises(VisualError, match="image 'picture-0' cannot be used: .*ends too early"):
        PixelVisual(Broken(), vilt).look(["picture-0"])


def test_boxes_move_with_the_pixels() -> None:
    visual = RegionPixels(tiny.Pictures(), StoreVisual(tiny.store("regions"), 3, ("class_ids",)), 128, 256)
    found = visual.look(KEYS)
    assert isinstance(found.visual, Regions) and found.visual.pixels is not None
    assert found.visual.image_sizes.tolist() == [[128, 192], [128, 128], [128, 192]]
    stored = StoreVisual(tiny.store("regions"), 3).look(KEYS)
    assert torch.allclose(found.original_boxes(), stored.original_boxes(), atol=0.6)
    assert found.others["class_ids"].shape == (3, 3)
    assert visual.missing(["picture-0", "other-1"]) == ["other-1"]


def test_the_first_epoch_fills_the_store_and_the_next_ones_read_it(tmp_path: Path) -> None:
    images, extractor = Counted(), tiny.pixel_extractor()
    visual = CacheThrough(images, extractor, tmp_path / "store")
    assert visual.missing([*KEYS, "other-1"]) == ["other-1"]
    first = [visual.look(KEYS[:2]), visual.look(KEYS)]
    assert sorted(images.reads) == sorted(KEYS)
    assert len(open_store(tmp_path / "store")) == 0
    visual.flush()
    assert sorted(open_store(tmp_path / "store")) == sorted(KEYS)
    second = CacheThrough(images, extractor, tmp_path / "store")
    again = second.look(KEYS)
    assert len(images.reads) == 3, "what is in the store is not extracted again"
    assert torch.equal(first[1].visual.images, again.visual.images)  # type: ignore[union-attr]
    assert first[1].visual.shapes == again.visual.shapes  # type: ignore[union-attr]
    assert torch.equal(first[1].sizes, again.sizes)
    mixed = second.look(["picture-9", KEYS[0]])  # one from the store, one fresh
    assert torch.equal(mixed.visual.images[1], again.visual.images[0])  # type: ignore[union-attr]


def test_a_full_unit_is_committed_while_training_goes_on(tmp_path: Path) -> None:
    visual = CacheThrough(tiny.Pictures(), tiny.pixel_extractor(), tmp_path / "store", unit_bytes=40_000)
    for number in range(8):
        visual.look([f"picture-{number}"])
    assert 4 <= len(open_store(tmp_path / "store")) < 8
    assert len(visual.look([f"picture-{number}" for number in range(8)]).sizes) == 8


def test_many_threads_fill_one_store_without_doing_anything_twice(tmp_path: Path) -> None:
    images = Counted()
    visual = CacheThrough(images, tiny.pixel_extractor(), tmp_path / "store", unit_bytes=60_000)
    batches = [[f"picture-{(start + step) % 24}" for step in range(4)] for start in range(0, 24, 2)] * 2
    with ThreadPoolExecutor(4) as pool:
        for keys, found in zip(batches, pool.map(visual.look, batches), strict=True):
            assert found.sizes.tolist() == [list(tiny.picture(key).shape[:2]) for key in keys]
    assert sorted(images.reads) == sorted(images.keys)


def test_a_store_of_another_extractor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecMismatchError, match="holds other features"):
        CacheThrough(tiny.Pictures(), tiny.pixel_extractor(), tiny.store("grid"))


def test_keys_may_have_other_names_in_the_store() -> None:
    visual = Renamed(StoreVisual(tiny.store("grid")), {"3": "picture-3", "0": "picture-0", "lost": "picture-99"})
    assert visual.missing(["3", "4", "lost"]) == ["4", "lost"]
    wanted = StoreVisual(tiny.store("grid")).look(["picture-3", "picture-0"]).visual
    assert torch.equal(visual.look(["3", "0"]).visual.features, wanted.features)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "make",
    (
        lambda: StoreVisual(tiny.store("regions"), None, ("class_probs",)),
        lambda: StoreVisual(tiny.store("grid")),
        lambda: StoreVisual(tiny.store("patches")),
        lambda: PixelVisual(tiny.Pictures(), vilt),
        lambda: PixelVisual(tiny.Pictures(), lambda images: square_pixels(images, meter_square(32))),
        lambda: RegionPixels(tiny.Pictures(), StoreVisual(tiny.store("regions"), 3), 64, 96),
    ),
)
def test_images_of_several_groups_make_one_batch(make: Any) -> None:
    """As if all came from one source."""
    visual = make()
    several = Several({"a": visual, "b": visual})
    keys = ["a/picture-0", "b/picture-1", "a/picture-5", "b/picture-0"]
    found, wanted = several.look(keys), visual.look([key[2:] for key in keys])
    _assert_equal(found.visual, wanted.visual)
    assert torch.equal(found.sizes, wanted.sizes)
    for name, values in wanted.others.items():
        assert torch.equal(found.others[name], values)
    assert several.missing(["a/picture-0", "b/other-1", "c/picture-0"]) == ["b/other-1", "c/picture-0"]
    _assert_equal(several.look(keys[:1]).visual, visual.look(["picture-0"]).visual)


def _assert_equal(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    for name, value in vars(wanted).items():
        other = getattr(found, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(other, value), name
        elif isinstance(value, Pixels):
            _assert_equal(other, value)
        else:
            assert other == value, name
