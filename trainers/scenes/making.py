"""Makes a folder of scenes: pictures by several processes, then the official files of all data sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from storage.errors import TriptychError
from trainers.scenes.drawing import save
from trainers.scenes.files import write_all
from trainers.scenes.official import SPLITS, Scenes, Written, coco_path
from trainers.scenes.saying import NUMBERS
from trainers.scenes.scene import THINGS, make_scene

FILE = "scenes.json"  # what was made, and how
SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
FEWEST = 40  # scenes: below, some data set would be without an example of some split
CHUNK = 8  # pictures that a process draws at once
SAME_PICTURES = ("visual_genome", "gqa", "flickr30k", "snli_ve")  # as COCO's, by the same ids


class ScenesError(TriptychError):
    """Scenes cannot be made."""


def make_scenes(
    out: Path,
    images: int,
    seed: int,
    photographs: Sequence[Path],
    workers: int,
    drawn: Callable[[int], None] = lambda images: None,
    things: tuple[int, int] = THINGS,
) -> dict[str, Written]:
    """Make so many scenes in a folder: `images/GROUP`, `annotations/DATA SET`, and `scenes.json`.

    The same seed makes the same bytes, whatever the workers; pictures that are there already are kept.

    Args:
        photographs: what backgrounds are cut from.
        drawn: told how many more pictures there are.
        things: the fewest and the most of a picture.

    Raises:
        ScenesError: there are too few images for all splits, a seed below 0, no workers or photographs, no such numbers
            of things, or other scenes in `out`.
    """
    if images < FEWEST:
        raise ScenesError(f"--images {images} are too few for all data sets and splits; make {FEWEST} or more.")
    if seed < 0:
        raise ScenesError(f"--seed {seed} must be 0 or more.")
    if workers < 1:
        raise ScenesError(f"--workers {workers} draw nothing; take 1 or more.")
    if not photographs:
        raise ScenesError("there is no photograph (.jpg, .png) for backgrounds; name a folder of some.")
    most = len(NUMBERS) - 1  # which sentences count to
    if not 1 <= things[0] <= things[1] <= most:
        raise ScenesError(
            f"--things {things[0]} {things[1]} is no range; give two numbers from 1 to {most}, the smaller first."
        )
    about = {"images": images, "seed": seed, "things": list(things), "photographs": [path.name for path in photographs]}
    _require_same(out, about)
    numbers = splits(images)
    places = [(number, split) for split in SPLITS for number in numbers[split]]
    _prepare(out, about)
    draw = partial(_draw, seed=seed, things=things, photographs=tuple(photographs), folder=out / "images" / "coco")
    chunks = [places[at : at + CHUNK] for at in range(0, len(places), CHUNK)]
    # Spawned, not forked: who calls may have threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
        for count in processes.map(draw, chunks):
            drawn(count)
    scenes: Scenes = {split: [make_scene(seed, number, things) for number in numbers[split]] for split in SPLITS}
    found = write_all(scenes, out)
    _finish(out, about, found)
    return found


def splits(images: int) -> dict[str, range]:
    """The numbers of the scenes of each split."""
    first, second = round(SHARES["train"] * images), round((SHARES["train"] + SHARES["val"]) * images)
    return {"train": range(first), "val": range(first, second), "test": range(second, images)}


def _draw(
    places: Sequence[tuple[int, str]], seed: int, things: tuple[int, int], photographs: Sequence[Path], folder: Path
) -> int:
    for number, split in places:
        scene = make_scene(seed, number, things)
        path = folder / coco_path(scene, split)
        if not path.exists():
            unfinished = path.with_suffix(".partial")
            save(scene, photographs, unfinished)
            unfinished.replace(path)
    return len(places)


def _require_same(out: Path, about: dict[str, object]) -> None:
    if not (out / FILE).exists():
        if out.exists() and any(out.iterdir()):
            raise ScenesError(f"{out} holds other files; choose an empty folder for --out.")
        return
    try:
        there = json.loads((out / FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ScenesError(f"{out / FILE} is damaged ({error}); delete {out} and make its scenes again.") from error
    apart = [
        f"{name} {there.get(name)} there, {value} asked for"
        for name, value in about.items()
        if there.get(name) != value
    ]
    if apart:
        raise ScenesError(f"{out} holds other scenes ({'; '.join(apart)}); choose another --out.")


def _prepare(out: Path, about: dict[str, object]) -> None:
    (out / "images" / "coco").mkdir(parents=True, exist_ok=True)
    (out / FILE).write_text(json.dumps(about, indent=1), encoding="utf-8")
    for name in SAME_PICTURES:
        link = out / "images" / name
        if not link.is_symlink():
            link.symlink_to("coco")


def _finish(out: Path, about: dict[str, object], found: dict[str, Written]) -> None:
    data = {name: asdict(written) for name, written in found.items()}
    (out / FILE).write_text(json.dumps({**about, "data": data}, indent=1), encoding="utf-8")


def told(found: dict[str, Written]) -> Iterator[str]:
    """A line a data set."""
    for name, written in found.items():
        counts = ", ".join(f"{split} {count:,}" for split, count in written.examples.items())
        blind = "" if written.guessed is None else f"; guessing from the text alone is right {written.guessed:.1f} %"
        yield f"{name:<14}{counts}{blind}"
