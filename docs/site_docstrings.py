"""Fields that a docstring lists in columns stay in columns on the page: an extension of griffe, which reads them."""

from __future__ import annotations

import re
from typing import Any

import griffe

COLUMNS = re.compile(r"^\w[\w, ./]*? {2,}\S")


class Columns(griffe.Extension):
    """Make a code block of each paragraph whose first line is a name, two spaces or more, and what it means."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Called for everything that is read."""
        if obj.docstring:
            obj.docstring.value = "\n\n".join(map(_in_columns, obj.docstring.value.split("\n\n")))


def _in_columns(paragraph: str) -> str:
    return f"```text\n{paragraph}\n```" if COLUMNS.match(paragraph) else paragraph
