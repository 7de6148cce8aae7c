"""Files as the sources see them: printable names that lead back to the file, patterns, reading, and what can fail."""

from __future__ import annotations

import errno
import glob
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from fnmatch import translate
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from extractors.images import ImageError
from pipeline.sources.addresses import (
    WEB,
    address_errors,
    is_address,
    kind_of,
    listed,
    matching_addresses,
    one_line,
    open_address,
    parent_address,
    read_address,
)
from pipeline.sources.contract import Listing, SourceConfig, SourceError
from storage.secrets import shown

# heic and heif are taken although they may not decode: an error row says so, a skipped file would only be missed.
IMAGE_EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "mpo", "jp2", "png", "gif", "bmp", "ico", "tga", "tif", "tiff"}
    | {"webp", "avif", "heic", "heif", "qoi", "pnm", "ppm", "pgm", "pbm"}
)

MAX_IMAGE_BYTES = 2 << 30  # a file of more is no image; reading it would only fill the memory

Place = Path | str  # where a file lies: a path, or an address

_TRIED = 8  # addresses, to see whether any of a list can be read

# The machine is out of something: no fault of the image, so it must not be recorded as one.
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def has_image_extension(path: str) -> bool:
    """Whether the file name ends like an image's, in any case; `.jpg` alone is a hidden file, not an extension."""
    stem, _, extension = path.rpartition("/")[2].rpartition(".")
    return bool(stem) and extension.lower() in IMAGE_EXTENSIONS


def exclusion(globs: str) -> Callable[[str], bool]:
    """A test for `--exclude`: does any of the comma-separated globs match this relative path or its file name?"""
    patterns = [translate(part.strip()) for part in globs.split(",") if part.strip()]
    if not patterns:
        return lambda path: False
    matches = re.compile("|".join(patterns), re.IGNORECASE).match
    return lambda path: bool(matches(path) or matches(path.rpartition("/")[2]))


def place_of(text: str) -> Place:
    """The path or the address that a text means."""
    return text if is_address(text) else Path(text)


def place_uri(place: Place) -> str:
    """`path_uri` of a path; an address stays as it is."""
    return place if isinstance(place, str) else path_uri(place)


def uri_place(uri: str) -> Place:
    """What `place_uri` named."""
    return uri if is_address(uri) else uri_path(uri)


def path_uri(path: Path) -> str:
    """Name an absolute path in printable text without `#`, so that a position inside the file can follow one.

    Most paths stay as they are. The others, such as names that are not valid UTF-8, become `file://` with the odd
    bytes percent-encoded.

    Raises:
        SourceError: the name holds code points that no file name can have.
    """
    text = str(path)
    if text.isprintable() and "#" not in text:
        return text
    try:
        return path.as_uri()
    except UnicodeEncodeError as error:
        raise SourceError(f"{text!r} cannot be a file name ({error.reason}); correct it where it is listed") from None


def uri_path(uri: str) -> Path:
    """The path that `path_uri` named."""
    if uri.startswith("file://"):
        return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))
    return Path(uri)


def read_file(uri: str) -> bytes:
    """The bytes of a whole file named by `place_uri`.

    Raises:
        ImageError: it is missing, forbidden or unreadable; see `read_address` for the reasons at an address.
    """
    if is_address(uri):
        return read_address(uri)
    with image_errors(uri):
        path = uri_path(uri)
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # asked before opening: opening a named pipe would wait for ever
            raise ImageError("unreadable", f"{uri} is not a regular file", stage="read")
        check_size(uri, facts.st_size)
        return path.read_bytes()


def check_size(uri: str, size: int) -> None:
    """Raise ImageError where so many bytes are no image."""
    if size > MAX_IMAGE_BYTES:
        found = f"{shown(uri)} has {size:,} bytes; wanted an image of at most {MAX_IMAGE_BYTES:,}"
        raise ImageError("too_large", found, stage="read")


def open_file(place: Place) -> Any:
    """A binary file to read from front to back. Use it inside `source_errors`."""
    return open_address(place) if isinstance(place, str) else place.open("rb")


def read_whole(place: Place) -> bytes:
    """All bytes of a file that lists images. Use it inside `source_errors`."""
    with open_file(place) as file:
        return bytes(file.read())


@contextmanager
def image_errors(uri: str) -> Iterator[None]:
    """Whatever goes wrong inside is the fault of the image at `uri`, unless the machine ran out of something."""
    try:
        yield
    except ImageError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("missing", f"{uri} does not exist", stage="read") from None
    except PermissionError:
        raise ImageError("no_permission", f"{uri} may not be read by this user", stage="read") from None
    except OSError as error:
        if error.errno in _OUT_OF_RESOURCES:
            raise
        raise ImageError("unreadable", f"{uri}: {one_line(error)}", stage="read") from error
    except (ValueError, NotImplementedError) as error:  # pyarrow's words for damage and for encodings it lacks
        raise ImageError("unreadable", f"{uri}: {one_line(error)}", stage="read") from error


def place_errors(uri: str) -> AbstractContextManager[None]:
    """`image_errors` of a file, or those of an address."""
    return address_errors(uri) if is_address(uri) else image_errors(uri)


@contextmanager
def source_errors(place: Place, wanted: str) -> Iterator[None]:
    """Whatever goes wrong inside makes the file at `place`, and so the whole source, unusable."""
    try:
        yield
    except (SourceError, ImageError):
        raise
    except OSError as error:
        raise SourceError(f"{shown(str(place))} cannot be read ({one_line(error)}); wanted {wanted}") from error
    except (ValueError, NotImplementedError, RecursionError) as error:
        told = f"is damaged or of another kind ({one_line(error)})"
        raise SourceError(f"{shown(str(place))} {told}; wanted {wanted}") from error
    except Exception as error:
        if not is_address(str(place)):
            raise
        raise SourceError(f"{shown(str(place))} cannot be read ({one_line(error)}); wanted {wanted}") from error


def matching_files(pattern: str) -> tuple[Place, ...]:
    """The files that a path, an address, a glob or a brace pattern such as `{000..010}.tar` names, paths absolute.

    Raises:
        SourceError: some part of the pattern names nothing.
    """
    remote = is_address(pattern)
    if remote and "#" in pattern:
        raise SourceError(f"--images {shown(pattern)!r} has a # in it, which names a place in a file; rename the file")
    if not remote and Path(pattern).exists():  # a name may hold [ or { and mean it
        return (absolute(pattern),)
    names: list[Place] = []
    for part in _expand_braces(pattern):
        with source_errors(part, "an address that can be listed"):
            # glob.glob, because Path.glob takes no absolute pattern
            matches = matching_addresses(part) if remote else sorted(glob.glob(part, recursive=True))  # noqa: PTH207
        if not matches:
            raise SourceError(f"--images {shown(pattern)!r}: there is no file {shown(part)!r}; check the path")
        names += matches if remote else map(absolute, matches)
    return tuple(names)


def files_of(images: str) -> tuple[Place, ...]:
    """The visible files of a local folder, sorted; else what `matching_files` finds.

    Raises:
        SourceError: the folder cannot be read, or some part of the pattern names nothing.
    """
    if not is_address(images) and Path(images).is_dir():
        return tuple(absolute(f"{images}/{name}") for name in visible_names(images))
    return matching_files(images)


def visible_names(folder: str) -> list[str]:
    """Names of all in a folder that are not marked as hidden by `.` or `_`, sorted; none where it is no folder.

    Raises:
        SourceError: it cannot be read.
    """
    with source_errors(folder, "a folder this user may read"):
        if is_address(folder):
            names = [] if kind_of(folder) in WEB else [name for name, _ in listed(folder)]
        else:
            names = [path.name for path in Path(folder).iterdir()]
    return sorted(name for name in names if not name.startswith((".", "_")))


def _expand_braces(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    from webdataset.shardlists import expand_urls  # here, because it takes seconds to import

    with source_errors(pattern, "balanced braces, as in shards/{000..010}.tar"):
        return expand_urls(pattern)


def absolute(path: str | Path) -> Path:
    """The path from the root on, without `..` and `.`, links left alone."""
    return Path(os.path.abspath(path))  # noqa: PTH100 (Path.absolute keeps the `..`)


def with_some_there(listing: Listing, config: SourceConfig) -> Listing:
    """The listing, if a single one of its files exists; of addresses some are tried.

    Raises:
        SourceError: none does: the root is wrong, and every image would fail.
    """
    refs = listing.refs
    remote = is_address(refs[0].uri)
    some = (refs[at * len(refs) // _TRIED] for at in range(_TRIED)) if remote else iter(refs)
    if any(_may_exist(ref.uri) for ref in some):
        return listing
    names = f"{shown(config.images)} names {len(refs):,} images, and none"
    if remote:
        raise SourceError(
            f"{names} of {_TRIED} that were tried can be read: {_trouble(refs[0].uri)}; "
            "check the addresses, --image-root, and what this user may read"
        )
    root = relative_root(config, place_of(config.images))
    raise SourceError(f"{names} of them is in {root}; name their folder with --image-root")


def _may_exist(uri: str) -> bool:
    """False only for what surely cannot be read: a path that leads nowhere, an address that gives nothing."""
    if is_address(uri):
        return not _trouble(uri)
    try:
        uri_path(uri).stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
    return True


def _trouble(address: str) -> str:
    try:
        read_address(address, 0, 1)
    except ImageError as error:
        return str(error)
    return ""


def relative_root(config: SourceConfig, file: Place) -> Place:
    """The folder, or the address, that relative paths inside `file` start from.

    Raises:
        SourceError: `config.image_root` is not a folder.
    """
    if config.image_root is None:
        return parent_address(file) if isinstance(file, str) else absolute(file).parent
    if is_address(config.image_root):
        return config.image_root.rstrip("/")
    root = absolute(config.image_root)
    if not root.is_dir():
        raise SourceError(f"--image-root {config.image_root!r} is no folder; name the one that relative paths start in")
    return root


def with_absolute_paths(config: SourceConfig) -> SourceConfig:
    """The same source for a process whose current folder is another."""

    def moved(text: str | None) -> str | None:
        return str(absolute(text)) if text and not is_address(text) else text

    images, root, keys = map(moved, (config.images, config.image_root, config.keys))
    return replace(config, images=images or "", image_root=root, keys=keys)
