"""Images named by COCO-style JSON: `{"images": [{"id": 39769, "file_name": "000000039769.jpg"}]}`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from pipeline.sources.addresses import address_path, is_address
from pipeline.sources.checked import EXCLUDED, CheckedSource
from pipeline.sources.contract import ImageRef, Listing, SourceError
from pipeline.sources.files import Place, exclusion, place_of, read_whole, relative_root, source_errors, with_some_there
from pipeline.sources.named import Names
from storage.secrets import shown

_WANTED = 'COCO-style JSON: {"images": [{"id": 1, "file_name": "a.jpg"}]}'


class CocoSource(CheckedSource):
    """The images of an annotation file, in its order; the key is the official image id."""

    key_advice = "Correct the ids in the file: each image needs one of its own."

    def list(self) -> Listing:
        """Name the images; see `Source.list`. Not one of them being there is an error of the job, not of the images."""
        return with_some_there(super().list(), self.config)

    def find(self, keep_extension: bool) -> Iterator[ImageRef | str]:
        """Yield each image of the file, or why one is passed over; ids have no extension to keep.

        An image is at its "file_name" below the root. One that has only a "coco_url" is there, or with --image-root
        under the last part of its name below that.
        """
        place = place_of(self.config.images)
        names = Names(relative_root(self.config, place))
        excluded = exclusion(self.config.exclude)
        for index, entry in enumerate(_entries(place)):
            key, name = _key_and_name(entry, f"{shown(self.config.images)}, images[{index}]")
            if self.config.image_root and is_address(name):
                name = PurePosixPath(unquote(address_path(name).partition("?")[0])).name
            yield EXCLUDED if excluded(name) else ImageRef(key, names.uri(name))


def _entries(place: Place) -> list[Any]:
    with source_errors(place, _WANTED):
        document = json.loads(read_whole(place))
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list):
        raise SourceError(f'{shown(str(place))} has no list "images" at the top; wanted {_WANTED}')
    return images


def _key_and_name(entry: Any, where: str) -> tuple[str, str]:
    fields = entry if isinstance(entry, dict) else {}
    key, name = fields.get("id"), fields.get("file_name") or fields.get("coco_url")
    if not isinstance(key, int | str) or isinstance(key, bool):
        raise SourceError(f'{where} has the "id" {key!r}, not a number or a name; wanted {_WANTED}')
    if not name or not isinstance(name, str):
        raise SourceError(f'{where} has neither "file_name" nor "coco_url"; wanted {_WANTED}')
    return str(key), name
