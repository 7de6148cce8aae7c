"""What every reader of foreign bytes owes: it works, or raises the project's own error in one line, within bounds."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from extractors.images import ImageError
from storage.errors import TriptychError

ROOM = 768 << 20  # bytes that a reader of a few kilobytes may add to the process
LONGEST = 2000  # characters of a message


def works_or_says_why(read: Callable[[Path], object], path: Path, asks_first: bool = False) -> str:
    """Run a reader with little memory; returns what it said, "" where it worked.

    Args:
        asks_first: the library asks for memory before it looks at what is to be unpacked there; none of it is touched.

    Raises:
        AssertionError: it said so in several lines, or wanted more memory than there was.
    """
    try:
        with limited_memory():
            read(path)
    except (TriptychError, ImageError) as error:
        assert asks_first or not _memory(error), f"wanted more than {ROOM:,} bytes: {error}"
        check_line(str(error))
        return str(error)
    return ""


def check_line(message: str) -> None:
    assert message and len(message) <= LONGEST, f"{len(message)} characters: {message[:200]!r}"
    assert message.isprintable() or not set(message) & {"\n", "\r", "\0", "\x1b"}, repr(message)


def _memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or "allocate" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def limited_memory(room: int = ROOM) -> Iterator[None]:
    """Let the address space of this process grow by so much and no more; Linux only, elsewhere nothing is limited."""
    statm = Path("/proc/self/statm")
    before = resource.getrlimit(resource.RLIMIT_AS)
    if statm.exists():
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
