"""Images named by COCO-style JSON: `{"images": [{"id": 39769, "file_name": "000000039769.jpg"}]}`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from pipeline.sources.checked import EXCLUDED, CheckedSource, with_some_there
from pipeline.sources.contract import ImageRef, Listing, SourceError
from pipeline.sources.files import exclusion, path_uri, relative_root, source_errors

_WANTED = 'COCO-style JSON: {"images": [{"id": 1, "file_name": "a.jpg"}]}'


class CocoSource(CheckedSource):
    """The images of an annotation file, in its order; the key is the official image id."""

    key_advice = "Correct the ids in the file: each image needs one of its own."

    def list(self) -> Listing:
        """Name the images; see `Source.list`. Not one of them being there is an error of the job, not of the images."""
        return with_some_there(super().list(), self.config)

    def find(self, keep_extension: bool) -> Iterator[ImageRef | str]:
        """Yield each image of the file, or why one is passed over; ids have no extension to keep."""
        root = relative_root(self.config, Path(self.config.images))
        excluded = exclusion(self.config.exclude)
        for index, entry in enumerate(_entries(Path(self.config.images))):
            key, name = _key_and_name(entry, f"{self.config.images}, images[{index}]")
            yield EXCLUDED if excluded(name) else ImageRef(key, path_uri(root / name))


def _entries(path: Path) -> list[Any]:
    with source_errors(path, _WANTED):
        document = json.loads(path.read_bytes())
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list):
        raise SourceError(f'{path} has no list "images" at the top; wanted {_WANTED}')
    return images


def _key_and_name(entry: Any, where: str) -> tuple[str, str]:
    fields = entry if isinstance(entry, dict) else {}
    key, name = fields.get("id"), fields.get("file_name")
    if not name and isinstance(fields.get("coco_url"), str):
        name = PurePosixPath(unquote(urlsplit(fields["coco_url"]).path)).name
    if not isinstance(key, int | str) or isinstance(key, bool):
        raise SourceError(f'{where} has the "id" {key!r}, not a number or a name; wanted {_WANTED}')
    if not name or not isinstance(name, str):
        raise SourceError(f'{where} has neither "file_name" nor "coco_url"; wanted {_WANTED}')
    return str(key), name
