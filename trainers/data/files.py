"""Annotation files as they are published: reading them, and one clear line where they are something else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from storage.errors import TriptychError

T = TypeVar("T")

AS_PUBLISHED = "Take the file as it is published; `triptych data list` prints the layout."
_FAULTS = (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError)  # what odd content leads to


class DataError(TriptychError):
    """Annotations that are absent or not in their official format."""


def read_json(path: Path, wanted: str) -> Any:
    """What a JSON file holds.

    Args:
        wanted: what the file should be, to follow "wanted".

    Raises:
        DataError: it is absent, unreadable or no JSON.
    """
    with readable(path, wanted):
        return json.loads(path.read_bytes())


def read_json_lines(path: Path, wanted: str) -> Iterator[Any]:
    """What each line of a file holds, one JSON value a line, blank ones passed over; errors as of `read_json`."""
    with readable(path, wanted), path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path}, line {number} is no JSON ({error}); wanted {wanted}.") from error


def write_json(path: Path, content: Any) -> None:
    """Write one JSON value, and the folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write JSON values, one a line, and the folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@contextmanager
def readable(path: Path, wanted: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into a DataError about this file."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"there is no file {path}; wanted {wanted}. {AS_PUBLISHED}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); wanted {wanted}.") from error
    except _FAULTS as error:
        raise DataError(f"{path} {fault(error)}; wanted {wanted}. {AS_PUBLISHED}") from error


def each(path: Path, rows: Iterable[Any], make: Callable[[Any], T], wanted: str) -> Iterator[T]:
    """What `make` makes of each row of a file.

    Raises:
        DataError: `make` cannot do with a row; names the row by its number, from 0.
    """
    for number, row in enumerate(rows):
        try:
            made = make(row)
        except _FAULTS as error:
            raise DataError(f"{path}: entry {number} {fault(error)}; wanted {wanted}. {AS_PUBLISHED}") from error
        yield made


def fault(error: Exception) -> str:
    """What is wrong with content, to follow the name of where it stands."""
    if isinstance(error, KeyError):
        return f"has no {error.args[0]!r}"
    said = (str(error).splitlines() or [""])[0][:200]
    return f"is of another format ({said or type(error).__name__})"


def value(row: Any, name: str) -> Any:
    """What a row has under a name.

    Raises:
        ValueError: the row is no JSON object.
        KeyError: it has nothing of that name.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"it is a {type(row).__name__}, not an object")
    return row[name]


def text(row: Any, name: str) -> str:
    """Text of a row; errors as of `value`, and a ValueError for anything but text."""
    found = value(row, name)
    if not isinstance(found, str):
        raise ValueError(f"{name!r} is {found!r:.50}, not text")
    return found


def number(row: Any, name: str) -> int:
    """A whole number of a row; errors as of `text`."""
    found = value(row, name)
    if not isinstance(found, int) or isinstance(found, bool):
        raise ValueError(f"{name!r} is {found!r:.50}, not a whole number")
    return found


def items(row: Any, name: str) -> list[Any]:
    """A list of a row; errors as of `text`."""
    found = value(row, name)
    if not isinstance(found, list | tuple):
        raise ValueError(f"{name!r} is {found!r:.50}, not a list")
    return list(found)


def without_extension(name: str) -> str:
    """A relative path as the key that a folder of images gives it: without the extension."""
    stem, dot, extension = name.rpartition(".")
    return stem if dot and extension.lower() in ("jpg", "jpeg", "png", "gif", "bmp", "webp") else name


def listed(path: Path, content: Any, wanted: str) -> list[Any]:
    """What a file holds, if that is a list.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(content, list):
        raise DataError(f"{path} holds a {type(content).__name__}; wanted {wanted}. {AS_PUBLISHED}")
    return content


def rows_of(path: Path, name: str, wanted: str) -> list[Any]:
    """The list that a JSON file has under a name at its top; errors as of `read_json`."""
    content = read_json(path, wanted)
    with readable(path, wanted):
        return items(content, name)
