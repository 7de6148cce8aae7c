"""What the documents tell people to type: commands and Python of their code blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "storage" / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:\A|(?<=\n\n))((?:    .*\n)+)")
PROGRAMS = ("uv ", "triptych ", "ray ", "python ", ".ci/")


@dataclass(frozen=True)
class Block:
    """One code block: where it stands, its language (empty for commands), and its text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command line as it stands in a document, without `uv run` and its comment."""

    block: Block
    text: str

    def __str__(self) -> str:
        return f"{self.block.page.relative_to(ROOT)} {self.text}"


def blocks() -> Iterator[Block]:
    """Every code block of the documents, fenced or indented."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in FENCE.finditer(text):
            yield Block(page, text[: found.start()].count("\n") + 1, found[1], found[2])
        for found in INDENTED.finditer(FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)):
            yield Block(
                page, text[: found.start()].count("\n") + 1, "", re.sub(r"^    ", "", found[1], flags=re.MULTILINE)
            )


def commands() -> Iterator[Command]:
    """Every command line: what begins with a program's name."""
    for block in blocks():
        if block.language in ("", "bash", "sh", "console"):
            for line in block.text.replace("\\\n", " ").splitlines():
                if line.startswith(PROGRAMS):
                    yield Command(block, re.sub(r"\s+#.*", "", line.removeprefix("uv run ")).strip())


def python_blocks() -> Iterator[Block]:
    """Every block of Python."""
    return (block for block in blocks() if block.language == "python")
