"""`triptych demo`: the whole way on generated scenes, from images to two stores, a page of them, and a comparison."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from extractors.configs import GRID_PREFIX, SHIPPED, SHIPPED_DETECTOR, SHIPPED_SIZE
from workflows.output import Command, emit

SCENES, SEED = 200, 1  # the network that comes along was trained on scenes of seed 0
SPLIT = "test"  # whose features are extracted: pictures on which nothing is trained
SHOWN = 8  # of them, on the page
SURE = 0.7  # of a box that is kept: nine in ten are then right
RECIPES, STEPS = ("vl_bert_vqa", "grid_vlp_vqa", "vilt_vqa"), 100  # by regions, by grids and by pixels


@dataclass(frozen=True)
class Demo(Command):
    """Draw scenes, extract their regions and grids, show them, and compare three models: all that a first try needs.

    triptych demo

    triptych demo --out trial
    """

    out: str = "demo-output"
    """Folder for all of it; a second demo finds its images and its models done."""

    def run(self) -> int:
        """Run the commands of a first try, one after the other; returns the exit status of the first that fails."""
        from workflows.cli import parse

        for args in commands(self.out):
            print(f"--- triptych {shlex.join(args)}", flush=True)
            command = parse([*args, "--json"] if self.json else args)
            assert command is not None
            status = command.run()
            if status:
                return status
            print(flush=True)
        right = labels(self.out)
        pages = {"boxes": f"{self.out}/index.html", "comparison": f"{self.out}/comparison/report.html"}
        emit({"event": "demo", **right._asdict(), **pages})
        print(
            f"of {right.found} boxes {right.named} are on a thing and have its name, and {right.described} of these "
            f"describe it rightly; the pictures show {right.things} things"
        )
        print(f"open {pages['boxes']} in a browser: the pictures with their boxes, and the grid features as maps")
        print(f"open {pages['comparison']} in a browser: three tiny models on regions, grids and pixels")
        return 0


def commands(out: str) -> Iterator[list[str]]:
    """What the demo runs, as a user would."""
    shorter, longer = map(str, SHIPPED_SIZE)
    images = ["--images", f"{out}/scenes/images/coco/{SPLIT}2015"]
    network = ["--weights", SHIPPED, "--shorter", shorter, "--longer", longer]
    boxes = ["--model", SHIPPED_DETECTOR, "--score-threshold", str(SURE)]
    cells = ["--model", SHIPPED_DETECTOR.removeprefix(GRID_PREFIX)]
    compared = ["--recipes", *RECIPES, "--visuals", "store", "--seeds", str(SEED), "--steps", str(STEPS)]
    yield ["scenes", "make", "--images", str(SCENES), "--seed", str(SEED), "--out", f"{out}/scenes"]
    yield ["extract", "regions", *images, "--out", f"{out}/regions", *boxes, *network]
    yield ["extract", "grid", *images, "--out", f"{out}/grid", *cells, *network]
    yield ["verify", f"{out}/regions"]
    yield ["verify", f"{out}/grid"]
    yield ["report", f"{out}/regions", f"{out}/grid", *images, "--number", str(SHOWN), "--out", f"{out}/index.html"]
    yield ["compare", "--data", f"{out}/scenes", "--out", f"{out}/comparison", "--tiny", *compared]


class Labels(NamedTuple):
    """How right the boxes are.

    things     in the pictures
    found      boxes, on them or beside
    named      of these, those on a thing of their name, one a thing
    described  of these, those with an attribute that it has
    """

    things: int
    found: int
    named: int
    described: int


def labels(out: str) -> Labels:
    """The boxes beside what the pictures show."""
    import numpy as np

    from storage import RegionRecord, open_store
    from trainers.detection.data import Labelled
    from trainers.detection.scores import described
    from trainers.scenes.making import splits
    from trainers.scenes.official import coco_path
    from trainers.scenes.scene import make_scene

    store, said, things, found = open_store(Path(out) / "regions"), list[bool](), 0, 0
    kinds, looks = (store.vocabulary[kind].index for kind in ("classes", "attributes"))
    for scene in (make_scene(SEED, number) for number in splits(SCENES)[SPLIT]):
        record = store[Path(coco_path(scene, SPLIT)).stem]
        assert isinstance(record, RegionRecord)
        rows = {"boxes": record.boxes, "scores": record.class_scores, "classes": record.class_ids}
        boxes = np.array([thing.box for thing in scene.things], np.float32)
        classes = np.array([kinds(thing.kind) for thing in scene.things])
        attributes = tuple(tuple(map(looks, (each.colour, each.texture, each.size))) for each in scene.things)
        truth = Labelled(record.key, boxes, classes, attributes)
        said += described({**rows, "attributes": record.attribute_ids}, truth)
        things, found = things + len(scene.things), found + len(record.boxes)
    return Labels(things, found, len(said), sum(said))
