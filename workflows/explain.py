"""`triptych explain`: pictures of what a trained run looks at when it reads a word."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from workflows.output import Command, emit


@dataclass(frozen=True)
class Explain(Command):
    """Show what a run looks at when it reads a word: attention and Grad-CAM, over cells, patches or boxes.

    triptych explain RUN --image 100 --word umbrella --out pictures
    """

    trained: tyro.conf.Positional[str]
    """The run: the folder of `triptych train --out`."""
    image: str
    """The image, by the data set's key."""
    word: str
    """The word of the text."""
    out: str
    """The folder for the pictures and their numbers."""
    question: str | None = None
    """The text. Default: the first one that the split has about the image."""
    split: str | None = None
    """The split with the image. Default: the one that the run is scored on; of pre-training the one it learns."""
    images: str | None = None
    """Images, as of train. Default: those of the run; a run from a store may have none."""
    step: int | None = None
    """The checkpoint after this many updates. Default: the newest."""

    def run(self) -> int:
        """Write pictures and numbers; returns the exit status."""
        from trainers.checkpoint import load_weights
        from workflows.looking import Opened
        from workflows.runs import kept

        run = kept(self.trained)
        if self.images is not None:
            run = replace(run, places=replace(run.places, images=self.images))
        opened = Opened(run, self.split)
        load_weights(opened.model, self.trained, self.step)
        found = opened.at(self.image, self.word, self.question)
        paths = found.write(Path(self.out), f"{self.image}-{self.word}")
        emit({**found.numbers(), "files": [str(path) for path in paths]})
        print("\n".join(map(str, paths)))
        print(found.told())
        return 0
