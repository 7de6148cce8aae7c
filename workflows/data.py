"""`triptych data check` and `data list`: is a data set complete, and does a store or a folder have its images?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import tyro

from storage import open_store
from storage.secrets import shown
from trainers.data import DATASETS
from trainers.data.check import Found, check, layout
from workflows.output import Command, emit

NAMED = 10  # absent images that are printed


@dataclass(frozen=True)
class DataCheck(Command):
    """Say what is there of a data set and what is missing. Exit status 1 unless it is complete.

    triptych data check vqav2 --root annotations --store features/regions
    """

    name: tyro.conf.Positional[str]
    """The data set: vqav2, coco, nlvr2, ...; a wrong name prints them all."""
    root: str
    """Folder of its annotations, or the one above a folder that is named after it."""
    store: str | None = None
    """A store that should have all its images."""
    images: str | None = None
    """A folder, tars or a list that should have all its images."""

    def run(self) -> int:
        found = check(self.name, self.root)
        if self.images:
            from pipeline.sources import SourceConfig, open_source

            refs = open_source(SourceConfig(images=self.images)).list().refs
            found.look_for_images(f"images {shown(self.images)}", (ref.key for ref in refs))
        if self.store:
            found.look_for_images(f"store {shown(self.store)}", open_store(self.store))
        emit(_facts(found))
        print("\n".join(_text(found)))
        return 0 if found.complete else 1


@dataclass(frozen=True)
class DataList(Command):
    """The data sets that are known, and how each should look.

    triptych data list
    """

    def run(self) -> int:
        for name in DATASETS:
            emit({"name": name, "layout": list(layout(name))})
            print(f"{name}: " + "\n".join(layout(name)) + "\n")
        return 0


def _facts(found: Found) -> dict[str, Any]:
    splits = [{**asdict(split), "complete": split.complete} for split in found.splits]
    return {
        "name": found.name,
        "root": found.root,
        "complete": found.complete,
        "splits": splits,
        "images": len(found.keys),
        "absent": found.absent,
        "layout": list(layout(found.name)),
    }


def _text(found: Found) -> Iterable[str]:
    for split in found.splits:
        optional = " (optional)" if split.optional else ""
        if split.complete:
            yield f"{split.split:<12}{split.examples:>12,} examples{split.images:>12,} images"
        elif split.wrong:
            yield f"{split.split:<12}WRONG  {split.wrong}"
        else:
            yield f"{split.split:<12}MISSING{optional}  {', '.join(split.missing)}"
    for where, keys in found.absent.items():
        some = f": {', '.join(keys[:NAMED])}{', ...' if len(keys) > NAMED else ''}" if keys else ""
        yield f"{where}: {len(keys):,} of {len(found.keys):,} images are absent{some}"
    if found.complete:
        yield f"{found.name} is complete"
        return
    yield f"\n{found.name} is not complete in {found.root}. What it should look like:"
    yield from layout(found.name)
