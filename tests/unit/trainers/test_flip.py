"""Mirrored images: boxes, pixels and words change sides, features and padding stay."""

from __future__ import annotations

import pytest
import torch

from tests.unit.trainers.tasks import tiny
from trainers.batch import Pixels, Regions
from trainers.flip import mirrored, mirrored_boxes, mirrored_text
from trainers.visual import Looked, RegionPixels, StoreVisual

KEYS = ["picture-0", "picture-1", "picture-2"]


def test_words_change_sides() -> None:
    said = "Is the left one right of the leftmost bright thing ?"
    assert mirrored_text(said) == "Is the right one left of the leftmost bright thing ?"


def test_boxes_change_sides_and_come_back() -> None:
    boxes = torch.tensor([[[0.0, 1, 9, 5]], [[3, 0, 7, 9]]])
    found = mirrored_boxes(boxes, torch.tensor([64.0, 20.0]))
    assert found.tolist() == [[[54, 1, 63, 5]], [[12, 0, 16, 9]]]
    assert torch.equal(mirrored_boxes(found, torch.tensor([64.0, 20.0])), boxes)


def test_only_chosen_images_change_and_padding_stays() -> None:
    looked = StoreVisual(tiny.store("regions")).look(KEYS)
    found = mirrored(looked, [False, True, True])
    old, new = looked.visual, found.visual
    assert isinstance(old, Regions) and isinstance(new, Regions) and old.mask is not None
    assert torch.equal(new.boxes[0], old.boxes[0]) and new.features is old.features
    assert torch.equal(new.boxes[~old.mask], old.boxes[~old.mask])
    assert new.boxes[1, 0].tolist() == [96 - 1 - 12, 0, 95, 12]


def test_pixels_change_sides_within_their_own_width() -> None:
    visual = RegionPixels(tiny.Pictures(), StoreVisual(tiny.store("regions"), 2), 64, 96)
    looked = visual.look(KEYS)
    found = mirrored(looked, [True, True, False]).visual
    assert isinstance(looked.visual, Regions) and isinstance(found, Regions)
    before, after = looked.visual.pixels, found.pixels
    assert isinstance(before, Pixels) and isinstance(after, Pixels)
    assert torch.equal(after.images[0, :, :, :64].flip(-1), before.images[0, :, :, :64])
    assert not after.images[0, :, :, 64:].any()
    assert torch.equal(after.images[1].flip(-1), before.images[1])
    assert torch.equal(after.images[2], before.images[2])


def test_outlines_change_sides_with_their_boxes() -> None:
    outlines = torch.zeros(1, 1, 14, 14)
    outlines[0, 0, :, :3] = 1
    regions = Regions(torch.tensor([[[0.0, 0, 9, 9]]]), torch.tensor([[20.0, 20.0]]), None, torch.zeros(1, 1, 4))
    with_pixels = Regions(
        regions.boxes, regions.image_sizes, pixels=Pixels(torch.zeros(1, 3, 20, 20)), outlines=outlines
    )
    found = mirrored(Looked(with_pixels, regions.image_sizes), [True]).visual
    assert isinstance(found, Regions) and found.outlines is not None
    assert bool(found.outlines[..., -3:].all()) and not bool(found.outlines[..., :-3].any())


@pytest.mark.parametrize("training", (True, False))
def test_half_of_vl_berts_images_are_mirrored_while_it_trains(training: bool) -> None:
    from tests.unit.trainers.tasks.test_fine_tuning import CASES, key

    _, task = CASES["vl_bert refcoco"].build(training)
    task.split.examples[:] = task.split.examples[:6]  # type: ignore[index]
    plain = StoreVisual(tiny.store("regions"), 3).look([key(number) for number in range(6)]).visual
    assert isinstance(plain, Regions)
    flipped = 0
    for epoch in range(20):
        batch = task.collate(range(6), epoch)["pairs"]
        assert isinstance(batch.visual, Regions)
        flipped += int((batch.visual.boxes[:, 0] != plain.boxes[:, 0]).any(-1).sum())
        assert batch.targets["right"].sum(1).tolist() == [1] * 6, "the true box moves with the others"
    assert (30 < flipped < 90) if training else flipped == 0
