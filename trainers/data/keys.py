"""Keys as data sets name images, and as stores and folders have them: `9` and `COCO_val2014_000000000009`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from storage.against import names_of
from trainers.data.base import Example, Split
from trainers.data.captions import Captions


def matched(wanted: Iterable[str], there: Iterable[str]) -> dict[str, str]:
    """For each key of a data set, the one that stands for it in a store or a source; those without one are left out.

    A key stands for another if they are equal; else if the last part of its path is, or the number that this is
    (`storage.against.names_of`). Where several stand for one, as of two data sets side by side, none does.
    """
    wanted = list(wanted)
    theirs = list(there)
    found = {key: key for key in set(theirs).intersection(wanted)}
    if len(found) == len(set(wanted)):
        return found
    by_name: dict[str, str | None] = {}
    for key in theirs:
        for name in set(names_of(key)):
            by_name[name] = key if by_name.get(name, key) == key else None
    for key in wanted:
        if key not in found:
            other = next((other for name in names_of(key) if (other := by_name.get(name))), None)
            if other:
                found[key] = other
    return found


def present(split: Split, there: Iterable[str]) -> Split:
    """The examples of a split whose images are all there, by `matched`: for lists of addresses, many of them dead."""
    known = matched(split.images(), there)
    numbers = [at for at, example in enumerate(split.examples) if all(key in known for key in example.images)]
    return replace(split, examples=_some(split.examples, numbers))


def _some(examples: Sequence[Example], numbers: list[int]) -> Sequence[Example]:
    if isinstance(examples, Captions):
        return examples.take(numbers)
    return [examples[at] for at in numbers]
