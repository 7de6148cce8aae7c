"""A folder as `triptych compare --data` takes it: tiny official files and pictures from which answers can be learnt."""

from __future__ import annotations

from pathlib import Path

from tests.recipe_data import Data, Size
from workflows.recipes.sources import group_of


def compare_data(root: Path, names: tuple[str, ...] = ("vqav2",), images: int = 8) -> Path:
    """Make `root/images` and `root/annotations` with these data sets; the words are in `root/made/vocab.txt`."""
    data = Data(root / "made", Size(images=images))
    for folder in ("images", "annotations"):
        (root / folder).mkdir(parents=True)
    for name in names:
        files, images_of = data.files(name), root / "images" / group_of(name)
        own = files.annotations / name
        (root / "annotations" / name).symlink_to(own if own.is_dir() else files.annotations)
        if not images_of.exists():
            images_of.symlink_to(files.images)
    return root
