"""Damage done to sound files: flipped bits, cuts, splices, lying lengths; inside containers and JSON documents, too."""

from __future__ import annotations

import copy
import io
import json
import math
import re
import zipfile
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from storage.atomic import seal

Edit = tuple[Any, ...]
Damage = Callable[[bytes], bytes]

NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 1 << 24, 2**31 - 1, 2**32 - 1, 1 << 40, 2**63 - 1, 2**64 - 1)
DIGITS = (b"0", b"-1", b"999999999", b"4294967297", b"99999999999999999999", b"1e999", b"-1e30", b"NaN", b"1.5", b"")
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 7, 1.5, 1 << 40, 10**400, math.inf, math.nan, "", "a", "../a", "/a", "\0", "\ud800", "a\nb",
    [], [[]], [1], {}, {"a": 1}, [[1, 2, 3, 4]],
)  # fmt: skip
_WHERE = st.floats(0, 1, exclude_max=True)
_LENGTH = st.integers(1, 64)

_EDITS = st.one_of(
    st.tuples(st.just("flip"), _WHERE, st.integers(0, 7)),
    st.tuples(st.just("cut"), _WHERE),
    st.tuples(st.just("drop"), _WHERE, _LENGTH),
    st.tuples(st.just("copy"), _WHERE, _WHERE, _LENGTH),
    st.tuples(st.just("insert"), _WHERE, st.binary(min_size=1, max_size=16)),
    st.tuples(st.just("number"), _WHERE, st.sampled_from((1, 2, 4, 8)), st.sampled_from(NUMBERS), st.booleans()),
    st.tuples(st.just("digits"), _WHERE, st.sampled_from(DIGITS)),
)


def edited(data: bytes, edits: list[Edit]) -> bytes:
    for edit in edits:
        data = _edited(data, *edit)
    return data


def _edited(data: bytes, kind: str, where: float, *rest: Any) -> bytes:
    at = int(where * len(data))
    if kind == "cut" or not data:
        return data[:at]
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (1 << rest[0])]) + data[at + 1 :]
    if kind == "drop":
        return data[:at] + data[at + rest[0] :]
    if kind == "copy":
        start = int(rest[0] * len(data))
        return data[:at] + data[start : start + rest[1]] + data[at:]
    if kind == "insert":
        return data[:at] + rest[0] + data[at:]
    if kind == "digits":
        found = re.compile(rb"\d+").search(data, at)
        return data[: found.start()] + rest[0] + data[found.end() :] if found else data
    width, number, big = rest
    packed = (number % (1 << (8 * width))).to_bytes(width, "big" if big else "little")
    return data[:at] + packed + data[at + width :]


def damaged() -> st.SearchStrategy[Damage]:
    """Up to four edits of a file's bytes."""
    return st.lists(_EDITS, min_size=1, max_size=4).map(lambda edits: _Named(lambda data: edited(data, edits), edits))


def damaged_member() -> st.SearchStrategy[Damage]:
    """The same inside one member of a zip, which is then whole again, checksums included."""
    edits = st.lists(_EDITS, min_size=1, max_size=4)
    return st.tuples(_WHERE, edits).map(lambda each: _Named(lambda data: _rezipped(data, *each), each))


def _rezipped(data: bytes, which: float, edits: list[Edit]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as out:
        entries = source.infolist()
        for number, entry in enumerate(entries):
            content = source.read(entry)
            chosen = number == int(which * len(entries))
            out.writestr(entry, edited(content, edits) if chosen else content)
    return target.getvalue()


def other_values(sealed: bool = False) -> st.SearchStrategy[Damage]:
    """One to three values of a JSON document replaced or taken away; a sealed one is sealed again, so that it opens."""
    edits = st.lists(st.tuples(_WHERE, st.booleans(), st.sampled_from(VALUES)), min_size=1, max_size=3)
    return edits.map(lambda each: _Named(lambda data: _rewritten(data, each, sealed), each))


def _rewritten(data: bytes, edits: list[Edit], sealed: bool) -> bytes:
    document = json.loads(data)
    document = document["content"] if sealed else document
    for where, remove, value in edits:
        document = _replaced(document, where, remove, copy.deepcopy(value))
    if not sealed:
        return json.dumps(document).encode("utf-8", "surrogatepass")
    try:
        return seal(document)
    except (ValueError, TypeError):  # what canonical JSON cannot hold, nobody can seal
        return json.dumps({"xxh3_128": "0", "content": document}).encode()


def _replaced(document: Any, where: float, remove: bool, value: Any) -> Any:
    places = list(_places(document))
    if not places:
        return value
    holder, name = places[int(where * len(places))]
    if remove:
        del holder[name]
    else:
        holder[name] = value
    return document


def _places(node: Any) -> Any:
    names = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for name in names:
        yield node, name
        yield from _places(node[name])


class _Named:
    """A function that shows what it does when hypothesis prints an example."""

    def __init__(self, apply: Damage, edits: Any) -> None:
        self._apply, self._edits = apply, edits

    def __call__(self, data: bytes) -> bytes:
        return self._apply(data)

    def __repr__(self) -> str:
        return f"damage{self._edits!r}"
