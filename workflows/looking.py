"""What a trained run looks at when it reads a word, over the image itself: pictures and numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from extractors import ConfigError
from storage.frames import CELL, Frame, cached_frame, middle
from trainers.batch import Pixels, Regions
from trainers.data import Split
from trainers.data.snli_ve import LABELS
from trainers.explain import Map, explain
from trainers.heat import boxes, heat
from trainers.models.layers import host_shapes
from trainers.models.vilt import ViLTConfig
from trainers.tasks.families import Family
from trainers.text import Tokenizer
from trainers.visual import Looked, Visual, read
from workflows.recipes.building import Parts, Run
from workflows.recipes.sources import find_images, find_store, group_of

NAMED = 10  # keys that an error names
QUESTIONS = ("vqa", "gqa")


@dataclass(frozen=True, eq=False)
class Seen:
    """A word of a text, and where in the image it looks.

    key     of the image
    image   (H, W, 3) uint8 RGB, the original
    place   of the map: what all cells cover (`trainers.heat`), or (R, 4) boxes in pixels of the original
    chosen  in words, what Grad-CAM is the score of
    """

    key: str
    text: str
    word: str
    image: np.ndarray
    map: Map
    place: Frame | np.ndarray
    chosen: str

    def pictures(self) -> dict[str, np.ndarray]:
        """By kind, (H, W, 3) uint8."""
        maps = {"attention": self.map.attention.numpy(), "gradcam": self.map.gradcam.numpy()}
        if isinstance(self.place, np.ndarray):
            return {kind: boxes(self.image, self.place, each) for kind, each in maps.items()}
        return {kind: heat(self.image, each, self.place) for kind, each in maps.items()}

    def told(self) -> str:
        """What the pictures show, in a line each."""
        asked, maps = self.map.asked, {"attention": self.map.attention, "Grad-CAM": self.map.gradcam}
        spans = (f"{kind} from {each.min():.4g} (plain) to {each.max():.4g} (red)" for kind, each in maps.items())
        about = (
            f"{self.word!r} in {self.text!r}, Grad-CAM of the score of {self.chosen}: {asked.head} {asked.score:.2f}"
        )
        empty = [] if self.map.gradcam.any() else ["no part of the image raises that score through this word"]
        return "\n".join([about, *spans, *empty])

    def numbers(self) -> dict[str, Any]:
        """All of it but the pixels, as JSON has it."""
        kind = "boxes" if isinstance(self.place, np.ndarray) else "frame"
        return {
            "image": self.key,
            "text": self.text,
            "word": self.word,
            "asked": asdict(self.map.asked) | {"chosen": self.chosen},
            kind: np.asarray(self.place).tolist(),
            "attention": self.map.attention.tolist(),
            "gradcam": self.map.gradcam.tolist(),
        }

    def write(self, folder: Path, name: str) -> list[Path]:
        """`NAME-attention.png`, `NAME-gradcam.png` and `NAME.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        stem, paths = re.sub(r"[^\w.-]+", "_", name), []
        for kind, picture in self.pictures().items():
            paths.append(folder / f"{stem}-{kind}.png")
            Image.fromarray(picture).save(paths[-1])
        paths.append(folder / f"{stem}.json")
        paths[-1].write_text(json.dumps(self.numbers(), indent=1), encoding="utf-8")
        return paths


def of_one_image(task: str) -> bool:
    """Whether a task answers about one text and one image, which is what maps can be made of."""
    return not (task == "nlvr2" or task.startswith("vcr") or task.endswith("-classes"))


class Opened:
    """A run, to be asked about words of texts; its model has random weights until it is given others.

    Args:
        split: with the images. Default: the one that the run is scored on; of pre-training the one it learns.

    Raises:
        ConfigError: its task is not about one image at a time, or it names no images.
    """

    def __init__(self, run: Run, split: str | None = None) -> None:
        task = run.recipe.task
        if not of_one_image(task):
            raise ConfigError(f"a run of {task} does not answer about one image and one text; explain another run.")
        if run.places.images is None:
            raise ConfigError("the run names no images to draw on; name their folder with --images.")
        self.parts = Parts(run)
        self.model: nn.Module = self.parts.model().eval()
        self.family: Family = self.parts.family(training=False)
        usual = run.recipe.split if task == "pretraining" else run.recipe.validation
        self.split: Split = self.parts.split(split or usual)

    @cached_property
    def visual(self) -> Visual:
        return self.parts.visual(self.split)

    def at(self, key: str, word: str, text: str | None = None) -> Seen:
        """What the model looks at in an image of the split when it reads a word.

        Args:
            text: default: the first one that the split has about the image.

        Raises:
            ConfigError: there is no such image, or no such word.
            ExplainError: the model has no such maps.
            VisualError: the image, or its features, cannot be used.
        """
        usual = self.text_about(key)
        text = usual if text is None else text
        tokens = self.parts.tokenizer(text)
        row = (self.family.question if self.parts.recipe.task in QUESTIONS else self.family.row)(tokens)
        places = [1 + each for each in places_of(self.parts.tokenizer, text, word)]  # behind [CLS]
        if row.ids[places[-1] : places[-1] + 1] != (tokens[places[-1] - 1],):
            raise ConfigError(f"the model reads {self.family.longest} tokens of a text, {word!r} stands behind them.")
        looked = self.visual.look([key])
        found = explain(self.family, self.model, self.family.batch([row], looked.visual, {}), places)
        group, own = self._named(key)
        image = read(find_images(self.parts.places, group).called([own]), own)
        return Seen(key, text, word, image, found, self._place(group, looked, found), self._chosen(found, word))

    def _named(self, key: str) -> tuple[str, str]:
        """The group of images, and the key in it."""
        if len(self.parts.names) == 1:
            return group_of(self.parts.names[0]), key
        group, _, own = key.partition("/")
        return group, own

    def text_about(self, key: str) -> str:
        """The first text that the split has about an image."""
        for example in self.split.examples:
            if key in example.images:
                return example.texts[0]
        keys = self.split.images()
        named = ", ".join(keys[:NAMED]) + (", ..." if len(keys) > NAMED else "")
        raise ConfigError(f"{self.split.name} {self.split.split} has no image {key!r}; it has {len(keys):,}: {named}.")

    def _chosen(self, found: Map, word: str) -> str:
        head, choice = found.asked.head, found.asked.choice
        if head in ("vqa", "gqa", "qa") and self.parts.answers is not None:
            return f"the answer {self.parts.answers.answers[choice]!r}"
        if head == "snli":
            return LABELS[choice]
        return {"mlm": f"the hidden word {word!r}", "refcoco": f"box {choice}"}.get(head, "text and image as a pair")

    def _place(self, group: str, looked: Looked, found: Map) -> Frame | np.ndarray:
        if isinstance(looked.visual, Regions):
            place: np.ndarray = looked.original_boxes()[0].numpy()
            return place
        height, width = (int(each) for each in looked.sizes[0])
        recipe, (rows, columns) = self.parts.recipe, found.attention.shape
        if isinstance(looked.visual, Pixels):
            if recipe.prepared in ("clip", "imagenet"):
                return middle(height, width)
            config, [(down, across)] = self.parts.config, host_shapes(looked.visual)
            step = config.patch if isinstance(config, ViLTConfig) else CELL * config.pool
            return (0, 0, columns * step * width / across, rows * step * height / down)
        spec = find_store(self.parts.places, group).spec
        return cached_frame(spec.preprocess, spec.model, (height, width), (rows, columns))


def places_of(tokenizer: Tokenizer, text: str, word: str) -> list[int]:
    """The tokens of a word, where it first stands in a text.

    Raises:
        ConfigError: it does not; the message has the words.
    """
    found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
    spans: Sequence[tuple[int, int]] = tokenizer.spans(text)
    places = [] if not found else [at for at, span in enumerate(spans) if _meet(span, found.span())]
    if not places:
        words = ", ".join(dict.fromkeys(re.findall(r"\w+", text)))
        raise ConfigError(f"{word!r} is no word of {text!r}; choose one of {words}.")
    return places


def _meet(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])
