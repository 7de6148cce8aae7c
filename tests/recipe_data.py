"""What `triptych train` needs for every recipe: official files, images, and stores of features made of colours.

No network has to find the features, and every answer can be learnt from them. At full width they are as wide, and as
many, as those of the published extractors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from storage import FeatureLayout, GridRecord, PatchRecord, PixelRecord, Record, RegionRecord, Spec, StoreWriter
from tests import official_files
from tests.official_files import Files
from workflows.recipes import recipe_of
from workflows.recipes.sources import group_of

SEEN = 3  # boxes that show something: the left shape, the right one, and a corner
_WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a the is what color shape it in picture there one thing left image shows not and i "
    "see which ? . red green blue yellow circle square heavy yes no cup casey riley"
)
WORDS = _WORDS.split()
Cut = tuple[int, int, int, int]


@dataclass(frozen=True)
class Size:
    """How much there is of everything.

    images   of each split
    words    of the vocabulary
    dim      width of features
    boxes    of an image
    cells    of a grid, down and across
    patches  of a tower, a side
    classes  of the detector
    """

    images: int = 8
    words: int = len(WORDS) + 39
    dim: int = 12
    boxes: int = SEEN
    cells: tuple[int, int] = (2, 2)
    patches: int = 2
    classes: int = 5


TINY = Size()
FULL = Size(words=30522, dim=2048, boxes=36, cells=(19, 32), patches=14, classes=1600)


class Data:
    """The data of all recipes below one folder, each data set written once."""

    def __init__(self, root: Path, size: Size = TINY) -> None:
        self.root, self.size = root, size
        self.written: dict[str, Files] = {}
        self.projection = np.random.default_rng(0).normal(size=(3, size.dim))
        self.vocabulary = root / "vocab.txt"
        root.mkdir(parents=True, exist_ok=True)
        unused = (f"[unused{number}]" for number in range(1, size.words - len(WORDS) + 1))
        self.vocabulary.write_text("\n".join([*WORDS, *unused]), encoding="utf-8")

    def files(self, name: str) -> Files:
        """A data set's files."""
        if name not in self.written:
            write: Any = OTHERS.get(name) or official_files.WRITERS[name]
            self.written[name] = write(self.root / "data" / name, self.size.images)
        return self.written[name]

    def arguments(self, name: str, root: Path, visual: str | None = None) -> list[str]:
        """What `triptych train` takes for a recipe, with its store and run below `root`."""
        recipe = recipe_of(name)
        names = [each for each in recipe.data if each != "corpus"]
        annotations, images, store = (root / each for each in ("annotations", "images", "store"))
        for folder in (annotations, images, store):
            folder.mkdir(parents=True)
        view = "regions" if name.startswith("vl_bert") else "grid" if name.startswith("grid") else "patches"
        for each in names:
            files, group = self.files(each), group_of(each)
            own = files.annotations / each
            (annotations / each).symlink_to(own if own.is_dir() else files.annotations)
            if not (images / group).exists():
                # Conceptual Captions' rows are counted anew in each split
                shown = files.images / "train" if each == "conceptual_captions" else files.images
                (images / group).symlink_to(shown)
                self.make_store(view, shown, store / group)
        alone = len(names) == 1
        place = annotations / names[0] if alone and names[0] in OTHERS else annotations
        image_root = images / group_of(names[0]) if alone else images
        args = ["--annotations", str(place), "--images", str(image_root), "--store", str(store)]
        if "corpus" in recipe.data:
            (root / "text.doc").write_text("a red circle\nit is a blue square .\n" * 9, encoding="utf-8")
            args += ["--corpus", str(root / "text.doc")]
        args += ["--visual", visual] if visual else []
        return [name, *args, "--tokenizer", str(self.vocabulary), "--out", str(root / "run")]

    def make_store(self, view: str, images: Path, out: Path) -> Path:
        """Features of all images below a folder, by their paths without extension as `extract` has it."""
        layout, record = self.views[view]
        paths = sorted(path for path in images.rglob("*") if path.suffix in (".jpg", ".png"))
        keys = [path.relative_to(images).with_suffix("").as_posix() for path in paths]
        with StoreWriter(out, Spec(view, layout)).unit(keys) as unit:
            for key, path in zip(keys, paths, strict=True):
                unit.append(record(key, np.asarray(Image.open(path).convert("RGB"))))
            unit.commit()
        return out

    @property
    def views(self) -> dict[str, tuple[FeatureLayout, Callable[[str, np.ndarray], Record]]]:
        without = ("whole_image", "attribute_ids", "attribute_scores")
        regions = FeatureLayout(self.size.dim, class_probs=self.size.classes + 1, without=without)
        patches = FeatureLayout(768 if self.size == FULL else self.size.dim)
        return {
            "regions": (regions, self._regions),
            "grid": (FeatureLayout(self.size.dim), self._grid),
            "patches": (patches, self._patches),
            "pixels": (FeatureLayout(3, "bytes"), lambda key, image: PixelRecord(key, _size(image), image)),
        }

    def _feature(self, image: np.ndarray, box: Cut) -> np.ndarray:
        """The mean colour of a part, in `dim` numbers."""
        left, top, right, bottom = box
        colour = image[top : bottom + 1, left : right + 1].reshape(-1, 3).mean(0) / 128 - 1
        found: np.ndarray = (colour @ self.projection).astype(np.float16)
        return found

    def _regions(self, key: str, image: np.ndarray) -> RegionRecord:
        """A box around what is not grey in the left half, one in the right half, and corners."""
        boxes: list[tuple[int, ...]] = []
        for start in (0, 32):
            y, x = np.nonzero(np.abs(image[:, start : start + 32].astype(int) - 128).max(-1) > 40)
            found = (start + x.min(), y.min(), start + x.max(), y.max()) if len(x) else (start, 0, start + 31, 63)
            boxes.append(tuple(map(int, found)))
        boxes += [(0, 0, 5, 5)] * (self.size.boxes - 2)
        count = len(boxes)
        probs = np.full((count, self.size.classes + 1), 0.1 / self.size.classes, np.float16)
        probs[:, 0] = 0.9
        return RegionRecord(
            key,
            _size(image),
            np.array(boxes, np.float32),
            np.stack([self._feature(image, box) for box in boxes]),  # type: ignore[arg-type]
            class_ids=np.zeros(count, np.int32),
            class_scores=np.full(count, 0.9, np.float32),
            class_probs=probs,
        )

    def _cells(self, image: np.ndarray, down: int, across: int) -> np.ndarray:
        """(down, across, dim): the quarters' features, each as often as there are cells in it."""
        quarters = np.array([[self._feature(image, (x, y, x + 31, y + 31)) for x in (0, 32)] for y in (0, 32)])
        found: np.ndarray = quarters[np.arange(down) * 2 // down][:, np.arange(across) * 2 // across]
        return found

    def _grid(self, key: str, image: np.ndarray) -> GridRecord:
        return GridRecord(key, _size(image), self._cells(image, *self.size.cells))

    def _patches(self, key: str, image: np.ndarray) -> PatchRecord:
        width = self.views["patches"][0].dim
        cells, whole = self._cells(image, self.size.patches, self.size.patches), self._feature(image, (0, 0, 63, 63))
        return PatchRecord(key, _size(image), np.ascontiguousarray(cells[..., :width]), whole[:width])


def _size(image: np.ndarray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def image_folder(root: Path, n: int) -> Files:
    """Pictures in a folder a colour, for a linear probe."""
    files = official_files.files_in(root)
    for split in ("train", "test"):
        for number in range(n):
            name = f"{split}/{official_files.colour_of(number)}/{number}.png"
            official_files.draw(files.annotations / name, [official_files.thing_of(number)])
    return Files(files.annotations, files.annotations)


def glue(root: Path, n: int) -> Files:
    """MNLI's files, whose label the second sentence tells."""
    files, labels = official_files.files_in(root), ("contradiction", "neutral", "entailment")
    for split in ("train", "dev_matched"):
        rows = [f"{labels[i % 3]}\tit is red\tit is {('blue', 'heavy', 'red')[i % 3]}" for i in range(n)]
        text = "\n".join(["gold_label\tsentence1\tsentence2", *rows])
        (files.annotations / f"{split}.tsv").write_text(text + "\n", encoding="utf-8")
    return files


OTHERS = {"image-folder": image_folder, "glue-mnli": glue}
