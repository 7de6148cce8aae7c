"""The images themselves: found by key in a source, decoded by the project's reader, and made small for the page."""

from __future__ import annotations

import io
import os
import threading
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from extractors.images import ImageError, decode
from pipeline.sources import Source, SourceConfig, open_source
from pipeline.sources.addresses import is_address
from pipeline.sources.files import absolute, uri_path
from storage.secrets import shown
from workflows.viewing.jobs import Job
from workflows.viewing.opened import ViewError

SIDES = (320, 1280)  # pixels that the longer side has at most: of a picture in a list, and of one alone
REMEMBERED = 500  # pictures, some 20 MB


@dataclass(frozen=True)
class ImageFlags(SourceConfig):
    """Where the images are, as of extract; what it was given there finds them by the same keys here."""

    images: str = ""
    """The images of the store, whatever extract takes: a folder, a list, tars, COCO-style JSON, Parquet or Arrow."""


class PictureError(ViewError):
    """This one picture cannot be shown; the message says why."""


class Pictures:
    """The images of a source by their keys; of none where no source is named.

    Only what the source lists is ever read, and of a folder only what lies in it: a link that leads out is refused.
    Listing goes on in the background (`listing`), since the page shows something without it.

    Raises:
        SourceError: there is nothing at --images, or it is of no kind that is understood.
    """

    def __init__(self, flags: ImageFlags) -> None:
        self.images = flags.images
        self.name = shown(flags.images) or None
        self.listing: Job | None = None
        self._uris: dict[str, str] = {}
        self._source: Source | None = None
        self._decoding = threading.BoundedSemaphore(os.cpu_count() or 1)  # a large image takes much memory
        self.jpeg = lru_cache(REMEMBERED)(self._jpeg)
        if flags.images:
            self._source = open_source(flags)
            self.listing = Job(self._list, 0)
        elif flags != ImageFlags():
            given = next(name for name, value in asdict(flags).items() if value != getattr(ImageFlags, name))
            raise ViewError(f"--{given.replace('_', '-')} says how --images are found; name them with --images.")

    def pixels(self, key: str) -> np.ndarray:
        """One image: upright RGB, (H, W, 3) uint8.

        Raises:
            PictureError: the source has no such image, or it cannot be read or decoded.
        """
        if self._source is None:
            raise PictureError("no images were named; start the command with --images.")
        uri = self._uris.get(key)
        if uri is None:
            raise PictureError(self._why_absent(key))
        self._check_inside(uri)
        try:
            with self._decoding:
                return decode(self._source.read(uri))
        except ImageError as error:
            raise PictureError(f"{error.reason}: {error}") from error

    def _jpeg(self, key: str, side: int) -> bytes:
        """One image as JPEG, its longer side at most `side`; kept, as it will be asked for again."""
        return jpeg(self.pixels(key), side)

    def _list(self, job: Job) -> None:
        assert self._source is not None
        self._uris.update((ref.key, ref.uri) for ref in self._source.list().refs)

    def _why_absent(self, key: str) -> str:
        assert self.listing is not None
        if not self.listing.finished:
            return "the images are still being listed."
        if self.listing.error:
            return f"the images could not be listed: {self.listing.error}"
        return f"--images {self.name} has no image {key!r} among {len(self._uris):,}."

    def _check_inside(self, uri: str) -> None:
        if is_address(uri) or not Path(self.images).is_dir():
            return  # at an address there are no links; a list file or a table names what may be read
        if not uri_path(uri.partition("#")[0]).resolve().is_relative_to(absolute(self.images).resolve()):
            raise PictureError("it is a link that leads out of --images.")


def jpeg(pixels: np.ndarray, side: int) -> bytes:
    """(H, W, 3) uint8 RGB as JPEG, its longer side at most `side` pixels."""
    from PIL import Image

    scale = side / max(pixels.shape[:2])
    if scale < 1:
        height, width = (max(1, round(each * scale)) for each in pixels.shape[:2])
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
