"""Images that a list or a table names by a path or an address: their keys, and where they are."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from pipeline.sources.addresses import WEB, address_path, is_address, kind_of
from pipeline.sources.checked import key_of_path
from pipeline.sources.files import Place, absolute, path_uri, place_uri, uri_path


class Names:
    """What names in a file mean; relative ones start from `root`, a folder or an address."""

    def __init__(self, root: Place) -> None:
        self._root = root
        self._on_web = isinstance(root, str) and kind_of(root) in WEB
        self._prefix = f"{place_uri(root).rstrip('/')}/" if isinstance(root, str) else _printable_prefix(root)

    def key(self, name: str, keep_extension: bool) -> str:
        """The key of an image: its path from the root on if it lies below that; of an address elsewhere, its path."""
        if _is_plain(name) and not self._on_web:
            return key_of_path(name, keep_extension)
        if is_address(name):
            below = isinstance(self._root, str) and name.startswith(self._prefix)
            text = name.removeprefix(self._prefix) if below else address_path(name)
            return key_of_path(_decoded(text) if kind_of(name) in WEB else text, keep_extension)
        if self._on_web:
            name = _decoded(name)
        path = uri_path(name)
        if isinstance(self._root, Path) and path.is_relative_to(self._root):
            path = path.relative_to(self._root)
        return key_of_path(path.as_posix(), keep_extension)

    def uri(self, name: str) -> str:
        """Where the image is.

        Raises:
            SourceError: no file can have this name, or nothing here reads such addresses.
        """
        if self._prefix and _is_plain(name) and name.isprintable():
            return self._prefix + name
        if is_address(name):
            kind_of(name)
            return name
        if isinstance(self._root, str):  # whatever a list at an address says, it does not lead to files of this machine
            return self._prefix + name.removeprefix("./")
        return path_uri(self._root / uri_path(name))


def _printable_prefix(root: Path) -> str:
    """What a plain name is put behind; empty where the folder's own name needs care."""
    text = path_uri(absolute(root))
    return "" if text.startswith("file://") else f"{text.rstrip('/')}/"


def _decoded(name: str) -> str:
    """The path in a web address; what follows it may be a secret, and belongs in no key."""
    return unquote(name.partition("?")[0])


def _is_plain(name: str) -> bool:
    """Whether no part of it means anything but itself. Text can then be joined, ten times faster than a `Path`."""
    return not (name[:1] in "/." or name[-1:] == "/" or "/." in name or "//" in name or ":" in name or "#" in name)
