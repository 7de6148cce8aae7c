"""RandAugment: fourteen changes, drawn from the generator that is given and from nothing else."""

from __future__ import annotations

import numpy as np

from trainers.augment import OPERATIONS, rand_augment


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def test_there_are_fourteen_changes_and_each_one_changes_something() -> None:
    from PIL import Image

    assert len(OPERATIONS) == 14 and not {"invert", "cutout"} & OPERATIONS.keys()
    grey = np.clip(image() // 2 + 30, 0, 255).astype(np.uint8)
    for name, (least, greatest, _, change) in OPERATIONS.items():
        changed = np.asarray(change(Image.fromarray(grey), 0.3 * (greatest - least) + least))
        assert changed.shape == grey.shape and changed.dtype == np.uint8
        assert not np.array_equal(changed, grey), name


def test_the_same_chance_gives_the_same_image_and_another_one_another() -> None:
    first, same, other = (rand_augment(image(), np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, same) and not np.array_equal(first, other)


def test_some_images_stay_as_they_are() -> None:
    kept = [np.array_equal(rand_augment(image(), np.random.default_rng(seed)), image()) for seed in range(200)]
    assert 0.1 < np.mean(kept) < 0.45  # both changes left out: about a quarter
