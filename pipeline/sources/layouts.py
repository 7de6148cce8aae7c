"""Image folders of COCO, Visual Genome, Flickr30k and Conceptual Captions as they are published: keys are official ids.

coco       COCO_train2014_000000000009.jpg or 000000000009.jpg in any folders below the root; key 9. The images of
           2014 and 2017 have the same ids: name one of these folders, or leave one out with --exclude
vg         1.jpg in VG_100K and VG_100K_2, below the root or the root itself; key 1
flickr30k  1000092795.jpg in any folders below the root, usually flickr30k-images; key 1000092795
cc3m       what img2dataset makes, tars (00000.tar) or files (00000/000000012.jpg); its keys, such as 000000012.
           Or the published table itself, Train_GCC-training.tsv: caption, tab, address; key is the row, from 0
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import TextIOWrapper

from pipeline.sources.addresses import is_address, kind_of
from pipeline.sources.checked import EXCLUDED, CheckedSource
from pipeline.sources.contract import ImageRef, Listing, Source, SourceConfig, SourceError
from pipeline.sources.files import (
    absolute,
    exclusion,
    open_file,
    place_of,
    source_errors,
    visible_names,
    with_some_there,
)
from pipeline.sources.folder import walk
from pipeline.sources.tar import TarSource
from storage.secrets import shown

_NAMES = {
    "coco": re.compile(r"(?:.*/)?(?:COCO_(?:train|val|test)\d{4}_)?(?=\d{12}\.)0*(\d+)\.jpg"),
    "vg": re.compile(r"(?:.*/)?VG_100K(?:_2)?/(\d+)\.jpg"),
    "flickr30k": re.compile(r"(?:.*/)?(\d+)\.jpg"),
    "cc3m": re.compile(r"(?:.*/)?\d{5,}/(\d{9,})\.(?:jpg|png|webp)"),
}
_CAPTIONS = "a table of caption, tab, address, as Train_GCC-training.tsv"


def open_layout(config: SourceConfig) -> Source:
    """The source that `config.layout` and what lies at `config.images` make.

    Raises:
        SourceError: the root cannot be read.
    """
    if config.layout == "cc3m":
        if config.images.lower().endswith(".tsv"):
            return CaptionsSource(config)
        tars = [name for name in visible_names(config.images) if re.fullmatch(r"\d{5,}\.tar", name)]
        if tars:
            root = config.images.rstrip("/")
            return TarSource(
                config, tuple(f"{root}/{name}" if is_address(root) else absolute(f"{root}/{name}") for name in tars)
            )
    return LayoutSource(config)


class LayoutSource(CheckedSource):
    """The files below a folder whose names are those of a data set."""

    key_advice = "Name the folder of one of them with --images, or leave one out with --exclude."

    def find(self, keep_extension: bool) -> Iterator[ImageRef | str]:
        """Yield each image of the data set, or why a file is passed over; ids have no extension to keep."""
        excluded = exclusion(self.config.exclude)
        assert self.config.layout is not None
        name = _NAMES[self.config.layout]
        last = self.config.images.rstrip("/").rpartition("/")[2]  # the root may be the folder that the names begin with
        for file in walk(self.config.images):
            found = name.fullmatch(f"{last}/{file.relative}")
            if excluded(file.relative):
                yield EXCLUDED
            elif file.is_linked_folder or not found:
                yield f"not as {self.config.layout} names its images"
            else:
                yield ImageRef(found[1], file.uri)


class CaptionsSource(CheckedSource):
    """The rows of a table of captions and addresses; most lists of that kind have lost some of their images."""

    def list(self) -> Listing:
        """Name the images; see `Source.list`. That none of some addresses answers is an error of the job."""
        return with_some_there(super().list(), self.config)

    def find(self, keep_extension: bool) -> Iterator[ImageRef | str]:
        """Yield each row's image; keys are row numbers and have no extension to keep."""
        excluded = exclusion(self.config.exclude)
        place = place_of(self.config.images)
        with source_errors(place, _CAPTIONS), open_file(place) as file:
            for row, line in enumerate(TextIOWrapper(file, "utf-8-sig", "replace", newline="\n")):
                address = line.rstrip("\r\n").rpartition("\t")[2].strip()
                if "\t" not in line or not is_address(address):
                    raise SourceError(f"{shown(str(place))}, line {row + 1} is {line[:80]!r}; wanted {_CAPTIONS}")
                kind_of(address)
                yield EXCLUDED if excluded(address) else ImageRef(str(row), address)
