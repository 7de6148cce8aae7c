"""Files beside docs/ as pages of the site: the README as its first page, and whatever a page links to.

A hook of mkdocs. Links in documents are those of the checkout, so that they work where the files are read as they lie;
here each becomes the link of the page that shows its file.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
FIRST = {"README.md": "index.md"}
LINKED_BY_NAV = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "storage/README.md")
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the files beside docs/ that pages link to, and those that these link to."""
    _pages.clear()
    _pages.update({Path(file.abs_src_path): file.src_uri for file in files if file.abs_src_path})
    left = [*(ROOT / name for name in (*FIRST, *LINKED_BY_NAV)), *_pages]
    while left:
        path = left.pop()
        if path not in _pages:
            file = _page_of(path, config)
            files.append(file)
            _pages[path] = file.src_uri
        if path.suffix == ".md":
            left += [target for target in _targets(path) if target.is_file() and target not in _pages]
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files become links to the pages that show them; mkdocs complains of those that lead nowhere."""
    origin, here = _origins.get(page.file.src_uri, page.file.abs_src_path), posixpath.dirname(page.file.src_uri)

    def of_site(link: re.Match[str]) -> str:
        target = _pages.get((Path(origin).parent / link[1]).resolve())
        return f"]({posixpath.relpath(target, here or '.')}{link[2] or ''})" if target else link[0]

    return LINK.sub(of_site, markdown)


_pages: dict[Path, str] = {}  # page by file
_origins: dict[str, str] = {}  # file by page, of those that are not below docs/


def _targets(path: Path) -> list[Path]:
    return [(path.parent / link[1]).resolve() for link in LINK.finditer(path.read_text(encoding="utf-8"))]


def _page_of(path: Path, config: Any) -> File:
    """A document as it is; a source file as the one code block of a page."""
    name = path.relative_to(ROOT).as_posix()
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".md":
        text = f"---\nsearch: {{exclude: true}}\n---\n# {name}\n\n~~~~{path.suffix[1:]}\n{text}~~~~\n"
    uri = FIRST.get(name, f"files/{name}" if path.suffix == ".md" else f"files/{name}.md")
    _origins[uri] = str(path)
    in_nav = name in (*FIRST, *LINKED_BY_NAV)
    kind = InclusionLevel.INCLUDED if in_nav else InclusionLevel.NOT_IN_NAV
    return File.generated(config, uri, content=text, inclusion=kind)
