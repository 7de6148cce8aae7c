"""Files as the sources see them: printable names that lead back to the file, patterns, reading, and what can fail."""

from __future__ import annotations

import errno
import glob
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import translate
from pathlib import Path
from urllib.parse import unquote_to_bytes

from extractors.images import ImageError
from pipeline.sources.contract import SourceConfig, SourceError

# heic and heif are taken although they may not decode: an error row says so, a skipped file would only be missed.
IMAGE_EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "mpo", "jp2", "png", "gif", "bmp", "ico", "tga", "tif", "tiff"}
    | {"webp", "avif", "heic", "heif", "qoi", "pnm", "ppm", "pgm", "pbm"}
)

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
    """The bytes of a whole file named by `path_uri`.

    Raises:
        ImageError: it is missing, forbidden or unreadable.
    """
    with image_errors(uri):
        path = uri_path(uri)
        if not stat.S_ISREG(path.stat().st_mode):  # asked before opening: opening a named pipe would wait for ever
            raise ImageError("unreadable", f"{uri} is not a regular file", stage="read")
        return path.read_bytes()


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
        raise ImageError("unreadable", f"{uri}: {_one_line(error)}", stage="read") from error
    except (ValueError, NotImplementedError) as error:  # pyarrow's words for damage and for encodings it lacks
        raise ImageError("unreadable", f"{uri}: {_one_line(error)}", stage="read") from error


@contextmanager
def source_errors(path: Path | str, wanted: str) -> Iterator[None]:
    """Whatever goes wrong inside makes the file at `path`, and so the whole source, unusable."""
    try:
        yield
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({_one_line(error)}); wanted {wanted}") from error
    except (ValueError, NotImplementedError, RecursionError) as error:
        raise SourceError(f"{path} is damaged or of another kind ({_one_line(error)}); wanted {wanted}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def matching_files(pattern: str) -> tuple[Path, ...]:
    """The files that a path, a glob or a brace pattern such as `{000..010}.tar` names, as absolute paths.

    Raises:
        SourceError: some part of the pattern names nothing.
    """
    if Path(pattern).exists():  # a name may hold [ or { and mean it
        return (absolute(pattern),)
    names: list[str] = []
    for part in _expand_braces(pattern):
        matches = sorted(glob.glob(part, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not matches:
            raise SourceError(f"--images {pattern!r}: there is no file {part!r}; check the path")
        names += matches
    return tuple(absolute(name) for name in names)


def _expand_braces(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    from webdataset.shardlists import expand_urls  # here, because it takes seconds to import

    with source_errors(pattern, "balanced braces, as in shards/{000..010}.tar"):
        return expand_urls(pattern)


def absolute(path: str | Path) -> Path:
    """The path from the root on, without `..` and `.`, links left alone."""
    return Path(os.path.abspath(path))  # noqa: PTH100 (Path.absolute keeps the `..`)


def none_exists(paths: Iterable[Path]) -> bool:
    """True where every one of the paths surely leads nowhere; stops at the first that does not."""
    return not any(map(_may_exist, paths))


def _may_exist(path: Path) -> bool:
    """False only for a path that surely leads nowhere."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
    return True


def relative_root(config: SourceConfig, file: Path) -> Path:
    """The folder that relative paths inside `file` start from.

    Raises:
        SourceError: `config.image_root` is not a folder.
    """
    if config.image_root is None:
        return absolute(file).parent
    root = absolute(config.image_root)
    if not root.is_dir():
        raise SourceError(f"--image-root {config.image_root!r} is no folder; name the one that relative paths start in")
    return root
