"""The batch that all models take: what it refuses, what it works out by itself, and where it comes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from extractors import load_extractor
from storage import open_store
from storage.records import GridRecord, PatchRecord, PixelRecord, RegionRecord, pack
from tests.unit.storage.samples import make_store
from trainers.batch import Batch, Cells, Pixels, Regions, Text, from_images, from_packed, from_records, stack_pixels

MASK = torch.tensor([[True, True, True], [True, False, False]])


def regions(key: str, count: int) -> RegionRecord:
    rng = np.random.default_rng(count)
    boxes = rng.random((count, 4), np.float32)
    return RegionRecord(key, (40, 60), boxes, rng.random((count, 5)).astype(np.float16), np.full(5, count, np.float16))


def test_a_mask_tells_lengths_and_goes_where_it_hides_nothing() -> None:
    text = Text(torch.ones(2, 3, dtype=torch.int64), MASK)
    assert text.lengths == (3, 1) and text.mask is not None
    full = Text(torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64))
    assert full.mask is None and full.lengths == (3, 3)
    assert full.to("cpu").lengths == (3, 3) and text.to("cpu").lengths == (3, 1)


def test_what_only_the_device_knows_is_not_asked_for() -> None:
    text = Text(torch.ones(2, 3, dtype=torch.int64, device="meta"), MASK.to("meta"))
    assert text.lengths is None and text.mask is not None
    assert Text(torch.ones(2, 3, dtype=torch.int64), MASK).to("meta").lengths == (3, 1)


def test_what_does_not_agree_is_refused() -> None:
    ids = torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"text mask has shape \[2, 2\], wanted \[2, 3\]"):
        Text(ids, MASK[:, :2])
    with pytest.raises(ValueError, match="fill rows from the left"):
        Text(ids, MASK.flip(1))
    with pytest.raises(ValueError, match="features or pixels"):
        Regions(torch.zeros(2, 3, 4), torch.ones(2, 2))
    with pytest.raises(ValueError, match="2 texts, but 1 images"):
        Batch(Text(ids), Cells(torch.zeros(1, 4, 8)))
    assert len(Batch(Text(ids), Cells(torch.zeros(1, 4, 8)), image_of=(0, 0))) == 2


def test_regions_come_padded_with_their_whole_image() -> None:
    found = from_records([regions("a", 3), regions("b", 1)])
    assert isinstance(found, Regions) and found.features is not None and found.mask is not None
    assert found.features.dtype == torch.float16 and found.features.shape == (2, 3, 5)
    assert found.lengths == (3, 1) and not found.features[1, 1:].any() and not found.boxes[1, 1:].any()
    assert found.whole_image is not None and found.whole_image[:, 0].tolist() == [3, 1]
    assert found.image_sizes.tolist() == [[40, 60], [40, 60]]
    cut = from_records([regions("a", 3), regions("b", 2)], rows=2)
    assert isinstance(cut, Regions) and cut.mask is None and cut.boxes.shape == (2, 2, 4)


def test_boxes_of_unknown_images_are_refused() -> None:
    batch = pack([RegionRecord("a", (0, 0), np.ones((1, 4), np.float32), np.ones((1, 5), np.float16))])
    with pytest.raises(ValueError, match="--sizes"):
        from_packed(batch)
    with pytest.raises(ValueError, match="fractions"):
        from_packed(pack([regions("a", 2)]), box_units="fractions")


def test_a_store_gives_the_same_as_its_records(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "store", [["a", "b"]]))
    one, other = from_packed(store.batch(["b", "a"], ["whole_image"])), from_records([store["b"], store["a"]])
    assert isinstance(one, Regions) and isinstance(other, Regions)
    for name in ("features", "boxes", "mask", "whole_image", "image_sizes"):
        assert torch.equal(getattr(one, name), getattr(other, name))


def test_cells_keep_their_shapes() -> None:
    grids = [
        GridRecord("a", (64, 96), np.ones((2, 3, 4), np.float16)),
        GridRecord("b", (9, 9), np.ones((1, 2, 4), np.float16)),
    ]
    found = from_records(grids)
    assert isinstance(found, Cells) and found.shapes == ((2, 3), (1, 2)) and found.lengths == (6, 2)
    patches = from_records([PatchRecord("a", (9, 9), np.ones((2, 2, 4), np.float16), np.ones(4, np.float16))])
    assert isinstance(patches, Cells) and patches.mask is None and patches.whole_image is not None


def test_pixels_are_padded_and_normalised_on_the_image_alone() -> None:
    images = [np.full((2, 3, 3), 10, np.uint8), np.full((4, 1, 3), 30, np.uint8)]
    found = from_records([PixelRecord(str(i), (9, 9), image) for i, image in enumerate(images)])
    assert isinstance(found, Pixels) and found.shapes == ((2, 3), (4, 1)) and found.images.shape == (2, 3, 4, 3)
    ready = found.normalised([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
    assert ready.images[0, :, 1, 2].tolist() == [4.5, 4, 3.5] and not ready.images[0, :, 2:].any()
    assert ready.images.count_nonzero() == 3 * (6 + 4)
    blue_first = Pixels(torch.tensor([10, 20, 30], dtype=torch.uint8)[None, :, None, None]).normalised(
        (0,) * 3, (1,) * 3, True
    )
    assert blue_first.images.flatten().tolist() == [30, 20, 10]
    assert blue_first.normalised((9,) * 3, (9,) * 3) is blue_first


def test_pixels_of_one_size_have_no_padding() -> None:
    found = stack_pixels([torch.ones(3, 4, 5), torch.ones(3, 4, 5)])
    assert found.sizes is None and found.shapes == ((4, 5), (4, 5)) and bool(found.inside().all())


def test_images_through_an_extractor_are_what_its_store_would_give() -> None:
    extractor = load_extractor("pixels", shorter=8, longer=16)
    images = [np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3), np.zeros((30, 10, 3), np.uint8)]
    found = from_images(extractor, images)
    wanted = from_records([extractor(image) for image in images])
    assert isinstance(found, Pixels) and isinstance(wanted, Pixels) and torch.equal(found.images, wanted.images)


def test_everything_moves_together() -> None:
    batch = Batch(
        Text(torch.ones(2, 3, dtype=torch.int64), MASK),
        stack_pixels([torch.ones(3, 4, 5), torch.ones(3, 2, 5)]),
        targets={"vqa": torch.ones(2)},
    )
    moved = batch.to("meta")
    assert isinstance(moved.visual, Pixels) and moved.visual.sizes is not None and moved.text.mask is not None
    tensors = [moved.text.ids, moved.text.mask, moved.visual.images, moved.visual.sizes, moved.targets["vqa"]]
    assert {str(each.device) for each in tensors} == {"meta"} and moved.visual.shapes == ((4, 5), (2, 5))
