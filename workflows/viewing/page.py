"""The page: one HTML file with its scripts and styles, as files of a server or all in one for a report."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

PAGES = Path(__file__).parent / "pages"
STYLE = "style.css"
SHARED = ("parts.js", "boxes.js", "cells.js", "lists.js", "compare.js")  # in the order they are loaded
LIVE, KEPT, LAST = "live.js", "kept.js", "app.js"  # where data comes from: the server, or the report itself
FILES = (STYLE, *SHARED, LIVE, LAST)


@cache
def read(name: str) -> str:
    """One of the page's files."""
    return (PAGES / name).read_text(encoding="utf-8")


def page() -> str:
    """The page of the server: its files are asked for one by one."""
    tags = [
        f'<link rel="stylesheet" href="/{STYLE}">',
        *(f'<script src="/{name}" defer></script>' for name in FILES[1:]),
    ]
    return _filled("Triptych", "\n".join(tags), "")


def page_with(title: str, data: Any) -> str:
    """The page with all that it shows in it, which needs neither server nor network.

    Its own policy allows these very scripts and styles and nothing else, whatever the data holds.
    """
    scripts = "\n".join(read(name) for name in (*SHARED, KEPT, LAST))
    style = read(STYLE)
    policy = (
        f"default-src 'none'; img-src data:; script-src '{_digest(scripts)}'; style-src '{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{style}</style>'
    plain = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    last = f'<script type="application/json" id="data">{plain}</script>\n<script>{scripts}</script>'
    return _filled(title, head, last)


def _filled(title: str, head: str, last: str) -> str:
    import jinja2

    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(PAGES), autoescape=True)
    from markupsafe import Markup

    return environment.get_template("page.html").render(title=title, head=Markup(head), last=Markup(last))


def _digest(text: str) -> str:
    """What a policy names an inline script or style by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
