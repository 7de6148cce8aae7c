"""`triptych view`: a page in the browser over stores, served on this machine only."""

from __future__ import annotations

import os
import sys
import webbrowser
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from workflows.output import Command, emit
from workflows.viewing.pictures import ImageFlags, Pictures


@dataclass(frozen=True)
class View(Command):
    """Look at stores in the browser: images with boxes, grids and patches as maps, neighbours, errors, differences.

    triptych view features/regions --images photos
    """

    stores: tyro.conf.Positional[tuple[str, ...]]
    """One store or several, folders or addresses."""
    pictures: Annotated[ImageFlags, tyro.conf.arg(name="")] = field(default_factory=ImageFlags)
    port: int = 0
    """Port of the page; 0 is a free one."""
    host: str = "127.0.0.1"
    """The page is on this machine only; another address is refused."""

    def run(self) -> int:
        """Serve the page until Ctrl-C."""
        from workflows.viewing.opened import Opened, ViewError
        from workflows.viewing.server import listen, make_app, serve

        if not self.stores:
            raise ViewError("no store was named; wanted one or more, as in `triptych view features/regions`.")
        sock = listen(self.host, self.port)
        app = make_app([Opened(path) for path in self.stores], Pictures(self.pictures))
        address = f"http://127.0.0.1:{sock.getsockname()[1]}/"
        emit({"address": address})
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        if sys.stdout.isatty() and _has_screen():
            webbrowser.open(address)
        serve(app, sock)
        return 0


def _has_screen() -> bool:
    """Without one, a browser of text would take this very terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
