"""`triptych report`: some images of stores as one HTML file, to send to others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from workflows.output import Command, emit
from workflows.text import size
from workflows.viewing.pictures import ImageFlags, Pictures


@dataclass(frozen=True)
class Report(Command):
    """Write the page of `triptych view` over some images of a store as one HTML file, which needs no network.

    triptych report features/regions --out regions.html --images photos
    """

    stores: tyro.conf.Positional[tuple[str, ...]]
    """One store or several of the same images, folders or addresses."""
    out: str
    """The HTML file to write."""
    pictures: Annotated[ImageFlags, tyro.conf.arg(name="")] = field(default_factory=ImageFlags)
    number: int = 24
    """Images in it, evenly spread over the (first) store."""

    def run(self) -> int:
        """Write the file; returns the exit status."""
        from storage.atomic import write_whole, writing
        from storage.places import local_path
        from workflows.viewing.opened import Opened, ViewError
        from workflows.viewing.report import report

        if not self.stores:
            raise ViewError("no store was named; wanted one or more, as in `triptych report features/regions`.")
        if self.number < 1:
            raise ViewError(f"--number {self.number} must be at least 1.")
        path = local_path(self.out)
        if path.is_dir():
            raise ViewError(f"--out {self.out} is a folder; name a file, such as {path / 'report.html'}.")
        opened = [Opened(each) for each in self.stores]
        made = report(opened, Pictures(self.pictures), self.number)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, made.html.encode())
        facts = {"images": made.images, "bytes": path.stat().st_size, "unpictured": made.unpictured}
        emit({"out": self.out, **facts})
        print(f"{self.out}: {made.images} of {len(opened[0].store):,} images, {size(path.stat().st_size)}")
        if made.unpictured:
            print(f"{len(made.unpictured)} without a picture; the first: {made.unpictured[0]}")
        return 0
