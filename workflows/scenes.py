"""`triptych scenes make`: pictures whose every truth is known, and that truth in the data sets' official files."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from workflows.output import Command, emit

PHOTOS = Path(__file__).parent / "photos"
BUNDLED = [PHOTOS / name for name in ("astronaut.jpg", "chelsea.jpg", "rocket.jpg")]  # nothing there is a kind of thing
SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Scenes(Command):
    """Draw scenes and write their truth: questions, captions, expressions, pairs, objects, in official files.

    triptych scenes make --images 2000 --seed 0 --out scenes
    """

    out: str
    """The folder. The same command goes on where it stopped."""
    images: int = 1000
    """How many pictures; 70 % are for training, 15 % each for validation and test."""
    seed: int = 0
    """Of all chance: the same seed makes the same files."""
    things: tuple[int, int] = (3, 7)
    """The fewest and the most things of a picture. With fewer a model learns sooner what words mean."""
    backgrounds: str | None = None
    """A folder of photographs without writing, and without what scenes show, for backgrounds, which are blurred.
    Default: the bundled ones."""
    workers: int = os.cpu_count() or 1
    """Processes that draw."""

    def run(self) -> int:
        """Make them; returns the exit status."""
        from trainers.scenes.making import make_scenes, told

        photographs = BUNDLED
        if self.backgrounds is not None:
            photographs = sorted(each for each in Path(self.backgrounds).rglob("*") if each.suffix.lower() in SUFFIXES)
        count, shown = 0, sys.stderr.isatty()

        def drawn(images: int) -> None:
            nonlocal count
            count += images
            if shown:
                print(f"\r{count:,} of {self.images:,} pictures", end="", file=sys.stderr, flush=True)

        found = make_scenes(Path(self.out), self.images, self.seed, photographs, self.workers, drawn, self.things)
        if shown:
            print(file=sys.stderr)
        emit(
            {"out": self.out, "images": self.images, "data_sets": {name: asdict(each) for name, each in found.items()}}
        )
        print("\n".join(told(found)))
        print(f"pictures in {self.out}/images, of NLVR2 and VCR under their own names; files in {self.out}/annotations")
        return 0
